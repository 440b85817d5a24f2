//! The queues and the exchange, as they are wanted.
//!
//! What exists is used as it is, and a difference is reported: an operator's arguments or an older
//! declaration are no reason to stop, and the broker refuses to change them anyway.

use lapin::options::{ExchangeDeclareOptions, QueueDeclareOptions};
use lapin::protocol::AMQPErrorKind;
use lapin::protocol::AMQPSoftError;
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Connection, ErrorKind, ExchangeKind};
use tracing::info;

use super::Settings;

/// Deliveries of one command before the broker itself takes it for poison and dead-letters it. A
/// command that waits for a day goes back to the queue some 72 times, each of which counts on some
/// versions, so this leaves room.
pub const DELIVERY_LIMIT: i64 = 200;
/// The dead-letter queue is read by looking and putting back, which must never drop anything.
pub const DEAD_DELIVERY_LIMIT: i64 = 1_000_000;
/// A queue for results, likewise: what drops out of it was never read.
pub const RESULTS_DELIVERY_LIMIT: i64 = 1_000_000;

/// Why the topology is not as it must be.
#[derive(Debug, thiserror::Error)]
pub enum TopologyError {
    /// `amqp.declare` is false, and this does not exist.
    #[error("{0} does not exist and amqp.declare is false; create it or set amqp.declare to true")]
    Missing(String),
    /// The broker says no, or is gone.
    #[error(transparent)]
    Broker(#[from] lapin::Error),
}

/// What was found or made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// The exchange is new, so no queue is bound to it.
    pub exchange_is_new: bool,
    /// What was declared otherwise before, each in the broker's words.
    pub differences: Vec<String>,
}

/// Declares or checks everything. Each step has a channel of its own, because the broker closes the
/// channel of one that fails.
pub async fn ensure(connection: &Connection, settings: &Settings) -> Result<Found, TopologyError> {
    let dead = dead_queue_arguments();
    let mut found = Found::default();
    let declare = settings.declare;
    queue(connection, &settings.dead_queue, dead, declare, &mut found).await?;
    let commands = queue_arguments(&settings.dead_queue);
    queue(connection, &settings.queue, commands, declare, &mut found).await?;
    exchange(connection, &settings.exchange, declare, &mut found).await?;
    Ok(found)
}

/// The commands' queue: what meets the delivery limit goes to the dead-letter queue, at least once.
pub(super) fn queue_arguments(dead_queue: &str) -> FieldTable {
    let mut arguments = quorum(DELIVERY_LIMIT);
    let mut text = |name: &str, value: &str| {
        arguments.insert(name.into(), AMQPValue::LongString(value.into()));
    };
    text("x-dead-letter-exchange", "");
    text("x-dead-letter-routing-key", dead_queue);
    text("x-dead-letter-strategy", "at-least-once");
    // The broker takes at-least-once dead-lettering only together with this.
    text("x-overflow", "reject-publish");
    arguments
}

pub(super) fn dead_queue_arguments() -> FieldTable {
    quorum(DEAD_DELIVERY_LIMIT)
}

/// A durable, replicated queue.
pub fn quorum(delivery_limit: i64) -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert(
        "x-queue-type".into(),
        AMQPValue::LongString("quorum".into()),
    );
    arguments.insert(
        "x-delivery-limit".into(),
        AMQPValue::LongLongInt(delivery_limit),
    );
    arguments
}

async fn queue(
    connection: &Connection,
    name: &str,
    arguments: FieldTable,
    declare: bool,
    report: &mut Found,
) -> Result<(), TopologyError> {
    let passive = QueueDeclareOptions {
        passive: true,
        ..QueueDeclareOptions::default()
    };
    let channel = connection.create_channel().await?;
    let found = channel
        .queue_declare(name.into(), passive, FieldTable::default())
        .await;
    match found {
        Err(error) if is(&error, AMQPSoftError::NOTFOUND) && !declare => {
            return Err(TopologyError::Missing(format!("queue {name}")));
        }
        Err(error) if !is(&error, AMQPSoftError::NOTFOUND) => return Err(error.into()),
        Ok(_) if !declare => {
            close(&channel).await;
            return Ok(());
        }
        Ok(_) => close(&channel).await,
        Err(_) => info!(queue = name, "declaring the queue"),
    }
    let durable = QueueDeclareOptions {
        durable: true,
        ..QueueDeclareOptions::default()
    };
    let channel = connection.create_channel().await?;
    match channel.queue_declare(name.into(), durable, arguments).await {
        Ok(_) => close(&channel).await,
        Err(error) if is(&error, AMQPSoftError::PRECONDITIONFAILED) => {
            report.differences.push(words(&error));
        }
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

async fn exchange(
    connection: &Connection,
    name: &str,
    declare: bool,
    report: &mut Found,
) -> Result<(), TopologyError> {
    let passive = ExchangeDeclareOptions {
        passive: true,
        ..ExchangeDeclareOptions::default()
    };
    let channel = connection.create_channel().await?;
    let found = channel
        .exchange_declare(
            name.into(),
            ExchangeKind::Topic,
            passive,
            FieldTable::default(),
        )
        .await;
    match found {
        Ok(()) => close(&channel).await,
        Err(error) if is(&error, AMQPSoftError::NOTFOUND) => {
            if !declare {
                return Err(TopologyError::Missing(format!("exchange {name}")));
            }
            info!(exchange = name, "declaring the exchange");
            report.exchange_is_new = true;
        }
        Err(error) => return Err(error.into()),
    }
    if !declare {
        return Ok(());
    }
    let durable = ExchangeDeclareOptions {
        durable: true,
        ..ExchangeDeclareOptions::default()
    };
    let channel = connection.create_channel().await?;
    match channel
        .exchange_declare(
            name.into(),
            ExchangeKind::Topic,
            durable,
            FieldTable::default(),
        )
        .await
    {
        Ok(()) => close(&channel).await,
        Err(error) if is(&error, AMQPSoftError::PRECONDITIONFAILED) => {
            report.differences.push(words(&error));
        }
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

pub(super) async fn close(channel: &lapin::Channel) {
    // It served; a failure to close it shows on the connection at once.
    drop(channel.close(200, "done".into()).await);
}

/// The broker has no such queue or exchange.
pub(super) fn is_missing(error: &lapin::Error) -> bool {
    is(error, AMQPSoftError::NOTFOUND)
}

pub(super) fn is(error: &lapin::Error, soft: AMQPSoftError) -> bool {
    match error.kind() {
        ErrorKind::ProtocolError(error) => *error.kind() == AMQPErrorKind::Soft(soft),
        _ => false,
    }
}

/// What the broker says, where it says something, without our client's words around it.
pub(super) fn words(error: &lapin::Error) -> String {
    match error.kind() {
        ErrorKind::ProtocolError(said) => said.get_message().to_string(),
        _ => error.to_string(),
    }
}
