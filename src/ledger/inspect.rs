//! A look at an embedded ledger that neither opens it for writing nor takes its lock.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use rusqlite::OpenFlags;

use super::OpenError;
use super::open::{self, Seen, beside};

/// For damage, as at a start.
const LOOK_FOR_DAMAGE: Duration = Duration::from_millis(500);

/// How a ledger fares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// There is no file yet.
    Absent,
    /// It can be read, and no worker has it.
    Free,
    /// A worker has it.
    InUse,
}

/// Looks.
///
/// # Errors
/// When a worker could not use it.
pub fn inspect(path: &Path) -> Result<Condition, OpenError> {
    match path.metadata() {
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let folder = match path.parent() {
                Some(folder) if !folder.as_os_str().is_empty() => folder,
                _ => Path::new("."),
            };
            return match folder.metadata() {
                Ok(_) => Ok(Condition::Absent),
                Err(error) => Err(OpenError::file(path, error)),
            };
        }
        Err(error) => return Err(OpenError::file(path, error)),
    }
    let path = &path
        .canonicalize()
        .map_err(|error| OpenError::file(path, error))?;
    let Seen { mut connection, .. } = open::look(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    match open::damage(&mut connection, Some(LOOK_FOR_DAMAGE)) {
        Ok(None) => {}
        Ok(Some(what)) => {
            let path = path.into();
            return Err(OpenError::Damaged { path, what });
        }
        Err(error) => return Err(OpenError::store(path, error)),
    }
    Ok(match is_locked(&beside(path, ".lock")) {
        true => Condition::InUse,
        false => Condition::Free,
    })
}

/// Whether some process has locked this file, as the kernel lists it. To try the lock would take it
/// for a moment, in which a worker could not start.
fn is_locked(lock: &Path) -> bool {
    let (Ok(file), Ok(locks)) = (lock.metadata(), fs::read_to_string("/proc/locks")) else {
        return false;
    };
    let inode = file.ino().to_string();
    locks.lines().any(|line| {
        let mut fields = line.split_whitespace();
        fields.nth(1) == Some("FLOCK")
            && fields
                .nth(3)
                .is_some_and(|id| id.rsplit(':').next() == Some(&inode))
    })
}
