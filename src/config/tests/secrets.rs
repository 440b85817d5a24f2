//! Secrets: their own files, and that they are not shown.

use super::*;

#[test]
fn a_secret_can_be_in_its_own_file() {
    let folder = TempDir::new().unwrap();
    let put = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let secret = put("secret", "a:b \n");
    let key = put("key", "k\r\n");
    let url = put("url", "amqp://u:hunter2@mq\n");
    let ledger = put("ledger", "postgres://u:hunter2@db/wdt");

    let text = format!("[accounts.default]\nsecret_file = {secret:?}");
    let loaded = load_file(
        &text,
        &[
            LEAST[0],
            LEAST[1],
            ("WDT_ACCOUNTS__DEFAULT__KEY_FILE", &key),
            ("WDT_AMQP__URL_FILE", &url),
            ("WDT_LEDGER__URL_FILE", &ledger),
        ],
    )
    .unwrap();
    let default = account(&loaded, "default");
    assert_eq!(default.salt.expose(), "b ");
    assert_eq!(default.key.expose(), "k");
    assert_eq!(
        loaded.config.amqp.urls[0]
            .expose()
            .authority
            .userinfo
            .password,
        "hunter2"
    );
    assert!(matches!(loaded.config.ledger.url, LedgerUrl::Postgres(_)));

    assert_eq!(
        in_force(&loaded, "amqp.url"),
        (
            "amqp://u:***@mq".to_owned(),
            format!("file {url} via env WDT_AMQP__URL_FILE")
        )
    );
    let (value, origin) = in_force(&loaded, "accounts.default.secret");
    assert_eq!(value, "***");
    assert!(
        origin.starts_with(&format!("file {secret} via secret_file in ")),
        "{origin}"
    );
}

#[test]
fn of_a_secret_and_its_file_the_higher_place_wins() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("secret");
    fs::write(&path, "from:itsfile").unwrap();
    let path = path.to_str().unwrap();
    let with = |file: &str, given: &[(&str, &str)]| {
        load_file(
            &format!("[accounts.default]\n{file}"),
            &[&LEAST[..3], given].concat(),
        )
    };
    let value = "secret = \"from:toml\"";
    let by_file = format!("secret_file = {path:?}");
    let env_value = ("WDT_ACCOUNTS__DEFAULT__SECRET", "from:env");
    let env_file = ("WDT_ACCOUNTS__DEFAULT__SECRET_FILE", path);

    let salt = |loaded: Result<Loaded, ConfigError>| {
        account(&loaded.unwrap(), "default").salt.expose().clone()
    };
    assert_eq!(salt(with(value, &[env_file])), "itsfile");
    assert_eq!(salt(with(&by_file, &[env_value])), "env");

    let problem = only_problem(with("", &[env_value, env_file]));
    assert!(
        problem.contains("env WDT_ACCOUNTS__DEFAULT__SECRET)") && problem.contains("both"),
        "{problem}"
    );
    let both = format!("{value}\n{by_file}");
    only_problem(with(&both, &[]));
    // What the file says twice stays wrong when the environment goes before it.
    only_problem(with(&both, &[env_value]));
}

#[test]
fn a_secrets_file_that_cannot_be_read_is_a_problem() {
    let folder = TempDir::new().unwrap();
    let long = folder.path().join("long");
    fs::write(&long, "x".repeat(64 * 1024 + 1)).unwrap();
    let absent = folder.path().join("absent");
    let check = |path: &str, said: &str| {
        let given = ("WDT_ACCOUNTS__DEFAULT__SECRET_FILE", path);
        let problem = only_problem(load_env(&[&LEAST[..3], &[given]].concat()));
        assert!(
            problem.contains("accounts.default.secret_file"),
            "{problem}"
        );
        assert!(problem.contains(said), "{problem}");
    };
    check(absent.to_str().unwrap(), "absent");
    check(folder.path().to_str().unwrap(), "cannot read");
    check(long.to_str().unwrap(), "more than 65536 bytes");
    check("", "not empty");
}

#[test]
fn no_secret_is_ever_shown() {
    // Wrong in as many ways as secrets can be.
    let wrong = [
        ("WDT_AMQP__URL", "http://u:hunter2@mq"),
        ("WDT_AMQP__URL", "amqp://u:hunt,er2@mq,hunter2://mq"),
        ("WDT_AMQP__URL", "amqp://mq?auth_mechanism=hunter2"),
        ("WDT_AMQP__URL", "hunter2@mq"),
        ("WDT_LEDGER__URL", "mysql://u:hunter2@db"),
        ("WDT_LEDGER__URL", "host=db password=hunter2"),
        (
            "WDT_ACCOUNTS__DEFAULT__URL",
            "http://u:hunter2@gateway.example",
        ),
        (
            "WDT_ACCOUNTS__DEFAULT__URL",
            "http:u:hunter2@gateway.example",
        ),
        ("WDT_ACCOUNTS__SHOP__SECRET", "hunter2"),
        ("WDT_ACCOUNTS__DEFAULT__SECRT", "hunter2"),
    ];
    for (name, value) in wrong {
        let error = load_with(&[(name, value)]).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
    }
    let error = load_file("accounts.default.secret = [\"hunter2\"]", &LEAST[..3]).unwrap_err();
    assert!(!error.to_string().contains("hunter2"), "{error}");

    let loaded = load_env(&[
        LEAST[0],
        LEAST[1],
        ("WDT_ACCOUNTS__DEFAULT__KEY", "hunter2"),
        ("WDT_ACCOUNTS__DEFAULT__SECRET", "hunter2:hunter2"),
        ("WDT_AMQP__URL", "amqp://u:hunter2@mq1,amqp://u:hunter2@mq2"),
        ("WDT_LEDGER__URL", "postgres://u:hunter2@db1:1,db2:2/wdt"),
    ])
    .unwrap();
    let all = format!("{loaded:?}");
    assert!(!all.contains("hunter2"), "{all}");
}
