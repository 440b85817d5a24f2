//! The deliveries in hand, and how much memory they take.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lapin::Acker;
use lapin::message::Delivery;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::rules::admit::ORDERS_MAX;
use crate::rules::desk::{Finished, Ticket};
use crate::rules::outstanding::{Ack, Outstanding, Tag};
use crate::rules::time::Mono;

/// Deliveries in hand weigh at most so much, or else there is one alone. What the worker takes
/// beside them is some tens of MB.
pub const IN_HAND_MAX_BYTES: usize = 32 * 1024 * 1024;
/// What a delivery takes beside its body and its orders: envelope, properties, places in tables.
const COMMAND_BYTES: usize = 4 * 1024;
/// What one order takes from its arrival until its event is confirmed: its places at the desk and
/// in a lane, its rows on their way to the ledger, its event on the way to the broker. Measured; see
/// `docs/ARCHITECTURE.md`.
const ORDER_BYTES: usize = 1024;

/// What a delivery takes, from its bytes alone: there are at most as many orders as commas, and one.
pub(super) fn weigh(delivery: &Delivery) -> usize {
    let commas = delivery.data.iter().filter(|b| **b == b',').count();
    let orders = (commas + 1).min(ORDERS_MAX);
    COMMAND_BYTES + delivery.data.len() + orders * ORDER_BYTES
}

/// A delivery that may be acknowledged, and by which means.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) acker: Acker,
    /// Why it may be.
    _proof: Finished,
}

/// The deliveries of the current session, all of which came on one channel.
#[derive(Debug, Clone)]
pub(super) struct Deliveries(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    began: Instant,
    held: Mutex<Held>,
    /// One was let go.
    lighter: Notify,
}

#[derive(Debug, Default)]
struct Held {
    by_ticket: HashMap<Ticket, (Arc<Delivery>, usize)>,
    weight: usize,
    outstanding: Outstanding<Done>,
}

impl Default for Deliveries {
    fn default() -> Self {
        Self(Arc::new(Shared {
            began: Instant::now(),
            held: Mutex::default(),
            lighter: Notify::new(),
        }))
    }
}

impl Deliveries {
    fn lock(&self) -> MutexGuard<'_, Held> {
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Mono {
        Mono(self.0.began.elapsed())
    }

    /// A delivery has come; to be said of each, also of one that is not held.
    pub(super) fn came(&self, delivery: &Delivery) {
        self.lock().outstanding.came(Tag(delivery.delivery_tag));
    }

    pub(super) fn hold(&self, ticket: Ticket, delivery: Arc<Delivery>, weight: usize) {
        let mut held = self.lock();
        held.weight = held.weight.saturating_add(weight);
        held.by_ticket.insert(ticket, (delivery, weight));
    }

    pub(super) fn get(&self, ticket: Ticket) -> Option<Arc<Delivery>> {
        let held = self.lock();
        let (delivery, _) = held.by_ticket.get(&ticket)?;
        Some(Arc::clone(delivery))
    }

    pub(super) fn let_go(&self, ticket: Ticket) -> Option<Arc<Delivery>> {
        let mut held = self.lock();
        let (delivery, weight) = held.by_ticket.remove(&ticket)?;
        held.weight = held.weight.saturating_sub(weight);
        drop(held);
        self.0.lighter.notify_one();
        Some(delivery)
    }

    /// Lets go of a delivery that is to be acknowledged. One of a lost session is not known here: the
    /// broker gives it to somebody again.
    pub(super) fn finish(&self, proof: Finished) {
        let Some(delivery) = self.let_go(proof.ticket()) else {
            return;
        };
        let tag = Tag(delivery.delivery_tag);
        let done = Done {
            acker: delivery.acker.clone(),
            _proof: proof,
        };
        let now = self.now();
        self.lock().outstanding.finish(tag, done, now);
    }

    /// The broker was told that this one goes back.
    pub(super) fn gave_back(&self, tag: Tag) {
        self.lock().outstanding.gave_back(tag);
    }

    /// What is to be acknowledged now; the broker must be told before more is asked for.
    pub(super) fn acknowledgeable(&self, patience: Duration) -> Vec<Ack<Done>> {
        let now = self.now();
        self.lock().outstanding.take(now, patience)
    }

    /// When the oldest of what may be acknowledged has waited for so long, if any waits.
    pub(super) fn waited(&self, patience: Duration) -> Option<Instant> {
        let since = self.lock().outstanding.waits_since()?;
        Some(self.0.began + since.0 + patience)
    }

    /// How many there are, and what they weigh together.
    pub(super) fn load(&self) -> (usize, usize) {
        let held = self.lock();
        (held.by_ticket.len(), held.weight)
    }

    /// Resolves once they weigh no more than this. One waits at a time.
    pub(super) async fn at_most(&self, weight: usize) {
        while self.load().1 > weight {
            self.0.lighter.notified().await;
        }
    }
}
