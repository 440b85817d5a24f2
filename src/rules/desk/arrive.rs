//! A delivery arrives, and the ledger tells what is recorded of it.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use jiff::Timestamp;

use super::Desk;
use super::action::{
    Action, Claim, Claimed, CommandKey, Fence, Holding, LaneId, OrderRow, OrderState, ResultRow,
    Ticket,
};
use super::counts::LookUpCause;
use super::hand::{OnRecord, Open, Order, Park, Phase, Stage, Told, is_settled};
use crate::rules::admit::{Admission, Command, Entry, Fingerprint, Rejection};
use crate::rules::lane::OrderKey;
use crate::rules::next::{self, Tries};
use crate::rules::order::{CommandId, Ending, OrderNo, Outcome, Reason, ReasonCode};
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
        for other_key in self.by_id.get(&id).cloned().unwrap_or_default() {
            let Some(other) = self.commands.get_mut(&other_key) else {
                continue;
            };
            if other.fingerprint != Some(command.fingerprint) {
                if other.claimed {
                    return self.reject(now, ticket, Rejection::of(&command, reused()));
                }
                // The ledger will tell whose id it is.
                continue;
            }
            if other.ticket.is_none() {
                other.ticket = Some(ticket);
                other.orphaned_at = None;
                other.arrived = now.mono;
                other.envelope = command.envelope;
                self.ask_whether_it_stands(other_key);
                self.tell_decided([other_key].into_iter());
                return;
            }
        }
        let key = CommandKey(self.number());
        let mut since = now.wall;
        let mut claims = Vec::new();
        let mut entries = Vec::with_capacity(command.entries.len());
        for (place, entry) in command.entries.iter().enumerate() {
            let stage = match entry {
                Entry::Order(order_no) => {
                    let (order, is_new) = self.take_in_hand(now.wall, lane, order_no);
                    if is_new {
                        claims.push((order, order_no.clone()));
                    } else {
                        self.counts.joined(lane);
                    }
                    if let Some(order) = self.orders.get_mut(&order) {
                        order.waiters.push((key, place));
                        if redelivered {
                            since = since.min(order.since);
                        }
                    }
                    Stage::Open(order)
                }
                Entry::Invalid(_, reason) => Stage::Recording(
                    Told {
                        ending: Ending::Not(reason.clone()),
                        attempts: 0,
                        replayed: false,
                        occurred_at: now.wall,
                    },
                    None,
                ),
            };
            entries.push((entry.shown().into(), stage));
        }
        self.actions.push(Action::Claim(Claim {
            command: key,
            lane,
            command_id: command.envelope.command_id.clone(),
            fingerprint: command.fingerprint,
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
                deadline: command.deadline,
                arrived: now.mono,
                since,
                redelivered,
                claimed: false,
                repeats: BTreeSet::new(),
                undelivered: BTreeSet::new(),
                unconfirmed: entries.len(),
                entries,
                park: Park::NotNeeded,
                unreadable: false,
                given_up: false,
            },
        );
        self.by_id.entry(id).or_default().push(key);
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
                lane: rejection
                    .account
                    .and_then(|a| self.lane_ids.get(&a).copied()),
                account: rejection.account_shown,
                unconfirmed: entries.len(),
                entries,
                park: if unreadable {
                    Park::Needed
                } else {
                    Park::NotNeeded
                },
                unreadable,
                ..Open::decided(now, ticket, rejection.envelope)
            },
        );
        self.tell_decided([key].into_iter());
    }

    pub(super) fn take_in_hand(
        &mut self,
        since: Timestamp,
        lane: LaneId,
        order_no: &OrderNo,
    ) -> (OrderKey, bool) {
        let name = (lane, order_no.clone());
        if let Some(&key) = self.by_number.get(&name) {
            return (key, false);
        }
        let key = OrderKey(self.number());
        self.released.remove(&name);
        self.by_number.insert(name, key);
        self.orders.insert(
            key,
            Order {
                lane,
                order_no: order_no.clone(),
                phase: Phase::Claiming,
                tries: Tries::default(),
                since,
                on_record: OnRecord::NothingOpen,
                before_call: (OnRecord::NothingOpen, false),
                fence: None,
                asked: 0,
                first_seen: None,
                ended: None,
                waiters: Vec::new(),
            },
        );
        (key, true)
    }

    /// What the ledger knows of a command and of the orders that it brought in.
    pub fn claimed(&mut self, now: Now, claimed: Claimed) {
        let key = claimed.command;
        for (order, holding) in &claimed.orders {
            if let Holding::Ours(_, fence) = holding {
                self.is_ours(*order, key, *fence);
            }
        }
        self.apply_results(now, key, &claimed.results, claimed.id_is_taken);
        self.follow_twin(key, &claimed.results);
        if let Some(command) = self.commands.get_mut(&key) {
            command.claimed = true;
            let open: Vec<OrderKey> = command.open_entries().map(|(order, _)| order).collect();
            for order in open {
                let ended = self.orders.get_mut(&order).and_then(|o| o.ended.take());
                if let Some(told) = ended {
                    self.end_as(order, told);
                }
            }
        }
        for (order, holding) in claimed.orders {
            match holding {
                Holding::Ours(row, _) => {
                    self.age(order, row.as_ref());
                    self.place(now, order, row);
                }
                Holding::Elsewhere(row, left) => {
                    self.age(order, row.as_ref());
                    self.is_elsewhere(now.mono, order, row.as_ref(), left);
                }
            }
        }
        self.end_given_up(now, key);
        self.tell_decided([key].into_iter());
    }

    pub(super) fn apply_results(
        &mut self,
        now: Now,
        key: CommandKey,
        results: &[ResultRow],
        id_is_taken: bool,
    ) {
        // One that was turned down may have been asked for twice.
        let command = self.commands.get(&key);
        let Some(command) = command.filter(|c| c.fingerprint.is_some()) else {
            return;
        };
        let of_others = |f: Option<Fingerprint>| f != command.fingerprint;
        let used = id_is_taken
            || results.iter().any(|row| of_others(Some(row.fingerprint)))
            || results.is_empty()
                && self
                    .same_id(command)
                    .any(|other| other.claimed && of_others(other.fingerprint));
        if used {
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
                    (Stage::Recording(told, _), row)
                        if told.ending.reason().is_some_and(is_invalid) =>
                    {
                        match row {
                            Some(row) => *stage = Stage::Decided(replay(row)),
                            None => invalid.push((place, told.clone())),
                        }
                    }
                    (Stage::Decided(told), Some(row)) if is_overtaken(told, Some(row)) => {
                        *stage = Stage::Decided(replay(row));
                    }
                    _ => {}
                }
            }
        }
        for (order, place) in detached {
            if let Some(order) = self.orders.get(&order) {
                self.counts.told_from_ledger(order.lane);
            }
            self.detach(order, key, place);
        }
        for (place, told) in invalid {
            self.draft_result(key, place, &told, None);
        }
    }

    /// Every command in hand with this one's id, itself too.
    fn same_id(&self, command: &Open) -> impl Iterator<Item = &Open> {
        let keys = command.id().and_then(|id| self.by_id.get(&id));
        keys.into_iter()
            .flatten()
            .filter_map(|key| self.commands.get(key))
    }

    /// The command is not one of this id any more.
    pub(super) fn leave_id(&mut self, id: Option<(LaneId, CommandId)>, key: CommandKey) {
        let Some(id) = id else {
            return;
        };
        if let Some(keys) = self.by_id.get_mut(&id) {
            keys.retain(|other| *other != key);
            if keys.is_empty() {
                self.by_id.remove(&id);
            }
        }
    }

    /// What the same command, in hand already, is about to be told is told here too: the ledger may
    /// have been asked before it was recorded, and an order that failed is tried again only after
    /// that is told, or the failure would be the later word. Unless another worker has tried it
    /// again: then its word is the later one.
    fn follow_twin(&mut self, key: CommandKey, results: &[ResultRow]) {
        let Some(command) = self.commands.get(&key) else {
            return;
        };
        let recorded: HashMap<&str, &ResultRow> =
            results.iter().map(|row| (&*row.order_no, row)).collect();
        let decided: HashMap<&str, (&Told, Option<Fence>)> = self
            .same_id(command)
            .filter(|other| other.fingerprint == command.fingerprint)
            .flat_map(|other| &other.entries)
            .filter_map(|(shown, stage)| match stage {
                Stage::Recording(told, fence) => Some((&**shown, (told, *fence))),
                Stage::Decided(told) | Stage::Telling(told) | Stage::Untold(told) => {
                    Some((&**shown, (told, None)))
                }
                Stage::Open(_) | Stage::Confirmed => None,
            })
            .collect();
        let followed: Vec<(OrderKey, usize, Fence, Told)> = command
            .open_entries()
            .filter_map(|(order, place)| {
                // What another worker has is its to tell.
                let fence = self.orders.get(&order)?.fence?;
                let shown = &*command.entries[place].0;
                let (told, under) = decided.get(shown)?;
                if is_overtaken(told, recorded.get(shown)) {
                    return None;
                }
                if under.is_some_and(|under| under != fence) {
                    // That record comes too late.
                    return None;
                }
                let replayed = true;
                Some((
                    order,
                    place,
                    fence,
                    Told {
                        replayed,
                        ..Told::clone(told)
                    },
                ))
            })
            .collect();
        // Of an order for which the first waits as well, it will tell; this one says it again.
        let waiting: HashSet<&str> = self
            .same_id(command)
            .filter(|other| other.fingerprint == command.fingerprint)
            .take_while(|other| !std::ptr::eq(*other, command))
            .flat_map(|other| &other.entries)
            .filter_map(|(shown, stage)| matches!(stage, Stage::Open(_)).then_some(&**shown))
            .collect();
        let repeats: BTreeSet<usize> = command
            .open_entries()
            .filter_map(|(_, place)| {
                waiting
                    .contains(&*command.entries[place].0)
                    .then_some(place)
            })
            .collect();
        if let Some(command) = self.commands.get_mut(&key) {
            command.repeats = repeats;
        }
        for (order, place, fence, told) in followed {
            self.detach(order, key, place);
            self.draft_result(key, place, &told, Some(fence));
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
        let id = command.id();
        self.leave_id(id, key);
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
        let is_news = order.is_news(row.as_ref());
        let lane_id = order.lane;
        let lane = &mut self.lanes[lane_id.0];
        let is_hidden = self.gap.is_some_and(|gap| gap.hides(now, row.as_ref()));
        let doubt = match row.as_ref().map(|row| &row.state) {
            None => None,
            Some(OrderState::Ended(Ending::Cancelled, at)) => {
                let told = Told {
                    ending: Ending::Cancelled,
                    attempts: row.as_ref().map_or(0, |r| r.attempts),
                    replayed: !is_news,
                    occurred_at: *at,
                };
                self.counts.told_from_ledger(order.lane);
                return self.end_as(key, told);
            }
            // What the gateway refused while it was in another worker's hands is its word for the
            // commands that waited here. What was given up there is tried here.
            Some(OrderState::Ended(ending, at))
                if is_news && ending.outcome() == Outcome::Refused =>
            {
                let told = Told {
                    ending: ending.clone(),
                    attempts: row.as_ref().map_or(0, |r| r.attempts),
                    replayed: false,
                    occurred_at: *at,
                };
                self.counts.told_from_ledger(order.lane);
                return self.end_as(key, told);
            }
            Some(OrderState::Ended(ending, _)) => {
                // Not in the words of then, which would grow with each command that tries again.
                (ending.outcome() == Outcome::Unknown)
                    .then_some("it was left unconfirmed when it was last tried")
            }
            Some(OrderState::Waiting) => {
                order.on_record = OnRecord::Waiting;
                None
            }
            Some(OrderState::Sent) => {
                order.on_record = OnRecord::Sent;
                order.tries.attempts = row.as_ref().map_or(0, |r| r.attempts);
                order.tries.spent = row.as_ref().map_or(0, |r| r.spent);
                Some("the worker stopped before an answer was recorded")
            }
        };
        if self.mode.is_dry_run() {
            // Nothing of it can be in doubt: it was never sent.
            order.phase = Phase::Doubtful;
            return lane.look_up_at(now.mono, key);
        }
        // Of a command that was in hand when the ledger was lost it is likely, of another it is not:
        // that one is sent, and only a no is looked into.
        let mut waiters = order.waiters.iter();
        let was_in_hand = waiters.any(|(c, _)| self.commands.get(c).is_some_and(|c| c.redelivered));
        let cause = match order.on_record {
            OnRecord::Sent => LookUpCause::FoundSent,
            OnRecord::NothingOpen | OnRecord::Waiting if doubt.is_some() => {
                LookUpCause::FoundUnknown
            }
            OnRecord::NothingOpen | OnRecord::Waiting => LookUpCause::Restored,
        };
        let doubt = doubt.or((is_hidden && was_in_hand)
            .then_some("the ledger was restored from a back-up, and it may have been sent before"));
        let Some(what) = doubt else {
            if is_hidden {
                order.tries.doubt();
            }
            order.phase = Phase::Waiting;
            lane.send(key);
            return;
        };
        order.tries.doubt();
        order.phase = Phase::Doubtful;
        if retry.verify == Verify::Never || lane.query_denied {
            let ending = next::unconfirmed(what, !lane.query_denied, retry.verify);
            return self.end(now, key, ending);
        }
        lane.look_up_at(now.mono, key);
        self.counts.look_up(lane_id, cause);
    }

    /// A command waits for the order no more. An order that nobody waits for leaves the desk at
    /// once: its command may be in another worker's hands, so whoever brings it in next has to ask
    /// the ledger again.
    pub(super) fn detach(&mut self, key: OrderKey, command: CommandKey, place: usize) {
        let Some(order) = self.orders.get_mut(&key) else {
            return;
        };
        order.waiters.retain(|w| *w != (command, place));
        let idle = matches!(
            order.phase,
            Phase::Elsewhere | Phase::Waiting | Phase::Doubtful
        );
        if order.waiters.is_empty() && (idle || order.ended.is_some()) {
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

/// Whether another worker's later word was recorded for this command: what is settled is the last.
fn is_overtaken(told: &Told, row: Option<&&ResultRow>) -> bool {
    let is_later = |row: &&ResultRow| is_settled(&row.ending) || row.occurred_at > told.occurred_at;
    !told.is_settled() && row.is_some_and(is_later)
}

fn replay(row: &ResultRow) -> Told {
    Told {
        ending: row.ending.clone(),
        attempts: row.attempts,
        replayed: true,
        occurred_at: row.occurred_at,
    }
}
