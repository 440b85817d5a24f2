//! The worker is killed at each step of the durable order, started again, and the outcome compared
//! with what must come of it, and with a run that nobody killed.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;

use super::binary::killable;
use super::book::{Book, Call, Fate};
use super::record::Record;
use super::support::amqp::{Amqp, COMMANDS, Command, DEAD, Inbox, Message};
use super::support::broker::Vhost;
use super::support::eventually::eventually_ok;
use super::support::gateway::{Account, Answer, CANCEL, Gate, Gateway, QUERY};
use super::support::orders::Orders;
use super::support::process::Signal;
use super::support::scene::{LATER, SOON};
use super::support::worker::{Setup, Worker};

/// Every fail point in the durable order's sequence, and the later passing at which the worker is
/// killed as well, counted from 0; none where there is just one in a run.
pub const POINTS: [(&str, Option<u32>); 25] = [
    ("delivered", Some(6)),
    (TRIAL, Some(4)),
    ("arrived", Some(6)),
    ("claim-read", Some(6)),
    ("send-written", Some(2)),
    ("send-committed", Some(2)),
    ("call", Some(2)),
    ("call-answered", Some(2)),
    ("look-up", Some(2)),
    ("look-up-answered", Some(2)),
    ("record-written", Some(3)),
    ("record-committed", Some(3)),
    ("tell", Some(6)),
    ("event-published", Some(6)),
    ("event-confirmed", Some(6)),
    ("park", Some(2)),
    ("copy-published", Some(2)),
    ("copy-confirmed", Some(2)),
    ("acknowledge", Some(4)),
    ("acknowledged", Some(4)),
    ("drain", None),
    ("give-back", Some(2)),
    ("given-back", Some(2)),
    ("drained", None),
    ("disconnected", None),
];
/// A suspect's trial is on record. Only after runs that died are there any.
const TRIAL: &str = "trial-committed";
/// So many of them.
const DEATHS: usize = 3;
/// Scenes at a time: they wait more than they work.
const AT_ONCE: usize = 6;
/// The waves of a story.
const WAVES: [u32; 2] = [1, 2];

/// What ends the first run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Nothing: the run that the others are compared with.
    Never,
    /// The fail point, at this passing from 0; with `drains`, while the worker drains.
    At {
        point: &'static str,
        passing: u32,
        drains: bool,
    },
    /// We kill it when the gateway has such a call and has not answered.
    InTheAir {
        method: &'static str,
        carried_out: bool,
    },
}

fn ends() -> Vec<End> {
    let mut ends = vec![End::Never];
    for (point, later) in POINTS {
        let drain = POINTS.iter().position(|(p, _)| *p == "drain");
        let drains = POINTS.iter().position(|(p, _)| *p == point) >= drain;
        for passing in [Some(0), later].into_iter().flatten() {
            ends.push(End::At {
                point,
                passing,
                drains,
            });
        }
    }
    for (method, carried_out) in [(CANCEL, true), (CANCEL, false), (QUERY, true)] {
        ends.push(End::InTheAir {
            method,
            carried_out,
        });
    }
    ends
}

pub async fn every_step() {
    killable().await;
    let done: Vec<(usize, usize)> = stream::iter(ends())
        .map(scene)
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    let (kills, repeats) = done
        .iter()
        .fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    println!(
        "{} scenes, {kills} kills at {} named steps and with a call in the air, {repeats} events told again",
        done.len(),
        POINTS.len()
    );
}

/// One story with its end and what follows; how many kills, and how many events were repeats.
async fn scene(end: End) -> (usize, usize) {
    let mut stage = Stage::set(end).await;
    let mut story = Story::default();
    stage.send(1, &mut story).await;
    let mut kills = 0;
    if matches!(end, End::At { point: TRIAL, .. }) {
        for _ in 0..DEATHS {
            kills += usize::from(stage.dies_again("arrived", &mut story).await);
        }
        assert_eq!(kills, DEATHS);
    }
    if end != End::Never {
        stage.first_run(end, &mut story).await;
        kills += 1;
        if let End::At {
            point,
            drains: false,
            ..
        } = end
        {
            if story.waves < WAVES[1] {
                stage.send(WAVES[1], &mut story).await;
            }
            // Once more at the same step, while it recovers.
            kills += usize::from(stage.dies_again(point, &mut story).await);
        }
    }
    let mut worker = stage.start(None);
    worker.wait_ready(LATER).await;
    for wave in WAVES {
        if wave > story.waves {
            stage.send(wave, &mut story).await;
        }
    }
    stage.told(&mut story, &mut worker).await;
    stage.vhost.queue_holds(LATER, COMMANDS, 0, 0).await;
    stage.read_all(&mut story).await;
    story.check(end);
    stage.check_parked(&story, end).await;
    assert_eq!(stage.book.breaches(), [""; 0], "{end:?}");
    assert_eq!(worker.terminate(LATER).await, 0, "{end:?}");
    (kills, story.repeats)
}

/// A worker's surroundings.
struct Stage {
    vhost: Vhost,
    amqp: Amqp,
    results: Inbox,
    dead: Inbox,
    book: Book,
    gateway: Gateway,
    gate: Gate,
    setup: Setup,
}

impl Stage {
    async fn set(end: End) -> Self {
        let vhost = Vhost::fresh().await;
        let orders = Orders::new();
        let gate = Gate::shut();
        let book = Book::new(&orders, 1, script(end, gate.clone()));
        for wave in WAVES {
            orders
                .set(&format!("S{wave}"), 70)
                .remove(&format!("U{wave}"));
        }
        let gateway = book.gateway(vec![Account::named("default")]);
        let setup = Setup::new(&vhost.url(), &book.url(&gateway))
            .binary(killable().await)
            .set("WDT_API__CALLS_PER_MINUTE", 0)
            .set("WDT_API__CONCURRENCY", 1)
            .set("WDT_API__MAX_ORDERS_PER_CALL", 3);
        let amqp = Amqp::connect(&vhost.url()).await;
        let results = amqp.results().await;
        // Declared by a worker that has nothing to do.
        let mut worker = setup.start();
        worker.wait_ready(LATER).await;
        assert_eq!(worker.terminate(LATER).await, 0);
        let dead = amqp.dead().await;
        Self {
            vhost,
            amqp,
            results,
            dead,
            book,
            gateway,
            gate,
            setup,
        }
    }

    /// Publishes a wave.
    async fn send(&self, wave: u32, story: &mut Story) {
        story.waves = wave;
        let commands: Vec<Command> = story.due(wave);
        self.amqp.send_all(COMMANDS, &commands).await;
    }

    fn start(&self, failpoints: Option<&str>) -> Worker {
        let setup = self
            .setup
            .with("WDT_API__URL", self.book.url(&self.gateway));
        match failpoints {
            Some(points) => setup.with("FAILPOINTS", points).start(),
            None => setup.start(),
        }
    }

    /// Up to the kill, and a look at what it left.
    async fn first_run(&mut self, end: End, story: &mut Story) {
        let mut worker = match end {
            End::Never => return,
            End::InTheAir { method, .. } => {
                let mut worker = self.start(None);
                let what = format!("{method} is in the air");
                eventually_ok(SOON, &what, async || {
                    let counts = self.book.counts();
                    let came = if method == QUERY {
                        counts.look_ups
                    } else {
                        counts.cancels
                    };
                    (came > 0).then_some(()).ok_or(worker.log())
                })
                .await;
                worker.kill9();
                worker
            }
            End::At {
                point,
                passing,
                drains,
            } => {
                let off = match passing {
                    0 => String::new(),
                    passing => format!("{passing}*off->"),
                };
                let points = format!("fail-at-{point}={off}return");
                let mut worker = self.start(Some(&points));
                if drains {
                    let asked = "the first call has arrived";
                    eventually_ok(SOON, asked, async || match self.book.calls_of_run() {
                        0 => Err(worker.log()),
                        _ => Ok(()),
                    })
                    .await;
                    eventually_ok(SOON, "all is in its hands", async || {
                        let commands = self.vhost.queue(COMMANDS).await;
                        let ready = commands.as_ref().map(|queue| queue.ready);
                        (ready == Some(0)).then_some(()).ok_or(commands)
                    })
                    .await;
                    worker.signal(Signal::TERM);
                    let what = format!("{end:?}: the worker stops");
                    eventually_ok(SOON, &what, async || {
                        let is_over = worker.ended().is_some();
                        let stops = worker.log().contains("stopping: no new commands");
                        (is_over || stops).then_some(()).ok_or(worker.log())
                    })
                    .await;
                    self.gate.open();
                }
                self.until_killed(end, &mut worker, story).await;
                worker
            }
        };
        self.gate.open();
        self.autopsy(end, &mut worker, story).await;
    }

    /// Wave after wave, until the fail point has killed the worker.
    async fn until_killed(&mut self, end: End, worker: &mut Worker, story: &mut Story) {
        let what = format!("{end:?}: the worker is killed");
        let (book, results) = (&self.book, &mut self.results);
        let amqp = &self.amqp;
        eventually_ok(LATER, &what, async || {
            if worker.ended().is_some() {
                return Ok(());
            }
            while let Some(message) = results.next(Duration::from_millis(20)).await {
                story.hear(&message, book);
            }
            if story.open().is_empty() && story.waves < WAVES[1] {
                story.waves += 1;
                let commands = story.due(story.waves);
                amqp.send_all(COMMANDS, &commands).await;
            }
            Err(worker.log())
        })
        .await;
    }

    /// Killed at a step, or `false` when it does its work without passing it.
    async fn dies_again(&mut self, point: &'static str, story: &mut Story) -> bool {
        let end = End::At {
            point,
            passing: 0,
            drains: false,
        };
        let mut worker = self.start(Some(&format!("fail-at-{point}=return")));
        let what = format!("{end:?}: again, or all is told");
        let (book, results, vhost) = (&self.book, &mut self.results, &self.vhost);
        let died = eventually_ok(LATER, &what, async || {
            if worker.ended().is_some() {
                return Ok(true);
            }
            while let Some(message) = results.next(Duration::from_millis(20)).await {
                story.hear(&message, book);
            }
            let commands = vhost.queue(COMMANDS).await.expect("the commands' queue");
            if (commands.ready, commands.unacked) == (0, 0) {
                return Ok(false);
            }
            Err(worker.log())
        })
        .await;
        if died {
            self.autopsy(end, &mut worker, story).await;
        } else {
            assert_eq!(worker.terminate(LATER).await, 0);
            self.book.run_ended();
        }
        died
    }

    /// It was SIGKILL, and whatever it called for or told is durable (laws 1 and 2).
    async fn autopsy(&mut self, end: End, worker: &mut Worker, story: &mut Story) {
        let status = worker.ended().expect("it is dead");
        assert_eq!(
            status.signal(),
            Some(Signal::KILL.as_raw()),
            "{end:?}: {status}\n{}",
            worker.log()
        );
        let record = Record::of(self.setup.dir());
        self.book.run_died(&record);
        self.read_all(story).await;
        story.check_told(&record, end);
    }

    /// Reads events until nothing is left in their queue.
    async fn read_all(&mut self, story: &mut Story) {
        loop {
            while let Some(message) = self.results.next(Duration::from_millis(50)).await {
                story.hear(&message, &self.book);
            }
            let queue = self.vhost.queue(self.results.name()).await;
            if queue.is_some_and(|q| (q.ready, q.unacked) == (0, 0)) {
                return;
            }
        }
    }

    async fn told(&mut self, story: &mut Story, worker: &mut Worker) {
        let (book, results) = (&self.book, &mut self.results);
        eventually_ok(LATER, "everything is told", async || {
            while let Some(message) = results.next(Duration::from_millis(20)).await {
                story.hear(&message, book);
            }
            let open = story.open();
            if open.is_empty() {
                return Ok(());
            }
            Err((open, worker.log()))
        })
        .await;
    }

    /// The dead-letter queue holds the commands that are due there, at least once each, as they
    /// came, and nothing else.
    async fn check_parked(&mut self, story: &Story, end: End) {
        let mut parked = BTreeSet::new();
        loop {
            while let Some(message) = self.dead.next(Duration::from_millis(50)).await {
                let id = message
                    .message_id
                    .clone()
                    .expect("a parked command has an id");
                let sent = story.bodies.get(&id).expect("one of ours");
                assert_eq!(&message.bytes, sent, "{end:?}: {id}");
                parked.insert(id);
            }
            let queue = self.vhost.queue(DEAD).await.expect("the dead-letter queue");
            if (queue.ready, queue.unacked) == (0, 0) {
                break;
            }
        }
        assert_eq!(parked, story.parked, "{end:?}: the dead-letter queue");
    }
}

/// What becomes of a call, by its orders.
fn script(
    end: End,
    gate: Gate,
) -> impl FnMut(&Call<'_>, &mut fastrand::Rng) -> Fate + Send + 'static {
    let mut lost: BTreeSet<String> = BTreeSet::new();
    let mut is_first = true;
    move |call, _| {
        let fate = fate(call, &mut lost);
        let held = match end {
            End::Never => false,
            End::At { drains, .. } => drains && call.method == CANCEL,
            End::InTheAir { method, .. } => method == call.method,
        };
        if !held || !std::mem::take(&mut is_first) {
            return fate;
        }
        let gate = gate.clone();
        match end {
            End::InTheAir { carried_out, .. } => Fate::Lost {
                carried_out,
                answer: Answer::Close.behind(&gate),
            },
            End::Never | End::At { .. } => match fate {
                Fate::Lost {
                    carried_out,
                    answer,
                } => Fate::Lost {
                    carried_out,
                    answer: answer.behind(&gate),
                },
                Fate::NotDone(answer) => Fate::NotDone(answer.behind(&gate)),
                Fate::Done | Fate::DoneBy(_) => {
                    Fate::DoneBy(Box::new(move |answer| answer.behind(&gate)))
                }
            },
        }
    }
}

fn fate(call: &Call<'_>, lost: &mut BTreeSet<String>) -> Fate {
    if call.method != CANCEL {
        return Fate::Done;
    }
    let has = |letter: char| call.orders.iter().find(|order| order.starts_with(letter));
    if has('B').is_some() {
        // The list as a whole is refused for one of its orders.
        return Fate::NotDone(Answer::status(100, "单号不能为空"));
    }
    for (letter, carried_out) in [('U', false), ('L', true), ('N', false)] {
        if let Some(order) = has(letter)
            && lost.insert(order.clone())
        {
            return Fate::Lost {
                carried_out,
                answer: Answer::Close,
            };
        }
    }
    Fate::Done
}

/// The outcome and reason code that are due, by command id and entry.
type Due = BTreeMap<(String, String), (&'static str, &'static str)>;

/// The commands, what is due for each, and what was told.
#[derive(Default)]
struct Story {
    waves: u32,
    due: Due,
    told: BTreeSet<(String, String)>,
    /// By event id: what it told.
    ids: BTreeMap<String, (String, String, String)>,
    /// Since the last look at a ledger.
    fresh: Vec<(String, String, String)>,
    bodies: BTreeMap<String, Vec<u8>>,
    parked: BTreeSet<String>,
    repeats: usize,
}

/// How an order ends, by its first letter.
fn ending(entry: &str) -> (&'static str, &'static str) {
    match entry.chars().next() {
        None => ("rejected", "malformed"),
        Some('S') => ("refused", "order_state"),
        Some('B') => ("failed", "api_refused_call"),
        Some('U') => ("unknown", "unconfirmed"),
        Some('E') => ("expired", "deadline_passed"),
        Some('X') => ("rejected", "invalid_order_no"),
        Some(_) => ("cancelled", ""),
    }
}

impl Story {
    /// The commands of a wave; from now on they are due.
    fn due(&mut self, wave: u32) -> Vec<Command> {
        let too_long = format!("X{wave}{}", "0".repeat(40));
        let c = |n: u32| format!("C{wave}{n}");
        let o = |letter: char| format!("{letter}{wave}");
        let mut commands = vec![
            ("list", vec![c(1), o('S'), c(2), o('B')]),
            ("one", vec![c(1)]),
            // The same command again.
            ("list", vec![c(1), o('S'), c(2), o('B')]),
            ("doubt", vec![o('U')]),
            ("lost", vec![o('L'), c(3)]),
            ("not-done", vec![o('N')]),
            ("joins", vec![o('N'), o('S'), c(4)]),
            ("late", vec![o('E')]),
            ("long", vec![c(5), too_long.clone()]),
            ("one", vec![c(1)]),
        ];
        if wave > 1 {
            // Orders and commands of the first wave: told from the record.
            commands.push(("old", vec!["C11".into(), "L1".into(), "N1".into()]));
        }
        let mut made = Vec::new();
        for (name, orders) in commands {
            let id = format!("{name}-{wave}");
            let mut command = Command::orders(&orders).id(&id);
            if name == "late" {
                command = command.field("deadline", "2020-01-01T00:00:00Z");
            }
            for order in &orders {
                let due = ending(order);
                self.due.insert((id.clone(), order.clone()), due);
                if matches!(due.0, "failed" | "unknown") {
                    self.parked.insert(id.clone());
                }
            }
            self.bodies.insert(id, command.body().to_vec());
            made.push(command);
        }
        let junk = format!("junk-{wave}");
        made.push(Command::raw("[not a command").id(&junk));
        self.due.insert((junk.clone(), String::new()), ending(""));
        self.bodies.insert(junk.clone(), b"[not a command".to_vec());
        self.parked.insert(junk);
        made
    }

    /// An event tells what is due, and the same event has the same id.
    fn hear(&mut self, message: &Message, book: &Book) {
        let key = (
            message.text("command_id").to_string(),
            message.order_no().to_string(),
        );
        let told = (message.outcome(), message.reason_code());
        assert_eq!(self.due.get(&key), Some(&told), "{message:#?}");
        let occurred_at = message.text("occurred_at").parse().expect("a time");
        let contradiction = book.contradicts(&key.1, told.0, occurred_at);
        assert_eq!(contradiction, None, "{message:#?}");
        let id = message.text("event_id").to_string();
        let what = (key.0.clone(), key.1.clone(), told.0.to_string());
        let known = self.ids.insert(id, what.clone());
        assert!(
            known.as_ref().is_none_or(|known| *known == what),
            "{message:#?}"
        );
        if !self.told.insert(key) {
            self.repeats += 1;
            assert!(known.is_some(), "another id for the same: {message:#?}");
        }
        let code = message.reason_code().to_string();
        self.fresh.push((what.0, what.1, code));
    }

    /// What is not told yet.
    fn open(&self) -> Vec<(String, String)> {
        let keys = self.due.keys();
        let open = keys.filter(|key| !self.told.contains(*key));
        open.cloned().collect()
    }

    /// Whatever was told is durable.
    fn check_told(&mut self, record: &Record, end: End) {
        for (command, order, code) in std::mem::take(&mut self.fresh) {
            if code == "malformed" {
                // The bytes decide it again.
                continue;
            }
            let recorded = record.result(&command, &order);
            let recorded = recorded.map(Option::unwrap_or_default);
            assert_eq!(recorded, Some(code), "{end:?}: {command} {order}");
        }
    }

    fn check(&self, end: End) {
        assert!(self.open().is_empty(), "{end:?}: {:?}", self.open());
        assert_eq!(
            self.ids.len(),
            self.due.len(),
            "{end:?}: an id for each event"
        );
    }
}
