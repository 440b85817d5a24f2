//! Rows, as they come from the database.

use std::borrow::Cow;

use jiff::Timestamp;
use tokio_postgres::Row;

use super::connect::DbError;
use crate::rules::desk::{Fence, LaneId, OrderRow, OrderState};
use crate::rules::order::{Ending, OrderNo, Reason, ReasonCode};

/// `orders.state`.
pub(super) const WAITING: i16 = 0;
pub(super) const SENT: i16 = 1;
pub(super) const ENDED: i16 = 2;

/// PostgreSQL's text holds every character but NUL, and what people send may hold that, too. So NUL
/// is written as this and a nought, and this as itself twice.
const ESCAPE: char = '\u{2400}';

/// A text, as the database can hold it.
pub(super) fn stored(text: &str) -> Cow<'_, str> {
    if !text.contains(['\0', ESCAPE]) {
        return Cow::Borrowed(text);
    }
    let mut stored = String::with_capacity(text.len() + 4);
    for char in text.chars() {
        match char {
            '\0' => stored.extend([ESCAPE, '0']),
            ESCAPE => stored.extend([ESCAPE, ESCAPE]),
            other => stored.push(other),
        }
    }
    Cow::Owned(stored)
}

/// What [`stored`] was given.
pub(super) fn read(text: &str) -> Cow<'_, str> {
    if !text.contains(ESCAPE) {
        return Cow::Borrowed(text);
    }
    let mut read = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(char) = chars.next() {
        read.push(match (char, char == ESCAPE) {
            (_, true) if chars.next() == Some('0') => '\0',
            (char, _) => char,
        });
    }
    Cow::Owned(read)
}

/// An ending in words: without a code it is `cancelled`.
pub(super) fn words(ending: &Ending) -> (Option<&'static str>, Option<Cow<'_, str>>) {
    match ending.reason() {
        None => (None, None),
        Some(reason) => (Some(reason.code.as_str()), Some(stored(&reason.message))),
    }
}

/// An ending from its words.
pub(super) fn ending(code: Option<&str>, message: Option<&str>) -> Result<Ending, DbError> {
    let Some(code) = code else {
        return Ok(Ending::Cancelled);
    };
    let known = ReasonCode::parse(code).ok_or_else(|| damaged("code", code))?;
    let message = read(message.unwrap_or_default()).into_owned();
    Ok(Ending::Not(Reason::new(known, message)))
}

/// A time from its milliseconds.
pub(super) fn timestamp(millis: i64) -> Result<Timestamp, DbError> {
    Timestamp::from_millisecond(millis).map_err(|_| damaged("a time", &millis.to_string()))
}

/// A count from the database's kind of number.
pub(super) fn count(number: i32) -> u32 {
    u32::try_from(number).unwrap_or(0)
}

/// The database's kind of number.
pub(super) fn number(count: u32) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

pub(super) fn damaged(column: &'static str, value: &str) -> DbError {
    DbError::Damaged {
        column,
        value: value.to_owned(),
    }
}

/// An order from the columns state, attempts, spent, since, code, message, changed_at, of which the
/// first is number `first`.
pub(super) fn order(
    row: &Row,
    first: usize,
    lane: LaneId,
    order_no: &OrderNo,
) -> Result<OrderRow, DbError> {
    let state = match row.get::<_, i16>(first) {
        WAITING => OrderState::Waiting,
        SENT => OrderState::Sent,
        ENDED => OrderState::Ended(
            ending(row.get(first + 4), row.get(first + 5))?,
            timestamp(row.get(first + 6))?,
        ),
        other => return Err(damaged("state", &other.to_string())),
    };
    Ok(OrderRow {
        lane,
        order_no: order_no.clone(),
        state,
        attempts: count(row.get(first + 1)),
        spent: count(row.get(first + 2)),
        since: timestamp(row.get(first + 3))?,
        fence: Fence::default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_can_be_stored_and_is_read_as_it_was() {
        for text in [
            "",
            "QC1",
            "\0",
            "a\0b",
            "␀",
            "␀0",
            "\0␀\0",
            "␀␀0",
            "a\u{1}\u{202e}",
        ] {
            let kept = stored(text);
            assert!(!kept.contains('\0'), "{text:?}");
            assert_eq!(read(&kept), text);
        }
        assert_ne!(stored("\0"), stored("␀0"));
    }
}
