#!/usr/bin/env bash
# Checks that timm and transformers load the folders of `clasp export hub` and compute the features of
# `clasp embed` within 1e-5, at the sizes of people, at 224x224 and at a size of odd maps (runs/hub.py).
#
#     runs/hub.sh [CLASP [WORD]]      # default: target/release/clasp, every family; else those with WORD in the name
#
# GOLDEN_ENV is the folder of the Python environment, as for runs/goldens.sh.
set -euo pipefail
cd "$(dirname "$0")/.."
clasp=$(realpath "${1:-target/release/clasp}")
environment=${GOLDEN_ENV:-target/goldens}
python=$environment/bin/python
# Also after an installation that was interrupted.
if ! "$python" -c "import timm, torch, transformers, safetensors" 2>/dev/null; then
    echo "installing PyTorch, timm and transformers into $environment" >&2
    python3 -m venv "$environment"
    "$python" -m pip install --quiet --requirement runs/goldens.txt
fi
exec "$python" runs/hub.py "$clasp" "${@:2}"
