#!/usr/bin/env bash
# What a GPU changes, in at most 8 minutes; `benchmarks/gpu.sh --small` runs on a CPU. PYTHON chooses the interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."
exec timeout 480 "${PYTHON:-.venv/bin/python}" benchmarks/gpu.py "$@"
