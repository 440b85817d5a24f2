//! What the sandbox knows about one seller's orders, and what a cancel or a query does to them.
//! Chance is an argument, and there is no clock and no wire here.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::fault::{
    CallFault, Fault, Lasting, Nature, OrderFault, Rates, STATE_AT_WAREHOUSE, STATE_CANCELLED,
    STATE_CHECKED, STATE_EDITING, is_dash_document,
};

/// Waiting to be checked (待审核), the one cancellable state that no prefix stands for.
const STATE_TO_BE_CHECKED: u16 = 10;

/// The state does not allow it; also said of an order that is cancelled already.
pub const MESSAGE_STATE: &str = "单据状态不是编辑中、待审核、已审核，不允许取消";
/// No such order.
pub const MESSAGE_MISSING: &str = "单据不存在";
/// Somebody else is working on the document.
pub const MESSAGE_BUSY: &str = "单据正在处理中，请稍后重试";
/// A refusal that no table lists, to be passed on word for word.
pub const MESSAGE_REFUSED: &str = "仓库已开始拣货，请联系仓库处理";

/// What happens by chance, and how long it lasts.
#[derive(Debug)]
pub struct Luck {
    /// How often faults strike by themselves.
    pub rates: Rates,
    /// How many times a prefix plays its fault before the order heals.
    pub plays: u32,
    /// Decides the rest.
    pub rng: fastrand::Rng,
}

/// One order as the sandbox remembers it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// 1 编辑中, 10 待审核, 20 已审核, 40 已推送wms, 70 已完成, 80 已取消; `None`: there is none.
    pub state: Option<u16>,
    /// How many times cancel calls named it, those that were refused or lost included.
    pub named: u32,
    /// How often it was cancelled. More than once cannot be; the state forbids it.
    pub cancelled: u32,
    lasting: Option<Lasting>,
    plays_left: u32,
}

impl Order {
    fn new(number: &str, luck: &mut Luck) -> Self {
        let nature = Nature::of(number);
        let given = match nature {
            Nature::Fault(Fault::Lasting(lasting)) => Some(lasting),
            Nature::Fault(Fault::Call(_) | Fault::Order(_)) => None,
            Nature::State(_) | Nature::Missing | Nature::Refused => {
                luck.rates.lasting(&mut luck.rng)
            }
        };
        Self {
            state: nature.state(),
            named: 0,
            cancelled: 0,
            // A -1 document has no -1 document of its own.
            lasting: given.filter(|l| *l != Lasting::Dash || !is_dash_document(number)),
            plays_left: luck.plays,
        }
    }

    fn play(&mut self) -> bool {
        let plays = self.plays_left > 0;
        self.plays_left = self.plays_left.saturating_sub(1);
        plays
    }
}

/// What an answer to a cancel says.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Lists {
    /// The numbers it calls cancelled.
    pub success: Vec<String>,
    /// The numbers it refuses, and why.
    pub error: Vec<(String, &'static str)>,
    /// How many orders were really cancelled.
    pub cancelled: usize,
}

/// One seller's orders, the oldest forgotten when there are too many. An order that is forgotten
/// is, when it is named again, as new: back in its first state, its faults unplayed.
#[derive(Debug)]
pub struct Book {
    orders: HashMap<Arc<str>, Order>,
    by_age: VecDeque<Arc<str>>,
    capacity: usize,
}

impl Book {
    /// A book that remembers this many orders, at least one.
    pub fn new(capacity: usize) -> Self {
        Self {
            orders: HashMap::new(),
            by_age: VecDeque::new(),
            capacity: capacity.max(1),
        }
    }

    /// The order, if it was ever named in a cancel and is not forgotten.
    pub fn get(&self, number: &str) -> Option<&Order> {
        self.orders.get(number)
    }

    /// All orders that are remembered, in the order in which they were first named.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Order)> {
        self.by_age
            .iter()
            .filter_map(|number| Some((&**number, self.orders.get(number)?)))
    }

    /// Takes note that a cancel names these numbers.
    pub fn name(&mut self, numbers: &[String], luck: &mut Luck) {
        for number in numbers {
            let order = self.meet(number, luck);
            order.named = order.named.saturating_add(1);
        }
    }

    /// Whether one of them makes the gateway refuse the whole call.
    pub fn any_bad(&self, numbers: &[String]) -> bool {
        numbers
            .iter()
            .filter_map(|number| self.get(number))
            .any(|order| order.lasting == Some(Lasting::Bad))
    }

    /// The fault that one of the numbers asks for the call by its prefix. The first that has one
    /// left decides, and whoever asks for the same in this call has had it.
    pub fn call_fault(&mut self, numbers: &[String], luck: &mut Luck) -> Option<CallFault> {
        let mut struck = None;
        for number in numbers {
            let Nature::Fault(Fault::Call(fault)) = Nature::of(number) else {
                continue;
            };
            if struck.is_none_or(|s| s == fault) && self.meet(number, luck).play() {
                struck = Some(fault);
            }
        }
        struck
    }

    /// Cancels what can be cancelled, one number after the other as they stand.
    pub fn cancel(&mut self, numbers: &[String], luck: &mut Luck) -> Lists {
        let mut lists = Lists::default();
        for number in numbers {
            match self.cancel_one(number, numbers, luck) {
                Err(message) => lists.error.push((number.clone(), message)),
                Ok(done) => {
                    lists.cancelled += 1;
                    match done.fault {
                        None => lists.success.push(done.number),
                        Some(Listed::Both) => {
                            lists.error.push((done.number.clone(), MESSAGE_STATE));
                            lists.success.push(done.number);
                        }
                        Some(Listed::Neither) => {}
                    }
                }
            }
        }
        lists
    }

    fn cancel_one(
        &mut self,
        number: &str,
        asked: &[String],
        luck: &mut Luck,
    ) -> Result<Done, &'static str> {
        let order = self.meet(number, luck);
        let state = order.state.ok_or(MESSAGE_MISSING)?;
        if !cancellable(number, state) {
            return Err(MESSAGE_STATE);
        }
        let fault = match Nature::of(number) {
            Nature::Refused => return Err(MESSAGE_REFUSED),
            Nature::Fault(Fault::Order(fault)) if order.play() => Some(fault),
            Nature::State(_) | Nature::Missing | Nature::Fault(_) => {
                luck.rates.order(&mut luck.rng)
            }
        };
        let fault = match fault {
            Some(OrderFault::Busy) => return Err(MESSAGE_BUSY),
            Some(OrderFault::Both) => Some(Listed::Both),
            Some(OrderFault::Neither) => Some(Listed::Neither),
            None => None,
        };
        order.state = Some(STATE_CANCELLED);
        order.cancelled = order.cancelled.saturating_add(1);

        let mut told = number.to_owned();
        if order.lasting == Some(Lasting::Dash) {
            let document = dash_document(number);
            // A document that is asked for by name answers for itself.
            if !asked.contains(&document) {
                let open = self.meet(&document, luck);
                if open.state != Some(STATE_CANCELLED) {
                    open.state = Some(STATE_CANCELLED);
                    open.cancelled = open.cancelled.saturating_add(1);
                    told = document;
                }
            }
        }
        Ok(Done {
            number: told,
            fault,
        })
    }

    /// The documents of this number with their states, the order first, then its `-1` document.
    /// Looking an order up is no reason to remember it.
    pub fn look_up(&self, number: &str) -> Vec<(String, u16)> {
        let state = |number: &str| match self.get(number) {
            Some(order) => order.state,
            None => Nature::of(number).state(),
        };
        let has_document = match self.get(number) {
            Some(order) => order.lasting == Some(Lasting::Dash),
            None => {
                Nature::of(number) == Nature::Fault(Fault::Lasting(Lasting::Dash))
                    && !is_dash_document(number)
            }
        };
        let document = has_document.then(|| dash_document(number));
        [Some(number.to_owned()), document]
            .into_iter()
            .flatten()
            .filter_map(|number| Some((state(&number)?, number)))
            .map(|(state, number)| (number, state))
            .collect()
    }

    fn meet(&mut self, number: &str, luck: &mut Luck) -> &mut Order {
        let number: Arc<str> = number.into();
        if !self.orders.contains_key(&number) {
            if self.by_age.len() >= self.capacity
                && let Some(oldest) = self.by_age.pop_front()
            {
                self.orders.remove(&oldest);
            }
            self.by_age.push_back(Arc::clone(&number));
        }
        let first = Arc::clone(&number);
        self.orders
            .entry(number)
            .or_insert_with(|| Order::new(&first, luck))
    }
}

/// A cancel that took place, the number it is told under and where.
struct Done {
    number: String,
    fault: Option<Listed>,
}

enum Listed {
    Both,
    Neither,
}

fn dash_document(number: &str) -> String {
    format!("{number}-1")
}

fn cancellable(number: &str, state: u16) -> bool {
    matches!(state, STATE_EDITING | STATE_TO_BE_CHECKED | STATE_CHECKED)
        || (state == STATE_AT_WAREHOUSE && is_dash_document(number))
}

#[cfg(test)]
mod tests {
    use super::super::fault::Rate;
    use super::*;

    fn luck(rates: &[&str]) -> Luck {
        let rates: Vec<Rate> = rates.iter().map(|r| r.parse().unwrap()).collect();
        Luck {
            rates: Rates::new(&rates).unwrap(),
            plays: 1,
            rng: fastrand::Rng::with_seed(1),
        }
    }

    fn numbers(numbers: &[&str]) -> Vec<String> {
        numbers.iter().map(|n| (*n).to_owned()).collect()
    }

    fn check(
        book: &mut Book,
        luck: &mut Luck,
        asked: &[&str],
        success: &[&str],
        error: &[(&str, &'static str)],
    ) {
        let lists = book.cancel(&numbers(asked), luck);
        let error: Vec<(String, &str)> = error.iter().map(|(n, m)| ((*n).to_owned(), *m)).collect();
        assert_eq!(
            (lists.success, lists.error),
            (numbers(success), error),
            "{asked:?}"
        );
    }

    #[test]
    fn states_decide() {
        let (book, luck) = (&mut Book::new(100), &mut luck(&[]));
        check(
            book,
            luck,
            &[
                "QC1",
                "EDIT-1",
                "WMS-1",
                "WMS-1-1",
                "DONE-1",
                "STATE80-1",
                "NONE-1",
                "REFUSE-1",
            ],
            &["QC1", "EDIT-1", "WMS-1-1"],
            &[
                ("WMS-1", MESSAGE_STATE),
                ("DONE-1", MESSAGE_STATE),
                ("STATE80-1", MESSAGE_STATE),
                ("NONE-1", MESSAGE_MISSING),
                ("REFUSE-1", MESSAGE_REFUSED),
            ],
        );
        check(book, luck, &["QC1"], &[], &[("QC1", MESSAGE_STATE)]);
        assert_eq!(book.look_up("QC1"), [("QC1".to_owned(), 80)]);
        assert_eq!(book.look_up("DONE-2"), [("DONE-2".to_owned(), 70)]);
        assert_eq!(book.look_up("NONE-2"), []);
        assert_eq!(book.get("QC1").unwrap().cancelled, 1);
    }

    #[test]
    fn a_number_listed_twice_ends_in_both_lists() {
        let (book, luck) = (&mut Book::new(100), &mut luck(&[]));
        check(
            book,
            luck,
            &["QC1", "QC1"],
            &["QC1"],
            &[("QC1", MESSAGE_STATE)],
        );
    }

    #[test]
    fn a_dash_document_answers_for_its_order() {
        let (book, luck) = (&mut Book::new(100), &mut luck(&[]));
        let both = |state| [("DASH-1".to_owned(), state), ("DASH-1-1".to_owned(), state)];
        assert_eq!(book.look_up("DASH-1"), both(20));
        assert_eq!(book.look_up("DASH-1-1"), both(20)[1..]);
        check(book, luck, &["DASH-1"], &["DASH-1-1"], &[]);
        assert_eq!(book.look_up("DASH-1"), both(80));
        check(book, luck, &["DASH-1"], &[], &[("DASH-1", MESSAGE_STATE)]);
        // Asked for together, or the document first: each answers for itself.
        check(
            book,
            luck,
            &["DASH-2", "DASH-2-1"],
            &["DASH-2", "DASH-2-1"],
            &[],
        );
        check(book, luck, &["DASH-3-1"], &["DASH-3-1"], &[]);
        check(book, luck, &["DASH-3"], &["DASH-3"], &[]);
    }

    #[test]
    fn an_order_heals_once_its_fault_was_played() {
        let (book, luck) = (&mut Book::new(100), &mut luck(&[]));
        check(book, luck, &["BUSY-1"], &[], &[("BUSY-1", MESSAGE_BUSY)]);
        check(book, luck, &["BUSY-1"], &["BUSY-1"], &[]);
        check(
            book,
            luck,
            &["BOTH-1"],
            &["BOTH-1"],
            &[("BOTH-1", MESSAGE_STATE)],
        );
        check(book, luck, &["NEITHER-1"], &[], &[]);
        assert_eq!(book.look_up("NEITHER-1")[0].1, 80);

        luck.plays = 2;
        let asked = numbers(&["QC1", "LOST-1", "LOST-2", "E500-1"]);
        let mut played = || book.call_fault(&asked, luck);
        assert_eq!(
            [played(), played(), played(), played(), played()],
            [
                Some(CallFault::Lost),
                Some(CallFault::Lost),
                Some(CallFault::Status500),
                Some(CallFault::Status500),
                None
            ]
        );
    }

    #[test]
    fn lasting_faults_by_chance_stay_with_the_order() {
        let (book, luck) = (&mut Book::new(2_000), &mut luck(&["bad=0.5"]));
        let all: Vec<String> = (0..1_000).map(|n| format!("QC{n}")).collect();
        book.name(&all, luck);
        let bad = |book: &Book| -> Vec<bool> {
            let alone = all.iter().map(std::slice::from_ref);
            alone.map(|number| book.any_bad(number)).collect()
        };
        let first = bad(book);
        assert!((400..600).contains(&first.iter().filter(|b| **b).count()));
        book.name(&all, luck);
        assert_eq!(bad(book), first);
    }

    #[test]
    fn the_oldest_order_is_forgotten() {
        let (book, luck) = (&mut Book::new(2), &mut luck(&[]));
        check(
            book,
            luck,
            &["QC1", "QC2", "QC3"],
            &["QC1", "QC2", "QC3"],
            &[],
        );
        let remembered: Vec<&str> = book.iter().map(|(number, _)| number).collect();
        assert_eq!(remembered, ["QC2", "QC3"]);
        check(book, luck, &["QC1"], &["QC1"], &[]);
        assert_eq!(book.orders.len(), 2);
    }
}
