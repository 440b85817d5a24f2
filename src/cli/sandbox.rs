//! `sandbox`: the gateway's emulator, until it is told to stop.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use anyhow::Context as _;

use crate::gateway::sandbox::fault::{Fault, PREFIXES, Rate};
use crate::gateway::sandbox::{Account, Options, Sandbox};
use crate::gateway::sign::AppSecret;

/// Emulate the gateway, for trying things out and for tests
///
/// Answers cancelOrder, queryWithDetail and system.Core.now. Checks method, signature, timestamp
/// and shape like the real gateway, remembers what was cancelled, and plays faults: those that an
/// order's number asks for by its beginning (see the table below) and those that strike by chance
/// (--fault). Prints each call in one line. Nothing is stored; a restart forgets everything.
#[derive(clap::Args, Clone)]
#[command(verbatim_doc_comment, after_help = prefixes_help())]
pub struct Args {
    /// Where to listen
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8089")]
    pub listen: SocketAddr,

    /// The seller that may call
    #[arg(long, default_value = "demo_sid")]
    pub sid: String,

    /// The seller's app key
    #[arg(long, default_value = "demo-app-key")]
    pub key: String,

    /// The seller's app secret
    #[arg(
        long,
        value_name = "SECRET:SALT",
        default_value = "testsecret:testsalt"
    )]
    pub secret: String,

    /// One more seller that may call; can be repeated
    #[arg(long = "account", value_name = "SID,KEY,SECRET:SALT")]
    pub accounts: Vec<Credentials>,

    /// A fault that strikes by chance; can be repeated
    #[arg(long = "fault", value_name = "FAULT=RATE", long_help = faults_help())]
    pub faults: Vec<Rate>,

    /// Makes chance repeatable [default: a fresh one, printed at start]
    #[arg(long, value_name = "NUMBER")]
    pub seed: Option<u64>,

    /// How many times a prefix plays its fault
    #[arg(long, value_name = "TIMES", default_value_t = 1)]
    pub fault_times: u32,

    /// How long a slow answer takes
    #[arg(long, value_name = "DURATION", default_value = "35s", value_parser = duration)]
    pub slow: Duration,

    /// How long every other answer takes
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = duration)]
    pub latency: Duration,

    /// Calls in a minute by sid and key; 0 is no limit
    #[arg(long, value_name = "CALLS", default_value_t = 60)]
    pub calls_per_minute: u32,

    /// Calls at a time by sid and key; 0 is no limit
    #[arg(long, value_name = "CALLS", default_value_t = 0)]
    pub concurrency: u32,

    /// The longest list in one call
    ///
    /// A longer one is refused as a whole. The platform does not publish its own bound.
    #[arg(long, value_name = "ORDERS", default_value_t = 20)]
    pub max_orders_per_call: usize,

    /// How far the gateway's clock is ahead of this machine's
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 0,
        allow_negative_numbers = true
    )]
    pub clock_offset: i64,

    /// Refuse to look orders up, as for an account without the permission
    #[arg(long)]
    pub no_query_permission: bool,

    /// How many orders are remembered by sid
    ///
    /// Beyond that the oldest is forgotten; named again, it is as good as new.
    #[arg(long, value_name = "ORDERS", default_value_t = 1_000_000)]
    pub remembered_orders: usize,
}

/// One seller as `--account` gives it.
#[derive(Clone)]
pub struct Credentials {
    sid: String,
    key: String,
    secret: String,
}

impl Credentials {
    fn account(&self) -> anyhow::Result<Account> {
        let secret = AppSecret::parse(&self.secret)
            .with_context(|| format!("the app secret of sid {}", self.sid))?;
        Ok(Account {
            sid: self.sid.clone(),
            key: self.key.clone(),
            secret,
        })
    }
}

impl FromStr for Credentials {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts: Vec<&str> = text.splitn(3, ',').collect();
        match parts[..] {
            [sid, key, secret] if !sid.is_empty() && !key.is_empty() && secret.contains(':') => {
                Ok(Self {
                    sid: sid.to_owned(),
                    key: key.to_owned(),
                    secret: secret.to_owned(),
                })
            }
            _ => Err("it reads SID,KEY,SECRET:SALT"),
        }
    }
}

/// Serves until Ctrl-C or SIGTERM.
///
/// # Errors
/// When the arguments contradict themselves or the address cannot be listened on.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let mut credentials = vec![Credentials {
        sid: args.sid,
        key: args.key,
        secret: args.secret,
    }];
    credentials.extend(args.accounts);
    let accounts = credentials
        .iter()
        .map(Credentials::account)
        .collect::<anyhow::Result<_>>()?;
    // Ten digits are enough to repeat a run and few enough to type.
    let seed = args.seed.unwrap_or_else(|| fastrand::u32(..).into());
    // Before the first line is printed: whoever waits for that line may stop us right after it.
    let stop = Stop::new()?;
    let running = Sandbox::start(Options {
        listen: args.listen,
        accounts,
        faults: args.faults,
        seed,
        fault_times: args.fault_times,
        slow: args.slow,
        latency: args.latency,
        calls_per_minute: args.calls_per_minute,
        concurrency: args.concurrency,
        max_orders_per_call: args.max_orders_per_call,
        clock_offset_seconds: args.clock_offset,
        query_permission: !args.no_query_permission,
        remembered_orders: args.remembered_orders,
        out: Box::new(std::io::stdout()),
    })
    .await?;
    let hello = hello(&running.url(), &credentials, seed);
    // Whoever closed our output may still want the gateway.
    let _ = std::io::stdout().write_all(hello.as_bytes());

    stop.asked().await;
    running.stop().await;
    Ok(())
}

/// What a person or a shell needs to point the worker here.
fn hello(url: &str, credentials: &[Credentials], seed: u64) -> String {
    let mut text = format!("The sandbox listens (seed {seed}). To point the worker at it:\n\n");
    let mut export = |name: &str, value: &str| {
        let _ = writeln!(text, "export {name}={}", quoted(value));
    };
    export("WDT_API__URL", url);
    for (index, seller) in credentials.iter().enumerate() {
        let name = match index {
            0 => "DEFAULT".to_owned(),
            _ => format!("ACCOUNT{}", index + 1),
        };
        export(&format!("WDT_ACCOUNTS__{name}__SID"), &seller.sid);
        export(&format!("WDT_ACCOUNTS__{name}__KEY"), &seller.key);
        export(&format!("WDT_ACCOUNTS__{name}__SECRET"), &seller.secret);
    }
    text.push('\n');
    text
}

/// A value as a POSIX shell reads it back.
fn quoted(value: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-.:/@,+[]".contains(c);
    if value.chars().all(plain) {
        value.to_owned()
    } else {
        format!("'{}'", value.replace('\'', r"'\''"))
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    text.parse::<jiff::SignedDuration>()
        .ok()
        .and_then(|duration| Duration::try_from(duration).ok())
        .ok_or_else(|| "a duration reads 35s, 500ms or 1m30s".to_owned())
}

fn faults_help() -> String {
    let of = |kind: fn(&Fault) -> bool| {
        let those = Fault::ALL.into_iter().filter(kind);
        those.map(Fault::as_str).collect::<Vec<_>>().join(", ")
    };
    format!(
        "A fault that strikes by chance, with its rate from 0 to 1, e.g. lost=0.05; can be repeated\n\
         \n\
         Calls are struck by {calls}.\n\
         Orders are struck in a cancel by {orders}, and for good by {lasting}.",
        calls = of(|fault| matches!(fault, Fault::Call(_))),
        orders = of(|fault| matches!(fault, Fault::Order(_))),
        lasting = of(|fault| matches!(fault, Fault::Lasting(_))),
    )
}

fn prefixes_help() -> String {
    let mut text = "What an order's number asks for by its beginning:\n".to_owned();
    for (prefix, _, meaning) in PREFIXES {
        let _ = writeln!(text, "  {prefix:<9} {meaning}");
    }
    text.push_str(
        "\nEvery other number is an order in state 20 (已审核), which can be cancelled once; cancelling\n\
         it again is refused for its state, as for one that was shipped. From BUSY- downwards a fault\n\
         plays the first time that a cancel names the order (--fault-times), then the order is an\n\
         ordinary one. Lookups meet only faults that strike by chance.",
    );
    text
}

/// The signals that end the sandbox, listened for from `new` on.
#[cfg(unix)]
struct Stop {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Stop {
    fn new() -> anyhow::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            interrupt: signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?,
            terminate: signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?,
        })
    }

    async fn asked(mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// Where there are no signals: Ctrl-C.
#[cfg(windows)]
struct Stop(tokio::signal::windows::CtrlC);

#[cfg(windows)]
impl Stop {
    fn new() -> anyhow::Result<Self> {
        tokio::signal::windows::ctrl_c()
            .map(Self)
            .context("cannot listen for Ctrl-C")
    }

    async fn asked(mut self) {
        self.0.recv().await;
    }
}

#[cfg(test)]
mod tests {
    use clap::Args as _;

    use super::*;

    fn command() -> clap::Command {
        Args::augment_args(clap::Command::new("sandbox"))
    }

    fn parse(args: &[&str]) -> Result<Args, clap::Error> {
        let words = ["sandbox"].iter().chain(args);
        let matches = command().try_get_matches_from(words)?;
        clap::FromArgMatches::from_arg_matches(&matches)
    }

    #[test]
    fn the_help_has_every_prefix_and_every_fault() {
        command().debug_assert();
        let help = command().render_long_help().to_string();
        for (prefix, ..) in PREFIXES {
            assert!(help.contains(&format!("\n  {prefix}")), "{prefix}\n{help}");
        }
        for fault in Fault::ALL {
            assert!(help.contains(fault.as_str()), "{fault:?}\n{help}");
        }
    }

    #[test]
    fn defaults_are_those_of_the_documentation() {
        let args = parse(&[]).ok().unwrap();
        assert_eq!(args.listen.to_string(), "127.0.0.1:8089");
        assert_eq!(args.slow, Duration::from_secs(35));
        let library = Options::default();
        assert_eq!(args.slow, library.slow);
        assert_eq!(args.latency, library.latency);
        assert_eq!(args.fault_times, library.fault_times);
        assert_eq!(args.calls_per_minute, library.calls_per_minute);
        assert_eq!(args.concurrency, library.concurrency);
        assert_eq!(args.max_orders_per_call, library.max_orders_per_call);
        assert_eq!(args.clock_offset, library.clock_offset_seconds);
        assert_eq!(args.remembered_orders, library.remembered_orders);
        assert_eq!(!args.no_query_permission, library.query_permission);
    }

    #[test]
    fn arguments_are_read_or_refused() {
        let args = parse(&[
            "--fault",
            "lost=0.05",
            "--fault",
            "500=0.02",
            "--clock-offset",
            "-300",
            "--latency",
            "80ms",
            "--account",
            "sid2,key2,a:b,c",
        ])
        .ok()
        .unwrap();
        assert_eq!(args.faults.len(), 2);
        assert_eq!(args.clock_offset, -300);
        assert_eq!(args.latency, Duration::from_millis(80));
        assert_eq!(args.accounts[0].secret, "a:b,c");
        for wrong in [
            ["--fault", "lots=0.1"],
            ["--fault", "lost=2"],
            ["--slow", "-3s"],
            ["--slow", "soon"],
            ["--account", "sid2,key2"],
            ["--listen", "8089"],
        ] {
            assert!(parse(&wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn the_environment_is_printed_as_a_shell_reads_it() {
        let seller = |sid: &str, secret: &str| Credentials {
            sid: sid.to_owned(),
            key: "demo-app-key".to_owned(),
            secret: secret.to_owned(),
        };
        let sellers = [
            seller("demo_sid", "testsecret:testsalt"),
            seller("it's", "a b:$c"),
        ];
        assert_eq!(
            hello("http://127.0.0.1:8089/openapi", &sellers, 7),
            "The sandbox listens (seed 7). To point the worker at it:\n\
             \n\
             export WDT_API__URL=http://127.0.0.1:8089/openapi\n\
             export WDT_ACCOUNTS__DEFAULT__SID=demo_sid\n\
             export WDT_ACCOUNTS__DEFAULT__KEY=demo-app-key\n\
             export WDT_ACCOUNTS__DEFAULT__SECRET=testsecret:testsalt\n\
             export WDT_ACCOUNTS__ACCOUNT2__SID='it'\\''s'\n\
             export WDT_ACCOUNTS__ACCOUNT2__KEY=demo-app-key\n\
             export WDT_ACCOUNTS__ACCOUNT2__SECRET='a b:$c'\n\
             \n"
        );
    }
}
