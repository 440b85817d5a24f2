//! Points between the steps of the durable order (`docs/ARCHITECTURE.md` names each), at which a test
//! kills the worker.
//!
//! They exist only in a build with the cargo feature `failpoints`. There `FAILPOINTS` says where,
//! and at which passing, in the words of the `fail` crate: `fail-at-tell=2*off->return` is the third
//! event to be published.

/// Kills the process here if `FAILPOINTS` says so; nothing at all in a build without the feature.
macro_rules! fail_point {
    ($name:literal) => {
        #[cfg(feature = "failpoints")]
        $crate::failpoint::pass(concat!("fail-at-", $name));
    };
}

/// Ends by SIGKILL, so that no destructor runs and nothing is flushed.
#[cfg(feature = "failpoints")]
pub(crate) fn pass(name: &str) {
    use rustix::process::{Signal, getpid, kill_process};

    fail::fail_point!(name, |_| {
        if kill_process(getpid(), Signal::KILL).is_err() {
            std::process::abort();
        }
    });
}
