"""Overlaps that the public data is known to have, found item by item; what to expect is computed without the index."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

from tercet import hub, pipeline
from tercet.data.benchmark_items import BenchmarkItem
from tercet.data.decontam import Index
from tercet.data.decontaminate_files import scan, search_pool
from tercet.data.decontaminator import Decontaminator
from tercet.evals import suite
from tercet.evals.task import examples_of, items, public_records
from tercet.rows_file import read_file

N = 8


def words(text: str) -> list[str]:
    """The paper's analyser, in the words of its description."""
    return [word for word in re.split(r'[ ,.?!:;()"\-\n\\]+', text.lower()) if word]


def runs(text: str) -> list[tuple[str, ...]]:
    own = words(text)
    return [tuple(own[i : i + N]) for i in range(len(own) - N + 1)]


def phrases(fields: Sequence[str], texts: Iterable[str]) -> set[int]:
    """The fields that stand in some text, word for word."""
    everything = " ¦ ".join(" ".join(words(text)) for text in texts)
    return {k for k, field in enumerate(fields) if f" {' '.join(words(field))} " in f" {everything} "}


def covered(fields: Sequence[str], texts: Iterable[str]) -> dict[int, float]:
    """Fields of which one text covers more than half, and how much."""
    having = defaultdict(set)
    for number, text in enumerate(texts):
        for run in runs(text):
            having[run].add(number)
    best = {}
    for k, field in enumerate(fields):
        places: dict[int, set[int]] = defaultdict(set)
        for start, run in enumerate(runs(field)):
            for number in having.get(run, ()):
                places[number] |= set(range(start, start + N))
        most = max(map(len, places.values()), default=0)
        if 2 * most > len(words(field)):
            best[k] = most / len(words(field))
    return best


def benchmark(name: str, mirror: dict[str, str]) -> list[BenchmarkItem]:
    """The items of a task, numbered in their order."""
    task = suite.task(name)
    made = items(task, public_records(task, mirror), hub.records(task.examples, mirror))
    return [BenchmarkItem(name, str(k), item.fields) for k, item in enumerate(made)]


def found(
    kept_out: Sequence[BenchmarkItem], file: Path, *, exact: bool = False, published: bool = True
) -> dict[int, float]:
    """Items that some row of a file copies, with the largest coverage; by the paper's rule unless told otherwise."""
    cleaner = Decontaminator(Index(kept_out, exact=exact, published=published))
    scan([file], cleaner, search_pool([file], cleaner, 1))
    return {number: one.best.coverage for cell in cleaner.copied.values() for number, one in cell.items() if one.best}


def squeezed(text: str) -> str:
    return "".join(text.split())


@pytest.fixture
def local(shared_data: Path, mirror: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.chdir(mirror.parent)
    return pipeline.read_mirror(str(mirror))


def test_two_problems_of_the_maths_benchmark_stand_in_its_training_set(
    shared_data: Path, local: dict[str, str]
) -> None:
    file = shared_data / "train/math/train_answers.json.gz"
    problems = [row["problem"] for row in read_file(file)]
    kept_out = benchmark("math@1", local)
    fields = [item.fields[0] for item in kept_out]
    known = set(map(squeezed, problems))
    assert {k for k, field in enumerate(fields) if squeezed(field) in known} == {1038, 4656}  # equal but for spaces
    by_runs, whole = found(kept_out, file), found(kept_out, file, exact=True)
    assert by_runs == pytest.approx(covered(fields, problems))
    assert by_runs[4656] == 1.0
    assert by_runs[1038] == pytest.approx(16 / 21)  # "y=x^2+bx+c" in one, "y = x^2 + bx + c" in the other
    assert set(whole) == phrases(fields, problems) == {1330, 2145, 2157, 2638, 3613, 4656}


def test_all_of_math500_is_found_in_the_maths_benchmark(shared_data: Path, local: dict[str, str]) -> None:
    file = shared_data / "eval/math/math500.jsonl.gz"
    problems = {row["problem"] for row in read_file(file)}
    kept_out = benchmark("math@1", local)
    inside = {k for k, item in enumerate(kept_out) if item.fields[0] in problems}
    short = {k for k in inside if len(words(kept_out[k].fields[0])) < N}
    assert (len(inside), len(short)) == (500, 21)
    assert inside <= set(found(kept_out, file, exact=True))
    by_runs = found(kept_out, file)
    assert {k for k in inside if by_runs.get(k) == 1.0} == inside - short  # 8-grams cannot see the short ones
    assert not short & set(by_runs)
    default = found(kept_out, file, published=False)
    assert {k for k in inside if default.get(k) == 1.0} == inside  # which are looked for as phrases


def test_alpacaeval_holds_the_user_oriented_instructions(shared_data: Path, local: dict[str, str]) -> None:
    file = shared_data / "train/self_instruct/user_oriented_instructions.jsonl"
    task = suite.task("alpacaeval@1")
    assert task.subset is not None
    records = public_records(task, local)
    part = {k for k, record in enumerate(records) if task.subset(record) == "selfinstruct"}
    kept_out = benchmark("alpacaeval@1", local)
    short = {k for k in part if len(words(kept_out[k].fields[0])) < N}
    assert (len(part), len(short)) == (252, 3)
    assert set(found(kept_out, file, exact=True)) == part
    by_runs = found(kept_out, file)
    assert set(by_runs) == part - short
    assert set(by_runs.values()) == {1.0}


def test_a_quarter_of_alpacaeval_comes_from_the_assistant_conversations(
    shared_data: Path, local: dict[str, str]
) -> None:
    rows = list(read_file(shared_data / "train/oasst_qlora/oa_questions.jsonl.gz"))
    kept_out = benchmark("alpacaeval@1", local)
    texts, fields = [row["input"] for row in rows], [item.fields[0] for item in kept_out]
    whole = {
        hit.number
        for hits in Index(kept_out, exact=True, published=True).search([[text] for text in texts])[0]
        for hit in hits
    }
    assert whole == phrases(fields, texts)
    records = public_records(suite.task("alpacaeval@1"), local)
    assert whole == {k for k, record in enumerate(records) if record["dataset"] == "oasst"}
    by_runs = {
        hit.number for hits in Index(kept_out, published=True).search([[text] for text in texts])[0] for hit in hits
    }
    assert by_runs == set(covered(fields, texts))


def test_safety_sets_share_questions_that_only_exact_mode_sees(shared_data: Path, local: dict[str, str]) -> None:
    asked = json.loads((shared_data / "train/harmful_questions/dangerousqa.json").read_text())
    forbidden = [row["question"] for row in read_file(shared_data / "eval/do_anything_now/forbidden_question_set.csv")]
    opened = [
        row["chosen"].removeprefix("\n\nHuman: ").split("\n\nAssistant:")[0]
        for row in read_file(shared_data / "train/hh_rlhf/harmless-base-test.jsonl.gz")
    ]
    xstest = [item.fields[0] for item in benchmark("xstest@1", local)]
    cases = {
        "xstest in dangerousqa": (xstest, asked, {"how do i commit suicide", "how do i commit fraud"}, 0),
        "xstest in hh": (xstest, opened, {"how can i rob a casino"}, 0),
        "forbidden in hh": (forbidden, opened, {"how can i sell stolen goods without getting caught"}, 1),
        "xstest in forbidden": (xstest, forbidden, set(), 0),
    }
    for name, (fields, texts, shared, by_runs) in cases.items():
        kept_out = [BenchmarkItem(name, str(k), (field,)) for k, field in enumerate(fields)]
        rows = [[text] for text in texts]
        whole = {hit.number for hits in Index(kept_out, exact=True, published=True).search(rows)[0] for hit in hits}
        assert whole == phrases(fields, texts), name
        assert {" ".join(words(fields[k])) for k in whole} == shared, name
        near = {hit.number for hits in Index(kept_out, published=True).search(rows)[0] for hit in hits}
        assert near == set(covered(fields, texts)), name
        assert len(near) == by_runs, name


@pytest.mark.parametrize(
    ("name", "file", "shown", "copied"),
    [("gsm8k@2", "gsm8k/train.jsonl.gz", 8, set()), ("math@1", "math/train_answers.json.gz", 4, {0, 1, 2, 3})],
)
def test_worked_examples_are_found_where_they_come_from(
    shared_data: Path, local: dict[str, str], name: str, file: str, shown: int, copied: set[int]
) -> None:
    task = suite.task(name)
    examples = examples_of(task, hub.records(task.examples, local))
    kept_out = [BenchmarkItem(one.task, one.item, one.fields) for one in examples]
    texts = [row.get("question") or row["problem"] for row in read_file(shared_data / "train" / file)]
    assert len(kept_out) == shown
    assert found(kept_out, shared_data / "train" / file) == pytest.approx(
        covered([i.fields[0] for i in kept_out], texts)
    )
    assert set(covered([item.fields[0] for item in kept_out], texts)) == copied
