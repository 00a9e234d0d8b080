#!/bin/sh
# Builds one Debian package from this tree: packaging/build-deb.sh gateway
# Needs dpkg-dev and binutils beside Rust; no root, no network beyond cargo's. The same commit and
# tools give the same bytes. Why not cargo-deb or debhelper: docs/decisions/0005-packaging.md.
#
#   HOLDFAST_PROFILE=release|dev   cargo profile (release)
#   HOLDFAST_BUILT=FOLDER          pack the program that is there, build nothing
#   HOLDFAST_REVISION=N            Debian revision, instead of the changelog's
#   HOLDFAST_OUT=FOLDER            where the package goes (target/debian)
#   HOLDFAST_XZ_LEVEL=0-9          less is quicker and larger (6)
#
# The last line on standard output is the package's path.
set -eu
cd "$(dirname "$0")/.."

say() { printf 'deb: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

part=${1:-}
source=packaging/$part
[ -n "$part" ] && [ -d "$source" ] || die "name a package: packaging/build-deb.sh gateway"
package=holdfast-$part
profile=${HOLDFAST_PROFILE:-release}
out=${HOLDFAST_OUT:-target/debian}
for tool in dpkg-deb dpkg-shlibdeps dpkg-parsechangelog strip gzip; do
    command -v "$tool" >/dev/null 2>&1 || die "$tool is missing; on Debian: apt-get install dpkg-dev binutils"
done

version=$(dpkg-parsechangelog -l "$source/changelog" -S Version)
[ -z "${HOLDFAST_REVISION:-}" ] || version=${version%-*}-$HOLDFAST_REVISION
crate=$(cargo pkgid --locked -p "$package" | sed 's/.*[#@]//')
[ "${version%-*}" = "$crate" ] || die "$source/changelog says ${version%-*}, Cargo.toml says $crate; add an entry to the changelog"
architecture=$(dpkg --print-architecture)

built=${CARGO_TARGET_DIR:-target}
case $profile in dev) built=$built/debug ;; *) built=$built/$profile ;; esac
if [ -n "${HOLDFAST_BUILT:-}" ]; then
    built=$HOLDFAST_BUILT
    say "packing $built/$package as $version"
else
    say "building $package $version ($profile)"
    cargo build --locked --profile "$profile" -p "$package" --bin "$package"
fi
# Not before: build scripts of C libraries look at it and would build anew after each commit.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || dpkg-parsechangelog -l "$source/changelog" -S Timestamp)}
export SOURCE_DATE_EPOCH

mkdir -p "$out" target
work=$(mktemp -d "$PWD/target/deb.XXXXXX")
trap 'rm -rf "$work"' EXIT
root=$work/root
doc=$root/usr/share/doc/$package

put() { install -D -m "$1" "$2" "$root/$3"; } # put MODE FROM TO
packed() { install -d "$(dirname "$1")" && gzip -9n >"$1" && chmod 644 "$1"; } # packed TO <TEXT

put 755 "$built/$package" "usr/bin/$package"
strip --strip-all --remove-section=.comment "$root/usr/bin/$package"
put 644 "config/$part.toml" "etc/holdfast/$part.toml"
put 644 "$source/$package.service" "lib/systemd/system/$package.service"
put 644 "$source/$package.sysusers" "usr/lib/sysusers.d/$package.conf"
put 644 "$source/$package.tmpfiles" "usr/lib/tmpfiles.d/$package.conf"
put 644 "$source/copyright" "usr/share/doc/$package/copyright"
put 644 config/clients.toml "usr/share/doc/$package/examples/clients.toml"
put 644 "$source/$package.lintian" "usr/share/lintian/overrides/$package"

# From the program itself, so that they tell what this very build can do.
program=$root/usr/bin/$package
"$program" man | packed "$root/usr/share/man/man1/$package.1.gz"
for shell in bash zsh fish; do "$program" completions "$shell" >"$work/$shell"; done
put 644 "$work/bash" "usr/share/bash-completion/completions/$package"
put 644 "$work/zsh" "usr/share/zsh/vendor-completions/_$package"
put 644 "$work/fish" "usr/share/fish/vendor_completions.d/$package.fish"

sed "1s/([^)]*)/($version)/" "$source/changelog" | packed "$doc/changelog.Debian.gz"
packed "$doc/changelog.gz" <CHANGELOG.md
packaging/third-party.sh "$package" | packed "$doc/third-party.gz"

# --- what dpkg must know ---------------------------------------------------------------------------
control=$root/DEBIAN
install -d -m 755 "$control" "$work/debian"
printf 'Source: holdfast\n\nPackage: %s\nArchitecture: any\n' "$package" >"$work/debian/control"
libraries=$(cd "$work" && dpkg-shlibdeps -O -e "$program" 2>/dev/null | sed -n 's/^shlibs:Depends=//p')
[ -n "$libraries" ] || die "dpkg-shlibdeps found no libraries: is $built/$package built for this system?"
size=$(du -k -s --apparent-size "$root" | cut -f1)
sed -e "s/@VERSION@/$version/" -e "s/@ARCHITECTURE@/$architecture/" -e "s/@SIZE@/$size/" \
    -e "s/@SHLIBS@/$libraries/" "$source/control.in" >"$control/control"
printf '/etc/holdfast/%s.toml\n' "$part" >"$control/conffiles"
for script in postinst prerm postrm; do install -m 755 "$source/$script" "$control/$script"; done
(cd "$root" && find . -type f ! -path './DEBIAN/*' ! -path './etc/*' -printf '%P\n' | LC_ALL=C sort | xargs md5sum) >"$control/md5sums"
find "$root" -type d -exec chmod 755 {} +
find "$root" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +

deb=$out/${package}_${version}_$architecture.deb
dpkg-deb --root-owner-group -Zxz -z"${HOLDFAST_XZ_LEVEL:-6}" --build "$root" "$deb" >/dev/null
say "$(stat -c %s "$deb") bytes, sha256 $(sha256sum "$deb" | cut -d' ' -f1)"
printf '%s\n' "$deb"
