//! Commands that the AMQP client cannot even read: a property or a routing key that is not UTF-8. The
//! client ends the connection at each of them. The worker finds the one that does it, has the broker
//! dead-letter it, and handles its neighbours as if it had not been there.
#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, its helpers too"
)]

mod support;

use std::time::Duration;

use serde_json::json;
use support::amqp::{COMMANDS, DEAD};
use support::raw::{self, Property};
use support::scene::{LATER, LOST, Load, SOON, Scene, causes, lines};
use tokio::time::Instant;

#[tokio::test]
async fn a_property_that_is_not_utf8() {
    let scene = Scene::fresh().await;
    let amqp = scene.amqp().await;
    let mut results = amqp.results().await;
    let worker = scene.worker().await;
    let load = Load::new(&scene.orders, "QC", 10);
    let body = json!({"order_no_list": ["BAD-1"]}).to_string();
    raw::publish(
        scene.vhost.port(),
        scene.vhost.name(),
        body.as_bytes(),
        &mut [Property::CorrelationId(b"\xff\xfe".to_vec())],
    )
    .await;
    load.send(&amqp).await;
    tokio::time::sleep(Duration::from_secs(15)).await;
    println!("{:?}", scene.vhost.queues().await);
    panic!("look");
}

#[tokio::test]
async fn a_header_that_is_deep() {
    let scene = Scene::fresh().await;
    let amqp = scene.amqp().await;
    let mut results = amqp.results().await;
    let mut worker = scene.worker().await;
    let load = Load::new(&scene.orders, "QC", 10);
    let body = json!({"order_no_list": ["BAD-1"]}).to_string();
    let mut table = vec![];
    for _ in 0..20_000 {
        let mut outer = vec![0, b'F'];
        outer.extend((table.len() as u32).to_be_bytes());
        outer.extend(table);
        table = outer;
    }
    raw::publish(
        scene.vhost.port(),
        scene.vhost.name(),
        body.as_bytes(),
        &mut [Property::Headers(table)],
    )
    .await;
    load.send(&amqp).await;
    tokio::time::sleep(Duration::from_secs(15)).await;
    println!("{:?} {:?}", scene.vhost.queues().await, worker.is_running());
    panic!("look");
}
