#!/usr/bin/env python3
"""Makes the tables of docs/results.md: arms x seeds, paired by seed.

    python3 runs/evidence.py OUT                            # synthetic people: main, compute, prompts, demo
    python3 runs/evidence.py OUT --quick                    # one seed, six arms: within 30 minutes on two cores
    python3 runs/evidence.py OUT --data DIR                 # photos too: pre-training on DIR/persons, fine-tuning
    python3 runs/evidence.py OUT --write docs/results.md    # puts the tables between their markers

Each arm and seed writes TABLE/ARM/seed-N.json below OUT, or below --results DIR, and a later run skips what exists. The
results behind docs/results.md are in docs/evidence: with --results docs/evidence a run adds the arms and seeds that are
missing, with --existing it adds none. A file that was made with other settings, another recipe or another clasp-mini is
an error: take another folder, or remove the file. People, labels and runs in OUT, which results are made from, are made
anew where other settings, recipes, data or another commit of the program made them. Without --write the tables go to
standard output. Seeds below 100 are for the final tables; choose recipes and prompts with seeds from 100 on, whose people
are others.

Tables:
  main           arms on synthetic people, frozen backbone, equal steps
  compute        the same, with the processor time of CLASP for each arm
  prompts        each task under each prompt
  demo           `clasp demo`
  summary        table main for the README: some arms, one decimal
  photos-frozen  arms pre-trained on photos, frozen backbone (--data)
  photos         the same arms and random weights, fine-tuned on six tasks (--data)
  drawn          CLASP's backbone fine-tuned on six tasks of synthetic people
  overfit        the overfit test: the same few photos train and test (--data)
With --write, tables main and prompts together, or demo, of three seeds or more also make docs/demo-ranges.json, which
the demo's report shows beside its own metrics.
Standard library only. Tests: python3 -m unittest discover -s runs
"""

import argparse
import dataclasses
import functools
import json
import os
import pathlib
import resource
import shutil
import statistics
import subprocess
import sys
import time

import finetune
from paired import RULE, between_markers, cell, claim, difference_cell, differences, prose, table
from provenance import ROOT, commit, content_digest, digest, recipe_digest

CLIP = ROOT / "assets/clasp-mini/open_clip_model.safetensors"
# In the folder of a run of `clasp pretrain`.
BACKBONE = "backbone.safetensors"
SEEDS = {"main": 5, "summary": 5, "compute": 5, "prompts": 5}
STEPS = {"drawn": 500, "photos": 2000}
# Tables that run without photos, and those that need them.
DRAWN, PHOTOS = ["main", "compute", "prompts", "demo"], ["photos-frozen", "photos"]
MORE = ["drawn", "overfit"]
SUMMARY = ["initialization", "dino", "solider", "clasp-none", "labels-only", "clasp", "clip-frozen"]
FROZEN = {"reid": "mAP", "attributes": "mA", "parsing": "mIoU", "pose": "PCK@0.2"}
FINETUNED = {task: metrics[0] for task, (metrics, _) in finetune.TASKS.items()}
OWN_PROMPT = {"reid": "identity", "attributes": "attribute", "parsing": "part", "pose": "part"}
PROMPTS = ["identity", "attribute", "part"]
# SOLIDER's controller has λ = 1 − the weight of identity: 0.2 for re-identification, as published, and 1 elsewhere.
SOLIDER_PROMPTS = {"reid": "identity=0.8,part=0.2", "attributes": "attribute", "parsing": "part", "pose": "part"}
PEOPLE = {"unlabeled": 2400, "train": 150, "test": 75, "cameras": 4}
PHOTO_DATA = {"reid": "pku_reid", "attributes": "ccp", "parsing": "ccp", "pose": "lspe"}
LABELER = (
    "Labels come from the bundled clasp-mini, a CLIP trained on captions, part masks and attribute values of other "
    "synthetic people and of CCP's training photos: they come from a supervised model."
)


def value_of(evaluation, name):
    """The value of a metric of `clasp eval --json`."""
    return next(metric["value"] for metric in evaluation["metrics"] if metric["name"] == name)


@dataclasses.dataclass(frozen=True)
class Arm:
    """How one arm is pre-trained: `kind` is recipe, start (no step is taken), two-stage, clip, distill or fresh."""

    what: str
    set: tuple = ()
    labels: str = "clip"
    kind: str = "recipe"

    def trains(self):
        return self.kind not in ("start", "clip")

    def learns_from_clip(self):
        return self.kind in ("clip", "distill") or (self.kind == "recipe" and self.labels == "clip")


# With λ = 1 the shared blocks get the gradient of each label loss twice, under its own prompt and under identity.
WITHOUT_PROMPTS = ("model.adapter=none", "loss.part_weight=2", "loss.attribute_weight=4")
WITHOUT_DISTILLATION = ("loss.dino_weight=0", "views.local=0")
ARMS = {
    "initialization": Arm("the network before the first step", kind="start"),
    "dino": Arm("DINO", ("method=dino",), labels=""),
    "solider": Arm("SOLIDER; half of its steps are a DINO run, whose features give its k-means labels", kind="two-stage"),
    "clip-frozen": Arm("the labeler: frozen image tower of clasp-mini", kind="clip", labels=""),
    "clip-distill": Arm(
        "distillation of the pooled features of the labeler", ("method=dino", *WITHOUT_DISTILLATION), labels="", kind="distill"
    ),
    "labels-only": Arm("labels without self-distillation", WITHOUT_DISTILLATION),
    "labels-shuffled": Arm("labels permuted between images", ("data.permute_labels=true",)),
    "clasp-none": Arm("CLASP without prompts, label losses doubled", WITHOUT_PROMPTS),
    "parts-only": Arm("CLASP, part labels only", ("loss.attribute_weight=0",)),
    "attributes-only": Arm("CLASP, attribute labels only", ("loss.part_weight=0",)),
    "lambda-0": Arm("CLASP, no labels on the identity prompt (λ = 0)", ("loss.identity_label_weight=0",)),
    "lambda-half": Arm("CLASP, labels on the identity prompt with half the weight (λ = 0.5)", ("loss.identity_label_weight=0.5",)),
    "detach": Arm("CLASP, gradient of self-distillation stopped before the conditional blocks", ("loss.detach_shared=true",)),
    "clasp": Arm("CLASP"),
    "clasp-truth": Arm("CLASP with ground-truth labels", labels="truth"),
    # Only by --arms: the cheapest training on labels, prompts that differ more, and candidates of the adapter.
    "labels-plain": Arm("labels without prompts and self-distillation", (*WITHOUT_PROMPTS, *WITHOUT_DISTILLATION)),
    "lambda-fifth": Arm("CLASP, labels on the identity prompt with a fifth of the weight (λ = 0.2)", ("loss.identity_label_weight=0.2",)),
    "adapter-gated": Arm("CLASP with gated units", ("model.adapter=gated",)),
    "adapter-merged": Arm("CLASP with merged experts", ("model.adapter=merged",)),
    "fresh": Arm("random weights", kind="fresh"),
}
MAIN = [name for name in ARMS if name not in ("labels-plain", "lambda-fifth", "adapter-gated", "adapter-merged", "fresh")]
DEFAULT_ARMS = {
    "main": MAIN,
    "compute": ["dino", "solider", "labels-only", "clasp-none", "parts-only", "attributes-only", "clasp"],
    "prompts": ["clasp", "lambda-half", "lambda-0"],
    "summary": SUMMARY,
    "photos-frozen": ["initialization", "dino", "solider", "clasp"],
    "photos": ["fresh", "dino", "solider", "labels-only", "clasp"],
}
QUICK = {"main": ["initialization", "dino", "solider", "labels-only", "clasp-none", "clasp"], "prompts": ["clasp"]}


class Problem(Exception):
    """Something that stops one arm; the others continue."""


def processor():
    """Name of the processor and number of cores."""
    name = "unknown processor"
    try:
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass
    return f"{name}, {os.cpu_count()} cores"


def processor_seconds():
    """User and system time of all child processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def write_json(path, value):
    """Written under another name first, so that an existing file is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = path.with_suffix(".tmp")
    whole.write_text(json.dumps(value, indent=1) + "\n")
    whole.replace(path)


class Evidence:
    """Runs the program and keeps its results below `out`."""

    def __init__(self, args):
        self.args, self.out, self.results = args, args.out, args.results
        self.problems = {}

    @functools.cached_property
    def made(self):
        """What a new result is made by; not asked where nothing is run."""
        return {"commit": commit(self.args.clasp), "processor": processor(), "threads": self.args.threads or os.cpu_count()}

    def clasp(self, *words):
        """Runs the program; its result, or a Problem with its message."""
        command = [self.args.clasp, *map(str, words), "--json", "--quiet"]
        command += ["--threads", str(self.args.threads)] if self.args.threads else []
        print("+ " + " ".join(command), file=sys.stderr, flush=True)
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise Problem(f"`clasp {words[0]}` ended with {done.returncode}: {' '.join(done.stderr.split())[:300]}")
        return json.loads(done.stdout) if done.stdout.strip() else None

    def once(self, path, settings, work):
        """The content of `path`, or the result of `work` with the time that it took, which is then written to `path`."""
        if path.exists():
            kept = json.loads(path.read_text())
            if kept["settings"] != settings:
                raise Problem(f"{path}: expected settings {settings}, found {kept['settings']}; take another OUT or remove it")
            return kept
        if self.args.existing:
            raise Problem(f"no result for {path.stem}; without --existing it is made, --seeds names those to show")
        begun, used = time.monotonic(), processor_seconds()
        result = {"settings": settings, **work(), "made": self.made}
        result["seconds"] = time.monotonic() - begun
        result["processor_seconds"] = processor_seconds() - used
        write_json(path, result)
        return result

    def kept(self, target, settings, work):
        """What `work` told when it made `target`, a file or folder below OUT that results are made from. Made anew, unless there is
        one of the same settings and commit: a result names the commit that made it, with all that it was made from."""
        path = target.with_name(target.name + ".json")
        if path.exists() and not self.args.existing:
            found = json.loads(path.read_text())
            found, expected = [found["settings"], found["made"]["commit"]], [settings, self.made["commit"]]
            if found != expected or not target.exists():
                print(f"{path}: expected {target.name} of {expected}, found {found}; it is made anew", file=sys.stderr, flush=True)
                # First, so that nothing vouches for a target that is only partly made.
                path.unlink()

        def anew():
            shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
            return work()

        return self.once(path, settings, anew)

    # Data of a seed, made once for all arms.

    def people(self, seed):
        """Folder of a seed's synthetic people."""
        folder = self.out / "data" / f"people-{seed}"

        def draw():
            sizes = ["--train-identities", PEOPLE["train"], "--test-identities", PEOPLE["test"]]
            sizes += ["--cameras", PEOPLE["cameras"], "--shots", 1, "--scenes", 1, "--size", "128x64"]
            self.clasp("synth", "--out", folder, *sizes, "--unlabeled", PEOPLE["unlabeled"], "--seed", seed)
            return {}

        self.kept(folder, {"seed": seed, **PEOPLE}, draw)
        return folder

    def images(self, world, seed):
        """Unlabeled images to pre-train on."""
        return self.people(seed) / "unlabeled" if world == "drawn" else self.args.data / "persons"

    def labels(self, world, kind, seed):
        """Folder of labels and processor seconds that they took."""
        if not kind:
            return None, 0.0
        if kind == "truth":
            if world != "drawn":
                raise Problem("photos have no ground-truth labels")
            folder = self.people(seed) / "truth"
            if not folder.is_dir():
                raise Problem(f"{folder}: expected the ground-truth labels that `clasp synth` writes, found no such folder")
            if not (folder / "_calibration.json").exists():
                self.clasp("label", "calibrate", folder)
            return folder, 0.0
        folder = self.out / "data" / (f"labels-{seed}" if world == "drawn" else "labels-photos")
        return self.label(self.images(world, seed), folder)

    def label(self, images, folder, backbone=None):
        """Labels images into `folder`, by CLIP or by k-means of the features of a backbone."""
        of = {"images": content_digest(images)}
        of |= {"backbone": content_digest(backbone / BACKBONE)} if backbone else {"clip": digest(CLIP.read_bytes())}
        more = ["--kmeans", backbone] if backbone else []
        kept = self.kept(folder, of, lambda: {"report": self.clasp("label", images, "--out", folder, *more)})
        return folder, kept["processor_seconds"]

    # Backbones.

    def backbone(self, world, name, seed, steps):
        """File or folder of an arm's backbone, and the steps, time and metrics of its training."""
        arm = ARMS[name]
        if arm.kind == "clip":
            return self.clip(), {"steps": 0, "fixed": 0.0, "each_step": 0.0}
        if arm.kind == "distill":
            return self.pretrained(world, name, seed, steps, None, arm.set, {"distillation.teacher": self.clip()})
        if arm.kind == "start":
            return self.pretrained(world, name, seed, 0, self.labels(world, arm.labels, seed)[0], arm.set)
        if arm.kind != "two-stage":
            labels, fixed = self.labels(world, arm.labels, seed)
            folder, told = self.pretrained(world, name, seed, steps, labels, arm.set)
            return folder, {**told, "fixed": fixed}
        first = steps // 2
        begin, one = self.pretrained(world, "dino", seed, first, None, ARMS["dino"].set)
        place = self.out / "runs" / world / f"kmeans-{first}" / f"seed-{seed}"
        labels, fixed = self.label(self.images(world, seed), place, begin)
        start = {"model.init": begin / BACKBONE}
        folder, two = self.pretrained(world, name, seed, steps - first, labels, ("method=solider",), start)
        each = (one["each_step"] * first + two["each_step"] * (steps - first)) / max(steps, 1)
        warnings = one["warnings"] + two["warnings"]
        return folder, {**two, "steps": steps, "fixed": fixed, "each_step": each, "warnings": warnings}

    def pretrained(self, world, name, seed, steps, labels, settings, files=None):
        """One run of `clasp pretrain`; a run that was interrupted starts again, so that its time is right."""
        folder = self.out / "runs" / world / f"{name}-{steps}" / f"seed-{seed}"
        recipe = "demo" if world == "drawn" else "mini"
        chosen = [f"seed={seed}", f"run.steps={steps}", *settings, *self.args.set]
        files = {"data.images": self.images(world, seed)} | ({"data.labels": labels} if labels else {}) | (files or {})
        # Contents, not paths: a folder that was moved is the same.
        known = {"recipe": recipe_digest(ROOT / f"recipes/{recipe}.toml"), "set": chosen}
        known["files"] = {key: content_digest(path) for key, path in files.items()}

        def work():
            paths = [f"{key}={json.dumps(str(path))}" for key, path in files.items()]
            words = [word for one in [*paths, *chosen] for word in ("--set", one)]
            summary = self.clasp("pretrain", recipe, "--out", folder, *words)
            return {key: summary[key] for key in ("steps", "images", "metrics", "warnings")}

        told = self.kept(folder, known, work)
        each = told["processor_seconds"] / steps if steps else 0.0
        return folder, {"steps": steps, "fixed": 0.0, "each_step": each, "metrics": told["metrics"], "warnings": told["warnings"]}

    def clip(self):
        """The image tower of clasp-mini as a backbone, without its projection to the text."""
        target = self.out / "data/clip.safetensors"
        config = json.loads(CLIP.with_name("open_clip_config.json").read_text())

        def work():
            tower, images = config["model_cfg"]["vision_cfg"], config["preprocess_cfg"]
            kind = "clip-openai" if config["model_cfg"].get("quick_gelu") else "clip-open"
            numbers = lambda values: ",".join(map(str, values))
            words = ["--as", kind, "--heads", tower["width"] // tower["head_width"]]
            size = tower["image_size"]
            words += ["--size", "x".join(map(str, size if isinstance(size, list) else [size, size]))]
            words += ["--mean", numbers(images["mean"]), "--std", numbers(images["std"])]
            target.parent.mkdir(parents=True, exist_ok=True)
            self.clasp("import", CLIP, "-o", target, *words)
            return {}

        self.kept(target, {"clip": digest(CLIP.read_bytes()), "config": config}, work)
        return target

    # Evaluations: {"metrics": {task: value}, "chance": {task: value}}.

    def frozen(self, model, data, prompts=None, arm="clasp"):
        """Main metric of each task of a frozen backbone under the default prompt of the arm, or under each of `prompts`."""
        metrics, chance = {}, {}
        solider = ARMS[arm].kind == "two-stage"
        for task, metric in FROZEN.items():
            for prompt in prompts or [SOLIDER_PROMPTS[task] if solider else None]:
                more = ["--prompt", prompt] if prompt else []
                [found] = self.clasp("eval", task, "--frozen", "--data", data(task), "--model", model, *more)
                value = value_of(found, metric)
                if prompts:
                    metrics.setdefault(task, {})[prompt] = value
                else:
                    metrics[task] = value
                chance[task] = found["chance"]
        return {"metrics": metrics, "chance": chance}

    def data(self, world, seed):
        """Folder of the labeled data of a task."""
        return lambda task: self.people(seed) if world == "drawn" else self.args.data / PHOTO_DATA[task]

    def result(self, name, arm, seed, settings, work):
        """The result of an arm and seed of a table, None where it failed."""
        path = self.results / name / arm / f"seed-{seed}.json"
        try:
            settings = {"arm": arm, "seed": seed, "set": self.args.set, **settings, **self.made_of(name, arm)}
            return self.once(path, settings, work)
        except (Problem, subprocess.CalledProcessError) as problem:
            self.problems[name, arm] = str(problem)
            print(f"{name}, {arm}, seed {seed}: {problem}", file=sys.stderr, flush=True)
            return None

    def made_of(self, name, arm):
        """Digests of the recipe and of clasp-mini, where a result of the table depends on them."""
        recipe = "mini" if name in PHOTOS else "demo"
        found = {"recipe": recipe_digest(ROOT / f"recipes/{recipe}.toml")} if ARMS[arm].kind != "fresh" else {}
        if name == "demo" or ARMS[arm].learns_from_clip():
            found["clip"] = digest(CLIP.read_bytes())
        return found

    def arms(self, name, world, arms, seeds, steps_of, evaluate):
        """{arm: {seed: result}}, in order of the seeds: all arms of a seed before the next."""
        results = {arm: {} for arm in arms}
        for seed in seeds:
            for arm in arms:

                def work():
                    model, told = self.backbone(world, arm, seed, steps_of(arm))
                    return {**told, **evaluate(model, arm, seed)}

                found = self.result(name, arm, seed, {"steps": steps_of(arm)}, work)
                if found:
                    results[arm][seed] = found
        return results

    def equal_time(self, arms, seeds, steps):
        """Steps of each arm that take as much processor time as `steps` of CLASP, labels included. Measured once, over
        the seeds that table main has; kept, so that later seeds have the same steps."""
        path = self.results / "compute/steps.json"
        if path.exists():
            kept = json.loads(path.read_text())
            if kept["clasp"] != steps or not set(arms) <= set(kept):
                raise Problem(f"{path}: made for {kept}, now {steps} steps of CLASP and {arms}; remove it and {path.parent}")
            return kept
        of = lambda arm: [r for r in self.main(arms, seeds, steps)[arm].values()]
        mean = lambda arm, key: statistics.mean([r[key] for r in of(arm)])
        known = [arm for arm in arms if of(arm)]
        if "clasp" not in known:
            raise Problem("equal processor time needs the run of CLASP in table main; see its error")
        budget = mean("clasp", "fixed") + mean("clasp", "each_step") * steps
        counts = {arm: max(10, round((budget - mean(arm, "fixed")) / mean(arm, "each_step"), -1)) for arm in known}
        counts = {arm: int(count) for arm, count in counts.items()} | {"clasp": steps}
        write_json(path, counts)
        return counts

    def main(self, arms, seeds, steps):
        evaluate = lambda model, arm, seed: self.frozen(model, self.data("drawn", seed), arm=arm)
        return self.arms("main", "drawn", arms, seeds, lambda arm: steps, evaluate)


def value_rows(results, tasks, arms, problems, cost=True):
    """A row for each arm: its metrics, and processor seconds of pre-training. An arm with fewer seeds than others says so."""
    rows = []
    most = max(map(len, results.values()), default=0)
    # Every arm of a seed has the same chance.
    found = list(max(results.values(), key=len, default={}).values())
    if found and "chance" in found[0]:
        rows.append(["chance", *[cell([result["chance"][task] for result in found]) for task in tasks], *[""] * cost])
    for arm in arms:
        seeds = results.get(arm, {})
        if not seeds:
            rows.append([f"{ARMS[arm].what} (`{arm}`)", f"not run: {problems.get(arm, 'no seed')}", *[""] * (len(tasks) - 1 + cost)])
            continue
        cells = [cell([result["metrics"][task] for result in seeds.values()]) for task in tasks]
        if cost:
            took = [r["fixed"] + r["each_step"] * r["steps"] for r in seeds.values() if "fixed" in r]
            cells.append(f"{statistics.mean(took):.0f} s, {next(iter(seeds.values()))['steps']} steps" if took and max(took) else "")
        fewer = f", {len(seeds)} of {most} seeds" if len(seeds) < most else ""
        rows.append([f"{ARMS[arm].what} (`{arm}`{fewer})", *cells])
    return rows


def difference_rows(results, tasks, arms):
    """CLASP minus each other arm, seed by seed."""
    rows = []
    for arm in arms:
        if arm == "clasp" or not results.get(arm) or not results.get("clasp"):
            continue
        of = lambda name, task: {seed: result["metrics"][task] for seed, result in results[name].items()}
        rows.append([ARMS[arm].what, *[difference_cell(differences(of("clasp", task), of(arm, task))) for task in tasks]])
    return rows


def comparison(results, tasks, arms, problems):
    """The table of values and that of differences."""
    names = [f"{task} {metric}" for task, metric in tasks.items()]
    text = table(["arm", *names, "processor time"], value_rows(results, tasks, arms, problems))
    rows = difference_rows(results, tasks, arms)
    if rows:
        how = "CLASP minus the other arm, in points, paired by seed: mean (range) ± standard error. "
        text += f"\n\n{prose(how + RULE)}\n\n" + table(["CLASP minus", *names], rows)
    return text


def prompt_rows(seeds):
    """Rows of one arm's table of prompts, `seeds` {seed: result} with metrics [task][prompt].

    The shuffled prompt gives each task a prompt of another one. An evaluation has one prompt for all its images, and of
    three prompts the two permutations that leave none in place give each task each of the two other prompts once: the
    shuffled metric is the mean of those two."""
    by_prompt = lambda task, prompt: {seed: result["metrics"][task][prompt] for seed, result in seeds.items()}
    others = lambda task: [prompt for prompt in PROMPTS if prompt != OWN_PROMPT[task]]
    shuffled = lambda task: {
        seed: statistics.mean(result["metrics"][task][prompt] for prompt in others(task)) for seed, result in seeds.items()
    }
    rows = []
    for prompt in PROMPTS:
        cells = [cell(list(by_prompt(task, prompt).values())) for task in FROZEN]
        own = [OWN_PROMPT[task] == prompt for task in FROZEN]
        rows.append([f"{prompt} prompt", *[f"**{text}**" if mine else text for text, mine in zip(cells, own)]])
    rows.append(["shuffled prompt", *[cell(list(shuffled(task).values())) for task in FROZEN]])
    gains = [difference_cell(differences(by_prompt(task, OWN_PROMPT[task]), shuffled(task))) for task in FROZEN]
    rows.append(["own minus shuffled", *gains])
    wins = []
    for task in FROZEN:
        own = by_prompt(task, OWN_PROMPT[task])
        best = [all(own[seed] > by_prompt(task, other)[seed] for other in others(task)) for seed in own]
        wins.append(f"{sum(best)} of {len(best)} seeds")
    rows.append(["own prompt best", *wins])
    return rows


def seeds_text(seeds):
    return "seed " + str(seeds[0]) if len(seeds) == 1 else "seeds " + ", ".join(map(str, seeds))


def head(args, name, seeds, text, results):
    """The command that makes a table, and the text above it."""
    made = [result["made"] for arms in results.values() for result in arms.values()]
    commits = ", ".join(sorted({one["commit"] for one in made})) or "unknown"
    machines = "; ".join(sorted({f"{one['processor']}, {one['threads']} threads" for one in made}))
    command = f"python3 runs/evidence.py OUT --tables {name} --seeds " + " ".join(map(str, seeds))
    command += " --data DIR" if name in PHOTOS + ["overfit"] else ""
    command += f" --steps {args.steps}" if args.steps else ""
    command += " --arms " + " ".join(args.arms) if args.arms else ""
    command += "".join(f" --set {one}" for one in args.set)
    text += f" {seeds_text(seeds).capitalize()}; {machines or processor()}; clasp {commits}. In percent: mean (range)."
    return f"    {command}\n\n{prose(text)}\n\n"


def main_table(evidence, seeds, arms, steps):
    results = evidence.main(arms, seeds, steps)
    text = (
        f"Synthetic people: {PEOPLE['unlabeled']:,} unlabeled images, recipe `demo`, {steps} steps for each arm. Then the frozen backbone is "
        f"tested on {PEOPLE['test']} other people seen by {PEOPLE['cameras']} cameras: re-identification by retrieval, the other tasks by a linear probe. "
        "CLASP's arms are tested under the default prompt of each task: `attribute` for re-identification and attributes, `part` for "
        "parsing and pose. "
        f"All arms of a seed share people, labels, initial weights and the order of images. {LABELER} Processor time is that of labeling and "
        "pre-training, summed over cores."
    )
    return head(evidence.args, "main", seeds, text, results) + comparison(results, FROZEN, arms, problems_of(evidence, "main"))


def summary_table(evidence, seeds, arms, steps):
    """Only results that exist: the table is made of table main."""
    found = lambda arm, seed: evidence.results / "main" / arm / f"seed-{seed}.json"
    complete = [arm for arm in arms if all(found(arm, seed).exists() for seed in seeds)]
    if "clasp" not in complete:
        raise Problem(f"table summary is made of table main, which has not all seeds of CLASP: {', '.join(map(str, seeds))}")
    results = evidence.main(complete, seeds, steps)
    value = lambda result, task: result["metrics"][task]
    rows = [["chance", *[f"{100 * statistics.mean(r['chance'][task] for r in results['clasp'].values()):.1f}" for task in FROZEN]]]
    for arm in complete:
        cells = [cell([value(result, task) for result in results[arm].values()], digits=1) for task in FROZEN]
        rows.append([f"**{ARMS[arm].what}**" if arm == "clasp" else ARMS[arm].what, *cells])
    command = "python3 runs/evidence.py OUT --tables main --seeds " + " ".join(map(str, seeds))
    return f"    {command}\n\n" + table(["", *[f"{task} {metric}" for task, metric in FROZEN.items()]], rows)


def compute_table(evidence, seeds, arms, steps):
    trained = [arm for arm in arms if ARMS[arm].trains()]
    for arm in set(arms) - set(trained):
        evidence.problems["compute", arm] = (
            "expected an arm that is trained, for as many steps as fit in the time of CLASP, found one without steps; leave it out of --arms"
        )
    counts = evidence.equal_time(trained, seeds, steps)
    timed = [arm for arm in trained if arm in counts]
    evaluate = lambda model, arm, seed: evidence.frozen(model, evidence.data("drawn", seed), arm=arm)
    # CLASP's own runs are those of the main table.
    results = evidence.arms("compute", "drawn", [arm for arm in timed if arm != "clasp"], seeds, counts.get, evaluate)
    results |= evidence.main(["clasp"], seeds, steps) if "clasp" in timed else {}
    text = (
        f"The row of CLASP is that of the main table. Every other arm takes as many steps as fit in the processor time of {steps} steps "
        "of CLASP, with labeling and without the training of the bundled CLIP, as measured on the first seeds that ran."
    )
    return head(evidence.args, "compute", seeds, text, results) + comparison(results, FROZEN, arms, problems_of(evidence, "compute"))


def prompts_table(evidence, seeds, arms, steps):
    evaluate = lambda model, arm, seed: evidence.frozen(model, evidence.data("drawn", seed), PROMPTS)
    results = evidence.arms("prompts", "drawn", arms, seeds, lambda arm: steps, evaluate)
    text = (
        "Backbones of the main table, each task under one prompt at a time; the prompt of the task itself is in bold. *Shuffled*: the prompts "
        "are permuted so that every task has the prompt of another; the mean over both such permutations, which is the mean of the two other "
        "prompts."
    )
    parts = [head(evidence.args, "prompts", seeds, text, results) + prose(RULE)]
    for arm in arms:
        title = f"{ARMS[arm].what} (`{arm}`)"
        if results[arm]:
            names = [f"{task} {metric}" for task, metric in FROZEN.items()]
            parts.append(f"{title}:\n\n" + table(["prompt", *names], prompt_rows(results[arm])))
        else:
            parts.append(f"{title}: not run: {evidence.problems.get(('prompts', arm), 'no seed')}")
    return "\n\n".join(parts)


def photos_frozen_table(evidence, seeds, arms, steps):
    evaluate = lambda model, arm, seed: evidence.frozen(model, evidence.data("photos", seed), arm=arm)
    results = evidence.arms("photos-frozen", "photos", arms, seeds, lambda arm: steps, evaluate)
    text = (
        f"Pre-training on the photos of DIR/persons, recipe `mini`, {steps} steps for each arm. Then the frozen backbone is tested: "
        f"re-identification by retrieval on PKU-Reid, attributes and parsing (all classes) by a linear probe on CCP, pose by one on LSPE. {LABELER}"
    )
    return head(evidence.args, "photos-frozen", seeds, text, results) + comparison(
        results, FROZEN, arms, problems_of(evidence, "photos-frozen")
    )


def photos_table(evidence, seeds, arms, steps):
    place = evidence.out / "finetune"
    place.mkdir(parents=True, exist_ok=True)
    finetune.pets(evidence.args.data / "pets", place)

    def evaluate(model, arm, seed):
        metrics = {}
        for task, metric in FINETUNED.items():
            below, special = finetune.REAL[task]
            data = place / below if (place / below).exists() else evidence.args.data / below
            folder = place / f"{task}-{arm}-{steps}" / f"seed-{seed}"
            folder.parent.mkdir(parents=True, exist_ok=True)
            print(f"+ finetune {task}, {arm}, seed {seed}", file=sys.stderr, flush=True)
            rows = finetune.run(evidence.args.clasp, folder, task, data, model, seed, special, evidence.args.threads)
            metrics[task] = rows[-1][1][f"eval/{metric}"]
        return {"metrics": metrics}

    results = {arm: {} for arm in arms}
    for seed in seeds:
        for arm in arms:

            def work():
                if ARMS[arm].kind == "fresh":
                    return evaluate(None, arm, seed)
                model, told = evidence.backbone("photos", arm, seed, steps)
                return {**told, **evaluate(model, arm, seed)}

            found = evidence.result("photos", arm, seed, {"steps": steps}, work)
            if found:
                results[arm][seed] = found
    text = (
        f"Pre-training on the photos of DIR/persons, recipe `mini`, {steps} steps for each arm. Then six tasks are fine-tuned with their "
        f"recipes `*-mini` and the seed of pre-training. Metrics are those of the last step: nothing is selected on test images. {LABELER}"
    )
    return head(evidence.args, "photos", seeds, text, results) + comparison(results, FINETUNED, arms, problems_of(evidence, "photos"))


def demo_table(evidence, seeds):
    """The demo's own table over seeds; returns the text and the ranges that the demo's report shows."""
    runs = {}
    for seed in seeds:

        def work():
            folder = evidence.out / "demo-runs" / f"seed-{seed}"
            rows = evidence.clasp("demo", "--out", folder, "--seed", seed, *[w for one in evidence.args.set for w in ("--set", one)])
            last = (folder / "run/metrics.jsonl").read_text().splitlines()[-1]
            return {"rows": rows, "steps": json.loads(last)["step"]}

        found = evidence.result("demo", "clasp", seed, {}, work)
        if found:
            runs[seed] = found
    if not runs:
        return None, None
    values, names = {}, []
    for run in runs.values():
        for row in run["rows"]:
            name = row["name"].strip()
            names += [name] if name not in names else []
            for task, metric in FROZEN.items():
                value = value_of(row["tasks"][task], metric)
                values.setdefault(name, {}).setdefault(task, []).append(value)
                if row is run["rows"][0]:
                    values.setdefault("chance", {}).setdefault(task, []).append(row["tasks"][task]["chance"])
    rows = [[name, *[cell(values[name][task]) for task in FROZEN]] for name in ["chance", *names]]
    steps = sorted({run["steps"] for run in runs.values()})
    minutes = statistics.mean(run["seconds"] for run in runs.values()) / 60
    text = (
        f"`clasp demo` with each seed, {'/'.join(map(str, steps))} steps, {minutes:.1f} minutes each on average: each seed has its own people, weights "
        f"and test people. Frozen backbone, by retrieval for re-identification and by a linear probe for the other tasks; chance of pose is the mean pose. {LABELER}"
    )
    names = [f"{task} {metric}" for task, metric in FROZEN.items()]
    ranges = {
        "people": PEOPLE["unlabeled"],
        "steps": steps[-1],
        "seeds": len(runs),
        "made": ", ".join(sorted({run["made"]["commit"] for run in runs.values()})),
        "rows": {
            name: {task: [round(100 * f(found), 2) for f in (statistics.mean, min, max)] for task, found in tasks.items()}
            for name, tasks in values.items()
        },
    }
    return head(evidence.args, "demo", seeds, text, {"clasp": runs}) + table(["", *names], rows), ranges


def ranges_of_main(evidence, seeds, steps):
    """The ranges that the demo's report shows, from tables main and prompts: its people, recipe and steps are theirs."""
    main = evidence.main(["initialization", "dino", "clasp"], seeds, steps)
    rows = {"chance": {}, "initialization": {}, "DINO": {}, "CLASP": {}}
    for task in FROZEN:
        rows["chance"][task] = [found["chance"][task] for found in main["clasp"].values()]
        for name, arm in [("initialization", "initialization"), ("DINO", "dino"), ("CLASP", "clasp")]:
            rows[name][task] = [found["metrics"][task] for found in main[arm].values()]
    for prompt in PROMPTS:
        files = [evidence.results / "prompts/clasp" / f"seed-{seed}.json" for seed in seeds]
        found = [json.loads(path.read_text())["metrics"] for path in files if path.exists()]
        if len(found) == len(seeds):
            rows[f"CLASP, {prompt} prompt"] = {task: [one[task][prompt] for one in found] for task in FROZEN}
    triple = lambda values: [round(100 * f(values), 2) for f in (statistics.mean, min, max)]
    made = sorted({found["made"]["commit"] for arms in main.values() for found in arms.values()})
    return {
        "people": PEOPLE["unlabeled"],
        "steps": steps,
        "seeds": len(seeds),
        "made": ", ".join(made),
        "rows": {name: {task: triple(values) for task, values in tasks.items()} for name, tasks in rows.items()},
    }


def finetuned_table(evidence, which, seeds):
    """Tables of runs/finetune.py with CLASP's backbone of the first seed."""
    args = evidence.args
    if which == "drawn":
        model, told = evidence.backbone("drawn", "clasp", seeds[0], args.steps or STEPS["drawn"])
        data = evidence.out / "data/finetune-people"

        def draw():
            sizes = ["--train-identities", 200, "--test-identities", 75, "--cameras", 4, "--shots", 1, "--size", "128x64"]
            evidence.clasp("synth", "--out", data, *sizes, "--scenes", 360, "--unlabeled", 0, "--seed", 1000)
            return {}

        evidence.kept(data, {"seed": 1000}, draw)
    else:
        model, told = evidence.backbone("photos", "clasp", seeds[0], args.steps or STEPS["photos"])
        data = args.data
    command = [sys.executable, ROOT / "runs/finetune.py", which]
    command += [evidence.out / f"finetune-{which}", "--data", data, "--init", model, "--seeds", *seeds, "--clasp", args.clasp]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode:
        raise Problem(f"runs/finetune.py {which} ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    text = {
        "drawn": "Six tasks fine-tuned on synthetic people, from random weights and from CLASP's backbone, which saw none of them.",
        "overfit": "The same few photos train and test, without augmentation: every task has to learn them.",
    }[which]
    made = {"clasp": {seeds[0]: {"made": evidence.made}}}
    return head(args, which, seeds, f"{text} The backbone took {told['steps']} steps. {LABELER}", made) + done.stdout.strip()


def problems_of(evidence, name):
    return {arm: text for (where, arm), text in evidence.problems.items() if where == name}


def parse(words=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("out", type=pathlib.Path, help="folder for everything that is made")
    p.add_argument("--results", type=pathlib.Path, metavar="DIR", help="folder of the results that tables are made of [default: OUT]")
    p.add_argument("--existing", action="store_true", help="run nothing: make the tables of the results that there are")
    p.add_argument("--quick", action="store_true", help="one seed, main table of six arms, prompts of CLASP")
    p.add_argument("--data", type=pathlib.Path, help="photos: persons/, pku_reid/, ccp/, lspe/, pets/")
    p.add_argument("--tables", nargs="+", choices=[*DRAWN, "summary", *PHOTOS, *MORE], help="which tables")
    p.add_argument("--arms", nargs="+", choices=list(ARMS), help="which arms, `clasp` to compare with included")
    p.add_argument("--seeds", type=int, nargs="+", help="default: five for main, compute and prompts, else three")
    p.add_argument("--steps", type=int, help=f"steps of each arm: {STEPS['drawn']}, on photos {STEPS['photos']}")
    p.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a value of the recipe, for every pre-training")
    p.add_argument("--clasp", default=str(ROOT / "target/release/clasp"), help="the program")
    p.add_argument("--threads", type=int, help="threads of the program")
    p.add_argument("--write", type=pathlib.Path, metavar="FILE", help="a document with markers, docs/results.md")
    args = p.parse_args(words)
    args.out = args.out.resolve()
    args.results = args.results.resolve() if args.results else args.out
    args.data = args.data.resolve() if args.data else None
    args.tables = args.tables or (list(QUICK) if args.quick else DRAWN) + (PHOTOS if args.data else [])
    if not args.data and set(args.tables) & {*PHOTOS, "overfit"}:
        p.error(f"tables {', '.join(PHOTOS)} and overfit need --data DIR")
    return args


def main(words=None):
    args = parse(words)
    evidence = Evidence(args)
    makers = {
        "main": main_table,
        "summary": summary_table,
        "compute": compute_table,
        "prompts": prompts_table,
        "photos-frozen": photos_frozen_table,
        "photos": photos_table,
    }
    texts, ranges = {}, None
    for name in args.tables:
        seeds = args.seeds or ([0] if args.quick else list(range(SEEDS.get(name, 3))))
        try:
            if name == "demo":
                texts[name], ranges = demo_table(evidence, seeds)
            elif name in MORE:
                texts[name] = finetuned_table(evidence, name, seeds)
            else:
                arms = args.arms or (QUICK if args.quick else DEFAULT_ARMS).get(name) or DEFAULT_ARMS[name]
                if name == "prompts":
                    # The others have no prompts, and of several tables at once this one has its own arms alone.
                    own = DEFAULT_ARMS["prompts"] if len(args.tables) > 1 else arms
                    prompted = lambda arm: ARMS[arm].kind == "recipe" and not {"method=dino", "model.adapter=none"} & set(ARMS[arm].set)
                    arms = [arm for arm in arms if arm in own and prompted(arm)]
                steps = args.steps or STEPS["photos" if name in PHOTOS else "drawn"]
                texts[name] = makers[name](evidence, seeds, arms, steps)
                if name == "prompts" and "clasp" in arms and len(seeds) >= 3 and "main" in args.tables:
                    ranges = ranges_of_main(evidence, seeds, steps)
        except Problem as problem:
            evidence.problems[name, "table"] = str(problem)
        if texts.get(name) and args.write:
            write_table(args.write, name, texts[name])
        elif texts.get(name):
            print(f"## {name}\n\n{texts[name]}\n", flush=True)
    if ranges and args.write:
        write_json(args.write.with_name("demo-ranges.json"), ranges)
    for (name, arm), text in evidence.problems.items():
        print(f"error: {name}, {arm}: {text}", file=sys.stderr)
    return 1 if evidence.problems else 0


def write_table(path, name, text):
    try:
        document = between_markers(path.read_text(), name, text)
    except KeyError:
        raise SystemExit(
            f"{path}: expected one pair of markers <!-- evidence:{name} --> and <!-- /evidence:{name} -->, found none or several; "
            "add them where the table belongs"
        ) from None
    path.write_text(document)


if __name__ == "__main__":
    sys.exit(main())
