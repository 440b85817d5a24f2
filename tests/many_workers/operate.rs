//! The shared ledger's schema, its operators' commands, and starts that are refused.

use rusqlite::Connection;

use super::support::amqp::Command;
use super::support::disk::{outcomes, told};
use super::support::eventually::eventually_ok;
use super::support::postgres::{Database, Postgres};
use super::support::scene::{LATER, SOON, Scene, lines};
use super::support::worker::Worker;
use super::together::scene_on;

/// It ends with this code; the lines that it says for people.
async fn says(worker: &mut Worker, code: i32) -> String {
    assert_eq!(worker.exit_code(LATER).await, code, "{}", worker.log());
    worker.log()
}

/// Runs a subcommand to its good end; what it says.
async fn done(scene: &Scene, args: &[&str]) -> String {
    says(&mut scene.setup.start_with(args), 0).await
}

/// The schema of this version, once a ledger was made. Versions count from 1.
async fn newest(database: &Database) -> i64 {
    let sql = "SELECT max(version)::bigint FROM wdt.migrations";
    database.number(sql).await
}

/// Refused at the start, in one line.
async fn refused(scene: &Scene) -> String {
    let mut worker = scene.setup.start();
    assert_eq!(worker.exit_code(LATER).await, 1, "{}", worker.log());
    let said = lines(&worker, "wdt-cancel-worker: ");
    assert_eq!(said.len(), 1, "not one line: {}", worker.log());
    said[0].clone()
}

#[tokio::test]
async fn a_worker_whose_role_may_not_make_tables_works_with_those_that_somebody_else_made() {
    let database = Database::fresh().await;
    database.run("CREATE ROLE humble LOGIN").await;
    let owner = scene_on(&database).await;
    let humble = Scene::on(owner.vhost.clone()).set("WDT_LEDGER__URL", database.url_of("humble"));
    let said = refused(&humble).await;
    assert!(said.contains("wdt-cancel-worker ledger migrate"), "{said}");

    let said = done(&owner, &["ledger", "migrate"]).await;
    let schema = newest(&database).await;
    let made = format!("was made, with schema {schema}");
    assert!(said.contains(&made), "{said}");
    let said = done(&owner, &["ledger", "migrate"]).await;
    assert!(said.contains(&format!("has schema {schema}")), "{said}");
    let said = refused(&humble).await;
    assert!(said.contains("permission denied"), "{said}");

    // As docs/OPERATIONS.md says.
    database
        .run(
            "GRANT USAGE ON SCHEMA wdt TO humble;
             GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA wdt TO humble;
             GRANT USAGE ON ALL SEQUENCES IN SCHEMA wdt TO humble",
        )
        .await;
    let mut worker = humble.worker().await;
    let amqp = humble.amqp().await;
    let mut results = amqp.results().await;
    let events = told(&amqp, &mut results, &Command::orders(["QC-1"]).id("c"), 1).await;
    assert_eq!(outcomes(&events), ["QC-1 cancelled"]);
    assert_eq!(worker.terminate(SOON).await, 0, "{}", worker.log());
    assert!(
        !worker.log().contains("permission denied"),
        "{}",
        worker.log()
    );
}

#[tokio::test]
async fn a_later_schema_is_used_if_it_says_that_this_version_may_and_refused_if_not() {
    let database = Database::fresh().await;
    let scene = scene_on(&database).await;
    let mut worker = scene.worker().await;
    assert_eq!(worker.terminate(SOON).await, 0);
    let schema = newest(&database).await;
    let later = format!(
        "INSERT INTO wdt.migrations VALUES ({}, {schema})",
        schema + 1
    );
    database.run(&later).await;
    let mut worker = scene.worker().await;
    assert_eq!(worker.terminate(SOON).await, 0);
    let later = schema + 2;
    let alone = format!("INSERT INTO wdt.migrations VALUES ({later}, {later})");
    database.run(&alone).await;
    let said = refused(&scene).await;
    assert!(
        said.contains(&format!("schema {later}")) && said.contains("start a later version"),
        "{said}"
    );
    let said = says(&mut scene.setup.start_with(&["ledger", "migrate"]), 1).await;
    assert!(said.contains("start a later version"), "{said}");
}

#[tokio::test]
async fn many_that_start_at_once_make_the_tables_once() {
    let database = Database::fresh().await;
    let scene = scene_on(&database).await;
    let workers = super::together::workers(&scene, 4).await;
    assert_eq!(
        database.number("SELECT count(*) FROM wdt.migrations").await,
        newest(&database).await
    );
    assert_eq!(database.number("SELECT count(*) FROM wdt.workers").await, 4);
    drop(workers);
}

#[tokio::test]
async fn a_database_that_cannot_be_used_is_named_without_its_password() {
    let database = Database::fresh().await;
    let scene = scene_on(&database).await;
    let nobody = database.url().replace("wdt@", "nobody:hunter2@");
    let said = refused(&scene.set("WDT_LEDGER__URL", nobody)).await;
    assert!(
        said.contains("ledger.url") && said.contains("nobody"),
        "{said}"
    );
    assert!(!said.contains("hunter2"), "{said}");
}

#[tokio::test]
async fn an_embedded_ledger_is_moved_over_and_goes_on_where_it_was() {
    let database = Database::fresh().await;
    let embedded = Scene::fresh().await;
    embedded.orders.set("QC-SHIPPED", 70);
    let amqp = embedded.amqp().await;
    let mut worker = embedded.worker().await;
    let mut results = amqp.results().await;
    let command = Command::orders(["QC-1", "QC-SHIPPED", "x\u{0}y"]).id("cmd-1");
    let first = told(&amqp, &mut results, &command, 3).await;
    embedded.queue_is_empty().await;
    let file = embedded.setup.dir().join("ledger");
    let file = file.to_str().unwrap().to_owned();
    let shared = embedded.setup.with("WDT_LEDGER__URL", database.url());
    let said = says(&mut shared.start_with(&["ledger", "import", &file]), 1).await;
    assert!(said.contains("in use by another worker"), "{said}");
    assert_eq!(worker.terminate(SOON).await, 0);
    // One that was sent and has no ending.
    Connection::open(&file)
        .unwrap()
        .execute(
            "INSERT INTO orders (account, order_no, state, attempts, spent, since, changed_at)
             VALUES ('default', 'QC-OPEN', 1, 1, 1, 0, 0)",
            [],
        )
        .unwrap();

    let said = says(&mut shared.start_with(&["ledger", "import", &file]), 0).await;
    assert!(said.contains("orders: 3 moved, of 3"), "{said}");
    assert!(said.contains("results: 3 moved, of 3"), "{said}");
    let said = says(&mut shared.start_with(&["ledger", "import", &file]), 0).await;
    assert!(said.contains("orders: 0 moved, of 3"), "{said}");
    let said = says(&mut shared.start_with(&["ledger", "check"]), 0).await;
    assert!(said.contains("orders that ended: 2"), "{said}");
    assert!(
        said.contains("sent and have no ending: 1, the oldest since 1970"),
        "{said}"
    );
    // Its calls were made a moment ago, and would be counted on.
    let quiet = "SELECT count(*) FROM wdt.accounts WHERE quiet_until > now()";
    assert_eq!(database.number(quiet).await, 1);
    database
        .run("UPDATE wdt.accounts SET quiet_until = now()")
        .await;

    let mut worker = shared.start();
    worker.wait_ready(LATER).await;
    let calls = embedded.gateway.requests().len();
    let again = told(&amqp, &mut results, &command, 3).await;
    assert_eq!(outcomes(&again), outcomes(&first));
    for (now, then) in again.iter().zip(&first) {
        assert_eq!(now.body["replayed"], true, "{now:#?}");
        assert_eq!(now.body["event_id"], then.body["event_id"], "{now:#?}");
    }
    assert!(
        embedded.gateway.requests().len() <= calls + 1,
        "but for the clock"
    );
    let open = Command::orders(["QC-OPEN"]).id("cmd-2");
    let open = told(&amqp, &mut results, &open, 1).await;
    assert_eq!(outcomes(&open), ["QC-OPEN cancelled"]);
    assert_eq!(embedded.orders.times_looked_up("QC-OPEN"), 1);
}

#[tokio::test]
async fn what_is_for_the_other_kind_of_ledger_is_said_and_a_restored_one_is_careful() {
    let database = Database::fresh().await;
    let scene = scene_on(&database).await;
    let said = says(&mut scene.setup.start_with(&["ledger", "backup", "x"]), 64).await;
    assert!(said.contains("pg_dump"), "{said}");
    let said = says(&mut scene.setup.start_with(&["ledger", "restore", "x"]), 64).await;
    assert!(
        said.contains("pg_restore") && said.contains("ledger restored"),
        "{said}"
    );
    let said = done(&scene, &["ledger", "check"]).await;
    assert!(said.contains("no ledger yet"), "{said}");
    let embedded = Scene::on(scene.vhost.clone());
    let said = says(&mut embedded.setup.start_with(&["ledger", "migrate"]), 64).await;
    assert!(said.contains("postgres://"), "{said}");

    done(&scene, &["ledger", "restored"]).await;
    scene.orders.set("QC-GONE", 80);
    let amqp = scene.amqp().await;
    let worker = scene.worker().await;
    let mut results = amqp.results().await;
    assert_eq!(worker.lines("was restored from a back-up").len(), 1);
    // It may have been cancelled by a call that the back-up does not know of.
    let events = told(
        &amqp,
        &mut results,
        &Command::orders(["QC-GONE"]).id("c"),
        1,
    )
    .await;
    assert_eq!(outcomes(&events), ["QC-GONE cancelled"]);
}

/// Made by the server itself, in its own folder: an authority, and a certificate for `localhost`.
const CERTIFICATES: &str = "
openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=authority -keyout ca.key -out ca.crt &&
openssl req -newkey rsa:2048 -nodes -subj /CN=localhost -keyout server.key -out server.csr &&
printf \"subjectAltName=DNS:localhost\\nbasicConstraints=CA:FALSE\\n\" >server.ext &&
openssl x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 \
    -extfile server.ext -out server.crt";

#[tokio::test]
async fn the_connection_is_as_safe_as_the_url_says() {
    let postgres = Postgres::start().await;
    let database = postgres.database().await;
    database
        .run(&format!(
            "COPY (SELECT 1) TO PROGRAM $$({CERTIFICATES}) >made.log 2>&1$$"
        ))
        .await;
    database.order("ALTER SYSTEM SET ssl = on").await;
    database.order("SELECT pg_reload_conf()").await;
    let on = "SELECT count(*) FROM pg_settings WHERE name = 'ssl' AND setting = 'on'";
    eventually_ok(LATER, "the server speaks TLS", async || {
        match database.number(on).await {
            1 => Ok(()),
            other => Err(other),
        }
    })
    .await;
    let client = database.client().await;
    let row = client
        .query_one("SELECT pg_read_file('ca.crt')", &[])
        .await
        .unwrap();
    let scene = scene_on(&database).await;
    let authority = scene.setup.dir().join("authority.crt");
    std::fs::write(&authority, row.get::<_, String>(0)).unwrap();
    let authority = authority.display().to_string();
    let (by_number, by_name) = (
        database.url(),
        database.url().replace("127.0.0.1", "localhost"),
    );
    let encrypted = format!(
        "SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)
         WHERE ssl AND datname = '{}' AND application_name = 'wdt-cancel-worker'",
        database.name()
    );

    for (url, is_encrypted) in [
        (format!("{by_number}?sslmode=disable"), false),
        (format!("{by_number}?sslmode=prefer"), true),
        (format!("{by_number}?sslmode=require"), true),
        (
            format!("{by_number}?sslmode=verify-ca&sslrootcert={authority}"),
            true,
        ),
        (
            format!("{by_name}?sslmode=verify-full&sslrootcert={authority}"),
            true,
        ),
    ] {
        let mut worker = scene.setup.with("WDT_LEDGER__URL", &url).start();
        worker.wait_ready(LATER).await;
        assert_eq!(database.number(&encrypted).await > 0, is_encrypted, "{url}");
        assert_eq!(worker.terminate(SOON).await, 0);
    }
    for url in [
        // Another name than the certificate's, and an authority that nobody here knows.
        format!("{by_number}?sslmode=verify-full&sslrootcert={authority}"),
        format!("{by_name}?sslmode=verify-full"),
    ] {
        let setup = scene.setup.with("WDT_LEDGER__URL", &url);
        let said = says(&mut setup.start_with(&["ledger", "check"]), 1).await;
        assert!(
            said.contains("certificate") || said.contains("trusts no"),
            "{said}"
        );
    }
}
