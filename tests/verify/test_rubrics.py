"""Verifiers that ask a model: the questions they put, and replies made by hand, broken ones included."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tercet.rows import Message
from tercet.verify import VERIFIERS, Grade, VerifierError, check_reference, llm_judge, verifier, verifiers
from tercet.verify.llm_judges import Case, spoken

RUBRICS = json.dumps([{"rubric": "Names Paris.", "weight": 3}, {"description": "Is rude.", "weight": -1}])
REFERENCES = {"quality_ref@1": "Paris.", "factuality@1": "Paris.", "rubric@1": RUBRICS}
MODELS = [name for name, one in VERIFIERS.items() if one.asks_model]
SCORES = [name for name in MODELS if str(VERIFIERS[name].function).startswith("rubrics:")]


def ask(name: str, prompt: str, completion: str, reference: str) -> str:
    (message,) = llm_judge(name).messages(Case(prompt, completion, reference))
    return message.content


def read(name: str, reply: str, reference: str) -> Grade:
    return llm_judge(name).read(reply, Case("", "", reference))


@pytest.mark.parametrize("name", SCORES)
def test_a_question_holds_conversation_and_answer_and_asks_for_json(name: str) -> None:
    text = ask(name, "Which {capital}?", "It is {Paris}.", REFERENCES.get(name, ""))
    assert "### Begin of conversation\nWhich {capital}?\n### End of conversation" in text
    assert "### Begin of answer\nIt is {Paris}.\n### End of answer" in text
    assert '"REASONING"' in text
    assert ('"SCORES": [2 numbers' if name == "rubric@1" else '"SCORE": a number from') in text
    assert ("reference answer\nParis." in text) == (name in ("quality_ref@1", "factuality@1"))


def test_rubrics_are_numbered_in_the_question() -> None:
    assert "### Begin of statements\n1. Names Paris.\n2. Is rude.\n###" in ask("rubric@1", "", "", RUBRICS)


def test_a_lone_turn_is_spoken_as_it_is_and_several_under_their_roles() -> None:
    turns = (Message("user", "Hi"), Message("assistant", "Hello"), Message("user", "Bye"))
    assert spoken(turns[:1]) == "Hi"
    assert spoken(turns) == "[user]\nHi\n\n[assistant]\nHello\n\n[user]\nBye"


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ('{"REASONING": "fine", "SCORE": 7}', 0.7),
        ('```json\n{"REASONING": "the \\frac{1}{2} of "it"", "SCORE": "7.5"}\n```', 0.75),
        ("<think>SCORE: 3</think>\n{'score': 10}", 1.0),
        ('Its own "SCORE: 10" counts for nothing.\n{"REASONING": "", "SCORE": 1}', 0.1),
        ("Score: 4", 0.4),
        ("**SCORE:** 4", 0.4),
        ("It is fine.\n\n**Score**: **4/10**", 0.4),
        ("- `SCORE`: 4", 0.4),
        ('{"REASONING": "so", "final_score": 4}', 0.4),
        ("Score: 4 of 10, not **SCORE:** 9", 0.4),
    ],
)
def test_quality_is_a_tenth_of_the_last_score(reply: str, score: float) -> None:
    for name in ("quality@1", "quality_ref@1"):
        grade = read(name, reply, "Paris.")
        assert (grade.score, grade.outcome) == (pytest.approx(score), "graded")


@pytest.mark.parametrize("name", ["safety@1", "factuality@1", "refusal@1"])
def test_other_scores_count_as_they_are(name: str) -> None:
    assert read(name, '{"SCORE": 0.25}', "").score == 0.25
    assert read(name, '{"SCORE": 5}', "").outcome == "unparsed"


def test_a_refusal_earns_what_was_wanted() -> None:
    assert [read("refusal@1", '{"SCORE": 0.75}', reference).score for reference in ("", "refuse", "comply")] == [
        0.75,
        0.75,
        0.25,
    ]
    assert read("refusal@1", "well", "comply").score == 0


@pytest.mark.parametrize(
    "reply",
    ["", "It is good.", '{"SCORE": "ten"}', '{"SCORE": 0}', '{"SCORE": 11}', '{"SCORE": -5}', '{"SCORES": [5]}'],
)
def test_a_reply_without_a_usable_score_is_unparsed(reply: str) -> None:
    grade = read("quality@1", reply, "")
    assert (grade.score, grade.outcome, grade.lost) == (0.0, "unparsed", True)
    assert "expected SCORE from 1 to 10" in grade.detail


@pytest.mark.parametrize(
    ("scores", "score"), [("2, 0", 0.75), ("2, 2", 0.5), ("1, 1", 0.25), ("0, 2", -0.25), ("'1', 0", 0.375)]
)
def test_rubrics_are_averaged_by_the_size_of_their_weights(scores: str, score: float) -> None:
    grade = read("rubric@1", f'{{"REASONING": "", "SCORES": [{scores}]}}', RUBRICS)
    assert (grade.score, grade.outcome) == (pytest.approx(score), "graded")
    assert set(grade.numbers) == {"rubric_1", "rubric_2"}


@pytest.mark.parametrize("reply", ["**SCORES:** [2, 0]", "**SCORES**: [**2**, **0**]", "`scores` = [2, 0]"])
def test_scores_in_bold_or_marked_as_code_are_read(reply: str) -> None:
    assert read("rubric@1", reply, RUBRICS).score == 0.75


@pytest.mark.parametrize("scores", ["[2]", "[2, 0, 1]", "[3, 0]", "[2, -1]", "[2, yes]", "[]", "2, 0"])
def test_scores_that_do_not_fit_the_rubrics_are_unparsed(scores: str) -> None:
    assert read("rubric@1", f'{{"SCORES": {scores}}}', RUBRICS).outcome == "unparsed"


@given(st.lists(st.tuples(st.floats(0.125, 8), st.sampled_from([0, 1, 2])), min_size=1, max_size=6))
def test_a_rubric_score_lies_between_its_parts_and_ignores_the_scale_of_weights(parts: list[tuple[float, int]]) -> None:
    reply = json.dumps({"SCORES": [score for _, score in parts]})
    references = [json.dumps([{"rubric": "r", "weight": k * weight} for weight, _ in parts]) for k in (1, 8)]
    one, other = (read("rubric@1", reply, reference).score for reference in references)
    assert one == pytest.approx(other)
    shares = [score / 2 for _, score in parts]
    assert min(shares) - 1e-9 <= one <= max(shares) + 1e-9


@pytest.mark.parametrize(
    ("name", "bad", "message"),
    [
        ("quality_ref@1", "", "quality_ref@1 compares with a reference answer"),
        ("factuality@1", " ", "factuality@1 compares with a reference answer"),
        ("refusal@1", "yes", "expects 'refuse' (or nothing) or 'comply'"),
        ("rubric@1", "{}", "a JSON list of objects"),
        ("rubric@1", "[]", "not all 0"),
        ("rubric@1", '[{"weight": 1}]', "a text ('rubric' or 'description')"),
        ("rubric@1", '[{"rubric": "r", "weight": "1"}]', "a text ('rubric' or 'description') and a weight"),
        ("rubric@1", '[{"rubric": "r", "weight": 0}]', "not all 0"),
    ],
)
def test_a_bad_reference_is_refused_before_anything_is_asked(name: str, bad: str, message: str) -> None:
    with pytest.raises(VerifierError) as caught:
        check_reference(name, bad)
    assert message in str(caught.value)


def test_they_are_no_pure_verifiers_and_say_so() -> None:
    assert not set(MODELS) & set(verifiers())
    for name in MODELS:
        with pytest.raises(VerifierError, match=f"{name} asks a model"):
            verifier(name)("fine", "")
    with pytest.raises(VerifierError, match=r"expected one of bbh@1, .* \(or, asking a model: alpaca_pairwise@1, "):
        verifier("quality@2")
