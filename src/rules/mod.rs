//! What is decided, and nothing else: no clock, no randomness, no input or output, no wire format.

// A closed set is matched whole: a new outcome must not fall through somewhere.
#![warn(clippy::wildcard_enum_match_arm)]

pub mod admit;
pub mod dead;
pub mod delay;
pub mod desk;
pub mod dry_run;
pub mod judge;
pub mod lane;
pub mod next;
pub mod order;
pub mod outstanding;
pub mod pace;
pub mod pattern;
pub mod poison;
pub mod policy;
pub mod share;
pub mod story;
pub mod time;
pub mod trace;
pub mod window;
