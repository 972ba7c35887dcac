"""The eval stage: gold answers, every metric by hand, killed benchmarks, judges that fail, and gates."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tercet.data.synth import GENERATORS
from tercet.evals import needs, run
from tercet.evals import results as results_module
from tercet.evals.fakes import EchoGenerator, OracleGenerator
from tercet.journal import JournalError
from tercet.rows import Completion, Generator, Likelihood, Messages, Sampling, read_table, write_table
from tercet.stats import GateError
from tercet.verify import Grade


class Silent:
    """Scores as it is told; has no token ids to show."""

    def __init__(self, *options: list[Likelihood]) -> None:
        self.options = options

    def complete(self, prompts: Sequence[Messages], sampling: Sampling, done: Any = None) -> list[list[Completion]]:
        return [[Completion("no idea", (1,), (0.0,), "eos")] for _ in prompts]

    def likelihood(
        self, prompts: Sequence[Messages], options: Sequence[Sequence[str]], *, close: bool = False
    ) -> list[list[Likelihood]]:
        return [self.options[i % len(self.options)] for i in range(len(prompts))]


def scores(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "scores.json").read_text())


def payload(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_model_that_knows_the_answers_gets_full_marks(batcher: Any) -> None:
    batcher.write_benchmark()
    assert batcher.evaluate("gold") == pytest.approx({"words@1": 1, "constraints@1": 1, "talk@1": 1, "facts@1": 1})


def test_a_model_that_repeats_the_question_gets_nothing(batcher: Any) -> None:
    batcher.write_benchmark("words@1", "constraints@1", "talk@1")
    batcher.model = EchoGenerator()
    assert batcher.evaluate("echo") == pytest.approx({"words@1": 0, "constraints@1": 0, "talk@1": 8})


def test_results_explain_themselves(batcher: Any, results: Any) -> None:
    batcher.write_benchmark()
    batcher.evaluate("gold")
    first = results(batcher.root / "gold")[0]
    assert {key: first[key] for key in ("task", "item", "reference", "answer", "score", "outcome", "stop")} == {
        "task": "words@1",
        "item": "w0",
        "reference": "2",
        "answer": "2",
        "score": 1.0,
        "outcome": "graded",
        "stop": "eos",
    }
    assert first["messages"][-1]["content"].startswith("Tim has 0 pens")
    assert bytes(first["prompt_ids"]).decode() == first["messages"][-1]["content"]


def test_results_stand_in_benchmark_order(batcher: Any, results: Any) -> None:
    batcher.write_benchmark()
    batcher.evaluate("gold")
    assert [result["item"] for result in results(batcher.root / "gold")] == [
        *("w0", "w1", "w2", "w3", "w4", "w5", "c0", "c1", "t0", "t1", "t2", "f0", "f1", "f2")
    ]


def test_scores_carry_errors_outcomes_and_the_card(batcher: Any) -> None:
    batcher.write_benchmark("words@1")
    batcher.model = EchoGenerator()
    batcher.model.complete = lambda prompts, sampling, done=None: [
        [Completion("It is 2.", (1, 2, 3), (0.0,) * 3, "eos")] for _ in prompts
    ]
    batcher.evaluate("one", max_new_tokens=9)
    words = scores(batcher.root / "one")["words@1"]
    assert words["score"] == pytest.approx(1 / 6)  # only item 0 has the answer 2
    assert words["stderr"] == pytest.approx(1 / 6)  # sqrt(5/36 * 6/5) / sqrt(6)
    assert words["stderr_clustered"] == pytest.approx(1 / 6)  # three templates: residual sums 2/3, -1/3, -1/3
    assert (words["n"], words["num_clusters"], words["mean_tokens"]) == (6, 3, 3)
    assert (words["low"], words["interval"]) == (pytest.approx(0.0301, abs=1e-4), "95 %, Wilson")
    assert words["outcomes"] == {"graded": 6, "unparsed": 0, "truncated": 0, "timeout": 0, "error": 0}
    assert words["card"]["sampling"]["max_new_tokens"] == 9


def test_a_cut_answer_is_graded_and_marked(batcher: Any, results: Any) -> None:
    batcher.write_benchmark("words@1")
    batcher.model = EchoGenerator()
    batcher.evaluate("cut", max_new_tokens=3)  # "Tim has 0"
    found = results(batcher.root / "cut")
    assert {result["outcome"] for result in found} == {"truncated"}
    assert {result["answer"] for result in found} == {"0", "1", "2", "3", "4", "5"}
    assert scores(batcher.root / "cut")["words@1"]["outcomes"]["truncated"] == 6


def test_options_are_chosen_raw_per_token_and_per_byte(batcher: Any, results: Any) -> None:
    batcher.write_benchmark("facts@1")
    batcher.inputs["benchmark"].payload = one_choice(batcher, ("a", "bbbb", "cc"), gold=1)
    batcher.model = Silent([Likelihood(-2.0, 1), Likelihood(-6.0, 4), Likelihood(-2.5, 1)])
    assert batcher.evaluate("pick") == {"facts@1": 0.0}
    (result,) = results(batcher.root / "pick")
    assert (result["answer"], result["raw"], result["per_token"], result["per_byte"]) == ("a", 0.0, 1.0, 0.0)
    assert result["num_bytes"] == [1, 4, 2]
    assert result["prompt_ids"] == []
    assert scores(batcher.root / "pick")["facts@1"]["per_token"] == 1.0


@pytest.mark.parametrize(("gold", "score"), [(0, 1.0), (1, 0.0)])
def test_ties_go_to_the_lowest_index(batcher: Any, gold: int, score: float) -> None:
    batcher.write_benchmark("facts@1")
    batcher.inputs["benchmark"].payload = one_choice(batcher, ("a", "b"), gold)
    batcher.model = Silent([Likelihood(-2.0, 1)] * 2)
    assert batcher.evaluate("tie") == {"facts@1": score}


def one_choice(batcher: Any, options: tuple[str, ...], gold: int) -> Path:
    row = read_table(batcher.root / "benchmark" / "benchmark.parquet")[0]
    write_table(batcher.root / "benchmark" / "benchmark.parquet", [{**row, "options": list(options), "gold": gold}])
    return batcher.root / "benchmark"


def test_bits_per_byte_name_both_means(batcher: Any, results: Any) -> None:
    batcher.write_benchmark("talk@1")
    batcher.model = Silent([Likelihood(-14.0, 3)], [Likelihood(-30.0, 3)], [Likelihood(-64.0, 3)])
    sizes = [14, 15, 16]  # "Hello, héllo!" has 13 characters and 14 bytes
    bits = [14 / math.log(2), 30 / math.log(2), 64 / math.log(2)]
    headline = batcher.evaluate("talk")["talk@1"]
    assert headline == pytest.approx(sum(bits) / sum(sizes))
    found = scores(batcher.root / "talk")["talk@1"]
    assert found["corpus"] == headline
    assert found["instance_mean"] == pytest.approx(sum(b / n for b, n in zip(bits, sizes, strict=True)) / 3)
    assert [result["num_bytes"] for result in results(batcher.root / "talk")] == sizes


@pytest.mark.parametrize("logp", [math.nan, -math.inf])
def test_a_broken_model_is_named(batcher: Any, logp: float) -> None:
    batcher.write_benchmark("talk@1")
    batcher.model = Silent([Likelihood(logp, 3)])
    with pytest.raises(run.EvalError, match=r"talk@1, item 't0'.*its weights are broken"):
        batcher.evaluate("broken")


@pytest.mark.parametrize("kill", range(6))
def test_a_killed_benchmark_continues_and_ends_in_the_same_bytes(
    batcher: Any, monkeypatch: pytest.MonkeyPatch, kill: int
) -> None:
    monkeypatch.setattr(run, "GROUP", 2)
    batcher.write_benchmark()
    batcher.evaluate("whole")
    asked = len(batcher.model.asked)
    written = (batcher.root / "work-whole" / "results.jsonl").read_bytes()
    work = batcher.root / "work-again"
    work.mkdir()
    (work / "results.jsonl").write_bytes(written[: random.Random(kill).randrange(len(written))])
    finished = (work / "results.jsonl").read_bytes().count(b"\n")
    batcher.evaluate("again")
    assert payload(batcher.root / "again") == payload(batcher.root / "whole")
    again = len(batcher.model.asked) - asked
    assert asked - finished <= again <= asked - finished + 1  # at most one item of a group of two is asked again


def test_a_finished_segment_needs_no_model(batcher: Any) -> None:
    batcher.write_benchmark()
    batcher.evaluate("twice")
    batcher.evaluate("twice")
    assert batcher.opened == 1
    assert batcher.seen[-1] == (14, 14)


def test_a_crash_keeps_what_was_finished(batcher: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "GROUP", 2)
    batcher.write_benchmark("words@1")
    whole = batcher.model

    class Dies(EchoGenerator):
        calls = 0

        def complete(self, prompts: Any, sampling: Any, done: Any = None) -> Any:
            self.calls += 1
            if self.calls == 3:
                raise MemoryError
            return whole.complete(prompts, sampling, done)

    batcher.model = Dies()
    with pytest.raises(MemoryError):
        batcher.evaluate("crash")
    batcher.model = whole
    whole.asked.clear()
    assert batcher.evaluate("crash") == {"words@1": 1.0}
    assert len(whole.asked) == 2


def test_groups_have_their_own_seeds(batcher: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "GROUP", 2)
    batcher.write_benchmark("words@1")
    seeds = []

    class Notes(EchoGenerator):
        def complete(self, prompts: Any, sampling: Any, done: Any = None) -> Any:
            seeds.append(sampling.seed)
            return super().complete(prompts, sampling, done)

    batcher.model = Notes()
    batcher.evaluate("one")
    batcher.evaluate("two")
    assert len(set(seeds)) == 3
    assert seeds[:3] == seeds[3:]


def failing(times: int) -> Any:
    left = [times]

    def judge(completion: str, reference: str, sandbox: str) -> Grade:
        left[0] -= 1
        return Grade(0.0, outcome="error", detail="no parser") if left[0] >= 0 else Grade(1.0)

    return lambda name: judge


def test_a_judge_that_fails_stops_the_benchmark_and_is_asked_again(
    batcher: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    batcher.write_benchmark("words@1")
    monkeypatch.setattr(results_module, "verifier", failing(1))
    with pytest.raises(
        run.EvalError, match=r"1 of 6 answers could not be had or judged, more than 1%; first item 'w\d': no parser"
    ):
        batcher.evaluate("judge")
    monkeypatch.setattr(results_module, "verifier", failing(0))
    assert batcher.evaluate("judge") == {"words@1": 1.0}


def test_an_unreadable_segment_is_named(batcher: Any) -> None:
    batcher.write_benchmark("words@1")
    (batcher.root / "work-bad").mkdir()
    (batcher.root / "work-bad" / "results.jsonl").write_text("{oops}\n")
    with pytest.raises(JournalError, match=r"results.jsonl, line 1: damaged"):
        batcher.evaluate("bad")


def gated(batcher: Any, model: Generator, gate: str) -> None:
    batcher.write_benchmark("words@1", "talk@1")
    batcher.evaluate("gold")
    batcher.model = model
    batcher.evaluate("next", require=(gate,))


@pytest.mark.parametrize(
    "gate", ["words >= gold - 0.01", "words@1 >= 0.5", "talk <= gold + 1", "talk <= 7.5", "words >= gold"]
)
def test_a_significant_regression_stops_the_run_with_exit_code_3(batcher: Any, gate: str) -> None:
    with pytest.raises(GateError, match="missed") as caught:
        gated(batcher, EchoGenerator(), gate)
    assert caught.value.exit_code == 3
    assert (batcher.root / "next" / "scores.json").is_file()


@pytest.mark.parametrize("gate", ["words >= gold - 1", "talk <= 8.1", "words <= gold"])
def test_a_gate_that_holds_lets_the_run_go_on(batcher: Any, gate: str) -> None:
    gated(batcher, EchoGenerator(), gate)


def test_a_regression_that_may_be_chance_lets_the_run_go_on(batcher: Any) -> None:
    batcher.write_benchmark("words@1")
    batcher.evaluate("gold")
    known = dict(batcher.model.references)
    known["Tim has 0 pens and gets 1 more. How many is that doubled?"] = "I do not know."
    batcher.model = type(batcher.model)(known)
    assert batcher.evaluate("next", require=("words >= gold",)) == {"words@1": pytest.approx(5 / 6)}


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        ("verse >= 0.5", "'verse' names 0 tasks of this exam"),
        ("words is good", "cannot read the gate"),
    ],
)
def test_gates_are_checked_before_the_benchmark(batcher: Any, gate: str, message: str) -> None:
    batcher.write_benchmark("words@1")
    with pytest.raises(ValueError, match=message):
        batcher.evaluate("next", require=(gate,))
    assert batcher.opened == 0


def test_the_quick_suite_grades_its_generators_own_answers_as_right(batcher: Any) -> None:
    made = [row for generator, count in needs(["quick"]) for row in GENERATORS[generator](count, "benchmark", 17)]
    write_table(batcher.root / "items" / "rows.parquet", made)
    assert batcher.write_benchmark()["items"] == 360
    batcher.model = OracleGenerator({row.prompt[-1].content: row.answer or row.reference for row in made})
    full = batcher.evaluate("gold", max_new_tokens=10_000)
    assert full == pytest.approx({"words@1": 1, "constraints@1": 1, "talk@1": 1, "facts@1": 1})
    batcher.model = EchoGenerator()
    assert batcher.evaluate("echo")["words@1"] < 0.1
