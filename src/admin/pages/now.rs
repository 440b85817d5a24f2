//! How everything is right now.

use std::time::Duration;

use jiff::Timestamp;
use maud::{Markup, html};

use super::frame::Frame;
use super::story::link;
use crate::admin::history::{Count, STEP};
use crate::admin::{Snapshot, health};
use crate::rules::desk::Telling;
use crate::rules::lane::{Health, LaneReport};
use crate::rules::order::Outcome;

/// Bars of the chart: a minute each.
const MINUTES: i64 = 60;
/// The chart's own units.
const BAR: i64 = 10;
const HEIGHT: u64 = 100;
/// Of bars and words: well, as asked; not as asked; somebody has to look.
const CLASSES: [&str; 3] = ["good", "no", "wrong"];
/// Latest outcomes shown.
const LATEST_SHOWN: usize = 20;
/// Rates are of the last minute, to the step.
const RATE_STEPS: i64 = 60 / STEP;

/// The page around what moves.
pub(super) fn page(frame: &Frame, live: Markup) -> Markup {
    html! {
        div #live { (live) }
        @if frame.may_act() {
            form.row method="post" action="/pause" {
                button.danger name="all" value="1" { (frame.t("Pause all accounts", "暂停全部账户")) }
                button name="all" value="1" formaction="/resume" { (frame.t("Resume all", "全部恢复")) }
            }
        }
    }
}

/// What moves.
pub(super) fn live(
    frame: &Frame,
    snapshot: &Snapshot,
    counts: &[Count],
    latest: &[(Timestamp, Telling)],
    now: Timestamp,
) -> Markup {
    html! {
        (state(frame, snapshot))
        (tiles(frame, snapshot, counts, now))
        (chart(frame, counts, now))
        (accounts(frame, snapshot))
        (outcomes(frame, latest))
    }
}

fn state(frame: &Frame, snapshot: &Snapshot) -> Markup {
    let report = health::report(snapshot);
    let is_fault = |check: &health::Check| match check.state {
        health::State::Failing | health::State::Degraded => true,
        health::State::Ok | health::State::Paused => false,
    };
    let has_faults = report.checks.iter().any(is_fault);
    let is_calm = |check: &&health::Check| matches!(check.state, health::State::Ok);
    html! {
        section.state.ok[report.ready].bad[!report.ready].some[has_faults] {
            h1 {
                @if report.ready && has_faults { (frame.t("Working, with faults", "运行中，有异常")) }
                @else if report.ready { (frame.t("Working", "正常运行")) }
                @else { (frame.t("Not ready", "未就绪")) }
            }
            @for check in report.checks.iter().filter(|check| !is_calm(check)) {
                div.check {
                    strong { (check.name) } " "
                    span { (check.cause) }
                    @if let Some(since) = &check.since { span.dim { " " (short(since)) } }
                    @if !check.remedy.is_empty() { p.remedy { "→ " (check.remedy) } }
                }
            }
        }
    }
}

/// Without the day's fraction of a second.
fn short(time: &str) -> &str {
    time.split('.').next().unwrap_or(time)
}

fn tiles(frame: &Frame, snapshot: &Snapshot, counts: &[Count], now: Timestamp) -> Markup {
    let this = now.as_second().div_euclid(STEP);
    let over = counts
        .iter()
        .filter(|count| (this - RATE_STEPS + 1..=this).contains(&count.step));
    let (mut told, mut calls, mut lists, mut orders) = (0_u64, 0_u64, 0_u64, 0_u64);
    for count in over {
        told += count.told.iter().map(|n| u64::from(*n)).sum::<u64>();
        calls += u64::from(count.calls);
        lists += u64::from(count.lists);
        orders += u64::from(count.orders);
    }
    let per_call = match lists {
        0 => "–".to_owned(),
        lists => format!("{:.1}", orders as f64 / lists as f64),
    };
    let load = snapshot.load;
    let tile = |value: String, words: &'static str| {
        html! { div.tile { b { (value) } span { (words) } } }
    };
    html! {
        section.tiles {
            (tile(told.to_string(), frame.t("orders told, last minute", "最近一分钟通知的订单")))
            (tile(calls.to_string(), frame.t("calls, last minute", "最近一分钟调用")))
            (tile(per_call, frame.t("orders per call", "每次调用订单数")))
            (tile(snapshot.queue.ready.to_string(), frame.t("commands waiting in the queue", "队列中等待的命令")))
            (tile(load.commands.to_string(), frame.t("commands in hand", "处理中的命令")))
            (tile(load.orders.to_string(), frame.t("orders in hand", "处理中的订单")))
            (tile(load.calls.to_string(), frame.t("calls in flight", "进行中的调用")))
            @if load.untold > 0 {
                (tile(load.untold.to_string(), frame.t("results no queue takes", "无法投递的结果")))
            }
        }
    }
}

/// How an outcome is coloured.
pub(super) fn class(outcome: Outcome) -> &'static str {
    CLASSES[kind(outcome)]
}

/// The outcome's place in [`CLASSES`].
fn kind(outcome: Outcome) -> usize {
    match outcome {
        Outcome::Cancelled => 0,
        Outcome::Refused | Outcome::Rejected | Outcome::Expired => 1,
        Outcome::Failed | Outcome::Unknown => 2,
    }
}

fn chart(frame: &Frame, counts: &[Count], now: Timestamp) -> Markup {
    let last = now.as_second().div_euclid(60);
    let mut minutes = vec![[0_u64; 3]; 60];
    for count in counts {
        let back = last - (count.step * STEP).div_euclid(60);
        let Some(minute) = usize::try_from(MINUTES - 1 - back)
            .ok()
            .and_then(|at| minutes.get_mut(at))
        else {
            continue;
        };
        for (outcome, told) in Outcome::ALL.into_iter().zip(count.told) {
            minute[kind(outcome)] += u64::from(told);
        }
    }
    let most = minutes
        .iter()
        .map(|m| m.iter().sum::<u64>())
        .max()
        .unwrap_or(0)
        .max(1);
    let total: u64 = minutes.iter().flatten().sum();
    let mut bars = Vec::new();
    for (at, minute) in minutes.iter().enumerate() {
        let mut below = 0;
        for (told, class) in minute.iter().zip(CLASSES) {
            if *told == 0 {
                continue;
            }
            // Whatever happened is to be seen.
            let height = (told * HEIGHT / most).max(1);
            let y = HEIGHT.saturating_sub(below + height);
            bars.push((class, at as i64 * BAR, y, height));
            below += height;
        }
    }
    let width = MINUTES * BAR;
    let words = format!(
        "{total} {}, {} {most} {}",
        frame.t("orders told in the last hour", "个订单在最近一小时内已通知"),
        frame.t("at most", "最多每分钟"),
        frame.t("a minute", "个"),
    );
    html! {
        section {
            h2 { (frame.t("The last hour", "最近一小时")) span.dim { " " (words) } }
            svg.chart viewBox={ "0 0 " (width) " " (HEIGHT) } preserveAspectRatio="none" role="img" aria-label=(words) {
                @for (class, x, y, height) in bars {
                    rect class=(class) x=(x) y=(y) width=(BAR - 1) height=(height) {}
                }
            }
            p.legend {
                span.good { (frame.t("cancelled", "已取消")) }
                span.no { (frame.t("refused, rejected, expired", "被拒绝、无效、过期")) }
                span.wrong { (frame.t("failed, unknown", "失败、未知")) }
            }
        }
    }
}

fn accounts(frame: &Frame, snapshot: &Snapshot) -> Markup {
    html! {
        section {
            h2 { (frame.t("Accounts", "账户")) }
            div.wide { table {
                thead { tr {
                    th { (frame.t("Account", "账户")) } th { (frame.t("State", "状态")) }
                    th { (frame.t("Minute's calls", "本分钟调用")) }
                    th.n { (frame.t("Waiting", "等待订单")) } th.n { (frame.t("In flight", "进行中")) }
                    th.n { (frame.t("Clock", "时差")) }
                    @if frame.may_act() { th {} }
                } }
                tbody {
                    @for (at, report) in snapshot.accounts.iter().enumerate() {
                        (account(frame, report, snapshot.clock_offsets.get(at).copied().flatten()))
                    }
                }
            } }
        }
    }
}

fn account(frame: &Frame, report: &LaneReport, offset: Option<i64>) -> Markup {
    let (class, state, more) = lane_state(frame, report);
    html! {
        tr {
            td { strong { (report.account) } }
            td { span.pill.(class) { (state) } @if !more.is_empty() { div.dim { (more) } } }
            td {
                @if report.per_minute > 0 {
                    meter min="0" max=(report.per_minute) high=(report.per_minute * 9 / 10) value=(report.used.min(report.per_minute)) {}
                    " " (report.used) " / " (report.per_minute)
                } @else { (frame.t("no limit", "不限")) }
            }
            td.n { (report.waiting) }
            td.n { (report.in_flight) }
            td.n { @if let Some(offset) = offset { (offset) " s" } @else { "–" } }
            @if frame.may_act() {
                td {
                    form method="post" action=(if report.paused.is_some() { "/resume" } else { "/pause" }) {
                        button name="account" value=(report.account) {
                            @if report.paused.is_some() { (frame.t("Resume", "恢复")) }
                            @else { (frame.t("Pause", "暂停")) }
                        }
                    }
                }
            }
        }
    }
}

fn lane_state(frame: &Frame, report: &LaneReport) -> (&'static str, &'static str, String) {
    if let Some(paused) = &report.paused {
        let more = format!("{} · {:.0}", paused.by, paused.since);
        return ("held", frame.t("paused", "已暂停"), more);
    }
    match &report.health {
        Health::Down { since, cause } => (
            "wrong",
            frame.t("gateway down", "网关无响应"),
            format!("{cause} · {since:.0}"),
        ),
        Health::Stopped {
            since,
            fault,
            words,
        } => (
            "wrong",
            frame.t("stopped", "已停止"),
            format!("{}: {words} · {since:.0}", fault.as_str()),
        ),
        Health::Well => match report.cooling {
            Some(time) => (
                "no",
                frame.t("cooling down", "限流冷却"),
                format!("{} s", time.max(Duration::from_secs(1)).as_secs()),
            ),
            None if report.query_denied => (
                "no",
                frame.t("no query permission", "无查询权限"),
                String::new(),
            ),
            None => ("good", frame.t("well", "正常"), String::new()),
        },
    }
}

fn outcomes(frame: &Frame, latest: &[(Timestamp, Telling)]) -> Markup {
    html! {
        section {
            h2 { (frame.t("Latest outcomes", "最近结果")) }
            @if latest.is_empty() { p.dim { (frame.t("None since the start.", "启动以来还没有。")) } }
            @else { div.wide { table {
                thead { tr {
                    th { (frame.t("Time", "时间")) } th { (frame.t("Order", "订单")) }
                    th { (frame.t("Outcome", "结果")) } th { (frame.t("Reason", "原因")) }
                    th { (frame.t("Account", "账户")) } th { (frame.t("Command", "命令")) }
                } }
                tbody { @for (at, telling) in latest.iter().take(LATEST_SHOWN) { (outcome(frame, *at, telling)) } }
            } } }
        }
    }
}

fn outcome(frame: &Frame, at: Timestamp, telling: &Telling) -> Markup {
    let event = &telling.event;
    let outcome = event.ending.outcome();
    let class = class(outcome);
    let time = format!("{at:.0}");
    let time = time
        .split_once('T')
        .map_or(&*time, |(_, time)| time)
        .trim_end_matches('Z');
    html! {
        tr {
            td.dim { (time) }
            td { @match &event.order_no { Some(order_no) => (link(order_no)), None => "–" } }
            td { span.pill.(class) { (outcome.as_str()) } @if event.replayed { span.dim { " " (frame.t("told again", "重复通知")) } } }
            td { @if let Some(reason) = event.ending.reason() { (reason.code.as_str()) div.dim { (reason.message) } } }
            td { (event.account_shown) }
            td.id { (link(telling.envelope.command_id.as_str())) }
        }
    }
}
