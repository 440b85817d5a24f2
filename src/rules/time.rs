//! Time as an argument. Rules never read a clock; the worker hands them a [`Now`].

use std::ops::Add;
use std::time::Duration;

use jiff::Timestamp;

/// A point on the worker's own clock: the time since it started. It never jumps, so pacing and
/// delays use it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Mono(pub Duration);

impl Mono {
    /// The time from `earlier` to here; zero when it is later.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Mono {
    type Output = Self;

    fn add(self, time: Duration) -> Self {
        Self(self.0.saturating_add(time))
    }
}

/// One instant on both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// For pacing and delays.
    pub mono: Mono,
    /// For deadlines, ages and records, which outlive the process.
    pub wall: Timestamp,
}

/// `at` moved by `time`, kept within what a timestamp can hold.
pub fn later(at: Timestamp, time: Duration) -> Timestamp {
    at.saturating_add(jiff::SignedDuration::try_from(time).unwrap_or(jiff::SignedDuration::MAX))
        .unwrap_or(Timestamp::MAX)
}

/// `at` moved back by `time`, kept within what a timestamp can hold.
pub fn earlier(at: Timestamp, time: Duration) -> Timestamp {
    at.saturating_sub(jiff::SignedDuration::try_from(time).unwrap_or(jiff::SignedDuration::MAX))
        .unwrap_or(Timestamp::MIN)
}
