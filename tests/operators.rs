//! What operators do with a worker: its dead letters, its accounts, its pages.
#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, its helpers too"
)]

mod support;

use std::path::Path;
use std::time::Duration;

use lapin::options::{BasicGetOptions, BasicNackOptions};
use lapin::types::{AMQPValue, FieldTable};
use serde_json::Value;
use support::amqp::{Amqp, COMMANDS, Command, DEAD};
use support::disk::{ledger_of, run};
use support::eventually::eventually_ok;
use support::gateway::Account;
use support::process::fresh_dir;
use support::scene::{LATER, Scene};
use support::worker::Worker;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

// Dead letters

/// The dead-letter queue as somebody else declares it on a broker with a limit of its own.
async fn strangers_queue(amqp: &Amqp) {
    let mut arguments = FieldTable::default();
    arguments.insert(
        "x-queue-type".into(),
        AMQPValue::LongString("quorum".into()),
    );
    arguments.insert("x-delivery-limit".into(), AMQPValue::LongLongInt(20));
    amqp.declare_queue(DEAD, arguments).await;
}

fn letter(id: &str, order: &str, account: &str, reason: &str) -> Command {
    Command::orders([order])
        .id(id)
        .field("account", account)
        .header("x-wdt-dead-reason", reason)
        .header("x-wdt-account", account)
}

/// The ids in a listing as JSON, in its sequence.
fn ids(printed: &str) -> Vec<String> {
    let lines = printed.lines().filter(|line| line.starts_with('{'));
    lines
        .map(|line| {
            let letter: Value = serde_json::from_str(line).unwrap();
            letter["command_id"].as_str().unwrap_or("none").to_owned()
        })
        .collect()
}

#[tokio::test]
async fn dead_letters_are_looked_at_and_stay_in_their_places() {
    let scene = Scene::fresh().await;
    let amqp = scene.amqp().await;
    let (code, printed) = run(&scene, &["dead", "list"]).await;
    assert_eq!(code, 1, "{printed}");
    assert!(printed.contains("does not exist"), "{printed}");
    strangers_queue(&amqp).await;
    let letters = [
        letter("c1", "A", "default", "failed"),
        letter("c2", "B", "east", "unknown"),
        Command::raw("\u{1b}[31mnonsense").header("x-wdt-dead-reason", "malformed"),
    ];
    amqp.send_all(DEAD, &letters).await;
    let check = async |filter: &[&str], expected: &[&str]| {
        let args = [&["dead", "list", "--json"], filter].concat();
        let (code, printed) = run(&scene, &args).await;
        assert_eq!(code, 0, "{printed}");
        assert_eq!(ids(&printed), expected, "{filter:?}: {printed}");
    };
    check(&[], &["c1", "c2", "none"]).await;
    check(&["--reason", "unknown"], &["c2"]).await;
    check(&["--account", "default", "--order", "B"], &[]).await;
    check(&["c1"], &["c1"]).await;
    check(&["--older-than", "1s"], &[]).await;
    let (_, table) = run(&scene, &["dead", "list"]).await;
    assert!(table.contains("COMMAND") && table.contains("c2"), "{table}");
    let (code, whole) = run(&scene, &["dead", "show", "--reason", "malformed"]).await;
    assert_eq!(code, 0, "{whole}");
    assert!(whole.contains(r"\u001b[31mnonsense"), "{whole}");

    // However often it was looked at, no limit is met.
    let channel = amqp.channel().await;
    for _ in 0..12 {
        let mut last = None;
        let get = BasicGetOptions::default;
        while let Some(got) = channel.basic_get(DEAD.into(), get()).await.unwrap() {
            last = Some(got.delivery.delivery_tag);
        }
        let all = BasicNackOptions {
            multiple: true,
            requeue: true,
        };
        channel.basic_nack(last.unwrap(), all).await.unwrap();
        scene.vhost.queue_holds(LATER, DEAD, 3, 0).await;
    }
    for _ in 0..3 {
        let (code, printed) = run(&scene, &["dead", "list", "--json"]).await;
        assert_eq!((code, ids(&printed).len()), (0, 3), "{printed}");
    }
    let inbox = &mut amqp.dead().await;
    let mut count = 0;
    for message in inbox.collect(3, LATER).await {
        let returns = message
            .headers
            .get("x-delivery-count")
            .and_then(Value::as_i64);
        assert!(returns.unwrap_or(0) < 10, "{message:#?}");
        // A letter without an id gets one where it is put there anew, which needs not be where looks
        // do not count as returns (RabbitMQ 4.3).
        let looks_count = !message.headers.contains_key("x-acquired-count");
        assert!(message.message_id.is_some() || !looks_count, "{message:#?}");
        count += 1;
    }
    assert_eq!(count, 3);
}

#[tokio::test]
async fn a_replayed_letter_is_the_same_command() {
    let scene = Scene::fresh().await.set("WDT_RETRY__MAX_AGE", "1s");
    let amqp = scene.amqp().await;
    let results = &mut amqp.results().await;
    let mut worker = scene.worker().await;
    scene.gateway.down();
    let command = Command::orders(["A", "B"])
        .id("c1")
        .correlation_id("corr")
        .header("x-mine", "kept");
    amqp.send(&command).await;
    amqp.send(&Command::orders(["C"]).id("c2")).await;
    for event in results.collect(3, LATER).await {
        assert_eq!(event.outcome(), "failed", "{event:#?}");
    }
    scene.vhost.queue_holds(LATER, DEAD, 2, 0).await;
    scene.gateway.up();

    let (code, printed) = run(&scene, &["dead", "replay"]).await;
    assert_eq!(code, 64, "which, nobody said: {printed}");
    let (code, printed) = run(&scene, &["dead", "replay", "c1", "--dry-run"]).await;
    assert_eq!(code, 0, "{printed}");
    assert!(
        printed.contains("letters that would be sent: 1;"),
        "{printed}"
    );
    scene.vhost.queue_holds(LATER, DEAD, 2, 0).await;

    // A crash of the one who sends, between the confirm and the removal, leaves a twin here.
    let crash = Command::orders(["A", "B"])
        .id("c1")
        .correlation_id("corr")
        .header("x-mine", "kept")
        .header("x-wdt-dead-reason", "failed");
    for (round, replayed) in [(0, false), (1, true)] {
        if round == 1 {
            amqp.send_to(DEAD, &crash).await;
        }
        let (code, printed) = run(&scene, &["dead", "replay", "--order", "B"]).await;
        assert_eq!(code, 0, "{printed}");
        assert!(
            printed.contains("letters sent to wdt.cancel.commands: 1\n"),
            "{printed}"
        );
        for event in results.collect(2, LATER).await {
            assert_eq!(event.outcome(), "cancelled", "{event:#?}");
            assert_eq!(event.body["command_id"], "c1");
            assert_eq!(event.body["replayed"], replayed, "{event:#?}");
            assert_eq!(event.correlation_id.as_deref(), Some("corr"));
        }
    }
    for order in ["A", "B"] {
        assert_eq!(scene.orders.times_executed(order), 1, "{order}");
    }
    scene.vhost.queue_holds(LATER, DEAD, 1, 0).await;
    assert_eq!(worker.terminate(LATER).await, 0);

    // What arrives: its own headers and id, and nothing of its death.
    let (code, printed) = run(&scene, &["dead", "replay", "--all"]).await;
    assert_eq!(code, 0, "{printed}");
    let message = &amqp.inbox(COMMANDS).await.collect(1, LATER).await[0];
    assert_eq!(message.message_id.as_deref(), Some("c2"));
    let names: Vec<&str> = message.headers.keys().map(String::as_str).collect();
    assert_eq!(names, ["x-wdt-replays"], "{message:#?}");
}

#[tokio::test]
async fn what_is_removed_is_written_down() {
    let scene = Scene::fresh().await;
    let amqp = scene.amqp().await;
    strangers_queue(&amqp).await;
    let letters = [
        letter("c1", "A", "default", "failed"),
        letter("c2", "B", "default", "failed"),
        letter("c3", "C", "default", "unknown"),
    ];
    amqp.send_all(DEAD, &letters).await;
    let reason = ["dead", "drop", "--reason", "failed"];
    let (code, printed) = run(&scene, &reason).await;
    assert_eq!(code, 64, "nobody can be asked: {printed}");
    let (code, _) = run(&scene, &[&reason[..], &["--dry-run"]].concat()).await;
    assert_eq!(code, 0);
    scene.vhost.queue_holds(LATER, DEAD, 3, 0).await;
    let (code, printed) = run(&scene, &[&reason[..], &["--yes"]].concat()).await;
    assert_eq!(code, 0, "{printed}");
    let written: Vec<Value> = printed
        .lines()
        .filter(|line| line.starts_with('{'))
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(written.len(), 2, "{printed}");
    for (written, sent) in written.iter().zip(&letters) {
        assert_eq!(written["body"].as_str().unwrap().as_bytes(), sent.body());
        assert_eq!(written["headers"]["x-wdt-dead-reason"], "failed");
    }
    scene.vhost.queue_holds(LATER, DEAD, 1, 0).await;
}

// Accounts

const TOKEN: &str = "a-token-for-the-tests";

/// Runs a subcommand beside this worker: it finds the same listener.
async fn beside(scene: &Scene, worker: &Worker, args: &[&str]) -> (i32, String) {
    let listen = format!("127.0.0.1:{}", worker.admin());
    let setup = scene.setup.with("WDT_ADMIN__LISTEN", listen);
    let mut process = setup.start_with(args);
    let code = process.exit_code(LATER).await;
    (code, process.log())
}

async fn state_of(worker: &Worker, check: &str) -> Value {
    let (status, page) = worker.readiness().await.unwrap();
    assert_eq!(status, 200, "a paused account is no fault: {page}");
    let checks = page["checks"].as_array().unwrap();
    checks.iter().find(|c| c["name"] == check).unwrap().clone()
}

#[tokio::test]
async fn a_paused_account_is_not_called_until_it_is_resumed() {
    let scene = Scene::fresh().await;
    let amqp = scene.amqp().await;
    let results = &mut amqp.results().await;
    let mut worker = scene.worker().await;
    let (code, printed) = beside(&scene, &worker, &["pause", "default"]).await;
    assert_eq!(code, 64, "nobody may without a token: {printed}");
    assert!(printed.contains("admin.token"), "{printed}");
    assert_eq!(worker.terminate(LATER).await, 0);

    let scene = scene.set("WDT_ADMIN__TOKEN", TOKEN);
    let mut worker = scene.worker().await;
    let (code, printed) = beside(&scene, &worker, &["pause", "nobody"]).await;
    assert_eq!(code, 64, "{printed}");
    let (code, printed) = beside(&scene, &worker, &["pause", "--all", "--by", "li"]).await;
    assert_eq!(code, 0, "{printed}");
    let state = state_of(&worker, "account default").await;
    assert_eq!(state["state"], "paused", "{state}");
    assert!(state["cause"].as_str().unwrap().contains("li (127.0.0.1)"));
    let series = "wdt_account_paused{account=\"default\",cause=\"operator\"}";
    assert_eq!(worker.metric(series).await, Some(1.0));
    amqp.send(&Command::orders(["A"]).id("c1")).await;
    scene.vhost.queue_holds(LATER, COMMANDS, 0, 1).await;

    // It stays so over a restart, and a crash.
    for graceful in [true, false] {
        if graceful {
            assert_eq!(worker.terminate(LATER).await, 0);
        } else {
            worker.kill9();
        }
        worker = scene.worker().await;
        scene.vhost.queue_holds(LATER, COMMANDS, 0, 1).await;
        let state = state_of(&worker, "account default").await;
        assert_eq!(state["state"], "paused", "{state}");
    }
    results.stays_empty(Duration::from_secs(1)).await;
    assert_eq!(scene.orders.times_sent("A"), 0);

    let (code, printed) = beside(&scene, &worker, &["resume", "default"]).await;
    assert_eq!(code, 0, "{printed}");
    let event = &results.collect(1, LATER).await[0];
    assert_eq!(event.outcome(), "cancelled");

    // Without a worker, the ledger itself is written to.
    assert_eq!(worker.terminate(LATER).await, 0);
    let (code, printed) = run(&scene, &["pause", "default"]).await;
    assert_eq!(code, 0, "{printed}");
    let mut worker = scene.worker().await;
    assert_eq!(
        state_of(&worker, "account default").await["state"],
        "paused"
    );
    assert_eq!(worker.terminate(LATER).await, 0);
}

// Stories

#[tokio::test]
async fn what_became_of_an_order_is_told_beside_the_worker_and_after_it() {
    let scene = Scene::fresh().await;
    scene.orders.refuse("QC2", "已发货");
    let amqp = scene.amqp().await;
    let results = &mut amqp.results().await;
    let mut worker = scene.worker().await;
    amqp.send(&Command::orders(["QC1", "QC2"]).id("c1")).await;
    results.collect(2, LATER).await;
    amqp.send(&Command::orders(["QC1"]).id("c2")).await;
    results.collect(1, LATER).await;
    // What is noted is written within a second.
    let ask = ["order", "QC1", "QC2"];
    let story = eventually_ok(LATER, "the last event is noted", async || {
        let (code, story) = run(&scene, &ask).await;
        let is_whole = code == 0 && story.contains("event to command c2");
        if is_whole { Ok(story) } else { Err(story) }
    })
    .await;
    for told in [
        "order QC1 of account default: cancelled, after 1 call",
        "order QC2 of account default: refused (order_refused) \"已发货\", after 1 call",
        "command c1 came, 2 orders",
        "its attempt 1, in a list of 2 orders",
        "HTTP 200, status 0",
        "of the order: cancelled",
        "of the order: refused, \"已发货\"",
        "command c2: cancelled; confirmed ",
        "event to command c2: cancelled (replayed)",
    ] {
        assert!(story.contains(told), "{told}: {story}");
    }
    let (code, printed) = run(&scene, &["order", "QC2", "QC3", "--json"]).await;
    assert_eq!(code, 1, "{printed}");
    assert!(printed.contains("order QC3 is not known"), "{printed}");
    let (code, printed) = run(&scene, &["order", "QC1", "--account", "no one"]).await;
    assert_eq!(code, 64, "{printed}");
    assert_eq!(worker.terminate(LATER).await, 0);

    let (code, printed) = run(&scene, &["command", "c1"]).await;
    assert_eq!(code, 0, "{printed}");
    for told in [
        "order QC1: cancelled; confirmed",
        "order QC2: refused (order_refused)",
    ] {
        assert!(printed.contains(told), "{told}: {printed}");
    }
    assert_eq!(run(&scene, &["command", "c3"]).await.0, 1);
}

#[tokio::test]
async fn the_audit_finds_what_was_changed() {
    let scene = Scene::fresh().await;
    let amqp = scene.amqp().await;
    let results = &mut amqp.results().await;
    for (command, order) in [("c1", "QC1"), ("c2", "QC2")] {
        let mut worker = scene.worker().await;
        amqp.send(&Command::orders([order]).id(command)).await;
        results.collect(1, LATER).await;
        assert_eq!(worker.terminate(LATER).await, 0);
    }
    let (code, printed) = run(&scene, &["audit", "verify"]).await;
    assert_eq!(code, 0, "{printed}");
    assert!(
        printed.contains("the journal is whole; chains: 1"),
        "{printed}"
    );
    let (code, export) = run(&scene, &["audit", "export", "--since", "1h"]).await;
    assert_eq!(code, 0, "{export}");
    let lines: Vec<Value> = export
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert!(lines.len() > 3, "{export}");
    assert!(lines[0]["before"].is_string() && lines[0]["row"]["entries"].is_array());
    let file = scene.setup.dir().join("export.jsonl");
    let verify = ["audit", "verify", file.to_str().unwrap()];
    for (text, expected) in [
        (export.clone(), 0),
        (export.replace("QC2", "QC9"), 1),
        (export.lines().skip(1).collect::<Vec<_>>().join("\n"), 1),
    ] {
        std::fs::write(&file, text).unwrap();
        let (code, printed) = run(&scene, &verify).await;
        assert_eq!(code, expected, "{printed}");
    }
    let (code, printed) = run(&scene, &["audit", "export", "--since", "soon"]).await;
    assert_eq!(code, 64, "{printed}");

    let changed = rusqlite::Connection::open(ledger_of(&scene))
        .unwrap()
        .execute("UPDATE journal SET text = replace(text, 'QC1', 'QC7')", [])
        .unwrap();
    assert!(changed > 0);
    let (code, printed) = run(&scene, &["audit", "verify"]).await;
    assert_eq!(code, 1, "{printed}");
    assert!(printed.contains("was changed"), "{printed}");
}

// Pages

/// One request; status, head and body.
async fn ask(
    worker: &Worker,
    line: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> (u16, String, String) {
    let mut request = format!("{line} HTTP/1.1\r\nconnection: close\r\n");
    if !headers.iter().any(|(name, _)| *name == "host") {
        request += "host: localhost\r\n";
    }
    for (name, value) in headers {
        request += &format!("{name}: {value}\r\n");
    }
    if !body.is_empty() {
        request += "content-type: application/x-www-form-urlencoded\r\n";
    }
    request += &format!("content-length: {}\r\n\r\n{body}", body.len());
    let mut stream = TcpStream::connect(("127.0.0.1", worker.admin()))
        .await
        .unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    let reading = stream.read_to_string(&mut answer);
    timeout(LATER, reading).await.unwrap().unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, head.to_ascii_lowercase(), body.to_owned())
}

/// Logs in; the cookie.
async fn log_in(worker: &Worker) -> String {
    let form = format!("name=li&token={TOKEN}");
    let own = [("origin", "http://localhost")];
    let (status, head, body) = ask(worker, "POST /login", &own, &form).await;
    assert_eq!(status, 303, "{head}\n{body}");
    let cookie = head
        .lines()
        .find_map(|line| line.strip_prefix("set-cookie: "));
    let cookie = cookie.unwrap();
    assert!(cookie.contains("httponly") && cookie.contains("samesite=strict"));
    cookie.split(';').next().unwrap().to_owned()
}

#[tokio::test]
async fn pages_are_read_here_and_acted_on_with_a_token_from_our_own_page() {
    let scene = Scene::fresh().await.set("WDT_ADMIN__TOKEN", TOKEN);
    let mut worker = scene.worker().await;
    let status = async |line: &str, headers: &[(&str, &str)], body: &str| {
        ask(&worker, line, headers, body).await.0
    };
    for page in ["GET /", "GET /live", "GET /dead", "GET /login"] {
        let (status, head, body) = ask(&worker, page, &[], "").await;
        assert_eq!(status, 200, "{page}: {body}");
        let policy = head
            .lines()
            .find(|line| line.starts_with("content-security-policy"));
        let policy = policy.unwrap();
        assert!(
            policy.contains("default-src 'none'") && !policy.contains("unsafe"),
            "{policy}"
        );
        assert!(
            !body.contains("style=") && !body.contains("onclick"),
            "{body}"
        );
        assert!(
            !body.contains("http://") && !body.contains("https://"),
            "{body}"
        );
    }
    // Somebody else's name for this machine, or somebody who came through a proxy.
    for headers in [
        [("host", "evil.example"), ("a", "b")],
        [("host", "localhost"), ("x-forwarded-for", "192.0.2.1")],
    ] {
        for page in ["GET /", "GET /live", "GET /dead"] {
            assert_eq!(status(page, &headers, "").await, 401, "{page} {headers:?}");
        }
        for page in ["GET /livez", "GET /readyz", "GET /metrics"] {
            assert_eq!(status(page, &headers, "").await, 200, "{page} {headers:?}");
        }
    }
    let acts = [
        "POST /pause",
        "POST /resume",
        "POST /dead/replay",
        "POST /dead/drop",
    ];
    for line in acts {
        let own = [("origin", "http://localhost")];
        assert_eq!(status(line, &own, "all=1").await, 401, "{line}");
        let bearer = [("authorization", "Bearer something-else-altogether")];
        assert_eq!(status(line, &bearer, "all=1").await, 401, "{line}");
        assert_eq!(status(&line.replace("POST", "GET"), &[], "").await, 405);
    }
    let wrong = "name=li&token=wrong";
    let own = [("origin", "http://localhost")];
    assert_eq!(status("POST /login", &own, wrong).await, 401);
    let right = format!("name=li&token={TOKEN}");
    let other = [("origin", "http://evil.example")];
    assert_eq!(status("POST /login", &other, &right).await, 403);
    let cookie = log_in(&worker).await;
    for line in acts {
        for site in [
            ("origin", "http://evil.example"),
            ("sec-fetch-site", "cross-site"),
            ("x", "neither says anything"),
        ] {
            let headers = [("cookie", &*cookie), site];
            assert_eq!(
                status(line, &headers, "all=1").await,
                403,
                "{line} {site:?}"
            );
        }
    }
    let mine = [("cookie", &*cookie), ("origin", "http://localhost")];
    assert_eq!(status("POST /pause", &mine, "account=nobody").await, 404);
    assert_eq!(status("POST /pause", &mine, "account=default").await, 303);
    assert_eq!(
        state_of(&worker, "account default").await["state"],
        "paused"
    );
    let by = worker.logs(LATER, "an operator's wish").await;
    assert!(by.contains("li (127.0.0.1)"), "{by}");
    assert_eq!(status("POST /resume", &mine, "all=1").await, 303);
    assert_eq!(state_of(&worker, "account default").await["state"], "ok");
    assert_eq!(status("POST /logout", &mine, "x=1").await, 303);
    assert_eq!(status("POST /pause", &mine, "all=1").await, 401);
    assert!(!worker.log().contains(TOKEN));
    assert_eq!(worker.terminate(LATER).await, 0);
}

#[tokio::test]
async fn pages_show_what_happens_in_two_languages_and_nothing_that_somebody_sent_acts() {
    const SCRIPT: &str = "<script>alert('x')</script>";
    let scene = Scene::fresh().await.set("WDT_ADMIN__TOKEN", TOKEN);
    scene
        .orders
        .refuse(SCRIPT, "<img src=x onerror=y> 不允许取消");
    let amqp = scene.amqp().await;
    let results = &mut amqp.results().await;
    let mut worker = scene.worker().await;
    amqp.send(&Command::orders([SCRIPT, "QC-1"]).id("\"><b>c1"))
        .await;
    amqp.send(&Command::raw("nonsense <b>")).await;
    results.collect(3, LATER).await;
    scene.vhost.queue_holds(LATER, DEAD, 1, 0).await;
    let zh = [("accept-language", "zh-CN,zh;q=0.9,en;q=0.8")];
    let (_, _, english) = ask(&worker, "GET /", &[], "").await;
    let (_, _, chinese) = ask(&worker, "GET /", &zh, "").await;
    let (_, head, asked) = ask(&worker, "GET /?lang=zh", &[], "").await;
    assert!(head.contains("wdt_lang=zh"), "{head}");
    for (page, words) in [
        (&english, ["Latest outcomes", "Accounts", "lang=\"en\""]),
        (&chinese, ["最近结果", "账户", "lang=\"zh-CN\""]),
        (&asked, ["最近结果", "账户", "lang=\"zh-CN\""]),
    ] {
        for word in words {
            assert!(page.contains(word), "{word}: {page}");
        }
        // All of it without a script, which only fetches it anew.
        for shown in [
            "QC-1",
            "refused",
            "<svg",
            "http-equiv=\"refresh\"",
            "不允许取消",
        ] {
            assert!(page.contains(shown), "{shown}: {page}");
        }
        for raw in ["<script>alert", "<img", "<b>c1"] {
            assert!(!page.contains(raw), "{raw}: {page}");
        }
        assert_eq!(page.matches("<script").count(), 1, "{page}");
    }
    let (_, _, dead) = ask(&worker, "GET /dead?reason=unreadable", &zh, "").await;
    assert!(
        dead.contains("死信") && dead.contains("unreadable"),
        "{dead}"
    );
    assert!(dead.contains("nonsense &lt;b&gt;"), "{dead}");
    let (_, _, none) = ask(&worker, "GET /dead?order=%3Cb%3E", &[], "").await;
    assert!(
        !none.contains("unreadable") && none.contains("&lt;b&gt;"),
        "{none}"
    );
    let english: [(&str, &str); 0] = [];
    for (headers, address, shown) in [
        (
            &english[..],
            "?name=QC-1",
            ["cancelled", "c1 came, 2 orders"],
        ),
        (&zh, "?name=QC-1", ["cancelled", "2 个单号"]),
        (&zh, "?name=%22%3E%3Cb%3Ec1", ["不允许取消", "QC-1"]),
        (&zh, "?name=QC-1&account=south", ["没有此单号", "English"]),
        (
            &english,
            "?name=x&account=no+one",
            ["no such account", "中文"],
        ),
        (&english, "", ["ledger.retention", "中文"]),
    ] {
        // The other language's address asks for the same.
        let again = format!(
            "/story{}{}lang=",
            address.replace('&', "&amp;"),
            if address.is_empty() { "?" } else { "&amp;" }
        );
        let line = format!("GET /story{address}");
        eventually_ok(LATER, &line, async || {
            let (status, _, story) = ask(&worker, &line, headers, "").await;
            assert_eq!(status, 200, "{story}");
            assert!(
                !story.contains("<b>c1") && !story.contains("<img"),
                "{story}"
            );
            let is_whole =
                shown.iter().all(|words| story.contains(words)) && story.contains(&again);
            if is_whole { Ok(()) } else { Err(story) }
        })
        .await;
    }

    let cookie = log_in(&worker).await;
    let mine = [("cookie", &*cookie), ("origin", "http://localhost")];
    let (status, _, _) = ask(&worker, "POST /dead/replay", &mine, "id=").await;
    assert_eq!(status, 400, "which, nobody said");
    let (status, _, body) = ask(
        &worker,
        "POST /dead/replay",
        &mine,
        "all=1&reason=unreadable",
    )
    .await;
    assert_eq!(status, 200, "{body}");
    assert!(body.contains("1 letters done"), "{body}");
    let event = &results.collect(1, LATER).await[0];
    assert_eq!(event.reason_code(), "malformed");
    scene.vhost.queue_holds(LATER, DEAD, 1, 0).await;
    let (_, _, body) = ask(&worker, "POST /dead/drop", &mine, "all=1&reason=unreadable").await;
    assert!(body.contains("Remove for good?"), "{body}");
    scene.vhost.queue_holds(LATER, DEAD, 1, 0).await;
    let (_, head, body) = ask(
        &worker,
        "POST /dead/drop",
        &mine,
        "all=1&reason=unreadable&sure=1",
    )
    .await;
    assert!(head.contains("attachment"), "{head}");
    let letter: Value = serde_json::from_str(body.trim()).unwrap();
    assert_eq!(letter["body"], "nonsense <b>");
    scene.vhost.queue_holds(LATER, DEAD, 0, 0).await;
    let removed = worker.logs(LATER, "a dead letter was removed").await;
    assert!(removed.contains("li (127.0.0.1)") && removed.contains("nonsense"));
    assert_eq!(worker.terminate(LATER).await, 0);
}

/// Chromium's own word on a page: what its document is after the script has run, and a picture of it.
/// Nothing but this machine is reached.
fn chromium(url: &str, picture: &Path, width: u32, height: u32) -> String {
    let profile = fresh_dir("chromium");
    let size = format!("--window-size={width},{height}");
    let output = std::process::Command::new("timeout")
        .args([
            "60",
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
        ])
        .args([
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
        ])
        .args(["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"])
        .args([
            "--hide-scrollbars",
            "--virtual-time-budget=4000",
            "--enable-logging=stderr",
        ])
        .arg(format!("--user-data-dir={}", profile.display()))
        .arg(format!("--screenshot={}", picture.display()))
        .args([&size, "--dump-dom", url])
        .output()
        .unwrap();
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{log}");
    for complaint in ["Content Security Policy", "Uncaught"] {
        assert!(!log.contains(complaint), "{log}");
    }
    String::from_utf8_lossy(&output.stdout).into_owned()
}

const CHROMIUM: &str = "/usr/bin/chromium";

#[tokio::test(flavor = "multi_thread")]
async fn chromium_shows_the_page_and_its_script_fetches_it_anew() {
    if !Path::new(CHROMIUM).exists() {
        println!("there is no {CHROMIUM}, so the pages are not looked at in a browser");
        return;
    }
    let scene = Scene::fresh()
        .await
        .set("WDT_ADMIN__TOKEN", TOKEN)
        .set("WDT_API__CALLS_PER_MINUTE", 60)
        .set("WDT_API__MAX_ORDERS_PER_CALL", 20);
    let mut scene = scene;
    // Of the last one the gateway does not know the credentials.
    for (name, known_as) in [
        ("east", "default"),
        ("west", "default"),
        ("north", "nobody"),
    ] {
        scene.setup = scene.setup.account(name, &Account::named(known_as));
    }
    scene.orders.set("QC202611250007", 70);
    let amqp = scene.amqp().await;
    let results = &mut amqp.results().await;
    let mut worker = scene.worker().await;
    let auth = [
        ("authorization", "Bearer a-token-for-the-tests"),
        ("x-operator", "li"),
    ];
    assert_eq!(
        ask(&worker, "POST /pause", &auth, "account=west").await.0,
        200
    );
    let order = |n: usize| format!("QC2026112500{n:02}");
    for (account, orders) in [
        ("default", 0..12),
        ("east", 12..30),
        ("west", 30..37),
        ("north", 37..41),
    ] {
        let command = Command::orders(orders.map(order)).id(&format!("sap-prod-{account}"));
        amqp.send(&command.field("account", account)).await;
    }
    amqp.send(&Command::raw("not JSON").id("crm-7")).await;
    results.collect(31, LATER).await;
    scene.vhost.queue_holds(LATER, DEAD, 1, 0).await;
    let url = format!("http://127.0.0.1:{}", worker.admin());
    let folder = scene.setup.dir();
    for (name, path, width, height) in [
        ("desktop", "/", 1200, 1250),
        ("phone", "/?lang=zh", 500, 1500),
        ("dead", "/dead?lang=zh", 1200, 700),
        ("story", "/story?name=QC202611250007", 1200, 900),
    ] {
        let picture = folder.join(format!("{name}.png"));
        let page = chromium(&format!("{url}{path}"), &picture, width, height);
        println!("{name}: {}", picture.display());
        assert!(picture.exists());
        for shown in ["sap-prod-", "li (127.0.0.1)", "north"] {
            let is_overview = !path.contains("dead") && !path.contains("story");
            assert!(!is_overview || page.contains(shown), "{shown}: {page}");
        }
        assert!(!path.contains("dead") || page.contains("crm-7"), "{page}");
        assert!(
            !path.contains("story") || page.contains("refused"),
            "{page}"
        );
        // The script fetched it anew, and was answered.
        assert!(!page.contains("class=\"stale\""), "{page}");
    }
    // The one account that it does not know.
    let faults = scene.gateway.take_faults();
    let expected = |fault: &String| fault.contains("sid is not exists");
    assert!(faults.iter().all(expected), "{faults:?}");
    assert_eq!(worker.terminate(LATER).await, 0);
}
