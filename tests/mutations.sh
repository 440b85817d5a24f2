#!/usr/bin/env bash
# Breaks the rules on purpose, one law at a time, and shows which tests notice.
#
#   tests/mutations.sh             every patch in tests/mutations (most of an hour)
#   tests/mutations.sh NAME…       these only
#   tests/mutations.sh --check     only that each patch still applies (a second)
#
# Each patch is applied to a copy of the tree, one at a time; then the desk's stories
# (tests/desk.rs) and the model (tests/model) run against it. The copy builds in a folder of its own
# inside the target folder, with hard links to the dependencies that are compiled already. Ends with
# 1 when a mutation is caught by neither, when a patch no longer applies, or does not compile.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
# A run of the model takes half a minute; a mutation may make it slower, or endless.
readonly RUN_SECONDS=600

die() { echo "mutations: $*" >&2; exit 1; }
field() { sed -n "s/^$2: //p;/^diff /q" "$1"; }

patches=()
check_only=
for argument in "$@"; do
  case $argument in
    --check) check_only=yes ;;
    *)
      patch="$root/tests/mutations/${argument%.patch}.patch"
      [ -f "$patch" ] || die "there is no tests/mutations/${argument%.patch}.patch"
      patches+=("$patch")
      ;;
  esac
done
[ ${#patches[@]} -gt 0 ] || patches=("$root"/tests/mutations/*.patch)

for patch in "${patches[@]}"; do
  git apply --check "$patch" || die "$(basename "$patch") no longer applies; write it anew"
done
if [ -n "$check_only" ]; then
  echo "each of ${#patches[@]} mutations applies"
  exit
fi

target=${CARGO_TARGET_DIR:-$root/target}
mkdir -p "$target"
work=$(mktemp -d "$(realpath "$target")/mutations.XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/tree" "$work/target/debug"
cp -a Cargo.toml Cargo.lock src tests benches "$work/tree/"
# The rules know nothing else of the crate, so they compile alone, and in seconds.
rm "$work/tree/src/main.rs"
echo 'pub mod rules;' >"$work/tree/src/lib.rs"
for part in deps build .fingerprint; do
  if [ -d "$target/debug/$part" ]; then
    cp -al "$target/debug/$part" "$work/target/debug/"
  fi
done
# Not the tree's own: cargo would write through the links, and each tree take the other's for fresh.
rm -rf "$work"/target/debug/.fingerprint/{wdt-cancel-worker,model}-*
export CARGO_TARGET_DIR=$work/target
# The copy lies inside a repository and is none.
export GIT_CEILING_DIRECTORIES=$work
cd "$work/tree"

build() { cargo test --locked --quiet --test model --test desk --no-run >"$work/build" 2>&1; }
run() { timeout "$RUN_SECONDS" cargo test --locked --quiet "$@" >"$work/out" 2>&1; }
# What the model says is broken, or the desk's first failed story.
why() {
  grep -m 1 -E '^(law [0-9]|at the end|it panicked|it does not|it goes)' "$work/out" ||
    sed -n 's/^---- \(.*\) stdout ----$/\1/p' "$work/out" | head -n 1
}

echo 'without a mutation …' >&2
build || { cat "$work/build" >&2; die 'the tree does not compile'; }
run --test desk || { cat "$work/out" >&2; die 'the desk fails without a mutation'; }
run --test model || { cat "$work/out" >&2; die 'the model fails without a mutation'; }

survivors=()
echo '| mutation | law | model | desk |'
echo '|---|---|---|---|'
for patch in "${patches[@]}"; do
  name=$(basename "$patch" .patch)
  git apply "$patch"
  build || { cat "$work/build" >&2; die "$name does not compile"; }
  desk='not caught'
  model='not caught'
  run --test desk || desk="caught: $(why)"
  { run --test model by_chance && run --test model every_course; } || model="caught: $(why | cut -c 1-80)"
  git apply --reverse "$patch"
  case $desk$model in
    *'caught: '*) ;;
    *) survivors+=("$name") ;;
  esac
  echo "| \`$name\`: $(field "$patch" What) | $(field "$patch" Law) | $model | $desk |"
done
echo
echo "${#patches[@]} mutations, ${#survivors[@]} caught by neither: ${survivors[*]:-none}; $((SECONDS / 60)) min $((SECONDS % 60)) s"
[ ${#survivors[@]} -eq 0 ]
