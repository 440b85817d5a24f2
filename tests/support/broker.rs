//! A RabbitMQ of the test's own: on the loopback address, on ports and in a directory of its own,
//! started from the installed package without touching the system's broker. The recipe is in
//! `deploy/lib-broker.sh`; the demo starts its broker from the same.
//!
//! [`Broker::shared`] is one for the test process; a test takes a virtual host of its own there,
//! which costs milliseconds. [`Broker::start`] is one that a test may kill, freeze and restart:
//! those verbs take `&mut self`, so nobody can do that to the shared one.
//!
//! Looking inside and giving orders goes through `erl_call`, which comes with the Erlang that
//! RabbitMQ needs: it calls what `rabbitmqctl` calls, in 5 ms instead of 400. The counts of a quorum
//! queue are read from its state machine. `rabbitmqctl` and the management plugin tell figures
//! that are up to 5 s old for those, and a test that believes an old zero passes when it must not.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::OnceCell;
use tokio::time::timeout;

use super::eventually::{eventually, eventually_ok};
use super::process::{self, PATH, Process, Signal, free_port, fresh_dir};

/// A start takes 3 to 6 s on two idle cores, and a minute where a dozen builds compete for them;
/// beyond this it is broken.
const START_LIMIT: Duration = Duration::from_secs(180);
/// Another process may take a port between our look and the broker's; then other ports will do.
const STARTS: usize = 3;
/// One order to the broker's inside. It answers in milliseconds, or it is frozen.
const CONSOLE_LIMIT: Duration = Duration::from_secs(30);
/// How long a queue may be in between two states.
const BETWEEN_LIMIT: Duration = Duration::from_secs(10);
/// An AMQP 0-9-1 server answers this with a method frame, whose first byte is 1.
const AMQP_HEADER: &[u8] = b"AMQP\0\0\x09\x01";
/// Below what a test machine has, above what RabbitMQ takes (150 MiB); as in the recipe.
const MEMORY_LIMIT: &str = "1GB";
/// The recipe.
const LIB_BROKER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/lib-broker.sh");
/// Where another RabbitMQ than the installed one is; the recipe knows what to do with it.
const CHROOT: &str = "RABBITMQ_CHROOT";
/// A step of the recipe takes milliseconds.
const RECIPE_LIMIT: Duration = Duration::from_secs(10);
/// Names connections of the kit, so that [`Vhost::close_connections`] spares them.
pub const KIT_CONNECTION: &str = "wdt-test";

/// True when RabbitMQ, and the Erlang tools the kit uses, are installed here.
pub fn is_installed() -> bool {
    recipe(&["broker_installed"]).is_ok()
}

/// Runs one function of the recipe; `Err` with what it said when it fails.
fn recipe(call: &[&str]) -> Result<(), String> {
    let mut bash = Command::new("bash");
    bash.args(["-c", ". \"$0\" && \"$@\"", LIB_BROKER])
        .args(call)
        .env_clear()
        .env("PATH", PATH)
        .envs(std::env::var_os(CHROOT).map(|root| (CHROOT, root)));
    let output = process::run(&mut bash, "", RECIPE_LIMIT);
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

/// A running broker. It ends with its value, and the shared one with the test process.
pub struct Broker {
    // Dropped in this order: the files go when nobody writes them any more.
    vm: Process,
    _epmd: Option<Process>,
    files: Files,
    inside: Arc<Inside>,
    vhosts: AtomicU32,
    frozen: bool,
}

impl Broker {
    /// The one broker of this test process, started by whoever asks first.
    pub async fn shared() -> &'static Self {
        static SHARED: OnceCell<Broker> = OnceCell::const_new();
        SHARED.get_or_init(Self::start).await
    }

    /// A broker of this test's own.
    pub async fn start() -> Self {
        assert!(
            is_installed(),
            "RabbitMQ is not installed here, and this test needs it: run tests/run.sh, which sets it up"
        );
        let mut said = String::new();
        for _ in 0..STARTS {
            let files = Files::new();
            let epmd = files.start_epmd();
            let mut broker = Self::boot(files, Some(epmd));
            match broker.ready().await {
                Ok(()) => return broker,
                Err(why) => said = why,
            }
        }
        panic!("the broker did not start, {STARTS} times; the last time it said:\n{said}");
    }

    /// Three nodes of one cluster, with one epmd; the first of them ends it.
    pub async fn start_cluster() -> [Self; 3] {
        let mut said = String::new();
        for _ in 0..STARTS {
            let [first, second, third] = Files::cluster();
            let epmd = first.start_epmd();
            let mut nodes = [
                Self::boot(first, Some(epmd)),
                Self::boot(second, None),
                Self::boot(third, None),
            ];
            match Self::form(&mut nodes).await {
                Ok(()) => return nodes,
                Err(why) => said = why,
            }
        }
        panic!("the cluster did not start, {STARTS} times; the last time a node said:\n{said}");
    }

    async fn form(nodes: &mut [Self; 3]) -> Result<(), String> {
        for node in nodes.iter_mut() {
            node.ready().await?;
        }
        for node in nodes {
            let running = "length([node() | nodes()])";
            eventually_ok(
                START_LIMIT,
                "three nodes are one cluster",
                async || match node.inside.try_ask::<usize>(running).await {
                    Ok(3) => Ok(()),
                    other => Err(other),
                },
            )
            .await;
        }
        Ok(())
    }

    fn boot(files: Files, epmd: Option<Process>) -> Self {
        Self {
            vm: files.start_vm(),
            _epmd: epmd,
            inside: Arc::new(Inside::new(&files)),
            files,
            vhosts: AtomicU32::new(0),
            frozen: false,
        }
    }

    /// Its version is this one or a later one.
    pub async fn is_at_least(&self, major: u32, minor: u32) -> bool {
        let version: String = self
            .inside
            .ask("list_to_binary(rabbit_misc:version())")
            .await;
        let mut numbers = version.split('.').map(|n| n.parse().unwrap_or(0));
        (numbers.next(), numbers.next()) >= (Some(major), Some(minor))
    }

    /// A fresh virtual host.
    pub async fn vhost(&self) -> Vhost {
        let number = self.vhosts.fetch_add(1, Ordering::Relaxed);
        let vhost = Vhost {
            name: format!("test-{number}"),
            port: self.files.port,
            inside: self.inside.clone(),
        };
        vhost
            .inside
            .order(&format!(
                r#"V = <<"{}">>, Everything = <<".*">>,
                rabbit_vhost:add(V, <<"test">>),
                rabbit_auth_backend_internal:set_permissions(
                    <<"guest">>, V, Everything, Everything, Everything, <<"test">>)"#,
                vhost.name
            ))
            .await;
        vhost
    }

    /// The AMQP port.
    pub fn port(&self) -> u16 {
        self.files.port
    }

    /// Where its files are.
    pub fn dir(&self) -> &Path {
        &self.files.dir
    }

    /// The Erlang VM's process id.
    pub fn pid(&self) -> i32 {
        self.vm.pid()
    }

    /// SIGKILL to the Erlang VM; returns when it is gone.
    ///
    /// RabbitMQ 3.10.8 forgets a quorum queue that was declared less than about a second before
    /// (the name of its log is written half a second late): the queue comes back without its
    /// confirmed messages and never gets a leader. A test would meet that by chance, so the names
    /// are written before, unless the broker is frozen. Messages are not touched.
    pub async fn kill9(&mut self) {
        if self.vm.ended().is_none() && !self.frozen {
            self.inside
                .order("[dets:sync(Table) || Table <- dets:all()]")
                .await;
        }
        self.vm.kill9();
        self.frozen = false;
    }

    /// Starts it again on the same port and with the same data, after [`Self::kill9`] or from
    /// running; returns when it is ready. Virtual hosts keep their URL.
    pub async fn restart(&mut self) {
        self.kill9().await;
        self.vm = self.files.start_vm();
        if let Err(said) = self.ready().await {
            panic!("the broker did not come back:\n{said}");
        }
    }

    /// SIGSTOP: it accepts TCP connections and stays mute, until [`Self::thaw`].
    pub fn freeze(&mut self) {
        self.vm.signal(Signal::STOP);
        self.frozen = true;
    }

    /// SIGCONT.
    pub fn thaw(&mut self) {
        self.vm.signal(Signal::CONT);
        self.frozen = false;
    }

    /// Gives it more memory than a test needs, such as `4GB`, for a very long queue.
    pub async fn allow_memory(&self, limit: &str) {
        self.set_memory_limit(limit, false).await;
    }

    /// Raises the memory alarm: whoever publishes is blocked, until [`Self::end_alarm`].
    pub async fn raise_alarm(&mut self) {
        self.set_memory_limit("1MB", true).await;
    }

    /// Ends the memory alarm.
    pub async fn end_alarm(&mut self) {
        self.set_memory_limit(MEMORY_LIMIT, false).await;
    }

    /// Raises the disk alarm: whoever publishes is blocked, until [`Self::end_disk_alarm`].
    pub async fn raise_disk_alarm(&mut self) {
        // More than any disk has: an exabyte.
        self.set_disk_limit("1000000000000000000", true).await;
    }

    /// Ends the disk alarm.
    pub async fn end_disk_alarm(&mut self) {
        self.set_disk_limit("50000000", false).await;
    }

    /// Closes a channel that has held a delivery for this long (406, PRECONDITION_FAILED), as every
    /// broker does after half an hour. Holds for channels that are opened from now on.
    pub async fn limit_holding(&mut self, time: Duration) {
        self.inside
            .order(&format!(
                // The ages are looked at when a channel ticks.
                "application:set_env(rabbit, channel_tick_interval, 500),
                application:set_env(rabbit, consumer_timeout, {})",
                time.as_millis()
            ))
            .await;
    }

    /// The largest message that channels take which are opened from now on; a larger one closes its
    /// channel (406, PRECONDITION_FAILED).
    pub async fn limit_size(&mut self, bytes: usize) {
        self.inside
            .order(&format!(
                // One is of 3.10, the other of 4.0 and later.
                "application:set_env(rabbit, max_message_size, {bytes}),
                persistent_term:put(max_message_size, {bytes})"
            ))
            .await;
    }

    /// From now on it listens on another port too, with TLS, as `localhost`. The port, and the
    /// certificate of whoever signed the broker's, made for this, as PEM.
    pub async fn listen_with_tls(&self) -> (u16, String) {
        let port = free_port();
        // OTP's own maker of test certificates; its defaults are those of long ago.
        let authority = self
            .inside
            .ask(&format!(
                r#"begin
                    {{ok, _}} = application:ensure_all_started(ssl),
                    By = [{{digest, sha256}}, {{key, {{rsa, 2048, 65537}}}}],
                    Name = {{'Extension', {{2, 5, 29, 17}}, false, [{{dNSName, "localhost"}}]}},
                    Chain = #{{root => By, intermediates => [], peer => [{{extensions, [Name]}} | By]}},
                    #{{server_config := Server, client_config := Client}} =
                        public_key:pkix_test_data(#{{server_chain => Chain, client_chain => Chain}}),
                    ok = rabbit_networking:start_ssl_listener(
                        {{"127.0.0.1", {port}}}, proplists:delete(cacerts, Server), 2),
                    public_key:pem_encode([{{'Certificate', Der, not_encrypted}}
                        || Der <- proplists:get_value(cacerts, Client)])
                end"#
            ))
            .await;
        (port, authority)
    }

    /// From now on its management listens, on the port that this returns.
    pub async fn manage(&self) -> u16 {
        let port = free_port();
        let plugins = self.dir().join("plugins");
        std::fs::write(&plugins, "[rabbitmq_management].\n").expect("the list of plugins");
        self.inside
            .order(&format!(
                r#"application:load(rabbitmq_management),
                application:set_env(rabbitmq_management, tcp_config,
                    [{{port, {port}}}, {{ip, "127.0.0.1"}}]),
                {{ok, _, _}} = rabbit_plugins:ensure("{}")"#,
                plugins.display()
            ))
            .await;
        port
    }

    async fn set_memory_limit(&self, limit: &str, alarm: bool) {
        let order =
            format!(r#"vm_memory_monitor:set_vm_memory_high_watermark({{absolute, "{limit}"}})"#);
        self.set_alarm(&order, alarm).await;
    }

    async fn set_disk_limit(&self, bytes: &str, alarm: bool) {
        let order = format!("rabbit_disk_monitor:set_disk_free_limit({bytes})");
        self.set_alarm(&order, alarm).await;
    }

    async fn set_alarm(&self, order: &str, alarm: bool) {
        self.inside.order(order).await;
        eventually(CONSOLE_LIMIT, "the alarm changes", async || {
            let raised: bool = self.inside.ask("rabbit_alarm:get_alarms() /= []").await;
            (raised == alarm).then_some(())
        })
        .await;
    }

    /// Waits until it has booted and speaks AMQP; `Err` with its log's end when it has ended instead.
    async fn ready(&mut self) -> Result<(), String> {
        let port = self.files.port;
        let what = format!("a broker is ready on port {port}");
        let (vm, inside) = (&mut self.vm, &self.inside);
        eventually_ok(START_LIMIT, &what, async || {
            if vm.ended().is_some() {
                return Ok(Err(vm.log_tail()));
            }
            if !speaks_amqp(port).await {
                return Err("no AMQP".to_string());
            }
            // It listens before the last steps of its start have run.
            match inside.try_ask("rabbit:is_running()").await? {
                true => Ok(Ok(())),
                false => Err("not running yet".to_string()),
            }
        })
        .await
    }
}

async fn speaks_amqp(port: u16) -> bool {
    let first_byte = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
        stream.write_all(AMQP_HEADER).await.ok()?;
        stream.read_u8().await.ok()
    };
    timeout(Duration::from_secs(1), first_byte).await == Ok(Some(1))
}

/// The broker's directory and ports; they outlive a restart.
struct Files {
    dir: PathBuf,
    port: u16,
    epmd_port: u16,
}

impl Files {
    fn new() -> Self {
        let files = Self::at(free_port());
        files.write(&[]);
        files
    }

    fn cluster() -> [Self; 3] {
        let epmd_port = free_port();
        let nodes = [(); 3].map(|()| Self::at(epmd_port));
        let cookie = format!("{:032x}", fastrand::u128(..));
        let mut cluster = vec![cookie];
        cluster.extend(nodes.iter().map(|node| node.port.to_string()));
        let cluster: Vec<&str> = cluster.iter().map(String::as_str).collect();
        for node in &nodes {
            node.write(&cluster);
        }
        nodes
    }

    fn at(epmd_port: u16) -> Self {
        Self {
            dir: fresh_dir("broker"),
            port: free_port(),
            epmd_port,
        }
    }

    fn write(&self, cluster: &[&str]) {
        let (dir, port) = (self.dir.display().to_string(), self.port.to_string());
        let epmd_port = self.epmd_port.to_string();
        let own = ["write_private_broker", &dir, &port, &epmd_port];
        recipe(&[&own, cluster].concat()).unwrap_or_else(|said| panic!("{said}"));
    }

    fn start_epmd(&self) -> Process {
        let start = self.dir.join("start-epmd");
        Process::start("epmd", start, &[], &[], &self.dir.join("epmd.log"))
    }

    fn start_vm(&self) -> Process {
        let start = self.dir.join("start");
        let log = self.dir.join("start.log");
        Process::start("rabbitmq-server", start, &[], &[], &log)
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        // The watchdog removes what is left, in case the VM still writes.
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// The way into the broker's VM.
struct Inside {
    erl_call: PathBuf,
    calls: AtomicU32,
}

impl Inside {
    fn new(files: &Files) -> Self {
        Self {
            erl_call: files.dir.join("erl_call"),
            calls: AtomicU32::new(0),
        }
    }

    /// Evaluates an Erlang expression for its effect.
    async fn order(&self, expression: &str) {
        let done: String = self
            .ask(&format!("begin {expression}, <<\"done\">> end"))
            .await;
        assert_eq!(done, "done", "{expression}");
    }

    /// Evaluates an Erlang expression, whose value must be fit for JSON: text is a binary.
    async fn ask<T: DeserializeOwned>(&self, expression: &str) -> T {
        self.try_ask(expression)
            .await
            .unwrap_or_else(|said| panic!("the broker said {said:?} to {expression}"))
    }

    async fn try_ask<T: DeserializeOwned>(&self, expression: &str) -> Result<T, String> {
        let code = format!("io:format(\"~ts\", [rabbit_json:encode({expression})]).\n");
        // Two callers of one name would throw each other out.
        let call = self.calls.fetch_add(1, Ordering::Relaxed);
        let name = format!("ask-{}-{call}", std::process::id());
        let mut command = Command::new(&self.erl_call);
        command
            .args(["-h", &name, "-fetch_stdout", "-e"])
            .env_clear()
            .env("PATH", PATH);
        let output =
            tokio::task::spawn_blocking(move || process::run(&mut command, &code, CONSOLE_LIMIT))
                .await
                .expect("ask the broker");
        let mut said = String::from_utf8_lossy(&output.stdout).into_owned();
        // What was printed, and then what the printing returned.
        if let Some(json) = said.strip_suffix("{ok, ok}")
            && let Ok(value) = serde_json::from_str(json)
        {
            return Ok(value);
        }
        said.push_str(&String::from_utf8_lossy(&output.stderr));
        Err(said)
    }
}

/// One queue as the broker sees it at this moment.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Queue {
    pub name: String,
    pub ready: u64,
    pub unacked: u64,
    pub consumers: u64,
}

/// How a queue or an exchange was declared.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Declared {
    /// `quorum`, `classic` or `topic`.
    pub kind: String,
    pub durable: bool,
    pub arguments: BTreeMap<String, Value>,
}

/// One consumer as the broker sees it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Consumer {
    pub queue: String,
    pub tag: String,
    /// 0 is no bound.
    pub prefetch: u64,
    pub manual_ack: bool,
    /// False while the node that it was connected to is away: it may come back with it.
    pub connected: bool,
}

/// A virtual host of the test's own: nobody else's queues, consumers or connections.
#[derive(Clone)]
pub struct Vhost {
    name: String,
    port: u16,
    inside: Arc<Inside>,
}

impl Vhost {
    /// A fresh one on the shared broker.
    pub async fn fresh() -> Self {
        Broker::shared().await.vhost().await
    }

    /// The AMQP port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The same virtual host by way of another node of the cluster.
    pub fn seen_from(&self, node: &Broker) -> Self {
        Self {
            name: self.name.clone(),
            port: node.files.port,
            inside: node.inside.clone(),
        }
    }

    /// Where clients connect.
    pub fn url(&self) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}/{}", self.port, self.name)
    }

    /// Where clients connect as a user that this call makes, who may do everything here.
    pub async fn url_of_another_user(&self) -> String {
        let user = format!("user-of-{}", self.name);
        self.url_of_a_user(&user, &user).await
    }

    /// The same, for a user of this name with this password.
    pub async fn url_of_a_user(&self, user: &str, password: &str) -> String {
        self.inside
            .order(&format!(
                r#"U = <<"{user}">>, Everything = <<".*">>,
                rabbit_auth_backend_internal:add_user(U, <<"{password}">>, <<"test">>),
                rabbit_auth_backend_internal:set_permissions(
                    U, <<"{}">>, Everything, Everything, Everything, <<"test">>)"#,
                self.name
            ))
            .await;
        let credentials = format!("{user}:{password}");
        self.url().replace("guest:guest", &credentials)
    }

    /// From now on the broker copies every publication into the exchange `amq.rabbitmq.trace`, with
    /// the routing key `publish.EXCHANGE`.
    pub async fn trace(&self) {
        let name = &self.name;
        self.inside
            .order(&format!(r#"rabbit_trace:start(<<"{name}">>)"#))
            .await;
    }

    /// All its queues, by name.
    pub async fn queues(&self) -> Vec<Queue> {
        let counts = format!(
            r#"[begin
                {{Ready, Unacked, Consumers}} = case amqqueue:get_type(Q) of
                    rabbit_quorum_queue ->
                        {{ok, {{_, S}}, _}} = ra:local_query(
                            amqqueue:get_pid(Q), fun rabbit_fifo:overview/1),
                        {{maps:get(num_ready_messages, S), maps:get(num_checked_out, S),
                         maps:get(num_consumers, S)}};
                    _ ->
                        [{{_, R}}, {{_, U}}, {{_, C}}] = rabbit_amqqueue:info(
                            Q, [messages_ready, messages_unacknowledged, consumers]),
                        {{R, U, C}}
                end,
                #{{name => element(4, amqqueue:get_name(Q)),
                  ready => Ready, unacked => Unacked, consumers => Consumers}}
            end || Q <- rabbit_amqqueue:list(<<"{}">>)]"#,
            self.name
        );
        // A queue that is just being created, deleted or recovered cannot be read for a moment.
        let what = format!("the queues of {} can be read", self.name);
        let mut queues: Vec<Queue> = eventually_ok(BETWEEN_LIMIT, &what, async || {
            self.inside.try_ask(&counts).await
        })
        .await;
        queues.sort_by(|a, b| a.name.cmp(&b.name));
        queues
    }

    /// One queue, if it exists.
    pub async fn queue(&self, name: &str) -> Option<Queue> {
        self.queues().await.into_iter().find(|q| q.name == name)
    }

    /// Waits until a queue holds exactly this many messages ready and unacknowledged.
    pub async fn queue_holds(&self, limit: Duration, name: &str, ready: u64, unacked: u64) {
        let what = format!("{name} holds {ready} ready and {unacked} unacknowledged");
        eventually_ok(limit, &what, async || match self.queue(name).await {
            Some(queue) if (queue.ready, queue.unacked) == (ready, unacked) => Ok(()),
            other => Err(other),
        })
        .await;
    }

    /// All consumers.
    pub async fn consumers(&self) -> Vec<Consumer> {
        let consumers = format!(
            r#"[#{{queue => element(4, proplists:get_value(queue_name, C)),
                 tag => proplists:get_value(consumer_tag, C),
                 prefetch => proplists:get_value(prefetch_count, C),
                 manual_ack => proplists:get_value(ack_required, C),
                 connected => lists:member(
                     node(proplists:get_value(channel_pid, C)), [node() | nodes()])}}
               || C <- rabbit_amqqueue:consumers_all(<<"{}">>)]"#,
            self.name
        );
        // A queue whose leader is gone cannot be asked for a moment.
        let what = format!("the consumers of {} can be read", self.name);
        eventually_ok(BETWEEN_LIMIT, &what, async || {
            self.inside.try_ask(&consumers).await
        })
        .await
    }

    /// The node that leads a quorum queue, by its AMQP port.
    pub async fn leader(&self, queue: &str) -> u16 {
        let leader = self.of_members(
            queue,
            "{ok, _, {_, Leader}} = ra:members({Name, node()}, 5000), atom_to_binary(Leader)",
        );
        let what = format!("{queue} has a leader");
        eventually_ok(BETWEEN_LIMIT, &what, async || {
            let node: String = self.inside.try_ask(&leader).await?;
            let port = node.strip_prefix("wdt-").and_then(|n| n.split('@').next());
            port.and_then(|port| port.parse().ok()).ok_or(node)
        })
        .await
    }

    /// Waits until this node has its member of a quorum queue of three, at work.
    pub async fn has_member(&self, limit: Duration, queue: &str) {
        let members = self.of_members(
            queue,
            "{ok, _, _} = ra:local_query({Name, node()}, fun rabbit_fifo:overview/1),
            {ok, Members, _} = ra:members({Name, node()}, 5000), length(Members)",
        );
        let what = format!("the node at {} has a member of {queue}", self.port);
        eventually_ok(limit, &what, async || {
            match self.inside.try_ask::<usize>(&members).await {
                Ok(3) => Ok(()),
                other => Err(other),
            }
        })
        .await;
    }

    fn of_members(&self, queue: &str, expression: &str) -> String {
        format!(
            r#"begin
                {{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"{}">>, queue, <<"{queue}">>)),
                {{Name, _}} = amqqueue:get_pid(Q), {expression}
            end"#,
            self.name
        )
    }

    /// Makes a quorum queue forget its consumers without a word to them; tells how many.
    pub async fn forget_consumers(&self, queue: &str) -> usize {
        let forgotten: Vec<bool> = self
            .inside
            .ask(&format!(
                r#"begin
                    {{ok, Q}} = rabbit_amqqueue:lookup(
                        rabbit_misc:r(<<"{}">>, queue, <<"{queue}">>)),
                    [begin
                        Cancel = rabbit_fifo:make_checkout(
                            {{element(2, C), element(1, C)}}, cancel, #{{}}),
                        {{ok, _, _}} = ra:process_command(amqqueue:get_pid(Q), Cancel), true
                    end || C <- rabbit_amqqueue:consumers(Q)]
                end"#,
                self.name
            ))
            .await;
        forgotten.len()
    }

    /// How a queue was declared, if it exists.
    pub async fn declared_queue(&self, name: &str) -> Option<Declared> {
        self.inside
            .ask(&format!(
                r#"case rabbit_amqqueue:lookup(rabbit_misc:r(<<"{}">>, queue, <<"{name}">>)) of
                    {{ok, Q}} ->
                        #{{kind => case amqqueue:get_type(Q) of
                              rabbit_quorum_queue -> quorum; rabbit_classic_queue -> classic end,
                          durable => amqqueue:is_durable(Q),
                          arguments => maps:from_list(
                              [{{K, V}} || {{K, _, V}} <- amqqueue:get_arguments(Q)])}};
                    _ -> null
                end"#,
                self.name
            ))
            .await
    }

    /// How an exchange was declared, if it exists.
    pub async fn declared_exchange(&self, name: &str) -> Option<Declared> {
        self.inside
            .ask(&format!(
                r#"case rabbit_exchange:lookup(rabbit_misc:r(<<"{}">>, exchange, <<"{name}">>)) of
                    {{ok, X}} ->
                        maps:put(arguments, #{{}}, maps:from_list([{{kind, T}} || {{type, T}} <-
                            rabbit_exchange:info(X, [type])] ++ rabbit_exchange:info(X, [durable])));
                    _ -> null
                end"#,
                self.name
            ))
            .await
    }

    /// Closes every connection to this virtual host except the kit's own, as an operator would
    /// (320, CONNECTION_FORCED); tells how many.
    pub async fn close_connections(&self) -> usize {
        let closed: Vec<bool> = self
            .inside
            .ask(&format!(
                r#"[begin (catch rabbit_networking:close_connection(P, "closed by a test")), true end
                   || P <- rabbit_networking:connections(),
                      [{{vhost, <<"{}">>}}, {{client_properties, Ps}}] <-
                          [catch rabbit_networking:connection_info(
                              P, [vhost, client_properties])],
                      lists:keyfind(<<"connection_name">>, 1, Ps) /=
                          {{<<"connection_name">>, longstr, <<"{KIT_CONNECTION}">>}}]"#,
                self.name
            ))
            .await;
        closed.len()
    }
}
