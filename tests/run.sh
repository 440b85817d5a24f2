#!/usr/bin/env bash
# Runs all tests on a machine that has nothing but Rust: installs RabbitMQ and a C compiler when
# they are missing, then `cargo test`. Arguments are passed on to it. The tests start brokers of
# their own and end them; a broker that runs here already is not touched.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. deploy/lib-broker.sh

need_rust
need_c_compiler
install_broker

say "running the tests: cargo test --locked $*"
exec cargo test --locked "$@"
