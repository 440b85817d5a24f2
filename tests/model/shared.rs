//! A ledger that several workers share: who has which order in hand, by leases and fencing tokens.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use wdt_cancel_worker::rules::admit::Fingerprint;
use wdt_cancel_worker::rules::desk::{Claim, Claimed, Holding, LaneId, Record};
use wdt_cancel_worker::rules::order::{CommandId, OrderNo};

use crate::world::Key;

/// How long a lease lasts, as far as a worker is told; the model ends leases whenever it likes.
const LEASE: Duration = Duration::from_secs(60);

/// With one worker, which has the ledger to itself, nothing is ever elsewhere or lost.
#[derive(Debug, Clone)]
pub struct Shared {
    is_shared: bool,
    /// Who has an order, and the token of the lease under which it was claimed.
    holds: BTreeMap<Key, (u64, u64)>,
    /// The list that an id was first claimed for.
    ids: BTreeMap<(LaneId, CommandId), Fingerprint>,
    /// Of each owner's lease at present.
    tokens: BTreeMap<u64, u64>,
    last_owner: u64,
}

impl Shared {
    pub fn new(workers: usize) -> Self {
        Self {
            is_shared: workers > 1,
            holds: BTreeMap::new(),
            ids: BTreeMap::new(),
            tokens: BTreeMap::new(),
            last_owner: workers as u64,
        }
    }

    /// A worker that starts is another one than the one that ended.
    pub fn next_owner(&mut self) -> u64 {
        self.last_owner += 1;
        self.last_owner
    }

    pub fn token(&self, owner: u64) -> u64 {
        self.tokens.get(&owner).copied().unwrap_or_default()
    }

    /// Those who hold something.
    pub fn owners(&self) -> BTreeSet<u64> {
        self.holds.values().map(|(owner, _)| *owner).collect()
    }

    pub fn has(&self, owner: u64) -> bool {
        self.holds.values().any(|(of, _)| *of == owner)
    }

    pub fn holds(&self, owner: u64, token: u64, key: &Key) -> bool {
        !self.is_shared || self.holds.get(key) == Some(&(owner, token))
    }

    /// The lease is over: what was claimed under it is free, and its token is worth nothing.
    pub fn expire(&mut self, owner: u64) {
        self.holds.retain(|_, (of, _)| *of != owner);
        *self.tokens.entry(owner).or_default() += 1;
    }

    pub fn release(&mut self, owner: u64, token: u64, orders: &[Key]) {
        for key in orders {
            if self.holds(owner, token, key) {
                self.holds.remove(key);
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
        let mine = (owner, self.token(owner));
        for ((_, no), (_, holding)) in claim.orders.iter().zip(&mut known.orders) {
            let holder = self.holds.entry((claim.lane, no.clone())).or_insert(mine);
            if holder.0 == owner {
                *holder = mine;
            } else if let Holding::Ours(row) = holding {
                *holding = Holding::Elsewhere(row.take(), LEASE);
            }
        }
        known
    }

    /// The orders in a record that was made under this token, and that it may not be made of.
    pub fn lost(&self, owner: u64, token: u64, record: &Record) -> Vec<Key> {
        let rows = record.orders.iter().map(|r| (r.lane, r.order_no.clone()));
        let results = record.results.iter();
        // An entry that is no order number is nobody's.
        let results = results.filter_map(|r| Some((r.lane, OrderNo::new(&r.order_no).ok()?)));
        let keys: BTreeSet<Key> = rows.chain(results).collect();
        let lost = keys.into_iter();
        lost.filter(|key| !self.holds(owner, token, key)).collect()
    }
}
