#!/usr/bin/env bash
# Everything that a GPU must confirm, in at most eight minutes.
#   bench/gpu.sh [--only PART…] [--out DIR] [--dry]
# --dry runs every line on a CPU, small. Needs torch, torchvision, triton, numpy, numba, pyyaml, pillow,
# timm and pytest; what more is installed (DALI, FFCV, nvImageCodec) is used, and what is not is a
# line that says so. FASTSC_WHEELS=DIR unpacks carried wheels first.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -n "${FASTSC_WHEELS:-}" ]; then
    "${PYTHON:-python}" -m pip install --quiet --no-index --no-deps "$FASTSC_WHEELS"/*.whl
fi
exec "${PYTHON:-python}" -m bench.gpu "$@"
