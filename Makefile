# Everything a newcomer needs: `make demo`, `make test`. PYTHON chooses the interpreter of the virtual environment.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := runs/demo
VIEWERS := .viewers
PRECISION := auto

.PHONY: install demo demo-text test check bench faults faults-lost viewers clean-demo results results-full results-radiographs results-pretrained results-radiographs-attention results-radiographs-gpu
.DEFAULT_GOAL := help

help:
	@echo "make demo    install, then the whole method on the built-in phantom (about 8 minutes of work on 2 cores)"
	@echo "make demo-text  the same for radiographs with reports: pairs, retrieval, graders from 10 % of the grades"
	@echo "make test    install, then the tests (no network, no data from outside)"
	@echo "make check   format, lint, types, import rules"
	@echo "make bench   speed and memory, side by side with their floors"
	@echo "make faults  kills, full disks, damaged files (4 minutes)"
	@echo "make faults-lost  one of two processes killed, ten times at each moment (15 minutes)"
	@echo "make viewers fetch OHIF and axe-core from npm; look at an export and the review page in Chromium"
	@echo "make results               the paper's tables on the phantom: hours; may be stopped and started again"
	@echo "make results-full          the same at 30 and 50 % of the labels, too"
	@echo "make results-radiographs RADIOGRAPHS=FOLDER   few labels on the published radiographs"
	@echo "make results-pretrained RADIOGRAPHS=FOLDER   the same from ImageNet weights, and self-training"
	@echo "make results-radiographs-attention RADIOGRAPHS=FOLDER   attention on the joint, marked by a segmenter of phantom radiographs"
	@echo "make results-radiographs-gpu RADIOGRAPHS=FOLDER   the same with larger networks, on a GPU"

install: $(VENV)/installed

$(VENV)/installed: setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; make PYTHON=python3.12, say")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: install
	@BIN=$(BIN) DEMO=$(DEMO) PRECISION=$(PRECISION) bash experiments/demo.sh

demo-text: install
	@BIN=$(BIN) PRECISION=$(PRECISION) bash experiments/demo_text.sh

test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: install
	$(BIN)/python benchmarks/step.py
	$(BIN)/python benchmarks/loader.py
	$(BIN)/python benchmarks/flip_step.py
	$(BIN)/python benchmarks/pair_step.py
	$(BIN)/python benchmarks/checkpoint.py
	$(BIN)/python benchmarks/processes.py
	$(BIN)/python benchmarks/onnx_runtime.py
	$(BIN)/python benchmarks/start.py
	$(BIN)/python benchmarks/rows.py --skip check

# FAULTS_TABLE=docs/results/faults.md writes the figures there, too.
faults: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/faults -m faults -s

# Ten kills at each moment of two processes' training.
faults-lost: install
	OMP_NUM_THREADS=1 LOST_PROCESSES=10 $(BIN)/python -m pytest tests/faults/test_lost_process.py -m faults -s

# Debian: orthanc orthanc-dicomweb chromium chromium-driver npm. Screenshots: .viewers/screenshots.
viewers: install $(VIEWERS)/ohif/package $(VIEWERS)/axe-core/package
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/viewers -m viewers -rs

# The packages are whole: nothing that they depend on is installed.
$(VIEWERS)/ohif/package: NPM = @ohif/app@3.13.2
$(VIEWERS)/axe-core/package: NPM = axe-core@4.10.3
$(VIEWERS)/%/package:
	mkdir -p $(VIEWERS)/$*
	-cd $(VIEWERS)/$* && tar -xzf "$$(npm pack --silent $(NPM))" && rm *.tgz

clean-demo:
	rm -rf $(DEMO)

# RESULTS holds further options, such as RESULTS=--tables-only or RESULTS='--seeds 1 --jobs 1'.
results: install
	$(BIN)/python -m experiments.results phantom $(RESULTS)

results-full: install
	$(BIN)/python -m experiments.results phantom --full $(RESULTS)

RADIOGRAPHS ?= data/knee_kl224
results-radiographs: install
	$(BIN)/python -m experiments.results radiographs --radiographs $(RADIOGRAPHS) $(RESULTS)

results-pretrained: install
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,weights]'
	$(BIN)/python -m experiments.results radiographs_pretrained --radiographs $(RADIOGRAPHS) $(RESULTS)

results-radiographs-attention: install
	$(BIN)/python -m experiments.results radiographs_attention --radiographs $(RADIOGRAPHS) $(RESULTS)

results-radiographs-gpu: install
	$(BIN)/python -m experiments.results radiographs_gpu --radiographs $(RADIOGRAPHS) --jobs 1 --threads 8 $(RESULTS)
