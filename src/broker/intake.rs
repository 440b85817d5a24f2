//! Deliveries in: subscribe, hand on or keep, pause, subscribe again, and look past what does not
//! move (`rules/share.rs`).

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::OptionFuture;
use lapin::message::Delivery;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Connection, Consumer};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::debug;

use super::answer::give_back;
use super::held::{Deliveries, IN_HAND_MAX_BYTES, Number, weigh};
use super::peek::Accounts;
use super::session::{Progress, SessionError};
use super::{BrokerEvent, Delivered, Settings};
use crate::rules::desk::{Intake, Ticket};
use crate::rules::share::{Place, Shares, Subscription};
use crate::rules::window::{Arrival, Window};

/// So many deliveries at once are taken at first, and more when these turn out light: as many of the
/// largest commands that the contract allows are what may be in hand anyway.
const PREFETCH_FIRST: u16 = 32;
/// A delivery is kept at most this long, for the reason for which one is held no longer.
const KEPT_MAX: Duration = Duration::from_secs(20 * 60);
/// Kept deliveries that are given back together: others wait meanwhile.
const RETURNS_MAX: usize = 512;

/// How many are on their way to us, of up to `prefetch`.
pub(super) fn window(prefetch: u16) -> Window {
    Window::new(prefetch, PREFETCH_FIRST, IN_HAND_MAX_BYTES)
}

/// What each account may have in hand, where there are several.
pub(super) fn shares(settings: &Settings) -> Option<Shares<Number>> {
    let accounts = Accounts::new(&settings.accounts);
    let window = usize::from(settings.prefetch);
    accounts
        .share()
        .then(|| Shares::new(accounts.count(), window, IN_HAND_MAX_BYTES))
}

/// Numbers deliveries over all sessions, so that no ticket of a lost one is taken for another's.
#[derive(Debug, Default)]
pub(super) struct Tickets(u64);

/// What of one subscription is too much.
#[derive(Default)]
struct Excess {
    deliveries: Vec<Number>,
    /// The weight in hand at which to go on, once there is any.
    goes_on_at: Option<usize>,
}

pub(super) struct Inlet<'a> {
    pub connection: &'a Connection,
    pub settings: &'a Settings,
    pub accounts: Accounts,
    pub wanted: watch::Receiver<Intake>,
    pub deliveries: &'a Deliveries,
    pub events: &'a UnboundedSender<BrokerEvent>,
    pub tickets: &'a mut Tickets,
    pub window: &'a mut Window,
    pub progress: &'a Progress,
}

/// What follows a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// Another, if one is wanted.
    AsBefore,
    /// Another beside what this one brought, which does not move: on a channel of its own, for the
    /// broker goes through all that a channel holds to find what is settled.
    LookPast,
}

impl Inlet<'_> {
    /// Consumes while that is wanted, until the session fails.
    pub(super) async fn run(&mut self) -> Result<Infallible, SessionError> {
        let mut next = Next::AsBefore;
        loop {
            self.until_wanted().await?;
            if next == Next::LookPast && self.deliveries.may_have_another() {
                self.go_on_with_another().await;
            }
            let channel = self.deliveries.channel().ok_or(SessionError::Cancelled)?;
            let width = self.width();
            // Per consumer: a global prefetch is refused by quorum queues.
            channel.basic_qos(width, BasicQosOptions::default()).await?;
            self.deliveries.subscribed();
            let consumer = self.subscribe(&channel).await?;
            self.progress.set_width(width);
            self.progress.subscribed(true);
            next = self.consume(&channel, consumer, width).await?;
        }
    }

    /// A channel of its own for what comes next. Where the broker allows few, the last one will do.
    async fn go_on_with_another(&self) {
        let kept = self.deliveries.shares(|shares| shares.kept());
        debug!(kept, "what is in hand does not move; looking past it");
        if let Ok(channel) = self.connection.create_channel().await {
            self.deliveries.go_on_with(channel);
        }
    }

    /// While nothing is wanted, what is kept does not stay for ever; once nothing will be, it goes
    /// back.
    async fn until_wanted(&mut self) -> Result<(), SessionError> {
        loop {
            let wanted = *self.wanted.borrow_and_update();
            let hold = match wanted {
                Intake::Open => return Ok(()),
                Intake::Paused => KEPT_MAX,
                Intake::Closed => Duration::ZERO,
            };
            self.progress.subscribed(false);
            while self.give_back_overdue(hold).await? {}
            tokio::select! {
                changed = self.wanted.changed() => if changed.is_err() {
                    return std::future::pending().await;
                },
                () = tokio::time::sleep(Subscription::LOOK_EVERY) => {}
            }
        }
    }

    /// How many the broker may send.
    fn width(&self) -> u16 {
        let width = self.window.width();
        let awaited = self
            .deliveries
            .shares(|shares| (!shares.has_room()).then(|| shares.awaited()));
        match awaited.flatten() {
            // No more than what went back, to be opened now.
            Some(awaited) => u16::try_from(awaited).unwrap_or(width).clamp(1, width),
            None => width,
        }
    }

    async fn subscribe(&self, channel: &Channel) -> Result<Consumer, SessionError> {
        let consumer = channel
            .basic_consume(
                self.settings.queue.as_str().into(),
                "".into(),
                BasicConsumeOptions::default(),
                FieldTable::default(),
            )
            .await?;
        Ok(consumer)
    }

    /// Until it is not wanted any more, or the window is to have another width, or more is to come
    /// beside it. What the broker sent until then is handed on or kept, unless it is too much; then
    /// it goes back, and this waits until there is room again.
    async fn consume(
        &mut self,
        channel: &Channel,
        mut consumer: Consumer,
        width: u16,
    ) -> Result<Next, SessionError> {
        let mut excess = Excess::default();
        let mut cancel = None;
        let mut cancelled = false;
        let mut next = Next::AsBefore;
        let mut subscription = Subscription::new(self.deliveries.now(), width.into());
        let mut look_at = self.next_look();
        loop {
            let is_over = tokio::select! {
                delivery = consumer.next() => match delivery {
                    Some(delivery) => self.take(delivery?, &mut excess, &mut subscription),
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
                () = self.deliveries.lighter(), if self.accounts.share() => {
                    self.give_back_due().await?;
                    false
                }
                () = tokio::time::sleep_until(look_at), if self.accounts.share() => {
                    look_at = self.next_look();
                    self.give_back_due().await?;
                    self.give_back_overdue(KEPT_MAX).await?;
                    self.close_idle_channels().await;
                    let looks_past = cancel.is_none() && self.is_to_look_past(&mut subscription);
                    if looks_past {
                        next = Next::LookPast;
                    }
                    looks_past
                }
            };
            if is_over && cancel.is_none() {
                let (channel, tag) = (channel.clone(), consumer.tag());
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
        Ok(next)
    }

    /// Takes a delivery in hand, or notes that it is kept or goes back; `true` when no more are
    /// wanted by this subscription.
    fn take(
        &mut self,
        delivery: Delivery,
        excess: &mut Excess,
        subscription: &mut Subscription,
    ) -> bool {
        let number = self.deliveries.came(&delivery);
        if excess.goes_on_at.is_some() {
            // Its body is let go at once: others come faster than anything could be given back.
            excess.deliveries.push(number);
            return false;
        }
        subscription.came();
        let weight = weigh(&delivery);
        let account = self.accounts.of(&delivery);
        let (count, in_hand) = self.deliveries.load();
        let place = self
            .deliveries
            .place(account, weight, delivery.redelivered, number);
        match place {
            Place::Open => {}
            Place::Kept | Place::KeptHeavy => {
                self.progress.delivered();
                subscription.keeps(delivery.data.len());
                if place == Place::KeptHeavy {
                    self.window.narrow(count);
                }
                return false;
            }
        }
        let arrival = self.window.arrive(weight, count, in_hand);
        match arrival {
            Arrival::Take | Arrival::TakeAndWiden => {
                self.hand_on(delivery, weight, number, account);
            }
            Arrival::GiveBack => {
                self.deliveries
                    .shares(|shares| shares.let_go(account, weight));
                excess.goes_on_at = Some(self.window.goes_on_at(weight));
                excess.deliveries.push(number);
            }
        }
        arrival != Arrival::Take
    }

    fn hand_on(&mut self, delivery: Delivery, weight: usize, number: Number, account: usize) {
        fail_point!("delivered");
        self.tickets.0 += 1;
        let ticket = Ticket(self.tickets.0);
        self.progress.delivered();
        let delivery = Arc::new(delivery);
        let delivered = Delivered::new(ticket, Arc::clone(&delivery));
        self.deliveries
            .hold(ticket, delivery, weight, number, account);
        // Bounded by the prefetch: a delivery not yet acknowledged.
        drop(
            self.events
                .send(BrokerEvent::Delivered(Box::new(delivered))),
        );
    }

    // ---- what is kept ----

    fn next_look(&self) -> Instant {
        let looks_past = self.deliveries.shares(|shares| shares.looks_past());
        Instant::now()
            + match looks_past {
                Some(true) => Subscription::PAUSE,
                Some(false) | None => Subscription::LOOK_EVERY,
            }
    }

    /// Whether more is to come beside what this subscription brought.
    fn is_to_look_past(&self, subscription: &mut Subscription) -> bool {
        let now = self.deliveries.now();
        let unsettled = self.deliveries.unsettled();
        let may_have_another = self.deliveries.may_have_another();
        let is_stuck = subscription.is_stuck(now, unsettled);
        let asked = self.deliveries.shares(|shares| {
            if is_stuck {
                shares.look_past();
            } else if !subscription.is_spent(unsettled) {
                shares.look_straight();
            }
            let is_skimmed = shares.looks_past() && subscription.is_skimmed(unsettled);
            let may_look = may_have_another && shares.has_room() && (is_stuck || is_skimmed);
            let misses_some = shares.awaited() > 0 && subscription.is_spent(unsettled);
            match shares.pause() {
                Some(pause) if may_look => Some(pause),
                _ => misses_some.then_some(Subscription::PAUSE),
            }
        });
        asked
            .flatten()
            .is_some_and(|pause| now >= subscription.next_from(pause))
    }

    /// Gives back what its account has room for.
    async fn give_back_due(&self) -> Result<(), SessionError> {
        let now = self.deliveries.now();
        let due = self.deliveries.shares(|shares| shares.due(now));
        give_back(&due.unwrap_or_default(), self.deliveries).await
    }

    /// Gives back some of what was kept for so long; `true` if there may be more.
    async fn give_back_overdue(&self, hold: Duration) -> Result<bool, SessionError> {
        let now = self.deliveries.now();
        let overdue = self
            .deliveries
            .shares(|shares| shares.overdue(now, hold, RETURNS_MAX))
            .unwrap_or_default();
        give_back(&overdue, self.deliveries).await?;
        Ok(overdue.len() == RETURNS_MAX)
    }

    async fn close_idle_channels(&self) {
        for channel in self.deliveries.idle_channels() {
            // One that is closed already is as good.
            drop(channel.close(200, "all of it is settled".into()).await);
        }
    }
}
