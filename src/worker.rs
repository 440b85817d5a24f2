//! The worker: arrive → admit → claim → send → call → judge → record → tell → acknowledge.
//!
//! The desk decides, the edges act, and this loop joins them. It reads what has happened, asks the
//! desk what is to be done, and hands that to whoever does it; it never waits for one of them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use jiff::Timestamp;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;
use tracing::{debug, error, info, warn};
use uuid::Uuid;

use crate::admin::history::History;
use crate::admin::metrics::{self, Metrics, Pause};
use crate::admin::{self, PauseWish, Queue, Snapshot, Trouble};
use crate::broker::answer::{Publication, Settlement};
use crate::broker::link::{Link, LinkState};
use crate::broker::{BrokerEvent, Delivered};
use crate::gateway::client::{Client, Ended, Reader};
use crate::gateway::sign;
use crate::gateway::wire::ServerTime;
use crate::ledger::journal::{CallEnded, Notes};
use crate::ledger::{self, Done, Leave, Ledger, Sent};
use crate::rules::admit::{self, Admission, House};
use crate::rules::desk::{
    Action, Adjustment, CallId, Desk, Fate, Intake, LaneId, Note, Telling, Ticket,
};
use crate::rules::dry_run::Mode;
use crate::rules::judge::{CallEnd, CancelLists, FoundOrder};
use crate::rules::lane::{Health, Method, Paused, Turn};
use crate::rules::order::{AccountName, CommandId, OrderNo, Outcome};
use crate::rules::pattern::Pattern;
use crate::rules::poison::{Gate, Manner, SURVIVED, Step, UNOPENED_MAX};
use crate::rules::time::{Mono, Now};
use crate::telemetry::spans::{Answered, Arrival, Callee, ServerUrl, Spans};
use crate::telemetry::traces::Exports;
use crate::telemetry::writer::Lines;

/// Deadlines, ages and held deliveries are looked at this often.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// Events read before the desk is asked again: enough to make groups of what has gathered.
const GROUP_MAX: usize = 512;
/// With so many commands in hand, what happens within [`GATHER`] is handled together: in fewer turns,
/// commits, packets. With fewer, each event is handled at once.
const BUSY: usize = 64;
/// See [`BUSY`]. The timer's own step.
const GATHER: Duration = Duration::from_millis(1);

/// Both clocks, since the worker started.
#[derive(Debug, Clone, Copy)]
pub struct Clock(Instant);

impl Clock {
    /// Starts now.
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// Both clocks.
    pub fn now(self) -> Now {
        Now {
            mono: Mono(self.0.elapsed()),
            wall: Timestamp::now(),
        }
    }

    fn instant(self, at: Mono) -> Instant {
        self.0 + at.0
    }
}

/// What the settings say of commands.
#[derive(Debug, Clone)]
pub struct Rules {
    /// In the lanes' order.
    pub accounts: Vec<AccountName>,
    /// `amqp.reply_to_allow`.
    pub reply_to_allow: Vec<Pattern>,
}

impl House for Rules {
    fn accounts(&self) -> impl Iterator<Item = &AccountName> {
        self.accounts.iter()
    }

    fn allows_reply_to(&self, queue: &str) -> bool {
        self.reply_to_allow
            .iter()
            .any(|pattern| pattern.matches(queue))
    }
}

/// A call without orders, until there is leave to make it.
enum Asked {
    LookUp(LaneId, OrderNo),
    Probe(LaneId),
}

/// How a call ended, by its kind.
enum Answer {
    Cancel(LaneId, CallId, Vec<OrderNo>, Ended<CancelLists>),
    LookUp(LaneId, CallId, OrderNo, Ended<Vec<FoundOrder>>),
    Probe(LaneId, CallId, Ended<ServerTime>),
}

/// How the worker ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// What was in flight is finished, and the rest is back in the queue.
    Drained,
    /// The drain's time passed, or a second signal came; so much was left.
    Left {
        /// Calls without an answer.
        calls: usize,
        /// Commands that were not acknowledged; the broker gives them out again.
        commands: usize,
    },
}

/// The accounts at their gateways, one for each lane. In a dry run there is none that could cancel.
pub enum Clients {
    /// They may be told to cancel.
    Live(Vec<Arc<Client>>),
    /// They may be asked.
    DryRun(Vec<Arc<Reader>>),
}

impl Clients {
    fn mode(&self) -> Mode {
        match self {
            Self::Live(_) => Mode::Live,
            Self::DryRun(_) => Mode::DryRun,
        }
    }

    fn canceller(&self, lane: LaneId) -> Option<Arc<Client>> {
        match self {
            Self::Live(clients) => Some(Arc::clone(&clients[lane.0])),
            Self::DryRun(_) => None,
        }
    }

    fn reader(&self, lane: LaneId) -> Arc<Reader> {
        match self {
            Self::Live(clients) => clients[lane.0].reader(),
            Self::DryRun(readers) => Arc::clone(&readers[lane.0]),
        }
    }

    fn of(&self, lane: LaneId) -> &Reader {
        match self {
            Self::Live(clients) => &clients[lane.0],
            Self::DryRun(readers) => &readers[lane.0],
        }
    }

    fn clock_offsets(&self) -> Vec<Option<i64>> {
        match self {
            Self::Live(clients) => clients.iter().map(|c| c.clock_offset_seconds()).collect(),
            Self::DryRun(readers) => readers.iter().map(|r| r.clock_offset_seconds()).collect(),
        }
    }
}

/// Everything the loop joins.
pub struct Worker {
    /// Decides.
    pub desk: Desk,
    /// Decides which deliveries are opened, after runs that died.
    pub gate: Gate,
    /// What the settings say of commands.
    pub rules: Rules,
    /// One for each lane.
    pub clients: Clients,
    /// Makes durable.
    pub ledger: Ledger,
    /// What has become durable.
    pub done: UnboundedReceiver<Done>,
    /// Brings commands and takes answers.
    pub link: Link,
    /// What the broker's side reports.
    pub events: UnboundedReceiver<BrokerEvent>,
    /// Tells the time.
    pub clock: Clock,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// What the operators' page shows of the last hour.
    pub history: Arc<History>,
    /// What operators want.
    pub pauses: UnboundedReceiver<PauseWish>,
    /// Tells of each command and call.
    pub spans: Spans,
    /// The log's way out, which counts what it drops.
    pub log: Option<Lines>,
    /// What becomes of spans, where there are any.
    pub exports: Option<Arc<Exports>>,
    /// Settings that were read anew.
    pub adjustments: UnboundedReceiver<Adjustment>,
    /// For the admin listener.
    pub snapshot: watch::Sender<Snapshot>,
}

/// What the loop keeps for itself.
struct Running {
    calls: JoinSet<(Answer, Leave)>,
    /// Calls for which the ledger is asked for leave.
    asked: HashMap<CallId, Asked>,
    /// Deliveries that wait at the gate.
    unopened: HashMap<Ticket, Delivered>,
    /// This run counts as one that died, if it ends now.
    counts: bool,
    unroutable_since: Option<Timestamp>,
    /// For the ledger's journal; it gets it before what follows from it is recorded.
    notes: Notes,
    /// When an event was last confirmed.
    told_at: Option<Timestamp>,
    /// The newest timestamp of a command that was delivered for the first time.
    newest: Option<Timestamp>,
    /// Since when each check of readiness is as it is.
    since: admin::health::Since,
}

impl Worker {
    /// Works until `stop` says so, then drains for at most `drain`. `stop` counts the signals: a
    /// second one ends the drain.
    ///
    /// # Errors
    /// When the broker refuses us before there was a session: settings or permissions are wrong.
    pub async fn run(
        mut self,
        mut stop: watch::Receiver<u32>,
        drain: Duration,
    ) -> anyhow::Result<Stopped> {
        let mut running = Running {
            calls: JoinSet::new(),
            asked: HashMap::new(),
            unopened: HashMap::new(),
            counts: true,
            unroutable_since: None,
            notes: Notes::default(),
            told_at: None,
            newest: None,
            since: admin::health::Since::default(),
        };
        self.ledger.begin_run(self.clock.now().wall);
        let mut sweep = tokio::time::interval(SWEEP_EVERY);
        sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut drain_ends: Option<Instant> = None;
        loop {
            let now = self.clock.now();
            self.pass_gate(&mut running, now, drain_ends.is_some());
            self.write_down(&mut running, now);
            for action in self.desk.turn(now) {
                self.act(&mut running, now, action);
            }
            self.link.set_intake(self.intake());
            if drain_ends.is_some() && self.desk.is_idle() {
                self.close().await;
                return Ok(Stopped::Drained);
            }
            let wake = self
                .desk
                .wake_at(now.mono)
                .unwrap_or(now.mono + SWEEP_EVERY);
            tokio::select! {
                Some(event) = self.events.recv() => self.heard(&mut running, event),
                Some(done) = self.done.recv() => self.became_durable(&mut running, done),
                Some(PauseWish { lane, paused }) = self.pauses.recv() => self.ledger.pause(lane, paused),
                Some(done) = running.calls.join_next() => self.answered(&mut running, done)?,
                error = self.link.failed() => {
                    self.end_run(&mut running);
                    self.close().await;
                    return Err(error.into());
                }
                () = tokio::time::sleep_until(self.clock.instant(wake)) => {}
                _ = sweep.tick() => {
                    self.sweep(&mut running);
                    self.publish_snapshot(&mut running);
                }
                Some(adjustment) = self.adjustments.recv() => {
                    self.desk.adjust(self.clock.now().mono, &adjustment);
                }
                Ok(()) = stop.changed() => {
                    if *stop.borrow() >= 2 && !self.desk.is_idle() {
                        return Ok(self.left(&running));
                    }
                    info!(drain = ?drain, "stopping: no new commands and calls, finishing what is in flight");
                    self.end_run(&mut running);
                    drain_ends = Some(Instant::now() + drain);
                    self.desk.drain();
                    fail_point!("drain");
                }
                () = sleep_until(drain_ends) => return Ok(self.left(&running)),
            }
            if self.desk.commands() >= BUSY {
                self.gather(&mut running).await?;
            }
            self.hear_all(&mut running)?;
            if drain_ends.is_some() {
                self.desk.give_back_idle();
            }
        }
    }

    /// Lets more happen before the next turn. What a call waits for, or many orders wait for, is
    /// handled at once: a list that may be sent, the answer to one.
    async fn gather(&mut self, running: &mut Running) -> anyhow::Result<()> {
        let over = tokio::time::sleep(GATHER);
        tokio::pin!(over);
        loop {
            tokio::select! {
                () = &mut over => return Ok(()),
                Some(done) = self.done.recv() => {
                    let is_urgent = matches!(done, Done::Sent(_) | Done::Granted(..));
                    self.became_durable(running, done);
                    if is_urgent {
                        return Ok(());
                    }
                }
                Some(done) = running.calls.join_next() => return self.answered(running, done),
            }
        }
    }

    /// Whatever else has happened by now, within bounds.
    fn hear_all(&mut self, running: &mut Running) -> anyhow::Result<()> {
        for _ in 0..GROUP_MAX {
            let Ok(event) = self.events.try_recv() else {
                break;
            };
            self.heard(running, event);
        }
        for _ in 0..GROUP_MAX {
            let Ok(done) = self.done.try_recv() else {
                break;
            };
            self.became_durable(running, done);
        }
        while let Some(done) = running.calls.try_join_next() {
            self.answered(running, done)?;
        }
        Ok(())
    }

    async fn close(self) {
        fail_point!("drained");
        self.link.close().await;
        fail_point!("disconnected");
        // Nobody listens any more: a ledger that takes no writes is not waited for.
        drop(self.done);
        self.ledger.close().await;
        self.spans.close().await;
    }

    /// Whether commands are to be taken from the queue. Those that could not be recorded are better
    /// left there.
    fn intake(&self) -> Intake {
        match self.desk.intake() {
            Intake::Open if self.ledger.is_away() => Intake::Paused,
            intake => intake,
        }
    }

    fn left(&self, running: &Running) -> Stopped {
        Stopped::Left {
            calls: running.calls.len(),
            commands: self.desk.load().commands,
        }
    }

    // ---- the gate ----

    fn pass_gate(&mut self, running: &mut Running, now: Now, is_draining: bool) {
        let steps = if is_draining {
            self.gate.give_back(now.mono, Duration::ZERO)
        } else {
            let desk = &self.desk;
            let rest = |ticket| desk.rest_of(now.mono, ticket);
            self.gate.turn(now.mono, rest, || desk.is_still(now.mono))
        };
        self.take_steps(running, now, steps);
    }

    fn take_steps(
        &mut self,
        running: &mut Running,
        now: Now,
        steps: impl IntoIterator<Item = Step>,
    ) {
        for step in steps {
            match step {
                Step::Open(ticket, manner) => {
                    if let Some(delivered) = running.unopened.remove(&ticket) {
                        self.open(running, now, &delivered, manner);
                    }
                }
                Step::Mark(digest) => self.ledger.begin_trial(digest, now.wall),
                Step::Over(digest, is_finished) => self.ledger.end_trial(digest, is_finished),
                Step::Return(ticket) => {
                    running.unopened.remove(&ticket);
                    self.metrics.returned();
                    self.link.settle(Settlement::Return(ticket));
                }
            }
        }
    }

    /// From here on, an end of the process is not the commands' fault.
    fn end_run(&self, running: &mut Running) {
        if std::mem::take(&mut running.counts) {
            self.ledger.end_run();
        }
    }

    fn sweep(&mut self, running: &mut Running) {
        let now = self.clock.now();
        self.desk.sweep(now);
        let back = self.gate.give_back(now.mono, UNOPENED_MAX);
        self.take_steps(running, now, back);
        if running.counts && now.mono.0 >= SURVIVED {
            self.end_run(running);
            self.gate.survived();
        }
    }

    // ---- what has happened ----

    fn heard(&mut self, running: &mut Running, event: BrokerEvent) {
        let now = self.clock.now();
        match event {
            BrokerEvent::Delivered(delivered) => self.arrived(running, now, *delivered),
            BrokerEvent::Told {
                ticket,
                command,
                place,
                fate,
            } => {
                self.note_fate(running, fate);
                self.metrics.event_sent(sent(fate));
                if fate == Fate::Confirmed {
                    running.told_at = Some(now.wall);
                    self.note_told(now, ticket, place);
                    if let Some(event) = self.desk.telling(command, place) {
                        let account = event.lane.map(|lane| self.desk.account(lane));
                        let order_no = event.order_no.map(|order_no| &**order_no);
                        let told = (event.outcome, event.replayed);
                        running
                            .notes
                            .told(account, event.command_id, order_no, told);
                    }
                }
                self.desk.told(now.mono, command, place, fate);
            }
            BrokerEvent::Parked { command, fate } => {
                self.note_fate(running, fate);
                self.metrics.copy_sent(sent(fate));
                if fate == Fate::Confirmed
                    && let Some((lane, command_id)) = self.desk.parking(command)
                {
                    let account = lane.map(|lane| self.desk.account(lane));
                    running.notes.parked(account, command_id);
                }
                self.desk.parked(now.mono, command, fate);
            }
            BrokerEvent::Lost => {
                self.desk.session_lost(now.mono);
                self.spans.session_lost();
                let steps = self.gate.session_lost();
                self.take_steps(running, now, steps);
                running.unopened.clear();
            }
        }
    }

    fn arrived(&mut self, running: &mut Running, now: Now, delivered: Delivered) {
        let (ticket, returns) = (delivered.ticket, delivered.returns);
        let digest = || delivered.digest();
        if !delivered.redelivered {
            running.newest = running.newest.max(delivered.published());
        }
        if self.gate.arrive(now.mono, ticket, returns, digest) {
            self.open(running, now, &delivered, Manner::AsUsual);
        } else {
            running.unopened.insert(ticket, delivered);
        }
    }

    fn open(&mut self, running: &mut Running, now: Now, delivered: &Delivered, manner: Manner) {
        let (raw, mut properties) = match manner {
            Manner::AsUsual | Manner::GiveUp => delivered.read(),
            Manner::Bury => (Err("not read".into()), delivered.properties()),
        };
        let arrival = Arrival {
            ticket: delivered.ticket,
            redelivered: delivered.redelivered,
            bytes: delivered.bytes(),
            published: delivered.published(),
        };
        self.spans.arrived(now, arrival, &mut properties);
        let fresh_id = || {
            let id = Uuid::new_v4().to_string();
            CommandId::new(&id).unwrap_or_else(|| unreachable!("a UUID has 36 characters"))
        };
        let admission = admit::admit(raw, properties, fresh_id, &self.rules);
        let (ticket, redelivered) = (delivered.ticket, delivered.redelivered);
        note_asked(&mut running.notes, &admission);
        self.note_manner(manner, admission.envelope().command_id.as_str());
        self.spans.admitted(ticket, &admission);
        match manner {
            Manner::AsUsual => {
                self.metrics.admitted(&admission);
                self.desk.arrive(now, ticket, redelivered, admission);
            }
            Manner::GiveUp => {
                self.metrics.admitted(&admission);
                self.desk.give_up(now, ticket, redelivered, admission);
            }
            Manner::Bury => {
                let envelope = Arc::clone(admission.envelope());
                self.desk.bury(now, ticket, envelope);
            }
        }
        fail_point!("arrived");
    }

    fn became_durable(&mut self, running: &mut Running, done: Done) {
        match done {
            Done::Claimed(claimed) => self.desk.claimed(self.clock.now(), claimed),
            Done::TrialBegun => {
                let now = self.clock.now();
                let step = self.gate.marked(now.mono);
                self.take_steps(running, now, step);
            }
            Done::Sent(sent) => self.call(running, sent),
            Done::NotSent(call, lost) => self.desk.not_sent(call, &lost),
            Done::Granted(call, leave) => self.granted(running, call, leave),
            Done::NoPlace(call) => match running.asked.remove(&call) {
                Some(_) => self.desk.not_asked(call),
                None => self.desk.not_made(call),
            },
            Done::Recorded(id, lost) => self.desk.recorded(id, &lost),
            Done::Paused(lanes) => {
                for (lane, paused) in lanes {
                    self.pause(lane, paused);
                }
                self.publish_snapshot(running);
            }
        }
    }

    /// Calls, with the proof that it is recorded.
    fn call(&mut self, running: &mut Running, sent: Sent) {
        let list = sent.list();
        let (lane, call) = (list.lane, list.call);
        let orders: Vec<OrderNo> = list.orders.iter().map(|row| row.order_no.clone()).collect();
        let leave = sent.leave();
        if !leave.is_in_time() {
            // Nothing is lost yet, but the call might outlive the lease.
            self.ledger.call_ended(leave);
            return self.desk.not_sent(call, &[]);
        }
        let Some(client) = self.clients.canceller(lane) else {
            error!("a dry run was to cancel orders, and does not");
            self.ledger.call_ended(leave);
            return self.desk.not_sent(call, &[]);
        };
        self.note_begin(lane, call, Method::Cancel);
        running.calls.spawn(async move {
            fail_point!("call");
            let ended = client.cancel(&orders).await;
            fail_point!("call-answered");
            (Answer::Cancel(lane, call, orders, ended), leave)
        });
    }

    /// Makes a call that carries no orders.
    fn granted(&mut self, running: &mut Running, call: CallId, leave: Leave) {
        let Some(asked) = running.asked.remove(&call) else {
            return self.ledger.call_ended(leave);
        };
        if !leave.is_in_time() {
            self.ledger.call_ended(leave);
            return self.desk.not_asked(call);
        }
        match asked {
            Asked::LookUp(lane, order_no) => {
                self.note_begin(lane, call, Method::LookUp);
                let client = self.clients.reader(lane);
                running.calls.spawn(async move {
                    fail_point!("look-up");
                    let ended = client.look_up(&order_no).await;
                    fail_point!("look-up-answered");
                    (Answer::LookUp(lane, call, order_no, ended), leave)
                });
            }
            Asked::Probe(lane) => {
                self.note_begin(lane, call, Method::Probe);
                let client = self.clients.reader(lane);
                running.calls.spawn(async move {
                    let ended = client.now().await;
                    (Answer::Probe(lane, call, ended), leave)
                });
            }
        }
    }

    fn answered(
        &mut self,
        running: &mut Running,
        done: Result<(Answer, Leave), JoinError>,
    ) -> anyhow::Result<()> {
        let now = self.clock.now();
        let (answer, leave) = done.context("a call's task failed")?;
        self.ledger.call_ended(leave);
        match answer {
            Answer::Cancel(lane, call, orders, ended) => {
                self.note_call(lane, call, Method::Cancel, &orders, &ended);
                self.desk.cancel_answered(now, call, &ended.end);
                let call = self.call_ended(lane, call, now, &ended);
                running.notes.answered(call, &orders, &ended.end);
            }
            Answer::LookUp(lane, call, order_no, ended) => {
                let orders = std::slice::from_ref(&order_no);
                self.note_call(lane, call, Method::LookUp, orders, &ended);
                self.desk.look_up_answered(now, call, &ended.end);
                let call = self.call_ended(lane, call, now, &ended);
                running.notes.looked_up(call, &order_no, &ended.end);
            }
            Answer::Probe(lane, call, ended) => {
                self.note_call(lane, call, Method::Probe, &[], &ended);
                self.desk.probe_answered(now, call, &ended.end);
            }
        }
        Ok(())
    }

    fn pause(&mut self, lane: LaneId, paused: Option<Paused>) {
        let account = self.desk.account(lane).as_str();
        match &paused {
            Some(paused) => info!(account, by = &*paused.by, "the account is paused"),
            None => info!(account, "the account is resumed"),
        }
        if paused.is_some() {
            self.metrics.paused(account, Pause::Operator);
        }
        self.desk.pause(lane, paused);
    }

    // ---- what is to be done ----

    fn act(&mut self, running: &mut Running, now: Now, action: Action) {
        match action {
            Action::Claim(claim) => self.ledger.claim(claim),
            Action::Send(list) => self.ledger.send(list, now.wall),
            Action::Record(record) => self.ledger.record(record),
            Action::LookUp(call, lane, order_no) => {
                running.asked.insert(call, Asked::LookUp(lane, order_no));
                self.ledger.ask(call, lane, now.wall);
            }
            Action::Probe(call, lane) => {
                running.asked.insert(call, Asked::Probe(lane));
                self.ledger.ask(call, lane, now.wall);
            }
            Action::Tell(telling) => {
                self.note_event(&telling);
                self.link.publish(Publication::Event(Box::new(telling)));
            }
            Action::Park(parking) => {
                self.spans.parks(&parking);
                self.link.publish(Publication::Park(Box::new(parking)));
            }
            Action::Acknowledge(finished) => {
                self.note_finished(now, finished.ticket());
                self.link.settle(Settlement::Acknowledge(finished));
            }
            Action::Release(orders) => self.ledger.release(orders),
            Action::Return(ticket) => {
                self.metrics.returned();
                self.spans.returned(now, ticket);
                self.link.settle(Settlement::Return(ticket));
            }
            Action::Note(lane, note) => self.note(lane, note),
        }
    }

    /// Into the ledger's journal, before what follows from it is recorded.
    fn write_down(&self, running: &mut Running, now: Now) {
        if !running.notes.is_empty() {
            self.ledger
                .note(std::mem::take(&mut running.notes), now.wall);
        }
    }

    fn call_ended<T>(
        &self,
        lane: LaneId,
        call: CallId,
        now: Now,
        ended: &Ended<T>,
    ) -> CallEnded<'_> {
        CallEnded {
            account: self.desk.account(lane),
            call,
            at: now.wall,
            duration: ended.duration,
            http_status: ended.http_status,
        }
    }

    // ---- what people see ----

    fn note_manner(&self, manner: Manner, command_id: &str) {
        match manner {
            Manner::AsUsual => {}
            Manner::GiveUp => error!(
                command_id,
                "the worker died with this command again and again; it is told as it stands and goes to the dead-letter queue"
            ),
            Manner::Bury => error!(
                command_id,
                "the worker died even as it gave this command up; it goes to the dead-letter queue unread, and nothing is told"
            ),
        }
    }

    fn note(&self, lane: LaneId, note: Note) {
        let account = self.desk.account(lane).as_str();
        match note {
            Note::Turn(turn) => {
                self.note_pause(lane, &turn);
                let report = self.desk.reports(self.clock.now().mono).swap_remove(lane.0);
                let health = admin::health::describe(&report);
                match turn {
                    Turn::WentDown => {
                        warn!(
                            account,
                            cause = health.cause,
                            "the gateway is down; probing"
                        );
                    }
                    Turn::WasStopped => {
                        self.ledger.careful(lane);
                        error!(
                            account,
                            cause = health.cause,
                            remedy = health.remedy,
                            "the account cannot be called; its orders wait"
                        );
                    }
                    Turn::Recovered => info!(account, "the account can be called again"),
                    Turn::CoolsDown(time) => {
                        self.ledger.quiet(lane, time);
                        warn!(
                            account,
                            seconds = time.as_secs(),
                            "too many calls; leaving the account alone"
                        );
                    }
                }
            }
            Note::QueryDenied(words) => warn!(
                account,
                words,
                "orders may not be looked up, so what is in doubt ends as unknown; grant the application wms.stockother.OutQuery.queryWithDetail and restart"
            ),
            Note::Strangers(orders) => {
                warn!(
                    account,
                    orders, "an answer named orders that were not asked for"
                );
                self.metrics.strangers(account, orders);
            }
        }
    }

    /// A pause begins.
    fn note_pause(&self, lane: LaneId, turn: &Turn) {
        let report = self.desk.reports(self.clock.now().mono).swap_remove(lane.0);
        let pause = match (turn, &report.health) {
            (Turn::Recovered, _) => return,
            (Turn::CoolsDown(_), _) => Pause::Throttled,
            (Turn::WasStopped, Health::Stopped { fault, .. }) => Pause::Stopped(*fault),
            (Turn::WentDown | Turn::WasStopped, _) => Pause::Down,
        };
        self.metrics.paused(report.account.as_str(), pause);
    }

    fn note_begin(&mut self, lane: LaneId, call: CallId, method: Method) {
        let (desk, client) = (&self.desk, self.clients.of(lane));
        let callee = callee(desk, client, lane, method);
        self.spans
            .call_begins(call, callee, || desk.waits_for(call));
    }

    fn note_call<T>(
        &mut self,
        lane: LaneId,
        call: CallId,
        method: Method,
        orders: &[OrderNo],
        ended: &Ended<T>,
    ) {
        let (desk, client) = (&self.desk, self.clients.of(lane));
        let callee = callee(desk, client, lane, method);
        let answered = Answered {
            orders,
            result: &result_word(&ended.end),
            class: result_class(&ended.end),
            http_status: ended.http_status,
            duration: ended.duration,
        };
        self.spans
            .call_ended(call, callee, answered, || desk.waits_for(call));
        let cancels = if method == Method::Cancel {
            orders.len()
        } else {
            0
        };
        self.history.called(cancels, Timestamp::now());
        self.metrics.call(&metrics::Call {
            account: &callee.account.into(),
            method,
            host: &callee.url.host.into(),
            port: callee.url.port,
            orders: orders.len(),
            result: answered.class,
            http_status: ended.http_status,
            duration: ended.duration,
        });
    }

    fn note_told(&self, now: Now, ticket: Ticket, place: usize) {
        if let Some(told) = self.spans.told(now, ticket, place) {
            self.metrics.told(
                &told.account,
                told.outcome,
                told.since_arrival,
                told.since_published,
            );
        }
    }

    fn note_finished(&mut self, now: Now, ticket: Ticket) {
        if let Some((in_hand, dead_reason)) = self.spans.acknowledged(now, ticket) {
            self.metrics.acknowledged(in_hand);
            if let Some(reason) = dead_reason {
                self.metrics.dead_lettered(reason);
            }
        }
    }

    fn note_event(&mut self, telling: &Telling) {
        self.spans.tells(telling);
        let event = &telling.event;
        let outcome = event.ending.outcome();
        let account = event.account.as_ref().map_or("_", AccountName::as_str);
        let command_id = telling.envelope.command_id.as_str();
        let order_no = event.order_no.as_deref().unwrap_or_default();
        let reason = event.ending.reason().map(|reason| &*reason.message);
        match outcome {
            Outcome::Failed | Outcome::Unknown => {
                warn!(
                    account,
                    command_id,
                    order_no,
                    outcome = outcome.as_str(),
                    reason,
                    "told"
                );
            }
            Outcome::Cancelled | Outcome::Refused | Outcome::Rejected | Outcome::Expired => {
                debug!(
                    account,
                    command_id,
                    order_no,
                    outcome = outcome.as_str(),
                    reason,
                    "told"
                );
            }
        }
        self.metrics.event(account, outcome, event.replayed);
        self.history.told(telling, Timestamp::now());
    }

    fn note_fate(&self, running: &mut Running, fate: Fate) {
        match fate {
            Fate::Confirmed | Fate::Lost => {}
            Fate::Unroutable | Fate::Refused => {
                if running.unroutable_since.is_none() {
                    running.unroutable_since = Some(Timestamp::now());
                    error!(
                        cause = if fate == Fate::Refused {
                            "a queue is full"
                        } else {
                            "no queue is bound"
                        },
                        remedy = if self.clients.mode().is_dry_run() {
                            "wdt-cancel-worker bind --key 'dry-run.#' QUEUE"
                        } else {
                            "wdt-cancel-worker bind QUEUE"
                        },
                        "results cannot be delivered; their commands stay unacknowledged"
                    );
                }
            }
        }
    }

    fn publish_snapshot(&self, running: &mut Running) {
        let now = self.clock.now();
        let load = self.desk.load();
        if load.untold == 0 {
            running.unroutable_since = None;
        }
        let progress = self.link.progress();
        let session = match &*self.link.state().borrow() {
            LinkState::Connected { since } => Ok(*since),
            LinkState::Disconnected { since, cause } => Err(Trouble::new(*since, cause)),
        };
        let ledger = match &*self.ledger.health().borrow() {
            ledger::Health::Well => None,
            ledger::Health::Failing {
                since,
                cause,
                remedy,
            } => Some(Trouble::new(*since, cause).mended_by(remedy)),
        };
        let commits = self.ledger.commits();
        self.metrics.ledger(commits.groups, commits.requests);
        if let Some(log) = &self.log {
            self.metrics.log(log.dropped());
        }
        if let Some(exports) = &self.exports {
            let (ended, exported) = (exports.ended(), exports.exported());
            self.metrics.spans(ended, exported, exports.failed());
        }
        let seen = progress.seen();
        let (unsettled, kept) = progress.unsettled();
        let mut snapshot = Snapshot {
            taken_at: Some(now),
            session,
            consuming: progress.is_consuming(),
            blocked: progress.blocked(),
            queue: Queue {
                ready: seen.ready,
                consumers: seen.consumers,
                looked_at: seen.looked_at,
                subscribed_at: seen.subscribed_at,
                prefetch: seen.prefetch,
                exchange_is_new: seen.exchange_is_new,
                newest: running.newest,
            },
            intake: self.intake(),
            undeliverable_since: running.unroutable_since,
            told_at: running.told_at,
            ledger,
            accounts: self.desk.reports(now.mono),
            clock_offsets: self.clients.clock_offsets(),
            load,
            oldest_command: self.desk.oldest().map(|at| now.mono.since(at)),
            unsettled,
            kept,
            counts: self.desk.counts().to_vec(),
            since: admin::health::Since::default(),
            mode: self.clients.mode(),
        };
        running
            .since
            .note(now.wall, &admin::health::report(&snapshot));
        snapshot.since.clone_from(&running.since);
        self.snapshot.send_replace(snapshot);
    }
}

/// Who is called, for those who tell of it.
fn callee<'a>(desk: &'a Desk, client: &'a Reader, lane: LaneId, method: Method) -> Callee<'a> {
    let url = client.url();
    Callee {
        account: desk.account(lane).as_str(),
        method,
        api: match method {
            Method::Cancel => sign::CANCEL,
            Method::LookUp => sign::QUERY,
            Method::Probe => sign::NOW,
        },
        url: ServerUrl {
            scheme: url.scheme(),
            host: url.host(),
            port: url.port(),
            path: url.path(),
        },
    }
}

fn note_asked(notes: &mut Notes, admission: &Admission) {
    let id = &admission.envelope().command_id;
    match admission {
        Admission::Accepted(command) => {
            let shown = command.entries.iter().map(admit::Entry::shown);
            notes.asked(Some(&command.account), id, shown);
        }
        Admission::Rejected(rejection) => {
            let shown = rejection.orders.iter().map(|shown| &**shown);
            notes.asked(rejection.account.as_ref(), id, shown);
        }
    }
}

fn sent(fate: Fate) -> metrics::Sent {
    match fate {
        Fate::Confirmed => metrics::Sent::Confirmed,
        Fate::Unroutable => metrics::Sent::Unroutable,
        Fate::Refused => metrics::Sent::Refused,
        Fate::Lost => metrics::Sent::Lost,
    }
}

fn result_word<T>(end: &CallEnd<T>) -> String {
    match end {
        CallEnd::Answered(reply) if reply.message.is_empty() => format!("status {}", reply.status),
        CallEnd::Answered(reply) => format!("status {}: {}", reply.status, reply.message),
        CallEnd::Throttled { .. } => "HTTP 429".to_owned(),
        CallEnd::Garbled { what, .. } | CallEnd::Lost { what } | CallEnd::NotReached { what } => {
            what.clone()
        }
    }
}

/// Few words, for metrics.
fn result_class<T>(end: &CallEnd<T>) -> &'static str {
    match end {
        CallEnd::Answered(reply) if reply.status == 0 => "ok",
        CallEnd::Answered(_) => "status",
        CallEnd::Throttled { .. } => "throttled",
        CallEnd::Garbled { .. } => "garbled",
        CallEnd::Lost { .. } => "lost",
        CallEnd::NotReached { .. } => "not_reached",
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
