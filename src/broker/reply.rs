//! Copies of events for requesters that use direct reply-to, on a connection of their own.
//!
//! The name of such a requester has the process to be told in it, and the broker decodes it while
//! it routes. Versions before 4.2 do that without a check: a name that somebody made up, and in
//! some (3.10.8 is one) also that of a requester whose node is down, ends the connection that
//! publishes to it (541, INTERNAL_ERROR). On the connection of the results that would end the whole
//! session, each time the command comes again. Here it costs the copies to that one name, which
//! nobody would have read; direct reply-to is at most once by its nature.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::uri::AMQPUri;
use lapin::{BasicProperties, Channel, Connection, ErrorKind};
use tracing::warn;

use super::link;
use super::session::SessionError;

/// What the names of direct reply-to begin with.
const DIRECT: &str = "amq.rabbitmq.reply-to.";
/// For all copies of a batch: a broker that does not answer must not hold up the results.
const TELL_TIMEOUT: Duration = Duration::from_secs(10);
/// Names remembered as gone; at this many all are forgotten, which costs a connection each.
const GONE_MAX: usize = 1000;

/// A copy on its way to a requester.
pub(super) struct Copy {
    pub requester: Arc<str>,
    pub body: Vec<u8>,
    pub properties: BasicProperties,
}

/// Whether a queue's name is that of a requester that uses direct reply-to.
pub(super) fn is_direct(queue: &str) -> bool {
    queue.starts_with(DIRECT)
}

/// See the module.
pub(super) struct Courier {
    url: AMQPUri,
    /// Opened for the first copy.
    line: Option<(Connection, Channel)>,
    /// Names that ended the connection.
    gone: HashSet<Arc<str>>,
}

impl Courier {
    pub(super) fn new(url: AMQPUri) -> Self {
        Self {
            url,
            line: None,
            gone: HashSet::new(),
        }
    }

    /// Publishes these, requester by requester; returns when each is told or cannot be.
    pub(super) async fn tell(&mut self, mut copies: Vec<Copy>) {
        if copies.is_empty() {
            return;
        }
        copies.sort_by(|a, b| a.requester.cmp(&b.requester));
        let each = async {
            for copies in copies.chunk_by(|a, b| a.requester == b.requester) {
                self.tell_one(copies).await;
            }
        };
        if tokio::time::timeout(TELL_TIMEOUT, each).await.is_err() {
            self.line = None;
            warn!("copies of results for direct reply-to were not taken in time");
        }
    }

    async fn tell_one(&mut self, copies: &[Copy]) {
        let Some(Copy { requester, .. }) = copies.first() else {
            return;
        };
        if self.gone.contains(requester) {
            return;
        }
        // A connection that was idle may be gone without a word: then once more, on a new one.
        for is_fresh in [self.line.is_none(), true] {
            let Err(error) = self.publish(copies).await else {
                return;
            };
            self.line = None;
            let refused = match &error {
                SessionError::Broker(error) => matches!(error.kind(), ErrorKind::ProtocolError(_)),
                _ => false,
            };
            if refused {
                warn!(%error, reply_to = &**requester, "the broker cannot tell this requester; the exchange's events are told all the same");
                if self.gone.len() >= GONE_MAX {
                    self.gone.clear();
                }
                self.gone.insert(Arc::clone(requester));
            } else if is_fresh {
                warn!(%error, reply_to = &**requester, "this requester could not be told");
            }
            if refused || is_fresh {
                return;
            }
        }
    }

    async fn publish(&mut self, copies: &[Copy]) -> Result<(), SessionError> {
        let channel = match &self.line {
            Some((_, channel)) => channel,
            None => {
                let connection = link::connect(&self.url, "wdt-cancel-worker: replies").await?;
                let channel = connection.create_channel().await?;
                let confirms = ConfirmSelectOptions::default();
                channel.confirm_select(confirms).await?;
                &self.line.insert((connection, channel)).1
            }
        };
        let mut confirms = Vec::with_capacity(copies.len());
        for copy in copies {
            // Not mandatory: a requester that has gone is no error.
            let written = channel.basic_publish(
                "".into(),
                (&*copy.requester).into(),
                BasicPublishOptions::default(),
                &copy.body,
                copy.properties.clone(),
            );
            confirms.push(written.await?);
        }
        for confirm in join_all(confirms).await {
            confirm?;
        }
        Ok(())
    }
}
