# Needs python3 with venv, make and a package index. Another interpreter: make test PYTHON=python3.12
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PYTEST := $(BIN)/python -m pytest

# The tests start many processes, so each module is compiled once.
unexport PYTHONDONTWRITEBYTECODE

.DELETE_ON_ERROR:
.DEFAULT_GOAL := test
.PHONY: showcase test soak bench bench-store lint docs wheel downstream clean FORCE

showcase: $(STAMP)
	$(PYTEST) showcase/ -v

# A sample of every grid and a few examples of every property. The doctests come first, so that
# the output ends with the tests that were skipped and the reasons. The plugin's tests fork their
# process and look through its modules, so they run without the modules of the others.
test: $(STAMP)
	$(PYTEST) --doctest-modules routilux pytest_routilux
	$(PYTEST) tests/plugin -m "not soak" -n 2
	$(PYTEST) tests --ignore tests/benchmarks --ignore tests/plugin -m "not soak" -n 2

# Large grids, many examples of every property, and many hosts that are killed or lose their
# jobs. SEED chooses the examples and the hosts: each run has new ones, and make soak SEED=…
# repeats a run.
ifndef SEED
SEED := $(shell $(PYTHON) -c 'import secrets; print(secrets.randbelow(10**6))')
endif
soak: $(STAMP)
	@echo 'soak: SEED=$(SEED)'
	HYPOTHESIS_PROFILE=soak SEED=$(SEED) $(PYTEST) tests --ignore tests/benchmarks \
		-m "soak or hypothesis" -n 2 --hypothesis-seed=$(SEED) \
		|| { echo 'soak: failed; make soak SEED=$(SEED) repeats it' >&2; exit 1; }
	$(BIN)/python -m tests.fuzz --count 10000 --minutes 2 --seed $(SEED)
	$(BIN)/python -m tests.kills --count 1500 --fewest 1 --minutes 4 --seed $(SEED)
	$(BIN)/python -m tests.kills.signals --count 100 --minutes 3 --seed $(SEED)
	$(BIN)/python -m tests.fences --rounds 20 --minutes 3 --seed $(SEED)
	@echo 'soak: all passed, with SEED=$(SEED)'

# Fails where a ratio got worse than in tests/benchmarks/stored.json, which bench-store writes.
bench: $(STAMP)
	$(BIN)/python -m tests.benchmarks

bench-store: $(STAMP)
	$(BIN)/python -m tests.benchmarks --store

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/codespell README.md CHANGELOG.md CONTRIBUTING.md docs \
		routilux pytest_routilux showcase

# The pages, without a network: docs/_build/html/index.html. A warning is an error.
docs: $(STAMP)
	$(BIN)/sphinx-build --quiet --fresh-env --fail-on-warning --keep-going --builder html docs docs/_build/html

wheel: $(STAMP)
	rm -rf dist
	$(BIN)/python -m build --wheel --outdir dist .
	@set -e; clean=$$(mktemp -d); trap 'rm -rf "$$clean"' EXIT; wheel=$$(ls "$$PWD"/dist/*.whl); \
	$(PYTHON) -m venv "$$clean/venv"; python="$$clean/venv/bin/python"; cd "$$clean"; \
	$$python -m pip install --disable-pip-version-check --quiet --no-index "$$wheel"; \
	$$python -W error -c "$$WHEEL_CHECK"; \
	"$$clean/venv/bin/routilux" --help > /dev/null; \
	$$python -m pip install --disable-pip-version-check --quiet "$$wheel[pytest]"; \
	$$python -m pytest --fixtures | grep -q '^flow_clock ' \
		|| { echo 'pytest --fixtures does not show flow_clock' >&2; exit 1; }; \
	echo "wheel: $$(basename "$$wheel") installs alone, imports, brings its command and its plugin"

# A foreign project with the wheel, in a clean environment of each Python that this machine has.
downstream: $(STAMP)
	@set -e; built=$$(mktemp -d); trap 'rm -rf "$$built"' EXIT; \
	$(BIN)/python -m build --wheel --outdir "$$built" . > "$$built/log" || { cat "$$built/log" >&2; exit 1; }; \
	$(BIN)/python tests/downstream/run.py "$$built"/*.whl

# Runs in an environment that holds the wheel and nothing else.
define WHEEL_CHECK
import importlib.metadata as metadata
import pytest_routilux, routilux
requires = metadata.requires("pytest-routilux") or []
assert all("extra ==" in line for line in requires), f"runtime dependencies: {requires}"
files = [str(path) for path in metadata.files("pytest-routilux")]
script = [path for path in files if path.startswith("../") and path.endswith("/routilux")]
assert len(script) == 1, f"the command routilux is missing or doubled: {script}"
tops = {path.split("/")[0] for path in files if path not in script}
tops -= {"routilux", "pytest_routilux"}
assert all(top.endswith(".dist-info") for top in tops), f"does not belong in the wheel: {tops}"
assert {"routilux/py.typed", "pytest_routilux/py.typed"} <= set(files), "py.typed is missing"
assert any(path.endswith("LICENSE") for path in files), "the licence is missing"
endef
export WHEEL_CHECK

clean:
	rm -rf $(VENV) build dist docs/_build

# The stamp names the interpreter and is written last: another PYTHON, or an installation that
# broke off, gets a fresh environment; a changed pyproject.toml only installs what it adds.
INTERPRETER := $(shell $(PYTHON) -c 'import sys; print(sys.base_prefix, sys.version.split()[0])')
ifneq ($(INTERPRETER),$(shell cat $(STAMP) 2>/dev/null))
$(STAMP): FORCE
endif

$(STAMP): pyproject.toml
	@test -n '$(INTERPRETER)' || { echo '$(PYTHON) does not run; set PYTHON' >&2; exit 1; }
	@if test "$$(cat $@ 2>/dev/null)" = '$(INTERPRETER)'; then rm -f $@; \
	else rm -f $@; echo '$(PYTHON) -m venv --clear $(VENV)'; $(PYTHON) -m venv --clear $(VENV); fi
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --editable '.[dev]'
	@echo '$(INTERPRETER)' > $@
