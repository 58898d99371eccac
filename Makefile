# Two commands for a Debian machine that has Rust; what else they need they install.
#
#   make demo    a private Postfix with postpone, and clients that are told to come back later
#   make test    format, lints, documentation, and every test, those with a real Postfix too
#
# The tests and the demonstration start Postfix as root: without being root, they use sudo.

export PATH := $(PATH):/usr/sbin:/sbin:$(HOME)/.cargo/bin

.PHONY: help demo test tools

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

tools:
	packaging/tools

ifneq ($(shell id -u),0)
RUN_BY_ROOT := --config 'target."cfg(unix)".runner = ["sudo", "--preserve-env=TMPDIR"]'
endif
