#!/bin/sh
# `make test`: all that must hold before a change lands. Prints each part's time and, at the end, what was skipped.
set -eu
cd "$(dirname "$0")/.."

HOLDFAST_SKIPS="$PWD/target/skipped.txt"
export HOLDFAST_SKIPS
mkdir -p target
: >"$HOLDFAST_SKIPS"
began=$(date +%s)

part() { # part NAME COMMAND...
    name=$1
    shift
    start=$(date +%s)
    echo "== $name" >&2
    "$@" || { echo "== $name FAILED after $(($(date +%s) - start)) s" >&2; exit 1; }
    echo "== $name held, $(($(date +%s) - start)) s" >&2
}

unit_tests() {
    if cargo nextest --version >/dev/null 2>&1; then
        cargo nextest run --locked --workspace --no-fail-fast
    else
        cargo test --locked --workspace --no-fail-fast --quiet
    fi
}

part "lints, licences, bans" tests/lint.sh
part "binaries" cargo build --locked --workspace --bins
part "tests" unit_tests
part "foreign FDO device" tests/foreign-fdo/run.sh
part "drill" target/debug/drill

count=$(wc -l <"$HOLDFAST_SKIPS" | tr -d ' ')
echo "== skipped: $count" >&2
sed 's/^/   /' "$HOLDFAST_SKIPS" >&2
echo "== all held, $(($(date +%s) - began)) s" >&2
