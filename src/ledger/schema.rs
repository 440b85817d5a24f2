//! The ledger's tables, by version, and how a file of an earlier version becomes one of this.
//!
//! `PRAGMA user_version` says how many of the [`MIGRATIONS`] a file has. A new file takes all of
//! them, one of an earlier version those that it lacks, each in a transaction of its own together
//! with its number: killed at any moment, or out of room, the file is a whole ledger of some
//! version, and the next start goes on from there. A file of a later version is not touched.
//!
//! A migration that was released is never changed; what is to change is a new one at the end.

use rusqlite::functions::FunctionFlags;
use rusqlite::{Connection, TransactionBehavior};

use super::keys::key_of;
use crate::rules::dry_run::Mode;

/// `PRAGMA application_id` of a ledger, "wdtl": another program's file is never touched.
const APPLICATION_ID: i32 = 0x7764_746c;

/// The same of a dry run's, "wdtd". Such a file is another program's to every worker that cancels.
const DRY_RUN_APPLICATION_ID: i32 = 0x7764_7464;

/// `PRAGMA application_id` of a ledger of this mode.
pub(super) const fn application_id(mode: Mode) -> i32 {
    match mode {
        Mode::Live => APPLICATION_ID,
        Mode::DryRun => DRY_RUN_APPLICATION_ID,
    }
}

/// The first makes schema 1 of an empty file, each next one the next schema of the one before.
const MIGRATIONS: &[&str] = &[
    ORDERS_RESULTS_CALLS,
    RUNS_TRIALS,
    MARKS,
    KEYS,
    PAUSES,
    JOURNAL,
];

/// The schema of this version.
pub(super) const VERSION: i32 = MIGRATIONS.len() as i32;

/// Rows lie in the order of their arrival, so that writing touches the end of the file and
/// forgetting its beginning. Orders are found by their number, which rises with time; commands by a
/// hash of their id, which is a UUID more often than not: eight bytes keep its index small, and the
/// row's own text decides.
const ORDERS_RESULTS_CALLS: &str = "
CREATE TABLE orders (
    id         INTEGER PRIMARY KEY,
    account    TEXT NOT NULL,
    order_no   TEXT NOT NULL,
    state      INTEGER NOT NULL,  -- 0 waiting, 1 sent without a recorded answer, 2 ended
    attempts   INTEGER NOT NULL,
    spent      INTEGER NOT NULL,
    since      INTEGER NOT NULL,  -- ms since 1970, like every time here
    code       TEXT,              -- the reason's code; null where ended as cancelled
    message    TEXT,
    changed_at INTEGER NOT NULL
);
CREATE UNIQUE INDEX orders_by_number ON orders (order_no, account);
CREATE TABLE results (
    id          INTEGER PRIMARY KEY,
    command_key INTEGER NOT NULL, -- of account and command_id
    account     TEXT NOT NULL,
    command_id  TEXT NOT NULL,
    order_no    TEXT NOT NULL,
    fingerprint BLOB NOT NULL,    -- of the command's orders
    code        TEXT,
    message     TEXT,
    attempts    INTEGER NOT NULL,
    occurred_at INTEGER NOT NULL
);
CREATE INDEX results_by_command ON results (command_key, order_no);
CREATE TABLE calls (
    account  TEXT NOT NULL,
    began_at INTEGER NOT NULL
);
";

/// Runs that died, and the commands that were on trial then (`rules::poison`).
const RUNS_TRIALS: &str = "
CREATE TABLE runs (
    id       INTEGER PRIMARY KEY,
    began_at INTEGER NOT NULL,
    ended    INTEGER NOT NULL   -- 1 once it was stopped, or had lived long enough
);
CREATE TABLE trials (
    command    BLOB PRIMARY KEY, -- a hash of its id and body
    died       INTEGER NOT NULL, -- so many trials ended with the worker's death
    is_on      INTEGER NOT NULL, -- 1 while it is on trial
    changed_at INTEGER NOT NULL
);
";

/// One row: what a ledger says of itself.
const MARKS: &str = "
CREATE TABLE marks (
    commits     INTEGER NOT NULL, -- how many there were; see the witness in `open`
    is_copy     INTEGER NOT NULL, -- 1: a back-up that no worker has opened yet
    restored_at INTEGER           -- when a worker first opened what had been a back-up
);
INSERT INTO marks VALUES (0, 0, NULL);
";

/// Where the results are, by their commands; see [`super::keys`].
const KEYS: &str = "
CREATE TABLE result_keys (
    key INTEGER NOT NULL,
    id  INTEGER NOT NULL, -- of the row in results
    PRIMARY KEY (key, id)
) WITHOUT ROWID;
INSERT INTO result_keys SELECT result_key(command_key, order_no), id FROM results ORDER BY 1, 2;
ALTER TABLE marks ADD COLUMN keys_to INTEGER NOT NULL DEFAULT 0; -- it has all rows up to this one,
ALTER TABLE marks ADD COLUMN keys_moving_to INTEGER NOT NULL DEFAULT 0; -- and of those up to this one
ALTER TABLE marks ADD COLUMN keys_moved INTEGER;                 -- the ones with keys up to this
UPDATE marks SET keys_to = (SELECT coalesce(max(id), 0) FROM results);
UPDATE marks SET keys_moving_to = keys_to;
DROP INDEX results_by_command;
";

/// Accounts that an operator does not want to be called.
const PAUSES: &str = "
CREATE TABLE pauses (
    account TEXT PRIMARY KEY,
    since   INTEGER NOT NULL,
    who     TEXT NOT NULL
);
";

/// What happened; see [`super::journal`]. `seq` has no gaps.
const JOURNAL: &str = "
CREATE TABLE journal (
    seq  INTEGER PRIMARY KEY,
    at   INTEGER NOT NULL,
    text TEXT NOT NULL,    -- JSON; byte for byte what was hashed
    hash BLOB NOT NULL     -- SHA-256 of the hash before and the text
);
CREATE TABLE journal_filters (
    last_seq  INTEGER PRIMARY KEY,
    first_seq INTEGER NOT NULL,
    names     BLOB NOT NULL -- a Bloom filter of what the rows name
);
ALTER TABLE marks ADD COLUMN chain TEXT NOT NULL DEFAULT '';         -- the journal's name
ALTER TABLE marks ADD COLUMN journal_seq INTEGER NOT NULL DEFAULT 0; -- its last row
ALTER TABLE marks ADD COLUMN journal_hash BLOB;
ALTER TABLE marks ADD COLUMN forgotten_seq INTEGER NOT NULL DEFAULT 0; -- the last that was forgotten
ALTER TABLE marks ADD COLUMN forgotten_hash BLOB;
UPDATE marks SET chain = lower(hex(randomblob(16)));
";

/// Brings a file of schema `found` (0: an empty one) to this version's.
///
/// # Errors
/// When it cannot be written; it then has the schema up to which it came.
pub(super) fn migrate(connection: &mut Connection, found: i32, mode: Mode) -> rusqlite::Result<()> {
    define_result_key(connection)?;
    apply(connection, found, mode, MIGRATIONS)
}

/// `result_key(command_key, order_no)` is [`key_of`] in SQL.
pub(super) fn define_result_key(connection: &Connection) -> rusqlite::Result<()> {
    let flags = FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_DETERMINISTIC;
    connection.create_scalar_function("result_key", 2, flags, |of| {
        let order_no = of.get_raw(1).as_str().map_err(rusqlite::Error::from)?;
        Ok(key_of(of.get(0)?, order_no))
    })
}

fn apply(
    connection: &mut Connection,
    found: i32,
    mode: Mode,
    migrations: &[&str],
) -> rusqlite::Result<()> {
    for (version, migration) in (1..).zip(migrations) {
        if version <= found {
            continue;
        }
        let step = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        step.execute_batch(migration)?;
        step.pragma_update(None, "application_id", application_id(mode))?;
        step.pragma_update(None, "user_version", version)?;
        step.commit()?;
        if found > 0 {
            tracing::info!(schema = version, "the ledger was brought to a later schema");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: &str = "CREATE TABLE a (x); INSERT INTO a VALUES (7);";
    const SECOND: &str = "ALTER TABLE a ADD COLUMN y; UPDATE a SET y = x + 1;";

    fn number(connection: &Connection, sql: &str) -> i64 {
        connection.query_row(sql, [], |row| row.get(0)).unwrap()
    }

    #[test]
    fn each_migration_is_made_once_and_in_sequence() {
        let mut file = Connection::open_in_memory().unwrap();
        apply(&mut file, 0, Mode::Live, &[FIRST]).unwrap();
        assert_eq!(number(&file, "PRAGMA user_version"), 1);
        let id = number(&file, "PRAGMA application_id");
        assert_eq!(id, i64::from(APPLICATION_ID));
        for found in [1, 2] {
            apply(&mut file, found, Mode::Live, &[FIRST, SECOND]).unwrap();
            assert_eq!(number(&file, "PRAGMA user_version"), 2);
            assert_eq!(number(&file, "SELECT sum(y) FROM a"), 8);
        }
    }

    #[test]
    fn one_that_fails_leaves_the_file_as_it_was() {
        let mut file = Connection::open_in_memory().unwrap();
        apply(&mut file, 0, Mode::Live, &[FIRST]).unwrap();
        let broken = "UPDATE a SET x = 0; CREATE TABLE b (x); CREATE TABLE b (x);";
        apply(&mut file, 1, Mode::Live, &[FIRST, SECOND, broken]).unwrap_err();
        assert_eq!(number(&file, "PRAGMA user_version"), 2);
        assert_eq!(number(&file, "SELECT sum(x) FROM a"), 7);
        assert_eq!(number(&file, "SELECT sum(y) FROM a"), 8);
        apply(&mut file, 2, Mode::Live, &[FIRST, SECOND, "DROP TABLE a"]).unwrap();
        assert_eq!(number(&file, "PRAGMA user_version"), 3);
    }
}
