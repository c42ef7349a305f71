"""Tests of the statistics of runs/paired.py, and of runs/evidence.py and runs/finetune.py with a program that answers from a table.

    python3 -m unittest discover -s runs
"""

import collections
import contextlib
import io
import json
import math
import pathlib
import shutil
import stat
import sys
import tempfile
import unittest
from unittest import mock

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import evidence
import finetune
import paired

# Answers as the program does. An arm's figure is 0.1 + 0.01 x seed, and 0.2 more where its recipe has no `method`;
# under a task's own prompt 0.05 more. A backbone also has the settings that made it. Every call is noted in calls.txt.
FAKE = """#!{python}
import json, pathlib, sys
words = sys.argv[1:]
here = pathlib.Path(__file__).parent
with open(here / "calls.txt", "a") as file:
    file.write(" ".join(words) + "\\n")
of = lambda name: words[words.index(name) + 1]
settings = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
if words[0] == "--version":
    print("clasp 0.1.0 (0123456789ab)")
elif words[0] == "pretrain":
    out = pathlib.Path(of("--out"))
    out.mkdir(parents=True)
    if "loss.part_weight=0" in settings:
        sys.exit("error: loss.part_weight: unknown key")
    seed = int([one for one in settings if one.startswith("seed=")][0][5:])
    value = 0.1 + 0.01 * seed + 0.2 * (not any(one.startswith("method") for one in settings))
    (out / "backbone.safetensors").write_text(" ".join([str(value), *settings]))
    print(json.dumps({{"steps": 1, "images": 9, "metrics": {{}}, "warnings": []}}))
elif words[0] == "finetune":
    out = pathlib.Path(of("--out"))
    out.mkdir(parents=True)
    gain = 0.3 if "--init" in words else 0.0
    row = {{f"eval/{{name}}": 0.2 + gain for name in ("mAP", "mA", "mIoU", "PCK@0.2", "AP.5", "rank-1", "top-1")}}
    (out / "metrics.jsonl").write_text(json.dumps({{"step": 1, **row}}))
    (out / "model.safetensors").write_text("")
elif words[0] == "demo":
    out = pathlib.Path(of("--out")) / "run"
    out.mkdir(parents=True)
    (out / "metrics.jsonl").write_text(json.dumps({{"step": 500}}))
    value = 0.1 + 0.01 * int(of("--seed"))
    tasks = {{"reid": "mAP", "attributes": "mA", "parsing": "mIoU", "pose": "PCK@0.2"}}
    tasks = {{task: {{"mix": "", "chance": 0.03, "metrics": [{{"name": name, "value": value}}]}} for task, name in tasks.items()}}
    print(json.dumps([{{"name": name, "tasks": tasks}} for name in ("initialization", "DINO", "CLASP")]))
elif words[0] == "eval":
    model = pathlib.Path(of("--model"))
    value = float((model / "backbone.safetensors" if model.is_dir() else model).read_text().split()[0])
    own = {{"reid": "identity", "attributes": "attribute", "parsing": "part", "pose": "part"}}[words[1]]
    value += 0.05 * ("--prompt" in words and of("--prompt") == own)
    metric = {{"reid": "mAP", "attributes": "mA", "parsing": "mIoU", "pose": "PCK@0.2"}}[words[1]]
    print(json.dumps([{{"task": words[1], "metrics": [{{"name": metric, "value": value}}], "chance": 0.04}}]))
elif words[0] == "import":
    pathlib.Path(of("-o")).write_text("0.5")
else:
    pathlib.Path(of("--out")).mkdir(parents=True, exist_ok=True)
    print("{{}}")
"""


class Statistics(unittest.TestCase):
    def test_differences_are_taken_of_the_seeds_that_both_have(self):
        self.assertEqual(paired.differences({0: 3, 1: 5, 2: 9}, {2: 4, 1: 1}), [4, 5])

    def test_the_standard_error_is_that_of_the_mean(self):
        # Standard deviation of 1, 2, 3 is 1.
        self.assertAlmostEqual(paired.standard_error([1, 2, 3]), 1 / math.sqrt(3))
        self.assertEqual(paired.standard_error([1]), math.inf)

    def test_five_seeds_need_one_sign_and_two_standard_errors(self):
        self.assertEqual(paired.claim([1, 2, 3, 2, 1]), paired.ESTABLISHED)
        self.assertEqual(paired.claim([-1, -2, -3, -2, -1]), paired.ESTABLISHED)
        self.assertEqual(paired.claim([1, 2, 3, 2, -0.1]), paired.NOTHING)
        self.assertEqual(paired.claim([1, 2, 3, 2, 0]), paired.NOTHING)
        # Mean 2.4, standard error 1.9: one sign is not enough.
        self.assertEqual(paired.claim([0.5, 0.5, 0.5, 0.5, 10]), paired.NOTHING)

    def test_three_seeds_indicate_and_two_say_nothing(self):
        self.assertEqual(paired.claim([1, 2, 30]), paired.INDICATIVE)
        self.assertEqual(paired.claim([1, 2, 3, 4]), paired.INDICATIVE)
        self.assertEqual(paired.claim([1, -2, 3]), paired.NOTHING)
        self.assertEqual(paired.claim([1, 2]), paired.NOTHING)
        self.assertEqual(paired.claim([]), paired.NOTHING)

    def test_cells_are_in_percent(self):
        self.assertEqual(paired.cell([0.1, 0.2]), "15.00 (10.00–20.00)")
        self.assertEqual(paired.cell([0.1]), "10.00")
        self.assertEqual(paired.difference_cell([-0.01, -0.02, -0.03]), "−2.00 (−3.00 to −1.00) ± 0.58 (✓)")

    def test_markers_keep_what_is_around_them(self):
        document = "a\n<!-- evidence:x -->\nold\n<!-- /evidence:x -->\nb\n"
        new = paired.between_markers(document, "x", "new")
        self.assertEqual(new, "a\n<!-- evidence:x -->\nnew\n<!-- /evidence:x -->\nb\n")
        self.assertEqual(paired.between_markers(new, "x", "new"), new)
        for broken in (document * 2, "a", document.replace("/evidence", "evidence")):
            with self.assertRaises(KeyError):
                paired.between_markers(broken, "x", "new")


class Runs(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.at = pathlib.Path(folder.name)
        self.program = self.at / "clasp"
        self.program.write_text(FAKE.format(python=sys.executable))
        self.program.chmod(self.program.stat().st_mode | stat.S_IXUSR)
        self.document = self.at / "results.md"
        self.document.write_text("".join(f"<!-- evidence:{name} -->\n<!-- /evidence:{name} -->\n" for name in ("main", "prompts", "photos", "demo")))

    def run_it(self, *more):
        words = [self.at / "out", "--clasp", self.program, "--write", self.document, *more]
        with contextlib.redirect_stderr(io.StringIO()) as said:
            status = evidence.main(list(map(str, words)))
        return status, said.getvalue()

    def calls(self):
        return (self.at / "calls.txt").read_text().splitlines()

    def new_calls(self, work):
        """How often `work` called the program, by the first word, and what it returned."""
        before = len(self.calls()) if (self.at / "calls.txt").exists() else 0
        result = work()
        return collections.Counter(call.split()[0] for call in self.calls()[before:]), result

    def rebuild(self):
        """The program as if it were built from another commit."""
        self.program.write_text(self.program.read_text().replace("0123456789ab", "ba9876543210"))

    def without_evaluations(self):
        """Spares the calls of `clasp eval` where only what is evaluated matters."""
        found = {key: dict.fromkeys(evidence.FROZEN, 0.1) for key in ("metrics", "chance")}
        patch = mock.patch.object(evidence.Evidence, "frozen", return_value=found)
        patch.start()
        self.addCleanup(patch.stop)

    def photos(self):
        """A folder of photos as far as the scripts read it themselves."""
        data = self.at / "photos"
        (data / "pets/images").mkdir(parents=True)
        empty = {"images": [{"id": 1, "file_name": "f_1.jpg", "width": 2, "height": 2}], "annotations": [], "categories": []}
        (data / "pets/instances_val.json").write_text(json.dumps(empty))
        (data / "pets/detections.json").write_text("[]")
        (data / "persons").mkdir()
        (data / "persons/a.tar").write_text("one")
        return data

    def copied_clip(self):
        """A copy of clasp-mini that a test can change."""
        copy = self.at / "mini" / evidence.CLIP.name
        shutil.copytree(evidence.CLIP.parent, copy.parent)
        patch = mock.patch.object(evidence, "CLIP", copy)
        patch.start()
        self.addCleanup(patch.stop)
        return copy

    def test_a_result_names_the_commit_of_the_program(self):
        # Not that of the checkout, from which another program may run.
        self.run_it("--tables", "main", "--arms", "dino", "--seeds", "0", "--steps", "4")
        result = json.loads((self.at / "out/main/dino/seed-0.json").read_text())
        self.assertEqual(result["made"]["commit"], "0123456")

    def test_a_recipe_is_the_same_with_other_comments(self):
        one, other, changed = (self.at / f"{name}.toml" for name in "abc")
        one.write_text("# Small.\n[run]\nsteps = 4\n")
        other.write_text("[run]\n# Few of them.\nsteps = 4 # enough\n\n")
        changed.write_text("[run]\nsteps = 5\n")
        digests = [evidence.recipe_digest(path) for path in (one, other, changed)]
        self.assertEqual(digests[0], digests[1])
        self.assertNotEqual(digests[0], digests[2])

    def test_existing_results_alone_make_a_table_that_counts_their_seeds(self):
        words = ["--tables", "main", "--arms", "dino", "clasp", "--steps", "4", "--seeds"]
        self.assertEqual(self.run_it(*words, "0", "1")[0], 0)
        (self.at / "out/main/dino/seed-1.json").unlink()
        before = self.calls()
        self.run_it(*words, "0", "1", "2", "--existing")
        self.assertEqual(self.calls(), before)
        text = self.document.read_text()
        self.assertIn("| DINO (`dino`, 1 of 2 seeds) | 10.00 |", text)
        self.assertIn("| CLASP (`clasp`) |", text)

    def test_a_table_has_paired_differences_and_a_second_run_runs_nothing(self):
        words = ["--tables", "main", "--arms", "dino", "clasp", "--seeds", "0", "1", "2", "--steps", "4"]
        self.assertEqual(self.run_it(*words)[0], 0)
        text = self.document.read_text()
        self.assertIn("| DINO (`dino`) | 11.00 (10.00–12.00) |", text)
        self.assertIn("| CLASP (`clasp`) | 31.00 (30.00–32.00) |", text)
        self.assertIn("| DINO | +20.00 (+20.00 to +20.00) ± 0.00 (✓) |", text)
        self.assertIn("| chance | 4.00 (4.00–4.00) |", text)
        prose = [line for line in text.splitlines() if line[:1] not in ("|", " ")]
        self.assertLessEqual(max(map(len, prose)), 100)
        self.assertIn("\n    python3 runs/evidence.py OUT --tables main --seeds 0 1 2 --steps 4", text)
        before = self.calls()
        self.assertEqual(len([call for call in before if call.startswith("synth")]), 3)
        self.assertEqual(self.run_it(*words)[0], 0)
        self.assertEqual(self.calls(), before)
        self.assertEqual(self.document.read_text(), text)

    def test_solider_pays_for_its_dino_stage(self):
        self.assertEqual(self.run_it("--tables", "main", "--arms", "solider", "--seeds", "0", "--steps", "5")[0], 0)
        runs = [call for call in self.calls() if call.startswith("pretrain")]
        self.assertEqual(["run.steps=2" in run for run in runs], [True, False])
        self.assertEqual(["run.steps=3" in run for run in runs], [False, True])
        self.assertIn("method=dino", runs[0])
        self.assertIn("dino-2/seed-0/backbone.safetensors", runs[1])

    def test_distillation_has_the_image_tower_as_its_teacher_and_no_labels(self):
        words = ["--tables", "main", "--arms", "clip-distill", "clasp", "--seeds", "0", "--steps", "4"]
        self.assertEqual(self.run_it(*words)[0], 0)
        [run] = [call for call in self.calls() if call.startswith("pretrain") and "clip-distill" in call]
        for setting in ("method=dino", "loss.dino_weight=0", "views.local=0", f'distillation.teacher="{self.at}/out/data/clip.safetensors"'):
            self.assertIn(f"--set {setting}", run)
        self.assertNotIn("data.labels", run)
        [made] = [call for call in self.calls() if call.startswith("import")]
        self.assertIn("--as clip-open", made)
        # A folder that was moved is the same: no path is among the settings.
        kept = json.loads((self.at / "out/runs/drawn/clip-distill-4/seed-0.json").read_text())
        self.assertNotIn(str(self.at), json.dumps(kept["settings"]))
        self.assertIn(f"| {evidence.ARMS['clip-distill'].what} |", self.document.read_text())

    def test_other_settings_are_refused(self):
        words = ["--tables", "main", "--arms", "clasp", "--seeds", "0"]
        self.assertEqual(self.run_it(*words, "--steps", "4")[0], 0)
        status, said = self.run_it(*words, "--steps", "5")
        self.assertEqual(status, 1)
        self.assertIn("expected settings", said)

    def test_results_of_another_clasp_mini_are_refused_and_kept_apart_from_what_is_made(self):
        words = ["--tables", "main", "--arms", "dino", "clasp", "--seeds", "0", "--steps", "4", "--results", self.at / "results"]
        self.assertEqual(self.run_it(*words)[0], 0)
        self.assertFalse((self.at / "out/main").exists())
        path = self.at / "results/main/clasp/seed-0.json"
        kept = json.loads(path.read_text())
        self.assertNotIn("clip", json.loads((self.at / "results/main/dino/seed-0.json").read_text())["settings"])
        kept["settings"]["clip"] = "another"
        path.write_text(json.dumps(kept))
        status, said = self.run_it(*words)
        self.assertEqual(status, 1)
        self.assertIn("'clip': 'another'", said)

    def test_an_arm_that_fails_leaves_the_others_and_says_why(self):
        status, said = self.run_it("--tables", "main", "--arms", "attributes-only", "clasp", "--seeds", "0")
        self.assertEqual(status, 1)
        self.assertIn("error: main, attributes-only", said)
        text = self.document.read_text()
        self.assertIn("not run: `clasp pretrain` ended with 1: error: loss.part_weight: unknown key", text)
        self.assertIn("| CLASP (`clasp`) | 30.00 |", text)

    def test_the_summary_has_the_arms_that_are_complete_with_one_decimal(self):
        self.document.write_text("<!-- evidence:summary -->\n<!-- /evidence:summary -->\n")
        words = ["--seeds", "0", "1", "--steps", "4"]
        with contextlib.redirect_stdout(io.StringIO()):
            out = [self.at / "out", "--clasp", self.program, "--tables", "main", "--arms", "dino", "clasp", *words]
            with contextlib.redirect_stderr(io.StringIO()):
                self.assertEqual(evidence.main(list(map(str, out))), 0)
        before = self.calls()
        self.assertEqual(self.run_it("--tables", "summary", *words)[0], 0)
        self.assertEqual(self.calls(), before)
        text = self.document.read_text()
        status, said = self.run_it("--tables", "summary", "--steps", "4")
        self.assertEqual((status, self.document.read_text(), self.calls()), (1, text, before))
        self.assertIn("which has not all seeds of CLASP: 0, 1, 2, 3, 4", said)
        self.assertIn("| chance | 4.0 |", text)
        self.assertIn("| **CLASP** | 30.5 (30.0–31.0) |", text)
        self.assertNotIn("SOLIDER", text)

    def test_the_own_prompt_is_held_against_the_mean_of_the_others(self):
        self.assertEqual(self.run_it("--tables", "prompts", "--arms", "clasp", "--seeds", "0", "1", "2")[0], 0)
        text = self.document.read_text()
        self.assertIn("| part prompt | 31.00 (30.00–32.00) | 31.00 (30.00–32.00) | **36.00 (35.00–37.00)** |", text)
        gain = "+5.00 (+5.00 to +5.00) ± 0.00 (✓)"
        self.assertIn(f"| own minus shuffled | {gain} | {gain} | {gain} | {gain} |", text)
        self.assertIn("| own prompt best | 3 of 3 seeds | 3 of 3 seeds |", text)

    def test_equal_time_gives_a_cheap_arm_more_steps(self):
        one = evidence.Evidence(evidence.parse([str(self.at / "out")]))
        each = lambda fixed, step: {0: {"fixed": fixed, "each_step": step}, 1: {"fixed": fixed, "each_step": step}}
        one.main = lambda arms, seeds, steps: {"clasp": each(20.0, 2.0), "dino": each(0.0, 1.0)}
        self.assertEqual(one.equal_time(["dino", "clasp"], [0, 1], 500), {"dino": 1020, "clasp": 500})
        kept = json.loads((self.at / "out/compute/steps.json").read_text())
        self.assertEqual(kept, {"dino": 1020, "clasp": 500})

    def test_photos_compare_fresh_weights_with_pre_trained_ones(self):
        words = ["--tables", "photos", "--data", self.photos(), "--arms", "fresh", "clasp", "--seeds", "0", "1", "2"]
        status, said = self.run_it(*words)
        self.assertEqual(status, 0, said)
        text = self.document.read_text()
        self.assertIn("| random weights (`fresh`) | 20.00 (20.00–20.00) |", text)
        self.assertIn("| random weights | +30.00 (+30.00 to +30.00) ± 0.00 (✓) |", text)
        calls = [call for call in self.calls() if call.startswith("finetune")]
        self.assertEqual((len(calls), sum("--init" in call for call in calls)), (36, 18))
        self.assertEqual(len({call.split("--init ")[1].split()[0] for call in calls if "--init" in call}), 3)

    def test_a_backbone_is_made_anew_where_something_else_made_it(self):
        self.without_evaluations()
        data, clip = self.photos(), self.copied_clip()
        folders, more = iter(range(99)), []

        def made():
            # Another folder of results each time, so that only the backbones and labels in OUT can be reused.
            words = ["--tables", "photos-frozen", "--data", data, "--arms", "solider", "clasp", "--seeds", "0", "--steps", "4"]
            words += ["--results", self.at / f"results-{next(folders)}"]
            # The document has no markers of this table.
            with mock.patch.object(evidence, "write_table"):
                calls, (status, said) = self.new_calls(lambda: self.run_it(*words, *more))
            self.assertEqual(status, 0, said)
            return calls["label"], calls["pretrain"]

        self.assertEqual(made(), (2, 3))
        changes = {
            "photos": (lambda: (data / "persons/a.tar").write_text("two"), (2, 3)),
            "program": (self.rebuild, (2, 3)),
            "clasp-mini": (lambda: clip.write_bytes(clip.read_bytes() + b"\0"), (1, 0)),
            "labels": (lambda: (self.at / "out/data/labels-photos/a").write_text("other"), (0, 1)),
            # DINO is other too, whose features give the k-means labels.
            "set": (lambda: more.extend(["--set", "loss.temperature=0.2"]), (1, 3)),
        }
        for what, (change, expected) in changes.items():
            with self.subTest(what):
                self.assertEqual(made(), (0, 0))
                change()
                self.assertEqual(made(), expected)
        with mock.patch.object(evidence, "recipe_digest", return_value="another"):
            self.assertEqual(made(), (0, 3))
            self.assertEqual(made(), (0, 0))

    def test_the_image_tower_is_that_of_the_clasp_mini_of_now(self):
        self.without_evaluations()
        clip = self.copied_clip()
        folders = iter(range(99))

        def made():
            words = ["--tables", "main", "--arms", "clip-frozen", "clip-distill", "--seeds", "0", "--results", self.at / f"r{next(folders)}"]
            calls, (status, said) = self.new_calls(lambda: self.run_it(*words))
            self.assertEqual(status, 0, said)
            return calls["import"]

        self.assertEqual((made(), made()), (1, 0))
        clip.write_bytes(clip.read_bytes() + b"\0")
        self.assertEqual((made(), made()), (1, 0))
        (self.at / "out/data/clip.safetensors").unlink()
        self.assertEqual((made(), made()), (1, 0))

    def test_a_backbone_whose_making_was_interrupted_is_not_taken_for_the_one_before(self):
        self.without_evaluations()
        words = ["--tables", "main", "--arms", "dino", "--seeds", "0", "--steps", "4", "--results"]
        self.assertEqual(self.run_it(*words, self.at / "r0")[0], 0)
        # Another training begins in the folder and ends with an error.
        self.assertEqual(self.run_it(*words, self.at / "r1", "--set", "loss.part_weight=0")[0], 1)
        calls, (status, _) = self.new_calls(lambda: self.run_it(*words, self.at / "r2"))
        self.assertEqual((status, calls["pretrain"]), (0, 1))

    def test_an_arm_without_steps_has_no_equal_time_and_the_others_continue(self):
        self.document.write_text("<!-- evidence:compute -->\n<!-- /evidence:compute -->\n")
        words = ["--tables", "compute", "--arms", "initialization", "clip-frozen", "dino", "clasp", "--seeds", "0", "--steps", "4"]
        # Then with the steps that the first has kept.
        for _ in range(2):
            status, said = self.run_it(*words)
            self.assertEqual(status, 1)
            for arm in ("initialization", "clip-frozen"):
                self.assertIn(f"error: compute, {arm}: expected an arm that is trained", said)
            self.assertEqual(said.count("error: "), 2)
            text = self.document.read_text()
            self.assertIn("| the network before the first step (`initialization`) | not run: expected an arm that is trained", text)
            self.assertIn("| DINO (`dino`) | 10.00 |", text)
            self.assertIn("| CLASP (`clasp`) | 30.00 |", text)

    def test_a_fine_tuning_is_reused_only_for_the_same_command_data_and_weights(self):
        data, init, folder = self.at / "data", self.at / "backbone", self.at / "run"
        images = self.at / "images"
        for one in (data, init, images):
            one.mkdir()
        (images / "a.png").write_text("a")
        (data / "images").symlink_to(images)
        (init / "backbone.safetensors").write_text("0.1")
        (init / "metrics.jsonl").write_text("")
        more = {}

        def made(init=init):
            work = lambda: finetune.run(str(self.program), folder, "reid", data, init, 0, more)
            with contextlib.redirect_stderr(io.StringIO()):
                calls, rows = self.new_calls(work)
            self.assertEqual(rows[-1][1]["eval/mAP"], 0.5 if init else 0.2)
            return calls["finetune"]

        self.assertEqual(made(), 1)
        changes = {
            "data behind a link": lambda: (images / "a.png").write_text("b"),
            "weights": lambda: (init / "backbone.safetensors").write_text("0.2"),
            "settings": lambda: more.update({"run.epochs": 3}),
            "program": self.rebuild,
            "interrupted": (folder / "made.json").unlink,
        }
        for what, change in changes.items():
            with self.subTest(what):
                self.assertEqual(made(), 0)
                change()
                self.assertEqual(made(), 1)
        # Other files of the folder of a run are not read.
        (init / "metrics.jsonl").write_text("more")
        self.assertEqual(made(), 0)
        self.assertEqual(made(None), 1)
        with mock.patch.object(finetune, "recipe_digest", return_value="another"):
            self.assertEqual(made(None), 1)

    def test_photos_are_fine_tuned_anew_from_another_backbone(self):
        words = ["--tables", "photos", "--data", self.photos(), "--arms", "clasp", "--seeds", "0", "--results"]
        made = lambda *more: self.new_calls(lambda: self.run_it(*words, *more))[0]["finetune"]
        self.assertEqual(made(self.at / "r0"), 6)
        self.assertEqual(made(self.at / "r1"), 0)
        self.assertEqual(made(self.at / "r2", "--set", "loss.temperature=0.2"), 6)

    def test_the_demo_leaves_ranges_beside_the_document(self):
        self.assertEqual(self.run_it("--tables", "demo", "--seeds", "0", "1", "2")[0], 0)
        self.assertIn("| DINO | 11.00 (10.00–12.00) |", self.document.read_text())
        ranges = json.loads((self.at / "demo-ranges.json").read_text())
        self.assertEqual((ranges["people"], ranges["steps"], ranges["seeds"]), (2400, 500, 3))
        self.assertEqual(ranges["rows"]["CLASP"]["reid"], [11.0, 10.0, 12.0])
        self.assertEqual(ranges["rows"]["chance"]["pose"], [3.0, 3.0, 3.0])

    def test_a_document_without_markers_is_an_error(self):
        self.document.write_text("nothing")
        with self.assertRaisesRegex(SystemExit, "expected one pair of markers"):
            self.run_it("--tables", "main", "--arms", "clasp", "--seeds", "0")


if __name__ == "__main__":
    unittest.main()
