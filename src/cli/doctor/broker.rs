//! The broker: every node that `amqp.url` names, then, by the first that lets us in, what is there.

use lapin::uri::{AMQPScheme, AMQPUri};
use lapin::{Connection, Error};
use reqwest::Url;

use super::{Sheet, name};
use crate::app;
use crate::broker::bindings::{self, BindingsError};
use crate::broker::inspect::{self, Found, Greeting, NoEntry};
use crate::broker::topology::{DEAD_DELIVERY_LIMIT, DELIVERY_LIMIT};
use crate::config::{Config, Secret};
use crate::rules::dry_run::Mode;

pub(super) async fn check(sheet: &mut Sheet, config: &Config, management: Option<&Url>) {
    let mut entered = None;
    for url in config.amqp.urls.iter().map(Secret::expose) {
        if let Some(connection) = node(sheet, url).await
            && entered.is_none()
        {
            entered = Some((url, connection));
        }
    }
    let Some((url, connection)) = entered else {
        return;
    };
    inside(sheet, config, url, &connection).await;
    results(sheet, config, url, management).await;
    // It served; the broker sees it go either way.
    let closed = connection.close(200, "done".into());
    drop(sheet.step("broker", closed).await);
}

/// One node, up to a connection.
async fn node(sheet: &mut Sheet, url: &AMQPUri) -> Option<Connection> {
    let shown = inspect::node(url);
    let check = format!("broker {shown}");
    let authority = &url.authority;
    if !name(sheet, &check, &authority.host, authority.port).await {
        return None;
    }
    let (line, with) = match url.scheme {
        AMQPScheme::AMQP => (format!("{check} connection"), "TCP"),
        AMQPScheme::AMQPS => (
            format!("{check} TLS"),
            "TLS, with a certificate that is trusted",
        ),
    };
    match sheet.step(&line, inspect::greeting(url)).await? {
        Ok(greeting) => {
            sheet.ok(&line, with);
            version(sheet, &format!("{check} version"), &greeting);
        }
        Err(error) => {
            let remedy = match url.scheme {
                AMQPScheme::AMQP => "check that the broker runs and listens there, without TLS",
                AMQPScheme::AMQPS => {
                    "check the port (TLS is usually on 5671), the name in the certificate, and that this machine trusts who signed it"
                }
            };
            sheet.wrong(&line, error.to_string(), remedy);
            return None;
        }
    }
    let login = format!("{check} login");
    let user = &authority.userinfo.username;
    let vhost = &url.vhost;
    match sheet.step(&login, inspect::enter(url)).await? {
        Ok(connection) => {
            sheet.ok(&login, format!("user {user}, virtual host {vhost}"));
            return Some(connection);
        }
        Err(NoEntry::Login(words)) => sheet.wrong(
            &login,
            words,
            format!("rabbitmqctl authenticate_user {}", quoted(user)),
        ),
        Err(NoEntry::VirtualHost(words)) => {
            sheet.ok(&login, format!("user {user}"));
            let (user, vhost) = (quoted(user), quoted(vhost));
            let remedy = match words.contains("not found") {
                true => format!("rabbitmqctl add_vhost {vhost}"),
                false => format!("rabbitmqctl set_permissions -p {vhost} {user} '.*' '.*' '.*'"),
            };
            sheet.wrong(&format!("{check} virtual host"), words, remedy);
        }
        Err(NoEntry::Other(error)) => sheet.wrong(&login, error.to_string(), ""),
    }
    None
}

/// What a version changes, as far as the worker's tests showed it.
fn version(sheet: &mut Sheet, check: &str, greeting: &Greeting) {
    let Greeting { product, version } = greeting;
    let shown = format!("{product} {version}");
    match greeting.release() {
        Some((4, 3..)) => sheet.ok(
            check,
            format!("{shown}: what goes back to the queue does not count as a delivery; without a declared limit it is 20"),
        ),
        Some((4, _)) => sheet.ok(
            check,
            format!("{shown}: what goes back to the queue counts as a delivery; without a declared limit it is 20, and the largest message is 16 MiB"),
        ),
        Some((3, 10..)) => sheet.ok(
            check,
            format!("{shown}: what goes back to the queue counts as a delivery; without a declared limit there is none"),
        ),
        Some(_) | None => sheet.note(
            check,
            format!("{shown} was not tested"),
            "RabbitMQ 3.10, 4.0 and 4.3 were",
        ),
    }
}

/// What is there, and what this user may do with it.
async fn inside(sheet: &mut Sheet, config: &Config, url: &AMQPUri, connection: &Connection) {
    let settings = app::broker_settings(config, Mode::Live);
    let looked = inspect::topology(connection, &settings);
    let Some(looked) = sheet.step("broker topology", looked).await else {
        return;
    };
    let found = match looked {
        Ok(found) => found,
        Err(error) => return denied(sheet, "broker topology", url, &error),
    };
    let dead = (
        "dead-letter queue",
        &settings.dead_queue,
        policy(DEAD_DELIVERY_LIMIT, None),
    );
    let commands = policy(DELIVERY_LIMIT, Some(&settings.dead_queue));
    let commands = ("commands' queue", &settings.queue, commands);
    let exchange = ("results' exchange", &settings.exchange, String::new());
    let [dead_found, commands_found, exchange_found] = &found;
    let parts = [
        (dead, dead_found),
        (commands, commands_found),
        (exchange, exchange_found),
    ];
    for ((what, named, policy), found) in parts {
        part(sheet, url, settings.declare, what, named, &policy, found);
    }

    let queue = &settings.queue;
    if *commands_found != Found::Missing {
        let asked = inspect::may_consume(connection, queue);
        leave(sheet, url, &format!("may consume from {queue}"), asked).await;
    }
    let exchange = &settings.exchange;
    if *exchange_found != Found::Missing {
        let asked = inspect::may_publish(connection, exchange, "cancel._.rejected");
        leave(sheet, url, &format!("may publish to {exchange}"), asked).await;
    }
    let asked = inspect::may_publish(connection, "", &settings.dead_queue);
    leave(sheet, url, "may publish to queues by name", asked).await;
}

/// A queue or the exchange.
fn part(
    sheet: &mut Sheet,
    url: &AMQPUri,
    declare: bool,
    what: &str,
    named: &str,
    policy: &str,
    found: &Found,
) {
    let is_queue = !policy.is_empty();
    let (vhost, quoted_name) = (quoted(&url.vhost), quoted(named));
    match found {
        Found::There if declare => sheet.ok(what, format!("{named} is as it is wanted")),
        Found::There => sheet.ok(
            what,
            format!("{named} is there; amqp.declare is false, so its arguments are not compared"),
        ),
        Found::Missing if declare => sheet.note(
            what,
            format!("{named} is not there; the worker's start declares it"),
            "",
        ),
        Found::Missing => {
            let command = match is_queue {
                true => format!(
                    "rabbitmqadmin --vhost={vhost} declare queue name={quoted_name} durable=true arguments='{{\"x-queue-type\":\"quorum\"}}' && rabbitmqctl set_policy -p {vhost} --apply-to queues {quoted_name} '^{named}$' '{policy}'"
                ),
                false => format!(
                    "rabbitmqadmin --vhost={vhost} declare exchange name={quoted_name} type=topic durable=true"
                ),
            };
            sheet.wrong(
                what,
                format!("{named} is not there, and amqp.declare is false"),
                format!("WDT_AMQP__DECLARE=true once, or: {command}"),
            );
        }
        Found::Differs(words) => {
            let command = match is_queue {
                // An argument that nobody gave can be given by a policy.
                true if words.contains("current is none") => format!(
                    "rabbitmqctl set_policy -p {vhost} --apply-to queues {quoted_name} '^{named}$' '{policy}'  (this check cannot see policies: where that one is set, all is well)"
                ),
                true => format!(
                    "stop the workers, empty the queue, and: rabbitmqctl delete_queue -p {vhost} {quoted_name}; the worker declares it as it is wanted"
                ),
                false => format!(
                    "rabbitmqadmin --vhost={vhost} delete exchange name={quoted_name}; the worker declares it as it is wanted; bind the results' queues again"
                ),
            };
            sheet.wrong(what, words, command);
        }
    }
}

/// What a policy can give that the worker would declare.
fn policy(limit: i64, dead_queue: Option<&str>) -> String {
    match dead_queue {
        None => serde_json::json!({ "delivery-limit": limit }),
        Some(queue) => serde_json::json!({
            "delivery-limit": limit,
            "dead-letter-exchange": "",
            "dead-letter-routing-key": queue,
            "dead-letter-strategy": "at-least-once",
            "overflow": "reject-publish",
        }),
    }
    .to_string()
}

async fn leave(
    sheet: &mut Sheet,
    url: &AMQPUri,
    check: &str,
    asked: impl Future<Output = Result<(), Error>>,
) {
    match sheet.step(check, asked).await {
        None => {}
        Some(Ok(())) => sheet.ok(check, "yes"),
        Some(Err(error)) => denied(sheet, check, url, &error),
    }
}

fn denied(sheet: &mut Sheet, check: &str, url: &AMQPUri, error: &Error) {
    let user = quoted(&url.authority.userinfo.username);
    let vhost = quoted(&url.vhost);
    let remedy = match inspect::is_denied(error) {
        true => format!(
            "rabbitmqctl set_permissions -p {vhost} {user} '.*' '.*' '.*', or narrower: as docs/OPERATIONS.md says"
        ),
        false => String::new(),
    };
    sheet.wrong(check, inspect::said(error), remedy);
}

/// Whether each result would find a queue.
async fn results(sheet: &mut Sheet, config: &Config, url: &AMQPUri, management: Option<&Url>) {
    let check = "results";
    let exchange = &config.amqp.exchange;
    let unknown = "AMQP does not tell what is bound to the results' exchange";
    let Some(management) = management.cloned().or_else(|| bindings::probable(url)) else {
        return sheet.note(
            check,
            unknown,
            "--management URL, to ask RabbitMQ's management",
        );
    };
    let asked = bindings::patterns(&management, url, exchange);
    let patterns = match sheet.step(check, asked).await {
        None => return,
        Some(Ok(patterns)) => patterns,
        Some(Err(error @ BindingsError::Missing)) => {
            return sheet.note(check, error.to_string(), "");
        }
        Some(Err(error @ (BindingsError::Denied | BindingsError::Silent(_)))) => {
            let found = format!("{unknown}, and {error}");
            return sheet.note(
                check,
                found,
                "--management URL, or look yourself: rabbitmqctl list_bindings",
            );
        }
    };
    let accounts: Vec<_> = config.accounts.keys().cloned().collect();
    let untaken = bindings::untaken(&patterns, &accounts);
    let bind = "wdt-cancel-worker bind QUEUE";
    match (&patterns[..], &untaken[..]) {
        ([], _) => sheet.wrong(
            check,
            format!("nothing is bound to {exchange}, so nothing can be told"),
            bind,
        ),
        (_, []) => sheet.ok(
            check,
            format!("each finds a queue; bound with {}", patterns.join(", ")),
        ),
        (_, untaken) => sheet.wrong(
            check,
            format!(
                "no binding takes {}, and their commands would never end",
                untaken.join(", ")
            ),
            bind,
        ),
    }
}

/// For a shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}
