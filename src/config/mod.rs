//! The settings: read once at the start, from defaults, a TOML file and the environment, into
//! values that cannot be wrong.
//!
//! Every problem is kept until all are found, so that whoever mends the settings does it once. A
//! name that is not known is a problem too: a misspelt limit must not run as the default. Nothing
//! here is global; the environment is an argument.
//!
//! No secret is in any text that is made here. Errors and listings name secrets by their key.

pub mod bounds;
mod check;
mod dry_run;
mod known;
mod read;
mod secret;
mod source;
#[cfg(test)]
mod tests;
mod value;

pub use secret::Secret;
pub use source::Origin;

use crate::rules::order::AccountName;
use crate::rules::pattern::Pattern;
use crate::rules::policy::Verify;
use lapin::uri::AMQPUri;
use read::{Needs, Reader};
use reqwest::Url;
use source::{SettingsFile, Sources};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
pub use value::parse_duration;

/// All settings of the worker, with the defaults filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The broker.
    pub amqp: Amqp,
    /// What holds for every call.
    pub api: Api,
    /// The sellers, at least one.
    pub accounts: BTreeMap<AccountName, Account>,
    /// Where states and outcomes are kept.
    pub ledger: Ledger,
    /// When an order is given up.
    pub retry: Retry,
    /// The operators' side.
    pub admin: Admin,
    /// The log.
    pub log: Log,
}

/// Section `amqp`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Amqp {
    /// One cluster's nodes, at least one, in the order given.
    pub urls: Vec<Secret<AMQPUri>>,
    /// Where commands come from, 1 to 255 bytes.
    pub queue: String,
    /// Where results go, 1 to 255 bytes.
    pub exchange: String,
    /// Where commands are parked, 1 to 255 bytes; never the same as `queue`.
    pub dead_queue: String,
    /// Whether the topology is declared at the start, or else only checked.
    pub declare: bool,
    /// A command's `reply_to` must match one of these, at most 100; with none, no `reply_to` is
    /// allowed.
    pub reply_to_allow: Vec<Pattern>,
}

/// Section `api`, as far as it is not an account's own; the rest is in [`Account`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Api {
    /// One call, from connecting to the last byte; 100 ms to 10 min.
    pub timeout: Duration,
    /// When an order is looked up.
    pub verify: Verify,
}

/// One seller: its credentials and its limits, which are those of `api` unless it has its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// The gateway: http or https, without user, query and fragment.
    pub url: Url,
    /// The seller's id; not empty.
    pub sid: String,
    /// The app key; not empty.
    pub key: Secret<String>,
    /// What signs a request and is never sent; not empty.
    pub secret: Secret<String>,
    /// What is sent and signed; not empty.
    pub salt: Secret<String>,
    /// What is tried when the gateway refuses these.
    pub previous: Option<Previous>,
    /// The most calls in a minute, up to 60,000; 0 is no limit.
    pub calls_per_minute: u32,
    /// Calls in flight, 1 to 64.
    pub concurrency: u32,
    /// Order numbers in one call, 1 to 1000.
    pub max_orders_per_call: u32,
}

/// The credentials that hold besides an account's own, while keys are changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Previous {
    /// The app key.
    pub key: Secret<String>,
    /// What signs a request.
    pub secret: Secret<String>,
    /// What is sent and signed.
    pub salt: Secret<String>,
}

/// Section `ledger`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ledger {
    /// Where it is.
    pub url: LedgerUrl,
    /// How long a finished order is remembered, 1 h to 3650 d.
    pub retention: Duration,
}

/// Which ledger it is. Whether this version of the worker has it, is for the caller to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LedgerUrl {
    /// The embedded store of one worker; a relative path starts at the working directory.
    Path(PathBuf),
    /// A database that many workers share. Beyond its scheme the URL was not looked at.
    Postgres(Secret<String>),
}

/// Section `retry`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retry {
    /// Calls that may be tried for one order, 1 to 100.
    pub max_attempts: u32,
    /// From the command's arrival; then the order ends as it stands. 1 s to 30 d.
    pub max_age: Duration,
}

/// Section `admin`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admin {
    /// Where health, metrics and the operators' pages are served. Port 0 is any free one.
    pub listen: SocketAddr,
    /// What whoever acts has to know, at least 16 bytes; without one nobody acts.
    pub token: Option<Secret<String>>,
}

/// Section `log`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// `None`: text on a terminal, else JSON.
    pub format: Option<LogFormat>,
}

/// How a line of the log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For programs: one JSON object a line.
    Json,
}

/// All settings, and where each came from.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The settings.
    pub config: Config,
    /// Every setting in force, in the contract's order. No secret is in it.
    pub origins: Vec<Setting>,
}

/// What speaking to the broker takes, for subcommands that neither call the gateway nor open the
/// ledger.
#[derive(Debug, Clone)]
pub struct BrokerConfig {
    /// The broker.
    pub amqp: Amqp,
    /// The log.
    pub log: Log,
}

/// One setting in force, as people may see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// `section.key`.
    pub name: String,
    /// As it would be written in the environment, a secret as `***`; `None` when there is none.
    pub value: Option<String>,
    /// Where it came from.
    pub origin: Origin,
}

/// What is wrong with the settings: at least one problem. `Display` prints one a line, each with
/// the setting, where it came from, what was found there (not for a secret) and what would do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .problems.join("\n"))]
pub struct ConfigError {
    problems: Vec<String>,
}

impl ConfigError {
    /// The problems, in the order in which they were found.
    pub fn problems(&self) -> &[String] {
        &self.problems
    }
}

impl Config {
    /// Loads all settings: the environment goes before the file, the file before the defaults.
    /// The file is `cli_file`, or else what `WDT_CONFIG` names, or else there is none.
    ///
    /// # Errors
    /// All problems at once: an unreadable file, an unknown name, a value that does not fit, one
    /// that is missing, a secret that is given twice in one place.
    pub fn load(
        cli_file: Option<&Path>,
        env: impl Iterator<Item = (String, String)>,
    ) -> Result<Loaded, ConfigError> {
        load(SettingsFile::Named(cli_file), env, Needs::Everything)
    }

    /// Loads all settings as [`Config::load`] does, from the text of a settings file that problems
    /// call `name`. Secrets' own files are still read.
    ///
    /// # Errors
    /// As with [`Config::load`].
    pub fn parse(
        name: &Path,
        text: &str,
        env: impl Iterator<Item = (String, String)>,
    ) -> Result<Loaded, ConfigError> {
        load(SettingsFile::Text(name, text), env, Needs::Everything)
    }

    /// Loads what the broker takes. That the accounts and `api.url` are missing is no problem
    /// here, and the files of their secrets and of `ledger.url` are not opened.
    ///
    /// # Errors
    /// As with [`Config::load`]: what is given has to fit, also where it is not used.
    pub fn load_broker(
        cli_file: Option<&Path>,
        env: impl Iterator<Item = (String, String)>,
    ) -> Result<BrokerConfig, ConfigError> {
        let Config { amqp, log, .. } =
            load(SettingsFile::Named(cli_file), env, Needs::Broker)?.config;
        Ok(BrokerConfig { amqp, log })
    }
}

fn load(
    file: SettingsFile<'_>,
    env: impl Iterator<Item = (String, String)>,
    needs: Needs,
) -> Result<Loaded, ConfigError> {
    let mut problems = Vec::new();
    let Some(sources) = Sources::gather(file, env, &mut problems) else {
        return Err(ConfigError { problems });
    };
    let mut reader = Reader::new(sources, needs, problems);
    match reader.config() {
        Some(config) if reader.problems.is_empty() => Ok(Loaded {
            config,
            origins: reader.settings,
        }),
        Some(_) | None => Err(ConfigError {
            problems: reader.problems,
        }),
    }
}

/// The process's environment as [`Config::load`] takes it: the variables that begin with `WDT_`
/// in any case. Others are none of our business, and need not even be text.
///
/// # Errors
/// Every such variable whose value is not UTF-8.
pub fn environment() -> Result<Vec<(String, String)>, ConfigError> {
    ours(std::env::vars_os())
}

fn ours(
    variables: impl Iterator<Item = (OsString, OsString)>,
) -> Result<Vec<(String, String)>, ConfigError> {
    let mut ours = Vec::new();
    let mut problems = Vec::new();
    for (name, value) in variables {
        let name = name.to_string_lossy().into_owned();
        if !known::is_ours(&name) {
            continue;
        }
        match value.into_string() {
            Ok(value) => ours.push((name, value)),
            Err(_) => problems.push(format!(
                "{} (from the environment): found what is not UTF-8; UTF-8 would do",
                name.escape_debug()
            )),
        }
    }
    if problems.is_empty() {
        Ok(ours)
    } else {
        Err(ConfigError { problems })
    }
}
