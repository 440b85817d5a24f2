//! Cancels stock-out documents in Wangdian on behalf of commands in a RabbitMQ queue.
pub mod cli;
pub mod config;
pub mod gateway;
pub mod rules;
pub mod telemetry;
