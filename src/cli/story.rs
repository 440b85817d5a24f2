//! `order` and `command`: all that is known of them.

use std::io::{self, Write as _};

use serde::Serialize;

use super::{Exit, Usage};
use crate::config::Config;
use crate::ledger::story::{self, Source};
use crate::rules::order::{AccountName, CommandId, OrderNo};

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
    let source = Source::of(&config.ledger.url);
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
    show(&known, args.shown.json, |story, out| story.write(out))?;
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
    let source = Source::of(&config.ledger.url);
    let known = story::of_command(&source, &id, account.as_ref()).await?;
    show(&known, args.shown.json, |story, out| story.write(out))?;
    if known.is_empty() {
        eprintln!("wdt-cancel-worker: command {id} is not known to the ledger");
    }
    Ok(exit(!known.is_empty()))
}

fn exit(is_known: bool) -> Exit {
    if is_known { Exit::Done } else { Exit::Failed }
}

fn show<T: Serialize>(
    stories: &[T],
    as_json: bool,
    tell: impl Fn(&T, &mut io::StdoutLock<'static>) -> io::Result<()>,
) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    if as_json {
        serde_json::to_writer_pretty(&mut out, stories)?;
        writeln!(out)?;
        return Ok(());
    }
    for story in stories {
        tell(story, &mut out)?;
    }
    Ok(())
}
