//! A look at the broker that leaves it as it is: nothing is declared, consumed or published.
//!
//! AMQP has no way to ask what one may do, so leave is found out by requests that the broker checks
//! for permission first and then does not carry out: a consumer with an argument that is not valid,
//! a publication in a transaction that is rolled back.

use std::io;

use futures_util::io::{AsyncReadExt as _, AsyncWriteExt as _};
use lapin::options::{
    BasicConsumeOptions, BasicPublishOptions, ExchangeDeclareOptions, QueueDeclareOptions,
};
use lapin::protocol::{AMQPErrorKind, AMQPSoftError};
use lapin::tcp::AMQPUriTcpExt as _;
use lapin::types::{AMQPValue, FieldTable};
use lapin::uri::AMQPUri;
use lapin::{BasicProperties, Connection, ErrorKind, ExchangeKind};

use super::session::SessionError;
use super::topology::{close, dead_queue_arguments, is, queue_arguments, words};
use super::{Settings, link};

/// A greeting has some 500 bytes.
const GREETING_MAX_BYTES: usize = 64 * 1024;
/// Kind, channel and size of a frame.
const FRAME_HEAD_BYTES: usize = 7;

/// What a node says of itself before anybody has logged in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Greeting {
    /// Such as `RabbitMQ`.
    pub product: String,
    /// Such as `4.0.5`.
    pub version: String,
}

impl Greeting {
    /// Major and minor version.
    pub fn release(&self) -> Option<(u32, u32)> {
        let mut parts = self.version.split('.').map(|part| part.parse().ok());
        Some((parts.next()??, parts.next()??))
    }
}

/// Host and port, without a password.
pub fn node(url: &AMQPUri) -> String {
    link::node(url)
}

/// Connects, by TLS where the URL says so, and hears what the node says first.
///
/// # Errors
/// When it cannot be reached, its certificate is not trusted, or it does not speak AMQP.
pub async fn greeting(url: &AMQPUri) -> io::Result<Greeting> {
    let runtime = lapin::runtime::default_runtime().map_err(io::Error::other)?;
    let mut stream = url.connect_async(&runtime).await?;
    stream.write_all(b"AMQP\x00\x00\x09\x01").await?;
    stream.flush().await?;
    let mut head = [0; FRAME_HEAD_BYTES];
    stream.read_exact(&mut head).await?;
    let [kind, _, _, size @ ..] = head;
    let size = usize::try_from(u32::from_be_bytes(size)).unwrap_or(usize::MAX);
    if kind != 1 || size > GREETING_MAX_BYTES {
        return Err(io::Error::other("what answers there does not speak AMQP"));
    }
    let mut greeting = vec![0; size];
    stream.read_exact(&mut greeting).await?;
    Ok(Greeting {
        product: property(&greeting, "product"),
        version: property(&greeting, "version"),
    })
}

/// A text of the server's properties, which are a table in the greeting; empty when there is none.
fn property(greeting: &[u8], name: &str) -> String {
    let mut key = vec![u8::try_from(name.len()).unwrap_or(0)];
    key.extend_from_slice(name.as_bytes());
    key.push(b'S');
    let found = greeting.windows(key.len()).position(|part| part == key);
    let text = found.and_then(|at| {
        let (length, rest) = greeting[at + key.len()..].split_first_chunk::<4>()?;
        rest.get(..usize::try_from(u32::from_be_bytes(*length)).ok()?)
    });
    String::from_utf8_lossy(text.unwrap_or_default()).into_owned()
}

/// Why there is no connection.
#[derive(Debug)]
pub enum NoEntry {
    /// User or password, in the broker's words.
    Login(String),
    /// The virtual host, in the broker's words.
    VirtualHost(String),
    /// Anything else.
    Other(SessionError),
}

/// Logs in.
///
/// # Errors
/// When the broker does not let us in.
pub async fn enter(url: &AMQPUri) -> Result<Connection, NoEntry> {
    let failed = match link::connect(url, "wdt-cancel-worker doctor").await {
        Ok(connection) => return Ok(connection),
        Err(error) => error,
    };
    let login =
        matches!(&failed, SessionError::Broker(error) if is(error, AMQPSoftError::ACCESSREFUSED));
    Err(match failed.at(|| node(url)) {
        SessionError::Refused { words, .. } if login => NoEntry::Login(words),
        SessionError::Refused { words, .. } => NoEntry::VirtualHost(words),
        other => NoEntry::Other(other),
    })
}

/// How something compares with what is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// It is there, as it is wanted; or nobody compares it.
    There,
    /// It is not there.
    Missing,
    /// It is there with other arguments, in the broker's words.
    Differs(String),
}

/// Looks at the three, in the sequence dead-letter queue, commands' queue, exchange. Arguments are
/// compared as the worker's own start does it, where `declare` is true: only of what is there, which
/// the broker then leaves as it is.
///
/// # Errors
/// When the broker answers otherwise.
pub async fn topology(
    connection: &Connection,
    settings: &Settings,
) -> Result<[Found; 3], lapin::Error> {
    let commands = queue_arguments(&settings.dead_queue);
    let declare = settings.declare;
    Ok([
        queue(
            connection,
            &settings.dead_queue,
            dead_queue_arguments(),
            declare,
        )
        .await?,
        queue(connection, &settings.queue, commands, declare).await?,
        exchange(connection, &settings.exchange, declare).await?,
    ])
}

async fn queue(
    connection: &Connection,
    name: &str,
    wanted: FieldTable,
    compare: bool,
) -> Result<Found, lapin::Error> {
    for passive in [true, false] {
        if !passive && !compare {
            break;
        }
        let options = QueueDeclareOptions {
            passive,
            durable: true,
            ..QueueDeclareOptions::default()
        };
        let channel = connection.create_channel().await?;
        let declared = channel
            .queue_declare(name.into(), options, wanted.clone())
            .await;
        match declared {
            Ok(_) => close(&channel).await,
            Err(error) => return unlike(error),
        }
    }
    Ok(Found::There)
}

async fn exchange(
    connection: &Connection,
    name: &str,
    compare: bool,
) -> Result<Found, lapin::Error> {
    for passive in [true, false] {
        if !passive && !compare {
            break;
        }
        let options = ExchangeDeclareOptions {
            passive,
            durable: true,
            ..ExchangeDeclareOptions::default()
        };
        let channel = connection.create_channel().await?;
        let kind = ExchangeKind::Topic;
        let declared = channel
            .exchange_declare(name.into(), kind, options, FieldTable::default())
            .await;
        match declared {
            Ok(()) => close(&channel).await,
            Err(error) => return unlike(error),
        }
    }
    Ok(Found::There)
}

fn unlike(error: lapin::Error) -> Result<Found, lapin::Error> {
    if is(&error, AMQPSoftError::NOTFOUND) {
        Ok(Found::Missing)
    } else if is(&error, AMQPSoftError::PRECONDITIONFAILED) {
        Ok(Found::Differs(words(&error)))
    } else {
        Err(error)
    }
}

/// What the broker says, without our client's words around it.
pub fn said(error: &lapin::Error) -> String {
    words(error)
}

/// True when the broker refused for want of a permission.
pub fn is_denied(error: &lapin::Error) -> bool {
    match error.kind() {
        ErrorKind::ProtocolError(said) => {
            *said.kind() == AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED)
        }
        _ => false,
    }
}

/// Whether this user may take commands: asks for a consumer with a priority that is none.
///
/// # Errors
/// What the broker says, if not that the priority is none.
pub async fn may_consume(connection: &Connection, queue: &str) -> Result<(), lapin::Error> {
    let mut arguments = FieldTable::default();
    let none = AMQPValue::LongString("none".into());
    arguments.insert("x-priority".into(), none);
    let channel = connection.create_channel().await?;
    let options = BasicConsumeOptions::default();
    let asked = channel
        .basic_consume(queue.into(), "doctor".into(), options, arguments)
        .await;
    match asked {
        // No version does; should one, what it sent goes back with the channel.
        Ok(_) => close(&channel).await,
        Err(error) if is(&error, AMQPSoftError::PRECONDITIONFAILED) => {}
        Err(error) => return Err(error),
    }
    Ok(())
}

/// Whether this user may publish there: does it in a transaction, and takes it back.
///
/// # Errors
/// What the broker says.
pub async fn may_publish(
    connection: &Connection,
    exchange: &str,
    routing_key: &str,
) -> Result<(), lapin::Error> {
    let channel = connection.create_channel().await?;
    channel.tx_select().await?;
    let options = BasicPublishOptions::default();
    let properties = BasicProperties::default();
    channel
        .basic_publish(
            exchange.into(),
            routing_key.into(),
            options,
            b"",
            properties,
        )
        .await?
        .await?;
    channel.tx_rollback().await?;
    close(&channel).await;
    Ok(())
}
