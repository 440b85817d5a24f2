//! Which calls are made, and what their answers change.

use std::time::Duration;

use super::Desk;
use super::action::{Action, CallId, CommandKey, LaneId, Note, OrderState, SendList};
use super::counts::{RetryCause, Why};
use super::hand::{OnRecord, Order, Phase};
use crate::rules::dry_run::{self, Mode};
use crate::rules::judge::{self, CallEnd, CancelLists, FoundOrder, LookUp, News};
use crate::rules::lane::{Method, NextCall, OrderKey};
use crate::rules::next::{self, Next, Retry, Tries};
use crate::rules::order::OrderNo;
use crate::rules::time::Now;

/// An order that is wanted only by commands which the ledger has not told of yet is put off for so
/// long; a claim is one read.
const CLAIM_PAUSE: Duration = Duration::from_millis(200);

impl Desk {
    pub(super) fn plan(&mut self, now: Now, lane: LaneId) {
        while let Some(call) = self.lanes[lane.0].next_call(now.mono) {
            let id = CallId(self.number());
            let orders = match call {
                NextCall::Probe => {
                    self.actions.push(Action::Probe(id, lane));
                    Vec::new()
                }
                NextCall::LookUp(key) => {
                    let denied = self.lanes[lane.0].query_denied;
                    let (mode, retry) = (self.mode, self.policy.retry);
                    let Some(order) = self.still_wanted(now, key, mode.is_dry_run()) else {
                        self.lanes[lane.0].call_not_made();
                        continue;
                    };
                    if denied {
                        let seen = LookUp::NotPermitted("asked before".into());
                        let step = after_look_up(mode, &mut order.tries, seen, retry, 0.0);
                        self.step(now, key, step);
                        self.lanes[lane.0].call_not_made();
                        continue;
                    }
                    order.phase = Phase::InCall;
                    let order_no = order.order_no.clone();
                    self.actions.push(Action::LookUp(id, lane, order_no));
                    vec![key]
                }
                NextCall::Cancel(keys) if self.mode.is_dry_run() => {
                    debug_assert!(false, "nothing waits to be sent in a dry run");
                    self.lanes[lane.0].call_not_made();
                    for key in keys {
                        self.step(now, key, Next::LookUpIn(Duration::ZERO));
                    }
                    continue;
                }
                NextCall::Cancel(mut keys) => {
                    let is_half = self.lanes[lane.0].half_was_last();
                    let mut rows = Vec::with_capacity(keys.len());
                    keys.retain(|key| match self.still_wanted(now, *key, true) {
                        Some(order) => {
                            order.phase = Phase::InCall;
                            order.before_call = (order.on_record, is_half);
                            order.on_record = OnRecord::Sent;
                            order.tries.attempts += 1;
                            rows.push(order.row(OrderState::Sent));
                            true
                        }
                        None => false,
                    });
                    if keys.is_empty() {
                        self.lanes[lane.0].call_not_made();
                        continue;
                    }
                    self.actions.push(Action::Send(SendList {
                        call: id,
                        lane,
                        orders: rows,
                    }));
                    keys
                }
            };
            self.calls.insert(id, (lane, orders));
        }
    }

    /// The order, unless nobody waits for it any more, or only commands of which it is not known
    /// yet what is recorded. The deadline is checked here, right before a call that would cancel, or
    /// that stands for one in a dry run.
    pub(super) fn still_wanted(
        &mut self,
        now: Now,
        key: OrderKey,
        cancels: bool,
    ) -> Option<&mut Order> {
        if cancels {
            let waiters = self.orders.get(&key)?.waiters.iter();
            let is_late = |command: &CommandKey| {
                let command = self.commands.get(command);
                command.is_some_and(|c| c.claimed && c.is_late(now))
            };
            let late: Vec<CommandKey> = waiters.map(|(c, _)| *c).filter(is_late).collect();
            for command in late {
                let ending = self.orders.get(&key)?.too_late();
                self.retire(now, key, command, ending);
            }
        }
        let order = self.orders.get(&key)?;
        if order.waiters.is_empty() {
            self.forget(key);
            return None;
        }
        let mut waiters = order.waiters.iter();
        if !waiters.any(|(c, _)| self.commands.get(c).is_some_and(|c| c.claimed)) {
            let lane = &mut self.lanes[order.lane.0];
            let at = now.mono + CLAIM_PAUSE;
            if order.phase == Phase::Doubtful {
                lane.look_up_at(at, key);
            } else {
                lane.send_at(at, key);
            }
            return None;
        }
        self.orders.get_mut(&key)
    }

    pub(super) fn forget(&mut self, key: OrderKey) {
        if let Some(order) = self.orders.remove(&key) {
            let name = (order.lane, order.order_no);
            self.by_number.remove(&name);
            if let Some(fence) = order.fence {
                self.released.insert(name, fence);
            }
        }
    }

    /// How a cancel call ended.
    pub fn cancel_answered(&mut self, now: Now, call: CallId, end: &CallEnd<CancelLists>) {
        let Some((lane, keys)) = self.calls.remove(&call) else {
            debug_assert!(false, "an answer to no call");
            return;
        };
        let asked: Vec<OrderNo> = keys
            .iter()
            .filter_map(|key| self.orders.get(key).map(|o| o.order_no.clone()))
            .collect();
        debug_assert_eq!(asked.len(), keys.len(), "an order in a call stays in hand");
        let judged = judge::judge_cancel(&asked, end);
        let not_executed_for = RetryCause::of(&judged.news);
        self.hear(now, lane, Method::Cancel, judged.news);
        if judged.strangers > 0 {
            self.actions
                .push(Action::Note(lane, Note::Strangers(judged.strangers)));
        }
        let alone = keys.len() == 1;
        let mut halves = Vec::new();
        let mut again = Vec::new();
        for (key, verdict) in keys.into_iter().zip(judged.verdicts) {
            let may_look_up = !self.lanes[lane.0].query_denied;
            let chance = self.rng.f64();
            let Some(order) = self.orders.get_mut(&key) else {
                continue;
            };
            let not_executed = verdict == judge::Verdict::NotExecuted;
            let why = Why::of(&verdict, not_executed_for);
            let retry = self.policy.retry;
            let next =
                next::after_cancel(&mut order.tries, verdict, alone, may_look_up, retry, chance);
            self.counts.after_cancel(lane, &why, &next);
            match next {
                Next::Halve => {
                    order.phase = Phase::Waiting;
                    halves.push(key);
                }
                Next::SendIn(_) if not_executed => {
                    order.phase = Phase::Waiting;
                    if matches!(end, CallEnd::NotReached { .. }) {
                        // Nothing left the machine, so this was no attempt.
                        order.tries.attempts -= 1;
                    }
                    again.push(key);
                }
                step @ (Next::End(_) | Next::SendIn(_) | Next::LookUpIn(_)) => {
                    self.step(now, key, step)
                }
            }
        }
        self.lanes[lane.0].halve(halves);
        self.lanes[lane.0].send_again(again.into_iter());
    }

    /// How a look-up ended.
    pub fn look_up_answered(&mut self, now: Now, call: CallId, end: &CallEnd<Vec<FoundOrder>>) {
        let Some((lane, keys)) = self.calls.remove(&call) else {
            debug_assert!(false, "an answer to no call");
            return;
        };
        let Some((key, order)) = keys
            .first()
            .and_then(|key| Some((*key, self.orders.get_mut(key)?)))
        else {
            return;
        };
        let (seen, news) = judge::judge_look_up(&order.order_no, end);
        if let LookUp::NotPermitted(words) = &seen
            && !std::mem::replace(&mut self.lanes[lane.0].query_denied, true)
        {
            let note = Note::QueryDenied(words.clone());
            self.actions.push(Action::Note(lane, note));
        }
        let counts = matches!(news, News::Answers | News::Unwell { .. });
        self.hear(now, lane, Method::LookUp, news);
        let chance = self.rng.f64();
        let Some(order) = self.orders.get_mut(&key) else {
            return;
        };
        if !counts {
            // The account is the matter, not the order; it costs the order no look-up.
            return self.step(now, key, Next::LookUpIn(Duration::ZERO));
        }
        let retry = self.policy.retry;
        let step = after_look_up(self.mode, &mut order.tries, seen, retry, chance);
        self.counts.after_look_up(lane, &step);
        self.step(now, key, step);
    }

    /// How a call for the time ended.
    pub fn probe_answered<T>(&mut self, now: Now, call: CallId, end: &CallEnd<T>) {
        if let Some((lane, _)) = self.calls.remove(&call) {
            self.hear(now, lane, Method::Probe, judge::judge_probe(end));
        }
    }

    pub(super) fn hear(&mut self, now: Now, lane: LaneId, method: Method, news: News) {
        let chance = self.rng.f64();
        if let Some(turn) = self.lanes[lane.0].call_ended(now, method, news, chance) {
            self.actions.push(Action::Note(lane, Note::Turn(turn)));
        }
    }

    pub(super) fn step(&mut self, now: Now, key: OrderKey, step: Next) {
        let Some(order) = self.orders.get_mut(&key) else {
            return;
        };
        let lane = &mut self.lanes[order.lane.0];
        match step {
            Next::End(ending) => self.end(now, key, ending),
            Next::SendIn(delay) => {
                order.phase = Phase::Waiting;
                lane.send_at(now.mono + delay, key);
            }
            Next::LookUpIn(delay) => {
                order.phase = Phase::Doubtful;
                lane.look_up_at(now.mono + delay, key);
            }
            Next::Halve => {
                debug_assert!(false, "halves are gathered by the call");
                lane.send(key);
            }
        }
    }
}

fn after_look_up(mode: Mode, tries: &mut Tries, seen: LookUp, retry: Retry, chance: f64) -> Next {
    match mode {
        Mode::Live => next::after_look_up(tries, seen, retry, chance),
        Mode::DryRun => dry_run::after_look_up(tries, seen, retry, chance),
    }
}
