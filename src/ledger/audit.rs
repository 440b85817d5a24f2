//! The journal's chains, taken out and checked.
//!
//! Whoever can write the ledger can also write a chain anew from the row that he changed on, with
//! all its hashes. What proves that nobody did is a hash kept elsewhere: an export, or the last hash
//! that [`verify`] told of.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, BufRead, Write};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::journal::{Hash, chained};
use super::reader::{Chain, Reader, Row};

pub use super::reader::{ReadError, Source};

/// What was found of one chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// Its name.
    pub chain: String,
    /// The rows that are there: the first, the last. The first is the later one when there are none.
    pub rows: (i64, i64),
    /// The hash of the last row, in hexadecimal.
    pub hash: String,
    /// The first fault.
    pub fault: Option<Fault>,
}

/// What is wrong with a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// These rows are not there.
    Missing(i64, i64),
    /// This row, or its hash or the one before it, is not what was written.
    Changed(i64),
    /// This row stands where another one should, or twice.
    Misplaced(i64),
    /// The ledger's mark, or the export's last line, tells of another last row.
    OtherEnd,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(first, last) if first == last => write!(f, "row {first} is missing"),
            Self::Missing(first, last) => write!(f, "rows {first} to {last} are missing"),
            Self::Changed(seq) => write!(f, "row {seq} was changed, or is another one's"),
            Self::Misplaced(seq) => write!(f, "row {seq} stands in another's place"),
            Self::OtherEnd => write!(f, "its end is not the one that was written"),
        }
    }
}

/// Goes along a chain.
#[derive(Debug, Clone)]
struct Walk {
    first: i64,
    seq: i64,
    hash: Hash,
    fault: Option<Fault>,
}

impl Walk {
    fn from((seq, hash): (i64, Hash)) -> Self {
        Self {
            first: seq + 1,
            seq,
            hash,
            fault: None,
        }
    }

    fn meet(&mut self, row: &Row) {
        let expected = chained(&self.hash, &row.text);
        let fault = if row.seq <= self.seq {
            Some(Fault::Misplaced(row.seq))
        } else if row.seq > self.seq + 1 {
            Some(Fault::Missing(self.seq + 1, row.seq - 1))
        } else {
            (row.hash != expected).then_some(Fault::Changed(row.seq))
        };
        self.fault = self.fault.or(fault);
        self.seq = row.seq;
        // Of what comes after a fault nothing more is told; so it matters not which hash goes on.
        self.hash = expected;
    }

    fn end(mut self, chain: &str, head: Option<(i64, Hash)>) -> Checked {
        let fault = match head {
            Some((seq, _)) if seq > self.seq => Some(Fault::Missing(self.seq + 1, seq)),
            Some(head) => (head != (self.seq, self.hash)).then_some(Fault::OtherEnd),
            None => Some(Fault::OtherEnd),
        };
        self.fault = self.fault.or(fault);
        Checked {
            chain: chain.to_owned(),
            rows: (self.first, self.seq),
            hash: hex(&self.hash),
            fault: self.fault,
        }
    }
}

/// Checks every chain of a ledger, also while workers write.
///
/// # Errors
/// When the ledger cannot be read.
pub async fn verify(source: &Source) -> Result<Vec<Checked>, ReadError> {
    let check = async |reader: &Reader| {
        let mut checked = Vec::new();
        for chain in reader.chains().await? {
            let mut walk = Walk::from(chain.anchor);
            let meet = |row: Row| {
                walk.meet(&row);
                Ok(())
            };
            reader.each_row(&chain, (i64::MIN, i64::MAX), meet).await?;
            checked.push(walk.end(&chain.name, Some(chain.head)));
        }
        Ok(checked)
    };
    Reader::apart(source, check).await
}

/// A line of an export.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line<'a> {
    chain: &'a str,
    seq: i64,
    /// The hash of the row before, where this is the first of its chain in the export.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    before: Option<String>,
    hash: String,
    /// The row, byte for byte what was hashed. A chain's last line has none: it repeats its end.
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    row: Option<&'a RawValue>,
}

/// Writes every chain's rows from `since` on, as JSON Lines; tells how many rows.
///
/// # Errors
/// When the ledger cannot be read, or `out` does not take it.
pub async fn export(
    source: &Source,
    since: Timestamp,
    mut out: impl Write + Send + 'static,
) -> Result<u64, ReadError> {
    let write = async move |reader: &Reader| {
        let mut count = 0;
        for chain in reader.chains().await? {
            let (rest, since) = (chain.anchor.0 + 1, since.as_millisecond());
            if let Some(first) = reader.since(&chain, rest, since).await? {
                count += export_chain(reader, &chain, first, &mut out).await?;
            }
        }
        out.flush()?;
        Ok(count)
    };
    Reader::apart(source, write).await
}

async fn export_chain(
    reader: &Reader,
    chain: &Chain,
    first: i64,
    out: &mut impl Write,
) -> Result<u64, ReadError> {
    let mut before = match reader.rows(chain, (first - 1, first - 1)).await?.pop() {
        Some(row) => Some(row.hash),
        None => Some(chain.anchor.1.to_vec()),
    };
    let mut count = 0;
    let write = |row: Row| {
        let raw =
            serde_json::from_str(&row.text).map_err(|error| chain.unreadable(row.seq, &error))?;
        line(
            out,
            &Line {
                chain: &chain.name,
                seq: row.seq,
                before: before.take().map(|hash| hex(&hash)),
                hash: hex(&row.hash),
                row: Some(raw),
            },
        )?;
        count += 1;
        Ok(())
    };
    reader.each_row(chain, (first, i64::MAX), write).await?;
    if count > 0 {
        let (seq, hash) = chain.head;
        let end = Line {
            chain: &chain.name,
            seq,
            before: None,
            hash: hex(&hash),
            row: None,
        };
        line(out, &end)?;
    }
    Ok(count)
}

fn line(out: &mut impl Write, line: &Line<'_>) -> io::Result<()> {
    serde_json::to_writer(&mut *out, line)?;
    out.write_all(b"\n")
}

/// Checks what [`export`] wrote.
///
/// # Errors
/// When it cannot be read, or a line is not an export's.
pub fn verify_export(export: impl BufRead) -> io::Result<Vec<Checked>> {
    let mut walks: BTreeMap<String, (Walk, Option<(i64, Hash)>)> = BTreeMap::new();
    for (number, text) in (1..).zip(export.lines()) {
        let text = text?;
        if text.is_empty() {
            continue;
        }
        let bad = |what: &str| {
            let what = format!("line {number} is not one of an export: {what}");
            io::Error::new(io::ErrorKind::InvalidData, what)
        };
        let line: Line<'_> =
            serde_json::from_str(&text).map_err(|error| bad(&error.to_string()))?;
        let hash = unhex(&line.hash).ok_or_else(|| bad("hash"))?;
        let before = match &line.before {
            None => None,
            Some(before) => Some(unhex(before).ok_or_else(|| bad("before"))?),
        };
        let (walk, end) = match walks.get_mut(line.chain) {
            Some(known) => known,
            None => {
                let before =
                    before.ok_or_else(|| bad("the chain's first line has no \"before\""))?;
                let walk = Walk::from((line.seq - 1, before));
                walks.entry(line.chain.to_owned()).or_insert((walk, None))
            }
        };
        match line.row {
            None => *end = Some((line.seq, hash)),
            Some(row) => walk.meet(&Row {
                seq: line.seq,
                text: row.get().to_owned(),
                hash: hash.to_vec(),
            }),
        }
    }
    let ended = walks.into_iter();
    Ok(ended
        .map(|(chain, (walk, end))| walk.end(&chain, end))
        .collect())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Hash> {
    let mut hash = Hash::default();
    if text.len() != 2 * hash.len() || !text.is_ascii() {
        return None;
    }
    for (place, byte) in hash.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * place..2 * place + 2], 16).ok()?;
    }
    Some(hash)
}
