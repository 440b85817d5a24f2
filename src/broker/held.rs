//! The deliveries in hand, and how much memory they take.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lapin::message::Delivery;
use tokio::sync::Notify;

use crate::rules::admit::ORDERS_MAX;
use crate::rules::desk::Ticket;

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

/// The deliveries of the current session.
#[derive(Debug, Clone, Default)]
pub(super) struct Deliveries(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    held: Mutex<Held>,
    /// One was let go.
    lighter: Notify,
}

#[derive(Debug, Default)]
struct Held {
    by_ticket: HashMap<Ticket, (Arc<Delivery>, usize)>,
    weight: usize,
}

impl Deliveries {
    fn lock(&self) -> MutexGuard<'_, Held> {
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner)
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
