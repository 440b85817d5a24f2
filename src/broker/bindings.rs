//! Which results would find a queue, as the broker's management tells it. AMQP does not tell.

use std::time::Duration;

use lapin::uri::AMQPUri;
use reqwest::{StatusCode, Url};

use crate::rules::order::{AccountName, Outcome};

/// Management answers from memory.
const TIMEOUT: Duration = Duration::from_secs(5);
/// A bound on what is read of an answer: some ten thousand bindings.
const ANSWER_MAX_BYTES: usize = 4 * 1024 * 1024;
/// Where RabbitMQ's management listens when nobody says otherwise.
const MANAGEMENT_PORT: u16 = 15672;

/// Why the bindings are not known.
#[derive(Debug, thiserror::Error)]
pub enum BindingsError {
    /// The user lacks the tag for it.
    #[error("management does not let this user look; give it the tag monitoring")]
    Denied,
    /// No such exchange.
    #[error("management knows no such exchange")]
    Missing,
    /// Nobody answers there, or not as management does.
    #[error("management does not answer there: {0}")]
    Silent(String),
}

/// Where management probably is: on the node that the URL names, without TLS. `None` where the URL
/// asks for TLS: then the password must not go in clear.
pub fn probable(url: &AMQPUri) -> Option<Url> {
    if url.scheme != lapin::uri::AMQPScheme::AMQP {
        return None;
    }
    let host = &url.authority.host;
    let host = match host.contains(':') {
        true => format!("[{host}]"),
        false => host.clone(),
    };
    Url::parse(&format!("http://{host}:{MANAGEMENT_PORT}")).ok()
}

/// The patterns that something is bound to the exchange with.
///
/// # Errors
/// When management does not say.
pub async fn patterns(
    management: &Url,
    url: &AMQPUri,
    exchange: &str,
) -> Result<Vec<String>, BindingsError> {
    // With what is behind it: "error sending request" alone tells nothing.
    let silent = |error: reqwest::Error| {
        BindingsError::Silent(format!("{:#}", anyhow::Error::from(error.without_url())))
    };
    let mut address = management.clone();
    let path = [
        "api",
        "exchanges",
        &url.vhost,
        exchange,
        "bindings",
        "source",
    ];
    match address.path_segments_mut() {
        Ok(mut segments) => drop(segments.pop_if_empty().extend(path)),
        Err(()) => return Err(BindingsError::Silent("it is no URL of a server".into())),
    }
    let mut client = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .timeout(TIMEOUT);
    if address.scheme() != "https" {
        client = client.tls_certs_only([]);
    }
    let mut asked = client.build().map_err(silent)?.get(address);
    // Whom the address itself names, the client sends by itself; both would be a bad request.
    if management.username().is_empty() {
        let user = &url.authority.userinfo;
        asked = asked.basic_auth(&user.username, Some(&user.password));
    }
    let mut answer = asked.send().await.map_err(silent)?;
    match answer.status() {
        StatusCode::OK => {}
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return Err(BindingsError::Denied),
        StatusCode::NOT_FOUND => return Err(BindingsError::Missing),
        other => return Err(BindingsError::Silent(format!("HTTP {other}"))),
    }
    let mut body = Vec::new();
    while let Some(part) = answer.chunk().await.map_err(silent)? {
        body.extend_from_slice(&part);
        if body.len() > ANSWER_MAX_BYTES {
            return Err(BindingsError::Silent("its answer has no end".into()));
        }
    }
    let bindings: serde_json::Value =
        serde_json::from_slice(&body).map_err(|error| BindingsError::Silent(error.to_string()))?;
    let bindings = bindings.as_array().map_or(&[][..], Vec::as_slice);
    let key = |binding: &serde_json::Value| Some(binding.get("routing_key")?.as_str()?.to_owned());
    Ok(bindings.iter().filter_map(key).collect())
}

/// The routing keys of results that none of these patterns takes.
pub fn untaken(patterns: &[String], accounts: &[AccountName]) -> Vec<String> {
    let known = accounts
        .iter()
        .flat_map(|account| Outcome::ALL.map(|o| format!("cancel.{account}.{}", o.as_str())));
    // A command for an account that is not known is told so, and nothing else.
    let unknown = format!("cancel._.{}", Outcome::Rejected.as_str());
    known
        .chain([unknown])
        .filter(|key| !patterns.iter().any(|pattern| takes(pattern, key)))
        .collect()
}

/// How a topic exchange matches: `*` is one word, `#` any number of them.
fn takes(pattern: &str, key: &str) -> bool {
    let pattern: Vec<&str> = pattern.split('.').collect();
    let key: Vec<&str> = key.split('.').collect();
    fits(&pattern, &key)
}

fn fits(pattern: &[&str], key: &[&str]) -> bool {
    match (pattern, key) {
        ([], _) => key.is_empty(),
        (["#", rest @ ..], _) => (0..=key.len()).any(|skipped| fits(rest, &key[skipped..])),
        (["*", rest @ ..], [_, words @ ..]) => fits(rest, words),
        ([word, rest @ ..], [first, words @ ..]) => word == first && fits(rest, words),
        ([_, ..], []) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_takes_keys_as_the_broker_does() {
        let check = |pattern: &str, key: &str, taken: bool| {
            assert_eq!(takes(pattern, key), taken, "{pattern} {key}");
        };
        check("cancel.#", "cancel.shop.failed", true);
        check("#", "cancel.shop.failed", true);
        check("#.failed", "cancel.shop.failed", true);
        check("cancel.*.failed", "cancel.shop.failed", true);
        check("cancel.*", "cancel.shop.failed", false);
        check("cancel.shop.*", "cancel.shop2.failed", false);
        check("cancel.#.shop.failed", "cancel.shop.failed", true);
        check("*.*.*.*", "cancel.shop.failed", false);
    }

    #[test]
    fn what_no_pattern_takes_is_named() {
        let accounts = [AccountName::new("shop").unwrap()];
        let patterns = ["cancel.*.cancelled".to_owned(), "cancel.shop.#".to_owned()];
        assert_eq!(untaken(&patterns, &accounts), ["cancel._.rejected"]);
        assert_eq!(untaken(&[], &accounts).len(), 7);
    }
}
