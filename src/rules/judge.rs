//! What an answer of the gateway means, for each order in the call and for the account.
//!
//! One row of the platform's tables, one arm here. The facts marked *inferred* are nobody's word
//! but the best reading of several sources; they are kept here and nowhere else.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use super::order::{OrderNo, Reason, ReasonCode};

/// How one call ended, as seen from this side of the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallEnd<T> {
    /// An answer in the gateway's own form.
    Answered(Reply<T>),
    /// Refused at the door for being too many (HTTP 429). Not executed.
    Throttled {
        /// The `Retry-After` it named.
        retry_after: Option<Duration>,
    },
    /// Something else came back: another HTTP status, a page, an empty or a cut body.
    Garbled {
        /// What it was, for people.
        what: String,
        /// The `Retry-After` it named.
        retry_after: Option<Duration>,
    },
    /// Sent, and nothing came back in time.
    Lost {
        /// What happened, for people.
        what: String,
    },
    /// No connection came about, so nothing was sent.
    NotReached {
        /// What happened, for people.
        what: String,
    },
}

/// A call without an answer in the gateway's form.
struct NoReply {
    /// Whether the gateway may have acted on it.
    may_be_executed: bool,
    /// What happened, for people.
    what: String,
    /// What it tells of the account.
    news: News,
}

impl<T> CallEnd<T> {
    fn reply(&self) -> Result<&Reply<T>, NoReply> {
        let (may_be_executed, what, news) = match self {
            Self::Answered(reply) => return Ok(reply),
            Self::Throttled { retry_after } => (
                false,
                "HTTP 429, too many calls".to_owned(),
                News::Throttled {
                    retry_after: *retry_after,
                },
            ),
            Self::Garbled { what, retry_after } => (
                true,
                what.clone(),
                News::Unwell {
                    what: what.clone(),
                    retry_after: *retry_after,
                },
            ),
            Self::Lost { what } => (
                true,
                what.clone(),
                News::Unwell {
                    what: what.clone(),
                    retry_after: None,
                },
            ),
            Self::NotReached { what } => (
                false,
                what.clone(),
                News::Unreachable { what: what.clone() },
            ),
        };
        Err(NoReply {
            may_be_executed,
            what,
            news,
        })
    }
}

/// The gateway's envelope: `{"status": …, "message": …, "data": …}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply<T> {
    /// 0 is success, of the call and not of the orders in it.
    pub status: i64,
    /// What it says, empty when it says nothing.
    pub message: String,
    /// `data`, when it has the form that belongs to the method.
    pub data: Option<T>,
}

/// `data` of `cancelOrder`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CancelLists {
    /// `success_data`.
    pub success: Vec<String>,
    /// `error_data`: `order_no` and `err_msg`.
    pub error: Vec<(String, String)>,
}

/// One of `data.order[]` of `queryWithDetail`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundOrder {
    /// `other_out_no`.
    pub number: String,
    /// `status`.
    pub status: i64,
}

impl FoundOrder {
    /// It is this order, or its `-1` document.
    pub fn is_of(&self, asked: &OrderNo) -> bool {
        let (number, asked) = (self.number.trim(), asked.as_str());
        number == asked || number.strip_suffix("-1") == Some(asked)
    }
}

/// What the answer to a cancel call means for one order in it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum Verdict {
    /// The gateway says that it is cancelled.
    Cancelled,
    /// The gateway says no to this order.
    Refused(Reason),
    /// Somebody else is working on it; not executed, and later it may go.
    Busy(String),
    /// It may have been executed: look it up.
    InDoubt(String),
    /// Certainly not executed, and no order's fault: the account or the gateway is the matter.
    NotExecuted,
    /// Not executed because of something in the list. Alone, the order is at fault.
    ListRefused(Reason),
    /// Not executed, and never will be in this form.
    CallRefused(String),
}

/// What the answer tells of the account and its gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum News {
    /// It answers, as it should.
    Answers,
    /// Too many calls; leave it alone for a while.
    Throttled {
        /// For at least this long, if it said so.
        retry_after: Option<Duration>,
    },
    /// The account's settings or grants are wrong; every call would meet the same.
    Misconfigured {
        /// Which of them.
        fault: SettingsFault,
        /// What the gateway said.
        words: String,
    },
    /// Our clock is off by more than two minutes.
    ClockOff,
    /// Something is wrong with it, maybe only once.
    Unwell {
        /// What.
        what: String,
        /// Leave it alone for at least this long, if it said so.
        retry_after: Option<Duration>,
    },
    /// It cannot be reached.
    Unreachable {
        /// Why.
        what: String,
    },
}

/// What must be mended, by whoever has the settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SettingsFault {
    /// `sid`, `key` or `secret`.
    Credentials,
    /// The platform's list of allowed addresses lacks ours.
    AllowList,
    /// The application may not call the method, or not for this warehouse.
    Permission,
    /// The clock is off, and measuring it did not help.
    Clock,
}

impl SettingsFault {
    /// A word for metrics and health.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Credentials => "credentials",
            Self::AllowList => "allow_list",
            Self::Permission => "permission",
            Self::Clock => "clock",
        }
    }

    /// What to do about it.
    pub const fn remedy(self) -> &'static str {
        match self {
            Self::Credentials => {
                "check the account's sid, key and secret, and that api.url is the environment they belong to"
            }
            Self::AllowList => {
                "add this machine's outgoing address to the application's allow list on the open platform"
            }
            Self::Permission => {
                "grant the application wms.stockother.Out.cancelOrder and its warehouses on the open platform"
            }
            Self::Clock => "set this machine's clock; the gateway accepts a difference of 120 s",
        }
    }
}

/// A cancel call, judged.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub struct Judgement {
    /// One verdict for each order asked, in the order asked.
    pub verdicts: Vec<Verdict>,
    /// What it tells of the account.
    pub news: News,
    /// Orders in the answer that nobody asked for.
    pub strangers: usize,
}

/// What the state look-up of one order showed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum LookUp {
    /// Status 80.
    Cancelled,
    /// A state from which it can still be cancelled, in the gateway's words.
    Cancellable(String),
    /// Any other state, in the gateway's words.
    Final(String),
    /// No such order is shown, which is no proof that there is none.
    Absent,
    /// The application may not ask.
    NotPermitted(String),
    /// Nothing was learnt; what happened.
    Failed(String),
}

/// Judges the answer to `cancelOrder` for `asked`.
pub fn judge_cancel(asked: &[OrderNo], end: &CallEnd<CancelLists>) -> Judgement {
    let all = |verdict: Verdict, news: News| Judgement {
        verdicts: vec![verdict; asked.len()],
        news,
        strangers: 0,
    };
    let reply = match end.reply() {
        Ok(reply) => reply,
        Err(NoReply {
            may_be_executed: true,
            what,
            news,
        }) => {
            return all(Verdict::InDoubt(what), news);
        }
        Err(NoReply { news, .. }) => return all(Verdict::NotExecuted, news),
    };
    let words = said(reply.status, &reply.message);
    match Meaning::of(reply.status, &reply.message) {
        Meaning::LookInside => match &reply.data {
            Some(lists) => judge_lists(asked, lists),
            None => all(
                Verdict::InDoubt(
                    "status 0 without the lists of success_data and error_data".into(),
                ),
                News::Answers,
            ),
        },
        Meaning::CallRefused => all(Verdict::CallRefused(words), News::Answers),
        Meaning::Misconfigured(fault) => {
            all(Verdict::NotExecuted, News::Misconfigured { fault, words })
        }
        Meaning::ClockOff => all(Verdict::NotExecuted, News::ClockOff),
        Meaning::Throttled => all(Verdict::NotExecuted, News::Throttled { retry_after: None }),
        Meaning::ListRefused => all(
            Verdict::ListRefused(Reason::new(ReasonCode::ApiRefusedCall, words)),
            News::Answers,
        ),
        Meaning::NotFound => all(
            Verdict::ListRefused(Reason::new(
                ReasonCode::OrderNotFound,
                reply.message.as_str(),
            )),
            News::Answers,
        ),
        Meaning::MayBeExecuted => all(Verdict::InDoubt(words), News::Answers),
    }
}

/// What a status and its message mean for the call as a whole.
enum Meaning {
    LookInside,
    CallRefused,
    Misconfigured(SettingsFault),
    ClockOff,
    Throttled,
    ListRefused,
    NotFound,
    MayBeExecuted,
}

impl Meaning {
    fn of(status: i64, message: &str) -> Self {
        let message = plain(message);
        let starts = |beginnings: &[&str]| beginnings.iter().any(|b| message.starts_with(b));
        match status {
            0 => Self::LookInside,
            1 if starts(&[
                "验证失败",
                "app auth fail",
                "sid is not exists",
                "sid is not found",
            ]) =>
            {
                Self::Misconfigured(SettingsFault::Credentials)
            }
            1 if starts(&[
                "参数错误",
                "invalid argument count",
                "argument type mismatch",
                "for input string",
            ]) =>
            {
                Self::CallRefused
            }
            2 | 3 | 8 => Self::CallRefused,
            6 => Self::Misconfigured(SettingsFault::AllowList),
            7 => Self::ClockOff,
            100 if starts(&["超过每分钟最大调用频率限制", "超过每分钟最大并发次数限制"]) => {
                Self::Throttled
            }
            100 if starts(&["权限不足", "无仓库访问权限"]) => {
                Self::Misconfigured(SettingsFault::Permission)
            }
            100 if starts(&["data truncation", "unparseable"]) || message.contains("不能为空") => {
                Self::ListRefused
            }
            100 if starts(&["单据不存在"]) => Self::NotFound,
            // 4, 5 and 99 by the platform's table, and whatever nobody has described.
            _ => Self::MayBeExecuted,
        }
    }
}

/// What an answer's lists say of the orders that were asked.
#[derive(Debug, Default)]
pub struct Named<'a> {
    succeeded: HashSet<&'a str>,
    failed: HashMap<&'a str, &'a str>,
    /// Rows that name none of them.
    strangers: usize,
}

impl<'a> Named<'a> {
    /// Reads them.
    pub fn of(asked: &[OrderNo], lists: &'a CancelLists) -> Self {
        let asked_numbers: HashSet<&str> = asked.iter().map(OrderNo::as_str).collect();
        let owner = |answered: &'a str| -> Option<&'a str> {
            if asked_numbers.contains(answered) {
                return Some(answered);
            }
            // From V1.5.7.0 on a number may be answered for by its `-1` document (inferred).
            answered
                .strip_suffix("-1")
                .filter(|original| asked_numbers.contains(original))
        };
        let mut named = Self::default();
        for number in &lists.success {
            match owner(number.trim()) {
                Some(order) => drop(named.succeeded.insert(order)),
                None => named.strangers += 1,
            }
        }
        for (number, err_msg) in &lists.error {
            match owner(number.trim()) {
                Some(order) => drop(named.failed.entry(order).or_insert(err_msg)),
                None => named.strangers += 1,
            }
        }
        named
    }

    /// Whether an order is named as cancelled, and what is said where it is named as failed.
    pub fn order(&self, order: &OrderNo) -> (bool, Option<&'a str>) {
        let order = order.as_str();
        (
            self.succeeded.contains(order),
            self.failed.get(order).copied(),
        )
    }
}

fn judge_lists(asked: &[OrderNo], lists: &CancelLists) -> Judgement {
    let named = Named::of(asked, lists);
    let verdicts = asked
        .iter()
        .map(|order| match named.order(order) {
            (true, None) => Verdict::Cancelled,
            (false, Some(err_msg)) => judge_err_msg(err_msg),
            // The official sample has one number in both lists; nobody documents why.
            (true, Some(err_msg)) => {
                Verdict::InDoubt(format!("named as cancelled and as failed ({err_msg})"))
            }
            (false, None) => Verdict::InDoubt("not named in the answer".into()),
        })
        .collect();
    Judgement {
        verdicts,
        news: News::Answers,
        strangers: named.strangers,
    }
}

/// One order's `err_msg`.
fn judge_err_msg(err_msg: &str) -> Verdict {
    let text = plain(err_msg);
    let code = if text.contains("请稍后重试") || text.contains("稍后再试") {
        return Verdict::Busy(err_msg.to_owned());
    } else if text.starts_with("单据状态不是") {
        ReasonCode::OrderState
    } else if text.starts_with("单据不存在") {
        ReasonCode::OrderNotFound
    } else {
        ReasonCode::OrderRefused
    };
    Verdict::Refused(Reason::new(code, err_msg))
}

/// Judges the answer to `queryWithDetail` for `asked`.
pub fn judge_look_up(asked: &OrderNo, end: &CallEnd<Vec<FoundOrder>>) -> (LookUp, News) {
    let reply = match end.reply() {
        Ok(reply) => reply,
        Err(NoReply { what, news, .. }) => return (LookUp::Failed(what), news),
    };
    let words = said(reply.status, &reply.message);
    match Meaning::of(reply.status, &reply.message) {
        Meaning::LookInside => match &reply.data {
            Some(found) => (judge_found(asked, found), News::Answers),
            None => (
                LookUp::Failed("status 0 without data.order".into()),
                News::Answers,
            ),
        },
        Meaning::NotFound => (LookUp::Absent, News::Answers),
        // What the account may not ask it may still be allowed to do.
        Meaning::Misconfigured(SettingsFault::Permission) => {
            (LookUp::NotPermitted(words), News::Answers)
        }
        Meaning::Misconfigured(fault) => (
            LookUp::Failed(words.clone()),
            News::Misconfigured { fault, words },
        ),
        Meaning::ClockOff => (LookUp::Failed(words), News::ClockOff),
        Meaning::Throttled => (LookUp::Failed(words), News::Throttled { retry_after: None }),
        Meaning::CallRefused | Meaning::ListRefused | Meaning::MayBeExecuted => {
            (LookUp::Failed(words), News::Answers)
        }
    }
}

/// Judges the answer to `system.Core.now`, or to any call that is made only to see who answers.
pub fn judge_probe<T>(end: &CallEnd<T>) -> News {
    let reply = match end.reply() {
        Ok(reply) => reply,
        Err(NoReply { news, .. }) => return news,
    };
    match Meaning::of(reply.status, &reply.message) {
        // Whoever may not ask for the time may still be allowed to cancel.
        Meaning::Misconfigured(SettingsFault::Permission) => News::Answers,
        Meaning::Misconfigured(fault) => News::Misconfigured {
            fault,
            words: said(reply.status, &reply.message),
        },
        Meaning::Throttled => News::Throttled { retry_after: None },
        Meaning::LookInside
        | Meaning::CallRefused
        | Meaning::ClockOff
        | Meaning::ListRefused
        | Meaning::NotFound
        | Meaning::MayBeExecuted => News::Answers,
    }
}

fn judge_found(asked: &OrderNo, found: &[FoundOrder]) -> LookUp {
    let number = asked.as_str();
    let itself = found.iter().find(|o| o.number.trim() == number);
    let dash_one = found
        .iter()
        .find(|o| o.number.trim().strip_suffix("-1") == Some(number));
    let cancelled = |o: &&FoundOrder| o.status == CANCELLED;
    if itself.is_some_and(|o| o.status == CANCELLED) {
        return LookUp::Cancelled;
    }
    if let Some(order) = itself.filter(|o| cancellable(number, o.status)) {
        return LookUp::Cancellable(state_words(order.status));
    }
    if let Some(order) = dash_one.filter(|o| cancellable(&o.number, o.status)) {
        return LookUp::Cancellable(state_words(order.status));
    }
    // Giving the original number cancels its `-1` document (inferred), so that one's state counts.
    if dash_one.as_ref().is_some_and(cancelled) {
        return LookUp::Cancelled;
    }
    match itself.or(dash_one) {
        Some(order) => LookUp::Final(state_words(order.status)),
        None => LookUp::Absent,
    }
}

/// Status 80, 已取消.
const CANCELLED: i64 = 80;

/// 编辑中, 待审核 and 已审核 can be cancelled; 已推送wms only for a `-1` document.
fn cancellable(number: &str, status: i64) -> bool {
    match status {
        1 | 10 | 20 => true,
        40 => number.trim().ends_with("-1"),
        _ => false,
    }
}

/// A status in the gateway's words, e.g. `70 已完成`.
fn state_words(status: i64) -> String {
    let words = match status {
        1 => "编辑中",
        10 => "待审核",
        20 => "已审核",
        40 => "已推送wms",
        60 => "部分出库",
        65 => "待结算",
        70 => "已完成",
        CANCELLED => "已取消",
        _ => return format!("{status}"),
    };
    format!("{status} {words}")
}

/// A status and its message for people.
fn said(status: i64, message: &str) -> String {
    if message.trim().is_empty() {
        format!("status {status} without a message")
    } else {
        format!("status {status}: {}", message.trim())
    }
}

/// A message as it is compared: trimmed, lower-case, with ASCII commas.
fn plain(message: &str) -> String {
    message.trim().replace('，', ",").to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn orders(numbers: &[&str]) -> Vec<OrderNo> {
        numbers.iter().map(|n| OrderNo::new(n).unwrap()).collect()
    }

    fn answered<T>(status: i64, message: &str, data: Option<T>) -> CallEnd<T> {
        CallEnd::Answered(Reply {
            status,
            message: message.into(),
            data,
        })
    }

    fn lists(success: &[&str], error: &[(&str, &str)]) -> CallEnd<CancelLists> {
        let data = CancelLists {
            success: success.iter().map(|s| (*s).to_owned()).collect(),
            error: error
                .iter()
                .map(|(n, m)| ((*n).to_owned(), (*m).to_owned()))
                .collect(),
        };
        answered(0, "", Some(data))
    }

    fn check_lists(
        asked: &[&str],
        end: &CallEnd<CancelLists>,
        expected: &[&str],
        strangers: usize,
    ) {
        let judged = judge_cancel(&orders(asked), end);
        let words: Vec<&str> = judged.verdicts.iter().map(word).collect();
        assert_eq!(words, expected, "{end:?}");
        assert_eq!(judged.strangers, strangers, "{end:?}");
        assert_eq!(judged.news, News::Answers);
    }

    fn word(verdict: &Verdict) -> &'static str {
        match verdict {
            Verdict::Cancelled => "cancelled",
            Verdict::Refused(reason) => reason.code.as_str(),
            Verdict::Busy(_) => "busy",
            Verdict::InDoubt(_) => "doubt",
            Verdict::NotExecuted => "not executed",
            Verdict::ListRefused(reason) if reason.code == ReasonCode::OrderNotFound => {
                "list: not found"
            }
            Verdict::ListRefused(_) => "list refused",
            Verdict::CallRefused(_) => "call refused",
        }
    }

    const STATE: &str = "单据状态不是编辑中、待审核、已审核，不允许取消";

    #[test]
    fn each_order_is_judged_by_the_lists() {
        check_lists(&["A", "B"], &lists(&["B", "A"], &[]), &["cancelled"; 2], 0);
        check_lists(
            &["A", "B", "C", "D"],
            &lists(
                &[],
                &[
                    ("A", STATE),
                    ("B", "单据不存在"),
                    ("C", "仓库已停用"),
                    ("D", "单据被占用，请稍后重试"),
                ],
            ),
            &["order_state", "order_not_found", "order_refused", "busy"],
            0,
        );
        check_lists(
            &["A"],
            &lists(&[], &[("A", "系统繁忙,稍后再试")]),
            &["busy"],
            0,
        );
        // The official sample: one order in both lists, and one that is in the second alone.
        check_lists(
            &["QC202409200002", "QC202409200001"],
            &lists(
                &["QC202409200002"],
                &[("QC202409200002", STATE), ("QC202409200001", STATE)],
            ),
            &["doubt", "order_state"],
            0,
        );
        check_lists(&["A", "B"], &lists(&["A"], &[]), &["cancelled", "doubt"], 0);
        check_lists(
            &["A"],
            &lists(&["A", "X"], &[("Y", STATE)]),
            &["cancelled"],
            2,
        );
    }

    #[test]
    fn a_dash_one_document_answers_for_the_original() {
        check_lists(&["A"], &lists(&["A-1"], &[]), &["cancelled"], 0);
        check_lists(&["A"], &lists(&[], &[("A-1", STATE)]), &["order_state"], 0);
        // Asked for itself, it answers for itself alone.
        check_lists(
            &["A", "A-1"],
            &lists(&["A-1"], &[]),
            &["doubt", "cancelled"],
            0,
        );
        check_lists(&["A"], &lists(&["A-1"], &[("A", STATE)]), &["doubt"], 0);
        check_lists(&["A-1"], &lists(&["A"], &[]), &["doubt"], 1);
    }

    #[test]
    fn each_status_has_its_meaning() {
        let check = |status: i64, message: &str, verdict: &str, news: &str| {
            let judged = judge_cancel(&orders(&["A", "B"]), &answered(status, message, None));
            let said: Vec<&str> = judged.verdicts.iter().map(word).collect();
            assert_eq!(said, [verdict; 2], "{status} {message}");
            let told = match judged.news {
                News::Answers => "answers".to_owned(),
                News::Throttled { .. } => "throttled".into(),
                News::Misconfigured { fault, .. } => fault.as_str().into(),
                News::ClockOff => "clock off".into(),
                News::Unwell { .. } => "unwell".into(),
                News::Unreachable { .. } => "unreachable".into(),
            };
            assert_eq!(told, news, "{status} {message}");
        };
        check(0, "", "doubt", "answers");
        check(1, "参数错误", "call refused", "answers");
        check(1, "invalid argument count", "call refused", "answers");
        check(1, "argument type mismatch", "call refused", "answers");
        check(1, "For input string: \"abc\"", "call refused", "answers");
        check(1, "验证失败，签名错误", "not executed", "credentials");
        check(1, "App auth fail", "not executed", "credentials");
        check(1, "sid is not exists", "not executed", "credentials");
        check(1, "sid is not found", "not executed", "credentials");
        check(1, "something new", "doubt", "answers");
        check(2, "unknown field", "call refused", "answers");
        check(3, "需要动态口令", "call refused", "answers");
        check(8, "版本错误", "call refused", "answers");
        check(6, "ip限制", "not executed", "allow_list");
        check(7, "时间戳错误", "not executed", "clock off");
        check(4, "数据库错误", "doubt", "answers");
        check(5, "其他错误", "doubt", "answers");
        check(99, "其他错误", "doubt", "answers");
        check(
            100,
            "超过每分钟最大调用频率限制，请稍后",
            "not executed",
            "throttled",
        );
        check(
            100,
            "超过每分钟最大并发次数限制,2",
            "not executed",
            "throttled",
        );
        check(100, "invalid http status 502", "doubt", "answers");
        check(100, "未知错误", "doubt", "answers");
        check(100, "SQL异常: deadlock", "doubt", "answers");
        check(100, "取消失败", "doubt", "answers");
        check(100, "权限不足", "not executed", "permission");
        check(100, "无仓库访问权限", "not executed", "permission");
        check(100, "单号不能为空", "list refused", "answers");
        check(100, "Data truncation: too long", "list refused", "answers");
        check(100, "Unparseable date", "list refused", "answers");
        check(100, "单据不存在", "list: not found", "answers");
        check(100, "", "doubt", "answers");
        check(42, "anything else", "doubt", "answers");
        check(-1, "anything else", "doubt", "answers");
    }

    #[test]
    fn what_is_no_answer_is_judged_by_whether_it_was_sent() {
        let asked = orders(&["A"]);
        let what = || "it".to_owned();
        let retry_after = Some(Duration::from_secs(7));
        let check = |end: CallEnd<CancelLists>, verdict: Verdict, news: News| {
            let judged = judge_cancel(&asked, &end);
            assert_eq!((judged.verdicts, judged.news), (vec![verdict], news));
        };
        check(
            CallEnd::Throttled { retry_after },
            Verdict::NotExecuted,
            News::Throttled { retry_after },
        );
        check(
            CallEnd::Garbled {
                what: what(),
                retry_after,
            },
            Verdict::InDoubt(what()),
            News::Unwell {
                what: what(),
                retry_after,
            },
        );
        check(
            CallEnd::Lost { what: what() },
            Verdict::InDoubt(what()),
            News::Unwell {
                what: what(),
                retry_after: None,
            },
        );
        check(
            CallEnd::NotReached { what: what() },
            Verdict::NotExecuted,
            News::Unreachable { what: what() },
        );
    }

    #[test]
    fn a_look_up_tells_the_state() {
        let check = |found: &[(&str, i64)], expected: LookUp| {
            let found = found
                .iter()
                .map(|(number, status)| FoundOrder {
                    number: (*number).into(),
                    status: *status,
                })
                .collect();
            let (seen, news) = judge_look_up(&orders(&["A"])[0], &answered(0, "", Some(found)));
            assert_eq!((seen, news), (expected, News::Answers));
        };
        check(&[("A", 80)], LookUp::Cancelled);
        check(&[("A", 1)], LookUp::Cancellable("1 编辑中".into()));
        check(&[("A", 10)], LookUp::Cancellable("10 待审核".into()));
        check(&[("A", 20)], LookUp::Cancellable("20 已审核".into()));
        check(&[("A", 40)], LookUp::Final("40 已推送wms".into()));
        check(&[("A-1", 40)], LookUp::Cancellable("40 已推送wms".into()));
        check(&[("A", 60)], LookUp::Final("60 部分出库".into()));
        check(&[("A", 65)], LookUp::Final("65 待结算".into()));
        check(&[("A", 70)], LookUp::Final("70 已完成".into()));
        check(&[("A", 55)], LookUp::Final("55".into()));
        check(&[("A", 40), ("A-1", 80)], LookUp::Cancelled);
        check(&[("A", 80), ("A-1", 40)], LookUp::Cancelled);
        check(
            &[("A", 70), ("A-1", 20)],
            LookUp::Cancellable("20 已审核".into()),
        );
        check(&[("B", 80)], LookUp::Absent);
        check(&[], LookUp::Absent);
    }

    #[test]
    fn a_probe_tells_of_the_account_and_not_of_its_own_grant() {
        let probe = |status, message: &str| judge_probe(&answered::<()>(status, message, None));
        assert_eq!(probe(0, ""), News::Answers);
        assert_eq!(probe(100, "权限不足"), News::Answers);
        assert!(matches!(
            probe(6, "ip限制"),
            News::Misconfigured {
                fault: SettingsFault::AllowList,
                ..
            }
        ));
    }

    #[test]
    fn a_look_up_that_fails_says_why() {
        let asked = &orders(&["A"])[0];
        let look = |status, message: &str| judge_look_up(asked, &answered(status, message, None));
        assert_eq!(look(100, "单据不存在"), (LookUp::Absent, News::Answers));
        assert!(matches!(
            look(100, "权限不足"),
            (LookUp::NotPermitted(_), News::Answers)
        ));
        assert!(matches!(
            look(1, "验证失败"),
            (
                LookUp::Failed(_),
                News::Misconfigured {
                    fault: SettingsFault::Credentials,
                    ..
                }
            )
        ));
        assert!(matches!(
            look(7, "时间戳错误"),
            (LookUp::Failed(_), News::ClockOff)
        ));
        assert!(matches!(
            look(100, "超过每分钟最大调用频率限制"),
            (LookUp::Failed(_), News::Throttled { .. })
        ));
        assert!(matches!(look(0, ""), (LookUp::Failed(_), News::Answers)));
        assert!(matches!(
            look(99, "其他错误"),
            (LookUp::Failed(_), News::Answers)
        ));
    }
}
