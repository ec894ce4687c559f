# make demo    installs into .venv, tokenizes a camera clip, decodes it, and draws what was kept
# make test    lints, checks types and layers, runs the tests, and lists the slowest 20
# make explore runs the property tests with other random inputs, for longer
# make clean   removes .venv, build/ and compiled modules

PYTHON ?= python3
# A video file, a camera number or an rtsp:// URL; by default a clip that the project renders itself.
VIDEO ?= synthetic:frames=90,width=640,height=480
# How many tokens to keep; 'tatok encode --help' lists the limits.
BUDGET ?= --keep 1
# A camera never ends, so the demo stops after so many frames.
FRAMES ?= 300

VENV := .venv
BIN := $(VENV)/bin
DEMO := build/demo
# Python files are used where they are; only what is compiled has to be installed again.
SOURCES := setup.py pyproject.toml $(wildcard runtime/cpu/*.pyx runtime/cpu/*.pxd) $(wildcard runtime/cpp/*.hpp)

.PHONY: help demo test explore clean
.DELETE_ON_ERROR:

help:
	@sed -n 's/^# make/make/p' Makefile

demo: $(VENV)/.installed
	@mkdir -p $(DEMO)
	$(BIN)/tatok encode '$(VIDEO)' -o $(DEMO)/demo.ttk $(BUDGET) --frames $(FRAMES) --snapshot $(DEMO)/original.png
	$(BIN)/tatok decode $(DEMO)/demo.ttk -o $(DEMO)/decoded.mp4
	$(BIN)/tatok view $(DEMO)/demo.ttk --source $(DEMO)/original.png --frame -1 -o $(DEMO)/side_by_side.png

test: $(VENV)/.tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p tatok_edge
	$(BIN)/lint-imports
	$(BIN)/pytest --durations=20

explore: $(VENV)/.tools
	TATOK_HYPOTHESIS=explore $(BIN)/pytest -m hypothesis

$(VENV)/.created:
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed: $(VENV)/.created $(SOURCES)
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.tools: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) build tatok_edge.egg-info runtime/cpu/*.so
