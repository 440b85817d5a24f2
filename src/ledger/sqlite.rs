//! The embedded store: one SQLite file, opened by one worker at a time.
//!
//! Write-ahead log with a flush at every commit (`synchronous = FULL`): a committed group survives
//! the loss of power. The file is SQLite's own format, so anyone can look into it, and a copy can be
//! made while the worker runs (`sqlite3 LEDGER ".backup COPY"`).

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, Row, Transaction, params};

use crate::rules::admit::Fingerprint;
use crate::rules::desk::{
    Claim, Claimed, LaneId, OrderRow, OrderState, Record, ResultRow, SendList,
};
use crate::rules::order::{AccountName, CommandId, Ending, OrderNo, Reason, ReasonCode};

/// `PRAGMA application_id` of a ledger, "wdtl": another program's file is never touched.
const APPLICATION_ID: i32 = 0x7764_746c;
/// `PRAGMA user_version`: the schema of this version.
const SCHEMA_VERSION: i32 = 1;
/// Pages kept in memory, in KiB.
const CACHE_KIB: i32 = 16 * 1024;
/// Pages in the log before they are moved into the file: 16 MiB at 4 KiB each.
const WAL_PAGES: i32 = 4096;

const SCHEMA: &str = "
CREATE TABLE orders (
    account    TEXT NOT NULL,
    order_no   TEXT NOT NULL,
    state      INTEGER NOT NULL,  -- 0 waiting, 1 sent without a recorded answer, 2 ended
    attempts   INTEGER NOT NULL,
    spent      INTEGER NOT NULL,
    since      INTEGER NOT NULL,  -- ms since 1970, like every time here
    code       TEXT,              -- the reason's code; null where ended as cancelled
    message    TEXT,
    changed_at INTEGER NOT NULL,
    PRIMARY KEY (account, order_no)
) WITHOUT ROWID;
CREATE INDEX orders_by_age ON orders (changed_at);
CREATE TABLE results (
    account     TEXT NOT NULL,
    command_id  TEXT NOT NULL,
    order_no    TEXT NOT NULL,
    fingerprint BLOB NOT NULL,
    code        TEXT,
    message     TEXT,
    attempts    INTEGER NOT NULL,
    occurred_at INTEGER NOT NULL,
    PRIMARY KEY (account, command_id, order_no)
) WITHOUT ROWID;
CREATE INDEX results_by_age ON results (occurred_at);
CREATE TABLE calls (
    account  TEXT NOT NULL,
    began_at INTEGER NOT NULL
);
";

/// Why a ledger cannot be opened. Each says what would do.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another worker has it.
    #[error("the ledger {} is in use by another worker; stop that one, or give this one a ledger.url of its own", .0.display())]
    Locked(PathBuf),
    /// The file or its folder cannot be used.
    #[error("the ledger {} cannot be opened: {source}; check the folder and its permissions", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// It is not a ledger.
    #[error("{} is not a ledger of this worker; name another file in ledger.url", .0.display())]
    Foreign(PathBuf),
    /// A later version wrote it.
    #[error("the ledger {} has schema {found}, this version knows {SCHEMA_VERSION}; start the version that wrote it", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its schema.
        found: i32,
    },
    /// The store says no.
    #[error("the ledger cannot be used: {0}")]
    Store(#[from] rusqlite::Error),
    /// No thread could be started for it.
    #[error("no thread for the ledger: {0}")]
    Thread(std::io::Error),
}

/// An open ledger.
pub(super) struct Store {
    connection: Connection,
    accounts: Vec<AccountName>,
    lanes: HashMap<AccountName, LaneId>,
    /// Held as long as the ledger is open; the system lets go of it even if the worker is killed.
    _lock: File,
}

impl Store {
    pub(super) fn open(path: &Path, accounts: Vec<AccountName>) -> Result<Self, OpenError> {
        let lock = lock(path)?;
        let connection = Connection::open(path)?;
        connection.busy_timeout(Duration::from_secs(5))?;
        let pragma = |name: &str| connection.query_row(&format!("PRAGMA {name}"), [], |r| r.get(0));
        let application_id: i32 =
            pragma("application_id").map_err(|error| not_a_database(error, path))?;
        let found: i32 = pragma("user_version")?;
        let tables: i32 =
            connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
        let is_new = application_id == 0 && found == 0 && tables == 0;
        if !is_new && application_id != APPLICATION_ID {
            return Err(OpenError::Foreign(path.into()));
        }
        if found > SCHEMA_VERSION {
            return Err(OpenError::Newer {
                path: path.into(),
                found,
            });
        }
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
        connection.pragma_update(None, "wal_autocheckpoint", WAL_PAGES)?;
        if is_new {
            connection.execute_batch(&format!(
                "BEGIN; {SCHEMA} PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
            ))?;
        }
        connection.set_prepared_statement_cache_capacity(32);
        let lanes = accounts
            .iter()
            .enumerate()
            .map(|(i, name)| (name.clone(), LaneId(i)))
            .collect();
        Ok(Self {
            connection,
            accounts,
            lanes,
            _lock: lock,
        })
    }

    pub(super) fn recent_calls(
        &self,
        now: Timestamp,
        within: Duration,
    ) -> rusqlite::Result<Vec<(LaneId, Duration)>> {
        let after = now.as_millisecond() - millis(within);
        let mut statement = self
            .connection
            .prepare("SELECT account, began_at FROM calls WHERE began_at > ?1 ORDER BY began_at")?;
        let rows = statement.query_map([after], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?))
        })?;
        let mut calls = Vec::new();
        for row in rows {
            let (account, began_at) = row?;
            let lane = AccountName::new(&account).and_then(|name| self.lanes.get(&name).copied());
            if let Some(lane) = lane {
                let ago = u64::try_from(now.as_millisecond() - began_at).unwrap_or(0);
                calls.push((lane, Duration::from_millis(ago)));
            }
        }
        Ok(calls)
    }

    pub(super) fn claim(&mut self, claim: &Claim) -> rusqlite::Result<Claimed> {
        let account = self.accounts[claim.lane.0].as_str();
        let mut by_command = self.connection.prepare_cached(
            "SELECT order_no, fingerprint, code, message, attempts, occurred_at
             FROM results WHERE account = ?1 AND command_id = ?2",
        )?;
        let results = by_command
            .query_map(params![account, claim.command_id.as_str()], |row| {
                result_row(row, claim.lane, &claim.command_id)
            })?
            .collect::<rusqlite::Result<Vec<_>>>()?;
        let mut by_number = self.connection.prepare_cached(
            "SELECT state, attempts, spent, since, code, message, changed_at
             FROM orders WHERE account = ?1 AND order_no = ?2",
        )?;
        let mut orders = Vec::with_capacity(claim.orders.len());
        for (key, order_no) in &claim.orders {
            let row = by_number
                .query_row(params![account, order_no.as_str()], |row| {
                    order_row(row, claim.lane, order_no)
                })
                .optional()?;
            orders.push((*key, row));
        }
        Ok(Claimed {
            command: claim.command,
            results,
            orders,
        })
    }

    pub(super) fn begin(&mut self) -> rusqlite::Result<Writing<'_>> {
        Ok(Writing {
            transaction: self.connection.transaction()?,
            accounts: &self.accounts,
        })
    }

    /// Forgets up to `most` rows of each table that did not change since `before`, and calls that
    /// count no longer.
    pub(super) fn prune(
        &mut self,
        before: Timestamp,
        most: u32,
        calls_kept: Duration,
    ) -> rusqlite::Result<()> {
        let before = before.as_millisecond();
        let transaction = self.connection.transaction()?;
        transaction
            .prepare_cached(
                "DELETE FROM orders WHERE (account, order_no) IN
                 (SELECT account, order_no FROM orders WHERE changed_at < ?1 LIMIT ?2)",
            )?
            .execute(params![before, most])?;
        transaction
            .prepare_cached(
                "DELETE FROM results WHERE (account, command_id, order_no) IN
                 (SELECT account, command_id, order_no FROM results WHERE occurred_at < ?1 LIMIT ?2)",
            )?
            .execute(params![before, most])?;
        let calls_before = Timestamp::now().as_millisecond() - millis(calls_kept);
        transaction
            .prepare_cached("DELETE FROM calls WHERE began_at < ?1")?
            .execute([calls_before])?;
        transaction.commit()
    }
}

/// A group being written: durable as a whole, or not at all.
pub(super) struct Writing<'a> {
    transaction: Transaction<'a>,
    accounts: &'a [AccountName],
}

impl Writing<'_> {
    pub(super) fn send(&self, list: &SendList, at: Timestamp) -> rusqlite::Result<()> {
        self.call(list.lane, at)?;
        self.orders(&list.orders)
    }

    pub(super) fn record(&self, record: &Record) -> rusqlite::Result<()> {
        self.orders(&record.orders)?;
        let mut statement = self.transaction.prepare_cached(
            "INSERT OR REPLACE INTO results
             (account, command_id, order_no, fingerprint, code, message, attempts, occurred_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        )?;
        for row in &record.results {
            let (code, message) = words(&row.ending);
            statement.execute(params![
                self.accounts[row.lane.0].as_str(),
                row.command_id.as_str(),
                &*row.order_no,
                row.fingerprint.0,
                code,
                message,
                row.attempts,
                row.occurred_at.as_millisecond(),
            ])?;
        }
        Ok(())
    }

    pub(super) fn call(&self, lane: LaneId, at: Timestamp) -> rusqlite::Result<()> {
        self.transaction
            .prepare_cached("INSERT INTO calls (account, began_at) VALUES (?1, ?2)")?
            .execute(params![self.accounts[lane.0].as_str(), at.as_millisecond()])?;
        Ok(())
    }

    fn orders(&self, rows: &[OrderRow]) -> rusqlite::Result<()> {
        let mut statement = self.transaction.prepare_cached(
            "INSERT OR REPLACE INTO orders
             (account, order_no, state, attempts, spent, since, code, message, changed_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
        )?;
        let now = Timestamp::now();
        for row in rows {
            let (state, (code, message), changed_at) = match &row.state {
                OrderState::Waiting => (WAITING, (None, None), now),
                OrderState::Sent => (SENT, (None, None), now),
                OrderState::Ended(ending, at) => (ENDED, words(ending), *at),
            };
            statement.execute(params![
                self.accounts[row.lane.0].as_str(),
                row.order_no.as_str(),
                state,
                row.attempts,
                row.spent,
                row.since.as_millisecond(),
                code,
                message,
                changed_at.as_millisecond(),
            ])?;
        }
        Ok(())
    }

    pub(super) fn commit(self) -> rusqlite::Result<()> {
        self.transaction.commit()
    }
}

const WAITING: u8 = 0;
const SENT: u8 = 1;
const ENDED: u8 = 2;

fn lock(path: &Path) -> Result<File, OpenError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let file_error = |source| OpenError::File {
        path: path.into(),
        source,
    };
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(PathBuf::from(name))
        .map_err(file_error)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(OpenError::Locked(path.into())),
        Err(std::fs::TryLockError::Error(source)) => Err(file_error(source)),
    }
}

fn not_a_database(error: rusqlite::Error, path: &Path) -> OpenError {
    match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::NotADatabase) => OpenError::Foreign(path.into()),
        _ => OpenError::Store(error),
    }
}

fn words(ending: &Ending) -> (Option<&'static str>, Option<&str>) {
    match ending.reason() {
        None => (None, None),
        Some(reason) => (Some(reason.code.as_str()), Some(&reason.message)),
    }
}

/// An ending as recorded: without a code it is `cancelled`.
fn ending(code: Option<String>, message: Option<String>) -> rusqlite::Result<Ending> {
    let Some(code) = code else {
        return Ok(Ending::Cancelled);
    };
    let known = ReasonCode::parse(&code).ok_or_else(|| damaged("code", &code))?;
    Ok(Ending::Not(Reason::new(known, message.unwrap_or_default())))
}

fn damaged(column: &str, value: &str) -> rusqlite::Error {
    let what = format!("the ledger is damaged: {column} is {value:?}");
    rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, what.into())
}

fn timestamp(millis: i64) -> rusqlite::Result<Timestamp> {
    Timestamp::from_millisecond(millis).map_err(|_| damaged("a time", &millis.to_string()))
}

fn order_row(row: &Row<'_>, lane: LaneId, order_no: &OrderNo) -> rusqlite::Result<OrderRow> {
    let state = match row.get::<_, u8>(0)? {
        WAITING => OrderState::Waiting,
        SENT => OrderState::Sent,
        ENDED => OrderState::Ended(ending(row.get(4)?, row.get(5)?)?, timestamp(row.get(6)?)?),
        other => return Err(damaged("state", &other.to_string())),
    };
    Ok(OrderRow {
        lane,
        order_no: order_no.clone(),
        state,
        attempts: row.get(1)?,
        spent: row.get(2)?,
        since: timestamp(row.get(3)?)?,
    })
}

fn result_row(row: &Row<'_>, lane: LaneId, command_id: &CommandId) -> rusqlite::Result<ResultRow> {
    Ok(ResultRow {
        lane,
        command_id: command_id.clone(),
        order_no: row.get::<_, String>(0)?.into(),
        fingerprint: Fingerprint(row.get(1)?),
        ending: ending(row.get(2)?, row.get(3)?)?,
        attempts: row.get(4)?,
        occurred_at: timestamp(row.get(5)?)?,
    })
}

fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}
