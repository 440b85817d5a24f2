//! The gateway's side of the story: what every call asked for, what became of it, and which laws a
//! call broke. A worker's run is told by the path that its calls go to, so a call of a dead run
//! that arrives late is told from one of the living.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};

use jiff::Timestamp;
use serde_json::json;

use super::record::Record;
use super::support::gateway::{Account, Answer, CANCEL, Gateway, QUERY, Request};
use super::support::orders::Orders;

/// What becomes of a call.
pub enum Fate {
    /// It is carried out, and answered.
    Done,
    /// It is carried out, and answered by way of this.
    DoneBy(Box<dyn FnOnce(Answer) -> Answer>),
    /// It is not carried out, and the answer says so.
    NotDone(Answer),
    /// Whether it was carried out cannot be told from the answer.
    Lost { carried_out: bool, answer: Answer },
}

/// A call, for the script to decide on.
pub struct Call<'a> {
    pub method: &'a str,
    pub orders: &'a [String],
}

type Script = Box<dyn FnMut(&Call<'_>, &mut fastrand::Rng) -> Fate + Send>;

/// See the module. Clones are the same book.
#[derive(Clone)]
pub struct Book {
    orders: Orders,
    pages: Arc<Mutex<Pages>>,
}

/// How many of what.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    pub cancels: usize,
    pub look_ups: usize,
    /// Calls whose answer told nothing, and those of them that were carried out.
    pub lost: usize,
    pub lost_done: usize,
    /// Calls that were refused at the door.
    pub not_done: usize,
    /// Cancels of a dead run that arrived when another one lived.
    pub late: usize,
    /// Orders that were to be looked up, over all deaths.
    pub left_sent: usize,
}

struct Pages {
    script: Script,
    rng: fastrand::Rng,
    run: u32,
    calls_of_run: usize,
    counts: Counts,
    /// When each order was cancelled.
    done_at: BTreeMap<String, Timestamp>,
    /// Orders whose next call must be a look-up, and why.
    doubts: BTreeMap<String, String>,
    /// Orders that a dead run's call reached late: what followed may have crossed with it.
    crossed: BTreeSet<String>,
    /// Orders that were in a cancel since the last death.
    called: BTreeSet<String>,
    sent: BTreeSet<String>,
    breaches: Vec<String>,
}

impl Book {
    /// Of these orders; the script decides what becomes of each call.
    pub fn new(
        orders: &Orders,
        seed: u64,
        script: impl FnMut(&Call<'_>, &mut fastrand::Rng) -> Fate + Send + 'static,
    ) -> Self {
        Self {
            orders: orders.clone(),
            pages: Arc::new(Mutex::new(Pages {
                script: Box::new(script),
                rng: fastrand::Rng::with_seed(seed),
                run: 0,
                calls_of_run: 0,
                counts: Counts::default(),
                done_at: BTreeMap::new(),
                doubts: BTreeMap::new(),
                crossed: BTreeSet::new(),
                called: BTreeSet::new(),
                sent: BTreeSet::new(),
                breaches: Vec::new(),
            })),
        }
    }

    /// A gateway that keeps it.
    pub fn gateway(&self, accounts: Vec<Account>) -> Gateway {
        let book = self.clone();
        Gateway::with_accounts(accounts, move |request| book.answer(request))
    }

    /// Another script from now on.
    pub fn play(&self, script: impl FnMut(&Call<'_>, &mut fastrand::Rng) -> Fate + Send + 'static) {
        self.pages().script = Box::new(script);
    }

    /// Where the current run's calls go.
    pub fn url(&self, gateway: &Gateway) -> String {
        format!("{}/{}", gateway.url(), self.pages().run)
    }

    /// The current run is dead, and this is what is durable: what it was sending is to be looked
    /// up, and whatever it called for was recorded before (law 1).
    pub fn run_died(&self, record: &Record) {
        let mut pages = self.pages();
        let run = pages.run;
        for order in record.sent() {
            pages.counts.left_sent += 1;
            pages.doubts.insert(
                order,
                format!("on record as being sent when run {run} died"),
            );
        }
        for order in std::mem::take(&mut pages.called) {
            if !record.was_sent(&order) {
                let breach = format!("{order} was called for by run {run} without a record");
                pages.breaches.push(breach);
            }
        }
        pages.next_run();
    }

    /// The current run has ended by itself.
    pub fn run_ended(&self) {
        self.pages().next_run();
    }

    /// What breaks a law so far.
    pub fn breaches(&self) -> Vec<String> {
        self.pages().breaches.clone()
    }

    /// Counts so far.
    pub fn counts(&self) -> Counts {
        self.pages().counts.clone()
    }

    /// Cancels and look-ups of the current run so far.
    pub fn calls_of_run(&self) -> usize {
        self.pages().calls_of_run
    }

    /// What the book has against an event that tells this of an order, if anything.
    pub fn contradicts(
        &self,
        order: &str,
        outcome: &str,
        occurred_at: Timestamp,
    ) -> Option<String> {
        let pages = self.pages();
        let done_at = pages.done_at.get(order);
        match outcome {
            "cancelled" if done_at.is_none() => Some("it was never cancelled".into()),
            "refused" if done_at.is_some() => Some("it was cancelled".into()),
            "failed" if done_at.is_some_and(|at| *at < occurred_at) => {
                Some("it was cancelled before".into())
            }
            "expired" | "rejected" if pages.sent.contains(order) => Some("it was sent".into()),
            _ => None,
        }
    }

    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().expect("the book")
    }

    fn answer(&self, request: &Request) -> Answer {
        let orders = request.orders();
        let call = Call {
            method: request.method(),
            orders: &orders,
        };
        let run: u32 = request
            .path
            .rsplit('/')
            .next()
            .and_then(|run| run.parse().ok())
            .expect("the path ends in the run's number");
        let mut pages = self.pages();
        match call.method {
            CANCEL => pages.cancel_came(&call, run),
            QUERY => pages.counts.look_ups += 1,
            _ => return self.carry_out(&mut pages, &call, request),
        }
        pages.calls_of_run += 1;
        let Pages { script, rng, .. } = &mut *pages;
        let fate = script(&call, rng);
        match fate {
            Fate::Done => self.done(&mut pages, &call, request),
            Fate::DoneBy(change) => change(self.done(&mut pages, &call, request)),
            Fate::NotDone(answer) => {
                pages.counts.not_done += 1;
                answer
            }
            Fate::Lost {
                carried_out,
                answer,
            } => {
                pages.counts.lost += 1;
                if call.method == CANCEL {
                    if carried_out {
                        pages.counts.lost_done += 1;
                        self.carry_out(&mut pages, &call, request);
                    }
                    for order in &orders {
                        let why = format!("the answer to run {run} was lost");
                        pages.doubts.insert(order.clone(), why);
                    }
                }
                answer
            }
        }
    }

    /// Carried out, and a look-up has shown what there is.
    fn done(&self, pages: &mut Pages, call: &Call<'_>, request: &Request) -> Answer {
        if call.method == QUERY {
            pages.doubts.remove(&call.orders[0]);
        }
        self.carry_out(pages, call, request)
    }

    fn carry_out(&self, pages: &mut Pages, call: &Call<'_>, request: &Request) -> Answer {
        let answer = (self.orders.handler())(request);
        if call.method == CANCEL {
            for order in call.orders {
                if self.orders.times_executed(order) > 0 {
                    let now = Timestamp::now();
                    pages.done_at.entry(order.clone()).or_insert(now);
                }
            }
        }
        answer
    }
}

impl Pages {
    fn next_run(&mut self) {
        self.run += 1;
        self.calls_of_run = 0;
    }

    /// Whether a cancel may come at all (laws 4 and 5).
    fn cancel_came(&mut self, call: &Call<'_>, run: u32) {
        self.counts.cancels += 1;
        let is_late = run < self.run;
        self.counts.late += usize::from(is_late);
        for order in call.orders {
            self.called.insert(order.clone());
            self.sent.insert(order.clone());
            if is_late {
                self.crossed.insert(order.clone());
            }
            if self.crossed.contains(order) {
                continue;
            }
            if self.done_at.contains_key(order) {
                self.breaches.push(format!(
                    "{order} was sent by run {run} after it was cancelled"
                ));
            }
            if let Some(why) = self.doubts.get(order) {
                self.breaches.push(format!(
                    "{order} was sent by run {run}, not looked up: {why}"
                ));
            }
        }
    }
}

/// What the gateway says at the door of too many calls, in its own form and in HTTP's.
pub fn too_many() -> [Answer; 2] {
    [
        Answer::status(100, "超过每分钟最大调用频率限制，请稍后重试"),
        Answer::Raw {
            status: 429,
            headers: vec![("retry-after".into(), "1".into())],
            body: Vec::new(),
        },
    ]
}

/// An answer that tells nothing, one of eight kinds.
pub fn noise(kind: u8) -> Answer {
    match kind % 8 {
        0 => Answer::http(500, "text/plain", "oh"),
        1 => Answer::http(200, "text/html", "<html>系统维护中</html>"),
        2 => Answer::CutBody(json!({ "status": 0, "data": { "success_data": [] } })),
        3 => Answer::Close,
        4 => Answer::Reset,
        5 => Answer::ChunkedGarbage,
        6 => Answer::status(99, "其他错误"),
        _ => Answer::Hang,
    }
}
