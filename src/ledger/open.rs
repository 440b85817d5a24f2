//! Before a ledger is read or written: that nobody else has it, that it is one, and that it is whole.
//!
//! Beside the ledger lies `LEDGER.lock`. It is locked while a worker has the ledger, and it is a
//! *witness*: it holds the number of the last commit, written after the commit was durable. So a
//! ledger with fewer commits than that has lost what it once had: its log is gone or damaged, or an
//! older copy was put in its place. It cannot be trusted, for orders were sent of which it knows
//! nothing.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::schema;
use crate::rules::dry_run::Mode;

/// How long a start may look for damage: all of a small ledger, the beginning of a large one, which
/// would take minutes.
const LOOK_FOR_DAMAGE: Duration = Duration::from_millis(500);
/// Steps of SQLite's between two looks at the clock.
const STEPS: i32 = 100;
/// How long another process's read of the file is waited for.
const BUSY: Duration = Duration::from_secs(5);

/// Why a ledger cannot be opened. Each says what would do.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another worker has it.
    #[error("the ledger {} is in use by another worker; stop that one, or give this one a ledger.url of its own", .0.display())]
    Locked(PathBuf),
    /// The file or its folder cannot be used.
    #[error("the ledger {} cannot be opened: {error}; check the folder and its permissions", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: std::io::Error,
    },
    /// It can be read, and nothing more.
    #[error("the ledger {} can only be read; give the worker leave to write it", .0.display())]
    ReadOnly(PathBuf),
    /// A second name would have a log of its own, and each would miss what is in the other's.
    #[error("the ledger {} has {names} names (hard links); leave it one", path.display())]
    Linked {
        /// The file.
        path: PathBuf,
        /// How many it has.
        names: u64,
    },
    /// It is not a ledger.
    #[error("{} is not a ledger of this worker, or its beginning is damaged; name another file in ledger.url, or restore a back-up: wdt-cancel-worker ledger restore FILE", .0.display())]
    Foreign(PathBuf),
    /// Dry runs made it, and this is none.
    #[error("the ledger {} is one of dry runs, which cancelled nothing of what it says; name another file in ledger.url", .0.display())]
    OfDryRuns(PathBuf),
    /// This is a dry run, and it is a real one.
    #[error("the ledger {} is not one of dry runs, and this is one; name another file in ledger.url", .0.display())]
    OfLiveRuns(PathBuf),
    /// A later version wrote it.
    #[error("the ledger {} has schema {found}, this version knows {}; start the version that wrote it", path.display(), schema::VERSION)]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its schema.
        found: i32,
    },
    /// What is in it contradicts itself.
    #[error("the ledger {} is damaged: {what}; restore a back-up: wdt-cancel-worker ledger restore FILE", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// It was newer once.
    #[error("the ledger {} has lost what it knew: commit {witnessed} was durable, and it ends with {found}, so its log was removed or damaged, or an older copy took its place; restore a back-up, or what is left: wdt-cancel-worker ledger restore FILE", path.display())]
    Lost {
        /// The file.
        path: PathBuf,
        /// The last commit in it.
        found: u64,
        /// The last that it had.
        witnessed: u64,
    },
    /// The log of what was here before would be read as the copy's own.
    #[error("the ledger {} is a back-up beside the log of another ledger; put it in place with: wdt-cancel-worker ledger restore FILE", .0.display())]
    StrangeLog(PathBuf),
    /// The store says no.
    #[error("the ledger {} cannot be used: {error}; check the disk that it is on", path.display())]
    Store {
        /// The file.
        path: PathBuf,
        /// What it says.
        error: rusqlite::Error,
    },
    /// No thread could be started for it.
    #[error("no thread for the ledger: {0}")]
    Thread(std::io::Error),
}

impl OpenError {
    pub(super) fn file(path: &Path, error: std::io::Error) -> Self {
        let path = path.into();
        Self::File { path, error }
    }

    /// It is not one of `mode`.
    pub(super) fn of_other_mode(path: &Path, mode: Mode) -> Self {
        match mode {
            Mode::Live => Self::OfDryRuns(path.into()),
            Mode::DryRun => Self::OfLiveRuns(path.into()),
        }
    }

    pub(super) fn store(path: &Path, error: rusqlite::Error) -> Self {
        let path = path.into();
        match error.sqlite_error_code() {
            Some(ErrorCode::NotADatabase) => Self::Foreign(path),
            Some(ErrorCode::ReadOnly) => Self::ReadOnly(path),
            Some(ErrorCode::DatabaseCorrupt) => Self::Damaged {
                path,
                what: error.to_string(),
            },
            _ => Self::Store { path, error },
        }
    }
}

/// A ledger's file, in the hands of this process alone; the system lets go of it even if the
/// process is killed.
#[derive(Debug)]
pub(super) struct Held {
    /// Without symbolic links, so that it has one log and one lock whatever it is called.
    pub(super) path: PathBuf,
    lock: File,
    device_and_inode: (u64, u64),
}

/// Takes the file in hand; makes an empty one where there is none.
pub(super) fn hold(named: &Path) -> Result<Held, OpenError> {
    let file_error = |error| OpenError::file(named, error);
    let made = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(named);
    match made {
        Ok(_) => {}
        Err(error) if only_readable(&error) && named.exists() => {
            return Err(OpenError::ReadOnly(named.into()));
        }
        Err(error) => return Err(file_error(error)),
    }
    let path = named.canonicalize().map_err(file_error)?;
    let lock = OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(beside(&path, ".lock"))
        .map_err(file_error)?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(std::fs::TryLockError::WouldBlock) => return Err(OpenError::Locked(named.into())),
        Err(std::fs::TryLockError::Error(error)) => return Err(file_error(error)),
    }
    let file = path.metadata().map_err(file_error)?;
    Ok(Held {
        device_and_inode: (file.dev(), file.ino()),
        path,
        lock,
    })
}

impl Held {
    /// The last commit that was durable, where that is known.
    pub(super) fn witnessed(&self) -> u64 {
        let mut digits = [0; 20];
        match self.lock.read_exact_at(&mut digits, 0) {
            Ok(()) => std::str::from_utf8(&digits)
                .ok()
                .and_then(|text| text.parse().ok())
                .unwrap_or(0),
            Err(_) => 0,
        }
    }

    /// Notes that this commit is durable. It need not be durable itself: one that is behind warns
    /// of less, and is never wrong.
    pub(super) fn witness(&self, commit: u64) -> std::io::Result<()> {
        self.lock
            .write_all_at(format!("{commit:020}\n").as_bytes(), 0)
    }

    /// False when the file has been removed or another took its place: what is written to it from
    /// then on is gone when the worker stops.
    pub(super) fn is_in_place(&self) -> bool {
        self.path
            .metadata()
            .is_ok_and(|file| (file.dev(), file.ino()) == self.device_and_inode)
    }
}

/// What can be seen without a look inside.
pub(super) fn examine_outside(named: &Path, held: &Held) -> Result<(), OpenError> {
    let file_error = |error| OpenError::file(named, error);
    let file = held.path.metadata().map_err(file_error)?;
    if file.nlink() > 1 {
        let (path, names) = (named.into(), file.nlink());
        return Err(OpenError::Linked { path, names });
    }
    let mut head = Vec::new();
    let reader = File::open(&held.path).map_err(file_error)?;
    reader.take(20).read_to_end(&mut head).map_err(file_error)?;
    let has_log = beside(&held.path, "-wal")
        .metadata()
        .is_ok_and(|log| log.len() > 0);
    // Byte 18 is 2 as long as a file has a log. A copy has none.
    if has_log && head.get(18) == Some(&1) {
        return Err(OpenError::StrangeLog(named.into()));
    }
    Ok(())
}

/// An open file, and what it says of itself.
pub(super) struct Seen {
    pub(super) connection: Connection,
    /// 0: it is empty.
    pub(super) schema: i32,
    /// Whose ledger it is; nobody's while it is empty.
    pub(super) mode: Option<Mode>,
}

/// Opens a file without changing it.
///
/// # Errors
/// When it is not a ledger, or one of a later version.
pub(super) fn look(path: &Path, flags: OpenFlags) -> Result<Seen, OpenError> {
    let store_error = |error| OpenError::store(path, error);
    // SQLite would say of a file that is not there that it cannot be opened, and not why.
    path.metadata()
        .map_err(|error| OpenError::file(path, error))?;
    let flags = flags | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(store_error)?;
    connection.busy_timeout(BUSY).map_err(store_error)?;
    let number = |sql: &str| {
        let number = connection.query_row(sql, [], |row| row.get::<_, i32>(0));
        number.map_err(store_error)
    };
    let application_id = number("PRAGMA application_id")?;
    let schema = number("PRAGMA user_version")?;
    let is_empty = number("SELECT count(*) FROM sqlite_schema")? == 0;
    let mode = [Mode::Live, Mode::DryRun]
        .into_iter()
        .find(|mode| schema::application_id(*mode) == application_id);
    if !(is_empty && application_id == 0 && schema == 0) && (mode.is_none() || schema < 1) {
        return Err(OpenError::Foreign(path.into()));
    }
    if schema > schema::VERSION {
        let (path, found) = (path.into(), schema);
        return Err(OpenError::Newer { path, found });
    }
    Ok(Seen {
        connection,
        schema,
        mode,
    })
}

/// Looks for damage, for so long at most; what it found first.
///
/// # Errors
/// When it cannot be read.
pub(super) fn damage(
    connection: &mut Connection,
    at_most: Option<Duration>,
) -> rusqlite::Result<Option<String>> {
    if let Some(at_most) = at_most {
        let end = Instant::now() + at_most;
        connection.progress_handler(STEPS, Some(move || Instant::now() >= end))?;
    }
    let found = connection.query_row("PRAGMA integrity_check(1)", [], |row| {
        row.get::<_, String>(0)
    });
    connection.progress_handler(0, None::<fn() -> bool>)?;
    match found {
        Ok(found) if found == "ok" => Ok(None),
        // It may have several lines; the first says where.
        Ok(found) => Ok(Some(found.lines().next().unwrap_or_default().to_owned())),
        Err(error) => match error.sqlite_error_code() {
            Some(ErrorCode::OperationInterrupted) => Ok(None),
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
                Ok(Some(error.to_string()))
            }
            _ => Err(error),
        },
    }
}

/// A short look for damage at the start.
pub(super) fn examine_inside(named: &Path, connection: &mut Connection) -> Result<(), OpenError> {
    match damage(connection, Some(LOOK_FOR_DAMAGE)) {
        Ok(None) => Ok(()),
        Ok(Some(what)) => Err(OpenError::Damaged {
            path: named.into(),
            what,
        }),
        Err(error) => Err(OpenError::store(named, error)),
    }
}

/// Whether what is in the file contradicts itself. Trying again mends nothing then, and another
/// answer from the same file is worth nothing.
pub(super) fn is_damage(error: &rusqlite::Error) -> bool {
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => true,
        Some(_) => false,
        // Not the system's word, so it is what we read.
        None => true,
    }
}

/// A file's neighbour.
pub(super) fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    PathBuf::from(name)
}

fn only_readable(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem
    )
}
