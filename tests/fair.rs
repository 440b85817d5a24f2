//! Accounts that share one queue: what waits for one that cannot be called holds up none of the
//! others, wherever in the queue it lies, and nothing of it is lost.
#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, its helpers too"
)]

mod support;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use support::amqp::{Amqp, COMMANDS, Command, Inbox};
use support::broker::Vhost;
use support::eventually::eventually_ok;
use support::gateway::{Account, CANCEL, Gate, Gateway, QUERY};
use support::orders::Orders;
use support::process::Signal;
use support::scene::{LATER, LOST, SOON, lines};
use support::worker::{Setup, Worker};

/// Whose calls are not answered for long.
const STUCK: &str = "stuck";
const QUICK: [&str; 3] = ["default", "east", "west"];
/// Twice as many as may be in hand at once, whatever the accounts.
const STUCK_COMMANDS: usize = 4_000;
const QUICK_COMMANDS: usize = 200;
/// Orders of the stuck account's calls, two of 20.
const IN_THE_AIR: usize = 40;

/// A gateway that holds one account's calls until the gate is opened, and a queue in which that
/// account's commands come first.
struct Queue {
    vhost: Vhost,
    amqp: Amqp,
    results: Inbox,
    orders: Orders,
    gateway: Gateway,
    gate: Gate,
    setup: Setup,
    /// Events of each account.
    told: BTreeMap<String, usize>,
}

impl Queue {
    async fn filled() -> Self {
        let vhost = Vhost::fresh().await;
        let orders = Orders::new();
        let gate = Gate::shut();
        let names = || QUICK.into_iter().chain([STUCK]);
        let (handler, held) = (orders.handler(), gate.clone());
        let gateway =
            Gateway::with_accounts(names().map(Account::named).collect(), move |request| {
                let answer = handler(request);
                let is_stuck = request.param("sid") == Account::named(STUCK).sid;
                if is_stuck && request.method() == CANCEL {
                    return answer.behind(&held);
                }
                answer
            });
        let mut setup = Setup::new(&vhost.url(), &gateway.url())
            .set("WDT_API__CALLS_PER_MINUTE", 0)
            .set("WDT_API__TIMEOUT", "5m");
        for name in names() {
            setup = setup.account(name, &Account::named(name));
        }
        let amqp = Amqp::connect(&vhost.url()).await;
        let results = amqp.results().await;
        // Declared by a worker that has nothing to do.
        let mut worker = setup.start();
        worker.wait_ready(LATER).await;
        assert_eq!(worker.terminate(LATER).await, 0);
        let mut commands: Vec<Command> = (0..STUCK_COMMANDS).map(|n| command(STUCK, n)).collect();
        for n in 0..QUICK_COMMANDS {
            commands.extend(QUICK.map(|name| command(name, n)));
        }
        amqp.send_all(COMMANDS, &commands).await;
        Self {
            vhost,
            amqp,
            results,
            orders,
            gateway,
            gate,
            setup,
            told: BTreeMap::new(),
        }
    }

    async fn worker(&self) -> Worker {
        let mut worker = self.setup.start();
        worker.wait_ready(LATER).await;
        worker
    }

    /// Reads until so many events of this account have come.
    async fn until_told(&mut self, account: &str, count: usize) {
        while self.told.get(account).copied().unwrap_or(0) < count {
            let Some(event) = self.results.next(LATER).await else {
                panic!("{:?} of {account}'s {count} told", self.told);
            };
            assert_eq!(event.outcome(), "cancelled", "{event:#?}");
            *self
                .told
                .entry(event.text("account").to_owned())
                .or_default() += 1;
        }
    }

    async fn until_the_quick_are_told(&mut self) {
        for name in QUICK {
            self.until_told(name, QUICK_COMMANDS).await;
        }
        assert_eq!(self.told.get(STUCK), None, "its calls are not answered");
    }

    /// Waits until the worker holds this much of the queue, and nothing else is there.
    async fn is_held(&self, count: usize) {
        self.vhost
            .queue_holds(LATER, COMMANDS, 0, u64::try_from(count).unwrap())
            .await;
    }

    async fn is_done(&mut self, worker: &mut Worker) {
        self.until_told(STUCK, STUCK_COMMANDS).await;
        self.vhost.queue_holds(LATER, COMMANDS, 0, 0).await;
        assert_eq!(worker.terminate(LATER).await, 0);
        assert_eq!(self.gateway.take_faults(), [""; 0]);
    }

    fn each_was_sent_once(&self) {
        for n in 0..STUCK_COMMANDS {
            assert_eq!(self.orders.times_sent(&order(STUCK, n)), 1, "{n}");
        }
    }
}

fn order(account: &str, n: usize) -> String {
    format!("{account}-{n}")
}

fn command(account: &str, n: usize) -> Command {
    let order = order(account, n);
    Command::orders([&order])
        .id(&format!("cmd-{order}"))
        .field("account", account)
}

#[tokio::test]
async fn what_waits_first_for_an_account_that_hangs_holds_up_no_other() {
    let mut queue = Queue::filled().await;
    let mut worker = queue.worker().await;
    let ready = Instant::now();
    queue.until_the_quick_are_told().await;
    println!(
        "the others are told {:.1} s after it is ready",
        ready.elapsed().as_secs_f64()
    );
    queue.is_held(STUCK_COMMANDS).await;
    // What comes behind all that is taken as well.
    let more: Vec<Command> = (0..QUICK_COMMANDS)
        .flat_map(|n| QUICK.map(|name| command(name, QUICK_COMMANDS + n)))
        .collect();
    queue.amqp.send_all(COMMANDS, &more).await;
    for name in QUICK {
        queue.until_told(name, 2 * QUICK_COMMANDS).await;
    }
    // On one subscription after the other, of one session.
    assert_eq!(lines(&worker, LOST), [""; 0]);
    let opened = Instant::now();
    queue.gate.open();
    queue.is_done(&mut worker).await;
    println!(
        "all is told {:.1} s after the account answers",
        opened.elapsed().as_secs_f64()
    );
    queue.each_was_sent_once();
    assert_eq!(queue.orders.calls(QUERY), 0, "nothing was in doubt");
}

#[tokio::test]
async fn what_is_kept_comes_again_when_the_worker_was_killed() {
    let mut queue = Queue::filled().await;
    let mut worker = queue.worker().await;
    queue.until_the_quick_are_told().await;
    queue.is_held(STUCK_COMMANDS).await;
    worker.kill9();
    let mut worker = queue.worker().await;
    // What was in the air may be looked up and told before all the rest has come again.
    eventually_ok(LATER, "all that is left is held again", async || {
        let commands = queue.vhost.queue(COMMANDS).await.unwrap();
        let held = usize::try_from(commands.unacked).unwrap();
        let is_held = commands.ready == 0 && held >= STUCK_COMMANDS - IN_THE_AIR;
        is_held.then_some(()).ok_or(commands)
    })
    .await;
    queue.gate.open();
    queue.is_done(&mut worker).await;
}

#[tokio::test]
async fn what_is_kept_goes_back_when_the_worker_stops() {
    let mut queue = Queue::filled().await;
    let mut worker = queue.worker().await;
    queue.until_the_quick_are_told().await;
    queue.is_held(STUCK_COMMANDS).await;
    worker.signal(Signal::TERM);
    // While two calls are in the air, all the rest is there for other workers.
    eventually_ok(SOON, "what is not in flight is back", async || {
        let commands = queue.vhost.queue(COMMANDS).await.unwrap();
        let back = usize::try_from(commands.ready).unwrap();
        (back >= STUCK_COMMANDS - IN_THE_AIR)
            .then_some(())
            .ok_or(commands)
    })
    .await;
    assert!(worker.is_running(), "{}", worker.log());
    queue.gate.open();
    assert_eq!(worker.exit_code(LATER).await, 0, "{}", worker.log());
    let mut worker = queue.worker().await;
    queue.is_done(&mut worker).await;
    queue.each_was_sent_once();
}

// What it costs

const MANY: usize = 47;
/// Few, so that the pace decides how long it takes, on any machine.
const CALLS_PER_MINUTE: usize = 6;
/// In 7 calls: half a minute's at once, the others in 40 seconds.
const ORDERS_EACH: usize = 140;
const ORDERS_PER_COMMAND: usize = 5;
/// Waiting in front of the others' for an account that may not be called more often than they.
const BACKLOG: usize = 100_000;
/// As many for an account whose gateway is not there, and for one with a wrong secret.
const DEAD_BACKLOG: usize = 5_000;

/// How long it took, from the worker's start and from the first event, and the most memory.
async fn many(with_slow_ones: bool) -> (Duration, Duration, usize) {
    let vhost = Vhost::fresh().await;
    let orders = Orders::new();
    let names: Vec<String> = (0..MANY).map(|n| format!("q{n}")).collect();
    let slow = ["slow", "dead", "wrong"].map(String::from);
    let accounts = names.iter().chain(&slow).map(String::as_str);
    let accounts = accounts.chain(["default"]).map(Account::named);
    let gateway = Gateway::with_accounts(accounts.collect(), orders.handler());
    let mut setup = Setup::new(&vhost.url(), &gateway.url())
        .set("WDT_API__CALLS_PER_MINUTE", CALLS_PER_MINUTE)
        .set("WDT_ACCOUNTS__DEAD__URL", "http://127.0.0.1:1/openapi");
    for name in names.iter().chain(&slow) {
        let mut account = Account::named(name);
        if name == "wrong" {
            account.secret = "another".into();
        }
        setup = setup.account(name, &account);
    }
    let amqp = Amqp::connect(&vhost.url()).await;
    let mut results = amqp.results().await;
    let mut worker = setup.start();
    worker.wait_ready(LATER).await;
    assert_eq!(worker.terminate(LATER).await, 0);
    if with_slow_ones {
        let backlog: Vec<Command> = (0..BACKLOG).map(|n| command("slow", n)).collect();
        amqp.send_all(COMMANDS, &backlog).await;
        let backlog: Vec<Command> = (0..DEAD_BACKLOG)
            .flat_map(|n| ["dead", "wrong"].map(|name| command(name, n)))
            .collect();
        amqp.send_all(COMMANDS, &backlog).await;
    }
    let commands: Vec<Command> = (0..ORDERS_EACH / ORDERS_PER_COMMAND)
        .flat_map(|n| {
            names.iter().map(move |name| {
                let first = n * ORDERS_PER_COMMAND;
                let orders = (first..first + ORDERS_PER_COMMAND).map(|n| order(name, n));
                Command::orders(orders)
                    .id(&format!("cmd-{name}-{n}"))
                    .field("account", name.as_str())
            })
        })
        .collect();
    amqp.send_all(COMMANDS, &commands).await;
    let began = Instant::now();
    let mut first = None;
    let worker = setup.start();
    let mut left = MANY * ORDERS_EACH;
    while left > 0 {
        let event = results.next(LATER).await.expect("an event");
        if event.text("account").starts_with('q') {
            first.get_or_insert(Instant::now());
            left -= 1;
        }
    }
    let status = std::fs::read_to_string(format!("/proc/{}/status", worker.pid())).unwrap();
    let peak = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap();
    let peak: usize = peak.split_whitespace().nth(1).unwrap().parse().unwrap();
    // Those of the wrong secret.
    drop(gateway.take_faults());
    (began.elapsed(), first.unwrap().elapsed(), peak / 1024)
}

#[tokio::test]
#[ignore = "a measurement of minutes: cargo test --release --locked --test fair -- --ignored --nocapture"]
async fn forty_seven_accounts_beside_one_with_100_000_waiting_one_dead_and_one_with_a_wrong_secret()
{
    let (alone, alone_from_first, alone_peak) = many(false).await;
    let (beside, beside_from_first, beside_peak) = many(true).await;
    println!(
        "{MANY} accounts of {ORDERS_EACH} orders each: alone {:.1} s, {:.1} s from the first event, at most {alone_peak} MiB; beside the slow ones {:.1} s, {:.1} s, {beside_peak} MiB; their rate is {:.2} of that alone",
        alone.as_secs_f64(),
        alone_from_first.as_secs_f64(),
        beside.as_secs_f64(),
        beside_from_first.as_secs_f64(),
        alone.as_secs_f64() / beside.as_secs_f64(),
    );
}
