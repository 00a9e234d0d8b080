#!/bin/sh
# The property, model and mutation tests for longer than in `make test`: SECONDS_EACH for each mutation test,
# PROPTEST_CASES for each property that does not fix its own number.
set -eu
cd "$(dirname "$0")/.."
export PROPTEST_CASES="${PROPTEST_CASES:-5000}"
export HOLDFAST_FUZZ_SECONDS="${SECONDS_EACH:-60}"
for crate in protocol store link broker cps agent; do
    echo "== holdfast-$crate: $PROPTEST_CASES cases a property, $HOLDFAST_FUZZ_SECONDS s a mutation test" >&2
    cargo test --locked --quiet -p "holdfast-$crate" -- fuzz mutat propert model hostile
done
