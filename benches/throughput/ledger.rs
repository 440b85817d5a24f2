//! The worker on a ledger that remembers very many finished orders, beside an empty one.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rusqlite::{Connection, params};

use crate::gateway::Gateway;
use crate::latency::{self, Rate};
use crate::load::{Client, Shape, next};
use crate::report::{Row, median};
use crate::subject::{Subject, consumes, settings};
use crate::support::amqp::COMMANDS;
use crate::support::broker::{Broker, Queue, Vhost};
use crate::support::eventually::eventually;
use crate::support::gateway::Account;
use crate::{compare, report};

/// Rows in one transaction while the ledger is filled.
const STEP: usize = 100_000;
/// Pages kept in memory meanwhile, in KiB: the whole of the one index whose keys are random.
const FILL_CACHE_KIB: i32 = 1024 * 1024;
/// How old the finished orders are.
const AGE: Duration = Duration::from_secs(40 * 24 * 60 * 60);
/// Longer than that, and shorter.
const KEEPS: &str = "365d";
const FORGETS: &str = "30d";
/// Starts after a kill.
const STARTS: usize = 5;
/// Told before the worker is killed.
const BEFORE_KILL: usize = 300;
/// Waiting when it is killed.
const WAITING: usize = 5_000;
const LIMIT: Duration = Duration::from_secs(120);

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Finished orders that the ledger remembers.
    pub remembered: usize,
    /// In a run of each.
    pub orders: usize,
    pub runs: usize,
    pub rate: Rate,
}

/// A ledger, and the number of the next order that it does not know.
struct Filled {
    path: PathBuf,
    next: usize,
}

/// Measures, and prints each figure as it comes.
pub async fn run(broker: &Broker, size: Size, mut rng: fastrand::Rng) {
    let mut filled = Filled::make(broker, size.remembered).await;
    throughput(broker, &mut filled, size, &mut rng).await;
    starts(broker, &mut filled, &mut rng).await;
    for retention in [KEEPS, FORGETS] {
        if size.rate.per_second > 0 {
            pauses(broker, &mut filled, size.rate, retention, rng.fork()).await;
        }
    }
}

impl Filled {
    /// The worker makes the ledger, so that its schema is the worker's own; what it would know after
    /// a long time is then written by a shorter way.
    async fn make(broker: &Broker, remembered: usize) -> Self {
        let vhost = broker.vhost().await;
        let gateway = start_gateway(&Shape::plain(0)).await;
        let setup = settings(&vhost, &gateway, &Shape::plain(0));
        let mut worker = setup.start();
        worker.wait_ready(LIMIT).await;
        assert_eq!(worker.terminate(LIMIT).await, 0);

        let path = setup.dir().join("ledger");
        let began = Instant::now();
        fill(&path, remembered).unwrap();
        let bytes = path.metadata().unwrap().len() as f64;
        println!(
            "a ledger of {remembered} finished orders, {:.0} bytes each, {:.1} GB, made in {:.0} s",
            bytes / remembered as f64,
            bytes / 1e9,
            began.elapsed().as_secs_f64()
        );
        Self {
            path,
            next: remembered,
        }
    }

    /// So many orders that it does not know, and the settings that name it.
    fn shape(&mut self, orders: usize, retention: &str) -> Shape {
        let first = self.next;
        self.next += orders;
        let url = self.path.display().to_string();
        Shape {
            first,
            settings: vec![
                ("WDT_LEDGER__URL".into(), url),
                ("WDT_LEDGER__RETENTION".into(), retention.into()),
            ],
            ..Shape::plain(orders)
        }
    }

    /// The oldest order on record.
    fn oldest(&self) -> i64 {
        let ledger = Connection::open(&self.path).unwrap();
        let oldest = ledger.query_row("SELECT min(id) FROM orders", [], |row| row.get(0));
        oldest.unwrap()
    }
}

/// Each order of a command of its own, cancelled at the first try, long ago.
fn fill(path: &Path, remembered: usize) -> rusqlite::Result<()> {
    let ledger = Connection::open(path)?;
    // A ledger whose making was cut short is of no use to anybody.
    ledger.pragma_update(None, "journal_mode", "OFF")?;
    ledger.pragma_update(None, "synchronous", "OFF")?;
    ledger.pragma_update(None, "cache_size", -FILL_CACHE_KIB)?;
    let at = jiff::Timestamp::now() - AGE;
    let remembered = i64::try_from(remembered).unwrap();
    for first in (0..remembered).step_by(STEP) {
        let end = remembered.min(first + STEP as i64);
        let numbers = "WITH RECURSIVE numbers (n) AS
            (SELECT ?1 UNION ALL SELECT n + 1 FROM numbers WHERE n + 1 < ?2)";
        let values = params![first, end, at.as_millisecond()];
        let step = ledger.unchecked_transaction()?;
        step.execute(
            &format!(
                "{numbers} INSERT INTO orders
                 (account, order_no, state, attempts, spent, since, changed_at)
                 SELECT 'default', printf('QC%012d', n), 2, 1, 1, ?3, ?3 FROM numbers"
            ),
            values,
        )?;
        // The keys are hashes; a row that nobody asks for need not have the right ones.
        step.execute(
            &format!(
                "{numbers} INSERT INTO results
                 (command_key, account, command_id, order_no, fingerprint, attempts, occurred_at)
                 SELECT random(), 'default',
                 printf('%s-0000-4000-8000-%s', hex(randomblob(4)), hex(randomblob(6))),
                 printf('QC%012d', n), randomblob(16), 1, ?3 FROM numbers"
            ),
            values,
        )?;
        // As the worker does it: many at a time, in their sequence.
        let rows = step.last_insert_rowid();
        step.execute(
            "INSERT INTO result_keys
             SELECT command_key, id FROM results WHERE id > ?1 ORDER BY 1",
            [rows - (end - first)],
        )?;
        step.execute("UPDATE marks SET keys_to = ?1, keys_moving_to = ?1", [rows])?;
        step.commit()?;
    }
    ledger.pragma_update(None, "journal_mode", "WAL")?;
    drop(ledger);
    // Nothing of it is left to be written while something is measured.
    std::fs::File::open(path).unwrap().sync_all().unwrap();
    Ok(())
}

async fn throughput(broker: &Broker, filled: &mut Filled, size: Size, rng: &mut fastrand::Rng) {
    let mut rows: [Vec<Row>; 2] = Default::default();
    for run in 1..=size.runs {
        let shapes = [Shape::plain(size.orders), filled.shape(size.orders, KEEPS)];
        for ((what, shape), rows) in ["empty", "filled"].iter().zip(shapes).zip(&mut rows) {
            let row = compare::run(&Subject::Worker, broker, &shape, rng.fork()).await;
            println!(
                "run {run}: {what:<8} {}",
                report::line(&Subject::Worker, &row)
            );
            rows.push(row);
        }
    }
    let figure = |figure: fn(&Row) -> f64| rows.each_ref().map(|rows| median(rows, figure));
    let speed = figure(|row| row.orders_per_second);
    let cpu = figure(|row| row.cpu_micros);
    let peak = figure(|row| row.peak_mib);
    println!(
        "filled against empty: {:.0} to {:.0} orders/s ({:.2}), {:.1} to {:.1} µs CPU an order, \
         peak {:.0} to {:.0} MiB",
        speed[1],
        speed[0],
        speed[1] / speed[0],
        cpu[1],
        cpu[0],
        peak[1],
        peak[0]
    );
}

/// From the start of the process after kill -9 to the first acknowledgement that the broker has.
async fn starts(broker: &Broker, filled: &mut Filled, rng: &mut fastrand::Rng) {
    let mut times = Vec::new();
    for _ in 0..STARTS {
        let vhost = broker.vhost().await;
        let client = Client::connect(&vhost.url()).await;
        let shape = filled.shape(BEFORE_KILL + WAITING, KEEPS);
        let mut events = client.events().await;
        let gateway = start_gateway(&shape).await;
        let setup = settings(&vhost, &gateway, &shape);
        client.fill(&shape, rng).await;
        let mut worker = setup.start();
        for _ in 0..BEFORE_KILL {
            next(&mut events).await;
        }
        worker.kill9();
        let left = eventually(LIMIT, "the broker takes back what was held", async || {
            let commands = commands(&vhost).await;
            (commands.unacked == 0).then_some(commands.ready)
        })
        .await;

        let began = Instant::now();
        let mut worker = setup.start();
        eventually(LIMIT, "the first acknowledgement", async || {
            let commands = commands(&vhost).await;
            (commands.ready + commands.unacked < left).then_some(())
        })
        .await;
        times.push(began.elapsed().as_secs_f64());
        worker.terminate(LIMIT).await;
    }
    println!(
        "start after kill -9 to first acknowledgement: median {:.2} s, longest {:.2} s, of {STARTS}",
        median(&times, |time| *time),
        times.iter().copied().fold(0.0, f64::max)
    );
}

/// Latency and pauses, while old orders are forgotten or not.
async fn pauses(
    broker: &Broker,
    filled: &mut Filled,
    rate: Rate,
    retention: &str,
    rng: fastrand::Rng,
) {
    let vhost = broker.vhost().await;
    let client = Client::connect(&vhost.url()).await;
    let shape = filled.shape(rate.commands(), retention);
    let mut events = client.events().await;
    let gateway = start_gateway(&shape).await;
    let oldest_before = filled.oldest();
    let mut worker = settings(&vhost, &gateway, &shape).start();
    consumes(&vhost).await;
    let seen = latency::watch(&client, &mut events, rate, shape.first, rng).await;
    assert_eq!(worker.terminate(LIMIT).await, 0);
    println!(
        "retention {retention}: {} orders forgotten meanwhile; at {} commands a second {seen}",
        filled.oldest() - oldest_before,
        rate.per_second
    );
}

async fn start_gateway(shape: &Shape) -> Gateway {
    let account = Account::named(&Shape::account(0));
    Gateway::start(shape.gateway, shape.latency, &[account]).await
}

async fn commands(vhost: &Vhost) -> Queue {
    vhost.queue(COMMANDS).await.unwrap()
}
