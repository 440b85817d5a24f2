# shellcheck shell=bash
# What the scripts here share: finding Rust, installing RabbitMQ, and a private broker: on the
# loopback address, in a directory and on ports of its own, so that it disturbs nobody.
# The tests start theirs from the same recipe. To be sourced; needs bash.

say() { printf '== %s\n' "$*"; }

die() {
  printf 'cannot go on: %s\n' "$*" >&2
  exit 1
}

# Puts cargo into the path and checks that it is new enough for the Cargo.toml in this directory.
need_rust() {
  if ! command -v cargo >/dev/null && [ -x "${HOME:-}/.cargo/bin/cargo" ]; then
    PATH="$HOME/.cargo/bin:$PATH"
  fi
  command -v cargo >/dev/null ||
    die 'Rust is missing: install it as https://rustup.rs says, then run this again.'
  local wanted found
  wanted=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' Cargo.toml)
  found=$(cargo --version | cut -d ' ' -f 2)
  [ "$(printf '%s\n%s\n' "$wanted" "$found" | sort -V | head -n 1)" = "$wanted" ] ||
    die "Rust $found is too old, $wanted or newer is needed: rustup update"
}

# A C compiler, for the bundled SQLite and the TLS library.
need_c_compiler() {
  command -v cc >/dev/null || apt_install gcc libc6-dev
}

as_root() {
  if [ "$(id -u)" = 0 ]; then
    "$@"
  elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
    sudo -n "$@"
  else
    return 77
  fi
}

apt_install() {
  command -v apt-get >/dev/null ||
    die "this is no Debian or Ubuntu; install $* by hand, then run this again."
  as_root true || die "root is needed, once, for: apt-get install $*"
  say "installing $* (apt-get)"
  local log
  log=$(mktemp)
  if ! apt_get update >"$log" 2>&1 ||
    ! apt_get install -y --no-install-recommends "$@" >>"$log" 2>&1; then
    tail -n 20 "$log" >&2
    die "apt-get could not install $* (all it said: $log)"
  fi
  rm -f "$log"
}

apt_get() {
  # Another apt may be at work on a machine that has just started.
  as_root env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=120 "$@" </dev/null
}

# RABBITMQ_CHROOT: a folder with a Debian in it (tests/compat.sh makes some) whose RabbitMQ is used
# instead of the installed one. It needs root, and the broker's directory under the same name inside.

# The server's own start script, by its name inside RABBITMQ_CHROOT where that is given. Not the one
# in the path: that one changes the user, and what it starts is not the process that was started.
# Prints the newest, or fails.
broker_server() {
  local root=${RABBITMQ_CHROOT:-} found
  found=$(printf '%s\n' "$root"/usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin/rabbitmq-server |
    sort -V | tail -n 1)
  [ -x "$found" ] && printf '%s\n' "${found#"$root"}"
}

broker_installed() {
  broker_server >/dev/null || return
  if [ -n "${RABBITMQ_CHROOT:-}" ]; then
    [ -x "$RABBITMQ_CHROOT/usr/bin/epmd" ] && [ -x "$RABBITMQ_CHROOT/usr/bin/erl_call" ]
  else
    command -v epmd >/dev/null && command -v erl_call >/dev/null
  fi
}

# Installs a package whose service neither starts now nor with the machine.
apt_install_stopped() { # PACKAGE SERVICE
  # The package starts its service when nothing forbids it. This file is Debian's way to forbid.
  local policy=/usr/sbin/policy-rc.d
  (
    if [ ! -e "$policy" ] && as_root true; then
      # shellcheck disable=SC2016 # for the inner shell
      as_root sh -c 'printf "#!/bin/sh\nexit 101\n" >"$1" && chmod 755 "$1"' sh "$policy"
      trap 'as_root rm -f "$policy"' EXIT
      trap 'exit 130' INT TERM HUP
    fi
    apt_install "$1"
    if command -v systemctl >/dev/null; then
      as_root systemctl disable "$2" >/dev/null 2>&1 || true
    fi
  )
}

# Installs RabbitMQ when it is missing, and leaves no running system broker behind.
install_broker() {
  broker_installed && return
  apt_install_stopped rabbitmq-server rabbitmq-server || exit
  broker_installed || die 'RabbitMQ was installed, but its server is not where packages put it.'
}

# Writes everything a private broker needs into a directory: its files, `start-epmd`, `start`, and
# `erl_call`, which takes orders for the node from its input. The first two become the process
# itself, so a signal to what was started hits the Erlang VM. The distribution port is PORT + 10000.
#
# With a cookie and the ports of all nodes it is a node of that cluster; they share one epmd.
write_private_broker() { # DIR PORT EPMD_PORT [COOKIE NODE_PORT...]
  local dir=$1 port=$2 epmd_port=$3 cookie=${4:-} server into='' number=0 node
  case $dir in
    *[!A-Za-z0-9/._-]*) die "RabbitMQ's scripts do not get on with the directory name $dir" ;;
  esac
  server=$(broker_server) || die 'RabbitMQ is not installed.'
  [ -z "${RABBITMQ_CHROOT:-}" ] || into="chroot $RABBITMQ_CHROOT "
  mkdir -p "$dir"
  [ -n "$cookie" ] || cookie=$(od -An -N 16 -tx1 /dev/urandom | tr -d ' \n')
  # Who can read the cookie can give orders to the node.
  (umask 377 && printf '%s' "$cookie" >"$dir/.erlang.cookie")
  printf '[].\n' >"$dir/plugins"
  printf '[].\n' >"$dir/advanced.config"
  cat >"$dir/rabbitmq.conf" <<CONF
disk_free_limit.absolute = 50MB
vm_memory_high_watermark.absolute = 1GB
log.console = false
CONF
  if [ $# -gt 4 ]; then
    {
      printf 'cluster_formation.peer_discovery_backend = classic_config\n'
      printf 'cluster_formation.target_cluster_size_hint = %s\n' $(($# - 4))
      for node in "${@:5}"; do
        number=$((number + 1))
        printf 'cluster_formation.classic_config.nodes.%s = wdt-%s@localhost\n' "$number" "$node"
      done
      case $server in
        # Gone since 4.3, and refused there.
        *-3.* | *-4.[0-2].*) printf 'cluster_partition_handling = pause_minority\n' ;;
      esac
    } >>"$dir/rabbitmq.conf"
  fi
  # Erlang's port mapper. Left alone the VM starts one that outlives it.
  cat >"$dir/start-epmd" <<START
#!/bin/sh
exec ${into}env -i HOME=$dir PATH=/usr/sbin:/usr/bin:/sbin:/bin \\
  epmd -address 127.0.0.1 -port $epmd_port
START
  # RUNNING_UNDER_SYSTEMD makes the server's script become the Erlang VM instead of its parent.
  cat >"$dir/start" <<START
#!/bin/sh
exec ${into}env -i HOME=$dir PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 \\
  RUNNING_UNDER_SYSTEMD=true \\
  ERL_EPMD_PORT=$epmd_port \\
  ERL_EPMD_ADDRESS=127.0.0.1 \\
  RABBITMQ_CONF_ENV_FILE=/dev/null \\
  RABBITMQ_NODENAME=wdt-$port@localhost \\
  RABBITMQ_NODE_IP_ADDRESS=127.0.0.1 \\
  RABBITMQ_NODE_PORT=$port \\
  RABBITMQ_DIST_PORT=$((port + 10000)) \\
  RABBITMQ_MNESIA_BASE=$dir/data \\
  RABBITMQ_LOG_BASE=$dir/log \\
  RABBITMQ_PID_FILE=$dir/pid \\
  RABBITMQ_ENABLED_PLUGINS_FILE=$dir/plugins \\
  RABBITMQ_CONFIG_FILE=$dir/rabbitmq.conf \\
  RABBITMQ_ADVANCED_CONFIG_FILE=$dir/advanced.config \\
  RABBITMQ_GENERATED_CONFIG_DIR=$dir/gen \\
  RABBITMQ_PLUGINS_EXPAND_DIR=$dir/expand \\
  $server
START
  cat >"$dir/erl_call" <<CALL
#!/bin/sh
exec ${into}env -i HOME=$dir PATH=/usr/sbin:/usr/bin:/sbin:/bin ERL_EPMD_PORT=$epmd_port \\
  erl_call -sname wdt-$port@localhost "\$@"
CALL
  chmod 755 "$dir/start-epmd" "$dir/start" "$dir/erl_call"
}

# True when an AMQP server answers there: its first frame begins with a 1.
speaks_amqp() { # HOST PORT
  # A shell of its own, so that a frozen peer costs two seconds and no file descriptor.
  # shellcheck disable=SC2016 # for the inner shell
  timeout 2 bash -c '
    exec 3<>"/dev/tcp/$1/$2" && printf "AMQP\0\0\11\1" >&3 &&
      [ "$(head -c 1 <&3 | od -An -tu1 | tr -d " ")" = 1 ]
  ' bash "$1" "$2" 2>/dev/null
}

# True when somebody accepts TCP connections there.
listens() { # HOST PORT
  # shellcheck disable=SC2016 # for the inner shell
  timeout 2 bash -c 'exec 3<>"/dev/tcp/$1/$2"' bash "$1" "$2" 2>/dev/null
}

# A free port whose PORT + 10000 is free too. Both lie below the range that Linux takes ports for
# outgoing connections from, so nobody gets one by chance.
free_port() {
  local port
  for _ in {1..100}; do
    port=$((10000 + RANDOM % 12000))
    if ! listens 127.0.0.1 "$port" && ! listens 127.0.0.1 $((port + 10000)); then
      printf '%s\n' "$port"
      return
    fi
  done
  die 'there is no free port on 127.0.0.1'
}

BROKER_PIDS=()

# Starts a broker in an empty directory and waits until it answers; then BROKER_URL says where it is.
# Call stop_private_broker at the end, whatever happens: trap it.
start_private_broker() { # DIR
  local dir=$1 port epmd_port try waited
  # Somebody may take a port between our look and the broker's; then others will do.
  for try in 1 2 3; do
    port=$(free_port)
    epmd_port=$(free_port)
    write_private_broker "$dir/$try" "$port" "$epmd_port"
    # A session of their own: Ctrl-C is for the script, which then ends them in good order.
    setsid "$dir/$try/start-epmd" >"$dir/$try/epmd.log" 2>&1 </dev/null &
    BROKER_PIDS+=("$!")
    setsid "$dir/$try/start" >"$dir/$try/start.log" 2>&1 </dev/null &
    BROKER_PIDS+=("$!")
    # A start takes 3 to 6 s; beyond 60 s it is broken.
    for ((waited = 0; waited < 300; waited++)); do
      if speaks_amqp 127.0.0.1 "$port"; then
        # shellcheck disable=SC2034 # for who sources this
        BROKER_URL="amqp://guest:guest@127.0.0.1:$port/%2f"
        return
      fi
      kill -0 "${BROKER_PIDS[-1]}" 2>/dev/null || break
      sleep 0.2
    done
    tail -n 5 "$dir/$try/start.log" >&2
    stop_private_broker
  done
  die "the private broker did not start, three times; see the lines above"
}

# Ends what start_private_broker started, by pid, and nothing else.
stop_private_broker() {
  local pid
  for pid in "${BROKER_PIDS[@]}"; do
    # It holds nothing that anybody wants back, and a gentle end takes seconds.
    kill -9 "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
  done
  BROKER_PIDS=()
}
