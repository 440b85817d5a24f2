//! Commands and orders in hand.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::Timestamp;

use super::action::{CommandKey, Fence, LaneId, OrderRow, OrderState, Ticket};
use crate::rules::admit::{Envelope, Fingerprint};
use crate::rules::lane::OrderKey;
use crate::rules::next::{self, Tries};
use crate::rules::order::{CommandId, Ending, OrderNo, Outcome, Reason, ReasonCode};
use crate::rules::poison::TRIALS;
use crate::rules::time::{Mono, Now};

/// An entry of a command in hand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Stage {
    /// Not yet decided; waits for this order.
    Open(OrderKey),
    /// Decided under this claim of the order, on its way to the ledger.
    Recording(Told, Option<Fence>),
    /// Durable, to be told.
    Decided(Told),
    /// On its way to the broker.
    Telling(Told),
    /// No queue took it; tried again later.
    Untold(Told),
    /// Confirmed.
    Confirmed,
}

/// What is told of one entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) ending: Ending,
    pub(super) attempts: u32,
    pub(super) replayed: bool,
    pub(super) occurred_at: Timestamp,
}

impl Told {
    /// Whether the same command sent again is told the same again; otherwise it tries again.
    pub(super) fn is_settled(&self) -> bool {
        is_settled(&self.ending)
    }
}

/// See [`Told::is_settled`].
pub(super) fn is_settled(ending: &Ending) -> bool {
    match ending.outcome() {
        Outcome::Cancelled | Outcome::Refused | Outcome::Rejected | Outcome::Expired => true,
        Outcome::Failed | Outcome::Unknown => false,
    }
}

/// A command in hand.
#[derive(Debug, Clone)]
pub(super) struct Open {
    /// None while the broker is lost: the delivery will come again.
    pub(super) ticket: Option<Ticket>,
    pub(super) orphaned_at: Option<Mono>,
    pub(super) lane: Option<LaneId>,
    pub(super) account: Arc<str>,
    pub(super) envelope: Arc<Envelope>,
    pub(super) fingerprint: Option<Fingerprint>,
    pub(super) deadline: Option<Timestamp>,
    /// Arrival: on our clock for the hold, in the world's time for the age.
    pub(super) arrived: Mono,
    pub(super) since: Timestamp,
    pub(super) redelivered: bool,
    /// The ledger told what is recorded of it. Before, nothing is decided for it: it may be a
    /// finished command that is to be told again, or its id may have been used.
    pub(super) claimed: bool,
    /// Entries for which the same command, in hand before, waits as well: these events say again
    /// what that one's say.
    pub(super) repeats: BTreeSet<usize>,
    pub(super) entries: Vec<(Arc<str>, Stage)>,
    /// Entries (or, without one, the dead-letter copy) that no queue took so far.
    pub(super) undelivered: BTreeSet<Option<usize>>,
    /// Entries that are not confirmed yet.
    pub(super) unconfirmed: usize,
    pub(super) park: Park,
    /// It cannot be read as a list of orders: its one event tells of the command as a whole.
    pub(super) unreadable: bool,
    /// The worker dies with it: nothing is sent for it any more.
    pub(super) given_up: bool,
}

/// Whether the command is copied to the dead-letter queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Park {
    NotNeeded,
    Needed,
    Parking,
    Parked,
}

/// What the desk knows to be in the ledger about an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OnRecord {
    NothingOpen,
    Waiting,
    Sent,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// The ledger is being asked.
    Claiming,
    /// Another worker has it. The ledger is asked again soon.
    Elsewhere,
    /// In its lane, to be sent.
    Waiting,
    /// In its lane, to be looked up.
    Doubtful,
    /// In a call, or in the record before it.
    InCall,
    /// Its ending is on its way to the ledger.
    Ending,
}

/// An order in hand.
#[derive(Debug, Clone)]
pub(super) struct Order {
    pub(super) lane: LaneId,
    pub(super) order_no: OrderNo,
    pub(super) phase: Phase,
    pub(super) tries: Tries,
    pub(super) since: Timestamp,
    pub(super) on_record: OnRecord,
    /// The same before it was last put into a list, and whether that is half of a refused one, in
    /// case that the list is not sent.
    pub(super) before_call: (OnRecord, bool),
    /// The claim under which this worker has it. That may be over without anybody knowing here; then
    /// the ledger takes neither a list nor a record with it.
    pub(super) fence: Option<Fence>,
    /// How often the ledger said that another worker has it.
    pub(super) asked: u32,
    /// When it had ended, if it had, as the ledger first told of it: an ending of another time is
    /// news of another worker's call, which this order's commands have joined.
    pub(super) first_seen: Option<Option<Timestamp>>,
    /// How it ended, durably, while commands that wait for it are not claimed yet.
    pub(super) ended: Option<Told>,
    pub(super) waiters: Vec<(CommandKey, usize)>,
}

/// What follows when a record is durable.
#[derive(Debug, Clone, Default)]
pub(super) struct AfterRecord {
    pub(super) entries: Vec<(CommandKey, usize)>,
    pub(super) ended: Vec<(OrderKey, Told)>,
    pub(super) returns: Vec<Ticket>,
}

impl Order {
    /// Whether this record tells of an ending that came while the order was in hand here.
    pub(super) fn is_news(&mut self, row: Option<&OrderRow>) -> bool {
        let ended = row.and_then(|row| match row.state {
            OrderState::Ended(_, at) => Some(at),
            OrderState::Waiting | OrderState::Sent => None,
        });
        let first = *self.first_seen.get_or_insert(ended);
        ended.is_some() && ended != first
    }

    pub(super) fn row(&self, state: OrderState) -> OrderRow {
        OrderRow {
            lane: self.lane,
            order_no: self.order_no.clone(),
            state,
            attempts: self.tries.attempts,
            spent: self.tries.spent,
            since: self.since,
            fence: self.fence.unwrap_or_default(),
        }
    }

    /// Whether this ending of the last command that waits for the order closes an open record,
    /// which would otherwise lend its age to commands yet to come. A record of a call that had no
    /// clear answer stays open, to be looked up, unless the ending says as much.
    pub(super) fn closes_with(&self, ending: &Ending) -> bool {
        self.on_record != OnRecord::NothingOpen
            && (!self.tries.tainted || ending.outcome() == Outcome::Unknown)
    }

    /// How it ends for a command whose deadline passed.
    pub(super) fn too_late(&self) -> Ending {
        let message = "the command's deadline passed before the order could be sent";
        let reason = Reason::new(ReasonCode::DeadlinePassed, message);
        next::as_it_stands(&self.tries, reason, "the command's deadline passed")
    }

    /// How it ends for a command with which the worker dies.
    pub(super) fn given_up(&self) -> Ending {
        let message = format!(
            "the worker died {TRIALS} times while it handled this command, and tries no more"
        );
        let reason = Reason::new(ReasonCode::ApiUnavailable, message);
        let why_not = "the worker died each time it handled this command";
        next::as_it_stands(&self.tries, reason, why_not)
    }

    /// How it ends for a command that is too old.
    pub(super) fn too_old(&self) -> Ending {
        let message = format!("retry.max_age passed after {} calls", self.tries.attempts);
        let reason = Reason::new(ReasonCode::ApiUnavailable, message);
        let why_not = "retry.max_age passed before its state could be looked up";
        next::as_it_stands(&self.tries, reason, why_not)
    }
}

impl Open {
    /// A command of which nothing is asked: what it is told is decided, and needs no record.
    pub(super) fn decided(now: Now, ticket: Ticket, envelope: Arc<Envelope>) -> Self {
        Self {
            ticket: Some(ticket),
            orphaned_at: None,
            lane: None,
            account: "_".into(),
            envelope,
            fingerprint: None,
            deadline: None,
            arrived: now.mono,
            since: now.wall,
            redelivered: false,
            claimed: true,
            repeats: BTreeSet::new(),
            entries: Vec::new(),
            undelivered: BTreeSet::new(),
            unconfirmed: 0,
            park: Park::NotNeeded,
            unreadable: false,
            given_up: false,
        }
    }

    /// Its id, where it is one of an account.
    pub(super) fn id(&self) -> Option<(LaneId, CommandId)> {
        Some((self.lane?, self.envelope.command_id.clone()))
    }

    pub(super) fn is_late(&self, now: Now) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= now.wall)
    }

    pub(super) fn open_entries(&self) -> impl Iterator<Item = (OrderKey, usize)> {
        self.entries
            .iter()
            .enumerate()
            .filter_map(|(place, (_, stage))| match stage {
                Stage::Open(order) => Some((*order, place)),
                Stage::Recording(..)
                | Stage::Decided(_)
                | Stage::Telling(_)
                | Stage::Untold(_)
                | Stage::Confirmed => None,
            })
    }
}
