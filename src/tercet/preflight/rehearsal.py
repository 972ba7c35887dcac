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
from typing import IO, Any

from tercet import machine
from tercet.argv import Outside, command
from tercet.preflight.facts import Facts, template_of
from tercet.preflight.samples import sample
from tercet.recipe import ModelSource, OfflineSpec, Recipe, RLSpec, TrainSpec
from tercet.records import STOPS, UNTRIED, CheckResult
from tercet.rows import write_table

STEP = 15.0  # seconds that the heaviest step may take, by its estimate
LONGEST = 50.0  # seconds for all models, after which their processes are ended
KILLED = -9

Line = Mapping[str, Any]


def rehearsed(facts: Facts, missing: Sequence[str], scratch: Path) -> Iterator[Line]:
    """What a training process says of each model that missing stages train; of one that is not here, that."""
    end = time.monotonic() + LONGEST
    threads = str(facts.recipe.placement.threads or machine.cores())
    env = os.environ | {"OMP_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"}
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
            yield found(
                CheckResult("model", UNTRIED, what, f"tercet run {facts.recipe.name} --only {origin} fetches it")
            )
            continue
        folder = scratch / origin
        folder.mkdir()
        yield from _asked(_job(facts, origin, names, folder), env, folder, end - time.monotonic())


def found(finding: CheckResult) -> Line:
    """A finding as the process says it."""
    return {"check": finding._asdict()}


def _asked(job: dict[str, Any], env: Mapping[str, str], scratch: Path, left: float) -> Iterator[Line]:
    """Start the process with its job; what it says comes at once, and after `left` seconds it is ended."""
    file = scratch / "job.json"
    file.write_text(json.dumps(job), encoding="utf-8")
    asked = command(sys.executable, "-m", "tercet.train.rehearsal", Outside(file))
    began, code = time.monotonic(), None
    with (
        open(scratch / "said.jsonl", "wb") as out,
        open(scratch / "said.jsonl", "rb") as said,
        open(scratch / "log.txt", "wb") as log,
        subprocess.Popen(asked, stdout=out, stderr=log, env=env, cwd=job["cwd"]) as process,
    ):
        try:
            while (code := process.poll()) is None and time.monotonic() - began < left:
                yield from _lines(said)
                time.sleep(0.1)
        finally:
            process.kill()
        yield from _lines(said)
    if code != 0:
        yield found(_ended(job["origin"], code, time.monotonic() - began, scratch / "log.txt"))


def _lines(said: IO[bytes]) -> Iterator[Line]:
    """The whole lines that have come since."""
    while (line := said.readline()).endswith(b"\n"):
        with suppress(ValueError):
            if isinstance(value := json.loads(line), dict):
                yield value
    said.seek(-len(line), os.SEEK_CUR)


def _ended(origin: str, code: int | None, seconds: float, log: Path) -> CheckResult:
    """Why a process did not come to its end."""
    if code is None:
        what = f"{origin}: ended after {seconds:.0f} seconds, before it was through"
        return CheckResult("longest batch", UNTRIED, what, "wait until no other program computes here")
    if code == KILLED:
        advice = "set placement.recompute = true, lower placement.micro_tokens, or use `lora`"
        return CheckResult("longest batch", STOPS, f"{origin}: killed after {seconds:.0f} s; memory ran out", advice)
    last = log.read_text("utf-8", errors="replace").strip().splitlines()[-1:]
    return CheckResult("model", STOPS, f"{origin}: the process ended with code {code} ({''.join(last)[:300]})")


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
        "cwd": str(recipe.folder.absolute()),
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
