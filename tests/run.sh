#!/usr/bin/env bash
# Runs all tests on a machine that has nothing but Rust: installs RabbitMQ, PostgreSQL, a C compiler,
# Python and Node when they are missing, then `cargo test`. Arguments are passed on to it. The tests
# start brokers and databases of their own and end them; what runs here already is not touched.
#
# WDT_TEST_KILLS=50 makes the random kills fewer; without it there are 200, which take some minutes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. deploy/lib-broker.sh
. deploy/lib-postgres.sh
. deploy/lib-examples.sh

need_rust
need_c_compiler
install_broker
install_postgres
install_examples

if [ $# -gt 0 ]; then
  say "running the tests: cargo test --locked $*"
  exec cargo test --locked "$@"
fi

say 'building the tests'
cargo test --locked --no-run
# Most tests wait most of the time, so these run beside the others: a build, long waits, a database.
beside=('kill model broker_lines cluster' 'many_workers ledger_conformance integrate secrets access')
others=()
for test in tests/*.rs tests/*/main.rs; do
  name=${test#tests/}
  name=${name%/main.rs}
  name=${name%.rs}
  case " ${beside[*]} " in *" $name "*) ;; *) others+=("--test=$name") ;; esac
done
logs=$(mktemp -d)
pids=()
trap '[ ${#pids[@]} -eq 0 ] || kill "${pids[@]}" 2>/dev/null; rm -rf "$logs"' EXIT
for names in "${beside[@]}"; do
  say "running the tests beside the others: $names"
  read -r -a tests <<<"$names"
  cargo test --locked --no-fail-fast "${tests[@]/#/--test=}" -- --nocapture >"$logs/$names" 2>&1 &
  pids+=($!)
done
say 'running all other tests'
status=0
cargo test --locked -p wdt-cancel-worker --no-fail-fast --lib --bins "${others[@]}" || status=$?
cargo test --locked --doc || status=$?
for i in "${!pids[@]}"; do
  wait "${pids[i]}" || status=$?
  say "${beside[i]}:"
  cat "$logs/${beside[i]}"
done
pids=()
[ "$status" -eq 0 ] || die 'a test failed; see above'
