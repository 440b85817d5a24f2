//! What operators set up and look after: the doctor's checks, and what the service manager is told.
#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, its helpers too"
)]

mod doctor;
mod manager;
#[path = "../support/mod.rs"]
mod support;
