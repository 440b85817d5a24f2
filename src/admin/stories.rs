//! What the page asks of the ledger.

use tokio::sync::oneshot;

use crate::rules::order::AccountName;
use crate::rules::story::{CommandStory, OrderStory};

/// A name to be looked up, and where the answer is awaited.
#[derive(Debug)]
pub struct Request {
    /// An order's number or a command's id.
    pub name: String,
    /// Only of this account.
    pub account: Option<AccountName>,
    /// What was found, or why it cannot be read.
    pub answer: oneshot::Sender<Result<Found, String>>,
}

/// What was found under one name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// Orders of this number, one for each account that has it.
    pub orders: Vec<OrderStory>,
    /// Commands of this id, likewise.
    pub commands: Vec<CommandStory>,
}
