//! From what was given to what the worker uses: every value checked, every problem kept.

use super::bounds;
use super::check::{
    GATEWAY_URL_WOULD_DO, amqp_name, amqp_urls, calls_per_minute, concurrency, gateway_url,
    ledger_url, listen, log_format, orders_per_call, patterns, secret_and_salt, token, verify,
};
use super::known::{Shown, shown, variable_of};
use super::secret::{Secret, mask_url};
use super::source::{Found, Given, Origin, Sources, read_secret};
use super::value::{Value, boolean, duration, filled, integer};
use super::{Account, Admin, Amqp, Api, Config, Ledger, Log, Previous, Retry, Setting};
use crate::rules::order::AccountName;
use reqwest::Url;
use std::collections::BTreeMap;

/// Longest part of a wrong value that an error repeats, in characters.
const QUOTE_MAX_CHARS: usize = 100;

/// What of the settings is going to be used. Wrong values are problems in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Needs {
    /// All of it.
    Everything,
    /// The broker: that an account has no secret, or that its file cannot be read, is no problem.
    Broker,
}

/// Reads setting by setting. A read that ends in `None` has left its problem here, so a section
/// first reads all it has and then asks whether all of it is there.
pub(super) struct Reader {
    sources: Sources,
    needs: Needs,
    /// What is in force, in the order in which it was read.
    pub(super) settings: Vec<Setting>,
    pub(super) problems: Vec<String>,
}

impl Reader {
    pub(super) const fn new(sources: Sources, needs: Needs, problems: Vec<String>) -> Self {
        Self {
            sources,
            needs,
            settings: Vec::new(),
            problems,
        }
    }

    /// Reads every setting, in the contract's order.
    pub(super) fn config(&mut self) -> Option<Config> {
        let amqp = self.amqp();
        let url = self.api_url();
        let timeout = self.or_default("api.timeout", "30s", |v| duration(v, bounds::API_TIMEOUT));
        let shared = Shared {
            url,
            max_orders_per_call: self.or_default("api.max_orders_per_call", "20", orders_per_call),
            calls_per_minute: self.or_default("api.calls_per_minute", "60", calls_per_minute),
            concurrency: self.or_default("api.concurrency", "2", concurrency),
        };
        let verify = self.or_default("api.verify", "in_doubt", verify);
        let accounts = self.accounts(&shared);
        let ledger = self.ledger();
        let retry = self.retry();
        let admin = self.admin();
        let log = self.log();
        Some(Config {
            amqp: amqp?,
            api: Api {
                timeout: timeout?,
                verify: verify?,
            },
            accounts,
            ledger: ledger?,
            retry: retry?,
            admin: admin?,
            log: log?,
        })
    }

    fn amqp(&mut self) -> Option<Amqp> {
        let urls = self.or_default(
            "amqp.url",
            "amqp://guest:guest@127.0.0.1:5672/%2f",
            amqp_urls,
        );
        let queue = self.or_default("amqp.queue", "wdt.cancel.commands", amqp_name);
        let exchange = self.or_default("amqp.exchange", "wdt.cancel.results", amqp_name);
        let dead_queue = self.or_default("amqp.dead_queue", "wdt.cancel.commands.dead", amqp_name);
        let declare = self.or_default("amqp.declare", "true", boolean);
        let reply_to_allow = self.or_default(
            "amqp.reply_to_allow",
            "amq.rabbitmq.reply-to*,amq.gen-*,*.replies",
            patterns,
        );
        if let (Some(queue), Some(dead)) = (&queue, &dead_queue)
            && queue == dead
        {
            self.problems.push(format!(
                "amqp.queue (from {}) and amqp.dead_queue (from {}): both are {queue:?}, so a \
                 command that was given up would come again; two different names would do",
                self.origin_of("amqp.queue"),
                self.origin_of("amqp.dead_queue"),
            ));
        }
        Some(Amqp {
            urls: urls?,
            queue: queue?,
            exchange: exchange?,
            dead_queue: dead_queue?,
            declare: declare?,
            reply_to_allow: reply_to_allow?,
        })
    }

    /// The URL of the accounts that have none of their own. If each has one, it may be absent.
    fn api_url(&mut self) -> Option<Url> {
        if let Some(url) = self.optional("api.url", gateway_url)? {
            return Some(url);
        }
        self.list("api.url", None, Origin::Default);
        let accounts = &self.sources.accounts;
        let each_has_its_own = accounts.iter().all(|account| {
            let own = self.sources.find(&format!("accounts.{account}.url"));
            !matches!(own, Ok(Found::Nothing))
        });
        if accounts.is_empty() || !each_has_its_own {
            self.missing(format!(
                "api.url: is missing; {GATEWAY_URL_WOULD_DO}, in the settings file \
                 or as {}",
                variable_of("api.url")
            ));
        }
        None
    }

    /// The accounts that are complete; what the others lack is a problem.
    fn accounts(&mut self, shared: &Shared) -> BTreeMap<AccountName, Account> {
        let names = self.sources.accounts.clone();
        if names.is_empty() {
            self.missing(
                "accounts.NAME.sid, .key and .secret: there is no account; at \
                 least one would do, such as accounts.default"
                    .to_owned(),
            );
        }
        let read = |name: AccountName| self.account(&name, shared).map(|account| (name, account));
        names.into_iter().filter_map(read).collect()
    }

    fn account(&mut self, name: &AccountName, shared: &Shared) -> Option<Account> {
        let of = |key: &str| format!("accounts.{name}.{key}");
        let sid = self.required(&of("sid"), filled);
        let key = self.required(&of("key"), filled);
        let secret = self.required(&of("secret"), secret_and_salt);
        let previous_key = self.optional(&of("previous_key"), filled);
        let previous_secret = self.optional(&of("previous_secret"), secret_and_salt);
        let url = self.or_shared(&of("url"), "api.url", shared.url.clone(), gateway_url);
        let calls_per_minute = self.or_shared(
            &of("calls_per_minute"),
            "api.calls_per_minute",
            shared.calls_per_minute,
            calls_per_minute,
        );
        let concurrency = self.or_shared(
            &of("concurrency"),
            "api.concurrency",
            shared.concurrency,
            concurrency,
        );
        let max_orders_per_call = self.or_shared(
            &of("max_orders_per_call"),
            "api.max_orders_per_call",
            shared.max_orders_per_call,
            orders_per_call,
        );
        let (key, (secret, salt)) = (key?, secret?);
        // One of the two may be all that changes.
        let previous = match (previous_key?, previous_secret?) {
            (None, None) => None,
            (previous_key, previous_secret) => {
                let (secret, salt) = previous_secret.unwrap_or((secret.clone(), salt.clone()));
                Some(Previous {
                    key: Secret::new(previous_key.unwrap_or_else(|| key.clone())),
                    secret: Secret::new(secret),
                    salt: Secret::new(salt),
                })
            }
        };
        Some(Account {
            url: url?,
            sid: sid?,
            key: Secret::new(key),
            secret: Secret::new(secret),
            salt: Secret::new(salt),
            previous,
            calls_per_minute: calls_per_minute?,
            concurrency: concurrency?,
            max_orders_per_call: max_orders_per_call?,
        })
    }

    fn ledger(&mut self) -> Option<Ledger> {
        let url = self.or_default("ledger.url", "./wdt-cancel-worker.ledger", ledger_url);
        let retention = self.or_default("ledger.retention", "30d", |v| {
            duration(v, bounds::RETENTION)
        });
        Some(Ledger {
            url: url?,
            retention: retention?,
        })
    }

    fn retry(&mut self) -> Option<Retry> {
        let max_attempts = self.or_default("retry.max_attempts", "8", |v| {
            integer(v, bounds::MAX_ATTEMPTS)
        });
        let max_age = self.or_default("retry.max_age", "24h", |v| duration(v, bounds::MAX_AGE));
        Some(Retry {
            max_attempts: max_attempts?,
            max_age: max_age?,
        })
    }

    fn admin(&mut self) -> Option<Admin> {
        let listen = self.or_default("admin.listen", "127.0.0.1:9464", listen);
        let token = self.optional("admin.token", token);
        Some(Admin {
            listen: listen?,
            token: token?.map(Secret::new),
        })
    }

    fn log(&mut self) -> Option<Log> {
        let format = self.optional("log.format", log_format)?;
        if format.is_none() {
            let by_terminal = "text on a terminal, else json".to_owned();
            self.list("log.format", Some(by_terminal), Origin::Default);
        }
        Some(Log { format })
    }

    /// A setting that has a default, which is written as it would be in the environment.
    fn or_default<T>(&mut self, name: &str, default: &str, parse: Parse<T>) -> Option<T> {
        let given = self.find(name)?.unwrap_or_else(|| Given {
            value: Value::Untyped(default.to_owned()),
            origin: Origin::Default,
        });
        self.fit(name, given, parse)
    }

    /// A setting that may be absent; that is `Some(None)`.
    fn optional<T>(&mut self, name: &str, parse: Parse<T>) -> Option<Option<T>> {
        match self.find(name)? {
            Some(given) => self.fit(name, given, parse).map(Some),
            None => Some(None),
        }
    }

    /// A setting that has to be given.
    fn required<T>(&mut self, name: &str, parse: Parse<T>) -> Option<T> {
        let Some(given) = self.find(name)? else {
            let own_file = match shown(name) {
                Shown::Whole => "",
                Shown::AsUrl | Shown::Never => ", or the path of its file with _file at the end",
            };
            self.missing(format!(
                "{name}: is missing; a string would do, in the settings file or as \
                 {}{own_file}",
                variable_of(name)
            ));
            return None;
        };
        self.fit(name, given, parse)
    }

    /// An account's own setting, or what `api` says for all.
    fn or_shared<T>(
        &mut self,
        name: &str,
        shared_name: &'static str,
        shared: Option<T>,
        parse: Parse<T>,
    ) -> Option<T> {
        if let Some(given) = self.find(name)? {
            return self.fit(name, given, parse);
        }
        let value = self.in_force(shared_name).and_then(|s| s.value.clone());
        self.list(name, value, Origin::Shared(shared_name));
        shared
    }

    /// What was given for a setting; a secret that is in its own file is read from there.
    fn find(&mut self, name: &str) -> Option<Option<Given>> {
        let given = match self.sources.find(name) {
            Ok(Found::Nothing) => Ok(None),
            Ok(Found::Value(given)) => Ok(Some(given)),
            Ok(Found::InFile(_)) if !self.opens_file_of(name) => Ok(None),
            Ok(Found::InFile(named_by)) => read_secret(name, &named_by).map(Some),
            Err(problem) => Err(problem),
        };
        given.map_err(|problem| self.problems.push(problem)).ok()
    }

    /// Whoever only sends a command need not be able to read the sellers' secrets.
    fn opens_file_of(&self, name: &str) -> bool {
        match self.needs {
            Needs::Everything => true,
            Needs::Broker => name.starts_with("amqp."),
        }
    }

    fn fit<T>(&mut self, name: &str, given: Given, parse: Parse<T>) -> Option<T> {
        match parse(&given.value) {
            Ok(value) => {
                let text = match shown(name) {
                    Shown::Whole => given.value.to_string(),
                    Shown::AsUrl => show_urls(&given.value.to_string()),
                    Shown::Never => "***".to_owned(),
                };
                self.list(name, Some(text), given.origin);
                Some(value)
            }
            Err(would_do) => {
                let found = match shown(name) {
                    Shown::Whole => quote(&given.value),
                    Shown::AsUrl | Shown::Never => "***".to_owned(),
                };
                let origin = given.origin;
                self.problems
                    .push(format!("{name} (from {origin}): found {found}; {would_do}"));
                None
            }
        }
    }

    fn list(&mut self, name: &str, value: Option<String>, origin: Origin) {
        self.settings.push(Setting {
            name: name.to_owned(),
            value,
            origin,
        });
    }

    /// A setting that was read before.
    fn in_force(&self, name: &str) -> Option<&Setting> {
        self.settings.iter().find(|s| s.name == name)
    }

    fn origin_of(&self, name: &str) -> String {
        self.in_force(name)
            .map_or_else(String::new, |s| s.origin.to_string())
    }

    fn missing(&mut self, problem: String) {
        match self.needs {
            Needs::Everything => self.problems.push(problem),
            Needs::Broker => {}
        }
    }
}

/// Checks one value; the error is a phrase that says what would do.
type Parse<T> = fn(&Value) -> Result<T, String>;

/// What `api` says for every account that does not say it itself. `None` was wrong or missing.
struct Shared {
    url: Option<Url>,
    max_orders_per_call: Option<u32>,
    calls_per_minute: Option<u32>,
    concurrency: Option<u32>,
}

/// URLs separated by commas without their passwords; a path as it is.
fn show_urls(text: &str) -> String {
    if !text.contains("://") {
        return text.to_owned();
    }
    let shown: Vec<String> = text.split(',').map(|url| mask_url(url.trim())).collect();
    shown.join(",")
}

/// A wrong value as an error repeats it: not for ever, and not what stands before the host of a
/// URL, which may be a password, or in its query, which may be signed.
fn quote(value: &Value) -> String {
    match value {
        Value::Untyped(text) | Value::Text(text) => {
            let (text, query) = match text.split_once('?') {
                Some((address, _)) if address.contains("://") => (address, "?***"),
                _ => (text.as_str(), ""),
            };
            let shown = match text.rsplit_once('@') {
                Some((_, host)) => format!("***@{host}{query}"),
                None => format!("{text}{query}"),
            };
            shorten(&format!("{shown:?}"))
        }
        Value::List(entries) => shorten(&format!("{entries:?}")),
        Value::Integer(_) | Value::Bool(_) | Value::Other(_) => shorten(&value.to_string()),
    }
}

fn shorten(text: &str) -> String {
    match text.char_indices().nth(QUOTE_MAX_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
