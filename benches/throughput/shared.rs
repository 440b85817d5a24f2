//! Workers that share a ledger in PostgreSQL, beside one with the ledger of its own.

use std::fmt;

use crate::load::Shape;
use crate::report::{self, Row, median};
use crate::subject::Subject;
use crate::support::broker::Broker;
use crate::support::postgres::Postgres;
use crate::{compare, gateway};

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// From one worker up to so many.
    pub workers: usize,
    pub orders: usize,
    pub runs: usize,
}

/// The ledger of its own, or so many workers at a shared one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Setting {
    shared_by: Option<usize>,
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&match self.shared_by {
            None => "own ledger, 1 worker".to_owned(),
            Some(1) => "shared ledger, 1 worker".to_owned(),
            Some(workers) => format!("shared ledger, {workers} workers"),
        })
    }
}

/// Measures, and prints each figure as it comes. Each run has a database of its own.
pub async fn run(broker: &Broker, size: Size, mut rng: fastrand::Rng) {
    let postgres = Postgres::start().await;
    let settings: Vec<Setting> = (0..=size.workers)
        .map(|n| Setting {
            shared_by: (n > 0).then_some(n),
        })
        .collect();
    let mut rows: Vec<Vec<Row>> = vec![Vec::new(); settings.len()];
    for run in 1..=size.runs {
        for (setting, rows) in settings.iter().zip(&mut rows) {
            let shape = shape(*setting, size, &postgres).await;
            let row = compare::run(&Subject::Worker, broker, &shape, rng.fork()).await;
            println!(
                "run {run}: {setting:<26} {}",
                report::line(&Subject::Worker, &row)
            );
            rows.push(row);
        }
    }
    let own = median(&rows[0], |row| row.orders_per_second);
    println!(
        "medians of {} runs, {} orders each:",
        size.runs, size.orders
    );
    for (setting, rows) in settings.iter().zip(&rows) {
        let of = |figure: fn(&Row) -> f64| median(rows, figure);
        let speed = of(|row| row.orders_per_second);
        println!(
            "  {setting:<26} {speed:>6.0} orders/s, {:.2} of the first; CPU µs an order: \
             workers {:.1}, database {:.1}, broker {:.1}; peak of one {:.0} MiB; {:.1} calls per \
             1,000 orders",
            speed / own,
            of(|row| row.cpu_micros),
            of(|row| row.database_micros.unwrap_or_default()),
            of(|row| row.broker_micros),
            of(|row| row.peak_mib),
            of(|row| row.calls_per_thousand.unwrap_or_default()),
        );
    }
}

async fn shape(setting: Setting, size: Size, postgres: &Postgres) -> Shape {
    let mut shape = Shape {
        gateway: gateway::Kind::Double,
        ..Shape::plain(size.orders)
    };
    if let Some(workers) = setting.shared_by {
        let database = postgres.database().await;
        shape.workers = workers;
        shape.database = Some(postgres.pid());
        shape
            .settings
            .push(("WDT_LEDGER__URL".into(), database.url().to_owned()));
    }
    shape
}
