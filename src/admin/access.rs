//! Who may read the operators' pages, and who may act.
//!
//! | | reads | acts |
//! |---|---|---|
//! | from this machine | yes | with the token |
//! | from elsewhere | with the token | with the token |
//!
//! The token comes as `Authorization: Bearer`, from programs, or was given at the login, from which a
//! cookie is left. Where there is no token in the settings, nobody acts, and nobody reads from
//! elsewhere.
//!
//! A site that somebody looks at in the same browser can make it ask here, too. Three things are in
//! its way: the cookie is sent to no other site's request (`SameSite=Strict`), what acts wants the
//! browser's own word that it is our page that asks (`Sec-Fetch-Site`, `Origin`), and from this
//! machine without a token only who calls it by its own name may read, so that a name which somebody
//! else resolves to it does not do.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, header};
use uuid::Uuid;

/// A login lasts so long: a shift and some more.
const SESSION: Duration = Duration::from_secs(12 * 60 * 60);
/// Logins at a time; the oldest has to go.
const SESSIONS_MAX: usize = 64;
/// Wrong tokens in [`WRONG_WITHIN`]; then nobody logs in before it is over.
const WRONG_MAX: u32 = 20;
const WRONG_WITHIN: Duration = Duration::from_secs(60);
/// An operator's name, in characters.
const NAME_MAX: usize = 40;
/// The cookie's name.
const COOKIE: &str = "wdt_session";

/// Why not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Whoever asks is not known.
    Unknown,
    /// Another site's page asked.
    OtherSite,
    /// Too many wrong tokens.
    TooMany,
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Visitor {
    /// The operator and where he is; none where nobody logged in, who reads only.
    pub(super) operator: Option<Arc<str>>,
}

struct Session {
    operator: Arc<str>,
    until: Instant,
}

/// See the module.
pub(super) struct Access {
    token: Option<String>,
    sessions: Mutex<HashMap<String, Session>>,
    wrong: Mutex<(Instant, u32)>,
}

impl Access {
    pub(super) fn new(token: Option<String>) -> Self {
        Self {
            token,
            sessions: Mutex::default(),
            wrong: Mutex::new((Instant::now(), 0)),
        }
    }

    /// Whether anybody can act.
    pub(super) fn has_token(&self) -> bool {
        self.token.is_some()
    }

    /// Whether this request may be answered; `acts` when it changes something.
    pub(super) fn admit(
        &self,
        headers: &HeaderMap,
        peer: SocketAddr,
        acts: bool,
    ) -> Result<Visitor, Refusal> {
        if let Some(token) = text(headers, "authorization").and_then(|h| h.strip_prefix("Bearer "))
        {
            self.check(token)?;
            let operator = Some(described(text(headers, "x-operator").unwrap_or("-"), peer));
            return Ok(Visitor { operator });
        }
        let operator = self.session(headers);
        if acts {
            if operator.is_none() {
                return Err(Refusal::Unknown);
            }
            if !is_own_page(headers) {
                return Err(Refusal::OtherSite);
            }
            return Ok(Visitor { operator });
        }
        if operator.is_some() || is_here(headers, peer) {
            return Ok(Visitor { operator });
        }
        Err(Refusal::Unknown)
    }

    /// Logs in: the cookie to be set.
    pub(super) fn log_in(
        &self,
        headers: &HeaderMap,
        peer: SocketAddr,
        token: &str,
        name: &str,
    ) -> Result<(Arc<str>, String), Refusal> {
        if !is_own_page(headers) {
            return Err(Refusal::OtherSite);
        }
        self.check(token)?;
        let operator = described(name, peer);
        let id = Uuid::new_v4().simple().to_string();
        let now = Instant::now();
        let mut sessions = locked(&self.sessions);
        sessions.retain(|_, session| session.until > now);
        if sessions.len() >= SESSIONS_MAX {
            let oldest = sessions.iter().min_by_key(|(_, session)| session.until);
            if let Some(oldest) = oldest.map(|(id, _)| id.clone()) {
                sessions.remove(&oldest);
            }
        }
        let session = Session {
            operator: Arc::clone(&operator),
            until: now + SESSION,
        };
        sessions.insert(id.clone(), session);
        let seconds = SESSION.as_secs();
        let cookie = format!("{COOKIE}={id}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Strict");
        Ok((operator, cookie))
    }

    /// Logs out: the cookie that replaces the one there was.
    pub(super) fn log_out(&self, headers: &HeaderMap) -> String {
        if let Some(id) = cookie(headers, COOKIE) {
            locked(&self.sessions).remove(id);
        }
        format!("{COOKIE}=; Path=/; Max-Age=0; HttpOnly; SameSite=Strict")
    }

    fn session(&self, headers: &HeaderMap) -> Option<Arc<str>> {
        let id = cookie(headers, COOKIE)?;
        let sessions = locked(&self.sessions);
        let session = sessions.get(id).filter(|s| s.until > Instant::now())?;
        Some(Arc::clone(&session.operator))
    }

    fn check(&self, given: &str) -> Result<(), Refusal> {
        let now = Instant::now();
        let mut wrong = locked(&self.wrong);
        if now.duration_since(wrong.0) > WRONG_WITHIN {
            *wrong = (now, 0);
        }
        if wrong.1 >= WRONG_MAX {
            return Err(Refusal::TooMany);
        }
        match &self.token {
            Some(token) if are_same(token.as_bytes(), given.as_bytes()) => Ok(()),
            Some(_) => {
                wrong.1 += 1;
                Err(Refusal::Unknown)
            }
            None => Err(Refusal::Unknown),
        }
    }
}

/// In the same time whatever differs, so that it cannot be found out byte by byte.
fn are_same(one: &[u8], other: &[u8]) -> bool {
    let differing = one.iter().zip(other).fold(0, |all, (a, b)| all | (a ^ b));
    one.len() == other.len() && std::hint::black_box(differing) == 0
}

fn described(name: &str, peer: SocketAddr) -> Arc<str> {
    let name: String = name
        .trim()
        .chars()
        .filter(|c| !c.is_control())
        .take(NAME_MAX)
        .collect();
    let name = if name.is_empty() { "-" } else { &name };
    format!("{name} ({})", peer.ip()).into()
}

/// The browser says that a page of ours asks. One of the two headers is sent by every browser with
/// what a form posts.
fn is_own_page(headers: &HeaderMap) -> bool {
    let site = text(headers, "sec-fetch-site");
    let origin = text(headers, "origin");
    let is_ours = |origin: &str| {
        let host = origin.split_once("://").map(|(_, host)| host);
        host.is_some() && host == text(headers, "host")
    };
    let site_fits = site.is_none_or(|site| matches!(site, "same-origin" | "none"));
    (site.is_some() || origin.is_some()) && site_fits && origin.is_none_or(is_ours)
}

/// It comes from this machine, straight, and calls it by its own name.
fn is_here(headers: &HeaderMap, peer: SocketAddr) -> bool {
    let is_passed_on = ["forwarded", "x-forwarded-for", "via"]
        .iter()
        .any(|name| headers.contains_key(*name));
    let names_us = |host: &str| {
        let name = match host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
            _ => host,
        };
        let address = name.trim_start_matches('[').trim_end_matches(']');
        let is_loopback = |ip: IpAddr| ip.is_loopback();
        name == "localhost" || address.parse().is_ok_and(is_loopback)
    };
    peer.ip().to_canonical().is_loopback()
        && !is_passed_on
        && text(headers, "host").is_none_or(names_us)
}

pub(super) fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// A cookie's value.
pub(super) fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|header| header.to_str().ok())
        .flat_map(|header| header.split(';'))
        .find_map(|pair| pair.trim().strip_prefix(name)?.strip_prefix('='))
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while it is held.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "0123456789abcdef";

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().expect("a header"));
        }
        headers
    }

    fn here() -> SocketAddr {
        "127.0.0.1:5000".parse().expect("an address")
    }

    fn elsewhere() -> SocketAddr {
        "192.0.2.7:5000".parse().expect("an address")
    }

    #[test]
    fn reading_is_for_this_machine_by_its_own_name() {
        let access = Access::new(None);
        let reads = |pairs: &[(&'static str, &str)], peer| {
            access.admit(&headers(pairs), peer, false).is_ok()
        };
        for host in [
            "localhost:9464",
            "127.0.0.1:9464",
            "[::1]:9464",
            "localhost",
        ] {
            assert!(reads(&[("host", host)], here()), "{host}");
        }
        for host in [
            "evil.example:9464",
            "127.0.0.1.evil.example",
            "localhost.evil.example:80",
            "",
        ] {
            assert!(!reads(&[("host", host)], here()), "{host}");
        }
        assert!(!reads(
            &[("host", "localhost"), ("x-forwarded-for", "1.2.3.4")],
            here()
        ));
        assert!(!reads(&[("host", "localhost")], elsewhere()));
    }

    #[test]
    fn who_acts_has_logged_in_and_asks_from_our_page() {
        let access = Access::new(Some(TOKEN.into()));
        let own = [("host", "a:1"), ("origin", "http://a:1")];
        let wrong = access.log_in(&headers(&own), here(), "wrong", "li");
        assert_eq!(wrong, Err(Refusal::Unknown));
        let (operator, cookie) = access
            .log_in(&headers(&own), elsewhere(), TOKEN, " li\n")
            .expect("logged in");
        assert_eq!(&*operator, "li (192.0.2.7)");
        assert!(cookie.contains("HttpOnly") && cookie.contains("SameSite=Strict"));
        let cookie = cookie.split(';').next().expect("its value");
        let acts = |more: &[(&'static str, &str)]| {
            let all = [&[("host", "a:1"), ("cookie", cookie)], more].concat();
            access.admit(&headers(&all), elsewhere(), true)
        };
        for own in [
            &[("origin", "http://a:1")][..],
            &[("sec-fetch-site", "same-origin")],
            &[("sec-fetch-site", "same-origin"), ("origin", "http://a:1")],
        ] {
            assert!(acts(own).is_ok(), "{own:?}");
        }
        for other in [
            &[][..],
            &[("origin", "http://b:1")],
            &[("origin", "null")],
            &[("sec-fetch-site", "same-site")],
            &[("sec-fetch-site", "cross-site"), ("origin", "http://a:1")],
            &[("sec-fetch-site", "same-origin"), ("origin", "http://b")],
        ] {
            assert_eq!(acts(other), Err(Refusal::OtherSite), "{other:?}");
        }
        let read = headers(&[("host", "a:1"), ("cookie", cookie)]);
        assert!(access.admit(&read, elsewhere(), false).is_ok());
        let _ = access.log_out(&read);
        assert_eq!(
            access.admit(&read, elsewhere(), false),
            Err(Refusal::Unknown)
        );
    }

    #[test]
    fn a_program_shows_the_token_and_guesses_are_few() {
        let access = Access::new(Some(TOKEN.into()));
        let bearer = |token: &str| {
            headers(&[
                ("authorization", &format!("Bearer {token}")),
                ("x-operator", "ci"),
            ])
        };
        let visitor = access
            .admit(&bearer(TOKEN), elsewhere(), true)
            .expect("it may");
        assert_eq!(visitor.operator.as_deref(), Some("ci (192.0.2.7)"));
        for _ in 0..WRONG_MAX {
            let refused = access.admit(&bearer("0123456789abcdeX"), elsewhere(), true);
            assert_eq!(refused, Err(Refusal::Unknown));
        }
        assert_eq!(
            access.admit(&bearer(TOKEN), elsewhere(), true),
            Err(Refusal::TooMany)
        );
        let nobody = Access::new(None);
        assert_eq!(
            nobody.admit(&bearer(""), here(), true),
            Err(Refusal::Unknown)
        );
    }

    #[test]
    fn logins_are_bounded() {
        let access = Access::new(Some(TOKEN.into()));
        let own = headers(&[("host", "a"), ("origin", "http://a")]);
        for _ in 0..SESSIONS_MAX * 2 {
            access.log_in(&own, here(), TOKEN, "li").expect("logged in");
        }
        assert_eq!(locked(&access.sessions).len(), SESSIONS_MAX);
    }
}
