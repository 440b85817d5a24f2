//! The desk: every command and order in hand, and what is to be done next.
//!
//! A closed set of events comes in, a closed set of [`Action`]s goes out, and nothing else happens
//! here, so that a model can explore it and a test can drive it by hand. The worker carries out the
//! actions and reports back.
//!
//! The order in which things become durable is the design:
//!
//! 1. A delivery arrives; its orders are in hand from that moment, so a second command for one of
//!    them joins it ([`Desk::arrive`]).
//! 2. The ledger tells what is recorded ([`Action::Claim`], [`Desk::claimed`]). It is asked after
//!    the order was taken in hand, and an order leaves the desk only when its ending is durable or
//!    nobody waits for it, so whatever ended before is seen.
//!    Until it has told, nothing is decided for that command.
//! 3. That these orders are being sent is recorded, then the call is made ([`Action::Send`]).
//! 4. The answer is judged; an ending is recorded ([`Action::Record`]).
//! 5. Only then it is told ([`Action::Tell`], from [`Desk::recorded`]).
//! 6. When each event of a command is confirmed, the command is acknowledged
//!    ([`Action::Acknowledge`]); one that failed is copied to the dead-letter queue before.
//!
//! The ledger writes records and lists to be sent in the sequence of the actions. A claim may be
//! answered before what was asked of it earlier, and sees only what is durable then; it is never
//! answered after what was asked later. Everything else may be answered in any sequence.

mod action;
mod arrive;
mod calls;
mod counts;
mod hand;
mod lease;
mod poison;
mod record;
mod sweep;
mod telling;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use jiff::Timestamp;

use super::dry_run::Mode;
use super::lane::{Lane, LaneReport, OrderKey, Paused};
use super::next::Retry;
use super::order::{AccountName, CommandId, OrderNo};
use super::pace::Pace;
use super::time::{Mono, Now};
use counts::Counts;
use hand::{AfterRecord, Open, Order};

pub use action::{
    Action, CallId, Claim, Claimed, CommandKey, Event, Fate, Fence, Finished, Holding, LaneId,
    Note, OrderRow, OrderState, Parking, Record, RecordId, ResultRow, SendList, Telling, Ticket,
};
pub use counts::{LaneCounts, LookUpCause, RetryCause};
pub use telling::OnItsWay;

/// How the desk does its work.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    /// How orders are retried.
    pub retry: Retry,
    /// `retry.max_age`.
    pub max_age: Duration,
    /// A delivery held this long goes back to the queue, for the broker takes a channel down that
    /// holds one for 30 minutes.
    pub hold: Duration,
    /// Between tries of an event that no queue takes.
    pub untold_pause: Duration,
    /// How long a list that is not full waits for more orders.
    pub gather: Duration,
}

/// What may be set otherwise while the desk is at work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adjustment {
    /// `retry.max_attempts`.
    pub max_attempts: u32,
    /// `retry.max_age`.
    pub max_age: Duration,
    /// The accounts; one that the desk does not know is passed over.
    pub accounts: Vec<AccountPolicy>,
}

/// One account, as the desk needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountPolicy {
    /// Its name.
    pub name: AccountName,
    /// 0 is no limit.
    pub calls_per_minute: u32,
    /// Calls in flight at most.
    pub concurrency: u32,
    /// The longest list.
    pub max_orders_per_call: u32,
}

/// The ledger was restored from a back-up: of what happened between that and the restore it knows
/// nothing, so any order may have been sent then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    /// What is recorded from then on can be trusted again.
    pub restored_at: Timestamp,
    /// By then what was sent in the gap would have been forgotten anyhow.
    pub until: Timestamp,
}

impl Gap {
    /// Whether something may have been recorded of an order that is lost, this being what is left.
    fn hides(self, now: Now, left: Option<&OrderRow>) -> bool {
        let recorded_at = left.map(|row| match &row.state {
            OrderState::Ended(_, at) => *at,
            OrderState::Waiting | OrderState::Sent => row.since,
        });
        now.wall < self.until && recorded_at.is_none_or(|at| at < self.restored_at)
    }
}

/// Whether commands are taken from the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Intake {
    /// They are.
    Open,
    /// No account can be called, for no gateway answers: they stay in the broker.
    Paused,
    /// The worker is stopping.
    Closed,
}

/// How many of each are in hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Load {
    /// Commands.
    pub commands: usize,
    /// Orders.
    pub orders: usize,
    /// Calls.
    pub calls: usize,
    /// Events that no queue took, and copies for the dead-letter queue; those that are being tried
    /// again still count.
    pub untold: usize,
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Desk {
    policy: Policy,
    mode: Mode,
    rng: fastrand::Rng,
    gap: Option<Gap>,
    lanes: Vec<Lane>,
    lane_ids: HashMap<AccountName, LaneId>,
    /// In the sequence of their arrival, so that the same events have the same answers.
    commands: BTreeMap<CommandKey, Open>,
    /// Those of each id in hand, in the sequence of their arrival.
    by_id: HashMap<(LaneId, CommandId), Vec<CommandKey>>,
    orders: HashMap<OrderKey, Order>,
    by_number: HashMap<(LaneId, OrderNo), OrderKey>,
    /// Orders that another worker has, by the time to ask again.
    elsewhere: BTreeSet<(Mono, OrderKey)>,
    /// Orders that have left since the last turn.
    released: BTreeMap<(LaneId, OrderNo), Fence>,
    /// Lanes hold orders that have left.
    lanes_are_stale: bool,
    calls: HashMap<CallId, (LaneId, Vec<OrderKey>)>,
    records: HashMap<RecordId, AfterRecord>,
    draft: (Vec<OrderRow>, Vec<ResultRow>, AfterRecord),
    /// Events (or, without an entry, dead-letter copies) that no queue took, by their next try.
    untold: VecDeque<(Mono, CommandKey, Option<usize>)>,
    last_number: u64,
    actions: Vec<Action>,
    draining: bool,
    counts: Counts,
}

impl Desk {
    /// `rng` decides the jitter of delays and nothing else.
    pub fn new(policy: Policy, accounts: &[AccountPolicy], rng: fastrand::Rng) -> Self {
        let lanes: Vec<Lane> = accounts
            .iter()
            .map(|a| {
                let pace = Pace::new(a.calls_per_minute, a.concurrency);
                Lane::new(a.name.clone(), pace, a.max_orders_per_call, policy.gather)
            })
            .collect();
        let lane_ids = lanes
            .iter()
            .enumerate()
            .map(|(i, lane)| (lane.account.clone(), LaneId(i)))
            .collect();
        Self {
            policy,
            mode: Mode::Live,
            rng,
            gap: None,
            counts: Counts::new(lanes.len()),
            lanes,
            lane_ids,
            commands: BTreeMap::new(),
            by_id: HashMap::new(),
            orders: HashMap::new(),
            by_number: HashMap::new(),
            elsewhere: BTreeSet::new(),
            released: BTreeMap::new(),
            lanes_are_stale: false,
            calls: HashMap::new(),
            records: HashMap::new(),
            draft: Default::default(),
            untold: VecDeque::new(),
            last_number: 0,
            actions: Vec::new(),
            draining: false,
        }
    }

    /// A desk that never asks for an order to be sent: it is looked up, and told what would become
    /// of it.
    pub fn for_dry_run(policy: Policy, accounts: &[AccountPolicy], rng: fastrand::Rng) -> Self {
        Self {
            mode: Mode::DryRun,
            ..Self::new(policy, accounts, rng)
        }
    }

    /// Other settings from now on, for what is in hand, too.
    pub fn adjust(&mut self, now: Mono, adjustment: &Adjustment) {
        let Adjustment {
            max_attempts,
            max_age,
            accounts,
        } = adjustment;
        self.policy.retry.max_attempts = *max_attempts;
        self.policy.max_age = *max_age;
        for account in accounts {
            if let Some(lane) = self.lane_ids.get(&account.name) {
                self.lanes[lane.0].adjust(
                    now,
                    account.calls_per_minute,
                    account.concurrency,
                    account.max_orders_per_call,
                );
            }
        }
    }

    /// A call that an earlier run made `ago` still counts against the minute.
    pub fn remember_call(&mut self, lane: LaneId, now: Mono, ago: Duration) {
        self.lanes[lane.0].remember_call(now, ago);
    }

    /// The ledger knows nothing of this time.
    pub fn remember_gap(&mut self, gap: Gap) {
        self.gap = Some(gap);
    }

    fn number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    /// Plans whatever may be done now; everything to be done is in the answer, in sequence.
    pub fn turn(&mut self, now: Now) -> Vec<Action> {
        // Before the plan: what was drafted of an order that is now sent must not replace the record
        // that it is.
        self.flush_draft();
        if !self.draining {
            self.ask_again(now.mono);
            for lane in 0..self.lanes.len() {
                self.plan(now, LaneId(lane));
            }
        }
        self.flush_draft();
        // After the records of how they ended.
        if !self.released.is_empty() {
            let released = std::mem::take(&mut self.released);
            let released = released.into_iter();
            let released = released.map(|((lane, order_no), fence)| (lane, order_no, fence));
            self.actions.push(Action::Release(released.collect()));
        }
        // The next turn has about as many.
        let next = Vec::with_capacity(self.actions.len());
        std::mem::replace(&mut self.actions, next)
    }

    /// Whether commands are to be taken from the queue.
    pub fn intake(&self) -> Intake {
        if self.draining {
            Intake::Closed
        } else if self.lanes.iter().all(Lane::is_down) {
            Intake::Paused
        } else {
            Intake::Open
        }
    }

    /// How many commands are in hand.
    pub fn commands(&self) -> usize {
        self.commands.len()
    }

    /// What is in hand.
    pub fn load(&self) -> Load {
        Load {
            commands: self.commands.len(),
            orders: self.orders.len(),
            calls: self.calls.len(),
            untold: self.commands.values().map(|c| c.undelivered.len()).sum(),
        }
    }

    /// An operator wants that this account is not called from now on, or is called again.
    pub fn pause(&mut self, lane: LaneId, paused: Option<Paused>) {
        if let Some(lane) = self.lanes.get_mut(lane.0) {
            lane.pause(paused);
        }
    }

    /// How each account fares.
    pub fn reports(&self, now: Mono) -> Vec<LaneReport> {
        self.lanes.iter().map(|lane| lane.report(now)).collect()
    }

    /// What was counted of each account since the start.
    pub fn counts(&self) -> &[LaneCounts] {
        self.counts.lanes()
    }

    /// When the oldest command in hand arrived.
    pub fn oldest(&self) -> Option<Mono> {
        self.commands.values().map(|command| command.arrived).min()
    }

    /// The deliveries whose commands wait for what this call brings.
    pub fn waits_for(&self, call: CallId) -> Vec<Ticket> {
        let keys = self.calls.get(&call).map(|(_, keys)| &**keys);
        let orders = keys.unwrap_or_default().iter();
        let waiters = orders
            .filter_map(|key| self.orders.get(key))
            .flat_map(|order| &order.waiters);
        let commands: BTreeSet<CommandKey> = waiters.map(|(command, _)| *command).collect();
        let commands = commands.iter().filter_map(|key| self.commands.get(key));
        commands.filter_map(|command| command.ticket).collect()
    }

    /// The account of a lane.
    pub fn account(&self, lane: LaneId) -> &AccountName {
        &self.lanes[lane.0].account
    }
}
