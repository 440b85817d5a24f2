//! `run`: the worker.

use std::path::Path;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing::{info, warn};

use super::{Exit, reload};
use crate::config::Config;
use crate::rules::dry_run::Mode;
use crate::worker::Stopped;
use crate::{app, telemetry};

/// Arguments of `run`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// After SIGTERM or Ctrl-C, finish what is in flight within this time.
    #[arg(long, value_name = "TIME", default_value = "25s", value_parser = super::time)]
    drain: Duration,
    /// Cancel nothing: look each order up and tell what would become of it, to be tried beside a live
    /// worker. Commands come from `amqp.queue` with `.dry-run` behind its name, and events have routing
    /// keys that begin with `dry-run.`; the dead-letter queue and the ledger are the dry run's own.
    #[arg(long)]
    dry_run: bool,
}

/// Runs the worker until it is told to stop.
///
/// # Errors
/// When it cannot start or run.
pub async fn run(args: Args, config: Config, file: Option<&Path>) -> anyhow::Result<Exit> {
    let format = config
        .log
        .format
        .unwrap_or_else(telemetry::format_by_terminal);
    let log = telemetry::init(format)?;
    let stop = signals()?;
    let reloads = reload::on_hangup(file)?;
    let (mode, config) = if args.dry_run {
        (Mode::DryRun, config.for_dry_run()?)
    } else {
        (Mode::Live, config)
    };
    let seed = fastrand::u64(..);
    let lines = Some(log.lines());
    Ok(
        match app::run(config, mode, seed, stop, args.drain, lines, Some(reloads)).await? {
            Stopped::Drained => {
                info!("stopped: what was in flight is finished, the rest is back in the queue");
                Exit::Done
            }
            Stopped::Left { calls, commands } => {
                warn!(
                    calls,
                    commands,
                    "stopped before everything was finished; the broker gives these commands out again, and orders in a call are looked up before they are sent again"
                );
                Exit::Left
            }
        },
    )
}

/// Counts SIGTERM and Ctrl-C.
fn signals() -> std::io::Result<watch::Receiver<u32>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (count, signals) = watch::channel(0);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            count.send_modify(|count| *count += 1);
        }
    });
    Ok(signals)
}
