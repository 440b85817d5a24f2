//! The test kit: a private broker, a scripted gateway, a plain AMQP client and the real worker.
//!
//! It is written from the contract and from what is known of the gateway, never from `src/`: a
//! mistake there must not find its twin here. A test enters by the doors that people use, the
//! queue, the gateway's wire, signals and HTTP.
//!
//! It skips nothing: without an installed broker a test fails, with a line that says what to do.
#![allow(
    dead_code,
    reason = "each test binary compiles the whole kit and uses a part of it"
)]

pub mod amqp;
pub mod broker;
pub mod chance;
pub mod disk;
pub mod eventually;
pub mod gateway;
pub mod orders;
pub mod postgres;
pub mod process;
pub mod proxy;
pub mod raw;
pub mod scene;
pub mod schema;
pub mod worker;
