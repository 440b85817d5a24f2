//! Choices that the settings leave to whoever runs the worker.

/// When an order's state is looked up with the query method (`api.verify`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Verify {
    /// After an answer that leaves it open whether the order is cancelled.
    #[default]
    InDoubt,
    /// Then, and after every refusal, to tell the state that caused it.
    Always,
    /// Never: an order in doubt ends as `unknown`.
    Never,
}

impl Verify {
    /// Every choice.
    pub const ALL: [Self; 3] = [Self::InDoubt, Self::Always, Self::Never];

    /// The word for it in the settings.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InDoubt => "in_doubt",
            Self::Always => "always",
            Self::Never => "never",
        }
    }

    /// The choice of this word, if it is one.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|v| v.as_str() == word)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_its_own_choice() {
        for verify in Verify::ALL {
            assert_eq!(Verify::parse(verify.as_str()), Some(verify));
        }
        assert_eq!(Verify::parse("In_Doubt"), None);
        assert_eq!(Verify::parse(""), None);
    }
}
