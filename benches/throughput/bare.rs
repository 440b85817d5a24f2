//! What the worker is measured against: consume, parse, publish an event, await its confirm,
//! acknowledge. No gateway, no ledger, no promise kept beyond that.

use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use lapin::PublisherConfirm;
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions,
    ConfirmSelectOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, Consumer};
use serde_json::{Value, json};

use crate::support::amqp::{COMMANDS, RESULTS};

const PREFETCH: u16 = 500;
/// Deliveries in a group, as many as the worker publishes at once.
const GROUP: usize = 256;

/// Which loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// Each message by itself.
    Bare,
    /// In groups.
    Bulk,
}

/// Runs until it is killed.
pub async fn run(kind: Kind, url: &str) {
    // Two connections, as the worker has: publishing must not hold up consuming.
    let consuming = connect(url).await;
    let publishing = connect(url).await;
    publishing
        .confirm_select(ConfirmSelectOptions::default())
        .await
        .unwrap();
    consuming
        .basic_qos(PREFETCH, BasicQosOptions::default())
        .await
        .unwrap();
    let consumer = consuming
        .basic_consume(
            COMMANDS.into(),
            "".into(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        )
        .await
        .unwrap();
    match kind {
        Kind::Bare => one_by_one(consumer, &publishing).await,
        Kind::Bulk => in_groups(consumer, &publishing).await,
    }
}

async fn connect(url: &str) -> Channel {
    let connection = Connection::connect(url, ConnectionProperties::default())
        .await
        .unwrap();
    let channel = connection.create_channel().await.unwrap();
    // It lives as long as the process.
    std::mem::forget(connection);
    channel
}

async fn one_by_one(mut consumer: Consumer, channel: &Channel) {
    let mut open = FuturesUnordered::new();
    loop {
        tokio::select! {
            Some(delivery) = consumer.next() => {
                let delivery = delivery.unwrap();
                let confirms = tell(channel, &delivery).await;
                open.push(async move {
                    for confirm in confirms {
                        assert!(confirm.await.unwrap().is_ack());
                    }
                    assert!(delivery.ack(BasicAckOptions::default()).await.unwrap());
                });
            }
            Some(()) = open.next() => {}
        }
    }
}

async fn in_groups(mut consumer: Consumer, channel: &Channel) {
    loop {
        let Some(first) = consumer.next().await else {
            return;
        };
        let mut group = vec![first.unwrap()];
        while group.len() < GROUP
            && let Some(Some(delivery)) = consumer.next().now_or_never()
        {
            group.push(delivery.unwrap());
        }
        let mut confirms = Vec::with_capacity(group.len());
        for delivery in &group {
            confirms.extend(tell(channel, delivery).await);
        }
        for confirm in join_all(confirms).await {
            assert!(confirm.unwrap().is_ack());
        }
        let all = BasicAckOptions { multiple: true };
        if let Some(last) = group.last() {
            assert!(last.ack(all).await.unwrap());
        }
    }
}

/// An event for each order, persistent and mandatory.
async fn tell(channel: &Channel, delivery: &Delivery) -> Vec<PublisherConfirm> {
    let command: Value = serde_json::from_slice(&delivery.data).unwrap();
    let id = delivery.properties.message_id().as_ref().unwrap();
    let account = command["account"].as_str().unwrap();
    let orders = command["order_no_list"].as_array().unwrap();
    let mut confirms = Vec::with_capacity(orders.len());
    for (index, order_no) in orders.iter().enumerate() {
        let event = json!({
            "event_id": id.as_str(),
            "command_id": id.as_str(),
            "account": account,
            "order_no": order_no,
            "outcome": "cancelled",
            "attempts": 1,
            "replayed": false,
            "index": index,
            "total": orders.len(),
            "occurred_at": "2026-11-23T12:00:00.000Z",
        });
        let options = BasicPublishOptions {
            mandatory: true,
            ..BasicPublishOptions::default()
        };
        let properties = BasicProperties::default()
            .with_message_id(id.clone())
            .with_correlation_id(id.clone())
            .with_type("wdt.cancel.result.v1".into())
            .with_content_type("application/json".into())
            .with_delivery_mode(2);
        let key = format!("cancel.{account}.cancelled");
        let body = event.to_string();
        let published = channel.basic_publish(
            RESULTS.into(),
            key.into(),
            options,
            body.as_bytes(),
            properties,
        );
        confirms.push(published.await.unwrap());
    }
    confirms
}
