//! Memory, while commands pile up.

use crate::load::{Client, Shape, next};
use crate::subject::{Running, Subject};
use crate::support::broker::Broker;
use crate::usage::peak_mib;

/// So many are worked off; every window in between is like the one before.
const WORKED_OFF: usize = 50_000;

/// The most memory that the worker takes with so many commands waiting when it starts, in MiB.
pub async fn run(broker: &Broker, commands: usize, mut rng: fastrand::Rng) -> f64 {
    let vhost = broker.vhost().await;
    let client = Client::connect(&vhost.url()).await;
    let shape = Shape::plain(commands);
    client.fill(&shape, &mut rng).await;
    let mut events = client.events().await;
    let running = Running::start(&Subject::Worker, &vhost, &shape).await;
    for _ in 0..commands.min(WORKED_OFF) {
        next(&mut events).await;
    }
    peak_mib(running.pid())
}
