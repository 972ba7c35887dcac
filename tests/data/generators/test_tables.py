"""The text tables: the same rows as ever, a changed table is another key, and a mistake is found by file and line."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any, Literal

import pytest

from tercet.data import tables
from tercet.data.catalogue import of_stage
from tercet.data.generators.phrases import Phrases
from tercet.data.generators.talk import Topic
from tercet.data.sources import Reading, load
from tercet.data.synth import GENERATORS, TABLES
from tercet.data.synthesis.personas import KINDS
from tercet.pipeline import graph
from tercet.recipe import Recipe, SourceSpec
from tercet.store import Store

# SHA-256 of the rows as JSON, by generator, split and number of rows, with seed 5; of talk and facts all there are.
ROWS: dict[tuple[str, Literal["train", "test"], int], str] = {
    ("words@1", "train", 900): "701c1b9425cae899499acdd0ab8f58ccb5f699e4e61507b373ded9d0ca75e8a1",
    ("words@1", "benchmark", 500): "c3fa19ddffc3aaa6f2e62112081c970b5efbd063942496f1ac5c891b7d6ab690",
    ("constraints@1", "train", 400): "2452760162af4bc3ec984498132330eae4a5bd8bcd5ab6b498178559420a21f9",
    ("constraints@1", "benchmark", 300): "2da336976663f06ff8ed04c430a4f755fe5d5c175c2096607051e38a74344f5c",
    ("talk@1", "train", 272): "15ff3bb75485080da2bf78eedcfea72f42365e4eaa17f57f3d9e6ff3599a95b2",
    ("talk@1", "benchmark", 72): "7ba00a935a3cb3236e14ee15d4a6c2a33d93387474c82ba107fcaa6970af0484",
    ("facts@1", "train", 128): "3de5f648e3cae35016a724f09d51b90ea1f6ad980a586bc472c6a417aaf62b6a",
    ("facts@1", "benchmark", 70): "5c730d0baf66f8d554ec98799b44df56ed228ca0a78a68880235b766fc53c1f0",
    ("contaminated@1", "train", 60): "69f3cf27d85156a19914f4598931e9fb92e2f8ab604eb5d0f1a143dd7fbe4397",
}
STAGES = ("sft", "preference 8b", "preference 70b", "rlvr", "published", "origin")
SLOTS = {name: name for name in ("name", "maker", "base", "licence", "page", "about_maker")}


def sha(entries: Iterable[Any]) -> str:
    return hashlib.sha256(json.dumps([asdict(entry) for entry in entries]).encode()).hexdigest()


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
    assert sha(listed) == "1b466bf007c3ebcff0fdb6f610df8842c38c1f88af41ab584467917414111bc2"


def test_the_questions_about_the_assistant_are_the_same() -> None:
    source = SourceSpec(path="tercet:hardcoded", adapter="hardcoded")
    rows = load(source, {}, {}, Reading(values=SLOTS))
    assert sha(rows) == "1b50fe2f785c68d372aeb227a8392df19af4fcc973d36f8d6a6fe2c7050aef08"


def test_authors_are_asked_the_same() -> None:
    seeds = ["A retired sailor who counts gulls", "Describe the harbour"] * 20
    drafts = (kind.draft(text, Random(number)) for kind in KINDS.values() for number, text in enumerate(seeds))
    assert sha(drafts) == "8ab85de14728fe989ba889c1ecfb766777bf96d1dd2967a674ff93aae6261bf1"


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


def test_a_mistake_in_a_row_of_a_sheet_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
