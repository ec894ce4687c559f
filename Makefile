# make demo    installs into .venv, streams a real clip, encodes a rendered one, decodes both, and draws what was kept
# make test    lints, checks types and layers, runs the tests, and lists the slowest 20
# make explore runs the property tests with other random inputs, for longer
# make fuzz    feeds damaged inputs to the readers for MINUTES minutes
# make sanitize  runs the tests of the native modules with address and undefined-behaviour sanitizers
# make test-versions tests the wheel with both ends of the version ranges of pyproject.toml, on Python 3.10 and 3.13
# make wheels  builds an sdist and a wheel for each of PYTHONS, and tests them in empty environments
# make docs    builds the pages as a site with search: build/site/index.html
# make clean   removes .venv, build/ and compiled modules

PYTHON ?= python3
# A video file, a camera number or an rtsp:// URL; by default a real clip is streamed and a rendered one encoded.
VIDEO ?=
STREAMED := $(or $(VIDEO),examples/data/bottles.mp4)
RENDERED := synthetic:frames=30,width=640,height=480
ENCODED := $(or $(VIDEO),$(RENDERED))
# How many tokens to keep; 'tatok encode --help' lists the limits.
BUDGET ?= --keep 1
# A camera never ends, so the demo stops after so many frames.
FRAMES ?= 300
# How long 'make fuzz' runs, and where its random numbers begin; by default elsewhere in each run.
MINUTES ?= 10
SEED ?=

# Versions of Python to build wheels for.
PYTHONS ?= 3.10 3.11 3.12 3.13

VENV := .venv
BIN := $(VENV)/bin
DEMO := build/demo
# Python files are used where they are; only what is compiled has to be installed again.
SOURCES := setup.py pyproject.toml $(wildcard runtime/cpu/*.pyx runtime/cpu/*.pxd) $(wildcard runtime/cpp/*.hpp)

.PHONY: help demo test explore fuzz sanitize test-versions wheels docs clean
.DELETE_ON_ERROR:

help:
	@sed -n 's/^# make/make/p' Makefile

demo: $(VENV)/.installed
	@rm -rf $(DEMO) && mkdir -p $(DEMO)
	$(BIN)/tatok stream '$(STREAMED)' -o $(DEMO)/stream.ttk --max-loss-db 0 --frames $(FRAMES)
	$(BIN)/tatok decode $(DEMO)/stream.ttk -o $(DEMO)/stream.mp4
	$(BIN)/tatok encode '$(ENCODED)' -o $(DEMO)/demo.ttk $(BUDGET) --frames $(FRAMES) --snapshot $(DEMO)/original.png
	$(BIN)/tatok decode $(DEMO)/demo.ttk -o $(DEMO)/decoded.mp4
	$(BIN)/tatok view $(DEMO)/demo.ttk --source $(DEMO)/original.png --frame -1 -o $(DEMO)/side_by_side.png
	@echo
	@echo 'Open $(DEMO)/side_by_side.png: original, tokens of each patch, and reconstruction.'
	@echo 'Play $(DEMO)/stream.mp4 (a stream: only changes are sent) and $(DEMO)/decoded.mp4 (each frame by itself).'
	@echo "Next: 'make demo VIDEO=0' takes your camera; '$(BIN)/tatok stream --help' shows examples; docs/quickstart.md."

test: $(VENV)/.tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p tatok_edge
	$(BIN)/lint-imports
	$(BIN)/pytest --durations=20

explore: $(VENV)/.tools
	TATOK_HYPOTHESIS=explore $(BIN)/pytest -m hypothesis

fuzz: $(VENV)/.tools
	$(BIN)/python tests/fuzz/run.py --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

sanitize: $(VENV)/.tools
	PYTHON=$(abspath $(BIN)/python) tests/fuzz/sanitize.sh

test-versions: $(VENV)/.tools
	$(BIN)/python tests/versions.py

wheels:
	$(PYTHON) .ci/wheels $(PYTHONS)

docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	$(BIN)/python docs/make_site.py

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
