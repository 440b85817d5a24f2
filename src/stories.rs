//! The operators' page and the ledger's journal, joined: one search at a time, beside the worker's own
//! use of the ledger.

use tokio::sync::mpsc::{Sender, channel};
use tokio::task::JoinHandle;

use crate::admin::stories::{Found, Request};
use crate::ledger::story::{self, ReadError, Source};
use crate::rules::order::{CommandId, OrderNo};

/// Searches that wait; a page that finds no room says so.
const WAITING_MAX: usize = 8;

/// Starts to serve the page's searches; the page asks through what is given back.
pub fn start(source: Source) -> (Sender<Request>, JoinHandle<()>) {
    let (asks, mut requests) = channel::<Request>(WAITING_MAX);
    let task = tokio::spawn(async move {
        while let Some(request) = requests.recv().await {
            if request.answer.is_closed() {
                continue;
            }
            // It cannot be broken off, so the next one waits however long it takes.
            let found = find(&source, &request).await;
            // Who asked may have gone.
            drop(
                request
                    .answer
                    .send(found.map_err(|error| error.to_string())),
            );
        }
    });
    (asks, task)
}

async fn find(source: &Source, request: &Request) -> Result<Found, ReadError> {
    let account = request.account.as_ref();
    let mut found = Found::default();
    if let Ok(order_no) = OrderNo::new(&request.name) {
        found.orders = story::of_order(source, &order_no, account).await?;
    }
    if let Some(id) = CommandId::new(&request.name) {
        found.commands = story::of_command(source, &id, account).await?;
    }
    Ok(found)
}
