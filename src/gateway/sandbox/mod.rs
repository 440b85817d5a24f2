//! An emulator of the gateway, for trying things out and for tests.
//!
//! It checks a call in the order in which the platform seems to, and answers in its words as far as
//! public sources tell them. What they do not tell is made up here: which check comes first, that a
//! number never heard of names a checked order (state 20), the words for a missing parameter. An
//! order's number can ask for its fate by its beginning ([`fault::PREFIXES`]), and faults can strike
//! by chance ([`fault::Rate`]).
//!
//! Everything it remembers is in memory and bounded: orders by [`Options::remembered_orders`],
//! calls by the quota, bodies and connections by constants.

mod book;
mod call;
pub mod fault;
mod line;
mod serve;

use std::collections::HashMap;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub use book::Order;
pub use call::{BODY_MAX_BYTES, CLOCK_TOLERANCE_SECONDS, Calls};

use super::sign::AppSecret;
use book::{Book, Luck};
use call::Gate;
use fault::{Rate, Rates};

/// How long a stop waits for calls in hand, before connections are left to themselves.
const STOP_PATIENCE: Duration = Duration::from_secs(2);

/// One seller's credentials.
#[derive(Debug, Clone)]
pub struct Account {
    /// The seller. Accounts of one sid share its orders.
    pub sid: String,
    /// The app key; quota and concurrency are kept by sid and key.
    pub key: String,
    /// The app secret.
    pub secret: AppSecret,
}

/// How the sandbox behaves.
pub struct Options {
    /// Where to listen; port 0 picks a free one.
    pub listen: SocketAddr,
    /// Who may call; at least one.
    pub accounts: Vec<Account>,
    /// Faults that strike by chance.
    pub faults: Vec<Rate>,
    /// Decides about chance: with the same seed and the same calls one after the other, the same
    /// faults strike.
    pub seed: u64,
    /// How many times a prefix plays its fault before the order heals.
    pub fault_times: u32,
    /// How long the fault `slow` keeps an answer back.
    pub slow: Duration,
    /// How long every answer takes at least.
    pub latency: Duration,
    /// Calls in a sliding minute by sid and key; 0 is no limit.
    pub calls_per_minute: u32,
    /// Calls at a time by sid and key; 0 is no limit.
    pub concurrency: u32,
    /// The longest list in one cancel.
    pub max_orders_per_call: usize,
    /// How far the gateway's clock is ahead of this machine's; negative when it is behind.
    pub clock_offset_seconds: i64,
    /// Whether the accounts may look orders up.
    pub query_permission: bool,
    /// How many orders are remembered by sid; then the oldest is forgotten and is as new when it is
    /// named again.
    pub remembered_orders: usize,
    /// Where each call is told in one line. Written to while the call waits, so it should not
    /// block for long; errors are ignored.
    pub out: Box<dyn Write + Send>,
}

impl Default for Options {
    /// On a free local port, as the `sandbox` subcommand otherwise, and silent.
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            accounts: Vec::new(),
            faults: Vec::new(),
            seed: 0,
            fault_times: 1,
            // Longer than the 30 s that official clients wait.
            slow: Duration::from_secs(35),
            latency: Duration::ZERO,
            // What integrators use; the real number is not published.
            calls_per_minute: 60,
            concurrency: 0,
            // What the sibling batch method takes; the real number is not published.
            max_orders_per_call: 20,
            clock_offset_seconds: 0,
            query_permission: true,
            remembered_orders: 1_000_000,
            out: Box::new(std::io::sink()),
        }
    }
}

/// The emulator.
pub struct Sandbox {
    accounts: Vec<Account>,
    slow: Duration,
    latency: Duration,
    calls_per_minute: u32,
    concurrency: u32,
    max_orders_per_call: usize,
    clock_offset_seconds: i64,
    query_permission: bool,
    remembered_orders: usize,
    state: Mutex<State>,
    out: Mutex<Box<dyn Write + Send>>,
    stopping: watch::Receiver<bool>,
}

/// What calls change.
struct State {
    books: HashMap<String, Book>,
    gates: Vec<Gate>,
    calls: Calls,
    luck: Luck,
}

impl Sandbox {
    /// Listens and serves until the returned [`Running`] is stopped or dropped.
    ///
    /// # Errors
    /// When the options contradict themselves or the address cannot be listened on.
    pub async fn start(options: Options) -> anyhow::Result<Running> {
        let rates = Rates::new(&options.faults)?;
        anyhow::ensure!(!options.accounts.is_empty(), "the sandbox needs an account");
        for (index, account) in options.accounts.iter().enumerate() {
            let same = |a: &Account| a.sid == account.sid && a.key == account.key;
            anyhow::ensure!(
                !options.accounts[..index].iter().any(same),
                "sid {} with key {} is given twice",
                account.sid,
                account.key
            );
        }
        anyhow::ensure!(
            options.max_orders_per_call > 0,
            "a cancel must be allowed to name an order"
        );
        // One call's orders, -1 documents included, must not push each other out.
        anyhow::ensure!(
            options.remembered_orders / 2 >= options.max_orders_per_call,
            "at least {} orders must be remembered, twice as many as a call names",
            options.max_orders_per_call.saturating_mul(2)
        );

        let tcp = TcpListener::bind(options.listen)
            .await
            .with_context(|| format!("cannot listen on {}", options.listen))?;
        let addr = tcp.local_addr().context("cannot tell the own address")?;
        let (stop, stopping) = watch::channel(false);
        let sandbox = Arc::new(Self {
            slow: options.slow,
            latency: options.latency,
            calls_per_minute: options.calls_per_minute,
            concurrency: options.concurrency,
            max_orders_per_call: options.max_orders_per_call,
            clock_offset_seconds: options.clock_offset_seconds,
            query_permission: options.query_permission,
            remembered_orders: options.remembered_orders,
            state: Mutex::new(State {
                books: HashMap::new(),
                gates: options.accounts.iter().map(|_| Gate::default()).collect(),
                calls: Calls::default(),
                luck: Luck {
                    rates,
                    plays: options.fault_times,
                    rng: fastrand::Rng::with_seed(options.seed),
                },
            }),
            accounts: options.accounts,
            out: Mutex::new(options.out),
            stopping,
        });

        let service = serve::router(Arc::clone(&sandbox))
            .into_make_service_with_connect_info::<line::HangUp>();
        let ending = Arc::clone(&sandbox);
        let server = tokio::spawn(async move {
            let served = axum::serve(line::Lines::new(tcp), service)
                .with_graceful_shutdown(async move { ending.stopped().await });
            // Accepting is retried and connections fail by themselves: this has no error.
            let _ = served.await;
        });
        Ok(Running {
            addr,
            record: Record(sandbox),
            stop,
            server,
        })
    }

    /// Ends when a stop is asked for, or nobody is left who could.
    async fn stopped(&self) {
        let mut stopping = self.stopping.clone();
        let _ = stopping.wait_for(|stop| *stop).await;
    }

    /// A call that panicked is a bug; the others' states are whole all the same.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, line: &str) {
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = writeln!(out, "{line}");
    }
}

/// A sandbox that serves. Dropping it ends it without waiting.
pub struct Running {
    /// Where it listens.
    pub addr: SocketAddr,
    record: Record,
    stop: watch::Sender<bool>,
    server: JoinHandle<()>,
}

impl Running {
    /// What to give a worker on this machine as `api.url`.
    pub fn url(&self) -> String {
        let mut addr = self.addr;
        // "Every address of this machine" is a place to listen at, not one to call.
        match addr.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => addr.set_ip(Ipv4Addr::LOCALHOST.into()),
            IpAddr::V6(ip) if ip.is_unspecified() => addr.set_ip(Ipv6Addr::LOCALHOST.into()),
            IpAddr::V4(_) | IpAddr::V6(_) => {}
        }
        format!("http://{addr}{}", serve::PATH)
    }

    /// Read access that outlives this handle.
    pub fn record(&self) -> Record {
        self.record.clone()
    }

    /// Stops listening, lets calls in hand finish (slow ones are cut short) for up to 2 s, and
    /// returns when the port is free.
    pub async fn stop(mut self) {
        // Nobody listens any more only when the server is gone already.
        let _ = self.stop.send(true);
        let patience = tokio::time::timeout(STOP_PATIENCE, &mut self.server);
        if patience.await.is_err() {
            self.server.abort();
            // An aborted task has dropped its socket once it is joined.
            let _ = self.server.await;
        }
    }
}

/// What happened in a sandbox, to be read at any time.
#[derive(Clone)]
pub struct Record(Arc<Sandbox>);

impl Record {
    /// How many calls came, by method.
    pub fn calls(&self) -> Calls {
        self.0.state().calls
    }

    /// One order of this seller, if a cancel named it and it is not forgotten.
    pub fn order(&self, sid: &str, number: &str) -> Option<Order> {
        self.0.state().books.get(sid)?.get(number).cloned()
    }

    /// All orders of this seller that are remembered, in the order in which they were first named.
    pub fn orders(&self, sid: &str) -> Vec<(String, Order)> {
        let state = self.0.state();
        let orders = state.books.get(sid).into_iter().flat_map(Book::iter);
        orders
            .map(|(number, order)| (number.to_owned(), order.clone()))
            .collect()
    }
}
