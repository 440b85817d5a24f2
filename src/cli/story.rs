//! `order` and `command`: all that is known of them.

use std::fmt;
use std::io::{self, Write as _};

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Exit, Usage};
use crate::app;
use crate::config::Config;
use crate::ledger::story;
use crate::rules::order::{AccountName, CommandId, OrderNo};
use crate::rules::story::{CommandStory, Moment, OrderStory, Standing, Told, What};

/// Which orders.
#[derive(Debug, clap::Args)]
pub struct OrderArgs {
    /// Their numbers.
    #[arg(required = true, value_name = "NO")]
    orders: Vec<String>,
    #[command(flatten)]
    shown: Shown,
}

/// Which command.
#[derive(Debug, clap::Args)]
pub struct CommandArgs {
    /// Its id: the message's message_id, else the body's command_id.
    #[arg(value_name = "ID")]
    id: String,
    #[command(flatten)]
    shown: Shown,
}

#[derive(Debug, clap::Args)]
struct Shown {
    /// Only of this account.
    #[arg(long, value_name = "ACCOUNT")]
    account: Option<String>,
    /// As JSON: one array of stories.
    #[arg(long)]
    json: bool,
}

impl Shown {
    fn account(&self) -> Result<Option<AccountName>, Usage> {
        let Some(name) = &self.account else {
            return Ok(None);
        };
        match AccountName::new(name) {
            Some(account) => Ok(Some(account)),
            None => Err(Usage(format!("{name:?} is not an account's name"))),
        }
    }
}

/// Tells of orders; fails when one of them is not known.
///
/// # Errors
/// When the ledger cannot be read.
pub async fn orders(args: OrderArgs, config: &Config) -> anyhow::Result<Exit> {
    let account = args.shown.account()?;
    let source = app::source(config);
    let mut known = Vec::new();
    let mut unknown = Vec::new();
    for text in &args.orders {
        let order_no = OrderNo::new(text).map_err(|error| Usage(format!("{text:?} {error}")))?;
        let stories = story::of_order(&source, &order_no, account.as_ref()).await?;
        if stories.is_empty() {
            unknown.push(order_no);
        }
        known.extend(stories);
    }
    show(&known, args.shown.json, order)?;
    for order_no in &unknown {
        eprintln!("wdt-cancel-worker: order {order_no} is not known to the ledger");
    }
    Ok(exit(unknown.is_empty()))
}

/// Tells of a command; fails when it is not known.
///
/// # Errors
/// When the ledger cannot be read.
pub async fn command(args: CommandArgs, config: &Config) -> anyhow::Result<Exit> {
    let account = args.shown.account()?;
    let id = CommandId::new(&args.id)
        .ok_or_else(|| Usage("a command's id has 1 to 255 bytes".to_owned()))?;
    let source = app::source(config);
    let known = story::of_command(&source, &id, account.as_ref()).await?;
    show(&known, args.shown.json, of_command)?;
    if known.is_empty() {
        eprintln!("wdt-cancel-worker: command {id} is not known to the ledger");
    }
    Ok(exit(!known.is_empty()))
}

fn exit(is_known: bool) -> Exit {
    if is_known { Exit::Done } else { Exit::Failed }
}

fn show<T: fmt::Display>(
    stories: &[T],
    as_json: bool,
    to_json: impl Fn(&T) -> Value,
) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    if as_json {
        let stories: Vec<Value> = stories.iter().map(to_json).collect();
        serde_json::to_writer_pretty(&mut out, &stories)?;
        writeln!(out)?;
        return Ok(());
    }
    for story in stories {
        write!(out, "{story}")?;
    }
    Ok(())
}

// As JSON; absent things are null.

fn order(story: &OrderStory) -> Value {
    json!({
        "account": story.account,
        "order_no": story.order_no,
        "standing": story.standing.as_ref().map(standing),
        "results": story.results.iter().map(told).collect::<Vec<_>>(),
        "moments": story.moments.iter().map(moment).collect::<Vec<_>>(),
    })
}

fn of_command(story: &CommandStory) -> Value {
    json!({
        "account": story.account,
        "command_id": story.command_id,
        "results": story.results.iter().map(told).collect::<Vec<_>>(),
        "moments": story.moments.iter().map(moment).collect::<Vec<_>>(),
    })
}

fn standing(standing: &Standing) -> Value {
    json!({
        "state": standing.state,
        "outcome": standing.outcome,
        "code": standing.code,
        "message": standing.message,
        "attempts": standing.attempts,
        "since": time(standing.since),
        "changed_at": time(standing.changed_at),
    })
}

fn told(told: &Told) -> Value {
    json!({
        "command_id": told.command_id,
        "order_no": told.order_no,
        "outcome": told.outcome,
        "code": told.code,
        "message": told.message,
        "attempts": told.attempts,
        "occurred_at": time(told.occurred_at),
        "confirmed_at": told.confirmed_at.iter().copied().map(time).collect::<Vec<_>>(),
    })
}

fn moment(moment: &Moment) -> Value {
    let at = time(moment.at);
    match &moment.what {
        What::Asked { command_id, orders } => {
            json!({ "at": at, "what": "asked", "command_id": command_id, "orders": orders })
        }
        What::Sent {
            call,
            attempt,
            orders,
        } => {
            json!({ "at": at, "what": "sent", "call": call, "attempt": attempt, "orders": orders })
        }
        What::Waits => json!({ "at": at, "what": "waits" }),
        What::Answered {
            call,
            method,
            duration_ms,
            http_status,
            status,
            message,
            said,
            words,
        } => json!({
            "at": at,
            "what": "answered",
            "call": call,
            "method": method,
            "duration_ms": duration_ms,
            "http_status": http_status,
            "status": status,
            "message": message,
            "said": said,
            "words": words,
        }),
        What::Ended {
            outcome,
            code,
            message,
            attempts,
        } => json!({
            "at": at,
            "what": "ended",
            "outcome": outcome,
            "code": code,
            "message": message,
            "attempts": attempts,
        }),
        What::Told {
            command_id,
            order_no,
            outcome,
            replayed,
        } => json!({
            "at": at,
            "what": "told",
            "command_id": command_id,
            "order_no": order_no,
            "outcome": outcome,
            "replayed": replayed,
        }),
        What::Parked { command_id } => {
            json!({ "at": at, "what": "parked", "command_id": command_id })
        }
    }
}

/// As events tell it.
fn time(at: Timestamp) -> String {
    format!("{at:.3}")
}
