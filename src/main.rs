//! The `wdt-cancel-worker` command.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

/// The standard library's variable for the stack of threads that do not say how much they want.
const STACK: &str = "RUST_MIN_STACK";
/// The AMQP client reads a message's headers by recursion, in a thread of its own whose stack nobody
/// else can set. A frame of 128 KiB holds lists 26,000 deep, which take between 32 and 64 MiB, and
/// without optimization between 128 and 256. It is address space; memory is taken as far as it is
/// used.
const STACK_BYTES: usize = if cfg!(debug_assertions) { 512 } else { 128 } << 20;

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    if std::env::var_os(STACK).is_none() {
        become_again(&arguments);
    }
    #[cfg(feature = "failpoints")]
    let _armed = fail::FailScenario::setup();
    wdt_cancel_worker::cli::main(arguments)
}

/// The same program in the same process, with more stack. Returns when that cannot be: then all
/// works but for a message with such headers.
fn become_again(arguments: &[OsString]) {
    let Ok(program) = std::env::current_exe() else {
        return;
    };
    let mut again = Command::new(program);
    if let Some((name, rest)) = arguments.split_first() {
        again.arg0(name).args(rest);
    }
    let error = again.env(STACK, STACK_BYTES.to_string()).exec();
    eprintln!("wdt-cancel-worker: without {STACK}: {error}");
}
