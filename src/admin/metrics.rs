//! Counts for Prometheus. Labels come from closed sets and the settings' accounts, never from what
//! somebody sent.
//!
//! Names are OpenTelemetry's where its conventions for messaging and HTTP have one, in Prometheus'
//! spelling; the others begin with `wdt_`. What the worker counts as it goes is counted here at once,
//! the rest is taken from the snapshot when somebody reads.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Metric, Registry, Unit};

use super::health::State;
use super::process::Process;
use super::{Snapshot, health};
use crate::rules::admit::Admission;
use crate::rules::desk::{Intake, LookUpCause, RetryCause};
use crate::rules::judge::SettingsFault;
use crate::rules::lane::{Health, LaneReport, Method};
use crate::rules::order::Outcome;

/// The account of a command that names none that is known.
const NOBODY: &str = "_";
/// `messaging.system`.
const SYSTEM: &str = "rabbitmq";

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CommandLabels {
    account: Arc<str>,
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EventLabels {
    account: Arc<str>,
    outcome: &'static str,
    replayed: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    account: Arc<str>,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallLabels {
    account: Arc<str>,
    method: &'static str,
    result: &'static str,
}

/// OpenTelemetry's labels of an HTTP client's request, and ours.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    http_request_method: &'static str,
    server_address: Arc<str>,
    server_port: u16,
    http_response_status_code: Option<u16>,
    error_type: &'static str,
    wdt_method: &'static str,
}

/// OpenTelemetry's labels of what is done with messages.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MessagingLabels {
    messaging_system: &'static str,
    messaging_destination_name: Arc<str>,
    messaging_operation_name: &'static str,
    error_type: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AccountLabels {
    account: Arc<str>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CauseLabels {
    account: Arc<str>,
    cause: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SavedLabels {
    account: Arc<str>,
    by: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CheckLabels {
    check: Arc<str>,
    account: Arc<str>,
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabels {
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NoLabels {}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VersionLabels {
    version: &'static str,
}

/// What became of a publication, in OpenTelemetry's `error.type`; empty where nothing is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// A queue has it.
    Confirmed,
    /// No queue is bound for it.
    Unroutable,
    /// A queue is full.
    Refused,
    /// Nobody knows.
    Lost,
}

impl Sent {
    const fn error(self) -> &'static str {
        match self {
            Self::Confirmed => "",
            Self::Unroutable => "unroutable",
            Self::Refused => "refused",
            Self::Lost => "lost",
        }
    }
}

/// Why an account is left alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pause {
    /// Too many calls, by the gateway's word.
    Throttled,
    /// Its gateway does not answer.
    Down,
    /// Its settings or grants are wrong.
    Stopped(SettingsFault),
    /// An operator wants it so.
    Operator,
}

impl Pause {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Operator,
        Self::Throttled,
        Self::Down,
        Self::Stopped(SettingsFault::Credentials),
        Self::Stopped(SettingsFault::AllowList),
        Self::Stopped(SettingsFault::Permission),
        Self::Stopped(SettingsFault::Clock),
    ];

    /// A word for the label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Throttled => "throttled",
            Self::Down => "down",
            Self::Stopped(fault) => fault.as_str(),
            Self::Operator => "operator",
        }
    }

    /// Why this one is left alone at present, if it is.
    fn of(report: &LaneReport) -> Option<Self> {
        if report.paused.is_some() {
            return Some(Self::Operator);
        }
        match &report.health {
            Health::Down { .. } => Some(Self::Down),
            Health::Stopped { fault, .. } => Some(Self::Stopped(*fault)),
            Health::Well => report.cooling.map(|_| Self::Throttled),
        }
    }
}

/// A call that ended.
#[derive(Debug, Clone)]
pub struct Call<'a> {
    /// Whose.
    pub account: &'a Arc<str>,
    /// What for.
    pub method: Method,
    /// The server's name or number.
    pub host: &'a Arc<str>,
    /// The server's port.
    pub port: u16,
    /// The orders in it.
    pub orders: usize,
    /// In one of few words; `ok` where the gateway's status is 0.
    pub result: &'static str,
    /// HTTP's, where one came.
    pub http_status: Option<u16>,
    /// From before the connection to the last byte.
    pub duration: Duration,
}

/// Where messages come from and go to.
#[derive(Debug, Clone)]
pub struct Destinations {
    /// Of commands.
    pub queue: Arc<str>,
    /// Of results.
    pub exchange: Arc<str>,
    /// Of dead letters.
    pub dead_queue: Arc<str>,
}

/// A family of which one member is enough, at hand without a look-up.
#[derive(Debug)]
struct Messaging<M> {
    all: Family<MessagingLabels, M, fn() -> M>,
    one: M,
}

impl<M: Clone> Messaging<M> {
    fn new(labels: &MessagingLabels, new: fn() -> M) -> Self {
        let all = Family::new_with_constructor(new);
        Self {
            one: all.get_or_create_owned(labels),
            all,
        }
    }
}

/// Everything that is counted.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    destinations: Destinations,

    consumed: Messaging<Counter>,
    sent: Family<MessagingLabels, Counter>,
    /// Of events that are confirmed, which nearly all are.
    confirmed: Counter,
    processing: Messaging<Histogram>,
    requests: Family<RequestLabels, Histogram>,

    commands: Family<CommandLabels, Counter>,
    acknowledged: Counter,
    dead_lettered: Family<ReasonLabels, Counter>,
    returned: Counter,
    commands_in_hand: Gauge,
    oldest_command: Gauge<f64, AtomicU64>,
    unsettled: Gauge,
    kept: Gauge,

    queue_ready: Gauge,
    queue_consumers: Gauge,
    queue_looked_at: Gauge<f64, AtomicU64>,
    queue_oldest: Family<NoLabels, Gauge<f64, AtomicU64>>,

    orders: Family<OutcomeLabels, Counter>,
    events: Family<EventLabels, Counter>,
    untold: Gauge,
    orders_in_hand: Gauge,
    waiting: Family<AccountLabels, Gauge>,
    since_arrival: Histogram,
    since_published: Histogram,

    calls: Family<CallLabels, Counter>,
    calls_in_flight: Family<AccountLabels, Gauge>,
    orders_per_call: Histogram,
    saved: Family<SavedLabels, Counter>,
    retries: Family<CauseLabels, Counter>,
    look_ups: Family<CauseLabels, Counter>,
    strangers: Family<AccountLabels, Counter>,

    callable: Family<AccountLabels, Gauge>,
    paused: Family<CauseLabels, Gauge>,
    pauses: Family<CauseLabels, Counter>,
    clock_offset: Family<AccountLabels, Gauge>,

    commits: Counter<u64, AtomicU64>,
    committed: Counter<u64, AtomicU64>,

    ready: Gauge,
    dry_run: Gauge,
    checks: Family<CheckLabels, Gauge>,
    intake_open: Gauge,

    lines_dropped: Counter<u64, AtomicU64>,
    spans: Family<ResultLabels, Counter>,
    process: Process,
}

impl Metrics {
    /// All at zero. `ledger` is how long the ledger's work takes.
    pub fn new(destinations: Destinations, ledger: impl Metric) -> Self {
        let sent = Family::default();
        let queue = &destinations.queue;
        let metrics = Self {
            registry: Registry::default(),
            consumed: Messaging::new(&messaging(queue, "deliver", ""), Counter::default),
            confirmed: sent.get_or_create_owned(&messaging(&destinations.exchange, "publish", "")),
            sent,
            processing: Messaging::new(&messaging(queue, "process", ""), long_times),
            destinations,
            requests: Family::new_with_constructor(short_times),
            commands: Family::default(),
            acknowledged: Counter::default(),
            dead_lettered: Family::default(),
            returned: Counter::default(),
            commands_in_hand: Gauge::default(),
            oldest_command: Gauge::default(),
            unsettled: Gauge::default(),
            kept: Gauge::default(),
            queue_ready: Gauge::default(),
            queue_consumers: Gauge::default(),
            queue_looked_at: Gauge::default(),
            queue_oldest: Family::default(),
            orders: Family::default(),
            events: Family::default(),
            untold: Gauge::default(),
            orders_in_hand: Gauge::default(),
            waiting: Family::default(),
            since_arrival: long_times(),
            since_published: long_times(),
            calls: Family::default(),
            calls_in_flight: Family::default(),
            orders_per_call: Histogram::new([1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 50.0, 100.0, 1000.0]),
            saved: Family::default(),
            retries: Family::default(),
            look_ups: Family::default(),
            strangers: Family::default(),
            callable: Family::default(),
            paused: Family::default(),
            pauses: Family::default(),
            clock_offset: Family::default(),
            commits: Counter::default(),
            committed: Counter::default(),
            ready: Gauge::default(),
            dry_run: Gauge::default(),
            checks: Family::default(),
            intake_open: Gauge::default(),
            lines_dropped: Counter::default(),
            spans: Family::default(),
            process: Process::default(),
        };
        let mut registry = Registry::default();
        metrics.register_conventions(&mut registry);
        let ours = registry.sub_registry_with_prefix("wdt");
        metrics.register_commands(ours);
        metrics.register_orders(ours);
        metrics.register_calls(ours);
        metrics.register_the_rest(ours, ledger);
        metrics.process.register(&mut registry);
        Self {
            registry,
            ..metrics
        }
    }

    /// Under OpenTelemetry's names.
    fn register_conventions(&self, to: &mut Registry) {
        to.register(
            "messaging_client_consumed_messages",
            "Deliveries of commands that were opened; one that comes again counts again",
            self.consumed.all.clone(),
        );
        to.register(
            "messaging_client_sent_messages",
            "Events and dead-letter copies that were published, by what became of them",
            self.sent.clone(),
        );
        to.register_with_unit(
            "messaging_process_duration",
            "From a command's arrival to its acknowledgement",
            Unit::Seconds,
            self.processing.all.clone(),
        );
        to.register_with_unit(
            "http_client_request_duration",
            "Calls of the gateway, connect to last byte",
            Unit::Seconds,
            self.requests.clone(),
        );
    }

    fn register_commands(&self, to: &mut Registry) {
        to.register(
            "commands",
            "Commands received, by how they were admitted",
            self.commands.clone(),
        );
        to.register(
            "commands_acknowledged",
            "Commands acknowledged",
            self.acknowledged.clone(),
        );
        to.register(
            "commands_dead_lettered",
            "Commands copied to the dead-letter queue",
            self.dead_lettered.clone(),
        );
        to.register(
            "commands_returned",
            "Commands given back to the queue",
            self.returned.clone(),
        );
        to.register(
            "commands_in_hand",
            "Commands taken and not acknowledged",
            self.commands_in_hand.clone(),
        );
        to.register_with_unit(
            "oldest_command_age",
            "Since the arrival of the oldest command in hand; 0 without one",
            Unit::Seconds,
            self.oldest_command.clone(),
        );
        to.register(
            "deliveries_unsettled",
            "Deliveries of this worker that the broker counts as unacknowledged",
            self.unsettled.clone(),
        );
        to.register(
            "deliveries_kept",
            "Deliveries kept unopened because their account has no room",
            self.kept.clone(),
        );
        to.register(
            "queue_ready",
            "Commands that wait in the broker, as last looked up",
            self.queue_ready.clone(),
        );
        to.register(
            "queue_consumers",
            "Consumers of the queue, of all workers, as last looked up",
            self.queue_consumers.clone(),
        );
        to.register_with_unit(
            "queue_looked_timestamp",
            "When the queue was last looked at; 0 never",
            Unit::Seconds,
            self.queue_looked_at.clone(),
        );
        to.register_with_unit(
            "queue_oldest_age",
            "So old is the oldest command in the queue at most, by the newest publisher's timestamp delivered; absent where none has one",
            Unit::Seconds,
            self.queue_oldest.clone(),
        );
    }

    fn register_orders(&self, to: &mut Registry) {
        to.register(
            "orders",
            "Orders told to a command, the event confirmed",
            self.orders.clone(),
        );
        to.register(
            "events",
            "Result events handed to the broker, each try, by outcome",
            self.events.clone(),
        );
        to.register(
            "events_untold",
            "Events that no queue took; they are tried again",
            self.untold.clone(),
        );
        to.register(
            "orders_in_hand",
            "Orders of the commands in hand",
            self.orders_in_hand.clone(),
        );
        to.register(
            "orders_waiting",
            "Orders that wait to be sent or looked up",
            self.waiting.clone(),
        );
        to.register_with_unit(
            "arrival_to_event",
            "From a command's arrival to the confirm of each of its events",
            Unit::Seconds,
            self.since_arrival.clone(),
        );
        to.register_with_unit(
            "publish_to_event",
            "The same from the timestamp of the command's message, where it has one",
            Unit::Seconds,
            self.since_published.clone(),
        );
    }

    fn register_calls(&self, to: &mut Registry) {
        to.register(
            "calls",
            "Calls of the gateway that ended, by result",
            self.calls.clone(),
        );
        to.register(
            "calls_in_flight",
            "Calls without an answer yet",
            self.calls_in_flight.clone(),
        );
        to.register(
            "orders_per_call",
            "Orders in one cancel call",
            self.orders_per_call.clone(),
        );
        to.register(
            "calls_saved",
            "Orders that cost no call of their own: beyond the first in a list, joined to one in hand, told from the ledger",
            self.saved.clone(),
        );
        to.register(
            "retries",
            "Orders that are sent once more, by cause",
            self.retries.clone(),
        );
        to.register(
            "look_ups_wanted",
            "Orders that are to be looked up, by cause",
            self.look_ups.clone(),
        );
        to.register(
            "unasked_orders",
            "Orders in answers that nobody had asked for",
            self.strangers.clone(),
        );
        to.register(
            "account_callable",
            "1 when the account can be called",
            self.callable.clone(),
        );
        to.register(
            "account_paused",
            "1 while the account is left alone for this cause",
            self.paused.clone(),
        );
        to.register(
            "account_pauses",
            "How often that began",
            self.pauses.clone(),
        );
        to.register_with_unit(
            "clock_offset",
            "The gateway's clock less ours",
            Unit::Seconds,
            self.clock_offset.clone(),
        );
    }

    fn register_the_rest(&self, to: &mut Registry, ledger: impl Metric) {
        to.register(
            "ledger_commits",
            "Groups the ledger made durable",
            self.commits.clone(),
        );
        to.register(
            "ledger_requests",
            "Requests in those groups",
            self.committed.clone(),
        );
        to.register_with_unit(
            "ledger_duration",
            "How long the ledger takes to make a group durable, and to answer a group of claims",
            Unit::Seconds,
            ledger,
        );
        to.register("ready", "1 when /readyz answers 200", self.ready.clone());
        to.register(
            "dry_run",
            "1 where nothing is cancelled, only looked up",
            self.dry_run.clone(),
        );
        to.register(
            "check_state",
            "1 for the state that this check of /readyz is in",
            self.checks.clone(),
        );
        to.register(
            "intake_open",
            "1 while commands are to be taken from the queue",
            self.intake_open.clone(),
        );
        to.register(
            "log_lines_dropped",
            "Lines of the log that were dropped because nobody read it",
            self.lines_dropped.clone(),
        );
        to.register(
            "trace_spans",
            "Spans that ended, and of these the ones that a collector took, or did not",
            self.spans.clone(),
        );
        let build = Family::<VersionLabels, Gauge>::default();
        let version = env!("CARGO_PKG_VERSION");
        build.get_or_create(&VersionLabels { version }).set(1);
        to.register("build_info", "Always 1", build);
    }
}

impl Metrics {
    /// A delivery was opened, and judged.
    pub fn admitted(&self, admission: &Admission) {
        let (account, result) = match admission {
            Admission::Accepted(command) => (Some(&command.account), "accepted"),
            Admission::Rejected(rejection) => {
                (rejection.account.as_ref(), rejection.reason.code.as_str())
            }
        };
        let account = account.map_or(NOBODY, |account| account.as_str());
        let labels = CommandLabels {
            account: account.into(),
            result,
        };
        self.commands.get_or_create(&labels).inc();
        self.consumed.one.inc();
    }

    /// A command was acknowledged, after this time in hand.
    pub fn acknowledged(&self, in_hand: Duration) {
        self.acknowledged.inc();
        self.processing.one.observe(in_hand.as_secs_f64());
    }

    /// A command is in the dead-letter queue.
    pub fn dead_lettered(&self, reason: &'static str) {
        self.dead_lettered
            .get_or_create(&ReasonLabels { reason })
            .inc();
    }

    /// A command went back to the queue.
    pub fn returned(&self) {
        self.returned.inc();
    }

    /// An event was handed to the broker.
    pub fn event(&self, account: &str, outcome: Outcome, replayed: bool) {
        let labels = EventLabels {
            account: account.into(),
            outcome: outcome.as_str(),
            replayed: if replayed { "true" } else { "false" },
        };
        self.events.get_or_create(&labels).inc();
    }

    /// What became of an event.
    pub fn event_sent(&self, sent: Sent) {
        if sent == Sent::Confirmed {
            self.confirmed.inc();
            return;
        }
        let exchange = &self.destinations.exchange;
        let labels = messaging(exchange, "publish", sent.error());
        self.sent.get_or_create(&labels).inc();
    }

    /// What became of a copy for the dead-letter queue.
    pub fn copy_sent(&self, sent: Sent) {
        let queue = &self.destinations.dead_queue;
        let labels = messaging(queue, "publish", sent.error());
        self.sent.get_or_create(&labels).inc();
    }

    /// An event was confirmed, so much later than its command arrived, and was published.
    pub fn told(
        &self,
        account: &Arc<str>,
        outcome: Outcome,
        since_arrival: Duration,
        since_published: Option<Duration>,
    ) {
        let labels = OutcomeLabels {
            account: Arc::clone(account),
            outcome: outcome.as_str(),
        };
        self.orders.get_or_create(&labels).inc();
        self.since_arrival.observe(since_arrival.as_secs_f64());
        if let Some(since) = since_published {
            self.since_published.observe(since.as_secs_f64());
        }
    }

    /// A call ended.
    pub fn call(&self, call: &Call<'_>) {
        let method = call.method.as_str();
        let labels = CallLabels {
            account: Arc::clone(call.account),
            method,
            result: call.result,
        };
        self.calls.get_or_create(&labels).inc();
        let labels = RequestLabels {
            http_request_method: "POST",
            server_address: Arc::clone(call.host),
            server_port: call.port,
            http_response_status_code: call.http_status.map(known_status),
            error_type: if call.result == "ok" { "" } else { call.result },
            wdt_method: method,
        };
        let requests = self.requests.get_or_create(&labels);
        requests.observe(call.duration.as_secs_f64());
        if call.method == Method::Cancel {
            self.orders_per_call.observe(call.orders as f64);
            let labels = SavedLabels {
                account: Arc::clone(call.account),
                by: "list",
            };
            let saved = call.orders.saturating_sub(1) as u64;
            self.saved.get_or_create(&labels).inc_by(saved);
        }
    }

    /// An answer named orders that nobody had asked for.
    pub fn strangers(&self, account: &str, orders: usize) {
        let account = account.into();
        self.strangers
            .get_or_create(&AccountLabels { account })
            .inc_by(orders as u64);
    }

    /// An account is left alone from now on.
    pub fn paused(&self, account: &str, pause: Pause) {
        let labels = CauseLabels {
            account: account.into(),
            cause: pause.as_str(),
        };
        self.pauses.get_or_create(&labels).inc();
    }

    /// What the ledger wrote so far: groups, requests.
    pub fn ledger(&self, groups: u64, requests: u64) {
        self.commits.inner().store(groups, Ordering::Relaxed);
        self.committed.inner().store(requests, Ordering::Relaxed);
    }

    /// Lines of the log that were dropped so far.
    pub fn log(&self, dropped: u64) {
        self.lines_dropped.inner().store(dropped, Ordering::Relaxed);
    }

    /// What became of spans so far.
    pub fn spans(&self, ended: u64, exported: u64, failed: u64) {
        for (result, count) in [("ended", ended), ("exported", exported), ("failed", failed)] {
            let spans = self.spans.get_or_create(&ResultLabels { result });
            spans.inner().store(count, Ordering::Relaxed);
        }
    }

    /// The text that Prometheus reads.
    pub fn encode(&self, snapshot: &Snapshot) -> String {
        self.show(snapshot);
        self.process.look();
        let mut text = String::new();
        if let Err(error) = encode(&mut text, &self.registry) {
            // Only a full memory could be the cause; say so rather than serve half a page.
            let _ = write!(text, "# {error}");
        }
        text
    }

    fn show(&self, snapshot: &Snapshot) {
        let report = health::report(snapshot);
        self.ready.set(report.ready.into());
        self.dry_run.set(report.dry_run.into());
        for check in &report.checks {
            let (name, account) = check.parts();
            let (name, account): (Arc<str>, Arc<str>) = (name.into(), account.into());
            for state in State::ALL {
                let labels = CheckLabels {
                    check: Arc::clone(&name),
                    account: Arc::clone(&account),
                    state: state.as_str(),
                };
                let is_it = check.state == state;
                self.checks.get_or_create(&labels).set(is_it.into());
            }
        }
        self.intake_open
            .set((snapshot.intake == Intake::Open).into());

        let queue = &snapshot.queue;
        self.queue_ready.set(gauge(queue.ready));
        self.queue_consumers.set(gauge(queue.consumers));
        let seconds = |at: Timestamp| at.as_duration().as_secs_f64();
        self.queue_looked_at
            .set(queue.looked_at.map_or(0.0, seconds));
        if let Some(age) = queue.oldest_age(Timestamp::now()) {
            let oldest = self.queue_oldest.get_or_create(&NoLabels {});
            oldest.set(age.as_secs_f64());
        }
        self.commands_in_hand.set(gauge(snapshot.load.commands));
        self.orders_in_hand.set(gauge(snapshot.load.orders));
        self.untold.set(gauge(snapshot.load.untold));
        self.oldest_command
            .set(snapshot.oldest_command.map_or(0.0, |age| age.as_secs_f64()));
        self.unsettled.set(gauge(snapshot.unsettled));
        self.kept.set(gauge(snapshot.kept));
        self.show_accounts(snapshot);
    }

    fn show_accounts(&self, snapshot: &Snapshot) {
        for (i, report) in snapshot.accounts.iter().enumerate() {
            let account: Arc<str> = report.account.as_str().into();
            let labels = AccountLabels {
                account: Arc::clone(&account),
            };
            let callable = health::describe(report).state != State::Failing;
            self.callable.get_or_create(&labels).set(callable.into());
            let waiting = self.waiting.get_or_create(&labels);
            waiting.set(gauge(report.waiting));
            let in_flight = self.calls_in_flight.get_or_create(&labels);
            in_flight.set(gauge(report.in_flight));
            if let Some(Some(offset)) = snapshot.clock_offsets.get(i) {
                self.clock_offset.get_or_create(&labels).set(*offset);
            }
            let cause = |cause| CauseLabels {
                account: Arc::clone(&account),
                cause,
            };
            let now = Pause::of(report);
            for pause in Pause::ALL {
                let paused = self.paused.get_or_create(&cause(pause.as_str()));
                paused.set((now == Some(pause)).into());
            }
            let Some(counts) = snapshot.counts.get(i) else {
                continue;
            };
            for (by, count) in [("joined", counts.joined), ("ledger", counts.from_ledger)] {
                let account = Arc::clone(&account);
                let saved = self.saved.get_or_create(&SavedLabels { account, by });
                saved.inner().store(count, Ordering::Relaxed);
            }
            for (why, count) in RetryCause::ALL.into_iter().zip(counts.retries) {
                let retries = self.retries.get_or_create(&cause(why.as_str()));
                retries.inner().store(count, Ordering::Relaxed);
            }
            for (why, count) in LookUpCause::ALL.into_iter().zip(counts.look_ups) {
                let look_ups = self.look_ups.get_or_create(&cause(why.as_str()));
                look_ups.inner().store(count, Ordering::Relaxed);
            }
        }
    }
}

fn messaging(
    destination: &Arc<str>,
    operation: &'static str,
    error: &'static str,
) -> MessagingLabels {
    MessagingLabels {
        messaging_system: SYSTEM,
        messaging_destination_name: Arc::clone(destination),
        messaging_operation_name: operation,
        error_type: error,
    }
}

/// A status that is not in use counts as the first of its class (RFC 9110, section 15), so that a
/// gateway gone wild makes no label after the other.
fn known_status(status: u16) -> u16 {
    match status {
        200 | 201 | 202 | 204 | 301 | 302 | 304 | 307 | 308 | 400 | 401 | 403 | 404 | 405 | 408
        | 413 | 414 | 421 | 429 | 431 | 500 | 501 | 502 | 503 | 504 => status,
        _ => status / 100 * 100,
    }
}

/// From a millisecond to over a minute: one call.
fn short_times() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 17))
}

/// From a millisecond to the 20 minutes that a command is held at most, and to a day.
fn long_times() -> Histogram {
    Histogram::new([
        0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
        300.0, 1200.0, 3600.0, 21600.0, 86400.0,
    ])
}

fn gauge(value: impl TryInto<i64>) -> i64 {
    value.try_into().unwrap_or(i64::MAX)
}
