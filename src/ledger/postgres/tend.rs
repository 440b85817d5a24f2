//! What goes on beside the worker's requests: the lease, dead workers' orders, forgetting.

use std::sync::Arc;
use std::time::Duration;

use deadpool_postgres::Object;
use jiff::Timestamp;

use super::connect::{Db, DbError};
use super::lease::{self, Lease};
use super::{SharedBoard, on, pauses};
use crate::ledger::{Board, PRUNE_EVERY};
use crate::rules::time::earlier;

/// Rows of each table looked at in one pruning: a step short enough to be unnoticed.
const PRUNE_ROWS: i64 = 1000;
/// Prunings after which the front is looked for anew: an order that was skipped may have ended.
const FRONT_TRUSTED: u32 = 3600;
/// A command that was on trial and did not come again for so long is not known any more.
const TRIALS_KEPT: Duration = Duration::from_secs(24 * 60 * 60);
/// A chain that was not written to for so long is over: see [`super::CHAIN_IDLE`].
const CHAIN_OVER: Duration = Duration::from_secs(48 * 60 * 60);
/// More runs than are ever looked at.
const RUNS_KEPT: i64 = 1000;
/// One worker forgets at a time: "wdtprune".
const PRUNE_LOCK: i64 = 0x7764_7470_7275_6e65;

/// Runs until it is aborted.
pub(super) async fn run(
    db: Db,
    lease: Arc<Lease>,
    board: SharedBoard,
    retention: Duration,
    mut pauses: pauses::Watch,
) {
    let mut fronts = Fronts::default();
    let mut tick = tokio::time::interval(PRUNE_EVERY.min(lease.term().renewal));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        if lease.is_due() {
            let lived = db
                .step(async |client| {
                    let is_new = lease.renew(client).await?;
                    lease::collect(client).await.map(|freed| (is_new, freed))
                })
                .await;
            match lived {
                Ok((is_new, freed)) => {
                    on(&board, Board::works);
                    if is_new {
                        tracing::warn!(
                            "this worker's lease was over, and its orders were free; it asks for them anew"
                        );
                    }
                    if freed > 0 {
                        tracing::warn!(workers = freed, "workers have died; their orders are free");
                    }
                }
                Err(error) if error.is_conflict() => {}
                Err(error) => {
                    on(&board, |board| board.work_fails(error.fault()));
                    continue;
                }
            }
        }
        let before = earlier(Timestamp::now(), retention).as_millisecond();
        let pruned = db
            .step(async |client| {
                pauses.look(client).await?;
                prune(client, before, &mut fronts).await
            })
            .await;
        let fault = pruned.err().filter(|error| !error.is_conflict());
        on(&board, |board| {
            board.tidied(fault.map(|error| error.fault()))
        });
    }
}

/// Where the rows begin that are still remembered. The index leads past what was deleted before them
/// only after a vacuum, so they are looked for from here on.
#[derive(Debug, Default)]
pub(super) struct Fronts {
    orders: i64,
    results: i64,
    commands: i64,
    age: u32,
}

/// Looks at the oldest rows of each table and forgets those that did not change since `before`.
/// An order that has not ended stays.
pub(super) async fn prune(
    client: &Object,
    before: i64,
    fronts: &mut Fronts,
) -> Result<(), DbError> {
    fronts.age += 1;
    if fronts.age > FRONT_TRUSTED {
        *fronts = Fronts::default();
    }
    client
        .batch_execute("BEGIN; SET LOCAL synchronous_commit = off")
        .await?;
    let lock = format!("SELECT pg_try_advisory_xact_lock({PRUNE_LOCK})");
    if client.query_one(&lock, &[]).await?.get(0) {
        fronts.orders = step(client, ORDERS, fronts.orders, before).await?;
        fronts.results = step(client, RESULTS, fronts.results, before).await?;
        fronts.commands = step(client, COMMANDS, fronts.commands, before).await?;
        let journal = client.prepare_cached(JOURNAL).await?;
        let now = Timestamp::now().as_millisecond();
        client
            .execute(&journal, &[&before, &PRUNE_ROWS, &now])
            .await?;
        client.execute(FILTERS, &[]).await?;
        let chains = client.prepare_cached(CHAINS).await?;
        let over = before.min(earlier(Timestamp::now(), CHAIN_OVER).as_millisecond());
        client.execute(&chains, &[&over]).await?;
        let calls = "DELETE FROM wdt.calls WHERE counts_until < clock_timestamp() - interval '1 s'";
        client.execute(calls, &[]).await?;
        let queue = "DELETE FROM wdt.queue WHERE asked_at < clock_timestamp() - interval '1 min'";
        client.execute(queue, &[]).await?;
        let trials = "DELETE FROM wdt.trials WHERE changed_at < $1 AND worker IS NULL";
        let kept = earlier(Timestamp::now(), TRIALS_KEPT).as_millisecond();
        client.execute(trials, &[&kept]).await?;
        let runs = "DELETE FROM wdt.runs WHERE id <= (SELECT max(id) FROM wdt.runs) - $1";
        client.execute(runs, &[&RUNS_KEPT]).await?;
    }
    client.batch_execute("COMMIT").await?;
    Ok(())
}

/// Each deletes what is old among the first rows from the front on, up to the first that is to be
/// remembered, and tells where the front is then.
const ORDERS: &str = "
WITH front AS MATERIALIZED (
    SELECT id, state = 2 AND changed_at < $2 AS is_old, state = 2 AS has_ended
    FROM wdt.orders WHERE id >= $1 ORDER BY id LIMIT $3),
young AS (SELECT min(id) AS id FROM front WHERE has_ended AND NOT is_old),
gone AS (
    DELETE FROM wdt.orders o USING front f, young y
    WHERE o.id = f.id AND f.is_old AND o.state = 2 AND o.changed_at < $2
      AND (y.id IS NULL OR f.id < y.id)
    RETURNING o.id)
SELECT coalesce((SELECT id FROM young), (SELECT max(id) + 1 FROM front), $1), (SELECT count(*) FROM gone)";
const RESULTS: &str = "
WITH front AS MATERIALIZED (
    SELECT command, order_no, occurred_at < $2 AS is_old
    FROM wdt.results WHERE command >= $1 ORDER BY command, order_no LIMIT $3),
young AS (SELECT min(command) AS id FROM front WHERE NOT is_old),
gone AS (
    DELETE FROM wdt.results r USING front f
    WHERE r.command = f.command AND r.order_no = f.order_no AND f.is_old AND r.occurred_at < $2
    RETURNING r.command)
SELECT coalesce((SELECT id FROM young), (SELECT max(command) FROM front), $1), (SELECT count(*) FROM gone)";
const COMMANDS: &str = "
WITH front AS MATERIALIZED (
    SELECT id, claimed_at < $2
        AND NOT EXISTS (SELECT FROM wdt.results r WHERE r.command = c.id) AS is_old
    FROM wdt.commands c WHERE id >= $1 ORDER BY id LIMIT $3),
young AS (SELECT min(id) AS id FROM front WHERE NOT is_old),
gone AS (
    DELETE FROM wdt.commands c USING front f
    WHERE c.id = f.id AND f.is_old
    RETURNING c.id)
SELECT coalesce((SELECT id FROM young), (SELECT max(id) + 1 FROM front), $1), (SELECT count(*) FROM gone)";

/// Forgets the oldest rows of each chain, with what a clock that was ahead wrote before them; the
/// last of them is what the rest is chained to. There may be a chain for each restart, so of one
/// whose first row is to be remembered no more than that is read.
const JOURNAL: &str = "
WITH last AS MATERIALIZED (
    SELECT c.chain, c.forgotten_seq, j.seq, j.hash
    FROM wdt.chains c
    CROSS JOIN LATERAL (
        SELECT at FROM wdt.journal
        WHERE chain = c.chain AND seq > c.forgotten_seq ORDER BY seq LIMIT 1) first
    CROSS JOIN LATERAL (
        SELECT seq, hash FROM (
            SELECT seq, at, hash FROM wdt.journal
            WHERE chain = c.chain AND seq > c.forgotten_seq ORDER BY seq LIMIT $2) oldest
        WHERE at < $1 ORDER BY seq DESC LIMIT 1) j
    WHERE c.seq > c.forgotten_seq AND (first.at < $1 OR first.at > $3)),
gone AS (
    DELETE FROM wdt.journal g USING last l
    WHERE g.chain = l.chain AND g.seq > l.forgotten_seq AND g.seq <= l.seq)
UPDATE wdt.chains c SET forgotten_seq = last.seq, forgotten_hash = last.hash
FROM last WHERE c.chain = last.chain";
const FILTERS: &str = "
DELETE FROM wdt.journal_filters f USING wdt.chains c
WHERE f.chain = c.chain AND f.last_seq <= c.forgotten_seq";
/// Of a worker that writes it no more.
const CHAINS: &str = "DELETE FROM wdt.chains WHERE seq = forgotten_seq AND at < $1";

async fn step(client: &Object, sql: &str, front: i64, before: i64) -> Result<i64, DbError> {
    let statement = client.prepare_cached(sql).await?;
    let row = client
        .query_one(&statement, &[&front, &before, &PRUNE_ROWS])
        .await?;
    Ok(row.get(0))
}
