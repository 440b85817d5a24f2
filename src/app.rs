//! The composition root: from settings to a running worker, and down again.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use jiff::Timestamp;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::admin::metrics::{Destinations, Metrics};
use crate::admin::{Admin, Snapshot};
use crate::broker;
use crate::broker::link::Link;
use crate::config::{Config, LedgerUrl};
use crate::gateway::client::{Client, Credentials, GatewayUrl, Http, Reader};
use crate::gateway::sign::AppSecret;
use crate::ledger::{Done, Ledger, Opened, postgres};
use crate::rules::delay::Delays;
use crate::rules::desk::{AccountPolicy, Desk, Gap, Policy};
use crate::rules::dry_run::Mode;
use crate::rules::next::Retry;
use crate::rules::order::AccountName;
use crate::rules::poison::Gate;
use crate::rules::time::later;
use crate::telemetry::journal::Journal;
use crate::telemetry::traces::Traces;
use crate::telemetry::writer::Lines;
use crate::worker::{Clients, Clock, Rules, Stopped, Worker};

/// Between tries of one order: a busy document is free again after seconds, a broken one is not
/// hammered.
const ORDER_DELAYS: Delays = Delays {
    first: Duration::from_secs(1),
    most: Duration::from_secs(60),
};
/// A delivery is held at most this long. The broker closes a channel that holds one for 30 minutes,
/// and looks once a minute.
const HOLD: Duration = Duration::from_secs(20 * 60);
/// Between tries of an event that no queue takes.
const UNTOLD_PAUSE: Duration = Duration::from_secs(10);
/// How long a list that is not full waits for more orders: long enough that orders which come at a
/// few hundred a second share calls, too short for anybody to notice.
const GATHER: Duration = Duration::from_millis(5);
/// Commands taken for each order that can be in a call: while one list is out, many others are
/// recorded, told, confirmed and acknowledged, each in groups.
const PREFETCH_PER_CALL_PLACE: usize = 25;
/// Bounds of the prefetch: enough to share calls, few enough to bound memory.
const PREFETCH_MIN: usize = 64;
const PREFETCH_MAX: usize = 2000;

/// Starts what a worker needs, runs it until `stop`, and takes it down. `seed` decides all chance,
/// but for the ids of spans; `log` is where the process's log goes. Of a dry run, `config` is what
/// [`Config::for_dry_run`] makes of the settings.
///
/// # Errors
/// When something it needs cannot be had: the ledger, the admin's address, the broker's leave.
pub async fn run(
    config: Config,
    mode: Mode,
    seed: u64,
    stop: watch::Receiver<u32>,
    drain: Duration,
    log: Option<Lines>,
) -> anyhow::Result<Stopped> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let names: Vec<AccountName> = config.accounts.keys().cloned().collect();
    let clients = clients(&config, mode)?;

    let (done_tx, done) = unbounded_channel();
    let opened = open_ledger(&config, mode, done_tx).await?;
    let clock = Clock::start();
    let (policy, accounts) = (policy(&config), account_policies(&config));
    let mut desk = match mode {
        Mode::Live => Desk::new(policy, &accounts, rng.fork()),
        Mode::DryRun => Desk::for_dry_run(policy, &accounts, rng.fork()),
    };
    for (lane, ago) in opened.recent_calls {
        desk.remember_call(lane, clock.now().mono, ago);
    }

    let deaths = opened.past.deaths;
    let gate = Gate::new(opened.past);
    if gate.is_careful() {
        warn!(
            deaths,
            "the last runs died; commands that were in hand then are handled one at a time"
        );
    }

    if let Some(restored_at) = opened.ledger.restored_at() {
        let until = later(restored_at, config.ledger.retention);
        desk.remember_gap(Gap { restored_at, until });
        if Timestamp::now() < until {
            warn!(%restored_at, %until, "the ledger was restored from a back-up; until then, orders that are not on record since are told as refused only after a look-up");
        }
    }

    let traces = traces();
    let destinations = Destinations {
        queue: config.amqp.queue.as_str().into(),
        exchange: config.amqp.exchange.as_str().into(),
        dead_queue: config.amqp.dead_queue.as_str().into(),
    };
    let ledger_timings = opened.ledger.timings().shown;
    let metrics = Arc::new(Metrics::new(destinations, ledger_timings));
    let (snapshot, snapshot_rx) = watch::channel(Snapshot {
        mode,
        ..Snapshot::starting(Timestamp::now())
    });
    let admin = Admin::start(config.admin.listen, snapshot_rx, Arc::clone(&metrics))
        .await
        .with_context(|| {
            format!(
                "admin.listen: {} cannot be listened on",
                config.admin.listen
            )
        })?;
    info!(address = %admin.address, ledger = %shown(&config), accounts = names.len(), "started");
    if mode.is_dry_run() {
        warn!(
            queue = config.amqp.queue,
            routing_key = "dry-run.#",
            "a dry run: no order is cancelled; each is looked up, and told what would become of it"
        );
    }

    let (events_tx, events) = unbounded_channel();
    let worker = Worker {
        desk,
        gate,
        rules: Rules {
            accounts: names,
            reply_to_allow: config.amqp.reply_to_allow.clone(),
        },
        clients,
        ledger: opened.ledger,
        done,
        link: Link::start(broker_settings(&config, mode), events_tx, rng.fork()),
        events,
        clock,
        metrics,
        exports: traces.as_ref().map(Traces::exports),
        journal: Journal::new(traces, &config.amqp.queue, rng.fork()),
        log,
        snapshot,
    };
    let stopped = worker.run(stop, drain).await;
    admin.stop();
    stopped
}

/// What sends spans, where somebody wants them. A collector is no reason not to work.
fn traces() -> Option<Traces> {
    match Traces::from_env() {
        Ok(traces) => traces,
        Err(error) => {
            warn!(%error, "no traces are exported");
            None
        }
    }
}

async fn open_ledger(
    config: &Config,
    mode: Mode,
    done: UnboundedSender<Done>,
) -> anyhow::Result<Opened> {
    let retention = config.ledger.retention;
    Ok(match &config.ledger.url {
        LedgerUrl::Path(path) => {
            let names = config.accounts.keys().cloned().collect();
            Ledger::open_for(mode, path, names, retention, done)?
        }
        LedgerUrl::Postgres(url) => {
            let settings = postgres::Settings {
                url: url.expose().clone(),
                accounts: account_policies(config),
                timeout: config.api.timeout,
                retention,
            };
            postgres::open_for(mode, settings, done).await?
        }
    })
}

/// Where the ledger is, without a password.
fn shown(config: &Config) -> String {
    match &config.ledger.url {
        LedgerUrl::Path(path) => path.display().to_string(),
        LedgerUrl::Postgres(url) => url.to_string(),
    }
}

fn policy(config: &Config) -> Policy {
    Policy {
        retry: Retry {
            max_attempts: config.retry.max_attempts,
            verify: config.api.verify,
            delays: ORDER_DELAYS,
        },
        max_age: config.retry.max_age,
        hold: HOLD,
        untold_pause: UNTOLD_PAUSE,
        gather: GATHER,
    }
}

fn account_policies(config: &Config) -> Vec<AccountPolicy> {
    config
        .accounts
        .iter()
        .map(|(name, account)| AccountPolicy {
            name: name.clone(),
            calls_per_minute: account.calls_per_minute,
            concurrency: account.concurrency,
            max_orders_per_call: account.max_orders_per_call,
        })
        .collect()
}

fn clients(config: &Config, mode: Mode) -> anyhow::Result<Clients> {
    let urls = config
        .accounts
        .iter()
        .map(|(name, account)| {
            GatewayUrl::parse(account.url.as_str()).with_context(|| format!("accounts.{name}.url"))
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    let http = Http::new(config.api.timeout, &urls).context("the HTTP client cannot be made")?;
    let accounts = config.accounts.iter().zip(urls);
    let credentials = accounts
        .map(|((name, account), url)| {
            let secret = format!("{}:{}", account.secret.expose(), account.salt.expose());
            let credentials = Credentials {
                sid: account.sid.clone(),
                key: account.key.expose().clone(),
                secret: AppSecret::parse(&secret)
                    .with_context(|| format!("accounts.{name}.secret"))?,
            };
            Ok((http.clone(), url, credentials))
        })
        .collect::<anyhow::Result<Vec<_>>>()?
        .into_iter();
    Ok(match mode {
        Mode::Live => Clients::Live(
            credentials
                .map(|(http, url, credentials)| Arc::new(Client::new(http, url, credentials)))
                .collect(),
        ),
        Mode::DryRun => Clients::DryRun(
            credentials
                .map(|(http, url, credentials)| Arc::new(Reader::new(http, url, credentials)))
                .collect(),
        ),
    })
}

fn broker_settings(config: &Config, mode: Mode) -> broker::Settings {
    broker::Settings {
        urls: config
            .amqp
            .urls
            .iter()
            .map(|url| url.expose().clone())
            .collect(),
        queue: config.amqp.queue.clone(),
        exchange: config.amqp.exchange.clone(),
        dead_queue: config.amqp.dead_queue.clone(),
        declare: config.amqp.declare,
        prefetch: prefetch(config),
        mode,
        accounts: config.accounts.keys().cloned().collect(),
    }
}

/// How many commands are taken from the queue and not yet acknowledged: enough for every account's
/// calls, within bounds.
fn prefetch(config: &Config) -> u16 {
    let places: usize = config
        .accounts
        .values()
        .map(|a| a.concurrency as usize * a.max_orders_per_call as usize)
        .sum();
    let wanted = places.saturating_mul(PREFETCH_PER_CALL_PLACE);
    u16::try_from(wanted.clamp(PREFETCH_MIN, PREFETCH_MAX)).unwrap_or(u16::MAX)
}
