# SPDX-License-Identifier: Apache-2.0
# Needs Python 3.11 or later (with venv) and make, no root; a C compiler and the headers of Python to test the compiled
# build, too. Everything made stays below .venv, build and dist.
#
# The file .ready of each environment below .venv names its checkout, interpreter and requirements. An environment is
# rebuilt if one of them changed or if its build was interrupted, and is reused otherwise.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

DURATION ?=
PORT ?= 10079
PYTEST_ARGS ?=
# Tests spend more than half of their time waiting: with two workers for each processor and one more, none is idle.
WORKERS ?= $(shell expr 2 \* $$(getconf _NPROCESSORS_ONLN) + 1)
# A worker that has nothing left takes tests from the one that has most, so that all end at the same time.
in-parallel = -n $(WORKERS) --dist worksteal
BENCH_ARGS ?=
PICTURES_ARGS ?=
SQLALCHEMY ?= 2.1.* 2.0.*
PYENV_ROOT ?= $(HOME)/.pyenv

# The caller's own Python settings must not affect the environments. Without bytecode, every process that a test starts
# compiles its modules, and pytest all tests.
unexport PYTHONHOME PYTHONPATH PYTHONDONTWRITEBYTECODE
export PYTHONNOUSERSITE := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# A name on the PATH may not work: pyenv has shims of inactive versions, which fail, and Debian has a python3 without
# venv. So each candidate is run, and the first that passes the probe is used.
probe := import ensurepip, sqlite3, ssl, sys, venv; assert sys.version_info >= (3, 11); print(sys.executable)
usable = $(shell for python in $(1); do "$$python" -I -c '$(probe)' 2>/dev/null && break; done)
candidates = $(foreach minor,$(1),python3.$(minor) $(wildcard $(PYENV_ROOT)/versions/3.$(minor).*/bin/python3.$(minor)))

ifneq ($(filter-out help clean,$(MAKECMDGOALS)),)
  asked := $(PYTHON)
  override PYTHON := $(call usable,$(or $(asked),$(call candidates,13 12 11) python3))
  ifeq ($(PYTHON),)
    $(error no Python 3.11 or later that runs and has venv (tried: $(or $(asked),python3.13 python3.12 python3.11 \
      python3)): install one (Debian: python3 python3-venv) or name it, as in `make PYTHON=/path/to/python3.12 ...`)
  endif
  # SQLAlchemy 2.0.0 cannot be imported on 3.13, so the oldest dependencies are tested with the oldest interpreter.
  asked := $(OLDEST_PYTHON)
  override OLDEST_PYTHON := $(call usable,$(or $(asked),$(call candidates,11 12) $(PYTHON)))
  ifeq ($(OLDEST_PYTHON),)
    $(error no Python 3.11 or later that runs and has venv (tried: $(asked)))
  endif
endif

# $(call environment,NAME,INTERPRETER,ARGUMENTS OF PIP INSTALL)
# pip compiles modules one after the other, half a minute of the largest environment; compileall uses all processors. It
# complains of files that are no Python of this version.
define environment
@wanted="$(CURDIR) $(2) $$('$(2)' -V) $$(cat Makefile pyproject.toml requirements/build.lock | cksum)"; \
if [ "$$(cat .venv/$(1)/.ready 2>/dev/null)" != "$$wanted" ] || [ ! -x .venv/$(1)/bin/python ]; then \
	echo "==> making .venv/$(1) with $$('$(2)' -V)"; \
	rm -rf .venv/$(1) && \
	'$(2)' -m venv .venv/$(1) && \
	{ .venv/$(1)/bin/python -m pip install --quiet --quiet --no-input --no-compile --log .venv/$(1)/pip.log $(3) || \
		{ echo "==> pip says more in .venv/$(1)/pip.log"; false; }; } && \
	{ .venv/$(1)/bin/python -m compileall -q -j 0 .venv/$(1)/lib >.venv/$(1)/compileall.log 2>&1 || :; } && \
	echo "$$wanted" > .venv/$(1)/.ready; \
fi
endef

# Two wheels are made: .venv/wheel, compiled for PYTHON if there is a compiler, and .venv/pure, to run interpreted.
# $(call with-wheel,NAME,WHEEL): installs the current wheel over the one from the environment's build
with-wheel = @.venv/$(1)/bin/python -m pip install --quiet --quiet --no-input --no-deps --force-reinstall .venv/$(2)/*.whl
wheel-with = "$$(echo .venv/$(1)/*.whl)[$(2)]"
# $(call backend,HOOK,DIRECTORY,VARIABLES): calls the build backend
backend = mkdir -p $(2) && $(3) .venv/build/bin/python -c 'from setuptools import build_meta; \
	build_meta.$(1)("$(2)")' > .venv/build/$(1).log 2>&1 || { cat .venv/build/$(1).log; exit 1; }; \
	sed -n '/hot path/s/^/==> /p' .venv/build/$(1).log
no-extension := SQLALCHEMY_POOL_EXPORTER_DISABLE_EXTENSION=1
# Where a missing program fails a test, a missing compiler fails the build.
extension := $(if $(REQUIRE_TOOLS),SQLALCHEMY_POOL_EXPORTER_REQUIRE_EXTENSION=1)
comma := ,
suite := sidecar,top,demo,test,boards
everything := $(suite),ship,recipes,bench,lint

.PHONY: help
help: ## show this
	@awk -F ':.*## ' '/^[a-z%-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: test
test: test-newest ## run the tests on the built wheel, compiled, with the newest dependencies

.PHONY: test-newest test-oldest
test-newest: environment-newest ## ... a part of them (PYTEST_ARGS="-k name")
test-oldest: environment-oldest ## ... with the oldest dependencies, interpreted
test-oldest: selected := -m "not soak and not newest and not grafana"
test-oldest: build := interpreted
test-newest: build = $(shell ls .venv/wheel/*-none-any.whl >/dev/null 2>&1 && echo interpreted || echo compiled)
test-newest test-oldest: test-%:
	@echo "==> the tests in .venv/$*"
	@REQUIRE_WHEEL=1 REQUIRE_BUILD=$(build) .venv/$*/bin/python -m pytest $(in-parallel) \
		--basetemp=.venv/$*/tmp -o cache_dir=.venv/$*/pytest_cache $(selected) $(PYTEST_ARGS)

# The tests of what is compiled, which must hold interpreted, too. With the oldest dependencies all tests run interpreted.
hot-path := tests/recording/test_hot_path*.py tests/recording/test_checkout.py tests/recording/test_recorder.py \
	tests/recording/test_counts_of_checkouts.py tests/recording/test_errors.py tests/recording/test_time_limits.py \
	tests/recording/test_interrupts.py tests/recording/test_threads.py tests/recording/test_forks.py \
	tests/recording/test_without_the_gil.py tests/recording/test_greenlets.py
.PHONY: test-interpreted
test-interpreted: environment-newest ## ... of the hot path alone, with the newest, interpreted
	@if ls .venv/wheel/*-none-any.whl >/dev/null 2>&1; then \
		echo "==> no compiler: the compiled build is not tested"; \
	else \
		echo "==> the tests of the hot path in .venv/newest, interpreted"; \
		$(call beside,newest,pure) REQUIRE_WHEEL=1 REQUIRE_BUILD=interpreted .venv/newest/bin/python -m pytest $(in-parallel) \
			--basetemp=.venv/newest/tmp -o cache_dir=.venv/newest/pytest_cache $(hot-path) $(PYTEST_ARGS); \
	fi
# $(call beside,NAME,WHEEL): installs another build in the environment beside the one that it has, and takes it first
beside = rm -rf .venv/$(1)/$(2) && \
	.venv/$(1)/bin/python -m pip install --quiet --quiet --no-input --no-deps --target .venv/$(1)/$(2) .venv/$(2)/*.whl && \
	PYTHONPATH=$(CURDIR)/.venv/$(1)/$(2)

# The tests of what depends on the interpreter: all that records, and what reads it, compiled as users get it; and those
# of the hot path twice more, with the locks that interpreters without the GIL get: interpreted, and compiled as for them.
# What is left out are charts, dashboards, rules and pictures, which do not depend on it.
NEXT_TESTS ?= tests/recording tests/launch tests/segment tests/sidecar tests/board tests/audit tests/top tests/metrics tests/test_*.py
.PHONY: test-next
test-next: environment-next ## ... those that depend on the interpreter, with a newer one (PYTHON=python3.15)
	@echo "==> the tests on $$(.venv/next$(NEXT)/bin/python -V)"
	@REQUIRE_WHEEL=1 REQUIRE_BUILD=compiled .venv/next$(NEXT)/bin/python -m pytest $(in-parallel) \
		--basetemp=.venv/next$(NEXT)/tmp -o cache_dir=.venv/next$(NEXT)/pytest_cache $(NEXT_TESTS) $(PYTEST_ARGS)
	@echo "==> those of the hot path, interpreted and with locks"
	@$(call beside,next$(NEXT),pure) REQUIRE_WHEEL=1 REQUIRE_BUILD=interpreted SQLALCHEMY_POOL_EXPORTER_LOCKS=1 \
		.venv/next$(NEXT)/bin/python -m pytest $(in-parallel) \
		--basetemp=.venv/next$(NEXT)/tmp -o cache_dir=.venv/next$(NEXT)/pytest_cache $(hot-path) $(PYTEST_ARGS)
	@echo "==> those of the hot path, compiled with locks"
	@rm -rf .venv/locked
	@$(call backend,build_wheel,.venv/locked,$(extension) SQLALCHEMY_POOL_EXPORTER_LOCKS=1)
	@$(call beside,next$(NEXT),locked) REQUIRE_WHEEL=1 REQUIRE_BUILD=compiled SQLALCHEMY_POOL_EXPORTER_LOCKS=1 \
		.venv/next$(NEXT)/bin/python -m pytest $(in-parallel) \
		--basetemp=.venv/next$(NEXT)/tmp -o cache_dir=.venv/next$(NEXT)/pytest_cache $(hot-path) $(PYTEST_ARGS)

.PHONY: soak
soak: soak-staged soak-others soak-moments ## run the tests that take minutes

# What is staged has times to keep, so nothing else runs beside it.
.PHONY: soak-staged soak-others
soak-staged: environment-newest ## ... incidents and dashboards alone, before a real Prometheus
soak-staged: selected := tests/alerting tests/dashboards
soak-others: environment-newest ## ... all others alone
soak-others: selected := $(in-parallel) --ignore=tests/alerting --ignore=tests/dashboards
soak-staged soak-others: soak-%:
	@echo "==> the soak tests in .venv/newest: $*"
	@REQUIRE_WHEEL=1 .venv/newest/bin/python -m pytest \
		--basetemp=.venv/newest/tmp -o cache_dir=.venv/newest/pytest_cache -m soak $(selected) $(PYTEST_ARGS)

# Of what may strike at any moment `make test` tries a part of the moments.
striking := $(addprefix tests/recording/test_,garbage_collection.py greenlets.py interrupts.py replaced_meanwhile.py time_limits.py)
.PHONY: soak-moments
soak-moments: environment-newest environment-oldest ## ... signals, time limits, finalizers and switches at every moment, in both builds
	@for each in newest oldest; do \
		echo "==> every moment, in .venv/$$each"; \
		EVERY_MOMENT=1 REQUIRE_WHEEL=1 .venv/$$each/bin/python -m pytest $(in-parallel) \
			--basetemp=.venv/$$each/tmp -o cache_dir=.venv/$$each/pytest_cache $(striking) $(PYTEST_ARGS) || exit 1; \
	done

# Needs npm and Chromium, too, and the registry of npm at the first time: half a gigabyte in .venv/grafana.
.PHONY: grafana
grafana: environment-newest ## check the dashboards with Grafana's own front-end code, on a real Prometheus
	@echo "==> the dashboards in Grafana's code"
	@REQUIRE_WHEEL=1 .venv/newest/bin/python -m pytest \
		--basetemp=.venv/newest/tmp -o cache_dir=.venv/newest/pytest_cache -m grafana tests/grafana $(PYTEST_ARGS)

# Tries both builds with the newest of each series that is supported.
.PHONY: try-sqlalchemy
try-sqlalchemy: environment-newest ## run SQLAlchemy's own tests with every pool instrumented, and compare (SQLALCHEMY="2.1.* 2.0.*")
	@.venv/newest/bin/python -m tools.try_sqlalchemy $(foreach each,$(SQLALCHEMY),--sqlalchemy '$(each)') \
		$$(ls .venv/wheel/*.whl .venv/pure/*.whl | sort -t/ -k3 -u)

# Installs each application from the package index, into .venv/applications.
.PHONY: try-applications
try-applications: environment-newest ## run Celery, MLflow, Prefect and Airflow with every pool instrumented, and compare (ONLY=celery)
	@.venv/newest/bin/python -m tools.try_applications .venv/wheel/*.whl $(addprefix --only ,$(ONLY))

.PHONY: coverage
coverage: environment-newest ## run the tests and report what they reach
	@rm -rf .venv/coverage && mkdir .venv/coverage
	@$(call beside,newest,pure) COVERAGE_FILE=.venv/coverage/data REQUIRE_WHEEL=1 .venv/newest/bin/python -m coverage run -m pytest \
		--basetemp=.venv/newest/tmp -o cache_dir=.venv/newest/pytest_cache $(PYTEST_ARGS)
	@COVERAGE_FILE=.venv/coverage/data .venv/newest/bin/python -m coverage combine --quiet
	@COVERAGE_FILE=.venv/coverage/data .venv/newest/bin/python -m coverage report

.PHONY: demo
demo: environment-demo ## show pools in trouble, on a real PostgreSQL (DURATION=40 ends by itself; PORT=10079)
	@.venv/demo/bin/python -m demo --port $(PORT) $(if $(DURATION),--duration $(DURATION))

.PHONY: bench
bench: environment-bench ## measure what it costs (BENCH_ARGS=...)
	@.venv/bench/bin/python -m benchmarks $(BENCH_ARGS)

.PHONY: sizing
sizing: environment-newest ## compare the waits that `advise` predicts with those of real pools, and publish the table
	@.venv/newest/bin/python -m benchmarks.sizing

.PHONY: bench-fleet
bench-fleet: environment-newest ## scrape 1,000 targets with a real Prometheus, and time every panel (FLEET_ARGS="--targets 100 --minutes 5")
	@.venv/newest/bin/python -m benchmarks.fleet $(FLEET_ARGS)

.PHONY: pictures
pictures: environment-newest ## draw docs/images anew with Grafana's code, from runs of minutes (PICTURES_ARGS="--only healthy --seconds 3600")
	@.venv/newest/bin/python -m tools.pictures $(PICTURES_ARGS)
	@.venv/newest/bin/python -m tools.board_picture

.PHONY: screenshot
screenshot: environment-newest ## take docs/images/board.png anew, from the starvation scene of the demo in Debian's Chromium
	@.venv/newest/bin/python -m tools.board_picture

.PHONY: lint
lint: environment-lint ## check style and format
	@echo "==> ruff"
	@.venv/lint/bin/python -m ruff check .
	@.venv/lint/bin/python -m ruff format --check .

.PHONY: format
format: environment-lint ## repair style and format where ruff can
	@.venv/lint/bin/python -m ruff check --fix .
	@.venv/lint/bin/python -m ruff format .

.PHONY: types
types: environment-lint ## check types
	@echo "==> mypy"
	@.venv/lint/bin/python -m mypy

.PHONY: chart
chart: environment-newest ## renew what the chart takes from rules, dashboards, configuration and its own comments
	@.venv/newest/bin/python -m tools.generate_chart

.PHONY: docs
docs: environment-docs ## build the documentation site, build/site/index.html; a dead link or a warning fails
	@.venv/docs/bin/python -m tools.build_docs build/site

sbom = dist/sqlalchemy-pool-exporter.cdx.json
.PHONY: dist
dist: environment-build environment-dist ## build wheel, source distribution and SBOM, and check what would be shipped
	@rm -rf dist .venv/shipped
	@$(call backend,build_sdist,dist)
	@$(call backend,build_wheel,dist,$(no-extension))
	@.venv/dist/bin/python -m twine check --strict dist/*.whl dist/*.tar.gz
	@.venv/dist/bin/check-wheel-contents dist/*.whl
	@$(PYTHON) -m venv --without-pip .venv/shipped
	@.venv/dist/bin/python -m pip --quiet --python .venv/shipped/bin/python install \
		--require-hashes --only-binary=:all: --requirement requirements/exporter.lock
	@.venv/dist/bin/cyclonedx-py environment --output-reproducible --pyproject pyproject.toml \
		--output-file $(sbom) .venv/shipped/bin/python
	@.venv/dist/bin/python -m tools.licences $(sbom)

# Locks of the packages in the image and of the build tools: for every platform, with the hashes of every file, and
# without the name of the registry.
locked := --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --upgrade \
	--custom-compile-command "make lock"
.PHONY: lock
lock: environment-lint ## renew the locks below requirements/
	@.venv/lint/bin/uv pip compile $(locked) --extra sidecar --extra mysql -o requirements/exporter.lock pyproject.toml
	@$(PYTHON) -c 'import tomllib; build = tomllib.load(open("pyproject.toml", "rb"))["build-system"]; \
		print(*build["requires"], sep="\n")' | .venv/lint/bin/uv pip compile $(locked) -o requirements/build.lock -

.PHONY: python
python: ## print the interpreter that is used
	@echo '$(PYTHON)'

.PHONY: clean
clean: ## remove everything that was made
	rm -rf .venv build dist exporter/*.egg-info .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +

.PHONY: environment-build environment-dist environment-docs environment-newest environment-oldest environment-next environment-demo environment-bench \
	environment-lint wheel
environment-build:
	$(call environment,build,$(PYTHON),--require-hashes -r requirements/build.lock)

# Only the requirements of the extra: its tools import neither the package nor the package's dependencies.
environment-dist environment-docs: environment-%:
	@mkdir -p .venv
	@$(PYTHON) -c 'import tomllib; extras = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]; \
		print(*extras["$*"], sep="\n")' > .venv/$*.txt
	$(call environment,$*,$(PYTHON),-r .venv/$*.txt)

# Built every time, because make does not notice a deleted source file. That takes a second if nothing is to be compiled.
wheel: environment-build
	@echo "==> building the wheels"
	@rm -rf .venv/wheel .venv/pure
	@$(call backend,build_wheel,.venv/pure,$(no-extension))
	@$(call backend,build_wheel,.venv/wheel,$(extension))

environment-newest: wheel
	$(call environment,newest,$(PYTHON),$(call wheel-with,wheel,$(suite)$(comma)ship$(comma)recipes))
	$(call with-wheel,newest,wheel)

# Installs exactly the lower bounds of pyproject.toml.
environment-oldest: wheel
	@$(PYTHON) -c 'import tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
		lower = project["dependencies"] + sum(map(project["optional-dependencies"].get, ("sidecar", "top")), []); \
		print(*(bound.replace(">=", "==", 1) for bound in lower), sep="\n")' > .venv/oldest.txt
	$(call environment,oldest,$(OLDEST_PYTHON),-c .venv/oldest.txt $(call wheel-with,pure,$(suite)))
	$(call with-wheel,oldest,pure)

environment-next: wheel
	$(call environment,next$(NEXT),$(PYTHON),$(call wheel-with,wheel,sidecar$(comma)top$(comma)test) jsonschema)
	$(call with-wheel,next$(NEXT),wheel)

environment-demo: wheel
	$(call environment,demo,$(PYTHON),$(call wheel-with,wheel,demo))
	$(call with-wheel,demo,wheel)

# OpenTelemetry's instrumentation refuses SQLAlchemy 2.1, and all candidates must run on the same release.
environment-bench: wheel
	$(call environment,bench,$(PYTHON),$(call wheel-with,wheel,bench) "sqlalchemy<2.1")
	$(call with-wheel,bench,wheel)

# The type checker needs every package that the sources import.
environment-lint: wheel
	$(call environment,lint,$(PYTHON),$(call wheel-with,wheel,$(everything)))
