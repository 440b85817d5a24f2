//! The embedded store: one SQLite file, opened by one worker at a time.
//!
//! Write-ahead log with a flush at every commit (`synchronous = FULL`): a committed group survives
//! the loss of power. The file is SQLite's own format, so anyone can look into it.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use md5::{Digest as _, Md5};
use rusqlite::{
    CachedStatement, Connection, MAIN_DB, OpenFlags, OptionalExtension as _, Row, Transaction,
    params,
};

use super::journal::{self, Head, Page, Scribe};
use super::keys::{Keys, NEW_MOST, key_of, keys_of};
use super::open::{self, Held, OpenError, Seen};
use super::schema;
use crate::rules::admit::Fingerprint;
use crate::rules::desk::{
    Claim, Claimed, Fence, Holding, LaneId, OrderRow, OrderState, Record, ResultRow, SendList,
};
use crate::rules::dry_run::Mode;
use crate::rules::order::{AccountName, CommandId, Ending, OrderNo, Reason, ReasonCode};

/// Pages kept in memory, in KiB.
const CACHE_KIB: i32 = 8 * 1024;
/// Pages in the log before they are moved into the file. More of them write faster and pause
/// longer; with these the longest commit measured was 20 ms.
const WAL_PAGES: i32 = 1000;

/// An open ledger.
pub(super) struct Store {
    pub(super) connection: Connection,
    pub(super) accounts: Vec<AccountName>,
    lanes: HashMap<AccountName, LaneId>,
    keys: Keys,
    scribe: Scribe,
    /// Commands of which nothing was recorded when they were claimed, and nothing has been since.
    unrecorded: Unrecorded,
    /// The number of the last commit.
    commits: u64,
    restored_at: Option<Timestamp>,
    held: Held,
}

impl Store {
    pub(super) fn open(
        mode: Mode,
        path: &Path,
        accounts: Vec<AccountName>,
    ) -> Result<Self, OpenError> {
        let held = open::hold(path)?;
        open::examine_outside(path, &held)?;
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE;
        let Seen {
            mut connection,
            schema,
            mode: found,
        } = open::look(&held.path, flags)?;
        if found.is_some_and(|found| found != mode) {
            return Err(OpenError::of_other_mode(path, mode));
        }
        open::examine_inside(path, &mut connection)?;
        let read_only = connection.is_readonly(MAIN_DB);
        if read_only.map_err(|error| OpenError::store(path, error))? {
            return Err(OpenError::ReadOnly(path.into()));
        }
        let store_error = |error| OpenError::store(path, error);
        prepare(&mut connection, schema, mode).map_err(store_error)?;
        let marks = Marks::read(&connection).map_err(store_error)?;
        if marks.commits < held.witnessed() && !marks.is_copy {
            return Err(OpenError::Lost {
                path: path.into(),
                found: marks.commits,
                witnessed: held.witnessed(),
            });
        }
        held.witness(marks.commits)
            .map_err(|error| OpenError::file(path, error))?;
        let lanes = accounts
            .iter()
            .enumerate()
            .map(|(i, name)| (name.clone(), LaneId(i)))
            .collect();
        Ok(Self {
            keys: Keys::load(&connection, NEW_MOST).map_err(store_error)?,
            scribe: scribe(&connection, Timestamp::now()).map_err(store_error)?,
            unrecorded: Unrecorded::default(),
            commits: marks.commits,
            restored_at: marks.opened(&connection).map_err(store_error)?,
            connection,
            accounts,
            lanes,
            held,
        })
    }

    /// When this ledger, once the copy of another, was put to use; what happened between is not
    /// in it.
    pub(super) fn restored_at(&self) -> Option<Timestamp> {
        self.restored_at
    }

    /// False when the file is not the one that was opened.
    pub(super) fn is_in_place(&self) -> bool {
        self.held.is_in_place()
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

    /// Answers these from one view of what is durable: each by itself would lock the file anew.
    pub(super) fn claims(&mut self, claims: &[Claim]) -> rusqlite::Result<Vec<Claimed>> {
        self.keys.rolled_back();
        let view = self.connection.transaction()?;
        let mut claimed = Vec::with_capacity(claims.len());
        {
            let mut recorded = Recorded::of(&view, &self.keys)?;
            for claim in claims {
                let account = self.accounts[claim.lane.0].as_str();
                let command = command_key(account, claim.command_id.as_str());
                let known = recorded.of_claim(account, command, claim)?;
                if known.results.is_empty() {
                    self.unrecorded.note(command);
                }
                claimed.push(known);
            }
        }
        view.finish()?;
        Ok(claimed)
    }

    pub(super) fn begin(&mut self) -> rusqlite::Result<Writing<'_>> {
        self.keys.rolled_back();
        Ok(Writing {
            transaction: self.connection.transaction()?,
            accounts: &self.accounts,
            keys: &mut self.keys,
            scribe: &mut self.scribe,
            page: Page::default(),
            unrecorded: &mut self.unrecorded,
            commits: &mut self.commits,
            held: &self.held,
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
        self.keys.rolled_back();
        let transaction = self.connection.transaction()?;
        // From the oldest row on, up to the first that is still to be remembered.
        let sql = format!(
            "DELETE FROM orders WHERE id IN (
                 SELECT id FROM orders WHERE state = {ENDED} ORDER BY id LIMIT ?2)
             AND changed_at < ?1"
        );
        transaction
            .prepare_cached(&sql)?
            .execute(params![before, most])?;
        let gone: Vec<(i64, i64)> = transaction
            .prepare_cached(
                "DELETE FROM results WHERE id IN (SELECT id FROM results ORDER BY id LIMIT ?2)
                 AND occurred_at < ?1 RETURNING command_key, order_no, id",
            )?
            .query_map(params![before, most], |row| {
                let order_no = row.get_ref(1)?.as_str()?;
                Ok((key_of(row.get(0)?, order_no), row.get(2)?))
            })?
            .collect::<rusqlite::Result<_>>()?;
        Keys::forget(&transaction, &gone)?;
        prune_journal(&transaction, before, most)?;
        let calls_before = Timestamp::now().as_millisecond() - millis(calls_kept);
        transaction
            .prepare_cached("DELETE FROM calls WHERE began_at < ?1")?
            .execute([calls_before])?;
        transaction.commit()?;
        self.keys.forgotten(&gone);
        Ok(())
    }
}

/// A group being written: durable as a whole, or not at all.
pub(super) struct Writing<'a> {
    pub(super) transaction: Transaction<'a>,
    accounts: &'a [AccountName],
    keys: &'a mut Keys,
    scribe: &'a mut Scribe,
    /// What this group makes durable, for the journal.
    page: Page,
    unrecorded: &'a mut Unrecorded,
    commits: &'a mut u64,
    held: &'a Held,
}

impl Writing<'_> {
    pub(super) fn account(&self, lane: LaneId) -> &str {
        self.accounts[lane.0].as_str()
    }

    pub(super) fn send(&mut self, list: &SendList, at: Timestamp) -> rusqlite::Result<()> {
        self.call(list.lane, at)?;
        self.page.sent(self.accounts, list, at);
        self.orders(&list.orders)
    }

    pub(super) fn record(&mut self, record: &Record) -> rusqlite::Result<()> {
        self.orders(&record.orders)?;
        let now = Timestamp::now();
        self.page.recorded(self.accounts, now, record.orders.iter());
        let transaction = &self.transaction;
        let mut of_key = Keys::table(transaction)?;
        // A result replaces one only when the command came again and the order was tried again.
        let mut replace = transaction.prepare_cached(
            "UPDATE results SET fingerprint = ?5, code = ?6, message = ?7, attempts = ?8, occurred_at = ?9
             WHERE id = ?1 AND account = ?2 AND command_id = ?3 AND order_no = ?4",
        )?;
        let mut insert = transaction.prepare_cached(
            "INSERT INTO results
             (id, account, command_id, order_no, fingerprint, code, message, attempts, occurred_at, command_key)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
        )?;
        for row in &record.results {
            let account = self.accounts[row.lane.0].as_str();
            let command_id = row.command_id.as_str();
            let (code, message) = words(&row.ending);
            let occurred_at = row.occurred_at.as_millisecond();
            let command = command_key(account, command_id);
            let key = key_of(command, &row.order_no);
            let earlier = match self.unrecorded.take(command) {
                true => Vec::new(),
                false => self.keys.find(&mut of_key, &(key..=key))?,
            };
            let mut is_replaced = false;
            for id in earlier {
                is_replaced = is_replaced
                    || replace.execute(params![
                        id,
                        account,
                        command_id,
                        &*row.order_no,
                        row.fingerprint.0,
                        code,
                        message,
                        row.attempts,
                        occurred_at,
                    ])? > 0;
            }
            if !is_replaced {
                insert.execute(params![
                    self.keys.add(key),
                    account,
                    command_id,
                    &*row.order_no,
                    row.fingerprint.0,
                    code,
                    message,
                    row.attempts,
                    occurred_at,
                    command,
                ])?;
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

    /// Makes the group durable, and with it what was `noted`.
    pub(super) fn commit(self, noted: &Page) -> rusqlite::Result<()> {
        let commit = *self.commits + 1;
        let reach = self.keys.move_some(&self.transaction)?;
        let row = self.scribe.row(Timestamp::now(), noted, &self.page);
        if let Some(row) = &row {
            put_row(&self.transaction, row, self.scribe)?;
        }
        let head = row.as_ref().map_or(self.scribe.head, |row| row.head);
        self.transaction
            .prepare_cached(
                "UPDATE marks SET commits = ?1, keys_to = ?2, keys_moving_to = ?3, keys_moved = ?4,
                 journal_seq = ?5, journal_hash = ?6",
            )?
            .execute(params![
                commit.cast_signed(),
                reach.to,
                reach.moving_to,
                reach.moved,
                head.seq,
                head.hash
            ])?;
        self.transaction.commit()?;
        self.keys.committed();
        if let Some(row) = &row {
            self.scribe.written(row);
        }
        *self.commits = commit;
        // The commit is durable whether or not it is witnessed.
        if let Err(error) = self.held.witness(commit) {
            tracing::debug!(%error, "a commit was not witnessed");
        }
        Ok(())
    }
}

fn put_row(
    transaction: &Transaction<'_>,
    row: &journal::Row,
    scribe: &Scribe,
) -> rusqlite::Result<()> {
    let Head { seq, at, hash } = row.head;
    transaction
        .prepare_cached("INSERT INTO journal (seq, at, text, hash) VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![seq, at, row.text, hash])?;
    if let Some(first) = row.full_from {
        transaction
            .prepare_cached(
                "INSERT INTO journal_filters (last_seq, first_seq, names) VALUES (?1, ?2, ?3)",
            )?
            .execute(params![seq, first, scribe.filter.bits])?;
    }
    Ok(())
}

/// Whoever goes on with the file's chain.
fn scribe(connection: &Connection, now: Timestamp) -> rusqlite::Result<Scribe> {
    let marks = "SELECT chain, journal_seq, journal_hash FROM marks";
    let head = connection.query_row(marks, [], |row| {
        let hash: Option<[u8; 32]> = row.get(2)?;
        let chain: String = row.get(0)?;
        let first = Head::of(&chain);
        Ok(Head {
            seq: row.get(1)?,
            hash: hash.unwrap_or(first.hash),
            ..first
        })
    })?;
    let mut scribe = Scribe::new(head, now);
    scribe.filter_from = connection.query_row(
        "SELECT max(m.forgotten_seq, coalesce((SELECT max(last_seq) FROM journal_filters), 0)) + 1
         FROM marks m",
        [],
        |row| row.get(0),
    )?;
    let mut rows = connection.prepare("SELECT text FROM journal WHERE seq >= ?1")?;
    let mut rows = rows.query([scribe.filter_from])?;
    while let Some(row) = rows.next()? {
        // One that is no text is found by whoever verifies the chain, and keeps nobody from working.
        scribe.read(row.get_ref(0)?.as_str().unwrap_or_default());
    }
    drop(rows);
    Ok(scribe)
}

/// Forgets the oldest rows of the journal; the last of them is what the rest is chained to.
fn prune_journal(transaction: &Transaction<'_>, before: i64, most: u32) -> rusqlite::Result<()> {
    // Also what a clock that was ahead wrote before it, or nothing would be forgotten until then.
    let last: Option<i64> = transaction
        .prepare_cached(
            "SELECT seq FROM (SELECT seq, at FROM journal ORDER BY seq LIMIT ?2)
             WHERE at < ?1 ORDER BY seq DESC LIMIT 1",
        )?
        .query_row(params![before, most], |row| row.get(0))
        .optional()?;
    let Some(seq) = last else {
        return Ok(());
    };
    // Whatever it is: a hash that is none is for whoever verifies the chain.
    transaction
        .prepare_cached(
            "UPDATE marks SET forgotten_seq = ?1,
             forgotten_hash = (SELECT hash FROM journal WHERE seq = ?1)",
        )?
        .execute([seq])?;
    transaction
        .prepare_cached("DELETE FROM journal WHERE seq <= ?1")?
        .execute([seq])?;
    transaction
        .prepare_cached("DELETE FROM journal_filters WHERE last_seq <= ?1")?
        .execute([seq])?;
    Ok(())
}

/// What a ledger says of itself.
pub(super) struct Marks {
    commits: u64,
    /// Made by [`super::copy`], and no worker has opened it yet.
    is_copy: bool,
    restored_at: Option<Timestamp>,
}

impl Marks {
    pub(super) fn read(connection: &Connection) -> rusqlite::Result<Self> {
        connection.query_row(
            "SELECT commits, is_copy, restored_at FROM marks",
            [],
            |row| {
                let restored_at: Option<i64> = row.get(2)?;
                Ok(Self {
                    commits: row.get::<_, i64>(0)?.cast_unsigned(),
                    is_copy: row.get(1)?,
                    restored_at: restored_at.map(timestamp).transpose()?,
                })
            },
        )
    }

    /// A copy that is opened is a restored ledger from now on.
    fn opened(self, connection: &Connection) -> rusqlite::Result<Option<Timestamp>> {
        if !self.is_copy {
            return Ok(self.restored_at);
        }
        let now = Timestamp::now();
        connection.execute(
            "UPDATE marks SET is_copy = 0, restored_at = ?1",
            [now.as_millisecond()],
        )?;
        Ok(Some(now))
    }
}

const WAITING: u8 = 0;
const SENT: u8 = 1;
const ENDED: u8 = 2;

fn prepare(connection: &mut Connection, found: i32, mode: Mode) -> rusqlite::Result<()> {
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
    connection.pragma_update(None, "wal_autocheckpoint", WAL_PAGES)?;
    schema::migrate(connection, found, mode)?;
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

pub(super) fn timestamp(millis: i64) -> rusqlite::Result<Timestamp> {
    Timestamp::from_millisecond(millis).map_err(|_| damaged("a time", &millis.to_string()))
}

/// What is recorded of commands and orders, in one view.
struct Recorded<'a> {
    keys: &'a Keys,
    of_command: CachedStatement<'a>,
    result: CachedStatement<'a>,
    by_number: CachedStatement<'a>,
}

impl<'a> Recorded<'a> {
    fn of(view: &'a Connection, keys: &'a Keys) -> rusqlite::Result<Self> {
        Ok(Self {
            keys,
            of_command: Keys::table(view)?,
            result: view.prepare_cached(
                "SELECT order_no, fingerprint, code, message, attempts, occurred_at
                 FROM results WHERE id = ?1 AND account = ?2 AND command_id = ?3",
            )?,
            by_number: view.prepare_cached(
                "SELECT state, attempts, spent, since, code, message, changed_at
                 FROM orders WHERE order_no = ?2 AND account = ?1",
            )?,
        })
    }

    fn of_claim(
        &mut self,
        account: &str,
        command: i64,
        claim: &Claim,
    ) -> rusqlite::Result<Claimed> {
        let mut results = Vec::new();
        for id in self.keys.find(&mut self.of_command, &keys_of(command))? {
            let row = self
                .result
                .query_row(params![id, account, claim.command_id.as_str()], |row| {
                    result_row(row, claim.lane, &claim.command_id)
                })
                .optional()?;
            results.extend(row);
        }
        let mut orders = Vec::with_capacity(claim.orders.len());
        for (key, order_no) in &claim.orders {
            let row = self
                .by_number
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
}

/// Commands of which nothing is recorded, so that their first result needs no look for an earlier
/// one, which is a page anywhere in the index. Each is forgotten with that first result, or with all
/// others when they become many: then there is a look where none was needed.
#[derive(Default)]
struct Unrecorded(HashSet<i64>);

impl Unrecorded {
    /// Many times as many as can be in hand.
    const MOST: usize = 20_000;

    fn note(&mut self, command: i64) {
        if self.0.len() >= Self::MOST {
            self.0.clear();
        }
        self.0.insert(command);
    }

    fn take(&mut self, command: i64) -> bool {
        self.0.remove(&command)
    }
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
pub(super) fn command_key(account: &str, command_id: &str) -> i64 {
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
        let mut writing = store.begin().unwrap();
        let id = crate::rules::desk::RecordId::default();
        writing
            .record(&Record {
                id,
                orders,
                results,
            })
            .unwrap();
        writing.commit(&Page::default()).unwrap();
    }

    fn claim(store: &mut Store, command: &str, number: &str) -> (Vec<ResultRow>, Option<OrderRow>) {
        let claim = Claim {
            command: crate::rules::desk::CommandKey::default(),
            lane: LANE,
            command_id: CommandId::new(command).unwrap(),
            fingerprint: Fingerprint([7; 16]),
            orders: vec![(OrderKey(1), OrderNo::new(number).unwrap())],
        };
        let mut claimed = store.claims(&[claim]).unwrap().remove(0);
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
            let mut store = Store::open(Mode::Live, &path, accounts()).unwrap();
            write(&mut store, rows.to_vec(), told.to_vec());
        }
        let mut store = Store::open(Mode::Live, &path, accounts()).unwrap();
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
        let mut store = Store::open(Mode::Live, &folder.path().join("ledger"), accounts()).unwrap();
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
        let mut store = Store::open(Mode::Live, &folder.path().join("ledger"), accounts()).unwrap();
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
        let mut store = Store::open(Mode::Live, &folder.path().join("ledger"), accounts()).unwrap();
        let mut writing = store.begin().unwrap();
        let list = SendList {
            call: CallId(1),
            lane: LANE,
            orders: vec![order("QC1", OrderState::Sent)],
        };
        writing.send(&list, at(-30)).unwrap();
        writing.call(LANE, at(-90)).unwrap();
        writing.commit(&Page::default()).unwrap();
        let calls = store.recent_calls(at(0), Duration::from_secs(60)).unwrap();
        assert_eq!(calls, [(LANE, Duration::from_secs(30))]);
    }

    #[test]
    fn another_file_is_never_touched() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("other");
        let open = || Store::open(Mode::Live, &path, accounts()).map(|_| ());
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
        let _held = open::hold(&path).unwrap();
        assert!(matches!(open(), Err(OpenError::Locked(_))));
    }
}
