//! How careful the worker is asked to be.

/// When an order's state is looked up with the gateway's query method (setting `api.verify`).
///
/// A look-up costs a call of the same allowance, and needs a warehouse permission that not every
/// account has; that is why the choice is the operator's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Verify {
    /// Only when the answer to a cancel leaves it open what became of the order.
    #[default]
    InDoubt,
    /// In doubt, and after every refusal for the order's state too.
    Always,
    /// Never; an order in doubt ends as `unknown`.
    Never,
}

impl Verify {
    /// Every choice, the default first.
    pub const ALL: [Self; 3] = [Self::InDoubt, Self::Always, Self::Never];

    /// The contract's word for it.
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
