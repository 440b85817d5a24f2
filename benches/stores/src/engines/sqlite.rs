//! SQLite: write-ahead log, `synchronous=FULL`, and four ways to lay out the tables.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

use rusqlite::{CachedStatement, Connection, OpenFlags, TransactionBehavior, params};

use super::{Result, Store, Tune};
use crate::load::{ACCOUNT, Order, hash};

/// `WITHOUT ROWID` with the natural keys, and a log in time order for expiry.
pub const TEXT: u8 = 0;
/// Rows in time order, found by an index on a hash of their key; expiry by row number.
pub const HASH: u8 = 1;
/// As `HASH`, but the settled order is a new row at the end instead of an update.
pub const MOVE: u8 = 2;
/// As `HASH`, but orders are found by an index on their number, which rises with time.
pub const NEAR: u8 = 3;

const TEXT_SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS orders(
        account TEXT NOT NULL, order_no TEXT NOT NULL, since INTEGER NOT NULL, body TEXT NOT NULL,
        PRIMARY KEY(account, order_no)) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS results(
        account TEXT NOT NULL, command_id TEXT NOT NULL, order_no TEXT NOT NULL, body TEXT NOT NULL,
        PRIMARY KEY(account, command_id, order_no)) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS ages(
        id INTEGER PRIMARY KEY, since INTEGER NOT NULL,
        account TEXT NOT NULL, order_no TEXT NOT NULL, command_id TEXT NOT NULL);";

const ROW_SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS orders(
        id INTEGER PRIMARY KEY, key INTEGER NOT NULL, since INTEGER NOT NULL,
        account TEXT NOT NULL, order_no TEXT NOT NULL, body TEXT NOT NULL);
    CREATE TABLE IF NOT EXISTS results(
        id INTEGER PRIMARY KEY, key INTEGER NOT NULL, since INTEGER NOT NULL,
        account TEXT NOT NULL, command_id TEXT NOT NULL, order_no TEXT NOT NULL, body TEXT NOT NULL);
    CREATE INDEX IF NOT EXISTS results_key ON results(key);";

const HASH_INDEX: &str = "CREATE INDEX IF NOT EXISTS orders_key ON orders(key);";
const NEAR_INDEX: &str = "CREATE INDEX IF NOT EXISTS orders_no ON orders(order_no, account);";

pub struct Sqlite<const LAYOUT: u8> {
    conn: Connection,
    checkpoints: Option<Checkpoints>,
    era: i64,
    orders: Span,
    results: Span,
    /// Row numbers of the group that was sent and is not yet settled.
    open: Vec<i64>,
}

/// The row numbers of a table that is appended at one end and expired at the other.
struct Span {
    first: i64,
    next: i64,
}

impl Span {
    fn of(conn: &Connection, table: &str) -> Result<Span> {
        // Two sub-queries: min and max in one SELECT would walk the whole table.
        let sql = format!(
            "SELECT ifnull((SELECT min(id) FROM {table}), 1), ifnull((SELECT max(id) FROM {table}), 0) + 1"
        );
        Ok(conn.query_row(&sql, [], |row| {
            Ok(Span {
                first: row.get(0)?,
                next: row.get(1)?,
            })
        })?)
    }
}

impl<const LAYOUT: u8> Sqlite<LAYOUT> {
    /// The index key of row `id`. With eras its top byte is the row's era, so that
    /// inserts fall into one small stretch of the index, which stays in the cache.
    fn key(&self, hash: u64, id: i64) -> i64 {
        match self.era {
            0 => hash as i64,
            rows => (((id / rows) as u64) << 56 | hash >> 8) as i64,
        }
    }

    /// The index keys under which a row of this hash may be, newest era first.
    fn keys(&self, hash: u64, span: &Span) -> impl Iterator<Item = i64> {
        let eras = match self.era {
            0 => 0..=0,
            rows => span.first / rows..=span.next / rows,
        };
        let rows = self.era;
        eras.rev().map(move |era| match rows {
            0 => hash as i64,
            _ => ((era as u64) << 56 | hash >> 8) as i64,
        })
    }

    fn commit_done(&self) -> Result<()> {
        match &self.checkpoints {
            Some(checkpoints) => checkpoints.after_commit(&self.conn),
            None => Ok(()),
        }
    }

    fn find_order(&self, by_key: &mut CachedStatement, order: &Order) -> Result<bool> {
        if LAYOUT == TEXT || LAYOUT == NEAR {
            let mut rows = by_key.query(params![ACCOUNT, order.no])?;
            return Ok(rows.next()?.is_some());
        }
        for key in self.keys(hash(&[ACCOUNT, &order.no]), &self.orders) {
            let mut rows = by_key.query([key])?;
            while let Some(row) = rows.next()? {
                // The hash is not the key: only the row's text says that it is the one.
                if row.get_ref(1)?.as_str()? == order.no && row.get_ref(0)?.as_str()? == ACCOUNT {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    fn find_command(&self, by_key: &mut CachedStatement, order: &Order) -> Result<bool> {
        if LAYOUT == TEXT {
            let mut rows = by_key.query(params![ACCOUNT, order.command])?;
            return Ok(rows.next()?.is_some());
        }
        for key in self.keys(hash(&[ACCOUNT, &order.command]), &self.results) {
            let mut rows = by_key.query([key])?;
            while let Some(row) = rows.next()? {
                if row.get_ref(1)?.as_str()? == order.command
                    && row.get_ref(0)?.as_str()? == ACCOUNT
                {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }
}

impl<const LAYOUT: u8> Store for Sqlite<LAYOUT> {
    fn open(dir: &Path, tune: &Tune) -> Result<Self> {
        let path = dir.join("ledger.sqlite");
        let mut conn = connect(&path)?;
        conn.pragma_update(None, "page_size", tune.page)?;
        conn.pragma_update(None, "journal_mode", "wal")?;
        conn.pragma_update(None, "synchronous", "full")?;
        conn.pragma_update(None, "cache_size", -((tune.cache_mb << 10) as i64))?;
        conn.pragma_update(None, "mmap_size", 0)?;
        conn.pragma_update(None, "wal_autocheckpoint", tune.checkpoint)?;
        conn.execute_batch(match LAYOUT {
            TEXT => TEXT_SCHEMA,
            _ => ROW_SCHEMA,
        })?;
        match LAYOUT {
            HASH | MOVE => conn.execute_batch(HASH_INDEX)?,
            NEAR => conn.execute_batch(NEAR_INDEX)?,
            _ => {}
        }
        let checkpoints = if tune.thread {
            Some(Checkpoints::start(&mut conn, path, tune.checkpoint)?)
        } else {
            None
        };
        Ok(Sqlite {
            orders: Span::of(&conn, if LAYOUT == TEXT { "ages" } else { "orders" })?,
            results: Span::of(&conn, if LAYOUT == TEXT { "ages" } else { "results" })?,
            conn,
            checkpoints,
            era: tune.era,
            open: Vec::new(),
        })
    }

    fn relax(&mut self, on: bool) -> Result<()> {
        self.conn
            .pragma_update(None, "synchronous", if on { "off" } else { "full" })?;
        Ok(())
    }

    fn look_up(&mut self, probes: &[Order]) -> Result<usize> {
        let read = self.conn.unchecked_transaction()?;
        let mut found = 0;
        {
            let mut order = read.prepare_cached(match LAYOUT {
                TEXT => "SELECT account, order_no, body FROM orders WHERE account = ?1 AND order_no = ?2",
                NEAR => "SELECT account, order_no, body FROM orders WHERE order_no = ?2 AND account = ?1",
                _ => "SELECT account, order_no, body FROM orders WHERE key = ?1",
            })?;
            let mut command = read.prepare_cached(match LAYOUT {
                TEXT => "SELECT account, command_id, body FROM results WHERE account = ?1 AND command_id = ?2",
                _ => "SELECT account, command_id, body FROM results WHERE key = ?1",
            })?;
            for probe in probes {
                found += usize::from(self.find_order(&mut order, probe)?);
                found += usize::from(self.find_command(&mut command, probe)?);
            }
        }
        read.commit()?;
        Ok(found)
    }

    fn sent(&mut self, group: &[Order]) -> Result<()> {
        let first = self.orders.next;
        self.open.clear();
        self.open.extend(first..first + group.len() as i64);
        let write =
            rusqlite::Transaction::new_unchecked(&self.conn, TransactionBehavior::Immediate)?;
        if LAYOUT == TEXT {
            let mut put = write.prepare_cached(
                "INSERT INTO orders(account, order_no, since, body) VALUES(?1, ?2, ?3, ?4)
                 ON CONFLICT DO UPDATE SET since = excluded.since, body = excluded.body",
            )?;
            for order in group {
                put.execute(params![ACCOUNT, order.no, order.since, order.sent_row()])?;
            }
        } else {
            let mut put = write.prepare_cached(
                "INSERT INTO orders(id, key, since, account, order_no, body) VALUES(?1, ?2, ?3, ?4, ?5, ?6)",
            )?;
            for (order, &id) in group.iter().zip(&self.open) {
                let key = self.key(hash(&[ACCOUNT, &order.no]), id);
                put.execute(params![
                    id,
                    key,
                    order.since,
                    ACCOUNT,
                    order.no,
                    order.sent_row()
                ])?;
            }
        }
        write.commit()?;
        self.orders.next += group.len() as i64;
        self.commit_done()
    }

    fn settled(&mut self, group: &[Order]) -> Result<()> {
        let write =
            rusqlite::Transaction::new_unchecked(&self.conn, TransactionBehavior::Immediate)?;
        if LAYOUT == TEXT {
            let mut put = write.prepare_cached(
                "INSERT INTO orders(account, order_no, since, body) VALUES(?1, ?2, ?3, ?4)
                 ON CONFLICT DO UPDATE SET since = excluded.since, body = excluded.body",
            )?;
            let mut result = write.prepare_cached(
                "INSERT INTO results(account, command_id, order_no, body) VALUES(?1, ?2, ?3, ?4)",
            )?;
            let mut age = write.prepare_cached(
                "INSERT INTO ages(since, account, order_no, command_id) VALUES(?1, ?2, ?3, ?4)",
            )?;
            for order in group {
                put.execute(params![ACCOUNT, order.no, order.since, order.settled_row()])?;
                result.execute(params![
                    ACCOUNT,
                    order.command,
                    order.no,
                    order.result_row()
                ])?;
                age.execute(params![order.since, ACCOUNT, order.no, order.command])?;
            }
        } else {
            let mut update = write.prepare_cached(match LAYOUT {
                MOVE => "UPDATE orders SET body = ?2, id = ?3, key = ?4 WHERE id = ?1",
                _ => "UPDATE orders SET body = ?2 WHERE id = ?1",
            })?;
            let mut result = write.prepare_cached(
                "INSERT INTO results(id, key, since, account, command_id, order_no, body)
                 VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            )?;
            for (i, (order, &id)) in group.iter().zip(&self.open).enumerate() {
                if LAYOUT == MOVE {
                    let new = self.orders.next + i as i64;
                    let key = self.key(hash(&[ACCOUNT, &order.no]), new);
                    update.execute(params![id, order.settled_row(), new, key])?;
                } else {
                    update.execute(params![id, order.settled_row()])?;
                }
                let id = self.results.next + i as i64;
                let key = self.key(hash(&[ACCOUNT, &order.command]), id);
                result.execute(params![
                    id,
                    key,
                    order.since,
                    ACCOUNT,
                    order.command,
                    order.no,
                    order.result_row()
                ])?;
            }
        }
        write.commit()?;
        if LAYOUT == MOVE {
            self.orders.next += group.len() as i64;
        }
        self.results.next += group.len() as i64;
        self.commit_done()
    }

    fn expire(&mut self, before: i64, count: usize) -> Result<usize> {
        let write =
            rusqlite::Transaction::new_unchecked(&self.conn, TransactionBehavior::Immediate)?;
        let mut gone = 0;
        if LAYOUT == TEXT {
            let mut oldest = write.prepare_cached(
                "SELECT id, order_no, command_id FROM ages WHERE id >= ?1 AND since < ?2 ORDER BY id LIMIT ?3",
            )?;
            let mut order =
                write.prepare_cached("DELETE FROM orders WHERE account = ?1 AND order_no = ?2")?;
            let mut result = write
                .prepare_cached("DELETE FROM results WHERE account = ?1 AND command_id = ?2")?;
            let old = oldest
                .query_map(params![self.orders.first, before, count as i64], |row| {
                    Ok((row.get(0)?, row.get(1)?, row.get(2)?))
                })?
                .collect::<rusqlite::Result<Vec<(i64, String, String)>>>()?;
            for (_, no, command) in &old {
                gone += order.execute(params![ACCOUNT, no])?;
                gone += result.execute(params![ACCOUNT, command])?;
            }
            if let Some((last, _, _)) = old.last() {
                write
                    .prepare_cached("DELETE FROM ages WHERE id BETWEEN ?1 AND ?2")?
                    .execute([self.orders.first, *last])?;
                self.orders.first = last + 1;
            }
        } else {
            for (table, span) in [("orders", &mut self.orders), ("results", &mut self.results)] {
                // MOVE leaves gaps, so the step ends at the row that is `count` rows on.
                let last = write
                    .prepare_cached(&format!(
                        "SELECT max(id) FROM (SELECT id, since FROM {table} WHERE id >= ?1 ORDER BY id LIMIT ?3)
                         WHERE since < ?2"
                    ))?
                    .query_row(params![span.first, before, count as i64], |row| row.get::<_, Option<i64>>(0))?;
                if let Some(last) = last {
                    gone += write
                        .prepare_cached(&format!(
                            "DELETE FROM {table} WHERE id BETWEEN ?1 AND ?2 AND since < ?3"
                        ))?
                        .execute(params![span.first, last, before])?;
                    span.first = last + 1;
                }
            }
        }
        write.commit()?;
        self.commit_done()?;
        Ok(gone)
    }
}

fn connect(path: &Path) -> Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    Ok(Connection::open_with_flags(path, flags)?)
}

/// Checkpoints on a thread and connection of its own, so that the writer does not wait
/// while thousands of pages go to the file.
///
/// The log starts again at its beginning only when everything in it was checkpointed
/// at the moment of a commit. Under steady load the thread never quite gets there, so
/// the writer does the last stretch itself once it is short.
struct Checkpoints {
    frames: Arc<AtomicI64>,
    done: Arc<AtomicI64>,
    busy: Arc<AtomicBool>,
    wake: Sender<()>,
    pages: i64,
}

impl Checkpoints {
    fn start(conn: &mut Connection, path: PathBuf, pages: i64) -> Result<Checkpoints> {
        let (frames, done, busy) = (Arc::new(AtomicI64::new(0)), Arc::default(), Arc::default());
        let seen = Arc::clone(&frames);
        conn.wal_hook(Some(move |_: &mut _, count| {
            seen.store(i64::from(count), Ordering::Relaxed);
            Ok(())
        }))?;
        let (wake, woken) = channel();
        let (thread_done, thread_busy) = (Arc::clone(&done), Arc::clone(&busy));
        let side = connect(&path)?;
        std::thread::spawn(move || run(&side, &woken, &thread_done, &thread_busy));
        Ok(Checkpoints {
            frames,
            done,
            busy,
            wake,
            pages,
        })
    }

    fn after_commit(&self, conn: &Connection) -> Result<()> {
        let frames = self.frames.load(Ordering::Relaxed);
        if frames < self.pages || self.busy.load(Ordering::Acquire) {
            return Ok(());
        }
        let left = frames - self.done.load(Ordering::Relaxed);
        if left <= self.pages / 8 || frames > self.pages * 8 {
            checkpoint(conn)?;
            self.done.store(0, Ordering::Relaxed);
        } else {
            self.busy.store(true, Ordering::Release);
            self.wake.send(())?;
        }
        Ok(())
    }
}

fn run(conn: &Connection, woken: &Receiver<()>, done: &AtomicI64, busy: &AtomicBool) {
    while woken.recv().is_ok() {
        // A failed checkpoint is tried again at the next wake; the log only grows.
        if let Ok(pages) = checkpoint(conn) {
            done.store(pages, Ordering::Relaxed);
        }
        busy.store(false, Ordering::Release);
    }
}

/// Moves what it can from the log to the file without waiting for anyone.
/// Returns how many pages of the log are in the file.
fn checkpoint(conn: &Connection) -> Result<i64> {
    Ok(conn.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |row| row.get(2))?)
}
