//! The gateway, account by account: does it answer, does it take the signature, how does its clock
//! differ, may orders be looked up.

use super::{Sheet, name};
use crate::app;
use crate::config::Config;
use crate::gateway::client::Client;
use crate::rules::judge::{self, CallEnd, LookUp, News, SettingsFault};
use crate::rules::order::OrderNo;

/// Nobody has an order of this name, and looking it up changes nothing.
const NO_ORDER: &str = "WDT-DOCTOR-0";
/// Beyond this somebody should see to the clock, though calls are stamped by the gateway's.
const CLOCK_BOUND_SECONDS: u64 = 30;

pub(super) async fn check(sheet: &mut Sheet, config: &Config) {
    let clients = match app::clients(config) {
        Ok(clients) => clients,
        Err(error) => return sheet.wrong("gateway", format!("{error:#}"), ""),
    };
    let mut known: Option<(String, bool)> = None;
    for ((account, settings), client) in config.accounts.iter().zip(clients) {
        let check = format!("account {account}");
        let host = settings.url.host_str().unwrap_or_default();
        let port = settings.url.port_or_known_default().unwrap_or(80);
        // Most accounts have the same gateway.
        let is_found = match &known {
            Some((known, is_found)) if known == host => *is_found,
            _ => {
                let plain = host.trim_start_matches('[').trim_end_matches(']');
                let is_found = name(sheet, "gateway", plain, port).await;
                known = Some((host.to_owned(), is_found));
                is_found
            }
        };
        if is_found {
            one(sheet, &check, &client).await;
        }
    }
}

async fn one(sheet: &mut Sheet, check: &str, client: &Client) {
    let signature = format!("{check} signature");
    let Some(ended) = sheet.step(&signature, client.now()).await else {
        return;
    };
    match (judge::judge_probe(&ended.end), &ended.end) {
        (News::Misconfigured { fault, words }, _) => {
            return sheet.wrong(&signature, format!("refused: {words}"), fault.remedy());
        }
        (_, CallEnd::Answered(reply)) if reply.status == 0 => {
            let millis = ended.duration.as_millis();
            sheet.ok(&signature, format!("taken, in {millis} ms"));
        }
        // 时间戳错误
        (_, CallEnd::Answered(reply)) if reply.status == 7 => {
            let found = format!("the gateway takes our clock for wrong: {}", reply.message);
            return sheet.wrong(
                &format!("{check} clock"),
                found,
                SettingsFault::Clock.remedy(),
            );
        }
        (_, CallEnd::Answered(reply)) => {
            let found = format!("status {}: {}", reply.status, reply.message);
            sheet.note(&signature, found, "");
        }
        (_, CallEnd::Throttled { .. }) => {
            let found = "too many calls; the gateway wants to be left alone";
            return sheet.note(&signature, found, "ask again in ten minutes");
        }
        (
            _,
            CallEnd::Garbled { what, .. } | CallEnd::Lost { what } | CallEnd::NotReached { what },
        ) => {
            return sheet.wrong(&signature, what, "check api.url, the network and the proxy");
        }
    }
    clock(
        sheet,
        &format!("{check} clock"),
        client.clock_offset_seconds(),
    );

    let query = format!("{check} query");
    let Ok(order) = OrderNo::new(NO_ORDER) else {
        return;
    };
    let Some(ended) = sheet.step(&query, client.look_up(&order)).await else {
        return;
    };
    match judge::judge_look_up(&order, &ended.end) {
        (LookUp::NotPermitted(words), _) => sheet.wrong(
            &query,
            format!("orders may not be looked up: {words}"),
            "grant the application wms.stockother.OutQuery.queryWithDetail on the open platform",
        ),
        (LookUp::Failed(_), News::Misconfigured { fault, words }) => {
            sheet.wrong(&query, words, fault.remedy());
        }
        (LookUp::Failed(words), _) => sheet.note(&query, words, ""),
        (LookUp::Absent | LookUp::Cancelled | LookUp::Cancellable(_) | LookUp::Final(_), _) => {
            sheet.ok(&query, "orders may be looked up");
        }
    }
}

fn clock(sheet: &mut Sheet, check: &str, offset: Option<i64>) {
    let Some(offset) = offset else {
        return sheet.note(check, "the gateway does not tell its time", "");
    };
    let side = match offset {
        0.. => "ahead of",
        _ => "behind",
    };
    let seconds = offset.unsigned_abs();
    let found = format!("the gateway's is {seconds} s {side} ours");
    match seconds <= CLOCK_BOUND_SECONDS {
        true => sheet.ok(check, found),
        false => sheet.wrong(
            check,
            found,
            "set this machine's clock; see why NTP does not",
        ),
    }
}
