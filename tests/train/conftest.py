"""A store whose inputs are already made, so that a training stage can be run at once: short rows, few pairs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tercet import pipeline
from tercet.recipe import Recipe
from tercet.rows import Message, Pair, Row, Unpaired, write_table
from tercet.store import Context, Store
from tercet.track import Tracker

RECIPE = """
name = "sft-data"
seed = 5

[base]
model = "tiny:seed=3"

[stage.sft-data]
kind = "synth"
generator = "words@1"
rows = 24

[stage.preference-data]
kind = "on_policy_pairs"
model = "base"
prompts = "sft-data"

[stage.labelled]
kind = "unpaired_mix"
sources = [{ stage = "preference-data" }]

[stage.sft]
kind = "sft"
model = "base"
rows = "sft-data"
learning_rate = 1e-3
batch = 8
num_epochs = 8
max_length = 512

[stage.dpo]
kind = "dpo"
model = "base"
pairs = "preference-data"
learning_rate = 1e-3
batch = 4
num_epochs = 6
max_length = 512

[stage.kto]
kind = "dpo"
loss = "kto"
beta = 0.1
model = "base"
pairs = "labelled"
learning_rate = 1e-3
batch = 5
num_epochs = 6
max_length = 512

[stage.reward]
kind = "reward_model"
model = "base"
pairs = "preference-data"
learning_rate = 1e-3
batch = 4
num_epochs = 5
max_length = 512
holdout = 0.25

[stage.rlvr]
kind = "grpo"
model = "base"
prompts = "sft-data"
learning_rate = 1e-3
rounds = 16
batch = 6
num_generations = 8
max_new_tokens = 40
max_length = 512

[stage.lagged]
kind = "grpo"
model = "base"
prompts = "sft-data"
learning_rate = 1e-3
rounds = 16
batch = 6
num_generations = 4
max_new_tokens = 24
max_length = 512
lag = 2

[stage.ppo]
kind = "ppo"
model = "base"
value = "base"
prompts = "sft-data"
learning_rate = 1e-3
rounds = 12
batch = 6
num_generations = 2
passes = 2
max_new_tokens = 24
max_length = 512

[placement]
threads = 1
micro_tokens = 256
checkpoint_seconds = 0
"""

LOWERCASE = json.dumps({"func_name": "validate_lowercase"})
NO_COMMAS = json.dumps({"func_name": "validate_no_commas"})
WORDS = ["amber", "basil", "cedar", "delta", "ember", "flint", "grove", "heron", "inlet", "juniper", "kelp", "lotus"]


def prepared(number: int) -> Row:
    """A short conversation, every third with two answers, whose constraint a random model follows by luck."""
    word = WORDS[number % len(WORDS)]
    turns = [Message("user", f"{word} {'and more ' * (number % 4)}{number}"), Message("assistant", f"{word} {number}.")]
    if number % 3 == 0:
        turns = [*turns, Message("user", "again"), Message("assistant", word * (1 + number % 5))]
    reference = LOWERCASE if number % 2 else NO_COMMAS
    return Row(f"r{number}", tuple(turns), f"source{number % 2}", "play", "tulu_if@1", reference, word)


def pair(number: int) -> Pair:
    """A preference for lower case."""
    word = WORDS[number % len(WORDS)]
    prompt = (Message("user", f"say {word} {number}"),)
    chosen, rejected = f"{word} {'yes ' * (number % 3)}", f"{word.upper()} no{'!' * (number % 4)}"
    ends = ((*prompt, Message("assistant", text)) for text in (chosen, rejected))
    return Pair(f"p{number}", *ends, source="source0")


def labelled(number: int) -> Unpaired:
    """One answer of every pair and one more of the first four; 12 are good, 8 bad."""
    made, good = pair(number % 16), number % 5 in (0, 2, 4)
    return Unpaired(f"u{number}", made.chosen if good else made.rejected, "source0", good=good)


@dataclass
class Workspace:
    """A store with the inputs of every training stage of `RECIPE`."""

    store: Store
    recipe_file: Path

    def copy(self, folder: Path) -> Workspace:
        """The same with a store of its own, as it is now."""
        shutil.copytree(self.store.root, folder)
        return Workspace(Store(folder), self.recipe_file)

    def recipe(self, **changes: Any) -> Recipe:
        """The recipe; `sft={"batch": 4}` changes a stage or adds one, `placement={...}` changes the placement."""
        document = tomllib.loads(RECIPE)
        for name, values in changes.items():
            table = document["placement"] if name == "placement" else document["stage"].setdefault(name, {})
            table.update(values)
        return Recipe.model_validate(document)

    def run_stage(self, name: str, out: Path, **changes: Any) -> dict[str, float]:
        """Run one stage in this process, its payload to `out` and everything else beside it; returns its metrics."""
        recipe = self.recipe(**changes)
        draft = out.with_name(out.name + ".draft")
        for folder in (out, draft / "work"):
            folder.mkdir(parents=True, exist_ok=True)
        inputs = {need: self.store.open(need) for need in recipe.needs(name)}
        context = Context(
            name=name,
            seed=recipe.seed_of(name),
            recipe=recipe,
            work=draft / "work",
            track=Tracker(draft),
            mirror={},
            open_model=lambda folder, dtype, engine="local": None,
        )
        module = __import__(recipe.spec(name).module, fromlist=["run"])
        return module.run(recipe.spec(name), inputs, out, context)


@pytest.fixture(scope="session")
def filled_workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The store that every `workspace` copies. Read-only."""
    from tercet.models import base_model, tiny

    folder = tmp_path_factory.mktemp("workspace")
    (folder / "recipe.toml").write_text(RECIPE, encoding="utf-8")
    found = Workspace(Store(folder / "runs"), folder / "recipe.toml")
    nodes = pipeline.graph(found.recipe(), found.store)

    def base(out: Path) -> None:
        tiny.build(out, 3)
        base_model.finish(out)

    inputs: dict[str, Callable[[Path], None]] = {
        "base": base,
        "sft-data": lambda out: write_table(out / "rows.parquet", [prepared(i) for i in range(24)]),
        "preference-data": lambda out: write_table(out / "pairs.parquet", [pair(i) for i in range(16)]),
        "labelled": lambda out: write_table(out / "unpaired.parquet", [labelled(i) for i in range(20)]),
    }
    for name, make in inputs.items():
        draft = found.store.draft(name, nodes[name].key)
        draft.open()
        make(draft.payload)
        draft.commit(nodes[name], {}, 0.0)
    return found


@pytest.fixture
def workspace(filled_workspace: Workspace, tmp_path: Path):
    """A store of the test's own with the inputs made."""
    yield filled_workspace.copy(tmp_path / "runs")
    subprocess.run(["chmod", "-R", "u+w", str(tmp_path)], check=True)


@pytest.fixture
def context(workspace: Workspace, tmp_path: Path):
    """Make what a stage is run with, `context(name, **placement)`; its draft is `tmp_path / name`."""

    def context(name: str = "draft", **placement) -> Context:
        (tmp_path / name / "work").mkdir(parents=True, exist_ok=True)
        return Context(
            name="sft",
            seed=1,
            recipe=workspace.recipe(placement={"checkpoint_seconds": 1e9} | placement),
            work=tmp_path / name / "work",
            track=Tracker(tmp_path / name),
            mirror={},
            open_model=lambda folder, dtype, engine="local": None,
        )

    return context


@dataclass
class Launch:
    """`python -m tercet run --only STAGE` in its own process."""

    process: subprocess.Popen[bytes]
    draft: Path
    output: Path  # what the pipeline wrote to the terminal

    def progress(self) -> int:
        """The last step in metrics.jsonl."""
        path = self.draft / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        return json.loads(lines[-1])["step"] if lines and lines[-1].endswith("}") else 0

    def below(self) -> list[int]:
        """Every process below the pipeline, nearest first."""
        return _descendants(self.process.pid)

    def kill(self) -> None:
        """SIGKILL the stage's processes, then the pipeline; none of them can clean up."""
        for pid in self.below():
            _kill(pid)
        _kill(self.process.pid)
        self.process.wait()


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _descendants(pid: int) -> list[int]:
    below: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
            below.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(entry.name))
    found = list(below.get(pid, []))
    for child in found:
        found.extend(below.get(child, []))
    return found


@pytest.fixture
def launch(tmp_path: Path):
    """Start a stage through the command line; what is still running at the end is killed."""
    started: list[Launch] = []

    def launch(workspace: Workspace, stage: str, *sets: str) -> Launch:
        from tercet.recipe import load

        recipe = load(workspace.recipe_file, sets)
        key = pipeline.graph(recipe, workspace.store)[stage].key
        options = [part for text in sets for part in ("--set", text)]
        output = tmp_path / f"{stage}.txt"
        command = [sys.executable, "-m", "tercet", "run", str(workspace.recipe_file), "--only", stage]
        command += ["--store", str(workspace.store.root), *options]
        with open(output, "ab") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        started.append(Launch(process, workspace.store.draft(stage, key).path, output))
        return started[-1]

    yield launch
    for one in started:
        if one.process.poll() is None:
            one.kill()
