//! Any text as a settings file, and any environment beside it.
//!
//! Holds: nothing panics, what is taken is within its bounds, and no error or listing shows a secret. A secret is a value that holds `$S`, which becomes a mark before
//! it is read; the mark may be shown only where `$S` stood outside a secret as well.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use toml::Value;
use wdt_cancel_worker::config::{Config, Loaded, bounds};

/// Parts the file's text from the environment, a variable a line.
const PART: char = '\u{1e}';
const PLACE: &str = "$S";
const MARK: &str = "Zq7Hunter2Zq7";

fuzz_target!(|data: &[u8]| {
    let input = String::from_utf8_lossy(data);
    // Other files are not this input, and a mark is only where it was put.
    if input.to_ascii_lowercase().contains("_file") || input.contains(MARK) {
        return;
    }
    let (file, variables) = input.split_once(PART).unwrap_or((&input, ""));
    let marked = file.replace(PLACE, MARK);
    let environment: Vec<(String, String)> = variables
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.replace(PLACE, MARK)))
        .collect();
    let is_secret = input.contains(PLACE)
        && only_in_secrets(file)
        && environment.iter().all(|(name, value)| {
            let name = name.to_ascii_lowercase();
            let hidden = name.ends_with("__key") || name.ends_with("__secret");
            hidden && !name.contains(MARK) || !value.contains(MARK)
        });
    match Config::parse(Path::new("wdt.toml"), &marked, environment.into_iter()) {
        Ok(loaded) => {
            within_bounds(&loaded);
            if is_secret {
                let shown = format!("{loaded:?}");
                assert!(!shown.contains(MARK), "{shown}");
            }
        }
        Err(error) => {
            assert!(!error.problems().is_empty());
            if is_secret {
                let shown = format!("{error}{error:?}");
                assert!(!shown.contains(MARK), "{shown}");
            }
        }
    }
});

/// Whether the place of a secret stands in keys and secrets of accounts and nowhere else.
fn only_in_secrets(file: &str) -> bool {
    match file.parse::<toml::Table>() {
        Ok(table) => table.iter().all(|(section, inner)| {
            !section.contains(PLACE)
                && match (section.as_str(), inner) {
                    ("accounts", Value::Table(accounts)) => accounts
                        .iter()
                        .all(|(name, account)| !name.contains(PLACE) && account_hides(account)),
                    _ => !inner.to_string().contains(PLACE),
                }
        }),
        // What a syntax error quotes must not be a line with a secret on it.
        Err(_) => file
            .lines()
            .filter(|line| line.contains(PLACE))
            .all(|line| {
                let name = line.split('=').next().unwrap_or_default().trim();
                matches!(name, "key" | "secret")
            }),
    }
}

fn account_hides(account: &Value) -> bool {
    let Value::Table(account) = account else {
        return !account.to_string().contains(PLACE);
    };
    account.iter().all(|(name, value)| {
        matches!(name.as_str(), "key" | "secret")
            || !name.contains(PLACE) && !value.to_string().contains(PLACE)
    })
}

fn within_bounds(loaded: &Loaded) {
    let Config {
        amqp,
        api,
        accounts,
        ledger,
        retry,
        ..
    } = &loaded.config;
    assert!(!amqp.urls.is_empty());
    for name in [&amqp.queue, &amqp.exchange, &amqp.dead_queue] {
        assert!(bounds::AMQP_NAME_BYTES.contains(&name.len()));
    }
    assert_ne!(amqp.queue, amqp.dead_queue);
    assert!(amqp.reply_to_allow.len() <= bounds::REPLY_TO_PATTERNS_MAX);
    assert!(bounds::API_TIMEOUT.contains(&api.timeout));
    assert!(bounds::RETENTION.contains(&ledger.retention));
    assert!(bounds::MAX_ATTEMPTS.contains(&retry.max_attempts));
    assert!(bounds::MAX_AGE.contains(&retry.max_age));
    assert!(!accounts.is_empty());
    for account in accounts.values() {
        assert!(bounds::CALLS_PER_MINUTE.contains(&account.calls_per_minute));
        assert!(bounds::CONCURRENCY.contains(&account.concurrency));
        assert!(bounds::MAX_ORDERS_PER_CALL.contains(&account.max_orders_per_call));
        assert!(matches!(account.url.scheme(), "http" | "https"));
        for text in [
            &account.sid,
            account.key.expose(),
            account.secret.expose(),
            account.salt.expose(),
        ] {
            assert!(!text.is_empty());
        }
    }
}
