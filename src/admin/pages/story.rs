//! What became of an order or a command, as the ledger's journal tells it.

use jiff::Timestamp;
use maud::{Markup, html};

use super::frame::{Frame, Lang, address};
use super::now::class;
use crate::admin::stories::Found;
use crate::rules::order::Outcome;
use crate::rules::story::{CommandStory, Moment, OrderStory, Standing, Told, What};

/// Lines of a story that are shown; the command line shows all.
const LINES_SHOWN: usize = 500;

/// Where a name's story is.
pub(super) fn link(name: &str) -> Markup {
    html! { a href=(address("/story", [("name", name)])) { (name) } }
}

/// The search, and what it found.
pub(super) fn page(
    frame: &Frame,
    name: &str,
    account: &str,
    found: Option<&Result<Found, String>>,
) -> Markup {
    html! {
        h1 { (frame.t("What became of it", "查询经过")) }
        form.row method="get" action="/story" {
            label { (frame.t("Order number or command id", "单号或命令 ID"))
                input name="name" value=(name) required maxlength="255"; }
            label { (frame.t("Account (else all)", "账户（留空为全部）"))
                input name="account" value=(account); }
            button.main { (frame.t("Search", "查询")) }
        }
        @match found {
            None => p.dim { (frame.t(
                "All that the ledger knows, for as long as ledger.retention.",
                "显示账本在保留期（ledger.retention）内记录的全部内容。",
            )) },
            Some(Err(error)) => p.notice.bad { (error) },
            Some(Ok(found)) => {
                @if found.orders.is_empty() && found.commands.is_empty() {
                    p.notice { (frame.t(
                        "The ledger knows no order and no command of this name.",
                        "账本中没有此单号或命令。",
                    )) }
                }
                @for story in &found.orders { (order(frame, story)) }
                @for story in &found.commands { (command(frame, story)) }
            },
        }
    }
}

fn order(frame: &Frame, story: &OrderStory) -> Markup {
    html! {
        section {
            h2 { (frame.t("Order", "单号")) " " (story.order_no)
                span.dim { " · " (frame.t("account", "账户")) " " (story.account) } }
            p { (standing(frame, story.standing.as_ref())) }
            (told(frame, &story.results, |told| &told.command_id))
            (moments(frame, story.moments.iter()))
        }
    }
}

fn command(frame: &Frame, story: &CommandStory) -> Markup {
    html! {
        section {
            h2 { (frame.t("Command", "命令")) " " (story.command_id)
                span.dim { " · " (frame.t("account", "账户")) " " (story.account) } }
            (told(frame, &story.results, |told| &told.order_no))
            (moments(frame, story.more()))
        }
    }
}

fn standing(frame: &Frame, standing: Option<&Standing>) -> Markup {
    let Some(standing) = standing else {
        return html! { (frame.t(
            "Where it stands is not on record, or not any more.",
            "没有（或已不再保留）此单的状态记录。",
        )) };
    };
    html! {
        @match &standing.outcome {
            Some(outcome) => (pill(outcome)),
            None => span.pill { @match standing.state {
                "sent" => (frame.t("sent, and no answer is recorded", "已发送，尚无记录的答复")),
                _ => (frame.t("waiting", "等待发送")),
            } },
        }
        (reason(standing.code.as_deref(), standing.message.as_deref()))
        span.dim { " · " (frame.t("calls", "调用次数")) " " (standing.attempts)
            " · " (frame.t("since", "自")) " " (time(standing.changed_at)) }
    }
}

/// What commands are told; the first column is what sets one apart from the next.
fn told<'a>(frame: &Frame, results: &'a [Told], name: impl Fn(&'a Told) -> &'a str) -> Markup {
    let is_by_order = results
        .first()
        .is_some_and(|told| name(told) == told.order_no);
    let first = if is_by_order {
        frame.t("Order", "单号")
    } else {
        frame.t("Command", "命令")
    };
    html! {
        @if !results.is_empty() {
            div.wide { table {
                thead { tr {
                    th { (first) } th { (frame.t("Outcome", "结果")) }
                    th { (frame.t("Ended", "结束时间")) } th { (frame.t("Event confirmed", "事件确认")) }
                } }
                tbody { @for told in results.iter().take(LINES_SHOWN) { tr {
                    td.id { (link(name(told))) }
                    td { (pill(&told.outcome)) (reason(told.code.as_deref(), told.message.as_deref())) }
                    td.dim { (time(told.occurred_at)) }
                    td { @match told.confirmed_at.as_slice() {
                        [] => span.dim { (frame.t("not noted; it may have gone out", "无记录；可能已发出")) },
                        [at] => (time(*at)),
                        [.., at] => { (time(*at)) " (" (told.confirmed_at.len()) "×)" },
                    } }
                } } }
            } }
            (cut(frame, results.len()))
        }
    }
}

fn moments<'a>(frame: &Frame, moments: impl Iterator<Item = &'a Moment> + Clone) -> Markup {
    html! {
        ol.moments { @for moment in moments.clone().take(LINES_SHOWN) {
            li { time.dim { (time(moment.at)) } " " span { (line(frame.lang, &moment.what)) } }
        } }
        (cut(frame, moments.count()))
    }
}

fn cut(frame: &Frame, all: usize) -> Markup {
    html! {
        @if let Some(more) = all.checked_sub(LINES_SHOWN).filter(|more| *more > 0) {
            p.dim { (more) " " (frame.t(
                "more; wdt-cancel-worker order or command shows all.",
                "条未显示；请用 wdt-cancel-worker order 或 command 查看全部。",
            )) }
        }
    }
}

fn pill(outcome: &str) -> Markup {
    let class = Outcome::parse(outcome).map_or("wrong", class);
    html! { span.pill.(class) { (outcome) } }
}

fn reason(code: Option<&str>, message: Option<&str>) -> Markup {
    let message = message.filter(|message| !message.is_empty());
    html! {
        @if let Some(code) = code { " " (code) }
        @if let Some(message) = message { span.dim { " " (message) } }
    }
}

fn time(at: Timestamp) -> String {
    let text = format!("{at:.3}").replace('T', " ");
    text.trim_end_matches('Z').to_owned()
}

fn line(lang: Lang, what: &What) -> String {
    match lang {
        Lang::En => what.line(),
        Lang::Zh => in_chinese(what),
    }
}

fn in_chinese(what: &What) -> String {
    let because = |code: Option<&str>, message: Option<&str>| {
        let words = [code, message].into_iter().flatten();
        let words: Vec<&str> = words.filter(|words| !words.is_empty()).collect();
        if words.is_empty() {
            String::new()
        } else {
            format!("（{}）", words.join("："))
        }
    };
    match what {
        What::Asked { command_id, orders } => format!("收到命令 {command_id}，{orders} 个单号"),
        What::Sent {
            call,
            attempt,
            orders,
        } => format!("随调用 {call} 发送，第 {attempt} 次尝试，同批 {orders} 个单号"),
        What::Waits => "记录为等待发送；命令已退回队列".to_owned(),
        What::Answered {
            call,
            method,
            duration_ms,
            http_status,
            status,
            message,
            said,
            words,
        } => {
            let what = if *method == "cancel" {
                "调用"
            } else {
                "查询"
            };
            let mut line = format!("{what} {call} 结束，用时 {duration_ms} 毫秒");
            if let Some(http) = http_status {
                line += &format!("，HTTP {http}");
            }
            if let Some(status) = status {
                line += &format!("，status {status}");
            }
            if !message.is_empty() {
                line += &format!("，“{message}”");
            }
            match *said {
                Some("cancelled") => line += "；此单：已取消",
                Some("refused") => line += "；此单：被拒绝",
                Some("cancelled_and_refused") => line += "；此单：同时列为已取消和被拒绝",
                Some("not_named") => line += "；此单：答复中未提及",
                Some("found") => line += "；此单：已找到",
                Some("not_found") => line += "；此单：未找到",
                Some(_) | None => {}
            }
            if let Some(words) = words {
                line += &format!("，“{words}”");
            }
            line
        }
        What::Ended {
            outcome,
            code,
            message,
            attempts,
        } => {
            let why = because(code.as_deref(), message.as_deref());
            format!("结束：{outcome}{why}，共调用 {attempts} 次")
        }
        What::Told {
            command_id,
            order_no: _,
            outcome,
            replayed,
        } => {
            let again = if *replayed { "（重复通知）" } else { "" };
            format!("消息服务器已确认命令 {command_id} 的事件：{outcome}{again}")
        }
        What::Parked { command_id } => format!("命令 {command_id} 已复制到死信队列"),
    }
}
