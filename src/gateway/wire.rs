//! Bytes to replies, and back: the bodies that are sent, and what may come back for them.
//!
//! The platform's answers are read leniently exactly where it is known to be careless: numbers come
//! as strings and strings as numbers, fields are missing, null or of another type. What cannot be
//! read is never guessed at: `data` of another form is no data, and an answer without the envelope
//! `{"status": …}` is none. Both leave the orders in doubt, which costs a look-up; a wrong guess
//! would cost a false word. The same goes for an object that names a field twice: readers of JSON
//! differ in which one they take.

use std::borrow::Cow;
use std::fmt;

use jiff::civil::DateTime;
use jiff::tz::Offset;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::json;
use serde_json::value::RawValue;

use super::sign::EPOCH_OFFSET_SECONDS;
use crate::rules::judge::{CancelLists, FoundOrder, Reply};
use crate::rules::order::OrderNo;

/// Longest text of the gateway that is kept, in characters. It goes into events and into the
/// ledger word for word; known ones have under 100, a stack trace is not worth more.
pub const TEXT_MAX_CHARS: usize = 1000;

/// Longest list of an answer that is read, in rows: ten times the longest list that is asked. An
/// answer with more is not one to what was asked.
pub const ROWS_MAX: usize = 10_000;

/// The body of `system.Core.now`: no arguments.
pub const NOW_BODY: &[u8] = b"[]";

/// Readings of the server's clock outside 2020 to 2100 (Unix seconds) are misread, not times.
const PLAUSIBLE: std::ops::Range<i64> = 1_577_836_800..4_102_444_800;

/// `data` of `system.Core.now`: the server's clock in Unix seconds, rounded down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerTime(pub i64);

/// The body of `cancelOrder`: an array of arguments, of which there is one, the list of numbers.
pub fn cancel_body(orders: &[OrderNo]) -> Vec<u8> {
    let numbers: Vec<&str> = orders.iter().map(OrderNo::as_str).collect();
    json!([numbers]).to_string().into_bytes()
}

/// The body of `queryWithDetail` for one number; with a number it needs no time range.
pub fn look_up_body(order: &OrderNo) -> Vec<u8> {
    json!([{ "other_out_no": order.as_str() }])
        .to_string()
        .into_bytes()
}

/// Reads the answer to `cancelOrder`.
///
/// Data needs one of the two lists; the other may be missing or null. What stands in a list in
/// another form is passed over: its order then is named in neither list.
///
/// # Errors
///
/// Says what it is when it is not the gateway's envelope. The words hold nothing of the body.
pub fn parse_cancel(body: &[u8]) -> Result<Reply<CancelLists>, String> {
    #[derive(Deserialize)]
    struct Data<'a> {
        #[serde(default, borrow, deserialize_with = "present")]
        success_data: Option<&'a RawValue>,
        #[serde(default, borrow, deserialize_with = "present")]
        error_data: Option<&'a RawValue>,
    }
    #[derive(Deserialize)]
    struct Failed<'a> {
        #[serde(default, borrow, deserialize_with = "present")]
        order_no: Option<&'a RawValue>,
        #[serde(default, borrow, deserialize_with = "present")]
        err_msg: Option<&'a RawValue>,
    }
    parse(body, |data| {
        let Data {
            success_data,
            error_data,
        } = fields(data)?;
        if success_data.is_none_or(is_null) && error_data.is_none_or(is_null) {
            return None;
        }
        let mut lists = CancelLists::default();
        each(success_data, |row| {
            lists.success.extend(number(row));
            Some(())
        })?;
        each(error_data, |row| {
            // A row that names a thing twice spoils all: it may be of any order.
            if kind(row) == Kind::Object {
                let Failed { order_no, err_msg } = fields(row)?;
                let err_msg = err_msg.and_then(text).unwrap_or_default();
                let named = order_no.and_then(number);
                lists.error.extend(named.map(|order| (order, err_msg)));
            }
            Some(())
        })?;
        Some(lists)
    })
}

/// Reads the answer to `queryWithDetail`.
///
/// Data is `order`, an array, or null where `total_count` is 0. One row that cannot be read spoils
/// all of it: the order would seem to be absent, or its `-1` document would speak for it alone.
///
/// # Errors
///
/// As [`parse_cancel`].
pub fn parse_look_up(body: &[u8]) -> Result<Reply<Vec<FoundOrder>>, String> {
    #[derive(Deserialize)]
    struct Data<'a> {
        #[serde(default, borrow, deserialize_with = "present")]
        order: Option<&'a RawValue>,
        #[serde(default, borrow, deserialize_with = "present")]
        total_count: Option<&'a RawValue>,
    }
    #[derive(Deserialize)]
    struct Row<'a> {
        #[serde(borrow)]
        other_out_no: &'a RawValue,
        #[serde(borrow)]
        status: &'a RawValue,
    }
    parse(body, |data| {
        let Data { order, total_count } = fields(data)?;
        let order = order?;
        if is_null(order) && total_count.and_then(integer) != Some(0) {
            return None;
        }
        let mut found = Vec::new();
        each(Some(order), |row| {
            let Row {
                other_out_no,
                status,
            } = fields(row)?;
            found.push(FoundOrder {
                number: number(other_out_no)?,
                status: integer(status)?,
            });
            Some(())
        })?;
        Some(found)
    })
}

/// Reads the answer to `system.Core.now`, of which no sample is published. Data may be a Beijing
/// time `yyyy-MM-dd HH:mm:ss`, or a number (as text, too) that its size tells apart: milliseconds
/// or seconds of Unix time, or seconds since 2012; or an object, of which the first of these counts.
///
/// # Errors
///
/// As [`parse_cancel`].
pub fn parse_now(body: &[u8]) -> Result<Reply<ServerTime>, String> {
    parse(body, |data| match kind(data) {
        Kind::Object => {
            let mut found = None;
            let times = Fields(|value: &RawValue| {
                found = found.or_else(|| server_time(value));
            });
            let mut reader = serde_json::Deserializer::from_str(data.get());
            reader.deserialize_map(times).ok()?;
            found
        }
        Kind::Text | Kind::Array | Kind::Other => server_time(data),
    })
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(default, borrow, deserialize_with = "present")]
    status: Option<&'a RawValue>,
    #[serde(default, borrow, deserialize_with = "present")]
    message: Option<&'a RawValue>,
    #[serde(default, borrow, deserialize_with = "present")]
    data: Option<&'a RawValue>,
}

/// Reads the envelope, and its data with `read` where there is any.
///
/// Nothing is built of what nobody asks for, so memory is bounded by the body's length and
/// [`ROWS_MAX`], however deep and wide it is.
fn parse<T>(body: &[u8], read: impl FnOnce(&RawValue) -> Option<T>) -> Result<Reply<T>, String> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return Err("an empty body".into());
    }
    let answer = std::str::from_utf8(body).ok().map(serde_json::from_str);
    let Some(Ok(answer)) = answer else {
        return Err("a body that is not JSON".into());
    };
    let answer: &RawValue = answer;
    if kind(answer) != Kind::Object {
        return Err("JSON that is not an object".into());
    }
    let envelope = serde_json::from_str(answer.get());
    let Envelope {
        status,
        message,
        data,
    } = envelope.map_err(|error| match error.is_data() {
        true => "JSON that names a field twice",
        false => "a body that is not JSON",
    })?;
    let Some(status) = status.and_then(integer) else {
        return Err("JSON without a status".into());
    };
    Ok(Reply {
        status,
        message: message.and_then(text).unwrap_or_default(),
        data: data.and_then(read),
    })
}

/// What kind of value it is, by its first character.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    Array,
    Object,
    /// A number, a boolean or null.
    Other,
}

fn kind(value: &RawValue) -> Kind {
    match value.get().as_bytes().first() {
        Some(b'"') => Kind::Text,
        Some(b'[') => Kind::Array,
        Some(b'{') => Kind::Object,
        Some(_) | None => Kind::Other,
    }
}

fn is_null(value: &RawValue) -> bool {
    value.get() == "null"
}

/// A field that is there, also when it is null.
fn present<'de: 'a, 'a, D: Deserializer<'de>>(field: D) -> Result<Option<&'a RawValue>, D::Error> {
    Deserialize::deserialize(field).map(Some)
}

/// The fields of an object; `None` for anything else, and for one that names a field of these twice:
/// which of the two is meant, nobody can say.
fn fields<'a, T: Deserialize<'a>>(value: &'a RawValue) -> Option<T> {
    if kind(value) != Kind::Object {
        return None;
    }
    serde_json::from_str(value.get()).ok()
}

/// Each row of a list, as long as the rows can be read; `None` when one cannot, when there are more
/// than [`ROWS_MAX`], or when it is no list. No list at all is one without rows.
fn each<'a>(list: Option<&'a RawValue>, row: impl FnMut(&'a RawValue) -> Option<()>) -> Option<()> {
    let Some(list) = list.filter(|list| !is_null(list)) else {
        return Some(());
    };
    if kind(list) != Kind::Array {
        return None;
    }
    let mut reader = serde_json::Deserializer::from_str(list.get());
    reader.deserialize_seq(Rows(row)).ok()
}

struct Rows<F>(F);

impl<'de, F: FnMut(&'de RawValue) -> Option<()>> Visitor<'de> for Rows<F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of at most {ROWS_MAX} rows")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut rows: A) -> Result<(), A::Error> {
        let mut count = 0;
        while let Some(row) = rows.next_element()? {
            count += 1;
            if count > ROWS_MAX || (self.0)(row).is_none() {
                return Err(A::Error::invalid_length(count, &self));
            }
        }
        Ok(())
    }
}

struct Fields<F>(F);

impl<'de, F: FnMut(&'de RawValue)> Visitor<'de> for Fields<F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut fields: A) -> Result<(), A::Error> {
        while let Some((IgnoredAny, value)) = fields.next_entry()? {
            (self.0)(value);
        }
        Ok(())
    }
}

/// An order number, also one that came as a JSON number. A fraction, or more digits than 64 bits
/// hold, has lost what it was.
fn number(value: &RawValue) -> Option<String> {
    let digits = value.get();
    text(value)
        .or_else(|| Some(serde_json::from_str::<i64>(digits).ok()?.to_string()))
        .or_else(|| Some(serde_json::from_str::<u64>(digits).ok()?.to_string()))
}

/// A text, up to [`TEXT_MAX_CHARS`] of it.
fn text(value: &RawValue) -> Option<String> {
    let text: Cow<'_, str> = match kind(value) {
        Kind::Text => serde_json::from_str::<Text<'_>>(value.get()).ok()?.0,
        Kind::Array | Kind::Object | Kind::Other => return None,
    };
    Some(bounded(&text))
}

#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// An integer, also one that came as text.
fn integer(value: &RawValue) -> Option<i64> {
    match text(value) {
        Some(text) => text.trim().parse().ok(),
        None => serde_json::from_str(value.get()).ok(),
    }
}

fn server_time(value: &RawValue) -> Option<ServerTime> {
    let seconds = match integer(value) {
        Some(n @ 1_000_000_000_000..) => n / 1000,
        Some(n @ 1_000_000_000..) => n,
        Some(n @ 1..) => n + EPOCH_OFFSET_SECONDS,
        Some(..=0) => return None,
        None => {
            let text = text(value)?;
            let beijing = DateTime::strptime("%Y-%m-%d %H:%M:%S", text.trim()).ok()?;
            Offset::constant(8).to_timestamp(beijing).ok()?.as_second()
        }
    };
    PLAUSIBLE.contains(&seconds).then_some(ServerTime(seconds))
}

fn bounded(text: &str) -> String {
    match text.char_indices().nth(TEXT_MAX_CHARS) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn orders(numbers: &[&str]) -> Vec<OrderNo> {
        numbers.iter().map(|n| OrderNo::new(n).unwrap()).collect()
    }

    fn lists(success: &[&str], error: &[(&str, &str)]) -> CancelLists {
        CancelLists {
            success: success.iter().map(|n| n.to_string()).collect(),
            error: error
                .iter()
                .map(|(n, m)| (n.to_string(), m.to_string()))
                .collect(),
        }
    }

    #[test]
    fn bodies_are_raw_utf8_without_spaces() {
        let check = |body: Vec<u8>, expected: &str| {
            assert_eq!(String::from_utf8(body).unwrap(), expected);
        };
        check(
            cancel_body(&orders(&["QR3796", "QR3795"])),
            r#"[["QR3796","QR3795"]]"#,
        );
        check(cancel_body(&orders(&["其他出库-1"])), r#"[["其他出库-1"]]"#);
        check(cancel_body(&orders(&[r#"a"\b"#])), r#"[["a\"\\b"]]"#);
        check(
            look_up_body(&orders(&["QC202409240008"])[0]),
            r#"[{"other_out_no":"QC202409240008"}]"#,
        );
    }

    #[test]
    fn the_envelope_is_read_leniently() {
        let check = |body: &str, expected: Result<(i64, &str), &str>| {
            let reply = parse_cancel(body.as_bytes());
            let found = reply.as_ref().map(|r| (r.status, r.message.as_str()));
            assert_eq!(found.map_err(String::as_str), expected, "{body}");
        };
        check(
            r#"{"status":100,"message":"权限不足"}"#,
            Ok((100, "权限不足")),
        );
        check(r#"{"status":"0","message":null}"#, Ok((0, "")));
        check(r#"{"status":" 7 ","message":{"a":1}}"#, Ok((7, "")));
        check(r#" {"status":-1} "#, Ok((-1, "")));
        check("", Err("an empty body"));
        check(" \r\n", Err("an empty body"));
        check("<html>502</html>", Err("a body that is not JSON"));
        check(r#"{"status":0"#, Err("a body that is not JSON"));
        check(r#"{"status":0} {}"#, Err("a body that is not JSON"));
        check("[]", Err("JSON that is not an object"));
        check("null", Err("JSON that is not an object"));
        for status in ["null", "true", "0.5", "1e30", r#""""#, r#""ok""#, "[0]"] {
            let body = format!(r#"{{"status":{status}}}"#);
            check(&body, Err("JSON without a status"));
        }
        check(r#"{"message":"ok"}"#, Err("JSON without a status"));
        check(r#"{"status":-0}"#, Err("JSON without a status"));
        let deep = format!(r#"{{"status":0,"data":{}"#, "[".repeat(1_000_000));
        check(&deep, Err("a body that is not JSON"));
        let deep = format!("{deep}{}}}", "]".repeat(1_000_000));
        check(&deep, Ok((0, "")));
        check(r#"{"status":0,"message":"\ud800"}"#, Ok((0, "")));
        let latin1 = [b"{\"status\":0,\"message\":\"\xe9\"}".as_slice()].concat();
        assert!(parse_cancel(&latin1).is_err());
    }

    #[test]
    fn what_is_named_twice_is_not_clear() {
        let twice = |body: &str| parse_cancel(body.as_bytes()).unwrap_err();
        for body in [
            r#"{"status":100,"status":0,"data":{"success_data":["A"]}}"#,
            r#"{"status":0,"data":{"error_data":["A"]},"data":{"success_data":["A"]}}"#,
            r#"{"status":0,"message":"a","message":"a"}"#,
        ] {
            assert_eq!(twice(body), "JSON that names a field twice", "{body}");
        }
        for data in [
            r#"{"success_data":["A"],"success_data":[]}"#,
            r#"{"success_data":["A"],"error_data":[{"order_no":"A"}],"error_data":[]}"#,
            r#"{"success_data":["A"],"error_data":[{"order_no":"A","order_no":"B"}]}"#,
            r#"{"success_data":["A"],"error_data":[{"order_no":"A","err_msg":"","err_msg":""}]}"#,
        ] {
            let body = format!(r#"{{"status":0,"data":{data}}}"#);
            assert_eq!(parse_cancel(body.as_bytes()).unwrap().data, None, "{body}");
        }
        let rows = r#"[{"other_out_no":"A","status":20,"status":80}]"#;
        let body = format!(r#"{{"status":0,"data":{{"order":{rows}}}}}"#);
        assert_eq!(parse_look_up(body.as_bytes()).unwrap().data, None);
        // What nobody reads may be there any number of times.
        let body = r#"{"status":0,"x":1,"x":2,"data":{"success_data":["A"],"y":{},"y":[]}}"#;
        let data = parse_cancel(body.as_bytes()).unwrap().data;
        assert_eq!(data, Some(lists(&["A"], &[])));
    }

    #[test]
    fn a_list_that_is_far_too_long_is_none() {
        let rows = |rows: usize| {
            let rows = vec![r#"{"order_no":"A","err_msg":"no"}"#; rows].join(",");
            let body = format!(r#"{{"status":0,"data":{{"error_data":[{rows}]}}}}"#);
            let data = parse_cancel(body.as_bytes()).unwrap().data;
            data.map(|lists| lists.error.len())
        };
        assert_eq!(rows(ROWS_MAX), Some(ROWS_MAX));
        assert_eq!(rows(ROWS_MAX + 1), None);
        assert_eq!(rows(100_000), None);
    }

    #[test]
    fn long_texts_are_cut() {
        let long = "说".repeat(TEXT_MAX_CHARS + 1);
        let body = json!({"status": 1, "message": long}).to_string();
        let message = parse_cancel(body.as_bytes()).unwrap().message;
        assert_eq!(message.chars().count(), TEXT_MAX_CHARS + 1);
        assert!(message.ends_with("说…"));
    }

    #[test]
    fn cancel_data() {
        let check = |data: &str, expected: Option<CancelLists>| {
            let body = format!(r#"{{"status":0,"data":{data}}}"#);
            let reply = parse_cancel(body.as_bytes()).unwrap();
            assert_eq!(reply.data, expected, "{data}");
        };
        check(
            r#"{"success_data":["A"],"error_data":[{"order_no":"B","err_msg":"单据不存在"}]}"#,
            Some(lists(&["A"], &[("B", "单据不存在")])),
        );
        check(
            r#"{"success_data":[20240920, "B"]}"#,
            Some(lists(&["20240920", "B"], &[])),
        );
        check(
            r#"{"success_data":null,"error_data":[{"order_no":7}]}"#,
            Some(lists(&[], &[("7", "")])),
        );
        check(
            r#"{"success_data":[null,{"order_no":"A"},1.5,["B"],123456789012345678901234567890],
                "error_data":["C",{"err_msg":"no"},{"order_no":null},{"order_no":"D","err_msg":4}]}"#,
            Some(lists(&[], &[("D", "")])),
        );
        check(
            r#"{"success_data":[],"error_data":[]}"#,
            Some(lists(&[], &[])),
        );
        for none in [
            "null",
            "{}",
            "[]",
            r#""ok""#,
            "3",
            r#"{"success_data":null,"error_data":null}"#,
            r#"{"success_data":"A","error_data":[]}"#,
            r#"{"success_data":["A"],"error_data":{}}"#,
        ] {
            check(none, None);
        }
        assert_eq!(parse_cancel(br#"{"status":0}"#).unwrap().data, None);
    }

    #[test]
    fn look_up_data() {
        let check = |data: &str, expected: Option<&[(&str, i64)]>| {
            let body = format!(r#"{{"status":0,"data":{data}}}"#);
            let found = parse_look_up(body.as_bytes()).unwrap().data;
            let found: Option<Vec<_>> = found
                .as_ref()
                .map(|f| f.iter().map(|o| (o.number.as_str(), o.status)).collect());
            assert_eq!(found.as_deref(), expected, "{data}");
        };
        check(
            r#"{"order":[{"other_out_no":"A","status":80,"more":[1]},{"other_out_no":"A-1","status":"20"}]}"#,
            Some(&[("A", 80), ("A-1", 20)]),
        );
        check(
            r#"{"order":[{"other_out_no":7,"status":1}]}"#,
            Some(&[("7", 1)]),
        );
        check(r#"{"order":[],"total_count":0}"#, Some(&[]));
        check(r#"{"order":null,"total_count":"0"}"#, Some(&[]));
        for none in [
            "{}",
            "null",
            "[]",
            r#"{"total_count":0}"#,
            r#"{"order":null}"#,
            r#"{"order":null,"total_count":1}"#,
            r#"{"order":{"other_out_no":"A","status":80}}"#,
            r#"{"order":[{"other_out_no":"A","status":80},{"other_out_no":"A-1"}]}"#,
            r#"{"order":[{"other_out_no":"A","status":"已取消"}]}"#,
            r#"{"order":[{"status":80}]}"#,
        ] {
            check(none, None);
        }
    }

    #[test]
    fn the_servers_time() {
        let check = |data: &str, expected: Option<i64>| {
            let body = format!(r#"{{"status":0,"data":{data}}}"#);
            let time = parse_now(body.as_bytes()).unwrap().data;
            assert_eq!(time, expected.map(ServerTime), "{data}");
        };
        check(r#""2026-11-24 08:00:00""#, Some(1_795_478_400));
        check("1795478400", Some(1_795_478_400));
        check(r#""1795478400""#, Some(1_795_478_400));
        check("1795478400999", Some(1_795_478_400));
        check("470131200", Some(1_795_478_400));
        check(
            r#"{"format":"unix","zone":true,"now":"2026-11-24 08:00:00"}"#,
            Some(1_795_478_400),
        );
        for none in [
            "null",
            "0",
            "-5",
            "12",
            "1000000000",
            "9223372036854775807",
            "1795478400.5",
            r#""""#,
            r#""soon""#,
            r#""2026-13-24 08:00:00""#,
            "[1795478400]",
            r#"{"a":{"b":1795478400}}"#,
            "true",
        ] {
            check(none, None);
        }
        assert_eq!(
            parse_now(br#"{"status":7,"message":"x"}"#).unwrap().data,
            None
        );
    }

    fn json() -> impl Strategy<Value = Value> {
        let name = prop_oneof![
            "status|message|data|success_data|error_data|order_no|err_msg",
            "order|other_out_no|total_count",
            ".{0,3}",
        ];
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            "[0-9]{0,22}".prop_map(Value::from),
            ".{0,8}".prop_map(Value::from),
        ];
        leaf.prop_recursive(5, 40, 5, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::hash_map(name.clone(), inner, 0..6)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    fn parse_with_all(body: &[u8]) {
        let _ = parse_cancel(body);
        let _ = parse_look_up(body);
        let _ = parse_now(body);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(body in prop::collection::vec(any::<u8>(), 0..200)) {
            parse_with_all(&body);
        }

        #[test]
        fn any_json_is_survived(data in json(), status in any::<i64>()) {
            parse_with_all(data.to_string().as_bytes());
            let body = json!({"status": status.to_string(), "data": data}).to_string();
            parse_with_all(body.as_bytes());
            prop_assert_eq!(parse_cancel(body.as_bytes()).unwrap().status, status);
        }

        #[test]
        fn bodies_hold_the_numbers_as_they_are(numbers in prop::collection::vec("[^\\p{Cc}\\s]{1,40}", 1..20)) {
            let orders: Vec<_> = numbers.iter().map(|n| OrderNo::new(n).unwrap()).collect();
            let body: Value = serde_json::from_slice(&cancel_body(&orders)).unwrap();
            prop_assert_eq!(body, json!([numbers]));
        }
    }
}
