//! The laws, checked at every step.

use std::collections::{BTreeMap, BTreeSet};

use wdt_cancel_worker::rules::desk::{
    LaneId, OrderState, Record, RecordId, ResultRow, Telling, Ticket,
};
use wdt_cancel_worker::rules::order::{CommandId, Ending, OrderNo, Outcome, ReasonCode};

use crate::config::ACCOUNTS;
use crate::world::{Call, Event, Key, State, World};

/// An ending of an order of a command.
pub type ToldOf = (LaneId, CommandId, String, String);

pub fn told_of(row: &ResultRow) -> ToldOf {
    let ending = format!("{:?}", row.ending);
    let no = row.order_no.to_string();
    (row.lane, row.command_id.clone(), no, ending)
}

impl World<'_> {
    /// One of the laws, or of what follows from them:
    ///
    /// 1. A call's orders are recorded as sent, before it and as long as it flies.
    /// 2. What is told is recorded, word for word.
    /// 3. An acknowledged command has each event confirmed, and a copy parked if one is unsettled.
    /// 4. An order without a clear answer is looked up before it is sent again.
    /// 5. `cancelled` is told only of what the gateway has cancelled; `refused`, `failed` and
    ///    `expired` never of what our own call has cancelled.
    /// 6. No order is in two calls, and none that is recorded as cancelled in any.
    /// 7. The results of a command's id are all of the same orders, what was settled is told the
    ///    same ever after, and what was not is told in the sequence in which it ended.
    ///
    /// And at the end: everything was told and acknowledged, and nothing is left in hand.
    pub fn law(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds && self.broken.is_none() {
            self.broken = Some(what());
        }
    }

    pub fn check_list(&mut self, lane: LaneId, orders: &[OrderNo]) {
        for no in orders {
            self.check_call(&(lane, no.clone()));
        }
        let once: BTreeSet<&OrderNo> = orders.iter().collect();
        self.law(once.len() == orders.len(), || {
            "law 6: a list holds a number twice".into()
        });
    }

    fn check_call(&mut self, key: &Key) {
        let is_cancelled = self
            .ledger
            .orders
            .get(key)
            .is_some_and(|row| matches!(row.state, OrderState::Ended(Ending::Cancelled, _)));
        self.law(!is_cancelled, || {
            format!("law 6: {key:?} is sent, and recorded as cancelled")
        });
        let in_doubt = self.in_doubt.contains(key);
        self.law(!in_doubt, || {
            format!("law 4: {key:?} is sent again before it is looked up")
        });
        let mut calls = self.workers.iter().flat_map(|w| &w.calls);
        let flies = calls.any(|(_, lane, call)| {
            *lane == key.0 && matches!(call, Call::Cancel(orders) if orders.contains(&key.1))
        });
        self.law(!flies, || format!("law 6: {key:?} is in two calls"));
    }

    pub fn check_flights(&mut self) {
        let mut wrong = None;
        for (_, lane, call) in self.workers.iter().flat_map(|w| &w.calls) {
            let Call::Cancel(orders) = call else {
                continue;
            };
            for no in orders {
                let row = self.ledger.orders.get(&(*lane, no.clone()));
                if row.is_none_or(|row| row.state != OrderState::Sent) {
                    wrong = Some(no.clone());
                }
            }
        }
        self.law(wrong.is_none(), || {
            format!("law 1: {wrong:?} is in a call and not recorded as sent")
        });
    }

    pub fn check_results(&mut self) {
        let mut of_id = BTreeMap::new();
        let mut mixed = None;
        for row in self.ledger.results.values() {
            let id = (row.lane, row.command_id.clone());
            if *of_id.entry(id).or_insert(row.fingerprint) != row.fingerprint {
                mixed = Some(row.command_id.clone());
            }
        }
        self.law(mixed.is_none(), || {
            format!("law 7: results of {mixed:?} are of different orders")
        });
    }

    /// What the desk has decided is compared with the gateway when it is decided, for that may
    /// change afterwards; but it counts only if it is recorded, see [`Self::check_kept`].
    pub fn check_record(&mut self, record: &Record) {
        let rows = record.orders.iter().filter_map(|row| match &row.state {
            OrderState::Ended(ending, _) => Some((row.lane, row.order_no.clone(), ending)),
            OrderState::Waiting | OrderState::Sent => None,
        });
        // What a twin says again was true when it was first said.
        let is_new = |row: &&ResultRow| self.decided.insert(told_of(row));
        let results = record.results.iter().filter(is_new).filter_map(|row| {
            let no = OrderNo::new(&row.order_no).ok()?;
            Some((row.lane, no, &row.ending))
        });
        let owner = self.workers[self.at].owner;
        let endings: Vec<(LaneId, OrderNo, &Ending)> = rows.chain(results).collect();
        for (lane, no, ending) in endings {
            let key = (lane, no);
            let is_cancelled = self.states.get(&key).copied();
            let holds = match ending.outcome() {
                Outcome::Cancelled => matches!(is_cancelled, Some(State::Cancelled { .. })),
                Outcome::Refused | Outcome::Failed | Outcome::Expired => {
                    is_cancelled != Some(State::Cancelled { by_us: true })
                }
                Outcome::Rejected | Outcome::Unknown => true,
            };
            if !holds {
                let what = format!("law 5: {} ends as {ending:?}", key.1);
                self.wrong.insert((owner, record.id, key), what);
            }
        }
    }

    /// The record is made, except for what is lost.
    pub fn check_kept(&mut self, record: &Record, lost: &[Key]) {
        let owner = self.workers[self.at].owner;
        let of_it = |(of, id, _): &(u64, RecordId, Key)| *of == owner && *id == record.id;
        let wrong = std::mem::take(&mut self.wrong);
        let (here, others) = wrong.into_iter().partition(|(key, _)| of_it(key));
        self.wrong = others;
        let here: BTreeMap<(u64, RecordId, Key), String> = here;
        let kept = here
            .into_iter()
            .find(|((_, _, key), _)| !lost.contains(key));
        self.law(kept.is_none(), || {
            kept.map(|(_, what)| what).unwrap_or_default()
        });
        for row in &record.results {
            let key = OrderNo::new(&row.order_no).map(|no| (row.lane, no));
            if key.is_ok_and(|key| lost.contains(&key)) && !self.recorded.contains(&told_of(row)) {
                self.decided.remove(&told_of(row));
            }
        }
    }

    pub fn check_telling(&mut self, telling: &Telling) {
        let event = &telling.event;
        let Some(account) = &event.account else {
            return;
        };
        let place = ACCOUNTS.iter().position(|a| *a == account.as_str());
        let lane = LaneId(place.unwrap());
        let shown = event.order_no.clone().unwrap_or_default();
        let recorded = self.recorded.contains(&(
            lane,
            telling.envelope.command_id.clone(),
            shown.to_string(),
            format!("{:?}", event.ending),
        ));
        // What the command's bytes decide, or its id.
        let needs_no_record = event.ending.reason().is_some_and(|reason| {
            matches!(
                reason.code,
                ReasonCode::CommandIdReused | ReasonCode::NoOrders
            )
        });
        self.law(recorded || needs_no_record, || {
            format!("law 2: told and not recorded: {event:?}")
        });
        let outcome = event.ending.outcome();
        if let (Outcome::Cancelled, Ok(no)) = (outcome, OrderNo::new(&shown)) {
            let state = self.states.get(&(lane, no)).copied();
            self.law(matches!(state, Some(State::Cancelled { .. })), || {
                format!("law 5: told and not cancelled: {event:?}")
            });
        }
        if needs_no_record {
            // Of two commands with one id of which nothing is recorded yet, whichever comes first
            // is the one that counts; after a crash it may be the other.
            return;
        }
        let Some(message) = self.tickets.get(&telling.ticket) else {
            return;
        };
        let key = (self.messages[*message].command, shown.to_string());
        match outcome {
            Outcome::Cancelled | Outcome::Refused | Outcome::Rejected | Outcome::Expired => {
                let before = *self.settled.entry(key).or_insert(outcome);
                self.law(before == outcome, || {
                    format!("law 7: told as {before:?} before: {event:?}")
                });
            }
            Outcome::Failed | Outcome::Unknown => {
                let before = self.settled.get(&key).copied();
                self.law(before.is_none(), || {
                    format!("law 7: told as {before:?} before: {event:?}")
                });
                let last = self.unsettled.entry(key).or_insert(event.occurred_at);
                let (of_last, at) = (*last, event.occurred_at);
                *last = of_last.max(at);
                self.law(at >= of_last, || {
                    format!("law 7: told after what ended later, at {of_last}: {event:?}")
                });
            }
        }
    }

    pub fn check_acknowledgement(&mut self, ticket: Ticket, was_parked: bool) {
        let command = self.messages[self.tickets[&ticket]].command;
        let mut silent = Vec::new();
        for no in self.owed(command) {
            let told = |e: &Event| e.command == command && e.confirmed && e.order_no == no;
            if !self.events.iter().any(told) {
                silent.push(no);
            }
        }
        self.law(silent.is_empty(), || {
            format!("law 3: acknowledged, and nothing confirmed of {silent:?}")
        });
        let unreadable = self.config.commands[command].orders.is_empty();
        let told_here = |e: &&Event| e.ticket == ticket && e.confirmed;
        let unsettled = self
            .events
            .iter()
            .filter(told_here)
            .any(Event::is_unsettled);
        let parked = was_parked && self.copies.contains(&ticket);
        self.law(parked || !(unsettled || unreadable), || {
            "law 3: acknowledged unsettled or unreadable, and not parked".into()
        });
    }

    /// The events that a command is owed, by their order numbers.
    fn owed(&self, command: usize) -> Vec<&'static str> {
        match self.config.commands[command].orders.as_slice() {
            [] => vec![""],
            orders => orders.to_vec(),
        }
    }

    pub fn check_all_told(&mut self) {
        let mut untold = Vec::new();
        for (at, message) in self.messages.iter().enumerate() {
            for no in self.owed(message.command) {
                let told =
                    |e: &Event| e.command == message.command && e.order_no == no && e.at > at;
                if !self.events.iter().any(told) {
                    untold.push((message.command, no));
                }
            }
        }
        self.law(untold.is_empty(), || {
            format!("at the end: never told: {untold:?}")
        });
    }
}
