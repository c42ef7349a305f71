#!/usr/bin/env bash
# Runs the commands that compute on a device, on the device and on the CPU, and compares: `bench compare`, `label`, `pretrain`,
# `embed`, `finetune` and `eval` of re-identification and of parsing, on synthetic people. Prints a table; exits with status 1 if
# a difference is above its limit (runs/device_test.py), and at the first command that fails.
#
#     runs/device-test.sh CLASP DEVICE [OUT]      # as in: runs/device-test.sh target/release/clasp cuda
#
# OUT is a folder for the results, which must not exist (default: a temporary one, removed at the end). All paths that CLASP
# gets are relative to it, so that CLASP may be a script that runs the program elsewhere. Needs Python 3.9 without packages.
# MODEL (default: swin-pico) and STEPS (default: 4) make it larger. The first run on a device compiles and tunes kernels, which
# takes minutes; later ones read them from the cache (docs/gpu.md).
set -euo pipefail
if [ $# -lt 2 ]; then
    sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" >&2
    exit 2
fi
runs=$(realpath "$(dirname "$0")")
clasp=$(realpath "$1")
device=$2
if [ $# -gt 2 ]; then
    mkdir "$3"
    cd "$3"
else
    out=$(mktemp -d)
    trap 'rm -rf "$out"' EXIT
    cd "$out"
fi
model=${MODEL:-swin-pico}
steps=${STEPS:-4}

run() { # SIDE NAME COMMAND…: its seconds go to times.txt, its messages to SIDE/NAME.txt
    local side=$1 name=$2 start=$SECONDS
    shift 2
    echo "$side: $name" >&2
    if ! "$@" >"$side/$name.json" 2>"$side/$name.txt"; then
        cat "$side/$name.json" "$side/$name.txt" >&2
        echo "$side: $name failed" >&2
        return 1
    fi
    echo "$side $name $((SECONDS - start))" >>times.txt
}

"$clasp" synth --out people --seed 7 --train-identities 12 --test-identities 6 --unlabeled 48 --scenes 1 --quiet >/dev/null
mkdir cpu device
# A difference is seen in the table of all; nothing else would be worth running after a command that does not end.
run device bench "$clasp" bench compare --device "$device" --set run.precision=f32 || [ -s device/bench.json ]

# f32 on both sides, all steps at the full rate, a batch of pre-training in two parts; small views, so that a CPU is fast.
small=(--set "run.log_every=1" --set "optimizer.warmup_epochs=0" --set "model.backbone=$model")
for side in cpu device; do
    on=(--device cpu)
    [ $side = device ] && on=(--device "$device")
    run $side label "$clasp" label people/unlabeled --out $side/labels "${on[@]}"
    run $side pretrain "$clasp" pretrain mini "${on[@]}" --out $side/pretrain --set data.images=people/unlabeled \
        --set data.labels=cpu/labels "${small[@]}" --set run.precision=f32 --set run.replicas=1 --set run.batch=8 --set run.accumulate=2 \
        --set "run.steps=$steps" --set "views.global_size=[64, 32]" --set "views.local_size=[32, 16]"
    # What follows starts from the CPU's weights on both sides, so that each command is compared alone.
    run $side embed "$clasp" embed people/unlabeled "${on[@]}" --model cpu/pretrain --out $side/features.npy
    for task in reid parsing; do
        run $side "finetune $task" "$clasp" finetune $task $task-mini "${on[@]}" --data people --init cpu/pretrain \
            --out $side/$task "${small[@]}" --set "model.size=[64, 32]" --set run.batch=16 --set "run.epochs=1"
        run $side "eval $task" "$clasp" eval $task "${on[@]}" --data people --model cpu/$task --json
    done
done
run cpu "label compare" "$clasp" label compare cpu/labels device/labels --json
python3 "$runs/device_test.py" .
