# The front door. `make` lists the targets; variables are given as in `make train RUN=first SEED=1`.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# One thread a process is fastest on few cores, and keeps parallel tests out of each other's way.
TEST_ENV := OMP_NUM_THREADS=1 RAY_memory_monitor_refresh_ms=0
PYTEST := $(TEST_ENV) $(BIN)/pytest -q -m "not slow and not network"

DATA ?=
RUN ?=
SEED ?=
ARGS ?=

.PHONY: help
help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

.PHONY: setup
setup: $(STAMP) ## the environment in .venv, versions of requirements.lock

NATIVE := $(wildcard data_prep/gear_data_prep/images/*.c gear_dist/inference/decoding/*.c)
$(STAMP): pyproject.toml requirements.lock $(NATIVE)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "gear-dist needs Python 3.11 or newer: make PYTHON=/path/to/python3.11"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		-c requirements.lock -e '.[dev]'
	@touch $@

# The Triton that torch's wheels for CUDA pin; here no torch brings one.
CUDA_TRITON := 3.7.1

.PHONY: train
train: $(STAMP) ## train on made-up images, or on DATA=FOLDER; also RUN=, SEED=, ARGS='key=value ...'
	@$(BIN)/gear-dist quickstart $(if $(DATA),--data '$(DATA)') $(if $(RUN),--run-name '$(RUN)') \
		$(if $(SEED),--seed '$(SEED)') $(ARGS)

.PHONY: train-text
train-text: $(STAMP) ## the same with captions in place of classes; also RUN=, SEED=, ARGS='key=value ...'
	@$(BIN)/gear-dist quickstart --config configs/text/demo.yaml --run-name '$(or $(RUN),text)' \
		$(if $(SEED),--seed '$(SEED)') $(ARGS)

.PHONY: test
test: lint test-unit test-kernels test-distributed test-integration ## lint and all tests but the slow ones

.PHONY: test-unit test-kernels test-distributed test-integration
test-unit: $(STAMP) ## tests of single parts
	$(PYTEST) tests/unit
test-kernels: $(STAMP) .gear/triton-$(CUDA_TRITON) ## kernels against their reference, compiled with both Tritons
	$(PYTEST) tests/kernels
	PYTHONPATH=$(CURDIR)/.gear/triton-$(CUDA_TRITON) EXPECTED_TRITON=$(CUDA_TRITON) \
		$(PYTEST) tests/kernels/test_triton_compile.py
test-distributed: $(STAMP) ## several real processes, Ray
	$(PYTEST) tests/distributed
test-integration: $(STAMP) ## the real entry points
	$(PYTEST) tests/integration

.PHONY: lint
lint: $(STAMP) ## ruff, mypy, codespell
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell

.PHONY: docs
docs: $(STAMP) ## the pages that are written from the code: docs/configuration.md, docs/ARCHITECTURE.md
	$(BIN)/python -m gear_dist.config.docs > docs/configuration.md
	$(BIN)/python docs/architecture.py > docs/ARCHITECTURE.md

.PHONY: reproduce
reproduce: $(STAMP) ## the method's arms beside each other, curves and a table; ARGS='...' as reproduce takes
	OMP_NUM_THREADS=1 $(BIN)/gear-dist reproduce configs/convergence.yaml $(ARGS)

.PHONY: bench bench-kernels bench-sharding bench-loading bench-training bench-sampling bench-serving
bench: bench-kernels bench-sharding bench-loading bench-training bench-sampling bench-serving ## benchmarks beside the peers, as tables
bench-kernels: $(STAMP)
	$(TEST_ENV) $(BIN)/python kernels/bench/run.py $(ARGS)
bench-sharding: $(STAMP) .gear/peers
	$(TEST_ENV) $(BIN)/python data_prep/bench/run.py --img2dataset .gear/peers $(ARGS)
bench-loading: $(STAMP) .gear/streaming
	$(TEST_ENV) PYTHONPATH=.gear/streaming $(BIN)/python data_prep/bench/loader_run.py .gear/loader-bench $(ARGS)
bench-training: $(STAMP)
	$(TEST_ENV) $(BIN)/python cluster/bench/run.py $(ARGS)
bench-sampling: $(STAMP)
	$(TEST_ENV) $(BIN)/python cluster/bench/sampling_run.py $(ARGS)

bench-serving: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python cluster/bench/serving_run.py $(ARGS)

.PHONY: gpu-check
gpu-check: $(STAMP) ## what only a GPU can tell, step by step; goes on where it was cut off; ARGS='--device cpu' tries it without
	$(BIN)/python cluster/bench/gpu_check/run.py $(ARGS)

# Pins of their own: folders that only the benchmarks look into.
.gear/peers:
	$(BIN)/python -m pip install --quiet --no-warn-conflicts --target $@ 'img2dataset==1.47.0'
# Without its clients of other clouds and torchvision, which shards on S3 do not need.
.gear/streaming:
	$(BIN)/python -m pip install --quiet --no-deps --target $@ 'mosaicml-streaming==0.13.0' \
		Brotli python-snappy cramjam zstd catalogue

# Versions of Triton that the kernels must compile with, in folders of their own, nothing else
# beside them: what torch's CUDA wheels pin (requirements.lock pins no triton, so that it stays
# theirs), and the newest of the range in pyproject.toml.
TRITONS := $(CUDA_TRITON) 3.9.0
.gear/triton-%:
	rm -rf $@.part
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $@.part 'triton==$*'
	mv $@.part $@

.PHONY: kernel-report test-tritons
kernel-report: $(STAMP) $(TRITONS:%=.gear/triton-%) ## registers, spills and instructions of every compiled kernel
	$(TEST_ENV) $(BIN)/python kernels/bench/kernel_report.py $(TRITONS:%=.gear/triton-%)
test-tritons: $(STAMP) $(TRITONS:%=.gear/triton-%) ## the Triton kernels' tests with each version; needs a package index
	@for version in $(TRITONS); do \
		echo "== triton $$version"; \
		PYTHONPATH=$(CURDIR)/.gear/triton-$$version EXPECTED_TRITON=$$version \
			$(PYTEST) tests/kernels/test_triton_compile.py tests/kernels/test_triton.py; \
	done

.PHONY: soak soak-slow soak-processors
soak: soak-slow soak-processors test-tritons ## the slow tests, all others as older processors would run them, each Triton
soak-slow: $(STAMP)
	$(TEST_ENV) $(BIN)/pytest -m slow tests
	REQUIRE_BROWSER=1 $(PYTEST) tests/distributed/test_serving_page.py
# Rounding differs with the processor, so no test may rest on it. PyTorch's own loops and oneDNN's
# convolutions can be held to older instruction sets, each by itself; `native` holds nothing.
INSTRUCTION_SETS := native ATEN_CPU_CAPABILITY=default ATEN_CPU_CAPABILITY=avx2 \
	DNNL_MAX_CPU_ISA=sse41 DNNL_MAX_CPU_ISA=avx2
TESTS ?= tests
soak-processors: $(STAMP) ## all but the slow tests under each instruction set; TESTS='FILE ...' for some
	@failed=""; for held in $(INSTRUCTION_SETS); do \
		echo "== $$held"; \
		env $${held/#native/GEAR_SOAK=native} $(PYTEST) $(TESTS) || failed="$$failed $$held"; \
	done; test -z "$$failed" || { echo "failed under:$$failed"; exit 1; }

.PHONY: clean
clean: ## remove caches and what quickstart made (.gear); keeps runs/ and .venv
	if test -x $(BIN)/gear-dist && test -d .gear; then $(BIN)/gear-dist store stop; fi
	rm -rf .gear build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
