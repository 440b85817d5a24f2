//! The broker: what is declared there, the link to it, deliveries in and answers out.
//!
//! Two connections: a broker that runs short of memory or disk blocks a connection that publishes,
//! and nothing can be acknowledged on a blocked one. A third is opened for requesters that use
//! direct reply-to, whose names can end it (`reply`). lapin's own recovery is off; whatever goes
//! wrong ends the whole session, and a new one is made ([`link`]).

pub mod answer;
pub mod bindings;
pub mod dead;
mod held;
pub mod inspect;
pub mod intake;
mod letter;
pub mod link;
mod mend;
mod peek;
mod reply;
pub mod session;
pub mod topology;
pub mod wire;

use std::sync::Arc;

use jiff::Timestamp;
use lapin::message::Delivery;

use crate::rules::admit::{RawCommand, RawProperties};
use crate::rules::desk::{CommandKey, Fate, Ticket};
use crate::rules::dry_run::Mode;
use crate::rules::order::AccountName;
use crate::rules::poison::{Digest, SUSPECT};
use held::Deliveries;

/// What the broker's side needs to know.
#[derive(Clone)]
pub struct Settings {
    /// The nodes of one cluster, tried in turn. They hold the password, so they are never shown.
    pub urls: Vec<lapin::uri::AMQPUri>,
    /// `amqp.queue`.
    pub queue: String,
    /// `amqp.exchange`.
    pub exchange: String,
    /// `amqp.dead_queue`.
    pub dead_queue: String,
    /// `amqp.declare`.
    pub declare: bool,
    /// Deliveries in hand at most, but for what `rules/share.rs` says.
    pub prefetch: u16,
    /// Of a dry run, events are told as such, and to no requester.
    pub mode: Mode,
    /// The accounts that share the queue.
    pub accounts: Vec<AccountName>,
}

/// What the broker's side reports to the worker, in the order in which it happened.
#[derive(Debug)]
pub enum BrokerEvent {
    /// A command has come.
    Delivered(Box<Delivered>),
    /// What became of an event.
    Told {
        /// The delivery that it answers.
        ticket: Ticket,
        /// The command.
        command: CommandKey,
        /// The entry.
        place: usize,
        /// What became of it.
        fate: Fate,
    },
    /// What became of a copy for the dead-letter queue.
    Parked {
        /// The command.
        command: CommandKey,
        /// What became of it.
        fate: Fate,
    },
    /// The session is lost, and every delivery with it.
    Lost,
}

/// A command as it came, unread.
#[derive(Debug)]
pub struct Delivered {
    /// Its number, which no other delivery ever has.
    pub ticket: Ticket,
    /// The broker gave it to somebody before.
    pub redelivered: bool,
    /// How often it came back, as the broker counts it (`x-delivery-count`). A queue that does not
    /// count has given a redelivered one often enough to be suspected.
    pub returns: u64,
    delivery: Arc<Delivery>,
}

impl Delivered {
    fn new(ticket: Ticket, delivery: Arc<Delivery>) -> Self {
        let counted = wire::delivery_count(&delivery.properties);
        let uncounted = if delivery.redelivered { SUSPECT } else { 0 };
        Self {
            ticket,
            redelivered: delivery.redelivered,
            returns: counted.unwrap_or(uncounted),
            delivery,
        }
    }

    /// The body, or what is wrong with it, and the properties.
    pub fn read(&self) -> (Result<RawCommand, String>, RawProperties) {
        wire::read(&self.delivery.data, &self.delivery.properties)
    }

    /// Its size, in bytes.
    pub fn bytes(&self) -> usize {
        self.delivery.data.len()
    }

    /// When it was published, as far as its publisher says.
    pub fn published(&self) -> Option<Timestamp> {
        wire::published(&self.delivery.properties)
    }

    /// The properties alone.
    pub fn properties(&self) -> RawProperties {
        wire::read_properties(&self.delivery.properties)
    }

    /// By which it is known when it comes again in another run.
    pub fn digest(&self) -> Digest {
        wire::digest(&self.delivery.data, &self.delivery.properties)
    }
}
