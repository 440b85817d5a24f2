//! The story of each command and each call, for people: one line in the log when it ends, and a span.
//!
//! A command's span is the step of its trace that its events name, so whoever reads an event finds
//! what led to it. A call has a span of its own, in the trace of the oldest command that waits for it,
//! and links to the spans of all of them. Without a collector a command has the ids alone.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use opentelemetry::trace::{Span as _, SpanBuilder, SpanKind, Status};
use opentelemetry::{Array, KeyValue, StringValue, Value};
use opentelemetry_sdk::trace::Span;
use tracing::{Level, enabled, info};

use super::traces::{self, Traces};
use crate::rules::admit::{Admission, Envelope, RawProperties};
use crate::rules::desk::{CallId, Parking, Telling, Ticket};
use crate::rules::lane::Method;
use crate::rules::order::{OrderNo, Outcome};
use crate::rules::time::Now;
use crate::rules::trace::TraceParent;

/// Orders named in one line: as many lines as it takes tell of a longer command, for what collects
/// logs cuts lines of more than 16 KiB.
const ORDERS_A_LINE: usize = 100;
/// Orders named in a span.
const ORDERS_A_SPAN: usize = 100;

/// A delivery, as it comes.
#[derive(Debug, Clone, Copy)]
pub struct Arrival {
    /// Its number.
    pub ticket: Ticket,
    /// The broker gave it to somebody before.
    pub redelivered: bool,
    /// Its body's.
    pub bytes: usize,
    /// By its publisher's word.
    pub published: Option<Timestamp>,
}

/// Who is called.
#[derive(Debug, Clone, Copy)]
pub struct Callee<'a> {
    /// Whose call it is.
    pub account: &'a str,
    /// What for.
    pub method: Method,
    /// The method, as the gateway has it.
    pub api: &'static str,
    /// Where.
    pub url: ServerUrl<'a>,
}

/// A server's address, by its parts.
#[derive(Debug, Clone, Copy)]
pub struct ServerUrl<'a> {
    /// `http` or `https`.
    pub scheme: &'a str,
    /// Its name or number.
    pub host: &'a str,
    /// Its port.
    pub port: u16,
    /// Without a query, in which the signature would be.
    pub path: &'a str,
}

/// How a call ended.
#[derive(Debug, Clone, Copy)]
pub struct Answered<'a> {
    /// The orders in it.
    pub orders: &'a [OrderNo],
    /// In the gateway's or our words.
    pub result: &'a str,
    /// In one of few words; `ok` where the gateway's status is 0.
    pub class: &'static str,
    /// HTTP's, where one came.
    pub http_status: Option<u16>,
    /// From before the connection to the last byte.
    pub duration: Duration,
}

/// An event that was confirmed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// The account, as the settings know it; else `_`.
    pub account: Arc<str>,
    /// How it ended.
    pub outcome: Outcome,
    /// From the command's arrival here.
    pub since_arrival: Duration,
    /// From when it was published, where it says.
    pub since_published: Option<Duration>,
}

/// How a delivery ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Acknowledged,
    Returned,
}

/// See the module.
#[derive(Debug)]
pub struct Spans {
    traces: Option<Traces>,
    chance: fastrand::Rng,
    queue: Arc<str>,
    /// Stands for an account that is not known.
    nobody: Arc<str>,
    commands: HashMap<Ticket, Command>,
    calls: HashMap<CallId, (Span, BTreeSet<Ticket>)>,
}

/// A command in hand.
#[derive(Debug)]
struct Command {
    began: Now,
    arrival: Arrival,
    step: TraceParent,
    /// Elsewhere, for most have none and it is large.
    span: Option<Box<Span>>,
    /// As the settings know it; else `_`.
    account: Arc<str>,
    envelope: Option<Arc<Envelope>>,
    total: usize,
    /// What is told of each entry, as far as it is.
    entries: Vec<Option<Entry>>,
    dead_reason: Option<&'static str>,
}

#[derive(Debug)]
struct Entry {
    order_no: Option<Arc<str>>,
    outcome: Outcome,
    reason: Option<&'static str>,
}

impl Spans {
    /// Of what comes from `queue`. `chance` makes ids where no collector is named.
    pub fn new(traces: Option<Traces>, queue: &str, chance: fastrand::Rng) -> Self {
        Self {
            traces,
            chance,
            queue: queue.into(),
            nobody: "_".into(),
            commands: HashMap::new(),
            calls: HashMap::new(),
        }
    }

    /// A delivery is opened. Its step in its trace goes into `properties`, in place of the one that it
    /// came with; a state without a trace is dropped.
    pub fn arrived(&mut self, now: Now, arrival: Arrival, properties: &mut RawProperties) {
        let parent = properties.traceparent;
        if parent.is_none() {
            properties.tracestate = None;
        }
        let span = self.traces.as_ref().map(|traces| {
            let mut attributes = vec![
                KeyValue::new("messaging.system", "rabbitmq"),
                KeyValue::new("messaging.operation.name", "process"),
                KeyValue::new("messaging.operation.type", "process"),
                KeyValue::new("messaging.destination.name", Arc::clone(&self.queue)),
                KeyValue::new("messaging.message.body.size", int(arrival.bytes)),
            ];
            if arrival.redelivered {
                attributes.push(KeyValue::new("wdt.redelivered", true));
            }
            let span = SpanBuilder::from_name(format!("process {}", self.queue))
                .with_kind(SpanKind::Consumer)
                .with_attributes(attributes);
            traces.begin(span, parent, properties.tracestate.as_deref())
        });
        let step = span.as_ref().and_then(traces::step_of);
        let step = step.unwrap_or_else(|| {
            let (trace, span) = (self.chance.u128(..), self.chance.u64(..));
            parent.map_or_else(|| TraceParent::root(trace, span), |p| p.child(span))
        });
        properties.traceparent = Some(step);
        self.commands.insert(
            arrival.ticket,
            Command {
                began: now,
                arrival,
                step,
                span: span.map(Box::new),
                account: Arc::clone(&self.nobody),
                envelope: None,
                total: 0,
                entries: Vec::new(),
                dead_reason: None,
            },
        );
    }

    /// It was judged.
    pub fn admitted(&mut self, ticket: Ticket, admission: &Admission) {
        let Some(command) = self.commands.get_mut(&ticket) else {
            return;
        };
        command.envelope = Some(Arc::clone(admission.envelope()));
        match admission {
            Admission::Accepted(accepted) => {
                command.account = accepted.account.as_str().into();
                command.total = accepted.entries.len();
            }
            Admission::Rejected(rejection) => {
                if let Some(account) = &rejection.account {
                    command.account = account.as_str().into();
                }
                command.total = rejection.orders.len();
            }
        }
    }

    /// An event goes out, maybe not for the first time.
    pub fn tells(&mut self, telling: &Telling) {
        let Some(command) = self.commands.get_mut(&telling.ticket) else {
            return;
        };
        let event = &telling.event;
        if command.entries.is_empty() {
            command.entries.resize_with(event.total, || None);
        }
        if let Some(entry) = command.entries.get_mut(telling.place) {
            *entry = Some(Entry {
                order_no: event.order_no.clone(),
                outcome: event.ending.outcome(),
                reason: event.ending.reason().map(|reason| reason.code.as_str()),
            });
        }
    }

    /// An event was confirmed.
    pub fn told(&self, now: Now, ticket: Ticket, place: usize) -> Option<Told> {
        let command = self.commands.get(&ticket)?;
        let entry = command.entries.get(place)?.as_ref()?;
        let published = command.arrival.published;
        Some(Told {
            account: Arc::clone(&command.account),
            outcome: entry.outcome,
            since_arrival: now.mono.since(command.began.mono),
            // A publisher's clock may be ahead of ours.
            since_published: published
                .map(|at| now.wall.duration_since(at).try_into().unwrap_or_default()),
        })
    }

    /// A copy goes to the dead-letter queue.
    pub fn parks(&mut self, parking: &Parking) {
        if let Some(command) = self.commands.get_mut(&parking.ticket) {
            command.dead_reason = Some(parking.why);
        }
    }

    /// It is acknowledged. How long it was in hand, and why it went to the dead-letter queue, if it
    /// did.
    pub fn acknowledged(
        &mut self,
        now: Now,
        ticket: Ticket,
    ) -> Option<(Duration, Option<&'static str>)> {
        let command = self.commands.remove(&ticket)?;
        let in_hand = now.mono.since(command.began.mono);
        let dead_reason = command.dead_reason;
        self.end(command, in_hand, End::Acknowledged);
        Some((in_hand, dead_reason))
    }

    /// It goes back to the queue.
    pub fn returned(&mut self, now: Now, ticket: Ticket) {
        if let Some(command) = self.commands.remove(&ticket) {
            let in_hand = now.mono.since(command.began.mono);
            self.end(command, in_hand, End::Returned);
        }
    }

    /// The broker gives all of them out again; the session's end is told by whoever met it.
    pub fn session_lost(&mut self) {
        for (_, command) in self.commands.drain() {
            if let (Some(traces), Some(mut span)) = (&self.traces, command.span) {
                span.set_status(Status::error("the session with the broker was lost"));
                traces.end(*span);
            }
        }
    }

    fn end(&self, command: Command, in_hand: Duration, end: End) {
        if enabled!(Level::INFO) {
            command.log(in_hand, end);
        }
        if let Some(traces) = &self.traces {
            command.trace(traces, end);
        }
    }

    // ---- calls ----

    /// A call begins, for which these deliveries wait.
    pub fn call_begins(
        &mut self,
        call: CallId,
        callee: Callee<'_>,
        waits: impl FnOnce() -> Vec<Ticket>,
    ) {
        let Some(traces) = &self.traces else {
            return;
        };
        let waits = waits();
        let steps: Vec<TraceParent> = waits
            .iter()
            .filter_map(|ticket| self.commands.get(ticket))
            .map(|command| command.step)
            .collect();
        let url = callee.url;
        let attributes = vec![
            KeyValue::new("http.request.method", "POST"),
            KeyValue::new("server.address", url.host.to_owned()),
            KeyValue::new("server.port", i64::from(url.port)),
            // The query holds the signature.
            KeyValue::new(
                "url.full",
                format!("{}://{}:{}{}", url.scheme, url.host, url.port, url.path),
            ),
            KeyValue::new("wdt.account", callee.account.to_owned()),
            KeyValue::new("wdt.method", callee.api),
        ];
        let span = SpanBuilder::from_name(format!("POST {}", callee.api))
            .with_kind(SpanKind::Client)
            .with_attributes(attributes)
            .with_links(steps.iter().copied().map(traces::link).collect());
        // Recorded if any of them is.
        let parent = steps
            .iter()
            .find(|step| step.is_sampled())
            .or(steps.first());
        let span = traces.begin(span, parent.copied(), None);
        self.calls.insert(call, (span, waits.into_iter().collect()));
    }

    /// A call ended, and these deliveries waited for it in the end.
    pub fn call_ended(
        &mut self,
        call: CallId,
        callee: Callee<'_>,
        answered: Answered<'_>,
        waits: impl FnOnce() -> Vec<Ticket>,
    ) {
        let traced = self.calls.remove(&call);
        if enabled!(Level::INFO) {
            let step = traced.as_ref().and_then(|(span, _)| traces::step_of(span));
            log_call(callee, answered, step);
        }
        let (Some(traces), Some((mut span, known))) = (&self.traces, traced) else {
            return;
        };
        for ticket in waits().into_iter().filter(|ticket| !known.contains(ticket)) {
            if let Some(command) = self.commands.get(&ticket) {
                span.add_link(traces::context_of(command.step, None), Vec::new());
            }
        }
        span.set_attribute(KeyValue::new("wdt.orders", int(answered.orders.len())));
        let named = answered.orders.iter().take(ORDERS_A_SPAN);
        let named: Vec<StringValue> = named.map(|no| no.as_str().to_owned().into()).collect();
        if !named.is_empty() {
            let named = Value::Array(Array::String(named));
            span.set_attribute(KeyValue::new("wdt.order_nos", named));
        }
        if let Some(status) = answered.http_status {
            span.set_attribute(KeyValue::new(
                "http.response.status_code",
                i64::from(status),
            ));
        }
        if answered.class != "ok" {
            span.set_attribute(KeyValue::new("error.type", answered.class));
            span.set_status(Status::error(answered.result.to_owned()));
        }
        traces.end(span);
    }

    /// Sends the spans that are left.
    pub async fn close(self) {
        if let Some(traces) = self.traces {
            traces.close().await;
        }
    }
}

fn log_call(callee: Callee<'_>, answered: Answered<'_>, step: Option<TraceParent>) {
    let order_nos =
        (!answered.orders.is_empty()).then(|| joined(answered.orders.iter().map(OrderNo::as_str)));
    let trace_id = step.map(|step| format!("{:032x}", step.trace_id()));
    let span_id = step.map(|step| format!("{:016x}", step.span_id()));
    info!(
        account = callee.account,
        method = callee.method.as_str(),
        orders = answered.orders.len(),
        order_nos,
        result = answered.result,
        http.response.status_code = answered.http_status,
        duration_ms = millis(answered.duration),
        trace_id,
        span_id,
        "call"
    );
}

impl Command {
    fn log(&self, in_hand: Duration, end: End) {
        let command_id = self.envelope.as_ref().map(|e| e.command_id.as_str());
        let end = match end {
            End::Acknowledged if self.dead_reason.is_some() => "dead_lettered",
            End::Acknowledged => "acknowledged",
            End::Returned => "returned",
        };
        let parts = self.entries.len().div_ceil(ORDERS_A_LINE).max(1);
        for part in 0..parts {
            let named = self.entries.chunks(ORDERS_A_LINE).nth(part);
            let named = || named.unwrap_or_default().iter().flatten();
            let of = |outcome| {
                let entries = named().filter(|entry| entry.outcome == outcome);
                let text = joined(entries.map(|e| e.order_no.as_deref().unwrap_or("-")));
                (!text.is_empty()).then_some(text)
            };
            let reasons: BTreeSet<&str> = named().filter_map(|entry| entry.reason).collect();
            let reasons = (!reasons.is_empty()).then(|| joined(reasons.into_iter()));
            info!(
                command_id,
                account = &*self.account,
                end,
                dead_reason = self.dead_reason,
                orders = self.total,
                part = (parts > 1).then_some(part + 1),
                parts = (parts > 1).then_some(parts),
                cancelled = of(Outcome::Cancelled),
                refused = of(Outcome::Refused),
                rejected = of(Outcome::Rejected),
                expired = of(Outcome::Expired),
                failed = of(Outcome::Failed),
                unknown = of(Outcome::Unknown),
                reasons,
                redelivered = self.arrival.redelivered.then_some(true),
                duration_ms = millis(in_hand),
                trace_id = format_args!("{:032x}", self.step.trace_id()),
                span_id = format_args!("{:016x}", self.step.span_id()),
                "command"
            );
        }
    }

    fn trace(self, traces: &Traces, end: End) {
        let Some(mut span) = self.span else {
            return;
        };
        if let Some(envelope) = &self.envelope {
            let id = envelope.command_id.as_str().to_owned();
            span.set_attribute(KeyValue::new("messaging.message.id", id));
            let conversation = Arc::clone(&envelope.correlation_id);
            span.set_attribute(KeyValue::new(
                "messaging.message.conversation_id",
                conversation,
            ));
        }
        span.set_attribute(KeyValue::new("wdt.account", self.account));
        span.set_attribute(KeyValue::new("wdt.orders", int(self.total)));
        let mut open = 0;
        for outcome in Outcome::ALL {
            let entries = self.entries.iter().flatten();
            let count = entries.filter(|entry| entry.outcome == outcome).count();
            if count > 0 {
                let name = format!("wdt.{}", outcome.as_str());
                span.set_attribute(KeyValue::new(name, int(count)));
            }
            if matches!(outcome, Outcome::Failed | Outcome::Unknown) {
                open += count;
            }
        }
        match (end, self.dead_reason) {
            (End::Returned, _) => {
                span.set_attribute(KeyValue::new("wdt.returned", true));
            }
            (End::Acknowledged, Some(reason)) => {
                span.set_attribute(KeyValue::new("error.type", reason));
                let words = match open {
                    0 => "dead-lettered".to_owned(),
                    open => format!("{open} orders ended as failed or unknown"),
                };
                span.set_status(Status::error(words));
            }
            (End::Acknowledged, None) => {}
        }
        traces.end(*span);
    }
}

fn joined<'a>(mut words: impl Iterator<Item = &'a str>) -> String {
    let mut text = words.next().unwrap_or_default().to_owned();
    for word in words {
        // To a String this cannot fail.
        let _ = write!(text, ", {word}");
    }
    text
}

fn int(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
