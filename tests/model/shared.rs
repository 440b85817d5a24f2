//! A ledger that several workers share: who has which order in hand, by leases and fencing tokens.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use wdt_cancel_worker::rules::admit::Fingerprint;
use wdt_cancel_worker::rules::desk::{Claim, Claimed, Fence, Holding, LaneId, OrderRow, Record};
use wdt_cancel_worker::rules::order::{CommandId, OrderNo};

use crate::world::Key;

/// How long a lease lasts, as far as a worker is told; the model ends leases whenever it likes.
const LEASE: Duration = Duration::from_secs(60);

/// With one worker, which has the ledger to itself, nothing is ever elsewhere or lost.
#[derive(Debug, Clone)]
pub struct Shared {
    is_shared: bool,
    /// Who has an order, and the token of that claim.
    holds: BTreeMap<Key, (u64, Fence)>,
    /// The list that an id was first claimed for.
    ids: BTreeMap<(LaneId, CommandId), Fingerprint>,
    last_fence: u64,
    last_owner: u64,
}

impl Shared {
    pub fn new(workers: usize) -> Self {
        Self {
            is_shared: workers > 1,
            holds: BTreeMap::new(),
            ids: BTreeMap::new(),
            last_fence: 0,
            last_owner: workers as u64,
        }
    }

    /// A worker that starts is another one than the one that ended.
    pub fn next_owner(&mut self) -> u64 {
        self.last_owner += 1;
        self.last_owner
    }

    /// Those who hold something.
    pub fn owners(&self) -> BTreeSet<u64> {
        self.holds.values().map(|(owner, _)| *owner).collect()
    }

    pub fn has(&self, owner: u64) -> bool {
        self.holds.values().any(|(of, _)| *of == owner)
    }

    fn holds(&self, key: &Key, fence: Fence) -> bool {
        !self.is_shared || self.holds.get(key).is_some_and(|(_, of)| *of == fence)
    }

    /// The lease is over: what was claimed under it is free.
    pub fn expire(&mut self, owner: u64) {
        self.holds.retain(|_, (of, _)| *of != owner);
    }

    pub fn release(&mut self, orders: &[(LaneId, OrderNo, Fence)]) {
        for (lane, no, fence) in orders {
            let key = (*lane, no.clone());
            if self.holds(&key, *fence) {
                self.holds.remove(&key);
            }
        }
    }

    /// `known` is what is recorded, as if nobody else were there.
    pub fn claim(&mut self, owner: u64, claim: &Claim, mut known: Claimed) -> Claimed {
        if !self.is_shared {
            return known;
        }
        let id = (claim.lane, claim.command_id.clone());
        let first = *self.ids.entry(id).or_insert(claim.fingerprint);
        known.id_is_taken = first != claim.fingerprint;
        for ((_, no), (_, holding)) in claim.orders.iter().zip(&mut known.orders) {
            let Holding::Ours(row, fence) = holding else {
                continue;
            };
            self.last_fence += 1;
            *fence = Fence(self.last_fence);
            let mine = (owner, *fence);
            let key = (claim.lane, no.clone());
            let holder = self.holds.entry(key).or_insert(mine);
            if holder.0 == owner {
                *holder = mine;
            } else {
                *holding = Holding::Elsewhere(row.take(), LEASE);
            }
        }
        known
    }

    /// The orders of these rows that this worker may say nothing of any more.
    pub fn lost_rows(&self, rows: &[OrderRow]) -> Vec<Key> {
        let keys = rows.iter().map(|r| ((r.lane, r.order_no.clone()), r.fence));
        let lost = keys.filter(|(key, fence)| !self.holds(key, *fence));
        lost.map(|(key, _)| key).collect()
    }

    /// The same of a record.
    pub fn lost(&self, record: &Record) -> Vec<Key> {
        self.lost_claims(Self::claims_of(record))
    }

    /// Under which claims a record speaks of which orders.
    pub fn claims(&self, record: &Record) -> Vec<(Key, Fence)> {
        if self.is_shared {
            Self::claims_of(record)
        } else {
            Vec::new()
        }
    }

    fn claims_of(record: &Record) -> Vec<(Key, Fence)> {
        let rows = record.orders.iter();
        let rows = rows.map(|r| ((r.lane, r.order_no.clone()), r.fence));
        let results = record.results.iter().filter_map(|row| {
            let no = OrderNo::new(&row.order_no).ok()?;
            Some(((row.lane, no), row.fence?))
        });
        rows.chain(results).collect()
    }

    /// The orders that are not held under these claims any more.
    pub fn lost_claims(&self, claims: Vec<(Key, Fence)>) -> Vec<Key> {
        let lost = claims.into_iter();
        let lost = lost.filter(|(key, fence)| !self.holds(key, *fence));
        lost.map(|(key, _)| key).collect()
    }
}
