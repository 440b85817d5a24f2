//! The worker's lease: how long the others take it for alive.
//!
//! A worker is a row, and has in hand what `wdt.holds` says under its number. Its lease is one time
//! in that row, renewed every few seconds whatever the worker does. Whoever finds a lease over
//! deletes the row and all its holds in one transaction; the row's lock decides between that and a
//! renewal. So a lease that was over is renewed only if nobody noticed, and a worker that froze for
//! longer finds itself gone: it takes a new number, and what it held under the old one is lost.
//!
//! The worker counts its lease from before it asked for it, by two clocks of its own, one of which
//! goes on while the machine sleeps; so it ends here before it ends there. A call is begun only
//! while more than `api.timeout` of it is left.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use deadpool_postgres::Object;
use jiff::Timestamp;

use super::connect::DbError;
use crate::rules::time::later;

/// Left of a lease beside a call's time, at least and at most: renewals get lost, databases are
/// started anew, and meanwhile calls may still be begun. The longer, the longer a dead worker's
/// orders wait.
const SLACK: std::ops::RangeInclusive<Duration> = Duration::from_secs(10)..=Duration::from_secs(30);
/// Renewals within the slack.
const RENEWALS: u32 = 6;

/// How long a lease is, and how much of it a call needs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Term {
    /// From a renewal on.
    pub(super) length: Duration,
    call: Duration,
    /// Between two renewals.
    pub(super) renewal: Duration,
}

impl Term {
    /// For calls that take `api.timeout` at most.
    pub(super) fn new(timeout: Duration) -> Self {
        let slack = timeout.clamp(*SLACK.start(), *SLACK.end());
        Self {
            length: timeout + slack,
            call: timeout,
            renewal: slack / RENEWALS,
        }
    }

    pub(super) fn millis(self) -> i64 {
        i64::try_from(self.length.as_millis()).unwrap_or(i64::MAX)
    }
}

/// Until when a call may be begun.
#[derive(Debug, Clone, Copy)]
pub struct Until {
    steady: Instant,
    wall: Timestamp,
}

impl Until {
    fn after(steady: Instant, wall: Timestamp, time: Duration) -> Self {
        Self {
            steady: steady + time,
            wall: later(wall, time),
        }
    }

    /// It is not over yet, by either clock.
    pub fn is_ahead(self) -> bool {
        Instant::now() < self.steady && Timestamp::now() < self.wall
    }
}

#[derive(Debug, Clone, Copy)]
struct State {
    worker: i64,
    run: Option<i64>,
    calls_until: Until,
    renewed_at: Instant,
}

/// This worker's row, as it was when it was last renewed.
#[derive(Debug)]
pub(super) struct Lease {
    name: String,
    term: Term,
    state: Mutex<State>,
    /// One renewal at a time, or two would take two numbers; false when there are to be no more.
    renewing: tokio::sync::Mutex<bool>,
}

impl Lease {
    /// Puts the worker into the list.
    pub(super) async fn begin(client: &Object, name: String, term: Term) -> Result<Self, DbError> {
        let (steady, wall) = (Instant::now(), Timestamp::now());
        let worker = register(client, &name, term).await?;
        Ok(Self {
            name,
            term,
            state: Mutex::new(State {
                worker,
                run: None,
                calls_until: Until::after(steady, wall, term.length - term.call),
                renewed_at: steady,
            }),
            renewing: tokio::sync::Mutex::new(true),
        })
    }

    fn state(&self) -> State {
        *self.lock()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // Nothing panics while it is held.
        self.state
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Its number.
    pub(super) fn worker(&self) -> i64 {
        self.state().worker
    }

    /// Until when calls may be begun.
    pub(super) fn calls_until(&self) -> Until {
        self.state().calls_until
    }

    pub(super) fn term(&self) -> Term {
        self.term
    }

    /// The run that this worker's death is to be noted with.
    pub(super) fn run(&self) -> Option<i64> {
        self.state().run
    }

    /// From now on it is this one.
    pub(super) fn set_run(&self, run: i64) {
        self.lock().run = Some(run);
    }

    /// It is time to renew it.
    pub(super) fn is_due(&self) -> bool {
        self.state().renewed_at.elapsed() >= self.term.renewal
    }

    /// Renews it; when the row is gone, under a new number, and then everything is lost that was
    /// held under the old one: `true`.
    pub(super) async fn renew(&self, client: &Object) -> Result<bool, DbError> {
        let goes_on = self.renewing.lock().await;
        if !*goes_on {
            return Ok(false);
        }
        let before = self.state();
        let (steady, wall) = (Instant::now(), Timestamp::now());
        let renew = client
            .prepare_cached(
                "UPDATE wdt.workers SET lease_until = clock_timestamp() + $2 * interval '1 ms'
                 WHERE id = $1",
            )
            .await?;
        let millis = self.term.millis() as f64;
        let renewed = client.execute(&renew, &[&before.worker, &millis]).await?;
        let worker = if renewed == 1 {
            before.worker
        } else {
            let worker = register(client, &self.name, self.term).await?;
            // It was taken for dead, and is not.
            let run = "UPDATE wdt.runs SET worker = $1, ended = 0 WHERE id = $2 AND ended = 2";
            if let Some(id) = before.run {
                client.execute(run, &[&worker, &id]).await?;
            }
            worker
        };
        let mut state = self.lock();
        state.worker = worker;
        state.calls_until = Until::after(steady, wall, self.term.length - self.term.call);
        state.renewed_at = steady;
        Ok(worker != before.worker)
    }

    /// Gives everything back: this worker calls for nothing any more.
    pub(super) async fn end(&self, client: &Object) -> Result<(), DbError> {
        let mut goes_on = self.renewing.lock().await;
        *goes_on = false;
        bury(client, &[self.worker()], 1).await
    }
}

async fn register(client: &Object, name: &str, term: Term) -> Result<i64, DbError> {
    let register = "INSERT INTO wdt.workers (id, name, lease_until)
         VALUES (nextval('wdt.numbers'), $1, clock_timestamp() + $2 * interval '1 ms')
         RETURNING id";
    let millis = term.millis() as f64;
    Ok(client.query_one(register, &[&name, &millis]).await?.get(0))
}

/// Frees what is held by workers whose lease is over; tells how many these were.
pub(super) async fn collect(client: &Object) -> Result<usize, DbError> {
    let dead = "SELECT id FROM wdt.workers WHERE lease_until <= clock_timestamp() ORDER BY id";
    let rows = client.query(dead, &[]).await?;
    let dead: Vec<i64> = rows.iter().map(|row| row.get(0)).collect();
    if dead.is_empty() {
        return Ok(0);
    }
    client.batch_execute("BEGIN").await?;
    // Locked one by one and looked at again: a renewal may be on its way.
    let lock = "DELETE FROM wdt.workers
         WHERE id = ANY($1) AND lease_until <= clock_timestamp() RETURNING id";
    let rows = client.query(lock, &[&dead]).await?;
    let dead: Vec<i64> = rows.iter().map(|row| row.get(0)).collect();
    free(client, &dead, 2).await?;
    client.batch_execute("COMMIT").await?;
    Ok(dead.len())
}

async fn bury(client: &Object, workers: &[i64], ended: i16) -> Result<(), DbError> {
    client.batch_execute("BEGIN").await?;
    let row = "DELETE FROM wdt.workers WHERE id = ANY($1)";
    client.execute(row, &[&workers]).await?;
    free(client, workers, ended).await?;
    client.batch_execute("COMMIT").await?;
    Ok(())
}

/// What workers leave whose rows are deleted. Claims lock the row of their worker, so no hold can be
/// added once it is gone.
async fn free(client: &Object, workers: &[i64], ended: i16) -> Result<(), DbError> {
    for sql in [
        "DELETE FROM wdt.holds WHERE worker = ANY($1)",
        "DELETE FROM wdt.queue WHERE worker = ANY($1)",
    ] {
        client.execute(sql, &[&workers]).await?;
    }
    let runs = "UPDATE wdt.runs SET ended = $2 WHERE worker = ANY($1) AND ended = 0";
    client.execute(runs, &[&workers, &ended]).await?;
    let trials = "UPDATE wdt.trials SET died = died + $2, worker = NULL WHERE worker = ANY($1)";
    let died = i32::from(ended == 2);
    client.execute(trials, &[&workers, &died]).await?;
    Ok(())
}
