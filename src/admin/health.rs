//! Readiness: what is checked, what is wrong, and what would mend it.

use jiff::Timestamp;
use serde::Serialize;

use super::Snapshot;
use crate::rules::desk::Intake;
use crate::rules::lane::{Health, LaneReport};

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
}

/// One thing that is checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// `broker`, `intake`, `results`, `ledger`, or `account NAME`.
    pub name: String,
    /// How it fares.
    pub state: State,
    /// Since when, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// Why it is not ok.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub cause: String,
    /// What would mend it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub remedy: String,
}

impl Check {
    fn ok(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            state: State::Ok,
            since: None,
            cause: String::new(),
            remedy: String::new(),
        }
    }

    fn failing(name: &str, since: Option<Timestamp>, cause: &str, remedy: &str) -> Self {
        Self {
            name: name.to_owned(),
            state: State::Failing,
            since: since.map(|at| format!("{at:.3}")),
            cause: cause.to_owned(),
            remedy: remedy.to_owned(),
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

/// Judges a snapshot.
pub fn report(snapshot: &Snapshot) -> Report {
    let mut checks = vec![
        broker(snapshot),
        intake(snapshot),
        results(snapshot),
        ledger(snapshot),
    ];
    let all_work = checks.iter().all(|check| check.state == State::Ok);
    let accounts: Vec<Check> = snapshot.accounts.iter().map(describe).collect();
    // One account that can be called is enough to be of use; the others are named.
    let one_is_callable = accounts.iter().any(|check| check.state != State::Failing);
    checks.extend(accounts);
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
    match snapshot.intake {
        Intake::Open if snapshot.consuming => Check::ok("intake"),
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

fn results(snapshot: &Snapshot) -> Check {
    match snapshot.undeliverable_since {
        None => Check::ok("results"),
        Some(since) => Check::failing(
            "results",
            Some(since),
            &format!(
                "{} results find no queue or a full one",
                snapshot.load.untold
            ),
            if snapshot.mode.is_dry_run() {
                "bind a queue to the results' exchange, for example: wdt-cancel-worker bind --key 'dry-run.#' QUEUE"
            } else {
                "bind a queue to the results' exchange, for example: wdt-cancel-worker bind QUEUE"
            },
        ),
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
