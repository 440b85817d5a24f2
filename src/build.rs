//! Tells the program which commit it was built from, as the compile-time variable `WDT_COMMIT`:
//! the first 12 digits, `-dirty` when a tracked file differs from it, `unknown` outside git.
//!
//! A `WDT_COMMIT` that is already set is taken as it is: a container build has no `.git`.

// Standard output is how a build script speaks to cargo.
#![allow(clippy::print_stdout)]

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-env-changed=WDT_COMMIT");
    // Without these, an edit would leave a commit's name on a build that is no longer its own.
    for watched in ["src", "Cargo.toml", "Cargo.lock"] {
        println!("cargo::rerun-if-changed={watched}");
    }
    for watched in git_files() {
        println!("cargo::rerun-if-changed={watched}");
    }

    let given = std::env::var("WDT_COMMIT").ok();
    let commit = given
        .filter(|commit| !commit.is_empty())
        .or_else(commit_of_the_tree)
        .unwrap_or_else(|| "unknown".to_owned());
    println!("cargo::rustc-env=WDT_COMMIT={commit}");
}

/// The checked-out commit, or `None` outside git or where git refuses to answer.
fn commit_of_the_tree() -> Option<String> {
    let commit = git(&["rev-parse", "--short=12", "HEAD"])?;
    let changes = git(&["status", "--porcelain", "--untracked-files=no"])?;
    let mark = if changes.is_empty() { "" } else { "-dirty" };
    Some(format!("{commit}{mark}"))
}

/// The files that say which commit is checked out, as far as they exist: cargo would run the
/// script at every build for one that does not. Git is asked where they are, since in a worktree
/// `.git` is a file, and the branches are kept elsewhere.
fn git_files() -> Vec<String> {
    let branch = git(&["symbolic-ref", "--quiet", "HEAD"]);
    // The log of HEAD grows with every commit, also with one that turns a packed branch into a
    // file that is not there yet.
    ["HEAD", "logs/HEAD", "packed-refs"]
        .into_iter()
        .chain(branch.as_deref())
        .filter_map(|name| git(&["rev-parse", "--git-path", name]))
        .filter(|path| Path::new(path).exists())
        .collect()
}

/// What git prints, trimmed; `None` when it is absent or fails.
fn git(args: &[&str]) -> Option<String> {
    // Without the option, a status may write to the index while another git is at work.
    let output = Command::new("git")
        .arg("--no-optional-locks")
        .args(args)
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}
