# One virtual environment for everything; `make test` on a fresh clone needs nothing but Python 3.11 and make.
#
#   make test            the quick tests, and the 20 slowest of them (about ten minutes of one core)
#   make lint            style and types; `make format` fixes the style
#   make test-all        the slow tests too
#   make test-levels     engines, codecs and search forced to each lower instruction set of this processor
#   make test-sanitized  the native engine under the address and undefined-behaviour sanitizers
#   make test-integrations  the server and the stores beside the suites of their clients and frameworks; none may skip
#   make docs            the site of the documentation, in build/site; warnings are errors
#   make release-check   workflows, metadata and distributions by their own linters
#   make wheel           a wheel in DIST, for every Python 3 and every Linux with glibc 2.24 or newer
#   make demo            train a small codec and compare it with PQ and RQ
PYTHON ?= python3
DIST ?= dist
PLATFORM ?= manylinux_2_24_$(shell uname -m)
RUN = .venv/bin/python -m

# Threads that spin while they wait slow tests down many times where other programs use the same cores.
export GOMP_SPINCOUNT ?= 1000

.PHONY: venv test test-slow test-all test-levels test-sanitized test-integrations demo docs lint format types wheel release-check clean

venv: .venv/installed

# The stamp: installs again when what is installed could have changed.
.venv/installed: pyproject.toml constraints.txt setup.py $(wildcard src/qinco/native/*.cpp src/qinco/native/*.h)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "qinco needs Python 3.11 or newer")'
	$(PYTHON) -m venv .venv
	$(RUN) pip install -c constraints.txt -e '.[dev]'
	touch $@

test: venv
	$(RUN) pytest

test-slow: venv
	$(RUN) pytest -m 'slow and not gpu' $(PATHS)

test-all: venv
	$(RUN) pytest -m 'not gpu'

test-levels: venv
	tests/native_levels.sh

test-sanitized: venv
	tests/native_sanitized.sh

demo: venv
	.venv/bin/python examples/demo/demo.py

docs: venv
	.venv/bin/python docs/make_site.py
	.venv/bin/zensical build --strict --clean
	.venv/bin/python docs/make_site.py finish

# An environment of its own, in INTEGRATIONS: the frameworks bring plugins of pytest that other tests need not have.
# QINCO is what is tested there: this folder, or a wheel.
INTEGRATIONS ?= .venv-integrations
QINCO ?= -e .
$(INTEGRATIONS)/installed: pyproject.toml constraints.txt setup.py $(wildcard src/qinco/native/*.cpp src/qinco/native/*.h)
	$(PYTHON) -m venv $(INTEGRATIONS)
	$(INTEGRATIONS)/bin/python -m pip install -c constraints.txt $(QINCO)[integrations]
	touch $@

test-integrations: $(INTEGRATIONS)/installed
	QINCO_NO_SKIPS=1 $(INTEGRATIONS)/bin/python -m pytest tests/integrations -p no:codspeed \
	    -o addopts='-ra --strict-markers --durations=20 -m "not gpu"' -p no:cacheprovider -o asyncio_mode=auto -o asyncio_default_fixture_loop_scope=function

lint: venv
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) pyright

format: venv
	$(RUN) ruff check --fix .
	$(RUN) ruff format .

types: venv
	$(RUN) pyright

# setuptools packs what an older run left in build/, so that goes first. Without a C++ compiler the wheel has no engine
# and is for any platform; auditwheel refuses an engine that would not load on PLATFORM.
wheel: venv
	rm -rf build
	$(RUN) build --wheel --outdir build/unrepaired
	mkdir -p '$(DIST)'
	set -e; for wheel in build/unrepaired/*.whl; do case $$wheel in \
	    *-any.whl) cp $$wheel '$(DIST)' ;; \
	    *) PATH=.venv/bin:$$PATH $(RUN) auditwheel repair --plat $(PLATFORM) --wheel-dir '$(DIST)' $$wheel ;; esac; done
	rm -rf build

# The files of a public project and the distributions, by their own linters, in RELEASE, an environment of its own.
# Without a compiler the wheel is quickly built, and for any platform.
RELEASE ?= .venv-release
$(RELEASE)/installed: pyproject.toml
	$(PYTHON) -m venv $(RELEASE)
	$(RELEASE)/bin/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["release"], sep="\n")' >$(RELEASE)/packages
	$(RELEASE)/bin/python -m pip install --quiet -r $(RELEASE)/packages
	touch $@

SCHEMA = $(RELEASE)/bin/check-jsonschema --builtin-schema
release-check: $(RELEASE)/installed
	$(SCHEMA) vendor.github-workflows .github/workflows/*.yml
	$(SCHEMA) vendor.dependabot .github/dependabot.yml
	$(SCHEMA) vendor.github-issue-forms .github/ISSUE_TEMPLATE/bug.yml .github/ISSUE_TEMPLATE/wish.yml
	$(SCHEMA) vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml
	$(SCHEMA) vendor.citation-file-format CITATION.cff
	$(SCHEMA) vendor.compose-spec compose.yaml
	$(RELEASE)/bin/zizmor --offline --quiet --min-severity medium .github
	$(RELEASE)/bin/validate-pyproject pyproject.toml
	set -e; dist=$$(mktemp -d); trap 'rm -rf "$$dist"' EXIT; \
	    CXX=false $(RELEASE)/bin/python -m build --outdir "$$dist" >"$$dist.log" 2>&1 || { cat "$$dist.log"; exit 1; }; rm "$$dist.log"; \
	    $(RELEASE)/bin/twine check --strict "$$dist"/*; $(RELEASE)/bin/check-wheel-contents "$$dist"/*.whl

clean:
	rm -rf .venv .venv-integrations .venv-release build dist src/*.egg-info src/qinco/native/*.so .pytest_cache .ruff_cache .hypothesis .cache
	find src tests examples -name __pycache__ -type d -prune -exec rm -rf {} +
