//! The contract, sentence by sentence, against the real binary: a broker of the kit's, a virtual
//! host for each test, the kit's scripted gateway, and nothing of `src/`.
//!
//! Every event that any of these tests reads goes through [`sound`], which holds it against all
//! that the contract says of every event; the tests themselves say only what is special.
#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, its helpers too"
)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::process::Output;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant, SystemTime};

use futures_util::StreamExt;
use lapin::ExchangeKind;
use lapin::options::{
    BasicConsumeOptions, BasicGetOptions, BasicPublishOptions, ExchangeDeclareOptions,
    QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use serde_json::{Value, json};
use support::amqp::{Amqp, COMMANDS, Command, DEAD, Inbox, Message, RESULTS};
use support::broker::Vhost;
use support::eventually::{eventually, eventually_ok};
use support::gateway::{Account, Answer, CANCEL, Gateway, QUERY, Request};
use support::orders::{NO_SUCH_ORDER, NOT_CANCELLABLE, Orders};
use support::process::{self, PATH, Signal, free_port, fresh_dir};
use support::worker::{Setup, Worker};

/// The binary under test, for what is no worker.
const BINARY: &str = env!("CARGO_BIN_EXE_wdt-cancel-worker");
/// What takes a second at most on an idle machine, and this long on a busy one.
const SOON: Duration = Duration::from_secs(30);
/// A load, or several retries with their pauses.
const LATER: Duration = Duration::from_secs(90);
/// The kit's queue of results.
const RESULTS_INBOX: &str = "test.results";
/// The largest body of a command.
const MIB: usize = 1024 * 1024;

// ---- the stage ----

/// A door in front of the gateway: while it is shut, cancel calls arrive and are not handled. What
/// a worker looks like in the middle of a call is then there to be seen for as long as a test needs.
#[derive(Clone, Default)]
struct Door(Arc<(Mutex<bool>, Condvar)>);

impl Door {
    fn shut(&self) {
        *self.0.0.lock().unwrap() = true;
    }

    fn open(&self) {
        *self.0.0.lock().unwrap() = false;
        self.0.1.notify_all();
    }

    fn pass(&self) {
        let shut = self.0.0.lock().unwrap();
        // The limit ends a test that has forgotten to open; its gateway could not be dropped.
        let passed = self.0.1.wait_timeout_while(shut, SOON, |shut| *shut);
        drop(passed.unwrap());
    }
}

/// Opens the door whatever happens, before the gateway is dropped.
struct Opener(Door);

impl Drop for Opener {
    fn drop(&mut self) {
        self.0.open();
    }
}

/// Everything around one worker.
struct Stage {
    vhost: Vhost,
    amqp: Amqp,
    results: Inbox,
    orders: Orders,
    door: Door,
    _opener: Opener,
    gateway: Gateway,
    setup: Setup,
}

impl Stage {
    async fn new() -> Self {
        Self::with(|setup| setup).await
    }

    /// With other settings than the defaults. Calls are not paced: no test here waits a minute.
    async fn with(settings: impl FnOnce(Setup) -> Setup) -> Self {
        let vhost = Vhost::fresh().await;
        let amqp = Amqp::connect(&vhost.url()).await;
        let results = amqp.results().await;
        let orders = Orders::new();
        let door = Door::default();
        let gateway = {
            let (handle, door) = (orders.handler(), door.clone());
            let accounts = vec![Account::named("default"), Account::named("b2b")];
            Gateway::with_accounts(accounts, move |request| {
                if request.method() == CANCEL {
                    door.pass();
                }
                handle(request)
            })
        };
        let setup = Setup::new(&vhost.url(), &gateway.url()).set("WDT_API__CALLS_PER_MINUTE", 0);
        Self {
            vhost,
            amqp,
            results,
            orders,
            _opener: Opener(door.clone()),
            door,
            gateway,
            setup: settings(setup),
        }
    }

    /// Starts a worker, or the next one on the same ledger.
    async fn start(&self) -> Worker {
        let mut worker = self.setup.start();
        worker.wait_ready(SOON).await;
        worker
    }

    async fn send(&self, command: &Command) {
        self.amqp.send(command).await;
    }

    /// The next events, each of them sound.
    async fn events(&mut self, count: usize) -> Vec<Message> {
        let events = self.results.collect(count, LATER).await;
        events.iter().for_each(sound);
        events
    }

    /// Sends a command and takes its events, by their place in it.
    async fn told(&mut self, command: &Command, count: usize) -> Vec<Message> {
        self.send(command).await;
        let mut events = self.events(count).await;
        events.sort_by_key(|event| event.body["index"].as_u64());
        let places: Vec<_> = events.iter().map(|e| e.body["index"].as_u64()).collect();
        let expected: Vec<_> = (0..count as u64).map(Some).collect();
        assert_eq!(places, expected, "{events:#?}");
        events
    }

    /// Every command is acknowledged, and no event is there that the test has not read. An event is
    /// confirmed before the acknowledgement, so nothing can come later.
    async fn settled(&self) {
        self.vhost.queue_holds(SOON, COMMANDS, 0, 0).await;
        self.vhost.queue_holds(SOON, RESULTS_INBOX, 0, 0).await;
    }

    /// Waits until so many cancel calls have arrived.
    async fn cancels(&self, count: usize) {
        let what = format!("{count} cancel calls");
        eventually_ok(SOON, &what, async || match self.gateway.calls(CANCEL) {
            calls if calls.len() == count => Ok(()),
            calls => Err(calls.len()),
        })
        .await;
    }

    /// The lists of all cancel calls, in the order of arrival.
    fn lists(&self) -> Vec<Vec<String>> {
        let calls = self.gateway.calls(CANCEL);
        calls.iter().map(Request::orders).collect()
    }

    /// The methods of the calls that named this order, in the order of arrival.
    fn history(&self, order: &str) -> Vec<String> {
        let mut calls = self.gateway.requests();
        calls.retain(|call| call.orders().iter().any(|o| o == order));
        calls.iter().map(|call| call.method().into()).collect()
    }
}

/// All that contract §3 says of every event, whatever it tells.
fn sound(event: &Message) {
    let body = event
        .body
        .as_object()
        .unwrap_or_else(|| panic!("{event:#?}"));
    let text = |field: &str| body[field].as_str().unwrap_or_else(|| panic!("{event:#?}"));

    let mut fields: BTreeSet<&str> = body.keys().map(String::as_str).collect();
    // The two that may be absent; whether they may here is looked at below and by each test.
    let has_order = fields.remove("order_no");
    let has_reason = fields.remove("reason");
    let always = [
        "account",
        "attempts",
        "command_id",
        "event_id",
        "index",
        "occurred_at",
        "outcome",
        "replayed",
        "total",
    ];
    assert_eq!(fields, always.into(), "{event:#?}");

    let codes: &[&str] = match text("outcome") {
        "cancelled" => &[],
        "refused" => &["order_state", "order_not_found", "order_refused"],
        "rejected" => &[
            "malformed",
            "no_orders",
            "invalid_order_no",
            "too_many_orders",
            "unknown_account",
            "command_id_reused",
            "reply_to_not_allowed",
        ],
        "expired" => &["deadline_passed"],
        "failed" => &["api_unavailable", "api_refused_call"],
        "unknown" => &["unconfirmed"],
        _ => panic!("no such outcome: {event:#?}"),
    };
    assert_eq!(has_reason, !codes.is_empty(), "{event:#?}");
    if has_reason {
        let reason = body["reason"].as_object().unwrap();
        let fields: Vec<&String> = reason.keys().collect();
        assert_eq!(fields, ["code", "message"], "{event:#?}");
        assert!(codes.contains(&event.reason_code()), "{event:#?}");
        assert!(
            !reason["message"].as_str().unwrap().is_empty(),
            "{event:#?}"
        );
    }
    let of_the_whole_command = ["malformed", "no_orders", "too_many_orders"];
    assert_eq!(
        has_order,
        !of_the_whole_command.contains(&event.reason_code()),
        "{event:#?}"
    );
    if has_order {
        text("order_no");
    }

    assert!(
        body["attempts"].is_u64() && body["replayed"].is_boolean(),
        "{event:#?}"
    );
    let (index, total) = (
        body["index"].as_u64().unwrap(),
        body["total"].as_u64().unwrap(),
    );
    assert!(index < total, "{event:#?}");
    // Lower case with dashes, version 5, the variant of RFC 9562.
    let id = text("event_id");
    let pattern: String = id
        .chars()
        .map(|c| {
            if matches!(c, '0'..='9' | 'a'..='f') {
                'x'
            } else {
                c
            }
        })
        .collect();
    assert_eq!(
        pattern, "xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx",
        "{event:#?}"
    );
    assert!(
        id[14..].starts_with('5') && "89ab".contains(&id[19..20]),
        "{event:#?}"
    );
    let at = text("occurred_at");
    let pattern: String = at
        .chars()
        .map(|c| if c.is_ascii_digit() { '0' } else { c })
        .collect();
    assert_eq!(pattern, "0000-00-00T00:00:00.000Z", "{event:#?}");
    let at: jiff::Timestamp = at.parse().unwrap();
    assert!(recent(at.as_second()), "{event:#?}");

    // `_` stands for an account that the settings of these tests do not have.
    let account = match text("account") {
        known @ ("default" | "b2b") => known,
        _ => "_",
    };
    assert_eq!(event.exchange, RESULTS);
    assert_eq!(
        event.routing_key,
        format!("cancel.{account}.{}", text("outcome")),
        "{event:#?}"
    );
    properties(event);
}

/// The properties of an event and of its copy.
fn properties(event: &Message) {
    assert_eq!(event.message_id.as_deref(), Some(event.text("event_id")));
    assert!(event.correlation_id.is_some(), "{event:#?}");
    assert_eq!(event.kind.as_deref(), Some("wdt.cancel.result.v1"));
    assert_eq!(event.content_type.as_deref(), Some("application/json"));
    assert_eq!(event.app_id.as_deref(), Some("wdt-cancel-worker"));
    assert_eq!(event.delivery_mode, Some(2));
    assert!(recent(event.timestamp.unwrap() as i64), "{event:#?}");
    let trace = trace(event);
    assert_eq!(trace.len(), 4, "{event:#?}");
    for (part, length) in trace.iter().zip([2, 32, 16, 2]) {
        let hex = part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        assert!(part.len() == length && hex, "{event:#?}");
    }
    assert!(
        trace[1..3].iter().all(|id| id.bytes().any(|b| b != b'0')),
        "{event:#?}"
    );
}

/// The four parts of an event's `traceparent`.
fn trace(event: &Message) -> Vec<String> {
    let header = event.headers["traceparent"].as_str().unwrap();
    header.split('-').map(Into::into).collect()
}

/// Seconds since 1970 that lie within this test's lifetime.
fn recent(seconds: i64) -> bool {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    (now.unwrap().as_secs() as i64 - seconds).abs() < 600
}

/// What an event tells, for comparing several at once.
fn told(event: &Message) -> (&str, &str, &str) {
    (event.order_no(), event.outcome(), event.reason_code())
}

fn cancelled(order: &str) -> (&str, &str, &str) {
    (order, "cancelled", "")
}

fn replayed(event: &Message) -> bool {
    event.body["replayed"] == json!(true)
}

fn ids(events: &[Message]) -> BTreeSet<&str> {
    events.iter().map(|event| event.text("event_id")).collect()
}

/// A reason has to say which field, what was found there, and what would do.
fn says(event: &Message, words: &[&str]) {
    let message = event.body["reason"]["message"].as_str().unwrap();
    for word in words {
        assert!(message.contains(word), "{message:?} lacks {word:?}");
    }
}

// ---- §2 commands ----

#[tokio::test]
async fn a_command_is_known_by_its_message_id_or_its_own_or_a_fresh_one() {
    let mut stage = Stage::new().await;
    let _worker = stage.start().await;
    let both = Command::orders(["QC1"]).field("command_id", "of-body");
    let event = stage
        .told(&both.clone().id("of-message"), 1)
        .await
        .remove(0);
    assert_eq!(event.text("command_id"), "of-message");
    assert_eq!(event.correlation_id.as_deref(), Some("of-message"));
    assert_eq!(event.text("account"), "default");

    let event = stage
        .told(&both.correlation_id("corr-7"), 1)
        .await
        .remove(0);
    assert_eq!(event.text("command_id"), "of-body");
    assert_eq!(event.correlation_id.as_deref(), Some("corr-7"));

    let none = Command::orders(["QC1"]);
    let first = stage.told(&none, 1).await.remove(0);
    let second = stage.told(&none, 1).await.remove(0);
    let id = first.text("command_id");
    assert!(!id.is_empty());
    assert_eq!(first.correlation_id.as_deref(), Some(id));
    assert_ne!(
        id,
        second.text("command_id"),
        "each is a command of its own"
    );
    assert_ne!(first.message_id, second.message_id);

    // An empty id is none, and an id may be any text of up to 255 bytes.
    let event = stage.told(&none.clone().id(""), 1).await.remove(0);
    assert!(!event.text("command_id").is_empty());
    for id in ["x".repeat(255), "单据 / {\"a\"}\u{1f}".into()] {
        let event = stage.told(&none.clone().id(&id), 1).await.remove(0);
        assert_eq!(event.text("command_id"), id);
        assert_eq!(event.correlation_id.as_deref(), Some(id.as_str()));
    }
    // The one order was cancelled once; all later commands were told what is recorded.
    assert_eq!(stage.lists(), [["QC1"]]);
    stage.settled().await;
}

#[tokio::test]
async fn fields_that_are_not_known_are_ignored_and_optional_ones_may_be_absent() {
    let mut stage = Stage::new().await;
    let _worker = stage.start().await;
    let body = json!({
        "order_no_list": ["QC1"],
        "account": "default",
        "deadline": "2099-11-24T08:00:00+08:00",
        "requested_by": "sap-prod",
        "reason": "customer changed their mind",
        "order_no": 7,
        "x": { "deep": [[[null]]] },
    });
    let events = stage.told(&Command::json(&body), 1).await;
    assert_eq!(told(&events[0]), cancelled("QC1"));
    // As other writers of JSON have it: escapes and white space.
    let spaced = Command::raw(" \n{ \"order_no_list\" :\t[ \"QC\\u0032\" ] }\r\n");
    assert_eq!(told(&stage.told(&spaced, 1).await[0]), cancelled("QC2"));
    stage.settled().await;
}

#[tokio::test]
async fn numbers_are_trimmed_and_counted_once_and_an_invalid_one_stands_alone() {
    let mut stage = Stage::new().await;
    let _worker = stage.start().await;
    let longest = "单".repeat(40);
    let too_long = "x".repeat(41);
    let command = Command::json(&json!({ "order_no_list": [
        "  QC1\t", "QC2", "QC1", "", "   ", too_long, "Q\u{7}C", longest, 7, "\u{3000}QC2\n", "单 据-1/#",
    ] }));
    let events = stage.told(&command.id("cmd-odd"), 8).await;
    let invalid = ("rejected", "invalid_order_no");
    let expected = [
        ("QC1", "cancelled", ""),
        ("QC2", "cancelled", ""),
        ("", invalid.0, invalid.1),
        (too_long.as_str(), invalid.0, invalid.1),
        ("Q\u{7}C", invalid.0, invalid.1),
        (longest.as_str(), "cancelled", ""),
    ];
    let found: Vec<_> = events.iter().map(told).collect();
    assert_eq!(found[..6], expected);
    assert_eq!(&found[6].1, &invalid.0, "a number is no string");
    assert_eq!(found[7], cancelled("单 据-1/#"));
    assert!(
        events.iter().all(|e| e.body["total"] == json!(8)),
        "{events:#?}"
    );
    // Which place of the list, what was there, and what would do.
    says(&events[2], &["order_no_list[3]", "empty", "1 to 40"]);
    says(&events[3], &["order_no_list[5]", "41", "40"]);
    says(&events[4], &["order_no_list[6]", "U+0007"]);
    says(&events[6], &["order_no_list[8]", "7", "string"]);
    let mut sent: Vec<String> = stage.lists().concat();
    sent.sort();
    let mut valid = ["QC1", "QC2", "单 据-1/#", &longest];
    valid.sort_unstable();
    assert_eq!(sent, valid);
    stage.settled().await;
    // A command is not given up because a number in it is invalid.
    stage.vhost.queue_holds(SOON, DEAD, 0, 0).await;
}

#[tokio::test]
async fn different_invalid_numbers_are_different_however_much_they_have_in_common() {
    let mut stage = Stage::new().await;
    let _worker = stage.start().await;
    let start = "x".repeat(100);
    let numbers = [format!("{start}1"), format!("{start}2")];
    let events = stage.told(&Command::orders(&numbers), 2).await;
    for (event, number) in events.iter().zip(&numbers) {
        assert_eq!(event.reason_code(), "invalid_order_no");
        assert!(number.starts_with(event.order_no().trim_end_matches('…')));
    }
    stage.settled().await;
}

#[tokio::test]
async fn ten_thousand_orders_and_a_mebibyte_are_taken_and_not_more() {
    let mut stage = Stage::with(|s| s.set("WDT_API__MAX_ORDERS_PER_CALL", 1000)).await;
    let _worker = stage.start().await;
    let numbers: Vec<String> = (0..10_001).map(|n| format!("QC2026112300{n:05}")).collect();
    let all = stage
        .told(&Command::orders(&numbers[..10_000]).id("big"), 10_000)
        .await;
    for (event, number) in all.iter().zip(&numbers) {
        assert_eq!(told(event), cancelled(number));
        assert_eq!(event.body["total"], json!(10_000));
    }
    assert_eq!(ids(&all).len(), 10_000);
    assert!(stage.gateway.longest_list() <= 1000);
    let calls = stage.gateway.calls(CANCEL).len();
    assert!(calls <= 15, "10,000 orders share calls: {calls}");

    let events = stage
        .told(&Command::orders(&numbers).id("too-big"), 1)
        .await;
    assert_eq!(told(&events[0]), ("", "rejected", "too_many_orders"));
    says(&events[0], &["order_no_list", "10001", "10000"]);

    // A byte more or less in a field that nobody reads.
    let sized = |size: usize| {
        let head = r#"{"order_no_list": ["QC-SIZE"], "padding": ""#;
        let padding = "p".repeat(size - head.len() - 2);
        Command::raw(format!("{head}{padding}\"}}"))
    };
    let events = stage.told(&sized(MIB), 1).await;
    assert_eq!(told(&events[0]), cancelled("QC-SIZE"));
    let events = stage.told(&sized(MIB + 1).id("too-long"), 1).await;
    assert_eq!(told(&events[0]), ("", "rejected", "malformed"));
    says(&events[0], &["1048577", "1048576"]);
    assert_eq!(events[0].text("command_id"), "too-long");
    assert_eq!(stage.orders.calls(CANCEL), calls + 1);
    stage.settled().await;
}

#[tokio::test]
async fn what_cannot_be_read_is_told_once_and_dead_lettered_with_its_origin() {
    let mut stage = Stage::new().await;
    let mut worker = stage.start().await;
    let text = |body: &str| body.as_bytes().to_vec();
    let latin1 = b"{\"order_no_list\": [\"Q\xe9\"]}".to_vec();
    let list = r#"{"order_no_list": "#;
    let kinds: Vec<(Vec<u8>, &str, &[&str])> = vec![
        (text("cancel QC1 please"), "malformed", &["body", "JSON"]),
        (
            text(r#"{"order_no_list": ["QC1"]"#),
            "malformed",
            &["body", "JSON"],
        ),
        (
            text(r#"{"order_no_list": ["QC1"]} x"#),
            "malformed",
            &["body", "JSON"],
        ),
        (text("[\"QC1\"]"), "malformed", &["body", "list", "object"]),
        (text("\"QC1\""), "malformed", &["body", "string", "object"]),
        (text("null"), "malformed", &["body", "null", "object"]),
        (latin1, "malformed", &["body", "UTF-8", "21"]),
        (text(""), "malformed", &["body", "nothing", "object"]),
        (
            text("{}"),
            "malformed",
            &["order_no_list", "missing", "list"],
        ),
        (
            text(&format!("{list}\"QC1\"}}")),
            "malformed",
            &["order_no_list", "string", "list"],
        ),
        (
            text(&format!("{list}null}}")),
            "malformed",
            &["order_no_list", "null", "list"],
        ),
        (
            text(&format!("{list}{{}}}}")),
            "malformed",
            &["order_no_list", "object", "list"],
        ),
        (
            text(&format!("{list}[\"QC1\"], \"account\": 3}}")),
            "malformed",
            &["account", "number 3", "string"],
        ),
        (
            text(&format!("{list}[\"QC1\"], \"deadline\": \"soon\"}}")),
            "malformed",
            &["deadline", "soon", "2026-11-24T08:00:00+08:00"],
        ),
        (
            text(&format!("{list}[\"QC1\"], \"deadline\": 1790000000}}")),
            "malformed",
            &["deadline", "number", "string"],
        ),
        (
            text(&format!("{list}[]}}")),
            "no_orders",
            &["order_no_list", "1 to 10000"],
        ),
    ];
    for (number, (body, code, words)) in kinds.iter().enumerate() {
        let id = format!("unreadable-{number}");
        let command = Command::raw(body.clone())
            .id(&id)
            .correlation_id("corr-1")
            .header("x-tenant", "north");
        let event = stage.told(&command, 1).await.remove(0);
        assert_eq!(
            told(&event),
            ("", "rejected", *code),
            "{:?}",
            String::from_utf8_lossy(body)
        );
        assert_eq!(event.body["total"], json!(1));
        assert_eq!(event.text("command_id"), id);
        assert_eq!(event.correlation_id.as_deref(), Some("corr-1"));
        says(&event, words);
    }
    // Without any id: the event names the one that was made, and the copy is found by it.
    let nameless = stage.told(&Command::raw("no id"), 1).await.remove(0);
    stage.settled().await;
    assert_eq!(stage.gateway.calls(CANCEL).len(), 0);

    let mut dead = stage.amqp.dead().await;
    let copies = dead.collect(kinds.len() + 1, SOON).await;
    for (number, copy) in copies.iter().enumerate() {
        let (body, id) = match kinds.get(number) {
            Some((body, ..)) => (body.as_slice(), format!("unreadable-{number}")),
            None => (&b"no id"[..], nameless.text("command_id").into()),
        };
        assert_eq!(copy.bytes, body);
        assert_eq!(copy.message_id.as_deref(), Some(id.as_str()));
        assert_eq!(copy.delivery_mode, Some(2));
        let header = |name: &str| copy.headers[name].as_str().unwrap();
        assert_eq!(header("x-wdt-origin-queue"), COMMANDS);
        assert_eq!(header("x-wdt-origin-exchange"), "");
        assert_eq!(header("x-wdt-origin-routing-key"), COMMANDS);
        if number < kinds.len() {
            assert_eq!(copy.correlation_id.as_deref(), Some("corr-1"));
            assert_eq!(header("x-tenant"), "north");
        }
    }
    assert!(worker.is_running());
}

#[tokio::test]
async fn an_account_that_is_not_known_and_a_reply_to_that_is_not_allowed_are_rejected() {
    let mut stage = Stage::new().await;
    let _worker = stage.start().await;
    for account in ["nobody", "", "Default", "a.b", "店铺"] {
        let command = Command::orders(["QC1", "QC2"]).field("account", account);
        let events = stage.told(&command.id(&format!("of-{account}")), 2).await;
        for (event, order) in events.iter().zip(["QC1", "QC2"]) {
            assert_eq!(told(event), (order, "rejected", "unknown_account"));
            assert_eq!(event.routing_key, "cancel._.rejected");
            assert_eq!(event.text("account"), account);
            says(event, &["account", account, "default"]);
        }
    }
    let elsewhere = stage.amqp.channel().await;
    let declared = elsewhere
        .queue_declare(
            "orders".into(),
            QueueDeclareOptions::default(),
            FieldTable::default(),
        )
        .await;
    declared.unwrap();
    for queue in [
        "orders",
        COMMANDS,
        DEAD,
        "replies",
        "x.replies.y",
        "amq.gen",
    ] {
        let command = Command::orders(["QC1"]).reply_to(queue).id(queue);
        let events = stage.told(&command, 1).await;
        assert_eq!(
            told(&events[0]),
            ("QC1", "rejected", "reply_to_not_allowed")
        );
        says(&events[0], &["reply_to", queue, "amqp.reply_to_allow"]);
        assert_eq!(events[0].routing_key, "cancel.default.rejected");
    }
    stage.settled().await;
    // Nothing went where it may not, nothing was called, and nothing is parked for people: both
    // kinds can be read, and are told for each order.
    stage.vhost.queue_holds(SOON, "orders", 0, 0).await;
    stage.vhost.queue_holds(SOON, DEAD, 0, 0).await;
    assert_eq!(stage.gateway.calls(CANCEL).len(), 0);
}

// ---- §3 events ----

#[tokio::test]
async fn an_event_has_the_contracts_shape_to_the_letter() {
    let mut stage = Stage::new().await;
    let _worker = stage.start().await;
    let mut replies = stage.amqp.replies().await;
    stage.orders.refuse("QC202409200001", NOT_CANCELLABLE);
    let before = jiff::Timestamp::now();
    let command = Command::orders(["QC202409200002", "QC202409200001"])
        .id("cmd-42")
        .correlation_id("corr-42")
        .reply_to(replies.name())
        .header(
            "traceparent",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        )
        .header("tracestate", "vendor=1,other=2");
    let events = stage.told(&command, 2).await;
    let after = jiff::Timestamp::now();
    for (event, order, outcome, reason) in [
        (&events[0], "QC202409200002", "cancelled", None),
        (
            &events[1],
            "QC202409200001",
            "refused",
            // The gateway's words, word for word.
            Some(json!({ "code": "order_state", "message": NOT_CANCELLABLE })),
        ),
    ] {
        let index = usize::from(reason.is_some());
        let mut expected = json!({
            "event_id": event.message_id,
            "command_id": "cmd-42",
            "account": "default",
            "order_no": order,
            "outcome": outcome,
            "attempts": 1,
            "replayed": false,
            "index": index,
            "total": 2,
            "occurred_at": event.text("occurred_at"),
        });
        if let Some(reason) = reason {
            expected["reason"] = reason;
        }
        assert_eq!(event.body, expected);
        assert_eq!(event.routing_key, format!("cancel.default.{outcome}"));
        assert_eq!(event.correlation_id.as_deref(), Some("corr-42"));
        let at: jiff::Timestamp = event.text("occurred_at").parse().unwrap();
        let about = jiff::SignedDuration::from_millis(1);
        assert!(
            at >= before - about && at <= after + about,
            "{before} {at} {after}"
        );
        // The same trace at a step of its own.
        let trace = trace(event);
        assert_eq!(trace[1], "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_ne!(trace[2], "00f067aa0ba902b7");
        assert_eq!(event.headers["tracestate"], "vendor=1,other=2");
    }
    // The copies are the same messages, sent through the default exchange.
    let mut copies = replies.collect(2, SOON).await;
    copies.sort_by_key(|copy| copy.body["index"].as_u64());
    for (copy, event) in copies.iter().zip(&events) {
        properties(copy);
        assert_eq!(copy.exchange, "");
        assert_eq!(copy.bytes, event.bytes);
        assert_eq!(copy.message_id, event.message_id);
        assert_eq!(copy.correlation_id, event.correlation_id);
        assert_eq!(copy.headers, event.headers);
    }
    stage.settled().await;
    stage.vhost.queue_holds(SOON, replies.name(), 0, 0).await;
}

#[tokio::test]
async fn a_trace_that_cannot_be_read_is_begun_anew() {
    let mut stage = Stage::new().await;
    let _worker = stage.start().await;
    for header in [
        "nonsense",
        "",
        "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
        "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    ] {
        let command = Command::orders(["QC1"]).header("traceparent", header);
        let events = stage
            .told(&command.header("tracestate", "vendor=1"), 1)
            .await;
        assert_ne!(trace(&events[0])[1], "4bf92f3577b34da6a3ce929d0e0e4736");
        // The state belongs to the trace that is not continued.
        assert!(!events[0].headers.contains_key("tracestate"));
    }
    stage.settled().await;
}

#[tokio::test]
async fn copies_go_to_every_kind_of_reply_queue_and_a_requester_that_is_gone_is_no_error() {
    let mut stage = Stage::new().await;
    let mut worker = stage.start().await;

    // A queue with a name of its own.
    let channel = stage.amqp.channel().await;
    let declared = channel
        .queue_declare(
            "sap.replies".into(),
            QueueDeclareOptions::default(),
            FieldTable::default(),
        )
        .await;
    declared.unwrap();
    let mut named = stage.amqp.inbox("sap.replies").await;
    let command = Command::orders(["QC1", ""])
        .reply_to("sap.replies")
        .id("named");
    let events = stage.told(&command, 2).await;
    let mut copies = named.collect(2, SOON).await;
    copies.sort_by_key(|copy| copy.body["index"].as_u64());
    assert_eq!(copies[0].bytes, events[0].bytes);
    assert_eq!(
        copies[1].bytes, events[1].bytes,
        "a rejection is told there, too"
    );

    // Direct reply-to: the broker puts the requester's address in place of the name.
    let copy = direct_copy(&mut stage, "QC2").await;
    assert_eq!(copy.0, copy.1);

    // Requesters that are gone, or that nobody ever was. Some of these addresses end the connection
    // of whoever publishes to them, which must harm neither the results nor other requesters.
    let (gone, gone_direct) = {
        let requester = Amqp::connect(&stage.vhost.url()).await;
        let address = direct_address(&requester).await;
        (requester.replies().await.name().to_string(), address)
    };
    // Of a node that is not in the cluster: its name is 5 bytes into the term, such as reply@12345.
    let mut elsewhere = gone_direct.clone();
    elsewhere.replace_range(38..42, "OTk5");
    for (number, queue) in [
        gone.as_str(),
        "nobody.replies",
        &gone_direct,
        &elsewhere,
        "amq.rabbitmq.reply-to.nobody.here",
        "amq.rabbitmq.reply-to.g2o=.zqkDSDbE",
        "amq.rabbitmq.reply-to.nobody",
        "amq.rabbitmq.reply-to.",
    ]
    .into_iter()
    .enumerate()
    {
        let command = Command::orders(["QC3"])
            .reply_to(queue)
            .id(&format!("gone-{number}"));
        let events = stage.told(&command, 1).await;
        assert_eq!(told(&events[0]), cancelled("QC3"), "{queue}");
        stage.settled().await;
    }
    // Nor is a copy for the dead-letter queue harmed.
    let command = Command::raw("nonsense").reply_to("amq.rabbitmq.reply-to.nobody.here");
    stage.told(&command, 1).await;
    stage.vhost.queue_holds(SOON, DEAD, 1, 0).await;
    // And the next requester is told.
    let copy = direct_copy(&mut stage, "QC4").await;
    assert_eq!(copy.0, copy.1);
    assert!(!worker.log().contains("no session"), "{}", worker.log());
    assert!(worker.is_running());
}

/// Sends a command as a client that uses direct reply-to does; the bodies of its event and its copy.
async fn direct_copy(stage: &mut Stage, order: &str) -> (Vec<u8>, Vec<u8>) {
    let channel = stage.amqp.channel().await;
    let no_ack = BasicConsumeOptions {
        no_ack: true,
        ..BasicConsumeOptions::default()
    };
    let direct = "amq.rabbitmq.reply-to";
    let consumer = channel.basic_consume(direct.into(), "".into(), no_ack, FieldTable::default());
    let mut consumer = consumer.await.unwrap();
    let properties = lapin::BasicProperties::default().with_reply_to(direct.into());
    let body = json!({ "order_no_list": [order] }).to_string();
    let options = BasicPublishOptions::default();
    channel
        .basic_publish(
            "".into(),
            COMMANDS.into(),
            options,
            body.as_bytes(),
            properties,
        )
        .await
        .unwrap();
    let event = stage.events(1).await.remove(0);
    assert_eq!(told(&event), cancelled(order));
    let copy = tokio::time::timeout(SOON, consumer.next()).await;
    (event.bytes, copy.unwrap().unwrap().unwrap().data)
}

/// The address that the broker gives to a client that uses direct reply-to.
async fn direct_address(client: &Amqp) -> String {
    let channel = client.channel().await;
    let no_ack = BasicConsumeOptions {
        no_ack: true,
        ..BasicConsumeOptions::default()
    };
    let direct = "amq.rabbitmq.reply-to";
    let consumer = channel.basic_consume(direct.into(), "".into(), no_ack, FieldTable::default());
    let _consumer = consumer.await.unwrap();
    let options = QueueDeclareOptions {
        exclusive: true,
        ..QueueDeclareOptions::default()
    };
    let queue = channel
        .queue_declare("".into(), options, FieldTable::default())
        .await
        .unwrap();
    let properties = lapin::BasicProperties::default().with_reply_to(direct.into());
    let options = BasicPublishOptions::default();
    channel
        .basic_publish("".into(), queue.name().clone(), options, b"", properties)
        .await
        .unwrap();
    let options = BasicGetOptions { no_ack: true };
    let got = channel
        .basic_get(queue.name().clone(), options)
        .await
        .unwrap();
    got.unwrap()
        .delivery
        .properties
        .reply_to()
        .clone()
        .unwrap()
        .to_string()
}

#[tokio::test]
async fn what_reply_to_may_be_is_a_setting() {
    let mut stage = Stage::with(|s| s.set("WDT_AMQP__REPLY_TO_ALLOW", "sap.*,x")).await;
    let _worker = stage.start().await;
    let queue = stage.amqp.replies().await;
    for (reply_to, outcome) in [
        ("sap.anything", "cancelled"),
        ("x", "cancelled"),
        ("xx", "rejected"),
        (queue.name(), "rejected"),
    ] {
        let command = Command::orders(["QC1"]).reply_to(reply_to);
        assert_eq!(
            stage.told(&command, 1).await[0].outcome(),
            outcome,
            "{reply_to}"
        );
    }
    stage.settled().await;
}

#[tokio::test]
async fn every_outcome_has_its_reason_and_only_what_is_unsettled_is_parked() {
    let mut stage = Stage::with(|s| s.set("WDT_RETRY__MAX_ATTEMPTS", 1)).await;
    let _worker = stage.start().await;
    stage
        .orders
        .set("SHIPPED", 70)
        .remove("NONE")
        .remove("GHOST")
        .refuse("ODD", "仓库正在盘点")
        .refuse("BUSY", "单据正在处理，请稍后重试");
    stage.orders.instead(|call| {
        let refused = call.is_cancel() && call.has("BAD");
        refused.then(|| Answer::status(100, "货品编号不能为空"))
    });
    stage.orders.afterwards(|call| {
        let lost = call.is_cancel() && (call.has("GHOST") || call.has("LOST"));
        lost.then_some(Answer::Close)
    });
    let past = "2020-01-01T00:00:00Z";
    for (order, outcome, code, attempts, parked) in [
        ("PLAIN", "cancelled", "", 1, false),
        ("LOST", "cancelled", "", 1, false),
        ("SHIPPED", "refused", "order_state", 1, false),
        ("NONE", "refused", "order_not_found", 1, false),
        ("ODD", "refused", "order_refused", 1, false),
        ("LATE", "expired", "deadline_passed", 0, false),
        ("BUSY", "failed", "api_unavailable", 1, true),
        ("BAD", "failed", "api_refused_call", 1, true),
        ("GHOST", "unknown", "unconfirmed", 1, true),
    ] {
        let mut command = Command::orders([order])
            .id(order)
            .header("x-tenant", "north");
        if order == "LATE" {
            command = command.field("deadline", past);
        }
        let event = stage.told(&command, 1).await.remove(0);
        assert_eq!(told(&event), (order, outcome, code), "{event:#?}");
        assert_eq!(event.body["attempts"], json!(attempts), "{event:#?}");
        stage.settled().await;
        stage
            .vhost
            .queue_holds(SOON, DEAD, u64::from(parked), 0)
            .await;
        if parked {
            let mut dead = stage.amqp.dead().await;
            let copy = dead.collect(1, SOON).await.remove(0);
            assert_eq!(copy.body["order_no_list"], json!([order]));
            assert_eq!(copy.message_id.as_deref(), Some(order));
            assert_eq!(copy.headers["x-tenant"], "north");
            assert_eq!(copy.headers["x-wdt-origin-queue"], COMMANDS);
        }
        stage.vhost.queue_holds(SOON, DEAD, 0, 0).await;
    }
    // The words of the gateway are passed on.
    let event = stage.told(&Command::orders(["ODD"]), 1).await.remove(0);
    assert_eq!(event.body["reason"]["message"], "仓库正在盘点");
    let event = stage.told(&Command::orders(["NONE"]), 1).await.remove(0);
    assert_eq!(event.body["reason"]["message"], NO_SUCH_ORDER);
    assert_eq!(stage.orders.times_sent("LATE"), 0);
    assert_eq!(stage.orders.times_sent("LOST"), 1);
    assert_eq!(stage.history("GHOST"), [CANCEL, QUERY]);
}

#[tokio::test]
async fn a_copy_is_parked_whatever_its_publisher_had_set() {
    let mut stage = Stage::new().await;
    let worker = stage.start().await;
    // The broker refuses a publisher another user's id, and with it closes the channel; a copy must
    // neither expire nor be routed to where its command was.
    let url = stage.vhost.url_of_another_user().await;
    let user = url["amqp://".len()..].split(':').next().unwrap();
    let publisher = Amqp::connect(&url).await.channel().await;
    let mut headers = FieldTable::default();
    let also = AMQPValue::LongString("elsewhere".into());
    headers.insert("CC".into(), AMQPValue::FieldArray(vec![also].into()));
    headers.insert("x-tenant".into(), AMQPValue::LongString("north".into()));
    let elsewhere = publisher
        .queue_declare(
            "elsewhere".into(),
            QueueDeclareOptions::default(),
            FieldTable::default(),
        )
        .await;
    elsewhere.unwrap();
    let properties = lapin::BasicProperties::default()
        .with_message_id("theirs".into())
        .with_user_id(user.into())
        .with_expiration("3600000".into())
        .with_type("cancel".into())
        .with_priority(3)
        .with_headers(headers);
    let options = BasicPublishOptions::default();
    publisher
        .basic_publish("".into(), COMMANDS.into(), options, b"nonsense", properties)
        .await
        .unwrap();
    let event = stage.events(1).await.remove(0);
    assert_eq!(told(&event), ("", "rejected", "malformed"));
    stage.settled().await;
    stage.vhost.queue_holds(SOON, DEAD, 1, 0).await;
    // The publisher's own second copy, and no third.
    stage.vhost.queue_holds(SOON, "elsewhere", 1, 0).await;
    let got = publisher
        .basic_get(DEAD.into(), BasicGetOptions { no_ack: true })
        .await
        .unwrap();
    let copy = got.unwrap().delivery.properties;
    assert_eq!(copy.expiration(), &None);
    assert_eq!(copy.kind(), &Some("cancel".into()));
    let headers = copy.headers().clone().unwrap();
    let header = |name: &str| headers.inner().get(name).cloned();
    assert_eq!(
        header("x-wdt-origin-user-id"),
        Some(AMQPValue::LongString(user.into()))
    );
    assert_eq!(
        header("x-tenant"),
        Some(AMQPValue::LongString("north".into()))
    );
    assert_eq!(header("CC"), None);
    assert!(!worker.log().contains("no session"), "{}", worker.log());
}

#[tokio::test]
async fn an_event_that_finds_no_queue_is_kept_until_one_is_bound() {
    let mut stage = Stage::new().await;
    let mut worker = stage.start().await;
    stage.amqp.drop_results().await;
    stage.send(&Command::orders(["QC1"]).id("untold")).await;
    // The command stays unacknowledged, and readiness says why.
    let (_, body) = eventually(SOON, "/readyz turns red", async || {
        worker
            .readiness()
            .await
            .filter(|(status, _)| *status == 503)
    })
    .await;
    assert!(body.to_string().contains("bind"), "{body}");
    stage.vhost.queue_holds(SOON, COMMANDS, 0, 1).await;

    let url = stage.vhost.url();
    let env = [("WDT_AMQP__URL", url.as_str())];
    let bound = cli(&["bind", "orders.results"], &env, "").await;
    assert_eq!(bound.code, 0, "{bound:?}");
    let filtered = cli(&["bind", "refusals", "--key", "cancel.*.refused"], &env, "").await;
    assert_eq!(filtered.code, 0, "{filtered:?}");
    // Once more is no error: scripts do that.
    let again = cli(&["bind", "orders.results"], &env, "").await;
    assert_eq!(again.code, 0, "{again:?}");
    assert!(
        bound.out.contains("orders.results") && bound.out.contains(RESULTS),
        "{bound:?}"
    );

    stage.results = stage.amqp.inbox("orders.results").await;
    let event = stage.events(1).await.remove(0);
    assert_eq!(told(&event), cancelled("QC1"));
    stage.vhost.queue_holds(SOON, COMMANDS, 0, 0).await;
    stage.vhost.queue_holds(SOON, "orders.results", 0, 0).await;
    assert_eq!(stage.lists(), [["QC1"]]);
    worker.wait_ready(SOON).await;

    stage.orders.set("QC2", 70);
    stage.told(&Command::orders(["QC2"]), 1).await;
    let mut refusals = stage.amqp.inbox("refusals").await;
    let event = refusals.collect(1, SOON).await.remove(0);
    assert_eq!(told(&event), ("QC2", "refused", "order_state"));
}

// ---- §4 sameness ----

#[derive(Debug, Clone, Copy, PartialEq)]
enum Restart {
    None,
    Terminate,
    Kill,
}

impl Restart {
    async fn of(self, stage: &Stage, mut worker: Worker) -> Worker {
        match self {
            Self::None => return worker,
            Self::Terminate => assert_eq!(worker.terminate(SOON).await, 0),
            Self::Kill => worker.kill9(),
        }
        stage.start().await
    }
}

/// Every row of the table for which the order has ended before.
async fn what_was_told_is_remembered(restart: Restart) {
    let mut stage = Stage::with(|s| s.set("WDT_RETRY__MAX_ATTEMPTS", 1)).await;
    let mut worker = stage.start().await;
    stage.orders.set("SHIPPED", 70).remove("GHOST");
    let bad = Arc::new(Mutex::new(true));
    let is_bad = bad.clone();
    stage.orders.instead(move |call| {
        let refused = call.is_cancel() && call.has("BAD") && *is_bad.lock().unwrap();
        refused.then(|| Answer::status(100, "货品编号不能为空"))
    });
    stage.orders.afterwards(|call| {
        let lost = call.is_cancel() && call.has("GHOST");
        lost.then_some(Answer::Close)
    });
    let settled = Command::orders(["QC1", "SHIPPED", "", "QC2"]).id("settled");
    let late = Command::orders(["LATE"])
        .field("deadline", "2020-01-01T00:00:00Z")
        .id("late");
    let parked = Command::orders(["QC3", "BAD"]).id("parked");
    let ghost = Command::orders(["GHOST"]).id("ghost");
    let first = stage.told(&settled, 4).await;
    let first_late = stage.told(&late, 1).await;
    let first_parked = stage.told(&parked, 2).await;
    let first_ghost = stage.told(&ghost, 1).await;
    assert_eq!(
        first
            .iter()
            .map(|e| (e.outcome(), e.reason_code()))
            .collect::<Vec<_>>(),
        [
            ("cancelled", ""),
            ("refused", "order_state"),
            ("rejected", "invalid_order_no"),
            ("cancelled", ""),
        ]
    );
    assert_eq!(told(&first_parked[0]), cancelled("QC3"));
    assert_eq!(
        told(&first_parked[1]),
        ("BAD", "failed", "api_refused_call")
    );
    assert_eq!(told(&first_ghost[0]), ("GHOST", "unknown", "unconfirmed"));
    stage.settled().await;
    worker = restart.of(&stage, worker).await;
    let calls = stage.gateway.calls(CANCEL).len();
    let sent = stage.orders.times_sent("QC3");

    // The same command, all finished: the recorded events again, and no call. The same orders in
    // another sequence are the same orders.
    let reordered = Command::orders(["QC2", "QC1", " SHIPPED", "", "QC1"]).id("settled");
    for (command, places) in [(&settled, [0, 1, 2, 3]), (&reordered, [3, 0, 1, 2])] {
        let again = stage.told(command, 4).await;
        for (event, place) in again.iter().zip(places) {
            let recorded = &first[place];
            assert!(replayed(event), "{event:#?}");
            let mut body = event.body.clone();
            body["replayed"] = json!(false);
            body["index"] = recorded.body["index"].clone();
            assert_eq!(body, recorded.body);
            assert_eq!(event.message_id, recorded.message_id);
        }
    }
    let again = stage.told(&late, 1).await;
    assert!(replayed(&again[0]));
    assert_eq!(ids(&again), ids(&first_late));

    // The same id for other orders.
    for numbers in [
        &["QC1"][..],
        &["QC1", "SHIPPED", "", "QC2", "QC9"],
        &["QC9"],
    ] {
        let events = stage
            .told(&Command::orders(numbers).id("settled"), numbers.len())
            .await;
        for event in events {
            assert_eq!(
                (event.outcome(), event.reason_code()),
                ("rejected", "command_id_reused")
            );
            says(&event, &["command_id"]);
        }
    }
    // Which is recorded for nobody: the first command is still that command.
    assert!(stage.told(&settled, 4).await.iter().all(replayed));

    // Recorded as cancelled, asked for by another command.
    let other = stage
        .told(&Command::orders(["QC2", "QC1"]).id("other"), 2)
        .await;
    for event in &other {
        assert_eq!((event.outcome(), replayed(event)), ("cancelled", true));
    }
    assert!(
        ids(&other).is_disjoint(&ids(&first)),
        "the command is part of an event's id"
    );
    assert_eq!(stage.gateway.calls(CANCEL).len(), calls, "no call so far");

    // Refused and expired in a new command: tried again.
    stage.orders.set("SHIPPED", 20);
    let events = stage
        .told(&Command::orders(["SHIPPED", "LATE"]).id("new"), 2)
        .await;
    assert_eq!(told(&events[0]), cancelled("SHIPPED"));
    assert_eq!(told(&events[1]), cancelled("LATE"));
    assert!(!events.iter().any(replayed));

    // Parked, sent again: just those orders. As an operator does it, from the copy. (Until the last
    // delivery is acknowledged, one more would join it and be told the same.)
    stage.settled().await;
    let mut dead = stage.amqp.dead().await;
    let copies = dead.collect(2, SOON).await;
    let copy = copies
        .iter()
        .find(|c| c.message_id.as_deref() == Some("parked"))
        .unwrap();
    let again = stage
        .told(&Command::raw(copy.bytes.clone()).id("parked"), 2)
        .await;
    assert_eq!(told(&again[1]), ("BAD", "failed", "api_refused_call"));
    assert!(replayed(&again[0]) && !replayed(&again[1]));
    stage.settled().await;
    *bad.lock().unwrap() = false;
    let mended = stage.told(&parked, 2).await;
    assert_eq!(told(&mended[0]), cancelled("QC3"));
    assert_eq!(told(&mended[1]), cancelled("BAD"));
    assert!(replayed(&mended[0]) && !replayed(&mended[1]));
    assert_eq!(ids(&mended[..1]), ids(&first_parked[..1]));
    assert_eq!(
        ids(&again[1..]),
        ids(&first_parked[1..]),
        "the same outcome, the same id"
    );
    assert_ne!(
        ids(&mended[1..]),
        ids(&first_parked[1..]),
        "news have an id of their own"
    );
    assert_eq!(
        stage.orders.times_sent("QC3"),
        sent,
        "it was cancelled before"
    );

    // Unknown: looked up first. Still nothing to be seen: still unknown, and not sent again.
    stage.settled().await;
    let still = stage.told(&ghost, 1).await;
    assert_eq!(told(&still[0]), ("GHOST", "unknown", "unconfirmed"));
    assert_eq!(ids(&still), ids(&first_ghost));
    stage.settled().await;
    stage.orders.set("GHOST", 80);
    let found = stage.told(&ghost, 1).await;
    assert_eq!(told(&found[0]), cancelled("GHOST"));
    assert_ne!(ids(&found), ids(&first_ghost));
    assert_eq!(stage.history("GHOST"), [CANCEL, QUERY, QUERY, QUERY]);
    stage.settled().await;
    assert!(worker.is_running());
}

#[tokio::test]
async fn what_was_told_is_remembered_by_the_same_worker() {
    what_was_told_is_remembered(Restart::None).await;
}

#[tokio::test]
async fn what_was_told_is_remembered_after_a_stop() {
    what_was_told_is_remembered(Restart::Terminate).await;
}

#[tokio::test]
async fn what_was_told_is_remembered_after_a_crash() {
    what_was_told_is_remembered(Restart::Kill).await;
}

#[tokio::test]
async fn an_order_in_flight_is_joined_and_called_once() {
    let mut stage = Stage::new().await;
    let _worker = stage.start().await;
    stage.door.shut();
    let first = Command::orders(["QC1", "QC2"]).id("first");
    stage.send(&first).await;
    stage.cancels(1).await;
    // Another command for one of them, the same command again, and its id for other orders, all
    // while the call is in the air.
    stage
        .send(&Command::orders(["QC2", "QC3"]).id("second"))
        .await;
    stage.send(&first).await;
    stage.send(&Command::orders(["QC4"]).id("first")).await;
    stage.send(&Command::orders(["QC1"])).await;
    let event = stage.events(1).await.remove(0);
    assert_eq!(told(&event), ("QC4", "rejected", "command_id_reused"));
    stage.vhost.queue_holds(SOON, COMMANDS, 0, 4).await;
    stage.door.open();

    let events = stage.events(7).await;
    assert!(
        events.iter().all(|e| e.outcome() == "cancelled"),
        "{events:#?}"
    );
    let of = |id: &str, order: &str| -> Vec<&Message> {
        let its = |e: &&Message| e.text("command_id") == id && e.order_no() == order;
        events.iter().filter(its).collect()
    };
    for (id, order, count) in [
        ("first", "QC1", 2),
        ("first", "QC2", 2),
        ("second", "QC2", 1),
        ("second", "QC3", 1),
    ] {
        let found = of(id, order);
        assert_eq!(found.len(), count, "{id} {order}");
        let distinct: BTreeSet<_> = found.iter().map(|e| &e.message_id).collect();
        assert_eq!(
            distinct.len(),
            1,
            "{id} {order}: the same command, the same id"
        );
    }
    let mut sent = stage.lists().concat();
    sent.sort();
    assert_eq!(sent, ["QC1", "QC2", "QC3"]);
    stage.settled().await;
}

#[tokio::test]
async fn accounts_are_worlds_of_their_own() {
    let mut stage = Stage::with(|s| s.account("b2b", &Account::named("b2b"))).await;
    let _worker = stage.start().await;
    stage.orders.set("SHIPPED", 70);
    let command = Command::orders(["SHIPPED"]).id("one-id");
    let first = stage.told(&command, 1).await;
    let second = stage.told(&command.field("account", "b2b"), 1).await;
    // Neither a replay nor a reused id: another seller's command that happens to look alike.
    for event in [&first[0], &second[0]] {
        assert_eq!(told(event), ("SHIPPED", "refused", "order_state"));
        assert!(!replayed(event));
    }
    assert_eq!(second[0].routing_key, "cancel.b2b.refused");
    assert_ne!(ids(&first), ids(&second));
    let sids: Vec<String> = stage
        .gateway
        .calls(CANCEL)
        .iter()
        .map(|call| call.param("sid").into())
        .collect();
    assert_eq!(sids, ["sid-default", "sid-b2b"]);
    stage.settled().await;
}

#[tokio::test]
async fn a_crash_between_sending_and_recording_is_looked_up_and_never_sent_twice() {
    let mut stage = Stage::new().await;
    let mut worker = stage.start().await;
    // Executed, and the worker does not live to hear of it.
    stage.door.shut();
    stage.send(&Command::orders(["DONE"]).id("done")).await;
    stage.cancels(1).await;
    worker.kill9();
    stage.door.open();
    eventually(SOON, "the gateway has done it", async || {
        (stage.orders.status("DONE") == Some(80)).then_some(())
    })
    .await;
    worker = stage.start().await;
    let event = stage.events(1).await.remove(0);
    assert_eq!(told(&event), cancelled("DONE"));
    assert_eq!(stage.history("DONE"), [CANCEL, QUERY]);

    // Not executed: looked up, and only then sent again.
    stage
        .orders
        .instead(|call| call.is_cancel().then_some(Answer::Hang));
    stage
        .send(&Command::orders(["OPEN", "SHIPPED"]).id("open"))
        .await;
    stage.cancels(2).await;
    worker.kill9();
    stage.orders.instead(|_| None);
    stage.orders.set("SHIPPED", 70);
    let _worker = stage.start().await;
    let mut events = stage.events(2).await;
    events.sort_by_key(|event| event.body["index"].as_u64());
    assert_eq!(told(&events[0]), cancelled("OPEN"));
    assert_eq!(told(&events[1]), ("SHIPPED", "refused", "order_state"));
    assert_eq!(stage.history("OPEN"), [CANCEL, QUERY, CANCEL]);
    assert_eq!(stage.orders.times_executed("OPEN"), 1);
    stage.settled().await;
}

#[tokio::test]
async fn a_refusal_that_our_own_lost_try_may_have_caused_is_looked_up() {
    let mut stage = Stage::new().await;
    let _worker = stage.start().await;
    // The first try is executed late: the look-up still shows the old state, so the order is sent
    // again, and is refused because the first try went through.
    let mut tries = 0;
    let orders = stage.orders.clone();
    let late = Arc::new(Mutex::new(false));
    let seen = late.clone();
    orders.instead(move |call| {
        if call.is_query() && !*seen.lock().unwrap() {
            *seen.lock().unwrap() = true;
            return Some(Answer::Json(json!({
                "status": 0,
                "data": { "order": [{ "other_out_no": "QC1", "status": 20 }] },
            })));
        }
        None
    });
    orders.afterwards(move |call| {
        tries += usize::from(call.is_cancel());
        (call.is_cancel() && tries == 1).then_some(Answer::Close)
    });
    let event = stage.told(&Command::orders(["QC1"]), 1).await.remove(0);
    assert_eq!(told(&event), cancelled("QC1"));
    assert_eq!(stage.history("QC1"), [CANCEL, QUERY, CANCEL, QUERY]);
    assert_eq!(event.body["attempts"], json!(2));
    stage.settled().await;
}

// ---- §1 settings ----

/// A short-lived program's end.
#[derive(Debug)]
struct Ended {
    code: i32,
    out: String,
    err: String,
}

/// Runs the binary with this environment and nothing else.
async fn cli(args: &[&str], env: &[(&str, &str)], input: &str) -> Ended {
    let mut command = std::process::Command::new(BINARY);
    command
        .args(args)
        .env_clear()
        .env("PATH", PATH)
        .envs(env.iter().copied())
        .current_dir(fresh_dir("cli"));
    let input = input.to_string();
    let run = move || process::run(&mut command, &input, LATER);
    let Output {
        status,
        stdout,
        stderr,
    } = tokio::task::spawn_blocking(run).await.unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ended {
        code: status.code().unwrap_or_else(|| panic!("{args:?} {status}")),
        out: text(stdout),
        err: text(stderr),
    }
}

/// A complete set of settings; nothing listens anywhere.
const GOOD: [(&str, &str); 5] = [
    ("WDT_API__URL", "http://127.0.0.1:9/openapi"),
    ("WDT_ACCOUNTS__DEFAULT__SID", "sid"),
    ("WDT_ACCOUNTS__DEFAULT__KEY", "the-key-4711"),
    ("WDT_ACCOUNTS__DEFAULT__SECRET", "hunter2:pepper3"),
    ("WDT_AMQP__URL", "amqp://worker:passw0rd@127.0.0.1:9/%2f"),
];
const SECRETS: [&str; 4] = ["the-key-4711", "hunter2", "pepper3", "passw0rd"];

fn good_with<'a>(more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let given = |name: &str| more.iter().any(|(other, _)| *other == name);
    let mut env: Vec<_> = GOOD.into_iter().filter(|(name, _)| !given(name)).collect();
    env.extend(more);
    env
}

#[tokio::test]
async fn a_wrong_setting_ends_with_64_and_a_line_that_names_it() {
    for (variable, value, setting) in [
        ("WDT_AMQP__URL", "http://127.0.0.1", "amqp.url"),
        ("WDT_AMQP__URL", "", "amqp.url"),
        ("WDT_AMQP__QUEUE", "", "amqp.queue"),
        (
            "WDT_AMQP__DEAD_QUEUE",
            "wdt.cancel.commands",
            "amqp.dead_queue",
        ),
        ("WDT_AMQP__DECLARE", "maybe", "amqp.declare"),
        ("WDT_API__URL", "gateway", "api.url"),
        ("WDT_API__TIMEOUT", "soon", "api.timeout"),
        (
            "WDT_API__MAX_ORDERS_PER_CALL",
            "0",
            "api.max_orders_per_call",
        ),
        ("WDT_API__CALLS_PER_MINUTE", "-1", "api.calls_per_minute"),
        ("WDT_API__CONCURRENCY", "two", "api.concurrency"),
        ("WDT_API__VERIFY", "sometimes", "api.verify"),
        ("WDT_ACCOUNTS__DEFAULT__SID", "", "accounts.default.sid"),
        (
            "WDT_ACCOUNTS__DEFAULT__SECRET",
            "hunter2",
            "accounts.default.secret",
        ),
        (
            "WDT_ACCOUNTS__DEFAULT__CONCURRENCY",
            "0",
            "accounts.default.concurrency",
        ),
        ("WDT_LEDGER__URL", "", "ledger.url"),
        ("WDT_LEDGER__RETENTION", "a while", "ledger.retention"),
        ("WDT_RETRY__MAX_ATTEMPTS", "0", "retry.max_attempts"),
        ("WDT_RETRY__MAX_AGE", "-5m", "retry.max_age"),
        ("WDT_ADMIN__LISTEN", "nowhere", "admin.listen"),
        ("WDT_LOG__FORMAT", "xml", "log.format"),
        // Not known, with the nearest that is.
        ("WDT_AMQP__QEUE", "x", "WDT_AMQP__QUEUE"),
        ("WDT_AMQP_URL", "x", "WDT_AMQP__URL"),
        (
            "WDT_ACCOUNTS__DEFAULT__SECRT",
            "x",
            "WDT_ACCOUNTS__DEFAULT__SECRET",
        ),
        ("WDT_RETRY__MAX_ATTEMPT", "3", "WDT_RETRY__MAX_ATTEMPTS"),
    ] {
        let env = good_with(&[(variable, value)]);
        for args in [&["run"][..], &["config"]] {
            let ended = cli(args, &env, "").await;
            assert_eq!(ended.code, 64, "{args:?} {variable}={value:?} {ended:?}");
            let line = ended.err.lines().find(|line| line.contains(setting));
            let line = line.unwrap_or_else(|| panic!("{setting} in {ended:?}"));
            if setting.starts_with("WDT_") {
                assert!(line.contains(variable), "{line}");
            }
            no_secret(&ended);
        }
    }
    // What is required.
    let nothing = cli(&["run"], &[], "").await;
    assert_eq!(nothing.code, 64, "{nothing:?}");
    assert!(
        nothing.err.contains("api.url") && nothing.err.contains("accounts"),
        "{nothing:?}"
    );
    let env: Vec<_> = GOOD
        .into_iter()
        .filter(|(name, _)| !name.ends_with("SECRET"))
        .collect();
    let ended = cli(&["run"], &env, "").await;
    assert_eq!(ended.code, 64, "{ended:?}");
    assert!(ended.err.contains("accounts.default.secret"), "{ended:?}");
}

fn no_secret(ended: &Ended) {
    for secret in SECRETS {
        assert!(
            !ended.out.contains(secret) && !ended.err.contains(secret),
            "{ended:?}"
        );
    }
}

#[tokio::test]
async fn settings_come_from_defaults_a_file_the_environment_and_secrets_files() {
    // The contract's table.
    let ended = cli(&["config", "--json"], &GOOD, "").await;
    assert_eq!(ended.code, 0, "{ended:?}");
    no_secret(&ended);
    let value = |ended: &Ended, name: &str| -> Value {
        let rows: Vec<Value> = serde_json::from_str(&ended.out).unwrap();
        let row = rows.iter().find(|row| row["setting"] == name);
        row.unwrap_or_else(|| panic!("{name} in {ended:?}"))["value"].clone()
    };
    for (name, default) in [
        ("amqp.queue", "wdt.cancel.commands"),
        ("amqp.exchange", "wdt.cancel.results"),
        ("amqp.dead_queue", "wdt.cancel.commands.dead"),
        ("amqp.declare", "true"),
        ("api.timeout", "30s"),
        ("api.max_orders_per_call", "20"),
        ("api.calls_per_minute", "60"),
        ("api.concurrency", "2"),
        ("api.verify", "in_doubt"),
        ("ledger.url", "./wdt-cancel-worker.ledger"),
        ("ledger.retention", "30d"),
        ("retry.max_attempts", "8"),
        ("retry.max_age", "24h"),
        ("admin.listen", "127.0.0.1:9464"),
        ("accounts.default.calls_per_minute", "60"),
        ("accounts.default.url", "http://127.0.0.1:9/openapi"),
    ] {
        assert_eq!(value(&ended, name), json!(default), "{name}");
    }
    let allowed = value(&ended, "amqp.reply_to_allow").to_string();
    for pattern in ["amq.rabbitmq.reply-to*", "amq.gen-*", "*.replies"] {
        assert!(allowed.contains(pattern), "{allowed}");
    }
    let table = cli(&["config"], &GOOD, "").await;
    assert_eq!(table.code, 0, "{table:?}");
    no_secret(&table);
    assert!(
        table.out.contains("WDT_API__URL"),
        "it says where a value comes from: {table:?}"
    );

    // A file, by argument and by variable; the environment goes before it.
    let dir = fresh_dir("settings");
    let path = |name: &str| dir.join(name).display().to_string();
    let secret_file = path("secret");
    std::fs::write(&secret_file, "hunter2:pepper3\n").unwrap();
    let file = path("wdt.toml");
    let settings = format!(
        r#"
        [amqp]
        queue = "from.file"
        exchange = "from.file"
        reply_to_allow = ["a*", "b"]
        [api]
        url = "http://127.0.0.1:9/openapi"
        timeout = "7s"
        [accounts.shop]
        sid = "sid"
        key = "the-key-4711"
        secret_file = {secret_file:?}
        concurrency = 1
        "#
    );
    std::fs::write(&file, settings).unwrap();
    let by_argument = cli(&["config", "--json", "--config", &file], &[], "").await;
    let env = [
        ("WDT_CONFIG", file.as_str()),
        ("WDT_AMQP__EXCHANGE", "from.env"),
    ];
    let by_variable = cli(&["config", "--json"], &env, "").await;
    for (ended, exchange) in [(&by_argument, "from.file"), (&by_variable, "from.env")] {
        assert_eq!(ended.code, 0, "{ended:?}");
        assert_eq!(value(ended, "amqp.queue"), "from.file");
        assert_eq!(value(ended, "amqp.exchange"), exchange);
        assert_eq!(value(ended, "api.timeout"), "7s");
        assert_eq!(value(ended, "accounts.shop.concurrency"), "1");
        no_secret(ended);
    }
    // Unknown keys, in the file, and files that are not there.
    std::fs::write(path("bad.toml"), "[amqp]\nqeue = \"x\"\n").unwrap();
    let ended = cli(&["run", "--config", &path("bad.toml")], &GOOD, "").await;
    assert_eq!(ended.code, 64, "{ended:?}");
    let line = ended
        .err
        .lines()
        .find(|line| line.contains("amqp.qeue"))
        .unwrap();
    assert!(line.contains("amqp.queue"), "{line}");
    let ended = cli(&["run", "--config", &path("none.toml")], &GOOD, "").await;
    assert_eq!(ended.code, 64, "{ended:?}");
    assert!(ended.err.contains("none.toml"), "{ended:?}");
    let env = good_with(&[("WDT_ACCOUNTS__DEFAULT__KEY_FILE", "/nowhere/key")]);
    let env: Vec<_> = env
        .into_iter()
        .filter(|(name, _)| !name.ends_with("__KEY"))
        .collect();
    let ended = cli(&["run"], &env, "").await;
    assert_eq!(ended.code, 64, "{ended:?}");
    assert!(ended.err.contains("/nowhere/key"), "{ended:?}");
}

#[tokio::test]
async fn a_worker_runs_on_secrets_from_files() {
    let mut stage = Stage::new().await;
    let dir = fresh_dir("secrets");
    let file = |name: &str, text: &str| {
        let path = dir.join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let toml = format!(
        "[amqp]\nurl_file = {:?}\n[api]\nurl = {:?}\n[ledger]\nurl = {:?}\n\
         [accounts.default]\nsid = \"sid-default\"\nkey_file = {:?}\nsecret_file = {:?}\n\
         [admin]\nlisten = \"127.0.0.1:{}\"\n",
        file("amqp", &format!("{}\n", stage.vhost.url())),
        stage.gateway.url(),
        dir.join("ledger").display().to_string(),
        file("key", "key-default\n"),
        file("secret", "secret-default:salt-default"),
        free_port(),
    );
    let settings = file("wdt.toml", &toml);
    let log = dir.join("log");
    let env = [("PATH".to_string(), PATH.to_string())];
    let args = ["run", "--config", &settings];
    let mut worker = process::Process::start("a worker", BINARY, &args, &env, &log);
    eventually(SOON, "its queue is there", async || {
        let queue = stage.vhost.queue(COMMANDS).await?;
        (queue.consumers == 1).then_some(())
    })
    .await;
    let events = stage.told(&Command::orders(["QC1"]), 1).await;
    assert_eq!(told(&events[0]), cancelled("QC1"));
    stage.settled().await;
    worker.signal(Signal::INT);
    assert_eq!(worker.end_within(SOON).await.code(), Some(0));
    // It is a log, not a terminal: JSON, a line an entry, and no secret in any.
    for line in worker.log().lines() {
        let entry: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        assert!(entry.is_object(), "{line}");
    }
    for secret in [
        "key-default",
        "secret-default",
        "salt-default",
        "guest:guest",
    ] {
        assert!(!worker.log().contains(secret), "{}", worker.log());
    }
}

#[tokio::test]
async fn the_topology_is_declared_as_the_contract_has_it_or_only_checked() {
    let stage = Stage::with(|s| s.set("WDT_AMQP__DECLARE", false)).await;
    // The exchange is there, the queues are not.
    let mut worker = stage.setup.start();
    assert_eq!(worker.exit_code(SOON).await, 1);
    assert!(
        worker.log().contains("wdt.cancel.commands"),
        "{}",
        worker.log()
    );
    assert!(
        stage.vhost.queue(COMMANDS).await.is_none(),
        "it only checks"
    );

    let url = stage.vhost.url();
    let mut declares = Setup::new(&url, &stage.gateway.url()).start();
    declares.wait_ready(SOON).await;
    for queue in [COMMANDS, DEAD] {
        let declared = stage.vhost.declared_queue(queue).await.unwrap();
        assert!(
            declared.durable && declared.kind == "quorum",
            "{declared:?}"
        );
    }
    let channel = stage.amqp.channel().await;
    let fanout = ExchangeDeclareOptions {
        durable: true,
        ..ExchangeDeclareOptions::default()
    };
    let refused = channel
        .exchange_declare(
            RESULTS.into(),
            ExchangeKind::Fanout,
            fanout,
            FieldTable::default(),
        )
        .await;
    assert!(refused.unwrap_err().to_string().contains("topic"));
    let consumers = stage.vhost.consumers().await;
    let ours: Vec<_> = consumers.iter().filter(|c| c.queue == COMMANDS).collect();
    assert_eq!(ours.len(), 1, "{consumers:?}");
    assert!(ours[0].manual_ack && ours[0].prefetch > 0, "{consumers:?}");
    assert_eq!(declares.terminate(SOON).await, 0);

    // Now everything is there.
    let mut worker = stage.start().await;
    assert_eq!(worker.terminate(SOON).await, 0);
}

#[tokio::test]
async fn names_of_queues_and_exchange_are_settings() {
    let mut stage = Stage::with(|s| {
        s.set("WDT_AMQP__QUEUE", "my.commands")
            .set("WDT_AMQP__DEAD_QUEUE", "my.dead")
            .set("WDT_AMQP__EXCHANGE", "my.results")
    })
    .await;
    let _worker = stage.start().await;
    let env = [
        ("WDT_AMQP__URL", stage.vhost.url()),
        ("WDT_AMQP__EXCHANGE", "my.results".into()),
    ];
    let env = env.each_ref().map(|(name, value)| (*name, value.as_str()));
    assert_eq!(cli(&["bind", "my.inbox"], &env, "").await.code, 0);
    let mut inbox = stage.amqp.inbox("my.inbox").await;
    stage
        .amqp
        .send_to("my.commands", &Command::raw("nonsense"))
        .await;
    stage
        .amqp
        .send_to("my.commands", &Command::orders(["QC1"]))
        .await;
    let events = inbox.collect(2, SOON).await;
    assert_eq!(
        (events[0].reason_code(), events[1].outcome()),
        ("malformed", "cancelled")
    );
    assert!(events.iter().all(|event| event.exchange == "my.results"));
    stage.vhost.queue_holds(SOON, "my.commands", 0, 0).await;
    stage.vhost.queue_holds(SOON, "my.dead", 1, 0).await;
    stage.results.stays_empty(Duration::from_millis(50)).await;
}

#[tokio::test]
async fn when_an_order_is_looked_up_is_a_setting() {
    for (verify, shipped, lost) in [
        ("never", &[CANCEL][..], ("unknown", &[CANCEL][..])),
        ("always", &[CANCEL, QUERY], ("cancelled", &[CANCEL, QUERY])),
    ] {
        let mut stage = Stage::with(|s| s.set("WDT_API__VERIFY", verify)).await;
        let _worker = stage.start().await;
        stage.orders.set("SHIPPED", 70);
        stage.orders.afterwards(|call| {
            let lost = call.is_cancel() && call.has("LOST");
            lost.then_some(Answer::Close)
        });
        let event = stage.told(&Command::orders(["SHIPPED"]), 1).await.remove(0);
        assert_eq!(told(&event), ("SHIPPED", "refused", "order_state"));
        assert_eq!(stage.history("SHIPPED"), shipped, "{verify}");
        let event = stage.told(&Command::orders(["LOST"]), 1).await.remove(0);
        assert_eq!(event.outcome(), lost.0, "{verify}");
        assert_eq!(stage.history("LOST"), lost.1, "{verify}");
        if verify == "always" {
            // The state that caused a refusal is told with it.
            let event = stage.told(&Command::orders(["SHIPPED"]), 1).await.remove(0);
            says(&event, &[NOT_CANCELLABLE, "70"]);
        }
    }
}

#[tokio::test]
async fn an_age_and_a_deadline_end_what_cannot_be_done_in_time() {
    let mut stage = Stage::with(|s| s.set("WDT_RETRY__MAX_AGE", "3s")).await;
    let _worker = stage.start().await;
    // Busy for ever: the order waits by itself, and others pass.
    stage.orders.refuse("BUSY", "单据正在处理，请稍后重试");
    stage
        .send(&Command::orders(["BUSY", "QC1"]).id("busy"))
        .await;
    let event = stage.events(1).await.remove(0);
    assert_eq!(told(&event), cancelled("QC1"));
    let event = stage.events(1).await.remove(0);
    assert_eq!(told(&event), ("BUSY", "failed", "api_unavailable"));
    // A deadline that passes between two tries.
    let deadline = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(1);
    stage.orders.instead(|call| {
        (call.is_cancel() && call.has("WAITS"))
            .then(|| Answer::orders(&[], &[("WAITS", "单据正在处理，稍后再试")]))
    });
    let command = Command::orders(["WAITS"]).field("deadline", deadline.to_string());
    let event = stage.told(&command, 1).await.remove(0);
    assert_eq!(told(&event), ("WAITS", "expired", "deadline_passed"));
    stage.settled().await;
}

#[tokio::test]
async fn an_answer_that_takes_longer_than_the_timeout_is_a_lost_one() {
    let mut stage = Stage::with(|s| s.set("WDT_API__TIMEOUT", "500ms")).await;
    let _worker = stage.start().await;
    let mut hung = false;
    stage.orders.instead(move |call| {
        let hangs = call.is_cancel() && !std::mem::replace(&mut hung, true);
        hangs.then_some(Answer::Hang)
    });
    let event = stage.told(&Command::orders(["QC1"]), 1).await.remove(0);
    assert_eq!(told(&event), cancelled("QC1"));
    assert_eq!(stage.history("QC1"), [CANCEL, QUERY, CANCEL]);
    stage.settled().await;
}

// ---- §6 exit codes ----

#[tokio::test]
async fn help_and_version_are_told_and_wrong_arguments_end_with_64() {
    for args in [
        &["--help"][..],
        &["help"],
        &["run", "--help"],
        &["send", "--help"],
        &["bind", "--help"],
        &["demo", "--help"],
        &["config", "--help"],
        &["sandbox", "--help"],
    ] {
        let ended = cli(args, &[], "").await;
        assert_eq!(ended.code, 0, "{args:?} {ended:?}");
        assert!(
            ended.out.contains("Usage: wdt-cancel-worker"),
            "{args:?} {ended:?}"
        );
    }
    let help = cli(&["--help"], &[], "").await.out;
    for command in ["run", "send", "bind", "demo", "config", "sandbox"] {
        assert!(help.contains(&format!("\n  {command} ")), "{help}");
    }
    let version = cli(&["--version"], &[], "").await;
    assert_eq!(version.code, 0);
    let (name, rest) = version.out.trim().split_once(' ').unwrap();
    assert_eq!(name, "wdt-cancel-worker");
    assert!(rest.starts_with(env!("CARGO_PKG_VERSION")), "{version:?}");
    let commit = rest.split_once('(').unwrap().1.trim_end_matches(')');
    assert!(commit.len() >= 7, "{version:?}");

    for args in [
        &[][..],
        &["walk"],
        &["run", "--fast"],
        &["run", "now"],
        &["run", "--drain", "soon"],
        &["send"],
        &["send", "QC1", "--deadline", "tomorrow"],
        &["send", "--file"],
        &["bind"],
        &["config", "--yaml"],
    ] {
        let ended = cli(args, &GOOD, "").await;
        assert_eq!(ended.code, 64, "{args:?} {ended:?}");
        assert!(!ended.err.is_empty(), "{args:?}");
    }
}

#[tokio::test]
async fn a_worker_that_cannot_start_ends_with_1_and_a_clear_line() {
    let stage = Stage::new().await;
    let mut first = stage.start().await;
    // The ledger is another worker's.
    let mut second = stage.setup.start();
    assert_eq!(second.exit_code(SOON).await, 1);
    let log = second.log();
    let ledger = stage.setup.dir().join("ledger").display().to_string();
    assert!(log.lines().any(|line| line.contains(&ledger)), "{log}");
    assert!(log.lines().any(|line| line.contains("in use")), "{log}");
    assert!(first.is_running());

    // The admin's port is taken.
    let (url, gateway) = (stage.vhost.url(), stage.gateway.url());
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = taken.local_addr().unwrap().to_string();
    let mut third = Setup::new(&url, &gateway)
        .set("WDT_ADMIN__LISTEN", &listen)
        .start();
    assert_eq!(third.exit_code(SOON).await, 1);
    assert!(third.log().contains("admin.listen") && third.log().contains(&listen));

    // The broker says no.
    let mut fourth = Setup::new(&url.replace("guest:guest", "guest:wrong"), &gateway).start();
    assert_eq!(fourth.exit_code(SOON).await, 1);
    assert!(!fourth.log().contains("guest:wrong"), "{}", fourth.log());
    // The ledger is a place that cannot be.
    let mut fifth = Setup::new(&url, &gateway)
        .set("WDT_LEDGER__URL", "/nowhere/at/all")
        .start();
    assert_eq!(fifth.exit_code(SOON).await, 1);
    assert!(fifth.log().contains("/nowhere/at/all"), "{}", fifth.log());
    assert_eq!(first.terminate(SOON).await, 0);
}

#[tokio::test]
async fn a_stop_finishes_what_is_in_flight_and_returns_the_rest() {
    let mut stage = Stage::with(|s| {
        s.set("WDT_API__CONCURRENCY", 1)
            .set("WDT_API__MAX_ORDERS_PER_CALL", 1)
    })
    .await;
    let mut worker = stage.start().await;
    stage.door.shut();
    for number in 1..=3 {
        stage
            .send(&Command::orders([format!("QC{number}")]).id(&format!("cmd-{number}")))
            .await;
    }
    stage.cancels(1).await;
    stage.vhost.queue_holds(SOON, COMMANDS, 0, 3).await;
    worker.signal(Signal::TERM);
    // Those that were not sent go back at once, long before the call has ended.
    stage.vhost.queue_holds(SOON, COMMANDS, 2, 1).await;
    eventually(
        SOON,
        "/readyz says that no more commands are taken",
        async || {
            let (status, _) = worker.get("/readyz").await?;
            (status == 503).then_some(())
        },
    )
    .await;
    stage.door.open();
    assert_eq!(worker.exit_code(SOON).await, 0);
    let event = stage.events(1).await.remove(0);
    assert_eq!(told(&event), cancelled("QC1"));
    stage.vhost.queue_holds(SOON, COMMANDS, 2, 0).await;
    assert_eq!(stage.lists(), [["QC1"]]);

    let _worker = stage.start().await;
    let mut orders: Vec<String> = stage
        .events(2)
        .await
        .iter()
        .map(|e| e.order_no().into())
        .collect();
    orders.sort();
    assert_eq!(orders, ["QC2", "QC3"]);
    assert_eq!(stage.lists().len(), 3);
    stage.settled().await;
}

#[tokio::test]
async fn a_drain_that_takes_too_long_ends_with_2_and_a_second_signal_ends_at_once() {
    let mut stage = Stage::new().await;
    stage
        .orders
        .instead(|call| call.is_cancel().then_some(Answer::Hang));
    let mut worker = stage.setup.start_with(&["run", "--drain", "1s"]);
    worker.wait_ready(SOON).await;
    stage.send(&Command::orders(["QC1"]).id("hangs")).await;
    stage.cancels(1).await;
    let began = Instant::now();
    assert_eq!(worker.terminate(SOON).await, 2);
    assert!(
        began.elapsed() >= Duration::from_secs(1),
        "{:?}",
        began.elapsed()
    );
    // It says what was left.
    let log = worker.log();
    let last = log.lines().last().unwrap();
    assert!(
        last.contains("\"commands\":1") && last.contains("\"calls\":1"),
        "{last}"
    );
    stage.vhost.queue_holds(SOON, COMMANDS, 1, 0).await;

    // The next one waits for the look-up's answer; two signals end it long before the drain's time.
    stage
        .orders
        .instead(|call| (call.is_cancel() || call.is_query()).then_some(Answer::Hang));
    let mut worker = stage.setup.start_with(&["run", "--drain", "10m"]);
    worker.wait_ready(SOON).await;
    eventually(SOON, "a look-up", async || {
        (!stage.gateway.calls(QUERY).is_empty()).then_some(())
    })
    .await;
    worker.signal(Signal::TERM);
    worker.logs(SOON, "stopping").await;
    assert!(worker.is_running());
    worker.signal(Signal::TERM);
    let code = worker.exit_code(SOON).await;
    assert_eq!(code, 2, "not all is finished");
    stage.vhost.queue_holds(SOON, COMMANDS, 1, 0).await;

    stage.orders.instead(|_| None);
    let _worker = stage.start().await;
    let event = stage.events(1).await.remove(0);
    assert_eq!(told(&event), cancelled("QC1"));
    assert_eq!(stage.orders.times_executed("QC1"), 1);
    stage.settled().await;
}

// ---- what people need around it ----

#[tokio::test]
async fn health_and_metrics_are_served() {
    // No broker: alive, not ready, and it says why.
    let stage = Stage::new().await;
    let nobody = format!("amqp://guest:hunter2@127.0.0.1:{}/%2f", free_port());
    let mut alone = Setup::new(&nobody, &stage.gateway.url()).start();
    let (status, body) = eventually(SOON, "/readyz tells of the broker", async || {
        let (status, body) = alone.readiness().await?;
        let known = body["checks"]
            .as_array()?
            .iter()
            .any(|c| c["cause"] != Value::Null);
        known.then_some((status, body))
    })
    .await;
    assert_eq!(status, 503);
    assert_eq!(body["ready"], json!(false));
    let checks = body["checks"].as_array().unwrap();
    let broker = checks
        .iter()
        .find(|check| check["name"] == "broker")
        .unwrap();
    assert!(
        broker["cause"]
            .as_str()
            .is_some_and(|cause| !cause.is_empty()),
        "{body}"
    );
    assert!(!body.to_string().contains("hunter2"), "{body}");
    assert_eq!(alone.get("/livez").await.unwrap().0, 200);
    assert!(alone.is_running());
    assert_eq!(alone.terminate(SOON).await, 0);

    // From the first answer on: 503 with causes, and 200 only once the commands are consumed.
    let mut worker = stage.setup.start();
    eventually_ok(SOON, "ready", async || match worker.readiness().await {
        Some((200, body)) => {
            assert_eq!(body["ready"], json!(true), "{body}");
            Ok(())
        }
        Some((503, body)) => {
            assert_eq!(body["ready"], json!(false), "{body}");
            assert!(body["checks"].is_array(), "{body}");
            Err(body)
        }
        Some((status, body)) => panic!("{status}: {body}"),
        None => Err(Value::Null),
    })
    .await;
    let consumers = stage.vhost.consumers().await;
    assert!(
        consumers.iter().any(|consumer| consumer.queue == COMMANDS),
        "{consumers:?}"
    );
    assert!(worker.is_running());
    stage.send(&Command::orders(["QC1"])).await;
    stage.send(&Command::raw("nonsense")).await;
    stage.vhost.queue_holds(SOON, DEAD, 1, 0).await;

    let (status, text) = worker.get("/metrics").await.unwrap();
    assert_eq!(status, 200);
    let mut series = BTreeSet::new();
    let mut described = BTreeMap::new();
    for line in text.lines() {
        if let Some(comment) = line.strip_prefix("# ") {
            if let Some(kind) = comment.strip_prefix("TYPE ") {
                let (name, kind) = kind.split_once(' ').unwrap();
                assert!(
                    described.insert(name, kind).is_none(),
                    "{name} is described twice"
                );
            }
            continue;
        }
        let (name, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line:?}"));
        assert!(value.parse::<f64>().is_ok(), "{line:?}");
        assert!(series.insert(name), "{name} is there twice");
        assert!(
            described.keys().any(|known| name.starts_with(known)),
            "{line:?}"
        );
        let families = ["wdt_", "messaging_", "http_", "process_"];
        assert!(
            families.iter().any(|family| name.starts_with(family)),
            "{line:?}"
        );
    }
    assert!(text.ends_with("# EOF\n"), "{text}");
    assert!(!series.is_empty());
    assert_eq!(worker.get("/nothing").await.unwrap().0, 404);
    assert_eq!(worker.terminate(SOON).await, 0);
}

#[tokio::test]
async fn send_shows_the_events_of_its_command_and_its_exit_status_sums_them_up() {
    let mut stage = Stage::new().await;
    let url = stage.vhost.url();
    let env = [("WDT_AMQP__URL", url.as_str())];
    // No queue yet: nobody would ever read the command.
    let ended = cli(&["send", "QC1", "--wait", "5s"], &env, "").await;
    assert_eq!(ended.code, 1, "{ended:?}");
    assert!(ended.err.contains(COMMANDS), "{ended:?}");

    let _worker = stage.start().await;
    stage.orders.set("SHIPPED", 70);
    let ended = cli(&["send", "QC1", "QC2", "--json"], &env, "").await;
    assert_eq!(ended.code, 0, "{ended:?}");
    let lines: Vec<Value> = ended
        .out
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 2);
    // It works beside any other consumer: the exchange's event is the very same.
    let events = stage.events(2).await;
    let bodies: Vec<&Value> = events.iter().map(|event| &event.body).collect();
    assert!(
        lines.iter().all(|line| bodies.contains(&line)),
        "{lines:#?} {bodies:#?}"
    );

    let ended = cli(
        &["send", "QC1", "SHIPPED", "--command-id", "mine"],
        &env,
        "",
    )
    .await;
    assert_eq!(ended.code, 1, "{ended:?}");
    for word in [
        "QC1",
        "cancelled",
        "SHIPPED",
        "refused",
        "order_state",
        "mine",
    ] {
        assert!(ended.out.contains(word), "{word} in {ended:?}");
    }
    assert_eq!(stage.events(2).await[0].text("command_id"), "mine");

    let file = fresh_dir("send").join("orders.txt").display().to_string();
    std::fs::write(&file, "QC3\n\n  QC4 \r\nQC3\n").unwrap();
    let ended = cli(&["send", "--file", &file, "--json"], &env, "").await;
    assert_eq!((ended.code, ended.out.lines().count()), (0, 2), "{ended:?}");
    let ended = cli(&["send", "QC5", "--file", "-", "--json"], &env, "QC6\nQC7").await;
    assert_eq!((ended.code, ended.out.lines().count()), (0, 3), "{ended:?}");
    stage.events(5).await;

    for (args, code) in [
        (
            &["send", "QC8", "--deadline", "2020-01-01T00:00:00Z"][..],
            "deadline_passed",
        ),
        (&["send", "QC8", "--account", "nobody"], "unknown_account"),
        (
            &["send", "QC8", "--command-id", "mine"],
            "command_id_reused",
        ),
    ] {
        let ended = cli(args, &env, "").await;
        assert_eq!(ended.code, 1, "{ended:?}");
        assert!(ended.out.contains(code), "{ended:?}");
        assert_eq!(stage.events(1).await[0].reason_code(), code);
    }

    // What came is shown, also when the rest did not come in time.
    stage
        .orders
        .instead(|call| call.has("HANGS").then_some(Answer::Hang));
    let ended = cli(&["send", "QC1", "HANGS", "--wait", "2s"], &env, "").await;
    assert_eq!(ended.code, 1, "{ended:?}");
    assert!(ended.out.ends_with("1 of 2 cancelled\n"), "{ended:?}");
    assert!(ended.err.contains("not all results came"), "{ended:?}");
    stage.orders.instead(|_| None);
    stage.events(2).await;

    let ended = cli(&["send", "--file", "/nowhere/orders.txt"], &env, "").await;
    assert!(ended.code == 1 || ended.code == 64, "{ended:?}");
    assert!(ended.err.contains("/nowhere/orders.txt"), "{ended:?}");
    let ended = cli(&["send", "--file", "-"], &env, "\n \n").await;
    assert_eq!(ended.code, 64, "no order is no command: {ended:?}");
    stage.settled().await;
    assert_eq!(stage.orders.times_sent("QC8"), 0);
}

#[tokio::test]
async fn the_demo_shows_every_fate_and_leaves_nothing_behind() {
    let vhost = Vhost::fresh().await;
    let folder = fresh_dir("demo");
    let (url, temporary) = (vhost.url(), folder.display().to_string());
    let env = [
        ("WDT_AMQP__URL", url.as_str()),
        ("TMPDIR", temporary.as_str()),
    ];
    let ended = cli(&["demo"], &env, "").await;
    assert_eq!(ended.code, 0, "{ended:?}");
    for word in [
        "cancelled",
        "refused",
        "rejected",
        "expired",
        "failed",
        "unknown",
    ] {
        assert!(ended.out.contains(word), "{word} in {}", ended.out);
    }
    // Its own fault met it, and not one of another command in the same call.
    let mut lines = ended.out.lines();
    let faulty = lines.find(|line| line.contains("E503-0001"));
    assert!(
        faulty.is_some_and(|line| !line.ends_with(" 1")),
        "{ended:?}"
    );
    assert_eq!(vhost.queues().await, []);
    assert_eq!(std::fs::read_dir(folder).unwrap().count(), 0);
}

// ---- everything at once ----

/// What the gateway does to an order. Its number begins with this word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fate {
    Plain,
    Shipped,
    None,
    Odd,
    /// The whole call is refused for its sake.
    Bad,
    /// Somebody works on it, the first time.
    Busy,
    /// Its `-1` document is cancelled.
    Dash,
    Both,
    Neither,
    /// Executed, and then: no answer, half of one, a page, an error.
    Lost,
    Cut,
    Page,
    Error,
    /// An error, and not executed.
    Drop,
    /// No answer, and afterwards no such order.
    Ghost,
    /// In commands whose deadline has passed.
    Late,
    Invalid,
}

impl Fate {
    /// Written from the contract: what each event of such an order must say.
    fn expected(self) -> (&'static str, &'static str) {
        match self {
            Self::Plain
            | Self::Busy
            | Self::Dash
            | Self::Both
            | Self::Neither
            | Self::Lost
            | Self::Cut
            | Self::Page
            | Self::Error
            | Self::Drop => ("cancelled", ""),
            Self::Shipped => ("refused", "order_state"),
            Self::None => ("refused", "order_not_found"),
            Self::Odd => ("refused", "order_refused"),
            Self::Bad => ("failed", "api_refused_call"),
            Self::Ghost => ("unknown", "unconfirmed"),
            Self::Late => ("expired", "deadline_passed"),
            Self::Invalid => ("rejected", "invalid_order_no"),
        }
    }

    fn number(self, place: usize) -> String {
        match self {
            Self::Invalid => format!("{self:?}-{place:-<40}"),
            _ => format!("{self:?}-{place}"),
        }
    }

    fn is_unsettled(self) -> bool {
        matches!(self.expected().0, "failed" | "unknown")
    }
}

/// Whole lists end in doubt in one account only: there, an order that is not found would rightly be
/// told as unknown when it shared a call with one whose answer was lost.
const SHOPS: [(&str, &[(Fate, usize)]); 2] = [
    (
        "default",
        &[
            (Fate::Plain, 90),
            (Fate::Shipped, 25),
            (Fate::None, 20),
            (Fate::Odd, 15),
            (Fate::Bad, 3),
            (Fate::Busy, 10),
            (Fate::Dash, 15),
            (Fate::Both, 10),
            (Fate::Neither, 10),
            (Fate::Late, 20),
            (Fate::Invalid, 10),
        ],
    ),
    (
        "b2b",
        &[
            (Fate::Plain, 100),
            (Fate::Shipped, 25),
            (Fate::Lost, 10),
            (Fate::Cut, 6),
            (Fate::Page, 6),
            (Fate::Error, 6),
            (Fate::Drop, 6),
            (Fate::Ghost, 8),
        ],
    ),
];

/// One account's side of the gateway.
struct Shop {
    orders: Orders,
    fates: BTreeMap<String, Fate>,
    /// Orders whose fate strikes once and has struck.
    struck: Mutex<BTreeSet<String>>,
    /// The request that executed each.
    executed: Mutex<BTreeMap<String, usize>>,
}

impl Shop {
    fn new(fates: &[(Fate, usize)]) -> Self {
        let orders = Orders::new();
        let mut known = BTreeMap::new();
        for (fate, count) in fates {
            for place in 0..*count {
                let number = fate.number(place);
                match fate {
                    Fate::Shipped => drop(orders.set(&number, 70)),
                    Fate::None | Fate::Ghost => drop(orders.remove(&number)),
                    Fate::Odd => drop(orders.refuse(&number, "仓库正在盘点")),
                    // Pushed to the warehouse: only its document can still be cancelled.
                    Fate::Dash => drop(orders.set(&number, 40).set(&format!("{number}-1"), 40)),
                    _ => {}
                }
                known.insert(number, *fate);
            }
        }
        Self {
            orders,
            fates: known,
            struck: Mutex::default(),
            executed: Mutex::default(),
        }
    }

    fn answer(&self, request: &Request) -> Answer {
        if request.method() != CANCEL {
            return (self.orders.handler())(request);
        }
        let list = request.orders();
        let of = |fate: Fate| -> Vec<&String> {
            list.iter()
                .filter(|number| self.fates.get(*number) == Some(&fate))
                .collect()
        };
        if !of(Fate::Bad).is_empty() {
            return Answer::status(100, "货品编号不能为空");
        }
        let mut struck = self.struck.lock().unwrap();
        let mut strikes = |fate: Fate| -> Vec<&String> {
            let mut those = of(fate);
            those.retain(|number| struck.insert(number.to_string()));
            those
        };
        if !strikes(Fate::Drop).is_empty() {
            return Answer::http(500, "text/plain", "out of order");
        }
        let busy = strikes(Fate::Busy);
        for number in &busy {
            self.orders.refuse(number, "单据正在处理，请稍后重试");
        }
        let mut answer = (self.orders.handler())(request);
        for number in &busy {
            self.orders.refuse(number, "");
        }
        let mut executed = self.executed.lock().unwrap();
        for number in &list {
            if self.orders.times_executed(number) > 0 {
                executed.entry(number.clone()).or_insert(request.number);
            }
        }
        let Answer::Json(body) = &mut answer else {
            panic!("the handler answers in JSON");
        };
        for number in of(Fate::Both) {
            let failed = json!({ "order_no": number, "err_msg": NOT_CANCELLABLE });
            body["data"]["error_data"]
                .as_array_mut()
                .unwrap()
                .push(failed);
        }
        let neither = of(Fate::Neither);
        let told = body["data"]["success_data"].as_array_mut().unwrap();
        told.retain(|number| !neither.iter().any(|n| number == n.as_str()));
        let body = body.clone();
        if !strikes(Fate::Lost).is_empty() || !strikes(Fate::Ghost).is_empty() {
            Answer::Close
        } else if !strikes(Fate::Cut).is_empty() {
            Answer::CutBody(body)
        } else if !strikes(Fate::Page).is_empty() {
            Answer::http(200, "text/html", "<html>please log in</html>")
        } else if !strikes(Fate::Error).is_empty() {
            Answer::http(502, "text/html", "<html>bad gateway</html>")
        } else {
            answer
        }
    }
}

/// A command of the load and what it lists, each number once.
struct Planned {
    id: String,
    account: &'static str,
    command: Command,
    entries: Vec<(String, Fate)>,
}

impl Planned {
    fn new(id: String, account: &'static str, listed: &[(String, Fate)]) -> Self {
        let numbers: Vec<&String> = listed.iter().map(|(number, _)| number).collect();
        let mut command = Command::orders(numbers).field("account", account).id(&id);
        if listed.iter().all(|(_, fate)| *fate == Fate::Late) {
            command = command.field("deadline", "2020-01-01T00:00:00Z");
        }
        let mut entries: Vec<(String, Fate)> = Vec::new();
        for entry in listed {
            if !entries.contains(entry) {
                entries.push(entry.clone());
            }
        }
        Self {
            id,
            account,
            command,
            entries,
        }
    }
}

/// The numbers of the calls of an account that carried an order.
fn carried_by(calls: &[Request], sid: &str, order: &String) -> Vec<usize> {
    let its = calls.iter().filter(|call| call.param("sid") == sid);
    its.filter(|call| call.orders().contains(order))
        .map(|call| call.number)
        .collect()
}

/// The orders of an account, a fifth of them once more, shuffled and cut into commands.
fn plan(rng: &mut fastrand::Rng, account: &'static str, fates: &[(Fate, usize)]) -> Vec<Planned> {
    let mut plan = Vec::new();
    for late in [false, true] {
        let mut listed: Vec<(String, Fate)> = fates
            .iter()
            .filter(|(fate, _)| (*fate == Fate::Late) == late)
            .flat_map(|(fate, count)| (0..*count).map(|place| (fate.number(place), *fate)))
            .collect();
        for _ in 0..listed.len() / 5 {
            listed.push(listed[rng.usize(..listed.len())].clone());
        }
        rng.shuffle(&mut listed);
        let mut rest = listed.as_slice();
        while !rest.is_empty() {
            let (some, others) = rest.split_at(rng.usize(1..=15).min(rest.len()));
            plan.push(Planned::new(
                format!("{account}-{}", plan.len()),
                account,
                some,
            ));
            rest = others;
        }
    }
    plan
}

#[tokio::test]
async fn orders_of_every_fate_with_duplicates_end_as_they_must() {
    let seed =
        std::env::var("WDT_TEST_SEED").map_or_else(|_| fastrand::u64(..), |s| s.parse().unwrap());
    eprintln!("WDT_TEST_SEED={seed}");
    let mut rng = fastrand::Rng::with_seed(seed);

    let shops: Arc<BTreeMap<String, Shop>> = Arc::new(
        SHOPS
            .iter()
            .map(|(name, fates)| (format!("sid-{name}"), Shop::new(fates)))
            .collect(),
    );
    let mut stage = Stage::with(|s| s.account("b2b", &Account::named("b2b"))).await;
    let gateway = {
        let shops = shops.clone();
        let accounts = SHOPS.iter().map(|(name, _)| Account::named(name)).collect();
        Gateway::with_accounts(accounts, move |request| {
            shops[request.param("sid")].answer(request)
        })
    };
    stage.setup =
        std::mem::replace(&mut stage.setup, Setup::new("", "")).set("WDT_API__URL", gateway.url());
    stage.gateway = gateway;
    let _worker = stage.start().await;

    // A fifth of the commands are sent twice; among them all there are some that are no commands.
    let mut load: Vec<Planned> = Vec::new();
    for (account, fates) in SHOPS {
        load.extend(plan(&mut rng, account, fates));
    }
    rng.shuffle(&mut load);
    let mut sent: Vec<&Planned> = load.iter().collect();
    for _ in 0..load.len() / 5 {
        sent.insert(rng.usize(..=sent.len()), &load[rng.usize(..load.len())]);
    }
    let mut commands: Vec<Command> = sent.iter().map(|planned| planned.command.clone()).collect();
    let reused = &sent[0];
    commands.push(
        Command::orders(["REUSED"])
            .field("account", reused.account)
            .id(&reused.id),
    );
    commands.push(
        Command::orders(["STRANGE"])
            .field("account", "nobody")
            .id("strange"),
    );
    for number in 0..3 {
        commands.push(Command::raw("nonsense").id(&format!("nonsense-{number}")));
    }
    stage.amqp.send_all(COMMANDS, &commands).await;

    // By command and order: how often it must be told, and what each time.
    let mut expected: BTreeMap<(String, String), (usize, &str, &str)> = BTreeMap::new();
    for planned in &sent {
        for (number, fate) in &planned.entries {
            let (outcome, code) = fate.expected();
            let key = (planned.id.clone(), number.clone());
            expected.entry(key).or_insert((0, outcome, code)).0 += 1;
        }
    }
    expected.insert(
        (reused.id.clone(), "REUSED".into()),
        (1, "rejected", "command_id_reused"),
    );
    expected.insert(
        ("strange".into(), "STRANGE".into()),
        (1, "rejected", "unknown_account"),
    );
    for number in 0..3 {
        let key = (format!("nonsense-{number}"), String::new());
        expected.insert(key, (1, "rejected", "malformed"));
    }
    let total = expected.values().map(|(count, ..)| count).sum();
    let events = stage.events(total).await;
    stage.settled().await;

    let mut found: BTreeMap<(String, String), (usize, &str, &str)> = BTreeMap::new();
    let mut event_ids: BTreeMap<(&str, &str), BTreeSet<&str>> = BTreeMap::new();
    for event in &events {
        let key = (event.text("command_id"), event.order_no());
        let told = (0, event.outcome(), event.reason_code());
        let entry = found.entry((key.0.into(), key.1.into())).or_insert(told);
        entry.0 += 1;
        assert_eq!(
            (entry.1, entry.2),
            (told.1, told.2),
            "told in two ways: {event:#?}"
        );
        event_ids
            .entry(key)
            .or_default()
            .insert(event.text("event_id"));
    }
    let differences: Vec<_> = expected
        .iter()
        .filter(|(key, told)| found.get(*key) != Some(told))
        .map(|(key, told)| (key, told, found.get(key)))
        .collect();
    assert!(
        differences.is_empty(),
        "expected and found: {differences:#?}"
    );
    assert_eq!(found.len(), expected.len());
    // One id for what is told again, and no id for two things.
    assert!(event_ids.values().all(|ids| ids.len() == 1));
    let distinct: BTreeSet<_> = event_ids.values().flatten().collect();
    assert_eq!(distinct.len(), event_ids.len());

    let by_id: BTreeMap<&str, &Planned> = load.iter().map(|p| (p.id.as_str(), p)).collect();
    let calls = stage.gateway.calls(CANCEL);
    for event in events
        .iter()
        .filter(|e| e.reason_code() != "command_id_reused")
    {
        let Some(planned) = by_id.get(event.text("command_id")) else {
            continue;
        };
        // Its place in its command.
        let place = event.body["index"].as_u64().unwrap() as usize;
        assert_eq!(
            event.body["total"],
            json!(planned.entries.len()),
            "{event:#?}"
        );
        assert_eq!(planned.entries[place].0, event.order_no(), "{event:#?}");
        // Every call that carried it is counted.
        if event.outcome() == "cancelled" {
            let number = event.order_no().to_string();
            let carried = carried_by(&calls, &format!("sid-{}", planned.account), &number).len();
            assert_eq!(event.body["attempts"], json!(carried), "{event:#?}");
        }
    }
    for (sid, shop) in shops.iter() {
        let executed = shop.executed.lock().unwrap();
        for (number, fate) in &shop.fates {
            let lists = carried_by(&calls, sid, number);
            let (outcome, _) = fate.expected();
            if outcome == "cancelled" {
                assert_eq!(shop.orders.times_executed(number), 1, "{number}");
                // In no list after the one that cancelled it, told or not.
                assert_eq!(
                    lists.last(),
                    executed.get(number),
                    "{number} in calls {lists:?}"
                );
            } else {
                assert_eq!(shop.orders.times_executed(number), 0, "{number}");
            }
            match fate {
                Fate::Late | Fate::Invalid => assert_eq!(lists.len(), 0, "{number}"),
                // What is unknown is looked up, and nothing is found that would let it be sent.
                Fate::Ghost => assert_eq!(lists.len(), 1, "{number}"),
                _ => assert!(!lists.is_empty(), "{number}"),
            }
        }
        assert!(stage.gateway.most_in_flight(sid) <= 2, "api.concurrency");
    }
    // The kit's gateway fails the test when a list holds a number twice.
    assert!(
        stage.gateway.longest_list() <= 20,
        "api.max_orders_per_call"
    );
    // Parked: each delivery with an order that is not settled, and what cannot be read.
    let unsettled =
        |planned: &&&Planned| planned.entries.iter().any(|(_, fate)| fate.is_unsettled());
    let parked = sent.iter().filter(unsettled).count() + 3;
    stage.vhost.queue_holds(SOON, DEAD, parked as u64, 0).await;

    // All of it once more: only what is unsettled or was refused to another command is not a replay.
    let requests = stage.gateway.requests().len();
    let settled = |planned: &&Planned| !planned.entries.iter().any(|(_, fate)| fate.is_unsettled());
    let again: Vec<&Planned> = load.iter().filter(settled).collect();
    let commands: Vec<Command> = again
        .iter()
        .map(|planned| planned.command.clone())
        .collect();
    stage.amqp.send_all(COMMANDS, &commands).await;
    let events = stage
        .events(again.iter().map(|planned| planned.entries.len()).sum())
        .await;
    for event in &events {
        assert!(replayed(event), "{event:#?}");
        let key = (event.text("command_id"), event.order_no());
        assert!(
            event_ids[&key].contains(event.text("event_id")),
            "{event:#?}"
        );
    }
    assert_eq!(stage.gateway.requests().len(), requests, "no call");
    stage.settled().await;
}
