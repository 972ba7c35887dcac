"""The verbs of data: remove rows which copy a benchmark, and show what a finished data stage is made of."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tercet.cli.main import VERBS
from tercet.cli.parser import parser
from tercet.evals import suite
from tercet.folders import payload_digest
from tercet.rows import write_table
from tercet.rows_file import read_file
from tercet.store import StoreError

QUESTION = "Ann has three pens and buys four more pens in the shop. How many pens has she in the end?"


def call(*words: object) -> int:
    """Run the verb as the command line does."""
    args = parser(VERBS).parse_args([str(word) for word in words])
    return int(args.verb(args))


@pytest.fixture
def benchmark(tmp_path: Path) -> Path:
    folder = tmp_path / "benchmark"
    items = [{"task": "dev@1", "item": "7", "fields": [QUESTION]}, {"task": "new@1", "item": "1", "fields": ["x " * 9]}]
    write_table(folder / "benchmark.parquet", items)
    (folder / "tasks.json").write_text(
        json.dumps([{"name": "dev@1", "locked": False}, {"name": "new@1", "locked": True}])
    )
    return folder


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    texts = ["What is a pen?", QUESTION.upper(), "Who are you?"]
    path.write_text("".join(json.dumps({"id": f"r{k}", "prompt": text}) + "\n" for k, text in enumerate(texts)))
    return path


def test_a_folder_of_prompts_is_kept_out(
    tmp_path: Path, benchmark: Path, rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, report = tmp_path / "made" / "clean.jsonl", tmp_path / "made" / "report.json"
    assert call("decontaminate", rows, "--against", benchmark, "--out", out, "--report", report, "--workers", 1) == 0
    said = capsys.readouterr().out
    assert [json.loads(line)["id"] for line in out.read_text().splitlines()] == ["r0", "r2"]
    assert "dev@1 7: 100% in r1 of rows.jsonl" in said
    assert "not copied at all: new@1" in said
    assert "3 rows, " in said
    assert "2 kept" in said
    assert "second pass: 2 rows" in said
    found = json.loads(report.read_text())
    assert found["matrix"] == [
        {"source": "rows.jsonl", "task": "dev@1", "copied": 1, "items": 1, "share": 1.0, "verdict": "rows removed"}
    ]
    assert found["rule"]["unseen"] == ["new@1"]


def test_an_unseen_benchmark_drops_the_set(
    tmp_path: Path, benchmark: Path, rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with rows.open("a") as stream:
        stream.write(json.dumps({"prompt": "x " * 9}) + "\n")
    assert call("decontaminate", rows, "--against", benchmark, "--out", tmp_path / "o.jsonl", "--workers", 1) == 0
    assert "rows.jsonl 4 4 new@1" in (said := " ".join(capsys.readouterr().out.split()))
    assert "rows.jsonl 100.0 100.0 !" in said
    assert (tmp_path / "o.jsonl").read_text() == ""


def test_generated_tasks_can_be_named_and_json_is_printed(
    tmp_path: Path, rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--out", tmp_path / "o.jsonl", "--workers", 1, "--json")
    assert call("decontaminate", rows, "--against", "words@1", *options) == 0
    found = json.loads(capsys.readouterr().out)
    (words,) = found["benchmarks"]
    assert {key: words[key] for key in ("task", "items", "copied", "by_ngrams", "unsearched")} == {
        "task": "words@1", "items": 120, "copied": 0, "by_ngrams": 120, "unsearched": 0
    }  # fmt: skip
    assert found["unsearched"] == []
    assert (found["rows"], found["removed"], found["rule"]["exact"]) == (3, 0, False)


def test_short_items_are_found_but_by_the_papers_rule_and_that_is_said(
    tmp_path: Path, rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_table(tmp_path / "benchmark.parquet", [{"task": "t@1", "item": "1", "fields": ["Who are you?"]}])
    asked = ("decontaminate", rows, "--against", tmp_path, "--out", tmp_path / "o.jsonl", "--workers", 1)
    for way, removed in (("--where=user", 1), ("--exact", 1), ("--published", 0)):
        assert call(*asked, "--json", way) == 0
        assert json.loads(capsys.readouterr().out)["removed"] == removed
    assert call(*asked, "--published") == 0
    said = capsys.readouterr().out
    assert "items with too few words to be looked for, of which nothing is said: 1 t@1" in said
    assert "0 copy one of the 0 items that were looked for" in said
    assert "not copied at all" not in said


def test_answers_and_system_turns_are_searched_where_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    item = "Ann has three pens and buys four more of them in the shop today"
    write_table(tmp_path / "benchmark.parquet", [{"task": "t@1", "item": "1", "fields": [item]}])
    turns = [{"role": "user", "content": "Make up a problem."}, {"role": "assistant", "content": f"**{item}**"}]
    lines = [
        {"messages": turns},
        {"messages": [{"role": "system", "content": item}, turns[0]]},
        {"messages": turns[:1]},
    ]
    lines.append({"messages": json.dumps(turns)})  # a conversation as a JSON string
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    asked = ("decontaminate", tmp_path / "rows.jsonl", "--against", tmp_path, "--out", tmp_path / "o.jsonl", "--json")
    assert call(*asked, "--workers", 1, "--where", "all") == 0
    assert json.loads(capsys.readouterr().out)["removed"] == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--threshold", 50), "between 0 and 1"),
        (("--share", -1), "between 0 and 1"),
        (("--against", "/"), "benchmark.parquet"),
    ],
)
def test_bad_options_say_what_was_expected(
    tmp_path: Path, rows: Path, options: tuple[object, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        call("decontaminate", rows, "--against", "words@1", "--out", tmp_path / "o.jsonl", *options)


def test_named_tasks_bring_their_worked_examples(
    tmp_path: Path, rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shots = [{"question": QUESTION, "answer": "7"}, {"question": "How many legs have two dogs?", "answer": "8"}]
    (tmp_path / "shots.json").write_text(json.dumps(shots))
    (tmp_path / "test.jsonl").write_text('{"question": "How many ears have two cats?", "answer": "#### 4"}\n')
    task = suite.task("gsm8k@2")
    (tmp_path / "mirror.toml").write_text(
        f'[mirror]\n"openai/gsm8k" = "{tmp_path}/test.jsonl"\n"{task.examples[0].path}" = "{tmp_path}/shots.json"\n'
    )
    options = ("--mirror", tmp_path / "mirror.toml", "--out", tmp_path / "o.jsonl", "--workers", 1, "--json")
    assert call("decontaminate", rows, "--against", "gsm8k@2", *options) == 0
    found = json.loads(capsys.readouterr().out)
    copied = [(benchmark["task"], benchmark["copied"], benchmark["items"]) for benchmark in found["benchmarks"]]
    assert copied == [("gsm8k@2", 0, 1), ("gsm8k@2:examples", 1, 2)]
    assert [(one["task"], one["item"]) for one in found["items"]] == [("gsm8k@2:examples", "example-1")]


def stage(store: Path, kind: str, summary: object, removed: list[dict[str, object]] | None = None) -> None:
    """A finished artifact of a data stage, as far as the verb reads it."""
    payload = store / f"{kind}-0123456789ab" / "payload"
    payload.mkdir(parents=True)
    record = {"kind": kind, "name": kind, "key": "0123456789ab", "inputs": {}, "metrics": {}, "seconds": 1.0}
    if summary is not None:
        (payload / "summary.json").write_text(json.dumps(summary))
    if removed:
        write_table(payload / "removed.parquet", removed)
    record["digest"] = payload_digest(payload)
    (payload.parent / "artifact.json").write_text(json.dumps(record))


SHEET = {"source": "a", "part": "set", "rows": 1200, "tokens": 5, "turns": 2.25, "licence": "MIT", "commercial": "yes"}
CELL = {"source": "set", "task": "new@1", "copied": 3, "items": 60, "share": 0.05, "verdict": "set dropped"}
MIX = {
    "of": "rows",
    "rows": 1200,
    "removed": {"duplicate": 1},
    "sources": [{"source": "a", "read": 1300, "skipped": {"no turn": 99}, "entered": 1201, "sampled": 1201}],
    "sheet": [SHEET],
    "counted": "words",
    "benchmarks": [
        {"task": "new@1", "items": 60, "copied": 3, "share": 0.05},
        {"task": "b@1", "items": 1, "copied": 0},
    ],
    "matrix": [CELL],
    "rule": {"ngram": 8, "threshold": 0.5, "share": 0.02, "exact": False},
    "licences": ["Mind the terms of set."],
    "expected": {"rows": 1250, "found": 1201, "differences": [{"source": "a", "expected": 1250, "found": 1201}]},
}
BAD = {"reason": "has no user turn", "rows": 2, "examples": ["a.jsonl, row 7: has no user turn", "a.jsonl, row 9: so"]}
MIX["sources"][0] |= {"bad": [BAD], "left": {"images": 3}}  # type: ignore[index]
MIX["sources"][0] |= {"removed": {"duplicate": 1}, "kept": 1200, "repeated": 0, "expected": 1250}  # type: ignore[index]
GONE: dict[str, object] = {"source": "a", "row": "r1", "rule": "duplicate", "detail": "same as r0", "task": ""}
GONE |= {"item": "", "coverage": 0.0, "row_text": "A second time", "benchmark_text": ""}
COPIED = GONE | {"row": "r2", "rule": "contaminated", "task": "new@1", "item": "7", "coverage": 0.9}
COPIED |= {"row_text": "Homework: what is a pen?", "benchmark_text": "What is a pen?"}


def test_a_mixture_shows_its_datasheet_rules_matrix_and_copies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stage(tmp_path, "mix", MIX, [GONE, COPIED])
    assert call("data", "mix", "--store", tmp_path) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "set a 1,200 5 2.25 MIT yes" in said
    assert "a 1,300 1,201 1,201 1,200 1,250 1 99 no turn" in said
    assert "a: 2 rows cannot be read: has no user turn a.jsonl, row 7: has no user turn a.jsonl, row 9: so" in said
    assert "a: left behind, rows of each: 3 images" in said
    assert "Mind the terms of set." in said
    assert "expected 1,250 rows, found 1,201" in said
    assert "set 5.0 !" in said
    assert "not copied at all: b@1" in said
    assert "new@1 7: 90% in r2 of a benchmark What is a pen? row Homework: what is a pen?" in said
    assert "duplicate: same as r0 (r1 of a) row A second time" in said
    assert call("data", tmp_path / "mix-0123456789ab", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["artifact"] == "mix-0123456789ab"
    assert found["matrix"]["lines"] == [{"part": "set", "cells": [CELL], "whole": ["new@1"]}]
    assert [row["row"] for row in (*found["copies"], *found["others"])] == ["r2", "r1"]


def test_a_rated_stage_shows_which_models_won_and_what_it_cost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = {"asked": 9, "answered": 8, "failed": 1, "tokens": 90, "read": 1234, "wrote": 90, "cost": 0.5}
    summary = {
        "prompts": 4,
        "pairs": 3,
        "rules": {"rated_pairs": 3},
        "no_pair": {"a tie": 1},
        "dropped": {"a tie": 1},
        "ratings": {"rated": 32},
        "models": {"one": {"rated_pairs": 3, "chosen": 2 / 3, "rejected": 1 / 3}},
        "mean_words": {"chosen": 50.0, "rejected": 40.0},
        "aspect_agreement": {"honesty": 0.75},
        "requests": {"asked": 9, "answered": 8, "failed": 1, "cost": 0.5, "models": {"judge": line}},
        "budget": 2.0,
    }
    stage(tmp_path, "rated_pairs", summary)
    assert call("data", "rated_pairs", "--store", tmp_path) == 0
    said = " ".join(capsys.readouterr().out.split())
    for part in (
        "prompts 4, pairs 3 rules: 3 rated_pairs no pair: 1 a tie ratings: 32 rated",
        "one 3 66.7% 33.3%",
        "chosen answers have 50 words in the mean, rejected ones 40",
        "honesty orders 75.0%",
        "judge 9 1 1,234 90 0.5 cost 0.5, budget 2",
    ):
        assert part in said
    stage(tmp_path, "personas", {})
    assert call("data", "personas", "--store", tmp_path) == 0


def test_what_is_no_data_stage_is_refused(tmp_path: Path) -> None:
    stage(tmp_path, "sft", {})
    stage(tmp_path, "pair_mix", None)
    with pytest.raises(
        StoreError, match="is of kind sft; expected a data stage: mix, pair_mix, unpaired_mix, personas"
    ):
        call("data", "sft", "--store", tmp_path)
    with pytest.raises(StoreError, match=r"has no summary\.json; run `tercet check pair_mix-0123456789ab`"):
        call("data", "pair_mix", "--store", tmp_path)


def test_the_two_maths_problems_of_training_and_benchmark_go(
    tmp_path: Path, shared_data: Path, mirror: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(mirror.parent)
    train = shared_data / "train/math/train_answers.json.gz"
    options = ("--mirror", mirror, "--out", tmp_path / "o.jsonl", "--json", "--workers", 2)
    assert call("decontaminate", train, "--against", "math@1", *options) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kept"] + found["removed"] == 7474
    assert found["proof"] == {"rows": found["kept"], "copy": 0}
    benchmark = {squeezed(row["problem"]) for row in read_file(shared_data / "eval/math/test.jsonl.gz")}
    shared = {squeezed(row["problem"]) for row in read_file(train)} & benchmark
    assert len(shared) == 2
    assert any(squeezed(item["row_text"]) in shared for item in found["items"])
    assert not shared & {squeezed(row["problem"]) for row in read_file(tmp_path / "o.jsonl")}


def squeezed(text: str) -> str:
    return "".join(text.split())
