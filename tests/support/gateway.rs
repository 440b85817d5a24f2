//! A double of the gateway, scripted by the test, down to the bytes on the wire.
//!
//! It has its own reader of HTTP, its own URL decoding and its own signature, all from what is
//! known of the platform. A request that the platform would not understand is a *fault*: it is
//! refused, recorded, and fails the test when the gateway is dropped, unless the test has taken it
//! with [`Gateway::take_faults`]. So no test has to remember to ask.
//!
//! It runs on a thread of its own: a test that blocks for a moment does not slow the gateway down,
//! and arrival times are true.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, mpsc as blocking};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use md5::{Digest, Md5};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::process::free_port;

/// Cancels stock-out documents.
pub const CANCEL: &str = "wms.stockother.Out.cancelOrder";
/// Looks one up.
pub const QUERY: &str = "wms.stockother.OutQuery.queryWithDetail";
/// Tells the server's time.
pub const NOW: &str = "system.Core.now";

/// 2012-01-01 00:00 in Beijing, in unix seconds: the gateway's time starts there.
const EPOCH: i64 = 1_325_347_200;
/// How far a timestamp may be off, in seconds.
const CLOCK_TOLERANCE: i64 = 120;
/// A request line and headers. The signed URL has some 300 bytes.
const MAX_HEAD: usize = 64 * 1024;
/// A body. A list of 10,000 long order numbers has 1.3 MiB.
const MAX_BODY: usize = 4 * 1024 * 1024;
/// Requests kept for the test to look at; more than this is a loop that has run away.
const MAX_REQUESTS: usize = 200_000;

/// A seller's credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    pub sid: String,
    pub key: String,
    pub secret: String,
    pub salt: String,
}

impl Account {
    /// The credentials that go with a name, each different for each name.
    pub fn named(name: &str) -> Self {
        Self {
            sid: format!("sid-{name}"),
            key: format!("key-{name}"),
            secret: format!("secret-{name}"),
            salt: format!("salt-{name}"),
        }
    }

    /// As the platform hands it out and as the settings take it.
    pub fn app_secret(&self) -> String {
        format!("{}:{}", self.secret, self.salt)
    }
}

/// One request as it arrived.
#[derive(Debug, Clone)]
pub struct Request {
    /// From 0, in the order of arrival.
    pub number: usize,
    /// Which connection it came by, from 0: equal for two requests when it was reused.
    pub connection: usize,
    pub at: Instant,
    /// The gateway's time at that moment, in seconds of its own epoch.
    pub gateway_time: i64,
    pub path: String,
    /// Decoded, in the order on the wire.
    pub query: Vec<(String, String)>,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Request {
    /// A query parameter; empty when it is absent.
    pub fn param(&self, name: &str) -> &str {
        find(&self.query, name)
    }

    /// A header, by its name in lower case; empty when it is absent.
    pub fn header(&self, name: &str) -> &str {
        find(&self.headers, name)
    }

    /// The called method of the gateway, not of HTTP.
    pub fn method(&self) -> &str {
        self.param("method")
    }

    /// The body as JSON; null when it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    /// The order numbers in a cancel's list, or the one that is looked up.
    pub fn orders(&self) -> Vec<String> {
        let body = self.json();
        match self.method() {
            CANCEL => texts(&body[0]),
            QUERY => texts(&json!([body[0]["other_out_no"]])),
            _ => Vec::new(),
        }
    }
}

fn find<'a>(pairs: &'a [(String, String)], name: &str) -> &'a str {
    let found = pairs.iter().find(|(n, _)| n == name);
    found.map_or("", |(_, value)| value)
}

fn texts(list: &Value) -> Vec<String> {
    let list = list.as_array().map_or(&[][..], Vec::as_slice);
    list.iter()
        .filter_map(|text| Some(text.as_str()?.to_string()))
        .collect()
}

/// What the gateway does with a request that it understood.
#[derive(Debug, Clone)]
pub enum Answer {
    /// HTTP 200 with this JSON.
    Json(Value),
    /// HTTP of any kind. `content-length` is added; `connection: close` closes afterwards.
    Raw {
        status: u16,
        headers: Vec<(String, String)>,
        body: Vec<u8>,
    },
    /// HTTP 200 that promises this JSON, sends half of it and closes.
    CutBody(Value),
    /// HTTP 200 that promises this JSON, sends half of it and stays silent.
    StalledBody(Value),
    /// Closes without a byte.
    Close,
    /// Closes with a TCP reset.
    Reset,
    /// Says nothing for as long as the client waits.
    Hang,
    /// Answers later. What the handler did was done on arrival.
    Delay(Duration, Box<Answer>),
    /// Answers when the test opens the gate. What the handler did was done on arrival.
    Held(Gate, Box<Answer>),
    /// HTTP 200 with a chunked body that is none.
    ChunkedGarbage,
    /// These bytes, whatever they are, and then a close.
    Bytes(Vec<u8>),
    /// Bytes without an end, until the client goes away.
    Endless(Endless),
}

/// What never ends: the head once, then the piece again and again.
#[derive(Debug, Clone)]
pub struct Endless {
    pub head: String,
    pub piece: Vec<u8>,
    /// Before each piece.
    pub pause: Duration,
    /// How many bytes the network has taken.
    pub taken: Arc<AtomicUsize>,
}

impl Endless {
    /// As fast as the client reads.
    pub fn new(head: &str, piece: impl Into<Vec<u8>>) -> Self {
        Self {
            head: head.into(),
            piece: piece.into(),
            pause: Duration::ZERO,
            taken: Arc::default(),
        }
    }
}

impl Answer {
    /// `{"status": …, "message": …}`.
    pub fn status(status: i64, message: &str) -> Self {
        Self::Json(json!({ "status": status, "message": message }))
    }

    /// A cancel's answer: these were cancelled, and these not, each with its `err_msg`.
    pub fn orders<S: AsRef<str>>(cancelled: &[S], refused: &[(S, S)]) -> Self {
        let cancelled: Vec<&str> = cancelled.iter().map(AsRef::as_ref).collect();
        let refused: Vec<Value> = refused
            .iter()
            .map(|(no, text)| json!({ "order_no": no.as_ref(), "err_msg": text.as_ref() }))
            .collect();
        Self::Json(json!({
            "status": 0,
            "data": { "success_data": cancelled, "error_data": refused },
        }))
    }

    /// HTTP of this status with this body, as a proxy on the way would.
    pub fn http(status: u16, content_type: &str, body: &str) -> Self {
        Self::Raw {
            status,
            headers: vec![("content-type".into(), content_type.into())],
            body: body.into(),
        }
    }

    /// This answer, later.
    pub fn after(self, delay: Duration) -> Self {
        Self::Delay(delay, Box::new(self))
    }

    /// This answer, when the test opens the gate.
    pub fn behind(self, gate: &Gate) -> Self {
        Self::Held(gate.clone(), Box::new(self))
    }
}

/// Keeps answers back until it is opened. Clones are the same gate.
#[derive(Debug, Clone)]
pub struct Gate(watch::Sender<bool>);

impl Gate {
    /// A shut one.
    pub fn shut() -> Self {
        Self(watch::Sender::new(false))
    }

    /// Lets through what waits and what comes later.
    pub fn open(&self) {
        self.0.send_replace(true);
    }

    async fn opened(&self) {
        // The sender lives as long as this clone of it, so there is no error.
        let _ = self.0.subscribe().wait_for(|open| *open).await;
    }
}

type Handler = Box<dyn Fn(&Request) -> Answer + Send + Sync>;

/// The running double.
pub struct Gateway {
    port: u16,
    shared: Arc<Shared>,
    control: Option<mpsc::UnboundedSender<Control>>,
    thread: Option<JoinHandle<()>>,
}

/// An order to the gateway's thread, which says when it is done.
enum Control {
    Down(blocking::Sender<()>),
    Up(blocking::Sender<()>),
}

struct Shared {
    accounts: Vec<Account>,
    handler: Handler,
    /// Seconds that the gateway's clock is ahead of ours.
    clock_ahead: AtomicI64,
    connections: AtomicUsize,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    requests: Vec<Request>,
    faults: Vec<String>,
    /// Calls under way and the most there ever were, by sid.
    in_flight: BTreeMap<String, (usize, usize)>,
}

impl Gateway {
    /// A gateway that knows the account `default`.
    pub fn start(handler: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        Self::with_accounts(vec![Account::named("default")], handler)
    }

    /// A gateway that knows these accounts.
    pub fn with_accounts(
        accounts: Vec<Account>,
        handler: impl Fn(&Request) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let shared = Arc::new(Shared {
            accounts,
            handler: Box::new(handler),
            clock_ahead: AtomicI64::new(0),
            connections: AtomicUsize::new(0),
            seen: Mutex::default(),
        });
        let port = free_port();
        let (control, orders) = mpsc::unbounded_channel();
        let for_thread = shared.clone();
        let thread = std::thread::Builder::new()
            .name("gateway".into())
            .spawn(move || {
                tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .expect("a runtime for the gateway")
                    .block_on(run(port, for_thread, orders));
            })
            .expect("a thread for the gateway");
        let gateway = Self {
            port,
            shared,
            control: Some(control),
            thread: Some(thread),
        };
        gateway.up();
        gateway
    }

    /// What `api.url` takes.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/openapi", self.port)
    }

    /// From now on connections are refused; those there are, are closed.
    pub fn down(&self) {
        self.order(Control::Down);
    }

    /// Listens again, on the same port.
    pub fn up(&self) {
        self.order(Control::Up);
    }

    fn order(&self, order: impl FnOnce(blocking::Sender<()>) -> Control) {
        let (done, wait) = blocking::channel();
        let control = self.control.as_ref().expect("the gateway runs");
        control.send(order(done)).expect("the gateway runs");
        wait.recv_timeout(Duration::from_secs(10))
            .expect("the gateway obeys");
    }

    /// Sets the gateway's clock this many seconds ahead of ours (behind, when negative).
    pub fn set_clock_ahead(&self, seconds: i64) {
        self.shared.clock_ahead.store(seconds, Ordering::SeqCst);
    }

    /// The gateway's time, in seconds of its own epoch.
    pub fn now(&self) -> i64 {
        self.shared.now()
    }

    /// Every request so far that could be read, refused ones included.
    pub fn requests(&self) -> Vec<Request> {
        self.shared.seen().requests.clone()
    }

    /// The requests for one method.
    pub fn calls(&self, method: &str) -> Vec<Request> {
        let mut calls = self.requests();
        calls.retain(|r| r.method() == method);
        calls
    }

    /// The most calls that arrived within any stretch of this length, from one sid or from all.
    pub fn most_calls_within(&self, window: Duration, sid: Option<&str>) -> usize {
        let seen = self.shared.seen();
        let times: Vec<Instant> = seen
            .requests
            .iter()
            .filter(|r| sid.is_none_or(|sid| r.param("sid") == sid))
            .map(|r| r.at)
            .collect();
        most_within(window, &times)
    }

    /// The most calls that were ever under way at once for one sid: arrived, and not answered.
    pub fn most_in_flight(&self, sid: &str) -> usize {
        let seen = self.shared.seen();
        seen.in_flight.get(sid).map_or(0, |(_, most)| *most)
    }

    /// The longest list in a cancel call so far.
    pub fn longest_list(&self) -> usize {
        let lists = self.calls(CANCEL);
        lists.iter().map(|r| r.orders().len()).max().unwrap_or(0)
    }

    /// What was wrong with requests so far. What is taken here does not fail the test at the end.
    pub fn take_faults(&self) -> Vec<String> {
        std::mem::take(&mut self.shared.seen().faults)
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.control = None;
        if let Some(thread) = self.thread.take() {
            // It panics only where it has failed the test already.
            let _ = thread.join();
        }
        let faults = self.take_faults();
        if !std::thread::panicking() {
            assert!(faults.is_empty(), "the gateway found faults: {faults:#?}");
        }
    }
}

/// Counts over a list in the order of arrival.
pub fn most_within(window: Duration, times: &[Instant]) -> usize {
    let mut first = 0;
    let mut most = 0;
    for (last, time) in times.iter().enumerate() {
        while time.duration_since(times[first]) >= window {
            first += 1;
        }
        most = most.max(last + 1 - first);
    }
    most
}

async fn run(port: u16, shared: Arc<Shared>, mut orders: mpsc::UnboundedReceiver<Control>) {
    let mut listener: Option<TcpListener> = None;
    let mut connections = JoinSet::new();
    loop {
        let accept = async {
            match &listener {
                Some(listener) => listener.accept().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            order = orders.recv() => {
                let done = match order {
                    None => return,
                    Some(Control::Up(done)) => {
                        let bound = TcpListener::bind(("127.0.0.1", port)).await;
                        listener = Some(bound.expect("the gateway's port"));
                        done
                    }
                    Some(Control::Down(done)) => {
                        listener = None;
                        connections.shutdown().await;
                        done
                    }
                };
                // A test that has given up waiting has failed already.
                let _ = done.send(());
            }
            accepted = accept => {
                if let Ok((stream, _)) = accepted {
                    let number = shared.connections.fetch_add(1, Ordering::SeqCst);
                    connections.spawn(serve(stream, number, shared.clone()));
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve(stream: TcpStream, connection: usize, shared: Arc<Shared>) {
    let mut wire = Wire {
        stream,
        read: Vec::new(),
    };
    loop {
        let raw = match wire.read_request().await {
            Ok(Some(raw)) => raw,
            // The client is gone, perhaps in the middle: its good right.
            Ok(None) | Err(ReadError::Io(_)) => return,
            Err(ReadError::Not(fault)) => {
                shared.fault(fault);
                let refusal = Answer::http(400, "text/plain", "not a request");
                let _ = wire.answer(refusal, shared.http_date()).await;
                return;
            }
        };
        let (request, answer) = shared.take(raw, connection);
        let flight = InFlight::new(shared.clone(), request.param("sid"));
        let open = wire.answer(answer, shared.http_date()).await;
        drop(flight);
        if !matches!(open, Ok(true)) {
            return;
        }
    }
}

/// Counts one call as under way for as long as it lives, however its connection ends.
struct InFlight {
    shared: Arc<Shared>,
    sid: String,
}

impl InFlight {
    fn new(shared: Arc<Shared>, sid: &str) -> Self {
        {
            let mut seen = shared.seen();
            let (now, most) = seen.in_flight.entry(sid.into()).or_default();
            *now += 1;
            *most = (*most).max(*now);
        }
        Self {
            shared,
            sid: sid.into(),
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if let Some((now, _)) = self.shared.seen().in_flight.get_mut(&self.sid) {
            *now -= 1;
        }
    }
}

impl Shared {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().expect("what the gateway has seen")
    }

    fn fault(&self, fault: String) {
        self.seen().faults.push(fault);
    }

    fn unix_now(&self) -> i64 {
        let ours = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .expect("a clock after 1970");
        ours.as_secs() as i64 + self.clock_ahead.load(Ordering::SeqCst)
    }

    fn now(&self) -> i64 {
        self.unix_now() - EPOCH
    }

    fn http_date(&self) -> String {
        jiff::Timestamp::from_second(self.unix_now())
            .expect("a date")
            .strftime("%a, %d %b %Y %H:%M:%S GMT")
            .to_string()
    }

    /// Records a request, checks it, and asks the handler for the answer when it is sound.
    fn take(&self, raw: RawRequest, connection: usize) -> (Request, Answer) {
        let at = Instant::now();
        let target = raw.target.split_once('?').unwrap_or((&raw.target, ""));
        let query: Option<Vec<_>> = target
            .1
            .split('&')
            .map(|pair| {
                let (name, value) = pair.split_once('=')?;
                Some((form_decode(name)?, form_decode(value)?))
            })
            .collect();
        let decoded = query.is_some();
        let request = {
            let mut seen = self.seen();
            let request = Request {
                number: seen.requests.len(),
                connection,
                at,
                gateway_time: self.now(),
                path: target.0.into(),
                query: query.unwrap_or_default(),
                headers: raw.headers,
                body: raw.body,
            };
            assert!(request.number < MAX_REQUESTS, "the client has run away");
            seen.requests.push(request.clone());
            request
        };
        let checked = if !decoded {
            Err(Refusal::shape("the query is not form-encoded"))
        } else if raw.verb != "POST" {
            Err(Refusal::shape(format!("{} instead of POST", raw.verb)))
        } else {
            self.check(&request)
        };
        let answer = match checked {
            Ok(()) => match catch_unwind(AssertUnwindSafe(|| (self.handler)(&request))) {
                Ok(answer) => answer,
                Err(_) => {
                    self.fault(format!("the test's own handler panicked at {request:?}"));
                    Answer::Close
                }
            },
            Err(refusal) => {
                if let Some(fault) = refusal.fault {
                    self.fault(format!("request {}: {fault}: {request:?}", request.number));
                }
                Answer::status(refusal.status, &refusal.message)
            }
        };
        (request, answer)
    }

    fn check(&self, request: &Request) -> Result<(), Refusal> {
        let content_type = request.header("content-type");
        if !content_type.starts_with("application/json") {
            return Err(Refusal::shape(format!("content-type {content_type:?}")));
        }
        let paging: &[&str] = match request.method() {
            QUERY => &["page_size", "page_no", "calc_total"],
            _ => &[],
        };
        let public = ["sid", "key", "salt", "method", "timestamp", "v", "sign"];
        let wanted: BTreeSet<&str> = public.iter().chain(paging).copied().collect();
        let mut given: Vec<&str> = request.query.iter().map(|(n, _)| n.as_str()).collect();
        given.sort_unstable();
        if given != wanted.iter().copied().collect::<Vec<_>>() {
            return Err(Refusal::shape(format!(
                "parameters {given:?} instead of {wanted:?}"
            )));
        }
        if request.param("v") != "1.0" {
            return Err(Refusal::shape("v is not 1.0"));
        }
        let account = self.accounts.iter().find(|a| a.sid == request.param("sid"));
        let Some(account) = account else {
            return Err(Refusal::fault(1, "sid is not exists"));
        };
        if account.key != request.param("key") || account.salt != request.param("salt") {
            return Err(Refusal::fault(1, "app auth fail"));
        }
        let right = sign(&account.secret, &request.query, &request.body);
        if request.param("sign") != right {
            return Err(Refusal::fault(1, "验证失败:签名错误"));
        }
        let Ok(timestamp) = request.param("timestamp").parse::<i64>() else {
            let words = format!("For input string: \"{}\"", request.param("timestamp"));
            return Err(Refusal::fault(1, &words));
        };
        // Who asks for the time may be wrong about it. Whether the platform is that kind is not
        // known; a handler can answer such a call with status 7 itself.
        let off = (timestamp - request.gateway_time).abs() > CLOCK_TOLERANCE;
        if off && request.method() != NOW {
            // Two clocks may disagree; that is no mistake in the request.
            return Err(Refusal {
                status: 7,
                message: "时间戳错误".into(),
                fault: None,
            });
        }
        check_body(request)
    }
}

fn check_body(request: &Request) -> Result<(), Refusal> {
    let body = request.json();
    let numbers = request.orders();
    let sound = match request.method() {
        // One argument, the list. Non-texts fall out of `numbers`, so it tells them as well.
        CANCEL => !numbers.is_empty() && body == json!([numbers]),
        QUERY => numbers.len() == 1 && body == json!([{ "other_out_no": numbers[0] }]),
        NOW => body == json!([]),
        other => return Err(Refusal::shape(format!("no such method {other:?}"))),
    };
    if !sound {
        return Err(Refusal::shape("the body has another shape"));
    }
    let distinct: BTreeSet<&String> = numbers.iter().collect();
    if distinct.len() != numbers.len() {
        return Err(Refusal::shape("a number is in the list twice"));
    }
    Ok(())
}

/// Why a request is not passed on to the handler, and what the client is told.
struct Refusal {
    status: i64,
    message: String,
    fault: Option<String>,
}

impl Refusal {
    fn fault(status: i64, message: &str) -> Self {
        Self {
            status,
            message: message.into(),
            fault: Some(message.into()),
        }
    }

    fn shape(fault: impl Into<String>) -> Self {
        let fault = fault.into();
        Self {
            status: 1,
            message: format!("参数错误: {fault}"),
            fault: Some(fault),
        }
    }
}

/// The signature: MD5 over the secret, each signed name and value in ascending order of names, and
/// the secret again; values raw, the body among them under the name `body`.
pub fn sign(secret: &str, query: &[(String, String)], body: &[u8]) -> String {
    let mut signed: Vec<(&str, &[u8])> = query
        .iter()
        .filter(|(name, _)| name != "sign")
        .map(|(name, value)| (name.as_str(), value.as_bytes()))
        .collect();
    signed.push(("body", body));
    signed.sort_unstable();
    let mut md5 = Md5::new();
    md5.update(secret);
    for (name, value) in signed {
        md5.update(name);
        md5.update(value);
    }
    md5.update(secret);
    md5.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

/// Decodes `application/x-www-form-urlencoded`; `None` when it is not.
pub fn form_decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let mut digit = || char::from(rest.next()?).to_digit(16);
                let (high, low) = (digit()?, digit()?);
                u8::try_from(high * 16 + low).ok()?
            }
            plain if plain.is_ascii_graphic() => plain,
            _ => return None,
        });
    }
    String::from_utf8(bytes).ok()
}

/// A request as far as HTTP goes.
struct RawRequest {
    verb: String,
    target: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

enum ReadError {
    Io(io::Error),
    /// It is not HTTP as a client may speak it here.
    Not(String),
}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// One connection and what was read from it beyond the last request.
struct Wire {
    stream: TcpStream,
    read: Vec<u8>,
}

impl Wire {
    /// The next request, or `None` when the client closed between two.
    async fn read_request(&mut self) -> Result<Option<RawRequest>, ReadError> {
        let head_end = loop {
            if let Some(end) = self.read.windows(4).position(|w| w == b"\r\n\r\n") {
                break end;
            }
            if self.read.len() > MAX_HEAD {
                return Err(ReadError::Not(format!("a head of over {MAX_HEAD} bytes")));
            }
            if self.stream.read_buf(&mut self.read).await? == 0 {
                return Ok(None);
            }
        };
        let not = |what: &str| ReadError::Not(format!("not HTTP/1.1: {what}"));
        let head = String::from_utf8(self.read.drain(..head_end + 4).collect())
            .map_err(|_| not("the head is not UTF-8"))?;
        let mut lines = head.trim_end().split("\r\n");
        let mut first = lines.next().unwrap_or_default().split(' ');
        let (Some(verb), Some(target), Some("HTTP/1.1"), None) =
            (first.next(), first.next(), first.next(), first.next())
        else {
            return Err(not("its first line"));
        };
        let headers: Vec<(String, String)> = lines
            .map(|line| {
                let (name, value) = line.split_once(':')?;
                Some((name.to_ascii_lowercase(), value.trim().to_string()))
            })
            .collect::<Option<_>>()
            .ok_or_else(|| not("its headers"))?;
        if headers.iter().any(|(name, _)| name == "transfer-encoding") {
            return Err(not("a body of unknown length, which is not spoken here"));
        }
        let length: usize = match find(&headers, "content-length") {
            "" => 0,
            length => length.parse().map_err(|_| not("its content-length"))?,
        };
        if length > MAX_BODY {
            return Err(ReadError::Not(format!("a body of {length} bytes")));
        }
        while self.read.len() < length {
            if self.stream.read_buf(&mut self.read).await? == 0 {
                return Ok(None);
            }
        }
        Ok(Some(RawRequest {
            verb: verb.into(),
            target: target.into(),
            body: self.read.drain(..length).collect(),
            headers,
        }))
    }

    /// Acts as the answer says; tells whether the connection may carry another request.
    async fn answer(&mut self, mut answer: Answer, date: String) -> io::Result<bool> {
        loop {
            let (wait, then): (Pin<Box<dyn Future<Output = ()> + Send>>, _) = match answer {
                Answer::Delay(delay, then) => (Box::pin(tokio::time::sleep(delay)), then),
                Answer::Held(gate, then) => (Box::pin(async move { gate.opened().await }), then),
                now => {
                    answer = now;
                    break;
                }
            };
            tokio::select! {
                () = wait => answer = *then,
                () = client_gives_up(&self.stream) => return Ok(false),
            }
        }
        let json_head = vec![(
            "content-type".into(),
            "application/json;charset=UTF-8".into(),
        )];
        match answer {
            Answer::Delay(..) | Answer::Held(..) => unreachable!("unpacked above"),
            Answer::Json(value) => {
                self.write(200, &date, json_head, value.to_string().as_bytes(), None)
                    .await
            }
            Answer::Raw {
                status,
                headers,
                body,
            } => self.write(status, &date, headers, &body, None).await,
            Answer::CutBody(value) => {
                let body = value.to_string();
                self.write(200, &date, json_head, body.as_bytes(), Some(body.len() / 2))
                    .await?;
                Ok(false)
            }
            Answer::StalledBody(value) => {
                let body = value.to_string();
                self.write(200, &date, json_head, body.as_bytes(), Some(body.len() / 2))
                    .await?;
                client_gives_up(&self.stream).await;
                Ok(false)
            }
            Answer::Close => Ok(false),
            Answer::Reset => {
                self.stream.set_zero_linger()?;
                Ok(false)
            }
            Answer::Hang => {
                client_gives_up(&self.stream).await;
                Ok(false)
            }
            Answer::ChunkedGarbage => {
                let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
                self.stream.write_all(head.as_bytes()).await?;
                self.stream.write_all(b"zz\r\nno chunk\r\n").await?;
                Ok(false)
            }
            Answer::Bytes(bytes) => {
                self.stream.write_all(&bytes).await?;
                self.stream.shutdown().await?;
                client_gives_up(&self.stream).await;
                Ok(false)
            }
            Answer::Endless(endless) => {
                self.stream.write_all(endless.head.as_bytes()).await?;
                loop {
                    tokio::select! {
                        () = tokio::time::sleep(endless.pause) => {}
                        () = client_gives_up(&self.stream) => return Ok(false),
                    }
                    self.stream.write_all(&endless.piece).await?;
                    endless
                        .taken
                        .fetch_add(endless.piece.len(), Ordering::SeqCst);
                }
            }
        }
    }

    /// Writes an answer, or the first `only` bytes of its body.
    async fn write(
        &mut self,
        status: u16,
        date: &str,
        headers: Vec<(String, String)>,
        body: &[u8],
        only: Option<usize>,
    ) -> io::Result<bool> {
        let mut head = format!(
            "HTTP/1.1 {status} Whatever\r\ndate: {date}\r\ncontent-length: {}\r\n",
            body.len()
        );
        let mut keep = true;
        for (name, value) in headers {
            keep &=
                !(name.eq_ignore_ascii_case("connection") && value.eq_ignore_ascii_case("close"));
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        let mut bytes = head.into_bytes();
        bytes.extend_from_slice(&body[..only.unwrap_or(body.len())]);
        self.stream.write_all(&bytes).await?;
        Ok(keep)
    }
}

/// Returns when the client has closed. One that speaks on while it waits is not told apart: it is
/// served no more, and its next request fails.
async fn client_gives_up(stream: &TcpStream) {
    let mut byte = [0];
    let _ = stream.peek(&mut byte).await;
}
