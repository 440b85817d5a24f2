//! Sessions with the broker that end, lines that break, and a broker that is killed, frozen or short of
//! room, all under load: the real worker against a real broker and a scripted gateway. Whatever
//! happens, every order is told, none is sent again after it was told, and the worker comes back by
//! itself, with its consumer and its prefetch as the broker sees them.
#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, its helpers too"
)]

mod support;

use std::time::Duration;

use lapin::options::ExchangeDeleteOptions;
use lapin::types::FieldTable;
use support::amqp::{COMMANDS, DEAD, Inbox, RESULTS};
use support::broker::{Broker, Consumer};
use support::eventually::{eventually, eventually_ok};
use support::gateway::QUERY;
use support::proxy::{Cable, Proxy};
use support::scene::{LATER, LOST, Load, SOON, Scene, causes, is_back, lines};
use support::worker::Worker;
use tokio::time::Instant;

/// An answer of the gateway that leaves time for something to happen meanwhile.
const SLOW: Duration = Duration::from_millis(300);

/// Two looks, half a minute apart, the first within as long; a busy machine has some time more.
const SILENT_LIMIT: Duration = Duration::from_secs(75);

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
        is_back(&worker, times + 1).await;
        scene.is_consumed_like(&consumer).await;
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
    let consumer = scene.consumer().await;
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
    amqp.bind(results.name(), "cancel.#").await;
    load.is_told(&mut results, LATER).await;
    scene.queue_is_empty().await;
    scene.each_was_sent_once(&load);
    scene.is_consumed_like(&consumer).await;
    assert_eq!(lines(&worker, LOST).len(), 1, "{}", worker.log());
}

/// What an operator who lowers the broker's largest message does to everybody who publishes.
#[tokio::test]
async fn a_channel_closed_for_a_precondition_is_opened_again_until_the_event_is_taken() {
    let mut broker = Broker::start().await;
    let scene = Scene::on(broker.vhost().await);
    let amqp = scene.amqp().await;
    let mut results = amqp.results().await;
    let mut worker = scene.worker().await;
    let consumer = scene.consumer().await;
    assert_eq!(worker.terminate(SOON).await, 0);
    let load = Load::new(&scene.orders, "QC", 20);
    load.send(&amqp).await;
    // Smaller than any event; it holds for channels that are opened from now on.
    broker.limit_size(100).await;
    let mut worker = scene.setup.start();
    worker.logs(SOON, LOST).await;
    // Whoever writes first to the channel that is being closed may be told only that it is.
    worker.logs(LATER, "PRECONDITION_FAILED").await;
    is_back(&worker, 3).await;
    // The page is made anew each second, so the first may tell of the time before.
    eventually_ok(SOON, "readiness says why", async || {
        let said = worker.not_ready("broker").await;
        let known = said.contains("larger than") || said.contains("Closing");
        known.then_some(()).ok_or(said)
    })
    .await;
    results.stays_empty(Duration::from_millis(200)).await;

    broker.limit_size(16 * 1024 * 1024).await;
    worker.wait_ready(LATER).await;
    load.is_told(&mut results, LATER).await;
    scene.queue_is_empty().await;
    scene.each_was_sent_once(&load);
    scene.is_consumed_like(&consumer).await;
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
    // Since 4.3 the broker takes the consumer away instead, and a late acknowledgement does nothing.
    let closed = told.contains("PRECONDITION_FAILED");
    let cancelled = told.contains("cancelled the consumer") && broker.is_at_least(4, 3).await;
    assert!(closed || cancelled, "{told}");
    load.is_told(&mut results, LATER).await;
    scene.queue_is_empty().await;
    scene.each_was_sent_once(&load);
    scene.is_consumed_like(&consumer).await;
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
    is_back(&worker, 2).await;
    scene.is_consumed_like(&consumer).await;
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
    scene.is_consumed_like(&consumer).await;
    scene.each_was_sent_once(&load);
    let told = lines(&worker, LOST);
    assert_eq!(told.len(), 1, "{told:#?}");
    assert!(told[0].contains("silent"), "{told:#?}");
}

/// The broker knows the consumer, believes that it delivers, and has more that is ready; the line
/// lives, and no delivery comes. Takes a minute, as above.
#[tokio::test]
async fn a_consumer_that_is_registered_and_silent_is_replaced() {
    let scene = Scene::fresh().await;
    let cable = Proxy::to(scene.vhost.port(), Cable::WithoutDeliveries);
    let url = cable.url(&scene.vhost.url());
    let scene = scene.set("WDT_AMQP__URL", url);
    let amqp = scene.amqp().await;
    let mut results = amqp.results().await;
    let worker = scene.worker().await;
    let consumer = scene.consumer().await;
    // The next session is to be a good one.
    cable.set(Cable::Whole);
    let load = Load::new(&scene.orders, "QC", 100);
    load.send(&amqp).await;
    let sent = Instant::now();
    let given = consumer.prefetch;
    scene
        .vhost
        .queue_holds(SOON, COMMANDS, 100 - given, given)
        .await;
    let told = worker.logs(LATER, LOST).await;
    let time = sent.elapsed();
    println!("the silence was noticed after {} ms", time.as_millis());
    assert!(told.contains("silent"), "{told}");
    assert!(time < SILENT_LIMIT, "after {time:?}: {told}");
    load.is_told(&mut results, LATER).await;
    scene.queue_is_empty().await;
    scene.each_was_sent_once(&load);
    scene.is_consumed_like(&consumer).await;
    assert_eq!(lines(&worker, LOST).len(), 1, "{}", worker.log());
}

#[tokio::test]
async fn without_declare_a_deleted_queue_is_waited_for() {
    let scene = Scene::fresh().await.set("WDT_AMQP__DECLARE", false);
    let amqp = scene.amqp().await;
    for queue in [COMMANDS, DEAD] {
        amqp.declare_queue(queue, FieldTable::default()).await;
    }
    let mut results = amqp.results().await;
    let mut worker = scene.worker().await;
    amqp.delete_queue(COMMANDS).await;
    worker.logs(LATER, "does not exist").await;
    // The page is made anew each second, so the first may tell of the time before.
    eventually_ok(SOON, "readiness names the queue", async || {
        let said = worker.not_ready("broker").await;
        said.contains(COMMANDS).then_some(()).ok_or(said)
    })
    .await;
    amqp.declare_queue(COMMANDS, FieldTable::default()).await;
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
    assert!(worker.not_ready("broker").await.contains("127.0.0.1"));
    broker.restart().await;
    worker.wait_ready(LATER).await;
    scene.is_consumed_like(&consumer).await;

    let mut results = scene.amqp().await.results().await;
    load.is_told(&mut results, LATER).await;
    scene.queue_is_empty().await;
    scene.each_was_sent_once(&load);
    assert_eq!(scene.orders.calls(QUERY), 0, "nothing was in doubt");
    let told = causes(&worker);
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
    let frozen = Instant::now();
    broker.freeze();
    // Two heartbeats of 10 s without a byte.
    let told = worker.logs(LATER, LOST).await;
    assert!(frozen.elapsed() < Duration::from_secs(30), "{told}");
    worker.not_ready("broker").await;
    // Whatever the gateway was asked before is recorded meanwhile; no new session hangs for ever.
    tokio::time::sleep_until(frozen + Duration::from_secs(25)).await;
    broker.thaw();
    worker.wait_ready(LATER).await;
    load.is_told(&mut results, LATER).await;
    scene.queue_is_empty().await;
    scene.each_was_sent_once(&load);
    scene.is_consumed_like(&consumer).await;
    causes(&worker);
}

// Lines that break

/// What the broker and the worker agree on in these tests: a silent peer is given up after two of
/// them.
const HEARTBEAT_SECONDS: u64 = 2;
/// Two heartbeats, the timer's grain on both sides, and a busy machine.
const SILENCE_LIMIT: Duration = Duration::from_secs(15);
/// A line that ends with a word is noticed at once.
const WORD_LIMIT: Duration = Duration::from_secs(5);

#[tokio::test]
async fn a_line_that_is_frozen_both_ways_is_given_up_and_made_again() {
    meets_a_frozen_line(Cable::Mute).await;
}

#[tokio::test]
async fn a_line_that_is_frozen_towards_the_broker_is_given_up_and_made_again() {
    meets_a_frozen_line(Cable::MuteToBroker).await;
}

#[tokio::test]
async fn a_line_that_is_frozen_towards_the_worker_is_given_up_and_made_again() {
    meets_a_frozen_line(Cable::MuteToWorker).await;
}

#[tokio::test]
async fn a_line_that_is_reset_is_made_again() {
    let line = Line::under_load().await;
    line.breaks(Cable::Reset, WORD_LIMIT).await;
    line.becomes_whole().await;
}

#[tokio::test]
async fn a_line_that_is_cut_and_refused_for_a_while_is_made_again() {
    let line = Line::under_load().await;
    line.breaks(Cable::Cut, WORD_LIMIT).await;
    line.is_tried_again().await;
    line.becomes_whole().await;
}

/// The broker has closed, or is gone, and no packet tells the worker.
#[tokio::test]
async fn a_line_that_is_half_open_at_the_worker_is_given_up_and_made_again() {
    let line = Line::under_load().await;
    line.breaks(Cable::HalfOpenAtWorker, SILENCE_LIMIT).await;
    line.becomes_whole().await;
}

/// The broker goes on believing in the old session: it holds that one's deliveries until it misses
/// heartbeats, and knows two consumers meanwhile.
#[tokio::test]
async fn a_line_that_is_half_open_at_the_broker_is_made_again_and_the_old_session_ends() {
    let line = Line::under_load().await;
    line.breaks(Cable::HalfOpenAtBroker, WORD_LIMIT).await;
    line.becomes_whole().await;
}

/// Slowness is no fault: the session lives on.
#[tokio::test]
async fn a_slow_line_is_borne() {
    let mut line = Line::under_load().await;
    line.cable.set(Cable::Slow);
    line.is_told().await;
    assert_eq!(lines(&line.worker, LOST), [""; 0]);
    line.worker.wait_ready(SOON).await;
}

async fn meets_a_frozen_line(cable: Cable) {
    let line = Line::under_load().await;
    line.breaks(cable, SILENCE_LIMIT).await;
    // A node that takes connections and says nothing does not hold the worker for ever.
    line.is_tried_again().await;
    line.becomes_whole().await;
}

/// A worker that reaches its broker by a cable, with a fifth of a load behind it.
struct Line {
    scene: Scene,
    cable: Proxy,
    worker: Worker,
    consumer: Consumer,
    load: Load,
    results: Inbox,
}

impl Line {
    async fn under_load() -> Self {
        let scene = Scene::fresh().await;
        let cable = Proxy::to(scene.vhost.port(), Cable::Whole);
        let url = cable.url(&scene.vhost.url());
        let scene = scene.set(
            "WDT_AMQP__URL",
            format!("{url}?heartbeat={HEARTBEAT_SECONDS}"),
        );
        scene.slow(SLOW);
        let amqp = scene.amqp().await;
        let results = amqp.results().await;
        let worker = scene.worker().await;
        let consumer = scene.consumer().await;
        let load = Load::new(&scene.orders, "QC", 200);
        load.send(&amqp).await;
        scene.until_sent(&load, 40).await;
        Self {
            scene,
            cable,
            worker,
            consumer,
            load,
            results,
        }
    }

    /// Breaks it; the worker says so in time.
    async fn breaks(&self, cable: Cable, limit: Duration) {
        let broken = Instant::now();
        self.cable.set(cable);
        let told = self.worker.logs(LATER, LOST).await;
        let time = broken.elapsed();
        println!("{cable:?} was noticed after {} ms", time.as_millis());
        assert!(time < limit, "after {time:?}: {told}");
    }

    async fn is_tried_again(&self) {
        let before = self.cable.taken();
        eventually(LATER, "it tries again", async || {
            (self.cable.taken() >= before + 2).then_some(())
        })
        .await;
        // The page is made anew each second.
        eventually_ok(SOON, "readiness is red", async || {
            match self.worker.readiness().await {
                Some((503, _)) => Ok(()),
                other => Err(other),
            }
        })
        .await;
    }

    async fn becomes_whole(mut self) {
        self.cable.set(Cable::Whole);
        self.worker.wait_ready(LATER).await;
        self.is_told().await;
        causes(&self.worker);
    }

    async fn is_told(&mut self) {
        self.load.is_told(&mut self.results, LATER).await;
        self.scene.queue_is_empty().await;
        self.scene.each_was_sent_once(&self.load);
        assert_eq!(self.scene.orders.calls(QUERY), 0, "nothing was in doubt");
        self.scene.is_consumed_like(&self.consumer).await;
    }
}

// A broker that is short of room

#[tokio::test]
async fn a_broker_short_of_memory_blocks_the_telling_and_nothing_else() {
    is_blocked(Broker::raise_alarm, Broker::end_alarm).await;
}

#[tokio::test]
async fn a_broker_short_of_disk_blocks_the_telling_and_nothing_else() {
    is_blocked(Broker::raise_disk_alarm, Broker::end_disk_alarm).await;
}

async fn is_blocked(raise: impl AsyncFnOnce(&mut Broker), end: impl AsyncFnOnce(&mut Broker)) {
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
    raise(&mut broker).await;
    let said = worker.not_ready("broker").await;
    assert!(said.contains("takes no publications"), "{said}");
    // The calls go on, and their outcomes are recorded.
    scene.until_sent(&load, 200).await;
    assert_eq!(
        scene.vhost.consumers().await.len(),
        2,
        "ours and the test's"
    );
    end(&mut broker).await;
    load.is_told(&mut results, LATER).await;
    scene.queue_is_empty().await;
    worker.wait_ready(SOON).await;
    scene.each_was_sent_once(&load);
    // Of the same session, though it may take more at once by now.
    scene.is_consumed_like(&consumer).await;
    assert_eq!(lines(&worker, LOST), [""; 0]);
    assert_eq!(lines(&worker, "the broker takes no publications").len(), 1);
    assert_eq!(lines(&worker, "takes publications again").len(), 1);
}
