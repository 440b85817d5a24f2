//! The link to the broker: connect, serve a session, and begin again whatever ended it.
//!
//! A session is two connections, a consumer and a publisher. Any error, a consumer that ends, an
//! acknowledgement that acknowledged nothing, a confirm that does not come, a queue that is gone or
//! a consumer that stays silent while messages wait ends the session as a whole; every delivery of
//! it is given out again by the broker. Nothing is repaired in part.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use jiff::Timestamp;
use lapin::options::{ConfirmSelectOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::uri::{AMQPAuthority, AMQPScheme, AMQPUri};
use lapin::{Channel, Connection, ConnectionProperties, Event};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tracing::{error, info, warn};

use super::answer::{self, Outlet, Publication, Settlement};
use super::intake::{self, Inlet, Tickets};
use super::mend;
use super::peek::Accounts;
use super::reply::Courier;
use super::session::{Mark, Progress, SessionError};
use super::topology;
use super::{BrokerEvent, Deliveries, Settings};
use crate::rules::delay::Delays;
use crate::rules::desk::Intake;
use crate::rules::window::Window;

/// From the first packet to a connection that can be used.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// A node that takes the connection and says nothing is noticed within this time.
const GREETING_TIMEOUT: Duration = Duration::from_secs(5);
/// Heartbeat where the URL names none: a frozen peer is noticed after two of them.
const HEARTBEAT_SECONDS: u16 = 10;
/// Between looks at the queue: is it there, does it know us, does anything come.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// Before the first of them, so that it counts the consumer that is being made.
const FIRST_LOOK: Duration = Duration::from_secs(1);
/// An answer to such a look.
const LOOK_TIMEOUT: Duration = Duration::from_secs(10);
/// Between sessions.
const RECONNECTS: Delays = Delays {
    first: Duration::from_millis(500),
    most: Duration::from_secs(30),
};
/// A session that lasted this long was a good one, so the next begins without delay.
const GOOD_SESSION: Duration = Duration::from_secs(30);
/// What a queue without our arguments risks. A stopped account's commands go back every 20 minutes.
const DECLARE_ANEW: &str = "mind its delivery limit: RabbitMQ 4 has one of 20 where none is declared, after which a command that waits is dead-lettered, or dropped where nothing dead-letters; empty and delete the queue, and the worker declares it right";
/// Causes that are told of one outage at most, should they differ each time.
const CAUSES_MAX: usize = 32;
/// Between the last acknowledgement and the close. A quorum queue takes some 32 at a time from a
/// channel, in milliseconds each; what it has not taken when the channel closes is given out again,
/// though it was told. Nothing tells when it has taken them.
pub(super) const SETTLING: Duration = Duration::from_millis(500);
/// A graceful close is not waited for longer.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);

/// How the link fares, for operators.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkState {
    /// There is no session.
    Disconnected {
        /// Since when.
        since: Timestamp,
        /// Why.
        cause: String,
    },
    /// There is one.
    Connected {
        /// Since when.
        since: Timestamp,
    },
}

/// The worker's end of the link.
#[derive(Debug)]
pub struct Link {
    publications: UnboundedSender<Publication>,
    settlements: UnboundedSender<Settlement>,
    intake: watch::Sender<Intake>,
    state: watch::Receiver<LinkState>,
    progress: Arc<Progress>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), SessionError>>,
}

impl Link {
    /// Starts the link; it reports to `events`. `rng` decides jitter.
    pub fn start(
        settings: Settings,
        events: UnboundedSender<BrokerEvent>,
        rng: fastrand::Rng,
    ) -> Self {
        let (publications, publications_rx) = unbounded_channel();
        let (settlements, settlements_rx) = unbounded_channel();
        let (intake, wanted) = watch::channel(Intake::Open);
        let (state_tx, state) = watch::channel(LinkState::Disconnected {
            since: Timestamp::now(),
            cause: "not connected yet".into(),
        });
        let progress = Arc::new(Progress::default());
        let (stop, stopped) = oneshot::channel();
        let mut supervisor = Supervisor {
            events,
            publications: publications_rx,
            settlements: settlements_rx,
            wanted,
            state: state_tx,
            progress: progress.clone(),
            tickets: Tickets::default(),
            mends: false,
            window: intake::window(settings.prefetch),
            settings,
            causes: BTreeSet::new(),
            differences: BTreeSet::new(),
            rng,
        };
        let task = tokio::spawn(async move { supervisor.run(stopped).await });
        Self {
            publications,
            settlements,
            intake,
            state,
            progress,
            stop,
            task,
        }
    }

    /// Publishes; a [`BrokerEvent`] tells what became of it.
    pub fn publish(&self, publication: Publication) {
        // The supervisor lives as long as this end does, or the worker is told that it ended.
        drop(self.publications.send(publication));
    }

    /// Acknowledges a delivery or gives it back.
    pub fn settle(&self, settlement: Settlement) {
        drop(self.settlements.send(settlement));
    }

    /// Whether commands are to be taken from the queue.
    pub fn set_intake(&self, intake: Intake) {
        self.intake
            .send_if_modified(|known| std::mem::replace(known, intake) != intake);
    }

    /// How it fares, and when that changes.
    pub fn state(&self) -> watch::Receiver<LinkState> {
        self.state.clone()
    }

    /// What it does.
    pub fn progress(&self) -> Arc<Progress> {
        self.progress.clone()
    }

    /// Resolves only when the link gave up: settings or permissions must be mended.
    pub async fn failed(&mut self) -> SessionError {
        match (&mut self.task).await {
            Ok(Err(error)) => error,
            Ok(Ok(())) => std::future::pending().await,
            Err(panic) => SessionError::Network(format!("the link's task failed: {panic}")),
        }
    }

    /// Sends what was handed over, then closes.
    pub async fn close(self) {
        let Self {
            settlements,
            stop,
            mut task,
            ..
        } = self;
        drop(settlements);
        // A link that gave up has nobody to hear it.
        let _ = stop.send(());
        // One that failed was awaited then, and must not be again.
        if !task.is_finished() {
            drop(tokio::time::timeout(CLOSE_TIMEOUT * 3, &mut task).await);
        }
        task.abort();
    }
}

struct Supervisor {
    settings: Settings,
    events: UnboundedSender<BrokerEvent>,
    publications: UnboundedReceiver<Publication>,
    settlements: UnboundedReceiver<Settlement>,
    wanted: watch::Receiver<Intake>,
    state: watch::Sender<LinkState>,
    progress: Arc<Progress>,
    tickets: Tickets,
    /// The last session ended by a message that the client cannot read.
    mends: bool,
    /// Of all sessions: what one has learnt of the commands holds for the next.
    window: Window,
    /// Told since the last session; with several nodes they take turns.
    causes: BTreeSet<String>,
    /// Told since the start.
    differences: BTreeSet<String>,
    rng: fastrand::Rng,
}

impl Supervisor {
    async fn run(&mut self, mut stopped: oneshot::Receiver<()>) -> Result<(), SessionError> {
        let mut failures: u32 = 0;
        let mut was_connected = false;
        for turn in 0_usize.. {
            let began = tokio::time::Instant::now();
            let url = self.settings.urls[turn % self.settings.urls.len()].clone();
            let opened = tokio::select! {
                opened = self.open(&url) => opened,
                _ = &mut stopped => return Ok(()),
            };
            let mut left = None;
            let served = match opened {
                Ok(session) => {
                    was_connected = true;
                    let served = self.serve(&session).await;
                    left = Some(session);
                    served
                }
                Err(error) => Err(error.at(|| node(&url))),
            };
            let Err(error) = served else {
                return Ok(());
            };
            if !was_connected && error.is_final() {
                return Err(error);
            }
            self.lost(&url, &error);
            self.mends = error.is_unreadable();
            failures = if began.elapsed() >= GOOD_SESSION {
                1
            } else {
                failures + 1
            };
            let pause = RECONNECTS.jittered(failures, self.rng.f64());
            // To drop a connection is not always to close it: with a cancel on its way lapin was
            // seen to leave it open, and the broker then waits for answers to its deliveries.
            let closed = async {
                if let Some(session) = &left {
                    session.close("the session is given up").await;
                }
            };
            tokio::select! {
                _ = async { tokio::join!(tokio::time::sleep(pause), closed) } => {}
                _ = &mut stopped => return Ok(()),
            }
        }
        Ok(())
    }

    fn lost(&mut self, url: &AMQPUri, error: &SessionError) {
        self.progress.subscribed(false);
        self.progress.set_deliveries(None);
        self.progress.set_blocked(None);
        let cause = format!("{}: {error}", node(url));
        self.state.send_modify(|state| match state {
            LinkState::Connected { .. } => {
                *state = LinkState::Disconnected {
                    since: Timestamp::now(),
                    cause: cause.clone(),
                };
            }
            LinkState::Disconnected { cause: known, .. } => known.clone_from(&cause),
        });
        if self.causes.len() < CAUSES_MAX && self.causes.insert(cause.clone()) {
            warn!(cause, "no session with the broker; trying again");
        }
        drop(self.events.send(BrokerEvent::Lost));
    }

    async fn open(&mut self, url: &AMQPUri) -> Result<Session, SessionError> {
        let consuming = open(url, "wdt-cancel-worker: commands", self.mends).await?;
        let publishing = connect(url, "wdt-cancel-worker: results").await?;
        let found = topology::ensure(&publishing, &self.settings).await?;
        let inlet = consuming.create_channel().await?;
        let outlet = publishing.create_channel().await?;
        outlet
            .confirm_select(ConfirmSelectOptions::default())
            .await?;
        for difference in found.differences {
            if self.differences.insert(difference.clone()) {
                warn!(
                    difference,
                    remedy = DECLARE_ANEW,
                    "declared otherwise before, and used as it is"
                );
            }
        }
        if found.exchange_is_new {
            self.progress.exchange_is_new();
            self.warn_of_no_queue();
        }
        info!(
            server.address = url.authority.host,
            server.port = url.authority.port,
            messaging.destination.name = self.settings.queue,
            prefetch = self.window.width(),
            "connected to the broker"
        );
        Ok(Session {
            url: url.clone(),
            consuming,
            publishing,
            inlet,
            outlet,
        })
    }

    /// Serves until the worker has no more to settle, which is the end, or the session fails.
    async fn serve(&mut self, session: &Session) -> Result<(), SessionError> {
        self.causes.clear();
        self.state.send_replace(LinkState::Connected {
            since: Timestamp::now(),
        });
        let shares = intake::shares(&self.settings);
        let deliveries = Deliveries::on(session.inlet.clone(), shares);
        self.progress.set_deliveries(Some(deliveries.clone()));
        let (blocked_tx, blocked) = watch::channel(false);
        let watching = Watching {
            publishing: &session.publishing,
            consuming: &session.consuming,
            settings: &self.settings,
            progress: &self.progress,
            blocked: blocked_tx,
            deliveries: &deliveries,
        };
        let mut inlet = Inlet {
            connection: &session.consuming,
            settings: &self.settings,
            accounts: Accounts::new(&self.settings.accounts),
            wanted: self.wanted.clone(),
            deliveries: &deliveries,
            events: &self.events,
            tickets: &mut self.tickets,
            window: &mut self.window,
            progress: &self.progress,
        };
        let mut outlet = Outlet {
            channel: session.outlet.clone(),
            settings: &self.settings,
            publications: &mut self.publications,
            deliveries: &deliveries,
            events: &self.events,
            blocked,
            courier: Courier::new(session.url.clone()),
        };
        let failed = tokio::select! {
            settled = answer::settle(&mut self.settlements, &deliveries) => match settled {
                Ok(()) => {
                    tokio::time::sleep(SETTLING).await;
                    session.close("the worker stops").await;
                    return Ok(());
                }
                Err(error) => Err(error),
            },
            failed = inlet.run() => failed,
            failed = outlet.run() => failed,
            failed = watching.look() => failed,
            failed = watching.listen() => failed,
        };
        failed.map(|never| match never {})
    }

    fn warn_of_no_queue(&self) {
        let exchange = &self.settings.exchange;
        warn!(
            exchange,
            "no queue is bound to the results' exchange, so no result can be told; bind one with: wdt-cancel-worker bind QUEUE"
        );
    }
}

pub(super) fn node(url: &AMQPUri) -> String {
    let AMQPAuthority { host, port, .. } = &url.authority;
    format!("{host}:{port}")
}

/// Two connections with a channel each.
struct Session {
    url: AMQPUri,
    consuming: Connection,
    publishing: Connection,
    inlet: Channel,
    outlet: Channel,
}

impl Session {
    /// Closes both connections, if the broker answers in time.
    async fn close(&self, why: &str) {
        let close = async |connection: &Connection| {
            let closed = connection.close(200, why.into());
            drop(tokio::time::timeout(CLOSE_TIMEOUT, closed).await);
        };
        tokio::join!(close(&self.consuming), close(&self.publishing));
    }
}

/// Opens a connection, once the node has shown that it speaks.
///
/// # Errors
/// When the node cannot be reached, stays mute, or refuses the login or the virtual host.
pub async fn connect(url: &AMQPUri, name: &str) -> Result<Connection, SessionError> {
    open(url, name, false).await
}

/// The same; what comes may be mended on its way.
async fn open(url: &AMQPUri, name: &str, mends: bool) -> Result<Connection, SessionError> {
    let mut url = url.clone();
    url.query.heartbeat.get_or_insert(HEARTBEAT_SECONDS);
    greet(&url).await?;
    if mends {
        let relayed = mend::relay(&url).await;
        url = relayed.map_err(|error| SessionError::Network(error.to_string()))?;
    }
    let properties = ConnectionProperties::default().with_connection_name(name.into());
    match tokio::time::timeout(CONNECT_TIMEOUT, Connection::connect_uri(url, properties)).await {
        Ok(connection) => Ok(connection?),
        Err(_) => Err(SessionError::Network(format!(
            "no connection within {} s",
            CONNECT_TIMEOUT.as_secs()
        ))),
    }
}

/// Opens a connection to the first of these nodes that takes one.
///
/// # Errors
/// What the last one said.
pub async fn connect_any<'a, U>(urls: U, name: &str) -> anyhow::Result<Connection>
where
    U: IntoIterator<Item = &'a AMQPUri>,
{
    open_any(urls, name, false).await
}

/// The same; with `mends`, also for messages that the client library cannot read as they are.
pub(super) async fn open_any<'a, U>(urls: U, name: &str, mends: bool) -> anyhow::Result<Connection>
where
    U: IntoIterator<Item = &'a AMQPUri>,
{
    let mut failure = anyhow::anyhow!("amqp.url names no broker");
    for url in urls {
        match open(url, name, mends).await {
            Ok(connection) => return Ok(connection),
            Err(error) => {
                failure = match error.at(|| node(url)) {
                    refused @ SessionError::Refused { .. } => refused.into(),
                    error => {
                        anyhow::anyhow!("the broker at {}: {error}; check amqp.url", node(url))
                    }
                };
            }
        }
    }
    Err(failure)
}

/// A peer that accepts and stays mute would hang lapin's connect for ever and leak its thread.
async fn greet(url: &AMQPUri) -> Result<(), SessionError> {
    let address = (url.authority.host.as_str(), url.authority.port);
    let greeting = async {
        let mut stream = TcpStream::connect(address).await?;
        if url.scheme == AMQPScheme::AMQP {
            stream.write_all(b"AMQP\x00\x00\x09\x01").await?;
            stream.read_u8().await?;
        }
        Ok::<_, std::io::Error>(())
    };
    match tokio::time::timeout(GREETING_TIMEOUT, greeting).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(SessionError::Network(error.to_string())),
        Err(_) => Err(SessionError::Network(format!(
            "no answer within {} s",
            GREETING_TIMEOUT.as_secs()
        ))),
    }
}

/// What a session cannot notice by itself.
struct Watching<'a> {
    publishing: &'a Connection,
    consuming: &'a Connection,
    settings: &'a Settings,
    progress: &'a Progress,
    blocked: watch::Sender<bool>,
    deliveries: &'a Deliveries,
}

impl Watching<'_> {
    /// Looks at the queue now and then: a consumer can be cancelled without a word.
    ///
    /// One look proves nothing: the broker may have counted before it took a subscription that was
    /// made meanwhile, and a message may be on its way. So two in a row must find the same consumer
    /// idle, with nothing delivered in between, though it had room: what is in hand may be there for
    /// long, so it must not hide the silence.
    async fn look(&self) -> Result<Infallible, SessionError> {
        let channel = self.publishing.create_channel().await?;
        let mut suspect: Option<Mark> = None;
        tokio::time::sleep(FIRST_LOOK).await;
        loop {
            let mark = self.progress.mark();
            let passive = QueueDeclareOptions {
                passive: true,
                ..QueueDeclareOptions::default()
            };
            let look = channel.queue_declare(
                self.settings.queue.as_str().into(),
                passive,
                FieldTable::default(),
            );
            let queue = match tokio::time::timeout(LOOK_TIMEOUT, look).await {
                Ok(queue) => queue?,
                Err(_) if *self.blocked.borrow() => {
                    tokio::time::sleep(LOOK_EVERY).await;
                    continue;
                }
                Err(_) => return Err(SessionError::Network("the broker does not answer".into())),
            };
            let (ready, consumers) = (queue.message_count(), queue.consumer_count());
            self.progress.looked(ready.into(), consumers.into());
            let is_odd = queue.message_count() > 0 || queue.consumer_count() == 0;
            let has_room = self.progress.has_room(self.deliveries.unsettled());
            let now = mark.filter(|_| is_odd && has_room);
            if now.is_some() && now == suspect {
                return Err(SessionError::Silent);
            }
            suspect = now;
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Hears when the broker takes no publications, and when it is gone.
    async fn listen(&self) -> Result<Infallible, SessionError> {
        let mut events = futures_util::stream::select(
            self.publishing.events_listener(),
            self.consuming.events_listener(),
        );
        while let Some(event) = events.next().await {
            match event {
                Event::ConnectionBlocked(reason) => {
                    if !self.blocked.send_replace(true) {
                        warn!(reason, "the broker takes no publications; waiting");
                    }
                    self.progress.set_blocked(Some(reason));
                }
                Event::ConnectionUnblocked => {
                    if self.blocked.send_replace(false) {
                        info!("the broker takes publications again");
                    }
                    self.progress.set_blocked(None);
                }
                Event::Error(error) => return Err(error.into()),
                _ => {}
            }
        }
        error!("the connection's events ended");
        Err(SessionError::Network("the connection ended".into()))
    }
}
