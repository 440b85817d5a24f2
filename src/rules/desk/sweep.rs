//! What time alone brings about: deadlines, ages, deliveries held for too long; and the stop.

use jiff::Timestamp;

use super::Desk;
use super::action::{CommandKey, OrderState};
use super::hand::{OnRecord, Open, Park, Phase, Stage};
use crate::rules::lane::OrderKey;
use crate::rules::time::{Mono, Now, later};

impl Desk {
    /// To be called every second or so: deadlines, ages, deliveries held for too long.
    pub fn sweep(&mut self, now: Now) {
        let mut overdue = Vec::new();
        for (key, command) in &self.commands {
            let too_old = later(command.since, self.policy.max_age) <= now.wall;
            let held = now.mono.since(command.arrived) >= self.policy.hold;
            if command.is_late(now) || too_old || held || command.given_up {
                overdue.push((*key, too_old, held));
            }
        }
        for (key, too_old, held) in overdue {
            self.end_overdue(now, key, too_old);
            self.end_given_up(now, key);
            if held {
                self.give_back(key);
            }
        }
        self.drop_orphans(now.mono);
        self.retry_untold(now.mono);
        self.drop_unwanted();
    }

    pub(super) fn end_overdue(&mut self, now: Now, key: CommandKey, too_old: bool) {
        let Some(command) = self.commands.get(&key).filter(|c| c.claimed) else {
            return;
        };
        let late = command.is_late(now);
        let open: Vec<OrderKey> = command.open_entries().map(|(order, _)| order).collect();
        for order_key in open {
            let Some(order) = self.orders.get(&order_key) else {
                continue;
            };
            let ending = match order.phase {
                Phase::Claiming | Phase::Elsewhere | Phase::InCall | Phase::Ending => continue,
                Phase::Waiting if late => order.too_late(),
                Phase::Doubtful if late && self.mode.is_dry_run() => order.too_late(),
                Phase::Waiting | Phase::Doubtful if too_old => order.too_old(),
                Phase::Waiting | Phase::Doubtful => continue,
            };
            self.retire(now, order_key, key, ending);
        }
    }

    /// Gives a delivery back to the queue, unless something of it is on its way; `true` when it
    /// goes.
    pub(super) fn give_back(&mut self, key: CommandKey) -> bool {
        let Some(command) = self.commands.get(&key) else {
            return false;
        };
        let on_its_way = command.park == Park::Parking
            || command.entries.iter().any(|(_, stage)| match stage {
                Stage::Recording(..) | Stage::Telling(_) => true,
                Stage::Open(order) => self.orders.get(order).is_some_and(|o| {
                    matches!(o.phase, Phase::Claiming | Phase::InCall | Phase::Ending)
                }),
                Stage::Decided(_) | Stage::Untold(_) | Stage::Confirmed => false,
            });
        if on_its_way {
            return false;
        }
        let Some(command) = self.remove_command(key) else {
            return false;
        };
        for (order_key, place) in command.open_entries() {
            if command.ticket.is_some() {
                self.record_return(order_key, command.since);
            }
            self.detach(order_key, key, place);
        }
        let Some(ticket) = command.ticket else {
            return false;
        };
        self.draft.2.returns.push(ticket);
        true
    }

    /// An order of a delivery that goes back keeps its age and its doubt.
    fn record_return(&mut self, key: OrderKey, since: Timestamp) {
        let Some(order) = self.orders.get_mut(&key) else {
            return;
        };
        if order.on_record != OnRecord::NothingOpen || order.fence.is_none() {
            return;
        }
        order.since = order.since.min(since);
        // The record replaces an ending, which may have been `unknown`: that is still to be looked
        // up before it is sent.
        let (on_record, state) = if order.tries.tainted {
            (OnRecord::Sent, OrderState::Sent)
        } else {
            (OnRecord::Waiting, OrderState::Waiting)
        };
        order.on_record = on_record;
        let row = order.row(state);
        self.draft.0.push(row);
    }

    pub(super) fn remove_command(&mut self, key: CommandKey) -> Option<Open> {
        let command = self.commands.remove(&key)?;
        self.leave_id(command.id(), key);
        Some(command)
    }

    /// Lanes drop an order that has left when its turn comes; where it does not come for long, they
    /// drop all of them together.
    pub(super) fn drop_unwanted(&mut self) {
        if std::mem::take(&mut self.lanes_are_stale) {
            for lane in &mut self.lanes {
                lane.retain(|key| self.orders.contains_key(&key));
            }
        }
    }

    /// When time alone changes what may be done.
    pub fn wake_at(&mut self, now: Mono) -> Option<Mono> {
        if self.draining {
            return None;
        }
        let ask_again = self.elsewhere.first().map(|(at, _)| *at);
        let lanes = self.lanes.iter_mut();
        lanes
            .filter_map(|lane| lane.wake_at(now))
            .chain(ask_again)
            .min()
    }

    /// From now on no call is begun and no command taken; what is in flight is finished.
    pub fn drain(&mut self) {
        self.draining = true;
        self.give_back_idle();
    }

    /// Gives back every delivery of which nothing is in flight; to be called while draining.
    pub fn give_back_idle(&mut self) {
        let keys: Vec<CommandKey> = self.commands.keys().copied().collect();
        for key in keys {
            self.give_back(key);
        }
    }

    /// Nothing is in hand any more.
    pub fn is_idle(&self) -> bool {
        self.calls.is_empty()
            && self.records.is_empty()
            && self.commands.values().all(|c| c.ticket.is_none())
    }
}
