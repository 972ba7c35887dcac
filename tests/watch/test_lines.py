from __future__ import annotations

import json
from pathlib import Path

import pytest

from tercet.watch import lines
from tercet.watch.lines import GrowingLines, last_objects


def test_a_file_that_grows_is_read_on_from_where_it_was(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    grown = GrowingLines(file)
    assert grown.refresh() == []
    with file.open("w") as stream:
        for step in range(5):
            stream.write(json.dumps({"step": step}) + "\n")
            stream.flush()
            assert [one["step"] for one in grown.refresh()] == list(range(step + 1))


def test_a_line_that_is_being_written_counts_when_it_is_whole(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 0}\n{"st')
    grown = GrowingLines(file)
    assert grown.refresh() == [{"step": 0}]
    with file.open("a") as stream:
        stream.write('ep": 1}\n')
    assert grown.refresh() == [{"step": 0}, {"step": 1}]
    assert grown.damaged == 0


@pytest.mark.parametrize("damage", ["\0\0\0", '{"step": 1', "[1, 2]", '{"a": ' * 5000, "\udcff"])
def test_a_damaged_line_is_left_out_and_counted(damage: str, tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(f'{{"step": 0}}\n{damage}\n{{"step": 2}}\n'.encode("utf-8", "surrogateescape"))
    grown = GrowingLines(file)
    assert grown.refresh() == [{"step": 0}, {"step": 2}]
    assert grown.damaged == 1
    assert last_objects(file, 3) == [{"step": 0}, {"step": 2}]


def test_a_file_that_was_replaced_is_read_again(tmp_path: Path) -> None:
    file, other = tmp_path / "metrics.jsonl", tmp_path / "other"
    file.write_text('{"step": 0}\n{"step": 1}\n')
    grown = GrowingLines(file)
    grown.refresh()
    other.write_text('{"step": 5}\n{"step": 6}\n{"step": 7}\n')
    other.replace(file)
    assert [one["step"] for one in grown.refresh()] == [5, 6, 7]
    file.write_text('{"step": 9}\n')
    assert grown.refresh() == [{"step": 9}]


def test_memory_is_bounded_and_both_ends_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MOST_RECORDS", 100)
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(f'{{"step": {step}}}\n' for step in range(1000)))
    records = GrowingLines(file).refresh()
    assert len(records) <= 100
    assert records[-1] == {"step": 999}
    assert records[0] == {"step": 0}


def test_the_last_lines_are_found_from_the_end(tmp_path: Path) -> None:
    file = tmp_path / "rollouts.jsonl"
    file.write_text("".join(json.dumps({"round": i, "text": "x" * 70_000}) + "\n" for i in range(9)) + '{"round": 9')
    assert [one["round"] for one in last_objects(file, 2)] == [7, 8]
    assert [one["round"] for one in last_objects(file, 100)] == list(range(9))
    assert last_objects(tmp_path / "nothing", 3) == []
