//! Commands with which the worker dies each time: they end in the dead-letter queue after a bounded
//! number of deliveries, and their neighbours are told as if nothing had been.
#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, its helpers too"
)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::StreamExt as _;
use lapin::BasicProperties;
use lapin::options::{BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use rusqlite::Connection;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use support::amqp::{Amqp, COMMANDS, Command, Message};
use support::eventually::eventually;
use support::gateway::Answer;
use support::scene::{LATER, Load, SOON, Scene, lines};
use support::worker::Worker;
use wdt_cancel_worker::broker::wire;

/// Three runs that died, five trials, and the one that gives up.
const MOST_DELIVERIES: usize = 9;

/// For how long the dead-letter queue is looked at before the worker's life is.
const LOOK: Duration = Duration::from_millis(50);

/// Kills the worker of the moment whenever the gateway hears of the order `POISON`.
#[derive(Clone, Default)]
struct Killer {
    pid: Arc<AtomicI32>,
    kills: Arc<AtomicUsize>,
}

impl Killer {
    fn lurk(&self, scene: &Scene) {
        let killer = self.clone();
        scene.orders.instead(move |call| {
            call.has("POISON").then(|| {
                let pid = Pid::from_raw(killer.pid.load(Ordering::SeqCst)).unwrap();
                // It may be dead already, by the other call in flight.
                if kill_process(pid, Signal::KILL).is_ok() {
                    killer.kills.fetch_add(1, Ordering::SeqCst);
                }
                Answer::Hang
            })
        });
    }

    fn start(&self, scene: &Scene) -> Worker {
        let worker = scene.setup.start();
        self.pid.store(worker.pid(), Ordering::SeqCst);
        worker
    }
}

#[tokio::test]
async fn a_poison_command_is_dead_lettered_in_bounded_time_and_its_neighbours_are_told() {
    let scene = Scene::fresh().await;
    let amqp = scene.amqp().await;
    let mut results = amqp.results().await;
    drop(scene.worker().await);
    let killer = Killer::default();
    killer.lurk(&scene);
    let mut load = Load::new(&scene.orders, "QC", 40);
    load.add("cmd-poison", "POISON", "unknown");
    for n in 0..40 {
        load.add(&format!("cmd-QD-{n}"), &format!("QD-{n}"), "cancelled");
    }
    load.send(&amqp).await;

    let mut dead = amqp.dead().await;
    let mut starts = 0;
    let (mut worker, parked) = loop {
        let mut worker = killer.start(&scene);
        starts += 1;
        assert!(starts <= MOST_DELIVERIES, "it is delivered for ever");
        let parked = eventually(LATER, "it dies, or parks the poison", async || {
            if worker.is_running() {
                return dead.next(LOOK).await.map(Some);
            }
            Some(None)
        })
        .await;
        if let Some(parked) = parked {
            break (worker, parked);
        }
    };

    assert_eq!(parked.message_id.as_deref(), Some("cmd-poison"));
    assert_eq!(parked.headers["x-wdt-dead-reason"], "poison");
    load.is_told(&mut results, LATER).await;
    scene.queue_is_empty().await;
    dead.stays_empty(SOON / 20).await;
    assert!(worker.is_running());
    worker.wait_ready(SOON).await;
    for order in load.orders() {
        assert!(scene.orders.times_executed(order) <= 1, "{order}");
    }
    println!(
        "{starts} starts, {} kills",
        killer.kills.load(Ordering::SeqCst)
    );
    assert_eq!(lines(&worker, "died with this command").len(), 1);
}

#[tokio::test]
async fn a_command_that_kills_even_when_it_is_given_up_is_dead_lettered_unread() {
    let scene = Scene::fresh().await;
    let amqp = scene.amqp().await;
    let mut results = amqp.results().await;
    drop(scene.worker().await);
    let body = json!({ "order_no_list": ["QC-1"] });
    amqp.send(&Command::json(&body).id("cmd-1")).await;
    come_back(&amqp, 3).await;
    // As after three runs that died, and more trials than it may have.
    let ledger = Connection::open(scene.setup.dir().join("ledger")).unwrap();
    let properties = BasicProperties::default().with_message_id("cmd-1".into());
    let digest = wire::digest(body.to_string().as_bytes(), &properties).0;
    let now = "unixepoch() * 1000";
    ledger
        .execute_batch(&format!(
            "DELETE FROM runs;
             INSERT INTO runs (began_at, ended) VALUES ({now}, 0), ({now}, 0), ({now}, 0);"
        ))
        .unwrap();
    ledger
        .execute(
            &format!(
                "INSERT INTO trials (command, died, is_on, changed_at) VALUES (?1, 5, 1, {now})"
            ),
            [&digest[..]],
        )
        .unwrap();
    drop(ledger);

    let worker = scene.worker().await;
    let mut dead = amqp.dead().await;
    let parked = dead.next(LATER).await.unwrap();
    assert_eq!(parked.message_id.as_deref(), Some("cmd-1"));
    assert_eq!(parked.headers["x-wdt-dead-reason"], "poison");
    assert_eq!(parked.body, body);
    scene.queue_is_empty().await;
    assert_eq!(scene.orders.times_sent("QC-1"), 0);
    assert_eq!(lines(&worker, "unread, and nothing is told").len(), 1);
    // What comes next is told as ever, and nothing of the other one.
    amqp.send(&Command::orders(["QC-2"]).id("cmd-2")).await;
    let told: Vec<Message> = results.collect(1, LATER).await;
    assert_eq!(told[0].order_no(), "QC-2");
}

/// Takes what is in the commands' queue and goes away with it, so many times.
async fn come_back(amqp: &Amqp, times: usize) {
    for _ in 0..times {
        let channel = amqp.channel().await;
        channel
            .basic_qos(10, BasicQosOptions::default())
            .await
            .unwrap();
        let mut consumer = channel
            .basic_consume(
                COMMANDS.into(),
                "".into(),
                BasicConsumeOptions::default(),
                FieldTable::default(),
            )
            .await
            .unwrap();
        let delivery = tokio::time::timeout(SOON, consumer.next()).await.unwrap();
        assert!(delivery.is_some());
        channel.close(200, "gone".into()).await.unwrap();
    }
}
