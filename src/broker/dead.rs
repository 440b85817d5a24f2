//! The dead-letter queue, for its operators: look, send back to the commands' queue, remove.
//!
//! AMQP reads a queue by taking messages. So a look takes one letter after the other without
//! acknowledging it, as many as there were at the beginning, and gives all of them back in one go;
//! the queue has them in the same places then. Whoever looks at the same time sees the others, and
//! when a looker dies, the broker gives back what he held.
//!
//! Giving back counts: a quorum queue drops, or dead-letters, what came back more often than its
//! delivery limit allows. Ours allows a million, but a queue that somebody else declared on RabbitMQ
//! 4 allows 20. So a letter that came back a few times is *renewed*: a copy goes to the end of the
//! queue, and when that is confirmed the letter is removed. No limit is ever met then, however often
//! somebody looks.
//!
//! A letter is sent back to the commands' queue in the same way: published, mandatory; confirmed, not
//! returned; only then removed here. A crash in between leaves it in both places, under the same
//! command id, so the ledger knows the second for the same command.

use std::collections::HashSet;
use std::time::Duration;

use jiff::Timestamp;
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicGetOptions, BasicNackOptions, BasicPublishOptions, ConfirmSelectOptions,
    QueueDeclareOptions,
};
use lapin::types::FieldTable;
use lapin::uri::AMQPUri;
use lapin::{BasicProperties, Channel, Confirmation, Connection};
use serde_json::Value;

use super::{letter, link, wire};
use crate::rules::dead::{Filter, Letter, Tally};
use crate::rules::order::CommandId;

/// Letters looked at in one go: what the broker keeps of one that is not acknowledged is little, but
/// not nothing.
pub const LOOK_MAX: u64 = 10_000;
/// A letter that came back so often is renewed: half of the least limit that a broker has by itself.
const RENEWED_AFTER: u64 = 10;
/// An answer of the broker's to one step.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Why it cannot be done. What was not done is still in the queue.
#[derive(Debug, thiserror::Error)]
pub enum DeadError {
    /// The broker, or the connection to it.
    #[error("the broker: {0}")]
    Broker(#[from] lapin::Error),
    /// The broker does not answer.
    #[error("the broker did not answer within {} s", ANSWER_TIMEOUT.as_secs())]
    Silent,
    /// A queue is not there.
    #[error("the queue {0} does not exist; a worker declares it at its start")]
    NoQueue(String),
    /// A queue did not take a letter.
    #[error("the queue {0} did not take the letter, it may be full; the letter stays where it is")]
    NotTaken(String),
    /// What is to be removed could not be written down.
    #[error("what is removed could not be written down, so it stays: {0}")]
    NotWritten(#[from] std::io::Error),
}

/// The dead-letter queue, on a connection of its own.
#[derive(Debug)]
pub struct DeadLetters {
    connection: Connection,
    channel: Channel,
    queue: String,
    commands: String,
}

impl DeadLetters {
    /// Connects to the first of these nodes that takes the connection, as `name`. `queue` holds the
    /// letters, `commands` the commands.
    ///
    /// # Errors
    /// When none takes it.
    pub async fn open<'a, U>(
        urls: U,
        queue: &str,
        commands: &str,
        name: &str,
    ) -> anyhow::Result<Self>
    where
        U: IntoIterator<Item = &'a AMQPUri>,
    {
        // What the broker itself parks has whatever bytes its sender gave it.
        let connection = link::open_any(urls, name, true).await?;
        let channel = connection.create_channel().await?;
        let confirms = ConfirmSelectOptions::default();
        channel.confirm_select(confirms).await?;
        Ok(Self {
            connection,
            channel,
            queue: queue.into(),
            commands: commands.into(),
        })
    }

    /// Looks at the letters that are meant and shows each, up to `most`; all stay.
    ///
    /// # Errors
    /// When the queue cannot be read.
    pub async fn look(
        &self,
        filter: &Filter,
        most: u64,
        mut show: impl FnMut(Letter, &dyn Fn() -> Value) -> std::io::Result<()>,
    ) -> Result<Tally, DeadError> {
        let mut tally = Tally::default();
        let mut shown = 0;
        let mut round = self.round(filter, &mut tally).await?;
        let looked = async {
            while let Some((letter, delivery)) = round.next().await? {
                if shown < most {
                    shown += 1;
                    show(letter, &|| letter::whole(&delivery))?;
                }
                round.keep(&delivery).await?;
            }
            Ok(())
        }
        .await;
        round.end().await?;
        looked.map(|()| tally)
    }

    /// Sends the letters that are meant back to the commands' queue, up to `most`, with `pause`
    /// between two of them, and shows each. A command that comes back here meanwhile is not sent
    /// again.
    ///
    /// # Errors
    /// When a queue does not do its part; the tally tells what was done until then.
    pub async fn replay(
        &self,
        filter: &Filter,
        most: u64,
        pause: Duration,
        tally: &mut Tally,
        mut show: impl FnMut(&Letter) -> std::io::Result<()>,
    ) -> Result<(), DeadError> {
        self.is_there(&self.commands).await?;
        let mut sent: HashSet<CommandId> = HashSet::new();
        let mut round = self.round(filter, tally).await?;
        let replayed = async {
            while let Some((letter, delivery)) = round.next().await? {
                let id = letter.command_id.clone();
                if round.done() >= most || id.as_ref().is_some_and(|id| sent.contains(id)) {
                    round.keep(&delivery).await?;
                    continue;
                }
                if round.done() > 0 {
                    tokio::time::sleep(pause).await;
                }
                let properties = letter::replayed(&delivery);
                self.put(&self.commands, &delivery, properties).await?;
                round.remove(&delivery).await?;
                sent.extend(id);
                // It is done: that it cannot be shown must not keep the others here.
                drop(show(&letter));
            }
            Ok(())
        }
        .await;
        round.end().await?;
        replayed
    }

    /// Removes the letters that are meant, up to `most`, each after `keep` has it written down.
    ///
    /// # Errors
    /// When the queue does not do its part, or a letter could not be written down; the tally tells
    /// what was done until then.
    pub async fn remove(
        &self,
        filter: &Filter,
        most: u64,
        tally: &mut Tally,
        mut keep: impl FnMut(&Letter, Value) -> std::io::Result<()>,
    ) -> Result<(), DeadError> {
        let mut round = self.round(filter, tally).await?;
        let removed = async {
            while let Some((letter, delivery)) = round.next().await? {
                if round.done() >= most {
                    round.keep(&delivery).await?;
                } else {
                    keep(&letter, letter::whole(&delivery))?;
                    round.remove(&delivery).await?;
                }
            }
            Ok(())
        }
        .await;
        round.end().await?;
        removed
    }

    /// Closes, once the broker has taken what was acknowledged.
    pub async fn close(self) {
        tokio::time::sleep(link::SETTLING).await;
        // What it does not confirm ends with the process.
        let closed = self.connection.close(200, "done".into());
        drop(tokio::time::timeout(ANSWER_TIMEOUT, closed).await);
    }

    /// Begins to go through the queue.
    async fn round<'a>(
        &'a self,
        filter: &'a Filter,
        tally: &'a mut Tally,
    ) -> Result<Round<'a>, DeadError> {
        tally.waiting = self.is_there(&self.queue).await?;
        Ok(Round {
            dead: self,
            filter,
            now: Timestamp::now(),
            tally,
            last: None,
        })
    }

    /// Publishes a letter and awaits the broker's word that it is in this queue.
    async fn put(
        &self,
        queue: &str,
        delivery: &Delivery,
        properties: BasicProperties,
    ) -> Result<(), DeadError> {
        let mandatory = BasicPublishOptions {
            mandatory: true,
            ..BasicPublishOptions::default()
        };
        let published = async {
            let written = self.channel.basic_publish(
                "".into(),
                queue.into(),
                mandatory,
                &delivery.data,
                properties,
            );
            written.await?.await
        };
        // One at a time, so a returned one cannot be taken for another.
        match in_time(published).await? {
            Confirmation::Ack(None) => Ok(()),
            Confirmation::Ack(Some(_)) => Err(DeadError::NoQueue(queue.into())),
            Confirmation::Nack(_) | Confirmation::NotRequested => {
                Err(DeadError::NotTaken(queue.into()))
            }
        }
    }

    /// How many messages this queue has, if it is there.
    async fn is_there(&self, queue: &str) -> Result<u64, DeadError> {
        let passive = QueueDeclareOptions {
            passive: true,
            ..QueueDeclareOptions::default()
        };
        // On a channel of its own, because the broker closes the one that asks for what is not there.
        let look = in_time(self.connection.create_channel()).await?;
        let found = in_time(look.queue_declare(queue.into(), passive, FieldTable::default())).await;
        match found {
            Ok(found) => {
                let waiting = u64::from(found.message_count());
                in_time(look.close(200, "done".into())).await?;
                Ok(waiting)
            }
            Err(DeadError::Broker(error)) if super::topology::is_missing(&error) => {
                Err(DeadError::NoQueue(queue.into()))
            }
            Err(error) => Err(error),
        }
    }
}

/// Once through the queue: each letter is taken, and kept or removed. Whatever happens, it is to be
/// ended, which gives back what is kept; an end of the connection does the same.
struct Round<'a> {
    dead: &'a DeadLetters,
    filter: &'a Filter,
    now: Timestamp,
    tally: &'a mut Tally,
    /// The last that was taken.
    last: Option<u64>,
}

impl Round<'_> {
    /// Letters removed so far.
    fn done(&self) -> u64 {
        self.tally.done
    }

    /// The next letter that is meant; none when as many were taken as there were at the beginning.
    async fn next(&mut self) -> Result<Option<(Letter, Delivery)>, DeadError> {
        while self.tally.seen < self.tally.waiting.min(LOOK_MAX) {
            let queue = self.dead.queue.as_str().into();
            let got = self
                .dead
                .channel
                .basic_get(queue, BasicGetOptions::default());
            let Some(got) = in_time(got).await? else {
                break;
            };
            self.tally.seen += 1;
            self.last = Some(got.delivery.delivery_tag);
            let letter = letter::read(&got.delivery);
            if self.filter.fits(&letter, self.now) {
                self.tally.meant += 1;
                return Ok(Some((letter, got.delivery)));
            }
            self.keep(&got.delivery).await?;
        }
        Ok(None)
    }

    /// It stays, be it as a copy at the end of the queue.
    async fn keep(&self, delivery: &Delivery) -> Result<(), DeadError> {
        let returns = wire::delivery_count(&delivery.properties).unwrap_or(0);
        if returns < RENEWED_AFTER {
            return Ok(());
        }
        let renewed = letter::renewed(delivery);
        self.dead.put(&self.dead.queue, delivery, renewed).await?;
        self.acknowledge(delivery).await
    }

    /// It goes: what replaces it is in its place.
    async fn remove(&mut self, delivery: &Delivery) -> Result<(), DeadError> {
        self.acknowledge(delivery).await?;
        self.tally.done += 1;
        Ok(())
    }

    async fn acknowledge(&self, delivery: &Delivery) -> Result<(), DeadError> {
        let this = BasicAckOptions::default();
        let acknowledged = self.dead.channel.basic_ack(delivery.delivery_tag, this);
        in_time(acknowledged).await?;
        Ok(())
    }

    /// Gives back what is kept, all of it in one go.
    async fn end(self) -> Result<(), DeadError> {
        if let Some(last) = self.last {
            let all = BasicNackOptions {
                multiple: true,
                requeue: true,
            };
            in_time(self.dead.channel.basic_nack(last, all)).await?;
        }
        Ok(())
    }
}

async fn in_time<T>(answer: impl Future<Output = lapin::Result<T>>) -> Result<T, DeadError> {
    match tokio::time::timeout(ANSWER_TIMEOUT, answer).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(DeadError::Silent),
    }
}
