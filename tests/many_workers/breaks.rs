//! The database breaks: the worker takes no commands, tells nothing that is not durable, says why,
//! and goes on by itself.

use std::time::Duration;

use super::support::amqp::COMMANDS;
use super::support::broker::Vhost;
use super::support::disk::red_ledger;
use super::support::eventually::eventually_ok;
use super::support::postgres::{Database, Postgres};
use super::support::scene::{LATER, Load, Scene};
use super::support::worker::Worker;
use super::together::{consumers, scene_on, workers};

/// What is broken, seen from the worker.
struct Broken<'a> {
    scene: &'a Scene,
    workers: &'a [Worker],
}

impl Broken<'_> {
    /// Readiness says why; the worker is alive and takes no commands.
    async fn is_noticed(&self, cause: &str) {
        for worker in self.workers {
            let red = eventually_ok(LATER, cause, async || {
                let red = red_ledger(worker).await;
                match red["cause"].as_str() {
                    Some(words) if words.contains(cause) => Ok(red),
                    _ => Err(red),
                }
            })
            .await;
            assert!(
                red["remedy"].as_str().is_some_and(|words| words.len() > 20),
                "{red}"
            );
            assert_eq!(
                worker.get("/livez").await.map(|(status, _)| status),
                Some(200)
            );
        }
        consumers(self.scene, 0).await;
    }

    /// Each worker consumes again, and is ready.
    async fn is_over(&self) {
        for worker in self.workers {
            eventually_ok(LATER, "it is ready", async || {
                match worker.readiness().await {
                    Some((200, _)) => Ok(()),
                    other => Err(other),
                }
            })
            .await;
        }
        consumers(self.scene, self.workers.len()).await;
    }
}

/// Two workers at work, a database of their own.
async fn at_work(postgres: &Postgres) -> (Database, Scene, Vec<Worker>) {
    let database = postgres.database().await;
    let scene = scene_on(&database).await;
    let workers = workers(&scene, 2).await;
    (database, scene, workers)
}

#[tokio::test]
async fn a_database_that_crashes_freezes_or_is_full_is_waited_for_and_nothing_is_told_meanwhile() {
    let mut postgres = Postgres::start().await;
    let (database, scene, workers) = at_work(&postgres).await;
    let broken = Broken {
        scene: &scene,
        workers: &workers,
    };
    let amqp = scene.amqp().await;
    let mut results = amqp.results().await;
    let limit = |connections: i32| {
        let name = database.name();
        format!(
            "ALTER DATABASE {name} CONNECTION LIMIT {connections};
             SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
        )
    };
    // Superusers pass every limit.
    let common = "CREATE ROLE common LOGIN; GRANT ALL ON SCHEMA wdt TO common;
         GRANT ALL ON ALL TABLES IN SCHEMA wdt TO common;
         GRANT ALL ON ALL SEQUENCES IN SCHEMA wdt TO common";
    database.run(common).await;
    for round in ["crash", "freeze"] {
        // Calls are in the air when it breaks.
        scene.slow(Duration::from_millis(500));
        let load = Load::new(&scene.orders, round, 60);
        load.send(&amqp).await;
        scene.until_sent(&load, 1).await;
        match round {
            "crash" => {
                postgres.crash().await;
                broken.is_noticed("cannot be reached").await;
                postgres.revive().await;
            }
            _ => {
                postgres.freeze();
                broken.is_noticed("does not").await;
                postgres.thaw();
            }
        }
        broken.is_over().await;
        load.is_told(&mut results, LATER).await;
        scene.queue_is_empty().await;
        scene.each_was_sent_once(&load);
    }
    drop(workers);

    let scene = scene.set("WDT_LEDGER__URL", database.url_of("common"));
    let workers = super::together::workers(&scene, 2).await;
    let broken = Broken {
        scene: &scene,
        workers: &workers,
    };
    scene.slow(Duration::ZERO);
    for round in ["full", "read-only"] {
        let load = Load::new(&scene.orders, round, 20);
        match round {
            "full" => {
                database.order(&limit(0)).await;
                broken.is_noticed("too many connections").await;
                load.send(&amqp).await;
                scene.vhost.queue_holds(LATER, COMMANDS, 20, 0).await;
                database.order(&limit(-1)).await;
            }
            _ => {
                let read_only = |on: &str| {
                    let name = database.name();
                    format!(
                        "ALTER DATABASE {name} SET default_transaction_read_only = {on};
                         SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                         WHERE datname = '{name}'"
                    )
                };
                database.order(&read_only("on")).await;
                broken.is_noticed("read-only transaction").await;
                load.send(&amqp).await;
                scene.vhost.queue_holds(LATER, COMMANDS, 20, 0).await;
                database.order(&read_only("off")).await;
            }
        }
        broken.is_over().await;
        load.is_told(&mut results, LATER).await;
        scene.queue_is_empty().await;
        scene.each_was_sent_once(&load);
    }
}

#[tokio::test]
async fn a_start_waits_for_a_database_that_is_just_being_started() {
    let mut postgres = Postgres::start().await;
    let database = postgres.database().await;
    postgres.crash().await;
    let vhost = Vhost::fresh().await;
    let scene = Scene::on(vhost).set("WDT_LEDGER__URL", database.url());
    let mut worker = scene.setup.start();
    worker.logs(LATER, "the ledger cannot be opened yet").await;
    postgres.revive().await;
    worker.wait_ready(LATER).await;
}
