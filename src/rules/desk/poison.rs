//! Commands with which the worker dies: how they end, and whether one that is on trial still moves.

use std::sync::Arc;

use super::Desk;
use super::action::{CommandKey, Ticket};
use super::hand::{Open, Park, Phase, Stage};
use crate::rules::admit::{Admission, Envelope};
use crate::rules::lane::OrderKey;
use crate::rules::poison::Rest;
use crate::rules::time::{Mono, Now};

impl Desk {
    /// A delivery of a command that is given up: what is recorded of it is told, what is not ends
    /// as it stands, and it is dead-lettered unless all of it is settled.
    pub fn give_up(&mut self, now: Now, ticket: Ticket, redelivered: bool, admission: Admission) {
        self.arrive(now, ticket, redelivered, admission);
        let Some(key) = self.key_of(ticket) else {
            return;
        };
        if let Some(command) = self.commands.get_mut(&key) {
            command.given_up = true;
        }
        self.end_given_up(now, key);
    }

    /// A delivery that is dead-lettered unread. Nothing is told of it.
    pub fn bury(&mut self, now: Now, ticket: Ticket, envelope: Arc<Envelope>) {
        let key = CommandKey(self.number());
        self.commands.insert(
            key,
            Open {
                park: Park::Needed,
                unreadable: true,
                given_up: true,
                ..Open::decided(now, ticket, envelope)
            },
        );
        self.tell_decided([key].into_iter());
    }

    /// Before anything of it is sent: what the ledger tells is known, and the lanes are not asked
    /// yet.
    pub(super) fn end_given_up(&mut self, now: Now, key: CommandKey) {
        let Some(command) = self.commands.get(&key) else {
            return;
        };
        if !command.given_up || !command.claimed {
            return;
        }
        let open: Vec<OrderKey> = command.open_entries().map(|(order, _)| order).collect();
        for order_key in open {
            let Some(order) = self.orders.get(&order_key) else {
                continue;
            };
            match order.phase {
                // Of another command; its end is this one's too.
                Phase::Claiming | Phase::Elsewhere | Phase::InCall | Phase::Ending => {}
                Phase::Waiting | Phase::Doubtful => {
                    let ending = order.given_up();
                    self.retire(now, order_key, key, ending);
                }
            }
        }
    }

    /// How the command of this delivery fares.
    pub fn rest_of(&self, now: Mono, ticket: Ticket) -> Rest {
        match self.key_of(ticket).and_then(|key| self.commands.get(&key)) {
            None => Rest::Gone,
            Some(command) if self.rests(now, command) => Rest::Resting,
            Some(_) => Rest::Moving,
        }
    }

    /// Whether nothing in hand is on its way, or soon will be.
    pub fn is_still(&self, now: Mono) -> bool {
        self.calls.is_empty()
            && self.records.is_empty()
            && self.commands.values().all(|c| self.rests(now, c))
    }

    fn rests(&self, now: Mono, command: &Open) -> bool {
        let waits = |stage: &Stage| match stage {
            Stage::Open(order) => self.orders.get(order).is_none_or(|order| {
                let idle = matches!(order.phase, Phase::Waiting | Phase::Doubtful);
                order.phase == Phase::Elsewhere || idle && self.lanes[order.lane.0].is_blocked(now)
            }),
            Stage::Untold(_) | Stage::Confirmed => true,
            Stage::Decided(_) => command.ticket.is_none(),
            Stage::Recording(..) | Stage::Telling(_) => false,
        };
        let parking = command.park == Park::Parking
            || command.park == Park::Needed && !command.undelivered.contains(&None);
        let told = command.unconfirmed == 0;
        command.claimed
            && !(told && parking)
            && command.entries.iter().all(|(_, stage)| waits(stage))
    }

    fn key_of(&self, ticket: Ticket) -> Option<CommandKey> {
        let mut commands = self.commands.iter();
        commands.find_map(|(key, c)| (c.ticket == Some(ticket)).then_some(*key))
    }
}
