//! What the gateway may do, and what the worker then does on the wire: the real binary between a
//! real broker and a scripted gateway.
//!
//! A test has a virtual host, a gateway and a worker of its own. Where a test runs through a table,
//! each row has an account or an order of its own, so that no row's fault meets another's calls.
//! Every test ends by the same door, [`House::close`], which checks what holds always: everything
//! told was looked at, no request was stale, no secret got out, and the worker stops when asked.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::{Value, json};
use support::amqp::{Amqp, COMMANDS, Command, DEAD, Inbox, Message};
use support::broker::Vhost;
use support::eventually::{eventually, eventually_ok};
use support::gateway::{Account, Answer, CANCEL, Gate, Gateway, NOW, QUERY, Request};
use support::orders::{Call, NO_SUCH_ORDER, NOT_CANCELLABLE, Orders};
use support::worker::{Setup, Worker};

/// For what takes milliseconds, or a few jittered seconds, on a machine that has other things to do.
const SOON: Duration = Duration::from_secs(30);
/// For what waits for the first trial of an account with wrong settings, 7.5 to 15 s.
const TRIAL: Duration = Duration::from_secs(45);
/// The gateway's window for counting calls.
const MINUTE: Duration = Duration::from_secs(60);
/// For what waits for that window to pass.
const OVER_A_MINUTE: Duration = Duration::from_secs(100);
/// `api.timeout` where a test lets the gateway be silent.
const SHORT: &str = "2s";
/// How far a time stamp may lie from the gateway's clock: a call is stamped right before it is sent,
/// and the clock is measured to about a second.
const STAMP_TOLERANCE: i64 = 4;
/// The platform's words to an account that calls too often.
const TOO_OFTEN: &str = "超过每分钟最大调用频率限制，请稍后再试";
/// The platform's words to an account that lacks a grant.
const NO_GRANT: &str = "权限不足";

// The house: one test's broker, gateway and worker

struct House {
    worker: Worker,
    gateway: Gateway,
    setup: Setup,
    results: Inbox,
    amqp: Amqp,
    vhost: Vhost,
    /// The logs of workers that were killed.
    old_logs: String,
}

impl House {
    /// Starts everything and waits until commands are taken.
    async fn open(gateway: Gateway, settings: impl FnOnce(Setup) -> Setup) -> Self {
        let mut house = Self::open_unready(gateway, settings).await;
        house.worker.wait_ready(SOON).await;
        house
    }

    /// Starts everything and waits until the queue of commands is there.
    async fn open_unready(gateway: Gateway, settings: impl FnOnce(Setup) -> Setup) -> Self {
        let vhost = Vhost::fresh().await;
        let amqp = Amqp::connect(&vhost.url()).await;
        // Before the worker, or its first events would find no queue.
        let results = amqp.results().await;
        let setup = Setup::new(&vhost.url(), &gateway.url()).set("WDT_API__CALLS_PER_MINUTE", 0);
        let setup = settings(setup);
        let worker = setup.start();
        eventually(SOON, "the worker declares its queue", async || {
            vhost.queue(COMMANDS).await
        })
        .await;
        Self {
            worker,
            gateway,
            setup,
            results,
            amqp,
            vhost,
            old_logs: String::new(),
        }
    }

    /// One command for these orders of the account `default`.
    async fn send<S: AsRef<str>>(&self, orders: impl IntoIterator<Item = S>) {
        self.amqp.send(&Command::orders(orders)).await;
    }

    /// One command for one order of an account.
    async fn send_for(&self, account: &str, order: &str) {
        let command = Command::orders([order]).field("account", account);
        self.amqp.send(&command).await;
    }

    /// The next `count` events, by their orders.
    async fn told(&mut self, count: usize, limit: Duration) -> Told {
        Told::new(self.results.collect(count, limit).await)
    }

    /// The calls of one method that carried this order.
    fn calls_with(&self, method: &str, order: &str) -> Vec<Request> {
        let mut calls = self.gateway.calls(method);
        calls.retain(|r| r.orders().iter().any(|o| o == order));
        calls
    }

    /// Everything that one account sent.
    fn requests_of(&self, account: &str) -> Vec<Request> {
        let mut requests = self.gateway.requests();
        requests.retain(|r| account_of(r) == account);
        requests
    }

    /// How often the worker has said this.
    fn log_count(&self, parts: &[&str]) -> usize {
        let log = self.worker.log();
        let says = |line: &&str| parts.iter().all(|part| line.contains(part));
        log.lines().filter(says).count()
    }

    /// Waits until `/readyz` has this status and names an account with these words.
    async fn readiness(&self, status: u16, account: &str, words: &str) -> Value {
        let what = format!("/readyz says {status} and {words:?} of {account}");
        eventually_ok(SOON, &what, async || {
            let (found, report) = self.worker.readiness().await.ok_or(Value::Null)?;
            let check = account_check(&report, account).clone();
            let says = check["cause"].as_str().is_some_and(|c| c.contains(words));
            if found == status && says {
                Ok(check)
            } else {
                Err(report)
            }
        })
        .await
    }

    /// SIGKILL, and another worker on the same ledger.
    async fn kill_and_restart(&mut self) {
        self.worker.kill9();
        self.old_logs.push_str(&self.worker.log());
        self.worker = self.setup.start();
    }

    /// What holds at the end of every test.
    async fn close(mut self) {
        // An event is confirmed before its command is acknowledged, so nothing can come any more.
        self.vhost.queue_holds(SOON, COMMANDS, 0, 0).await;
        let results = self.vhost.queue(self.results.name()).await;
        let results = results.expect("the queue of results");
        assert_eq!(
            (results.ready, results.unacked),
            (0, 0),
            "events that the test does not know of: {:#?}",
            self.results.next(Duration::from_secs(1)).await
        );
        let mut said = std::mem::take(&mut self.old_logs);
        for page in ["/livez", "/readyz", "/metrics"] {
            let (_, body) = self.worker.get(page).await.expect("the admin port answers");
            said.push_str(&body);
        }
        assert_eq!(self.worker.terminate(SOON).await, 0, "drained");
        said.push_str(&self.worker.log());
        self.check_secrets(&said);
        for request in self.gateway.requests() {
            assert_eq!(request.path, "/openapi", "nothing is called elsewhere");
        }
    }

    /// Neither the secrets nor a signature, which is as good as one for two minutes, were said.
    fn check_secrets(&self, said: &str) {
        let requests = self.gateway.requests();
        let mut secrets: BTreeSet<String> = requests.iter().map(|r| sign_of(r).into()).collect();
        for account in requests.iter().map(account_of) {
            let account = Account::named(account);
            secrets.insert(account.app_secret());
            secrets.insert(account.secret);
            secrets.insert(account.salt);
        }
        for secret in secrets {
            let line = said.lines().find(|line| line.contains(&secret));
            assert_eq!(line, None, "{secret} was said");
        }
    }
}

fn sign_of(request: &Request) -> &str {
    request.param("sign")
}

/// The account's name, which the kit's credentials are made of.
fn account_of(request: &Request) -> &str {
    let sid = request.param("sid");
    sid.strip_prefix("sid-").unwrap_or(sid)
}

/// `/readyz` on one account; null when it does not name it.
fn account_check<'a>(report: &'a Value, account: &str) -> &'a Value {
    let name = format!("account {account}");
    let checks = report["checks"].as_array().map_or(&[][..], Vec::as_slice);
    let found = checks.iter().find(|check| check["name"] == name.as_str());
    found.unwrap_or(&Value::Null)
}

/// A gateway that knows `default` and these accounts, and a worker's settings for all of them.
fn with_accounts(
    names: &[String],
    orders: &Orders,
) -> (Gateway, impl FnOnce(Setup) -> Setup + use<>) {
    let mut accounts = vec![Account::named("default")];
    accounts.extend(names.iter().map(|name| Account::named(name)));
    let gateway = Gateway::with_accounts(accounts, orders.handler());
    let names = names.to_vec();
    let settings = move |mut setup: Setup| {
        for name in names {
            setup = setup.account(&name, &Account::named(&name));
        }
        setup
    };
    (gateway, settings)
}

/// `row0`, `row1`, …: the names of a table's accounts.
fn row_names(rows: usize) -> Vec<String> {
    (0..rows).map(|row| format!("row{row}")).collect()
}

/// True the first time that it is asked for a name.
#[derive(Default)]
struct Once(BTreeSet<String>);

impl Once {
    fn is_first(&mut self, name: &str) -> bool {
        self.0.insert(name.into())
    }
}

/// Events by their orders; panics when an order is told twice.
struct Told(BTreeMap<String, Message>);

impl Told {
    fn new(messages: Vec<Message>) -> Self {
        let mut told = BTreeMap::new();
        for message in messages {
            let twice = told.insert(message.order_no().to_string(), message);
            assert!(twice.is_none(), "told twice: {twice:#?}");
        }
        Self(told)
    }

    #[track_caller]
    fn of(&self, order: &str) -> &Message {
        let found = self.0.get(order);
        found.unwrap_or_else(|| panic!("{order} was not told; told was {:#?}", self.0.keys()))
    }

    /// An order was told cancelled after so many calls.
    #[track_caller]
    fn cancelled(&self, order: &str, attempts: u64) {
        self.check(order, "cancelled", "", "", attempts);
    }

    /// An order was told this, in words that hold these.
    #[track_caller]
    fn check(&self, order: &str, outcome: &str, code: &str, words: &str, attempts: u64) {
        let event = self.of(order);
        let said = event.body["reason"]["message"].as_str().unwrap_or_default();
        assert_eq!(
            (event.outcome(), event.reason_code()),
            (outcome, code),
            "{order}: {said}"
        );
        assert!(said.contains(words), "{order}: {said:?} without {words:?}");
        assert_eq!(event.body["attempts"], attempts, "{order}: {said}");
    }
}

// Coalescing, and how many calls

#[tokio::test]
async fn a_lone_order_goes_at_once_and_those_that_gather_share_the_next_call() {
    let gate = Gate::shut();
    let orders = Orders::new();
    let keep = gate.clone();
    // The first two calls take up both places until the test has sent the rest.
    orders.afterwards(move |call| {
        let both = call.is_cancel() && call.nth <= 2;
        both.then(|| Answer::orders::<&str>(&[&call.orders[0]], &[]).behind(&keep))
    });
    let gateway = Gateway::start(orders.handler());
    let mut house = House::open(gateway, |s| s.set("WDT_API__MAX_ORDERS_PER_CALL", 5)).await;

    for lone in ["LONE1", "LONE2"] {
        house.send([lone]).await;
        eventually(SOON, "a lone order is called", async || {
            (orders.times_sent(lone) == 1).then_some(())
        })
        .await;
    }
    // Twelve numbers in eight commands, some of them twice: in one list, in two commands, and one
    // that is in flight. A number in a list twice is a fault that the gateway would find.
    house.send(["A1", "A2", "A1"]).await;
    house.send(["A1", "A3"]).await;
    house.send(["A4", "LONE1"]).await;
    house.send(["A5", "A6"]).await;
    house.send(["A7", "A8", "A9"]).await;
    house.send(["A10"]).await;
    house.send(["A11"]).await;
    house.send(["A12", "A2"]).await;
    eventually(SOON, "twelve orders wait", async || {
        let waiting = house
            .worker
            .metric("wdt_orders_waiting{account=\"default\"}");
        (waiting.await == Some(12.0)).then_some(())
    })
    .await;
    assert_eq!(house.gateway.calls(CANCEL).len(), 2, "two places");
    gate.open();

    let events = house.results.collect(17, SOON).await;
    assert!(events.iter().all(|e| e.outcome() == "cancelled"));
    let mut lists: Vec<usize> = house
        .gateway
        .calls(CANCEL)
        .iter()
        .map(|r| r.orders().len())
        .collect();
    lists.sort_unstable();
    assert_eq!(lists, [1, 1, 2, 5, 5]);
    for number in 1..=12 {
        assert_eq!(orders.times_sent(&format!("A{number}")), 1);
    }
    house.close().await;
}

#[tokio::test]
async fn no_account_has_more_calls_in_flight_than_it_may() {
    let orders = Orders::new();
    let two = Gate::shut();
    let four = Gate::shut();
    let gates = [two.clone(), four.clone()];
    // Answered only when the places are seen to be taken, so both limits are met, not only kept.
    orders.afterwards(move |call| {
        let gate = &gates[usize::from(account_of(call.request) == "wide")];
        call.is_cancel()
            .then(|| Answer::orders::<&str>(&[&call.orders[0]], &[]).behind(gate))
    });
    let (gateway, settings) = with_accounts(&["wide".into()], &orders);
    let mut house = House::open(gateway, |s| {
        settings(s)
            .set("WDT_API__MAX_ORDERS_PER_CALL", 1)
            .set("WDT_ACCOUNTS__WIDE__CONCURRENCY", 4)
    })
    .await;
    for n in 0..10 {
        house.send([format!("A{n}")]).await;
        house.send_for("wide", &format!("B{n}")).await;
    }
    for (sid, most, gate) in [("sid-default", 2, two), ("sid-wide", 4, four)] {
        eventually(SOON, "all places are taken", async || {
            (house.gateway.most_in_flight(sid) == most).then_some(())
        })
        .await;
        gate.open();
    }
    house.told(20, SOON).await;
    assert_eq!(house.gateway.most_in_flight("sid-default"), 2);
    assert_eq!(house.gateway.most_in_flight("sid-wide"), 4);
    house.close().await;
}

/// Named so that it is among the first to start: it takes a minute.
#[tokio::test]
async fn a_minute_never_sees_more_calls_than_it_may_not_even_across_a_crash() {
    let orders = Orders::new();
    let gateway = Gateway::start(orders.handler());
    let mut house = House::open(gateway, |s| {
        s.set("WDT_API__CALLS_PER_MINUTE", 6)
            .set("WDT_API__MAX_ORDERS_PER_CALL", 2)
    })
    .await;
    for n in 0..10 {
        house.send([format!("A{n}")]).await;
    }
    // The clock is asked and half of the minute is spent at once; the rest waits for its turn.
    eventually(SOON, "the burst", async || {
        (house.gateway.requests().len() == 3).then_some(())
    })
    .await;
    let first = house.told(2, SOON).await;
    house.kill_and_restart().await;

    // What was told at the very end may have been told without an acknowledgement, and comes again
    // as a replay; so the orders are counted, not the events.
    let mut told: BTreeSet<String> = first.0.into_keys().collect();
    while told.len() < 10 {
        let event = house.results.next(OVER_A_MINUTE).await;
        let event = event.unwrap_or_else(|| panic!("more than {told:?}"));
        assert_eq!(event.outcome(), "cancelled");
        told.insert(event.order_no().into());
    }
    assert!(house.gateway.requests().len() > 6, "the limit was met");
    assert!(house.gateway.most_calls_within(MINUTE, None) <= 6);
    house.vhost.queue_holds(SOON, COMMANDS, 0, 0).await;
    while house
        .results
        .next(Duration::from_millis(200))
        .await
        .is_some()
    {}
    house.close().await;
}

// The table of statuses

/// What a whole call's answer means for the order in it.
enum Means {
    /// Certainly not executed, and no use to try again.
    Ends(&'static str, &'static str),
    /// Executed or not: the order is looked up.
    Doubt,
}

#[tokio::test]
async fn every_status_of_a_call_ends_its_order_or_leaves_it_in_doubt() {
    use Means::{Doubt, Ends};
    const REFUSED_CALL: Means = Ends("failed", "api_refused_call");
    let status = Answer::status;
    let rows = [
        (status(1, "参数错误:order_no_list"), REFUSED_CALL),
        (status(1, "invalid argument count"), REFUSED_CALL),
        (status(1, "argument type mismatch"), REFUSED_CALL),
        (status(1, "For input string: \"x\""), REFUSED_CALL),
        (status(2, "unknown field"), REFUSED_CALL),
        (status(3, "需要动态口令"), REFUSED_CALL),
        (status(8, "版本错误"), REFUSED_CALL),
        (status(100, "订单号不能为空"), REFUSED_CALL),
        (status(100, "Data truncation: Data too long"), REFUSED_CALL),
        (status(100, "Unparseable date"), REFUSED_CALL),
        (
            status(100, NO_SUCH_ORDER),
            Ends("refused", "order_not_found"),
        ),
        (status(4, "数据库错误"), Doubt),
        (status(5, "其他错误"), Doubt),
        (status(99, "其他错误"), Doubt),
        (status(100, "invalid http status 502"), Doubt),
        (status(100, "未知错误"), Doubt),
        (status(100, "SQL异常，请联系管理员"), Doubt),
        (status(100, "取消失败"), Doubt),
        // What nobody has described.
        (status(1, "系统升级中"), Doubt),
        (status(100, ""), Doubt),
        (status(-1, "?"), Doubt),
        (status(4711, "?"), Doubt),
        // Success without word of the orders is none.
        (Answer::Json(json!({"status": 0})), Doubt),
        (Answer::Json(json!({"status": "0", "data": null})), Doubt),
        (Answer::Json(json!({"status": 0, "data": "ok"})), Doubt),
        (Answer::Json(json!({"status": 0, "data": []})), Doubt),
        (Answer::Json(json!({"status": 0, "data": {}})), Doubt),
        (
            Answer::Json(json!({"status": 0, "data": {"success_data": "R"}})),
            Doubt,
        ),
    ];
    // `R7X` is row 7's order whose call is executed, `R7N` the one whose is not.
    let answers: Vec<Answer> = rows.iter().map(|(answer, _)| answer.clone()).collect();
    let orders = Orders::new();
    let table = answers.clone();
    let mut once = Once::default();
    orders.instead(move |call| {
        let row = row_of(call, 'N')?;
        once.is_first(&call.orders[0]).then(|| table[row].clone())
    });
    let mut once = Once::default();
    orders.afterwards(move |call| {
        let row = row_of(call, 'X')?;
        once.is_first(&call.orders[0]).then(|| answers[row].clone())
    });
    let gateway = Gateway::start(orders.handler());
    let mut house = House::open(gateway, |s| {
        s.set("WDT_API__MAX_ORDERS_PER_CALL", 1)
            .set("WDT_API__CONCURRENCY", 4)
    })
    .await;
    let mut due = 0;
    for (row, (_, means)) in rows.iter().enumerate() {
        house.send([format!("R{row}N")]).await;
        due += 1;
        if matches!(means, Doubt) {
            house.send([format!("R{row}X")]).await;
            due += 1;
        }
    }
    let told = house.told(due, SOON).await;
    for (row, (answer, means)) in rows.iter().enumerate() {
        let (lost, executed) = (&*format!("R{row}N"), &*format!("R{row}X"));
        match means {
            Ends(outcome, code) => {
                let Answer::Json(answer) = answer else {
                    unreachable!("the rows are JSON");
                };
                let words = answer["message"].as_str().unwrap_or_default();
                told.check(lost, outcome, code, words, 1);
                assert_eq!(
                    (orders.times_sent(lost), orders.times_looked_up(lost)),
                    (1, 0),
                    "{lost}"
                );
            }
            Doubt => check_doubt(&told, &orders, lost, executed),
        }
    }
    house.close().await;
}

/// The row of an order like `R7X`, when the call cancels one that ends with this letter.
fn row_of(call: &Call<'_>, letter: char) -> Option<usize> {
    if !call.is_cancel() {
        return None;
    }
    let number = call.orders[0].strip_prefix('R')?.strip_suffix(letter)?;
    number.parse().ok()
}

/// Both were looked up once; the one that had been cancelled was never sent again.
#[track_caller]
fn check_doubt(told: &Told, orders: &Orders, lost: &str, executed: &str) {
    told.cancelled(executed, 1);
    told.cancelled(lost, 2);
    let seen = |order| {
        (
            orders.times_sent(order),
            orders.times_looked_up(order),
            orders.times_executed(order),
        )
    };
    assert_eq!(seen(executed), (1, 1, 1), "{executed}");
    assert_eq!(seen(lost), (2, 1, 1), "{lost}");
}

#[tokio::test]
async fn every_form_in_which_an_order_can_be_answered_is_understood() {
    const STATE_ASCII: &str = "单据状态不是编辑中、待审核、已审核,不允许取消";
    const OTHER: &str = "仓库<A-1>已锁单, 请联系 王经理（#42）  \"!\"";
    const BUSY: &str = "单据正在处理，请稍后重试";
    let orders = Orders::new();
    // These were cancelled by the call whose answer does not say so clearly.
    orders.set("BOTH-YES", 80).set("NONE-YES", 80);
    orders.refuse("BUSY", BUSY);
    let no = |order: &str, words: &str| json!({"order_no": order, "err_msg": words});
    let answer = json!({"status": 0, "message": "", "data": {
        "success_data": [
            "OK", 20240920, "DASH-1", "PAIR-1", "BOTH-YES", "BOTH-NO", "STRANGER",
        ],
        "error_data": [
            no("STATE", NOT_CANCELLABLE), no("STATE-ASCII", STATE_ASCII), no("GONE", NO_SUCH_ORDER),
            no("OTHER", OTHER), no("BUSY", BUSY), no("BUSY2", "系统繁忙,稍后再试"),
            no("DASH2-1", NOT_CANCELLABLE), no("BOTH-YES", NOT_CANCELLABLE), no("BOTH-NO", OTHER),
            no("STRANGER2", OTHER),
        ],
    }});
    orders.instead(move |call| {
        (call.is_cancel() && call.nth == 1).then(|| Answer::Json(answer.clone()))
    });
    let gateway = Gateway::start(orders.handler());
    let mut house = House::open(gateway, |s| s).await;
    house
        .send([
            "OK",
            "20240920",
            "STATE",
            "STATE-ASCII",
            "GONE",
            "OTHER",
            "BUSY",
            "BUSY2",
            "DASH",
            "DASH2",
            "PAIR",
            "PAIR-1",
            "BOTH-YES",
            "BOTH-NO",
            "NONE-YES",
            "NONE-NO",
        ])
        .await;

    // One waits by itself, everything else goes on, also what comes later.
    let told = house.told(15, SOON).await;
    house.send(["LATER"]).await;
    house.told(1, SOON).await.cancelled("LATER", 1);
    orders.refuse("BUSY", "");
    let busy = house.told(1, SOON).await;
    assert_eq!(busy.of("BUSY").outcome(), "cancelled");
    let sent = orders.times_sent("BUSY") as u64;
    assert!(sent >= 2, "sent {sent} times");
    busy.cancelled("BUSY", sent);
    assert_eq!(orders.times_looked_up("BUSY"), 0, "it is in no doubt");

    for order in ["OK", "20240920", "DASH", "PAIR-1"] {
        told.cancelled(order, 1);
        assert_eq!(
            (orders.times_sent(order), orders.times_looked_up(order)),
            (1, 0),
            "{order}"
        );
    }
    told.cancelled("BUSY2", 2);
    for (order, code, words) in [
        ("STATE", "order_state", NOT_CANCELLABLE),
        ("STATE-ASCII", "order_state", STATE_ASCII),
        ("DASH2", "order_state", NOT_CANCELLABLE),
        ("GONE", "order_not_found", NO_SUCH_ORDER),
        ("OTHER", "order_refused", OTHER),
    ] {
        told.check(order, "refused", code, words, 1);
        assert_eq!(
            told.of(order).body["reason"]["message"],
            words,
            "word for word"
        );
        assert_eq!(orders.times_sent(order), 1, "{order}");
    }
    // `PAIR` was asked beside `PAIR-1`, so the answer for that one is none for this one.
    for (order, attempts) in [
        ("PAIR", 2),
        ("BOTH-YES", 1),
        ("BOTH-NO", 2),
        ("NONE-YES", 1),
        ("NONE-NO", 2),
    ] {
        told.cancelled(order, attempts);
        assert_eq!(orders.times_sent(order), attempts as usize, "{order}");
        assert_eq!(orders.times_looked_up(order), 1, "{order}");
    }
    assert_eq!(orders.times_sent("STRANGER"), 0);
    assert_eq!(
        house
            .worker
            .metric("wdt_unasked_orders_total{account=\"default\"}")
            .await,
        Some(2.0)
    );
    assert_eq!(house.log_count(&["not asked for", "\"orders\":2"]), 1);
    house.close().await;
}

// Transport

#[tokio::test]
async fn while_nobody_listens_commands_stay_in_the_broker_and_no_attempt_is_burnt() {
    let orders = Orders::new();
    let gateway = Gateway::start(orders.handler());
    gateway.down();
    let mut house = House::open_unready(gateway, |s| s).await;
    let check = house.readiness(503, "default", "refused").await;
    assert_eq!(check["state"], "failing");
    eventually(SOON, "intake pauses", async || {
        house
            .vhost
            .consumers()
            .await
            .iter()
            .all(|c| c.queue != COMMANDS)
            .then_some(())
    })
    .await;
    house.send(["A", "B"]).await;
    house.send(["C"]).await;
    house.vhost.queue_holds(SOON, COMMANDS, 2, 0).await;
    assert!(house.worker.is_running());

    house.gateway.up();
    let told = house.told(3, TRIAL).await;
    for order in ["A", "B", "C"] {
        told.cancelled(order, 1);
        assert_eq!(orders.times_sent(order), 1);
    }
    assert_eq!(orders.calls(QUERY), 0, "nothing was sent, so no doubt");
    house.worker.wait_ready(SOON).await;
    assert_eq!(house.log_count(&["the gateway is down"]), 1, "said once");
    house.close().await;
}

/// One row of what may come instead of an answer.
struct Noise {
    what: &'static str,
    answer: fn(&Request) -> Answer,
    /// The gateway asked for this pause.
    pause: Duration,
}

#[tokio::test]
async fn whatever_comes_instead_of_an_answer_leaves_the_order_in_doubt() {
    let rows = noises();
    let names = row_names(rows.len());
    let orders = Orders::new();
    let answers: Vec<fn(&Request) -> Answer> = rows.iter().map(|row| row.answer).collect();
    let table = answers.clone();
    let mut once = Once::default();
    orders.instead(move |call| {
        let row = row_of(call, 'N')?;
        once.is_first(&call.orders[0])
            .then(|| table[row](call.request))
    });
    let mut once = Once::default();
    orders.afterwards(move |call| {
        let row = row_of(call, 'X')?;
        once.is_first(&call.orders[0])
            .then(|| answers[row](call.request))
    });
    let (gateway, settings) = with_accounts(&names, &orders);
    let mut house = House::open(gateway, |s| {
        settings(s)
            .set("WDT_API__MAX_ORDERS_PER_CALL", 1)
            .set("WDT_API__TIMEOUT", SHORT)
    })
    .await;
    for (row, name) in names.iter().enumerate() {
        house.send_for(name, &format!("R{row}N")).await;
        house.send_for(name, &format!("R{row}X")).await;
    }
    let told = house.told(2 * rows.len(), SOON).await;
    for (row, Noise { what, pause, .. }) in rows.iter().enumerate() {
        let (lost, executed) = (format!("R{row}N"), format!("R{row}X"));
        eprintln!("row {row}: {what}");
        check_doubt(&told, &orders, &lost, &executed);

        // Every attempt is stamped and signed anew.
        let [first, second] = &house.calls_with(CANCEL, &lost)[..] else {
            panic!("{what}: two attempts");
        };
        assert_eq!(first.body, second.body, "{what}");
        let apart = second.at.duration_since(first.at);
        assert!(apart >= *pause, "{what}: again after {apart:?}");
        if *pause >= Duration::from_secs(2) {
            assert_ne!(first.param("timestamp"), second.param("timestamp"));
            assert_ne!(sign_of(first), sign_of(second));
        }
        // Whoever asks for a pause is left alone by every kind of call.
        let after = |r: &&Request| r.at > first.at && r.at < first.at + *pause;
        let requests = house.requests_of(&names[row]);
        let early: Vec<_> = requests.iter().filter(after).collect();
        assert!(
            early.iter().all(|r| r.orders() == [executed.as_str()]),
            "{what}: only what was in flight already, and not {early:#?}"
        );
    }
    house.close().await;
}

/// Everything but an answer. What the gateway says to a call of which nobody knows whether it was
/// executed must not be believed, so some rows claim success.
fn noises() -> Vec<Noise> {
    let noise = |what, answer| Noise {
        what,
        answer,
        pause: Duration::ZERO,
    };
    let paused = |what, pause, answer| Noise {
        what,
        answer,
        pause: Duration::from_secs(pause),
    };
    vec![
        noise("500", |_| Answer::http(500, "text/plain", "")),
        noise("500 that claims success", |r| {
            Answer::http(500, "application/json", &success(r))
        }),
        noise("502 with a page", |_| {
            Answer::http(502, "text/html", "<html>bad gateway</html>")
        }),
        noise("200 with a page that repeats the request", |r| {
            Answer::http(200, "text/html", &format!("<html>{:?}</html>", r.query))
        }),
        noise("404 with a page that repeats the request", |r| {
            Answer::http(404, "text/html", &format!("no page {:?}", r.query))
        }),
        noise("a redirect", |r| Answer::Raw {
            status: 302,
            headers: vec![("location".into(), elsewhere(r))],
            body: Vec::new(),
        }),
        noise("a redirect that keeps the method", |r| Answer::Raw {
            status: 307,
            headers: vec![("location".into(), elsewhere(r))],
            body: success(r).into_bytes(),
        }),
        noise("200 and empty", |_| {
            Answer::http(200, "application/json", "")
        }),
        noise("204", |_| Answer::http(204, "application/json", "")),
        noise("200 with JSON that is no answer", |_| {
            Answer::Json(json!(["ok"]))
        }),
        noise("a cut body", |r| {
            Answer::CutBody(serde_json::from_str(&success(r)).expect("JSON"))
        }),
        noise("a body that stalls", |r| {
            Answer::StalledBody(serde_json::from_str(&success(r)).expect("JSON"))
        }),
        noise("a closed connection", |_| Answer::Close),
        noise("a reset", |_| Answer::Reset),
        noise("silence", |_| Answer::Hang),
        noise("chunks that are none", |_| Answer::ChunkedGarbage),
        // Far over what an answer can have, and the end would be well-formed.
        noise("an endless answer", |r| {
            let body = " ".repeat(32 * 1024 * 1024) + &success(r);
            Answer::http(200, "application/json", &body)
        }),
        paused("503 with Retry-After", 3, |_| Answer::Raw {
            status: 503,
            headers: vec![("retry-after".into(), "3".into())],
            body: Vec::new(),
        }),
        paused("503 with a date to come back", 3, |_| {
            // A date has whole seconds, so the pause may be almost one shorter than it says.
            let until = Timestamp::now() + jiff::SignedDuration::from_secs(4);
            let until = until.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
            Answer::Raw {
                status: 503,
                headers: vec![("retry-after".into(), until)],
                body: Vec::new(),
            }
        }),
    ]
}

fn success(request: &Request) -> String {
    json!({"status": 0, "data": {"success_data": request.orders(), "error_data": []}}).to_string()
}

/// The same server, another path; whoever follows is seen there.
fn elsewhere(request: &Request) -> String {
    let query: Vec<String> = request
        .query
        .iter()
        .map(|(n, v)| format!("{n}={v}"))
        .collect();
    format!(
        "http://{}/elsewhere?{}",
        request.header("host"),
        query.join("&")
    )
}

#[tokio::test]
async fn a_gateway_that_keeps_failing_is_probed_and_not_burdened() {
    let orders = Orders::new();
    let ill = Arc::new(AtomicBool::new(false));
    let is_ill = ill.clone();
    orders.instead(move |_| {
        let page = || Answer::http(500, "text/html", "<html>maintenance</html>");
        is_ill.load(Ordering::SeqCst).then(page)
    });
    let gateway = Gateway::start(orders.handler());
    let mut house = House::open(gateway, |s| s.set("WDT_API__MAX_ORDERS_PER_CALL", 1)).await;
    ill.store(true, Ordering::SeqCst);
    for n in 0..6 {
        house.send([format!("A{n}")]).await;
    }
    let check = house.readiness(503, "default", "HTTP 500").await;
    assert_eq!(check["state"], "failing");
    // Three in a row, and one more that was under way with the third.
    let burdened = house.gateway.calls(CANCEL).len() + house.gateway.calls(QUERY).len();
    assert!(burdened <= 4, "{burdened} calls");

    // Intake has paused: what comes now stays where it is.
    eventually(SOON, "intake pauses", async || {
        house
            .vhost
            .consumers()
            .await
            .iter()
            .all(|c| c.queue != COMMANDS)
            .then_some(())
    })
    .await;
    for n in 6..9 {
        house.send([format!("A{n}")]).await;
    }
    let queue = house.vhost.queue(COMMANDS).await.expect("the queue");
    assert!(queue.ready >= 3, "{queue:?}");
    let probes = house.gateway.calls(NOW).len();
    eventually(SOON, "it is probed", async || {
        (house.gateway.calls(NOW).len() >= probes + 2).then_some(())
    })
    .await;
    let all = house.gateway.calls(CANCEL).len() + house.gateway.calls(QUERY).len();
    assert_eq!(all, burdened, "only probes while it is down");

    ill.store(false, Ordering::SeqCst);
    let told = house.told(9, TRIAL).await;
    for n in 0..9 {
        let order = format!("A{n}");
        let sent = orders.times_sent(&order);
        told.cancelled(&order, sent as u64);
        // A look-up may be among the calls that failed first, and is then made again.
        assert!(orders.times_looked_up(&order) >= sent - 1, "{order}");
    }
    house.worker.wait_ready(SOON).await;
    house.close().await;
}

// Doubt

#[tokio::test]
async fn the_state_that_a_look_up_shows_is_what_is_told() {
    let orders = Orders::new();
    // Shipped in the meantime, by whatever means: our lost call was not what ended them.
    let finals = [
        ("S40", 40, "40 已推送wms"),
        ("S60", 60, "60 部分出库"),
        ("S65", 65, "65 待结算"),
        ("S70", 70, "70 已完成"),
    ];
    for (order, status, _) in finals {
        orders.set(order, status);
    }
    orders.set("S1", 1).set("S10", 10).remove("ABSENT");
    let mut once = Once::default();
    orders.instead(move |call| {
        let first = call.is_cancel() && once.is_first(&call.orders[0]);
        first.then(|| Answer::status(99, "其他错误"))
    });
    let gateway = Gateway::start(orders.handler());
    let mut house = House::open(gateway, |s| s.set("WDT_API__MAX_ORDERS_PER_CALL", 1)).await;
    house
        .send(["S1", "S10", "S40", "S60", "S65", "S70", "ABSENT"])
        .await;
    let told = house.told(7, SOON).await;
    for (order, _, words) in finals {
        told.check(order, "refused", "order_state", words, 1);
        assert_eq!(orders.times_sent(order), 1, "{order}");
    }
    told.cancelled("S1", 2);
    told.cancelled("S10", 2);
    // An account without the order's warehouse sees an empty list as well.
    told.check("ABSENT", "unknown", "unconfirmed", "", 1);
    assert_eq!(orders.times_sent("ABSENT"), 1);
    house.vhost.queue_holds(SOON, DEAD, 1, 0).await;
    house.close().await;
}

#[tokio::test]
async fn a_refusal_that_our_own_lost_call_may_have_caused_is_looked_into() {
    let orders = Orders::new();
    let late = orders.clone();
    let mut once = Once::default();
    // The first call seems lost: the look-up after it shows nothing yet. It takes effect only then,
    // and the second call meets a document that is cancelled (or, by others, shipped).
    orders.instead(move |call| {
        let first = call.is_cancel() && once.is_first(&call.orders[0]);
        first.then_some(Answer::Close)
    });
    let gateway = Gateway::start(move |request| {
        let answer = late.handler()(request);
        if request.method() == QUERY {
            match &*request.orders()[0] {
                "OURS" => drop(late.set("OURS", 80)),
                "THEIRS" => drop(late.set("THEIRS", 70)),
                _ => {}
            }
        }
        answer
    });
    // Refused for its state though its state allows it: what the platform says of a document it
    // holds for another reason. Paid calls must not go round for ever.
    orders.refuse("ODD", NOT_CANCELLABLE);
    orders.refuse("HELD", "仓库已锁单");
    let mut house = House::open(gateway, |s| {
        s.set("WDT_API__MAX_ORDERS_PER_CALL", 1)
            .set("WDT_RETRY__MAX_ATTEMPTS", 3)
    })
    .await;
    house.send(["OURS", "THEIRS", "HELD", "ODD"]).await;
    let told = house.told(4, SOON).await;
    told.cancelled("OURS", 2);
    told.check("THEIRS", "refused", "order_state", "70 已完成", 2);
    told.check("HELD", "refused", "order_refused", "仓库已锁单", 2);
    for order in ["OURS", "THEIRS", "HELD"] {
        assert_eq!(
            (orders.times_sent(order), orders.times_looked_up(order)),
            (2, 2),
            "{order}"
        );
    }
    assert!(orders.times_sent("ODD") <= 3);
    let sent = orders.times_sent("ODD") as u64;
    told.check("ODD", "refused", "order_state", NOT_CANCELLABLE, sent);
    house.close().await;
}

#[tokio::test]
async fn without_leave_to_query_doubt_is_told_as_unknown_and_that_is_said_once() {
    let orders = Orders::new();
    orders.afterwards(|call| match call.request.method() {
        CANCEL => Some(Answer::Close),
        QUERY => Some(Answer::status(100, NO_GRANT)),
        _ => None,
    });
    let gateway = Gateway::start(orders.handler());
    let mut house = House::open(gateway, |s| s).await;
    for order in ["A", "B"] {
        house.send([order]).await;
        let told = house.told(1, SOON).await;
        told.check(order, "unknown", "unconfirmed", "", 1);
    }
    assert_eq!(orders.calls(QUERY), 1, "nobody asks again");
    assert_eq!(house.log_count(&["orders may not be looked up"]), 1);
    let check = house.readiness(200, "default", "may not be").await;
    assert_eq!(check["state"], "degraded");
    house.vhost.queue_holds(SOON, DEAD, 2, 0).await;

    // The same order in a new command: it is in doubt still, so it is not sent.
    house.send(["A"]).await;
    let told = house.told(1, SOON).await;
    assert_eq!(told.of("A").outcome(), "unknown");
    assert_eq!(orders.times_sent("A"), 1);
    house.close().await;
}

#[tokio::test]
async fn api_verify_says_when_states_are_looked_up() {
    let script = |orders: &Orders| {
        orders.set("SHIPPED", 70).remove("GONE");
        orders.refuse("HELD", "仓库已锁单");
        orders.afterwards(|call| (call.is_cancel() && call.has("LOST")).then_some(Answer::Close));
    };
    let all = ["SHIPPED", "GONE", "HELD", "LOST", "GOOD"];
    for (verify, looked_up) in [("always", 4), ("never", 0)] {
        let orders = Orders::new();
        script(&orders);
        let gateway = Gateway::start(orders.handler());
        let mut house = House::open(gateway, |s| {
            s.set("WDT_API__MAX_ORDERS_PER_CALL", 1)
                .set("WDT_API__VERIFY", verify)
        })
        .await;
        house.send(all).await;
        let told = house.told(all.len(), SOON).await;
        told.cancelled("GOOD", 1);
        told.check("SHIPPED", "refused", "order_state", NOT_CANCELLABLE, 1);
        told.check("GONE", "refused", "order_not_found", NO_SUCH_ORDER, 1);
        told.check("HELD", "refused", "order_refused", "仓库已锁单", 1);
        if verify == "always" {
            told.check("SHIPPED", "refused", "order_state", "70 已完成", 1);
            told.cancelled("LOST", 1);
        } else {
            told.check("LOST", "unknown", "unconfirmed", "api.verify", 1);
        }
        assert_eq!(orders.calls(QUERY), looked_up, "{verify}");
        for order in all {
            assert_eq!(orders.times_sent(order), 1, "{verify}: {order}");
        }
        house.close().await;
    }
}

#[tokio::test]
async fn after_a_crash_between_call_and_answer_the_order_is_looked_up_before_anything() {
    let orders = Orders::new();
    // Calls are left hanging till the crash: executed for two orders, not executed for the third.
    let crashed = Arc::new(AtomicBool::new(false));
    let before = crashed.clone();
    orders.instead(move |call| {
        let hang = call.is_cancel() && call.has("N") && !before.load(Ordering::SeqCst);
        hang.then_some(Answer::Hang)
    });
    let before = crashed.clone();
    orders.afterwards(move |call| {
        let hang = call.is_cancel() && !before.load(Ordering::SeqCst);
        hang.then_some(Answer::Hang)
    });
    let gateway = Gateway::start(orders.handler());
    let mut house = House::open(gateway, |s| s).await;
    house.send(["X1", "X2"]).await;
    eventually(SOON, "the first call arrives", async || {
        (orders.calls(CANCEL) == 1).then_some(())
    })
    .await;
    house.send(["N"]).await;
    eventually(SOON, "the second call arrives", async || {
        (orders.calls(CANCEL) == 2).then_some(())
    })
    .await;
    let before_crash = house.gateway.requests().len();
    crashed.store(true, Ordering::SeqCst);
    house.kill_and_restart().await;

    let told = house.told(3, SOON).await;
    told.cancelled("X1", 1);
    told.cancelled("X2", 1);
    told.cancelled("N", 2);
    for (order, sent) in [("X1", 1), ("X2", 1), ("N", 2)] {
        assert_eq!(orders.times_sent(order), sent, "{order}");
        let requests = house.gateway.requests();
        let about = |r: &&Request| r.orders().iter().any(|o| o == order);
        let first = requests[before_crash..].iter().find(about);
        assert_eq!(
            first.map(Request::method),
            Some(QUERY),
            "{order} after the crash"
        );
    }
    house.worker.wait_ready(SOON).await;
    house.close().await;
}

// A list refused for the sake of one order in it

/// Refuses a list as a whole, in these words, for as long as one of these orders is in it.
fn refuse_lists(orders: &Orders, culprits: &'static [&'static str], words: &'static str) {
    orders.instead(move |call| {
        let meets = call.is_cancel() && culprits.iter().any(|c| call.has(c));
        meets.then(|| Answer::status(100, words))
    });
}

/// Twenty orders in one list; the calls that it took.
async fn twenty_in_one_list(orders: &Orders) -> (House, Told, usize) {
    let gateway = Gateway::start(orders.handler());
    let mut house = House::open(gateway, |s| s).await;
    house.send((0..20).map(|n| format!("L{n}"))).await;
    let told = house.told(20, SOON).await;
    assert_eq!(house.gateway.longest_list(), 20, "they shared the call");
    let calls = orders.calls(CANCEL);
    (house, told, calls)
}

#[tokio::test]
async fn the_order_for_whose_sake_a_list_is_refused_is_found_and_the_others_pass() {
    const WORDS: &str = "Data truncation: Data too long for column 'order_no'";
    // Halving 20 orders takes five steps of two calls each, after the first, for each culprit.
    const STEPS: usize = 5;
    for culprits in [&["L13"][..], &["L0", "L19"][..]] {
        let orders = Orders::new();
        refuse_lists(&orders, culprits, WORDS);
        let (house, told, calls) = twenty_in_one_list(&orders).await;
        let most = 1 + 2 * STEPS * culprits.len();
        assert!(calls <= most, "{culprits:?}: {calls} calls, not {most}");
        for n in 0..20 {
            let order = &*format!("L{n}");
            if culprits.contains(&order) {
                let sent = orders.times_sent(order) as u64;
                told.check(order, "failed", "api_refused_call", WORDS, sent);
            } else {
                assert_eq!(told.of(order).outcome(), "cancelled", "{order}");
                assert_eq!(orders.times_executed(order), 1, "{order}");
            }
        }
        assert_eq!(orders.calls(QUERY), 0, "a refused list leaves no doubt");
        house.vhost.queue_holds(SOON, DEAD, 1, 0).await;
        house.close().await;
    }
}

#[tokio::test]
async fn a_list_refused_because_one_order_is_not_found_is_halved_too() {
    let orders = Orders::new();
    orders.remove("L6");
    // One that was cancelled before we asked, and meets the same words when it stands alone.
    orders.set("L7", 80);
    refuse_lists(&orders, &["L6", "L7"], NO_SUCH_ORDER);
    let (house, told, calls) = twenty_in_one_list(&orders).await;
    assert!(calls <= 21, "{calls} calls");
    for n in 0..20 {
        let order = &*format!("L{n}");
        if n != 6 {
            assert_eq!(told.of(order).outcome(), "cancelled", "{order}");
        }
    }
    // The words are also said of an order that is cancelled already, so both are looked up; that
    // the query shows no such order is no proof that there is none.
    assert_eq!(orders.times_looked_up("L7"), 1);
    assert_eq!(orders.times_looked_up("L6"), 1);
    assert_ne!(told.of("L6").outcome(), "cancelled");
    house.close().await;
}

// Settings

#[tokio::test]
async fn accounts_with_wrong_settings_wait_while_others_go_on() {
    const PERMISSION: [&str; 2] = ["权限不足", "无仓库访问权限"];
    let rows = [
        (1, "验证失败:签名错误", "credentials"),
        (1, "app auth fail", "credentials"),
        (1, "sid is not exists", "credentials"),
        (1, "sid is not found", "credentials"),
        (6, "ip限制", "allow_list"),
        (100, PERMISSION[0], "permission"),
        (100, PERMISSION[1], "permission"),
        (7, "时间戳错误", "clock"),
    ];
    let names = row_names(rows.len());
    let orders = Orders::new();
    let mended = Arc::new(AtomicBool::new(false));
    let is_mended = mended.clone();
    orders.instead(move |call| {
        let row: usize = account_of(call.request).strip_prefix("row")?.parse().ok()?;
        let (status, words, fault) = rows[row];
        // A grant is for one method, and whoever asks for the time may be wrong about it.
        let every_method = matches!(fault, "credentials" | "allow_list");
        let refuses = !is_mended.load(Ordering::SeqCst) && (every_method || call.is_cancel());
        refuses.then(|| Answer::status(status, words))
    });
    let (gateway, settings) = with_accounts(&names, &orders);
    let mut house = House::open(gateway, settings).await;
    for name in &names {
        house.send_for(name, &format!("A-{name}")).await;
    }
    for (name, (_, words, fault)) in names.iter().zip(rows) {
        let check = house.readiness(200, name, fault).await;
        assert_eq!(check["state"], "failing", "{name}");
        let said = check["cause"].as_str().unwrap_or_default();
        assert!(fault == "clock" || said.contains(words), "{check}");
        assert_ne!(check["remedy"], Value::Null, "{name}");
    }
    house.send(["HEALTHY1", "HEALTHY2"]).await;
    let told = house.told(2, SOON).await;
    told.cancelled("HEALTHY1", 1);
    told.cancelled("HEALTHY2", 1);
    // The orders wait in hand, and nobody is told anything.
    let waiting = names.len() as u64;
    house.vhost.queue_holds(SOON, COMMANDS, 0, waiting).await;
    let refused: Vec<Instant> = names
        .iter()
        .map(|name| house.requests_of(name).last().expect("a call").at)
        .collect();
    mended.store(true, Ordering::SeqCst);

    let told = house.told(names.len(), TRIAL).await;
    for (row, name) in names.iter().enumerate() {
        let order = &*format!("A-{name}");
        assert_eq!(told.of(order).outcome(), "cancelled");
        assert_eq!(orders.times_executed(order), 1);
        assert_eq!(orders.times_looked_up(order), 0, "it was never in doubt");
        let requests = house.requests_of(name);
        let next = requests.iter().find(|r| r.at > refused[row]);
        let apart = next.expect("a trial").at.duration_since(refused[row]);
        assert!(
            apart >= Duration::from_secs(7),
            "{name}: tried again after {apart:?}"
        );
        assert_eq!(
            house.log_count(&["cannot be called", name]),
            1,
            "{name}: said once"
        );
    }
    house.close().await;
}

#[tokio::test]
async fn a_fault_in_the_only_accounts_settings_turns_readiness_red() {
    let orders = Orders::new();
    let mended = Arc::new(AtomicBool::new(false));
    let is_mended = mended.clone();
    orders.instead(move |_| {
        let refuses = !is_mended.load(Ordering::SeqCst);
        refuses.then(|| Answer::status(1, "app auth fail"))
    });
    let gateway = Gateway::start(orders.handler());
    let mut house = House::open_unready(gateway, |s| s).await;
    house.readiness(503, "default", "app auth fail").await;
    house.send(["A", "B"]).await;
    house.vhost.queue_holds(SOON, COMMANDS, 0, 1).await;
    assert_eq!(orders.calls(CANCEL), 0);
    mended.store(true, Ordering::SeqCst);
    let told = house.told(2, TRIAL).await;
    told.cancelled("A", 1);
    told.cancelled("B", 1);
    house.worker.wait_ready(SOON).await;
    house.close().await;
}

/// What an account may not ask it may still be allowed to do: the time is only asked to correct
/// the clock.
#[tokio::test]
async fn an_account_that_may_not_ask_for_the_time_can_still_cancel() {
    let orders = Orders::new();
    orders.instead(|call| (call.request.method() == NOW).then(|| Answer::status(100, NO_GRANT)));
    let gateway = Gateway::start(orders.handler());
    let mut house = House::open(gateway, |s| s).await;
    eventually(SOON, "the time is asked for", async || {
        (orders.calls(NOW) == 1).then_some(())
    })
    .await;
    house.send(["A"]).await;
    house.told(1, SOON).await.cancelled("A", 1);
    let (status, report) = house.worker.readiness().await.expect("an answer");
    assert_eq!(status, 200, "{report:#}");
    house.close().await;
}

// Too many calls

/// Named so that it is among the first to start: it takes a minute.
#[tokio::test]
async fn a_frequency_error_silences_its_account_for_a_minute() {
    let rows: [fn() -> Answer; 4] = [
        || Answer::status(100, TOO_OFTEN),
        || Answer::status(100, "超过每分钟最大调用频率限制,请稍后再试"),
        || Answer::status(100, "超过每分钟最大并发次数限制"),
        || Answer::http(429, "text/plain", "slow down"),
    ];
    let names = row_names(rows.len());
    let orders = Orders::new();
    let mut once = Once::default();
    orders.instead(move |call| {
        let name = account_of(call.request);
        let row: usize = name.strip_prefix("row")?.parse().ok()?;
        (call.is_cancel() && once.is_first(name)).then(|| rows[row]())
    });
    let (gateway, settings) = with_accounts(&names, &orders);
    let mut house = House::open(gateway, settings).await;
    for name in &names {
        house.send_for(name, &format!("A-{name}")).await;
    }
    for name in &names {
        let check = house.readiness(200, name, "left alone").await;
        assert_eq!(check["state"], "degraded");
        // What comes meanwhile waits, too.
        house.send_for(name, &format!("B-{name}")).await;
    }
    house.send(["HEALTHY"]).await;
    house.told(1, SOON).await.cancelled("HEALTHY", 1);

    let told = house.told(2 * names.len(), OVER_A_MINUTE).await;
    for name in &names {
        assert_eq!(told.of(&format!("A-{name}")).outcome(), "cancelled");
        assert_eq!(told.of(&format!("B-{name}")).outcome(), "cancelled");
        let cancels: Vec<Request> = house.requests_of(name);
        let cancels: Vec<&Request> = cancels.iter().filter(|r| r.method() == CANCEL).collect();
        let [refused, again, ..] = &cancels[..] else {
            panic!("{name}: {cancels:#?}");
        };
        let apart = again.at.duration_since(refused.at);
        assert!(apart >= MINUTE, "{name}: again after {apart:?}");
        assert!(apart < MINUTE + SOON, "{name}: again after {apart:?}");
        assert_eq!(again.orders().len(), 2, "what gathered shares the call");
        let silent = house.requests_of(name);
        let between = silent
            .iter()
            .filter(|r| r.at > refused.at && r.at < again.at);
        assert_eq!(between.count(), 0, "{name}: no call of any kind");
    }
    assert_eq!(
        orders.calls(QUERY),
        0,
        "a call refused at the door is clear"
    );
    house.close().await;
}

// The clock

#[tokio::test]
async fn a_clock_that_is_off_is_measured_before_the_first_call_and_again_on_status_7() {
    let orders = Orders::new();
    let gateway = Gateway::start(orders.handler());
    gateway.set_clock_ahead(300);
    let mut house = House::open(gateway, |s| s).await;
    house.send(["A"]).await;
    house.told(1, SOON).await.cancelled("A", 1);
    assert_eq!(house.gateway.requests()[0].method(), NOW, "before all else");
    check_stamp(&house.calls_with(CANCEL, "A")[0]);

    house.gateway.set_clock_ahead(-300);
    house.send(["B"]).await;
    let told = house.told(1, SOON).await;
    assert_eq!(told.of("B").outcome(), "cancelled");
    assert_eq!(orders.times_looked_up("B"), 0, "status 7 is not executed");
    let calls = house.calls_with(CANCEL, "B");
    assert_eq!(calls.len(), 2);
    check_stamp(&calls[1]);
    let methods: Vec<String> = house.gateway.requests()[2..]
        .iter()
        .map(|r| r.method().to_string())
        .collect();
    assert_eq!(methods, [CANCEL, NOW, CANCEL], "measured in between");
    house.close().await;
}

#[track_caller]
fn check_stamp(request: &Request) {
    let stamp: i64 = request.param("timestamp").parse().expect("a number");
    let off = stamp - request.gateway_time;
    assert!(off.abs() <= STAMP_TOLERANCE, "off by {off} s");
}

// Bounds

#[tokio::test]
async fn max_attempts_bounds_the_calls_for_one_order() {
    let orders = Orders::new();
    orders.refuse("BUSY", "请稍后重试");
    orders.instead(|call| {
        let lost = call.has("LOST") || call.has("DARK");
        let dark = call.is_query() && call.has("DARK");
        ((call.is_cancel() && lost) || dark).then(|| Answer::status(99, "其他错误"))
    });
    let gateway = Gateway::start(orders.handler());
    let mut house = House::open(gateway, |s| {
        s.set("WDT_API__MAX_ORDERS_PER_CALL", 1)
            .set("WDT_RETRY__MAX_ATTEMPTS", 2)
    })
    .await;
    house.send(["BUSY", "LOST", "DARK", "GOOD"]).await;
    let told = house.told(4, SOON).await;
    told.cancelled("GOOD", 1);
    told.check("BUSY", "failed", "api_unavailable", "请稍后重试", 2);
    // Looked up after its last call and found untouched: certainly not cancelled by us.
    told.check("LOST", "failed", "api_unavailable", "20", 2);
    told.check("DARK", "unknown", "unconfirmed", "其他错误", 1);
    for (order, sent, looked_up) in [("BUSY", 2, 0), ("LOST", 2, 2), ("DARK", 1, 2)] {
        assert_eq!(
            (orders.times_sent(order), orders.times_looked_up(order)),
            (sent, looked_up),
            "{order}"
        );
    }
    house.vhost.queue_holds(SOON, DEAD, 1, 0).await;
    house.close().await;
}

#[tokio::test]
async fn max_age_ends_an_order_as_it_stands() {
    let orders = Orders::new();
    let names = ["stopped".to_string(), "doubtful".to_string()];
    orders.instead(
        |call| match (account_of(call.request), call.request.method()) {
            ("stopped", CANCEL) => Some(Answer::status(100, NO_GRANT)),
            ("doubtful", CANCEL) => Some(Answer::status(99, "其他错误")),
            // The account is silenced for a minute, so its order's state is not seen in time.
            ("doubtful", QUERY) => Some(Answer::status(100, TOO_OFTEN)),
            _ => None,
        },
    );
    let (gateway, settings) = with_accounts(&names, &orders);
    let mut house = House::open(gateway, |s| settings(s).set("WDT_RETRY__MAX_AGE", "3s")).await;
    house.send_for("stopped", "WAITS").await;
    house.send_for("doubtful", "DOUBT").await;
    let told = house.told(2, SOON).await;
    told.check("WAITS", "failed", "api_unavailable", "retry.max_age", 1);
    told.check("DOUBT", "unknown", "unconfirmed", "retry.max_age", 1);
    house.vhost.queue_holds(SOON, DEAD, 2, 0).await;
    house.close().await;
}

#[tokio::test]
async fn the_deadline_counts_until_the_call_and_not_longer() {
    let orders = Orders::new();
    let gate = Gate::shut();
    let keep = gate.clone();
    orders.afterwards(move |call| {
        let slow = call.is_cancel() && call.nth == 1;
        slow.then(|| Answer::orders::<&str>(&["SLOW"], &[]).behind(&keep))
    });
    let gateway = Gateway::start(orders.handler());
    let mut house = House::open(gateway, |s| s.set("WDT_API__CONCURRENCY", 1)).await;
    let in_seconds = |s: i64| (Timestamp::now() + jiff::SignedDuration::from_secs(s)).to_string();
    let due = |order: &str, deadline: String| Command::orders([order]).field("deadline", deadline);

    house.amqp.send(&due("PAST", in_seconds(-1))).await;
    let told = house.told(1, SOON).await;
    told.check("PAST", "expired", "deadline_passed", "", 0);

    // Long enough that the first is on its way before it passes.
    let soon = in_seconds(4);
    house.amqp.send(&due("SLOW", soon.clone())).await;
    eventually(SOON, "the slow call arrives", async || {
        (orders.calls(CANCEL) == 1).then_some(())
    })
    .await;
    house.amqp.send(&due("LATE", soon)).await;
    house.amqp.send(&due("IN-TIME", in_seconds(600))).await;
    let told = house.told(1, SOON).await;
    told.check("LATE", "expired", "deadline_passed", "", 0);
    gate.open();
    let told = house.told(2, SOON).await;
    // It was called before its deadline; what came of it is what counts.
    told.cancelled("SLOW", 1);
    told.cancelled("IN-TIME", 1);
    assert_eq!(orders.times_sent("LATE") + orders.times_sent("PAST"), 0);
    house.close().await;
}

// What is sent

/// The gateway of the kit checks every request's shape and its signature over the very bytes that
/// came; this is what it leaves open.
#[tokio::test]
async fn a_call_is_a_post_of_exactly_the_list_and_stamped_with_the_time() {
    let orders = Orders::new();
    let gateway = Gateway::start(orders.handler());
    let mut house = House::open(gateway, |s| s).await;
    let numbers = [
        "其他出库-20261123-001",
        "A+B &%=\"\\/#1",
        "QC202409200002-1",
    ];
    house.send(numbers).await;
    let told = house.told(3, SOON).await;
    for number in numbers {
        told.cancelled(number, 1);
    }
    let calls = house.gateway.calls(CANCEL);
    assert_eq!(calls.len(), 1);
    let body = String::from_utf8(calls[0].body.clone()).expect("UTF-8");
    assert_eq!(body, json!([numbers]).to_string());
    assert!(!body.contains("order_no_list"));
    for request in house.gateway.requests() {
        check_stamp(&request);
        assert_eq!(request.param("v"), "1.0");
        assert_eq!(request.param("salt"), "salt-default");
        assert!(!format!("{request:?}").contains("secret-default"));
    }
    house.close().await;
}

/// The words of an answer are passed on; a signature that they repeat is not.
#[tokio::test]
async fn an_answer_that_repeats_the_signature_does_not_get_it_told() {
    let orders = Orders::new();
    let mut once = Once::default();
    orders.instead(move |call| {
        if !call.is_cancel() || !once.is_first(&call.orders[0]) {
            return None;
        }
        let sign = sign_of(call.request);
        Some(match &*call.orders[0] {
            "DOUBT" => Answer::status(99, &format!("其他错误 sign={sign}")),
            "SHAPE" => Answer::status(1, &format!("参数错误 sign={sign}")),
            _ => Answer::orders(&[], &[(&*call.orders[0], &*format!("no: {sign}"))]),
        })
    });
    let gateway = Gateway::start(orders.handler());
    let mut house = House::open(gateway, |s| s.set("WDT_API__MAX_ORDERS_PER_CALL", 1)).await;
    house.send(["DOUBT", "SHAPE", "ORDER"]).await;
    let told = house.told(3, SOON).await;
    told.cancelled("DOUBT", 2);
    told.check("SHAPE", "failed", "api_refused_call", "参数错误", 1);
    told.check("ORDER", "refused", "order_refused", "no: ", 1);
    for order in ["SHAPE", "ORDER"] {
        house.check_secrets(&told.of(order).body.to_string());
    }
    house.close().await;
}
