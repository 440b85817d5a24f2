//! The verbs in SQL: claims, and groups of everything that is written.
//!
//! Each goes in groups, as arrays that the database unfolds (`unnest`), and every statement of a
//! step is on its way before the first is answered. Rows are locked in the sequence of their keys,
//! so that workers that want the same ones do not wait for each other in a circle.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;

use deadpool_postgres::Object;
use futures_util::future::{join, join_all, join3};
use jiff::Timestamp;
use tokio_postgres::Statement;
use tokio_postgres::types::ToSql;

use super::Chain;
use super::connect::DbError;
use super::lease::Lease;
use super::pauses;
use super::rows::{self, ENDED, SENT, WAITING, count, number, read, stored, timestamp, words};
use crate::ledger::journal::{self, Head, Names, Page};
use crate::ledger::{Place, Request};
use crate::rules::admit::Fingerprint;
use crate::rules::desk::{
    AccountPolicy, Claim, Claimed, Fence, Holding, LaneId, OrderRow, OrderState, Record, ResultRow,
};
use crate::rules::order::OrderNo;

/// A transaction whose loss would be noticed, and does no harm: who holds what, and the ends of
/// calls. It is not flushed.
const BEGIN_LIGHT: &str = "BEGIN; SET LOCAL synchronous_commit = off";
const BEGIN: &str = "BEGIN";

/// What became of a request.
#[derive(Debug)]
pub(super) enum Outcome {
    /// It is durable.
    Written,
    /// It is durable, or it was to be a list and was not written, except for these orders: others
    /// may have them.
    Lost(Vec<(LaneId, OrderNo)>),
    /// A call may be made.
    Taken(Place),
    /// No call may be made now, nor before so long.
    Wait(Duration),
}

/// Accounts and their limits, by lane.
#[derive(Debug)]
pub(super) struct Accounts(pub(super) Vec<AccountPolicy>);

impl Accounts {
    fn name(&self, lane: LaneId) -> &str {
        self.0[lane.0].name.as_str()
    }
}

impl Names for Accounts {
    fn name(&self, lane: LaneId) -> &str {
        self.name(lane)
    }
}

type Params<'a> = Vec<&'a (dyn ToSql + Sync)>;

// ---- claims ----

const GUARD: &str = "SELECT FROM wdt.workers WHERE id = $1 FOR KEY SHARE";
const NEW_COMMANDS: &str = "
INSERT INTO wdt.commands (account, command_id, fingerprint, claimed_at)
SELECT * FROM unnest($1::text[], $2::text[], $3::bytea[], $4::bigint[])
ON CONFLICT DO NOTHING";
const HOLD: &str = "
INSERT INTO wdt.holds AS h (order_no, account, fence, worker)
SELECT o.order_no, o.account, nextval('wdt.numbers'), w.id
FROM unnest($1::text[], $2::text[]) AS o(order_no, account), wdt.workers w
WHERE w.id = $3
ORDER BY o.order_no COLLATE \"C\", o.account COLLATE \"C\"
ON CONFLICT (order_no, account) DO UPDATE SET fence = EXCLUDED.fence
WHERE h.worker = EXCLUDED.worker
RETURNING order_no, account, fence";
const KNOWN_COMMANDS: &str = "
SELECT a.place, c.fingerprint, r.order_no, r.code, r.message, r.attempts, r.occurred_at
FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS a(account, command_id, place)
JOIN wdt.commands c USING (account, command_id)
LEFT JOIN wdt.results r ON r.command = c.id";
const KNOWN_ORDERS: &str = "
SELECT a.place, o.state, o.attempts, o.spent, o.since, o.code, o.message, o.changed_at
FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS a(order_no, account, place)
JOIN wdt.orders o USING (order_no, account)";

/// Takes what nobody else has, and tells what is known. The reads come after the rows are locked, so
/// they see whatever the one before recorded.
///
/// # Errors
/// [`DbError::LeaseLost`] when this worker's lease is over.
pub(super) async fn claim(
    client: &Object,
    accounts: &Accounts,
    lease: &Lease,
    claims: &[Claim],
) -> Result<Vec<Claimed>, DbError> {
    let worker = lease.worker();
    let now = Timestamp::now().as_millisecond();
    // In the sequence of the claims, so that an id belongs to the first of them.
    let mut commands: Vec<(Cow<'_, str>, &str, &Claim)> = claims
        .iter()
        .map(|c| (stored(c.command_id.as_str()), accounts.name(c.lane), c))
        .collect();
    commands.sort_by(|a, b| (&a.0, a.1).cmp(&(&b.0, b.1)));
    let new_accounts: Vec<&str> = commands.iter().map(|(_, account, _)| *account).collect();
    let new_ids: Vec<&str> = commands.iter().map(|(id, ..)| &**id).collect();
    let fingerprints: Vec<&[u8]> = commands
        .iter()
        .map(|(.., c)| &c.fingerprint.0[..])
        .collect();
    let times = vec![now; commands.len()];

    let wanted: BTreeSet<(&str, &str)> = claims
        .iter()
        .flat_map(|c| {
            c.orders
                .iter()
                .map(|(_, no)| (no.as_str(), accounts.name(c.lane)))
        })
        .collect();
    let (numbers, of): (Vec<&str>, Vec<&str>) = wanted.iter().copied().unzip();
    let ids: Vec<Cow<'_, str>> = claims
        .iter()
        .map(|c| stored(c.command_id.as_str()))
        .collect();
    let ids: Vec<&str> = ids.iter().map(|id| &**id).collect();
    let lanes: Vec<&str> = claims.iter().map(|c| accounts.name(c.lane)).collect();

    let guard = client.prepare_cached(GUARD).await?;
    let new_commands = client.prepare_cached(NEW_COMMANDS).await?;
    let hold = client.prepare_cached(HOLD).await?;
    let known_commands = client.prepare_cached(KNOWN_COMMANDS).await?;
    let known_orders = client.prepare_cached(KNOWN_ORDERS).await?;
    let guard_by: Params<'_> = vec![&worker];
    let new_by: Params<'_> = vec![&new_accounts, &new_ids, &fingerprints, &times];
    let hold_by: Params<'_> = vec![&numbers, &of, &worker];
    let commands_by: Params<'_> = vec![&lanes, &ids];
    let orders_by: Params<'_> = vec![&numbers, &of];
    let ((began, guarded, added), (held, known, orders), committed) = join3(
        join3(
            client.batch_execute(BEGIN_LIGHT),
            client.query_opt(&guard, &guard_by),
            client.execute(&new_commands, &new_by),
        ),
        join3(
            client.query(&hold, &hold_by),
            client.query(&known_commands, &commands_by),
            client.query(&known_orders, &orders_by),
        ),
        client.batch_execute("COMMIT"),
    )
    .await;
    began?;
    if guarded?.is_none() {
        return Err(DbError::LeaseLost);
    }
    added?;
    let (held, known, orders) = (held?, known?, orders?);
    committed?;

    let held: HashMap<(&str, &str), i64> = held
        .iter()
        .map(|row| ((row.get(0), row.get(1)), row.get(2)))
        .collect();
    let places: HashMap<(&str, &str), usize> = wanted
        .iter()
        .enumerate()
        .map(|(i, key)| (*key, i))
        .collect();
    let mut recorded: Vec<Option<&tokio_postgres::Row>> = vec![None; places.len()];
    for row in &orders {
        recorded[place(row)] = Some(row);
    }
    let mut answers: Vec<Claimed> = claims
        .iter()
        .map(|claim| Claimed {
            command: claim.command,
            results: Vec::new(),
            id_is_taken: false,
            orders: Vec::with_capacity(claim.orders.len()),
        })
        .collect();
    for row in &known {
        let (claim, answer) = (&claims[place(row)], &mut answers[place(row)]);
        let fingerprint: &[u8] = row.get(1);
        answer.id_is_taken = fingerprint != claim.fingerprint.0;
        if let Some(order_no) = row.get::<_, Option<&str>>(2) {
            answer.results.push(ResultRow {
                lane: claim.lane,
                command_id: claim.command_id.clone(),
                fingerprint: Fingerprint(
                    fingerprint
                        .try_into()
                        .map_err(|_| rows::damaged("fingerprint", order_no))?,
                ),
                order_no: read(order_no).into(),
                ending: rows::ending(row.get(3), row.get(4))?,
                attempts: count(row.get(5)),
                occurred_at: timestamp(row.get(6))?,
                fence: None,
            });
        }
    }
    for (claim, answer) in claims.iter().zip(&mut answers) {
        for (key, order_no) in &claim.orders {
            let name = (order_no.as_str(), accounts.name(claim.lane));
            let row = recorded[places[&name]]
                .map(|row| rows::order(row, 1, claim.lane, order_no))
                .transpose()?;
            let holding = match held.get(&name) {
                Some(fence) => Holding::Ours(row, Fence(fence.cast_unsigned())),
                // Whoever has it has that much left at most.
                None => Holding::Elsewhere(row, lease.term().length),
            };
            answer.orders.push((*key, holding));
        }
    }
    Ok(answers)
}

/// From `WITH ORDINALITY`, which counts from 1.
fn place(row: &tokio_postgres::Row) -> usize {
    usize::try_from(row.get::<_, i64>(0) - 1).unwrap_or(usize::MAX)
}

// ---- groups of writes ----

/// The row of each hold that a record is made under is locked until the commit: nobody frees it
/// before. Claims of other workers are not kept waiting.
const STILL_HELD: &str = "
SELECT h.order_no, h.account, h.fence
FROM unnest($1::text[], $2::text[], $3::bigint[]) AS a(order_no, account, fence)
JOIN wdt.holds h USING (order_no, account, fence)
WHERE h.worker = $4
ORDER BY h.order_no, h.account FOR KEY SHARE OF h";
const TAKE_CALLS: &str = "SELECT taken, wait_ms FROM wdt.take_calls($1, $2, $3, $4, $5, $6)";
const PUT_ORDERS: &str = "
INSERT INTO wdt.orders
(order_no, account, state, attempts, spent, since, code, message, changed_at)
SELECT * FROM unnest($1::text[], $2::text[], $3::smallint[], $4::integer[], $5::integer[],
                     $6::bigint[], $7::text[], $8::text[], $9::bigint[])
ON CONFLICT (order_no, account) DO UPDATE SET
state = EXCLUDED.state, attempts = EXCLUDED.attempts, spent = EXCLUDED.spent,
since = EXCLUDED.since, code = EXCLUDED.code, message = EXCLUDED.message,
changed_at = EXCLUDED.changed_at";
const PUT_RESULTS: &str = "
INSERT INTO wdt.results (command, order_no, code, message, attempts, occurred_at)
SELECT c.id, r.order_no, r.code, r.message, r.attempts, r.occurred_at
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::integer[], $7::bigint[])
    AS r(account, command_id, order_no, code, message, attempts, occurred_at)
JOIN wdt.commands c USING (account, command_id)
ORDER BY c.id, r.order_no COLLATE \"C\"
ON CONFLICT (command, order_no) DO UPDATE SET
code = EXCLUDED.code, message = EXCLUDED.message, attempts = EXCLUDED.attempts,
occurred_at = EXCLUDED.occurred_at";
const RELEASE: &str = "
DELETE FROM wdt.holds h
USING unnest($1::text[], $2::text[], $3::bigint[]) AS r(order_no, account, fence)
WHERE h.order_no = r.order_no AND h.account = r.account AND h.fence = r.fence";
/// The gateway counts a call before it answers, so by a minute after the answer it counts no more;
/// its clock may tick coarser than the database's.
const END_CALLS: &str = "
UPDATE wdt.calls SET flies_until = clock_timestamp(),
                     counts_until = clock_timestamp() + interval '60.01 seconds'
WHERE id = ANY($1)";
const UNDO_CALLS: &str = "DELETE FROM wdt.calls WHERE id = ANY($1)";

type Key<'a> = (&'a str, LaneId);

/// A group of requests, sorted by what is to be written.
#[derive(Default)]
struct Group<'a> {
    fences: BTreeSet<(&'a str, LaneId, u64)>,
    wanted: BTreeMap<LaneId, i32>,
    orders: BTreeMap<Key<'a>, &'a OrderRow>,
    results: BTreeMap<(&'a str, LaneId, &'a str), &'a ResultRow>,
    released: Vec<(&'a str, LaneId, u64)>,
    ended: Vec<i64>,
    undone: Vec<i64>,
    /// It has to be flushed.
    is_weighty: bool,
}

impl<'a> Group<'a> {
    fn of(requests: &'a [Request]) -> Self {
        let mut group = Self::default();
        for request in requests {
            match request {
                Request::Send(list, _) => {
                    *group.wanted.entry(list.lane).or_default() += 1;
                    group.fences.extend(list.orders.iter().map(fenced));
                }
                Request::Ask(_, lane) => *group.wanted.entry(*lane).or_default() += 1,
                Request::Record(record) => {
                    group.is_weighty = true;
                    group.fences.extend(record.orders.iter().map(fenced));
                    group
                        .fences
                        .extend(record.results.iter().filter_map(fenced_result));
                }
                Request::Release(orders) => group.released.extend(
                    orders
                        .iter()
                        .map(|(lane, no, fence)| (no.as_str(), *lane, fence.0)),
                ),
                Request::Ended(place) if place.counts => group.ended.push(place.id),
                Request::Ended(place) => group.undone.push(place.id),
                Request::BeginRun(_) | Request::EndRun | Request::BeginTrial(..) => {
                    group.is_weighty = true;
                }
                Request::Claim(_)
                | Request::Call(..)
                | Request::Note(..)
                | Request::EndTrial(..)
                | Request::Quiet(..)
                | Request::Careful(_)
                | Request::Pause(..) => {}
            }
        }
        group.is_weighty |= !group.wanted.is_empty();
        group
    }
}

fn fenced(row: &OrderRow) -> (&str, LaneId, u64) {
    (row.order_no.as_str(), row.lane, row.fence.0)
}

fn fenced_result(row: &ResultRow) -> Option<(&str, LaneId, u64)> {
    row.fence.map(|fence| (&*row.order_no, row.lane, fence.0))
}

/// Writes a group in one transaction, and tells what became of each request.
///
/// # Errors
/// Whatever the database says; nothing is written then, or nobody knows.
pub(super) async fn write(
    client: &Object,
    (accounts, lease): (&Accounts, &Lease),
    requests: &[Request],
    chain: &RefCell<Chain>,
    noted: &Page,
) -> Result<Vec<Outcome>, DbError> {
    let mut page = Page::default();
    let mut group = Group::of(requests);
    let (held, mut taken) = begin(client, accounts, lease, &group).await?;
    let mut outcomes = Vec::with_capacity(requests.len());
    for request in requests {
        let outcome = match request {
            Request::Send(list, at) => {
                let lost = lost_of(list.orders.iter().map(fenced), &held);
                if !lost.is_empty() {
                    Outcome::Lost(lost)
                } else {
                    let outcome = taken
                        .entry(list.lane)
                        .or_default()
                        .take(accounts, list.lane);
                    if let Outcome::Taken(_) = outcome {
                        page.sent(accounts, list, *at);
                        for row in &list.orders {
                            group.orders.insert((row.order_no.as_str(), row.lane), row);
                        }
                    }
                    outcome
                }
            }
            Request::Ask(_, lane) => taken.entry(*lane).or_default().take(accounts, *lane),
            Request::Record(record) => {
                let lost = keep(record, &held, &mut group);
                let is_kept = |row: &&OrderRow| !lost.contains(&(row.lane, row.order_no.clone()));
                let kept = record.orders.iter().filter(is_kept);
                page.recorded(accounts, Timestamp::now(), kept);
                Outcome::Lost(lost)
            }
            Request::Claim(_)
            | Request::Call(..)
            | Request::Release(_)
            | Request::Ended(_)
            | Request::Note(..)
            | Request::Quiet(..)
            | Request::Careful(_)
            | Request::BeginRun(_)
            | Request::EndRun
            | Request::BeginTrial(..)
            | Request::EndTrial(..)
            | Request::Pause(..) => {
                note(client, accounts, lease, request).await?;
                Outcome::Written
            }
        };
        outcomes.push(outcome);
    }
    group
        .undone
        .extend(taken.into_values().flat_map(|taken| taken.ids));
    let row = journal_row(client, chain, noted, &page).await?;
    if row.is_some() {
        // Until the commit is answered.
        chain.borrow_mut().is_known = false;
    }
    finish(client, accounts, &group, row.as_ref()).await?;
    if let Some(row) = row {
        let mut chain = chain.borrow_mut();
        chain.scribe.written(&row.row);
        chain.is_known = true;
    }
    Ok(outcomes)
}

/// A row of the journal, and all that goes with it.
struct JournalRow {
    row: journal::Row,
    chain: String,
    worker: String,
    began_at: i64,
    filter: Option<Vec<u8>>,
}

/// The row that follows, whatever became of the last try to write one.
async fn journal_row(
    client: &Object,
    chain: &RefCell<Chain>,
    noted: &Page,
    page: &Page,
) -> Result<Option<JournalRow>, DbError> {
    if noted.is_empty() && page.is_empty() {
        return Ok(None);
    }
    let (name, is_known) = {
        let mut chain = chain.borrow_mut();
        if chain.is_known && chain.has_rested() {
            let worker = std::mem::take(&mut chain.worker);
            *chain = Chain::begin(worker);
        }
        (chain.name.clone(), chain.is_known)
    };
    if !is_known {
        let last = "SELECT seq, at, hash FROM wdt.chains WHERE chain = $1";
        let last = client.query_opt(last, &[&name]).await?;
        let head = last.map_or_else(
            || Ok(Head::of(&name)),
            |row| {
                let hash: &[u8] = row.get(2);
                Ok::<_, DbError>(Head {
                    seq: row.get(0),
                    at: row.get(1),
                    hash: hash.try_into().map_err(|_| rows::damaged("hash", &name))?,
                })
            },
        )?;
        chain.borrow_mut().scribe.head = head;
    }
    let mut chain = chain.borrow_mut();
    let Some(row) = chain.scribe.row(Timestamp::now(), noted, page) else {
        return Ok(None);
    };
    let bits = &chain.scribe.filter.bits;
    Ok(Some(JournalRow {
        filter: row.full_from.map(|_| bits.clone()),
        row,
        chain: name,
        worker: chain.worker.clone(),
        began_at: chain.began_at.as_millisecond(),
    }))
}

const PUT_ROW: &str = "
INSERT INTO wdt.journal (chain, seq, at, text, hash) VALUES ($1, $2, $3, $4, $5)";
const PUT_CHAIN: &str = "
INSERT INTO wdt.chains (chain, worker, began_at, seq, at, hash) VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT (chain) DO UPDATE SET seq = EXCLUDED.seq, at = EXCLUDED.at, hash = EXCLUDED.hash";
const PUT_FILTER: &str = "
INSERT INTO wdt.journal_filters (chain, last_seq, first_seq, names) VALUES ($1, $2, $3, $4)";

async fn put_row(client: &Object, row: &JournalRow) -> Result<(), DbError> {
    let Head { seq, at, hash } = &row.row.head;
    let hash = &hash[..];
    let (put_row, put_chain) = (
        client.prepare_cached(PUT_ROW).await?,
        client.prepare_cached(PUT_CHAIN).await?,
    );
    let row_by: Params<'_> = vec![&row.chain, seq, at, &row.row.text, &hash];
    let chain_by: Params<'_> = vec![&row.chain, &row.worker, &row.began_at, seq, at, &hash];
    let (put, ended) = join(
        client.execute(&put_row, &row_by),
        client.execute(&put_chain, &chain_by),
    )
    .await;
    put?;
    ended?;
    if let (Some(first), Some(bits)) = (row.row.full_from, &row.filter) {
        client
            .execute(PUT_FILTER, &[&row.chain, seq, &first, bits])
            .await?;
    }
    Ok(())
}

/// Calls that were granted to a lane.
#[derive(Default)]
struct Taken {
    ids: Vec<i64>,
    wait: Duration,
}

impl Taken {
    fn take(&mut self, accounts: &Accounts, lane: LaneId) -> Outcome {
        match self.ids.pop() {
            Some(id) => Outcome::Taken(Place {
                id,
                counts: accounts.0[lane.0].calls_per_minute > 0,
            }),
            None => Outcome::Wait(self.wait),
        }
    }
}

type Held = HashSet<(String, LaneId, u64)>;

/// Begins the transaction: which holds are still this worker's, and what calls it may make.
async fn begin(
    client: &Object,
    accounts: &Accounts,
    lease: &Lease,
    group: &Group<'_>,
) -> Result<(Held, BTreeMap<LaneId, Taken>), DbError> {
    let worker = lease.worker();
    let numbers: Vec<&str> = group.fences.iter().map(|(no, ..)| *no).collect();
    let of: Vec<&str> = group
        .fences
        .iter()
        .map(|(_, lane, _)| accounts.name(*lane))
        .collect();
    let fences: Vec<i64> = group.fences.iter().map(|(.., f)| f.cast_signed()).collect();
    let still_held = client.prepare_cached(STILL_HELD).await?;
    let take_calls = client.prepare_cached(TAKE_CALLS).await?;
    let by: Params<'_> = vec![&numbers, &of, &fences, &worker];
    let held = async {
        if numbers.is_empty() {
            return Ok(Vec::new());
        }
        client.query(&still_held, &by).await
    };
    let millis = lease.term().millis();
    // By name, so that everybody locks accounts in the same sequence.
    let mut lanes: Vec<(LaneId, i32)> = group.wanted.iter().map(|(l, n)| (*l, *n)).collect();
    lanes.sort_by_key(|(lane, _)| accounts.name(*lane));
    let take_calls = &take_calls;
    let takes = join_all(lanes.iter().map(|(lane, wanted)| async move {
        let policy = &accounts.0[lane.0];
        let (per_minute, at_once) = (number(policy.calls_per_minute), number(policy.concurrency));
        let account = policy.name.as_str();
        let by: Params<'_> = vec![&account, &worker, wanted, &per_minute, &at_once, &millis];
        client.query_one(take_calls, &by).await
    }));
    let begin = if group.is_weighty { BEGIN } else { BEGIN_LIGHT };
    let (began, held, takes) = join3(client.batch_execute(begin), held, takes).await;
    began?;
    let mut names: HashMap<&str, LaneId> = HashMap::new();
    for (_, lane, _) in &group.fences {
        names.insert(accounts.name(*lane), *lane);
    }
    let held = held?
        .iter()
        .filter_map(|row| {
            let lane = names.get(row.get::<_, &str>(1))?;
            Some((row.get(0), *lane, row.get::<_, i64>(2).cast_unsigned()))
        })
        .collect();
    let mut taken = BTreeMap::new();
    for ((lane, _), row) in lanes.iter().zip(takes) {
        let row = row?;
        let wait = Duration::from_millis(u64::try_from(row.get::<_, i64>(1)).unwrap_or(0));
        let ids = row.get::<_, Option<Vec<i64>>>(0).unwrap_or_default();
        taken.insert(*lane, Taken { ids, wait });
    }
    Ok((held, taken))
}

fn lost_of<'a>(
    rows: impl Iterator<Item = (&'a str, LaneId, u64)>,
    held: &Held,
) -> Vec<(LaneId, OrderNo)> {
    rows.filter(|(no, lane, fence)| !held.contains(&((*no).to_owned(), *lane, *fence)))
        .filter_map(|(no, lane, _)| Some((lane, OrderNo::new(no).ok()?)))
        .collect()
}

/// Every order that a record was made under a hold of.
pub(super) fn orders_of(record: &Record) -> Vec<(LaneId, OrderNo)> {
    lost_of(holds_of(record), &Held::default())
}

fn holds_of(record: &Record) -> impl Iterator<Item = (&str, LaneId, u64)> {
    let results = record.results.iter().filter_map(fenced_result);
    record.orders.iter().map(fenced).chain(results)
}

/// What is to be written of a record, and the orders of which nothing is.
fn keep<'a>(record: &'a Record, held: &Held, group: &mut Group<'a>) -> Vec<(LaneId, OrderNo)> {
    let lost = lost_of(holds_of(record), held);
    let left_out: HashSet<(LaneId, &str)> =
        lost.iter().map(|(lane, no)| (*lane, no.as_str())).collect();
    let is_kept = |lane: LaneId, no: &str| !left_out.contains(&(lane, no));
    for row in &record.orders {
        if is_kept(row.lane, row.order_no.as_str()) {
            group.orders.insert((row.order_no.as_str(), row.lane), row);
        }
    }
    for row in &record.results {
        if row.fence.is_none() || is_kept(row.lane, &row.order_no) {
            let key = (row.command_id.as_str(), row.lane, &*row.order_no);
            group.results.insert(key, row);
        }
    }
    lost
}

/// What is rare goes by a statement of its own.
async fn note(
    client: &Object,
    accounts: &Accounts,
    lease: &Lease,
    request: &Request,
) -> Result<(), DbError> {
    let worker = lease.worker();
    match request {
        Request::Quiet(lane, time) => {
            let sql = "
INSERT INTO wdt.accounts AS a (account, quiet_until)
VALUES ($1, clock_timestamp() + $2 * interval '1 second')
ON CONFLICT (account) DO UPDATE SET quiet_until = greatest(a.quiet_until, EXCLUDED.quiet_until)";
            client
                .execute(sql, &[&accounts.name(*lane), &time.as_secs_f64()])
                .await?;
        }
        Request::Careful(lane) => {
            let sql = "
INSERT INTO wdt.accounts (account, careful_until)
VALUES ($1, clock_timestamp() + interval '5 minutes')
ON CONFLICT (account) DO UPDATE SET careful_until = EXCLUDED.careful_until";
            client.execute(sql, &[&accounts.name(*lane)]).await?;
        }
        Request::Ended(_)
        | Request::Release(_)
        | Request::Claim(_)
        | Request::Call(..)
        | Request::Note(..) => {}
        Request::BeginRun(at) => {
            let sql =
                "INSERT INTO wdt.runs (worker, began_at, ended) VALUES ($1, $2, 0) RETURNING id";
            let row = client
                .query_one(sql, &[&worker, &at.as_millisecond()])
                .await?;
            lease.set_run(row.get(0));
        }
        Request::EndRun => {
            let sql = "UPDATE wdt.runs SET ended = 1 WHERE id = $1";
            client.execute(sql, &[&lease.run()]).await?;
        }
        Request::BeginTrial(command, at) => {
            let sql = "
INSERT INTO wdt.trials (command, died, worker, changed_at) VALUES ($1, 0, $2, $3)
ON CONFLICT (command) DO UPDATE SET worker = EXCLUDED.worker, changed_at = EXCLUDED.changed_at";
            let (digest, millis) = (&command.0[..], at.as_millisecond());
            client.execute(sql, &[&digest, &worker, &millis]).await?;
        }
        Request::EndTrial(command, is_finished) => {
            let sql = if *is_finished {
                "DELETE FROM wdt.trials WHERE command = $1"
            } else {
                "UPDATE wdt.trials SET worker = NULL WHERE command = $1"
            };
            client.execute(sql, &[&&command.0[..]]).await?;
        }
        Request::Pause(lane, paused) => {
            pauses::write(client, accounts.name(*lane), paused.as_ref()).await?;
        }
        Request::Send(..) | Request::Ask(..) | Request::Record(_) => {}
    }
    Ok(())
}

/// Writes all of a group and commits.
async fn finish(
    client: &Object,
    accounts: &Accounts,
    group: &Group<'_>,
    row: Option<&JournalRow>,
) -> Result<(), DbError> {
    let orders = put_orders(client, accounts, group);
    let results = put_results(client, accounts, group);
    let release = async {
        if group.released.is_empty() {
            return Ok(());
        }
        let numbers: Vec<&str> = group.released.iter().map(|(no, ..)| *no).collect();
        let of: Vec<&str> = group
            .released
            .iter()
            .map(|(_, lane, _)| accounts.name(*lane))
            .collect();
        let fences: Vec<i64> = group
            .released
            .iter()
            .map(|(.., f)| f.cast_signed())
            .collect();
        let release = client.prepare_cached(RELEASE).await?;
        client.execute(&release, &[&numbers, &of, &fences]).await?;
        Ok::<(), DbError>(())
    };
    let calls = async {
        for (sql, ids) in [(END_CALLS, &group.ended), (UNDO_CALLS, &group.undone)] {
            if !ids.is_empty() {
                let statement = client.prepare_cached(sql).await?;
                client.execute(&statement, &[ids]).await?;
            }
        }
        Ok::<(), DbError>(())
    };
    let journal = async {
        match row {
            Some(row) => put_row(client, row).await,
            None => Ok(()),
        }
    };
    let (written, freed, journaled) =
        join3(join(orders, results), join(release, calls), journal).await;
    for done in [written.0, written.1, freed.0, freed.1, journaled] {
        done?;
    }
    client.batch_execute("COMMIT").await?;
    Ok(())
}

async fn put_orders(
    client: &Object,
    accounts: &Accounts,
    group: &Group<'_>,
) -> Result<(), DbError> {
    let rows = &group.orders;
    if rows.is_empty() {
        return Ok(());
    }
    let now = Timestamp::now();
    let statement: Statement = client.prepare_cached(PUT_ORDERS).await?;
    let size = rows.len();
    let mut numbers = Vec::with_capacity(size);
    let mut of = Vec::with_capacity(size);
    let mut states = Vec::with_capacity(size);
    let mut attempts = Vec::with_capacity(size);
    let mut spent = Vec::with_capacity(size);
    let mut since = Vec::with_capacity(size);
    let mut codes = Vec::with_capacity(size);
    let mut messages = Vec::with_capacity(size);
    let mut changed_at = Vec::with_capacity(size);
    for row in rows.values() {
        let (state, (code, message), at) = match &row.state {
            OrderState::Waiting => (WAITING, (None, None), now),
            OrderState::Sent => (SENT, (None, None), now),
            OrderState::Ended(ending, at) => (ENDED, words(ending), *at),
        };
        numbers.push(row.order_no.as_str());
        of.push(accounts.name(row.lane));
        states.push(state);
        attempts.push(number(row.attempts));
        spent.push(number(row.spent));
        since.push(row.since.as_millisecond());
        codes.push(code);
        messages.push(message);
        changed_at.push(at.as_millisecond());
    }
    let messages: Vec<Option<&str>> = messages.iter().map(Option::as_deref).collect();
    let by: Params<'_> = vec![
        &numbers,
        &of,
        &states,
        &attempts,
        &spent,
        &since,
        &codes,
        &messages,
        &changed_at,
    ];
    client.execute(&statement, &by).await?;
    Ok(())
}

async fn put_results(
    client: &Object,
    accounts: &Accounts,
    group: &Group<'_>,
) -> Result<(), DbError> {
    let rows = &group.results;
    if rows.is_empty() {
        return Ok(());
    }
    let new_commands = client.prepare_cached(NEW_COMMANDS).await?;
    let put = client.prepare_cached(PUT_RESULTS).await?;
    let size = rows.len();
    let now = Timestamp::now().as_millisecond();
    let ids: Vec<Cow<'_, str>> = rows
        .values()
        .map(|r| stored(r.command_id.as_str()))
        .collect();
    let shown: Vec<Cow<'_, str>> = rows.values().map(|r| stored(&r.order_no)).collect();
    let mut of = Vec::with_capacity(size);
    let mut fingerprints: Vec<&[u8]> = Vec::with_capacity(size);
    let mut codes = Vec::with_capacity(size);
    let mut messages = Vec::with_capacity(size);
    let mut attempts = Vec::with_capacity(size);
    let mut occurred_at = Vec::with_capacity(size);
    for row in rows.values() {
        let (code, message) = words(&row.ending);
        of.push(accounts.name(row.lane));
        fingerprints.push(&row.fingerprint.0);
        codes.push(code);
        messages.push(message);
        attempts.push(number(row.attempts));
        occurred_at.push(row.occurred_at.as_millisecond());
    }
    let ids: Vec<&str> = ids.iter().map(|id| &**id).collect();
    let shown: Vec<&str> = shown.iter().map(|no| &**no).collect();
    let messages: Vec<Option<&str>> = messages.iter().map(Option::as_deref).collect();
    let times = vec![now; size];
    // A claim made the command's row, unless it came back after it was forgotten.
    let new_by: Params<'_> = vec![&of, &ids, &fingerprints, &times];
    let put_by: Params<'_> = vec![
        &of,
        &ids,
        &shown,
        &codes,
        &messages,
        &attempts,
        &occurred_at,
    ];
    let (new, put) = join(
        client.execute(&new_commands, &new_by),
        client.execute(&put, &put_by),
    )
    .await;
    new?;
    let written = put?;
    if usize::try_from(written).is_ok_and(|written| written == size) {
        return Ok(());
    }
    Err(rows::damaged(
        "results",
        "a command that was forgotten meanwhile",
    ))
}
