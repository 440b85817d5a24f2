//! A ready-made handler for the gateway: it keeps the orders' states and answers as the platform
//! would. Hooks replace single answers, with or without the call being executed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use serde_json::{Value, json};

use super::gateway::{Answer, CANCEL, QUERY, Request};

/// 已审核: an order that nobody said anything about exists and can be cancelled.
const APPROVED: i64 = 20;
/// 已取消.
const CANCELLED: i64 = 80;
/// The platform's words for an order whose state forbids it.
pub const NOT_CANCELLABLE: &str = "单据状态不是编辑中、待审核、已审核，不允许取消";
/// The platform's words for an order that it does not know.
pub const NO_SUCH_ORDER: &str = "单据不存在";

/// One call, for a hook to decide on.
pub struct Call<'a> {
    /// Which call of its method it is, from 1.
    pub nth: usize,
    /// The order numbers in it.
    pub orders: &'a [String],
    pub request: &'a Request,
}

impl Call<'_> {
    /// True for a cancel.
    pub fn is_cancel(&self) -> bool {
        self.request.method() == CANCEL
    }

    /// True for a look-up.
    pub fn is_query(&self) -> bool {
        self.request.method() == QUERY
    }

    /// True when this order is in it.
    pub fn has(&self, number: &str) -> bool {
        self.orders.iter().any(|o| o == number)
    }
}

type Hook = Box<dyn FnMut(&Call<'_>) -> Option<Answer> + Send>;

/// The states of the orders. Clones share them.
#[derive(Clone, Default)]
pub struct Orders {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// `None`: there is no such order.
    status: BTreeMap<String, Option<i64>>,
    refused: BTreeMap<String, String>,
    calls: BTreeMap<String, usize>,
    sent: BTreeMap<String, usize>,
    executed: BTreeMap<String, usize>,
    looked_up: BTreeMap<String, usize>,
    instead: Option<Hook>,
    afterwards: Option<Hook>,
}

impl Orders {
    /// Every order exists with status 20, until said otherwise.
    pub fn new() -> Self {
        Self::default()
    }

    /// For [`Gateway::start`](super::gateway::Gateway::start).
    pub fn handler(&self) -> impl Fn(&Request) -> Answer + Send + Sync + use<> {
        let orders = self.clone();
        move |request| orders.state().answer(request)
    }

    /// Sets an order's status: 1, 10, 20, 40, 60, 65, 70 or 80.
    pub fn set(&self, number: &str, status: i64) -> &Self {
        self.state().status.insert(number.into(), Some(status));
        self
    }

    /// There is no such order.
    pub fn remove(&self, number: &str) -> &Self {
        self.state().status.insert(number.into(), None);
        self
    }

    /// This order's cancel is refused in these words, whatever its status. Empty words end that.
    pub fn refuse(&self, number: &str, words: &str) -> &Self {
        self.state().refused.insert(number.into(), words.into());
        self
    }

    /// A hook that may answer a call instead: it is then *not* executed.
    pub fn instead(&self, hook: impl FnMut(&Call<'_>) -> Option<Answer> + Send + 'static) -> &Self {
        self.state().instead = Some(Box::new(hook));
        self
    }

    /// A hook that may replace the answer of a call that *was* executed.
    pub fn afterwards(
        &self,
        hook: impl FnMut(&Call<'_>) -> Option<Answer> + Send + 'static,
    ) -> &Self {
        self.state().afterwards = Some(Box::new(hook));
        self
    }

    /// An order's status; `None` when there is no such order.
    pub fn status(&self, number: &str) -> Option<i64> {
        self.state().status_of(number)
    }

    /// In how many cancel calls an order was, answered or not.
    pub fn times_sent(&self, number: &str) -> usize {
        count(&self.state().sent, number)
    }

    /// How many cancel calls have cancelled it. A second one would be a real order's second life.
    pub fn times_executed(&self, number: &str) -> usize {
        count(&self.state().executed, number)
    }

    /// How often it was looked up.
    pub fn times_looked_up(&self, number: &str) -> usize {
        count(&self.state().looked_up, number)
    }

    /// How many calls of a method there were.
    pub fn calls(&self, method: &str) -> usize {
        count(&self.state().calls, method)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("the orders' states")
    }
}

fn count(counts: &BTreeMap<String, usize>, name: &str) -> usize {
    counts.get(name).copied().unwrap_or(0)
}

fn count_up(counts: &mut BTreeMap<String, usize>, name: &str) -> usize {
    let count = counts.entry(name.into()).or_default();
    *count += 1;
    *count
}

impl State {
    fn status_of(&self, number: &str) -> Option<i64> {
        self.status.get(number).copied().unwrap_or(Some(APPROVED))
    }

    fn answer(&mut self, request: &Request) -> Answer {
        let numbers = request.orders();
        let call = Call {
            nth: count_up(&mut self.calls, request.method()),
            orders: &numbers,
            request,
        };
        let counts = match request.method() {
            CANCEL => Some(&mut self.sent),
            QUERY => Some(&mut self.looked_up),
            _ => None,
        };
        if let Some(counts) = counts {
            for number in &numbers {
                count_up(counts, number);
            }
        }
        let instead = self.instead.as_mut().and_then(|hook| hook(&call));
        if let Some(answer) = instead {
            return answer;
        }
        let answer = match request.method() {
            CANCEL => self.cancel(&numbers),
            QUERY => self.query(&numbers[0]),
            // The form of the real answer is not known; this one is the plainest.
            _ => Answer::Json(json!({ "status": 0, "data": request.gateway_time })),
        };
        let afterwards = self.afterwards.as_mut().and_then(|hook| hook(&call));
        afterwards.unwrap_or(answer)
    }

    fn cancel(&mut self, numbers: &[String]) -> Answer {
        let mut cancelled: Vec<String> = Vec::new();
        let mut refused: Vec<(String, String)> = Vec::new();
        for number in numbers {
            let words = self.refused.get(number).filter(|words| !words.is_empty());
            if let Some(words) = words {
                refused.push((number.clone(), words.clone()));
            } else if let Some(document) = self.cancellable(number) {
                self.status.insert(document.clone(), Some(CANCELLED));
                count_up(&mut self.executed, number);
                cancelled.push(document);
            } else if self.status_of(number).is_none() {
                refused.push((number.clone(), NO_SUCH_ORDER.into()));
            } else {
                refused.push((number.clone(), NOT_CANCELLABLE.into()));
            }
        }
        Answer::orders(&cancelled, &refused)
    }

    /// The document that a cancel of this number cancels: itself, or its `-1` document.
    fn cancellable(&self, number: &str) -> Option<String> {
        if matches!(self.status_of(number), Some(1 | 10 | 20)) {
            return Some(number.into());
        }
        let dash_one = format!("{number}-1");
        // Only one that the test has set: the default would give every order a `-1` document.
        let status = self.status.get(&dash_one)?;
        matches!(status, Some(1 | 10 | 20 | 40)).then_some(dash_one)
    }

    fn query(&self, number: &str) -> Answer {
        let orders: Vec<Value> = self
            .status_of(number)
            .map(|status| json!({ "other_out_no": number, "status": status }))
            .into_iter()
            .collect();
        Answer::Json(json!({
            "status": 0,
            "data": { "total_count": orders.len(), "order": orders },
        }))
    }
}
