//! Which commands are taken, and what is wrong with the others.
//!
//! Every complaint names the field, what was found there and what would do.

use std::collections::HashSet;
use std::sync::Arc;

use jiff::Timestamp;
use md5::{Digest, Md5};

use super::order::{AccountName, COMMAND_ID_MAX_BYTES, CommandId, ORDER_NO_MAX_CHARS, OrderNo};
use super::order::{Reason, ReasonCode};
use super::trace::TraceParent;

/// Most orders in one command (contract §2).
pub const ORDERS_MAX: usize = 10_000;
/// How much of a value that somebody sent is shown back, in characters.
const SHOWN_MAX_CHARS: usize = 60;
/// The account of a command that names none.
const DEFAULT_ACCOUNT: &str = "default";
/// How many of the known accounts a complaint lists.
const ACCOUNTS_SHOWN: usize = 10;

/// A command's body, read but not yet believed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RawCommand {
    /// `order_no_list`: each a text, or what was found instead of one.
    /// At most [`ORDERS_MAX`] of them.
    pub order_no_list: Vec<Result<String, String>>,
    /// Entries of the list beyond those.
    pub more_orders: usize,
    /// `account`.
    pub account: Option<String>,
    /// `deadline`.
    pub deadline: Option<String>,
    /// `command_id`.
    pub command_id: Option<String>,
}

/// The properties of the message that carried a command.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RawProperties {
    /// `message_id`.
    pub message_id: Option<String>,
    /// `correlation_id`.
    pub correlation_id: Option<String>,
    /// `reply_to`.
    pub reply_to: Option<String>,
    /// Header `traceparent`, where it is one; the command's own step in that trace, once it has one.
    pub traceparent: Option<TraceParent>,
    /// Header `tracestate`.
    pub tracestate: Option<String>,
}

/// What every event of a command repeats.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    /// The idempotency key.
    pub command_id: CommandId,
    /// Whether we made the id, so that a second delivery cannot be recognised by it.
    pub id_is_ours: bool,
    /// Echoed; the command's id where the command has none.
    pub correlation_id: Arc<str>,
    /// Where a copy of each event goes; only ever an allowed one.
    pub reply_to: Option<Arc<str>>,
    /// This command's own step in its trace, which its events name.
    pub traceparent: Option<TraceParent>,
    /// Goes with it.
    pub tracestate: Option<Arc<str>>,
}

/// The same orders have the same fingerprint, in whatever sequence they are listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub [u8; 16]);

/// One order of a command, or an entry that is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// An order to be cancelled.
    Order(OrderNo),
    /// What was listed, and what is wrong with it.
    Invalid(Arc<str>, Reason),
}

impl Entry {
    /// The order's number as an event tells it.
    pub fn shown(&self) -> &str {
        match self {
            Self::Order(order) => order.as_str(),
            Self::Invalid(shown, _) => shown,
        }
    }
}

/// A command that is taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// What its events repeat.
    pub envelope: Arc<Envelope>,
    /// Whose orders these are.
    pub account: AccountName,
    /// Each number once, in the sequence listed.
    pub entries: Vec<Entry>,
    /// After this, no call is made for it.
    pub deadline: Option<Timestamp>,
    /// Of its entries.
    pub fingerprint: Fingerprint,
}

/// A command that is not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// What its events repeat.
    pub envelope: Arc<Envelope>,
    /// The account it names, when the settings know it.
    pub account: Option<AccountName>,
    /// The account as its events tell it.
    pub account_shown: Arc<str>,
    /// The numbers it lists, for an event each. Empty when it cannot be read as a list of orders:
    /// then one event tells of the command as a whole, and the command is dead-lettered.
    pub orders: Vec<Arc<str>>,
    /// What is wrong.
    pub reason: Reason,
}

impl Rejection {
    /// Rejects a command that was read well, for what is recorded of it.
    pub fn of(command: &Command, reason: Reason) -> Self {
        Self {
            envelope: Arc::clone(&command.envelope),
            account: Some(command.account.clone()),
            account_shown: command.account.as_str().into(),
            orders: command.entries.iter().map(|e| e.shown().into()).collect(),
            reason,
        }
    }
}

/// Taken or not.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum Admission {
    /// It may go on.
    Accepted(Command),
    /// It goes no further.
    Rejected(Rejection),
}

impl Admission {
    /// What its events repeat.
    pub fn envelope(&self) -> &Arc<Envelope> {
        match self {
            Self::Accepted(command) => &command.envelope,
            Self::Rejected(rejection) => &rejection.envelope,
        }
    }
}

/// What the settings say of commands.
pub trait House {
    /// The names of the accounts.
    fn accounts(&self) -> impl Iterator<Item = &AccountName>;
    /// May events be sent to this queue?
    fn allows_reply_to(&self, queue: &str) -> bool;
}

/// Judges one command. `raw` is its body, or what is wrong with it; `fresh_id` serves when it
/// brings no id of its own.
pub fn admit(
    raw: Result<RawCommand, String>,
    properties: RawProperties,
    fresh_id: impl FnOnce() -> CommandId,
    house: &impl House,
) -> Admission {
    let own_id = properties
        .message_id
        .as_deref()
        .and_then(CommandId::new)
        .or_else(|| {
            let body_id = raw.as_ref().ok()?.command_id.as_deref()?;
            CommandId::new(body_id)
        });
    let id_is_ours = own_id.is_none();
    let command_id = own_id.unwrap_or_else(fresh_id);
    let (reply_to, reply_to_refused) = match properties.reply_to.filter(|q| !q.is_empty()) {
        Some(queue) if house.allows_reply_to(&queue) => (Some(queue.into()), None),
        other => (None, other),
    };
    let envelope = Arc::new(Envelope {
        correlation_id: match properties.correlation_id {
            Some(id) if !id.is_empty() => id.into(),
            _ => command_id.as_str().into(),
        },
        command_id,
        id_is_ours,
        reply_to,
        traceparent: properties.traceparent,
        tracestate: properties.tracestate.map(Into::into),
    });

    let (known, account_shown) = match &raw {
        Ok(raw) => {
            let named = raw.account.as_deref().unwrap_or(DEFAULT_ACCOUNT);
            let known = house.accounts().find(|a| a.as_str() == named).cloned();
            (known, shorten(named))
        }
        Err(_) => (None, "_".to_owned()),
    };
    let reject = |orders: Vec<Arc<str>>, code: ReasonCode, message: String| {
        Admission::Rejected(Rejection {
            envelope: Arc::clone(&envelope),
            account: known.clone(),
            account_shown: account_shown.as_str().into(),
            orders,
            reason: Reason::new(code, message),
        })
    };

    let raw = match raw {
        Ok(raw) => raw,
        Err(complaint) => return reject(Vec::new(), ReasonCode::Malformed, complaint),
    };
    let deadline = match raw.deadline.as_deref().map(str::parse::<Timestamp>) {
        None => None,
        Some(Ok(deadline)) => Some(deadline),
        Some(Err(_)) => {
            let found = shorten(raw.deadline.as_deref().unwrap_or_default());
            let complaint = format!(
                "deadline: found {found:?}; expected a time with its offset (RFC 3339), such as 2026-11-24T08:00:00+08:00"
            );
            return reject(Vec::new(), ReasonCode::Malformed, complaint);
        }
    };
    if raw
        .command_id
        .as_deref()
        .is_some_and(|id| CommandId::new(id).is_none())
    {
        let complaint = format!(
            "command_id: found {} bytes; expected 1 to {COMMAND_ID_MAX_BYTES}",
            raw.command_id.as_deref().unwrap_or_default().len(),
        );
        return reject(Vec::new(), ReasonCode::Malformed, complaint);
    }
    let listed = raw.order_no_list.len().saturating_add(raw.more_orders);
    if listed == 0 {
        let complaint = format!("order_no_list: found no orders; expected 1 to {ORDERS_MAX}");
        return reject(Vec::new(), ReasonCode::NoOrders, complaint);
    }
    if listed > ORDERS_MAX {
        let complaint = format!(
            "order_no_list: found {listed} orders; expected at most {ORDERS_MAX}: send them in several commands"
        );
        return reject(Vec::new(), ReasonCode::TooManyOrders, complaint);
    }
    let entries = entries(&raw.order_no_list);
    let numbers = || entries.iter().map(|e| e.shown().into()).collect();
    if let Some(queue) = reply_to_refused {
        let complaint = format!(
            "reply_to: found {:?}, which matches none of amqp.reply_to_allow; name a queue that does",
            shorten(&queue),
        );
        return reject(numbers(), ReasonCode::ReplyToNotAllowed, complaint);
    }
    let Some(account) = known.clone() else {
        let mut names: Vec<&str> = house.accounts().map(AccountName::as_str).collect();
        let more = names.len().saturating_sub(ACCOUNTS_SHOWN);
        names.truncate(ACCOUNTS_SHOWN);
        let names = names.join(", ");
        let more = if more > 0 {
            format!(" and {more} more")
        } else {
            String::new()
        };
        let complaint = format!(
            "account: found {account_shown:?}, which is not in the settings; known: {names}{more}"
        );
        return reject(numbers(), ReasonCode::UnknownAccount, complaint);
    };
    Admission::Accepted(Command {
        fingerprint: fingerprint(&entries),
        envelope,
        account,
        entries,
        deadline,
    })
}

/// Each number once, in the sequence listed; an invalid one stands for itself.
fn entries(listed: &[Result<String, String>]) -> Vec<Entry> {
    let mut seen = HashSet::with_capacity(listed.len());
    let mut entries = Vec::with_capacity(listed.len());
    for (place, found) in listed.iter().enumerate() {
        let invalid = |shown: &str, what: String| {
            let complaint = format!("order_no_list[{place}] {what}");
            Entry::Invalid(
                shown.into(),
                Reason::new(ReasonCode::InvalidOrderNo, complaint),
            )
        };
        let entry = match found {
            Ok(text) => match OrderNo::new(text) {
                Ok(order) => Entry::Order(order),
                // In full: two that differ only far behind are two, with an event each.
                Err(error) => invalid(text.trim(), error.to_string()),
            },
            // Longer than any order number, so that it is never taken for one: `null` is not `"null"`.
            Err(found) => invalid(
                &format!(
                    "{} instead of a string of 1 to {ORDER_NO_MAX_CHARS} characters",
                    shorten(found)
                ),
                format!(
                    "is {}; expected a string of 1 to {ORDER_NO_MAX_CHARS} characters",
                    shorten(found)
                ),
            ),
        };
        if seen.insert(entry.shown().to_owned()) {
            entries.push(entry);
        }
    }
    entries
}

fn fingerprint(entries: &[Entry]) -> Fingerprint {
    let mut numbers: Vec<&str> = entries.iter().map(Entry::shown).collect();
    numbers.sort_unstable();
    let mut hash = Md5::new();
    for number in numbers {
        hash.update(number.as_bytes());
        // No order number holds a control character, so this parts them for certain.
        hash.update(b"\n");
    }
    Fingerprint(hash.finalize().into())
}

/// As much of a text as is shown back to people.
fn shorten(text: &str) -> String {
    match text.char_indices().nth(SHOWN_MAX_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Shop(Vec<AccountName>);

    impl House for Shop {
        fn accounts(&self) -> impl Iterator<Item = &AccountName> {
            self.0.iter()
        }
        fn allows_reply_to(&self, queue: &str) -> bool {
            queue.starts_with("amq.gen-")
        }
    }

    fn shop() -> Shop {
        Shop(
            ["default", "b2b"]
                .map(|n| AccountName::new(n).unwrap())
                .into(),
        )
    }

    fn raw(numbers: &[&str]) -> RawCommand {
        RawCommand {
            order_no_list: numbers.iter().map(|n| Ok((*n).to_owned())).collect(),
            ..RawCommand::default()
        }
    }

    fn admitted(raw: Result<RawCommand, String>, properties: RawProperties) -> Admission {
        admit(
            raw,
            properties,
            || CommandId::new("fresh").unwrap(),
            &shop(),
        )
    }

    fn accepted(raw: RawCommand) -> Command {
        match admitted(Ok(raw), RawProperties::default()) {
            Admission::Accepted(command) => command,
            Admission::Rejected(rejection) => panic!("rejected: {rejection:?}"),
        }
    }

    fn rejected(raw: Result<RawCommand, String>, properties: RawProperties) -> Rejection {
        match admitted(raw, properties) {
            Admission::Rejected(rejection) => rejection,
            Admission::Accepted(command) => panic!("accepted: {command:?}"),
        }
    }

    #[test]
    fn a_number_counts_once_and_an_invalid_one_for_itself() {
        let command = accepted(RawCommand {
            order_no_list: vec![
                Ok(" A ".into()),
                Ok("A".into()),
                Ok(String::new()),
                Ok("x".repeat(41)),
                Ok("单\u{7}".into()),
                Err("the number 7".into()),
                Ok("单".repeat(40)),
                Ok("y".repeat(100)),
                Ok("y".repeat(101)),
                Ok("y".repeat(100)),
            ],
            ..RawCommand::default()
        });
        let shown: Vec<String> = command
            .entries
            .iter()
            .map(|e| match e {
                Entry::Order(order) => order.to_string(),
                Entry::Invalid(_, reason) => format!("! {}", reason.message),
            })
            .collect();
        assert_eq!(
            shown,
            [
                "A",
                "! order_no_list[2] is empty; an order number has 1 to 40 characters",
                "! order_no_list[3] has 41 characters; an order number has 1 to 40",
                "! order_no_list[4] holds the control character U+0007; an order number has none",
                "! order_no_list[5] is the number 7; expected a string of 1 to 40 characters",
                &"单".repeat(40),
                "! order_no_list[7] has 100 characters; an order number has 1 to 40",
                "! order_no_list[8] has 101 characters; an order number has 1 to 40",
            ]
        );
    }

    #[test]
    fn what_is_no_string_is_never_taken_for_an_order_of_that_name() {
        for (found, number) in [("null", "null"), ("the number 7", "the number 7"), ("", "")] {
            let command = accepted(RawCommand {
                order_no_list: vec![Err(found.into()), Ok(number.into()), Ok("A".into())],
                ..RawCommand::default()
            });
            assert_eq!(command.entries.len(), 3, "{:?}", command.entries);
            let orders: Vec<_> = command
                .entries
                .iter()
                .filter(|entry| matches!(entry, Entry::Order(_)))
                .map(Entry::shown)
                .collect();
            let expected = [number, "A"];
            assert_eq!(orders, expected[usize::from(number.is_empty())..]);
            assert!(OrderNo::new(command.entries[0].shown()).is_err());
        }
    }

    #[test]
    fn the_id_comes_from_the_message_then_the_body_then_us() {
        let with = |message_id: Option<&str>, command_id: Option<&str>| {
            let raw = RawCommand {
                command_id: command_id.map(Into::into),
                ..raw(&["A"])
            };
            let properties = RawProperties {
                message_id: message_id.map(Into::into),
                ..RawProperties::default()
            };
            match admitted(Ok(raw), properties) {
                Admission::Accepted(c) => {
                    (c.envelope.command_id.to_string(), c.envelope.id_is_ours)
                }
                Admission::Rejected(r) => panic!("{r:?}"),
            }
        };
        assert_eq!(with(Some("m"), Some("b")), ("m".into(), false));
        assert_eq!(with(None, Some("b")), ("b".into(), false));
        assert_eq!(with(Some(""), None), ("fresh".into(), true));
    }

    #[test]
    fn the_same_orders_have_the_same_fingerprint() {
        let of = |numbers: &[&str]| accepted(raw(numbers)).fingerprint;
        assert_eq!(of(&["A", "B"]), of(&["B", " A", "B"]));
        assert_ne!(of(&["A", "B"]), of(&["A"]));
        assert_ne!(of(&["AB"]), of(&["A", "B"]));
    }

    #[test]
    fn complaints_name_field_finding_and_remedy() {
        let none = RawProperties::default;
        let check = |rejection: Rejection, code: ReasonCode, orders: usize, words: &[&str]| {
            assert_eq!(rejection.reason.code, code);
            assert_eq!(rejection.orders.len(), orders, "{rejection:?}");
            for word in words {
                assert!(
                    rejection.reason.message.contains(word),
                    "{rejection:?} lacks {word}"
                );
            }
        };
        check(
            rejected(Err("body: not JSON".into()), none()),
            ReasonCode::Malformed,
            0,
            &["body"],
        );
        check(
            rejected(Ok(raw(&[])), none()),
            ReasonCode::NoOrders,
            0,
            &["order_no_list", "10000"],
        );
        check(
            rejected(Ok(raw(&["A"; ORDERS_MAX + 1])), none()),
            ReasonCode::TooManyOrders,
            0,
            &["order_no_list", "10001", "10000"],
        );
        let late = RawCommand {
            deadline: Some("tomorrow".into()),
            ..raw(&["A"])
        };
        check(
            rejected(Ok(late), none()),
            ReasonCode::Malformed,
            0,
            &["deadline", "tomorrow", "3339"],
        );
        let other = RawCommand {
            account: Some("shop9".into()),
            ..raw(&["A", "B"])
        };
        let rejection = rejected(Ok(other), none());
        assert_eq!(
            (&*rejection.account_shown, &rejection.account),
            ("shop9", &None)
        );
        check(
            rejection,
            ReasonCode::UnknownAccount,
            2,
            &["account", "shop9", "b2b"],
        );
        let elsewhere = RawProperties {
            reply_to: Some("orders".into()),
            ..none()
        };
        let rejection = rejected(Ok(raw(&["A"])), elsewhere);
        assert_eq!(
            rejection.envelope.reply_to, None,
            "nothing goes where it may not"
        );
        check(
            rejection,
            ReasonCode::ReplyToNotAllowed,
            1,
            &["reply_to", "orders"],
        );
    }
}
