"""The text tables: the same rows as ever, a changed table is another key, and a mistake is found by file and line."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable
from dataclasses import astuple
from pathlib import Path
from random import Random
from typing import Any, Literal

import pytest

from tercet.data import tables
from tercet.data.catalogue import of_stage
from tercet.data.generators.phrases import Phrases
from tercet.data.generators.talk import Topic
from tercet.data.sources import Reading, load
from tercet.data.synth import GENERATORS
from tercet.data.synthesis.personas import KINDS
from tercet.pipeline import graph
from tercet.recipe import Recipe, SourceSpec
from tercet.recipe.data_specs import TABLES
from tercet.store import Store

# SHA-256 of the rows' values as JSON, by generator, split and number of rows (of talk and facts all), with seed 5.
ROWS: dict[tuple[str, Literal["train", "test"], int], str] = {
    ("words@1", "train", 900): "913390e9684b6de347dff7129cab1dd6d0cfc053f076c2bd391bc491b40f7116",
    ("words@1", "test", 500): "3c00b2b3ed317bc69a1f51d45dc2aa0f0e5117a65e3b84baea394d2df6566fa7",
    ("constraints@1", "train", 400): "f892906165d882e691781cb8504531149708c97d6e74d8befa4d1a89c397124d",
    ("constraints@1", "test", 300): "0cb5eedc4e621ce53cb48ac586af66288d9cf2324ade3dea672a2aac2d2b2044",
    ("talk@1", "train", 272): "9330c891b4a97fc63b7c971ebe5f8257b503cead6ad1e0621c4feacbf7d8c42a",
    ("talk@1", "test", 72): "76361ecdb1815c8a283a0db071db4920014a12874bfc0c6c16a83909369d22b5",
    ("facts@1", "train", 128): "74a3f365dbaff61c3199a3b268b954a491f10612f27d8f6bb7ab72b8fdce52bf",
    ("facts@1", "test", 70): "3f2c4534fb21bec07713ba07f8ac999f705b447ecf8f24628f47a4162fd99f0a",
    ("contaminated@1", "train", 60): "3b3d7f4f33daa3ab5ff100043123c86a5a14773f35b837910d74663ae8e77ec9",
}
STAGES = ("sft", "preference 8b", "preference 70b", "rlvr", "published", "origin")
SLOTS = {name: name for name in ("name", "maker", "base", "licence", "page", "about_maker")}


def sha(entries: Iterable[Any]) -> str:
    return hashlib.sha256(json.dumps([astuple(entry) for entry in entries]).encode()).hexdigest()


@pytest.mark.parametrize(("generator", "split", "num_rows"), ROWS)
def test_a_generator_makes_the_same_rows_from_its_own_tables(
    generator: str, split: Literal["train", "test"], num_rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in TABLES[generator]:
        shutil.copy(tables.FOLDER / name.format(split=split), tmp_path)
    monkeypatch.setattr(tables, "FOLDER", tmp_path)  # a table that the key does not know would be missing here
    assert sha(GENERATORS[generator](num_rows, split, 5)) == ROWS[generator, split, num_rows]


def test_the_catalogue_lists_the_same_data_sets() -> None:
    listed = [dataset for stage in STAGES for dataset in of_stage(stage)]
    assert sha(listed) == "5d83973b27d7378379ad829e0ba4fce29a400d9f6bcc79bd9fedf2b153a8d60a"


def test_the_questions_about_the_assistant_are_the_same() -> None:
    source = SourceSpec(path="tercet:hardcoded", adapter="hardcoded", values=SLOTS)
    rows = load(source, {}, {}, Reading())
    assert sha(rows) == "8a3121e9413db759f5d83d4add4a78af04403dddea6b50f7d64c4c61cb622daa"


def test_authors_are_asked_the_same() -> None:
    seeds = ["A retired sailor who counts gulls", "Describe the harbour"] * 20
    drafts = (kind.draft(text, Random(number)) for kind in KINDS.values() for number, text in enumerate(seeds))
    assert sha(drafts) == "ec2e16fe6ce7c4cb3ee1231890b4a0be630d4c872757d1ce1c20a002986a9678"


STAGES_OF_TABLES = {
    "words": {"kind": "synth", "generator": "words@1", "rows": 9},
    "talk": {"kind": "synth", "generator": "talk@1", "rows": 9},
    "contaminated": {"kind": "synth", "generator": "contaminated@1", "rows": 9},
    "about": {"kind": "mix", "sources": [{"path": "tercet:hardcoded", "adapter": "hardcoded"}]},
    "written": {"kind": "personas", "model": "base", "write": "persona_gsm", "seeds": {"stage": "talk"}},
}


@pytest.mark.parametrize(
    ("table", "changed"),
    [
        ("words_train.jsonl", {"words"}),
        ("words_test.jsonl", {"contaminated"}),
        ("words.toml", {"words", "contaminated"}),
        ("talk_train.jsonl", {"talk", "written"}),  # whose seeds are the talk
        ("hardcoded.jsonl", {"about"}),
        ("personas.toml", {"written"}),
        ("catalogue.csv", set()),
    ],
)
def test_a_changed_table_changes_the_keys_of_the_stages_that_read_it(
    table: str, changed: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe.model_validate({"name": "tables", "base": {"model": "tiny:"}, "stage": STAGES_OF_TABLES})
    before = graph(recipe, Store(tmp_path / "store"))
    shutil.copytree(tables.FOLDER, tmp_path / "tables")
    monkeypatch.setattr(tables, "FOLDER", tmp_path / "tables")
    assert {name: node.key for name, node in graph(recipe, Store(tmp_path / "store")).items()} == {
        name: node.key for name, node in before.items()
    }
    with (tmp_path / "tables" / table).open("a", encoding="utf-8") as file:
        file.write("\n")
    after = graph(recipe, Store(tmp_path / "store"))
    assert {name for name in before if before[name].key != after[name].key} == changed


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"name": "rain", "asks": ["What is rain?"]}', r"talk_train.jsonl:2: answer: Field required"),
        ('{"name": "rain", "asks": [], "answer": "Water.", "and": ""}', r"talk_train.jsonl:2: and: Unexpected"),
        ('{"name": "rain", "asks": [}', r"talk_train.jsonl:2: Expecting value"),
    ],
)
def test_a_mistake_in_a_line_is_found(line: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = '{"name": "snow", "asks": ["What is snow?"], "answer": "Frozen water."}'
    (tmp_path / "talk_train.jsonl").write_text(f"{first}\n{line}\n{first}\n")
    monkeypatch.setattr(tables, "FOLDER", tmp_path)
    with pytest.raises(tables.TableError, match=message):
        tables.entries("talk_train.jsonl", Topic)


def test_a_mistake_in_a_row_of_a_csv_table_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names, first, *_ = (tables.FOLDER / "catalogue.csv").read_text(encoding="utf-8").splitlines()
    (tmp_path / "catalogue.csv").write_text(f"{names}\n{first}\n{first.replace(',240,', ',many,')}\n", encoding="utf-8")
    monkeypatch.setattr(tables, "FOLDER", tmp_path)
    with pytest.raises(tables.TableError, match=r"catalogue.csv:3: rows: Input should be a valid integer"):
        of_stage("sft")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('links = ["Also, "', "links = [7", r"phrases.toml:{line}: links.0: Input should be a valid string"),
        ('links = ["Also, "', "links = [", r"phrases.toml: .*line {line}"),
        ("[wordings.title]\nboth", "[wordings.title]\nall", r"toml:{line}: wordings.title.both: Field required"),
    ],
)
def test_a_mistake_in_a_document_is_found(
    old: str, new: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (tables.FOLDER / "phrases.toml").read_text(encoding="utf-8")
    line = text[: text.index(old)].count("\n") + 1
    (tmp_path / "phrases.toml").write_text(text.replace(old, new), encoding="utf-8")
    monkeypatch.setattr(tables, "FOLDER", tmp_path)
    with pytest.raises(tables.TableError, match=message.format(line=line)):
        tables.document("phrases.toml", Phrases)
