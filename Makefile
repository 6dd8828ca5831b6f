# Every target sets up what it needs, once. `make setup` alone creates .venv with the three distributions in it.

PYTHON ?= python3
HOST ?= 127.0.0.1
PORT ?= 8000
STATE ?= exodus-state
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check

EXTENSION := exodus_core/setup.py $(shell find exodus_core/csrc -type f)
PROJECTS := exodus_core/pyproject.toml service/pyproject.toml client/pyproject.toml

# EXODUS_DATA is where the tests find real spike data; they skip what is not there.
export EXODUS_DATA ?= $(wildcard $(CURDIR)/../shared/data)
QUICK ?=
DATA ?=
SEED ?=
PYTHONS ?=
SLAYER ?=
TARGET ?= cpu

.PHONY: help setup serve demo test test-core test-service test-client lint format bench bench-service bench-remote bench-checkpoint bench-accelerate chaos exactness mutate sanitize peers lock clean release wheels torch-versions pythons checked
.PHONY: cuda-emulate cuda-check cuda-work gpu-check image-lock image-check

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

setup: $(VENV)/.installed ## create .venv, build the extension, install the three distributions editable

$(VENV)/.requirements: requirements.lock
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --requirement requirements.lock
	@touch $@

$(VENV)/.installed: $(VENV)/.requirements $(EXTENSION) $(PROJECTS)
	$(PIP) install --quiet --no-build-isolation --no-deps \
		--editable ./exodus_core --editable ./client --editable ./service
	@touch $@

serve: setup ## start the service on HOST:PORT; models are kept in STATE
	EXODUS_STATE_DIR=$(STATE) $(BIN)/exodus-service serve --host $(HOST) --port $(PORT)

demo: setup ## start the service and train over HTTP; DATA=DIR for the Oxford raster in that folder
	$(BIN)/python -m examples.demo $(if $(DATA),--data $(DATA))

test: test-core test-service test-client ## all tests; those against other libraries run where `make peers` has installed them

test-core: setup
	$(BIN)/pytest tests --ignore tests/service --ignore tests/e2e --ignore tests/client

test-service: setup
	$(BIN)/pytest tests/service tests/e2e

test-client: setup
	$(BIN)/pytest tests/client --cov --cov-fail-under=100 --cov-report=term:skip-covered

# Tests of exodus_core pass wrong arguments on purpose, and read attributes that may be None.
LOOSE = $(foreach code,arg-type union-attr operator index,--disable-error-code $(code))

lint: setup ## ruff and mypy
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy exodus_core/src client/src service/src
	$(BIN)/mypy benchmarks examples experiments tools tests/*.py $(addprefix tests/,client service e2e benchmarks cuda experiments)
	$(BIN)/mypy $(LOOSE) --exclude peers tests/core

format: setup ## let ruff format the code
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: setup ## how fast, against other libraries, the memory and dense products; writes benchmarks/results, the README's table; QUICK=1 prints a part
	$(BIN)/python -m benchmarks.speed $(if $(QUICK),--quick)
	$(BIN)/python -m benchmarks.sparse $(if $(QUICK),--quick)
	$(BIN)/python -m benchmarks.neurons $(if $(QUICK),--quick)

bench-service: setup ## time the way over HTTP; writes benchmarks/results/service.md; QUICK=1 for a short run that writes nothing
	$(BIN)/python -m benchmarks.service $(if $(QUICK),--quick)

bench-remote: setup ## a training step on the server against the step in process; writes benchmarks/results/remote.md; QUICK=1 prints a part
	$(BIN)/python -m benchmarks.remote $(if $(QUICK),--quick)

bench-checkpoint: setup ## memory and time of long sequences with a time checkpoint and without; writes benchmarks/results/checkpoint.md; QUICK=1 prints a part
	$(BIN)/python -m benchmarks.checkpoint $(if $(QUICK),--quick)

bench-accelerate: setup ## the training step of other libraries' models, as they are and accelerated; writes benchmarks/results/accelerate.md; QUICK=1 prints a part
	$(BIN)/python -m benchmarks.accelerate $(if $(QUICK),--quick)

chaos: setup ## train while the server is killed and the network fails; writes docs/reliability.md; QUICK=1 for a part, SEED=N to repeat one
	$(BIN)/python -m tools.chaos $(if $(SEED),--seed $(SEED)) $(if $(QUICK),--quick,--markdown docs/reliability.md)

exactness: setup ## kernels against autograd in float64, every setting; writes docs/exactness.md; QUICK=1 for a short run, SEED=N to repeat one
	$(BIN)/python -m tools.exactness $(if $(SEED),--seed $(SEED)) $(if $(QUICK),--quick,--markdown docs/exactness.md)

verify: setup ## gradients of random cases against the exact ones; QUICK=1 for a few, SEED=N for others
	$(BIN)/python -m exodus_core.verify --random $(if $(QUICK),2000,100000) $(if $(SEED),--seed $(SEED))

# Without the spike data the gradient norms are those of spike trains made by chance, the accuracies those of one task, and
# docs/paper.md, which is made of all, stays. SLAYER is the folder test/test_files/torch_validate of slayerPytorch.
experiments: setup ## the paper's figures and tables; writes experiments/results and docs/paper.md; QUICK=1 prints a part
	$(BIN)/python -m experiments.theory $(if $(QUICK),--quick) $(if $(SLAYER),--slayer $(SLAYER))
	$(BIN)/python -m experiments.gradient_scale $(if $(EXODUS_DATA),,--synthetic) $(if $(QUICK),--quick)
	$(BIN)/python -m experiments.poisson --normalised $(if $(QUICK),--quick)
	$(if $(QUICK),,$(BIN)/python -m experiments.poisson)
	$(BIN)/python -m experiments.accuracy $(if $(EXODUS_DATA),,--task manifolds) $(if $(QUICK),--quick)
	$(BIN)/python -m experiments.speed $(if $(QUICK),--quick)
	$(if $(QUICK)$(if $(EXODUS_DATA),,without),,$(BIN)/python -m experiments.paper)

mutate: setup ## change the arithmetic of csrc/core, one operator at a time: the tests must fail; writes docs/mutants.md; QUICK=1 for a few, SEED=N for others
	$(BIN)/python -m tools.mutate $(if $(SEED),--seed $(SEED)) $(if $(QUICK),--quick,--markdown docs/mutants.md)

# --capture=sys: what a sanitizer says as it ends the program must reach the terminal.
UNDER_SANITIZERS = ASAN_OPTIONS=detect_leaks=0 \
	LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libubsan.so)"
SANITIZED_TESTS := -q --capture=sys tests/core -m "not slow and not peers"

SANITIZED := build/sanitize/lib/exodus_core/_C.abi3.so

$(SANITIZED): $(VENV)/.installed
	cd exodus_core && EXODUS_SANITIZE=address,undefined ../$(BIN)/python setup.py --quiet build \
		--build-base ../build/sanitize --build-lib ../build/sanitize/lib

# Leaks are not looked for: Python and torch keep memory to the end on purpose. torch.compile starts compilers of its own.
sanitize: $(SANITIZED) ## the kernels under AddressSanitizer and UndefinedBehaviorSanitizer; QUICK=1 for a part
	$(UNDER_SANITIZERS) PYTHONPATH=build/sanitize/lib $(BIN)/pytest $(SANITIZED_TESTS) \
		-k "not compiles $(if $(QUICK),and (time_may_be_any_axis or empty or opcheck))"

# The kernels for compute capability 9.0, and for 7.5, which has no asynchronous copies.
EMULATED := build/emulate-90/lib/exodus_core/_C.abi3.so
EMULATED_OLD := build/emulate-75/lib/exodus_core/_C.abi3.so

build/emulate-%/lib/exodus_core/_C.abi3.so: $(VENV)/.installed $(shell find tests/cuda -name '*.cpp' -o -name '*.h')
	cd exodus_core && EXODUS_EMULATE=$* EXODUS_SANITIZE=address,undefined ../$(BIN)/python setup.py --quiet build --force \
		--build-base ../build/emulate-$* --build-lib ../build/emulate-$*/lib

# Capability, order of blocks and threads, and choices of choice.cuh: the LIF backward pass, and the bytes of a thread's
# row.
RUNS := $(if $(QUICK),90:reverse:chunks:16,90:forward:auto:4 90:reverse:chunks:8 90:1:serial:16 75:2:auto:16)

checked: $(SANITIZED) $(EMULATED) ## build what `sanitize` and `cuda-emulate` run

# Without sparse products, whose kernels are the CPU's own.
cuda-emulate: $(EMULATED) $(if $(QUICK),,$(EMULATED_OLD)) ## the CUDA kernels on the CPU, under sanitizers, in several orders; QUICK=1 for a part
	for run in $(RUNS); do \
		set -- $$(echo $$run | tr : " "); \
		echo "capability $$1; order of blocks and threads: $$2; LIF backward: $$3; rows of $$4 bytes"; \
		EXODUS_SPARSE=0 EXODUS_EMULATE_ORDER=$$2 EXODUS_CUDA_BACKWARD=$$3 EXODUS_CUDA_ROW_BYTES=$$4 $(UNDER_SANITIZERS) \
			PYTHONPATH=build/emulate-$$1/lib $(BIN)/pytest $(SANITIZED_TESTS) \
			-k "not compiles and not instruction_set $(if $(QUICK),and (any_axis or empty or neighbours or overflows or choice_of))" || exit 1; \
	done
	$(UNDER_SANITIZERS) PYTHONPATH=build/emulate-90/lib $(BIN)/python -m tools.exactness --quick --seed 0 \
		> build/emulate-90/exactness.txt || (cat build/emulate-90/exactness.txt; exit 1)
	tail -7 build/emulate-90/exactness.txt

# The tools that read machine code are packages of their own.
$(VENV)/.cuda-tools: requirements-cuda.txt $(VENV)/.installed
	$(PIP) install --quiet --no-deps --requirement requirements-cuda.txt
	@touch $@

cuda-check: $(VENV)/.cuda-tools ## compile the kernels for every architecture, check their budgets; writes docs/cuda-kernels.md
	$(BIN)/python -m tools.cuda.check $(if $(QUICK),--quick,--markdown docs/cuda-kernels.md)

cuda-work: $(EMULATED) cuda-check ## count the kernels' memory traffic, compute times from it; writes docs/cuda-roofline.md
	$(UNDER_SANITIZERS) PYTHONPATH=build/emulate-90/lib $(BIN)/python -m tools.cuda.work $(if $(QUICK),--quick,--markdown docs/cuda-roofline.md)

# The tests of the core are `make test` there.
STAND_IN := --stand-in --report build/gpu-check $(patsubst %,--part %,exact times paper service tune)

gpu-check: setup ## on a machine with a GPU: tests, compute-sanitizer, times, the service; writes gpu-report.md; QUICK=1 on the CPU
	$(BIN)/python benchmarks/gpu_check.py $(if $(QUICK),$(STAND_IN))

peers: setup ## install the libraries that the tests compare with
	$(PIP) install --quiet --no-deps --requirement requirements-peers.txt

release: setup ## build the three distributions from what is committed and check them; publishes nothing; QUICK=1 without the wheel of the core
	$(BIN)/python -m tools.release $(if $(QUICK),--quick)

wheels: setup ## build the wheels for CPU and CUDA, check and try them; publishes nothing; QUICK=1 checks the core that is installed
	$(BIN)/python -m tools.wheels $(if $(QUICK),--quick)

torch-versions: setup ## build against the headers of every torch from 2.10 on, and try it; QUICK=1 for a part of the oldest
	$(BIN)/python -m tools.torch_versions $(if $(QUICK),--quick)

pythons: setup ## test the client under every Python from 3.11 on that is installed, without torch; PYTHONS=3.13 for one
	$(BIN)/python -m tools.pythons $(PYTHONS)

lock: ## pin requirements.in in requirements.lock, on a machine of the kind that it is for
	$(BIN)/pip-compile --quiet --strip-extras --allow-unsafe --no-emit-index-url --no-emit-find-links --no-header \
		--output-file requirements.lock requirements.in
	sed -i -E 's/^(torch==[^+]*)\+.*/\1/' requirements.lock # which build of it, CPU or CUDA, is for pip to find

clean: ## remove everything that was built or installed
	rm -rf $(VENV) build .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage demo-output
	find . -name '*.egg-info' -prune -exec rm -rf {} + -o -name '__pycache__' -prune -exec rm -rf {} +
	rm -rf exodus_core/build exodus_core/src/exodus_core/*.so

image-lock: ## pin what PyTorch's CUDA build brings along in docker/gpu.lock, where pip finds that build
	@mkdir -p build
	sed -E 's/^(torch==[^+]*).*/\1/' requirements.lock > build/constraints.txt
	echo torch | $(BIN)/pip-compile --quiet --strip-extras --allow-unsafe --no-emit-index-url --no-emit-find-links \
		--no-header --no-annotate --constraint build/constraints.txt --output-file docker/gpu.lock -

image-check: setup ## build and use the image without a container engine, as root; TARGET=gpu for the other one
	tools/image_check.sh $(TARGET)
