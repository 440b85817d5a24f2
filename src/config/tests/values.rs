//! What each setting may be.

use super::*;

/// Loads `name = value` beside the least, and says whether it was taken.
fn check(name: &str, value: &str, fits: bool) {
    let loaded = load_with(&[(name, value)]);
    assert_eq!(loaded.is_ok(), fits, "{name}={value:?}: {loaded:?}");
    if !fits {
        let problem = only_problem(loaded);
        assert!(problem.contains(&format!("env {name}")), "{problem}");
        let remedy = problem.contains("would do") || problem.contains("a pattern has");
        assert!(remedy, "{problem}");
    }
}

#[test]
fn values_of_the_file_have_their_natural_types() {
    let check = |text: &str, fits: bool| {
        let loaded = load_file(text, &LEAST);
        assert_eq!(loaded.is_ok(), fits, "{text}: {loaded:?}");
        if !fits {
            let problem = only_problem(loaded);
            assert!(
                problem.contains("from file") && problem.contains("would do"),
                "{problem}"
            );
        }
    };
    check("api.concurrency = 3", true);
    check("api.concurrency = \"3\"", false);
    check("api.concurrency = 3.0", false);
    check("api.concurrency = {}", false);
    check("amqp.declare = false", true);
    check("amqp.declare = \"false\"", false);
    check("api.timeout = \"1m\"", true);
    check("api.timeout = 60", false);
    check("api.timeout = 07:32:00", false);
    check("amqp.reply_to_allow = []", true);
    check("amqp.reply_to_allow = [\"a\", \"b\"]", true);
    check("amqp.reply_to_allow = \"a,b\"", false);
    check("amqp.reply_to_allow = [1]", false);
    check("amqp.queue = 1", false);
    check("[api]", true);
    check("[accounts]", true);
}

#[test]
fn bounds_hold_at_both_ends() {
    for (name, least, most, below, above) in [
        ("WDT_API__TIMEOUT", "100ms", "10m", "99ms", "10m1ms"),
        ("WDT_API__MAX_ORDERS_PER_CALL", "1", "1000", "0", "1001"),
        ("WDT_API__CALLS_PER_MINUTE", "0", "60000", "-1", "60001"),
        ("WDT_API__CONCURRENCY", "1", "64", "0", "65"),
        (
            "WDT_ACCOUNTS__DEFAULT__MAX_ORDERS_PER_CALL",
            "1",
            "1000",
            "0",
            "1001",
        ),
        (
            "WDT_ACCOUNTS__DEFAULT__CALLS_PER_MINUTE",
            "0",
            "60000",
            "-1",
            "60001",
        ),
        ("WDT_ACCOUNTS__DEFAULT__CONCURRENCY", "1", "64", "0", "65"),
        ("WDT_RETRY__MAX_ATTEMPTS", "1", "100", "0", "101"),
        ("WDT_RETRY__MAX_AGE", "1s", "30d", "999ms", "721h"),
        ("WDT_LEDGER__RETENTION", "1h", "3650d", "59m", "3651d"),
    ] {
        check(name, least, true);
        check(name, most, true);
        check(name, below, false);
        check(name, above, false);
        check(name, "", false);
    }
}

#[test]
fn names_and_words_are_checked() {
    check("WDT_AMQP__QUEUE", "", false);
    check("WDT_AMQP__QUEUE", &"q".repeat(255), true);
    check("WDT_AMQP__QUEUE", &"q".repeat(256), false);
    check("WDT_AMQP__EXCHANGE", "amq.topic", false);
    check("WDT_AMQP__EXCHANGE", "amqp.topic", true);
    check("WDT_AMQP__DEAD_QUEUE", "amq.dead", false);
    check("WDT_AMQP__DECLARE", "yes", false);
    check("WDT_AMQP__REPLY_TO_ALLOW", "", true);
    check("WDT_AMQP__REPLY_TO_ALLOW", "a,,b", false);
    check("WDT_AMQP__REPLY_TO_ALLOW", &vec!["a"; 100].join(","), true);
    check("WDT_AMQP__REPLY_TO_ALLOW", &vec!["a"; 101].join(","), false);
    check("WDT_AMQP__REPLY_TO_ALLOW", &"a".repeat(256), false);
    check("WDT_API__VERIFY", "never", true);
    check("WDT_API__VERIFY", "sometimes", false);
    check("WDT_ADMIN__LISTEN", "0.0.0.0:0", true);
    check("WDT_ADMIN__LISTEN", "localhost:9464", false);
    check("WDT_ADMIN__LISTEN", "9464", false);
    check("WDT_LOG__FORMAT", "text", true);
    check("WDT_LOG__FORMAT", "xml", false);

    let problem = only_problem(load_with(&[(
        "WDT_AMQP__DEAD_QUEUE",
        "wdt.cancel.commands",
    )]));
    assert!(
        problem.contains("both are \"wdt.cancel.commands\""),
        "{problem}"
    );
}

/// The least, with this in place of its own.
fn check_required(name: &str, value: &str, fits: bool) {
    let mut given = LEAST;
    for entry in &mut given {
        if entry.0 == name {
            entry.1 = value;
        }
    }
    let loaded = load_env(&given);
    assert_eq!(loaded.is_ok(), fits, "{name}={value:?}: {loaded:?}");
}

#[test]
fn the_gateways_url_is_whole_and_plain() {
    for name in ["WDT_API__URL", "WDT_ACCOUNTS__DEFAULT__URL"] {
        let check = |value: &str, fits: bool| {
            if name == "WDT_API__URL" {
                check_required(name, value, fits);
            } else {
                check(name, value, fits);
            }
        };
        check("http://wdt.wangdian.cn/openapi", true);
        check("https://127.0.0.1:8443/", true);
        check("wdt.wangdian.cn/openapi", false);
        check("ftp://wdt.wangdian.cn/openapi", false);
        check("http://wdt.wangdian.cn/openapi?", false);
        check("http://wdt.wangdian.cn/openapi?v=1", false);
        check("http://wdt.wangdian.cn/openapi#x", false);
        check("http://user@wdt.wangdian.cn/openapi", false);
        check("http://", false);
        check("", false);
    }
}

#[test]
fn credentials_are_whole() {
    check_required("WDT_ACCOUNTS__DEFAULT__SID", " ", false);
    check_required("WDT_ACCOUNTS__DEFAULT__KEY", "", false);
    check_required("WDT_ACCOUNTS__DEFAULT__SECRET", "a:b:c", true);
    check_required("WDT_ACCOUNTS__DEFAULT__SECRET", "a:", false);
    check_required("WDT_ACCOUNTS__DEFAULT__SECRET", ":b", false);
    check_required("WDT_ACCOUNTS__DEFAULT__SECRET", "ab", false);
}

#[test]
fn brokers_urls_are_all_checked() {
    check(
        "WDT_AMQP__URL",
        "amqps://u:p@mq.example/v?heartbeat=10",
        true,
    );
    check("WDT_AMQP__URL", "amqp://mq1,amqp://mq2,amqp://mq3", true);
    check("WDT_AMQP__URL", "amqp://mq1,", false);
    check("WDT_AMQP__URL", "http://mq1", false);
    check("WDT_AMQP__URL", "mq1:5672", false);
    check("WDT_AMQP__URL", "amqp://", false);
    check("WDT_AMQP__URL", "amqp://[::1]:5672", false);
    check("WDT_AMQP__URL", "amqp://mq1?heartbeat=often", false);
    check("WDT_AMQP__URL", "", false);

    let problem = only_problem(load_with(&[("WDT_AMQP__URL", "amqp://mq1,http://mq2")]));
    assert!(problem.contains("URL 2 of 2"), "{problem}");
}

#[test]
fn a_ledger_is_a_path_or_postgres() {
    check("WDT_LEDGER__URL", "/var/lib/wdt/ledger", true);
    check("WDT_LEDGER__URL", "ledger.sqlite", true);
    check("WDT_LEDGER__URL", "postgresql://db/wdt", true);
    check("WDT_LEDGER__URL", "Postgres://db/wdt", true);
    check("WDT_LEDGER__URL", "mysql://db/wdt", false);
    check("WDT_LEDGER__URL", "postgres:/u:p@db/wdt", false);
    check("WDT_LEDGER__URL", "host=db password=p", false);
    check("WDT_LEDGER__URL", "", false);
}
