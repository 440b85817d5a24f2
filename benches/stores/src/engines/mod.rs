//! What the bench asks of an engine, and the settings that it may turn.

pub mod fjall;
pub mod redb;
pub mod sqlite;

use std::path::Path;

use crate::load::Order;

pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// The ledger's verbs, as far as a store can tell them apart.
///
/// Every `sent` and `settled` is one transaction that is on the disk when the call
/// returns, except in relaxed mode.
pub trait Store: Sized {
    fn open(dir: &Path, tune: &Tune) -> Result<Self>;

    /// Gives up durability to fill a store quickly; only ever used before a measurement.
    fn relax(&mut self, on: bool) -> Result<()>;

    /// Looks each order up by its number and by its command in one read transaction.
    /// Returns how many of these two look-ups each found a row.
    fn look_up(&mut self, probes: &[Order]) -> Result<usize>;

    /// Commit A: the orders' rows.
    fn sent(&mut self, group: &[Order]) -> Result<()>;

    /// Commit B: the same orders' rows again, and a result row for each.
    fn settled(&mut self, group: &[Order]) -> Result<()>;

    /// Removes the rows of at most `orders` orders sent before `before`, oldest first,
    /// from both tables in one durable transaction. Returns how many rows went.
    fn expire(&mut self, before: i64, orders: usize) -> Result<usize>;
}

/// Settings in the form `name=value,name=value` after an engine's name.
#[derive(Clone)]
pub struct Tune {
    /// Cache of the engine in MiB, the same for all.
    pub cache_mb: u64,
    /// SQLite: bytes in a page.
    pub page: u32,
    /// SQLite: pages in the write-ahead log at which it is checkpointed.
    pub checkpoint: i64,
    /// SQLite: checkpoint on a thread of its own.
    pub thread: bool,
    /// SQLite with hashes: rows of one era of the index, 0 for a single era.
    pub era: i64,
    /// fjall: MiB of one memtable.
    pub memtable_mb: u64,
}

impl Default for Tune {
    fn default() -> Tune {
        Tune {
            cache_mb: 32,
            page: 4096,
            checkpoint: 1000,
            thread: false,
            era: 0,
            memtable_mb: 8,
        }
    }
}

impl Tune {
    pub fn parse(text: &str) -> Result<Tune> {
        let mut tune = Tune::default();
        for pair in text.split(',').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair
                .split_once('=')
                .ok_or_else(|| format!("{pair}: no `=`"))?;
            match name {
                "cache" => tune.cache_mb = value.parse()?,
                "page" => tune.page = value.parse()?,
                "checkpoint" => tune.checkpoint = value.parse()?,
                "thread" => tune.thread = value == "1",
                "era" => tune.era = value.parse()?,
                "memtable" => tune.memtable_mb = value.parse()?,
                _ => return Err(format!("{name}: no such setting").into()),
            }
        }
        Ok(tune)
    }
}
