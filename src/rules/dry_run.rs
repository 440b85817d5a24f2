//! A dry run: orders are looked up instead of cancelled, and each is told what would become of it.
//!
//! The state decides as the gateway's answer would: what can be cancelled is told as `cancelled`,
//! what cannot as `refused`. An order in status 80 is told as `cancelled`, too: beside a live system
//! it is that system which cancelled it meanwhile.

use super::judge::LookUp;
use super::next::{Next, Retry, Tries};
use super::order::{Ending, ReasonCode};

/// What the worker may do to orders.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// Cancel them.
    #[default]
    Live,
    /// Look them up.
    DryRun,
}

impl Mode {
    /// Nothing is to be cancelled.
    pub const fn is_dry_run(self) -> bool {
        matches!(self, Self::DryRun)
    }
}

/// After a look-up in a dry run. It ends the order, or asks for another look-up, and nothing else.
pub fn after_look_up(tries: &mut Tries, seen: LookUp, retry: Retry, chance: f64) -> Next {
    let no = |code, message: String| Next::End(Ending::not(code, message));
    match seen {
        LookUp::Cancelled | LookUp::Cancellable(_) => Next::End(Ending::Cancelled),
        LookUp::Final(state) => no(
            ReasonCode::OrderState,
            format!("a dry run looked the order up: status {state}"),
        ),
        LookUp::Absent => no(
            ReasonCode::OrderNotFound,
            "a dry run looked the order up: the query shows no such order, which is no proof that there is none"
                .to_owned(),
        ),
        LookUp::NotPermitted(words) => no(
            ReasonCode::ApiRefusedCall,
            format!("a dry run can only look orders up, and may not: {words}"),
        ),
        LookUp::Failed(what) => {
            tries.look_ups += 1;
            if tries.look_ups < retry.max_attempts {
                return Next::LookUpIn(retry.delays.jittered(tries.look_ups, chance));
            }
            no(
                ReasonCode::ApiUnavailable,
                format!("{} look-ups failed, the last: {what}", tries.look_ups),
            )
        }
    }
}
