"""What a training process can tell before a run: masks and lengths of sampled rows, log-probabilities, one step.

`python -m tercet.train.rehearsal JOB` prints a line of JSON for each thing as soon as it is known. `tercet doctor` asks
that way, in a process of its own, and reads what came also where that process was ended.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from tercet import machine
from tercet.models import tiny
from tercet.models.base_model import tiny_seed
from tercet.models.chat import Chat, MaskedTokens
from tercet.models.hf_folder import one_line
from tercet.models.support import chat_of
from tercet.recipe import DPOSpec, Recipe, RewardModelSpec, RLSpec, SFTSpec, TrainSpec
from tercet.records import OK, STOPS, UNTRIED, WARNING, CheckResult
from tercet.train import dpo, sft
from tercet.train.rehearsed_step import Rehearsal, rehearse
from tercet.train.rl.rollout import PROMPTS
from tercet.train.tokens import NamedTree, Rule

SHOWN = 2  # rows of a stage whose mask is shown
LEAST = 20  # rows of a source from which its share of long ones is taken for that of all

Tell = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class Job:
    """What is asked: a recipe, a model's folder (empty: `tiny:`), its template, and files of sampled rows by stage."""

    recipe: dict[str, Any]
    kinds: list[str]  # modules that define the kinds of the recipe's stages
    origin: str  # the stage that the model comes from
    cwd: str  # the recipe's folder, where its paths begin
    model: str  # as the recipe names it
    folder: str
    template: tuple[str, str, str]  # name or file, arguments as JSON, date
    rows: dict[str, str]  # training stage -> file; empty where no row is at hand
    seconds: float  # that the step may take


def main(file: str) -> int:
    """Rehearse a job; whatever goes wrong is a finding."""
    job = Job(**json.loads(Path(file).read_text("utf-8")))
    for module in job.kinds:
        importlib.import_module(module)
    recipe = Recipe.model_validate(job.recipe)
    with TemporaryDirectory() as scratch:
        try:
            for finding in _rehearsed(job, recipe, Path(scratch)):
                tell({"check": finding._asdict()})
        except Exception as error:  # a folder, a template or a model's own code raises what it likes
            tell({"check": CheckResult("model", STOPS, f"{job.origin}: {one_line(error)}")._asdict()})
    return 0


def tell(value: Mapping[str, Any]) -> None:
    """One line of JSON, at once."""
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def _rehearsed(job: Job, recipe: Recipe, scratch: Path) -> Iterator[CheckResult]:
    folder = Path(job.folder) if job.folder else scratch / "model"
    if not job.folder:
        tiny.build(folder, tiny_seed(job.model))
    name, arguments, date = job.template
    chat = chat_of(folder, name, json.loads(arguments), date)
    if job.rows and chat.untrainable:
        yield CheckResult(
            "template", STOPS, f"{job.origin}: {chat.untrainable}", "name a `template` that trains, or tulu3"
        )
        return
    yield ends_of(chat, job.origin)
    trees: dict[str, list[NamedTree]] = {}
    for stage, file in job.rows.items():
        spec = recipe.spec(stage)
        assert isinstance(spec, TrainSpec)
        try:
            trees[stage] = list(trees_of(spec, chat, Path(file))) if file else []
        except ValueError as error:
            said = str(error).replace(file, f"the rows of {stage}")
            yield CheckResult("mask", STOPS, said, "mend the row, or take it out", stage)
            continue
        yield from _looked_at(stage, spec, chat, trees[stage])
    rows = {stage: [tree for _, _, tree in named] for stage, named in trees.items()}
    yield from rehearse(Rehearsal(recipe, job.origin, folder, chat, rows, job.seconds), scratch)


def ends_of(chat: Chat, origin: str) -> CheckResult:
    """The tokens that end an answer."""
    if not chat.template:
        return CheckResult("end tokens", WARNING, f"{origin} has no chat template", "it can continue texts alone")
    names = ", ".join(f"{chat.tokenizer.convert_ids_to_tokens(end)!r} ({end})" for end in sorted(chat.stops))
    return CheckResult("end tokens", OK if names else WARNING, f"{origin}: an answer ends with {names or 'no token'}")


def trees_of(spec: TrainSpec, chat: Chat, file: Path) -> Iterator[NamedTree]:
    """The trees of a file of rows, as the stage itself will make them."""
    rule: Rule = PROMPTS
    if isinstance(spec, SFTSpec):
        rule = sft.rule_of(spec)
    elif isinstance(spec, DPOSpec | RewardModelSpec):
        rule = dpo.rule_of(spec, file)
    return rule.trees(chat, file, 1)


def _looked_at(stage: str, spec: TrainSpec, chat: Chat, trees: Sequence[NamedTree]) -> Iterator[CheckResult]:
    """The masks of the first rows, and the lengths of all; where there is no row, that."""
    if not trees:
        what = "none of its rows is at hand before other stages have run"
        yield CheckResult("lengths", UNTRIED, what, stage=stage)
        return
    prompts = isinstance(spec, RLSpec)
    for row, _, tree in islice(trees, SHOWN):
        texts = []
        for leaf in tree.leaves:
            mask = [*[False] * len(tree.trunk), *(leaf.mask if not prompts else [False] * len(leaf.mask))]
            texts.append(list(chat.runs(MaskedTokens([*tree.trunk, *leaf.token_ids], mask))))
        tell({"mask": {"stage": stage, "row": row, "texts": texts}})
    trained = sum(sum(leaf.mask) for _, _, tree in trees for leaf in tree.leaves)
    if not prompts:
        total = sum(tree.num_tokens for _, _, tree in trees)
        what = f"{trained / total:.0%} of the tokens of {len(trees)} sampled rows are trained"
        yield CheckResult("mask", OK, what, stage=stage)
    table = lengths(trees, spec.max_length)
    tell({"lengths": {"stage": stage, "max_length": spec.max_length, "sources": table}})
    yield judged(stage, spec, table)


def lengths(trees: Sequence[NamedTree], most: int) -> list[dict[str, Any]]:
    """Per source: rows, tokens of the median and the longest one, and how many are over `most`."""
    found: dict[str, list[int]] = {}
    for _, source, tree in trees:
        found.setdefault(source, []).append(max(tree.path_lengths))
    return [
        {
            "source": source,
            "rows": len(sizes),
            "median": int(np.median(sizes)),
            "longest": max(sizes),
            "over": sum(size > most for size in sizes),
        }
        for source, sizes in found.items()
    ]


def judged(stage: str, spec: TrainSpec, table: Sequence[Mapping[str, Any]]) -> CheckResult:
    """What the sampled lengths mean for a stage that loses rows, or stops, where they are over its limit."""
    rows, over = (sum(line[key] for line in table) for key in ("rows", "over"))
    what = f"{over} of {rows} sampled rows ({over / rows:.0%}) are over max_length = {spec.max_length:,}"
    longest = max(line["longest"] for line in table)
    if not over:
        return CheckResult("lengths", OK, f"all {rows} sampled rows fit: at most {longest:,} tokens", stage=stage)
    advice = f"raise max_length (the longest has {longest:,} tokens)"
    if isinstance(spec, RLSpec) or spec.overlong == "drop":
        least = min(line["over"] / line["rows"] for line in table if line["rows"] >= min(LEAST, rows))
        if over / rows > spec.max_lost:
            # the mixture's shares are not known: certain only where every source loses too many
            state = STOPS if least > spec.max_lost else WARNING
            return CheckResult(
                "lengths", state, f"{what}, and max_lost = {spec.max_lost:g}", f"{advice} or max_lost", stage
            )
        return CheckResult("lengths", WARNING, f"{what}; they will be dropped", advice, stage)
    if spec.overlong == "error":
        return CheckResult(
            "lengths", STOPS, f'{what}, and overlong = "error"', f'{advice}, or set overlong = "cut"', stage
        )
    return CheckResult("lengths", WARNING, f"{what}; they will be cut", advice, stage)


if __name__ == "__main__":
    machine.die_with_parent()
    sys.exit(main(*sys.argv[1:]))
