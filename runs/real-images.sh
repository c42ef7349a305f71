#!/usr/bin/env bash
# The comparison of docs/results.md on real images: initialisation, DINO, SOLIDER and CLASP with
# the same images, network and number of steps, each evaluated frozen on four tasks.
#   runs/real-images.sh DATA OUT [STEPS] [SEED]
# DATA holds persons/*.tar, pku_reid/, ccp/ and lspe/.
set -euo pipefail
data=$1 out=$2 steps=${3:-400} seed=${4:-0}
clasp=${CLASP:-target/release/clasp}
people="$data/persons"
mkdir -p "$out"

"$clasp" label "$people" --out "$out/labels-clip"
"$clasp" label show "$out/labels-clip" "$people" --out "$out/labels-clip.png" --count 24
"$clasp" label stats "$out/labels-clip" | tee "$out/labels-clip.txt" || true

run() { # NAME METHOD LABELS STEPS [more]
  local name=$1 method=$2 labels=$3 count=$4
  shift 4
  [ -e "$out/$name/backbone.safetensors" ] && return
  "$clasp" pretrain mini --out "$out/$name" --set method="$method" --set data.images="\"$people\"" \
    --set data.labels="\"$labels\"" --set seed="$seed" --set run.steps="$count" "$@"
}
run init clasp "$out/labels-clip" 0
run dino dino "" "$steps"
"$clasp" label "$people" --out "$out/labels-kmeans" --kmeans "$out/dino"
run solider solider "$out/labels-kmeans" "$steps"
run clasp clasp "$out/labels-clip" "$steps"

for name in init dino solider clasp; do
  # The matrix of prompts is clasp's; the others have none, or λ, and get the default.
  mix=(); [ "$name" = clasp ] && mix=(--mix all)
  for task in reid:pku_reid attributes:ccp parsing:ccp pose:lspe; do
    file="$out/$name-${task%%:*}.json"
    [ -s "$file" ] || "$clasp" eval "${task%%:*}" --frozen --data "$data/${task##*:}" --model "$out/$name" \
      "${mix[@]}" --json > "$file.tmp" && [ -s "$file" ] || mv "$file.tmp" "$file"
  done
done

python3 - "$out" <<'TABLE'
import json, pathlib, sys
out = pathlib.Path(sys.argv[1])
first = {"reid": "mAP", "attributes": "mA", "parsing": "mIoU", "pose": "PCK@0.2"}
print("| | " + " | ".join(f"{t} {n}" for t, n in first.items()) + " |\n|---|---|---|---|---|")
for name in ["init", "dino", "solider", "clasp"]:
    results = {t: json.loads((out / f"{name}-{t}.json").read_text()) for t in first}
    for i in range(len(results["reid"])):
        cells = [100 * dict(map(tuple, results[t][i]["figures"]))[n] for t, n in first.items()]
        mix = results["reid"][i]["mix"].split(" ")[0]
        label = name if i == 0 else f"{name}, {mix} prompt"
        print(f"| {label} | " + " | ".join(f"{v:.2f}" for v in cells) + " |")
chance = [100 * results[t][0]["chance"] for t in first]
print("| chance | " + " | ".join(f"{v:.2f}" for v in chance) + " |")
TABLE
