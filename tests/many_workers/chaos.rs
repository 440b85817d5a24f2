//! Three workers, and everything around them breaks at random: workers are killed and frozen, for
//! less and for more than a lease, broker and database are started anew, the gateway loses answers.
//! Every fifth command is a repetition. In the end each order was told once, rightly, no order was
//! sent after it was told, and the minute was kept.
//!
//! `WDT_TEST_ORDERS` makes it larger, and the minute with it: 20,000 take half an hour.
//! `WDT_TEST_SEED` repeats the chances.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::time::timeout;

use super::support::amqp::{Amqp, COMMANDS, Inbox};
use super::support::broker::Broker;
use super::support::chance::chance;
use super::support::eventually::eventually_ok;
use super::support::gateway::{Answer, CANCEL};
use super::support::orders::Call;
use super::support::postgres::Postgres;
use super::support::process::Signal;
use super::support::scene::{LATER, Load, Scene};
use super::support::worker::Worker;

const WORKERS: usize = 3;
const ORDERS: usize = 1_000;
/// The minute: small enough to be met. Of more orders, a call for each [`ORDERS_PER_PLACE`].
const PER_MINUTE: usize = 120;
const ORDERS_PER_PLACE: usize = 50;
/// Commands that are sent between two blows: with so few of them there are thirty blows at least,
/// and with more orders some three hundred.
const PIECE: usize = 40;
const PIECES: usize = 300;
const AT_ONCE: usize = 4;
const PER_CALL: usize = 4;
/// A cancel takes so long, so that what breaks meets calls in the air.
const SLOW: Duration = Duration::from_millis(300);
/// A freeze that outlives the lease: `api.timeout`, 2 s here, and 10 s.
const LONG_FREEZE: Duration = Duration::from_secs(15);
/// Between two blows.
const PAUSE_MS: std::ops::Range<u64> = 200..2_500;
/// Once nothing is broken any more, everything is told within this, and as long again for each
/// thousand orders.
const PEACE: Duration = Duration::from_secs(240);

#[tokio::test]
async fn whatever_breaks_each_order_is_told_once_rightly_and_the_minute_is_kept() {
    let mut rng = chance();
    let count = std::env::var("WDT_TEST_ORDERS").map_or(ORDERS, |n| n.parse().unwrap());
    let per_minute = PER_MINUTE.max(count / ORDERS_PER_PLACE);
    let mut broker = Broker::start().await;
    let mut postgres = Postgres::start().await;
    let database = postgres.database().await;
    let scene = Scene::on(broker.vhost().await)
        .set("WDT_LEDGER__URL", database.url())
        .set("WDT_API__TIMEOUT", "2s")
        .set("WDT_API__CALLS_PER_MINUTE", per_minute)
        .set("WDT_API__CONCURRENCY", AT_ONCE)
        .set("WDT_API__MAX_ORDERS_PER_CALL", PER_CALL)
        .set("WDT_RETRY__MAX_ATTEMPTS", 100);
    let lost = Arc::new(Mutex::new((0, 0)));
    bad_day(&scene, rng.fork(), Arc::clone(&lost));
    scene.slow(SLOW);
    let mut workers: Vec<Worker> = (0..WORKERS).map(|_| scene.setup.start()).collect();
    for worker in &mut workers {
        worker.wait_ready(LATER).await;
    }
    let mut load = Load::new(&scene.orders, "QC", count);
    load.repeat(5);
    let mut told = Told::default();
    let mut results = scene.amqp().await.results().await;
    let began = Instant::now();
    let mut blows: BTreeMap<&str, usize> = BTreeMap::new();
    let mut left = load.commands();
    let piece = PIECE.max(left.len() / PIECES);
    while !left.is_empty() {
        // The work comes in while things break.
        let (now, later) = left.split_at(left.len().min(piece));
        left = later;
        scene.amqp().await.send_all(COMMANDS, now).await;
        let end = Instant::now() + Duration::from_millis(rng.u64(PAUSE_MS));
        told.read(&load, &mut results, end).await;
        let victim = rng.usize(..WORKERS);
        let blow = match rng.u8(..100) {
            0..40 => {
                workers[victim].kill9();
                workers[victim] = scene.setup.start();
                "a worker killed"
            }
            40..65 => {
                workers[victim].signal(Signal::STOP);
                let end = Instant::now() + Duration::from_millis(rng.u64(..3_000));
                told.read(&load, &mut results, end).await;
                workers[victim].signal(Signal::CONT);
                "a worker frozen"
            }
            65..75 => {
                workers[victim].signal(Signal::STOP);
                let end = Instant::now() + LONG_FREEZE;
                told.read(&load, &mut results, end).await;
                workers[victim].signal(Signal::CONT);
                "a worker frozen past its lease"
            }
            75..85 => {
                postgres.crash().await;
                postgres.revive().await;
                "the database started anew"
            }
            85..92 => {
                postgres.freeze();
                let end = Instant::now() + Duration::from_millis(rng.u64(..3_000));
                told.read(&load, &mut results, end).await;
                postgres.thaw();
                "the database frozen"
            }
            _ => {
                broker.restart().await;
                results = again(&scene).await;
                "the broker started anew"
            }
        };
        *blows.entry(blow).or_default() += 1;
        for worker in &mut workers {
            if !worker.is_running() {
                panic!("a worker ended by itself:\n{}", worker.log());
            }
        }
    }
    let breaking = began.elapsed();
    good_day(&scene);
    let limit = PEACE + PEACE * u32::try_from(count / 1_000).unwrap();
    let end = Instant::now() + limit;
    while told.outcomes.len() < load.orders().len() && Instant::now() < end {
        let soon = Instant::now() + Duration::from_secs(5);
        told.read(&load, &mut results, soon.min(end)).await;
    }
    let missing: BTreeSet<_> = load
        .orders()
        .into_iter()
        .filter(|order| !told.outcomes.contains_key(*order))
        .collect();
    assert!(missing.is_empty(), "not told within {limit:?}: {missing:?}");
    eventually_ok(limit, "everything is acknowledged", async || {
        told.read(
            &load,
            &mut results,
            Instant::now() + Duration::from_millis(100),
        )
        .await;
        match scene.vhost.queue(COMMANDS).await {
            Some(queue) if (queue.ready, queue.unacked) == (0, 0) => Ok(()),
            queue => Err(queue),
        }
    })
    .await;

    let (lost, done) = *lost.lock().unwrap();
    println!(
        "{count} orders in {} commands: broken for {breaking:.0?}, all told after {:.0?}",
        load.commands().len(),
        began.elapsed()
    );
    println!("blows: {blows:?}");
    println!(
        "gateway: {} calls, {lost} lost answers, {done} of them carried out",
        scene.gateway.requests().len()
    );
    println!("events: {} for {} orders", told.events, told.outcomes.len());

    // Told once: a repetition has the same id. Rightly: `Load::check` looked at each.
    for (order, ids) in &told.outcomes {
        assert_eq!(ids.len(), 1, "{order}: {ids:?}");
    }
    for order in load.orders() {
        assert!(scene.orders.times_executed(order) <= 1, "{order}");
    }
    let late = told.sent_after(&scene);
    assert!(late.is_empty(), "sent after they were told: {late:?}");
    let most = scene
        .gateway
        .most_calls_within(Duration::from_secs(60), None);
    println!("{most} calls in the fullest minute, of {per_minute}");
    assert!(most <= per_minute, "{most} calls in a minute");
    assert!(most * 2 > per_minute, "the minute was never met");
    let most = scene.gateway.most_in_flight("default");
    assert!(most <= AT_ONCE, "{most} calls at once");
    // How many calls there are, and so how many answers are lost, is up to chance: some 15 of 1,000
    // orders.
    assert!(lost > count / 500, "the gateway was not lossy enough");
    for mut worker in workers {
        assert_eq!(worker.terminate(LATER).await, 0, "{}", worker.log());
    }
}

/// What the events tell.
#[derive(Default)]
struct Told {
    events: usize,
    /// The events' ids, by order.
    outcomes: BTreeMap<String, BTreeSet<String>>,
    /// When an order was first read as told.
    at: BTreeMap<String, Instant>,
}

impl Told {
    /// Reads what comes until `end`.
    async fn read(&mut self, load: &Load, results: &mut Inbox, end: Instant) {
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let Some(message) = results.next(left).await else {
                return;
            };
            let (_, order) = load.check(&message);
            self.events += 1;
            self.at.entry(order.clone()).or_insert_with(Instant::now);
            let id = message.text("event_id").to_owned();
            self.outcomes.entry(order).or_default().insert(id);
        }
    }

    /// Orders that a cancel carried which arrived after they were told.
    fn sent_after(&self, scene: &Scene) -> BTreeSet<String> {
        let mut late = BTreeSet::new();
        for request in scene.gateway.calls(CANCEL) {
            for order in request.orders() {
                if self.at.get(&order).is_some_and(|told| *told < request.at) {
                    late.insert(order);
                }
            }
        }
        late
    }
}

/// The results again, after the broker was away.
async fn again(scene: &Scene) -> Inbox {
    let amqp = timeout(LATER, Amqp::connect(&scene.vhost.url())).await;
    amqp.expect("the broker is back").results().await
}

/// One call of ten goes wrong.
fn bad_day(scene: &Scene, mut rng: fastrand::Rng, lost: Arc<Mutex<(usize, usize)>>) {
    let (mut chance, counts) = (rng.fork(), Arc::clone(&lost));
    // Not carried out.
    scene.orders.instead(move |call| match chance.u8(..100) {
        0..5 => {
            counts.lock().unwrap().0 += usize::from(call.is_cancel());
            Some(noise(chance.u8(..)))
        }
        5..6 if call.is_cancel() => Some(Answer::Raw {
            status: 429,
            headers: vec![("retry-after".into(), "1".into())],
            body: Vec::new(),
        }),
        _ => None,
    });
    // Carried out, and the answer is lost or late.
    scene
        .orders
        .afterwards(move |call: &Call<'_>| match rng.u8(..100) {
            0..7 if call.is_cancel() => {
                let mut counts = lost.lock().unwrap();
                *counts = (counts.0 + 1, counts.1 + 1);
                Some(noise(rng.u8(..)))
            }
            _ => None,
        });
}

fn good_day(scene: &Scene) {
    scene.orders.instead(|_| None);
    scene.orders.afterwards(|_| None);
}

/// An answer that tells nothing.
fn noise(kind: u8) -> Answer {
    match kind % 6 {
        0 => Answer::http(500, "text/plain", "oh"),
        1 => Answer::http(200, "text/html", "<html>系统维护中</html>"),
        2 => Answer::Close,
        3 => Answer::Reset,
        4 => Answer::status(99, "其他错误"),
        _ => Answer::Hang,
    }
}
