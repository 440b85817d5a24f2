//! What is decided, and nothing else: no clock, no randomness, no input or output, no wire format.
pub mod order;
pub mod pattern;
pub mod policy;
pub mod trace;
