//! Any bytes as the gateway's answer to each of its three methods.
//!
//! Holds: nothing panics; there is one verdict for each order asked; an order is `cancelled` only
//! where a second, simpler reading of the same bytes finds it so; and a no after a lost call is
//! never told as a refusal.
#![no_main]

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use wdt_cancel_worker::gateway::wire;
use wdt_cancel_worker::rules::delay::Delays;
use wdt_cancel_worker::rules::judge::{
    CallEnd, LookUp, Reply, Verdict, judge_cancel, judge_look_up,
};
use wdt_cancel_worker::rules::next::{self, Next, Retry, Tries};
use wdt_cancel_worker::rules::order::{Ending, OrderNo, Outcome};
use wdt_cancel_worker::rules::policy::Verify;

const RETRY: Retry = Retry {
    max_attempts: 3,
    verify: Verify::InDoubt,
    delays: Delays {
        first: Duration::from_secs(1),
        most: Duration::from_secs(60),
    },
};
/// Texts of the gateway are kept up to so many characters, and a mark that they were cut.
const KEPT_MAX: usize = wire::TEXT_MAX_CHARS + 1;

// The first line names the orders that were asked, parted by commas; the rest is the answer.
fuzz_target!(|data: &[u8]| {
    let end = data.iter().position(|b| *b == b'\n').unwrap_or(0);
    let (asked, body) = data.split_at(end);
    let body = body.strip_prefix(b"\n").unwrap_or(body);
    let mut orders: Vec<OrderNo> = Vec::new();
    for order in String::from_utf8_lossy(asked).split(',').take(20) {
        if let Ok(order) = OrderNo::new(order)
            && !orders.contains(&order)
        {
            orders.push(order);
        }
    }
    cancel(&orders, body);
    if let Some(order) = orders.first() {
        look_up(order, body);
    }
    if let Ok(Reply {
        data: Some(time), ..
    }) = wire::parse_now(body)
    {
        assert!((1_577_836_800..4_102_444_800).contains(&time.0));
    }
});

fn cancel(orders: &[OrderNo], body: &[u8]) {
    let Ok(reply) = wire::parse_cancel(body) else {
        return;
    };
    assert!(reply.message.chars().count() <= KEPT_MAX);
    let judgement = judge_cancel(orders, &CallEnd::Answered(reply));
    assert_eq!(judgement.verdicts.len(), orders.len());
    for (order, verdict) in orders.iter().zip(judgement.verdicts) {
        let cancelled = verdict == Verdict::Cancelled;
        assert!(
            !cancelled || says_cancelled(body, order.as_str()),
            "{order} is not cancelled by {}",
            String::from_utf8_lossy(body)
        );
        follow(verdict, cancelled);
    }
}

/// What becomes of the order, with and without an earlier call that was lost.
fn follow(verdict: Verdict, cancelled: bool) {
    for (tainted, may_look_up) in [(false, true), (true, true), (true, false)] {
        let mut tries = Tries {
            attempts: 2,
            spent: 1,
            tainted,
            ..Tries::default()
        };
        let next = next::after_cancel(&mut tries, verdict.clone(), true, may_look_up, RETRY, 0.5);
        if let Next::End(ending) = next {
            assert_eq!(ending == Ending::Cancelled, cancelled);
            assert!(!tainted || ending.outcome() != Outcome::Refused);
        }
    }
}

fn look_up(order: &OrderNo, body: &[u8]) {
    let Ok(reply) = wire::parse_look_up(body) else {
        return;
    };
    let (seen, _) = judge_look_up(order, &CallEnd::Answered(reply));
    if seen == LookUp::Cancelled {
        assert!(
            shows_80(body, order.as_str()),
            "{order} is not shown as cancelled by {}",
            String::from_utf8_lossy(body)
        );
    }
}

/// The other reading, of all the JSON.
fn says_cancelled(body: &[u8], order: &str) -> bool {
    let answer = match serde_json::from_slice(body) {
        Ok(Once(answer)) => answer,
        Err(error) => return cannot_tell(&error),
    };
    let names = |list: &Value, key: Option<&str>| {
        let rows = list.as_array().into_iter().flatten();
        rows.map(|row| key.map_or(row, |key| &row[key]))
            .filter_map(text)
            .any(|text| is_of(&text, order))
    };
    let data = &answer["data"];
    let error = &data["error_data"];
    if error == TWICE
        || error
            .as_array()
            .into_iter()
            .flatten()
            .any(|row| row["order_no"] == TWICE)
    {
        return false;
    }
    integer(&answer["status"]) == Some(0)
        && names(&data["success_data"], None)
        && !names(&data["error_data"], Some("order_no"))
}

fn shows_80(body: &[u8], order: &str) -> bool {
    let answer = match serde_json::from_slice(body) {
        Ok(Once(answer)) => answer,
        Err(error) => return cannot_tell(&error),
    };
    let rows = answer["data"]["order"].as_array().into_iter().flatten();
    integer(&answer["status"]) == Some(0)
        && rows
            .filter(|row| text(&row["other_out_no"]).is_some_and(|text| is_of(&text, order)))
            .any(|row| integer(&row["status"]) == Some(80))
}

/// Deeper than this reading goes, or a lone surrogate where nobody looks.
fn cannot_tell(error: &serde_json::Error) -> bool {
    let error = error.to_string();
    [
        "recursion limit",
        "surrogate",
        "hex escape",
        "number out of range",
    ]
    .iter()
    .any(|words| error.contains(words))
}

fn is_of(text: &str, order: &str) -> bool {
    let text = text.trim();
    text == order || text.strip_suffix("-1") == Some(order)
}

fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

fn integer(value: &Value) -> Option<i64> {
    text(value)?.trim().parse().ok()
}

/// Stands for what was named twice.
const TWICE: &str = "\u{0}twice";

/// JSON in which what is named twice has no other value than that.
struct Once(Value);

impl<'de> Deserialize<'de> for Once {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Reader)
    }
}

struct Reader;

impl<'de> Visitor<'de> for Reader {
    type Value = Once;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Once, E> {
        Ok(Once(Value::Null))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Once, E> {
        Ok(Once(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Once, E> {
        Ok(Once(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Once, E> {
        Ok(Once(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Once, E> {
        Ok(Once(value.into()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Once, E> {
        Ok(Once(value.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut rows: A) -> Result<Once, A::Error> {
        let mut list = Vec::new();
        while let Some(Once(row)) = rows.next_element()? {
            list.push(row);
        }
        Ok(Once(list.into()))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Once, A::Error> {
        let mut map = BTreeMap::new();
        while let Some((name, Once(value))) = fields.next_entry::<String, _>()? {
            // Two of a name that nobody reads harm nobody.
            let value = if map.contains_key(&name) {
                TWICE.into()
            } else {
                value
            };
            map.insert(name, value);
        }
        Ok(Once(Value::Object(map.into_iter().collect())))
    }
}
