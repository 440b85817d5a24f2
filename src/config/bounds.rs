//! What a setting may be at most and at least, and why. Both ends are allowed.

use std::ops::RangeInclusive;
use std::time::Duration;

const HOUR: u64 = 60 * 60;
const DAY: u64 = 24 * HOUR;

/// `api.timeout`: under 100 ms hardly a TLS handshake fits, so every call would end in doubt; past
/// 10 minutes a gateway that hangs would hold up its account longer than any answer is worth.
pub const API_TIMEOUT: RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_secs(600);

/// `max_orders_per_call`: a call without orders is none. The platform's own limit is not
/// published; a thousand is far above the 20 of its sibling methods, and keeps a call under
/// about 50 kB.
pub const MAX_ORDERS_PER_CALL: RangeInclusive<u32> = 1..=1000;

/// `calls_per_minute`: 0 is no limit. 60,000 is one a millisecond, the finest step in which the
/// pace is kept; who wants more wants no limit.
pub const CALLS_PER_MINUTE: RangeInclusive<u32> = 0..=60_000;

/// `concurrency`: with none in flight nothing is ever sent. The platform counts calls that are
/// made at the same time and is known to take two; 64 is far above, and still few connections.
pub const CONCURRENCY: RangeInclusive<u32> = 1..=64;

/// `retry.max_attempts`: without a call no order can be cancelled; past a hundred paid calls for
/// one order a person has to look at it.
pub const MAX_ATTEMPTS: RangeInclusive<u32> = 1..=100;

/// `retry.max_age`: under a second an order would be given up before its first answer; after 30
/// days it has left the warehouse or will never.
pub const MAX_AGE: RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(30 * DAY);

/// `ledger.retention`: the record of a finished order is what keeps a command that is delivered
/// again from making a second call, and an hour is the least in which a broker's delivery can be
/// trusted to be over; ten years is longer than any books are kept.
pub const RETENTION: RangeInclusive<Duration> =
    Duration::from_secs(HOUR)..=Duration::from_secs(3650 * DAY);

/// `amqp.reply_to_allow`, in patterns: each command is held against every one of them.
pub const REPLY_TO_PATTERNS_MAX: usize = 100;

/// Names of queues and exchanges, in bytes: AMQP's short string.
pub const AMQP_NAME_BYTES: RangeInclusive<usize> = 1..=255;

/// The settings file, in bytes: room for thousands of accounts, and an end when the path leads to
/// a device.
pub const SETTINGS_FILE_MAX_BYTES: u64 = 1024 * 1024;

/// A secret's own file, in bytes: far more than any credential, and an end when the path leads to
/// a device.
pub const SECRET_FILE_MAX_BYTES: u64 = 64 * 1024;
