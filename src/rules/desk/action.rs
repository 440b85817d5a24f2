//! What the desk asks for, and the records that it asks the ledger to keep.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use crate::rules::admit::{Envelope, Fingerprint};
use crate::rules::lane::{OrderKey, Turn};
use crate::rules::order::{AccountName, CommandId, Ending, OrderNo};

/// A command in hand, by its number in this run of the worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct CommandKey(pub(super) u64);

/// A call, by its number in this run of the worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CallId(pub u64);

/// A record on its way to the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct RecordId(pub(super) u64);

/// One delivery of the broker that is to be answered. The broker's side numbers them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// An account, by its place in the settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LaneId(pub usize);

/// What is to be done, by whoever has hands.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Ask the ledger, and answer with `Desk::claimed`.
    Claim(Claim),
    /// Record durably that these are being sent, then send them; `Desk::cancel_answered`.
    Send(SendList),
    /// Look this order up; `Desk::look_up_answered`.
    LookUp(CallId, LaneId, OrderNo),
    /// Ask for the time; `Desk::probe_answered`.
    Probe(CallId, LaneId),
    /// Record durably; `Desk::recorded`.
    Record(Record),
    /// Publish and await the confirm; `Desk::told`.
    Tell(Telling),
    /// Copy the command to the dead-letter queue; `Desk::parked`.
    Park(Parking),
    /// Acknowledge the delivery.
    Acknowledge(Finished),
    /// Give the delivery back to the queue.
    Return(Ticket),
    /// These orders are in hand no more: other workers may have them. Nothing answers.
    Release(Vec<(LaneId, OrderNo, Fence)>),
    /// Something people should read once.
    Note(LaneId, Note),
}

/// What is worth a line in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Note {
    /// The account's health changed.
    Turn(Turn),
    /// The application may not query orders; the gateway's words.
    QueryDenied(String),
    /// An answer named so many orders that nobody had asked for.
    Strangers(usize),
}

/// What the ledger is asked: what is known of a command, and leave to have its orders in hand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// Who asks.
    pub command: CommandKey,
    /// The account.
    pub lane: LaneId,
    /// Whose recorded results are wanted.
    pub command_id: CommandId,
    /// Of the command's orders: an id belongs to the list that it was first claimed for.
    pub fingerprint: Fingerprint,
    /// The orders whose records are wanted.
    pub orders: Vec<(OrderKey, OrderNo)>,
}

/// What the ledger knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claimed {
    /// Who asked.
    pub command: CommandKey,
    /// Everything recorded of this command's id.
    pub results: Vec<ResultRow>,
    /// Another worker claimed this id before, for other orders.
    pub id_is_taken: bool,
    /// Who has the orders.
    pub orders: Vec<(OrderKey, Holding)>,
}

/// The fencing token of one claim of an order. The ledger makes a new one for each claim that it
/// grants, and takes what a worker says of an order only under the order's latest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Fence(pub u64);

/// Who has an order in hand. What is recorded of it comes along, where there is anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holding {
    /// This worker, from now on: until it lets go of it, or its lease is over.
    Ours(Option<OrderRow>, Fence),
    /// Another worker, for so long at most unless that one renews its lease.
    Elsewhere(Option<OrderRow>, Duration),
}

/// Where an order stands, durably.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OrderState {
    /// Its command arrived, was held for long and went back to the queue. Never sent.
    Waiting,
    /// It was sent, and no ending is recorded: a call may have reached the gateway.
    Sent,
    /// It ended so, at that time.
    Ended(Ending, Timestamp),
}

/// The ledger's record of an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrderRow {
    /// The account.
    pub lane: LaneId,
    /// The number.
    pub order_no: OrderNo,
    /// Where it stands.
    pub state: OrderState,
    /// Cancel calls that carried it.
    pub attempts: u32,
    /// Those that count against `retry.max_attempts`.
    pub spent: u32,
    /// The arrival of the oldest command that waits for it.
    pub since: Timestamp,
    /// The claim under which this worker says so; of no meaning in what the ledger tells.
    pub fence: Fence,
}

/// The ledger's record of what one command is told of one order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResultRow {
    /// The account.
    pub lane: LaneId,
    /// The command.
    pub command_id: CommandId,
    /// Of the command's orders.
    pub fingerprint: Fingerprint,
    /// The entry as its event tells it; not always an order's number.
    pub order_no: Arc<str>,
    /// How it ended.
    pub ending: Ending,
    /// Cancel calls that carried it.
    pub attempts: u32,
    /// When.
    pub occurred_at: Timestamp,
    /// The claim of the order under which this worker says so. An entry that is no order has none.
    pub fence: Option<Fence>,
}

/// One durable step: all of it or nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// For `Desk::recorded`.
    pub id: RecordId,
    /// Orders' records, which replace earlier ones.
    pub orders: Vec<OrderRow>,
    /// Results, which replace earlier ones of the same command and order.
    pub results: Vec<ResultRow>,
}

/// A list to be sent, after it was recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SendList {
    /// For `Desk::cancel_answered`.
    pub call: CallId,
    /// The account.
    pub lane: LaneId,
    /// The orders' records, each [`OrderState::Sent`], none twice.
    pub orders: Vec<OrderRow>,
}

/// One result event (contract §3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The account, as the settings know it.
    pub account: Option<AccountName>,
    /// The account, as the command names it.
    pub account_shown: Arc<str>,
    /// The order; absent when the event tells of a command that cannot be read.
    pub order_no: Option<Arc<str>>,
    /// How it ended.
    pub ending: Ending,
    /// Cancel calls that carried it.
    pub attempts: u32,
    /// It was told before, or decided before this command.
    pub replayed: bool,
    /// The order's place in its command, from 0.
    pub index: usize,
    /// How many events the command has.
    pub total: usize,
    /// When it ended so.
    pub occurred_at: Timestamp,
}

/// An event to be published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Telling {
    /// For `Desk::told`.
    pub command: CommandKey,
    /// For `Desk::told`.
    pub place: usize,
    /// The delivery that it answers.
    pub ticket: Ticket,
    /// What the command's events have in common.
    pub envelope: Arc<Envelope>,
    /// The event.
    pub event: Event,
}

/// A command to be copied to the dead-letter queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parking {
    /// For `Desk::parked`.
    pub command: CommandKey,
    /// The delivery to be copied.
    pub ticket: Ticket,
    /// The command's envelope: a copy keeps the id that its events were told with.
    pub envelope: Arc<Envelope>,
    /// The account, as the command names it.
    pub account: Arc<str>,
    /// Why.
    pub why: &'static str,
}

/// The proof that each event of a delivery was confirmed; only the desk makes one, and nothing else
/// can acknowledge.
#[derive(Debug, PartialEq, Eq, Clone)]
#[must_use]
pub struct Finished {
    pub(super) ticket: Ticket,
    pub(super) was_parked: bool,
}

impl Finished {
    /// The delivery to be acknowledged.
    pub fn ticket(&self) -> Ticket {
        self.ticket
    }

    /// A copy went to the dead-letter queue.
    pub fn was_parked(&self) -> bool {
        self.was_parked
    }
}

/// What became of a publication.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fate {
    /// The broker has it, in a queue.
    Confirmed,
    /// The broker found no queue for it.
    Unroutable,
    /// The broker would not take it: a queue is full.
    Refused,
    /// Nobody knows; the connection is gone.
    Lost,
}
