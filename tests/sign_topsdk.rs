//! Our signs against those of an independent implementation: `tests/fixtures/sign_topsdk.py` made
//! the cases with PyPI's topsdk.

use serde::Deserialize;
use wdt_cancel_worker::gateway::sign::{AppSecret, Call, Paging};

#[derive(Deserialize)]
struct Fixture {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    sid: String,
    key: String,
    secret: String,
    method: String,
    timestamp: i64,
    paging: Option<(u32, u32, bool)>,
    body: String,
    sign: String,
}

#[test]
fn signs_as_topsdk_does() {
    let fixture: Fixture = serde_json::from_str(include_str!("fixtures/sign_topsdk.json")).unwrap();
    assert!(fixture.cases.len() >= 40, "{}", fixture.cases.len());
    for case in &fixture.cases {
        let secret = AppSecret::parse(&case.secret).unwrap();
        let call = Call {
            sid: &case.sid,
            key: &case.key,
            secret: &secret,
            method: &case.method,
            timestamp: case.timestamp,
            paging: case.paging.map(|(page_size, page_no, calc_total)| Paging {
                page_size,
                page_no,
                calc_total,
            }),
        };
        let signed = call.sign(case.body.as_bytes());
        assert_eq!(signed.sign, case.sign, "{} {}", case.sid, case.body);
        assert_eq!(
            signed.query.last().map(|(name, value)| (*name, &**value)),
            Some(("sign", case.sign.as_str()))
        );
    }
}
