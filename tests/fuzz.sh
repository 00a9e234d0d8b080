#!/bin/sh
# The property and mutation tests with far more cases than the short run of `make test`.
set -eu
cd "$(dirname "$0")/.."
export PROPTEST_CASES="${PROPTEST_CASES:-20000}"
export HOLDFAST_FUZZ_SECONDS="${SECONDS_EACH:-60}"
for crate in holdfast-protocol holdfast-store holdfast-broker holdfast-config holdfast-cps; do
    echo "fuzz: $crate, $PROPTEST_CASES cases a property, $HOLDFAST_FUZZ_SECONDS s a mutation test" >&2
    cargo test --locked -p "$crate" --lib --tests -- propert mutat model arbitrary
done
