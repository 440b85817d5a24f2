//! fjall: a log-structured merge tree, in keyspaces that share one journal.

use std::path::Path;

use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};

use super::{Result, Store, Tune};
use crate::load::Order;

pub struct Fjall {
    db: Database,
    orders: Keyspace,
    results: Keyspace,
    /// Since and a serial number, to the two keys of the order that was settled.
    ages: Keyspace,
    durability: Option<PersistMode>,
    serial: u64,
    /// Where the last expiry stopped: starting again at the first key would walk over
    /// the tombstones of all the expiries before.
    expired: Vec<u8>,
}

impl Store for Fjall {
    fn open(dir: &Path, tune: &Tune) -> Result<Fjall> {
        let db = Database::builder(dir.join("ledger.fjall"))
            .cache_size(tune.cache_mb << 20)
            // The least that it takes; the journal is what is read again after a kill.
            .max_journaling_size(64 << 20)
            .open()?;
        let options = || KeyspaceCreateOptions::default().max_memtable_size(tune.memtable_mb << 20);
        let ages = db.keyspace("ages", options)?;
        let serial = match ages.last_key_value() {
            Some(last) => u64::from_be_bytes(last.key()?[8..16].try_into()?) + 1,
            None => 0,
        };
        Ok(Fjall {
            orders: db.keyspace("orders", options)?,
            results: db.keyspace("results", options)?,
            ages,
            durability: Some(PersistMode::SyncData),
            serial,
            expired: Vec::new(),
            db,
        })
    }

    fn relax(&mut self, on: bool) -> Result<()> {
        self.durability = Some(if on {
            PersistMode::Buffer
        } else {
            PersistMode::SyncData
        });
        Ok(())
    }

    fn look_up(&mut self, probes: &[Order]) -> Result<usize> {
        let mut found = 0;
        for probe in probes {
            found += usize::from(self.orders.get(probe.order_key())?.is_some());
            if let Some(first) = self.results.prefix(probe.command_key()).next() {
                first.value()?;
                found += 1;
            }
        }
        Ok(found)
    }

    fn sent(&mut self, group: &[Order]) -> Result<()> {
        let mut batch = self.db.batch().durability(self.durability);
        for order in group {
            batch.insert(&self.orders, order.order_key(), order.sent_row());
        }
        Ok(batch.commit()?)
    }

    fn settled(&mut self, group: &[Order]) -> Result<()> {
        let mut batch = self.db.batch().durability(self.durability);
        for order in group {
            let (key, result) = (order.order_key(), order.result_key());
            let mut age = order.since.to_be_bytes().to_vec();
            age.extend_from_slice(&self.serial.to_be_bytes());
            self.serial += 1;
            let mut keys = vec![key.len() as u8];
            keys.extend_from_slice(&key);
            keys.extend_from_slice(&result);
            batch.insert(&self.orders, key, order.settled_row());
            batch.insert(&self.results, result, order.result_row());
            batch.insert(&self.ages, age, keys);
        }
        Ok(batch.commit()?)
    }

    fn expire(&mut self, before: i64, count: usize) -> Result<usize> {
        let mut batch = self.db.batch().durability(self.durability);
        let mut gone = 0;
        let end = before.to_be_bytes().to_vec();
        for entry in self.ages.range(self.expired.clone()..end).take(count) {
            let (age, keys) = entry.into_inner()?;
            let (order, result) = keys[1..].split_at(usize::from(keys[0]));
            batch.remove(&self.orders, order);
            batch.remove(&self.results, result);
            self.expired = age.to_vec();
            batch.remove(&self.ages, age);
            gone += 2;
        }
        batch.commit()?;
        Ok(gone)
    }
}
