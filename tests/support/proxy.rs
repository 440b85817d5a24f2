//! A cable between the worker and the broker that a test can pull, freeze, or cut half through.

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
    let mut broken = cable.clone();
    // What broke others before concerns nobody who comes later.
    broken.mark_unchanged();
    let end = {
        let (near_read, near_write) = near.split();
        let (far_read, far_write) = far.split();
        // One direction that ends ends both: AMQP has no half-closed connections.
        tokio::select! {
            () = copy(near_read, far_write, Way::ToBroker, cable.clone()) => Cable::Cut,
            () = copy(far_read, near_write, Way::ToWorker, cable) => Cable::Cut,
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
        match read {
            Ok(0) | Err(_) => return,
            Ok(n) if to.write_all(&bytes[..n]).await.is_err() => return,
            Ok(_) if state == Cable::Slow => tokio::time::sleep(SLOW_PAUSE).await,
            Ok(_) => {}
        }
    }
}
