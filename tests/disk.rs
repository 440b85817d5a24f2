//! The disk under the ledger: full, read-only, damaged, swapped. The worker says so in one line and
//! does not start, or readiness is red; nothing is sent or told that is not recorded.
#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, its helpers too"
)]

mod support;

use std::collections::BTreeSet;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::Connection;
use support::amqp::{COMMANDS, Command, Inbox};
use support::chance::chance;
use support::disk::{
    beside, count, inside, ledger_of, may_mount, own_mount, read, red_ledger, refuses_to_start, run,
};
use support::process::{Signal, fresh_dir};
use support::scene::{LATER, Load, SOON, Scene, lines};
use support::worker::Worker;

/// What stands still is watched for so long, several tries of a write.
const WHILE: Duration = Duration::from_secs(3);

/// What is done to a ledger at this place.
type Damage = Box<dyn Fn(&Path)>;

// A disk that fails under a running worker

#[tokio::test]
async fn on_a_disk_that_is_really_full_nothing_is_sent_or_told_until_there_is_room() {
    if !may_mount("the full disk is tested by a size limit only, in tests/ledger.rs") {
        return;
    }
    let scene = Scene::fresh().await;
    let folder = fresh_dir("mounted");
    let path = folder.join("ledger");
    let scene = scene.set("WDT_LEDGER__URL", path.display());
    let amqp = scene.amqp().await;
    let mut results = amqp.results().await;
    let mut worker = on(&scene, "mount -t tmpfs -o size=8m tmpfs \"$0\"", &folder);
    worker.wait_ready(LATER).await;
    let before = Load::new(&scene.orders, "BEFORE", 3);
    before.send(&amqp).await;
    before.is_told(&mut results, LATER).await;
    scene.queue_is_empty().await;

    let filler = inside(&worker, &folder.join("filler"));
    fill(&filler);
    // It is noticed before anything has to be written.
    red_ledger(&worker).await;
    let load = Load::new(&scene.orders, "QC", 300);
    load.send(&amqp).await;
    let red = red_ledger(&worker).await;
    assert!(red["cause"].as_str().unwrap().contains("full"), "{red}");
    assert!(
        red["remedy"].as_str().unwrap().contains("free room"),
        "{red}"
    );
    let mut told = stands_still(&scene, &load, &mut results, &mut worker).await;
    // By a copy: its real name leads elsewhere for everyone but the worker.
    let seen = copy_of(&inside(&worker, &path), &["", "-wal"]);
    recorded(&read(&seen), &scene, &load, &told);
    assert_eq!(lines(&worker, "ledger fails").len(), 1, "{}", worker.log());

    std::fs::remove_file(filler).unwrap();
    worker.wait_ready(LATER).await;
    while told.len() < 300 {
        let next = results.next(LATER).await;
        told.insert(load.check(&next.expect("every order is told")));
    }
    scene.queue_is_empty().await;
    scene.each_was_sent_once(&load);
    assert_eq!(lines(&worker, "ledger works again").len(), 1);
    assert_eq!(worker.terminate(SOON).await, 0);
}

#[tokio::test]
async fn a_disk_that_turns_read_only_stops_everything_and_a_restart_goes_on() {
    if !may_mount("a disk that turns read-only is not tested") {
        return;
    }
    let scene = Scene::fresh().await;
    let folder = fresh_dir("mounted");
    let path = folder.join("ledger");
    let scene = scene.set("WDT_LEDGER__URL", path.display());
    let image = scene.setup.dir().join("image");
    std::fs::File::create(&image)
        .unwrap()
        .set_len(16 << 20)
        .unwrap();
    let mut format = std::process::Command::new("/sbin/mkfs.ext4");
    format.arg("-q").arg(&image);
    assert!(
        support::process::run(&mut format, "", SOON)
            .status
            .success()
    );
    let script = format!(
        "mount -o loop,errors=remount-ro '{}' \"$0\"",
        image.display()
    );
    let amqp = scene.amqp().await;
    let mut results = amqp.results().await;
    let mut worker = on(&scene, &script, &folder);
    worker.wait_ready(LATER).await;
    let before = Load::new(&scene.orders, "BEFORE", 3);
    before.send(&amqp).await;
    before.is_told(&mut results, LATER).await;
    scene.queue_is_empty().await;

    // What the system does when it cannot trust the disk any more.
    let mounts = std::fs::read_to_string(format!("/proc/{}/mounts", worker.pid())).unwrap();
    let at = format!(" {} ext4 ", folder.display());
    let device = mounts.lines().find(|line| line.contains(&at)).unwrap();
    let device = device
        .split(' ')
        .next()
        .unwrap()
        .trim_start_matches("/dev/");
    std::fs::write(format!("/sys/fs/ext4/{device}/trigger_fs_error"), "1").unwrap();
    let load = Load::new(&scene.orders, "QC", 50);
    load.send(&amqp).await;
    red_ledger(&worker).await;
    let told = stands_still(&scene, &load, &mut results, &mut worker).await;
    assert!(told.is_empty(), "{told:?}");
    assert_eq!(scene.sent(&load), 0);
    worker.kill9();

    let mut worker = on(&scene, &script, &folder);
    worker.wait_ready(LATER).await;
    load.is_told(&mut results, LATER).await;
    scene.queue_is_empty().await;
    scene.each_was_sent_once(&load);
    before.send(&amqp).await;
    for message in before.is_told(&mut results, LATER).await {
        assert_eq!(message.body["replayed"], true, "{message:#?}");
    }
}

#[tokio::test]
async fn damage_met_at_work_is_never_tried_again_and_a_back_up_mends_it() {
    let scene = Scene::fresh().await;
    let amqp = scene.amqp().await;
    let mut results = amqp.results().await;
    let mut worker = scene.setup.start_with(&["run", "--drain", "1s"]);
    worker.wait_ready(LATER).await;
    let before = Load::new(&scene.orders, "BEFORE", 60);
    before.send(&amqp).await;
    before.is_told(&mut results, LATER).await;
    scene.queue_is_empty().await;
    let path = ledger_of(&scene);
    let copy = scene.setup.dir().join("copy");
    let (code, said) = run(&scene, &["ledger", "backup", copy.to_str().unwrap()]).await;
    assert_eq!(code, 0, "{said}");

    // Everything lies in the file, all but its first page turns to garbage, and what the worker has
    // read of it counts no more, for somebody else has written.
    let other = Connection::open(&path).unwrap();
    other.busy_timeout(SOON).unwrap();
    let moved: (i64, i64, i64) = other
        .query_row("PRAGMA wal_checkpoint(RESTART)", [], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?))
        })
        .unwrap();
    assert!(moved.0 == 0 && moved.1 == moved.2, "{moved:?}");
    other
        .execute_batch("UPDATE calls SET began_at = began_at + 1;")
        .unwrap();
    drop(other);
    let size = path.metadata().unwrap().len();
    assert!(size >= 6 * 4096, "{size}");
    spoil(&path, 4096, usize::try_from(size).unwrap() - 4096);

    let load = Load::new(&scene.orders, "QC", 20);
    load.send(&amqp).await;
    let red = red_ledger(&worker).await;
    assert!(
        red["remedy"]
            .as_str()
            .unwrap()
            .contains("restore a back-up"),
        "{red}"
    );
    let told = stands_still(&scene, &load, &mut results, &mut worker).await;
    assert!(told.is_empty(), "{told:?}");
    assert_eq!(scene.sent(&load), 0);
    assert_eq!(
        lines(&worker, "cannot be trusted").len(),
        1,
        "{}",
        worker.log()
    );
    assert_eq!(worker.terminate(SOON).await, 2);

    let mut worker = scene.setup.start();
    let said = refuses_to_start(&mut worker, &path).await;
    assert!(said.contains("ledger restore"), "{said}");
    let (code, said) = run(&scene, &["ledger", "restore", copy.to_str().unwrap()]).await;
    assert_eq!(code, 0, "{said}");
    let _worker = scene.worker().await;
    load.is_told(&mut results, LATER).await;
    for order in load.orders() {
        // What was in hand is looked up first; a shipped one need not be sent then.
        assert!(scene.orders.times_sent(order) <= 1, "{order}");
    }
    before.send(&amqp).await;
    for message in before.is_told(&mut results, LATER).await {
        assert_eq!(message.body["replayed"], true, "{message:#?}");
    }
}

#[tokio::test]
async fn a_worker_whose_ledger_takes_no_writes_can_be_stopped() {
    let scene = Scene::fresh().await;
    let amqp = scene.amqp().await;
    let mut results = amqp.results().await;
    let mut worker = scene.worker().await;
    worker.wait_ready(LATER).await;
    let other = Connection::open(ledger_of(&scene)).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    // It is rejected and told without the ledger, and yet the journal is to say that it came.
    let rejected = Command::orders(["QC1"]).field("account", "nobody");
    amqp.send(&rejected).await;
    results.collect(1, LATER).await;
    assert_eq!(worker.terminate(LATER).await, 0, "{}", worker.log());
    other.execute_batch("COMMIT").unwrap();
}

#[tokio::test]
async fn a_ledger_that_is_removed_under_a_running_worker_stops_everything() {
    let scene = Scene::fresh().await;
    let amqp = scene.amqp().await;
    let mut results = amqp.results().await;
    let mut worker = scene.worker().await;
    let path = ledger_of(&scene);
    std::fs::rename(&path, scene.setup.dir().join("elsewhere")).unwrap();
    let red = red_ledger(&worker).await;
    assert!(
        red["cause"]
            .as_str()
            .unwrap()
            .contains("removed or replaced"),
        "{red}"
    );
    let load = Load::new(&scene.orders, "QC", 5);
    load.send(&amqp).await;
    let told = stands_still(&scene, &load, &mut results, &mut worker).await;
    assert!(told.is_empty() && scene.sent(&load) == 0, "{told:?}");
}

// A disk that is found unfit at the start

#[tokio::test]
async fn a_full_disk_at_the_start_is_one_line() {
    if !may_mount("a full disk at the start is not tested") {
        return;
    }
    let scene = Scene::fresh().await;
    let folder = fresh_dir("mounted");
    let path = folder.join("ledger");
    let scene = scene.set("WDT_LEDGER__URL", path.display());
    let full = "mount -t tmpfs -o size=64k tmpfs \"$0\"; cat /dev/zero > \"$0/filler\" 2>/dev/null || true";
    let mut worker = on(&scene, full, &folder);
    let said = refuses_to_start(&mut worker, &path).await;
    assert!(said.contains("full") || said.contains("No space"), "{said}");
    let read_only = "mount -t tmpfs tmpfs \"$0\"; touch \"$0/ledger\"; mount -o remount,ro \"$0\"";
    let mut worker = on(&scene, read_only, &folder);
    let said = refuses_to_start(&mut worker, &path).await;
    assert!(said.contains("can only be read"), "{said}");
    assert_eq!(scene.gateway.requests().len(), 0);
}

#[tokio::test]
async fn a_damaged_ledger_is_not_started_with() {
    let scene = Scene::fresh().await;
    let amqp = scene.amqp().await;
    let mut results = amqp.results().await;
    let mut worker = scene.worker().await;
    let load = Load::new(&scene.orders, "QC", 60);
    load.send(&amqp).await;
    load.is_told(&mut results, LATER).await;
    scene.queue_is_empty().await;
    assert_eq!(worker.terminate(SOON).await, 0);
    let whole = ledger_of(&scene);
    let size = whole.metadata().unwrap().len();
    assert!(size >= 6 * 4096, "a few pages: {size}");
    let calls = scene.gateway.requests().len();

    let mut rng = chance();
    let page = |rng: &mut fastrand::Rng| rng.u64(1..size / 4096) * 4096;
    let cut = |path: &Path, size| {
        let file = std::fs::File::options().write(true).open(path).unwrap();
        file.set_len(size).unwrap();
    };
    let mut damages: Vec<(String, Damage)> = vec![
        (
            "half is missing".into(),
            Box::new(move |p| cut(p, size / 2 / 4096 * 4096)),
        ),
        (
            "half a page is missing".into(),
            Box::new(move |p| cut(p, size - 2048)),
        ),
        (
            "the header is garbage".into(),
            Box::new(|p| spoil(p, 0, 100)),
        ),
        (
            "the first page is garbage".into(),
            Box::new(|p| spoil(p, 100, 3996)),
        ),
        (
            "all of it is zeroes".into(),
            Box::new(move |p| {
                std::fs::write(p, vec![0; usize::try_from(size).unwrap()]).unwrap();
            }),
        ),
        (
            "it is empty".into(),
            Box::new(|p| std::fs::write(p, "").unwrap()),
        ),
        (
            "it is gone".into(),
            Box::new(|p| std::fs::remove_file(p).unwrap()),
        ),
    ];
    for _ in 0..4 {
        let at = page(&mut rng);
        damages.push((
            format!("the page at {at} is garbage"),
            Box::new(move |p| spoil(p, at, 4096)),
        ));
    }
    for (what, damage) in damages {
        let path = copy_of(&whole, &["", ".lock"]);
        damage(&path);
        let said = does_not_start(&scene, &path).await;
        eprintln!("{what}: {said}");
        assert!(said.contains("ledger restore"), "{what}: {said}");
    }
    assert_eq!(scene.gateway.requests().len(), calls);
    results.stays_empty(Duration::from_secs(1)).await;
}

#[tokio::test]
async fn a_ledger_that_knew_more_once_is_not_started_with() {
    let scene = Scene::fresh().await;
    let amqp = scene.amqp().await;
    let mut results = amqp.results().await;
    let mut worker = scene.worker().await;
    let early = Load::new(&scene.orders, "EARLY", 10);
    early.send(&amqp).await;
    early.is_told(&mut results, LATER).await;
    scene.queue_is_empty().await;
    let path = ledger_of(&scene);
    // Copied by hand, while nothing was written.
    let old = copy_of(&path, &["", "-wal"]);
    let late = Load::new(&scene.orders, "LATE", 20);
    late.send(&amqp).await;
    late.is_told(&mut results, LATER).await;
    scene.queue_is_empty().await;
    worker.kill9();
    let calls = scene.gateway.requests().len();

    let log_size = beside(&path, "-wal").metadata().unwrap().len();
    let damages: [(&str, Damage); 5] = [
        (
            "no log",
            Box::new(|p| std::fs::remove_file(beside(p, "-wal")).unwrap()),
        ),
        (
            "a log of zeroes",
            Box::new(move |p| {
                let zeroes = vec![0; usize::try_from(log_size).unwrap()];
                std::fs::write(beside(p, "-wal"), zeroes).unwrap();
            }),
        ),
        (
            "a log with a hole in the middle",
            Box::new(move |p| {
                spoil(&beside(p, "-wal"), log_size / 2, 4096);
            }),
        ),
        (
            "an older log",
            Box::new({
                let old = old.clone();
                move |p| {
                    std::fs::copy(beside(&old, "-wal"), beside(p, "-wal")).unwrap();
                }
            }),
        ),
        (
            "an older copy",
            Box::new(move |p| {
                for ending in ["", "-wal"] {
                    std::fs::copy(beside(&old, ending), beside(p, ending)).unwrap();
                }
            }),
        ),
    ];
    for (what, damage) in damages {
        let path = copy_of(&path, &["", "-wal", ".lock"]);
        damage(&path);
        let said = does_not_start(&scene, &path).await;
        eprintln!("{what}: {said}");
        assert!(said.contains("ledger restore"), "{what}: {said}");
    }
    assert_eq!(scene.gateway.requests().len(), calls);

    // As it was left by the kill it is good.
    let _worker = scene.worker().await;
    late.send(&amqp).await;
    for message in late.is_told(&mut results, LATER).await {
        assert_eq!(message.body["replayed"], true, "{message:#?}");
    }
}

// Names and locks

#[tokio::test]
async fn a_ledger_has_one_worker_whatever_it_is_called() {
    let scene = Scene::fresh().await;
    let path = ledger_of(&scene);
    let link = fresh_dir("links").join("link");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    // The first one comes by a link that leads nowhere yet.
    let mut first = scene.setup.with("WDT_LEDGER__URL", link.display()).start();
    first.wait_ready(LATER).await;
    assert!(path.exists() && beside(&path, "-wal").exists());
    let mut second = scene.setup.start();
    let said = refuses_to_start(&mut second, &path).await;
    assert!(said.contains("in use by another worker"), "{said}");
    first.signal(Signal::STOP);
    let mut second = scene.setup.start();
    let said = refuses_to_start(&mut second, &path).await;
    assert!(
        said.contains("in use by another worker"),
        "a frozen one: {said}"
    );
    first.signal(Signal::CONT);
    first.kill9();

    let mut second = scene.setup.with("WDT_LEDGER__URL", link.display()).start();
    second.wait_ready(LATER).await;
    let hard = scene.setup.dir().join("hard");
    std::fs::hard_link(&path, &hard).unwrap();
    let mut third = scene.setup.with("WDT_LEDGER__URL", hard.display()).start();
    let said = refuses_to_start(&mut third, &hard).await;
    assert!(said.contains("2 names"), "{said}");
    assert!(second.is_running());
}

// Helpers

fn on(scene: &Scene, script: &str, folder: &Path) -> Worker {
    let command = own_mount(script, folder);
    let command: Vec<&str> = command.iter().map(String::as_str).collect();
    scene.setup.start_through(&command, &["run"])
}

/// Writes until there is no room.
fn fill(path: &Path) {
    let mut file = std::fs::File::create(path).unwrap();
    for piece in [64 * 1024, 512] {
        while file.write_all(&vec![7; piece]).is_ok() {}
    }
}

/// Random bytes at this place; they are never what was there.
fn spoil(path: &Path, at: u64, length: usize) {
    let file = std::fs::File::options().write(true).open(path).unwrap();
    let mut bytes = vec![0; length];
    fastrand::Rng::with_seed(at).fill(&mut bytes);
    file.write_all_at(&bytes, at).unwrap();
}

/// The ledger with these neighbours, in a folder of its own.
fn copy_of(path: &Path, endings: &[&str]) -> PathBuf {
    let copy = fresh_dir("copy").join("ledger");
    for ending in endings {
        std::fs::copy(beside(path, ending), beside(&copy, ending)).unwrap();
    }
    copy
}

async fn does_not_start(scene: &Scene, path: &Path) -> String {
    let setup = scene.setup.with("WDT_LEDGER__URL", path.display());
    refuses_to_start(&mut setup.start(), path).await
}

/// What is told until everything on its way has come to rest; then nothing moves any more, though
/// commands wait and the worker lives.
async fn stands_still(
    scene: &Scene,
    load: &Load,
    results: &mut Inbox,
    worker: &mut Worker,
) -> BTreeSet<(String, String)> {
    let mut told = BTreeSet::new();
    while let Some(message) = results.next(Duration::from_secs(1)).await {
        told.insert(load.check(&message));
    }
    let sent = scene.sent(load);
    results.stays_empty(WHILE).await;
    assert_eq!(scene.sent(load), sent);
    let queue = scene.vhost.queue(COMMANDS).await.unwrap();
    assert!(told.len() < load.commands().len(), "{queue:?}");
    assert!(worker.is_running());
    red_ledger(worker).await;
    told
}

/// What was told or sent is in the file, as anyone can read it.
fn recorded(ledger: &Connection, scene: &Scene, load: &Load, told: &BTreeSet<(String, String)>) {
    for (command, order) in told {
        let row = format!("command_id = '{command}' AND order_no = '{order}'");
        assert_eq!(count(ledger, "results", &row), 1, "told: {order}");
    }
    for order in load.orders() {
        if scene.orders.times_sent(order) > 0 {
            let row = format!("order_no = '{order}' AND state IN (1, 2)");
            assert_eq!(count(ledger, "orders", &row), 1, "sent: {order}");
        }
    }
}
