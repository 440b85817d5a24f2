//! The gateway: what it does with a call, and what it answers.

use wdt_cancel_worker::rules::desk::LaneId;
use wdt_cancel_worker::rules::judge::{CallEnd, CancelLists, FoundOrder, Reply};
use wdt_cancel_worker::rules::order::OrderNo;

use crate::world::{Call, Key, State, World};

const STATE: &str = "单据状态不是编辑中、待审核、已审核，不允许取消";
const NOT_FOUND: &str = "单据不存在";

/// Answers to a cancel call that are not the plain one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Lost,
    Garbled,
    /// Status 99.
    Other,
    /// In both lists.
    NamedTwice,
    /// In neither list.
    NotNamed,
    NotReached,
    Throttled,
    Busy,
    ListRefused,
    NotPermitted,
    CallRefused,
    NotFound,
}

impl Fault {
    /// Nobody can tell from it whether the call was executed.
    fn is_unclear(self) -> bool {
        match self {
            Self::Lost | Self::Garbled | Self::Other | Self::NamedTwice | Self::NotNamed => true,
            Self::NotReached
            | Self::Throttled
            | Self::Busy
            | Self::ListRefused
            | Self::NotPermitted
            | Self::CallRefused
            | Self::NotFound => false,
        }
    }
}

/// With each, whether the call was executed all the same. The last is possible only where one of
/// the orders cannot be cancelled.
const FAULTS: [(Fault, bool); 18] = [
    (Fault::Lost, true),
    (Fault::Lost, false),
    (Fault::Garbled, true),
    (Fault::Garbled, false),
    (Fault::Other, true),
    (Fault::Other, false),
    (Fault::NamedTwice, true),
    (Fault::NamedTwice, false),
    (Fault::NotNamed, true),
    (Fault::NotNamed, false),
    (Fault::NotReached, false),
    (Fault::Throttled, false),
    (Fault::Busy, false),
    (Fault::ListRefused, false),
    (Fault::NotPermitted, false),
    (Fault::CallRefused, false),
    (Fault::NotFound, false),
    (Fault::NotFound, true),
];

fn reply<T>(status: i64, message: &str, data: Option<T>) -> CallEnd<T> {
    CallEnd::Answered(Reply {
        status,
        message: message.to_owned(),
        data,
    })
}

fn lost<T>() -> CallEnd<T> {
    CallEnd::Lost {
        what: "timed out".into(),
    }
}

fn not_reached<T>() -> CallEnd<T> {
    CallEnd::NotReached {
        what: "connection refused".into(),
    }
}

fn garbled<T>() -> CallEnd<T> {
    CallEnd::Garbled {
        what: "HTTP 502".into(),
        retry_after: None,
    }
}

impl World<'_> {
    pub fn execute(&mut self, key: &Key) {
        if let Some(state) = self.states.get_mut(key)
            && *state == State::Cancellable
        {
            *state = State::Cancelled { by_us: true };
        }
    }

    pub fn call_ends(&mut self, at: usize) {
        let (id, lane, call) = self.workers[self.at].calls.remove(at);
        match call {
            Call::Cancelled(_, end) => {
                self.workers[self.at]
                    .desk
                    .cancel_answered(self.now, id, &end);
            }
            Call::LookedUp(end) => {
                self.workers[self.at]
                    .desk
                    .look_up_answered(self.now, id, &end);
            }
            Call::Cancel(orders) => {
                let end = self.cancel(lane, &orders);
                self.tell(|| format!("   {end:?}"));
                self.workers[self.at]
                    .desk
                    .cancel_answered(self.now, id, &end);
            }
            Call::LookUp(no) => {
                let end = self.look_up(lane, &no);
                self.tell(|| format!("   {end:?}"));
                self.workers[self.at]
                    .desk
                    .look_up_answered(self.now, id, &end);
            }
            Call::Probe => {
                let outcomes = if self.left.faults > 0 { 2 } else { 1 };
                let outcome = self.choices.pick(outcomes);
                self.left.faults -= usize::from(outcome != 0);
                let end = [reply::<()>(0, "", None), not_reached()][outcome].clone();
                self.tell(|| format!("   {end:?}"));
                self.workers[self.at]
                    .desk
                    .probe_answered(self.now, id, &end);
            }
        }
    }

    /// The gateway gets a cancel call, and this is what comes back.
    pub fn cancel(&mut self, lane: LaneId, orders: &[OrderNo]) -> CallEnd<CancelLists> {
        let keys: Vec<Key> = orders.iter().map(|no| (lane, no.clone())).collect();
        // Some are not named for what they are: shipped and cancelled have the same words.
        let all_go = keys
            .iter()
            .all(|key| self.states.get(key) == Some(&State::Cancellable));
        let outcomes = match (self.left.faults > 0, all_go) {
            (true, false) => 1 + FAULTS.len(),
            (true, true) => FAULTS.len(),
            (false, _) => 1,
        };
        let Some(at) = self.choices.pick(outcomes).checked_sub(1) else {
            return self.cancels(&keys);
        };
        self.left.faults -= 1;
        let (fault, executed) = FAULTS[at];
        if executed {
            keys.iter().for_each(|key| self.execute(key));
        }
        if fault.is_unclear() {
            self.in_doubt.extend(keys.iter().cloned());
        }
        if fault == Fault::Lost && !executed && self.config.executes_late {
            self.timed_out.extend(keys.iter().cloned());
        }
        let numbers = || orders.iter().map(OrderNo::to_string);
        let errors = |words: &str| numbers().map(|no| (no, words.to_owned())).collect();
        let lists = |success, error| reply(0, "", Some(CancelLists { success, error }));
        match fault {
            Fault::Lost => lost(),
            Fault::Garbled => garbled(),
            Fault::Other => reply(99, "其他错误", None),
            Fault::NamedTwice => lists(numbers().collect(), errors(STATE)),
            Fault::NotNamed => lists(Vec::new(), Vec::new()),
            Fault::NotReached => not_reached(),
            Fault::Throttled => reply(100, "超过每分钟最大调用频率限制，请稍后", None),
            Fault::Busy => lists(Vec::new(), errors("单据被占用，请稍后重试")),
            Fault::ListRefused => reply(100, "单号不能为空", None),
            Fault::NotPermitted => reply(100, "权限不足", None),
            Fault::CallRefused => reply(8, "版本错误", None),
            Fault::NotFound => reply(100, NOT_FOUND, None),
        }
    }

    /// The plain course: each order is cancelled, or the answer says why not.
    fn cancels(&mut self, keys: &[Key]) -> CallEnd<CancelLists> {
        let mut lists = CancelLists::default();
        for key in keys {
            let no = key.1.to_string();
            match self.states.get(key) {
                Some(State::Cancellable) => {
                    self.execute(key);
                    lists.success.push(no);
                }
                Some(State::Closed | State::Cancelled { .. }) => {
                    lists.error.push((no, STATE.into()));
                }
                Some(State::Absent) | None => lists.error.push((no, NOT_FOUND.into())),
            }
        }
        reply(0, "", Some(lists))
    }

    pub fn look_up(&mut self, lane: LaneId, no: &OrderNo) -> CallEnd<Vec<FoundOrder>> {
        let outcomes = if self.left.faults > 0 { 6 } else { 1 };
        let outcome = self.choices.pick(outcomes);
        self.left.faults -= usize::from(outcome != 0);
        match outcome {
            1 => lost(),
            2 => reply(100, "超过每分钟最大调用频率限制，请稍后", None),
            // A warehouse that it may not see.
            3 => reply(0, "", Some(Vec::new())),
            4 => reply(1, "验证失败", None),
            5 => not_reached(),
            _ if !self.config.may_query => reply(100, "权限不足", None),
            _ => {
                let key = (lane, no.clone());
                let status = match self.states.get(&key) {
                    Some(State::Cancellable) => 20,
                    Some(State::Closed) => 70,
                    Some(State::Cancelled { .. }) => 80,
                    Some(State::Absent) | None => return reply(0, "", Some(Vec::new())),
                };
                self.in_doubt.remove(&key);
                let number = no.to_string();
                reply(0, "", Some(vec![FoundOrder { number, status }]))
            }
        }
    }
}
