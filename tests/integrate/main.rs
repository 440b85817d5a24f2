//! For those who send to the worker and read from it: the examples run, and a dry run cancels nothing.
#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, its helpers too"
)]

#[path = "../support/mod.rs"]
mod support;

mod dry_run;
mod examples;
