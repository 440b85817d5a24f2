//! `ledger`: back-ups of the ledger, and a look into it.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use super::{Exit, Usage};
use crate::config::Config;
use crate::{app, ledger};

/// What is to be done with the ledger.
#[derive(Debug, clap::Subcommand)]
pub enum Args {
    /// Copies the ledger into a new FILE, also while the worker runs.
    Backup {
        /// It must not exist.
        file: PathBuf,
    },
    /// Puts a copy of FILE in the ledger's place. The worker must be stopped; what was there is kept
    /// beside it.
    Restore {
        /// A back-up, or the ledger itself when there is none.
        file: PathBuf,
    },
    /// Reads all of the ledger, also while the worker runs: whether it is whole, and what is in it.
    Check {
        /// Another one, such as a back-up.
        file: Option<PathBuf>,
    },
}

/// Does it.
///
/// # Errors
/// When the ledger or the file cannot be used.
pub fn run(args: Args, config: &Config) -> anyhow::Result<Exit> {
    let path = app::ledger_path(config).map_err(|what| Usage(what.to_owned()))?;
    let mut out = std::io::stdout().lock();
    match args {
        Args::Backup { file } => {
            ledger::copy::back_up(path, &file)?;
            writeln!(out, "{} is a copy of {}", file.display(), path.display())?;
        }
        Args::Restore { file } => {
            let before = ledger::copy::restore(path, &file)?;
            writeln!(
                out,
                "{} is restored from {}",
                path.display(),
                file.display()
            )?;
            if let Some(before) = before {
                writeln!(out, "what was there before is {}", before.display())?;
            }
            writeln!(
                out,
                "for ledger.retention from its first start on, orders that are not on record are told as refused only after a look-up"
            )?;
        }
        Args::Check { file } => return check(file.as_deref().unwrap_or(path), &mut out),
    }
    Ok(Exit::Done)
}

fn check(path: &Path, out: &mut impl std::io::Write) -> anyhow::Result<Exit> {
    let found = ledger::copy::check(path)?;
    if let Some(what) = found.damage {
        writeln!(out, "{} is damaged: {what}", path.display())?;
        return Ok(Exit::Failed);
    }
    let [waiting, sent, ended] = found.orders;
    writeln!(out, "{} is whole, schema {}", path.display(), found.schema)?;
    writeln!(out, "orders that ended: {ended}")?;
    write!(out, "orders that were sent and have no ending: {sent}")?;
    match found.oldest_sent {
        Some(at) => writeln!(out, ", the oldest since {at:.0}")?,
        None => writeln!(out)?,
    }
    writeln!(out, "orders that wait: {waiting}")?;
    writeln!(out, "results of commands: {}", found.results)?;
    Ok(Exit::Done)
}
