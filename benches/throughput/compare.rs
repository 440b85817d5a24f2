//! The same load for each subject in turn: how fast, and what it takes.

use std::time::{Duration, Instant};

use crate::load::{Client, Shape, Told, next};
use crate::report::Row;
use crate::subject::{Running, Subject};
use crate::support::amqp::COMMANDS;
use crate::support::broker::Broker;
use crate::usage::{cpu_seconds, peak_mib};

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
            cpu_seconds(running.pid()),
            cpu_seconds(broker.pid()),
            gateway,
        ]
    };

    // From the first event on: starting a process is not what is measured here.
    let first = next(&mut events).await;
    let (began, cpu_before) = (Instant::now(), cpu());
    let mut told = vec![false; shape.orders];
    told[Told::read(&first.data).cancelled() - shape.first] = true;
    let mut missing = shape.orders - 1;
    while missing > 0 {
        let event = next(&mut events).await;
        let is_told = &mut told[Told::read(&event.data).cancelled() - shape.first];
        missing -= usize::from(!*is_told);
        *is_told = true;
    }
    let time = began.elapsed();
    vhost.queue_holds(END_LIMIT, COMMANDS, 0, 0).await;

    let orders = shape.orders as f64;
    let cpu_after = cpu();
    let micros = |n: usize| (cpu_after[n] - cpu_before[n]) * 1e6 / orders;
    Row {
        orders_per_second: orders / time.as_secs_f64(),
        cpu_micros: micros(0),
        broker_micros: micros(1),
        gateway_micros: gateway.map(|_| micros(2)),
        peak_mib: peak_mib(running.pid()),
        calls_per_thousand: match gateway {
            Some(gateway) => Some(gateway.cancels().await as f64 * 1000.0 / orders),
            None => None,
        },
    }
}
