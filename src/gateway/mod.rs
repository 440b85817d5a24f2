//! The Wangdian gateway: how a request is signed, what its bytes mean, one attempt at a call.
pub mod client;
pub mod sandbox;
pub mod sign;
pub mod wire;
