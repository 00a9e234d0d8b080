#!/bin/sh
# Builds the foreign device and prints its path; `make test` hands that to the test `foreign_fdo`.
set -eu
cd "$(dirname "$0")"
cargo build --locked --quiet
echo "$PWD/target/debug/foreign-device"
