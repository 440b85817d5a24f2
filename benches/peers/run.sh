#!/usr/bin/env bash
# The worker beside the same job written with other libraries, on the same private broker and the
# gateway's emulator, which checks every signature: with a gateway that takes 20 ms, then with 60
# calls a minute. Installs the others, pinned, under target/peers/; touches nothing else.
#
#   benches/peers/run.sh [ORDERS [MINUTES]]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
. deploy/lib-broker.sh
exec </dev/null

orders=${1:-5000}
minutes=${2:-3}
need_rust
need_c_compiler
command -v node >/dev/null && command -v npm >/dev/null ||
  die 'Node is missing, 20 or newer with npm: apt-get install nodejs npm'
python3 -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' 2>/dev/null ||
  die 'Python is missing, 3.10 or newer with venv: apt-get install python3-venv'

sources=$PWD/benches/peers
installed=$PWD/target/peers
mkdir -p "$installed"

say 'FastStream'
python3 -m venv "$installed/faststream"
"$installed/faststream/bin/pip" install --quiet --disable-pip-version-check --no-deps \
  -r "$sources/faststream/requirements.txt"

say 'rabbitmq-client'
rm -rf "$installed/rabbitmq-client"
cp -r "$sources/rabbitmq-client" "$installed/rabbitmq-client"
npm ci --prefix "$installed/rabbitmq-client" --silent --no-audit --no-fund

faststream="$installed/faststream/bin/python $sources/faststream/peer.py"
node="$(command -v node) $installed/rabbitmq-client/peer.js"
bench() {
  cargo bench --locked --quiet --bench throughput -- "$@"
}

# Two calls at a time are what the platform bears; more of them shows what the libraries bear.
say "a gateway that takes 20 ms, $orders orders"
bench --emulator --latency 20 --rate 0 --orders "$orders" \
  --peer "FastStream, 2 at a time=$faststream 2" \
  --peer "rabbitmq-client, 2 at a time=$node 2" \
  --peer "FastStream, 100 at a time=$faststream 100" \
  --peer "rabbitmq-client, 100 at a time=$node 100"

say "60 calls a minute, over $minutes minutes"
bench --latency 20 --calls-limit "$minutes" \
  --peer "FastStream=$faststream 2" \
  --peer "rabbitmq-client=$node 2"
