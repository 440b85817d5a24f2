//! What holds of every rule and parser whatever it is given. Those that need something private have
//! theirs beside them; the desk has a model of its own (`tests/model.rs`).
#![allow(clippy::unwrap_used, reason = "a test fails where it is surprised")]

#[path = "properties/schemas.rs"]
mod schemas;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Duration;

use jiff::Timestamp;
use proptest::prelude::*;
use proptest::sample::{Index, subsequence};
use wdt_cancel_worker::config::parse_duration;
use wdt_cancel_worker::gateway::sandbox::fault::{Fault, Rate};
use wdt_cancel_worker::gateway::sign::{self, AppSecret};
use wdt_cancel_worker::rules::admit::{
    self, Admission, Command, Entry, House, RawCommand, RawProperties,
};
use wdt_cancel_worker::rules::delay::Delays;
use wdt_cancel_worker::rules::judge::{
    CallEnd, CancelLists, LookUp, News, Reply, Verdict, judge_cancel,
};
use wdt_cancel_worker::rules::lane::{Lane, Method, NextCall, OrderKey};
use wdt_cancel_worker::rules::next::{self, Next, Retry, Tries};
use wdt_cancel_worker::rules::order::{
    AccountName, CommandId, Ending, OrderNo, Outcome, Reason, ReasonCode,
};
use wdt_cancel_worker::rules::pace::{Leave, Pace};
use wdt_cancel_worker::rules::policy::Verify;
use wdt_cancel_worker::rules::time::{Mono, Now};
use wdt_cancel_worker::rules::trace::{TraceParent, tracestate};

const DELAYS: Delays = Delays {
    first: Duration::from_secs(1),
    most: Duration::from_secs(60),
};

fn order(text: &str) -> OrderNo {
    OrderNo::new(text).unwrap()
}

// Order numbers, accounts, ids

proptest! {
    #[test]
    fn an_order_number_is_what_the_contract_says(text in "[ \\t]{0,2}(\\PC|[\u{0}-\u{9f}]){0,45}") {
        let trimmed = text.trim();
        let chars = trimmed.chars().count();
        let valid = (1..=40).contains(&chars) && !trimmed.chars().any(char::is_control);
        match OrderNo::new(&text) {
            Ok(number) => {
                prop_assert!(valid, "{text:?}");
                prop_assert_eq!(number.as_str(), trimmed);
                prop_assert_eq!(OrderNo::new(trimmed), Ok(number));
            }
            Err(_) => prop_assert!(!valid, "{text:?}"),
        }
    }

    #[test]
    fn an_accounts_name_is_one_word_of_a_routing_key(text in ".{0,70}") {
        if let Some(name) = AccountName::new(&text) {
            prop_assert_eq!(name.as_str(), &text);
            prop_assert!(!text.is_empty() && !text.contains(['.', '*', '#', ' ']) && text != "_");
        }
        prop_assert_eq!(CommandId::new(&text).is_some(), (1..=255).contains(&text.len()));
    }
}

// Admission

struct Accounts;

impl House for Accounts {
    fn accounts(&self) -> impl Iterator<Item = &AccountName> {
        static NAMES: std::sync::OnceLock<[AccountName; 2]> = std::sync::OnceLock::new();
        NAMES
            .get_or_init(|| ["default", "shop"].map(|name| AccountName::new(name).unwrap()))
            .iter()
    }

    fn allows_reply_to(&self, queue: &str) -> bool {
        queue.ends_with(".replies")
    }
}

fn admitted(raw: RawCommand, properties: RawProperties) -> Admission {
    let fresh = || CommandId::new("fresh").unwrap();
    admit::admit(Ok(raw), properties, fresh, &Accounts)
}

fn accepted(list: Vec<Result<String, String>>) -> Command {
    let raw = RawCommand {
        order_no_list: list,
        ..RawCommand::default()
    };
    match admitted(raw, RawProperties::default()) {
        Admission::Accepted(command) => command,
        Admission::Rejected(rejection) => panic!("{rejection:?}"),
    }
}

fn listed() -> impl Strategy<Value = Vec<Result<String, String>>> {
    let entry = prop_oneof![
        8 => "[ ]?[A-C]{1,2}[ ]?".prop_map(Ok),
        1 => "[\u{0}x]{0,42}".prop_map(Ok),
        1 => "the number [0-9]".prop_map(Err),
    ];
    prop::collection::vec(entry, 1..30)
}

proptest! {
    #[test]
    fn every_number_that_is_listed_has_one_entry_in_its_place(list in listed()) {
        let command = accepted(list.clone());
        let shown: Vec<&str> = command.entries.iter().map(Entry::shown).collect();
        let mut first: Vec<String> = Vec::new();
        for entry in &list {
            let text = match entry {
                Ok(text) => text.trim().to_owned(),
                Err(found) => format!("{found} instead of a string of 1 to 40 characters"),
            };
            if !first.contains(&text) {
                first.push(text);
            }
        }
        prop_assert_eq!(shown, first);
    }

    #[test]
    fn a_fingerprint_is_of_the_set(list in listed(), chance in any::<u64>(), repeat in any::<Index>()) {
        let mut other = list.clone();
        other.push(repeat.get(&list).clone());
        fastrand::Rng::with_seed(chance).shuffle(&mut other);
        let (one, two) = (accepted(list), accepted(other));
        prop_assert_eq!(one.fingerprint, two.fingerprint);
        let mut less = one.entries.iter().skip(1).map(|e| Ok(e.shown().to_owned())).peekable();
        if less.peek().is_some() {
            prop_assert_ne!(accepted(less.collect()).fingerprint, one.fingerprint);
        }
    }

    #[test]
    fn events_go_only_where_they_may(
        reply_to in "(\\.replies|amq|[a-z.]{0,12})",
        account in "(default|shop|[a-z]{1,5})",
        deadline in prop_oneof![Just(None), ".{0,30}".prop_map(Some)],
    ) {
        let raw = RawCommand {
            order_no_list: vec![Ok("A".into())],
            account: Some(account.clone()),
            deadline,
            ..RawCommand::default()
        };
        let properties = RawProperties {
            reply_to: Some(reply_to.clone()),
            ..RawProperties::default()
        };
        let envelope = match admitted(raw, properties) {
            Admission::Accepted(command) => {
                prop_assert!(matches!(account.as_str(), "default" | "shop"));
                prop_assert!(reply_to.is_empty() || reply_to.ends_with(".replies"));
                command.envelope
            }
            Admission::Rejected(rejection) => rejection.envelope,
        };
        let may = reply_to.ends_with(".replies").then_some(reply_to.as_str());
        prop_assert_eq!(envelope.reply_to.as_deref(), may);
    }
}

// Judging an answer

const ASKED: [&str; 5] = ["A", "A-1", "B", "C", "D-1"];

fn named() -> impl Strategy<Value = Vec<&'static str>> {
    let names = vec!["A", "A-1", "A-1-1", "B", " B ", "B-1", "C", "D", "D-1", "Z"];
    let len = names.len();
    subsequence(names, 0..len)
}

/// Whom an answer's number speaks for, said in another way than the rules say it.
fn speaks_for(number: &str, asked: &[&str]) -> Option<String> {
    let number = number.trim();
    let original = number.strip_suffix("-1").unwrap_or(number);
    [number, original]
        .into_iter()
        .find(|name| asked.contains(name))
        .map(Into::into)
}

proptest! {
    #[test]
    fn each_order_has_one_verdict_and_cancelled_takes_one_list_and_not_the_other(
        asked in subsequence(ASKED.to_vec(), 1..=ASKED.len()),
        success in named(),
        error in named(),
        words in "(请稍后重试|单据不存在|no)",
        status in prop_oneof![4 => Just(0_i64), 1 => any::<i64>()],
        message in "(|验证失败|单据不存在|超过每分钟最大调用频率限制|x不能为空|.{0,5})",
    ) {
        let data = CancelLists {
            success: success.iter().map(|n| (*n).to_owned()).collect(),
            error: error.iter().map(|n| ((*n).to_owned(), words.clone())).collect(),
        };
        let end = CallEnd::Answered(Reply { status, message, data: Some(data) });
        let orders: Vec<OrderNo> = asked.iter().map(|n| order(n)).collect();
        let judged = judge_cancel(&orders, &end);
        prop_assert_eq!(judged.verdicts.len(), asked.len());
        let of = |list: &[&str]| -> BTreeSet<String> {
            list.iter().filter_map(|n| speaks_for(n, &asked)).collect()
        };
        let (said_yes, said_no) = (of(&success), of(&error));
        for (name, verdict) in asked.iter().zip(&judged.verdicts) {
            let yes = status == 0 && said_yes.contains(*name) && !said_no.contains(*name);
            prop_assert_eq!(*verdict == Verdict::Cancelled, yes, "{}: {:?}", name, verdict);
            let no = matches!(verdict, Verdict::Refused(_) | Verdict::Busy(_));
            prop_assert!(!no || said_no.contains(*name) && !said_yes.contains(*name));
        }
    }

    #[test]
    fn what_is_no_answer_cancels_and_refuses_nothing(kind in 0..4_usize, what in ".{0,20}") {
        let end: CallEnd<CancelLists> = match kind {
            0 => CallEnd::Throttled { retry_after: None },
            1 => CallEnd::Garbled { what, retry_after: None },
            2 => CallEnd::Lost { what },
            _ => CallEnd::NotReached { what },
        };
        let may_be_executed = matches!(end, CallEnd::Garbled { .. } | CallEnd::Lost { .. });
        for verdict in judge_cancel(&[order("A"), order("B")], &end).verdicts {
            prop_assert_eq!(matches!(verdict, Verdict::InDoubt(_)), may_be_executed);
            prop_assert_eq!(verdict == Verdict::NotExecuted, !may_be_executed);
        }
    }
}

// What follows

fn no(code: ReasonCode) -> Reason {
    Reason::new(code, "no")
}

fn verdict() -> impl Strategy<Value = Verdict> {
    prop_oneof![
        Just(Verdict::Cancelled),
        Just(Verdict::Refused(no(ReasonCode::OrderState))),
        Just(Verdict::Refused(no(ReasonCode::OrderNotFound))),
        Just(Verdict::Busy("later".into())),
        Just(Verdict::InDoubt("lost".into())),
        Just(Verdict::NotExecuted),
        Just(Verdict::ListRefused(no(ReasonCode::OrderNotFound))),
        Just(Verdict::ListRefused(no(ReasonCode::ApiRefusedCall))),
        Just(Verdict::CallRefused("no".into())),
    ]
}

fn look_up() -> impl Strategy<Value = LookUp> {
    prop_oneof![
        Just(LookUp::Cancelled),
        Just(LookUp::Cancellable("20".into())),
        Just(LookUp::Final("70".into())),
        Just(LookUp::Absent),
        Just(LookUp::NotPermitted("no".into())),
        Just(LookUp::Failed("lost".into())),
    ]
}

proptest! {
    /// The course of one order through any answers. The fifth law, and that it ends.
    #[test]
    fn an_order_ends_and_never_on_an_echo_of_our_own_call(
        verdicts in prop::collection::vec(verdict(), 60),
        look_ups in prop::collection::vec(look_up(), 60),
        max_attempts in 1_u32..6,
        verify in prop::sample::select(Verify::ALL.to_vec()),
        chance in 0.0..1.0,
    ) {
        let retry = Retry { max_attempts, verify, delays: DELAYS };
        let mut tries = Tries::default();
        let (mut verdicts, mut look_ups) = (verdicts.into_iter(), look_ups.into_iter());
        let mut next = Next::SendIn(Duration::ZERO);
        let mut doubt = false;
        let mut shown = None;
        let mut said = None;
        let mut spent_calls = 0;
        loop {
            next = match next {
                Next::SendIn(_) | Next::Halve => {
                    prop_assert!(!tries.in_doubt, "sent though in doubt");
                    let Some(verdict) = verdicts.next() else { break };
                    tries.attempts += 1;
                    shown = None;
                    said = Some(verdict.clone());
                    spent_calls += u32::from(matches!(verdict, Verdict::Busy(_) | Verdict::InDoubt(_)));
                    let alone = tries.attempts > 3;
                    let lists_doubt = matches!(&verdict, Verdict::ListRefused(r) if r.code == ReasonCode::OrderNotFound) && !alone;
                    let was_in_doubt = doubt;
                    doubt |= matches!(verdict, Verdict::InDoubt(_)) || lists_doubt;
                    let next = next::after_cancel(&mut tries, verdict, alone, true, retry, chance);
                    if let Next::End(ending) = &next {
                        let may = [Outcome::Cancelled, Outcome::Unknown];
                        prop_assert!(!was_in_doubt || may.contains(&ending.outcome()), "{ending:?}");
                    }
                    // "No such order" of a list is looked into only when a no follows.
                    if lists_doubt { tries.in_doubt = false; }
                    next
                }
                Next::LookUpIn(delay) => {
                    prop_assert!(verify != Verify::Never);
                    prop_assert!(delay <= DELAYS.most);
                    let Some(seen) = look_ups.next() else { break };
                    shown = Some(seen.clone());
                    next::after_look_up(&mut tries, seen, retry, chance)
                }
                Next::End(ending) => {
                    let told = said == Some(Verdict::Cancelled) || shown == Some(LookUp::Cancelled);
                    prop_assert_eq!(ending == Ending::Cancelled, told);
                    break;
                }
            };
        }
        prop_assert!(spent_calls <= max_attempts + 1, "{spent_calls} of {max_attempts}");
    }
}

// Delays, pace, halving

proptest! {
    #[test]
    fn a_delay_is_within_its_ceiling_which_never_sinks(
        first in 1_u64..100_000,
        more in 0_u64..10_000_000,
        failures in any::<u32>(),
        chance in any::<f64>(),
    ) {
        let delays = Delays {
            first: Duration::from_millis(first),
            most: Duration::from_millis(first + more),
        };
        let ceiling = delays.ceiling(failures);
        prop_assert!(delays.first <= ceiling && ceiling <= delays.most);
        prop_assert!(ceiling <= delays.ceiling(failures.saturating_add(1)));
        if !chance.is_nan() {
            prop_assert!(delays.jittered(failures, chance) <= ceiling);
        }
    }

    /// The gateway counts a call at any moment between its beginning and its end.
    #[test]
    fn the_gateway_never_counts_more_calls_in_a_minute_than_it_takes(
        per_minute in 1_u32..20,
        concurrency in 1_u32..5,
        steps in prop::collection::vec((0_u64..8_000, 0.0..1.0, any::<bool>()), 1..400),
    ) {
        let mut pace = Pace::new(per_minute, concurrency);
        let mut now = 0;
        let mut in_flight: Vec<(u64, f64)> = Vec::new();
        let mut counted: Vec<u64> = Vec::new();
        let count = |began: u64, ended: u64, share: f64| {
            began + ((ended - began) as f64 * share) as u64
        };
        for (wait, share, ends) in steps {
            now += wait;
            let mono = Mono(Duration::from_millis(now));
            if ends && !in_flight.is_empty() {
                let (began, share) = in_flight.remove(0);
                pace.ended(mono);
                counted.push(count(began, now, share));
            }
            match pace.ask(mono) {
                Leave::Go => {
                    pace.began(mono);
                    in_flight.push((now, share));
                }
                Leave::Wait(until) => prop_assert!(until > mono, "waits for what has passed"),
                Leave::Full => prop_assert!(!in_flight.is_empty()),
            }
            prop_assert!(in_flight.len() <= concurrency as usize);
        }
        counted.extend(in_flight.iter().map(|(began, share)| count(*began, now, *share)));
        counted.sort_unstable();
        for (first, from) in counted.iter().enumerate() {
            let within = counted[first..].iter().take_while(|at| **at < from + 60_000).count();
            prop_assert!(within <= per_minute as usize, "{within} of {per_minute} from {from} on");
        }
    }

    #[test]
    fn halving_finds_the_culprit_in_two_calls_for_each_doubling(
        orders in 1_u64..200,
        culprit in any::<Index>(),
        others in 0_u64..50,
    ) {
        let culprit = OrderKey(culprit.index(usize::try_from(orders).unwrap()) as u64);
        let mut lane = Lane::new(AccountName::new("a").unwrap(), Pace::new(0, 1), u32::try_from(orders).unwrap(), Duration::ZERO);
        let now = Now { mono: Mono::default(), wall: Timestamp::UNIX_EPOCH };
        prop_assert_eq!(lane.next_call(now.mono), Some(NextCall::Probe));
        prop_assert_eq!(lane.call_ended(now, Method::Probe, News::Answers, 0.5), None);
        for order in 0..orders + others {
            lane.send(OrderKey(order));
        }
        let mut passed = HashSet::new();
        let mut more_calls = 0;
        let mut refused = None;
        while refused.is_none() || passed.len() as u64 + 1 < orders {
            let Some(NextCall::Cancel(list)) = lane.next_call(now.mono) else {
                panic!("nothing is left to call");
            };
            prop_assert_eq!(lane.call_ended(now, Method::Cancel, News::Answers, 0.5), None);
            if !list.contains(&culprit) {
                for order in list {
                    prop_assert!(order.0 < orders, "a half takes no other order in");
                    prop_assert!(passed.insert(order), "{order:?} twice");
                }
            } else if list.len() == 1 {
                refused = Some(more_calls);
            } else {
                lane.halve(list);
            }
            more_calls += 1;
        }
        let doublings = u64::BITS - (orders - 1).leading_zeros();
        prop_assert!(more_calls - 1 <= 2 * doublings, "{more_calls} calls for {orders}");
        prop_assert!(!passed.contains(&culprit));
    }
}

// Parsers

proptest! {
    #[test]
    fn a_signature_is_of_the_set_of_parameters(
        params in prop::collection::btree_map("[a-z]{1,8}", "\\PC{0,12}", 1..8),
        body in prop::collection::vec(any::<u8>(), 0..50),
        chance in any::<u64>(),
    ) {
        prop_assume!(!params.contains_key("body"));
        let secret = AppSecret::parse("secret:salt").unwrap();
        let signed = |params: &[(&str, &str)], body: &[u8]| sign::sign(&secret, params.iter().copied(), body);
        let pairs: Vec<(&str, &str)> = params.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        let right = signed(&pairs, &body);
        prop_assert_eq!(right.len(), 32);
        prop_assert!(right.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)));
        let mut shuffled = pairs.clone();
        fastrand::Rng::with_seed(chance).shuffle(&mut shuffled);
        prop_assert_eq!(&signed(&shuffled, &body), &right);
        let longer = [body.as_slice(), b"x"].concat();
        prop_assert_ne!(signed(&pairs, &longer), right.clone());
        let mut other = pairs.clone();
        let value = format!("{}x", other[0].1);
        other[0].1 = &value;
        prop_assert_ne!(signed(&other, &body), right);
    }

    #[test]
    fn a_secret_is_split_at_the_first_colon_and_never_shown(text in "[a-z:]{0,12}") {
        match AppSecret::parse(&text) {
            Ok(secret) => {
                let (before, salt) = text.split_once(':').unwrap();
                prop_assert!(!before.is_empty() && !salt.is_empty());
                prop_assert_eq!(secret.salt(), salt);
                prop_assert_eq!(format!("{secret:?}"), "***");
            }
            Err(error) => prop_assert!(text.len() < 3 || !error.to_string().contains(&text)),
        }
    }

    #[test]
    fn a_trace_that_is_read_is_written_the_same(trace in any::<u128>(), span in any::<u64>(), flags in any::<u8>()) {
        let header = format!("00-{trace:032x}-{span:016x}-{flags:02x}");
        match TraceParent::parse(&header) {
            Some(read) => {
                prop_assert_eq!((read.trace_id(), read.span_id()), (trace, span));
                prop_assert_eq!(TraceParent::parse(&read.to_string()), Some(read));
                prop_assert_eq!(read.is_sampled(), flags & 1 == 1);
                prop_assert_eq!(read.child(7).trace_id(), trace);
            }
            None => prop_assert!(trace == 0 || span == 0),
        }
    }

    #[test]
    fn any_header_is_survived(text in ".{0,600}", near in "[0-9a-f-]{50,60}") {
        for header in [&text, &near] {
            if let Some(read) = TraceParent::parse(header) {
                prop_assert!(header.get(3..52) == read.to_string().get(3..52));
            }
            let passed_on = tracestate(header);
            prop_assert!(passed_on.is_none_or(|state| state == header && state.len() <= 512));
        }
    }

    #[test]
    fn a_length_of_time_is_the_sum_of_its_parts(
        days in 0_u64..4000, hours in 0_u64..24, minutes in 0_u64..60, millis in 0_u64..1000,
    ) {
        let text = format!("{days}d{hours}h{minutes}m{millis}ms");
        let seconds = (days * 24 + hours) * 3600 + minutes * 60;
        let expected = Duration::from_secs(seconds) + Duration::from_millis(millis);
        prop_assert_eq!(parse_duration(&text), Some(expected), "{}", text);
    }

    #[test]
    fn any_length_of_time_is_survived(text in ".{0,40}", near in "[-0-9a-z. ]{0,20}") {
        let _ = (parse_duration(&text), parse_duration(&near));
    }

    #[test]
    fn a_rate_of_the_sandbox_is_a_fault_and_a_share(fault in prop::sample::select(Fault::ALL.to_vec()), share in 0.0..=1.0, text in ".{0,20}") {
        let read: Result<Rate, _> = format!("{}={share}", fault.as_str()).parse();
        prop_assert_eq!(read, Ok(Rate { fault, rate: share }));
        if let Ok(Rate { rate, .. }) = text.parse() {
            prop_assert!((0.0..=1.0).contains(&rate));
        }
        let too_much = format!("{}={}", fault.as_str(), share + 1.1).parse::<Rate>();
        prop_assert!(too_much.is_err());
    }

    #[test]
    fn the_words_of_outcomes_and_reasons_lead_back(text in "[a-z_]{0,20}") {
        let outcomes: BTreeMap<&str, Outcome> = Outcome::ALL.map(|o| (o.as_str(), o)).into();
        prop_assert_eq!(Outcome::parse(&text), outcomes.get(text.as_str()).copied());
        for code in ReasonCode::ALL {
            prop_assert_eq!(ReasonCode::parse(code.as_str()), Some(code));
        }
    }
}
