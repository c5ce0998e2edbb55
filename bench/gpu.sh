#!/usr/bin/env bash
# Everything that a GPU must confirm, in under nine minutes; --dry runs every line on a CPU, small.
#   bench/gpu.sh [--dry] [--out DIR]
# Needs torch, torchvision, triton, numpy, numba, pyyaml and pytest; what more is installed (DALI,
# FFCV, kornia …) is used, and what is not is a line that says so.
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${PYTHON:-python}" -m bench.gpu "$@"
