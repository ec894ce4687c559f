# make demo    installs into .venv, tokenizes a camera clip, decodes it, and draws what was kept
# make test    lints, checks types and runs the tests against the installed package
# make clean   removes .venv and build/

PYTHON ?= python3
# A video file, a camera number or an rtsp:// URL; by default a clip that the project renders itself.
VIDEO ?= synthetic:frames=90,width=640,height=480
# How many tokens to keep; 'tatok encode --help' lists the limits.
BUDGET ?= --tau 0.9
# A camera never ends, so the demo stops after so many frames.
FRAMES ?= 300

VENV := .venv
BIN := $(VENV)/bin
DEMO := build/demo
SOURCES := setup.py pyproject.toml $(shell find tatok_edge export runtime -type f \
	-not -path '*/__pycache__/*' -not -name '*.so')

.PHONY: help demo test clean
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
	$(BIN)/pytest

$(VENV)/.created:
	$(PYTHON) -m venv $(VENV)
	@touch $@

# What an earlier build copied for packaging is removed first: it may hold modules that are gone.
$(VENV)/.installed: $(VENV)/.created $(SOURCES)
	@rm -rf build/lib* build/bdist*
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.tools: $(VENV)/.installed requirements-dev.txt
	$(BIN)/python -m pip install --quiet --requirement requirements-dev.txt
	@touch $@

clean:
	rm -rf $(VENV) build tatok_edge.egg-info
