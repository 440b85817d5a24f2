//! What a run is about.

use std::time::Duration;

use wdt_cancel_worker::rules::desk::OrderState;
use wdt_cancel_worker::rules::order::{Ending, ReasonCode};
use wdt_cancel_worker::rules::policy::Verify;

use crate::NOON;

/// A command's deadline after noon, where it has one.
pub const DEADLINE: Duration = Duration::from_secs(5);
pub const ACCOUNTS: [&str; 2] = ["default", "b2b"];

#[derive(Debug, Clone)]
pub struct Config {
    /// One has the ledger to itself; several share it.
    pub workers: usize,
    /// The orders as they are at first.
    pub orders: Vec<Given>,
    pub commands: Vec<Sent>,
    pub verify: Verify,
    pub may_query: bool,
    pub max_orders_per_call: u32,
    pub concurrency: u32,
    pub max_attempts: u32,
    pub calls_per_minute: u32,
    /// A call that timed out may be executed later, when it has been looked up already. Off: no
    /// rule holds against it, for nothing would ever be certain (an order that was looked up as
    /// not cancelled, and whose deadline passed, is told as expired, and cancelled after all).
    pub executes_late: bool,
    /// Commands arrive before what is in hand goes on.
    pub eager: bool,
    /// How many steps are disturbed at most, and by how many of each.
    pub stormy_steps: usize,
    pub faults: usize,
    pub crashes: usize,
    pub losses: usize,
    pub stops: usize,
    pub long_waits: usize,
    /// Of one of several workers, and of its lease.
    pub freezes: usize,
    pub expiries: usize,
}

/// An order before the first command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Given {
    pub account: usize,
    pub no: &'static str,
    /// At the gateway; 0: no such order.
    pub status: i64,
    pub left: Left,
}

/// What an earlier run left of an order in the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    Nothing,
    Waiting,
    /// Sent, with an answer that nobody recorded.
    Sent,
    /// Given up as `unknown`.
    Unknown,
    Refused,
}

impl Left {
    pub fn state(self) -> Option<OrderState> {
        let ended = |code| {
            let before = jiff::Span::new().hours(1);
            let noon: jiff::Timestamp = NOON.parse().unwrap();
            OrderState::Ended(Ending::not(code, "then"), noon - before)
        };
        match self {
            Self::Nothing => None,
            Self::Waiting => Some(OrderState::Waiting),
            Self::Sent => Some(OrderState::Sent),
            Self::Unknown => Some(ended(ReasonCode::Unconfirmed)),
            Self::Refused => Some(ended(ReasonCode::OrderRefused)),
        }
    }

    /// A call of ours may have reached the gateway.
    pub fn is_in_doubt(self) -> bool {
        matches!(self, Self::Sent | Self::Unknown)
    }
}

/// A command as somebody sends it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sent {
    pub id: &'static str,
    pub account: usize,
    /// None is a command that cannot be read as one.
    pub orders: Vec<&'static str>,
    pub has_deadline: bool,
}

pub fn order(account: usize, no: &'static str, status: i64) -> Given {
    Given {
        account,
        no,
        status,
        left: Left::Nothing,
    }
}

pub fn left(no: &'static str, status: i64, left: Left) -> Given {
    Given {
        left,
        ..order(0, no, status)
    }
}

pub fn sent(id: &'static str, orders: &[&'static str]) -> Sent {
    Sent {
        id,
        account: 0,
        orders: orders.to_vec(),
        has_deadline: false,
    }
}

pub fn plain(commands: Vec<Sent>) -> Config {
    Config {
        workers: 1,
        orders: vec![order(0, "A", 20), order(0, "B", 20)],
        commands,
        verify: Verify::InDoubt,
        may_query: true,
        max_orders_per_call: 2,
        concurrency: 2,
        max_attempts: 3,
        calls_per_minute: 0,
        executes_late: executes_late(),
        eager: false,
        stormy_steps: usize::MAX,
        faults: usize::MAX,
        crashes: usize::MAX,
        losses: usize::MAX,
        stops: usize::MAX,
        long_waits: usize::MAX,
        freezes: usize::MAX,
        expiries: usize::MAX,
    }
}

/// Off unless `MODEL_LATE` is set; then a long search finds what [`Config::executes_late`] says.
fn executes_late() -> bool {
    std::env::var_os("MODEL_LATE").is_some()
}

/// A configuration drawn by chance: few orders, few commands, much overlap.
pub fn drawn(workers: usize, rng: &mut fastrand::Rng) -> Config {
    let accounts = rng.usize(1..=2);
    let mut orders = Vec::new();
    for account in 0..accounts {
        for no in ["A", "B"] {
            let left = match rng.usize(..12) {
                0 => Left::Waiting,
                1 => Left::Sent,
                2 => Left::Unknown,
                3 => Left::Refused,
                _ => Left::Nothing,
            };
            orders.push(Given {
                account,
                no,
                status: [20, 20, 20, 70, 80, 0][rng.usize(..6)],
                left,
            });
        }
    }
    let mut commands: Vec<Sent> = Vec::new();
    for n in 0..rng.usize(1..=4) {
        if n > 0 && rng.usize(..3) == 0 {
            commands.push(commands[rng.usize(..commands.len())].clone());
            continue;
        }
        let lists: [&[&str]; 6] = [
            &["A"],
            &["B"],
            &["A", "B"],
            &["B", "A"],
            &["A"],
            &["A", "x\ty"],
        ];
        let id = rng.usize(..4);
        let orders = match rng.usize(..20) {
            0 => Vec::new(),
            _ => lists[rng.usize(..6)].to_vec(),
        };
        commands.push(Sent {
            id: ["c1", "c2", "c3", "late"][id],
            account: rng.usize(..accounts),
            orders,
            has_deadline: id == 3,
        });
    }
    Config {
        workers,
        orders,
        verify: [
            Verify::InDoubt,
            Verify::InDoubt,
            Verify::Always,
            Verify::Never,
        ][rng.usize(..4)],
        may_query: rng.usize(..4) > 0,
        max_orders_per_call: rng.u32(1..=2),
        concurrency: rng.u32(1..=2),
        max_attempts: rng.u32(1..=3),
        calls_per_minute: [0, 4][rng.usize(..2)],
        executes_late: executes_late(),
        eager: rng.bool(),
        stormy_steps: rng.usize(10..100),
        faults: rng.usize(..5),
        crashes: rng.usize(..3),
        losses: rng.usize(..3),
        stops: rng.usize(..2),
        long_waits: rng.usize(..3),
        freezes: rng.usize(..3),
        expiries: rng.usize(..3),
        commands,
    }
}

/// Small configurations, and how many deviations from the plain course of each are searched.
pub fn small() -> Vec<(&'static str, usize, Config)> {
    let same_twice = plain(vec![sent("c1", &["A"]), sent("c1", &["A"])]);
    let shared = plain(vec![sent("c1", &["A", "B"]), sent("c2", &["B"])]);
    let eager = |config: &Config| Config {
        eager: true,
        ..config.clone()
    };
    let late = Sent {
        has_deadline: true,
        ..sent("c1", &["A"])
    };
    let other_account = Sent {
        account: 1,
        ..sent("c1", &["A"])
    };
    let shipped = Config {
        orders: vec![order(0, "A", 20), order(0, "B", 70)],
        ..eager(&shared)
    };
    let not_permitted = Config {
        may_query: false,
        ..eager(&shared)
    };
    let looked_into = Config {
        orders: vec![order(0, "A", 70), order(0, "B", 80)],
        verify: Verify::Always,
        ..shared.clone()
    };
    let left_unknown = Config {
        orders: vec![left("A", 20, Left::Unknown), left("B", 80, Left::Unknown)],
        ..plain(vec![sent("c1", &["A", "B"])])
    };
    let left_sent = Config {
        orders: vec![left("A", 20, Left::Sent), left("B", 80, Left::Sent)],
        ..plain(vec![sent("c1", &["A"]), sent("c2", &["B"])])
    };
    let two_accounts = Config {
        orders: vec![order(0, "A", 20), order(1, "A", 20)],
        ..plain(vec![sent("c1", &["A"]), other_account])
    };
    let id_twice = plain(vec![sent("c1", &["A"]), sent("c1", &["B"])]);
    let unreadable = plain(vec![sent("c1", &[]), sent("c1", &["A", "x\ty"])]);
    vec![
        ("one order", 3, plain(vec![sent("c1", &["A"])])),
        ("the same twice, at once", 2, eager(&same_twice)),
        ("the same twice, in turn", 2, same_twice),
        ("an order shared", 2, eager(&shared)),
        ("an order shared that has been shipped", 2, shipped),
        ("no query permitted", 2, not_permitted),
        ("every refusal looked into", 2, looked_into),
        (
            "one of two has a deadline",
            2,
            eager(&plain(vec![late, sent("c2", &["A"])])),
        ),
        ("an id used twice", 2, eager(&id_twice)),
        ("two accounts", 2, two_accounts),
        ("left unknown before", 2, left_unknown),
        ("left without an answer before", 2, left_sent),
        ("what cannot be read", 2, unreadable),
    ]
}

/// The same of two workers with one ledger. What one worker alone can meet is explored above.
pub fn small_shared() -> Vec<(&'static str, usize, Config)> {
    let two = |commands: Vec<Sent>| Config {
        workers: 2,
        eager: true,
        stops: 0,
        long_waits: 0,
        ..plain(commands)
    };
    let same_twice = two(vec![sent("c1", &["A"]), sent("c1", &["A"])]);
    let order_shared = two(vec![sent("c1", &["A"]), sent("c2", &["A"])]);
    let in_turn = Config {
        eager: false,
        ..same_twice.clone()
    };
    let one_try = Config {
        max_attempts: 1,
        ..same_twice.clone()
    };
    let shipped = Config {
        orders: vec![order(0, "A", 70)],
        ..order_shared.clone()
    };
    let left_unknown = Config {
        orders: vec![left("A", 20, Left::Unknown)],
        ..same_twice.clone()
    };
    let id_twice = two(vec![sent("c1", &["A"]), sent("c1", &["B"])]);
    vec![
        ("the same twice, at once", 2, same_twice),
        ("the same twice, in turn", 2, in_turn),
        ("the same twice, each tried once", 2, one_try),
        ("an order shared", 2, order_shared),
        ("an order shared that has been shipped", 2, shipped),
        ("left unknown before", 2, left_unknown),
        ("an id used twice", 2, id_twice),
    ]
}
