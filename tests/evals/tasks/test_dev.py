from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tercet import hub
from tercet.evals.task import Generated, Item, Task, TaskError, card, items
from tercet.evals.tasks import dev as dev_module
from tercet.evals.tasks import lm as lm_module
from tercet.evals.tasks import quick
from tercet.evals.tasks import shots as shots_module
from tercet.pipeline import read_mirror
from tercet.rows import RowError
from tercet.verify import verifier

TASKS = {task.id: task for task in (*dev_module.TASKS, *lm_module.TASKS)}
COUNTS = {
    "mmlu:mc@1": (14_042, 57),
    "mmlu:cot@1": (14_042, 57),
    "mmlu:cot_brackets@1": (14_042, 57),
    "mmlu:rc@1": (14_042, 57),
    "mmlu:lm@1": (14_042, 57),
    "truthfulqa@1": (817, 1),
    "truthfulqa:lm@1": (817, 1),
    "bbh@1": (6_511, 27),
    "bbh:macro@1": (6_511, 27),
    "bbh:single@1": (6_511, 27),
    "bbh:lm@1": (6_511, 27),
    "gsm8k@2": (1_319, 1),
    "gsm8k:lm@1": (1_319, 1),
    "math@1": (5_000, 7),
    "ifeval@1": (541, 1),
    "ifeval:reference@1": (541, 1),
    "alpacaeval@1": (805, 5),
}
GOLD_STEP = {"math@1": 50}  # one comparison of formulas takes milliseconds
Built = tuple[list[Any], list[Item]]


@pytest.fixture(scope="module")
def built(shared_data: Path, mirror: Path) -> Callable[[str], Built]:
    """Records and items of a task, each built once."""
    files = read_mirror(mirror)
    read = cache(lambda sources: hub.records(sources, files))

    @cache
    def build(name: str) -> Built:
        task = TASKS[name]
        records = list(task.unpack(read(task.data))) if task.unpack else read(task.data)
        return records, items(task, records, read(task.examples))

    return build


@pytest.mark.parametrize("name", COUNTS)
def test_every_published_row_becomes_an_item_and_its_own_answer_is_right(
    built: Callable[[str], Built], name: str
) -> None:
    task, (records, made) = TASKS[name], built(name)
    assert (len(made), len({item.subset for item in made})) == COUNTS[name]
    if task.gold and task.verifier:
        verify = verifier(task.verifier)
        for record, item in list(zip(records, made, strict=True))[:: GOLD_STEP.get(name, 1)]:
            right, wrong = (
                verify(task.gold.right(record), item.reference),
                verify(task.gold.wrong(record), item.reference),
            )
            assert (right.score, wrong.score) == (1.0, 0.0), (item.item, right, wrong)


def test_an_empty_answer_follows_no_constraint(built: Callable[[str], Built]) -> None:
    for name in ("ifeval@1", "ifeval:reference@1"):
        grades = [verifier(item.verifier)("", item.reference) for item in built(name)[1]]
        assert not any(grade.score for grade in grades)
        assert sum(grade.numbers["constraints"] for grade in grades) == 834
        assert all(key in grades[0].numbers for keys in TASKS[name].measures.values() for key in keys)


def test_the_names_that_the_suites_use_are_declared() -> None:
    dev = "mmlu:cot mmlu:mc popqa truthfulqa bbh drop math humaneval humanevalplus ifeval alpacaeval"
    lm = "gsm8k:lm mmlu:lm truthfulqa:lm bbh:lm"
    assert {*(f"{name}@1" for name in f"{dev} {lm}".split()), "gsm8k@2"} <= set(TASKS)
    assert len(TASKS) == len(dev_module.TASKS) + len(lm_module.TASKS)


def test_every_source_is_pinned_and_every_card_says_what_it_is(built: Callable[[str], Built]) -> None:
    for task in TASKS.values():
        assert not isinstance(task.data, Generated)
        pinned = (source for source in (*task.data, *task.examples) if not source.path.startswith("hf:"))
        assert all(len(source.revision) == 40 for source in pinned), task.id
        assert task.description, task.id
        assert task.licence, task.id
    assert card(TASKS["bbh@1"], built("bbh@1")[1]).num_subsets == 27


def test_both_sides_of_a_conflict_are_declared_and_say_so() -> None:
    pairs = {"bbh@1": ("bbh:macro@1", "bbh:single@1"), "popqa@1": ("popqa:single@1",)}
    pairs |= {"mmlu:cot@1": ("mmlu:cot_brackets@1",), "ifeval@1": ("ifeval:reference@1",)}
    for default, others in pairs.items():
        assert all(other in TASKS[default].variant for other in others)
        assert all(TASKS[other].variant not in ("", TASKS[default].variant) for other in others)


def test_quick_tasks_are_made_of_generated_rows() -> None:
    assert [task.id for task in quick.TASKS] == ["words@1", "constraints@1", "talk@1", "facts@1"]
    assert all(isinstance(task.data, Generated) for task in quick.TASKS)


# ---- prompts on real rows: structure, not wording ----


def roles(item: Item) -> str:
    return "".join(message.role[0] for message in item.messages)


def test_examples_are_exchanges_and_the_question_comes_last(built: Callable[[str], Built]) -> None:
    for name, shots in {"mmlu:mc@1": 5, "bbh@1": 3, "gsm8k@2": 8, "math@1": 4, "mmlu:cot@1": 0}.items():
        assert {roles(item) for item in built(name)[1]} == {"ua" * shots + "u"}, name


def test_mmlu_asks_for_a_letter_after_five_rows_of_the_subject(built: Callable[[str], Built]) -> None:
    item = built("mmlu:mc@1")[1][0]
    first, answer, *_, last = (message.content for message in item.messages)
    assert first.startswith(
        "The following are multiple choice questions (with answers) about abstract algebra.\n\nQuestion: "
    )
    assert last.startswith("Question: ")
    assert last.endswith("\nAnswer:")
    assert [line[:4] for line in last.splitlines()[-5:-1]] == [" A. ", " B. ", " C. ", " D. "]
    assert answer in "ABCD"
    assert item.options == (" A", " B", " C", " D")
    assert item.options[item.gold] == f" {item.reference}"
    assert TASKS["mmlu:mc@1"].aggregate == "macro"


def test_mmlu_reasoning_asks_for_its_closing_phrase(built: Callable[[str], Built]) -> None:
    (summarized,) = built("mmlu:cot@1")[1][0].messages
    (bracketed,) = built("mmlu:cot_brackets@1")[1][0].messages
    assert '"Therefore, the answer is: X"' in summarized.content
    assert "abstract algebra" in summarized.content
    assert bracketed.content.count('"Therefore, the answer is (A)"') == 2
    assert "\n (A) " in bracketed.content
    assert (TASKS["mmlu:cot@1"].sampling.max_new_tokens, TASKS["mmlu:cot@1"].sampling.stop) == (512, ("Question:",))
    assert TASKS["mmlu:cot_brackets@1"].sampling.max_new_tokens == 2048


def test_mmlu_cloze_options_are_the_texts_and_equal_ones_are_one(built: Callable[[str], Built]) -> None:
    made = built("mmlu:rc@1")[1]
    assert sum(len(item.options) < 4 for item in made) == 9
    assert all(item.options[item.gold] == f" {item.reference}" for item in made)
    assert made[0].messages[0].content.endswith("\nAnswer:")


def test_truthfulqa_puts_six_examples_and_the_question_in_one_turn(built: Callable[[str], Built]) -> None:
    for item in built("truthfulqa@1")[1]:
        (turn,) = item.messages
        assert turn.content.count("Q: ") == 7
        assert turn.content.endswith("\nA:")
        assert all(option.startswith(" ") for option in item.options)


def test_bbh_describes_its_task_before_the_first_example(built: Callable[[str], Built]) -> None:
    for item in built("bbh@1")[1][::50]:
        first, *_, last = (message.content for message in item.messages)
        description, question = first.split("\n\n", 1)
        assert description
        assert not description.startswith("Q: ")
        assert question
        assert last.startswith("Q: ")
        assert first.endswith(shots_module.STEPS)
        assert last.endswith(shots_module.STEPS)
        assert all("o the answer is" in message.content for message in item.messages if message.role == "assistant")
        assert item.template == item.subset == json.loads(item.reference)["task"]
    (single,) = built("bbh:single@1")[1][0].messages
    assert single.content.count(f"{shots_module.STEPS}\n") == 3


def test_solutions_are_asked_for_with_their_markers(built: Callable[[str], Built]) -> None:
    gsm8k, math = (built(name)[1][0].messages for name in ("gsm8k@2", "math@1"))
    assert gsm8k[-1].content.startswith("Question: ")
    assert gsm8k[-1].content.endswith("\nAnswer:")
    assert all("So the answer is " in message.content for message in gsm8k if message.role == "assistant")
    assert math[-1].content.startswith("Problem:\n")
    assert math[-1].content.endswith("\n\nSolution:")
    assert all(message.content.endswith("I hope it is correct.") for message in math if message.role == "assistant")


def test_ifeval_and_alpacaeval_ask_the_prompt_as_it_is(built: Callable[[str], Built]) -> None:
    for name, key in {"ifeval@1": "prompt", "alpacaeval@1": "instruction"}.items():
        records, made = built(name)
        assert [item.messages[0].content for item in made] == [record[key] for record in records]
    references = [json.loads(item.reference) for item in built("alpacaeval@1")[1]]
    assert all(reference["baseline"] and isinstance(reference["difficulty"], float) for reference in references)
    assert sum(len(json.loads(item.reference)["instruction_id_list"]) for item in built("ifeval@1")[1]) == 834


def test_harness_prompts_are_plain_text(built: Callable[[str], Built]) -> None:
    ends = {"gsm8k:lm@1": "\nA:", "mmlu:lm@1": "\nAnswer:", "truthfulqa:lm@1": "\nA:", "bbh:lm@1": "step by step.\n"}
    for name, end in ends.items():
        assert {item.messages[0].role for item in built(name)[1]} == {"text"}
        assert all(item.messages[0].content.endswith(end) for item in built(name)[1])


# ---- hand-made rows in the public layouts ----

DATE = {"day": "", "month": "", "year": ""}
NONE = {"number": [], "date": [], "spans": []}


def drop_row(**answer: Any) -> dict[str, Any]:
    empty = {"number": "", "date": DATE, "spans": []}
    return {
        "section_id": "history_1",
        "passage": "Ada had five hens and sold two.",
        "question": "How many are left?",
        "query_id": "q1",
        "answer": {**empty, **answer},
        "validated_answers": NONE,
    }


def one(name: str, record: dict[str, Any], examples: list[Any] | None = None) -> Item:
    (item,) = items(TASKS[name], [record], examples or [])
    return item


def accepts(task: Task, record: dict[str, Any], reference: str) -> tuple[float, float]:
    assert task.gold
    verify = verifier(task.verifier)
    return verify(task.gold.right(record), reference).score, verify(task.gold.wrong(record), reference).score


def test_drop_asks_in_plain_text_after_three_drawn_rows() -> None:
    shots = [drop_row(number=str(number)) for number in range(20)]
    item = one("drop@1", drop_row(number="3"), shots)
    (text,) = item.messages
    assert text.role == "text"
    assert text.content.count("Passage: ") == 4
    assert text.content.endswith("\nQuestion: How many are left?\nAnswer:")
    assert (
        text.content.split("\n\n")[:3]
        == one("drop@1", drop_row(number="4"), shots).messages[0].content.split("\n\n")[:3]
    )
    assert (item.reference, item.template) == ('[["3"]]', "history_1")
    assert accepts(TASKS["drop@1"], drop_row(number="3"), item.reference) == (1.0, 0.0)


def test_drop_answers_are_numbers_spans_and_dates_each_alternative_once() -> None:
    row = drop_row(spans=["Smith", "Jones"])
    row["validated_answers"] = {
        "number": ["7", "", "", ""],
        "date": [DATE, {"day": "3", "month": "May", "year": "1990"}, {**DATE, "year": "1934"}, DATE],
        "spans": [[], [], [], ["Smith", "Jones"]],
    }
    assert shots_module.drop_answers(row) == [["Smith", "Jones"], ["7"], ["3 May 1990"], ["1934"]]


def test_real_drop_rows_accept_their_own_answer(shared_data: Path) -> None:
    rows = json.loads((shared_data / "eval/fewshot/drop_10.json").read_text(encoding="utf-8"))
    for item, row in zip(items(TASKS["drop@1"], rows, rows), rows, strict=True):
        assert accepts(TASKS["drop@1"], row, item.reference) == (1.0, 0.0)


def test_popqa_accepts_any_alias_of_its_json_column() -> None:
    row = {"question": "In what city was Ada born?", "possible_answers": '["London", "City of London"]'}
    shots = [{"question": f"What is {number}?", "answer": f"thing {number}"} for number in range(16)]
    item, single = one("popqa@1", row, shots), one("popqa:single@1", row, shots)
    assert roles(item) == "ua" * 15 + "u"
    assert [message.content for message in item.messages[-3:]] == [
        "Q: What is 14? A:",
        "thing 14",
        "Q: In what city was Ada born? A:",
    ]
    assert single.messages[0].content.endswith("Q: What is 14? A: thing 14\n\nQ: In what city was Ada born? A:")
    assert json.loads(item.reference) == ["London", "City of London"]
    assert accepts(TASKS["popqa@1"], row, item.reference) == (1.0, 0.0)


def test_truthfulqa_reads_the_hub_layout_with_true_answers_first() -> None:
    targets = {"choices": ["No", "Yes", "Never", "Yes", "No"], "labels": [0, 1, 1, 1, 0]}
    item = one("truthfulqa@1", {"question": "Really?", "mc2_targets": targets}, [{"question": "2 + 2?", "answer": "4"}])
    assert item.messages[0].content == "Q: 2 + 2?\nA: 4\n\nQ: Really?\nA:"
    assert (item.options, item.gold) == ((" Yes", " Never", " No"), 2)


FUNCTION = {
    "task_id": "HumanEval/0",
    "prompt": 'from typing import List\n\n\ndef total(xs: List[int]) -> int:\n    """The sum."""\n',
    "canonical_solution": "    return sum(xs)\n",
    "test": "def check(candidate):\n    assert candidate([1, 2]) == 3\n",
    "entry_point": "total",
}


@pytest.mark.parametrize("name", ["humaneval@1", "humanevalplus@1"])
def test_programs_are_continued_inside_a_code_fence(name: str) -> None:
    task, item = TASKS[name], one(name, FUNCTION)
    assert [message.role for message in item.messages] == ["user", "assistant"]
    assert "def total" in item.messages[0].content
    assert item.messages[1].content.endswith("```python\n")
    assert (task.pass_k, task.sampling.n, task.sampling.temperature, task.sampling.top_p) == (10, 20, 0.8, 0.95)
    assert accepts(task, FUNCTION, item.reference) == (1.0, 0.0)
    body = verifier(task.verifier)(FUNCTION["canonical_solution"], item.reference)
    assert body.score == 1.0, body


# ---- few-shot sources ----


def test_examples_are_read_from_a_python_source_without_running_it() -> None:
    source = "raise SystemExit\nOTHER = [{'x': f()}]\nSHOTS = [{'question': 'a', 'answer': 'b' 'c'}]\n"
    assert shots_module.gsm8k({}, [{"text": source}]) == [("Question: a\nAnswer:", "bc")]
    with pytest.raises(RowError, match="rows with the keys problem, solution"):
        shots_module.minerva({}, [{"text": source}])


def test_the_primer_is_read_from_the_lines_of_a_yaml() -> None:
    pairs = "  Q: Who?\\n\\\n  A: Me.\\n\\n\\\n  Q: Where?\\n\\\n  A: Here.\\\n"
    yaml = f"doc_to_text: \"\\\n{pairs}  '%}}\\\n  {{{{'Q: ' + question + '\\nA:'}}}}\""
    assert shots_module.primer({}, [{"text": yaml}]) == [("Q: Who?\nA:", "Me."), ("Q: Where?\nA:", "Here.")]
    with pytest.raises(TaskError, match="Q: and A: lines"):
        shots_module.primer({}, [{"text": "nothing"}])


def test_a_bbh_prompt_file_is_cut_into_description_and_examples() -> None:
    steps = shots_module.STEPS
    text = f"canary\n-----\nSort it.\n\nQ: b a\n{steps}\nTwo.\n\nThen one.\n\nQ: d c\n{steps} Swap."
    example = {"text": text, "_subset": "word_sorting"}
    shots = shots_module.bbh({"_subset": "word_sorting"}, [{"text": "", "_subset": "snarks"}, example])
    assert shots == [(f"Sort it.\n\nQ: b a\n{steps}", "Two.\n\nThen one."), (f"Q: d c\n{steps}", "Swap.")]
    with pytest.raises(TaskError, match="no prompt file for the BIG-Bench Hard task 'navigate'"):
        shots_module.bbh({"_subset": "navigate"}, [example])
    with pytest.raises(TaskError, match="a description and examples"):
        shots_module.bbh({"_subset": "snarks"}, [{"text": "empty", "_subset": "snarks"}])


# ---- the harness's prompts, byte for byte ----


def test_harness_prompts_join_description_examples_and_question() -> None:
    shot = {"question": "1 + 1?", "answer": "It is 2. So the answer is 2."}
    gsm8k = one("gsm8k:lm@1", {"question": "2 + 2?", "answer": "4\n#### 4"}, [shot])
    assert gsm8k.messages[0].content == "Q: 1 + 1?\nA: It is 2. The answer is 2.\n\nQ: 2 + 2?\nA:"
    row = {"subject": "high_school_physics", "question": " What? ", "choices": ["a", "b ", "c", "d"], "answer": 1}
    assert one("mmlu:lm@1", row, [row, {**row, "subject": "law"}]).messages[0].content == (
        "The following are multiple choice questions (with answers) about high school physics.\n\n"
        "What?\nA. a\nB. b \nC. c\nD. d\nAnswer: B\n\nWhat?\nA. a\nB. b \nC. c\nD. d\nAnswer:"
    )
    prompt = {"text": f"-----\nSort it.\n\nQ: b a\n{shots_module.STEPS}\nDone.", "_subset": "word_sorting"}
    bbh = one("bbh:lm@1", {"input": "d c", "target": "c d", "_subset": "word_sorting"}, [prompt])
    assert bbh.messages[0].content == (
        f"Sort it.\n\nQ: b a\n{shots_module.STEPS}\nDone.\n\nQ: d c\n{shots_module.STEPS}\n"
    )
