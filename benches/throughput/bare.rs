//! What the worker is measured against: consume, parse, publish an event for each order, await its
//! confirm, acknowledge. No gateway, no ledger, no promise kept beyond that.

use std::time::Duration;

use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions,
    ConfirmSelectOptions,
};
use lapin::types::FieldTable;
use lapin::{
    BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, Consumer,
    PublisherConfirm,
};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use crate::support::amqp::{COMMANDS, RESULTS};

const PREFETCH: u16 = 500;
/// Deliveries in a group: of those that the prefetch allows, some are on their way while a group is
/// gathered and another waits for its confirms.
const GROUP: usize = 160;
/// How long a group waits for more.
const LINGER: Duration = Duration::from_millis(2);
/// Groups that wait for their confirms.
const GROUPS_OPEN: usize = 2;

/// Which loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// Each message by itself, as the client library's documentation shows it.
    Bare,
    /// Confirms and acknowledgements in groups: the limit.
    Grouped,
}

#[derive(Deserialize)]
struct Command<'a> {
    #[serde(borrow)]
    order_no_list: Vec<&'a str>,
    account: &'a str,
}

#[derive(Serialize)]
struct Event<'a> {
    event_id: &'a str,
    command_id: &'a str,
    account: &'a str,
    order_no: &'a str,
    outcome: &'a str,
    attempts: u32,
    replayed: bool,
    index: usize,
    total: usize,
    occurred_at: &'a str,
}

/// Runs until it is killed.
pub async fn run(kind: Kind, url: &str) {
    let connection = Connection::connect(url, ConnectionProperties::default())
        .await
        .unwrap();
    let publishing = connection.create_channel().await.unwrap();
    let consuming = connection.create_channel().await.unwrap();
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
        Kind::Grouped => in_groups(consumer, &publishing).await,
    }
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
                        taken(&confirm.await.unwrap());
                    }
                    assert!(delivery.ack(BasicAckOptions::default()).await.unwrap());
                });
            }
            Some(()) = open.next() => {}
        }
    }
}

/// A group is told while earlier ones wait for their confirms.
async fn in_groups(mut consumer: Consumer, channel: &Channel) {
    let (open, groups) = mpsc::channel(GROUPS_OPEN);
    tokio::spawn(settle(groups));
    loop {
        let group = gather(&mut consumer).await;
        let mut confirms = Vec::with_capacity(group.len());
        for delivery in &group {
            confirms.extend(tell(channel, delivery).await);
        }
        assert!(open.send((group, confirms)).await.is_ok());
    }
}

/// What comes until the group is full or its time has passed.
async fn gather(consumer: &mut Consumer) -> Vec<Delivery> {
    let mut group = Vec::with_capacity(GROUP);
    group.push(consumer.next().await.unwrap().unwrap());
    let end = Instant::now() + LINGER;
    while group.len() < GROUP {
        let next = match consumer.next().now_or_never() {
            Some(next) => next,
            None => match timeout_at(end, consumer.next()).await {
                Ok(next) => next,
                Err(_) => break,
            },
        };
        group.push(next.unwrap().unwrap());
    }
    group
}

/// One acknowledgement for each group, in the sequence of the deliveries.
async fn settle(mut groups: mpsc::Receiver<(Vec<Delivery>, Vec<PublisherConfirm>)>) {
    while let Some((group, confirms)) = groups.recv().await {
        for confirm in join_all(confirms).await {
            taken(&confirm.unwrap());
        }
        let all = BasicAckOptions { multiple: true };
        assert!(group.last().unwrap().ack(all).await.unwrap());
    }
}

fn taken(confirm: &Confirmation) {
    assert!(matches!(confirm, Confirmation::Ack(None)), "{confirm:?}");
}

/// An event for each order, persistent and mandatory.
async fn tell(channel: &Channel, delivery: &Delivery) -> Vec<PublisherConfirm> {
    let command: Command<'_> = serde_json::from_slice(&delivery.data).unwrap();
    let id = delivery.properties.message_id().as_ref().unwrap();
    let total = command.order_no_list.len();
    let mut confirms = Vec::with_capacity(total);
    for (index, order_no) in command.order_no_list.into_iter().enumerate() {
        let event = Event {
            event_id: id.as_str(),
            command_id: id.as_str(),
            account: command.account,
            order_no,
            outcome: "cancelled",
            attempts: 1,
            replayed: false,
            index,
            total,
            occurred_at: "2026-11-23T12:00:00.000Z",
        };
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
        let key = format!("cancel.{}.cancelled", command.account);
        let body = serde_json::to_vec(&event).unwrap();
        let published =
            channel.basic_publish(RESULTS.into(), key.into(), options, &body, properties);
        confirms.push(published.await.unwrap());
    }
    confirms
}
