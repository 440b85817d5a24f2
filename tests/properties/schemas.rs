//! The contract's files say what the code does: their closed sets and bounds are the code's, and the
//! schema of a command takes what the worker takes.

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::LazyLock;

use clap::ValueEnum;
use jsonschema::Validator;
use lapin::BasicProperties;
use proptest::prelude::*;
use serde_json::{Value, json};
use wdt_cancel_worker::broker::wire;
use wdt_cancel_worker::cli::schema::Which;
use wdt_cancel_worker::rules::admit::{self, Admission, Entry, ORDERS_MAX};
use wdt_cancel_worker::rules::order::{
    ACCOUNT_NAME_MAX_BYTES, COMMAND_ID_MAX_BYTES, CommandId, ORDER_NO_MAX_CHARS, Outcome,
    ReasonCode,
};

use super::Accounts;

fn document(which: Which) -> Value {
    serde_json::from_str(which.text()).unwrap()
}

fn words(list: &Value) -> Vec<&str> {
    let list = list.as_array().unwrap();
    list.iter().map(|word| word.as_str().unwrap()).collect()
}

/// The same set; each side in the contract's sequence, so a plain comparison would do, but a
/// difference reads better so.
fn same<'a>(said: &[&'a str], meant: impl Iterator<Item = &'a str>) {
    let meant: BTreeSet<&str> = meant.collect();
    assert_eq!(said.iter().copied().collect::<BTreeSet<_>>(), meant);
    assert_eq!(said.len(), meant.len(), "none twice: {said:?}");
}

#[test]
fn the_closed_sets_are_the_codes() {
    let event = document(Which::Event);
    let outcomes = words(&event["properties"]["outcome"]["enum"]);
    same(&outcomes, Outcome::ALL.iter().map(|o| o.as_str()));
    let codes = words(&event["properties"]["reason"]["properties"]["code"]["enum"]);
    same(&codes, ReasonCode::ALL.iter().map(|c| c.as_str()));

    let branches = event["oneOf"].as_array().unwrap();
    let named = branches
        .iter()
        .map(|branch| branch["properties"]["outcome"]["const"].as_str().unwrap());
    same(&named.collect::<Vec<_>>(), outcomes.into_iter());
    for branch in branches {
        let outcome = &branch["properties"]["outcome"]["const"];
        let outcome = Outcome::parse(outcome.as_str().unwrap()).unwrap();
        let of_it = ReasonCode::ALL.iter().filter(|c| c.outcome() == outcome);
        match &branch["properties"]["reason"]["properties"]["code"]["enum"] {
            Value::Null => assert_eq!(of_it.count(), 0, "{outcome:?} has a reason"),
            codes => same(&words(codes), of_it.map(|c| c.as_str())),
        }
    }

    let document = document(Which::Asyncapi);
    for channel in ["results", "dryRunResults"] {
        let outcomes = &document["channels"][channel]["parameters"]["outcome"]["enum"];
        same(&words(outcomes), Outcome::ALL.iter().map(|o| o.as_str()));
    }
}

#[test]
fn the_bounds_are_the_codes() {
    let command = &document(Which::Command)["properties"];
    assert_eq!(command["order_no_list"]["maxItems"], ORDERS_MAX);
    assert_eq!(command["command_id"]["maxLength"], COMMAND_ID_MAX_BYTES);
    let account = format!("^[A-Za-z0-9_-]{{1,{ACCOUNT_NAME_MAX_BYTES}}}$");
    assert_eq!(command["account"]["pattern"], account);
    // The first and the last of them are not white space.
    let inner = format!("{{0,{}}}", ORDER_NO_MAX_CHARS - 2);
    let order = command["order_no_list"]["items"]["pattern"].as_str();
    assert!(order.unwrap().contains(&inner));

    let event = &document(Which::Event)["properties"];
    assert_eq!(event["total"]["maximum"], ORDERS_MAX);
    assert_eq!(event["command_id"]["maxLength"], COMMAND_ID_MAX_BYTES);
}

#[test]
fn the_settings_defaults_are_in_the_asyncapi_document() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");
    let readme = std::fs::read_to_string(path).unwrap();
    let document = document(Which::Asyncapi);
    let channels = &document["channels"];
    for (setting, name) in [
        ("amqp.queue", &channels["commands"]["address"]),
        ("amqp.dead_queue", &channels["dead"]["address"]),
        (
            "amqp.exchange",
            &channels["results"]["bindings"]["amqp"]["exchange"]["name"],
        ),
    ] {
        let row = format!("| `{setting}` | `{}` |", name.as_str().unwrap());
        assert!(readme.contains(&row), "{row}");
    }
}

#[test]
fn the_asyncapi_documents_references_lead_somewhere_and_its_examples_are_valid() {
    fn walk<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
        match value {
            Value::Object(object) => {
                found.extend(object.get("$ref").and_then(Value::as_str));
                object.values().for_each(|value| walk(value, found));
            }
            Value::Array(list) => list.iter().for_each(|value| walk(value, found)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
    let asyncapi = document(Which::Asyncapi);
    let mut references = Vec::new();
    walk(&asyncapi, &mut references);
    assert!(references.len() > 10, "{references:?}");
    for reference in references {
        match reference.strip_prefix('#') {
            Some(inside) => assert!(asyncapi.pointer(inside).is_some(), "{reference}"),
            None => {
                let docs = concat!(env!("CARGO_MANIFEST_DIR"), "/docs");
                let file = std::path::Path::new(docs).join(reference);
                assert!(file.is_file(), "{}", file.display());
            }
        }
    }
    for (message, validator) in [
        ("cancel", &*COMMAND),
        ("result", &*EVENT),
        ("dryRunResult", &*EVENT),
    ] {
        let message = &asyncapi["components"]["messages"][message];
        for example in message["examples"].as_array().unwrap() {
            assert!(validator.is_valid(&example["payload"]), "{example:#}");
        }
    }
}

#[test]
fn the_schemas_own_examples_are_valid() {
    for (which, validator) in [(Which::Command, &*COMMAND), (Which::Event, &*EVENT)] {
        let examples = document(which)["examples"].clone();
        let examples = examples.as_array().unwrap();
        assert!(!examples.is_empty());
        for example in examples {
            assert!(validator.is_valid(example), "{example:#}");
        }
    }
}

#[test]
fn an_event_that_contradicts_itself_is_not_valid() {
    let event = &document(Which::Event)["examples"][1];
    assert!(EVENT.is_valid(event));
    let change = |change: &dyn Fn(&mut Value)| {
        let mut event = event.clone();
        change(&mut event);
        assert!(!EVENT.is_valid(&event), "{event:#}");
    };
    change(&|e| e["outcome"] = json!("cancelled"));
    change(&|e| e["outcome"] = json!("failed"));
    change(&|e| e["outcome"] = json!("done"));
    change(&|e| e["reason"]["code"] = json!("malformed"));
    change(&|e| drop(e.as_object_mut().unwrap().remove("reason")));
    change(&|e| drop(e.as_object_mut().unwrap().remove("order_no")));
    change(&|e| e["event_id"] = json!("5f0c7c1e-6a55-4d0b-9c3e-2f7a1b0c4d5e"));
    change(&|e| e["occurred_at"] = json!("2026-11-23T20:00:00.000+08:00"));
    change(&|e| e["dry_run"] = json!(false));
}

#[test]
fn the_command_prints_the_files() {
    for which in Which::value_variants() {
        let name = which.to_possible_value().unwrap();
        let printed = Command::new(env!("CARGO_BIN_EXE_wdt-cancel-worker"))
            .args(["schema", name.get_name()])
            .output()
            .unwrap();
        assert!(printed.status.success(), "{printed:?}");
        assert_eq!(String::from_utf8(printed.stdout).unwrap(), which.text());
    }
}

// What the schema of a command says is what the worker does

fn validator(which: Which) -> Validator {
    jsonschema::draft202012::new(&document(which)).unwrap()
}

static COMMAND: LazyLock<Validator> = LazyLock::new(|| validator(Which::Command));
static EVENT: LazyLock<Validator> = LazyLock::new(|| validator(Which::Event));

/// Text near every border: white space and controls of all kinds, lengths about the bounds.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => "[A-Z0-9-]{1,12}",
        2 => "[ \\t\\r\u{85}\u{a0}\u{2003}\u{2028}\u{3000}\u{feff}]{0,2}[QC单😀 \u{0}\u{7f}\u{85}\u{9f}\u{ad}\u{200b}]{0,3}[ \\n\u{1680}\u{3000}]{0,2}",
        2 => "[QC单😀 ]{38,42}",
        1 => "\\PC{0,45}",
        1 => any::<String>(),
    ]
}

/// A value that a field may be given by somebody who is wrong about it.
fn other() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(json!(null)),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        Just(json!([])),
        Just(json!({"a": 1})),
    ]
}

fn or_other(good: impl Strategy<Value = Value>) -> impl Strategy<Value = Value> {
    prop_oneof![6 => good, 1 => other()]
}

fn command() -> impl Strategy<Value = Value> {
    let entry = or_other(text().prop_map(Value::from));
    let list = or_other(prop::collection::vec(entry, 0..5).prop_map(Value::from));
    let account = or_other(
        prop_oneof![4 => Just("default".to_owned()), 1 => Just("_".to_owned()), 1 => text()]
            .prop_map(Value::from),
    );
    let id = or_other(prop_oneof![text(), "[a-z😀]{60,260}"].prop_map(Value::from));
    let deadline = or_other(
        (0..253_402_300_799_i64, -23..24_i8)
            .prop_map(|(at, offset)| {
                let at = jiff::Timestamp::from_second(at).unwrap();
                at.display_with_offset(jiff::tz::offset(offset)).to_string()
            })
            .prop_map(Value::from),
    );
    let fields = (
        prop::option::weighted(0.95, list),
        prop::option::of(account),
        prop::option::weighted(0.3, id),
        prop::option::weighted(0.3, deadline),
        prop::option::weighted(0.3, other()),
    );
    fields.prop_map(|(list, account, id, deadline, more)| {
        let named = [
            ("order_no_list", list),
            ("account", account),
            ("command_id", id),
            ("deadline", deadline),
            ("order_no", more),
        ];
        let present = named
            .into_iter()
            .filter_map(|(name, value)| Some((name.to_owned(), value?)));
        Value::Object(present.collect())
    })
}

/// What the schema cannot say: which accounts there are, and how many bytes an id's characters take.
fn is_beyond_the_schema(body: &Value) -> bool {
    let account = body["account"].as_str();
    let id = body["command_id"].as_str();
    account.is_some_and(|name| !["default", "shop"].contains(&name))
        || id.is_some_and(|id| id.len() > COMMAND_ID_MAX_BYTES)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn the_schema_of_a_command_takes_what_the_worker_takes(
        body in prop_oneof![20 => command(), 1 => other()],
    ) {
        let (raw, properties) = wire::read(body.to_string().as_bytes(), &BasicProperties::default());
        let fresh = || CommandId::new("fresh").unwrap();
        let taken = match admit::admit(raw, properties, fresh, &Accounts) {
            Admission::Accepted(command) => {
                command.entries.iter().all(|entry| matches!(entry, Entry::Order(_)))
            }
            Admission::Rejected(_) => false,
        };
        let valid = COMMAND.is_valid(&body);
        prop_assert!(valid || !taken, "taken, but not valid: {body:#}");
        prop_assert!(taken || !valid || is_beyond_the_schema(&body), "valid, but not taken: {body:#}");
    }
}
