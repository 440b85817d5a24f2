//! Accounts that operators paused, for all workers that share the ledger.

use std::collections::BTreeMap;

use deadpool_postgres::Object;
use tokio::sync::mpsc::UnboundedSender;

use super::connect::DbError;
use super::rows::timestamp;
use crate::ledger::Done;
use crate::rules::desk::{AccountPolicy, LaneId};
use crate::rules::lane::Paused;

/// Which of these accounts are paused.
pub(super) async fn read(
    client: &Object,
    accounts: &[AccountPolicy],
) -> Result<Vec<(LaneId, Paused)>, DbError> {
    let all = client
        .prepare_cached("SELECT account, since, who FROM wdt.pauses")
        .await?;
    let mut paused = Vec::new();
    for row in client.query(&all, &[]).await? {
        let name: &str = row.get(0);
        let Some(lane) = accounts.iter().position(|a| a.name.as_str() == name) else {
            continue;
        };
        let since = timestamp(row.get(1))?;
        let by = row.get::<_, &str>(2).into();
        paused.push((LaneId(lane), Paused { since, by }));
    }
    Ok(paused)
}

/// Pauses an account, or resumes it.
pub(super) async fn write(
    client: &Object,
    account: &str,
    paused: Option<&Paused>,
) -> Result<(), DbError> {
    match paused {
        Some(Paused { since, by }) => {
            let sql = "INSERT INTO wdt.pauses (account, since, who) VALUES ($1, $2, $3)
                ON CONFLICT (account) DO UPDATE SET since = EXCLUDED.since, who = EXCLUDED.who";
            client
                .execute(sql, &[&account, &since.as_millisecond(), &&**by])
                .await?;
        }
        None => {
            let sql = "DELETE FROM wdt.pauses WHERE account = $1";
            client.execute(sql, &[&account]).await?;
        }
    }
    Ok(())
}

/// Notices what others, or this worker itself, changed, and reports it.
pub(super) struct Watch {
    accounts: Vec<AccountPolicy>,
    known: BTreeMap<LaneId, Paused>,
    done: UnboundedSender<Done>,
}

impl Watch {
    pub(super) fn new(
        accounts: Vec<AccountPolicy>,
        known: &[(LaneId, Paused)],
        done: UnboundedSender<Done>,
    ) -> Self {
        Self {
            accounts,
            known: known.iter().cloned().collect(),
            done,
        }
    }

    pub(super) async fn look(&mut self, client: &Object) -> Result<(), DbError> {
        let found: BTreeMap<_, _> = read(client, &self.accounts).await?.into_iter().collect();
        if found == self.known {
            return Ok(());
        }
        let lanes = (0..self.accounts.len()).map(LaneId);
        let changed = lanes
            .filter(|lane| found.get(lane) != self.known.get(lane))
            .map(|lane| (lane, found.get(&lane).cloned()))
            .collect();
        self.known = found;
        // A worker that no longer listens is stopping.
        drop(self.done.send(Done::Paused(changed)));
        Ok(())
    }
}
