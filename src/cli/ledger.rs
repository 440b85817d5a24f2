//! `ledger`: back-ups of the ledger, a look into it, and what a shared one needs.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::{Exit, Usage};
use crate::config::{Config, LedgerUrl};
use crate::ledger;
use crate::ledger::postgres::operate;

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
    /// Makes the tables of a shared ledger, or those that a later version needs, so that the
    /// worker's own role need not be allowed to.
    Migrate,
    /// Moves an embedded ledger into the shared one under ledger.url. Its worker must be stopped;
    /// what the shared one knows already stays, so it can be done again.
    Import {
        /// The embedded ledger, or a back-up of one.
        file: PathBuf,
    },
    /// Notes that a shared ledger was restored from a back-up. The workers must be stopped.
    Restored,
}

/// What a shared ledger's back-ups are made with.
const PG_DUMP: &str = "a database is backed up with its own tools, also while workers run: pg_dump --schema=wdt --format=custom --file=FILE URL, or better continuous archiving, which loses nothing";
/// And how one is put back.
const PG_RESTORE: &str = "stop the workers, put the database back with its own tools (pg_restore --clean --if-exists --dbname=URL FILE), and then tell the ledger, before a worker starts: wdt-cancel-worker ledger restored";

/// Does it.
///
/// # Errors
/// When the ledger or the file cannot be used.
pub async fn run(args: Args, config: &Config) -> anyhow::Result<Exit> {
    match &config.ledger.url {
        LedgerUrl::Path(path) => embedded(args, path),
        LedgerUrl::Postgres(url) => shared(args, url.expose()).await,
    }
}

async fn shared(args: Args, url: &str) -> anyhow::Result<Exit> {
    let mut out = std::io::stdout();
    match args {
        Args::Backup { .. } => {
            return Err(Usage(format!("ledger.url is a database; {PG_DUMP}")).into());
        }
        Args::Restore { .. } => {
            return Err(Usage(format!("ledger.url is a database; {PG_RESTORE}")).into());
        }
        // A file is looked into, whatever the worker uses.
        Args::Check { file: Some(file) } => return check(&file, &mut out),
        Args::Check { file: None } => check_shared(&operate::check(url).await?, &mut out)?,
        Args::Migrate => match operate::migrate(url).await? {
            (before, after) if before == after => writeln!(out, "the ledger has schema {after}")?,
            (0, after) => writeln!(out, "the ledger was made, with schema {after}")?,
            (before, after) => {
                writeln!(
                    out,
                    "the ledger was brought from schema {before} to {after}"
                )?;
            }
        },
        Args::Import { file } => {
            let moved = operate::import(url, &file).await?;
            writeln!(out, "{} is in the shared ledger", file.display())?;
            let (new, all) = (moved.orders, moved.of_orders);
            writeln!(
                out,
                "orders: {new} moved, of {all}; the others were known there"
            )?;
            let (new, all) = (moved.results, moved.of_results);
            writeln!(out, "results: {new} moved, of {all}")?;
        }
        Args::Restored => {
            let at = operate::mark_restored(url).await?;
            writeln!(
                out,
                "restored at {at:.0}: for ledger.retention from then on, orders that are not on record are told as refused only after a look-up"
            )?;
        }
    }
    Ok(Exit::Done)
}

fn check_shared(found: &operate::Findings, out: &mut impl std::io::Write) -> std::io::Result<()> {
    if found.schema == 0 {
        return writeln!(
            out,
            "the database holds no ledger yet; the first worker makes it, or: wdt-cancel-worker ledger migrate"
        );
    }
    writeln!(out, "the shared ledger has schema {}", found.schema)?;
    count(found.orders, found.oldest_sent, found.results, out)?;
    writeln!(out, "rows of the journal: {}", found.journal)?;
    writeln!(
        out,
        "workers: {}, orders that they have in hand: {}",
        found.workers, found.held
    )?;
    writeln!(
        out,
        "whether the database is whole, its own pg_amcheck tells"
    )
}

fn embedded(args: Args, path: &Path) -> anyhow::Result<Exit> {
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
        Args::Migrate | Args::Import { .. } | Args::Restored => {
            return Err(Usage(
                "ledger.url is a file; this is for a shared ledger: set ledger.url to postgres://…"
                    .to_owned(),
            )
            .into());
        }
    }
    Ok(Exit::Done)
}

fn check(path: &Path, out: &mut impl std::io::Write) -> anyhow::Result<Exit> {
    let found = ledger::copy::check(path)?;
    if let Some(what) = found.damage {
        writeln!(out, "{} is damaged: {what}", path.display())?;
        return Ok(Exit::Failed);
    }
    writeln!(out, "{} is whole, schema {}", path.display(), found.schema)?;
    count(found.orders, found.oldest_sent, found.results, out)?;
    writeln!(out, "rows of the journal: {}", found.journal)?;
    Ok(Exit::Done)
}

fn count(
    [waiting, sent, ended]: [i64; 3],
    oldest_sent: Option<Timestamp>,
    results: i64,
    out: &mut impl std::io::Write,
) -> std::io::Result<()> {
    writeln!(out, "orders that ended: {ended}")?;
    write!(out, "orders that were sent and have no ending: {sent}")?;
    match oldest_sent {
        Some(at) => writeln!(out, ", the oldest since {at:.0}")?,
        None => writeln!(out)?,
    }
    writeln!(out, "orders that wait: {waiting}")?;
    writeln!(out, "results of commands: {results}")
}
