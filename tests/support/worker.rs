//! The real worker, as its users run it: the binary, an environment, signals and HTTP.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::eventually::{eventually, eventually_ok};
use super::gateway::Account;
use super::process::{PATH, Process, Signal, free_port, fresh_dir};

/// The binary under test.
const BINARY: &str = env!("CARGO_BIN_EXE_wdt-cancel-worker");
/// One answer of the admin port. It answers from memory.
const HTTP_LIMIT: Duration = Duration::from_secs(5);
/// The worker notices the slowest trouble, a frozen peer, after two heartbeats.
const RED_LIMIT: Duration = Duration::from_secs(90);
/// The largest answer of the admin port that is read.
const MAX_ANSWER: u64 = 16 * 1024 * 1024;

/// The settings of a worker and a directory that outlives it: workers started one after another
/// from the same setup share the ledger, as after a crash.
pub struct Setup {
    dir: PathBuf,
    binary: PathBuf,
    vars: BTreeMap<String, String>,
}

impl Setup {
    /// The contract's defaults, this broker, this gateway, the account `default`, and a ledger in a
    /// fresh directory.
    pub fn new(amqp_url: &str, gateway_url: &str) -> Self {
        let dir = fresh_dir("worker");
        let ledger = dir.join("ledger").display().to_string();
        Self {
            dir,
            binary: BINARY.into(),
            vars: BTreeMap::new(),
        }
        .set("WDT_AMQP__URL", amqp_url)
        .set("WDT_API__URL", gateway_url)
        .set("WDT_LEDGER__URL", &ledger)
        .account("default", &Account::named("default"))
    }

    /// Sets an environment variable, `WDT_SECTION__KEY` or any other.
    pub fn set(mut self, name: &str, value: impl ToString) -> Self {
        self.vars.insert(name.into(), value.to_string());
        self
    }

    /// A copy with another setting; the directory is the same.
    pub fn with(&self, name: &str, value: impl ToString) -> Self {
        Self {
            dir: self.dir.clone(),
            binary: self.binary.clone(),
            vars: self.vars.clone(),
        }
        .set(name, value)
    }

    /// Another build of the worker.
    pub fn binary(mut self, path: &Path) -> Self {
        self.binary = path.into();
        self
    }

    /// Without this variable.
    pub fn without(mut self, name: &str) -> Self {
        self.vars.remove(name);
        self
    }

    /// Adds or replaces an account's credentials.
    pub fn account(self, name: &str, account: &Account) -> Self {
        let prefix = format!("WDT_ACCOUNTS__{}", name.to_uppercase());
        self.set(&format!("{prefix}__SID"), &account.sid)
            .set(&format!("{prefix}__KEY"), &account.key)
            .set(&format!("{prefix}__SECRET"), account.app_secret())
    }

    /// The directory with the ledger.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Starts `wdt-cancel-worker run`.
    pub fn start(&self) -> Worker {
        self.start_with(&["run"])
    }

    /// Starts `wdt-cancel-worker` with these arguments.
    pub fn start_with(&self, args: &[&str]) -> Worker {
        self.start_through(&[], args)
    }

    /// Starts it by a command that sets something up and becomes the program that follows it.
    pub fn start_through(&self, command: &[&str], args: &[&str]) -> Worker {
        let admin = free_port();
        let listen = format!("127.0.0.1:{admin}");
        let mut vars = self.vars.clone();
        vars.entry("WDT_ADMIN__LISTEN".into()).or_insert(listen);
        self.start_as(command, args, vars, admin)
    }

    /// Starts `run` through such a command, with nothing said of where the admin listener is.
    pub fn start_with_default_listener(&self, command: &[&str]) -> Worker {
        self.start_as(command, &["run"], self.vars.clone(), 9464)
    }

    fn start_as(
        &self,
        command: &[&str],
        args: &[&str],
        mut vars: BTreeMap<String, String>,
        admin: u16,
    ) -> Worker {
        // The developer's own shell must not decide anything.
        for (name, value) in [("PATH", PATH), ("RUST_BACKTRACE", "1")] {
            vars.entry(name.into()).or_insert_with(|| value.into());
        }
        let vars: Vec<_> = vars.into_iter().collect();
        let log = self.dir.join(format!("worker-{admin}.log"));
        Worker {
            process: {
                let binary = self.binary.to_str().expect("a path in UTF-8");
                let line = [command, &[binary], args].concat();
                let what = format!("worker {args:?}");
                Process::start(&what, line[0], &line[1..], &vars, &log)
            },
            admin,
        }
    }
}

/// A running worker. It is killed with its value; when the test fails, its last words are shown.
pub struct Worker {
    process: Process,
    admin: u16,
}

impl Worker {
    /// Waits until `/readyz` says 200; panics with the last answer when the limit passes, and at
    /// once when the worker has ended.
    pub async fn wait_ready(&mut self, limit: Duration) {
        let (process, admin) = (&mut self.process, self.admin);
        eventually_ok(limit, "/readyz says 200", async || {
            if let Some(status) = process.ended() {
                panic!("the worker ended with {status}:\n{}", process.log_tail());
            }
            match get(admin, "/readyz").await {
                Some((200, _)) => Ok(()),
                other => Err(other),
            }
        })
        .await;
    }

    /// One page of the admin port: status and body. `None` when nobody answers.
    pub async fn get(&self, path: &str) -> Option<(u16, String)> {
        get(self.admin, path).await
    }

    /// `/readyz` as status and JSON.
    pub async fn readiness(&self) -> Option<(u16, Value)> {
        let (status, body) = self.get("/readyz").await?;
        Some((status, serde_json::from_str(&body).unwrap_or(Value::Null)))
    }

    /// Waits until readiness is red because of this check; what the check says.
    pub async fn not_ready(&self, check: &str) -> String {
        eventually_ok(RED_LIMIT, &format!("{check} is red"), async || {
            let Some((status, page)) = self.readiness().await else {
                return Err(Value::Null);
            };
            let checks = page["checks"].as_array().cloned().unwrap_or_default();
            let red = checks
                .into_iter()
                .find(|c| c["name"] == check && c["state"] == "failing");
            match red {
                Some(red) if status == 503 => Ok(red.to_string()),
                _ => Err(page),
            }
        })
        .await
    }

    /// The lines it has printed that contain this.
    pub fn lines(&self, part: &str) -> Vec<String> {
        let log = self.log();
        let found = log.lines().filter(|line| line.contains(part));
        found.map(Into::into).collect()
    }

    /// A metric's value by the whole left side of its line, such as `name{label="x"}`.
    pub async fn metric(&self, series: &str) -> Option<f64> {
        let (_, text) = self.get("/metrics").await?;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '))?;
        line.split(' ').next()?.parse().ok()
    }

    /// The admin listener's port.
    pub fn admin(&self) -> u16 {
        self.admin
    }

    /// Waits for its end, however it ends.
    pub async fn wait_ended(&mut self, limit: Duration) {
        self.process.end_within(limit).await;
    }

    /// The process id.
    pub fn pid(&self) -> i32 {
        self.process.pid()
    }

    /// True while the process lives.
    pub fn is_running(&mut self) -> bool {
        self.process.ended().is_none()
    }

    /// Sends a signal.
    pub fn signal(&mut self, signal: Signal) {
        self.process.signal(signal);
    }

    /// SIGTERM; the exit code, within the limit. Panics when a signal ended it instead.
    pub async fn terminate(&mut self, limit: Duration) -> i32 {
        self.signal(Signal::TERM);
        self.exit_code(limit).await
    }

    /// The exit code of a worker that ends by itself, within the limit.
    pub async fn exit_code(&mut self, limit: Duration) -> i32 {
        let status = self.process.end_within(limit).await;
        let code = status.code();
        code.unwrap_or_else(|| panic!("it {status}:\n{}", self.process.log_tail()))
    }

    /// How it ended, if it did.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.process.ended()
    }

    /// SIGKILL; returns when it is gone.
    pub fn kill9(&mut self) {
        self.process.kill9();
    }

    /// Everything it has printed, stdout and stderr.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Waits until a line that contains this has been printed; returns the line.
    pub async fn logs(&self, limit: Duration, part: &str) -> String {
        eventually(limit, &format!("the worker logs {part:?}"), async || {
            let log = self.log();
            log.lines().find(|line| line.contains(part)).map(Into::into)
        })
        .await
    }
}

/// Gets a page from a port of this machine. HTTP/1.0: the body then ends with the connection.
pub async fn get(port: u16, path: &str) -> Option<(u16, String)> {
    let answer = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
        let request = format!("GET {path} HTTP/1.0\r\nhost: localhost\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream
            .take(MAX_ANSWER)
            .read_to_string(&mut answer)
            .await
            .ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some((status, body.to_string()))
    };
    timeout(HTTP_LIMIT, answer).await.ok()?
}
