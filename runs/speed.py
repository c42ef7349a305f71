#!/usr/bin/env python3
"""Compares `clasp bench` with PyTorch scripts that do the same work, in turn on one machine.

    PYTHON runs/speed.py --peers PEERS --images JPEGS [--clasp target/release/clasp] [--rounds 3] [--record FILE] [--only NAME ...]
    PYTHON runs/speed.py --peers PEERS --device cuda [--batch 64]        # a build with that feature: Swin-B in bf16

PYTHON is a Python with torch, torchvision, timm, open_clip_torch and pycocotools. PEERS is a folder with multicrop.py, clip_label.py,
pretrain_step.py, embed.py, reid_rank.py and coco_eval.py, each of which prints one line of JSON with `images_per_s` or `s`; docs/speed.md says what each does.
Prints a table of medians with the ratio (above 1: clasp is faster), and the peak memory of both.
"""

import argparse
import json
import statistics
import subprocess
import sys

WORK = {
    # name: (metrics, arguments of clasp bench, arguments of the peer); metrics that are no rates are seconds
    "JPEG to 2 + 8 views": (["images_per_s"], ["data", "{images}"], ["multicrop.py", "{images}"]),
    "labeling, ViT-B/16": (["images_per_s"], ["label"], ["clip_label.py"]),
    "labeling with --precision bf16": (["images_per_s"], ["label", "--precision", "bf16"], ["clip_label.py"]),
    "pre-training step, Swin-T, K = 65536": (
        ["images_per_s"],
        ["pretrain", "--batch", "4"],
        ["pretrain_step.py", "--batch", "4", "--iters", "3"],
    ),
    "embedding, Swin-T 384x128": (["images_per_s"], ["embed"], ["embed.py"]),
    "embedding with --precision bf16": (["images_per_s"], ["embed", "--precision", "bf16"], ["embed.py"]),
    "Market-1501-sized ranking": (["rank_s"], ["rank"], ["reid_rank.py"]),
    "the same with re-ranking": (["rerank_s"], ["rank", "--rerank"], ["reid_rank.py", "--rerank"]),
    "COCO keypoint evaluation, 2000 images": (["eval_s"], ["coco"], ["coco_eval.py"]),
}

# The same step on a GPU, beside PyTorch's eager and compiled one.
ON_GPU = {
    f"pre-training step, Swin-B, bf16, {how}": (
        ["images_per_s"],
        ["pretrain", "--model", "swin-base", "--batch", "{batch}"],
        ["pretrain_step.py", "--model", "swin_base_patch4_window7_224", "--batch", "{batch}", "--device", "{device}", "--amp", *more],
    )
    for how, more in (("eager", []), ("compiled", ["--compile"]))
}


def last_json(command):
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return json.loads([line for line in out.splitlines() if line.startswith("{")][-1])


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--peers", required=True)
    p.add_argument("--images", help="JPEG files for the row of views")
    p.add_argument("--clasp", default="target/release/clasp")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--record", help="write the ratios to this file, for `clasp bench ... --check FILE`")
    p.add_argument("--only", nargs="*", help="words of the rows to measure")
    p.add_argument("--device", default="cpu", help="where clasp computes; another than cpu gets rows of its own")
    p.add_argument("--batch", type=int, default=64, help="images of a step on another device")
    args = p.parse_args()
    if args.device == "cpu" and not args.images:
        p.error("--images is missing")
    print("| work | clasp | PyTorch | ratio | MiB |\n|---|---|---|---|---|", flush=True)
    records = []
    for name, (figures, ours, theirs) in (WORK if args.device == "cpu" else ON_GPU).items():
        if args.only and not any(word in name for word in args.only):
            continue
        fill = lambda words: [word.format(images=args.images, device=args.device, batch=args.batch) for word in words]
        runs = ([], [])
        for _ in range(args.rounds):
            runs[0].append(last_json([args.clasp, "bench", *fill(ours), "--device", args.device, "--quiet"]))
            peer = fill(theirs)
            runs[1].append(last_json([sys.executable, f"{args.peers}/{peer[0]}", *peer[1:]]))
        for figure in figures:
            mine, other = (statistics.median(run[figure] for run in side) for side in runs)
            # Of the host: what a GPU holds is `device_mib`, beside the peer's `gpu_peak_mib`.
            peak = lambda run: run.get("peak_mib", run.get("host_peak_mib", 0))
            memory = [statistics.median(peak(run) for run in side) for side in runs]
            is_rate = figure.endswith("_per_s")
            ratio = mine / other if is_rate else other / mine
            unit = "images/s" if is_rate else "s"
            print(
                f"| {name} | {mine:.3g} {unit} | {other:.3g} {unit} | {ratio:.2f} | {memory[0]:.0f} / {memory[1]:.0f} |",
                flush=True,
            )
            # A record holds for a run of the same settings alone.
            line = runs[0][0]
            record = {"work": line["work"], "settings": line["settings"], "figure": figure}
            records.append({**record, "peer": other, "ratio": round(ratio, 2)})
    if args.record:
        with open(args.record, "w") as file:
            file.write("[\n" + ",\n".join(" " + json.dumps(record) for record in records) + "\n]\n")


if __name__ == "__main__":
    main()
