//! A ledger is one of dry runs, or of live ones, for ever.

use tokio::sync::mpsc::unbounded_channel;
use wdt_cancel_worker::ledger::{Ledger, Opened, postgres};
use wdt_cancel_worker::rules::dry_run::Mode;
use wdt_cancel_worker::rules::order::AccountName;

use super::seat::{Seating, Store};

async fn open(store: &Store, mode: Mode) -> Result<Opened, String> {
    let (done, _) = unbounded_channel();
    let seating = Seating::default();
    match store {
        Store::Embedded(path) => {
            let names = vec![AccountName::new("default").unwrap()];
            Ledger::open_for(mode, path, names, seating.retention, done).map_err(|e| e.to_string())
        }
        Store::Shared(database) => {
            let settings = postgres::Settings {
                url: database.url().to_owned(),
                accounts: Vec::new(),
                timeout: seating.timeout,
                retention: seating.retention,
            };
            let opened = postgres::open_for(mode, settings, done).await;
            opened.map_err(|e| e.to_string())
        }
    }
}

#[tokio::test]
async fn neither_is_taken_for_the_other() {
    for (mode, other, words) in [
        (Mode::Live, Mode::DryRun, "is not one of dry runs"),
        (Mode::DryRun, Mode::Live, "is one of dry runs"),
    ] {
        for store in Store::both().await {
            for _ in 0..2 {
                let opened = open(&store, mode).await.unwrap();
                opened.ledger.close().await;
                let refused = open(&store, other).await.unwrap_err();
                assert!(refused.contains(words), "{refused}");
            }
        }
    }
}

#[tokio::test]
async fn what_operators_do_with_a_shared_one_is_for_the_live_ones() {
    let store = Store::shared().await;
    let opened = open(&store, Mode::DryRun).await.unwrap();
    opened.ledger.close().await;
    let url = store.database().url();
    let refused = postgres::operate::mark_restored(url).await.unwrap_err();
    assert!(
        refused.to_string().contains("is one of dry runs"),
        "{refused}"
    );
    // Its tables are made like any other's.
    postgres::operate::migrate(url).await.unwrap();
    open(&store, Mode::Live).await.unwrap_err();

    let dry = Store::embedded();
    open(&dry, Mode::DryRun).await.unwrap().ledger.close().await;
    let Store::Embedded(file) = dry else {
        panic!("a file")
    };
    let live = Store::shared().await;
    let moved = postgres::operate::import(live.database().url(), &file).await;
    let refused = moved.unwrap_err().to_string();
    assert!(refused.contains("is one of dry runs"), "{refused}");
}
