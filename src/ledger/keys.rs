//! Where a command's results are: the index of the embedded ledger's largest table.
//!
//! A command is found by a hash of its id, so an index of commands is written to just anywhere, and
//! with millions of results on record each new one would cost a page of it. Here new entries stay in
//! memory, and move into the file in the sequence of their keys, many to a page. Nothing is lost by
//! that: the rows themselves lie in the order of their arrival, `marks.keys_to` says up to which of
//! them the index is complete, and the few after it are read at the start.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use rusqlite::{CachedStatement, Connection, Transaction, params};

/// New entries that stay in memory before they move, some 5 MiB; half as many again come meanwhile.
pub(super) const NEW_MOST: usize = 200_000;
/// Beside twice as many as are new, so many move with each commit, so that what moves is through
/// long before the next ones are due.
const MOVED_BESIDE: usize = 8;
/// The lower bits of a key are the order's, the others the command's.
const ORDER_BITS: u32 = 24;

/// The key, and the row's id.
type Entry = (i64, i64);

/// The key of a result. Two may share one; the rows tell them apart.
pub(super) fn key_of(command: i64, order_no: &str) -> i64 {
    // FNV-1a: short texts, and a poor hash costs a look at a row.
    let hash = order_no.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    *keys_of(command).start() | i64::from(hash >> (u32::BITS - ORDER_BITS))
}

/// The keys of a command's results.
pub(super) fn keys_of(command: i64) -> RangeInclusive<i64> {
    let orders = (1 << ORDER_BITS) - 1;
    command & !orders..=command | orders
}

/// How far the table reaches, as the marks have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reach {
    /// It has all rows up to this one.
    pub(super) to: i64,
    /// Of the rows after that and up to this one, it has those with a key below `moved`, and perhaps
    /// some with just that.
    pub(super) moving_to: i64,
    pub(super) moved: Option<i64>,
}

/// The index: the table `result_keys`, and what that lacks.
pub(super) struct Keys {
    most: usize,
    new: BTreeSet<Entry>,
    /// On their way into the table, the next first.
    moving: BTreeSet<Entry>,
    reach: Reach,
    last_id: i64,
    /// What the transaction that is being written adds, and how many of `moving` it takes.
    added: Vec<Entry>,
    taken: usize,
}

impl Keys {
    /// Reads what the table lacks; `most` is [`NEW_MOST`] but in tests.
    pub(super) fn load(connection: &Connection, most: usize) -> rusqlite::Result<Self> {
        let reach = connection.query_row(
            "SELECT keys_to, keys_moving_to, keys_moved FROM marks",
            [],
            |row| {
                Ok(Reach {
                    to: row.get(0)?,
                    moving_to: row.get(1)?,
                    moved: row.get(2)?,
                })
            },
        )?;
        let mut keys = Self {
            most,
            new: BTreeSet::new(),
            moving: BTreeSet::new(),
            reach,
            last_id: reach.moving_to,
            added: Vec::new(),
            taken: 0,
        };
        let mut rows =
            connection.prepare("SELECT command_key, order_no, id FROM results WHERE id > ?1")?;
        let mut rows = rows.query([reach.to])?;
        while let Some(row) = rows.next()? {
            let id = row.get(2)?;
            let order_no = row.get_ref(1)?.as_str()?;
            let key = key_of(row.get(0)?, order_no);
            if id > reach.moving_to {
                keys.new.insert((key, id));
            } else if reach.moved.is_none_or(|moved| key >= moved) {
                keys.moving.insert((key, id));
            }
            keys.last_id = keys.last_id.max(id);
        }
        Ok(keys)
    }

    /// The table's half of a look-up, for [`Self::find`].
    pub(super) fn table(connection: &Connection) -> rusqlite::Result<CachedStatement<'_>> {
        connection.prepare_cached("SELECT id FROM result_keys WHERE key BETWEEN ?1 AND ?2")
    }

    /// The rows with such keys, in the order of their arrival.
    pub(super) fn find(
        &self,
        table: &mut CachedStatement<'_>,
        keys: &RangeInclusive<i64>,
    ) -> rusqlite::Result<Vec<i64>> {
        let range = (*keys.start(), i64::MIN)..=(*keys.end(), i64::MAX);
        let new = self.new.range(range.clone());
        let mut ids: Vec<i64> = new
            .chain(self.moving.range(range))
            .map(|(_, id)| *id)
            .collect();
        let mut rows = table.query([keys.start(), keys.end()])?;
        while let Some(row) = rows.next()? {
            ids.push(row.get(0)?);
        }
        // What is moving may be in both.
        ids.sort_unstable();
        ids.dedup();
        Ok(ids)
    }

    /// The id that a new row is to have. It rises even when every row is forgotten, or the table
    /// would seem to have a row that it lacks.
    pub(super) fn add(&mut self, key: i64) -> i64 {
        self.last_id += 1;
        self.new.insert((key, self.last_id));
        self.added.push((key, self.last_id));
        self.last_id
    }

    /// Moves some entries into the table. Returns how far that reaches with this commit.
    pub(super) fn move_some(&mut self, transaction: &Transaction<'_>) -> rusqlite::Result<Reach> {
        if self.moving.is_empty() {
            self.reach = Reach {
                to: self.reach.moving_to,
                moving_to: self.reach.moving_to,
                moved: None,
            };
            if self.new.len() >= self.most {
                self.moving = std::mem::take(&mut self.new);
                self.reach.moving_to = self.last_id;
            }
        }
        // After a restart an entry may be in the table already.
        let mut insert =
            transaction.prepare_cached("INSERT OR IGNORE INTO result_keys VALUES (?1, ?2)")?;
        self.taken = self.moving.len().min(self.added.len() * 2 + MOVED_BESIDE);
        let mut reach = self.reach;
        for (key, id) in self.moving.iter().take(self.taken) {
            insert.execute(params![key, id])?;
            reach.moved = Some(*key);
        }
        Ok(reach)
    }

    /// The transaction is durable.
    pub(super) fn committed(&mut self) {
        self.added.clear();
        for _ in 0..std::mem::take(&mut self.taken) {
            if let Some((key, _)) = self.moving.pop_first() {
                self.reach.moved = Some(key);
            }
        }
    }

    /// The transaction, if there was one, came to nothing.
    pub(super) fn rolled_back(&mut self) {
        self.taken = 0;
        for entry in self.added.drain(..) {
            self.new.remove(&entry);
            self.moving.remove(&entry);
        }
    }

    /// These rows go with this transaction; [`Self::forgotten`] is to follow when it is durable.
    pub(super) fn forget(transaction: &Transaction<'_>, entries: &[Entry]) -> rusqlite::Result<()> {
        let mut delete =
            transaction.prepare_cached("DELETE FROM result_keys WHERE key = ?1 AND id = ?2")?;
        for (key, id) in entries {
            delete.execute(params![key, id])?;
        }
        Ok(())
    }

    /// These rows are gone.
    pub(super) fn forgotten(&mut self, entries: &[Entry]) {
        for entry in entries {
            self.new.remove(entry);
            self.moving.remove(entry);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rusqlite::OptionalExtension as _;

    use super::*;
    use crate::ledger::schema;

    const MOST: usize = 40;

    #[derive(Debug, Clone)]
    enum Step {
        /// Results of these commands, and whether the commit comes about.
        Write(Vec<i64>, bool),
        /// So many of the oldest.
        Forget(usize),
        Restart,
    }

    fn step() -> impl Strategy<Value = Step> {
        let commands = prop::collection::vec((0..20_i64).prop_map(|n| n << 40), 0..30);
        prop_oneof![
            6 => (commands, prop::bool::weighted(0.8)).prop_map(|(c, ok)| Step::Write(c, ok)),
            2 => (0..40_usize).prop_map(Step::Forget),
            1 => Just(Step::Restart),
        ]
    }

    fn write(file: &mut Connection, keys: &mut Keys, commands: &[i64], ok: bool) -> Vec<i64> {
        keys.rolled_back();
        let transaction = file.transaction().unwrap();
        let mut ids = Vec::new();
        for command in commands {
            let id = keys.add(key_of(*command, "QC1"));
            let row =
                "INSERT INTO results VALUES (?1, ?2, 'default', '', 'QC1', x'', NULL, NULL, 1, 0)";
            transaction.execute(row, [id, *command]).unwrap();
            ids.push(id);
        }
        let reach = keys.move_some(&transaction).unwrap();
        mark(&transaction, reach).unwrap();
        if !ok {
            return Vec::new();
        }
        transaction.commit().unwrap();
        keys.committed();
        ids
    }

    fn mark(transaction: &Transaction<'_>, reach: Reach) -> rusqlite::Result<usize> {
        transaction.execute(
            "UPDATE marks SET keys_to = ?1, keys_moving_to = ?2, keys_moved = ?3",
            params![reach.to, reach.moving_to, reach.moved],
        )
    }

    fn forget(file: &mut Connection, keys: &mut Keys, rows: &[(i64, i64)]) {
        keys.rolled_back();
        let entries: Vec<Entry> = rows
            .iter()
            .map(|(c, id)| (key_of(*c, "QC1"), *id))
            .collect();
        let transaction = file.transaction().unwrap();
        for (_, id) in rows {
            transaction
                .execute("DELETE FROM results WHERE id = ?1", [id])
                .unwrap();
        }
        Keys::forget(&transaction, &entries).unwrap();
        transaction.commit().unwrap();
        keys.forgotten(&entries);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        /// Whatever is written, undone, forgotten and read anew, each row that is there is found,
        /// and no other; what waits in memory stays within its bound.
        #[test]
        fn each_row_is_found(steps in prop::collection::vec(step(), 1..60)) {
            let mut file = Connection::open_in_memory().unwrap();
            schema::migrate(&mut file, 0, crate::rules::dry_run::Mode::Live).unwrap();
            let mut keys = Keys::load(&file, MOST).unwrap();
            let mut rows: Vec<(i64, i64)> = Vec::new();
            for step in steps {
                match step {
                    Step::Write(commands, ok) => {
                        let ids = write(&mut file, &mut keys, &commands, ok);
                        rows.extend(commands.into_iter().zip(ids));
                    }
                    Step::Forget(most) => {
                        let rest = rows.split_off(most.min(rows.len()));
                        forget(&mut file, &mut keys, &rows);
                        rows = rest;
                    }
                    Step::Restart => keys = Keys::load(&file, MOST).unwrap(),
                }
                keys.rolled_back();
                prop_assert!(keys.new.len() + keys.moving.len() < MOST * 2 + 30);
                let mut table = Keys::table(&file).unwrap();
                for command in (0..20).map(|n| n << 40) {
                    let of_command = |(c, id): &(i64, i64)| (*c == command).then_some(*id);
                    let expected: Vec<i64> = rows.iter().filter_map(of_command).collect();
                    let found = keys.find(&mut table, &keys_of(command)).unwrap();
                    prop_assert_eq!(found, expected);
                }
            }
            // The table has no row that is gone, either.
            let gone = "SELECT id FROM result_keys WHERE id NOT IN (SELECT id FROM results)";
            let gone: Option<i64> = file.query_row(gone, [], |row| row.get(0)).optional().unwrap();
            prop_assert_eq!(gone, None);
        }
    }

    #[test]
    fn keys_of_a_command_lie_side_by_side() {
        for command in [0, 1, -1, i64::MIN, i64::MAX, 0x0123_4567_89ab_cdef] {
            let keys = keys_of(command);
            for order in ["", "QC202409200001", "其他"] {
                assert!(keys.contains(&key_of(command, order)));
            }
            assert_ne!(key_of(command, "QC1"), key_of(command, "QC2"));
        }
    }
}
