//! Medians and ratios.

use comfy_table::{Table, presets};

use crate::bare::Kind;
use crate::load::Shape;
use crate::subject::Subject;

/// One run of one subject.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    pub orders_per_second: f64,
    /// CPU time of the subject's process for an order.
    pub cpu_micros: f64,
    /// CPU time of the broker for an order.
    pub broker_micros: f64,
    pub peak_kib: u64,
    pub calls_per_thousand: Option<f64>,
}

/// One run, for those who wait.
pub fn line(subject: Subject, row: &Row) -> String {
    format!(
        "{:<8} {:>7.0} orders/s  {:>5.1} µs CPU an order",
        subject.name(),
        row.orders_per_second,
        row.cpu_micros
    )
}

/// The medians of all runs, and what they are in those of the bare loop.
pub fn table(subjects: &[Subject], rows: &[Vec<Row>], shape: &Shape) -> String {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header([
        "",
        "orders/s",
        "of bare",
        "CPU µs an order",
        "of bare",
        "of bulk",
        "broker's CPU µs",
        "peak MiB",
        "calls per 1,000 orders",
    ]);
    let of = |subject: Subject| {
        let place = subjects.iter().position(|s| *s == subject);
        &rows[place.unwrap_or_default()]
    };
    let bare = of(Subject::Loop(Kind::Bare));
    let bulk = of(Subject::Loop(Kind::Bulk));
    for (subject, rows) in subjects.iter().zip(rows) {
        let speed = median(rows, |r| r.orders_per_second);
        let cpu = median(rows, |r| r.cpu_micros);
        let calls = rows[0].calls_per_thousand.map(|_| {
            let calls = median(rows, |r| r.calls_per_thousand.unwrap_or_default());
            format!("{calls:.1}")
        });
        table.add_row([
            subject.name().to_owned(),
            format!("{speed:.0}"),
            format!("{:.2}", speed / median(bare, |r| r.orders_per_second)),
            format!("{cpu:.1}"),
            format!("{:.2}", cpu / median(bare, |r| r.cpu_micros)),
            format!("{:.2}", cpu / median(bulk, |r| r.cpu_micros)),
            format!("{:.1}", median(rows, |r| r.broker_micros)),
            format!("{:.0}", median(rows, |r| r.peak_kib as f64 / 1024.0)),
            calls.unwrap_or_else(|| "–".into()),
        ]);
    }
    format!(
        "{} orders, {} in a command, {} accounts, {} ms at the gateway; medians of {} runs\n{table}",
        shape.orders,
        shape.orders_per_command,
        shape.accounts,
        shape.latency.as_millis(),
        rows[0].len()
    )
}

fn median(rows: &[Row], figure: impl Fn(&Row) -> f64) -> f64 {
    let mut figures: Vec<f64> = rows.iter().map(figure).collect();
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}
