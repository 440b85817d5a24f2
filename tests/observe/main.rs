//! What people see of a worker: metrics, readiness, one line and one span for each command and call.
#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, its helpers too"
)]

mod collector;
#[path = "../support/mod.rs"]
mod support;

use std::time::SystemTime;

use collector::{Collector, Got, mute};
use serde_json::{Value, json};
use support::amqp::{Amqp, COMMANDS, Command, Inbox, Message};
use support::eventually::{eventually, eventually_ok};
use support::gateway::{Answer, CANCEL, Gate};
use support::scene::{LATER, Load, SOON, Scene};
use support::worker::Worker;

const NOT_CANCELLABLE: &str = "单据状态不是编辑中、待审核、已审核，不允许取消";
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PUBLISHER: &str = "00f067aa0ba902b7";
const CLIENT: i32 = 3;
const CONSUMER: i32 = 5;
const ERROR: i32 = 2;

/// A worker's scene with somebody who reads the results.
struct Stage {
    scene: Scene,
    amqp: Amqp,
    results: Inbox,
}

impl Stage {
    async fn new() -> Self {
        let scene = Scene::fresh().await;
        let amqp = scene.amqp().await;
        let results = amqp.results().await;
        Self {
            scene,
            amqp,
            results,
        }
    }

    fn set(mut self, name: &str, value: impl ToString) -> Self {
        self.scene = self.scene.set(name, value);
        self
    }

    async fn told(&mut self, command: &Command, events: usize) -> Vec<Message> {
        self.amqp.send(command).await;
        let mut told = self.results.collect(events, SOON).await;
        told.sort_by_key(|event| event.body["index"].as_u64());
        told
    }
}

/// A metric by the beginning of its name and parts of its labels; the sum of what fits.
async fn sum(worker: &Worker, name: &str, labels: &[(&str, &str)]) -> f64 {
    let (_, text) = worker.get("/metrics").await.unwrap();
    let fits = |line: &&str| {
        let rest = line.strip_prefix(name);
        rest.is_some_and(|rest| rest.starts_with(['{', ' ']))
            && labels
                .iter()
                .all(|(label, value)| line.contains(&format!("{label}=\"{value}\"")))
    };
    let values = text.lines().filter(fits).map(|line| {
        let value = line.rsplit_once(' ').unwrap().1;
        value.parse::<f64>().unwrap()
    });
    values.sum()
}

async fn until_sum(worker: &Worker, name: &str, labels: &[(&str, &str)], expected: f64) {
    let what = format!("{name} {labels:?} is {expected}");
    eventually_ok(SOON, &what, async || {
        match sum(worker, name, labels).await {
            found if found == expected => Ok(()),
            found => Err(found),
        }
    })
    .await;
}

fn step(event: &Message) -> (String, String, String) {
    let header = event.headers["traceparent"].as_str().unwrap();
    let parts: Vec<&str> = header.split('-').collect();
    (parts[1].into(), parts[2].into(), parts[3].into())
}

fn span_of(spans: &[Got], event: &Message) -> Option<Got> {
    let (trace, span, _) = step(event);
    let mut spans = spans.iter();
    spans
        .find(|s| s.trace_id == trace && s.span_id == span)
        .cloned()
}

fn has(span: &Got, expected: &[(&str, Value)]) {
    for (name, value) in expected {
        assert_eq!(
            span.attributes.get(*name),
            Some(value),
            "{name} of {span:#?}"
        );
    }
}

/// Waits until so many cancels have arrived at the gateway.
async fn until_called(scene: &Scene, count: usize) {
    eventually_ok(SOON, "cancels arrive", async || {
        match scene.gateway.calls(CANCEL).len() {
            calls if calls >= count => Ok(()),
            calls => Err(calls),
        }
    })
    .await;
}

/// Lines of the log with this message, as JSON.
fn log(worker: &Worker, message: &str) -> Vec<Value> {
    let log = worker.log();
    let lines = log
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok());
    lines
        .filter(|line: &Value| line["message"] == message)
        .collect()
}

#[tokio::test]
async fn a_trace_goes_from_the_command_through_the_call_to_the_event() {
    let collector = Collector::start().await;
    let mut stage = Stage::new()
        .await
        .set("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint())
        .set("OTEL_EXPORTER_OTLP_HEADERS", "x-key=abc")
        .set("OTEL_BSP_SCHEDULE_DELAY", 50);
    let gate = Gate::shut();
    let held = gate.clone();
    stage.scene.orders.instead(move |call| {
        (call.is_cancel() && call.has("QC2")).then(|| {
            let numbers: Vec<&str> = vec!["QC1", "QC2"];
            Answer::orders(&numbers, &[]).behind(&held)
        })
    });
    let mut worker = stage.scene.worker().await;
    let first = Command::orders(["QC1", "QC2"])
        .id("first")
        .correlation_id("talk")
        .header("traceparent", &format!("00-{TRACE}-{PUBLISHER}-01"))
        .header("tracestate", "vendor=1");
    stage.amqp.send(&first).await;
    until_called(&stage.scene, 1).await;
    // While the call is under way, two more commands wait for what it brings.
    stage
        .amqp
        .send(&Command::orders(["QC1"]).id("second"))
        .await;
    let unsampled = Command::orders(["QC1"])
        .id("third")
        .header("traceparent", &format!("00-{TRACE}-{PUBLISHER}-00"));
    stage.amqp.send(&unsampled).await;
    until_sum(&worker, "wdt_commands_in_hand", &[], 3.0).await;
    gate.open();
    let mut told = stage.results.collect(4, SOON).await;
    told.sort_by_key(|e| (e.text("command_id").to_owned(), e.body["index"].as_u64()));
    let [a, a2, b, c] = told.as_slice() else {
        panic!("{told:#?}")
    };

    // The events name the command's span, whose parent is the publisher's.
    let (span, second, call) = collector
        .until(SOON, "the spans of two commands and a call", |spans| {
            let call = spans
                .iter()
                .find(|span| span.kind == CLIENT && span.name.contains(CANCEL));
            Some((span_of(spans, a)?, span_of(spans, b)?, call?.clone()))
        })
        .await;
    assert_eq!(step(a), step(a2));
    assert_eq!(span.trace_id, TRACE);
    assert_eq!(span.parent, PUBLISHER);
    assert_eq!(a.headers["tracestate"], "vendor=1");
    assert_eq!(
        (span.kind, &*span.name),
        (CONSUMER, "process wdt.cancel.commands")
    );
    assert_eq!(span.service, "wdt-cancel-worker");
    has(
        &span,
        &[
            ("messaging.system", json!("rabbitmq")),
            ("messaging.operation.type", json!("process")),
            ("messaging.destination.name", json!(COMMANDS)),
            ("messaging.message.id", json!("first")),
            ("messaging.message.conversation_id", json!("talk")),
            ("wdt.account", json!("default")),
            ("wdt.orders", json!(2)),
            ("wdt.cancelled", json!(2)),
        ],
    );
    assert_ne!(second.trace_id, TRACE);
    assert_eq!(second.parent, "");
    // A trace that nobody records is handed on, and no more.
    let (trace, quiet, flags) = step(c);
    assert_eq!((&*trace, &*flags), (TRACE, "00"));
    assert_ne!(quiet, PUBLISHER);

    // The call is in the trace of the command that brought it about, and is linked to all of them.
    assert_eq!(call.trace_id, TRACE);
    assert_eq!(call.parent, span.span_id);
    let mut links = call.links.clone();
    links.sort();
    let mut expected = [a, b, c].map(|event| {
        let (trace, span, _) = step(event);
        (trace, span)
    });
    expected.sort();
    assert_eq!(links, expected);
    let port: u16 = {
        let url = stage.scene.gateway.url();
        let authority = url.split('/').nth(2).unwrap().to_owned();
        authority.rsplit_once(':').unwrap().1.parse().unwrap()
    };
    has(
        &call,
        &[
            ("http.request.method", json!("POST")),
            ("http.response.status_code", json!(200)),
            ("server.address", json!("127.0.0.1")),
            ("server.port", json!(port)),
            ("url.full", json!(stage.scene.gateway.url())),
            ("wdt.order_nos", json!(["QC1", "QC2"])),
        ],
    );
    assert_eq!((call.status, span.status), (0, 0));
    assert!(call.nanoseconds <= span.nanoseconds, "{call:?} {span:?}");

    // What ends badly is an error, the gateway's words with it.
    stage.scene.orders.instead(|call| {
        let broken = Answer::status(100, "不能为空");
        (call.is_cancel() && call.has("BAD")).then_some(broken)
    });
    let failed = stage.told(&Command::orders(["BAD"]).id("bad"), 1).await;
    let (bad, refused) = collector
        .until(SOON, "the spans of what went wrong", |spans| {
            let bad = span_of(spans, &failed[0])?;
            let mut calls = spans.iter().filter(|s| s.kind == CLIENT);
            let call = calls.find(|call| call.parent == bad.span_id)?;
            Some((bad, call.clone()))
        })
        .await;
    assert_eq!((bad.status, refused.status), (ERROR, ERROR));
    has(&bad, &[("error.type", json!("unsettled"))]);
    has(&refused, &[("error.type", json!("status"))]);

    assert_eq!(worker.terminate(LATER).await, 0);
    // Whatever was sent is protobuf with the headers that were asked for, and no signature.
    let spans = collector.spans();
    assert!(!spans.iter().any(|s| s.span_id == quiet), "{spans:#?}");
    let (heads, bytes) = collector.raw();
    assert!(heads.iter().all(|head| {
        head.starts_with("post /v1/traces ")
            && head.contains("content-type: application/x-protobuf")
            && head.contains("x-key: abc")
    }));
    assert!(!String::from_utf8_lossy(&bytes).contains("sign="));
}

#[tokio::test]
async fn a_collector_that_is_mute_or_away_holds_nothing_up_and_is_told_of_once() {
    let (_listener, endpoint) = mute();
    let mut stage = Stage::new()
        .await
        .set("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", endpoint)
        .set("OTEL_EXPORTER_OTLP_TIMEOUT", 200)
        .set("OTEL_BSP_SCHEDULE_DELAY", 20)
        .set("OTEL_BSP_MAX_QUEUE_SIZE", 32)
        .set("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 16);
    let mut worker = stage.scene.worker().await;
    let load = Load::new(&stage.scene.orders, "QC", 300);
    load.send(&stage.amqp).await;
    load.is_told(&mut stage.results, LATER).await;
    stage.scene.queue_is_empty().await;
    // More than one batch, and by far not all: the queue is short.
    eventually_ok(SOON, "several batches fail", async || {
        match sum(&worker, "wdt_trace_spans_total", &[("result", "failed")]).await {
            failed if failed > 16.0 => Ok(()),
            failed => Err(failed),
        }
    })
    .await;
    let ended = sum(&worker, "wdt_trace_spans_total", &[("result", "ended")]).await;
    assert!(ended >= 300.0, "{ended}");
    assert_eq!(
        sum(&worker, "wdt_trace_spans_total", &[("result", "exported")]).await,
        0.0
    );
    assert_eq!(worker.terminate(LATER).await, 0);
    let told = worker.lines("traces cannot be exported");
    assert_eq!(told.len(), 1, "{told:#?}");
    assert!(told[0].contains("no answer in time"), "{told:#?}");
}

#[tokio::test]
async fn a_protocol_that_is_not_spoken_is_said_and_the_worker_works() {
    let mut stage = Stage::new()
        .await
        .set(
            "OTEL_EXPORTER_OTLP_ENDPOINT",
            "http://me:pass-word@127.0.0.1:1",
        )
        .set("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc");
    let worker = stage.scene.worker().await;
    let said = worker.logs(SOON, "no traces are exported").await;
    assert!(said.contains("OTEL_EXPORTER_OTLP_PROTOCOL") && said.contains("http/protobuf"));
    assert!(!worker.log().contains("pass-word"));
    drop(worker);
    let broken = stage.scene.setup.with("OTEL_EXPORTER_OTLP_PROTOCOL", "");
    let broken = broken.set(
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "http://me:pass-word@[broken/",
    );
    let worker = broken.start();
    let said = worker.logs(SOON, "no traces are exported").await;
    assert!(said.contains("http://collector:4318"), "{said}");
    assert!(!worker.log().contains("pass-word"));
    let told = stage.told(&Command::orders(["QC1"]), 1).await;
    assert_eq!(told[0].outcome(), "cancelled");
}

#[tokio::test]
async fn each_command_and_each_call_has_a_line_by_which_an_order_is_found() {
    let mut stage = Stage::new()
        .await
        .set("WDT_API__MAX_ORDERS_PER_CALL", 500)
        .set("WDT_RETRY__MAX_ATTEMPTS", 1);
    stage.scene.orders.refuse("SHIPPED", NOT_CANCELLABLE);
    stage.scene.orders.instead(|call| {
        let broken = Answer::status(100, "不能为空");
        (call.is_cancel() && call.has("BAD")).then_some(broken)
    });
    let mut worker = stage.scene.worker().await;
    let command = Command::orders(["QC1", "SHIPPED", "QC2"])
        .id("mixed")
        .header("traceparent", &format!("00-{TRACE}-{PUBLISHER}-01"));
    let told = stage.told(&command, 3).await;
    let many: Vec<String> = (0..250).map(|n| format!("MANY-{n}")).collect();
    stage.told(&Command::orders(&many).id("many"), 250).await;
    stage.told(&Command::orders(["BAD"]).id("bad"), 1).await;
    stage.told(&Command::raw("nonsense").id("odd"), 1).await;
    stage.scene.queue_is_empty().await;
    assert_eq!(worker.terminate(LATER).await, 0);

    let commands = log(&worker, "command");
    let of = |id: &str| -> Vec<&Value> {
        commands
            .iter()
            .filter(|line| line["command_id"] == id)
            .collect()
    };
    let [mixed] = of("mixed")[..] else {
        panic!("{commands:#?}")
    };
    let (_, span, _) = step(&told[0]);
    for (field, expected) in [
        ("level", json!("INFO")),
        ("account", json!("default")),
        ("end", json!("acknowledged")),
        ("orders", json!(3)),
        ("cancelled", json!("QC1, QC2")),
        ("refused", json!("SHIPPED")),
        ("unknown", Value::Null),
        ("reasons", json!("order_state")),
        ("trace_id", json!(TRACE)),
        ("span_id", json!(span)),
    ] {
        assert_eq!(mixed[field], expected, "{field} of {mixed:#?}");
    }
    assert!(mixed["duration_ms"].as_u64().is_some(), "{mixed:#?}");

    // A long one has as many lines as it takes, each short.
    let parts = of("many");
    assert_eq!(parts.len(), 3, "{parts:#?}");
    let named: Vec<&str> = parts
        .iter()
        .flat_map(|line| line["cancelled"].as_str().unwrap().split(", "))
        .collect();
    assert_eq!(named, many);
    assert!(
        parts
            .iter()
            .all(|line| line["parts"] == 3 && line["orders"] == 250)
    );

    let [bad] = of("bad")[..] else {
        panic!("{commands:#?}")
    };
    assert_eq!(
        (&bad["failed"], &bad["reasons"]),
        (&json!("BAD"), &json!("api_refused_call"))
    );
    assert_eq!(
        (&bad["end"], &bad["dead_reason"]),
        (&json!("dead_lettered"), &json!("unsettled"))
    );
    let [odd] = of("odd")[..] else {
        panic!("{commands:#?}")
    };
    assert_eq!(
        (&odd["rejected"], &odd["reasons"]),
        (&json!("-"), &json!("malformed"))
    );
    assert_eq!(
        (&odd["account"], &odd["dead_reason"]),
        (&json!("_"), &json!("unreadable"))
    );

    let calls = log(&worker, "call");
    let call = calls
        .iter()
        .find(|line| line["order_nos"] == "QC1, SHIPPED, QC2");
    let call = call.unwrap_or_else(|| panic!("{calls:#?}"));
    assert_eq!(
        (&call["method"], &call["orders"]),
        (&json!("cancel"), &json!(3))
    );
    assert_eq!(call["http.response.status_code"], 200);
    let refused = calls.iter().find(|line| line["order_nos"] == "BAD");
    assert_eq!(refused.unwrap()["result"], "status 100: 不能为空");
}

#[tokio::test]
async fn a_log_that_nobody_reads_holds_nothing_up() {
    let mut stage = Stage::new().await.set("RUST_LOG", "debug");
    // A pipe takes 64 KiB, and then whoever writes to it waits.
    let pipe = stage.scene.setup.dir().join("pipe").display().to_string();
    let through = ["sh", "-c", r#"mkfifo "$0" && exec "$@" 2<>"$0""#, &pipe];
    let mut worker = stage.scene.setup.start_through(&through, &["run"]);
    worker.wait_ready(LATER).await;
    let load = Load::new(&stage.scene.orders, "QC", 1000);
    load.send(&stage.amqp).await;
    load.is_told(&mut stage.results, LATER).await;
    stage.scene.queue_is_empty().await;
    assert_eq!(sum(&worker, "wdt_log_lines_dropped_total", &[]).await, 0.0);
    // What is left is not written, and waited for no longer than for a moment.
    assert_eq!(worker.terminate(SOON).await, 0);
}

#[tokio::test]
async fn metrics_tell_what_happened() {
    let mut stage = Stage::new().await.set("WDT_API__CONCURRENCY", 1);
    stage.scene.orders.refuse("SHIPPED", NOT_CANCELLABLE);
    let gate = Gate::shut();
    let held = gate.clone();
    let mut lost = false;
    stage.scene.orders.afterwards(move |call| {
        if call.is_cancel() && call.has("LOST") && !std::mem::replace(&mut lost, true) {
            return Some(Answer::http(500, "text/html", "broken"));
        }
        (call.is_cancel() && call.has("HELD")).then(|| Answer::orders(&["HELD"], &[]).behind(&held))
    });
    let mut busy = false;
    stage.scene.orders.instead(move |call| {
        let first = call.is_cancel() && call.has("BUSY") && !std::mem::replace(&mut busy, true);
        first.then(|| Answer::orders(&[], &[("BUSY", "请稍后重试")]))
    });
    let mut worker = stage.scene.worker().await;

    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap();
    let first = Command::orders(["QC1", "QC2", "SHIPPED"])
        .id("first")
        .timestamp(now.as_secs() - 3);
    stage.told(&first, 3).await;
    // Told from the ledger; told by another command's call; looked up; tried again.
    stage.told(&first, 3).await;
    stage.told(&Command::orders(["QC1"]).id("later"), 1).await;
    stage.told(&Command::orders(["LOST"]).id("lost"), 1).await;
    stage.told(&Command::orders(["BUSY"]).id("busy"), 1).await;
    stage.told(&Command::raw("nonsense"), 1).await;
    stage.amqp.send(&Command::orders(["HELD"]).id("held")).await;
    until_called(&stage.scene, 5).await;
    stage
        .amqp
        .send(&Command::orders(["HELD"]).id("joins"))
        .await;
    until_sum(&worker, "wdt_commands_in_hand", &[], 2.0).await;
    until_sum(
        &worker,
        "wdt_calls_in_flight",
        &[("account", "default")],
        1.0,
    )
    .await;
    until_sum(&worker, "wdt_deliveries_unsettled", &[], 2.0).await;
    let (_, text) = worker.get("/metrics").await.unwrap();
    eventually_ok(SOON, "the oldest command ages", async || {
        match sum(&worker, "wdt_oldest_command_age_seconds", &[]).await {
            age if age > 0.0 => Ok(()),
            age => Err(age),
        }
    })
    .await;
    gate.open();
    stage.results.collect(2, SOON).await;
    stage.scene.queue_is_empty().await;

    let default = ("account", "default");
    for (name, labels, expected) in [
        (
            "wdt_orders_total",
            &[default, ("outcome", "cancelled")][..],
            9.0,
        ),
        ("wdt_orders_total", &[default, ("outcome", "refused")], 2.0),
        (
            "wdt_orders_total",
            &[("account", "_"), ("outcome", "rejected")],
            1.0,
        ),
        (
            "wdt_commands_total",
            &[default, ("result", "accepted")],
            7.0,
        ),
        (
            "wdt_commands_total",
            &[("account", "_"), ("result", "malformed")],
            1.0,
        ),
        ("wdt_commands_acknowledged_total", &[], 8.0),
        (
            "wdt_commands_dead_lettered_total",
            &[("reason", "unreadable")],
            1.0,
        ),
        // Three of the list, and one of it for free twice over.
        ("wdt_calls_saved_total", &[default, ("by", "list")], 2.0),
        ("wdt_calls_saved_total", &[default, ("by", "ledger")], 4.0),
        ("wdt_calls_saved_total", &[default, ("by", "joined")], 1.0),
        ("wdt_retries_total", &[default, ("cause", "busy")], 1.0),
        ("wdt_retries_total", &[], 1.0),
        (
            "wdt_look_ups_wanted_total",
            &[default, ("cause", "no_clear_answer")],
            1.0,
        ),
        ("wdt_look_ups_wanted_total", &[], 1.0),
        (
            "wdt_calls_total",
            &[default, ("method", "cancel"), ("result", "ok")],
            4.0,
        ),
        (
            "wdt_calls_total",
            &[default, ("method", "cancel"), ("result", "garbled")],
            1.0,
        ),
        (
            "wdt_calls_total",
            &[default, ("method", "look_up"), ("result", "ok")],
            1.0,
        ),
        (
            "http_client_request_duration_seconds_count",
            &[("wdt_method", "cancel")],
            5.0,
        ),
        (
            "http_client_request_duration_seconds_count",
            &[
                ("http_response_status_code", "500"),
                ("error_type", "garbled"),
            ],
            1.0,
        ),
        (
            "messaging_client_consumed_messages_total",
            &[("messaging_destination_name", COMMANDS)],
            8.0,
        ),
        (
            "messaging_client_sent_messages_total",
            &[("error_type", "")],
            13.0,
        ),
        (
            "messaging_process_duration_seconds_count",
            &[("messaging_system", "rabbitmq")],
            8.0,
        ),
        ("wdt_arrival_to_event_seconds_count", &[], 12.0),
        ("wdt_publish_to_event_seconds_count", &[], 6.0),
        ("wdt_queue_oldest_age_seconds", &[], 0.0),
        ("wdt_queue_consumers", &[], 1.0),
        ("wdt_account_callable", &[default], 1.0),
        (
            "wdt_check_state",
            &[("check", "account"), default, ("state", "ok")],
            1.0,
        ),
        ("wdt_check_state", &[("state", "failing")], 0.0),
        ("wdt_intake_open", &[], 1.0),
        ("wdt_ready", &[], 1.0),
        ("wdt_dry_run", &[], 0.0),
        (
            "wdt_build_info",
            &[("version", env!("CARGO_PKG_VERSION"))],
            1.0,
        ),
        ("wdt_log_lines_dropped_total", &[], 0.0),
    ] {
        until_sum(&worker, name, labels, expected).await;
    }
    let published = sum(&worker, "wdt_publish_to_event_seconds_sum", &[]).await;
    assert!(
        (9.0..120.0).contains(&published),
        "{published}, of what was published 3 s ago"
    );
    for name in [
        "wdt_ledger_duration_seconds_count",
        "wdt_ledger_commits_total",
        "wdt_queue_looked_timestamp_seconds",
        "process_resident_memory_bytes",
        "process_open_fds",
        "process_start_time_seconds",
    ] {
        assert!(sum(&worker, name, &[]).await > 0.0, "{name}");
    }
    // As many series as there are things to tell apart, whatever was sent.
    let before = text.lines().count();
    for n in 0..20 {
        let command = Command::orders([format!("MORE-{n}")]).id(&format!("more-{n}"));
        stage
            .told(&command.field("account", format!("nobody-{n}")), 1)
            .await;
    }
    let (_, text) = worker.get("/metrics").await.unwrap();
    let after = text.lines().count();
    assert!(after <= before + 60, "{before} lines, then {after}: {text}");
    assert!(
        !text.contains("nobody-") && !text.contains("MORE-"),
        "{text}"
    );
    assert_eq!(worker.terminate(LATER).await, 0);
}

#[tokio::test]
async fn readiness_says_since_when_what_and_what_to_do() {
    let scene = Scene::fresh().await;
    let worker = scene.worker().await;
    let checks = async || {
        let (status, page) = worker.readiness().await?;
        let checks = page["checks"].as_array()?.clone();
        Some((status, checks))
    };
    let named = |checks: &[Value], name: &str| {
        let mut checks = checks.iter();
        checks.find(|check| check["name"] == name).cloned()
    };
    // The exchange is new and nothing is bound to it: of use, but somebody should see to it.
    let (status, found) = checks().await.unwrap();
    assert_eq!(status, 200);
    let names: Vec<&str> = found.iter().map(|c| c["name"].as_str().unwrap()).collect();
    let all = [
        "broker",
        "intake",
        "results",
        "ledger",
        "clock",
        "account default",
    ];
    assert_eq!(names, all);
    let results = named(&found, "results").unwrap();
    assert_eq!(results["state"], "degraded", "{results}");
    assert!(
        results["remedy"]
            .as_str()
            .unwrap()
            .contains("wdt-cancel-worker bind")
    );
    for check in &found {
        let since = check["since"].as_str().unwrap_or_else(|| panic!("{check}"));
        since.parse::<jiff::Timestamp>().unwrap();
    }
    let intake = eventually(SOON, "the queue was looked at", async || {
        let intake = named(&checks().await?.1, "intake")?;
        let detail = intake["detail"].as_str()?;
        detail.contains("consumers at the queue").then_some(intake)
    })
    .await;
    assert!(
        intake["detail"]
            .as_str()
            .unwrap()
            .starts_with("prefetch 32"),
        "{intake}"
    );

    let amqp = scene.amqp().await;
    let mut inbox = amqp.results().await;
    amqp.send(&Command::orders(["QC1"])).await;
    inbox.collect(1, SOON).await;
    let results = eventually(SOON, "results are told", async || {
        let results = named(&checks().await?.1, "results")?;
        (results["state"] == "ok").then_some(results)
    })
    .await;
    assert!(
        results["detail"]
            .as_str()
            .unwrap()
            .contains("last confirmed at")
    );
}

#[tokio::test]
async fn a_clock_that_is_off_is_said_before_it_matters() {
    let scene = Scene::fresh().await;
    scene.gateway.set_clock_ahead(90);
    let worker = scene.worker().await;
    let clock = eventually(SOON, "the clock is degraded", async || {
        let (status, page) = worker.readiness().await?;
        let mut checks = page["checks"].as_array()?.iter();
        let clock = checks.find(|check| check["name"] == "clock")?.clone();
        (status == 200 && clock["state"] == "degraded").then_some(clock)
    })
    .await;
    let cause = clock["cause"].as_str().unwrap();
    assert!(cause.contains("ahead of ours"), "{clock}");
    let seconds: u64 = cause.split(' ').find_map(|word| word.parse().ok()).unwrap();
    assert!((88..=92).contains(&seconds), "{clock}");
    assert!(clock["remedy"].as_str().unwrap().contains("NTP"), "{clock}");
}
