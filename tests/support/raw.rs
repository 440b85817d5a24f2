//! A publisher that writes its own AMQP frames, for what no client library would send: properties
//! that are not UTF-8, and header tables of any shape.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::amqp::COMMANDS;

/// The broker answers in milliseconds.
const LIMIT: Duration = Duration::from_secs(20);
const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const FRAME_END: u8 = 0xCE;
/// The class of publishing and consuming.
const BASIC: u16 = 60;

/// A property of a message, with its bit in the header's flags and its bytes as they are sent. They
/// are sent in the order of the specification, which is this one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Property {
    /// The whole table, without its length.
    Headers(Vec<u8>),
    CorrelationId(Vec<u8>),
    MessageId(Vec<u8>),
}

/// Publishes one message to a queue of this virtual host as the user guest, and waits until the
/// broker has it in the queue.
pub async fn publish(port: u16, vhost: &str, body: &[u8], properties: &mut [Property]) {
    let exchange = async {
        let mut line = Line::open(port, vhost).await;
        // confirm.select
        line.method(1, 85, 10, &[0]).await;
        line.expect(85, 11).await;
        let publish = [&[0, 0][..], &short(b""), &short(COMMANDS.as_bytes()), &[0]].concat();
        line.method(1, BASIC, 40, &publish).await;
        line.frame(HEADER, 1, &header(body.len(), properties)).await;
        line.frame(BODY, 1, body).await;
        // basic.ack
        line.expect(BASIC, 80).await;
        // connection.close
        let close = [&200u16.to_be_bytes()[..], &short(b"done"), &[0, 0, 0, 0]].concat();
        line.method(0, 10, 50, &close).await;
        line.expect(10, 51).await;
    };
    timeout(LIMIT, exchange).await.expect("a raw publish");
}

fn header(body: usize, properties: &mut [Property]) -> Vec<u8> {
    properties.sort();
    let mut flags: u16 = 0;
    let mut values = Vec::new();
    for property in properties {
        match property {
            Property::Headers(table) => {
                flags |= 1 << 13;
                values.extend((table.len() as u32).to_be_bytes());
                values.extend_from_slice(table);
            }
            Property::CorrelationId(bytes) => {
                flags |= 1 << 10;
                values.extend(short(bytes));
            }
            Property::MessageId(bytes) => {
                flags |= 1 << 7;
                values.extend(short(bytes));
            }
        }
    }
    [
        &BASIC.to_be_bytes()[..],
        &[0, 0],
        &(body as u64).to_be_bytes(),
        &flags.to_be_bytes(),
        &values,
    ]
    .concat()
}

fn short(bytes: &[u8]) -> Vec<u8> {
    let length = u8::try_from(bytes.len()).expect("a short string");
    [&[length], bytes].concat()
}

fn long(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u32).to_be_bytes()[..], bytes].concat()
}

struct Line(TcpStream);

impl Line {
    async fn open(port: u16, vhost: &str) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).await;
        let mut line = Self(stream.expect("connect"));
        line.write(b"AMQP\x00\x00\x09\x01").await;
        line.expect(10, 10).await;
        let start_ok = [
            long(b""),
            short(b"PLAIN"),
            long(b"\0guest\0guest"),
            short(b"en_US"),
        ];
        line.method(0, 10, 11, &start_ok.concat()).await;
        let tune = line.expect(10, 30).await;
        // As it proposes, but without heartbeats.
        let tune_ok = [&tune[..6], &[0, 0]].concat();
        line.method(0, 10, 31, &tune_ok).await;
        let open = [&short(vhost.as_bytes())[..], &[0, 0]].concat();
        line.method(0, 10, 40, &open).await;
        line.expect(10, 41).await;
        line.method(1, 20, 10, &short(b"")).await;
        line.expect(20, 11).await;
        line
    }

    async fn method(&mut self, channel: u16, class: u16, method: u16, arguments: &[u8]) {
        let ids = [class.to_be_bytes(), method.to_be_bytes()].concat();
        self.frame(METHOD, channel, &[&ids, arguments].concat())
            .await;
    }

    async fn frame(&mut self, kind: u8, channel: u16, payload: &[u8]) {
        let frame = [
            &[kind][..],
            &channel.to_be_bytes(),
            &(payload.len() as u32).to_be_bytes(),
            payload,
            &[FRAME_END],
        ]
        .concat();
        self.write(&frame).await;
    }

    async fn write(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.expect("write to the broker");
    }

    /// Reads the next method, which must be this one; its arguments.
    async fn expect(&mut self, class: u16, method: u16) -> Vec<u8> {
        let kind = self.0.read_u8().await.expect("a frame");
        let _channel = self.0.read_u16().await.expect("a frame");
        let size = self.0.read_u32().await.expect("a frame");
        let mut payload = vec![0; size as usize + 1];
        self.0.read_exact(&mut payload).await.expect("a frame");
        let ids = [class.to_be_bytes(), method.to_be_bytes()].concat();
        assert!(
            kind == METHOD && payload.starts_with(&ids),
            "the broker said {:?}",
            String::from_utf8_lossy(&payload)
        );
        payload.pop();
        payload.split_off(ids.len())
    }
}
