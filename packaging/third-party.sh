#!/bin/sh
# Lists the libraries that a program links, with each one's licence, and the texts of these licences
# once each: packaging/third-party.sh holdfast-gateway. Called by build-deb.sh; reads cargo's sources only.
set -eu
cd "$(dirname "$0")/.."
program=$1
sources=${CARGO_HOME:-$HOME/.cargo}/registry/src
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cargo tree --locked -p "$program" -e normal --prefix none --no-dedupe -f '{p}|{l}' |
    sed -n 's/^\([^ ]*\) v\([^ |]*\)\( (proc-macro)\)\{0,1\}|\(.*\)$/\1 \2 \4/p' | LC_ALL=C sort -u >"$work/crates"
[ -s "$work/crates" ] || { echo "third-party: cargo tree told nothing about $program" >&2; exit 1; }

mkdir "$work/texts"
while read -r name version _; do
    for text in "$sources"/*/"$name-$version"/LICEN[CS]E* "$sources"/*/"$name-$version"/COPYING* "$sources"/*/"$name-$version"/NOTICE*; do
        [ -f "$text" ] || continue
        sum=$(sha256sum <"$text" | cut -c1-16)
        [ -f "$work/texts/$sum" ] || cp "$text" "$work/texts/$sum"
        printf '%s %s (%s)\n' "$name" "$version" "${text##*/}" >>"$work/texts/$sum.of"
    done
done <"$work/crates"

printf 'Libraries linked into %s: name, version, licence.\n\n' "$program"
cat "$work/crates"
for text in "$work"/texts/*.of; do
    printf '\n%s\nText found in:\n' "------------------------------------------------------------------------"
    sed 's/^/  /' "$text"
    printf '\n'
    cat "${text%.of}"
done
