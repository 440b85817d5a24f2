//! `schema`: the contract as files.

use std::io::Write;

use clap::ValueEnum;

/// Which of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Which {
    /// JSON Schema (2020-12) of a command.
    Command,
    /// JSON Schema (2020-12) of a result event.
    Event,
    /// An AsyncAPI 3 document of the queues, the exchange and their messages; it refers to the other
    /// two as `command.schema.json` and `event.schema.json` beside it.
    Asyncapi,
}

impl Which {
    /// The document's text.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Command => include_str!("../../docs/command.schema.json"),
            Self::Event => include_str!("../../docs/event.schema.json"),
            Self::Asyncapi => include_str!("../../docs/asyncapi.json"),
        }
    }
}

/// Prints it.
///
/// # Errors
/// When nobody reads.
pub fn run(which: Which, out: &mut impl Write) -> std::io::Result<()> {
    out.write_all(which.text().as_bytes())
}
