"""What is kept passed its check, what is not is counted, and the same answers give the same rows."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence

import pytest

from tercet.data.generators.constraints import drop_one
from tercet.data.synthesis.personas import CHUNK, KINDS, SeedCounts, synthesise
from tercet.data.synthesis.personas_checks import AnswerPlan, majority
from tercet.data.synthesis.personas_prompts import prompt_texts
from tercet.data.synthesis.request_log import LoggedModel, RequestLog
from tercet.rows import Completion, Messages, Row, Sampling
from tercet.rows_file import read_file
from tercet.verify import verifier

PERSONAS = ["A baker who counts everything", "A retired sailor", "A chess teacher from Riga", "A night nurse"]
Says = Callable[[str, int], str]


class Actor:
    """Says what a function of the last turn and the sample's number says; `asked` keeps all prompts."""

    def __init__(self, says: Says, stop: str = "eos") -> None:
        self.says, self.stop = says, stop
        self.asked: list[tuple[Messages, Sampling]] = []

    def complete(self, prompts: Sequence[Messages], sampling: Sampling, done=None) -> list[list[Completion]]:
        found = []
        for i, prompt in enumerate(prompts):
            self.asked.append((prompt, sampling))
            texts = [self.says(prompt[-1].content, sample) for sample in range(sampling.n)]
            found.append([Completion(text, (), (), "error" if text == "!" else self.stop) for text in texts])
            if done:
                done(i, found[-1])
        return found

    def likelihood(self, prompts, options, *, close=False):
        raise AssertionError("an author writes")


def make(kind: str, says: Says, seeds: Sequence[str] = PERSONAS, **plan) -> tuple[list[Row], SeedCounts, Actor]:
    counts, actor = SeedCounts(), Actor(says, plan.pop("stop", "eos"))
    rows = list(synthesise(kind, seeds, actor, 5, plan=AnswerPlan(**plan), counts=counts))
    assert counts.read == len(seeds) == counts.kept + counts.dropped.total()
    assert len({row.id for row in rows}) == len(rows) == counts.kept
    return rows, counts, actor


def solving(answers: Sequence[str], question: str = "Math problem: What is 30 + 42?") -> Says:
    return lambda asked, sample: question if "Imagine" in asked else answers[sample]


def final(value: str) -> str:
    return f"We add.\nFinal Answer: The final answer is ${value}$. I hope it is correct."


def test_a_majority_is_the_largest_group_and_of_equals_the_first():
    assert majority(["a", "b", "B", "A", "b"], lambda one, other: one.lower() == other.lower()) == [1, 2, 4]
    assert majority(["a", "b", "b", "a"], str.__eq__) == [0, 3]
    assert majority([], str.__eq__) == []


@pytest.mark.parametrize(
    ("kind", "answers", "reference"),
    [
        ("persona_gsm", ["72", "72", "71", "72"], "72"),
        ("persona_gsm", ["1,072", "1072", r"\$1072", "5"], "1072"),
        ("persona_math", [r"\frac{1}{2}", "0.5", "3", "1/2"], r"\frac{1}{2}"),
        ("persona_algebra", ["x+1", "1+x", "x + 1", "x"], "x+1"),
    ],
)
def test_mathematics_needs_a_majority_and_its_answer_becomes_the_reference(kind, answers, reference):
    rows, _, actor = make(kind, solving([final(answer) for answer in answers]), PERSONAS[:1])
    (row,) = rows
    assert (row.reference, row.skill, row.source, row.template) == (reference, "math", f"{kind}@1", kind)
    assert row.messages[0].content == "What is 30 + 42?"
    assert row.answer == final(answers[0])
    assert verifier(row.verifier)(row.answer, row.reference).score == 1
    assert [turn.role for turn in actor.asked[-1][0]] == ["system", "user"], "the guide is for the solver alone"


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ([final("1"), final("2"), final("1"), final("2")], "the answers do not agree"),
        ([final("1"), final("1"), "one", "!"], "the answers do not agree"),
        (["1", "1", "1", "1"], "no final answer"),
        ([final("$"), final("{}"), final("none"), ""], "no final answer"),
        (["!", "!", "!", "!"], "a request failed"),
        (["", " ", "", ""], "an empty answer"),
    ],
)
def test_mathematics_without_a_majority_is_not_kept(answers, reason):
    rows, counts, _ = make("persona_gsm", solving(answers), PERSONAS[:1])
    assert not rows
    assert counts.dropped == {reason: 1}


def test_thoughts_are_neither_checked_nor_kept():
    question = "<think>Math problem: no.</think>Math problem: What is 30 + 42?"
    answers = [f"<think>{final('71')}</think>\n\n{final('72')}"] * 3 + [f"<think>{final('71')}"]
    (row,), _, _ = make("persona_gsm", solving(answers, question), PERSONAS[:1])
    assert (row.messages[0].content, row.answer, row.reference) == ("What is 30 + 42?", final("72"), "72")
    rows, counts, _ = make("persona_gsm", solving([f"<think>{final('71')}"] * 4), PERSONAS[:1])
    assert (rows, counts.dropped) == ([], {"an unfinished thought": 1})


def test_a_final_answer_that_no_verifier_can_read_stops_nothing():
    rows, counts, _ = make(
        "persona_math", solving([final(r"\text{}"), final("{}"), final("{}"), final("{}")]), PERSONAS[:1]
    )
    assert len(rows) + counts.dropped.total() == 1


def test_instructions_hold_their_constraints_word_for_word_and_answers_follow_them():
    def says(asked: str, sample: int) -> str:
        if "Imagine" in asked:
            return "**User instruction:** Plan my week."
        return ["I, well, refuse, i do", "my week is calm and slow."][sample]

    personas = [f"Person number {number} from Leeds" for number in range(150)]
    rows, counts, actor = make("persona_if", says, personas, answers=2)
    assert len(rows) > 5
    assert counts.dropped == {"no answer follows the constraints": 150 - len(rows)}
    kinds = set()
    for row in rows:
        assert verifier(row.verifier)(row.answer, row.reference).score == 1
        assert row.messages[0].content.startswith("Plan my week.")
        for place, constraint in enumerate(json.loads(row.reference)):
            kinds.add(constraint["func_name"])
            weaker = drop_one(row, place)
            assert weaker is not None
            assert constraint["text"] not in weaker.prompt[-1].content
    asked = [prompt[-1].content for prompt, _ in actor.asked if "Imagine" in prompt[-1].content]
    assert all(any(persona in text for text in asked) for persona in personas)
    bare, counts, _ = make("persona_if", says, personas, answers=0)
    assert counts.kept == 150
    assert all(row.answer is None and row.verifier == "tulu_if@1" for row in bare)
    assert len({one["func_name"] for row in bare for one in json.loads(row.reference)}) > 15
    assert {len(json.loads(row.reference)) for row in bare} == {1, 2, 3}


def test_an_author_that_writes_the_constraints_itself_is_not_doubled():
    def says(asked: str, sample: int) -> str:
        listed = re.findall(r"^- (.*)$", asked.split("An example")[0], re.MULTILINE)
        return f"User instruction: {' '.join(listed)} Write about rain."

    rows, _, _ = make("persona_if", says, answers=0)
    assert len(rows) == 4
    for row in rows:
        assert all(row.messages[0].content.count(one["text"]) == 1 for one in json.loads(row.reference))


def test_if_augmented_adds_one_constraint_without_asking_an_author():
    instructions = [f"Describe object {number} to me" + "." * (number % 2) for number in range(40)]
    rows, _, actor = make("if_augmented", lambda asked, sample: "never", instructions, answers=0)
    assert not actor.asked
    assert [row.messages[0].content.startswith(text) for row, text in zip(rows, instructions, strict=True)] == [
        True
    ] * 40
    assert {len(json.loads(row.reference)) for row in rows} == {1}


def test_wildchat_keeps_what_has_a_requirement_and_asks_greedily():
    seeds = ["Name a city in one word.", "Name a city.", "Name a river in one word."]
    says = lambda asked, sample: f"Constrained: {'yes' if 'one word' in asked.split('Message:')[1] else 'no'}"  # noqa: E731
    rows, counts, actor = make("wildchat_if", says, seeds, answers=0)
    assert [row.messages[0].content for row in rows] == [seeds[0], seeds[2]]
    assert all(not row.verifier and row.source == "wildchat_if@1" for row in rows)
    assert counts.dropped == {"the message sets no requirement": 1}
    assert {sampling.temperature for _, sampling in actor.asked} == {0.0}


QUESTION = "Question: Write a python function to_double that doubles a list of int. Returns a list of int."
CALLS = "solution([1, 2])\nsolution([])\n`solution([-3])`\nsolution([open('x')])\nsolution([1, 2])\nsolution([0, 0, 0])"
GOOD = "def to_double(xs):\n    return [2 * x for x in xs]"


def programs(*answers: str) -> Says:
    def says(asked: str, sample: int) -> str:
        if "Imagine" in asked:
            return QUESTION
        return CALLS if "five calls" in asked else answers[sample]

    return says


def test_programs_are_run_and_their_majority_becomes_the_test():
    same = "import os\n\ndef helper(x):\n    return x + x\n\ndef to_double(xs):\n    return list(map(helper, xs))"
    wrong = "def to_double(xs):\n    return xs * 2"
    rows, _, _ = make("persona_python", programs(wrong, f"```python\n{GOOD}\n```", same, GOOD), PERSONAS[:1])
    (row,) = rows
    assert (row.answer, row.verifier, row.skill) == (GOOD, "program@1", "code")
    assert json.loads(row.reference)["entry_point"] == "to_double"
    assert json.loads(row.reference)["tests"].count("assert") == 4, "the call that opens a file is not one of literals"
    verify = verifier("program@1")
    assert [verify(text, row.reference).score for text in (row.answer, same, wrong)] == [1, 1, 0]


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        (
            (GOOD, "def to_double(xs):\n    return []", "no code", "def to_double(xs): raise OSError"),
            "the programs do not agree",
        ),
        (("pass", "x = 1", "while True: pass", "("), "no program runs"),
        (("import random\ndef to_double(xs):\n    return 1 if xs else 1",) * 4, ""),
        (("import os\ndef to_double(xs):\n    return os.urandom(8)",) * 4, "the programs do not agree"),
        (("def to_double(xs):\n    import time\n    return time.time_ns() // 10**30",) * 4, ""),
    ],
)
def test_programs_that_do_not_pass_the_test_are_not_kept(answers, reason):
    rows, counts, _ = make("persona_python", programs(*answers), PERSONAS[:1], seconds=1.0)
    assert len(rows) == (not reason)
    assert +counts.dropped == ({reason: 1} if reason else {})


def test_a_program_whose_name_the_question_hides_carries_no_test():
    says = programs(*["def hidden(xs):\n    return sorted(xs)"] * 4)
    rows, _, _ = make("persona_python", says, PERSONAS[:1])
    assert [(row.verifier, row.reference) for row in rows] == [("", "")]


def test_harmless_requests_are_answered_and_unsafe_ones_are_not():
    def says(asked: str, sample: int) -> str:
        return "Request: Tell me." if "Imagine" in asked else ["I'm sorry, I can't do that.", "Sure: gladly."][sample]

    rows, counts, _ = make("noncompliance", says, [f"Person {number}" for number in range(200)], answers=2)
    assert counts.kept == 200
    templates = {row.template for row in rows}
    assert {template.partition("/")[0] for template in templates} == set(prompt_texts().categories)
    for row in rows:
        assert row.answer == ("Sure: gladly." if row.template.endswith("/harmless") else "I'm sorry, I can't do that.")
    assert 30 < sum(row.template.endswith("/harmless") for row in rows) < 90
    only = lambda word: lambda asked, sample: "Request: Tell me." if "Imagine" in asked else word  # noqa: E731
    _, counts, _ = make(
        "noncompliance", only("I cannot help."), [f"Person {number}" for number in range(200)], answers=1
    )
    assert set(counts.dropped) == {"refused a harmless request"}
    _, counts, _ = make("noncompliance", only("Here you go."), [f"Person {number}" for number in range(200)], answers=1)
    assert set(counts.dropped) == {"fulfilled an unsafe request"}


def test_what_cannot_be_used_is_counted_by_its_reason():
    says = solving([final("72")] * 4)
    _, counts, _ = make("persona_gsm", says, ["A", "B", " A ", "", "C"])
    assert (counts.kept, counts.dropped) == (3, {"the same seed twice": 1, "an empty seed": 1})
    _, counts, _ = make("persona_gsm", lambda asked, sample: "I have none.")
    assert counts.dropped == {"the author wrote no question": 4}
    _, counts, _ = make("persona_gsm", says, stop="length")
    assert counts.dropped == {"cut off by the token budget": 4}
    _, counts, _ = make("persona_gsm", lambda asked, sample: "!")
    assert counts.dropped == {"a request failed": 4}


@pytest.mark.parametrize("kind", KINDS)
def test_rows_follow_from_seed_and_answers_alone(kind):
    says = programs(*[GOOD] * 4) if kind == "persona_python" else lambda asked, sample: "User instruction: go"
    one, two = (make(kind, says, PERSONAS[:2]) for _ in range(2))
    assert one[0] == two[0]
    assert [prompt for prompt, _ in one[2].asked] == [prompt for prompt, _ in two[2].asked]


def test_seeds_are_taken_as_they_are_needed():
    taken = []

    def endless():
        while True:
            taken.append(len(taken))
            yield f"Person {len(taken)}"

    rows = synthesise(
        "persona_gsm", endless(), Actor(solving([final("72")] * 4)), 0, plan=AnswerPlan(), counts=SeedCounts()
    )
    assert [next(rows).answer for _ in range(100)] == [final("72")] * 100
    assert len(taken) == CHUNK


@pytest.mark.parametrize("kind", ["persona_if", "if_augmented"])
def test_the_tiny_model_on_real_personas_is_accounted_for_and_not_asked_twice(kind, shared_data, tiny_folder, tmp_path):
    from tercet.models.generate import LocalGenerator

    file = shared_data / "personas" / "persona_hub" / "personas.jsonl"
    personas = [row["persona"] for row, _ in zip(read_file(file), range(12), strict=False)]
    plan = AnswerPlan(answers=2, max_new_tokens=6)
    runs = []
    tiny = LocalGenerator.open(tiny_folder, "float32")
    for generator in (tiny, Actor(lambda asked, sample: pytest.fail("asked twice"))):
        counts = SeedCounts()
        with RequestLog(tmp_path / "log.jsonl") as log:
            model = LoggedModel(log, "tiny", generator)
            runs.append((list(synthesise(kind, personas, model, 1, plan=plan, counts=counts)), counts))
            assert counts.kept + counts.dropped.total() == counts.read == 12
            assert log.spent.answers == len(log) >= 12
    assert runs[0] == runs[1]
