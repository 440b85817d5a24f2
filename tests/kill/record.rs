//! What was durable when a worker died: a copy of its ledger, read with SQL. The ledger itself is
//! left as the dead left it, log and all, for the next run to open.

use std::fs;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OptionalExtension, params};

use super::support::process::fresh_dir;

/// `orders.state`: sent without a recorded answer.
const SENT: i64 = 1;
/// `orders.state`: ended.
const ENDED: i64 = 2;

/// See the module.
pub struct Record {
    ledger: Option<Connection>,
    copy: PathBuf,
}

impl Drop for Record {
    fn drop(&mut self) {
        self.ledger = None;
        // The watchdog removes what is left.
        let _ = fs::remove_dir_all(&self.copy);
    }
}

impl Record {
    /// Of the ledger in a worker's folder; empty when the worker died before it made one.
    pub fn of(dir: &Path) -> Self {
        let copy = fresh_dir("record");
        for name in ["ledger", "ledger-wal"] {
            if dir.join(name).exists() {
                fs::copy(dir.join(name), copy.join(name)).expect("copy a ledger");
            }
        }
        let path = copy.join("ledger");
        let opened = path.exists().then(|| Connection::open(&path));
        let connection = opened.map(|opened| opened.expect("open a copy of the ledger"));
        // It may have died while it made the tables.
        let ledger = connection.filter(|connection| {
            let sql = "SELECT count(*) FROM sqlite_schema WHERE name = 'results'";
            let tables: i64 = connection
                .query_row(sql, [], |row| row.get(0))
                .expect("read");
            tables > 0
        });
        Self { ledger, copy }
    }

    /// The orders that were being sent.
    pub fn sent(&self) -> Vec<String> {
        let Some(ledger) = &self.ledger else {
            return Vec::new();
        };
        let sql = "SELECT order_no FROM orders WHERE state = ?1";
        let mut statement = ledger.prepare_cached(sql).expect("a statement");
        let rows = statement.query_map([SENT], |row| row.get(0));
        rows.expect("read").collect::<Result<_, _>>().expect("read")
    }

    /// This order was recorded as being sent, or as ended since.
    pub fn was_sent(&self, order: &str) -> bool {
        let state: Option<i64> = self.one("SELECT state FROM orders WHERE order_no = ?1", [order]);
        matches!(state, Some(SENT | ENDED))
    }

    /// What was recorded of an entry of a command: the reason's code, `None` for cancelled.
    pub fn result(&self, command: &str, order: &str) -> Option<Option<String>> {
        let sql = "SELECT code FROM results WHERE command_id = ?1 AND order_no = ?2";
        self.one(sql, params![command, order])
    }

    fn one<T: rusqlite::types::FromSql>(&self, sql: &str, by: impl rusqlite::Params) -> Option<T> {
        let mut statement = self
            .ledger
            .as_ref()?
            .prepare_cached(sql)
            .expect("a statement");
        let found = statement.query_row(by, |row| row.get(0)).optional();
        found.expect("read")
    }
}
