//! The gateway of a run, in a process of its own.

use std::time::Duration;

use tokio::net::TcpStream;

use crate::double::CANCELS;
use crate::support::eventually::eventually;
use crate::support::gateway::Account;
use crate::support::process::{PATH, Process, free_port, fresh_dir};
use crate::support::worker::get;

const START_LIMIT: Duration = Duration::from_secs(30);
/// What the emulator prints of each cancel, and of one too many in a minute.
const CANCEL: &str = "cancelOrder";
const TOO_OFTEN: &str = "超过每分钟最大调用频率限制";

/// Which one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Answers at once and checks nothing.
    Double,
    /// The emulator that is shipped: it checks signatures, keeps books and allows this many calls
    /// a minute and account, 0 being no limit.
    Emulator { calls_per_minute: u32 },
}

impl Kind {
    /// Of each account; 0 is no limit.
    pub fn calls_per_minute(self) -> u32 {
        match self {
            Self::Double => 0,
            Self::Emulator { calls_per_minute } => calls_per_minute,
        }
    }
}

/// It answers until it is dropped.
pub struct Gateway {
    kind: Kind,
    process: Process,
    port: u16,
}

impl Gateway {
    /// Starts it, and waits until it listens. Only the emulator asks who calls.
    pub async fn start(kind: Kind, latency: Duration, accounts: &[Account]) -> Self {
        let port = free_port();
        let process = match kind {
            Kind::Double => start_double(port, latency),
            Kind::Emulator { calls_per_minute } => {
                start_emulator(port, latency, calls_per_minute, accounts)
            }
        };
        eventually(START_LIMIT, "the gateway listens", async || {
            TcpStream::connect(("127.0.0.1", port)).await.ok()
        })
        .await;
        Self {
            kind,
            process,
            port,
        }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/openapi", self.port)
    }

    pub fn pid(&self) -> i32 {
        self.process.pid()
    }

    /// Cancels so far, by the gateway's own count.
    pub async fn cancels(&self) -> u64 {
        match self.kind {
            Kind::Double => {
                let (_, count) = get(self.port, CANCELS).await.unwrap();
                count.parse().unwrap()
            }
            Kind::Emulator { .. } => self.printed(CANCEL),
        }
    }

    /// Calls so far that were one too many in a minute.
    pub fn too_often(&self) -> u64 {
        self.printed(TOO_OFTEN)
    }

    fn printed(&self, words: &str) -> u64 {
        let log = self.process.log();
        let lines = log.lines().filter(|line| line.contains(words));
        u64::try_from(lines.count()).unwrap()
    }
}

fn start_double(port: u16, latency: Duration) -> Process {
    let program = std::env::current_exe().unwrap();
    let (port, millis) = (port.to_string(), latency.as_millis().to_string());
    start("double", program, &["gateway", &port, &millis])
}

fn start_emulator(
    port: u16,
    latency: Duration,
    calls_per_minute: u32,
    accounts: &[Account],
) -> Process {
    let (first, others) = accounts.split_first().unwrap();
    let mut args = [
        "sandbox",
        "--listen",
        &format!("127.0.0.1:{port}"),
        "--latency",
        &format!("{}ms", latency.as_millis()),
        "--calls-per-minute",
        &calls_per_minute.to_string(),
        "--sid",
        &first.sid,
        "--key",
        &first.key,
        "--secret",
        &first.app_secret(),
    ]
    .map(str::to_owned)
    .to_vec();
    for account in others {
        let (sid, key, secret) = (&account.sid, &account.key, account.app_secret());
        args.extend(["--account".to_owned(), format!("{sid},{key},{secret}")]);
    }
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    start("sandbox", env!("CARGO_BIN_EXE_wdt-cancel-worker"), &args)
}

fn start(what: &str, program: impl AsRef<std::ffi::OsStr>, args: &[&str]) -> Process {
    let env = [("PATH".to_owned(), PATH.to_owned())];
    Process::start(what, program, args, &env, &fresh_dir(what).join("log"))
}
