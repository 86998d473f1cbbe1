# `make demo` and `make test` need only Python 3.10 or newer and a C++20 compiler; all else goes into .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt
# In two processes (ARGS="-n 0": one), whose OpenMP threads must not keep each other from the cores by waiting busily.
PYTEST := OMP_WAIT_POLICY=passive $(BIN)/pytest -n 2 --dist worksteal
CPP_FILES = $(shell find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')
SANITIZED_TESTS := $(addprefix tests/test_,kernels.py engine.py engine_options.py zero_skipping.py predictor.py) \
	$(addprefix tests/cuda/test_,emulation.py emulated_kernels.py cuda_engine.py cuda_engine_ends.py cuda_cluster.py)

.PHONY: demo test bench build lint format docs sanitize wheel-check clean

demo: $(VENV)/.demo build  ## the comparison on real data; ARGS="--quick" and the like are passed on
	$(BIN)/twolayer compare $(ARGS)

test: $(VENV)/.test build  ## the tests; ARGS="-m 'not slow'" and the like are passed on
	$(PYTEST) $(ARGS)

bench: $(VENV)/.bench build  ## the benchmark; ARGS="--quick" or names of cases
	$(BIN)/twolayer bench --out benchmarks/results $(ARGS)

build: $(VENV)/.build  ## compile what changed, in place
	$(BIN)/python setup.py --quiet build_ext --inplace

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CPP_FILES)
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP_FILES)

docs: $(VENV)/.docs build  ## the site, in build/docs; nothing is fetched, and a warning is an error
	$(BIN)/sphinx-build -E -W --keep-going --quiet -d build/doctrees docs build/docs

# Linux and g++ only. ASan must be the process's first library, and needs libstdc++ beside it to intercept exceptions.
# Appended test paths keep the instrumented copy before this folder's; pytest's usual capture would swallow the report.
sanitize: $(VENV)/.test  ## the kernel tests, on emulated CUDA too, on a copy of the package under ASan and UBSan
	rm -rf build/sanitize
	TWOLAYER_SANITIZE=address,undefined TWOLAYER_CUDA=0 $(BIN)/python setup.py --quiet build --build-lib build/sanitize
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 TWOLAYER_REQUIRE_NATIVE=1 \
	TWOLAYER_SANITIZE=address,undefined \
	PYTHONPATH=build/sanitize $(PYTEST) --import-mode=append --capture=sys $(SANITIZED_TESTS) $(ARGS)

wheel-check:  ## a wheel built, repaired, installed into an empty environment without a compiler, and tested (minutes)
	PYTHON=$(PYTHON) .ci/wheel-check $(ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info twolayer/*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis

# Stamps: what is installed stays until the requirements or the pins change. C++ is left to ninja, which knows better.
$(VENV)/.build: pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "twolayer needs Python 3.10 or newer: no $(PYTHON) found" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or \
	    sys.exit("twolayer needs Python 3.10 or newer: $(PYTHON) is " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) setuptools wheel pybind11 ninja
	@touch $@

# After the build, so that a missing compiler is told before PyTorch is downloaded.
$(VENV)/.demo $(VENV)/.bench $(VENV)/.test $(VENV)/.docs $(VENV)/.dev: $(VENV)/.%: $(VENV)/.build | build
	$(INSTALL) --no-build-isolation --editable '.[$*]'
	@touch $@
