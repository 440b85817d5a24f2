//! Kills at random moments under load, with a gateway on a bad day and every fifth command a
//! repetition. The books of the gateway, of the events and of the ledger at each death must agree.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::binary::killable;
use super::book::{Book, Call, Fate, noise, too_many};
use super::plan::{self, ACCOUNTS, Plan, Sent};
use super::record::Record;
use super::support::amqp::{Amqp, COMMANDS, Command, DEAD, Inbox};
use super::support::broker::{Queue, Vhost};
use super::support::chance::chance;
use super::support::eventually::eventually_ok;
use super::support::gateway::{Account, Answer, CANCEL, Gateway};
use super::support::orders::Orders;
use super::support::scene::LATER;
use super::support::worker::{Setup, Worker};
use super::told::Told;

/// Once in so many runs the worker is told to stop and not killed, as when it is deployed. After
/// three deaths in a row it handles redelivered commands one at a time, so both manners are met.
const STOP_EVERY: usize = 8;
/// Longest time between a run's first call and its kill.
const LIFE_MAX_MS: u64 = 400;
/// Of a hundred runs, so many are killed within a moment of their start.
const EARLY_KILLS: u8 = 10;
const EARLY_MAX_MS: u64 = 150;
/// A run that has not called for anything by then is killed as well.
const FIRST_CALL_LIMIT: Duration = Duration::from_secs(1);
/// So many orders that are not told are enough: a run lives on until they are fewer, for some time.
const BACKLOG_MAX: usize = 400;
const CATCH_UP_LIMIT: Duration = Duration::from_millis(500);
/// Of a hundred runs, so many get no new commands, so that kills meet a worker with little to do.
const QUIET_RUNS: u8 = 20;
/// Once the kills are over, everything is told within this time.
const PEACE_LIMIT: Duration = Duration::from_secs(150);

/// Kills, peace, and what must hold then.
pub async fn random_kills() {
    killable().await;
    let mut rng = chance();
    let orders = Orders::new();
    let plan = Plan::new(&mut rng, &orders);
    let mut stage = Stage::set(&orders, rng.u64(..), &plan).await;
    let began = Instant::now();
    let mut left = plan.commands.as_slice();
    let mut deaths: BTreeMap<&str, usize> = BTreeMap::new();
    let (all, mut kills, mut stops) = (plan::kills(), 0, 0);
    while kills < all {
        let mut worker = stage.start();
        if rng.u8(..100) >= QUIET_RUNS && stage.told.open() < BACKLOG_MAX {
            let busy_runs = ((all - kills) * (100 - usize::from(QUIET_RUNS))).div_ceil(100);
            let (now, later) = left.split_at(left.len().div_ceil(busy_runs));
            left = later;
            stage.publish(now).await;
        }
        if rng.u8(..100) >= EARLY_KILLS {
            stage.first_call().await;
            tokio::time::sleep(Duration::from_millis(rng.u64(..LIFE_MAX_MS))).await;
            stage.catches_up().await;
        } else {
            tokio::time::sleep(Duration::from_millis(rng.u64(..EARLY_MAX_MS))).await;
        }
        if (kills + stops) % STOP_EVERY == STOP_EVERY - 1 {
            // Before it listens for signals, one would end it like any program.
            worker.logs(LATER, "connected to the broker").await;
            assert_eq!(worker.terminate(LATER).await, 0);
            stage.book.run_ended();
            stops += 1;
        } else {
            worker.kill9();
            kills += 1;
            *deaths.entry(stage.autopsy()).or_default() += 1;
        }
    }
    let killing = began.elapsed();
    println!("{kills} kills and {stops} stops within {killing:.0?}; killed {deaths:?}");
    println!("{} commands were left to be published in peace", left.len());
    stage.no_law_is_broken();
    stage.publish(left).await;
    stage.in_peace(&plan).await;

    let counts = stage.book.counts();
    println!("{plan}; all told within {:.0?}", began.elapsed());
    println!("gateway: {counts:?}");
    println!("events: {:?}", stage.told.figures());
    stage.no_law_is_broken();
    assert!(
        counts.lost > all && counts.not_done > all,
        "the gateway was not lossy enough"
    );
    assert!(counts.left_sent > all, "too few kills met a call");
}

/// A worker's surroundings.
struct Stage {
    vhost: Vhost,
    amqp: Amqp,
    dead: Inbox,
    book: Book,
    gateway: Gateway,
    setup: Setup,
    told: Told,
    readers: JoinSet<()>,
}

impl Stage {
    async fn set(orders: &Orders, seed: u64, plan: &Plan) -> Self {
        let vhost = Vhost::fresh().await;
        let book = Book::new(orders, seed, bad_day);
        let gateway = book.gateway(ACCOUNTS.map(Account::named).to_vec());
        let mut setup = Setup::new(&vhost.url(), &book.url(&gateway))
            .binary(killable().await)
            .set("WDT_API__CALLS_PER_MINUTE", 0)
            .set("WDT_API__CONCURRENCY", 4)
            .set("WDT_API__TIMEOUT", "700ms");
        for name in ACCOUNTS {
            setup = setup.account(name, &Account::named(name));
        }
        let amqp = Amqp::connect(&vhost.url()).await;
        let mut worker = setup.start();
        worker.wait_ready(LATER).await;
        assert_eq!(worker.terminate(LATER).await, 0);
        book.run_ended();
        let dead = amqp.dead().await;
        let told = Told::new(&book, plan);
        let mut readers = JoinSet::new();
        let results = amqp.results().await;
        readers.spawn(told.clone().read(results));
        Self {
            vhost,
            amqp,
            dead,
            book,
            gateway,
            setup,
            told,
            readers,
        }
    }

    fn start(&self) -> Worker {
        let url = self.book.url(&self.gateway);
        self.setup.with("WDT_API__URL", url).start()
    }

    async fn publish(&self, commands: &[Sent]) {
        let messages: Vec<Command> = commands.iter().map(Sent::message).collect();
        self.told.await_these(commands);
        self.amqp.send_all(COMMANDS, &messages).await;
    }

    /// Until the run has called for something; not for ever, since all its accounts may be told to
    /// leave the gateway alone.
    async fn first_call(&self) {
        let called = async {
            while self.book.calls_of_run() == 0 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        // A run that has nothing to call for is killed as well.
        let _ = timeout(FIRST_CALL_LIMIT, called).await;
    }

    /// Until the backlog is short, within a limit: kills must not outrun the work.
    async fn catches_up(&self) {
        let short = async {
            while self.told.open() >= BACKLOG_MAX {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        // One that is still behind is killed as well.
        let _ = timeout(CATCH_UP_LIMIT, short).await;
    }

    /// What the dead run left, and in what it died.
    fn autopsy(&mut self) -> &'static str {
        let record = Record::of(self.setup.dir());
        self.told.check_durable(&record);
        let kind = match (record.sent().len(), self.book.calls_of_run()) {
            (1.., 0) => "before its first call, others' orders in doubt",
            (1.., _) => "with calls unanswered or unrecorded",
            (0, 0) => "before its first call",
            (0, _) if self.told.open() > 0 => "between calls, with commands in hand",
            (0, _) => "with nothing in hand",
        };
        self.book.run_died(&record);
        kind
    }

    fn no_law_is_broken(&self) {
        assert_eq!(self.book.breaches(), [""; 0]);
        assert_eq!(self.told.breaches(), [""; 0]);
    }

    /// No more kills, and the gateway has a good day: what is left is told, and what was parked is
    /// sent again, as operators do.
    async fn in_peace(&mut self, plan: &Plan) {
        self.book.play(good_day);
        let mut worker = self.start();
        worker.wait_ready(LATER).await;
        self.settles().await;
        let parked = self.parked().await;
        self.told.check_parked(&parked);
        println!("{} commands were parked, and sent again", parked.len());
        let again: Vec<Command> = plan
            .commands
            .iter()
            .filter(|sent| sent.is_first && parked.contains(&sent.id))
            .map(Sent::message)
            .collect();
        self.amqp.send_all(COMMANDS, &again).await;
        self.settles().await;
        let parked = self.parked().await;
        self.told.check_parked(&parked);
        self.told.check_final();
        assert_eq!(worker.terminate(LATER).await, 0);
        self.readers.shutdown().await;
    }

    /// The commands' queue is empty, and each event was read.
    async fn settles(&self) {
        self.vhost.queue_holds(PEACE_LIMIT, COMMANDS, 0, 0).await;
        eventually_ok(LATER, "each event is read", async || {
            let queues = self.vhost.queues().await;
            let is_read =
                |q: &Queue| [COMMANDS, DEAD].contains(&&*q.name) || (q.ready, q.unacked) == (0, 0);
            if queues.iter().all(is_read) {
                return Ok(());
            }
            Err(queues)
        })
        .await;
    }

    /// The ids in the dead-letter queue, which is emptied.
    async fn parked(&mut self) -> BTreeSet<String> {
        let mut ids = BTreeSet::new();
        loop {
            while let Some(message) = self.dead.next(Duration::from_millis(100)).await {
                ids.insert(message.message_id.expect("a parked command has an id"));
            }
            let queue = self.vhost.queue(DEAD).await.expect("the dead-letter queue");
            if (queue.ready, queue.unacked) == (0, 0) {
                return ids;
            }
        }
    }
}

/// Three calls of ten go wrong, in every way that is known.
fn bad_day(call: &Call<'_>, rng: &mut fastrand::Rng) -> Fate {
    let dice = rng.u8(..100);
    let [frequency, throttled] = too_many();
    if call.method != CANCEL {
        return match dice {
            0..6 => Fate::Lost {
                carried_out: false,
                answer: noise(rng.u8(..)),
            },
            6..8 => Fate::NotDone(throttled),
            _ => in_some_ms(rng.u64(..4)),
        };
    }
    if call.orders.iter().any(|order| order.starts_with('B')) {
        // The list as a whole is refused for one of its orders.
        return Fate::NotDone(Answer::status(100, "单号不能为空"));
    }
    match dice {
        0..16 => Fate::Lost {
            carried_out: rng.bool(),
            answer: noise(rng.u8(..)),
        },
        16..18 => Fate::NotDone(frequency),
        18..20 => Fate::NotDone(throttled),
        20..25 => {
            let busy = |order: &String| (order.clone(), "单据正在处理，请稍后重试".to_string());
            let busy: Vec<_> = call.orders.iter().map(busy).collect();
            Fate::NotDone(Answer::orders(&[], &busy))
        }
        25..30 => in_some_ms(rng.u64(150..400)),
        _ => in_some_ms(rng.u64(5..60)),
    }
}

fn good_day(call: &Call<'_>, rng: &mut fastrand::Rng) -> Fate {
    if call.method == CANCEL && call.orders.iter().any(|order| order.starts_with('B')) {
        return Fate::NotDone(Answer::status(100, "单号不能为空"));
    }
    in_some_ms(rng.u64(2..20))
}

fn in_some_ms(time: u64) -> Fate {
    Fate::DoneBy(Box::new(move |answer| {
        answer.after(Duration::from_millis(time))
    }))
}
