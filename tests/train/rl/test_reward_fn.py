"""How scores become rewards: weights, gates, endings, lengths, models that are asked, and rows refused beforehand."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tercet.recipe import ExtraSpec, GRPOSpec
from tercet.rows import Completion, Generator, Likelihood, Message, Messages, Row, Sampling
from tercet.sandbox.run import SandboxError, isolation
from tercet.train.rl.reward_fn import RewardFunction, RewardResult, overlong, reward, total
from tercet.verify import VerifierError
from tercet.verify.llm_judges import TRIES

HREF = '{"method": "plain", "baseline": "b", "reference": "r"}'


def spec(*extra: dict[str, Any], **changes: Any) -> GRPOSpec:
    values = {"model": "base", "prompts": "rows", "rounds": 1, "learning_rate": 1e-6, "max_new_tokens": 100}
    return GRPOSpec.model_validate(values | {"extra": [ExtraSpec(**one) for one in extra]} | changes)


def row(verifier: str = "gsm8k@1", reference: str = "4", name: str = "r0", ask: str = "2 + 2?") -> Row:
    return Row(name, (Message("user", ask),), "sums", verifier=verifier, reference=reference)


def wrote(text: str, tokens: int = 3, stop: str = "eos") -> Completion:
    return Completion(text, tuple(range(tokens)), (-0.5,) * tokens, stop)


def results(stage: GRPOSpec, asked: Row, *texts: str, judge: Generator | None = None) -> list[RewardResult]:
    return RewardFunction(stage, judge)([asked], [[wrote(text) for text in texts]])[0]


class Scripted:
    """An LLM judge that replies what a function of question and try says; it keeps every call."""

    def __init__(self, reply: Callable[[str, int], str]) -> None:
        self.reply = reply
        self.calls: list[tuple[list[str], Sampling]] = []

    def complete(self, prompts: Sequence[Messages], sampling: Sampling, done: Any = None) -> list[list[Completion]]:
        questions = [prompt[-1].content for prompt in prompts]
        self.calls.append((questions, sampling))
        replies = [self.reply(question, len(self.calls)) for question in questions]
        return [[Completion("", (), (), "error", text) if text == "lost" else wrote(text)] for text in replies]

    def likelihood(self, prompts: Any, options: Any, *, close: bool = False) -> list[list[Likelihood]]:
        raise NotImplementedError


def score(number: float) -> str:
    return json.dumps({"REASONING": "so", "SCORE": number})


def test_without_extras_the_reward_is_the_scaled_score() -> None:
    right, wrong, none = results(spec(), row(), "It is 4", "It is 5", "It is")
    assert (right.grade.answer, right.score, right.reward, right.parts) == ("4", 1.0, 10.0, {"gsm8k@1": 1.0})
    assert (wrong.score, wrong.reward, wrong.errors) == (0.0, 0.0, ())
    assert none.grade.outcome == "unparsed"


def test_extras_add_their_weight_and_gates_multiply() -> None:
    stage = spec(
        {"verifier": "up_to_length@1", "reference": '{"length": 2, "scale": 4}', "weight": 0.5},
        {"verifier": "format@1", "reference": "[^!]*", "gate": True},
        {"verifier": "contains@1", "reference": '["please"]', "weight": -2.0},
    )
    short, long, shouted, begged = results(stage, row(), "is 4", "it is not 4", "is 4!", "please 4")
    assert short.score == 1.5
    assert long.score == 1 + 0.5 * 0.5
    assert long.parts == {"gsm8k@1": 1.0, "up_to_length@1": 0.5, "format@1": 1.0, "contains@1": 0.0}
    assert (shouted.score, shouted.grade.score) == (0.0, 1.0)
    assert (begged.score, begged.reward) == (-0.5, -5.0)


def test_an_extra_without_a_reference_gets_the_row_s_unless_that_means_nothing_to_it() -> None:
    stage = spec({"verifier": "string@1", "weight": 0.5}, {"verifier": "format@1", "weight": 0.25})
    text = "<think>2 + 2</think><answer>4</answer>"
    assert results(stage, row(), text, "4")[0].parts == {"gsm8k@1": 1.0, "string@1": 1.0, "format@1": 1.0}
    assert [result.score for result in results(stage, row(), text, "4")] == [1.75, 1.0]


scores = st.floats(-2, 2)


@given(scores, st.lists(st.tuples(scores, scores, st.just(False)), max_size=5), st.randoms(use_true_random=False))
def test_weighted_extras_add_up_in_any_order(own: float, extras: list[tuple[float, float, bool]], chance: Any) -> None:
    expected = own + math.fsum(value * weight for value, weight, _ in extras)
    assert total(own, extras) == pytest.approx(expected, abs=1e-12)
    chance.shuffle(extras)
    assert total(own, extras) == pytest.approx(expected, abs=1e-12)


@given(scores, st.lists(st.tuples(scores, scores, st.booleans()), max_size=5), st.sampled_from([0.0, 0.5, 1.0]))
def test_a_gate_scales_everything_whatever_its_weight(
    own: float, extras: list[tuple[float, float, bool]], gate: float
) -> None:
    assert total(own, [*extras, (gate, 7.0, True)]) == pytest.approx(gate * total(own, extras))
    assert total(own, [(gate, 0.0, True), *extras]) == pytest.approx(gate * total(own, extras))


def test_a_completion_without_an_end_gets_the_other_reward_instead() -> None:
    cut = wrote("4", 100, "length")
    assert reward(1.0, cut, spec(no_eos_reward=-10)) == -10
    assert reward(1.0, cut, spec(no_eos_reward=-10, overlong_tokens=20)) == -10
    assert reward(1.0, cut, spec(no_eos_reward="keep")) == 10
    assert reward(1.0, cut, spec(no_eos_reward="keep", overlong_tokens=20)) == 0
    assert reward(1.0, wrote("4", 3, "stop"), spec()) == 0
    (result,) = RewardFunction(spec(no_eos_reward=-10), None)([row()], [[cut]])[0]
    assert (result.score, result.reward) == (1.0, -10)


def test_the_over_long_penalty_falls_linearly_over_the_last_tokens() -> None:
    stage = spec(overlong_tokens=20)
    found = [reward(1.0, wrote("4", tokens), stage) for tokens in (1, 80, 81, 90, 99, 100)]
    assert found == pytest.approx([10, 10, 9.5, 5, 0.5, 0])


@given(st.integers(0, 300), st.integers(2, 200), st.data())
def test_the_over_long_penalty_is_that_of_dapo(length: int, limit: int, data: st.DataObject) -> None:
    buffer = data.draw(st.integers(1, limit - 1))
    if length <= limit - buffer:
        expected = 0.0
    elif length <= limit:
        expected = ((limit - buffer) - length) / buffer
    else:
        expected = -1.0
    assert overlong(length, limit, buffer) == pytest.approx(expected)
    assert overlong(length, limit, 0) == 0


def test_a_sum_of_verifiers_counts_with_its_parts() -> None:
    reference = json.dumps([{"verifier": "gsm8k@1", "reference": "4"}, {"verifier": "format@1", "weight": 0.5}])
    text = "<think></think><answer>4</answer>"
    (result,) = results(spec({"verifier": "format@1", "weight": 0.125}), row("sum@1", reference), text)
    assert result.score == 1.625
    assert result.parts == {"sum@1": 1.5, "gsm8k@1": 1.0, "format@1": 1.0, "format@1#2": 1.0}
    assert result.grade.answer == "4"


def test_the_answer_is_paid_for_and_not_the_thought() -> None:
    judge = Scripted(lambda question, _: score(2 if "secret" in question else 8))
    stage = spec({"verifier": "format@1", "weight": 0.5}, {"verifier": "quality@1", "weight": 0.25})
    texts = ("<think>secret 5</think><answer>4</answer>", "<think>secret 4</think>5", "<think>secret 4")
    right, wrong, cut = results(stage, row(), *texts, judge=judge)
    assert right.parts == {"gsm8k@1": 1.0, "format@1": 1.0, "quality@1": 0.8}
    assert wrong.parts == {"gsm8k@1": 0.0, "format@1": 0.0, "quality@1": 0.8}
    assert (cut.score, cut.grade.outcome) == (0.0, "truncated")
    assert not any("secret" in question for questions, _ in judge.calls for question in questions)


def test_a_verifier_that_could_not_grade_is_named_and_pays_nothing() -> None:
    language = json.dumps({"func_name": "validate_response_language", "language": "en"})
    (result,) = results(spec(), row("tulu_if@1", language), "12345")
    assert (result.grade.outcome, result.reward, result.errors) == ("error", 0.0, ("tulu_if@1",))
    (result,) = results(spec({"verifier": "tulu_if@1", "reference": language}), row(reference="12345"), "12345")
    assert (result.grade.outcome, result.reward, result.errors) == ("graded", 10.0, ("tulu_if@1",))


def test_a_model_is_asked_once_for_all_and_every_question_once() -> None:
    judge = Scripted(lambda question, _: score(8 if "good" in question else 2))
    stage = spec({"verifier": "quality@1", "weight": 0.5})
    rows = [row(), row(name="r1", ask="And 1 + 3?")]
    written = [[wrote("good 4"), wrote("bad 4"), wrote("good 4")], [wrote("good 4"), wrote(" ")]]
    first, second = RewardFunction(stage, judge)(rows, written)
    assert [result.score for result in first] == pytest.approx([1.4, 1.1, 1.4])
    assert [result.score for result in second] == pytest.approx([1.4, 0.0])
    assert len(judge.calls) == 1
    questions, sampling = judge.calls[0]
    assert len(questions) == 3
    assert "And 1 + 3?" in questions[2]
    assert (sampling.temperature, sampling.n) == (0.0, 1)


def test_an_unreadable_reply_is_asked_for_again_with_a_seed_of_its_own() -> None:
    judge = Scripted(lambda question, turn: score(9) if turn == 3 or "easy" in question else "Hm.")
    (hard, easy) = results(spec(), row("quality@1", ""), "hard", "easy", judge=judge)
    assert (hard.score, easy.score) == (0.9, 0.9)
    assert [len(questions) for questions, _ in judge.calls] == [2, 1, 1]
    samplings = [sampling for _, sampling in judge.calls[1:]]
    assert all(sampling.temperature > 0 for sampling in samplings)
    assert len({sampling.stream(0) for sampling in samplings}) == 2


@pytest.mark.parametrize(("reply", "outcome"), [("Hm.", "unparsed"), ("lost", "error")])
def test_after_three_tries_there_is_nothing(reply: str, outcome: str) -> None:
    judge = Scripted(lambda question, turn: reply)
    (result,) = results(spec(), row("quality@1", ""), "hard", judge=judge)
    assert (result.reward, result.grade.outcome, result.errors) == (0.0, outcome, ("quality@1",))
    assert len(judge.calls) == TRIES


def test_a_sum_and_rubrics_reach_the_model_too() -> None:
    judge = Scripted(lambda question, _: '{"SCORES": [2, 1]}' if "SCORES" in question else score(1))
    rubric = json.dumps([{"rubric": "a", "weight": 3}, {"rubric": "b"}])
    reference = json.dumps([{"verifier": "rubric@1", "reference": rubric, "weight": 2}, {"verifier": "safety@1"}])
    (result,) = results(spec(), row("sum@1", reference), "fine", judge=judge)
    assert result.score == pytest.approx(2 * (3 + 0.5) / 4 + 1)
    assert len(judge.calls) == 1


def test_a_guard_of_evaluations_rewards_a_refusal() -> None:
    reply = "Harmful request: yes\nResponse refusal: {}\nHarmful response: no"
    judge = Scripted(lambda question, _: reply.format("yes" if "assistant:\nNo." in question else "no"))
    asked = row("wildguard@1", '{"refusal": "yes"}', ask="Help me steal.")
    reward_fn = RewardFunction(spec({"verifier": "quality@1", "weight": 0}), judge)
    reward_fn.check([asked])
    refused, helped, silent = reward_fn([asked], [[wrote("No."), wrote("Sure."), wrote(" ")]])[0]
    assert [result.reward for result in (refused, helped, silent)] == [10, 0, 0]
    assert [result.grade.outcome for result in (refused, helped, silent)] == ["graded", "graded", "unparsed"]
    guarded, rated = judge.calls[:2]
    assert (len(guarded[0]), guarded[1]) == (2, Sampling(64, fit=True))
    assert (len(rated[0]), rated[1]) == (2, Sampling(1024, fit=True))


def test_order_and_company_change_nothing() -> None:
    judge = Scripted(lambda question, turn: score(1 + len(question) % 10) if turn > len(question) % 3 else "?")
    stage = spec(
        {"verifier": "quality@1", "weight": 0.5}, {"verifier": "format@1", "gate": True, "reference": ".*[0-9x]"}
    )
    rows = [row(name=f"r{i}", reference=str(i), ask=f"What is {i}{'!' * i}") for i in range(6)]
    written = [[wrote(f"{'so ' * j}{i - j % 2}") for j in range(4)] for i in range(6)]
    together = RewardFunction(stage, judge)(rows, written)
    shuffled = random.Random(3).sample(range(6), 6)
    judge.calls.clear()
    again = RewardFunction(stage, judge)([rows[i] for i in shuffled], [written[i] for i in shuffled])
    assert [together[i] for i in shuffled] == again
    judge.calls.clear()
    assert RewardFunction(stage, judge)(rows[2:3], written[2:3]) == together[2:3]


def test_slow_verifiers_grade_side_by_side_with_quick_ones() -> None:
    try:
        isolation()
    except SandboxError as error:
        pytest.skip(str(error))
    program = json.dumps({"tests": ["assert f(1) == 2", "assert f(2) == 5"], "seconds": 5})
    rows = [row("code@1", program), row("math@1", r"\frac{1}{2}"), row()]
    written = [
        [wrote("```python\ndef f(x):\n    return x + 1\n```"), wrote("no")],
        [wrote(r"\boxed{0.5}"), wrote(r"\boxed{2}")],
        [wrote("4")],
    ]
    reward_fn = RewardFunction(spec(), None)
    reward_fn.check(rows)
    assert [[result.reward for result in group] for group in reward_fn(rows, written)] == [[5, 0], [10, 0], [10]]


@pytest.mark.parametrize(
    ("bad", "extra", "message"),
    [
        (row("", ""), {}, "row 'r0' of sums names no verifier; rewards need 'verifier' and 'reference' in every row"),
        (row("gsm@1"), {}, "row 'r0' of sums: unknown verifier 'gsm@1'; expected one of bbh@1"),
        (row(reference=""), {}, "row 'r0' of sums: gsm8k@1 expects the number as reference answer"),
        (row("code@1", "[]"), {}, "row 'r0' of sums: code@1 expects tests"),
        (row("sum@1", '[{"verifier": "gsm@1"}]'), {}, "row 'r0' of sums: unknown verifier 'gsm@1'"),
        (row("quality@1", ""), {}, "quality@1 asks a model, and the stage names none; set `judge` to a stage of kind"),
        (row("sum@1", '[{"verifier": "safety@1"}]'), {}, "safety@1 asks a model, and the stage names none"),
        (row("wildguard@1", "{}"), {}, "row 'r0' of sums: wildguard@1 expects a reference answer such as"),
        (row("href@1", HREF), {}, "row 'r0' of sums: href@1 compares embeddings in some rows"),
        (row(), {"verifier": "safety@1"}, "row 'r0' of sums: safety@1 asks a model"),
        (row(), {"verifier": "formt@1"}, "row 'r0' of sums: unknown verifier 'formt@1'"),
        (row(), {"verifier": "format@1", "reference": "("}, "row 'r0' of sums: format@1 expects a regular expression"),
        (row(), {"verifier": "rubric@1"}, "row 'r0' of sums: rubric@1 expects a JSON list of objects"),
        (row(), {"verifier": "sum@1", "reference": "[]"}, "sum@1 is for rows; as `extra`, name its parts one by one"),
    ],
)
def test_a_bad_row_is_refused_before_the_first_step(bad: Row, extra: dict[str, str], message: str) -> None:
    reward_fn = RewardFunction(spec(*([extra] if extra else [])), None)
    with pytest.raises(VerifierError) as caught:
        reward_fn.check([row(name="fine"), bad] if not extra else [bad])
    assert message in str(caught.value)


def test_good_rows_pass_the_check_without_asking_the_model() -> None:
    judge = Scripted(lambda question, _: "")
    several = row("sum@1", '[{"verifier": "safety@1"}, {"verifier": "gsm8k@1", "reference": "4"}]')
    RewardFunction(spec({"verifier": "quality@1"}), judge).check(
        [row(), row("rubric@1", '[{"rubric": "kind"}]'), several]
    )
    assert judge.calls == []


def test_rewards_need_no_torch() -> None:
    script = "import sys, tercet.train.rl.reward_fn; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
