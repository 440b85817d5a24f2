//! Memory, while commands pile up.

use crate::load::{Client, Shape, next};
use crate::subject::{Running, Subject};
use crate::support::broker::Broker;

/// So many are worked off; by then all that is kept in memory has been full once, the ledger's new
/// entries too.
const WORKED_OFF: usize = 400_000;
/// What the broker may take: with a million commands it takes more than a test's broker may, and
/// would stop whoever publishes.
const BROKER_MEMORY: &str = "6GB";

/// The most memory that the worker takes with so many commands waiting when it starts, in MiB.
pub async fn run(broker: &Broker, commands: usize, mut rng: fastrand::Rng) -> f64 {
    broker.allow_memory(BROKER_MEMORY).await;
    let vhost = broker.vhost().await;
    let client = Client::connect(&vhost.url()).await;
    let shape = Shape::plain(commands);
    client.fill(&shape, &mut rng).await;
    let mut events = client.events().await;
    let running = Running::start(&Subject::Worker, &vhost, &shape).await;
    for _ in 0..commands.min(WORKED_OFF) {
        next(&mut events).await;
    }
    running.peak_mib()
}
