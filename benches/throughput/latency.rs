//! From publish to event, at a steady rate.

use std::collections::HashMap;
use std::fmt;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::load::{Client, Shape, next, order_no};
use crate::subject::{Running, Subject, consumes};
use crate::support::broker::Broker;

/// Before it counts: connections and caches warm up.
const WARM_UP: Duration = Duration::from_secs(2);

/// What was seen.
pub struct Seen {
    sorted: Vec<Duration>,
}

impl Seen {
    fn quantile(&self, q: f64) -> f64 {
        let place = (self.sorted.len() as f64 * q) as usize;
        self.sorted[place.min(self.sorted.len() - 1)].as_secs_f64() * 1e3
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "p50 {:6.1} ms  p99 {:6.1} ms  max {:6.1} ms  of {} events",
            self.quantile(0.5),
            self.quantile(0.99),
            self.quantile(1.0),
            self.sorted.len()
        )
    }
}

/// Publishes `rate` commands a second, evenly, and waits for the event of each.
pub async fn run(
    subject: Subject,
    broker: &Broker,
    rate: u64,
    time: Duration,
    mut rng: fastrand::Rng,
) -> Seen {
    let vhost = broker.vhost().await;
    let client = Client::connect(&vhost.url()).await;
    let mut events = client.events().await;
    let count = usize::try_from(rate * (time + WARM_UP).as_secs()).unwrap();
    let shape = Shape::plain(count);
    let _running = Running::start(subject, &vhost, &shape);
    consumes(&vhost).await;

    let began = Instant::now();
    let publish = async {
        let mut ticks =
            tokio::time::interval(Duration::from_secs(1) / u32::try_from(rate).unwrap());
        let mut sent = HashMap::with_capacity(count);
        for n in 0..count {
            ticks.tick().await;
            let id = uuid::Uuid::from_u128(rng.u128(..)).to_string();
            sent.insert(order_no(n), Instant::now());
            drop(client.publish(&id, "default", &[order_no(n)]).await);
        }
        sent
    };
    let read = async {
        let mut told = HashMap::with_capacity(count);
        while told.len() < count {
            let event = next(&mut events).await;
            let at = Instant::now();
            let event: Value = serde_json::from_slice(&event.data).unwrap();
            told.entry(event["order_no"].as_str().unwrap().to_owned())
                .or_insert(at);
        }
        told
    };
    let (sent, told) = tokio::join!(publish, read);
    let mut sorted: Vec<Duration> = sent
        .iter()
        .filter(|(_, at)| **at - began >= WARM_UP)
        .map(|(order, at)| told[order] - *at)
        .collect();
    sorted.sort_unstable();
    Seen { sorted }
}
