# Two commands for a Debian machine that has Rust; they install what else they need.
#
#   make demo            a private Postfix with postpone, and clients that are refused and retry
#   make test            every test, those with a real Postfix and a real Sendmail too; ARGS are for
#                        cargo test, as in ARGS='--test scenarios'
#
# Each says first what it needs. Postfix and Sendmail are not installed, but unpacked, by root, into
# /var/cache/postpone; a `sudo rm -r` of that folder loses nothing. Four for developers:
#
#   make lint            format, lints, documentation
#   make test-fresh      both of the above in a fresh Debian 12 and 13, as a user and as root, which
#                        has nothing but this machine's Rust; PART=quick runs a part of the tests
#   make fuzz            makes up frames, requests, settings and records that break a property, for TIME
#                        seconds (60) each; ARGS are names of targets. make test tries those that
#                        were kept
#   make test-faults     a real Postfix under load while the daemon is killed, stopped, reloaded, its disk
#                        full or dead, its clock wrong, its log unread: every message is delivered once
#                        or deferred with a reason; TIME=600 is in seconds, SEED=7 repeats a run's faults
#
# Four for installing it:
#
#   make packages        a deb and an rpm, in packaging/out
#   make test-packages   installs, upgrades and removes them in a Debian that boots, and builds them
#                        once more to compare; that Debian, 400 MB, is kept in
#                        /var/cache/postpone
#   make build           builds what is installed
#   make install         installs it from here, below PREFIX (/usr/local), and DESTDIR if that is set
#
# And one for changes of the score:
#
#   make bench-detect    plays people, machines and bots to it: who is noticed, who is delayed
#
# That takes a folder with bench.py, which is not part of this one: `make bench-detect DETECT=FOLDER`,
# with ARGS for the benchmark (`ARGS=--quick`).
#
# The tests and the demonstration start Postfix as root: as another user they use sudo.

# Where rustup has put Rust, for a shell that was there before; and what sets up a Sendmail.
export PATH := $(if $(findstring $(HOME)/.cargo/bin,$(PATH)),,$(HOME)/.cargo/bin:)$(PATH):/usr/sbin:/sbin

.PHONY: help demo test lint test-fresh fuzz test-faults packages test-packages build install bench-detect

DETECT ?= ../shared/detect

help:
	@sed -n 's/^#   //p' Makefile

demo:
	packaging/tools demo
	packaging/demo/run

test:
	packaging/tools test
	packaging/test $(ARGS)

# Benchmarks are compiled by clippy, and not run. What cargo test leaves out, --all-targets does too.
lint:
	packaging/tools lint
	cargo fmt --check
	packaging/patiently cargo clippy --locked --all-targets -- -D warnings
	cargo clippy --locked --test faults --test packages --test postfix_newer -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --locked --no-deps

test-fresh:
	packaging/tools test-fresh
	packaging/fresh $(PART)

fuzz:
	packaging/tools fuzz
	TIME='$(TIME)' packaging/fuzz $(ARGS)

test-faults:
	packaging/tools test-faults
	packaging/patiently cargo test --locked --no-run --test faults
	cargo test --locked --config "target.'cfg(all())'.runner = ['$(CURDIR)/packaging/test', '--run']" \
		--test faults -- $(if $(SEED),--seed $(SEED)) --time $(or $(TIME),600)

packages:
	packaging/tools packages
	$(MAKE) build
	packaging/pack packaging/out/postpone packaging/out/pages packaging/out
	ls -l packaging/out/*.deb packaging/out/*.rpm

test-packages: packages
	packaging/tools test-packages
	packaging/test --test packages
	packaging/reproduce

build:
	rm -rf packaging/out
	program=$$(packaging/build) && install -D "$$program" packaging/out/postpone
	cargo run --locked --example pages -- packaging/out/pages

install:
	@test -d packaging/out/pages || { echo 'first: make build' >&2; exit 1; }
	DESTDIR='$(DESTDIR)' PREFIX='$(PREFIX)' packaging/install packaging/out/postpone packaging/out/pages

# Cargo itself knows where it puts the program, and a name with blanks in it is left whole.
bench-detect:
	@test -f '$(DETECT)/bench.py' || { echo 'no bench.py in $(DETECT): say make bench-detect DETECT=FOLDER' >&2; exit 1; }
	cargo build --locked --release --bin postpone
	packaging/bench-detect '$(DETECT)' $(ARGS)
