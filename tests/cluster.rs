//! Three nodes of RabbitMQ on this machine, and the leader of the commands' queue killed under load,
//! again and again: nothing that was confirmed to its publisher is lost, every order is told once
//! and rightly, and the worker is back by itself. One test, for a cluster takes 450 MiB and time.
#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, its helpers too"
)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use lapin::types::{AMQPValue, FieldTable};
use support::amqp::{Amqp, COMMANDS, DEAD};
use support::broker::{Broker, Vhost};
use support::eventually::eventually_ok;
use support::gateway::QUERY;
use support::scene::{LATER, LOST, Load, Scene, lines};
use tokio::sync::watch;
use tokio::time::Instant;

const KILLS: usize = 3;
const ORDERS: usize = 2_000;
/// Between two commands of the publisher: 20 s for all of them, if nothing happened.
const PACE: Duration = Duration::from_millis(10);
/// From the kill until the worker has its consumer and orders move again. An election takes
/// seconds; a session that has to be made again waits for up to half a minute if nodes refuse it.
const BACK: Duration = Duration::from_secs(60);
/// The events, in a quorum queue too.
const EVENTS: &str = "test.events";

#[tokio::test]
async fn the_leader_of_the_commands_is_killed_under_load_and_nothing_is_lost() {
    let mut nodes = Broker::start_cluster().await;
    let vhost = nodes[0].vhost().await;
    let views: Vec<Vhost> = nodes.iter().map(|node| vhost.seen_from(node)).collect();
    let urls: Vec<String> = views.iter().map(Vhost::url).collect();
    let scene = Scene::on(vhost).set("WDT_AMQP__URL", urls.join(","));
    scene.slow(Duration::from_millis(50));
    let amqp = scene.amqp().await;
    amqp.declare_results().await;
    let mut quorum = FieldTable::default();
    let kind = AMQPValue::LongString("quorum".into());
    quorum.insert("x-queue-type".into(), kind);
    amqp.declare_queue(EVENTS, quorum).await;
    amqp.bind(EVENTS, "cancel.#").await;
    drop(amqp);
    let mut worker = scene.worker().await;
    let consumer = scene.consumer().await;
    all_at_work(&views).await;

    let load = Arc::new(Load::new(&scene.orders, "QC", ORDERS));
    let confirmed = Arc::new(AtomicUsize::new(0));
    // The publisher waits for the kills, so that each of them meets a load that goes on after it.
    let (leave, left) = watch::channel(0);
    let publisher = tokio::spawn(publish(urls, load.clone(), confirmed.clone(), left));
    for kill in 1..=KILLS {
        let due = ORDERS * kill / (KILLS + 1);
        leave.send_replace(due + ORDERS / (KILLS + 1) / 2);
        eventually_ok(LATER, "the publisher gets on", async || {
            let confirmed = confirmed.load(Ordering::SeqCst);
            (confirmed >= due).then_some(()).ok_or(confirmed)
        })
        .await;
        let port = views[0].leader(COMMANDS).await;
        let leader = nodes.iter().position(|n| n.port() == port).unwrap();
        nodes[leader].kill9().await;
        let killed = Instant::now();
        let before = scene.sent(&load);
        let alive = &views[(leader + 1) % nodes.len()];
        eventually_ok(
            BACK,
            "one consumer as before, and orders move",
            async || {
                let mut consumers = alive.consumers().await;
                consumers.retain(|c| c.queue == COMMANDS && c.connected);
                let sent = scene.sent(&load);
                let is_back = consumers.len() == 1
                    && consumers[0].prefetch >= consumer.prefetch
                    && consumers[0].manual_ack
                    && sent > before + 50;
                is_back.then_some(()).ok_or((consumers, before, sent))
            },
        )
        .await;
        println!(
            "kill {kill}, of node {leader}: back after {} ms, sessions lost so far: {}",
            killed.elapsed().as_millis(),
            lines(&worker, LOST).len()
        );
        nodes[leader].restart().await;
        all_at_work(&views).await;
    }
    leave.send_replace(ORDERS);
    let repeated = publisher.await.unwrap();
    println!("{ORDERS} commands confirmed, {repeated} published a second time");

    let amqp = Amqp::connect(&views[0].url()).await;
    let mut events = amqp.inbox(EVENTS).await;
    let told = load.is_told(&mut events, LATER).await;
    println!("{} events for {ORDERS} orders", told.len());
    scene.queue_is_empty().await;
    worker.wait_ready(LATER).await;
    scene.each_was_sent_once(&load);
    assert_eq!(scene.orders.calls(QUERY), 0, "nothing was in doubt");
    scene.vhost.queue_holds(LATER, DEAD, 0, 0).await;
    scene.is_consumed_like(&consumer).await;
    assert!(worker.is_running());
}

/// Every node has its member of each queue, so a majority is left whichever is killed.
async fn all_at_work(views: &[Vhost]) {
    for view in views {
        for queue in [COMMANDS, DEAD, EVENTS] {
            view.has_member(LATER, queue).await;
        }
    }
}

/// Publishes one command after the other, as many as it has leave for, each until it is confirmed, by whichever node takes it;
/// tells how often one had to be published again.
async fn publish(
    urls: Vec<String>,
    load: Arc<Load>,
    confirmed: Arc<AtomicUsize>,
    mut leave: watch::Receiver<usize>,
) -> usize {
    let mut turns = urls.iter().cycle();
    let mut client: Option<Amqp> = None;
    let mut again = 0;
    for (n, command) in load.commands().iter().enumerate() {
        leave.wait_for(|leave| n < *leave).await.unwrap();
        loop {
            if client.is_none() {
                client = Amqp::try_connect(turns.next().unwrap()).await;
            }
            let Some(amqp) = &client else {
                tokio::time::sleep(PACE).await;
                continue;
            };
            if amqp.try_send(command).await {
                break;
            }
            client = None;
            again += 1;
        }
        confirmed.fetch_add(1, Ordering::SeqCst);
        tokio::time::sleep(PACE).await;
    }
    again
}
