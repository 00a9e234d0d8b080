#!/bin/sh
# `make bench`: builds the release profile that we ship and measures it beside Debian's mosquitto. Arguments go to the
# program: --quick, --only NAME, --rounds N, --list. Figures mean something only when nothing else runs on the machine.
set -eu
cd "$(dirname "$0")/.."
cargo build --locked --release -p holdfast-broker --example bench_server
cargo build --locked --release -p holdfast-tests --bin bench
built=${CARGO_TARGET_DIR:-target}/release
exec "$built/bench" ${CARGO_TARGET_DIR:+--server "$built/examples/bench_server"} "$@"
