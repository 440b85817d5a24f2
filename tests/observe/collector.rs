//! A collector of traces: takes OTLP over HTTP in protobuf, as the standard has it, and keeps it.

use std::collections::BTreeMap;
use std::io;
use std::net::TcpListener as StdListener;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::support::eventually::eventually_ok;

/// A request's head.
const MAX_HEAD: usize = 16 * 1024;
/// A batch of 512 spans has some 300 KiB.
const MAX_BODY: usize = 8 * 1024 * 1024;
/// What one answer says.
const TAKEN: &[u8] =
    b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n";

/// A span, as it came.
#[derive(Debug, Clone)]
pub struct Got {
    pub service: String,
    pub name: String,
    /// OTLP's number: 3 client, 5 consumer.
    pub kind: i32,
    pub trace_id: String,
    pub span_id: String,
    /// Empty at the root.
    pub parent: String,
    /// Trace and span id of each.
    pub links: Vec<(String, String)>,
    pub attributes: BTreeMap<String, Value>,
    /// 2 is an error.
    pub status: i32,
    pub nanoseconds: u64,
}

#[derive(Debug, Default)]
struct Kept {
    spans: Vec<Got>,
    heads: Vec<String>,
    bytes: Vec<u8>,
}

/// See the module. It ends with its value.
pub struct Collector {
    port: u16,
    kept: Arc<Mutex<Kept>>,
    task: JoinHandle<()>,
}

impl Collector {
    /// Listens on a free port of this machine.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let kept = Arc::new(Mutex::new(Kept::default()));
        let shared = kept.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let kept = shared.clone();
                tokio::spawn(async move { drop(serve(stream, &kept).await) });
            }
        });
        Self { port, kept, task }
    }

    /// For `OTEL_EXPORTER_OTLP_ENDPOINT`.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Every span so far.
    pub fn spans(&self) -> Vec<Got> {
        self.kept.lock().expect("the spans").spans.clone()
    }

    /// The heads of the requests, and all bodies.
    pub fn raw(&self) -> (Vec<String>, Vec<u8>) {
        let kept = self.kept.lock().expect("the spans");
        (kept.heads.clone(), kept.bytes.clone())
    }

    /// Waits until `find` finds among the spans what it looks for.
    pub async fn until<T>(
        &self,
        limit: Duration,
        what: &str,
        find: impl Fn(&[Got]) -> Option<T>,
    ) -> T {
        eventually_ok(limit, what, async || {
            let spans = self.spans();
            find(&spans).ok_or(spans)
        })
        .await
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A port that takes connections, and reads and says nothing.
pub fn mute() -> (StdListener, String) {
    let listener = StdListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    (listener, format!("http://127.0.0.1:{port}"))
}

async fn serve(mut stream: TcpStream, kept: &Mutex<Kept>) -> io::Result<()> {
    let mut bytes = Vec::new();
    loop {
        let end = loop {
            if let Some(end) = find(&bytes, b"\r\n\r\n") {
                break end;
            }
            if bytes.len() > MAX_HEAD || stream.read_buf(&mut bytes).await? == 0 {
                return Ok(());
            }
        };
        let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
        let mut lines = head.lines();
        let length = lines
            .find_map(|line| line.strip_prefix("content-length:"))
            .and_then(|length| length.trim().parse().ok())
            .filter(|length: &usize| *length <= MAX_BODY)
            .ok_or(io::ErrorKind::InvalidData)?;
        let body = end + 4..end + 4 + length;
        while bytes.len() < body.end {
            if stream.read_buf(&mut bytes).await? == 0 {
                return Ok(());
            }
        }
        keep(kept, &head, &bytes[body.clone()])?;
        bytes.drain(..body.end);
        stream.write_all(TAKEN).await?;
    }
}

fn keep(kept: &Mutex<Kept>, head: &str, body: &[u8]) -> io::Result<()> {
    let request = ExportTraceServiceRequest::decode(body).map_err(io::Error::other)?;
    let mut kept = kept.lock().expect("the spans");
    kept.heads.push(head.to_owned());
    kept.bytes.extend_from_slice(body);
    for resource in request.resource_spans {
        let attributes = resource.resource.map(|r| r.attributes).unwrap_or_default();
        let service = values(&attributes)["service.name"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        let spans = resource.scope_spans.into_iter().flat_map(|s| s.spans);
        kept.spans.extend(spans.map(|span| got(&service, span)));
    }
    Ok(())
}

fn got(service: &str, span: Span) -> Got {
    Got {
        service: service.to_owned(),
        name: span.name,
        kind: span.kind,
        trace_id: hex(&span.trace_id),
        span_id: hex(&span.span_id),
        parent: hex(&span.parent_span_id),
        links: span
            .links
            .iter()
            .map(|link| (hex(&link.trace_id), hex(&link.span_id)))
            .collect(),
        attributes: values(&span.attributes),
        status: span.status.map_or(0, |status| status.code),
        nanoseconds: span.end_time_unix_nano - span.start_time_unix_nano,
    }
}

fn values(attributes: &[KeyValue]) -> BTreeMap<String, Value> {
    let pairs = attributes.iter();
    pairs
        .map(|kv| (kv.key.clone(), value(kv.value.as_ref())))
        .collect()
}

fn value(any: Option<&AnyValue>) -> Value {
    match any.and_then(|any| any.value.as_ref()) {
        Some(Any::StringValue(text)) => json!(text),
        Some(Any::BoolValue(it)) => json!(it),
        Some(Any::IntValue(number)) => json!(number),
        Some(Any::DoubleValue(number)) => json!(number),
        Some(Any::ArrayValue(list)) => list.values.iter().map(|any| value(Some(any))).collect(),
        _ => Value::Null,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn find(bytes: &[u8], part: &[u8]) -> Option<usize> {
    bytes.windows(part.len()).position(|window| window == part)
}
