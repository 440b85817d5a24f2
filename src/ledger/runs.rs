//! Runs that died, and the commands that were on trial then (`rules::poison`).

use std::time::Duration;

use jiff::Timestamp;
use rusqlite::params;

use super::sqlite::{Store, Writing};
use crate::rules::poison::{Digest, Past, REMEMBERED};
use crate::rules::time::earlier;

/// A command that did not come again for so long is not known any more.
const TRIALS_KEPT: Duration = Duration::from_secs(24 * 60 * 60);
/// More runs than are ever looked at.
const RUNS_KEPT: i64 = 100;

impl Store {
    /// What earlier runs left. A trial that was on when the last run died counts against its
    /// command, once.
    pub(super) fn past(&mut self, now: Timestamp) -> rusqlite::Result<Past> {
        let transaction = self.connection.transaction()?;
        let since = earlier(now, REMEMBERED).as_millisecond();
        let ends = transaction
            .prepare("SELECT ended FROM runs WHERE began_at > ?1 ORDER BY id DESC")?
            .query_map([since], |row| row.get(0))?
            .collect::<rusqlite::Result<Vec<bool>>>()?;
        let deaths = ends.iter().take_while(|ended| !**ended).count();
        transaction.execute(
            "UPDATE trials SET died = died + ?1, is_on = 0 WHERE is_on",
            [deaths > 0],
        )?;
        let forgotten = earlier(now, TRIALS_KEPT).as_millisecond();
        transaction.execute("DELETE FROM trials WHERE changed_at < ?1", [forgotten])?;
        transaction.execute(
            "DELETE FROM runs WHERE id <= (SELECT max(id) FROM runs) - ?1",
            [RUNS_KEPT],
        )?;
        let trials = transaction
            .prepare("SELECT command, died FROM trials WHERE died > 0")?
            .query_map([], |row| Ok((Digest(row.get(0)?), row.get(1)?)))?
            .collect::<rusqlite::Result<Vec<_>>>()?;
        transaction.commit()?;
        Ok(Past {
            deaths: u32::try_from(deaths).unwrap_or(u32::MAX),
            trials,
        })
    }
}

impl Writing<'_> {
    pub(super) fn begin_run(&self, at: Timestamp) -> rusqlite::Result<()> {
        let sql = "INSERT INTO runs (began_at, ended) VALUES (?1, 0)";
        self.transaction.execute(sql, [at.as_millisecond()])?;
        Ok(())
    }

    pub(super) fn end_run(&self) -> rusqlite::Result<()> {
        let sql = "UPDATE runs SET ended = 1 WHERE id = (SELECT max(id) FROM runs)";
        self.transaction.execute(sql, [])?;
        Ok(())
    }

    pub(super) fn begin_trial(&self, command: Digest, at: Timestamp) -> rusqlite::Result<()> {
        self.transaction.execute(
            "INSERT INTO trials (command, died, is_on, changed_at) VALUES (?1, 0, 1, ?2)
             ON CONFLICT (command) DO UPDATE SET is_on = 1, changed_at = ?2",
            params![command.0, at.as_millisecond()],
        )?;
        Ok(())
    }

    pub(super) fn end_trial(&self, command: Digest, is_finished: bool) -> rusqlite::Result<()> {
        let sql = if is_finished {
            "DELETE FROM trials WHERE command = ?1"
        } else {
            "UPDATE trials SET is_on = 0 WHERE command = ?1"
        };
        self.transaction.execute(sql, params![command.0])?;
        Ok(())
    }
}
