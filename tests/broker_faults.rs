//! The broker as it is found at the start, results that nobody can take, a worker that dies and one
//! that stops: the real worker against a real broker and a scripted gateway. Whatever happens, every
//! order is told, and none is sent again after it was told. Sessions and lines that break are in
//! `broker_lines.rs`.
#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, its helpers too"
)]

mod support;

use std::collections::BTreeSet;
use std::time::Duration;

use lapin::types::{AMQPValue, FieldTable};
use serde_json::Value;
use support::amqp::{COMMANDS, DEAD, RESULTS};
use support::broker::Declared;
use support::eventually::eventually_ok;
use support::gateway::{Answer, CANCEL, QUERY};
use support::process::{Signal, free_port};
use support::proxy::{Cable, Proxy};
use support::scene::{LATER, LOST, Load, SOON, Scene, causes, is_back, lines};
use support::worker::{Setup, Worker};

/// An answer of the gateway that leaves time for something to happen meanwhile.
const SLOW: Duration = Duration::from_millis(300);

// The topology

#[tokio::test]
async fn a_fresh_broker_gets_durable_quorum_queues_and_a_topic_exchange() {
    let scene = Scene::fresh().await;
    let worker = scene.worker().await;
    let commands = scene.vhost.declared_queue(COMMANDS).await.unwrap();
    let dead = scene.vhost.declared_queue(DEAD).await.unwrap();
    for queue in [&commands, &dead] {
        assert_eq!((queue.kind.as_str(), queue.durable), ("quorum", true));
    }
    let argument = |name: &str| commands.arguments[name].clone();
    assert_eq!(argument("x-dead-letter-exchange"), "");
    assert_eq!(argument("x-dead-letter-routing-key"), DEAD);
    // Without this pair a dead letter is sent at most once.
    assert_eq!(argument("x-dead-letter-strategy"), "at-least-once");
    assert_eq!(argument("x-overflow"), "reject-publish");
    assert_eq!(
        scene.vhost.declared_exchange(RESULTS).await,
        Some(Declared {
            kind: "topic".into(),
            durable: true,
            arguments: Default::default(),
        })
    );
    scene.consumer().await;
    assert_eq!(lines(&worker, "used as it is"), [""; 0]);
}

#[tokio::test]
async fn what_was_declared_otherwise_is_used_as_it_is_with_one_warning() {
    let mut plain = FieldTable::default();
    plain.insert(
        "x-queue-type".into(),
        AMQPValue::LongString("quorum".into()),
    );
    for arguments in [plain, FieldTable::default()] {
        let scene = Scene::fresh().await;
        let amqp = scene.amqp().await;
        amqp.declare_queue(COMMANDS, arguments.clone()).await;
        let before = scene.vhost.declared_queue(COMMANDS).await;
        let mut results = amqp.results().await;
        let worker = scene.worker().await;

        let load = Load::new(&scene.orders, "QC", 3);
        load.send(&amqp).await;
        load.is_told(&mut results, SOON).await;
        // Only a new session meets the difference again, and it is known by then.
        assert_eq!(scene.vhost.close_connections().await, 2);
        is_back(&worker, 2).await;
        scene.consumer().await;

        assert_eq!(scene.vhost.declared_queue(COMMANDS).await, before);
        let told = lines(&worker, "used as it is");
        assert_eq!(told.len(), 1, "{told:#?}");
        assert!(told[0].contains("WARN") && told[0].contains(COMMANDS));
        // Which argument differs, for whoever wants to declare it right.
        assert!(told[0].contains("x-"), "{told:#?}");
    }
}

#[tokio::test]
async fn without_declare_what_is_missing_is_named_and_what_is_there_works() {
    let scene = Scene::fresh().await.set("WDT_AMQP__DECLARE", false);
    let amqp = scene.amqp().await;
    for name in [DEAD, COMMANDS, RESULTS] {
        let mut worker = scene.setup.start();
        let said = refuses_to_start(&mut worker).await;
        assert!(said.contains(&format!("{name} does not exist")), "{said}");
        assert!(said.contains("amqp.declare"), "{said}");
        if name == RESULTS {
            amqp.declare_results().await;
        } else {
            amqp.declare_queue(name, FieldTable::default()).await;
        }
    }
    let mut results = amqp.results().await;
    let worker = scene.worker().await;
    let load = Load::new(&scene.orders, "QC", 3);
    load.send(&amqp).await;
    load.is_told(&mut results, SOON).await;
    assert_eq!(lines(&worker, "used as it is"), [""; 0]);
}

#[tokio::test]
async fn a_login_or_virtual_host_that_is_refused_ends_the_start_in_one_clear_line() {
    let scene = Scene::fresh().await;
    let right = scene.vhost.url();
    let secret = "hunter2-is-secret";
    for (url, word) in [
        (
            right.replace("guest:guest", &format!("guest:{secret}")),
            "ACCESS_REFUSED",
        ),
        (format!("{}-that-is-not", right), "NOT_ALLOWED"),
    ] {
        let mut worker = Setup::new(&url, &scene.gateway.url()).start();
        let said = refuses_to_start(&mut worker).await;
        assert!(said.contains(word), "{said}");
        assert!(said.contains("amqp.url"), "what to mend is not in: {said}");
        assert!(!worker.log().contains(secret), "{}", worker.log());
        assert!(!worker.log().contains("guest:guest"), "{}", worker.log());
    }
}

#[tokio::test]
async fn a_broker_that_cannot_be_reached_at_the_start_is_waited_for() {
    let scene = Scene::fresh().await;
    let cable = Proxy::to(scene.vhost.port(), Cable::Gone);
    let url = cable.url(&scene.vhost.url());
    let scene = scene.set("WDT_AMQP__URL", &url);
    let amqp = scene.amqp().await;
    let mut results = amqp.results().await;
    let mut worker = scene.setup.start();
    worker.logs(SOON, LOST).await;
    // The page is made anew each second, so the first may tell of the time before.
    eventually_ok(SOON, "readiness says why", async || {
        let said = worker.not_ready("broker").await;
        if said.contains("refused") {
            Ok(())
        } else {
            Err(said)
        }
    })
    .await;

    cable.set(Cable::Whole);
    worker.wait_ready(LATER).await;
    let load = Load::new(&scene.orders, "QC", 3);
    load.send(&amqp).await;
    load.is_told(&mut results, SOON).await;
    assert_eq!(lines(&worker, LOST).len(), 1, "{}", worker.log());
}

#[tokio::test]
async fn of_several_nodes_the_first_that_lives_is_used_and_each_dead_one_is_told_once() {
    let scene = Scene::fresh().await;
    let right = scene.vhost.url();
    let cable = Proxy::to(scene.vhost.port(), Cable::Cut);
    let dead = right.replace(&scene.vhost.port().to_string(), &free_port().to_string());
    let scene = scene.set("WDT_AMQP__URL", format!("{dead},{}", cable.url(&right)));
    let mut worker = scene.setup.start();
    // Three rounds, each to both nodes: what was told in the first is not told again.
    eventually_ok(LATER, "three tries of the second node", async || {
        (cable.taken() >= 3).then_some(()).ok_or(cable.taken())
    })
    .await;
    let told = causes(&worker);
    assert!(told.len() <= 3, "{told:#?}");

    cable.set(Cable::Whole);
    worker.wait_ready(LATER).await;
    scene.consumer().await;
}

// Results that nobody can take

#[tokio::test]
async fn an_event_without_a_queue_waits_and_comes_by_itself_once_one_is_bound() {
    let scene = Scene::fresh().await;
    let mut worker = scene.worker().await;
    let warning = worker.logs(SOON, "no queue is bound").await;
    assert!(warning.contains("WARN"), "{warning}");
    assert!(warning.contains("wdt-cancel-worker bind QUEUE"));

    let amqp = scene.amqp().await;
    let load = Load::new(&scene.orders, "QC", 3);
    load.send(&amqp).await;
    let said = worker.not_ready("results").await;
    assert!(said.contains("wdt-cancel-worker bind"), "{said}");
    scene.vhost.queue_holds(SOON, COMMANDS, 0, 3).await;
    // The events are tried again meanwhile. That must not look like success for a moment.
    let first_try = worker.metric(TOLD_CANCELLED).await.unwrap();
    eventually_ok(LATER, "they are tried again", async || {
        let (status, page) = worker.readiness().await.unwrap();
        assert_eq!(status, 503, "{page}");
        let tries = worker.metric(TOLD_CANCELLED).await.unwrap();
        (tries > first_try).then_some(()).ok_or(tries)
    })
    .await;
    for _ in 0..75 {
        let (status, page) = worker.readiness().await.unwrap();
        assert_eq!(status, 503, "{page}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    let mut bind = scene.setup.start_with(&["bind", "my-results"]);
    assert_eq!(bind.exit_code(SOON).await, 0);
    let mut results = amqp.inbox("my-results").await;
    load.is_told(&mut results, LATER).await;
    scene.queue_is_empty().await;
    worker.wait_ready(SOON).await;
    scene.each_was_sent_once(&load);
    let told = lines(&worker, "results cannot be delivered");
    assert_eq!(told.len(), 1, "{told:#?}");

    // Not a fresh start any more.
    assert_eq!(worker.terminate(SOON).await, 0);
    let worker = scene.worker().await;
    assert_eq!(lines(&worker, "no queue is bound"), [""; 0]);
    assert_eq!(lines(&worker, "declaring"), [""; 0]);
}

/// What the worker counts for each try of an event.
const TOLD_CANCELLED: &str =
    r#"wdt_events_total{account="default",outcome="cancelled",replayed="false"}"#;

#[tokio::test]
async fn a_results_queue_that_is_full_holds_the_command_back_until_there_is_room() {
    let scene = Scene::fresh().await;
    let amqp = scene.amqp().await;
    amqp.declare_results().await;
    let mut full = FieldTable::default();
    full.insert("x-max-length".into(), AMQPValue::LongInt(2));
    full.insert(
        "x-overflow".into(),
        AMQPValue::LongString("reject-publish".into()),
    );
    amqp.declare_queue("small", full).await;
    amqp.bind("small", "cancel.#").await;
    // A second queue has room and gets every try: at least once, the same event each time.
    amqp.declare_queue("large", FieldTable::default()).await;
    amqp.bind("large", "cancel.#").await;
    let mut worker = scene.worker().await;
    let load = Load::new(&scene.orders, "QC", 6);
    load.send(&amqp).await;
    let said = worker.not_ready("results").await;
    assert!(said.contains("full") || said.contains("room"), "{said}");

    // Whoever reads makes room, and everything comes.
    let mut results = amqp.inbox("small").await;
    load.is_told(&mut results, LATER).await;
    scene.queue_is_empty().await;
    worker.wait_ready(SOON).await;
    scene.each_was_sent_once(&load);
    let mut large = amqp.inbox("large").await;
    let mut ids = BTreeSet::new();
    for message in load.is_told(&mut large, SOON).await {
        ids.insert(message.message_id.unwrap());
    }
    assert_eq!(ids.len(), 6, "an event that is told again keeps its id");
}

// Stopping

#[tokio::test]
async fn a_worker_that_is_told_to_stop_finishes_what_is_in_flight_and_gives_back_the_rest() {
    let scene = Scene::fresh().await;
    scene.slow(SLOW);
    let amqp = scene.amqp().await;
    let mut results = amqp.results().await;
    let mut worker = scene.worker().await;
    let load = Load::new(&scene.orders, "QC", 240);
    load.send(&amqp).await;
    scene.until_sent(&load, 60).await;
    assert_eq!(worker.terminate(Duration::from_secs(25)).await, 0);

    let sent: BTreeSet<String> = load
        .orders()
        .into_iter()
        .filter(|order| scene.orders.times_sent(order) > 0)
        .map(Into::into)
        .collect();
    assert!(sent.len() < 240, "there was nothing to give back");
    let rest = (240 - sent.len()) as u64;
    scene.vhost.queue_holds(SOON, COMMANDS, rest, 0).await;
    let mut told = BTreeSet::new();
    for message in results.collect(sent.len(), SOON).await {
        told.insert(load.check(&message).1);
    }
    assert_eq!(told, sent, "what was in flight is told");

    let _next = scene.worker().await;
    for message in results.collect(rest as usize, LATER).await {
        told.insert(load.check(&message).1);
    }
    assert_eq!(told.len(), 240);
    scene.queue_is_empty().await;
    scene.each_was_sent_once(&load);
    assert_eq!(scene.orders.calls(QUERY), 0, "nothing was in doubt");
}

#[tokio::test]
async fn a_drain_that_takes_too_long_ends_and_says_what_was_left() {
    let scene = hanging_scene().await;
    let amqp = scene.amqp().await;
    let mut results = amqp.results().await;
    let mut worker = scene.setup.start_with(&["run", "--drain", "1s"]);
    worker.wait_ready(LATER).await;
    let load = Load::new(&scene.orders, "QC", 3);
    load.send(&amqp).await;
    scene.until_sent(&load, 3).await;
    assert_eq!(worker.terminate(SOON).await, 2);
    let left = log_line(&worker, "stopped before everything was finished");
    assert!(left["calls"].as_u64() >= Some(1), "{left}");
    assert_eq!(left["commands"], 3, "{left}");
    scene.vhost.queue_holds(SOON, COMMANDS, 3, 0).await;

    // What hung was carried out: the next worker finds that out before it does anything else.
    let _next = scene.worker().await;
    load.is_told(&mut results, LATER).await;
    scene.queue_is_empty().await;
    scene.each_was_sent_once(&load);
    for order in load.orders() {
        assert!(scene.orders.times_looked_up(order) >= 1, "{order}");
    }
}

#[tokio::test]
async fn a_second_signal_ends_the_worker_at_once() {
    let scene = hanging_scene().await;
    let amqp = scene.amqp().await;
    let mut worker = scene.worker().await;
    let load = Load::new(&scene.orders, "QC", 1);
    load.send(&amqp).await;
    scene.until_sent(&load, 1).await;
    worker.signal(Signal::TERM);
    worker.logs(SOON, "stopping").await;
    assert!(worker.is_running());
    worker.signal(Signal::INT);
    // The drain would take 25 s.
    assert_eq!(worker.exit_code(Duration::from_secs(5)).await, 2);
}

/// Nobody promises that the worker looks between two signals.
#[tokio::test]
async fn two_signals_in_one_instant_end_the_worker() {
    let scene = hanging_scene().await;
    let amqp = scene.amqp().await;
    let mut worker = scene.worker().await;
    let load = Load::new(&scene.orders, "QC", 1);
    load.send(&amqp).await;
    scene.until_sent(&load, 1).await;
    // Stopped, it sees both when it goes on.
    worker.signal(Signal::STOP);
    worker.signal(Signal::TERM);
    worker.signal(Signal::INT);
    worker.signal(Signal::CONT);
    assert_eq!(worker.exit_code(Duration::from_secs(5)).await, 2);
}

/// A gateway that carries out a cancel and never answers it.
async fn hanging_scene() -> Scene {
    let scene = Scene::fresh()
        .await
        .set("WDT_API__TIMEOUT", "60s")
        // A call for each order of a test, whether or not they share one.
        .set("WDT_API__CONCURRENCY", 4);
    scene
        .orders
        .afterwards(|call| call.is_cancel().then_some(Answer::Hang));
    scene
}

// Intake

#[tokio::test]
async fn while_the_gateway_is_down_commands_stay_in_the_broker() {
    let scene = Scene::fresh().await;
    let amqp = scene.amqp().await;
    let mut results = amqp.results().await;
    let mut worker = scene.worker().await;
    let consumer = scene.consumer().await;
    scene.gateway.down();
    let first = Load::new(&scene.orders, "FIRST", 1);
    first.send(&amqp).await;
    // One call finds out; then nobody consumes.
    eventually_ok(SOON, "the consumer is cancelled", async || {
        let mut consumers = scene.vhost.consumers().await;
        consumers.retain(|c| c.queue == COMMANDS);
        consumers.is_empty().then_some(()).ok_or(consumers)
    })
    .await;
    let rest = Load::new(&scene.orders, "REST", 50);
    rest.send(&amqp).await;
    scene.vhost.queue_holds(SOON, COMMANDS, 50, 1).await;
    let said = worker.not_ready("intake").await;
    assert!(said.contains("commands stay in the broker"), "{said}");

    scene.gateway.up();
    worker.wait_ready(LATER).await;
    scene.is_consumed_like(&consumer).await;
    let mut told = first.is_told(&mut results, LATER).await;
    told.extend(rest.is_told(&mut results, LATER).await);
    for message in told {
        assert_eq!(message.body["attempts"], 1, "burnt: {message:#?}");
    }
    scene.queue_is_empty().await;
    scene.each_was_sent_once(&rest);
    assert_eq!(lines(&worker, "the gateway is down").len(), 1);
    assert_eq!(lines(&worker, "can be called again").len(), 1);
    assert_eq!(
        scene.gateway.calls(CANCEL).len(),
        scene.orders.calls(CANCEL)
    );
}

// Helpers

/// Waits for exit 1; the one line that says why.
async fn refuses_to_start(worker: &mut Worker) -> String {
    assert_eq!(worker.exit_code(SOON).await, 1, "{}", worker.log());
    let said = lines(worker, "wdt-cancel-worker: ");
    assert_eq!(said.len(), 1, "not one line: {}", worker.log());
    said[0].clone()
}

/// The first line of the log that contains this, as JSON.
fn log_line(worker: &Worker, part: &str) -> Value {
    let found = lines(worker, part);
    serde_json::from_str(found.first().expect(part)).expect("a line of JSON")
}
