#!/usr/bin/env bash
# Shows the worker at work, on a machine that has nothing but Rust: builds it, finds or starts a
# broker, and runs `wdt-cancel-worker demo` against it. The gateway is emulated, so no real order
# is touched. Arguments are passed on to the demo. Its exit status is the demo's.
#
# A broker that answers at WDT_AMQP__URL, or else at 127.0.0.1:5672, is used; the demo has queue
# names of its own there. If none answers, RabbitMQ is installed when it is missing, and a private
# one runs for as long as the demo does.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. deploy/lib-broker.sh

url=${WDT_AMQP__URL:-amqp://guest:guest@127.0.0.1:5672/%2f}
dir=

clean_up() {
  stop_private_broker
  # What the broker wrote last may still be on its way.
  [ -z "$dir" ] || rm -rf "$dir" || { sleep 1 && rm -rf "$dir"; }
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'exit 129' HUP

# True when a broker answers at one of the URLs, which are separated by commas.
any_answers() { # URLS
  local urls one
  IFS=, read -r -a urls <<<"$1"
  for one in "${urls[@]}"; do
    answers "$one" && return
  done
  return 1
}

answers() { # URL
  local rest host port
  rest=${1#*://}
  rest=${rest##*@}
  rest=${rest%%[/?]*}
  case $rest in
    \[*\]*) host=${rest%%\]*} host=${host#\[} port=${rest##*\]} ;;
    *:*) host=${rest%:*} port=:${rest##*:} ;;
    *) host=$rest port= ;;
  esac
  port=${port#:}
  case $1 in
    # Nobody can greet a TLS port in plain AMQP; that somebody listens must do.
    amqps:*) listens "$host" "${port:-5671}" ;;
    *) speaks_amqp "$host" "${port:-5672}" ;;
  esac
}

# Without user and password.
shown() { # URLS
  sed -E 's#://[^@,]*@#://#g' <<<"$1"
}

need_rust
need_c_compiler

say 'building the worker (the first time takes some minutes)'
cargo build --release --locked

if any_answers "$url"; then
  say "using the broker at $(shown "$url")"
else
  say "no broker answers at $(shown "$url"): starting a private one"
  install_broker
  dir=$(mktemp -d "${TMPDIR:-/tmp}/wdt-demo-XXXXXX")
  start_private_broker "$dir"
  url=$BROKER_URL
fi

say 'running the demo'
WDT_AMQP__URL=$url "${CARGO_TARGET_DIR:-target}/release/wdt-cancel-worker" demo "$@"
