//! May a call be made now? The gateway counts an account's calls in a minute and refuses more.
//!
//! A call's place in the minute is given back 60 s after the call *ended*: the gateway counted it
//! before it answered, so by then its own minute has passed whatever the network did. So there are
//! never more than `per_minute` calls in any 60 seconds as the gateway sees them.
//!
//! Half of the minute's calls may be spent in a burst, so that a lone order goes at once; the rest
//! are spread evenly, so that nobody waits most of a minute after a burst, and orders that arrive
//! meanwhile share calls.
//!
//! The answer is "go" or "wait until"; nothing here sleeps.

use std::collections::VecDeque;
use std::time::Duration;

use super::time::Mono;

/// The gateway's window: calls a minute.
const WINDOW: Duration = Duration::from_secs(60);
/// Added to the window: the gateway's clock may tick coarser than ours.
const WINDOW_MARGIN: Duration = Duration::from_millis(5);
/// Added for a call of an earlier run. Of it is known when it was decided, not when the gateway
/// counted it: the ledger's commit, a connection and the way there lie between.
const EARLIER_RUN_MARGIN: Duration = Duration::from_secs(2);

/// Whether a call may be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Leave {
    /// Now.
    Go,
    /// Not before this time.
    Wait(Mono),
    /// Not before a call in flight has ended.
    Full,
}

/// One account's calls: how many a minute, how many at once.
#[derive(Debug, Clone)]
pub struct Pace {
    per_minute: usize,
    concurrency: usize,
    in_flight: usize,
    /// When each ended call's place is free again, earliest first. At most `per_minute` long.
    freed_at: VecDeque<Mono>,
    /// The time that spread calls are due, one `gap` after the other.
    due: Mono,
}

impl Pace {
    /// `per_minute` 0 is no limit; `concurrency` is at least 1.
    pub fn new(per_minute: u32, concurrency: u32) -> Self {
        Self {
            per_minute: per_minute as usize,
            concurrency: concurrency.max(1) as usize,
            in_flight: 0,
            freed_at: VecDeque::new(),
            due: Mono::default(),
        }
    }

    /// Other bounds from now on. Under a limit where there was none nothing is called for a minute,
    /// for nobody counted what was called before.
    pub fn adjust(&mut self, now: Mono, per_minute: u32, concurrency: u32) {
        let before = std::mem::replace(&mut self.per_minute, per_minute as usize);
        self.concurrency = concurrency.max(1) as usize;
        match (before, self.per_minute) {
            (_, 0) => self.freed_at.clear(),
            (0, limit) => {
                let free = now + WINDOW + WINDOW_MARGIN;
                self.freed_at = std::iter::repeat_n(free, limit).collect();
            }
            _ => {}
        }
    }

    /// A call that was decided `ago` before `now` by an earlier run of the worker still counts.
    pub fn remember(&mut self, now: Mono, ago: Duration) {
        let left = (WINDOW + EARLIER_RUN_MARGIN).saturating_sub(ago);
        if self.per_minute > 0 && !left.is_zero() {
            self.freed_at.push_back(now + left);
        }
    }

    /// May a call be made now?
    pub fn ask(&mut self, now: Mono) -> Leave {
        if self.in_flight >= self.concurrency {
            return Leave::Full;
        }
        if self.per_minute == 0 {
            return Leave::Go;
        }
        while self.freed_at.front().is_some_and(|at| *at <= now) {
            self.freed_at.pop_front();
        }
        let used = self.freed_at.len() + self.in_flight;
        if used >= self.per_minute {
            return match self.freed_at.front() {
                Some(at) => Leave::Wait(*at),
                None => Leave::Full,
            };
        }
        if used * 2 >= self.per_minute && now < self.due {
            return Leave::Wait(self.due);
        }
        Leave::Go
    }

    /// A call is being made. Call it only after [`Leave::Go`] at the same time.
    pub fn began(&mut self, now: Mono) {
        self.in_flight += 1;
        if self.per_minute > 0 {
            let gap = self.gap();
            // From when it was due, not from now, or every late timer would cost a little of the
            // rate; but a pause is not made up for.
            let behind = Mono(now.0.saturating_sub(gap));
            self.due = self.due.max(behind) + gap;
        }
    }

    /// The call that just began is not made after all, so it takes no place in the minute.
    pub fn undo_began(&mut self) {
        debug_assert!(self.in_flight > 0, "no call began");
        self.in_flight = self.in_flight.saturating_sub(1);
        self.due = Mono(self.due.0.saturating_sub(self.gap()));
    }

    /// A call has ended, however it did.
    pub fn ended(&mut self, now: Mono) {
        debug_assert!(self.in_flight > 0, "a call ended that never began");
        self.in_flight = self.in_flight.saturating_sub(1);
        if self.per_minute > 0 {
            self.freed_at.push_back(now + WINDOW + WINDOW_MARGIN);
        }
    }

    /// Between calls that are spread evenly; nothing where there is no limit.
    fn gap(&self) -> Duration {
        match u32::try_from(self.per_minute).unwrap_or(u32::MAX) {
            0 => Duration::ZERO,
            per_minute => WINDOW / per_minute,
        }
    }

    /// Calls of the minute that are used.
    pub fn used(&self, now: Mono) -> usize {
        let past = self.freed_at.iter().filter(|at| **at > now).count();
        past + self.in_flight
    }

    /// Calls that a minute has; 0 is no limit.
    pub fn per_minute(&self) -> usize {
        self.per_minute
    }

    /// Calls in flight.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Mono {
        Mono(Duration::from_millis(millis))
    }

    /// Makes a call whenever it may, each taking `latency`; the times the calls began, up to `end`.
    fn run(pace: &mut Pace, latency: u64, end: u64) -> Vec<u64> {
        let mut began = Vec::new();
        let mut ends = VecDeque::new();
        let mut now = 0;
        while now < end {
            while ends.front().is_some_and(|t| *t <= now) {
                ends.pop_front();
                pace.ended(at(now));
            }
            now = match pace.ask(at(now)) {
                Leave::Go => {
                    pace.began(at(now));
                    began.push(now);
                    ends.push_back(now + latency);
                    now
                }
                Leave::Wait(Mono(until)) => {
                    let until = u64::try_from(until.as_micros().div_ceil(1000)).unwrap();
                    ends.front().map_or(until, |t| until.min(*t)).max(now + 1)
                }
                Leave::Full => *ends.front().expect("full means a call is in flight"),
            };
        }
        began
    }

    fn most_in_a_minute(times: &[u64]) -> usize {
        times
            .iter()
            .map(|t| {
                times
                    .iter()
                    .filter(|u| (*t..*t + 60_000).contains(*u))
                    .count()
            })
            .max()
            .unwrap_or(0)
    }

    #[test]
    fn other_bounds_hold_at_once_and_forget_no_call() {
        let mut pace = Pace::new(60, 1);
        assert_eq!(run(&mut pace, 0, 1).len(), 30);
        pace.adjust(at(1), 40, 1);
        // Thirty were made, half of forty may go in a burst, so the rest is spread.
        assert!(matches!(pace.ask(at(1)), Leave::Wait(_)));
        pace.adjust(at(1), 30, 1);
        assert!(matches!(pace.ask(at(1)), Leave::Wait(until) if until >= at(60_000)));
        pace.adjust(at(1), 0, 2);
        assert_eq!(pace.ask(at(1)), Leave::Go);
        pace.began(at(1));
        pace.ended(at(2));
        pace.adjust(at(2), 1_000, 2);
        assert!(matches!(pace.ask(at(2)), Leave::Wait(until) if until >= at(60_000)));
        assert_eq!(pace.ask(at(70_000)), Leave::Go);
        pace.began(at(70_000));
        pace.adjust(at(70_000), 1_000, 1);
        assert_eq!(pace.ask(at(70_000)), Leave::Full);
    }

    #[test]
    fn no_limit_is_no_limit_but_for_concurrency() {
        let mut pace = Pace::new(0, 2);
        assert_eq!(pace.ask(at(0)), Leave::Go);
        pace.began(at(0));
        assert_eq!(pace.ask(at(0)), Leave::Go);
        pace.began(at(0));
        assert_eq!(pace.ask(at(0)), Leave::Full);
        pace.ended(at(1));
        assert_eq!(pace.ask(at(1)), Leave::Go);
    }

    #[test]
    fn never_more_than_the_limit_in_any_minute_and_nearly_all_of_it() {
        for (per_minute, concurrency, latency) in [
            (60, 2, 20),
            (60, 2, 0),
            (60, 2, 400),
            (1, 1, 50),
            (55, 4, 900),
            (600, 2, 100),
        ] {
            let times = run(&mut Pace::new(per_minute, concurrency), latency, 600_000);
            assert!(
                most_in_a_minute(&times) <= per_minute as usize,
                "{per_minute}/min"
            );
            let possible = f64::from(per_minute) * 10.0;
            let share = times.len() as f64 / possible;
            assert!(share >= 0.98, "{per_minute}/min, {latency} ms: {share}");
        }
    }

    #[test]
    fn half_the_minute_goes_at_once_and_the_rest_is_spread() {
        let times = run(&mut Pace::new(60, 2), 1, 60_000);
        assert!(times[29] < 100, "a burst of half: {times:?}");
        assert!(
            times[30] >= 900 && times[59] >= 29_000,
            "then one a second: {times:?}"
        );
        assert_eq!(times.len(), 60);
    }

    #[test]
    fn a_call_that_is_not_made_costs_nothing() {
        let mut pace = Pace::new(2, 1);
        for _ in 0..100 {
            assert_eq!(pace.ask(at(0)), Leave::Go);
            pace.began(at(0));
            pace.undo_began();
        }
        assert_eq!(run(&mut pace, 1, 60_000).len(), 2);
    }

    #[test]
    fn an_earlier_run_counts() {
        let mut pace = Pace::new(2, 2);
        pace.remember(at(0), Duration::from_secs(50));
        pace.remember(at(0), Duration::from_secs(20));
        pace.remember(at(0), Duration::from_secs(62));
        assert_eq!(pace.ask(at(0)), Leave::Wait(at(12_000)));
    }
}
