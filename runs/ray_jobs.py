"""Labels and embeds a corpus by jobs of Ray, one of which is killed, and compares with one process.

    PYTHON runs/ray_jobs.py CLASP OUT [--jobs 4] [--images 120]

PYTHON has the package ray. Draws people, makes an untrained backbone, then runs `label --shard` and
`embed --shard` as Ray tasks that are retried when their worker dies: the first attempt of one job of
each command ends with its worker in the middle of the work. Joins the parts (the folder of labels;
`clasp merge`) and compares every file with that of one process, byte by byte. Ends with 1 if any
differs. The same commands are what an array of Slurm or a Kubernetes job with an index runs, with its
index as I.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import ray


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("clasp", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--jobs", type=int, default=4)
    parser.add_argument("--images", type=int, default=120)
    return parser.parse_args()


def part(clasp, out, words, index, jobs, killed):
    """One job. In its first attempt the job `killed` ends its worker while the program runs."""
    command = [clasp, *words, "--shard", f"{index}/{jobs}", "--threads", "1", "--quiet"]
    mark = Path(out) / f"killed-{words[0]}"
    if index == killed and not mark.exists():
        mark.write_text(f"worker {os.getpid()}\n")
        process = subprocess.Popen(command, cwd=out, stdout=subprocess.DEVNULL)
        time.sleep(0.3)
        state = "ended before" if process.poll() is not None else "was running"
        process.kill()
        mark.write_text(f"worker {os.getpid()} was killed while the program {state}\n")
        os.kill(os.getpid(), signal.SIGKILL)
    subprocess.run(command, cwd=out, check=True, stdout=subprocess.DEVNULL)
    return index


def main():
    options = parse()
    out, clasp, jobs = options.out.resolve(), str(options.clasp.resolve()), options.jobs
    if out.exists():
        sys.exit(f"{out}: exists")
    out.mkdir(parents=True)
    run = lambda *words: subprocess.run([clasp, *words, "--quiet"], cwd=out, check=True, stdout=subprocess.DEVNULL)
    run("synth", "--out", "people", "--seed", "1", "--scenes", "0")
    images = sorted((out / "people" / "market").rglob("*.jpg"))[: options.images]
    (out / "list.txt").write_text("".join(f"{path}\n" for path in images))
    sets = ["method=dino", "data.images=list.txt", "run.steps=0"]
    run("pretrain", "mini", "--out", "run", *[word for one in sets for word in ("--set", one)])
    label = ["label", "list.txt", "--out"]
    embed = ["embed", "list.txt", "--model", "run", "--out"]
    run(*label, "labels-one", "--threads", "1")
    run(*embed, "one.npy", "--threads", "1")
    run(*embed, "one.parquet", "--threads", "1")

    ray.init(num_cpus=jobs, include_dashboard=False, log_to_driver=False, logging_level="error")
    task = ray.remote(max_retries=2)(part)
    many = [*label, "labels-many"]
    ray.get([task.remote(clasp, str(out), many, index, jobs, 1) for index in range(jobs)])
    for ending in ("npy", "parquet"):
        work = [[*embed, f"part-{index}.{ending}"] for index in range(jobs)]
        ray.get([task.remote(clasp, str(out), words, index, jobs, 2) for index, words in enumerate(work)])
        run("merge", *[f"part-{index}.{ending}" for index in range(jobs)], "--out", f"many.{ending}")
    ray.shutdown()

    same = True
    names = sorted(path.name for path in (out / "labels-one").glob("*.parquet"))
    others = sorted(path.name for path in (out / "labels-many").glob("*.parquet"))
    pairs = [(out / "labels-one" / name, out / "labels-many" / name) for name in names]
    pairs += [(out / f"one.{ending}", out / f"many.{ending}") for ending in ("npy", "npy.keys.txt", "parquet")]
    for one, many in pairs:
        equal = many.exists() and one.read_bytes() == many.read_bytes()
        same &= equal
        if not equal:
            print(f"{many} differs from {one}")
    same &= names == others
    for mark in sorted(out.glob("killed-*")):
        print(f"{mark.name}: {mark.read_text().strip()}")
    outcome = "all equal" if same else "they differ"
    print(f"{len(images)} images, {jobs} jobs, {len(names)} files of labels and 3 of features: {outcome}")
    sys.exit(int(not same))


if __name__ == "__main__":
    main()
