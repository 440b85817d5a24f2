//! `config`: the settings in force, and where each came from. No secret is shown.

use crate::config::{Loaded, Setting};
use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;
use std::io::{self, Write};

/// One setting as JSON has it; `value` is null when there is none.
#[derive(Serialize)]
struct Row<'a> {
    setting: &'a str,
    value: Option<&'a str>,
    origin: String,
}

impl<'a> From<&'a Setting> for Row<'a> {
    fn from(setting: &'a Setting) -> Self {
        Self {
            setting: &setting.name,
            value: setting.value.as_deref(),
            origin: setting.origin.to_string(),
        }
    }
}

/// Writes the settings in the contract's order: as a table for people, or with `json` as an array
/// of `{"setting", "value", "origin"}`.
///
/// # Errors
/// Those of `out`.
pub fn run(loaded: &Loaded, json: bool, out: &mut impl Write) -> io::Result<()> {
    let rows: Vec<Row> = loaded.origins.iter().map(Row::from).collect();
    if json {
        serde_json::to_writer_pretty(&mut *out, &rows)?;
        return writeln!(out);
    }
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        // Lines are as long as they are: a broken one can be neither copied nor searched.
        .force_no_tty()
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(["SETTING", "VALUE", "FROM"]);
    for row in &rows {
        table.add_row([row.setting, row.value.unwrap_or("-"), &row.origin]);
    }
    for line in table.lines() {
        writeln!(out, "{}", line.trim())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn output(json: bool) -> String {
        let env = [
            ("WDT_ACCOUNTS__SHOP__SID", "店铺"),
            ("WDT_ACCOUNTS__SHOP__KEY", "hunter2"),
            ("WDT_ACCOUNTS__SHOP__SECRET", "hunter2:hunter2"),
            ("WDT_ACCOUNTS__SHOP__URL", "http://gateway.example/openapi"),
        ];
        let env = env.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let loaded = Config::load(None, env.into_iter()).unwrap();
        let mut out = Vec::new();
        run(&loaded, json, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_table_is_aligned_and_hides_secrets() {
        let text = output(false);
        let lines: Vec<&str> = text.lines().collect();
        let column = lines[0].find("VALUE").unwrap();
        assert!(
            lines[0].starts_with("SETTING") && lines[0].ends_with("FROM"),
            "{text}"
        );
        for line in &lines[1..] {
            let (name, rest) = line.split_at(column);
            assert!(name.ends_with(' ') && !rest.starts_with(' '), "{text}");
        }
        let words = |name: &str| -> Vec<&str> {
            let line = lines.iter().find(|l| l.starts_with(name)).unwrap();
            line.split_whitespace().collect()
        };
        assert_eq!(
            words("amqp.queue"),
            ["amqp.queue", "wdt.cancel.commands", "default"]
        );
        assert_eq!(words("api.url"), ["api.url", "-", "default"]);
        assert_eq!(
            words("accounts.shop.secret"),
            [
                "accounts.shop.secret",
                "***",
                "env",
                "WDT_ACCOUNTS__SHOP__SECRET"
            ]
        );
        assert!(!text.contains("hunter2"), "{text}");
    }

    #[test]
    fn json_is_an_array_of_all_settings() {
        let rows: Vec<serde_json::Value> = serde_json::from_str(&output(true)).unwrap();
        let row = |name: &str| rows.iter().find(|r| r["setting"] == name).unwrap();
        assert_eq!(
            *row("accounts.shop.concurrency"),
            serde_json::json!({
                "setting": "accounts.shop.concurrency",
                "value": "2",
                "origin": "api.concurrency",
            })
        );
        assert!(row("api.url")["value"].is_null());
        assert_eq!(row("accounts.shop.key")["value"], "***");
        assert_eq!(rows[0]["setting"], "amqp.url");
    }
}
