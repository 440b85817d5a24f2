//! The worker is killed, at every step of the durable order and at random under load, and started
//! again: nothing is lost, nothing is told wrongly, nothing is sent that should have been looked up.
#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, its helpers too"
)]

mod binary;
mod book;
mod load;
mod plan;
mod points;
mod record;
#[path = "../support/mod.rs"]
mod support;
mod told;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

#[tokio::test]
async fn killed_at_every_step_the_worker_ends_where_one_ends_that_nobody_killed() {
    points::every_step().await;
}

#[tokio::test]
async fn killed_at_random_under_load_it_tells_every_order_and_tells_the_truth() {
    load::random_kills().await;
}

#[test]
fn every_fail_point_has_a_scene_and_a_place_in_the_durable_order() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let scenes: BTreeSet<String> = points::POINTS.iter().map(|(p, _)| p.to_string()).collect();
    assert_eq!(scenes.len(), points::POINTS.len());
    let mut in_source = BTreeSet::new();
    let mut folders = vec![root.join("src")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = fs::read_to_string(&path).unwrap();
            for part in text.split("fail_point!(\"").skip(1) {
                let name = part.split('"').next().unwrap().to_string();
                assert!(in_source.insert(name.clone()), "{name} is in two places");
            }
        }
    }
    assert_eq!(in_source, scenes);
    let text = fs::read_to_string(root.join("docs/ARCHITECTURE.md")).unwrap();
    let order = text.split("## The durable order").nth(1).unwrap();
    let order = order.split("\n## ").next().unwrap();
    for name in &scenes {
        assert!(order.contains(&format!("`{name}`")), "{name} is not in it");
    }
}

#[tokio::test]
async fn the_default_build_has_no_fail_point() {
    let holds = |binary: &Path, text: &str| {
        let bytes = fs::read(binary).unwrap();
        bytes
            .windows(text.len())
            .any(|part| part == text.as_bytes())
    };
    let killable = binary::killable().await;
    let default = Path::new(env!("CARGO_BIN_EXE_wdt-cancel-worker"));
    for text in ["fail-at-", "FAILPOINTS"] {
        assert!(holds(killable, text), "{text}");
        assert!(!holds(default, text), "{text}");
    }
}
