//! What an independent client of the worker does: publish commands, read events.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join_all;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions,
    ConfirmSelectOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
    QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{
    BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, Consumer,
    ExchangeKind,
};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

use super::broker::KIT_CONNECTION;
use super::eventually::eventually;
use super::schema::check_event;

/// The contract's default names.
pub const COMMANDS: &str = "wdt.cancel.commands";
/// The contract's default exchange of results.
pub const RESULTS: &str = "wdt.cancel.results";
/// The contract's default queue of dead letters.
pub const DEAD: &str = "wdt.cancel.commands.dead";

/// Anything the broker answers takes milliseconds; beyond this it is frozen or blocked.
const LIMIT: Duration = Duration::from_secs(20);
/// Messages in flight to an inbox, so that a slow test does not hold a whole load in memory.
const PREFETCH: u16 = 1_000;
/// Publishes in flight.
const BATCH: usize = 256;
/// A durable queue on the results, so that a test misses none while it reconnects.
const RESULTS_INBOX: &str = "test.results";

/// A command on its way into the queue.
#[derive(Debug, Clone)]
pub struct Command {
    body: Vec<u8>,
    properties: BasicProperties,
    headers: FieldTable,
}

impl Command {
    /// A command for these orders and nothing else: no id, no account.
    pub fn orders<S: AsRef<str>>(numbers: impl IntoIterator<Item = S>) -> Self {
        let numbers: Vec<String> = numbers.into_iter().map(|n| n.as_ref().into()).collect();
        Self::json(&json!({ "order_no_list": numbers }))
    }

    /// A command with this body.
    pub fn json(body: &Value) -> Self {
        Self::raw(body.to_string())
    }

    /// A message of any bytes.
    pub fn raw(body: impl Into<Vec<u8>>) -> Self {
        Self {
            body: body.into(),
            properties: BasicProperties::default().with_delivery_mode(2),
            headers: FieldTable::default(),
        }
    }

    /// Adds a field to the JSON body.
    pub fn field(mut self, name: &str, value: impl Into<Value>) -> Self {
        let mut body: Value = serde_json::from_slice(&self.body).expect("a JSON body");
        body[name] = value.into();
        self.body = body.to_string().into_bytes();
        self
    }

    /// The `message_id`: the command's id.
    pub fn id(mut self, id: &str) -> Self {
        self.properties = self.properties.with_message_id(id.into());
        self
    }

    /// The `correlation_id`.
    pub fn correlation_id(mut self, id: &str) -> Self {
        self.properties = self.properties.with_correlation_id(id.into());
        self
    }

    /// The `timestamp`, in whatever unit.
    pub fn timestamp(mut self, at: u64) -> Self {
        self.properties = self.properties.with_timestamp(at);
        self
    }

    /// The `reply_to`.
    pub fn reply_to(mut self, queue: &str) -> Self {
        self.properties = self.properties.with_reply_to(queue.into());
        self
    }

    /// A header with a text value.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers
            .insert(name.into(), AMQPValue::LongString(value.into()));
        self
    }

    /// The body.
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    fn properties(&self) -> BasicProperties {
        self.properties.clone().with_headers(self.headers.clone())
    }
}

/// A message as it arrived: an event, a reply or a dead letter.
#[derive(Debug, Clone)]
pub struct Message {
    pub exchange: String,
    pub routing_key: String,
    pub redelivered: bool,
    pub message_id: Option<String>,
    pub correlation_id: Option<String>,
    pub reply_to: Option<String>,
    pub kind: Option<String>,
    pub content_type: Option<String>,
    pub app_id: Option<String>,
    pub timestamp: Option<u64>,
    /// 2 is persistent.
    pub delivery_mode: Option<u8>,
    pub headers: BTreeMap<String, Value>,
    pub bytes: Vec<u8>,
    /// The body, or null when it is not JSON.
    pub body: Value,
}

impl Message {
    fn new(delivery: lapin::message::Delivery) -> Self {
        let properties = &delivery.properties;
        if let Some(kind) = event_kind(properties) {
            check_event(kind, &delivery.data);
        }
        let text = |s: &Option<lapin::types::ShortString>| s.as_ref().map(ToString::to_string);
        let headers = properties
            .headers()
            .as_ref()
            .map_or_else(BTreeMap::new, |h| {
                h.inner()
                    .iter()
                    .map(|(name, value)| (name.to_string(), header_value(value)))
                    .collect()
            });
        Self {
            exchange: delivery.exchange.to_string(),
            routing_key: delivery.routing_key.to_string(),
            redelivered: delivery.redelivered,
            message_id: text(properties.message_id()),
            correlation_id: text(properties.correlation_id()),
            reply_to: text(properties.reply_to()),
            kind: text(properties.kind()),
            content_type: text(properties.content_type()),
            app_id: text(properties.app_id()),
            timestamp: *properties.timestamp(),
            delivery_mode: *properties.delivery_mode(),
            headers,
            body: serde_json::from_slice(&delivery.data).unwrap_or(Value::Null),
            bytes: delivery.data,
        }
    }

    /// A text field of the body; empty when it is absent.
    pub fn text(&self, field: &str) -> &str {
        self.body[field].as_str().unwrap_or_default()
    }

    /// An event's order, empty when it has none.
    pub fn order_no(&self) -> &str {
        self.text("order_no")
    }

    /// An event's outcome.
    pub fn outcome(&self) -> &str {
        self.text("outcome")
    }

    /// An event's reason code, empty when it has none.
    pub fn reason_code(&self) -> &str {
        self.body["reason"]["code"].as_str().unwrap_or_default()
    }
}

/// The type of an event, wherever it arrives; other messages have other types or none.
fn event_kind(properties: &BasicProperties) -> Option<&str> {
    let kind = properties.kind().as_ref()?.as_str();
    kind.starts_with("wdt.cancel.").then_some(kind)
}

fn header_value(value: &AMQPValue) -> Value {
    match value {
        AMQPValue::Boolean(v) => json!(v),
        AMQPValue::ShortShortInt(v) => json!(v),
        AMQPValue::ShortShortUInt(v) => json!(v),
        AMQPValue::ShortInt(v) => json!(v),
        AMQPValue::ShortUInt(v) => json!(v),
        AMQPValue::LongInt(v) => json!(v),
        AMQPValue::LongUInt(v) => json!(v),
        AMQPValue::LongLongInt(v) => json!(v),
        AMQPValue::Timestamp(v) => json!(v),
        AMQPValue::Float(v) => json!(v),
        AMQPValue::Double(v) => json!(v),
        AMQPValue::ShortString(v) => json!(v.to_string()),
        AMQPValue::LongString(v) => json!(v.to_string()),
        AMQPValue::ByteArray(v) => json!(v.as_slice()),
        AMQPValue::FieldArray(v) => v.as_slice().iter().map(header_value).collect(),
        AMQPValue::FieldTable(v) => v
            .inner()
            .iter()
            .map(|(name, value)| (name.to_string(), header_value(value)))
            .collect(),
        AMQPValue::DecimalValue(v) => json!(format!("{v:?}")),
        AMQPValue::Void => Value::Null,
    }
}

/// A client. After the broker was killed, connect another.
pub struct Amqp {
    connection: Connection,
    channel: Channel,
}

impl Amqp {
    /// Connects, trying until the broker answers.
    pub async fn connect(url: &str) -> Self {
        let connection = eventually(LIMIT, "the test's client connects", async || {
            let named = ConnectionProperties::default().with_connection_name(KIT_CONNECTION.into());
            Connection::connect(url, named).await.ok()
        })
        .await;
        let channel = within("open a channel", connection.create_channel()).await;
        let confirms = channel.confirm_select(ConfirmSelectOptions::default());
        within("switch on confirms", confirms).await;
        Self {
            connection,
            channel,
        }
    }

    /// Connects once; `None` when that does not work.
    pub async fn try_connect(url: &str) -> Option<Self> {
        let opening = async {
            let named = ConnectionProperties::default().with_connection_name(KIT_CONNECTION.into());
            let connection = Connection::connect(url, named).await?;
            let channel = connection.create_channel().await?;
            channel
                .confirm_select(ConfirmSelectOptions::default())
                .await?;
            Ok::<_, lapin::Error>(Self {
                connection,
                channel,
            })
        };
        timeout(LIMIT, opening).await.ok()?.ok()
    }

    /// Publishes a command once; `true` when the broker says that it is in the queue.
    pub async fn try_send(&self, command: &Command) -> bool {
        let sending = async {
            let mandatory = BasicPublishOptions {
                mandatory: true,
                ..BasicPublishOptions::default()
            };
            let written = self.channel.basic_publish(
                "".into(),
                COMMANDS.into(),
                mandatory,
                &command.body,
                command.properties(),
            );
            written.await?.await
        };
        matches!(
            timeout(LIMIT, sending).await,
            Ok(Ok(Confirmation::Ack(None)))
        )
    }

    /// Publishes a command to the contract's queue; returns when the broker has it in the queue.
    pub async fn send(&self, command: &Command) {
        self.send_to(COMMANDS, command).await;
    }

    /// Publishes to any queue; panics when there is no such queue.
    pub async fn send_to(&self, queue: &str, command: &Command) {
        self.send_all(queue, std::slice::from_ref(command)).await;
    }

    /// Publishes many, some hundreds in flight.
    pub async fn send_all(&self, queue: &str, commands: &[Command]) {
        for batch in commands.chunks(BATCH) {
            let mut confirms = Vec::with_capacity(batch.len());
            for command in batch {
                let mandatory = BasicPublishOptions {
                    mandatory: true,
                    ..BasicPublishOptions::default()
                };
                let written = self.channel.basic_publish(
                    "".into(),
                    queue.into(),
                    mandatory,
                    &command.body,
                    command.properties(),
                );
                confirms.push(within("publish", written).await);
            }
            let confirms = timeout(LIMIT, join_all(confirms)).await;
            for confirm in confirms.expect("the broker confirms") {
                let confirm = confirm.expect("the broker confirms");
                // Which message of a batch was returned does not matter: all go to one queue.
                assert_eq!(
                    confirm,
                    Confirmation::Ack(None),
                    "is there a queue {queue}?"
                );
            }
        }
    }

    /// A durable queue that gets every event of the exchange from now on. Declares the exchange, as
    /// whoever comes first does. Call it again after a reconnect: it is the same queue.
    pub async fn results(&self) -> Inbox {
        self.declare_results().await;
        self.declare_queue(RESULTS_INBOX, FieldTable::default())
            .await;
        self.bind(RESULTS_INBOX, "cancel.#").await;
        self.inbox(RESULTS_INBOX).await
    }

    /// A durable queue with these arguments.
    pub async fn declare_queue(&self, name: &str, arguments: FieldTable) {
        let durable = QueueDeclareOptions {
            durable: true,
            ..QueueDeclareOptions::default()
        };
        let channel = self.channel().await;
        let queue = channel.queue_declare(name.into(), durable, arguments);
        within("declare a queue", queue).await;
    }

    /// The exchange of results, as whoever comes first declares it.
    pub async fn declare_results(&self) {
        let durable = ExchangeDeclareOptions {
            durable: true,
            ..ExchangeDeclareOptions::default()
        };
        let channel = self.channel().await;
        let none = FieldTable::default();
        let exchange = channel.exchange_declare(RESULTS.into(), ExchangeKind::Topic, durable, none);
        within("declare the exchange", exchange).await;
    }

    /// From now on this queue gets the events of this key.
    pub async fn bind(&self, queue: &str, key: &str) {
        let channel = self.channel().await;
        let bound = channel.queue_bind(
            queue.into(),
            RESULTS.into(),
            key.into(),
            QueueBindOptions::default(),
            FieldTable::default(),
        );
        within("bind a queue", bound).await;
    }

    /// Deletes the queue that [`Self::results`] made: from then on events are unroutable.
    pub async fn drop_results(&self) {
        self.delete_queue(RESULTS_INBOX).await;
    }

    /// Deletes a queue with what is in it; its consumers are cancelled.
    pub async fn delete_queue(&self, queue: &str) {
        let deleted = self
            .channel
            .queue_delete(queue.into(), QueueDeleteOptions::default());
        within("delete a queue", deleted).await;
    }

    /// An exclusive queue that the broker names (`amq.gen-…`), for `reply_to`. It goes with this client.
    pub async fn replies(&self) -> Inbox {
        let channel = self.channel().await;
        let exclusive = QueueDeclareOptions {
            exclusive: true,
            auto_delete: true,
            ..QueueDeclareOptions::default()
        };
        let queue = channel.queue_declare("".into(), exclusive, FieldTable::default());
        let queue = within("declare a queue", queue).await;
        Inbox::consume(channel, queue.name().as_str()).await
    }

    /// What arrives in the dead-letter queue, which must exist.
    pub async fn dead(&self) -> Inbox {
        self.inbox(DEAD).await
    }

    /// What arrives in any queue, which must exist.
    pub async fn inbox(&self, queue: &str) -> Inbox {
        Inbox::consume(self.channel().await, queue).await
    }

    /// A channel for whatever else a test does.
    pub async fn channel(&self) -> Channel {
        within("open a channel", self.connection.create_channel()).await
    }
}

/// A queue that is being read. A message is acknowledged when the test takes it.
pub struct Inbox {
    name: String,
    consumer: Consumer,
    _channel: Channel,
}

impl Inbox {
    async fn consume(channel: Channel, queue: &str) -> Self {
        let qos = channel.basic_qos(PREFETCH, BasicQosOptions::default());
        within("set the prefetch", qos).await;
        let consumer = channel.basic_consume(
            queue.into(),
            "".into(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        );
        let consumer = within("consume", consumer).await;
        Self {
            name: queue.into(),
            consumer,
            _channel: channel,
        }
    }

    /// The queue's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The next message, or `None` when none comes within the limit.
    pub async fn next(&mut self, limit: Duration) -> Option<Message> {
        let delivery = timeout(limit, self.consumer.next()).await.ok()?;
        let delivery = delivery
            .unwrap_or_else(|| panic!("the queue {} was deleted", self.name))
            .unwrap_or_else(|e| panic!("reading {}: {e}", self.name));
        let ack = delivery.acker.ack(BasicAckOptions::default());
        assert!(within("acknowledge", ack).await, "acknowledged nothing");
        Some(Message::new(delivery))
    }

    /// The next `count` messages; panics with those that came when the limit passes.
    pub async fn collect(&mut self, count: usize, limit: Duration) -> Vec<Message> {
        let end = Instant::now() + limit;
        let mut messages = Vec::new();
        while messages.len() < count {
            let left = end.saturating_duration_since(Instant::now());
            let Some(message) = self.next(left).await else {
                panic!(
                    "{} of {count} messages in {} within {limit:?}: {messages:#?}",
                    messages.len(),
                    self.name
                );
            };
            messages.push(message);
        }
        messages
    }

    /// Panics when anything arrives within this time.
    pub async fn stays_empty(&mut self, time: Duration) {
        if let Some(message) = self.next(time).await {
            panic!("nothing more was due in {}: {message:#?}", self.name);
        }
    }
}

async fn within<T>(what: &str, answer: impl Future<Output = lapin::Result<T>>) -> T {
    match timeout(LIMIT, answer).await {
        Ok(Ok(value)) => value,
        Ok(Err(e)) => panic!("{what}: {e}"),
        Err(_) => panic!("{what}: the broker did not answer within {LIMIT:?}"),
    }
}
