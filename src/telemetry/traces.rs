//! Traces: spans to an OTLP collector, where `OTEL_EXPORTER_OTLP_ENDPOINT` names one.
//!
//! The standard's variables hold as the SDK knows them: the sampler, the batches and their queue, the
//! headers, the service's name. Spans go out over HTTP as protobuf, by the HTTP client that the
//! gateway's calls use. Whoever ends a span hands it to a bounded queue and goes on; what the queue
//! cannot take is dropped. A collector that is away is told of once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use opentelemetry::Context;
use opentelemetry::KeyValue;
use opentelemetry::trace::{
    Link, SpanBuilder, SpanContext, SpanId, TraceContextExt as _, TraceFlags, TraceId, TraceState,
    Tracer as _, TracerProvider as _,
};
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{ExporterBuildError, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider, Span, SpanData, SpanExporter};
use tokio::runtime::Handle;
use tracing::{info, warn};

use crate::rules::trace::TraceParent;

/// Where spans go. Without one of these, nothing of this costs anything.
const ENDPOINTS: [&str; 2] = [
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
];
/// In which form; only one is spoken here.
const PROTOCOLS: [&str; 2] = [
    "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
    "OTEL_EXPORTER_OTLP_PROTOCOL",
];
const PROTOCOL: &str = "http/protobuf";
/// In milliseconds, for one batch.
const TIMEOUTS: [&str; 2] = [
    "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT",
    "OTEL_EXPORTER_OTLP_TIMEOUT",
];
/// The standard's, where no variable says otherwise.
const TIMEOUT: Duration = Duration::from_secs(10);
/// A collector's answer is short; more of it is not read.
const ANSWER_MAX_BYTES: usize = 64 * 1024;
/// A collector that comes and goes is told of this often at most.
const TOLD_EVERY: Duration = Duration::from_secs(600);
/// At the stop, what is in the queue goes out within this time, or not at all.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// As whom spans are sent, where no variable says otherwise.
const SERVICE: &str = env!("CARGO_PKG_NAME");

/// Why spans cannot be sent, though somebody wants them.
#[derive(Debug, thiserror::Error)]
pub enum TracesError {
    /// Another protocol is wanted.
    #[error("{variable} is {found:?}, and only {PROTOCOL} is spoken here")]
    Protocol {
        /// Which says so.
        variable: &'static str,
        /// What it says.
        found: String,
    },
    /// The variables cannot be used. The exporter's own words show them, and a password may be in one.
    #[error(
        "an OTEL_EXPORTER_OTLP_ variable cannot be read; expected an endpoint like http://collector:4318"
    )]
    Exporter(#[from] ExporterBuildError),
    /// There can be no client.
    #[error("the HTTP client cannot be made: {0}")]
    Client(#[from] reqwest::Error),
}

/// What became of spans, for metrics.
#[derive(Debug, Default)]
pub struct Exports {
    ended: AtomicU64,
    exported: AtomicU64,
    failed: AtomicU64,
}

impl Exports {
    /// Spans that ended and are to be sent.
    pub fn ended(&self) -> u64 {
        self.ended.load(Ordering::Relaxed)
    }

    /// Spans that a collector took.
    pub fn exported(&self) -> u64 {
        self.exported.load(Ordering::Relaxed)
    }

    /// Spans that no collector took.
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }
}

/// Makes spans and sends them.
#[derive(Debug, Clone)]
pub struct Traces {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
    exports: Arc<Exports>,
}

impl Traces {
    /// As the process's environment says; nothing where it names no collector. To be called within
    /// the runtime that is to send.
    ///
    /// # Errors
    /// When a collector is named and the variables cannot be used.
    pub fn from_env() -> Result<Option<Self>, TracesError> {
        let is = |name, word: &str| set(&[name]).is_some_and(|(_, v)| v.eq_ignore_ascii_case(word));
        let Some((_, endpoint)) = set(&ENDPOINTS) else {
            return Ok(None);
        };
        if is("OTEL_SDK_DISABLED", "true") || is("OTEL_TRACES_EXPORTER", "none") {
            return Ok(None);
        }
        if let Some((variable, found)) = set(&PROTOCOLS).filter(|(_, found)| found != PROTOCOL) {
            return Err(TracesError::Protocol { variable, found });
        }
        let exports = Arc::new(Exports::default());
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_http()
            .with_http_client(Sender::new(&endpoint)?)
            .build()?;
        let exporter = Counted {
            exporter,
            exports: Arc::clone(&exports),
        };
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_resource(resource())
            .build();
        let tracer = provider.tracer(SERVICE);
        Ok(Some(Self {
            provider,
            tracer,
            exports,
        }))
    }

    /// What became of spans.
    pub fn exports(&self) -> Arc<Exports> {
        Arc::clone(&self.exports)
    }

    /// Begins a span under `parent`, or a trace.
    pub(super) fn begin(
        &self,
        span: SpanBuilder,
        parent: Option<TraceParent>,
        state: Option<&str>,
    ) -> Span {
        let mut context = Context::new();
        if let Some(parent) = parent {
            context = context.with_remote_span_context(context_of(parent, state));
        }
        self.tracer.build_with_context(span, &context)
    }

    /// Ends a span; only those that are recorded go out.
    pub(super) fn end(&self, mut span: Span) {
        use opentelemetry::trace::Span as _;
        if span.is_recording() {
            self.exports.ended.fetch_add(1, Ordering::Relaxed);
            span.end();
        }
    }

    /// Sends what is in the queue, if the collector takes it in time.
    pub async fn close(self) {
        let provider = self.provider;
        // The queue's thread sends through this runtime, so it must not be waited for on it.
        let closed = tokio::task::spawn_blocking(move || {
            // Whether it was sent was told by the sender.
            drop(provider.shutdown_with_timeout(CLOSE_TIMEOUT));
        });
        drop(closed.await);
    }
}

/// A link to a span.
pub(super) fn link(to: TraceParent) -> Link {
    Link::with_context(context_of(to, None))
}

/// As the SDK names it.
pub(super) fn context_of(step: TraceParent, state: Option<&str>) -> SpanContext {
    let state = state.and_then(|state| state.parse::<TraceState>().ok());
    SpanContext::new(
        TraceId::from_bytes(step.trace_id().to_be_bytes()),
        SpanId::from_bytes(step.span_id().to_be_bytes()),
        TraceFlags::new(step.flags()),
        true,
        state.unwrap_or_default(),
    )
}

/// As the header names it.
pub(super) fn step_of(span: &Span) -> Option<TraceParent> {
    use opentelemetry::trace::Span as _;
    let context = span.span_context();
    TraceParent::of(
        u128::from_be_bytes(context.trace_id().to_bytes()),
        u64::from_be_bytes(context.span_id().to_bytes()),
        context.trace_flags().to_u8(),
    )
}

/// The first of these variables that is set, and to what.
fn set(names: &[&'static str]) -> Option<(&'static str, String)> {
    names.iter().find_map(|name| {
        let value = std::env::var(name).ok()?;
        let value = value.trim();
        (!value.is_empty()).then(|| (*name, value.to_owned()))
    })
}

fn resource() -> Resource {
    let mut resource = Resource::builder();
    let named = Resource::builder()
        .build()
        .get(&"service.name".into())
        .is_some_and(|name| !name.as_str().starts_with("unknown_service"));
    if !named {
        resource = resource.with_service_name(SERVICE);
    }
    let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    resource.with_attribute(version).build()
}

/// Counts what the exporter does.
#[derive(Debug)]
struct Counted {
    exporter: opentelemetry_otlp::SpanExporter,
    exports: Arc<Exports>,
}

impl SpanExporter for Counted {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len() as u64;
        let exported = self.exporter.export(batch).await;
        let count = match exported {
            Ok(()) => &self.exports.exported,
            Err(_) => &self.exports.failed,
        };
        count.fetch_add(spans, Ordering::Relaxed);
        exported
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

/// Sends batches through the runtime of the worker; they come from a thread that has none.
#[derive(Debug)]
struct Sender {
    client: reqwest::Client,
    timeout: Duration,
    runtime: Handle,
    said: Mutex<Said>,
}

/// What was said of the collector.
#[derive(Debug, Default)]
struct Said {
    is_away: bool,
    told_at: Option<Instant>,
}

impl Sender {
    fn new(endpoint: &str) -> Result<Self, reqwest::Error> {
        let mut client = reqwest::Client::builder()
            .user_agent(concat!("wdt-cancel-worker/", env!("CARGO_PKG_VERSION")))
            .retry(reqwest::retry::never())
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .http1_only();
        if endpoint.to_ascii_lowercase().starts_with("http://") {
            // No certificate is needed, so none has to be there.
            client = client.tls_certs_only([]);
        }
        let millis = set(&TIMEOUTS).and_then(|(_, millis)| millis.parse().ok());
        Ok(Self {
            client: client.build()?,
            timeout: millis.map_or(TIMEOUT, Duration::from_millis),
            runtime: Handle::current(),
            said: Mutex::default(),
        })
    }

    /// Says once that the collector is away, and once that it is back.
    fn say(&self, failure: Option<&str>) {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let was_away = std::mem::replace(&mut said.is_away, failure.is_some());
        let is_new = said.told_at.is_none_or(|at| at.elapsed() >= TOLD_EVERY);
        match failure {
            Some(cause) if !was_away && is_new => {
                said.told_at = Some(Instant::now());
                warn!(
                    cause,
                    "traces cannot be exported; trying on, and spans are dropped meanwhile. Check OTEL_EXPORTER_OTLP_ENDPOINT"
                );
            }
            None if was_away => info!("traces are exported again"),
            Some(_) | None => {}
        }
    }
}

#[async_trait::async_trait]
impl HttpClient for Sender {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let request = post(self.client.clone(), request, self.timeout);
        let answer = match self.runtime.spawn(request).await {
            Ok(Ok(answer)) if answer.status().is_success() => Ok(answer),
            Ok(Ok(answer)) => {
                self.say(Some(&format!("HTTP {}", answer.status().as_u16())));
                return Ok(answer);
            }
            Ok(Err(error)) => Err(words(&error)),
            Err(_) => Err("the worker stops".to_owned()),
        };
        self.say(answer.as_ref().err().map(String::as_str));
        answer.map_err(Into::into)
    }
}

async fn post(
    client: reqwest::Client,
    request: Request<Bytes>,
    timeout: Duration,
) -> Result<Response<Bytes>, reqwest::Error> {
    let (head, body) = request.into_parts();
    let request = client
        .request(head.method, head.uri.to_string())
        .headers(head.headers)
        .timeout(timeout)
        .body(body);
    let mut answer = request.send().await?;
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await? {
        if body.len() + chunk.len() > ANSWER_MAX_BYTES {
            break;
        }
        body.extend_from_slice(&chunk);
    }
    let mut response = Response::new(body.into());
    *response.status_mut() = answer.status();
    *response.headers_mut() = answer.headers().clone();
    Ok(response)
}

/// The innermost cause: the outer ones name the address, in which a password may be.
fn words(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "no answer in time".to_owned();
    }
    let mut cause: Option<&(dyn std::error::Error + 'static)> = std::error::Error::source(error);
    while let Some(deeper) = cause.and_then(std::error::Error::source) {
        cause = Some(deeper);
    }
    cause.map_or_else(|| "the request failed".to_owned(), ToString::to_string)
}
