//! Dead letters from bytes, and what they are sent with.

use jiff::Timestamp;
use lapin::BasicProperties;
use lapin::message::Delivery;
use lapin::types::{AMQPValue, FieldTable};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::wire;
use crate::rules::dead::Letter;
use crate::rules::order::CommandId;

/// How often a letter was sent back to the commands' queue.
const REPLAYS: &str = "x-wdt-replays";
/// Why, for whom and since when a letter is dead: headers of ours.
const REASON: &str = "x-wdt-dead-reason";
const ACCOUNT: &str = "x-wdt-account";
const DEAD_AT: &str = "x-wdt-dead-at";
const COMMAND_ID: &str = "x-wdt-command-id";
/// The namespace of the ids of commands that have none. Fixed for ever, or a letter that is sent
/// twice would be two commands.
const COMMAND_IDS: Uuid = Uuid::from_u128(0x7c1d_5e0b_44f2_5a86_9b3a_20d7_e86f_13c9);

/// What is known of a letter.
pub(super) fn read(delivery: &Delivery) -> Letter {
    let (raw, properties) = wire::read(&delivery.data, &delivery.properties);
    let header = |name: &str| text(&delivery.properties, name);
    let body_id = raw.as_ref().ok().and_then(|raw| raw.command_id.clone());
    let id = header(COMMAND_ID).or(properties.message_id).or(body_id);
    let account = raw.as_ref().ok().and_then(|raw| raw.account.clone());
    let orders = raw.map(|raw| raw.order_no_list).unwrap_or_default();
    let died = death(&delivery.properties);
    Letter {
        command_id: id.and_then(|id| CommandId::new(&id)),
        reason: header(REASON)
            .or_else(|| header("x-first-death-reason"))
            .unwrap_or_default(),
        account: header(ACCOUNT)
            .or(account)
            .unwrap_or_else(|| "default".into()),
        dead_at: seconds(&delivery.properties, DEAD_AT)
            .or(died)
            .and_then(|at| Timestamp::from_second(i64::try_from(at).ok()?).ok()),
        orders: orders
            .into_iter()
            .filter_map(|order| Some(order.ok()?.trim().to_owned()))
            .collect(),
        replays: number(&delivery.properties, REPLAYS),
        bytes: delivery.data.len(),
    }
}

/// The whole of a letter, for people and for a file from which it could be made again.
pub(super) fn whole(delivery: &Delivery) -> Value {
    let properties = &delivery.properties;
    let headers: Map<String, Value> = properties
        .headers()
        .iter()
        .flat_map(|headers| headers.inner())
        .map(|(name, value)| (name.to_string(), plain(value)))
        .collect();
    let mut shown = Map::new();
    let mut tell = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            shown.insert(name.to_owned(), value.into());
        }
    };
    for (name, value) in [
        ("message_id", properties.message_id()),
        ("correlation_id", properties.correlation_id()),
        ("reply_to", properties.reply_to()),
        ("type", properties.kind()),
        ("content_type", properties.content_type()),
        ("content_encoding", properties.content_encoding()),
        ("app_id", properties.app_id()),
    ] {
        tell(name, value.as_ref().map(ToString::to_string));
    }
    if let Some(at) = properties.timestamp() {
        shown.insert("timestamp".into(), (*at).into());
    }
    // What is JSON is shown as such, what is text as text, and whatever it is, no byte is lost.
    let body = match std::str::from_utf8(&delivery.data) {
        Ok(text) => json!(text),
        Err(_) => {
            let hex: String = delivery.data.iter().map(|b| format!("{b:02x}")).collect();
            json!({ "hex": hex })
        }
    };
    json!({ "properties": shown, "headers": headers, "body": body })
}

/// What a letter goes back to the commands' queue with: its own properties, and the id by which the
/// ledger knows the command, whoever sends it how often. What was said of its death is left out, for
/// it lives again, and a broker that finds its own `x-death` may take a second death for a cycle.
pub(super) fn replayed(delivery: &Delivery) -> BasicProperties {
    let letter = read(delivery);
    let mut headers = kept(&delivery.properties, |name| {
        let of_death = name.starts_with("x-wdt-dead-") || name.starts_with("x-wdt-origin-");
        of_death || matches!(name, ACCOUNT | COMMAND_ID)
    });
    let replays = i64::try_from(letter.replays.saturating_add(1)).unwrap_or(i64::MAX);
    headers.insert(REPLAYS.into(), AMQPValue::LongLongInt(replays));
    let id = match letter.command_id {
        Some(id) => id.as_str().to_owned(),
        None => made_up_id(delivery),
    };
    let own = BasicProperties::default()
        .with_message_id(id.into())
        .with_delivery_mode(wire::PERSISTENT)
        .with_headers(headers);
    wire::with_what_only_tells(own, &delivery.properties)
}

/// What a letter goes to the end of its own queue with: all of its own, and the broker's count of
/// how often it was looked at begins anew.
pub(super) fn renewed(delivery: &Delivery) -> BasicProperties {
    let properties = &delivery.properties;
    let mut headers = kept(properties, |_| false);
    let letter = read(delivery);
    // The broker's own account of it is left out, so it is told in our headers from now on.
    for (name, value) in [(REASON, &letter.reason), (ACCOUNT, &letter.account)] {
        headers.insert(name.into(), AMQPValue::LongString(value.as_str().into()));
    }
    if let Some(at) = letter
        .dead_at
        .and_then(|at| u64::try_from(at.as_second()).ok())
    {
        headers.insert(DEAD_AT.into(), AMQPValue::Timestamp(at));
    }
    let mut own = BasicProperties::default()
        .with_delivery_mode(wire::PERSISTENT)
        .with_headers(headers);
    let id = letter
        .command_id
        .map_or_else(|| made_up_id(delivery), |id| id.as_str().to_owned());
    own = own.with_message_id(id.into());
    wire::with_what_only_tells(own, properties)
}

/// The same letter has the same one, so that sending it twice is one command. Two letters of one body
/// that died at different times are two.
fn made_up_id(delivery: &Delivery) -> String {
    let died = death(&delivery.properties).unwrap_or_default();
    let name = [&died.to_be_bytes()[..], &delivery.data].concat();
    Uuid::new_v5(&COMMAND_IDS, &name).to_string()
}

/// The headers but for these, and but for those by which a broker counts or routes.
fn kept(properties: &BasicProperties, is_left_out: impl Fn(&str) -> bool) -> FieldTable {
    let mut headers = FieldTable::default();
    for (name, value) in properties.headers().iter().flat_map(|h| h.inner()) {
        let name_text = name.as_str();
        let of_broker = matches!(
            name_text,
            "CC" | "BCC" | "x-death" | "x-delivery-count" | "x-acquired-count"
        ) || name_text.starts_with("x-first-death-")
            || name_text.starts_with("x-last-death-");
        if !of_broker && !is_left_out(name_text) {
            headers.insert(name.clone(), value.clone());
        }
    }
    headers
}

fn header<'a>(properties: &'a BasicProperties, name: &str) -> Option<&'a AMQPValue> {
    properties.headers().as_ref()?.inner().get(name)
}

fn text(properties: &BasicProperties, name: &str) -> Option<String> {
    match header(properties, name)? {
        AMQPValue::LongString(text) => std::str::from_utf8(text.as_bytes()).ok().map(Into::into),
        AMQPValue::ShortString(text) => Some(text.to_string()),
        _ => None,
    }
}

fn number(properties: &BasicProperties, name: &str) -> u64 {
    match header(properties, name) {
        Some(AMQPValue::LongLongInt(count)) => u64::try_from(*count).unwrap_or(0),
        Some(AMQPValue::LongInt(count)) => u64::try_from(*count).unwrap_or(0),
        _ => 0,
    }
}

fn seconds(properties: &BasicProperties, name: &str) -> Option<u64> {
    match header(properties, name)? {
        AMQPValue::Timestamp(at) => Some(*at),
        _ => None,
    }
}

/// When the broker itself first dead-lettered it.
fn death(properties: &BasicProperties) -> Option<u64> {
    let AMQPValue::FieldArray(deaths) = header(properties, "x-death")? else {
        return None;
    };
    let at = |death: &AMQPValue| match death {
        AMQPValue::FieldTable(table) => match table.inner().get("time")? {
            AMQPValue::Timestamp(at) => Some(*at),
            _ => None,
        },
        _ => None,
    };
    deaths.as_slice().iter().filter_map(at).min()
}

/// A header's value as JSON has it.
fn plain(value: &AMQPValue) -> Value {
    match value {
        AMQPValue::Boolean(v) => json!(v),
        AMQPValue::ShortShortInt(v) => json!(v),
        AMQPValue::ShortShortUInt(v) => json!(v),
        AMQPValue::ShortInt(v) => json!(v),
        AMQPValue::ShortUInt(v) => json!(v),
        AMQPValue::LongInt(v) => json!(v),
        AMQPValue::LongUInt(v) => json!(v),
        AMQPValue::LongLongInt(v) => json!(v),
        AMQPValue::Timestamp(v) => json!(v),
        AMQPValue::Float(v) => json!(v),
        AMQPValue::Double(v) => json!(v),
        AMQPValue::ShortString(v) => json!(v.to_string()),
        AMQPValue::LongString(v) => json!(v.to_string()),
        AMQPValue::ByteArray(v) => json!(v.as_slice()),
        AMQPValue::FieldArray(v) => v.as_slice().iter().map(plain).collect(),
        AMQPValue::FieldTable(v) => v
            .inner()
            .iter()
            .map(|(name, value)| (name.to_string(), plain(value)))
            .collect(),
        AMQPValue::DecimalValue(v) => json!(format!("{v:?}")),
        AMQPValue::Void => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use lapin::types::FieldArray;

    use super::*;

    fn dead(id: Option<&str>, at: u64) -> Delivery {
        let mut death = FieldTable::default();
        death.insert("time".into(), AMQPValue::Timestamp(at));
        let mut headers = FieldTable::default();
        let deaths = FieldArray::from(vec![AMQPValue::FieldTable(death)]);
        headers.insert("x-death".into(), AMQPValue::FieldArray(deaths));
        headers.insert("x-delivery-count".into(), AMQPValue::LongLongInt(7));
        headers.insert("traceparent".into(), AMQPValue::LongString("t".into()));
        headers.insert(
            "x-first-death-reason".into(),
            AMQPValue::LongString("delivery_limit".into()),
        );
        headers.insert(
            "x-wdt-origin-queue".into(),
            AMQPValue::LongString("q".into()),
        );
        let mut delivery = Delivery::mock(1, "".into(), "".into(), false, Vec::new());
        delivery.data = br#"{"order_no_list": [" A ", "B"], "account": "east"}"#.to_vec();
        delivery.properties = BasicProperties::default()
            .with_headers(headers)
            .with_expiration("1".into());
        if let Some(id) = id {
            delivery.properties = delivery.properties.clone().with_message_id(id.into());
        }
        delivery
    }

    #[test]
    fn a_letter_that_the_broker_made_is_read() {
        let letter = read(&dead(None, 5));
        let expected = Letter {
            command_id: None,
            reason: "delivery_limit".into(),
            account: "east".into(),
            dead_at: Timestamp::from_second(5).ok(),
            orders: vec!["A".into(), "B".into()],
            replays: 0,
            bytes: 50,
        };
        assert_eq!(letter, expected);
    }

    #[test]
    fn the_id_of_one_without_is_the_same_each_time() {
        let id = |delivery: &Delivery| replayed(delivery).message_id().clone().expect("an id");
        assert_eq!(id(&dead(Some("c7"), 5)).as_str(), "c7");
        assert_eq!(id(&dead(None, 5)), id(&dead(None, 5)));
        assert_ne!(id(&dead(None, 5)), id(&dead(None, 6)));
        let once = dead(None, 5);
        let mut again = dead(None, 5);
        again.properties = renewed(&once);
        assert_eq!(id(&once), id(&again), "also after it was renewed");
        assert_eq!(read(&again).dead_at, read(&once).dead_at);
        assert_eq!(read(&again).reason, "delivery_limit");
    }

    #[test]
    fn a_replayed_letter_keeps_its_own_headers_and_leaves_its_death_behind() {
        let properties = replayed(&dead(Some("c7"), 5));
        let headers = properties.headers().clone().expect("headers");
        let mut names: Vec<_> = headers.inner().keys().map(|name| name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, ["traceparent", REPLAYS]);
        assert!(properties.expiration().is_none());
        let mut again = dead(Some("c7"), 5);
        again.properties = properties;
        assert_eq!(read(&again).replays, 1);
    }
}
