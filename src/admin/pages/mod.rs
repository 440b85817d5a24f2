//! The operators' pages: HTML from the server, nothing from elsewhere, and a few lines of script that
//! fetch the same page anew.

mod dead;
mod frame;
mod now;
mod story;

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, Form, Query, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{Html, IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use axum::{Extension, Router};
use jiff::Timestamp;
use maud::Markup;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{oneshot, watch};

use super::access::{Access, Refusal, Visitor, text};
use super::letters::{Done, Request as LetterRequest, Wish};
use super::stories::{Found, Request as StoryRequest};
use super::{Office, PauseWish, Peer, Snapshot};
use crate::rules::dead::Filter;
use crate::rules::desk::LaneId;
use crate::rules::lane::Paused;
use crate::rules::order::AccountName;
use frame::{Frame, Lang};

/// What a form may hold, in bytes.
const FORM_MAX_BYTES: usize = 64 * 1024;
/// A wish to pause is durable within this time, or it is told that it is not yet.
const PAUSED_WITHIN: Duration = Duration::from_secs(5);
/// A search that takes longer than this is not waited for.
const SEARCH_WITHIN: Duration = Duration::from_secs(30);
/// Nothing but what this listener itself serves, and no page that shows ours within it.
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; \
     img-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";
/// The cookie that keeps the language.
const LANG_COOKIE: &str = "wdt_lang";

#[derive(Clone)]
struct Pages {
    snapshot: watch::Receiver<Snapshot>,
    office: Arc<Office>,
    access: Arc<Access>,
}

type Pairs = Vec<(String, String)>;

/// Serves the pages.
pub(super) fn router(snapshot: watch::Receiver<Snapshot>, office: Office) -> Router {
    let access = Arc::new(Access::new(office.token.clone()));
    let pages = Pages {
        snapshot,
        office: Arc::new(office),
        access,
    };
    let guarded = Router::new()
        .route("/", get(overview))
        .route("/live", get(live))
        .route("/story", get(search))
        .route("/dead", get(letters))
        .route("/dead/replay", post(replay))
        .route("/dead/drop", post(remove))
        .route("/pause", post(pause))
        .route("/resume", post(resume))
        .route("/logout", post(log_out))
        .route_layer(from_fn_with_state(pages.clone(), guard));
    Router::new()
        .merge(guarded)
        .route("/login", get(login).post(log_in))
        .route("/style.css", get(style))
        .route("/live.js", get(script))
        .route_layer(DefaultBodyLimit::max(FORM_MAX_BYTES))
        .route_layer(axum::middleware::map_response(harden))
        .with_state(pages)
}

async fn harden(mut response: Response) -> Response {
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        headers
            .entry(name)
            .or_insert(HeaderValue::from_static(value));
    }
    response
}

/// Lets through who may read or act, and tells the page who that is.
async fn guard(
    State(pages): State<Pages>,
    Extension(Peer(peer)): Extension<Peer>,
    mut request: Request,
    next: Next,
) -> Response {
    let acts = !request.method().is_safe();
    match pages.access.admit(request.headers(), peer, acts) {
        Ok(visitor) => {
            request.extensions_mut().insert(visitor);
            next.run(request).await
        }
        Err(refusal) => {
            let lang = Lang::of(request.headers(), None);
            pages.refused(lang, refusal)
        }
    }
}

impl Pages {
    fn refused(&self, lang: Lang, refusal: Refusal) -> Response {
        let (status, why) = match refusal {
            Refusal::Unknown if self.access.has_token() => (
                StatusCode::UNAUTHORIZED,
                lang.t("Log in first.", "请先登录。"),
            ),
            Refusal::Unknown => (
                StatusCode::UNAUTHORIZED,
                lang.t(
                    "Set admin.token first: without it nobody acts, and the pages are read on the worker's own machine alone.",
                    "请先设置 admin.token：没有它，任何人都不能操作，页面也只能在本机查看。",
                ),
            ),
            Refusal::OtherSite => (
                StatusCode::FORBIDDEN,
                lang.t("This came from another site's page.", "请求来自其他网站，已拒绝。"),
            ),
            Refusal::TooMany => (
                StatusCode::TOO_MANY_REQUESTS,
                lang.t("Too many wrong tokens; wait a minute.", "令牌错误次数过多，请一分钟后再试。"),
            ),
        };
        let body = frame::login(lang, why, self.access.has_token());
        let frame = self.frame(lang, None, "/login");
        (status, page(&frame, body)).into_response()
    }

    fn frame(&self, lang: Lang, visitor: Option<&Visitor>, path: &'static str) -> Frame {
        Frame {
            lang,
            path,
            query: Vec::new(),
            operator: visitor.and_then(|visitor| visitor.operator.clone()),
            may_log_in: self.access.has_token(),
        }
    }

    /// The same around what this query asks for.
    fn asked(
        &self,
        headers: &HeaderMap,
        query: &[(String, String)],
        visitor: &Visitor,
        path: &'static str,
    ) -> Frame {
        Frame {
            query: query.to_vec(),
            ..self.frame(lang(headers, query), Some(visitor), path)
        }
    }

    /// Asks for something to be done with dead letters.
    async fn ask(&self, wish: Wish, filter: Filter, by: Arc<str>) -> Result<Done, String> {
        let (answer, done) = oneshot::channel();
        let request = LetterRequest {
            wish,
            filter,
            by,
            answer,
        };
        match self.office.letters.try_send(request) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => return Err("others are at it; try again".into()),
            Err(TrySendError::Closed(_)) => return Err("the worker is stopping".into()),
        }
        done.await
            .unwrap_or_else(|_| Err("the worker is stopping".into()))
    }

    /// Looks a name up in the ledger.
    async fn find(&self, lang: Lang, name: &str, account: &str) -> Result<Found, String> {
        let account = match account {
            "" => None,
            name => Some(AccountName::new(name).ok_or_else(|| {
                let words = lang.t("There is no such account.", "没有这个账户。");
                words.to_owned()
            })?),
        };
        let busy = || {
            let words = lang.t(
                "Other searches are at work; try again.",
                "正在进行其他查询，请稍后再试。",
            );
            words.to_owned()
        };
        let (answer, found) = oneshot::channel();
        let request = StoryRequest {
            name: name.to_owned(),
            account,
            answer,
        };
        self.office.stories.try_send(request).map_err(|_| busy())?;
        match tokio::time::timeout(SEARCH_WITHIN, found).await {
            Ok(found) => found.unwrap_or_else(|_| Err(busy())),
            Err(_) => Err(lang
                .t(
                    "The ledger took too long; wdt-cancel-worker order or command waits for it.",
                    "账本读取超时；请用 wdt-cancel-worker order 或 command 查询。",
                )
                .to_owned()),
        }
    }

    async fn set_paused(
        &self,
        form: &[(String, String)],
        visitor: &Visitor,
        pauses: bool,
        headers: &HeaderMap,
    ) -> Response {
        let lang = Lang::of(headers, None);
        let by = visitor.operator.clone().unwrap_or_else(|| "-".into());
        let wanted: Vec<&str> = all(form, "account");
        let is_all = !all(form, "all").is_empty();
        let names: Vec<String> = {
            let snapshot = self.snapshot.borrow();
            let names = snapshot
                .accounts
                .iter()
                .map(|report| report.account.to_string());
            names.collect()
        };
        let known = wanted.iter().all(|name| names.iter().any(|n| n == name));
        if !known || (wanted.is_empty() && !is_all) {
            let words = lang.t("There is no such account.", "没有这个账户。");
            return self.answered(headers, StatusCode::NOT_FOUND, words);
        }
        let is_meant = |name: &str| is_all || wanted.contains(&name);
        for (lane, name) in names.iter().enumerate() {
            if is_meant(name) {
                let paused = pauses.then(|| Paused {
                    since: Timestamp::now(),
                    by: Arc::clone(&by),
                });
                tracing::info!(account = name, by = &*by, pauses, "an operator's wish");
                let lane = LaneId(lane);
                if self.office.pause.send(PauseWish { lane, paused }).is_err() {
                    let words = lang.t("The worker is stopping.", "进程正在停止。");
                    return self.answered(headers, StatusCode::SERVICE_UNAVAILABLE, words);
                }
            }
        }
        let mut snapshot = self.snapshot.clone();
        let is_so = |snapshot: &Snapshot| {
            let mut meant = snapshot
                .accounts
                .iter()
                .filter(|r| is_meant(r.account.as_str()));
            meant.all(|report| report.paused.is_some() == pauses)
        };
        let done = tokio::time::timeout(PAUSED_WITHIN, snapshot.wait_for(is_so)).await;
        if matches!(done, Ok(Ok(_))) {
            return self.answered(headers, StatusCode::OK, "");
        }
        let words = lang.t(
            "It is not durable yet; see the ledger's state. It is done as soon as the ledger takes writes.",
            "尚未写入账本；请查看账本状态。账本恢复写入后会自动生效。",
        );
        self.answered(headers, StatusCode::SERVICE_UNAVAILABLE, words)
    }

    /// The answer to what was posted: words for a program, a page for people.
    fn answered(&self, headers: &HeaderMap, status: StatusCode, words: &'static str) -> Response {
        if text(headers, "authorization").is_some() {
            return (status, format!("{words}\n")).into_response();
        }
        if status == StatusCode::OK {
            return Redirect::to("/").into_response();
        }
        let frame = self.frame(Lang::of(headers, None), None, "/");
        (status, page(&frame, frame::message(words))).into_response()
    }
}

/// The values of a name, those that say something.
fn all<'a>(form: &'a [(String, String)], name: &str) -> Vec<&'a str> {
    let of_name = form.iter().filter(|(key, _)| key == name);
    of_name
        .map(|(_, value)| value.trim())
        .filter(|value| !value.is_empty())
        .collect()
}

fn page(frame: &Frame, body: Markup) -> Html<String> {
    Html(frame.around(body).into_string())
}

/// A page, in the language that was asked for, which is remembered.
fn shown(frame: &Frame, query: &[(String, String)], body: Markup) -> Response {
    let mut response = page(frame, body).into_response();
    if !all(query, "lang").is_empty() {
        let lang = frame.lang.code();
        let cookie = format!("{LANG_COOKIE}={lang}; Path=/; Max-Age=31536000; SameSite=Lax");
        if let Ok(cookie) = HeaderValue::from_str(&cookie) {
            response.headers_mut().append(header::SET_COOKIE, cookie);
        }
    }
    response
}

fn lang(headers: &HeaderMap, query: &[(String, String)]) -> Lang {
    Lang::of(headers, all(query, "lang").first().copied())
}

async fn overview(
    State(pages): State<Pages>,
    Extension(visitor): Extension<Visitor>,
    headers: HeaderMap,
    Query(query): Query<Pairs>,
) -> Response {
    let frame = pages.asked(&headers, &query, &visitor, "/");
    let body = pages.live(&frame);
    shown(&frame, &query, now::page(&frame, body))
}

async fn live(
    State(pages): State<Pages>,
    Extension(visitor): Extension<Visitor>,
    headers: HeaderMap,
) -> Html<String> {
    let frame = pages.frame(lang(&headers, &[]), Some(&visitor), "/");
    Html(pages.live(&frame).into_string())
}

impl Pages {
    fn live(&self, frame: &Frame) -> Markup {
        let snapshot = self.snapshot.borrow().clone();
        let now = Timestamp::now();
        let history = &self.office.history;
        now::live(
            frame,
            &snapshot,
            &history.counts(now),
            &history.latest(),
            now,
        )
    }
}

async fn search(
    State(pages): State<Pages>,
    Extension(visitor): Extension<Visitor>,
    headers: HeaderMap,
    Query(query): Query<Pairs>,
) -> Response {
    let frame = pages.asked(&headers, &query, &visitor, "/story");
    let of = |name| all(&query, name).first().copied().unwrap_or_default();
    let (name, account) = (of("name"), of("account"));
    let found = match name {
        "" => None,
        name => Some(pages.find(frame.lang, name, account).await),
    };
    shown(
        &frame,
        &query,
        story::page(&frame, name, account, found.as_ref()),
    )
}

async fn letters(
    State(pages): State<Pages>,
    Extension(visitor): Extension<Visitor>,
    headers: HeaderMap,
    Query(query): Query<Pairs>,
) -> Response {
    let frame = pages.asked(&headers, &query, &visitor, "/dead");
    let filter = dead::filter(&query);
    let found = pages.ask(Wish::Look, filter.clone(), "-".into()).await;
    let body = dead::page(&frame, &filter, found.as_ref(), None);
    shown(&frame, &query, body)
}

async fn replay(
    State(pages): State<Pages>,
    Extension(visitor): Extension<Visitor>,
    headers: HeaderMap,
    Form(form): Form<Pairs>,
) -> Response {
    let frame = pages.frame(lang(&headers, &[]), Some(&visitor), "/dead");
    let Some(filter) = dead::chosen(&form) else {
        let words = frame.lang.t("Choose some letters first.", "请先选择死信。");
        return (StatusCode::BAD_REQUEST, page(&frame, frame::message(words))).into_response();
    };
    let by = visitor.operator.unwrap_or_else(|| "-".into());
    let done = pages.ask(Wish::Replay, filter, by).await;
    let filter = dead::filter(&form);
    let found = pages.ask(Wish::Look, filter.clone(), "-".into()).await;
    page(
        &frame,
        dead::page(&frame, &filter, found.as_ref(), Some(&done)),
    )
    .into_response()
}

async fn remove(
    State(pages): State<Pages>,
    Extension(visitor): Extension<Visitor>,
    headers: HeaderMap,
    Form(form): Form<Pairs>,
) -> Response {
    let frame = pages.frame(lang(&headers, &[]), Some(&visitor), "/dead");
    let Some(filter) = dead::chosen(&form) else {
        let words = frame.lang.t("Choose some letters first.", "请先选择死信。");
        return (StatusCode::BAD_REQUEST, page(&frame, frame::message(words))).into_response();
    };
    let by = visitor.operator.unwrap_or_else(|| "-".into());
    if all(&form, "sure").is_empty() {
        let found = pages.ask(Wish::Look, filter, by).await;
        return page(&frame, dead::sure(&frame, &form, found.as_ref())).into_response();
    }
    match pages.ask(Wish::Remove, filter, by).await {
        // What is gone is handed out, so that nothing is lost unseen.
        Ok(done) if !done.removed.is_empty() => {
            let name = format!(
                "attachment; filename=\"dropped-{}.jsonl\"",
                Timestamp::now().as_second()
            );
            let kind = [
                (header::CONTENT_TYPE, "application/x-ndjson".to_owned()),
                (header::CONTENT_DISPOSITION, name),
            ];
            (kind, done.removed).into_response()
        }
        done => {
            let filter = dead::filter(&form);
            let found = pages.ask(Wish::Look, filter.clone(), "-".into()).await;
            page(
                &frame,
                dead::page(&frame, &filter, found.as_ref(), Some(&done)),
            )
            .into_response()
        }
    }
}

async fn pause(
    State(pages): State<Pages>,
    Extension(visitor): Extension<Visitor>,
    headers: HeaderMap,
    Form(form): Form<Pairs>,
) -> Response {
    pages.set_paused(&form, &visitor, true, &headers).await
}

async fn resume(
    State(pages): State<Pages>,
    Extension(visitor): Extension<Visitor>,
    headers: HeaderMap,
    Form(form): Form<Pairs>,
) -> Response {
    pages.set_paused(&form, &visitor, false, &headers).await
}

async fn login(
    State(pages): State<Pages>,
    headers: HeaderMap,
    Query(query): Query<Pairs>,
) -> Response {
    let frame = pages.frame(lang(&headers, &query), None, "/login");
    let body = frame::login(frame.lang, "", pages.access.has_token());
    shown(&frame, &query, body)
}

async fn log_in(
    State(pages): State<Pages>,
    Extension(Peer(peer)): Extension<Peer>,
    headers: HeaderMap,
    Form(form): Form<Pairs>,
) -> Response {
    let of = |name| all(&form, name).first().copied().unwrap_or_default();
    match pages.access.log_in(&headers, peer, of("token"), of("name")) {
        Ok((by, cookie)) => {
            tracing::info!(by = &*by, "an operator logged in");
            ([(header::SET_COOKIE, cookie)], Redirect::to("/")).into_response()
        }
        Err(refusal) => {
            tracing::warn!(from = %peer.ip(), ?refusal, "a login was refused");
            pages.refused(lang(&headers, &[]), refusal)
        }
    }
}

async fn log_out(State(pages): State<Pages>, headers: HeaderMap) -> Response {
    let cookie = pages.access.log_out(&headers);
    ([(header::SET_COOKIE, cookie)], Redirect::to("/")).into_response()
}

async fn style() -> Response {
    let kind = [
        (header::CONTENT_TYPE, "text/css; charset=utf-8"),
        (header::CACHE_CONTROL, "max-age=300"),
    ];
    (kind, include_str!("style.css")).into_response()
}

async fn script() -> Response {
    let kind = [
        (header::CONTENT_TYPE, "text/javascript; charset=utf-8"),
        (header::CACHE_CONTROL, "max-age=300"),
    ];
    (kind, include_str!("live.js")).into_response()
}
