//! SIGHUP: settings and secrets that were changed hold from then on, and nothing is dropped.

use std::fs;
use std::time::Duration;

use crate::support::amqp::Command;
use crate::support::gateway::Account;
use crate::support::process::Signal;
use crate::support::scene::{LATER, Load, SOON, Scene};

const RELOADED: &str = "the settings were reloaded";

/// Whose secret the gateway does not take.
fn stranger() -> String {
    let mut account = Account::named("default");
    account.secret = "not-the-secret".into();
    account.app_secret()
}

#[tokio::test]
async fn a_secret_is_read_anew_and_what_waited_for_it_goes_on() {
    let scene = Scene::fresh().await;
    let file = scene.setup.dir().join("secret");
    fs::write(&file, stranger()).unwrap();
    let Scene { setup, .. } = &scene;
    let setup = setup
        .with("WDT_ACCOUNTS__DEFAULT__SECRET_FILE", file.display())
        .without("WDT_ACCOUNTS__DEFAULT__SECRET");
    let amqp = scene.amqp().await;
    let mut results = amqp.results().await;
    // Not ready until it can call: it has no other account.
    let mut worker = setup.start();
    worker.logs(LATER, "connected to the broker").await;
    amqp.send(&Command::orders(["QC-1"])).await;
    worker.logs(LATER, "the account cannot be called").await;

    // A file that makes no sense changes nothing, and is told without what is in it.
    fs::write(&file, "hunter2").unwrap();
    worker.signal(Signal::HUP);
    let said = worker.logs(SOON, "the settings cannot be reloaded").await;
    assert!(said.contains("accounts.default.secret"), "{said}");
    assert!(!worker.log().contains("hunter2"), "{}", worker.log());

    fs::write(&file, Account::named("default").app_secret()).unwrap();
    worker.signal(Signal::HUP);
    let said = worker.logs(SOON, RELOADED).await;
    assert!(said.contains("accounts.default (credentials)"), "{said}");
    let event = results.next(LATER).await.expect("an event");
    assert_eq!(event.outcome(), "cancelled");
    assert!(
        !scene.gateway.take_faults().is_empty(),
        "it was refused before"
    );
    assert_eq!(worker.terminate(SOON).await, 0);
}

#[tokio::test]
async fn the_previous_secret_serves_until_the_new_one_is_taken() {
    let scene = Scene::fresh().await;
    let right = Account::named("default").app_secret();
    let scene = scene
        .set("WDT_ACCOUNTS__DEFAULT__SECRET", stranger())
        .set("WDT_ACCOUNTS__DEFAULT__PREVIOUS_SECRET", right);
    let amqp = scene.amqp().await;
    let mut results = amqp.results().await;
    let mut worker = scene.worker().await;
    let load = Load::new(&scene.orders, "QC", 30);
    load.send(&amqp).await;
    load.is_told(&mut results, LATER).await;
    scene.each_was_sent_once(&load);
    // Only what went out before the first refusal was known.
    let refused = scene.gateway.take_faults().len();
    assert!((1..=2).contains(&refused), "{refused}");
    assert_eq!(worker.terminate(SOON).await, 0);
}

#[tokio::test]
async fn limits_change_at_work_and_what_cannot_is_named() {
    let scene = Scene::fresh().await;
    let file = scene.setup.dir().join("wdt.toml");
    fs::write(&file, "[api]\nmax_orders_per_call = 20\n").unwrap();
    let scene = scene.set("WDT_CONFIG", file.display());
    scene.slow(Duration::from_millis(50));
    let amqp = scene.amqp().await;
    let mut results = amqp.results().await;
    let mut worker = scene.worker().await;
    let before = Load::new(&scene.orders, "BEFORE", 60);
    before.send(&amqp).await;
    scene.until_sent(&before, 1).await;
    let text = "[api]\nmax_orders_per_call = 3\n[amqp]\ndead_queue = \"another\"\n[retry]\nmax_attempts = 4\n";
    fs::write(&file, text).unwrap();
    worker.signal(Signal::HUP);
    let said = worker.logs(SOON, RELOADED).await;
    let line: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(
        line["applied"],
        "retry, accounts.default.max_orders_per_call"
    );
    assert_eq!(line["needs_restart"], "amqp");
    before.is_told(&mut results, LATER).await;

    let first = scene.gateway.requests().len();
    let after = Load::new(&scene.orders, "AFTER", 30);
    after.send(&amqp).await;
    after.is_told(&mut results, LATER).await;
    let lists = scene.gateway.requests();
    let longest = lists[first..].iter().map(|r| r.orders().len()).max();
    assert_eq!(longest, Some(3));
    scene.each_was_sent_once(&before);
    scene.each_was_sent_once(&after);
    assert_eq!(worker.terminate(SOON).await, 0);
}
