//! Deliveries in: subscribe, hand on, pause, subscribe again.

use std::convert::Infallible;
use std::sync::Arc;

use futures_util::StreamExt as _;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Consumer};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::watch;

use super::session::{Progress, SessionError};
use super::{BrokerEvent, Delivered, Deliveries, Settings};
use crate::rules::desk::{Intake, Ticket};

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
    pub progress: &'a Progress,
}

impl Inlet<'_> {
    /// Consumes while that is wanted, until the session fails.
    pub(super) async fn run(&mut self) -> Result<Infallible, SessionError> {
        // Per consumer: a global prefetch is refused by quorum queues.
        self.channel
            .basic_qos(self.settings.prefetch, BasicQosOptions::default())
            .await?;
        loop {
            while *self.wanted.borrow_and_update() != Intake::Open {
                if self.wanted.changed().await.is_err() {
                    return std::future::pending().await;
                }
            }
            let mut consumer = self.subscribe().await?;
            self.progress.subscribed(true);
            self.consume(&mut consumer).await?;
            self.progress.subscribed(false);
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

    /// Until it is not wanted any more; what the broker sent until then is handed on.
    async fn consume(&mut self, consumer: &mut Consumer) -> Result<(), SessionError> {
        let mut cancelled = false;
        loop {
            tokio::select! {
                delivery = consumer.next() => match delivery {
                    Some(delivery) => self.hand_on(delivery?),
                    None if cancelled => return Ok(()),
                    None => return Err(SessionError::Cancelled),
                },
                changed = self.wanted.changed(), if !cancelled => {
                    let closed = changed.is_err();
                    if closed || *self.wanted.borrow() != Intake::Open {
                        let tag = consumer.tag();
                        self.channel.basic_cancel(tag, BasicCancelOptions::default()).await?;
                        cancelled = true;
                    }
                }
            }
        }
    }

    fn hand_on(&mut self, delivery: lapin::message::Delivery) {
        fail_point!("delivered");
        self.tickets.0 += 1;
        let ticket = Ticket(self.tickets.0);
        self.progress.delivered();
        let delivery = Arc::new(delivery);
        let delivered = Delivered::new(ticket, Arc::clone(&delivery));
        self.deliveries.lock().insert(ticket, delivery);
        // Bounded by the prefetch: a delivery not yet acknowledged.
        drop(
            self.events
                .send(BrokerEvent::Delivered(Box::new(delivered))),
        );
    }
}
