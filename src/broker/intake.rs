//! Deliveries in: subscribe, hand on, pause, subscribe again.

use std::convert::Infallible;
use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::future::OptionFuture;
use lapin::message::Delivery;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::{DeliveryTag, FieldTable};
use lapin::{Acker, Channel, Consumer};
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

/// What of one subscription is too much.
#[derive(Default)]
struct Excess {
    deliveries: Vec<(DeliveryTag, Acker)>,
    /// The weight in hand at which to go on, once there is any.
    goes_on_at: Option<usize>,
}

impl Excess {
    fn push(&mut self, delivery: Delivery) {
        self.deliveries
            .push((delivery.delivery_tag, delivery.acker));
    }
}

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
            self.progress.set_width(self.window.width());
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
        let mut excess = Excess::default();
        let mut cancel = None;
        let mut cancelled = false;
        loop {
            let is_over = tokio::select! {
                delivery = consumer.next() => match delivery {
                    Some(delivery) => self.take(delivery?, &mut excess),
                    None if cancel.is_some() => break,
                    None => return Err(SessionError::Cancelled),
                },
                changed = self.wanted.changed(), if cancel.is_none() => {
                    changed.is_err() || *self.wanted.borrow() != Intake::Open
                }
                // Deliveries come until the broker has heard of it, and must not pile up meanwhile.
                done = OptionFuture::from(cancel.as_mut()), if cancel.is_some() && !cancelled => {
                    done.unwrap_or(Ok(()))?;
                    cancelled = true;
                    false
                }
            };
            if is_over && cancel.is_none() {
                let (channel, tag) = (self.channel.clone(), consumer.tag());
                cancel = Some(Box::pin(async move {
                    channel
                        .basic_cancel(tag, BasicCancelOptions::default())
                        .await
                }));
            }
        }
        if let Some(weight) = excess.goes_on_at {
            debug!(
                given_back = excess.deliveries.len(),
                prefetch = self.window.width(),
                "as much in hand as memory allows; fewer commands at once"
            );
            self.progress.set_width(0);
            give_back(&excess.deliveries, self.deliveries).await?;
            self.deliveries.at_most(weight).await;
        }
        Ok(())
    }

    /// Takes a delivery in hand, or notes that it goes back; `true` when no more are wanted by this
    /// subscription.
    fn take(&mut self, delivery: Delivery, excess: &mut Excess) -> bool {
        self.deliveries.came(&delivery);
        if excess.goes_on_at.is_some() {
            // Its body is let go at once: others come faster than anything could be given back.
            excess.push(delivery);
            return false;
        }
        let weight = weigh(&delivery);
        let (count, in_hand) = self.deliveries.load();
        let arrival = self.window.arrive(weight, count, in_hand);
        match arrival {
            Arrival::Take | Arrival::TakeAndWiden => self.hand_on(delivery, weight),
            Arrival::GiveBack => {
                excess.goes_on_at = Some(self.window.goes_on_at(weight));
                excess.push(delivery);
            }
        }
        arrival != Arrival::Take
    }

    fn hand_on(&mut self, delivery: Delivery, weight: usize) {
        fail_point!("delivered");
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
