//! What operators do with the shared ledger: make its tables, look into it, move an embedded ledger
//! over, say that it was restored.

use std::borrow::Cow;
use std::path::Path;
use std::time::Duration;

use deadpool_postgres::Object;
use jiff::Timestamp;
use rusqlite::{Connection, OpenFlags};

use super::connect::{Db, DbError};
use super::rows::{stored, timestamp};
use super::{OpenError, schema};
use crate::ledger::open::{self, Seen};
use crate::rules::dry_run::Mode;
use crate::rules::lane::Paused;
use crate::rules::order::AccountName;

/// Such a step may take as long as a large table does.
pub(super) const LONG: Duration = Duration::from_secs(60 * 60);
/// Rows of the journal moved over in one transaction; one may be large.
const JOURNAL_BATCH: i64 = 200;
/// Rows moved over in one transaction.
const BATCH: i64 = 5000;
/// Calls that began this long ago count no more.
const MINUTE: Duration = Duration::from_secs(62);

/// Why nothing, or not all, was moved over.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The embedded ledger cannot be read.
    #[error(transparent)]
    File(#[from] crate::ledger::OpenError),
    /// The embedded ledger is damaged.
    #[error("{0}")]
    Damaged(String),
    /// While it was read.
    #[error("the embedded ledger cannot be read: {0}")]
    Read(rusqlite::Error),
    /// The shared ledger cannot be used.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// While it was written. What was moved over stays, and the same again goes on.
    #[error(
        "the ledger under ledger.url cannot be written: {0}; what was moved over is there, and the same command goes on"
    )]
    Write(DbError),
}

// By hand, for their words are in ours already.
impl From<rusqlite::Error> for ImportError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Read(error)
    }
}

impl From<DbError> for ImportError {
    fn from(error: DbError) -> Self {
        Self::Write(error)
    }
}

/// What is in the shared ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Findings {
    /// The last migration that was made.
    pub schema: i32,
    /// Orders that wait, that were sent and have no ending, and that have ended.
    pub orders: [i64; 3],
    /// When the oldest of those sent without an ending was sent.
    pub oldest_sent: Option<Timestamp>,
    /// Results, one for each order and command.
    pub results: i64,
    /// Rows of the journal.
    pub journal: i64,
    /// Workers with a lease, and orders that they have in hand.
    pub workers: i64,
    /// Orders in hand.
    pub held: i64,
}

/// How much was moved over, of how much there was: what the shared ledger knew already stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Moved {
    /// Orders written.
    pub orders: u64,
    /// Orders read.
    pub of_orders: u64,
    /// Results written.
    pub results: u64,
    /// Results read.
    pub of_results: u64,
}

/// Makes the tables, or those of this version that are missing; tells the schema before and after.
///
/// # Errors
/// When the database cannot be used, or its tables are a later version's.
pub async fn migrate(url: &str) -> Result<(i32, i32), OpenError> {
    let db = Db::new(url)?;
    let before = db.step(schema::find).await?;
    if !before.is_known() {
        let (found, oldest) = (before.version, before.oldest);
        return Err(OpenError::Newer { found, oldest });
    }
    let after = db.step_within(LONG, unhurried).await?;
    Ok((before.version, after.version))
}

async fn unhurried(client: &Object) -> Result<schema::Found, DbError> {
    client.batch_execute("SET statement_timeout = 0").await?;
    // Those that are missing in a ledger of dry runs are the same.
    schema::migrate(client, Mode::Live).await
}

/// Its schema, 0 where it has no tables yet, and how many workers have a lease. Changes nothing, and
/// reads no large table.
///
/// # Errors
/// When the database cannot be used, or its tables are a later version's.
pub async fn look(url: &str) -> Result<(i32, i64), OpenError> {
    let db = Db::new(url)?;
    let found = db.step(schema::find).await?;
    if !found.is_known() {
        let (found, oldest) = (found.version, found.oldest);
        return Err(OpenError::Newer { found, oldest });
    }
    match found.version {
        0 => Ok((0, 0)),
        version => Ok((version, db.step(workers).await?)),
    }
}

async fn workers(client: &Object) -> Result<i64, DbError> {
    let row = client
        .query_one(
            "SELECT count(*) FROM wdt.workers WHERE lease_until > clock_timestamp()",
            &[],
        )
        .await?;
    Ok(row.get(0))
}

/// Counts what is in it.
///
/// # Errors
/// When the database cannot be used, or the tables are not there.
pub async fn check(url: &str) -> Result<Findings, OpenError> {
    let db = Db::new(url)?;
    Ok(db.step_within(LONG, count).await?)
}

async fn count(client: &Object) -> Result<Findings, DbError> {
    client.batch_execute("SET statement_timeout = 0").await?;
    let schema = schema::find(client).await?.version;
    let mut found = Findings {
        schema,
        orders: [0; 3],
        oldest_sent: None,
        results: 0,
        journal: 0,
        workers: 0,
        held: 0,
    };
    if schema == 0 {
        return Ok(found);
    }
    for row in client
        .query("SELECT state, count(*) FROM wdt.orders GROUP BY state", &[])
        .await?
    {
        let state = usize::try_from(row.get::<_, i16>(0)).ok();
        if let Some(count) = state.and_then(|state| found.orders.get_mut(state)) {
            *count = row.get(1);
        }
    }
    let row = client
        .query_one(
            "SELECT (SELECT min(changed_at) FROM wdt.orders WHERE state = 1),
                    (SELECT count(*) FROM wdt.results),
                    (SELECT count(*) FROM wdt.workers WHERE lease_until > clock_timestamp()),
                    (SELECT count(*) FROM wdt.holds)",
            &[],
        )
        .await?;
    found.oldest_sent = row.get::<_, Option<i64>>(0).map(timestamp).transpose()?;
    found.results = row.get(1);
    if schema == schema::VERSION {
        let rows = "SELECT count(*) FROM wdt.journal";
        found.journal = client.query_one(rows, &[]).await?.get(0);
    }
    found.workers = row.get(2);
    found.held = row.get(3);
    Ok(found)
}

/// Notes that the database was restored from a back-up: of what happened since that was made it
/// knows nothing, so for `ledger.retention` no refusal is believed without a look-up.
///
/// # Errors
/// When the database cannot be written.
pub async fn mark_restored(url: &str) -> Result<Timestamp, OpenError> {
    super::ready(&Db::new(url)?, Mode::Live).await?;
    let now = Timestamp::now();
    let db = Db::new(url)?;
    db.step(async |client| {
        let mark = "UPDATE wdt.marks SET restored_at = $1";
        client.execute(mark, &[&now.as_millisecond()]).await?;
        // Whoever held something then does not any more.
        client
            .batch_execute("DELETE FROM wdt.holds; DELETE FROM wdt.workers")
            .await?;
        Ok(())
    })
    .await?;
    Ok(now)
}

/// Moves an embedded ledger over, whose worker must be stopped. What the shared one knows already
/// stays as it is, so it can be done again.
///
/// # Errors
/// When either of them cannot be used.
pub async fn import(url: &str, file: &Path) -> Result<Moved, ImportError> {
    let held = open::hold(file)?;
    let Seen {
        mut connection,
        schema,
        mode,
    } = open::look(&held.path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    if mode.is_some_and(Mode::is_dry_run) {
        return Err(crate::ledger::OpenError::OfDryRuns(file.into()).into());
    }
    if let Some(what) = open::damage(&mut connection, None)? {
        let file = file.display();
        return Err(ImportError::Damaged(format!("{file} is damaged: {what}")));
    }
    let db = Db::new(url).map_err(OpenError::from)?;
    super::ready(&db, Mode::Live).await?;
    let mut moved = Moved::default();
    if schema == 0 {
        return Ok(moved);
    }
    let mut last = 0;
    loop {
        let rows = orders(&connection, last)?;
        let Some(end) = rows.last() else { break };
        last = end.id;
        moved.of_orders += rows.len() as u64;
        moved.orders += db
            .step_within(LONG, async |c| put_orders(c, &rows).await)
            .await?;
    }
    last = 0;
    loop {
        let rows = results(&connection, last)?;
        let Some(end) = rows.last() else { break };
        last = end.id;
        moved.of_results += rows.len() as u64;
        moved.results += db
            .step_within(LONG, async |c| put_results(c, &rows).await)
            .await?;
    }
    if schema == crate::ledger::schema::VERSION {
        journal(&db, &connection).await?;
    }
    let (calls, restored_at) = (last_calls(&connection)?, restored_at(&connection, schema)?);
    db.step(async |client| remember(client, &calls, restored_at).await)
        .await?;
    Ok(moved)
}

struct Order {
    id: i64,
    account: String,
    order_no: String,
    state: i16,
    attempts: i32,
    spent: i32,
    since: i64,
    code: Option<String>,
    message: Option<String>,
    changed_at: i64,
}

fn orders(connection: &Connection, after: i64) -> rusqlite::Result<Vec<Order>> {
    connection
        .prepare_cached(
            "SELECT id, account, order_no, state, attempts, spent, since, code, message, changed_at
             FROM orders WHERE id > ?1 ORDER BY id LIMIT ?2",
        )?
        .query_map((after, BATCH), |row| {
            Ok(Order {
                id: row.get(0)?,
                account: row.get(1)?,
                order_no: row.get(2)?,
                state: row.get(3)?,
                attempts: row.get(4)?,
                spent: row.get(5)?,
                since: row.get(6)?,
                code: row.get(7)?,
                message: row.get(8)?,
                changed_at: row.get(9)?,
            })
        })?
        .collect()
}

async fn put_orders(client: &Object, rows: &[Order]) -> Result<u64, DbError> {
    fn all<'a, T>(rows: &'a [Order], column: impl FnMut(&'a Order) -> T) -> Vec<T> {
        rows.iter().map(column).collect()
    }
    let put = "
INSERT INTO wdt.orders
(account, order_no, state, attempts, spent, since, code, message, changed_at)
SELECT * FROM unnest($1::text[], $2::text[], $3::smallint[], $4::integer[], $5::integer[],
                     $6::bigint[], $7::text[], $8::text[], $9::bigint[])
ON CONFLICT DO NOTHING";
    let messages = all(rows, |row| row.message.as_deref().map(stored));
    let messages: Vec<Option<&str>> = messages.iter().map(Option::as_deref).collect();
    let put = client.prepare_cached(put).await?;
    let written = client
        .execute(
            &put,
            &[
                &all(rows, |row| &row.account),
                &all(rows, |row| &row.order_no),
                &all(rows, |row| row.state),
                &all(rows, |row| row.attempts),
                &all(rows, |row| row.spent),
                &all(rows, |row| row.since),
                &all(rows, |row| &row.code),
                &messages,
                &all(rows, |row| row.changed_at),
            ],
        )
        .await?;
    Ok(written)
}

struct Told {
    id: i64,
    account: String,
    command_id: String,
    order_no: String,
    fingerprint: Vec<u8>,
    code: Option<String>,
    message: Option<String>,
    attempts: i32,
    occurred_at: i64,
}

fn results(connection: &Connection, after: i64) -> rusqlite::Result<Vec<Told>> {
    connection
        .prepare_cached(
            "SELECT id, account, command_id, order_no, fingerprint, code, message, attempts, occurred_at
             FROM results WHERE id > ?1 ORDER BY id LIMIT ?2",
        )?
        .query_map((after, BATCH), |row| {
            Ok(Told {
                id: row.get(0)?,
                account: row.get(1)?,
                command_id: row.get(2)?,
                order_no: row.get(3)?,
                fingerprint: row.get(4)?,
                code: row.get(5)?,
                message: row.get(6)?,
                attempts: row.get(7)?,
                occurred_at: row.get(8)?,
            })
        })?
        .collect()
}

async fn put_results(client: &Object, rows: &[Told]) -> Result<u64, DbError> {
    fn all<'a, T>(rows: &'a [Told], column: impl FnMut(&'a Told) -> T) -> Vec<T> {
        rows.iter().map(column).collect()
    }
    let commands = "
INSERT INTO wdt.commands (account, command_id, fingerprint, claimed_at)
SELECT * FROM unnest($1::text[], $2::text[], $3::bytea[], $4::bigint[])
ON CONFLICT DO NOTHING";
    let put = "
INSERT INTO wdt.results (command, order_no, code, message, attempts, occurred_at)
SELECT c.id, r.order_no, r.code, r.message, r.attempts, r.occurred_at
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::integer[], $7::bigint[])
    AS r(account, command_id, order_no, code, message, attempts, occurred_at)
JOIN wdt.commands c USING (account, command_id)
ON CONFLICT DO NOTHING";
    let accounts = all(rows, |row| &row.account);
    let ids = all(rows, |row| stored(&row.command_id));
    let ids: Vec<&str> = ids.iter().map(Cow::as_ref).collect();
    let shown = all(rows, |row| stored(&row.order_no));
    let shown: Vec<&str> = shown.iter().map(Cow::as_ref).collect();
    let messages = all(rows, |row| row.message.as_deref().map(stored));
    let messages: Vec<Option<&str>> = messages.iter().map(Option::as_deref).collect();
    let times = all(rows, |row| row.occurred_at);
    let fingerprints = all(rows, |row| &row.fingerprint);
    let (commands, put) = (
        client.prepare_cached(commands).await?,
        client.prepare_cached(put).await?,
    );
    client
        .execute(&commands, &[&accounts, &ids, &fingerprints, &times])
        .await?;
    let codes = all(rows, |row| &row.code);
    let attempts = all(rows, |row| row.attempts);
    let written = client
        .execute(
            &put,
            &[
                &accounts, &ids, &shown, &codes, &messages, &attempts, &times,
            ],
        )
        .await?;
    Ok(written)
}

/// The journal becomes a chain among the others, under its own name.
async fn journal(db: &Db, connection: &Connection) -> Result<(), ImportError> {
    let marks = "SELECT chain, journal_seq, journal_hash, forgotten_seq, forgotten_hash FROM marks";
    let (chain, seq, hash, forgotten_seq, forgotten_hash) =
        connection.query_row(marks, [], |row| {
            let hash: Option<Vec<u8>> = row.get(2)?;
            let forgotten_hash: Option<Vec<u8>> = row.get(4)?;
            Ok((
                row.get::<_, String>(0)?,
                row.get::<_, i64>(1)?,
                hash,
                row.get::<_, i64>(3)?,
                forgotten_hash,
            ))
        })?;
    let Some(hash) = hash else { return Ok(()) };
    // What came over before, and was forgotten since, stays so: the chain goes on behind it.
    let known = db
        .step(async |client| {
            let known = "SELECT forgotten_seq FROM wdt.chains WHERE chain = $1";
            let known = client.query_opt(known, &[&chain]).await?;
            Ok(known.map(|row| row.get::<_, i64>(0)))
        })
        .await?;
    let mut after = known.map_or(forgotten_seq, |known| known.max(forgotten_seq));
    let mut at = 0_i64;
    loop {
        let rows = connection
            .prepare_cached(
                "SELECT seq, at, text, hash FROM journal WHERE seq > ?1 ORDER BY seq LIMIT ?2",
            )?
            .query_map((after, JOURNAL_BATCH), |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
            })?
            .collect::<rusqlite::Result<Vec<(i64, i64, String, Vec<u8>)>>>()?;
        let Some(last) = rows.last() else { break };
        (after, at) = (last.0, last.1);
        db.step_within(LONG, async |client| {
            let put = "INSERT INTO wdt.journal (chain, seq, at, text, hash)
                 SELECT $1::text, $2::bigint, $3::bigint, $4::text, $5::bytea WHERE NOT EXISTS (
                     SELECT FROM wdt.chains WHERE chain = $1 AND forgotten_seq >= $2)
                 ON CONFLICT DO NOTHING";
            let put = client.prepare_cached(put).await?;
            // Nobody forgets more of it meanwhile.
            let lock = "SELECT FROM wdt.chains WHERE chain = $1 FOR UPDATE";
            client.batch_execute("BEGIN").await?;
            client.query_opt(lock, &[&chain]).await?;
            for (seq, at, text, hash) in &rows {
                client.execute(&put, &[&chain, seq, at, text, hash]).await?;
            }
            client.batch_execute("COMMIT").await?;
            Ok(())
        })
        .await?;
    }
    let filters = connection
        .prepare("SELECT last_seq, first_seq, names FROM journal_filters")?
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
        .collect::<rusqlite::Result<Vec<(i64, i64, Vec<u8>)>>>()?;
    db.step_within(LONG, async |client| {
        client.batch_execute("BEGIN").await?;
        let put = "INSERT INTO wdt.journal_filters (chain, last_seq, first_seq, names)
             VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING";
        for (last_seq, first_seq, names) in &filters {
            client
                .execute(put, &[&chain, last_seq, first_seq, names])
                .await?;
        }
        // Last: a chain that is not whole yet is none.
        let put = "INSERT INTO wdt.chains
             (chain, worker, began_at, seq, at, hash, forgotten_seq, forgotten_hash)
             VALUES ($1, 'imported', 0, $2, $3, $4, $5, $6) ON CONFLICT (chain) DO UPDATE SET
             seq = greatest(chains.seq, EXCLUDED.seq),
             hash = CASE WHEN chains.seq < EXCLUDED.seq THEN EXCLUDED.hash ELSE chains.hash END,
             forgotten_seq = greatest(chains.forgotten_seq, EXCLUDED.forgotten_seq),
             forgotten_hash = CASE WHEN chains.forgotten_seq < EXCLUDED.forgotten_seq
                 THEN EXCLUDED.forgotten_hash ELSE chains.forgotten_hash END";
        client
            .execute(
                put,
                &[&chain, &seq, &at, &hash, &forgotten_seq, &forgotten_hash],
            )
            .await?;
        // The file may have forgotten more by now, behind which its chain goes on.
        let gone = "DELETE FROM wdt.journal WHERE chain = $1 AND seq <= $2";
        client.execute(gone, &[&chain, &forgotten_seq]).await?;
        client.batch_execute("COMMIT").await?;
        Ok(())
    })
    .await?;
    Ok(())
}

/// Accounts that were called within the last minute, and when last.
fn last_calls(connection: &Connection) -> rusqlite::Result<Vec<(String, i64)>> {
    let after = Timestamp::now().as_millisecond() - i64::try_from(MINUTE.as_millis()).unwrap_or(0);
    connection
        .prepare("SELECT account, max(began_at) FROM calls WHERE began_at > ?1 GROUP BY account")?
        .query_map([after], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect()
}

/// When the ledger was last restored, if it was; now, if it is a back-up.
fn restored_at(connection: &Connection, schema: i32) -> rusqlite::Result<Option<i64>> {
    const MARKS: i32 = 3;
    if schema < MARKS {
        return Ok(None);
    }
    connection.query_row("SELECT is_copy, restored_at FROM marks", [], |row| {
        let is_copy: bool = row.get(0)?;
        let before: Option<i64> = row.get(1)?;
        Ok(if is_copy {
            Some(Timestamp::now().as_millisecond())
        } else {
            before
        })
    })
}

async fn remember(
    client: &Object,
    calls: &[(String, i64)],
    restored_at: Option<i64>,
) -> Result<(), DbError> {
    for (account, at) in calls {
        // Not each call, but none is made before they count no more.
        let quiet = "
INSERT INTO wdt.accounts AS a (account, quiet_until) VALUES ($1, to_timestamp($2))
ON CONFLICT (account) DO UPDATE SET quiet_until = greatest(a.quiet_until, EXCLUDED.quiet_until)";
        let until = (*at as f64) / 1000.0 + MINUTE.as_secs_f64();
        client.execute(quiet, &[account, &until]).await?;
    }
    let mark = "UPDATE wdt.marks SET restored_at = greatest(restored_at, $1)";
    client.execute(mark, &[&restored_at]).await?;
    Ok(())
}

/// Pauses these accounts, or resumes them, for every worker.
///
/// # Errors
/// When the database cannot be used, or the tables are not there.
pub async fn pause(
    url: &str,
    accounts: &[AccountName],
    paused: Option<&Paused>,
) -> Result<(), OpenError> {
    let db = Db::new(url)?;
    super::ready(&db, Mode::Live).await?;
    db.step(async |client| {
        for account in accounts {
            super::pauses::write(client, account.as_str(), paused).await?;
        }
        Ok(())
    })
    .await?;
    Ok(())
}
