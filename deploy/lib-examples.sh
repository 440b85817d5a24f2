# shellcheck shell=bash
# Installing what docs/examples/ needs, pinned, where the tests look for it: target/examples/. To be
# sourced after lib-broker.sh, in the repository's root; needs bash.

install_examples() {
  local examples=docs/examples into=target/examples have
  command -v node >/dev/null && command -v npm >/dev/null || apt_install nodejs npm
  python3 -c 'import ensurepip, venv' 2>/dev/null || apt_install python3-venv
  mkdir -p "$into"
  # What is there already stays, unless something else is asked for now.
  have=$(cat "$examples"/python/requirements.txt "$examples"/node/package*.json | sha256sum)
  [ "$(cat "$into/installed" 2>/dev/null)" = "$have" ] && return
  say 'installing what the examples need, under target/examples/'
  rm -rf "$into/python" "$into/node"
  python3 -m venv "$into/python" &&
    "$into/python/bin/pip" install --quiet --disable-pip-version-check --no-deps \
      -r "$examples/python/requirements.txt" || die 'the Python example cannot be installed'
  # Beside the script, for Node looks for packages there.
  cp -r "$examples/node" "$into/node"
  npm ci --prefix "$into/node" --silent --no-audit --no-fund || die 'the Node example cannot be installed'
  printf '%s\n' "$have" >"$into/installed"
}
