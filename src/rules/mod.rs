//! What is decided, and nothing else: no clock, no randomness, no input or output, no wire format.
pub mod order;
