#!/usr/bin/env bash
# Fuzzes every decoder for a while each, starting from the recordings.
#
#   fuzz/run.sh [SECONDS-EACH] [TARGET...]     default: 60 seconds, all targets
#
# Needs the nightly compiler and cargo-fuzz; without them it says how to get them. (Every change is checked without them: the
# tests of crate tidb send mutated seeds through the same functions.) Findings are kept in fuzz/artifacts/.
set -euo pipefail
cd "$(dirname "$0")"

seconds=${1:-60}
shift || true
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=(row_v1 row_v2 datums json decimal time binlog row_meta job)

if ! cargo +nightly --version >/dev/null 2>&1; then
  echo 'fuzz: no nightly compiler: rustup toolchain install nightly' >&2
  exit 1
fi
if ! cargo fuzz --version >/dev/null 2>&1; then
  echo 'fuzz: no cargo-fuzz: cargo +stable install cargo-fuzz --locked' >&2
  exit 1
fi

# The sanitizer's build has its own place.
export CARGO_TARGET_DIR=${SLUICE_CACHE:-$HOME/.cache/sluice}/fuzz-target
cargo +nightly run --quiet --bin seeds
for target in "${targets[@]}"; do
  echo "fuzz: $target for $seconds s"
  cargo +nightly fuzz run --fuzz-dir . --features targets "$target" -- \
    -max_total_time="$seconds" -max_len=8192 -rss_limit_mb=1024 -malloc_limit_mb=64 -timeout=5 -print_final_stats=1
done
