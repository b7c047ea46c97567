# Fleetune: every target works alone on a fresh clone and sets up what it needs.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.ready
# Several processes of one thread each: threads of two processes on two cores wait for one another at every product.
# What a configuration of pip's says of other places does not hold in an environment of our own.
export PIP_USER := 0
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest

.PHONY: help setup demo test test-slow test-lowest torture lint docs site bench lock audit sbom clean

help:
	@echo "make setup      a .venv with the demo and dev extras"
	@echo "make demo       train and compare three methods on the embedded task, offline"
	@echo "make test       the default tests"
	@echo "make test-slow  the long tests; some need the GLUE files in ../shared/data/glue"
	@echo "make test-lowest the default tests with the lowest versions that are allowed, in .venv-lowest"
	@echo "make torture    kills, failures and damage in their long form, hours, into docs/reliability.md; TORTURE='--share 0.1 C1' for less"
	@echo "make lint       ruff and pyright"
	@echo "make docs       the pages of docs/ that are written from the code"
	@echo "make site       the documents as HTML pages in build/site; a broken link is an error"
	@echo "make lock       requirements.lock: the versions of constraints.txt with the sha256 of each file, for this platform"
	@echo "make audit      ask the database of known vulnerabilities about requirements.lock; needs the network"
	@echo "make sbom       build/sbom.json: what is installed in .venv, as CycloneDX"
	@echo "make bench      the benchmark, hours, into bench/results; BENCH=--quick for a small one, BENCH=--estimate for its length"

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Fleetune needs Python 3.11 or newer, but $(PYTHON) is " + sys.version.split()[0] + "; run make with PYTHON=python3.11")'
	$(BIN)/python -m pip --version >/dev/null 2>&1 && [ "$$($(BIN)/python -V)" = "$$($(PYTHON) -V)" ] \
		|| $(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[demo,dev]'
	touch $@

demo: $(STAMP)
	$(BIN)/fleetune demo

test: $(STAMP)
	$(PYTEST) -n 2 --dist loadscope --no-loadscope-reorder

test-slow: $(STAMP)
	$(PYTEST) -n 2 --dist loadscope --no-loadscope-reorder -m slow

# In an environment of its own, with the lowest versions that pyproject.toml allows. Warnings of old libraries are no errors here.
test-lowest:
	.venv-lowest/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet --upgrade pip
	.venv-lowest/bin/python -m pip install --quiet -c constraints-lowest.txt -e '.[demo,serve,onnx,tensorboard]' \
		accelerate==1.3.0 hypothesis nbformat pytest pytest-timeout pytest-xdist
	OMP_NUM_THREADS=1 .venv-lowest/bin/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder -o filterwarnings=default \
		--ignore=tests/torture --ignore=tests/test_docs.py --ignore=tests/test_site.py

torture: $(STAMP)
	OMP_NUM_THREADS=1 nice -n 19 $(BIN)/python -m tests.torture $(TORTURE)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

docs: $(STAMP)
	$(BIN)/python -m scripts.docs

site: $(STAMP)
	$(BIN)/python -m scripts.site

bench: $(STAMP)
	$(BIN)/python -m bench.cohort $(BENCH)

lock: $(STAMP)
	mkdir -p build
	$(BIN)/python -m pip install --quiet --dry-run --ignore-installed -c constraints.txt --report build/lock.json '.[demo,dev]'
	$(BIN)/python -m scripts.lock build/lock.json

# The tools have an environment of their own: what they need is not what Fleetune needs.
build/tools/bin/pip-audit:
	$(PYTHON) -m venv --clear build/tools
	build/tools/bin/pip install --quiet pip-audit cyclonedx-bom

# --strict: a package that the database does not know is a failure and not a pass.
audit: build/tools/bin/pip-audit
	build/tools/bin/pip-audit --strict --disable-pip --require-hashes -r requirements.lock

sbom: $(STAMP) build/tools/bin/pip-audit
	build/tools/bin/cyclonedx-py environment .venv --pyproject pyproject.toml --output-reproducible --of JSON -o build/sbom.json

clean:
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis
