//! The ledger, of either kind.

use super::Sheet;
use crate::config::{Config, LedgerUrl};
use crate::ledger::inspect::{Condition, inspect};
use crate::ledger::postgres::operate;

pub(super) async fn check(sheet: &mut Sheet, config: &Config) {
    match &config.ledger.url {
        LedgerUrl::Path(path) => {
            let shown = path.display();
            match inspect(path) {
                Ok(Condition::Free) => {
                    sheet.ok("ledger", format!("{shown} is whole as far as 0.5 s show"));
                }
                Ok(Condition::InUse) => {
                    sheet.ok("ledger", format!("{shown} is in use by a running worker"));
                }
                Ok(Condition::Absent) => {
                    let found = format!("{shown} is not there; the first start makes it");
                    sheet.note("ledger", found, "");
                }
                // Each says what would do.
                Err(error) => sheet.wrong("ledger", error.to_string(), ""),
            }
        }
        LedgerUrl::Postgres(url) => match sheet.step("ledger", operate::look(url.expose())).await {
            None => {}
            Some(Ok((0, _))) => {
                let found =
                    "the database holds no ledger yet; the first worker makes it, if its role may";
                sheet.note("ledger", found, "wdt-cancel-worker ledger migrate");
            }
            Some(Ok((schema, workers))) => {
                let found = format!("the database has schema {schema}; workers: {workers}");
                sheet.ok("ledger", found);
            }
            Some(Err(error)) => sheet.wrong("ledger", error.to_string(), ""),
        },
    }
}
