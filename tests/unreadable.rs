//! Commands that the AMQP client cannot even read, or dies of: properties and header names that are
//! not UTF-8, and header tables thousands deep. No client library sends them, so the tests write the
//! frames themselves. Each is told, and its neighbours are handled as if it had not been there.
#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, its helpers too"
)]

mod support;

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::json;
use support::amqp::{COMMANDS, DEAD};
use support::broker::Broker;
use support::raw::{self, Property};
use support::scene::{LATER, LOST, Load, SOON, Scene, lines};
use tokio::time::Instant;

#[tokio::test]
async fn what_is_not_utf8_costs_one_session_and_is_told() {
    let scene = Scene::fresh().await;
    let amqp = scene.amqp().await;
    let mut results = amqp.results().await;
    let mut worker = scene.worker().await;
    let consumer = scene.consumer().await;
    assert_eq!(worker.terminate(SOON).await, 0);
    // All of them lie in one prefetch: good ones before, between and behind.
    let mut load = Load::new(&scene.orders, "QC", 60);
    amqp.send_all(COMMANDS, &load.commands()[..20]).await;
    publish(
        &scene,
        "BAD-1",
        Property::CorrelationId(b"\xff\xfe".to_vec()),
    )
    .await;
    publish(&scene, "BAD-2", Property::MessageId(b"caf\xe9".to_vec())).await;
    amqp.send_all(COMMANDS, &load.commands()[20..40]).await;
    // A header's name, which decides nothing: length, name, a boolean. The order is as good as any.
    let header = Property::Headers(b"\x02\xc3\x28t\x01".to_vec());
    publish(&scene, "GOOD-3", header).await;
    amqp.send_all(COMMANDS, &load.commands()[40..]).await;

    let began = Instant::now();
    let worker = scene.setup.start();
    let mut rejected = Vec::new();
    let mut told = BTreeSet::new();
    while told.len() < 61 || rejected.len() < 2 {
        let message = results.next(LATER).await.expect("an event");
        if message.outcome() == "rejected" {
            assert_eq!(message.reason_code(), "malformed", "{message:#?}");
            rejected.push(message.body["reason"]["message"].to_string());
            continue;
        }
        if message.order_no() == "GOOD-3" {
            load.add(message.text("command_id"), "GOOD-3", "cancelled");
        }
        told.insert(load.check(&message));
    }
    println!("all told after {} ms", began.elapsed().as_millis());
    rejected.sort();
    assert!(rejected[0].contains("correlation_id"), "{rejected:?}");
    assert!(rejected[1].contains("message_id"), "{rejected:?}");
    scene.queue_is_empty().await;
    scene.vhost.queue_holds(SOON, DEAD, 2, 0).await;
    scene.is_consumed_like(&consumer).await;
    scene.each_was_sent_once(&load);
    for order in ["BAD-1", "BAD-2"] {
        assert_eq!(scene.orders.times_sent(order), 0, "{order}");
    }
    let lost = lines(&worker, LOST);
    assert_eq!(lost.len(), 1, "{lost:#?}");
    assert!(lost[0].contains("failed to parse"), "{lost:#?}");
    // What lies in the dead-letter queue can be read by everybody.
    let mut dead = amqp.dead().await;
    for message in dead.collect(2, SOON).await {
        assert!(message.body["order_no_list"].is_array(), "{message:#?}");
    }
}

/// What mends the messages stands between the client and the broker, so it speaks TLS for it.
#[tokio::test]
async fn what_is_not_utf8_is_mended_on_a_line_with_tls() {
    let broker = Broker::start().await;
    let (port, authority) = broker.listen_with_tls().await;
    let trusted = broker.dir().join("authority.pem");
    std::fs::write(&trusted, authority).unwrap();
    let scene = Scene::on(broker.vhost().await);
    let name = scene.vhost.name();
    let url = format!("amqps://guest:guest@localhost:{port}/{name}");
    let strange = scene.setup.with("WDT_AMQP__URL", &url).start();
    // Somebody else's certificate is no reason to go on without.
    strange.logs(LATER, "certificate").await;
    drop(strange);
    let scene = scene
        .set("WDT_AMQP__URL", url)
        .set("SSL_CERT_FILE", trusted.display());
    let amqp = scene.amqp().await;
    let mut results = amqp.results().await;
    let worker = scene.worker().await;
    let consumer = scene.consumer().await;
    let load = Load::new(&scene.orders, "QC", 40);
    amqp.send_all(COMMANDS, &load.commands()[..20]).await;
    let property = Property::CorrelationId(b"\xff\xfe".to_vec());
    publish(&scene, "BAD-1", property).await;
    amqp.send_all(COMMANDS, &load.commands()[20..]).await;
    let mut rejected = 0;
    let mut told = BTreeSet::new();
    while told.len() < 40 || rejected < 1 {
        let message = results.next(LATER).await.expect("an event");
        if message.outcome() == "rejected" {
            assert_eq!(message.reason_code(), "malformed", "{message:#?}");
            rejected += 1;
        } else {
            told.insert(load.check(&message));
        }
    }
    scene.queue_is_empty().await;
    scene.vhost.queue_holds(SOON, DEAD, 1, 0).await;
    scene.is_consumed_like(&consumer).await;
    scene.each_was_sent_once(&load);
    assert_eq!(scene.orders.times_sent("BAD-1"), 0);
    let lost = lines(&worker, LOST);
    assert_eq!(lost.len(), 1, "{lost:#?}");
    assert!(lost[0].contains("failed to parse"), "{lost:#?}");
}

#[tokio::test]
async fn a_neighbour_comes_back_once_however_many_cannot_be_read() {
    let scene = Scene::fresh().await.set("WDT_API__TIMEOUT", "10m");
    scene.slow(Duration::from_secs(300));
    let amqp = scene.amqp().await;
    let _results = amqp.results().await;
    let mut worker = scene.worker().await;
    assert_eq!(worker.terminate(SOON).await, 0);
    let load = Load::new(&scene.orders, "QC", 10);
    load.send(&amqp).await;
    for n in 0..10 {
        let property = Property::CorrelationId(b"\xff".to_vec());
        publish(&scene, &format!("BAD-{n}"), property).await;
    }
    let mut worker = scene.setup.start();
    scene.vhost.queue_holds(LATER, DEAD, 10, 0).await;
    scene.until_sent(&load, 10).await;
    scene.vhost.queue_holds(SOON, COMMANDS, 0, 10).await;
    worker.kill9();
    scene.vhost.queue_holds(SOON, COMMANDS, 10, 0).await;
    let mut queue = amqp.inbox(COMMANDS).await;
    let counts = queue.collect(10, SOON).await.into_iter();
    let counts = counts.map(|message| message.headers["x-delivery-count"].as_u64().unwrap());
    let most = counts.max().unwrap();
    println!("a neighbour came back {most} times, once of them for the kill");
    assert_eq!(most, 2);
}

/// The client reads tables by recursion: with the usual stack the whole process would end.
#[tokio::test]
async fn headers_of_any_depth_are_read() {
    let scene = Scene::fresh().await;
    let amqp = scene.amqp().await;
    let mut results = amqp.results().await;
    let mut worker = scene.worker().await;
    // As deep as a frame of 128 KiB can be: 5 bytes a list.
    let mut lists = Vec::new();
    for _ in 0..26_000 {
        let length = u32::try_from(lists.len()).unwrap().to_be_bytes();
        lists = [&b"A"[..], &length, &lists].concat();
    }
    let table = [&b"\x01x"[..], &lists].concat();
    publish(&scene, "DEEP-1", Property::Headers(table)).await;
    let told = results.next(LATER).await.unwrap();
    assert_eq!(
        (told.order_no(), told.outcome()),
        ("DEEP-1", "cancelled"),
        "{told:#?}"
    );
    scene.queue_is_empty().await;
    assert!(worker.is_running());
    assert_eq!(lines(&worker, LOST), [""; 0]);
}

async fn publish(scene: &Scene, order: &str, property: Property) {
    let body = json!({ "order_no_list": [order] }).to_string();
    let (port, vhost) = (scene.vhost.port(), scene.vhost.name());
    raw::publish(port, vhost, body.as_bytes(), &mut [property]).await;
}
