//! What becomes of an order after an answer: it ends, it is tried again, or it is looked up.
//!
//! Retry is a function of the order's tries and the verdict, nothing else; time comes in only as
//! the delay that is asked for, and chance as an argument.

use std::time::Duration;

use super::delay::Delays;
use super::judge::{LookUp, Verdict};
use super::order::{Ending, Outcome, Reason, ReasonCode};
use super::policy::Verify;

/// What was tried for one order so far.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tries {
    /// Cancel calls that carried the order.
    pub attempts: u32,
    /// Those of them that failed for a reason that may lie with the order; bounded by
    /// `retry.max_attempts`. A call that the gateway refused at the door, or a list that was
    /// refused for another order's sake, costs an order nothing.
    pub spent: u32,
    /// Look-ups in a row that showed nothing.
    pub look_ups: u32,
    /// A call that carried it was left without a clear answer at some time, so a later refusal may
    /// be the echo of our own success.
    pub tainted: bool,
    /// The latest such call has not been looked into yet: it may have cancelled the order.
    pub in_doubt: bool,
    /// The refusal that is being looked into.
    pub refusal: Option<Reason>,
}

impl Tries {
    /// A call that carried the order is left without a clear answer.
    pub fn doubt(&mut self) {
        self.tainted = true;
        self.in_doubt = true;
    }
}

/// How orders are retried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retry {
    /// `retry.max_attempts`.
    pub max_attempts: u32,
    /// `api.verify`.
    pub verify: Verify,
    /// Between tries of one order.
    pub delays: Delays,
}

/// The step after a verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum Next {
    /// The order has ended; record it, then tell it.
    End(Ending),
    /// It waits to be sent after this delay.
    SendIn(Duration),
    /// Its state is looked up after this delay.
    LookUpIn(Duration),
    /// It is sent again in half a list.
    Halve,
}

/// After a cancel call that carried the order. `alone` says that it was the only one in the list,
/// `may_look_up` that the account is not known to lack the permission.
pub fn after_cancel(
    tries: &mut Tries,
    verdict: Verdict,
    alone: bool,
    may_look_up: bool,
    retry: Retry,
    chance: f64,
) -> Next {
    let look_up_works = may_look_up && retry.verify != Verify::Never;
    match verdict {
        Verdict::Cancelled => Next::End(Ending::Cancelled),
        Verdict::Refused(reason) => refused(tries, reason, look_up_works, retry),
        Verdict::ListRefused(reason) if alone => refused(tries, reason, look_up_works, retry),
        Verdict::ListRefused(reason) => {
            // "No such order" may also mean "cancelled already", so whatever this call did, a
            // refusal that follows is looked into.
            if reason.code == ReasonCode::OrderNotFound {
                tries.doubt();
            }
            Next::Halve
        }
        Verdict::CallRefused(words) => {
            let reason = Reason::new(ReasonCode::ApiRefusedCall, words);
            refused(tries, reason, look_up_works, retry)
        }
        Verdict::Busy(words) => {
            tries.spent += 1;
            if tries.spent < retry.max_attempts {
                return Next::SendIn(retry.delays.jittered(tries.spent, chance));
            }
            let message = format!(
                "gave up after {} calls, the last answer: {words}",
                tries.attempts
            );
            let reason = Reason::new(ReasonCode::ApiUnavailable, message);
            refused(tries, reason, look_up_works, retry)
        }
        Verdict::InDoubt(what) => {
            tries.spent += 1;
            tries.doubt();
            tries.look_ups = 0;
            tries.refusal = None;
            if look_up_works {
                return Next::LookUpIn(retry.delays.jittered(tries.spent, chance));
            }
            Next::End(unconfirmed(&what, may_look_up, retry.verify))
        }
        Verdict::NotExecuted => Next::SendIn(Duration::ZERO),
    }
}

/// A clear no. It is the last word only where no earlier call of ours can be behind it.
fn refused(tries: &mut Tries, reason: Reason, look_up_works: bool, retry: Retry) -> Next {
    let look_into = tries.tainted || (retry.verify == Verify::Always && is_refusal(&reason));
    if look_into && look_up_works {
        tries.refusal = Some(reason);
        tries.look_ups = 0;
        return Next::LookUpIn(Duration::ZERO);
    }
    if tries.tainted {
        let message = format!(
            "an earlier call was left without an answer, and the order's state cannot be looked up; the last answer: {}",
            reason.message
        );
        return Next::End(Ending::not(ReasonCode::Unconfirmed, message));
    }
    Next::End(Ending::Not(reason))
}

fn is_refusal(reason: &Reason) -> bool {
    reason.code.outcome() == Outcome::Refused
}

/// After a look-up of the order's state.
pub fn after_look_up(tries: &mut Tries, seen: LookUp, retry: Retry, chance: f64) -> Next {
    match seen {
        LookUp::Cancelled => Next::End(Ending::Cancelled),
        LookUp::Cancellable(state) => {
            tries.in_doubt = false;
            match tries.refusal.take() {
                // Its state allows it, so this refusal had another cause; our call did not do it.
                Some(reason) if reason.code != ReasonCode::OrderState => {
                    Next::End(Ending::Not(reason))
                }
                // Refused for its state, though its state allows it. It may change its mind, but not
                // for ever: each round is two paid calls.
                Some(reason) => {
                    tries.spent += 1;
                    if tries.spent < retry.max_attempts {
                        return Next::SendIn(retry.delays.jittered(tries.spent, chance));
                    }
                    let message = format!("{} (status {state})", reason.message);
                    Next::End(Ending::not(reason.code, message))
                }
                None if tries.spent < retry.max_attempts => Next::SendIn(Duration::ZERO),
                None => {
                    let message = format!(
                        "gave up after {} calls; the order was looked up and is not cancelled (status {state})",
                        tries.attempts
                    );
                    Next::End(Ending::not(ReasonCode::ApiUnavailable, message))
                }
            }
        }
        LookUp::Final(state) => Next::End(Ending::Not(match tries.refusal.take() {
            Some(reason) if is_refusal(&reason) => {
                Reason::new(reason.code, format!("{} (status {state})", reason.message))
            }
            _ => Reason::new(
                ReasonCode::OrderState,
                format!("looked up after a call without a clear answer: status {state}"),
            ),
        })),
        LookUp::Absent => Next::End(stands(
            tries,
            "the query shows no such order, which is no proof that there is none",
        )),
        LookUp::NotPermitted(words) => Next::End(stands(
            tries,
            &format!("the order's state may not be looked up: {words}"),
        )),
        LookUp::Failed(what) => {
            tries.look_ups += 1;
            if tries.look_ups < retry.max_attempts {
                return Next::LookUpIn(retry.delays.jittered(tries.look_ups, chance));
            }
            let message = format!("{} look-ups failed, the last: {what}", tries.look_ups);
            Next::End(stands(tries, &message))
        }
    }
}

/// How an order ends that is not to be sent any more, for `reason`; `why_not` says why it cannot be
/// looked up either, should it be in doubt.
pub fn as_it_stands(tries: &Tries, reason: Reason, why_not: &str) -> Ending {
    if tries.in_doubt || tries.refusal.is_some() {
        return stands(&mut tries.clone(), why_not);
    }
    Ending::Not(reason)
}

/// Where a look-up brings no light: a refusal stands if nothing of ours can be behind it.
fn stands(tries: &mut Tries, why_not: &str) -> Ending {
    match tries.refusal.take() {
        Some(reason) if !tries.tainted => Ending::Not(reason),
        Some(reason) => Ending::not(
            ReasonCode::Unconfirmed,
            format!(
                "an earlier call was left without an answer, a later one said: {}; {why_not}",
                reason.message
            ),
        ),
        None => Ending::not(
            ReasonCode::Unconfirmed,
            format!("a call was left without a clear answer; {why_not}"),
        ),
    }
}

/// The ending of an order in doubt whose state cannot be looked up.
pub fn unconfirmed(what: &str, may_look_up: bool, verify: Verify) -> Ending {
    let why = if verify == Verify::Never {
        "api.verify is never"
    } else {
        debug_assert!(!may_look_up);
        "the account may not query orders"
    };
    Ending::not(
        ReasonCode::Unconfirmed,
        format!("sent without a clear answer ({what}), and not looked up: {why}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn retry(verify: Verify) -> Retry {
        Retry {
            max_attempts: 3,
            verify,
            delays: Delays {
                first: Duration::from_secs(1),
                most: Duration::from_secs(60),
            },
        }
    }

    fn no(code: ReasonCode) -> Verdict {
        Verdict::Refused(Reason::new(code, "no"))
    }

    fn ended(next: &Next) -> (Outcome, Option<ReasonCode>) {
        match next {
            Next::End(ending) => (ending.outcome(), ending.reason().map(|r| r.code)),
            Next::SendIn(_) | Next::LookUpIn(_) | Next::Halve => panic!("goes on: {next:?}"),
        }
    }

    const IN_DOUBT: Verify = Verify::InDoubt;

    #[test]
    fn a_clean_answer_is_the_last_word() {
        let mut tries = Tries {
            attempts: 1,
            ..Tries::default()
        };
        let mut after =
            |verdict, verify| after_cancel(&mut tries, verdict, false, true, retry(verify), 0.5);
        assert_eq!(
            after(Verdict::Cancelled, IN_DOUBT),
            Next::End(Ending::Cancelled)
        );
        assert_eq!(
            ended(&after(no(ReasonCode::OrderState), IN_DOUBT)),
            (Outcome::Refused, Some(ReasonCode::OrderState))
        );
        assert_eq!(
            ended(&after(Verdict::CallRefused("bad".into()), IN_DOUBT)),
            (Outcome::Failed, Some(ReasonCode::ApiRefusedCall))
        );
        assert_eq!(
            after(no(ReasonCode::OrderState), Verify::Always),
            Next::LookUpIn(Duration::ZERO)
        );
    }

    #[test]
    fn a_refusal_after_a_lost_answer_is_looked_into() {
        let tainted = || Tries {
            attempts: 2,
            tainted: true,
            ..Tries::default()
        };
        let after = |tries: &mut Tries, may_look_up, verify| {
            after_cancel(
                tries,
                no(ReasonCode::OrderState),
                true,
                may_look_up,
                retry(verify),
                0.5,
            )
        };
        let mut tries = tainted();
        assert_eq!(
            after(&mut tries, true, IN_DOUBT),
            Next::LookUpIn(Duration::ZERO)
        );
        let next = after_look_up(&mut tries, LookUp::Cancelled, retry(IN_DOUBT), 0.5);
        assert_eq!(next, Next::End(Ending::Cancelled));
        for (may_look_up, verify) in [(false, IN_DOUBT), (true, Verify::Never)] {
            let next = after(&mut tainted(), may_look_up, verify);
            assert_eq!(
                ended(&next),
                (Outcome::Unknown, Some(ReasonCode::Unconfirmed))
            );
        }
        for dark in [LookUp::Absent, LookUp::NotPermitted("no".into())] {
            let mut tries = tainted();
            let _ = after(&mut tries, true, IN_DOUBT);
            let next = after_look_up(&mut tries, dark, retry(IN_DOUBT), 0.5);
            assert_eq!(
                ended(&next),
                (Outcome::Unknown, Some(ReasonCode::Unconfirmed))
            );
        }
    }

    #[test]
    fn a_refusal_for_the_state_that_the_state_belies_is_not_asked_for_ever() {
        let mut tries = Tries {
            attempts: 2,
            spent: 1,
            tainted: true,
            ..Tries::default()
        };
        let mut round = || {
            let refusal = no(ReasonCode::OrderState);
            let next = after_cancel(&mut tries, refusal, true, true, retry(IN_DOUBT), 1.0);
            assert_eq!(next, Next::LookUpIn(Duration::ZERO));
            let seen = LookUp::Cancellable("20 已审核".into());
            after_look_up(&mut tries, seen, retry(IN_DOUBT), 1.0)
        };
        assert_eq!(round(), Next::SendIn(Duration::from_secs(2)));
        assert_eq!(
            ended(&round()),
            (Outcome::Refused, Some(ReasonCode::OrderState))
        );
    }

    #[test]
    fn doubt_is_looked_up_and_the_state_decides() {
        let doubt = || {
            let mut tries = Tries {
                attempts: 1,
                ..Tries::default()
            };
            let verdict = Verdict::InDoubt("timed out".into());
            let next = after_cancel(&mut tries, verdict, false, true, retry(IN_DOUBT), 0.5);
            assert_eq!(next, Next::LookUpIn(Duration::from_millis(500)));
            tries
        };
        let look = |seen| after_look_up(&mut doubt(), seen, retry(IN_DOUBT), 0.5);
        assert_eq!(look(LookUp::Cancelled), Next::End(Ending::Cancelled));
        assert_eq!(
            look(LookUp::Cancellable("20".into())),
            Next::SendIn(Duration::ZERO)
        );
        assert_eq!(
            ended(&look(LookUp::Final("70 已完成".into()))),
            (Outcome::Refused, Some(ReasonCode::OrderState))
        );
        assert_eq!(ended(&look(LookUp::Absent)).0, Outcome::Unknown);
        assert_eq!(
            ended(&look(LookUp::NotPermitted("no".into()))).0,
            Outcome::Unknown
        );
        let mut tries = doubt();
        for _ in 0..2 {
            let next = after_look_up(
                &mut tries,
                LookUp::Failed("500".into()),
                retry(IN_DOUBT),
                0.5,
            );
            assert!(matches!(next, Next::LookUpIn(_)));
        }
        let next = after_look_up(
            &mut tries,
            LookUp::Failed("500".into()),
            retry(IN_DOUBT),
            0.5,
        );
        assert_eq!(ended(&next).0, Outcome::Unknown);
    }

    #[test]
    fn without_look_ups_doubt_is_told_as_unknown() {
        for (may_look_up, verify) in [(false, IN_DOUBT), (true, Verify::Never)] {
            let mut tries = Tries {
                attempts: 1,
                ..Tries::default()
            };
            let verdict = Verdict::InDoubt("timed out".into());
            let next = after_cancel(&mut tries, verdict, true, may_look_up, retry(verify), 0.5);
            assert_eq!(
                ended(&next),
                (Outcome::Unknown, Some(ReasonCode::Unconfirmed))
            );
        }
    }

    #[test]
    fn a_busy_order_waits_and_in_the_end_fails() {
        let mut tries = Tries {
            attempts: 3,
            ..Tries::default()
        };
        let mut after = || {
            let verdict = Verdict::Busy("请稍后重试".into());
            after_cancel(&mut tries, verdict, false, true, retry(IN_DOUBT), 1.0)
        };
        assert_eq!(after(), Next::SendIn(Duration::from_secs(1)));
        assert_eq!(after(), Next::SendIn(Duration::from_secs(2)));
        assert_eq!(
            ended(&after()),
            (Outcome::Failed, Some(ReasonCode::ApiUnavailable))
        );
    }

    #[test]
    fn lost_answers_are_bounded_too() {
        let mut tries = Tries::default();
        for attempt in 1..=3 {
            tries.attempts = attempt;
            let verdict = Verdict::InDoubt("timed out".into());
            let next = after_cancel(&mut tries, verdict, false, true, retry(IN_DOUBT), 0.5);
            assert!(matches!(next, Next::LookUpIn(_)));
            let next = after_look_up(
                &mut tries,
                LookUp::Cancellable("20".into()),
                retry(IN_DOUBT),
                0.5,
            );
            if attempt < 3 {
                assert_eq!(next, Next::SendIn(Duration::ZERO));
            } else {
                assert_eq!(
                    ended(&next),
                    (Outcome::Failed, Some(ReasonCode::ApiUnavailable))
                );
            }
        }
    }

    #[test]
    fn a_refused_list_is_halved_and_costs_the_others_nothing() {
        let mut tries = Tries {
            attempts: 1,
            ..Tries::default()
        };
        let refused = |code| Verdict::ListRefused(Reason::new(code, "单号不能为空"));
        let mut after = |code, alone| {
            after_cancel(&mut tries, refused(code), alone, true, retry(IN_DOUBT), 0.5)
        };
        assert_eq!(after(ReasonCode::ApiRefusedCall, false), Next::Halve);
        assert_eq!(
            ended(&after(ReasonCode::ApiRefusedCall, true)),
            (Outcome::Failed, Some(ReasonCode::ApiRefusedCall))
        );
        assert_eq!(
            ended(&after(ReasonCode::OrderNotFound, true)),
            (Outcome::Refused, Some(ReasonCode::OrderNotFound))
        );
        assert_eq!(after(ReasonCode::OrderNotFound, false), Next::Halve);
        assert_eq!((tries.spent, tries.tainted), (0, true));
    }

    #[test]
    fn without_more_time_an_order_ends_by_what_is_known_of_it() {
        let late = || Reason::new(ReasonCode::DeadlinePassed, "late");
        let code = |tries: &Tries| match as_it_stands(tries, late(), "no time") {
            Ending::Not(reason) => reason.code,
            Ending::Cancelled => panic!("nobody said so"),
        };
        let mut tries = Tries::default();
        assert_eq!(code(&tries), ReasonCode::DeadlinePassed);
        tries.doubt();
        assert_eq!(code(&tries), ReasonCode::Unconfirmed);
        let state = LookUp::Cancellable("20".into());
        let _ = after_look_up(&mut tries, state, retry(IN_DOUBT), 0.5);
        assert_eq!(code(&tries), ReasonCode::DeadlinePassed);
        let refusal = Some(Reason::new(ReasonCode::OrderState, "no"));
        tries.refusal = refusal.clone();
        assert_eq!(code(&tries), ReasonCode::Unconfirmed);
        tries = Tries {
            refusal,
            ..Tries::default()
        };
        assert_eq!(code(&tries), ReasonCode::OrderState);
    }
}
