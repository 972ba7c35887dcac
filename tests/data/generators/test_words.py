"""The word problems: true, distinct, and with other stories in the benchmark than in training."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from pathlib import Path

import pytest

from tercet.data import tables
from tercet.data.generators.words import HIGH, LOW, STEP, Template, generate, pools, solve, templates
from tercet.rows import Row
from tercet.verify import verifier

TRAIN, BENCHMARK = templates("train"), templates("test")
EQUATION = re.compile(r"(\d+) ([-+*/]) (\d+) = (\d+)")


@pytest.fixture(scope="module", params=["train", "test"])
def rows(request: pytest.FixtureRequest) -> list[Row]:
    return generate(2000, request.param, seed=3)


def ngrams(text: str, n: int = 8) -> list[tuple[str, ...]]:
    words = re.findall(r"\w+|[^\w\s]", text.lower())
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def test_there_are_forty_train_and_sixteen_benchmark_templates_and_none_in_both() -> None:
    train, benchmark = ({template.name for template in table} for table in (TRAIN, BENCHMARK))
    assert len(train) == len(TRAIN) >= 40
    assert len(benchmark) == len(BENCHMARK) >= 16
    assert not train & benchmark


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_third_of_the_templates_takes_one_step_and_about_half_takes_two(split: str) -> None:
    steps = Counter(len(STEP.findall(template.solution)) for template in templates(split))
    total = sum(steps.values())
    assert set(steps) == {1, 2, 3}
    assert 0.28 <= steps[1] / total <= 0.38
    assert 0.45 <= steps[2] / total <= 0.55


@pytest.mark.parametrize("template", TRAIN + BENCHMARK, ids=lambda template: template.name)
def test_every_phrasing_gives_exactly_the_numbers_of_the_template(template: Template) -> None:
    assert len(template.asks) >= 2
    for ask in template.asks:
        assert {slot for slot in re.findall(r"\{(\w+)\}", ask) if len(slot) == 1} == set(template.numbers)


@pytest.mark.parametrize("template", TRAIN + BENCHMARK, ids=lambda template: template.name)
def test_the_steps_use_every_number_and_every_result(template: Template) -> None:
    used, made = set(), []
    for left, _, right, target in STEP.findall(template.solution):
        used |= {left, right}
        made.append(target)
    assert set(template.numbers) | set(made[:-1]) <= used


@pytest.mark.parametrize("template", TRAIN + BENCHMARK, ids=lambda template: template.name)
def test_singular_slots_after_an_article_never_begin_with_a_vowel(template: Template) -> None:
    for pool in re.findall(r"\b[Aa] \{(\w+)_one\}", " ".join((*template.asks, template.solution))):
        assert not [one for one in pools().things[pool] if one[0] in "aeiou"]


def test_every_equation_of_two_thousand_rows_is_true(rows: list[Row]) -> None:
    for row in rows:
        equations = EQUATION.findall(row.answer or "")
        assert len(equations) == (row.answer or "").count(" = ") > 0
        for left, sign, right, result in equations:
            a, b, c = int(left), int(right), int(result)
            assert {"+": a + b == c, "-": a - b == c, "*": a * b == c, "/": b * c == a}[sign], row.answer
            assert LOW <= c <= HIGH
        assert equations[-1][-1] == row.reference


def test_the_verifier_accepts_every_gold_solution_and_refuses_a_spoiled_one(rows: list[Row]) -> None:
    for row in rows:
        grade = verifier(row.verifier)
        assert grade(row.answer or "", row.reference).score == 1.0
        spoiled = (row.answer or "").replace(
            f"The answer is {row.reference}.", f"The answer is {int(row.reference) + 1}."
        )
        assert grade(spoiled, row.reference).score == 0.0


def test_prompts_and_ids_are_distinct(rows: list[Row]) -> None:
    assert len({row.messages[0].content for row in rows}) == len({row.id for row in rows}) == 2000


def test_rows_are_spread_evenly_over_the_templates(rows: list[Row]) -> None:
    counts = Counter(row.template for row in rows)
    assert max(counts.values()) - min(counts.values()) <= 1


def test_nothing_is_left_unfilled_and_rows_stay_short(rows: list[Row]) -> None:
    for row in rows:
        text = " ".join(message.content for message in row.messages)
        assert not set("{}[]") & set(text)
        assert 15 <= len(text.split()) <= 75
        assert (row.answer or "").endswith(f" The answer is {row.reference}.")


def test_the_same_seed_gives_the_same_rows_and_another_seed_gives_others() -> None:
    assert generate(120, "test", seed=5) == generate(120, "test", seed=5) == generate(200, "test", seed=5)[:120]
    assert generate(120, "test", seed=5) != generate(120, "test", seed=6)


def test_no_training_question_covers_half_of_a_benchmark_question_by_eight_grams() -> None:
    train = {gram for row in generate(1500, "train", seed=1) for gram in ngrams(row.messages[0].content)}
    for row in generate(400, "test", seed=1):
        grams = ngrams(row.messages[0].content)
        covered = {i + k for i, gram in enumerate(grams) if gram in train for k in range(8)}
        assert len(covered) <= 0.5 * (len(grams) + 7), row.messages[0].content


def test_a_step_without_a_whole_positive_result_is_not_a_solution() -> None:
    share = next(template for template in TRAIN if template.name == "shared_equally")
    assert solve(share, {"a": 12, "b": 5}) is None
    assert solve(share, {"a": 12, "b": 4}) == {"a": 12, "b": 4, "each": 3}


def test_asking_for_more_problems_than_there_are_says_how_many_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = (tables.FOLDER / "words_test.jsonl").read_text(encoding="utf-8").splitlines()
    (tmp_path / "words_test.jsonl").write_text(next(text for text in texts if "wheels_on_tricycles" in text))
    shutil.copy(tables.FOLDER / "words.toml", tmp_path)
    monkeypatch.setattr(tables, "FOLDER", tmp_path)
    with pytest.raises(ValueError, match=r"asked for 5000 rows and can make \d+"):
        generate(5000, "test", seed=1)
