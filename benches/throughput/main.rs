//! `cargo bench --bench throughput`: the worker beside bare loops that do the least a consumer can
//! do, on the same private broker, in one run.
//!
//! Three programs take turns on the same load: a loop as the client library's documentation shows
//! it (*bare*), the same with confirms and acknowledgements joined in groups (*bulk*, the limit),
//! and the worker as shipped, with its ledger and a gateway that answers at once. Each is a process
//! of its own, so that its CPU time and memory are its own. What is compared is their ratio in this
//! run; the machine is what it is.
#![allow(
    clippy::unwrap_used,
    reason = "a benchmark that cannot go on has nothing better to do than to stop"
)]

#[path = "../../tests/support/mod.rs"]
mod support;

mod bare;
mod latency;
mod load;
mod report;
mod subject;

use std::time::Duration;

use clap::Parser;

use load::Shape;
use report::Row;
use subject::Subject;
use support::broker::Broker;

/// The worker's throughput and latency, beside bare loops
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

    /// Runs of each; the figures are medians
    #[arg(long, default_value_t = 3)]
    runs: usize,

    /// Commands a second while latency is measured; 0 leaves that out
    #[arg(long, value_name = "RATE", default_value_t = 500)]
    rate: u64,

    /// How long latency is measured, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 20)]
    rate_for: u64,

    /// Commands that wait in the queue while peak memory is measured; 0 leaves that out
    #[arg(long, value_name = "COMMANDS", default_value_t = 0)]
    backlog: usize,

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
}

fn main() {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        match &args.inner {
            Some(Inner::Loop { kind, url }) => bare::run(*kind, url).await,
            None => compare(&args).await,
        }
    });
}

async fn compare(args: &Args) {
    let seed = args.seed.unwrap_or_else(|| fastrand::u64(..));
    println!(
        "seed {seed}; {} cores",
        std::thread::available_parallelism().unwrap()
    );
    let broker = Broker::start().await;
    let shape = Shape {
        orders: args.orders,
        orders_per_command: args.orders_per_command,
        accounts: args.accounts,
        latency: Duration::from_millis(args.latency),
    };
    let mut rng = fastrand::Rng::with_seed(seed);
    let subjects = [
        Subject::Loop(bare::Kind::Bare),
        Subject::Loop(bare::Kind::Bulk),
        Subject::Worker,
    ];
    let mut rows: Vec<Vec<Row>> = vec![Vec::new(); subjects.len()];
    for run in 1..=args.runs {
        for (subject, rows) in subjects.iter().zip(&mut rows) {
            let row = subject::run(*subject, &broker, &shape, rng.fork()).await;
            println!("run {run}: {}", report::line(*subject, &row));
            rows.push(row);
        }
    }
    println!("\n{}", report::table(&subjects, &rows, &shape));

    if args.rate > 0 {
        println!(
            "{} commands a second for {} s, from publish to event:",
            args.rate, args.rate_for
        );
        for subject in subjects {
            let time = Duration::from_secs(args.rate_for);
            let seen = latency::run(subject, &broker, args.rate, time, rng.fork()).await;
            println!("  {:<8} {seen}", subject.name());
        }
    }
    if args.backlog > 0 {
        let peak = subject::backlog(&broker, args.backlog, rng.fork()).await;
        println!(
            "peak memory of the worker with {} commands waiting: {:.0} MiB",
            args.backlog,
            peak as f64 / 1024.0
        );
    }
}
