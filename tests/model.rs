//! The desk explored: the real rules, between models of a ledger, a broker and a gateway.
//!
//! The models keep what outlives the worker: the ledger what was committed, the broker what was
//! not acknowledged, the gateway what it executed. Everything else is in the worker's hands and is
//! lost when it dies, which it may between any two actions. Each choice (what happens next, how the
//! gateway answers, what the broker takes) is asked of one [`Choices`], so a run is a list of
//! numbers: chance draws it, a search enumerates it, and a failure is replayed from it with every
//! step told.
//!
//! Checked at every step are the laws of the contract, at the end that everything was told and
//! acknowledged and that nothing is left in hand. See [`World::law`] for the list.

#[path = "support/ledger.rs"]
mod ledger;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use ledger::Ledger;
use wdt_cancel_worker::rules::admit::{self, House, RawCommand, RawProperties};
use wdt_cancel_worker::rules::delay::Delays;
use wdt_cancel_worker::rules::desk::{
    AccountPolicy, Action, CallId, Claim, Desk, Fate, Intake, LaneId, OrderState, Parking, Policy,
    Record, ResultRow, SendList, Telling, Ticket,
};
use wdt_cancel_worker::rules::judge::{CallEnd, CancelLists, FoundOrder, Reply};
use wdt_cancel_worker::rules::next::Retry;
use wdt_cancel_worker::rules::order::{
    AccountName, CommandId, Ending, OrderNo, Outcome, ReasonCode,
};
use wdt_cancel_worker::rules::policy::Verify;
use wdt_cancel_worker::rules::time::{Mono, Now, later};

const NOON: &str = "2026-11-23T12:00:00Z";
const HOLD: Duration = Duration::from_secs(1200);
const MAX_AGE: Duration = Duration::from_secs(24 * 3600);
const UNTOLD_PAUSE: Duration = Duration::from_secs(10);
/// A command's deadline, in seconds after noon, where it has one.
const DEADLINE: Duration = Duration::from_secs(5);
/// Longer than the desk remembers a command whose delivery did not come again.
const ORPHANS_GONE: Duration = Duration::from_secs(601);
const ACCOUNTS: [&str; 2] = ["default", "b2b"];
const STATE: &str = "单据状态不是编辑中、待审核、已审核，不允许取消";
const NOT_FOUND: &str = "单据不存在";
/// A run that is not over after so many steps without faults never will be.
const CALM_STEPS_MAX: usize = 3_000;

/// What happens, as a list of numbers.
struct Choices {
    given: Vec<usize>,
    chance: Option<fastrand::Rng>,
    /// Each choice, and among how many.
    taken: Vec<(usize, usize)>,
}

impl Choices {
    /// These first; then by chance, or without it the first of what there is.
    fn new(given: Vec<usize>, chance: Option<fastrand::Rng>) -> Self {
        Self {
            given,
            chance,
            taken: Vec::new(),
        }
    }

    fn pick(&mut self, of: usize) -> usize {
        if of <= 1 {
            return 0;
        }
        let choice = match (self.given.get(self.taken.len()), &mut self.chance) {
            (Some(given), _) => *given,
            (None, Some(rng)) => rng.usize(..of),
            (None, None) => 0,
        };
        assert!(choice < of, "a replay takes the same choices");
        self.taken.push((choice, of));
        choice
    }

    fn yes(&mut self) -> bool {
        self.pick(2) == 1
    }

    fn list(&self) -> Vec<usize> {
        self.taken.iter().map(|(choice, _)| *choice).collect()
    }

    /// The next list with at most `most` choices that are not the first of what there is.
    fn next(&self, most: usize) -> Option<Vec<usize>> {
        let list = self.list();
        (0..list.len()).rev().find_map(|at| {
            let (choice, of) = self.taken[at];
            let before = list[..at].iter().filter(|c| **c != 0).count();
            (choice + 1 < of && before < most).then(|| {
                let mut next = list[..at].to_vec();
                next.push(choice + 1);
                next
            })
        })
    }
}

/// What a run is about.
#[derive(Debug, Clone)]
struct Config {
    /// The orders as the gateway has them at first: account, number, status (0: no such order).
    orders: Vec<(usize, &'static str, i64)>,
    commands: Vec<Sent>,
    verify: Verify,
    may_query: bool,
    max_orders_per_call: u32,
    concurrency: u32,
    max_attempts: u32,
    calls_per_minute: u32,
    /// A call that timed out may be executed later, when it has been looked up already. Off: no
    /// rule holds against it, for nothing would ever be certain (an order that was looked up as
    /// not cancelled, and whose deadline passed, is told as expired, and cancelled after all).
    executes_late: bool,
    /// Commands arrive before what is in hand goes on.
    eager: bool,
    /// How many steps are disturbed at most, and by how many of each.
    stormy_steps: usize,
    faults: usize,
    crashes: usize,
    losses: usize,
    stops: usize,
    long_waits: usize,
}

/// A command as somebody sends it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Sent {
    id: &'static str,
    account: usize,
    orders: Vec<&'static str>,
    has_deadline: bool,
}

/// A message in the broker's queue.
struct Message {
    /// The first of the commands that are the same as this one, in [`Config::commands`].
    command: usize,
    published_at: usize,
    place: Place,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Queued { redelivered: bool },
    Held(Ticket),
    Acknowledged,
}

/// An order as the gateway has it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Absent,
    Cancellable,
    /// Shipped, say.
    Closed,
    Cancelled {
        by_us: bool,
    },
}

type Key = (LaneId, OrderNo);

/// An ending of an order of a command.
type ToldOf = (LaneId, CommandId, String, String);

fn told_of(row: &ResultRow) -> ToldOf {
    let ending = format!("{:?}", row.ending);
    let no = row.order_no.to_string();
    (row.lane, row.command_id.clone(), no, ending)
}

/// What the ledger was asked and has not done yet.
enum Job {
    Claim(Claim),
    Record(Record),
    Send(SendList),
}

#[derive(Clone)]
enum Call {
    Cancel(Vec<OrderNo>),
    LookUp(OrderNo),
    Probe,
}

enum Publication {
    Tell(Telling),
    Park(Parking),
}

impl Publication {
    fn ticket(&self) -> Ticket {
        match self {
            Self::Tell(telling) => telling.ticket,
            Self::Park(parking) => parking.ticket,
        }
    }
}

enum Answer {
    Acknowledge(Ticket, bool),
    Return(Ticket),
}

/// An event that reached a queue.
struct Event {
    command: usize,
    ticket: Ticket,
    order_no: String,
    outcome: Outcome,
    at: usize,
    confirmed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Move {
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

struct World<'a> {
    config: &'a Config,
    choices: &'a mut Choices,
    now: Now,
    steps: usize,
    faults: usize,
    crashes: usize,
    losses: usize,
    stops: usize,
    long_waits: usize,
    calm: bool,

    desk: Desk,
    draining: bool,
    jobs: VecDeque<Job>,
    calls: Vec<(CallId, LaneId, Call)>,
    publications: Vec<Publication>,
    answers: VecDeque<Answer>,
    late_losses: Vec<Publication>,

    ledger: Ledger,
    /// Every ending that was ever recorded for an order of a command.
    recorded: BTreeSet<ToldOf>,
    /// The same, and those on their way to the ledger.
    decided: BTreeSet<ToldOf>,
    messages: Vec<Message>,
    /// How many of the commands were sent.
    submitted: usize,
    /// Deliveries, also of sessions that are over.
    tickets: BTreeMap<Ticket, usize>,
    events: Vec<Event>,
    copies: BTreeSet<Ticket>,
    states: BTreeMap<Key, State>,
    timed_out: Vec<Key>,
    /// Orders whose last call had no clear answer, and that were not looked up since.
    in_doubt: BTreeSet<Key>,
    /// The settled outcome that was told of an order of a command.
    settled: BTreeMap<(usize, String), Outcome>,

    trace: Option<Vec<String>>,
    broken: Option<String>,
}

struct Shop(Vec<AccountName>);

impl House for Shop {
    fn accounts(&self) -> impl Iterator<Item = &AccountName> {
        self.0.iter()
    }
    fn allows_reply_to(&self, _queue: &str) -> bool {
        true
    }
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

fn reply<T>(status: i64, message: &str, data: Option<T>) -> CallEnd<T> {
    CallEnd::Answered(Reply {
        status,
        message: message.to_owned(),
        data,
    })
}

fn lost<T>() -> CallEnd<T> {
    CallEnd::Lost {
        what: "timed out".into(),
    }
}

fn not_reached<T>() -> CallEnd<T> {
    CallEnd::NotReached {
        what: "connection refused".into(),
    }
}

fn garbled<T>() -> CallEnd<T> {
    CallEnd::Garbled {
        what: "HTTP 502".into(),
        retry_after: None,
    }
}

impl<'a> World<'a> {
    fn new(config: &'a Config, choices: &'a mut Choices, tells: bool) -> Self {
        let states = config.orders.iter().map(|(account, no, status)| {
            let state = match status {
                0 => State::Absent,
                20 => State::Cancellable,
                80 => State::Cancelled { by_us: false },
                _ => State::Closed,
            };
            ((LaneId(*account), OrderNo::new(no).unwrap()), state)
        });
        Self {
            choices,
            now: Now {
                mono: Mono::default(),
                wall: NOON.parse().unwrap(),
            },
            steps: 0,
            faults: config.faults,
            crashes: config.crashes,
            losses: config.losses,
            stops: config.stops,
            long_waits: config.long_waits,
            calm: false,
            desk: desk(config),
            draining: false,
            jobs: VecDeque::new(),
            calls: Vec::new(),
            publications: Vec::new(),
            answers: VecDeque::new(),
            late_losses: Vec::new(),
            ledger: Ledger::default(),
            recorded: BTreeSet::new(),
            decided: BTreeSet::new(),
            messages: Vec::new(),
            submitted: 0,
            tickets: BTreeMap::new(),
            events: Vec::new(),
            copies: BTreeSet::new(),
            states: states.collect(),
            timed_out: Vec::new(),
            in_doubt: BTreeSet::new(),
            settled: BTreeMap::new(),
            trace: tells.then(Vec::new),
            broken: None,
            config,
        }
    }

    fn tell(&mut self, what: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(what());
        }
    }

    /// One of the laws, or of what follows from them:
    ///
    /// 1. A call's orders are recorded as sent, before it and as long as it flies.
    /// 2. What is told is recorded, word for word.
    /// 3. An acknowledged command has each event confirmed, and a copy parked if one is unsettled.
    /// 4. An order without a clear answer is looked up before it is sent again.
    /// 5. `cancelled` is told only of what the gateway has cancelled; `refused`, `failed` and
    ///    `expired` never of what our own call has cancelled.
    /// 6. No order is in two calls, and none that is recorded as cancelled in any.
    /// 7. The results of a command's id are all of the same orders, and what was settled is told
    ///    the same ever after.
    fn law(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds && self.broken.is_none() {
            self.broken = Some(what());
        }
    }

    /// Runs to the end; what was broken, if anything.
    fn run(&mut self) -> Option<String> {
        self.turn();
        while self.broken.is_none() {
            if !self.calm && self.steps >= self.config.stormy_steps {
                self.calm = true;
                (self.faults, self.crashes, self.losses, self.stops) = (0, 0, 0, 0);
            }
            let moves = self.moves();
            let is_over = self.is_over();
            if is_over && (self.calm || moves[0] == Move::Wait) {
                break;
            }
            let choice = match self.calm {
                true => 0,
                false => self.choices.pick(moves.len()),
            };
            self.step(moves[choice]);
            let most = self.config.stormy_steps + CALM_STEPS_MAX;
            self.law(self.steps < most, || "it does not come to an end".into());
        }
        self.at_the_end();
        self.broken.take()
    }

    fn is_over(&self) -> bool {
        self.submitted == self.config.commands.len()
            && self.messages.iter().all(|m| m.place == Place::Acknowledged)
            && !self.draining
            && !self.is_busy()
    }

    fn is_busy(&self) -> bool {
        !(self.jobs.is_empty()
            && self.calls.is_empty()
            && self.publications.is_empty()
            && self.answers.is_empty()
            && self.late_losses.is_empty())
    }

    /// What may happen next; the first is the plain course of things.
    fn moves(&self) -> Vec<Move> {
        let mut moves = Vec::new();
        let mut arrivals = Vec::new();
        if !self.jobs.is_empty() {
            moves.push(Move::Ledger);
        }
        if self.claim_behind_writes().is_some() {
            moves.push(Move::ClaimFirst);
        }
        if !self.answers.is_empty() {
            moves.push(Move::Answer);
        }
        moves.extend((0..self.calls.len()).map(Move::Call));
        moves.extend((0..self.publications.len()).map(Move::Publication));
        moves.extend((0..self.late_losses.len()).map(Move::LateLoss));
        if self.desk.intake() == Intake::Open {
            let queued = |m: &Message| matches!(m.place, Place::Queued { .. });
            arrivals.extend(
                (0..self.messages.len())
                    .filter(|m| queued(&self.messages[*m]))
                    .map(Move::Deliver),
            );
        }
        if self.submitted < self.config.commands.len() {
            arrivals.push(Move::Submit);
        }
        if self.config.eager {
            moves.splice(0..0, arrivals);
        } else {
            moves.extend(arrivals);
        }
        if self.draining && self.desk.is_idle() && !self.is_busy() {
            moves.push(Move::Restart);
        }
        moves.push(Move::Wait);
        if !self.calm {
            if self.long_waits > 0 {
                moves.extend([Move::WaitLong(HOLD), Move::WaitLong(MAX_AGE)]);
            }
            moves.extend((0..self.timed_out.len()).map(Move::ExecuteLate));
            if self.losses > 0 {
                moves.push(Move::LoseSession);
            }
            if self.crashes > 0 {
                moves.push(Move::Crash);
            }
            if self.stops > 0 && !self.draining {
                moves.push(Move::Stop);
            }
        }
        moves
    }

    fn step(&mut self, what: Move) {
        self.steps += 1;
        self.tell(|| format!("-- {what:?}"));
        match what {
            Move::Ledger => {
                let first = self.jobs.pop_front();
                self.ledger_does(first);
            }
            Move::ClaimFirst => {
                let claim = self.claim_behind_writes();
                let claim = claim.and_then(|at| self.jobs.remove(at));
                self.ledger_does(claim);
            }
            Move::Call(at) => self.call_ends(at),
            Move::Publication(at) => self.publication_ends(at),
            Move::Answer => self.answer(),
            Move::LateLoss(at) => {
                let publication = self.late_losses.remove(at);
                self.report(&publication, Fate::Lost);
            }
            Move::Deliver(at) => self.deliver(at),
            Move::Submit => self.submit(),
            Move::Wait => {
                let soon = self.now.mono + UNTOLD_PAUSE;
                let at = self.desk.wake_at(self.now.mono).unwrap_or(soon).min(soon);
                let least = self.now.mono + Duration::from_millis(1);
                self.wait(at.max(least).since(self.now.mono));
            }
            Move::WaitLong(time) => {
                self.long_waits -= 1;
                self.wait(time);
            }
            Move::ExecuteLate(at) => {
                let key = self.timed_out.remove(at);
                self.execute(&key);
            }
            Move::LoseSession => self.lose_session(),
            Move::Crash => self.crash(),
            Move::Stop => {
                self.stops -= 1;
                self.draining = true;
                self.desk.drain();
            }
            Move::Restart => self.start_again(),
        }
        if self.draining {
            self.desk.give_back_idle();
        }
        self.turn();
    }

    fn wait(&mut self, time: Duration) {
        self.now.mono = self.now.mono + time;
        self.now.wall = later(self.now.wall, time);
        self.desk.sweep(self.now);
    }

    /// Takes over what the desk asks for.
    fn turn(&mut self) {
        for action in self.desk.turn(self.now) {
            self.tell(|| format!("     {action:?}"));
            match action {
                Action::Claim(claim) => self.jobs.push_back(Job::Claim(claim)),
                Action::Send(list) => self.jobs.push_back(Job::Send(list)),
                Action::Record(record) => {
                    self.check_record(&record);
                    self.jobs.push_back(Job::Record(record));
                }
                Action::LookUp(call, lane, no) => self.calls.push((call, lane, Call::LookUp(no))),
                Action::Probe(call, lane) => self.calls.push((call, lane, Call::Probe)),
                Action::Tell(telling) => {
                    self.check_telling(&telling);
                    self.publications.push(Publication::Tell(telling));
                }
                Action::Park(parking) => self.publications.push(Publication::Park(parking)),
                Action::Acknowledge(finished) => {
                    let answer = Answer::Acknowledge(finished.ticket(), finished.was_parked());
                    self.answers.push_back(answer);
                }
                Action::Return(ticket) => self.answers.push_back(Answer::Return(ticket)),
                Action::Note(..) => {}
            }
        }
    }

    // The ledger.

    fn claim_behind_writes(&self) -> Option<usize> {
        let claim = |job: &Job| matches!(job, Job::Claim(_));
        self.jobs.iter().position(claim).filter(|at| *at > 0)
    }

    fn ledger_does(&mut self, job: Option<Job>) {
        match job {
            Some(Job::Claim(claim)) => {
                let claimed = self.ledger.answer(&claim);
                self.desk.claimed(self.now, claimed);
            }
            Some(Job::Record(record)) => {
                self.ledger.keep(&record.orders, &record.results);
                self.recorded.extend(record.results.iter().map(told_of));
                self.check_flights();
                self.check_results();
                self.desk.recorded(record.id);
            }
            Some(Job::Send(list)) => {
                let orders: Vec<OrderNo> =
                    list.orders.iter().map(|row| row.order_no.clone()).collect();
                for no in &orders {
                    self.check_call(&(list.lane, no.clone()));
                }
                let once: BTreeSet<&OrderNo> = orders.iter().collect();
                self.law(once.len() == orders.len(), || {
                    "law 6: a list holds a number twice".into()
                });
                self.ledger.keep(&list.orders, &[]);
                self.calls
                    .push((list.call, list.lane, Call::Cancel(orders)));
                self.check_flights();
            }
            None => {}
        }
    }

    fn check_call(&mut self, key: &Key) {
        let is_cancelled = self
            .ledger
            .orders
            .get(key)
            .is_some_and(|row| matches!(row.state, OrderState::Ended(Ending::Cancelled, _)));
        self.law(!is_cancelled, || {
            format!("law 6: {key:?} is sent, and recorded as cancelled")
        });
        let in_doubt = self.in_doubt.contains(key);
        self.law(!in_doubt, || {
            format!("law 4: {key:?} is sent again before it is looked up")
        });
        let flies = self.calls.iter().any(|(_, lane, call)| {
            *lane == key.0 && matches!(call, Call::Cancel(orders) if orders.contains(&key.1))
        });
        self.law(!flies, || format!("law 6: {key:?} is in two calls"));
    }

    fn check_flights(&mut self) {
        let mut wrong = None;
        for (_, lane, call) in &self.calls {
            let Call::Cancel(orders) = call else {
                continue;
            };
            for no in orders {
                let row = self.ledger.orders.get(&(*lane, no.clone()));
                if row.is_none_or(|row| row.state != OrderState::Sent) {
                    wrong = Some(no.clone());
                }
            }
        }
        self.law(wrong.is_none(), || {
            format!("law 1: {wrong:?} is in a call and not recorded as sent")
        });
    }

    fn check_results(&mut self) {
        let mut of_id = BTreeMap::new();
        let mut mixed = None;
        for row in self.ledger.results.values() {
            let id = (row.lane, row.command_id.clone());
            if *of_id.entry(id).or_insert(row.fingerprint) != row.fingerprint {
                mixed = Some(row.command_id.clone());
            }
        }
        self.law(mixed.is_none(), || {
            format!("law 7: results of {mixed:?} are of different orders")
        });
    }

    fn check_record(&mut self, record: &Record) {
        let rows = record.orders.iter().filter_map(|row| match &row.state {
            OrderState::Ended(ending, _) => Some((row.lane, row.order_no.clone(), ending)),
            OrderState::Waiting | OrderState::Sent => None,
        });
        // What a twin says again was true when it was first said.
        let is_new = |row: &&ResultRow| self.decided.insert(told_of(row));
        let results = record.results.iter().filter(is_new).filter_map(|row| {
            let no = OrderNo::new(&row.order_no).ok()?;
            Some((row.lane, no, &row.ending))
        });
        let endings: Vec<(LaneId, OrderNo, &Ending)> = rows.chain(results).collect();
        for (lane, no, ending) in endings {
            let is_cancelled = self.states.get(&(lane, no.clone())).copied();
            let holds = match ending.outcome() {
                Outcome::Cancelled => matches!(is_cancelled, Some(State::Cancelled { .. })),
                Outcome::Refused | Outcome::Failed | Outcome::Expired => {
                    is_cancelled != Some(State::Cancelled { by_us: true })
                }
                Outcome::Rejected | Outcome::Unknown => true,
            };
            self.law(holds, || format!("law 5: {no} ends as {ending:?}"));
        }
    }

    fn check_telling(&mut self, telling: &Telling) {
        let event = &telling.event;
        let Some(account) = &event.account else {
            return;
        };
        let place = ACCOUNTS.iter().position(|a| *a == account.as_str());
        let lane = LaneId(place.unwrap());
        let shown = event.order_no.clone().unwrap();
        let recorded = self.recorded.contains(&(
            lane,
            telling.envelope.command_id.clone(),
            shown.to_string(),
            format!("{:?}", event.ending),
        ));
        let needs_no_record = event
            .ending
            .reason()
            .is_some_and(|reason| reason.code == ReasonCode::CommandIdReused);
        self.law(recorded || needs_no_record, || {
            format!("law 2: told and not recorded: {event:?}")
        });
        let outcome = event.ending.outcome();
        if let (Outcome::Cancelled, Ok(no)) = (outcome, OrderNo::new(&shown)) {
            let state = self.states.get(&(lane, no)).copied();
            self.law(matches!(state, Some(State::Cancelled { .. })), || {
                format!("law 5: told and not cancelled: {event:?}")
            });
        }
        if needs_no_record {
            // Of two commands with one id of which nothing is recorded yet, whichever comes first
            // is the one that counts; after a crash it may be the other.
            return;
        }
        let Some(message) = self.tickets.get(&telling.ticket) else {
            return;
        };
        let key = (self.messages[*message].command, shown.to_string());
        match outcome {
            Outcome::Cancelled | Outcome::Refused | Outcome::Rejected | Outcome::Expired => {
                let before = *self.settled.entry(key).or_insert(outcome);
                self.law(before == outcome, || {
                    format!("law 7: told as {before:?} before: {event:?}")
                });
            }
            Outcome::Failed | Outcome::Unknown => {}
        }
    }

    // The broker.

    fn submit(&mut self) {
        let sent = &self.config.commands[self.submitted];
        let sorted = |sent: &Sent| {
            let mut orders = sent.orders.clone();
            orders.sort_unstable();
            (sent.id, sent.account, orders)
        };
        let mut commands = self.config.commands.iter();
        let same = commands.position(|c| sorted(c) == sorted(sent));
        self.messages.push(Message {
            command: same.unwrap(),
            published_at: self.steps,
            place: Place::Queued { redelivered: false },
        });
        self.submitted += 1;
    }

    fn deliver(&mut self, at: usize) {
        let message = &mut self.messages[at];
        let Place::Queued { redelivered } = message.place else {
            return;
        };
        let ticket = Ticket(self.tickets.len() as u64 + 1);
        message.place = Place::Held(ticket);
        self.tickets.insert(ticket, at);
        let sent = &self.config.commands[message.command];
        let noon: Timestamp = NOON.parse().unwrap();
        let raw = RawCommand {
            order_no_list: sent.orders.iter().map(|o| Ok((*o).to_owned())).collect(),
            account: Some(ACCOUNTS[sent.account].to_owned()),
            deadline: sent.has_deadline.then(|| later(noon, DEADLINE).to_string()),
            command_id: None,
            more_orders: 0,
        };
        let properties = RawProperties {
            message_id: Some(sent.id.to_owned()),
            ..RawProperties::default()
        };
        let shop = Shop(ACCOUNTS.map(|a| AccountName::new(a).unwrap()).into());
        let fresh = || CommandId::new("fresh").unwrap();
        let admission = admit::admit(Ok(raw), properties, fresh, &shop);
        self.desk.arrive(self.now, ticket, redelivered, admission);
    }

    fn is_live(&self, ticket: Ticket) -> bool {
        let message = self.tickets.get(&ticket).map(|m| &self.messages[*m]);
        message.is_some_and(|m| m.place == Place::Held(ticket))
    }

    fn publication_ends(&mut self, at: usize) {
        let publication = self.publications.remove(at);
        let outcomes = if self.faults > 0 { 4 } else { 1 };
        let outcome = self.choices.pick(outcomes);
        self.faults -= usize::from(outcome != 0);
        self.tell(|| ["   taken", "   returned", "   lost", "   confirm lost"][outcome].into());
        let (reaches, fate) = [
            (true, Fate::Confirmed),
            (false, Fate::Unroutable),
            (false, Fate::Lost),
            (true, Fate::Lost),
        ][outcome];
        if reaches {
            self.take(&publication, fate == Fate::Confirmed);
        }
        self.report(&publication, fate);
    }

    /// A publication reaches its queue.
    fn take(&mut self, publication: &Publication, confirmed: bool) {
        let ticket = publication.ticket();
        match publication {
            Publication::Tell(telling) => self.events.push(Event {
                command: self.messages[self.tickets[&ticket]].command,
                ticket,
                order_no: telling.event.order_no.clone().unwrap().to_string(),
                outcome: telling.event.ending.outcome(),
                at: self.steps,
                confirmed,
            }),
            Publication::Park(_) => {
                if confirmed {
                    self.copies.insert(ticket);
                }
            }
        }
    }

    fn report(&mut self, publication: &Publication, fate: Fate) {
        let now = self.now.mono;
        match publication {
            Publication::Tell(telling) => {
                self.desk.told(now, telling.command, telling.place, fate);
            }
            Publication::Park(parking) => self.desk.parked(now, parking.command, fate),
        }
    }

    fn answer(&mut self) {
        match self.answers.pop_front() {
            Some(Answer::Acknowledge(ticket, was_parked)) if self.is_live(ticket) => {
                self.check_acknowledgement(ticket, was_parked);
                let message = self.tickets[&ticket];
                self.messages[message].place = Place::Acknowledged;
            }
            Some(Answer::Return(ticket)) if self.is_live(ticket) => {
                let message = self.tickets[&ticket];
                self.messages[message].place = Place::Queued { redelivered: true };
            }
            // Of a session that is over.
            Some(Answer::Acknowledge(..) | Answer::Return(_)) | None => {}
        }
    }

    fn check_acknowledgement(&mut self, ticket: Ticket, was_parked: bool) {
        let command = self.messages[self.tickets[&ticket]].command;
        let mut silent = Vec::new();
        for no in &self.config.commands[command].orders {
            let told = |e: &Event| e.command == command && e.confirmed && e.order_no == *no;
            if !self.events.iter().any(told) {
                silent.push(*no);
            }
        }
        self.law(silent.is_empty(), || {
            format!("law 3: acknowledged, and nothing confirmed of {silent:?}")
        });
        let unsettled = self.events.iter().any(|e| {
            e.ticket == ticket
                && e.confirmed
                && matches!(e.outcome, Outcome::Failed | Outcome::Unknown)
        });
        self.law(!unsettled || was_parked, || {
            "law 3: acknowledged unsettled, and not parked".into()
        });
    }

    fn lose_session(&mut self) {
        self.losses -= 1;
        let heard_late = self.choices.yes();
        for publication in std::mem::take(&mut self.publications) {
            if self.choices.yes() {
                self.take(&publication, false);
            }
            if heard_late {
                self.late_losses.push(publication);
            } else {
                self.report(&publication, Fate::Lost);
            }
        }
        self.answers.clear();
        self.requeue();
        self.desk.session_lost(self.now.mono);
    }

    fn requeue(&mut self) {
        for message in &mut self.messages {
            if let Place::Held(_) = message.place {
                message.place = Place::Queued { redelivered: true };
            }
        }
    }

    fn crash(&mut self) {
        self.crashes -= 1;
        for publication in std::mem::take(&mut self.publications) {
            if self.choices.yes() {
                self.take(&publication, false);
            }
        }
        for (_, lane, call) in std::mem::take(&mut self.calls) {
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
        self.jobs.clear();
        self.calls.clear();
        self.answers.clear();
        self.late_losses.clear();
        self.requeue();
        self.draining = false;
        self.desk = desk(self.config);
    }

    // The gateway.

    fn execute(&mut self, key: &Key) {
        if let Some(state) = self.states.get_mut(key)
            && *state == State::Cancellable
        {
            *state = State::Cancelled { by_us: true };
        }
    }

    fn call_ends(&mut self, at: usize) {
        let (id, lane, call) = self.calls.remove(at);
        match call {
            Call::Cancel(orders) => {
                let end = self.cancel(lane, &orders);
                self.tell(|| format!("   {end:?}"));
                self.desk.cancel_answered(self.now, id, &end);
            }
            Call::LookUp(no) => {
                let end = self.look_up(lane, &no);
                self.tell(|| format!("   {end:?}"));
                self.desk.look_up_answered(self.now, id, &end);
            }
            Call::Probe => {
                let outcomes = if self.faults > 0 { 2 } else { 1 };
                let outcome = self.choices.pick(outcomes);
                self.faults -= usize::from(outcome != 0);
                let end = [reply::<()>(0, "", None), not_reached()][outcome].clone();
                self.tell(|| format!("   {end:?}"));
                self.desk.probe_answered(self.now, id, &end);
            }
        }
    }

    /// The gateway gets a cancel call, and this is what comes back.
    fn cancel(&mut self, lane: LaneId, orders: &[OrderNo]) -> CallEnd<CancelLists> {
        let keys: Vec<Key> = orders.iter().map(|no| (lane, no.clone())).collect();
        // Some are not named for what they are: shipped and cancelled have the same words.
        let all_go = keys
            .iter()
            .all(|key| self.states.get(key) == Some(&State::Cancellable));
        let outcomes = match (self.faults > 0, all_go) {
            (true, false) => 16,
            (true, true) => 14,
            (false, _) => 1,
        };
        let outcome = self.choices.pick(outcomes);
        self.faults -= usize::from(outcome != 0);
        // What was done before, and what may have been.
        match outcome {
            1 | 3 | 5 | 7 | 15 => keys.iter().for_each(|key| self.execute(key)),
            _ => {}
        }
        if (1..=7).contains(&outcome) {
            self.in_doubt.extend(keys.iter().cloned());
        }
        if outcome == 2 && self.config.executes_late {
            self.timed_out.extend(keys.iter().cloned());
        }
        let numbers = || orders.iter().map(OrderNo::to_string);
        let errors = |words: &str| numbers().map(|no| (no, words.to_owned())).collect();
        match outcome {
            1 | 2 => lost(),
            3 | 4 => garbled(),
            5 | 6 => reply(99, "其他错误", None),
            // Named in both lists.
            7 => {
                let lists = CancelLists {
                    success: numbers().collect(),
                    error: errors(STATE),
                };
                reply(0, "", Some(lists))
            }
            8 => not_reached(),
            9 => reply(100, "超过每分钟最大调用频率限制，请稍后", None),
            10 => {
                let lists = CancelLists {
                    success: Vec::new(),
                    error: errors("单据被占用，请稍后重试"),
                };
                reply(0, "", Some(lists))
            }
            11 => reply(100, "单号不能为空", None),
            12 => reply(100, "权限不足", None),
            13 => reply(8, "版本错误", None),
            14 | 15 => reply(100, NOT_FOUND, None),
            _ => {
                let mut lists = CancelLists::default();
                for key in &keys {
                    let no = key.1.to_string();
                    match self.states.get(key) {
                        Some(State::Cancellable) => {
                            self.execute(key);
                            lists.success.push(no);
                        }
                        Some(State::Closed | State::Cancelled { .. }) => {
                            lists.error.push((no, STATE.into()));
                        }
                        Some(State::Absent) | None => lists.error.push((no, NOT_FOUND.into())),
                    }
                }
                reply(0, "", Some(lists))
            }
        }
    }

    fn look_up(&mut self, lane: LaneId, no: &OrderNo) -> CallEnd<Vec<FoundOrder>> {
        let outcomes = if self.faults > 0 { 6 } else { 1 };
        let outcome = self.choices.pick(outcomes);
        self.faults -= usize::from(outcome != 0);
        match outcome {
            1 => lost(),
            2 => reply(100, "超过每分钟最大调用频率限制，请稍后", None),
            // A warehouse that it may not see.
            3 => reply(0, "", Some(Vec::new())),
            4 => reply(1, "验证失败", None),
            5 => not_reached(),
            _ if !self.config.may_query => reply(100, "权限不足", None),
            _ => {
                let key = (lane, no.clone());
                let status = match self.states.get(&key) {
                    Some(State::Cancellable) => 20,
                    Some(State::Closed) => 70,
                    Some(State::Cancelled { .. }) => 80,
                    Some(State::Absent) | None => return reply(0, "", Some(Vec::new())),
                };
                self.in_doubt.remove(&key);
                let number = no.to_string();
                reply(0, "", Some(vec![FoundOrder { number, status }]))
            }
        }
    }

    fn at_the_end(&mut self) {
        if self.broken.is_some() {
            return;
        }
        let mut untold = Vec::new();
        for message in &self.messages {
            for no in &self.config.commands[message.command].orders {
                let told = |e: &Event| {
                    e.command == message.command
                        && e.order_no == *no
                        && e.at >= message.published_at
                };
                if !self.events.iter().any(told) {
                    untold.push((message.command, *no));
                }
            }
        }
        self.law(untold.is_empty(), || {
            format!("at the end: never told: {untold:?}")
        });
        self.wait(ORPHANS_GONE);
        self.turn();
        let load = self.desk.load();
        // An account that is down may just have been probed.
        self.law(load.commands + load.orders + load.untold == 0, || {
            format!("at the end: left in hand: {load:?}")
        });
    }
}

/// One run; how many steps it took.
fn explore(config: &Config, choices: &mut Choices) -> usize {
    let run = |choices: &mut Choices, tells: bool| {
        let mut world = World::new(config, choices, tells);
        let broken = catch_unwind(AssertUnwindSafe(|| world.run()))
            .unwrap_or_else(|_| Some("it panicked".into()));
        (broken, world.steps, world.trace)
    };
    let (broken, steps, _) = run(choices, false);
    if let Some(broken) = broken {
        let mut again = Choices::new(choices.list(), None);
        let (_, _, trace) = run(&mut again, true);
        let trace = trace.unwrap_or_default().join("\n");
        panic!(
            "{broken}\n{config:#?}\n{:?}\n{trace}\n{broken}",
            choices.list()
        );
    }
    steps
}

fn sent(id: &'static str, orders: &[&'static str]) -> Sent {
    Sent {
        id,
        account: 0,
        orders: orders.to_vec(),
        has_deadline: false,
    }
}

fn plain(commands: Vec<Sent>) -> Config {
    Config {
        orders: vec![(0, "A", 20), (0, "B", 20)],
        commands,
        verify: Verify::InDoubt,
        may_query: true,
        max_orders_per_call: 2,
        concurrency: 2,
        max_attempts: 3,
        calls_per_minute: 0,
        executes_late: executes_late(),
        eager: false,
        stormy_steps: 200,
        faults: usize::MAX,
        crashes: usize::MAX,
        losses: usize::MAX,
        stops: usize::MAX,
        long_waits: usize::MAX,
    }
}

/// Off unless `MODEL_LATE` is set; then a long search finds what [`Config::executes_late`] says.
fn executes_late() -> bool {
    std::env::var_os("MODEL_LATE").is_some()
}

/// A configuration drawn by chance: few orders, few commands, much overlap.
fn drawn(rng: &mut fastrand::Rng) -> Config {
    let accounts = rng.usize(1..=2);
    let mut orders = Vec::new();
    for account in 0..accounts {
        for no in ["A", "B"] {
            orders.push((account, no, [20, 20, 20, 70, 80, 0][rng.usize(..6)]));
        }
    }
    let mut commands: Vec<Sent> = Vec::new();
    for n in 0..rng.usize(1..=4) {
        if n > 0 && rng.usize(..3) == 0 {
            commands.push(commands[rng.usize(..commands.len())].clone());
            continue;
        }
        let lists: [&[&str]; 6] = [
            &["A"],
            &["B"],
            &["A", "B"],
            &["B", "A"],
            &["A"],
            &["A", "x\ty"],
        ];
        let id = rng.usize(..4);
        commands.push(Sent {
            id: ["c1", "c2", "c3", "late"][id],
            account: rng.usize(..accounts),
            orders: lists[rng.usize(..6)].to_vec(),
            has_deadline: id == 3,
        });
    }
    Config {
        orders,
        verify: [
            Verify::InDoubt,
            Verify::InDoubt,
            Verify::Always,
            Verify::Never,
        ][rng.usize(..4)],
        may_query: rng.usize(..4) > 0,
        max_orders_per_call: rng.u32(1..=2),
        concurrency: rng.u32(1..=2),
        max_attempts: rng.u32(1..=3),
        calls_per_minute: [0, 4][rng.usize(..2)],
        executes_late: executes_late(),
        eager: rng.bool(),
        stormy_steps: rng.usize(10..100),
        faults: rng.usize(..5),
        crashes: rng.usize(..3),
        losses: rng.usize(..3),
        stops: rng.usize(..2),
        long_waits: rng.usize(..3),
        commands,
    }
}

/// `MODEL_RUNS=2000000` explores for minutes what a test does in seconds; the seeds are the same.
#[test]
fn by_chance() {
    let runs = match std::env::var("MODEL_RUNS") {
        Ok(runs) => runs.parse().expect("MODEL_RUNS is a number"),
        Err(_) => 40_000,
    };
    let began = Instant::now();
    let mut steps = 0;
    for seed in 0..runs {
        let mut rng = fastrand::Rng::with_seed(seed);
        let config = drawn(&mut rng);
        let mut choices = Choices::new(Vec::new(), Some(rng));
        steps += explore(&config, &mut choices);
    }
    println!(
        "by chance: {runs} runs (seeds from 0), {steps} steps in {:.1} s; nothing was broken",
        began.elapsed().as_secs_f64()
    );
}

/// A small configuration, and how many deviations from the plain course are searched.
fn small() -> Vec<(&'static str, usize, Config)> {
    let same_twice = plain(vec![sent("c1", &["A"]), sent("c1", &["A"])]);
    let shared = plain(vec![sent("c1", &["A", "B"]), sent("c2", &["B"])]);
    let late = Sent {
        has_deadline: true,
        ..sent("c1", &["A"])
    };
    vec![
        ("one order", 3, plain(vec![sent("c1", &["A"])])),
        (
            "the same twice, at once",
            2,
            Config {
                eager: true,
                ..same_twice.clone()
            },
        ),
        ("the same twice, in turn", 2, same_twice),
        (
            "an order shared",
            2,
            Config {
                eager: true,
                ..shared.clone()
            },
        ),
        (
            "an order shared that has been shipped",
            2,
            Config {
                orders: vec![(0, "A", 20), (0, "B", 70)],
                eager: true,
                ..shared.clone()
            },
        ),
        (
            "no query permitted",
            2,
            Config {
                eager: true,
                may_query: false,
                ..shared.clone()
            },
        ),
        (
            "every refusal looked into",
            2,
            Config {
                orders: vec![(0, "A", 70), (0, "B", 80)],
                verify: Verify::Always,
                ..shared
            },
        ),
        (
            "one of two has a deadline",
            2,
            Config {
                eager: true,
                ..plain(vec![late, sent("c2", &["A"])])
            },
        ),
        (
            "an id used twice",
            2,
            Config {
                eager: true,
                ..plain(vec![sent("c1", &["A"]), sent("c1", &["B"])])
            },
        ),
        (
            "two accounts",
            2,
            Config {
                orders: vec![(0, "A", 20), (1, "A", 20)],
                ..plain(vec![
                    sent("c1", &["A"]),
                    Sent {
                        account: 1,
                        ..sent("c1", &["A"])
                    },
                ])
            },
        ),
    ]
}

#[test]
fn every_course_with_few_deviations() {
    for (name, deviations, config) in small() {
        let began = Instant::now();
        let (mut runs, mut steps, mut given) = (0, 0, Some(Vec::new()));
        while let Some(list) = given {
            let mut choices = Choices::new(list, None);
            steps += explore(&config, &mut choices);
            runs += 1;
            given = choices.next(deviations);
        }
        println!(
            "{name}: {runs} courses, {steps} steps with at most {deviations} deviations in {:.1} s; nothing was broken",
            began.elapsed().as_secs_f64()
        );
    }
}
