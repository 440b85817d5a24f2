//! What people type: the subcommands, a file each.

pub mod audit;
pub mod bind;
pub mod config;
pub mod dead;
pub mod demo;
pub mod doctor;
pub mod ledger;
pub mod pause;
mod reload;
pub mod run;
pub mod sandbox;
pub mod schema;
pub mod send;
pub mod story;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};

use crate::config::{Config, ConfigError, Loaded, parse_duration};

/// What `--version` prints.
const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("WDT_COMMIT"), ")");

/// Cancels stock-out documents (其他出库业务单) in Wangdian 旺店通旗舰版, on behalf of commands in a
/// RabbitMQ queue: each order once, in as few calls as possible, with one result event for each.
#[derive(Parser)]
#[command(name = "wdt-cancel-worker", version = VERSION, max_term_width = 100)]
struct Cli {
    /// The settings' file (TOML). Variables WDT_SECTION__KEY go before what it says.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs the worker.
    Run(run::Args),
    /// Looks whether all that a worker needs is there, and says what would mend what is not.
    Doctor(doctor::Args),
    /// Sends a cancel command, waits for its results and shows them.
    Send(send::Args),
    /// Creates a durable queue and binds it to the results' exchange.
    Bind(bind::Args),
    /// Looks into the dead-letter queue, sends what is in it back to work, removes it.
    #[command(subcommand)]
    Dead(dead::Args),
    /// Shows everything at work: a gateway of its own, a worker, orders of every fate.
    Demo(demo::Args),
    /// Runs an emulator of the Wangdian gateway, to try things out.
    Sandbox(sandbox::Args),
    /// Makes no new calls for accounts until they are resumed; their orders wait.
    Pause(pause::Args),
    /// Calls paused accounts again.
    Resume(pause::Args),
    /// Backs the ledger up, restores it, looks into it, and moves it to a database.
    #[command(subcommand)]
    Ledger(ledger::Args),
    /// Tells all that is known of orders: what asked for them, each call, what the gateway said, which
    /// events went out. Ends with 1 when one is not known.
    Order(story::OrderArgs),
    /// Tells all that is known of a command. Ends with 1 when it is not known.
    #[command(name = "command")]
    Request(story::CommandArgs),
    /// Takes the journal of all that happened out of the ledger, and checks that it is whole.
    #[command(subcommand)]
    Audit(audit::Args),
    /// Shows the settings in force and where each comes from.
    Config {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Prints the contract as a file: the schema of a command, of an event, or the AsyncAPI document.
    Schema {
        /// Which of them.
        which: schema::Which,
    },
}

/// How the process ends (contract §6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Done, or drained.
    Done = 0,
    /// Could not start or run; for `send` and `demo`: not all as wished.
    Failed = 1,
    /// The drain's time passed.
    Left = 2,
    /// Bad arguments or settings.
    Usage = 64,
}

/// Something is wrong with what was typed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Usage(String);

/// Reads a length of time.
fn time(text: &str) -> Result<Duration, String> {
    parse_duration(text)
        .ok_or_else(|| "a number with its unit, such as 30s or 1h30m, would do".into())
}

/// An error and its causes, but for a cause that the error before it has told already.
fn with_causes(error: &anyhow::Error) -> String {
    let mut told = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if told.ends_with(&cause) {
            continue;
        }
        if !told.is_empty() {
            told += ": ";
        }
        told += &cause;
    }
    told
}

/// Runs what the arguments say.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and the version come this way, too; a closed pipe is nobody's fault.
            drop(error.print());
            return code(if error.use_stderr() {
                Exit::Usage
            } else {
                Exit::Done
            });
        }
    };
    // One thread: what is joined here waits for others most of the time, and to wake another thread
    // costs more than what that would do.
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("wdt-cancel-worker: the runtime cannot be started: {error}");
            return code(Exit::Failed);
        }
    };
    let exit = match runtime.block_on(dispatch(cli)) {
        Ok(exit) => exit,
        Err(error) => {
            let is_usage = error.is::<ConfigError>() || error.is::<Usage>();
            for line in with_causes(&error).lines() {
                eprintln!("wdt-cancel-worker: {line}");
            }
            if is_usage { Exit::Usage } else { Exit::Failed }
        }
    };
    // A call that hangs must not keep the process from ending.
    runtime.shutdown_background();
    code(exit)
}

fn code(exit: Exit) -> ExitCode {
    ExitCode::from(exit as u8)
}

async fn dispatch(cli: Cli) -> anyhow::Result<Exit> {
    let file = cli.config.as_deref();
    match cli.command {
        Command::Run(args) => run::run(args, load(file)?.config, file).await,
        Command::Doctor(args) => doctor::run(args, load(file)).await,
        Command::Send(args) => send::run(args, broker(file)?).await,
        Command::Bind(args) => bind::run(args, broker(file)?).await,
        Command::Dead(args) => dead::run(args, broker(file)?).await,
        Command::Demo(args) => demo::run(args, broker(file)?).await,
        Command::Sandbox(args) => sandbox::run(args).await.map(|()| Exit::Done),
        Command::Pause(args) => pause::run(args, &load(file)?.config, true).await,
        Command::Resume(args) => pause::run(args, &load(file)?.config, false).await,
        Command::Ledger(args) => ledger::run(args, &load(file)?.config).await,
        Command::Order(args) => story::orders(args, &load(file)?.config).await,
        Command::Request(args) => story::command(args, &load(file)?.config).await,
        Command::Audit(args) => audit::run(args, &load(file)?.config).await,
        Command::Config { json } => {
            config::run(&load(file)?, json, &mut std::io::stdout().lock())?;
            Ok(Exit::Done)
        }
        Command::Schema { which } => {
            schema::run(which, &mut std::io::stdout().lock())?;
            Ok(Exit::Done)
        }
    }
}

fn load(file: Option<&std::path::Path>) -> Result<Loaded, ConfigError> {
    Config::load(file, crate::config::environment()?.into_iter())
}

fn broker(file: Option<&std::path::Path>) -> Result<crate::config::BrokerConfig, ConfigError> {
    Config::load_broker(file, crate::config::environment()?.into_iter())
}
