//! Back-up and restore: a copy made while the worker runs, and what is told after it was put back.
#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, its helpers too"
)]

mod support;

use std::os::unix::fs::{MetadataExt as _, chown};
use std::path::Path;
use std::time::Duration;

use support::amqp::{COMMANDS, Command};
use support::disk::{beside, ledger_of, outcomes, refuses_to_start, run, told};
use support::scene::{LATER, Load, SOON, Scene, lines};

/// `ledger VERB FILE`.
async fn ledger(scene: &Scene, verb: &str, file: &Path) -> (i32, String) {
    run(scene, &["ledger", verb, file.to_str().unwrap()]).await
}

fn remove(ledger: &Path) {
    for ending in ["", "-wal", "-shm", ".lock"] {
        let file = beside(ledger, ending);
        if file.exists() {
            std::fs::remove_file(file).unwrap();
        }
    }
}

#[tokio::test]
async fn a_copy_made_at_work_is_whole_and_the_worker_goes_on() {
    let scene = Scene::fresh().await;
    scene.slow(Duration::from_millis(100));
    let amqp = scene.amqp().await;
    let mut results = amqp.results().await;
    let mut worker = scene.worker().await;
    let before = Load::new(&scene.orders, "BEFORE", 20);
    before.send(&amqp).await;
    before.is_told(&mut results, LATER).await;
    let during = Load::new(&scene.orders, "DURING", 200);
    during.send(&amqp).await;
    scene.until_sent(&during, 40).await;
    let copy = scene.setup.dir().join("copy");
    let (code, said) = ledger(&scene, "backup", &copy).await;
    assert_eq!(code, 0, "{said}");
    assert!(!beside(&copy, "-wal").exists(), "one file");
    during.is_told(&mut results, LATER).await;
    scene.queue_is_empty().await;
    assert_eq!(lines(&worker, "ledger fails"), [""; 0]);

    let (code, said) = ledger(&scene, "check", &copy).await;
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("is whole"), "{said}");
    // At work, too.
    let (code, said) = run(&scene, &["ledger", "check"]).await;
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("orders that ended: 220"), "{said}");
    assert!(said.contains("results of commands: 220"), "{said}");
    let (code, said) = ledger(&scene, "backup", &copy).await;
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("exists already"), "{said}");
    assert_eq!(worker.terminate(SOON).await, 0);
}

#[tokio::test]
async fn what_root_restores_belongs_to_whom_the_ledger_belonged() {
    const NOBODY: u32 = 65534;
    let scene = Scene::fresh().await;
    let mut worker = scene.worker().await;
    assert_eq!(worker.terminate(SOON).await, 0);
    let path = ledger_of(&scene);
    let copy = scene.setup.dir().join("copy");
    let (code, said) = ledger(&scene, "backup", &copy).await;
    assert_eq!(code, 0, "{said}");
    let give = |file: &Path| chown(file, Some(NOBODY), Some(NOBODY));
    if give(&path).is_err() {
        println!("only root can give files away");
        return;
    }
    // Beside what was there, and where nothing is left but the folder.
    for is_left in [true, false] {
        if !is_left {
            remove(&path);
            give(path.parent().unwrap()).unwrap();
        }
        let (code, said) = ledger(&scene, "restore", &copy).await;
        assert_eq!(code, 0, "{said}");
        for file in [&path, &beside(&path, ".lock")] {
            let made = file.metadata().unwrap();
            assert_eq!((made.uid(), made.gid()), (NOBODY, NOBODY), "{file:?}");
        }
    }
}

#[tokio::test]
async fn after_a_restore_no_order_is_refused_for_our_own_earlier_cancel() {
    let scene = Scene::fresh().await;
    let amqp = scene.amqp().await;
    let mut results = amqp.results().await;
    let mut worker = scene.worker().await;
    let before = Load::new(&scene.orders, "BEFORE", 5);
    before.send(&amqp).await;
    before.is_told(&mut results, LATER).await;
    // Refused at the time of the copy, and cancelled in the gap.
    scene.orders.set("QC-TURNED", 70);
    let turned = Command::orders(["QC-TURNED"]).id("turned-1");
    let events = told(&amqp, &mut results, &turned, 1).await;
    assert_eq!(outcomes(&events), ["QC-TURNED refused"]);
    scene.queue_is_empty().await;
    let copy = scene.setup.dir().join("copy");
    let (code, said) = ledger(&scene, "backup", &copy).await;
    assert_eq!(code, 0, "{said}");

    // The gap: orders are cancelled, one is in a call when the disk is lost.
    let gap = Load::new(&scene.orders, "GAP", 10);
    gap.send(&amqp).await;
    gap.is_told(&mut results, LATER).await;
    scene.orders.set("QC-TURNED", 20);
    let turned = Command::orders(["QC-TURNED"]).id("turned-2");
    let events = told(&amqp, &mut results, &turned, 1).await;
    assert_eq!(outcomes(&events), ["QC-TURNED cancelled"]);
    scene.queue_is_empty().await;
    scene.slow(Duration::from_secs(60));
    let mut flight = Load::new(&scene.orders, "FLIGHT", 0);
    flight.add("flight", "QC-FLIGHT", "cancelled");
    flight.send(&amqp).await;
    scene.until_sent(&flight, 1).await;
    worker.kill9();
    scene.slow(Duration::ZERO);
    scene.vhost.queue_holds(SOON, COMMANDS, 1, 0).await;
    remove(&ledger_of(&scene));
    let (code, said) = ledger(&scene, "restore", &copy).await;
    assert_eq!(code, 0, "{said}");
    let mut worker = scene.worker().await;
    assert_eq!(lines(&worker, "restored from a back-up").len(), 1);

    // What was in hand is looked up before anything is sent.
    flight.is_told(&mut results, LATER).await;
    assert_eq!(scene.orders.times_sent("QC-FLIGHT"), 1);
    assert!(scene.orders.times_looked_up("QC-FLIGHT") >= 1);
    for restarted in [false, true] {
        if restarted {
            // It is not forgotten with the first start.
            assert_eq!(worker.terminate(SOON).await, 0);
            worker = scene.worker().await;
        }
        for order in gap.orders() {
            // The same command, as its sender repeats it, and another for the same order.
            for id in [format!("cmd-{order}"), format!("again-{restarted}-{order}")] {
                let command = Command::orders([order]).id(&id);
                let events = told(&amqp, &mut results, &command, 1).await;
                let due = if scene.orders.status(order) == Some(80) {
                    "cancelled"
                } else {
                    "refused"
                };
                assert_eq!(outcomes(&events), [format!("{order} {due}")], "{events:#?}");
            }
        }
    }
    assert!(
        gap.orders()
            .into_iter()
            .any(|o| scene.orders.status(o) == Some(70))
    );
    let turned = Command::orders(["QC-TURNED"]).id("turned-3");
    let events = told(&amqp, &mut results, &turned, 1).await;
    assert_eq!(outcomes(&events), ["QC-TURNED cancelled"]);
    // A new order costs one call, and what the copy knows is told without one.
    let new = Command::orders(["QC-NEW"]).id("new");
    told(&amqp, &mut results, &new, 1).await;
    assert_eq!(scene.orders.times_looked_up("QC-NEW"), 0);
    before.send(&amqp).await;
    for message in before.is_told(&mut results, LATER).await {
        assert_eq!(message.body["replayed"], true, "{message:#?}");
    }
    scene.each_was_sent_once(&before);
}

#[tokio::test]
async fn a_copy_that_is_put_in_place_by_hand_is_known_as_one() {
    let scene = Scene::fresh().await;
    let amqp = scene.amqp().await;
    let mut results = amqp.results().await;
    let mut worker = scene.worker().await;
    let copy = scene.setup.dir().join("copy");
    let (code, said) = ledger(&scene, "backup", &copy).await;
    assert_eq!(code, 0, "{said}");
    let cancelled = Command::orders(["QC-1"]).id("first");
    told(&amqp, &mut results, &cancelled, 1).await;
    scene.queue_is_empty().await;
    worker.kill9();

    // The log of the lost ledger would be read as the copy's.
    let path = ledger_of(&scene);
    std::fs::copy(&copy, &path).unwrap();
    let mut worker = scene.setup.start();
    let said = refuses_to_start(&mut worker, &path).await;
    assert!(said.contains("ledger restore"), "{said}");
    std::fs::remove_file(beside(&path, "-wal")).unwrap();
    std::fs::remove_file(beside(&path, "-shm")).unwrap();
    let worker = scene.worker().await;
    assert_eq!(lines(&worker, "restored from a back-up").len(), 1);
    let again = Command::orders(["QC-1"]).id("second");
    let events = told(&amqp, &mut results, &again, 1).await;
    assert_eq!(outcomes(&events), ["QC-1 cancelled"]);
}

#[tokio::test]
async fn what_is_left_of_a_ledger_can_be_restored_from_itself() {
    let scene = Scene::fresh().await;
    let amqp = scene.amqp().await;
    let mut results = amqp.results().await;
    let mut worker = scene.worker().await;
    told(
        &amqp,
        &mut results,
        &Command::orders(["QC-1"]).id("first"),
        1,
    )
    .await;
    scene.queue_is_empty().await;
    worker.kill9();
    let path = ledger_of(&scene);
    std::fs::remove_file(beside(&path, "-wal")).unwrap();
    let mut worker = scene.setup.start();
    refuses_to_start(&mut worker, &path).await;
    let (code, said) = ledger(&scene, "restore", &path).await;
    assert_eq!(code, 0, "{said}");
    assert!(said.contains(".replaced-"), "{said}");
    let (code, again) = ledger(&scene, "restore", &path).await;
    assert_eq!(code, 0, "{again}");
    let kept = |said: &str| {
        said.lines()
            .find(|line| line.contains(".replaced-"))
            .map(String::from)
    };
    assert_ne!(kept(&said), kept(&again), "one took the other's name");
    let _worker = scene.worker().await;
    let again = Command::orders(["QC-1"]).id("second");
    let events = told(&amqp, &mut results, &again, 1).await;
    assert_eq!(outcomes(&events), ["QC-1 cancelled"]);
}

#[tokio::test]
async fn what_cannot_be_restored_changes_nothing() {
    let scene = Scene::fresh().await;
    let path = ledger_of(&scene);
    let missing = scene.setup.dir().join("missing");
    let (code, said) = ledger(&scene, "restore", &missing).await;
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("No such file"), "{said}");
    assert!(!path.exists(), "an empty ledger was made");

    let mut worker = scene.worker().await;
    let copy = scene.setup.dir().join("copy");
    let (code, said) = ledger(&scene, "backup", &copy).await;
    assert_eq!(code, 0, "{said}");
    let (code, said) = ledger(&scene, "restore", &copy).await;
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("in use by another worker"), "{said}");
    assert_eq!(worker.terminate(SOON).await, 0);

    let before = std::fs::read(&path).unwrap();
    let half = scene.setup.dir().join("half");
    std::fs::write(&half, &std::fs::read(&copy).unwrap()[..12_288]).unwrap();
    let text = scene.setup.dir().join("text");
    std::fs::write(&text, "not a ledger at all ".repeat(100)).unwrap();
    let empty = scene.setup.dir().join("empty");
    std::fs::write(&empty, "").unwrap();
    for from in [half, text, empty, missing] {
        for verb in ["restore", "check"] {
            let (code, said) = ledger(&scene, verb, &from).await;
            let checks_empty = verb == "check" && from.ends_with("empty");
            assert_eq!(code, i32::from(!checks_empty), "{verb} {from:?}: {said}");
            assert_eq!(
                said.lines().count(),
                if checks_empty { 6 } else { 1 },
                "{said}"
            );
            assert!(said.contains(&from.display().to_string()), "{said}");
        }
    }
    assert!(std::fs::read(&path).unwrap() == before);
    let _worker = scene.worker().await;
}
