//! The emulator of the gateway over the wire: every check, every fault.

#![allow(
    clippy::unwrap_used,
    reason = "clippy knows tests by their attribute, and this is also what helps them"
)]

use std::io::{self, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use wdt_cancel_worker::gateway::sandbox::{
    Account, BODY_MAX_BYTES, Calls, Options, Record, Running, Sandbox,
};
use wdt_cancel_worker::gateway::sign::{self, AppSecret, Call, Paging};

const STATE: &str = "单据状态不是编辑中、待审核、已审核，不允许取消";
/// Far more than any wait here takes; a test that meets it has failed.
const PATIENCE: Duration = Duration::from_secs(20);

fn account(sid: &str, key: &str, secret: &str) -> Account {
    Account {
        sid: sid.to_owned(),
        key: key.to_owned(),
        secret: AppSecret::parse(secret).unwrap(),
    }
}

fn demo() -> Account {
    account("demo_sid", "demo-app-key", "testsecret:testsalt")
}

fn timestamp_now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    sign::timestamp(i64::try_from(since.as_secs()).unwrap())
}

/// Where printed lines can be waited for.
struct Lines(mpsc::UnboundedSender<String>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = self.0.send(String::from_utf8(bytes.to_vec()).unwrap());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn printed(options: &mut Options) -> mpsc::UnboundedReceiver<String> {
    let (sender, lines) = mpsc::unbounded_channel();
    // Whole lines, so that each is one message.
    options.out = Box::new(io::LineWriter::new(Lines(sender)));
    lines
}

async fn line(lines: &mut mpsc::UnboundedReceiver<String>) -> String {
    let line = tokio::time::timeout(PATIENCE, lines.recv()).await;
    line.expect("no line was printed").unwrap()
}

/// One signed request, to be spoiled before it is sent.
struct Request {
    query: Vec<(String, String)>,
    body: Vec<u8>,
    content_type: &'static str,
}

impl Request {
    fn new(account: &Account, method: &str, paging: Option<Paging>, body: &[u8]) -> Self {
        Self::at(timestamp_now(), account, method, paging, body)
    }

    fn at(
        timestamp: i64,
        account: &Account,
        method: &str,
        paging: Option<Paging>,
        body: &[u8],
    ) -> Self {
        let call = Call {
            sid: &account.sid,
            key: &account.key,
            secret: &account.secret,
            method,
            timestamp,
            paging,
        };
        let query = call.sign(body).query;
        Self {
            query: query
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value.into_owned()))
                .collect(),
            body: body.to_vec(),
            content_type: "application/json",
        }
    }

    fn cancel(orders: &[&str]) -> Self {
        let body = json!([orders]).to_string();
        Self::new(&demo(), sign::CANCEL, None, body.as_bytes())
    }

    fn query(order: &str) -> Self {
        let paging = Paging {
            page_size: 10,
            page_no: 0,
            calc_total: true,
        };
        let body = json!([{"other_out_no": order}]).to_string();
        Self::new(&demo(), sign::QUERY, Some(paging), body.as_bytes())
    }

    /// Changes a parameter without signing anew.
    fn with(mut self, name: &str, value: &str) -> Self {
        let pair = self.query.iter_mut().find(|(n, _)| n == name).unwrap();
        pair.1 = value.to_owned();
        self
    }

    fn without(mut self, name: &str) -> Self {
        self.query.retain(|(n, _)| n != name);
        self
    }

    /// Signs what the request has become.
    fn signed_by(self, account: &Account) -> Self {
        let pairs = self.query.iter().filter(|(name, _)| name != "sign");
        let pairs = pairs.map(|(name, value)| (name.as_str(), value.as_str()));
        let sign = sign::sign(&account.secret, pairs, &self.body);
        self.with("sign", &sign)
    }

    fn url(&self, base: &str) -> reqwest::Url {
        reqwest::Url::parse_with_params(base, &self.query).unwrap()
    }
}

struct Gateway {
    running: Running,
    http: reqwest::Client,
}

impl Gateway {
    async fn start(edit: impl FnOnce(&mut Options)) -> Self {
        let mut options = Options {
            accounts: vec![demo()],
            calls_per_minute: 0,
            ..Options::default()
        };
        edit(&mut options);
        let http = reqwest::Client::builder().no_proxy().timeout(PATIENCE);
        Self {
            running: Sandbox::start(options).await.unwrap(),
            http: http.build().unwrap(),
        }
    }

    fn record(&self) -> Record {
        self.running.record()
    }

    fn state(&self, number: &str) -> Option<u16> {
        self.record().order("demo_sid", number)?.state
    }

    /// Waits until it has, whatever becomes of the answer.
    async fn has_cancelled(&self, number: &str) {
        let executed = async {
            while self.state(number) != Some(80) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, executed).await.unwrap();
    }

    fn prepare(&self, request: &Request) -> reqwest::RequestBuilder {
        self.http
            .post(request.url(&self.running.url()))
            .header("Content-Type", request.content_type)
            .body(request.body.clone())
    }

    async fn send(&self, request: &Request) -> Value {
        let response = self.prepare(request).send().await.unwrap();
        assert_eq!(response.status(), 200);
        let body = response.bytes().await.unwrap();
        serde_json::from_slice(&body).unwrap()
    }

    async fn cancel(&self, orders: &[&str]) -> Value {
        self.send(&Request::cancel(orders)).await
    }

    /// The states that a query tells for this number.
    async fn look_up(&self, order: &str) -> Vec<(String, u64)> {
        let answer = self.send(&Request::query(order)).await;
        let orders = answer["data"]["order"].as_array().unwrap();
        assert_eq!(answer["data"]["total_count"], orders.len());
        let of = |order: &Value| {
            Some((
                order["other_out_no"].as_str()?.to_owned(),
                order["status"].as_u64()?,
            ))
        };
        orders.iter().map(|order| of(order).unwrap()).collect()
    }

    async fn refuses(&self, request: Request, status: u64, message: &str) {
        let answer = self.send(&request).await;
        assert_eq!(answer["status"], status, "{answer}");
        let said = answer["message"].as_str().unwrap();
        assert!(said.contains(message), "{said:?} instead of {message:?}");
    }

    /// What the wire carries back, byte by byte, and how it ends.
    async fn raw(&self, request: &Request) -> (String, Option<io::ErrorKind>) {
        let url = request.url(&self.running.url());
        let mut tcp = TcpStream::connect(self.running.addr).await.unwrap();
        let head = format!(
            "POST {}?{} HTTP/1.1\r\nHost: {}\r\nContent-Type: {}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            url.path(),
            url.query().unwrap(),
            self.running.addr,
            request.content_type,
            request.body.len()
        );
        tcp.write_all(head.as_bytes()).await.unwrap();
        tcp.write_all(&request.body).await.unwrap();
        let mut answer = Vec::new();
        let read = tokio::time::timeout(PATIENCE, tcp.read_to_end(&mut answer)).await;
        let end = read.expect("the connection stays open").err();
        let answer = String::from_utf8_lossy(&answer).into_owned();
        (answer, end.map(|e| e.kind()))
    }
}

fn lists(success: &[&str], error: &[(&str, &str)]) -> Value {
    let error: Vec<Value> = error
        .iter()
        .map(|(number, message)| json!({"order_no": number, "err_msg": message}))
        .collect();
    json!({"status": 0, "data": {"success_data": success, "error_data": error}})
}

#[tokio::test]
async fn orders_are_cancelled_once_and_looked_up() {
    let gateway = Gateway::start(|_| {}).await;
    assert_eq!(
        gateway
            .cancel(&[
                "QC202409200001",
                "其他出库 +1%",
                "EDIT-1",
                "WMS-1",
                "DONE-1",
                "STATE80-1",
                "NONE-1"
            ])
            .await,
        lists(
            &["QC202409200001", "其他出库 +1%", "EDIT-1"],
            &[
                ("WMS-1", STATE),
                ("DONE-1", STATE),
                ("STATE80-1", STATE),
                ("NONE-1", "单据不存在")
            ]
        )
    );
    assert_eq!(
        gateway.cancel(&["QC202409200001"]).await,
        lists(&[], &[("QC202409200001", STATE)])
    );
    let refused = gateway.cancel(&["REFUSE-1"]).await;
    let words = refused["data"]["error_data"][0]["err_msg"]
        .as_str()
        .unwrap();
    assert!(words != STATE && words != "单据不存在", "{words}");

    for (number, state) in [
        ("QC202409200001", 80),
        ("其他出库 +1%", 80),
        ("QC-untouched", 20),
        ("WMS-1", 40),
        ("DONE-2", 70),
        ("STATE80-1", 80),
        ("REFUSE-1", 20),
    ] {
        assert_eq!(gateway.look_up(number).await, [(number.to_owned(), state)]);
    }
    assert_eq!(gateway.look_up("NONE-1").await, []);

    let record = gateway.record();
    assert_eq!(
        record.calls(),
        Calls {
            cancel: 3,
            query: 8,
            now: 0,
            other: 0
        }
    );
    let order = record.order("demo_sid", "QC202409200001").unwrap();
    assert_eq!(
        (order.state, order.named, order.cancelled),
        (Some(80), 2, 1)
    );
    assert_eq!(record.orders("demo_sid").len(), 8);
    assert_eq!(record.order("demo_sid", "QC-untouched"), None);
}

#[tokio::test]
async fn a_request_is_checked_before_it_is_executed() {
    let gateway = Gateway::start(|options| {
        options
            .accounts
            .push(account("other_sid", "other-key", "a:b"));
    })
    .await;
    let good = || Request::cancel(&["QC1"]);
    for name in ["sid", "key", "salt", "method", "timestamp", "v", "sign"] {
        gateway.refuses(good().without(name), 1, name).await;
        gateway.refuses(good().with(name, ""), 1, name).await;
    }
    for name in ["page_size", "page_no", "calc_total"] {
        let missing = Request::query("QC1").without(name).signed_by(&demo());
        gateway.refuses(missing, 1, name).await;
    }
    for (name, value, status, message) in [
        ("method", "wms.stockother.Out.cancel", 2, "unknown field"),
        ("sid", "nobody", 1, "sid is not exists"),
        ("key", "nothing", 1, "app auth fail"),
        // Another seller's key is no better than none.
        ("key", "other-key", 1, "app auth fail"),
        ("salt", "pepper", 1, "app auth fail"),
        (
            "timestamp",
            "2026-11-23 12:00:00",
            1,
            "For input string: \"2026-11-23 12:00:00\"",
        ),
        // Milliseconds do not fit the platform's integer.
        (
            "timestamp",
            "1795406400000",
            1,
            "For input string: \"1795406400000\"",
        ),
        // Unix seconds, not converted.
        ("timestamp", "1795406400", 7, "时间戳错误"),
        ("v", "2.0", 8, "版本错误"),
    ] {
        let request = good().with(name, value).signed_by(&demo());
        gateway.refuses(request, status, message).await;
    }

    let signs = "验证失败";
    gateway
        .refuses(good().with("sign", &"0".repeat(32)), 1, signs)
        .await;
    let upper = good();
    let sign = upper.query.last().unwrap().1.to_uppercase();
    gateway.refuses(upper.with("sign", &sign), 1, signs).await;
    // The same meaning in other bytes is another body.
    let mut spaced = good();
    spaced.body = br#"[[ "QC1" ]]"#.to_vec();
    gateway.refuses(spaced, 1, signs).await;
    let wrong = account("demo_sid", "demo-app-key", "wrong:testsalt");
    gateway.refuses(good().signed_by(&wrong), 1, signs).await;

    let mut form = good();
    form.content_type = "application/x-www-form-urlencoded";
    gateway.refuses(form, 1, "Content-Type").await;

    assert_eq!(gateway.state("QC1"), None);
    assert_eq!(gateway.record().calls().other, 3);
    assert_eq!(gateway.cancel(&["QC1"]).await, lists(&["QC1"], &[]));
}

#[tokio::test]
async fn a_body_of_another_shape_is_refused() {
    let gateway = Gateway::start(|_| {}).await;
    let full: Vec<String> = (0..21).map(|n| format!("QC{n}")).collect();
    let too_many = json!([full]).to_string();
    let (count, kind) = ("invalid argument count", "argument type mismatch");
    for (body, status, message) in [
        ("", 1, "参数错误"),
        ("not json", 1, "参数错误"),
        (r#"{"order_no_list":["QC1"]}"#, 1, "参数错误"),
        ("[]", 1, count),
        (r#"["QC1","QC2"]"#, 1, count),
        (r#"[["QC1"],["QC2"]]"#, 1, count),
        (r#"["QC1"]"#, 1, kind),
        (r#"[{"order_no_list":["QC1"]}]"#, 1, kind),
        (r#"[["QC1",2]]"#, 1, kind),
        (r#"[["QC1",null]]"#, 1, kind),
        (too_many.as_str(), 1, "参数错误"),
        ("[[]]", 100, "不能为空"),
        (r#"[["QC1",""]]"#, 100, "不能为空"),
        (r#"[["QC1"," "]]"#, 100, "不能为空"),
        (
            r#"[["QC1","其他出库单据0123456789012345678901234567890123456789"]]"#,
            100,
            "Data truncation",
        ),
    ] {
        let request = Request::new(&demo(), sign::CANCEL, None, body.as_bytes());
        gateway.refuses(request, status, message).await;
    }
    for (body, status, message) in [
        ("[]", 1, kind),
        (r#"["QC1"]"#, 1, kind),
        (r#"[{"other_out_no":1}]"#, 1, kind),
        ("[{}]", 100, "不能为空"),
        (r#"[{"other_out_no":""}]"#, 100, "不能为空"),
    ] {
        let paging = Some(Paging {
            page_size: 1,
            page_no: 0,
            calc_total: false,
        });
        let request = Request::new(&demo(), sign::QUERY, paging, body.as_bytes());
        gateway.refuses(request, status, message).await;
    }
    let now = Request::new(&demo(), sign::NOW, None, b"[1]");
    gateway.refuses(now, 1, count).await;

    let mut huge = br#"[[""#.to_vec();
    huge.resize(BODY_MAX_BYTES - 3, b'Q');
    huge.extend_from_slice(br#""]]"#);
    let fits = Request::new(&demo(), sign::CANCEL, None, &huge);
    gateway.refuses(fits, 100, "Data truncation").await;
    huge.push(b'\n');
    let over = Request::new(&demo(), sign::CANCEL, None, &huge);
    gateway.refuses(over, 1, "参数错误").await;

    assert_eq!(gateway.record().orders("demo_sid"), []);
    let at_the_bounds = "其".repeat(40);
    assert_eq!(
        gateway.cancel(&[&at_the_bounds]).await,
        lists(&[&at_the_bounds], &[])
    );
}

#[tokio::test]
async fn its_clock_counts() {
    let gateway = Gateway::start(|options| options.clock_offset_seconds = 3_600).await;
    let asked = timestamp_now();
    let answer = gateway
        .send(&Request::at(asked + 3_600, &demo(), sign::NOW, None, b"[]"))
        .await;
    assert_eq!(answer["status"], 0);
    let told =
        jiff::civil::DateTime::strptime("%Y-%m-%d %H:%M:%S", answer["data"].as_str().unwrap());
    let told = jiff::tz::offset(8).to_timestamp(told.unwrap()).unwrap();
    let ahead = sign::timestamp(told.as_second()) - asked;
    assert!((3_600..3_660).contains(&ahead), "{ahead}");

    // Ten seconds apart from the bounds, for the time that the test itself takes.
    for (off, fits) in [(-110, true), (110, true), (-121, false), (131, false)] {
        let at = timestamp_now() + 3_600 + off;
        let request = Request::at(at, &demo(), sign::CANCEL, None, br#"[["NONE-1"]]"#);
        let answer = gateway.send(&request).await;
        assert_eq!(answer["status"], if fits { 0 } else { 7 }, "{off}");
    }
    gateway
        .refuses(Request::cancel(&["QC1"]), 7, "时间戳错误")
        .await;
}

#[tokio::test]
async fn queries_are_paged() {
    let gateway = Gateway::start(|_| {}).await;
    let ask = async |page_size: u32, page_no: u32, calc_total: bool| {
        let paging = Paging {
            page_size,
            page_no,
            calc_total,
        };
        let body = br#"[{"other_out_no":"DASH-7","start_time":null}]"#;
        let request = Request::new(&demo(), sign::QUERY, Some(paging), body);
        gateway.send(&request).await
    };
    let order = |number: &str| json!({"other_out_no": number, "status": 20});
    let page = |orders: Value| json!({"status": 0, "data": {"order": orders, "total_count": 2}});
    assert_eq!(ask(1, 0, true).await, page(json!([order("DASH-7")])));
    assert_eq!(ask(1, 1, true).await, page(json!([order("DASH-7-1")])));
    assert_eq!(ask(1, 2, true).await, page(json!([])));
    assert_eq!(ask(0, 0, true).await["status"], 1);
    let uncounted = ask(2, 0, false).await;
    assert_eq!(
        uncounted["data"],
        json!({"order": [order("DASH-7"), order("DASH-7-1")]})
    );
    let words = Request::query("QC1")
        .with("page_no", "first")
        .signed_by(&demo());
    gateway
        .refuses(words, 1, "For input string: \"first\"")
        .await;
}

#[tokio::test]
async fn looking_up_can_be_forbidden() {
    let gateway = Gateway::start(|options| options.query_permission = false).await;
    gateway
        .refuses(Request::query("QC1"), 100, "权限不足")
        .await;
    assert_eq!(gateway.cancel(&["QC1"]).await, lists(&["QC1"], &[]));
}

#[tokio::test]
async fn sellers_have_orders_of_their_own() {
    let other = account("other_sid", "other-key", "a:b");
    let gateway = Gateway::start(|options| options.accounts.push(other.clone())).await;
    let body = br#"[["QC1"]]"#;
    for account in [&demo(), &other] {
        let request = Request::new(account, sign::CANCEL, None, body);
        assert_eq!(gateway.send(&request).await, lists(&["QC1"], &[]));
    }
    assert_eq!(
        gateway.cancel(&["QC1"]).await,
        lists(&[], &[("QC1", STATE)])
    );
}

#[tokio::test]
async fn an_answer_may_not_come_after_the_call_was_executed() {
    let gateway = Gateway::start(|_| {}).await;
    assert_eq!(
        gateway
            .raw(&Request::cancel(&["QC1", "LOST-1", "LOST-2"]))
            .await,
        (String::new(), None)
    );
    assert_eq!(gateway.state("QC1"), Some(80));
    // Both have had their fault, and are found as the lost call left them.
    assert_eq!(gateway.look_up("LOST-1").await, [("LOST-1".to_owned(), 80)]);
    assert_eq!(
        gateway.cancel(&["LOST-1", "LOST-2"]).await,
        lists(&[], &[("LOST-1", STATE), ("LOST-2", STATE)])
    );

    // The same as an HTTP client sees it, on a connection that was used before.
    let lost = gateway.prepare(&Request::cancel(&["LOST-3"])).send().await;
    assert!(lost.unwrap_err().is_request());
    assert_eq!(
        gateway.record().order("demo_sid", "LOST-3").unwrap().named,
        1
    );

    let failed = gateway.prepare(&Request::cancel(&["E500X-1"])).send().await;
    assert_eq!(failed.unwrap().status(), 500);
    assert_eq!(
        gateway.cancel(&["E500X-1"]).await,
        lists(&[], &[("E500X-1", STATE)])
    );
}

#[tokio::test]
async fn an_answer_may_be_cut_short() {
    let gateway = Gateway::start(|_| {}).await;
    let (answer, end) = gateway.raw(&Request::cancel(&["CUT-1"])).await;
    assert_eq!(end, None);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
    let whole = r#"{"status":0,"data":{"error_data":[],"success_data":["CUT-1"]}}"#;
    let head = head.to_lowercase();
    assert!(
        head.contains(&format!("content-length: {}", whole.len())),
        "{head}"
    );
    assert_eq!(body, &whole[..whole.len() / 2]);
    assert_eq!(gateway.state("CUT-1"), Some(80));

    let response = gateway.prepare(&Request::cancel(&["CUT-2"])).send().await;
    assert!(response.unwrap().bytes().await.is_err());
    assert_eq!(
        gateway.cancel(&["CUT-2"]).await,
        lists(&[], &[("CUT-2", STATE)])
    );
}

#[tokio::test]
async fn a_connection_may_be_reset_before_the_call_is_executed() {
    let gateway = Gateway::start(|_| {}).await;
    assert_eq!(
        gateway.raw(&Request::cancel(&["RESET-1"])).await,
        (String::new(), Some(io::ErrorKind::ConnectionReset))
    );
    assert_eq!(gateway.state("RESET-1"), Some(20));
    assert_eq!(gateway.cancel(&["RESET-1"]).await, lists(&["RESET-1"], &[]));
}

#[tokio::test]
async fn an_answer_may_be_no_answer_of_the_gateway() {
    let gateway = Gateway::start(|_| {}).await;
    for (number, status, content_type, empty) in [
        ("E500-1", 500, "text/html", false),
        ("E503-1", 503, "text/html", false),
        ("HTML-1", 200, "text/html", false),
        ("EMPTY-1", 200, "application/json", true),
    ] {
        let response = gateway
            .prepare(&Request::cancel(&[number]))
            .send()
            .await
            .unwrap();
        assert_eq!(response.status(), status, "{number}");
        let headers = response.headers();
        assert!(
            headers["content-type"]
                .to_str()
                .unwrap()
                .starts_with(content_type)
        );
        let after = headers.get("retry-after").map(|v| v.to_str().unwrap());
        assert_eq!(after, (status == 503).then_some("1"), "{number}");
        assert_eq!(
            response.bytes().await.unwrap().is_empty(),
            empty,
            "{number}"
        );
        assert_eq!(gateway.state(number), Some(20), "{number}");
        assert_eq!(gateway.cancel(&[number]).await, lists(&[number], &[]));
    }
}

#[tokio::test]
async fn an_answer_may_come_late() {
    const LATE: Duration = Duration::from_millis(200);
    let gateway = Gateway::start(|options| options.slow = LATE).await;
    let start = Instant::now();
    assert_eq!(gateway.cancel(&["SLOW-1"]).await, lists(&["SLOW-1"], &[]));
    assert!(start.elapsed() >= LATE);

    let slow = Gateway::start(|options| options.latency = LATE).await;
    let start = Instant::now();
    assert_eq!(slow.cancel(&["QC1"]).await, lists(&["QC1"], &[]));
    assert!(start.elapsed() >= LATE);
}

#[tokio::test]
async fn a_caller_that_does_not_wait_has_cancelled_all_the_same() {
    let mut lines = None;
    let gateway = Gateway::start(|options| {
        lines = Some(printed(options));
        options.slow = PATIENCE * 10;
        options.concurrency = 1;
    })
    .await;
    let mut lines = lines.unwrap();
    let call = tokio::spawn(gateway.prepare(&Request::cancel(&["SLOW-1"])).send());
    gateway.has_cancelled("SLOW-1").await;
    call.abort();
    let told = line(&mut lines).await;
    assert!(
        told.starts_with(
            "cancelOrder 1 SLOW-1: 1 cancelled, 0 refused [slow], the caller did not wait"
        ),
        "{told}"
    );
    assert_eq!(gateway.state("SLOW-1"), Some(80));
    // And occupies no place any more.
    assert_eq!(gateway.cancel(&["QC1"]).await, lists(&["QC1"], &[]));
}

#[tokio::test]
async fn orders_go_wrong_by_themselves() {
    let gateway = Gateway::start(|_| {}).await;
    let busy = gateway.cancel(&["QC1", "BUSY-1"]).await;
    assert_eq!(busy["data"]["success_data"], json!(["QC1"]));
    let words = busy["data"]["error_data"][0]["err_msg"].as_str().unwrap();
    assert!(words.contains("请稍后重试"), "{words}");
    assert_eq!(gateway.cancel(&["BUSY-1"]).await, lists(&["BUSY-1"], &[]));

    assert_eq!(
        gateway.cancel(&["BOTH-1"]).await,
        lists(&["BOTH-1"], &[("BOTH-1", STATE)])
    );
    assert_eq!(gateway.cancel(&["NEITHER-1"]).await, lists(&[], &[]));
    for number in ["BOTH-1", "NEITHER-1"] {
        assert_eq!(gateway.look_up(number).await, [(number.to_owned(), 80)]);
        assert_eq!(
            gateway.cancel(&[number]).await,
            lists(&[], &[(number, STATE)])
        );
    }

    assert_eq!(gateway.cancel(&["DASH-1"]).await, lists(&["DASH-1-1"], &[]));
    assert_eq!(
        gateway.look_up("DASH-1").await,
        [("DASH-1".to_owned(), 80), ("DASH-1-1".to_owned(), 80)]
    );
    assert_eq!(
        gateway.cancel(&["DASH-1"]).await,
        lists(&[], &[("DASH-1", STATE)])
    );
}

#[tokio::test]
async fn a_bad_order_spoils_every_call_it_is_in() {
    let gateway = Gateway::start(|_| {}).await;
    for _ in 0..3 {
        let call = Request::cancel(&["QC1", "BAD-1", "LOST-1"]);
        gateway.refuses(call, 100, "不能为空").await;
    }
    assert_eq!(gateway.state("QC1"), Some(20));
    // The other's fault was not used up by calls in which nobody could see it.
    let (answer, _) = gateway.raw(&Request::cancel(&["LOST-1"])).await;
    assert_eq!(answer, "");
}

#[tokio::test]
async fn calling_too_often_is_refused() {
    let gateway = Gateway::start(|options| options.calls_per_minute = 2).await;
    let often = "超过每分钟最大调用频率限制";
    // A call that is refused at the door is not counted.
    gateway
        .refuses(
            Request::cancel(&["QC1"]).with("salt", "x"),
            1,
            "app auth fail",
        )
        .await;
    assert_eq!(gateway.cancel(&["QC1"]).await, lists(&["QC1"], &[]));
    assert_eq!(gateway.look_up("QC1").await.len(), 1);
    gateway.refuses(Request::cancel(&["QC2"]), 100, often).await;
    gateway.refuses(Request::query("QC2"), 100, often).await;
    assert_eq!(gateway.state("QC2"), None);

    // By prefix, without a quota.
    let free = Gateway::start(|_| {}).await;
    free.refuses(Request::cancel(&["FREQ-1"]), 100, often).await;
    assert_eq!(free.cancel(&["FREQ-1"]).await, lists(&["FREQ-1"], &[]));
}

#[tokio::test]
async fn calling_too_much_at_a_time_is_refused() {
    let gateway = Gateway::start(|options| {
        options.slow = PATIENCE * 10;
        options.concurrency = 1;
    })
    .await;
    let slow = gateway.prepare(&Request::cancel(&["SLOW-1"]));
    let slow = tokio::spawn(slow.send());
    gateway.has_cancelled("SLOW-1").await;
    gateway
        .refuses(Request::cancel(&["QC1"]), 100, "超过每分钟最大并发次数限制")
        .await;

    // A stop does not wait for it, and frees the port.
    let addr = gateway.running.addr;
    let start = Instant::now();
    gateway.running.stop().await;
    assert!(start.elapsed() < PATIENCE);
    assert!(slow.await.unwrap().is_err());
    assert!(TcpStream::connect(addr).await.is_err());
    TcpListener::bind(addr).await.unwrap();
}

#[tokio::test]
async fn dropping_the_handle_ends_it() {
    let gateway = Gateway::start(|_| {}).await;
    let addr = gateway.running.addr;
    assert_eq!(gateway.cancel(&["QC1"]).await, lists(&["QC1"], &[]));
    let record = gateway.record();
    drop(gateway);
    let ended = async {
        while TcpStream::connect(addr).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, ended).await.unwrap();
    assert_eq!(record.order("demo_sid", "QC1").unwrap().state, Some(80));
}

#[tokio::test]
async fn a_fault_can_be_played_more_often() {
    let gateway = Gateway::start(|options| options.fault_times = 2).await;
    for status in [500, 500, 200] {
        let response = gateway.prepare(&Request::cancel(&["E500-1"])).send().await;
        assert_eq!(response.unwrap().status(), status);
    }
    let never = Gateway::start(|options| options.fault_times = 0).await;
    assert_eq!(never.cancel(&["LOST-1"]).await, lists(&["LOST-1"], &[]));
}

#[tokio::test]
async fn faults_strike_by_chance() {
    let rated = async |fault: &str| {
        Gateway::start(|options| options.faults = vec![fault.parse().unwrap()]).await
    };
    // Lookups and the clock are struck as well.
    let gateway = rated("500=1").await;
    for request in [
        Request::cancel(&["QC1"]),
        Request::query("QC1"),
        Request::new(&demo(), sign::NOW, None, b"[]"),
    ] {
        let response = gateway.prepare(&request).send().await.unwrap();
        assert_eq!(response.status(), 500);
    }
    assert_eq!(gateway.state("QC1"), Some(20));

    assert_eq!(
        rated("lost=1").await.raw(&Request::query("QC1")).await,
        (String::new(), None)
    );
    assert_eq!(
        rated("neither=1").await.cancel(&["QC1"]).await,
        lists(&[], &[])
    );
    assert_eq!(
        rated("dash=1").await.cancel(&["QC1"]).await,
        lists(&["QC1-1"], &[])
    );
    rated("bad=1")
        .await
        .refuses(Request::cancel(&["QC1"]), 100, "不能为空")
        .await;
}

#[tokio::test]
async fn the_same_seed_plays_the_same_faults() {
    let play = async |seed: u64| {
        let gateway = Gateway::start(|options| {
            options.seed = seed;
            options.faults = ["500=0.3", "busy=0.3"].map(|f| f.parse().unwrap()).into();
        })
        .await;
        let mut answers = Vec::new();
        for number in 0..40 {
            let request = Request::cancel(&[&format!("QC{number}")]);
            let response = gateway.prepare(&request).send().await.unwrap();
            answers.push(response.text().await.unwrap());
        }
        answers
    };
    let first = play(1).await;
    assert_eq!(play(1).await, first);
    assert_ne!(play(2).await, first);
}

#[tokio::test]
async fn each_call_is_told_in_one_short_line_without_secrets() {
    let mut lines = None;
    let gateway = Gateway::start(|options| lines = Some(printed(options))).await;
    let mut lines = lines.unwrap();

    let numbers: Vec<String> = (0..20)
        .map(|n| format!("QC{n}{}", "长".repeat(30)))
        .collect();
    let numbers: Vec<&str> = numbers.iter().map(String::as_str).collect();
    let nonsense = "x\n\x1b[2J".repeat(1_000);
    let spoiled = Request::cancel(&["QC1"]).with("method", &nonsense);
    for (request, start) in [
        (
            Request::cancel(&["QC1", "NONE-1"]),
            "cancelOrder 2 QC1 NONE-1: 1 cancelled, 1 refused (",
        ),
        (Request::cancel(&numbers), "cancelOrder 20 QC0长"),
        (Request::query("QC1"), "queryWithDetail QC1: state 80 ("),
        (Request::new(&demo(), sign::NOW, None, b"[]"), "now: ok ("),
        (
            Request::cancel(&["QC1"]).with("key", "k"),
            "cancelOrder: status 1 app auth fail (",
        ),
        (
            Request::cancel(&["a\nb\x1b[2J"]),
            "cancelOrder 1 a·b·[2J: 1 cancelled",
        ),
        (spoiled, "x··[2J"),
    ] {
        gateway.prepare(&request).send().await.unwrap();
        let told = line(&mut lines).await;
        assert!(told.starts_with(start), "{told:?}");
        assert!(told.ends_with(" ms)\n"), "{told:?}");
        assert!(told.chars().count() < 280, "{told:?}");
        let sign = &request.query.last().unwrap().1;
        for secret in ["testsecret", "testsalt", sign.as_str()] {
            assert!(!told.contains(secret), "{told:?}");
        }
    }

    let url = format!("http://{}/elsewhere", gateway.running.addr);
    let response = gateway.http.post(url).send().await.unwrap();
    assert_eq!(response.status(), 404);
    assert_eq!(
        line(&mut lines).await,
        "/elsewhere: 404, the gateway is at /openapi\n"
    );
    assert!(lines.try_recv().is_err());
}

#[tokio::test]
async fn the_oldest_order_is_forgotten() {
    let gateway = Gateway::start(|options| {
        options.remembered_orders = 4;
        options.max_orders_per_call = 2;
    })
    .await;
    for orders in [["QC1", "QC2"], ["QC3", "QC4"], ["QC5", "QC6"]] {
        assert_eq!(gateway.cancel(&orders).await, lists(&orders, &[]));
    }
    assert_eq!(gateway.look_up("QC1").await, [("QC1".to_owned(), 20)]);
    assert_eq!(gateway.look_up("QC3").await, [("QC3".to_owned(), 80)]);
}

#[tokio::test]
async fn options_that_contradict_themselves_are_refused() {
    let refused = async |edit: fn(&mut Options), word: &str| {
        let mut options = Options {
            accounts: vec![demo()],
            ..Options::default()
        };
        edit(&mut options);
        let error = match Sandbox::start(options).await {
            Ok(_) => panic!("started although {word}"),
            Err(error) => error.to_string(),
        };
        assert!(error.contains(word), "{error}");
    };
    refused(|o| o.accounts.clear(), "needs an account").await;
    refused(|o| o.accounts.push(demo()), "given twice").await;
    refused(|o| o.max_orders_per_call = 0, "must be allowed").await;
    refused(|o| o.remembered_orders = 39, "at least 40 orders").await;
    refused(
        |o| o.faults = ["lost=0.6", "cut=0.6"].map(|f| f.parse().unwrap()).into(),
        "add up to 1.2",
    )
    .await;
    let taken = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0)))
        .await
        .unwrap();
    let options = Options {
        accounts: vec![demo()],
        listen: taken.local_addr().unwrap(),
        ..Options::default()
    };
    assert!(Sandbox::start(options).await.is_err());
}
