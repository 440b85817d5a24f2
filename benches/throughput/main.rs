//! `cargo bench --bench throughput`: the worker beside bare loops that do the least a consumer can
//! do, on the same private broker, in one run.
//!
//! Three programs take turns on the same load: a loop as the client library's documentation shows
//! it (*bare*), the same with confirms and acknowledgements joined in groups (*grouped*, the limit),
//! and the worker as shipped, with its ledger and a gateway that answers at once. Each is a process
//! of its own, so that its CPU time and memory are its own. What is compared is their ratio in this
//! run; the machine is what it is.
//!
//! Other questions have an option each and are asked instead: docs/PERFORMANCE.md has them all.
#![allow(
    clippy::unwrap_used,
    reason = "a benchmark that cannot go on has nothing better to do than to stop"
)]

#[path = "../../tests/support/mod.rs"]
mod support;

mod backlog;
mod bare;
mod compare;
mod double;
mod fairness;
mod gateway;
mod latency;
mod ledger;
mod limit;
mod load;
mod report;
mod shared;
mod subject;
mod usage;

use std::sync::Arc;
use std::time::Duration;

use clap::Parser;

use latency::Rate;
use load::Shape;
use report::Row;
use subject::{Peer, Subject};
use support::broker::Broker;

/// The worker's throughput and latency, beside bare loops
///
/// With --calls-limit, --backlog, --ledger, --workers or --fairness that is measured instead.
#[derive(Debug, Parser)]
#[command(name = "throughput", verbatim_doc_comment)]
struct Args {
    /// Orders in a run
    #[arg(long, default_value_t = 50_000)]
    orders: usize,

    /// Orders in a command
    #[arg(long, value_name = "ORDERS", default_value_t = 1)]
    orders_per_command: usize,

    /// Accounts that the commands are spread over
    #[arg(long, default_value_t = 1)]
    accounts: usize,

    /// How long the gateway takes, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 0)]
    latency: u64,

    /// The gateway is the emulator, which checks signatures and keeps books, in place of a double
    /// that costs next to nothing
    #[arg(long)]
    emulator: bool,

    /// Runs of each; the figures are medians. 0 leaves them out
    #[arg(long, default_value_t = 3)]
    runs: usize,

    /// Commands a second while latency is measured; 0 leaves that out
    #[arg(long, value_name = "RATE", default_value_t = 500)]
    rate: u32,

    /// How long latency is measured, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 20)]
    rate_for: u64,

    /// Another program beside the worker, in place of the bare loops; can be repeated
    #[arg(long = "peer", value_name = "NAME=PROGRAM ARG…")]
    peers: Vec<Peer>,

    /// What the worker makes of 60 calls a minute, over so many minutes
    #[arg(long, value_name = "MINUTES", default_value_t = 0)]
    calls_limit: u32,

    /// Peak memory while so many commands wait in the queue
    #[arg(long, value_name = "COMMANDS", default_value_t = 0)]
    backlog: usize,

    /// Throughput, start and expiry with so many finished orders in the ledger
    #[arg(long, value_name = "ORDERS", default_value_t = 0)]
    ledger: usize,

    /// One to so many workers that share a ledger in PostgreSQL, beside one with a ledger of its own
    #[arg(long, value_name = "WORKERS", default_value_t = 0)]
    workers: usize,

    /// What accounts get beside one with so many orders waiting and two that cannot be called
    #[arg(long, value_name = "ORDERS", default_value_t = 0)]
    fairness: usize,

    /// Accounts in all while fairness is measured
    #[arg(long, value_name = "ACCOUNTS", default_value_t = 50, value_parser = clap::value_parser!(u16).range(4..))]
    fairness_accounts: u16,

    /// How long fairness is measured, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    fairness_for: u64,

    /// Makes the commands' ids repeatable
    #[arg(long)]
    seed: Option<u64>,

    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,

    #[command(subcommand)]
    inner: Option<Inner>,
}

/// What this program starts itself as.
#[derive(Debug, Clone, clap::Subcommand)]
enum Inner {
    #[command(hide = true)]
    Loop { kind: bare::Kind, url: String },
    #[command(hide = true)]
    Gateway { port: u16, latency: u64 },
}

fn main() {
    let args = Args::parse();
    // The gateway's double is to cost little, so it does without threads that wake each other.
    let mut runtime = match args.inner {
        Some(Inner::Gateway { .. }) => tokio::runtime::Builder::new_current_thread(),
        Some(Inner::Loop { .. }) | None => tokio::runtime::Builder::new_multi_thread(),
    };
    let runtime = runtime.enable_all().build().unwrap();
    runtime.block_on(async {
        match &args.inner {
            Some(Inner::Loop { kind, url }) => bare::run(*kind, url).await,
            Some(Inner::Gateway { port, latency }) => {
                double::run(*port, Duration::from_millis(*latency)).await;
            }
            None => measure(&args).await,
        }
    });
}

async fn measure(args: &Args) {
    let seed = args.seed.unwrap_or_else(|| fastrand::u64(..));
    println!(
        "seed {seed}; {} cores",
        std::thread::available_parallelism().unwrap()
    );
    let broker = Broker::start().await;
    let mut rng = fastrand::Rng::with_seed(seed);
    let rate = Rate {
        per_second: args.rate,
        time: Duration::from_secs(args.rate_for),
    };
    let mut instead = false;
    if args.calls_limit > 0 {
        instead = true;
        for subject in with_peers(args, &[]) {
            let latency = Duration::from_millis(args.latency);
            let minutes = args.calls_limit;
            let seen = limit::run(&subject, &broker, minutes, latency, rng.fork()).await;
            println!("{subject:<16} {seen}");
        }
    }
    if args.backlog > 0 {
        instead = true;
        let peak = backlog::run(&broker, args.backlog, rng.fork()).await;
        println!(
            "peak memory of the worker with {} commands waiting: {peak:.0} MiB",
            args.backlog
        );
    }
    if args.ledger > 0 {
        instead = true;
        let size = ledger::Size {
            remembered: args.ledger,
            orders: args.orders,
            runs: args.runs,
            rate,
        };
        ledger::run(&broker, size, rng.fork()).await;
    }
    if args.workers > 0 {
        instead = true;
        let size = shared::Size {
            workers: args.workers,
            orders: args.orders,
            runs: args.runs,
        };
        shared::run(&broker, size, rng.fork()).await;
    }
    if args.fairness > 0 {
        instead = true;
        let size = fairness::Size {
            accounts: args.fairness_accounts.into(),
            pile: args.fairness,
            time: Duration::from_secs(args.fairness_for),
        };
        println!("{}", fairness::run(&broker, size, rng.fork()).await);
    }
    if !instead {
        compare(args, &broker, rate, &mut rng).await;
    }
}

async fn compare(args: &Args, broker: &Broker, rate: Rate, rng: &mut fastrand::Rng) {
    let loops = [bare::Kind::Bare, bare::Kind::Grouped].map(Subject::Loop);
    let subjects = with_peers(args, &loops);
    let shape = Shape {
        orders_per_command: args.orders_per_command,
        accounts: args.accounts,
        latency: Duration::from_millis(args.latency),
        gateway: match args.emulator {
            true => gateway::Kind::Emulator {
                calls_per_minute: 0,
            },
            false => gateway::Kind::Double,
        },
        ..Shape::plain(args.orders)
    };
    let mut rows: Vec<Vec<Row>> = vec![Vec::new(); subjects.len()];
    for run in 1..=args.runs {
        for (subject, rows) in subjects.iter().zip(&mut rows) {
            let row = compare::run(subject, broker, &shape, rng.fork()).await;
            println!("run {run}: {}", report::line(subject, &row));
            rows.push(row);
        }
    }
    if args.runs > 0 {
        println!("\n{}", report::table(&subjects, &rows, &shape));
    }
    if args.rate > 0 {
        println!(
            "{} commands a second for {} s, from publish to event:",
            args.rate, args.rate_for
        );
        for subject in &subjects {
            let seen = latency::run(subject, broker, rate, rng.fork()).await;
            println!("  {subject:<16} {seen}");
        }
    }
}

/// The worker, and before it either the loops or the peers.
fn with_peers(args: &Args, loops: &[Subject]) -> Vec<Subject> {
    let peers = args.peers.iter().cloned().map(Arc::new).map(Subject::Peer);
    let others: Vec<Subject> = match args.peers.is_empty() {
        true => loops.to_vec(),
        false => peers.collect(),
    };
    others.into_iter().chain([Subject::Worker]).collect()
}
