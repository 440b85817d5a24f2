//! What is measured: a process, from its start until every event has come.

use std::collections::HashSet;
use std::path::Path;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use serde_json::Value;

use crate::bare::Kind;
use crate::load::{Client, Shape, next};
use crate::report::Row;
use crate::support::broker::{Broker, Vhost};
use crate::support::eventually::eventually;
use crate::support::gateway::Account;
use crate::support::process::{PATH, Process, free_port, fresh_dir};
use crate::support::worker::{Setup, Worker};

const BINARY: &str = env!("CARGO_BIN_EXE_wdt-cancel-worker");
const START_LIMIT: Duration = Duration::from_secs(30);
/// `_SC_CLK_TCK` of every Linux that this runs on.
const TICKS_PER_SECOND: f64 = 100.0;

/// Who works off the load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// A loop of this program.
    Loop(Kind),
    /// The worker as shipped.
    Worker,
}

impl Subject {
    /// For the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Loop(Kind::Bare) => "bare",
            Self::Loop(Kind::Bulk) => "bulk",
            Self::Worker => "worker",
        }
    }
}

/// A subject at work, and what it needs.
pub enum Running {
    Loop(Process),
    Worker {
        worker: Worker,
        /// Lives as long.
        _gateway: Process,
    },
}

impl Running {
    pub fn start(subject: Subject, vhost: &Vhost, shape: &Shape) -> Self {
        match subject {
            Subject::Loop(kind) => Self::Loop(start_loop(kind, &vhost.url())),
            Subject::Worker => {
                let (gateway, port) = start_gateway(shape);
                Self::Worker {
                    worker: setup(vhost, port, shape).start(),
                    _gateway: gateway,
                }
            }
        }
    }

    fn pid(&self) -> i32 {
        match self {
            Self::Loop(process) => process.pid(),
            Self::Worker { worker, .. } => worker.pid(),
        }
    }

    async fn api_calls(&self) -> Option<f64> {
        match self {
            Self::Loop(_) => None,
            Self::Worker { worker, .. } => {
                let (_, text) = worker.get("/metrics").await?;
                let calls = text.lines().filter(|line| {
                    line.starts_with("wdt_calls_total{") && line.contains("method=\"cancel\"")
                });
                Some(
                    calls
                        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
                        .sum(),
                )
            }
        }
    }
}

/// Fills the queue, starts the subject, and waits until each order was told once.
pub async fn run(subject: Subject, broker: &Broker, shape: &Shape, mut rng: fastrand::Rng) -> Row {
    let vhost = broker.vhost().await;
    let client = Client::connect(&vhost.url()).await;
    client.fill(shape, &mut rng).await;
    let mut events = client.events().await;
    let broker_before = cpu_seconds(broker.pid());
    let running = Running::start(subject, &vhost, shape);

    let mut told = HashSet::with_capacity(shape.orders);
    told.insert(order_of(&next(&mut events).await.data));
    // From the first event on: starting a process is not what is measured here.
    let (began, cpu_at_first) = (Instant::now(), cpu_seconds(running.pid()));
    while told.len() < shape.orders {
        told.insert(order_of(&next(&mut events).await.data));
        while let Some(Some(Ok(event))) = futures_util::StreamExt::next(&mut events).now_or_never()
        {
            told.insert(order_of(&event.data));
        }
    }
    let time = began.elapsed();
    vhost
        .queue_holds(START_LIMIT, crate::support::amqp::COMMANDS, 0, 0)
        .await;
    let orders = shape.orders as f64;
    Row {
        orders_per_second: orders / time.as_secs_f64(),
        cpu_micros: (cpu_seconds(running.pid()) - cpu_at_first) * 1e6 / orders,
        broker_micros: (cpu_seconds(broker.pid()) - broker_before) * 1e6 / orders,
        peak_kib: peak_kib(running.pid()),
        calls_per_thousand: running
            .api_calls()
            .await
            .map(|calls| calls * 1000.0 / orders),
    }
}

/// The peak memory of the worker with so many commands waiting, of which it works off a part.
pub async fn backlog(broker: &Broker, commands: usize, mut rng: fastrand::Rng) -> u64 {
    let vhost = broker.vhost().await;
    let client = Client::connect(&vhost.url()).await;
    let shape = Shape::plain(commands);
    client.fill(&shape, &mut rng).await;
    let mut events = client.events().await;
    let running = Running::start(Subject::Worker, &vhost, &shape);
    for _ in 0..commands / 10 {
        next(&mut events).await;
    }
    peak_kib(running.pid())
}

fn order_of(event: &[u8]) -> String {
    let event: Value = serde_json::from_slice(event).unwrap();
    assert_eq!(event["outcome"], "cancelled", "{event}");
    event["order_no"].as_str().unwrap().to_owned()
}

fn start_loop(kind: Kind, url: &str) -> Process {
    let program = std::env::current_exe().unwrap();
    let kind = match kind {
        Kind::Bare => "bare",
        Kind::Bulk => "bulk",
    };
    let log = fresh_dir("loop").join("log");
    let env = [("PATH".to_owned(), PATH.to_owned())];
    Process::start(kind, program, &["loop", kind, url], &env, &log)
}

fn setup(vhost: &Vhost, gateway_port: u16, shape: &Shape) -> Setup {
    let gateway = format!("http://127.0.0.1:{gateway_port}/openapi");
    let accounts = 1..shape.accounts;
    accounts.fold(
        Setup::new(&vhost.url(), &gateway)
            .set("WDT_API__CALLS_PER_MINUTE", 0)
            .account("default", &Account::named("default")),
        |setup, n| {
            let name = Shape::account(n);
            setup.account(&name, &Account::named(&name))
        },
    )
}

/// The emulator in a process of its own.
fn start_gateway(shape: &Shape) -> (Process, u16) {
    let port = free_port();
    let listen = format!("127.0.0.1:{port}");
    let latency = format!("{}ms", shape.latency.as_millis());
    let first = Account::named("default");
    let mut args: Vec<String> = [
        "sandbox",
        "--listen",
        &listen,
        "--latency",
        &latency,
        "--calls-per-minute",
        "0",
        "--sid",
        &first.sid,
        "--key",
        &first.key,
        "--secret",
        &first.app_secret(),
    ]
    .map(Into::into)
    .into();
    for n in 1..shape.accounts {
        let account = Account::named(&Shape::account(n));
        args.push("--account".into());
        args.push(format!(
            "{},{},{}",
            account.sid,
            account.key,
            account.app_secret()
        ));
    }
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let env = [("PATH".to_owned(), PATH.to_owned())];
    let process = Process::start("sandbox", BINARY, &args, &env, Path::new("/dev/null"));
    (process, port)
}

/// User and system time of a process so far.
fn cpu_seconds(pid: i32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // The name may hold anything; what follows its last parenthesis are numbers.
    let (_, rest) = stat.rsplit_once(") ").unwrap();
    let fields: Vec<&str> = rest.split(' ').collect();
    let ticks: f64 = fields[11..13]
        .iter()
        .map(|t| t.parse::<f64>().unwrap())
        .sum();
    ticks / TICKS_PER_SECOND
}

/// The most memory that a process has held so far.
fn peak_kib(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let word = line.and_then(|line| line.split_whitespace().next());
    word.unwrap().parse().unwrap()
}

/// Waits until a subject consumes.
pub async fn consumes(vhost: &Vhost) {
    eventually(START_LIMIT, "somebody consumes", async || {
        (!vhost.consumers().await.is_empty()).then_some(())
    })
    .await;
}
