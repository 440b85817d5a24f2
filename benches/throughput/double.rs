//! A gateway that answers at once and checks nothing: whatever a cancel names is cancelled.
//!
//! It shares the machine with what is measured, and the bare loops have no gateway at all, so it is
//! as cheap as can be: one thread, no signature, no books. The emulator of `sandbox` checks and
//! remembers everything; it is the gateway where that counts and speed does not.

use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::{Body, to_bytes};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

use crate::support::gateway::{CANCEL, QUERY};

/// Where it tells how many cancels there were.
pub const CANCELS: &str = "/cancels";
/// A list of 10,000 numbers has less.
const BODY_MAX_BYTES: usize = 1024 * 1024;

/// Serves until it is killed.
pub async fn run(port: u16, latency: Duration) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))
        .await
        .unwrap();
    let cancels = Arc::new(AtomicU64::new(0));
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        let cancels = cancels.clone();
        let service = service_fn(move |request| {
            let cancels = cancels.clone();
            async move { Ok::<_, Infallible>(answer(request, latency, &cancels).await) }
        });
        // A client that hangs up is not of interest.
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}

async fn answer(
    request: Request<Incoming>,
    latency: Duration,
    cancels: &AtomicU64,
) -> Response<String> {
    if request.uri().path() == CANCELS {
        return Response::new(cancels.load(Ordering::Relaxed).to_string());
    }
    let query = request.uri().query().unwrap_or_default();
    let calls = |method| query.contains(method);
    let (is_cancel, is_look_up) = (calls(CANCEL), calls(QUERY));
    let body = Body::new(request.into_body());
    let body = to_bytes(body, BODY_MAX_BYTES).await.unwrap_or_default();
    let body = std::str::from_utf8(&body).unwrap_or_default();
    // Both take one argument in an array.
    let argument = body.get(1..body.len().saturating_sub(1)).unwrap_or("null");
    if !latency.is_zero() {
        tokio::time::sleep(latency).await;
    }
    Response::new(if is_cancel {
        cancels.fetch_add(1, Ordering::Relaxed);
        format!(r#"{{"status":0,"data":{{"success_data":{argument},"error_data":[]}}}}"#)
    } else if is_look_up {
        // Whoever looks an order up has sent it before.
        let row = argument.replace('}', r#","status":80}"#);
        format!(r#"{{"status":0,"data":{{"total_count":1,"order":[{row}]}}}}"#)
    } else {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        format!(r#"{{"status":0,"data":{}}}"#, since_1970.as_secs())
    })
}
