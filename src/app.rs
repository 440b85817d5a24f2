//! The composition root: from settings to a running worker, and down again.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use jiff::Timestamp;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::watch;
use tracing::{error, info, warn};

use crate::admin::history::History;
use crate::admin::metrics::{Destinations, Metrics};
use crate::admin::{Admin, Office, Snapshot, health};
use crate::broker;
use crate::broker::link::Link;
use crate::config::{Account, Config, LedgerUrl, Secret};
use crate::gateway::client::{Client, Credentials, GatewayUrl, Http, Reader};
use crate::gateway::sign::AppSecret;
use crate::ledger::story::Source;
use crate::ledger::{Done, Ledger, Opened, postgres};
use crate::letters::{self, Letters};
use crate::notify::Manager;
use crate::rules::delay::Delays;
use crate::rules::desk::{AccountPolicy, Adjustment, Desk, Gap, Policy};
use crate::rules::dry_run::Mode;
use crate::rules::next::Retry;
use crate::rules::order::AccountName;
use crate::rules::poison::Gate;
use crate::rules::time::later;
use crate::stories;
use crate::telemetry::spans::Spans;
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
/// but for the ids of spans; `log` is where the process's log goes; `reloads` are the settings that
/// were read anew. Of a dry run, `config` is what
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
    reloads: Option<UnboundedReceiver<Config>>,
) -> anyhow::Result<Stopped> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let names: Vec<AccountName> = config.accounts.keys().cloned().collect();
    let clients = clients(&config)?;
    let readers: Vec<Arc<Reader>> = clients.iter().map(|client| client.reader()).collect();
    let clients = match mode {
        Mode::Live => Clients::Live(clients),
        Mode::DryRun => Clients::DryRun(readers.clone()),
    };

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

    for (lane, paused) in opened.paused {
        info!(account = %desk.account(lane), by = &*paused.by, since = %paused.since, "the account is paused");
        desk.pause(lane, Some(paused));
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
    tell_manager(snapshot_rx.clone(), stop.clone());
    let history = Arc::new(History::default());
    let (pause, pauses) = unbounded_channel();
    let (letters, clerk) = Letters::start(dead_settings(&config));
    let (stories, reader) = stories::start(source(&config));
    let office = Office {
        token: config
            .admin
            .token
            .as_ref()
            .map(|token| token.expose().clone()),
        history: Arc::clone(&history),
        pause,
        letters,
        stories,
    };
    let admin = Admin::start(
        config.admin.listen,
        snapshot_rx,
        Arc::clone(&metrics),
        office,
    )
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

    let (adjustments_tx, adjustments) = unbounded_channel();
    if let Some(reloads) = reloads {
        let following = follow_settings(config.clone(), mode, readers, reloads, adjustments_tx);
        tokio::spawn(following);
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
        history,
        pauses,
        exports: traces.as_ref().map(Traces::exports),
        spans: Spans::new(traces, &config.amqp.queue, rng.fork()),
        log,
        adjustments,
        snapshot,
    };
    let stopped = worker.run(stop, drain).await;
    admin.stop();
    clerk.abort();
    reader.abort();
    stopped
}

/// Tells the service manager how the worker fares, until the worker ends. One that cannot be told is
/// no reason not to work.
fn tell_manager(snapshot: watch::Receiver<Snapshot>, stop: watch::Receiver<u32>) {
    match Manager::from_env() {
        Ok(None) => {}
        Ok(Some(manager)) => {
            tokio::spawn(async move { manager.follow(snapshot, stop, status).await });
        }
        Err(error) => warn!(%error, "the service manager (NOTIFY_SOCKET) cannot be told anything"),
    }
}

/// How the worker fares, in a line.
fn status(snapshot: &Snapshot) -> String {
    let report = health::report(snapshot);
    let failing = report
        .checks
        .iter()
        .find(|check| check.state == health::State::Failing);
    match failing {
        None => "ready".to_owned(),
        Some(check) if report.ready => format!("ready, but {}: {}", check.name, check.cause),
        Some(check) => format!("not ready: {}: {}", check.name, check.cause),
    }
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

/// Where the ledger is, for those who only read it.
pub fn source(config: &Config) -> Source {
    match &config.ledger.url {
        LedgerUrl::Path(path) => Source::File(path.clone()),
        LedgerUrl::Postgres(url) => Source::Database(url.expose().clone()),
    }
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

/// Makes the settings that were read anew hold, as far as they may change while the worker works, and
/// tells which wait for a restart.
async fn follow_settings(
    mut known: Config,
    mode: Mode,
    readers: Vec<Arc<Reader>>,
    mut reloads: UnboundedReceiver<Config>,
    adjustments: UnboundedSender<Adjustment>,
) {
    while let Some(wanted) = reloads.recv().await {
        let wanted = match mode {
            Mode::Live => Ok(wanted),
            Mode::DryRun => wanted.for_dry_run(),
        };
        let wanted = match wanted {
            Ok(wanted) => wanted,
            Err(error) => {
                error!(%error, "the settings were read anew, and cannot be used");
                continue;
            }
        };
        let (applied, waiting) = take_over(&mut known, &wanted);
        for (account, client) in known.accounts.values().zip(&readers) {
            match (credentials(account), previous_credentials(account)) {
                (Ok(credentials), Ok(previous)) => client.renew(credentials, previous),
                // The settings were checked; should both disagree, what holds stays.
                (Err(error), _) | (_, Err(error)) => {
                    error!(%error, "an account's credentials cannot be used");
                }
            }
        }
        let adjustment = Adjustment {
            max_attempts: known.retry.max_attempts,
            max_age: known.retry.max_age,
            accounts: account_policies(&known),
        };
        if adjustments.send(adjustment).is_err() {
            return;
        }
        info!(
            applied = applied.join(", "),
            needs_restart = waiting.join(", "),
            "the settings were reloaded"
        );
    }
}

/// Changes what may change, and names it; then what differs and may not.
fn take_over(known: &mut Config, wanted: &Config) -> (Vec<String>, Vec<String>) {
    let (mut applied, mut waiting) = (Vec::new(), Vec::new());
    if known.retry != wanted.retry {
        known.retry = wanted.retry.clone();
        applied.push("retry".to_owned());
    }
    let is_shared = matches!(known.ledger.url, LedgerUrl::Postgres(_));
    for (name, account) in &mut known.accounts {
        let Some(now) = wanted.accounts.get(name) else {
            waiting.push(format!("accounts.{name} (removed)"));
            continue;
        };
        let secrets = |a: &Account| {
            let (sid, previous) = (a.sid.clone(), a.previous.clone());
            (
                sid,
                a.key.clone(),
                a.secret.clone(),
                a.salt.clone(),
                previous,
            )
        };
        if secrets(account) != secrets(now) {
            (
                account.sid,
                account.key,
                account.secret,
                account.salt,
                account.previous,
            ) = secrets(now);
            applied.push(format!("accounts.{name} (credentials)"));
        }
        if account.max_orders_per_call != now.max_orders_per_call {
            account.max_orders_per_call = now.max_orders_per_call;
            applied.push(format!("accounts.{name}.max_orders_per_call"));
        }
        let pace = |a: &Account| (a.calls_per_minute, a.concurrency);
        if pace(account) != pace(now) {
            let what = format!("accounts.{name}.calls_per_minute and .concurrency");
            // There the minute is shared out by the ledger, by what its workers started with.
            if is_shared {
                waiting.push(what);
            } else {
                (account.calls_per_minute, account.concurrency) = pace(now);
                applied.push(what);
            }
        }
        if account.url != now.url {
            waiting.push(format!("accounts.{name}.url"));
        }
    }
    let is_new = |name: &&AccountName| !known.accounts.contains_key(*name);
    let new = wanted.accounts.keys().filter(is_new);
    waiting.extend(new.map(|name| format!("accounts.{name} (new)")));
    for (section, differs) in [
        ("amqp", known.amqp != wanted.amqp),
        ("api", known.api != wanted.api),
        ("ledger", known.ledger != wanted.ledger),
        ("admin", known.admin != wanted.admin),
        ("log", known.log != wanted.log),
    ] {
        if differs {
            waiting.push(section.to_owned());
        }
    }
    (applied, waiting)
}

fn credentials(account: &Account) -> anyhow::Result<Credentials> {
    pair(&account.sid, &account.key, &account.secret, &account.salt)
}

fn previous_credentials(account: &Account) -> anyhow::Result<Option<Credentials>> {
    let previous = account.previous.as_ref();
    previous
        .map(|p| pair(&account.sid, &p.key, &p.secret, &p.salt))
        .transpose()
}

fn pair(
    sid: &str,
    key: &Secret<String>,
    secret: &Secret<String>,
    salt: &Secret<String>,
) -> anyhow::Result<Credentials> {
    Ok(Credentials {
        sid: sid.to_owned(),
        key: key.expose().clone(),
        secret: AppSecret::parse(&format!("{}:{}", secret.expose(), salt.expose()))?,
    })
}

/// A client for each account, in the settings' order.
///
/// # Errors
/// When an address or a secret cannot be used, or the HTTP client not be made.
pub fn clients(config: &Config) -> anyhow::Result<Vec<Arc<Client>>> {
    let urls = config
        .accounts
        .iter()
        .map(|(name, account)| {
            GatewayUrl::parse(account.url.as_str()).with_context(|| format!("accounts.{name}.url"))
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    let http = Http::new(config.api.timeout, &urls).context("the HTTP client cannot be made")?;
    config
        .accounts
        .iter()
        .zip(urls)
        .map(|((name, account), url)| {
            let what = || format!("accounts.{name}.secret");
            let client = Client::new(http.clone(), url, credentials(account).with_context(what)?);
            if let Some(previous) = previous_credentials(account).with_context(what)? {
                client.renew(credentials(account).with_context(what)?, Some(previous));
            }
            Ok(Arc::new(client))
        })
        .collect()
}

fn dead_settings(config: &Config) -> letters::Settings {
    letters::Settings {
        urls: config
            .amqp
            .urls
            .iter()
            .map(|url| url.expose().clone())
            .collect(),
        dead_queue: config.amqp.dead_queue.clone(),
        queue: config.amqp.queue.clone(),
    }
}

/// What the broker's side needs of the settings.
pub fn broker_settings(config: &Config, mode: Mode) -> broker::Settings {
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
