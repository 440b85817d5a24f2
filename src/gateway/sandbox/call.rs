//! One call: checked as the real gateway does, and executed. What is decided here is a value;
//! [`serve`](super::serve) makes it travel.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::http::HeaderValue;
use serde_json::{Value, json};

use super::book::{Book, Lists, Luck};
use super::fault::{CallFault, Fault};
use super::{Sandbox, State};
use crate::gateway::sign::{self, EPOCH_OFFSET_SECONDS};
use crate::rules::order::ORDER_NO_MAX_CHARS;

/// The longest body that is taken, in bytes.
pub const BODY_MAX_BYTES: usize = 2 * 1024 * 1024;
/// How far a timestamp may be off, in seconds (official page).
pub const CLOCK_TOLERANCE_SECONDS: i64 = 120;

/// Order numbers that are printed of one call, and the characters of each word that are.
const PRINTED_ORDERS: usize = 4;
pub const PRINTED_CHARS: usize = 24;
/// Characters of one printed line.
const LINE_CHARS: usize = 240;

/// How many calls came by method, refused ones included.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Calls {
    /// `wms.stockother.Out.cancelOrder`
    pub cancel: u64,
    /// `wms.stockother.OutQuery.queryWithDetail`
    pub query: u64,
    /// `system.Core.now`
    pub now: u64,
    /// Any other method, or none.
    pub other: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Method {
    Cancel,
    Query,
    Now,
}

impl Method {
    fn parse(name: &str) -> Option<Self> {
        match name {
            sign::CANCEL => Some(Self::Cancel),
            sign::QUERY => Some(Self::Query),
            sign::NOW => Some(Self::Now),
            _ => None,
        }
    }

    const fn is_paged(self) -> bool {
        match self {
            Self::Query => true,
            Self::Cancel | Self::Now => false,
        }
    }

    /// The last word of its name, for the printed line.
    const fn short(self) -> &'static str {
        match self {
            Self::Cancel => "cancelOrder",
            Self::Query => "queryWithDetail",
            Self::Now => "now",
        }
    }
}

/// How often one account calls.
#[derive(Debug, Default)]
pub struct Gate {
    minute: VecDeque<Instant>,
    in_flight: u32,
}

impl Gate {
    /// Whether one more call fits the sliding minute; a call that does not is not counted.
    fn admit(&mut self, now: Instant, calls_per_minute: u32) -> bool {
        if calls_per_minute == 0 {
            return true;
        }
        const MINUTE: Duration = Duration::from_secs(60);
        while let Some(first) = self.minute.front()
            && now.saturating_duration_since(*first) >= MINUTE
        {
            self.minute.pop_front();
        }
        let fits = self.minute.len() < usize::try_from(calls_per_minute).unwrap_or(usize::MAX);
        if fits {
            self.minute.push_back(now);
        }
        fits
    }
}

/// An answer in the gateway's form.
#[derive(Debug, Clone, PartialEq)]
pub enum Reply {
    Done(Value),
    Refused { status: u8, message: String },
}

impl Reply {
    fn refused(status: u8, message: impl Into<String>) -> Self {
        Self::Refused {
            status,
            message: message.into(),
        }
    }

    /// Status 1 is how the gateway answers a request that is not put right.
    fn malformed(message: impl Into<String>) -> Self {
        Self::refused(1, message)
    }

    /// Status 100 is how it answers whatever else it does not like.
    fn unwilling(message: impl Into<String>) -> Self {
        Self::refused(100, message)
    }

    fn too_often() -> Self {
        Self::unwilling("超过每分钟最大调用频率限制，请5到10分钟后再调用")
    }

    /// In the order of the official sample.
    pub fn json(&self) -> String {
        match self {
            Self::Done(data) => format!(r#"{{"status":0,"data":{data}}}"#),
            Self::Refused { status, message } => {
                let message = Value::from(message.as_str());
                format!(r#"{{"status":{status},"message":{message}}}"#)
            }
        }
    }
}

/// A call that was decided on. Dropped when it is answered or its caller has gone, and tells then
/// what became of it, so that each call is told once.
pub struct Handled {
    sandbox: Arc<Sandbox>,
    /// The account whose calls in flight this is one of.
    account: Option<usize>,
    /// What the gateway says.
    pub reply: Reply,
    /// What becomes of that on its way.
    pub fault: Option<CallFault>,
    since: Instant,
    line: String,
    /// Whether the caller was still there.
    pub answered: bool,
}

impl Drop for Handled {
    fn drop(&mut self) {
        if let Some(account) = self.account {
            let in_flight = &mut self.sandbox.state().gates[account].in_flight;
            *in_flight = in_flight.saturating_sub(1);
        }
        let mut line = shorten(&self.line, LINE_CHARS);
        if !self.answered {
            line.push_str(", the caller did not wait");
        }
        let _ = write!(line, " ({} ms)", self.since.elapsed().as_millis());
        self.sandbox.tell(&line);
    }
}

/// A call on its way through the checks.
pub struct Arriving<'a> {
    sandbox: &'a Arc<Sandbox>,
    query: Vec<(String, String)>,
    content_type: Option<&'a HeaderValue>,
    body: &'a [u8],
    since: Instant,
    /// The account whose calls in flight this call has become one of.
    account: Option<usize>,
    /// What the call is about, for people.
    subject: String,
}

/// What was decided about a call, with a word for people.
struct Decision {
    reply: Reply,
    fault: Option<CallFault>,
    outcome: String,
}

impl From<Reply> for Decision {
    fn from(reply: Reply) -> Self {
        let outcome = match &reply {
            Reply::Done(_) => "ok".to_owned(),
            Reply::Refused { status, message } => format!("status {status} {message}"),
        };
        Self {
            reply,
            fault: None,
            outcome,
        }
    }
}

impl From<Lists> for Decision {
    fn from(lists: Lists) -> Self {
        let outcome = format!(
            "{} cancelled, {} refused",
            lists.cancelled,
            lists.error.len()
        );
        let error_data: Vec<Value> = lists
            .error
            .iter()
            .map(|(number, message)| json!({"order_no": number, "err_msg": message}))
            .collect();
        let data = json!({"success_data": lists.success, "error_data": error_data});
        Self {
            outcome,
            ..Reply::Done(data).into()
        }
    }
}

/// Executes a call, unless it is struck by a fault that does not.
fn strike(fault: Option<CallFault>, execute: impl FnOnce() -> Decision) -> Decision {
    let decision = match fault {
        Some(CallFault::Frequency) => Reply::too_often().into(),
        // None of these shows its caller a reply.
        Some(fault) if !fault.executes() => Decision {
            outcome: "not executed".to_owned(),
            ..Reply::Done(Value::Null).into()
        },
        Some(_) | None => execute(),
    };
    Decision { fault, ..decision }
}

impl<'a> Arriving<'a> {
    pub fn new(
        sandbox: &'a Arc<Sandbox>,
        query: Vec<(String, String)>,
        content_type: Option<&'a HeaderValue>,
        body: &'a [u8],
    ) -> Self {
        Self {
            sandbox,
            query,
            content_type,
            body,
            since: Instant::now(),
            account: None,
            subject: String::new(),
        }
    }

    /// Checks and executes it.
    pub fn handle(mut self) -> Handled {
        let name = self.param("method").unwrap_or_default();
        let method = Method::parse(name);
        let shown = match method {
            Some(method) => method.short().to_owned(),
            None => shorten(name, 2 * PRINTED_CHARS),
        };
        let sandbox = self.sandbox;
        let decision = {
            let state = &mut *sandbox.state();
            let counter = match method {
                Some(Method::Cancel) => &mut state.calls.cancel,
                Some(Method::Query) => &mut state.calls.query,
                Some(Method::Now) => &mut state.calls.now,
                None => &mut state.calls.other,
            };
            *counter += 1;
            self.decide(method, state)
        };
        let mut line = format!("{shown}{}: {}", self.subject, decision.outcome);
        if let Some(fault) = decision.fault {
            let _ = write!(line, " [{}]", Fault::Call(fault).as_str());
        }
        Handled {
            sandbox: Arc::clone(sandbox),
            account: self.account,
            reply: decision.reply,
            fault: decision.fault,
            since: self.since,
            line,
            answered: false,
        }
    }

    fn decide(&mut self, method: Option<Method>, state: &mut State) -> Decision {
        let admitted = self
            .check_request(method)
            .and_then(|(method, account)| self.check_limits(account, state).map(|()| method));
        let method = match admitted {
            Ok(method) => method,
            Err(reply) => return reply.into(),
        };
        match method {
            Method::Cancel => self.cancel(state),
            Method::Query => self.with_chance(state, |call, state| {
                call.query(state).unwrap_or_else(Decision::from)
            }),
            Method::Now => self.with_chance(state, |call, _| call.now().into()),
        }
    }

    fn param(&self, name: &str) -> Option<&str> {
        let found = self.query.iter().find(|(n, _)| n == name);
        found.map(|(_, value)| &**value).filter(|v| !v.is_empty())
    }

    /// Everything about a request that can be told without knowing what is in it.
    fn check_request(&self, method: Option<Method>) -> Result<(Method, usize), Reply> {
        let need = |name: &str| {
            self.param(name)
                .ok_or_else(|| Reply::malformed(format!("参数错误：缺少{name}")))
        };
        need("method")?;
        let method = method.ok_or_else(|| Reply::refused(2, "unknown field: method"))?;
        let (sid, key, salt) = (need("sid")?, need("key")?, need("salt")?);
        let (timestamp, v, sign) = (need("timestamp")?, need("v")?, need("sign")?);
        const PAGING: [&str; 3] = ["page_size", "page_no", "calc_total"];
        let mut signed = vec!["sid", "key", "salt", "method", "timestamp", "v"];
        if method.is_paged() {
            for name in PAGING {
                need(name)?;
            }
            signed.extend(PAGING);
        }

        let accounts = &self.sandbox.accounts;
        if !accounts.iter().any(|account| account.sid == sid) {
            return Err(Reply::malformed("sid is not exists"));
        }
        let account = accounts
            .iter()
            .position(|a| a.sid == sid && a.key == key && a.secret.salt() == salt)
            .ok_or_else(|| Reply::malformed("app auth fail"))?;
        let pairs = signed
            .into_iter()
            .filter_map(|name| Some((name, self.param(name)?)));
        if sign::sign(&accounts[account].secret, pairs, self.body) != sign {
            return Err(Reply::malformed("验证失败"));
        }
        let timestamp = i64::from(number(timestamp)?);
        if (timestamp - self.clock()).abs() > CLOCK_TOLERANCE_SECONDS {
            return Err(Reply::refused(7, "时间戳错误"));
        }
        if v != sign::VERSION {
            return Err(Reply::refused(8, "版本错误"));
        }
        let json = self.content_type.is_some_and(|value| {
            let value = value.to_str().unwrap_or_default();
            value
                .trim()
                .to_ascii_lowercase()
                .starts_with("application/json")
        });
        if !json {
            return Err(Reply::malformed(
                "参数错误：Content-Type不是application/json",
            ));
        }
        if self.body.len() > BODY_MAX_BYTES {
            return Err(Reply::malformed("参数错误：请求超过2MB"));
        }
        Ok((method, account))
    }

    /// Whether the account may call now; from here on the call counts.
    fn check_limits(&mut self, account: usize, state: &mut State) -> Result<(), Reply> {
        let Sandbox {
            concurrency,
            calls_per_minute,
            ..
        } = **self.sandbox;
        let gate = &mut state.gates[account];
        if concurrency > 0 && gate.in_flight >= concurrency {
            return Err(Reply::unwilling("超过每分钟最大并发次数限制，请稍后再调用"));
        }
        if !gate.admit(self.since, calls_per_minute) {
            return Err(Reply::too_often());
        }
        gate.in_flight = gate.in_flight.saturating_add(1);
        self.account = Some(account);
        Ok(())
    }

    /// The seller's orders, once the account is known.
    fn book<'s>(&self, state: &'s mut State) -> (&'s mut Book, &'s mut Luck) {
        let sid = self.account.map_or("", |a| &self.sandbox.accounts[a].sid);
        let capacity = self.sandbox.remembered_orders;
        let book = state
            .books
            .entry(sid.to_owned())
            .or_insert_with(|| Book::new(capacity));
        (book, &mut state.luck)
    }

    /// A method that changes nothing goes wrong by chance only.
    fn with_chance(
        &mut self,
        state: &mut State,
        execute: impl FnOnce(&mut Self, &mut State) -> Decision,
    ) -> Decision {
        let luck = &mut state.luck;
        let fault = luck.rates.call(&mut luck.rng);
        strike(fault, || execute(self, state))
    }

    fn cancel(&mut self, state: &mut State) -> Decision {
        let numbers = match self.cancel_arguments() {
            Ok(numbers) => numbers,
            Err(reply) => return reply.into(),
        };
        let _ = write!(self.subject, " {}", numbers.len());
        for number in numbers.iter().take(PRINTED_ORDERS) {
            let _ = write!(self.subject, " {}", shorten(number, PRINTED_CHARS));
        }
        if numbers.len() > PRINTED_ORDERS {
            self.subject.push_str(" …");
        }

        let (book, luck) = self.book(state);
        let refusal = check_contents(&numbers).err().or_else(|| {
            book.name(&numbers, luck);
            let bad = book.any_bad(&numbers);
            bad.then(|| Reply::unwilling("仓库编号不能为空"))
        });
        // A fault that an order asks for waits until the order gets through, so that it is seen.
        let asked = match refusal {
            Some(_) => None,
            None => book.call_fault(&numbers, luck),
        };
        let fault = asked.or_else(|| luck.rates.call(&mut luck.rng));
        strike(fault, || match refusal {
            Some(refusal) => refusal.into(),
            None => book.cancel(&numbers, luck).into(),
        })
    }

    fn query(&mut self, state: &mut State) -> Result<Decision, Reply> {
        let page_size = number(self.param("page_size").unwrap_or_default())?;
        let page_no = number(self.param("page_no").unwrap_or_default())?;
        let calc_total = number(self.param("calc_total").unwrap_or_default())? != 0;
        let (Ok(page_size @ 1..), Ok(page_no)) =
            (usize::try_from(page_size), usize::try_from(page_no))
        else {
            return Err(Reply::malformed(
                "参数错误：page_size至少为1，page_no至少为0",
            ));
        };
        let [Value::Object(filter)] = &arguments(self.body)?[..] else {
            return Err(Reply::malformed("argument type mismatch"));
        };
        let wanted = match filter.get("other_out_no") {
            // Without a number the real method goes by time, which nothing here has.
            None | Some(Value::Null) => return Err(Reply::unwilling("开始时间不能为空")),
            Some(Value::String(wanted)) if wanted.is_empty() => {
                return Err(Reply::unwilling("开始时间不能为空"));
            }
            Some(Value::String(wanted)) => wanted,
            Some(Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_)) => {
                return Err(Reply::malformed("argument type mismatch"));
            }
        };
        let _ = write!(self.subject, " {}", shorten(wanted, PRINTED_CHARS));
        if !self.sandbox.query_permission {
            return Err(Reply::unwilling("权限不足"));
        }
        let found = self.book(state).0.look_up(wanted);
        let page: Vec<Value> = found
            .iter()
            .skip(page_no.saturating_mul(page_size))
            .take(page_size)
            .map(|(number, state)| json!({"other_out_no": number, "status": state}))
            .collect();
        let mut data = json!({"order": page});
        if calc_total {
            data["total_count"] = found.len().into();
        }
        let states: Vec<String> = found.iter().map(|(_, s)| s.to_string()).collect();
        let outcome = match &states[..] {
            [] => "no such order".to_owned(),
            some => format!("state {}", some.join(" and ")),
        };
        Ok(Decision {
            outcome,
            ..Reply::Done(data).into()
        })
    }

    fn now(&self) -> Reply {
        match arguments(self.body) {
            Err(reply) => reply,
            Ok(arguments) if !arguments.is_empty() => Reply::malformed("invalid argument count"),
            Ok(_) => Reply::Done(beijing(self.clock() + EPOCH_OFFSET_SECONDS).into()),
        }
    }

    /// The list in a cancel, its shape checked and nothing else.
    fn cancel_arguments(&self) -> Result<Vec<String>, Reply> {
        let mut arguments = arguments(self.body)?;
        let mismatch = || Reply::malformed("argument type mismatch");
        let (Some(list), true) = (arguments.pop(), arguments.is_empty()) else {
            return Err(Reply::malformed("invalid argument count"));
        };
        let numbers: Vec<String> = serde_json::from_value(list).map_err(|_| mismatch())?;
        let most = self.sandbox.max_orders_per_call;
        if numbers.len() > most {
            return Err(Reply::malformed(format!("参数错误：一次最多{most}个单号")));
        }
        Ok(numbers)
    }

    /// The sandbox's clock as the gateway counts.
    fn clock(&self) -> i64 {
        let unix = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| {
                i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
            });
        sign::timestamp(unix.saturating_add(self.sandbox.clock_offset_seconds))
    }
}

/// The body's positional arguments.
fn arguments(body: &[u8]) -> Result<Vec<Value>, Reply> {
    serde_json::from_slice(body).map_err(|_| Reply::malformed("参数错误：请求不是JSON数组"))
}

/// A number in the query, in the words of the platform's Java when it is none.
fn number(text: &str) -> Result<i32, Reply> {
    text.parse()
        .map_err(|_| Reply::malformed(format!("For input string: \"{text}\"")))
}

/// What a cancel names may be such that the platform refuses the whole call for it.
fn check_contents(numbers: &[String]) -> Result<(), Reply> {
    if numbers.is_empty() {
        return Err(Reply::unwilling("order_no_list不能为空"));
    }
    if numbers.iter().any(|number| number.trim().is_empty()) {
        return Err(Reply::unwilling("order_no不能为空"));
    }
    if numbers
        .iter()
        .any(|n| n.chars().count() > ORDER_NO_MAX_CHARS)
    {
        return Err(Reply::unwilling(
            "Data truncation: Data too long for column 'order_no' at row 1",
        ));
    }
    Ok(())
}

/// `yyyy-MM-dd HH:mm:ss` in Beijing, which has had no summer time since 1991.
fn beijing(unix_seconds: i64) -> String {
    let time = jiff::Timestamp::from_second(unix_seconds).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    jiff::tz::offset(8)
        .to_datetime(time)
        .strftime("%Y-%m-%d %H:%M:%S")
        .to_string()
}

/// At most so many characters, none of which moves a terminal's cursor.
pub fn shorten(text: &str, chars: usize) -> String {
    let mut short: String = text
        .chars()
        .take(chars)
        .map(|c| if c.is_control() { '·' } else { c })
        .collect();
    if text.chars().nth(chars).is_some() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minute_slides() {
        let mut gate = Gate::default();
        let start = Instant::now();
        let admit = |gate: &mut Gate, second| gate.admit(start + Duration::from_secs(second), 2);
        assert!(admit(&mut gate, 0));
        assert!(admit(&mut gate, 30));
        assert!(!admit(&mut gate, 59));
        // The first has left the minute; the one that was refused never was in it.
        assert!(admit(&mut gate, 60));
        assert!(!admit(&mut gate, 89));
        assert!(admit(&mut gate, 90));
        assert!((0..1_000).all(|_| gate.admit(start, 0)));
    }

    #[test]
    fn beijing_is_eight_hours_ahead() {
        assert_eq!(beijing(EPOCH_OFFSET_SECONDS), "2012-01-01 00:00:00");
        assert_eq!(beijing(1_795_437_296), "2026-11-23 20:34:56");
    }

    #[test]
    fn what_is_printed_is_short_and_moves_no_cursor() {
        assert_eq!(shorten("QC1", 3), "QC1");
        assert_eq!(shorten("其他出库", 2), "其他…");
        assert_eq!(shorten("a\x1b[2J\nb", 24), "a·[2J·b");
    }
}
