//! Counts for Prometheus. Labels come from closed sets and the settings' accounts, never from what
//! somebody sent.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use super::{Snapshot, health};
use crate::rules::admit::Admission;
use crate::rules::lane::Method;
use crate::rules::order::Outcome;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CommandLabels {
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EventLabels {
    account: String,
    outcome: &'static str,
    replayed: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallLabels {
    account: String,
    method: &'static str,
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MethodLabels {
    method: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AccountLabels {
    account: String,
}

/// The method's word in metrics and logs.
pub const fn method_word(method: Method) -> &'static str {
    match method {
        Method::Cancel => "cancel",
        Method::LookUp => "look_up",
        Method::Probe => "now",
    }
}

/// Everything that is counted.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    commands: Family<CommandLabels, Counter>,
    acknowledged: Counter,
    dead_lettered: Counter,
    events: Family<EventLabels, Counter>,
    calls: Family<CallLabels, Counter>,
    call_seconds: Family<MethodLabels, Histogram>,
    orders_per_call: Histogram,
    strangers: Family<AccountLabels, Counter>,
    commits: Counter<u64, AtomicU64>,
    committed: Counter<u64, AtomicU64>,
    commit_micros: Counter<u64, AtomicU64>,
    ready: Gauge,
    callable: Family<AccountLabels, Gauge>,
    paused: Family<AccountLabels, Gauge>,
    waiting: Family<AccountLabels, Gauge>,
    calls_in_flight: Family<AccountLabels, Gauge>,
    clock_offset: Family<AccountLabels, Gauge>,
    queue_ready: Gauge,
    commands_in_hand: Gauge,
    orders_in_hand: Gauge,
    untold: Gauge,
}

impl Metrics {
    /// All at zero.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("wdt");
        let call_seconds = Family::<MethodLabels, Histogram>::new_with_constructor(|| {
            Histogram::new(exponential_buckets(0.005, 2.0, 14))
        });
        let metrics = Self {
            commands: Family::default(),
            acknowledged: Counter::default(),
            dead_lettered: Counter::default(),
            events: Family::default(),
            calls: Family::default(),
            call_seconds,
            orders_per_call: Histogram::new([1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 50.0, 100.0, 1000.0]),
            strangers: Family::default(),
            commits: Counter::default(),
            committed: Counter::default(),
            commit_micros: Counter::default(),
            ready: Gauge::default(),
            callable: Family::default(),
            paused: Family::default(),
            waiting: Family::default(),
            calls_in_flight: Family::default(),
            clock_offset: Family::default(),
            queue_ready: Gauge::default(),
            commands_in_hand: Gauge::default(),
            orders_in_hand: Gauge::default(),
            untold: Gauge::default(),
            registry: Registry::default(),
        };
        registry.register(
            "commands",
            "Commands received, by how they were admitted",
            metrics.commands.clone(),
        );
        registry.register(
            "commands_acknowledged",
            "Commands acknowledged",
            metrics.acknowledged.clone(),
        );
        registry.register(
            "commands_dead_lettered",
            "Commands copied to the dead-letter queue",
            metrics.dead_lettered.clone(),
        );
        registry.register(
            "events",
            "Result events handed to the broker, by outcome",
            metrics.events.clone(),
        );
        registry.register(
            "calls",
            "Calls of the gateway that ended, by result",
            metrics.calls.clone(),
        );
        registry.register_with_unit(
            "call_duration",
            "Calls of the gateway",
            Unit::Seconds,
            metrics.call_seconds.clone(),
        );
        registry.register(
            "orders_per_call",
            "Orders in one cancel call",
            metrics.orders_per_call.clone(),
        );
        registry.register(
            "unasked_orders",
            "Orders in answers that nobody had asked for",
            metrics.strangers.clone(),
        );
        registry.register(
            "ledger_commits",
            "Groups the ledger made durable",
            metrics.commits.clone(),
        );
        registry.register(
            "ledger_requests",
            "Requests in those groups",
            metrics.committed.clone(),
        );
        registry.register(
            "ledger_commit_microseconds",
            "Time spent in those groups",
            metrics.commit_micros.clone(),
        );
        registry.register("ready", "1 when /readyz answers 200", metrics.ready.clone());
        registry.register(
            "account_callable",
            "1 when the account can be called",
            metrics.callable.clone(),
        );
        registry.register(
            "account_paused",
            "1 while an operator wants that the account is not called",
            metrics.paused.clone(),
        );
        registry.register(
            "orders_waiting",
            "Orders that wait to be sent or looked up",
            metrics.waiting.clone(),
        );
        registry.register(
            "calls_in_flight",
            "Calls without an answer yet",
            metrics.calls_in_flight.clone(),
        );
        registry.register_with_unit(
            "clock_offset",
            "The gateway's clock less ours",
            Unit::Seconds,
            metrics.clock_offset.clone(),
        );
        registry.register(
            "queue_ready",
            "Commands that wait in the broker, as last looked up",
            metrics.queue_ready.clone(),
        );
        registry.register(
            "commands_in_hand",
            "Commands taken and not acknowledged",
            metrics.commands_in_hand.clone(),
        );
        registry.register(
            "orders_in_hand",
            "Orders of those commands",
            metrics.orders_in_hand.clone(),
        );
        registry.register(
            "events_untold",
            "Events that no queue took; they are tried again",
            metrics.untold.clone(),
        );
        Self {
            registry,
            ..metrics
        }
    }

    /// A command was judged.
    pub fn admitted(&self, admission: &Admission) {
        let result = match admission {
            Admission::Accepted(_) => "accepted",
            Admission::Rejected(rejection) => rejection.reason.code.as_str(),
        };
        self.commands.get_or_create(&CommandLabels { result }).inc();
    }

    /// A command was acknowledged.
    pub fn acknowledged(&self, was_parked: bool) {
        self.acknowledged.inc();
        if was_parked {
            self.dead_lettered.inc();
        }
    }

    /// An event was handed to the broker.
    pub fn event(&self, account: &str, outcome: Outcome, replayed: bool) {
        let labels = EventLabels {
            account: account.to_owned(),
            outcome: outcome.as_str(),
            replayed: if replayed { "true" } else { "false" },
        };
        self.events.get_or_create(&labels).inc();
    }

    /// A call ended.
    pub fn call(
        &self,
        account: &str,
        method: Method,
        orders: usize,
        result: &'static str,
        duration: Duration,
    ) {
        let method_label = method_word(method);
        let labels = CallLabels {
            account: account.to_owned(),
            method: method_label,
            result,
        };
        self.calls.get_or_create(&labels).inc();
        self.call_seconds
            .get_or_create(&MethodLabels {
                method: method_label,
            })
            .observe(duration.as_secs_f64());
        if method == Method::Cancel {
            self.orders_per_call.observe(orders as f64);
        }
    }

    /// An answer named orders that nobody had asked for.
    pub fn strangers(&self, account: &str, orders: usize) {
        let account = account.to_owned();
        self.strangers
            .get_or_create(&AccountLabels { account })
            .inc_by(orders as u64);
    }

    /// What the ledger wrote so far: groups, requests, microseconds.
    pub fn ledger(&self, groups: u64, requests: u64, micros: u64) {
        self.commits.inner().store(groups, Ordering::Relaxed);
        self.committed.inner().store(requests, Ordering::Relaxed);
        self.commit_micros.inner().store(micros, Ordering::Relaxed);
    }

    /// The text that Prometheus reads.
    pub fn encode(&self, snapshot: &Snapshot) -> String {
        self.ready.set(health::report(snapshot).ready.into());
        self.queue_ready.set(gauge(snapshot.ready));
        self.commands_in_hand.set(gauge(snapshot.load.commands));
        self.orders_in_hand.set(gauge(snapshot.load.orders));
        self.untold.set(gauge(snapshot.load.untold));
        for (i, report) in snapshot.accounts.iter().enumerate() {
            let labels = AccountLabels {
                account: report.account.as_str().to_owned(),
            };
            let callable = health::describe(report).state != health::State::Failing;
            self.callable.get_or_create(&labels).set(callable.into());
            let paused = report.paused.is_some();
            self.paused.get_or_create(&labels).set(paused.into());
            self.waiting
                .get_or_create(&labels)
                .set(gauge(report.waiting));
            self.calls_in_flight
                .get_or_create(&labels)
                .set(gauge(report.in_flight));
            if let Some(Some(offset)) = snapshot.clock_offsets.get(i) {
                self.clock_offset.get_or_create(&labels).set(*offset);
            }
        }
        let mut text = String::new();
        if let Err(error) = encode(&mut text, &self.registry) {
            // Only a full memory could be the cause; say so rather than serve half a page.
            let _ = write!(text, "# {error}");
        }
        text
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

fn gauge(value: impl TryInto<i64>) -> i64 {
    value.try_into().unwrap_or(i64::MAX)
}
