PYTHON ?= python3.11
BIN := .venv/bin
# torch comes first and by itself: asked for together with the rest, pip may choose a CUDA build.
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo demo-smallest setup test lint types tests browser crash fuzz bench clean

demo: .venv/ready
	$(BIN)/squint run digits --output runs/digits --overwrite

demo-smallest: .venv/ready
	$(BIN)/squint run digits --output runs/digits-smallest --overwrite --train.epochs 6 --attack.images 60 \
		--attack.resubmissions 16 --curve 16/255

setup: .venv/test-ready

# The demo needs the package alone; the tests need their extras too.
.venv/ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(INSTALL) --constraint constraints.txt torch==2.13.0
	PIP_CONSTRAINT=constraints.txt $(INSTALL) --editable .
	touch $@

.venv/test-ready: .venv/ready
	PIP_CONSTRAINT=constraints.txt $(INSTALL) --editable '.[test,onnx]'
	# Oracles that the tests compare with; they ask for torchvision, which they do not use and which needs CUDA.
	$(INSTALL) --no-deps --constraint constraints.txt torchattacks pyautoattack
	touch $@

test: lint types tests

lint: .venv/test-ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: .venv/test-ready
	$(BIN)/mypy

# As many files of tests at a time as there are cores, four at most for the sake of memory. Waiting threads
# sleep, so that processes side by side do not starve each other; alone, one is half as fast so.
tests: export OMP_WAIT_POLICY ?= PASSIVE
tests: .venv/test-ready
	$(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist loadfile

browser: .venv/test-ready
	$(BIN)/python -m pytest -q -m browser tests/report

# Kills runs, studies and ladders at twenty random moments each, and fails every write; half an hour on two cores.
crash: .venv/test-ready
	$(BIN)/python -m pytest -q -s -m slow tests/crash

# Fresh examples for every property that the tests state; then twenty thousand damaged files, every file cut off
# at every length, and files that are made to do harm, about five minutes of one core.
fuzz: .venv/test-ready
	$(BIN)/python -m pytest -q -m hypothesis --hypothesis-profile=search
	$(BIN)/python -m tests.fuzz --count 20000

bench: .venv/test-ready
	$(BIN)/python -m benchmarks

clean:
	rm -rf .venv runs .mypy_cache .ruff_cache .pytest_cache .hypothesis
