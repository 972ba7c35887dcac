"""Decontamination of files: every layout, any number of workers, what goes and what stays, and the proof."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tercet.data import decontaminate_files
from tercet.data.benchmark_items import BenchmarkItem
from tercet.data.decontam import Index
from tercet.data.decontaminate_files import batches, documents, scan, search_pool
from tercet.data.decontaminator import DecontaminationRule, Decontaminator, prove
from tercet.data.process_pool import ProcessPool
from tercet.data.sources import Reading, load
from tercet.data.user_texts import user_texts
from tercet.recipe import SourceSpec
from tercet.rows import RowError

BENCHMARK = [
    BenchmarkItem(task, str(number), (" ".join(f"{task[:3]}{number}w{k}" for k in range(20)),))
    for task in ("dev@1", "unseen@1")
    for number in range(10)
]
INDEX = Index(BENCHMARK)
COPY = {(item.task, item.item): item.fields[0] for item in BENCHMARK}
HARMLESS = "Tell me how a bird builds its nest in early spring, please."


def said(text: str, source: str = "", **more: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": text}, {"role": "assistant", "content": COPY["dev@1", "9"]}]
    return {"messages": turns, **({"source": source} if source else {}), **more}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def read(path: Path) -> list[dict[str, Any]]:
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [json.loads(line) for line in text.split(b"\n") if line]


def clean(files: list[Path], out: Path, policy: DecontaminationRule | None = None, workers: int = 1) -> dict[str, Any]:
    return decontaminate_files.clean(files, out, Decontaminator(INDEX, policy), workers)


def turns(*speakers: str) -> list[dict[str, str]]:
    return [{"role": who.split("=")[0], "content": who.split("=")[1]} for who in speakers]


@pytest.mark.parametrize(
    ("row", "texts"),
    [
        ({"messages": turns("system=s", "user=a", "assistant=b", "user=c")}, ["a", "c"]),
        ({"messages": turns("user=a"), "ground_truth": "7", "dataset": "GSM8K"}, ["a"]),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, ["a"]),
        (
            {"chosen": turns("user=a", "assistant=b"), "rejected": turns("user=a", "assistant=c"), "prompt": "p"},
            ["a", "p"],
        ),
        (
            {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c\n\nHuman: d"},
            ["a", "d"],
        ),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, ["a"]),
        ({"instruction": "a", "input": "b", "output": "c"}, ["a\n\nb"]),
        ({"instruction": "a", "instances": [{"input": "b"}, {"input": ""}]}, ["a\n\nb", "a"]),
        ({"question": "a", "answer": "b"}, ["a"]),
        ({"problem": "a", "answer": "b"}, ["a"]),
        ({"conversation": turns("user=a", "assistant=b"), "model": "gpt-3.5"}, ["a"]),
        ({"inputs": "a", "targets": "b"}, ["a"]),
        ({"input persona": "a", "synthesized text": "b"}, ["a"]),
        ({"vanilla": "a", "adversarial": "b", "completion": "c", "data_type": "d"}, ["a", "b"]),
        ({"text": "### Human: a### Assistant: b### Human: c", "message_id": "1"}, ["a", "c"]),
        ({"input": "### Human: a### Assistant: ", "output": "b"}, ["a"]),
        ({"message_id": "1", "parent_id": None, "role": "prompter", "text": "a"}, ["a"]),
        ({"message_id": "2", "parent_id": "1", "role": "assistant", "text": "b"}, []),
    ],
)
def test_user_turns_are_read_from_every_layout(row: dict[str, Any], texts: list[str]) -> None:
    assert user_texts(row, "here") == texts


@pytest.mark.parametrize(
    "row", [{}, {"answer": "x"}, {"text": "x"}, {"messages": ["x"]}, {"messages": [{"role": "user", "content": 3}]}]
)
def test_a_row_without_user_turns_stops_with_its_place(row: dict[str, Any]) -> None:
    with pytest.raises(RowError, match="file, row 3"):
        user_texts(row, "file, row 3")


@pytest.mark.parametrize("name", ["r.jsonl", "r.jsonl.gz", "r.json", "r.csv", "r.csv.gz", "r.parquet"])
def test_every_kind_of_file_loses_exactly_the_row_that_copies(tmp_path: Path, name: str) -> None:
    rows = [{"id": str(k), "prompt": COPY["dev@1", "3"] if k == 2 else f"{HARMLESS} {k}"} for k in range(5)]
    path = tmp_path / name
    if "jsonl" in name:
        write(path, rows)
    elif "csv" in name:
        with gzip.open(path, "wt", newline="") if name.endswith(".gz") else open(path, "w", newline="") as stream:
            writer = csv.DictWriter(stream, ["id", "prompt"])
            writer.writeheader()
            writer.writerows(rows)
    elif "parquet" in name:
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text(json.dumps(rows))
    found = clean([path], tmp_path / "out.jsonl")
    assert read(tmp_path / "out.jsonl") == rows[:2] + rows[3:]
    assert (found["rows"], found["kept"], found["removed"], found["proof"]) == (5, 4, 1, {"rows": 4, "copy": 0})
    (item,) = found["items"]
    assert (item["task"], item["item"], item["row"], item["coverage"]) == ("dev@1", "3", "2", 1.0)
    assert item["row_text"] == item["benchmark_text"] == COPY["dev@1", "3"]


GPT = {"from": "gpt", "value": "Yes."}
ANSWER = {"role": "assistant", "content": "Yes."}
WRONG = {"role": "assistant", "content": "No."}
LAYOUTS: dict[str, Callable[[str], dict[str, Any]]] = {
    "rows": lambda text: {"messages": [{"role": "user", "content": text}, ANSWER]},
    "sharegpt": lambda text: {"conversations": [{"from": "human", "value": text}, GPT]},
    "wildchat": lambda text: {"conversation": [{"role": "user", "content": text}, ANSWER], "model": "gpt-4"},
    "prompt_completion": lambda text: {"prompt": text, "completion": "Yes."},
    "inputs_targets": lambda text: {"inputs": text, "targets": "Yes."},
    "alpaca": lambda text: {"instruction": "Answer this.", "input": text, "output": "Yes."},
    "guanaco": lambda text: {"text": f"### Human: {text}### Assistant: Yes."},
    "persona": lambda text: {"persona": text},
    "preference": lambda text: {
        side: [{"role": "user", "content": text}, answer] for side, answer in (("chosen", ANSWER), ("rejected", WRONG))
    },
    "prompt_pair": lambda text: {"prompt": text, "chosen": "Yes.", "rejected": "No."},
    "sharegpt_pair": lambda text: {
        "conversations": [{"from": "human", "value": text}],
        "chosen": GPT,
        "rejected": {"from": "gpt", "value": "No."},
    },
    "hh": lambda text: {side: f"\n\nHuman: {text}\n\nAssistant: {side}" for side in ("chosen", "rejected")},
}


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.json", "rows.parquet"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_file_that_mixtures_read_loses_the_copy_that_they_would_read(tmp_path: Path, layout: str, name: str) -> None:
    path, copy = tmp_path / name, COPY["dev@1", "3"]
    rows = [LAYOUTS[layout](text) for text in (HARMLESS, copy, f"{HARMLESS} Please.")]
    if name == "rows.parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif name == "rows.json":
        path.write_text(json.dumps(rows))
    else:
        write(path, rows)
    reading = Reading()
    source = SourceSpec(path=str(path), require_answer=False, adapter="auto")
    assert [copy in row.user_turns[0] for row in load(source, {}, {}, reading)] == [False, True, False]
    assert f"is read as {layout!r}" in reading.said[0]
    found = clean([path], tmp_path / "out.jsonl")
    assert read(tmp_path / "out.jsonl") == [rows[0], rows[2]]
    assert (found["removed"], found["proof"]) == (1, {"rows": 2, "copy": 0})


def test_parquet_stays_parquet_with_its_columns(tmp_path: Path) -> None:
    table = pa.Table.from_pylist([said(HARMLESS, extra=1), said(COPY["dev@1", "0"], extra=2)])
    pq.write_table(table, tmp_path / "rows.parquet")
    clean([tmp_path / "rows.parquet"], tmp_path / "out.parquet")
    assert pq.read_table(tmp_path / "out.parquet").equals(table.slice(0, 1))
    with pytest.raises(ValueError, match=r"choose \.jsonl"):
        clean([write(tmp_path / "a.jsonl", [said(HARMLESS)])], tmp_path / "b.parquet")


def test_a_line_that_stays_is_kept_byte_for_byte(tmp_path: Path) -> None:
    line = b'{"prompt":  "\\u00e9 odd   spacing", "n": 1e3}'
    (tmp_path / "rows.jsonl").write_bytes(b"\n" + line + b"\r\n\n" + line)
    clean([tmp_path / "rows.jsonl"], tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_bytes() == (line + b"\n") * 2


def test_a_text_split_over_two_rows_or_said_by_the_assistant_does_not_count(tmp_path: Path) -> None:
    words = COPY["dev@1", "0"].split()
    rows = [said(" ".join(words[:10])), said(" ".join(words[10:])), said(HARMLESS)]
    files, cleaner = [write(tmp_path / "rows.jsonl", rows)], Decontaminator(INDEX)
    assert not scan(files, cleaner, search_pool(files, cleaner, 1)).rows


def mixture() -> list[dict[str, Any]]:
    """200 rows of four sets: clean, one dev item (10 %), one unseen item (10 %), both."""
    rows = [said(f"{HARMLESS} {k}", f"set{k % 4}") for k in range(200)]
    rows[41] = said(COPY["dev@1", "1"], "set1")
    rows[81] = said(COPY["dev@1", "1"].upper() + "?", "set1")
    rows[42] = said(COPY["unseen@1", "2"], "set2")
    rows[43] = said(f"{COPY['dev@1', '1']} {COPY['unseen@1', '2']}", "set3")
    return rows


def test_unseen_benchmarks_cost_the_whole_set_and_development_ones_the_rows(tmp_path: Path) -> None:
    rows = mixture()
    policy = DecontaminationRule(unseen=frozenset({"unseen@1"}))
    found = clean([write(tmp_path / "rows.jsonl", rows)], tmp_path / "out.jsonl", policy)
    assert read(tmp_path / "out.jsonl") == [
        row for k, row in enumerate(rows) if row["source"] in ("set0", "set1") and k not in (41, 81)
    ]
    assert [(one["source"], one["rows"], one["removed"], one["dropped_for"]) for one in found["sources"]] == [
        ("set0", 50, 0, []),
        ("set1", 50, 2, []),
        ("set2", 50, 50, ["unseen@1"]),
        ("set3", 50, 50, ["unseen@1"]),
    ]
    assert [(cell["source"], cell["task"], cell["share"], cell["verdict"]) for cell in found["matrix"]] == [
        ("set1", "dev@1", 0.1, "rows removed"),
        ("set2", "unseen@1", 0.1, "set dropped"),
        ("set3", "dev@1", 0.1, "rows removed"),
        ("set3", "unseen@1", 0.1, "set dropped"),
    ]
    assert next((item["source"], item["item"], item["rows"]) for item in found["items"]) == ("set1", "1", 2)


@pytest.mark.parametrize(("share", "kept"), [(0.1, 200), (0.09, 197)])
def test_sets_at_or_below_the_share_may_be_spared(tmp_path: Path, share: float, kept: int) -> None:
    policy = DecontaminationRule(share=share, spare=True)
    path = write(tmp_path / "rows.jsonl", [row for row in mixture() if row["source"] != "set2"])
    found = clean([path], tmp_path / "out.jsonl", policy)
    assert found["kept"] == kept - 50
    assert found["proof"]["copy"] == (3 if share == 0.1 else 0)


def test_any_number_of_workers_gives_the_same_file_and_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decontaminate_files, "BATCH_BYTES", 2000)
    path = write(tmp_path / "rows.jsonl.gz", mixture())
    assert len(list(batches(path))) > 10
    one = clean([path, path], tmp_path / "out.jsonl.gz")
    alone = (tmp_path / "out.jsonl.gz").read_bytes()
    assert clean([path, path], tmp_path / "out.jsonl.gz", workers=2) == one
    assert (tmp_path / "out.jsonl.gz").read_bytes() == alone


def test_the_second_pass_finds_what_was_left(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", mixture())
    with (
        ProcessPool(Decontaminator(INDEX).search(documents), 1) as pool,
        pytest.raises(RuntimeError, match="found 200 and 4"),
    ):
        prove(pool, batches(path), rows=200)


@pytest.mark.parametrize("bad", [b"[1]", b"{", b'{"prompt": "\xff"}', b"[" * 100_000])
def test_a_bad_line_stops_with_file_and_row(tmp_path: Path, bad: bytes) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b'{"prompt": "a"}\n' + bad)
    for name, content in (("rows.jsonl", None), ("cut.jsonl.gz", gzip.compress(b"x" * 999)[:-9])):
        if content:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(RowError, match=name):
            clean([tmp_path / name], tmp_path / "out.jsonl")
    assert not list(tmp_path.glob("*out.jsonl*"))


def test_the_output_is_none_of_the_inputs_and_has_a_known_kind(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [said(HARMLESS)])
    with pytest.raises(ValueError, match="write to another"):
        clean([path], path)
    with pytest.raises(ValueError, match="output named"):
        clean([path], tmp_path / "out.csv")
    with pytest.raises(RowError, match="expected a file named"):
        clean([tmp_path / "none.jsonl"], tmp_path / "out.jsonl")


def test_the_real_overlap_of_self_instruct_and_alpaca_eval_is_flagged(shared_data: Path) -> None:
    file = shared_data / "eval/alpaca_eval/baseline_gpt4_1106_preview_outputs.json.gz"
    benchmark = json.loads(gzip.decompress(file.read_bytes()))
    items = [
        BenchmarkItem("alpacaeval@1", f"{row['dataset']}-{k}", (row["instruction"],)) for k, row in enumerate(benchmark)
    ]
    cleaner = Decontaminator(Index(items))
    files = [shared_data / "train/self_instruct/user_oriented_instructions.jsonl"]
    scan(files, cleaner, search_pool(files, cleaner, 1))
    (cell,) = cleaner.matrix()
    own = [number for number, row in enumerate(benchmark) if row["dataset"] == "selfinstruct"]
    found = {number for numbers in cleaner.copied.values() for number in numbers if number in set(own)}
    missed = [number for number in own if number not in found]
    assert cell["share"] > 0.2
    assert len(own) == 252
    assert len(missed) <= 0.05 * len(own)
