//! The desk, driven by hand: a story a test. Time is moved by hand, the ledger is two maps, the
//! gateway and the broker answer what the story says. Every action is asserted, in sequence.

#[path = "support/ledger.rs"]
mod ledger;

use std::collections::VecDeque;
use std::time::Duration;

use jiff::Timestamp;
use ledger::Ledger;
use wdt_cancel_worker::rules::admit::{self, Admission, House, RawCommand, RawProperties};
use wdt_cancel_worker::rules::delay::Delays;
use wdt_cancel_worker::rules::desk::{
    AccountPolicy, Action, CallId, Claim, CommandKey, Desk, Fate, Fence, Gap, Holding, Intake,
    LaneId, Note, OrderRow, OrderState, Parking, Policy, Record, ResultRow, SendList, Telling,
    Ticket,
};
use wdt_cancel_worker::rules::judge::{CallEnd, CancelLists, FoundOrder, Reply};
use wdt_cancel_worker::rules::lane::{Method, Turn};
use wdt_cancel_worker::rules::next::Retry;
use wdt_cancel_worker::rules::order::{AccountName, CommandId, Ending, OrderNo, ReasonCode};
use wdt_cancel_worker::rules::poison::Rest;
use wdt_cancel_worker::rules::policy::Verify;
use wdt_cancel_worker::rules::time::{Mono, Now, later};

const HOLD: u64 = 1200;
const MAX_AGE: u64 = 24 * 3600;
const STATE: &str = "单据状态不是编辑中、待审核、已审核，不允许取消";
const NOON: &str = "2026-11-23T12:00:00Z";

struct Shop(AccountName);

impl House for Shop {
    fn accounts(&self) -> impl Iterator<Item = &AccountName> {
        std::iter::once(&self.0)
    }
    fn allows_reply_to(&self, _queue: &str) -> bool {
        true
    }
}

/// A command as somebody sent it.
#[derive(Clone, Default)]
struct Sent {
    id: &'static str,
    orders: Vec<Result<String, String>>,
    /// Seconds after noon.
    deadline: Option<u64>,
}

fn command(id: &'static str, orders: &[&str]) -> Sent {
    Sent {
        id,
        orders: orders.iter().map(|o| Ok((*o).to_owned())).collect(),
        deadline: None,
    }
}

/// What the worker reported, left open until the story answers it.
enum Open {
    Claim(Claim),
    Record(Record),
    Tell(Telling),
    Park(Parking),
}

/// The desk and hands that carry out what it asks for. Whatever a story does not keep open is
/// answered well at once.
struct Bench {
    desk: Desk,
    ledger: Ledger,
    now: Now,
    last_ticket: u64,
    calls: Vec<(CallId, Method, Vec<String>)>,
    keeps: fn(&Action) -> bool,
    open: VecDeque<Open>,
    /// What becomes of each publication; confirmed when the list is at its end.
    fates: VecDeque<Fate>,
    names: Vec<(CommandKey, String)>,
    probes_answered: bool,
    released: Vec<(LaneId, OrderNo, Fence)>,
}

fn desk(verify: Verify) -> Desk {
    desk_of(verify, Desk::new)
}

fn desk_of(verify: Verify, new: fn(Policy, &[AccountPolicy], fastrand::Rng) -> Desk) -> Desk {
    let policy = Policy {
        retry: Retry {
            max_attempts: 3,
            verify,
            delays: Delays {
                first: Duration::from_secs(1),
                most: Duration::from_secs(60),
            },
        },
        max_age: Duration::from_secs(MAX_AGE),
        hold: Duration::from_secs(HOLD),
        untold_pause: Duration::from_secs(10),
        gather: Duration::ZERO,
    };
    let account = AccountPolicy {
        name: AccountName::new("default").unwrap(),
        calls_per_minute: 0,
        concurrency: 2,
        max_orders_per_call: 20,
    };
    new(policy, &[account], fastrand::Rng::with_seed(7))
}

fn admitted(id: &str, raw: Result<RawCommand, String>) -> Admission {
    let properties = RawProperties {
        message_id: Some(id.to_owned()),
        ..RawProperties::default()
    };
    let shop = Shop(AccountName::new("default").unwrap());
    admit::admit(raw, properties, || CommandId::new("fresh").unwrap(), &shop)
}

fn named(order: &str) -> (LaneId, OrderNo) {
    (LaneId(0), OrderNo::new(order).unwrap())
}

fn raw(orders: &[Result<String, String>]) -> RawCommand {
    RawCommand {
        order_no_list: orders.to_vec(),
        ..RawCommand::default()
    }
}

impl Bench {
    fn new() -> Self {
        Self::with(Verify::InDoubt)
    }

    /// A bench whose clock is measured already, so that stories begin with their first command.
    fn with(verify: Verify) -> Self {
        let mut bench = Self::fresh(verify);
        assert_eq!(bench.go(), ["probe"]);
        bench
    }

    fn dry_run() -> Self {
        let mut bench = Self::fresh(Verify::Never);
        bench.desk = desk_of(Verify::Never, Desk::for_dry_run);
        assert_eq!(bench.go(), ["probe"]);
        bench
    }

    fn fresh(verify: Verify) -> Self {
        Self {
            desk: desk(verify),
            ledger: Ledger::default(),
            now: Now {
                mono: Mono::default(),
                wall: NOON.parse().unwrap(),
            },
            last_ticket: 0,
            calls: Vec::new(),
            keeps: |_| false,
            open: VecDeque::new(),
            fates: VecDeque::new(),
            names: Vec::new(),
            probes_answered: true,
            released: Vec::new(),
        }
    }

    /// The worker dies and is started again; only the ledger is left.
    fn crash(&mut self) {
        let dead = std::mem::replace(self, Self::new());
        self.ledger = dead.ledger;
        self.now.wall = dead.now.wall;
        self.last_ticket = dead.last_ticket;
    }

    fn deliver(&mut self, sent: &Sent) {
        self.arrive(sent, false);
    }

    fn redeliver(&mut self, sent: &Sent) {
        self.arrive(sent, true);
    }

    fn arrive(&mut self, sent: &Sent, redelivered: bool) {
        let deadline = sent.deadline.map(|s| {
            let noon: Timestamp = NOON.parse().unwrap();
            later(noon, Duration::from_secs(s)).to_string()
        });
        let raw = RawCommand {
            order_no_list: sent.orders.clone(),
            deadline,
            ..RawCommand::default()
        };
        self.arrive_raw(sent.id, Ok(raw), redelivered);
    }

    fn arrive_raw(&mut self, id: &str, raw: Result<RawCommand, String>, redelivered: bool) {
        let admission = admitted(id, raw);
        let ticket = self.next_ticket();
        self.desk.arrive(self.now, ticket, redelivered, admission);
    }

    /// It comes again, and the worker has died with it too often.
    fn give_up(&mut self, sent: &Sent) {
        let raw = RawCommand {
            order_no_list: sent.orders.clone(),
            ..RawCommand::default()
        };
        let admission = admitted(sent.id, Ok(raw));
        let ticket = self.next_ticket();
        self.desk.give_up(self.now, ticket, true, admission);
    }

    fn next_ticket(&mut self) -> Ticket {
        self.last_ticket += 1;
        Ticket(self.last_ticket)
    }

    /// Carries out all there is to do, and tells it.
    fn go(&mut self) -> Vec<String> {
        let mut story = Vec::new();
        loop {
            let actions = self.desk.turn(self.now);
            if actions.is_empty() {
                return story;
            }
            for action in actions {
                if let Action::Release(released) = action {
                    self.released.extend(released);
                    continue;
                }
                story.push(self.words(&action));
                self.carry_out(action);
            }
        }
    }

    fn carry_out(&mut self, action: Action) {
        let kept = (self.keeps)(&action);
        match action {
            Action::Claim(claim) => self.answer_or_keep(kept, Open::Claim(claim)),
            Action::Record(record) => self.answer_or_keep(kept, Open::Record(record)),
            Action::Tell(telling) => self.answer_or_keep(kept, Open::Tell(telling)),
            Action::Park(parking) => self.answer_or_keep(kept, Open::Park(parking)),
            Action::Send(list) => {
                self.ledger.keep(&list.orders, &[]);
                let numbers = list.orders.iter().map(|row| row.order_no.to_string());
                self.calls
                    .push((list.call, Method::Cancel, numbers.collect()));
            }
            Action::LookUp(call, _, order_no) => {
                self.calls
                    .push((call, Method::LookUp, vec![order_no.to_string()]));
            }
            Action::Probe(call, _) if self.probes_answered => {
                self.desk
                    .probe_answered(self.now, call, &reply::<()>(0, "", None));
            }
            Action::Probe(call, _) => self.calls.push((call, Method::Probe, Vec::new())),
            Action::Acknowledge(_) | Action::Return(_) | Action::Release(_) | Action::Note(..) => {}
        }
    }

    fn answer_or_keep(&mut self, kept: bool, open: Open) {
        if kept {
            self.open.push_back(open);
        } else {
            self.answer(open);
        }
    }

    fn answer(&mut self, open: Open) {
        match open {
            Open::Claim(claim) => {
                let claimed = self.ledger.answer(&claim);
                self.desk.claimed(self.now, claimed);
            }
            Open::Record(record) => {
                self.ledger.keep(&record.orders, &record.results);
                self.desk.recorded(record.id, &[]);
            }
            Open::Tell(telling) => {
                let fate = self.fates.pop_front().unwrap_or(Fate::Confirmed);
                let now = self.now.mono;
                self.desk.told(now, telling.command, telling.place, fate);
            }
            Open::Park(parking) => {
                let fate = self.fates.pop_front().unwrap_or(Fate::Confirmed);
                self.desk.parked(self.now.mono, parking.command, fate);
            }
        }
    }

    /// The oldest claim that was kept is answered, with this of its one order.
    fn claim_ends(&mut self, holding: Holding) -> Vec<String> {
        let Some(Open::Claim(claim)) = self.open.pop_front() else {
            panic!("no claim is the oldest of what was kept");
        };
        let mut claimed = self.ledger.answer(&claim);
        claimed.orders = vec![(claim.orders[0].0, holding)];
        self.desk.claimed(self.now, claimed);
        self.go()
    }

    /// The oldest record that was kept comes too late for this order.
    fn record_is_lost(&mut self, order: &str) -> Vec<String> {
        let Some(Open::Record(record)) = self.open.pop_front() else {
            panic!("no record is the oldest of what was kept");
        };
        self.desk.recorded(record.id, &[named(order)]);
        self.go()
    }

    /// The oldest list comes too late for this order, and is not sent.
    fn list_is_lost(&mut self, order: &str) -> Vec<String> {
        let call = self.take_call(Method::Cancel);
        self.ledger.orders.remove(&named(order));
        self.desk.not_sent(call, &[named(order)]);
        self.go()
    }

    /// Another worker records how this order ended, now, and for this command.
    fn ends_elsewhere(&mut self, of: Option<&Sent>, order: &str, ending: Ending) -> OrderRow {
        let (lane, order_no) = named(order);
        let row = OrderRow {
            lane,
            order_no,
            state: OrderState::Ended(ending.clone(), self.now.wall),
            attempts: 1,
            spent: 1,
            since: self.now.wall,
            fence: Fence(7),
        };
        let result = of.map(|sent| ResultRow {
            lane,
            command_id: CommandId::new(sent.id).unwrap(),
            fingerprint: match admitted(sent.id, Ok(raw(&sent.orders))) {
                Admission::Accepted(command) => command.fingerprint,
                Admission::Rejected(_) => panic!("orders"),
            },
            order_no: order.into(),
            ending,
            attempts: 1,
            occurred_at: self.now.wall,
            fence: Some(Fence(7)),
        });
        self.ledger
            .keep(std::slice::from_ref(&row), result.as_slice());
        row
    }

    /// Answers whatever was kept open, and keeps nothing any more.
    fn release(&mut self) -> Vec<String> {
        self.keeps = |_| false;
        while let Some(open) = self.open.pop_front() {
            self.answer(open);
        }
        self.go()
    }

    /// The oldest call of this method in flight leaves it.
    fn take_call(&mut self, method: Method) -> CallId {
        let place = self.calls.iter().position(|(_, m, _)| *m == method);
        self.calls.remove(place.expect("no such call in flight")).0
    }

    /// The oldest cancel call in flight is answered, with this.
    fn cancel_ends(&mut self, end: &CallEnd<CancelLists>) -> Vec<String> {
        let call = self.take_call(Method::Cancel);
        self.desk.cancel_answered(self.now, call, end);
        self.go()
    }

    fn look_up_ends(&mut self, end: &CallEnd<Vec<FoundOrder>>) -> Vec<String> {
        let call = self.take_call(Method::LookUp);
        self.desk.look_up_answered(self.now, call, end);
        self.go()
    }

    fn probe_ends(&mut self, end: &CallEnd<()>) -> Vec<String> {
        let call = self.take_call(Method::Probe);
        self.desk.probe_answered(self.now, call, end);
        self.go()
    }

    /// Time passes, with a sweep at its end.
    fn pass(&mut self, seconds: u64) -> Vec<String> {
        let time = Duration::from_secs(seconds);
        self.now.mono = self.now.mono + time;
        self.now.wall = later(self.now.wall, time);
        self.desk.sweep(self.now);
        self.go()
    }

    fn words(&mut self, action: &Action) -> String {
        match action {
            Action::Claim(Claim {
                command,
                command_id,
                orders,
                ..
            }) => {
                self.names.push((*command, command_id.as_str().to_owned()));
                let numbers: Vec<&str> = orders.iter().map(|(_, no)| no.as_str()).collect();
                format!("claim {} [{}]", command_id, numbers.join(" "))
            }
            Action::Send(SendList { orders, .. }) => {
                assert!(orders.iter().all(|row| row.state == OrderState::Sent));
                let numbers: Vec<&str> = orders.iter().map(|row| row.order_no.as_str()).collect();
                format!("send [{}]", numbers.join(" "))
            }
            Action::LookUp(_, _, order_no) => format!("look up {order_no}"),
            Action::Probe(..) => "probe".into(),
            Action::Record(Record {
                orders, results, ..
            }) => {
                let orders = orders.iter().map(order_words);
                let results = results.iter().map(result_words);
                let all: Vec<String> = orders.chain(results).collect();
                format!("record [{}]", all.join(" "))
            }
            Action::Tell(Telling {
                envelope, event, ..
            }) => format!(
                "tell {}/{} {}{}",
                envelope.command_id,
                event.order_no.as_deref().unwrap_or("-"),
                ending_words(&event.ending),
                if event.replayed { " again" } else { "" }
            ),
            Action::Park(Parking { envelope, why, .. }) => {
                format!("park {} {why}", envelope.command_id)
            }
            Action::Acknowledge(finished) => format!("ack {}", finished.ticket().0),
            Action::Return(Ticket(ticket)) => format!("return {ticket}"),
            Action::Release(orders) => format!("release {orders:?}"),
            Action::Note(_, note) => match note {
                Note::Turn(Turn::WentDown) => "note down".into(),
                Note::Turn(Turn::WasStopped) => "note stopped".into(),
                Note::Turn(Turn::Recovered) => "note recovered".into(),
                Note::Turn(Turn::CoolsDown(time)) => format!("note cools {}s", time.as_secs()),
                Note::QueryDenied(_) => "note query denied".into(),
                Note::Strangers(n) => format!("note {n} strangers"),
            },
        }
    }
}

fn order_words(row: &OrderRow) -> String {
    let state = match &row.state {
        OrderState::Waiting => "waiting".to_owned(),
        OrderState::Sent => "sent".to_owned(),
        OrderState::Ended(ending, _) => ending_words(ending),
    };
    format!("{}={state}", row.order_no)
}

fn result_words(row: &ResultRow) -> String {
    let ending = ending_words(&row.ending);
    format!("{}/{}={ending}", row.command_id, row.order_no)
}

fn ending_words(ending: &Ending) -> String {
    let word = match ending.reason() {
        None => "cancelled",
        Some(reason) => reason.code.as_str(),
    };
    word.to_owned()
}

fn reply<T>(status: i64, message: &str, data: Option<T>) -> CallEnd<T> {
    CallEnd::Answered(Reply {
        status,
        message: message.to_owned(),
        data,
    })
}

fn lists(success: &[&str], error: &[(&str, &str)]) -> CallEnd<CancelLists> {
    let lists = CancelLists {
        success: success.iter().map(|s| (*s).to_owned()).collect(),
        error: error
            .iter()
            .map(|(no, words)| ((*no).to_owned(), (*words).to_owned()))
            .collect(),
    };
    reply(0, "", Some(lists))
}

fn cancelled(orders: &[&str]) -> CallEnd<CancelLists> {
    lists(orders, &[])
}

fn refused(order: &str) -> CallEnd<CancelLists> {
    lists(&[], &[(order, STATE)])
}

fn lost<T>() -> CallEnd<T> {
    CallEnd::Lost {
        what: "timed out".into(),
    }
}

fn found(order: &str, status: i64) -> CallEnd<Vec<FoundOrder>> {
    let order = FoundOrder {
        number: order.to_owned(),
        status,
    };
    reply(0, "", Some(vec![order]))
}

#[test]
fn one_order_goes_its_way_in_the_durable_order() {
    let mut bench = Bench::fresh(Verify::InDoubt);
    bench.deliver(&command("c1", &["A"]));
    assert_eq!(bench.go(), ["claim c1 [A]", "probe", "send [A]"]);
    assert_eq!(
        bench.cancel_ends(&cancelled(&["A"])),
        [
            "record [A=cancelled c1/A=cancelled]",
            "tell c1/A cancelled",
            "ack 1"
        ]
    );
    assert!(bench.desk.is_idle());
    assert_eq!(bench.desk.load(), Default::default());
}

#[test]
fn nothing_is_told_before_the_record_and_nothing_acknowledged_before_the_confirm() {
    let mut bench = Bench::new();
    bench.keeps = |action| matches!(action, Action::Record(_) | Action::Tell(_));
    bench.deliver(&command("c1", &["A", "B"]));
    let _ = bench.go();
    assert_eq!(
        bench.cancel_ends(&lists(&["A"], &[("B", STATE)])),
        ["record [A=cancelled B=order_state c1/A=cancelled c1/B=order_state]"]
    );
    let Some(Open::Record(record)) = bench.open.pop_front() else {
        panic!("a record is open");
    };
    bench.answer(Open::Record(record));
    assert_eq!(bench.go(), ["tell c1/A cancelled", "tell c1/B order_state"]);
    let Some(first) = bench.open.pop_back() else {
        panic!("a confirm is open");
    };
    bench.answer(first);
    assert_eq!(bench.go(), [""; 0], "one of two is confirmed");
    assert_eq!(bench.release(), ["ack 1"]);
}

#[test]
fn orders_of_two_commands_share_a_call_and_one_that_both_want_is_sent_once() {
    let mut bench = Bench::new();
    bench.deliver(&command("c1", &["A", "B"]));
    bench.deliver(&command("c2", &["B", "C"]));
    assert_eq!(
        bench.go(),
        ["claim c1 [A B]", "claim c2 [C]", "send [A B C]"]
    );
    assert_eq!(
        bench.cancel_ends(&cancelled(&["A", "B", "C"])),
        [
            "record [A=cancelled B=cancelled C=cancelled c1/A=cancelled c1/B=cancelled c2/B=cancelled c2/C=cancelled]",
            "tell c1/A cancelled",
            "tell c1/B cancelled",
            "tell c2/B cancelled",
            "tell c2/C cancelled",
            "ack 1",
            "ack 2",
        ]
    );
}

#[test]
fn a_command_that_comes_while_the_ending_is_recorded_is_told_too() {
    let mut bench = Bench::new();
    bench.deliver(&command("c1", &["A"]));
    let _ = bench.go();
    bench.keeps = |action| matches!(action, Action::Record(_));
    let _ = bench.cancel_ends(&cancelled(&["A"]));
    bench.deliver(&command("c2", &["A"]));
    assert_eq!(bench.go(), ["claim c2 []"]);
    assert_eq!(
        bench.release(),
        [
            "tell c1/A cancelled",
            "record [c2/A=cancelled]",
            "ack 1",
            "tell c2/A cancelled",
            "ack 2"
        ]
    );
}

#[test]
fn the_same_command_twice_while_in_flight_is_one_call_and_two_tellings() {
    let mut bench = Bench::new();
    bench.deliver(&command("c1", &["A"]));
    bench.deliver(&command("c1", &["A"]));
    assert_eq!(bench.go(), ["claim c1 [A]", "claim c1 []", "send [A]"]);
    assert_eq!(
        bench.cancel_ends(&cancelled(&["A"])),
        [
            "record [A=cancelled c1/A=cancelled c1/A=cancelled]",
            "tell c1/A cancelled",
            "tell c1/A cancelled again",
            "ack 1",
            "ack 2",
        ]
    );
}

#[test]
fn a_finished_command_is_told_again_without_a_call() {
    let mut bench = Bench::new();
    let sent = command("c1", &["A", "B"]);
    bench.deliver(&sent);
    let _ = bench.go();
    let _ = bench.cancel_ends(&lists(&["A"], &[("B", STATE)]));
    for crashes in [false, true] {
        if crashes {
            bench.crash();
        }
        bench.deliver(&sent);
        let ticket = bench.last_ticket;
        assert_eq!(
            bench.go(),
            [
                "claim c1 [A B]",
                "tell c1/A cancelled again",
                "tell c1/B order_state again",
                &format!("ack {ticket}"),
            ]
        );
    }
    assert_eq!(bench.desk.load(), Default::default());
}

#[test]
fn two_finished_commands_that_share_an_order_come_again_together_without_a_call() {
    let mut bench = Bench::new();
    let late = Sent {
        deadline: Some(0),
        ..command("c3", &["L"])
    };
    for sent in [&command("c1", &["A"]), &command("c2", &["A", "B"])] {
        bench.deliver(sent);
        let _ = bench.go();
        let _ = bench.cancel_ends(&lists(&["B"], &[("A", STATE)]));
    }
    for id in ["c3", "c4"] {
        bench.deliver(&Sent { id, ..late.clone() });
        let _ = bench.go();
    }
    // What is recorded of the first is known, and of the second not yet: that is no reason to send
    // its order, nor to end it for its deadline.
    bench.keeps = |action| matches!(action, Action::Claim(_));
    bench.deliver(&command("c1", &["A"]));
    bench.deliver(&command("c2", &["A", "B"]));
    for id in ["c3", "c4"] {
        bench.deliver(&Sent { id, ..late.clone() });
    }
    let claims = [
        "claim c1 [A]",
        "claim c2 [B]",
        "claim c3 [L]",
        "claim c4 []",
    ];
    assert_eq!(bench.go(), claims);
    let mut answer = || {
        let claim = bench.open.pop_front().expect("a claim is open");
        bench.answer(claim);
        let mut story = bench.pass(1);
        story.retain(|line| !line.starts_with("ack"));
        story
    };
    assert_eq!(answer(), ["tell c1/A order_state again"]);
    assert_eq!(
        answer(),
        ["tell c2/A order_state again", "tell c2/B cancelled again"]
    );
    assert_eq!(answer(), ["tell c3/L deadline_passed again"]);
    assert_eq!(answer(), ["tell c4/L deadline_passed again"]);
    assert!(bench.desk.is_idle());
    assert_eq!(bench.desk.load(), Default::default());
}

#[test]
fn news_of_a_command_that_is_only_just_finished_are_no_replay() {
    let mut bench = Bench::new();
    let sent = command("c1", &["A"]);
    bench.deliver(&sent);
    let _ = bench.go();
    bench.keeps = |action| matches!(action, Action::Park(_));
    let _ = bench.cancel_ends(&reply(1, "参数错误", None));
    bench.deliver(&sent);
    assert_eq!(bench.go(), ["claim c1 [A]", "send [A]"]);
    assert_eq!(
        bench.cancel_ends(&cancelled(&["A"])),
        [
            "record [A=cancelled c1/A=cancelled]",
            "tell c1/A cancelled",
            "ack 2"
        ]
    );
    assert_eq!(bench.release(), ["ack 1"]);
}

#[test]
fn an_id_that_is_used_for_other_orders_is_rejected() {
    let mut bench = Bench::new();
    bench.deliver(&command("c1", &["A"]));
    assert_eq!(bench.go(), ["claim c1 [A]", "send [A]"]);
    bench.deliver(&command("c1", &["A", "B"]));
    assert_eq!(
        bench.go(),
        [
            "tell c1/A command_id_reused",
            "tell c1/B command_id_reused",
            "ack 2"
        ],
        "while the first is in hand"
    );
    let _ = bench.cancel_ends(&cancelled(&["A"]));
    bench.deliver(&command("c1", &["B"]));
    assert_eq!(
        bench.go(),
        ["claim c1 [B]", "tell c1/B command_id_reused", "ack 3"],
        "from the ledger"
    );
    assert_eq!(bench.desk.load(), Default::default());
}

#[test]
fn a_cancelled_order_is_told_to_a_new_command_without_a_call() {
    let mut bench = Bench::new();
    bench.deliver(&command("c1", &["A"]));
    let _ = bench.go();
    let _ = bench.cancel_ends(&cancelled(&["A"]));
    bench.deliver(&command("c2", &["A", "B"]));
    assert_eq!(
        bench.go(),
        [
            "claim c2 [A B]",
            "record [c2/A=cancelled]",
            "send [B]",
            "tell c2/A cancelled again",
        ]
    );
    assert_eq!(
        bench.cancel_ends(&cancelled(&["B"])).last().unwrap(),
        "ack 2"
    );
}

#[test]
fn a_refused_order_is_tried_again_for_a_new_command() {
    let mut bench = Bench::new();
    bench.deliver(&command("c1", &["A"]));
    let _ = bench.go();
    assert_eq!(
        bench.cancel_ends(&refused("A")),
        [
            "record [A=order_state c1/A=order_state]",
            "tell c1/A order_state",
            "ack 1"
        ]
    );
    bench.deliver(&command("c2", &["A"]));
    assert_eq!(bench.go(), ["claim c2 [A]", "send [A]"]);
    assert_eq!(
        bench.cancel_ends(&cancelled(&["A"])),
        [
            "record [A=cancelled c2/A=cancelled]",
            "tell c2/A cancelled",
            "ack 2"
        ]
    );
}

#[test]
fn after_a_crash_in_a_call_the_order_is_looked_up_before_it_is_sent() {
    let sent = command("c1", &["A"]);
    for (status, then) in [
        (
            80,
            vec![
                "record [A=cancelled c1/A=cancelled]",
                "tell c1/A cancelled",
                "ack 2",
            ],
        ),
        (
            70,
            vec![
                "record [A=order_state c1/A=order_state]",
                "tell c1/A order_state",
                "ack 2",
            ],
        ),
        (20, vec!["send [A]"]),
    ] {
        let mut bench = Bench::new();
        bench.deliver(&sent);
        let _ = bench.go();
        bench.crash();
        bench.redeliver(&sent);
        assert_eq!(bench.go(), ["claim c1 [A]", "look up A"]);
        assert_eq!(
            bench.look_up_ends(&found("A", status)),
            then,
            "status {status}"
        );
    }
}

#[test]
fn a_refusal_after_a_lost_answer_is_looked_into() {
    let mut bench = Bench::new();
    bench.deliver(&command("c1", &["A"]));
    let _ = bench.go();
    assert_eq!(bench.cancel_ends(&lost()), [""; 0]);
    assert_eq!(bench.pass(1), ["look up A"]);
    assert_eq!(bench.look_up_ends(&found("A", 20)), ["send [A]"]);
    assert_eq!(bench.cancel_ends(&refused("A")), ["look up A"]);
    assert_eq!(
        bench.look_up_ends(&found("A", 80)),
        [
            "record [A=cancelled c1/A=cancelled]",
            "tell c1/A cancelled",
            "ack 1"
        ]
    );
}

#[test]
fn a_deadline_is_checked_before_the_call_and_others_go_on() {
    let mut bench = Bench::new();
    bench.keeps = |action| matches!(action, Action::Claim(_));
    let late = Sent {
        deadline: Some(5),
        ..command("c1", &["A", "B"])
    };
    bench.deliver(&late);
    bench.deliver(&command("c2", &["B"]));
    let _ = bench.go();
    assert_eq!(bench.pass(5), [""; 0], "nobody knows yet what is recorded");
    assert_eq!(
        bench.release(),
        [
            "send [B]",
            "record [c1/A=deadline_passed c1/B=deadline_passed]",
            "tell c1/A deadline_passed",
            "tell c1/B deadline_passed",
            "ack 1",
        ]
    );
    assert_eq!(
        bench.cancel_ends(&cancelled(&["B"])),
        [
            "record [B=cancelled c2/B=cancelled]",
            "tell c2/B cancelled",
            "ack 2"
        ]
    );
    assert_eq!(bench.desk.load(), Default::default());
}

#[test]
fn a_list_for_which_there_is_no_place_is_planned_anew_and_expires_if_it_is_late_by_then() {
    let mut bench = Bench::new();
    bench.deliver(&Sent {
        deadline: Some(5),
        ..command("c1", &["A"])
    });
    assert_eq!(bench.go(), ["claim c1 [A]", "send [A]"]);
    let call = bench.take_call(Method::Cancel);
    bench.desk.not_made(call);
    assert_eq!(bench.go(), ["send [A]"]);
    assert_eq!(bench.pass(6), [""; 0]);
    let call = bench.take_call(Method::Cancel);
    bench.desk.not_made(call);
    assert_eq!(
        bench.go(),
        [
            "record [c1/A=deadline_passed]",
            "tell c1/A deadline_passed",
            "ack 1"
        ]
    );
    assert_eq!(bench.desk.load(), Default::default());
}

#[test]
fn a_half_for_which_there_is_no_place_takes_no_others_in() {
    let mut bench = Bench::new();
    bench.deliver(&command("c1", &["A", "B", "C", "D"]));
    assert_eq!(bench.go().last().unwrap(), "send [A B C D]");
    let whole = reply(100, "单号不能为空", None);
    assert_eq!(bench.cancel_ends(&whole), ["send [A B]", "send [C D]"]);
    bench.deliver(&command("c2", &["E"]));
    for _ in 0..2 {
        let call = bench.take_call(Method::Cancel);
        bench.desk.not_made(call);
    }
    assert_eq!(bench.go(), ["claim c2 [E]", "send [C D]", "send [A B]"]);
    // One that was not sent for a lost order's sake is alone as well.
    let call = bench.take_call(Method::Cancel);
    let lost = [(LaneId(0), OrderNo::new("C").unwrap())];
    bench.desk.not_sent(call, &lost);
    assert_eq!(bench.go(), ["claim c1 [C]", "send [D]"]);
}

#[test]
fn a_look_up_and_a_probe_for_which_there_is_no_place_are_asked_for_again() {
    let mut bench = Bench::fresh(Verify::InDoubt);
    bench.probes_answered = false;
    assert_eq!(bench.go(), ["probe"]);
    let call = bench.take_call(Method::Probe);
    bench.desk.not_asked(call);
    assert_eq!(bench.go(), ["probe"]);
    assert_eq!(bench.probe_ends(&reply(0, "", None)), [""; 0]);
    bench.deliver(&command("c1", &["A"]));
    let _ = bench.go();
    assert_eq!(bench.cancel_ends(&lost()), [""; 0]);
    assert_eq!(bench.pass(1), ["look up A"]);
    let call = bench.take_call(Method::LookUp);
    bench.desk.not_asked(call);
    assert_eq!(bench.go(), ["look up A"]);
    bench.desk.drain();
    let call = bench.take_call(Method::LookUp);
    bench.desk.not_asked(call);
    bench.desk.give_back_idle();
    assert!(bench.go().contains(&"return 1".to_owned()));
    assert!(bench.desk.is_idle());
}

#[test]
fn a_deadline_that_passes_in_a_call_changes_nothing() {
    let mut bench = Bench::new();
    bench.deliver(&Sent {
        deadline: Some(5),
        ..command("c1", &["A"])
    });
    let _ = bench.go();
    assert_eq!(bench.pass(6), [""; 0]);
    assert_eq!(bench.cancel_ends(&lost()), [""; 0]);
    assert_eq!(
        bench.pass(1),
        ["look up A"],
        "doubt is resolved after the deadline too"
    );
    assert_eq!(
        bench.look_up_ends(&found("A", 80)),
        [
            "record [A=cancelled c1/A=cancelled]",
            "tell c1/A cancelled",
            "ack 1"
        ]
    );
}

#[test]
fn what_is_too_old_ends_as_it_stands() {
    let stopped = || reply(6, "ip限制", None);
    let mut bench = Bench::new();
    bench.deliver(&command("c1", &["A"]));
    let _ = bench.go();
    assert_eq!(bench.cancel_ends(&stopped()), ["note stopped"]);
    bench.deliver(&command("c2", &["B"]));
    assert_eq!(bench.go(), ["claim c2 [B]"]);
    // Held for too long they go back to the queue, and keep the age of their first arrival.
    assert_eq!(
        bench.pass(HOLD),
        [
            "record [B=waiting]",
            "probe",
            "return 1",
            "return 2",
            "note recovered",
        ]
    );
    bench.redeliver(&command("c2", &["B"]));
    assert_eq!(bench.go(), ["claim c2 [B]", "send [B]"]);
    assert_eq!(bench.cancel_ends(&stopped()), ["note stopped"]);
    assert_eq!(
        bench.pass(MAX_AGE - HOLD),
        [
            "record [B=api_unavailable c2/B=api_unavailable]",
            "probe",
            "tell c2/B api_unavailable",
            "note recovered",
            "park c2 unsettled",
            "ack 3",
        ]
    );
    assert_eq!(bench.desk.load(), Default::default());
}

#[test]
fn a_delivery_held_for_long_goes_back_with_a_record() {
    let mut bench = Bench::new();
    bench.deliver(&command("c1", &["A"]));
    let _ = bench.go();
    assert_eq!(
        bench.cancel_ends(&reply(6, "ip限制", None)),
        ["note stopped"]
    );
    bench.deliver(&command("c2", &["B"]));
    assert_eq!(bench.go(), ["claim c2 [B]"]);
    bench.probes_answered = false;
    let story = bench.pass(HOLD);
    assert!(story.contains(&"record [B=waiting]".into()), "{story:?}");
    assert!(story.contains(&"return 2".into()), "{story:?}");
}

/// Whatever comes back is delivered again at once, as an idle broker does, for as long as a command
/// may wait: it goes round once for each hold, and no faster.
#[test]
fn what_cannot_be_handled_now_does_not_spin() {
    fn stopped<T>() -> CallEnd<T> {
        reply(6, "ip限制", None)
    }
    let mut bench = Bench::new();
    bench.probes_answered = false;
    let ids = ["c1", "c2", "c3"];
    let sent = |id: &'static str| command(id, &[&format!("order-of-{id}")]);
    for id in ids {
        bench.deliver(&sent(id));
    }
    let mut holders: Vec<(u64, &'static str)> = (1..).zip(ids).collect();
    let mut story = bench.go();
    let mut returns = Vec::new();
    let mut seconds = 0;
    while !holders.is_empty() {
        assert!(seconds <= MAX_AGE + HOLD, "it never ends");
        for words in std::mem::take(&mut story) {
            let ticket = words.split(' ').nth(1).and_then(|t| t.parse().ok());
            let Some(place) = holders.iter().position(|(held, _)| Some(*held) == ticket) else {
                continue;
            };
            if words.starts_with("return ") {
                let (_, id) = holders.remove(place);
                returns.push((id, seconds));
                bench.redeliver(&sent(id));
                holders.push((bench.last_ticket, id));
            } else if words.starts_with("ack ") {
                holders.remove(place);
            }
        }
        story = bench.go();
        while let Some((call, method, _)) = bench.calls.pop() {
            match method {
                Method::Cancel => bench.desk.cancel_answered(bench.now, call, &stopped()),
                Method::LookUp => bench.desk.look_up_answered(bench.now, call, &stopped()),
                Method::Probe => bench.desk.probe_answered(bench.now, call, &stopped::<()>()),
            }
            story.extend(bench.go());
        }
        seconds += 10;
        story.extend(bench.pass(10));
    }
    for id in ids {
        let times: Vec<u64> = returns.iter().filter(|r| r.0 == id).map(|r| r.1).collect();
        assert!(times.len() as u64 <= MAX_AGE / HOLD, "{id} at {times:?}");
        assert!(times.len() > 50, "{id} at {times:?}");
        let gaps = times.windows(2).map(|pair| pair[1] - pair[0]);
        assert!(gaps.min() >= Some(HOLD), "{id} at {times:?}");
    }
}

#[test]
fn what_ends_unsettled_is_parked_and_alone_tried_again_when_it_is_sent_again() {
    let mut bench = Bench::with(Verify::Never);
    let sent = command("c1", &["A", "B", "C"]);
    bench.deliver(&sent);
    let _ = bench.go();
    let answer = lists(&["A"], &[("B", "单据被占用，请稍后重试")]);
    assert_eq!(
        bench.cancel_ends(&answer),
        [
            "record [A=cancelled C=unconfirmed c1/A=cancelled c1/C=unconfirmed]",
            "tell c1/A cancelled",
            "tell c1/C unconfirmed",
        ]
    );
    let busy = || lists(&[], &[("B", "单据被占用，请稍后重试")]);
    assert_eq!(bench.pass(60), ["send [B]"]);
    assert_eq!(bench.cancel_ends(&busy()), [""; 0]);
    assert_eq!(bench.pass(60), ["send [B]"]);
    assert_eq!(
        bench.cancel_ends(&busy()),
        [
            "record [B=api_unavailable c1/B=api_unavailable]",
            "tell c1/B api_unavailable",
            "park c1 unsettled",
            "ack 1",
        ]
    );
    bench.deliver(&sent);
    assert_eq!(
        bench.go(),
        [
            "claim c1 [A B C]",
            "tell c1/A cancelled again",
            "record [C=unconfirmed c1/C=unconfirmed]",
            "send [B]",
            "tell c1/C unconfirmed",
        ]
    );
    assert_eq!(
        bench.cancel_ends(&cancelled(&["B"])),
        [
            "record [B=cancelled c1/B=cancelled]",
            "tell c1/B cancelled",
            "park c1 unsettled",
            "ack 2",
        ]
    );
}

#[test]
fn an_unknown_order_is_looked_up_before_it_is_sent_for_a_new_command() {
    let mut bench = Bench::new();
    bench.deliver(&command("c1", &["A"]));
    let _ = bench.go();
    let _ = bench.cancel_ends(&lost());
    assert_eq!(bench.pass(1), ["look up A"]);
    let absent = reply(0, "", Some(Vec::new()));
    assert_eq!(
        bench.look_up_ends(&absent),
        [
            "record [A=unconfirmed c1/A=unconfirmed]",
            "tell c1/A unconfirmed",
            "park c1 unsettled",
            "ack 1",
        ]
    );
    bench.deliver(&command("c2", &["A"]));
    assert_eq!(bench.go(), ["claim c2 [A]", "look up A"]);
    assert_eq!(bench.look_up_ends(&found("A", 20)), ["send [A]"]);
}

#[test]
fn an_event_that_no_queue_takes_is_tried_again_slowly_and_holds_the_acknowledgement() {
    let mut bench = Bench::new();
    bench.deliver(&command("c1", &["A", "B"]));
    let _ = bench.go();
    bench.fates = [Fate::Unroutable, Fate::Confirmed, Fate::Refused].into();
    assert_eq!(
        bench.cancel_ends(&cancelled(&["A", "B"])),
        [
            "record [A=cancelled B=cancelled c1/A=cancelled c1/B=cancelled]",
            "tell c1/A cancelled",
            "tell c1/B cancelled",
        ]
    );
    assert_eq!(bench.desk.load().untold, 1);
    assert_eq!(bench.pass(9), [""; 0]);
    assert_eq!(bench.pass(1), ["tell c1/A cancelled"]);
    assert_eq!(bench.desk.load().untold, 1);
    assert_eq!(bench.pass(10), ["tell c1/A cancelled", "ack 1"]);
    assert_eq!(bench.desk.load(), Default::default());
}

#[test]
fn an_event_that_no_queue_takes_outlives_the_hold() {
    let mut bench = Bench::new();
    bench.deliver(&command("c1", &["A"]));
    let _ = bench.go();
    bench.fates = [Fate::Unroutable, Fate::Unroutable].into();
    let _ = bench.cancel_ends(&cancelled(&["A"]));
    let story = bench.pass(HOLD);
    assert_eq!(story, ["record []", "return 1"]);
    bench.redeliver(&command("c1", &["A"]));
    assert_eq!(bench.go(), ["claim c1 [A]", "tell c1/A cancelled again"]);
    assert_eq!(bench.pass(10), ["tell c1/A cancelled again", "ack 2"]);
}

#[test]
fn calls_go_on_without_the_broker_and_the_redelivery_is_recognised() {
    let mut bench = Bench::new();
    let (first, second) = (command("c1", &["A"]), command("c2", &["B"]));
    bench.deliver(&first);
    assert_eq!(bench.go(), ["claim c1 [A]", "send [A]"]);
    bench.deliver(&second);
    assert_eq!(bench.go(), ["claim c2 [B]", "send [B]"]);
    bench.desk.session_lost(bench.now.mono);
    assert_eq!(
        bench.cancel_ends(&cancelled(&["A"])),
        ["record [A=cancelled c1/A=cancelled]"],
        "nobody can be told yet"
    );
    bench.redeliver(&first);
    assert_eq!(bench.go(), ["tell c1/A cancelled", "ack 3"]);
    bench.redeliver(&second);
    assert_eq!(bench.go(), [""; 0], "its call is still in flight");
    assert_eq!(
        bench.cancel_ends(&cancelled(&["B"])),
        [
            "record [B=cancelled c2/B=cancelled]",
            "tell c2/B cancelled",
            "ack 4"
        ]
    );
    assert_eq!(bench.desk.load(), Default::default());
}

#[test]
fn a_redelivery_that_comes_late_is_told_from_the_ledger() {
    let mut bench = Bench::new();
    bench.deliver(&command("c1", &["A"]));
    let _ = bench.go();
    bench.desk.session_lost(bench.now.mono);
    let _ = bench.cancel_ends(&cancelled(&["A"]));
    assert_eq!(bench.pass(600), [""; 0]);
    assert_eq!(bench.desk.load(), Default::default());
    bench.redeliver(&command("c1", &["A"]));
    assert_eq!(
        bench.go(),
        ["claim c1 [A]", "tell c1/A cancelled again", "ack 2"]
    );
}

#[test]
fn a_stop_finishes_what_is_in_flight_and_returns_the_rest() {
    let mut bench = Bench::new();
    bench.deliver(&command("c1", &["A"]));
    let _ = bench.go();
    bench.deliver(&command("c2", &["B"]));
    let _ = bench.go();
    bench.deliver(&command("c3", &["C"]));
    assert_eq!(bench.go(), ["claim c3 [C]"], "two calls are in flight");
    bench.desk.drain();
    assert_eq!(bench.desk.intake(), Intake::Closed);
    assert_eq!(bench.go(), ["record [C=waiting]", "return 3"]);
    assert!(!bench.desk.is_idle());
    assert_eq!(
        bench.cancel_ends(&cancelled(&["A"])),
        [
            "record [A=cancelled c1/A=cancelled]",
            "tell c1/A cancelled",
            "ack 1"
        ]
    );
    assert_eq!(bench.cancel_ends(&lost()), [""; 0]);
    assert_eq!(bench.pass(5), [""; 0], "no call is begun any more");
    bench.desk.give_back_idle();
    assert_eq!(bench.go(), ["record []", "return 2"]);
    assert!(bench.desk.is_idle());
    bench.crash();
    bench.redeliver(&command("c2", &["B"]));
    assert_eq!(bench.go(), ["claim c2 [B]", "look up B"]);
}

#[test]
fn an_entry_that_is_no_order_number_is_rejected_alone() {
    let mut bench = Bench::new();
    let sent = command("c1", &["A", "x\ty"]);
    bench.deliver(&sent);
    assert_eq!(
        bench.go(),
        [
            "claim c1 [A]",
            "record [c1/x\ty=invalid_order_no]",
            "send [A]",
            "tell c1/x\ty invalid_order_no",
        ]
    );
    assert_eq!(
        bench.cancel_ends(&cancelled(&["A"])).last().unwrap(),
        "ack 1"
    );
    bench.deliver(&sent);
    assert_eq!(
        bench.go(),
        [
            "claim c1 [A]",
            "tell c1/A cancelled again",
            "tell c1/x\ty invalid_order_no again",
            "ack 2",
        ]
    );
}

#[test]
fn what_cannot_be_read_is_told_once_and_parked() {
    let mut bench = Bench::new();
    bench.arrive_raw("c1", Err("body: not JSON".into()), false);
    bench.fates = [Fate::Confirmed, Fate::Refused].into();
    assert_eq!(bench.go(), ["tell c1/- malformed", "park c1 unreadable"]);
    assert_eq!(bench.pass(10), ["park c1 unreadable", "ack 1"]);
    assert_eq!(bench.desk.load(), Default::default());
}

#[test]
fn one_culprit_of_twenty_is_found_in_a_bounded_number_of_calls_and_harms_nobody() {
    for (message, fate) in [
        ("单号不能为空", "api_refused_call"),
        ("单据不存在", "order_not_found"),
    ] {
        for culprit in 0..20 {
            let mut bench = Bench::new();
            let numbers: Vec<String> = (0..20).map(|n| format!("Q{n}")).collect();
            let orders: Vec<&str> = numbers.iter().map(String::as_str).collect();
            bench.deliver(&command("c1", &orders));
            let mut story = bench.go();
            let mut calls = 0;
            while let Some((_, method, asked)) = bench.calls.first().cloned() {
                let asked: Vec<&str> = asked.iter().map(String::as_str).collect();
                let guilty = asked.contains(&orders[culprit]);
                calls += 1;
                story.extend(match method {
                    Method::Cancel if guilty => bench.cancel_ends(&reply(100, message, None)),
                    Method::Cancel => bench.cancel_ends(&cancelled(&asked)),
                    // Its words fit a success of ours too, so the culprit alone is looked up.
                    Method::LookUp => bench.look_up_ends(&found(asked[0], 70)),
                    Method::Probe => panic!("the clock is measured"),
                });
            }
            assert!(calls <= 12, "{calls} calls to find {culprit} of 20");
            for (n, order) in orders.iter().enumerate() {
                let fate = if n == culprit { fate } else { "cancelled" };
                let told = format!("tell c1/{order} {fate}");
                assert!(story.contains(&told), "{told} in {story:?}");
            }
        }
    }
}

#[test]
fn that_the_query_is_not_permitted_is_said_once() {
    let mut bench = Bench::new();
    bench.deliver(&command("c1", &["A", "B"]));
    let _ = bench.go();
    assert_eq!(bench.cancel_ends(&lists(&[], &[])), [""; 0]);
    // Each waits for a while of its own.
    let mut story = bench.pass(1);
    story.sort();
    assert_eq!(story, ["look up A", "look up B"]);
    bench.calls.sort_by_key(|(_, _, orders)| orders.clone());
    assert_eq!(
        bench.look_up_ends(&reply(100, "权限不足", None)),
        [
            "note query denied",
            "record [A=unconfirmed c1/A=unconfirmed]",
            "tell c1/A unconfirmed",
        ]
    );
    assert_eq!(
        bench.look_up_ends(&reply(100, "权限不足", None)),
        [
            "record [B=unconfirmed c1/B=unconfirmed]",
            "tell c1/B unconfirmed",
            "park c1 unsettled",
            "ack 1",
        ]
    );
    bench.deliver(&command("c2", &["C"]));
    assert_eq!(bench.go(), ["claim c2 [C]", "send [C]"]);
    assert_eq!(
        bench.cancel_ends(&lost()),
        [
            "record [C=unconfirmed c2/C=unconfirmed]",
            "tell c2/C unconfirmed",
            "park c2 unsettled",
            "ack 2",
        ]
    );
}

#[test]
fn while_the_gateway_is_down_intake_pauses_and_no_attempt_is_burnt() {
    let not_reached = || CallEnd::NotReached {
        what: "connection refused".into(),
    };
    let mut bench = Bench::new();
    bench.probes_answered = false;
    bench.deliver(&command("c1", &["A"]));
    let _ = bench.go();
    assert_eq!(bench.desk.intake(), Intake::Open);
    assert_eq!(bench.cancel_ends(&not_reached()), ["note down"]);
    assert_eq!(bench.desk.intake(), Intake::Paused);
    for _ in 0..10 {
        assert_eq!(bench.pass(30), ["probe"], "one at a time");
        assert_eq!(bench.pass(30), [""; 0]);
        let call = bench.take_call(Method::Probe);
        bench.desk.probe_answered::<()>(
            bench.now,
            call,
            &CallEnd::NotReached {
                what: "connection refused".into(),
            },
        );
    }
    assert_eq!(bench.pass(30), ["probe"]);
    assert_eq!(
        bench.probe_ends(&reply(0, "", None)),
        ["note recovered", "send [A]"]
    );
    assert_eq!(bench.desk.intake(), Intake::Open);
    bench.keeps = |action| matches!(action, Action::Tell(_));
    let _ = bench.cancel_ends(&cancelled(&["A"]));
    let Some(Open::Tell(telling)) = bench.open.pop_front() else {
        panic!("told");
    };
    assert_eq!(telling.event.attempts, 1, "a call that never left is none");
}

#[test]
fn an_unknown_order_that_goes_back_to_the_queue_is_still_looked_up_first() {
    let mut bench = Bench::new();
    bench.deliver(&command("c1", &["A"]));
    let _ = bench.go();
    let _ = bench.cancel_ends(&lost());
    let _ = bench.pass(1);
    let _ = bench.look_up_ends(&reply(0, "", Some(Vec::new())));
    // What was told as unknown may be cancelled, and the gateway is busy when it is tried again.
    bench.deliver(&command("c2", &["B"]));
    let _ = bench.go();
    assert_eq!(
        bench.cancel_ends(&reply(100, "超过每分钟最大调用频率限制", None)),
        ["note cools 60s"]
    );
    bench.deliver(&command("c3", &["A"]));
    assert_eq!(bench.go(), ["claim c3 [A]"]);
    bench.desk.drain();
    assert_eq!(bench.go(), ["record [A=sent]", "return 2", "return 3"]);
    bench.crash();
    bench.redeliver(&command("c3", &["A"]));
    assert_eq!(bench.go(), ["claim c3 [A]", "look up A"]);
}

#[test]
fn an_order_that_nobody_waits_for_any_more_is_asked_of_the_ledger_again() {
    let mut bench = Bench::new();
    bench.deliver(&command("c1", &["A"]));
    let _ = bench.go();
    let _ = bench.cancel_ends(&reply(100, "超过每分钟最大调用频率限制", None));
    bench.desk.sweep(bench.now);
    bench.deliver(&Sent {
        deadline: Some(30),
        ..command("c2", &["B"])
    });
    assert_eq!(bench.go(), ["claim c2 [B]"]);
    assert_eq!(
        bench.pass(30),
        [
            "record [c2/B=deadline_passed]",
            "tell c2/B deadline_passed",
            "ack 2"
        ]
    );
    // Meanwhile another worker cancelled it.
    let row = OrderRow {
        lane: LaneId(0),
        order_no: OrderNo::new("B").unwrap(),
        state: OrderState::Ended(Ending::Cancelled, bench.now.wall),
        attempts: 1,
        spent: 0,
        since: bench.now.wall,
        fence: Fence::default(),
    };
    bench.ledger.keep(&[row], &[]);
    bench.deliver(&command("c3", &["B"]));
    assert_eq!(
        bench.go(),
        [
            "claim c3 [B]",
            "record [c3/B=cancelled]",
            "tell c3/B cancelled again",
            "ack 3"
        ]
    );
    assert_eq!(bench.pass(30), ["send [A]"]);
}

#[test]
fn a_redelivered_command_is_as_old_as_its_own_first_arrival() {
    let mut bench = Bench::new();
    bench.deliver(&command("c1", &["A"]));
    let _ = bench.go();
    let _ = bench.cancel_ends(&refused("A"));
    assert_eq!(bench.pass(MAX_AGE), [""; 0]);
    bench.redeliver(&command("c2", &["A"]));
    assert_eq!(bench.go(), ["claim c2 [A]", "send [A]"]);
    let _ = bench.cancel_ends(&reply(6, "ip限制", None));
    assert_eq!(
        bench.pass(1),
        [""; 0],
        "the refusal of c1 is old, c2 is not"
    );

    // Two that went back together are both as old as they are, whichever comes first.
    bench.deliver(&command("c3", &["A"]));
    let _ = bench.go();
    assert!(bench.pass(HOLD).contains(&"return 3".into()));
    bench.redeliver(&command("c3", &["A"]));
    bench.redeliver(&command("c2", &["A"]));
    let _ = bench.go();
    let _ = bench.look_up_ends(&reply(6, "ip限制", None));
    let story = bench.pass(MAX_AGE - HOLD - 1);
    let told: Vec<&String> = story.iter().filter(|s| s.starts_with("tell")).collect();
    assert_eq!(told, ["tell c3/A unconfirmed", "tell c2/A unconfirmed"]);
}

#[test]
fn a_loss_that_is_heard_of_late_is_made_good() {
    let mut bench = Bench::with(Verify::Never);
    bench.deliver(&command("c1", &["A"]));
    let _ = bench.go();
    bench.keeps = |action| matches!(action, Action::Tell(_));
    let _ = bench.cancel_ends(&lost());
    bench.desk.session_lost(bench.now.mono);
    bench.redeliver(&command("c1", &["A"]));
    assert_eq!(bench.go(), ["claim c1 []", "tell c1/A unconfirmed"]);
    let Some(open) = bench.open.pop_front() else {
        panic!("the first telling is open");
    };
    bench.fates.push_back(Fate::Lost);
    bench.answer(open);
    bench.open.clear();
    assert_eq!(bench.pass(10), ["claim c1 []", "tell c1/A unconfirmed"]);
    bench.keeps = |action| matches!(action, Action::Park(_));
    let Some(open) = bench.open.pop_front() else {
        panic!("the last telling is open");
    };
    bench.answer(open);
    assert_eq!(bench.go(), ["park c1 unsettled"]);
    bench.desk.session_lost(bench.now.mono);
    bench.redeliver(&command("c1", &["A"]));
    assert_eq!(bench.go(), ["park c1 unsettled"]);
    bench.fates.push_back(Fate::Lost);
    let Some(open) = bench.open.pop_front() else {
        panic!("the first copy is open");
    };
    bench.answer(open);
    bench.open.clear();
    bench.keeps = |_| false;
    assert_eq!(bench.pass(10), ["park c1 unsettled", "ack 3"]);
}

#[test]
fn an_open_record_ends_with_the_last_command_that_waits() {
    let mut bench = Bench::new();
    let soon = Sent {
        deadline: Some(HOLD + 1),
        ..command("c2", &["B"])
    };
    bench.deliver(&command("c1", &["A"]));
    let _ = bench.go();
    assert_eq!(
        bench.cancel_ends(&reply(6, "ip限制", None)),
        ["note stopped"]
    );
    bench.deliver(&soon);
    bench.probes_answered = false;
    let _ = bench.go();
    assert_eq!(
        bench.pass(HOLD),
        ["record [B=waiting]", "probe", "return 1", "return 2"]
    );
    bench.redeliver(&soon);
    let _ = bench.go();
    assert_eq!(
        bench.pass(1),
        [
            "record [B=deadline_passed c2/B=deadline_passed]",
            "tell c2/B deadline_passed",
            "ack 3"
        ]
    );
}

#[test]
fn a_half_of_a_list_that_may_be_cancelled_is_not_told_as_expired() {
    let mut bench = Bench::new();
    bench.deliver(&Sent {
        deadline: Some(30),
        ..command("c1", &["A", "B", "C", "D"])
    });
    let _ = bench.go();
    assert_eq!(
        bench.cancel_ends(&reply(100, "单据不存在", None)),
        ["send [A B]", "send [C D]"]
    );
    let throttled = reply(100, "超过每分钟最大调用频率限制", None);
    assert_eq!(bench.cancel_ends(&throttled), ["note cools 60s"]);
    assert_eq!(bench.cancel_ends(&throttled), [""; 0]);
    let story = bench.pass(30);
    let told = story.iter().filter(|s| s.ends_with(" unconfirmed")).count();
    assert_eq!(told, 4, "{story:?}");
}

#[test]
fn what_is_sent_stays_recorded_as_sent() {
    let mut bench = Bench::new();
    for (id, order) in [("c1", "A"), ("c2", "B"), ("c3", "C")] {
        bench.deliver(&command(id, &[order]));
        let _ = bench.go();
    }
    assert_eq!(bench.pass(1), [""; 0], "two calls are in flight");
    bench.deliver(&command("c4", &["C"]));
    assert_eq!(bench.go(), ["claim c4 []"]);
    // In one moment C goes back to the queue for c3, and may be sent for c4.
    bench.now.mono = bench.now.mono + Duration::from_secs(HOLD - 1);
    bench.desk.sweep(bench.now);
    assert_eq!(
        bench.cancel_ends(&cancelled(&["A"])),
        [
            "record [C=waiting A=cancelled c1/A=cancelled]",
            "send [C]",
            "return 3",
            "tell c1/A cancelled",
            "ack 1",
        ]
    );
    let row = &bench.ledger.orders[&(LaneId(0), OrderNo::new("C").unwrap())];
    assert_eq!(row.state, OrderState::Sent);
}

#[test]
fn an_id_stays_known_as_long_as_any_of_its_deliveries_is_in_hand() {
    let mut bench = Bench::new();
    bench.deliver(&command("c1", &["A"]));
    let _ = bench.go();
    let throttled = reply(100, "超过每分钟最大调用频率限制", None);
    assert_eq!(bench.cancel_ends(&throttled), ["note cools 60s"]);
    // The first goes back after the hold, its twin was delivered later.
    bench.deliver(&command("c2", &["B"]));
    let _ = bench.pass(30);
    bench.deliver(&command("c2", &["B"]));
    let _ = bench.go();
    assert_eq!(bench.pass(30), ["send [A B]"]);
    assert_eq!(bench.cancel_ends(&throttled), ["note cools 300s"]);
    assert_eq!(
        bench.pass(HOLD - 60),
        ["record []", "send [B]", "return 1", "return 2"]
    );
    bench.deliver(&command("c2", &["C"]));
    assert_eq!(bench.go(), ["tell c2/C command_id_reused", "ack 4"]);
}

#[test]
fn the_ledger_tells_whose_an_id_is() {
    let mut bench = Bench::new();
    let own = command("c1", &["A"]);
    bench.deliver(&own);
    let _ = bench.go();
    let _ = bench.cancel_ends(&cancelled(&["A"]));
    bench.keeps = |action| matches!(action, Action::Claim(_));
    bench.deliver(&command("c1", &["B"]));
    bench.deliver(&own);
    assert_eq!(bench.go(), ["claim c1 [B]", "claim c1 [A]"]);
    assert_eq!(
        bench.release(),
        [
            "tell c1/B command_id_reused",
            "tell c1/A cancelled again",
            "ack 2",
            "ack 3"
        ]
    );
    // Where it knows neither, the first is the one that counts.
    bench.keeps = |action| matches!(action, Action::Claim(_));
    bench.deliver(&command("c2", &["B"]));
    bench.deliver(&command("c2", &["C"]));
    assert_eq!(bench.go(), ["claim c2 [B]", "claim c2 [C]"]);
    assert_eq!(
        bench.release(),
        ["tell c2/C command_id_reused", "send [B]", "ack 5"]
    );
}

#[test]
fn nothing_is_decided_for_a_command_before_the_ledger_has_told() {
    let mut bench = Bench::new();
    bench.deliver(&command("c1", &["A"]));
    let _ = bench.go();
    let _ = bench.cancel_ends(&refused("A"));
    bench.deliver(&command("c2", &["B"]));
    let _ = bench.go();
    bench.keeps = |action| matches!(action, Action::Claim(_));
    bench.deliver(&command("c1", &["B"]));
    assert_eq!(bench.go(), ["claim c1 []"]);
    assert_eq!(
        bench.cancel_ends(&cancelled(&["B"])),
        [
            "record [B=cancelled c2/B=cancelled]",
            "tell c2/B cancelled",
            "ack 2"
        ],
        "c1 waits on"
    );
    assert_eq!(bench.release(), ["tell c1/B command_id_reused", "ack 3"]);
    assert_eq!(bench.desk.load(), Default::default());
}

#[test]
fn a_twin_says_what_the_first_says() {
    let mut bench = Bench::with(Verify::Never);
    let sent = command("c1", &["A"]);
    bench.deliver(&sent);
    let _ = bench.go();
    bench.fates.push_back(Fate::Unroutable);
    let _ = bench.cancel_ends(&lost());
    bench.deliver(&sent);
    assert_eq!(
        bench.go(),
        [
            "claim c1 [A]",
            "record [c1/A=unconfirmed]",
            "tell c1/A unconfirmed again",
            "park c1 unsettled",
            "ack 2",
        ],
        "it is not tried again while the failure is still to be told"
    );
    assert_eq!(
        bench.pass(10),
        [
            "claim c1 []",
            "tell c1/A unconfirmed",
            "park c1 unsettled",
            "ack 1"
        ]
    );
}

// A ledger that several workers share

fn is_claim(action: &Action) -> bool {
    matches!(action, Action::Claim(_))
}

#[test]
fn what_was_known_of_a_lost_order_is_forgotten() {
    let mut bench = Bench::new();
    bench.deliver(&command("c1", &["A"]));
    assert_eq!(bench.go(), ["claim c1 [A]", "send [A]"]);
    assert_eq!(bench.list_is_lost("A"), ["claim c1 [A]", "send [A]"]);
    let _ = bench.cancel_ends(&cancelled(&["A"]));
    let attempts: Vec<u32> = bench.ledger.results.values().map(|r| r.attempts).collect();
    assert_eq!(attempts, [1], "the list that came too late was never sent");
}

#[test]
fn an_order_that_nobody_waits_for_any_more_stays_in_hand_until_its_call_ends() {
    let mut bench = Bench::new();
    let sent = command("c1", &["A", "B"]);
    bench.deliver(&sent);
    assert_eq!(bench.go(), ["claim c1 [A B]", "send [A B]"]);
    bench.keeps = |action| matches!(action, Action::Record(_));
    let busy = lists(&["A"], &[("B", "单据被占用，请稍后重试")]);
    assert_eq!(
        bench.cancel_ends(&busy),
        ["record [A=cancelled c1/A=cancelled]"]
    );
    assert_eq!(bench.pass(60), ["send [B]"]);
    // The lease was over: the record comes too late, and another worker has told of both.
    for order in ["A", "B"] {
        bench.ends_elsewhere(Some(&sent), order, Ending::Cancelled);
    }
    bench.keeps = |_| false;
    assert_eq!(
        bench.record_is_lost("A"),
        [
            "claim c1 []",
            "claim c1 [A]",
            "tell c1/A cancelled again",
            "tell c1/B cancelled again",
            "ack 1"
        ]
    );
    bench.deliver(&command("c2", &["B"]));
    assert_eq!(
        bench.go(),
        ["claim c2 []"],
        "it joins the order whose call is in flight"
    );
}

#[test]
fn what_the_gateway_refused_elsewhere_is_told_without_a_call() {
    let mut bench = Bench::new();
    bench.keeps = is_claim;
    bench.deliver(&command("c1", &["A"]));
    assert_eq!(bench.go(), ["claim c1 [A]"]);
    let elsewhere = Holding::Elsewhere(None, Duration::from_secs(60));
    assert_eq!(bench.claim_ends(elsewhere), [""; 0]);
    assert_eq!(bench.pass(1), ["claim c1 [A]"]);
    let refused = Ending::not(ReasonCode::OrderState, STATE);
    let row = bench.ends_elsewhere(None, "A", refused);
    assert_eq!(
        bench.claim_ends(Holding::Ours(Some(row), Fence(8))),
        [
            "record [c1/A=order_state]",
            "tell c1/A order_state",
            "ack 1"
        ]
    );
}

#[test]
fn a_twin_does_not_say_what_is_on_its_way_under_an_older_claim() {
    let mut bench = Bench::new();
    // Nothing is sent for a minute.
    bench.deliver(&command("c0", &["B"]));
    let _ = bench.go();
    let _ = bench.cancel_ends(&reply(100, "超过每分钟最大调用频率限制", None));
    let late = Sent {
        deadline: Some(5),
        ..command("c1", &["A"])
    };
    bench.deliver(&late);
    assert_eq!(bench.go(), ["claim c1 [A]"]);
    bench.keeps = |action| matches!(action, Action::Record(_));
    assert_eq!(bench.pass(6), ["record [c1/A=deadline_passed]"]);
    // Before that is recorded the lease is over, and another worker cancels the order.
    let row = bench.ends_elsewhere(None, "A", Ending::Cancelled);
    bench.keeps = is_claim;
    bench.redeliver(&late);
    assert_eq!(bench.go(), ["claim c1 [A]"]);
    bench.open.rotate_left(1);
    assert_eq!(
        bench.claim_ends(Holding::Ours(Some(row), Fence(8))),
        [
            "record [c1/A=cancelled]",
            "tell c1/A cancelled again",
            "ack 3"
        ]
    );
    bench.keeps = |_| false;
    assert_eq!(
        bench.record_is_lost("A"),
        [
            "claim c1 []",
            "claim c1 [A]",
            "tell c1/A cancelled again",
            "ack 2"
        ]
    );
}

/// A command of which nothing more is known than that the gateway could not be asked, and no queue
/// takes that: one that another worker may try again meanwhile.
fn with_an_untold_failure() -> Bench {
    let mut bench = Bench::with(Verify::Never);
    bench.deliver(&command("c1", &["A"]));
    let _ = bench.go();
    for _ in 0..2 {
        let _ = bench.cancel_ends(&lists(&[], &[("A", "单据被占用，请稍后重试")]));
        let _ = bench.pass(60);
    }
    bench.fates.push_back(Fate::Unroutable);
    let _ = bench.cancel_ends(&lists(&[], &[("A", "单据被占用，请稍后重试")]));
    bench
}

#[test]
fn a_failure_that_was_not_told_is_overtaken_by_what_another_worker_recorded() {
    let mut bench = with_an_untold_failure();
    bench.now.wall = later(bench.now.wall, Duration::from_secs(1));
    bench.ends_elsewhere(Some(&command("c1", &["A"])), "A", Ending::Cancelled);
    assert_eq!(
        bench.pass(10),
        ["claim c1 []", "tell c1/A cancelled again", "ack 1"]
    );
}

#[test]
fn a_failure_that_nobody_was_told_of_before_the_session_was_lost_is_asked_for_again() {
    let mut bench = with_an_untold_failure();
    bench.desk.session_lost(bench.now.mono);
    bench.now.wall = later(bench.now.wall, Duration::from_secs(1));
    bench.ends_elsewhere(Some(&command("c1", &["A"])), "A", Ending::Cancelled);
    bench.redeliver(&command("c1", &["A"]));
    assert_eq!(
        bench.go(),
        ["claim c1 []", "tell c1/A cancelled again", "ack 2"]
    );
}

#[test]
fn a_twin_does_not_say_a_failure_over_another_workers_later_word() {
    let mut bench = with_an_untold_failure();
    bench.now.wall = later(bench.now.wall, Duration::from_secs(1));
    let unknown = Ending::not(ReasonCode::Unconfirmed, "no answer");
    bench.ends_elsewhere(Some(&command("c1", &["A"])), "A", unknown);
    bench.deliver(&command("c1", &["A"]));
    assert_eq!(
        bench.go(),
        [
            "claim c1 [A]",
            "record [A=unconfirmed c1/A=unconfirmed]",
            "tell c1/A unconfirmed",
            "park c1 unsettled",
            "ack 2"
        ],
        "it was sent elsewhere, so it is not certain any more"
    );
}

#[test]
fn a_command_that_is_given_up_is_told_as_it_stands_and_parked_and_nothing_is_sent_for_it() {
    let mut bench = Bench::new();
    let sent = command("c1", &["A"]);
    bench.deliver(&sent);
    assert_eq!(bench.go(), ["claim c1 [A]", "send [A]"]);
    // A was sent before the worker died, B never.
    bench.crash();
    bench.give_up(&command("c1", &["A", "B"]));
    assert_eq!(
        bench.go(),
        [
            "claim c1 [A B]",
            "record [A=unconfirmed c1/A=unconfirmed c1/B=api_unavailable]",
            "tell c1/A unconfirmed",
            "tell c1/B api_unavailable",
            "park c1 poison",
            "ack 2",
        ]
    );
    assert!(bench.desk.is_still(bench.now.mono));
}

#[test]
fn a_command_that_is_given_up_but_finished_is_only_told_again() {
    let mut bench = Bench::new();
    let sent = command("c1", &["A"]);
    bench.deliver(&sent);
    let _ = bench.go();
    let _ = bench.cancel_ends(&cancelled(&["A"]));
    bench.crash();
    bench.give_up(&sent);
    let told = ["claim c1 [A]", "tell c1/A cancelled again", "ack 2"];
    assert_eq!(bench.go(), told);
}

#[test]
fn an_order_of_a_command_that_is_given_up_goes_on_for_others() {
    let mut bench = Bench::new();
    bench.deliver(&command("c2", &["A"]));
    bench.give_up(&command("c1", &["A"]));
    // It joined before either was known; the other one's claim brings the order in.
    assert_eq!(
        bench.go(),
        [
            "claim c2 [A]",
            "claim c1 []",
            "record [c1/A=api_unavailable]",
            "send [A]",
            "tell c1/A api_unavailable",
            "park c1 poison",
            "ack 2"
        ]
    );
    let told = [
        "record [A=cancelled c2/A=cancelled]",
        "tell c2/A cancelled",
        "ack 1",
    ];
    assert_eq!(bench.cancel_ends(&cancelled(&["A"])), told);
}

#[test]
fn a_command_is_still_when_only_time_or_somebody_else_can_move_it() {
    let mut bench = Bench::new();
    bench.deliver(&command("c1", &["A"]));
    let rest = |bench: &Bench| bench.desk.rest_of(bench.now.mono, Ticket(1));
    assert_eq!(rest(&bench), Rest::Moving);
    assert_eq!(bench.go(), ["claim c1 [A]", "send [A]"]);
    assert_eq!(rest(&bench), Rest::Moving);
    let throttled = CallEnd::Throttled { retry_after: None };
    assert_eq!(bench.cancel_ends(&throttled), ["note cools 60s"]);
    assert_eq!(rest(&bench), Rest::Resting);
    assert!(bench.desk.is_still(bench.now.mono));
    assert_eq!(bench.pass(60), ["send [A]"]);
    assert_eq!(rest(&bench), Rest::Moving);
    bench.fates = [Fate::Unroutable].into();
    let _ = bench.cancel_ends(&cancelled(&["A"]));
    assert_eq!(rest(&bench), Rest::Resting, "it waits for a queue");
    assert_eq!(bench.pass(10), ["tell c1/A cancelled", "ack 1"]);
    assert_eq!(rest(&bench), Rest::Gone);
}

#[test]
fn a_command_that_is_buried_is_parked_and_not_told() {
    let mut bench = Bench::new();
    let sent = admitted("c1", Err("not read".into()));
    let ticket = bench.next_ticket();
    bench.fates = [Fate::Unroutable].into();
    bench.desk.bury(bench.now, ticket, sent.envelope().clone());
    assert_eq!(bench.go(), ["park c1 poison"]);
    assert_eq!(bench.pass(10), ["park c1 poison", "ack 1"]);
    // What the broker lost comes again, and is decided anew.
    let ticket = bench.next_ticket();
    bench.keeps = |action| matches!(action, Action::Park(_));
    bench.desk.bury(bench.now, ticket, sent.envelope().clone());
    assert_eq!(bench.go(), ["park c1 poison"]);
    bench.desk.session_lost(bench.now.mono);
    assert_eq!(bench.release(), [""; 0]);
    assert!(bench.desk.is_idle());
}

// A dry run

#[test]
fn a_dry_run_looks_up_whatever_is_recorded_and_sends_nothing() {
    let ending = |code| OrderState::Ended(Ending::not(code, "no"), NOON.parse().unwrap());
    let states = [
        None,
        Some(OrderState::Waiting),
        // By mistake, for a dry run records nothing as sent.
        Some(OrderState::Sent),
        Some(ending(ReasonCode::OrderState)),
        Some(ending(ReasonCode::ApiUnavailable)),
        Some(ending(ReasonCode::Unconfirmed)),
    ];
    for state in states {
        for redelivered in [false, true] {
            let mut bench = Bench::dry_run();
            let (lane, order_no) = named("QC1");
            let row = state.clone().map(|state| OrderRow {
                lane,
                order_no,
                state,
                attempts: 1,
                spent: 1,
                since: bench.now.wall,
                fence: Fence(1),
            });
            bench.ledger.keep(row.as_slice(), &[]);
            let (desk_now, restored_at) = (bench.now.wall, bench.now.wall);
            let until = later(desk_now, Duration::from_secs(60));
            bench.desk.remember_gap(Gap { restored_at, until });
            bench.arrive(&command("c", &["QC1"]), redelivered);
            let story = bench.go();
            assert_eq!(story.last().unwrap(), "look up QC1", "{state:?}: {story:?}");
            // Nobody answers; it is looked up again, and again, and that is all.
            let nobody = || CallEnd::Lost {
                what: "silence".into(),
            };
            let mut story = bench.look_up_ends(&nobody());
            story.extend(bench.pass(2));
            story.extend(bench.look_up_ends(&nobody()));
            story.extend(bench.pass(3));
            story.extend(bench.look_up_ends(&nobody()));
            assert!(
                story.iter().all(|words| !words.starts_with("send")),
                "{story:?}"
            );
            let told = story.iter().find(|words| words.starts_with("tell"));
            assert!(told.unwrap().contains("api_unavailable"), "{story:?}");
        }
    }
}

#[test]
fn a_dry_run_tells_a_command_whose_deadline_passed_while_nobody_answered() {
    let mut bench = Bench::dry_run();
    bench.deliver(&Sent {
        deadline: Some(5),
        ..command("c", &["QC1"])
    });
    assert_eq!(bench.go().last().unwrap(), "look up QC1");
    let gone = CallEnd::NotReached {
        what: "refused".into(),
    };
    let mut story = bench.look_up_ends(&gone);
    story.extend(bench.pass(6));
    let told = story.iter().find(|words| words.starts_with("tell"));
    assert!(told.unwrap().contains("deadline_passed"), "{story:?}");
}
