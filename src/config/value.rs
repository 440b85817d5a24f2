//! What one setting can be given as, and how it is read. Every error is a phrase that says what
//! would do; which setting it was, and where it came from, the caller adds.

use jiff::fmt::friendly::SpanParser;
use jiff::{SignedDuration, SpanRelativeTo};
use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

/// What was found for a setting, before anyone looked whether it fits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    /// Text from a place that has nothing but text: an environment variable, or a default.
    Untyped(String),
    /// A string of the settings file, or the content of a secret's own file.
    Text(String),
    /// An integer of the settings file.
    Integer(i64),
    /// A boolean of the settings file.
    Bool(bool),
    /// An array of the settings file that has only strings.
    List(Vec<String>),
    /// Anything else that a TOML file can hold: no setting is one. It has this name.
    Other(&'static str),
}

impl From<&toml::Value> for Value {
    fn from(value: &toml::Value) -> Self {
        match value {
            toml::Value::String(text) => Self::Text(text.clone()),
            toml::Value::Integer(number) => Self::Integer(*number),
            toml::Value::Boolean(flag) => Self::Bool(*flag),
            toml::Value::Float(_) => Self::Other("a floating-point number"),
            toml::Value::Datetime(_) => Self::Other("a date or time"),
            toml::Value::Table(_) => Self::Other("a table"),
            toml::Value::Array(entries) => entries
                .iter()
                .map(|entry| entry.as_str().map(str::to_owned))
                .collect::<Option<_>>()
                .map_or(
                    Self::Other("an array of other things than strings"),
                    Self::List,
                ),
        }
    }
}

/// As it would be written in the environment.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Untyped(text) | Self::Text(text) => f.write_str(text),
            Self::Integer(number) => number.fmt(f),
            Self::Bool(flag) => flag.fmt(f),
            Self::List(entries) => f.write_str(&entries.join(",")),
            Self::Other(name) => f.write_str(name),
        }
    }
}

/// A string.
pub(super) fn text(value: &Value) -> Result<&str, String> {
    match value {
        Value::Untyped(text) | Value::Text(text) => Ok(text),
        Value::Integer(_) | Value::Bool(_) | Value::List(_) | Value::Other(_) => {
            Err("a string would do".to_owned())
        }
    }
}

/// A string that has something in it.
pub(super) fn filled(value: &Value) -> Result<String, String> {
    let text = text(value)?;
    if text.trim().is_empty() {
        return Err("a string that is not empty would do".to_owned());
    }
    Ok(text.to_owned())
}

/// An integer within bounds.
pub(super) fn integer(value: &Value, bounds: RangeInclusive<u32>) -> Result<u32, String> {
    let number = match value {
        Value::Untyped(text) => text.parse::<u32>().ok(),
        Value::Integer(number) => u32::try_from(*number).ok(),
        Value::Text(_) | Value::Bool(_) | Value::List(_) | Value::Other(_) => None,
    };
    number.filter(|n| bounds.contains(n)).ok_or_else(|| {
        let (least, most) = (bounds.start(), bounds.end());
        format!("an integer from {least} to {most} would do")
    })
}

/// Yes or no.
pub(super) fn boolean(value: &Value) -> Result<bool, String> {
    let wrong = Err("true or false would do".to_owned());
    match value {
        Value::Bool(flag) => Ok(*flag),
        Value::Untyped(text) => match text.to_ascii_lowercase().as_str() {
            "true" | "1" => Ok(true),
            "false" | "0" => Ok(false),
            _ => wrong,
        },
        Value::Text(_) | Value::Integer(_) | Value::List(_) | Value::Other(_) => wrong,
    }
}

/// Strings: an array in the file, separated by commas elsewhere. No text at all is an empty list.
pub(super) fn list(value: &Value) -> Result<Vec<String>, String> {
    match value {
        Value::List(entries) => Ok(entries.clone()),
        Value::Untyped(text) if text.trim().is_empty() => Ok(Vec::new()),
        Value::Untyped(text) => Ok(text.split(',').map(|e| e.trim().to_owned()).collect()),
        Value::Text(_) | Value::Integer(_) | Value::Bool(_) | Value::Other(_) => {
            Err("an array of strings would do".to_owned())
        }
    }
}

/// A length of time within bounds: numbers with units, such as `30s`, `25ms` or `1h30m`. A day has
/// 24 hours.
pub(super) fn duration(
    value: &Value,
    bounds: RangeInclusive<Duration>,
) -> Result<Duration, String> {
    let parsed = text(value).ok().and_then(parse_duration);
    parsed.filter(|d| bounds.contains(d)).ok_or_else(|| {
        let (least, most) = (spoken(*bounds.start()), spoken(*bounds.end()));
        format!("a number with its unit, such as 30s or 1h30m, from {least} to {most} would do")
    })
}

/// A length of time as people write it: `25s`, `1h30m`, `30d`. `None` when it cannot be read.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let span = SpanParser::new().parse_span(text).ok()?;
    let length = span.to_duration(SpanRelativeTo::days_are_24_hours()).ok()?;
    Duration::try_from(length).ok()
}

/// A length of time as an operator would write it.
fn spoken(length: Duration) -> String {
    const DAY: u64 = 24 * 60 * 60;
    let seconds = length.as_secs();
    if seconds >= DAY && seconds.is_multiple_of(DAY) && length.subsec_nanos() == 0 {
        return format!("{}d", seconds / DAY);
    }
    SignedDuration::try_from(length)
        .map_or_else(|_| format!("{length:?}"), |signed| format!("{signed:#}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(text: &str) -> Value {
        Value::Untyped(text.to_owned())
    }

    fn file(text: &str) -> Value {
        Value::Text(text.to_owned())
    }

    #[test]
    fn a_duration_needs_a_unit_and_keeps_its_bounds() {
        let bounds = Duration::from_millis(25)..=Duration::from_secs(30 * 86_400);
        let check = |text: &str, millis: Option<u64>| {
            for value in [env(text), file(text)] {
                let read = duration(&value, bounds.clone()).ok();
                assert_eq!(read, millis.map(Duration::from_millis), "{text:?}");
            }
        };
        check("30s", Some(30_000));
        check("25ms", Some(25));
        check("24h", Some(86_400_000));
        check("30d", Some(30 * 86_400_000));
        check("1h30m", Some(5_400_000));
        check("1h 30m", Some(5_400_000));
        check("2 weeks", Some(14 * 86_400_000));
        check("24ms", None);
        check("30d1ms", None);
        check("0s", None);
        check("-30s", None);
        check("30s ago", None);
        check("30", None);
        check("1 month", None);
        check("1 year", None);
        check("", None);
        check("soon", None);
        check("99999999999999999999d", None);

        assert_eq!(
            duration(&Value::Integer(30), bounds.clone()),
            duration(&env("30"), bounds.clone())
        );
        let wrong = duration(&env("30"), bounds).unwrap_err();
        assert!(wrong.contains("from 25ms to 30d"), "{wrong}");
    }

    #[test]
    fn bounds_are_spoken_as_an_operator_would_write_them() {
        let check = |length, expected: &str| assert_eq!(spoken(length), expected);
        check(Duration::from_millis(100), "100ms");
        check(Duration::from_secs(600), "10m");
        check(Duration::from_secs(3600), "1h");
        check(Duration::from_secs(86_400), "1d");
        check(Duration::from_secs(3650 * 86_400), "3650d");
    }

    #[test]
    fn an_integer_is_text_only_outside_the_file() {
        let check = |value: Value, expected: Option<u32>| {
            assert_eq!(integer(&value, 1..=64).ok(), expected, "{value:?}");
        };
        check(Value::Integer(64), Some(64));
        check(env("1"), Some(1));
        check(Value::Integer(65), None);
        check(Value::Integer(0), None);
        check(Value::Integer(-1), None);
        check(Value::Integer(i64::MAX), None);
        check(env("2.5"), None);
        check(env(""), None);
        check(file("2"), None);
        check(Value::Other("a floating-point number"), None);
    }

    #[test]
    fn a_boolean_is_text_only_outside_the_file() {
        let check = |value: Value, expected: Option<bool>| {
            assert_eq!(boolean(&value).ok(), expected, "{value:?}");
        };
        check(Value::Bool(true), Some(true));
        check(env("true"), Some(true));
        check(env("TRUE"), Some(true));
        check(env("1"), Some(true));
        check(env("false"), Some(false));
        check(env("0"), Some(false));
        check(env("yes"), None);
        check(env(""), None);
        check(file("true"), None);
        check(Value::Integer(1), None);
    }

    #[test]
    fn a_list_is_an_array_in_the_file_and_commas_elsewhere() {
        let check = |value: Value, expected: Option<&[&str]>| {
            let expected = expected.map(|e| e.iter().map(|s| (*s).to_owned()).collect());
            assert_eq!(list(&value).ok(), expected, "{value:?}");
        };
        check(Value::List(vec!["a".into(), "b".into()]), Some(&["a", "b"]));
        check(env("a, b"), Some(&["a", "b"]));
        check(env(""), Some(&[]));
        check(env("a,"), Some(&["a", ""]));
        check(file("a,b"), None);
    }
}
