//! `doctor`: whether all that a worker needs is there. It looks, and leaves everything as it is.

mod broker;
mod gateway;
mod ledger;

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use reqwest::Url;
use serde::Serialize;
use tokio::time::Instant;

use super::Exit;
use crate::config::{ConfigError, Loaded};

/// One step, so that one thing which hangs does not take the time of all.
const STEP: Duration = Duration::from_secs(20);

/// Check settings, broker, ledger and gateway, one line each
///
/// Nothing is declared, consumed, published or cancelled. Each account is called twice: for the
/// gateway's time, and to look up an order that does not exist; the calls count against its limit.
/// Ends with 0 when all is well, 1 when something is wrong, 64 when arguments or settings are.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// As JSON.
    #[arg(long)]
    json: bool,
    /// The broker's management, which tells what is bound to the results' exchange. Without it the
    /// broker's port 15672 is asked, where amqp.url asks for no TLS. The broker's user asks, unless
    /// the URL names another.
    #[arg(long, value_name = "URL", value_parser = management)]
    management: Option<Url>,
    /// All of it within this time.
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = super::time)]
    within: Duration,
}

fn management(text: &str) -> Result<Url, String> {
    match Url::parse(text) {
        Ok(url) if matches!(url.scheme(), "http" | "https") => Ok(url),
        _ => Err("one like http://rabbit.example:15672 would do".into()),
    }
}

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum State {
    /// As it should be.
    Ok,
    /// Worth knowing, or not to be found out from here.
    Note,
    /// A worker could not work, or not fully.
    Wrong,
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Line {
    check: String,
    state: State,
    found: String,
    /// What would mend it: a command where there is one.
    #[serde(skip_serializing_if = "String::is_empty")]
    remedy: String,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report<'a> {
    well: bool,
    checks: &'a [Line],
}

/// The checks so far, shown as they come.
struct Sheet {
    lines: Vec<Line>,
    /// For people; else it is printed at the end.
    shows: bool,
    colour: bool,
    end: Instant,
}

impl Sheet {
    fn ok(&mut self, check: &str, found: impl Into<String>) {
        self.add(check, State::Ok, found.into(), String::new());
    }

    fn note(&mut self, check: &str, found: impl Into<String>, remedy: impl Into<String>) {
        self.add(check, State::Note, found.into(), remedy.into());
    }

    fn wrong(&mut self, check: &str, found: impl Into<String>, remedy: impl Into<String>) {
        self.add(check, State::Wrong, found.into(), remedy.into());
    }

    fn add(&mut self, check: &str, state: State, found: String, remedy: String) {
        let line = Line {
            check: check.to_owned(),
            state,
            found,
            remedy,
        };
        if self.shows {
            // A closed pipe shows in the exit status of whoever reads it.
            drop(self.show(&line));
        }
        self.lines.push(line);
    }

    fn show(&self, line: &Line) -> std::io::Result<()> {
        let (word, code) = match line.state {
            State::Ok => ("ok   ", "32"),
            State::Note => ("note ", "33"),
            State::Wrong => ("WRONG", "31"),
        };
        let word = match self.colour {
            true => format!("\x1b[{code}m{word}\x1b[0m"),
            false => word.to_owned(),
        };
        let mut out = std::io::stdout().lock();
        writeln!(out, "{word} {}: {}", line.check, line.found)?;
        if !line.remedy.is_empty() {
            writeln!(out, "      do: {}", line.remedy)?;
        }
        Ok(())
    }

    fn is_well(&self) -> bool {
        self.lines.iter().all(|line| line.state != State::Wrong)
    }

    /// Awaits a step, for as long as it may take; `None` when it takes longer, which is told.
    async fn step<T>(&mut self, check: &str, step: impl Future<Output = T>) -> Option<T> {
        let end = self.end.min(Instant::now() + STEP);
        match tokio::time::timeout_at(end, step).await {
            Ok(done) => Some(done),
            Err(_) => {
                let all = Instant::now() >= self.end;
                let remedy = match all {
                    true => "give it longer: --within",
                    false => "see why it hangs; a firewall that drops packets does this",
                };
                self.wrong(check, "no answer in time", remedy);
                None
            }
        }
    }
}

/// Checks everything.
///
/// # Errors
/// When the output cannot be written.
pub async fn run(args: Args, loaded: Result<Loaded, ConfigError>) -> anyhow::Result<Exit> {
    let terminal = std::io::stdout().is_terminal();
    let mut sheet = Sheet {
        lines: Vec::new(),
        shows: !args.json,
        colour: terminal && std::env::var_os("NO_COLOR").is_none(),
        end: Instant::now() + args.within,
    };
    let exit = match loaded {
        Err(error) => {
            for problem in error.problems() {
                sheet.wrong("settings", problem, "");
            }
            Exit::Usage
        }
        Ok(Loaded { config, .. }) => {
            let accounts = config.accounts.len();
            sheet.ok("settings", format!("complete; accounts: {accounts}"));
            broker::check(&mut sheet, &config, args.management.as_ref()).await;
            ledger::check(&mut sheet, &config).await;
            gateway::check(&mut sheet, &config).await;
            match sheet.is_well() {
                true => Exit::Done,
                false => Exit::Failed,
            }
        }
    };
    if args.json {
        let report = Report {
            well: sheet.is_well(),
            checks: &sheet.lines,
        };
        let mut out = std::io::stdout().lock();
        serde_json::to_writer_pretty(&mut out, &report)?;
        writeln!(out)?;
    }
    Ok(exit)
}

/// Whether a host has an address.
async fn name(sheet: &mut Sheet, check: &str, host: &str, port: u16) -> bool {
    let check = format!("{check} name");
    let looked = tokio::net::lookup_host((host, port));
    match sheet.step(&check, looked).await {
        None => false,
        Some(Ok(mut found)) => match found.next() {
            Some(address) => {
                let more = found.count();
                let more = match more {
                    0 => String::new(),
                    more => format!(" and {more} more"),
                };
                sheet.ok(&check, format!("{host} is {}{more}", address.ip()));
                true
            }
            None => {
                sheet.wrong(&check, format!("{host} has no address"), "check the name");
                false
            }
        },
        Some(Err(error)) => {
            let found = format!("{host} cannot be looked up: {error}");
            sheet.wrong(&check, found, format!("getent hosts {host}"));
            false
        }
    }
}
