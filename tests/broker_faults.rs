//! The broker as it is found at the start, and as it breaks: the real worker against a real broker
//! and a scripted gateway. Whatever happens, every order is told, none is sent again after it was
//! told, and the worker comes back by itself.
#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, its helpers too"
)]

mod support;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lapin::ExchangeKind;
use lapin::options::{
    ExchangeDeclareOptions, ExchangeDeleteOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use serde_json::{Value, json};
use support::amqp::{Amqp, COMMANDS, Command, DEAD, RESULTS};
use support::broker::{Broker, Declared};
use support::eventually::{eventually, eventually_ok};
use support::gateway::{Answer, CANCEL, QUERY};
use support::process::{Signal, free_port};
use support::proxy::{Cable, Proxy};
use support::scene::{LATER, Load, SOON, Scene, lines};
use support::worker::{Setup, Worker};

/// What a worker logs when it has no session.
const LOST: &str = "no session with the broker";
/// What it logs when it has one.
const CONNECTED: &str = "connected to the broker";
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
        declare_queue(&amqp, COMMANDS, arguments.clone()).await;
        let before = scene.vhost.declared_queue(COMMANDS).await;
        let mut results = amqp.results().await;
        let worker = scene.worker().await;

        let load = Load::new(&scene.orders, "QC", 3);
        load.send(&amqp).await;
        load.is_told(&mut results, SOON).await;
        // Only a new session meets the difference again, and it is known by then.
        assert_eq!(scene.vhost.close_connections().await, 2);
        worker_is_back(&worker, 2).await;
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
            declare_exchange(&amqp).await;
        } else {
            declare_queue(&amqp, name, FieldTable::default()).await;
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
    let cable = Proxy::to(port_of(&scene.vhost.url()), Cable::Gone);
    let url = cable.url(&scene.vhost.url());
    let scene = scene.set("WDT_AMQP__URL", &url);
    let amqp = scene.amqp().await;
    let mut results = amqp.results().await;
    let mut worker = scene.setup.start();
    worker.logs(SOON, LOST).await;
    // The page is made anew each second, so the first may tell of the time before.
    eventually_ok(SOON, "readiness says why", async || {
        let said = not_ready(&worker, "broker").await;
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
    let cable = Proxy::to(port_of(&right), Cable::Cut);
    let dead = right.replace(&port_of(&right).to_string(), &free_port().to_string());
    let scene = scene.set("WDT_AMQP__URL", format!("{dead},{}", cable.url(&right)));
    let mut worker = scene.setup.start();
    // Three rounds, each to both nodes: what was told in the first is not told again.
    eventually_ok(LATER, "three tries of the second node", async || {
        (cable.taken() >= 3).then_some(()).ok_or(cable.taken())
    })
    .await;
    let told = lines(&worker, LOST);
    let causes: BTreeSet<_> = told.iter().map(|line| cause(line)).collect();
    assert_eq!(told.len(), causes.len(), "told more than once: {told:#?}");
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
    let said = not_ready(&worker, "results").await;
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
    declare_exchange(&amqp).await;
    let mut full = FieldTable::default();
    full.insert("x-max-length".into(), AMQPValue::LongInt(2));
    full.insert(
        "x-overflow".into(),
        AMQPValue::LongString("reject-publish".into()),
    );
    declare_queue(&amqp, "small", full).await;
    bind(&amqp, "small", "cancel.#").await;
    // A second queue has room and gets every try: at least once, the same event each time.
    declare_queue(&amqp, "large", FieldTable::default()).await;
    bind(&amqp, "large", "cancel.#").await;
    let mut worker = scene.worker().await;
    let load = Load::new(&scene.orders, "QC", 6);
    load.send(&amqp).await;
    let said = not_ready(&worker, "results").await;
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

// Sessions that end

#[tokio::test]
async fn connections_closed_by_an_operator_are_made_again() {
    let scene = Scene::fresh().await;
    scene.slow(SLOW);
    let amqp = scene.amqp().await;
    let mut results = amqp.results().await;
    let worker = scene.worker().await;
    let consumer = scene.consumer().await;
    let load = Load::new(&scene.orders, "QC", 240);
    load.send(&amqp).await;
    for (times, progress) in [(1, 20), (2, 80), (3, 140)] {
        scene.until_sent(&load, progress).await;
        assert_eq!(scene.vhost.close_connections().await, 2);
        worker_is_back(&worker, times + 1).await;
        assert!(scene.consumer().await.prefetch >= consumer.prefetch);
    }
    load.is_told(&mut results, LATER).await;
    scene.queue_is_empty().await;
    scene.each_was_sent_once(&load);
    assert_eq!(scene.orders.calls(QUERY), 0, "nothing was in doubt");
    let told = lines(&worker, LOST);
    assert_eq!(told.len(), 3, "once each: {told:#?}");
}

#[tokio::test]
async fn a_channel_that_the_broker_closes_is_opened_again() {
    let scene = Scene::fresh().await;
    scene.slow(SLOW);
    let amqp = scene.amqp().await;
    let mut results = amqp.results().await;
    let worker = scene.worker().await;
    let load = Load::new(&scene.orders, "QC", 60);
    load.send(&amqp).await;
    scene.until_sent(&load, 1).await;
    // Publishing to an exchange that is gone closes the channel with all its confirms (404).
    let gone = ExchangeDeleteOptions::default();
    let channel = amqp.channel().await;
    channel.exchange_delete(RESULTS.into(), gone).await.unwrap();
    worker.logs(SOON, LOST).await;
    // The worker declares it anew; nothing is bound to it any more.
    worker.logs(SOON, "no queue is bound").await;
    bind(&amqp, results.name(), "cancel.#").await;
    load.is_told(&mut results, LATER).await;
    scene.queue_is_empty().await;
    scene.each_was_sent_once(&load);
    scene.consumer().await;
    assert_eq!(lines(&worker, LOST).len(), 1, "{}", worker.log());
}

#[tokio::test]
async fn a_delivery_that_the_broker_finds_held_for_too_long_is_taken_again() {
    let mut broker = Broker::start().await;
    broker.limit_holding(Duration::from_secs(2)).await;
    let scene = Scene::on(broker.vhost().await);
    scene.slow(Duration::from_secs(4));
    let amqp = scene.amqp().await;
    let mut results = amqp.results().await;
    let worker = scene.worker().await;
    let consumer = scene.consumer().await;
    let load = Load::new(&scene.orders, "QC", 10);
    load.send(&amqp).await;
    let told = worker.logs(SOON, LOST).await;
    assert!(told.contains("PRECONDITION_FAILED"), "{told}");
    load.is_told(&mut results, LATER).await;
    scene.queue_is_empty().await;
    scene.each_was_sent_once(&load);
    assert!(scene.consumer().await.prefetch >= consumer.prefetch);
}

#[tokio::test]
async fn a_commands_queue_that_is_deleted_is_declared_anew_and_consumed() {
    let scene = Scene::fresh().await;
    let amqp = scene.amqp().await;
    let mut results = amqp.results().await;
    let worker = scene.worker().await;
    let consumer = scene.consumer().await;
    amqp.delete_queue(COMMANDS).await;
    let told = worker.logs(LATER, LOST).await;
    assert!(told.contains("cancelled the consumer"), "{told}");
    worker_is_back(&worker, 2).await;
    assert!(scene.consumer().await.prefetch >= consumer.prefetch);
    let load = Load::new(&scene.orders, "QC", 10);
    load.send(&amqp).await;
    load.is_told(&mut results, LATER).await;
    scene.queue_is_empty().await;
    scene.each_was_sent_once(&load);
    assert_eq!(lines(&worker, LOST).len(), 1, "{}", worker.log());
}

/// Takes a minute: the worker looks twice, half a minute apart, before it believes it.
#[tokio::test]
async fn a_consumer_that_the_broker_has_forgotten_is_replaced() {
    let scene = Scene::fresh().await;
    let amqp = scene.amqp().await;
    let mut results = amqp.results().await;
    let worker = scene.worker().await;
    let consumer = scene.consumer().await;
    assert_eq!(scene.vhost.forget_consumers(COMMANDS).await, 1);
    let load = Load::new(&scene.orders, "QC", 10);
    load.send(&amqp).await;
    scene.vhost.queue_holds(SOON, COMMANDS, 10, 0).await;
    load.is_told(&mut results, LATER).await;
    assert!(scene.consumer().await.prefetch >= consumer.prefetch);
    scene.each_was_sent_once(&load);
    let told = lines(&worker, LOST);
    assert_eq!(told.len(), 1, "{told:#?}");
    assert!(told[0].contains("silent"), "{told:#?}");
}

#[tokio::test]
async fn without_declare_a_deleted_queue_is_waited_for() {
    let scene = Scene::fresh().await.set("WDT_AMQP__DECLARE", false);
    let amqp = scene.amqp().await;
    for queue in [COMMANDS, DEAD] {
        declare_queue(&amqp, queue, FieldTable::default()).await;
    }
    let mut results = amqp.results().await;
    let mut worker = scene.worker().await;
    amqp.delete_queue(COMMANDS).await;
    worker.logs(LATER, "does not exist").await;
    assert!(not_ready(&worker, "broker").await.contains(COMMANDS));
    declare_queue(&amqp, COMMANDS, FieldTable::default()).await;
    worker.wait_ready(LATER).await;
    let load = Load::new(&scene.orders, "QC", 10);
    load.send(&amqp).await;
    load.is_told(&mut results, LATER).await;
    scene.each_was_sent_once(&load);
}

#[tokio::test]
async fn a_broker_that_is_killed_under_load_comes_back_and_nothing_is_lost() {
    let mut broker = Broker::start().await;
    let scene = Scene::on(broker.vhost().await);
    scene.slow(SLOW);
    let amqp = scene.amqp().await;
    drop(amqp.results().await);
    let mut worker = scene.worker().await;
    let consumer = scene.consumer().await;
    let load = Load::new(&scene.orders, "QC", 400);
    load.send(&amqp).await;
    drop(amqp);
    scene.until_sent(&load, 40).await;
    broker.kill9().await;
    assert!(not_ready(&worker, "broker").await.contains("127.0.0.1"));
    broker.restart().await;
    worker.wait_ready(LATER).await;
    assert!(scene.consumer().await.prefetch >= consumer.prefetch);

    let mut results = scene.amqp().await.results().await;
    load.is_told(&mut results, LATER).await;
    scene.queue_is_empty().await;
    scene.each_was_sent_once(&load);
    assert_eq!(scene.orders.calls(QUERY), 0, "nothing was in doubt");
    let told = lines(&worker, LOST);
    let causes: BTreeSet<_> = told.iter().map(|line| cause(line)).collect();
    assert_eq!(
        told.len(),
        causes.len(),
        "a cause was told twice: {told:#?}"
    );
    // The connection broke, it was refused, and it may have been closed while the broker booted.
    assert!(told.len() <= 3, "{told:#?}");
}

#[tokio::test]
async fn a_broker_that_freezes_under_load_is_noticed_and_taken_up_again() {
    let mut broker = Broker::start().await;
    let scene = Scene::on(broker.vhost().await);
    scene.slow(SLOW);
    let mut results = scene.amqp().await.results().await;
    let mut worker = scene.worker().await;
    let consumer = scene.consumer().await;
    let load = Load::new(&scene.orders, "QC", 200);
    load.send(&scene.amqp().await).await;
    scene.until_sent(&load, 40).await;
    let frozen = tokio::time::Instant::now();
    broker.freeze();
    // Two heartbeats of 10 s without a byte.
    let told = worker.logs(LATER, LOST).await;
    assert!(frozen.elapsed() < Duration::from_secs(30), "{told}");
    not_ready(&worker, "broker").await;
    // Whatever the gateway was asked before is recorded meanwhile; no new session hangs for ever.
    tokio::time::sleep_until(frozen + Duration::from_secs(25)).await;
    broker.thaw();
    worker.wait_ready(LATER).await;
    load.is_told(&mut results, LATER).await;
    scene.queue_is_empty().await;
    scene.each_was_sent_once(&load);
    assert!(scene.consumer().await.prefetch >= consumer.prefetch);
    let told = lines(&worker, LOST);
    let causes: BTreeSet<_> = told.iter().map(|line| cause(line)).collect();
    assert_eq!(
        told.len(),
        causes.len(),
        "a cause was told twice: {told:#?}"
    );
}

#[tokio::test]
async fn a_line_that_goes_mute_is_noticed_and_taken_up_again() {
    let scene = Scene::fresh().await;
    let cable = Proxy::to(port_of(&scene.vhost.url()), Cable::Whole);
    let url = format!("{}?heartbeat=2", cable.url(&scene.vhost.url()));
    let scene = scene.set("WDT_AMQP__URL", url);
    scene.slow(SLOW);
    let amqp = scene.amqp().await;
    let mut results = amqp.results().await;
    let mut worker = scene.worker().await;
    let load = Load::new(&scene.orders, "QC", 100);
    load.send(&amqp).await;
    scene.until_sent(&load, 20).await;
    cable.set(Cable::Mute);
    worker.logs(SOON, LOST).await;
    // A node that takes connections and says nothing does not hold the worker for ever.
    let before = cable.taken();
    eventually(LATER, "it tries again", async || {
        (cable.taken() >= before + 2).then_some(())
    })
    .await;
    cable.set(Cable::Whole);
    worker.wait_ready(LATER).await;
    load.is_told(&mut results, LATER).await;
    scene.queue_is_empty().await;
    scene.each_was_sent_once(&load);
    scene.consumer().await;
}

#[tokio::test]
async fn a_broker_short_of_memory_blocks_the_telling_and_nothing_else() {
    let mut broker = Broker::start().await;
    let scene = Scene::on(broker.vhost().await);
    scene.slow(SLOW);
    let amqp = scene.amqp().await;
    let mut results = amqp.results().await;
    let mut worker = scene.worker().await;
    let consumer = scene.consumer().await;
    let load = Load::new(&scene.orders, "QC", 200);
    load.send(&amqp).await;
    scene.until_sent(&load, 40).await;
    broker.raise_alarm().await;
    let said = not_ready(&worker, "broker").await;
    assert!(said.contains("takes no publications"), "{said}");
    // The calls go on, and their outcomes are recorded.
    scene.until_sent(&load, 200).await;
    assert_eq!(
        scene.vhost.consumers().await.len(),
        2,
        "ours and the test's"
    );
    broker.end_alarm().await;
    load.is_told(&mut results, LATER).await;
    scene.queue_is_empty().await;
    worker.wait_ready(SOON).await;
    scene.each_was_sent_once(&load);
    // Of the same session, though it may take more at once by now.
    assert!(scene.consumer().await.prefetch >= consumer.prefetch);
    assert_eq!(lines(&worker, LOST), [""; 0]);
    assert_eq!(lines(&worker, "the broker takes no publications").len(), 1);
    assert_eq!(lines(&worker, "takes publications again").len(), 1);
}

// The worker that dies

#[tokio::test]
async fn a_worker_that_is_killed_again_and_again_tells_every_order_and_repeats_none() {
    const KILLS: usize = 10;
    const ORDERS: usize = 300;
    let mut chance = Chance::new();
    let scene = Scene::fresh()
        .await
        .set("WDT_API__MAX_ORDERS_PER_CALL", 4)
        .set("WDT_API__TIMEOUT", "1s")
        .set("WDT_RETRY__MAX_ATTEMPTS", 100);
    let platform = Lossy::play(&scene, chance.0.u64(..));
    let amqp = scene.amqp().await;
    let mut results = amqp.results().await;
    let mut worker = scene.worker().await;
    let mut load = Load::new(&scene.orders, "QC", ORDERS);
    let again: Vec<String> = load
        .orders()
        .into_iter()
        .filter(|order| scene.orders.status(order) == Some(20))
        .step_by(9)
        .map(Into::into)
        .collect();
    for order in &again {
        // Other commands for the same orders: joined, or told from the record.
        load.add(&format!("again-{order}"), order, "cancelled");
    }
    load.send(&amqp).await;
    // The same commands a second time.
    let repeats: Vec<Command> = load.commands().iter().step_by(11).cloned().collect();
    amqp.send_all(COMMANDS, &repeats).await;

    for kill in 1..=KILLS {
        scene.until_sent(&load, ORDERS * kill / (KILLS + 2)).await;
        tokio::time::sleep(Duration::from_millis(chance.0.u64(0..300))).await;
        worker.kill9();
        worker = scene.setup.start();
    }
    load.is_told(&mut results, LATER).await;
    scene.queue_is_empty().await;
    // What is still on its way is checked as well.
    while let Some(message) = results.next(Duration::from_millis(100)).await {
        load.check(&message);
    }
    for order in load.orders() {
        let shipped = scene.orders.status(order) == Some(70);
        let executed = scene.orders.times_executed(order);
        assert_eq!(executed, usize::from(!shipped), "{order}");
    }
    assert_eq!(
        platform.repeated(),
        BTreeSet::new(),
        "sent after it was done"
    );
    assert_eq!(scene.vhost.queue(DEAD).await.unwrap().ready, 0);
    assert!(platform.faults() > 20, "the gateway was not lossy enough");
}

/// A seed that is printed, and can be given: `WDT_TEST_SEED`.
struct Chance(fastrand::Rng);

impl Chance {
    fn new() -> Self {
        let given = std::env::var("WDT_TEST_SEED").ok();
        let seed = given.map_or_else(|| fastrand::u64(..), |seed| seed.parse().unwrap());
        println!("WDT_TEST_SEED={seed}");
        Self(fastrand::Rng::with_seed(seed))
    }
}

/// A gateway on a bad day: three calls of ten go wrong, before or after they were carried out. It
/// knows which orders were carried out, whatever was answered, so a second time is seen.
#[derive(Clone, Default)]
struct Lossy(Arc<Mutex<Day>>);

#[derive(Default)]
struct Day {
    carried_out: BTreeSet<String>,
    repeated: BTreeSet<String>,
    faults: usize,
}

impl Lossy {
    fn play(scene: &Scene, seed: u64) -> Self {
        scene.slow(Duration::from_millis(40));
        let day = Self::default();
        let (before, after) = (day.clone(), day.clone());
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut later = rng.fork();
        scene.orders.instead(move |call| {
            let wrong = (call.is_cancel() || call.is_query()) && rng.u8(..10) == 0;
            wrong.then(|| before.fault(rng.u8(..)))
        });
        scene.orders.afterwards(move |call| {
            if !call.is_cancel() {
                return None;
            }
            let mut day = after.0.lock().unwrap();
            for order in call.orders {
                if !day.carried_out.insert(order.clone()) {
                    day.repeated.insert(order.clone());
                }
            }
            drop(day);
            (later.u8(..10) < 2).then(|| after.fault(later.u8(..)))
        });
        day
    }

    fn fault(&self, kind: u8) -> Answer {
        self.0.lock().unwrap().faults += 1;
        match kind % 8 {
            0 => Answer::http(500, "text/plain", "oh"),
            1 => Answer::http(200, "text/html", "<html>系统维护中</html>"),
            2 => Answer::CutBody(json!({ "status": 0, "data": { "success_data": [] } })),
            3 => Answer::Close,
            4 => Answer::Reset,
            5 => Answer::ChunkedGarbage,
            6 => Answer::status(99, "其他错误"),
            _ => Answer::Hang,
        }
    }

    fn repeated(&self) -> BTreeSet<String> {
        self.0.lock().unwrap().repeated.clone()
    }

    fn faults(&self) -> usize {
        self.0.lock().unwrap().faults
    }
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
    let said = not_ready(&worker, "intake").await;
    assert!(said.contains("commands stay in the broker"), "{said}");

    scene.gateway.up();
    worker.wait_ready(LATER).await;
    assert!(scene.consumer().await.prefetch >= consumer.prefetch);
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

async fn declare_queue(amqp: &Amqp, name: &str, arguments: FieldTable) {
    let durable = QueueDeclareOptions {
        durable: true,
        ..Default::default()
    };
    let channel = amqp.channel().await;
    let declared = channel.queue_declare(name.into(), durable, arguments);
    declared.await.unwrap();
}

async fn declare_exchange(amqp: &Amqp) {
    let durable = ExchangeDeclareOptions {
        durable: true,
        ..Default::default()
    };
    let channel = amqp.channel().await;
    channel
        .exchange_declare(
            RESULTS.into(),
            ExchangeKind::Topic,
            durable,
            Default::default(),
        )
        .await
        .unwrap();
}

async fn bind(amqp: &Amqp, queue: &str, key: &str) {
    let channel = amqp.channel().await;
    channel
        .queue_bind(
            queue.into(),
            RESULTS.into(),
            key.into(),
            QueueBindOptions::default(),
            FieldTable::default(),
        )
        .await
        .unwrap();
}

/// Waits for exit 1; the one line that says why.
async fn refuses_to_start(worker: &mut Worker) -> String {
    assert_eq!(worker.exit_code(SOON).await, 1, "{}", worker.log());
    let said = lines(worker, "wdt-cancel-worker: ");
    assert_eq!(said.len(), 1, "not one line: {}", worker.log());
    said[0].clone()
}

/// Waits until readiness is red because of this check; what the check says.
async fn not_ready(worker: &Worker, check: &str) -> String {
    eventually_ok(LATER, &format!("{check} is red"), async || {
        let Some((status, page)) = worker.readiness().await else {
            return Err(Value::Null);
        };
        let checks = page["checks"].as_array().cloned().unwrap_or_default();
        let red = checks
            .into_iter()
            .find(|c| c["name"] == check && c["state"] == "failing");
        match red {
            Some(red) if status == 503 => Ok(red.to_string()),
            _ => Err(page),
        }
    })
    .await
}

/// Waits until the worker has connected so many times.
async fn worker_is_back(worker: &Worker, times: usize) {
    eventually_ok(LATER, &format!("{times} sessions"), async || {
        let sessions = lines(worker, CONNECTED).len();
        (sessions >= times).then_some(()).ok_or(sessions)
    })
    .await;
}

/// The first line of the log that contains this, as JSON.
fn log_line(worker: &Worker, part: &str) -> Value {
    let found = lines(worker, part);
    serde_json::from_str(found.first().expect(part)).expect("a line of JSON")
}

fn cause(line: &str) -> String {
    let line: Value = serde_json::from_str(line).expect("a line of JSON");
    line["cause"].as_str().expect("a cause").to_string()
}

fn port_of(url: &str) -> u16 {
    let (_, rest) = url.split_once('@').unwrap();
    let (authority, _) = rest.split_once('/').unwrap();
    authority.rsplit(':').next().unwrap().parse().unwrap()
}
