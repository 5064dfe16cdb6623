#!/usr/bin/env bash
# Licences, sources and banned crates always; known vulnerabilities where their database can be fetched.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo deny --log-level error check --hide-inclusion-graph bans licenses sources
if timeout 60 cargo deny --log-level off fetch db >/dev/null 2>&1; then
  cargo deny --log-level error check --hide-inclusion-graph advisories
else
  echo 'advisories: NOT checked, their database cannot be fetched from here'
fi
