# Two commands for a Debian machine that has Rust; what else they need they install.
#
#   make demo    a private Postfix with postpone, and clients that are told to come back later
#   make test    format, lints, documentation, and every test, those with a real Postfix too
#
# And one for who changes what a score is made of:
#
#   make bench-detect    plays people, machines and bots to it: who is noticed, who is delayed
#
# That takes a folder with bench.py, which is not part of this one: `make bench-detect DETECT=FOLDER`,
# with ARGS for the benchmark (`ARGS=--quick`).
#
# The tests and the demonstration start Postfix as root: without being root, they use sudo.

export PATH := $(PATH):/usr/sbin:/sbin:$(HOME)/.cargo/bin

.PHONY: help demo test bench-detect tools

DETECT ?= ../shared/detect

help:
	@sed -n 's/^#   //p' Makefile

demo: tools
	packaging/demo/run

# Benchmarks are compiled by clippy, and not run.
test: tools
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --locked --no-deps
	cargo test --locked $(RUN_BY_ROOT)

# Cargo itself knows where it puts the program, and a name with blanks in it is left whole.
bench-detect:
	@test -f '$(DETECT)/bench.py' || { echo 'no bench.py in $(DETECT): say make bench-detect DETECT=FOLDER' >&2; exit 1; }
	cargo build --locked --release --bin postpone
	packaging/bench-detect '$(DETECT)' $(ARGS)

tools:
	packaging/tools

ifneq ($(shell id -u),0)
RUN_BY_ROOT := --config 'target."cfg(unix)".runner = ["sudo", "--preserve-env=TMPDIR"]'
endif
