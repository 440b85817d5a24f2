//! What the service manager is told, where one wants to hear it: systemd's `NOTIFY_SOCKET`
//! (sd_notify(3)), some datagrams to a socket of its. No other service manager sets the variable.

use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

/// The service manager, listening.
#[derive(Debug)]
pub struct Manager {
    socket: UnixDatagram,
    address: SocketAddr,
    /// Within such a time it wants to hear that the worker works, or it starts it anew.
    within: Option<Duration>,
}

impl Manager {
    /// The one that started this process; `None` when none did that listens.
    ///
    /// # Errors
    /// When the socket that the variable names cannot be used.
    pub fn from_env() -> io::Result<Option<Self>> {
        let Some(name) = std::env::var_os("NOTIFY_SOCKET") else {
            return Ok(None);
        };
        let address = match name.as_bytes() {
            [] => return Ok(None),
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            _ => SocketAddr::from_pathname(&name)?,
        };
        let socket = UnixDatagram::unbound()?;
        // A manager that does not read must not stop the worker.
        socket.set_nonblocking(true)?;
        let number = |name: &str| -> Option<u64> { std::env::var(name).ok()?.parse().ok() };
        let us = u64::from(std::process::id());
        let is_for_us = number("WATCHDOG_PID").is_none_or(|pid| pid == us);
        let within = number("WATCHDOG_USEC")
            .filter(|&micros| is_for_us && micros > 0)
            .map(Duration::from_micros);
        Ok(Some(Self {
            socket,
            address,
            within,
        }))
    }

    /// Tells it, if it listens. The next beat comes soon, so one that is lost is no matter.
    fn tell(&self, words: &str) {
        drop(self.socket.send_to_addr(words.as_bytes(), &self.address));
    }

    /// Tells how the worker fares, for as long as its loop turns: `turns` changes with each look
    /// that the loop takes around. When it no longer does, the manager hears nothing and starts the
    /// worker anew. `status` says it in a few words; `stop` changes when the worker is to stop.
    pub async fn follow<T>(
        &self,
        mut turns: watch::Receiver<T>,
        mut stop: watch::Receiver<u32>,
        status: impl Fn(&T) -> String,
    ) {
        let mut told = String::new();
        let mut beaten: Option<Instant> = None;
        let mut stops = false;
        loop {
            tokio::select! {
                turned = turns.changed() => {
                    // The worker's end drops the sender.
                    if turned.is_err() {
                        return;
                    }
                }
                Ok(()) = stop.changed(), if !stops => {
                    stops = true;
                    self.tell("STOPPING=1");
                    continue;
                }
            }
            let words = status(&turns.borrow_and_update());
            if beaten.is_none() {
                self.tell("READY=1");
            }
            if words != told {
                self.tell(&format!("STATUS={words}"));
                told = words;
            }
            // Half of the time, as sd_watchdog_enabled(3) advises.
            let is_due = |at: Instant| self.within.is_some_and(|t| at.elapsed() >= t / 2);
            if beaten.is_none_or(is_due) {
                self.tell("WATCHDOG=1");
                beaten = Some(Instant::now());
            }
        }
    }
}
