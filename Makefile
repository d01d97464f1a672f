# Everything from a fresh clone: each target makes .venv first, when pyproject.toml or constraints.txt changed.
PYTHON ?= python3
BIN := .venv/bin

# what draws volumes in `segpipe view`: git ignores it, wheel and sdist hold it
NIIVUE := 0.69.0
NIIVUE_SHA512 := 60c8d0bc9803d56d9bec3ba8c64c250b85716eb80878f449e6ac90cd72b18b6bf6301560dbce4ffc2210ca0e3aa030c60c871a3656ddf8c86d3bf79d31b5c990
NIIVUE_FOLDER := pipeline/segpipe/viewer/niivue

.DEFAULT_GOAL := help
test test-slow fuzz: export OMP_NUM_THREADS = 1
# set by many images: each of the processes that tests start would compile all that it imports
test test-slow fuzz: export PYTHONDONTWRITEBYTECODE =
.PHONY: help demo test test-slow test-ray fuzz validators viewer lint types arrows docs bench clean

help:  ## This list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

.venv/.ready: pyproject.toml constraints.txt
	@echo "Installing into .venv (some minutes, once)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --disable-pip-version-check torch==2.13.0 -c constraints.txt
	@$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev,openvino,sign,tune,mlflow,slurm]' -c constraints.txt
	@touch $@

demo: .venv/.ready  ## The whole way on generated scans, into demo_out/ (at most 5 minutes)
	@$(BIN)/segpipe demo --overwrite

lint: .venv/.ready  ## ruff, mypy, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff check . --target-version py312 --ignore UP
	$(BIN)/ruff check . --target-version py313 --ignore UP
	$(BIN)/ruff format --check .
	@$(MAKE) --no-print-directory --jobs 2 --output-sync types arrows

types: .venv/.ready
	$(BIN)/mypy

arrows: .venv/.ready
	$(BIN)/lint-imports

test: lint  ## lint, then the fast tests
	$(BIN)/pytest -n 2 --dist loadfile

viewer: $(NIIVUE_FOLDER)/niivue-$(NIIVUE).js  ## NiiVue for `segpipe view`: npm's package of the pinned version, its hash checked

$(NIIVUE_FOLDER)/niivue-%.js:
	@command -v npm >/dev/null || { echo "npm is needed once, to fetch NiiVue; pages show pictures without it" >&2; exit 1; }
	@folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; \
	npm pack --silent --pack-destination "$$folder" @niivue/niivue@$* >/dev/null && \
	echo "$(NIIVUE_SHA512)  $$folder/niivue-niivue-$*.tgz" | sha512sum --check --quiet && \
	tar -xzOf "$$folder/niivue-niivue-$*.tgz" package/dist/niivue.umd.js >"$$folder/niivue.js" && \
	rm -f $(NIIVUE_FOLDER)/niivue-*.js && mv "$$folder/niivue.js" $@ && chmod 644 $@
	@echo "$@"

validators:  ## Debian packages that slow tests ask: dicom3tools, plastimatch, orthanc, dcmtk, chromium (where root)
	@tests/validators.sh

test-slow: .venv/.ready validators viewer  ## Whole commands, kills and oracles
	$(BIN)/pytest -m slow -n 2 --dist loadfile

fuzz: export FUZZ_MINUTES ?= 10
fuzz: export FUZZ_FOUND ?= fuzz_found
fuzz: .venv/.ready  ## Changed files of each kind, FUZZ_MINUTES of each; what breaks a promise is kept in fuzz_found/
	$(BIN)/pytest tests/fuzz -m slow --timeout 0 -k breaks_no_promise || (ls $(FUZZ_FOUND)/*; exit 1)

# Ray has a folder of its own, which sees what lies in .venv, its links to other folders included
.venv-ray/.ready: .venv/.ready
	@echo "Installing Ray into .venv-ray (once)"
	@$(PYTHON) -m venv .venv-ray
	@cd .venv-ray/lib/python3*/site-packages && for folder in $(CURDIR)/.venv/lib/python3*/site-packages; do \
	echo "import site; site.addsitedir('$$folder')" > base.pth; done
	@.venv-ray/bin/pip install --quiet --disable-pip-version-check ray -c constraints.txt
	@touch $@

test-ray: .venv-ray/.ready  ## `segpipe submit --engine ray` on a local Ray of two nodes, which listens on all interfaces meanwhile
	.venv-ray/bin/python -m pytest -m slow tests/cluster/test_ray.py

# a folder of its own: what renders the site is no part of segpipe's environment
.venv-docs/.ready: docs/requirements.txt
	@echo "Installing into .venv-docs (once)"
	@$(PYTHON) -m venv .venv-docs
	@.venv-docs/bin/pip install --quiet --disable-pip-version-check -r $<
	@touch $@

docs: .venv-docs/.ready  ## The site, into site/; needs no network once .venv-docs is there
	@NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build
	@echo "site/index.html; with its search: $(PYTHON) -m http.server -d site"

# a GPU has its own: python bench/gpu_check.py
bench: .venv/.ready  ## Benchmarks, each printing its ratio
	@for script in bench/[!_]*.py; do \
	[ $$script = bench/gpu_check.py ] || { echo "== $$script"; $(BIN)/python $$script; } || missed="$$missed $$script"; \
	done; [ -z "$$missed" ] || { echo "missed what they ask for:$$missed" >&2; exit 1; }

clean:  ## Remove what was made, .venv too
	rm -rf .venv .venv-docs .venv-ray site demo_out fuzz_found .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
