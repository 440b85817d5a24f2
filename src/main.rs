//! The `wdt-cancel-worker` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    wdt_cancel_worker::cli::main(std::env::args_os())
}
