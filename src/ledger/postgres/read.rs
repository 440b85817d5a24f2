//! The shared ledger for those who only read it; see [`crate::ledger::reader`].

use deadpool_postgres::Object;

use super::connect::{Db, DbError};
use super::rows::{count, read, stored};
use super::{OpenError, schema};
use crate::ledger::reader::{Names, OrderRecord, ResultRecord, Row};

/// A connection in a transaction that sees one moment; or else the schema that there is, and the one
/// that it would have to have.
pub(in crate::ledger) async fn begin(url: &str) -> Result<Result<Object, (i32, i32)>, OpenError> {
    let db = Db::new(url)?;
    let found = db.step(schema::find).await?;
    if !found.is_known() {
        let (found, oldest) = (found.version, found.oldest);
        return Err(OpenError::Newer { found, oldest });
    }
    if found.version < schema::VERSION {
        return Ok(Err((found.version, schema::VERSION)));
    }
    let client = db.lend().await?.keep();
    // Whoever reads may be slow, and holds no lock.
    let begin = "SET idle_in_transaction_session_timeout = 0; SET statement_timeout = '60s';
         BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
    client.batch_execute(begin).await.map_err(DbError::from)?;
    Ok(Ok(client))
}

type Mark = (i64, Option<Vec<u8>>);

pub(in crate::ledger) async fn chains(
    client: &Object,
) -> Result<Vec<(String, Mark, Mark)>, DbError> {
    let sql = "SELECT chain, forgotten_seq, forgotten_hash, seq, hash FROM wdt.chains
         ORDER BY began_at, chain";
    let rows = client.query(sql, &[]).await?;
    let chain = |row: &tokio_postgres::Row| {
        let (forgotten, last) = ((row.get(1), row.get(2)), (row.get(3), row.get(4)));
        (row.get(0), forgotten, last)
    };
    Ok(rows.iter().map(chain).collect())
}

pub(in crate::ledger) async fn rows(
    client: &Object,
    chain: &str,
    (first, last): (i64, i64),
    (most, bytes): (i64, i64),
) -> Result<Vec<Row>, DbError> {
    // A text's length is known without reading it.
    let sql = "SELECT seq, text, hash FROM (
             SELECT seq, text, hash,
                 sum(octet_length(text)) OVER (ORDER BY seq) - octet_length(text) AS before
             FROM (SELECT seq, text, hash FROM wdt.journal
                   WHERE chain = $1 AND seq BETWEEN $2 AND $3 ORDER BY seq LIMIT $4) r) s
         WHERE before < $5::bigint ORDER BY seq";
    let sql = client.prepare_cached(sql).await?;
    let rows = client
        .query(&sql, &[&chain, &first, &last, &most, &bytes])
        .await?;
    let row = |row: &tokio_postgres::Row| Row {
        seq: row.get(0),
        text: row.get(1),
        hash: row.get(2),
    };
    Ok(rows.iter().map(row).collect())
}

pub(in crate::ledger) async fn since(
    client: &Object,
    chain: &str,
    first: i64,
    since: i64,
) -> Result<Option<i64>, DbError> {
    let sql = "SELECT min(seq) FROM wdt.journal WHERE chain = $1 AND seq >= $2 AND at >= $3";
    Ok(client
        .query_one(sql, &[&chain, &first, &since])
        .await?
        .get(0))
}

pub(in crate::ledger) async fn names(
    client: &Object,
    chain: &str,
    after: i64,
) -> Result<Option<Names>, DbError> {
    let sql = "SELECT last_seq, names FROM wdt.journal_filters
         WHERE chain = $1 AND last_seq > $2 ORDER BY last_seq LIMIT 1";
    let sql = client.prepare_cached(sql).await?;
    let row = client.query_opt(&sql, &[&chain, &after]).await?;
    Ok(row.map(|row| Names {
        last: row.get(0),
        bits: row.get(1),
    }))
}

pub(in crate::ledger) async fn orders(
    client: &Object,
    order_no: &str,
) -> Result<Vec<OrderRecord>, DbError> {
    let sql = "SELECT account, state, attempts, since, changed_at, code, message
         FROM wdt.orders WHERE order_no = $1 ORDER BY account";
    let rows = client.query(sql, &[&order_no]).await?;
    let order = |row: &tokio_postgres::Row| OrderRecord {
        account: row.get(0),
        state: row.get(1),
        attempts: count(row.get(2)),
        since: row.get(3),
        changed_at: row.get(4),
        code: row.get(5),
        message: row.get::<_, Option<&str>>(6).map(|m| read(m).into_owned()),
    };
    Ok(rows.iter().map(order).collect())
}

pub(in crate::ledger) async fn results(
    client: &Object,
    account: &str,
    command_id: &str,
) -> Result<Vec<ResultRecord>, DbError> {
    let sql = "SELECT r.order_no, r.code, r.message, r.attempts, r.occurred_at
         FROM wdt.commands c JOIN wdt.results r ON r.command = c.id
         WHERE c.account = $1 AND c.command_id = $2 ORDER BY r.order_no";
    let sql = client.prepare_cached(sql).await?;
    let id = stored(command_id);
    let rows = client.query(&sql, &[&account, &&*id]).await?;
    let result = |row: &tokio_postgres::Row| ResultRecord {
        order_no: read(row.get(0)).into_owned(),
        code: row.get(1),
        message: row.get::<_, Option<&str>>(2).map(|m| read(m).into_owned()),
        attempts: count(row.get(3)),
        occurred_at: row.get(4),
    };
    Ok(rows.iter().map(result).collect())
}
