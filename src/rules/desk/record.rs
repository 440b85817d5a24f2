//! Endings become durable before anybody is told.

use std::sync::Arc;

use super::Desk;
use super::action::{Action, CommandKey, Fence, LaneId, OrderState, Record, RecordId, ResultRow};
use super::hand::{Open, Phase, Stage, Told};
use super::lease::is_lost;
use crate::rules::lane::OrderKey;
use crate::rules::order::{Ending, OrderNo};
use crate::rules::time::Now;

impl Desk {
    pub(super) fn end(&mut self, now: Now, key: OrderKey, ending: Ending) {
        let Some(order) = self.orders.get_mut(&key) else {
            return;
        };
        let told = Told {
            ending,
            attempts: order.tries.attempts,
            replayed: false,
            occurred_at: now.wall,
        };
        let state = OrderState::Ended(told.ending.clone(), now.wall);
        let row = order.row(state);
        self.draft.0.push(row);
        self.end_as(key, told);
    }

    /// Everyone who waits for the order is told this, after it is recorded for each; those whose
    /// record is not known yet wait on.
    pub(super) fn end_as(&mut self, key: OrderKey, told: Told) {
        let Some(order) = self.orders.get_mut(&key) else {
            return;
        };
        order.phase = Phase::Ending;
        let fence = order.fence;
        let commands = &self.commands;
        let is_claimed = |w: &mut (CommandKey, usize)| commands.get(&w.0).is_none_or(|c| c.claimed);
        let claimed: Vec<(CommandKey, usize)> = order.waiters.extract_if(.., is_claimed).collect();
        for (command, place) in claimed {
            self.draft_result(command, place, &told, fence);
        }
        self.draft.2.ended.push((key, told));
    }

    /// One command stops waiting for an order that may go on for others. If it is in hand twice,
    /// the same is told twice.
    pub(super) fn retire(&mut self, now: Now, key: OrderKey, command: CommandKey, ending: Ending) {
        let (Some(order), Some(first)) = (self.orders.get(&key), self.commands.get(&command))
        else {
            return;
        };
        let is_same = |other: &Open| {
            other.fingerprint == first.fingerprint
                && other.envelope.command_id == first.envelope.command_id
        };
        let twins: Vec<(CommandKey, usize)> = order
            .waiters
            .iter()
            .filter(|(waiter, _)| self.commands.get(waiter).is_some_and(is_same))
            .copied()
            .collect();
        let fence = order.fence;
        let told = Told {
            ending,
            attempts: order.tries.attempts,
            replayed: false,
            occurred_at: now.wall,
        };
        if twins.len() == order.waiters.len() && order.closes_with(&told.ending) {
            let row = order.row(OrderState::Ended(told.ending.clone(), now.wall));
            self.draft.0.push(row);
        }
        for (twin, place) in twins {
            self.detach(key, twin, place);
            self.draft_result(twin, place, &told, fence);
        }
    }

    pub(super) fn draft_result(
        &mut self,
        key: CommandKey,
        place: usize,
        told: &Told,
        fence: Option<Fence>,
    ) {
        let Some(command) = self.commands.get_mut(&key) else {
            return;
        };
        let (Some(lane), Some(fingerprint)) = (command.lane, command.fingerprint) else {
            return;
        };
        let (shown, stage) = &mut command.entries[place];
        *stage = Stage::Recording(told.clone(), fence);
        self.draft.1.push(ResultRow {
            lane,
            command_id: command.envelope.command_id.clone(),
            fingerprint,
            order_no: Arc::clone(shown),
            ending: told.ending.clone(),
            attempts: told.attempts,
            occurred_at: told.occurred_at,
            fence,
        });
        self.draft.2.entries.push((key, place));
    }

    pub(super) fn flush_draft(&mut self) {
        let (orders, results, after) = std::mem::take(&mut self.draft);
        if orders.is_empty()
            && results.is_empty()
            && after.ended.is_empty()
            && after.returns.is_empty()
        {
            return;
        }
        let id = RecordId(self.number());
        self.records.insert(id, after);
        self.actions.push(Action::Record(Record {
            id,
            orders,
            results,
        }));
    }

    /// The record is durable, except what it holds of the orders that are `lost`: this worker's
    /// lease was over, and another worker may have them. Theirs is not recorded and never told; the
    /// ledger is asked again.
    pub fn recorded(&mut self, id: RecordId, lost: &[(LaneId, OrderNo)]) {
        let Some(after) = self.records.remove(&id) else {
            debug_assert!(false, "a record that nobody made");
            return;
        };
        for ticket in after.returns {
            self.actions.push(Action::Return(ticket));
        }
        let mut touched = Vec::with_capacity(after.entries.len());
        let mut anew = Vec::new();
        for (key, place) in after.entries {
            if self.is_lost_entry(key, place, lost) {
                anew.extend(self.reopen(key, place));
            } else if let Some(command) = self.commands.get_mut(&key) {
                let stage = &mut command.entries[place].1;
                if let Stage::Recording(told, _) = stage {
                    *stage = Stage::Decided(told.clone());
                }
                touched.push(key);
            }
        }
        touched.dedup();
        self.tell_decided(touched.into_iter());
        for (key, told) in after.ended {
            let Some(order) = self.orders.get_mut(&key) else {
                continue;
            };
            if is_lost(lost, order.lane, order.order_no.as_str()) {
                anew.push(key);
                continue;
            }
            // They came while the ending was on its way to the ledger; it is theirs too.
            let mut joined = order.waiters.iter();
            if order.waiters.is_empty() {
                self.forget(key);
            } else if joined.any(|(c, _)| self.commands.get(c).is_none_or(|c| c.claimed)) {
                self.end_as(key, told);
            } else {
                order.ended = Some(told);
            }
        }
        self.ask_anew(anew);
    }
}
