//! What operators count. Nothing here decides anything.

use std::fmt;

use super::action::LaneId;
use crate::rules::judge::{News, Verdict};
use crate::rules::next::Next;

/// Why an order is sent once more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryCause {
    /// Somebody else works on the document.
    Busy,
    /// The list was refused as a whole, and goes again in halves.
    ListRefused,
    /// Too many calls.
    Throttled,
    /// No connection came about.
    NotReached,
    /// The account's settings or grants are wrong.
    Misconfigured,
    /// The gateway finds our clock wrong.
    Clock,
    /// It was looked up, and can still be cancelled.
    NotCancelled,
}

impl RetryCause {
    /// All of them, in the sequence of [`LaneCounts::retries`].
    pub const ALL: [Self; 7] = [
        Self::Busy,
        Self::ListRefused,
        Self::Throttled,
        Self::NotReached,
        Self::Misconfigured,
        Self::Clock,
        Self::NotCancelled,
    ];

    /// A word for metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Busy => "busy",
            Self::ListRefused => "list_refused",
            Self::Throttled => "throttled",
            Self::NotReached => "not_reached",
            Self::Misconfigured => "misconfigured",
            Self::Clock => "clock",
            Self::NotCancelled => "not_cancelled",
        }
    }

    /// Why nothing of a call was executed, should that be so.
    pub(super) fn of(news: &News) -> Self {
        match news {
            News::Throttled { .. } => Self::Throttled,
            News::Misconfigured { .. } => Self::Misconfigured,
            News::ClockOff => Self::Clock,
            News::Answers | News::Unwell { .. } | News::Unreachable { .. } => Self::NotReached,
        }
    }
}

/// Why an order is to be looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LookUpCause {
    /// A call that carried it was left without a clear answer.
    NoClearAnswer,
    /// It was refused, which an earlier call of ours may have caused, or `api.verify` is `always`.
    Refused,
    /// It was found recorded as sent, without an ending.
    FoundSent,
    /// It was found recorded as `unknown`.
    FoundUnknown,
    /// The ledger was restored, and it may have been sent before.
    Restored,
    /// The last look-up showed nothing.
    LookUpFailed,
}

impl LookUpCause {
    /// All of them, in the sequence of [`LaneCounts::look_ups`].
    pub const ALL: [Self; 6] = [
        Self::NoClearAnswer,
        Self::Refused,
        Self::FoundSent,
        Self::FoundUnknown,
        Self::Restored,
        Self::LookUpFailed,
    ];

    /// A word for metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoClearAnswer => "no_clear_answer",
            Self::Refused => "refused",
            Self::FoundSent => "found_sent",
            Self::FoundUnknown => "found_unknown",
            Self::Restored => "restored",
            Self::LookUpFailed => "look_up_failed",
        }
    }
}

/// What was counted of one account since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LaneCounts {
    /// Orders of commands that found them in hand already, and share what becomes of them.
    pub joined: u64,
    /// Orders that were told from the ledger, without a call.
    pub from_ledger: u64,
    /// Orders sent once more, by [`RetryCause::ALL`].
    pub retries: [u64; RetryCause::ALL.len()],
    /// Orders to be looked up, by [`LookUpCause::ALL`].
    pub look_ups: [u64; LookUpCause::ALL.len()],
}

/// The counts of each lane. Printed as nothing, so that two desks that differ in them alone are one
/// to whoever compares what they print.
#[derive(Clone, Default)]
pub(super) struct Counts(Vec<LaneCounts>);

impl fmt::Debug for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Counts")
    }
}

impl Counts {
    pub(super) fn new(lanes: usize) -> Self {
        Self(vec![LaneCounts::default(); lanes])
    }

    pub(super) fn lanes(&self) -> &[LaneCounts] {
        &self.0
    }

    pub(super) fn joined(&mut self, lane: LaneId) {
        self.0[lane.0].joined += 1;
    }

    pub(super) fn told_from_ledger(&mut self, lane: LaneId) {
        self.0[lane.0].from_ledger += 1;
    }

    pub(super) fn look_up(&mut self, lane: LaneId, cause: LookUpCause) {
        self.0[lane.0].look_ups[cause as usize] += 1;
    }

    /// What follows a cancel call for one of its orders.
    pub(super) fn after_cancel(&mut self, lane: LaneId, why: &Why, next: &Next) {
        match (why, next) {
            (_, Next::End(_)) => {}
            (Why::InDoubt, Next::LookUpIn(_)) => self.look_up(lane, LookUpCause::NoClearAnswer),
            (_, Next::LookUpIn(_)) => self.look_up(lane, LookUpCause::Refused),
            (Why::NotExecuted(cause), _) => self.retry(lane, *cause),
            (_, Next::Halve) => self.retry(lane, RetryCause::ListRefused),
            (_, Next::SendIn(_)) => self.retry(lane, RetryCause::Busy),
        }
    }

    /// What follows a look-up.
    pub(super) fn after_look_up(&mut self, lane: LaneId, next: &Next) {
        match next {
            Next::End(_) => {}
            Next::SendIn(_) | Next::Halve => self.retry(lane, RetryCause::NotCancelled),
            Next::LookUpIn(_) => self.look_up(lane, LookUpCause::LookUpFailed),
        }
    }

    fn retry(&mut self, lane: LaneId, cause: RetryCause) {
        self.0[lane.0].retries[cause as usize] += 1;
    }
}

/// What a cancel call's answer was for one order, as far as it is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    InDoubt,
    NotExecuted(RetryCause),
    Said,
}

impl Why {
    pub(super) fn of(verdict: &Verdict, not_executed: RetryCause) -> Self {
        match verdict {
            Verdict::InDoubt(_) => Self::InDoubt,
            Verdict::NotExecuted => Self::NotExecuted(not_executed),
            Verdict::Cancelled
            | Verdict::Refused(_)
            | Verdict::Busy(_)
            | Verdict::ListRefused(_)
            | Verdict::CallRefused(_) => Self::Said,
        }
    }
}
