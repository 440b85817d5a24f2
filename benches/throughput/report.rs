//! Medians and ratios.

use comfy_table::{Table, presets};

use crate::bare::Kind;
use crate::load::Shape;
use crate::subject::Subject;

/// `api.max_orders_per_call` as shipped.
pub const ORDERS_PER_CALL: usize = 20;
const NONE: &str = "–";

/// One run of one subject. CPU times are a process's own, for an order.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    pub orders_per_second: f64,
    pub cpu_micros: f64,
    pub broker_micros: f64,
    /// Of a subject that calls one.
    pub gateway_micros: Option<f64>,
    pub peak_mib: f64,
    pub calls_per_thousand: Option<f64>,
}

/// One run, for those who wait.
pub fn line(subject: &Subject, row: &Row) -> String {
    format!(
        "{subject:<16} {:>7.0} orders/s  {:>6.1} µs CPU an order",
        row.orders_per_second, row.cpu_micros
    )
}

/// The medians of all runs, and what they are in those of the bare loops.
pub fn table(subjects: &[Subject], rows: &[Vec<Row>], shape: &Shape) -> String {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header([
        "",
        "orders/s",
        "of bare",
        "of grouped",
        "CPU µs an order",
        "of bare",
        "of grouped",
        "broker's CPU µs",
        "gateway's CPU µs",
        "peak MiB",
        "calls per 1,000 orders",
    ]);
    let of = |kind: Kind| {
        let place = subjects.iter().position(|s| *s == Subject::Loop(kind));
        place.map(|place| &*rows[place])
    };
    let loops = [of(Kind::Bare), of(Kind::Grouped)];
    for (subject, rows) in subjects.iter().zip(rows) {
        let ratios = |figure: fn(&Row) -> f64| {
            loops.map(|other| match other {
                Some(other) => format!("{:.2}", median(rows, figure) / median(other, figure)),
                None => NONE.into(),
            })
        };
        let some = |figure: fn(&Row) -> Option<f64>| match figure(&rows[0]) {
            Some(_) => format!("{:.1}", median(rows, |row| figure(row).unwrap_or_default())),
            None => NONE.into(),
        };
        let [speed_of_bare, speed_of_grouped] = ratios(|row| row.orders_per_second);
        let [cpu_of_bare, cpu_of_grouped] = ratios(|row| row.cpu_micros);
        table.add_row([
            subject.to_string(),
            format!("{:.0}", median(rows, |row| row.orders_per_second)),
            speed_of_bare,
            speed_of_grouped,
            format!("{:.1}", median(rows, |row| row.cpu_micros)),
            cpu_of_bare,
            cpu_of_grouped,
            format!("{:.1}", median(rows, |row| row.broker_micros)),
            some(|row| row.gateway_micros),
            format!("{:.0}", median(rows, |row| row.peak_mib)),
            some(|row| row.calls_per_thousand),
        ]);
    }
    format!(
        "{} orders, {} in a command, {} accounts, {} ms at the gateway; medians of {} runs; the least \
         possible are {:.1} calls per 1,000 orders\n{table}",
        shape.orders,
        shape.orders_per_command,
        shape.accounts,
        shape.latency.as_millis(),
        rows[0].len(),
        1000.0 / ORDERS_PER_CALL as f64
    )
}

/// Of an even number the upper one.
pub fn median<T>(items: &[T], figure: impl Fn(&T) -> f64) -> f64 {
    let mut figures: Vec<f64> = items.iter().map(figure).collect();
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}
