//! A worker's surroundings in one value, a load of commands, and the checks that hold however the
//! load was disturbed: every order told, told rightly, sent once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use super::amqp::{Amqp, COMMANDS, Command, Inbox, Message};
use super::broker::{Consumer, Vhost};
use super::eventually::eventually_ok;
use super::gateway::{CANCEL, Gateway};
use super::orders::Orders;
use super::worker::{Setup, Worker};

/// What a worker logs when it has no session.
pub const LOST: &str = "no session with the broker";
/// What it logs when it has one.
pub const CONNECTED: &str = "connected to the broker";
/// What takes milliseconds on an idle machine.
pub const SOON: Duration = Duration::from_secs(20);
/// What waits for pauses of the worker's own (half a minute at most between tries), on a machine
/// that does other things.
pub const LATER: Duration = Duration::from_secs(90);

/// A virtual host, a gateway, and the settings of a worker between them. No limit on calls.
pub struct Scene {
    pub vhost: Vhost,
    pub orders: Orders,
    pub gateway: Gateway,
    pub setup: Setup,
    slow: Arc<Mutex<Duration>>,
}

impl Scene {
    /// On a fresh virtual host of the shared broker.
    pub async fn fresh() -> Self {
        Self::on(Vhost::fresh().await)
    }

    /// On this one.
    pub fn on(vhost: Vhost) -> Self {
        let orders = Orders::new();
        let slow = Arc::new(Mutex::new(Duration::ZERO));
        let (handler, delay) = (orders.handler(), slow.clone());
        let gateway = Gateway::start(move |request| {
            let answer = handler(request);
            let delay = *delay.lock().expect("the delay");
            if request.method() == CANCEL && !delay.is_zero() {
                return answer.after(delay);
            }
            answer
        });
        let setup = Setup::new(&vhost.url(), &gateway.url()).set("WDT_API__CALLS_PER_MINUTE", "0");
        Self {
            vhost,
            orders,
            gateway,
            setup,
            slow,
        }
    }

    /// Changes a setting.
    pub fn set(mut self, name: &str, value: impl ToString) -> Self {
        self.setup = self.setup.set(name, value);
        self
    }

    /// Every cancel is answered this much later, so that a disturbance meets calls in flight.
    pub fn slow(&self, time: Duration) {
        *self.slow.lock().expect("the delay") = time;
    }

    /// A client of the broker.
    pub async fn amqp(&self) -> Amqp {
        Amqp::connect(&self.vhost.url()).await
    }

    /// A worker that is ready.
    pub async fn worker(&self) -> Worker {
        let mut worker = self.setup.start();
        worker.wait_ready(LATER).await;
        worker
    }

    /// Waits until exactly one consumer is there, on the commands' queue, with manual
    /// acknowledgement and a bounded prefetch.
    pub async fn consumer(&self) -> Consumer {
        let consumer = eventually_ok(LATER, "one consumer, of the commands", async || {
            let mut consumers = self.vhost.consumers().await;
            consumers.retain(|c| c.queue == COMMANDS);
            match consumers.as_slice() {
                [one] => Ok(one.clone()),
                _ => Err(consumers),
            }
        })
        .await;
        assert!(consumer.manual_ack && consumer.prefetch > 0, "{consumer:?}");
        consumer
    }

    /// The broker knows exactly one consumer of the commands, as this one was: its prefetch, and
    /// manual acknowledgement.
    pub async fn is_consumed_like(&self, before: &Consumer) {
        let now = self.consumer().await;
        let like = Consumer {
            tag: now.tag.clone(),
            prefetch: now.prefetch,
            ..before.clone()
        };
        assert_eq!(now, like);
        // It takes more at once when commands have turned out light.
        assert!(
            now.prefetch >= before.prefetch,
            "{now:?}, before: {before:?}"
        );
    }

    /// Waits until the commands' queue holds nothing, not even unacknowledged.
    pub async fn queue_is_empty(&self) {
        self.vhost.queue_holds(LATER, COMMANDS, 0, 0).await;
    }

    /// Each order of the load was in one cancel call, and in no more.
    pub fn each_was_sent_once(&self, load: &Load) {
        for order in load.orders() {
            assert_eq!(self.orders.times_sent(order), 1, "{order}");
        }
    }

    /// How many of the load's orders have arrived at the gateway.
    pub fn sent(&self, load: &Load) -> usize {
        let sent = |order: &&str| self.orders.times_sent(order) > 0;
        load.orders().into_iter().filter(sent).count()
    }

    /// Waits until so many have.
    pub async fn until_sent(&self, load: &Load, count: usize) {
        let what = format!("{count} orders have arrived at the gateway");
        eventually_ok(LATER, &what, async || match self.sent(load) {
            sent if sent >= count => Ok(()),
            sent => Err(sent),
        })
        .await;
    }
}

/// Commands with an order each, and how each must end.
pub struct Load {
    commands: Vec<Command>,
    /// By command id and order number.
    due: BTreeMap<(String, String), &'static str>,
}

impl Load {
    /// So many commands; every seventh is for an order that was shipped, whose cancel is refused.
    pub fn new(orders: &Orders, name: &str, count: usize) -> Self {
        let mut load = Self {
            commands: Vec::new(),
            due: BTreeMap::new(),
        };
        for n in 0..count {
            let order = format!("{name}-{n:04}");
            let outcome = if n % 7 == 3 {
                orders.set(&order, 70);
                "refused"
            } else {
                "cancelled"
            };
            load.add(&format!("cmd-{order}"), &order, outcome);
        }
        load
    }

    /// One more command.
    pub fn add(&mut self, id: &str, order: &str, outcome: &'static str) {
        self.commands.push(Command::orders([order]).id(id));
        self.due.insert((id.into(), order.into()), outcome);
    }

    /// Adds each `step`th command again.
    pub fn repeat(&mut self, step: usize) {
        let again: Vec<_> = self.due.clone().into_iter().step_by(step).collect();
        for ((id, order), outcome) in again {
            self.add(&id, &order, outcome);
        }
    }

    /// Publishes all of it.
    pub async fn send(&self, amqp: &Amqp) {
        amqp.send_all(COMMANDS, &self.commands).await;
    }

    /// The commands.
    pub fn commands(&self) -> &[Command] {
        &self.commands
    }

    /// The order numbers.
    pub fn orders(&self) -> BTreeSet<&str> {
        self.due.keys().map(|(_, order)| order.as_str()).collect()
    }

    /// Reads until each order was told to each command that wants it. An event may come twice, but
    /// every one tells what is due.
    pub async fn is_told(&self, results: &mut Inbox, limit: Duration) -> Vec<Message> {
        let end = Instant::now() + limit;
        let mut open: BTreeSet<_> = self.due.keys().cloned().collect();
        let mut messages = Vec::new();
        while !open.is_empty() {
            let left = end.saturating_duration_since(Instant::now());
            let Some(message) = results.next(left).await else {
                panic!("{} orders not told within {limit:?}: {open:?}", open.len());
            };
            open.remove(&self.check(&message));
            messages.push(message);
        }
        messages
    }

    /// An event of this load tells what is due; for which command and order it is.
    pub fn check(&self, message: &Message) -> (String, String) {
        let key = (
            message.text("command_id").to_string(),
            message.order_no().to_string(),
        );
        match self.due.get(&key) {
            Some(due) => assert_eq!(message.outcome(), *due, "{message:#?}"),
            None => panic!("nobody asked for {message:#?}"),
        }
        key
    }
}

/// The lines of a worker's log that contain this.
pub fn lines(worker: &Worker, part: &str) -> Vec<String> {
    worker.lines(part)
}

/// What the worker gave as the causes of having no session, each of which it tells once.
pub fn causes(worker: &Worker) -> Vec<String> {
    let cause = |line: &String| {
        let line: Value = serde_json::from_str(line).expect("a line of JSON");
        line["cause"].as_str().expect("a cause").to_string()
    };
    let causes: Vec<String> = lines(worker, LOST).iter().map(cause).collect();
    let different: BTreeSet<_> = causes.iter().collect();
    assert_eq!(different.len(), causes.len(), "told twice: {causes:#?}");
    causes
}

/// Waits until the worker has connected so many times.
pub async fn is_back(worker: &Worker, times: usize) {
    eventually_ok(LATER, &format!("{times} sessions"), async || {
        let sessions = lines(worker, CONNECTED).len();
        (sessions >= times).then_some(()).ok_or(sessions)
    })
    .await;
}
