//! The worker's rules as they are, and nothing else of it.

#[path = "../../src/rules/mod.rs"]
pub mod rules;
