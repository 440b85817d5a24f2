//! `demo`: everything at work, against an emulated gateway and under queue names of its own.
//!
//! Every order has an outcome that must come about, so the demo is also a check: it fails when one
//! ends otherwise.

use std::collections::HashMap;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use comfy_table::{Table, presets};
use futures_util::StreamExt as _;
use lapin::options::{
    ExchangeDeleteOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, Consumer};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::Exit;
use super::send::{self, Seen};
use crate::app;
use crate::broker::link;
use crate::config::{Amqp, BrokerConfig, Config, LogFormat, Secret};
use crate::gateway::sandbox::{Account, Options, Running, Sandbox};
use crate::gateway::sign::AppSecret;
use crate::rules::dry_run::Mode;
use crate::telemetry;
use crate::worker::Stopped;

/// The demo's gateway accepts one seller.
const SID: &str = "demo_sid";
const KEY: &str = "demo-app-key";
const SECRET: &str = "testsecret:testsalt";
/// The worker waits this long for an answer; the gateway's slow answer takes longer.
const TIMEOUT: &str = "2s";
const SLOW: Duration = Duration::from_secs(4);
/// The worker is up, or something is wrong.
const START_LIMIT: Duration = Duration::from_secs(30);
/// All events of what was sent have come, or something is wrong.
const PART_LIMIT: Duration = Duration::from_secs(90);
/// Between looks at a queue, and how many looks for the dead-letter queue to fill.
const LOOK_PAUSE: Duration = Duration::from_millis(50);
const PARKED_LOOKS: usize = 200;
const PASSIVE: QueueDeclareOptions = QueueDeclareOptions {
    passive: true,
    durable: false,
    exclusive: false,
    auto_delete: false,
    nowait: false,
};
/// What is in flight at the end is done in no time.
const DRAIN: Duration = Duration::from_secs(10);

/// Arguments of `demo`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Shows the worker's log, too.
    #[arg(long)]
    log: bool,
}

/// A command and what must become of it.
struct Sent {
    id: &'static str,
    body: Vec<u8>,
    reply_to: Option<&'static str>,
    /// The outcome of each event, in the command's sequence.
    expected: Vec<&'static str>,
}

impl Sent {
    /// It cannot be read, or one of its orders ended so that it is tried again when sent again.
    fn is_parked(&self) -> bool {
        serde_json::from_slice::<Value>(&self.body).is_err()
            || self
                .expected
                .iter()
                .any(|outcome| matches!(*outcome, "failed" | "unknown"))
    }
}

/// Some commands, shown in one table.
struct Part {
    title: &'static str,
    /// Each command is sent when the one before it was told. Sent together they may share a call, and
    /// then one fault hides the others.
    in_turn: bool,
    commands: Vec<Sent>,
}

/// Runs the demo; [`Exit::Failed`] when something ended otherwise than it must.
///
/// # Errors
/// When the broker cannot be reached, or results do not come.
pub async fn run(args: Args, config: BrokerConfig) -> anyhow::Result<Exit> {
    let _log = match args.log {
        true => Some(telemetry::init(LogFormat::Text)?),
        false => None,
    };
    let demo = Demo::start(&config.amqp).await?;
    let shown = demo.show().await;
    let cleaned = demo.stop().await;
    let all_as_expected = shown?;
    cleaned?;
    Ok(if all_as_expected {
        Exit::Done
    } else {
        Exit::Failed
    })
}

/// Everything that the demo started.
struct Demo {
    amqp: Amqp,
    gateway: Running,
    worker: JoinHandle<anyhow::Result<Stopped>>,
    stop: watch::Sender<u32>,
    connection: Connection,
    channel: Channel,
    folder: PathBuf,
}

impl Demo {
    async fn start(broker: &Amqp) -> anyhow::Result<Self> {
        let name = format!("wdt.demo.{:08x}", fastrand::u32(..));
        let folder = std::env::temp_dir().join(&name);
        let connection = link::connect_any(
            broker.urls.iter().map(Secret::expose),
            "wdt-cancel-worker demo",
        )
        .await?;
        let gateway = Sandbox::start(Options {
            accounts: vec![Account {
                sid: SID.into(),
                key: KEY.into(),
                secret: AppSecret::parse(SECRET)?,
            }],
            slow: SLOW,
            calls_per_minute: 0,
            ..Options::default()
        })
        .await?;
        std::fs::create_dir(&folder)
            .with_context(|| format!("{} cannot be made", folder.display()))?;
        let config = settings(broker, &name, &gateway.url(), &folder)?;
        let amqp = config.amqp.clone();
        let (stop, stopped) = watch::channel(0);
        let worker = tokio::spawn(app::run(
            config,
            Mode::Live,
            fastrand::u64(..),
            stopped,
            DRAIN,
            None,
            None,
        ));
        let channel = connection.create_channel().await?;
        let demo = Self {
            amqp,
            gateway,
            worker,
            stop,
            connection,
            channel,
            folder,
        };
        match demo.until_the_worker_consumes().await {
            Ok(()) => Ok(demo),
            Err(error) => {
                drop(demo.stop().await);
                Err(error)
            }
        }
    }

    async fn until_the_worker_consumes(&self) -> anyhow::Result<()> {
        let queue = self.amqp.queue.as_str();
        let consumes = async {
            loop {
                let channel = self.connection.create_channel().await?;
                let look = channel.queue_declare(queue.into(), PASSIVE, FieldTable::default());
                if look.await.is_ok_and(|queue| queue.consumer_count() > 0) {
                    return anyhow::Ok(());
                }
                tokio::time::sleep(LOOK_PAUSE).await;
            }
        };
        tokio::time::timeout(START_LIMIT, consumes)
            .await
            .map_err(|_| {
                anyhow::anyhow!("the worker did not start within {START_LIMIT:?}; try --log")
            })?
    }

    async fn show(&self) -> anyhow::Result<bool> {
        let (results, mut events) = send::reply_queue(&self.channel).await?;
        self.channel
            .queue_bind(
                results.as_str().into(),
                self.amqp.exchange.as_str().into(),
                "cancel.#".into(),
                QueueBindOptions::default(),
                FieldTable::default(),
            )
            .await?;
        self.channel.confirm_select(Default::default()).await?;
        say("A worker consumes from a queue of its own and calls an emulated gateway.\n")?;
        let mut surprises = 0;
        let mut orders = 0;
        for part in parts() {
            say(&format!("\n{}\n\n", part.title))?;
            let seen = self.play(&part, &mut events).await?;
            orders += seen.len();
            surprises += table(&part, &seen)?;
        }
        let calls = self.gateway.record().calls();
        let made = calls.cancel + calls.query + calls.now;
        say(&format!(
            "\n{orders} results cost {made} calls: {} cancelOrder, {} queryWithDetail for what was in doubt, {} system.Core.now.\n",
            calls.cancel, calls.query, calls.now
        ))?;
        let parked = parts()
            .iter()
            .flat_map(|part| &part.commands)
            .filter(|c| c.is_parked())
            .count();
        let dead = self.parked(u32::try_from(parked)?).await?;
        surprises += usize::from(dead as usize != parked);
        say(&format!(
            "{dead} commands were parked in the dead-letter queue, for people to look at.\n"
        ))?;
        if surprises == 0 {
            say("Everything ended as it must.\n")?;
        } else {
            say(&format!("{surprises} results are not what they must be.\n"))?;
        }
        Ok(surprises == 0)
    }

    /// Sends a part's commands and collects their events.
    async fn play(
        &self,
        part: &Part,
        events: &mut Consumer,
    ) -> anyhow::Result<HashMap<(String, usize), Seen>> {
        let size = if part.in_turn { 1 } else { part.commands.len() };
        let mut expected = 0;
        let mut seen = HashMap::new();
        for commands in part.commands.chunks(size) {
            for sent in commands {
                let mut properties = BasicProperties::default().with_message_id(sent.id.into());
                if let Some(queue) = sent.reply_to {
                    properties = properties.with_reply_to(queue.into());
                }
                send::publish(&self.channel, &self.amqp, &sent.body, properties).await?;
                expected += sent.expected.len();
            }
            let collect = async {
                while seen.len() < expected {
                    let Some(delivery) = events.next().await else {
                        bail!("the broker closed the demo's queue");
                    };
                    let event: Seen = serde_json::from_slice(&delivery?.data)?;
                    seen.insert((event.command_id.clone(), event.index), event);
                }
                Ok(())
            };
            match tokio::time::timeout(PART_LIMIT, collect).await {
                Ok(collected) => collected?,
                Err(_) => bail!(
                    "{} of {expected} results came within {PART_LIMIT:?}",
                    seen.len()
                ),
            }
        }
        Ok(seen)
    }

    /// The copies in the dead-letter queue, once `expected` are there: a command is parked after
    /// its last event.
    async fn parked(&self, expected: u32) -> anyhow::Result<u32> {
        let queue = self.amqp.dead_queue.as_str();
        let mut found = 0;
        for _ in 0..PARKED_LOOKS {
            let look = self
                .channel
                .queue_declare(queue.into(), PASSIVE, FieldTable::default());
            found = look.await?.message_count();
            if found >= expected {
                break;
            }
            tokio::time::sleep(LOOK_PAUSE).await;
        }
        Ok(found)
    }

    /// Ends and removes everything that the demo started and made.
    async fn stop(self) -> anyhow::Result<()> {
        self.stop.send_modify(|count| *count += 1);
        let worker = self.worker.await;
        self.gateway.stop().await;
        let channel = self.connection.create_channel().await?;
        for queue in [&self.amqp.queue, &self.amqp.dead_queue] {
            channel
                .queue_delete(queue.as_str().into(), QueueDeleteOptions::default())
                .await?;
        }
        channel
            .exchange_delete(
                self.amqp.exchange.as_str().into(),
                ExchangeDeleteOptions::default(),
            )
            .await?;
        self.connection.close(200, "done".into()).await?;
        std::fs::remove_dir_all(&self.folder)
            .with_context(|| format!("{} cannot be removed", self.folder.display()))?;
        worker??;
        Ok(())
    }
}

/// The worker's settings, as if they had been typed.
fn settings(
    broker: &Amqp,
    name: &str,
    gateway: &str,
    folder: &std::path::Path,
) -> anyhow::Result<Config> {
    let given = [
        ("API__URL", gateway.to_owned()),
        ("API__TIMEOUT", TIMEOUT.to_owned()),
        ("API__CALLS_PER_MINUTE", "0".to_owned()),
        ("ACCOUNTS__DEFAULT__SID", SID.to_owned()),
        ("ACCOUNTS__DEFAULT__KEY", KEY.to_owned()),
        ("ACCOUNTS__DEFAULT__SECRET", SECRET.to_owned()),
        ("AMQP__QUEUE", format!("{name}.commands")),
        ("AMQP__EXCHANGE", format!("{name}.results")),
        ("AMQP__DEAD_QUEUE", format!("{name}.commands.dead")),
        (
            "LEDGER__URL",
            folder.join("demo.ledger").display().to_string(),
        ),
        ("ADMIN__LISTEN", "127.0.0.1:0".to_owned()),
    ];
    let env = given.map(|(key, value)| (format!("WDT_{key}"), value));
    let mut config = Config::load(None, env.into_iter())?.config;
    config.amqp.urls = broker.urls.clone();
    Ok(config)
}

fn parts() -> Vec<Part> {
    let command = |id, body: Value, expected: &[&'static str]| Sent {
        id,
        body: body.to_string().into_bytes(),
        reply_to: None,
        expected: expected.to_vec(),
    };
    let orders = |id, numbers: &[&str], expected: &[&'static str]| {
        command(id, json!({ "order_no_list": numbers }), expected)
    };
    let plain: Vec<String> = (1..=15).map(|n| format!("QC20261123{n:04}")).collect();
    let plain: Vec<&str> = plain.iter().map(String::as_str).collect();
    vec![
        Part {
            title: "1. Two systems cancel; three orders are in both commands, and share one call.",
            in_turn: false,
            commands: vec![
                orders("sap-1", &plain[..10], &["cancelled"; 10]),
                orders("shop-1", &plain[7..], &["cancelled"; 8]),
            ],
        },
        Part {
            title: "2. Orders that cannot be cancelled, and why.",
            in_turn: false,
            commands: vec![orders(
                "sap-2",
                &[
                    "DASH-0001",
                    "EDIT-0001",
                    "WMS-0001",
                    "DONE-0001",
                    "NONE-0001",
                    "REFUSE-0001",
                ],
                &[
                    "cancelled",
                    "cancelled",
                    "refused",
                    "refused",
                    "refused",
                    "refused",
                ],
            )],
        },
        Part {
            title: "3. The same command again, and one of its orders in another command: no call.",
            in_turn: false,
            commands: vec![
                orders("sap-1", &plain[..10], &["cancelled"; 10]),
                orders("shop-2", &plain[..1], &["cancelled"]),
            ],
        },
        Part {
            title: "4. The gateway loses answers, breaks, dawdles and contradicts itself.",
            in_turn: true,
            commands: vec![
                orders("sap-3", &["LOST-0001", "LOST-0002"], &["cancelled"; 2]),
                orders(
                    "sap-4",
                    &["E500-0001", "E503-0001", "HTML-0001"],
                    &["cancelled"; 3],
                ),
                orders(
                    "sap-5",
                    &["CUT-0001", "EMPTY-0001", "RESET-0001"],
                    &["cancelled"; 3],
                ),
                orders(
                    "sap-6",
                    &["BUSY-0001", "BOTH-0001", "NEITHER-0001"],
                    &["cancelled"; 3],
                ),
                orders("sap-7", &["SLOW-0001"], &["cancelled"]),
            ],
        },
        Part {
            title: "5. One order that the gateway chokes on, among others that it does not.",
            in_turn: false,
            commands: vec![orders(
                "sap-8",
                &["QC-A", "QC-B", "QC-C", "BAD-0001", "QC-D", "QC-E"],
                &[
                    "cancelled",
                    "cancelled",
                    "cancelled",
                    "failed",
                    "cancelled",
                    "cancelled",
                ],
            )],
        },
        Part {
            title: "6. An answer is lost, and the gateway does not show the order: nobody can say.",
            in_turn: false,
            commands: vec![orders(
                "sap-9",
                &["LOST-0003", "NONE-0002"],
                &["cancelled", "unknown"],
            )],
        },
        Part {
            title: "7. Commands that are late or wrong.",
            in_turn: false,
            commands: vec![
                command(
                    "late-1",
                    json!({ "order_no_list": ["QC-LATE"], "deadline": "2020-01-01T00:00:00Z" }),
                    &["expired"],
                ),
                command(
                    "odd-1",
                    json!({ "order_no_list": ["QC-F", "", "QC-F"] }),
                    &["cancelled", "rejected"],
                ),
                command(
                    "odd-2",
                    json!({ "order_no_list": ["QC-G"], "account": "nobody" }),
                    &["rejected"],
                ),
                orders("sap-2", &["QC-H"], &["rejected"]),
                Sent {
                    reply_to: Some("somebody-elses-queue"),
                    ..orders("odd-3", &["QC-I"], &["rejected"])
                },
                Sent {
                    id: "odd-4",
                    body: b"cancel QC-J please".to_vec(),
                    reply_to: None,
                    expected: vec!["rejected"],
                },
            ],
        },
    ]
}

/// Shows a part's events; how many are not what they must be.
fn table(part: &Part, seen: &HashMap<(String, usize), Seen>) -> anyhow::Result<usize> {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .force_no_tty()
        .set_header(["  COMMAND", "ORDER", "OUTCOME", "CALLS", "REASON"]);
    let mut surprises = 0;
    for sent in &part.commands {
        for (index, expected) in sent.expected.iter().enumerate() {
            let Some(event) = seen.get(&(sent.id.to_owned(), index)) else {
                bail!("no result for order {index} of command {}", sent.id);
            };
            let as_expected = event.outcome == *expected;
            surprises += usize::from(!as_expected);
            let remark = if as_expected {
                String::new()
            } else {
                format!(" (must be {expected})")
            };
            let replayed = if event.replayed { ", told before" } else { "" };
            table.add_row([
                format!("  {}", sent.id),
                event.order_no.clone().unwrap_or_else(|| "-".into()),
                format!("{}{replayed}{remark}", event.outcome),
                event.attempts.to_string(),
                event.reason_words(),
            ]);
        }
    }
    for line in table.lines() {
        say(&format!("{}\n", line.trim_end()))?;
    }
    Ok(surprises)
}

fn say(words: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(words.as_bytes())?;
    out.flush()
}
