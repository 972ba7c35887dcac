"""The eval stage: gold answers, every metric by hand, killed evaluations, verifiers that fail, and gates."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tercet.data.synth import GENERATORS
from tercet.evals import results as results_module
from tercet.evals import run
from tercet.evals.fakes import EchoGenerator, OracleGenerator
from tercet.evals.suite import needs
from tercet.rows import Completion, Generator, Likelihood, Messages, Row, Sampling, read_table, write_table
from tercet.stats import GateError
from tercet.verify import Grade


class Silent:
    """Gives the log-probabilities that it was made with; has no token ids to show."""

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


def test_a_model_that_knows_the_answers_gets_the_full_score(workspace: Any) -> None:
    workspace.write_benchmark()
    assert workspace.evaluate("gold") == pytest.approx({"words@1": 1, "constraints@1": 1, "talk@1": 1, "facts@1": 1})


def test_a_model_that_repeats_the_question_gets_nothing(workspace: Any) -> None:
    workspace.write_benchmark("words@1", "constraints@1", "talk@1")
    workspace.model = EchoGenerator()
    assert workspace.evaluate("echo") == pytest.approx({"words@1": 0, "constraints@1": 0, "talk@1": 8})


def test_results_explain_themselves(workspace: Any, results: Any) -> None:
    workspace.write_benchmark()
    workspace.evaluate("gold")
    first = results(workspace.root / "gold")[0]
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


def test_results_stand_in_benchmark_order(workspace: Any, results: Any) -> None:
    workspace.write_benchmark()
    workspace.evaluate("gold")
    assert [result["item"] for result in results(workspace.root / "gold")] == [
        *("w0", "w1", "w2", "w3", "w4", "w5", "c0", "c1", "t0", "t1", "t2", "f0", "f1", "f2")
    ]


def test_scores_carry_errors_outcomes_and_the_card(workspace: Any) -> None:
    workspace.write_benchmark("words@1")
    workspace.model = EchoGenerator()
    workspace.model.complete = lambda prompts, sampling, done=None: [
        [Completion("It is 2.", (1, 2, 3), (0.0,) * 3, "eos")] for _ in prompts
    ]
    workspace.evaluate("one", max_new_tokens=9)
    words = scores(workspace.root / "one")["words@1"]
    assert words["score"] == pytest.approx(1 / 6)  # only item 0 has the answer 2
    assert words["stderr"] == pytest.approx(1 / 6)  # sqrt(5/36 * 6/5) / sqrt(6)
    assert words["stderr_clustered"] == pytest.approx(1 / 6)  # three templates: residual sums 2/3, -1/3, -1/3
    assert (words["n"], words["num_clusters"], words["mean_tokens"]) == (6, 3, 3)
    assert (words["low"], words["interval"]) == (pytest.approx(0.0301, abs=1e-4), "95 %, Wilson")
    assert words["outcomes"] == {"graded": 6, "unparsed": 0, "truncated": 0, "timeout": 0, "error": 0}
    assert words["card"]["sampling"]["max_new_tokens"] == 9


def test_a_cut_answer_is_graded_and_marked(workspace: Any, results: Any) -> None:
    workspace.write_benchmark("words@1")
    workspace.model = EchoGenerator()
    workspace.evaluate("cut", max_new_tokens=3)  # "Tim has 0"
    found = results(workspace.root / "cut")
    assert {result["outcome"] for result in found} == {"truncated"}
    assert {result["answer"] for result in found} == {"0", "1", "2", "3", "4", "5"}
    assert scores(workspace.root / "cut")["words@1"]["outcomes"]["truncated"] == 6


@pytest.mark.parametrize(("think", "right", "cut"), [("strip", [1, 0, 0, 1, 0, 0], 2), ("keep", [1, 1, 0, 1, 1, 0], 0)])
def test_an_answer_is_graded_without_its_thought_unless_the_task_keeps_it(
    workspace: Any, results: Any, rows: list[Row], think: str, right: list[float], cut: int
) -> None:
    workspace.write_benchmark("words@1")
    file = workspace.root / "benchmark" / "tasks.json"
    (card,) = json.loads(file.read_text())
    assert card["think"] == "strip"
    file.write_text(json.dumps([{**card, "think": think}]))
    texts = ["<think>Is it 7?</think>It is {}.", "<think>It must be {}", "<think>It is {}</think>So 77."]
    rows = rows[:6]
    workspace.model = OracleGenerator(
        {row.prompt[-1].content: texts[i % 3].format(row.reference) for i, row in enumerate(rows)}
    )
    workspace.evaluate("one")
    found = {result["item"]: result["score"] for result in results(workspace.root / "one")}
    assert [found[row.id] for row in rows] == right
    score = scores(workspace.root / "one")["words@1"]
    assert score["outcomes"]["truncated"] == cut
    assert 0.2 < score["thought_share"] < 0.9


def test_options_are_chosen_raw_per_token_and_per_byte(workspace: Any, results: Any) -> None:
    workspace.write_benchmark("facts@1")
    workspace.inputs["benchmark"].payload = one_choice(workspace, ("a", "bbbb", "cc"), gold=1)
    workspace.model = Silent([Likelihood(-2.0, 1), Likelihood(-6.0, 4), Likelihood(-2.5, 1)])
    assert workspace.evaluate("pick") == {"facts@1": 0.0}
    (result,) = results(workspace.root / "pick")
    assert (result["answer"], result["raw"], result["per_token"], result["per_byte"]) == ("a", 0.0, 1.0, 0.0)
    assert result["num_bytes"] == [1, 4, 2]
    assert result["prompt_ids"] == []
    assert scores(workspace.root / "pick")["facts@1"]["per_token"] == 1.0


@pytest.mark.parametrize(("gold", "score"), [(0, 1.0), (1, 0.0)])
def test_ties_go_to_the_lowest_index(workspace: Any, gold: int, score: float) -> None:
    workspace.write_benchmark("facts@1")
    workspace.inputs["benchmark"].payload = one_choice(workspace, ("a", "b"), gold)
    workspace.model = Silent([Likelihood(-2.0, 1)] * 2)
    assert workspace.evaluate("tie") == {"facts@1": score}


def one_choice(workspace: Any, options: tuple[str, ...], gold: int) -> Path:
    row = read_table(workspace.root / "benchmark" / "benchmark.parquet")[0]
    write_table(workspace.root / "benchmark" / "benchmark.parquet", [{**row, "options": list(options), "gold": gold}])
    return workspace.root / "benchmark"


def test_bits_per_byte_name_both_means(workspace: Any, results: Any) -> None:
    workspace.write_benchmark("talk@1")
    workspace.model = Silent([Likelihood(-14.0, 3)], [Likelihood(-30.0, 3)], [Likelihood(-64.0, 3)])
    sizes = [14, 15, 16]  # "Hello, héllo!" has 13 characters and 14 bytes
    bits = [14 / math.log(2), 30 / math.log(2), 64 / math.log(2)]
    headline = workspace.evaluate("talk")["talk@1"]
    assert headline == pytest.approx(sum(bits) / sum(sizes))
    found = scores(workspace.root / "talk")["talk@1"]
    assert found["corpus"] == headline
    assert found["instance_mean"] == pytest.approx(sum(b / n for b, n in zip(bits, sizes, strict=True)) / 3)
    assert [result["num_bytes"] for result in results(workspace.root / "talk")] == sizes


@pytest.mark.parametrize("logp", [math.nan, -math.inf])
def test_a_broken_model_is_named(workspace: Any, logp: float) -> None:
    workspace.write_benchmark("talk@1")
    workspace.model = Silent([Likelihood(logp, 3)])
    with pytest.raises(run.EvalError, match=r"talk@1, item 't0'.*its weights are broken"):
        workspace.evaluate("broken")


@pytest.mark.parametrize("kill", range(6))
def test_a_killed_evaluation_continues_and_ends_in_the_same_bytes(
    workspace: Any, monkeypatch: pytest.MonkeyPatch, kill: int
) -> None:
    monkeypatch.setattr(run, "GROUP", 2)
    workspace.write_benchmark()
    workspace.evaluate("whole")
    asked = len(workspace.model.asked)
    written = (workspace.root / "work-whole" / "results.jsonl").read_bytes()
    work = workspace.root / "work-again"
    work.mkdir()
    (work / "results.jsonl").write_bytes(written[: random.Random(kill).randrange(len(written))])
    finished = (work / "results.jsonl").read_bytes().count(b"\n")
    workspace.evaluate("again")
    assert payload(workspace.root / "again") == payload(workspace.root / "whole")
    again = len(workspace.model.asked) - asked
    assert asked - finished <= again <= asked - finished + 1  # at most one item of a group of two is asked again


def test_a_finished_log_needs_no_model(workspace: Any) -> None:
    workspace.write_benchmark()
    workspace.evaluate("twice")
    workspace.evaluate("twice")
    assert workspace.opened == 1
    assert workspace.seen[-1] == (14, 14)


def test_a_crash_keeps_what_was_finished(workspace: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "GROUP", 2)
    workspace.write_benchmark("words@1")
    whole = workspace.model

    class Dies(EchoGenerator):
        calls = 0

        def complete(self, prompts: Any, sampling: Any, done: Any = None) -> Any:
            self.calls += 1
            if self.calls == 3:
                raise MemoryError
            return whole.complete(prompts, sampling, done)

    workspace.model = Dies()
    with pytest.raises(MemoryError):
        workspace.evaluate("crash")
    workspace.model = whole
    whole.asked.clear()
    assert workspace.evaluate("crash") == {"words@1": 1.0}
    assert len(whole.asked) == 2


def test_groups_have_their_own_seeds(workspace: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "GROUP", 2)
    workspace.write_benchmark("words@1")
    seeds = []

    class Notes(EchoGenerator):
        def complete(self, prompts: Any, sampling: Any, done: Any = None) -> Any:
            seeds.append(sampling.seed)
            return super().complete(prompts, sampling, done)

    workspace.model = Notes()
    workspace.evaluate("one")
    workspace.evaluate("two")
    assert len(set(seeds)) == 3
    assert seeds[:3] == seeds[3:]


def failing(times: int) -> Any:
    left = [times]

    def verify(completion: str, reference: str, **how: Any) -> Grade:
        left[0] -= 1
        return Grade(0.0, outcome="error", detail="no parser") if left[0] >= 0 else Grade(1.0)

    return lambda name: verify


def test_a_verifier_that_fails_stops_the_evaluation_and_runs_again(
    workspace: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace.write_benchmark("words@1")
    monkeypatch.setattr(results_module, "verifier", failing(1))
    with pytest.raises(
        run.EvalError, match=r"1 of 6 answers could not be had or graded, more than 1%; first item 'w\d': no parser"
    ):
        workspace.evaluate("graded")
    monkeypatch.setattr(results_module, "verifier", failing(0))
    assert workspace.evaluate("graded") == {"words@1": 1.0}


def test_damaged_lines_of_a_log_are_named_and_their_items_asked_again(workspace: Any) -> None:
    workspace.write_benchmark("words@1")
    workspace.evaluate("whole")
    log = workspace.root / "work-whole" / "results.jsonl"
    (workspace.root / "work-bad").mkdir()
    lines = log.read_text(encoding="utf-8").splitlines(keepends=True)
    lines[1:3] = ["{oops}\n", lines[2].replace('"score": 1', '"score": 0')]
    (workspace.root / "work-bad" / log.name).write_text("".join(lines), encoding="utf-8")
    workspace.evaluate("bad")
    assert len(workspace.notes) == 1
    assert "results.jsonl was damaged: 2 of" in workspace.notes[0]
    assert payload(workspace.root / "bad") == payload(workspace.root / "whole")


def gated(workspace: Any, model: Generator, gate: str) -> None:
    workspace.write_benchmark("words@1", "talk@1")
    workspace.evaluate("gold")
    workspace.model = model
    workspace.evaluate("next", require=(gate,))


@pytest.mark.parametrize(
    "gate", ["words >= gold - 0.01", "words@1 >= 0.5", "talk <= gold + 1", "talk <= 7.5", "words >= gold"]
)
def test_a_significant_regression_stops_the_run_with_exit_code_3(workspace: Any, gate: str) -> None:
    with pytest.raises(GateError, match="missed") as caught:
        gated(workspace, EchoGenerator(), gate)
    assert caught.value.exit_code == 3
    assert (workspace.root / "next" / "scores.json").is_file()


@pytest.mark.parametrize("gate", ["words >= gold - 1", "talk <= 8.1", "words <= gold"])
def test_a_gate_that_holds_lets_the_run_go_on(workspace: Any, gate: str) -> None:
    gated(workspace, EchoGenerator(), gate)


def test_a_regression_that_may_be_chance_lets_the_run_go_on(workspace: Any) -> None:
    workspace.write_benchmark("words@1")
    workspace.evaluate("gold")
    known = dict(workspace.model.references)
    known["Tim has 0 pens and gets 1 more. How many is that doubled?"] = "I do not know."
    workspace.model = type(workspace.model)(known)
    assert workspace.evaluate("next", require=("words >= gold",)) == {"words@1": pytest.approx(5 / 6)}


@pytest.mark.parametrize(
    ("gate", "message"),
    [("verse >= 0.5", "'verse' names 0 tasks of this evaluation"), ("words is good", "cannot read the gate")],
)
def test_gates_are_checked_before_the_evaluation(workspace: Any, gate: str, message: str) -> None:
    workspace.write_benchmark("words@1")
    with pytest.raises(ValueError, match=message):
        workspace.evaluate("next", require=(gate,))
    assert workspace.opened == 0


def test_the_quick_suite_grades_its_generators_own_answers_as_right(workspace: Any) -> None:
    made = [row for generator, count in needs(["quick"]) for row in GENERATORS[generator](count, "test", 17)]
    write_table(workspace.root / "items" / "rows.parquet", made)
    assert workspace.write_benchmark()["items"] == 360
    workspace.model = OracleGenerator({row.prompt[-1].content: row.answer or row.reference for row in made})
    full = workspace.evaluate("gold", max_new_tokens=10_000)
    assert full == pytest.approx({"words@1": 1, "constraints@1": 1, "talk@1": 1, "facts@1": 1})
    workspace.model = EchoGenerator()
    assert workspace.evaluate("echo")["words@1"] < 0.1


def test_the_card_names_the_chat_template_that_was_used(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template_date": "2025-01-02"}')
    assert run.chat_template(tmp_path) is None
    given = "{% set calm = calm if calm is defined else true +%}"
    text = given + "{{ calm }}{{ strftime_now('%Y') }}"
    (tmp_path / "chat_template.jinja").write_text(text)
    about = {"sha256": hashlib.sha256(text.encode()).hexdigest(), "arguments": {"calm": "true"}}
    assert run.chat_template(tmp_path) == {**about, "date": "2025-01-02"}
