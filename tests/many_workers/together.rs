//! What several workers do together while nothing is broken.

use std::time::Duration;

use super::support::amqp::{COMMANDS, Command};
use super::support::disk::{outcomes, told};
use super::support::eventually::eventually_ok;
use super::support::gateway::{Answer, CANCEL};
use super::support::postgres::Database;
use super::support::scene::{LATER, Load, SOON, Scene};
use super::support::worker::Worker;

/// A scene whose ledger is this database.
pub async fn scene_on(database: &Database) -> Scene {
    Scene::fresh()
        .await
        .set("WDT_LEDGER__URL", database.url())
        .set("WDT_API__TIMEOUT", "3s")
}

/// So many workers that are ready.
pub async fn workers(scene: &Scene, count: usize) -> Vec<Worker> {
    let mut workers: Vec<Worker> = (0..count).map(|_| scene.setup.start()).collect();
    for worker in &mut workers {
        worker.wait_ready(LATER).await;
    }
    workers
}

/// Waits until so many consumers are there.
pub async fn consumers(scene: &Scene, count: usize) {
    eventually_ok(LATER, "consumers", async || {
        let mut consumers = scene.vhost.consumers().await;
        consumers.retain(|consumer| consumer.queue == COMMANDS);
        (consumers.len() == count).then_some(()).ok_or(consumers)
    })
    .await;
}

#[tokio::test]
async fn three_workers_share_a_queue_and_send_each_order_once() {
    let database = Database::fresh().await;
    let scene = scene_on(&database).await;
    let amqp = scene.amqp().await;
    let mut workers = workers(&scene, 3).await;
    let mut results = amqp.results().await;
    let mut load = Load::new(&scene.orders, "QC", 300);
    // The same orders again, in other commands, which other workers may get.
    let again: Vec<String> = load.orders().into_iter().map(String::from).collect();
    for (n, order) in again.iter().enumerate().filter(|(n, _)| n % 7 != 3) {
        load.add(&format!("again-{n}"), order, "cancelled");
    }
    scene.slow(Duration::from_millis(50));
    load.send(&amqp).await;
    load.is_told(&mut results, LATER).await;
    scene.queue_is_empty().await;
    scene.each_was_sent_once(&load);
    // Each did a part of it.
    for worker in &workers {
        let calls = worker.lines("\"message\":\"call\"");
        let cancels = calls.iter().filter(|line| line.contains("ancel")).count();
        assert!(cancels > 0, "{}", worker.log());
    }
    for worker in &mut workers {
        assert_eq!(worker.terminate(SOON).await, 0, "{}", worker.log());
    }
    // Who stopped has nothing in hand.
    for table in ["holds", "workers"] {
        let rows = format!("SELECT count(*) FROM wdt.{table}");
        assert_eq!(database.number(&rows).await, 0, "{table}");
    }
    assert_eq!(
        database
            .number("SELECT count(*) FROM wdt.orders WHERE state = 2")
            .await,
        300
    );
}

#[tokio::test]
async fn what_one_worker_did_another_tells_again_without_a_call() {
    let database = Database::fresh().await;
    let scene = scene_on(&database).await;
    scene.orders.set("QC-SHIPPED", 70);
    let amqp = scene.amqp().await;
    let mut one = scene.worker().await;
    let mut results = amqp.results().await;
    let command = Command::orders(["QC-1", "QC-SHIPPED", "a\u{0}b"]).id("cmd-1");
    let first = told(&amqp, &mut results, &command, 3).await;
    scene.queue_is_empty().await;
    assert_eq!(one.terminate(SOON).await, 0);

    let _two = scene.worker().await;
    let again = told(&amqp, &mut results, &command, 3).await;
    assert_eq!(outcomes(&again), outcomes(&first));
    for (now, then) in again.iter().zip(&first) {
        assert_eq!(now.body["replayed"], true, "{now:#?}");
        for field in ["event_id", "reason", "attempts", "index", "total"] {
            assert_eq!(now.body[field], then.body[field], "{field}: {now:#?}");
        }
    }
    let reused = Command::orders(["QC-2"]).id("cmd-1");
    let reused = told(&amqp, &mut results, &reused, 1).await;
    assert_eq!(reused[0].reason_code(), "command_id_reused");
    let other = Command::orders(["QC-1"]).id("cmd-2");
    let other = told(&amqp, &mut results, &other, 1).await;
    assert_eq!(
        (other[0].outcome(), &other[0].body["replayed"]),
        ("cancelled", &true.into())
    );
    assert_eq!(scene.gateway.calls(CANCEL).len(), 1);
}

#[tokio::test]
async fn a_dead_workers_orders_are_taken_over_and_looked_up_before_they_are_sent_again() {
    let database = Database::fresh().await;
    let scene = scene_on(&database).await.set("WDT_API__CONCURRENCY", 3);
    scene.slow(Duration::from_secs(60));
    let amqp = scene.amqp().await;
    let mut one = scene.worker().await;
    let mut results = amqp.results().await;
    let load = Load::new(&scene.orders, "QC", 3);
    load.send(&amqp).await;
    scene.until_sent(&load, 3).await;
    one.kill9();
    scene.slow(Duration::ZERO);
    let _two = scene.worker().await;
    load.is_told(&mut results, LATER).await;
    scene.each_was_sent_once(&load);
    for order in load.orders() {
        assert!(scene.orders.times_looked_up(order) >= 1, "{order}");
    }
}

#[tokio::test]
async fn the_limits_are_the_accounts_and_not_the_workers() {
    let database = Database::fresh().await;
    let scene = scene_on(&database)
        .await
        .set("WDT_API__CALLS_PER_MINUTE", 30)
        .set("WDT_API__CONCURRENCY", 2)
        .set("WDT_API__MAX_ORDERS_PER_CALL", 1);
    scene.slow(Duration::from_millis(200));
    let amqp = scene.amqp().await;
    let _workers = workers(&scene, 3).await;
    let mut results = amqp.results().await;
    let load = Load::new(&scene.orders, "QC", 40);
    load.send(&amqp).await;
    load.is_told(&mut results, LATER * 2).await;
    scene.each_was_sent_once(&load);
    let most = scene
        .gateway
        .most_calls_within(Duration::from_secs(60), None);
    assert!(most <= 30, "{most} in a minute");
    let most = scene.gateway.most_in_flight("default");
    assert!(most <= 2, "{most} at once");
}

#[tokio::test]
async fn an_account_that_is_left_alone_by_one_worker_is_left_alone_by_all() {
    let database = Database::fresh().await;
    let scene = scene_on(&database).await;
    let amqp = scene.amqp().await;
    let workers = workers(&scene, 3).await;
    let mut results = amqp.results().await;
    let too_many = "超过每分钟最大调用频率限制，请稍后重试";
    scene.orders.instead(move |call| {
        (call.is_cancel() && call.nth == 1).then(|| Answer::status(100, too_many))
    });
    let first = Load::new(&scene.orders, "FIRST", 1);
    first.send(&amqp).await;
    let quiet = "SELECT count(*) FROM wdt.accounts WHERE quiet_until > now() + interval '30 s'";
    eventually_ok(LATER, "it is known to all", async || {
        match database.number(quiet).await {
            1 => Ok(()),
            other => Err(other),
        }
    })
    .await;
    let cooled: usize = workers
        .iter()
        .map(|w| w.lines("leaving the account alone").len())
        .sum();
    assert_eq!(cooled, 1);
    // Whoever gets these would call at once.
    let load = Load::new(&scene.orders, "QC", 60);
    load.send(&amqp).await;
    let held = "SELECT count(DISTINCT worker) FROM wdt.holds";
    eventually_ok(LATER, "each worker has some", async || {
        match database.number(held).await {
            3 => Ok(()),
            other => Err(other),
        }
    })
    .await;
    let quiet_for = "SELECT count(*) FROM wdt.accounts WHERE quiet_until < now() + interval '50 s'";
    eventually_ok(LATER, "ten seconds pass", async || {
        match database.number(quiet_for).await {
            1 => Ok(()),
            other => Err(other),
        }
    })
    .await;
    assert_eq!(scene.gateway.calls(CANCEL).len(), 1);
    database
        .run("UPDATE wdt.accounts SET quiet_until = now()")
        .await;
    let told = results.collect(61, LATER * 2).await;
    for event in told.iter().filter(|event| event.order_no() != "FIRST-0000") {
        load.check(event);
    }
    scene.each_was_sent_once(&load);
}
