//! The build that can be killed at a fail point: optimised like a release, with the cargo feature
//! `failpoints`, in the folder of a profile of its own, so that no other build is replaced.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tokio::sync::OnceCell;

use super::support::process;

/// A cold build takes some minutes on two cores.
const BUILD_LIMIT: Duration = Duration::from_secs(15 * 60);
/// The cargo profile, whose name is also its folder's.
const PROFILE: &str = "kill";

/// The binary, built by whoever asks first.
pub async fn killable() -> &'static Path {
    static BUILT: OnceCell<PathBuf> = OnceCell::const_new();
    BUILT
        .get_or_init(|| async {
            let built = tokio::task::spawn_blocking(build).await;
            built.expect("the build is waited for")
        })
        .await
}

fn build() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .parent()
        .expect("target/tmp lies in target");
    let mut cargo = Command::new(env!("CARGO"));
    cargo
        .args(["build", "--quiet", "--locked", "--features", "failpoints"])
        .args(["--profile", PROFILE, "--bin", "wdt-cancel-worker"])
        .arg("--target-dir")
        .arg(target)
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    let built = process::run(&mut cargo, "", BUILD_LIMIT);
    let said = String::from_utf8_lossy(&built.stderr);
    assert!(built.status.success(), "{cargo:?}:\n{said}");
    target.join(PROFILE).join("wdt-cancel-worker")
}
