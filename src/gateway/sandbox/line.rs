//! A listener whose connections can be ended in the middle of things: what an HTTP server never
//! does by itself, and networks do.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};

use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Connections open at a time; more wait to be accepted. Two calls at a time is what the gateway
/// is known to bear, so this only keeps a runaway client from using up the machine.
const CONNECTIONS_MAX: usize = 1_024;

const OPEN: u8 = 0;
const CLOSE: u8 = 1;
const RESET: u8 = 2;

/// Accepts [`Line`]s.
pub struct Lines {
    tcp: TcpListener,
    room: Arc<Semaphore>,
}

impl Lines {
    /// Accepts from this socket.
    pub fn new(tcp: TcpListener) -> Self {
        Self {
            tcp,
            room: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
        }
    }
}

impl Listener for Lines {
    type Io = Line;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Line, SocketAddr) {
        // The semaphore is never closed, so a connection always gets its place.
        let place = Arc::clone(&self.room).acquire_owned().await.ok();
        let (tcp, addr) = Listener::accept(&mut self.tcp).await;
        let line = Line {
            tcp,
            end: Arc::new(AtomicU8::new(OPEN)),
            _place: place,
        };
        (line, addr)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        TcpListener::local_addr(&self.tcp)
    }
}

/// One connection.
pub struct Line {
    tcp: TcpStream,
    end: Arc<AtomicU8>,
    _place: Option<OwnedSemaphorePermit>,
}

/// Ends one connection: from then on not a byte is written to it. The server notices when it writes
/// the response that the handler still has to return.
#[derive(Clone)]
pub struct HangUp(Arc<AtomicU8>);

impl HangUp {
    /// The connection is closed; the peer reads its end.
    pub fn close(&self) {
        self.0.store(CLOSE, Ordering::Release);
    }

    /// The connection is reset; the peer's next read or write fails.
    pub fn reset(&self) {
        self.0.store(RESET, Ordering::Release);
    }
}

impl Connected<IncomingStream<'_, Lines>> for HangUp {
    fn connect_info(stream: IncomingStream<'_, Lines>) -> Self {
        Self(Arc::clone(&stream.io().end))
    }
}

impl AsyncRead for Line {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_read(cx, buf)
    }
}

impl AsyncWrite for Line {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.end.load(Ordering::Acquire) {
            OPEN => return Pin::new(&mut self.tcp).poll_write(cx, buf),
            // With no time to linger, closing sends a reset instead of an orderly end.
            RESET => self.tcp.set_zero_linger()?,
            _ => {}
        }
        Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}
