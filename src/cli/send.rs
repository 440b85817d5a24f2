//! `send`: one command, and its results.

use std::collections::BTreeMap;
use std::io::{IsTerminal as _, Read as _, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use comfy_table::{Table, presets};
use futures_util::StreamExt as _;
use indicatif::{ProgressBar, ProgressStyle};
use jiff::Timestamp;
use lapin::options::{
    BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Confirmation, Consumer};
use serde::Deserialize;
use uuid::Uuid;

use super::{Exit, Usage};
use crate::broker::link;
use crate::config::{Amqp, BrokerConfig, Secret};
use crate::rules::admit::ORDERS_MAX;

/// Arguments of `send`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit status: 0 all orders are cancelled; 1 not all are, or the results did not come in time."
)]
pub struct Args {
    /// Order numbers.
    #[arg(value_name = "ORDER", required_unless_present = "file")]
    orders: Vec<String>,
    /// A file with one order number in a line; - is standard input.
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Whose orders these are.
    #[arg(long, value_name = "NAME")]
    account: Option<String>,
    /// After this no call is made, such as 2026-11-24T08:00:00+08:00.
    #[arg(long, value_name = "TIME")]
    deadline: Option<Timestamp>,
    /// The command's id; the same id sent again is told the same again. Without it a new one is
    /// made.
    #[arg(long, value_name = "ID")]
    command_id: Option<String>,
    /// Waits for the results at most this long.
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = super::time)]
    wait: Duration,
    /// Writes each event as one line of JSON instead of a table.
    #[arg(long)]
    json: bool,
}

/// What is shown of an event.
#[derive(Debug, Clone, Deserialize)]
pub struct Seen {
    /// The command.
    pub command_id: String,
    /// The order.
    pub order_no: Option<String>,
    /// How it ended.
    pub outcome: String,
    /// Why.
    pub reason: Option<SeenReason>,
    /// Cancel calls that carried it.
    pub attempts: u32,
    /// Told before.
    pub replayed: bool,
    /// Its place.
    pub index: usize,
    /// How many there are.
    pub total: usize,
}

impl Seen {
    /// The reason for people; nothing where there is none.
    pub fn reason_words(&self) -> String {
        self.reason
            .as_ref()
            .map(|reason| format!("{}: {}", reason.code, reason.message))
            .unwrap_or_default()
    }
}

/// The reason in an event.
#[derive(Debug, Clone, Deserialize)]
pub struct SeenReason {
    /// For programs.
    pub code: String,
    /// For people.
    pub message: String,
}

/// Sends, shows, and says by its exit status whether all orders are cancelled.
///
/// # Errors
/// When the broker cannot be reached, or the commands' queue does not exist.
pub async fn run(args: Args, config: BrokerConfig) -> anyhow::Result<Exit> {
    let orders = orders(&args)?;
    let mut command = serde_json::json!({ "order_no_list": orders });
    if let Some(account) = &args.account {
        command["account"] = account.as_str().into();
    }
    if let Some(deadline) = args.deadline {
        command["deadline"] = deadline.to_string().into();
    }
    let connection = link::connect_any(
        config.amqp.urls.iter().map(Secret::expose),
        "wdt-cancel-worker send",
    )
    .await?;
    let channel = connection.create_channel().await?;
    channel
        .confirm_select(ConfirmSelectOptions::default())
        .await?;
    let (reply_to, events) = reply_queue(&channel).await?;
    let id = args
        .command_id
        .clone()
        .unwrap_or_else(|| Uuid::new_v4().to_string());
    let properties = BasicProperties::default()
        .with_message_id(id.as_str().into())
        .with_reply_to(reply_to.as_str().into());
    publish(
        &channel,
        &config.amqp,
        &serde_json::to_vec(&command)?,
        properties,
    )
    .await?;

    let mut out = std::io::stdout().lock();
    if !args.json {
        writeln!(out, "command {id} is sent; orders: {}", orders.len())?;
    }
    let mut seen = BTreeMap::new();
    let collected = tokio::time::timeout(
        args.wait,
        collect(events, orders.len(), args.json, &mut seen, &mut out),
    )
    .await;
    drop(connection.close(200, "done".into()).await);
    // Also when others are missing: who sent the command wants to know of each.
    if !args.json && !seen.is_empty() {
        show(&seen, &mut out)?;
    }
    let Ok(collected) = collected else {
        bail!(
            "not all results came within {:?}; is a worker running? The command {id} stays in the queue or in its hands",
            args.wait
        );
    };
    collected?;
    let all_cancelled = seen.values().all(|event| event.outcome == "cancelled");
    Ok(if all_cancelled {
        Exit::Done
    } else {
        Exit::Failed
    })
}

fn orders(args: &Args) -> anyhow::Result<Vec<String>> {
    let mut orders = args.orders.clone();
    if let Some(file) = &args.file {
        let mut text = String::new();
        if file.as_os_str() == "-" {
            std::io::stdin().read_to_string(&mut text)?;
        } else {
            text = std::fs::read_to_string(file)
                .with_context(|| format!("--file: {} cannot be read", file.display()))?;
        }
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        orders.extend(lines.map(str::to_owned));
    }
    if orders.is_empty() {
        bail!(Usage(
            "no order numbers: name some, or a --file that has some".into()
        ));
    }
    if orders.len() > ORDERS_MAX {
        let found = orders.len();
        bail!(Usage(format!(
            "{found} orders; a command holds at most {ORDERS_MAX}: send them in several"
        )));
    }
    Ok(orders)
}

/// A queue of our own, gone with the connection.
///
/// # Errors
/// When the broker refuses.
pub async fn reply_queue(channel: &Channel) -> lapin::Result<(String, Consumer)> {
    let own = QueueDeclareOptions {
        exclusive: true,
        auto_delete: true,
        ..QueueDeclareOptions::default()
    };
    let queue = channel
        .queue_declare("".into(), own, FieldTable::default())
        .await?;
    let name = queue.name().as_str().to_owned();
    let no_ack = BasicConsumeOptions {
        no_ack: true,
        ..BasicConsumeOptions::default()
    };
    let events = channel
        .basic_consume(
            name.as_str().into(),
            "".into(),
            no_ack,
            FieldTable::default(),
        )
        .await?;
    Ok((name, events))
}

/// Publishes a command and awaits the broker's word that it is in the queue.
///
/// # Errors
/// When it is not.
pub async fn publish(
    channel: &Channel,
    amqp: &Amqp,
    body: &[u8],
    properties: BasicProperties,
) -> anyhow::Result<()> {
    let mandatory = BasicPublishOptions {
        mandatory: true,
        ..BasicPublishOptions::default()
    };
    let properties = properties
        .with_content_type("application/json".into())
        .with_delivery_mode(2);
    let queue = amqp.queue.as_str();
    let confirm = channel
        .basic_publish("".into(), queue.into(), mandatory, body, properties)
        .await?;
    match confirm.await? {
        Confirmation::Ack(None) => Ok(()),
        Confirmation::Ack(Some(_)) => bail!(
            "the queue {queue} does not exist; start a worker, which declares it, or check amqp.queue"
        ),
        Confirmation::Nack(_) | Confirmation::NotRequested => {
            bail!("the broker did not take the command; the queue {queue} may be full")
        }
    }
}

async fn collect(
    mut events: Consumer,
    expected: usize,
    json: bool,
    seen: &mut BTreeMap<usize, Seen>,
    out: &mut impl std::io::Write,
) -> anyhow::Result<()> {
    let bar = progress_bar(expected, json);
    while let Some(delivery) = events.next().await {
        let delivery = delivery?;
        let event: Seen =
            serde_json::from_slice(&delivery.data).context("an event that cannot be read")?;
        let total = event.total;
        // A redelivered command tells again what it told; the last word counts.
        seen.insert(event.index, event);
        if json {
            out.write_all(&delivery.data)?;
            writeln!(out)?;
        }
        bar.set_length(total as u64);
        bar.set_position(seen.len() as u64);
        if seen.len() >= total {
            bar.finish_and_clear();
            return Ok(());
        }
    }
    bail!("the broker closed the reply queue")
}

fn progress_bar(expected: usize, json: bool) -> ProgressBar {
    if json || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(expected as u64);
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} orders, {elapsed}") {
        bar.set_style(style);
    }
    bar
}

fn show(seen: &BTreeMap<usize, Seen>, out: &mut impl std::io::Write) -> std::io::Result<()> {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .force_no_tty()
        .set_header(["ORDER", "OUTCOME", "CALLS", "REASON"]);
    for event in seen.values() {
        table.add_row([
            event.order_no.clone().unwrap_or_else(|| "-".into()),
            event.outcome.clone() + if event.replayed { " (told before)" } else { "" },
            event.attempts.to_string(),
            event.reason_words(),
        ]);
    }
    for line in table.lines() {
        writeln!(out, "{}", line.trim())?;
    }
    let cancelled = seen
        .values()
        .filter(|event| event.outcome == "cancelled")
        .count();
    let told = seen.values().map(|event| event.total).max().unwrap_or(0);
    writeln!(out, "{cancelled} of {told} cancelled")
}
