//! One account's calls to the gateway: exactly one attempt each.
//!
//! The platform does not protect from a repeat, so what this module must never do is to send again
//! on its own, or to say "not sent" of something that was. Whether and when to try again is the
//! rules' matter. Hence: no retries, no redirects, no proxy from the environment; a failure counts
//! as not sent only when no connection came about; everything later is in doubt.
//!
//! One thing remains inside the HTTP stack: a request that was handed to a kept connection which
//! turned out closed *before the first byte was written* goes to a fresh one. Nobody has seen it
//! then. A kept connection that breaks after the first byte is [`CallEnd::Lost`]; idle connections
//! are given up early so that this stays rare.
//!
//! A signed URL is as good as a credential until its timestamp is too old. No text that leaves this
//! module holds one: not the URL that the HTTP stack puts into its errors, not an error page or a
//! message that repeats the request.

use std::error::Error;
use std::fmt;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use jiff::fmt::rfc2822;
use reqwest::Url;
use reqwest::header::{CONTENT_TYPE, DATE, HeaderMap, HeaderName, RETRY_AFTER};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::sign::{self, AppSecret, Paging, Signed};
use super::wire::{self, ServerTime};
use crate::rules::judge::{self, CallEnd, CancelLists, FoundOrder, News, Reply, SettingsFault};
use crate::rules::order::OrderNo;

/// Longest answer that is read, in bytes. An answer to a full list has some KiB, a document with
/// thousands of goods some hundred KiB.
pub const ANSWER_MAX_BYTES: usize = 8 * 1024 * 1024;
/// Answers of up to so many bytes are read as they come; nearly all are.
pub const ANSWER_SMALL_BYTES: usize = 256 * 1024;
/// So many longer ones are read and understood at a time, over all accounts; the others wait, within
/// their own time. So memory does not grow with accounts whose gateways babble.
const LARGE_ANSWERS: usize = 2;
/// Longest time for a connection to come about (name, TCP, TLS). Over a working network it takes
/// well under a second, and a packet lost twice some three.
const CONNECT_TIMEOUT_MAX: Duration = Duration::from_secs(10);
/// How long an unused connection is kept. Below the shortest usual keep-alive of servers, 5 s: the
/// server must not close it just as a call goes out, for that call is in doubt.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(4);
/// The longest `Retry-After` that is passed on. The rules believe less; this keeps nonsense out.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);
/// How much of an answer that cannot be read is shown, in characters.
const EXCERPT_MAX_CHARS: usize = 80;
/// What is shown of a credential in an answer.
const CROSSED_OUT: &str = "***";
/// The shortest credential that is crossed out of an answer, in bytes.
const HIDDEN_MIN_BYTES: usize = 8;
/// How much of the HTTP stack's own words is passed on, in characters.
const ERROR_MAX_CHARS: usize = 200;
/// Asked for by number there are the document and its `-1` documents.
const LOOK_UP_PAGE: Paging = Paging {
    page_size: 10,
    page_no: 0,
    calc_total: true,
};
/// Beijing's time is ahead of UTC by this, all year round.
const BEIJING_SECONDS: i64 = 8 * 3600;
/// A difference between clocks that is taken for none when zones are told apart.
const ZONE_TOLERANCE_SECONDS: i64 = 600;
/// The offset before any reading; no reading is that far off.
const NOT_MEASURED: i64 = i64::MIN;

/// A gateway's address: `http` or `https`, without a query, a fragment or a user's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatewayUrl(Url);

/// Why a text is not a gateway's address. Holds nothing of the text, which may hold a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum GatewayUrlError {
    /// It cannot be read as one.
    #[error("is not a URL; expected one like http://wdt.wangdian.cn/openapi")]
    NotUrl,
    /// It has another scheme.
    #[error("is neither http nor https; expected one like http://wdt.wangdian.cn/openapi")]
    Scheme,
    /// It holds a user's name or a password, which the gateway does not ask for.
    #[error("holds a user name or a password; credentials belong to the account's settings")]
    User,
    /// It holds a query or a fragment; the query is made for each call.
    #[error("holds a query or a fragment; give the address up to the `?`")]
    Query,
}

impl GatewayUrl {
    /// Parses and checks.
    ///
    /// # Errors
    ///
    /// Says what would do.
    pub fn parse(text: &str) -> Result<Self, GatewayUrlError> {
        let url = Url::parse(text.trim()).map_err(|_| GatewayUrlError::NotUrl)?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(GatewayUrlError::Scheme);
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(GatewayUrlError::User);
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(GatewayUrlError::Query);
        }
        Ok(Self(url))
    }

    fn is_https(&self) -> bool {
        self.0.scheme() == "https"
    }

    /// `http` or `https`.
    pub fn scheme(&self) -> &str {
        self.0.scheme()
    }

    /// The server's name or number.
    pub fn host(&self) -> &str {
        // Neither scheme goes without one.
        self.0.host_str().unwrap_or_default()
    }

    /// The server's port.
    pub fn port(&self) -> u16 {
        self.0.port_or_known_default().unwrap_or_default()
    }

    /// What follows the host.
    pub fn path(&self) -> &str {
        self.0.path()
    }
}

impl fmt::Display for GatewayUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The connections, shared by all accounts. Clones share them, too.
#[derive(Debug, Clone)]
pub struct Http {
    client: reqwest::Client,
    timeout: Duration,
    large: Arc<Semaphore>,
}

impl Http {
    /// Connections for calls to these `urls` that take at most `timeout` each, from the first
    /// packet to the answer's last byte. Half of it, and at most 10 s, may go into connecting, so
    /// that "not reached" is always told apart from "no answer".
    ///
    /// # Errors
    ///
    /// When a URL is `https` and this machine has no certificates of authorities. Without one none
    /// are needed, and none are loaded.
    pub fn new<'a>(
        timeout: Duration,
        urls: impl IntoIterator<Item = &'a GatewayUrl>,
    ) -> Result<Self, reqwest::Error> {
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("wdt-cancel-worker/", env!("CARGO_PKG_VERSION")))
            .retry(reqwest::retry::never())
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .referer(false)
            .connect_timeout(CONNECT_TIMEOUT_MAX.min(timeout / 2))
            .pool_idle_timeout(POOL_IDLE_TIMEOUT)
            .http1_only()
            .tcp_nodelay(true);
        if !urls.into_iter().any(GatewayUrl::is_https) {
            builder = builder.tls_certs_only([]);
        }
        Ok(Self {
            client: builder.build()?,
            timeout,
            large: Arc::new(Semaphore::new(LARGE_ANSWERS)),
        })
    }
}

/// A seller's credentials.
#[derive(Debug, Clone)]
pub struct Credentials {
    /// The seller (卖家账号).
    pub sid: String,
    /// The app key.
    pub key: String,
    /// The app secret.
    pub secret: AppSecret,
}

/// Those of the next call, and those that are tried when the gateway refuses them.
struct Keys {
    current: Arc<Credentials>,
    other: Option<Arc<Credentials>>,
}

/// One call, ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub struct Ended<T> {
    /// How.
    pub end: CallEnd<T>,
    /// From before the connection to the last byte.
    pub duration: Duration,
    /// The HTTP status, when one came.
    pub http_status: Option<u16>,
}

/// One account at its gateway, for whoever may cancel there.
///
/// To drop a call's future is to cut its connection: the call may have been executed.
pub struct Client(Arc<Reader>);

/// One account at its gateway, for whoever may only look: it has no way to cancel.
pub struct Reader {
    http: Http,
    url: GatewayUrl,
    keys: RwLock<Keys>,
    /// Seconds that the gateway's clock is ahead of ours.
    clock_offset: AtomicI64,
}

impl Client {
    /// A client that uses our clock as it is until [`Reader::now`] has measured the gateway's.
    pub fn new(http: Http, url: GatewayUrl, credentials: Credentials) -> Self {
        Self(Arc::new(Reader::new(http, url, credentials)))
    }

    /// The same account, to look only.
    pub fn reader(&self) -> Arc<Reader> {
        Arc::clone(&self.0)
    }

    /// Cancels `orders`, which the caller has recorded as being sent, has bounded, and has freed of
    /// repetitions.
    pub async fn cancel(&self, orders: &[OrderNo]) -> Ended<CancelLists> {
        let body = wire::cancel_body(orders);
        self.call(sign::CANCEL, None, body, wire::parse_cancel)
            .await
    }
}

impl std::ops::Deref for Client {
    type Target = Reader;

    fn deref(&self) -> &Reader {
        &self.0
    }
}

impl Reader {
    /// See [`Client::new`].
    pub fn new(http: Http, url: GatewayUrl, credentials: Credentials) -> Self {
        Self {
            http,
            url,
            keys: RwLock::new(Keys {
                current: Arc::new(credentials),
                other: None,
            }),
            clock_offset: AtomicI64::new(NOT_MEASURED),
        }
    }

    /// Where the gateway is.
    pub fn url(&self) -> &GatewayUrl {
        &self.url
    }

    /// From the next call on these hold, and when the gateway refuses them, the `other` ones. Calls
    /// in flight end as they began.
    pub fn renew(&self, credentials: Credentials, other: Option<Credentials>) {
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Keys {
            current: Arc::new(credentials),
            other: other.map(Arc::new),
        };
    }

    fn credentials(&self) -> Arc<Credentials> {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&keys.current)
    }

    /// The gateway has refused these: the next call goes with the other ones, where there are some.
    /// What a call that is not executed costs is the account's pause, some seconds.
    fn refused(&self, credentials: &Arc<Credentials>) {
        let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        // Several calls may be refused at a time; the first of them changes it.
        if Arc::ptr_eq(&keys.current, credentials)
            && let Some(other) = keys.other.take()
        {
            let refused = std::mem::replace(&mut keys.current, other);
            keys.other = Some(refused);
        }
    }

    /// Looks one order up.
    pub async fn look_up(&self, order: &OrderNo) -> Ended<Vec<FoundOrder>> {
        let body = wire::look_up_body(order);
        self.call(sign::QUERY, Some(LOOK_UP_PAGE), body, wire::parse_look_up)
            .await
    }

    /// Asks for the gateway's time. When the answer holds one, later calls are stamped by it.
    ///
    /// The gateway tells whole seconds, as of some moment between sending and receiving; compared
    /// with our whole seconds at the middle of the call, the offset is right to half the call's
    /// duration and one second. The gateway takes 120.
    pub async fn now(&self) -> Ended<ServerTime> {
        let begun = Timestamp::now();
        let ended = self
            .call(sign::NOW, None, wire::NOW_BODY.to_vec(), wire::parse_now)
            .await;
        if let CallEnd::Answered(Reply {
            status: 0,
            data: Some(ServerTime(theirs)),
            ..
        }) = ended.end
        {
            let middle = begun
                .saturating_add(ended.duration / 2)
                .unwrap_or(begun)
                .as_second();
            // The newest reading wins; nothing else hangs on the order.
            let offset = believable(theirs - middle, self.clock_offset_seconds());
            self.clock_offset.store(offset, Ordering::Relaxed);
        }
        ended
    }

    /// Seconds that the gateway's clock is ahead of ours (negative: behind), to about a second;
    /// `None` until it was measured.
    pub fn clock_offset_seconds(&self) -> Option<i64> {
        let offset = self.clock_offset.load(Ordering::Relaxed);
        (offset != NOT_MEASURED).then_some(offset)
    }

    /// The gateway's time in Unix seconds, as far as we know.
    fn gateway_time(&self) -> i64 {
        Timestamp::now()
            .as_second()
            .saturating_add(self.clock_offset_seconds().unwrap_or(0))
    }

    /// The one attempt.
    async fn call<T>(
        &self,
        method: &'static str,
        paging: Option<Paging>,
        body: Vec<u8>,
        parse: fn(&[u8]) -> Result<Reply<T>, String>,
    ) -> Ended<T> {
        let begun = Instant::now();
        let credentials = self.credentials();
        let signed = sign::Call {
            sid: &credentials.sid,
            key: &credentials.key,
            secret: &credentials.secret,
            method,
            timestamp: sign::timestamp(self.gateway_time()),
            paging,
        }
        .sign(&body);
        let mut url = self.url.0.clone();
        url.query_pairs_mut().extend_pairs(&signed.query);
        let request = self
            .http
            .client
            .post(url)
            .timeout(self.http.timeout)
            .header(CONTENT_TYPE, "application/json")
            .body(body);
        let (end, http_status) = match request.send().await {
            Err(error) => (self.no_answer(&error), None),
            Ok(response) => {
                let status = response.status().as_u16();
                let retry_after = retry_after(response.headers(), self.gateway_time());
                let mut large = None;
                let body = self.read_body(response, begun, &mut large).await;
                let request = (&*credentials, &signed);
                let end = self.answer(status, retry_after, body, request, parse);
                drop(large);
                (end, Some(status))
            }
        };
        if let News::Misconfigured {
            fault: SettingsFault::Credentials,
            ..
        } = judge::judge_probe(&end)
        {
            self.refused(&credentials);
        }
        Ended {
            end,
            duration: begun.elapsed(),
            http_status,
        }
    }

    /// No head of an answer came. Only a connection that never came about is proof that nothing was
    /// sent (a request that could not even be built is none either).
    fn no_answer<T>(&self, error: &reqwest::Error) -> CallEnd<T> {
        if error.is_connect() || error.is_builder() {
            let what = format!("no connection: {}", words(error));
            CallEnd::NotReached { what }
        } else {
            CallEnd::Lost {
                what: self.lost(error),
            }
        }
    }

    fn lost(&self, error: &reqwest::Error) -> String {
        if error.is_timeout() {
            self.too_late()
        } else {
            format!("the connection broke before an answer: {}", words(error))
        }
    }

    fn too_late(&self) -> String {
        format!("no answer within {:?}", self.http.timeout)
    }

    /// Counts what comes; what a header announced is no bound. A long answer takes a place in
    /// `large`, to be kept until it is understood.
    async fn read_body<'h>(
        &'h self,
        mut response: reqwest::Response,
        begun: Instant,
        large: &mut Option<SemaphorePermit<'h>>,
    ) -> Result<Vec<u8>, BodyError> {
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(BodyError::Broken)? {
            let length = body.len() + chunk.len();
            if length > ANSWER_MAX_BYTES {
                return Err(BodyError::TooLong);
            }
            if length > ANSWER_SMALL_BYTES && large.is_none() {
                let left = self.http.timeout.saturating_sub(begun.elapsed());
                let place = tokio::time::timeout(left, self.http.large.acquire()).await;
                // It is never closed.
                *large = Some(
                    place
                        .map_err(|_| BodyError::Late)?
                        .map_err(|_| BodyError::Late)?,
                );
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    fn answer<T>(
        &self,
        status: u16,
        retry_after: Option<Duration>,
        body: Result<Vec<u8>, BodyError>,
        (credentials, signed): (&Credentials, &Signed<'_>),
        parse: fn(&[u8]) -> Result<Reply<T>, String>,
    ) -> CallEnd<T> {
        let body = body.map(|body| without(&self.hidden(credentials, signed), body));
        let garbled = |what: String| CallEnd::Garbled { what, retry_after };
        let body = match (status, body) {
            (429, _) => return CallEnd::Throttled { retry_after },
            (200, Ok(body)) => body,
            (200, Err(BodyError::Broken(error))) if error.is_timeout() => {
                return CallEnd::Lost {
                    what: self.lost(&error),
                };
            }
            (200, Err(BodyError::Late)) => {
                return CallEnd::Lost {
                    what: self.too_late(),
                };
            }
            (200, Err(BodyError::Broken(error))) => {
                return garbled(format!("HTTP 200, but a cut body: {}", words(&error)));
            }
            (200, Err(BodyError::TooLong)) => {
                return garbled(format!("HTTP 200, but over {ANSWER_MAX_BYTES} bytes"));
            }
            // The gateway's own no may come with any error status. Its envelope counts, unless it
            // claims success, or its status is just HTTP's again: the error page of a web server.
            (400..=599, Ok(body)) => {
                return match parse(&body) {
                    Ok(reply) if reply.status != 0 && reply.status != i64::from(status) => {
                        CallEnd::Answered(reply)
                    }
                    Ok(_) | Err(_) => garbled(format!("HTTP {status}")),
                };
            }
            (_, Ok(_) | Err(_)) => return garbled(format!("HTTP {status}")),
        };
        match parse(&body) {
            Ok(reply) => CallEnd::Answered(reply),
            Err(why) => {
                let repeats = self.repeats_request(&body, credentials, signed);
                let shown = if repeats {
                    String::new()
                } else {
                    excerpt(&body)
                };
                let colon = if shown.is_empty() { "" } else { ": " };
                garbled(format!("HTTP 200, but {why}{colon}{shown}"))
            }
        }
    }

    /// What must not be shown, in lower case, as it is and as a URL has it. What is short is in many
    /// a text by chance, order numbers among them, and must not be crossed out there.
    fn hidden(&self, credentials: &Credentials, signed: &Signed<'_>) -> Vec<String> {
        let Credentials { key, secret, .. } = credentials;
        let long = [key.as_str(), secret.salt()]
            .into_iter()
            .filter(|text| text.len() >= HIDDEN_MIN_BYTES);
        let mut hidden = Vec::new();
        for text in long.chain([signed.sign.as_str()]) {
            let mut url = self.url.0.clone();
            url.query_pairs_mut().append_key_only(text);
            hidden.push(text.to_ascii_lowercase());
            hidden.extend(url.query().map(str::to_ascii_lowercase));
        }
        hidden
    }

    /// Whether an answer holds what must not get into a log, or held it.
    fn repeats_request(&self, body: &[u8], credentials: &Credentials, signed: &Signed<'_>) -> bool {
        let Credentials { key, secret, .. } = credentials;
        let body = String::from_utf8_lossy(body).to_ascii_lowercase();
        let short =
            [key.as_str(), secret.salt(), "sign=", CROSSED_OUT].map(str::to_ascii_lowercase);
        let mut hidden = self.hidden(credentials, signed).into_iter().chain(short);
        hidden.any(|text| body.contains(&text))
    }
}

/// The body with these crossed out, in whatever case: the gateway's words go into events, logs and
/// health. One that is not UTF-8 is no answer, and what is shown of it is checked by itself.
fn without(hidden: &[String], body: Vec<u8>) -> Vec<u8> {
    let mut text = match String::from_utf8(body) {
        Ok(text) => text,
        Err(error) => return error.into_bytes(),
    };
    let mut lower = text.to_ascii_lowercase();
    for secret in hidden {
        let mut kept = 0;
        let mut clean = String::new();
        for (at, _) in lower.match_indices(secret.as_str()) {
            clean.push_str(&text[kept..at]);
            clean.push_str(CROSSED_OUT);
            kept = at + secret.len();
        }
        if kept > 0 {
            clean.push_str(&text[kept..]);
            text = clean;
            lower = text.to_ascii_lowercase();
        }
    }
    text.into_bytes()
}

/// Why a body was not read to its end.
enum BodyError {
    TooLong,
    /// There was no place for a long one in time.
    Late,
    Broken(reqwest::Error),
}

/// `Retry-After` as seconds from now, or as a date, which is compared with the answer's own `Date`
/// where there is one: both are by the server's clock.
fn retry_after(headers: &HeaderMap, gateway_time: i64) -> Option<Duration> {
    let text = |name: HeaderName| Some(headers.get(name)?.to_str().ok()?.trim());
    let date = |text: &str| {
        let parsed = rfc2822::DateTimeParser::new().parse_timestamp(text);
        parsed.ok().map(Timestamp::as_second)
    };
    let value = text(RETRY_AFTER).filter(|value| !value.is_empty())?;
    let seconds = if value.bytes().all(|b| b.is_ascii_digit()) {
        // Only too many digits can fail.
        value.parse().unwrap_or(u64::MAX)
    } else {
        let now = text(DATE).and_then(date).unwrap_or(gateway_time);
        u64::try_from(date(value)?.saturating_sub(now)).unwrap_or(0)
    };
    Some(Duration::from_secs(seconds).min(RETRY_AFTER_MAX))
}

/// The offset to go by. No sample of the method's answer is published, so a time without a zone may
/// be meant in UTC after all (inferred: it is Beijing's). A reading that is off by just the
/// difference is believed at first, for a clock can be wrong in just that way; when that did not
/// help, for the clock is measured again, the other meaning is tried, and so on in turn.
fn believable(reading: i64, known: Option<i64>) -> i64 {
    let other = reading.saturating_add(BEIJING_SECONDS);
    let is_ambiguous = other.abs() <= ZONE_TOLERANCE_SECONDS;
    let did_not_help = known.is_some_and(|known| (known - reading).abs() <= ZONE_TOLERANCE_SECONDS);
    if is_ambiguous && did_not_help {
        other
    } else {
        reading
    }
}

/// The innermost cause. The layers above it only say that a request failed, and the outermost one
/// names the URL.
fn words(error: &reqwest::Error) -> String {
    let mut cause: Option<&(dyn Error + 'static)> = error.source();
    while let Some(deeper) = cause.and_then(Error::source) {
        cause = Some(deeper);
    }
    cause.map_or_else(
        || "the request failed".to_owned(),
        |cause| printable(&cause.to_string(), ERROR_MAX_CHARS),
    )
}

/// The beginning of a text; empty when it is none.
fn excerpt(body: &[u8]) -> String {
    let text = body.utf8_chunks().next().map_or("", |chunk| chunk.valid());
    printable(text, EXCERPT_MAX_CHARS)
}

/// The first characters in one line, without control characters.
fn printable(text: &str, max_chars: usize) -> String {
    let mut line = String::new();
    let plain = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    let spaced = plain.skip_while(|c| c.is_whitespace());
    for (chars, c) in spaced.enumerate() {
        if chars == max_chars {
            line.push('…');
            break;
        }
        line.push(c);
    }
    line.truncate(line.trim_end().len());
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zone_that_was_misread_is_found_out_by_the_second_reading() {
        assert_eq!(believable(3, None), 3);
        assert_eq!(believable(300, Some(300)), 300);
        assert_eq!(
            believable(-28_798, None),
            -28_798,
            "a clock may be wrong in just that way"
        );
        assert_eq!(believable(-28_798, Some(-28_799)), 2);
        assert_eq!(believable(-28_798, Some(2)), -28_798, "and in turn");
    }

    #[test]
    fn urls() {
        let check = |text: &str, expected: Result<&str, GatewayUrlError>| {
            let url = GatewayUrl::parse(text).map(|url| url.to_string());
            assert_eq!(url.as_deref().map_err(|e| *e), expected, "{text}");
        };
        let plain = "http://wdt.wangdian.cn/openapi";
        check(plain, Ok(plain));
        check(&format!(" {plain}\n"), Ok(plain));
        check("https://[::1]:8443", Ok("https://[::1]:8443/"));
        check("", Err(GatewayUrlError::NotUrl));
        check("wdt.wangdian.cn/openapi", Err(GatewayUrlError::NotUrl));
        check("http://", Err(GatewayUrlError::NotUrl));
        check("ftp://host/openapi", Err(GatewayUrlError::Scheme));
        check("http://me@host/openapi", Err(GatewayUrlError::User));
        check("http://:pass@host/openapi", Err(GatewayUrlError::User));
        check("http://host/openapi?a=1", Err(GatewayUrlError::Query));
        check("http://host/openapi#a", Err(GatewayUrlError::Query));
    }

    #[test]
    fn retry_after_in_seconds_or_as_a_date() {
        let now = 1_795_478_400; // Tue, 24 Nov 2026 00:00:00 GMT
        let check = |value: &str, date: Option<&str>, expected: Option<u64>| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, value.parse().unwrap());
            if let Some(date) = date {
                headers.insert(DATE, date.parse().unwrap());
            }
            let seconds = retry_after(&headers, now).map(|d| d.as_secs());
            assert_eq!(seconds, expected, "{value:?}, {date:?}");
        };
        check("0", None, Some(0));
        check(" 90 ", None, Some(90));
        check("86400", None, Some(3600));
        check("99999999999999999999999", None, Some(3600));
        check("Tue, 24 Nov 2026 00:01:30 GMT", None, Some(90));
        check("Mon, 23 Nov 2026 00:01:30 GMT", None, Some(0));
        check("Wed, 25 Nov 2026 00:00:00 GMT", None, Some(3600));
        let ahead = Some("Tue, 24 Nov 2026 00:01:00 GMT");
        check("Tue, 24 Nov 2026 00:01:30 GMT", ahead, Some(30));
        check("Tue, 24 Nov 2026 00:01:30 GMT", Some("?"), Some(90));
        for none in ["", "-5", "1.5", "+5", "soon"] {
            check(none, None, None);
        }
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }

    #[test]
    fn excerpts_are_short_single_lines() {
        assert_eq!(
            excerpt(b"\r\n <html>\n\t<b>502\x1b[31m"),
            "<html>  <b>502 [31m"
        );
        assert_eq!(excerpt("页".repeat(100).as_bytes()).chars().count(), 81);
        assert_eq!(excerpt(b"bad \xff\xfe gateway"), "bad");
        assert_eq!(excerpt(b"\xff\xfe"), "");
        assert_eq!(excerpt(b""), "");
    }
}
