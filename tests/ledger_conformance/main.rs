//! The ledger's verbs: the same cases against both stores, and what only a shared one does.
#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, its helpers too"
)]

#[path = "../support/mod.rs"]
mod support;

mod both;
mod journal;
mod modes;
mod quota;
mod seat;
mod shared;
