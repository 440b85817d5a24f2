//! Many accounts, three of which make trouble: what the others get, beside what they get alone.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::time::{Instant, timeout_at};

use crate::gateway::{Gateway, Kind};
use crate::load::{Client, Shape, Told, order_no};
use crate::report::median;
use crate::subject::{consumes, settings};
use crate::support::broker::Broker;
use crate::support::gateway::Account;
use crate::support::process::free_port;

/// Of each account; its own full rate is the product. All together are an easy load for two cores.
const CALLS_PER_MINUTE: u32 = 60;
const ORDERS_PER_CALL: u32 = 10;
const ORDERS_PER_SECOND: u32 = CALLS_PER_MINUTE * ORDERS_PER_CALL / 60;
/// Before it counts: a burst may use half of the first minute's calls at once.
const SKIPPED: Duration = Duration::from_secs(30);
/// What an account is to keep of what it gets alone.
const KEPT: f64 = 0.95;
/// Nobody answers there.
const DEAD: &str = "dead";
/// The gateway does not know it.
const WRONG: &str = "wrong";

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// In all, the three with trouble included.
    pub accounts: usize,
    /// Orders of one account that wait when the worker starts.
    pub pile: usize,
    pub time: Duration,
}

/// What was seen, by account: orders told alone, and beside the others.
pub struct Seen {
    size: Size,
    shares: Vec<(usize, usize)>,
    pile: usize,
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = self.size.time.as_secs_f64();
        let ratio = |&(alone, beside): &(usize, usize)| beside as f64 / alone as f64;
        let least = |figure: &dyn Fn(&(usize, usize)) -> f64| {
            self.shares.iter().map(figure).fold(f64::INFINITY, f64::min)
        };
        let kept = self.shares.iter().filter(|share| ratio(share) >= KEPT);
        write!(
            f,
            "{} accounts, each sent {ORDERS_PER_SECOND} orders a second, which is what its calls \
             allow, for {time:.0} s; orders/s, median and least:\n  \
             alone {:.2} and {:.2}\n  \
             beside one with {} orders waiting, one whose gateway is dead and one with wrong \
             credentials {:.2} and {:.2}\n  \
             of what each gets alone: median {:.2}, least {:.2}; {} of {} keep {KEPT}\n  \
             the one with orders waiting {:.2}",
            self.shares.len(),
            median(&self.shares, |share| share.0 as f64 / time),
            least(&|share| share.0 as f64 / time),
            self.size.pile,
            median(&self.shares, |share| share.1 as f64 / time),
            least(&|share| share.1 as f64 / time),
            median(&self.shares, ratio),
            least(&ratio),
            kept.count(),
            self.shares.len(),
            self.pile as f64 / time
        )
    }
}

/// The same accounts twice, without trouble and with it.
pub async fn run(broker: &Broker, size: Size, mut rng: fastrand::Rng) -> Seen {
    let alone = told(broker, size, false, rng.fork()).await;
    let beside = told(broker, size, true, rng.fork()).await;
    let count = |told: &HashMap<String, usize>, n| {
        let told = told.get(&Shape::account(n));
        told.copied().unwrap_or_default()
    };
    Seen {
        size,
        shares: (1..shape(size).accounts)
            .map(|n| (count(&alone, n), count(&beside, n)))
            .collect(),
        pile: count(&beside, 0),
    }
}

/// Events by account.
async fn told(
    broker: &Broker,
    size: Size,
    with_trouble: bool,
    mut rng: fastrand::Rng,
) -> HashMap<String, usize> {
    let vhost = broker.vhost().await;
    let client = Client::connect(&vhost.url()).await;
    let shape = shape(size);
    let known: Vec<Account> = shape.accounts().map(|name| Account::named(&name)).collect();
    let gateway = Gateway::start(shape.gateway, shape.latency, &known).await;
    let setup = [DEAD, WRONG]
        .into_iter()
        .fold(settings(&vhost, &gateway, &shape), |setup, name| {
            setup.account(name, &Account::named(name))
        });
    let nobody = format!("http://127.0.0.1:{}/openapi", free_port());
    let setup = setup.set("WDT_ACCOUNTS__DEAD__URL", nobody);
    if with_trouble {
        let pile = Shape {
            accounts: 1,
            ..shape.clone()
        };
        client.fill(&pile, &mut rng).await;
    }
    let mut events = client.events().await;
    let _worker = setup.start();
    consumes(&vhost).await;

    let mut names: Vec<String> = shape.accounts().skip(1).collect();
    if with_trouble {
        names.extend([DEAD, WRONG].map(Into::into));
    }
    let begin = Instant::now() + SKIPPED;
    let end = begin + size.time;
    let publish = async {
        let per_second = ORDERS_PER_SECOND * u32::try_from(names.len()).unwrap();
        let mut ticks = tokio::time::interval(Duration::from_secs(1) / per_second);
        for n in 0.. {
            if ticks.tick().await >= end {
                break;
            }
            let id = uuid::Uuid::from_u128(rng.u128(..)).to_string();
            let account = &names[n % names.len()];
            drop(
                client
                    .publish(&id, account, &[order_no(size.pile + n)])
                    .await,
            );
        }
    };
    let read = async {
        let mut told = HashMap::new();
        while let Ok(event) = timeout_at(end, events.next()).await {
            let event = event.unwrap().unwrap();
            if Instant::now() >= begin {
                let account = Told::read(&event.data).account.to_owned();
                *told.entry(account).or_default() += 1;
            }
        }
        told
    };
    tokio::join!(publish, read).1
}

/// The accounts without trouble, and first the one with the pile.
fn shape(size: Size) -> Shape {
    Shape {
        accounts: size.accounts - 2,
        gateway: Kind::Emulator {
            calls_per_minute: CALLS_PER_MINUTE,
        },
        settings: vec![(
            "WDT_API__MAX_ORDERS_PER_CALL".into(),
            ORDERS_PER_CALL.to_string(),
        )],
        ..Shape::plain(size.pile)
    }
}
