//! Processes that a test starts, and the promise that none of them outlives it.
//!
//! A test process can end in ways that run no destructor: a static is never dropped, a runner
//! kills what takes too long, somebody presses Ctrl-C. So there is one watchdog a test process: a
//! shell in a process group of its own that holds the pids and reads from a pipe. However the test
//! process ends, the kernel closes the pipe, and the watchdog kills what it still holds and
//! removes the files.
//!
//! The order closes the gap between starting and holding: a child waits at a gate (a `read` from
//! its own pipe), its pid is handed to the watchdog, and only then does the gate open and the
//! child becomes the program. The gate keeps the pid, so a signal hits the program itself.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Output, Stdio};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

pub use rustix::process::Signal;
use rustix::process::{Pid, kill_process};

use super::eventually::eventually_ok;

/// Where programs are looked for: a test must not depend on somebody's shell settings.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How much of a log's end is shown when a test fails.
const LOG_TAIL_BYTES: u64 = 8 * 1024;

const WATCHDOG: &str = r#"
held=' '
while read -r word pid; do
  case $word in
    hold) held="$held$pid " ;;
    free) held="${held%%" $pid "*} ${held#*" $pid "}" ;;
  esac
done
for pid in $held; do kill -9 "$pid"; done
# A process that is just dying may still write a file or two.
for try in 1 2 3 4 5 6 7 8 9 10; do rm -rf "$1" && break; sleep 0.2; done
"#;

const GATE: &str = r#"read -r go && exec "$@" </dev/null"#;

struct Watchdog {
    dir: PathBuf,
    pipe: Mutex<ChildStdin>,
    _shell: Child,
}

impl Watchdog {
    fn get() -> &'static Self {
        static WATCHDOG_OF_THIS_PROCESS: OnceLock<Watchdog> = OnceLock::new();
        WATCHDOG_OF_THIS_PROCESS.get_or_init(|| {
            let dir = tempfile::Builder::new()
                .prefix("wdt-test-")
                .tempdir()
                .expect("a temporary directory")
                .keep();
            let mut shell = Command::new("/bin/sh")
                .args(["-c", WATCHDOG, "watchdog"])
                .arg(&dir)
                .env_clear()
                .env("PATH", PATH)
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .process_group(0)
                .spawn()
                .expect("start the watchdog");
            let pipe = Mutex::new(shell.stdin.take().expect("the watchdog's pipe"));
            Self {
                dir,
                pipe,
                _shell: shell,
            }
        })
    }

    fn tell(&self, word: &str, pid: Pid) {
        let line = format!("{word} {}\n", pid.as_raw_nonzero());
        self.pipe
            .lock()
            .expect("the watchdog's pipe")
            .write_all(line.as_bytes())
            .expect("the watchdog is gone");
    }
}

/// A fresh directory; the watchdog removes it with everything else when the test process ends.
pub fn fresh_dir(what: &str) -> PathBuf {
    tempfile::Builder::new()
        .prefix(&format!("{what}-"))
        .tempdir_in(&Watchdog::get().dir)
        .expect("a directory of the test's own")
        .keep()
}

/// A port P that is free on the loopback address, P + 10000 being free as well (a broker takes
/// both). Both lie below Linux's range for outgoing connections, so nobody gets one by chance.
pub fn free_port() -> u16 {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    let mut given = GIVEN.lock().expect("the ports given so far");
    for _ in 0..1_000 {
        let port = fastrand::u16(10_000..22_000);
        let free = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
        if free(port) && free(port + 10_000) && given.insert(port) {
            return port;
        }
    }
    panic!("no free port on the loopback address");
}

/// A child process that cannot outlive the test process.
pub struct Process {
    what: String,
    pid: Pid,
    child: Child,
    log: PathBuf,
    ended: Option<ExitStatus>,
}

impl Process {
    /// Starts a program with exactly this environment; what it prints is appended to `log`.
    pub fn start(
        what: &str,
        program: impl AsRef<OsStr>,
        args: &[&str],
        env: &[(String, String)],
        log: &Path,
    ) -> Self {
        let out = File::options()
            .create(true)
            .append(true)
            .open(log)
            .expect("open a log");
        let mut child = Command::new("/bin/sh")
            .args(["-c", GATE, "gate"])
            .arg(program)
            .args(args)
            .env_clear()
            .envs(env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(out.try_clone().expect("a second handle of the log"))
            .stderr(out)
            // Ctrl-C is for the test process; the watchdog passes the end on.
            .process_group(0)
            .spawn()
            .unwrap_or_else(|e| panic!("start {what}: {e}"));
        let pid = Pid::from_child(&child);
        Watchdog::get().tell("hold", pid);
        let mut gate = child.stdin.take().expect("the gate's pipe");
        gate.write_all(b"go\n").expect("open the gate");
        Self {
            what: what.into(),
            pid,
            child,
            log: log.into(),
            ended: None,
        }
    }

    /// The process id, of the program itself.
    pub fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// How it ended, if it did. This is the only place that reaps, so the pid stays its own till then.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().expect("look at a child");
            if self.ended.is_some() {
                Watchdog::get().tell("free", self.pid);
            }
        }
        self.ended
    }

    /// Sends a signal; panics when the process has ended.
    pub fn signal(&mut self, signal: Signal) {
        let ended = self.ended();
        assert!(
            ended.is_none(),
            "{} has ended ({ended:?}):\n{}",
            self.what,
            self.log_tail()
        );
        kill_process(self.pid, signal).unwrap_or_else(|e| panic!("signal {}: {e}", self.what));
    }

    /// Waits for its end; panics with the log's end when the limit passes.
    pub async fn end_within(&mut self, limit: Duration) -> ExitStatus {
        let what = format!("{} ends", self.what);
        eventually_ok(limit, &what, async || match self.ended() {
            Some(status) => Ok(status),
            None => Err(self.log_tail()),
        })
        .await
    }

    /// SIGKILL, and waits until it is gone. Does nothing when it has ended already.
    pub fn kill9(&mut self) {
        if self.ended().is_some() {
            return;
        }
        kill_process(self.pid, Signal::KILL).expect("kill a child");
        self.ended = Some(self.child.wait().expect("wait for a killed child"));
        Watchdog::get().tell("free", self.pid);
    }

    /// Everything it printed.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// The last of what it printed, for a failing test's message.
    pub fn log_tail(&self) -> String {
        let mut text = Vec::new();
        if let Ok(mut file) = File::open(&self.log) {
            let size = file.metadata().map_or(0, |m| m.len());
            let _ = file.seek(SeekFrom::Start(size.saturating_sub(LOG_TAIL_BYTES)));
            let _ = file.take(LOG_TAIL_BYTES).read_to_end(&mut text);
        }
        String::from_utf8_lossy(&text).into_owned()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- {} said last:\n{}---", self.what, self.log_tail());
        }
        self.kill9();
    }
}

/// Runs a short-lived program to its end, or kills it once the limit has passed. `input` must fit
/// into a pipe (64 KiB), and so must what it prints: nothing is read before it has ended.
pub fn run(command: &mut Command, input: &str, limit: Duration) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("start {command:?}: {e}"));
    let mut stdin = child.stdin.take().expect("the child's input");
    // A program that ends without reading breaks the pipe; its output then says more.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    let end = Instant::now() + limit;
    while child.try_wait().expect("look at a child").is_none() {
        if Instant::now() > end {
            child.kill().expect("kill a child");
            break;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    child.wait_with_output().expect("what the child printed")
}
