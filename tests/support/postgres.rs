//! A PostgreSQL of the test's own: on the loopback address, on a port and in a directory of its own,
//! started from the installed package without touching the system's clusters. The recipe is in
//! `deploy/lib-postgres.sh`.
//!
//! [`Postgres::shared`] is one for the test process; a test takes a database of its own there.
//! [`Postgres::start`] is one that a test may stop, freeze and restart.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::process::{Pid, kill_process};
use tokio::sync::OnceCell;
use tokio_postgres::{Client, NoTls};

use super::eventually::eventually_ok;
use super::process::{self, PATH, Process, Signal, free_port, fresh_dir};

/// A start takes a second on two idle cores; beyond this it is broken.
const START_LIMIT: Duration = Duration::from_secs(120);
/// Making a cluster takes two seconds of an idle core.
const INIT_LIMIT: Duration = Duration::from_secs(120);
/// The recipe.
const LIB: &str = concat!(
    ". ",
    env!("CARGO_MANIFEST_DIR"),
    "/deploy/lib-broker.sh && . ",
    env!("CARGO_MANIFEST_DIR"),
    "/deploy/lib-postgres.sh && \"$0\" \"$@\""
);

/// A running database server. It ends with its value, and the shared one with the test process.
pub struct Postgres {
    // Dropped in this order: the files go when nobody writes them any more.
    server: Process,
    dir: PathBuf,
    port: u16,
    databases: AtomicU32,
}

impl Postgres {
    /// The one server of this test process, started by whoever asks first.
    pub async fn shared() -> &'static Self {
        static SHARED: OnceCell<Postgres> = OnceCell::const_new();
        SHARED.get_or_init(Self::start).await
    }

    /// A server of this test's own.
    pub async fn start() -> Self {
        let (dir, port) = (fresh_dir("postgres"), free_port());
        // As root the server is another user, who has to get there.
        let above = dir
            .parent()
            .expect("a directory for all of the test's files");
        std::fs::set_permissions(above, PermissionsExt::from_mode(0o711)).expect("let it pass");
        let mut bash = Command::new("bash");
        bash.args(["-c", LIB, "write_private_postgres"])
            .args([&dir.display().to_string(), &port.to_string()])
            .env_clear()
            .env("PATH", PATH);
        let made = tokio::task::spawn_blocking(move || process::run(&mut bash, "", INIT_LIMIT))
            .await
            .expect("make a database");
        assert!(
            made.status.success(),
            "PostgreSQL cannot be set up here, and this test needs it: run tests/run.sh, which installs it: {}",
            String::from_utf8_lossy(&made.stderr)
        );
        let mut postgres = Self {
            server: Self::boot(&dir),
            dir,
            port,
            databases: AtomicU32::new(0),
        };
        postgres.ready().await;
        postgres
    }

    fn boot(dir: &std::path::Path) -> Process {
        let log = dir.join("start.log");
        Process::start("postgres", dir.join("start"), &[], &[], &log)
    }

    async fn ready(&mut self) {
        let url = self.url("postgres");
        let server = &mut self.server;
        eventually_ok(START_LIMIT, "the database accepts", async || {
            if server.ended().is_some() {
                panic!("the database ended:\n{}", server.log_tail());
            }
            client(&url).await.map(drop)
        })
        .await;
    }

    /// Where a database of this name is.
    fn url(&self, database: &str) -> String {
        format!("postgres://wdt@127.0.0.1:{}/{database}", self.port)
    }

    /// The server's process; each connection has another, its child.
    pub fn pid(&self) -> i32 {
        self.server.pid()
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// A fresh database.
    pub async fn database(&self) -> Database {
        let number = self.databases.fetch_add(1, Ordering::Relaxed);
        let name = format!("test_{number}");
        let client = client(&self.url("postgres")).await.expect("connect");
        let create = format!("CREATE DATABASE {name}");
        client.batch_execute(&create).await.expect("a database");
        Database {
            url: self.url(&name),
            superuser: self.url("postgres"),
            name,
        }
    }

    /// The server with everything that belongs to it stops at once, as in a crash, without a word to
    /// its clients but the end of their connections. Returns when it is gone.
    pub async fn crash(&mut self) {
        self.server.signal(Signal::QUIT);
        self.server.end_within(START_LIMIT).await;
    }

    /// It is started again, with the same data on the same port; returns when it accepts.
    pub async fn revive(&mut self) {
        self.server = Self::boot(&self.dir);
        self.ready().await;
    }

    /// SIGSTOP to the server and all its sessions: it accepts nothing and answers nothing, until
    /// [`Self::thaw`].
    pub fn freeze(&mut self) {
        self.server.signal(Signal::STOP);
        self.signal_sessions(Signal::STOP);
    }

    /// SIGCONT.
    pub fn thaw(&mut self) {
        self.signal_sessions(Signal::CONT);
        self.server.signal(Signal::CONT);
    }

    fn signal_sessions(&self, signal: Signal) {
        let parent = format!("PPid:\t{}\n", self.server.pid());
        for entry in std::fs::read_dir("/proc").expect("processes").flatten() {
            let name = entry.file_name();
            let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            let status = std::fs::read_to_string(entry.path().join("status"));
            if status.is_ok_and(|status| status.contains(&parent))
                && let Some(pid) = Pid::from_raw(pid)
            {
                // It may just have ended.
                let _ = kill_process(pid, signal);
            }
        }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // Its sessions end when it is gone, but for those that are frozen.
        if self.server.ended().is_none() {
            self.signal_sessions(Signal::KILL);
        }
        self.server.kill9();
        // The watchdog removes what is left.
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// A database of the test's own.
#[derive(Debug, Clone)]
pub struct Database {
    url: String,
    superuser: String,
    name: String,
}

impl Database {
    /// On the server that is shared by this test process.
    pub async fn fresh() -> Self {
        Postgres::shared().await.database().await
    }

    /// What `ledger.url` is set to.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The same for another user, who has no password.
    pub fn url_of(&self, user: &str) -> String {
        self.url.replace("wdt@", &format!("{user}@"))
    }

    /// A connection.
    pub async fn client(&self) -> Client {
        client(&self.url).await.expect("connect to the database")
    }

    /// Does this as the superuser, from another database.
    pub async fn order(&self, sql: &str) {
        let client = client(&self.superuser).await.expect("connect");
        client.batch_execute(sql).await.expect(sql);
    }

    /// The only value that this asks for.
    pub async fn number(&self, sql: &str) -> i64 {
        let client = self.client().await;
        client.query_one(sql, &[]).await.expect(sql).get(0)
    }

    /// Does this.
    pub async fn run(&self, sql: &str) {
        self.client().await.batch_execute(sql).await.expect(sql);
    }
}

async fn client(url: &str) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    // It ends with its client.
    tokio::spawn(async move { drop(connection.await) });
    Ok(client)
}
