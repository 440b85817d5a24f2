#!/usr/bin/env bash
# Checks what is in deploy/, as far as that can be done without a container engine and a cluster:
# the service unit, the alerts and their tests, every YAML file by its schema, and the dashboard's
# queries against a Prometheus that scrapes a worker at work (CHECK_WORKER, else one that is built
# here). Installs what is missing from the distribution's packages and from PyPI (into a folder of its
# own that is removed).
#
# Tried by hand, on Debian 12 with its packages, and with stand-ins for the base images:
# - The image, built by podman 4.3 and by Docker 20.10 (BuildKit) on Debian 12 with Rust 1.95: one
#   static file, 23 MB with the certificates. Run by both, the root read-only, no capability:
#   ready, a command, a drain, a start on the same volume; and by podman a kill within a call, a
#   back-up and its restore.
# - The compose file, read by podman-compose 1.6 (of PyPI), and started by docker-compose 1.29 without
#   its line "name" and without Grafana; RabbitMQ was 3.10, PostgreSQL 15, Prometheus 2.42.
# - The service, under systemd 252 booted in a container: start, status, reload, the watchdog on a
#   stopped process, a drain, the exit codes 2 and 64. That container had no controllers for
#   MemoryMax= and TasksMax=; the image ran with the same limits.
#
# Not tried, for want of what it would take: the base images themselves, Compose 2, that a cluster
# takes the manifests and KEDA's objects, that Grafana draws the dashboard.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. deploy/lib-broker.sh
exec </dev/null

dir=$(mktemp -d "${TMPDIR:-/tmp}/wdt-deploy-XXXXXX")
pids=()
clean_up() {
  local pid
  for pid in "${pids[@]}"; do
    kill -9 "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
  done
  stop_private_broker
  rm -rf "$dir" || { sleep 1 && rm -rf "$dir"; }
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# Waits until a command succeeds: half a minute, unless what it waits for has ended.
until_ok() { # WHAT PID COMMAND...
  local what=$1 pid=$2 waited
  shift 2
  for ((waited = 0; waited < 150; waited++)); do
    if "$@" >/dev/null 2>&1; then return; fi
    kill -0 "$pid" 2>/dev/null || break
    sleep 0.2
  done
  tail -n 20 "$dir"/*.log >&2
  die "$what does not get ready; see the lines above"
}

page() { # PORT PATH
  # shellcheck disable=SC2016 # for the inner shell
  timeout 5 bash -c '
    exec 3<>"/dev/tcp/127.0.0.1/$1" && printf "GET %s HTTP/1.0\r\nhost: localhost\r\n\r\n" "$2" >&3 &&
      grep -q "^HTTP/1.. 200" <&3
  ' bash "$1" "$2"
}

start() { # LOG COMMAND...
  local log=$1
  shift
  "$@" >"$dir/$log.log" 2>&1 &
  pids+=("$!")
}

need_rust
need_c_compiler
command -v systemd-analyze >/dev/null || apt_install systemd
command -v promtool >/dev/null || apt_install_stopped prometheus prometheus
python3 -c 'import ensurepip' 2>/dev/null || apt_install python3-venv
install_broker

say 'the service unit'
# The program that it names is not on this machine.
mkdir "$dir/unit"
sed 's#/usr/local/bin/wdt-cancel-worker#/bin/true#' deploy/systemd/wdt-cancel-worker.service \
  >"$dir/unit/wdt-cancel-worker.service"
systemd-analyze verify "$dir/unit/wdt-cancel-worker.service" 2>"$dir/unit/said"
# It ends with 0 for a setting that it does not know.
[ ! -s "$dir/unit/said" ] || { cat "$dir/unit/said" >&2 && die 'systemd-analyze finds fault with the unit'; }
systemd-analyze security --offline=true --threshold=20 "$dir/unit/wdt-cancel-worker.service" | tail -n 1

say 'the alerts'
promtool check rules deploy/prometheus/alerts.yaml
promtool test rules deploy/prometheus/alerts.test.yaml
promtool check config deploy/prometheus/prometheus.yml >/dev/null

say 'schemas'
python3 -m venv "$dir/python"
"$dir/python/bin/pip" --quiet --disable-pip-version-check install \
  check-jsonschema==0.39.0 kubernetes-validate==1.37.0 PyYAML
"$dir/python/bin/check-jsonschema" --builtin-schema vendor.compose-spec deploy/compose.yaml
manifests=(deploy/kubernetes/base/[!k]*.yaml)
if command -v kubectl >/dev/null; then
  kubectl kustomize deploy/kubernetes/example >"$dir/rendered.yaml"
  manifests+=("$dir/rendered.yaml")
else
  say 'no kubectl here, so the overlay is not rendered'
fi
"$dir/python/bin/kubernetes-validate" --strict --kubernetes-version 1.34 \
  --quiet --no-warn "${manifests[@]}"
"$dir/python/bin/python" deploy/check.py runbooks
"$dir/python/bin/python" deploy/check.py translation

say 'the dashboard and the alerts, against a worker at work'
worker=${CHECK_WORKER:-}
if [ -z "$worker" ]; then
  cargo build --locked
  worker=${CARGO_TARGET_DIR:-target}/debug/wdt-cancel-worker
fi
start_private_broker "$dir/broker"
gateway=$(free_port) admin=$(free_port) prometheus=$(free_port)
start gateway "$worker" sandbox --listen "127.0.0.1:$gateway" --calls-per-minute 0
export WDT_AMQP__URL=$BROKER_URL WDT_API__URL="http://127.0.0.1:$gateway/openapi" \
  WDT_API__CALLS_PER_MINUTE=0 WDT_LEDGER__URL="$dir/ledger" WDT_ADMIN__LISTEN="127.0.0.1:$admin" \
  WDT_ACCOUNTS__DEFAULT__SID=demo_sid WDT_ACCOUNTS__DEFAULT__KEY=demo-app-key \
  WDT_ACCOUNTS__DEFAULT__SECRET=testsecret:testsalt WDT_RETRY__MAX_ATTEMPTS=2
"$worker" bind results >/dev/null
start worker "$worker" run
until_ok 'the worker' "${pids[-1]}" page "$admin" /readyz
sed -e "s#worker:9464#127.0.0.1:$admin#" -e 's/15s/1s/g' \
  -e "s#alerts.yaml#$PWD/deploy/prometheus/alerts.yaml#" deploy/prometheus/prometheus.yml \
  >"$dir/prometheus.yml"
start prometheus prometheus --config.file="$dir/prometheus.yml" --storage.tsdb.path="$dir/series" \
  --web.listen-address="127.0.0.1:$prometheus"
until_ok Prometheus "${pids[-1]}" page "$prometheus" /-/ready
# A rate takes two scrapes, and a counter appears with its first count; so orders come until all is seen.
# Some end well, one is looked up, one is refused, one is given up and its command parked.
start load bash -c '
  for round in {1..60}; do
    "$1" send "QC-$round-1" "QC-$round-2" "LOST-$round" "DONE-$round" "BAD-$round" || [ $? -eq 1 ]
    sleep 1
  done
' bash "$worker"
"$dir/python/bin/python" deploy/check.py dashboard "http://127.0.0.1:$prometheus"
"$dir/python/bin/python" deploy/check.py alerts "http://127.0.0.1:$prometheus"
say "deploy/ is well: $SECONDS s"
