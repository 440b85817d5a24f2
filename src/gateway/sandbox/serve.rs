//! How a call gets in and its answer out, or what becomes of the answer instead.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{ConnectInfo, Query, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use futures_util::{StreamExt as _, stream};

use super::Sandbox;
use super::call::{Arriving, BODY_MAX_BYTES, Handled, PRINTED_CHARS, shorten};
use super::fault::CallFault;
use super::line::HangUp;

/// Where the gateway is on its host.
pub const PATH: &str = "/openapi";
/// Longer bodies are still read up to here, so that their sender gets to read why they are refused.
const BODY_READ_BYTES: usize = 4 * BODY_MAX_BYTES;
/// A body that is not complete after this long never will be.
const BODY_PATIENCE: Duration = Duration::from_secs(10);
const HTML_PAGE: &str = "<!DOCTYPE html>\n<html><head><title>系统维护</title></head>\
    <body><h1>系统维护中，请稍后访问</h1></body></html>\n";

/// The gateway's one page.
pub fn router(sandbox: Arc<Sandbox>) -> Router {
    Router::new()
        .route(PATH, post(openapi))
        .fallback(elsewhere)
        .with_state(sandbox)
}

async fn elsewhere(State(sandbox): State<Arc<Sandbox>>, uri: Uri) -> Response {
    let path = shorten(uri.path(), PRINTED_CHARS);
    sandbox.tell(&format!("{path}: 404, the gateway is at {PATH}"));
    let text = format!("the gateway is at {PATH}\n");
    (StatusCode::NOT_FOUND, text).into_response()
}

async fn openapi(
    State(sandbox): State<Arc<Sandbox>>,
    ConnectInfo(hang_up): ConnectInfo<HangUp>,
    Query(query): Query<Vec<(String, String)>>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let read = to_bytes(body, BODY_READ_BYTES);
    let Ok(Ok(body)) = tokio::time::timeout(BODY_PATIENCE, read).await else {
        hang_up.close();
        return StatusCode::BAD_REQUEST.into_response();
    };
    let content_type = headers.get(header::CONTENT_TYPE);
    let mut call = Arriving::new(&sandbox, query, content_type, &body).handle();

    let wait = match call.fault {
        Some(CallFault::Slow) => sandbox.slow,
        Some(_) | None => sandbox.latency,
    };
    if !wait.is_zero() {
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = sandbox.stopped() => hang_up.close(),
        }
    }
    call.answered = true;
    travel(&call, &hang_up)
}

/// What the caller gets to see.
fn travel(call: &Handled, hang_up: &HangUp) -> Response {
    let answer = |status: StatusCode, content_type: &'static str, body: Body| {
        (status, [(header::CONTENT_TYPE, content_type)], body).into_response()
    };
    const JSON: &str = "application/json;charset=UTF-8";
    const HTML: &str = "text/html;charset=UTF-8";
    match call.fault {
        None | Some(CallFault::Slow | CallFault::Frequency) => {
            answer(StatusCode::OK, JSON, call.reply.json().into())
        }
        Some(CallFault::Status500 | CallFault::Status500Executed) => {
            answer(StatusCode::INTERNAL_SERVER_ERROR, HTML, HTML_PAGE.into())
        }
        Some(CallFault::Html) => answer(StatusCode::OK, HTML, HTML_PAGE.into()),
        Some(CallFault::Empty) => answer(StatusCode::OK, JSON, Body::empty()),
        Some(CallFault::Unavailable) => {
            let mut response = answer(StatusCode::SERVICE_UNAVAILABLE, HTML, HTML_PAGE.into());
            let after = HeaderValue::from_static("1");
            response.headers_mut().insert(header::RETRY_AFTER, after);
            response
        }
        Some(CallFault::Cut) => {
            let whole = Bytes::from(call.reply.json());
            let length = HeaderValue::from(whole.len());
            let mut response = answer(StatusCode::OK, JSON, first_half(&whole));
            response
                .headers_mut()
                .insert(header::CONTENT_LENGTH, length);
            response
        }
        // What is returned here is what is not written.
        Some(CallFault::Lost) => {
            hang_up.close();
            StatusCode::OK.into_response()
        }
        Some(CallFault::Reset) => {
            hang_up.reset();
            StatusCode::OK.into_response()
        }
    }
}

/// The first half, and then an error, at which the server closes the connection. It gets a turn in
/// between to write out what it has.
fn first_half(whole: &Bytes) -> Body {
    let half = whole.slice(..whole.len() / 2);
    let end = stream::once(async {
        tokio::task::yield_now().await;
        Err(std::io::ErrorKind::ConnectionAborted.into())
    });
    Body::from_stream(stream::once(async { Ok::<_, std::io::Error>(half) }).chain(end))
}
