//! Cancels stock-out documents in Wangdian on behalf of commands in a RabbitMQ queue.
//!
//! A command arrives from the queue, and [`worker`] takes it along: the [`rules`] decide, the edges
//! act. The [`broker`] brings commands and takes events, the [`gateway`] is called, the [`ledger`]
//! makes durable what must not be forgotten. [`app`] puts these together by the [`config`];
//! [`admin`] and [`telemetry`] show people what happens, and [`cli`] is what they type.
//!
//! `docs/ARCHITECTURE.md` tells the laws and the order in which things become durable.

// Every failure has a path; a panic would lose the commands in hand.
#![warn(clippy::unwrap_used)]
// A subcommand's output goes through a writer, and a closed pipe is an error like any other.
#![warn(clippy::print_stdout)]

#[macro_use]
mod failpoint;

pub mod admin;
pub mod app;
pub mod broker;
pub mod cli;
pub mod config;
pub mod gateway;
pub mod ledger;
pub mod letters;
pub mod notify;
pub mod rules;
pub mod stories;
pub mod telemetry;
pub mod worker;
