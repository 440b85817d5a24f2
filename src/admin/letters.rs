//! What the page asks of the dead-letter queue.

use std::sync::Arc;

use tokio::sync::oneshot;

use crate::rules::dead::{Filter, Letter, Tally};

/// Letters that one page shows, sends back or removes.
pub const LETTERS_MAX: u64 = 100;

/// What is to be done with the letters that are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// Show them.
    Look,
    /// Send them back to the commands' queue.
    Replay,
    /// Remove them.
    Remove,
}

/// A wish, for whom, and where the answer is awaited.
#[derive(Debug)]
pub struct Request {
    /// What.
    pub wish: Wish,
    /// With which letters.
    pub filter: Filter,
    /// Who wants it.
    pub by: Arc<str>,
    /// What came of it, or why nothing did.
    pub answer: oneshot::Sender<Result<Done, String>>,
}

/// A letter and its beginning.
#[derive(Debug, Clone)]
pub struct Shown {
    /// What is known of it.
    pub letter: Letter,
    /// Its whole as JSON, or the beginning of that.
    pub preview: String,
}

/// What came of a wish.
#[derive(Debug, Clone, Default)]
pub struct Done {
    /// How many.
    pub tally: Tally,
    /// What was looked at.
    pub letters: Vec<Shown>,
    /// What was removed, a line of JSON for each.
    pub removed: String,
    /// Why it was not done to the end.
    pub stopped: Option<String>,
}
