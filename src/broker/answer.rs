//! Answers out: publish, await the confirm, acknowledge. The only place that acknowledges.
//!
//! Publications go out in batches that do not overlap: lapin may attach a returned message to
//! another publication's confirm, so returns are matched by our own ids over the whole batch.

use std::collections::HashSet;
use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures_util::future::{join_all, maybe_done, try_join};
use jiff::Timestamp;
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicNackOptions, BasicPublishOptions};
use lapin::{BasicProperties, Channel, Confirmation, PublisherConfirm};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::sync::watch;
use tokio::time::Instant;

use super::held::{Done, Number};
use super::reply::{self, Courier};
use super::session::SessionError;
use super::wire::{self, BODY_MAX_BYTES};
use super::{BrokerEvent, Deliveries, Settings};
use crate::rules::desk::{Fate, Finished, Parking, Telling, Ticket};
use crate::rules::outstanding::Ack;

/// Publications in one batch at most: enough to share the wait for the confirms, few enough to
/// bound what is uncertain when the broker goes away.
const BATCH_MAX: usize = 256;
/// Copies of commands in one batch at most: four of the largest that the contract allows.
const COPIES_MAX_BYTES: usize = 4 * BODY_MAX_BYTES;
/// What is finished waits so long for what came before it, so that one acknowledgement covers both.
/// Lists that are called side by side end within milliseconds of each other, or not soon at all.
const GAP_MAX: Duration = Duration::from_millis(5);
/// A batch is confirmed within this time, or the session is given up; a blocked connection is
/// waited for.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(30);

/// What is to be published.
#[derive(Debug)]
pub enum Publication {
    /// An event, and its copy where one is asked for.
    Event(Box<Telling>),
    /// A copy for the dead-letter queue.
    Park(Box<Parking>),
}

/// What is to be done with a delivery.
#[derive(Debug)]
pub enum Settlement {
    /// Acknowledge it: each of its events is confirmed.
    Acknowledge(Finished),
    /// Give it back to the queue.
    Return(Ticket),
}

pub(super) struct Outlet<'a> {
    pub channel: Channel,
    pub settings: &'a Settings,
    pub publications: &'a mut UnboundedReceiver<Publication>,
    pub deliveries: &'a Deliveries,
    pub events: &'a UnboundedSender<BrokerEvent>,
    pub blocked: watch::Receiver<bool>,
    pub courier: Courier,
}

/// A message on its way.
struct Outgoing<'a> {
    exchange: &'a str,
    routing_key: String,
    mandatory: bool,
    body: Body,
    properties: BasicProperties,
}

enum Body {
    Event(Vec<u8>),
    /// A command as it came; it is not copied.
    Held(Arc<Delivery>),
}

impl Body {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Event(body) => body,
            Self::Held(delivery) => &delivery.data,
        }
    }
}

impl Outlet<'_> {
    /// Publishes until the session fails.
    pub(super) async fn run(&mut self) -> Result<Infallible, SessionError> {
        let mut batch = Vec::with_capacity(BATCH_MAX);
        loop {
            if self.publications.recv_many(&mut batch, BATCH_MAX).await == 0 {
                return std::future::pending().await;
            }
            // An answer to a delivery of a lost session would answer nobody.
            batch.retain(|publication| self.deliveries.get(publication.ticket()).is_some());
            let mut rest = &batch[..];
            while !rest.is_empty() {
                let (first, later) = rest.split_at(self.fitting(rest));
                self.publish(first).await?;
                rest = later;
            }
            batch.clear();
        }
    }

    /// How many of these go out together: at least one, and few enough that the copies of commands
    /// among them, which the client library copies once more, stay within their bound.
    fn fitting(&self, batch: &[Publication]) -> usize {
        let mut bytes = 0;
        let fits = batch.iter().take_while(|publication| {
            bytes += match publication {
                Publication::Event(_) => 0,
                Publication::Park(parking) => self
                    .deliveries
                    .get(parking.ticket)
                    .map_or(0, |held| held.data.len()),
            };
            bytes <= COPIES_MAX_BYTES
        });
        fits.count().max(1)
    }

    /// Publishes a batch and reports what became of each.
    ///
    /// All of it is handed to the client library before anything is awaited: what is awaited one by
    /// one is written one by one, with a thread woken for each.
    async fn publish(&mut self, batch: &[Publication]) -> Result<(), SessionError> {
        let mut sent = Vec::with_capacity(batch.len());
        let mut messages = Vec::with_capacity(batch.len());
        let mut copies = Vec::new();
        let mut direct = Vec::new();
        for publication in batch {
            match publication {
                Publication::Event(telling) => {
                    fail_point!("tell");
                    let message = self.write(telling)?;
                    let requester = telling.envelope.reply_to.as_ref();
                    // Nobody who waits for an answer is to take a dry run's for it.
                    match requester.filter(|_| !self.settings.mode.is_dry_run()) {
                        Some(queue) if reply::is_direct(queue) => direct.push(reply::Copy {
                            requester: Arc::clone(queue),
                            body: message.body.clone(),
                            properties: message.properties.clone(),
                        }),
                        // Not mandatory: a requester that has gone is no error.
                        Some(queue) => copies.push(Outgoing {
                            exchange: "",
                            routing_key: queue.to_string(),
                            mandatory: false,
                            body: Body::Event(message.body.clone()),
                            properties: message.properties.clone(),
                        }),
                        None => {}
                    }
                    messages.push(Outgoing {
                        exchange: &self.settings.exchange,
                        routing_key: message.routing_key,
                        mandatory: true,
                        body: Body::Event(message.body),
                        properties: message.properties,
                    });
                    sent.push((publication, message.id));
                }
                Publication::Park(parking) => {
                    fail_point!("park");
                    let Some(held) = self.deliveries.get(parking.ticket) else {
                        continue;
                    };
                    let origin = wire::Origin {
                        queue: &self.settings.queue,
                        exchange: held.exchange.as_str(),
                        routing_key: held.routing_key.as_str(),
                    };
                    messages.push(Outgoing {
                        exchange: "",
                        routing_key: self.settings.dead_queue.clone(),
                        mandatory: true,
                        properties: wire::parked_properties(
                            &held.properties,
                            parking,
                            origin,
                            now_seconds(),
                        ),
                        body: Body::Held(held),
                    });
                    sent.push((publication, parking.envelope.command_id.as_str().to_owned()));
                }
            }
        }
        let (copies, confirms) = try_join(self.send(copies), self.send(messages)).await?;
        for (publication, _) in &sent {
            match publication {
                Publication::Event(_) => {
                    fail_point!("event-published");
                }
                Publication::Park(_) => {
                    fail_point!("copy-published");
                }
            }
        }
        let (confirmed, _) = self
            .in_time(async { (each(confirms).await, each(copies).await) })
            .await?;
        self.courier.tell(direct).await;
        self.report(sent, confirmed?)
    }

    fn write(&self, telling: &Telling) -> Result<wire::Message, SessionError> {
        wire::write(self.settings.mode, telling, now_seconds()).map_err(SessionError::Unwritable)
    }

    /// Writes these in their sequence; their confirms are still to come.
    async fn send(&self, messages: Vec<Outgoing<'_>>) -> lapin::Result<Vec<PublisherConfirm>> {
        let published = messages.iter().map(|message| {
            let options = BasicPublishOptions {
                mandatory: message.mandatory,
                ..BasicPublishOptions::default()
            };
            self.channel.basic_publish(
                message.exchange.into(),
                message.routing_key.as_str().into(),
                options,
                message.body.bytes(),
                message.properties.clone(),
            )
        });
        let mut published: Vec<_> = published.map(|one| maybe_done(Box::pin(one))).collect();
        // To begin one is to hand it over, and the client numbers them as they are begun.
        poll_fn(|cx| {
            for one in &mut published {
                // Whether it is written already does not matter here.
                let _ = Pin::new(one).poll(cx);
            }
            Poll::Ready(())
        })
        .await;
        let mut confirms = Vec::with_capacity(published.len());
        for mut one in published {
            let mut one = Pin::new(&mut one);
            one.as_mut().await;
            confirms.extend(one.take_output().transpose()?);
        }
        Ok(confirms)
    }

    /// The confirms, unless they do not come. Time spent blocked does not count.
    async fn in_time<T>(&mut self, confirms: impl Future<Output = T>) -> Result<T, SessionError> {
        tokio::pin!(confirms);
        loop {
            tokio::select! {
                confirmed = &mut confirms => return Ok(confirmed),
                () = tokio::time::sleep(CONFIRM_TIMEOUT) => {
                    if !*self.blocked.borrow() {
                        return Err(SessionError::NoConfirm);
                    }
                }
            }
        }
    }

    fn report(
        &self,
        sent: Vec<(&Publication, String)>,
        confirmed: Vec<Confirmation>,
    ) -> Result<(), SessionError> {
        let mut taken = Vec::with_capacity(confirmed.len());
        let mut returned = HashSet::new();
        for confirmation in confirmed {
            let message = match confirmation {
                Confirmation::Ack(message) => {
                    taken.push(true);
                    message
                }
                Confirmation::Nack(message) => {
                    taken.push(false);
                    message
                }
                Confirmation::NotRequested => return Err(SessionError::NoConfirm),
            };
            let id = message.and_then(|m| m.delivery.properties.message_id().clone());
            returned.extend(id.map(|id| id.as_str().to_owned()));
        }
        for ((publication, id), taken) in sent.into_iter().zip(taken) {
            let fate = match (taken, returned.contains(&id)) {
                (true, false) => Fate::Confirmed,
                (_, true) => Fate::Unroutable,
                (false, false) => Fate::Refused,
            };
            let event = match publication {
                Publication::Event(telling) => {
                    fail_point!("event-confirmed");
                    BrokerEvent::Told {
                        ticket: telling.ticket,
                        command: telling.command,
                        place: telling.place,
                        fate,
                    }
                }
                Publication::Park(parking) => {
                    fail_point!("copy-confirmed");
                    BrokerEvent::Parked {
                        command: parking.command,
                        fate,
                    }
                }
            };
            drop(self.events.send(event));
        }
        Ok(())
    }
}

/// The broker confirms in the sequence of the publications, or nearly, so they are awaited in it:
/// each of the others would wake this task for nothing.
async fn each(confirms: Vec<PublisherConfirm>) -> lapin::Result<Vec<Confirmation>> {
    let mut confirmed = Vec::with_capacity(confirms.len());
    for confirm in confirms {
        confirmed.push(confirm.await?);
    }
    Ok(confirmed)
}

impl Publication {
    fn ticket(&self) -> Ticket {
        match self {
            Self::Event(telling) => telling.ticket,
            Self::Park(parking) => parking.ticket,
        }
    }
}

/// Acknowledges and returns, until the worker has no more to settle or the session fails.
pub(super) async fn settle(
    settlements: &mut UnboundedReceiver<Settlement>,
    deliveries: &Deliveries,
) -> Result<(), SessionError> {
    let mut batch = Vec::with_capacity(BATCH_MAX);
    loop {
        let is_over = tokio::select! {
            count = settlements.recv_many(&mut batch, BATCH_MAX) => count == 0,
            () = sleep_until(deliveries.waited(GAP_MAX)) => false,
        };
        let mut returns = Vec::new();
        for settlement in batch.drain(..) {
            match settlement {
                Settlement::Acknowledge(finished) => deliveries.finish(finished),
                // One of a lost session comes again anyhow.
                Settlement::Return(ticket) => returns.extend(deliveries.let_go(ticket)),
            }
        }
        // Written in any sequence: one that covers many is older than all the others.
        let patience = if is_over { Duration::ZERO } else { GAP_MAX };
        let acks = deliveries.acknowledgeable(patience);
        let acknowledged = join_all(acks.iter().map(acknowledge));
        let (acknowledged, returned) = tokio::join!(acknowledged, give_back(&returns, deliveries));
        all_settled(acknowledged)?;
        returned?;
        deliveries.acknowledged();
        if is_over {
            return Ok(());
        }
    }
}

async fn acknowledge(ack: &Ack<Done>) -> lapin::Result<bool> {
    ack.covered().for_each(|_| {
        fail_point!("acknowledge");
    });
    let multiple = ack.is_multiple();
    let acknowledged = ack.last().acker.ack(BasicAckOptions { multiple }).await;
    ack.covered().for_each(|_| {
        fail_point!("acknowledged");
    });
    acknowledged
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Gives deliveries back to the queue. Until the broker has been told, no acknowledgement of a later
/// one may cover them.
pub(super) async fn give_back(
    returns: &[Number],
    deliveries: &Deliveries,
) -> Result<(), SessionError> {
    let returns = returns.iter().map(|number| async {
        let Some(channel) = deliveries.channel_of(*number) else {
            return Err(SessionError::NotAcknowledged);
        };
        fail_point!("give-back");
        channel.basic_nack(number.tag(), requeue()).await?;
        fail_point!("given-back");
        deliveries.gave_back(*number);
        Ok(())
    });
    join_all(returns).await.into_iter().collect()
}

fn all_settled(answers: Vec<lapin::Result<bool>>) -> Result<(), SessionError> {
    for settled in answers {
        // `false` means that nothing was acknowledged.
        if !settled? {
            return Err(SessionError::NotAcknowledged);
        }
    }
    Ok(())
}

fn requeue() -> BasicNackOptions {
    BasicNackOptions {
        requeue: true,
        ..BasicNackOptions::default()
    }
}

fn now_seconds() -> u64 {
    u64::try_from(Timestamp::now().as_second()).unwrap_or_default()
}
