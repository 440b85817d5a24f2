//! The commands, and the queues that they go through.

use std::time::Duration;

use futures_util::StreamExt as _;
use lapin::options::{
    BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions,
    QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{
    BasicProperties, Channel, Connection, ConnectionProperties, Consumer, ExchangeKind,
    PublisherConfirm,
};
use serde::Deserialize;
use serde_json::json;
use tokio::time::timeout;
use uuid::Uuid;

use crate::gateway;
use crate::support::amqp::{COMMANDS, DEAD, RESULTS};

/// Where the events go.
pub const EVENTS: &str = "bench.events";
/// Nothing that is measured stands still for so long.
const STALL: Duration = Duration::from_secs(60);
const BATCH: usize = 500;

/// What is asked of a subject.
#[derive(Debug, Clone)]
pub struct Shape {
    /// In all.
    pub orders: usize,
    /// The number of the first.
    pub first: usize,
    /// In each command.
    pub orders_per_command: usize,
    /// The commands are spread over them.
    pub accounts: usize,
    /// Who answers.
    pub gateway: gateway::Kind,
    /// How long that takes.
    pub latency: Duration,
    /// Workers that share the load.
    pub workers: usize,
    /// The process of the database that their settings name.
    pub database: Option<i32>,
    /// Other settings of the worker than those that it ships with.
    pub settings: Vec<(String, String)>,
}

impl Shape {
    /// One order a command, one account, a gateway that answers at once.
    pub fn plain(orders: usize) -> Self {
        Self {
            orders,
            first: 0,
            orders_per_command: 1,
            accounts: 1,
            gateway: gateway::Kind::Double,
            latency: Duration::ZERO,
            workers: 1,
            database: None,
            settings: Vec::new(),
        }
    }

    /// The accounts' names.
    pub fn accounts(&self) -> impl Iterator<Item = String> {
        (0..self.accounts).map(Self::account)
    }

    /// One account's name.
    pub fn account(n: usize) -> String {
        match n {
            0 => "default".into(),
            n => format!("a{n}"),
        }
    }
}

/// The client of one run.
pub struct Client {
    _connection: Connection,
    channel: Channel,
}

impl Client {
    /// Declares what the worker would declare, so that all find the same.
    pub async fn connect(url: &str) -> Self {
        let connection = Connection::connect(url, ConnectionProperties::default())
            .await
            .unwrap();
        let channel = connection.create_channel().await.unwrap();
        let topic = ExchangeDeclareOptions {
            durable: true,
            ..ExchangeDeclareOptions::default()
        };
        channel
            .exchange_declare(
                RESULTS.into(),
                ExchangeKind::Topic,
                topic,
                FieldTable::default(),
            )
            .await
            .unwrap();
        for queue in [COMMANDS, DEAD, EVENTS] {
            declare(&channel, queue).await;
        }
        channel
            .queue_bind(
                EVENTS.into(),
                RESULTS.into(),
                "cancel.#".into(),
                QueueBindOptions::default(),
                FieldTable::default(),
            )
            .await
            .unwrap();
        channel
            .confirm_select(ConfirmSelectOptions::default())
            .await
            .unwrap();
        Self {
            _connection: connection,
            channel,
        }
    }

    /// Publishes the whole load, confirmed.
    pub async fn fill(&self, shape: &Shape, rng: &mut fastrand::Rng) {
        let commands = shape.orders / shape.orders_per_command;
        let numbers: Vec<usize> = (0..commands).collect();
        // A batch is on its way while the one before is confirmed.
        let mut earlier = Vec::new();
        for batch in numbers.chunks(BATCH) {
            let mut confirms = Vec::with_capacity(batch.len());
            for &n in batch {
                let account = Shape::account(n % shape.accounts);
                let first = shape.first + n * shape.orders_per_command;
                let orders = first..first + shape.orders_per_command;
                let orders: Vec<String> = orders.map(order_no).collect();
                let id = Uuid::from_u128(rng.u128(..)).to_string();
                confirms.push(self.publish(&id, &account, &orders).await);
            }
            confirmed(std::mem::replace(&mut earlier, confirms)).await;
        }
        confirmed(earlier).await;
    }

    /// Publishes one command; the confirm is still to come.
    pub async fn publish(&self, id: &str, account: &str, orders: &[String]) -> PublisherConfirm {
        let body = json!({ "order_no_list": orders, "account": account }).to_string();
        let properties = BasicProperties::default()
            .with_message_id(id.into())
            .with_content_type("application/json".into())
            .with_delivery_mode(2);
        let options = BasicPublishOptions::default();
        let published = self.channel.basic_publish(
            "".into(),
            COMMANDS.into(),
            options,
            body.as_bytes(),
            properties,
        );
        published.await.unwrap()
    }

    /// The events as they come.
    pub async fn events(&self) -> Consumer {
        let options = BasicConsumeOptions {
            no_ack: true,
            ..BasicConsumeOptions::default()
        };
        self.channel
            .basic_consume(EVENTS.into(), "".into(), options, FieldTable::default())
            .await
            .unwrap()
    }
}

/// The next event; whatever stands still for long has failed.
pub async fn next(events: &mut Consumer) -> lapin::message::Delivery {
    let event = timeout(STALL, events.next()).await;
    event.expect("the events go on").unwrap().unwrap()
}

/// What an event tells here.
#[derive(Deserialize)]
pub struct Told<'a> {
    pub account: &'a str,
    order_no: &'a str,
    outcome: &'a str,
}

impl<'a> Told<'a> {
    pub fn read(event: &'a [u8]) -> Self {
        serde_json::from_slice(event).unwrap()
    }

    /// The number of an order that was cancelled; every one is to be.
    pub fn cancelled(&self) -> usize {
        assert_eq!(self.outcome, "cancelled", "{}", self.order_no);
        self.order_no[2..].parse().unwrap()
    }
}

async fn confirmed(confirms: Vec<PublisherConfirm>) {
    for confirm in confirms {
        assert!(confirm.await.unwrap().is_ack());
    }
}

/// Rises, as the gateway's numbers do.
pub fn order_no(n: usize) -> String {
    format!("QC{n:012}")
}

async fn declare(channel: &Channel, queue: &str) {
    let durable = QueueDeclareOptions {
        durable: true,
        ..QueueDeclareOptions::default()
    };
    let mut arguments = FieldTable::default();
    let text = |text: &str| AMQPValue::LongString(text.into());
    arguments.insert("x-queue-type".into(), text("quorum"));
    channel
        .queue_declare(queue.into(), durable, arguments)
        .await
        .unwrap();
}
