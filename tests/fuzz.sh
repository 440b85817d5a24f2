#!/usr/bin/env bash
# Fuzzes the command's body, the gateway's answer and the settings (tests/fuzz), each with so many
# inputs: tests/fuzz.sh [RUNS [TARGET…]]. Without RUNS, ten million. FUZZ_SECONDS ends each target
# after that time, however many inputs it has had.
#
# Needs Rust, stable, and a C++ compiler. No sanitizer: the worker's own code has no `unsafe`, and without
# one the stable compiler will do. What is instrumented, and how, stands in tests/fuzz/rustc.sh; what the
# targets check beyond panics stands in their heads. They are targets of cargo-fuzz too, for whoever has
# that: cargo fuzz run --fuzz-dir tests/fuzz --sanitizer none TARGET.
#
# The targets run beside each other. Prints inputs and coverage of each. What fails is left in
# tests/fuzz/target/found, and is tried again with: tests/fuzz/target/HOST/release/TARGET FILE
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. deploy/lib-broker.sh

runs=${1:-10000000}
shift $(($# > 0 ? 1 : 0))
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=(command answer settings)

need_rust
need_c_compiler
command -v c++ >/dev/null || apt_install g++
# The longest input, in bytes, and the dictionary. Longer inputs of one kind are for unit tests.
declare -A longest=([command]=4096 [answer]=4096 [settings]=512)
declare -A words=([command]=json [answer]=json [settings]=settings)
# How often a line of TOML is passed tells nothing, and to weigh it took half of the settings' time.
declare -A more=([command]='' [answer]='' [settings]='-use_counters=0')
host=$(rustc -vV | sed -n 's/^host: //p')
work=$PWD/tests/fuzz/target/found
mkdir -p "$work"
say 'building what is fuzzed'
# Assertions on: an overflow is a fault here. For a named host, or build scripts were instrumented too.
(
  cd tests/fuzz
  RUSTC_WRAPPER=$PWD/rustc.sh RUSTFLAGS='--cfg fuzzing -Cdebug-assertions' \
    cargo build --locked --release --target "$host" "${targets[@]/#/--bin=}"
)

fuzz() { # TARGET
  local target=$1 corpus=tests/fuzz/target/corpus/$1 log=$work/$1.log inputs speed memory coverage
  mkdir -p "$corpus"
  # Two minutes for one input, which takes a millisecond, is for machines where nothing moves for long.
  # Memory is bounded on purpose: an input of a few KiB that takes hundreds of MiB is a fault.
  # shellcheck disable=SC2086 # what there is more is one word, or none
  if "tests/fuzz/target/$host/release/$target" \
    -runs="$runs" -max_total_time="${FUZZ_SECONDS:-0}" -max_len="${longest[$target]}" \
    -timeout=120 -rss_limit_mb=1024 -malloc_limit_mb=256 -print_final_stats=1 ${more[$target]} \
    -dict="tests/fuzz/${words[$target]}.dict" -artifact_prefix="$work/$target-" \
    "$corpus" "tests/fuzz/corpus/$target" >"$log" 2>&1; then
    inputs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    speed=$(sed -n 's/^stat::average_exec_per_sec: *//p' "$log")
    memory=$(sed -n 's/^stat::peak_rss_mb: *//p' "$log")
    coverage=$(grep -oE 'cov: [0-9]+ ft: [0-9]+' "$log" | tail -n 1)
    say "$target: $inputs inputs, no fault; $coverage; $speed a second, at most $memory MiB"
  else
    tail -n 40 "$log"
    say "$target: a fault; see $work"
    return 1
  fi
}

pids=()
trap '[ ${#pids[@]} -eq 0 ] || kill "${pids[@]}" 2>/dev/null' EXIT
for target in "${targets[@]}"; do
  say "$target: $runs inputs${FUZZ_SECONDS:+, or $FUZZ_SECONDS s}"
  fuzz "$target" &
  pids+=($!)
done
status=0
for pid in "${pids[@]}"; do
  wait "$pid" || status=1
done
pids=()
exit $status
