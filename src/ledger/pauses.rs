//! Accounts that operators paused: they stay so until somebody resumes them, whatever restarts.

use std::path::Path;

use rusqlite::{OptionalExtension as _, params};

use super::journal::Page;
use super::open::OpenError;
use super::sqlite::{Store, Writing, timestamp};
use crate::rules::desk::LaneId;
use crate::rules::dry_run::Mode;
use crate::rules::lane::Paused;
use crate::rules::order::AccountName;

impl Store {
    /// The accounts of the settings that are paused.
    pub(super) fn paused(&self) -> rusqlite::Result<Vec<(LaneId, Paused)>> {
        let mut row = self
            .connection
            .prepare("SELECT since, who FROM pauses WHERE account = ?1")?;
        let mut paused = Vec::new();
        for (lane, account) in self.accounts.iter().enumerate() {
            let found = row.query_row([account.as_str()], |row| {
                Ok(Paused {
                    since: timestamp(row.get(0)?)?,
                    by: row.get::<_, String>(1)?.into(),
                })
            });
            paused.extend(found.optional()?.map(|paused| (LaneId(lane), paused)));
        }
        Ok(paused)
    }
}

impl Writing<'_> {
    pub(super) fn pause(&self, lane: LaneId, paused: Option<&Paused>) -> rusqlite::Result<()> {
        let account = self.account(lane);
        match paused {
            Some(Paused { since, by }) => self.transaction.execute(
                "INSERT INTO pauses (account, since, who) VALUES (?1, ?2, ?3)
                 ON CONFLICT (account) DO UPDATE SET since = excluded.since, who = excluded.who",
                params![account, since.as_millisecond(), &**by],
            )?,
            None => self
                .transaction
                .execute("DELETE FROM pauses WHERE account = ?1", [account])?,
        };
        Ok(())
    }
}

/// Pauses these accounts, or resumes them, in an embedded ledger that no worker has open.
///
/// # Errors
/// When a worker has it ([`OpenError::Locked`]), or it cannot be used.
pub fn set(
    path: &Path,
    accounts: Vec<AccountName>,
    paused: Option<&Paused>,
) -> Result<(), OpenError> {
    let lanes = (0..accounts.len()).map(LaneId);
    let mut store = Store::open(Mode::Live, path, accounts)?;
    let written = store.begin().and_then(|writing| {
        for lane in lanes {
            writing.pause(lane, paused)?;
        }
        writing.commit(&Page::default())
    });
    written.map_err(|error| OpenError::store(path, error))
}
