#!/bin/sh
# Builds the foreign device and prints its path; `make test` hands that to the test `foreign_fdo`.
set -eu
cd "$(dirname "$0")"
# Its own folder in any case: it is another workspace with other features.
cargo build --locked --quiet --target-dir target
echo "$PWD/target/debug/foreign-device"
