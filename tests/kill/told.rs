//! The events' side of the story: what was told, against what is due, what the gateway did, and
//! what was durable.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use super::book::Book;
use super::plan::{Kind, Plan, Sent};
use super::record::Record;
use super::support::amqp::{Inbox, Message};

/// A command's id and one of its orders.
type Key = (String, String);

/// See the module. Clones are the same.
#[derive(Clone)]
pub struct Told {
    book: Book,
    pages: Arc<Mutex<Pages>>,
}

/// How many of what.
#[derive(Debug, Clone, Default)]
pub struct Figures {
    /// All events.
    pub events: usize,
    /// Those that were told before, with the same id.
    pub again: usize,
    /// By outcome, without those that were told before.
    pub outcomes: BTreeMap<String, usize>,
}

#[derive(Default)]
struct Pages {
    due: BTreeSet<Key>,
    /// Orders of commands that were sent, and are not told.
    open: BTreeSet<Key>,
    last: BTreeMap<Key, String>,
    /// By command, order and outcome.
    ids: BTreeMap<(Key, String), String>,
    /// Commands that some event gave up.
    given_up: BTreeSet<String>,
    /// Settled events since the last look at a ledger, with their reason's code.
    fresh: Vec<(Key, String)>,
    figures: Figures,
    breaches: Vec<String>,
}

impl Told {
    /// Nothing yet.
    pub fn new(book: &Book, plan: &Plan) -> Self {
        let pages = Pages {
            due: plan.commands.iter().flat_map(keys).collect(),
            ..Pages::default()
        };
        Self {
            book: book.clone(),
            pages: Arc::new(Mutex::new(pages)),
        }
    }

    /// These are sent now.
    pub fn await_these(&self, commands: &[Sent]) {
        let mut pages = self.pages();
        for key in commands.iter().flat_map(keys) {
            if !pages.last.contains_key(&key) {
                pages.open.insert(key);
            }
        }
    }

    /// Reads for ever.
    pub async fn read(self, mut results: Inbox) {
        loop {
            if let Some(message) = results.next(Duration::from_secs(1)).await {
                self.hear(&message);
            }
        }
    }

    /// Orders of commands that are not told.
    pub fn open(&self) -> usize {
        self.pages().open.len()
    }

    /// What was told wrongly.
    pub fn breaches(&self) -> Vec<String> {
        self.pages().breaches.clone()
    }

    /// Figures.
    pub fn figures(&self) -> Figures {
        self.pages().figures.clone()
    }

    /// What was told so far is durable (law 2).
    pub fn check_durable(&self, record: &Record) {
        let mut pages = self.pages();
        for (key, code) in std::mem::take(&mut pages.fresh) {
            let recorded = record.result(&key.0, &key.1);
            let recorded = recorded.map(Option::unwrap_or_default);
            if recorded.as_ref() != Some(&code) {
                let breach = format!("{key:?} was told with {code:?}, recorded is {recorded:?}");
                pages.breaches.push(breach);
            }
        }
    }

    /// What was given up last is parked, and what is parked was given up or not told at all.
    pub fn check_parked(&self, parked: &BTreeSet<String>) {
        let pages = self.pages();
        for ((command, order), outcome) in &pages.last {
            if matches!(outcome.as_str(), "failed" | "unknown") {
                assert!(parked.contains(command), "{command} {order} {outcome}");
            }
        }
        let untold: BTreeSet<&String> = pages.open.iter().map(|(command, _)| command).collect();
        for command in parked {
            let has_cause = pages.given_up.contains(command) || untold.contains(command);
            assert!(has_cause, "{command} was parked without a cause");
        }
    }

    /// Each order of each command was told, and the last word on it is right.
    pub fn check_final(&self) {
        let pages = self.pages();
        assert_eq!(pages.open, BTreeSet::new(), "not told");
        assert_eq!(pages.last.len(), pages.due.len(), "not told");
        for (key, outcome) in &pages.last {
            assert!(Kind::of(&key.1).ends(outcome), "{key:?} {outcome}");
        }
        let distinct: BTreeSet<&String> = pages.ids.values().collect();
        assert_eq!(distinct.len(), pages.ids.len(), "an id of its own each");
    }

    fn hear(&self, message: &Message) {
        let key = (
            message.text("command_id").to_string(),
            message.order_no().to_string(),
        );
        let outcome = message.outcome();
        let occurred_at = message.text("occurred_at").parse().expect("a time");
        let wrong = self.book.contradicts(&key.1, outcome, occurred_at);
        let mut pages = self.pages();
        pages.figures.events += 1;
        assert!(pages.due.contains(&key), "nobody asked for {message:#?}");
        let wrong = wrong.or((!Kind::of(&key.1).allows(outcome)).then(|| "not due".into()));
        if let Some(why) = wrong {
            pages.breaches.push(format!("{why}: {}", message.body));
        }
        let id = message.text("event_id").to_string();
        let what = (key.clone(), outcome.to_string());
        match pages.ids.insert(what, id.clone()) {
            None => *pages.figures.outcomes.entry(outcome.into()).or_default() += 1,
            Some(known) => {
                pages.figures.again += 1;
                if known != id {
                    pages
                        .breaches
                        .push(format!("it was {known}: {}", message.body));
                }
            }
        }
        if matches!(outcome, "failed" | "unknown") {
            pages.given_up.insert(key.0.clone());
        } else {
            let code = message.reason_code().to_string();
            pages.fresh.push((key.clone(), code));
        }
        pages.open.remove(&key);
        pages.last.insert(key, outcome.into());
    }

    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().expect("what was told")
    }
}

fn keys(command: &Sent) -> impl Iterator<Item = Key> + '_ {
    let orders = command.orders.iter();
    orders.map(|order| (command.id.clone(), order.clone()))
}
