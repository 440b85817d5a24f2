#!/usr/bin/env bash
# Runs the broker's tests against each RabbitMQ that Debian has: 3.10 (Debian 12), 4.0 (Debian 13)
# and 4.3 (Debian's next). Needs root and a Debian with its package sources set up.
#
#   tests/compat.sh [SUITE...]        bookworm trixie forky, or some of them
#   COMPAT_TESTS='broker_faults'      the test binaries to run
#   COMPAT_DIR=…                      where the systems are kept (370 MB each), to be used again
#
# The installed RabbitMQ stands for its own version. For another one a small Debian is unpacked, once,
# from the mirror that apt uses, and the tests start their private brokers in there; see
# RABBITMQ_CHROOT in deploy/lib-broker.sh. Nothing in it is started by itself, and what is mounted is
# seen by this script alone and goes with it, however it ends.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. deploy/lib-broker.sh

[ "$(id -u)" = 0 ] || die 'tests/compat.sh needs root, for chroot and mounts.'
if [ -z "${COMPAT_MOUNTS:-}" ]; then
  COMPAT_MOUNTS=own exec unshare --mount --propagation private -- "$0" "$@"
fi

DIR=${COMPAT_DIR:-target/compat}
SUITES=("$@")
[ $# -gt 0 ] || SUITES=(bookworm trixie forky)
# Those that start a broker and look into it.
read -r -a TESTS <<<"${COMPAT_TESTS:-broker_faults broker_lines unreadable cluster poison fair contract operators}"
# 20 minutes for all tests of one binary; they take 1 to 5 on two idle cores.
LIMIT=1200

# What apt uses for Debian itself, not for its security updates.
mirror() {
  apt-get indextargets --format '$(REPO_URI)' \
    'Created-By: Packages' 'Origin: Debian' 'Label: Debian' 'Component: main' | head -n 1
}

# The version of the RabbitMQ that is installed under a folder; nothing when there is none.
version_in() { # ROOT
  local server
  server=$(RABBITMQ_CHROOT=$1 broker_server) || return 0
  server=${server#*/rabbitmq_server-}
  printf '%s\n' "${server%%/*}"
}

# Puts the folder with the suite's system into ROOT, empty for the machine's own.
take_system() { # SUITE
  local suite=$1 tree script=/usr/share/debootstrap/scripts/$1
  ROOT=''
  if [ "$suite" = bookworm ] && [[ $(version_in '') == 3.10.* ]]; then
    return
  fi
  tree=$(realpath -m "$DIR/$suite")
  if [ ! -d "$tree" ]; then
    command -v debootstrap >/dev/null || apt_install debootstrap
    # Each suite's script is the same; an older debootstrap does not know the newer names.
    [ -e "$script" ] || ln -s sid "$script"
    say "unpacking $suite into $tree"
    mkdir -p "$DIR"
    rm -rf "$tree.part"
    debootstrap --variant=minbase --include=rabbitmq-server,ca-certificates \
      "$suite" "$tree.part" "$(mirror)" >"$tree.log" 2>&1 ||
      die "debootstrap could not make $suite; all it said: $tree.log"
    printf '127.0.0.1 localhost\n' >"$tree.part/etc/hosts"
    mv "$tree.part" "$tree"
  fi
  mount -t proc proc "$tree/proc"
  # The brokers' directories have the same names inside.
  mkdir -p "$tree$WORK"
  mount --bind "$WORK" "$tree$WORK"
  ROOT=$tree
}

leave_system() {
  local waited
  # The tests' watchdog ends what they started and removes their files, a moment after they ended.
  for ((waited = 0; waited < 50; waited++)); do
    [ -n "$(ls -A "$WORK")" ] || break
    sleep 0.2
  done
  if [ -n "$ROOT" ]; then
    umount "$ROOT$WORK" "$ROOT/proc"
    rmdir "$ROOT$WORK"
  fi
}

# One row of the table: passed and failed tests of one binary.
run_tests() { # VERSION TEST
  local version=$1 name=$2 log=$DIR/$1-$2.log passed failed
  say "RabbitMQ $version: $name (log: $log)"
  RABBITMQ_CHROOT=$ROOT TMPDIR=$WORK timeout "$LIMIT" \
    cargo test --locked --test "$name" >"$log" 2>&1 </dev/null || true
  read -r passed failed < <(sed -n \
    's/^test result: [^0-9]*\([0-9]*\) passed; \([0-9]*\) failed.*/\1 \2/p' "$log") || true
  if [ -z "${passed:-}" ] || [ "$passed" = 0 ] || [ "$failed" != 0 ]; then
    FAILED=1
    sed -n 's/^test \(.*\) \.\.\. FAILED$/   failed: \1/p' "$log"
  fi
  ROWS+=("$(printf '%-9s %-16s %6s %6s' "$version" "$name" "${passed:-none}" "${failed:-none}")")
}

need_rust
need_c_compiler
install_broker
say 'building the tests'
mkdir -p "$DIR"
WORK=$(mktemp -d)
trap 'rmdir "$WORK" 2>/dev/null || true' EXIT
HAVE=()
for name in "${TESTS[@]}"; do
  [ ! -e "tests/$name.rs" ] || HAVE+=("$name")
done
cargo test --locked --no-run "${HAVE[@]/#/--test=}"

ROWS=()
FAILED=0
for suite in "${SUITES[@]}"; do
  take_system "$suite"
  version=$(version_in "$ROOT")
  for name in "${HAVE[@]}"; do
    run_tests "$version" "$name"
  done
  leave_system
done
printf '\n%-9s %-16s %6s %6s\n' RabbitMQ tests passed failed
printf '%s\n' "${ROWS[@]}"
exit "$FAILED"
