"""A user's own benchmark: rows with a verifier and a reference answer, tasks in files, and what is refused in words."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from tercet.data import benchmark_items
from tercet.evals import benchmark, gates, suite
from tercet.evals.compare import compare
from tercet.evals.rescore import rescore
from tercet.evals.task import TaskError, read_benchmark
from tercet.recipe import BenchmarkSpec
from tercet.records import read_scores
from tercet.rows import Message, Row, read_rows, write_table
from tercet.stats import CompareError, GateError
from tercet.verify import VerifierError, custom_digest

TASK = """
from tercet.evals.task import Task
from tercet.rows import Row, Source
from tercet.stats import Estimate

def half(results):
    return Estimate(0.5, 0.1, 0.3, 0.7, len(results), 3), {"own": 1.0}

def mine():
    return Task(
        name="mine", version=3, skill="play", data=(Source("mine.jsonl"),), verifier="gsm8k@1", headline=half,
        prompt=lambda record: Row("", ({turns},)).messages, reference=lambda record: record["answer"],
    )

taken = Task(
    name="words", version=1, skill="", data=(), verifier="gsm8k@1", prompt=lambda row: (), reference=lambda row: "",
)
number = 3
"""
REWARD = """
def score(completion, answer):
    return answer in completion

def prompted(prompt, completion):
    return float(prompt.startswith("Sum:"))
"""


def problem(number: int, verifier: str = "gsm8k@1", **more: Any) -> Row:
    turns = (Message("user", f"Ann has {number} pens and Bob has {number + 1} pens. How many have they?"),)
    return Row(f"p{number}", turns, verifier=verifier, **{"source": "sums", "reference": str(2 * number + 1)} | more)


@pytest.fixture
def make(workspace: Any) -> Callable[..., dict[str, float]]:
    """Write the benchmark of rows into the folder `benchmark`, as the stage `mine` does."""

    def make(rows: list[Row], **more: Any) -> dict[str, float]:
        write_table(workspace.root / "problems" / "rows.parquet", rows)
        workspace.inputs["problems"] = SimpleNamespace(payload=workspace.root / "problems")
        for row in rows:
            answer = f"It is {row.reference}."
            workspace.model.references[row.prompt[-1].content] = answer
            text = more.get("prompt_text", "{prompt}").replace("{prompt}", row.prompt[-1].content)
            workspace.model.references[text] = answer
        (workspace.root / "benchmark").mkdir(exist_ok=True)
        ctx = workspace.ctx(name="mine", load_rows=lambda source, inputs: (read_rows(table(inputs, source)), {}))
        spec = BenchmarkSpec(rows="problems", **more)
        return benchmark.run(spec, workspace.inputs, workspace.root / "benchmark", ctx)

    def table(inputs: Any, source: Any) -> Path:
        return inputs[source.stage].payload / "rows.parquet"

    return make


def test_rows_with_a_verifier_are_a_task_that_is_asked_and_graded(workspace: Any, make: Any) -> None:
    assert make([problem(i) for i in range(5)]) == {"items": 5.0, "mine@1": 5.0}
    assert workspace.evaluate("one")["mine@1"] == 1.0
    card = read_scores(workspace.root / "one")["mine@1"].card
    assert (card.verifier, card.shots, card.num_items) == ("gsm8k@1", 0, 5)
    assert card.data == {"stage": "problems", "parts": {"sums": "not known here"}}


def test_name_version_sampling_and_text_are_those_of_the_recipe(workspace: Any, make: Any) -> None:
    sampled = {"temperature": 0.7, "num_generations": 4, "pass_k": 2, "max_new_tokens": 99}
    make([problem(i) for i in range(3)], task="sums@2", prompt_text="Sum: {prompt} Think.", **sampled)
    (card,), items = read_benchmark(workspace.root / "benchmark")
    assert (card.name, card.sampling.n, card.sampling.temperature, card.pass_k) == ("sums@2", 4, 0.7, 2)
    assert items[0].messages[-1].content.startswith("Sum: Ann has 0 pens")
    assert items[0].fields == (problem(0).messages[0].content,), "decontamination looks for the question alone"


def test_the_first_rows_are_worked_examples_and_no_items(workspace: Any, make: Any) -> None:
    make([problem(i) for i in range(5)], shots=2, limit=2)
    (card,), items = read_benchmark(workspace.root / "benchmark")
    assert card.shots == 2
    assert {item.item for item in items} <= {"p2", "p3", "p4"}
    turns = items[0].messages
    assert [turn.role for turn in turns] == ["user", "assistant"] * 2 + ["user"]
    assert turns[1].content == "1"
    looked_for, _ = benchmark_items.read_benchmark(workspace.root / "benchmark")
    assert [one.task for one in looked_for] == ["mine@1"] * 2 + ["mine@1:examples"] * 2


def test_a_longer_conversation_s_own_turns_are_no_shots(workspace: Any, make: Any) -> None:
    turns = (Message("user", "Hello"), Message("assistant", "Hi"), Message("user", "One and one?"))
    long = Row("p", (*turns[:2], *turns), verifier="gsm8k@1", reference="2")
    make([long])
    assert read_benchmark(workspace.root / "benchmark")[0][0].shots == 0


def test_rows_of_several_verifiers_are_several_tasks(workspace: Any, make: Any, tmp_path: Path) -> None:
    (tmp_path / "my_reward.py").write_text(REWARD, encoding="utf-8")
    own = f"{tmp_path}/my_reward.py"
    rows = [problem(0), problem(1, f"{own}:score"), problem(2, f"{own}:prompted")]
    made = make(rows, prompt_text="Sum: {prompt}")
    assert set(made) == {"items", "mine:gsm8k@1", "mine:score@1", "mine:prompted@1"}
    found = workspace.evaluate("one")
    assert [found[f"mine:{name}@1"] for name in ("gsm8k", "score", "prompted")] == [1.0, 1.0, 1.0]
    card = read_scores(workspace.root / "one")["mine:score@1"].card
    assert card.code is not None
    assert card.code == {f"{own}:score": custom_digest(f"{own}:score")}
    (tmp_path / "my_reward.py").write_text(REWARD + "\n", encoding="utf-8")
    workspace.evaluate("two")
    with pytest.raises(CompareError, match="mine:score@1"):
        compare(workspace.root / "one", workspace.root / "two")


def test_gates_compare_and_rescore_treat_it_like_any_task(workspace: Any, make: Any) -> None:
    make([problem(i) for i in range(40)])
    workspace.evaluate("one")
    workspace.model.references = dict.fromkeys(workspace.model.references, "It is 999.")
    workspace.evaluate("two")
    assert compare(workspace.root / "one", workspace.root / "two")[0].difference == -1.0
    with pytest.raises(GateError, match="mine >= one"):
        gates.check(("mine >= one",), workspace.root / "two", {"one": workspace.root / "one"})
    again = rescore(workspace.root / "one", workspace.root / "again", {"mine@1": "flan@1"})
    assert again["mine@1"].card.verifier == "flan@1"


def test_rescore_takes_another_verifier_in_the_place_of_a_user_s_and_back(
    workspace: Any, make: Any, tmp_path: Path
) -> None:
    own = f"{tmp_path}/my_reward.py:score"
    (tmp_path / "my_reward.py").write_text(REWARD, encoding="utf-8")
    make([problem(0, own)])
    workspace.evaluate("one")
    plain = rescore(workspace.root / "one", workspace.root / "plain", {"mine@1": "flan@1"})["mine@1"].card
    assert (plain.verifier, plain.code) == ("flan@1", None)
    back = rescore(workspace.root / "plain", workspace.root / "back", {"mine@1": own})["mine@1"].card
    assert (back.verifier, back.code) == (own, {own: custom_digest(own)})


def test_bits_per_byte_of_the_right_answers_need_no_verifier(workspace: Any, make: Any) -> None:
    make([problem(i, "") for i in range(3)], metric="bpb")
    workspace.model.references = {row.prompt[-1].content: row.reference for row in map(problem, range(3))}
    assert workspace.evaluate("one")["mine@1"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("rows", "more", "message"),
    [
        ([problem(0, "")], {}, "row 'p0' of sums names no verifier, so no answer can be graded"),
        ([problem(0, reference="")], {}, "mine@1, item 'p0': has no reference answer"),
        ([problem(0), problem(0)], {}, "two items have the id 'p0'"),
        ([problem(0)], {"shots": 1}, "mine@1: found no items; all its rows are worked examples"),
        ([problem(0)], {"shots": 2}, "shots = 2, but there are 1 rows"),
        ([problem(0, "nope@1")], {}, "unknown verifier 'nope@1'"),
        ([problem(0, "tulu_if@1", reference="{]")], {}, "mine@1, item 'p0': tulu_if@1"),
        (
            [problem(0, "tulu_if@1", reference='{"a": 1}'), problem(1, "tulu_if@1")],
            {"shots": 1},
            "row 'p0' has no answer",
        ),
        ([problem(0)], {"tasks": ("words@1",), "items": ("items",), "task": "words@1"}, "two tasks of this stage"),
    ],
)
def test_what_cannot_be_graded_is_named_before_anything_is_asked(
    make: Any, rows: list[Row], more: dict[str, Any], message: str
) -> None:
    with pytest.raises((TaskError, VerifierError)) as caught:
        make(rows, **more)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "a benchmark needs `tasks`, or rows of your own"),
        ({"rows": "a", "source": {"path": "b.jsonl"}}, "give one of the two"),
        ({"tasks": ("words@1",), "shots": 2}, "`shots` is for a task of your own"),
        ({"rows": "a", "pass_k": 2}, "raise num_generations"),
        ({"rows": "a", "prompt_text": "Hm"}, "must hold {prompt}"),
        ({"rows": "a", "task": "noversion"}, "should match pattern"),
    ],
)
def test_a_benchmark_stage_that_makes_no_sense_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        BenchmarkSpec(**values)
    assert message in str(caught.value)


def test_older_recipes_keep_their_keys() -> None:
    assert set(BenchmarkSpec(tasks=("words@1",)).model_dump()) == {"seed", "kind", "tasks", "items", "limit"}


@pytest.fixture
def task_file(tmp_path: Path) -> str:
    turns = '__import__("tercet.rows").rows.Message("user", record["question"])'
    (tmp_path / "my_tasks.py").write_text(TASK.replace("{turns}", turns), encoding="utf-8")
    return f"{tmp_path}/my_tasks.py"


def test_a_task_in_a_file_is_one_of_the_benchmark_with_its_own_headline(
    workspace: Any, task_file: str, tmp_path: Path
) -> None:
    data = [{"question": f"What is {i} plus one?", "answer": str(i + 1)} for i in range(4)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(one) + "\n" for one in data), encoding="utf-8")
    workspace.model.references |= {one["question"]: one["answer"] for one in data}
    out = workspace.root / "benchmark"
    out.mkdir()
    ctx = workspace.ctx(mirror={"mine.jsonl": str(tmp_path / "mine.jsonl")})
    spec = BenchmarkSpec(tasks=(f"{task_file}:mine",))
    assert benchmark.run(spec, {}, out, ctx) == {"items": 4.0, "mine@3": 4.0}
    assert workspace.evaluate("one")["mine@3"] == 0.5
    assert read_scores(workspace.root / "one")["mine@3"].preference == {"own": 1.0}
    assert list(suite.code(spec, Path())) == [f"{task_file}:mine"]
    assert suite.graders(spec, Path()) == {"gsm8k@1": ""}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("taken", "is called 'words@1', as a task of Tercet is"),
        ("number", "expected a tercet.evals.task.Task, or a function that returns one, got 3"),
        ("absent", "has no 'absent'"),
    ],
)
def test_what_is_no_task_of_a_file_is_refused(task_file: str, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=r".*") as caught:
        suite.tasks([f"{task_file}:{name}"])
    assert message in str(caught.value)
