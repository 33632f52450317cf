#!/bin/sh
# benchmarks/gpu.sh MINUTES [options]: what only a GPU can show, the most valuable first (python -m benchmarks.gpu --help).
# PYTHON: the interpreter. PACKAGES: a folder of packages that the machine lacks. OUT: where the results go.
cd "$(dirname "$0")/.." || exit 1
exec "${PYTHON:-python3}" -m benchmarks.gpu "$@"
