# make demo | test | test-all | campaign | lint | backends | package: each makes the environment first if it is not there.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
comma  := ,

# Which MLX: Metal comes with the plain install on a Mac; CUDA where there is an NVIDIA driver; else the CPU.
ifeq ($(shell uname -sm),Darwin arm64)
  MLX :=
  BACKEND ?= metal
else
  CUDA := $(shell nvidia-smi 2>/dev/null | sed -n 's/.*CUDA[A-Za-z ]*Version: *\([0-9]*\).*/\1/p' | head -n 1)
  MLX := $(if $(CUDA),$(if $(filter 12,$(CUDA)),cuda12,cuda13),cpu)
  BACKEND ?= $(if $(CUDA),cuda,cpu)
endif
EXTRAS ?= $(if $(MLX),$(MLX)$(comma))dev

.PHONY: demo test test-all campaign lint backends package clean

demo: $(VENV)/ready
	$(BIN)/python -m mlxmath.demo

test: $(VENV)/ready
	$(BIN)/python -m pytest -n auto -m "not rarer and not slow"

# and what `make test` leaves out: rarer model types of mlx_lm, long trainings
test-all: $(VENV)/ready
	$(BIN)/python -m pytest -n auto

# commands killed, starved of disk, signalled and run two at once (Linux); without --short, all of it, for hours
campaign: $(VENV)/ready
	$(BIN)/python benchmarks/campaign.py --short

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/ci.yml

# the contract of all backends; fails where this machine's own (BACKEND) is not there, instead of passing over it
backends: $(VENV)/ready
	$(BIN)/python -c 'import sys; from mlxmath.runtime.device import BACKENDS; sys.exit(BACKENDS["$(BACKEND)"]().unavailable())'
	$(BIN)/python -m pytest tests/runtime/test_device.py tests/models/test_kernels.py

# sdist and wheel into dist/, and the wheel tried without this clone; EMPTY=1: with dependencies installed anew, too
package: $(VENV)/ready
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/python tools/check_package.py $(if $(EMPTY),--empty '$(MLX)')

$(VENV)/ready: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else f"mlxmath needs Python 3.11 or newer, found {sys.version.split()[0]}; set PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[$(EXTRAS)]'
	touch $@

clean:
	rm -rf $(VENV) mlx_model adapters cache evaluation_results distilled two-stage
