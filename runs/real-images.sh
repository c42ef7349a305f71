#!/usr/bin/env bash
# The comparison of docs/results.md on real images: initialisation, DINO, SOLIDER and CLASP with
# the same images, network and number of steps, each evaluated frozen on four tasks.
#   runs/real-images.sh DATA OUT [STEPS] [SEED]
# DATA holds persons/*.tar, pku_reid/, ccp/ and lspe/.
set -euo pipefail
data=$1 out=$2 steps=${3:-600} seed=${4:-0}
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
  for task in reid:pku_reid attributes:ccp parsing:ccp pose:lspe; do
    file="$out/$name-${task%%:*}.json"
    [ -s "$file" ] || "$clasp" eval "${task%%:*}" --frozen --data "$data/${task##*:}" --model "$out/$name" \
      --mix all --json > "$file.tmp" && [ -s "$file" ] || mv "$file.tmp" "$file"
  done
done
