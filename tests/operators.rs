//! What operators do with a worker: its dead letters, its accounts, its pages.
#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, its helpers too"
)]

mod support;

use lapin::options::{BasicGetOptions, BasicNackOptions};
use lapin::types::{AMQPValue, FieldTable};
use serde_json::Value;
use support::amqp::{Amqp, COMMANDS, Command, DEAD};
use support::disk::run;
use support::scene::{LATER, Scene};

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
        assert_ne!(message.message_id, None, "{message:#?}");
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
    assert!(printed.contains("1 letters would be sent"), "{printed}");
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
        assert!(printed.contains("1 letters sent"), "{printed}");
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
