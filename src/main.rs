//! The `wdt-cancel-worker` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    #[cfg(feature = "failpoints")]
    let _armed = fail::FailScenario::setup();
    wdt_cancel_worker::cli::main(std::env::args_os())
}
