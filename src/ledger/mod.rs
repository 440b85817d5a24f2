//! The ledger: what is durable. Orders' states and what each command was told outlive the process.
//!
//! Its verbs are few, so that another store can take the embedded one's place: *claim* (what is
//! known of a command and its orders), *send* (these are being sent), *record* (these ended so) and
//! *prune* (forget what is old).
//!
//! One thread owns the store. Whatever has gathered while the last group was written makes the next
//! one: one transaction, one flush to the disk. Claims are answered first and see only what is
//! durable. A write that fails is tried again until it succeeds or the worker stops; meanwhile
//! nothing is sent and nothing is told, for both wait for their record. A ledger that turns out to be
//! damaged, or whose file is gone, is not asked again: what it would say is worth nothing.

pub mod copy;
mod open;
mod runs;
mod schema;
mod sqlite;

use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::watch;
use tracing::{error, info};

use crate::rules::desk::{Claim, Claimed, LaneId, Record, RecordId, SendList};
use crate::rules::order::AccountName;
use crate::rules::poison::{Digest, Past};

pub use open::OpenError;
use sqlite::Store;

/// Requests written in one transaction at most, so that the first of them does not wait for long.
const GROUP_MAX: usize = 1024;
/// Between tries of a write that failed.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// Between prunings, and looks whether the file is still there.
const PRUNE_EVERY: Duration = Duration::from_secs(1);
/// Rows of each table forgotten in one pruning: a step short enough to be unnoticed.
const PRUNE_ROWS: u32 = 500;

/// Calls are remembered for a little longer than the gateway's minute.
const CALLS_KEPT: Duration = Duration::from_secs(70);

/// A list whose sending is durably recorded: the leave to make the call. Only the ledger makes one.
#[derive(Debug)]
#[must_use]
pub struct Sent(SendList);

impl Sent {
    /// The list to be sent.
    pub fn list(&self) -> &SendList {
        &self.0
    }
}

/// What has become durable, or is known.
#[derive(Debug)]
pub enum Done {
    /// The answer to a claim.
    Claimed(Claimed),
    /// This list may be sent.
    Sent(Sent),
    /// This record is durable.
    Recorded(RecordId),
    /// The mark of a trial is durable.
    TrialBegun,
}

/// How the ledger fares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// It takes writes.
    Well,
    /// It does not, for this reason.
    Failing {
        /// Since when.
        since: Timestamp,
        /// What the store says.
        cause: String,
        /// What would mend it.
        remedy: &'static str,
    },
}

const ROOM_NEEDED: &str = "free room on the disk under ledger.url; nothing is sent or told until it takes writes, and then it goes on by itself";
const DISK_NEEDED: &str =
    "check the disk under ledger.url; nothing is sent or told until it takes writes";
const BACKUP_NEEDED: &str = "stop the worker and restore a back-up: wdt-cancel-worker ledger restore FILE; nothing is sent or told until then";

/// What is wrong with the store.
#[derive(Debug, Clone)]
struct Fault {
    cause: String,
    remedy: &'static str,
    /// Trying again mends nothing.
    is_final: bool,
}

impl Fault {
    fn of(error: &rusqlite::Error) -> Self {
        let is_final = open::is_damage(error);
        let full = error.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull);
        Self {
            cause: error.to_string(),
            remedy: match (is_final, full) {
                (true, _) => BACKUP_NEEDED,
                (false, true) => ROOM_NEEDED,
                (false, false) => DISK_NEEDED,
            },
            is_final,
        }
    }

    fn not_in_place() -> Self {
        Self {
            cause: "the ledger's file was removed or replaced while in use".to_owned(),
            remedy: BACKUP_NEEDED,
            is_final: true,
        }
    }
}

enum Request {
    Claim(Claim),
    Send(SendList, Timestamp),
    Record(Record),
    /// A call that carries no orders counts against the minute all the same.
    Call(LaneId, Timestamp),
    BeginRun(Timestamp),
    EndRun,
    BeginTrial(Digest, Timestamp),
    EndTrial(Digest, bool),
}

/// A ledger that was opened, and what it tells of earlier runs.
#[derive(Debug)]
pub struct Opened {
    /// The ledger.
    pub ledger: Ledger,
    /// The calls of the last minute and their ages, for they still count.
    pub recent_calls: Vec<(LaneId, Duration)>,
    /// Runs that died, and what they died with.
    pub past: Past,
}

/// The embedded ledger of one worker.
#[derive(Debug)]
pub struct Ledger {
    requests: Sender<Request>,
    health: watch::Receiver<Health>,
    commits: watch::Receiver<Commits>,
    restored_at: Option<Timestamp>,
    thread: JoinHandle<()>,
}

/// Counts for metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Commits {
    /// Groups made durable.
    pub groups: u64,
    /// Requests in them.
    pub requests: u64,
    /// Time spent in them, in microseconds.
    pub micros: u64,
}

impl Ledger {
    /// Opens or creates the ledger at `path` and starts its thread, which reports to `done`.
    /// `accounts` are in the settings' order: a lane is a place in it.
    ///
    /// # Errors
    /// When the file cannot be used, is another program's or a later version's, or is in use.
    pub fn open(
        path: &Path,
        accounts: Vec<AccountName>,
        retention: Duration,
        done: UnboundedSender<Done>,
    ) -> Result<Opened, OpenError> {
        let mut store = Store::open(path, accounts)?;
        let failed = |error| OpenError::store(path, error);
        let now = Timestamp::now();
        let recent_calls = store.recent_calls(now, CALLS_KEPT).map_err(failed)?;
        let past = store.past(now).map_err(failed)?;
        let restored_at = store.restored_at();
        let (requests, inbox) = channel();
        let (health_tx, health) = watch::channel(Health::Well);
        let (commits_tx, commits) = watch::channel(Commits::default());
        let mut keeper = Keeper {
            store,
            inbox,
            done,
            health: health_tx,
            commits: commits_tx,
            retention,
            pruned_at: Instant::now(),
            in_work: None,
            in_tidying: None,
        };
        let thread = std::thread::Builder::new()
            .name("ledger".into())
            .spawn(move || keeper.run())
            .map_err(OpenError::Thread)?;
        let ledger = Self {
            requests,
            health,
            commits,
            restored_at,
            thread,
        };
        Ok(Opened {
            ledger,
            recent_calls,
            past,
        })
    }

    /// Asks what is known; [`Done::Claimed`] answers.
    pub fn claim(&self, claim: Claim) {
        self.request(Request::Claim(claim));
    }

    /// Records that these are being sent at `at`; [`Done::Sent`] answers.
    pub fn send(&self, list: SendList, at: Timestamp) {
        self.request(Request::Send(list, at));
    }

    /// Records; [`Done::Recorded`] answers.
    pub fn record(&self, record: Record) {
        self.request(Request::Record(record));
    }

    /// Notes a call without orders; nothing answers.
    pub fn note_call(&self, lane: LaneId, at: Timestamp) {
        self.request(Request::Call(lane, at));
    }

    /// Notes that this run takes commands from `at` on; nothing answers.
    pub fn begin_run(&self, at: Timestamp) {
        self.request(Request::BeginRun(at));
    }

    /// Notes that this run did not die; nothing answers.
    pub fn end_run(&self) {
        self.request(Request::EndRun);
    }

    /// Records that a command is put on trial; [`Done::TrialBegun`] answers.
    pub fn begin_trial(&self, command: Digest, at: Timestamp) {
        self.request(Request::BeginTrial(command, at));
    }

    /// Notes that its trial is over, and whether the command is finished; nothing answers.
    pub fn end_trial(&self, command: Digest, is_finished: bool) {
        self.request(Request::EndTrial(command, is_finished));
    }

    fn request(&self, request: Request) {
        // The thread ends only when this sender is gone, so there is always somebody to receive.
        if self.requests.send(request).is_err() {
            error!("the ledger's thread is gone");
        }
    }

    /// How it fares, and when that changes.
    pub fn health(&self) -> watch::Receiver<Health> {
        self.health.clone()
    }

    /// When this ledger, once a back-up, was put to use: orders may have been sent of which it
    /// knows nothing.
    pub fn restored_at(&self) -> Option<Timestamp> {
        self.restored_at
    }

    /// What it wrote so far.
    pub fn commits(&self) -> Commits {
        *self.commits.borrow()
    }

    /// Writes what is waiting, if the store takes it, and closes.
    pub fn close(self) {
        let Self {
            requests, thread, ..
        } = self;
        // The thread ends when nobody can ask it any more.
        drop(requests);
        if thread.join().is_err() {
            error!("the ledger's thread panicked");
        }
    }
}

/// The thread's side.
struct Keeper {
    store: Store,
    inbox: Receiver<Request>,
    done: UnboundedSender<Done>,
    health: watch::Sender<Health>,
    commits: watch::Sender<Commits>,
    retention: Duration,
    pruned_at: Instant,
    /// What keeps the worker's requests from being done.
    in_work: Option<Fault>,
    /// What keeps the old from being forgotten.
    in_tidying: Option<Fault>,
}

impl Keeper {
    fn run(&mut self) {
        loop {
            match self.inbox.recv_timeout(PRUNE_EVERY) {
                Ok(first) => {
                    let mut group = vec![first];
                    group.extend(self.inbox.try_iter().take(GROUP_MAX - 1));
                    self.handle(group);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if self.pruned_at.elapsed() >= PRUNE_EVERY {
                self.pruned_at = Instant::now();
                self.tidy();
            }
        }
    }

    fn handle(&mut self, group: Vec<Request>) {
        let mut claims = Vec::new();
        let mut writes = Vec::new();
        for request in group {
            match request {
                Request::Claim(claim) => claims.push(claim),
                other => writes.push(other),
            }
        }
        if !claims.is_empty() {
            let claimed = self.until_it_works(|store| store.claims(&claims));
            for claimed in claimed.into_iter().flatten() {
                fail_point!("claim-read");
                self.report(Done::Claimed(claimed));
            }
        }
        if writes.is_empty() {
            return;
        }
        let began = Instant::now();
        if self.until_it_works(|store| write(store, &writes)).is_none() {
            return;
        }
        self.commits.send_modify(|commits| {
            commits.groups += 1;
            commits.requests += writes.len() as u64;
            commits.micros += u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        });
        for request in writes {
            match request {
                Request::Send(list, _) => {
                    fail_point!("send-committed");
                    self.report(Done::Sent(Sent(list)));
                }
                Request::Record(record) => {
                    fail_point!("record-committed");
                    self.report(Done::Recorded(record.id));
                }
                Request::BeginTrial(..) => {
                    fail_point!("trial-committed");
                    self.report(Done::TrialBegun);
                }
                Request::Call(..)
                | Request::Claim(_)
                | Request::BeginRun(_)
                | Request::EndRun
                | Request::EndTrial(..) => {}
            }
        }
    }

    fn report(&self, done: Done) {
        // A worker that no longer listens is stopping; what is durable is durable.
        drop(self.done.send(done));
    }

    /// Tries until it works; `None` when the worker stops meanwhile.
    fn until_it_works<T>(&mut self, work: impl Fn(&mut Store) -> rusqlite::Result<T>) -> Option<T> {
        loop {
            if !self.is_beyond_repair() {
                match work(&mut self.store) {
                    Ok(result) => {
                        self.in_work = None;
                        self.show();
                        return Some(result);
                    }
                    Err(error) => self.in_work = Some(Fault::of(&error)),
                }
                self.show();
            }
            if self.done.is_closed() {
                return None;
            }
            std::thread::sleep(RETRY_PAUSE);
        }
    }

    fn is_beyond_repair(&self) -> bool {
        let is_final = |fault: &Option<Fault>| fault.as_ref().is_some_and(|f| f.is_final);
        is_final(&self.in_work) || is_final(&self.in_tidying)
    }

    /// Forgets what is old, and looks whether the file is still there.
    fn tidy(&mut self) {
        if self.is_beyond_repair() {
            return;
        }
        let before = crate::rules::time::earlier(Timestamp::now(), self.retention);
        let pruned = self.store.prune(before, PRUNE_ROWS, CALLS_KEPT);
        self.in_tidying = pruned.err().map(|error| Fault::of(&error));
        if !self.store.is_in_place() {
            self.in_tidying = Some(Fault::not_in_place());
        }
        self.show();
    }

    /// Says a change once, in the log and for readiness.
    fn show(&self) {
        let fault = self.in_work.as_ref().or(self.in_tidying.as_ref());
        let shown = self.health.borrow().clone();
        let (since, shown) = match shown {
            Health::Well => (Timestamp::now(), None),
            Health::Failing { since, cause, .. } => (since, Some(cause)),
        };
        let Some(fault) = fault else {
            if shown.is_some() {
                info!("the ledger works again");
                self.health.send_replace(Health::Well);
            }
            return;
        };
        let Fault { cause, remedy, .. } = fault;
        if shown.as_ref() == Some(cause) {
            return;
        }
        if fault.is_final {
            error!(%cause, remedy, "the ledger cannot be trusted; nothing is sent or told any more");
        } else if self.in_work.is_some() {
            error!(%cause, remedy, "the ledger fails; nothing is sent or told until it works again");
        } else {
            error!(%cause, remedy, "the ledger cannot forget what is old");
        }
        self.health.send_replace(Health::Failing {
            since,
            cause: cause.clone(),
            remedy,
        });
    }
}

fn write(store: &mut Store, writes: &[Request]) -> rusqlite::Result<()> {
    let transaction = store.begin()?;
    for request in writes {
        match request {
            Request::Send(list, at) => {
                transaction.send(list, *at)?;
                fail_point!("send-written");
            }
            Request::Record(record) => {
                transaction.record(record)?;
                fail_point!("record-written");
            }
            Request::Call(lane, at) => transaction.call(*lane, *at)?,
            Request::BeginRun(at) => transaction.begin_run(*at)?,
            Request::EndRun => transaction.end_run()?,
            Request::BeginTrial(command, at) => transaction.begin_trial(*command, *at)?,
            Request::EndTrial(command, is_finished) => {
                transaction.end_trial(*command, *is_finished)?;
            }
            Request::Claim(_) => {}
        }
    }
    transaction.commit()
}
