//! `audit`: the ledger's journal, taken out and checked.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Write as _};
use std::path::PathBuf;

use anyhow::Context as _;
use jiff::Timestamp;

use super::{Exit, Usage};
use crate::app;
use crate::config::{Config, parse_duration};
use crate::ledger::audit::{self, Checked};
use crate::rules::time::earlier;

/// What is to be done with the journal.
#[derive(Debug, clap::Subcommand)]
pub enum Args {
    /// Writes the journal to standard output as JSON Lines, also while workers run.
    Export {
        /// From then on: a time such as 2026-11-24T08:00:00+08:00, a day in UTC, or so long ago,
        /// such as 24h.
        #[arg(long, value_name = "TIME")]
        since: String,
    },
    /// Checks that no row was changed, taken out or moved; tells each chain's last hash.
    Verify {
        /// An export; without one the ledger itself.
        file: Option<PathBuf>,
    },
}

/// Does it.
///
/// # Errors
/// When the ledger or the file cannot be read.
pub async fn run(args: Args, config: &Config) -> anyhow::Result<Exit> {
    let source = app::source(config);
    match args {
        Args::Export { since } => {
            let since = time(&since).ok_or_else(|| {
                Usage(format!(
                    "--since {since:?}: a time such as 2026-11-24T08:00:00Z, a day or 24h would do"
                ))
            })?;
            let out = BufWriter::new(io::stdout());
            audit::export(&source, since, out).await?;
            Ok(Exit::Done)
        }
        Args::Verify { file: None } => show(&audit::verify(&source).await?),
        Args::Verify { file: Some(file) } => {
            let name = file.display().to_string();
            let file = File::open(file).with_context(|| name.clone())?;
            show(&audit::verify_export(BufReader::new(file)).context(name)?)
        }
    }
}

fn time(text: &str) -> Option<Timestamp> {
    let day = || format!("{text}T00:00:00Z").parse().ok();
    let ago = || Some(earlier(Timestamp::now(), parse_duration(text)?));
    text.parse().ok().or_else(day).or_else(ago)
}

fn show(chains: &[Checked]) -> anyhow::Result<Exit> {
    let mut out = io::stdout().lock();
    let mut is_whole = true;
    for Checked {
        chain,
        rows: (first, last),
        hash,
        fault,
    } in chains
    {
        match fault {
            Some(fault) => {
                is_whole = false;
                writeln!(out, "chain {chain}: {fault}")?;
            }
            None if last < first => writeln!(out, "chain {chain}: no rows")?,
            None => writeln!(
                out,
                "chain {chain}: rows {first} to {last}, last hash {hash}"
            )?,
        }
    }
    let verdict = if is_whole { "whole" } else { "not whole" };
    writeln!(out, "the journal is {verdict}; chains: {}", chains.len())?;
    Ok(if is_whole { Exit::Done } else { Exit::Failed })
}
