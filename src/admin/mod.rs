//! The operators' listener: `/livez`, `/readyz` and `/metrics` for machines, and the pages for people.
//! Whoever can reach it can cost the worker no more than the bounds below; who may read the pages and
//! act, `access` decides.

mod access;
pub mod health;
pub mod history;
pub mod letters;
pub mod metrics;
mod pages;
mod process;
pub mod stories;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use jiff::Timestamp;
use tokio::net::TcpListener;
use tokio::sync::mpsc::{Sender, UnboundedSender};
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};

use crate::rules::desk::{Intake, LaneCounts, LaneId, Load};
use crate::rules::dry_run::Mode;
use crate::rules::lane::{LaneReport, Paused};
use crate::rules::time::Now;
use metrics::Metrics;

/// A worker that has not looked up for this long is stuck.
const STUCK_AFTER: Duration = Duration::from_secs(60);

/// Connections served at a time; the next ones wait in the system's queue.
const CONNECTIONS_MAX: usize = 64;
/// For a request's head, so that one who dawdles does not keep a connection for long.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// A request's head, in bytes.
const HEAD_MAX_BYTES: usize = 16 * 1024;
/// A connection's whole life, for one who does not read his answer. Scrapers come again.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);
/// After an error that only time mends, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// Since when.
    pub since: Timestamp,
    /// Why.
    pub cause: String,
    /// What would mend it, where whoever met it knows; else empty.
    pub remedy: &'static str,
}

impl Trouble {
    /// Trouble for this cause.
    pub fn new(since: Timestamp, cause: &str) -> Self {
        Self {
            since,
            cause: cause.to_owned(),
            remedy: "",
        }
    }

    /// With what would mend it.
    #[must_use]
    pub fn mended_by(self, remedy: &'static str) -> Self {
        Self { remedy, ..self }
    }
}

/// How everything fares, as the worker saw it last; every second anew.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// When it looked; not yet where none.
    pub taken_at: Option<Now>,
    /// The session with the broker, since when, or why there is none.
    pub session: Result<Timestamp, Trouble>,
    /// The broker knows our consumer.
    pub consuming: bool,
    /// Why the broker takes no publications, if it takes none.
    pub blocked: Option<String>,
    /// What was seen of the queue.
    pub queue: Queue,
    /// Whether commands are to be taken.
    pub intake: Intake,
    /// Events find no queue since then.
    pub undeliverable_since: Option<Timestamp>,
    /// When an event was last confirmed.
    pub told_at: Option<Timestamp>,
    /// Why the ledger takes no writes, if it takes none.
    pub ledger: Option<Trouble>,
    /// The accounts, in the settings' order.
    pub accounts: Vec<LaneReport>,
    /// The gateway's clock less ours, in seconds, in the same order; none before it is measured.
    pub clock_offsets: Vec<Option<i64>>,
    /// What is in hand.
    pub load: Load,
    /// Nothing is cancelled, only looked up.
    pub mode: Mode,
    /// For how long the oldest command is in hand.
    pub oldest_command: Option<Duration>,
    /// Deliveries that the broker counts as unacknowledged.
    pub unsettled: usize,
    /// How many of them are kept unopened.
    pub kept: usize,
    /// What was counted of each account, in the settings' order.
    pub counts: Vec<LaneCounts>,
    /// Since when each check is as it is.
    pub since: health::Since,
}

/// What was seen of the commands' queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Queue {
    /// Messages that waited at the last look.
    pub ready: u64,
    /// Consumers that the broker counted then, of all workers.
    pub consumers: u64,
    /// When that was.
    pub looked_at: Option<Timestamp>,
    /// When the broker confirmed our subscription, while there is one.
    pub subscribed_at: Option<Timestamp>,
    /// The prefetch in force; none while as much is in hand as memory allows.
    pub prefetch: u64,
    /// The results' exchange was made by this run.
    pub exchange_is_new: bool,
    /// The newest timestamp that a publisher gave a command which was delivered for the first time.
    pub newest: Option<Timestamp>,
}

impl Queue {
    /// How old the oldest command in the queue is at most: what waits there was published after what
    /// was delivered. `None` where nobody says when he publishes.
    pub fn oldest_age(&self, now: Timestamp) -> Option<Duration> {
        let newest = self.newest?;
        if self.ready == 0 {
            return Some(Duration::ZERO);
        }
        // A publisher's clock may be ahead of ours.
        Some(now.duration_since(newest).try_into().unwrap_or_default())
    }
}

impl Snapshot {
    /// Before the worker has looked.
    pub fn starting(now: Timestamp) -> Self {
        Self {
            taken_at: None,
            session: Err(Trouble::new(now, "the worker is starting")),
            consuming: false,
            blocked: None,
            queue: Queue::default(),
            intake: Intake::Open,
            undeliverable_since: None,
            told_at: None,
            ledger: None,
            accounts: Vec::new(),
            clock_offsets: Vec::new(),
            load: Load::default(),
            mode: Mode::Live,
            oldest_command: None,
            unsettled: 0,
            kept: 0,
            counts: Vec::new(),
            since: health::Since::default(),
        }
    }
}

/// An operator's wish: that this account is not called, or is called again.
#[derive(Debug)]
pub struct PauseWish {
    /// The account.
    pub lane: LaneId,
    /// By whom and since when, or that it is over.
    pub paused: Option<Paused>,
}

/// What the pages need beside the snapshot. It holds the token, so it is never shown.
pub struct Office {
    /// `admin.token`.
    pub token: Option<String>,
    /// The last hour.
    pub history: Arc<history::History>,
    /// Where wishes to pause go.
    pub pause: UnboundedSender<PauseWish>,
    /// Where wishes for dead letters go.
    pub letters: Sender<letters::Request>,
    /// Where searches go.
    pub stories: Sender<stories::Request>,
}

#[derive(Clone)]
struct Desk {
    snapshot: watch::Receiver<Snapshot>,
    metrics: Arc<Metrics>,
}

/// Who is at the other end of a connection.
#[derive(Debug, Clone, Copy)]
struct Peer(SocketAddr);

/// The listener, while it serves.
#[derive(Debug)]
pub struct Admin {
    /// Where it listens.
    pub address: SocketAddr,
    task: JoinHandle<()>,
}

impl Admin {
    /// Listens on `address`; port 0 is any free one.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub async fn start(
        address: SocketAddr,
        snapshot: watch::Receiver<Snapshot>,
        metrics: Arc<Metrics>,
        office: Office,
    ) -> std::io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let router = Router::new()
            .route("/livez", get(livez))
            .route("/readyz", get(readyz))
            .route("/metrics", get(text_metrics))
            .with_state(Desk {
                snapshot: snapshot.clone(),
                metrics,
            })
            .merge(pages::router(snapshot, office));
        let task = tokio::spawn(serve(listener, router));
        Ok(Self { address, task })
    }

    /// Stops listening.
    pub fn stop(self) {
        self.task.abort();
    }
}

/// Serves until it is dropped, and its connections with it.
async fn serve(listener: TcpListener, router: Router) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_MAX_BYTES);
    loop {
        while connections.try_join_next().is_some() {}
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let (stream, peer) = match listener.accept().await {
            Ok(connection) => connection,
            Err(error) => {
                tracing::debug!(%error, "the admin listener");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let service = TowerToHyperService::new(router.clone().layer(Extension(Peer(peer))));
        let connection = http.serve_connection(TokioIo::new(stream), service);
        connections.spawn(async move {
            // However it ends, nobody is to be told but the one at the other end.
            drop(tokio::time::timeout(CONNECTION_TIMEOUT, connection).await);
            drop(place);
        });
    }
}

async fn livez(State(desk): State<Desk>) -> Response {
    let taken_at = desk.snapshot.borrow().taken_at;
    let age = taken_at.map(|at| Timestamp::now().duration_since(at.wall));
    match age.and_then(|age| Duration::try_from(age).ok()) {
        Some(age) if age > STUCK_AFTER => {
            let words = format!("the worker has not looked up for {} s\n", age.as_secs());
            (StatusCode::SERVICE_UNAVAILABLE, words).into_response()
        }
        _ => "ok\n".into_response(),
    }
}

async fn readyz(State(desk): State<Desk>) -> Response {
    let report = health::report(&desk.snapshot.borrow());
    let status = if report.ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    match serde_json::to_string_pretty(&report) {
        Ok(body) => {
            let json = [(header::CONTENT_TYPE, "application/json")];
            (status, json, body + "\n").into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn text_metrics(State(desk): State<Desk>) -> Response {
    let body = desk.metrics.encode(&desk.snapshot.borrow());
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], body).into_response()
}
