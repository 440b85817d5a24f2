# shellcheck shell=bash
# Installing PostgreSQL, and a private one: on the loopback address, in a directory and on a port of
# its own, so that it disturbs nobody. The tests start theirs from this recipe. To be sourced after
# lib-broker.sh; needs bash.

# The newest installed version's programs: prints their folder, or fails.
postgres_programs() {
  local found
  found=$(printf '%s\n' /usr/lib/postgresql/*/bin | sort -V | tail -n 1)
  [ -x "$found/postgres" ] && [ -x "$found/initdb" ] && printf '%s\n' "$found"
}

postgres_installed() {
  postgres_programs >/dev/null
}

# Installs PostgreSQL when it is missing, and leaves no running system database behind.
install_postgres() {
  postgres_installed && return
  apt_install_stopped postgresql postgresql || exit
  postgres_installed || die 'PostgreSQL was installed, but its programs are not where packages put them.'
}

# Makes a database cluster in a directory, and `start`, which becomes the server itself, so a signal to
# what was started hits it. Its superuser is `wdt`, whom it believes without a password; databases are
# for its user to make. PostgreSQL does not run as root, so there it runs as `postgres`, who has to be
# let into the directories above.
write_private_postgres() { # DIR PORT
  local dir=$1 port=$2 programs as=()
  programs=$(postgres_programs) || die 'PostgreSQL is not installed.'
  mkdir -p "$dir"
  if [ "$(id -u)" = 0 ]; then
    as=(setpriv --reuid=postgres --regid=postgres --clear-groups)
    chown postgres "$dir"
  fi
  # It is not flushed when it is made: a test's database need not outlive the machine.
  "${as[@]}" env -i PATH=/usr/bin:/bin LC_ALL=C.UTF-8 \
    "$programs/initdb" --pgdata="$dir/data" --username=wdt --auth=trust --encoding=UTF8 \
    --no-sync --no-instructions >"$dir/initdb.log" 2>&1 ||
    die "initdb failed: $(tail -n 3 "$dir/initdb.log")"
  cat >>"$dir/data/postgresql.conf" <<CONF
listen_addresses = '127.0.0.1'
port = $port
unix_socket_directories = ''
max_connections = 60
shared_buffers = 64MB
fsync = off
log_min_messages = warning
CONF
  cat >"$dir/start" <<START
#!/bin/sh
exec ${as[*]} env -i PATH=/usr/bin:/bin LC_ALL=C.UTF-8 $programs/postgres -D $dir/data
START
  chmod 755 "$dir/start"
}
