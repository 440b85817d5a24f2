//! A delivery arrives, and the ledger tells what is recorded of it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::Desk;
use super::action::{
    Action, Claim, Claimed, CommandKey, LaneId, OrderRow, OrderState, ResultRow, Ticket,
};
use super::hand::{OnRecord, Open, Order, Park, Phase, Stage, Told};
use crate::rules::admit::{Admission, Command, Entry, Rejection};
use crate::rules::lane::OrderKey;
use crate::rules::next::{self, Tries};
use crate::rules::order::{Ending, OrderNo, Outcome, Reason, ReasonCode};
use crate::rules::policy::Verify;
use crate::rules::time::Now;

impl Desk {
    /// A delivery, judged.
    pub fn arrive(&mut self, now: Now, ticket: Ticket, redelivered: bool, admission: Admission) {
        match admission {
            Admission::Accepted(command) => self.accept(now, ticket, redelivered, command),
            Admission::Rejected(rejection) => self.reject(now, ticket, rejection),
        }
    }

    pub(super) fn accept(&mut self, now: Now, ticket: Ticket, redelivered: bool, command: Command) {
        let Some(&lane) = self.lane_ids.get(&command.account) else {
            debug_assert!(false, "admitted for an account that has no lane");
            return;
        };
        let id = (lane, command.envelope.command_id.clone());
        let twin = self.by_id.get(&id).copied();
        if let Some(first) = twin.and_then(|key| self.commands.get_mut(&key)) {
            if first.fingerprint != Some(command.fingerprint) {
                return self.reject(now, ticket, Rejection::of(&command, reused()));
            }
            if first.ticket.is_none() {
                first.ticket = Some(ticket);
                first.orphaned_at = None;
                first.arrived = now.mono;
                first.envelope = command.envelope;
                self.tell_decided(twin.into_iter());
                return;
            }
        }
        let repeats = twin
            .and_then(|key| self.commands.get(&key))
            .map(|first| first.repeated_by(&command))
            .unwrap_or_default();
        let key = CommandKey(self.number());
        let mut since = now.wall;
        let mut claims = Vec::new();
        let mut entries = Vec::with_capacity(command.entries.len());
        for (place, entry) in command.entries.iter().enumerate() {
            let stage = match entry {
                Entry::Order(order_no) => {
                    let (order, is_new) = self.take_in_hand(now, lane, order_no);
                    if is_new {
                        claims.push((order, order_no.clone()));
                    }
                    if let Some(order) = self.orders.get_mut(&order) {
                        order.waiters.push((key, place));
                        if redelivered {
                            since = since.min(order.since);
                        }
                    }
                    Stage::Open(order)
                }
                Entry::Invalid(_, reason) => Stage::Recording(Told {
                    ending: Ending::Not(reason.clone()),
                    attempts: 0,
                    replayed: false,
                    occurred_at: now.wall,
                }),
            };
            entries.push((entry.shown().into(), stage));
        }
        self.actions.push(Action::Claim(Claim {
            command: key,
            lane,
            command_id: command.envelope.command_id.clone(),
            orders: claims,
        }));
        self.commands.insert(
            key,
            Open {
                ticket: Some(ticket),
                orphaned_at: None,
                lane: Some(lane),
                account: command.account.as_str().into(),
                envelope: command.envelope,
                fingerprint: Some(command.fingerprint),
                claimed: false,
                deadline: command.deadline,
                arrived: now.mono,
                since,
                redelivered,
                repeats,
                unconfirmed: entries.len(),
                entries,
                park: Park::NotNeeded,
                unreadable: false,
            },
        );
        self.by_id.entry(id).or_insert(key);
    }

    pub(super) fn reject(&mut self, now: Now, ticket: Ticket, rejection: Rejection) {
        let told = Told {
            ending: Ending::Not(rejection.reason),
            attempts: 0,
            replayed: false,
            occurred_at: now.wall,
        };
        // What the bytes of a command decide needs no record: the same bytes decide it again.
        let unreadable = rejection.orders.is_empty();
        let mut entries: Vec<(Arc<str>, Stage)> = rejection
            .orders
            .into_iter()
            .map(|shown| (shown, Stage::Decided(told.clone())))
            .collect();
        if unreadable {
            entries.push(("".into(), Stage::Decided(told)));
        }
        let key = CommandKey(self.number());
        self.commands.insert(
            key,
            Open {
                ticket: Some(ticket),
                orphaned_at: None,
                lane: rejection
                    .account
                    .and_then(|a| self.lane_ids.get(&a).copied()),
                account: rejection.account_shown,
                envelope: rejection.envelope,
                fingerprint: None,
                claimed: true,
                deadline: None,
                arrived: now.mono,
                since: now.wall,
                redelivered: false,
                repeats: HashSet::new(),
                unconfirmed: entries.len(),
                entries,
                park: if unreadable {
                    Park::Needed
                } else {
                    Park::NotNeeded
                },
                unreadable,
            },
        );
        self.tell_decided([key].into_iter());
    }

    pub(super) fn take_in_hand(
        &mut self,
        now: Now,
        lane: LaneId,
        order_no: &OrderNo,
    ) -> (OrderKey, bool) {
        if let Some(&key) = self.by_number.get(&(lane, order_no.clone())) {
            return (key, false);
        }
        let key = OrderKey(self.number());
        self.by_number.insert((lane, order_no.clone()), key);
        self.orders.insert(
            key,
            Order {
                lane,
                order_no: order_no.clone(),
                phase: Phase::Claiming,
                tries: Tries::default(),
                since: now.wall,
                on_record: OnRecord::NothingOpen,
                known: None,
                waiters: Vec::new(),
            },
        );
        (key, true)
    }

    /// What the ledger knows of a command and of the orders that it brought in.
    pub fn claimed(&mut self, now: Now, claimed: Claimed) {
        let key = claimed.command;
        let mut touched: Vec<OrderKey> = Vec::new();
        if let Some(command) = self.commands.get_mut(&key) {
            command.claimed = true;
            touched.extend(command.open_entries().map(|(order, _)| order));
        }
        self.apply_results(now, key, &claimed.results);
        for (key, row) in claimed.orders {
            self.age(key, row.as_ref());
            if let Some(order) = self.orders.get_mut(&key) {
                order.known = Some(row);
                touched.push(key);
            }
        }
        for order in touched {
            self.place_when_known(now, order);
        }
        self.tell_decided([key].into_iter());
    }

    pub(super) fn apply_results(&mut self, now: Now, key: CommandKey, results: &[ResultRow]) {
        let Some(command) = self.commands.get(&key) else {
            return;
        };
        if results
            .iter()
            .any(|r| Some(r.fingerprint) != command.fingerprint)
        {
            return self.turn_down(now, key);
        }
        let recorded: HashMap<&str, &ResultRow> =
            results.iter().map(|row| (&*row.order_no, row)).collect();
        let mut detached = Vec::new();
        let mut invalid = Vec::new();
        if let Some(command) = self.commands.get_mut(&key) {
            for (place, (shown, stage)) in command.entries.iter_mut().enumerate() {
                match (&*stage, recorded.get(&**shown)) {
                    (Stage::Open(order), Some(row)) if is_settled(&row.ending) => {
                        detached.push((*order, place));
                        *stage = Stage::Decided(replay(row));
                    }
                    (Stage::Recording(told), row)
                        if told.ending.reason().is_some_and(is_invalid) =>
                    {
                        match row {
                            Some(row) => *stage = Stage::Decided(replay(row)),
                            None => invalid.push((place, told.clone())),
                        }
                    }
                    _ => {}
                }
            }
        }
        for (order, place) in detached {
            self.detach(order, key, place);
        }
        for (place, told) in invalid {
            self.draft_result(key, place, &told);
        }
    }

    /// The id was used for other orders.
    pub(super) fn turn_down(&mut self, now: Now, key: CommandKey) {
        let Some(command) = self.commands.get_mut(&key) else {
            return;
        };
        let told = Told {
            ending: Ending::Not(reused()),
            attempts: 0,
            replayed: false,
            occurred_at: now.wall,
        };
        let mut detached = Vec::new();
        for (place, (_, stage)) in command.entries.iter_mut().enumerate() {
            if let Stage::Open(order) = stage {
                detached.push((*order, place));
            }
            *stage = Stage::Decided(told.clone());
        }
        command.fingerprint = None;
        let id = command
            .lane
            .map(|lane| (lane, command.envelope.command_id.clone()));
        if let Some(id) = id.filter(|id| self.by_id.get(id) == Some(&key)) {
            self.by_id.remove(&id);
        }
        for (order, place) in detached {
            self.detach(order, key, place);
        }
    }

    /// The age counts from the first arrival, which a command that went back has behind it. Only
    /// an order that is still open tells of it; one that ended was another command's.
    fn age(&mut self, key: OrderKey, row: Option<&OrderRow>) {
        let (Some(order), Some(row)) = (self.orders.get_mut(&key), row) else {
            return;
        };
        if matches!(row.state, OrderState::Ended(..)) {
            return;
        }
        order.since = order.since.min(row.since);
        for (waiter, _) in &order.waiters {
            if let Some(command) = self.commands.get_mut(waiter).filter(|c| c.redelivered) {
                command.since = command.since.min(order.since);
            }
        }
    }

    /// Places an order once the ledger has told of it and of every command that waits for it.
    fn place_when_known(&mut self, now: Now, key: OrderKey) {
        let Some(order) = self.orders.get_mut(&key) else {
            return;
        };
        let waiters = order.waiters.iter();
        let mut commands = waiters.filter_map(|(command, _)| self.commands.get(command));
        if commands.any(|command| !command.claimed) {
            return;
        }
        if let Some(row) = order.known.take() {
            self.place(now, key, row);
        }
    }

    /// Where an order goes, by what is recorded of it.
    pub(super) fn place(&mut self, now: Now, key: OrderKey, row: Option<OrderRow>) {
        let retry = self.policy.retry;
        let Some(order) = self.orders.get_mut(&key) else {
            return;
        };
        if order.waiters.is_empty() {
            // Its command was told from the ledger.
            return self.forget(key);
        }
        let lane = &mut self.lanes[order.lane.0];
        let doubt = match row.as_ref().map(|row| &row.state) {
            None => None,
            Some(OrderState::Ended(Ending::Cancelled, at)) => {
                let told = Told {
                    ending: Ending::Cancelled,
                    attempts: row.as_ref().map_or(0, |r| r.attempts),
                    replayed: true,
                    occurred_at: *at,
                };
                return self.end_as(key, told);
            }
            Some(OrderState::Ended(ending, _)) => {
                let reason = ending.reason().map(|r| &*r.message);
                (ending.reason().map(|r| r.code) == Some(ReasonCode::Unconfirmed))
                    .then(|| reason.unwrap_or_default().to_owned())
            }
            Some(OrderState::Waiting) => {
                order.on_record = OnRecord::Waiting;
                None
            }
            Some(OrderState::Sent) => {
                order.on_record = OnRecord::Sent;
                order.tries.attempts = row.as_ref().map_or(0, |r| r.attempts);
                order.tries.spent = row.as_ref().map_or(0, |r| r.spent);
                Some("the worker stopped before an answer was recorded".to_owned())
            }
        };
        let Some(what) = doubt else {
            order.phase = Phase::Waiting;
            lane.send(key);
            return;
        };
        order.tries.doubt();
        order.phase = Phase::Doubtful;
        if retry.verify == Verify::Never || lane.query_denied {
            let ending = next::unconfirmed(&what, !lane.query_denied, retry.verify);
            return self.end(now, key, ending);
        }
        lane.look_up_at(now.mono, key);
    }

    /// A command waits for the order no more. An order that nobody waits for leaves the desk at
    /// once: its command may be in another worker's hands, so whoever brings it in next has to ask
    /// the ledger again.
    pub(super) fn detach(&mut self, key: OrderKey, command: CommandKey, place: usize) {
        let Some(order) = self.orders.get_mut(&key) else {
            return;
        };
        order.waiters.retain(|w| *w != (command, place));
        if order.waiters.is_empty() && matches!(order.phase, Phase::Waiting | Phase::Doubtful) {
            self.forget(key);
            self.lanes_are_stale = true;
        }
    }
}

fn reused() -> Reason {
    Reason::new(
        ReasonCode::CommandIdReused,
        "command_id: this account used the same id for a command with other orders; give each command an id of its own",
    )
}

fn is_invalid(reason: &Reason) -> bool {
    reason.code == ReasonCode::InvalidOrderNo
}

/// Whether the same command sent again is told the same again; otherwise it tries again.
fn is_settled(ending: &Ending) -> bool {
    match ending.outcome() {
        Outcome::Cancelled | Outcome::Refused | Outcome::Rejected | Outcome::Expired => true,
        Outcome::Failed | Outcome::Unknown => false,
    }
}

fn replay(row: &ResultRow) -> Told {
    Told {
        ending: row.ending.clone(),
        attempts: row.attempts,
        replayed: true,
        occurred_at: row.occurred_at,
    }
}
