#!/usr/bin/env python3
"""Compares `clasp bench` with Python programs that do the same work, in turn on one machine.

    PYTHON runs/speed.py --peers PEERS --images JPEGS [--clasp target/release/clasp] [--rounds 3] [--record FILE] [--only NAME ...]
    PYTHON runs/speed.py --peers PEERS --device cuda [--batch 64]        # a build with that feature: Swin-B in bf16

PYTHON is a Python with torch, torchvision, timm, open_clip_torch and pycocotools, and onnx, onnxruntime and openvino for the rows of
embedding. PEERS is a folder with multicrop.py, clip_label.py, pretrain_step.py, embed.py, engines.py, reid_rank.py and coco_eval.py, each
of which prints one line of JSON with `images_per_s` or `s`; docs/speed.md says what each does.
Prints a table of medians. The ratio (above 1: clasp is faster) is that to the fastest peer of the same precision (labeling in bf16: a
peer in f32); the medians of the others follow below the table. MiB is peak memory.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile

from evidence import processor

ENGINES = lambda names: {label: ["engines.py", "--engine", engine, "--onnx", "{onnx}"] for label, engine in names.items()}
STEP = ["pretrain_step.py", "--batch", "4", "--iters", "3"]
WORK = {
    # name: (metrics, arguments of clasp bench, arguments of each peer); metrics that are no rates are seconds
    "JPEG to 2 + 8 views": (["images_per_s"], ["data", "{images}"], {"torchvision": ["multicrop.py", "{images}"]}),
    "labeling, ViT-B/16": (["images_per_s"], ["label"], {"open_clip": ["clip_label.py"]}),
    # The peer computes in f32.
    "labeling with --precision bf16": (["images_per_s"], ["label", "--precision", "bf16"], {"open_clip in f32": ["clip_label.py"]}),
    "pre-training step of DINO, Swin-T, K = 65536": (["images_per_s"], ["pretrain", "--batch", "4"], {"PyTorch": STEP}),
    "the same step in bf16": (
        ["images_per_s"],
        ["pretrain", "--batch", "4", "--set", "run.precision=bf16"],
        {"PyTorch, autocast": [*STEP, "--amp"]},
    ),
    "embedding, Swin-T 384x128": (
        ["images_per_s"],
        ["embed"],
        {"timm": ["embed.py"]} | ENGINES({"ONNX Runtime": "ort", "OpenVINO": "ov", "PyTorch compiled": "compile"}),
    ),
    "embedding with --precision bf16": (
        ["images_per_s"],
        ["embed", "--precision", "bf16"],
        ENGINES({"OpenVINO": "ovbf16", "PyTorch, autocast": "bf16", "PyTorch compiled, autocast": "compile-bf16"}),
    ),
    "Market-1501-sized ranking": (["rank_s"], ["rank"], {"NumPy": ["reid_rank.py"]}),
    "the same with re-ranking": (["rerank_s"], ["rank", "--rerank"], {"NumPy": ["reid_rank.py", "--rerank"]}),
    "COCO keypoint evaluation, 2000 images": (["eval_s"], ["coco"], {"pycocotools": ["coco_eval.py"]}),
}

# The same step on a GPU, beside PyTorch's eager and compiled one.
GPU_STEP = ["pretrain_step.py", "--model", "swin_base_patch4_window7_224", "--batch", "{batch}", "--device", "{device}", "--amp"]
ON_GPU = {
    "pre-training step, Swin-B, bf16": (
        ["images_per_s"],
        ["pretrain", "--model", "swin-base", "--batch", "{batch}"],
        {"PyTorch": GPU_STEP, "PyTorch compiled": [*GPU_STEP, "--compile"]},
    )
}


def last_json(command):
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return json.loads([line for line in out.splitlines() if line.startswith("{")][-1])


def measure(args, works, onnx):
    """Prints the table; returns the records and a line for each peer that was not the fastest."""
    print("| work | clasp | peer | ratio | MiB |\n|---|---|---|---|---|", flush=True)
    records, others = [], []
    for name, (figures, ours, peers) in works.items():
        fill = lambda words: [word.format(images=args.images, device=args.device, batch=args.batch, onnx=onnx) for word in words]
        runs = {label: [] for label in ("", *peers)}
        for _ in range(args.rounds):
            runs[""].append(last_json([args.clasp, "bench", *fill(ours), "--device", args.device, "--quiet"]))
            for label, words in peers.items():
                script, *more = fill(words)
                runs[label].append(last_json([sys.executable, f"{args.peers}/{script}", *more]))
        for figure in figures:
            is_rate = figure.endswith("_per_s")
            unit = "images/s" if is_rate else "s"
            median = {label: statistics.median(run[figure] for run in side) for label, side in runs.items()}
            mine = median.pop("")
            best, *rest = sorted(median, key=median.get, reverse=is_rate)
            ratio = lambda label: mine / median[label] if is_rate else median[label] / mine
            # Of the host: what a GPU holds is `device_mib`, beside the peer's `gpu_peak_mib`.
            peak = lambda run: run.get("peak_mib", run.get("host_peak_mib"))
            memory = [[peak(run) for run in runs[label]] for label in ("", best)]
            memory = ["not measured" if None in side else f"{statistics.median(side):.0f}" for side in memory]
            print(f"| {name} | {mine:.3g} {unit} | {best} {median[best]:.3g} {unit} | {ratio(best):.2f} | {' / '.join(memory)} |", flush=True)
            others += [f"{name}: {label} {median[label]:.3g} {unit}, ratio {ratio(label):.2f}" for label in rest]
            # A record holds for a run of the same settings alone.
            line = runs[""][0]
            record = {"work": line["work"], "settings": line["settings"], "figure": figure}
            records.append({**record, "peer": median[best], "ratio": round(ratio(best), 2), "processor": processor()})
    return records, others


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
    works = {name: work for name, work in (WORK if args.device == "cpu" else ON_GPU).items() if not args.only or any(word in name for word in args.only)}
    with tempfile.TemporaryDirectory() as folder:
        onnx = f"{folder}/swin_t.onnx"
        if any("{onnx}" in words for _, _, peers in works.values() for words in peers.values()):
            subprocess.run([sys.executable, f"{args.peers}/engines.py", "--engine", "export", "--onnx", onnx], check=True, capture_output=True)
        records, others = measure(args, works, onnx)
    print("\n" + "\n".join(others))
    if args.record:
        with open(args.record, "w") as file:
            file.write("[\n" + ",\n".join(" " + json.dumps(record) for record in records) + "\n]\n")


if __name__ == "__main__":
    main()
