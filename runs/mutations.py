#!/usr/bin/env python3
"""Changes valid files at random and checks that the program reads them or refuses them in words.

python runs/mutations.py target/release/clasp [--files 14550] [--seed 0] [--only tar,mat] [--keep DIR]

The valid files are small: the program makes them (synthetic people, labels, packed shards, a tiny
run), or they are those of its tests. Each mutation flips bits, cuts, removes, repeats or mixes pieces,
puts extreme numbers where numbers are, or nests text deeply. The command that reads the kind of file
then has to end with status 0, 1 or 2, the last with a line `error: `, within a minute; a panic, a
signal and an allocation beyond the limit of the address space are faults. Images are read a hundred at
a time, a batch with a fault one by one. The same seed gives the same files. Exits with 1 if there is a
fault; the files with faults are kept. Needs Python 3.9 on Linux or macOS only; takes minutes.
"""

import argparse
import base64
import json
import random
import re
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

from kills import sets

GOLDEN = Path(__file__).resolve().parent.parent / "crates"
# Address space of a process in bytes: what small files need is far below it.
ADDRESS_SPACE = 2 << 30
SECONDS = 60
BATCH = 100
# Images of one pixel; the program writes no WebP.
WEBP = (
    "UklGRiIAAABXRUJQVlA4IBYAAAAwAQCdASoBAAEADsD+JaQAA3AAAAAA",
    "UklGRhoAAABXRUJQVlA4TA0AAAAvAAAAEAcQERGIiP4HAA==",
)
TINY = {
    "model.backbone": '"swin-pico"',
    "views.global_size": "[64,32]",
    "views.local_size": "[32,32]",
    "views.local": "1",
    "projection_head.prototypes": "8",
    "projection_head.hidden_dim": "16",
    "projection_head.bottleneck_dim": "8",
    "run.batch": "2",
    "run.steps": "1",
}
EXTREMES = (0, 1, 2, 127, 128, 255, 256, 32767, 65535, 65536, 2**24, 2**31 - 1, 2**31, 2**32 - 1,
            2**40, 2**53, 2**63 - 1, 2**63, 2**64 - 1)
WORDS = ("null", "true", "-1", "0", "1e999", "-1e-999", "NaN", "Infinity", "99999999999999999999",
         "4294967296", '""', '"x"', "[]", "{}", "1.5", "\\u0000", "\N{PILE OF POO}", "../..", "/")


def mutate(data, others, draw):
    """`data` with one to four changes; `others` are valid files of the same kind."""
    data = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        change = draw.choice(TEXT if is_text(data) else BINARY)
        data = bytearray(change(data, others, draw))
    return bytes(data)


def is_text(data):
    sample = bytes(data[:512])
    return bool(sample) and all(byte >= 32 or byte in b"\n\r\t" for byte in sample)


def span(data, draw, longest=64):
    start = draw.randrange(len(data) + 1)
    return start, min(len(data), start + draw.randint(1, longest))


def flip(data, _, draw):
    for _ in range(draw.randint(1, 8)):
        if data:
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return data


def noise(data, _, draw):
    start, end = span(data, draw)
    data[start:end] = draw.randbytes(end - start)
    return data


def cut(data, _, draw):
    return data[: draw.randrange(len(data) + 1)]


def remove(data, _, draw):
    start, end = span(data, draw, max(1, len(data) // 4))
    return data[:start] + data[end:]


def repeat(data, _, draw):
    start, end = span(data, draw, max(1, len(data) // 4))
    return data[:end] + data[start:end] * draw.choice((1, 2, 9)) + data[end:]


def mix(data, others, draw):
    other = draw.choice(others)
    start, end = span(other, draw, max(1, len(other) // 2))
    at = draw.randrange(len(data) + 1)
    return data[:at] + other[start:end] + data[at + draw.choice((0, end - start)):]


def extreme(data, _, draw):
    size, order = draw.choice((1, 2, 4, 8)), draw.choice(("little", "big"))
    # The beginning holds sizes more often than the rest.
    near = draw.choice((64, 512, len(data)))
    start = draw.randrange(max(1, min(near, len(data)) - size + 1))
    data[start:start + size] = (draw.choice(EXTREMES) % 2 ** (8 * size)).to_bytes(size, order)
    return data


def number(data, _, draw):
    """An extreme number, or a word, in place of a number."""
    places = list(re.finditer(rb"-?\d+(\.\d+)?", data))
    if not places:
        return flip(data, _, draw)
    place = draw.choice(places)
    new = str(draw.choice(EXTREMES)) if draw.random() < 0.5 else draw.choice(WORDS)
    return data[: place.start()] + new.encode() + data[place.end():]


def word(data, _, draw):
    """A word in place of a quoted text or a cell."""
    places = list(re.finditer(rb'"[^"\n]*"|[^,\s\[\]{}:=]+', data))
    if not places:
        return noise(data, _, draw)
    place = draw.choice(places)
    return data[: place.start()] + draw.choice(WORDS).encode() + data[place.end():]


def lines(data, _, draw):
    """A line that is missing, doubled, or in another place."""
    parts = bytes(data).split(b"\n")
    at, to = draw.randrange(len(parts)), draw.randrange(len(parts))
    kind = draw.randrange(3)
    if kind == 0:
        del parts[at]
    else:
        parts.insert(to, parts[at] if kind == 1 else parts.pop(at))
    return bytearray(b"\n".join(parts))


def nest(data, _, draw):
    at, depth = draw.randrange(len(data) + 1), draw.choice((10, 1000, 100_000))
    return data[:at] + draw.choice((b"[", b"{", b'{"a":', b"(", b"a.", b'"')) * depth + data[at:]


def encode(data, _, draw):
    text = bytes(data).decode("utf-8", "replace")
    return bytearray(text.encode(draw.choice(("utf-16", "utf-16-be", "utf-8-sig", "latin-1")), "replace"))


BINARY = (flip, flip, noise, cut, remove, repeat, mix, extreme, extreme, extreme)
TEXT = (number, number, word, word, lines, nest, encode, flip, noise, cut, remove, repeat, mix)


class Reader:
    """A command and the valid files that it reads, each in a folder of its own.

    `many` says that the command reads any number of files of the folder, `refused` that it reads the
    valid files to the end and then has no use for them.
    """

    def __init__(self, name, share, command, files, many=False, refused=False):
        self.name, self.share, self.command = name, share, command
        self.many, self.refused = many, refused
        # (folder that the command runs in, path of the file in it, valid content)
        self.files = [(folder, path, (folder / path).read_bytes()) for folder, path in files]

    def mutation(self, seed, index):
        draw = random.Random(f"{seed} {self.name} {index}")
        folder, path, data = draw.choice(self.files)
        others = [content for _, _, content in self.files]
        return folder, path, data, mutate(data, others, draw)


class Campaign:
    def __init__(self, clasp, seed, keep):
        self.clasp, self.seed, self.keep = clasp, seed, keep
        self.faults = 0

    def run(self, arguments, folder, limited=True):
        def limit():
            resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

        return subprocess.run(
            [self.clasp, "--quiet", "--threads", "1", *arguments], cwd=folder, stdin=subprocess.DEVNULL,
            capture_output=True, timeout=SECONDS, preexec_fn=limit if limited else None,
        )

    def made(self, arguments, folder):
        folder.mkdir(parents=True, exist_ok=True)
        result = self.run(arguments, folder, limited=False)
        if result.returncode != 0:
            sys.exit(f"{' '.join(arguments)}: {result.stderr.decode()}")

    def judge(self, arguments, folder):
        """The exit status and what is wrong with it, if anything is."""
        try:
            result = self.run(arguments, folder)
        except subprocess.TimeoutExpired:
            return None, f"more than {SECONDS} s"
        finally:
            for out in folder.glob("out*"):
                shutil.rmtree(out) if out.is_dir() else out.unlink()
        status, text = result.returncode, result.stderr.decode("utf-8", "replace")
        last = text.strip().splitlines()[-1:] or [""]
        if "panicked at" in text:
            at = text.index("panicked at")
            return status, text[at:at + 300]
        if status not in (0, 1, 2):
            return status, f"status {status}: {last[0]}"
        if status == 2 and "error: " not in text:
            return status, f"no error text: {last[0]}"
        return status, None

    def fault(self, reader, index, data, path, what):
        self.faults += 1
        kept = self.keep / f"{reader.name}-{index}-{Path(path).name}"
        self.keep.mkdir(parents=True, exist_ok=True)
        kept.write_bytes(data)
        print(f"fault: {reader.name} {index}: {what}\n  kept as {kept}", flush=True)

    def read(self, reader, count, first=0):
        counts = {}

        def count_one(status):
            counts[status] = counts.get(status, 0) + 1

        def alone(index):
            folder, path, valid, data = reader.mutation(self.seed, index)
            place = folder / path
            place.write_bytes(data)
            status, what = self.judge(reader.command, folder)
            place.unlink() if reader.many else place.write_bytes(valid)
            if what:
                self.fault(reader, index, data, path, what)
            return status

        if not reader.many:
            # Where a valid file is refused, mutations of it would test nothing.
            for folder, path, _ in reader.files:
                result = self.run(reader.command, folder)
                if result.returncode not in (0, 1) and not reader.refused:
                    sys.exit(f"{reader.name}: {path} is valid, but: {result.stderr.decode()}")
                self.judge(reader.command, folder)
            for index in range(first, first + count):
                count_one(alone(index))
        for start in range(first, first + count, BATCH) if reader.many else ():
            batch = range(start, min(start + BATCH, first + count))
            folder = reader.files[0][0]
            for _, path, _ in reader.files:
                (folder / path).unlink(missing_ok=True)
            for index in batch:
                _, path, _, data = reader.mutation(self.seed, index)
                (folder / f"{index:05}-{path}").write_bytes(data)
            _, what = self.judge(reader.command, folder)
            for place in list(folder.iterdir()):
                place.unlink()
            before = self.faults
            for index in batch:
                count_one(alone(index) if what else "in batches")
            if what and self.faults == before:
                self.faults += 1
                print(f"fault: {reader.name} {batch}, together only: {what}", flush=True)
        shown = ", ".join(f"{value} with {key}" for key, value in sorted(counts.items(), key=str))
        print(f"{reader.name}: {count} files ({shown})", flush=True)


def copies(root, name, sources):
    """Each of `sources`, (file, name of the copy), alone in a folder of its own below `root`."""
    files = []
    for number, (source, to) in enumerate(sources):
        folder = root / f"{name}-{number}"
        (folder / to).parent.mkdir(parents=True)
        shutil.copy(source, folder / to)
        files.append((folder, to))
    return files


def trees(root, name, sources):
    """Files, (folder, path), each in a copy of the whole folder."""
    files = []
    for number, (source, path) in enumerate(sources):
        shutil.copytree(source, root / f"{name}-{number}")
        files.append((root / f"{name}-{number}", path))
    return files


def together(root, name, sources):
    """All files in one folder, for commands that read many."""
    folder = root / name
    folder.mkdir()
    for number, source in enumerate(sources):
        to = f"{number}{source.suffix}"
        shutil.copy(source, folder / to)
    return [(folder, path.name) for path in sorted(folder.iterdir())]


def bitmap(path):
    rows = bytes(range(4 * 3)) * 8
    head = struct.pack("<IiiHHIIiiII", 40, 4, 8, 1, 24, 0, len(rows), 2835, 2835, 0, 0)
    path.write_bytes(b"BM" + struct.pack("<IHHI", 54 + len(rows), 0, 0, 54) + head + rows)


def make_readers(campaign, root):
    """The valid files, and the commands that read them."""
    people = root / "people"
    campaign.made(["synth", "--out", "people", "--size", "64x32", "--train-identities", "4",
                   "--test-identities", "4", "--cameras", "2", "--shots", "1", "--unlabeled", "12",
                   "--scenes", "2"], root)
    images = f"{people}/unlabeled"
    campaign.made(["label", images, "--out", "labels"], root)
    campaign.made(["data", "pack", images, "--out", "packed", "--per-shard", "6"], root)
    tiny = sets({**TINY, "method": "dino", "data.images": f'"{images}"'})
    campaign.made(["pretrain", "mini", "--out", "run", *tiny], root)
    campaign.made(["finetune", "attributes", "attributes-mini", "--data", str(people), "--out", "model",
                   *sets({"model.backbone": '"swin-pico"', "model.size": "[64,32]", "run.batch": "4",
                          "run.steps": "1"})], root)
    campaign.made(["export", "onnx", "model", "--out", "model.onnx"], root)
    campaign.made(["eval", "attributes", "--data", str(people), "--model", "model",
                   "--predictions", "attributes.out"], root)
    photos = sorted((people / "market/query").glob("*.jpg")) + sorted(Path(images).rglob("*.jpg"))[:4]
    masks = sorted((people / "masks").glob("*.png"))[:4]
    made = root / "made"
    made.mkdir()
    bitmap(made / "a.bmp")
    for number, text in enumerate(WEBP):
        (made / f"{number}.webp").write_bytes(base64.b64decode(text))
    (root / "vocabulary.toml").write_text((GOLDEN / "data/src/vocabulary.toml").read_text())
    recipe = root / "recipe.toml"
    made_recipe = campaign.run(["recipes", "mini"], root, limited=False)
    recipe.write_bytes(made_recipe.stdout)
    listing = root / "list.txt"
    listing.write_text("".join(f"{photo}\n" for photo in photos))
    rankings = root / "rankings.jsonl"
    gallery = [path.name for path in sorted((people / "market/bounding_box_test").glob("*.jpg"))]
    rankings.write_text("".join(
        json.dumps({"query": path.name, "gallery": gallery}) + "\n"
        for path in sorted((people / "market/query").glob("*.jpg"))))
    poses = root / "poses.json"
    pose = {"image_id": 1, "category_id": 1, "keypoints": [1.5, 2.5, 0.9] * 17, "score": 0.8}
    poses.write_text(json.dumps([pose, {**pose, "image_id": 2}]))

    weights, data = GOLDEN / "weights/tests/golden", GOLDEN / "data/tests/golden"
    stats, check = ["data", "stats", ".", "--keep-going", "--json"], ["data", "check", "."]
    keypoints = ["person_keypoints_train.json", "person_keypoints_val.json"]
    mats = ["pa100k/annotation.mat", "peta/PETA.mat", "rap2/RAP_annotation/RAP_annotation.mat",
            "prw/frame_test.mat", "prw/annotations/c1s1_000001.jpg.mat", "cuhk_sysu/annotation/Images.mat",
            "cuhk_sysu/annotation/pool.mat", "cuhk_sysu/annotation/test/train_test/Train.mat",
            "cuhk_sysu/annotation/test/train_test/TestG50.mat",
            "ccp/label_list.mat", "ccp/annotations/pixel-level/0001.mat"]
    mats = [(data / "mat" / path.split("/")[0], path.split("/", 1)[1]) for path in mats]
    pickles = [(data / "pickles/pa100k", "dataset_all.pkl"), (data / "pickles/peta", "dataset_all.pkl"),
               (data / "pickles/rap2", "dataset_zs_run0.pkl")]
    pickles += [(data / f"pickles/values{number}.pkl", "dataset_all.pkl") for number in (2, 3, 4, 5)]
    ccp = root / "ccp"
    shutil.copytree(data / "mat/ccp", ccp)
    (ccp / "photos").mkdir()
    shutil.copy(photos[0], ccp / "photos/0001.jpg")
    mats = [(ccp if folder.name == "ccp" else folder, path) for folder, path in mats]
    whole = [one for one in pickles if one[0].is_dir()]
    parts = [one for one in pickles if one[0].is_file()]
    labels = [(root, path.relative_to(root).as_posix()) for path in sorted((root / "labels").iterdir())
              if path.is_file() and not path.name.startswith(".")]
    tables = [path for _, path in labels if path.endswith(".parquet")]
    sidecars = [path for _, path in labels if path.endswith(".json")]
    store = root / "store"
    shutil.copytree(root / "labels", store / "labels")
    run = root / "runs"
    shutil.copytree(root / "run", run / "run")
    last = sorted((run / "run/checkpoints").glob("*.safetensors"))[-1].relative_to(run).as_posix()
    clip = GOLDEN.parent / "assets/clasp-mini"
    packed = sorted((root / "packed").glob("*.tar"))
    import_ = ["import", "file", "--out", "out.safetensors"]
    own = [(root / "run/backbone.safetensors", "file"), (root / "model/model.safetensors", "file")]
    others = [(weights / "export/swin.safetensors", "file"), (weights / "solider_full.pth", "file")]
    torch = [(path, "file") for path in sorted((weights / "torch").glob("*.pth"))]
    small = ["--set", f'data.images="{images}"', "--set", "run.steps=0", *sets(
        {key: TINY[key] for key in ("model.backbone", "views.global_size", "views.local_size", "run.batch")}),
        "--set", "method=dino", "--out", "out"]
    return [
        Reader("jpeg", 2400, stats, together(root, "jpeg", photos), many=True),
        Reader("png", 1800, stats, together(root, "png", masks), many=True),
        Reader("webp", 600, stats, together(root, "webp", sorted(made.glob("*.webp"))), many=True),
        Reader("bmp", 400, stats, together(root, "bmp", [made / "a.bmp"]), many=True),
        Reader("tar", 900, ["data", "stats", "a.tar", "--keep-going"],
               copies(root, "tar", [(path, "a.tar") for path in packed])),
        Reader("list", 300, ["data", "stats", "list.txt", "--keep-going"],
               copies(root, "list", [(listing, "list.txt")])),
        Reader("label table", 800, ["label", "stats", "labels"],
               trees(root, "table", [(store, path) for path in tables])),
        Reader("label sidecar", 300, ["label", "stats", "labels"],
               trees(root, "sidecar", [(store, path) for path in sidecars])),
        Reader("vocabulary", 150, ["label", f"{images}", "--vocabulary", "v.toml", "--out", "out"],
               copies(root, "vocabulary", [(root / "vocabulary.toml", "v.toml")])),
        Reader("own weights", 400, import_, copies(root, "own", own)),
        Reader("other weights", 600, import_, copies(root, "others", others)),
        Reader("PyTorch file", 600, import_, copies(root, "torch", torch), refused=True),
        Reader("fine-tuned model", 300, ["inspect", "file"], copies(root, "tuned", own[1:])),
        Reader("checkpoint", 150, ["pretrain", "--resume", "run", "--set", "run.steps=1"],
               trees(root, "checkpoint", [(run, last)])),
        Reader("run", 200, ["runs", "."],
               trees(root, "listed", [(run, "run/run.toml"), (run, "run/metrics.jsonl")])),
        Reader("CLIP", 300, ["inspect", "."], trees(root, "clip", [
            (clip, path.name) for path in sorted(clip.iterdir()) if path.suffix in (".json", ".safetensors")])),
        Reader("ONNX", 200, ["inspect", "a.onnx"], copies(root, "onnx", [(root / "model.onnx", "a.onnx")])),
        Reader("MATLAB file", 1000, check, trees(root, "mat", mats)),
        Reader("pickle", 700, check, trees(root, "pickle", whole) + copies(root, "pickled", parts)),
        Reader("COCO JSON", 700, check, trees(root, "coco", [(people, path) for path in keypoints])
               + trees(root, "boxes", [(people / "scenes", "train.json"), (people / "scenes", "val.json")])),
        Reader("table", 500, check,
               trees(root, "csv", [(people, "attributes.csv"), (people, "parsing.csv"),
                                   (people, "labels.txt")])),
        Reader("mask", 300, check, trees(root, "mask", [(people, f"masks/{masks[0].name}")])),
        Reader("recipe", 500, ["pretrain", "r.toml", *small], copies(root, "recipe", [(recipe, "r.toml")])),
        Reader("rankings", 150, ["score", "reid", "--data", str(people), "--predictions", "p"],
               copies(root, "rankings", [(rankings, "p")])),
        Reader("poses", 150, ["score", "pose", "--data", str(people), "--predictions", "p"],
               copies(root, "poses", [(poses, "p")])),
        Reader("probabilities", 150, ["score", "attributes", "--data", str(people), "--predictions", "p"],
               copies(root, "probabilities", [(root / "attributes.out", "p")])),
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clasp")
    parser.add_argument("--files", type=int, help="files in all, divided among the readers [default: 14550]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="readers, separated by commas")
    parser.add_argument("--first", type=int, default=0, help="number of the first mutation of each reader")
    parser.add_argument("--keep", type=Path, default=Path("mutations"), help="folder for files with faults")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        campaign = Campaign(str(Path(options.clasp).resolve()), options.seed, options.keep)
        readers = make_readers(campaign, Path(root))
        only = [name for name in options.only.split(",") if name]
        readers = [reader for reader in readers if not only or reader.name in only]
        shares = sum(reader.share for reader in readers)
        total = 0
        for reader in readers:
            count = reader.share
            if options.files is not None:
                count = round(options.files * reader.share / shares)
            campaign.read(reader, count, options.first)
            total += count
        print(f"{total} files, {campaign.faults} faults, address space {ADDRESS_SPACE >> 20} MiB")
        sys.exit(bool(campaign.faults))


if __name__ == "__main__":
    main()
