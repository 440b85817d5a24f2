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
use md5::{Digest as _, Md5};
use rusqlite::{Connection, ErrorCode, MAIN_DB, OptionalExtension as _, Row, Transaction, params};

use super::schema::{self, APPLICATION_ID};
use crate::rules::admit::Fingerprint;
use crate::rules::desk::{
    Claim, Claimed, Fence, Holding, LaneId, OrderRow, OrderState, Record, ResultRow, SendList,
};
use crate::rules::order::{AccountName, CommandId, Ending, OrderNo, Reason, ReasonCode};

/// Pages kept in memory, in KiB.
const CACHE_KIB: i32 = 16 * 1024;
/// Pages in the log before they are moved into the file. More of them write faster and pause
/// longer; with these the longest commit measured was 20 ms.
const WAL_PAGES: i32 = 1000;

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
    /// It is not a ledger.
    #[error("{} is not a ledger of this worker; name another file in ledger.url", .0.display())]
    Foreign(PathBuf),
    /// A later version wrote it.
    #[error("the ledger {} has schema {found}, this version knows {}; start the version that wrote it", path.display(), schema::VERSION)]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its schema.
        found: i32,
    },
    /// The store says no.
    #[error("the ledger {} cannot be used: {error}", path.display())]
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

/// An open ledger.
pub(super) struct Store {
    pub(super) connection: Connection,
    accounts: Vec<AccountName>,
    lanes: HashMap<AccountName, LaneId>,
    /// Held as long as the ledger is open; the system lets go of it even if the worker is killed.
    _lock: File,
}

impl Store {
    pub(super) fn open(path: &Path, accounts: Vec<AccountName>) -> Result<Self, OpenError> {
        let lock = lock(path)?;
        let (mut connection, [application_id, found, tables]) =
            look(path).map_err(|error| OpenError::store(path, error))?;
        let is_new = application_id == 0 && found == 0 && tables == 0;
        if !is_new && (application_id != APPLICATION_ID || found < 1) {
            return Err(OpenError::Foreign(path.into()));
        }
        if found > schema::VERSION {
            return Err(OpenError::Newer {
                path: path.into(),
                found,
            });
        }
        let read_only = connection.is_readonly(MAIN_DB);
        if read_only.map_err(|error| OpenError::store(path, error))? {
            return Err(OpenError::ReadOnly(path.into()));
        }
        prepare(&mut connection, found).map_err(|error| OpenError::store(path, error))?;
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
             FROM results WHERE command_key = ?1 AND account = ?2 AND command_id = ?3",
        )?;
        let command_id = claim.command_id.as_str();
        let results = by_command
            .query_map(
                params![command_key(account, command_id), account, command_id],
                |row| result_row(row, claim.lane, &claim.command_id),
            )?
            .collect::<rusqlite::Result<Vec<_>>>()?;
        let mut by_number = self.connection.prepare_cached(
            "SELECT state, attempts, spent, since, code, message, changed_at
             FROM orders WHERE order_no = ?2 AND account = ?1",
        )?;
        let mut orders = Vec::with_capacity(claim.orders.len());
        for (key, order_no) in &claim.orders {
            let row = by_number
                .query_row(params![account, order_no.as_str()], |row| {
                    order_row(row, claim.lane, order_no)
                })
                .optional()?;
            orders.push((*key, Holding::Ours(row, Fence::default())));
        }
        Ok(Claimed {
            command: claim.command,
            results,
            id_is_taken: false,
            orders,
        })
    }

    pub(super) fn begin(&mut self) -> rusqlite::Result<Writing<'_>> {
        Ok(Writing {
            transaction: self.connection.transaction()?,
            accounts: &self.accounts,
        })
    }

    /// Looks at the `most` oldest rows of each table and forgets those that did not change since
    /// `before`; forgets calls that count no longer. An order that has not ended stays: that it was
    /// sent must be known when its command comes again, be it after a long standstill.
    pub(super) fn prune(
        &mut self,
        before: Timestamp,
        most: u32,
        calls_kept: Duration,
    ) -> rusqlite::Result<()> {
        let before = before.as_millisecond();
        let transaction = self.connection.transaction()?;
        let ended = format!("WHERE state = {ENDED}");
        for (table, which, changed) in [
            ("orders", &*ended, "changed_at"),
            ("results", "", "occurred_at"),
        ] {
            // From the oldest row on, up to the first that is still to be remembered.
            let sql = format!(
                "DELETE FROM {table} WHERE id IN (SELECT id FROM {table} {which} ORDER BY id LIMIT ?2)
                 AND {changed} < ?1"
            );
            transaction
                .prepare_cached(&sql)?
                .execute(params![before, most])?;
        }
        let calls_before = Timestamp::now().as_millisecond() - millis(calls_kept);
        transaction
            .prepare_cached("DELETE FROM calls WHERE began_at < ?1")?
            .execute([calls_before])?;
        transaction.commit()
    }
}

/// A group being written: durable as a whole, or not at all.
pub(super) struct Writing<'a> {
    pub(super) transaction: Transaction<'a>,
    accounts: &'a [AccountName],
}

impl Writing<'_> {
    pub(super) fn send(&self, list: &SendList, at: Timestamp) -> rusqlite::Result<()> {
        self.call(list.lane, at)?;
        self.orders(&list.orders)
    }

    pub(super) fn record(&self, record: &Record) -> rusqlite::Result<()> {
        self.orders(&record.orders)?;
        // A result replaces one only when the command came again and the order was tried again.
        let mut replace = self.transaction.prepare_cached(
            "UPDATE results SET fingerprint = ?5, code = ?6, message = ?7, attempts = ?8, occurred_at = ?9
             WHERE command_key = ?1 AND order_no = ?4 AND account = ?2 AND command_id = ?3",
        )?;
        let mut insert = self.transaction.prepare_cached(
            "INSERT INTO results
             (command_key, account, command_id, order_no, fingerprint, code, message, attempts, occurred_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
        )?;
        for row in &record.results {
            let account = self.accounts[row.lane.0].as_str();
            let command_id = row.command_id.as_str();
            let (code, message) = words(&row.ending);
            let values = params![
                command_key(account, command_id),
                account,
                command_id,
                &*row.order_no,
                row.fingerprint.0,
                code,
                message,
                row.attempts,
                row.occurred_at.as_millisecond(),
            ];
            if replace.execute(values)? == 0 {
                insert.execute(values)?;
            }
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
            "INSERT INTO orders
             (account, order_no, state, attempts, spent, since, code, message, changed_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)
             ON CONFLICT (order_no, account) DO UPDATE SET
             state = ?3, attempts = ?4, spent = ?5, since = ?6, code = ?7, message = ?8, changed_at = ?9",
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
    let file_error = |error| OpenError::File {
        path: path.into(),
        error,
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
        Err(std::fs::TryLockError::Error(error)) => Err(file_error(error)),
    }
}

impl OpenError {
    pub(super) fn store(path: &Path, error: rusqlite::Error) -> Self {
        let path = path.into();
        match error.sqlite_error_code() {
            Some(ErrorCode::NotADatabase) => Self::Foreign(path),
            Some(ErrorCode::ReadOnly) => Self::ReadOnly(path),
            _ => Self::Store { path, error },
        }
    }
}

/// Opens a file without changing it; its application id, its schema's version, how many tables.
fn look(path: &Path) -> rusqlite::Result<(Connection, [i32; 3])> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(Duration::from_secs(5))?;
    let number = |sql: &str| connection.query_row(sql, [], |row| row.get(0));
    let found = [
        number("PRAGMA application_id")?,
        number("PRAGMA user_version")?,
        number("SELECT count(*) FROM sqlite_schema")?,
    ];
    Ok((connection, found))
}

fn prepare(connection: &mut Connection, found: i32) -> rusqlite::Result<()> {
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
    connection.pragma_update(None, "wal_autocheckpoint", WAL_PAGES)?;
    schema::migrate(connection, found)?;
    connection.set_prepared_statement_cache_capacity(32);
    Ok(())
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
        fence: Fence::default(),
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
        fence: None,
    })
}

/// Eight bytes of a hash of whose command it is.
fn command_key(account: &str, command_id: &str) -> i64 {
    let mut hash = Md5::new();
    hash.update(account.as_bytes());
    // No account's name holds it, so this parts the two for certain.
    hash.update(b"\n");
    hash.update(command_id.as_bytes());
    let bytes: [u8; 16] = hash.finalize().into();
    i64::from_le_bytes(std::array::from_fn(|i| bytes[i]))
}

fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::desk::CallId;
    use crate::rules::lane::OrderKey;

    const LANE: LaneId = LaneId(0);

    fn accounts() -> Vec<AccountName> {
        vec![AccountName::new("default").unwrap()]
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).unwrap()
    }

    fn order(number: &str, state: OrderState) -> OrderRow {
        OrderRow {
            lane: LANE,
            order_no: OrderNo::new(number).unwrap(),
            state,
            attempts: 2,
            spent: 1,
            since: at(-60),
            fence: Fence::default(),
        }
    }

    fn result(command: &str, number: &str, ending: Ending, occurred_at: Timestamp) -> ResultRow {
        ResultRow {
            lane: LANE,
            command_id: CommandId::new(command).unwrap(),
            fingerprint: Fingerprint([7; 16]),
            order_no: number.into(),
            ending,
            attempts: 2,
            occurred_at,
            fence: None,
        }
    }

    fn failed() -> Ending {
        Ending::not(ReasonCode::ApiUnavailable, "稍后再试")
    }

    fn write(store: &mut Store, orders: Vec<OrderRow>, results: Vec<ResultRow>) {
        let writing = store.begin().unwrap();
        let id = crate::rules::desk::RecordId::default();
        writing
            .record(&Record {
                id,
                orders,
                results,
            })
            .unwrap();
        writing.commit().unwrap();
    }

    fn claim(store: &mut Store, command: &str, number: &str) -> (Vec<ResultRow>, Option<OrderRow>) {
        let claim = Claim {
            command: crate::rules::desk::CommandKey::default(),
            lane: LANE,
            command_id: CommandId::new(command).unwrap(),
            fingerprint: Fingerprint([7; 16]),
            orders: vec![(OrderKey(1), OrderNo::new(number).unwrap())],
        };
        let mut claimed = store.claim(&claim).unwrap();
        let Holding::Ours(row, _) = claimed.orders.remove(0).1 else {
            panic!("an embedded ledger has one worker");
        };
        (claimed.results, row)
    }

    #[test]
    fn what_was_written_is_claimed_also_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger");
        let rows = [
            order("QC1", OrderState::Ended(Ending::Cancelled, at(0))),
            order("QC2", OrderState::Ended(failed(), at(1))),
            order("QC3", OrderState::Sent),
            order("QC4", OrderState::Waiting),
        ];
        let told = [
            result("c", "QC1", Ending::Cancelled, at(0)),
            result("c", "QC2", failed(), at(1)),
            result("d", "QC1", Ending::Cancelled, at(2)),
        ];
        {
            let mut store = Store::open(&path, accounts()).unwrap();
            write(&mut store, rows.to_vec(), told.to_vec());
        }
        let mut store = Store::open(&path, accounts()).unwrap();
        for row in &rows {
            let (_, known) = claim(&mut store, "nobody's", row.order_no.as_str());
            assert_eq!(known.as_ref(), Some(row));
        }
        let (results, unknown) = claim(&mut store, "c", "QC9");
        assert_eq!((results.as_slice(), unknown), (&told[..2], None));
    }

    #[test]
    fn a_later_record_replaces_an_earlier_one() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Store::open(&folder.path().join("ledger"), accounts()).unwrap();
        let early = vec![order("QC1", OrderState::Sent)];
        write(&mut store, early, vec![result("c", "QC1", failed(), at(0))]);
        let late = order("QC1", OrderState::Ended(Ending::Cancelled, at(5)));
        let told = result("c", "QC1", Ending::Cancelled, at(5));
        write(&mut store, vec![late.clone()], vec![told.clone()]);
        assert_eq!(claim(&mut store, "c", "QC1"), (vec![told], Some(late)));
    }

    #[test]
    fn what_is_old_is_forgotten_in_steps() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Store::open(&folder.path().join("ledger"), accounts()).unwrap();
        for n in 0..5 {
            let number = format!("QC{n}");
            let row = order(&number, OrderState::Ended(Ending::Cancelled, at(n)));
            let told = result("c", &number, Ending::Cancelled, at(n));
            write(&mut store, vec![row], vec![told]);
        }
        let mut left = Vec::new();
        for _ in 0..4 {
            store.prune(at(3), 2, Duration::ZERO).unwrap();
            left.push(claim(&mut store, "c", "QC9").0.len());
        }
        assert_eq!(left, [3, 2, 2, 2], "two at a time, and only what is old");
        assert_eq!(claim(&mut store, "c", "QC2").1, None);
        assert!(claim(&mut store, "c", "QC3").1.is_some());
    }

    #[test]
    fn recent_calls_are_remembered() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Store::open(&folder.path().join("ledger"), accounts()).unwrap();
        let writing = store.begin().unwrap();
        let list = SendList {
            call: CallId(1),
            lane: LANE,
            orders: vec![order("QC1", OrderState::Sent)],
        };
        writing.send(&list, at(-30)).unwrap();
        writing.call(LANE, at(-90)).unwrap();
        writing.commit().unwrap();
        let calls = store.recent_calls(at(0), Duration::from_secs(60)).unwrap();
        assert_eq!(calls, [(LANE, Duration::from_secs(30))]);
    }

    #[test]
    fn another_file_is_never_touched() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("other");
        let open = || Store::open(&path, accounts()).map(|_| ());
        std::fs::write(
            &path,
            "a text that is not a database, and long enough to look at",
        )
        .unwrap();
        assert!(matches!(open(), Err(OpenError::Foreign(_))));
        std::fs::remove_file(&path).unwrap();
        Connection::open(&path)
            .unwrap()
            .execute_batch("CREATE TABLE t (x)")
            .unwrap();
        assert!(matches!(open(), Err(OpenError::Foreign(_))));
        std::fs::remove_file(&path).unwrap();
        open().unwrap();
        let later = Connection::open(&path).unwrap();
        later
            .pragma_update(None, "user_version", schema::VERSION + 1)
            .unwrap();
        let newer = schema::VERSION + 1;
        assert!(matches!(open(), Err(OpenError::Newer { found, .. }) if found == newer));
        let _held = lock(&path).unwrap();
        assert!(matches!(open(), Err(OpenError::Locked(_))));
    }
}
