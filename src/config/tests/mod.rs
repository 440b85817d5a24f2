//! The settings from the outside: files and variables in, values or problems out.

mod secrets;
mod values;

use super::*;
use std::fs;
use tempfile::TempDir;

/// The least that is complete.
const LEAST: [(&str, &str); 4] = [
    ("WDT_API__URL", "http://gateway.example/openapi"),
    ("WDT_ACCOUNTS__DEFAULT__SID", "sid"),
    ("WDT_ACCOUNTS__DEFAULT__KEY", "app-key"),
    ("WDT_ACCOUNTS__DEFAULT__SECRET", "s3cret:s4lt"),
];

fn variables(given: &[(&str, &str)]) -> Vec<(String, String)> {
    given
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

fn load_env(given: &[(&str, &str)]) -> Result<Loaded, ConfigError> {
    Config::load(None, variables(given).into_iter())
}

/// The least, and this too.
fn load_with(given: &[(&str, &str)]) -> Result<Loaded, ConfigError> {
    load_env(&[&LEAST, given].concat())
}

/// A settings file of this text, and these variables.
fn load_file(text: &str, given: &[(&str, &str)]) -> Result<Loaded, ConfigError> {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("wdt.toml");
    fs::write(&path, text).unwrap();
    Config::load(Some(&path), variables(given).into_iter())
}

/// The one problem of this load.
fn only_problem(loaded: Result<Loaded, ConfigError>) -> String {
    let error = loaded.unwrap_err();
    let [problem] = error.problems() else {
        panic!("not one problem: {error}");
    };
    problem.clone()
}

fn account<'c>(loaded: &'c Loaded, name: &str) -> &'c Account {
    &loaded.config.accounts[&AccountName::new(name).unwrap()]
}

/// Value and origin of a setting in force.
fn in_force(loaded: &Loaded, name: &str) -> (String, String) {
    let setting = loaded.origins.iter().find(|s| s.name == name).unwrap();
    let value = setting.value.clone().unwrap_or_else(|| "-".to_owned());
    (value, setting.origin.to_string())
}

#[test]
fn the_defaults_are_the_contracts() {
    let loaded = load_with(&[]).unwrap();
    let listed: Vec<(String, String)> = loaded
        .origins
        .iter()
        .filter(|s| s.origin == Origin::Default)
        .map(|s| (s.name.clone(), s.value.clone().unwrap_or_default()))
        .collect();
    let expected = [
        ("amqp.url", "amqp://guest:***@127.0.0.1:5672/%2f"),
        ("amqp.queue", "wdt.cancel.commands"),
        ("amqp.exchange", "wdt.cancel.results"),
        ("amqp.dead_queue", "wdt.cancel.commands.dead"),
        ("amqp.declare", "true"),
        (
            "amqp.reply_to_allow",
            "amq.rabbitmq.reply-to*,amq.gen-*,*.replies",
        ),
        ("api.timeout", "30s"),
        ("api.max_orders_per_call", "20"),
        ("api.calls_per_minute", "60"),
        ("api.concurrency", "2"),
        ("api.verify", "in_doubt"),
        ("ledger.url", "./wdt-cancel-worker.ledger"),
        ("ledger.retention", "30d"),
        ("retry.max_attempts", "8"),
        ("retry.max_age", "24h"),
        ("admin.listen", "127.0.0.1:9464"),
        ("log.format", "text on a terminal, else json"),
    ];
    assert_eq!(listed, variables(&expected));

    let Config {
        amqp,
        api,
        accounts,
        ledger,
        retry,
        admin,
        log,
    } = loaded.config;
    assert_eq!(amqp.urls.len(), 1);
    assert_eq!(amqp.urls[0].expose().authority.userinfo.password, "guest");
    assert_eq!(amqp.urls[0].expose().vhost, "/");
    assert!(amqp.declare);
    assert_eq!(amqp.reply_to_allow.len(), 3);
    assert_eq!(api.timeout, Duration::from_secs(30));
    assert_eq!(api.verify, Verify::InDoubt);
    assert_eq!(
        ledger.url,
        LedgerUrl::Path(PathBuf::from("./wdt-cancel-worker.ledger"))
    );
    assert_eq!(ledger.retention, Duration::from_secs(30 * 86_400));
    assert_eq!(retry.max_attempts, 8);
    assert_eq!(retry.max_age, Duration::from_secs(86_400));
    assert_eq!(admin.listen, "127.0.0.1:9464".parse().unwrap());
    assert_eq!(log.format, None);

    let account = &accounts[&AccountName::new("default").unwrap()];
    assert_eq!(accounts.len(), 1);
    assert_eq!(account.url.as_str(), "http://gateway.example/openapi");
    assert_eq!(account.sid, "sid");
    assert_eq!(account.key.expose(), "app-key");
    assert_eq!(account.secret.expose(), "s3cret");
    assert_eq!(account.salt.expose(), "s4lt");
    assert_eq!(account.calls_per_minute, 60);
    assert_eq!(account.concurrency, 2);
    assert_eq!(account.max_orders_per_call, 20);
}

/// Every setting of the contract, each other than its default.
const WHOLE_FILE: &str = r#"
[amqp]
url = "amqp://u:p@mq1/v, amqps://u:p@mq2/v"
queue = "q"
exchange = "x"
dead_queue = "d"
declare = false
reply_to_allow = ["a.*"]
[api]
url = "https://gateway.example/openapi"
timeout = "5s"
max_orders_per_call = 10
calls_per_minute = 0
concurrency = 3
verify = "always"
[accounts.Main]
sid = "sid"
key = "k"
secret = "a:b:c"
url = "http://other.example/openapi"
calls_per_minute = 30
concurrency = 1
max_orders_per_call = 5
[accounts.second]
sid = "sid2"
key = "k2"
secret = "d:e"
[ledger]
url = "postgres://w:pw@db/wdt"
retention = "2h"
[retry]
max_attempts = 3
max_age = "90m"
[admin]
listen = "[::]:80"
[log]
format = "json"
"#;

#[test]
fn a_file_gives_every_setting() {
    let loaded = load_file(WHOLE_FILE, &[]).unwrap();
    let Config {
        amqp,
        api,
        ledger,
        retry,
        admin,
        log,
        ..
    } = &loaded.config;
    let hosts: Vec<_> = amqp
        .urls
        .iter()
        .map(|url| url.expose().authority.host.as_str())
        .collect();
    assert_eq!(hosts, ["mq1", "mq2"]);
    assert_eq!(
        (&*amqp.queue, &*amqp.exchange, &*amqp.dead_queue),
        ("q", "x", "d")
    );
    assert!(!amqp.declare);
    assert_eq!(amqp.reply_to_allow, [Pattern::new("a.*").unwrap()]);
    assert_eq!(api.timeout, Duration::from_secs(5));
    assert_eq!(api.verify, Verify::Always);
    let LedgerUrl::Postgres(url) = &ledger.url else {
        panic!("{:?}", ledger.url);
    };
    assert_eq!(url.expose(), "postgres://w:pw@db/wdt");
    assert_eq!(url.to_string(), "postgres://w:***@db/wdt");
    assert_eq!(ledger.retention, Duration::from_secs(7200));
    assert_eq!(retry.max_attempts, 3);
    assert_eq!(retry.max_age, Duration::from_secs(5400));
    assert_eq!(admin.listen, "[::]:80".parse().unwrap());
    assert_eq!(log.format, Some(LogFormat::Json));

    let main = account(&loaded, "Main");
    assert_eq!(main.url.as_str(), "http://other.example/openapi");
    assert_eq!(
        (&**main.secret.expose(), &**main.salt.expose()),
        ("a", "b:c")
    );
    assert_eq!(main.calls_per_minute, 30);
    assert_eq!((main.concurrency, main.max_orders_per_call), (1, 5));
    let second = account(&loaded, "second");
    assert_eq!(second.url.as_str(), "https://gateway.example/openapi");
    assert_eq!(second.calls_per_minute, 0);
    assert_eq!((second.concurrency, second.max_orders_per_call), (3, 10));
}

#[test]
fn every_setting_in_force_is_listed_in_the_contracts_order() {
    let loaded = load_file(WHOLE_FILE, &[("WDT_ACCOUNTS__SECOND__CONCURRENCY", "4")]).unwrap();
    let names: Vec<_> = loaded.origins.iter().map(|s| s.name.as_str()).collect();
    let of_account = |name: &str| {
        [
            "sid",
            "key",
            "secret",
            "url",
            "calls_per_minute",
            "concurrency",
            "max_orders_per_call",
        ]
        .map(|key| format!("accounts.{name}.{key}"))
    };
    let expected = [
        &[
            "amqp.url",
            "amqp.queue",
            "amqp.exchange",
            "amqp.dead_queue",
            "amqp.declare",
            "amqp.reply_to_allow",
            "api.url",
            "api.timeout",
            "api.max_orders_per_call",
            "api.calls_per_minute",
            "api.concurrency",
            "api.verify",
        ]
        .map(str::to_owned)[..],
        &of_account("Main"),
        &of_account("second"),
        &[
            "ledger.url",
            "ledger.retention",
            "retry.max_attempts",
            "retry.max_age",
            "admin.listen",
            "log.format",
        ]
        .map(str::to_owned),
    ]
    .concat();
    assert_eq!(names, expected);

    let check = |name: &str, value: &str, origin: &str| {
        let (found, from) = in_force(&loaded, name);
        assert_eq!(found, value, "{name}");
        assert!(from.starts_with(origin), "{name}: {from}");
    };
    check(
        "amqp.url",
        "amqp://u:***@mq1/v,amqps://u:***@mq2/v",
        "file ",
    );
    check("amqp.reply_to_allow", "a.*", "file ");
    check("accounts.Main.key", "***", "file ");
    check("accounts.Main.secret", "***", "file ");
    check("accounts.Main.concurrency", "1", "file ");
    check(
        "accounts.second.url",
        "https://gateway.example/openapi",
        "api.url",
    );
    check(
        "accounts.second.calls_per_minute",
        "0",
        "api.calls_per_minute",
    );
    check(
        "accounts.second.concurrency",
        "4",
        "env WDT_ACCOUNTS__SECOND__CONCURRENCY",
    );
    check("ledger.url", "postgres://w:***@db/wdt", "file ");
}

#[test]
fn the_environment_goes_before_the_file() {
    let loaded = load_file(
        WHOLE_FILE,
        &[
            ("WDT_API__TIMEOUT", "7s"),
            ("wdt_amqp__declare", "1"),
            ("WDT_AMQP__REPLY_TO_ALLOW", "x.*, y"),
            ("WDT_RETRY__MAX_ATTEMPTS", "9"),
            ("WDT_ACCOUNTS__MAIN__SID", "from env"),
            ("PATH", "/bin"),
            ("WDTX", "not ours"),
            ("WDT_COMMIT", "0123456789ab"),
        ],
    )
    .unwrap();
    assert_eq!(loaded.config.api.timeout, Duration::from_secs(7));
    assert!(loaded.config.amqp.declare);
    assert_eq!(loaded.config.amqp.reply_to_allow.len(), 2);
    assert_eq!(loaded.config.retry.max_attempts, 9);
    assert_eq!(account(&loaded, "Main").sid, "from env");
    assert_eq!(loaded.config.accounts.len(), 2);
    assert_eq!(
        in_force(&loaded, "amqp.declare"),
        ("1".to_owned(), "env wdt_amqp__declare".to_owned())
    );
}

#[test]
fn the_file_is_the_arguments_or_the_variables() {
    let folder = TempDir::new().unwrap();
    let (one, two) = (folder.path().join("1.toml"), folder.path().join("2.toml"));
    fs::write(&one, "[amqp]\nqueue = \"one\"").unwrap();
    fs::write(&two, "[amqp]\nqueue = \"two\"").unwrap();
    let env = [&LEAST[..], &[("WDT_CONFIG", two.to_str().unwrap())]].concat();

    let by_argument = Config::load(Some(&one), variables(&env).into_iter()).unwrap();
    assert_eq!(by_argument.config.amqp.queue, "one");
    let by_variable = load_env(&env).unwrap();
    assert_eq!(by_variable.config.amqp.queue, "two");
    let (_, origin) = in_force(&by_variable, "amqp.queue");
    assert_eq!(origin, format!("file {}", two.display()));
}

#[test]
fn a_file_that_cannot_be_read_is_the_problem_and_nothing_it_would_have_said() {
    let problem = only_problem(load_env(&[("WDT_CONFIG", "/nowhere/wdt.toml")]));
    assert!(problem.contains("/nowhere/wdt.toml"), "{problem}");

    let problem = only_problem(load_file("[amqp]\nqueue = \"q\"\nurl = \"hunter2\n", &[]));
    assert!(problem.contains("line 3"), "{problem}");
    assert!(!problem.contains("hunter2"), "{problem}");

    let too_long = format!("#{}", "x".repeat(1024 * 1024));
    let problem = only_problem(load_file(&too_long, &[]));
    assert!(problem.contains("more than 1048576 bytes"), "{problem}");
    let just_fits = "#".to_owned() + &"x".repeat(1024 * 1024 - 1);
    assert!(load_file(&just_fits, &LEAST).is_ok());
}

#[test]
fn an_unknown_name_is_told_with_the_nearest_known_one() {
    let file = |text: &str, given: &str, nearest: &str| {
        let problem = only_problem(load_file(text, &LEAST));
        assert!(
            problem.starts_with(&format!("{given} (from file ")),
            "{problem}"
        );
        assert!(problem.ends_with(&format!("key is {nearest}")), "{problem}");
    };
    file("api.timout = \"1s\"", "api.timout", "api.timeout");
    file("[amq]\nqueue = \"q\"", "amq.queue", "amqp.queue");
    file("concurrency = 1", "concurrency", "api.concurrency");
    file("[rety]\nmax_age = \"1h\"", "rety.max_age", "retry.max_age");
    file("\"a\\nb\" = 1", "a\\nb", "api.url");
    file("amqp = 3", "amqp", "amqp.url");
    file("api.url.x = 1", "api.url.x", "api.url");
    file("\"api.url\" = \"x\"", "api.url", "api.url");
    file("accounts.sid = \"x\"", "accounts.sid", "accounts.NAME.sid");
    file(
        "accounts.default.secretfile = \"x\"",
        "accounts.default.secretfile",
        "accounts.default.secret_file",
    );
    // Only a secret can be in its own file.
    file("api.url_file = \"x\"", "api.url_file", "amqp.url_file");
    file("API.URL = \"x\"", "API.URL", "api.url");

    let env = |name: &str, key: &str, variable: &str| {
        let problem = only_problem(load_with(&[(name, "x")]));
        assert!(
            problem.starts_with(&format!("{name} (from the environment)")),
            "{problem}"
        );
        assert!(
            problem.contains(&format!("nearest known key is {key}, here {variable}")),
            "{problem}"
        );
    };
    env("WDT_API_URL", "api.url", "WDT_API__URL");
    env("WDT_API__TIMEOUTS", "api.timeout", "WDT_API__TIMEOUT");
    env("WDT_AMQP__URL_FILES", "amqp.url_file", "WDT_AMQP__URL_FILE");
    env(
        "WDT_ACCOUNTS__DEFAULT__SECRE",
        "accounts.default.secret",
        "WDT_ACCOUNTS__DEFAULT__SECRET",
    );
    env("WDT_", "api.url", "WDT_API__URL");

    let problem = only_problem(load_with(&[("WDT_WORKER_SERVICE_HOST", "10.0.0.1")]));
    assert!(problem.contains("enableServiceLinks: false"), "{problem}");
}

#[test]
fn all_problems_are_told_at_once() {
    let error = load_file(
        "api.timeout = 30\nnope = 1\n[accounts.\"a b\"]\nsid = \"x\"\nkey = \"x\"",
        &[
            ("WDT_RETRY__MAX_ATTEMPTS", "0"),
            ("WDT_NOPE", "1"),
            ("WDT_ACCOUNTS__SHOP__SID", "sid"),
        ],
    )
    .unwrap_err();
    let text = error.to_string();
    assert_eq!(text.lines().count(), error.problems().len());
    let starts: Vec<_> = text
        .lines()
        .map(|l| l.split([' ', ':']).next().unwrap())
        .collect();
    assert_eq!(
        starts,
        [
            "accounts.a",
            "nope",
            "WDT_NOPE",
            "api.url",
            "api.timeout",
            "accounts.shop.key",
            "accounts.shop.secret",
            "retry.max_attempts",
        ]
    );
    let api_url = text.lines().find(|l| l.starts_with("api.url")).unwrap();
    assert!(api_url.contains("WDT_API__URL"), "{api_url}");
    let retry = text.lines().last().unwrap();
    assert_eq!(
        retry,
        "retry.max_attempts (from env WDT_RETRY__MAX_ATTEMPTS): found \"0\"; an integer from 1 \
         to 100 would do"
    );
}

#[test]
fn there_has_to_be_an_account_and_a_gateway() {
    let error = load_env(&[]).unwrap_err();
    let [api, accounts] = error.problems() else {
        panic!("{error}");
    };
    assert!(api.starts_with("api.url: "), "{api}");
    assert!(accounts.contains("at least one"), "{accounts}");

    // An account that is named and has nothing.
    let error = load_file("[accounts.shop]", &LEAST[..1]).unwrap_err();
    assert_eq!(error.problems().len(), 3, "{error}");
}

#[test]
fn the_gateways_url_may_be_each_accounts_own() {
    let own = ("WDT_ACCOUNTS__DEFAULT__URL", "http://own.example/openapi");
    let loaded = load_env(&[&LEAST[1..], &[own]].concat()).unwrap();
    assert_eq!(account(&loaded, "default").url.as_str(), own.1);
    assert_eq!(in_force(&loaded, "api.url"), ("-".into(), "default".into()));

    let another = [
        ("WDT_ACCOUNTS__SHOP__SID", "sid"),
        ("WDT_ACCOUNTS__SHOP__KEY", "key"),
        ("WDT_ACCOUNTS__SHOP__SECRET", "a:b"),
    ];
    let problem = only_problem(load_env(&[&LEAST[1..], &[own], &another].concat()));
    assert!(problem.starts_with("api.url: "), "{problem}");
}

#[test]
fn a_variables_account_is_the_files_in_whichever_case() {
    let names = |file: &str, given: &[(&str, &str)]| -> Vec<String> {
        let loaded = load_file(file, &[&LEAST[..1], given].concat()).unwrap();
        loaded
            .config
            .accounts
            .keys()
            .map(|n| n.to_string())
            .collect()
    };
    let of = |name: &str| {
        ["SID", "KEY", "SECRET"].map(|key| (format!("WDT_ACCOUNTS__{name}__{key}"), "a:b"))
    };
    let check = |file: &str, variable: &str, expected: &[&str]| {
        let given = of(variable);
        let given: Vec<_> = given.iter().map(|(n, v)| (n.as_str(), *v)).collect();
        assert_eq!(names(file, &given), expected, "{variable}");
    };
    check("[accounts.ShopOne]", "SHOPONE", &["ShopOne"]);
    check("", "ShopOne", &["shopone"]);
    check("", "A__B", &["a__b"]);
    check("", "A_", &["a_"]);

    let file = "[accounts.shop]\nsid = \"s\"\nkey = \"k\"\nsecret = \"a:b\"\n\
                [accounts.Shop]\nsid = \"s\"\nkey = \"k\"\nsecret = \"a:b\"";
    let problem = only_problem(load_file(
        file,
        &[LEAST[0], ("WDT_ACCOUNTS__SHOP__SID", "x")],
    ));
    assert!(
        problem.contains("account Shop or the account shop"),
        "{problem}"
    );

    let problem = only_problem(load_with(&[("WDT_ACCOUNTS____SID", "x")]));
    assert!(problem.contains("is no account name"), "{problem}");
}

#[test]
fn a_variable_in_two_spellings_is_a_problem() {
    let problem = only_problem(load_with(&[("wdt_api__url", "http://b.example/")]));
    assert!(problem.starts_with("api.url is given twice"), "{problem}");
}

#[test]
fn the_broker_alone_needs_no_account() {
    let load = |given: &[(&str, &str)]| Config::load_broker(None, variables(given).into_iter());
    let broker = load(&[("WDT_AMQP__QUEUE", "q"), ("WDT_LOG__FORMAT", "json")]).unwrap();
    assert_eq!(broker.amqp.queue, "q");
    assert_eq!(broker.log.format, Some(LogFormat::Json));

    // What belongs to others is not opened, and need not be whole.
    assert!(load(&[("WDT_ACCOUNTS__SHOP__SECRET_FILE", "/nowhere/secret")]).is_ok());
    assert!(load(&[("WDT_LEDGER__URL_FILE", "/nowhere/url")]).is_ok());
    assert!(load(&[("WDT_ACCOUNTS__SHOP__SID", "sid")]).is_ok());

    // What is given is checked all the same.
    for (name, value) in [
        ("WDT_AMQP__URL_FILE", "/nowhere/url"),
        ("WDT_API__CONCURRENCY", "0"),
        ("WDT_ACCOUNTS__SHOP__SECRET", "no colon"),
        ("WDT_NOPE", "1"),
    ] {
        let error = load(&[(name, value)]).unwrap_err();
        assert_eq!(error.problems().len(), 1, "{error}");
    }
}

#[cfg(unix)]
#[test]
fn of_the_environment_only_ours_need_be_text() {
    use std::os::unix::ffi::OsStringExt;
    let broken = || OsString::from_vec(b"hunter2\xff".to_vec());
    let taken = ours(
        [
            ("OTHER".into(), broken()),
            ("wdt_api__url".into(), "http://gateway.example/".into()),
        ]
        .into_iter(),
    );
    let expected = variables(&[("wdt_api__url", "http://gateway.example/")]);
    assert_eq!(taken.unwrap(), expected);

    let error = ours([("WDT_API__URL".into(), broken())].into_iter()).unwrap_err();
    assert!(error.to_string().starts_with("WDT_API__URL "), "{error}");
    assert!(!error.to_string().contains("hunter2"), "{error}");
}
