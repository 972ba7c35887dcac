"""Rows that an environment plays: the score is the sum of rewards, and a benchmark, comparisons and keys know of it."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from tercet.evals import benchmark
from tercet.evals.compare import compare
from tercet.evals.fakes import EchoGenerator
from tercet.evals.rescore import rescore
from tercet.evals.run import EvalError
from tercet.recipe import BenchmarkSpec
from tercet.records import read_results, read_scores
from tercet.rows import Message, Messages, Row, read_rows, write_table

GUESS = {"environment": "guess@1", "environment_args": {"largest": 15, "most": 4}, "max_turns": 6}


class Halving(EchoGenerator):
    """Guesses the middle of what is left, as it reads the conversation."""

    def answer(self, prompt: Messages) -> str:
        low, high = 1, 15
        for said, heard in zip(prompt[1::2], prompt[2::2], strict=True):
            guess = int(said.content)
            low, high = (guess + 1, high) if heard.content == "Higher." else (low, guess - 1)
        return str((low + high) // 2)


class First(EchoGenerator):
    """Always guesses one."""

    def answer(self, prompt: Messages) -> str:
        return "1"


@pytest.fixture
def make(workspace: Any):
    def make(rows: list[Row], **more: Any) -> dict[str, float]:
        write_table(workspace.root / "numbers" / "rows.parquet", rows)
        workspace.inputs["numbers"] = SimpleNamespace(payload=workspace.root / "numbers")
        (workspace.root / "benchmark").mkdir(exist_ok=True)
        file = workspace.root / "numbers" / "rows.parquet"
        ctx = workspace.ctx(name="game", load_rows=lambda source, inputs: (list(read_rows(file)), {}))
        spec = BenchmarkSpec(rows="numbers", **more)
        return benchmark.run(spec, workspace.inputs, workspace.root / "benchmark", ctx)

    return make


def numbers(count: int) -> list[Row]:
    return [Row(f"n{i}", (Message("user", f"Game {i}"),), "games", reference=str(i + 1)) for i in range(count)]


def test_the_score_is_what_the_environment_paid_and_stages_are_compared_by_it(workspace: Any, make: Any) -> None:
    assert make(numbers(15), **GUESS) == {"items": 15.0, "game@1": 15.0}
    workspace.model = Halving()
    assert workspace.evaluate("halving")["game@1"] == 1.0
    workspace.model = First()
    assert workspace.evaluate("first")["game@1"] == pytest.approx(1 / 15)
    card = read_scores(workspace.root / "halving")["game@1"].card
    assert card.environment == {"name": "guess@1", "args": GUESS["environment_args"], "turns": 6, "seconds": 60.0}
    result = next(one for one in read_results(workspace.root / "halving" / "results.jsonl") if one.item == "n10")
    assert re.fullmatch(r"8\n\[user\] Higher.\n12\n\[user\] Lower.\n10\n\[user\] Higher.\n11", result.output)
    assert (result.answer, result.stop, result.num_tokens) == ("11", "eos", 4)
    (line,) = compare(workspace.root / "first", workspace.root / "halving")
    assert line.difference == pytest.approx(14 / 15)
    assert line.low > 0


def test_several_samples_and_a_limit_of_turns(workspace: Any, make: Any) -> None:
    make(numbers(15), **GUESS | {"max_turns": 2}, num_generations=2)
    workspace.model = Halving()
    assert workspace.evaluate("one")["game@1"] == pytest.approx(3 / 15)
    results = list(read_results(workspace.root / "one" / "results.jsonl"))
    assert all(len(one.samples) == 2 for one in results)
    assert sum(one.samples[0].stop == "length" for one in results) == 12


def test_episodes_that_break_stop_an_evaluation_and_are_named(workspace: Any, make: Any, tmp_path: Path) -> None:
    text = "class G:\n    def reset(self, row):\n        return 'go'\n"
    text += "    def step(self, action):\n        raise OSError('gone')\n"
    (tmp_path / "own.py").write_text(text)
    make(numbers(3), environment=f"{tmp_path}/own.py:G")
    workspace.model = First()
    with pytest.raises(EvalError, match="gone"):
        workspace.evaluate("one")


def test_verdicts_of_an_environment_are_not_graded_again(workspace: Any, make: Any) -> None:
    make(numbers(3), **GUESS)
    workspace.model = Halving()
    workspace.evaluate("one")
    with pytest.raises(ValueError, match="no verifier can replace them"):
        rescore(workspace.root / "one", workspace.root / "two", {"game@1": "gsm8k@1"})


def test_what_does_not_go_with_an_environment_is_refused() -> None:
    for wrong in ({"metric": "bpb"}, {"shots": 2}):
        with pytest.raises(ValidationError, match="an environment plays rows without"):
            BenchmarkSpec(rows="numbers", environment="guess@1", **wrong)
    with pytest.raises(ValidationError, match="is for a task of your own"):
        BenchmarkSpec(tasks=("words@1",), environment="guess@1")
