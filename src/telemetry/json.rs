//! A line of the log as JSON: one object, the event's fields beside `timestamp` (RFC 3339, UTC), `level`
//! and `target`.
//!
//! A line for each command is written thousands of times a second, so it goes into the buffer as it is
//! visited, without a tree in between.

use std::fmt::{self, Write as _};

use jiff::Timestamp;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::FmtContext;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::registry::LookupSpan;

/// See the module.
#[derive(Debug, Clone, Copy)]
pub(super) struct Json;

impl<S, N> FormatEvent<S, N> for Json
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut line: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let what = event.metadata();
        let (now, level) = (Timestamp::now(), what.level());
        write!(line, r#"{{"timestamp":"{now:.6}","level":"{level}""#)?;
        let mut fields = Fields {
            line: line.by_ref(),
            written: Ok(()),
        };
        event.record(&mut fields);
        fields.written?;
        line.write_str(r#","target":"#)?;
        string(&mut line, what.target())?;
        line.write_str("}\n")
    }
}

struct Fields<'w> {
    line: Writer<'w>,
    written: fmt::Result,
}

impl Fields<'_> {
    fn field(&mut self, field: &Field, value: impl FnOnce(&mut Writer<'_>) -> fmt::Result) {
        if self.written.is_ok() {
            self.written = self
                .line
                .write_char(',')
                .and_then(|()| string(&mut self.line, field.name()))
                .and_then(|()| self.line.write_char(':'))
                .and_then(|()| value(&mut self.line));
        }
    }
}

impl Visit for Fields<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.field(field, |line| string(line, value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.field(field, |line| write!(line, "{value}"));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.field(field, |line| write!(line, "{value}"));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.field(field, |line| write!(line, "{value}"));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.field(field, |line| match value.is_finite() {
            true => write!(line, "{value}"),
            false => line.write_str("null"),
        });
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.field(field, |line| {
            line.write_char('"')?;
            write!(Escaped(line), "{value:?}")?;
            line.write_char('"')
        });
    }
}

/// A JSON string.
fn string(line: &mut impl fmt::Write, text: &str) -> fmt::Result {
    line.write_char('"')?;
    escape(line, text)?;
    line.write_char('"')
}

/// Escapes whatever is written through it.
struct Escaped<'w, W>(&'w mut W);

impl<W: fmt::Write> fmt::Write for Escaped<'_, W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        escape(self.0, text)
    }
}

/// What JSON asks for, and line breaks of other alphabets and the delete character besides, so that a
/// line stays one for whoever reads it.
fn escape(line: &mut impl fmt::Write, text: &str) -> fmt::Result {
    let is_odd = |c: char| {
        c < ' '
            || matches!(
                c,
                '"' | '\\' | '\u{7f}'..='\u{9f}' | '\u{2028}' | '\u{2029}'
            )
    };
    let mut rest = text;
    while let Some(at) = rest.find(is_odd) {
        let (plain, odd) = rest.split_at(at);
        line.write_str(plain)?;
        let mut chars = odd.chars();
        match chars.next() {
            Some('"') => line.write_str(r#"\""#)?,
            Some('\\') => line.write_str(r"\\")?,
            Some('\n') => line.write_str(r"\n")?,
            Some('\t') => line.write_str(r"\t")?,
            Some('\r') => line.write_str(r"\r")?,
            Some(other) => write!(line, "\\u{:04x}", u32::from(other))?,
            None => {}
        }
        rest = chars.as_str();
    }
    line.write_str(rest)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_text_is_read_back(text in any::<String>()) {
            let mut line = String::new();
            string(&mut line, &text).unwrap();
            prop_assert!(!line.contains('\n'));
            prop_assert_eq!(serde_json::from_str::<String>(&line).unwrap(), text);
        }
    }
}
