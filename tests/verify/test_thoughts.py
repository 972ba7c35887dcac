"""Where a thought ends and an answer begins: the marks of many models, and texts that only speak of marks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tercet.rows import Completion, Messages, Sampling
from tercet.verify import VERIFIERS, Grade, llm_judge, verifier
from tercet.verify.grade import UNFINISHED
from tercet.verify.llm_judges import Case, ask, graded
from tercet.verify.thoughts import MARKS, Answer, answer_of, left_open

HARMONY = "<|channel|>analysis<|message|>{}<|end|><|start|>assistant"
NO_COMMA = json.dumps({"key": 1, "prompt": "", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]})


@pytest.mark.parametrize("text", ["", "Four.", "  Four.\n", "2 < 4 > 1", "</answer>", "analysis of 4", "<b>think</b>"])
def test_a_text_without_a_thought_is_its_own_answer_unchanged(text: str) -> None:
    assert answer_of(text) == Answer("", text)


@pytest.mark.parametrize("marks", MARKS, ids=lambda marks: marks.open[0])
def test_every_kind_of_marks_parts_thought_and_answer(marks) -> None:
    opening, closing = marks.open[0], marks.close[0]
    before, behind = marks.around if len(marks.around) == 2 and "begin" in marks.around[0] else ("", "")
    reply = f"\n{opening}\nTwo, and two.\n{closing}\n\n{before}Four, of course.{behind}"
    assert answer_of(reply) == Answer("Two, and two.", "Four, of course.")
    if not marks.together:
        assert answer_of(f"{opening}Two, and") == Answer("Two, and", "", unfinished=True)
        assert answer_of(f"Two, and two.{closing}Four.") == Answer("Two, and two.", "Four.")
        assert left_open(f"<|assistant|>{opening}\n") == opening
        assert not left_open(f"<|assistant|>{opening}\n\n{closing}\n")


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        (HARMONY.format("Two.") + "<|channel|>final<|message|>Four.<|return|>", "Four."),
        (HARMONY.format("a") + HARMONY.format("b") + "<|channel|>final<|message|>Four.", "Four."),
        ("<|channel|>final<|message|>Four.", "Four."),
        ("analysisTwo and two.assistantfinalFour.", "Four."),
        ("<|START_THINKING|>a<|END_THINKING|><|START_RESPONSE|>Four.<|END_RESPONSE|>", "Four."),
        ("<think>\na\n</think>\n<think>b</think>\n\nFour.", "Four."),
        ("<think>\n<think>\na\n</think>\n\nFour.", "Four."),
        ("<think></think>Four.", "Four."),
        ("<think>I end it by `</think>` and go on</think>Four.", "Four."),
        ("<think>an ` and no other</think>Four `</think>`.", "Four `</think>`."),
        ("<think>```\nan open block</think>Four.", "Four."),
        ("<think>a</think>", ""),
        ("a\n</think>\n", ""),
    ],
)
def test_the_answer_is_what_stands_behind_the_thoughts(reply: str, answer: str) -> None:
    found = answer_of(reply)
    assert (found.answer, found.unfinished) == (answer, False)


@pytest.mark.parametrize(
    "text",
    [
        "Models write <think>so</think> before they answer.",
        "```\n<think>a</think>\n```\nis how it looks.",
        "It ends with `</think>`, then comes the answer.",
        "Write:\n```xml\na</think>\nb\n```\nand that is all.",
        "Between <think> and </think> stands the thought.",
        "My thoughts. <thinking>Hm</thinking> Four.",
        "I like [THINK] and [/THINK].",
    ],
)
def test_a_text_that_speaks_of_marks_keeps_its_answer(text: str) -> None:
    assert answer_of(text) == Answer("", text)


@given(st.text(max_size=40), st.text(max_size=40))
def test_a_thought_of_any_text_is_taken_out(thought: str, answer: str) -> None:
    if "</think>" in thought or "`" in thought + answer or "~~~" in thought:
        return
    found = answer_of(f"<think>{thought}</think>\n\n{answer}")
    assert found.thought == thought.strip()
    assert found.answer == answer.lstrip()


def test_every_verifier_grades_the_answer_alone() -> None:
    thought = "<think>\nNot 41, and not B, maybe \\boxed{41}.\n</think>\n\n"
    graded = {
        "gsm8k@1": ("It is 42.", "42"),
        "math_flex@1": ("The answer is \\boxed{42}.", "42"),
        "letter@1": ("Answer: C", json.dumps({"answer": "C", "letters": "ABCD"})),
        "string@1": ("<answer>Paris</answer>", "Paris"),
        "f1@1": ("Paris", "Paris"),
        "ifeval@1": ("No mark here", NO_COMMA),
    }
    for name, (answer, reference) in graded.items():
        assert verifier(name)(thought + answer, reference) == verifier(name)(answer, reference), name
        assert verifier(name)(thought + answer, reference).score == 1, name
        assert verifier(name)(thought.partition("</think>")[0] + answer, reference) == UNFINISHED, name


def test_a_task_may_keep_thoughts() -> None:
    text = "<think>One, two.</think>No mark here"
    assert verifier("ifeval@1")(text, NO_COMMA).score == 1
    assert verifier("ifeval@1")(text, NO_COMMA, think="keep").score == 0
    assert verifier("gsm8k@1")("<think>so 42", "42", think="keep").score == 1


def test_formats_and_lengths_see_the_whole_text() -> None:
    assert {name for name, one in VERIFIERS.items() if one.sees_thoughts} == {
        "format@1",
        "length@1",
        "sum@1",
        "up_to_length@1",
    }
    text = "<think>a b c</think> <answer>42</answer>"
    assert verifier("format@1")(text, "").score == 1
    assert verifier("length@1")(text, "4").numbers["words"] == 4


def test_a_sum_hands_thoughts_to_the_parts_that_see_them() -> None:
    parts = [{"verifier": "string@1", "reference": "42"}, {"verifier": "format@1", "weight": 0.5}]
    text = "<think>So <answer>41</answer>, no.</think> <answer>42</answer>"
    grade = verifier("sum@1")(text, json.dumps(parts))
    assert grade.numbers == {"string@1": 1, "format@1": 0}
    cut = verifier("sum@1")("<think>So 42", json.dumps(parts))
    assert (cut.score, cut.outcome) == (0, "truncated")


class Judge:
    """Replies with one text, and keeps what it was asked."""

    def __init__(self, reply: str) -> None:
        self.reply, self.asked = reply, list[str]()

    def complete(self, prompts: list[Messages], sampling: Sampling, done=None) -> list[list[Completion]]:
        self.asked += [prompt[-1].content for prompt in prompts]
        return [[Completion(self.reply, (), (), "eos")] for _ in prompts]


def grade(text: str, judge: Judge, **more) -> Grade:
    (found,) = graded([(llm_judge("quality@1"), Case("Q", text, "", **more))], judge)
    return found


def test_an_llm_judge_reads_the_answer_and_is_read_behind_its_own_thought() -> None:
    judge = Judge('<think>\nMaybe {"SCORE": 2}.\n</think>\n{"REASONING": "", "SCORE": 9}')
    assert grade("<think>\nsecret\n</think>\n\nFour.", judge).score == 0.9
    assert "secret" not in judge.asked[0]
    assert "Begin of answer\nFour.\n" in judge.asked[0]
    assert grade("<think>secret</think>Four.", judge, think="keep").score == 0.9
    assert "secret" in judge.asked[1]


def test_an_unfinished_thought_is_truncated_and_no_judge_is_asked() -> None:
    judge = Judge('{"SCORE": 9}')
    assert grade("<think>and so", judge) == UNFINISHED
    assert not judge.asked


def test_a_judge_that_thinks_to_its_end_has_given_no_verdict() -> None:
    judge = Judge('<think>I would say {"SCORE": 9}')
    found = grade("Four.", judge)
    assert (found.outcome, found.lost) == ("unparsed", True)
    assert len(judge.asked) == 3  # a reply without a verdict is asked for again
    (other,) = ask([(llm_judge("wildguard@1"), Case("Q", "A", '{"refusal": "no"}'))], judge)
    assert other.lost


@pytest.mark.parametrize(
    ("file", "name", "wanted"), [("ifeval_think", "ifeval@1", [1, 0]), ("letter_think", "letter@1", [1])]
)
def test_the_answers_of_shared_cases_are_graded_and_not_their_thoughts(
    shared_data: Path, file: str, name: str, wanted: list[float]
) -> None:
    cases = shared_data / "cases" / "verdicts" / f"{file}.jsonl"
    if not cases.is_file():
        pytest.skip(f"the cases are absent ({cases})")
    lines = [json.loads(line) for line in cases.read_text(encoding="utf-8").splitlines()][: len(wanted)]
    assert [verifier(name)(line["completion"], line["truth"]).score for line in lines] == wanted
