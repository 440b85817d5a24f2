//! Medians and ratios.

use comfy_table::{Table, presets};

use crate::load::Shape;
use crate::subject::Subject;

/// `api.max_orders_per_call` as shipped.
pub const ORDERS_PER_CALL: usize = 20;

/// One run of one subject. CPU times are a process's own, for an order.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    pub orders_per_second: f64,
    pub cpu_micros: f64,
    pub broker_micros: f64,
    /// Of a subject that calls one.
    pub gateway_micros: Option<f64>,
    /// Of a ledger that is shared.
    pub database_micros: Option<f64>,
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

/// The medians of all runs, and what they are in those of the bare loops where these ran.
pub fn table(subjects: &[Subject], rows: &[Vec<Row>], shape: &Shape) -> String {
    let loops: Vec<(&Subject, &[Row])> = subjects
        .iter()
        .zip(rows)
        .filter(|(subject, _)| matches!(subject, Subject::Loop(_)))
        .map(|(subject, rows)| (subject, &**rows))
        .collect();
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    for (subject, rows) in subjects.iter().zip(rows) {
        let ratios = |figure: fn(&Row) -> f64| {
            loops.iter().map(move |(other, of)| {
                let ratio = median(rows, figure) / median(of, figure);
                (format!("of {other}"), format!("{ratio:.2}"))
            })
        };
        let some = |figure: fn(&Row) -> Option<f64>| match figure(&rows[0]) {
            Some(_) => format!("{:.1}", median(rows, |row| figure(row).unwrap_or_default())),
            None => "–".into(),
        };
        let speed = median(rows, |row| row.orders_per_second);
        let cpu = median(rows, |row| row.cpu_micros);
        let broker = median(rows, |row| row.broker_micros);
        let peak = median(rows, |row| row.peak_mib);
        let mut columns = vec![
            (String::new(), subject.to_string()),
            ("orders/s".into(), format!("{speed:.0}")),
        ];
        columns.extend(ratios(|row| row.orders_per_second));
        columns.push(("CPU µs an order".into(), format!("{cpu:.1}")));
        columns.extend(ratios(|row| row.cpu_micros));
        columns.extend([
            ("broker's CPU µs".into(), format!("{broker:.1}")),
            ("gateway's CPU µs".into(), some(|row| row.gateway_micros)),
            ("peak MiB".into(), format!("{peak:.0}")),
            (
                "calls per 1,000 orders".into(),
                some(|row| row.calls_per_thousand),
            ),
        ]);
        let (names, figures): (Vec<String>, Vec<String>) = columns.into_iter().unzip();
        table.set_header(names);
        table.add_row(figures);
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
