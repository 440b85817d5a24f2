//! What is known of an order or a command: the tables' last word, and how it came about by the
//! journal.
//!
//! It reads beside the workers, from one moment's view. Of what was noted and not written when a
//! worker was killed nothing is known; so an event without a note of its confirmation may have gone
//! out all the same, and the story says no more than that.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io;

use jiff::Timestamp;
use serde::{Serialize, Serializer};

use super::journal::{Answer, Entry, Text, may_name};
use super::reader::{Chain, Reader, ResultRecord};
use crate::rules::order::{AccountName, CommandId, OrderNo, ReasonCode};

pub use super::reader::{ReadError, Source};

/// Rows of the journal read at once.
const ROWS: u32 = 200;

/// All that is known of an order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OrderStory {
    /// The account; `_` where a command named one that the settings did not know.
    pub account: String,
    /// The number.
    pub order_no: String,
    /// Where it stands; absent when nothing was ever recorded of it, as when it was never sent.
    pub standing: Option<Standing>,
    /// What the commands that asked for it are told.
    pub results: Vec<Told>,
    /// What happened, in the order of time.
    pub moments: Vec<Moment>,
}

/// All that is known of a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CommandStory {
    /// The account, as of an order.
    pub account: String,
    /// The id.
    pub command_id: String,
    /// What it is told of each order that has ended for it.
    pub results: Vec<Told>,
    /// What happened, in the order of time: it came, was told, was parked.
    pub moments: Vec<Moment>,
}

/// Where an order stands, durably.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Standing {
    /// `waiting`, `sent` (and no ending is recorded) or `ended`.
    pub state: &'static str,
    /// How it ended.
    pub outcome: Option<String>,
    /// Why it did not end as cancelled.
    pub code: Option<String>,
    /// The same in words.
    pub message: Option<String>,
    /// Cancel calls that carried it.
    pub attempts: u32,
    /// The arrival of the oldest command that waited for it when this was recorded.
    #[serde(serialize_with = "as_text")]
    pub since: Timestamp,
    /// When it came to stand so.
    #[serde(serialize_with = "as_text")]
    pub changed_at: Timestamp,
}

/// What a command is told of an order, durably.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Told {
    /// The command.
    pub command_id: String,
    /// The order, as its event tells it.
    pub order_no: String,
    /// How it ended.
    pub outcome: String,
    /// Why it did not end as cancelled.
    pub code: Option<String>,
    /// The same in words.
    pub message: Option<String>,
    /// Cancel calls that carried the order.
    pub attempts: u32,
    /// When it ended so.
    #[serde(serialize_with = "as_text")]
    pub occurred_at: Timestamp,
    /// Each time that such an event is noted as confirmed by the broker. None: it may have gone out,
    /// and nobody noted it.
    #[serde(serialize_with = "as_texts")]
    pub confirmed_at: Vec<Timestamp>,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Moment {
    /// When.
    #[serde(serialize_with = "as_text")]
    pub at: Timestamp,
    /// What.
    #[serde(flatten)]
    pub what: What,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum What {
    /// A command came.
    Asked {
        /// The command.
        command_id: String,
        /// How many orders it lists.
        orders: usize,
    },
    /// A list with the order was recorded as being sent.
    Sent {
        /// The call, by its number in that run of that worker.
        call: u64,
        /// The order's calls so far, this one included.
        attempt: u32,
        /// How many orders are in the list.
        orders: usize,
    },
    /// It was recorded as waiting to be sent.
    Waits,
    /// A call ended.
    Answered {
        /// The call.
        call: u64,
        /// `cancel` or `look_up`.
        method: &'static str,
        /// How long it took, in ms.
        duration_ms: u64,
        /// The HTTP status, when one came.
        http_status: Option<u16>,
        /// The gateway's status, when it answered in its own form.
        status: Option<i64>,
        /// What it said of the call, or what went wrong.
        message: String,
        /// What it said of the order: `cancelled`, `refused`, `not_named`; for a look-up `found`
        /// or `not_found`. Absent where it said nothing of any order.
        said: Option<&'static str>,
        /// The words of a refusal; the states of what was found.
        words: Option<String>,
    },
    /// It was recorded as ended.
    Ended {
        /// How.
        outcome: String,
        /// Why it did not end as cancelled.
        code: Option<String>,
        /// The same in words.
        message: Option<String>,
        /// Cancel calls that carried it.
        attempts: u32,
    },
    /// The broker confirmed an event.
    Told {
        /// The command.
        command_id: String,
        /// The order; absent when the event tells of the command as a whole.
        order_no: Option<String>,
        /// What it tells.
        outcome: String,
        /// It was told before, or decided before this command.
        replayed: bool,
    },
    /// The broker confirmed the command's copy in the dead-letter queue.
    Parked {
        /// The command.
        command_id: String,
    },
}

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
    let (source, order_no, account) = (source.clone(), order_no.clone(), account.cloned());
    apart(async move || {
        let reader = Reader::open(&source).await?;
        read_order(&reader, order_no.as_str(), account.as_ref()).await
    })
    .await
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
    let (source, id, account) = (source.clone(), command_id.clone(), account.cloned());
    apart(async move || {
        let reader = Reader::open(&source).await?;
        read_command(&reader, id.as_str(), account.as_ref()).await
    })
    .await
}

/// Does this on a thread of its own: a file's reads wait for the disk, and there may be many.
pub(super) async fn apart<T: Send + 'static>(
    work: impl AsyncFnOnce() -> Result<T, ReadError> + Send + 'static,
) -> Result<T, ReadError> {
    let (tell, told) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name("ledger reader".into())
        .spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            let done = match runtime {
                Ok(runtime) => runtime.block_on(work()),
                Err(error) => Err(error.into()),
            };
            // Whoever asked may have gone.
            drop(tell.send(done));
        })?;
    let panicked = || io::Error::other("the thread that reads the ledger panicked");
    told.await.unwrap_or_else(|_| Err(panicked().into()))
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
        let mut commands: Vec<String> = Vec::new();
        for moment in &story.moments {
            if let What::Asked { command_id, .. } | What::Told { command_id, .. } = &moment.what
                && !commands.contains(command_id)
            {
                commands.push(command_id.clone());
            }
        }
        for command_id in commands {
            for row in reader.results(&story.account, &command_id).await? {
                if row.order_no == order_no {
                    story.results.push(told(row, &command_id, &story.moments));
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
        let results = rows.into_iter().map(|row| told(row, id, &moments));
        told_of.push(CommandStory {
            account,
            command_id: id.to_owned(),
            results: results.collect(),
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
                read_rows(reader, &chain, (after + 1, last), &quoted, &mut each).await?;
            }
            after = last;
        }
    }
    Ok(())
}

async fn read_rows(
    reader: &Reader,
    chain: &Chain,
    (mut first, last): (i64, i64),
    quoted: &str,
    each: &mut impl FnMut(&Entry<'_>),
) -> Result<(), ReadError> {
    loop {
        let rows = reader.rows(chain, (first, last), ROWS).await?;
        let Some(end) = rows.last() else {
            return Ok(());
        };
        first = end.seq + 1;
        for row in rows {
            if row.text.contains(quoted) {
                let text: Text<'_> =
                    serde_json::from_str(&row.text).map_err(|error| ReadError::Row {
                        chain: chain.name.clone(),
                        seq: row.seq,
                        why: error.to_string(),
                    })?;
                text.entries.iter().for_each(&mut *each);
            }
        }
    }
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
                (Some("refused"), Some(words.to_string()))
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

/// What was written twice, because nobody knew whether it was, happened once.
fn in_time(moments: &mut Vec<Moment>) {
    moments.sort_by_key(|moment| moment.at);
    moments.dedup();
}

fn told(row: ResultRecord, command_id: &str, moments: &[Moment]) -> Told {
    let outcome = outcome(row.code.as_deref());
    let is_its = |moment: &&Moment| match &moment.what {
        What::Told {
            command_id: of,
            order_no,
            outcome: told,
            ..
        } => {
            of == command_id
                && order_no.as_deref() == Some(&*row.order_no)
                && *told == outcome
                // Earlier, it told of an earlier ending.
                && moment.at >= time(row.occurred_at)
        }
        What::Asked { .. }
        | What::Sent { .. }
        | What::Waits
        | What::Answered { .. }
        | What::Ended { .. }
        | What::Parked { .. } => false,
    };
    let confirmed_at = moments.iter().filter(is_its).map(|moment| moment.at);
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

/// As events tell it.
fn as_text<S: Serializer>(at: &Timestamp, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(&format_args!("{at:.3}"))
}

fn as_texts<S: Serializer>(at: &[Timestamp], to: S) -> Result<S::Ok, S::Error> {
    to.collect_seq(at.iter().map(|at| format!("{at:.3}")))
}

// ---- for people ----

impl What {
    /// A line of plain English.
    pub fn line(&self) -> String {
        match self {
            Self::Asked { command_id, orders } => {
                format!("command {command_id} came, {}", of_orders(*orders))
            }
            Self::Sent {
                call,
                attempt,
                orders,
            } => {
                let list = of_orders(*orders);
                format!("sent in call {call}, its attempt {attempt}, in a list of {list}")
            }
            Self::Waits => "recorded as waiting; its command went back to the queue".to_owned(),
            Self::Answered {
                call,
                method,
                duration_ms,
                http_status,
                status,
                message,
                said,
                words,
            } => {
                let what = if *method == "cancel" {
                    format!("call {call}")
                } else {
                    format!("look-up {call}")
                };
                let mut line = format!("{what} ended after {duration_ms} ms");
                if let Some(http) = http_status {
                    line += &format!(", HTTP {http}");
                }
                if let Some(status) = status {
                    line += &format!(", status {status}");
                }
                if !message.is_empty() {
                    line += &format!(", {message:?}");
                }
                if let Some(said) = said {
                    line += &format!("; of the order: {}", said.replace('_', " "));
                }
                if let Some(words) = words {
                    line += &format!(", {words:?}");
                }
                line
            }
            Self::Ended {
                outcome,
                code,
                message,
                attempts,
            } => {
                let why = why(code.as_deref(), message.as_deref());
                format!("ended as {outcome}{why}, after {}", calls(*attempts))
            }
            Self::Told {
                command_id,
                order_no: _,
                outcome,
                replayed,
            } => {
                let again = if *replayed { " (replayed)" } else { "" };
                format!("the broker confirmed the event to command {command_id}: {outcome}{again}")
            }
            Self::Parked { command_id } => {
                format!("command {command_id} was copied to the dead-letter queue")
            }
        }
    }
}

fn of_orders(count: usize) -> String {
    match count {
        1 => "1 order".to_owned(),
        count => format!("{count} orders"),
    }
}

fn calls(count: u32) -> String {
    match count {
        1 => "1 call".to_owned(),
        count => format!("{count} calls"),
    }
}

fn why(code: Option<&str>, message: Option<&str>) -> String {
    let code = code.map(|code| format!(" ({code})")).unwrap_or_default();
    let words = message.filter(|message| !message.is_empty());
    let words = words.map(|words| format!(" {words:?}")).unwrap_or_default();
    code + &words
}

impl Told {
    /// A line of plain English.
    pub fn line(&self) -> String {
        let why = why(self.code.as_deref(), self.message.as_deref());
        let confirmed = match self.confirmed_at.as_slice() {
            [] => "no confirmed event is noted; it may have gone out".to_owned(),
            [at] => format!("confirmed {at:.3}"),
            [first, .., last] => format!(
                "confirmed {} times, {first:.3} to {last:.3}",
                self.confirmed_at.len()
            ),
        };
        format!("{}{why}; {confirmed}", self.outcome)
    }
}

impl OrderStory {
    /// Tells it to people.
    ///
    /// # Errors
    /// When `out` does not take it.
    pub fn write(&self, out: &mut impl io::Write) -> io::Result<()> {
        write!(out, "order {} of account {}: ", self.order_no, self.account)?;
        match &self.standing {
            None => writeln!(out, "never sent")?,
            Some(standing) => {
                let state = match (standing.state, &standing.outcome) {
                    (_, Some(outcome)) => outcome,
                    ("sent", None) => "sent, and no answer is recorded",
                    (state, None) => state,
                };
                let why = why(standing.code.as_deref(), standing.message.as_deref());
                let (calls, at) = (calls(standing.attempts), standing.changed_at);
                writeln!(out, "{state}{why}, after {calls}, since {at:.3}")?;
            }
        }
        for told in &self.results {
            writeln!(out, "  command {}: {}", told.command_id, told.line())?;
        }
        for moment in &self.moments {
            writeln!(out, "  {:.3}  {}", moment.at, moment.what.line())?;
        }
        Ok(())
    }
}

impl CommandStory {
    /// Tells it to people.
    ///
    /// # Errors
    /// When `out` does not take it.
    pub fn write(&self, out: &mut impl io::Write) -> io::Result<()> {
        writeln!(
            out,
            "command {} of account {}:",
            self.command_id, self.account
        )?;
        for told in &self.results {
            writeln!(out, "  order {}: {}", told.order_no, told.line())?;
        }
        for moment in &self.moments {
            // What is confirmed was said with the results.
            let is_said = matches!(&moment.what, What::Told { order_no: Some(no), .. }
                if self.results.iter().any(|told| told.order_no == *no && told.confirmed_at.contains(&moment.at)));
            if !is_said {
                writeln!(out, "  {:.3}  {}", moment.at, moment.what.line())?;
            }
        }
        Ok(())
    }
}
