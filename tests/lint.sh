#!/bin/sh
# Form and supply chain: rustfmt, clippy, licences, bans, sources; advisories only from a database that is already here.
set -eu
cd "$(dirname "$0")/.."
PATH="$PWD/target/tools/bin:$PATH"

cargo fmt --all -- --check
cargo fmt --manifest-path tests/foreign-fdo/Cargo.toml -- --check
cargo fmt --manifest-path tests/foreign-mqtt/Cargo.toml -- --check
cargo clippy --locked --workspace --all-targets -- -D warnings
cargo deny --log-level error check --hide-inclusion-graph bans licenses sources

# An advisory check needs the RustSec database; it is not fetched behind anybody's back.
if [ -n "${HOLDFAST_ADVISORY_DB:-}" ] && [ -d "$HOLDFAST_ADVISORY_DB" ]; then
    cargo deny check --disable-fetch advisories
else
    echo "lint: advisories not checked (no database here; set HOLDFAST_ADVISORY_DB to a checkout of it)" >&2
    [ -z "${HOLDFAST_SKIPS:-}" ] || echo "advisories: no local RustSec database" >>"$HOLDFAST_SKIPS"
fi
