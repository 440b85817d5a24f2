//! Poison commands: one with which the worker dies each time it is given out.
//!
//! After [`DEATHS`] runs in a row that died, a delivery that the broker gave out [`SUSPECT`] times
//! or more is a suspect. Suspects are opened one at a time, when nothing else is in motion, each
//! after a durable mark that its *trial* has begun; everything else waits unopened meanwhile. So a
//! run that dies again tells which command it died with. One that was on trial in [`TRIALS`] such
//! runs is *given up*: it is told as it stands and dead-lettered. If even that kills the worker, it
//! is *buried*: dead-lettered as it came, unread.
//!
//! An operator's kill, or a machine without memory, may strike an innocent command; it takes as
//! many in a row, each within that command's trial, before one is given up, and then it is told
//! truthfully and can be sent again.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use super::desk::Ticket;
use super::time::Mono;

/// So many runs in a row have died before anything is suspected: one may be an accident.
pub const DEATHS: u32 = 3;
/// Deliveries of one command from which on it is a suspect: it was in hand in each of those runs.
pub const SUSPECT: u64 = 3;
/// A delivery waits unopened at most this long and then goes back to the queue: opened, it may be
/// held for 20 minutes more, and the broker closes a channel that holds one for 30.
pub const UNOPENED_MAX: Duration = Duration::from_secs(5 * 60);
/// A run that lives this long has survived what it has in hand.
pub const SURVIVED: Duration = Duration::from_secs(10 * 60);
/// Runs that began longer ago than this count no more: a death a day is not the commands' fault.
pub const REMEMBERED: Duration = Duration::from_secs(60 * 60);
/// Trials of one command that ended with the worker's death, before it is given up.
pub const TRIALS: u32 = 5;
/// A trial takes at most this long; whatever the command waits for then, the worker outlives it.
const TRIAL_MAX: Duration = Duration::from_secs(60);
/// A trial waits at most this long until nothing else is in motion.
const STILLNESS_MAX: Duration = Duration::from_secs(10);

/// Of a command's id and body: the same delivery has the same one in every run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest(pub [u8; 16]);

/// What is durable of earlier runs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Past {
    /// Runs in a row that died, up to the last one.
    pub deaths: u32,
    /// Trials that ended with the worker's death, by command.
    pub trials: Vec<(Digest, u32)>,
}

/// How a delivery is to be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// As any other.
    AsUsual,
    /// Nothing is sent for it: it is told as it stands, and dead-lettered.
    GiveUp,
    /// It is dead-lettered unread, and nothing is told.
    Bury,
}

/// How a command that was opened fares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rest {
    /// It is finished, or has gone back.
    Gone,
    /// Something of it is on its way, or soon will be.
    Moving,
    /// It waits for an account that cannot be called, or for a queue.
    Resting,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Open this delivery.
    Open(Ticket, Manner),
    /// Record durably that the trial begins; [`Gate::marked`] answers.
    Mark(Digest),
    /// Record that the trial is over; `true` when the command is finished.
    Over(Digest, bool),
    /// Give this unopened delivery back to the queue.
    Return(Ticket),
}

/// A delivery that is not opened yet.
#[derive(Debug, Clone, Copy)]
struct Parcel {
    ticket: Ticket,
    arrived: Mono,
}

#[derive(Debug, Clone, Copy)]
enum Trial {
    None,
    /// Its mark is on its way to the ledger; no parcel when that was lost with its session.
    Marking(Option<Ticket>, Digest),
    Running(Ticket, Digest, Mono),
}

/// Deliveries pass here before they are opened.
#[derive(Debug)]
pub struct Gate {
    careful: bool,
    trials: HashMap<Digest, u32>,
    suspects: VecDeque<(Parcel, Digest)>,
    others: VecDeque<Parcel>,
    trial: Trial,
}

impl Gate {
    /// Careful, if the past gives reason.
    pub fn new(past: Past) -> Self {
        Self {
            careful: past.deaths >= DEATHS,
            trials: past.trials.into_iter().collect(),
            suspects: VecDeque::new(),
            others: VecDeque::new(),
            trial: Trial::None,
        }
    }

    /// The last runs died, and this one may.
    pub fn is_careful(&self) -> bool {
        self.careful
    }

    /// The worker lived long enough; no more is suspected.
    pub fn survived(&mut self) {
        self.careful = false;
    }

    /// A delivery, the `given_out`-th of its command. Whether it is to be opened at once; otherwise
    /// it waits here.
    #[must_use]
    pub fn arrive(
        &mut self,
        now: Mono,
        ticket: Ticket,
        given_out: u64,
        digest: impl FnOnce() -> Digest,
    ) -> bool {
        let parcel = Parcel {
            ticket,
            arrived: now,
        };
        if self.careful && given_out >= SUSPECT {
            self.suspects.push_back((parcel, digest()));
            return false;
        }
        if self.is_open() {
            return true;
        }
        self.others.push_back(parcel);
        false
    }

    /// Nothing is on trial or waits for one.
    fn is_open(&self) -> bool {
        self.suspects.is_empty() && matches!(self.trial, Trial::None)
    }

    /// What is to be done now. `rest` tells how an opened delivery fares, `is_still` whether
    /// nothing at all is in motion.
    pub fn turn(
        &mut self,
        now: Mono,
        rest: impl FnOnce(Ticket) -> Rest,
        is_still: impl FnOnce() -> bool,
    ) -> Vec<Step> {
        let mut steps = Vec::new();
        if let Trial::Running(ticket, digest, since) = self.trial {
            let rest = rest(ticket);
            if rest == Rest::Moving && now.since(since) < TRIAL_MAX {
                return steps;
            }
            self.trial = Trial::None;
            steps.push(self.over(digest, rest == Rest::Gone));
        }
        if !matches!(self.trial, Trial::None) {
            return steps;
        }
        match self.suspects.front() {
            Some((parcel, digest)) => {
                let (ticket, digest) = (parcel.ticket, *digest);
                if is_still() || now.since(parcel.arrived) >= STILLNESS_MAX {
                    self.suspects.pop_front();
                    self.trial = Trial::Marking(Some(ticket), digest);
                    steps.push(Step::Mark(digest));
                }
            }
            None => {
                let opened = self.others.drain(..);
                steps.extend(opened.map(|parcel| Step::Open(parcel.ticket, Manner::AsUsual)));
            }
        }
        steps
    }

    /// The mark is durable: the trial begins.
    pub fn marked(&mut self, now: Mono) -> Option<Step> {
        let Trial::Marking(ticket, digest) = self.trial else {
            debug_assert!(false, "a mark that nobody asked for");
            return None;
        };
        let Some(ticket) = ticket else {
            self.trial = Trial::None;
            return Some(Step::Over(digest, false));
        };
        self.trial = Trial::Running(ticket, digest, now);
        let died = self.trials.get(&digest).copied().unwrap_or(0);
        let manner = match died {
            0..TRIALS => Manner::AsUsual,
            TRIALS => Manner::GiveUp,
            _ => Manner::Bury,
        };
        Some(Step::Open(ticket, manner))
    }

    fn over(&mut self, digest: Digest, is_finished: bool) -> Step {
        if is_finished {
            self.trials.remove(&digest);
        }
        Step::Over(digest, is_finished)
    }

    /// The broker is lost: unopened deliveries come again, and so does the one on trial.
    pub fn session_lost(&mut self) -> Option<Step> {
        self.suspects.clear();
        self.others.clear();
        match &mut self.trial {
            Trial::None => None,
            Trial::Marking(ticket, _) => {
                *ticket = None;
                None
            }
            Trial::Running(_, digest, _) => {
                let digest = *digest;
                self.trial = Trial::None;
                Some(Step::Over(digest, false))
            }
        }
    }

    /// Unopened deliveries that have waited for `hold`, to be given back: the broker closes a
    /// channel that holds one for long. With a `hold` of zero, all of them.
    pub fn give_back(&mut self, now: Mono, hold: Duration) -> Vec<Step> {
        let mut back = Vec::new();
        while let Some((parcel, _)) = self.suspects.front()
            && now.since(parcel.arrived) >= hold
        {
            back.push(Step::Return(parcel.ticket));
            self.suspects.pop_front();
        }
        while let Some(parcel) = self.others.front()
            && now.since(parcel.arrived) >= hold
        {
            back.push(Step::Return(parcel.ticket));
            self.others.pop_front();
        }
        back
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POISON: Digest = Digest([1; 16]);
    const GOOD: Digest = Digest([2; 16]);

    fn at(seconds: u64) -> Mono {
        Mono(Duration::from_secs(seconds))
    }

    fn gate(deaths: u32, died: u32) -> Gate {
        Gate::new(Past {
            deaths,
            trials: vec![(POISON, died)],
        })
    }

    fn suspect(gate: &mut Gate, ticket: u64, digest: Digest) {
        assert!(!gate.arrive(at(0), Ticket(ticket), SUSPECT, || digest));
    }

    fn turn(gate: &mut Gate, now: Mono, rest: Rest, is_still: bool) -> Vec<Step> {
        gate.turn(now, |_| rest, || is_still)
    }

    #[test]
    fn few_deaths_or_few_deliveries_raise_no_suspicion() {
        let never = || unreachable!("nothing is suspected");
        assert!(gate(DEATHS - 1, 9).arrive(at(0), Ticket(1), 100, never));
        assert!(gate(DEATHS, 9).arrive(at(0), Ticket(1), SUSPECT - 1, never));
        let mut survivor = gate(DEATHS, 9);
        survivor.survived();
        assert!(survivor.arrive(at(0), Ticket(1), 100, never));
    }

    #[test]
    fn suspects_are_opened_one_at_a_time_and_the_others_after_them() {
        let mut gate = gate(DEATHS, 0);
        suspect(&mut gate, 1, GOOD);
        assert!(!gate.arrive(at(0), Ticket(2), 0, || GOOD));
        suspect(&mut gate, 3, POISON);
        assert_eq!(
            turn(&mut gate, at(0), Rest::Moving, true),
            [Step::Mark(GOOD)]
        );
        assert_eq!(turn(&mut gate, at(0), Rest::Moving, true), []);
        let first = gate.marked(at(0));
        assert_eq!(first, Some(Step::Open(Ticket(1), Manner::AsUsual)));
        assert_eq!(turn(&mut gate, at(1), Rest::Moving, true), []);
        let next = turn(&mut gate, at(2), Rest::Gone, true);
        assert_eq!(next, [Step::Over(GOOD, true), Step::Mark(POISON)]);
        let second = gate.marked(at(2));
        assert_eq!(second, Some(Step::Open(Ticket(3), Manner::AsUsual)));
        let rest = turn(&mut gate, at(3), Rest::Resting, true);
        let others = Step::Open(Ticket(2), Manner::AsUsual);
        assert_eq!(rest, [Step::Over(POISON, false), others]);
        assert!(gate.arrive(at(4), Ticket(4), 0, || GOOD));
    }

    #[test]
    fn a_trial_begins_when_all_is_still_or_after_a_while_and_does_not_last_for_ever() {
        let mut gate = gate(DEATHS, 0);
        suspect(&mut gate, 1, GOOD);
        assert_eq!(turn(&mut gate, at(9), Rest::Gone, false), []);
        assert_eq!(
            turn(&mut gate, at(10), Rest::Gone, false),
            [Step::Mark(GOOD)]
        );
        assert!(gate.marked(at(10)).is_some());
        assert_eq!(turn(&mut gate, at(69), Rest::Moving, false), []);
        let over = turn(&mut gate, at(70), Rest::Moving, false);
        assert_eq!(over, [Step::Over(GOOD, false)]);
    }

    #[test]
    fn the_manner_follows_from_the_trials_that_ended_in_death() {
        for (died, manner) in [
            (0, Manner::AsUsual),
            (TRIALS - 1, Manner::AsUsual),
            (TRIALS, Manner::GiveUp),
            (TRIALS + 1, Manner::Bury),
            (u32::MAX, Manner::Bury),
        ] {
            let mut gate = gate(DEATHS, died);
            suspect(&mut gate, 1, POISON);
            assert_eq!(
                turn(&mut gate, at(0), Rest::Gone, true),
                [Step::Mark(POISON)]
            );
            assert_eq!(gate.marked(at(0)), Some(Step::Open(Ticket(1), manner)));
        }
    }

    #[test]
    fn a_lost_session_takes_everything_with_it() {
        let mut gate = gate(DEATHS, 0);
        suspect(&mut gate, 1, POISON);
        suspect(&mut gate, 2, GOOD);
        assert_eq!(
            turn(&mut gate, at(0), Rest::Gone, true),
            [Step::Mark(POISON)]
        );
        assert_eq!(gate.session_lost(), None);
        assert_eq!(gate.give_back(at(1), Duration::ZERO), []);
        assert_eq!(gate.marked(at(1)), Some(Step::Over(POISON, false)));
        suspect(&mut gate, 3, POISON);
        assert_eq!(
            turn(&mut gate, at(1), Rest::Gone, true),
            [Step::Mark(POISON)]
        );
        assert!(gate.marked(at(1)).is_some());
        assert_eq!(gate.session_lost(), Some(Step::Over(POISON, false)));
        assert!(gate.arrive(at(2), Ticket(4), 0, || GOOD));
    }

    #[test]
    fn what_waits_unopened_for_long_goes_back() {
        let mut gate = gate(DEATHS, 0);
        suspect(&mut gate, 1, POISON);
        assert!(!gate.arrive(at(5), Ticket(2), 0, || GOOD));
        assert_eq!(gate.give_back(at(4), Duration::from_secs(5)), []);
        let back = gate.give_back(at(5), Duration::from_secs(5));
        assert_eq!(back, [Step::Return(Ticket(1))]);
        let back = gate.give_back(at(5), Duration::ZERO);
        assert_eq!(back, [Step::Return(Ticket(2))]);
    }
}
