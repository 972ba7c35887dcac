from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_eval import DEV, ROWS
from fake_run import FakeRun, write_suite
from test_differences import checkpoint
from test_page import Reader, written

from tercet.evals.compare import compare as compare_evals
from tercet.report import collect, compare, evals, samples
from tercet.report.collect import Checkpoint


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> FakeRun:
    """Three checkpoints that were evaluated on a development suite of fourteen tasks."""
    return write_suite(tmp_path_factory.mktemp("dev") / "runs")


@pytest.fixture(scope="module")
def points(dev: FakeRun) -> list[Checkpoint]:
    return collect.checkpoints(dev.spec.evals, collect.walk(dev.spec.evals, dev.inputs, dev.recipe), dev.recipe)


@pytest.fixture(scope="module")
def html(dev: FakeRun, tmp_path_factory: pytest.TempPathFactory) -> str:
    return written(dev, tmp_path_factory.mktemp("page"))


def summary(points: list[Checkpoint], opened: dict[str, list[str]] | None = None) -> dict[str, Any]:
    return evals.summary("M", points, opened or {})


def test_the_page_of_a_whole_suite_is_well_formed_and_light(html: str) -> None:
    page = Reader(html)
    assert (page.crossed, page.open) == ([], [])
    assert len(html.encode()) < 1_500_000
    assert html.count('<details class="sheet">') == len(DEV)


def test_differences_are_those_of_tercet_compare(dev: FakeRun, points: list[Checkpoint]) -> None:
    lines = compare_evals(dev.folder("eval-base") / "payload", dev.folder("eval-sft") / "payload")
    found = compare.family(points[0], points[1], list(DEV))
    for line in lines[: len(DEV)]:
        ours = found[line.task]
        assert ours is not None
        assert ours == line


def test_items_that_failed_on_either_side_are_left_out_and_counted(points: list[Checkpoint]) -> None:
    sides = [{key for key, one in point.results.items() if one.outcome == "error"} for point in points[:2]]
    for task, change in compare.family(points[0], points[1], list(DEV)).items():
        assert change is not None
        assert change.left_out == sum(key[0] == task for key in sides[0] | sides[1])
    assert summary(points)["failed"]


def test_items_that_were_asked_differently_are_left_out() -> None:
    a, b = checkpoint("a", [0.0] * 20), checkpoint("b", [1.0] * 20)
    b.results["t@1", "3"] = replace(b.results["t@1", "3"], digest="another question")
    change = compare.difference("t@1", a, b)
    assert change is not None
    assert (change.n, change.left_out) == (19, 1)


def test_verdicts_are_corrected_for_the_number_of_tasks() -> None:
    """Eight gained items of fifty have p = 0.008: enough for one task, not for ten at once."""

    def many(label: str, values: list[float], num: int) -> Checkpoint:
        one = checkpoint(label, values)
        names = [f"t{i}@1" for i in range(num)]
        scores = {name: replace(one.scores["t@1"], task=name) for name in names}
        results = {(n, i): replace(r, task=n) for n in names for (_, i), r in one.results.items()}
        return replace(one, scores=scores, results=results)

    for num, verdict in ((1, "better"), (10, "unclear")):
        before, after = many("a", [0.0] * 50, num), many("b", [1.0] * 8 + [0.0] * 42, num)
        found = compare.family(before, after, list(before.scores))
        assert {one.verdict for one in found.values() if one} == {verdict}


def test_a_suites_average_moves_by_the_mean_of_its_rows(points: list[Checkpoint]) -> None:
    (suite,) = summary(points)["suites"]
    rows = {line["label"]: line for line in suite["lines"]}
    for line in rows.values():
        ends = line["cells"][0]["score"], line["cells"][-1]["score"]
        assert line["change"].difference == pytest.approx(ends[1] - ends[0], abs=0.02)  # failed items are left out
    parts = [rows[label]["change"] for label in ROWS]
    whole = rows["5 rows"]["change"]
    assert whole.difference == pytest.approx(sum(part.difference for part in parts) / 5)
    assert whole.stderr == pytest.approx(sum(part.stderr**2 for part in parts) ** 0.5 / 5)
    assert whole.verdict == "better"


def test_averages_that_do_not_name_their_tasks_have_no_change(points: list[Checkpoint]) -> None:
    rows = {label: {"score": 0.5, "stderr": 0.01} for label in ROWS}
    whole = {"dev": {"rows": rows, "averages": {"5 rows": {"score": 0.5, "stderr": 0.01}}}}
    (suite,) = summary([replace(point, averages=whole) for point in points])["suites"]
    assert not suite["paired"]
    assert suite["card"]["after"] == "50.0 %"


def test_sheets_hold_errors_measures_subsets_and_outcomes(points: list[Checkpoint]) -> None:
    sheets = {sheet["task"].task: sheet for sheet in summary(points)["sheets"]}
    numbers = {task: dict(sheet["numbers"]) for task, sheet in sheets.items()}
    assert "Standard error, clustered" in numbers["drop@1"]
    assert numbers["drop@1"]["Clusters"] == ["30"] * 3
    assert {"Strict", "Instruction loose"} <= set(numbers["ifeval@1"])
    assert "Plain win rate" in numbers["alpacaeval@1"]
    assert len(sheets["mmlu:cot@1"]["subsets"]) == 6
    ended = dict(sheets["gsm8k@2"]["outcomes"])
    assert sum(cells[0][0] for cells in ended.values()) == DEV["gsm8k@2"]["items"]
    assert sheets["xstest@1"]["differs"] == []


def test_an_evaluation_with_long_answers_still_makes_a_small_page(tmp_path: Path) -> None:
    fake = write_suite(tmp_path / "runs")
    for name in fake.spec.evals:
        path = fake.folder(name) / "payload" / "results.jsonl"
        path.write_text(path.read_text().replace("First count the crates", "First count " + "the crates, " * 400))
    page = written(fake, tmp_path)
    assert "more characters]" in page
    assert len(page.encode()) < 3_000_000


def test_settings_that_differ_between_checkpoints_are_said(points: list[Checkpoint]) -> None:
    score = points[2].scores["gsm8k@2"]
    warm = replace(score, card=replace(score.card, sampling=replace(score.card.sampling, temperature=0.7)))
    changed = [*points[:2], replace(points[2], scores=points[2].scores | {"gsm8k@2": warm})]
    sheets = {sheet["task"].task: sheet for sheet in summary(changed)["sheets"]}
    assert sheets["gsm8k@2"]["differs"] == ["sampling"]
    values = dict(sheets["gsm8k@2"]["settings"])["sampling"]
    assert [labels for _, labels in values] == ["Base, SFT", "RLVR"]


@pytest.mark.parametrize(("lines", "text"), [(0, "has not been opened"), (1, "opened once"), (3, "opened 3 times")])
def test_the_page_says_how_often_the_unseen_suite_was_opened(
    fake: FakeRun, tmp_path: Path, lines: int, text: str
) -> None:
    log = [json.dumps({"evaluation": f"final-{i % 2}", "tasks": ["gpqa@1"]}) + "\n" for i in range(lines)]
    (fake.store / "unseen.jsonl").write_text("".join(log))
    page = written(fake, tmp_path)
    assert text in page
    assert ("final-0" in page) == (lines > 0)


def test_items_with_several_samples_show_them(points: list[Checkpoint], html: str) -> None:
    shown = [item for item in samples.eval_samples(points) if item.task == "humaneval@1"]
    for answer in (one for item in shown for one in item.answers if one is not None):
        assert len(answer.marks) == 6
        assert len(answer.others) == samples.MOST_SAMPLES
        assert answer.outcome == "error" or answer.score == pytest.approx(answer.marks.count("✓") / 6)
    assert "of 6 right" in html
    assert "Not shown: 1 more" in html


def test_samples_are_bounded_and_examples_are_shown_once_per_task(points: list[Checkpoint]) -> None:
    items = samples.eval_samples(points)
    assert len(items) <= samples.MOST_ITEMS
    assert {item.task for item in items} == set(DEV)
    gsm = [item for item in items if item.task == "gsm8k@2"]
    assert [len(item.shots) for item in gsm] == [16] + [0] * (len(gsm) - 1)
    assert all(len(item.prompt) == 1 for item in gsm)
    assert any(answer and answer.outcome == "error" for item in items for answer in item.answers)
    assert len({item.title for item in gsm}) > len(gsm) / 2  # the common opening is not what titles show


def test_true_options_of_a_task_with_several_are_all_named(points: list[Checkpoint]) -> None:
    item = next(item for item in samples.eval_samples(points) if item.task == "truthfulqa@1")
    assert item.reference == " · ".join(item.options[:2])
    assert all(answer and answer.right is None for answer in item.answers)


def test_middle_cuts_keep_the_end_where_the_question_stands() -> None:
    text = samples.middle_cut("a" * 3000 + "question?", 100)
    assert text.startswith("a" * 25 + "… [2909 more characters] …")
    assert text.endswith("question?")
