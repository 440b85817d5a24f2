//! The shared ledger: a PostgreSQL database that many workers use.
//!
//! A thread serves the worker, with two tasks, each on a connection of its own. The *keeper* handles
//! its requests in groups, as the embedded ledger's thread does: claims first, in one transaction,
//! then everything else, in another; nothing is sent or told before its commit. The *tender* renews
//! the worker's lease, frees what dead workers held, and forgets what is old.
//!
//! What is tried again is safe to be done twice: rows are put with all that they hold, and a claim
//! replaces the same worker's. So an error, even one that leaves open whether the commit was made,
//! is answered by trying again, on a new connection, until it works. Meanwhile the worker takes no
//! commands.
//!
//! A call needs a place among those that the account's workers may make together. It is taken in
//! the transaction that records the sending, so it costs no step of its own. When there is none the
//! keeper asks again for a while and then hands the call back to the desk, which may decide
//! otherwise by then.

mod connect;
mod lease;
pub mod operate;
mod pauses;
pub(super) mod read;
mod rows;
mod schema;
mod store;
mod tend;

use std::cell::RefCell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{error, info, warn};

use super::journal::{Head, NOTES_WAIT, Page, Scribe};
use super::{
    Board, Commits, Done, GROUP_MAX, Leave, Ledger, Opened, RETRY_PAUSE, Request, Sent, Timings,
};
use crate::rules::desk::{AccountPolicy, CallId, LaneId};
use crate::rules::dry_run::Mode;
use crate::rules::lane::Paused;
use crate::rules::poison::{Digest, Past, REMEMBERED};
use crate::rules::time::earlier;
use connect::Db;
pub use connect::DbError;
pub use lease::Until;
use lease::{Lease, Term};
use store::{Accounts, Outcome};

/// How long a start waits for a database that is just being started itself.
const START: Duration = Duration::from_secs(30);
/// At the stop, what is left is written and given back within this; a lease ends by itself.
const CLOSE: Duration = Duration::from_secs(10);
/// A call that finds no place is asked for again for so long, and then handed back.
const ASKED_FOR: Duration = Duration::from_secs(1);
/// After two workers got in each other's way.
const CONFLICT_PAUSE: Duration = Duration::from_millis(20);

/// A chain of the journal is not written to after so long a rest; a new one is begun. So one that
/// rested for longer than that is nobody's any more, and can be forgotten.
const CHAIN_IDLE: Duration = Duration::from_secs(24 * 60 * 60);

/// Why the shared ledger cannot be used. Each says what would do.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The database cannot be asked, or the URL not be read.
    #[error("the ledger under ledger.url cannot be used: {0}")]
    Db(DbError),
    /// A later version made its tables, and says that this one cannot work with them.
    #[error(
        "the ledger under ledger.url has schema {found}, which needs workers of schema {oldest} or later; this version has {}: start a later version",
        schema::VERSION
    )]
    Newer {
        /// The last migration that was made.
        found: i32,
        /// The oldest schema whose workers can work with it.
        oldest: i32,
    },
    /// Dry runs made it, and this is none.
    #[error(
        "the ledger under ledger.url is one of dry runs, which cancelled nothing of what it says; name another database in ledger.url"
    )]
    OfDryRuns,
    /// This is a dry run, and it is a real one.
    #[error(
        "the ledger under ledger.url is not one of dry runs, and this is one; name another database in ledger.url, or a file"
    )]
    OfLiveRuns,
    /// Its thread cannot be started.
    #[error("the ledger's thread cannot be started: {0}")]
    Thread(std::io::Error),
    /// The role may not create tables.
    #[error(
        "the ledger under ledger.url has schema {found}, this version needs {}, and its role may not make it ({why}); run with a role that may: wdt-cancel-worker ledger migrate",
        schema::VERSION
    )]
    MayNotMigrate {
        /// The last migration that was made.
        found: i32,
        /// What the database says.
        why: DbError,
    },
}

// By hand, for its words are in ours already.
impl From<DbError> for OpenError {
    fn from(error: DbError) -> Self {
        Self::Db(error)
    }
}

/// How the shared ledger is used.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where it is.
    pub url: String,
    /// In the lanes' order.
    pub accounts: Vec<AccountPolicy>,
    /// `api.timeout`: the longest call.
    pub timeout: Duration,
    /// `ledger.retention`.
    pub retention: Duration,
}

/// Opens the shared ledger, makes its tables where they are missing, and starts the tasks that serve
/// this worker, which report to `done`. A database that does not answer is waited for half a minute.
///
/// # Errors
/// When it cannot be used, or a later version's worker is needed for it.
pub async fn open(settings: Settings, done: UnboundedSender<Done>) -> Result<Opened, OpenError> {
    open_for(Mode::Live, settings, done).await
}

/// The same for a dry run, if that is the mode: a ledger is of one mode for ever.
///
/// # Errors
/// As [`open`], and when the ledger is one of the other mode.
pub async fn open_for(
    mode: Mode,
    settings: Settings,
    done: UnboundedSender<Done>,
) -> Result<Opened, OpenError> {
    let db = Db::new(&settings.url)?;
    let term = Term::new(settings.timeout);
    let end = Instant::now() + START;
    let (lease, restored_at, past, paused) = loop {
        match begin(&db, mode, term, &settings.accounts).await {
            Ok(begun) => break begun,
            Err(OpenError::Db(error)) if error.may_pass() && Instant::now() < end => {
                warn!(%error, "the ledger cannot be opened yet; trying again");
                tokio::time::sleep(RETRY_PAUSE).await;
            }
            Err(error) => return Err(error),
        }
    };
    let lease = Arc::new(lease);
    let (board, health) = Board::new();
    let board = Arc::new(Mutex::new(board));
    let (commits_tx, commits) = watch::channel(Commits::default());
    let timings = Timings::new();
    let (requests, inbox) = unbounded_channel();
    let noted = Arc::new(AtomicUsize::new(0));
    let keeper = Keeper {
        db: db.clone(),
        lease: Arc::clone(&lease),
        accounts: Accounts(settings.accounts),
        inbox,
        done,
        board: Arc::clone(&board),
        commits: commits_tx,
        timings: timings.clone(),
        waiting: Vec::new(),
        noted: Page::default(),
        noted_at: Instant::now(),
        noted_bytes: 0,
        noted_by_all: Arc::clone(&noted),
        chain: RefCell::new(Chain::begin(name())),
    };
    let watch = pauses::Watch::new(keeper.accounts.0.clone(), &paused, keeper.done.clone());
    let tender = tend::run(db, lease, board, settings.retention, watch);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(OpenError::Thread)?;
    let thread = std::thread::Builder::new()
        .name("ledger".into())
        .spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = keeper.run() => {}
                    () = tender => {}
                }
            });
        })
        .map_err(OpenError::Thread)?;
    let hands = Hands { requests, thread };
    let ledger = Ledger {
        keeper: super::Hands::Shared(hands),
        health,
        commits,
        timings,
        restored_at,
        noted,
    };
    Ok(Opened {
        ledger,
        // Every worker's calls are counted in the database.
        recent_calls: Vec::new(),
        past,
        paused,
    })
}

type Begun = (Lease, Option<Timestamp>, Past, Vec<(LaneId, Paused)>);

async fn begin(
    db: &Db,
    mode: Mode,
    term: Term,
    accounts: &[AccountPolicy],
) -> Result<Begun, OpenError> {
    ready(db, mode).await?;
    Ok(db
        .step(async |client| {
            lease::collect(client).await?;
            let past = past(client).await?;
            let marks = "SELECT restored_at FROM wdt.marks";
            let restored_at: Option<i64> = client.query_one(marks, &[]).await?.get(0);
            let restored_at = restored_at.map(rows::timestamp).transpose()?;
            warn_of_loose_writes(client).await?;
            let lease = Lease::begin(client, name(), term).await?;
            let paused = pauses::read(client, accounts).await?;
            Ok((lease, restored_at, past, paused))
        })
        .await?)
}

/// Makes what is missing of the tables, and sees to it that they are of this mode.
async fn ready(db: &Db, mode: Mode) -> Result<(), OpenError> {
    let found = db.step(schema::find).await?;
    if found.version > 0 {
        is_of(db, mode).await?;
    }
    if !found.is_known() {
        let (found, oldest) = (found.version, found.oldest);
        return Err(OpenError::Newer { found, oldest });
    }
    if found.version >= schema::VERSION {
        return Ok(());
    }
    let made = db.step_within(operate::LONG, async |client| {
        schema::migrate(client, mode).await
    });
    match made.await {
        // Another worker may have been the first.
        Ok(_) => is_of(db, mode).await,
        Err(why) if why.is_denied() => Err(OpenError::MayNotMigrate {
            found: found.version,
            why,
        }),
        Err(error) => Err(error.into()),
    }
}

async fn is_of(db: &Db, mode: Mode) -> Result<(), OpenError> {
    match (mode, db.step(schema::mode).await?) {
        (Mode::Live, Mode::Live) | (Mode::DryRun, Mode::DryRun) => Ok(()),
        (Mode::Live, Mode::DryRun) => Err(OpenError::OfDryRuns),
        (Mode::DryRun, Mode::Live) => Err(OpenError::OfLiveRuns),
    }
}

/// A database that does not flush loses what was told with the machine's power.
async fn warn_of_loose_writes(client: &deadpool_postgres::Object) -> Result<(), DbError> {
    let loose = "SELECT name FROM pg_settings
         WHERE name IN ('fsync', 'full_page_writes') AND setting = 'off'";
    for row in client.query(loose, &[]).await? {
        let setting: &str = row.get(0);
        warn!(
            setting,
            "the ledger's database does not flush what it writes: a loss of power loses what was told; set it to on"
        );
    }
    Ok(())
}

/// What earlier runs left, of whichever worker: a command with which one dies kills the next.
async fn past(client: &deadpool_postgres::Object) -> Result<Past, DbError> {
    let since = earlier(Timestamp::now(), REMEMBERED).as_millisecond();
    let runs = "SELECT ended FROM wdt.runs WHERE began_at > $1 AND ended <> 0 ORDER BY id DESC";
    let runs = client.query(runs, &[&since]).await?;
    let deaths = runs
        .iter()
        .take_while(|run| run.get::<_, i16>(0) == 2)
        .count();
    let trials = client
        .query("SELECT command, died FROM wdt.trials WHERE died > 0", &[])
        .await?
        .iter()
        .filter_map(|row| {
            let digest = row.get::<_, &[u8]>(0).try_into().ok()?;
            Some((Digest(digest), rows::count(row.get(1))))
        })
        .collect();
    Ok(Past {
        deaths: u32::try_from(deaths).unwrap_or(u32::MAX),
        trials,
    })
}

/// For people who look into `wdt.workers`.
fn name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}/{}", host.trim(), std::process::id())
}

/// The worker's side of the thread.
#[derive(Debug)]
pub(super) struct Hands {
    requests: UnboundedSender<Request>,
    thread: JoinHandle<()>,
}

impl Hands {
    /// Whether somebody takes it.
    pub(super) fn request(&self, request: Request) -> bool {
        self.requests.send(request).is_ok()
    }

    pub(super) async fn close(self) {
        // The thread ends when nobody can ask it any more.
        drop(self.requests);
        let ended = tokio::task::spawn_blocking(move || self.thread.join());
        match tokio::time::timeout(CLOSE, ended).await {
            Ok(Ok(Ok(()))) => {}
            Ok(_) => error!("the ledger's thread panicked"),
            Err(_) => warn!(
                "the ledger could not be closed in time; what this worker had in hand is free when its lease is over"
            ),
        }
    }
}

/// Both tasks tell how they fare.
type SharedBoard = Arc<Mutex<Board>>;

fn on<T>(board: &SharedBoard, tell: impl FnOnce(&mut Board) -> T) -> T {
    // Nothing panics while it is held.
    tell(
        &mut board
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner()),
    )
}

/// A call that found no place.
struct Waiting {
    request: Request,
    since: Instant,
    ask_at: Instant,
}

struct Keeper {
    db: Db,
    lease: Arc<Lease>,
    accounts: Accounts,
    inbox: UnboundedReceiver<Request>,
    done: UnboundedSender<Done>,
    board: SharedBoard,
    commits: watch::Sender<Commits>,
    timings: Timings,
    waiting: Vec<Waiting>,
    /// For the journal, since this time.
    noted: Page,
    noted_at: Instant,
    /// What it took, of what all that waits takes.
    noted_bytes: usize,
    noted_by_all: Arc<AtomicUsize>,
    chain: RefCell<Chain>,
}

/// The journal's chain that this worker writes.
struct Chain {
    name: String,
    worker: String,
    began_at: Timestamp,
    scribe: Scribe,
    /// After an error nobody knows whether the last row is durable; the database does.
    is_known: bool,
}

impl Chain {
    fn begin(worker: String) -> Self {
        let name = uuid::Uuid::new_v4().to_string();
        let now = Timestamp::now();
        Self {
            scribe: Scribe::new(Head::of(&name), now),
            name,
            worker,
            began_at: now,
            is_known: true,
        }
    }

    fn has_rested(&self) -> bool {
        let last = Timestamp::from_millisecond(self.scribe.head.at).unwrap_or(self.began_at);
        last < earlier(Timestamp::now(), CHAIN_IDLE)
    }
}

impl Keeper {
    async fn run(mut self) {
        let mut is_open = true;
        while is_open {
            let mut group = Vec::new();
            let ask_at = self.waiting.iter().map(|waiting| waiting.ask_at).min();
            let write_at = (!self.noted.is_empty()).then(|| self.noted_at + NOTES_WAIT);
            tokio::select! {
                first = self.inbox.recv() => match first {
                    Some(first) => group.push(first),
                    None => is_open = false,
                },
                () = until(ask_at) => {}
                () = until(write_at) => {}
            }
            while group.len() < GROUP_MAX
                && let Ok(more) = self.inbox.try_recv()
            {
                group.push(more);
            }
            self.handle(group).await;
        }
        let lease = &self.lease;
        if let Err(error) = self.db.step(async |client| lease.end(client).await).await {
            info!(%error, "what this worker had in hand is free when its lease is over");
        }
    }

    async fn handle(&mut self, group: Vec<Request>) {
        let mut claims = Vec::new();
        let mut writes = Vec::new();
        let now = Instant::now();
        let mut since = Vec::new();
        // Those that have waited are the first.
        for waiting in self.waiting.extract_if(.., |waiting| waiting.ask_at <= now) {
            writes.push(waiting.request);
            since.push(waiting.since);
        }
        for request in group {
            match request {
                Request::Claim(claim) => claims.push(claim),
                Request::Note(notes, at) => {
                    if self.noted.is_empty() {
                        self.noted_at = now;
                    }
                    self.noted_bytes += notes.bytes();
                    self.noted.noted(at, notes);
                }
                request => {
                    writes.push(request);
                    since.push(now);
                }
            }
        }
        if !claims.is_empty() {
            let began = Instant::now();
            let claimed = self
                .until_it_works(async |client, keeper| {
                    store::claim(client, &keeper.accounts, &keeper.lease, &claims).await
                })
                .await;
            self.timings.claim.observe(began.elapsed().as_secs_f64());
            for claimed in claimed.unwrap_or_default() {
                self.report(Done::Claimed(claimed));
            }
        }
        // At the stop it is written at once.
        let is_due = self.noted_at + NOTES_WAIT <= now || self.inbox.is_closed();
        if writes.is_empty() && (self.noted.is_empty() || !is_due) {
            return;
        }
        let noted = std::mem::take(&mut self.noted);
        let began = Instant::now();
        let written = self
            .until_it_works(async |client, keeper| {
                if !keeper.lease.calls_until().is_ahead() {
                    keeper.lease.renew(client).await?;
                }
                // Of before the commit: whatever is renewed meanwhile only lengthens it.
                let until = keeper.lease.calls_until();
                let at_work = (&keeper.accounts, &*keeper.lease);
                let outcomes = store::write(client, at_work, &writes, &keeper.chain, &noted);
                Ok((outcomes.await?, until))
            })
            .await;
        let bytes = std::mem::take(&mut self.noted_bytes);
        self.noted_by_all.fetch_sub(bytes, Ordering::Relaxed);
        let Some((outcomes, until)) = written else {
            return;
        };
        self.commits.send_modify(|commits| {
            commits.groups += 1;
            commits.requests += writes.len() as u64;
        });
        self.timings.commit.observe(began.elapsed().as_secs_f64());
        for ((request, since), outcome) in writes.into_iter().zip(since).zip(outcomes) {
            self.tell(request, since, outcome, until);
        }
    }

    fn tell(&mut self, request: Request, since: Instant, outcome: Outcome, until: Until) {
        match (request, outcome) {
            (Request::Send(list, _), Outcome::Taken(place)) => {
                let leave = leave(place, until);
                self.report(Done::Sent(Sent { list, leave }));
            }
            (Request::Send(list, _), Outcome::Lost(lost)) => {
                self.report(Done::NotSent(list.call, lost));
            }
            (Request::Ask(call, _), Outcome::Taken(place)) => {
                self.report(Done::Granted(call, leave(place, until)));
            }
            (request, Outcome::Wait(pause)) => self.wait(request, since, pause),
            (Request::Record(record), Outcome::Lost(lost)) => {
                // After a standstill others may have recorded more: what is told is asked anew.
                let lost = if self.lease.calls_until().is_ahead() {
                    lost
                } else {
                    store::orders_of(&record)
                };
                self.report(Done::Recorded(record.id, lost));
            }
            (Request::BeginTrial(..), _) => {
                self.report(Done::TrialBegun);
            }
            (_, Outcome::Written | Outcome::Lost(_) | Outcome::Taken(_)) => {}
        }
    }

    fn wait(&mut self, request: Request, since: Instant, pause: Duration) {
        let now = Instant::now();
        if now < since + ASKED_FOR {
            let ask_at = now + pause.min(ASKED_FOR);
            self.waiting.push(Waiting {
                request,
                since,
                ask_at,
            });
        } else if let Some(call) = call_of(&request) {
            self.report(Done::NoPlace(call));
        }
    }

    fn report(&self, done: Done) {
        // A worker that no longer listens is stopping; what is durable is durable.
        drop(self.done.send(done));
    }

    /// Tries until it works; `None` when the worker stops meanwhile.
    async fn until_it_works<T>(
        &self,
        work: impl AsyncFn(&deadpool_postgres::Object, &Self) -> Result<T, DbError>,
    ) -> Option<T> {
        loop {
            let done = self.db.step(async |client| work(client, self).await).await;
            let pause = match done {
                Ok(done) => {
                    on(&self.board, Board::works);
                    return Some(done);
                }
                Err(error) if error.is_conflict() => {
                    if matches!(error, DbError::LeaseLost) {
                        let lease = &self.lease;
                        // If that fails, so does the next try.
                        drop(self.db.step(async |client| lease.renew(client).await).await);
                    }
                    CONFLICT_PAUSE
                }
                Err(error) => {
                    on(&self.board, |board| board.work_fails(error.fault()));
                    RETRY_PAUSE
                }
            };
            if self.done.is_closed() {
                return None;
            }
            tokio::time::sleep(pause).await;
        }
    }
}

fn leave(place: super::Place, until: Until) -> Leave {
    Leave {
        place: Some(place),
        until: Some(until),
    }
}

fn call_of(request: &Request) -> Option<CallId> {
    match request {
        Request::Send(list, _) => Some(list.call),
        Request::Ask(call, _) => Some(*call),
        Request::Claim(_)
        | Request::Record(_)
        | Request::Call(..)
        | Request::Ended(_)
        | Request::Release(_)
        | Request::Note(..)
        | Request::Quiet(..)
        | Request::Careful(_)
        | Request::BeginRun(_)
        | Request::EndRun
        | Request::BeginTrial(..)
        | Request::EndTrial(..)
        | Request::Pause(..) => None,
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
