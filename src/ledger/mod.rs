//! The ledger: what is durable. Orders' states and what each command was told outlive the process.
//!
//! Its verbs are few, so that there can be two stores: *claim* (what is known of a command and its
//! orders), *send* (these are being sent), *record* (these ended so), *release* (these are in hand no
//! more) and *prune* (forget what is old). The *embedded* one is a file of one worker, the *shared*
//! one ([`postgres`]) a database of many.
//!
//! One thread owns the embedded store. Whatever has gathered while the last group was written makes the next
//! one: one transaction, one flush to the disk. Claims are answered first and see only what is
//! durable. A write that fails is tried again until it succeeds or the worker stops; meanwhile
//! nothing is sent and nothing is told, for both wait for their record. A ledger that turns out to be
//! damaged, or whose file is gone, is not asked again: what it would say is worth nothing.

pub mod audit;
pub mod copy;
pub mod inspect;
pub mod journal;
mod keys;
mod open;
pub mod pauses;
pub mod postgres;
mod reader;
mod runs;
mod schema;
mod sqlite;
pub mod story;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::watch;
use tracing::{error, info};

use crate::rules::desk::{CallId, Claim, Claimed, Fence, LaneId, Record, RecordId, SendList};
use crate::rules::dry_run::Mode;
use crate::rules::lane::Paused;
use crate::rules::order::{AccountName, OrderNo};
use crate::rules::poison::{Digest, Past};

use journal::{NOTES_WAIT, Notes, Page, WAITING_MAX};
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

/// A ledger that was not asked to write for so long is made to, to know that it can.
const PROVE_EVERY: Duration = Duration::from_secs(10);
/// The shortest time that is told apart, and how many times twice as long.
const TIMED_FROM_SECONDS: f64 = 0.0005;
const TIMED_BUCKETS: u16 = 15;

/// Calls are remembered for a little longer than the gateway's minute.
const CALLS_KEPT: Duration = Duration::from_secs(70);

/// A list whose sending is durably recorded: the leave to make the call. Only the ledger makes one.
#[derive(Debug)]
#[must_use]
pub struct Sent {
    list: SendList,
    leave: Leave,
}

impl Sent {
    /// The list to be sent.
    pub fn list(&self) -> &SendList {
        &self.list
    }

    /// The leave to make the call, and whether it may still be begun.
    pub fn leave(self) -> Leave {
        self.leave
    }
}

/// The leave to make one call. Whoever has it gives its place back when the call has ended, or is
/// not made: [`Ledger::call_ended`].
#[derive(Debug)]
#[must_use]
pub struct Leave {
    place: Option<Place>,
    until: Option<postgres::Until>,
}

impl Leave {
    /// Of a ledger that belongs to one worker, which counts its calls itself.
    const FREE: Self = Self {
        place: None,
        until: None,
    };

    /// The call may still be begun: it will be over when this worker's lease is. Ask right before
    /// the call.
    pub fn is_in_time(&self) -> bool {
        self.until.is_none_or(postgres::Until::is_ahead)
    }
}

/// A call's place among those that an account's workers may make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    id: i64,
    /// It counts against the minute after it ended.
    counts: bool,
}

/// What has become durable, or is known.
#[derive(Debug)]
pub enum Done {
    /// The answer to a claim.
    Claimed(Claimed),
    /// This list may be sent.
    Sent(Sent),
    /// This list is not recorded and not to be sent, because these of its orders are lost.
    NotSent(CallId, Vec<(LaneId, OrderNo)>),
    /// This look-up or probe may be made.
    Granted(CallId, Leave),
    /// No call could be made for a while; nothing is recorded of this one.
    NoPlace(CallId),
    /// This record is durable, except what it holds of these orders, which are lost.
    Recorded(RecordId, Vec<(LaneId, OrderNo)>),
    /// The mark of a trial is durable.
    TrialBegun,
    /// These accounts are paused from now on, or are not any more; it is durable.
    Paused(Vec<(LaneId, Option<Paused>)>),
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

/// What is wrong, for readiness and the log.
#[derive(Debug)]
struct Board {
    health: watch::Sender<Health>,
    /// What keeps the worker's requests from being done.
    in_work: Option<Fault>,
    /// What keeps the old from being forgotten.
    in_tidying: Option<Fault>,
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

    /// Time or an operator may mend it.
    fn passing(cause: String, remedy: &'static str) -> Self {
        Self {
            cause,
            remedy,
            is_final: false,
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

#[derive(Debug)]
enum Request {
    Claim(Claim),
    Send(SendList, Timestamp),
    Record(Record),
    /// A call that carries no orders counts against the minute all the same.
    Call(LaneId, Timestamp),
    /// Leave is asked for such a call.
    Ask(CallId, LaneId),
    /// A call has ended.
    Ended(Place),
    Release(Vec<(LaneId, OrderNo, Fence)>),
    /// For the journal, up to this time. It waits for whatever is written next.
    Note(Notes, Timestamp),
    /// The account is left alone for so long.
    Quiet(LaneId, Duration),
    /// The account cannot be called as things are.
    Careful(LaneId),
    BeginRun(Timestamp),
    EndRun,
    BeginTrial(Digest, Timestamp),
    EndTrial(Digest, bool),
    Pause(LaneId, Option<Paused>),
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
    /// Accounts that an operator paused.
    pub paused: Vec<(LaneId, Paused)>,
}

/// The ledger, as the worker has it: whatever it is asked goes to whoever keeps the store.
#[derive(Debug)]
pub struct Ledger {
    keeper: Hands,
    health: watch::Receiver<Health>,
    commits: watch::Receiver<Commits>,
    timings: Timings,
    restored_at: Option<Timestamp>,
    /// Bytes of what was noted and is not written yet.
    noted: Arc<AtomicUsize>,
}

/// Who keeps the store.
#[derive(Debug)]
enum Hands {
    /// A thread, for a file.
    Embedded {
        requests: Sender<Request>,
        /// What is answered without asking.
        done: UnboundedSender<Done>,
        thread: JoinHandle<()>,
    },
    /// Tasks, for a database.
    Shared(postgres::Hands),
}

/// Counts for metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Commits {
    /// Groups made durable.
    pub groups: u64,
    /// Requests in them.
    pub requests: u64,
}

/// How long the store took, in seconds, by what it did.
#[derive(Debug, Clone)]
pub struct Timings {
    /// All of it, for metrics.
    pub shown: Family<Operation, Histogram>,
    /// To make a group of writes durable.
    commit: Histogram,
    /// To answer a group of claims.
    claim: Histogram,
}

/// What the store did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Operation {
    operation: &'static str,
}

impl Timings {
    fn new() -> Self {
        let shown: Family<Operation, Histogram> = Family::new_with_constructor(|| {
            Histogram::new(exponential_buckets(TIMED_FROM_SECONDS, 2.0, TIMED_BUCKETS))
        });
        let of = |operation| shown.get_or_create_owned(&Operation { operation });
        Self {
            commit: of("commit"),
            claim: of("claim"),
            shown,
        }
    }
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
        Self::open_for(Mode::Live, path, accounts, retention, done)
    }

    /// The same for a dry run, if that is the mode: a ledger is of one mode for ever.
    ///
    /// # Errors
    /// As [`Ledger::open`], and when the ledger is one of the other mode.
    pub fn open_for(
        mode: Mode,
        path: &Path,
        accounts: Vec<AccountName>,
        retention: Duration,
        done: UnboundedSender<Done>,
    ) -> Result<Opened, OpenError> {
        let mut store = Store::open(mode, path, accounts)?;
        let failed = |error| OpenError::store(path, error);
        let now = Timestamp::now();
        let recent_calls = store.recent_calls(now, CALLS_KEPT).map_err(failed)?;
        let past = store.past(now).map_err(failed)?;
        let paused = store.paused().map_err(failed)?;
        let restored_at = store.restored_at();
        let (requests, inbox) = channel();
        let (board, health) = Board::new();
        let (commits_tx, commits) = watch::channel(Commits::default());
        let timings = Timings::new();
        let noted = Arc::new(AtomicUsize::new(0));
        let mut keeper = Keeper {
            store,
            noted: Page::default(),
            noted_bytes: 0,
            noted_by_all: Arc::clone(&noted),
            noted_at: Instant::now(),
            inbox,
            done: done.clone(),
            board,
            commits: commits_tx,
            timings: timings.clone(),
            retention,
            pruned_at: Instant::now(),
            wrote_at: Instant::now(),
            failed: None,
        };
        let thread = std::thread::Builder::new()
            .name("ledger".into())
            .spawn(move || keeper.run())
            .map_err(OpenError::Thread)?;
        let keeper = Hands::Embedded {
            requests,
            done,
            thread,
        };
        let ledger = Self {
            keeper,
            health,
            commits,
            timings,
            restored_at,
            noted,
        };
        Ok(Opened {
            ledger,
            recent_calls,
            past,
            paused,
        })
    }

    /// Asks what is known; [`Done::Claimed`] answers.
    pub fn claim(&self, claim: Claim) {
        self.request(Request::Claim(claim));
    }

    /// Records that these are being sent at `at`; [`Done::Sent`], [`Done::NotSent`] or
    /// [`Done::NoPlace`] answers.
    pub fn send(&self, list: SendList, at: Timestamp) {
        self.request(Request::Send(list, at));
    }

    /// Records; [`Done::Recorded`] answers.
    pub fn record(&self, record: Record) {
        self.request(Request::Record(record));
    }

    /// Asks for leave to make a call without orders; [`Done::Granted`] or [`Done::NoPlace`] answers.
    pub fn ask(&self, call: CallId, lane: LaneId, at: Timestamp) {
        match &self.keeper {
            Hands::Embedded { done, .. } => {
                // That it is noted for the next run need not be waited for.
                self.request(Request::Call(lane, at));
                // A worker that no longer listens is stopping.
                drop(done.send(Done::Granted(call, Leave::FREE)));
            }
            Hands::Shared(_) => self.request(Request::Ask(call, lane)),
        }
    }

    /// Gives back what a call took, be it that it ended or is not made; nothing answers.
    pub fn call_ended(&self, leave: Leave) {
        if let Some(place) = leave.place {
            self.request(Request::Ended(place));
        }
    }

    /// Lets other workers have these; nothing answers.
    pub fn release(&self, orders: Vec<(LaneId, OrderNo, Fence)>) {
        if self.is_shared() {
            self.request(Request::Release(orders));
        }
    }

    /// Tells other workers that the gateway wants this account to be left alone; nothing answers.
    pub fn quiet(&self, lane: LaneId, time: Duration) {
        if self.is_shared() {
            self.request(Request::Quiet(lane, time));
        }
    }

    /// Tells other workers that this account's settings are wrong; nothing answers.
    pub fn careful(&self, lane: LaneId) {
        if self.is_shared() {
            self.request(Request::Careful(lane));
        }
    }

    /// Other workers use it as well.
    pub fn is_shared(&self) -> bool {
        matches!(self.keeper, Hands::Shared(_))
    }

    /// Commands are better left in the broker: another worker may be able to record them.
    pub fn is_away(&self) -> bool {
        self.is_shared() && *self.health.borrow() != Health::Well
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

    /// Writes into the journal what was seen until `at`, with whatever is written next, or within
    /// a second; nothing answers. While the ledger takes no writes, what is too much to be kept is
    /// left out.
    pub fn note(&self, notes: Notes, at: Timestamp) {
        let bytes = notes.bytes();
        let waiting = self.noted.fetch_add(bytes, Ordering::Relaxed);
        // One by itself is always taken, however large its command is.
        if waiting > 0 && waiting + bytes > WAITING_MAX {
            self.noted.fetch_sub(bytes, Ordering::Relaxed);
            tracing::debug!(
                bytes,
                "the journal lacks what was seen while the ledger was not written"
            );
            return;
        }
        self.request(Request::Note(notes, at));
    }

    /// Records that an operator wants no calls of this account, or wants them again;
    /// [`Done::Paused`] tells when it is durable, to every worker that shares the ledger.
    pub fn pause(&self, lane: LaneId, paused: Option<Paused>) {
        self.request(Request::Pause(lane, paused));
    }

    fn request(&self, request: Request) {
        let taken = match &self.keeper {
            Hands::Embedded { requests, .. } => requests.send(request).is_ok(),
            Hands::Shared(hands) => hands.request(request),
        };
        // They end only when nobody can ask any more, so there is always somebody to receive.
        if !taken {
            error!("nobody keeps the ledger any more");
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

    /// How long its work takes.
    pub fn timings(&self) -> Timings {
        self.timings.clone()
    }

    /// What it wrote so far.
    pub fn commits(&self) -> Commits {
        *self.commits.borrow()
    }

    /// Writes what is waiting, if the store takes it, and closes.
    pub async fn close(self) {
        match self.keeper {
            Hands::Embedded {
                requests, thread, ..
            } => {
                // The thread ends when nobody can ask it any more.
                drop(requests);
                // Only a disk that hangs makes it wait.
                let ended = tokio::task::spawn_blocking(move || thread.join()).await;
                if !matches!(ended, Ok(Ok(()))) {
                    error!("the ledger's thread panicked");
                }
            }
            Hands::Shared(hands) => hands.close().await,
        }
    }
}

/// The thread's side.
struct Keeper {
    store: Store,
    /// For the journal, since this time.
    noted: Page,
    noted_at: Instant,
    /// What it took, of what all that waits takes.
    noted_bytes: usize,
    noted_by_all: Arc<AtomicUsize>,
    inbox: Receiver<Request>,
    done: UnboundedSender<Done>,
    board: Board,
    commits: watch::Sender<Commits>,
    timings: Timings,
    retention: Duration,
    pruned_at: Instant,
    /// When it last took a write.
    wrote_at: Instant,
    /// What the store could not do when it was last asked to.
    failed: Option<Work>,
}

/// What the store is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    Reads,
    Writes,
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
                Err(RecvTimeoutError::Disconnected) => {
                    self.write_notes();
                    return;
                }
            }
            if self.noted_at.elapsed() >= NOTES_WAIT {
                self.write_notes();
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
                Request::Note(notes, at) => self.take_note(notes, at),
                other => writes.push(other),
            }
        }
        if !claims.is_empty() {
            let began = Instant::now();
            let claimed = self.until_it_works(Work::Reads, |store| store.claims(&claims));
            self.timings.claim.observe(began.elapsed().as_secs_f64());
            for claimed in claimed.into_iter().flatten() {
                fail_point!("claim-read");
                self.report(Done::Claimed(claimed));
            }
        }
        if writes.is_empty() {
            return;
        }
        let began = Instant::now();
        if !self.write(&writes) {
            return;
        }
        self.commits.send_modify(|commits| {
            commits.groups += 1;
            commits.requests += writes.len() as u64;
        });
        self.timings.commit.observe(began.elapsed().as_secs_f64());
        self.wrote_at = Instant::now();
        for request in writes {
            match request {
                Request::Send(list, _) => {
                    fail_point!("send-committed");
                    let leave = Leave::FREE;
                    self.report(Done::Sent(Sent { list, leave }));
                }
                Request::Record(record) => {
                    fail_point!("record-committed");
                    self.report(Done::Recorded(record.id, Vec::new()));
                }
                Request::BeginTrial(..) => {
                    fail_point!("trial-committed");
                    self.report(Done::TrialBegun);
                }
                Request::Pause(lane, paused) => {
                    self.report(Done::Paused(vec![(lane, paused)]));
                }
                Request::Call(..)
                | Request::Claim(_)
                | Request::BeginRun(_)
                | Request::EndRun
                | Request::EndTrial(..)
                | Request::Ask(..)
                | Request::Ended(_)
                | Request::Release(_)
                | Request::Note(..)
                | Request::Quiet(..)
                | Request::Careful(_) => {}
            }
        }
    }

    fn take_note(&mut self, notes: Notes, at: Timestamp) {
        if self.noted.is_empty() {
            self.noted_at = Instant::now();
        }
        self.noted_bytes += notes.bytes();
        self.noted.noted(at, notes);
    }

    /// What waits for the journal, and has waited for long enough.
    fn write_notes(&mut self) {
        if !self.noted.is_empty() {
            // It matters to nobody's order whether it was written.
            self.write(&[]);
        }
    }

    /// False when the worker stops meanwhile.
    fn write(&mut self, writes: &[Request]) -> bool {
        let noted = std::mem::take(&mut self.noted);
        let written = self.until_it_works(Work::Writes, |store| write(store, writes, &noted));
        let bytes = std::mem::take(&mut self.noted_bytes);
        self.noted_by_all.fetch_sub(bytes, Ordering::Relaxed);
        written.is_some()
    }

    fn report(&self, done: Done) {
        // A worker that no longer listens is stopping; what is durable is durable.
        drop(self.done.send(done));
    }

    /// Tries until it works; `None` when the worker stops meanwhile.
    fn until_it_works<T>(
        &mut self,
        kind: Work,
        work: impl Fn(&mut Store) -> rusqlite::Result<T>,
    ) -> Option<T> {
        loop {
            if !self.board.is_beyond_repair() {
                match work(&mut self.store) {
                    Ok(result) => {
                        self.works(kind);
                        return Some(result);
                    }
                    Err(error) => self.fails(kind, &error),
                }
            }
            if self.done.is_closed() {
                return None;
            }
            std::thread::sleep(RETRY_PAUSE);
        }
    }

    /// That it can be read says nothing of whether it can be written.
    fn works(&mut self, kind: Work) {
        if kind == Work::Writes || self.failed == Some(Work::Reads) {
            self.failed = None;
            self.board.works();
        }
    }

    fn fails(&mut self, kind: Work, error: &rusqlite::Error) {
        if self.failed != Some(Work::Writes) {
            self.failed = Some(kind);
        }
        self.board.work_fails(Fault::of(error));
    }

    /// Forgets what is old, and looks whether the file is still there.
    fn tidy(&mut self) {
        if self.board.is_beyond_repair() {
            return;
        }
        let before = crate::rules::time::earlier(Timestamp::now(), self.retention);
        let pruned = self.store.prune(before, PRUNE_ROWS, CALLS_KEPT);
        let mut fault = pruned.err().map(|error| Fault::of(&error));
        if !self.store.is_in_place() {
            fault = Some(Fault::not_in_place());
        }
        self.board.tidied(fault);
        if self.wrote_at.elapsed() >= PROVE_EVERY {
            self.prove();
        }
    }

    /// Makes an empty group durable: a ledger of which nothing is asked shows nothing of a disk that
    /// has become full or can only be read.
    fn prove(&mut self) {
        if self.board.is_beyond_repair() {
            return;
        }
        match write(&mut self.store, &[], &Page::default()) {
            Ok(()) => {
                self.works(Work::Writes);
                self.wrote_at = Instant::now();
            }
            Err(error) => self.fails(Work::Writes, &error),
        }
    }
}

impl Board {
    fn new() -> (Self, watch::Receiver<Health>) {
        let (health, shown) = watch::channel(Health::Well);
        let board = Self {
            health,
            in_work: None,
            in_tidying: None,
        };
        (board, shown)
    }

    fn works(&mut self) {
        if self.in_work.take().is_some() {
            self.show();
        }
    }

    fn work_fails(&mut self, fault: Fault) {
        self.in_work = Some(fault);
        self.show();
    }

    fn tidied(&mut self, fault: Option<Fault>) {
        self.in_tidying = fault;
        self.show();
    }

    fn is_beyond_repair(&self) -> bool {
        let is_final = |fault: &Option<Fault>| fault.as_ref().is_some_and(|f| f.is_final);
        is_final(&self.in_work) || is_final(&self.in_tidying)
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

fn write(store: &mut Store, writes: &[Request], noted: &Page) -> rusqlite::Result<()> {
    let mut transaction = store.begin()?;
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
            Request::Pause(lane, paused) => transaction.pause(*lane, paused.as_ref())?,
            // Claims were answered, and the others are for a ledger that others use, too.
            Request::Claim(_)
            | Request::Ask(..)
            | Request::Ended(_)
            | Request::Release(_)
            | Request::Note(..)
            | Request::Quiet(..)
            | Request::Careful(_) => {}
        }
    }
    transaction.commit(noted)
}
