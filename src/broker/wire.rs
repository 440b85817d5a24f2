//! Commands from bytes, events to bytes (contract §2 and §3).

use std::fmt;

use jiff::Timestamp;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};
use md5::{Digest as _, Md5};
use serde::de::{Deserializer, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::rules::admit::{Envelope, ORDERS_MAX, RawCommand, RawProperties};
use crate::rules::desk::{Event, Parking, Telling};
use crate::rules::dry_run::Mode;
use crate::rules::poison::Digest;
use crate::rules::trace::{TraceParent, tracestate};

/// Largest body of a command, in bytes (contract §2).
pub const BODY_MAX_BYTES: usize = 1024 * 1024;
/// How much of what was found instead of a string is kept, in characters.
const FOUND_MAX_CHARS: usize = 100;
/// The namespace of event ids. Fixed for ever: a consumer that keeps ids for deduplication must see
/// the same one after an upgrade.
const EVENT_IDS: Uuid = Uuid::from_u128(0x3f6d_8a52_91c4_5e07_b2d8_6c1e_94a7_f035);
/// The same for dry runs, whose events must not be taken for repetitions of real ones.
const DRY_RUN_EVENT_IDS: Uuid = Uuid::from_u128(0x9b1e_47d3_06fa_5c28_8e75_a2d4_31c0_5f96);
/// Stands for a byte that is not part of UTF-8 ([`super::mend`]). Unicode's SUBSTITUTE is made for it.
pub(super) const SUBSTITUTE: char = '\u{1A}';
/// What an event's body takes, unless the gateway says much.
const EVENT_BYTES: usize = 512;
/// A timestamp from here on is in milliseconds: as seconds it is of the year 5138.
const SECONDS_MAX: i64 = 100_000_000_000;
/// `delivery_mode` of a message that survives a restart of the broker.
pub(super) const PERSISTENT: u8 = 2;

/// Reads a command. The error says what is wrong with the body.
pub fn read(
    body: &[u8],
    properties: &BasicProperties,
) -> (Result<RawCommand, String>, RawProperties) {
    let raw = match mended(properties) {
        Some(name) => Err(format!(
            "{name}: found bytes that are not UTF-8, or a control character in their place"
        )),
        None => read_body(body),
    };
    (raw, read_properties(properties))
}

fn read_body(body: &[u8]) -> Result<RawCommand, String> {
    if body.len() > BODY_MAX_BYTES {
        return Err(format!(
            "body: found {} bytes; expected at most {BODY_MAX_BYTES}: send the orders in several commands",
            body.len()
        ));
    }
    if body.is_empty() {
        return Err(
            r#"body: found nothing; expected a JSON object such as {"order_no_list": ["QC1"]}"#
                .into(),
        );
    }
    let text = std::str::from_utf8(body).map_err(|error| {
        format!(
            "body: byte {} is not UTF-8; expected a JSON object in UTF-8",
            error.valid_up_to()
        )
    })?;
    let value: &RawValue = serde_json::from_str(text)
        .map_err(|error| format!("body: not JSON ({error}); expected a JSON object"))?;
    if !value.get().starts_with('{') {
        return Err(format!(
            r#"body: found {}; expected a JSON object such as {{"order_no_list": ["QC1"]}}"#,
            kind(value)
        ));
    }
    // Readers of JSON differ in which of two fields of one name they take, so neither is.
    let fields: Fields<'_> = serde_json::from_str(value.get())
        .map_err(|error| format!("body: {error}; expected an object that names each field once"))?;
    let Some(list) = fields.order_no_list else {
        return Err("order_no_list: missing; expected a list of strings".into());
    };
    if !list.get().starts_with('[') {
        return Err(format!(
            "order_no_list: found {}; expected a list of strings",
            kind(list)
        ));
    }
    let mut entries = Vec::new();
    let more = serde_json::Deserializer::from_str(list.get())
        .deserialize_seq(Entries(&mut entries))
        .map_err(|error| format!("order_no_list: {error}; expected a list of strings"))?;
    let text = |name: &str, field: Option<&RawValue>| match field {
        None => Ok(None),
        Some(field) if field.get() == "null" => Ok(None),
        Some(field) => string(field)
            .map(Some)
            .map_err(|found| format!("{name}: found {found}; expected a string")),
    };
    Ok(RawCommand {
        account: text("account", fields.account)?,
        deadline: text("deadline", fields.deadline)?,
        command_id: text("command_id", fields.command_id)?,
        order_no_list: entries,
        more_orders: more,
    })
}

/// The property that cannot be what its sender meant, of those that decide something.
fn mended(properties: &BasicProperties) -> Option<&'static str> {
    [
        ("message_id", properties.message_id()),
        ("correlation_id", properties.correlation_id()),
        ("reply_to", properties.reply_to()),
    ]
    .into_iter()
    .find(|(_, text)| {
        text.as_ref()
            .is_some_and(|t| t.as_str().contains(SUBSTITUTE))
    })
    .map(|(name, _)| name)
}

/// What is read of a command. Nothing is built of any other field, so memory is bounded by the body
/// however deep and wide it is.
#[derive(Deserialize)]
struct Fields<'a> {
    #[serde(default, borrow, deserialize_with = "present")]
    order_no_list: Option<&'a RawValue>,
    #[serde(default, borrow, deserialize_with = "present")]
    account: Option<&'a RawValue>,
    #[serde(default, borrow, deserialize_with = "present")]
    deadline: Option<&'a RawValue>,
    #[serde(default, borrow, deserialize_with = "present")]
    command_id: Option<&'a RawValue>,
}

/// A field that is there, also when it is null.
fn present<'de: 'a, 'a, D: Deserializer<'de>>(field: D) -> Result<Option<&'a RawValue>, D::Error> {
    Deserialize::deserialize(field).map(Some)
}

/// The entries of a list, as many as a command may have, and the count of the others.
struct Entries<'e>(&'e mut Vec<Result<String, String>>);

impl<'de> Visitor<'de> for Entries<'_> {
    type Value = usize;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of strings")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<usize, A::Error> {
        let mut more = 0;
        while let Some(entry) = list.next_element::<&RawValue>()? {
            if self.0.len() < ORDERS_MAX {
                self.0.push(string(entry));
            } else {
                more += 1;
            }
        }
        Ok(more)
    }
}

/// A string, or what was found instead of one.
fn string(value: &RawValue) -> Result<String, String> {
    if !value.get().starts_with('"') {
        return Err(kind(value));
    }
    // A half of a surrogate pair is a character to JSON and to nobody else.
    serde_json::from_str(value.get())
        .map_err(|_| format!("{}, which holds half a character", shortened(value.get())))
}

/// What a value is, for people.
fn kind(value: &RawValue) -> String {
    match value.get().as_bytes().first() {
        Some(b'n') => "null".into(),
        Some(b't' | b'f') => format!("the boolean {value}"),
        Some(b'"') => "a string".into(),
        Some(b'[') => "a list".into(),
        Some(b'{') => "an object".into(),
        Some(_) | None => format!("the number {}", shortened(value.get())),
    }
}

/// Of what is shown back, no more than anybody reads: a number may have a million digits.
fn shortened(text: &str) -> String {
    match text.char_indices().nth(FOUND_MAX_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// Reads the properties alone.
pub fn read_properties(properties: &BasicProperties) -> RawProperties {
    let text = |property: &Option<ShortString>| {
        let text = property.as_ref()?.as_str();
        (!text.contains(SUBSTITUTE)).then(|| text.to_owned())
    };
    let header = |name: &str| {
        let table = properties.headers().as_ref()?;
        match table.inner().get(name)? {
            AMQPValue::LongString(value) => {
                std::str::from_utf8(value.as_bytes()).ok().map(Into::into)
            }
            AMQPValue::ShortString(value) => Some(value.as_str().to_owned()),
            _ => None,
        }
    };
    RawProperties {
        message_id: text(properties.message_id()),
        correlation_id: text(properties.correlation_id()),
        reply_to: text(properties.reply_to()),
        traceparent: header("traceparent").and_then(|text| TraceParent::parse(&text)),
        tracestate: header("tracestate"),
    }
}

/// When the message was published, by its publisher's word. It is in seconds; milliseconds, which some
/// publishers write, are known by their size.
pub fn published(properties: &BasicProperties) -> Option<Timestamp> {
    let stamp = i64::try_from((*properties.timestamp())?).ok()?;
    if stamp < SECONDS_MAX {
        Timestamp::from_second(stamp).ok()
    } else {
        Timestamp::from_millisecond(stamp).ok()
    }
}

/// How often a quorum queue counts this message as having come back.
pub fn delivery_count(properties: &BasicProperties) -> Option<u64> {
    let headers = properties.headers().as_ref()?;
    let count = match headers.inner().get("x-delivery-count")? {
        AMQPValue::ShortShortInt(count) => i64::from(*count),
        AMQPValue::ShortShortUInt(count) => i64::from(*count),
        AMQPValue::ShortInt(count) => i64::from(*count),
        AMQPValue::ShortUInt(count) => i64::from(*count),
        AMQPValue::LongInt(count) => i64::from(*count),
        AMQPValue::LongUInt(count) => i64::from(*count),
        AMQPValue::LongLongInt(count) => *count,
        _ => return None,
    };
    u64::try_from(count).ok()
}

/// Of a message's id and body, which stay the same however often it is given out.
pub fn digest(body: &[u8], properties: &BasicProperties) -> Digest {
    let id = properties
        .message_id()
        .as_ref()
        .map_or("", |id| id.as_str());
    let mut hash = Md5::new();
    hash.update(u64::try_from(id.len()).unwrap_or(u64::MAX).to_be_bytes());
    hash.update(id);
    hash.update(body);
    Digest(hash.finalize().into())
}

/// An event, ready to be published.
pub struct Message {
    /// `cancel.ACCOUNT.OUTCOME`, of a dry run `dry-run.ACCOUNT.OUTCOME`.
    pub routing_key: String,
    /// The body.
    pub body: Vec<u8>,
    /// The properties.
    pub properties: BasicProperties,
    /// The id by which a returned message is known.
    pub id: String,
}

#[derive(Serialize)]
struct EventBody<'a> {
    event_id: &'a str,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    dry_run: bool,
    command_id: &'a str,
    account: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    order_no: Option<&'a str>,
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<ReasonBody<'a>>,
    attempts: u32,
    replayed: bool,
    index: usize,
    total: usize,
    occurred_at: String,
}

#[derive(Serialize)]
struct ReasonBody<'a> {
    code: &'static str,
    message: &'a str,
}

/// Writes an event; `now` is seconds since 1970.
pub fn write(mode: Mode, telling: &Telling, now: u64) -> serde_json::Result<Message> {
    let Telling {
        envelope, event, ..
    } = telling;
    let outcome = event.ending.outcome().as_str();
    let (namespace, head, kind) = match mode {
        Mode::Live => (&EVENT_IDS, "cancel", "wdt.cancel.result.v1"),
        Mode::DryRun => (&DRY_RUN_EVENT_IDS, "dry-run", "wdt.cancel.dry-run.v1"),
    };
    let id = event_id(namespace, envelope, event).to_string();
    let mut body = Vec::with_capacity(EVENT_BYTES);
    let event_body = EventBody {
        event_id: &id,
        dry_run: mode.is_dry_run(),
        command_id: envelope.command_id.as_str(),
        account: &event.account_shown,
        order_no: event.order_no.as_deref(),
        outcome,
        reason: event.ending.reason().map(|reason| ReasonBody {
            code: reason.code.as_str(),
            message: &reason.message,
        }),
        attempts: event.attempts,
        replayed: event.replayed,
        index: event.index,
        total: event.total,
        occurred_at: format!("{:.3}", event.occurred_at),
    };
    serde_json::to_writer(&mut body, &event_body)?;
    let account = event
        .account
        .as_ref()
        .map_or("_", |account| account.as_str());
    Ok(Message {
        routing_key: format!("{head}.{account}.{outcome}"),
        body,
        properties: BasicProperties::default()
            .with_message_id(id.as_str().into())
            .with_correlation_id((&*envelope.correlation_id).into())
            .with_type(kind.into())
            .with_content_type("application/json".into())
            .with_app_id("wdt-cancel-worker".into())
            .with_delivery_mode(PERSISTENT)
            .with_timestamp(now)
            .with_headers(trace_headers(envelope)),
        id,
    })
}

/// UUIDv5 of account, command id, order number and outcome, parted by a control character, which
/// none of the first three holds where it matters: account names and order numbers have none.
fn event_id(namespace: &Uuid, envelope: &Envelope, event: &Event) -> Uuid {
    let name = [
        &*event.account_shown,
        envelope.command_id.as_str(),
        event.order_no.as_deref().unwrap_or_default(),
        event.ending.outcome().as_str(),
    ]
    .join("\u{1f}");
    Uuid::new_v5(namespace, name.as_bytes())
}

/// The command's own step in its trace: what follows from the event is its child.
fn trace_headers(envelope: &Envelope) -> FieldTable {
    let mut headers = FieldTable::default();
    let Some(step) = envelope.traceparent else {
        return headers;
    };
    headers.insert("traceparent".into(), long(&step.to_string()));
    if let Some(state) = envelope.tracestate.as_deref().and_then(tracestate) {
        headers.insert("tracestate".into(), long(state));
    }
    headers
}

/// The properties of a command's copy in the dead-letter queue: its own, its id, and where it came
/// from in headers of ours, for the broker's `x-death` does not outlive a republish on every version.
///
/// What would make the broker act on the copy is left out: it refuses a `user_id` that is not ours
/// and closes the channel, it drops the copy after `expiration`, and `CC` and `BCC` send it on.
pub fn parked_properties(
    properties: &BasicProperties,
    parking: &Parking,
    origin: Origin<'_>,
    now: u64,
) -> BasicProperties {
    let mut headers = FieldTable::default();
    for (name, value) in properties.headers().iter().flat_map(|h| h.inner()) {
        if !matches!(name.as_str(), "CC" | "BCC") {
            headers.insert(name.clone(), value.clone());
        }
    }
    let mut set = |name: &str, value: &str| {
        headers.insert(name.into(), long(value));
    };
    set("x-wdt-dead-reason", parking.why);
    set("x-wdt-command-id", parking.envelope.command_id.as_str());
    set("x-wdt-account", &parking.account);
    set("x-wdt-origin-queue", origin.queue);
    set("x-wdt-origin-exchange", origin.exchange);
    set("x-wdt-origin-routing-key", origin.routing_key);
    if let Some(user) = properties.user_id() {
        set("x-wdt-origin-user-id", user.as_str());
    }
    headers.insert("x-wdt-dead-at".into(), AMQPValue::Timestamp(now));
    let copy = BasicProperties::default()
        .with_message_id(parking.envelope.command_id.as_str().into())
        .with_delivery_mode(PERSISTENT)
        .with_headers(headers);
    with_what_only_tells(copy, properties)
}

/// Adds those of a message's properties that make the broker do nothing.
pub(super) fn with_what_only_tells(
    mut copy: BasicProperties,
    properties: &BasicProperties,
) -> BasicProperties {
    type With = fn(BasicProperties, ShortString) -> BasicProperties;
    let texts: [(&Option<ShortString>, With); 6] = [
        (
            properties.content_type(),
            BasicProperties::with_content_type,
        ),
        (
            properties.content_encoding(),
            BasicProperties::with_content_encoding,
        ),
        (
            properties.correlation_id(),
            BasicProperties::with_correlation_id,
        ),
        (properties.reply_to(), BasicProperties::with_reply_to),
        (properties.kind(), BasicProperties::with_type),
        (properties.app_id(), BasicProperties::with_app_id),
    ];
    for (value, with) in texts {
        if let Some(value) = value {
            copy = with(copy, value.clone());
        }
    }
    if let Some(timestamp) = properties.timestamp() {
        copy = copy.with_timestamp(*timestamp);
    }
    copy
}

/// Where a command came from.
#[derive(Debug, Clone, Copy)]
pub struct Origin<'a> {
    /// The queue it was consumed from.
    pub queue: &'a str,
    /// The exchange it was published to.
    pub exchange: &'a str,
    /// The routing key it was published with.
    pub routing_key: &'a str,
}

fn long(value: &str) -> AMQPValue {
    AMQPValue::LongString(LongString::from(value))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn body(text: &str) -> Result<RawCommand, String> {
        read(text.as_bytes(), &BasicProperties::default()).0
    }

    #[test]
    fn the_fields_of_a_command_are_read_and_others_are_not() {
        let text = r#"{"deadline": null, "x": [{}], "x": 1, "account": "a", "order_no_list": ["\u5355", "B"]}"#;
        let expected = RawCommand {
            order_no_list: vec![Ok("单".into()), Ok("B".into())],
            account: Some("a".into()),
            ..RawCommand::default()
        };
        assert_eq!(body(text), Ok(expected));
        let deep = format!(
            r#"{{"order_no_list": ["A"], "deep": {}{}}}"#,
            "[".repeat(400_000),
            "]".repeat(400_000)
        );
        assert_eq!(body(&deep).map(|raw| raw.order_no_list.len()), Ok(1));
    }

    #[test]
    fn a_complaint_names_the_field_and_what_was_found() {
        let check = |text: &str, words: &[&str]| {
            let complaint = body(text).expect_err(text);
            for word in words {
                assert!(complaint.contains(word), "{complaint:?} lacks {word:?}");
            }
        };
        let list = r#""order_no_list": ["A"]"#;
        check(
            &format!("{{{list}, {list}}}"),
            &["body", "order_no_list", "once"],
        );
        check(
            &format!(r#"{{"account": "a", {list}, "account": "b"}}"#),
            &["body", "account", "once"],
        );
        check(
            &format!(r#"{{{list}, "account": 3}}"#),
            &["account", "the number 3"],
        );
        check(
            &format!(r#"{{{list}, "deadline": true}}"#),
            &["deadline", "the boolean true"],
        );
        check(
            &format!(r#"{{{list}, "account": "\ud800"}}"#),
            &["account", "half a character"],
        );
        check(
            r#"{"order_no_list": {}}"#,
            &["order_no_list", "an object", "a list"],
        );
        check(r#"["A"]"#, &["body", "a list", "a JSON object"]);
    }

    #[test]
    fn an_entry_that_is_no_text_stands_for_itself() {
        let read = body(r#"{"order_no_list": ["A", "\udc00B", 7, null, ["A"], {"a": 1}, false]}"#);
        let entries = read.expect("a command").order_no_list;
        let wrong: Vec<&str> = entries[1..]
            .iter()
            .map(|entry| entry.as_ref().unwrap_err().as_str())
            .collect();
        assert_eq!(
            wrong,
            [
                r#""\udc00B", which holds half a character"#,
                "the number 7",
                "null",
                "a list",
                "an object",
                "the boolean false",
            ]
        );
    }

    #[test]
    fn no_more_entries_are_kept_than_a_command_may_have() {
        let text = format!(
            r#"{{"order_no_list": [{}1]}}"#,
            "1,".repeat(ORDERS_MAX + 10)
        );
        let read = body(&text).expect("a command");
        assert_eq!(
            (read.order_no_list.len(), read.more_orders),
            (ORDERS_MAX, 11)
        );
        let digits = "9".repeat(500_000);
        let read = body(&format!(r#"{{"order_no_list": [{digits}]}}"#)).expect("a command");
        let found = read.order_no_list[0].as_ref().unwrap_err();
        assert!(found.chars().count() < 2 * FOUND_MAX_CHARS, "{found}");
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(body in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&body, &BasicProperties::default());
        }

        #[test]
        fn what_was_written_is_read(
            orders in prop::collection::vec(any::<String>(), 0..20),
            account in any::<Option<String>>(),
            deadline in any::<Option<String>>(),
            command_id in any::<Option<String>>(),
            unknown in any::<String>(),
        ) {
            let text = json!({
                "order_no_list": orders,
                "account": account,
                "deadline": deadline,
                "command_id": command_id,
                format!("x{unknown}"): {"a": [unknown]},
            })
            .to_string();
            let expected = RawCommand {
                order_no_list: orders.into_iter().map(Ok).collect(),
                more_orders: 0,
                account,
                deadline,
                command_id,
            };
            prop_assert_eq!(body(&text), Ok(expected));
        }
    }
}
