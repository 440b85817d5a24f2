//! What the command line offers, a file a subcommand.
pub mod sandbox;
