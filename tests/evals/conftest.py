"""A small benchmark by hand, and what a stage is given, for the tests of evaluations."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tercet.evals import benchmark, run
from tercet.evals.fakes import OracleGenerator
from tercet.precision import resolve
from tercet.recipe import BenchmarkSpec, EvalSpec, Recipe
from tercet.rows import Generator, Message, Row, write_table

CONSTRAINED = [
    ("Describe rain, wind and snow without commas.", '{"func_name": "validate_no_commas"}', "Water falls from clouds."),
    ("Shout about tea.", '{"func_name": "validate_uppercase"}', "TEA IS WARM."),
]


def made_rows() -> list[Row]:
    rows = []
    for i in range(6):
        turns = (Message("user", f"Tim has {i} pens and gets {i + 1} more. How many is that doubled?"),)
        row = Row(f"w{i}", turns, "words@1", "maths", "gsm8k@1", str(4 * i + 2), f"pens{i % 3}")
        rows.append(row)
    for i, (ask, reference, _) in enumerate(CONSTRAINED):
        rows.append(Row(f"c{i}", (Message("user", ask),), "constraints@1", "if", "tulu_if@1", reference, ask))
    for i in range(3):
        turns = (Message("user", f"Say hello {i}."), Message("assistant", "Hello, héllo!" + "!" * i))
        rows.append(Row(f"t{i}", turns, "talk@1", "chat", template="greeting"))
    for i, (place, right) in enumerate([("France", "Paris"), ("Italy", "Rome"), ("Japan", "Tokyo")]):
        turns = (Message("user", f"What is the capital of {place}?"), Message("assistant", right))
        rows.append(Row(f"f{i}", turns, "facts@1", "facts", reference=json.dumps(["Oslo", "Lima", "Bern"])))
    return rows


def right_answers(rows: list[Row]) -> dict[str, str]:
    """Last turn -> an answer that every verifier accepts."""
    known = {ask: answer for ask, _, answer in CONSTRAINED}
    for row in rows:
        known.setdefault(row.prompt[-1].content, row.answer or f"So the answer is {row.reference}.")
    return known


@dataclass
class Workspace:
    """What a stage is given, and what it reported."""

    root: Path
    model: Generator
    seed: int = 17
    opened: int = 0
    seen: list[tuple[int, int]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        rows = made_rows()
        write_table(self.root / "items" / "rows.parquet", rows)
        names = ("items", "benchmark", "base")
        self.inputs: dict[str, Any] = {name: SimpleNamespace(payload=self.root / name) for name in names}

    def ctx(self, work: str = "work", **more: Any) -> Any:
        (self.root / work).mkdir(exist_ok=True)
        stages = {"items": {"kind": "synth", "generator": "words@1", "rows": 1, "split": "test"}}
        recipe = Recipe.model_validate({"name": "t", "base": {"model": "tiny:"}, "stage": stages})
        track = SimpleNamespace(
            progress=lambda done, total, note="": self.seen.append((done, total)), note=self.notes.append
        )
        given = {"name": "t", "seed": self.seed, "recipe": recipe, "work": self.root / work, "track": track}
        return SimpleNamespace(**{**given, "mirror": {}, "open_model": self._open, **more})

    def write_benchmark(self, *tasks: str, **more: Any) -> dict[str, float]:
        out = self.root / "benchmark"
        out.mkdir(exist_ok=True)
        spec = BenchmarkSpec(tasks=tasks or ("quick",), items=("items",), **more)
        return benchmark.run(spec, self.inputs, out, self.ctx())

    def evaluate(self, name: str, *, require: tuple[str, ...] = (), **more: Any) -> dict[str, float]:
        """Evaluate into the payload folder `name`, with a scratch folder of its own."""
        out = self.root / name
        out.mkdir(exist_ok=True)
        self.inputs[name] = SimpleNamespace(payload=out)
        spec = EvalSpec(model="base", benchmark="benchmark", require=require, **more)
        return run.run(spec, self.inputs, out, self.ctx(f"work-{name}"))

    def _open(self, folder: Path, dtype: str, engine: str = "local") -> Generator:
        assert folder == self.root / "base"
        assert (dtype, engine) == (resolve("auto"), "local")
        self.opened += 1
        return self.model


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path, OracleGenerator(right_answers(made_rows())))


@pytest.fixture
def results() -> Callable[[Path], list[dict[str, Any]]]:
    return lambda folder: [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


@pytest.fixture
def rows() -> list[Row]:
    return made_rows()
