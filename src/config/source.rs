//! Where settings come from: the file and the environment, laid over each other by name. What a
//! value means is not looked at here.

use super::bounds::{SECRET_FILE_MAX_BYTES, SETTINGS_FILE_MAX_BYTES};
use super::known::{
    is_known, is_ours, is_section, is_service_link, nearest, split_variable, variable_of,
};
use super::value::{Value, filled};
use crate::rules::order::AccountName;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Names the settings file.
const FILE_VARIABLE: &str = "wdt_config";
/// Set while the program is built, to name its commit; it may still be there when it runs.
const BUILD_VARIABLE: &str = "wdt_commit";

const NO_ACCOUNT_NAME: &str =
    "is no account name; 1 to 64 of A-Z a-z 0-9 _ - would do, but not _ alone";

/// Where a setting's value in force comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Nobody gave it.
    Default,
    /// The settings file at this path.
    File(PathBuf),
    /// The environment variable of this name.
    Env(String),
    /// The secret's own file.
    SecretFile {
        /// The file that holds the secret.
        path: PathBuf,
        /// What named that file: a key of the settings file, or a variable.
        via: String,
    },
    /// An account's own value was not given, so this setting holds for it too.
    Shared(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Env(name) => write!(f, "env {name}"),
            Self::SecretFile { path, via } => write!(f, "file {} via {via}", path.display()),
            Self::Shared(name) => f.write_str(name),
        }
    }
}

/// What was given for one setting, and where.
#[derive(Debug, Clone)]
pub(super) struct Given {
    pub(super) value: Value,
    pub(super) origin: Origin,
}

/// What there is for one setting.
#[derive(Debug)]
pub(super) enum Found {
    /// Nothing.
    Nothing,
    /// A value.
    Value(Given),
    /// The path of a file that holds the value.
    InFile(Given),
}

/// The settings file.
#[derive(Debug, Clone, Copy)]
pub(super) enum SettingsFile<'a> {
    /// The one of this name, or else that of `WDT_CONFIG`, or else none.
    Named(Option<&'a Path>),
    /// This text, which errors call by this name. `WDT_CONFIG` is not looked at.
    Text(&'a Path, &'a str),
}

impl<'a> SettingsFile<'a> {
    fn path(self) -> Option<&'a Path> {
        match self {
            Self::Named(path) => path,
            Self::Text(path, _) => Some(path),
        }
    }
}

/// What one place gives: values by the setting's dotted name.
type Layer = BTreeMap<String, Given>;

/// All places, laid over each other.
#[derive(Debug, Default)]
pub(super) struct Sources {
    env: Layer,
    file: Layer,
    /// The accounts that are named anywhere, also those of which nothing else is given.
    pub(super) accounts: BTreeSet<AccountName>,
}

impl Sources {
    /// Reads the settings file, if one is given or else named by `WDT_CONFIG`, and takes the `WDT_`
    /// variables out of `env`. What cannot be placed goes to `problems`.
    ///
    /// `None` when the file cannot be read: without it, the settings it has would be told as
    /// missing.
    pub(super) fn gather(
        settings: SettingsFile<'_>,
        env: impl Iterator<Item = (String, String)>,
        problems: &mut Vec<String>,
    ) -> Option<Self> {
        let mut file = settings.path().map(Path::to_owned);
        let mut variables = BTreeMap::new();
        for (name, value) in env {
            match name.to_ascii_lowercase().as_str() {
                FILE_VARIABLE => file = file.or_else(|| Some(PathBuf::from(value))),
                BUILD_VARIABLE => {}
                _ if is_ours(&name) => {
                    variables.insert(name, value);
                }
                _ => {}
            }
        }

        let mut sources = Self::default();
        let mut file_is_read = true;
        if let Some(path) = file {
            let text = match settings {
                SettingsFile::Text(_, text) => Ok(text.to_owned()),
                SettingsFile::Named(_) => read_settings(&path),
            };
            match text.and_then(|text| parse_settings(&path, &text)) {
                Ok(table) => sources.add_file(&path, &table, problems),
                Err(problem) => {
                    problems.push(problem);
                    file_is_read = false;
                }
            }
        }
        // After the file, whose account names they are matched with.
        for (name, value) in variables {
            if let Err(problem) = sources.add_variable(&name, value) {
                problems.push(problem);
            }
        }
        file_is_read.then_some(sources)
    }

    fn add_file(&mut self, path: &Path, table: &toml::Table, problems: &mut Vec<String>) {
        let mut leaves = Vec::new();
        collect_leaves(table, &[], &mut leaves);
        for (keys, value) in leaves {
            if let Err(problem) = self.add_leaf(path, &keys, value)
                // An account's wrong name is told once, not for each of its keys.
                && !problems.contains(&problem)
            {
                problems.push(problem);
            }
        }
    }

    fn add_leaf(&mut self, path: &Path, keys: &[&str], value: &toml::Value) -> Result<(), String> {
        let is_table = value.is_table();
        if let ["accounts", account, more @ ..] = keys
            && (is_table || !more.is_empty())
        {
            let name = AccountName::new(account).ok_or_else(|| {
                format!(
                    "accounts.{} (from file {}): {NO_ACCOUNT_NAME}",
                    account.escape_debug(),
                    path.display()
                )
            })?;
            self.accounts.insert(name);
        }
        // A section that is there and empty; any other table was followed to its leaves.
        if is_table && is_section(keys) {
            return Ok(());
        }
        let name = keys.join(".");
        if !is_known(keys) {
            let lower = name.to_ascii_lowercase();
            let nearest = nearest(keys, |candidate| {
                strsim::osa_distance(&candidate.to_ascii_lowercase(), &lower)
            });
            return Err(format!(
                "{} (from file {}): there is no such setting; the nearest known key is {nearest}",
                name.escape_debug(),
                path.display()
            ));
        }
        let given = Given {
            value: Value::from(value),
            origin: Origin::File(path.to_owned()),
        };
        self.file.insert(name, given);
        Ok(())
    }

    fn add_variable(&mut self, variable: &str, value: String) -> Result<(), String> {
        let lower = variable.to_ascii_lowercase();
        let keys = split_variable(&lower);
        if !is_known(&keys) {
            let nearest = nearest(&keys, |candidate| {
                strsim::osa_distance(&variable_of(candidate).to_ascii_lowercase(), &lower)
            });
            let hint = if is_service_link(&lower) {
                "; Kubernetes sets such variables for a Service whose name begins with wdt, and \
                 enableServiceLinks: false in the pod's spec ends that"
            } else {
                ""
            };
            return Err(format!(
                "{} (from the environment): there is no such setting; the nearest known key is \
                 {nearest}, here {}{hint}",
                variable.escape_debug(),
                variable_of(&nearest)
            ));
        }
        let name = match keys[..] {
            ["accounts", account, key] => {
                let account = self.account_of(variable, account)?;
                let name = format!("accounts.{account}.{key}");
                self.accounts.insert(account);
                name
            }
            _ => keys.join("."),
        };
        if let Some(other) = self.env.get(&name) {
            return Err(format!(
                "{name} is given twice, by {} and env {variable}; one of them would do",
                other.origin
            ));
        }
        let given = Given {
            value: Value::Untyped(value),
            origin: Origin::Env(variable.to_owned()),
        };
        self.env.insert(name, given);
        Ok(())
    }

    /// The account that a variable means: the file's, in whichever case it is written there, or
    /// else one of its own.
    fn account_of(&self, variable: &str, lower: &str) -> Result<AccountName, String> {
        let same = |name: &&AccountName| name.as_str().eq_ignore_ascii_case(lower);
        let mut matching = self.accounts.iter().filter(same);
        match (matching.next(), matching.next()) {
            (Some(name), None) => Ok(name.clone()),
            (None, _) => AccountName::new(lower).ok_or_else(|| {
                let variable = variable.escape_debug();
                format!("{variable} (from the environment): {NO_ACCOUNT_NAME}")
            }),
            (Some(one), Some(other)) => Err(format!(
                "{variable} (from the environment): may mean the account {one} or the account \
                 {other} of the settings file; names that differ in more than case would do"
            )),
        }
    }

    /// What is in force for the setting of this dotted name: the environment before the file, the
    /// value and the path of its file having the same rank.
    ///
    /// # Errors
    /// The problem, when one place gives both.
    pub(super) fn find(&self, name: &str) -> Result<Found, String> {
        let name_of_file = format!("{name}_file");
        let ranks = [&self.env, &self.file].map(|l| (l.get(name), l.get(&name_of_file)));
        for rank in ranks {
            if let (Some(value), Some(in_file)) = rank {
                return Err(format!(
                    "{name} (from {}) and {name_of_file} (from {}): both are given; one of them \
                     would do",
                    value.origin, in_file.origin
                ));
            }
        }
        for (value, in_file) in ranks {
            if let Some(value) = value {
                return Ok(Found::Value(value.clone()));
            }
            if let Some(in_file) = in_file {
                return Ok(Found::InFile(in_file.clone()));
            }
        }
        Ok(Found::Nothing)
    }
}

/// The secret in the file that `named_by` names, without the line end that an editor puts there.
/// A relative path starts at the working directory.
///
/// # Errors
/// The problem, when the file cannot be read.
pub(super) fn read_secret(name: &str, named_by: &Given) -> Result<Given, String> {
    let key = format!("{name}_file");
    let from = &named_by.origin;
    let path = filled(&named_by.value)
        .map_err(|would_do| format!("{key} (from {from}): {would_do}, the path of a file"))?;
    let text = read_bounded(Path::new(&path), SECRET_FILE_MAX_BYTES)
        .map_err(|error| format!("{key} (from {from}): cannot read {path:?}: {error}"))?;
    let via = match from {
        Origin::File(settings) => {
            let last = key.rsplit('.').next().unwrap_or(&key);
            format!("{last} in {}", settings.display())
        }
        Origin::Env(_) | Origin::Default | Origin::SecretFile { .. } | Origin::Shared(_) => {
            from.to_string()
        }
    };
    Ok(Given {
        value: Value::Text(text.trim_end_matches(['\r', '\n']).to_owned()),
        origin: Origin::SecretFile {
            path: PathBuf::from(path),
            via,
        },
    })
}

fn read_settings(path: &Path) -> Result<String, String> {
    read_bounded(path, SETTINGS_FILE_MAX_BYTES).map_err(|error| {
        format!(
            "the settings file {} cannot be read: {error}",
            path.display()
        )
    })
}

fn parse_settings(path: &Path, text: &str) -> Result<toml::Table, String> {
    text.parse().map_err(|error: toml::de::Error| {
        // The error's own Display quotes the line, and a secret may be in it.
        let before = error.span().and_then(|span| text.get(..span.start));
        let line = before.unwrap_or_default().matches('\n').count() + 1;
        let what = error.message();
        format!(
            "the settings file {} is not TOML, line {line}: {what}",
            path.display()
        )
    })
}

/// The text of a file of at most so many bytes.
fn read_bounded(path: &Path, most: u64) -> io::Result<String> {
    let mut text = String::new();
    let mut file = File::open(path)?.take(most.saturating_add(1));
    file.read_to_string(&mut text)?;
    // None of the allowance is left: there was a byte too many.
    if file.limit() == 0 {
        return Err(io::Error::other(format!("it has more than {most} bytes")));
    }
    Ok(text)
}

/// A value of the settings file and the keys that lead to it.
type Leaf<'t> = (Vec<&'t str>, &'t toml::Value);

/// All values that are no tables, and all tables that are empty. The parser has its own bound for
/// how deep tables can be.
fn collect_leaves<'t>(table: &'t toml::Table, above: &[&'t str], leaves: &mut Vec<Leaf<'t>>) {
    for (key, value) in table {
        let keys = [above, &[key.as_str()]].concat();
        match value.as_table() {
            Some(inner) if !inner.is_empty() => collect_leaves(inner, &keys, leaves),
            Some(_) | None => leaves.push((keys, value)),
        }
    }
}
