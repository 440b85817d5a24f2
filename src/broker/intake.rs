//! Deliveries in: subscribe, hand on, pause, subscribe again.

use std::convert::Infallible;
use std::sync::Arc;

use futures_util::StreamExt as _;
use lapin::message::Delivery;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Consumer};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::watch;
use tracing::debug;

use super::answer::give_back;
use super::held::{Deliveries, IN_HAND_MAX_BYTES, weigh};
use super::session::{Progress, SessionError};
use super::{BrokerEvent, Delivered, Settings};
use crate::rules::desk::{Intake, Ticket};
use crate::rules::window::{Arrival, Window};

/// So many deliveries at once are taken at first, and more when these turn out light: as many of the
/// largest commands that the contract allows are what may be in hand anyway.
const PREFETCH_FIRST: u16 = 32;

/// How many are on their way to us, of up to `prefetch`.
pub(super) fn window(prefetch: u16) -> Window {
    Window::new(prefetch, PREFETCH_FIRST, IN_HAND_MAX_BYTES)
}

/// Numbers deliveries over all sessions, so that no ticket of a lost one is taken for another's.
#[derive(Debug, Default)]
pub(super) struct Tickets(u64);

pub(super) struct Inlet<'a> {
    pub channel: Channel,
    pub settings: &'a Settings,
    pub wanted: watch::Receiver<Intake>,
    pub deliveries: &'a Deliveries,
    pub events: &'a UnboundedSender<BrokerEvent>,
    pub tickets: &'a mut Tickets,
    pub window: &'a mut Window,
    pub progress: &'a Progress,
}

impl Inlet<'_> {
    /// Consumes while that is wanted, until the session fails.
    pub(super) async fn run(&mut self) -> Result<Infallible, SessionError> {
        loop {
            while *self.wanted.borrow_and_update() != Intake::Open {
                self.progress.subscribed(false);
                if self.wanted.changed().await.is_err() {
                    return std::future::pending().await;
                }
            }
            // Per consumer: a global prefetch is refused by quorum queues.
            self.channel
                .basic_qos(self.window.width(), BasicQosOptions::default())
                .await?;
            let consumer = self.subscribe().await?;
            self.progress.subscribed(true);
            self.consume(consumer).await?;
        }
    }

    async fn subscribe(&self) -> Result<Consumer, SessionError> {
        let consumer = self
            .channel
            .basic_consume(
                self.settings.queue.as_str().into(),
                "".into(),
                BasicConsumeOptions::default(),
                FieldTable::default(),
            )
            .await?;
        Ok(consumer)
    }

    /// Until it is not wanted any more, or the window is to have another width. What the broker
    /// sent until then is handed on, unless it is too much; then it goes back, and this waits until
    /// there is room again.
    async fn consume(&mut self, mut consumer: Consumer) -> Result<(), SessionError> {
        let mut cancelled = false;
        let mut back = Vec::new();
        let mut goes_on_at = None;
        loop {
            let ends = tokio::select! {
                delivery = consumer.next() => match delivery {
                    // Its body is let go at once: what is on the way behind it comes faster than
                    // anything could be given back.
                    Some(delivery) if goes_on_at.is_some() => {
                        back.push(delivery?.acker);
                        false
                    }
                    Some(delivery) => {
                        let delivery = delivery?;
                        let weight = weigh(&delivery);
                        let (count, in_hand) = self.deliveries.load();
                        match self.window.arrive(weight, count, in_hand) {
                            Arrival::Take => {
                                self.hand_on(delivery, weight);
                                false
                            }
                            Arrival::TakeAndWiden => {
                                self.hand_on(delivery, weight);
                                true
                            }
                            Arrival::GiveBack => {
                                goes_on_at = Some(self.window.goes_on_at(weight));
                                back.push(delivery.acker);
                                true
                            }
                        }
                    }
                    None if cancelled => break,
                    None => return Err(SessionError::Cancelled),
                },
                changed = self.wanted.changed(), if !cancelled => {
                    changed.is_err() || *self.wanted.borrow() != Intake::Open
                }
            };
            if ends && !cancelled {
                let tag = consumer.tag();
                self.channel
                    .basic_cancel(tag, BasicCancelOptions::default())
                    .await?;
                cancelled = true;
            }
        }
        if let Some(weight) = goes_on_at {
            debug!(
                given_back = back.len(),
                prefetch = self.window.width(),
                "as much in hand as memory allows; fewer commands at once"
            );
            give_back(back).await?;
            self.deliveries.at_most(weight).await;
        }
        Ok(())
    }

    fn hand_on(&mut self, delivery: Delivery, weight: usize) {
        self.tickets.0 += 1;
        let ticket = Ticket(self.tickets.0);
        self.progress.delivered();
        let delivery = Arc::new(delivery);
        let delivered = Delivered::new(ticket, Arc::clone(&delivery));
        self.deliveries.hold(ticket, delivery, weight);
        // Bounded by the prefetch: a delivery not yet acknowledged.
        drop(
            self.events
                .send(BrokerEvent::Delivered(Box::new(delivered))),
        );
    }
}
