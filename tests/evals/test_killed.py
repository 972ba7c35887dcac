"""Killed at any moment and run again, an evaluation ends in the bytes of one that nobody disturbed, and asks little
twice.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace

import pytest

from tercet import pipeline, stage
from tercet.evals import run
from tercet.pipeline import read_mirror
from tercet.recipe import EvalSpec, Recipe, load
from tercet.records import TaskCard
from tercet.rows import Sampling
from tercet.stage import StageJob
from tercet.store import Context, Draft, Store

KILLS = 20 if os.environ.get("TERCET_ATTACK") == "full" else 6
# Children of this server are born with everything imported, so that a kill costs no start.
SERVER = multiprocessing.get_context("forkserver")
RECIPE = """
name = "killed"
seed = 17
[base]
model = "tiny:seed=3"
[stage.words]
kind = "synth"
generator = "words@1"
rows = 90
split = "test"
[stage.constraints]
kind = "synth"
generator = "constraints@1"
rows = 90
split = "test"
[stage.talk]
kind = "synth"
generator = "talk@1"
rows = 30
split = "test"
[stage.facts]
kind = "synth"
generator = "facts@1"
rows = 30
split = "test"
[stage.benchmark]
kind = "benchmark"
tasks = ["talk@1", "words@1", "constraints@1", "facts@1"]
items = ["words", "constraints", "talk", "facts"]
[stage.asked]
kind = "benchmark"
tasks = ["alpacaeval@1"]
[placement]
threads = 1
gen_rows = 8
"""
EVALUATIONS = {
    "float32": 'model = "base"\nbenchmark = "benchmark"\ndtype = "float32"\nmax_new_tokens = 8',
    "bfloat16": 'model = "base"\nbenchmark = "benchmark"\ndtype = "bfloat16"\nmax_new_tokens = 8\ntemperature = 0.7',
    "judged": 'model = "base"\nbenchmark = "asked"\njudge = "base"\nmax_new_tokens = 2\nrepeats = 2\ntemperature = 1.0',
}
ASKED = 132
MIRROR = {
    "github:tatsu-lab/alpaca_eval/results/gpt4_1106_preview/model_outputs.json": "alpaca.json",
    "hf:tatsu-lab/alpaca_eval/instruction_difficulty.csv": "difficulty.csv",
}


@dataclass
class Workshop:
    """A store with everything an evaluation needs, and the recipe of evaluations that run twice: disturbed, and not."""

    folder: Path

    @property
    def store(self) -> Store:
        return Store(self.folder / "runs")

    @property
    def recipe(self) -> Recipe:
        return load(self.folder / "recipe.toml")

    @property
    def mirror(self) -> dict[str, str]:
        return read_mirror(self.folder / "mirror.toml")

    def draft(self, name: str) -> Draft:
        """The open draft of a stage, with its job."""
        node = pipeline.graph(self.recipe, self.store, self.mirror)[name]
        draft = self.store.draft(name, node.key)
        draft.open()
        inputs = {need: str(self.store.open(need).path) for need in node.inputs}
        StageJob.of(self.recipe, name, node, inputs, self.mirror).write(draft)
        return draft

    def make(self, name: str) -> None:
        """Make an artifact in this process."""
        draft = self.draft(name)
        recipe = self.recipe
        track = SimpleNamespace(progress=lambda done, total, note="": None)
        context = Context(name, recipe.seed_of(name), recipe, draft.work, track, self.mirror, lambda *given: None)
        inputs = {need: self.store.open(need) for need in recipe.needs(name)}
        module = __import__(recipe.spec(name).module, fromlist=["run"])
        draft.commit(
            StageJob.read(draft.path).identity, module.run(recipe.spec(name), inputs, draft.payload, context), 0.0
        )

    def start(self, draft: Draft) -> BaseProcess:
        """The stage in a process of its own."""
        child = SERVER.Process(target=_stage, args=(str(draft.path),))
        child.start()
        return child


def _stage(draft: str) -> None:
    sys.exit(stage.main(["--draft", draft]))


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory):
    SERVER.set_forkserver_preload(
        ["tercet.stage", "tercet.evals.run", "tercet.evals.llm_judged", "tercet.models.generate"]
    )
    folder = tmp_path_factory.mktemp("workshop")
    evaluations = "".join(
        f'[stage.{name}{twin}]\nkind = "eval"\n{text}\n'
        for name, text in EVALUATIONS.items()
        for twin in ("", "-undisturbed", "-cut")
    )
    (folder / "recipe.toml").write_text(RECIPE + evaluations, encoding="utf-8")
    (folder / "mirror.toml").write_text("[mirror]\n" + "".join(f'"{k}" = "{v}"\n' for k, v in MIRROR.items()))
    write_public_rows(folder)
    found = Workshop(folder)
    for name in ("base", "words", "constraints", "talk", "facts", "benchmark", "asked"):
        found.make(name)
    yield found
    subprocess.run(["chmod", "-R", "u+w", str(folder)], check=True)


def write_public_rows(folder: Path) -> None:
    """Rows in the layout of AlpacaEval, more than are judged at once; tiny models compare, but write no verdict."""
    rows = [
        {"dataset": f"set{i % 3}", "instruction": f"Describe {i}.", "output": "It is " + "so " * (i % 7)}
        for i in range(ASKED)
    ]
    (folder / "alpaca.json").write_text(json.dumps(rows))
    table = "".join(f"{i},{i % 5 - 2.0}\n" for i in range(ASKED))
    (folder / "difficulty.csv").write_text("index,instruction_difficulty\n" + table)


def lines_of(file: Path) -> list[tuple[str, str]]:
    """Task and item of every whole line, in the order they were written."""
    whole = file.read_bytes() if file.is_file() else b""
    rows = map(json.loads, whole[: whole.rfind(b"\n") + 1].splitlines())
    return [(row["task"], row["item"]) for row in rows]


def kill_when(child: BaseProcess, file: Path, enough: Callable[[list[tuple[str, str]]], bool], extra: float) -> None:
    """SIGKILL a stage a moment after it has written enough lines."""
    deadline, size = time.monotonic() + 120, -1
    while True:
        now = file.stat().st_size if file.is_file() else 0
        if now != size and enough(lines_of(file)):
            break
        size = now
        assert child.is_alive(), "ended too early"
        assert time.monotonic() < deadline, "the evaluation makes no progress"
        time.sleep(0.001)
    time.sleep(extra)
    assert child.is_alive(), "ended too early"
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert child.exitcode == -signal.SIGKILL


def finish(workshop: Workshop, name: str) -> Path:
    """Let the command line make what is left of an evaluation; its payload."""
    command = ["run", str(workshop.folder / "recipe.toml"), "--only", name, "--store", str(workshop.store.root)]
    command += ["--mirror", str(workshop.folder / "mirror.toml")]
    done = subprocess.run([sys.executable, "-m", "tercet", *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return workshop.store.open(name).payload


def run_through(workshop: Workshop, name: str) -> Path:
    """Run a stage to its end in a process of its own, from what its draft holds; its payload."""
    if not any(artifact.name == name for artifact in workshop.store):
        child = workshop.start(workshop.draft(name))
        child.join()
        assert child.exitcode == 0
    return workshop.store.open(name).payload


def bytes_of(payload: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in payload.iterdir()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_killed_at_random_moments_an_evaluation_ends_in_the_same_bytes(workshop, dtype):
    chance = random.Random(f"kills {dtype}")
    draft = workshop.draft(dtype)
    file = draft.work / "results.jsonl"
    groups: dict[str, int] = {}
    for task, _ in (whole := lines_of(run_through(workshop, f"{dtype}-undisturbed") / "results.jsonl")):
        groups[task] = groups.get(task, 0) + 1
    seen: list[tuple[str, str]] = []
    for moment in sorted(chance.sample(range(8, len(whole) - 40, 8), KILLS)):
        before = len(seen)
        kill_when(
            workshop.start(draft),
            file,
            lambda lines, moment=moment, before=before: len(lines) > before and len(set(lines)) >= moment,
            chance.uniform(0.0, 0.01),
        )
        lines = lines_of(file)
        assert lines[:before] == seen, "finished lines were lost"
        committed = {task for task, size in groups.items() if len({key for key in seen if key[0] == task}) == size}
        kept = {key for key in seen if key[0] in committed or (dtype == "float32" and key[0].startswith(("w", "c")))}
        assert not kept & set(lines[before:]), "asked again what was finished"
        seen = lines
    assert bytes_of(finish(workshop, dtype)) == bytes_of(workshop.store.open(f"{dtype}-undisturbed").payload)


def test_killed_while_it_is_judged_an_evaluation_ends_in_the_same_bytes(workshop):
    chance = random.Random("judged")
    draft = workshop.draft("judged")
    answers, verdicts = draft.work / "results.jsonl", draft.work / "judged.jsonl"
    calm = run_through(workshop, "judged-undisturbed")
    written = None
    for moment in (1, 2, 100):
        before = len(lines_of(verdicts))
        kill_when(
            workshop.start(draft),
            verdicts,
            lambda lines, moment=moment, before=before: len(lines) >= max(moment, before + 1),
            chance.uniform(0.0, 0.002),
        )
        assert written in (None, answers.read_bytes()), "a finished answer was asked again"
        written = answers.read_bytes()
    payload = finish(workshop, "judged")
    assert bytes_of(payload) == bytes_of(calm)
    scores = json.loads((payload / "scores.json").read_text())
    assert scores["alpacaeval@1"]["preference"]["lc_win_rate"] == pytest.approx(100 * scores["alpacaeval@1"]["score"])


@pytest.mark.parametrize("name", EVALUATIONS)
def test_wherever_a_group_was_cut_short_an_evaluation_ends_in_the_same_bytes(workshop, name):
    calm = run_through(workshop, f"{name}-undisturbed")
    lines = (calm / "results.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    chance = random.Random(name)
    kept = [line for line in lines if chance.random() < 0.6]
    work = workshop.draft(f"{name}-cut").work
    (work / "results.jsonl").write_text("".join(lines if name == "judged" else kept), encoding="utf-8")
    if name == "judged":
        (work / "judged.jsonl").write_text("".join(kept), encoding="utf-8")
    assert bytes_of(run_through(workshop, f"{name}-cut")) == bytes_of(calm)


@pytest.mark.parametrize(
    ("metric", "changes", "kept"),
    [
        ("accuracy", {"dtype": "float32"}, True),
        ("accuracy", {}, False),
        ("choice", {"dtype": "float32"}, False),  # the last digit of a log-probability depends on its batch
        ("bpb", {"dtype": "float32"}, False),
    ],
)
def test_single_answers_are_kept_only_where_no_batch_can_change_them(tmp_path, metric, changes, kept):
    spec = EvalSpec(model="base", benchmark="benchmark", **changes)
    card = TaskCard("t@1", metric=metric)
    inputs = {"base": SimpleNamespace(payload=tmp_path)}
    assert run._batch_free(spec, card, inputs) is kept
    warm = TaskCard("t@1", metric=metric, sampling=Sampling(temperature=0.8))
    assert not run._batch_free(spec, warm, inputs)
    engine = spec.model_copy(update={"engine": "vllm"})  # what it has in a batch is chance
    assert run._batch_free(engine, warm, inputs)
    assert not run._batch_free(engine, TaskCard("t@1", metric=metric, environment={"name": "game"}), inputs)
    (tmp_path / "endpoint.json").write_text("{}")
    assert run._batch_free(spec, warm, inputs)
