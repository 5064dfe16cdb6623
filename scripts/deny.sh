#!/usr/bin/env bash
# Licences, sources and banned crates always; known vulnerabilities by the newest database that can be had: fetched, else the
# copy of an earlier run. Without either the check passes, and says in its last lines what it did not do.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo deny --log-level error check --hide-inclusion-graph bans licenses sources
if timeout 60 cargo deny --log-level off fetch db >/dev/null 2>&1; then
  cargo deny --log-level error check --hide-inclusion-graph advisories
  exit
fi
copies=$(find "${CARGO_HOME:-$HOME/.cargo}/advisory-dbs" -maxdepth 2 -name .git 2>/dev/null || true)
{
  echo '!!!'
  if [ -n "$copies" ]; then
    echo '!!! advisories: the database cannot be fetched from here; checking by the copy of an earlier run'
  else
    echo '!!! advisories: NOT CHECKED. The database cannot be fetched from here and there is no copy of it.'
    echo '!!! Known vulnerabilities of dependencies go unnoticed until `make lint` runs where it can be fetched.'
  fi
  echo '!!!'
} >&2
[ -z "$copies" ] || cargo deny --offline --log-level error check --hide-inclusion-graph advisories
