"""Paired comparison of two evaluations."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tercet import stats
from tercet.evals.compare import ALL_ACCURACY, compare, note
from tercet.stats import CompareError

A = {"words@1": [0, 0, 0, 1, 0, 0, 0, 0, 1, 0], "constraints@1": [0, 1, 0, 1]}
B = {"words@1": [1, 1, 1, 1, 1, 1, 0, 1, 0, 1], "constraints@1": [1, 1, 0, 0]}


def write(folder: Path, accuracy: dict[str, list[int]], bits: tuple[float, ...] = (), **more: Any) -> Path:
    lines: list[dict[str, Any]] = []
    for task, values in accuracy.items():
        lines += [{"task": task, "item": str(i), "metric": "accuracy", "score": s} for i, s in enumerate(values)]
    for i, value in enumerate(bits):
        size = 10 * (i + 1)
        line = {"task": "talk@1", "item": str(i), "metric": "bpb", "score": value / size}
        lines.append({**line, "bits": value, "num_bytes": size})
    folder.mkdir(parents=True)
    text = "".join(
        json.dumps({"digest": line["item"], "template": "", "subset": "", "outcome": "graded", **line, **more}) + "\n"
        for line in lines
    )
    (folder / "results.jsonl").write_text(text)
    return folder


def differences(a: Sequence[float], b: Sequence[float], clusters: Sequence[int] | None = None) -> stats.Estimate:
    return stats.mean([y - x for x, y in zip(a, b, strict=True)], clusters)


def test_each_task_is_compared_item_by_item_and_all_together(tmp_path: Path) -> None:
    words, constraints, everything = compare(write(tmp_path / "a", A), write(tmp_path / "b", B))
    assert (words.task, words.metric, words.n, words.a, words.b) == ("words@1", "accuracy", 10, 0.2, 0.8)
    assert words.difference == pytest.approx(0.6)
    share, spread = (8 - 2) / 12, math.sqrt(8 / 12 + 2 / 12 - 0.25)  # seven won and one lost, and one more of each
    assert words.stderr == pytest.approx(spread / math.sqrt(12))
    half = 1.959964 * words.stderr
    assert (words.low, words.high) == pytest.approx((share - half, share + half))
    assert (words.p_value, words.test) == (2 * 9 / 2**8, "McNemar, exact")  # seven won, one lost
    assert words.p_holm == 2 * words.p_value
    assert words.relative == pytest.approx(3.0)
    assert words.minimum_detectable == pytest.approx(2.801585 * words.stderr, abs=1e-6)
    assert constraints.p_value == 1.0
    assert (everything.task, everything.n) == (ALL_ACCURACY, 14)
    assert everything.difference == pytest.approx((9 + 2 - 2 - 2 - 1) / 14)
    assert everything.p_value == stats.mcnemar(
        [*A["words@1"], *A["constraints@1"]], [*B["words@1"], *B["constraints@1"]]
    )


def test_turning_a_comparison_round_turns_its_sign(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a", A, (20.0, 30.0, 50.0)), write(tmp_path / "b", B, (22.0, 29.0, 60.0))
    for there, back in zip(compare(a, b), compare(b, a), strict=True):
        assert there.difference == pytest.approx(-back.difference)
        assert (there.low, there.high) == pytest.approx((-back.high, -back.low))
        assert there.p_value == pytest.approx(back.p_value)


def test_bits_per_byte_are_compared_as_ratios_of_sums(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a", {}, (20.0, 30.0, 50.0)), write(tmp_path / "b", {}, (22.0, 29.0, 60.0))
    (talk,) = compare(a, b)
    assert (talk.metric, talk.test, talk.n) == ("bpb", "paired t", 3)
    assert (talk.a, talk.b) == (100 / 60, 111 / 60)
    assert talk.difference == pytest.approx(11 / 60)
    assert talk.relative == pytest.approx(0.11)
    residuals = [2 - 11 / 6, -1 - 22 / 6, 10 - 33 / 6]
    assert talk.stderr == pytest.approx(math.sqrt(1.5 * sum(e * e for e in residuals)) / 60)


def test_bits_per_byte_of_zero_or_one_are_no_verdicts(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a", {}, (10.0, 20.0)), write(tmp_path / "b", {}, (10.0, 20.0))
    assert compare(a, b)[0].test == "paired t"


def test_items_that_share_a_template_widen_the_clustered_error(tmp_path: Path) -> None:
    folders = []
    for name, scores in (("a", A), ("b", B)):
        folder = write(tmp_path / name, {"words@1": scores["words@1"]})
        lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
        for line in lines:
            line["template"] = str(int(line["item"]) // 2)
        (folder / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        folders.append(folder)
    (line,) = compare(*folders)
    clusters = [i // 2 for i in range(10)]
    assert line.stderr_clustered == differences(A["words@1"], B["words@1"], clusters).stderr


def test_partial_scores_are_tested_with_t(tmp_path: Path) -> None:
    a = write(tmp_path / "a", {"words@1": [0, 1, 0]})
    b = write(tmp_path / "b", {"words@1": [0.5, 1, 1]})  # type: ignore[list-item]
    (line,) = compare(a, b)
    assert line.test == "paired t"
    assert line.p_value == differences([0, 1, 0], [0.5, 1, 1]).p_value


def test_what_could_not_be_graded_is_left_out_and_said(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a", {"words@1": [0, 1, 0]}), write(tmp_path / "b", {"words@1": [1, 1, 1]})
    text = (b / "results.jsonl").read_text().replace("graded", "error", 1)
    (b / "results.jsonl").write_text(text)
    lines = compare(a, b)
    assert (lines[0].n, lines[0].left_out) == (2, 1)
    assert note(lines).endswith("Left out, as one side could not be asked or graded: 1 item.")


def test_nothing_relative_to_zero(tmp_path: Path) -> None:
    (line,) = compare(write(tmp_path / "a", {"w@1": [0, 0]}), write(tmp_path / "b", {"w@1": [1, 0]}))
    assert line.relative is None


def test_artifacts_payloads_and_files_are_all_found(tmp_path: Path) -> None:
    payload = write(tmp_path / "eval-123" / "payload", A)
    assert compare(tmp_path / "eval-123", payload / "results.jsonl")[0].difference == 0


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"words@1": A["words@1"]}, "tasks differ"),
        ({**A, "words@1": A["words@1"][:-1]}, "1 items of words@1 differ, first '9'"),
        ({**A, "words@1": [*A["words@1"], 1]}, "1 items of words@1 differ, first '10'"),
    ],
)
def test_different_benchmarks_are_refused(tmp_path: Path, other: dict[str, list[int]], message: str) -> None:
    with pytest.raises(CompareError, match=message):
        compare(write(tmp_path / "a", A), write(tmp_path / "b", other))


def test_the_same_ids_with_other_questions_are_refused(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a", A), write(tmp_path / "b", A, digest="other")
    with pytest.raises(CompareError, match="were not given the same benchmark; 10 items of words@1 differ"):
        compare(a, b)


def test_shared_tasks_of_different_benchmarks_can_be_named(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a", A), write(tmp_path / "b", {"words@1": B["words@1"]})
    assert [line.task for line in compare(a, b, tasks=["words@1"])] == ["words@1"]
    with pytest.raises(CompareError, match="name tasks that both were given"):
        compare(a, b, tasks=["constraints@1"])


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CompareError, match=r"holds no results\.jsonl"):
        compare(tmp_path, tmp_path)
