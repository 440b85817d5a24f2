//! The deliveries in hand and those that are kept, and how much memory they take.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lapin::message::Delivery;
use lapin::{Acker, Channel};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::rules::admit::ORDERS_MAX;
use crate::rules::desk::{Finished, Ticket};
use crate::rules::outstanding::{Ack, Outstanding, Tag};
use crate::rules::share::{Place, Shares};
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
/// Channels of a session at most; the client and the broker allow twice as many.
const LINES_MAX: usize = 1000;
/// A channel of which everything is settled stays open so long, for the broker takes what was
/// settled only some at a time, and what it has not taken when the channel closes comes again.
const LINGERS: Duration = Duration::from_secs(5);

/// What a delivery takes, from its bytes alone: there are at most as many orders as commas, and one.
pub(super) fn weigh(delivery: &Delivery) -> usize {
    let commas = delivery.data.iter().filter(|b| **b == b',').count();
    let orders = (commas + 1).min(ORDERS_MAX);
    COMMAND_BYTES + delivery.data.len() + orders * ORDER_BYTES
}

/// What a delivery is known by in its session: the channel that it came on, and its tag there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Number {
    line: u32,
    tag: Tag,
}

impl Number {
    pub(super) fn tag(self) -> u64 {
        self.tag.0
    }
}

/// A delivery that may be acknowledged, and by which means.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) acker: Acker,
    /// Why it may be.
    _proof: Finished,
}

/// The deliveries of the current session.
#[derive(Debug, Clone)]
pub(super) struct Deliveries(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    began: Instant,
    held: Mutex<Held>,
    /// One was let go.
    lighter: Notify,
}

#[derive(Debug)]
struct Held {
    by_ticket: HashMap<Ticket, InHand>,
    weight: usize,
    /// Channels, by their numbers. Deliveries come on the last one, or soon will.
    lines: BTreeMap<u32, Line>,
    current: u32,
    /// After this one, deliveries are of the current subscription.
    subscribed_after: Tag,
    /// Where several accounts share the queue.
    shares: Option<Shares<Number>>,
}

#[derive(Debug)]
struct InHand {
    delivery: Arc<Delivery>,
    weight: usize,
    number: Number,
    account: usize,
}

#[derive(Debug)]
struct Line {
    channel: Channel,
    outstanding: Outstanding<Done>,
    /// Acknowledgements are being written.
    writes: bool,
    /// Since when all is settled.
    idle: Option<Instant>,
}

impl Line {
    fn new(channel: Channel) -> Self {
        Self {
            channel,
            outstanding: Outstanding::default(),
            writes: false,
            idle: None,
        }
    }
}

impl Deliveries {
    /// None yet; they come on this channel. `shares` is for several accounts.
    pub(super) fn on(channel: Channel, shares: Option<Shares<Number>>) -> Self {
        Self(Arc::new(Shared {
            began: Instant::now(),
            held: Mutex::new(Held {
                by_ticket: HashMap::new(),
                weight: 0,
                lines: BTreeMap::from([(0, Line::new(channel))]),
                current: 0,
                subscribed_after: Tag::default(),
                shares,
            }),
            lighter: Notify::new(),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn now(&self) -> Mono {
        Mono(self.0.began.elapsed())
    }

    pub(super) fn instant(&self, at: Mono) -> Instant {
        self.0.began + at.0
    }

    // ---- channels ----

    /// The channel on which deliveries come.
    pub(super) fn channel(&self) -> Option<Channel> {
        let held = self.lock();
        Some(held.lines.get(&held.current)?.channel.clone())
    }

    /// The channel on which this one came.
    pub(super) fn channel_of(&self, number: Number) -> Option<Channel> {
        Some(self.lock().lines.get(&number.line)?.channel.clone())
    }

    /// Whether there may be another channel.
    pub(super) fn may_have_another(&self) -> bool {
        self.lock().lines.len() < LINES_MAX
    }

    /// From now on they come on this one.
    pub(super) fn go_on_with(&self, channel: Channel) {
        let mut held = self.lock();
        held.current += 1;
        let current = held.current;
        held.lines.insert(current, Line::new(channel));
        held.subscribed_after = Tag::default();
    }

    /// A subscription begins: what came before on the same channel is not its.
    pub(super) fn subscribed(&self) {
        let mut held = self.lock();
        held.subscribed_after = match held.lines.get(&held.current) {
            Some(line) => line.outstanding.last(),
            None => Tag::default(),
        };
    }

    /// How many of the current subscription are not settled.
    pub(super) fn unsettled(&self) -> usize {
        let held = self.lock();
        let line = held.lines.get(&held.current);
        line.map_or(0, |line| {
            line.outstanding.unsettled_after(held.subscribed_after)
        })
    }

    /// How many of the session are not settled.
    pub(super) fn all_unsettled(&self) -> usize {
        let held = self.lock();
        let lines = held.lines.values();
        lines.map(|line| line.outstanding.unsettled()).sum()
    }

    /// How many of them are kept unopened.
    pub(super) fn kept(&self) -> usize {
        self.shares(|shares| shares.kept()).unwrap_or_default()
    }

    /// Channels that are not needed any more.
    pub(super) fn idle_channels(&self) -> Vec<Channel> {
        let now = Instant::now();
        let mut held = self.lock();
        let current = held.current;
        let mut idle = Vec::new();
        held.lines.retain(|number, line| {
            if *number == current || line.writes || line.outstanding.unsettled_after(Tag(0)) > 0 {
                line.idle = None;
                return true;
            }
            let stays = now.duration_since(*line.idle.get_or_insert(now)) < LINGERS;
            if !stays {
                idle.push(line.channel.clone());
            }
            stays
        });
        idle
    }

    // ---- arrivals ----

    /// A delivery has come; to be said of each, also of one that is not held.
    pub(super) fn came(&self, delivery: &Delivery) -> Number {
        let mut held = self.lock();
        let number = Number {
            line: held.current,
            tag: Tag(delivery.delivery_tag),
        };
        if let Some(line) = held.lines.get_mut(&number.line) {
            line.outstanding.came(number.tag);
        }
        number
    }

    /// Whether it is opened or kept.
    pub(super) fn place(
        &self,
        account: usize,
        weight: usize,
        again: bool,
        number: Number,
    ) -> Place {
        let now = self.now();
        match &mut self.lock().shares {
            Some(shares) => shares.arrive(now, account, weight, again, number),
            None => Place::Open,
        }
    }

    pub(super) fn hold(
        &self,
        ticket: Ticket,
        delivery: Arc<Delivery>,
        weight: usize,
        number: Number,
        account: usize,
    ) {
        let mut held = self.lock();
        held.weight = held.weight.saturating_add(weight);
        let in_hand = InHand {
            delivery,
            weight,
            number,
            account,
        };
        held.by_ticket.insert(ticket, in_hand);
    }

    /// What the accounts' shares say.
    pub(super) fn shares<R>(&self, ask: impl FnOnce(&mut Shares<Number>) -> R) -> Option<R> {
        self.lock().shares.as_mut().map(ask)
    }

    pub(super) fn get(&self, ticket: Ticket) -> Option<Arc<Delivery>> {
        let held = self.lock();
        Some(Arc::clone(&held.by_ticket.get(&ticket)?.delivery))
    }

    // ---- settling ----

    /// Lets go of a delivery that is to go back.
    pub(super) fn let_go(&self, ticket: Ticket) -> Option<Number> {
        Some(self.remove(ticket)?.number)
    }

    fn remove(&self, ticket: Ticket) -> Option<InHand> {
        let mut held = self.lock();
        let in_hand = held.by_ticket.remove(&ticket)?;
        held.weight = held.weight.saturating_sub(in_hand.weight);
        if let Some(shares) = &mut held.shares {
            shares.let_go(in_hand.account, in_hand.weight);
        }
        drop(held);
        self.0.lighter.notify_one();
        Some(in_hand)
    }

    /// Lets go of a delivery that is to be acknowledged. One of a lost session is not known here: the
    /// broker gives it to somebody again.
    pub(super) fn finish(&self, proof: Finished) {
        let Some(in_hand) = self.remove(proof.ticket()) else {
            return;
        };
        let done = Done {
            acker: in_hand.delivery.acker.clone(),
            _proof: proof,
        };
        let now = self.now();
        if let Some(line) = self.lock().lines.get_mut(&in_hand.number.line) {
            line.outstanding.finish(in_hand.number.tag, done, now);
        }
    }

    /// The broker was told that this one goes back.
    pub(super) fn gave_back(&self, number: Number) {
        if let Some(line) = self.lock().lines.get_mut(&number.line) {
            line.outstanding.gave_back(number.tag);
        }
    }

    /// What is to be acknowledged now; `acknowledged` is to be called when the broker was told.
    pub(super) fn acknowledgeable(&self, patience: Duration) -> Vec<Ack<Done>> {
        let now = self.now();
        let mut acks = Vec::new();
        for line in self.lock().lines.values_mut() {
            let ready = line.outstanding.take(now, patience);
            line.writes = !ready.is_empty();
            acks.extend(ready);
        }
        acks
    }

    /// The broker was told of all that was acknowledgeable.
    pub(super) fn acknowledged(&self) {
        for line in self.lock().lines.values_mut() {
            line.writes = false;
        }
    }

    /// When the oldest of what may be acknowledged has waited for so long, if any waits.
    pub(super) fn waited(&self, patience: Duration) -> Option<Instant> {
        let held = self.lock();
        let lines = held.lines.values();
        let since = lines.filter_map(|l| l.outstanding.waits_since()).min()?;
        Some(self.instant(since) + patience)
    }

    // ---- how much ----

    /// How many there are, and what they weigh together.
    pub(super) fn load(&self) -> (usize, usize) {
        let held = self.lock();
        (held.by_ticket.len(), held.weight)
    }

    /// Resolves once one has been let go since it resolved last. One waits at a time.
    pub(super) async fn lighter(&self) {
        self.0.lighter.notified().await;
    }

    /// Resolves once they weigh no more than this. One waits at a time.
    pub(super) async fn at_most(&self, weight: usize) {
        while self.load().1 > weight {
            self.lighter().await;
        }
    }
}
