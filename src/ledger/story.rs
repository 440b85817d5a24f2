//! What is known of an order or a command: the tables' last word, and how it came about by the
//! journal.
//!
//! It reads beside the workers, from one moment's view. Of what was noted and not written when a
//! worker was killed nothing is known; so an event without a note of its confirmation may have gone
//! out all the same, and the story says no more than that.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};

use jiff::Timestamp;

use super::journal::{Answer, Entry, Text, may_name};
use super::reader::{Reader, ResultRecord, Row};
use crate::rules::order::{AccountName, CommandId, OrderNo, ReasonCode};
use crate::rules::story::{CommandStory, Moment, OrderStory, Standing, Told, What};

pub use super::reader::{ReadError, Source};

/// All that is known of an order: a story for each account that has one of this number; none when
/// it is not known. The caller's runtime is not held up.
///
/// # Errors
/// When the ledger cannot be read.
pub async fn of_order(
    source: &Source,
    order_no: &OrderNo,
    account: Option<&AccountName>,
) -> Result<Vec<OrderStory>, ReadError> {
    let (order_no, account) = (order_no.clone(), account.cloned());
    let read =
        async move |reader: &Reader| read_order(reader, order_no.as_str(), account.as_ref()).await;
    Reader::apart(source, read).await
}

/// All that is known of a command: a story for each account that has one of this id. What was
/// recorded before there was a journal is found where `account` is named, or is `default`.
///
/// # Errors
/// When the ledger cannot be read.
pub async fn of_command(
    source: &Source,
    command_id: &CommandId,
    account: Option<&AccountName>,
) -> Result<Vec<CommandStory>, ReadError> {
    let (id, account) = (command_id.clone(), account.cloned());
    let read =
        async move |reader: &Reader| read_command(reader, id.as_str(), account.as_ref()).await;
    Reader::apart(source, read).await
}

async fn read_order(
    reader: &Reader,
    order_no: &str,
    account: Option<&AccountName>,
) -> Result<Vec<OrderStory>, ReadError> {
    let wanted = |of: &str| account.is_none_or(|account| account.as_str() == of);
    let mut stories: BTreeMap<String, OrderStory> = BTreeMap::new();
    each_entry(reader, order_no, |entry| {
        let (of, at) = entry.of();
        if wanted(of) {
            of_entry(entry, order_no, |what| {
                let moments = &mut story_of(&mut stories, of, order_no).moments;
                moments.push(Moment { at: time(at), what });
            });
        }
    })
    .await?;
    for row in reader.orders(order_no).await? {
        if wanted(&row.account) {
            let story = story_of(&mut stories, &row.account, order_no);
            let (outcome, state) = match row.state {
                0 => (None, "waiting"),
                1 => (None, "sent"),
                _ => (Some(outcome(row.code.as_deref())), "ended"),
            };
            story.standing = Some(Standing {
                state,
                outcome,
                code: row.code,
                message: row.message,
                attempts: row.attempts,
                since: time(row.since),
                changed_at: time(row.changed_at),
            });
        }
    }
    for story in stories.values_mut() {
        in_time(&mut story.moments);
        let confirmed = Confirmed::of(&story.moments);
        let mut seen: HashSet<&str> = HashSet::new();
        for moment in &story.moments {
            if let What::Asked { command_id, .. } | What::Told { command_id, .. } = &moment.what
                && seen.insert(command_id)
            {
                for row in reader.results(&story.account, command_id).await? {
                    if row.order_no == order_no {
                        story.results.push(told(row, command_id, &confirmed));
                    }
                }
            }
        }
    }
    Ok(stories.into_values().collect())
}

fn story_of<'a>(
    stories: &'a mut BTreeMap<String, OrderStory>,
    account: &str,
    order_no: &str,
) -> &'a mut OrderStory {
    stories
        .entry(account.to_owned())
        .or_insert_with(|| OrderStory {
            account: account.to_owned(),
            order_no: order_no.to_owned(),
            standing: None,
            results: Vec::new(),
            moments: Vec::new(),
        })
}

async fn read_command(
    reader: &Reader,
    id: &str,
    account: Option<&AccountName>,
) -> Result<Vec<CommandStory>, ReadError> {
    let named = account.map_or("default", AccountName::as_str);
    let mut stories: BTreeMap<String, Vec<Moment>> = BTreeMap::new();
    stories.insert(named.to_owned(), Vec::new());
    each_entry(reader, id, |entry| {
        let (of, at) = entry.of();
        if account.is_none_or(|account| account.as_str() == of) {
            let moments = stories.entry(of.to_owned()).or_default();
            of_command_entry(entry, id, |what| {
                let at = time(at);
                moments.push(Moment { at, what });
            });
        }
    })
    .await?;
    let mut told_of = Vec::new();
    for (account, mut moments) in stories {
        in_time(&mut moments);
        let rows = reader.results(&account, id).await?;
        if rows.is_empty() && moments.is_empty() {
            continue;
        }
        let confirmed = Confirmed::of(&moments);
        let results = rows.into_iter().map(|row| told(row, id, &confirmed));
        let results = results.collect();
        told_of.push(CommandStory {
            account,
            command_id: id.to_owned(),
            results,
            moments,
        });
    }
    Ok(told_of)
}

/// Goes through every entry of the rows that name it, and some others.
async fn each_entry(
    reader: &Reader,
    name: &str,
    mut each: impl FnMut(&Entry<'_>),
) -> Result<(), ReadError> {
    // As it is written in a row.
    let quoted = serde_json::Value::from(name).to_string();
    for chain in reader.chains().await? {
        let mut after = chain.anchor.0;
        while after < chain.head.0 {
            let names = reader.names(&chain, after).await?;
            let last = names.as_ref().map_or(chain.head.0, |names| names.last);
            if names.is_none_or(|names| may_name(&names.bits, name)) {
                let read = |row: Row| {
                    if row.text.contains(&quoted) {
                        let text: Text<'_> = serde_json::from_str(&row.text)
                            .map_err(|error| chain.unreadable(row.seq, &error))?;
                        text.entries.iter().for_each(&mut each);
                    }
                    Ok(())
                };
                reader.each_row(&chain, (after + 1, last), read).await?;
            }
            after = last;
        }
    }
    Ok(())
}

impl Entry<'_> {
    /// The account, and when.
    fn of(&self) -> (&str, i64) {
        match self {
            Self::Asked { account, at, .. }
            | Self::Sent { account, at, .. }
            | Self::Answered { account, at, .. }
            | Self::LookedUp { account, at, .. }
            | Self::Waits { account, at, .. }
            | Self::Ended { account, at, .. }
            | Self::Told { account, at, .. }
            | Self::Parked { account, at, .. } => (&**account, *at),
        }
    }
}

fn place(orders: &[Cow<'_, str>], order_no: &str) -> Option<usize> {
    orders.iter().position(|no| no == order_no)
}

/// What an entry tells of an order.
fn of_entry(entry: &Entry<'_>, order_no: &str, mut tell: impl FnMut(What)) {
    match entry {
        Entry::Asked { commands, .. } => {
            for (command, orders) in commands {
                if place(orders, order_no).is_some() {
                    tell(What::Asked {
                        command_id: command.to_string(),
                        orders: orders.len(),
                    });
                }
            }
        }
        Entry::Sent {
            call,
            orders,
            attempts,
            ..
        } => {
            if let Some(place) = place(orders, order_no) {
                tell(What::Sent {
                    call: *call,
                    attempt: attempts.get(place).copied().unwrap_or(1),
                    orders: orders.len(),
                });
            }
        }
        Entry::Waits { orders, .. } => {
            if place(orders, order_no).is_some() {
                tell(What::Waits);
            }
        }
        Entry::Answered {
            call,
            answer,
            cancelled,
            refused,
            not_named,
            ..
        } => {
            let no = refused.iter().find(|(no, _)| no == order_no);
            let (said, words) = if let Some((_, words)) = no {
                let said = match place(cancelled, order_no) {
                    Some(_) => "cancelled_and_refused",
                    None => "refused",
                };
                (Some(said), Some(words.to_string()))
            } else if place(cancelled, order_no).is_some() {
                (Some("cancelled"), None)
            } else if place(not_named, order_no).is_some() {
                ((answer.status == Some(0)).then_some("not_named"), None)
            } else {
                return;
            };
            tell(answered(*call, "cancel", answer, said, words));
        }
        Entry::LookedUp {
            call,
            order,
            answer,
            found,
            ..
        } => {
            if order != order_no {
                return;
            }
            let said = match (answer.status, found.is_empty()) {
                (Some(0), true) => Some("not_found"),
                (Some(0), false) => Some("found"),
                (Some(_) | None, _) => None,
            };
            let states: Vec<String> = found.iter().map(|s| format!("status {s}")).collect();
            let words = (!states.is_empty()).then(|| states.join(", "));
            tell(answered(*call, "look_up", answer, said, words));
        }
        Entry::Ended {
            outcome,
            code,
            message,
            attempts,
            orders,
            ..
        } => {
            if place(orders, order_no).is_some() {
                tell(What::Ended {
                    outcome: outcome.to_string(),
                    code: code.as_deref().map(str::to_owned),
                    message: message.as_deref().map(str::to_owned),
                    attempts: *attempts,
                });
            }
        }
        Entry::Told {
            outcome,
            replayed,
            events,
            ..
        } => {
            for (command, order) in events {
                if order.as_deref() == Some(order_no) {
                    tell(event(command, order.as_deref(), outcome, *replayed));
                }
            }
        }
        Entry::Parked { .. } => {}
    }
}

/// What an entry tells of a command.
fn of_command_entry(entry: &Entry<'_>, id: &str, mut tell: impl FnMut(What)) {
    match entry {
        Entry::Asked { commands, .. } => {
            for (command, orders) in commands {
                if command == id {
                    tell(What::Asked {
                        command_id: command.to_string(),
                        orders: orders.len(),
                    });
                }
            }
        }
        Entry::Told {
            outcome,
            replayed,
            events,
            ..
        } => {
            for (command, order) in events {
                if command == id {
                    tell(event(command, order.as_deref(), outcome, *replayed));
                }
            }
        }
        Entry::Parked { command, .. } => {
            if command == id {
                tell(What::Parked {
                    command_id: command.to_string(),
                });
            }
        }
        Entry::Sent { .. }
        | Entry::Answered { .. }
        | Entry::LookedUp { .. }
        | Entry::Waits { .. }
        | Entry::Ended { .. } => {}
    }
}

fn answered(
    call: u64,
    method: &'static str,
    answer: &Answer<'_>,
    said: Option<&'static str>,
    words: Option<String>,
) -> What {
    What::Answered {
        call,
        method,
        duration_ms: answer.ms,
        http_status: answer.http,
        status: answer.status,
        message: answer.message.to_string(),
        said,
        words,
    }
}

fn event(command: &str, order_no: Option<&str>, outcome: &str, replayed: bool) -> What {
    What::Told {
        command_id: command.to_owned(),
        order_no: order_no.map(str::to_owned),
        outcome: outcome.to_owned(),
        replayed,
    }
}

/// What was written twice, because nobody knew whether it was, happened once. All of one row may
/// have happened in the same moment, so the second time need not follow the first at once.
fn in_time(moments: &mut Vec<Moment>) {
    moments.sort_by_key(|moment| moment.at);
    let is_first: Vec<bool> = {
        let mut seen = HashSet::with_capacity(moments.len());
        moments.iter().map(|moment| seen.insert(moment)).collect()
    };
    let mut is_first = is_first.into_iter();
    moments.retain(|_| is_first.next().unwrap_or(true));
}

/// When events were confirmed, by command, order and outcome: a command may have thousands.
struct Confirmed<'a>(HashMap<(&'a str, &'a str, &'a str), Vec<Timestamp>>);

impl<'a> Confirmed<'a> {
    fn of(moments: &'a [Moment]) -> Self {
        let mut confirmed: HashMap<_, Vec<Timestamp>> = HashMap::new();
        for moment in moments {
            if let What::Told {
                command_id,
                order_no: Some(order_no),
                outcome,
                ..
            } = &moment.what
            {
                let key = (command_id.as_str(), order_no.as_str(), outcome.as_str());
                confirmed.entry(key).or_default().push(moment.at);
            }
        }
        Self(confirmed)
    }
}

fn told(row: ResultRecord, command_id: &str, confirmed: &Confirmed<'_>) -> Told {
    let outcome = outcome(row.code.as_deref());
    let all = confirmed.0.get(&(command_id, &*row.order_no, &*outcome));
    // Earlier, it told of an earlier ending.
    let is_its = |at: &Timestamp| *at >= time(row.occurred_at);
    let confirmed_at = all.into_iter().flatten().copied().filter(is_its);
    Told {
        command_id: command_id.to_owned(),
        confirmed_at: confirmed_at.collect(),
        order_no: row.order_no,
        outcome,
        code: row.code,
        message: row.message,
        attempts: row.attempts,
        occurred_at: time(row.occurred_at),
    }
}

/// A reason's code implies the outcome; without one it is `cancelled`.
fn outcome(code: Option<&str>) -> String {
    let Some(code) = code else {
        return "cancelled".to_owned();
    };
    let known = ReasonCode::parse(code).map(|code| code.outcome().as_str());
    known.unwrap_or(code).to_owned()
}

fn time(millis: i64) -> Timestamp {
    Timestamp::from_millisecond(millis).unwrap_or(Timestamp::UNIX_EPOCH)
}
