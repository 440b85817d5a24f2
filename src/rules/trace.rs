//! W3C trace context: which trace a command belongs to, and what is handed on with its events.
//!
//! Source: W3C Recommendation "Trace Context" (level 1), §3.2 and §3.3; the flag `random` is from
//! level 2. New ids are made from chance that the caller brings along.

use std::fmt;

/// Length of a version 00 `traceparent`, in bytes; a later version may only be longer.
const LEN: usize = 55;
/// The flags that are known: sampled (01) and, from level 2, random trace id (02). The others are
/// reserved, and the recommendation has them zero in what is sent on.
const KNOWN_FLAGS: u8 = 0x03;
/// The flag of a trace that is recorded.
const SAMPLED: u8 = 0x01;
/// Longest `tracestate` that is passed on, in bytes: what the recommendation asks every
/// participant to carry at least.
pub const TRACESTATE_MAX_BYTES: usize = 512;

/// One step of a trace: the header `traceparent`. Neither id is zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceParent {
    trace_id: u128,
    span_id: u64,
    flags: u8,
}

impl TraceParent {
    /// Reads the header's value. `None` when it does not hold to the recommendation; then there
    /// is no trace to continue, and a fresh one begins.
    ///
    /// A version above 00 is read as far as 00 goes, when its first 55 bytes fit and are followed
    /// by nothing or by `-`. Flags that are not known are dropped.
    pub fn parse(header: &str) -> Option<Self> {
        let (known, rest) = header.split_at_checked(LEN)?;
        let mut fields = known.split('-');
        let version = hex(fields.next()?, 2)?;
        let trace_id = hex(fields.next()?, 32)?;
        let span_id = u64::try_from(hex(fields.next()?, 16)?).ok()?;
        let flags = u8::try_from(hex(fields.next()?, 2)?).ok()?;

        let ends_well = match version {
            0x00 => rest.is_empty(),
            0xff => false,
            _ => rest.is_empty() || rest.starts_with('-'),
        };
        (ends_well && trace_id != 0 && span_id != 0).then_some(Self {
            trace_id,
            span_id,
            flags: flags & KNOWN_FLAGS,
        })
    }

    /// A step made elsewhere; `None` when an id is zero. Flags that are not known are dropped.
    pub fn of(trace_id: u128, span_id: u64, flags: u8) -> Option<Self> {
        (trace_id != 0 && span_id != 0).then_some(Self {
            trace_id,
            span_id,
            flags: flags & KNOWN_FLAGS,
        })
    }

    /// A new trace, sampled. The arguments are chance; a zero, which no id may be, becomes one.
    pub fn root(trace_chance: u128, span_chance: u64) -> Self {
        Self {
            trace_id: trace_chance.max(1),
            span_id: span_chance.max(1),
            flags: SAMPLED,
        }
    }

    /// The next step of the same trace, with the same flags. The argument is chance; a zero
    /// becomes one.
    pub fn child(self, span_chance: u64) -> Self {
        Self {
            span_id: span_chance.max(1),
            ..self
        }
    }

    /// The trace's id, the same at every step.
    pub const fn trace_id(self) -> u128 {
        self.trace_id
    }

    /// This step's id.
    pub const fn span_id(self) -> u64 {
        self.span_id
    }

    /// The flags, in the header's bits.
    pub const fn flags(self) -> u8 {
        self.flags
    }

    /// Whether the trace is recorded.
    pub const fn is_sampled(self) -> bool {
        self.flags & SAMPLED != 0
    }
}

/// The header's value, version 00.
impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            trace_id,
            span_id,
            flags,
        } = self;
        write!(f, "00-{trace_id:032x}-{span_id:016x}-{flags:02x}")
    }
}

/// A number of exactly `digits` lower-case hexadecimal digits, at most 32.
fn hex(field: &str, digits: usize) -> Option<u128> {
    let lower = field
        .bytes()
        .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    (lower && field.len() == digits)
        .then(|| u128::from_str_radix(field, 16).ok())
        .flatten()
}

/// The header `tracestate`, to be passed on as it came: 1 to 512 bytes of printable ASCII.
/// `None` when it is to be dropped, which the recommendation allows.
pub fn tracestate(header: &str) -> Option<&str> {
    let fits = (1..=TRACESTATE_MAX_BYTES).contains(&header.len());
    let printable = header.bytes().all(|b| matches!(b, b' '..=b'~'));
    (fits && printable).then_some(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIVEN: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn check(header: &str, expected: Option<&str>) {
        let parsed = TraceParent::parse(header).map(|t| t.to_string());
        assert_eq!(parsed.as_deref(), expected, "{header:?}");
    }

    #[test]
    fn reads_what_the_recommendation_allows() {
        check(GIVEN, Some(GIVEN));
        for flags in ["00", "01", "02", "03"] {
            let header = format!("{}{flags}", &GIVEN[..53]);
            check(&header, Some(&header));
        }
        // Reserved flags are not sent on.
        check(
            &format!("{}ff", &GIVEN[..53]),
            Some(&format!("{}03", &GIVEN[..53])),
        );
        // Later versions, read as 00.
        check(&format!("01{}", &GIVEN[2..]), Some(GIVEN));
        check(&format!("cc{}-what-comes-later", &GIVEN[2..]), Some(GIVEN));
        check(&format!("cc{}-", &GIVEN[2..]), Some(GIVEN));
    }

    #[test]
    fn refuses_everything_else() {
        for header in [
            "",
            "00",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-extra",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01 ",
            " 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-+bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473-600f067aa0ba902b7-01",
            "00_4bf92f3577b34da6a3ce929d0e0e4736_00f067aa0ba902b7_01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0A",
            "0A-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-011",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0单",
        ] {
            check(header, None);
        }
    }

    #[test]
    fn a_child_stays_in_its_trace() {
        let parent = TraceParent::parse(GIVEN).unwrap();
        let child = parent.child(0xabc);
        assert_eq!(
            child.to_string(),
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000abc-01"
        );
        assert_eq!(child.trace_id(), parent.trace_id());
        assert!(child.is_sampled());
        assert_eq!(parent.child(0).span_id(), 1);

        let quiet = TraceParent::parse(&format!("{}00", &GIVEN[..53])).unwrap();
        assert!(!quiet.child(1).is_sampled());
    }

    #[test]
    fn a_root_is_sampled_and_can_be_read_back() {
        let root = TraceParent::root(0, 0);
        assert_eq!(
            root.to_string(),
            "00-00000000000000000000000000000001-0000000000000001-01"
        );
        let root = TraceParent::root(u128::MAX, u64::MAX);
        assert_eq!(TraceParent::parse(&root.to_string()), Some(root));
    }

    #[test]
    fn a_step_made_elsewhere_is_one() {
        let step = TraceParent::of(0xa, 0xb, 0xff).unwrap();
        assert_eq!(
            step.to_string(),
            "00-0000000000000000000000000000000a-000000000000000b-03"
        );
        assert_eq!(step.flags(), 3);
        assert_eq!(TraceParent::of(0, 1, 1), None);
        assert_eq!(TraceParent::of(1, 0, 1), None);
    }

    #[test]
    fn tracestate_is_passed_on_or_dropped_whole() {
        let check = |header: &str, kept: bool| {
            assert_eq!(tracestate(header), kept.then_some(header), "{header:?}");
        };
        check("rojo=00f067aa0ba902b7,congo=t61rcWkgMzE", true);
        check(&"x".repeat(512), true);
        check(&"x".repeat(513), false);
        check("", false);
        check("a=1\n", false);
        check("a=\t1", false);
        check("a=单", false);
    }
}
