"""Loads folders of `clasp export hub` in timm and transformers; run by runs/hub.sh.

Each family's checkpoint is random (crates/weights/tests/golden/*.json or timm's models have names and shapes), `clasp export hub` makes
a folder of it for one size, and `clasp embed` the features of images that have that size, so that nothing is
resized. timm and transformers load the folder and compute the same from the same pixels.
"""

import argparse
import json
import logging
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import timm
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file

from golden_noise import noise_array
from golden_weights import parameter

GOLDEN = Path(__file__).parent.parent / "crates/weights/tests/golden"
TOLERANCE = 1e-5

SQUARE, PEOPLE, TALL, ODD = (224, 224), (256, 128), (384, 128), (236, 108)
TIMM, TRANSFORMERS = "timm", "transformers"
# family in its file of names, library, sizes
FAMILIES = [
    ("families", "swin timm", TIMM, [SQUARE, PEOPLE, TALL, ODD]),
    ("families", "swin timm people", TIMM, [PEOPLE, TALL]),
    ("families", "swin transformers", TIMM, [SQUARE]),
    ("families", "swin transformers", TRANSFORMERS, [SQUARE, PEOPLE, TALL, ODD]),
    ("families", "vit fc_norm", TIMM, [SQUARE, PEOPLE, TALL, (241, 109)]),
    ("families", "deit3", TIMM, [SQUARE, PEOPLE]),
    ("families", "deit distilled", TIMM, [SQUARE, PEOPLE]),
    ("families", "dinov2 transformers", TIMM, [(224, 224), (252, 126)]),
    ("families", "dinov2 registers transformers", TIMM, [(224, 224), (252, 126)]),
    ("import", "timm-vit", TIMM, [SQUARE, PEOPLE, TALL, (241, 109)]),
    ("import", "dinov2 registers", TIMM, [(224, 224), (256, 128)]),
    ("import", "mae", TIMM, [PEOPLE]),
    ("import", "microsoft-swin", TIMM, [SQUARE, PEOPLE, ODD]),
    # Windows of 4 divide every map of these images; elsewhere only transformers has them.
    ("import", "openmmlab-swin", TIMM, [(256, 128)]),
    ("import", "openmmlab-swin", TRANSFORMERS, [PEOPLE, ODD]),
    ("families", "dinov3 timm gated", TIMM, [SQUARE, PEOPLE, (241, 109)]),
    ("families", "dinov3 transformers gated", TRANSFORMERS, [SQUARE, PEOPLE, (241, 109)]),
    ("families", "dinov3 transformers key bias", TRANSFORMERS, [PEOPLE]),
    # DINOv3 in its published sizes.
    ("timm", "vit_small_patch16_dinov3", TIMM, [SQUARE, PEOPLE, TALL, (241, 109)]),
    ("timm", "vit_small_patch16_dinov3_qkvb", TRANSFORMERS, [SQUARE, PEOPLE, TALL]),
    ("timm", "vit_small_plus_patch16_dinov3_qkvb", TIMM, [SQUARE, PEOPLE, TALL, (241, 109)]),
    ("timm", "vit_small_plus_patch16_dinov3_qkvb", TRANSFORMERS, [SQUARE, PEOPLE, TALL]),
    ("timm", "vit_base_patch16_dinov3_qkvb", TIMM, [PEOPLE, (241, 109)]),
    ("timm", "vit_large_patch16_dinov3", TIMM, [PEOPLE]),
]


# Set by `main`: the program, and the word that families must have.
CLASP, WORD = "clasp", ""


def run(*arguments):
    done = subprocess.run([CLASP, *map(str, arguments)], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"clasp {' '.join(map(str, arguments))}\n{done.stderr}")
    return done.stdout


def pixels(images, config):
    """As `clasp embed` has them, of images of the right size."""
    mean, std = (torch.tensor(config[key]).view(3, 1, 1) for key in ("mean", "std"))
    stack = torch.from_numpy(np.stack([np.asarray(Image.open(path)) for path in images]))
    return (stack.permute(0, 3, 1, 2).float() / 255 - mean) / std


def compare(name, found, expected):
    difference = float((found - expected).abs().max() / expected.abs().max())
    print(f"{name:<64} {difference:.1e}")
    return difference <= TOLERANCE


def shapes_of(source, family):
    """Names and shapes of a checkpoint: of a file of names, or of timm's model of that name."""
    if source != "timm":
        return json.loads((GOLDEN / f"{source}.json").read_text())[family]
    with torch.device("meta"):
        model = timm.create_model(family, num_classes=0)
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def check(at, source, family, library, size):
    height, width = size
    text = f"{height}x{width}"
    shapes = shapes_of(source, family)
    checkpoint, folder, people = (at / name for name in ("checkpoint.safetensors", "folder", "people"))
    save_file({name: parameter(name, tuple(shape)).contiguous() for name, shape in shapes.items()}, checkpoint)
    people.mkdir()
    images = []
    for index in range(2):
        values = noise_array(f"{text} {index}", (height, width, 3)) * 127.5 + 127.5
        images.append(people / f"{index}.png")
        Image.fromarray(values.astype(np.uint8)).save(images[-1])
    run("export", "hub", checkpoint, "-o", folder, "--size", text, "--library", library)
    run("embed", people, "--model", checkpoint, "--size", text, "--out", at / "features.npy")
    run("embed", people, "--model", folder, "--out", at / "again.npy")
    expected = torch.from_numpy(np.load(at / "features.npy"))
    again = torch.from_numpy(np.load(at / "again.npy"))
    whole = compare(f"{family} {text}: the folder in clasp", again, expected)
    call = {}
    if library == TIMM:
        config = json.loads((folder / "config.json").read_text())["pretrained_cfg"]
        model = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0).eval()
        with torch.no_grad():
            whole &= compare(f"{family} {text}: timm", model(pixels(images, config)), expected)
        transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
        prepared = torch.stack([transform(Image.open(path).convert("RGB")) for path in images])
        whole &= compare(f"{family} {text}: timm's own preprocessing", prepared, pixels(images, config))
    else:
        config = json.loads((folder / "preprocessor_config.json").read_text())
        config = {"mean": config["image_mean"], "std": config["image_std"]}
        if "always_partition=True" in (folder / "README.md").read_text().split("```")[1]:
            call = {"always_partition": True}
    model = transformers.AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        found = model(pixels(images, config), **call).pooler_output
    whole &= compare(f"{family} {text}: transformers {call or ''}", found, expected)
    return whole


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clasp", help="the program")
    parser.add_argument("word", nargs="*", help="only families with these words in their names")
    global CLASP, WORD
    arguments = parser.parse_args()
    CLASP, WORD = arguments.clasp, " ".join(arguments.word)
    for name in ("timm", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    print(f"timm {timm.__version__}, transformers {transformers.__version__}, torch {torch.__version__}")
    wrong = []
    for source, family, library, sizes in FAMILIES:
        if WORD not in family:
            continue
        for size in sizes:
            with tempfile.TemporaryDirectory() as at:
                if not check(Path(at), source, family, library, size):
                    wrong.append(f"{family} {size} ({library})")
    if wrong:
        raise SystemExit(f"differ by more than {TOLERANCE}: {', '.join(wrong)}")


main()
