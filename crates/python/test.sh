#!/usr/bin/env bash
# Builds the wheel, installs it into a virtual environment of its own, and tests it. Skipped where there is no
# Python with venv, or where pip cannot download packages.
set -euo pipefail
cd "$(dirname "$0")"
root=$(cd ../.. && pwd)
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$root/target}"
venv="$CARGO_TARGET_DIR/python-venv"

if ! python3 -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
    echo "skipped: the Python module needs Python 3.10 or later with venv"
    exit 0
fi
[ -x "$venv/bin/pip" ] || python3 -m venv "$venv"
if ! "$venv/bin/pip" install --quiet --disable-pip-version-check 'maturin>=1.9.4,<2' matplotlib numpy mypy pandas pandas-stubs pillow \
    pycocotools pytest safetensors scikit-learn types-Pillow; then
    echo "skipped: pip cannot install what the tests of the Python module need"
    exit 0
fi
rm -rf "$CARGO_TARGET_DIR/wheels"
"$venv/bin/maturin" build --release --locked --quiet --interpreter "$venv/bin/python" --out "$CARGO_TARGET_DIR/wheels"
"$venv/bin/pip" install --quiet --disable-pip-version-check --no-deps --force-reinstall \
    "$CARGO_TARGET_DIR"/wheels/*.whl
# Away from the sources, so that the installed module is what is tested.
cd "$CARGO_TARGET_DIR"
"$venv/bin/python" -m mypy.stubtest clasp._clasp
"$venv/bin/python" -m mypy --strict --cache-dir /dev/null -p clasp
exec "$venv/bin/python" -m pytest --quiet --rootdir "$root/crates/python" "$root/crates/python/tests"
