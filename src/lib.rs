//! Cancels stock-out documents in Wangdian on behalf of commands in a RabbitMQ queue.
pub mod broker;
pub mod gateway;
pub mod ledger;
pub mod rules;
