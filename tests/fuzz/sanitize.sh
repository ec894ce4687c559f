#!/usr/bin/env bash
# Builds the native modules with the address and undefined-behaviour sanitizers in a copy of the repository, and runs
# their tests and the fuzz targets that reach them. Needs gcc. PYTHON: the Python to use (default: python3).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python=${PYTHON:-python3}
copy=build/sanitize
mkdir -p "$copy"
# tatok_edge/export and tatok_edge/runtime are links, and stay links.
tar --exclude='*.so' --exclude=__pycache__ -cf - setup.py pyproject.toml README.md LICENSE docs runtime export tatok_edge tests \
  | tar -xf - -C "$copy"
cd "$copy"
TATOK_SANITIZE=1 CFLAGS= "$python" setup.py build_ext --inplace
# Python leaves memory at its end on purpose, and so do the libraries.
export ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 PYTHONPATH=$PWD
preload="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so) $(gcc -print-file-name=libstdc++.so)"
if [[ $# -eq 0 ]]; then
  set -- tests/format tests/runtime/test_cpu_*.py tests/runtime/test_native_geometry.py \
    "tests/fuzz/test_fuzz.py::test_damaged_inputs[packet]" "tests/fuzz/test_fuzz.py::test_damaged_inputs[stream]"
fi
LD_PRELOAD=$preload "$python" -m pytest -q "$@"
