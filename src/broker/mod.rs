//! The broker: what is declared there, the link to it, deliveries in and answers out.
//!
//! Two connections: a broker that runs short of memory or disk blocks a connection that publishes,
//! and nothing can be acknowledged on a blocked one. A third is opened for requesters that use
//! direct reply-to, whose names can end it (`reply`). lapin's own recovery is off; whatever goes
//! wrong ends the whole session, and a new one is made ([`link`]).

pub mod answer;
pub mod intake;
pub mod link;
mod reply;
pub mod session;
pub mod topology;
pub mod wire;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lapin::message::Delivery;

use crate::rules::admit::{RawCommand, RawProperties};
use crate::rules::desk::{CommandKey, Fate, Ticket};

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
    /// Deliveries in hand at most.
    pub prefetch: u16,
}

/// What the broker's side reports to the worker, in the order in which it happened.
#[derive(Debug)]
pub enum BrokerEvent {
    /// A command has come.
    Delivered(Box<Delivered>),
    /// What became of an event.
    Told {
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

/// A command as it came, read but not yet believed.
#[derive(Debug)]
pub struct Delivered {
    /// Its number, which no other delivery ever has.
    pub ticket: Ticket,
    /// The broker gave it to somebody before.
    pub redelivered: bool,
    /// The body, or what is wrong with it.
    pub raw: Result<RawCommand, String>,
    /// The properties.
    pub properties: RawProperties,
}

/// The deliveries of the current session.
#[derive(Debug, Clone, Default)]
struct Deliveries(Arc<Mutex<HashMap<Ticket, Arc<Delivery>>>>);

impl Deliveries {
    fn lock(&self) -> MutexGuard<'_, HashMap<Ticket, Arc<Delivery>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
