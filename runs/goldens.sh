#!/usr/bin/env bash
# Makes the golden values of tests again, with the versions pinned in runs/goldens.txt.
#
#     runs/goldens.sh [CRATE or CRATE/SCRIPT …]      # default: all; as in `metrics`, `data/resize`
#
# GOLDEN_ENV is the folder of the Python environment (default: target/goldens), made at the first call.
# Set GOLDEN_ENV to an environment of your own that has the packages to install nothing. foreground.py
# (label) needs a trained run and says how to make it; onnx_runtime.py (weights) checks, and makes nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
environment=${GOLDEN_ENV:-target/goldens}
python=$environment/bin/python
if [ ! -x "$python" ]; then
    python3 -m venv "$environment"
    "$python" -m pip install --quiet --requirement runs/goldens.txt
fi
pillow_12=$environment/pillow-12
if [ ! -d "$pillow_12" ]; then
    "$python" -m pip install --quiet --no-deps --target "$pillow_12" Pillow==12.0.0
fi
python=$(realpath --no-symlinks "$python")
pillow_12=$(realpath "$pillow_12")
runs=$(realpath runs)

is_wanted() { # CRATE SCRIPT, then the arguments of the command
    local crate=$1 script=$2 wanted
    shift 2
    [ $# -eq 0 ] && return 0
    for wanted in "$@"; do
        [ "$wanted" = "$crate" ] || [ "$wanted" = "$crate/$script" ] && return 0
    done
    return 1
}

for file in crates/*/tests/golden/*.py; do
    crate=$(echo "$file" | cut -d/ -f2)
    script=$(basename "$file" .py)
    case $script in foreground | onnx_runtime) continue ;; esac
    is_wanted "$crate" "$script" "$@" || continue
    path=$runs
    [ "$script" = resize ] && path=$pillow_12:$runs
    echo "$crate/$script"
    (cd "$(dirname "$file")" && PYTHONPATH=$path "$python" "$script.py")
done
git --no-pager diff --stat -- 'crates/*/tests/golden'
