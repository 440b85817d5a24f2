//! What is durable, seen from outside: the real worker, its ledger file, and what goes wrong with
//! either. Nothing is told that is not durable, nothing that is durable is done twice.
#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, its helpers too"
)]

mod support;

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rusqlite::{Connection, OpenFlags};
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use support::amqp::{COMMANDS, Command};
use support::disk::{count, ledger_of, outcomes, read, red_ledger, refuses_to_start, told};
use support::eventually::eventually_ok;
use support::gateway::{CANCEL, QUERY};
use support::process::fresh_dir;
use support::scene::{LATER, Load, SOON, Scene, lines};

// What is remembered

#[tokio::test]
async fn what_was_told_is_told_again_without_a_call_after_a_restart_and_after_a_kill() {
    let scene = Scene::fresh().await;
    scene.orders.set("QC-SHIPPED", 70);
    let amqp = scene.amqp().await;
    let mut results = amqp.results().await;
    let mut worker = scene.worker().await;
    let command = Command::orders(["QC-1", "QC-SHIPPED"]).id("cmd-1");
    let first = told(&amqp, &mut results, &command, 2).await;
    assert_eq!(outcomes(&first), ["QC-1 cancelled", "QC-SHIPPED refused"]);
    scene.queue_is_empty().await;
    let calls = scene.gateway.requests().len();

    for kill in [false, true] {
        if kill {
            worker.kill9();
        } else {
            assert_eq!(worker.terminate(SOON).await, 0);
        }
        worker = scene.worker().await;
        let again = told(&amqp, &mut results, &command, 2).await;
        assert_eq!(outcomes(&again), outcomes(&first));
        for (now, then) in again.iter().zip(&first) {
            assert_eq!(now.body["replayed"], true, "{now:#?}");
            assert_eq!(then.body["replayed"], false, "{then:#?}");
            for field in ["event_id", "reason", "attempts", "index", "total"] {
                assert_eq!(now.body[field], then.body[field], "{field}: {now:#?}");
            }
        }
        // In a new command what is cancelled stays cancelled.
        let other = Command::orders(["QC-1"]).id(&format!("cmd-2-{kill}"));
        let other = told(&amqp, &mut results, &other, 1).await;
        assert_eq!(outcomes(&other), ["QC-1 cancelled"]);
        assert_eq!(other[0].body["replayed"], true);
        // The same id for other orders is somebody's mistake.
        let reused = Command::orders(["QC-2"]).id("cmd-1");
        let reused = told(&amqp, &mut results, &reused, 1).await;
        assert_eq!(reused[0].reason_code(), "command_id_reused");
        // What is not acknowledged when the worker is killed would come again.
        scene.queue_is_empty().await;
    }
    let cancels_and_queries = scene.gateway.calls(CANCEL).len() + scene.gateway.calls(QUERY).len();
    assert_eq!(cancels_and_queries, 1);
    // Each start measures the clock, and that is all.
    assert_eq!(scene.gateway.requests().len(), calls + 2);
    scene.queue_is_empty().await;
}

#[tokio::test]
async fn an_order_whose_sending_is_recorded_is_looked_up_after_a_kill_even_after_a_long_standstill()
{
    let scene = Scene::fresh()
        .await
        .set("WDT_LEDGER__RETENTION", "1h")
        // A call for each of the three, whether or not they share one.
        .set("WDT_API__CONCURRENCY", 3);
    scene.slow(Duration::from_secs(60));
    let amqp = scene.amqp().await;
    let mut results = amqp.results().await;
    let mut worker = scene.worker().await;
    let load = Load::new(&scene.orders, "QC", 3);
    load.send(&amqp).await;
    scene.until_sent(&load, 3).await;
    worker.kill9();
    scene.vhost.queue_holds(SOON, COMMANDS, 3, 0).await;
    // Two days later; the commands come when the worker has tidied up.
    let two_days = 48 * 3600 * 1000;
    let ledger = write(&ledger_of(&scene));
    let aged = ledger.execute("UPDATE orders SET changed_at = changed_at - ?1", [two_days]);
    assert_eq!(aged.unwrap(), 3);
    // This one ended as long ago, so when it is gone, the tidying is done.
    insert_ended(&ledger, "QC-OLD", millis_ago(two_days));
    drop(ledger);
    scene.slow(Duration::ZERO);
    scene.gateway.down();
    let worker = scene.setup.start();
    let ledger = read(&ledger_of(&scene));
    eventually_ok(LATER, "the ended order is forgotten", async || match count(
        &ledger,
        "orders",
        "order_no = 'QC-OLD'",
    ) {
        0 => Ok(()),
        left => Err(left),
    })
    .await;
    assert_eq!(count(&ledger, "orders", "state = 1"), 3, "{}", worker.log());
    scene.gateway.up();
    load.is_told(&mut results, LATER).await;
    scene.each_was_sent_once(&load);
    for order in load.orders() {
        assert!(scene.orders.times_looked_up(order) >= 1, "{order}");
    }
}

#[tokio::test]
async fn what_is_old_is_forgotten_in_small_steps_while_the_worker_works() {
    /// The worker's own step, and how often it makes one.
    const STEP: i64 = 500;
    const OLD: i64 = 1_800;
    let scene = Scene::fresh().await;
    let amqp = scene.amqp().await;
    let mut results = amqp.results().await;
    let mut worker = scene.worker().await;
    assert_eq!(worker.terminate(SOON).await, 0);

    let day = 24 * 3600 * 1000;
    let mut ledger = write(&ledger_of(&scene));
    let rows = ledger.transaction().unwrap();
    for n in 0..OLD {
        insert_ended(&rows, &format!("QC-OLD-{n:05}"), millis_ago(31 * day));
    }
    insert_ended(&rows, "QC-YOUNG", millis_ago(29 * day));
    rows.commit().unwrap();
    drop(ledger);

    let ledger = read(&ledger_of(&scene));
    let _worker = scene.setup.start();
    let old = || {
        let forgotten = format!("changed_at < {}", millis_ago(30 * day));
        let orders = count(&ledger, "orders", &forgotten);
        let forgotten = format!("occurred_at < {}", millis_ago(30 * day));
        (orders, count(&ledger, "results", &forgotten))
    };
    let mut seen = old();
    let mut at = tokio::time::Instant::now();
    // It works meanwhile.
    let load = Load::new(&scene.orders, "QC", 10);
    load.send(&amqp).await;
    let mut told = load.is_told(&mut results, LATER).await;
    eventually_ok(LATER, "everything old is forgotten", async || {
        let now = old();
        let steps = 1 + i64::try_from(at.elapsed().as_secs()).unwrap();
        for (before, after) in [(seen.0, now.0), (seen.1, now.1)] {
            assert!(before - after <= STEP * steps, "{seen:?}, then {now:?}");
        }
        (seen, at) = (now, tokio::time::Instant::now());
        (now == (0, 0)).then_some(()).ok_or(now)
    })
    .await;

    // What is young is known, what was forgotten is not.
    for (order, replayed) in [("QC-YOUNG", true), ("QC-OLD-00000", false)] {
        let command = Command::orders([order]).id(&format!("again-{order}"));
        told = support::disk::told(&amqp, &mut results, &command, 1).await;
        assert_eq!(outcomes(&told), [format!("{order} cancelled")]);
        assert_eq!(told[0].body["replayed"], replayed, "{told:#?}");
        assert_eq!(scene.orders.times_sent(order), usize::from(!replayed));
    }
    assert_eq!(told.len(), 1);
}

#[tokio::test]
async fn a_log_whose_end_is_torn_is_read_up_to_there() {
    let scene = Scene::fresh().await;
    let amqp = scene.amqp().await;
    let mut results = amqp.results().await;
    let mut worker = scene.worker().await;
    let load = Load::new(&scene.orders, "QC", 10);
    load.send(&amqp).await;
    load.is_told(&mut results, LATER).await;
    scene.queue_is_empty().await;
    worker.kill9();
    // What a power cut leaves of a write that was never confirmed.
    let mut log = ledger_of(&scene).into_os_string();
    log.push("-wal");
    let mut bytes = std::fs::read(&log).unwrap();
    bytes.extend((0..5_000_u32).map(|n| (n * 31 % 251) as u8));
    std::fs::write(&log, bytes).unwrap();

    let _worker = scene.worker().await;
    load.send(&amqp).await;
    for message in load.is_told(&mut results, LATER).await {
        assert_eq!(message.body["replayed"], true, "{message:#?}");
    }
    scene.each_was_sent_once(&load);
}

// What is refused

#[tokio::test]
async fn a_ledger_in_use_is_not_shared_and_is_free_after_a_kill() {
    let scene = Scene::fresh().await;
    let mut first = scene.worker().await;
    let mut second = scene.setup.start();
    let said = refuses_to_start(&mut second, &ledger_of(&scene)).await;
    assert!(said.contains("in use by another worker"), "{said}");
    assert!(first.is_running());
    first.kill9();
    let _third = scene.worker().await;
}

#[tokio::test]
async fn a_file_that_is_no_ledger_is_left_alone() {
    let scene = Scene::fresh().await;
    let dir = fresh_dir("foreign");

    let text = dir.join("notes.txt");
    std::fs::write(&text, "do not forget the milk\n".repeat(100)).unwrap();
    let short = dir.join("short.txt");
    std::fs::write(&short, "milk").unwrap();
    let other = dir.join("other.sqlite");
    let database = Connection::open(&other).unwrap();
    let table = "CREATE TABLE orders (id INTEGER PRIMARY KEY); INSERT INTO orders VALUES (7);";
    database.execute_batch(table).unwrap();
    drop(database);
    let broken = dir.join("broken.sqlite");
    let mut bytes = std::fs::read(&other).unwrap();
    bytes.truncate(600);
    std::fs::write(&broken, bytes).unwrap();
    for path in [text, short, other, broken] {
        let before = std::fs::read(&path).unwrap();
        let said = cannot_use(&scene, &path).await;
        assert!(
            said.contains("not a ledger") || said.contains("malformed"),
            "{said}"
        );
        assert!(
            std::fs::read(&path).unwrap() == before,
            "{path:?} was changed"
        );
    }
    assert_eq!(scene.gateway.requests().len(), 0);
}

#[tokio::test]
async fn a_ledger_of_an_earlier_version_opens_and_keeps_all_its_states() {
    let scene = Scene::fresh()
        .await
        .set("WDT_LEDGER__RETENTION", "3650d")
        .set("WDT_API__MAX_ORDERS_PER_CALL", 1);
    scene.orders.set("QC-SHIPPED", 70);
    scene.orders.set("QC-SENT", 80);
    // Written by the version that had schema 1: three orders of `cmd-old` that ended as cancelled,
    // refused and unknown, and one of `cmd-sent` in whose call the worker was killed.
    let path = ledger_of(&scene);
    let fixture =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/ledger-schema-1.sqlite");
    std::fs::copy(fixture, &path).unwrap();
    let file = write(&path);
    assert_eq!(version_of(&file), 1);
    file.execute_batch(
        "INSERT INTO orders (account, order_no, state, attempts, spent, since, changed_at)
         VALUES ('default', 'QC-WAITING', 0, 0, 0, 1795504510000, 1795504510000)",
    )
    .unwrap();
    drop(file);
    let amqp = scene.amqp().await;
    let mut results = amqp.results().await;
    let newest = newest_schema(&scene).await;
    let mut worker = scene.worker().await;
    let file = read(&path);
    assert_eq!(version_of(&file), newest);
    assert_eq!(count(&file, "orders", "true"), 5);
    assert_eq!(count(&file, "results", "command_id = 'cmd-old'"), 3);

    // What was settled is told from the record; what was not is looked up first.
    let old = Command::orders(["QC-DONE", "QC-SHIPPED", "QC-LOST"]).id("cmd-old");
    let events = told(&amqp, &mut results, &old, 3).await;
    let replayed: Vec<_> = events.iter().map(|e| e.body["replayed"] == true).collect();
    assert_eq!(
        (outcomes(&events), replayed),
        (
            [
                "QC-DONE cancelled",
                "QC-SHIPPED refused",
                "QC-LOST cancelled"
            ]
            .map(Into::into)
            .to_vec(),
            vec![true, true, false]
        )
    );
    let sent = Command::orders(["QC-SENT"]).id("cmd-sent");
    let events = told(&amqp, &mut results, &sent, 1).await;
    assert_eq!(outcomes(&events), ["QC-SENT cancelled"]);
    let waiting = Command::orders(["QC-WAITING"]).id("cmd-waiting");
    let events = told(&amqp, &mut results, &waiting, 1).await;
    assert_eq!(outcomes(&events), ["QC-WAITING cancelled"]);
    for (order, looked_up, sent) in [
        ("QC-DONE", 0, 0),
        ("QC-SHIPPED", 0, 0),
        ("QC-LOST", 1, 1),
        ("QC-SENT", 1, 0),
        ("QC-WAITING", 0, 1),
    ] {
        let seen = (
            scene.orders.times_looked_up(order),
            scene.orders.times_sent(order),
        );
        assert_eq!(seen, (looked_up, sent), "{order}");
    }
    assert_eq!(worker.terminate(SOON).await, 0);
}

#[tokio::test]
async fn a_ledger_of_a_later_version_is_left_alone() {
    let scene = Scene::fresh().await;
    let mut worker = scene.worker().await;
    assert_eq!(worker.terminate(SOON).await, 0);
    let path = ledger_of(&scene);
    let ledger = write(&path);
    let version = version_of(&ledger);
    ledger
        .pragma_update(None, "user_version", version + 1)
        .unwrap();
    drop(ledger);
    let before = std::fs::read(&path).unwrap();
    let mut worker = scene.setup.start();
    let said = refuses_to_start(&mut worker, &path).await;
    assert!(said.contains(&format!("schema {}", version + 1)), "{said}");
    assert!(std::fs::read(&path).unwrap() == before, "it was changed");
}

#[tokio::test]
async fn a_place_that_cannot_be_written_is_named() {
    let scene = Scene::fresh().await;
    let dir = fresh_dir("places");
    let file = dir.join("file");
    std::fs::write(&file, "").unwrap();
    let folder = dir.join("folder");
    std::fs::create_dir(&folder).unwrap();
    let closed = dir.join("closed");
    std::fs::create_dir(&closed).unwrap();
    std::fs::set_permissions(&closed, PermissionsExt::from_mode(0o555)).unwrap();
    for path in [
        dir.join("missing/ledger"),
        file.join("ledger"),
        folder,
        closed.join("ledger"),
    ] {
        cannot_use(&scene, &path).await;
    }
    assert_eq!(std::fs::read_dir(&closed).unwrap().count(), 0);
}

#[tokio::test]
async fn a_ledger_that_can_only_be_read_is_refused_at_the_start() {
    let scene = Scene::fresh().await;
    let mut worker = scene.worker().await;
    assert_eq!(worker.terminate(SOON).await, 0);
    let path = ledger_of(&scene);
    let empty = scene.setup.dir().join("empty");
    std::fs::write(&empty, "").unwrap();
    for path in [path, empty] {
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o444)).unwrap();
        let said = cannot_use(&scene, &path).await;
        assert!(
            said.contains("can only be read") || said.contains("ermission"),
            "{said}"
        );
    }
}

// The disk that is full

#[tokio::test]
async fn on_a_full_disk_nothing_is_sent_or_told_that_is_not_recorded_and_it_goes_on_by_itself() {
    let scene = Scene::fresh().await.set("WDT_API__MAX_ORDERS_PER_CALL", 5);
    scene.slow(Duration::from_millis(20));
    let amqp = scene.amqp().await;
    let mut results = amqp.results().await;
    // A limit on the size of a file needs no special rights, and a write beyond it fails as on a
    // disk that is full. The signal that comes with it is ignored from before the worker begins.
    let mut worker = scene.setup.start_through(
        &[
            "/bin/sh",
            "-c",
            "trap '' XFSZ; ulimit -S -f 400; exec \"$@\"",
            "limit",
        ],
        &["run"],
    );
    worker.wait_ready(LATER).await;
    let load = Load::new(&scene.orders, "QC", 400);
    load.send(&amqp).await;
    red_ledger(&worker).await;
    assert!(worker.is_running());

    // What was sent or told until now is in the file, as anyone can read it. Calls and events that
    // were on their way come to rest first.
    let mut told = BTreeSet::new();
    while let Some(message) = results.next(Duration::from_secs(1)).await {
        told.insert(load.check(&message));
    }
    let sent = scene.sent(&load);
    assert!(sent < 400 && told.len() < 400, "the disk was never full");
    let ledger = read(&ledger_of(&scene));
    for (command, order) in &told {
        let row = format!("command_id = '{command}' AND order_no = '{order}'");
        assert_eq!(
            count(&ledger, "results", &row),
            1,
            "told, not recorded: {order}"
        );
    }
    for order in load.orders() {
        if scene.orders.times_sent(order) > 0 {
            let row = format!("order_no = '{order}' AND state IN (1, 2)");
            assert_eq!(
                count(&ledger, "orders", &row),
                1,
                "sent, not recorded: {order}"
            );
        }
    }
    // It stays so, through several tries of the write.
    results.stays_empty(Duration::from_secs(3)).await;
    assert_eq!(scene.sent(&load), sent);
    assert_eq!(lines(&worker, "ledger fails").len(), 1, "{}", worker.log());

    let none = Rlimit {
        current: None,
        maximum: None,
    };
    prlimit(Pid::from_raw(worker.pid()), Resource::Fsize, none).unwrap();
    worker.wait_ready(LATER).await;
    while told.len() < 400 {
        let next = results.next(LATER).await;
        told.insert(load.check(&next.expect("every order is told")));
    }
    scene.queue_is_empty().await;
    scene.each_was_sent_once(&load);
    assert_eq!(lines(&worker, "ledger works again").len(), 1);
}

// Helpers

/// A connection to a ledger that no worker has open.
fn write(path: &Path) -> Connection {
    Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE).unwrap()
}

fn version_of(ledger: &Connection) -> i32 {
    ledger
        .query_row("PRAGMA user_version", [], |row| row.get(0))
        .unwrap()
}

/// The schema of a ledger that this version has just made.
async fn newest_schema(scene: &Scene) -> i32 {
    let path = scene.setup.dir().join("new");
    let setup = scene.setup.with("WDT_LEDGER__URL", path.display());
    let mut worker = setup.start();
    worker.wait_ready(LATER).await;
    assert_eq!(worker.terminate(SOON).await, 0);
    version_of(&read(&path))
}

/// An order that was cancelled then, for a command of its own.
fn insert_ended(ledger: &Connection, order: &str, at: i64) {
    ledger
        .execute(
            "INSERT INTO orders
             (account, order_no, state, attempts, spent, since, changed_at)
             VALUES ('default', ?1, 2, 1, 0, ?2, ?2)",
            (order, at),
        )
        .unwrap();
    ledger
        .execute(
            "INSERT INTO results
             (command_key, account, command_id, order_no, fingerprint, attempts, occurred_at)
             VALUES (0, 'default', 'cmd-' || ?1, ?1, x'', 1, ?2)",
            (order, at),
        )
        .unwrap();
}

fn millis_ago(millis: i64) -> i64 {
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_millis();
    i64::try_from(now).unwrap() - millis
}

/// A worker with this ledger ends at once; the one line that says why.
async fn cannot_use(scene: &Scene, path: &Path) -> String {
    // Root may write anywhere, so it gives that right up for its child.
    let unprivileged: &[&str] = if rustix::process::geteuid().is_root() {
        &[
            "setpriv",
            "--inh-caps=-dac_override,-dac_read_search",
            "--bounding-set=-dac_override,-dac_read_search",
        ]
    } else {
        &[]
    };
    let setup = scene.setup.with("WDT_LEDGER__URL", path.display());
    let mut worker = setup.start_through(unprivileged, &["run"]);
    refuses_to_start(&mut worker, path).await
}
