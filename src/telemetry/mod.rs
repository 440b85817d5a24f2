//! The log: to standard error, so that a subcommand's output can be piped.
//!
//! Of other people's libraries only warnings and errors pass, whatever `RUST_LOG` asks for: in their
//! debug output they show what they send, the signed URL and the broker's password among it.
//!
//! Beside it the [`traces`], and the [`spans`], with which each command and each call has a line in
//! the log.

mod json;
pub mod spans;
pub mod traces;
pub mod writer;

use crate::config::LogFormat;
use std::io::IsTerminal;
use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::filter::{EnvFilter, ParseError, filter_fn};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use writer::Lines;

/// What is logged unless `RUST_LOG` says otherwise. The broker's client tells as an error what is
/// none, such as a queue that is about to be declared; whatever ends a session we tell ourselves.
const DEFAULT_FILTER: &str = "info,lapin=off,hyper=warn";

/// The log's way out, and what is left of it to be written when this is dropped.
#[derive(Debug)]
#[must_use]
pub struct Log(Lines);

impl Log {
    /// Where its lines go.
    pub fn lines(&self) -> Lines {
        self.0.clone()
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.0.flush();
    }
}

/// Why the log could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter cannot be read.
    #[error("RUST_LOG cannot be read: {0}; such as {DEFAULT_FILTER} would do")]
    Filter(#[from] ParseError),
    /// The process has a log already.
    #[error("the log is set up already: {0}")]
    Again(#[from] TryInitError),
    /// There can be no thread for it.
    #[error("the log's thread cannot be started: {0}")]
    Thread(#[from] std::io::Error),
}

/// The format for whoever reads standard error: text on a terminal, else JSON.
pub fn format_by_terminal() -> LogFormat {
    if std::io::stderr().is_terminal() {
        LogFormat::Text
    } else {
        LogFormat::Json
    }
}

/// Sets up the process's log, filtered by `RUST_LOG`; without it, `info` and above.
///
/// # Errors
/// When `RUST_LOG` cannot be read, or the process has a log already.
pub fn init(format: LogFormat) -> Result<Log, TelemetryError> {
    let given = std::env::var("RUST_LOG").ok();
    let filter = filter(given.as_deref())?;
    let colours = std::io::stderr().is_terminal();
    let lines = Lines::to(std::io::stderr())?;
    match format {
        LogFormat::Text => text(filter, colours, lines.clone()).try_init()?,
        LogFormat::Json => json(filter, lines.clone()).try_init()?,
    }
    Ok(Log(lines))
}

fn filter(given: Option<&str>) -> Result<EnvFilter, ParseError> {
    let directives = given.filter(|text| !text.trim().is_empty());
    EnvFilter::builder().parse(directives.unwrap_or(DEFAULT_FILTER))
}

/// Nobody else's debug output; see the module.
fn may_be_shown(what: &Metadata<'_>) -> bool {
    let ours = what.target().starts_with(env!("CARGO_CRATE_NAME"));
    ours || *what.level() <= Level::WARN
}

fn text<W>(filter: EnvFilter, colours: bool, writer: W) -> impl Subscriber + Send + Sync
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    tracing_subscriber::fmt()
        .compact()
        .with_ansi(colours)
        .with_env_filter(filter)
        .with_writer(writer)
        .finish()
        .with(filter_fn(may_be_shown))
}

/// One object a line; see [`json`](self::json).
fn json<W>(filter: EnvFilter, writer: W) -> impl Subscriber + Send + Sync
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    tracing_subscriber::fmt()
        .event_format(json::Json)
        .with_env_filter(filter)
        .with_writer(writer)
        .finish()
        .with(filter_fn(may_be_shown))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{self, Write};
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Kept {
        fn of(subscriber: impl FnOnce(Self) -> Box<dyn Subscriber + Send + Sync>) -> String {
            let lines = Self::default();
            tracing::subscriber::with_default(subscriber(lines.clone()), || {
                tracing::info!(order_no = "QC1", "told");
                tracing::debug!("not told");
                tracing::info!(target: "lapin::channel", "not told");
                tracing::info!(target: "hyper_util::client", "not told");
                tracing::warn!(target: "hyper_util::client", "told too");
            });
            let bytes = lines.0.lock().unwrap().clone();
            String::from_utf8(bytes).unwrap()
        }
    }

    #[test]
    fn json_has_the_fields_beside_the_time_in_utc() {
        let text = Kept::of(|lines| {
            let filter = filter(None).unwrap();
            Box::new(json(filter, move || lines.clone()))
        });
        let events: Vec<serde_json::Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let messages: Vec<_> = events.iter().map(|e| e["message"].clone()).collect();
        assert_eq!(messages, ["told", "told too"]);
        assert_eq!(events[0]["order_no"], "QC1");
        assert_eq!(events[0]["level"], "INFO");
        let time = events[0]["timestamp"].as_str().unwrap();
        assert!(time.ends_with('Z'), "{time}");
        time.parse::<jiff::Timestamp>().unwrap();
    }

    #[test]
    fn text_has_colours_only_when_asked() {
        let of = |colours| {
            Kept::of(|lines| {
                let filter = filter(Some(" ")).unwrap();
                Box::new(text(filter, colours, move || lines.clone()))
            })
        };
        let plain = of(false);
        assert_eq!(plain.lines().count(), 2, "{plain}");
        assert!(
            plain.contains("told") && plain.contains("order_no=\"QC1\""),
            "{plain}"
        );
        assert!(!plain.contains('\u{1b}'), "{plain}");
        assert!(of(true).contains('\u{1b}'));
    }

    #[test]
    fn what_libraries_send_is_never_shown() {
        let lines = Kept::default();
        let writer = lines.clone();
        let everything = json(filter(Some("trace")).unwrap(), move || writer.clone());
        tracing::subscriber::with_default(everything, || {
            tracing::trace!("ours");
            tracing::info!(target: "lapin::channel", "theirs");
            tracing::trace!(target: "hyper_util::client", "theirs");
            tracing::warn!(target: "reqwest::connect", "a warning");
        });
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        assert!(
            text.contains("ours") && text.contains("a warning"),
            "{text}"
        );
        assert!(!text.contains("theirs"), "{text}");
    }

    #[test]
    fn the_filter_is_what_was_asked_for() {
        assert_eq!(filter(Some("debug")).unwrap().to_string(), "debug");
        assert!(filter(Some("lapin=loud")).is_err());
    }
}
