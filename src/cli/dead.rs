//! `dead`: the dead-letter queue, by AMQP alone.

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use anyhow::bail;
use comfy_table::{Table, presets};
use serde_json::{Value, json};

use super::{Exit, Usage};
use crate::broker::dead::{DeadLetters, LOOK_MAX};
use crate::config::{BrokerConfig, Secret};
use crate::rules::dead::{Filter, Letter, Tally};
use crate::rules::order::CommandId;

/// Orders of one letter that a table names.
const ORDERS_SHOWN: usize = 3;
/// Letters shown, sent or removed at a time, unless more are asked for.
const LIMIT: u64 = 100;

/// What is to be done with dead letters.
#[derive(Debug, clap::Subcommand)]
pub enum Args {
    /// Lists the letters. They stay in the queue.
    List {
        /// Which.
        #[command(flatten)]
        which: Which,
        /// At most so many.
        #[arg(long, value_name = "N", default_value_t = LIMIT)]
        limit: u64,
        /// One line of JSON for each letter instead of a table.
        #[arg(long)]
        json: bool,
    },
    /// Shows letters whole, as JSON: properties, headers, body. They stay in the queue.
    Show {
        /// Which.
        #[command(flatten)]
        which: Which,
        /// At most so many.
        #[arg(long, value_name = "N", default_value_t = LIMIT)]
        limit: u64,
    },
    /// Sends letters back to the commands' queue, with their own headers and ids: orders that are
    /// settled are told again, the others are tried again. Safe to be done twice.
    Replay {
        /// Which.
        #[command(flatten)]
        which: Which,
        /// How far.
        #[command(flatten)]
        how: How,
        /// At most so many in a second.
        #[arg(long, value_name = "N", default_value = "10", value_parser = rate)]
        rate: f64,
    },
    /// Removes letters, each after it was written to standard output, whole, as one line of JSON.
    Drop {
        /// Which.
        #[command(flatten)]
        which: Which,
        /// How far.
        #[command(flatten)]
        how: How,
        /// Does not ask.
        #[arg(long)]
        yes: bool,
    },
}

/// Which letters are meant: those that fit all of this.
#[derive(Debug, clap::Args)]
pub struct Which {
    /// These commands.
    #[arg(value_name = "COMMAND-ID")]
    ids: Vec<String>,
    /// Dead for this reason, such as unreadable, unsettled, poison, delivery_limit. May be
    /// given several times, as all of these may.
    #[arg(long, value_name = "REASON")]
    reason: Vec<String>,
    /// Of this account.
    #[arg(long, value_name = "NAME")]
    account: Vec<String>,
    /// With this order.
    #[arg(long, value_name = "ORDER")]
    order: Vec<String>,
    /// Dead for at least so long, such as 2h.
    #[arg(long, value_name = "TIME", value_parser = super::time)]
    older_than: Option<Duration>,
    /// Dead for at most so long.
    #[arg(long, value_name = "TIME", value_parser = super::time)]
    newer_than: Option<Duration>,
}

/// How far it goes.
#[derive(Debug, clap::Args)]
pub struct How {
    /// All letters, where nothing says which.
    #[arg(long)]
    all: bool,
    /// At most so many; what is left is told.
    #[arg(long, value_name = "N", default_value_t = LIMIT)]
    limit: u64,
    /// Only tells what would be done.
    #[arg(long)]
    dry_run: bool,
}

impl Which {
    fn filter(self) -> Filter {
        Filter {
            reasons: self.reason,
            accounts: self.account,
            orders: self.order,
            command_ids: self.ids,
            older_than: self.older_than,
            newer_than: self.newer_than,
        }
    }

    /// What acts wants to be told on which.
    fn chosen(self, how: &How) -> Result<Filter, Usage> {
        let filter = self.filter();
        if filter.is_any() && !how.all {
            return Err(Usage(
                "which letters? name commands, or a --reason, --account, --order, --older-than or --newer-than, or say --all".into(),
            ));
        }
        Ok(filter)
    }
}

fn rate(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|rate| (0.01..=10_000.0).contains(rate))
        .ok_or_else(|| "a number from 0.01 to 10000 would do".into())
}

/// Does it.
///
/// # Errors
/// When the broker cannot be reached, or a queue does not do its part.
pub async fn run(args: Args, config: BrokerConfig) -> anyhow::Result<Exit> {
    let amqp = &config.amqp;
    let open = async || {
        DeadLetters::open(
            amqp.urls.iter().map(Secret::expose),
            &amqp.dead_queue,
            &amqp.queue,
            "wdt-cancel-worker dead",
        )
        .await
    };
    let mut out = std::io::stdout();
    match args {
        Args::List { which, limit, json } => {
            let dead = open().await?;
            let tally = list(&dead, &which.filter(), limit, json, &mut out).await?;
            dead.close().await;
            say(&tally, &amqp.dead_queue);
        }
        Args::Show { which, limit } => {
            let dead = open().await?;
            let filter = which.filter();
            let tally = dead
                .look(&filter, limit, |_, whole| writeln!(out, "{:#}", whole()))
                .await?;
            dead.close().await;
            say(&tally, &amqp.dead_queue);
            if tally.meant == 0 {
                return Ok(Exit::Failed);
            }
        }
        Args::Replay { which, how, rate } => {
            let filter = which.chosen(&how)?;
            let dead = open().await?;
            if how.dry_run {
                return preview(dead, &filter, &how, "would be sent", &mut out).await;
            }
            let mut tally = Tally::default();
            let pause = Duration::from_secs_f64(1.0 / rate);
            let show = |letter: &Letter| writeln!(out, "{}", name(letter));
            let replayed = dead
                .replay(&filter, how.limit, pause, &mut tally, show)
                .await;
            dead.close().await;
            eprintln!("letters sent to {}: {}", amqp.queue, tally.done);
            say(&tally, &amqp.dead_queue);
            replayed?;
        }
        Args::Drop { which, how, yes } => {
            let filter = which.chosen(&how)?;
            let dead = open().await?;
            if how.dry_run {
                return preview(dead, &filter, &how, "would be removed", &mut out).await;
            }
            let most = match yes {
                true => how.limit,
                false => confirmed(&dead, &filter, how.limit).await?,
            };
            let mut tally = Tally::default();
            let removed = dead
                .remove(&filter, most, &mut tally, |_, whole| {
                    // Line by line, so that what is removed has been written.
                    writeln!(out, "{whole}")?;
                    out.flush()
                })
                .await;
            dead.close().await;
            eprintln!("letters removed: {}", tally.done);
            say(&tally, &amqp.dead_queue);
            removed?;
        }
    }
    Ok(Exit::Done)
}

async fn list(
    dead: &DeadLetters,
    filter: &Filter,
    limit: u64,
    json: bool,
    out: &mut impl std::io::Write,
) -> anyhow::Result<Tally> {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .force_no_tty()
        .set_header(["SINCE", "COMMAND", "REASON", "ACCOUNT", "ORDERS", "REPLAYS"]);
    let tally = dead
        .look(filter, limit, |letter, _| {
            if json {
                return writeln!(out, "{}", told(&letter));
            }
            table.add_row(row(&letter));
            Ok(())
        })
        .await?;
    if !json && table.row_count() > 0 {
        for line in table.lines() {
            writeln!(out, "{}", line.trim())?;
        }
    }
    Ok(tally)
}

fn row(letter: &Letter) -> [String; 6] {
    let since = letter.dead_at.map(|at| format!("{at:.0}"));
    let more = letter.orders.len().saturating_sub(ORDERS_SHOWN);
    let first = &letter.orders[..letter.orders.len() - more];
    let mut orders = first.join(" ");
    if more > 0 {
        orders += &format!(" and {more} more");
    }
    [
        since.unwrap_or_else(|| "-".into()),
        name(letter),
        visible(&letter.reason),
        visible(&letter.account),
        visible(&orders),
        letter.replays.to_string(),
    ]
}

fn name(letter: &Letter) -> String {
    let id = letter.command_id.as_ref().map(CommandId::as_str);
    id.map_or_else(|| "-".into(), visible)
}

/// What somebody sent must not move a terminal's cursor.
fn visible(text: &str) -> String {
    let plain = |c: char| if c.is_control() { '\u{FFFD}' } else { c };
    text.chars().map(plain).collect()
}

fn told(letter: &Letter) -> Value {
    json!({
        "command_id": letter.command_id.as_ref().map(CommandId::as_str),
        "reason": letter.reason,
        "account": letter.account,
        "dead_at": letter.dead_at.map(|at| format!("{at:.0}")),
        "orders": letter.orders,
        "replays": letter.replays,
        "bytes": letter.bytes,
    })
}

async fn preview(
    dead: DeadLetters,
    filter: &Filter,
    how: &How,
    what: &str,
    out: &mut impl std::io::Write,
) -> anyhow::Result<Exit> {
    let tally = list(&dead, filter, how.limit, false, out).await?;
    dead.close().await;
    eprintln!(
        "letters that {what}: {}; nothing was",
        tally.meant.min(how.limit)
    );
    Ok(Exit::Done)
}

/// Asks at the terminal; how many letters may be removed then.
async fn confirmed(dead: &DeadLetters, filter: &Filter, limit: u64) -> anyhow::Result<u64> {
    if !std::io::stdin().is_terminal() {
        bail!(Usage(
            "nobody can be asked here; --yes removes them without asking".into()
        ));
    }
    let meant = dead.look(filter, 0, |_, _| Ok(())).await?.meant.min(limit);
    eprint!(
        "letters to be removed for good: {meant}. They are written to standard output. Remove them? [y/N] "
    );
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(meant),
        _ => bail!("nothing was removed"),
    }
}

/// How much of the queue this was, beside the letters themselves.
fn say(tally: &Tally, queue: &str) {
    eprintln!(
        "{queue}: {} in it, {} looked at, {} fit",
        tally.waiting, tally.seen, tally.meant
    );
    if tally.waiting > LOOK_MAX {
        eprintln!("only the first {LOOK_MAX} are looked at at a time");
    }
}
