//! What the operators' page shows of the last hour: how much was told and called, and the latest
//! outcomes. Of the worker's own time an event costs a lock that nobody waits for and a few counts.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;

use crate::rules::desk::Telling;
use crate::rules::order::Outcome;

/// One count's length, in seconds.
pub const STEP: i64 = 10;
/// Counts kept: an hour, and the one that is not over yet.
const STEPS: usize = 361;
/// Latest outcomes kept.
const LATEST: usize = 50;

/// How much happened in one step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// Seconds since 1970, divided by [`STEP`].
    pub step: i64,
    /// Orders told, in the sequence of [`Outcome::ALL`].
    pub told: [u32; 6],
    /// Calls that ended.
    pub calls: u32,
    /// Those of them that were to cancel.
    pub lists: u32,
    /// Orders that were in these.
    pub orders: u32,
}

#[derive(Debug, Default)]
struct Kept {
    counts: VecDeque<Count>,
    latest: VecDeque<(Timestamp, Telling)>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct History(Mutex<Kept>);

impl History {
    /// An event was handed to the broker.
    pub fn told(&self, telling: &Telling, at: Timestamp) {
        let outcome = telling.event.ending.outcome();
        let mut kept = self.kept();
        let place = Outcome::ALL.iter().position(|one| *one == outcome);
        let count = kept.count(at);
        if let Some(told) = place.and_then(|place| count.told.get_mut(place)) {
            *told = told.saturating_add(1);
        }
        if kept.latest.len() >= LATEST {
            kept.latest.pop_back();
        }
        kept.latest.push_front((at, telling.clone()));
    }

    /// A call ended that was to cancel so many orders; none when it was another one.
    pub fn called(&self, orders: usize, at: Timestamp) {
        let mut kept = self.kept();
        let count = kept.count(at);
        count.calls = count.calls.saturating_add(1);
        count.lists = count.lists.saturating_add(u32::from(orders > 0));
        let orders = u32::try_from(orders).unwrap_or(u32::MAX);
        count.orders = count.orders.saturating_add(orders);
    }

    /// The counts of the last hour, the oldest first; steps in which nothing happened are left out.
    pub fn counts(&self, now: Timestamp) -> Vec<Count> {
        let first = step(now) - STEPS as i64 + 1;
        let kept = self.kept();
        let counts = kept.counts.iter().filter(|count| count.step >= first);
        counts.copied().collect()
    }

    /// The latest outcomes, the last first.
    pub fn latest(&self) -> Vec<(Timestamp, Telling)> {
        self.kept().latest.iter().cloned().collect()
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Kept> {
        // Nothing panics while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn count(&mut self, at: Timestamp) -> &mut Count {
        // A clock that was put back adds to the last one.
        let step = step(at).max(self.counts.back().map_or(0, |last| last.step));
        if self.counts.back().is_none_or(|last| last.step != step) {
            if self.counts.len() >= STEPS {
                self.counts.pop_front();
            }
            self.counts.push_back(Count {
                step,
                ..Count::default()
            });
        }
        let last = self.counts.len() - 1;
        &mut self.counts[last]
    }
}

fn step(at: Timestamp) -> i64 {
    at.as_second().div_euclid(STEP)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_hour_is_kept_and_no_more() {
        let history = History::default();
        let at = |second| Timestamp::from_second(second).expect("a time");
        for second in 0..5000 {
            history.called(2, at(second));
        }
        let counts = history.counts(at(4999));
        assert_eq!(counts.len(), STEPS);
        assert!(counts.iter().all(|c| (c.calls, c.orders) == (10, 20)));
        history.called(1, at(100));
        assert_eq!(history.counts(at(4999)).last().map(|c| c.calls), Some(11));
        assert_eq!(history.counts(at(8000)).len(), 60);
    }
}
