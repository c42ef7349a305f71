#!/usr/bin/env bash
# Makes a small demo folder and uses the pages of `clasp serve` on it in Chromium, by runs/browser.py.
#
#   runs/browser.sh CLASP [PICTURES]
#
# Skipped where there is no Chromium (Debian: apt-get install chromium) or no playwright for Python.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
clasp=$(realpath "$1")
pictures=$(realpath -m "${2:-$root/target/browser/pictures}")
work="$root/target/browser"
venv="$work/venv"

chromium=$(command -v chromium || command -v chromium-browser || command -v google-chrome || true)
if [ -z "$chromium" ]; then
    echo "skipped: the test of the web pages needs Chromium (Debian: apt-get install chromium)"
    exit 0
fi
mkdir -p "$work"
if ! { [ -x "$venv/bin/pip" ] || python3 -m venv "$venv"; } || ! "$venv/bin/pip" install --quiet --disable-pip-version-check playwright; then
    echo "skipped: the test of the web pages needs Python with venv, and playwright, which pip cannot install"
    exit 0
fi

demo="$work/demo"
rm -rf "$demo"
mkdir -p "$demo"
cd "$demo"
"$clasp" --quiet synth --out people --size 128x64 --unlabeled 120 --train-identities 8 --test-identities 4 --cameras 2 --shots 1 --scenes 4
"$clasp" --quiet label people/unlabeled --out labels
"$clasp" --quiet pretrain demo --out run --set 'data.images="people/unlabeled"' --set 'data.labels="labels"' --set run.batch=16 \
    --set run.steps=20 --set run.log_every=5 --set projection_head.prototypes=32 --set model.adapter=merged
# Pictures of predictions in the folder of a run are shown with it.
"$clasp" --quiet finetune parsing parsing-mini --data people --init run --out parsing --set run.epochs=1 --set run.batch=8
"$clasp" --quiet predict parsing people/market/query --model parsing --out parsing/predictions.jsonl --draw parsing/pictures
exec "$venv/bin/python" "$root/runs/browser.py" "$clasp" --demo "$demo" --model parsing --chromium "$chromium" --out "$pictures"
