//! The gateway's client on the wire, against a server that is scripted down to the bytes.
//!
//! The server has its own reader of HTTP, its own decoding and its own signature. It records every
//! request before it acts, so that a second attempt of the client cannot go unseen.
#![allow(clippy::unwrap_used, reason = "a test fails where it is surprised")]

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use md5::{Digest, Md5};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use wdt_cancel_worker::gateway::client::{
    ANSWER_MAX_BYTES, Client, Credentials, Ended, GatewayUrl, Http,
};
use wdt_cancel_worker::gateway::sign::{AppSecret, EPOCH_OFFSET_SECONDS};
use wdt_cancel_worker::gateway::wire::ServerTime;
use wdt_cancel_worker::rules::judge::{CallEnd, CancelLists, FoundOrder, Reply};
use wdt_cancel_worker::rules::order::OrderNo;

/// Long enough for a busy machine; calls that end by time have a test of their own.
const TIMEOUT: Duration = Duration::from_secs(20);
/// After this a wait has failed.
const PATIENCE: Duration = Duration::from_secs(30);

const SID: &str = "卖家 1+&=";
const KEY: &str = "key/ü";
const SECRET: &str = "testsecret";
const SALT: &str = "test:salt";

/// What the server does with a request.
enum Act {
    /// Writes these bytes and keeps the connection.
    Say(Vec<u8>),
    /// Writes these bytes and closes.
    SayAndClose(Vec<u8>),
    /// Writes these bytes and resets.
    SayAndReset(Vec<u8>),
    /// Writes these bytes and nothing more, until the client gives up.
    SayAndHang(Vec<u8>),
}

struct Seen {
    connection: usize,
    path: String,
    raw_query: String,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

#[derive(Default)]
struct State {
    acts: Vec<Act>,
    seen: Vec<Seen>,
    connections: usize,
}

struct Server {
    port: u16,
    state: Arc<Mutex<State>>,
    /// The client has closed a connection.
    closed_by_client: Arc<Notify>,
}

impl Server {
    /// The first request meets the first act, and so on.
    async fn start(acts: impl IntoIterator<Item = Act>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut acts: Vec<Act> = acts.into_iter().collect();
        acts.reverse();
        let state = Arc::new(Mutex::new(State {
            acts,
            ..State::default()
        }));
        let closed_by_client = Arc::new(Notify::new());
        let (shared, closed) = (state.clone(), closed_by_client.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let connection = {
                    let mut state = shared.lock().unwrap();
                    state.connections += 1;
                    state.connections - 1
                };
                let (shared, closed) = (shared.clone(), closed.clone());
                tokio::spawn(async move {
                    // What the client thinks of it is for the test to say.
                    let _ = serve(stream, connection, &shared).await;
                    closed.notify_one();
                });
            }
        });
        Self {
            port,
            state,
            closed_by_client,
        }
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}/openapi", self.port)
    }

    fn client(&self) -> Client {
        client(&self.url(), TIMEOUT)
    }

    fn connections(&self) -> usize {
        self.state.lock().unwrap().connections
    }

    fn take_seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.state.lock().unwrap().seen)
    }

    async fn client_closes(&self) {
        tokio::time::timeout(PATIENCE, self.closed_by_client.notified())
            .await
            .expect("the client closes a connection");
    }
}

fn client(url: &str, timeout: Duration) -> Client {
    let credentials = Credentials {
        sid: SID.into(),
        key: KEY.into(),
        secret: AppSecret::parse(&format!("{SECRET}:{SALT}")).unwrap(),
    };
    let http = Http::new(timeout, []).unwrap();
    Client::new(http, GatewayUrl::parse(url).unwrap(), credentials)
}

async fn serve(mut stream: TcpStream, connection: usize, state: &Mutex<State>) -> io::Result<()> {
    let mut read = Vec::new();
    loop {
        let head_end = loop {
            if let Some(end) = read.windows(4).position(|w| w == b"\r\n\r\n") {
                break end;
            }
            if stream.read_buf(&mut read).await? == 0 {
                return Ok(());
            }
        };
        let head: Vec<u8> = read.drain(..head_end + 4).collect();
        let head = String::from_utf8(head).expect("a head in ASCII");
        let mut lines = head.trim_end().split("\r\n");
        let first = lines.next().unwrap();
        let target = first
            .strip_prefix("POST ")
            .and_then(|rest| rest.strip_suffix(" HTTP/1.1"))
            .expect("a POST");
        let (path, raw_query) = target.split_once('?').expect("a query");
        let headers: BTreeMap<String, String> = lines
            .map(|line| line.split_once(": ").expect("a header"))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .collect();
        let length: usize = headers["content-length"].parse().unwrap();
        while read.len() < length {
            if stream.read_buf(&mut read).await? == 0 {
                return Ok(());
            }
        }
        let act = {
            let mut state = state.lock().unwrap();
            state.seen.push(Seen {
                connection,
                path: path.into(),
                raw_query: raw_query.into(),
                headers,
                body: read.drain(..length).collect(),
            });
            state.acts.pop()
        };
        match act {
            Some(Act::Say(bytes)) => stream.write_all(&bytes).await?,
            Some(Act::SayAndClose(bytes)) => {
                stream.write_all(&bytes).await?;
                stream.shutdown().await?;
                // Wait for the other side, so that no unread byte turns the close into a reset.
                while stream.read_buf(&mut read).await? != 0 {}
                return Ok(());
            }
            Some(Act::SayAndReset(bytes)) => {
                stream.write_all(&bytes).await?;
                stream.set_zero_linger()?;
                return Ok(());
            }
            Some(Act::SayAndHang(bytes)) => {
                stream.write_all(&bytes).await?;
                while stream.read_buf(&mut read).await? != 0 {}
                return Ok(());
            }
            // Not scripted: recorded, and that fails the test.
            None => return Ok(()),
        }
    }
}

impl Seen {
    fn query(&self) -> Vec<(String, String)> {
        let pairs = self.raw_query.split('&');
        pairs
            .map(|pair| pair.split_once('=').expect("name=value"))
            .map(|(name, value)| (form_decode(name), form_decode(value)))
            .collect()
    }

    fn param(&self, name: &str) -> String {
        let found = self.query().into_iter().find(|(n, _)| n == name);
        found.expect(name).1
    }

    /// Seconds of Unix time.
    fn stamped(&self) -> i64 {
        self.param("timestamp").parse::<i64>().unwrap() + EPOCH_OFFSET_SECONDS
    }

    /// MD5 over the secret, each name and value in ascending order of names, and the secret again.
    fn assert_signed(&self) {
        let mut signed: Vec<(String, Vec<u8>)> = self
            .query()
            .into_iter()
            .filter(|(name, _)| name != "sign")
            .map(|(name, value)| (name, value.into_bytes()))
            .collect();
        signed.push(("body".into(), self.body.clone()));
        signed.sort();
        let mut text = SECRET.as_bytes().to_vec();
        for (name, value) in signed {
            text.extend_from_slice(name.as_bytes());
            text.extend_from_slice(&value);
        }
        text.extend_from_slice(SECRET.as_bytes());
        let right: String = Md5::digest(&text)
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect();
        assert_eq!(self.param("sign"), right);
    }
}

fn form_decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digits = [rest.next().unwrap(), rest.next().unwrap()];
                u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap()
            }
            plain => {
                assert!(plain.is_ascii_alphanumeric() || b"*-._".contains(&plain));
                plain
            }
        });
    }
    String::from_utf8(bytes).unwrap()
}

fn http(status: u16, headers: &[&str], body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let mut answer = format!(
        "HTTP/1.1 {status} Whatever\r\ncontent-length: {}\r\n",
        body.len()
    );
    for header in headers {
        answer.push_str(&format!("{header}\r\n"));
    }
    answer.push_str("\r\n");
    [answer.as_bytes(), body].concat()
}

fn ok(body: &str) -> Act {
    Act::Say(http(200, &["content-type: application/json"], body))
}

fn orders(numbers: &[&str]) -> Vec<OrderNo> {
    numbers.iter().map(|n| OrderNo::new(n).unwrap()).collect()
}

fn unix_now() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap().as_secs() as i64
}

/// What people are told must not let anybody repeat the request.
fn assert_tells_no_secret<T: std::fmt::Debug>(ended: &Ended<T>) {
    let told = format!("{ended:?}");
    for secret in ["sign", SECRET, SALT, "salt", KEY, "key", "openapi", "http:"] {
        assert!(!told.contains(secret), "{secret:?} in {told}");
    }
}

/// One cancel meets one act; asserts that there was one attempt, and that no secret is told.
async fn cancel_meets(act: Act) -> Ended<CancelLists> {
    let server = Server::start([act]).await;
    let ended = server.client().cancel(&orders(&["QC1"])).await;
    assert_eq!(server.take_seen().len(), 1, "attempts, ended as {ended:?}");
    assert_eq!(server.connections(), 1);
    assert_tells_no_secret(&ended);
    ended
}

fn garbled(what: &str, retry_after: Option<u64>) -> CallEnd<CancelLists> {
    CallEnd::Garbled {
        what: what.into(),
        retry_after: retry_after.map(Duration::from_secs),
    }
}

async fn check(act: Act, http_status: u16, expected: CallEnd<CancelLists>) {
    let ended = cancel_meets(act).await;
    assert_eq!(ended.end, expected);
    assert_eq!(ended.http_status, Some(http_status), "{expected:?}");
}

#[tokio::test]
async fn a_cancel_is_signed_and_sent_as_signed() {
    let answer = r#"{"status":"0","message":null,"data":{"success_data":[3796],"error_data":
        [{"order_no":"其他出库-1","err_msg":"单据不存在"}]}}"#;
    let server = Server::start([ok(answer)]).await;
    let before = unix_now();
    let ended = server
        .client()
        .cancel(&orders(&["3796", "其他出库-1"]))
        .await;
    let after = unix_now();

    assert_eq!(
        ended.end,
        CallEnd::Answered(Reply {
            status: 0,
            message: String::new(),
            data: Some(CancelLists {
                success: vec!["3796".into()],
                error: vec![("其他出库-1".into(), "单据不存在".into())],
            }),
        })
    );
    assert_eq!(ended.http_status, Some(200));
    assert!(!ended.duration.is_zero() && ended.duration < TIMEOUT);

    let [seen] = &server.take_seen()[..] else {
        panic!("not one request");
    };
    seen.assert_signed();
    assert_eq!(seen.body, r#"[["3796","其他出库-1"]]"#.as_bytes());
    assert_eq!(seen.path, "/openapi");
    assert_eq!(seen.headers["content-type"], "application/json");
    let agent = concat!("wdt-cancel-worker/", env!("CARGO_PKG_VERSION"));
    assert_eq!(seen.headers["user-agent"], agent);
    assert!(
        seen.raw_query
            .starts_with("sid=%E5%8D%96%E5%AE%B6+1%2B%26%3D&key=key%2F%C3%BC&salt=test%3Asalt&"),
        "{}",
        seen.raw_query
    );
    let (names, values): (Vec<_>, Vec<_>) = seen.query().into_iter().unzip();
    let expected = ["sid", "key", "salt", "method", "timestamp", "v", "sign"];
    assert_eq!(names, expected);
    let expected = [SID, KEY, SALT, "wms.stockother.Out.cancelOrder"];
    assert_eq!(values[..4], expected);
    assert_eq!(values[5], "1.0");
    assert!((before..=after).contains(&seen.stamped()));
}

#[tokio::test]
async fn a_look_up_is_paged() {
    let answer = r#"{"status":0,"data":{"total_count":1,
        "order":[{"other_out_no":"QC1","status":"80"}]}}"#;
    let server = Server::start([ok(answer)]).await;
    let ended = server.client().look_up(&orders(&["QC1"])[0]).await;
    let found = vec![FoundOrder {
        number: "QC1".into(),
        status: 80,
    }];
    let CallEnd::Answered(reply) = ended.end else {
        panic!("{ended:?}");
    };
    assert_eq!(reply.data, Some(found));

    let seen = &server.take_seen()[0];
    seen.assert_signed();
    assert_eq!(seen.body, br#"[{"other_out_no":"QC1"}]"#);
    let method = "wms.stockother.OutQuery.queryWithDetail";
    assert_eq!(seen.param("method"), method);
    assert_eq!(seen.param("page_no"), "0");
    assert_eq!(seen.param("page_size"), "10");
    assert_eq!(seen.param("calc_total"), "1");
}

#[tokio::test]
async fn the_clock_is_measured_and_used() {
    let ahead = |seconds: i64| {
        let theirs = unix_now() + seconds;
        ok(&format!(r#"{{"status":0,"data":"{theirs}"}}"#))
    };
    let server = Server::start([
        ok(r#"{"status":100}"#),
        ok(r#"{"status":7,"message":"时间戳错误","data":1795478400}"#),
        ok(r#"{"status":0,"data":"soon"}"#),
        ahead(100_000),
        ok(r#"{"status":100}"#),
        ok(r#"{"status":0}"#),
        ahead(-3_600),
        ok(r#"{"status":100}"#),
    ])
    .await;
    let client = server.client();
    let order = &orders(&["QC1"]);
    let near = |a: i64, b: i64| (a - b).abs() <= 60;

    let _ = client.cancel(order).await;
    let _ = client.now().await;
    let _ = client.now().await;
    assert_eq!(client.clock_offset_seconds(), None, "no usable reading yet");

    let ended = client.now().await;
    let offset = client.clock_offset_seconds().unwrap();
    assert!(near(offset, 100_000), "{offset}");
    let CallEnd::Answered(Reply {
        data: Some(ServerTime(theirs)),
        ..
    }) = ended.end
    else {
        panic!("{ended:?}");
    };
    assert!(near(theirs, unix_now() + 100_000));
    let _ = client.cancel(order).await;
    let _ = client.now().await;
    assert_eq!(client.clock_offset_seconds(), Some(offset), "kept");
    let _ = client.now().await;
    let offset = client.clock_offset_seconds().unwrap();
    assert!(near(offset, -3_600), "{offset}");
    let _ = client.cancel(order).await;

    let seen = server.take_seen();
    let signs: Vec<String> = seen.iter().map(|s| s.param("sign")).collect();
    let stamped_ahead: Vec<i64> = seen.iter().map(|s| s.stamped() - unix_now()).collect();
    for ((seen, ahead), expected) in seen
        .iter()
        .zip(&stamped_ahead)
        .zip([0, 0, 0, 0, 100_000, 100_000, 100_000, -3_600])
    {
        seen.assert_signed();
        assert!(near(*ahead, expected), "{stamped_ahead:?}");
    }
    assert_eq!(seen[1].param("method"), "system.Core.now");
    assert_eq!(seen[1].body, b"[]");
    assert_eq!(seen[0].body, seen[4].body);
    assert_ne!(signs[0], signs[4], "the same cancel is signed afresh");
}

#[tokio::test]
async fn a_refused_connection_is_not_reached() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/openapi", listener.local_addr().unwrap());
    drop(listener);
    let ended = client(&url, TIMEOUT).cancel(&orders(&["QC1"])).await;
    let CallEnd::NotReached { what } = &ended.end else {
        panic!("{ended:?}");
    };
    assert!(what.contains("onnection refused"), "{what}");
    assert_eq!(ended.http_status, None);
    assert_tells_no_secret(&ended);
}

#[tokio::test]
async fn a_name_that_nobody_has_is_not_reached() {
    let url = "http://no-such-host.invalid/openapi";
    let ended = client(url, TIMEOUT).cancel(&orders(&["QC1"])).await;
    assert!(matches!(ended.end, CallEnd::NotReached { .. }), "{ended:?}");
    assert_tells_no_secret(&ended);
}

/// Accepts connections, says this, and waits for the other side to close.
async fn speaks_no_tls(says: &'static [u8]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}/openapi", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.write_all(says).await;
            let mut read = Vec::new();
            while stream.read_buf(&mut read).await.is_ok_and(|n| n > 0) {}
        }
    });
    url
}

#[tokio::test]
async fn a_failed_handshake_is_not_reached() {
    let url = speaks_no_tls(b"220 mail.example.com ESMTP\r\n").await;
    let ended = client(&url, TIMEOUT).cancel(&orders(&["QC1"])).await;
    assert!(matches!(ended.end, CallEnd::NotReached { .. }), "{ended:?}");
    assert_tells_no_secret(&ended);
}

#[tokio::test]
async fn a_connection_that_hangs_is_not_reached() {
    let url = speaks_no_tls(b"").await;
    let timeout = Duration::from_secs(2);
    let ended = client(&url, timeout).cancel(&orders(&["QC1"])).await;
    assert!(matches!(ended.end, CallEnd::NotReached { .. }), "{ended:?}");
    assert!(ended.duration < timeout, "{:?}", ended.duration);
}

#[tokio::test]
async fn a_hanging_answer_is_lost_within_the_timeout() {
    let half = b"HTTP/1.1 200 OK\r\ncontent-length: 30\r\n\r\n{\"status\":0".to_vec();
    for (says, status) in [(Vec::new(), None), (half, Some(200))] {
        let server = Server::start([Act::SayAndHang(says)]).await;
        let timeout = Duration::from_millis(500);
        let client = client(&server.url(), timeout);
        let ended = client.cancel(&orders(&["QC1"])).await;
        let what = "no answer within 500ms".into();
        assert_eq!(ended.end, CallEnd::Lost { what });
        assert_eq!(ended.http_status, status);
        assert!(ended.duration >= timeout && ended.duration < PATIENCE);
        // The connection is not used again: the answer might still come by it.
        server.client_closes().await;
        assert_eq!(server.take_seen().len(), 1);
    }
}

#[tokio::test]
async fn a_connection_that_breaks_before_the_answer_is_lost() {
    let head = b"HTTP/1.1 200 OK\r\ncontent-le".to_vec();
    for act in [
        Act::SayAndReset(Vec::new()),
        Act::SayAndClose(Vec::new()),
        Act::SayAndClose(head),
    ] {
        let ended = cancel_meets(act).await;
        assert!(matches!(ended.end, CallEnd::Lost { .. }), "{ended:?}");
        assert_eq!(ended.http_status, None);
    }
}

#[tokio::test]
async fn a_cut_body_is_garbled() {
    let cut = b"HTTP/1.1 200 OK\r\ncontent-length: 300\r\n\r\n{\"status\":0}".to_vec();
    let ended = cancel_meets(Act::SayAndClose(cut.clone())).await;
    let CallEnd::Garbled { what, .. } = &ended.end else {
        panic!("{ended:?}");
    };
    assert!(what.starts_with("HTTP 200, but a cut body: "), "{what}");

    let chunks = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nno chunk\r\n";
    let ended = cancel_meets(Act::SayAndClose(chunks.to_vec())).await;
    assert!(matches!(ended.end, CallEnd::Garbled { .. }), "{ended:?}");

    // A reset may overtake the head.
    let ended = cancel_meets(Act::SayAndReset(cut)).await;
    let in_doubt = matches!(ended.end, CallEnd::Garbled { .. } | CallEnd::Lost { .. });
    assert!(in_doubt, "{ended:?}");
}

#[tokio::test]
async fn what_is_no_envelope_is_garbled() {
    let say = |body: &str| Act::Say(http(200, &[], body));
    let page = "<html>\r\n<title>502 Bad Gateway</title>";
    let shown = "HTTP 200, but a body that is not JSON: <html>  <title>502 Bad Gateway</title>";
    check(say(page), 200, garbled(shown, None)).await;
    check(say(""), 200, garbled("HTTP 200, but an empty body", None)).await;
    let shown = "HTTP 200, but JSON without a status: {\"ok\":true}";
    check(say(r#"{"ok":true}"#), 200, garbled(shown, None)).await;
    let repeats = "cannot serve http://127.0.0.1/openapi?sid=1&salt=test:salt";
    let shown = "HTTP 200, but a body that is not JSON";
    check(say(repeats), 200, garbled(shown, None)).await;
}

#[tokio::test]
async fn an_answer_without_end_is_cut_off() {
    // No length is announced, and it never ends by itself.
    let mut endless = b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n".to_vec();
    endless.resize(endless.len() + ANSWER_MAX_BYTES + 1, b'[');
    let ended = cancel_meets(Act::SayAndHang(endless)).await;
    let what = format!("HTTP 200, but over {ANSWER_MAX_BYTES} bytes");
    assert_eq!(ended.end, garbled(&what, None));
}

#[tokio::test]
async fn redirects_are_not_followed() {
    let elsewhere = Server::start([]).await;
    for status in [301, 302, 303, 307, 308] {
        let location = format!("location: {}", elsewhere.url());
        let act = Act::Say(http(status, &[&location], ""));
        check(act, status, garbled(&format!("HTTP {status}"), None)).await;
    }
    assert_eq!(elsewhere.connections(), 0);
}

#[tokio::test]
async fn other_statuses() {
    let wait = "retry-after: 90";
    let say = |status, headers: &[&str], body: &str| Act::Say(http(status, headers, body));
    check(
        say(503, &[wait], "busy"),
        503,
        garbled("HTTP 503", Some(90)),
    )
    .await;
    check(say(500, &[], ""), 500, garbled("HTTP 500", None)).await;
    let claims_success = r#"{"status":0,"data":{"success_data":["QC1"]}}"#;
    for status in [202, 204, 400, 502] {
        let body = if status == 204 { "" } else { claims_success };
        let expected = garbled(&format!("HTTP {status}"), None);
        check(say(status, &[], body), status, expected).await;
    }
    let servers_own = r#"{"status":500,"error":"Internal Server Error","path":"/"}"#;
    check(say(500, &[], servers_own), 500, garbled("HTTP 500", None)).await;
    let reply = Reply {
        status: 6,
        message: "ip限制".into(),
        data: None,
    };
    let own_no = r#"{"status":6,"message":"ip限制"}"#;
    check(say(403, &[], own_no), 403, CallEnd::Answered(reply)).await;
    for (headers, seconds) in [(&[wait][..], Some(90)), (&[], None)] {
        let retry_after = seconds.map(Duration::from_secs);
        let throttled = CallEnd::Throttled { retry_after };
        check(say(429, headers, own_no), 429, throttled).await;
    }
}

#[tokio::test]
async fn a_connection_is_used_again() {
    let server = Server::start([ok(r#"{"status":100}"#), ok(r#"{"status":100}"#)]).await;
    let client = server.client();
    for _ in 0..2 {
        let ended = client.cancel(&orders(&["QC1"])).await;
        assert!(matches!(ended.end, CallEnd::Answered(_)), "{ended:?}");
    }
    let by: Vec<usize> = server.take_seen().iter().map(|s| s.connection).collect();
    assert_eq!(by, [0, 0]);
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn accounts_share_connections() {
    let server = Server::start([ok(r#"{"status":100}"#), ok(r#"{"status":100}"#)]).await;
    let http = Http::new(TIMEOUT, []).unwrap();
    for sid in ["one", "two"] {
        let credentials = Credentials {
            sid: sid.into(),
            key: KEY.into(),
            secret: AppSecret::parse(&format!("{SECRET}:{SALT}")).unwrap(),
        };
        let url = GatewayUrl::parse(&server.url()).unwrap();
        let _ = Client::new(http.clone(), url, credentials)
            .cancel(&orders(&["QC1"]))
            .await;
    }
    let sids: Vec<String> = server.take_seen().iter().map(|s| s.param("sid")).collect();
    assert_eq!(sids, ["one", "two"]);
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn a_connection_that_the_server_closed_is_not_used_again() {
    let answer = http(200, &[], r#"{"status":100}"#);
    let server = Server::start([Act::SayAndClose(answer), ok(r#"{"status":100}"#)]).await;
    let client = server.client();
    let first = client.cancel(&orders(&["QC1"])).await;
    assert!(matches!(first.end, CallEnd::Answered(_)), "{first:?}");
    server.client_closes().await;
    let second = client.cancel(&orders(&["QC1"])).await;
    assert!(matches!(second.end, CallEnd::Answered(_)), "{second:?}");
    let by: Vec<usize> = server.take_seen().iter().map(|s| s.connection).collect();
    assert_eq!(by, [0, 1]);
}

#[tokio::test]
async fn a_kept_connection_that_breaks_under_a_call_is_lost_and_not_retried() {
    let server = Server::start([ok(r#"{"status":100}"#), Act::SayAndReset(Vec::new())]).await;
    let client = server.client();
    let _ = client.cancel(&orders(&["QC1"])).await;
    let ended = client.cancel(&orders(&["QC1"])).await;
    assert!(matches!(ended.end, CallEnd::Lost { .. }), "{ended:?}");
    let by: Vec<usize> = server.take_seen().iter().map(|s| s.connection).collect();
    assert_eq!(by, [0, 0]);
}

#[tokio::test]
async fn an_idle_connection_is_given_up_before_the_server_does() {
    let server = Server::start([ok(r#"{"status":100}"#)]).await;
    let client = server.client();
    let _ = client.cancel(&orders(&["QC1"])).await;
    // The server never closes it.
    server.client_closes().await;
    drop(client);
}
