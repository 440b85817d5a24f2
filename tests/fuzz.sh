#!/usr/bin/env bash
# Fuzzes the command's body, the gateway's answer and the settings (tests/fuzz), each with so many
# inputs: tests/fuzz.sh [RUNS [TARGET…]]. Without RUNS, ten million. FUZZ_SECONDS ends each target
# after that time, however many inputs it has had.
#
# Needs Rust, stable, a C++ compiler, and cargo-fuzz, which is installed when it is missing. No
# sanitizer: the worker's own code has no `unsafe`, and without one the stable compiler will do.
# What the targets check beyond panics stands in their heads.
#
# Prints inputs and coverage of each target. What fails is left in tests/fuzz/target/found, and is
# tried again with: tests/fuzz/target/x86_64-unknown-linux-gnu/release/TARGET FILE
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. deploy/lib-broker.sh

CARGO_FUZZ=0.13.2
runs=${1:-10000000}
shift $(($# > 0 ? 1 : 0))
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=(command answer settings)

need_rust
need_c_compiler
command -v c++ >/dev/null || apt_install g++
if ! cargo fuzz --version 2>/dev/null | grep -qF "$CARGO_FUZZ"; then
  say "installing cargo-fuzz $CARGO_FUZZ"
  cargo install --locked cargo-fuzz --version "$CARGO_FUZZ"
fi

# The longest input, in bytes, and the dictionary. Longer inputs of one kind are for unit tests.
declare -A longest=([command]=4096 [answer]=4096 [settings]=512)
declare -A words=([command]=json [answer]=json [settings]=settings)
host=$(rustc -vV | sed -n 's/^host: //p')
work=tests/fuzz/target/found
mkdir -p "$work"
status=0
for target in "${targets[@]}"; do
  # Assertions on: an overflow is a fault here.
  cargo fuzz build --fuzz-dir tests/fuzz --sanitizer none --debug-assertions "$target"
  corpus=tests/fuzz/target/corpus/$target
  mkdir -p "$corpus"
  log=$work/$target.log
  say "$target: $runs inputs${FUZZ_SECONDS:+, or $FUZZ_SECONDS s}"
  # Memory is bounded on purpose: an input of a few KiB that takes hundreds of MiB is a fault.
  if "tests/fuzz/target/$host/release/$target" \
    -runs="$runs" -max_total_time="${FUZZ_SECONDS:-0}" -max_len="${longest[$target]}" \
    -timeout=10 -rss_limit_mb=1024 -malloc_limit_mb=256 -print_final_stats=1 \
    -dict="tests/fuzz/${words[$target]}.dict" -artifact_prefix="$work/$target-" \
    "$corpus" "tests/fuzz/corpus/$target" >"$log" 2>&1; then
    inputs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    speed=$(sed -n 's/^stat::average_exec_per_sec: *//p' "$log")
    memory=$(sed -n 's/^stat::peak_rss_mb: *//p' "$log")
    coverage=$(grep -oE 'cov: [0-9]+ ft: [0-9]+' "$log" | tail -n 1)
    say "$target: $inputs inputs, no fault; $coverage; $speed a second, at most $memory MiB"
  else
    status=1
    tail -n 40 "$log"
    say "$target: a fault; see $work"
  fi
done
exit $status
