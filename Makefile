# Few targets, each with all of its set-up. On a fresh Debian 12 with Rust: `make test`, `make demo`.
# Packages are installed only by root and only if missing; otherwise the script says what to install.

TESTS := tests
CARGO ?= cargo
# Where cargo builds to; whoever set it for all projects has it here too.
BUILT := $(or $(CARGO_TARGET_DIR),target)

.PHONY: help demo drill test lint bench fuzz deb package-test setup bins

help:
	@echo "make demo    the story for a person: narrated, ends with everything running (Ctrl-C stops it)"
	@echo "make test    everything CI runs: lints, licences, all tests, the foreign device, the drill"
	@echo "make drill   the story headless, with real binaries; exit 0 only if every step held"
	@echo "make lint    rustfmt, clippy -D warnings, cargo-deny"
	@echo "make fuzz    the property and mutation tests for longer (SECONDS_EACH=60)"
	@echo "make bench   the broker beside mosquitto, about 20 minutes (BENCH='--quick', BENCH='--only durable', BENCH=--list)"
	@echo "make deb     Debian packages"
	@echo "make package-test  the package in a booted container: install, kill, reboot in an outage, purge (root)"

setup:
	@$(TESTS)/setup.sh

bins: setup
	$(CARGO) build --locked --workspace --bins

demo: bins
	@$(BUILT)/debug/demo

drill: bins
	@$(BUILT)/debug/drill

test: setup
	@$(TESTS)/run.sh

lint: setup
	@$(TESTS)/lint.sh

fuzz: setup
	@$(TESTS)/fuzz.sh

bench: setup
	@$(TESTS)/bench.sh $(BENCH)

deb:
	@packaging/build-deb.sh gateway

package-test:
	@$(TESTS)/package.sh
