//! From a durable ending to the acknowledgement.
//!
//! An event that no queue takes is not lost: its delivery stays unacknowledged, and the event is
//! tried again slowly. Should the delivery go back to the queue meanwhile, the ledger tells the
//! same again.
//!
//! What ended unsettled may have been tried again by another worker, for the same command sent again.
//! So where it was not told at once, the ledger is asked first whether it is still the last word
//! ([`Desk::ask_whether_it_stands`]). What is settled stands for ever.

use std::sync::Arc;
use std::time::Duration;

use super::Desk;
use super::action::{Action, CommandKey, Event, Fate, Finished, LaneId, Parking, Telling};
use super::hand::{Park, Stage, Told};
use crate::rules::order::{CommandId, Outcome};
use crate::rules::time::Mono;

/// A redelivered command is known by its id if it comes back within this time after the broker was
/// lost; later it is told from the ledger.
const ORPHANS_KEPT: Duration = Duration::from_secs(600);
/// How many waiting events are tried again in one sweep.
const UNTOLD_RETRIED: usize = 500;

/// An event that is not confirmed yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OnItsWay<'a> {
    /// The account, where the settings know it.
    pub lane: Option<LaneId>,
    /// The command.
    pub command_id: &'a CommandId,
    /// The order; absent when the event tells of the command as a whole.
    pub order_no: Option<&'a Arc<str>>,
    /// What it tells.
    pub outcome: Outcome,
    /// It was told before, or decided before this command.
    pub replayed: bool,
}

impl Desk {
    /// Publishes what is durable and not yet told, of commands that can be answered; finishes those
    /// of which everything is told.
    pub(super) fn tell_decided(&mut self, keys: impl Iterator<Item = CommandKey>) {
        for key in keys {
            let Some(command) = self.commands.get(&key) else {
                continue;
            };
            if command.ticket.is_none() {
                continue;
            }
            let waiting: Vec<usize> = command
                .entries
                .iter()
                .enumerate()
                .filter(|(_, (_, stage))| match stage {
                    Stage::Decided(told) => command.claimed || told.is_settled(),
                    Stage::Open(_)
                    | Stage::Recording(..)
                    | Stage::Telling(_)
                    | Stage::Untold(_)
                    | Stage::Confirmed => false,
                })
                .map(|(place, _)| place)
                .collect();
            for place in waiting {
                self.tell(key, place);
            }
            self.finish(key);
        }
    }

    fn tell(&mut self, key: CommandKey, place: usize) {
        let account = self
            .commands
            .get(&key)
            .and_then(|c| c.lane)
            .map(|lane| self.account(lane).clone());
        let Some(command) = self.commands.get_mut(&key) else {
            return;
        };
        let Some(ticket) = command.ticket else {
            return;
        };
        let total = command.entries.len();
        let (shown, stage) = &mut command.entries[place];
        let (Stage::Decided(told) | Stage::Untold(told)) = &*stage else {
            return;
        };
        let Told {
            ending,
            attempts,
            replayed,
            occurred_at,
        } = told.clone();
        *stage = Stage::Telling(told.clone());
        self.actions.push(Action::Tell(Telling {
            command: key,
            place,
            ticket,
            envelope: Arc::clone(&command.envelope),
            event: Event {
                account,
                account_shown: Arc::clone(&command.account),
                order_no: (!command.unreadable).then(|| Arc::clone(shown)),
                ending,
                attempts,
                replayed: replayed || command.repeats.contains(&place),
                index: place,
                total,
                occurred_at,
            },
        }));
    }

    /// What an event on its way says, and of which order, for the record that it was confirmed.
    pub fn telling(&self, key: CommandKey, place: usize) -> Option<OnItsWay<'_>> {
        let command = self.commands.get(&key)?;
        let (shown, stage) = command.entries.get(place)?;
        let Stage::Telling(told) = stage else {
            return None;
        };
        Some(OnItsWay {
            lane: command.lane,
            command_id: &command.envelope.command_id,
            order_no: (!command.unreadable).then_some(shown),
            outcome: told.ending.outcome(),
            replayed: told.replayed || command.repeats.contains(&place),
        })
    }

    /// Whose command is on its way to the dead-letter queue.
    pub fn parking(&self, key: CommandKey) -> Option<(Option<LaneId>, &CommandId)> {
        let command = self.commands.get(&key)?;
        (command.park == Park::Parking).then_some((command.lane, &command.envelope.command_id))
    }

    /// What became of an event.
    pub fn told(&mut self, now: Mono, key: CommandKey, place: usize, fate: Fate) {
        let Some(command) = self.commands.get_mut(&key) else {
            return;
        };
        let stage = &mut command.entries[place].1;
        let Stage::Telling(told) = &*stage else {
            return;
        };
        match fate {
            Fate::Confirmed => {
                if !told.is_settled() && command.park == Park::NotNeeded {
                    command.park = Park::Needed;
                }
                *stage = Stage::Confirmed;
                command.undelivered.remove(&Some(place));
                command.unconfirmed -= 1;
                self.finish(key);
            }
            // A loss may be heard of only when the delivery has come again and the event is on its
            // way for the second time, so it is told once more.
            Fate::Unroutable | Fate::Refused | Fate::Lost => {
                *stage = Stage::Untold(told.clone());
                command.undelivered.insert(Some(place));
                let at = now + self.policy.untold_pause;
                self.untold.push_back((at, key, Some(place)));
            }
        }
    }

    fn finish(&mut self, key: CommandKey) {
        let Some(command) = self.commands.get_mut(&key).filter(|c| c.unconfirmed == 0) else {
            return;
        };
        let Some(ticket) = command.ticket else {
            return;
        };
        match command.park {
            Park::Parking => {}
            Park::Needed => {
                command.park = Park::Parking;
                let why = if command.given_up {
                    "poison"
                } else if command.unreadable {
                    "unreadable"
                } else {
                    "unsettled"
                };
                self.actions.push(Action::Park(Parking {
                    command: key,
                    ticket,
                    envelope: Arc::clone(&command.envelope),
                    account: Arc::clone(&command.account),
                    why,
                }));
            }
            Park::NotNeeded | Park::Parked => {
                let was_parked = command.park == Park::Parked;
                self.remove_command(key);
                self.actions
                    .push(Action::Acknowledge(Finished { ticket, was_parked }));
            }
        }
    }

    /// What became of a copy for the dead-letter queue.
    pub fn parked(&mut self, now: Mono, key: CommandKey, fate: Fate) {
        let Some(command) = self.commands.get_mut(&key) else {
            return;
        };
        match fate {
            Fate::Confirmed => {
                command.park = Park::Parked;
                command.undelivered.remove(&None);
                self.finish(key);
            }
            Fate::Unroutable | Fate::Refused | Fate::Lost if command.park == Park::Parking => {
                command.park = Park::Needed;
                command.undelivered.insert(None);
                let at = now + self.policy.untold_pause;
                self.untold.push_back((at, key, None));
            }
            // Of a session that is lost: another copy is due already.
            Fate::Unroutable | Fate::Refused | Fate::Lost => {}
        }
    }

    pub(super) fn retry_untold(&mut self, now: Mono) {
        for _ in 0..UNTOLD_RETRIED {
            match self.untold.front() {
                Some((at, _, _)) if *at <= now => {}
                _ => return,
            }
            let Some((_, key, place)) = self.untold.pop_front() else {
                return;
            };
            match place {
                Some(place) => self.tell_again(key, place),
                None => self.finish(key),
            }
        }
    }

    fn tell_again(&mut self, key: CommandKey, place: usize) {
        let Some(command) = self.commands.get_mut(&key) else {
            return;
        };
        let stage = &mut command.entries[place].1;
        if let Stage::Untold(told) = stage
            && !told.is_settled()
        {
            *stage = Stage::Decided(told.clone());
            return self.ask_whether_it_stands(key);
        }
        self.tell(key, place);
    }

    /// What this command was not told at once, and is not settled, waits until the ledger has said
    /// what is recorded by now.
    pub(super) fn ask_whether_it_stands(&mut self, key: CommandKey) {
        let Some(command) = self.commands.get_mut(&key) else {
            return;
        };
        let unsettled = |stage: &Stage| matches!(stage, Stage::Decided(t) if !t.is_settled());
        if command.entries.iter().any(|(_, stage)| unsettled(stage))
            && std::mem::take(&mut command.claimed)
        {
            self.claim(key, Vec::new());
        }
    }

    /// The broker is lost, and every delivery with it: each comes again, to us or to another
    /// worker. Calls and records go on.
    pub fn session_lost(&mut self, now: Mono) {
        self.untold.clear();
        let mut gone = Vec::new();
        for (key, command) in &mut self.commands {
            command.ticket = None;
            command.orphaned_at = Some(now);
            command.undelivered.clear();
            if command.park == Park::Parking {
                command.park = Park::Needed;
            }
            for (_, stage) in &mut command.entries {
                if let Stage::Telling(told) | Stage::Untold(told) = stage {
                    *stage = Stage::Decided(told.clone());
                }
            }
            if command.fingerprint.is_none() {
                gone.push(*key);
            }
        }
        for key in gone {
            self.remove_command(key);
        }
    }

    /// Commands that did not come again need no memory: what is durable is told from the ledger.
    pub(super) fn drop_orphans(&mut self, now: Mono) {
        let done: Vec<CommandKey> = self
            .commands
            .iter()
            .filter(|(_, c)| {
                let kept = if c.envelope.id_is_ours {
                    Duration::ZERO
                } else {
                    ORPHANS_KEPT
                };
                let is_over = c.orphaned_at.is_some_and(|at| now.since(at) >= kept);
                is_over
                    && c.entries.iter().all(|(_, stage)| match stage {
                        Stage::Open(_) | Stage::Recording(..) => false,
                        Stage::Decided(_)
                        | Stage::Telling(_)
                        | Stage::Untold(_)
                        | Stage::Confirmed => true,
                    })
            })
            .map(|(key, _)| *key)
            .collect();
        for key in done {
            self.remove_command(key);
        }
    }
}
