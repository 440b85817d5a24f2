//! What becomes of the calls that the gateway allows in a minute.

use std::fmt;
use std::time::{Duration, Instant};

use crate::gateway::Kind;
use crate::load::{Client, Shape, next};
use crate::report::ORDERS_PER_CALL;
use crate::subject::{Running, Subject};
use crate::support::broker::Broker;

/// As integrators use it.
const CALLS_PER_MINUTE: u32 = 60;
/// So many orders the limit allows in a minute.
const ORDERS_PER_MINUTE: usize = CALLS_PER_MINUTE as usize * ORDERS_PER_CALL;
/// Before it counts: a burst may use half of the first minute's calls at once, and what follows has
/// to wait for it.
const SKIPPED: Duration = Duration::from_secs(75);

/// What was seen.
pub struct Seen {
    minutes: u32,
    orders: usize,
    calls: u64,
    too_often: u64,
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let allowed = ORDERS_PER_MINUTE * self.minutes as usize;
        write!(
            f,
            "{} orders in {} min, {:.1}% of the {allowed} that {CALLS_PER_MINUTE} calls a minute \
             allow; {:.1} calls per 1,000 orders, at least {:.1}; too often: {}",
            self.orders,
            self.minutes,
            self.orders as f64 * 100.0 / allowed as f64,
            self.calls as f64 * 1000.0 / self.orders as f64,
            1000.0 / ORDERS_PER_CALL as f64,
            self.too_often
        )
    }
}

/// Works off commands of one order, of which there are always more, for so many minutes.
pub async fn run(
    subject: &Subject,
    broker: &Broker,
    minutes: u32,
    latency: Duration,
    mut rng: fastrand::Rng,
) -> Seen {
    let vhost = broker.vhost().await;
    let client = Client::connect(&vhost.url()).await;
    let shape = Shape {
        gateway: Kind::Emulator {
            calls_per_minute: CALLS_PER_MINUTE,
        },
        latency,
        // Two minutes' more than can be done before and while it is measured.
        ..Shape::plain(ORDERS_PER_MINUTE * (minutes as usize + 4))
    };
    client.fill(&shape, &mut rng).await;
    let mut events = client.events().await;
    let running = Running::start(subject, &vhost, &shape).await;
    let gateway = running.gateway.as_ref().unwrap();

    next(&mut events).await;
    let begin = Instant::now() + SKIPPED;
    while Instant::now() < begin {
        next(&mut events).await;
    }
    let calls_before = gateway.cancels().await;
    let end = begin + Duration::from_secs(60) * minutes;
    let mut orders = 0;
    loop {
        next(&mut events).await;
        if Instant::now() >= end {
            break;
        }
        orders += 1;
    }
    Seen {
        minutes,
        orders,
        calls: gateway.cancels().await - calls_before,
        too_often: gateway.too_often(),
    }
}
