#!/bin/sh
# Compiles as cargo asks, and gives the worker's own modules and what reads JSON and TOML for them
# libFuzzer's counters and traced comparisons: what `cargo fuzz build --sanitizer none` gives to all.
# fuzz.sh names this as RUSTC_WRAPPER.
#
# The others have fuzz targets of their own, and their counters cost more than they tell: of an input of
# the settings nine tenths of the time went into the comparisons of strsim, which only says which name
# is nearest to a wrong one.
case " $* " in
  *' --crate-name build_script_'*) ;;
  *' --crate-name wdt_cancel_worker '* | *' --crate-name command '* | *' --crate-name answer '* | \
    *' --crate-name settings '* | *' --crate-name serde_json '* | *' --crate-name toml '* | \
    *' --crate-name toml_parser '*)
    exec "$@" -Cpasses=sancov-module \
      -Cllvm-args=-sanitizer-coverage-level=4 \
      -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
      -Cllvm-args=-sanitizer-coverage-pc-table \
      -Cllvm-args=-sanitizer-coverage-trace-compares \
      -Cllvm-args=-simplifycfg-branch-fold-threshold=0
    ;;
esac
exec "$@"
