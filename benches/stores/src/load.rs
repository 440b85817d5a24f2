//! The worker's load on its ledger, made from an index so that any process can
//! tell, without a record of its own, what must be there after a kill.

use std::fmt::Write as _;

/// The one account of the load; its name is part of every key.
pub const ACCOUNT: &str = "default";

/// Milliseconds of the epoch at which order 0 was sent. Order `i` comes `i` ms later.
const BEGIN_MS: i64 = 1_795_392_000_000;

/// One order of a one-order command.
pub struct Order {
    pub no: String,
    pub command: String,
    pub since: i64,
}

impl Order {
    pub fn new(index: u64) -> Order {
        // Sellers' numbers rise with time, but commands do not come quite in their
        // order: each thousand is walked through in steps of 387, which is prime to it.
        let near = index / 1000 * 1000 + index % 1000 * 387 % 1000;
        let (a, b) = (mix(index), mix(!index));
        Order {
            no: format!("QC{}{:06}", 20_261_123 + near / 1_000_000, near % 1_000_000),
            command: format!(
                "{:08x}-{:04x}-4{:03x}-a{:03x}-{:012x}",
                a >> 32,
                a >> 16 & 0xffff,
                a & 0xfff,
                b >> 48 & 0xfff,
                b & 0xffff_ffff_ffff
            ),
            since: since(index),
        }
    }

    /// The order's row once the record "sent" is made, about 100 bytes.
    pub fn sent_row(&self) -> String {
        format!(
            r#"{{"state":"sent","attempts":1,"since":{0},"sent_at":{0},"call":"{1}"}}"#,
            self.since,
            &self.command[..24]
        )
    }

    /// The order's row once its outcome is known, about 150 bytes.
    pub fn settled_row(&self) -> String {
        format!(
            r#"{{"state":"cancelled","attempts":1,"since":{0},"sent_at":{0},"settled_at":{1},"call":"{2}","event":"{3}"}}"#,
            self.since,
            self.since + 40,
            &self.command[..24],
            &self.command[..20]
        )
    }

    /// The result's row, about 200 bytes.
    pub fn result_row(&self) -> String {
        let mut row = format!(
            r#"{{"event_id":"{}","outcome":"cancelled","index":0,"total":1,"correlation_id":"{}","occurred_at":{},"trace":""#,
            self.command,
            &self.command[9..],
            self.since
        );
        // A trace parent is noise to a compressor, as it is in the field.
        let _ = write!(
            row,
            "{:016x}{:016x}\"}}",
            mix(self.since as u64),
            mix(!self.since as u64)
        );
        row
    }

    /// Account and number, for the engines whose key is one string of bytes.
    pub fn order_key(&self) -> Vec<u8> {
        [ACCOUNT.as_bytes(), b"\0", self.no.as_bytes()].concat()
    }

    /// Account and command, ended, so that it is a prefix of [`Order::result_key`].
    pub fn command_key(&self) -> Vec<u8> {
        [ACCOUNT.as_bytes(), b"\0", self.command.as_bytes(), b"\0"].concat()
    }

    pub fn result_key(&self) -> Vec<u8> {
        let mut key = self.command_key();
        key.extend_from_slice(self.no.as_bytes());
        key
    }
}

/// When order `index` was sent, in milliseconds of the epoch.
pub fn since(index: u64) -> i64 {
    BEGIN_MS + index as i64
}

/// A 64-bit hash of a key, the same in every process and version: FNV-1a, then mixed,
/// because FNV alone leaves keys that differ in the last byte near each other.
pub fn hash(parts: &[&str]) -> u64 {
    let mut h = 0xcbf2_9ce4_8422_2325_u64;
    for part in parts {
        for &byte in part.as_bytes().iter().chain(&[0]) {
            h = (h ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
    }
    mix(h)
}

/// The finalizer of SplitMix64.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}
