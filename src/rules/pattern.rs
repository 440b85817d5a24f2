//! Patterns for queue names: plain text in which `*` stands for any run of characters.

use std::fmt;

/// Longest pattern, in bytes: a queue name has at most 255, so a longer one could match nothing
/// that a shorter one does not.
pub const PATTERN_MAX_BYTES: usize = 255;

/// A pattern of 1 to 255 bytes; `*` matches any run of characters, also none. There is no escape:
/// a pattern cannot ask for a star.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Pattern(Box<str>);

/// Why a text is not a pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// It would match the empty name only, which no queue has.
    #[error("is empty; a pattern has 1 to {PATTERN_MAX_BYTES} bytes")]
    Empty,
    /// It has this many bytes.
    #[error("has {0} bytes; a pattern has 1 to {PATTERN_MAX_BYTES}")]
    TooLong(usize),
}

impl Pattern {
    /// Checks the length.
    pub fn new(text: &str) -> Result<Self, PatternError> {
        match text.len() {
            0 => Err(PatternError::Empty),
            1..=PATTERN_MAX_BYTES => Ok(Self(text.into())),
            longer => Err(PatternError::TooLong(longer)),
        }
    }

    /// Whether the whole of `name` fits.
    ///
    /// The pieces between stars are looked for from left to right, each at the first place it
    /// fits: an earlier place leaves more room for the rest, so nothing is ever tried twice. The
    /// time is bounded by the lengths added up, whatever a stranger puts in `name`.
    pub fn matches(&self, name: &str) -> bool {
        let mut pieces = self.0.split('*');
        let Some(rest) = pieces.next().and_then(|start| name.strip_prefix(start)) else {
            return false;
        };
        let Some(end) = pieces.next_back() else {
            return rest.is_empty();
        };
        let Some(mut rest) = rest.strip_suffix(end) else {
            return false;
        };
        for piece in pieces {
            let Some((_, after)) = rest.split_once(piece) else {
                return false;
            };
            rest = after;
        }
        true
    }

    /// The pattern as it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pattern({})", &*self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(pattern: &str, name: &str, expected: bool) {
        let matches = Pattern::new(pattern).unwrap().matches(name);
        assert_eq!(matches, expected, "{pattern:?} on {name:?}");
    }

    #[test]
    fn a_star_is_any_run_and_all_else_is_itself() {
        check("sap.replies", "sap.replies", true);
        check("sap.replies", "sap.replies2", false);
        check("sap.replies", "xsap.replies", false);
        check("*", "", true);
        check("*", "anything", true);
        check("*.replies", "sap.replies", true);
        check("*.replies", ".replies", true);
        check("*.replies", "replies", false);
        check("*.replies", "sap.replies.x", false);
        check("amq.gen-*", "amq.gen-JzTY20BRgKO", true);
        check("amq.gen-*", "amq.gen-", true);
        check("amq.gen-*", "amq.gen", false);
        check(
            "amq.rabbitmq.reply-to*",
            "amq.rabbitmq.reply-to.g2dkAA",
            true,
        );
        check("a*b*c", "a-b-b-c", true);
        check("a*b*c", "a-c-b", false);
        check("a**c", "ac", true);
        check("单*号", "单据号", true);
        check("?", "x", false);
        check(".", "x", false);
    }

    #[test]
    fn the_start_and_the_end_do_not_share_a_character() {
        check("aba*aba", "aba", false);
        check("aba*aba", "ababa", false);
        check("aba*aba", "abaaba", true);
    }

    #[test]
    fn a_pattern_has_1_to_255_bytes() {
        assert_eq!(Pattern::new(""), Err(PatternError::Empty));
        assert!(Pattern::new(&"x".repeat(255)).is_ok());
        assert_eq!(
            Pattern::new(&"x".repeat(256)),
            Err(PatternError::TooLong(256))
        );
    }

    /// What a star means, said in the shortest way; its time is not bounded.
    fn reference(pattern: &[char], name: &[char]) -> bool {
        match (pattern.split_first(), name.split_first()) {
            (None, None) => true,
            (Some(('*', rest)), None) => reference(rest, name),
            (Some(('*', rest)), Some((_, later))) => {
                reference(rest, name) || reference(pattern, later)
            }
            (Some((p, rest)), Some((n, later))) => p == n && reference(rest, later),
            (None, Some(_)) | (Some(_), None) => false,
        }
    }

    proptest! {
        #[test]
        fn agrees_with_the_reference(pattern in "[ab*]{1,8}", name in "[ab]{0,10}") {
            let pattern_chars: Vec<char> = pattern.chars().collect();
            let name_chars: Vec<char> = name.chars().collect();
            prop_assert_eq!(
                Pattern::new(&pattern).unwrap().matches(&name),
                reference(&pattern_chars, &name_chars)
            );
        }
    }
}
