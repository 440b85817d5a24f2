//! Whose command it is, read from its body and nothing else.

use std::borrow::Cow;
use std::collections::HashMap;

use lapin::message::Delivery;
use serde::Deserialize;

use crate::rules::order::AccountName;

/// The account of a command that names none (contract §2).
const DEFAULT: &str = "default";

/// The accounts by their names.
#[derive(Debug)]
pub(super) struct Accounts(HashMap<String, usize>);

#[derive(Deserialize)]
struct Body<'a> {
    #[serde(borrow, default)]
    account: Option<Cow<'a, str>>,
}

impl Accounts {
    pub(super) fn new(names: &[AccountName]) -> Self {
        let names = names.iter().enumerate();
        Self(names.map(|(at, n)| (n.as_str().to_owned(), at)).collect())
    }

    /// One for each, and one for whatever is nobody's.
    pub(super) fn count(&self) -> usize {
        self.0.len() + 1
    }

    /// Whether there is anything to share.
    pub(super) fn share(&self) -> bool {
        self.0.len() > 1
    }

    /// Whose it is. What cannot be read, or names an account that is not known, is nobody's: it will
    /// be told as much, which no account holds up.
    pub(super) fn of(&self, delivery: &Delivery) -> usize {
        if !self.share() {
            return 0;
        }
        let nobody = self.0.len();
        if !delivery.data.trim_ascii_start().starts_with(b"{") {
            return nobody;
        }
        let Ok(body) = serde_json::from_slice::<Body<'_>>(&delivery.data) else {
            return nobody;
        };
        let name = body.account.as_deref().unwrap_or(DEFAULT);
        self.0.get(name).copied().unwrap_or(nobody)
    }
}

#[cfg(test)]
mod tests {
    use lapin::message::Delivery;

    use super::*;

    #[test]
    fn the_account_is_read_and_what_cannot_be_read_is_nobodys() {
        let names = ["default", "east"].map(|name| AccountName::new(name).expect("a name"));
        let accounts = Accounts::new(&names);
        let of = |body: &str| {
            let mut delivery = Delivery::mock(1, "".into(), "".into(), false, Vec::new());
            delivery.data = body.into();
            accounts.of(&delivery)
        };
        assert_eq!(of(r#"{"order_no_list": ["A"], "account": "east"}"#), 1);
        assert_eq!(of(r#"{"account": "e\u0061st", "x": [{"account": 1}]}"#), 1);
        assert_eq!(of(r#"{"order_no_list": ["A"]}"#), 0);
        assert_eq!(of(r#"{"account": null}"#), 0);
        for nobodys in [
            "",
            "{",
            "[]",
            r#"{"account": 1}"#,
            r#"{"account": "west"}"#,
            r#"{"account": "east", "account": "east"}"#,
        ] {
            assert_eq!(of(nobodys), accounts.count() - 1, "{nobodys}");
        }
    }
}
