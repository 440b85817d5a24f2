//! No secret, signature or signed URL in anything that a run writes: the log at its loudest, errors,
//! pages, metrics, traces, events, dead letters, the ledger, command lines.
#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, its helpers too"
)]

#[path = "observe/collector.rs"]
#[allow(dead_code, reason = "only what comes as it is looked at here")]
mod collector;
mod support;

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use collector::Collector;
use serde_json::json;
use support::amqp::{Amqp, COMMANDS, Command, DEAD, Inbox};
use support::broker::Vhost;
use support::eventually::eventually_ok;
use support::gateway::{Account, Answer, Gateway, Request};
use support::process::{Signal, fresh_dir};
use support::scene::{LATER, SOON};
use support::worker::Setup;

const PASSWORD: &str = "amqpPassw0rd-Zq7Kf";
const USER: &str = "user-of-secrets";

/// With characters that a URL writes otherwise.
fn account() -> Account {
    Account {
        sid: "sid-of-the-shop".into(),
        key: "AppKey+Zq7/Kf3=".into(),
        secret: "AppSecret+Xw9/Pd5=".into(),
        salt: "AppSalt+Mn2/Rt8=".into(),
    }
}

/// Everything that may appear nowhere, in every form in which it might.
struct Forbidden(Vec<(String, String)>);

impl Forbidden {
    fn new() -> Self {
        let Account {
            key, secret, salt, ..
        } = account();
        let mut all = Self(Vec::new());
        for secret in [
            PASSWORD,
            &key,
            &secret,
            &salt,
            "TlsSecretNobodyKnows",
            "WrongSecret+Value/1=",
        ] {
            all.add(secret);
        }
        // As SASL's PLAIN sends it.
        all.add(&format!("\0{USER}\0{PASSWORD}"));
        all
    }

    fn add(&mut self, secret: &str) {
        let hex: String = secret.bytes().map(|b| format!("{b:02x}")).collect();
        let url: String = secret
            .bytes()
            .map(|b| match b {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => {
                    char::from(b).to_string()
                }
                _ => format!("%{b:02X}"),
            })
            .collect();
        let escaped = secret.replace('\0', "\\u0000");
        // A list of numbers is how some print bytes.
        let list: Vec<String> = secret.bytes().map(|b| b.to_string()).collect();
        for form in [secret.to_owned(), escaped, hex, url, list.join(", ")] {
            self.0.push((secret.to_owned(), form.to_lowercase()));
        }
        // Base64 by itself, and with what comes before it cut at each of the three places.
        for skip in 0..3 {
            let text = base64(&secret.as_bytes()[skip..]);
            // The last group depends on what follows.
            let safe = text.trim_end_matches('=');
            let safe = &safe[..safe.len() - safe.len() % 4];
            self.0.push((secret.to_owned(), safe.to_lowercase()));
        }
    }

    fn check(&self, what: &str, text: &[u8]) {
        let text = String::from_utf8_lossy(text).to_lowercase();
        for (secret, form) in &self.0 {
            if let Some(at) = text.find(form.as_str()) {
                let around: String = text[..at].chars().rev().take(200).collect();
                let around: String = around.chars().rev().collect();
                panic!("{what} holds {secret:?} as {form:?}, after: {around}");
            }
        }
        // A signed URL, whatever its signature.
        for part in ["sign=", "sign%3d"] {
            for (at, _) in text.match_indices(part) {
                let value = &text[at + part.len()..];
                assert!(value.starts_with("***"), "{what} holds a signed URL");
            }
        }
    }

    fn check_file(&self, path: &Path) {
        if let Ok(bytes) = std::fs::read(path) {
            self.check(&path.display().to_string(), &bytes);
        }
    }
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let all =
            group.iter().fold(0_u32, |n, b| n << 8 | u32::from(*b)) << (8 * (3 - group.len()));
        for place in 0..4 {
            text.push(match place <= group.len() {
                true => char::from(DIGITS[(all >> (18 - 6 * place)) as usize & 63]),
                false => '=',
            });
        }
    }
    text
}

/// A gateway that repeats what it was asked, by the order's name.
fn indiscreet(request: &Request) -> Answer {
    let query: Vec<String> = request
        .query
        .iter()
        .map(|(n, v)| format!("{n}={v}"))
        .collect();
    let url = format!("http://gateway/openapi?{}", query.join("&"));
    // As the request line had it.
    let encoded: Vec<String> = request
        .query
        .iter()
        .map(|(n, v)| {
            format!(
                "{n}={}",
                v.replace('+', "%2B")
                    .replace('/', "%2F")
                    .replace('=', "%3D")
            )
        })
        .collect();
    let encoded = format!("/openapi?{}", encoded.join("&"));
    let sign = request.param("sign").to_owned();
    let orders = request.orders();
    let is = |name: &str| orders.iter().any(|order| order == name);
    if request.method() != support::gateway::CANCEL {
        return match request.method() {
            support::gateway::NOW => {
                Answer::Json(json!({ "status": 0, "data": request.gateway_time }))
            }
            _ => Answer::Json(json!({ "status": 0, "data": { "total_count": 0, "order": [] } })),
        };
    }
    if is("PAGE") {
        return Answer::http(500, "text/html", &format!("<html>{url} {encoded}</html>"));
    }
    if is("GARBLED") {
        return Answer::http(200, "text/html", &format!("sign {sign} of {url}"));
    }
    if is("REDIRECT") {
        return Answer::Raw {
            status: 302,
            headers: vec![("location".into(), format!("http://127.0.0.1:9{encoded}"))],
            body: url.into(),
        };
    }
    if is("CUT") {
        return Answer::CutBody(json!({ "status": 0, "message": url }));
    }
    if is("RESET") {
        return Answer::Reset;
    }
    if is("NOT-UTF-8") {
        let mut body = url.into_bytes();
        body.push(0xff);
        return Answer::Raw {
            status: 200,
            headers: Vec::new(),
            body,
        };
    }
    if is("WORDS") {
        let words = format!(
            "refused: {url} {encoded} {} {}",
            sign.to_uppercase(),
            account().key.to_uppercase()
        );
        return Answer::orders(&[], &[("WORDS".to_owned(), words)]);
    }
    if is("STATUS") {
        return Answer::status(100, &format!("不能为空: {encoded}"));
    }
    Answer::orders(&orders, &[])
}

async fn vhost_with_password() -> (Vhost, String) {
    let vhost = Vhost::fresh().await;
    let url = vhost.url_of_a_user(USER, PASSWORD).await;
    (vhost, url)
}

/// What arrives within a second of quiet.
async fn everything(inbox: &mut Inbox, into: &mut Vec<u8>) -> usize {
    let mut count = 0;
    while let Some(message) = inbox.next(Duration::from_secs(1)).await {
        into.extend(format!("{message:?}\n").bytes());
        count += 1;
    }
    count
}

#[tokio::test]
async fn nothing_that_a_run_writes_holds_a_secret_or_a_signature() {
    let mut forbidden = Forbidden::new();
    let (vhost, url) = vhost_with_password().await;
    let gateway = Gateway::with_accounts(vec![account()], indiscreet);
    let dir = fresh_dir("secrets");
    let file = dir.join("appsecret");
    std::fs::write(&file, account().app_secret()).unwrap();
    let unreachable = format!("http://127.0.0.1:{}/openapi", support::process::free_port());
    let tls = no_tls();
    let collector = Collector::start().await;
    // An account by its variables, one by files, one at a gateway that is not there, one whose
    // gateway speaks no TLS, one with wrong credentials.
    let mut setup = Setup::new(&url, &gateway.url())
        .account("default", &account())
        .account("files", &account())
        .account("nowhere", &account())
        .account("tls", &account())
        .set("WDT_ACCOUNTS__NOWHERE__URL", &unreachable)
        .set(
            "WDT_ACCOUNTS__TLS__URL",
            format!("https://127.0.0.1:{tls}/openapi"),
        )
        .account(
            "wrong",
            &Account {
                secret: "WrongSecret+Value/1=".into(),
                ..account()
            },
        )
        .without("WDT_ACCOUNTS__FILES__SECRET")
        .set("WDT_ACCOUNTS__FILES__SECRET_FILE", file.display())
        .set("WDT_API__MAX_ORDERS_PER_CALL", 1)
        .set("WDT_API__CALLS_PER_MINUTE", 0)
        .set("WDT_RETRY__MAX_ATTEMPTS", 2)
        .set("WDT_RETRY__MAX_AGE", "30s")
        .set("RUST_BACKTRACE", "full")
        .set("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint())
        .set(
            "OTEL_EXPORTER_OTLP_HEADERS",
            "authorization=TlsSecretNobodyKnows",
        )
        .set("OTEL_BSP_SCHEDULE_DELAY", 50);
    let amqp = Amqp::connect(&vhost.url()).await;
    let mut results = amqp.results().await;
    let mut seen = Vec::new();
    for format in ["json", "text"] {
        setup = setup
            .set("WDT_LOG__FORMAT", format)
            .set("RUST_LOG", "trace");
        let mut worker = setup.start();
        worker.logs(LATER, "connected to the broker").await;
        let orders = [
            "PLAIN",
            "PAGE",
            "GARBLED",
            "REDIRECT",
            "CUT",
            "RESET",
            "NOT-UTF-8",
            "WORDS",
            "STATUS",
        ];
        amqp.send(&Command::orders(orders).id(&format!("cmd-{format}")))
            .await;
        for account in ["files", "nowhere", "tls", "wrong"] {
            let command = Command::orders(["PLAIN", "WORDS"]).field("account", account);
            amqp.send(&command.id(&format!("{account}-{format}"))).await;
        }
        amqp.send(&Command::raw("nonsense").id("nonsense")).await;
        // All but those of the accounts that cannot be called.
        eventually_ok(LATER, "what can be told is told", async || {
            match vhost.queue(COMMANDS).await {
                Some(queue) if queue.ready + queue.unacked <= 3 => Ok(()),
                other => Err(other),
            }
        })
        .await;
        for page in ["/livez", "/readyz", "/metrics", "/"] {
            seen.extend(worker.get(page).await.unwrap().1.bytes());
        }
        seen.extend(std::fs::read(format!("/proc/{}/cmdline", worker.pid())).unwrap());
        // A broker that refuses us, and a crash with all that it prints.
        vhost.close_connections().await;
        worker.logs(LATER, "no session").await;
        if format == "json" {
            assert_eq!(worker.terminate(LATER).await, 0, "{}", worker.log());
        } else {
            worker.signal(Signal::ABORT);
            worker.wait_ended(SOON).await;
        }
        seen.extend(worker.log().bytes());
    }
    assert!(everything(&mut results, &mut seen).await >= 10);
    // Spans of commands and calls, with the gateway's words in them.
    let (heads, traces) = collector.raw();
    assert!(
        heads
            .iter()
            .all(|head| head.contains("authorization: tlssecretnobodyknows"))
    );
    assert!(collector.spans().len() >= 10, "{}", collector.spans().len());
    seen.extend(traces);
    assert!(everything(&mut amqp.inbox(DEAD).await, &mut seen).await >= 1);

    // What people type, with everything wrong that can be.
    let broken = dir.join("broken.toml");
    let key = account().key;
    std::fs::write(
        &broken,
        format!(
            "[accounts.default]\nsecret = \"{}\"\nkey = \"{key}\" oops\n",
            account().app_secret()
        ),
    )
    .unwrap();
    let typed = dir.join("typed.toml");
    std::fs::write(
        &typed,
        format!(
            "[accounts.default]\nsecrte = \"{}\"\n[amqp]\nurl = {{ password = \"{PASSWORD}\" }}\n",
            account().app_secret()
        ),
    )
    .unwrap();
    let other_host = url.replace("127.0.0.1", "127.0.0.2");
    let not_a_url = format!("amqp//{USER}:{PASSWORD}@127.0.0.1");
    for (name, value, args) in [
        ("", "", &["config"][..]),
        ("", "", &["config", "--json"]),
        ("", "", &["--help"]),
        ("", "", &["send", "PLAIN", "--wait", "20s"]),
        ("", "", &["bind", "more.results"]),
        ("", "", &["ledger", "check"]),
        ("WDT_AMQP__URL", &not_a_url, &["run"]),
        ("WDT_AMQP__URL", &not_a_url, &["config"]),
        ("WDT_AMQP__URL", &other_host, &["bind", "my.results"]),
        (
            "WDT_AMQP__URL",
            &other_host,
            &["send", "PLAIN", "--wait", "1s"],
        ),
        (
            "WDT_API__URL",
            "http://me:TlsSecretNobodyKnows@127.0.0.1/openapi",
            &["run"],
        ),
        (
            "WDT_API__URL",
            "http://127.0.0.1/openapi?sign=TlsSecretNobodyKnows",
            &["config"],
        ),
        (
            "WDT_ACCOUNTS__DEFAULT__SECRET",
            "WrongSecret+Value/1=",
            &["run"],
        ),
        ("WDT_ACCOUNTS__DEFAULT__KEY_FILE", "/nowhere", &["run"]),
        (
            "WDT_ACCOUNTS__DEFAULT__SECRTE",
            "WrongSecret+Value/1=",
            &["config"],
        ),
        (
            "WDT_LEDGER__URL",
            "postgres://me:TlsSecretNobodyKnows@db/ledger",
            &["run"],
        ),
        (
            "WDT_LEDGER__URL",
            "postgres://me:TlsSecretNobodyKnows@db/ledger",
            &["config"],
        ),
        ("WDT_CONFIG", broken.to_str().unwrap(), &["config"]),
        ("WDT_CONFIG", typed.to_str().unwrap(), &["run"]),
    ] {
        let setup = match name {
            "" => setup.with("WDT_LOG__FORMAT", "text"),
            name => setup.with(name, value),
        };
        let mut process = setup.start_with(args);
        process.wait_ended(LATER).await;
        let said = process.log();
        assert!(!said.trim().is_empty(), "{args:?} says something");
        forbidden.check(&format!("{name} {args:?}"), said.as_bytes());
    }

    // Of the account with the wrong secret, and no others.
    let faults = gateway.take_faults();
    assert!(!faults.is_empty());
    for fault in faults {
        assert!(fault.contains("签名错误"), "{fault}");
    }
    let signs: BTreeSet<String> = gateway
        .requests()
        .iter()
        .map(|r| r.param("sign").to_owned())
        .collect();
    assert!(signs.len() >= 10, "{}", signs.len());
    for sign in &signs {
        forbidden.0.push((sign.clone(), sign.to_lowercase()));
    }
    forbidden.check("what the run wrote", &seen);
    for entry in std::fs::read_dir(setup.dir()).unwrap() {
        forbidden.check_file(&entry.unwrap().path());
    }
    println!(
        "{} signatures and {} forms of secrets, in {} bytes: none",
        signs.len(),
        forbidden.0.len(),
        seen.len()
    );
    // The check itself finds what is there.
    let shown = format!(
        "http://g/openapi?key={}",
        account()
            .key
            .replace('+', "%2B")
            .replace('/', "%2F")
            .replace('=', "%3D")
    );
    let caught = std::panic::catch_unwind(|| forbidden.check("a probe", shown.as_bytes()));
    assert!(caught.is_err());
}

/// A port that takes connections and answers a greeting that is not TLS.
fn no_tls() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let _ = stream.read(&mut [0; 1024]);
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        }
    });
    port
}
