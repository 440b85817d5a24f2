//! A cable between the worker and the broker that a test can pull, freeze, or cut half through.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use super::process::free_port;

/// What passes at once on a slow cable, each way, and how long nothing passes then: 40 KB a second.
const SLOW_BYTES: usize = 1024;
const SLOW_PAUSE: Duration = Duration::from_millis(25);

/// What the cable does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cable {
    /// Bytes pass.
    Whole,
    /// They pass, few at a time.
    Slow,
    /// Connections stay open, new ones are taken, and no byte passes either way.
    Mute,
    /// As that, but what the broker says passes.
    MuteToBroker,
    /// As that, but what the worker says passes.
    MuteToWorker,
    /// What is open is reset (RST) on both sides; what comes later passes.
    Reset,
    /// What is open ends at the broker, and the worker hears nothing of it; what comes later passes.
    HalfOpenAtWorker,
    /// What is open ends at the worker, and the broker hears nothing of it; what comes later passes.
    HalfOpenAtBroker,
    /// AMQP connections that are made meanwhile carry all but deliveries, as long as they last: the
    /// broker counts what it sent as delivered. Others pass.
    WithoutDeliveries,
    /// Connections are closed, new ones as soon as they come.
    Cut,
    /// Nobody listens.
    Gone,
}

/// Where bytes go.
#[derive(Clone, Copy)]
enum Way {
    ToBroker,
    ToWorker,
}

impl Cable {
    fn passes(self, way: Way) -> bool {
        match (self, way) {
            (Self::Mute, _)
            | (Self::MuteToBroker, Way::ToBroker)
            | (Self::MuteToWorker, Way::ToWorker) => false,
            (
                Self::Whole
                | Self::Slow
                | Self::MuteToBroker
                | Self::MuteToWorker
                | Self::Reset
                | Self::HalfOpenAtWorker
                | Self::HalfOpenAtBroker
                | Self::WithoutDeliveries
                | Self::Cut
                | Self::Gone,
                _,
            ) => true,
        }
    }

    /// What it does to connections that are open when it becomes like this.
    fn breaks(self) -> bool {
        matches!(
            self,
            Self::Reset | Self::HalfOpenAtWorker | Self::HalfOpenAtBroker
        )
    }
}

/// A listener on the loopback address that passes bytes on to another port.
pub struct Proxy {
    port: u16,
    cable: watch::Sender<Cable>,
    taken: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// To this port, whether or not somebody listens there.
    pub fn to(target: u16, cable: Cable) -> Self {
        let port = free_port();
        let (sender, receiver) = watch::channel(cable);
        let taken = Arc::new(AtomicUsize::new(0));
        let task = tokio::spawn(run(port, target, receiver, taken.clone()));
        Self {
            port,
            cable: sender,
            taken,
            task,
        }
    }

    /// Where to connect instead.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// A URL of the target, by way of this.
    pub fn url(&self, target: &str) -> String {
        let (scheme_and_user, rest) = target.split_once('@').expect("a URL with a user");
        let (_, path) = rest.split_once('/').expect("a URL with a virtual host");
        format!("{scheme_and_user}@127.0.0.1:{}/{path}", self.port)
    }

    /// From now on the cable is like this.
    pub fn set(&self, cable: Cable) {
        self.cable.send_replace(cable);
    }

    /// How many connections were taken so far.
    pub fn taken(&self) -> usize {
        self.taken.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn run(port: u16, target: u16, mut cable: watch::Receiver<Cable>, taken: Arc<AtomicUsize>) {
    let mut listener = None;
    let mut connections = JoinSet::new();
    loop {
        let state = *cable.borrow_and_update();
        if matches!(state, Cable::Cut | Cable::Gone) {
            connections.shutdown().await;
        }
        if state == Cable::Gone {
            listener = None;
        } else if listener.is_none() {
            let bound = TcpListener::bind(("127.0.0.1", port)).await;
            listener = Some(bound.expect("the proxy's port"));
        }
        let accept = async {
            match &listener {
                Some(listener) => listener.accept().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = cable.changed() => if changed.is_err() { return },
            accepted = accept => {
                let Ok((near, _)) = accepted else { continue };
                taken.fetch_add(1, Ordering::SeqCst);
                if *cable.borrow() != Cable::Cut {
                    connections.spawn(pass(near, target, cable.clone()));
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn pass(mut near: TcpStream, target: u16, cable: watch::Receiver<Cable>) {
    let Ok(mut far) = TcpStream::connect(("127.0.0.1", target)).await else {
        return;
    };
    let withheld = (*cable.borrow() == Cable::WithoutDeliveries).then(Withheld::default);
    let mut broken = cable.clone();
    // What broke others before concerns nobody who comes later.
    broken.mark_unchanged();
    let end = {
        let (near_read, near_write) = near.split();
        let (far_read, far_write) = far.split();
        // One direction that ends ends both: AMQP has no half-closed connections.
        tokio::select! {
            () = copy(near_read, far_write, Way::ToBroker, cable.clone(), None) => Cable::Cut,
            () = copy(far_read, near_write, Way::ToWorker, cable, withheld) => Cable::Cut,
            end = until_broken(broken) => end,
        }
    };
    match end {
        Cable::Reset => {
            for stream in [&near, &far] {
                stream.set_zero_linger().expect("a TCP option");
            }
        }
        Cable::HalfOpenAtWorker => {
            drop(far);
            std::future::pending().await
        }
        Cable::HalfOpenAtBroker => {
            drop(near);
            std::future::pending().await
        }
        _ => {}
    }
}

async fn until_broken(mut cable: watch::Receiver<Cable>) -> Cable {
    while cable.changed().await.is_ok() {
        let state = *cable.borrow_and_update();
        if state.breaks() {
            return state;
        }
    }
    std::future::pending().await
}

async fn copy(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    way: Way,
    mut cable: watch::Receiver<Cable>,
    mut withheld: Option<Withheld>,
) {
    let mut bytes = vec![0; 64 * 1024];
    loop {
        // Bytes wait in the kernel, as on a line that loses every packet.
        let Ok(state) = cable.wait_for(|c| c.passes(way)).await.map(|c| *c) else {
            return;
        };
        let most = match state {
            Cable::Slow => SLOW_BYTES,
            _ => bytes.len(),
        };
        let read = tokio::select! {
            read = from.read(&mut bytes[..most]) => read,
            changed = cable.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return,
            },
        };
        let passed = match (read, &mut withheld) {
            (Ok(0) | Err(_), _) => return,
            (Ok(n), None) => &bytes[..n],
            (Ok(n), Some(withheld)) => &withheld.rest(&bytes[..n]),
        };
        if to.write_all(passed).await.is_err() {
            return;
        }
        if state == Cable::Slow {
            tokio::time::sleep(SLOW_PAUSE).await;
        }
    }
}

/// Takes the deliveries out of what a broker says: for each its method, its header and its body.
#[derive(Default)]
struct Withheld {
    /// The beginning of a frame of which the rest is still to come.
    begun: Vec<u8>,
    /// Channels on which a delivery's content may follow.
    content: BTreeSet<[u8; 2]>,
}

impl Withheld {
    /// Kinds of frames.
    const METHOD: u8 = 1;
    const HEADER: u8 = 2;
    const BODY: u8 = 3;
    /// `basic.deliver`, class and method.
    const DELIVER: [u8; 4] = [0, 60, 0, 60];
    /// Kind, channel and size, and the mark that ends a frame.
    const HEAD_BYTES: usize = 7;
    const AROUND_BYTES: usize = Self::HEAD_BYTES + 1;

    /// Whole frames, without those that are withheld.
    fn rest(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.begun.extend_from_slice(bytes);
        let (mut at, mut passed) = (0, Vec::new());
        while let Some(&[kind, a, b, ref size @ ..]) =
            self.begun[at..].first_chunk::<{ Self::HEAD_BYTES }>()
        {
            let size = u32::from_be_bytes(*size) as usize;
            let Some(frame) = self.begun[at..].get(..size + Self::AROUND_BYTES) else {
                break;
            };
            at += frame.len();
            let channel = [a, b];
            let is_withheld = match kind {
                Self::METHOD if frame[Self::HEAD_BYTES..].starts_with(&Self::DELIVER) => {
                    self.content.insert(channel);
                    true
                }
                Self::METHOD => {
                    self.content.remove(&channel);
                    false
                }
                Self::HEADER | Self::BODY => self.content.contains(&channel),
                _ => false,
            };
            if !is_withheld {
                passed.extend_from_slice(frame);
            }
        }
        self.begun.drain(..at);
        passed
    }
}
