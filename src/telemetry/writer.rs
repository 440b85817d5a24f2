//! The log's way out: a buffer and a thread, so that whoever logs never waits for whoever reads.
//!
//! A terminal that is stopped, or a pipe whose reader is stuck, would hold up the worker otherwise.
//! What has gathered while the last piece was written goes out as one, so many lines cost one system
//! call. When nobody reads for long, lines are dropped and counted; warnings and errors have room of
//! their own.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

/// What waits to be written, at most: some seconds of lines at full speed.
const WAITING_MAX_BYTES: usize = 4 * 1024 * 1024;
/// Beside that, for warnings and errors alone.
const URGENT_MAX_BYTES: usize = 1024 * 1024;
/// Before a piece is written, more lines are waited for: to be woken costs more than to write. Warnings
/// and errors go at once.
const GATHER: Duration = Duration::from_millis(5);
/// At the end, what waits is written within this time, or not at all.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Default)]
struct State {
    waiting: Vec<u8>,
    /// The thread has a piece in its hands.
    writes: bool,
    /// The thread has nothing to do, and is to be woken.
    sleeps: bool,
    /// What is there is to be written at once.
    hurries: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    more: Condvar,
    empty: Condvar,
    dropped: AtomicU64,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, line: &[u8], room: usize) {
        let is_urgent = room > WAITING_MAX_BYTES;
        let mut state = self.lock();
        if state.waiting.len() + line.len() > room {
            drop(state);
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        state.waiting.extend_from_slice(line);
        state.hurries |= is_urgent;
        let is_due = std::mem::take(&mut state.sleeps) || is_urgent;
        drop(state);
        if is_due {
            self.more.notify_one();
        }
    }

    /// Writes what has gathered, as long as the process lives. An output that fails is given up: there
    /// is nobody to tell.
    fn run(&self, mut output: impl Write) -> ! {
        let mut piece = Vec::new();
        let mut fails = false;
        loop {
            let mut state = self.lock();
            state.writes = false;
            if state.waiting.is_empty() {
                self.empty.notify_all();
                state.sleeps = true;
                let more = self
                    .more
                    .wait_while(state, |state| state.waiting.is_empty());
                state = more.unwrap_or_else(PoisonError::into_inner);
            }
            let gathered = self
                .more
                .wait_timeout_while(state, GATHER, |state| !state.hurries);
            state = gathered.unwrap_or_else(PoisonError::into_inner).0;
            std::mem::swap(&mut piece, &mut state.waiting);
            state.writes = true;
            state.hurries = false;
            drop(state);
            let written = !fails
                && output
                    .write_all(&piece)
                    .and_then(|()| output.flush())
                    .is_ok();
            fails = !written;
            piece.clear();
        }
    }
}

/// Where lines go; clones go to the same place.
#[derive(Clone)]
pub struct Lines(Arc<Shared>);

impl std::fmt::Debug for Lines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Lines")
    }
}

impl Lines {
    /// Starts the thread that writes to `output`.
    ///
    /// # Errors
    /// When there can be no thread.
    pub fn to(output: impl Write + Send + 'static) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let its = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("log".into())
            .spawn(move || its.run(output))?;
        Ok(Self(shared))
    }

    /// Lines that were dropped because nobody read the log.
    pub fn dropped(&self) -> u64 {
        self.0.dropped.load(Ordering::Relaxed)
    }

    /// Waits until what was logged is written, but not for ever.
    pub fn flush(&self) {
        let end = Instant::now() + FLUSH_TIMEOUT;
        let mut state = self.0.lock();
        state.hurries = true;
        self.0.more.notify_one();
        while !state.waiting.is_empty() || state.writes {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let woken = self.0.empty.wait_timeout(state, left);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// One line on its way.
#[derive(Debug)]
pub struct Line {
    to: Lines,
    room: usize,
}

impl Write for Line {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.to.0.write(line, self.room);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line {
            to: self.clone(),
            room: WAITING_MAX_BYTES,
        }
    }

    fn make_writer_for(&'a self, what: &Metadata<'_>) -> Line {
        let is_urgent = *what.level() <= Level::WARN;
        let more = if is_urgent { URGENT_MAX_BYTES } else { 0 };
        Line {
            to: self.clone(),
            room: WAITING_MAX_BYTES + more,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    /// An output that takes a piece only when it is told to, and shows what it took.
    struct Stuck {
        leave: Receiver<()>,
        taken: Sender<Vec<u8>>,
    }

    impl Write for Stuck {
        fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
            self.leave.recv().map_err(io::Error::other)?;
            self.taken.send(piece.to_vec()).map_err(io::Error::other)?;
            Ok(piece.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_is_stuck_holds_nobody_up_and_what_is_dropped_is_counted() {
        let (go, leave) = channel();
        let (taken, pieces) = channel();
        let lines = Lines::to(Stuck { leave, taken }).unwrap();
        let line = vec![b'x'; 1024 * 1024];
        let usual = |text: &[u8]| lines.0.write(text, WAITING_MAX_BYTES);
        let urgent = |text: &[u8]| lines.0.write(text, WAITING_MAX_BYTES + URGENT_MAX_BYTES);
        usual(b"first\n");
        let limit = Instant::now() + Duration::from_secs(10);
        while !lines.0.lock().writes {
            assert!(Instant::now() < limit, "the thread takes what is there");
            std::thread::yield_now();
        }
        // Four fill the buffer.
        (0..9).for_each(|_| usual(&line));
        assert_eq!(lines.dropped(), 5);
        urgent(b"urgent\n");
        assert_eq!(lines.dropped(), 5);

        let mut text = Vec::new();
        while !text.ends_with(b"urgent\n") {
            go.send(()).unwrap();
            text.extend(pieces.recv_timeout(Duration::from_secs(10)).unwrap());
        }
        assert!(text.starts_with(b"first\n"));
        lines.flush();
        usual(b"later\n");
        go.send(()).unwrap();
        let piece = pieces.recv_timeout(Duration::from_secs(10)).unwrap();
        assert_eq!(piece, b"later\n");
    }

    #[test]
    fn what_was_logged_is_written_when_flush_returns() {
        let (go, leave) = channel();
        let (taken, pieces) = channel();
        (0..100).for_each(|_| go.send(()).unwrap());
        let lines = Lines::to(Stuck { leave, taken }).unwrap();
        for i in 0..100 {
            lines
                .0
                .write(format!("{i}\n").as_bytes(), WAITING_MAX_BYTES);
        }
        lines.flush();
        let text: Vec<u8> = pieces.try_iter().flatten().collect();
        let expected: String = (0..100).map(|i| format!("{i}\n")).collect();
        assert_eq!(String::from_utf8(text).unwrap(), expected);
    }
}
