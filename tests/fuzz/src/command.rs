//! Any bytes as a command, with any properties.
//!
//! Holds: nothing panics; what is taken is an order number by the contract's words and stands in
//! the body; events are told only where that is allowed; each event is JSON that says what it was
//! made from, under the same id each time.
#![no_main]

use std::collections::HashSet;
use std::sync::Arc;

use jiff::Timestamp;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use uuid::Uuid;
use wdt_cancel_worker::broker::wire::{self, Origin};
use wdt_cancel_worker::rules::admit::{
    self, Admission, Command, Entry, Envelope, House, ORDERS_MAX,
};
use wdt_cancel_worker::rules::desk::{CommandKey, Event, Parking, Telling, Ticket};
use wdt_cancel_worker::rules::dry_run::Mode;
use wdt_cancel_worker::rules::order::{AccountName, CommandId, Ending, OrderNo};
use wdt_cancel_worker::rules::pattern::Pattern;

/// Parts the properties from each other, and them from the body.
const PART: char = '\u{1e}';
/// Events looked at for one command; the others are made in the same way.
const EVENTS: usize = 8;

struct Settings {
    accounts: [AccountName; 2],
    allowed: [Pattern; 2],
}

impl House for Settings {
    fn accounts(&self) -> impl Iterator<Item = &AccountName> {
        self.accounts.iter()
    }

    fn allows_reply_to(&self, queue: &str) -> bool {
        self.allowed.iter().any(|pattern| pattern.matches(queue))
    }
}

fuzz_target!(|data: &[u8]| {
    let house = Settings {
        accounts: ["default", "shop"].map(|name| AccountName::new(name).expect("a name")),
        allowed: ["*.replies", "amq.gen-*"].map(|text| Pattern::new(text).expect("a pattern")),
    };
    let (properties, body) = parts(data);
    let (raw, read) = wire::read(body, &properties);
    let fresh = || CommandId::new("fresh").expect("an id");
    let admission = admit::admit(raw, read, fresh, &house);
    assert_eq!(
        admission,
        {
            let (raw, read) = wire::read(body, &properties);
            admit::admit(raw, read, fresh, &house)
        },
        "the same bytes are judged the same"
    );
    match admission {
        Admission::Accepted(command) => {
            listed(&command, body);
            sound(&command.envelope, &house);
            let total = command.entries.len();
            for (index, entry) in command.entries.iter().enumerate().take(EVENTS) {
                let ending = match entry {
                    Entry::Order(_) => Ending::Cancelled,
                    Entry::Invalid(_, reason) => Ending::Not(reason.clone()),
                };
                tell(Telling {
                    command: CommandKey::default(),
                    place: index,
                    ticket: Ticket(1),
                    envelope: Arc::clone(&command.envelope),
                    event: Event {
                        account: Some(command.account.clone()),
                        account_shown: command.account.as_str().into(),
                        order_no: Some(entry.shown().into()),
                        ending,
                        attempts: 1,
                        replayed: false,
                        index,
                        total,
                        occurred_at: Timestamp::UNIX_EPOCH,
                    },
                });
            }
        }
        Admission::Rejected(rejection) => {
            assert!(rejection.orders.len() <= ORDERS_MAX);
            sound(&rejection.envelope, &house);
            tell(Telling {
                command: CommandKey::default(),
                place: 0,
                ticket: Ticket(1),
                envelope: Arc::clone(&rejection.envelope),
                event: Event {
                    account: rejection.account.clone(),
                    account_shown: Arc::clone(&rejection.account_shown),
                    order_no: rejection.orders.first().cloned(),
                    ending: Ending::Not(rejection.reason.clone()),
                    attempts: 0,
                    replayed: false,
                    index: 0,
                    total: rejection.orders.len().max(1),
                    occurred_at: Timestamp::UNIX_EPOCH,
                },
            });
            park(&properties, &rejection.envelope, &rejection.account_shown);
        }
    }
});

/// `message_id`, `correlation_id`, `reply_to`, `traceparent`, `tracestate`, and the body; with fewer
/// parts, all is body.
fn parts(data: &[u8]) -> (BasicProperties, &[u8]) {
    let parts: Vec<&[u8]> = data.splitn(6, |b| *b == PART as u8).collect();
    let [texts @ .., body] = &parts[..] else {
        return (BasicProperties::default(), data);
    };
    if texts.len() < 5 {
        return (BasicProperties::default(), data);
    }
    // What AMQP's short strings hold.
    let text = |bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes);
        let end = text.floor_char_boundary(255);
        text[..end].to_owned()
    };
    let mut headers = FieldTable::default();
    for (name, bytes) in [("traceparent", texts[3]), ("tracestate", texts[4])] {
        if !bytes.is_empty() {
            headers.insert(name.into(), AMQPValue::LongString(bytes.into()));
        }
    }
    let mut properties = BasicProperties::default().with_headers(headers);
    if !texts[0].is_empty() {
        properties = properties.with_message_id(text(texts[0]).into());
    }
    if !texts[1].is_empty() {
        properties = properties.with_correlation_id(text(texts[1]).into());
    }
    if !texts[2].is_empty() {
        properties = properties.with_reply_to(text(texts[2]).into());
    }
    (properties, body)
}

/// The entries are what the body lists, each once.
fn listed(command: &Command, body: &[u8]) {
    assert!((1..=ORDERS_MAX).contains(&command.entries.len()));
    let mut seen = HashSet::new();
    for entry in &command.entries {
        assert!(seen.insert(entry.shown()), "{entry:?} twice");
        if let Entry::Order(order) = entry {
            let text = order.as_str();
            assert_eq!(text, text.trim());
            assert!((1..=40).contains(&text.chars().count()), "{text:?}");
            assert!(!text.chars().any(char::is_control), "{text:?}");
        }
    }
    // The other reading goes 128 levels deep, and reads also what nobody looks at.
    let Ok(value) = serde_json::from_slice::<Value>(body) else {
        return;
    };
    let list = value["order_no_list"].as_array().expect("a list");
    let valid: HashSet<&str> = list
        .iter()
        .filter_map(Value::as_str)
        .filter(|text| OrderNo::new(text).is_ok())
        .map(str::trim)
        .collect();
    let taken: HashSet<&str> = command
        .entries
        .iter()
        .filter(|entry| matches!(entry, Entry::Order(_)))
        .map(Entry::shown)
        .collect();
    assert_eq!(taken, valid);
    let account = value["account"].as_str().unwrap_or("default");
    assert_eq!(command.account.as_str(), account);
}

fn sound(envelope: &Envelope, house: &Settings) {
    assert!((1..=255).contains(&envelope.command_id.as_str().len()));
    assert!(!envelope.correlation_id.is_empty());
    if let Some(queue) = &envelope.reply_to {
        assert!(house.allows_reply_to(queue));
    }
}

fn tell(telling: Telling) {
    let message = wire::write(Mode::Live, &telling, 3).expect("an event is JSON");
    let again = wire::write(Mode::Live, &telling, 6).expect("an event is JSON");
    assert_eq!(message.id, again.id);
    assert_eq!(message.body, again.body);
    assert!(message.routing_key.len() <= 255);
    assert_eq!(message.routing_key.split('.').count(), 3);
    let body: Value = serde_json::from_slice(&message.body).expect("an event can be read");
    let event = &telling.event;
    assert_eq!(body["event_id"], message.id.as_str());
    assert!(Uuid::parse_str(&message.id).is_ok());
    assert_eq!(body["order_no"].as_str(), event.order_no.as_deref());
    assert_eq!(body["index"], event.index);
    assert_eq!(body["total"], event.total);
    assert_eq!(body["outcome"], event.ending.outcome().as_str());
    assert_eq!(
        body["reason"]["message"].as_str(),
        event.ending.reason().map(|reason| &*reason.message)
    );
}

fn park(properties: &BasicProperties, envelope: &Arc<Envelope>, account: &Arc<str>) {
    let parking = Parking {
        command: CommandKey::default(),
        ticket: Ticket(1),
        envelope: Arc::clone(envelope),
        account: Arc::clone(account),
        why: "unreadable",
    };
    let origin = Origin {
        queue: "q",
        exchange: "",
        routing_key: "q",
    };
    let copy = wire::parked_properties(properties, &parking, origin, 1);
    let id = copy.message_id().as_ref().map(|id| id.as_str());
    assert_eq!(id, Some(envelope.command_id.as_str()));
}
