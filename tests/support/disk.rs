//! The ledger's file and the disk under it, as a test looks at them and spoils them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};
use serde_json::Value;

use super::amqp::{Amqp, Command, Inbox, Message};
use super::eventually::eventually_ok;
use super::scene::{LATER, SOON, Scene, lines};
use super::worker::Worker;

/// The file of the scene's worker.
pub fn ledger_of(scene: &Scene) -> PathBuf {
    scene.setup.dir().join("ledger")
}

/// A file's neighbour, such as its `-wal`.
pub fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

/// A connection beside the worker's that reads what is committed.
pub fn read(path: &Path) -> Connection {
    let ledger = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    ledger.busy_timeout(SOON).expect("a time-out");
    ledger
}

/// How many rows.
pub fn count(ledger: &Connection, table: &str, condition: &str) -> i64 {
    let sql = format!("SELECT count(*) FROM {table} WHERE {condition}");
    ledger
        .query_row(&sql, [], |row| row.get(0))
        .unwrap_or_else(|error| panic!("{sql}: {error}"))
}

/// Sends a command; its events by their place.
pub async fn told(
    amqp: &Amqp,
    results: &mut Inbox,
    command: &Command,
    count: usize,
) -> Vec<Message> {
    amqp.send(command).await;
    let mut events = results.collect(count, LATER).await;
    events.sort_by_key(|event| event.body["index"].as_u64());
    events
}

/// What each event tells.
pub fn outcomes(events: &[Message]) -> Vec<String> {
    let words = |event: &Message| format!("{} {}", event.order_no(), event.outcome());
    events.iter().map(words).collect()
}

/// Waits for exit 1; the one line that says why, which names the file.
pub async fn refuses_to_start(worker: &mut Worker, path: &Path) -> String {
    assert_eq!(worker.exit_code(LATER).await, 1, "{}", worker.log());
    let said = lines(worker, "wdt-cancel-worker: ");
    assert_eq!(said.len(), 1, "not one line: {}", worker.log());
    assert!(said[0].contains(&path.display().to_string()), "{}", said[0]);
    said[0].clone()
}

/// Waits until readiness is 503 for the ledger's sake; that check, with cause and remedy.
pub async fn red_ledger(worker: &Worker) -> Value {
    let red = eventually_ok(LATER, "the ledger is red", async || {
        let Some((status, page)) = worker.readiness().await else {
            return Err(Value::Null);
        };
        let checks = page["checks"].as_array().cloned().unwrap_or_default();
        let red = checks
            .into_iter()
            .find(|c| c["name"] == "ledger" && c["state"] == "failing");
        match red {
            Some(red) if status == 503 => Ok(red),
            _ => Err(page),
        }
    })
    .await;
    for field in ["cause", "remedy", "since"] {
        let said = red[field].as_str().is_some_and(|words| !words.is_empty());
        assert!(said, "{field}: {red}");
    }
    red
}

/// Runs a subcommand to its end: its exit code, and what it printed.
pub async fn run(scene: &Scene, args: &[&str]) -> (i32, String) {
    let mut process = scene.setup.start_with(args);
    let code = process.exit_code(LATER).await;
    (code, process.log())
}

/// A file system of the worker's own, mounted where only the worker sees it: it goes when the
/// worker goes, however the test ends. `script` is run before the worker begins, with the folder
/// as `$0`.
pub fn own_mount(script: &str, folder: &Path) -> Vec<String> {
    let script = format!("set -e; {script}; exec \"$@\"");
    ["unshare", "--mount", "/bin/sh", "-c", &script]
        .map(str::to_owned)
        .into_iter()
        .chain([folder.display().to_string()])
        .collect()
}

/// A file in the worker's own file system, as the test reaches it.
pub fn inside(worker: &Worker, path: &Path) -> PathBuf {
    let path = path.strip_prefix("/").expect("an absolute path");
    Path::new("/proc")
        .join(worker.pid().to_string())
        .join("root")
        .join(path)
}

/// Whether this user may mount; says in a line what is not tested otherwise.
pub fn may_mount(else_not: &str) -> bool {
    let mut try_it = std::process::Command::new("unshare");
    try_it.args(["--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]);
    let may = super::process::run(&mut try_it, "", Duration::from_secs(10));
    if !may.status.success() {
        eprintln!("this user may not mount a file system: {else_not}");
    }
    may.status.success()
}
