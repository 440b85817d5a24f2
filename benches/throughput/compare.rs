//! The same load for each subject in turn: how fast, and what it takes.

use std::time::{Duration, Instant};

use futures_util::{FutureExt as _, StreamExt as _};

use crate::load::{Client, Shape, Told, next};
use crate::report::Row;
use crate::subject::{Running, Subject, consume};
use crate::support::amqp::COMMANDS;
use crate::support::broker::Broker;
use crate::usage::{cpu_seconds, cpu_seconds_of_all};

/// From the last event to the last acknowledgement.
const END_LIMIT: Duration = Duration::from_secs(30);

/// Fills the queue, starts the subject, and waits until each order was told.
pub async fn run(subject: &Subject, broker: &Broker, shape: &Shape, mut rng: fastrand::Rng) -> Row {
    let vhost = broker.vhost().await;
    let client = Client::connect(&vhost.url()).await;
    client.fill(shape, &mut rng).await;
    let mut events = client.events().await;
    let running = Running::start(subject, &vhost, shape).await;
    let gateway = running.gateway.as_ref();
    let cpu = || {
        let gateway = gateway.map_or(0.0, |gateway| cpu_seconds(gateway.pid()));
        [
            running.cpu_seconds(),
            cpu_seconds(broker.pid()),
            gateway,
            shape.database.map_or(0.0, cpu_seconds_of_all),
        ]
    };

    let mut told = vec![false; shape.orders];
    let mut missing = shape.orders;
    let mut note = |event: &[u8]| {
        let is_told = &mut told[Told::read(event).cancelled() - shape.first];
        missing -= usize::from(!*is_told);
        *is_told = true;
        missing
    };
    // From the first event on, and when all are at work: starting a process is not what is measured.
    let mut left = note(&next(&mut events).await.data);
    if shape.workers > 1 {
        consume(&vhost, shape.workers).await;
        while let Some(Some(event)) = events.next().now_or_never() {
            left = note(&event.unwrap().data);
        }
    }
    let orders = left as f64;
    let (began, cpu_before) = (Instant::now(), cpu());
    while left > 0 {
        left = note(&next(&mut events).await.data);
    }
    let time = began.elapsed();
    vhost.queue_holds(END_LIMIT, COMMANDS, 0, 0).await;

    let cpu_after = cpu();
    let micros = |n: usize| (cpu_after[n] - cpu_before[n]) * 1e6 / orders;
    Row {
        orders_per_second: orders / time.as_secs_f64(),
        cpu_micros: micros(0),
        broker_micros: micros(1),
        gateway_micros: gateway.map(|_| micros(2)),
        database_micros: shape.database.map(|_| micros(3)),
        peak_mib: running.peak_mib(),
        calls_per_thousand: match gateway {
            Some(gateway) => Some(gateway.cancels().await as f64 * 1000.0 / shape.orders as f64),
            None => None,
        },
    }
}
