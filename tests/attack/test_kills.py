"""A whole recipe, killed again and again, while some of the files it leaves are cut short, emptied or lose a bit.

The promise: every stage ends in the bytes of a run that nobody disturbed. Damage is repaired, or stops the run with a
message that names what to remove; no stage ends in other bytes in silence.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from tests.attack.conftest import SERVER, until
from tests.attack.scale import times

from tercet import pipeline, stage
from tercet.faults import faults
from tercet.launch import making
from tercet.launch.ending import StageError
from tercet.recipe import Recipe
from tercet.store import Store

TRAINING = {"learning_rate": 1e-3, "max_length": 512}
ROUNDS = {"prompts": "prompts", "rounds": 3, "batch": 2, "num_generations": 2, "max_new_tokens": 8}
RECIPE: dict[str, Any] = {
    "name": "kills",
    "seed": 3,
    "base": {"model": "tiny:seed=3"},
    "placement": {"threads": 1, "micro_tokens": 1024, "checkpoint_seconds": 0},
    "stage": {
        "judge": {"kind": "model", "model": "tiny:seed=4"},
        "rows": {"kind": "synth", "generator": "words@1", "rows": 12},
        "prompts": {"kind": "synth", "generator": "constraints@1", "rows": 12},
        "test": {"kind": "synth", "generator": "words@1", "split": "test", "rows": 40},
        "benchmark": {"kind": "benchmark", "tasks": ["words@1"], "items": ["test"]},
        "mixed": {"kind": "mix", "sources": [{"stage": "rows"}], "against": ["benchmark"]},
        "written": {
            "kind": "on_policy_pairs",
            "model": "base",
            "prompts": "prompts",
            "num_generations": 0,
            "max_new_tokens": 8,
        },
        "pairs": {"kind": "pair_mix", "sources": [{"path": "", "adapter": "prompt_pair"}]},
        "unpaired": {"kind": "unpaired_mix", "sources": [{"stage": "pairs"}]},
        "sft": {"kind": "sft", "model": "base", "rows": "mixed", "batch": 3, "num_epochs": 3, **TRAINING},
        "dpo": {"kind": "dpo", "model": "sft", "pairs": "pairs", "batch": 2, "num_epochs": 3, **TRAINING},
        "reward": {"kind": "reward_model", "model": "sft", "pairs": "pairs", "batch": 2, "holdout": 0.25, **TRAINING},
        "grpo": {"kind": "grpo", "model": "dpo", **ROUNDS, **TRAINING},
        "lagged": {"kind": "grpo", "model": "dpo", "lag": 1, **ROUNDS, **TRAINING},
        "ppo": {"kind": "ppo", "model": "dpo", "value": "reward", "passes": 2, **ROUNDS, **TRAINING},
        "eval": {"kind": "eval", "model": "grpo", "benchmark": "benchmark", "max_new_tokens": 4},
        "page": {"kind": "report", "evals": ["eval"]},
    },
}
KILLS, DAMAGED = 10, 2  # in one round
WHERE = ("checkpoint", "journal", "cache", "artifact", "draft")
SAID = re.compile(r"damaged|torn|altered|made again|begin|Traceback|Error")
REPORT = os.environ.get("TERCET_KILLS", os.devnull)  # a file for what was tried


class Works:
    """A store and the recipe that is run in it, each time by a process with everything imported."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        words = ("amber", "basil", "cedar", "delta")
        pairs = [{"prompt": f"say {word}", "chosen": word, "rejected": word.upper()} for word in words]
        (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
        self.folder, self.store, self.log = folder, Store(folder / "runs"), folder / "said.txt"
        self.log.touch()
        document = json.loads(json.dumps(RECIPE))
        document["stage"]["pairs"]["sources"][0]["path"] = str(folder / "pairs.jsonl")
        self.recipe = Recipe.model_validate(document)

    def start(self) -> BaseProcess:
        """Run what is missing."""
        child = SERVER.Process(target=_run, args=(self.recipe, self.store, self.log))
        child.start()
        return child

    def finish(self) -> dict[str, str]:
        """Run to the end, with what a message says to remove removed; the digests by stage."""
        for _ in range(6):
            child = self.start()
            child.join(240)
            if child.exitcode == 0:
                # The page tells how long the stages took, so its bytes differ.
                return {one.name: one.record["digest"] for one in self.store if one.kind != "report"}
            self.removed(self.log.read_text().splitlines()[-3:])
        raise AssertionError(self.log.read_text())

    def removed(self, lines: list[str]) -> None:
        """Remove the file or folder of this store that the last message names."""
        named = re.findall(rf"{re.escape(str(self.store.root))}[^\s,:;)]+", "\n".join(lines))
        assert named, f"the run stopped with no file named: {lines}"
        path = max((Path(name) for name in named if Path(name).exists()), key=lambda one: len(one.parts))
        subprocess.run(["chmod", "-R", "u+w", str(path)], check=True)
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _run(recipe: Recipe, store: Store, log: Path) -> None:
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)

    def here(draft, _recipe, _lock, _tick, **_told) -> int:  # without the start of another interpreter
        (draft.path / "result.json").unlink(missing_ok=True)
        (draft.path / "log.txt").touch()
        return stage.main(["--draft", str(draft.path)])

    making.supervise = here
    try:
        pipeline.run(recipe, store)
    except (StageError, ValueError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(1)
    sys.exit(0)


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """The digests of a run that nobody disturbs, and the seconds of its stages."""
    works = Works(tmp_path_factory.mktemp("kills") / "calm")
    digests = works.finish()
    yield digests, {one.name: float(one.record["seconds"]) for one in works.store}
    subprocess.run(["chmod", "-R", "u+w", str(works.folder)], check=True)


def places(root: Path) -> dict[str, list[Path]]:
    """The files that may be damaged, by what they are."""
    found: dict[str, list[Path]] = {kind: [] for kind in WHERE}
    for path in sorted(one for one in root.rglob("*") if one.is_file() and one.stat().st_size):
        first, *rest = path.relative_to(root).parts
        if first == ".cache":
            found["cache"].append(path)
        elif first.startswith(".draft-") and "checkpoints" in rest:
            found["checkpoint"].append(path)
        elif first.startswith(".draft-") and path.suffix == ".jsonl":
            found["journal"].append(path)
        elif first.startswith(".draft-") and rest[0] in ("job.json", "progress.json", "result.json"):
            found["draft"].append(path)
        elif not first.startswith(".") and rest[0] != "log.txt":
            found["artifact"].append(path)
    return {kind: files for kind, files in found.items() if files}


def damage(root: Path, path: Path, chance: random.Random) -> str:
    """Cut short, empty or flip a bit of one file; what was done."""
    whole, how = path.read_bytes(), chance.choice(("cut short", "emptied", "flipped", "flipped"))
    if how == "flipped":
        bit = chance.randrange(8 * len(whole))
        whole = whole[: bit // 8] + bytes([whole[bit // 8] ^ 1 << bit % 8]) + whole[bit // 8 + 1 :]
    else:
        whole = b"" if how == "emptied" else whole[: chance.randrange(len(whole))]
    mode = path.stat().st_mode
    path.chmod(0o644)
    path.write_bytes(whole)
    path.chmod(mode)
    return f"{path.relative_to(root)} {how}"


@pytest.mark.parametrize("number", range(times(10)))
def test_killed_and_damaged_a_recipe_ends_in_the_bytes_of_a_run_nobody_disturbed(calm, tmp_path, number):
    digests, seconds = calm
    chance, done, hit = random.Random(f"kills {number}"), [], Counter()
    works = Works(tmp_path / "works")
    order = list(pipeline.graph(works.recipe, works.store))
    for kill, target in enumerate(sorted(chance.sample(range(len(order)), KILLS)), 1):
        child, name = works.start(), order[target]
        until(lambda name=name: any(works.store.root.glob(f"*{name}-*")), child.is_alive, seconds=240)
        time.sleep(chance.uniform(0.0, 1.2) * seconds[name])
        child.kill()
        child.join()
        drafts = works.store.root.glob(".draft-*")
        hit.update([path.name.removeprefix(".draft-").rpartition("-")[0] for path in drafts] or ["between"])
        there, wanted = places(works.store.root), WHERE[(DAMAGED * number + len(done)) % len(WHERE)]
        if len(done) < DAMAGED and (wanted in there or KILLS - kill < DAMAGED - len(done)):
            done.append(
                damage(works.store.root, chance.choice(there.get(wanted) or next(iter(there.values()))), chance)
            )
    found = works.finish()
    said = [line for line in works.log.read_text().splitlines() if SAID.search(line)]
    with open(REPORT, "a") as report:
        report.write(json.dumps({"round": number, "hit": hit, "damage": done, "said": said}) + "\n")
    assert found == digests, (done, said)
    # What nothing has read again since it was damaged is told by a check; a check finds nothing else.
    found_by_check = {one.path.name for one in works.store if faults(one.path)}
    assert found_by_check <= {text.partition("/")[0].removeprefix(".draft-") for text in done}
    subprocess.run(["chmod", "-R", "u+w", str(tmp_path)], check=True)
