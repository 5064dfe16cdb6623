#!/usr/bin/env bash
# Fuzzes every decoder for a while each, starting from the recordings.
#
#   fuzz/run.sh [SECONDS-EACH] [TARGET...]     default: 60 seconds, all targets
#
# With the nightly compiler and cargo-fuzz under the address sanitizer; else with the stable compiler, which has the same
# coverage and no sanitizer (the decoders are safe code: what is looked for are panics, hangs and allocations). Findings are
# kept in fuzz/artifacts/.
set -euo pipefail
cd "$(dirname "$0")"

seconds=${1:-60}
shift || true
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=(row_v1 row_v2 datums json decimal time binlog row_meta job)
limits=(-max_total_time="$seconds" -max_len=8192 -rss_limit_mb=1024 -malloc_limit_mb=64 -timeout=5)

# The coverage's build has its own place.
export CARGO_TARGET_DIR=${SLUICE_CACHE:-$HOME/.cache/sluice}/fuzz-target

under_a_sanitizer() {
  cargo +nightly run --quiet --bin seeds
  for target in "${targets[@]}"; do
    echo "fuzz: $target for $seconds s"
    cargo +nightly fuzz run --fuzz-dir . --features targets "$target" -- "${limits[@]}" -print_final_stats=1
  done
}

with_the_stable_compiler() {
  local host coverage
  host=$(rustc -vV | sed -n 's/^host: //p')
  # What cargo-fuzz passes, less the sanitizer.
  coverage='--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table
    -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 -Cdebug-assertions'
  cargo run --quiet --bin seeds
  # With a target named, the flags are not for build scripts.
  RUSTFLAGS=$(tr -s ' \n' ' ' <<<"$coverage") cargo build --quiet --release --target "$host" --features targets \
    "${targets[@]/#/--bin=}"
  for target in "${targets[@]}"; do
    echo "fuzz: $target for $seconds s"
    mkdir -p "artifacts/$target"
    local log="artifacts/$target/last.log" found=0
    "$CARGO_TARGET_DIR/$host/release/$target" "${limits[@]}" -print_final_stats=1 \
      -artifact_prefix="artifacts/$target/" "corpus/$target" >"$log" 2>&1 || found=$?
    grep -E '^stat::(number_of_executed_units|average_exec_per_sec|peak_rss_mb)' "$log" || true
    if [ "$found" != 0 ]; then
      tail -n 40 "$log" >&2
      echo "fuzz: $target failed; the input is in fuzz/artifacts/$target" >&2
      exit 1
    fi
  done
}

if cargo +nightly --version >/dev/null 2>&1 && cargo fuzz --version >/dev/null 2>&1; then
  under_a_sanitizer
else
  with_the_stable_compiler
fi
