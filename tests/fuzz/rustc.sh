#!/bin/sh
# Compiles as cargo asks, with libFuzzer's counters and traced comparisons: what cargo-fuzz's own build
# has with `--sanitizer none`. fuzz.sh names this as RUSTC_WRAPPER.
#
# All that reads an input is instrumented. strsim is not: it only says which name is nearest to a wrong
# one, and its comparisons, hundreds of thousands for one input, took nine tenths of the settings' time.
case " $* " in
  *' --target '*) ;;
  # Build scripts and macros.
  *) exec "$@" ;;
esac
case " $* " in
  *' --crate-name strsim '*) exec "$@" ;;
esac
exec "$@" -Cpasses=sancov-module \
  -Cllvm-args=-sanitizer-coverage-level=4 \
  -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
  -Cllvm-args=-sanitizer-coverage-pc-table \
  -Cllvm-args=-sanitizer-coverage-trace-compares \
  -Cllvm-args=-simplifycfg-branch-fold-threshold=0
