//! Which settings there are, and what they are called in the file and in the environment.

/// What every variable of ours starts with, in lower case.
const PREFIX: &str = "wdt_";
/// Stands for an account's name in [`KNOWN`].
const ANY_ACCOUNT: &str = "NAME";

/// How much of a setting's value may be shown. What is not shown whole is a secret, and a secret
/// can be given in a file of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shown {
    Whole,
    /// Without the password.
    AsUrl,
    Never,
}

/// Every setting, in the contract's order.
const KNOWN: [(&str, Shown); 28] = [
    ("amqp.url", Shown::AsUrl),
    ("amqp.queue", Shown::Whole),
    ("amqp.exchange", Shown::Whole),
    ("amqp.dead_queue", Shown::Whole),
    ("amqp.declare", Shown::Whole),
    ("amqp.reply_to_allow", Shown::Whole),
    ("api.url", Shown::Whole),
    ("api.timeout", Shown::Whole),
    ("api.max_orders_per_call", Shown::Whole),
    ("api.calls_per_minute", Shown::Whole),
    ("api.concurrency", Shown::Whole),
    ("api.verify", Shown::Whole),
    ("accounts.NAME.sid", Shown::Whole),
    ("accounts.NAME.key", Shown::Never),
    ("accounts.NAME.secret", Shown::Never),
    ("accounts.NAME.previous_key", Shown::Never),
    ("accounts.NAME.previous_secret", Shown::Never),
    ("accounts.NAME.url", Shown::Whole),
    ("accounts.NAME.calls_per_minute", Shown::Whole),
    ("accounts.NAME.concurrency", Shown::Whole),
    ("accounts.NAME.max_orders_per_call", Shown::Whole),
    ("ledger.url", Shown::AsUrl),
    ("ledger.retention", Shown::Whole),
    ("retry.max_attempts", Shown::Whole),
    ("retry.max_age", Shown::Whole),
    ("admin.listen", Shown::Whole),
    ("admin.token", Shown::Never),
    ("log.format", Shown::Whole),
];

/// Whether a variable of this name is for us to read.
pub(super) fn is_ours(variable: &str) -> bool {
    variable.to_ascii_lowercase().starts_with(PREFIX)
}

/// How much of this setting may be shown; nothing of one that is not known.
pub(super) fn shown(name: &str) -> Shown {
    let keys: Vec<&str> = name.split('.').collect();
    known(&keys).unwrap_or(Shown::Never)
}

/// The variable that gives this setting, as it is usually written.
pub(super) fn variable_of(name: &str) -> String {
    format!("{PREFIX}{}", name.replace('.', "__")).to_ascii_uppercase()
}

/// The keys that a variable means. An account's name may itself have two underscores in it, so it
/// is all that lies between the first level and the last.
pub(super) fn split_variable(lower: &str) -> Vec<&str> {
    let keys = lower.strip_prefix(PREFIX).unwrap_or(lower);
    let of_account = keys
        .strip_prefix("accounts__")
        .and_then(|keys| keys.rsplit_once("__"));
    match of_account {
        Some((account, key)) => vec!["accounts", account, key],
        None => keys.split("__").collect(),
    }
}

/// The setting of these keys, also when they name a secret's own file.
pub(super) fn is_known(keys: &[&str]) -> bool {
    let by_file = || {
        let (last, above) = keys.split_last()?;
        let value = [above, &[last.strip_suffix("_file")?]].concat();
        known(&value).filter(|shown| *shown != Shown::Whole)
    };
    known(keys).or_else(by_file).is_some()
}

fn known(keys: &[&str]) -> Option<Shown> {
    let same = |listed: &str| {
        let count = listed.split('.').count();
        let mut pairs = listed.split('.').zip(keys);
        count == keys.len() && pairs.all(|(l, k)| l == *k || l == ANY_ACCOUNT)
    };
    KNOWN
        .iter()
        .find(|(listed, _)| same(listed))
        .map(|(_, shown)| *shown)
}

/// Whether these keys name a table that can hold settings.
pub(super) fn is_section(keys: &[&str]) -> bool {
    match keys {
        [section] => KNOWN
            .iter()
            .any(|(listed, _)| listed.split('.').next() == Some(section)),
        ["accounts", _] => true,
        _ => false,
    }
}

/// The known key at the least distance, the first of equals in the contract's order. An account's
/// name counts as it was given.
pub(super) fn nearest(keys: &[&str], distance: impl Fn(&str) -> usize) -> String {
    let account = match keys {
        ["accounts", account, _] => account,
        _ => ANY_ACCOUNT,
    };
    let mut best = (usize::MAX, String::new());
    for (listed, shown) in KNOWN {
        let value = listed.replace(ANY_ACCOUNT, account);
        let by_file = (shown != Shown::Whole).then(|| format!("{value}_file"));
        for candidate in [Some(value), by_file].into_iter().flatten() {
            let away = distance(&candidate);
            if away < best.0 {
                best = (away, candidate);
            }
        }
    }
    best.1
}

/// Whether this looks like what Kubernetes tells a pod about a Service.
pub(super) fn is_service_link(variable: &str) -> bool {
    let named = variable.ends_with("_service_host")
        || variable.contains("_service_port")
        || variable.contains("_port_")
        || variable.ends_with("_port");
    named && !variable.contains("__")
}
