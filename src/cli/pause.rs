//! `pause` and `resume`: whether accounts are called.
//!
//! A shared ledger is written to, and every worker that uses it follows within a second or two. An
//! embedded one belongs to its worker, who is asked through the admin listener; when none has it, it
//! is written to, and the next worker begins like that.

use std::io::Write as _;
use std::time::Duration;

use anyhow::{Context as _, bail};
use jiff::Timestamp;

use super::{Exit, Usage};
use crate::config::{Config, LedgerUrl};
use crate::ledger::postgres::operate;
use crate::ledger::{OpenError, pauses};
use crate::rules::lane::Paused;
use crate::rules::order::AccountName;

/// The worker answers when it is durable, or that it is not, within 5 s.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// Arguments of both.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The accounts, as the settings name them.
    #[arg(value_name = "ACCOUNT", required_unless_present = "all")]
    accounts: Vec<String>,
    /// All accounts of the settings.
    #[arg(long, conflicts_with = "accounts")]
    all: bool,
    /// Who wants it, for the log and the pages; without it the user's name.
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
}

/// Pauses, or resumes.
///
/// # Errors
/// When an account is not known, or neither the ledger nor the worker can be reached.
pub async fn run(args: Args, config: &Config, pauses: bool) -> anyhow::Result<Exit> {
    let accounts = accounts(&args, config)?;
    let by = args
        .by
        .or_else(|| std::env::var("USER").ok())
        .unwrap_or_else(|| "command line".into());
    let by: String = by.chars().filter(|c| !c.is_control()).take(40).collect();
    let paused = pauses.then(|| Paused {
        since: Timestamp::now(),
        by: by.as_str().into(),
    });
    let how = match &config.ledger.url {
        LedgerUrl::Postgres(url) => {
            operate::pause(url.expose(), &accounts, paused.as_ref()).await?;
            "every worker follows within two seconds"
        }
        LedgerUrl::Path(path) => match pauses::set(path, accounts.clone(), paused.as_ref()) {
            Ok(()) => "no worker has the ledger; the next one begins like that",
            Err(OpenError::Locked(_)) => {
                ask_worker(config, &accounts, pauses, &by).await?;
                "the worker has it in its ledger"
            }
            Err(error) => return Err(error.into()),
        },
    };
    let what = if pauses { "paused" } else { "resumed" };
    let names: Vec<&str> = accounts.iter().map(AccountName::as_str).collect();
    writeln!(std::io::stdout(), "{what}: {}; {how}", names.join(", "))?;
    Ok(Exit::Done)
}

fn accounts(args: &Args, config: &Config) -> anyhow::Result<Vec<AccountName>> {
    let known = || config.accounts.keys();
    if args.all {
        return Ok(known().cloned().collect());
    }
    let mut accounts = Vec::new();
    for name in &args.accounts {
        match known().find(|account| account.as_str() == name) {
            Some(account) => accounts.push(account.clone()),
            None => {
                let all: Vec<&str> = known().map(AccountName::as_str).collect();
                bail!(Usage(format!(
                    "there is no account {name:?}; the settings have {}",
                    all.join(", ")
                )));
            }
        }
    }
    Ok(accounts)
}

async fn ask_worker(
    config: &Config,
    accounts: &[AccountName],
    pauses: bool,
    by: &str,
) -> anyhow::Result<()> {
    let Some(token) = &config.admin.token else {
        bail!(Usage(
            "a worker has the ledger, so it has to be asked, and it listens to nobody without admin.token; set it, and restart the worker with it, or stop the worker first".into()
        ));
    };
    let mut address = config.admin.listen;
    // Who listens everywhere listens here, too.
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            std::net::SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            std::net::SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    let path = if pauses { "pause" } else { "resume" };
    let client = reqwest::Client::builder()
        .no_proxy()
        .timeout(ANSWER_TIMEOUT)
        .build()
        .context("the HTTP client cannot be made")?;
    // An account's name needs no escapes: letters, digits, underscore and hyphen.
    let form: Vec<String> = accounts
        .iter()
        .map(|name| format!("account={name}"))
        .collect();
    let answer = client
        .post(format!("http://{address}/{path}"))
        .bearer_auth(token.expose())
        .header("x-operator", by)
        .header("content-type", "application/x-www-form-urlencoded")
        .body(form.join("&"))
        .send()
        .await
        .with_context(|| format!("the worker cannot be asked at {address}; does it run on this machine, with the same admin.listen?"))?;
    let status = answer.status();
    if status.is_success() {
        return Ok(());
    }
    let words = answer.text().await.unwrap_or_default();
    match status.as_u16() {
        401 => bail!("the worker at {address} has another admin.token, or none"),
        _ => bail!("the worker at {address} says {status}: {}", words.trim()),
    }
}
