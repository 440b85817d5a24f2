//! The dead-letter queue.

use maud::{Markup, html};

use super::all;
use super::frame::Frame;
use super::story::link;
use crate::admin::letters::{Done, LETTERS_MAX, Shown};
use crate::rules::dead::Filter;
use crate::rules::order::CommandId;

/// Orders of a letter that its row names.
const ORDERS_SHOWN: usize = 5;
/// What narrows the list, in the form and in the address.
const FIELDS: [&str; 4] = ["reason", "account", "order", "command"];

/// Which letters are listed.
pub(super) fn filter(pairs: &[(String, String)]) -> Filter {
    let of = |name| all(pairs, name).into_iter().map(Into::into).collect();
    Filter {
        reasons: of("reason"),
        accounts: of("account"),
        orders: of("order"),
        command_ids: of("command"),
        ..Filter::default()
    }
}

/// Which letters were chosen: those that are ticked, or all that are listed.
pub(super) fn chosen(form: &[(String, String)]) -> Option<Filter> {
    let ticked = all(form, "id");
    let mut filter = filter(form);
    if !ticked.is_empty() {
        filter.command_ids = ticked.into_iter().map(Into::into).collect();
        return Some(filter);
    }
    (!all(form, "all").is_empty()).then_some(filter)
}

fn values(filter: &Filter) -> [(&'static str, &[String]); 4] {
    let of = [
        &filter.reasons,
        &filter.accounts,
        &filter.orders,
        &filter.command_ids,
    ];
    let mut all = [("", &[][..]); 4];
    for ((place, name), values) in all.iter_mut().zip(FIELDS).zip(of) {
        *place = (name, values.as_slice());
    }
    all
}

/// The list, and what came of what was pressed.
pub(super) fn page(
    frame: &Frame,
    filter: &Filter,
    found: Result<&Done, &String>,
    done: Option<&Result<Done, String>>,
) -> Markup {
    html! {
        h1 { (frame.t("Dead letters", "死信")) }
        p.dim { (frame.t(
            "Commands that could not be read, or have a failed or unknown order. Replayed, a command tries just the orders that are not settled; pressing twice does no harm.",
            "无法读取的命令，或其中有订单以 failed、unknown 结束的命令。重放只会重试尚未确定的订单；重复点击没有危害。",
        )) }
        @match done {
            None => {},
            Some(Err(error)) => p.notice.bad { (error) },
            Some(Ok(done)) => {
                p.notice {
                    (done.tally.done) " " (frame.t("letters done", "条已处理"))
                    @if let Some(why) = &done.stopped { ": " (why) }
                }
            },
        }
        form.row method="get" action="/dead" {
            @for (name, values) in values(filter) {
                label { (label(frame, name))
                    input name=(name) value=(values.first().map_or("", String::as_str)); }
            }
            button { (frame.t("Filter", "筛选")) }
        }
        @match found {
            Err(error) => p.notice.bad { (error) },
            Ok(found) => (list(frame, filter, found)),
        }
    }
}

fn label(frame: &Frame, field: &str) -> &'static str {
    match field {
        "reason" => frame.t("Reason", "原因"),
        "account" => frame.t("Account", "账户"),
        "order" => frame.t("Order", "订单"),
        _ => frame.t("Command", "命令"),
    }
}

fn hidden(filter: &Filter) -> Markup {
    html! {
        @for (name, values) in values(filter) {
            @for value in values { input type="hidden" name=(name) value=(value); }
        }
    }
}

fn list(frame: &Frame, filter: &Filter, found: &Done) -> Markup {
    let tally = &found.tally;
    html! {
        p { (tally.waiting) " " (frame.t("in the queue", "条在队列中")) (frame.t(", ", "，")) (tally.meant) " " (frame.t("fit", "条符合"))
            @if tally.meant > LETTERS_MAX { ", " (LETTERS_MAX) " " (frame.t("shown", "条显示")) } }
        @if let Some(why) = &found.stopped { p.notice.bad { (why) } }
        @if !found.letters.is_empty() {
            form method="post" action="/dead/replay" {
                (hidden(filter))
                div.wide { table {
                    thead { tr {
                        @if frame.may_act() { th {} }
                        th { (frame.t("Since", "时间")) } th { (frame.t("Reason", "原因")) }
                        th { (frame.t("Account", "账户")) } th { (frame.t("Orders", "订单")) }
                        th { (frame.t("Command", "命令")) } th.n { (frame.t("Replays", "重放")) }
                    } }
                    tbody { @for shown in &found.letters { (row(frame, shown)) } }
                } }
                @if frame.may_act() {
                    p.row {
                        label { input type="checkbox" name="all" value="1"; " "
                            (frame.t("all that fit, if none is ticked (100 at most)", "未勾选时，处理全部符合的（最多 100 条）")) }
                        button.main { (frame.t("Replay", "重放")) }
                        button.danger formaction="/dead/drop" { (frame.t("Remove…", "删除…")) }
                    }
                } @else {
                    p.dim { (frame.t("Log in to replay or remove.", "登录后可重放或删除。")) }
                }
            }
        }
    }
}

fn row(frame: &Frame, Shown { letter, preview }: &Shown) -> Markup {
    let id = letter.command_id.as_ref().map(CommandId::as_str);
    let more = letter.orders.len().saturating_sub(ORDERS_SHOWN);
    let since = letter
        .dead_at
        .map(|at| format!("{at:.0}").replace('T', " "));
    html! {
        tr {
            @if frame.may_act() { td { @if let Some(id) = id {
                input type="checkbox" name="id" value=(id) aria-label=(id);
            } } }
            td.dim { (since.as_deref().unwrap_or("–").trim_end_matches('Z')) }
            td { span.pill.wrong { @if letter.reason.is_empty() { "–" } @else { (letter.reason) } } }
            td { (letter.account) }
            td { @for order_no in letter.orders.iter().take(ORDERS_SHOWN) { (link(order_no)) " " }
                @if more > 0 { " +" (more) } }
            td.id { details { summary { (id.unwrap_or("–")) } pre { (preview) } } }
            td.n { (letter.replays) }
        }
    }
}

/// Asks once more before anything is removed.
pub(super) fn sure(
    frame: &Frame,
    form: &[(String, String)],
    found: Result<&Done, &String>,
) -> Markup {
    let meant = found.map_or(0, |found| found.tally.meant.min(LETTERS_MAX));
    html! {
        section.narrow {
            h1 { (frame.t("Remove for good?", "确定永久删除？")) }
            @if let Err(error) = found { p.notice.bad { (error) } }
            p { (meant) " " (frame.t(
                "letters. They are handed to you as a file, and written to the worker's log.",
                "条死信。内容会以文件形式下载，并写入日志。",
            )) }
            form.row method="post" action="/dead/drop" {
                @for (name, value) in form.iter().filter(|(name, _)| name != "sure") {
                    input type="hidden" name=(name) value=(value);
                }
                input type="hidden" name="sure" value="1";
                button.danger { (frame.t("Remove", "删除")) }
                a href="/dead" { (frame.t("Back", "返回")) }
            }
        }
    }
}
