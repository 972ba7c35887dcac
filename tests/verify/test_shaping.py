"""Verifiers that pay rewards: short answers, lengths, formats and sums, each with gold, spoiled and bad answers."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tercet.verify import VerifierError, check_reference, verifier, verifiers
from tercet.verify.shaping import PATTERN_SECONDS, by_name, parts_of, squad

string, flan, f1 = verifier("string@1"), verifier("flan@1"), verifier("f1@1")
length, up_to, form, weighted = (verifier(f"{name}@1") for name in ("length", "up_to_length", "format", "sum"))
REASONED = "<think>\n2 and 2\n</think>\n<answer> 4 </answer>"


def test_squad_normalisation_takes_off_case_punctuation_articles_and_blanks() -> None:
    assert squad("  The cat's, AN\tapple (a theme)!") == "cats apple theme"


@pytest.mark.parametrize(
    ("completion", "score", "outcome"),
    [
        ("It is <answer>The Nile.</answer>", 1, "graded"),
        ("<answer>Rhine</answer> no, <answer> nile </answer> done", 1, "graded"),
        ("<answer>nile</answer><answer>Rhine</answer>", 0, "graded"),
        ("The Nile.", 0, "unparsed"),
        ("<answer>Nile", 0, "unparsed"),
    ],
)
def test_string_compares_what_stands_in_the_last_answer_tags(completion: str, score: float, outcome: str) -> None:
    grade = string(completion, "the Nile")
    assert (grade.score, grade.outcome) == (score, outcome)


@pytest.mark.parametrize(
    ("completion", "score", "outcome"),
    [
        ("So. The answer is: the Nile!", 1, "graded"),
        ("The answer is: Rhine. The answer is: Nile", 1, "graded"),
        ("The answer is: Nile I think", 0, "graded"),
        ("A Nile.", 1, "unparsed"),
        ("", 0, "unparsed"),
    ],
)
def test_flan_compares_what_follows_the_last_phrase_or_else_everything(
    completion: str, score: float, outcome: str
) -> None:
    grade = flan(completion, "Nile")
    assert (grade.score, grade.outcome) == (score, outcome)


def test_f1_is_that_of_bags_of_words_and_the_best_label_counts() -> None:
    grade = f1("the cat sat on a mat", "a cat on the mat mat")
    assert (grade.numbers["precision"], grade.numbers["recall"]) == (3 / 4, 3 / 4)
    assert grade.score == pytest.approx(3 / 4)
    assert f1("Paris", json.dumps(["London", "paris!"])).score == 1
    assert f1("Rome", json.dumps(["London", "paris!"])).score == 0


def test_f1_reads_what_follows_the_thinking_without_tags() -> None:
    assert f1("<think>London</think><answer>Paris</answer>", "Paris").score == 1
    assert f1("<think>Paris</think>", "Paris").outcome == "unparsed"


@given(st.lists(st.sampled_from(["red", "green", "blue"]), min_size=1, max_size=6), st.data())
def test_f1_is_symmetric_bounded_and_one_for_any_order(words: list[str], data: st.DataObject) -> None:
    other = data.draw(st.lists(st.sampled_from(["red", "green", "grey"]), min_size=1, max_size=6))
    score = f1(" ".join(words), " ".join(other)).score
    assert 0 <= score <= 1
    assert score == pytest.approx(f1(" ".join(other), " ".join(words)).score)
    assert f1(" ".join(sorted(words)), " ".join(words)).score == pytest.approx(1)


@given(st.integers(1, 300), st.integers(0, 300), st.integers(1, 500))
def test_lengths_follow_the_published_formula_in_words(words: int, wanted: int, scale: int) -> None:
    reference, text = json.dumps({"length": wanted, "scale": scale}), "word\n" * words
    assert length(text, reference).score == pytest.approx(1 - abs(words - wanted) / scale)
    assert up_to(text, reference).score == pytest.approx(1 if words <= wanted else 1 - (words - wanted) / scale)


def test_a_bare_length_has_the_published_scale_and_an_empty_completion_earns_nothing() -> None:
    assert length("a b", "3").score == pytest.approx(1 - 1 / 32768)
    assert (length(" ", "0").score, length(" ", "0").outcome) == (0.0, "unparsed")
    assert up_to("", "5").outcome == "unparsed"


@pytest.mark.parametrize(
    ("completion", "score"),
    [
        (REASONED, 1),
        (f"  {REASONED}\n", 1),
        (f"Well. {REASONED}", 0),
        (REASONED + "!", 0),
        (REASONED + REASONED, 0),
        (REASONED.replace("2 and 2", "<think>2"), 0),
        (REASONED.replace("<answer> 4", "<answer></answer><answer> 4"), 0),
        ("<answer>4</answer><think></think>", 0),
        ("", 0),
    ],
)
def test_the_default_format_wants_each_tag_once_and_nothing_around(completion: str, score: float) -> None:
    grade = form(completion, "")
    assert grade.score == score
    assert grade.answer == ("4" if score else "")


def test_a_format_must_match_the_whole_text_over_line_ends() -> None:
    assert form("a\nb: c", "a.*b: (?P<answer>.)").answer == "c"
    assert form("a\nb: cd", "a.*b: .").score == 0
    assert form("", "x*").score == 1


def test_a_pattern_that_never_ends_is_stopped() -> None:
    grade = form("a" * 40 + "!", "(a+)+")
    assert (grade.score, grade.outcome) == (0.0, "timeout")
    assert f"{PATTERN_SECONDS:g} s" in grade.detail


def sum_reference(*parts: tuple[str, str, float]) -> str:
    return json.dumps([dict(zip(("verifier", "reference", "weight"), part, strict=True)) for part in parts])


def test_a_sum_adds_weighted_scores_and_keeps_the_parts() -> None:
    reference = sum_reference(
        ("gsm8k@1", "4", 1.0), ("format@1", "", 0.25), ("length@1", "6", -0.5), ("gsm8k@1", "5", 2.0)
    )
    grade = weighted(REASONED, reference)
    words = len(REASONED.split())
    assert grade.numbers == {"gsm8k@1": 1, "format@1": 1, "length@1": 1 - abs(words - 6) / 32768, "gsm8k@1#2": 0}
    assert grade.score == pytest.approx(1 + 0.25 - 0.5 * grade.numbers["length@1"])
    assert grade.answer == "4"


@given(st.lists(st.floats(-3, 3), min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_a_sum_is_linear_in_its_weights_and_blind_to_their_order(weights: list[float], chance: object) -> None:
    parts = [("gsm8k@1", str(4 + i % 2), weight) for i, weight in enumerate(weights)]
    expected = math.fsum(weights[::2])
    assert weighted("4", sum_reference(*parts)).score == pytest.approx(expected)
    chance.shuffle(parts)  # type: ignore[attr-defined]
    assert weighted("4", sum_reference(*parts)).score == pytest.approx(expected)


def test_what_a_part_could_not_grade_shows_in_the_sum() -> None:
    language = json.dumps({"func_name": "validate_response_language", "language": "en"})
    grade = weighted("12345", sum_reference(("gsm8k@1", "12345", 1), ("tulu_if@1", language, 1)))
    assert (grade.score, grade.outcome) == (1.0, "error")
    assert "tulu_if@1: validate_response_language" in grade.detail
    none = weighted("none", sum_reference(("gsm8k@1", "1", 1), ("string@1", "x", 1)))
    assert none.outcome == "unparsed"


def test_scores_of_one_name_are_numbered() -> None:
    assert by_name(["a", "b", "a", "a"], [1, 2, 3, 4]) == {"a": 1, "b": 2, "a#2": 3, "a#3": 4}


@pytest.mark.parametrize(
    ("name", "bad", "message"),
    [
        ("string@1", "the", "a text with a word besides articles"),
        ("flan@1", "", "flan@1 expects"),
        ("f1@1", '["ok", "..."]', "f1@1 expects"),
        ("length@1", "", "expects a reference answer in JSON, e.g. 200"),
        ("length@1", "-1", "a number of words from 0"),
        ("length@1", "true", "a number of words from 0"),
        ("length@1", '{"scale": 2}', "a number of words from 0"),
        ("length@1", '{"length": 3, "scale": 0}', "positive scale"),
        ("up_to_length@1", '{"length": 3, "max": 5}', "up_to_length@1 expects"),
        ("format@1", "(", "expects a regular expression as reference answer; got '('"),
        ("sum@1", "no", "expects a reference answer in JSON"),
        ("sum@1", "[]", "a JSON list of parts"),
        ("sum@1", '[{"verifier": "sum@1", "reference": "[]"}]', "none a sum@1"),
        ("sum@1", '[{"verifier": "gsm8k@1", "reference": 72}]', "a JSON list of parts"),
        ("sum@1", '[{"verifier": "gsm8k@1", "reference": "72", "weight": "1"}]', "a JSON list of parts"),
        ("sum@1", '[{"verifier": "gsm8k@1", "reference": "72", "wieght": 1}]', "a JSON list of parts"),
        ("sum@1", '[{"verifier": "gsm8k@1"}]', "gsm8k@1 expects the number as reference answer"),
        ("sum@1", '[{"verifier": "gsm@1", "reference": "72"}]', "unknown verifier 'gsm@1'"),
        ("rubric@1", "no", "rubric@1 expects a reference answer in JSON"),
        ("math@1", " ", "expects a solution or an answer as reference answer"),
        ("nobody@1", "", "unknown verifier 'nobody@1'"),
    ],
)
def test_a_reference_that_cannot_be_read_is_refused_without_any_completion(name: str, bad: str, message: str) -> None:
    with pytest.raises(VerifierError) as caught:
        check_reference(name, bad)
    assert message in str(caught.value)


def test_a_sum_may_name_a_part_that_asks_a_model_but_cannot_ask_it() -> None:
    reference = sum_reference(("gsm8k@1", "4", 1), ("quality@1", "", 1))
    assert [part.verifier for part in parts_of(reference)] == ["gsm8k@1", "quality@1"]
    with pytest.raises(VerifierError, match="quality@1 asks a model"):
        weighted("4", reference)


@pytest.mark.parametrize(
    ("completion", "reference", "score", "outcome"),
    [
        (r"So it is $\boxed{\frac12}$.", "0.5", 1, "graded"),
        ("Final Answer: The final answer is $x+1$. I hope it is correct.", "1+x", 1, "graded"),
        ("we get $3$, hence $4$", "4", 1, "graded"),
        ("4", "4", 1, "unparsed"),
        (r"\boxed{5}", "4", 0, "graded"),
        ("", "4", 0, "unparsed"),
        (r"\boxed{12}", r"Add them: $\boxed{12}$.", 1, "graded"),
    ],
)
def test_math_rewards_any_candidate_that_equals_the_label(
    completion: str, reference: str, score: float, outcome: str
) -> None:
    grade = verifier("math@1")(completion, reference)
    assert (grade.score, grade.outcome) == (score, outcome)


def test_math_does_not_normalise_the_label_as_the_benchmark_does() -> None:
    completion, label = "it is $5$", "5 inches"
    assert [verifier(name)(completion, label).score for name in ("math@1", "math_flex@1")] == [0, 1]
    assert set(verifier("math@1")(completion, "5").numbers) == {"hendrycks", "sympy"}


def test_every_verifier_of_training_is_listed() -> None:
    wanted = ["code", "f1", "flan", "format", "gsm8k", "length", "math", "string", "sum", "tulu_if", "up_to_length"]
    assert {f"{name}@1" for name in wanted} <= set(verifiers())
