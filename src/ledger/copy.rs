//! Back-ups: a copy made while the worker runs, put back when the ledger is lost, and examined.
//!
//! A copy tells how things stood when it was made. The gateway may have cancelled orders since, and
//! it refuses to cancel them again in the words that it has for orders which were shipped. So a copy
//! is marked as one, and a worker that opens it takes nothing for granted that is not recorded from
//! then on (`Desk::remember_gap`).

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt as _, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, OpenFlags};

use super::open::{self, OpenError, Seen, beside};
use super::schema;
use crate::rules::dry_run::Mode;

/// Pages copied at once, 4 MiB, and the pause after them: the disk is the worker's first of all.
const STEP_PAGES: i32 = 1024;
const STEP_PAUSE: Duration = Duration::from_millis(5);

/// Why there is no copy, or no ledger made of one.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// One of the two cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A back-up replaces nothing.
    #[error("{} exists already; name another file", .0.display())]
    Exists(PathBuf),
    /// There is nothing to copy.
    #[error("{} is empty, not a ledger", .0.display())]
    Empty(PathBuf),
    /// The copy or its folder.
    #[error("{}: {error}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: std::io::Error,
    },
}

/// Copies the ledger into the new file `to`, also while a worker has it open: as it is at one
/// moment. The worker goes on meanwhile; its log grows until the copy is made.
///
/// # Errors
/// When the ledger cannot be read or the copy not be written; there is no file `to` then.
pub fn back_up(ledger: &Path, to: &Path) -> Result<(), CopyError> {
    if to.symlink_metadata().is_ok() {
        return Err(CopyError::Exists(to.into()));
    }
    let unfinished = beside(to, ".unfinished");
    let made = copy(ledger, &unfinished).and_then(|()| rename(&unfinished, to));
    if made.is_err() {
        // Whatever it says, the first error is the one to be told.
        drop(std::fs::remove_file(&unfinished));
    }
    made
}

/// Puts a copy of `from` in the ledger's place; what was there is kept, under the name that is
/// returned. `from` may be the ledger itself: what is left of it is made one that can be trusted
/// for what it says.
///
/// # Errors
/// When a worker has the ledger, or when `from` is not a whole ledger; nothing is changed then.
pub fn restore(ledger: &Path, from: &Path) -> Result<Option<PathBuf>, CopyError> {
    // To hold the ledger makes a file where there is none, so these go before.
    from.metadata()
        .map_err(|error| OpenError::file(from, error))?;
    let was_there = ledger.exists();
    let held = open::hold(ledger)?;
    let path = &held.path;
    // Read first, so that what is refused changes nothing.
    let Findings { damage, .. } = check(from)?;
    if let Some(what) = damage {
        let path = from.into();
        return Err(OpenError::Damaged { path, what }.into());
    }
    let unfinished = beside(path, ".restoring");
    drop(std::fs::remove_file(&unfinished));
    copy(from, &unfinished)?;
    let folder = path.parent().unwrap_or(path);
    let owner = if was_there { path } else { folder };
    for made in [&unfinished, &beside(path, ".lock")] {
        give_to_owner_of(owner, made).map_err(|error| CopyError::File {
            path: made.clone(),
            error,
        })?;
    }
    let before = set_aside(path)?;
    rename(&unfinished, path)?;
    // Only now: as long as the witness knows of more, a restore that was not finished is noticed.
    held.witness(0)
        .map_err(|error| OpenError::file(ledger, error))?;
    Ok(before)
}

/// What root restores is to belong to whom the ledger, or else its folder, belonged.
fn give_to_owner_of(before: &Path, made: &Path) -> std::io::Result<()> {
    let (owner, is) = (before.metadata()?, made.metadata()?);
    if (is.uid(), is.gid()) == (owner.uid(), owner.gid()) {
        return Ok(());
    }
    match chown(made, Some(owner.uid()), Some(owner.gid())) {
        // Anybody else may give nothing away, and works with his own.
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Ok(()),
        given => given,
    }
}

/// Moves the ledger and its log away, the log last: without the ledger it is nobody's.
fn set_aside(path: &Path) -> Result<Option<PathBuf>, CopyError> {
    let has_content = |path: &Path| path.metadata().is_ok_and(|file| file.len() > 0);
    let log = beside(path, "-wal");
    let mut second = Timestamp::now().as_second();
    let before = loop {
        let name = beside(path, &format!(".replaced-{second}"));
        // Two restores in one second: each keeps what it found.
        if !name.exists() && !beside(&name, "-wal").exists() {
            break name;
        }
        second += 1;
    };
    let kept = has_content(path) || has_content(&log);
    if kept {
        rename(path, &before)?;
        if log.exists() {
            rename(&log, &beside(&before, "-wal"))?;
        }
    }
    // An index of the log, made anew at each start.
    drop(std::fs::remove_file(beside(path, "-shm")));
    drop(std::fs::remove_file(log));
    Ok(kept.then_some(before))
}

/// What is in a ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Findings {
    /// Its schema's version.
    pub schema: i32,
    /// Orders that wait, that were sent and have no ending, and that have ended.
    pub orders: [i64; 3],
    /// When the oldest of those sent without an ending was sent.
    pub oldest_sent: Option<Timestamp>,
    /// Results, one for each order and command.
    pub results: i64,
    /// Rows of the journal.
    pub journal: i64,
    /// The first damage found.
    pub damage: Option<String>,
}

/// Reads all of a ledger, also while a worker has it open, and changes nothing.
///
/// # Errors
/// When it cannot be read or is not a ledger.
pub fn check(path: &Path) -> Result<Findings, OpenError> {
    let store_error = |error| OpenError::store(path, error);
    let Seen {
        mut connection,
        schema,
        ..
    } = open::look(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    // One moment's state, whatever the worker writes meanwhile.
    connection.execute_batch("BEGIN").map_err(store_error)?;
    let damage = match open::damage(&mut connection, None).map_err(store_error)? {
        None if schema == schema::VERSION => unfindable(&connection).map_err(store_error)?,
        damage => damage,
    };
    let mut found = Findings {
        schema,
        orders: [0; 3],
        oldest_sent: None,
        results: 0,
        journal: 0,
        damage,
    };
    if schema > 0 && found.damage.is_none() {
        found.count(&connection).map_err(store_error)?;
    }
    Ok(found)
}

/// Results that [`super::keys`] would not find: SQLite does not know that one table is the other's
/// index.
fn unfindable(connection: &Connection) -> rusqlite::Result<Option<String>> {
    schema::define_result_key(connection)?;
    let count: i64 = connection.query_row(
        "SELECT count(*) FROM results WHERE id <= (SELECT keys_to FROM marks) AND NOT EXISTS (
             SELECT 1 FROM result_keys
             WHERE key = result_key(command_key, order_no) AND id = results.id)",
        [],
        |row| row.get(0),
    )?;
    Ok((count > 0).then(|| format!("{count} results are missing in result_keys")))
}

impl Findings {
    fn count(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        let mut states = connection.prepare("SELECT state, count(*) FROM orders GROUP BY state")?;
        let mut rows = states.query([])?;
        while let Some(row) = rows.next()? {
            if let Some(count) = self.orders.get_mut(usize::from(row.get::<_, u8>(0)?)) {
                *count = row.get(1)?;
            }
        }
        let oldest: Option<i64> = connection.query_row(
            "SELECT min(changed_at) FROM orders WHERE state = 1",
            [],
            |row| row.get(0),
        )?;
        self.oldest_sent = oldest.and_then(|at| Timestamp::from_millisecond(at).ok());
        self.results =
            connection.query_row("SELECT count(*) FROM results", [], |row| row.get(0))?;
        if self.schema == schema::VERSION {
            let rows = "SELECT count(*) FROM journal";
            self.journal = connection.query_row(rows, [], |row| row.get(0))?;
        }
        Ok(())
    }
}

/// Copies a ledger into a new file that is marked as a copy, whole and durable.
fn copy(from: &Path, to: &Path) -> Result<(), CopyError> {
    let Seen {
        connection: source,
        schema,
        mode,
    } = open::look(from, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    if schema == 0 {
        return Err(CopyError::Empty(from.into()));
    }
    let file_error = |error| CopyError::File {
        path: to.into(),
        error,
    };
    let file = File::create_new(to).map_err(file_error)?;
    let mut target = Connection::open_with_flags(to, OpenFlags::SQLITE_OPEN_READ_WRITE)
        .map_err(|error| OpenError::store(to, error))?;
    pages(&source, &mut target).map_err(|error| OpenError::store(from, error))?;
    mark(&mut target, schema, mode.unwrap_or_default())
        .map_err(|error| OpenError::store(to, error))?;
    drop(target);
    file.sync_all().map_err(file_error)
}

fn pages(source: &Connection, target: &mut Connection) -> rusqlite::Result<()> {
    // It is flushed as a whole when it is whole.
    target.pragma_update(None, "synchronous", "OFF")?;
    // In a read of our own, or each commit of the worker's would begin the copy anew.
    source.execute_batch("BEGIN; SELECT count(*) FROM sqlite_schema;")?;
    let backup = Backup::new(source, target)?;
    while backup.step(STEP_PAGES)? != StepResult::Done {
        std::thread::sleep(STEP_PAUSE);
    }
    Ok(())
}

fn mark(copy: &mut Connection, schema: i32, mode: Mode) -> rusqlite::Result<()> {
    schema::migrate(copy, schema, mode)?;
    // The run that was copied from has not died.
    copy.execute_batch(
        "UPDATE marks SET is_copy = 1; UPDATE runs SET ended = 1; UPDATE trials SET is_on = 0;",
    )?;
    // One file without a log, by which it is known as a copy, too.
    copy.pragma_update(None, "journal_mode", "DELETE")
}

/// Durably.
fn rename(from: &Path, to: &Path) -> Result<(), CopyError> {
    let folder = to.parent().filter(|folder| *folder != Path::new(""));
    std::fs::rename(from, to)
        .and_then(|()| File::open(folder.unwrap_or(Path::new(".")))?.sync_all())
        .map_err(|error| CopyError::File {
            path: to.into(),
            error,
        })
}
