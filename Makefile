# Every target installs what it misses first (scripts/setup.sh) and builds outside the checkout, so that demo, tests and
# CI share one build: the first takes about a quarter of an hour on two cores with the tests, later ones seconds.
SHELL := /bin/bash
SLUICE_CACHE ?= $(HOME)/.cache/sluice
CARGO_TARGET_DIR ?= $(SLUICE_CACHE)/target
CORPUS ?= shop
PROFILE ?= lite

export SLUICE_CACHE CARGO_TARGET_DIR
export PATH := $(SLUICE_CACHE)/tools/bin:$(PATH)

.PHONY: help demo test lint fuzz bench build setup setup-test up down
.DEFAULT_GOAL := help

help:
	@echo 'make demo [CORPUS=shop] [KEEP=1]   the whole path on a recording: TiDB binlog, pumps, Kafka, MariaDB and files'
	@echo 'make test                          every test; starts Kafka, etcd and MariaDB by itself'
	@echo 'make lint                          format, clippy, licences'
	@echo 'make fuzz [FOR=60]                  every decoder for so many seconds each'
	@echo 'make bench [ARGS=...]              the disk, then a pump: ingest and pull (sluice-bench suite --help)'
	@echo 'make build                         the binaries, into $(CARGO_TARGET_DIR)/debug'
	@echo 'make setup                         what the above need, if it is not there'
	@echo 'make up [PROFILE=lite|full]        the same path in containers; make down removes them'

setup:
	@scripts/setup.sh

setup-test:
	@scripts/setup.sh --test

build: setup
	@cargo build --workspace --bins

demo: build
	@"$(CARGO_TARGET_DIR)/debug/sluice-demo" $(if $(KEEP),--keep) "$(CORPUS)"

# The end-to-end tests start the binaries, so these are built first. The runner's summary comes last.
# A failure tells its chain of causes; backtraces of a hundred frames would hide it.
test: setup-test
	@cargo build --workspace --bins
	@RUST_BACKTRACE=0 "$(CARGO_TARGET_DIR)/debug/with-kafka" cargo nextest run --workspace --no-fail-fast

lint: setup-test
	@cargo fmt --all --check
	@cargo clippy --workspace --all-targets --quiet -- -D warnings
	@scripts/deny.sh

# Mutated inputs also run in `make test`.
fuzz: setup
	@fuzz/run.sh $(or $(FOR),60)

# Comparable only within one run on a quiet machine.
bench: setup
	@cargo build --release -p pump -p bench --bins
	@"$(CARGO_TARGET_DIR)/release/sluice-bench" suite --dir "$(CARGO_TARGET_DIR)" $(ARGS)

up:
	@scripts/compose-secret.sh
	@docker compose --profile $(PROFILE) up --build

down:
	@docker compose --profile lite --profile full down --volumes
