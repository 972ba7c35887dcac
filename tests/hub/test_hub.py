"""Raw records: from the mirror, or from the hub."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tercet import hub
from tercet.rows import RowError, Source


def write(path: Path, *rows: dict[str, object]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_the_most_exact_entry_of_the_mirror_wins(tmp_path: Path) -> None:
    files = {name: write(tmp_path / f"{number}.jsonl", {"from": name}) for number, name in enumerate("abcd")}
    mirror = {"x/y": files["a"], "x/y/s": files["b"], "x/y:t": files["c"], "x/y/s:t": files["d"]}
    for key in "dcba":
        found = hub.records([Source("x/y", subset="s", split="t")], mirror)
        assert found[0]["from"] == key
        mirror.popitem()


def test_one_file_that_stands_for_several_subsets_is_read_once(tmp_path: Path) -> None:
    mirror = {"x/y": write(tmp_path / "all.jsonl", {"subject": "a"}, {"subject": "b"})}
    sources = [Source("x/y", subset="a"), Source("x/y", subset="b")]
    assert hub.records(sources, mirror) == [{"subject": "a", "_row": 0}, {"subject": "b", "_row": 1}]


def test_a_file_for_each_subset_names_the_subset_of_its_rows(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.json").write_text(json.dumps({"canary": "x", "examples": [{"input": name}]}))
    found = hub.records([Source("x/y", subset=n) for n in "ab"], {"x/y": str(tmp_path / "{subset}.json")})
    assert found == [{"input": n, "_row": 0, "_subset": n} for n in "ab"]


def test_packed_files_and_texts_are_read(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "rows.jsonl.gz", "wt") as stream:
        stream.write('{"a": 1}\n')
    (tmp_path / "notes.txt").write_text("plain")
    mirror = {"p/q": str(tmp_path / "rows.jsonl.gz"), "github:r/s/t.txt": str(tmp_path / "notes.txt")}
    assert hub.records([Source("p/q"), Source("github:r/s/t.txt")], mirror) == [
        {"a": 1, "_row": 0},
        {"text": "plain"},
    ]


def test_a_mirror_that_names_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RowError, match="no such file"):
        hub.records([Source("p/q")], {"p/q": str(tmp_path / "gone.jsonl")})
    (tmp_path / "two.json").write_text('{"a": [], "b": []}')
    with pytest.raises(RowError, match="one such list"):
        hub.records([Source("p/q")], {"p/q": str(tmp_path / "two.json")})


def test_a_folder_of_subsets_names_the_subset_of_its_rows(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        write(tmp_path / name / "test.jsonl", {"of": name})
        write(tmp_path / name / "train.jsonl", {"of": "another split"})
    found = hub.records([Source("x/y", subset=n, split="test") for n in "ab"], {"x/y": str(tmp_path)})
    assert found == [{"of": n, "_row": 0, "_subset": n} for n in "ab"]


def test_records_stream_with_their_places(tmp_path: Path) -> None:
    rows = [{"a": number} for number in range(3)]
    path = write(tmp_path / "rows.jsonl", *rows)
    wanted = [(row, f"{path}, row {number}") for number, row in enumerate(rows, 1)]
    assert list(hub.stream(Source(path), {})) == wanted
    assert list(hub.stream(Source("x/y", split="test"), {"x/y:test": path})) == wanted
    reading = hub.stream(Source(path), {})
    assert next(reading) == wanted[0]
    with open(path, "a", encoding="utf-8") as stream:
        stream.write("[]\n")
    *_, last = [next(reading), next(reading)]
    assert last == wanted[2]
    with pytest.raises(RowError, match=r"rows\.jsonl, line 4: expected a JSON object, got list"):
        next(reading)


def test_what_is_asked_of_the_hub_is_downloaded_for_benchmarks_and_streamed_for_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[dict[str, object]] = []

    def load_dataset(*names: str | None, **options: object) -> list[dict[str, object]]:
        asked.append(options)
        return [{"a": 1}]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    assert hub.records([Source("x/y", split="test[:100]")], {}) == [{"a": 1, "_row": 0}]
    assert list(hub.stream(Source("x/y", revision="main"), {})) == [({"a": 1}, "x/y, row 1")]
    assert [(options["streaming"], options["revision"]) for options in asked] == [(False, None), (True, "main")]


SOURCE = """\"\"\"Worked examples.\"\"\"
import os
NOTHING = [1, {"question": "x"}]
MADE = [{"question": os.name, "answer": "y"}]
OTHER = [{"question": "x"}, {"answer": "y"}]
RIGHT = [{"question": "1?", "answer": "1", "more": [1]}, {"question": "2?", "answer": "2"}]
"""


def test_worked_examples_are_a_tables_rows_or_the_literal_rows_of_a_program(tmp_path: Path) -> None:
    (tmp_path / "shots.py").write_text(SOURCE)
    found = hub.records([Source("x/y", subset="s")], {"x/y": str(tmp_path / "shots.py")})
    rows = hub.rows_with(found, "question", "answer")
    assert rows == [{"question": "1?", "answer": "1", "more": [1]}, {"question": "2?", "answer": "2"}]
    assert hub.rows_with(rows, "answer", "question") == rows
    for bad in ([{"text": "no: [program"}], [{"text": "[]"}], [], [{"question": "x"}]):
        with pytest.raises(RowError, match="expected rows with the keys question, answer, got"):
            hub.rows_with(bad, "question", "answer")


@pytest.mark.parametrize(
    "text", ["rows = " + "[" * 5000, "rows = [" + "{'a': " * 500, "\0", "rows = [{'a': -" + "-" * 9000 + "1}]"]
)
def test_python_that_nests_without_end_holds_no_rows(text: str) -> None:
    with pytest.raises(RowError, match="expected rows with the keys a"):
        hub.rows_with([{"text": text}], "a")
