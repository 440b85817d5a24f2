//! The world: a worker's desk, and what is around it.
//!
//! The models keep what outlives the worker: the ledger what was committed, the broker what was not
//! acknowledged, the gateway what it executed. Everything else is in the worker's hands and is lost
//! when it dies, which it may between any two steps.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::{self, Write as _};
use std::hash::{DefaultHasher, Hasher};
use std::time::Duration;

use jiff::Timestamp;
use wdt_cancel_worker::rules::delay::Delays;
use wdt_cancel_worker::rules::desk::{
    AccountPolicy, Action, CallId, Claim, Claimed, Desk, Fate, Fence, Intake, LaneId, Load,
    OrderRow, Parking, Policy, Record, RecordId, SendList, Telling, Ticket,
};
use wdt_cancel_worker::rules::judge::{CallEnd, CancelLists, FoundOrder};
use wdt_cancel_worker::rules::next::Retry;
use wdt_cancel_worker::rules::order::{AccountName, OrderNo, Outcome};
use wdt_cancel_worker::rules::time::{Mono, Now, later};

use crate::NOON;
use crate::choices::Choices;
use crate::config::{ACCOUNTS, Config};
use crate::laws::{ToldOf, told_of};
use crate::ledger::Ledger;
use crate::shared::Shared;

const HOLD: Duration = Duration::from_secs(1200);
const MAX_AGE: Duration = Duration::from_secs(24 * 3600);
const UNTOLD_PAUSE: Duration = Duration::from_secs(10);
/// Longer than the desk remembers a command whose delivery did not come again.
const ORPHANS_GONE: Duration = Duration::from_secs(601);
/// A run that is not over after so many steps without faults never will be.
const CALM_STEPS_MAX: usize = 3_000;
/// What is left in hand at the end has left after so many long waits.
const ENDINGS_MAX: usize = 4;

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
    Release(Vec<(LaneId, OrderNo, Fence)>),
}

/// What the ledger answers.
#[derive(Debug, Clone)]
pub enum Done {
    Claimed(Claimed),
    /// What it holds of lost orders, and under which claims the rest was recorded.
    Recorded(RecordId, Vec<Key>, Vec<(Key, Fence)>),
    Sent(SendList),
    NotSent(CallId, Vec<Key>),
    Released,
}

#[derive(Debug, Clone)]
pub enum Call {
    Cancel(Vec<OrderNo>),
    LookUp(OrderNo),
    Probe,
    /// Answered while the worker was frozen.
    Cancelled(Vec<OrderNo>, CallEnd<CancelLists>),
    LookedUp(CallEnd<Vec<FoundOrder>>),
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
    /// The same, after the worker has died with it too often.
    GiveUp(usize),
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
    /// The worker stands still; time goes on without it.
    Freeze,
    Thaw,
    /// A lease is over: of a worker that is dead, frozen, or cut off from the ledger.
    Expire(u64),
}

/// How many disturbances are left of each kind.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    pub faults: usize,
    crashes: usize,
    pub losses: usize,
    stops: usize,
    long_waits: usize,
    freezes: usize,
    expiries: usize,
}

/// One worker: what is in its hands is lost with it.
#[derive(Debug, Clone)]
pub struct Worker {
    pub desk: Desk,
    draining: bool,
    /// Whose claims these are, for the ledger.
    pub owner: u64,
    pub frozen: bool,
    /// The broker gave it up while it was frozen.
    pub lost_session: bool,
    jobs: VecDeque<Job>,
    /// What the ledger answered while it was frozen.
    unheard: VecDeque<Done>,
    pub calls: Vec<(CallId, LaneId, Call)>,
    pub publications: Vec<Publication>,
    pub answers: VecDeque<Answer>,
    pub late_losses: Vec<Publication>,
}

impl Worker {
    fn new(desk: Desk, owner: u64) -> Self {
        Self {
            desk,
            draining: false,
            owner,
            frozen: false,
            lost_session: false,
            jobs: VecDeque::new(),
            unheard: VecDeque::new(),
            calls: Vec::new(),
            publications: Vec::new(),
            answers: VecDeque::new(),
            late_losses: Vec::new(),
        }
    }

    fn is_busy(&self) -> bool {
        !(self.jobs.is_empty()
            && self.unheard.is_empty()
            && self.calls.is_empty()
            && self.publications.is_empty()
            && self.answers.is_empty()
            && self.late_losses.is_empty())
    }

    fn claim_behind_writes(&self) -> Option<usize> {
        let claim = |job: &Job| matches!(job, Job::Claim(_));
        let first = self.jobs.iter().position(claim);
        first.filter(|at| *at > 0 && self.unheard.is_empty())
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

    pub workers: Vec<Worker>,
    /// Whose turn it is.
    pub at: usize,
    /// Who has which orders in hand, where several workers share the ledger.
    pub shared: Shared,
    /// One that has just been started. Clones of it iterate alike, so that equal states show alike.
    fresh: Desk,

    pub ledger: Ledger,
    /// Every ending that was ever recorded for an order of a command.
    pub recorded: BTreeSet<ToldOf>,
    /// The same, and those on their way to the ledger.
    pub decided: BTreeSet<ToldOf>,
    /// What is on its way to the ledger and must not be recorded.
    pub wrong: BTreeMap<(u64, RecordId, Key), String>,
    pub messages: Vec<Message>,
    /// Deliveries, also of sessions that are over.
    pub tickets: BTreeMap<Ticket, usize>,
    /// And which worker has them.
    pub holders: BTreeMap<Ticket, usize>,
    pub events: BTreeSet<Event>,
    pub copies: BTreeSet<Ticket>,
    pub states: BTreeMap<Key, State>,
    pub timed_out: Vec<Key>,
    /// Orders whose last call had no clear answer, and that were not looked up since.
    pub in_doubt: BTreeSet<Key>,
    /// The settled outcome that was told of an order of a command.
    pub settled: BTreeMap<(usize, String), Outcome>,
    /// When the last unsettled ending that was told of it had come about.
    pub unsettled: BTreeMap<(usize, String), Timestamp>,

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
        gather: Duration::ZERO,
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
                freezes: config.freezes,
                expiries: config.expiries,
            },
            calm: false,
            workers: (0..config.workers)
                .map(|owner| Worker::new(fresh.clone(), owner as u64))
                .collect(),
            at: 0,
            shared: Shared::new(config.workers),
            fresh,
            ledger: Ledger::default(),
            recorded: BTreeSet::new(),
            decided: BTreeSet::new(),
            wrong: BTreeMap::new(),
            messages: Vec::new(),
            tickets: BTreeMap::new(),
            holders: BTreeMap::new(),
            events: BTreeSet::new(),
            copies: BTreeSet::new(),
            states: BTreeMap::new(),
            timed_out: Vec::new(),
            in_doubt: BTreeSet::new(),
            settled: BTreeMap::new(),
            unsettled: BTreeMap::new(),
            trace: tells.then(Vec::new),
            broken: None,
            config,
        };
        world.leave_orders();
        for at in 0..config.workers {
            world.at = at;
            world.turn();
        }
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
                    fence: Fence::default(),
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
            self.workers,
            self.shared,
            self.ledger,
            (&self.recorded, &self.decided, &self.wrong),
            self.messages,
            self.tickets,
            self.events,
            self.copies,
            self.states,
            self.timed_out,
            self.in_doubt,
            (&self.settled, &self.unsettled),
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
            self.calm_down();
        }
        let moves = self.moves();
        if self.is_over() && (self.calm || moves[0].1 == Move::Wait) {
            self.at_the_end();
            return false;
        }
        let choice = match self.calm {
            true => 0,
            false => self.choices.pick(moves.len()),
        };
        let (at, what) = moves[choice];
        self.at = at;
        self.step(what);
        let stormy = match self.config.stormy_steps {
            usize::MAX => 0,
            steps => steps,
        };
        self.law(self.steps < stormy + CALM_STEPS_MAX, || {
            "it does not come to an end".into()
        });
        self.broken.is_none()
    }

    /// Nothing is disturbed any more.
    fn calm_down(&mut self) {
        self.calm = true;
        self.left = Budget {
            faults: 0,
            crashes: 0,
            losses: 0,
            stops: 0,
            long_waits: 0,
            freezes: 0,
            expiries: 0,
        };
    }

    fn is_over(&self) -> bool {
        self.messages.len() == self.config.commands.len()
            && self.messages.iter().all(|m| m.place == Place::Acknowledged)
            && self
                .workers
                .iter()
                .all(|w| !w.draining && !w.frozen && !w.is_busy())
    }

    /// What may happen next, and to which worker; the first is the plain course of things.
    fn moves(&self) -> Vec<(usize, Move)> {
        let mut moves = Vec::new();
        for (at, worker) in self.workers.iter().enumerate().filter(|(_, w)| !w.frozen) {
            let mut may = |what| moves.push((at, what));
            if !worker.jobs.is_empty() || !worker.unheard.is_empty() {
                may(Move::Ledger);
            }
            if worker.claim_behind_writes().is_some() {
                may(Move::ClaimFirst);
            }
            if !worker.answers.is_empty() {
                may(Move::Answer);
            }
            (0..worker.calls.len()).map(Move::Call).for_each(&mut may);
            let publications = 0..worker.publications.len();
            publications.map(Move::Publication).for_each(&mut may);
            let losses = 0..worker.late_losses.len();
            losses.map(Move::LateLoss).for_each(&mut may);
        }
        let arrivals = self.arrivals();
        if self.config.eager {
            moves.splice(0..0, arrivals);
        } else {
            moves.extend(arrivals);
        }
        for (at, worker) in self.workers.iter().enumerate() {
            if worker.draining && worker.desk.is_idle() && !worker.is_busy() && !worker.frozen {
                moves.push((at, Move::Restart));
            }
        }
        // In the end, whoever is dead loses its lease, and whoever is frozen goes on.
        let owners: Vec<u64> = self.workers.iter().map(|w| w.owner).collect();
        let dead = self.shared.owners().into_iter();
        let dead = dead.filter(|owner| !owners.contains(owner));
        moves.extend(dead.map(|owner| (0, Move::Expire(owner))));
        for (at, worker) in self.workers.iter().enumerate() {
            if worker.frozen {
                moves.push((at, Move::Thaw));
            }
        }
        moves.push((0, Move::Wait));
        if !self.calm {
            self.disturbances(&mut moves);
        }
        moves
    }

    /// Each message goes to any worker; the workers take turns in the plain course.
    fn arrivals(&self) -> Vec<(usize, Move)> {
        let mut arrivals = Vec::new();
        for (message, m) in self.messages.iter().enumerate() {
            if !matches!(m.place, Place::Queued { .. }) {
                continue;
            }
            for turn in 0..self.workers.len() {
                let at = (message + turn) % self.workers.len();
                let worker = &self.workers[at];
                if !worker.frozen && worker.desk.intake() == Intake::Open {
                    arrivals.push((at, Move::Deliver(message)));
                    let again = m.place == Place::Queued { redelivered: true };
                    if again && self.left.faults > 0 && !self.calm {
                        arrivals.push((at, Move::GiveUp(message)));
                    }
                }
            }
        }
        if self.messages.len() < self.config.commands.len() {
            arrivals.push((0, Move::Submit));
        }
        arrivals
    }

    fn disturbances(&self, moves: &mut Vec<(usize, Move)>) {
        if self.left.long_waits > 0 {
            moves.extend([(0, Move::WaitLong(HOLD)), (0, Move::WaitLong(MAX_AGE))]);
        }
        moves.extend((0..self.timed_out.len()).map(|at| (0, Move::ExecuteLate(at))));
        for (at, worker) in self.workers.iter().enumerate() {
            if self.left.losses > 0 && !worker.lost_session {
                moves.push((at, Move::LoseSession));
            }
            if self.left.crashes > 0 {
                moves.push((at, Move::Crash));
            }
            if self.left.stops > 0 && !worker.draining && !worker.frozen {
                moves.push((at, Move::Stop));
            }
            if self.workers.len() == 1 {
                continue;
            }
            if self.left.freezes > 0 && !worker.frozen {
                moves.push((at, Move::Freeze));
            }
            // A call is begun only where the lease outlasts it.
            let calls = worker.calls.iter().any(|c| matches!(c.2, Call::Cancel(_)));
            if self.left.expiries > 0 && !calls && self.shared.has(worker.owner) {
                moves.push((at, Move::Expire(worker.owner)));
            }
        }
    }

    fn step(&mut self, what: Move) {
        self.steps += 1;
        let at = self.at;
        self.tell(|| format!("-- {at}: {what:?}"));
        match what {
            Move::Ledger => {
                let done = match self.workers[self.at].unheard.pop_front() {
                    Some(done) => Some(done),
                    None => {
                        let first = self.workers[self.at].jobs.pop_front();
                        first.map(|job| self.ledger_does(job))
                    }
                };
                done.into_iter().for_each(|done| self.hear(done));
            }
            Move::ClaimFirst => {
                let worker = &mut self.workers[self.at];
                let claim = worker.claim_behind_writes();
                if let Some(claim) = claim.and_then(|at| worker.jobs.remove(at)) {
                    let done = self.ledger_does(claim);
                    self.hear(done);
                }
            }
            Move::Call(at) => self.call_ends(at),
            Move::Publication(at) => self.publication_ends(at),
            Move::Answer => self.answer(),
            Move::LateLoss(at) => {
                let publication = self.workers[self.at].late_losses.remove(at);
                self.report(&publication, Fate::Lost);
            }
            Move::Deliver(at) => self.deliver(at, false),
            Move::GiveUp(at) => {
                self.left.faults -= 1;
                self.deliver(at, true);
            }
            Move::Submit => self.submit(),
            Move::Wait => {
                let soon = self.now.mono + UNTOLD_PAUSE;
                let now = self.now.mono;
                let workers = self.workers.iter_mut().filter(|w| !w.frozen);
                let wake = workers.filter_map(|w| w.desk.wake_at(now)).min();
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
                self.workers[self.at].draining = true;
                self.workers[self.at].desk.drain();
            }
            Move::Restart => {
                // It lets go of everything as it closes the ledger.
                self.shared.expire(self.workers[self.at].owner);
                self.start_again();
            }
            Move::Freeze => self.freeze(),
            Move::Thaw => self.thaw(),
            Move::Expire(owner) => {
                let is_alive = self.workers.iter().any(|w| w.owner == owner);
                self.left.expiries -= usize::from(is_alive);
                self.expire(owner);
            }
        }
        self.turn_all();
    }

    fn turn_all(&mut self) {
        for at in 0..self.workers.len() {
            self.at = at;
            if self.workers[at].frozen {
                continue;
            }
            if self.workers[at].draining {
                self.workers[at].desk.give_back_idle();
            }
            self.turn();
        }
    }

    fn wait(&mut self, time: Duration) {
        self.now.mono = self.now.mono + time;
        self.now.wall = later(self.now.wall, time);
        for worker in self.workers.iter_mut().filter(|w| !w.frozen) {
            worker.desk.sweep(self.now);
        }
    }

    /// Takes over what the desk asks for.
    fn turn(&mut self) {
        for action in self.workers[self.at].desk.turn(self.now) {
            self.tell(|| format!("     {action:?}"));
            match &action {
                Action::Tell(telling) => self.check_telling(telling),
                Action::Record(record) => self.check_record(record),
                _ => {}
            }
            let worker = &mut self.workers[self.at];
            match action {
                Action::Claim(claim) => worker.jobs.push_back(Job::Claim(claim)),
                Action::Send(list) => worker.jobs.push_back(Job::Send(list)),
                Action::Record(record) => worker.jobs.push_back(Job::Record(record)),
                Action::Release(orders) => worker.jobs.push_back(Job::Release(orders)),
                Action::LookUp(call, lane, no) => worker.calls.push((call, lane, Call::LookUp(no))),
                Action::Probe(call, lane) => worker.calls.push((call, lane, Call::Probe)),
                Action::Tell(telling) => worker.publications.push(Publication::Tell(telling)),
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

    /// The ledger does what this worker asked.
    fn ledger_does(&mut self, job: Job) -> Done {
        let owner = self.workers[self.at].owner;
        match job {
            Job::Claim(claim) => {
                Done::Claimed(self.shared.claim(owner, &claim, self.ledger.answer(&claim)))
            }
            Job::Record(mut record) => {
                let lost = self.shared.lost(&record);
                self.check_kept(&record, &lost);
                let name = |lane, no: &str| OrderNo::new(no).map(|no| (lane, no));
                let kept = |key: Result<Key, _>| key.is_ok_and(|key| !lost.contains(&key));
                record
                    .orders
                    .retain(|row| kept(name(row.lane, row.order_no.as_str())));
                record.results.retain(|row| {
                    OrderNo::new(&row.order_no).is_err() || kept(name(row.lane, &row.order_no))
                });
                self.ledger.keep(&record.orders, &record.results);
                self.recorded.extend(record.results.iter().map(told_of));
                self.check_flights();
                self.check_results();
                let claims = self.shared.claims(&record);
                Done::Recorded(record.id, lost, claims)
            }
            Job::Send(list) => {
                let lost = self.shared.lost_rows(&list.orders);
                if !lost.is_empty() {
                    return Done::NotSent(list.call, lost);
                }
                self.ledger.keep(&list.orders, &[]);
                Done::Sent(list)
            }
            Job::Release(orders) => {
                self.shared.release(&orders);
                Done::Released
            }
        }
    }

    /// The worker hears what the ledger answers.
    fn hear(&mut self, done: Done) {
        self.tell(|| format!("   {done:?}"));
        let worker = &mut self.workers[self.at];
        match done {
            Done::Claimed(claimed) => worker.desk.claimed(self.now, claimed),
            Done::Recorded(id, mut lost, claims) => {
                // Its own clock tells a worker that its lease is over: another one may have said
                // more of the order since.
                lost.extend(self.shared.lost_claims(claims));
                worker.desk.recorded(id, &lost);
            }
            Done::NotSent(call, lost) => worker.desk.not_sent(call, &lost),
            Done::Released => {}
            Done::Sent(list) => {
                let orders: Vec<OrderNo> =
                    list.orders.iter().map(|row| row.order_no.clone()).collect();
                // Its own clock tells a worker that its lease is over.
                let lost = self.shared.lost_rows(&list.orders);
                if !lost.is_empty() {
                    return worker.desk.not_sent(list.call, &lost);
                }
                self.check_list(list.lane, &orders);
                let call = (list.call, list.lane, Call::Cancel(orders));
                self.workers[self.at].calls.push(call);
                self.check_flights();
            }
        }
    }

    // What happens to a worker.

    /// What it asked for before may be done meanwhile; it hears of that later. Its lease may be
    /// over, and the broker may give it up.
    fn freeze(&mut self) {
        self.left.freezes -= 1;
        let kind = self.choices.pick(4);
        for (id, lane, call) in std::mem::take(&mut self.workers[self.at].calls) {
            let call = match call {
                Call::Cancel(orders) => {
                    let end = self.cancel(lane, &orders);
                    Call::Cancelled(orders, end)
                }
                Call::LookUp(no) => Call::LookedUp(self.look_up(lane, &no)),
                call @ (Call::Probe | Call::Cancelled(..) | Call::LookedUp(_)) => call,
            };
            self.workers[self.at].calls.push((id, lane, call));
        }
        if !self.workers[self.at].jobs.is_empty() && self.choices.yes() {
            for job in std::mem::take(&mut self.workers[self.at].jobs) {
                let done = self.ledger_does(job);
                self.workers[self.at].unheard.push_back(done);
            }
        }
        self.workers[self.at].frozen = true;
        if kind & 1 != 0 {
            self.expire(self.workers[self.at].owner);
        }
        if kind & 2 != 0 {
            self.give_up_session();
        }
    }

    /// The answers that a frozen worker has not heard are no answers for whoever comes after it.
    fn expire(&mut self, owner: u64) {
        self.shared.expire(owner);
        for worker in self.workers.iter().filter(|w| w.owner == owner) {
            for (_, lane, call) in &worker.calls {
                if let Call::Cancelled(orders, _) = call {
                    let keys = orders.iter().map(|no| (*lane, no.clone()));
                    self.in_doubt.extend(keys);
                }
            }
        }
    }

    fn thaw(&mut self) {
        let worker = &mut self.workers[self.at];
        worker.frozen = false;
        if std::mem::take(&mut worker.lost_session) {
            worker.answers.clear();
            for publication in std::mem::take(&mut worker.publications) {
                self.report(&publication, Fate::Lost);
            }
            self.workers[self.at].desk.session_lost(self.now.mono);
        }
    }

    /// What is under way may or may not have reached the broker and the gateway.
    fn crash(&mut self) {
        self.left.crashes -= 1;
        for publication in std::mem::take(&mut self.workers[self.at].publications) {
            if self.choices.yes() {
                self.take(&publication, false);
            }
        }
        for (_, lane, call) in std::mem::take(&mut self.workers[self.at].calls) {
            let (orders, may_go) = match call {
                Call::Cancel(orders) => (orders, true),
                Call::Cancelled(orders, _) => (orders, false),
                Call::LookUp(_) | Call::LookedUp(_) | Call::Probe => continue,
            };
            let executed = may_go && !self.choices.yes();
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
        let owner = self.shared.next_owner();
        self.workers[self.at] = Worker::new(self.fresh.clone(), owner);
    }

    /// Every command is acknowledged. Those that another worker finished, and their orders, leave
    /// the desk after a while.
    fn at_the_end(&mut self) {
        self.check_all_told();
        self.calm_down();
        let load = |w: &Worker| w.desk.load();
        let is_empty = |w: &Worker| load(w).commands + load(w).orders + load(w).untold == 0;
        for _ in 0..ENDINGS_MAX {
            self.wait(ORPHANS_GONE);
            self.turn_all();
            // An account that is down may just have been probed.
            if self.workers.iter().all(is_empty) {
                return;
            }
            while let Some((at, what)) = self.moves().first().copied()
                && what != Move::Wait
                && self.broken.is_none()
            {
                self.at = at;
                self.step(what);
            }
        }
        let loads: Vec<Load> = self.workers.iter().map(load).collect();
        self.law(false, || format!("at the end: left in hand: {loads:?}"));
    }
}
