//! The world: a worker's desk, and what is around it.
//!
//! The models keep what outlives the worker: the ledger what was committed, the broker what was not
//! acknowledged, the gateway what it executed. Everything else is in the worker's hands and is lost
//! when it dies, which it may between any two steps.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::{self, Write as _};
use std::hash::{DefaultHasher, Hasher};
use std::time::Duration;

use wdt_cancel_worker::rules::delay::Delays;
use wdt_cancel_worker::rules::desk::{
    AccountPolicy, Action, CallId, Claim, Desk, Fate, Intake, LaneId, OrderRow, Parking, Policy,
    Record, SendList, Telling, Ticket,
};
use wdt_cancel_worker::rules::next::Retry;
use wdt_cancel_worker::rules::order::{AccountName, OrderNo, Outcome};
use wdt_cancel_worker::rules::time::{Mono, Now, later};

use crate::NOON;
use crate::choices::Choices;
use crate::config::{ACCOUNTS, Config};
use crate::laws::{ToldOf, told_of};
use crate::ledger::Ledger;

const HOLD: Duration = Duration::from_secs(1200);
const MAX_AGE: Duration = Duration::from_secs(24 * 3600);
const UNTOLD_PAUSE: Duration = Duration::from_secs(10);
/// Longer than the desk remembers a command whose delivery did not come again.
const ORPHANS_GONE: Duration = Duration::from_secs(601);
/// A run that is not over after so many steps without faults never will be.
const CALM_STEPS_MAX: usize = 3_000;

/// A message in the broker's queue.
#[derive(Debug, Clone)]
pub struct Message {
    /// The first of the commands that are the same as this one, in [`Config::commands`].
    pub command: usize,
    pub place: Place,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Queued { redelivered: bool },
    Held(Ticket),
    Acknowledged,
}

/// An order as the gateway has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Absent,
    Cancellable,
    /// Shipped, say.
    Closed,
    Cancelled {
        by_us: bool,
    },
}

pub type Key = (LaneId, OrderNo);

/// What the ledger was asked and has not done yet.
#[derive(Debug, Clone)]
pub enum Job {
    Claim(Claim),
    Record(Record),
    Send(SendList),
}

#[derive(Debug, Clone)]
pub enum Call {
    Cancel(Vec<OrderNo>),
    LookUp(OrderNo),
    Probe,
}

#[derive(Debug, Clone)]
pub enum Publication {
    Tell(Telling),
    Park(Parking),
}

impl Publication {
    pub fn ticket(&self) -> Ticket {
        match self {
            Self::Tell(telling) => telling.ticket,
            Self::Park(parking) => parking.ticket,
        }
    }
}

#[derive(Debug, Clone)]
pub enum Answer {
    Acknowledge(Ticket, bool),
    Return(Ticket),
}

/// An event that reached a queue.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Event {
    pub command: usize,
    pub ticket: Ticket,
    /// Empty where the event tells of a command as a whole.
    pub order_no: String,
    pub outcome: &'static str,
    /// How many commands had been sent.
    pub at: usize,
    pub confirmed: bool,
}

impl Event {
    pub fn is_unsettled(&self) -> bool {
        self.outcome == Outcome::Failed.as_str() || self.outcome == Outcome::Unknown.as_str()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Move {
    /// The ledger does and answers what it was asked first.
    Ledger,
    /// It answers a claim before the writes that it was asked earlier.
    ClaimFirst,
    /// A call ends.
    Call(usize),
    /// The broker takes a publication, or does not.
    Publication(usize),
    /// The broker gets an acknowledgement or a return.
    Answer,
    /// A loss of the session before is heard of.
    LateLoss(usize),
    Deliver(usize),
    /// Somebody sends the next command.
    Submit,
    /// Until there is something to do.
    Wait,
    WaitLong(Duration),
    /// A call that timed out is executed.
    ExecuteLate(usize),
    LoseSession,
    Crash,
    Stop,
    /// The worker has stopped and is started again.
    Restart,
}

/// How many disturbances are left of each kind.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    pub faults: usize,
    crashes: usize,
    pub losses: usize,
    stops: usize,
    long_waits: usize,
}

/// One worker: what is in its hands is lost with it.
#[derive(Debug, Clone)]
pub struct Worker {
    pub desk: Desk,
    draining: bool,
    jobs: VecDeque<Job>,
    pub calls: Vec<(CallId, LaneId, Call)>,
    pub publications: Vec<Publication>,
    pub answers: VecDeque<Answer>,
    pub late_losses: Vec<Publication>,
}

impl Worker {
    fn new(desk: Desk) -> Self {
        Self {
            desk,
            draining: false,
            jobs: VecDeque::new(),
            calls: Vec::new(),
            publications: Vec::new(),
            answers: VecDeque::new(),
            late_losses: Vec::new(),
        }
    }

    fn is_busy(&self) -> bool {
        !(self.jobs.is_empty()
            && self.calls.is_empty()
            && self.publications.is_empty()
            && self.answers.is_empty()
            && self.late_losses.is_empty())
    }

    fn claim_behind_writes(&self) -> Option<usize> {
        let claim = |job: &Job| matches!(job, Job::Claim(_));
        self.jobs.iter().position(claim).filter(|at| *at > 0)
    }
}

#[derive(Clone)]
pub struct World<'a> {
    pub config: &'a Config,
    pub choices: Choices,
    pub now: Now,
    pub steps: usize,
    pub left: Budget,
    calm: bool,

    pub worker: Worker,
    /// One that has just been started. Clones of it iterate alike, so that equal states show alike.
    fresh: Desk,

    pub ledger: Ledger,
    /// Every ending that was ever recorded for an order of a command.
    pub recorded: BTreeSet<ToldOf>,
    /// The same, and those on their way to the ledger.
    pub decided: BTreeSet<ToldOf>,
    pub messages: Vec<Message>,
    /// Deliveries, also of sessions that are over.
    pub tickets: BTreeMap<Ticket, usize>,
    pub events: BTreeSet<Event>,
    pub copies: BTreeSet<Ticket>,
    pub states: BTreeMap<Key, State>,
    pub timed_out: Vec<Key>,
    /// Orders whose last call had no clear answer, and that were not looked up since.
    pub in_doubt: BTreeSet<Key>,
    /// The settled outcome that was told of an order of a command.
    pub settled: BTreeMap<(usize, String), Outcome>,

    trace: Option<Vec<String>>,
    pub broken: Option<String>,
}

fn desk(config: &Config) -> Desk {
    let policy = Policy {
        retry: Retry {
            max_attempts: config.max_attempts,
            verify: config.verify,
            delays: Delays {
                first: Duration::from_secs(1),
                most: Duration::from_secs(60),
            },
        },
        max_age: MAX_AGE,
        hold: HOLD,
        untold_pause: UNTOLD_PAUSE,
    };
    let most = config.commands.iter().map(|sent| sent.account).max();
    let accounts = ACCOUNTS[..=most.unwrap_or(0)].iter();
    let accounts: Vec<AccountPolicy> = accounts
        .map(|name| AccountPolicy {
            name: AccountName::new(name).unwrap(),
            calls_per_minute: config.calls_per_minute,
            concurrency: config.concurrency,
            max_orders_per_call: config.max_orders_per_call,
        })
        .collect();
    Desk::new(policy, &accounts, fastrand::Rng::with_seed(7))
}

/// What is printed goes into a hash.
struct Digest(DefaultHasher);

impl fmt::Write for Digest {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.write(text.as_bytes());
        Ok(())
    }
}

impl<'a> World<'a> {
    pub fn new(config: &'a Config, choices: Choices, tells: bool) -> Self {
        let fresh = desk(config);
        let mut world = Self {
            choices,
            now: Now {
                mono: Mono::default(),
                wall: NOON.parse().unwrap(),
            },
            steps: 0,
            left: Budget {
                faults: config.faults,
                crashes: config.crashes,
                losses: config.losses,
                stops: config.stops,
                long_waits: config.long_waits,
            },
            calm: false,
            worker: Worker::new(fresh.clone()),
            fresh,
            ledger: Ledger::default(),
            recorded: BTreeSet::new(),
            decided: BTreeSet::new(),
            messages: Vec::new(),
            tickets: BTreeMap::new(),
            events: BTreeSet::new(),
            copies: BTreeSet::new(),
            states: BTreeMap::new(),
            timed_out: Vec::new(),
            in_doubt: BTreeSet::new(),
            settled: BTreeMap::new(),
            trace: tells.then(Vec::new),
            broken: None,
            config,
        };
        world.leave_orders();
        world.turn();
        world
    }

    /// What an earlier run left behind.
    fn leave_orders(&mut self) {
        for given in &self.config.orders {
            let key = (LaneId(given.account), OrderNo::new(given.no).unwrap());
            let state = match given.status {
                0 => State::Absent,
                20 => State::Cancellable,
                80 => State::Cancelled {
                    by_us: given.left.is_in_doubt(),
                },
                _ => State::Closed,
            };
            self.states.insert(key.clone(), state);
            if given.left.is_in_doubt() {
                self.in_doubt.insert(key.clone());
            }
            if let Some(state) = given.left.state() {
                let row = OrderRow {
                    lane: key.0,
                    order_no: key.1,
                    state,
                    attempts: 1,
                    spent: 1,
                    since: self.now.wall,
                };
                self.ledger.keep(&[row], &[]);
            }
        }
    }

    /// Of everything that the future depends on, and of what the laws compare with. Equal states
    /// have equal numbers, as far as their maps were filled alike.
    pub fn digest(&self) -> u64 {
        let mut digest = Digest(DefaultHasher::new());
        write!(
            digest,
            "{:?}{:?}{}{:?}{:?}{:?}{:?}{:?}{:?}{:?}{:?}{:?}{:?}{:?}{:?}",
            self.now,
            self.left,
            self.calm,
            self.worker,
            self.ledger,
            self.recorded,
            self.decided,
            self.messages,
            self.tickets,
            self.events,
            self.copies,
            self.states,
            self.timed_out,
            self.in_doubt,
            self.settled,
        )
        .unwrap();
        digest.0.finish()
    }

    pub fn tell(&mut self, what: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(what());
        }
    }

    pub fn take_trace(&mut self) -> String {
        self.trace.take().unwrap_or_default().join("\n")
    }

    /// One step, unless it is over or a law is broken; whether it was made.
    pub fn advance(&mut self) -> bool {
        if self.broken.is_some() {
            return false;
        }
        if !self.calm && self.steps >= self.config.stormy_steps {
            self.calm = true;
            self.left = Budget {
                faults: 0,
                crashes: 0,
                losses: 0,
                stops: 0,
                long_waits: 0,
            };
        }
        let moves = self.moves();
        if self.is_over() && (self.calm || moves[0] == Move::Wait) {
            self.at_the_end();
            return false;
        }
        let choice = match self.calm {
            true => 0,
            false => self.choices.pick(moves.len()),
        };
        self.step(moves[choice]);
        let stormy = match self.config.stormy_steps {
            usize::MAX => 0,
            steps => steps,
        };
        self.law(self.steps < stormy + CALM_STEPS_MAX, || {
            "it does not come to an end".into()
        });
        self.broken.is_none()
    }

    fn is_over(&self) -> bool {
        self.messages.len() == self.config.commands.len()
            && self.messages.iter().all(|m| m.place == Place::Acknowledged)
            && !self.worker.draining
            && !self.worker.is_busy()
    }

    /// What may happen next; the first is the plain course of things.
    fn moves(&self) -> Vec<Move> {
        let worker = &self.worker;
        let mut moves = Vec::new();
        let mut arrivals = Vec::new();
        if !worker.jobs.is_empty() {
            moves.push(Move::Ledger);
        }
        if worker.claim_behind_writes().is_some() {
            moves.push(Move::ClaimFirst);
        }
        if !worker.answers.is_empty() {
            moves.push(Move::Answer);
        }
        moves.extend((0..worker.calls.len()).map(Move::Call));
        moves.extend((0..worker.publications.len()).map(Move::Publication));
        moves.extend((0..worker.late_losses.len()).map(Move::LateLoss));
        if worker.desk.intake() == Intake::Open {
            let queued = |m: &Message| matches!(m.place, Place::Queued { .. });
            arrivals.extend(
                (0..self.messages.len())
                    .filter(|m| queued(&self.messages[*m]))
                    .map(Move::Deliver),
            );
        }
        if self.messages.len() < self.config.commands.len() {
            arrivals.push(Move::Submit);
        }
        if self.config.eager {
            moves.splice(0..0, arrivals);
        } else {
            moves.extend(arrivals);
        }
        if worker.draining && worker.desk.is_idle() && !worker.is_busy() {
            moves.push(Move::Restart);
        }
        moves.push(Move::Wait);
        if !self.calm {
            self.disturbances(&mut moves);
        }
        moves
    }

    fn disturbances(&self, moves: &mut Vec<Move>) {
        if self.left.long_waits > 0 {
            moves.extend([Move::WaitLong(HOLD), Move::WaitLong(MAX_AGE)]);
        }
        moves.extend((0..self.timed_out.len()).map(Move::ExecuteLate));
        if self.left.losses > 0 {
            moves.push(Move::LoseSession);
        }
        if self.left.crashes > 0 {
            moves.push(Move::Crash);
        }
        if self.left.stops > 0 && !self.worker.draining {
            moves.push(Move::Stop);
        }
    }

    fn step(&mut self, what: Move) {
        self.steps += 1;
        self.tell(|| format!("-- {what:?}"));
        match what {
            Move::Ledger => {
                let first = self.worker.jobs.pop_front();
                self.ledger_does(first);
            }
            Move::ClaimFirst => {
                let claim = self.worker.claim_behind_writes();
                let claim = claim.and_then(|at| self.worker.jobs.remove(at));
                self.ledger_does(claim);
            }
            Move::Call(at) => self.call_ends(at),
            Move::Publication(at) => self.publication_ends(at),
            Move::Answer => self.answer(),
            Move::LateLoss(at) => {
                let publication = self.worker.late_losses.remove(at);
                self.report(&publication, Fate::Lost);
            }
            Move::Deliver(at) => self.deliver(at),
            Move::Submit => self.submit(),
            Move::Wait => {
                let soon = self.now.mono + UNTOLD_PAUSE;
                let wake = self.worker.desk.wake_at(self.now.mono);
                let at = wake.unwrap_or(soon).min(soon);
                let least = self.now.mono + Duration::from_millis(1);
                self.wait(at.max(least).since(self.now.mono));
            }
            Move::WaitLong(time) => {
                self.left.long_waits -= 1;
                self.wait(time);
            }
            Move::ExecuteLate(at) => {
                let key = self.timed_out.remove(at);
                self.execute(&key);
            }
            Move::LoseSession => self.lose_session(),
            Move::Crash => self.crash(),
            Move::Stop => {
                self.left.stops -= 1;
                self.worker.draining = true;
                self.worker.desk.drain();
            }
            Move::Restart => self.start_again(),
        }
        if self.worker.draining {
            self.worker.desk.give_back_idle();
        }
        self.turn();
    }

    fn wait(&mut self, time: Duration) {
        self.now.mono = self.now.mono + time;
        self.now.wall = later(self.now.wall, time);
        self.worker.desk.sweep(self.now);
    }

    /// Takes over what the desk asks for.
    fn turn(&mut self) {
        for action in self.worker.desk.turn(self.now) {
            self.tell(|| format!("     {action:?}"));
            let worker = &mut self.worker;
            match action {
                Action::Claim(claim) => worker.jobs.push_back(Job::Claim(claim)),
                Action::Send(list) => worker.jobs.push_back(Job::Send(list)),
                Action::Record(record) => {
                    self.check_record(&record);
                    self.worker.jobs.push_back(Job::Record(record));
                }
                Action::LookUp(call, lane, no) => worker.calls.push((call, lane, Call::LookUp(no))),
                Action::Probe(call, lane) => worker.calls.push((call, lane, Call::Probe)),
                Action::Tell(telling) => {
                    self.check_telling(&telling);
                    self.worker.publications.push(Publication::Tell(telling));
                }
                Action::Park(parking) => worker.publications.push(Publication::Park(parking)),
                Action::Acknowledge(finished) => {
                    let answer = Answer::Acknowledge(finished.ticket(), finished.was_parked());
                    worker.answers.push_back(answer);
                }
                Action::Return(ticket) => worker.answers.push_back(Answer::Return(ticket)),
                Action::Note(..) => {}
            }
        }
    }

    // The ledger.

    fn ledger_does(&mut self, job: Option<Job>) {
        match job {
            Some(Job::Claim(claim)) => {
                let claimed = self.ledger.answer(&claim);
                self.worker.desk.claimed(self.now, claimed);
            }
            Some(Job::Record(record)) => {
                self.ledger.keep(&record.orders, &record.results);
                self.recorded.extend(record.results.iter().map(told_of));
                self.check_flights();
                self.check_results();
                self.worker.desk.recorded(record.id);
            }
            Some(Job::Send(list)) => {
                let orders: Vec<OrderNo> =
                    list.orders.iter().map(|row| row.order_no.clone()).collect();
                self.check_list(list.lane, &orders);
                self.ledger.keep(&list.orders, &[]);
                let call = (list.call, list.lane, Call::Cancel(orders));
                self.worker.calls.push(call);
                self.check_flights();
            }
            None => {}
        }
    }

    /// What is under way may or may not have reached the broker and the gateway.
    fn crash(&mut self) {
        self.left.crashes -= 1;
        for publication in std::mem::take(&mut self.worker.publications) {
            if self.choices.yes() {
                self.take(&publication, false);
            }
        }
        for (_, lane, call) in std::mem::take(&mut self.worker.calls) {
            let Call::Cancel(orders) = call else {
                continue;
            };
            let executed = !self.choices.yes();
            self.tell(|| format!("   in flight, executed: {executed}"));
            for no in orders {
                let key = (lane, no);
                if executed {
                    self.execute(&key);
                }
                self.in_doubt.insert(key);
            }
        }
        self.start_again();
    }

    fn start_again(&mut self) {
        self.requeue();
        self.worker = Worker::new(self.fresh.clone());
    }

    fn at_the_end(&mut self) {
        self.check_all_told();
        self.wait(ORPHANS_GONE);
        self.turn();
        let load = self.worker.desk.load();
        // An account that is down may just have been probed.
        self.law(load.commands + load.orders + load.untold == 0, || {
            format!("at the end: left in hand: {load:?}")
        });
    }
}
