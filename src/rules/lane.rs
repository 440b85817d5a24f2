//! One account's lane: what waits to be sent or looked up, how its gateway fares, and which call
//! comes next.
//!
//! Everything that can stop calls is per account and lives here: the pace, a cool-down, a gateway
//! that is down, a fault in the settings, a clock that must be measured. A lane never sleeps; it
//! says what may be done now, and when to ask again.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::delay::Delays;
use super::judge::{News, SettingsFault};
use super::order::AccountName;
use super::pace::{Leave, Pace};
use super::time::{Mono, Now};

/// An order in hand, by its number in this run of the worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OrderKey(pub u64);

/// After this many calls in a row without an answer in the gateway's form, it counts as down. One
/// may be an accident of that call.
const UNWELL_MAX: u32 = 3;
/// Probes of a gateway that is down: soon at first, for most breaks are short.
const PROBES: Delays = Delays {
    first: Duration::from_secs(1),
    most: Duration::from_secs(30),
};
/// Between a probe's failure and the next probe there is at least this.
const PROBE_MIN: Duration = Duration::from_millis(200);
/// Trials of an account whose settings are wrong: somebody has to mend them, which takes minutes.
const TRIALS: Delays = Delays {
    first: Duration::from_secs(15),
    most: Duration::from_secs(300),
};
/// How long the frequency error silences an account: a minute, for its window to pass; met again,
/// the 5 to 10 minutes that the platform asks for.
const COOL_DOWNS: [Duration; 3] = [
    Duration::from_secs(60),
    Duration::from_secs(300),
    Duration::from_secs(600),
];
/// A frequency error this long after the last one is a new story.
const COOL_DOWN_MEMORY: Duration = Duration::from_secs(15 * 60);
/// The shortest `Retry-After` after too many calls: none at all would be a call after the other.
const RETRY_AFTER_MIN: Duration = Duration::from_secs(1);
/// The longest `Retry-After` that is believed.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(600);
/// Status 7 this often, each after a fresh measurement of the clock, is a fault of the settings.
const CLOCK_FAULTS_MAX: u32 = 3;
/// At start, calls wait at most this long for the clock to be measured.
const CLOCK_GATE: Duration = Duration::from_secs(5);

/// The methods that a lane calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Method {
    /// `wms.stockother.Out.cancelOrder`.
    Cancel,
    /// `wms.stockother.OutQuery.queryWithDetail`.
    LookUp,
    /// `system.Core.now`: measures the clock, and shows whether anybody answers.
    Probe,
}

impl Method {
    /// A word for metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cancel => "cancel",
            Self::LookUp => "look_up",
            Self::Probe => "now",
        }
    }
}

/// The call to be made now.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum NextCall {
    /// Cancel these. A list that is `sealed` is half of a refused one and takes no others in.
    Cancel(Vec<OrderKey>),
    /// Look this one up.
    LookUp(OrderKey),
    /// Ask for the time.
    Probe,
}

/// How an account fares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// Calls are made.
    Well,
    /// Its gateway does not answer; one probe at a time finds out when it does.
    Down {
        /// Since when.
        since: Timestamp,
        /// What was seen.
        cause: String,
    },
    /// Its settings or grants are wrong; one call at a slow pace finds out when they are mended.
    Stopped {
        /// Since when.
        since: Timestamp,
        /// What is wrong.
        fault: SettingsFault,
        /// What the gateway said.
        words: String,
    },
}

/// An operator wants that nobody calls an account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paused {
    /// Since when.
    pub since: Timestamp,
    /// Who.
    pub by: Arc<str>,
}

/// What is known of one account for its operators.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneReport {
    /// The account.
    pub account: AccountName,
    /// How it fares.
    pub health: Health,
    /// An operator wants no calls.
    pub paused: Option<Paused>,
    /// It is left alone for so long, by the gateway's wish.
    pub cooling: Option<Duration>,
    /// Orders that wait to be sent or looked up.
    pub waiting: usize,
    /// Calls in flight.
    pub in_flight: usize,
    /// Calls of the minute that are used, by this worker.
    pub used: usize,
    /// Calls that a minute has; 0 is no limit.
    pub per_minute: usize,
    /// The application may not query orders.
    pub query_denied: bool,
}

/// What a lane has to say when its health changes, to be logged once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Turn {
    /// It is down from now on.
    WentDown,
    /// It is stopped from now on.
    WasStopped,
    /// It is well again.
    Recovered,
    /// It is left alone for this long.
    CoolsDown(Duration),
}

/// One account.
#[derive(Debug, Clone)]
pub struct Lane {
    /// Whose lane it is.
    pub account: AccountName,
    /// The application may not query orders; nobody asks again before the next start.
    pub query_denied: bool,
    max_orders_per_call: usize,
    gather: Duration,
    pace: Pace,
    ready: VecDeque<OrderKey>,
    /// When those that are ready were first seen; what comes later shares their call.
    ready_since: Option<Mono>,
    halves: VecDeque<Vec<OrderKey>>,
    look_ups: VecDeque<OrderKey>,
    /// Orders that wait by themselves, by the time they are due; `true` for a look-up.
    later: BTreeMap<(Mono, OrderKey), bool>,
    look_up_was_last: bool,
    half_was_last: bool,

    health: Health,
    paused: Option<Paused>,
    /// Failed probes or trials in a row.
    failures: u32,
    unwell: u32,
    quiet_until: Mono,
    cool_downs: usize,
    cooled_at: Option<Mono>,
    clock_due: bool,
    clock_gate: Option<Mono>,
    clock_faults: u32,
    probing: bool,
}

impl Lane {
    /// A lane that measures the clock before anything else. A list that is not full waits for more
    /// orders, `gather` from the first one on: calls cost money, and these milliseconds nothing.
    pub fn new(
        account: AccountName,
        pace: Pace,
        max_orders_per_call: u32,
        gather: Duration,
    ) -> Self {
        Self {
            account,
            query_denied: false,
            max_orders_per_call: max_orders_per_call.max(1) as usize,
            gather,
            pace,
            ready: VecDeque::new(),
            ready_since: None,
            halves: VecDeque::new(),
            look_ups: VecDeque::new(),
            later: BTreeMap::new(),
            look_up_was_last: false,
            half_was_last: false,
            health: Health::Well,
            paused: None,
            failures: 0,
            unwell: 0,
            quiet_until: Mono::default(),
            cool_downs: 0,
            cooled_at: None,
            clock_due: true,
            clock_gate: None,
            clock_faults: 0,
            probing: false,
        }
    }

    /// Other bounds from now on.
    pub fn adjust(&mut self, now: Mono, per_minute: u32, concurrency: u32, max_orders: u32) {
        self.pace.adjust(now, per_minute, concurrency);
        self.max_orders_per_call = max_orders.max(1) as usize;
    }

    /// Calls made by an earlier run still count against the minute.
    pub fn remember_call(&mut self, now: Mono, ago: Duration) {
        self.pace.remember(now, ago);
    }

    /// The order waits to be sent from now on.
    pub fn send(&mut self, order: OrderKey) {
        self.ready.push_back(order);
    }

    /// These were to be sent and were not; they are the first to go again.
    pub fn send_again(&mut self, orders: impl DoubleEndedIterator<Item = OrderKey>) {
        for order in orders.rev() {
            self.ready.push_front(order);
        }
    }

    /// The list that was to be sent last is half of a refused one.
    pub fn half_was_last(&self) -> bool {
        self.half_was_last
    }

    /// This half of a refused list was to be sent and was not; it is the first to go again, and
    /// still takes no others in.
    pub fn send_half_again(&mut self, half: Vec<OrderKey>) {
        if !half.is_empty() {
            self.halves.push_front(half);
        }
    }

    /// The order was to be looked up and was not; it is the first to go again.
    pub fn look_up_again(&mut self, order: OrderKey) {
        self.look_ups.push_front(order);
    }

    /// The time was to be asked for and was not.
    pub fn probe_not_made(&mut self) {
        self.probing = false;
        self.call_not_made();
    }

    /// The order waits to be sent from `at` on.
    pub fn send_at(&mut self, at: Mono, order: OrderKey) {
        self.later.insert((at, order), false);
    }

    /// The order waits to be looked up from `at` on.
    pub fn look_up_at(&mut self, at: Mono, order: OrderKey) {
        self.later.insert((at, order), true);
    }

    /// A list that was refused as a whole is sent again in two.
    pub fn halve(&mut self, mut list: Vec<OrderKey>) {
        let second = list.split_off(list.len() / 2);
        self.halves
            .extend([list, second].into_iter().filter(|half| !half.is_empty()));
    }

    /// The call to be made now, if one may be made. Its orders leave the lane, and the call counts
    /// as begun.
    pub fn next_call(&mut self, now: Mono) -> Option<NextCall> {
        self.wake(now);
        if self.paused.is_some() || now < self.quiet_until || self.pace.ask(now) != Leave::Go {
            return None;
        }
        let call = self.choose(now)?;
        self.pace.began(now);
        Some(call)
    }

    fn choose(&mut self, now: Mono) -> Option<NextCall> {
        let gated = self.clock_due || matches!(self.health, Health::Down { .. });
        if gated && !self.probing {
            self.probing = true;
            self.clock_gate.get_or_insert(now + CLOCK_GATE);
            return Some(NextCall::Probe);
        }
        match &self.health {
            Health::Down { .. } => None,
            _ if self.clock_due && self.clock_gate.is_some_and(|gate| now < gate) => None,
            // One call at a time finds out; look-ups need no grant for cancelling.
            Health::Stopped {
                fault: SettingsFault::Permission,
                ..
            } if self.look_up_is_next(now) => self.look_ups.pop_front().map(NextCall::LookUp),
            Health::Stopped { .. } if self.pace.in_flight() > 0 => None,
            Health::Stopped { fault, .. } => {
                let asking_the_time_shows_it = *fault != SettingsFault::Permission;
                self.take(now).or_else(|| {
                    self.probing = asking_the_time_shows_it;
                    asking_the_time_shows_it.then_some(NextCall::Probe)
                })
            }
            Health::Well => self.take(now),
        }
    }

    /// Look-ups and lists take turns where both wait, so that neither starves.
    fn look_up_is_next(&self, now: Mono) -> bool {
        let list_waits = self.is_list_due(now) || !self.halves.is_empty();
        let its_turn = !list_waits || !self.look_up_was_last;
        its_turn && !self.look_ups.is_empty()
    }

    fn take(&mut self, now: Mono) -> Option<NextCall> {
        self.look_up_was_last = self.look_up_is_next(now);
        if self.look_up_was_last {
            return self.look_ups.pop_front().map(NextCall::LookUp);
        }
        self.half_was_last = !self.halves.is_empty();
        if let Some(half) = self.halves.pop_front() {
            return Some(NextCall::Cancel(half));
        }
        if !self.is_list_due(now) {
            return None;
        }
        let most = self.ready.len().min(self.max_orders_per_call);
        let list = self.ready.drain(..most).collect();
        self.ready_since = (!self.ready.is_empty()).then_some(now);
        Some(NextCall::Cancel(list))
    }

    /// Whether those that are ready are enough for a list, or have waited for enough.
    fn is_list_due(&self, now: Mono) -> bool {
        self.ready.len() >= self.max_orders_per_call
            || self.list_due_at().is_some_and(|at| at <= now)
    }

    fn list_due_at(&self) -> Option<Mono> {
        let since = self.ready_since.filter(|_| !self.ready.is_empty())?;
        Some(since + self.gather)
    }

    fn wake(&mut self, now: Mono) {
        while let Some(entry) = self.later.first_entry() {
            if entry.key().0 > now {
                break;
            }
            let ((_, order), is_look_up) = entry.remove_entry();
            if is_look_up {
                self.look_ups.push_back(order);
            } else {
                self.ready.push_back(order);
            }
        }
        if self.ready.is_empty() {
            self.ready_since = None;
        } else {
            self.ready_since.get_or_insert(now);
        }
    }

    /// When it is worth asking again, if time alone can change the answer.
    pub fn wake_at(&mut self, now: Mono) -> Option<Mono> {
        if self.paused.is_some() {
            return None;
        }
        let due = self.later.first_key_value().map(|((at, _), _)| *at);
        let waits = !self.ready.is_empty() || !self.halves.is_empty() || !self.look_ups.is_empty();
        let probes = self.clock_due || self.health != Health::Well;
        if !waits && (self.probing || !probes) {
            return due;
        }
        let gate = self.clock_gate.filter(|gate| self.clock_due && *gate > now);
        let allowed = if now < self.quiet_until {
            Some(self.quiet_until)
        } else {
            match self.pace.ask(now) {
                Leave::Wait(until) => Some(until),
                // Otherwise something else is to happen first, which asks again.
                Leave::Go => gate.or_else(|| self.list_due_at().filter(|at| *at > now)),
                Leave::Full => gate,
            }
        };
        [due, allowed].into_iter().flatten().min()
    }

    /// A call has ended, and this is what it told of the account. The turn it took, if any.
    pub fn call_ended(
        &mut self,
        now: Now,
        method: Method,
        news: News,
        chance: f64,
    ) -> Option<Turn> {
        self.pace.ended(now.mono);
        if method == Method::Probe {
            self.probing = false;
            self.clock_due = false;
        }
        match news {
            News::Answers => self.heard(method),
            News::Throttled { retry_after } => self.cool_down(now.mono, retry_after),
            News::Misconfigured { fault, words } => self.stop(now, fault, words, chance),
            News::ClockOff => {
                self.clock_faults += 1;
                self.clock_due = true;
                self.clock_gate = Some(now.mono + CLOCK_GATE);
                if self.clock_faults < CLOCK_FAULTS_MAX {
                    return None;
                }
                let words = format!("status 7, {} times in a row", self.clock_faults);
                self.stop(now, SettingsFault::Clock, words, chance)
            }
            News::Unwell { what, retry_after } => {
                if let Some(wait) = retry_after {
                    self.be_quiet(now.mono + wait.min(RETRY_AFTER_MAX));
                }
                self.unwell += 1;
                let was_down = matches!(self.health, Health::Down { .. });
                if was_down || self.unwell >= UNWELL_MAX {
                    return self.go_down(now, what, chance);
                }
                None
            }
            News::Unreachable { what } => self.go_down(now, what, chance),
        }
    }

    /// The call that was to be made is not: nobody waits for its orders any more. Call it at once
    /// after [`Lane::next_call`].
    pub fn call_not_made(&mut self) {
        self.pace.undo_began();
    }

    fn heard(&mut self, method: Method) -> Option<Turn> {
        self.unwell = 0;
        if method != Method::Probe {
            self.clock_faults = 0;
        }
        let mended = match &self.health {
            Health::Well => false,
            Health::Down { .. } => true,
            // Only the call that lacked the grant can show that it is granted now, and only a call
            // with a checked time stamp that the clock is right.
            Health::Stopped {
                fault: SettingsFault::Permission,
                ..
            } => method == Method::Cancel,
            Health::Stopped {
                fault: SettingsFault::Clock,
                ..
            } => method != Method::Probe,
            Health::Stopped { .. } => true,
        };
        if !mended {
            return None;
        }
        self.health = Health::Well;
        self.failures = 0;
        Some(Turn::Recovered)
    }

    fn cool_down(&mut self, now: Mono, retry_after: Option<Duration>) -> Option<Turn> {
        if now < self.quiet_until {
            // Calls that were in flight together are refused together.
            return None;
        }
        let again = self
            .cooled_at
            .is_some_and(|at| now.since(at) < COOL_DOWN_MEMORY);
        self.cool_downs = if again { self.cool_downs + 1 } else { 0 };
        // What the gateway asks for itself goes before what the platform asks for in general.
        let cool_down = match retry_after {
            Some(wait) => wait.clamp(RETRY_AFTER_MIN, RETRY_AFTER_MAX),
            None => COOL_DOWNS[self.cool_downs.min(COOL_DOWNS.len() - 1)],
        };
        self.be_quiet(now + cool_down);
        self.cooled_at = Some(self.quiet_until);
        Some(Turn::CoolsDown(cool_down))
    }

    fn stop(&mut self, now: Now, fault: SettingsFault, words: String, chance: f64) -> Option<Turn> {
        if now.mono < self.quiet_until && matches!(self.health, Health::Stopped { .. }) {
            return None;
        }
        self.failures += 1;
        // Half of the delay is fixed: a slow pace stays slow.
        let pause = TRIALS.ceiling(self.failures).mul_f64(0.5 + chance / 2.0);
        self.be_quiet(now.mono + pause);
        match &mut self.health {
            Health::Stopped {
                fault: known,
                words: said,
                ..
            } if *known == fault => {
                *said = words;
                None
            }
            health @ (Health::Well | Health::Down { .. } | Health::Stopped { .. }) => {
                *health = Health::Stopped {
                    since: now.wall,
                    fault,
                    words,
                };
                Some(Turn::WasStopped)
            }
        }
    }

    fn go_down(&mut self, now: Now, cause: String, chance: f64) -> Option<Turn> {
        if now.mono < self.quiet_until && matches!(self.health, Health::Down { .. }) {
            return None;
        }
        let went = !matches!(self.health, Health::Down { .. });
        self.failures = if went { 1 } else { self.failures + 1 };
        let pause = PROBES.jittered(self.failures, chance).max(PROBE_MIN);
        self.be_quiet(now.mono + pause);
        match &mut self.health {
            Health::Down { cause: known, .. } => *known = cause,
            health @ (Health::Well | Health::Stopped { .. }) => {
                *health = Health::Down {
                    since: now.wall,
                    cause,
                }
            }
        }
        went.then_some(Turn::WentDown)
    }

    fn be_quiet(&mut self, until: Mono) {
        self.quiet_until = self.quiet_until.max(until);
    }

    /// Keeps only these orders. Those whose commands have left are otherwise dropped when their
    /// turn comes, which it may not for as long as no call can be made.
    pub fn retain(&mut self, mut keep: impl FnMut(OrderKey) -> bool) {
        self.ready.retain(|order| keep(*order));
        self.look_ups.retain(|order| keep(*order));
        self.later.retain(|(_, order), _| keep(*order));
        for half in &mut self.halves {
            half.retain(|order| keep(*order));
        }
        self.halves.retain(|half| !half.is_empty());
    }

    /// From now on no call is begun, or calls are begun again. What is in flight is finished.
    pub fn pause(&mut self, paused: Option<Paused>) {
        self.paused = paused;
    }

    /// Its gateway does not answer.
    pub fn is_down(&self) -> bool {
        matches!(self.health, Health::Down { .. })
    }

    /// No order of it can be sent at present.
    pub fn is_blocked(&self, now: Mono) -> bool {
        self.paused.is_some() || self.health != Health::Well || now < self.quiet_until
    }

    /// For operators.
    pub fn report(&self, now: Mono) -> LaneReport {
        let halves: usize = self.halves.iter().map(Vec::len).sum();
        let quiet = self.quiet_until.since(now);
        LaneReport {
            account: self.account.clone(),
            health: self.health.clone(),
            paused: self.paused.clone(),
            cooling: (self.health == Health::Well && !quiet.is_zero()).then_some(quiet),
            waiting: self.ready.len() + halves + self.look_ups.len() + self.later.len(),
            in_flight: self.pace.in_flight(),
            used: self.pace.used(now),
            per_minute: self.pace.per_minute(),
            query_denied: self.query_denied,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now(seconds: f64) -> Now {
        Now {
            mono: Mono(Duration::from_secs_f64(seconds)),
            wall: Timestamp::UNIX_EPOCH,
        }
    }

    fn mono(seconds: f64) -> Mono {
        now(seconds).mono
    }

    fn keys(numbers: std::ops::Range<u64>) -> Vec<OrderKey> {
        numbers.map(OrderKey).collect()
    }

    /// A lane without a call limit that has measured its clock.
    fn lane() -> Lane {
        let account = AccountName::new("default").unwrap();
        let mut lane = Lane::new(account, Pace::new(0, 2), 3, Duration::ZERO);
        assert_eq!(lane.next_call(mono(0.0)), Some(NextCall::Probe));
        assert_eq!(
            lane.call_ended(now(0.0), Method::Probe, News::Answers, 0.5),
            None
        );
        lane
    }

    fn unwell() -> News {
        News::Unwell {
            what: "HTTP 500".into(),
            retry_after: None,
        }
    }

    #[test]
    fn nothing_is_called_before_the_clock_is_measured_but_it_is_not_awaited_for_ever() {
        let account = AccountName::new("default").unwrap();
        let mut lane = Lane::new(account, Pace::new(0, 2), 3, Duration::ZERO);
        lane.send(OrderKey(1));
        assert_eq!(lane.next_call(mono(0.0)), Some(NextCall::Probe));
        assert_eq!(lane.next_call(mono(1.0)), None);
        assert_eq!(lane.wake_at(mono(1.0)), Some(mono(5.0)));
        assert_eq!(
            lane.next_call(mono(5.0)),
            Some(NextCall::Cancel(keys(1..2)))
        );
    }

    #[test]
    fn a_call_takes_what_waits_up_to_its_most() {
        let mut lane = lane();
        for order in keys(1..6) {
            lane.send(order);
        }
        assert_eq!(
            lane.next_call(mono(1.0)),
            Some(NextCall::Cancel(keys(1..4)))
        );
        assert_eq!(
            lane.next_call(mono(1.0)),
            Some(NextCall::Cancel(keys(4..6)))
        );
        lane.send(OrderKey(6));
        assert_eq!(lane.next_call(mono(1.0)), None, "two are in flight");
    }

    #[test]
    fn a_list_that_is_not_full_waits_for_more_but_not_for_long() {
        let mut lane = lane();
        lane.gather = Duration::from_millis(500);
        lane.send(OrderKey(1));
        assert_eq!(lane.next_call(mono(1.0)), None);
        assert_eq!(lane.wake_at(mono(1.0)), Some(mono(1.5)));
        lane.send(OrderKey(2));
        assert_eq!(lane.next_call(mono(1.4)), None);
        assert_eq!(
            lane.next_call(mono(1.5)),
            Some(NextCall::Cancel(keys(1..3)))
        );
        for order in keys(3..7) {
            lane.send(order);
        }
        assert_eq!(
            lane.next_call(mono(1.6)),
            Some(NextCall::Cancel(keys(3..6))),
            "a full one goes at once"
        );
        let _ = lane.call_ended(now(1.6), Method::Cancel, News::Answers, 0.5);
        assert_eq!(lane.next_call(mono(1.6)), None, "what is left waits anew");
        assert_eq!(lane.wake_at(mono(1.6)), Some(mono(2.1)));
        lane.look_up_at(mono(0.0), OrderKey(9));
        assert_eq!(
            lane.next_call(mono(1.7)),
            Some(NextCall::LookUp(OrderKey(9))),
            "a look-up does not wait for a list that waits"
        );
    }

    #[test]
    fn a_paused_lane_begins_nothing_and_goes_on_where_it_was() {
        let mut lane = lane();
        lane.send(OrderKey(1));
        assert!(lane.next_call(mono(1.0)).is_some());
        lane.send(OrderKey(2));
        lane.look_up_at(mono(1.0), OrderKey(3));
        lane.pause(Some(Paused {
            since: Timestamp::UNIX_EPOCH,
            by: "li".into(),
        }));
        assert_eq!(lane.next_call(mono(2.0)), None);
        assert_eq!(lane.wake_at(mono(2.0)), None, "time alone changes nothing");
        assert!(lane.is_blocked(mono(2.0)) && !lane.is_down());
        let _ = lane.call_ended(now(2.0), Method::Cancel, News::Answers, 0.5);
        assert_eq!(lane.report(mono(2.0)).waiting, 2);
        lane.pause(None);
        assert_eq!(
            lane.next_call(mono(3.0)),
            Some(NextCall::LookUp(OrderKey(3)))
        );
        assert_eq!(
            lane.next_call(mono(3.0)),
            Some(NextCall::Cancel(keys(2..3)))
        );
    }

    #[test]
    fn look_ups_and_lists_take_turns() {
        let mut lane = lane();
        lane.max_orders_per_call = 1;
        for order in keys(1..3) {
            lane.send(order);
        }
        for order in keys(11..13) {
            lane.look_up_at(mono(0.0), order);
        }
        let calls: Vec<NextCall> = (0..4)
            .map(|_| {
                let call = lane.next_call(mono(1.0)).unwrap();
                let _ = lane.call_ended(now(1.0), Method::Cancel, News::Answers, 0.5);
                call
            })
            .collect();
        assert_eq!(
            calls,
            [
                NextCall::LookUp(OrderKey(11)),
                NextCall::Cancel(keys(1..2)),
                NextCall::LookUp(OrderKey(12)),
                NextCall::Cancel(keys(2..3)),
            ]
        );
    }

    #[test]
    fn a_refused_list_goes_in_halves_and_takes_no_others_in() {
        let mut lane = lane();
        lane.halve(keys(1..4));
        lane.send(OrderKey(9));
        let mut next = || {
            let call = lane.next_call(mono(1.0));
            let _ = lane.call_ended(now(1.0), Method::Cancel, News::Answers, 0.5);
            call
        };
        assert_eq!(next(), Some(NextCall::Cancel(keys(1..2))));
        assert_eq!(next(), Some(NextCall::Cancel(keys(2..4))));
        assert_eq!(next(), Some(NextCall::Cancel(keys(9..10))));
    }

    #[test]
    fn the_frequency_error_cools_down_longer_each_time() {
        let mut lane = lane();
        let throttled = || News::Throttled { retry_after: None };
        let mut at = 10.0;
        for expected in [60, 300, 600, 600] {
            lane.send(OrderKey(1));
            assert!(lane.next_call(mono(at)).is_some());
            let turn = lane.call_ended(now(at), Method::Cancel, throttled(), 0.5);
            assert_eq!(turn, Some(Turn::CoolsDown(Duration::from_secs(expected))));
            lane.send(OrderKey(2));
            assert_eq!(lane.next_call(mono(at + 1.0)), None);
            at += expected as f64;
            assert_eq!(lane.wake_at(mono(at - 1.0)), Some(mono(at)));
            assert!(lane.next_call(mono(at)).is_some());
            let _ = lane.call_ended(now(at), Method::Cancel, News::Answers, 0.5);
        }
        at += 3600.0;
        for (asked, expected) in [(90, 90), (2, 2), (0, 1)] {
            lane.send(OrderKey(3));
            assert!(lane.next_call(mono(at)).is_some());
            let retry_after = Some(Duration::from_secs(asked));
            let news = News::Throttled { retry_after };
            let turn = lane.call_ended(now(at), Method::Cancel, news, 0.5);
            let cool_down = Duration::from_secs(expected);
            assert_eq!(turn, Some(Turn::CoolsDown(cool_down)));
            at += 1000.0;
        }
    }

    #[test]
    fn a_gateway_that_is_down_is_probed_one_at_a_time() {
        let mut lane = lane();
        for n in 1..=3 {
            lane.send(OrderKey(n));
            assert!(lane.next_call(mono(1.0)).is_some());
            let turn = lane.call_ended(now(1.0), Method::Cancel, unwell(), 1.0);
            assert_eq!(turn, (n == 3).then_some(Turn::WentDown), "after {n}");
        }
        lane.send(OrderKey(4));
        assert_eq!(lane.next_call(mono(1.5)), None);
        assert_eq!(lane.next_call(mono(2.0)), Some(NextCall::Probe));
        assert_eq!(lane.next_call(mono(2.0)), None, "one at a time");
        let gone = News::Unreachable {
            what: "refused".into(),
        };
        assert_eq!(
            lane.call_ended(now(2.0), Method::Probe, gone, 1.0),
            None,
            "told once"
        );
        assert_eq!(lane.wake_at(mono(2.0)), Some(mono(4.0)));
        assert_eq!(lane.next_call(mono(4.0)), Some(NextCall::Probe));
        let turn = lane.call_ended(now(4.0), Method::Probe, News::Answers, 1.0);
        assert_eq!(turn, Some(Turn::Recovered));
        assert_eq!(
            lane.next_call(mono(4.0)),
            Some(NextCall::Cancel(keys(4..5)))
        );
    }

    #[test]
    fn a_fault_in_the_settings_stops_calls_until_one_gets_through() {
        let mut lane = lane();
        let fault = |fault| News::Misconfigured {
            fault,
            words: "no".into(),
        };
        lane.send(OrderKey(1));
        assert!(lane.next_call(mono(0.0)).is_some());
        let news = fault(SettingsFault::Permission);
        let turn = lane.call_ended(now(0.0), Method::Cancel, news.clone(), 1.0);
        assert_eq!(turn, Some(Turn::WasStopped));
        lane.send_again(keys(1..2).into_iter());
        assert_eq!(lane.next_call(mono(14.0)), None);
        assert!(lane.next_call(mono(15.0)).is_some());
        assert_eq!(
            lane.call_ended(now(15.0), Method::Cancel, news, 1.0),
            None,
            "told once"
        );
        lane.look_up_at(mono(15.0), OrderKey(2));
        lane.send_again(keys(1..2).into_iter());
        assert_eq!(
            lane.next_call(mono(45.0)),
            Some(NextCall::LookUp(OrderKey(2)))
        );
        assert_eq!(
            lane.call_ended(now(45.0), Method::LookUp, News::Answers, 1.0),
            None
        );
        assert_eq!(
            lane.next_call(mono(45.0)),
            Some(NextCall::Cancel(keys(1..2)))
        );
        let turn = lane.call_ended(now(45.0), Method::Cancel, News::Answers, 1.0);
        assert_eq!(turn, Some(Turn::Recovered));
    }

    #[test]
    fn a_clock_that_is_off_is_measured_and_in_the_end_a_fault() {
        let mut lane = lane();
        for n in 1..=3 {
            lane.send(OrderKey(n));
            assert!(matches!(
                lane.next_call(mono(1.0)),
                Some(NextCall::Cancel(_))
            ));
            let turn = lane.call_ended(now(1.0), Method::Cancel, News::ClockOff, 1.0);
            assert_eq!(turn, (n == 3).then_some(Turn::WasStopped));
            if n < 3 {
                assert_eq!(lane.next_call(mono(1.0)), Some(NextCall::Probe));
                let _ = lane.call_ended(now(1.0), Method::Probe, News::Answers, 1.0);
            }
        }
    }

    #[test]
    fn retry_after_is_respected_within_reason() {
        let mut lane = lane();
        lane.send(OrderKey(1));
        assert!(lane.next_call(mono(0.0)).is_some());
        let retry_after = Some(Duration::from_secs(20));
        let news = News::Unwell {
            what: "HTTP 503".into(),
            retry_after,
        };
        let _ = lane.call_ended(now(0.0), Method::Cancel, news, 0.5);
        lane.send(OrderKey(1));
        assert_eq!(lane.wake_at(mono(0.0)), Some(mono(20.0)));
        assert_eq!(lane.next_call(mono(19.0)), None);
        assert!(lane.next_call(mono(20.0)).is_some());
    }
}
