//! What nobody sane sends: answers that have no end, commands of the worst kind, and as much of both
//! as fits in. The worker goes on, tells the truth, and its memory stays within what
//! `docs/ARCHITECTURE.md` promises.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::json;
use support::amqp::{COMMANDS, Command, Message};
use support::gateway::{Account, Answer, CANCEL, Endless, Gateway, Request};
use support::orders::Orders;
use support::scene::{LATER, SOON, Scene};
use support::worker::Worker;

const MIB: usize = 1024 * 1024;
/// What is promised, in MiB: 32 for commands in hand and as much for their copies on the way, two
/// long answers, and what the worker takes at rest, in a build without optimization.
const MEMORY_MAX: usize = 224;
/// `api.timeout` where the gateway gives no end.
const SHORT: &str = "3s";
/// The longest answer that is read, and what two sockets hold between them.
const READ_MAX: usize = (8 + 16) * MIB;

/// The most memory that a process ever had, in MiB.
fn peak(worker: &Worker) -> usize {
    let status = fs::read_to_string(format!("/proc/{}/status", worker.pid())).expect("its status");
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    let kib: usize = line
        .and_then(|l| l.trim().strip_suffix(" kB"))
        .and_then(|n| n.trim().parse().ok())
        .expect("a figure");
    kib / 1024
}

#[track_caller]
fn within_memory(worker: &Worker, what: &str) {
    let peak = peak(worker);
    eprintln!("{what}: at most {peak} MiB");
    assert!(peak < MEMORY_MAX, "{what}: {peak} MiB");
}

// The gateway

struct Row {
    what: &'static str,
    answer: Box<dyn Fn(&Request) -> Answer + Send + Sync>,
}

fn ok(body: impl AsRef<[u8]>) -> Answer {
    Answer::Raw {
        status: 200,
        headers: vec![("content-type".into(), "application/json".into())],
        body: body.as_ref().to_vec(),
    }
}

fn success(request: &Request) -> String {
    json!({"status": 0, "data": {"success_data": request.orders(), "error_data": []}}).to_string()
}

/// Each claims success as far as it can.
fn rows(taken: &Arc<AtomicUsize>) -> Vec<Row> {
    let row = |what, answer: fn(&Request) -> Answer| Row {
        what,
        answer: Box::new(answer),
    };
    let counted = taken.clone();
    vec![
        Row {
            what: "10 GB",
            answer: Box::new(move |r| {
                let head = "HTTP/1.1 200 OK\r\ncontent-length: 10737418240\r\n\r\n";
                let mut endless = Endless::new(&(head.to_owned() + &success(r)), [b' '; 65536]);
                endless.taken = counted.clone();
                Answer::Endless(endless)
            }),
        },
        row("a byte a second", |r| {
            let head = "HTTP/1.1 200 OK\r\ncontent-length: 10000\r\n\r\n".to_owned() + &success(r);
            Answer::Endless(Endless {
                pause: Duration::from_secs(1),
                ..Endless::new(&head, " ")
            })
        }),
        row("a head without an end", |_| {
            Answer::Endless(Endless::new(
                "HTTP/1.1 200 OK\r\n",
                "x-a: bbbbbbbbbbbbbb\r\n",
            ))
        }),
        row("answers to come, and none comes", |_| {
            Answer::Endless(Endless {
                pause: Duration::from_millis(1),
                ..Endless::new("", "HTTP/1.1 100 Continue\r\n\r\n")
            })
        }),
        row("chunks without an end", |_| {
            let chunk = format!("10000\r\n{}\r\n", " ".repeat(65536));
            let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
            Answer::Endless(Endless::new(head, chunk))
        }),
        row("a million levels, never closed", |_| {
            ok(format!(r#"{{"status":0,"data":{}"#, "[".repeat(1_000_000)))
        }),
        row("a million levels", |_| {
            let (open, close) = ("[".repeat(1_000_000), "]".repeat(1_000_000));
            ok(format!(r#"{{"status":0,"data":{open}{close}}}"#))
        }),
        row("a million objects in each other", |_| {
            let (open, close) = (r#"{"data":"#.repeat(500_000), "}".repeat(500_000));
            ok(format!(r#"{{"status":0,"data":{open}1{close}}}"#))
        }),
        row("a length that is too short", |r| {
            let body = success(r);
            let head = format!(
                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n",
                body.len() - 1
            );
            Answer::Bytes((head + &body).into_bytes())
        }),
        row("a length that is too long", |r| {
            let body = success(r);
            let head = format!(
                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n",
                body.len() + 1
            );
            Answer::Bytes((head + &body).into_bytes())
        }),
        row("two lengths", |r| {
            let body = success(r);
            let head = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 500\r\n\r\n";
            Answer::Bytes((head.to_owned() + &body).into_bytes())
        }),
        row("a length below zero", |r| {
            let head = "HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n";
            Answer::Bytes((head.to_owned() + &success(r)).into_bytes())
        }),
        row("not UTF-8", |r| {
            let body = success(r).replace("\"error", "\"x\":\"\u{1}\",\"error");
            ok(body
                .bytes()
                .map(|b| if b == 1 { 0xe9 } else { b })
                .collect::<Vec<_>>())
        }),
        row("a status named twice", |r| {
            ok(success(r).replacen("\"status\":0", "\"status\":100,\"status\":0", 1))
        }),
        row("data named twice", |r| {
            ok(format!(
                r#"{{"data":{{"success_data":[]}},{}"#,
                &success(r)[1..]
            ))
        }),
        row("a list named twice", |r| {
            ok(success(r).replacen("\"error_data\"", "\"success_data\":[],\"error_data\"", 1))
        }),
        row("a number named twice in a row", |r| {
            let error = r#""error_data":[{"order_no":"other","order_no":"another"}]"#;
            ok(success(r).replacen(r#""error_data":[]"#, error, 1))
        }),
        row("100,000 rows", |r| {
            let row = r#"{"order_no":"Q","err_msg":"no"}"#;
            let error = format!(r#""error_data":[{}]"#, vec![row; 100_000].join(","));
            ok(success(r).replacen(r#""error_data":[]"#, &error, 1))
        }),
        row("8 MiB of the smallest values", |r| {
            let values = "0,".repeat(4 * MIB - 1000);
            ok(success(r).replacen("[", &format!("[{values}"), 1))
        }),
        row("packed, though nobody asked for it", |r| Answer::Raw {
            status: 200,
            headers: vec![("content-encoding".into(), "gzip".into())],
            body: [b"\x1f\x8b\x08\0\0\0\0\0\0\xff", success(r).as_bytes()].concat(),
        }),
    ]
}

/// `R3N` and `R3X`: the row, and whether its call is executed.
fn row_of(order: &str, letter: char) -> Option<usize> {
    order.strip_prefix('R')?.strip_suffix(letter)?.parse().ok()
}

#[tokio::test]
async fn no_answer_of_a_hostile_gateway_is_believed_and_none_fills_the_memory() {
    let taken = Arc::new(AtomicUsize::new(0));
    let rows = Arc::new(rows(&taken));
    let names: Vec<String> = (0..rows.len()).map(|row| format!("row{row}")).collect();
    let orders = Orders::new();
    for (executed, letter) in [(false, 'N'), (true, 'X')] {
        let rows = rows.clone();
        let mut met = BTreeSet::new();
        let hook = move |call: &support::orders::Call<'_>| {
            let order = call.orders.first().filter(|_| call.is_cancel())?;
            let row = row_of(order, letter)?;
            met.insert(order.clone())
                .then(|| (rows[row].answer)(call.request))
        };
        if executed {
            orders.afterwards(hook);
        } else {
            orders.instead(hook);
        }
    }
    let mut accounts = vec![Account::named("default")];
    accounts.extend(names.iter().map(|name| Account::named(name)));
    let mut scene = Scene::fresh()
        .await
        .set("WDT_API__TIMEOUT", SHORT)
        .set("WDT_API__MAX_ORDERS_PER_CALL", 1);
    scene.gateway = Gateway::with_accounts(accounts, orders.handler());
    scene.setup = scene.setup.set("WDT_API__URL", scene.gateway.url());
    for name in &names {
        scene.setup = scene.setup.account(name, &Account::named(name));
    }
    let amqp = scene.amqp().await;
    let mut results = amqp.results().await;
    let worker = scene.worker().await;

    for (row, name) in names.iter().enumerate() {
        for letter in ["N", "X"] {
            let order = format!("R{row}{letter}");
            amqp.send(&Command::orders([&order]).field("account", name.as_str()))
                .await;
        }
    }
    let events = results.collect(2 * rows.len(), LATER).await;
    let told: BTreeMap<&str, &Message> = events.iter().map(|e| (e.order_no(), e)).collect();
    for (row, Row { what, .. }) in rows.iter().enumerate() {
        for (letter, attempts) in [("N", 2), ("X", 1)] {
            let order = format!("R{row}{letter}");
            let event = told.get(order.as_str()).expect(what);
            assert_eq!(event.outcome(), "cancelled", "{what}: {event:#?}");
            assert_eq!(event.body["attempts"], attempts, "{what}: {event:#?}");
            assert!(orders.times_looked_up(&order) >= 1, "{what}: looked up");
        }
    }
    // Both calls of the row.
    let taken = taken.load(Ordering::SeqCst);
    eprintln!("of 10 GB, twice, the network took {} MiB", taken / MIB);
    assert!(taken < 2 * READ_MAX, "{taken} bytes");
    within_memory(&worker, "hostile answers");
    scene.queue_is_empty().await;
}

#[tokio::test]
async fn long_answers_at_full_concurrency_share_a_bounded_memory() {
    let orders = Orders::new();
    let mut met = BTreeSet::new();
    orders.afterwards(move |call| {
        let order = call.orders.first().filter(|_| call.is_cancel())?;
        let text = "x".repeat(8 * MIB - 1000);
        let body = success(call.request).replacen("[]", &format!("[\"{text}\"]"), 1);
        met.insert(order.clone()).then(|| ok(body))
    });
    let mut scene = Scene::fresh()
        .await
        .set("WDT_API__CONCURRENCY", 64)
        .set("WDT_API__TIMEOUT", "60s")
        .set("WDT_API__MAX_ORDERS_PER_CALL", 1);
    scene.gateway = Gateway::start(orders.handler());
    scene.setup = scene.setup.set("WDT_API__URL", scene.gateway.url());
    let amqp = scene.amqp().await;
    let mut results = amqp.results().await;
    let worker = scene.worker().await;
    let numbers: Vec<String> = (0..64).map(|n| format!("L{n}")).collect();
    amqp.send(&Command::orders(&numbers)).await;
    let events = results.collect(numbers.len(), LATER).await;
    assert!(events.iter().all(|e| e.outcome() == "cancelled"));
    // Long as they are, they can be read, so nothing is asked twice.
    assert_eq!(scene.gateway.calls(CANCEL).len(), numbers.len());
    within_memory(&worker, "64 answers of 8 MiB at a time");
}

// Commands

#[tokio::test]
async fn an_order_number_of_any_characters_is_told_as_it_came() {
    let scene = Scene::fresh().await;
    let amqp = scene.amqp().await;
    let mut results = amqp.results().await;
    let _worker = scene.worker().await;
    let body = json!({"order_no_list": [
        "\u{202e}QC1\u{202c}", "QC\u{200f}2", "\u{feff}QC3", "QC\u{0}4", "QC\u{85}5", "单据-6",
        "e\u{301}7", "\u{1f600}8", null, "null",
    ]});
    // Half of a surrogate pair, which JSON can write and nothing else can hold.
    let body = body.to_string().replacen('[', r#"["\ud800-9", "#, 1);
    amqp.send(&Command::raw(body).id("odd")).await;
    let events = results.collect(11, SOON).await;
    let told: BTreeMap<u64, (&str, &str, &str)> = events
        .iter()
        .map(|e| {
            let index = e.body["index"].as_u64().expect("an index");
            (index, (e.order_no(), e.outcome(), e.reason_code()))
        })
        .collect();
    let cancelled = |order| (order, "cancelled", "");
    let invalid = |order| (order, "rejected", "invalid_order_no");
    let expected = [
        invalid(
            r#""\ud800-9", which holds half a character instead of a string of 1 to 40 characters"#,
        ),
        cancelled("\u{202e}QC1\u{202c}"),
        cancelled("QC\u{200f}2"),
        cancelled("\u{feff}QC3"),
        invalid("QC\u{0}4"),
        invalid("QC\u{85}5"),
        cancelled("单据-6"),
        cancelled("e\u{301}7"),
        cancelled("\u{1f600}8"),
        invalid("null instead of a string of 1 to 40 characters"),
        cancelled("null"),
    ];
    assert_eq!(told.into_values().collect::<Vec<_>>(), expected);
    scene.queue_is_empty().await;
}

#[tokio::test]
async fn a_command_that_names_a_field_twice_or_hides_one_is_turned_down_or_read_rightly() {
    let scene = Scene::fresh().await;
    let amqp = scene.amqp().await;
    let mut results = amqp.results().await;
    let worker = scene.worker().await;
    let list = r#""order_no_list":["A"]"#;
    let deep = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
    let objects = r#"{"a":"#.repeat(100_000) + "1" + &"}".repeat(100_000);
    let cases: Vec<(&str, String, &str)> = vec![
        (
            "twice",
            format!(r#"{{{list},"order_no_list":["B"]}}"#),
            "malformed",
        ),
        (
            "once escaped",
            format!(r#"{{"order_no_l\u0069st":["B"],{list}}}"#),
            "malformed",
        ),
        (
            "account twice",
            format!(r#"{{"account":"x",{list},"account":"default"}}"#),
            "malformed",
        ),
        ("unknown twice", format!(r#"{{"x":1,{list},"x":2}}"#), ""),
        ("deep", format!(r#"{{"x":{},{list}}}"#, deep(500_000)), ""),
        ("deep objects", format!(r#"{{"x":{objects},{list}}}"#), ""),
        (
            "deep and cut",
            format!(r#"{{{list},"x":{}"#, "[".repeat(MIB - 100)),
            "malformed",
        ),
        (
            "deep entry",
            format!(r#"{{"order_no_list":["A",{}]}}"#, deep(500_000)),
            "",
        ),
        (
            "half a mebibyte of numbers",
            format!(r#"{{"order_no_list":[{}0]}}"#, "0,".repeat(500_000)),
            "too_many_orders",
        ),
        (
            "a number of a mebibyte",
            format!(r#"{{{list},"account":{}}}"#, "9".repeat(MIB - 100)),
            "malformed",
        ),
    ];
    for (what, body, code) in &cases {
        amqp.send(&Command::raw(body.as_str()).id(what)).await;
        let event = results.next(SOON).await.expect(what);
        assert_eq!(event.reason_code(), *code, "{what}: {event:#?}");
        if code.is_empty() {
            assert_eq!(
                (event.order_no(), event.outcome()),
                ("A", "cancelled"),
                "{what}"
            );
        }
        if event.body["total"] == 2 {
            let event = results.next(SOON).await.expect(what);
            assert_eq!(
                event.reason_code(),
                "invalid_order_no",
                "{what}: {event:#?}"
            );
        }
    }
    assert_eq!(scene.orders.times_sent("B"), 0);
    scene.queue_is_empty().await;
    within_memory(&worker, "commands that are odd");
}

/// A command of a mebibyte for one order, the rest being of no use to anybody.
fn padded(n: usize, account: &str) -> Command {
    let head = format!(r#"{{"order_no_list":["P{n}"],"account":"{account}","x":""#);
    let padding = "p".repeat(MIB - head.len() - 2);
    Command::raw(head + &padding + "\"}").id(&format!("padded-{n}"))
}

#[tokio::test]
async fn commands_of_a_mebibyte_at_the_widest_prefetch_stay_within_the_memory() {
    let scene = Scene::fresh()
        .await
        .set("WDT_API__CONCURRENCY", 64)
        .set("WDT_API__MAX_ORDERS_PER_CALL", 20);
    let amqp = scene.amqp().await;
    let mut results = amqp.results().await;
    // They wait before the worker comes, so that the broker sends all it may.
    let worker = scene.worker().await;
    worker_stops(worker).await;
    let heavy = 160;
    for n in 0..heavy {
        amqp.send(&padded(n, "default")).await;
    }
    let mut light = Vec::new();
    for n in 0..200 {
        light.push(Command::orders([format!("S{n}")]).id(&format!("light-{n}")));
    }
    amqp.send_all(COMMANDS, &light).await;
    scene.slow(Duration::from_millis(200));
    let worker = scene.worker().await;
    let events = results.collect(heavy + light.len(), LATER).await;
    let told: BTreeSet<&str> = events.iter().map(Message::order_no).collect();
    assert_eq!(told.len(), heavy + light.len());
    assert!(events.iter().all(|e| e.outcome() == "cancelled"));
    scene.queue_is_empty().await;
    assert_eq!(scene.consumer().await.queue, COMMANDS);
    within_memory(&worker, "160 commands of 1 MiB");
}

#[tokio::test]
async fn unreadable_commands_of_a_mebibyte_are_copied_within_the_memory() {
    let scene = Scene::fresh().await.set("WDT_API__CONCURRENCY", 64);
    let amqp = scene.amqp().await;
    let mut results = amqp.results().await;
    let worker = scene.worker().await;
    worker_stops(worker).await;
    let count = 120;
    for n in 0..count {
        let body = vec![b'['; MIB + n % 3];
        amqp.send(&Command::raw(body).id(&format!("bad-{n}"))).await;
    }
    let worker = scene.worker().await;
    let events = results.collect(count, LATER).await;
    assert!(events.iter().all(|e| e.reason_code() == "malformed"));
    scene.queue_is_empty().await;
    let mut dead = amqp.dead().await;
    for _ in 0..count {
        let copy = dead.next(SOON).await.expect("a copy");
        assert!(copy.bytes.len() >= MIB);
    }
    within_memory(&worker, "120 unreadable commands of 1 MiB");
}

#[tokio::test]
async fn ten_thousand_orders_for_each_of_several_accounts_stay_within_the_memory() {
    let names = ["default", "a1", "a2", "a3"];
    let orders = Orders::new();
    let mut scene = Scene::fresh()
        .await
        .set("WDT_API__MAX_ORDERS_PER_CALL", 1000)
        .set("WDT_API__CONCURRENCY", 2);
    let accounts = names.map(Account::named).to_vec();
    scene.gateway = Gateway::with_accounts(accounts, orders.handler());
    scene.setup = scene.setup.set("WDT_API__URL", scene.gateway.url());
    for name in names {
        scene.setup = scene.setup.account(name, &Account::named(name));
    }
    let amqp = scene.amqp().await;
    let mut results = amqp.results().await;
    let worker = scene.worker().await;
    worker_stops(worker).await;
    for (n, name) in names.iter().enumerate() {
        let numbers = (0..10_000).map(|order| format!("M{n}-{order}"));
        amqp.send(&Command::orders(numbers).field("account", *name))
            .await;
    }
    let worker = scene.worker().await;
    let mut told = BTreeSet::new();
    while told.len() < 10_000 * names.len() {
        let event = results.next(LATER).await.expect("an event");
        assert_eq!(event.outcome(), "cancelled");
        told.insert(event.order_no().to_owned());
    }
    scene.queue_is_empty().await;
    within_memory(&worker, "4 commands of 10,000 orders");
}

/// What the worker takes at most, each time from its start: the figures in `docs/ARCHITECTURE.md`.
/// `cargo test --release --locked --test hostile -- --ignored --nocapture`
#[tokio::test]
#[ignore = "takes minutes, and tells something only of a build for release"]
async fn figures() {
    for (concurrency, prefetch) in [(2, "default"), (64, "largest")] {
        let light = |n: usize| Command::orders([format!("S{n}")]).id(&format!("s{n}"));
        measure(
            &format!("20,000 small commands, {prefetch} prefetch"),
            concurrency,
            20_000,
            1,
            light,
        )
        .await;
        let what = format!("600 commands of 1 MiB, {prefetch} prefetch");
        measure(&what, concurrency, 600, 1, |n| padded(n, "default")).await;
        let what = format!("40 commands of 10,000 orders, {prefetch} prefetch");
        let many = |n: usize| {
            let numbers = (0..10_000).map(|order| format!("QC2026112400{n:03}{order:05}"));
            Command::orders(numbers).id(&format!("m{n}"))
        };
        measure(&what, concurrency, 40, 10_000, many).await;
    }
}

/// All of these wait in the queue when the worker starts.
async fn measure(
    what: &str,
    concurrency: usize,
    commands: usize,
    orders_each: usize,
    command: impl Fn(usize) -> Command,
) {
    let scene = Scene::fresh()
        .await
        .set("WDT_API__CONCURRENCY", concurrency)
        .set(
            "WDT_API__MAX_ORDERS_PER_CALL",
            if concurrency > 2 { 1000 } else { 20 },
        );
    let amqp = scene.amqp().await;
    let mut results = amqp.results().await;
    let worker = scene.worker().await;
    let at_rest = peak(&worker);
    worker_stops(worker).await;
    for first in (0..commands).step_by(32) {
        let some: Vec<Command> = (first..commands.min(first + 32)).map(&command).collect();
        amqp.send_all(COMMANDS, &some).await;
    }
    let worker = scene.worker().await;
    for _ in 0..commands * orders_each {
        let event = results.next(LATER).await.expect("an event");
        assert_eq!(event.outcome(), "cancelled");
    }
    scene.queue_is_empty().await;
    let prefetch = scene.consumer().await.prefetch;
    eprintln!(
        "{what}: at most {} MiB; at rest {at_rest}, prefetch at the end {prefetch}",
        peak(&worker)
    );
}

/// It has declared what it needs, and lets go of it.
async fn worker_stops(mut worker: Worker) {
    assert_eq!(worker.terminate(SOON).await, 0);
}
