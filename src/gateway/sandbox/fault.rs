//! What can go wrong on request, and what an order's number says about it.
//!
//! Three kinds of fault, because three places play them: a [`CallFault`] decides how a whole answer
//! travels, an [`OrderFault`] what one answer says about one order, and [`Lasting`] ones are part of
//! what an order is. [`PREFIXES`] is the one table that behaviour and help text are both taken from.

use std::str::FromStr;

/// A document that is not sent anywhere yet (编辑中).
pub const STATE_EDITING: u16 = 1;
/// Checked, and the state of every order the sandbox hears of for the first time (已审核).
pub const STATE_CHECKED: u16 = 20;
/// Handed to the warehouse (已推送wms): too late, except for a `-1` document.
pub const STATE_AT_WAREHOUSE: u16 = 40;
/// Shipped (已完成).
pub const STATE_DONE: u16 = 70;
/// Cancelled (已取消).
pub const STATE_CANCELLED: u16 = 80;

/// How one whole call goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallFault {
    /// Executed, then the connection is closed without a byte of an answer.
    Lost,
    /// HTTP 500, not executed.
    Status500,
    /// HTTP 500, executed.
    Status500Executed,
    /// HTTP 200 with a page for people, not executed.
    Html,
    /// Executed; the connection is closed in the middle of the answer.
    Cut,
    /// Executed; the answer comes late.
    Slow,
    /// Refused for calling too often, not executed.
    Frequency,
    /// The connection is reset, not executed.
    Reset,
    /// HTTP 200 with nothing in it, not executed.
    Empty,
    /// HTTP 503 with `Retry-After: 1`, not executed.
    Unavailable,
}

/// How a cancel goes wrong for one order, this time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OrderFault {
    /// Refused for now: somebody else is working on the document.
    Busy,
    /// Cancelled, and named in both lists of the answer.
    Both,
    /// Cancelled, and named in neither list.
    Neither,
}

/// What is special about an order for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lasting {
    /// It has a `-1` document, and the answer to a cancel names that.
    Dash,
    /// Every cancel that names the order is refused as a whole.
    Bad,
}

/// Anything that goes wrong on request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Strikes a call.
    Call(CallFault),
    /// Strikes an order in one cancel.
    Order(OrderFault),
    /// Strikes an order for good.
    Lasting(Lasting),
}

impl CallFault {
    /// Whether the call takes effect although its caller cannot tell.
    pub const fn executes(self) -> bool {
        match self {
            Self::Lost | Self::Status500Executed | Self::Cut | Self::Slow => true,
            Self::Status500
            | Self::Html
            | Self::Frequency
            | Self::Reset
            | Self::Empty
            | Self::Unavailable => false,
        }
    }
}

impl Fault {
    /// Every fault.
    pub const ALL: [Self; 15] = [
        Self::Call(CallFault::Lost),
        Self::Call(CallFault::Status500),
        Self::Call(CallFault::Status500Executed),
        Self::Call(CallFault::Unavailable),
        Self::Call(CallFault::Html),
        Self::Call(CallFault::Empty),
        Self::Call(CallFault::Cut),
        Self::Call(CallFault::Slow),
        Self::Call(CallFault::Reset),
        Self::Call(CallFault::Frequency),
        Self::Order(OrderFault::Busy),
        Self::Order(OrderFault::Both),
        Self::Order(OrderFault::Neither),
        Self::Lasting(Lasting::Dash),
        Self::Lasting(Lasting::Bad),
    ];

    /// The word for it in `--fault` and in the printed lines.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Call(CallFault::Lost) => "lost",
            Self::Call(CallFault::Status500) => "500",
            Self::Call(CallFault::Status500Executed) => "500-executed",
            Self::Call(CallFault::Unavailable) => "unavailable",
            Self::Call(CallFault::Html) => "html",
            Self::Call(CallFault::Empty) => "empty",
            Self::Call(CallFault::Cut) => "cut",
            Self::Call(CallFault::Slow) => "slow",
            Self::Call(CallFault::Reset) => "reset",
            Self::Call(CallFault::Frequency) => "frequency",
            Self::Order(OrderFault::Busy) => "busy",
            Self::Order(OrderFault::Both) => "both",
            Self::Order(OrderFault::Neither) => "neither",
            Self::Lasting(Lasting::Dash) => "dash",
            Self::Lasting(Lasting::Bad) => "bad",
        }
    }

    /// The fault of this name, if it is one.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|fault| fault.as_str() == name)
    }

    /// All names, for people.
    pub fn names() -> String {
        Self::ALL.map(Self::as_str).join(", ")
    }
}

/// What an order is like from the first time it is heard of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nature {
    /// It is in this state.
    State(u16),
    /// There is no such order.
    Missing,
    /// It is checked, and refused for a reason of its own.
    Refused,
    /// It is checked, and comes with this fault.
    Fault(Fault),
}

/// What numbers that begin like this are like, with the words of the help text. No prefix begins
/// another one.
pub const PREFIXES: [(&str, Nature, &str); 21] = [
    (
        "NONE-",
        Nature::Missing,
        "does not exist: 单据不存在; the query answers an empty list",
    ),
    (
        "EDIT-",
        Nature::State(STATE_EDITING),
        "is in state 1 (编辑中), which can be cancelled",
    ),
    (
        "WMS-",
        Nature::State(STATE_AT_WAREHOUSE),
        "is in state 40 (已推送wms), which cannot, unless the rest of the number ends with -1",
    ),
    (
        "DONE-",
        Nature::State(STATE_DONE),
        "is in state 70 (已完成), which cannot be cancelled",
    ),
    (
        "STATE80-",
        Nature::State(STATE_CANCELLED),
        "was cancelled long ago (80), which cannot be done again",
    ),
    (
        "REFUSE-",
        Nature::Refused,
        "is refused in words that say nothing about its state",
    ),
    (
        "DASH-",
        Nature::Fault(Fault::Lasting(Lasting::Dash)),
        "has a -1 document: a cancel answers for that one, the query shows both",
    ),
    (
        "BAD-",
        Nature::Fault(Fault::Lasting(Lasting::Bad)),
        "makes the gateway refuse the whole call, every time",
    ),
    (
        "BUSY-",
        Nature::Fault(Fault::Order(OrderFault::Busy)),
        "is being worked on by somebody else: 请稍后重试",
    ),
    (
        "BOTH-",
        Nature::Fault(Fault::Order(OrderFault::Both)),
        "is cancelled, and named in both lists",
    ),
    (
        "NEITHER-",
        Nature::Fault(Fault::Order(OrderFault::Neither)),
        "is cancelled, and named in neither list",
    ),
    (
        "LOST-",
        Nature::Fault(Fault::Call(CallFault::Lost)),
        "the call is executed, the connection closed without an answer",
    ),
    (
        "CUT-",
        Nature::Fault(Fault::Call(CallFault::Cut)),
        "the call is executed, the connection closed in mid-answer",
    ),
    (
        "SLOW-",
        Nature::Fault(Fault::Call(CallFault::Slow)),
        "the call is executed, the answer comes after --slow",
    ),
    (
        "E500X-",
        Nature::Fault(Fault::Call(CallFault::Status500Executed)),
        "HTTP 500, and the call is executed",
    ),
    (
        "E500-",
        Nature::Fault(Fault::Call(CallFault::Status500)),
        "HTTP 500, and the call is not executed",
    ),
    (
        "E503-",
        Nature::Fault(Fault::Call(CallFault::Unavailable)),
        "HTTP 503 with Retry-After: 1, not executed",
    ),
    (
        "HTML-",
        Nature::Fault(Fault::Call(CallFault::Html)),
        "an HTML page with HTTP 200, not executed",
    ),
    (
        "EMPTY-",
        Nature::Fault(Fault::Call(CallFault::Empty)),
        "HTTP 200 and no body, not executed",
    ),
    (
        "RESET-",
        Nature::Fault(Fault::Call(CallFault::Reset)),
        "the connection is reset, the call not executed",
    ),
    (
        "FREQ-",
        Nature::Fault(Fault::Call(CallFault::Frequency)),
        "refused as one call too many in a minute (status 100), not executed",
    ),
];

impl Nature {
    /// What an order of this number is like.
    pub fn of(number: &str) -> Self {
        PREFIXES
            .iter()
            .find(|(prefix, ..)| number.starts_with(prefix))
            .map_or(Self::State(STATE_CHECKED), |(_, nature, _)| *nature)
    }

    /// The state the order is in before anyone cancels it; `None` when there is no such order.
    pub const fn state(self) -> Option<u16> {
        match self {
            Self::State(state) => Some(state),
            Self::Missing => None,
            Self::Refused | Self::Fault(_) => Some(STATE_CHECKED),
        }
    }
}

/// Whether the number names a `-1` document: what follows its prefix ends with `-1`, so that
/// `WMS-1` is an order and `WMS-1-1` its document.
pub fn is_dash_document(number: &str) -> bool {
    let rest = PREFIXES
        .iter()
        .find_map(|(prefix, ..)| number.strip_prefix(prefix))
        .unwrap_or(number);
    rest.ends_with("-1")
}

/// One fault that strikes by chance, read from `FAULT=RATE`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate {
    /// What strikes.
    pub fault: Fault,
    /// How often, from 0 to 1: of all calls, of all orders in cancels, or of all orders.
    pub rate: f64,
}

/// Why something is not a fault with its rate.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum RateError {
    /// No such fault.
    #[error("{0:?} is not a fault; there are {names}", names = Fault::names())]
    Unknown(String),
    /// The rate is missing or not a number from 0 to 1.
    #[error("{0:?} does not read FAULT=RATE with a rate from 0 to 1, e.g. lost=0.05")]
    NotARate(String),
    /// Only one fault can strike a call, and one an order.
    #[error("the rates of faults that exclude one another add up to {0}; 1 is the most")]
    TooMuch(f64),
}

impl FromStr for Rate {
    type Err = RateError;

    fn from_str(text: &str) -> Result<Self, RateError> {
        let not_a_rate = || RateError::NotARate(text.to_owned());
        let (name, rate) = text.split_once('=').ok_or_else(not_a_rate)?;
        let fault = Fault::parse(name).ok_or_else(|| RateError::Unknown(name.to_owned()))?;
        let rate = rate
            .parse::<f64>()
            .ok()
            .filter(|rate| (0.0..=1.0).contains(rate))
            .ok_or_else(not_a_rate)?;
        Ok(Self { fault, rate })
    }
}

/// The faults that strike by chance, each kind by itself.
#[derive(Debug, Clone, Default)]
pub struct Rates {
    call: Dice<CallFault>,
    order: Dice<OrderFault>,
    lasting: Dice<Lasting>,
}

impl Rates {
    /// Checks that all the rates can be kept.
    ///
    /// # Errors
    /// [`RateError::TooMuch`] when those of one kind add up to more than 1.
    pub fn new(rates: &[Rate]) -> Result<Self, RateError> {
        let mut made = Self::default();
        for Rate { fault, rate } in rates.iter().copied() {
            match fault {
                Fault::Call(fault) => made.call.0.push((fault, rate)),
                Fault::Order(fault) => made.order.0.push((fault, rate)),
                Fault::Lasting(fault) => made.lasting.0.push((fault, rate)),
            }
        }
        for sum in [made.call.sum(), made.order.sum(), made.lasting.sum()] {
            // A hair over 1 is what ten times 0.1 may come to in floating point.
            if sum > 1.0 + 1e-9 {
                return Err(RateError::TooMuch(sum));
            }
        }
        Ok(made)
    }

    /// The fault that strikes one call.
    pub fn call(&self, rng: &mut fastrand::Rng) -> Option<CallFault> {
        self.call.roll(rng)
    }

    /// The fault that strikes one order in one cancel.
    pub fn order(&self, rng: &mut fastrand::Rng) -> Option<OrderFault> {
        self.order.roll(rng)
    }

    /// The fault that an order is given for good, when it is first heard of.
    pub fn lasting(&self, rng: &mut fastrand::Rng) -> Option<Lasting> {
        self.lasting.roll(rng)
    }
}

/// Faults that exclude one another, each with its chance.
#[derive(Debug, Clone)]
struct Dice<F>(Vec<(F, f64)>);

impl<F> Default for Dice<F> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<F: Copy> Dice<F> {
    fn sum(&self) -> f64 {
        self.0.iter().map(|(_, rate)| rate).sum()
    }

    fn roll(&self, rng: &mut fastrand::Rng) -> Option<F> {
        if self.0.is_empty() {
            return None;
        }
        let mut left = rng.f64();
        for (fault, rate) in &self.0 {
            if left < *rate {
                return Some(*fault);
            }
            left -= rate;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_prefix_begins_another() {
        for (a, ..) in PREFIXES {
            let begun = PREFIXES.iter().filter(|(b, ..)| b.starts_with(a)).count();
            assert_eq!(begun, 1, "{a}");
        }
    }

    #[test]
    fn every_fault_can_be_asked_for_by_rate_and_by_prefix() {
        for fault in Fault::ALL {
            let text = format!("{}=0.25", fault.as_str());
            assert_eq!(text.parse(), Ok(Rate { fault, rate: 0.25 }), "{text}");
            let nature = Nature::Fault(fault);
            assert!(PREFIXES.iter().any(|(_, n, _)| *n == nature), "{fault:?}");
        }
    }

    #[test]
    fn what_is_not_a_rate_is_refused() {
        assert_eq!(
            "losst=0.1".parse::<Rate>(),
            Err(RateError::Unknown("losst".into()))
        );
        for text in [
            "lost",
            "lost=",
            "lost=often",
            "lost=1.1",
            "lost=-0.1",
            "lost=NaN",
        ] {
            assert_eq!(
                text.parse::<Rate>(),
                Err(RateError::NotARate(text.into())),
                "{text}"
            );
        }
    }

    #[test]
    fn rates_of_one_kind_share_a_whole() {
        let rates = |texts: &[&str]| -> Result<(), RateError> {
            let rates: Vec<Rate> = texts.iter().map(|t| t.parse().unwrap()).collect();
            Rates::new(&rates).map(drop)
        };
        assert_eq!(
            rates(&["lost=0.5", "500=0.6"]),
            Err(RateError::TooMuch(1.1))
        );
        assert_eq!(rates(&["lost=0.5", "busy=0.6", "bad=1"]), Ok(()));
    }

    #[test]
    fn faults_strike_as_often_as_asked_and_the_same_with_the_same_seed() {
        let rates: Vec<Rate> = ["lost=0.05", "500=0.2"].map(|t| t.parse().unwrap()).into();
        let rates = Rates::new(&rates).unwrap();
        let strikes = |seed| -> Vec<Option<CallFault>> {
            let mut rng = fastrand::Rng::with_seed(seed);
            (0..10_000).map(|_| rates.call(&mut rng)).collect()
        };
        let struck = strikes(7);
        let count = |fault| struck.iter().filter(|s| **s == fault).count();
        assert!((400..600).contains(&count(Some(CallFault::Lost))));
        assert!((1_800..2_200).contains(&count(Some(CallFault::Status500))));
        assert_eq!(struck, strikes(7));
        assert_ne!(struck, strikes(8));
    }

    #[test]
    fn a_dash_document_is_told_by_what_follows_the_prefix() {
        for (number, is) in [
            ("WMS-1", false),
            ("WMS-1-1", true),
            ("QC2024-1", true),
            ("QC2024-11", false),
            ("DASH-1", false),
        ] {
            assert_eq!(is_dash_document(number), is, "{number}");
        }
    }
}
