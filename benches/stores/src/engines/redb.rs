//! redb: copy-on-write B-trees in one file, with quick repair, so that opening after
//! a kill does not walk the whole file.

use std::path::Path;

use redb::{
    Database, Durability, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction,
};

use super::{Result, Store, Tune};
use crate::load::Order;

const ORDERS: TableDefinition<&[u8], &[u8]> = TableDefinition::new("orders");
const RESULTS: TableDefinition<&[u8], &[u8]> = TableDefinition::new("results");
const AGES: TableDefinition<Age, Keys> = TableDefinition::new("ages");

/// Since, and a serial number.
type Age = (i64, u64);
/// Of the order's row and of the result's row.
type Keys = (&'static [u8], &'static [u8]);

pub struct Redb {
    db: Database,
    durability: Durability,
    serial: u64,
}

impl Redb {
    fn begin(&self) -> Result<WriteTransaction> {
        let mut write = self.db.begin_write()?;
        write.set_durability(self.durability)?;
        write.set_quick_repair(true);
        Ok(write)
    }
}

impl Store for Redb {
    fn open(dir: &Path, tune: &Tune) -> Result<Redb> {
        let db = Database::builder()
            .set_cache_size((tune.cache_mb << 20) as usize)
            .create(dir.join("ledger.redb"))?;
        let mut store = Redb {
            db,
            durability: Durability::Immediate,
            serial: 0,
        };
        let write = store.begin()?;
        write.open_table(ORDERS)?;
        write.open_table(RESULTS)?;
        // A serial larger than the last one keeps keys of the same millisecond apart.
        store.serial = write
            .open_table(AGES)?
            .last()?
            .map_or(0, |(age, _)| age.value().1 + 1);
        write.commit()?;
        Ok(store)
    }

    fn relax(&mut self, on: bool) -> Result<()> {
        // Pages that a non-durable commit replaced are only free after a durable one,
        // so the fill commits durably too, in its larger groups.
        let _ = on;
        Ok(())
    }

    fn look_up(&mut self, probes: &[Order]) -> Result<usize> {
        let read = self.db.begin_read()?;
        let (orders, results) = (read.open_table(ORDERS)?, read.open_table(RESULTS)?);
        let mut found = 0;
        for probe in probes {
            found += usize::from(orders.get(probe.order_key().as_slice())?.is_some());
            let prefix = probe.command_key();
            let first = results.range(prefix.as_slice()..)?.next().transpose()?;
            found += usize::from(first.is_some_and(|(key, _)| key.value().starts_with(&prefix)));
        }
        Ok(found)
    }

    fn sent(&mut self, group: &[Order]) -> Result<()> {
        let write = self.begin()?;
        {
            let mut orders = write.open_table(ORDERS)?;
            for order in group {
                orders.insert(order.order_key().as_slice(), order.sent_row().as_bytes())?;
            }
        }
        Ok(write.commit()?)
    }

    fn settled(&mut self, group: &[Order]) -> Result<()> {
        let write = self.begin()?;
        {
            let mut orders = write.open_table(ORDERS)?;
            let mut results = write.open_table(RESULTS)?;
            let mut ages = write.open_table(AGES)?;
            for order in group {
                let (key, result) = (order.order_key(), order.result_key());
                orders.insert(key.as_slice(), order.settled_row().as_bytes())?;
                results.insert(result.as_slice(), order.result_row().as_bytes())?;
                ages.insert(
                    (order.since, self.serial),
                    (key.as_slice(), result.as_slice()),
                )?;
                self.serial += 1;
            }
        }
        Ok(write.commit()?)
    }

    fn expire(&mut self, before: i64, count: usize) -> Result<usize> {
        let write = self.begin()?;
        let mut gone = 0;
        {
            let mut orders = write.open_table(ORDERS)?;
            let mut results = write.open_table(RESULTS)?;
            let mut ages = write.open_table(AGES)?;
            let mut old = Vec::with_capacity(count);
            for entry in ages.range(..(before, 0))?.take(count) {
                let (age, keys) = entry?;
                let (order, result) = keys.value();
                old.push((age.value(), order.to_vec(), result.to_vec()));
            }
            for (age, order, result) in old {
                ages.remove(age)?;
                gone += usize::from(orders.remove(order.as_slice())?.is_some());
                gone += usize::from(results.remove(result.as_slice())?.is_some());
            }
        }
        write.commit()?;
        Ok(gone)
    }
}
