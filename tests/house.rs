//! The directions of imports: rules know nothing, an edge knows the rules and no other edge, only
//! the worker and the composition root join them.

use std::fs;
use std::path::{Path, PathBuf};

/// A module, and what it may import from the crate.
const HOUSE: [(&str, &[&str]); 12] = [
    ("rules", &["rules"]),
    ("broker", &["broker", "rules"]),
    ("gateway", &["gateway", "rules"]),
    ("ledger", &["ledger", "rules"]),
    ("admin", &["admin", "rules"]),
    ("config", &["config", "rules"]),
    ("notify", &[]),
    ("telemetry", &["config", "rules", "telemetry"]),
    ("letters", &["admin", "broker", "rules"]),
    ("stories", &["admin", "ledger", "rules"]),
    (
        "worker",
        &["admin", "broker", "gateway", "ledger", "rules", "telemetry"],
    ),
    (
        "app",
        &[
            "admin",
            "broker",
            "config",
            "gateway",
            "ledger",
            "letters",
            "notify",
            "rules",
            "stories",
            "telemetry",
            "worker",
        ],
    ),
];

fn files_of(module: &str) -> Vec<PathBuf> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let file = src.join(format!("{module}.rs"));
    if file.exists() {
        return vec![file];
    }
    let mut files = Vec::new();
    let mut folders = vec![src.join(module)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a module is a file or a folder") {
            let path = entry.expect("readable").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                files.push(path);
            }
        }
    }
    files
}

#[test]
fn imports_run_one_way() {
    for (module, allowed) in HOUSE {
        let files = files_of(module);
        assert!(!files.is_empty(), "{module} has files");
        for file in files {
            let text = fs::read_to_string(&file).expect("source is UTF-8");
            for (number, line) in text.lines().enumerate() {
                for imported in line.split("crate::").skip(1) {
                    let name: String = imported
                        .chars()
                        .take_while(|c| c.is_alphanumeric() || *c == '_')
                        .collect();
                    // `use crate::{a, b}` is written as a line each, so every name shows here.
                    assert!(
                        allowed.contains(&name.as_str()),
                        "{}:{}: {module} must not know {name:?}",
                        file.display(),
                        number + 1
                    );
                }
            }
        }
    }
}

#[test]
fn rules_do_no_input_or_output() {
    const FORBIDDEN: [&str; 8] = [
        "Instant::now",
        "Timestamp::now",
        "SystemTime",
        "std::fs",
        "std::net",
        "tokio::",
        "serde",
        "tracing::",
    ];
    for file in files_of("rules") {
        let text = fs::read_to_string(&file).expect("source is UTF-8");
        for word in FORBIDDEN {
            assert!(!text.contains(word), "{}: {word}", file.display());
        }
    }
}

#[test]
fn only_the_proofs_owners_make_them() {
    let makes = |word: &str| -> Vec<String> {
        HOUSE
            .iter()
            .flat_map(|(module, _)| files_of(module))
            .filter(|file| fs::read_to_string(file).expect("UTF-8").contains(word))
            .map(|file| file.display().to_string())
            .collect()
    };
    // A call needs `Sent`, an acknowledgement needs `Finished`.
    assert!(
        makes("Done::Sent(Sent {")
            .iter()
            .all(|f| f.contains("/ledger/"))
    );
    // Of commands; a dead letter is nobody's delivery, and is acknowledged where it is moved.
    let acknowledges = [makes("basic_ack"), makes(".ack(BasicAck")].concat();
    let of_letters = |file: &String| file.ends_with("/broker/dead.rs");
    assert_eq!(
        acknowledges.iter().filter(|file| !of_letters(file)).count(),
        1
    );
}
