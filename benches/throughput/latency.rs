//! From publish to event, at a steady rate.

use std::fmt;
use std::time::{Duration, Instant};

use lapin::Consumer;

use crate::load::{Client, Shape, Told, next, order_no};
use crate::subject::{Running, Subject, consumes};
use crate::support::broker::Broker;

/// Before it counts: connections and caches warm up.
const WARM_UP: Duration = Duration::from_secs(2);

/// How often commands come, and for how long.
#[derive(Debug, Clone, Copy)]
pub struct Rate {
    pub per_second: u32,
    pub time: Duration,
}

impl Rate {
    /// Commands in all, the first of which do not count.
    pub fn commands(self) -> usize {
        self.per_second as usize * (self.time + WARM_UP).as_secs() as usize
    }
}

/// What was seen.
pub struct Seen {
    sorted: Vec<Duration>,
    longest_pause: Duration,
}

impl Seen {
    fn quantile(&self, q: f64) -> f64 {
        let place = (self.sorted.len() as f64 * q) as usize;
        millis(self.sorted[place.min(self.sorted.len() - 1)])
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "p50 {:6.1} ms  p99 {:6.1} ms  max {:6.1} ms  of {} events; longest pause {:.1} ms",
            self.quantile(0.5),
            self.quantile(0.99),
            self.quantile(1.0),
            self.sorted.len(),
            millis(self.longest_pause)
        )
    }
}

/// Starts a subject, and sends it commands.
pub async fn run(subject: &Subject, broker: &Broker, rate: Rate, rng: fastrand::Rng) -> Seen {
    let vhost = broker.vhost().await;
    let client = Client::connect(&vhost.url()).await;
    let mut events = client.events().await;
    let shape = Shape::plain(rate.commands());
    let _running = Running::start(subject, &vhost, &shape).await;
    consumes(&vhost).await;
    watch(&client, &mut events, rate, shape.first, rng).await
}

/// Publishes commands of one order evenly, the first of them for the order with this number, and
/// waits for the event of each.
pub async fn watch(
    client: &Client,
    events: &mut Consumer,
    rate: Rate,
    first: usize,
    mut rng: fastrand::Rng,
) -> Seen {
    let count = rate.commands();
    let began = Instant::now();
    let publish = async {
        let mut ticks = tokio::time::interval(Duration::from_secs(1) / rate.per_second);
        let mut sent = Vec::with_capacity(count);
        for n in first..first + count {
            ticks.tick().await;
            let id = uuid::Uuid::from_u128(rng.u128(..)).to_string();
            sent.push(Instant::now());
            drop(
                client
                    .publish(&id, &Shape::account(0), &[order_no(n)])
                    .await,
            );
        }
        sent
    };
    let read = async {
        let mut told = vec![None; count];
        let mut missing = count;
        let mut last = None;
        let mut longest_pause = Duration::ZERO;
        while missing > 0 {
            let event = next(events).await;
            let now = Instant::now();
            let told = &mut told[Told::read(&event.data).cancelled() - first];
            missing -= usize::from(told.is_none());
            told.get_or_insert(now);
            if now - began >= WARM_UP {
                longest_pause = longest_pause.max(now - last.unwrap_or(now));
                last = Some(now);
            }
        }
        (told, longest_pause)
    };
    let (sent, (told, longest_pause)) = tokio::join!(publish, read);
    let mut sorted: Vec<Duration> = sent
        .into_iter()
        .zip(told)
        .filter(|(sent, _)| *sent - began >= WARM_UP)
        .filter_map(|(sent, told)| Some(told? - sent))
        .collect();
    sorted.sort_unstable();
    Seen {
        sorted,
        longest_pause,
    }
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
