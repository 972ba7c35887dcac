"""The share of answers that repeat training rows is counted by checkpoint and table, against the same rows."""

from __future__ import annotations

import json
import re

import pytest
from fake_run import FakeRun

from tercet.report import collect, page, repeats
from tercet.rows import read_rows
from tercet.store import Artifact


def answered(fake: FakeRun, name: str, texts: list[str]) -> None:
    """Give the first written answers of an evaluation these texts."""
    path = fake.folder(name) / "payload" / "results.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    written = [line for line in lines if line["metric"] == "accuracy"]
    for line, text in zip(written, [*texts, *[""] * len(written)], strict=False):
        line["output"] = text
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def measured(fake: FakeRun):
    stages = collect.walk(fake.spec.evals, fake.inputs, fake.recipe)
    points = collect.checkpoints(fake.spec.evals, stages, fake.recipe)
    return repeats.measure(points, stages, fake.context.store)


FRESH = "Nobody has ever put these particular words one behind another before today."


@pytest.fixture
def repeating(fake):
    """Of four answers of the base model none is from a row, of SFT's one, of the others' all."""
    table = fake.folder("sft-data") / "payload" / "rows.parquet"
    taught = [row.user_turns[0] for row in read_rows(table)[:4]]
    answered(fake, "eval-base", [FRESH] * 4)
    answered(fake, "eval-sft", [*taught[:1], *[FRESH] * 3])
    for name in ("eval-dpo", "eval-rlvr"):
        answered(fake, name, taught)
    return fake


def test_shares_are_counted_against_the_same_rows(repeating):
    found = measured(repeating)
    assert found["columns"][0] == "sft, rlvr: rows"
    assert {row["label"]: (row["n"], row["share"], row["parts"][0]) for row in found["rows"]} == {
        "Base": (4, 0.0, 0.0),
        "SFT": (4, 0.25, 0.25),
        "DPO": (4, 1.0, 1.0),
        "RLVR": (4, 1.0, 1.0),
    }


def test_the_page_shows_them(repeating, tmp_path):
    page.run(repeating.spec, repeating.inputs, tmp_path, repeating.context)
    html = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "Repeated from training" in html
    assert re.search(r'<th scope="row">SFT</th><td class="num nowrap">25\.0 % <span class="error">± 21\.7 %', html)


def test_large_tables_are_left_to_the_verb(repeating, tmp_path, monkeypatch):
    monkeypatch.setattr(repeats, "LARGEST", 1000)
    assert measured(repeating)["rows"] == []
    page.run(repeating.spec, repeating.inputs, tmp_path, repeating.context)
    assert "is not measured here" in (tmp_path / "index.html").read_text(encoding="utf-8")


def test_rows_that_are_gone_are_not_searched(repeating):
    folder = repeating.folder("sft-data")
    (folder / "payload" / "rows.parquet").unlink()
    assert "rows" not in " ".join(measured(repeating)["columns"])
    assert Artifact.read(folder).name == "sft-data"
