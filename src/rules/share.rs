//! Accounts that share one queue: which deliveries are opened, which are *kept*, and when the kept
//! ones go back.
//!
//! The broker hands out one queue's messages in their sequence, so an account that cannot be called,
//! or has far more commands waiting than calls a minute, would fill all that may be in hand with its
//! own, and those of the others behind it would wait. So once what is in hand has stopped moving,
//! the worker *looks past* it: it asks for more, opens what comes for accounts that have room, and
//! keeps the rest: unopened, unacknowledged, the body let go. A kept delivery takes a few bytes, and
//! goes back to the queue when its account has room again; the broker gives it out again at once.
//!
//! How much room an account has follows from what is free: it may have in hand as much as nobody
//! has. So one that is stuck never takes more than half, two a third each, and a newcomer always
//! finds room. This is what switches do with a buffer that many ports share (*dynamic thresholds*).
//!
//! Within an account the sequence stays: while one is kept, those that come after it are, too.

use std::collections::VecDeque;
use std::time::Duration;

use super::time::Mono;

/// Deliveries kept at most, and what was on its way when there were so many. One takes some 50
/// bytes here.
pub const KEPT_MAX: usize = 200_000;
/// Kept ones that are on their way back and out again, at most.
const AWAITED_MAX: usize = 512;
/// One that went back and has not come again within this time went to another worker.
const AWAITED_FOR: Duration = Duration::from_secs(10);
/// Of the weight in hand, so much must be free for looking further to be worth anything.
const ROOM_PART: usize = 16;

/// What to do with a delivery that has just come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Place {
    /// Open it.
    Open,
    /// It is kept.
    Kept,
    /// It is kept, and too heavy for what its account may have in hand: fewer at once.
    KeptHeavy,
}

/// How many deliveries, and what they weigh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Load {
    count: usize,
    weight: usize,
}

impl Load {
    fn add(&mut self, weight: usize) {
        self.count += 1;
        self.weight = self.weight.saturating_add(weight);
    }

    fn take(&mut self, weight: usize) {
        self.count = self.count.saturating_sub(1);
        self.weight = self.weight.saturating_sub(weight);
    }
}

#[derive(Debug)]
struct Kept<T> {
    delivery: T,
    weight: u32,
    /// In seconds.
    since: u32,
}

#[derive(Debug)]
struct Account<T> {
    in_hand: Load,
    /// The oldest first.
    kept: VecDeque<Kept<T>>,
    /// Gone back, to be opened when they come again.
    awaited: VecDeque<usize>,
    awaited_until: Mono,
}

/// See the module. `T` is what a delivery is known by.
#[derive(Debug)]
pub struct Shares<T> {
    accounts: Vec<Account<T>>,
    /// In hand of one account.
    each: usize,
    /// In hand of all.
    most: usize,
    max_weight: usize,
    /// In hand, and awaited: that has its room already.
    taken: Load,
    kept: usize,
    awaited: usize,
    looks_past: bool,
    /// Whose turn it is to take some back.
    turn: usize,
}

impl<T> Shares<T> {
    /// For so many accounts, the last of them nobody's. Of each `window` may be in hand, of all
    /// together three times as many and at most `max_weight`.
    pub fn new(accounts: usize, window: usize, max_weight: usize) -> Self {
        let account = |_| Account {
            in_hand: Load::default(),
            kept: VecDeque::new(),
            awaited: VecDeque::new(),
            awaited_until: Mono::default(),
        };
        Self {
            accounts: (0..accounts).map(account).collect(),
            each: window,
            // One that is stuck has filled a window when that shows; another is left for one that
            // moves, and one for all the others.
            most: window.saturating_mul(3),
            max_weight,
            taken: Load::default(),
            kept: 0,
            awaited: 0,
            looks_past: false,
            turn: 0,
        }
    }

    /// A delivery for this account has come, for the second time or more if it comes `again`.
    pub fn arrive(
        &mut self,
        now: Mono,
        account: usize,
        weight: usize,
        again: bool,
        delivery: T,
    ) -> Place {
        let own = &mut self.accounts[account];
        let reserved = if again { own.awaited.pop_front() } else { None };
        if let Some(reserved) = reserved {
            self.awaited -= 1;
            self.taken.take(reserved);
        } else if !own.kept.is_empty() {
            return self.keep(now, account, weight, delivery, Place::Kept);
        }
        // It may be another that comes again, and heavier.
        let is_awaited = reserved.is_some_and(|reserved| weight <= reserved);
        if !is_awaited && !self.is_light_enough(account, weight) {
            self.looks_past = true;
            return self.keep(now, account, weight, delivery, Place::KeptHeavy);
        }
        if reserved.is_none() && self.looks_past && !self.has_place(account) {
            return self.keep(now, account, weight, delivery, Place::Kept);
        }
        self.accounts[account].in_hand.add(weight);
        self.taken.add(weight);
        Place::Open
    }

    fn keep(
        &mut self,
        now: Mono,
        account: usize,
        weight: usize,
        delivery: T,
        place: Place,
    ) -> Place {
        self.accounts[account].kept.push_back(Kept {
            delivery,
            weight: u32::try_from(weight).unwrap_or(u32::MAX),
            since: u32::try_from(now.0.as_secs()).unwrap_or(u32::MAX),
        });
        self.kept += 1;
        place
    }

    /// One more of this account may be in hand, by count.
    fn has_place(&self, account: usize) -> bool {
        let own = &self.accounts[account];
        let count = own.in_hand.count + own.awaited.len();
        let free = self.most.saturating_sub(self.taken.count);
        count < self.each.min(free)
    }

    /// One more of this weight may be in hand. One that alone is too heavy is taken when nothing
    /// else is in hand, and one of an account that has nothing in hand if it fits at all.
    fn is_light_enough(&self, account: usize, weight: usize) -> bool {
        if self.taken.count == 0 {
            return true;
        }
        let own = &self.accounts[account];
        let mine: usize = own.in_hand.weight + own.awaited.iter().sum::<usize>();
        let all = self.taken.weight.saturating_add(weight);
        all <= self.max_weight && (mine == 0 || mine + weight <= self.max_weight - all)
    }

    /// A delivery that was opened is in hand no more.
    pub fn let_go(&mut self, account: usize, weight: usize) {
        self.accounts[account].in_hand.take(weight);
        self.taken.take(weight);
    }

    /// What is in hand does not move: from now on accounts have their share and no more, until
    /// nothing is kept.
    pub fn look_past(&mut self) {
        self.looks_past = true;
    }

    /// Whether shares count.
    pub fn looks_past(&self) -> bool {
        self.looks_past
    }

    /// What is in hand moves again; where nothing is kept either, shares count no more.
    pub fn look_straight(&mut self) {
        self.looks_past &= self.kept > 0 || self.awaited > 0;
    }

    /// Between one subscription and the next that looks further, as short as there are many accounts
    /// with nothing to do; `None` when each has something, for then nobody would gain by it. One of
    /// these has less than its part of a window in hand, and nothing kept. The last account is
    /// nobody's.
    pub fn pause(&self) -> Option<Duration> {
        let (_, accounts) = self.accounts.split_last()?;
        let part = (self.each / accounts.len().max(1)).max(1);
        let is_hungry =
            |own: &&Account<T>| own.kept.is_empty() && own.in_hand.count + own.awaited.len() < part;
        let hungry = u32::try_from(accounts.iter().filter(is_hungry).count()).ok()?;
        let accounts = u32::try_from(accounts.len()).ok()?;
        (Subscription::PAUSE * accounts).checked_div(hungry)
    }

    /// Whether something that comes now could be opened or kept.
    pub fn has_room(&self) -> bool {
        let free = self.max_weight.saturating_sub(self.taken.weight);
        self.kept < KEPT_MAX
            && self.taken.count < self.most
            && (self.taken.count == 0 || free >= self.max_weight / ROOM_PART)
    }

    /// How many are kept.
    pub fn kept(&self) -> usize {
        self.kept
    }

    /// How many went back to be opened when they come again.
    pub fn awaited(&self) -> usize {
        self.awaited
    }

    /// Kept ones to be given back now, because their accounts have room: as many as fit, of each
    /// account the oldest, of all accounts in turn.
    pub fn due(&mut self, now: Mono) -> Vec<T> {
        self.forget_awaited(now);
        let mut due = Vec::new();
        let mut passed = 0;
        while self.kept > 0 && self.awaited < AWAITED_MAX && passed < self.accounts.len() {
            let account = self.turn;
            self.turn = (self.turn + 1) % self.accounts.len();
            passed += 1;
            let Some(first) = self.accounts[account].kept.front() else {
                continue;
            };
            let weight = usize::try_from(first.weight).unwrap_or(usize::MAX);
            if !self.has_place(account) || !self.is_light_enough(account, weight) {
                continue;
            }
            if let Some(first) = self.accounts[account].kept.pop_front() {
                self.kept -= 1;
                let own = &mut self.accounts[account];
                own.awaited.push_back(weight);
                own.awaited_until = now + AWAITED_FOR;
                self.awaited += 1;
                self.taken.add(weight);
                due.push(first.delivery);
                passed = 0;
            }
        }
        due
    }

    fn forget_awaited(&mut self, now: Mono) {
        if self.awaited == 0 {
            return;
        }
        for own in &mut self.accounts {
            if own.awaited_until <= now {
                self.awaited -= own.awaited.len();
                for weight in own.awaited.drain(..) {
                    self.taken.take(weight);
                }
            }
        }
    }

    /// At most `count` of those that were kept for so long, to be given back: the broker closes a
    /// channel that holds one for long. With a `hold` of zero, of all.
    pub fn overdue(&mut self, now: Mono, hold: Duration, count: usize) -> Vec<T> {
        let mut overdue = Vec::new();
        for own in &mut self.accounts {
            while overdue.len() < count
                && let Some(first) = own.kept.front()
                && now.since(Mono(Duration::from_secs(first.since.into()))) >= hold
                && let Some(first) = own.kept.pop_front()
            {
                self.kept -= 1;
                overdue.push(first.delivery);
            }
        }
        overdue
    }
}

/// Whether a subscription brings anything yet: the broker sends as many as it was allowed to, and
/// more only as those are settled.
#[derive(Debug, Clone)]
pub struct Subscription {
    width: usize,
    began: Mono,
    came: usize,
    kept: usize,
    kept_weight: usize,
    looked_at: Mono,
    had_come: usize,
}

impl Subscription {
    /// Between looks at whether what is in hand moves.
    pub const LOOK_EVERY: Duration = Duration::from_millis(250);
    /// One subscription follows another at the earliest after this time, which leaves the machine
    /// to those that have work.
    pub const PAUSE: Duration = Duration::from_millis(50);
    /// A subscription moves if so much of it comes anew between two looks.
    const MOVES: usize = 8;
    /// Bodies that are let go unread come at most so fast, in bytes a second.
    const SKIMMED: usize = 16 * 1024 * 1024;

    /// It may have `width` unsettled.
    pub fn new(now: Mono, width: usize) -> Self {
        Self {
            width,
            began: now,
            came: 0,
            kept: 0,
            kept_weight: 0,
            looked_at: now,
            had_come: 0,
        }
    }

    /// One has come.
    pub fn came(&mut self) {
        self.came += 1;
    }

    /// It is kept.
    pub fn keeps(&mut self, weight: usize) {
        self.kept += 1;
        self.kept_weight = self.kept_weight.saturating_add(weight);
    }

    /// The broker sends no more while so many are not settled.
    pub fn is_spent(&self, unsettled: usize) -> bool {
        unsettled >= self.width
    }

    /// The broker sends hardly more, for what it sent is kept here.
    pub fn is_skimmed(&self, unsettled: usize) -> bool {
        self.is_spent(unsettled + self.width / Self::MOVES) && self.kept * 2 >= self.width
    }

    /// Whether what it brought has stopped moving; to be asked now and then.
    pub fn is_stuck(&mut self, now: Mono, unsettled: usize) -> bool {
        if now.since(self.looked_at) < Self::LOOK_EVERY {
            return false;
        }
        let came = self.came - self.had_come;
        (self.looked_at, self.had_come) = (now, self.came);
        self.is_spent(unsettled + self.width / Self::MOVES) && came * Self::MOVES < self.width
    }

    /// When another may follow at the earliest, after this pause.
    pub fn next_from(&self, pause: Duration) -> Mono {
        let millis = self.kept_weight.saturating_mul(1000) / Self::SKIMMED;
        let millis = u64::try_from(millis).unwrap_or(u64::MAX);
        self.began + pause.max(Duration::from_millis(millis))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    const WINDOW: usize = 10;
    const MAX_WEIGHT: usize = 1_000;

    fn at(seconds: u64) -> Mono {
        Mono(Duration::from_secs(seconds))
    }

    fn shares(accounts: usize) -> Shares<u32> {
        let mut shares = Shares::new(accounts, WINDOW, MAX_WEIGHT);
        shares.look_past();
        shares
    }

    fn opened(shares: &mut Shares<u32>, account: usize, count: u32) -> usize {
        let places = (0..count).map(|n| shares.arrive(at(0), account, 1, false, n));
        places.filter(|place| *place == Place::Open).count()
    }

    #[test]
    fn nothing_is_kept_while_what_is_in_hand_moves() {
        let mut shares = Shares::new(2, WINDOW, MAX_WEIGHT);
        assert_eq!(opened(&mut shares, 0, 100), 100);
        assert!(shares.due(at(0)).is_empty());
    }

    #[test]
    fn an_account_fills_its_window_two_that_are_stuck_leave_a_third() {
        let mut shares = shares(5);
        assert_eq!(opened(&mut shares, 0, 50), WINDOW);
        assert_eq!(opened(&mut shares, 1, 50), WINDOW);
        assert_eq!(opened(&mut shares, 2, 50), WINDOW / 2);
        assert_eq!(opened(&mut shares, 3, 50), 3);
        assert_eq!(opened(&mut shares, 4, 50), 1);
        assert!(shares.has_room());
    }

    #[test]
    fn as_many_go_back_as_have_room_and_are_opened_when_they_come_again() {
        let mut shares = shares(2);
        assert_eq!(opened(&mut shares, 0, 15), WINDOW);
        assert_eq!(shares.due(at(0)), [0; 0]);
        (0..3).for_each(|_| shares.let_go(0, 1));
        assert_eq!(shares.due(at(0)), [10, 11, 12]);
        assert_eq!(shares.due(at(0)), [0; 0]);
        assert_eq!(
            shares.arrive(at(0), 0, 1, false, 15),
            Place::Kept,
            "a later one"
        );
        for n in 10..13 {
            assert_eq!(shares.arrive(at(0), 0, 1, true, n), Place::Open);
        }
        assert_eq!((shares.kept(), shares.awaited()), (3, 0));
    }

    #[test]
    fn what_does_not_come_again_keeps_no_room() {
        let mut shares = shares(2);
        assert_eq!(opened(&mut shares, 0, 20), WINDOW);
        (0..5).for_each(|_| shares.let_go(0, 1));
        assert_eq!(shares.due(at(0)).len(), 5);
        assert_eq!(shares.due(at(9)).len(), 0);
        assert_eq!(shares.due(at(10)).len(), 5);
    }

    #[test]
    fn a_heavy_one_is_kept_while_its_account_would_have_more_than_is_free() {
        let mut shares = Shares::new(2, WINDOW, MAX_WEIGHT);
        assert_eq!(shares.arrive(at(0), 0, 400, false, 0), Place::Open);
        assert_eq!(shares.arrive(at(0), 0, 400, false, 1), Place::KeptHeavy);
        assert!(shares.looks_past());
        assert_eq!(shares.arrive(at(0), 1, 500, false, 2), Place::Open);
        assert_eq!(shares.due(at(0)), [0; 0]);
        shares.let_go(0, 400);
        assert_eq!(shares.due(at(0)), [1]);
        assert_eq!(shares.arrive(at(0), 0, 400, true, 1), Place::Open);
    }

    #[test]
    fn one_that_alone_is_too_heavy_is_opened_when_nothing_else_is_in_hand() {
        let mut shares = Shares::new(2, WINDOW, MAX_WEIGHT);
        assert_eq!(shares.arrive(at(0), 0, 1, false, 0), Place::Open);
        assert_eq!(shares.arrive(at(0), 1, 5_000, false, 1), Place::KeptHeavy);
        assert_eq!(shares.due(at(0)), [0; 0]);
        shares.let_go(0, 1);
        assert_eq!(shares.due(at(0)), [1]);
        assert_eq!(shares.arrive(at(0), 1, 5_000, true, 1), Place::Open);
    }

    #[test]
    fn who_looks_further_hurries_while_many_have_nothing_to_do() {
        let mut shares = shares(3);
        assert_eq!(shares.pause(), Some(Subscription::PAUSE));
        let part = u32::try_from(WINDOW / 2).expect("a few");
        assert_eq!(opened(&mut shares, 0, part), WINDOW / 2);
        assert_eq!(shares.pause(), Some(2 * Subscription::PAUSE));
        assert_eq!(opened(&mut shares, 1, 50), WINDOW);
        assert_eq!(shares.pause(), None);
        (0..WINDOW).for_each(|_| shares.let_go(1, 1));
        assert_eq!(shares.pause(), None, "some of it is kept");
        (0..WINDOW / 2).for_each(|_| shares.let_go(0, 1));
        assert_eq!(shares.pause(), Some(2 * Subscription::PAUSE));
    }

    #[test]
    fn what_was_kept_for_long_goes_back() {
        let mut shares = shares(2);
        assert_eq!(opened(&mut shares, 0, 15), WINDOW);
        let hold = Duration::from_secs(5);
        assert_eq!(shares.overdue(at(4), hold, 9), [0; 0]);
        assert_eq!(shares.overdue(at(5), hold, 2), [10, 11]);
        assert_eq!(shares.overdue(at(0), Duration::ZERO, 9), [12, 13, 14]);
        shares.look_straight();
        assert!(!shares.looks_past());
    }

    #[test]
    fn a_subscription_is_stuck_when_it_is_full_and_little_comes() {
        let millis = |millis| Mono(Duration::from_millis(millis));
        let mut subscription = Subscription::new(millis(0), 80);
        (0..80).for_each(|_| subscription.came());
        assert!(!subscription.is_stuck(millis(249), 80), "too early");
        assert!(!subscription.is_stuck(millis(250), 80), "80 have come");
        (0..9).for_each(|_| subscription.came());
        assert!(!subscription.is_stuck(millis(500), 60), "there is room");
        (0..9).for_each(|_| subscription.came());
        assert!(subscription.is_stuck(millis(750), 80));
        assert!(!subscription.is_skimmed(80));
        (0..40).for_each(|_| subscription.keeps(1_000_000));
        assert!(subscription.is_skimmed(80));
        let next = subscription.next_from(Subscription::PAUSE);
        assert!(next > millis(2_000), "bodies cost time");
    }

    /// A command of the property's queue.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Message {
        number: u32,
        account: usize,
        weight: usize,
        again: bool,
        returns: u32,
    }

    proptest! {
        /// A broker that sends what it may, accounts of which some never finish anything, and the
        /// worker that looks past them.
        #[test]
        fn who_moves_is_done_and_who_does_not_stays_within_its_share(
            sent in prop::collection::vec((0..6_usize, prop_oneof![9 => 1_usize..10, 1 => 10_usize..150]), 1..400),
            stuck in 0..3_usize,
        ) {
            let messages = sent.iter().zip(0..).map(|((account, weight), number)| Message {
                number, account: *account, weight: *weight, again: false, returns: 0,
            });
            let mut queue: VecDeque<Message> = messages.collect();
            // A quorum queue gives out what came back before the rest, in the sequence it came in.
            let mut returned: VecDeque<Message> = VecDeque::new();
            let mut shares = Shares::new(6, WINDOW, MAX_WEIGHT);
            let mut open: Vec<Message> = Vec::new();
            let mut kept: Vec<Message> = Vec::new();
            let mut done: Vec<Message> = Vec::new();
            let moving = sent.iter().filter(|(account, _)| *account >= stuck).count();
            for turn in 0..4 * sent.len() + 20 {
                if shares.has_room() || shares.awaited() > 0 {
                    for _ in 0..WINDOW {
                        let next = returned.pop_front().or_else(|| queue.pop_front());
                        let Some(message) = next else { break };
                        let Message { account, weight, again, number, .. } = message;
                        match shares.arrive(at(0), account, weight, again, number) {
                            Place::Open => open.push(message),
                            Place::Kept | Place::KeptHeavy => kept.push(message),
                        }
                        let weight: usize = open.iter().map(|m| m.weight).sum();
                        prop_assert!(weight <= MAX_WEIGHT || open.len() == 1, "{weight}");
                        prop_assert!(open.len() <= 4 * WINDOW, "{} in hand", open.len());
                    }
                }
                if turn > 0 {
                    shares.look_past();
                }
                // Of each account that moves, the oldest is done.
                for account in stuck..6 {
                    if let Some(at) = open.iter().position(|m| m.account == account) {
                        let message = open.remove(at);
                        shares.let_go(account, message.weight);
                        done.push(message);
                    }
                }
                for number in shares.due(at(0)) {
                    let at = kept.iter().position(|m| m.number == number).unwrap();
                    let mut message = kept.remove(at);
                    message.again = true;
                    message.returns += 1;
                    returned.push_back(message);
                }
                prop_assert_eq!(shares.kept(), kept.len());
            }
            prop_assert_eq!(done.len(), moving, "kept: {:?}", kept);
            // Each went back once at most, to be opened, and an account's are done in sequence.
            prop_assert!(done.iter().chain(&open).all(|m| m.returns <= 1));
            for account in stuck..6 {
                let numbers: Vec<u32> = done.iter().filter(|m| m.account == account).map(|m| m.number).collect();
                prop_assert!(numbers.is_sorted(), "{numbers:?}");
            }
        }
    }
}
