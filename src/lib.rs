//! Cancels stock-out documents in Wangdian on behalf of commands in a RabbitMQ queue.
pub mod broker;
pub mod cli;
pub mod config;
pub mod gateway;
pub mod ledger;
pub mod rules;
pub mod telemetry;
