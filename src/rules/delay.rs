//! How long to wait before trying again: exponential, with full jitter.
//!
//! The one place that knows the `backoff` crate. It is unmaintained, so it only computes the
//! ceilings here; it neither sleeps nor draws chance, which comes as an argument.

use std::time::Duration;

use backoff::ExponentialBackoff;
use backoff::backoff::Backoff;

/// A series of ceilings: `first`, doubled each time, never above `most`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delays {
    /// The first ceiling.
    pub first: Duration,
    /// The highest ceiling.
    pub most: Duration,
}

/// After this many doublings every series here has met its highest ceiling, so counting on is
/// wasted.
const DOUBLINGS_MAX: u32 = 32;

impl Delays {
    /// The ceiling of the `failures`-th failure in a row, from 1.
    pub fn ceiling(self, failures: u32) -> Duration {
        let mut backoff = ExponentialBackoff {
            current_interval: self.first,
            initial_interval: self.first,
            randomization_factor: 0.0,
            multiplier: 2.0,
            max_interval: self.most,
            max_elapsed_time: None,
            ..ExponentialBackoff::default()
        };
        let mut ceiling = self.first;
        for _ in 0..failures.clamp(1, DOUBLINGS_MAX) {
            ceiling = backoff.next_backoff().unwrap_or(self.most);
        }
        ceiling.min(self.most)
    }

    /// A delay after the `failures`-th failure in a row: anywhere from nothing to the ceiling, by
    /// `chance` from 0 to 1, so that many who failed together do not come back together.
    pub fn jittered(self, failures: u32, chance: f64) -> Duration {
        self.ceiling(failures).mul_f64(chance.clamp(0.0, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DELAYS: Delays = Delays {
        first: Duration::from_secs(1),
        most: Duration::from_secs(60),
    };

    #[test]
    fn ceilings_double_up_to_the_highest() {
        let seconds: Vec<u64> = (1..=8).map(|n| DELAYS.ceiling(n).as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(DELAYS.ceiling(u32::MAX), Duration::from_secs(60));
        assert_eq!(DELAYS.ceiling(0), Duration::from_secs(1));
    }

    #[test]
    fn jitter_is_full() {
        assert_eq!(DELAYS.jittered(3, 0.0), Duration::ZERO);
        assert_eq!(DELAYS.jittered(3, 0.5), Duration::from_secs(2));
        assert_eq!(DELAYS.jittered(3, 1.0), Duration::from_secs(4));
    }
}
