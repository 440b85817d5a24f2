//! The words everything else is said in: checked names, one order's outcome and its reason.
//!
//! A value of these types cannot be wrong: whoever holds an [`OrderNo`] needs no second check.

use std::fmt;
use std::sync::Arc;

/// Longest order number after trimming, in characters (contract §2).
pub const ORDER_NO_MAX_CHARS: usize = 40;
/// Longest account name, in bytes. It becomes one word of a routing key, which holds 255 bytes.
pub const ACCOUNT_NAME_MAX_BYTES: usize = 64;
/// Longest command id, in bytes: what AMQP's `message_id`, a short string, can hold.
pub const COMMAND_ID_MAX_BYTES: usize = 255;

/// The number of one stock-out document (其他出库业务单), e.g. `QC202409200002`:
/// 1 to 40 characters, trimmed, without control characters.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OrderNo(Arc<str>);

/// Why a text is not an order number. The text tells what would do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OrderNoError {
    /// Nothing is left after trimming.
    #[error("is empty; an order number has 1 to {ORDER_NO_MAX_CHARS} characters")]
    Empty,
    /// It has this many characters.
    #[error("has {0} characters; an order number has 1 to {ORDER_NO_MAX_CHARS}")]
    TooLong(usize),
    /// It holds this control character.
    #[error("holds the control character U+{:04X}; an order number has none", *.0 as u32)]
    Control(char),
}

impl OrderNo {
    /// Trims and checks.
    pub fn new(text: &str) -> Result<Self, OrderNoError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(OrderNoError::Empty);
        }
        if let Some(control) = text.chars().find(|c| c.is_control()) {
            return Err(OrderNoError::Control(control));
        }
        let chars = text.chars().count();
        if chars > ORDER_NO_MAX_CHARS {
            return Err(OrderNoError::TooLong(chars));
        }
        Ok(Self(text.into()))
    }

    /// The number as it is sent to the gateway.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for OrderNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for OrderNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OrderNo({})", &*self.0)
    }
}

/// The name of one seller's account in the settings: 1 to 64 of `A-Z a-z 0-9 _ -`, and not `_`
/// alone, which stands for "not known" in routing keys.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AccountName(Arc<str>);

impl AccountName {
    /// Checks; `None` when the text is not an account name.
    pub fn new(text: &str) -> Option<Self> {
        let fits = (1..=ACCOUNT_NAME_MAX_BYTES).contains(&text.len());
        let plain = text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
        (fits && plain && text != "_").then(|| Self(text.into()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for AccountName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The idempotency key of one command: 1 to 255 bytes, any text (contract §2).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CommandId(Arc<str>);

impl CommandId {
    /// Checks; `None` when the text is empty or longer than 255 bytes.
    pub fn new(text: &str) -> Option<Self> {
        (1..=COMMAND_ID_MAX_BYTES)
            .contains(&text.len())
            .then(|| Self(text.into()))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for CommandId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How one order of one command ended (contract §3). The set is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Outcome {
    /// The gateway said so, or the query showed status 80.
    Cancelled,
    /// The gateway answered for this order, and the answer is no.
    Refused,
    /// The command is not valid; nothing was sent for it.
    Rejected,
    /// The deadline passed before a call was made.
    Expired,
    /// Gave up, and the order was certainly not cancelled by us.
    Failed,
    /// Gave up, and it may have been cancelled.
    Unknown,
}

impl Outcome {
    /// Every outcome, in the contract's order.
    pub const ALL: [Self; 6] = [
        Self::Cancelled,
        Self::Refused,
        Self::Rejected,
        Self::Expired,
        Self::Failed,
        Self::Unknown,
    ];

    /// The contract's word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cancelled => "cancelled",
            Self::Refused => "refused",
            Self::Rejected => "rejected",
            Self::Expired => "expired",
            Self::Failed => "failed",
            Self::Unknown => "unknown",
        }
    }

    /// The outcome of this word, if it is one.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|o| o.as_str() == word)
    }
}

/// Why an order did not end as `cancelled` (contract §3). The set is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ReasonCode {
    /// Refused: its state does not allow it.
    OrderState,
    /// Refused: the gateway does not know the number.
    OrderNotFound,
    /// Refused for any other reason, which is passed on word for word.
    OrderRefused,
    /// Rejected: the command cannot be read.
    Malformed,
    /// Rejected: the list is empty.
    NoOrders,
    /// Rejected: this entry of the list is not an order number.
    InvalidOrderNo,
    /// Rejected: the list is longer than allowed.
    TooManyOrders,
    /// Rejected: no such account in the settings.
    UnknownAccount,
    /// Rejected: the command's id was used for other orders.
    CommandIdReused,
    /// Rejected: the settings do not allow this `reply_to`.
    ReplyToNotAllowed,
    /// Expired.
    DeadlinePassed,
    /// Failed: the gateway could not be made to do it in time.
    ApiUnavailable,
    /// Failed: the gateway does not take the call as such.
    ApiRefusedCall,
    /// Unknown: sent, and nobody can say what became of it.
    Unconfirmed,
}

impl ReasonCode {
    /// Every code, in the contract's order.
    pub const ALL: [Self; 14] = [
        Self::OrderState,
        Self::OrderNotFound,
        Self::OrderRefused,
        Self::Malformed,
        Self::NoOrders,
        Self::InvalidOrderNo,
        Self::TooManyOrders,
        Self::UnknownAccount,
        Self::CommandIdReused,
        Self::ReplyToNotAllowed,
        Self::DeadlinePassed,
        Self::ApiUnavailable,
        Self::ApiRefusedCall,
        Self::Unconfirmed,
    ];

    /// The contract's word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::OrderState => "order_state",
            Self::OrderNotFound => "order_not_found",
            Self::OrderRefused => "order_refused",
            Self::Malformed => "malformed",
            Self::NoOrders => "no_orders",
            Self::InvalidOrderNo => "invalid_order_no",
            Self::TooManyOrders => "too_many_orders",
            Self::UnknownAccount => "unknown_account",
            Self::CommandIdReused => "command_id_reused",
            Self::ReplyToNotAllowed => "reply_to_not_allowed",
            Self::DeadlinePassed => "deadline_passed",
            Self::ApiUnavailable => "api_unavailable",
            Self::ApiRefusedCall => "api_refused_call",
            Self::Unconfirmed => "unconfirmed",
        }
    }

    /// The code of this word, if it is one.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|c| c.as_str() == word)
    }

    /// The outcome that this code explains.
    pub const fn outcome(self) -> Outcome {
        match self {
            Self::OrderState | Self::OrderNotFound | Self::OrderRefused => Outcome::Refused,
            Self::Malformed
            | Self::NoOrders
            | Self::InvalidOrderNo
            | Self::TooManyOrders
            | Self::UnknownAccount
            | Self::CommandIdReused
            | Self::ReplyToNotAllowed => Outcome::Rejected,
            Self::DeadlinePassed => Outcome::Expired,
            Self::ApiUnavailable | Self::ApiRefusedCall => Outcome::Failed,
            Self::Unconfirmed => Outcome::Unknown,
        }
    }
}

/// A code for programs and words for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason {
    /// What programs decide on.
    pub code: ReasonCode,
    /// What people read; the gateway's own words where it said any.
    pub message: Arc<str>,
}

impl Reason {
    /// A reason in these words.
    pub fn new(code: ReasonCode, message: impl Into<Arc<str>>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }
}

/// How an order ended, with the reason exactly when it did not end as `cancelled`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// The order is cancelled.
    Cancelled,
    /// It is not, or nobody can say; the reason's code implies the outcome.
    Not(Reason),
}

impl Ending {
    /// An ending that is not `cancelled`.
    pub fn not(code: ReasonCode, message: impl Into<Arc<str>>) -> Self {
        Self::Not(Reason::new(code, message))
    }

    /// The contract's outcome.
    pub const fn outcome(&self) -> Outcome {
        match self {
            Self::Cancelled => Outcome::Cancelled,
            Self::Not(reason) => reason.code.outcome(),
        }
    }

    /// The reason, absent when cancelled.
    pub const fn reason(&self) -> Option<&Reason> {
        match self {
            Self::Cancelled => None,
            Self::Not(reason) => Some(reason),
        }
    }
}
