//! What each setting's value has to be. Every error is a phrase that says what would do.

use super::bounds;
use super::secret::Secret;
use super::value::{Value, filled, integer, list, text};
use super::{LedgerUrl, LogFormat};
use crate::rules::pattern::Pattern;
use crate::rules::policy::Verify;
use lapin::uri::AMQPUri;
use reqwest::Url;
use std::net::SocketAddr;
use std::path::PathBuf;

/// What a gateway's URL has to be.
pub(super) const GATEWAY_URL_WOULD_DO: &str = "a full http or https URL without user, query and \
    fragment would do, such as http://wdt.wangdian.cn/openapi";

pub(super) fn gateway_url(value: &Value) -> Result<Url, String> {
    let url = Url::parse(text(value)?).map_err(|e| format!("{e}; {GATEWAY_URL_WOULD_DO}"))?;
    let plain = matches!(url.scheme(), "http" | "https")
        && url.username().is_empty()
        && url.password().is_none()
        && url.query().is_none()
        && url.fragment().is_none();
    plain
        .then_some(url)
        .ok_or_else(|| GATEWAY_URL_WOULD_DO.to_owned())
}

pub(super) fn orders_per_call(value: &Value) -> Result<u32, String> {
    integer(value, bounds::MAX_ORDERS_PER_CALL)
}

pub(super) fn concurrency(value: &Value) -> Result<u32, String> {
    integer(value, bounds::CONCURRENCY)
}

pub(super) fn calls_per_minute(value: &Value) -> Result<u32, String> {
    integer(value, bounds::CALLS_PER_MINUTE)
}

pub(super) fn verify(value: &Value) -> Result<Verify, String> {
    let words = Verify::ALL.map(Verify::as_str).join(", ");
    Verify::parse(text(value)?).ok_or_else(|| format!("one of {words} would do"))
}

pub(super) fn log_format(value: &Value) -> Result<LogFormat, String> {
    match text(value)? {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err("one of text, json would do".to_owned()),
    }
}

pub(super) fn listen(value: &Value) -> Result<SocketAddr, String> {
    text(value)?.parse().map_err(|_| {
        "an IP address with a port would do, such as 127.0.0.1:9464 or [::]:9464".to_owned()
    })
}

/// A token's length at least: what can be guessed protects nothing.
const TOKEN_MIN_BYTES: usize = 16;

pub(super) fn token(value: &Value) -> Result<String, String> {
    match text(value)?.trim() {
        token if token.len() >= TOKEN_MIN_BYTES => Ok(token.to_owned()),
        _ => Err(format!(
            "at least {TOKEN_MIN_BYTES} characters would do, such as: openssl rand -hex 16"
        )),
    }
}

pub(super) fn secret_and_salt(value: &Value) -> Result<(String, String), String> {
    match text(value)?.split_once(':') {
        Some((secret, salt)) if !secret.is_empty() && !salt.is_empty() => {
            Ok((secret.to_owned(), salt.to_owned()))
        }
        Some(_) | None => Err("SECRET:SALT would do, both halves not empty".to_owned()),
    }
}

pub(super) fn amqp_name(value: &Value) -> Result<String, String> {
    let name = text(value)?;
    // The broker keeps that prefix to itself.
    if !bounds::AMQP_NAME_BYTES.contains(&name.len()) || name.starts_with("amq.") {
        return Err("a name of 1 to 255 bytes that does not begin with amq. would do".to_owned());
    }
    Ok(name.to_owned())
}

pub(super) fn patterns(value: &Value) -> Result<Vec<Pattern>, String> {
    let entries = list(value)?;
    if entries.len() > bounds::REPLY_TO_PATTERNS_MAX {
        let (count, most) = (entries.len(), bounds::REPLY_TO_PATTERNS_MAX);
        return Err(format!(
            "these are {count}; at most {most} patterns would do"
        ));
    }
    let read = |text: &String| Pattern::new(text).map_err(|e| format!("pattern {text:?} {e}"));
    entries.iter().map(read).collect()
}

pub(super) fn amqp_urls(value: &Value) -> Result<Vec<Secret<AMQPUri>>, String> {
    let urls: Vec<&str> = text(value)?.split(',').map(str::trim).collect();
    let count = urls.len();
    let read = |(index, url): (usize, &&str)| {
        amqp_url(url).map_err(|why| {
            format!(
                "URL {} of {count} {why}; amqp://USER:PASSWORD@HOST:PORT/VHOST or amqps://… would \
                 do, or several separated by commas",
                index + 1
            )
        })
    };
    urls.iter().enumerate().map(read).collect()
}

/// One broker's URL. The errors do not repeat any of it: a part of a password may end up anywhere
/// when the URL is cut in the wrong place.
fn amqp_url(text: &str) -> Result<Secret<AMQPUri>, String> {
    let url = Url::parse(text).map_err(|e| format!("cannot be read ({e})"))?;
    if !matches!(url.scheme(), "amqp" | "amqps") {
        return Err("has another scheme".to_owned());
    }
    // The client would take the local host for both without a word.
    if url.domain().is_none_or(str::is_empty) {
        return Err("has no host, or an IPv6 address, for which a name has to be given".to_owned());
    }
    let uri = text
        .parse()
        .map_err(|_| "has a query or an escape that cannot be read".to_owned())?;
    Ok(Secret::from_url(uri, text))
}

pub(super) fn ledger_url(value: &Value) -> Result<LedgerUrl, String> {
    let text = filled(value)?;
    let lower = text.to_ascii_lowercase();
    if lower.starts_with("postgres://") || lower.starts_with("postgresql://") {
        let secret = Secret::from_url(text.clone(), &text);
        return Ok(LedgerUrl::Postgres(secret));
    }
    // Taken as a path, each of these would become a file with a password in its name.
    if lower.contains("://") || lower.starts_with("postgres") || lower.contains("password=") {
        return Err("the path of a file would do, or postgres://…".to_owned());
    }
    Ok(LedgerUrl::Path(PathBuf::from(text)))
}
