//! Who may do what: a publisher of commands makes the worker publish only where the contract's §1
//! allows, and the admin listener serves this machine alone, within bounds, and acts on nothing.
#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, its helpers too"
)]

mod support;

use std::time::{Duration, Instant};

use lapin::BasicProperties;
use lapin::options::{
    BasicConsumeOptions, BasicGetOptions, BasicPublishOptions, QueueBindOptions,
    QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldArray, FieldTable};
use serde_json::json;
use support::amqp::{COMMANDS, DEAD, RESULTS};
use support::eventually::eventually;
use support::scene::{LATER, SOON, Scene};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

// Publishers

fn also(queue: &str) -> AMQPValue {
    AMQPValue::FieldArray(FieldArray::from(vec![AMQPValue::LongString(queue.into())]))
}

fn order(n: usize, account: &str) -> Vec<u8> {
    json!({ "order_no_list": [format!("QC-{n}")], "account": account })
        .to_string()
        .into()
}

/// Everything that a publisher may set, set to lead astray.
fn attempts() -> Vec<(Vec<u8>, BasicProperties)> {
    let plain = BasicProperties::default;
    let mut all = Vec::new();
    for reply_to in [
        COMMANDS,
        DEAD,
        RESULTS,
        "victim",
        "amq.topic",
        "amq.direct",
        "amq.rabbitmq.reply-to",
        "amq.rabbitmq.reply-to.g1h2AA5yZXBseUAxMjM0NTY3OAAAC5AAAAAAYeJOmQ==.made+up==",
        "amq.rabbitmq.reply-to*",
        "amq.rabbitmq.trace",
        "amq.gen-*",
        "amq.gen-nobody",
        "*.replies",
        "nobody.replies",
        "victim\n.replies",
        "victim\0.replies",
        "victim .replies",
        "#",
        "",
    ] {
        all.push((
            order(all.len(), "default"),
            plain().with_reply_to(reply_to.into()),
        ));
    }
    for account in [
        "a.b",
        "#",
        "*",
        "_",
        "default.cancelled",
        "default\n",
        "victim",
        "\u{202e}default",
        "",
    ] {
        all.push((order(all.len(), account), plain()));
    }
    all.push((order(all.len(), &"x".repeat(1000)), plain()));
    // Both what is told and what is copied to the dead-letter queue must lose these.
    for body in [
        b"nonsense".to_vec(),
        order(900, "default"),
        br#"{"order_no_list": "x"}"#.to_vec(),
    ] {
        let mut headers = FieldTable::default();
        for name in ["CC", "BCC", "cc", "bcc"] {
            headers.insert(name.into(), also("victim"));
        }
        for name in [
            "x-dead-letter-exchange",
            "x-dead-letter-routing-key",
            "x-first-death-queue",
            "x-wdt-origin-routing-key",
        ] {
            headers.insert(name.into(), AMQPValue::LongString("victim".into()));
        }
        for (name, value) in [
            ("traceparent", "00-\r\nCC: victim"),
            ("tracestate", "a=\r\nvictim"),
            ("x-delay", "1"),
        ] {
            headers.insert(name.into(), AMQPValue::LongString(value.into()));
        }
        let properties = plain()
            .with_headers(headers)
            .with_expiration("600000".into())
            .with_user_id("guest".into())
            .with_app_id("victim".into())
            .with_cluster_id("victim".into())
            .with_type("wdt.cancel.result.v1".into())
            .with_content_encoding("gzip".into())
            .with_correlation_id("cancel.default.cancelled\r\nvictim".into())
            .with_message_id(format!("victim.{}", all.len()).into());
        all.push((body, properties));
    }
    all
}

#[tokio::test]
async fn a_publisher_leads_the_worker_nowhere_else() {
    let scene = Scene::fresh().await;
    let amqp = scene.amqp().await;
    let _results = amqp.results().await;
    let channel = amqp.channel().await;
    for queue in ["victim", "trace"] {
        channel
            .queue_declare(
                queue.into(),
                QueueDeclareOptions::default(),
                FieldTable::default(),
            )
            .await
            .unwrap();
    }
    // Without it the broker takes no command that asks for a direct reply.
    let direct = BasicConsumeOptions {
        no_ack: true,
        ..BasicConsumeOptions::default()
    };
    let _direct = channel
        .basic_consume(
            "amq.rabbitmq.reply-to".into(),
            "".into(),
            direct,
            FieldTable::default(),
        )
        .await
        .unwrap();
    let mut worker = scene.worker().await;
    // The broker tells of every publication, whoever makes it and wherever it goes.
    channel
        .queue_bind(
            "trace".into(),
            "amq.rabbitmq.trace".into(),
            "publish.#".into(),
            QueueBindOptions::default(),
            FieldTable::default(),
        )
        .await
        .unwrap();
    scene.vhost.trace().await;
    let attempts = attempts();
    for (body, properties) in &attempts {
        channel
            .basic_publish(
                "".into(),
                COMMANDS.into(),
                BasicPublishOptions::default(),
                body,
                properties.clone(),
            )
            .await
            .unwrap();
    }
    // The queue may be empty before the first has arrived.
    eventually(
        LATER,
        "a dead letter of each that cannot be read",
        async || {
            let dead = scene.vhost.queue(DEAD).await?;
            (dead.ready >= 2).then_some(())
        },
    )
    .await;
    scene.queue_is_empty().await;

    let (mut ours, mut theirs) = (0, 0);
    let no_ack = BasicGetOptions { no_ack: true };
    let mut copies = 0;
    loop {
        let Some(got) = channel.basic_get("trace".into(), no_ack).await.unwrap() else {
            break;
        };
        let headers = got.delivery.properties.headers().clone().unwrap();
        let text = |value: &AMQPValue| match value {
            AMQPValue::LongString(text) => text.to_string(),
            other => panic!("{other:?}"),
        };
        let exchange = text(&headers.inner()["exchange_name"]);
        let keys: Vec<String> = match &headers.inner()["routing_keys"] {
            AMQPValue::FieldArray(keys) => keys.as_slice().iter().map(text).collect(),
            other => panic!("{other:?}"),
        };
        let key = keys[0].as_str();
        if (exchange.as_str(), key) == ("", COMMANDS) {
            theirs += 1;
            continue;
        }
        ours += 1;
        assert_eq!(keys.len(), 1, "carbon copies: {keys:?}");
        let outcomes = [
            "cancelled",
            "refused",
            "rejected",
            "expired",
            "failed",
            "unknown",
        ];
        let is_event = |key: &str| {
            let words: Vec<&str> = key.split('.').collect();
            matches!(words[..], ["cancel", "default" | "_", outcome] if outcomes.contains(&outcome))
        };
        let is_reply = |key: &str| {
            key.starts_with("amq.gen-")
                || key.ends_with(".replies")
                || key.starts_with("amq.rabbitmq.reply-to")
        };
        match exchange.as_str() {
            RESULTS if is_event(key) => {}
            "" if key == DEAD => copies += 1,
            "" if is_reply(key) => {}
            _ => panic!("published to {exchange:?} with {key:?}"),
        }
    }
    // Nothing came into the commands' queue but what was sent here.
    assert_eq!(theirs, attempts.len());
    assert!(
        ours >= attempts.len() && copies >= 2,
        "{ours} publications, {copies} dead letters"
    );
    // Their own carbon copies, by the broker, and no more.
    let victim = scene.vhost.queue("victim").await.unwrap();
    assert_eq!(victim.ready, 3, "one of each of three commands");
    assert!(worker.is_running());
    println!(
        "{} attempts, {ours} publications of the worker, each where it may go",
        attempts.len()
    );
}

// The admin listener

#[tokio::test]
async fn the_admin_listener_serves_this_machine_alone() {
    if !support::disk::may_mount("the default address is not tried out") {
        return;
    }
    let scene = Scene::fresh().await;
    // In a network of its own, where the default port is free.
    let own_network = [
        "unshare",
        "--net",
        "/bin/sh",
        "-c",
        "ip link set lo up; exec \"$@\"",
        "net",
    ];
    {
        let worker = scene.setup.start_with_default_listener(&own_network);
        worker.logs(SOON, "\"started\"").await;
        let listening = |table: &str| {
            let table =
                std::fs::read_to_string(format!("/proc/{}/net/{table}", worker.pid())).unwrap();
            let mut addresses: Vec<String> = table
                .lines()
                .skip(1)
                .map(|line| line.split_whitespace().collect::<Vec<_>>())
                // 0A: it listens.
                .filter(|columns| columns[3] == "0A")
                .map(|columns| columns[1].to_owned())
                .collect();
            addresses.sort();
            addresses
        };
        // 127.0.0.1:9464, and nothing else anywhere.
        assert_eq!(listening("tcp"), ["0100007F:24F8"]);
        assert_eq!(listening("tcp6"), [""; 0]);
    }
}

#[tokio::test]
async fn the_admin_listener_acts_on_nothing_and_is_not_worn_out() {
    let scene = Scene::fresh().await;
    let mut worker = scene.worker().await;
    let port = worker.admin();
    for (method, path, due) in [
        ("POST", "/livez", 405),
        ("PUT", "/readyz", 405),
        ("DELETE", "/metrics", 405),
        ("POST", "/", 401),
        ("POST", "/pause", 401),
        ("POST", "/dead/drop", 401),
        ("GET", "/quit", 404),
        ("GET", "/../../etc/passwd", 404),
        ("GET", "/readyz", 200),
    ] {
        let answer = ask(
            port,
            &format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"),
        )
        .await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {due} ")),
            "{method} {path}: {answer}"
        );
    }
    let long = ask(
        port,
        &format!("GET /livez HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(100_000)),
    )
    .await;
    assert!(
        long.is_empty() || long.starts_with("HTTP/1.1 4"),
        "{}",
        &long[..40]
    );

    // Those who say nothing, or a byte now and then, and those who do not read.
    let began = Instant::now();
    let mut idle = Vec::new();
    for n in 0..200 {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        if n % 2 == 0 {
            stream
                .write_all(b"GET /livez HTTP/1.1\r\nx: ")
                .await
                .unwrap();
        }
        idle.push(stream);
    }
    let files = std::fs::read_dir(format!("/proc/{}/fd", worker.pid()))
        .unwrap()
        .count();
    assert!(files < 150, "{files} files open");
    for stream in &mut idle {
        let closed = timeout(LATER, stream.read(&mut [0; 1024])).await;
        assert!(matches!(closed, Ok(Ok(0) | Err(_))), "{closed:?}");
    }
    let took = began.elapsed();
    assert!(took < Duration::from_secs(60), "{took:?}");
    assert_eq!(worker.get("/livez").await.unwrap().0, 200);
    println!("200 mute connections were closed within {took:?}");
    assert_eq!(worker.terminate(SOON).await, 0);
}

async fn ask(port: u16, request: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    // The answer may come, and the connection go, before all of it is written.
    let _ = stream.write_all(request.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = timeout(SOON, stream.read_to_end(&mut answer)).await;
    String::from_utf8_lossy(&answer).into_owned()
}
