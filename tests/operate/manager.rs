//! The service manager is told when the worker's loop turns, how it fares, and that it stops.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use crate::support::amqp::Command;
use crate::support::eventually::eventually_ok;
use crate::support::process::Signal;
use crate::support::scene::{LATER, SOON, Scene};

/// What has been told, a line each.
struct Heard {
    socket: UnixDatagram,
    lines: Vec<String>,
}

impl Heard {
    fn all(&mut self) -> &[String] {
        let mut bytes = [0; 4096];
        while let Ok(length) = self.socket.recv(&mut bytes) {
            let text = std::str::from_utf8(&bytes[..length]).unwrap();
            self.lines.extend(text.lines().map(str::to_owned));
        }
        &self.lines
    }

    fn count(&mut self, line: &str) -> usize {
        self.all().iter().filter(|l| *l == line).count()
    }

    async fn wait(&mut self, line: &str, times: usize) {
        eventually_ok(LATER, line, async || match self.count(line) {
            count if count >= times => Ok(()),
            _ => Err(self.lines.clone()),
        })
        .await;
    }
}

#[tokio::test]
async fn the_service_manager_hears_how_the_worker_fares() {
    let scene = Scene::fresh().await;
    let path = scene.setup.dir().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_nonblocking(true).unwrap();
    let mut heard = Heard {
        socket,
        lines: Vec::new(),
    };
    let scene = scene
        .set("NOTIFY_SOCKET", path.display())
        .set("WATCHDOG_USEC", 1_000_000);
    let amqp = scene.amqp().await;
    let _results = amqp.results().await;
    let mut worker = scene.worker().await;
    heard.wait("READY=1", 1).await;
    heard.wait("STATUS=ready", 1).await;
    heard.wait("WATCHDOG=1", 3).await;

    // A gateway that is away takes the account, and with it readiness.
    scene.gateway.down();
    amqp.send(&Command::orders(["QC-1"])).await;
    eventually_ok(LATER, "it is told what fails", async || {
        let failing = |line: &String| line.starts_with("STATUS=not ready: intake: no account");
        match heard.all().iter().any(failing) {
            true => Ok(()),
            false => Err(heard.lines.clone()),
        }
    })
    .await;
    scene.gateway.up();
    heard.wait("STATUS=ready", 2).await;

    worker.signal(Signal::TERM);
    heard.wait("STOPPING=1", 1).await;
    assert_eq!(worker.exit_code(SOON).await, 0);
    assert_eq!(heard.count("READY=1"), 1);
    assert_eq!(heard.count("STOPPING=1"), 1);
}

#[tokio::test]
async fn a_watchdog_of_another_process_hears_nothing_and_none_is_needed() {
    let scene = Scene::fresh().await;
    let path = scene.setup.dir().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_nonblocking(true).unwrap();
    let mut heard = Heard {
        socket,
        lines: Vec::new(),
    };
    let scene = scene
        .set("NOTIFY_SOCKET", path.display())
        .set("WATCHDOG_USEC", 1_000)
        .set("WATCHDOG_PID", 1);
    scene.amqp().await.declare_results().await;
    let mut worker = scene.worker().await;
    heard.wait("STATUS=ready", 1).await;
    assert_eq!(worker.terminate(SOON).await, 0);
    // The first goes with READY; no more follow, however short the time.
    assert!(heard.count("WATCHDOG=1") <= 1, "{:?}", heard.lines);

    let absent = scene.set("NOTIFY_SOCKET", "/nowhere/to/be/found");
    let mut worker = absent.worker().await;
    assert_eq!(worker.terminate(Duration::from_secs(20)).await, 0);
}
