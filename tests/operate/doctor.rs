//! Each thing that can be wrong, and that the doctor says it, what to do, and no secret.

use lapin::types::{AMQPValue, FieldTable};
use serde_json::Value;

use crate::support::amqp::{COMMANDS, Command};
use crate::support::broker::Broker;
use crate::support::disk::run;
use crate::support::gateway::{Account, Answer, CANCEL, QUERY};
use crate::support::scene::{SOON, Scene};

/// What `doctor --json` says.
struct Said {
    code: i32,
    checks: Vec<Value>,
    text: String,
}

impl Said {
    async fn of(scene: &Scene) -> Self {
        Self::with(scene, &[]).await
    }

    async fn with(scene: &Scene, more: &[&str]) -> Self {
        let (code, text) = run(scene, &[&["doctor", "--json"], more].concat()).await;
        let report: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
        assert_eq!(report["well"], code == 0, "{text}");
        for secret in [
            "secret-default",
            "salt-default",
            "key-default",
            "guest:guest",
        ] {
            assert!(!text.contains(secret), "{text}");
        }
        Self {
            code,
            checks: report["checks"].as_array().unwrap().clone(),
            text,
        }
    }

    /// The checks in this state.
    fn in_state(&self, state: &str) -> Vec<&str> {
        let found = self.checks.iter().filter(|c| c["state"] == state);
        found.map(|c| c["check"].as_str().unwrap()).collect()
    }

    /// The one check that is wrong: what was found, and what to do.
    fn wrong(&self, ending: &str) -> (&str, &str) {
        assert_eq!(self.code, 1, "{}", self.text);
        let wrong: Vec<_> = self
            .checks
            .iter()
            .filter(|c| c["state"] == "wrong")
            .collect();
        let [wrong] = wrong[..] else {
            panic!("one is wrong: {}", self.text)
        };
        let check = wrong["check"].as_str().unwrap();
        assert!(check.ends_with(ending), "{check}: {}", self.text);
        (
            wrong["found"].as_str().unwrap(),
            wrong["remedy"].as_str().unwrap_or_default(),
        )
    }

    fn found(&self, ending: &str) -> &str {
        let check = self
            .checks
            .iter()
            .find(|c| c["check"].as_str().unwrap().ends_with(ending));
        check.unwrap_or_else(|| panic!("{ending}: {}", self.text))["found"]
            .as_str()
            .unwrap()
    }
}

#[tokio::test]
async fn all_is_well_beside_a_running_worker_and_stays_as_it_is() {
    let scene = Scene::fresh().await;
    let before = Said::of(&scene).await;
    assert_eq!(before.code, 0, "{}", before.text);
    assert!(before.found("ledger").contains("the first start makes it"));
    assert!(
        before
            .found("commands' queue")
            .contains("the worker's start declares it")
    );
    assert!(scene.vhost.queues().await.is_empty(), "nothing is declared");
    assert!(
        !scene.setup.dir().join("ledger").exists(),
        "nothing is made"
    );

    let amqp = scene.amqp().await;
    amqp.declare_results().await;
    let mut worker = scene.worker().await;
    let queues = scene.vhost.queues().await.len();
    let said = Said::of(&scene).await;
    assert_eq!(said.code, 0, "{}", said.text);
    assert!(
        said.found("ledger")
            .contains("is in use by a running worker")
    );
    assert!(said.found("commands' queue").contains("is as it is wanted"));
    assert!(said.found("signature").starts_with("taken"));
    assert!(said.found("query").contains("may be looked up"));
    assert!(
        said.found("version").starts_with("RabbitMQ "),
        "{}",
        said.text
    );
    assert_eq!(said.found(&format!("may consume from {COMMANDS}")), "yes");
    // Without management nobody can say what is bound.
    assert_eq!(said.in_state("note"), ["results"]);
    assert_eq!(scene.vhost.queues().await.len(), queues);
    scene.consumer().await;
    scene.queue_is_empty().await;
    assert_eq!(worker.terminate(SOON).await, 0);

    // With nobody else about, a waiting command stays what it is.
    amqp.send(&Command::orders(["QC-1"])).await;
    let said = Said::of(&scene).await;
    assert!(said.found("ledger").contains("whole"), "{}", said.text);
    scene.vhost.queue_holds(SOON, COMMANDS, 1, 0).await;
    assert_eq!(scene.orders.times_sent("QC-1"), 0);
}

#[tokio::test]
async fn a_missing_and_a_different_queue_are_told_with_the_command_that_mends_them() {
    let scene = Scene::fresh().await.set("WDT_AMQP__DECLARE", "false");
    let said = Said::of(&scene).await;
    assert_eq!(said.code, 1);
    assert_eq!(
        said.in_state("wrong"),
        ["dead-letter queue", "commands' queue", "results' exchange"]
    );
    assert!(
        said.text.contains("rabbitmqadmin --vhost="),
        "{}",
        said.text
    );

    let scene = scene.set("WDT_AMQP__DECLARE", "true");
    let mut quorum = FieldTable::default();
    let kind = AMQPValue::LongString("quorum".into());
    quorum.insert("x-queue-type".into(), kind);
    let amqp = scene.amqp().await;
    amqp.declare_queue(COMMANDS, quorum).await;
    let said = Said::of(&scene).await;
    let (found, remedy) = said.wrong("commands' queue");
    assert!(found.contains("inequivalent arg"), "{found}");
    assert!(remedy.contains("rabbitmqctl set_policy"), "{remedy}");
    assert!(remedy.contains(r#""delivery-limit":200"#), "{remedy}");

    amqp.delete_queue(COMMANDS).await;
    let mut few = FieldTable::default();
    few.insert(
        "x-queue-type".into(),
        AMQPValue::LongString("quorum".into()),
    );
    few.insert("x-delivery-limit".into(), AMQPValue::LongLongInt(20));
    for (name, value) in [
        ("x-dead-letter-exchange", ""),
        ("x-dead-letter-routing-key", "wdt.cancel.commands.dead"),
        ("x-dead-letter-strategy", "at-least-once"),
        ("x-overflow", "reject-publish"),
    ] {
        few.insert(name.into(), AMQPValue::LongString(value.into()));
    }
    amqp.declare_queue(COMMANDS, few).await;
    let said = Said::of(&scene).await;
    let (found, remedy) = said.wrong("commands' queue");
    assert!(found.contains("'200'") && found.contains("'20'"), "{found}");
    assert!(remedy.contains("rabbitmqctl delete_queue"), "{remedy}");
}

#[tokio::test]
async fn who_is_not_let_in_is_told_why() {
    let scene = Scene::fresh().await;
    let wrong = scene.vhost.url().replace("guest:guest", "guest:hunter2");
    let scene = scene.set("WDT_AMQP__URL", wrong);
    let said = Said::of(&scene).await;
    let (found, _) = said.wrong("login");
    assert!(found.contains("ACCESS_REFUSED"), "{found}");
    assert!(!said.text.contains("hunter2"), "{}", said.text);

    let theirs = Scene::fresh().await;
    let stranger = theirs.vhost.url_of_another_user().await;
    let elsewhere = stranger.replace(theirs.vhost.name(), scene.vhost.name());
    // The user's name holds the host's.
    let user = format!("user-of-{}", theirs.vhost.name());
    let elsewhere = elsewhere.replace(&format!("user-of-{}", scene.vhost.name()), &user);
    let scene = scene.set("WDT_AMQP__URL", elsewhere);
    let said = Said::of(&scene).await;
    let (found, remedy) = said.wrong("virtual host");
    assert!(found.contains("NOT_ALLOWED"), "{found}");
    assert!(
        remedy.contains("rabbitmqctl set_permissions -p"),
        "{remedy}"
    );
    assert!(remedy.contains(&user), "{remedy}");

    let scene = scene.set("WDT_AMQP__URL", "amqp://guest:guest@127.0.0.1:1/%2f");
    Said::of(&scene).await.wrong("connection");
    let scene = scene.set("WDT_AMQP__URL", "amqp://guest:guest@nowhere.invalid:1/%2f");
    Said::of(&scene).await.wrong("name");
}

#[tokio::test]
async fn results_that_would_find_no_queue_are_named() {
    let broker = Broker::shared().await;
    let management = format!("http://127.0.0.1:{}", broker.manage().await);
    let scene = Scene::fresh().await;
    let mut worker = scene.worker().await;
    let ask = ["--management", management.as_str()];
    let said = Said::with(&scene, &ask).await;
    let (found, remedy) = said.wrong("results");
    assert!(found.contains("nothing is bound"), "{found}");
    let named = management.replace("//", "//guest:guest@");
    let said = Said::with(&scene, &["--management", &named]).await;
    let (found, _) = said.wrong("results");
    assert!(found.contains("nothing is bound"), "{found}");
    assert!(remedy.contains("wdt-cancel-worker bind"), "{remedy}");

    let amqp = scene.amqp().await;
    amqp.declare_queue("some.results", FieldTable::default())
        .await;
    amqp.bind("some.results", "cancel.*.cancelled").await;
    let said = Said::with(&scene, &ask).await;
    let (found, _) = said.wrong("results");
    assert!(found.contains("cancel.default.failed"), "{found}");
    assert!(!found.contains("cancel.default.cancelled"), "{found}");

    amqp.bind("some.results", "cancel.#").await;
    let said = Said::with(&scene, &ask).await;
    assert_eq!(said.code, 0, "{}", said.text);
    assert!(said.in_state("note").is_empty(), "{}", said.text);
    assert_eq!(worker.terminate(SOON).await, 0);
}

#[tokio::test]
async fn what_is_wrong_at_the_gateway_is_told_by_account() {
    let scene = Scene::fresh().await;
    scene.gateway.set_clock_ahead(-90);
    let said = Said::of(&scene).await;
    let (found, remedy) = said.wrong("account default clock");
    assert!(found.contains("s behind ours"), "{found}");
    assert!(remedy.contains("clock"), "{remedy}");
    scene.gateway.set_clock_ahead(0);

    scene
        .orders
        .instead(|call| (call.request.method() == QUERY).then(|| Answer::status(100, "权限不足")));
    let said = Said::of(&scene).await;
    let (found, remedy) = said.wrong("account default query");
    assert!(found.contains("权限不足"), "{found}");
    assert!(remedy.contains("queryWithDetail"), "{remedy}");
    scene.orders.instead(|_| None);

    let mut wrong = Account::named("default");
    wrong.secret = "another".into();
    let scene = scene.set("WDT_ACCOUNTS__DEFAULT__SECRET", wrong.app_secret());
    let said = Said::of(&scene).await;
    let (found, remedy) = said.wrong("account default signature");
    assert!(found.contains("refused"), "{found}");
    assert!(remedy.contains("secret"), "{remedy}");
    assert!(!scene.gateway.take_faults().is_empty());
    assert!(scene.gateway.calls(CANCEL).is_empty());

    scene.gateway.down();
    Said::of(&scene).await.wrong("account default signature");
}

#[tokio::test]
async fn wrong_settings_and_arguments_end_with_64_and_people_read_lines() {
    let scene = Scene::fresh().await.set("WDT_API__CONCURRENCY", "many");
    let (code, text) = run(&scene, &["doctor"]).await;
    assert_eq!(code, 64, "{text}");
    assert!(
        text.starts_with("WRONG settings: api.concurrency"),
        "{text}"
    );
    let scene = scene.set("WDT_API__CONCURRENCY", "2");
    let (code, text) = run(&scene, &["doctor", "--management", "here"]).await;
    assert_eq!(code, 64, "{text}");
    // Not on a terminal, so without colours.
    let (code, text) = run(&scene, &["doctor"]).await;
    assert_eq!(code, 0, "{text}");
    assert!(
        text.contains("\nok    account default signature: taken"),
        "{text}"
    );
    assert!(!text.contains('\x1b'), "{text}");
}
