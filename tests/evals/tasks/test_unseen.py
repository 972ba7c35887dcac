"""The unseen suite: what is asked, and that every verifier accepts the row's own answer and refuses a spoiled one."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tercet import hub
from tercet.evals.task import Item, Task, TaskError, card, items
from tercet.evals.tasks.unseen import AGIEVAL, MODULES, TASKS
from tercet.pipeline import read_mirror
from tercet.verify import verifier

BY_ID = {task.id: task for task in TASKS}
PHRASE = "Therefore, the answer is (X)"


def made(name: str, *records: dict[str, Any]) -> list[Item]:
    return items(BY_ID[name], records)


def real(name: str, mirror: dict[str, str]) -> list[dict[str, Any]]:
    """The records that the mirror has; a subset without a file is left out."""
    sources = BY_ID[name].data
    assert isinstance(sources, tuple)
    return hub.records([one for one in sources if Path(hub.local_file(one, mirror)).is_file()], mirror)


def check_gold(task: Task, records: list[dict[str, Any]]) -> list[str]:
    """Reference answers and answers that the verifier graded otherwise than expected."""
    assert task.gold
    verify, wrong = verifier(task.verifier), []
    for record in records:
        reference = task.reference(record)
        if verify(task.gold.right(record), reference).score != 1:
            wrong.append(f"refused {task.gold.right(record)!r} for {reference!r}")
        if verify(task.gold.wrong(record), reference).score != 0:
            wrong.append(f"accepted {task.gold.wrong(record)!r} for {reference!r}")
    return wrong


@pytest.fixture(scope="module")
def local(shared_data: Path, mirror: Path) -> dict[str, str]:
    return read_mirror(mirror)


GPQA = {
    "Question": "Which of these is a gas [title]at room temperature?",
    "Correct Answer": " Neon [title]it  glows [see notes]",
    "Incorrect Answer 1": "Iron",
    "Incorrect Answer 2": "Salt",
    "Incorrect Answer 3": None,
    "_row": 5,
}
PRO = {"question": "2 + 2?", "options": ["3", "4", "(A) or (B)"], "answer": "B", "category": "math", "answer_index": 1}


def test_every_task_says_what_it_is() -> None:
    assert len(BY_ID) == len(TASKS) == 9
    for task in TASKS:
        assert task.description, task.id
        assert task.licence, task.id
        assert task.split in ("test", "train", "dev"), task.id


def test_a_lettered_question_stands_between_instruction_and_reminder() -> None:
    (item,) = made("mmlu_pro@1", PRO)
    (turn,) = item.messages
    opening, body, reminder = turn.content.split("\n\n")
    assert body == "Question: 2 + 2?\n (A) 3\n (B) 4\n (C) (A) or (B)"
    assert PHRASE in opening
    assert PHRASE in reminder
    assert "concise" in opening
    assert (item.subset, json.loads(item.reference)) == (
        "math",
        {"answer": "B", "letters": "ABCDEFGHIJ", "brackets": True},
    )
    assert BY_ID["mmlu_pro@1"].sampling.max_new_tokens == 2048
    assert BY_ID["mmlu_pro@1"].sampling.stop == ()


def test_gpqa_options_are_cleaned_and_shuffled_by_row_number() -> None:
    order = [("Iron", False), ("Salt", False), (" ", False), ("Neon. it glows ", True)]
    random.Random(111 + 5).shuffle(order)
    (item,) = made("gpqa@1", GPQA)
    lines = item.messages[0].content.split("\n\n")[1].split("\n")
    assert lines[:2] == ["Question: Which of these is a gas [title]at room temperature?", "Choices:"]
    assert lines[2:] == [f" ({letter}) {text}" for letter, (text, _) in zip("ABCD", order, strict=True)]
    assert item.reference == "ABCD"[[right for _, right in order].index(True)]
    orders = {made("gpqa@1", {**GPQA, "_row": row})[0].messages[0].content for row in range(30)}
    assert len(orders) > 10


def test_gpqa_without_row_numbers_is_refused() -> None:
    with pytest.raises(TaskError, match="_row"):
        made("gpqa@1", {key: value for key, value in GPQA.items() if key != "_row"})


def test_agieval_keeps_the_labels_of_its_file_and_clusters_by_passage() -> None:
    row = {
        "passage": "Three doors.",
        "question": "Which?",
        "options": ["(A)1", "(C)3", "2"],
        "label": "C",
        hub.PART: "lsat-rc",
    }
    first, other, alone = made("agieval@1", row, {**row, "question": "Why?"}, {**row, "passage": None})
    assert "Passage: Three doors.\n\nQuestion: Which?\n (A) 1\n (C) 3\n (C) 2\n\n" in first.messages[0].content
    assert "Passage" not in alone.messages[0].content
    assert first.template == other.template != alone.template != ""
    assert first.subset == "lsat-rc"
    assert json.loads(first.reference) == {"answer": "C", "letters": "ABCDEF", "brackets": True}


def test_agieval_english_is_these_eight_sets() -> None:
    assert len(AGIEVAL) == len(BY_ID["agieval@1"].data) == 8  # type: ignore[arg-type]
    assert not {"sat-en-without-passage", "math"} & set(AGIEVAL)


def test_a_math_question_demands_the_closing_sentence_and_shows_three_answers() -> None:
    row = {"category": "algebra__linear_1d_composed", "question": "Solve x = 1.", "answer": "1"}
    (item,) = made("deepmind_math@1", row)
    _, question, closing = item.messages[0].content.split("\n\n")
    assert question == "Solve x = 1."
    assert '"Therefore, the final answer is [answer]. I hope it is correct."' in closing
    assert closing.endswith("look like these: 7; -12; 0")
    assert (item.subset, item.reference) == ("algebra__linear_1d_composed", "1")


def test_a_math_row_of_the_hub_is_stripped_of_its_byte_string() -> None:
    row = {"question": "b'What is 2*k?\\n'", "answer": "b'2*k\\n'", hub.PART: "polynomials__add"}
    (item,) = made("deepmind_math@1", row)
    assert "\n\nWhat is 2*k?\n\n" in item.messages[0].content
    assert item.reference == "2*k"


def test_there_are_56_math_modules_and_no_other() -> None:
    assert len(MODULES) == len(BY_ID["deepmind_math@1"].data) == 56  # type: ignore[arg-type]
    with pytest.raises(TaskError, match="no module 'algebra'"):
        made("deepmind_math@1", {"category": "algebra", "question": "?", "answer": "1"})


PROGRAM = {
    "task_id": "BigCodeBench/0",
    "instruct_prompt": "Double a number.\nStart with:\n```\ndef task_func(n):\n```",
    "code_prompt": "import math\ndef task_func(n):\n",
    "canonical_solution": "    return math.prod((2, n))",
    "test": "import unittest\n\nclass TestCases(unittest.TestCase):\n    def test_two(self):\n"
    "        self.assertEqual(task_func(2), 4)\n",
    "entry_point": "task_func",
}


def test_a_program_is_asked_for_with_an_open_fence_and_stops_at_its_end() -> None:
    (item,) = made("bigcodebench_hard@1", PROGRAM)
    user, answer = item.messages
    assert user.content.endswith(PROGRAM["instruct_prompt"])
    assert answer.role == "assistant"
    assert answer.content.endswith(":\n```python\n")
    stops = BY_ID["bigcodebench_hard@1"].sampling.stop
    assert {"\nif __name__", "\ndef main(", "\nprint(", "\n```"} == set(stops)
    assert BY_ID["bigcodebench_hard:pass10@1"].pass_k == 10


def test_a_program_runs_below_the_stub_of_its_problem() -> None:
    task = BY_ID["bigcodebench_hard@1"]
    reference = json.loads(task.reference(PROGRAM))
    assert reference["before"] == "import math\ndef task_func(n):\n\n    pass\n"
    assert (reference["kind"], reference["entry_point"]) == ("unittest", "task_func")
    assert check_gold(task, [PROGRAM]) == []
    assert (
        verifier("program@1")("def task_func(n):\n    return math.prod((2, n))\n", task.reference(PROGRAM)).score == 1
    )


def test_an_ifbench_row_is_its_own_reference() -> None:
    row = {
        "key": "1",
        "prompt": "Describe rain.",
        "instruction_id_list": ["count:word_count_range"],
        "kwargs": [{"min_words": 3, "max_words": 5, "N": None}],
        "_row": 0,
    }
    (item,) = made("ifbench@2", row)
    assert [turn.content for turn in item.messages] == ["Describe rain."]
    assert verifier("ifbench@2")("Water falls from clouds.", item.reference).score == 1
    assert verifier("ifbench@2")("Water.", item.reference).score == 0


def test_each_href_task_type_has_its_method() -> None:
    row = {"category": "Open QA", "instruction": "Who?", "output": "They.", "generator": "m", "reference": "She."}
    (item,) = made("href@1", row)
    assert json.loads(item.reference) == {"baseline": "They.", "reference": "She.", "method": "embedding"}
    assert (item.judge, item.subset, item.question) == ("href@1", "Open QA", "Who?")
    types = ["Brainstorm", "Classify", "Closed QA", "Extract", "Fact Checking or Attributed QA", "Generation"]
    types += ["Multi-Document Synthesis", "Open QA", "Reasoning Over Numerical Data", "Rewrite", "Summarize"]
    found = Counter(
        json.loads(item.reference)["method"] for item in made("href@1", *({**row, "category": c} for c in types))
    )
    assert found == {"reference": 7, "plain": 2, "embedding": 2}
    with pytest.raises(TaskError, match="no category 'Coding'"):
        made("href@1", {**row, "category": "Coding"})


def test_mmlu_pro_is_whole(local: dict[str, str]) -> None:
    benchmark = items(BY_ID["mmlu_pro@1"], real("mmlu_pro@1", local))
    assert len(benchmark) == 12032
    assert len({item.subset for item in benchmark}) == 14
    described = card(BY_ID["mmlu_pro@1"], benchmark)
    assert (described.aggregate, described.num_subsets, described.shots) == ("macro", 14, 0)


def test_four_agieval_sets_are_whole(local: dict[str, str]) -> None:
    benchmark = items(BY_ID["agieval@1"], real("agieval@1", local))
    counts = Counter(item.subset for item in benchmark)
    assert counts == {"aqua-rat": 254, "logiqa-en": 651, "lsat-ar": 230, "sat-math": 220}
    assert 30 < len({item.template for item in benchmark if item.subset == "lsat-ar"}) < 60
    assert not any("((" in item.messages[0].content.split("Question:")[1].split("\n (A)")[0][:2] for item in benchmark)


def test_math_has_100_questions_of_each_module(local: dict[str, str]) -> None:
    benchmark = items(BY_ID["deepmind_math@1"], real("deepmind_math@1", local))
    assert Counter(item.subset for item in benchmark) == dict.fromkeys(MODULES, 100)


@pytest.mark.parametrize(("name", "step"), [("mmlu_pro@1", 1), ("agieval@1", 1), ("deepmind_math@1", 1)])
def test_the_verifier_agrees_with_every_row(name: str, step: int, local: dict[str, str]) -> None:
    assert check_gold(BY_ID[name], real(name, local)[::step]) == []


def test_the_verifier_agrees_with_a_gpqa_row() -> None:
    assert check_gold(BY_ID["gpqa@1"], [{**GPQA, "_row": row} for row in range(20)]) == []
