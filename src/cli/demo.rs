//! `demo`: everything at work, in minutes.

use super::Exit;
use crate::config::BrokerConfig;

/// Arguments of `demo`.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs.
///
/// # Errors
/// When the broker cannot be reached.
pub async fn run(_: Args, _: BrokerConfig) -> anyhow::Result<Exit> {
    anyhow::bail!("being written")
}
