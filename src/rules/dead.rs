//! Dead letters: what is known of one, and which are meant.

use std::time::Duration;

use jiff::Timestamp;

use super::order::CommandId;
use super::time::earlier;

/// A command in the dead-letter queue, as far as it can be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Letter {
    /// The command's id; none where it has none and nobody gave it one.
    pub command_id: Option<CommandId>,
    /// Why it is here: `unsettled`, `unreadable`, `poison`, or the broker's word, such as
    /// `delivery_limit`; empty where nobody says.
    pub reason: String,
    /// Whose it is, as it names it.
    pub account: String,
    /// Since when.
    pub dead_at: Option<Timestamp>,
    /// Its orders; none where they cannot be read.
    pub orders: Vec<String>,
    /// How often it was sent back to the commands' queue before.
    pub replays: u64,
    /// The body's size.
    pub bytes: usize,
}

/// Which letters are meant: those that fit all of this. The default fits every letter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// These reasons; empty for any.
    pub reasons: Vec<String>,
    /// These accounts; empty for any.
    pub accounts: Vec<String>,
    /// With one of these orders; empty for any.
    pub orders: Vec<String>,
    /// These commands; empty for any.
    pub command_ids: Vec<String>,
    /// Dead for at least so long.
    pub older_than: Option<Duration>,
    /// Dead for at most so long.
    pub newer_than: Option<Duration>,
}

impl Filter {
    /// Whether every letter fits.
    pub fn is_any(&self) -> bool {
        *self == Self::default()
    }

    /// Whether this letter is meant. One of unknown age is neither older nor newer than anything.
    pub fn fits(&self, letter: &Letter, now: Timestamp) -> bool {
        let id = letter.command_id.as_ref().map(CommandId::as_str);
        let before = |time: Duration| letter.dead_at.map(|at| at <= earlier(now, time));
        is_one_of(&self.reasons, |reason| *reason == letter.reason)
            && is_one_of(&self.accounts, |account| *account == letter.account)
            && is_one_of(&self.orders, |order| letter.orders.contains(order))
            && is_one_of(&self.command_ids, |one| Some(one.as_str()) == id)
            && self
                .older_than
                .is_none_or(|time| before(time) == Some(true))
            && self
                .newer_than
                .is_none_or(|time| before(time) == Some(false))
    }
}

fn is_one_of(wanted: &[String], found: impl Fn(&String) -> bool) -> bool {
    wanted.is_empty() || wanted.iter().any(found)
}

/// What came of going through the queue.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Letters in the queue at the beginning, without those that somebody else has in hand.
    pub waiting: u64,
    /// Letters that were looked at.
    pub seen: u64,
    /// Those of them that were meant.
    pub meant: u64,
    /// Those with which it was done; none when it was only looked.
    pub done: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letter() -> Letter {
        Letter {
            command_id: CommandId::new("c1"),
            reason: "failed".into(),
            account: "default".into(),
            dead_at: Some(Timestamp::from_second(1000).expect("a time")),
            orders: vec!["A".into(), "B".into()],
            replays: 0,
            bytes: 10,
        }
    }

    #[test]
    fn a_letter_is_meant_when_it_fits_all_that_is_asked() {
        let now = Timestamp::from_second(1060).expect("a time");
        let any = Filter::default();
        let list = |words: &[&str]| words.iter().map(|&word| word.into()).collect::<Vec<_>>();
        let minute = Some(Duration::from_secs(60));
        let longer = Some(Duration::from_secs(61));
        for (filter, expected) in [
            (any.clone(), true),
            (
                Filter {
                    reasons: list(&["unknown", "failed"]),
                    ..any.clone()
                },
                true,
            ),
            (
                Filter {
                    reasons: list(&["unknown"]),
                    ..any.clone()
                },
                false,
            ),
            (
                Filter {
                    accounts: list(&["default"]),
                    orders: list(&["B"]),
                    ..any.clone()
                },
                true,
            ),
            (
                Filter {
                    accounts: list(&["east"]),
                    orders: list(&["B"]),
                    ..any.clone()
                },
                false,
            ),
            (
                Filter {
                    orders: list(&["b"]),
                    ..any.clone()
                },
                false,
            ),
            (
                Filter {
                    command_ids: list(&["c1"]),
                    ..any.clone()
                },
                true,
            ),
            (
                Filter {
                    command_ids: list(&["c"]),
                    ..any.clone()
                },
                false,
            ),
            (
                Filter {
                    older_than: minute,
                    ..any.clone()
                },
                true,
            ),
            (
                Filter {
                    older_than: longer,
                    ..any.clone()
                },
                false,
            ),
            (
                Filter {
                    newer_than: minute,
                    ..any.clone()
                },
                false,
            ),
            (
                Filter {
                    newer_than: longer,
                    ..any.clone()
                },
                true,
            ),
        ] {
            assert_eq!(filter.fits(&letter(), now), expected, "{filter:?}");
            let ageless = Letter {
                dead_at: None,
                ..letter()
            };
            let by_age = filter.older_than.or(filter.newer_than).is_some();
            assert_eq!(
                filter.fits(&ageless, now),
                expected && !by_age,
                "{filter:?}"
            );
        }
        assert!(any.is_any());
    }
}
