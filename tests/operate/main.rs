//! What operators set up and look after: the doctor's checks, settings that are read anew, and what the
//! service manager is told.
#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, its helpers too"
)]

mod doctor;
mod manager;
mod reload;
#[path = "../support/mod.rs"]
mod support;
