//! The examples in docs/examples/ that need nothing but what `tests/run.sh` installs: against the real
//! worker, and against a test that plays one which is slow, repeats itself or is not there.

use std::path::{Path, PathBuf};
use std::sync::Once;

use lapin::BasicProperties;
use lapin::options::BasicPublishOptions;
use lapin::types::FieldTable;
use serde_json::{Value, json};
use uuid::Uuid;

use super::support::amqp::{Amqp, COMMANDS, Message, RESULTS};
use super::support::broker::Vhost;
use super::support::process::{PATH, Process, fresh_dir};
use super::support::scene::{LATER, Scene};

/// One of the examples, by the line that starts it.
struct Example {
    name: &'static str,
    line: Vec<String>,
}

impl Example {
    fn all() -> [Self; 2] {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let installed = root.join("target/examples");
        let example = |name, program: PathBuf, script: PathBuf| {
            for file in [&program, &script] {
                let there = file.exists();
                assert!(there, "{}: tests/run.sh installs it", file.display());
            }
            let line = [program, script].map(|path| path.to_str().unwrap().to_owned());
            Self {
                name,
                line: line.to_vec(),
            }
        };
        let node = installed.join("node/cancel.js");
        // Node looks for packages beside the script, so it is copied there.
        static COPIED: Once = Once::new();
        COPIED.call_once(|| {
            let source = root.join("docs/examples/node/cancel.js");
            let copied = std::fs::copy(&source, &node);
            copied.unwrap_or_else(|e| panic!("{e}: tests/run.sh makes {}", node.display()));
        });
        let python = root.join("docs/examples/python/cancel.py");
        [
            example("Python", installed.join("python/bin/python"), python),
            example("Node", program("node"), node),
        ]
    }

    fn start(&self, vhost: &Vhost, args: &[&str]) -> Run {
        let dir = fresh_dir("example");
        let log = dir.join("log");
        let vars = [("PATH", PATH), ("AMQP_URL", &vhost.url())]
            .map(|(name, value)| (name.to_owned(), value.to_owned()));
        let rest: Vec<&str> = self.line[1..].iter().map(String::as_str).collect();
        let process = Process::start(
            self.name,
            &self.line[0],
            &[&rest, args].concat(),
            &vars,
            &log,
        );
        Run(process)
    }
}

/// Where the shell would find it, which is not always on the tests' own path.
fn program(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders = std::env::split_paths(&path).chain(std::env::split_paths(PATH));
    let found = folders.find(|folder| folder.join(name).is_file());
    found.unwrap_or_default().join(name)
}

/// A started example.
struct Run(Process);

impl Run {
    /// How it ended, and the lines that it printed.
    async fn ended(mut self) -> (i32, Vec<String>) {
        let status = self.0.end_within(LATER).await;
        let lines = self.0.log().lines().map(Into::into).collect();
        let code = status.code();
        (code.unwrap_or_else(|| panic!("it {status}")), lines)
    }
}

#[tokio::test]
async fn each_sends_a_command_and_hears_what_became_of_its_orders() {
    let scene = Scene::fresh().await;
    scene.orders.set("SHIPPED", 70);
    let amqp = scene.amqp().await;
    let _bound = amqp.results().await;
    let mut worker = scene.worker().await;
    for example in Example::all() {
        let name = example.name;
        let (one, two) = (format!("{name}-1"), format!("{name}-单"));
        let args = ["--id", name, &one, &two];
        let (code, mut lines) = example.start(&scene.vhost, &args).ended().await;
        lines.sort();
        let expected = [format!("{one} cancelled"), format!("{two} cancelled")];
        assert_eq!((code, &lines[..]), (0, &expected[..]), "{name}");

        // Sent again it is told again, and nothing is sent to the gateway.
        let (code, mut again) = example.start(&scene.vhost, &args).ended().await;
        again.sort();
        assert_eq!((code, &again), (0, &lines), "{name}");
        assert_eq!(scene.orders.times_sent(&one), 1);

        let (code, lines) = example.start(&scene.vhost, &["SHIPPED"]).ended().await;
        assert_eq!(code, 1, "{name}: {lines:?}");
        assert!(
            lines[0].starts_with("SHIPPED refused order_state: 单据状态不是"),
            "{name}: {lines:?}"
        );

        let args = ["--account", "nobody", "QC-1"];
        let (code, lines) = example.start(&scene.vhost, &args).ended().await;
        assert_eq!(code, 1, "{name}: {lines:?}");
        assert!(
            lines[0].starts_with("QC-1 rejected unknown_account: "),
            "{name}: {lines:?}"
        );
    }
    assert_eq!(worker.terminate(LATER).await, 0);
}

#[tokio::test]
async fn each_bears_events_that_come_twice_and_ends_when_it_does_not_hear_of_all() {
    let vhost = Vhost::fresh().await;
    let amqp = Amqp::connect(&vhost.url()).await;
    amqp.declare_results().await;
    amqp.declare_queue(COMMANDS, FieldTable::default()).await;
    let mut commands = amqp.inbox(COMMANDS).await;
    for example in Example::all() {
        let name = example.name;
        // The worker repeats the first event, and is never heard of the other order.
        let run = example.start(&vhost, &["--timeout", "3", "--id", name, "A", "B"]);
        let command = commands.collect(1, LATER).await.remove(0);
        let first = event(&command, 0, "A");
        for _ in 0..2 {
            tell(&amqp, &command, &first).await;
        }
        let (code, lines) = run.ended().await;
        assert_eq!(code, 2, "{name}: {lines:?}");
        assert_eq!(lines[0], "A cancelled", "{name}");
        let late = format!("not heard of all orders of command {name} in time");
        assert_eq!(lines[1..], [late], "{name}");

        // It asks again by the same id, and both are told.
        let run = example.start(&vhost, &["--id", name, "A", "B"]);
        let command = commands.collect(1, LATER).await.remove(0);
        assert_eq!(command.message_id.as_deref(), Some(name));
        for event in [&first, &first, &event(&command, 1, "B")] {
            tell(&amqp, &command, event).await;
        }
        let (code, lines) = run.ended().await;
        let both = ["A cancelled", "B cancelled"].map(String::from);
        assert_eq!((code, lines), (0, both.to_vec()), "{name}");
    }
}

#[tokio::test]
async fn each_says_so_when_its_command_finds_no_queue() {
    let vhost = Vhost::fresh().await;
    for example in Example::all() {
        let (code, lines) = example.start(&vhost, &["QC-1"]).ended().await;
        assert_eq!(code, 1, "{}: {lines:?}", example.name);
        let said = lines.join("\n").to_lowercase();
        let words = ["unroutable", "there is no queue wdt.cancel.commands"];
        assert!(
            words.iter().any(|word| said.contains(word)),
            "{}: {said}",
            example.name
        );
    }
}

/// The event that the worker would send.
fn event(command: &Message, index: usize, order: &str) -> Value {
    let id = command.message_id.as_deref().unwrap();
    let name = format!("{id} {order}");
    json!({
        "event_id": Uuid::new_v5(&Uuid::NAMESPACE_OID, name.as_bytes()).to_string(),
        "command_id": id, "account": "default", "order_no": order, "outcome": "cancelled",
        "attempts": 1, "replayed": false, "index": index, "total": 2,
        "occurred_at": "2026-11-23T12:00:00.000Z",
    })
}

/// To the exchange, and to the requester if there is one.
async fn tell(amqp: &Amqp, command: &Message, event: &Value) {
    let channel = amqp.channel().await;
    let body = event.to_string();
    let queue = command.reply_to.as_deref();
    let addresses = [(RESULTS, Some("cancel.default.cancelled")), ("", queue)];
    for (exchange, key) in addresses {
        let Some(key) = key else { continue };
        let properties = BasicProperties::default()
            .with_message_id(event["event_id"].as_str().unwrap().into())
            .with_type("wdt.cancel.result.v1".into());
        let options = BasicPublishOptions::default();
        channel
            .basic_publish(
                exchange.into(),
                key.into(),
                options,
                body.as_bytes(),
                properties,
            )
            .await
            .unwrap();
    }
    channel.close(200, "done".into()).await.unwrap();
}
