//! What became of an order or a command, as people ask for it; the ledger reads it from its record.

use std::collections::HashSet;
use std::fmt;

use jiff::Timestamp;

/// All that is known of an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrderStory {
    /// The account; `_` where a command named one that the settings did not know.
    pub account: String,
    /// The number.
    pub order_no: String,
    /// Where it stands; absent when nothing is recorded of that: it was never sent, or it ended so
    /// long ago that it is forgotten, while later commands for it are not.
    pub standing: Option<Standing>,
    /// What the commands that asked for it are told.
    pub results: Vec<Told>,
    /// What happened, in the order of time.
    pub moments: Vec<Moment>,
}

/// All that is known of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandStory {
    /// The account, as of an order.
    pub account: String,
    /// The id.
    pub command_id: String,
    /// What it is told of each order that has ended for it.
    pub results: Vec<Told>,
    /// What happened, in the order of time: it came, was told, was parked.
    pub moments: Vec<Moment>,
}

/// Where an order stands, durably.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// `waiting`, `sent` (and no ending is recorded) or `ended`.
    pub state: &'static str,
    /// How it ended.
    pub outcome: Option<String>,
    /// Why it did not end as cancelled.
    pub code: Option<String>,
    /// The same in words.
    pub message: Option<String>,
    /// Cancel calls that carried it.
    pub attempts: u32,
    /// The arrival of the oldest command that waited for it when this was recorded.
    pub since: Timestamp,
    /// When it came to stand so.
    pub changed_at: Timestamp,
}

/// What a command is told of an order, durably.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// The command.
    pub command_id: String,
    /// The order, as its event tells it.
    pub order_no: String,
    /// How it ended.
    pub outcome: String,
    /// Why it did not end as cancelled.
    pub code: Option<String>,
    /// The same in words.
    pub message: Option<String>,
    /// Cancel calls that carried the order.
    pub attempts: u32,
    /// When it ended so.
    pub occurred_at: Timestamp,
    /// Each time that such an event is noted as confirmed by the broker. None: it may have gone out,
    /// and nobody noted it.
    pub confirmed_at: Vec<Timestamp>,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Moment {
    /// When.
    pub at: Timestamp,
    /// What.
    pub what: What,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum What {
    /// A command came.
    Asked {
        /// The command.
        command_id: String,
        /// How many orders it lists.
        orders: usize,
    },
    /// A list with the order was recorded as being sent.
    Sent {
        /// The call, by its number in that run of that worker.
        call: u64,
        /// The order's calls so far, this one included.
        attempt: u32,
        /// How many orders are in the list.
        orders: usize,
    },
    /// It was recorded as waiting to be sent.
    Waits,
    /// A call ended.
    Answered {
        /// The call.
        call: u64,
        /// `cancel` or `look_up`.
        method: &'static str,
        /// How long it took, in ms.
        duration_ms: u64,
        /// The HTTP status, when one came.
        http_status: Option<u16>,
        /// The gateway's status, when it answered in its own form.
        status: Option<i64>,
        /// What it said of the call, or what went wrong.
        message: String,
        /// What it said of the order: `cancelled`, `refused`, `cancelled_and_refused`, `not_named`;
        /// for a look-up `found` or `not_found`. Absent where it said nothing of any order.
        said: Option<&'static str>,
        /// The words of a refusal; the states of what was found.
        words: Option<String>,
    },
    /// It was recorded as ended.
    Ended {
        /// How.
        outcome: String,
        /// Why it did not end as cancelled.
        code: Option<String>,
        /// The same in words.
        message: Option<String>,
        /// Cancel calls that carried it.
        attempts: u32,
    },
    /// The broker confirmed an event.
    Told {
        /// The command.
        command_id: String,
        /// The order; absent when the event tells of the command as a whole.
        order_no: Option<String>,
        /// What it tells.
        outcome: String,
        /// It was told before, or decided before this command.
        replayed: bool,
    },
    /// The broker confirmed the command's copy in the dead-letter queue.
    Parked {
        /// The command.
        command_id: String,
    },
}

// ---- for people ----

impl What {
    /// A line of plain English.
    pub fn line(&self) -> String {
        match self {
            Self::Asked { command_id, orders } => {
                format!("command {command_id} came, {}", of_orders(*orders))
            }
            Self::Sent {
                call,
                attempt,
                orders,
            } => {
                let list = of_orders(*orders);
                format!("sent in call {call}, its attempt {attempt}, in a list of {list}")
            }
            Self::Waits => "recorded as waiting; its command went back to the queue".to_owned(),
            Self::Answered {
                call,
                method,
                duration_ms,
                http_status,
                status,
                message,
                said,
                words,
            } => {
                let what = if *method == "cancel" {
                    format!("call {call}")
                } else {
                    format!("look-up {call}")
                };
                let mut line = format!("{what} ended after {duration_ms} ms");
                if let Some(http) = http_status {
                    line += &format!(", HTTP {http}");
                }
                if let Some(status) = status {
                    line += &format!(", status {status}");
                }
                if !message.is_empty() {
                    line += &format!(", {message:?}");
                }
                if let Some(said) = said {
                    line += &format!("; of the order: {}", said.replace('_', " "));
                }
                if let Some(words) = words {
                    line += &format!(", {words:?}");
                }
                line
            }
            Self::Ended {
                outcome,
                code,
                message,
                attempts,
            } => {
                let why = why(code.as_deref(), message.as_deref());
                format!("ended as {outcome}{why}, after {}", calls(*attempts))
            }
            Self::Told {
                command_id,
                order_no: _,
                outcome,
                replayed,
            } => {
                let again = if *replayed { " (replayed)" } else { "" };
                format!("the broker confirmed the event to command {command_id}: {outcome}{again}")
            }
            Self::Parked { command_id } => {
                format!("command {command_id} was copied to the dead-letter queue")
            }
        }
    }
}

fn of_orders(count: usize) -> String {
    match count {
        1 => "1 order".to_owned(),
        count => format!("{count} orders"),
    }
}

fn calls(count: u32) -> String {
    match count {
        1 => "1 call".to_owned(),
        count => format!("{count} calls"),
    }
}

fn why(code: Option<&str>, message: Option<&str>) -> String {
    let code = code.map(|code| format!(" ({code})")).unwrap_or_default();
    let words = message.filter(|message| !message.is_empty());
    let words = words.map(|words| format!(" {words:?}")).unwrap_or_default();
    code + &words
}

impl Told {
    /// A line of plain English.
    pub fn line(&self) -> String {
        let why = why(self.code.as_deref(), self.message.as_deref());
        let confirmed = match self.confirmed_at.as_slice() {
            [] => "no confirmed event is noted; it may have gone out".to_owned(),
            [at] => format!("confirmed {at:.3}"),
            [first, .., last] => format!(
                "confirmed {} times, {first:.3} to {last:.3}",
                self.confirmed_at.len()
            ),
        };
        format!("{}{why}; {confirmed}", self.outcome)
    }
}

impl fmt::Display for OrderStory {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "order {} of account {}: ", self.order_no, self.account)?;
        match &self.standing {
            None => writeln!(out, "where it stands is not on record, or not any more")?,
            Some(standing) => {
                let state = match (standing.state, &standing.outcome) {
                    (_, Some(outcome)) => outcome,
                    ("sent", None) => "sent, and no answer is recorded",
                    (state, None) => state,
                };
                let why = why(standing.code.as_deref(), standing.message.as_deref());
                let (calls, at) = (calls(standing.attempts), standing.changed_at);
                writeln!(out, "{state}{why}, after {calls}, since {at:.3}")?;
            }
        }
        for told in &self.results {
            writeln!(out, "  command {}: {}", told.command_id, told.line())?;
        }
        for moment in &self.moments {
            writeln!(out, "  {:.3}  {}", moment.at, moment.what.line())?;
        }
        Ok(())
    }
}

impl CommandStory {
    /// What happened, but for the confirmations that are told with the results.
    pub fn more(&self) -> impl Iterator<Item = &Moment> + Clone {
        // There may be thousands of each.
        let said: HashSet<(&str, Timestamp)> = self
            .results
            .iter()
            .flat_map(|told| told.confirmed_at.iter().map(|at| (&*told.order_no, *at)))
            .collect();
        let is_said = move |moment: &&Moment| match &moment.what {
            What::Told {
                order_no: Some(no), ..
            } => said.contains(&(no.as_str(), moment.at)),
            What::Told { order_no: None, .. }
            | What::Asked { .. }
            | What::Sent { .. }
            | What::Waits
            | What::Answered { .. }
            | What::Ended { .. }
            | What::Parked { .. } => false,
        };
        self.moments.iter().filter(move |moment| !is_said(moment))
    }
}

impl fmt::Display for CommandStory {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            out,
            "command {} of account {}:",
            self.command_id, self.account
        )?;
        for told in &self.results {
            writeln!(out, "  order {}: {}", told.order_no, told.line())?;
        }
        for moment in self.more() {
            writeln!(out, "  {:.3}  {}", moment.at, moment.what.line())?;
        }
        Ok(())
    }
}
