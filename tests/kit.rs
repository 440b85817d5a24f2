//! The test kit tested: what the other tests stand on.
#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, its helpers too"
)]

mod support;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::amqp::{self, Amqp, RESULTS};
use support::broker::{Broker, Consumer, Queue, Vhost};
use support::eventually::{eventually, eventually_ok};
use support::gateway::{self, Account, Answer, CANCEL, Gateway, NOW, QUERY, form_decode, sign};
use support::orders::{NO_SUCH_ORDER, NOT_CANCELLABLE, Orders};
use support::process::{Process, fresh_dir};
use support::worker::{self, Setup};

/// Longer than anything here takes on a machine that is busy with other things.
const SOON: Duration = Duration::from_secs(30);

// Processes

/// Lives only inside [`nothing_outlives_a_killed_test_process`], which starts this test alone in a
/// test process of its own and kills that.
#[tokio::test]
#[ignore = "waits to be killed"]
async fn a_test_process_that_is_killed() {
    let broker = Broker::shared().await;
    eprintln!("\nheld {}", broker.dir().display());
    std::future::pending().await
}

#[tokio::test]
async fn nothing_outlives_a_killed_test_process() {
    let mut tests = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_test_process_that_is_killed"])
        .args(["--ignored", "--nocapture"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let said = BufReader::new(tests.stderr.take().unwrap());
    let dir = said
        .lines()
        .find_map(|line| Some(line.unwrap().strip_prefix("held ")?.to_string()))
        .unwrap();
    let living = living_with(&dir);
    for name in ["beam.smp", "epmd"] {
        assert!(living.iter().any(|n| n == name), "{living:?}");
    }

    tests.kill().unwrap();
    tests.wait().unwrap();

    eventually_ok(SOON, "everything is gone", async || {
        let living = living_with(&dir);
        let gone = living.is_empty() && !Path::new(&dir).exists();
        gone.then_some(()).ok_or(living)
    })
    .await;
}

/// The names of the processes that have a text in their environment. Zombies have none.
fn living_with(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap() {
        let path = entry.unwrap().path();
        let environ = std::fs::read(path.join("environ")).unwrap_or_default();
        if String::from_utf8_lossy(&environ).contains(text) {
            let name = std::fs::read_to_string(path.join("comm")).unwrap_or_default();
            found.push(name.trim_end().to_string());
        }
    }
    found
}

#[tokio::test]
async fn the_binary_is_run_with_the_environment_that_the_test_says() {
    let mut version = Setup::new("amqp://nobody", "http://nobody").start_with(&["--version"]);
    assert_eq!(version.exit_code(SOON).await, 0);
}

#[tokio::test]
async fn pages_are_read_over_http() {
    let gateway = Gateway::start(Orders::new().handler());
    let port = gateway.url()["http://127.0.0.1:".len()..][..5]
        .parse()
        .unwrap();
    let (status, body) = worker::get(port, "/readyz?x=y").await.unwrap();
    assert_eq!((status, body.as_str()), (400, "not a request"));
    assert_eq!(gateway.take_faults(), ["not HTTP/1.1: its first line"]);
    drop(gateway);
    assert_eq!(worker::get(port, "/readyz").await, None);
}

#[tokio::test]
async fn a_process_gets_signals_itself_and_tells_its_exit_code() {
    let log = fresh_dir("process").join("log");
    let script = "trap 'echo bye; exit 3' TERM; echo hello; while :; do sleep 0.1; done";
    let mut process = Process::start("a shell", "/bin/sh", &["-c", script], &[], &log);
    eventually(SOON, "it runs", async || {
        process.log().contains("hello").then_some(())
    })
    .await;
    assert_eq!(process.ended(), None);
    process.signal(support::process::Signal::TERM);
    assert_eq!(process.end_within(SOON).await.code(), Some(3));
    assert_eq!(process.log(), "hello\nbye\n");
}

// The broker

#[tokio::test]
async fn commands_and_events_pass_through_a_virtual_host_of_the_tests_own() {
    let vhost = Vhost::fresh().await;
    let amqp = Amqp::connect(&vhost.url()).await;
    quorum_queue(&amqp, amqp::COMMANDS).await;
    let mut results = amqp.results().await;
    let mut replies = amqp.replies().await;
    assert!(replies.name().starts_with("amq.gen-"), "{}", replies.name());

    let command = amqp::Command::orders(["QC1", "QC2"])
        .field("account", "second")
        .id("cmd-1")
        .correlation_id("corr-1")
        .reply_to(replies.name())
        .header("traceparent", "00-1-2-01");
    amqp.send(&command).await;
    vhost.queue_holds(SOON, amqp::COMMANDS, 1, 0).await;

    let mut commands = amqp.inbox(amqp::COMMANDS).await;
    let got = commands.collect(1, SOON).await.remove(0);
    assert_eq!(
        got.body,
        json!({ "order_no_list": ["QC1", "QC2"], "account": "second" })
    );
    assert_eq!(got.message_id.as_deref(), Some("cmd-1"));
    assert_eq!(got.correlation_id.as_deref(), Some("corr-1"));
    assert_eq!(got.headers["traceparent"], "00-1-2-01");
    assert_eq!(got.delivery_mode, Some(2));
    assert!(!got.redelivered);
    vhost.queue_holds(SOON, amqp::COMMANDS, 0, 0).await;

    let event = json!({
        "event_id": "b4b14e9a-7019-53d7-90bb-21532e963222",
        "command_id": "cmd-1",
        "account": "default",
        "order_no": "QC1",
        "outcome": "refused",
        "reason": { "code": "order_state", "message": "单据状态不允许取消" },
        "attempts": 1,
        "replayed": false,
        "index": 0,
        "total": 1,
        "occurred_at": "2026-11-23T12:00:00.000Z",
    });
    publish(&amqp, RESULTS, "cancel.default.refused", &event).await;
    publish(&amqp, "", replies.name(), &event).await;
    for inbox in [&mut results, &mut replies] {
        let got = inbox.collect(1, SOON).await.remove(0);
        assert_eq!(got.order_no(), "QC1");
        assert_eq!(got.outcome(), "refused");
        assert_eq!(got.reason_code(), "order_state");
        assert_eq!(got.kind.as_deref(), Some("wdt.cancel.result.v1"));
        inbox.stays_empty(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn the_broker_tells_what_is_unacknowledged_and_who_consumes() {
    let vhost = Vhost::fresh().await;
    let amqp = Amqp::connect(&vhost.url()).await;
    quorum_queue(&amqp, "q").await;
    let commands: Vec<_> = (0..600)
        .map(|n| amqp::Command::orders([n.to_string()]))
        .collect();
    amqp.send_all("q", &commands).await;
    let channel = amqp.channel().await;
    let prefetch = lapin::options::BasicQosOptions::default();
    channel.basic_qos(7, prefetch).await.unwrap();
    let consumer = channel
        .basic_consume(
            "q".into(),
            "me".into(),
            Default::default(),
            Default::default(),
        )
        .await
        .unwrap();

    vhost.queue_holds(SOON, "q", 593, 7).await;
    assert_eq!(
        vhost.queues().await,
        [Queue {
            name: "q".into(),
            ready: 593,
            unacked: 7,
            consumers: 1
        }]
    );
    assert_eq!(
        vhost.consumers().await,
        [Consumer {
            queue: "q".into(),
            tag: "me".into(),
            prefetch: 7,
            manual_ack: true,
            connected: true,
        }]
    );
    drop(consumer);
    assert_eq!(vhost.queue("other").await, None);
}

#[tokio::test]
async fn every_connection_but_the_kits_is_closed_on_request() {
    let vhost = Vhost::fresh().await;
    let amqp = Amqp::connect(&vhost.url()).await;
    let other = lapin::Connection::connect(&vhost.url(), Default::default())
        .await
        .unwrap();
    assert_eq!(vhost.close_connections().await, 1);
    eventually(SOON, "the connection is closed", async || {
        (!other.status().connected()).then_some(())
    })
    .await;
    quorum_queue(&amqp, "still-connected").await;
}

#[tokio::test]
async fn an_own_broker_can_be_frozen_alarmed_killed_and_restarted() {
    let mut broker = Broker::start().await;
    let vhost = broker.vhost().await;
    let amqp = Amqp::connect(&vhost.url()).await;
    quorum_queue(&amqp, "q").await;
    amqp.send_to("q", &amqp::Command::orders(["QC1"])).await;

    broker.raise_alarm().await;
    let other = Amqp::connect(&vhost.url()).await;
    let command = amqp::Command::orders(["QC2"]);
    let publish = other.send_to("q", &command);
    let mut publish = std::pin::pin!(publish);
    let blocked = tokio::time::timeout(Duration::from_millis(300), &mut publish).await;
    assert!(blocked.is_err(), "published in spite of the alarm");
    broker.end_alarm().await;
    publish.await;

    broker.freeze();
    let url = vhost.url();
    let connect = lapin::Connection::connect(&url, Default::default());
    let mute = tokio::time::timeout(Duration::from_millis(300), connect).await;
    assert!(mute.is_err(), "a frozen broker spoke");
    broker.thaw();
    vhost.queue_holds(SOON, "q", 2, 0).await;

    let before = broker.pid();
    broker.kill9().await;
    assert!(!Path::new(&format!("/proc/{before}")).exists());
    assert!(
        lapin::Connection::connect(&vhost.url(), Default::default())
            .await
            .is_err()
    );
    broker.restart().await;
    assert_ne!(broker.pid(), before);
    let amqp = Amqp::connect(&vhost.url()).await;
    vhost.queue_holds(SOON, "q", 2, 0).await;
    assert_eq!(amqp.inbox("q").await.collect(2, SOON).await.len(), 2);
}

async fn quorum_queue(amqp: &Amqp, name: &str) {
    let durable = lapin::options::QueueDeclareOptions {
        durable: true,
        ..Default::default()
    };
    let mut arguments = lapin::types::FieldTable::default();
    arguments.insert(
        "x-queue-type".into(),
        lapin::types::AMQPValue::LongString("quorum".into()),
    );
    let channel = amqp.channel().await;
    channel
        .queue_declare(name.into(), durable, arguments)
        .await
        .unwrap();
}

async fn publish(amqp: &Amqp, exchange: &str, routing_key: &str, body: &Value) {
    let properties = lapin::BasicProperties::default().with_type("wdt.cancel.result.v1".into());
    let channel = amqp.channel().await;
    channel
        .basic_publish(
            exchange.into(),
            routing_key.into(),
            Default::default(),
            body.to_string().as_bytes(),
            properties,
        )
        .await
        .unwrap();
}

// The gateway

/// The four published vectors: who checks signatures must be right about them.
#[test]
fn the_gateways_own_signature_is_the_platforms() {
    let ascii = [
        ("sid", "demo_sid"),
        ("key", "demo-app-key"),
        ("salt", "testsalt"),
        ("timestamp", "480000000"),
        ("v", "1.0"),
        ("method", CANCEL),
    ];
    let paged = [
        ("method", QUERY),
        ("page_size", "1"),
        ("page_no", "0"),
        ("calc_total", "1"),
    ];
    check_sign(
        "693f9fed686bfe13441385da98b436b6",
        &[
            ("sid", "wdterp30"),
            ("key", "czhc"),
            ("salt", "dd488d0802b1e431e4c72cd355847853"),
            ("timestamp", "232623153"),
            ("v", "1.0"),
            ("method", "wms.stockout.Sales.weighingExt"),
        ],
        r#"["xc109393939393939","",1.2,0,false]"#,
        "20f557aaf9190797c581bbceeb6d5a5c",
    );
    check_sign(
        "testsecret",
        &ascii,
        r#"[["QR3796","QR3795","QR3797"]]"#,
        "45d6146b172534a9012e09dacadbc0a0",
    );
    check_sign(
        "testsecret",
        &ascii,
        r#"[["其他出库-20261123-001","QC202409200002-1"]]"#,
        "71e3ddadf20e2c2e1d07776d50ed9ee2",
    );
    check_sign(
        "testsecret",
        &[&ascii[..5], &paged].concat(),
        r#"[{"other_out_no":"QC202409240008"}]"#,
        "ed0ec1acfa5bbcd09066663777624fc5",
    );
}

fn check_sign(secret: &str, query: &[(&str, &str)], body: &str, expected: &str) {
    assert_eq!(sign(secret, &owned(query), body.as_bytes()), expected);
}

fn owned(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs
        .iter()
        .map(|(n, v)| (n.to_string(), v.to_string()))
        .collect()
}

#[test]
fn form_encoding_is_read_strictly() {
    assert_eq!(form_decode("a+b%2Bc%E5%8F%96").as_deref(), Some("a b+c取"));
    for wrong in ["%", "%2", "%zz", "%ff", "取"] {
        assert_eq!(form_decode(wrong), None, "{wrong}");
    }
}

#[tokio::test]
async fn the_gateway_keeps_orders_and_counts_calls() {
    let orders = Orders::new();
    orders
        .set("QC-SHIPPED", 70)
        .remove("QC-NONE")
        .refuse("QC-BUSY", "请稍后重试");
    orders.set("QC-OLD", 70).set("QC-OLD-1", 40);
    let gateway = Gateway::start(orders.handler());
    let client = Client::new(&gateway);

    let answer = client
        .cancel(&["QC1", "QC-SHIPPED", "QC-NONE", "QC-BUSY", "QC-OLD"])
        .await;
    assert_eq!(
        answer,
        json!({ "status": 0, "data": {
            "success_data": ["QC1", "QC-OLD-1"],
            "error_data": [
                { "order_no": "QC-SHIPPED", "err_msg": NOT_CANCELLABLE },
                { "order_no": "QC-NONE", "err_msg": NO_SUCH_ORDER },
                { "order_no": "QC-BUSY", "err_msg": "请稍后重试" },
            ],
        }})
    );
    // A repeat is refused with the words for a wrong state: nothing protects from it.
    let repeat = client.cancel(&["QC1"]).await;
    assert_eq!(repeat["data"]["error_data"][0]["err_msg"], NOT_CANCELLABLE);
    assert_eq!(
        (orders.times_sent("QC1"), orders.times_executed("QC1")),
        (2, 1)
    );

    let found = client.query("QC1").await;
    assert_eq!(found["data"]["order"][0]["status"], 80);
    let found = client.query("QC-NONE").await;
    assert_eq!(found["data"], json!({ "total_count": 0, "order": [] }));
    assert_eq!(client.query("QC2").await["data"]["order"][0]["status"], 20);

    assert_eq!((orders.calls(CANCEL), orders.calls(QUERY)), (2, 3));
    assert_eq!(orders.times_looked_up("QC1"), 1);
    assert_eq!(gateway.longest_list(), 5);
    assert_eq!(gateway.most_calls_within(Duration::from_secs(60), None), 5);
    assert_eq!(
        gateway.most_calls_within(Duration::from_secs(60), Some("other")),
        0
    );
    let requests = gateway.requests();
    assert!(requests.iter().all(|r| r.connection == 0), "not kept alive");
    assert_eq!(requests[1].body, br#"[["QC1"]]"#);
}

#[tokio::test]
async fn the_gateway_answers_as_scripted() {
    let script: Mutex<Vec<Answer>> = Mutex::new(vec![
        Answer::http(502, "text/html", "<html>bad gateway</html>"),
        Answer::CutBody(json!({ "status": 0, "data": { "success_data": ["QC1"] } })),
        Answer::Close,
        Answer::Reset,
        Answer::ChunkedGarbage,
        Answer::StalledBody(json!({ "status": 0 })),
        Answer::Hang,
        Answer::status(0, "late").after(SOON),
        Answer::status(0, "").after(Duration::from_millis(100)),
    ]);
    let gateway = Gateway::start(move |_| script.lock().unwrap().remove(0));
    let client = Client::new(&gateway);
    let html = client.call(CANCEL, "[[\"QC1\"]]").await.unwrap();
    assert_eq!(html, (502, "<html>bad gateway</html>".into()));
    for lost in ["cut", "closed", "reset", "garbage"] {
        let error = client.call(CANCEL, "[[\"QC1\"]]").await.expect_err(lost);
        assert!(!error.is_timeout(), "{lost}: {error:?}");
    }
    let hasty = Client::with_timeout(&gateway, "default", Duration::from_secs(1));
    for slow in ["stalled", "hung", "late"] {
        let error = hasty.call(CANCEL, "[[\"QC1\"]]").await.expect_err(slow);
        assert!(error.is_timeout(), "{slow}: {error:?}");
    }
    let start = Instant::now();
    assert_eq!(client.cancel(&["QC1"]).await["status"], 0);
    assert!(start.elapsed() >= Duration::from_millis(100));
    assert_eq!(gateway.requests().len(), 9);
}

#[tokio::test]
async fn hooks_replace_answers_before_or_after_the_execution() {
    let orders = Orders::new();
    orders
        .instead(|call| (call.has("QC1") && call.nth == 1).then(|| Answer::status(99, "其他错误")));
    orders.afterwards(|call| (call.is_cancel() && call.nth == 3).then_some(Answer::Close));
    let gateway = Gateway::start(orders.handler());
    let client = Client::new(&gateway);
    assert_eq!(client.cancel(&["QC1"]).await["status"], 99);
    assert_eq!(orders.status("QC1"), Some(20));
    assert_eq!(client.cancel(&["QC1"]).await["status"], 0);
    assert!(client.call(CANCEL, "[[\"QC2\"]]").await.is_err());
    assert_eq!(orders.status("QC2"), Some(80));
}

#[tokio::test]
async fn the_gateway_refuses_what_the_platform_would_not_understand() {
    let gateway = Gateway::start(|_| panic!("passed on to the handler"));
    let client = Client::new(&gateway);
    let faulty = async |method: &str, body: &str, change: fn(&mut Vec<(String, String)>)| {
        let (status, text) = client.changed(method, body, change).await.unwrap();
        assert_eq!(status, 200);
        let answer: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(answer["status"], 1, "{text}");
        assert_eq!(gateway.take_faults().len(), 1);
        answer["message"].as_str().unwrap().to_string()
    };
    let one = "[[\"QC1\"]]";
    assert!(
        faulty(CANCEL, one, |q| change(q, "sign", "0"))
            .await
            .starts_with("验证失败")
    );
    assert_eq!(
        faulty(CANCEL, one, |q| change(q, "sid", "x")).await,
        "sid is not exists"
    );
    assert_eq!(
        faulty(CANCEL, one, |q| change(q, "key", "x")).await,
        "app auth fail"
    );
    assert!(
        faulty(CANCEL, one, |q| change(q, "v", "2.0"))
            .await
            .contains("v is not")
    );
    assert!(
        faulty(CANCEL, one, |q| q.push(q[0].clone()))
            .await
            .contains("parameters")
    );
    assert!(
        faulty(QUERY, "[{}]", |q| q.retain(|p| p.0 != "page_no"))
            .await
            .contains("parameters")
    );
    for body in [
        "",
        "[]",
        "[[]]",
        "[\"QC1\"]",
        "[[1]]",
        "[[\"A\"],1]",
        "[[\"A\",\"A\"]]",
    ] {
        assert!(
            faulty(CANCEL, body, |_| ()).await.starts_with("参数错误"),
            "{body}"
        );
    }
    assert!(faulty(QUERY, one, |_| ()).await.starts_with("参数错误"));
    assert!(faulty(NOW, "[1]", |_| ()).await.starts_with("参数错误"));
    assert!(faulty("a.b.c", "[]", |_| ()).await.contains("a.b.c"));
}

#[tokio::test]
async fn the_gateways_clock_can_be_off() {
    let gateway = Gateway::start(Orders::new().handler());
    let client = Client::new(&gateway);
    gateway.set_clock_ahead(100);
    assert_eq!(client.cancel(&["QC1"]).await["status"], 0);
    gateway.set_clock_ahead(-125);
    assert_eq!(client.cancel(&["QC2"]).await["status"], 7);
    let (_, text) = client.call(NOW, "[]").await.unwrap();
    let told: Value = serde_json::from_str(&text).unwrap();
    assert!(
        (told["data"].as_i64().unwrap() - gateway.now()).abs() <= 1,
        "{told}"
    );
}

#[tokio::test]
async fn the_gateway_goes_down_and_comes_back_on_the_same_port() {
    let gateway = Gateway::start(Orders::new().handler());
    let client = Client::new(&gateway);
    assert_eq!(client.cancel(&["QC1"]).await["status"], 0);
    gateway.down();
    let error = Client::new(&gateway)
        .call(CANCEL, "[[\"QC2\"]]")
        .await
        .unwrap_err();
    assert!(error.is_connect(), "{error:?}");
    gateway.up();
    assert_eq!(client.cancel(&["QC2"]).await["status"], 0);
}

#[tokio::test]
async fn the_gateway_knows_how_many_calls_were_under_way_at_once() {
    let accounts = ["one", "two"].map(Account::named).to_vec();
    let gateway = Gateway::with_accounts(accounts, |_| {
        Answer::status(0, "").after(Duration::from_millis(500))
    });
    let one = Client::for_account(&gateway, "one");
    let two = Client::for_account(&gateway, "two");
    tokio::join!(
        one.cancel(&["A"]),
        one.cancel(&["B"]),
        one.cancel(&["C"]),
        two.cancel(&["D"])
    );
    assert_eq!(gateway.most_in_flight("sid-one"), 3);
    assert_eq!(gateway.most_in_flight("sid-two"), 1);
}

#[test]
fn calls_are_counted_in_a_window_that_slides() {
    let start = Instant::now();
    let at = |seconds: &[u64]| -> Vec<Instant> {
        seconds
            .iter()
            .map(|s| start + Duration::from_secs(*s))
            .collect()
    };
    let minute = Duration::from_secs(60);
    assert_eq!(gateway::most_within(minute, &[]), 0);
    assert_eq!(gateway::most_within(minute, &at(&[0, 60, 120])), 1);
    assert_eq!(gateway::most_within(minute, &at(&[0, 50, 59, 70, 110])), 3);
}

fn change(query: &mut [(String, String)], name: &str, value: &str) {
    query.iter_mut().find(|(n, _)| n == name).unwrap().1 = value.into();
}

/// A client of the gateway, as the platform's documents would have it.
struct Client {
    http: reqwest::Client,
    url: String,
    account: Account,
}

impl Client {
    fn new(gateway: &Gateway) -> Self {
        Self::for_account(gateway, "default")
    }

    fn for_account(gateway: &Gateway, name: &str) -> Self {
        Self::with_timeout(gateway, name, SOON)
    }

    fn with_timeout(gateway: &Gateway, name: &str, timeout: Duration) -> Self {
        Self {
            http: reqwest::Client::builder()
                .no_proxy()
                .retry(reqwest::retry::never())
                .timeout(timeout)
                .build()
                .unwrap(),
            url: gateway.url(),
            account: Account::named(name),
        }
    }

    async fn cancel(&self, orders: &[&str]) -> Value {
        let (_, text) = self
            .call(CANCEL, &json!([orders]).to_string())
            .await
            .unwrap();
        serde_json::from_str(&text).unwrap()
    }

    async fn query(&self, order: &str) -> Value {
        let body = json!([{ "other_out_no": order }]).to_string();
        let (_, text) = self.call(QUERY, &body).await.unwrap();
        serde_json::from_str(&text).unwrap()
    }

    async fn call(&self, method: &str, body: &str) -> reqwest::Result<(u16, String)> {
        self.changed(method, body, |_| ()).await
    }

    /// A call whose signed query was changed afterwards.
    async fn changed(
        &self,
        method: &str,
        body: &str,
        change: fn(&mut Vec<(String, String)>),
    ) -> reqwest::Result<(u16, String)> {
        let since_1970 = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
        let timestamp = (since_1970 - 1_325_347_200).to_string();
        let mut query = owned(&[
            ("sid", &self.account.sid),
            ("key", &self.account.key),
            ("salt", &self.account.salt),
            ("method", method),
            ("timestamp", &timestamp),
            ("v", "1.0"),
        ]);
        if method == QUERY {
            query.extend(owned(&[
                ("page_size", "1"),
                ("page_no", "0"),
                ("calc_total", "1"),
            ]));
        }
        let sign = sign(&self.account.secret, &query, body.as_bytes());
        query.push(("sign".into(), sign));
        change(&mut query);
        let query: Vec<String> = query
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        let response = self
            .http
            .post(format!("{}?{}", self.url, query.join("&")))
            .header("content-type", "application/json")
            .body(body.to_string())
            .send()
            .await?;
        let status = response.status().as_u16();
        Ok((status, response.text().await?))
    }
}
