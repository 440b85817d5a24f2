//! What is measured: a process that works off the commands.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use crate::bare::Kind;
use crate::gateway::Gateway;
use crate::load::Shape;
use crate::support::broker::Vhost;
use crate::support::eventually::eventually;
use crate::support::gateway::Account;
use crate::support::process::{PATH, Process, fresh_dir};
use crate::support::worker::{Setup, Worker};
use crate::usage::{cpu_seconds, peak_mib};

const START_LIMIT: Duration = Duration::from_secs(60);

/// Who works off the load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// A loop of this program, without a gateway.
    Loop(Kind),
    /// The worker as shipped.
    Worker,
    /// Another program.
    Peer(Arc<Peer>),
}

/// A program that does the worker's job and takes what it needs from the environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    name: String,
    command: Vec<String>,
}

impl FromStr for Peer {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, command) = text.split_once('=').ok_or("it reads NAME=PROGRAM ARG…")?;
        let command: Vec<String> = command.split_whitespace().map(Into::into).collect();
        if command.is_empty() {
            return Err("the program is missing");
        }
        Ok(Self {
            name: name.into(),
            command,
        })
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Loop(Kind::Bare) => "bare",
            Self::Loop(Kind::Grouped) => "grouped",
            Self::Worker => "worker",
            Self::Peer(peer) => &peer.name,
        })
    }
}

/// A subject at work, and what it needs.
pub struct Running {
    program: Program,
    /// Ends after the program.
    pub gateway: Option<Gateway>,
}

enum Program {
    Other(Process),
    Workers(Vec<Worker>),
}

impl Running {
    /// Starts the gateway, if the subject calls one, and then the subject.
    pub async fn start(subject: &Subject, vhost: &Vhost, shape: &Shape) -> Self {
        let accounts: Vec<Account> = shape.accounts().map(|name| Account::named(&name)).collect();
        let gateway = match subject {
            Subject::Loop(_) => None,
            Subject::Worker | Subject::Peer(_) => {
                Some(Gateway::start(shape.gateway, shape.latency, &accounts).await)
            }
        };
        let program = match (subject, &gateway) {
            (Subject::Worker, Some(gateway)) => {
                let setup = settings(vhost, gateway, shape);
                Program::Workers((0..shape.workers).map(|_| setup.start()).collect())
            }
            (Subject::Peer(peer), Some(gateway)) => {
                Program::Other(start_peer(peer, vhost, gateway, shape))
            }
            (Subject::Loop(kind), _) => Program::Other(start_loop(*kind, &vhost.url())),
            (Subject::Worker | Subject::Peer(_), None) => unreachable!("both have a gateway"),
        };
        Self { program, gateway }
    }

    /// User and system time of all its processes, in seconds.
    pub fn cpu_seconds(&self) -> f64 {
        self.pids().into_iter().map(cpu_seconds).sum()
    }

    /// The most memory that one of its processes has held, in MiB.
    pub fn peak_mib(&self) -> f64 {
        self.pids().into_iter().map(peak_mib).fold(0.0, f64::max)
    }

    fn pids(&self) -> Vec<i32> {
        match &self.program {
            Program::Other(process) => vec![process.pid()],
            Program::Workers(workers) => workers.iter().map(Worker::pid).collect(),
        }
    }
}

/// The worker as shipped, but for the calls a minute and what the load asks for.
pub fn settings(vhost: &Vhost, gateway: &Gateway, shape: &Shape) -> Setup {
    let setup = Setup::new(&vhost.url(), &gateway.url()).set(
        "WDT_API__CALLS_PER_MINUTE",
        shape.gateway.calls_per_minute(),
    );
    let setup = shape.accounts().fold(setup, |setup, name| {
        setup.account(&name, &Account::named(&name))
    });
    let settings = shape.settings.iter();
    settings.fold(setup, |setup, (name, value)| setup.set(name, value))
}

fn start_loop(kind: Kind, url: &str) -> Process {
    let program = std::env::current_exe().unwrap();
    let kind = match kind {
        Kind::Bare => "bare",
        Kind::Grouped => "grouped",
    };
    let log = fresh_dir("loop").join("log");
    let env = [("PATH".to_owned(), PATH.to_owned())];
    Process::start(kind, program, &["loop", kind, url], &env, &log)
}

fn start_peer(peer: &Peer, vhost: &Vhost, gateway: &Gateway, shape: &Shape) -> Process {
    let account = Account::named(&Shape::account(0));
    let calls_per_minute = shape.gateway.calls_per_minute();
    let env = [
        ("PATH", PATH.to_owned()),
        ("AMQP_URL", vhost.url()),
        ("API_URL", gateway.url()),
        ("API_SID", account.sid.clone()),
        ("API_KEY", account.key.clone()),
        ("API_SECRET", account.app_secret()),
        ("API_CALLS_PER_MINUTE", calls_per_minute.to_string()),
    ]
    .map(|(name, value)| (name.to_owned(), value));
    let (program, args) = peer.command.split_first().unwrap();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let log = fresh_dir("peer").join("log");
    Process::start(&peer.name, program, &args, &env, &log)
}

/// Waits until somebody consumes.
pub async fn consumes(vhost: &Vhost) {
    consume(vhost, 1).await;
}

/// Waits until so many consume.
pub async fn consume(vhost: &Vhost, count: usize) {
    eventually(START_LIMIT, "there are consumers", async || {
        (vhost.consumers().await.len() >= count).then_some(())
    })
    .await;
}
