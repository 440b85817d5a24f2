//! The journal: what happened, in rows that are chained by hashes.
//!
//! A row is written with a group of requests, in its transaction, and holds whatever happened since
//! the row before. What is durable by that same transaction, that orders were sent or ended, is thus
//! in the journal exactly when it is in the tables. What the worker *notes* (a command came, a call
//! was answered, an event was confirmed) waits for the next group, a second at most; a crash loses
//! what waits.
//!
//! Each row's hash is SHA-256 over the hash of the row before and the row's text. So whoever knows
//! the last hash can tell whether any row was changed, taken out or moved.
//!
//! No row names what it holds in an index, which would cost more than the rows. Instead the orders
//! and commands of many rows are kept in a Bloom filter of 16 KiB: whoever asks for an order reads
//! all filters, and then the rows of the few that may have it.

use std::borrow::Cow;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::rules::desk::{CallId, LaneId, OrderRow, OrderState, SendList};
use crate::rules::judge::{CallEnd, CancelLists, FoundOrder, Named};
use crate::rules::order::{AccountName, CommandId, Ending, OrderNo, Outcome};

/// What waits for a ledger that cannot be written, at most, in bytes: it may be away for hours, and
/// commands that are rejected are told without it.
pub(super) const WAITING_MAX: usize = 16 * 1024 * 1024;
/// What the worker notes waits for so long at most to be written along.
pub(super) const NOTES_WAIT: Duration = Duration::from_secs(1);

/// A call that ended.
#[derive(Debug, Clone, Copy)]
pub struct CallEnded<'a> {
    /// The account.
    pub account: &'a AccountName,
    /// The call, as it was recorded when it was sent.
    pub call: CallId,
    /// When.
    pub at: Timestamp,
    /// How long it took.
    pub duration: Duration,
    /// The HTTP status, when one came.
    pub http_status: Option<u16>,
}

/// What the worker saw, for the journal. It is written down as JSON at once, so that nothing is kept
/// for it, and things of one kind together.
#[derive(Debug, Default)]
pub struct Notes {
    asked: Groups<String, Vec<u8>>,
    calls: Page,
    told: Groups<(String, Outcome, bool), Vec<u8>>,
    parked: Vec<(String, CommandId)>,
    names: Vec<u64>,
}

impl Notes {
    /// True when nothing was seen.
    pub fn is_empty(&self) -> bool {
        let Self {
            asked,
            calls,
            told,
            parked,
            names: _,
        } = self;
        asked.is_empty() && calls.is_empty() && told.is_empty() && parked.is_empty()
    }

    /// About how much memory it takes.
    pub(super) fn bytes(&self) -> usize {
        let Self {
            asked,
            calls,
            told,
            parked,
            names,
        } = self;
        let asked = asked.iter().map(|(_, json)| json.len()).sum::<usize>();
        let told = told.iter().map(|(_, json)| json.len()).sum::<usize>();
        let parked = parked.iter().map(|(_, id)| id.as_str().len());
        let names = (names.len() + calls.names.len()) * size_of::<u64>();
        asked + told + calls.json.len() + names + parked.sum::<usize>()
    }

    /// A command came, of the account where the settings know it, with its orders as its events tell
    /// them.
    pub fn asked<'a>(
        &mut self,
        account: Option<&AccountName>,
        command_id: &CommandId,
        orders: impl IntoIterator<Item = &'a str>,
    ) {
        let account = shown(account);
        let is_its = |of: &String| of == account;
        let json = group(&mut self.asked, is_its, || account.into());
        separate(json);
        json.push(b'[');
        text(json, command_id.as_str());
        self.names.push(hash_of(command_id.as_str()));
        json.extend_from_slice(b",[");
        let mut is_first = true;
        for order in orders {
            if !std::mem::take(&mut is_first) {
                json.push(b',');
            }
            text(json, order);
            self.names.push(hash_of(order));
        }
        json.extend_from_slice(b"]]");
    }

    /// A cancel call that carried these orders ended.
    pub fn answered(
        &mut self,
        call: CallEnded<'_>,
        orders: &[OrderNo],
        end: &CallEnd<CancelLists>,
    ) {
        self.calls.add(&answered(call, orders, end));
    }

    /// A look-up of this order ended.
    pub fn looked_up(
        &mut self,
        call: CallEnded<'_>,
        order_no: &OrderNo,
        end: &CallEnd<Vec<FoundOrder>>,
    ) {
        let found = match end {
            CallEnd::Answered(reply) => reply.data.as_deref().unwrap_or_default(),
            CallEnd::Throttled { .. }
            | CallEnd::Garbled { .. }
            | CallEnd::Lost { .. }
            | CallEnd::NotReached { .. } => &[],
        };
        let ours = found.iter().filter(|found| found.is_of(order_no));
        self.calls.add(&Entry::LookedUp {
            at: call.at.as_millisecond(),
            account: call.account.as_str().into(),
            call: call.call.0,
            order: order_no.as_str().into(),
            answer: Answer::of(call, end),
            found: ours.map(|f| f.status).collect(),
        });
    }

    /// The broker confirmed an event, of this order or of the command as a whole. `replayed`: it was
    /// told before, or decided before this command.
    pub fn told(
        &mut self,
        account: Option<&AccountName>,
        command_id: &CommandId,
        order_no: Option<&str>,
        (outcome, replayed): (Outcome, bool),
    ) {
        let account = shown(account);
        let is_its =
            |(of, o, r): &(String, Outcome, bool)| of == account && (*o, *r) == (outcome, replayed);
        let json = group(&mut self.told, is_its, || {
            (account.into(), outcome, replayed)
        });
        separate(json);
        json.push(b'[');
        text(json, command_id.as_str());
        self.names.push(hash_of(command_id.as_str()));
        match order_no {
            Some(order_no) => {
                json.push(b',');
                text(json, order_no);
                self.names.push(hash_of(order_no));
            }
            None => json.extend_from_slice(b",null"),
        }
        json.push(b']');
    }

    /// The broker confirmed a command's copy in the dead-letter queue.
    pub fn parked(&mut self, account: Option<&AccountName>, command_id: &CommandId) {
        self.parked
            .push((shown(account).into(), command_id.clone()));
    }
}

fn shown(account: Option<&AccountName>) -> &str {
    account.map_or("_", AccountName::as_str)
}

/// Before one more of a list.
fn separate(json: &mut Vec<u8>) {
    if !json.is_empty() {
        json.push(b',');
    }
}

fn text(json: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(json, text)
        .unwrap_or_else(|error| unreachable!("memory takes any text: {error}"));
}

/// An event in an entry: the command, and the order if it tells of one.
type Event<'a> = (Cow<'a, str>, Option<Cow<'a, str>>);

/// One thing that happened, or several of a kind. Times are ms since 1970.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(super) enum Entry<'a> {
    Asked {
        at: i64,
        account: Cow<'a, str>,
        commands: Vec<(Cow<'a, str>, Vec<Cow<'a, str>>)>,
    },
    /// These are recorded as being sent.
    Sent {
        at: i64,
        account: Cow<'a, str>,
        call: u64,
        orders: Vec<Cow<'a, str>>,
        /// Of each order; absent where it is the first call for all of them.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        attempts: Vec<u32>,
    },
    Answered {
        at: i64,
        account: Cow<'a, str>,
        call: u64,
        #[serde(flatten)]
        answer: Answer<'a>,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        cancelled: Vec<Cow<'a, str>>,
        /// With what was said of each.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        refused: Vec<(Cow<'a, str>, Cow<'a, str>)>,
        /// The answer names none of these.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        not_named: Vec<Cow<'a, str>>,
    },
    LookedUp {
        at: i64,
        account: Cow<'a, str>,
        call: u64,
        order: Cow<'a, str>,
        #[serde(flatten)]
        answer: Answer<'a>,
        /// The states in which it was found.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        found: Vec<i64>,
    },
    /// These are recorded as waiting to be sent.
    Waits {
        at: i64,
        account: Cow<'a, str>,
        orders: Vec<Cow<'a, str>>,
    },
    Ended {
        at: i64,
        account: Cow<'a, str>,
        outcome: Cow<'a, str>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        code: Option<Cow<'a, str>>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        message: Option<Cow<'a, str>>,
        attempts: u32,
        orders: Vec<Cow<'a, str>>,
    },
    Told {
        at: i64,
        account: Cow<'a, str>,
        outcome: Cow<'a, str>,
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        replayed: bool,
        events: Vec<Event<'a>>,
    },
    Parked {
        at: i64,
        account: Cow<'a, str>,
        command: Cow<'a, str>,
    },
}

/// How a call ended, whatever it carried.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Answer<'a> {
    pub(super) ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) http: Option<u16>,
    /// The gateway's; absent where there was no answer in its form.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) status: Option<i64>,
    /// What the gateway said of the call, or what went wrong.
    #[serde(default, skip_serializing_if = "str::is_empty")]
    pub(super) message: Cow<'a, str>,
}

impl<'a> Answer<'a> {
    fn of<T>(call: CallEnded<'_>, end: &'a CallEnd<T>) -> Self {
        let (status, message) = match end {
            CallEnd::Answered(reply) => (Some(reply.status), reply.message.as_str()),
            CallEnd::Throttled { .. } => (None, "too many calls"),
            CallEnd::Garbled { what, .. }
            | CallEnd::Lost { what }
            | CallEnd::NotReached { what } => (None, what.as_str()),
        };
        Self {
            ms: u64::try_from(call.duration.as_millis()).unwrap_or(u64::MAX),
            http: call.http_status,
            status,
            message: message.into(),
        }
    }
}

impl Entry<'_> {
    /// The orders and commands that it is about.
    fn names(&self, mut name: impl FnMut(&str)) {
        let mut all = |names: &[Cow<'_, str>]| names.iter().for_each(|text| name(text));
        match self {
            Self::Asked { commands, .. } => {
                for (command, orders) in commands {
                    all(std::slice::from_ref(command));
                    all(orders);
                }
            }
            Self::Sent { orders, .. } | Self::Waits { orders, .. } | Self::Ended { orders, .. } => {
                all(orders);
            }
            Self::Answered {
                cancelled,
                refused,
                not_named,
                ..
            } => {
                all(cancelled);
                all(not_named);
                refused.iter().for_each(|(order, _)| name(order));
            }
            Self::LookedUp { order, .. } => name(order),
            Self::Told { events, .. } => {
                for (command, order) in events {
                    name(command);
                    order.iter().for_each(|order| name(order));
                }
            }
            Self::Parked { command, .. } => name(command),
        }
    }
}

/// What goes together, by what it has in common.
type Groups<K, T> = Vec<(K, T)>;

/// The names of the accounts, by lane.
pub(super) trait Names {
    fn name(&self, lane: LaneId) -> &str;
}

impl Names for [AccountName] {
    fn name(&self, lane: LaneId) -> &str {
        self[lane.0].as_str()
    }
}

/// Entries on their way into a row.
#[derive(Debug, Default)]
pub(super) struct Page {
    json: Vec<u8>,
    names: Vec<u64>,
}

impl Page {
    pub(super) fn is_empty(&self) -> bool {
        self.json.is_empty()
    }

    fn add(&mut self, entry: &Entry<'_>) {
        separate(&mut self.json);
        serde_json::to_writer(&mut self.json, entry)
            .unwrap_or_else(|error| unreachable!("memory takes what has text keys: {error}"));
        entry.names(|name| self.names.push(hash_of(name)));
    }

    /// What the worker saw, up to `at`. Whatever was asked was so before it was answered.
    pub(super) fn noted(&mut self, at: Timestamp, notes: Notes) {
        let at = at.as_millisecond();
        for (account, commands) in notes.asked {
            self.open("asked", at, &account);
            self.close("commands", &commands);
        }
        if !notes.calls.is_empty() {
            separate(&mut self.json);
            self.json.extend(notes.calls.json);
            self.names.extend(notes.calls.names);
        }
        for ((account, outcome, replayed), events) in notes.told {
            self.open("told", at, &account);
            self.json.extend_from_slice(b",\"outcome\":");
            text(&mut self.json, outcome.as_str());
            if replayed {
                self.json.extend_from_slice(b",\"replayed\":true");
            }
            self.close("events", &events);
        }
        self.names.extend(notes.names);
        for (account, command_id) in notes.parked {
            self.add(&Entry::Parked {
                at,
                account: account.as_str().into(),
                command: command_id.as_str().into(),
            });
        }
    }

    // An entry whose list was written down as it came.

    fn open(&mut self, kind: &str, at: i64, account: &str) {
        separate(&mut self.json);
        let head = format!("{{\"kind\":\"{kind}\",\"at\":{at},\"account\":");
        self.json.extend_from_slice(head.as_bytes());
        text(&mut self.json, account);
    }

    fn close(&mut self, name: &str, list: &[u8]) {
        self.json
            .extend_from_slice(format!(",\"{name}\":[").as_bytes());
        self.json.extend_from_slice(list);
        self.json.extend_from_slice(b"]}");
    }

    /// This list is recorded as being sent.
    pub(super) fn sent(&mut self, names: &(impl Names + ?Sized), list: &SendList, at: Timestamp) {
        let attempts = list.orders.iter().map(|row| row.attempts);
        let is_first = attempts.clone().all(|attempts| attempts == 1);
        self.add(&Entry::Sent {
            at: at.as_millisecond(),
            account: names.name(list.lane).into(),
            call: list.call.0,
            orders: list
                .orders
                .iter()
                .map(|r| r.order_no.as_str().into())
                .collect(),
            attempts: if is_first {
                Vec::new()
            } else {
                attempts.collect()
            },
        });
    }

    /// These states are recorded. What is recorded as sent came with its list.
    pub(super) fn recorded<'a>(
        &mut self,
        names: &(impl Names + ?Sized),
        now: Timestamp,
        orders: impl Iterator<Item = &'a OrderRow>,
    ) {
        let mut waiting: Groups<LaneId, Vec<Cow<'_, str>>> = Vec::new();
        let mut ended: Groups<(LaneId, Timestamp, u32, &Ending), Vec<Cow<'_, str>>> = Vec::new();
        for row in orders {
            let order_no = row.order_no.as_str().into();
            match &row.state {
                OrderState::Waiting => by_key(&mut waiting, row.lane).push(order_no),
                OrderState::Sent => {}
                OrderState::Ended(ending, at) => {
                    by_key(&mut ended, (row.lane, *at, row.attempts, ending)).push(order_no);
                }
            }
        }
        for (lane, orders) in waiting {
            self.add(&Entry::Waits {
                at: now.as_millisecond(),
                account: names.name(lane).into(),
                orders,
            });
        }
        for ((lane, at, attempts, ending), orders) in ended {
            let reason = ending.reason();
            self.add(&Entry::Ended {
                at: at.as_millisecond(),
                account: names.name(lane).into(),
                outcome: ending.outcome().as_str().into(),
                code: reason.map(|reason| reason.code.as_str().into()),
                message: reason.map(|reason| (&*reason.message).into()),
                attempts,
                orders,
            });
        }
    }
}

/// What is of one kind, in the sequence in which kinds came; there are few, and the latest is the
/// likeliest.
fn group<K, T: Default>(
    groups: &mut Groups<K, T>,
    is_its: impl Fn(&K) -> bool,
    key: impl FnOnce() -> K,
) -> &mut T {
    let place = match groups.iter().rposition(|(known, _)| is_its(known)) {
        Some(place) => place,
        None => {
            groups.push((key(), T::default()));
            groups.len() - 1
        }
    };
    &mut groups[place].1
}

fn by_key<K: PartialEq + Copy, T: Default>(groups: &mut Groups<K, T>, key: K) -> &mut T {
    group(groups, |known| *known == key, || key)
}

fn answered<'a>(
    call: CallEnded<'a>,
    orders: &'a [OrderNo],
    end: &'a CallEnd<CancelLists>,
) -> Entry<'a> {
    let named = match end {
        CallEnd::Answered(reply) => reply.data.as_ref().map(|lists| Named::of(orders, lists)),
        CallEnd::Throttled { .. }
        | CallEnd::Garbled { .. }
        | CallEnd::Lost { .. }
        | CallEnd::NotReached { .. } => None,
    };
    // In the words of whoever judges it, or the story would tell of another answer.
    let named = named.unwrap_or_default();
    let (mut cancelled, mut refused, mut not_named) = (Vec::new(), Vec::new(), Vec::new());
    for order_no in orders {
        let (is_cancelled, no) = named.order(order_no);
        let order_no = order_no.as_str();
        if is_cancelled {
            cancelled.push(Cow::from(order_no));
        }
        if let Some(words) = no {
            refused.push((Cow::from(order_no), Cow::from(words)));
        }
        if !is_cancelled && no.is_none() {
            not_named.push(Cow::from(order_no));
        }
    }
    Entry::Answered {
        at: call.at.as_millisecond(),
        account: call.account.as_str().into(),
        call: call.call.0,
        answer: Answer::of(call, end),
        cancelled,
        refused,
        not_named,
    }
}

// ---- rows ----

/// A row's text, as it is hashed.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Text<'a> {
    /// The worker's run, which numbers its calls.
    pub(super) run: Cow<'a, str>,
    /// When it was written.
    pub(super) at: i64,
    /// What happened.
    pub(super) entries: Vec<Entry<'a>>,
}

/// SHA-256.
pub(super) type Hash = [u8; 32];

/// The end of a chain: its last row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) seq: i64,
    pub(super) at: i64,
    pub(super) hash: Hash,
}

impl Head {
    /// Before the first row of a chain, which its name sets apart from others.
    pub(super) fn of(chain: &str) -> Self {
        Self {
            seq: 0,
            at: i64::MIN,
            hash: Sha256::digest(chain).into(),
        }
    }
}

/// The hash of a row that follows the one with `before`.
pub(super) fn chained(before: &Hash, text: &str) -> Hash {
    let mut hash = Sha256::new();
    hash.update(before);
    hash.update(text);
    hash.finalize().into()
}

/// A row to be written.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) head: Head,
    pub(super) text: String,
    /// The first row of those whose filter is full with this one, to be written along.
    pub(super) full_from: Option<i64>,
}

/// Writes one chain.
#[derive(Debug)]
pub(super) struct Scribe {
    run: String,
    /// The last row that is durable.
    pub(super) head: Head,
    pub(super) filter: Filter,
    /// The first row whose names are in the filter.
    pub(super) filter_from: i64,
}

impl Scribe {
    pub(super) fn new(head: Head, now: Timestamp) -> Self {
        Self {
            run: now.as_millisecond().to_string(),
            head,
            filter: Filter::default(),
            filter_from: head.seq + 1,
        }
    }

    /// The row that is to follow, if there is anything to tell. Nothing depends on whether it
    /// becomes durable: [`Self::written`] tells.
    pub(super) fn row(&mut self, now: Timestamp, noted: &Page, done: &Page) -> Option<Row> {
        if noted.is_empty() && done.is_empty() {
            return None;
        }
        let at = now.as_millisecond();
        let mut text = format!(r#"{{"run":"{}","at":{at},"entries":["#, self.run).into_bytes();
        text.reserve(noted.json.len() + done.json.len() + 3);
        text.extend_from_slice(&noted.json);
        if !noted.is_empty() && !done.is_empty() {
            text.push(b',');
        }
        text.extend_from_slice(&done.json);
        text.extend_from_slice(b"]}");
        let text = String::from_utf8(text)
            .unwrap_or_else(|error| unreachable!("JSON is written as UTF-8: {error}"));
        // A name too many, of a row that is not written after all, costs a look in vain.
        for name in noted.names.iter().chain(&done.names) {
            self.filter.add(*name);
        }
        let seq = self.head.seq + 1;
        let is_full = self.filter.is_full() || seq - self.filter_from >= FILTER_ROWS - 1;
        Some(Row {
            head: Head {
                seq,
                at,
                hash: chained(&self.head.hash, &text),
            },
            text,
            full_from: is_full.then_some(self.filter_from),
        })
    }

    /// The row is durable.
    pub(super) fn written(&mut self, row: &Row) {
        self.head = row.head;
        if row.full_from.is_some() {
            self.filter = Filter::default();
            self.filter_from = row.head.seq + 1;
        }
    }

    /// Takes the names of a row that is durable, and in no filter yet.
    pub(super) fn read(&mut self, text: &str) {
        // One that cannot be read is found by whoever verifies the chain.
        let Ok(text) = serde_json::from_str::<Text<'_>>(text) else {
            return;
        };
        for entry in &text.entries {
            entry.names(|name| self.filter.add(hash_of(name)));
        }
    }
}

// ---- filters ----

/// 16 KiB: bits by which a name is known that is not in the rows.
const FILTER_BYTES: usize = 16 * 1024;
/// Names in a filter, of 16 bits each: of a thousand looks at a filter for what is not in its rows,
/// one is in vain.
const FILTER_NAMES: usize = FILTER_BYTES / 2;
const PROBES: u64 = 6;
/// Rows whose names are in one filter, at most: the same few names may come again and again, and
/// rows that are in no filter yet are read by every search and at every start.
const FILTER_ROWS: i64 = 4096;

/// The names of many rows.
#[derive(Debug)]
pub(super) struct Filter {
    pub(super) bits: Vec<u8>,
    names: usize,
}

impl Default for Filter {
    fn default() -> Self {
        Self {
            bits: vec![0; FILTER_BYTES],
            names: 0,
        }
    }
}

impl Filter {
    fn add(&mut self, name: u64) {
        let mut is_new = false;
        for (byte, bit) in probes(name) {
            is_new |= self.bits[byte] & bit == 0;
            self.bits[byte] |= bit;
        }
        self.names += usize::from(is_new);
    }

    fn is_full(&self) -> bool {
        self.names >= FILTER_NAMES
    }
}

/// Whether rows with these bits may name it.
pub(super) fn may_name(bits: &[u8], name: &str) -> bool {
    probes(hash_of(name)).all(|(byte, bit)| bits.get(byte).is_none_or(|b| b & bit != 0))
}

fn probes(name: u64) -> impl Iterator<Item = (usize, u8)> {
    const BITS: u64 = FILTER_BYTES as u64 * 8;
    let step = (name >> 32) | 1;
    (0..PROBES).map(move |i| {
        let bit = name.wrapping_add(i.wrapping_mul(step)) % BITS;
        ((bit / 8) as usize, 1 << (bit % 8))
    })
}

/// FNV-1a, with its bits well mixed. It is in every filter that was ever written, so it stays.
fn hash_of(name: &str) -> u64 {
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::judge::Reply;

    const AT: Timestamp = Timestamp::UNIX_EPOCH;

    fn id(text: &str) -> CommandId {
        CommandId::new(text).unwrap()
    }

    /// What is written by hand is read as what it was, and every name is in the filter.
    #[test]
    fn what_is_noted_is_read_back() {
        let east = AccountName::new("east").unwrap();
        let odd = "\"\\\u{1}\u{2028}单";
        let mut notes = Notes::default();
        assert!(notes.is_empty());
        notes.asked(Some(&east), &id("c1"), ["QC1", odd]);
        notes.asked(None, &id(odd), []);
        notes.asked(Some(&east), &id("c2"), ["QC2"]);
        let cancelled = (Outcome::Cancelled, false);
        notes.told(Some(&east), &id("c1"), Some("QC1"), cancelled);
        notes.told(Some(&east), &id("c1"), Some(odd), (Outcome::Rejected, true));
        notes.told(Some(&east), &id("c2"), None, cancelled);
        notes.parked(None, &id(odd));
        let call = CallEnded {
            account: &east,
            call: CallId(7),
            at: AT,
            duration: Duration::from_millis(5),
            http_status: Some(200),
        };
        let orders = ["QC1", "QC2", "QC3"].map(|no| OrderNo::new(no).unwrap());
        let end = CallEnd::Answered(Reply {
            status: 0,
            message: String::new(),
            data: Some(CancelLists {
                success: vec!["QC1".to_owned()],
                error: vec![("QC2".to_owned(), odd.to_owned())],
            }),
        });
        notes.answered(call, &orders, &end);
        notes.looked_up(
            call,
            &orders[2],
            &CallEnd::Lost {
                what: odd.to_owned(),
            },
        );
        assert!(!notes.is_empty());

        let mut page = Page::default();
        page.noted(AT, notes);
        let mut scribe = Scribe::new(Head::of("chain"), AT);
        let row = scribe.row(AT, &Page::default(), &page).unwrap();
        let text: Text<'_> = serde_json::from_str(&row.text).unwrap();
        let borrowed = |text: &'static str| Cow::Borrowed(text);
        let account = borrowed("east");
        let answer = |status, message| Answer {
            ms: 5,
            http: Some(200),
            status,
            message,
        };
        let told = |outcome, replayed, events| Entry::Told {
            at: 0,
            account: account.clone(),
            outcome: borrowed(outcome),
            replayed,
            events,
        };
        let c1 = |order: &'static str| (borrowed("c1"), Some(borrowed(order)));
        assert_eq!(
            text.entries,
            [
                Entry::Asked {
                    at: 0,
                    account: account.clone(),
                    commands: vec![
                        (borrowed("c1"), vec![borrowed("QC1"), borrowed(odd)]),
                        (borrowed("c2"), vec![borrowed("QC2")]),
                    ],
                },
                Entry::Asked {
                    at: 0,
                    account: borrowed("_"),
                    commands: vec![(borrowed(odd), vec![])],
                },
                Entry::Answered {
                    at: 0,
                    account: account.clone(),
                    call: 7,
                    answer: answer(Some(0), borrowed("")),
                    cancelled: vec![borrowed("QC1")],
                    refused: vec![(borrowed("QC2"), borrowed(odd))],
                    not_named: vec![borrowed("QC3")],
                },
                Entry::LookedUp {
                    at: 0,
                    account: account.clone(),
                    call: 7,
                    order: borrowed("QC3"),
                    answer: answer(None, borrowed(odd)),
                    found: vec![],
                },
                told("cancelled", false, vec![c1("QC1"), (borrowed("c2"), None)]),
                told("rejected", true, vec![c1(odd)]),
                Entry::Parked {
                    at: 0,
                    account: borrowed("_"),
                    command: borrowed(odd),
                },
            ]
        );
        for entry in &text.entries {
            entry.names(|name| assert!(may_name(&scribe.filter.bits, name), "{name}"));
        }
        assert!(!may_name(&scribe.filter.bits, "QC4"));
    }

    #[test]
    fn a_filter_is_written_also_where_the_same_names_come_again_and_again() {
        let mut scribe = Scribe::new(Head::of("chain"), AT);
        let mut from = Vec::new();
        for _ in 0..2 * FILTER_ROWS {
            let mut notes = Notes::default();
            notes.asked(None, &id("c"), ["QC1"]);
            let mut page = Page::default();
            page.noted(AT, notes);
            let row = scribe.row(AT, &page, &Page::default()).unwrap();
            scribe.written(&row);
            from.extend(row.full_from.map(|first| (first, row.head.seq)));
        }
        let filter = |n: i64| ((n - 1) * FILTER_ROWS + 1, n * FILTER_ROWS);
        assert_eq!(from, [filter(1), filter(2)]);
    }
}
