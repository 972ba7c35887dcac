"""The synth stage writes what its generator makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest

from tercet.data import synth
from tercet.recipe import SynthSpec
from tercet.rows import read_rows
from tercet.store import Context


def spec(generator: str, rows: int, split: str = "train") -> SynthSpec:
    return SynthSpec.model_validate({"generator": generator, "rows": rows, "split": split})


@pytest.fixture
def context(tmp_path: Path) -> Context:
    unused: Any = None
    return Context(
        name="words", seed=11, recipe=unused, work=tmp_path / "work", track=unused, mirror={}, open_model=unused
    )


@pytest.mark.parametrize("generator", synth.GENERATORS)
def test_each_generator_writes_its_rows(generator: str, tmp_path: Path, context: Context) -> None:
    split = "train" if generator == "contaminated@1" else "test"  # which is for mixtures only
    metrics = synth.run(spec(generator, 24, split), {}, tmp_path, context)
    rows = read_rows(tmp_path / "rows.parquet")
    assert metrics == {"rows": 24, "templates": len({row.template for row in rows})}
    assert {row.source for row in rows} == {generator}
    assert all(row.answer and row.template and row.skill for row in rows)


def test_the_same_seed_writes_the_same_bytes(tmp_path: Path, context: Context) -> None:
    for folder in ("one", "two"):
        synth.run(spec("words@1", 50), {}, tmp_path / folder, context)
    assert (tmp_path / "one/rows.parquet").read_bytes() == (tmp_path / "two/rows.parquet").read_bytes()


def test_the_recipe_and_the_stage_know_the_same_generators() -> None:
    assert set(get_args(SynthSpec.model_fields["generator"].annotation)) == set(synth.GENERATORS)


def test_too_many_rows_is_refused_with_the_number_that_exists(tmp_path: Path, context: Context) -> None:
    with pytest.raises(ValueError, match="asked for 100000 rows and can make"):
        synth.run(spec("talk@1", 100000), {}, tmp_path, context)
    assert not list(tmp_path.glob("rows.parquet"))
