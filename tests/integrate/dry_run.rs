//! `run --dry-run`: everything but the cancel, apart from the live worker in all that it touches.

use std::collections::BTreeMap;

use lapin::BasicProperties;
use lapin::options::BasicPublishOptions;
use lapin::types::{AMQPValue, FieldArray, FieldTable};

use super::support::amqp::{Amqp, COMMANDS, Command, DEAD, Inbox, Message};
use super::support::disk::refuses_to_start;
use super::support::gateway::{Answer, CANCEL};
use super::support::scene::{LATER, SOON, Scene};
use super::support::worker::Worker;

const DRY_COMMANDS: &str = "wdt.cancel.commands.dry-run";
const DRY_DEAD: &str = "wdt.cancel.commands.dead.dry-run";
const DRY_INBOX: &str = "test.dry-run";

/// A dry run, and a queue with what it tells.
async fn started(scene: &Scene) -> (Worker, Amqp, Inbox) {
    let amqp = scene.amqp().await;
    amqp.declare_results().await;
    amqp.declare_queue(DRY_INBOX, Default::default()).await;
    amqp.bind(DRY_INBOX, "dry-run.#").await;
    let told = amqp.inbox(DRY_INBOX).await;
    let mut worker = scene.setup.start_with(&["run", "--dry-run"]);
    worker.wait_ready(LATER).await;
    (worker, amqp, told)
}

/// Each order's outcome and reason code.
fn verdicts(events: &[Message]) -> BTreeMap<String, (String, String)> {
    let verdict = |e: &Message| (e.outcome().to_owned(), e.reason_code().to_owned());
    let events = events.iter();
    events
        .map(|e| (e.order_no().to_owned(), verdict(e)))
        .collect()
}

#[tokio::test]
async fn each_state_has_its_verdict_and_nothing_is_cancelled() {
    let scene = Scene::fresh().await;
    let (mut worker, amqp, mut told) = started(&scene).await;
    let real = amqp.results().await;
    let replies = amqp.replies().await;

    let states = [
        (1, "cancelled", ""),
        (10, "cancelled", ""),
        (20, "cancelled", ""),
        (40, "refused", "order_state"),
        (60, "refused", "order_state"),
        (65, "refused", "order_state"),
        (70, "refused", "order_state"),
        // The live system was first.
        (80, "cancelled", ""),
    ];
    let mut expected = BTreeMap::new();
    for (state, outcome, code) in states {
        let order = format!("QC-{state}");
        scene.orders.set(&order, state);
        expected.insert(order, (outcome.to_owned(), code.to_owned()));
    }
    // A document that was pushed to the warehouse can be cancelled where it is a `-1` one.
    scene.orders.set("QC-40-1", 40);
    expected.insert("QC-40-1".into(), ("cancelled".into(), String::new()));
    scene.orders.remove("QC-NONE");
    let absent = ("refused".into(), "order_not_found".into());
    expected.insert("QC-NONE".into(), absent);

    let command = Command::orders(expected.keys())
        .id("shadow-1")
        .correlation_id("corr-1")
        .reply_to(replies.name());
    amqp.send_to(DRY_COMMANDS, &command).await;
    let events = told.collect(expected.len(), LATER).await;
    assert_eq!(verdicts(&events), expected);
    for event in &events {
        assert_eq!(event.body["dry_run"], true, "{event:#?}");
        assert_eq!(event.body["attempts"], 0, "{event:#?}");
        let key = format!("dry-run.default.{}", event.outcome());
        assert_eq!(event.routing_key, key);
        assert_eq!(event.correlation_id.as_deref(), Some("corr-1"));
        assert_eq!(event.message_id.as_deref(), Some(event.text("event_id")));
        assert_eq!(scene.orders.times_looked_up(event.order_no()), 1);
    }

    // The same again is told again, without a look-up.
    amqp.send_to(DRY_COMMANDS, &command).await;
    let again = told.collect(expected.len(), LATER).await;
    assert_eq!(verdicts(&again), expected);
    for event in &again {
        assert_eq!(event.body["replayed"], true, "{event:#?}");
        assert_eq!(scene.orders.times_looked_up(event.order_no()), 1);
    }

    scene.vhost.queue_holds(SOON, DRY_COMMANDS, 0, 0).await;
    assert_eq!(scene.orders.calls(CANCEL), 0);
    let (_, page) = worker.readiness().await.unwrap();
    assert_eq!(page["dry_run"], true, "{page:#}");
    assert_eq!(worker.metric("wdt_dry_run").await, Some(1.0));
    assert_eq!(worker.lines("a dry run: no order is cancelled").len(), 1);
    assert_eq!(worker.terminate(LATER).await, 0);
    // Whatever there was to be told is told by now, and none of it to those who wait for real events.
    for inbox in [&real, &replies] {
        scene.vhost.queue_holds(SOON, inbox.name(), 0, 0).await;
    }
}

#[tokio::test]
async fn it_goes_beside_a_live_worker_with_the_same_settings() {
    let scene = Scene::fresh().await;
    let (mut dry, amqp, mut told) = started(&scene).await;
    let mut results = amqp.results().await;
    let mut live = scene.worker().await;
    let (_, page) = live.readiness().await.unwrap();
    assert!(page.get("dry_run").is_none(), "{page:#}");

    let command = Command::orders(["QC-1"]).id("both");
    amqp.send_to(DRY_COMMANDS, &command).await;
    let dry_event = told.collect(1, LATER).await.remove(0);
    assert_eq!(scene.orders.status("QC-1"), Some(20));
    amqp.send(&command).await;
    let event = results.collect(1, LATER).await.remove(0);
    assert_eq!(
        (event.outcome(), dry_event.outcome()),
        ("cancelled", "cancelled")
    );
    assert_eq!(
        (&event.body["attempts"], &event.body["replayed"]),
        (&1.into(), &false.into())
    );
    assert_ne!(event.text("event_id"), dry_event.text("event_id"));
    // One publication for both, as the README says.
    let copied = FieldArray::from(vec![AMQPValue::LongString(DRY_COMMANDS.into())]);
    let mut headers = FieldTable::default();
    headers.insert("CC".into(), AMQPValue::FieldArray(copied));
    let properties = BasicProperties::default().with_headers(headers);
    let channel = amqp.channel().await;
    let body = br#"{"order_no_list": ["QC-70"], "command_id": "copied"}"#;
    scene.orders.set("QC-70", 70);
    let options = BasicPublishOptions::default();
    channel
        .basic_publish("".into(), COMMANDS.into(), options, body, properties)
        .await
        .unwrap();
    for inbox in [&mut results, &mut told] {
        let event = inbox.collect(1, LATER).await.remove(0);
        let said = (event.text("command_id"), event.outcome(), event.order_no());
        assert_eq!(said, ("copied", "refused", "QC-70"));
    }
    // What the live worker did first is no surprise.
    let command = Command::orders(["QC-2"]).id("live-first");
    amqp.send(&command).await;
    assert_eq!(results.collect(1, LATER).await[0].outcome(), "cancelled");
    amqp.send_to(DRY_COMMANDS, &command).await;
    assert_eq!(told.collect(1, LATER).await[0].outcome(), "cancelled");
    assert_eq!(scene.orders.times_sent("QC-1"), 1);
    assert_eq!(scene.orders.times_sent("QC-2"), 1);
    assert_eq!(dry.terminate(LATER).await, 0);
    assert_eq!(live.terminate(LATER).await, 0);
}

#[tokio::test]
async fn lost_answers_are_looked_up_again_within_bounds() {
    let scene = Scene::fresh().await.set("WDT_RETRY__MAX_ATTEMPTS", 3);
    scene.orders.instead(|call| {
        let lost = call.is_query() && call.has("LOST") && call.nth <= 2;
        let odd = call.is_query() && call.has("ODD");
        match (lost, odd) {
            (true, _) => Some(Answer::Close),
            (_, true) => Some(Answer::status(99, "其他错误")),
            (false, false) => None,
        }
    });
    let (mut worker, amqp, mut told) = started(&scene).await;
    amqp.send_to(DRY_COMMANDS, &Command::orders(["LOST"]).id("lost"))
        .await;
    let event = told.collect(1, LATER).await.remove(0);
    assert_eq!(event.outcome(), "cancelled", "{event:#?}");
    assert_eq!(scene.orders.times_looked_up("LOST"), 3);

    amqp.send_to(DRY_COMMANDS, &Command::orders(["ODD"]).id("odd"))
        .await;
    let event = told.collect(1, LATER).await.remove(0);
    assert_eq!(
        (event.outcome(), event.reason_code()),
        ("failed", "api_unavailable")
    );
    assert_eq!(scene.orders.times_looked_up("ODD"), 3);
    // Parked, but not among the live worker's.
    let parked = amqp.inbox(DRY_DEAD).await.collect(1, LATER).await;
    assert_eq!(parked[0].message_id.as_deref(), Some("odd"));

    let late = Command::orders(["LATE"]).field("deadline", "2020-01-01T00:00:00Z");
    amqp.send_to(DRY_COMMANDS, &late).await;
    let event = told.collect(1, LATER).await.remove(0);
    assert_eq!(
        (event.outcome(), event.reason_code()),
        ("expired", "deadline_passed")
    );
    assert_eq!(scene.orders.times_looked_up("LATE"), 0);
    assert_eq!(scene.orders.calls(CANCEL), 0);
    assert_eq!(worker.terminate(LATER).await, 0);
}

#[tokio::test]
async fn one_that_may_not_look_says_so_and_leaves_the_settings_queues_alone() {
    let scene = Scene::fresh().await.set("WDT_API__VERIFY", "never");
    scene
        .orders
        .instead(|call| call.is_query().then(|| Answer::status(100, "权限不足")));
    let (mut worker, amqp, mut told) = started(&scene).await;
    amqp.send_to(DRY_COMMANDS, &Command::orders(["QC-1", "QC-2"]))
        .await;
    for event in told.collect(2, LATER).await {
        assert_eq!(
            (event.outcome(), event.reason_code()),
            ("failed", "api_refused_call")
        );
    }
    assert_eq!(scene.orders.calls(CANCEL), 0);
    assert_eq!(worker.terminate(LATER).await, 0);
    for queue in [COMMANDS, DEAD] {
        let there = scene.vhost.queue(queue).await;
        assert!(there.is_none(), "a dry run declared {queue}");
    }
}

#[tokio::test]
async fn a_ledger_is_of_dry_runs_or_of_live_ones_for_ever() {
    let scene = Scene::fresh().await;
    let (mut worker, ..) = started(&scene).await;
    assert_eq!(worker.terminate(LATER).await, 0);
    let dry = scene.setup.dir().join("ledger.dry-run");
    let mut live = scene.setup.with("WDT_LEDGER__URL", dry.display()).start();
    let said = refuses_to_start(&mut live, &dry).await;
    assert!(said.contains("one of dry runs"), "{said}");

    let real = scene.setup.dir().join("other.dry-run");
    let mut live = scene.setup.with("WDT_LEDGER__URL", real.display()).start();
    live.wait_ready(LATER).await;
    assert_eq!(live.terminate(LATER).await, 0);
    let named = scene.setup.dir().join("other");
    let setup = scene.setup.with("WDT_LEDGER__URL", named.display());
    let mut worker = setup.start_with(&["run", "--dry-run"]);
    let said = refuses_to_start(&mut worker, &real).await;
    assert!(said.contains("not one of dry runs"), "{said}");
}
