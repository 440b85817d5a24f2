//! The load: which commands are sent, and how each order of each must end.

use std::fmt;

use super::support::amqp::Command;
use super::support::orders::Orders;

/// Orders for each kill.
const ORDERS_PER_KILL: usize = 100;

/// How many kills, 200 unless `WDT_TEST_KILLS` says otherwise.
pub fn kills() -> usize {
    let given = std::env::var("WDT_TEST_KILLS").ok();
    given.map_or(200, |kills| {
        kills.parse().expect("WDT_TEST_KILLS is a number")
    })
}

/// How many orders for them.
pub fn all_orders() -> usize {
    kills() * ORDERS_PER_KILL
}
pub const ACCOUNTS: [&str; 4] = ["default", "east", "north", "west"];
/// Of a hundred commands, so many are followed by a repetition.
const REPEATED: u8 = 25;
/// A repetition is of one of the last so many commands, or of any.
const NEAR: usize = 60;

/// How an order ends, told by its number's first letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It can be cancelled.
    Open,
    /// It was shipped.
    Shipped,
    /// There is none.
    Absent,
    /// The gateway refuses each list with it.
    Bad,
    /// Its command's deadline has passed.
    Late,
}

impl Kind {
    /// Of an order's number.
    pub fn of(order: &str) -> Self {
        match order.chars().next() {
            Some('C') => Self::Open,
            Some('S') => Self::Shipped,
            Some('A') => Self::Absent,
            Some('B') => Self::Bad,
            Some('E') => Self::Late,
            _ => panic!("not an order of ours: {order}"),
        }
    }

    /// What may be told of it on the way: giving up is always possible, while calls are lost.
    pub fn allows(self, outcome: &str) -> bool {
        match self {
            Self::Late => outcome == "expired",
            _ => self.ends(outcome) || matches!(outcome, "failed" | "unknown"),
        }
    }

    /// What may be told of it last.
    pub fn ends(self, outcome: &str) -> bool {
        match self {
            Self::Open => outcome == "cancelled",
            Self::Shipped => outcome == "refused",
            // That the query does not show it proves nothing, if a call was lost before.
            Self::Absent => matches!(outcome, "refused" | "unknown"),
            Self::Bad => outcome == "failed",
            Self::Late => outcome == "expired",
        }
    }
}

/// A command.
#[derive(Debug, Clone)]
pub struct Sent {
    pub id: String,
    pub account: &'static str,
    pub orders: Vec<String>,
    /// It was not sent before.
    pub is_first: bool,
}

impl Sent {
    /// As it is published.
    pub fn message(&self) -> Command {
        let command = Command::orders(&self.orders)
            .id(&self.id)
            .field("account", self.account);
        match Kind::of(&self.orders[0]) {
            Kind::Late => command.field("deadline", "2020-01-01T00:00:00Z"),
            _ => command,
        }
    }
}

/// See the module.
pub struct Plan {
    pub commands: Vec<Sent>,
    same: usize,
    others: usize,
}

impl Plan {
    /// Draws one, and tells the gateway of its orders.
    pub fn new(rng: &mut fastrand::Rng, orders: &Orders) -> Self {
        let mut plan = Self {
            commands: Vec::new(),
            same: 0,
            others: 0,
        };
        let mut number = 0;
        while number < all_orders() {
            let size = match rng.u8(..100) {
                0..60 => 1,
                60..85 => rng.usize(2..6),
                85..99 => rng.usize(6..21),
                _ => rng.usize(21..61),
            }
            .min(all_orders() - number);
            let is_late = rng.u8(..100) == 0;
            let numbers = (number..number + size).map(|n| {
                let letter = match rng.u16(..1000) {
                    _ if is_late => 'E',
                    0..50 => 'S',
                    50..60 => 'A',
                    60..63 => 'B',
                    _ => 'C',
                };
                format!("{letter}{n:05}")
            });
            let numbers: Vec<String> = numbers.collect();
            for order in &numbers {
                match Kind::of(order) {
                    Kind::Shipped => drop(orders.set(order, 70)),
                    Kind::Absent => drop(orders.remove(order)),
                    Kind::Open | Kind::Bad | Kind::Late => {}
                }
            }
            number += size;
            let account = ACCOUNTS[rng.usize(..ACCOUNTS.len())];
            plan.add(account, numbers);
            if rng.u8(..100) < REPEATED {
                plan.repeat(rng);
            }
        }
        plan
    }

    fn add(&mut self, account: &'static str, orders: Vec<String>) {
        let id = format!("cmd-{:05}", self.commands.len());
        self.commands.push(Sent {
            id,
            account,
            orders,
            is_first: true,
        });
    }

    /// A command that came before comes again, or its orders come in another command.
    fn repeat(&mut self, rng: &mut fastrand::Rng) {
        let count = self.commands.len();
        let back = if rng.bool() { NEAR.min(count) } else { count };
        let mut again = self.commands[count - 1 - rng.usize(..back)].clone();
        if rng.bool() || Kind::of(&again.orders[0]) == Kind::Late {
            again.is_first = false;
            self.commands.push(again);
            self.same += 1;
        } else {
            rng.shuffle(&mut again.orders);
            again.orders.truncate(rng.usize(1..=again.orders.len()));
            self.add(again.account, again.orders);
            self.others += 1;
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} orders in {} commands, {} of them a command again, {} the orders of another",
            all_orders(),
            self.commands.len(),
            self.same,
            self.others
        )
    }
}
