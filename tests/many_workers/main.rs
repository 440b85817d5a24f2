//! Many workers on one queue and one ledger: the real binary, a private broker and a private
//! PostgreSQL, which the tests break.
#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, its helpers too"
)]

#[path = "../support/mod.rs"]
mod support;

mod breaks;
mod chaos;
mod operate;
mod together;
