"""Files of rows end in one error with file and line where they are larger than any that is meant."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tercet.outside import DEEPEST, read_json
from tercet.rows import RowError, SourceError
from tercet.rows_file import read_file
from tercet.rows_limits import SETTING
from tercet.rows_parquet import BATCH_ROWS, parquet_batches

MIB = 1 << 20


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line of one MiB, so that the tests are quick; all limits are in proportion."""
    monkeypatch.setenv(SETTING, "1")


def refused(path: Path, **options: bool) -> str:
    with pytest.raises(RowError) as caught:
        list(read_file(path, **options))
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("lenient", [False, True])
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.csv", "rows.tsv"])
def test_a_line_that_is_too_long_stops_the_reading_with_its_number(tmp_path, name, lenient):
    path = tmp_path / name
    data = (b"{}" if "json" in name else b"a") + b"\n" + b"x" * (MIB + 1) + b"\n{}\n"
    path.write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    assert f"{name}, line 2: is longer than 1 MiB; write it shorter, or set {SETTING} above 1" in refused(
        path, lenient=lenient
    )


def test_the_limit_is_read_where_it_is_set_and_a_wrong_one_is_named(tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"a": "x" * (MIB + 1)}), encoding="utf-8")
    monkeypatch.setenv(SETTING, "2")
    assert len(list(read_file(path))) == 1
    for wrong in ("0", "-1", "many", "9" * 20):
        monkeypatch.setenv(SETTING, wrong)
        with pytest.raises(RowError, match=f"{SETTING}: expected a whole number of MiB"):
            list(read_file(path))


def test_values_need_more_memory_than_text_so_they_are_counted_first(tmp_path, monkeypatch):
    monkeypatch.setenv(SETTING, "8")
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": [' + "[]," * (2 * MIB) + "[]]}", encoding="utf-8")
    tracemalloc.start()
    try:
        assert "line 1: holds 4,194,307 commas and brackets in" in refused(path)
        assert tracemalloc.get_traced_memory()[1] < 16 * MIB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.json.gz", "rows.csv.gz"])
def test_an_archive_that_unpacks_to_far_more_than_it_has_is_refused_before_memory_goes(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(gzip.compress(b" " * 1000 + (b"\n" + b" " * 1000) * 40_000))
    tracemalloc.start()
    try:
        said = refused(path)
        assert tracemalloc.get_traced_memory()[1] < 40 * MIB
    finally:
        tracemalloc.stop()
    assert "200 times the file" in said or "is longer than 16 MiB" in said


def test_a_json_file_is_limited_as_a_whole_and_names_its_line(tmp_path):
    path = tmp_path / "rows.json"
    path.write_bytes(b"[" + b" " * (16 * MIB) + b"]")
    assert "rows.json: is longer than 16 MiB" in refused(path)
    path.write_bytes(b'[\n{"a": "\xff"}]')
    assert "line 2: not UTF-8" in refused(path)
    path.write_text("[" * 500 + "]" * 500, encoding="utf-8")
    assert "more than 64 lists and objects inside each other" in refused(path)
    path.write_text("[" * 99_999, encoding="utf-8")
    assert "more than 64 lists and objects inside each other" in refused(path)
    path.write_text('[{"a": ' + "9" * 5000 + "}]", encoding="utf-8")
    assert "not valid JSON (Exceeds the limit" in refused(path)


def test_json_is_read_up_to_a_depth():
    deepest = '{"a": ' * DEEPEST + "1" + "}" * DEEPEST
    assert read_json(deepest) == json.loads(deepest)
    assert read_json("[" + "[]," * 999 + "[]]") == [[]] * 1000
    for text in (f"[{deepest}]", "[" * 200 + "]" * 200, "[" * 99_999):
        with pytest.raises(ValueError, match="more than 64 lists and objects"):
            read_json(text)


def test_an_open_quote_does_not_take_the_rest_of_a_table_into_one_cell(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text('a,b\n"' + "x,y\n" * 400_000, encoding="utf-8")
    assert "not valid CSV (field larger than field limit (1048576)); is a quote left open?" in refused(path)


def write(path: Path, values: list[str], **options: object) -> Path:
    turns = [[{"role": "user", "content": value}] for value in values]
    pq.write_table(pa.table({"id": list(map(str, range(len(values)))), "turns": turns}), path, **options)
    return path


def test_rows_of_parquet_come_in_batches_and_are_the_same_with_a_large_dictionary(tmp_path):
    values = [f"{number % 7}" * 400_000 for number in range(150)]
    path = write(tmp_path / "rows.parquet", values, dictionary_pagesize_limit=1 << 30)
    assert [row["turns"][0]["content"] for row in read_file(path)] == values
    sizes = [batch.num_rows for batch in parquet_batches(path)]
    assert sum(sizes) == 150
    assert max(sizes) <= BATCH_ROWS
    assert {batch.schema for batch in parquet_batches(path)} == {pq.read_schema(path).remove_metadata()}


def test_a_few_bytes_of_parquet_that_stand_for_gigabytes_are_refused_at_their_row(tmp_path):
    path, texts = tmp_path / "rows.parquet", pa.array(["a", "b" * (3 * MIB)])
    table = pa.table({"text": pa.DictionaryArray.from_arrays(pa.array([0] * 150 + [1] * 2000), texts)})
    pq.write_table(table, path, dictionary_pagesize_limit=1 << 30, compression="zstd", store_schema=False)
    assert path.stat().st_size < 20_000
    tracemalloc.start()
    try:
        with pytest.raises(SourceError, match=r"rows\.parquet, row 151: is longer than 1 MiB"):
            list(read_file(path))
        assert tracemalloc.get_traced_memory()[1] < 64 * MIB
    finally:
        tracemalloc.stop()


def test_a_column_that_unpacks_to_far_more_than_it_has_is_refused(tmp_path):
    values = ["x" * 100_000 + str(number) for number in range(100)]
    path = write(tmp_path / "rows.parquet", values, use_dictionary=False, compression="zstd")
    assert "column 'turns.list.element.content' unpacks from" in refused(path)


def test_columns_of_parquet_are_limited_in_number(tmp_path):
    pq.write_table(pa.table({f"c{number}": [1] for number in range(10_001)}), path := tmp_path / "wide.parquet")
    assert "has 10,001 columns; at most 10,000" in refused(path)
