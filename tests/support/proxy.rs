//! A cable between the worker and the broker that a test can pull, or cut half through.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use super::process::free_port;

/// What the cable does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cable {
    /// Bytes pass.
    Whole,
    /// Connections stay open, new ones are taken, and no byte passes either way.
    Mute,
    /// Connections are closed, new ones as soon as they come.
    Cut,
    /// Nobody listens.
    Gone,
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
        match state {
            Cable::Gone => listener = None,
            Cable::Whole | Cable::Mute | Cable::Cut if listener.is_none() => {
                let bound = TcpListener::bind(("127.0.0.1", port)).await;
                listener = Some(bound.expect("the proxy's port"));
            }
            Cable::Whole | Cable::Mute | Cable::Cut => {}
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

async fn pass(near: TcpStream, target: u16, cable: watch::Receiver<Cable>) {
    let Ok(far) = TcpStream::connect(("127.0.0.1", target)).await else {
        return;
    };
    let (near_read, near_write) = near.into_split();
    let (far_read, far_write) = far.into_split();
    // One direction that ends ends both: AMQP has no half-closed connections.
    tokio::select! {
        () = copy(near_read, far_write, cable.clone()) => {}
        () = copy(far_read, near_write, cable) => {}
    }
}

async fn copy(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut cable: watch::Receiver<Cable>,
) {
    let mut bytes = vec![0; 64 * 1024];
    loop {
        // Bytes wait in the kernel, as on a line that loses every packet.
        if cable.wait_for(|c| *c != Cable::Mute).await.is_err() {
            return;
        }
        let read = tokio::select! {
            read = from.read(&mut bytes) => read,
            changed = cable.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return,
            },
        };
        match read {
            Ok(0) | Err(_) => return,
            Ok(n) if to.write_all(&bytes[..n]).await.is_err() => return,
            Ok(_) => {}
        }
    }
}
