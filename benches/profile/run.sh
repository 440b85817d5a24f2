#!/usr/bin/env bash
# Where the worker's CPU time goes: runs the benchmark, samples the worker's stacks while it works off
# the orders, and prints what each part takes of an order's microseconds. Needs Linux's perf, as root.
#
#   benches/profile/run.sh [ORDERS]
#
# What another commit takes: build that one, put its worker in place of target/release/wdt-cancel-worker,
# and run this with PROFILE_BUILT=1, which builds nothing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
. deploy/lib-broker.sh
exec </dev/null

orders=${1:-120000}
need_rust
need_c_compiler
command -v perf >/dev/null || die "perf is missing: apt-get install linux-perf"
[ -n "${PROFILE_BUILT:-}" ] || cargo bench --locked --no-run --quiet --bench throughput
bench=$(find target/release/deps -name 'throughput-*' -type f -executable -printf '%T@ %p\n' |
  sort -n | tail -n 1 | cut -d' ' -f2)
[ -n "$bench" ] || die 'the benchmark is not built: cargo bench --no-run --bench throughput'

dir=$(mktemp -d "${TMPDIR:-/tmp}/wdt-profile-XXXXXX")
bench_pid=
trap '[ -z "$bench_pid" ] || kill "$bench_pid" 2>/dev/null; rm -rf "$dir"' EXIT
"$bench" --orders "$orders" --runs 1 --rate 0 >"$dir/bench.log" 2>&1 &
bench_pid=$!

at_work() { # the worker writes its ledger
  worker=$(pgrep -P "$bench_pid" -f 'wdt-cancel-worker') &&
    [ "$(awk '/^write_bytes/ { print int($2 / 1e6) }' "/proc/$worker/io")" -gt 5 ]
}
say "waiting for the worker to be at work on $orders orders"
until grep -q 'run 1: grouped' "$dir/bench.log" && at_work 2>/dev/null; do
  kill -0 "$bench_pid" 2>/dev/null || die "the benchmark ended: $(tail -n 1 "$dir/bench.log")"
  sleep 0.1
done
say 'sampling it'
perf record --quiet --call-graph dwarf,16384 -F 149 -p "$worker" -o "$dir/perf.data" -- sleep 5
wait "$bench_pid"
bench_pid=
perf script -i "$dir/perf.data" -F comm,tid,ip,sym,dso 2>/dev/null >"$dir/stacks"
micros=$(sed -n 's/^run 1: worker .* \([0-9.]*\) µs CPU.*/\1/p' "$dir/bench.log")
python3 benches/profile/parts.py "$micros" <"$dir/stacks"
