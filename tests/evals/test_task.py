"""Tasks, the suite and the benchmark stage."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tercet.evals import benchmark, suite
from tercet.evals.task import Generated, Task, TaskError, items, read_benchmark
from tercet.recipe import BenchmarkSpec
from tercet.rows import Message, Row, write_table
from tercet.verify import VerifierError


def of(name: str, rows: list[Row]) -> list[Any]:
    return items(suite.task(name), [row for row in rows if row.source == name])


def plain_task(**more: Any) -> Task:
    given: dict[str, Any] = {"name": "t", "version": 1, "skill": "s", "data": Generated("words@1", 1)}
    given |= {"prompt": lambda row: row.prompt, "reference": lambda row: row.reference, "verifier": "gsm8k@1"}
    return Task(**{**given, **more})


def test_unknown_task_names_the_known_ones() -> None:
    with pytest.raises(TaskError, match=r"'wrods@1'; known tasks: words@1, .*suites: quick"):
        suite.task("wrods@1")


def test_suites_expand_in_order_and_each_task_comes_once() -> None:
    assert [task.id for task in suite.tasks(["facts@1", "quick"])] == ["facts@1", "words@1", "constraints@1", "talk@1"]


def test_needs_lists_generators_with_rows() -> None:
    assert suite.needs(["quick", "gsm8k@2"]) == [
        ("words@1", 120),
        ("constraints@1", 120),
        ("talk@1", 60),
        ("facts@1", 60),
    ]


def test_every_task_says_what_it_is() -> None:
    assert all(task.description and task.skill for task in suite.TASKS.values())
    assert all(suite.TASKS[name] for one in suite.SUITES.values() for name in one.tasks)


def test_options_are_shuffled_by_the_item_alone(rows: list[Row]) -> None:
    first, again = of("facts@1", rows), of("facts@1", rows)
    assert first == again
    assert [item.options[item.gold] for item in first] == ["Paris", "Rome", "Tokyo"]
    assert sorted(first[0].options) == ["Bern", "Lima", "Oslo", "Paris"]
    many = [dataclasses.replace(rows[-1], id=f"f{i}") for i in range(60)]
    assert {item.gold for item in items(suite.task("facts@1"), many)} == {0, 1, 2, 3}


def test_facts_without_wrong_answers_are_refused(rows: list[Row]) -> None:
    with pytest.raises(TaskError, match="row 'f2': expected a JSON list of wrong answers as reference answer, got '5'"):
        items(suite.task("facts@1"), [dataclasses.replace(rows[-1], reference="5")])


def test_the_same_fact_twice_among_options_is_refused(rows: list[Row]) -> None:
    with pytest.raises(TaskError, match="at least two different options"):
        items(suite.task("facts@1"), [dataclasses.replace(rows[-1], reference='["Tokyo", "Rome"]')])


def test_talk_scores_the_assistant_turn(rows: list[Row]) -> None:
    talk = of("talk@1", rows)[0]
    assert talk.options == ("Hello, héllo!",)
    assert talk.gold == 0
    assert [turn.role for turn in talk.messages] == ["user"]


def test_ids_that_come_twice_are_refused(rows: list[Row]) -> None:
    with pytest.raises(TaskError, match="two items have the id 'w0'"):
        items(suite.task("words@1"), rows[:1] * 2)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (Row("a", (Message("user", "x"),)), "no reference answer"),
        (Row("a", (Message("system", "x"),), reference="1"), "must end with a user turn"),
    ],
)
def test_items_that_cannot_be_evaluated_are_refused(row: Row, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        items(plain_task(), [row])


@pytest.mark.parametrize(
    "wrong",
    [{"verifier": ""}, {"metric": "bpb"}, {"metric": "choice", "verifier": ""}, {"options": lambda row: (["a"], 0)}],
)
def test_impossible_declarations_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(TaskError, match="t@1"):
        plain_task(**wrong)


def test_shots_come_between_the_system_turn_and_the_question() -> None:
    row = Row("a", (Message("system", "Be brief."), Message("user", "2 + 2?")), reference="4")
    (item,) = items(plain_task(shots=lambda record, examples: [("1 + 1?", "2")]), [row])
    assert [turn.content for turn in item.messages] == ["Be brief.", "1 + 1?", "2", "2 + 2?"]
    assert item.fields == ("2 + 2?",)


def test_the_benchmark_folder_holds_items_and_cards(workspace: Any, rows: list[Row]) -> None:
    assert workspace.write_benchmark() == {"items": 14, "words@1": 6, "constraints@1": 2, "talk@1": 3, "facts@1": 3}
    cards, benchmark = read_benchmark(workspace.root / "benchmark")
    assert [(card.name, card.metric, card.num_items) for card in cards] == [
        ("words@1", "accuracy", 6),
        ("constraints@1", "accuracy", 2),
        ("talk@1", "bpb", 3),
        ("facts@1", "choice", 3),
    ]
    assert benchmark[:6] == of("words@1", rows)
    assert benchmark[-1] == of("facts@1", rows)[-1]
    assert cards[0].to_json()["sampling"] == {
        "max_new_tokens": 160,
        "temperature": 0.0,
        "top_p": 1.0,
        "top_k": 0,
        "n": 1,
        "seed": 0,
        "stop": [],
        "fit": False,
    }


def test_the_benchmark_folder_is_written_in_the_same_bytes_twice(workspace: Any) -> None:
    workspace.write_benchmark()
    first = [path.read_bytes() for path in sorted((workspace.root / "benchmark").iterdir())]
    workspace.write_benchmark()
    assert [path.read_bytes() for path in sorted((workspace.root / "benchmark").iterdir())] == first


def test_limit_takes_a_seeded_sample_in_order(workspace: Any) -> None:
    def kept(seed: int) -> list[str]:
        workspace.seed = seed
        workspace.write_benchmark("words@1", limit=3)
        return [item.item for item in read_benchmark(workspace.root / "benchmark")[1]]

    assert kept(1) == kept(1) == sorted(kept(1))
    assert len(kept(1)) == 3
    assert len({tuple(kept(seed)) for seed in range(8)}) > 1


def test_a_task_without_items_says_which_stage_to_add(workspace: Any, rows: list[Row]) -> None:
    write_table(workspace.root / "items" / "rows.parquet", rows[:6])
    with pytest.raises(TaskError, match=r'talk@1: found no items; add a synth stage with generator = "talk@1"'):
        workspace.write_benchmark("words@1", "talk@1")


def test_training_rows_are_no_benchmark(workspace: Any) -> None:
    ctx = workspace.ctx()
    stage = ctx.recipe.stage["items"].model_copy(update={"split": "train"})
    recipe = SimpleNamespace(stage={"items": stage})
    with pytest.raises(TaskError, match="stage 'items' cannot give benchmark items"):
        benchmark.run(
            BenchmarkSpec(tasks=("words@1",), items=("items",)),
            workspace.inputs,
            workspace.root,
            workspace.ctx(recipe=recipe),
        )


def test_a_reference_the_verifier_cannot_read_stops_the_benchmark_stage(workspace: Any, rows: list[Row]) -> None:
    bad = [dataclasses.replace(row, reference="[oops") if row.id == "c1" else row for row in rows]
    write_table(workspace.root / "items" / "rows.parquet", bad)
    with pytest.raises(VerifierError):
        workspace.write_benchmark("constraints@1")


def test_hub_tasks_read_the_mirror(workspace: Any, tmp_path: Path) -> None:
    record = {"question": "How much is 6 * 7?", "answer": "6*7=<<6*7=42>>42\n#### 42"}
    (tmp_path / "gsm.jsonl").write_text(json.dumps(record) + "\n")
    shots = [{"question": f"{i} + 0?", "answer": f"So the answer is {i}."} for i in range(8)]
    (tmp_path / "shots.json").write_text(json.dumps(shots))
    task = suite.task("gsm8k@2")
    mirror = {"openai/gsm8k": str(tmp_path / "gsm.jsonl"), task.examples[0].path: str(tmp_path / "shots.json")}
    (tmp_path / "benchmark").mkdir()
    benchmark.run(BenchmarkSpec(tasks=("gsm8k@2",)), {}, tmp_path / "benchmark", workspace.ctx(mirror=mirror))
    (item,) = read_benchmark(tmp_path / "benchmark")[1]
    assert (item.item, item.reference, len(item.messages)) == ("test-0", "42", 17)
    assert "How much is 6 * 7?" in item.messages[-1].content
