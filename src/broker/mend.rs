//! Messages that the AMQP client cannot read: with a property, a header's name or a routing key that
//! is not UTF-8. The broker takes them, and the client ends the connection at each of them, so it
//! comes again with every session, and all its neighbours in the prefetch come back with it, until
//! they meet the delivery limit together.
//!
//! So after an end of that kind the next session's deliveries pass through here first: what is not
//! UTF-8 is replaced, byte by byte, and the command is handled or rejected like any other
//! ([`super::wire::read`]). Only then, because every byte is copied twice more.

use futures_util::io::{AsyncReadExt as _, AsyncWriteExt as _};
use lapin::tcp::{AMQPUriTcpExt as _, AsyncTcpStream};
use lapin::uri::{AMQPScheme, AMQPUri};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::wire::SUBSTITUTE;

/// Brokers keep to what was agreed on, 128 KiB; what claims to be larger than this is no frame.
const FRAME_MAX_BYTES: usize = 1024 * 1024;
/// Kind, channel and size before the payload, and a mark behind it.
const FRAME_HEAD_BYTES: usize = 7;
const FRAME_TAIL_BYTES: usize = 1;
/// Kinds of frames.
const METHOD: u8 = 1;
const HEADER: u8 = 2;
/// `basic.deliver`, class and method.
const DELIVER: &[u8] = &[0, 60, 0, 60];
/// `basic.get-ok`, likewise.
const GET_OK: &[u8] = &[0, 60, 0, 71];
/// The properties in the sequence of their flags, the highest bit first.
const PROPERTIES: [Field; 14] = [
    Field::Short,
    Field::Short,
    Field::Table,
    Field::Bytes(1),
    Field::Bytes(1),
    Field::Short,
    Field::Short,
    Field::Short,
    Field::Short,
    Field::Bytes(8),
    Field::Short,
    Field::Short,
    Field::Short,
    Field::Short,
];

/// A place on this machine that takes one connection and passes it on to the broker, mending what
/// comes back. It ends with that connection, or when nobody comes.
///
/// # Errors
/// When no port is free.
pub(super) async fn relay(url: &AMQPUri) -> std::io::Result<AMQPUri> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let mut near = url.clone();
    near.scheme = AMQPScheme::AMQP;
    near.authority.host = "127.0.0.1".into();
    near.authority.port = listener.local_addr()?.port();
    let far = url.clone();
    tokio::spawn(async move {
        let accepted = tokio::time::timeout(super::link::CONNECT_TIMEOUT, listener.accept()).await;
        // Whichever side ends, the other one sees that its line is cut.
        if let Ok(Ok((client, _))) = accepted {
            drop(pass(client, &far).await);
        }
    });
    Ok(near)
}

async fn pass(mut client: TcpStream, url: &AMQPUri) -> std::io::Result<()> {
    let runtime = lapin::runtime::default_runtime().map_err(std::io::Error::other)?;
    let broker: AsyncTcpStream<_> = url.connect_async(&runtime).await?;
    let (mut from_broker, mut to_broker) = broker.split();
    let (mut from_client, mut to_client) = client.split();
    let up = async {
        let mut chunk = vec![0; 64 * 1024];
        loop {
            match from_client.read(&mut chunk).await? {
                0 => return Ok(()),
                n => to_broker.write_all(&chunk[..n]).await?,
            }
            to_broker.flush().await?;
        }
    };
    let down = async {
        let mut chunk = vec![0; 64 * 1024];
        let mut bytes = Vec::new();
        loop {
            match from_broker.read(&mut chunk).await? {
                0 => return Ok(()),
                n => bytes.extend_from_slice(&chunk[..n]),
            }
            let Some(whole) = mend_frames(&mut bytes) else {
                return Ok(());
            };
            to_client.write_all(&bytes[..whole]).await?;
            bytes.drain(..whole);
        }
    };
    tokio::select! {
        ended = up => ended,
        ended = down => ended,
    }
}

/// Mends the whole frames at the beginning; their length together. `None` when these are no frames.
fn mend_frames(bytes: &mut [u8]) -> Option<usize> {
    let mut whole = 0;
    loop {
        let rest = &mut bytes[whole..];
        let Some(head) = rest.first_chunk::<FRAME_HEAD_BYTES>() else {
            return Some(whole);
        };
        let [kind, _, _, size @ ..] = *head;
        let size = usize::try_from(u32::from_be_bytes(size)).ok()?;
        if size > FRAME_MAX_BYTES {
            return None;
        }
        let length = FRAME_HEAD_BYTES + size + FRAME_TAIL_BYTES;
        if rest.len() < length {
            return Some(whole);
        }
        // What is built otherwise is left as it is, for the client to judge.
        let _ = mend_frame(kind, &mut rest[FRAME_HEAD_BYTES..length - FRAME_TAIL_BYTES]);
        whole += length;
    }
}

fn mend_frame(kind: u8, payload: &mut [u8]) -> Option<()> {
    let mut reader = Reader { bytes: payload };
    match kind {
        METHOD if reader.bytes.starts_with(DELIVER) => {
            reader.take(DELIVER.len())?;
            reader.short()?;
            // The delivery's number, and whether it was given out before.
            reader.take(8 + 1)?;
            reader.short()?;
            reader.short()
        }
        METHOD if reader.bytes.starts_with(GET_OK) => {
            reader.take(GET_OK.len() + 8 + 1)?;
            reader.short()?;
            reader.short()
        }
        HEADER => {
            // Class, weight and the body's size.
            reader.take(2 + 2 + 8)?;
            let flags = u16::from_be_bytes(*reader.take(2)?.first_chunk()?);
            for (place, field) in PROPERTIES.into_iter().enumerate() {
                if flags & (0x8000 >> place) != 0 {
                    reader.field(field)?;
                }
            }
            Some(())
        }
        _ => Some(()),
    }
}

#[derive(Clone, Copy)]
enum Field {
    Short,
    Table,
    Bytes(usize),
}

/// Reads from the beginning of what is left, and mends on the way.
struct Reader<'a> {
    bytes: &'a mut [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a mut [u8]> {
        let bytes = std::mem::take(&mut self.bytes);
        let (taken, rest) = bytes.split_at_mut_checked(count)?;
        self.bytes = rest;
        Some(taken)
    }

    fn size(&mut self) -> Option<usize> {
        let size = u32::from_be_bytes(*self.take(4)?.first_chunk()?);
        usize::try_from(size).ok()
    }

    fn short(&mut self) -> Option<()> {
        let length = usize::from(*self.take(1)?.first()?);
        let text = self.take(length)?;
        if std::str::from_utf8(text).is_err() {
            for byte in text.iter_mut().filter(|byte| !byte.is_ascii()) {
                *byte = SUBSTITUTE as u8;
            }
        }
        Some(())
    }

    fn field(&mut self, field: Field) -> Option<()> {
        match field {
            Field::Short => self.short(),
            Field::Bytes(count) => self.take(count).map(drop),
            Field::Table => {
                let size = self.size()?;
                let bytes = self.take(size)?;
                Reader { bytes }.entries()
            }
        }
    }

    /// The entries of a table. Tables and lists in it may lie as deep as there is room, so the open
    /// ones are kept in a list: whether they have names, and how much is left behind their end.
    fn entries(&mut self) -> Option<()> {
        let mut open = vec![(true, 0)];
        while let Some(&(has_names, behind)) = open.last() {
            if self.bytes.len() <= behind {
                open.pop();
                continue;
            }
            if has_names {
                self.short()?;
            }
            let kind = *self.take(1)?.first()?;
            let size = match kind {
                b'V' => 0,
                b't' | b'b' | b'B' => 1,
                b's' | b'U' | b'u' => 2,
                b'I' | b'i' | b'f' => 4,
                b'D' => 5,
                b'L' | b'l' | b'd' | b'T' => 8,
                b'S' | b'x' | b'A' | b'F' => self.size()?,
                _ => return None,
            };
            if matches!(kind, b'A' | b'F') {
                open.push((kind == b'F', self.bytes.len().checked_sub(size)?));
            } else {
                self.take(size)?;
            }
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A header frame with a correlation id and headers: a list in a table, whose name is bad.
    fn frame(correlation_id: &[u8], name: &[u8]) -> Vec<u8> {
        let short = |text: &[u8]| [&[u8::try_from(text.len()).unwrap()], text].concat();
        let sized = |bytes: &[u8]| {
            let size = u32::try_from(bytes.len()).unwrap();
            [&size.to_be_bytes()[..], bytes].concat()
        };
        let inner = [
            &short(name)[..],
            b"A",
            &sized(b"VI\0\0\0\x07S\0\0\0\x01\xff"),
        ]
        .concat();
        let table = [
            &short(b"outer")[..],
            b"F",
            &sized(&inner),
            &short(name),
            b"t\x01",
        ]
        .concat();
        let payload = [
            &[0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5, 0b0010_0100, 0][..],
            &sized(&table),
            &short(correlation_id),
        ]
        .concat();
        [&[HEADER, 0, 1][..], &sized(&payload), &[0xCE]].concat()
    }

    #[test]
    fn short_strings_are_mended_and_nothing_else() {
        let mut bad = frame(b"id-\xff\xe9", b"n\xe9");
        let good = frame(b"id-\x1a\x1a", b"n\x1a");
        assert_eq!(mend_frames(&mut bad), Some(good.len()));
        assert_eq!(bad, good);
        let utf8 = frame("单号".as_bytes(), "é".as_bytes());
        let mut same = utf8.clone();
        assert_eq!(mend_frames(&mut same), Some(utf8.len()));
        assert_eq!(same, utf8);
    }

    #[test]
    fn a_delivery_is_mended_and_what_is_not_whole_waits() {
        let short = |text: &[u8]| [&[u8::try_from(text.len()).unwrap()], text].concat();
        let payload = [
            DELIVER,
            &short(b"tag"),
            &[0; 9],
            &short(b""),
            &short(b"k\xfe"),
        ]
        .concat();
        let size = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let one = [&[METHOD, 0, 1][..], &size, &payload, &[0xCE]].concat();
        let mut bytes = [&one[..], &one[..one.len() - 1]].concat();
        assert_eq!(mend_frames(&mut bytes), Some(one.len()));
        assert!(bytes[..one.len()].ends_with(b"k\x1a\xce"));
        assert!(bytes[one.len()..].ends_with(b"k\xfe"), "not whole yet");
    }

    proptest! {
        /// Hostile bytes change no length and end in no panic.
        #[test]
        fn any_bytes_are_borne(kind in 1_u8..4, payload in prop::collection::vec(any::<u8>(), 0..300)) {
            let size = u32::try_from(payload.len()).unwrap().to_be_bytes();
            let mut bytes = [&[kind, 0, 1][..], &size, &payload, &[0xCE]].concat();
            let length = bytes.len();
            prop_assert_eq!(mend_frames(&mut bytes), Some(length));
        }
    }
}
