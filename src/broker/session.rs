//! What ends a session with the broker, and what can be seen of one.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use lapin::ErrorKind;
use lapin::protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError};

use super::held::Deliveries;
use super::topology::{TopologyError, words};

/// What ended a session, or kept one from beginning.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The broker or the connection to it.
    #[error(transparent)]
    Broker(#[from] lapin::Error),
    /// The network.
    #[error("{0}")]
    Network(String),
    /// The broker does not let us in, or not near what we need.
    #[error(
        "the broker at {node} refuses us: {words}; check the user, password, virtual host and permissions of amqp.url"
    )]
    Refused {
        /// Host and port.
        node: String,
        /// What the broker says.
        words: String,
    },
    /// What must be there is not.
    #[error(transparent)]
    Topology(#[from] TopologyError),
    /// The consumer's stream ended.
    #[error("the broker cancelled the consumer")]
    Cancelled,
    /// Publisher confirms did not come in time.
    #[error("publisher confirms did not come in time")]
    NoConfirm,
    /// An acknowledgement did nothing.
    #[error("an acknowledgement acknowledged nothing")]
    NotAcknowledged,
    /// Messages wait, and none comes.
    #[error("the consumer is silent while messages wait")]
    Silent,
    /// An event could not be written as JSON.
    #[error("an event could not be written: {0}")]
    Unwritable(serde_json::Error),
}

impl SessionError {
    /// Trying again cannot help before somebody mends settings or permissions.
    pub(super) fn is_final(&self) -> bool {
        match self {
            Self::Topology(TopologyError::Missing(_)) | Self::Refused { .. } => true,
            Self::Broker(_)
            | Self::Topology(TopologyError::Broker(_))
            | Self::Network(_)
            | Self::Cancelled
            | Self::NoConfirm
            | Self::NotAcknowledged
            | Self::Silent
            | Self::Unwritable(_) => false,
        }
    }

    /// A message came that the client cannot read.
    pub(super) fn is_unreadable(&self) -> bool {
        matches!(self, Self::Broker(error) if matches!(error.kind(), ErrorKind::ParsingError(_)))
    }

    /// The same, unless it is a refusal, which then says by which node and what to check.
    pub(super) fn at(self, node: impl FnOnce() -> String) -> Self {
        let (Self::Broker(error) | Self::Topology(TopologyError::Broker(error))) = &self else {
            return self;
        };
        match error.kind() {
            ErrorKind::ProtocolError(said)
                if matches!(
                    said.kind(),
                    AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED)
                        | AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED)
                ) =>
            {
                Self::Refused {
                    node: node(),
                    words: words(error),
                }
            }
            _ => self,
        }
    }
}

/// What a session did, for operators and for its own watch.
#[derive(Debug, Default)]
pub struct Progress {
    consuming: AtomicBool,
    subscriptions: AtomicU64,
    /// Deliveries of the subscription that need not be settled; none while memory is full.
    width: AtomicU64,
    delivered: AtomicU64,
    blocked: Mutex<Option<String>>,
    seen: Mutex<Seen>,
    deliveries: Mutex<Option<Deliveries>>,
}

/// What was seen of the queue at the last look, and what the broker confirmed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Seen {
    /// Messages that waited.
    pub ready: u64,
    /// Consumers that it counted, of all workers.
    pub consumers: u64,
    /// When that was.
    pub looked_at: Option<Timestamp>,
    /// When the broker confirmed our subscription, while there is one.
    pub subscribed_at: Option<Timestamp>,
    /// The prefetch in force; none while as much is in hand as memory allows.
    pub prefetch: u64,
    /// The results' exchange was made by this run, so no queue was bound to it then.
    pub exchange_is_new: bool,
}

/// Where a consumer stands: two that are equal are of one subscription, and nothing was delivered
/// in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    subscription: u64,
    delivered: u64,
}

impl Progress {
    pub(super) fn subscribed(&self, consuming: bool) {
        if consuming {
            self.subscriptions.fetch_add(1, Ordering::Relaxed);
        }
        self.consuming.store(consuming, Ordering::Relaxed);
        self.see(|seen| seen.subscribed_at = consuming.then(Timestamp::now));
    }

    pub(super) fn set_width(&self, width: u16) {
        self.width.store(width.into(), Ordering::Relaxed);
        self.see(|seen| seen.prefetch = width.into());
    }

    /// While so many of the subscription's are not settled, more would come.
    pub(super) fn has_room(&self, unsettled: usize) -> bool {
        unsettled < usize::try_from(self.width.load(Ordering::Relaxed)).unwrap_or(usize::MAX)
    }

    pub(super) fn delivered(&self) {
        self.delivered.fetch_add(1, Ordering::Relaxed);
    }

    /// The broker knows our consumer.
    pub fn is_consuming(&self) -> bool {
        self.consuming.load(Ordering::Relaxed)
    }

    /// Where the consumer stands, while there is one.
    pub(super) fn mark(&self) -> Option<Mark> {
        self.is_consuming().then(|| Mark {
            subscription: self.subscriptions.load(Ordering::Relaxed),
            delivered: self.delivered.load(Ordering::Relaxed),
        })
    }

    /// What was seen of the queue.
    pub fn seen(&self) -> Seen {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn see(&self, change: impl FnOnce(&mut Seen)) {
        change(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Deliveries of this session that are not settled, and how many of them are kept unopened.
    pub fn unsettled(&self) -> (usize, usize) {
        let deliveries = self.deliveries();
        let deliveries = deliveries.as_ref();
        deliveries.map_or((0, 0), |d| (d.all_unsettled(), d.kept()))
    }

    fn deliveries(&self) -> MutexGuard<'_, Option<Deliveries>> {
        let deliveries = self.deliveries.lock();
        deliveries.unwrap_or_else(PoisonError::into_inner)
    }

    /// Those of a session that begins, or none.
    pub(super) fn set_deliveries(&self, deliveries: Option<Deliveries>) {
        *self.deliveries() = deliveries;
    }

    pub(super) fn exchange_is_new(&self) {
        self.see(|seen| seen.exchange_is_new = true);
    }

    /// Why the broker takes no publications, while it takes none.
    pub fn blocked(&self) -> Option<String> {
        self.blocked
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(super) fn looked(&self, ready: u64, consumers: u64) {
        self.see(|seen| {
            seen.ready = ready;
            seen.consumers = consumers;
            seen.looked_at = Some(Timestamp::now());
        });
    }

    pub(super) fn set_blocked(&self, reason: Option<String>) {
        *self.blocked.lock().unwrap_or_else(PoisonError::into_inner) = reason;
    }
}
