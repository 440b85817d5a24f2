//! A ledger in memory, for tests that drive the desk by hand: what is kept here is durable.

use std::collections::BTreeMap;
use std::sync::Arc;

use wdt_cancel_worker::rules::desk::{Claim, Claimed, Fence, Holding, LaneId, OrderRow, ResultRow};
use wdt_cancel_worker::rules::order::{CommandId, OrderNo};

/// Both tables, by their keys.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Ledger {
    pub orders: BTreeMap<(LaneId, OrderNo), OrderRow>,
    pub results: BTreeMap<(LaneId, CommandId, Arc<str>), ResultRow>,
}

impl Ledger {
    /// One durable step.
    pub fn keep(&mut self, orders: &[OrderRow], results: &[ResultRow]) {
        for row in orders {
            let key = (row.lane, row.order_no.clone());
            self.orders.insert(key, row.clone());
        }
        for row in results {
            let key = (row.lane, row.command_id.clone(), Arc::clone(&row.order_no));
            self.results.insert(key, row.clone());
        }
    }

    /// What is known now of a command and its orders.
    pub fn answer(&self, claim: &Claim) -> Claimed {
        let of_command =
            |row: &&ResultRow| row.lane == claim.lane && row.command_id == claim.command_id;
        Claimed {
            command: claim.command,
            id_is_taken: false,
            results: self.results.values().filter(of_command).cloned().collect(),
            orders: claim
                .orders
                .iter()
                .map(|(key, no)| {
                    let row = self.orders.get(&(claim.lane, no.clone()));
                    (*key, Holding::Ours(row.cloned(), Fence::default()))
                })
                .collect(),
        }
    }
}
