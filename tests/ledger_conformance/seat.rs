//! A worker's place at a ledger, without the worker: verbs go in, and what they answer is awaited.

use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::timeout;
use wdt_cancel_worker::ledger::{Done, Leave, Ledger, Sent, postgres};
use wdt_cancel_worker::rules::admit::Fingerprint;
use wdt_cancel_worker::rules::desk::{
    AccountPolicy, CallId, Claim, Claimed, CommandKey, Fence, Holding, LaneId, OrderRow,
    OrderState, Record, RecordId, ResultRow, SendList,
};
use wdt_cancel_worker::rules::lane::{OrderKey, Paused};
use wdt_cancel_worker::rules::order::{AccountName, CommandId, Ending, OrderNo};
use wdt_cancel_worker::rules::poison::Past;

use super::support::postgres::Database;
use super::support::process::fresh_dir;
use super::support::scene::LATER;

pub const LANE: LaneId = LaneId(0);
pub const OTHER_LANE: LaneId = LaneId(1);
/// The list of a command that nothing else is said of.
pub const LIST: Fingerprint = Fingerprint([7; 16]);

/// Where a ledger is. Seats on the same one see the same.
#[derive(Clone)]
pub enum Store {
    Embedded(PathBuf),
    Shared(Database),
}

impl Store {
    pub fn embedded() -> Self {
        Self::Embedded(fresh_dir("conformance").join("ledger"))
    }

    pub async fn shared() -> Self {
        Self::Shared(Database::fresh().await)
    }

    pub async fn both() -> [Self; 2] {
        [Self::embedded(), Self::shared().await]
    }

    pub fn database(&self) -> &Database {
        match self {
            Self::Shared(database) => database,
            Self::Embedded(_) => panic!("it has none"),
        }
    }

    pub async fn seat(&self) -> Seat {
        self.seat_with(Seating::default()).await
    }

    pub async fn seat_with(&self, seating: Seating) -> Seat {
        let (tx, done) = unbounded_channel();
        let names = ["default", "other"].map(|name| AccountName::new(name).unwrap());
        let retention = seating.retention;
        let opened = match self {
            Self::Embedded(path) => Ledger::open(path, names.to_vec(), retention, tx).unwrap(),
            Self::Shared(database) => {
                let account = |name: &AccountName| AccountPolicy {
                    name: name.clone(),
                    calls_per_minute: seating.calls_per_minute,
                    concurrency: seating.concurrency,
                    max_orders_per_call: 20,
                };
                let settings = postgres::Settings {
                    url: database.url().to_owned(),
                    accounts: names.iter().map(account).collect(),
                    timeout: seating.timeout,
                    retention,
                };
                postgres::open(settings, tx).await.unwrap()
            }
        };
        Seat {
            ledger: opened.ledger,
            past: opened.past,
            paused: opened.paused,
            done,
            calls: 0,
        }
    }
}

/// What the settings say.
#[derive(Clone, Copy)]
pub struct Seating {
    pub calls_per_minute: u32,
    pub concurrency: u32,
    pub timeout: Duration,
    pub retention: Duration,
}

impl Default for Seating {
    fn default() -> Self {
        Self {
            calls_per_minute: 0,
            concurrency: 64,
            timeout: Duration::from_secs(5),
            retention: Duration::from_secs(30 * 24 * 60 * 60),
        }
    }
}

/// See the module.
pub struct Seat {
    pub ledger: Ledger,
    pub past: Past,
    pub paused: Vec<(LaneId, Paused)>,
    done: UnboundedReceiver<Done>,
    calls: u64,
}

/// What became of a list.
#[derive(Debug)]
pub enum Sending {
    Sent(Sent),
    Lost(Vec<String>),
    NoPlace,
}

impl Seat {
    pub async fn next(&mut self) -> Done {
        let next = timeout(LATER, self.done.recv()).await;
        next.expect("the ledger answers").expect("it is there")
    }

    pub async fn claim(&mut self, command: &str, orders: &[&str]) -> Claimed {
        self.claim_list(LANE, command, LIST, orders).await
    }

    pub async fn claim_list(
        &mut self,
        lane: LaneId,
        command: &str,
        fingerprint: Fingerprint,
        orders: &[&str],
    ) -> Claimed {
        self.ledger.claim(claim(lane, command, fingerprint, orders));
        match self.next().await {
            Done::Claimed(claimed) => claimed,
            other => panic!("{other:?}"),
        }
    }

    /// Claims one order, which must be free; what is recorded of it, and the fence.
    pub async fn take(&mut self, command: &str, order: &str) -> (Option<OrderRow>, Fence) {
        match self.claim(command, &[order]).await.orders.remove(0).1 {
            Holding::Ours(row, fence) => (row, fence),
            Holding::Elsewhere(..) => panic!("{order} is elsewhere"),
        }
    }

    pub async fn send(&mut self, orders: Vec<OrderRow>) -> Sending {
        self.begin_send(LANE, orders);
        match self.next().await {
            Done::Sent(sent) => Sending::Sent(sent),
            Done::NotSent(_, lost) => Sending::Lost(names(&lost)),
            Done::NoPlace(_) => Sending::NoPlace,
            other => panic!("{other:?}"),
        }
    }

    pub fn begin_send(&mut self, lane: LaneId, orders: Vec<OrderRow>) -> CallId {
        self.calls += 1;
        let call = CallId(self.calls);
        let list = SendList { call, lane, orders };
        self.ledger.send(list, Timestamp::now());
        call
    }

    /// Asks for leave to look something up.
    pub async fn ask(&mut self) -> Option<Leave> {
        self.calls += 1;
        self.ledger.ask(CallId(self.calls), LANE, Timestamp::now());
        match self.next().await {
            Done::Granted(_, leave) => Some(leave),
            Done::NoPlace(_) => None,
            other => panic!("{other:?}"),
        }
    }

    /// Records; the orders that were lost.
    pub async fn record(&mut self, orders: Vec<OrderRow>, results: Vec<ResultRow>) -> Vec<String> {
        let id = RecordId::default();
        self.ledger.record(Record {
            id,
            orders,
            results,
        });
        match self.next().await {
            Done::Recorded(_, lost) => names(&lost),
            other => panic!("{other:?}"),
        }
    }

    pub async fn close(self) {
        self.ledger.close().await;
    }
}

fn names(lost: &[(LaneId, OrderNo)]) -> Vec<String> {
    lost.iter().map(|(_, no)| no.to_string()).collect()
}

pub fn claim(lane: LaneId, command: &str, fingerprint: Fingerprint, orders: &[&str]) -> Claim {
    let orders = orders.iter().zip(1..);
    Claim {
        command: CommandKey::default(),
        lane,
        command_id: CommandId::new(command).unwrap(),
        fingerprint,
        orders: orders
            .map(|(order, key)| (OrderKey(key), OrderNo::new(order).unwrap()))
            .collect(),
    }
}

/// A fixed time, so many seconds later.
pub fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).unwrap()
}

pub fn order(number: &str, state: OrderState, fence: Fence) -> OrderRow {
    OrderRow {
        lane: LANE,
        order_no: OrderNo::new(number).unwrap(),
        state,
        attempts: 3,
        spent: 2,
        since: at(-5),
        fence,
    }
}

pub fn ended(number: &str, fence: Fence) -> OrderRow {
    order(number, OrderState::Ended(Ending::Cancelled, at(0)), fence)
}

pub fn result(command: &str, shown: &str, ending: Ending, fence: Option<Fence>) -> ResultRow {
    ResultRow {
        lane: LANE,
        command_id: CommandId::new(command).unwrap(),
        fingerprint: LIST,
        order_no: shown.into(),
        ending,
        attempts: 2,
        occurred_at: at(1),
        fence,
    }
}

/// As the ledger tells of it: without a fence.
pub fn told(mut row: OrderRow) -> OrderRow {
    row.fence = Fence::default();
    row
}

/// The same of a result.
pub fn told_result(mut row: ResultRow) -> ResultRow {
    row.fence = None;
    row
}
