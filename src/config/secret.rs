//! Values that must not end up in a log, a table or an error.

use reqwest::Url;
use std::fmt;

/// What is shown instead of a secret.
const HIDDEN: &str = "***";

/// A value that does not show itself: `Debug` and `Display` print `***`, or for a URL the URL with
/// the password replaced by `***`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret<T> {
    value: T,
    shown: String,
}

impl<T> Secret<T> {
    /// Wraps a value of which nothing may be shown.
    pub fn new(value: T) -> Self {
        Self {
            value,
            shown: HIDDEN.to_owned(),
        }
    }

    /// Wraps what was read from `url`, which is shown without its password.
    pub(super) fn from_url(value: T, url: &str) -> Self {
        Self {
            value,
            shown: mask_url(url),
        }
    }

    /// The value itself. Whoever calls this answers for where it goes.
    pub const fn expose(&self) -> &T {
        &self.value
    }
}

impl<T> fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl<T> fmt::Display for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

/// The URL with its password, and every query value whose name has `password` in it, replaced by
/// `***`. A text that cannot be read as a URL is hidden whole: where its password is, is a guess.
pub(super) fn mask_url(text: &str) -> String {
    let Ok(mut url) = Url::parse(text) else {
        return HIDDEN.to_owned();
    };
    if url.password().is_some() && url.set_password(Some(HIDDEN)).is_err() {
        return HIDDEN.to_owned();
    }
    if url.query().is_some_and(has_password) {
        let pairs: Vec<(String, String)> = url
            .query_pairs()
            .map(|(name, value)| {
                let shown = if has_password(&name) { HIDDEN } else { &value };
                (name.to_string(), shown.to_owned())
            })
            .collect();
        url.query_pairs_mut().clear().extend_pairs(pairs);
    }
    url.to_string()
}

fn has_password(text: &str) -> bool {
    text.to_ascii_lowercase().contains("password")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_does_not_show_itself() {
        let secret = Secret::new("hunter2".to_owned());
        assert_eq!(
            format!("{secret} {secret:?} {:?}", Some(&secret)),
            "*** *** Some(***)"
        );
        assert_eq!(secret.expose(), "hunter2");
    }

    #[test]
    fn a_url_is_shown_without_its_password() {
        let check = |url: &str, expected: &str| assert_eq!(mask_url(url), expected);
        check(
            "amqp://guest:guest@127.0.0.1:5672/%2f",
            "amqp://guest:***@127.0.0.1:5672/%2f",
        );
        check(
            "amqps://mq.example/v?heartbeat=10",
            "amqps://mq.example/v?heartbeat=10",
        );
        check(
            "postgres://w:p%40ss@db/wdt?sslmode=require",
            "postgres://w:***@db/wdt?sslmode=require",
        );
        check(
            "postgres://w@db/wdt?sslmode=require&password=p",
            "postgres://w@db/wdt?sslmode=require&password=***",
        );
        check("postgres://w:p@db1:5432,db2:5432/wdt", "***");
    }
}
