//! How a request is signed.
//!
//! The sign is the lower-case hex MD5 of the secret, then every signed parameter in ascending order
//! of its name (name, value, no separators), then the secret again, all of it UTF-8. Values are
//! signed raw; URL encoding comes afterwards. The platform publishes one worked sample; it and
//! three more vectors are this module's tests, and `tests/fixtures/sign_topsdk.json` holds cases
//! that an independent implementation of the same scheme signed.
//!
//! There is no nonce: a signed request can be repeated by anyone who sees it until its timestamp is
//! too old, so signs are as secret as credentials and belong in no log.

use std::borrow::Cow;
use std::fmt;

use md5::{Digest, Md5};

/// Cancels stock-out documents (其他出库业务单据取消): one argument, the list of their numbers.
pub const CANCEL: &str = "wms.stockother.Out.cancelOrder";
/// Looks stock-out documents up (其它出库业务单查询), paged.
pub const QUERY: &str = "wms.stockother.OutQuery.queryWithDetail";
/// The gateway's clock; no arguments.
pub const NOW: &str = "system.Core.now";

/// The only version of the protocol.
pub const VERSION: &str = "1.0";
/// 2012-01-01 00:00 in Beijing as Unix seconds: the zero of the gateway's timestamps.
pub const EPOCH_OFFSET_SECONDS: i64 = 1_325_347_200;

/// Unix seconds as the gateway counts them.
pub const fn timestamp(unix_seconds: i64) -> i64 {
    unix_seconds.saturating_sub(EPOCH_OFFSET_SECONDS)
}

/// What the platform hands out as the app secret, `SECRET:SALT`. The salt travels in every URL, the
/// secret never leaves this type, and neither is printed by `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct AppSecret {
    secret: Box<str>,
    salt: Box<str>,
}

/// Why a text is not an app secret. Holds nothing of the text, which may be half a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AppSecretError {
    /// There is no colon in it.
    #[error("has no colon; the platform's app secret reads SECRET:SALT")]
    NoColon,
    /// Nothing stands before the first colon.
    #[error("has nothing before the colon; the platform's app secret reads SECRET:SALT")]
    EmptySecret,
    /// Nothing stands after the first colon.
    #[error("has nothing after the colon; the platform's app secret reads SECRET:SALT")]
    EmptySalt,
}

impl AppSecret {
    /// Splits at the first colon; a later one belongs to the salt.
    pub fn parse(text: &str) -> Result<Self, AppSecretError> {
        match text.split_once(':') {
            None => Err(AppSecretError::NoColon),
            Some(("", _)) => Err(AppSecretError::EmptySecret),
            Some((_, "")) => Err(AppSecretError::EmptySalt),
            Some((secret, salt)) => Ok(Self {
                secret: secret.into(),
                salt: salt.into(),
            }),
        }
    }

    /// The part that is sent.
    pub fn salt(&self) -> &str {
        &self.salt
    }
}

impl fmt::Debug for AppSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Which part of a paged method's result is asked for. Paged methods take and sign all three,
/// other methods none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Paging {
    /// Rows in one page.
    pub page_size: u32,
    /// The page, from 0.
    pub page_no: u32,
    /// Whether the answer shall count all rows as well.
    pub calc_total: bool,
}

/// Everything but the body that goes into one request.
#[derive(Debug, Clone, Copy)]
pub struct Call<'a> {
    /// The seller (卖家账号).
    pub sid: &'a str,
    /// The app key.
    pub key: &'a str,
    /// The app secret.
    pub secret: &'a AppSecret,
    /// One of the methods above.
    pub method: &'a str,
    /// Seconds since 2012-01-01 in Beijing, see [`timestamp()`]. The gateway takes ±120.
    pub timestamp: i64,
    /// For paged methods.
    pub paging: Option<Paging>,
}

/// A signed request's query, in the order in which it is sent, not yet URL encoded.
///
/// Has no `Debug`: whoever reads it can repeat the request.
#[derive(Clone, PartialEq, Eq)]
pub struct Signed<'a> {
    /// 32 lower-case hex digits; the last pair of `query` again.
    pub sign: String,
    /// `sid`, `key`, `salt`, `method`, `timestamp`, `v`, for paged methods `page_size`, `page_no`,
    /// `calc_total`, and `sign`.
    pub query: Vec<(&'static str, Cow<'a, str>)>,
}

impl<'a> Call<'a> {
    /// Signs the call with these bytes as its body; exactly they must be sent.
    pub fn sign(&self, body: &[u8]) -> Signed<'a> {
        let mut query: Vec<(&'static str, Cow<'a, str>)> = vec![
            ("sid", self.sid.into()),
            ("key", self.key.into()),
            ("salt", self.secret.salt().into()),
            ("method", self.method.into()),
            ("timestamp", self.timestamp.to_string().into()),
            ("v", VERSION.into()),
        ];
        if let Some(paging) = self.paging {
            query.extend([
                ("page_size", paging.page_size.to_string().into()),
                ("page_no", paging.page_no.to_string().into()),
                (
                    "calc_total",
                    if paging.calc_total { "1" } else { "0" }.into(),
                ),
            ]);
        }
        let sign = sign(
            self.secret,
            query.iter().map(|(name, value)| (*name, value.as_ref())),
            body,
        );
        query.push(("sign", sign.clone().into()));
        Signed { sign, query }
    }
}

/// The sign of these query parameters, `sign` itself left out, with this body. The parameters may
/// come in any order.
pub fn sign<'p>(
    secret: &AppSecret,
    query: impl IntoIterator<Item = (&'p str, &'p str)>,
    body: &[u8],
) -> String {
    let mut params: Vec<(&str, &[u8])> = query
        .into_iter()
        .map(|(name, value)| (name, value.as_bytes()))
        .collect();
    params.push(("body", body));
    params.sort_unstable();

    let mut md5 = Md5::new();
    md5.update(secret.secret.as_bytes());
    for (name, value) in params {
        md5.update(name.as_bytes());
        md5.update(value);
    }
    md5.update(secret.secret.as_bytes());
    hex(&md5.finalize())
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes
        .iter()
        .flat_map(|b| [b >> 4, b & 15])
        .map(|digit| char::from(DIGITS[usize::from(digit)]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEMO: &str = "testsecret:testsalt";

    fn demo<'a>(secret: &'a AppSecret, method: &'a str, paging: Option<Paging>) -> Call<'a> {
        Call {
            sid: "demo_sid",
            key: "demo-app-key",
            secret,
            method,
            timestamp: 480_000_000,
            paging,
        }
    }

    #[test]
    fn official_sample() {
        let secret =
            AppSecret::parse("693f9fed686bfe13441385da98b436b6:dd488d0802b1e431e4c72cd355847853")
                .unwrap();
        let call = Call {
            sid: "wdterp30",
            key: "czhc",
            secret: &secret,
            method: "wms.stockout.Sales.weighingExt",
            timestamp: 232_623_153,
            paging: None,
        };
        assert_eq!(
            call.sign(br#"["xc109393939393939","",1.2,0,false]"#).sign,
            "20f557aaf9190797c581bbceeb6d5a5c"
        );
    }

    #[test]
    fn ascii() {
        let secret = AppSecret::parse(DEMO).unwrap();
        let signed = demo(&secret, CANCEL, None).sign(br#"[["QR3796","QR3795","QR3797"]]"#);
        assert_eq!(signed.sign, "45d6146b172534a9012e09dacadbc0a0");
    }

    #[test]
    fn chinese_is_signed_as_utf8() {
        let secret = AppSecret::parse(DEMO).unwrap();
        let body = r#"[["其他出库-20261123-001","QC202409200002-1"]]"#;
        assert_eq!(
            demo(&secret, CANCEL, None).sign(body.as_bytes()).sign,
            "71e3ddadf20e2c2e1d07776d50ed9ee2"
        );
    }

    #[test]
    fn paging_is_signed_and_sent_in_order() {
        let secret = AppSecret::parse(DEMO).unwrap();
        let paging = Paging {
            page_size: 1,
            page_no: 0,
            calc_total: true,
        };
        let signed =
            demo(&secret, QUERY, Some(paging)).sign(br#"[{"other_out_no":"QC202409240008"}]"#);
        assert_eq!(signed.sign, "ed0ec1acfa5bbcd09066663777624fc5");
        let query: Vec<(&str, &str)> = signed.query.iter().map(|(n, v)| (*n, &**v)).collect();
        assert_eq!(
            query,
            [
                ("sid", "demo_sid"),
                ("key", "demo-app-key"),
                ("salt", "testsalt"),
                ("method", QUERY),
                ("timestamp", "480000000"),
                ("v", "1.0"),
                ("page_size", "1"),
                ("page_no", "0"),
                ("calc_total", "1"),
                ("sign", "ed0ec1acfa5bbcd09066663777624fc5"),
            ]
        );
    }

    #[test]
    fn a_body_that_is_not_text_is_signed_too() {
        let secret = AppSecret::parse(DEMO).unwrap();
        let call = demo(&secret, CANCEL, None);
        assert_ne!(call.sign(b"\xff").sign, call.sign(b"\xfe").sign);
    }

    #[test]
    fn the_app_secret_splits_at_the_first_colon() {
        let secret = AppSecret::parse("a:b:c").unwrap();
        assert_eq!((&*secret.secret, secret.salt()), ("a", "b:c"));
        for (text, error) in [
            ("", AppSecretError::NoColon),
            ("abc", AppSecretError::NoColon),
            (":", AppSecretError::EmptySecret),
            (":salt", AppSecretError::EmptySecret),
            ("secret:", AppSecretError::EmptySalt),
        ] {
            assert_eq!(AppSecret::parse(text), Err(error), "{text:?}");
        }
    }

    #[test]
    fn secrets_are_not_printed() {
        let secret = AppSecret::parse(DEMO).unwrap();
        assert_eq!(format!("{secret:?}"), "***");
        let call = format!("{:?}", demo(&secret, CANCEL, None));
        assert!(
            !call.contains("testsecret") && !call.contains("testsalt"),
            "{call}"
        );
    }

    #[test]
    fn timestamps_count_from_2012_in_beijing() {
        assert_eq!(timestamp(EPOCH_OFFSET_SECONDS), 0);
        assert_eq!(timestamp(1_557_970_353), 232_623_153);
    }
}
