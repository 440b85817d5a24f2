//! Every event that a test reads is held against its published schema.

use std::sync::LazyLock;

use jsonschema::Validator;
use serde_json::Value;

static SCHEMA: LazyLock<Value> = LazyLock::new(|| {
    serde_json::from_str(include_str!("../../docs/event.schema.json")).expect("JSON")
});
static EVENT: LazyLock<Validator> =
    LazyLock::new(|| jsonschema::draft202012::new(&SCHEMA).expect("a JSON Schema"));

/// Panics when an event is not as the schema says. A consumer has to bear fields that are new to it;
/// the worker has none that the schema does not name.
pub fn check_event(kind: &str, body: &[u8]) {
    let event: Value = serde_json::from_slice(body)
        .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(body)));
    let wrong: Vec<String> = EVENT
        .iter_errors(&event)
        .map(|error| format!("{}: {error}", error.instance_path()))
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?} in {event:#}");
    let expected = match event.get("dry_run") {
        None => "wdt.cancel.result.v1",
        Some(_) => "wdt.cancel.dry-run.v1",
    };
    assert_eq!(kind, expected, "{event:#}");
    let names = |object: &Value, schema: &Value| {
        for name in object.as_object().into_iter().flat_map(|o| o.keys()) {
            assert!(
                schema["properties"].get(name).is_some(),
                "no {name} in the schema: {event:#}"
            );
        }
    };
    names(&event, &SCHEMA);
    names(&event["reason"], &SCHEMA["properties"]["reason"]);
}
