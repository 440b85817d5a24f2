//! Readiness: what is checked, what is wrong, and what would mend it.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use super::{Queue, Snapshot};
use crate::rules::desk::Intake;
use crate::rules::lane::{Health, LaneReport};

/// The gateway's clock and ours may differ so much, in seconds, before somebody should see to it. Calls
/// are stamped by the gateway's, but deadlines and ages go by ours. The gateway takes 120.
const CLOCK_BOUND_SECONDS: u64 = 30;
/// A look at the queue that is so much later than a subscription must count it.
const COUNTED_AFTER: Duration = Duration::from_secs(1);

/// How one thing fares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// As it should be.
    Ok,
    /// It works, but not fully.
    Degraded,
    /// It does not work.
    Failing,
    /// An operator wants it so.
    Paused,
}

impl State {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Ok, Self::Degraded, Self::Failing, Self::Paused];

    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Degraded => "degraded",
            Self::Failing => "failing",
            Self::Paused => "paused",
        }
    }
}

/// One thing that is checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// `broker`, `intake`, `results`, `ledger`, `clock`, or `account NAME`.
    pub name: String,
    /// How it fares.
    pub state: State,
    /// Since when it is in this state.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// Why it is not ok.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub cause: String,
    /// What would mend it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub remedy: String,
    /// What was seen, where it says more than the state.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

impl Check {
    fn ok(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            state: State::Ok,
            since: None,
            cause: String::new(),
            remedy: String::new(),
            detail: String::new(),
        }
    }

    fn seen(self, detail: String) -> Self {
        Self { detail, ..self }
    }

    fn degraded(name: &str, cause: String, remedy: &str) -> Self {
        Self {
            state: State::Degraded,
            cause,
            remedy: remedy.to_owned(),
            ..Self::ok(name)
        }
    }

    /// The check's kind, and the account where it is one's.
    pub fn parts(&self) -> (&str, &str) {
        match self.name.split_once(' ') {
            Some((kind, account)) => (kind, account),
            None => (&self.name, ""),
        }
    }

    fn failing(name: &str, since: Option<Timestamp>, cause: &str, remedy: &str) -> Self {
        Self {
            name: name.to_owned(),
            state: State::Failing,
            since: since.map(|at| format!("{at:.3}")),
            cause: cause.to_owned(),
            remedy: remedy.to_owned(),
            detail: String::new(),
        }
    }
}

/// What `/readyz` answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Commands are consumed and can be answered.
    pub ready: bool,
    /// Nothing is cancelled, only looked up; absent otherwise.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
    /// Each check, in a fixed sequence.
    pub checks: Vec<Check>,
}

/// Since when each check is in its state, for those that do not know it themselves.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Since(BTreeMap<String, (State, Timestamp)>);

impl Since {
    /// Remembers what changed by `now`.
    pub fn note(&mut self, now: Timestamp, report: &Report) {
        for check in &report.checks {
            match self.0.get_mut(&check.name) {
                Some((state, _)) if *state == check.state => {}
                Some(known) => *known = (check.state, now),
                None => {
                    self.0.insert(check.name.clone(), (check.state, now));
                }
            }
        }
    }

    fn of(&self, check: &Check) -> Option<String> {
        let (state, at) = self.0.get(&check.name)?;
        (*state == check.state).then(|| format!("{at:.3}"))
    }
}

/// Judges a snapshot.
pub fn report(snapshot: &Snapshot) -> Report {
    let mut checks = vec![
        broker(snapshot),
        intake(snapshot),
        results(snapshot),
        ledger(snapshot),
        clock(snapshot),
    ];
    let all_work = checks.iter().all(|check| check.state != State::Failing);
    let accounts: Vec<Check> = snapshot.accounts.iter().map(describe).collect();
    // One account that can be called is enough to be of use; the others are named.
    let one_is_callable = accounts.iter().any(|check| check.state != State::Failing);
    checks.extend(accounts);
    for check in &mut checks {
        if check.since.is_none() {
            check.since = snapshot.since.of(check);
        }
    }
    Report {
        ready: all_work && one_is_callable,
        dry_run: snapshot.mode.is_dry_run(),
        checks,
    }
}

fn broker(snapshot: &Snapshot) -> Check {
    match (&snapshot.session, &snapshot.blocked) {
        (Err(trouble), _) => Check::failing(
            "broker",
            Some(trouble.since),
            &trouble.cause,
            "check amqp.url and that the broker runs; the worker keeps trying",
        ),
        (Ok(_), Some(reason)) => Check::failing(
            "broker",
            None,
            &format!("the broker takes no publications: {reason}"),
            "free memory or disk on the broker; the worker goes on by itself",
        ),
        (Ok(since), None) => Check {
            since: Some(format!("{since:.3}")),
            ..Check::ok("broker")
        },
    }
}

fn intake(snapshot: &Snapshot) -> Check {
    let queue = &snapshot.queue;
    match snapshot.intake {
        Intake::Open if snapshot.consuming && is_missed(queue) => Check::failing(
            "intake",
            queue.looked_at,
            "the broker counts no consumer at the queue, though it confirmed ours",
            "nothing: the worker looks again within 30 s and then begins a new session",
        ),
        Intake::Open if snapshot.consuming => Check::ok("intake").seen(seen(queue)),
        Intake::Open => Check::failing(
            "intake",
            None,
            "the broker does not know our consumer yet",
            "it subscribes as soon as there is a session",
        ),
        Intake::Paused if snapshot.ledger.is_some() => Check::failing(
            "intake",
            None,
            "the ledger takes no writes, so commands stay in the broker",
            "see the ledger's cause; intake goes on by itself",
        ),
        Intake::Paused => Check::failing(
            "intake",
            None,
            "no account's gateway answers, so commands stay in the broker",
            "see the accounts' causes; intake goes on by itself",
        ),
        Intake::Closed => Check::failing("intake", None, "the worker is stopping", ""),
    }
}

/// Whether the broker, which confirmed our subscription, did not count it later.
fn is_missed(queue: &Queue) -> bool {
    let (Some(subscribed), Some(looked)) = (queue.subscribed_at, queue.looked_at) else {
        return false;
    };
    let later = Duration::try_from(looked.duration_since(subscribed)).unwrap_or_default();
    queue.prefetch > 0 && queue.consumers == 0 && later > COUNTED_AFTER
}

/// What the broker confirmed, and what it said when it was asked.
fn seen(queue: &Queue) -> String {
    let confirmed = format!("prefetch {}", queue.prefetch);
    match queue.looked_at {
        None => confirmed,
        Some(at) => format!(
            "{confirmed}; {} consumers at the queue and {} commands waiting, at {at:.0}",
            queue.consumers, queue.ready
        ),
    }
}

fn results(snapshot: &Snapshot) -> Check {
    let bind = if snapshot.mode.is_dry_run() {
        "bind a queue to the results' exchange, for example: wdt-cancel-worker bind --key 'dry-run.#' QUEUE"
    } else {
        "bind a queue to the results' exchange, for example: wdt-cancel-worker bind QUEUE"
    };
    match (snapshot.undeliverable_since, snapshot.told_at) {
        (Some(since), _) => Check::failing(
            "results",
            Some(since),
            &format!(
                "{} results find no queue or a full one",
                snapshot.load.untold
            ),
            bind,
        ),
        (None, Some(at)) => Check::ok("results").seen(format!("last confirmed at {at:.3}")),
        (None, None) if snapshot.queue.exchange_is_new => Check::degraded(
            "results",
            "the results' exchange is new, and nothing was told through it yet; without a queue bound to it nothing can be".to_owned(),
            bind,
        ),
        (None, None) => Check::ok("results").seen("nothing was told yet".to_owned()),
    }
}

fn clock(snapshot: &Snapshot) -> Check {
    let measured = snapshot.clock_offsets.iter().flatten();
    match measured.max_by_key(|offset| offset.unsigned_abs()) {
        None => Check::ok("clock").seen("not measured yet".to_owned()),
        Some(offset) if offset.unsigned_abs() > CLOCK_BOUND_SECONDS => Check::degraded(
            "clock",
            format!(
                "the gateway's clock is {} s {} ours",
                offset.unsigned_abs(),
                if *offset > 0 { "ahead of" } else { "behind" }
            ),
            "set this machine's clock, by NTP say; calls are stamped by the gateway's, but deadlines and ages go by ours",
        ),
        Some(offset) => Check::ok("clock").seen(format!("the gateway's less ours: {offset} s")),
    }
}

fn ledger(snapshot: &Snapshot) -> Check {
    match &snapshot.ledger {
        None => Check::ok("ledger"),
        Some(trouble) => Check::failing(
            "ledger",
            Some(trouble.since),
            &trouble.cause,
            trouble.remedy,
        ),
    }
}

/// An account's check.
pub fn describe(report: &LaneReport) -> Check {
    let name = format!("account {}", report.account);
    if let Some(paused) = &report.paused {
        return Check {
            state: State::Paused,
            since: Some(format!("{:.3}", paused.since)),
            cause: format!("paused by {}", paused.by),
            remedy: format!("wdt-cancel-worker resume {}", report.account),
            ..Check::ok(&name)
        };
    }
    match &report.health {
        Health::Down { since, cause } => Check::failing(
            &name,
            Some(*since),
            &format!("the gateway does not answer: {cause}"),
            "check api.url and the network; it is probed, and calls go on by themselves",
        ),
        Health::Stopped {
            since,
            fault,
            words,
        } => {
            let cause = format!("{}: {words}", fault.as_str());
            Check::failing(&name, Some(*since), &cause, fault.remedy())
        }
        Health::Well => {
            let mut check = Check::ok(&name);
            let mut causes = Vec::new();
            if let Some(time) = report.cooling {
                causes.push(format!(
                    "left alone for {} s by the gateway's wish",
                    time.as_secs()
                ));
            }
            if report.query_denied {
                causes.push("orders may not be looked up".to_owned());
                check.remedy = "grant wms.stockother.OutQuery.queryWithDetail and restart".into();
            }
            if !causes.is_empty() {
                check.state = State::Degraded;
                check.cause = causes.join("; ");
            }
            check
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::Trouble;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_795_478_400 + seconds).unwrap()
    }

    fn well() -> Snapshot {
        Snapshot {
            session: Ok(at(0)),
            consuming: true,
            ..Snapshot::starting(at(0))
        }
    }

    fn check(snapshot: &Snapshot, name: &str) -> Check {
        let mut checks = report(snapshot).checks.into_iter();
        checks.find(|check| check.name == name).unwrap()
    }

    #[test]
    fn each_state_is_known_since_it_began() {
        let mut snapshot = well();
        let mut since = Since::default();
        let mut look = |snapshot: &mut Snapshot, seconds| {
            since.note(at(seconds), &report(snapshot));
            snapshot.since = since.clone();
            check(snapshot, "clock").since.unwrap()
        };
        let began = look(&mut snapshot, 1);
        assert_eq!(look(&mut snapshot, 2), began);
        snapshot.clock_offsets = vec![Some(-31)];
        let off = look(&mut snapshot, 3);
        assert_ne!(off, began);
        snapshot.clock_offsets = vec![Some(-40), None];
        assert_eq!(look(&mut snapshot, 4), off);
        snapshot.clock_offsets = vec![Some(-30)];
        assert_eq!(look(&mut snapshot, 5), format!("{:.3}", at(5)));
    }

    #[test]
    fn a_clock_that_is_off_is_of_use_still() {
        let mut snapshot = well();
        for (offset, state, word) in [
            (30, State::Ok, ""),
            (31, State::Degraded, "ahead of ours"),
            (-130, State::Degraded, "130 s behind ours"),
        ] {
            snapshot.clock_offsets = vec![Some(2), Some(offset)];
            let clock = check(&snapshot, "clock");
            assert_eq!(clock.state, state, "{offset}");
            assert!(clock.cause.contains(word), "{clock:?}");
        }
    }

    #[test]
    fn a_consumer_that_the_broker_does_not_count_is_missed() {
        let mut snapshot = well();
        let mut intake = |subscribed, looked, consumers| {
            snapshot.queue.prefetch = 32;
            snapshot.queue.subscribed_at = subscribed;
            snapshot.queue.looked_at = looked;
            snapshot.queue.consumers = consumers;
            check(&snapshot, "intake").state
        };
        // Counted before it was there.
        assert_eq!(intake(Some(at(5)), Some(at(5)), 0), State::Ok);
        assert_eq!(intake(Some(at(5)), None, 0), State::Ok);
        assert_eq!(intake(Some(at(5)), Some(at(35)), 1), State::Ok);
        assert_eq!(intake(Some(at(5)), Some(at(35)), 0), State::Failing);
        snapshot.consuming = false;
        assert_eq!(check(&snapshot, "intake").state, State::Failing);
    }

    #[test]
    fn results_are_known_to_be_taken_only_when_one_was() {
        let mut snapshot = well();
        let state = |snapshot: &Snapshot| check(snapshot, "results").state;
        assert_eq!(state(&snapshot), State::Ok);
        snapshot.queue.exchange_is_new = true;
        assert_eq!(state(&snapshot), State::Degraded);
        snapshot.told_at = Some(at(9));
        assert_eq!(state(&snapshot), State::Ok);
        snapshot.undeliverable_since = Some(at(10));
        assert_eq!(state(&snapshot), State::Failing);
        snapshot.ledger = Some(Trouble::new(at(11), "full"));
        let ledger = check(&snapshot, "ledger");
        assert_eq!(ledger.parts(), ("ledger", ""));
        assert_eq!(ledger.since, Some(format!("{:.3}", at(11))));
    }
}
