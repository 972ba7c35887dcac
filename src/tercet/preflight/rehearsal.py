"""The training process of `tercet doctor`: what it is given, and what it says line by line until its time is up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tercet import machine
from tercet.argv import Outside, command
from tercet.preflight.facts import Facts, template_of
from tercet.preflight.samples import sample
from tercet.recipe import ModelSource, OfflineSpec, Recipe, RLSpec, TrainSpec
from tercet.records import STOPS, UNTRIED, Finding
from tercet.rows import write_table

STEP = 15.0  # seconds that the heaviest step may take, by its estimate
LONGEST = 50.0  # seconds for one model, after which its process is ended
KILLED = -9

Line = Mapping[str, Any]


def rehearsed(facts: Facts, missing: Sequence[str], scratch: Path) -> Iterator[Line]:
    """What a training process says of each model that missing stages train; of one that is not here, that."""
    stages: dict[str, list[str]] = {}
    for name in missing:
        spec = facts.recipe.spec(name)
        if isinstance(spec, TrainSpec) and not facts.served(spec.model):
            stages.setdefault(facts.origin(spec.model), []).append(name)
    for origin, names in stages.items():
        model = facts.model(origin)
        own = facts.source_of(origin)
        if model.folder is None and not own.model.startswith("tiny:"):
            what = f"{own.model} is not on this machine: template, masks, lengths and the longest batch are not known"
            yield found(Finding("model", UNTRIED, what, f"tercet run {facts.recipe.name} --only {origin} fetches it"))
            continue
        folder = scratch / origin
        folder.mkdir()
        yield from _asked(facts, origin, names, folder)


def found(finding: Finding) -> Line:
    """A finding as the process says it."""
    return {"finding": finding._asdict()}


def _asked(facts: Facts, origin: str, names: Sequence[str], scratch: Path) -> Iterator[Line]:
    """Start the process with its job, and read what it has said when it ends, or when its time is up."""
    file, said = scratch / "job.json", scratch / "said.jsonl"
    file.write_text(json.dumps(_job(facts, origin, names, scratch)), encoding="utf-8")
    threads = str(facts.recipe.placement.threads or machine.cores())
    env = os.environ | {"OMP_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"}
    asked = command(sys.executable, "-m", "tercet.train.rehearsal", Outside(file))
    began, code = time.monotonic(), None
    with (
        open(said, "wb") as out,
        open(scratch / "log.txt", "wb") as log,
        subprocess.Popen(asked, stdout=out, stderr=log, env=env, cwd=facts.recipe.folder) as process,
    ):
        try:
            code = process.wait(LONGEST)
        except subprocess.TimeoutExpired:
            process.kill()
    for line in said.read_text("utf-8", errors="replace").splitlines():
        with suppress(ValueError):
            if isinstance(value := json.loads(line), dict):
                yield value
    if code == 0:
        return
    spent = f"after {time.monotonic() - began:.0f} seconds"
    if code is None:
        what = f"{origin}: ended {spent}, before it was through; what came until then stands above"
        yield found(Finding("longest batch", UNTRIED, what, "wait until the machine is idle"))
    elif code == KILLED:
        advice = "set placement.recompute = true, lower placement.micro_tokens, or use `lora`"
        yield found(Finding("longest batch", STOPS, f"{origin}: killed {spent}; memory ran out", advice))
    else:
        last = (scratch / "log.txt").read_text("utf-8", errors="replace").strip().splitlines()[-1:]
        yield found(Finding("model", STOPS, f"{origin}: the process ended with code {code} ({''.join(last)[:300]})"))


def _job(facts: Facts, origin: str, names: Sequence[str], scratch: Path) -> dict[str, Any]:
    """As `tercet.train.rehearsal.Job` has it, with the sampled rows in files beside it."""
    recipe: Recipe = facts.recipe
    spec = recipe.spec(origin)
    assert isinstance(spec, ModelSource)
    model, made = facts.model(origin), origin in facts.made
    return {
        "recipe": recipe.model_dump(mode="json"),
        "kinds": sorted({type(one).__module__ for one in recipe.stage.values()}),
        "origin": origin,
        "model": spec.model,
        "folder": str(model.folder.absolute()) if model.folder else "",
        "template": ("own", "{}", "") if made else template_of(spec, recipe.folder.absolute()),
        "rows": {name: _written(facts, name, scratch) for name in names},
        "seconds": STEP,
    }


def _written(facts: Facts, name: str, scratch: Path) -> str:
    """The file of a stage's sampled rows; empty where none is at hand."""
    spec = facts.recipe.spec(name)
    source = spec.prompts if isinstance(spec, RLSpec) else ""
    source = getattr(spec, spec.data_field) if isinstance(spec, OfflineSpec) else source
    if not source or not (rows := sample(facts, source).rows):
        return ""
    file = scratch / name / f"{facts.recipe.spec(source).produces}.parquet"
    write_table(file, rows)
    return str(file)
