//! Orders that several workers want.
//!
//! Where one ledger serves many workers, an order is in one worker's hands at a time: whoever
//! claims it first has it until it lets go of it ([`Action::Release`]) or its lease is over. A worker
//! that is told that another one has an order asks again until it is free; what was recorded
//! meanwhile is told then.
//!
//! A worker may be frozen past its lease and go on as if nothing had happened. So each claim has a
//! token ([`Fence`]), and whatever the desk says of an order, it says under the claim that it knew
//! then. The ledger takes it only under the latest: what comes too late is not recorded, and so not
//! sent ([`Desk::not_sent`]) and not told ([`Desk::recorded`]). Whatever the worker knew of
//! that order is forgotten then, a call's answer too, and the ledger is asked anew.
//!
//! A call that was begun in time may still be executed when the lease is over: the order is recorded
//! as sent, so whoever has it next looks it up first. The embedded ledger belongs to one worker, so
//! there no order is ever elsewhere or lost.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::Desk;
use super::action::{Action, CallId, Claim, CommandKey, Fence, LaneId, OrderRow};
use super::hand::{OnRecord, Phase, Stage};
use crate::rules::lane::OrderKey;
use crate::rules::next::Tries;
use crate::rules::order::OrderNo;
use crate::rules::time::Mono;

/// While another worker has an order, the ledger is asked again after this, then after twice as
/// long each time: most calls take less than a second.
const ASK_AGAIN_MIN: Duration = Duration::from_millis(100);
/// But not later than this, for that worker may have waited long itself.
const ASK_AGAIN_MAX: Duration = Duration::from_secs(10);

/// Whether the ledger said so of this order.
pub(super) fn is_lost(lost: &[(LaneId, OrderNo)], lane: LaneId, order_no: &str) -> bool {
    lost.iter()
        .any(|(of, no)| *of == lane && no.as_str() == order_no)
}

impl Desk {
    /// The order is this worker's from now on, as `asker` has heard. Whatever else was recorded of
    /// it before is known only now, so its other commands are asked for anew.
    pub(super) fn is_ours(&mut self, key: OrderKey, asker: CommandKey, fence: Fence) {
        let Some(order) = self.orders.get_mut(&key) else {
            return;
        };
        order.fence = Some(fence);
        order.asked = 0;
        let others: BTreeSet<CommandKey> = order
            .waiters
            .iter()
            .map(|(command, _)| *command)
            .filter(|command| *command != asker)
            .collect();
        for other in others {
            let command = self.commands.get_mut(&other);
            if command.is_some_and(|c| std::mem::take(&mut c.claimed)) {
                self.claim(other, Vec::new());
            }
        }
    }

    /// Another worker has the order.
    pub(super) fn is_elsewhere(
        &mut self,
        now: Mono,
        key: OrderKey,
        row: Option<&OrderRow>,
        left: Duration,
    ) {
        let Some(order) = self.orders.get_mut(&key) else {
            return;
        };
        order.is_news(row);
        if order.waiters.is_empty() {
            return self.forget(key);
        }
        order.phase = Phase::Elsewhere;
        let pause = ASK_AGAIN_MIN.saturating_mul(1 << order.asked.min(16));
        order.asked = order.asked.saturating_add(1);
        let most = left.clamp(ASK_AGAIN_MIN, ASK_AGAIN_MAX);
        self.elsewhere.insert((now + pause.min(most), key));
    }

    /// Asks the ledger again for what another worker had.
    pub(super) fn ask_again(&mut self, now: Mono) {
        let mut due = Vec::new();
        while let Some((at, key)) = self.elsewhere.first().copied()
            && at <= now
        {
            self.elsewhere.remove(&(at, key));
            due.push(key);
        }
        self.claim_orders(due);
    }

    /// Another worker may have these orders: nothing that is known of them here counts.
    pub(super) fn ask_anew(&mut self, keys: Vec<OrderKey>) {
        for key in &keys {
            if let Some(order) = self.orders.get_mut(key) {
                order.phase = Phase::Elsewhere;
                order.tries = Tries::default();
                order.on_record = OnRecord::NothingOpen;
                order.fence = None;
                order.ended = None;
            }
        }
        self.claim_orders(keys);
    }

    /// Claims those that are elsewhere, each for the first command that waits for it.
    fn claim_orders(&mut self, keys: Vec<OrderKey>) {
        let mut claims: BTreeMap<CommandKey, Vec<(OrderKey, OrderNo)>> = BTreeMap::new();
        for key in keys {
            let order = self.orders.get_mut(&key);
            let Some(order) = order.filter(|order| order.phase == Phase::Elsewhere) else {
                continue;
            };
            match order.waiters.first() {
                Some((asker, _)) => {
                    order.phase = Phase::Claiming;
                    let orders = claims.entry(*asker).or_default();
                    orders.push((key, order.order_no.clone()));
                }
                None => self.forget(key),
            }
        }
        for (asker, orders) in claims {
            self.claim(asker, orders);
        }
    }

    pub(super) fn claim(&mut self, key: CommandKey, orders: Vec<(OrderKey, OrderNo)>) {
        let Some(command) = self.commands.get(&key) else {
            return;
        };
        let (Some(lane), Some(fingerprint)) = (command.lane, command.fingerprint) else {
            return;
        };
        self.actions.push(Action::Claim(Claim {
            command: key,
            lane,
            command_id: command.envelope.command_id.clone(),
            fingerprint,
            orders,
        }));
    }

    /// Whether what was to be recorded of this entry was not, because its order is lost.
    pub(super) fn is_lost_entry(
        &self,
        key: CommandKey,
        place: usize,
        lost: &[(LaneId, OrderNo)],
    ) -> bool {
        self.commands.get(&key).is_some_and(|command| {
            let (shown, stage) = &command.entries[place];
            let recording = matches!(stage, Stage::Recording(..));
            recording && command.lane.is_some_and(|lane| is_lost(lost, lane, shown))
        })
    }

    /// The entry waits for its order again. The order, if it has to be asked for.
    pub(super) fn reopen(&mut self, key: CommandKey, place: usize) -> Option<OrderKey> {
        let command = self.commands.get_mut(&key)?;
        let (lane, since) = (command.lane?, command.since);
        let order_no = OrderNo::new(&command.entries[place].0).ok()?;
        // Another worker may have recorded what this command is told.
        if std::mem::take(&mut command.claimed) {
            self.claim(key, Vec::new());
        }
        let (order_key, is_new) = self.take_in_hand(since, lane, &order_no);
        self.commands.get_mut(&key)?.entries[place].1 = Stage::Open(order_key);
        let order = self.orders.get_mut(&order_key)?;
        order.waiters.push((key, place));
        match order.phase {
            // It waits in its lane for other commands, and is as lost for them.
            Phase::Waiting | Phase::Doubtful => self.leave_lane(order_key),
            Phase::Claiming if is_new => Some(order_key),
            // What is under way meets the same.
            Phase::Claiming | Phase::Elsewhere | Phase::InCall | Phase::Ending => None,
        }
    }

    /// The order goes on under another number, so that its lane knows it no more.
    fn leave_lane(&mut self, old: OrderKey) -> Option<OrderKey> {
        let new = OrderKey(self.number());
        let order = self.orders.remove(&old)?;
        for (command, place) in &order.waiters {
            if let Some(command) = self.commands.get_mut(command) {
                command.entries[*place].1 = Stage::Open(new);
            }
        }
        let name = (order.lane, order.order_no.clone());
        self.by_number.insert(name, new);
        self.orders.insert(new, order);
        self.lanes_are_stale = true;
        Some(new)
    }

    /// A list was not recorded as being sent, and so not sent, because these of its orders are
    /// `lost`. The others wait to be sent again.
    pub fn not_sent(&mut self, call: CallId, lost: &[(LaneId, OrderNo)]) {
        let Some((lane, keys)) = self.calls.remove(&call) else {
            debug_assert!(false, "no such call");
            return;
        };
        self.lanes[lane.0].call_not_made();
        let (mut again, mut anew) = (Vec::new(), Vec::new());
        for key in keys {
            let Some(order) = self.orders.get_mut(&key) else {
                continue;
            };
            if is_lost(lost, order.lane, order.order_no.as_str()) {
                anew.push(key);
            } else {
                order.phase = Phase::Waiting;
                order.tries.attempts -= 1;
                again.push(key);
            }
        }
        self.wait_again(lane, again);
        self.ask_anew(anew);
    }

    /// A list was neither recorded nor sent, because other workers make all the calls that may be
    /// made at present. It is planned again, for meanwhile a deadline may have passed.
    pub fn not_made(&mut self, call: CallId) {
        let Some((lane, keys)) = self.calls.remove(&call) else {
            debug_assert!(false, "no such call");
            return;
        };
        self.lanes[lane.0].call_not_made();
        for key in &keys {
            if let Some(order) = self.orders.get_mut(key) {
                order.phase = Phase::Waiting;
                order.on_record = order.before_call.0;
                order.tries.attempts -= 1;
            }
        }
        self.wait_again(lane, keys);
    }

    /// A look-up or a probe was not made, for the same reason.
    pub fn not_asked(&mut self, call: CallId) {
        let Some((lane, keys)) = self.calls.remove(&call) else {
            debug_assert!(false, "no such call");
            return;
        };
        let lane = &mut self.lanes[lane.0];
        let Some(key) = keys.first() else {
            return lane.probe_not_made();
        };
        lane.call_not_made();
        if let Some(order) = self.orders.get_mut(key) {
            order.phase = Phase::Doubtful;
            lane.look_up_again(*key);
        }
    }

    /// Orders of a list that was not sent; half of a refused list takes no others in now either.
    fn wait_again(&mut self, lane: LaneId, keys: Vec<OrderKey>) {
        let mut orders = keys.iter().filter_map(|key| self.orders.get(key));
        let is_half = orders.any(|order| order.before_call.1);
        let lane = &mut self.lanes[lane.0];
        if is_half {
            lane.send_half_again(keys);
        } else {
            lane.send_again(keys.into_iter());
        }
    }
}
