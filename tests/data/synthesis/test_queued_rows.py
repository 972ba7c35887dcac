"""Rows that engines and servers write: asked at once, kept one by one, and the same as in chunks."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from typing import Any

import pytest
from test_on_policy import Killed, StageRun, Writer, constrained, obedient, often_right, sums

from tercet.data.synthesis import personas, ratings
from tercet.data.synthesis.on_policy import CHUNK
from tercet.data.synthesis.ratings import CandidateAnswer, RatingCounts, RatingPlan
from tercet.data.synthesis.request_log import LoggedModel, RequestLog, RequestLogError
from tercet.data.synthesis.requests import LazyModel
from tercet.rows import Completion, Message, Row, Sampling


class Engine(Writer):
    """Writes what the `Writer` writes, each prompt by its own random numbers; dies after `left` prompts."""

    side_by_side = 2
    left = 10**9
    fails = ""

    def complete(self, prompts: Any, sampling: Any, done: Any = None) -> list[list[Completion]]:
        found: list[list[Completion]] = [[] for _ in prompts]
        for i in reversed(range(len(prompts))):
            self.left -= 1
            if self.left < 0:
                raise Killed
            self.asked.append((prompts[i][-1].content, sampling.n))
            own, number = sampling.stream(i)
            found[i] = [self._sample(prompts[i], own + number, k) for k in range(sampling.n)]
            if self.fails and self.fails in prompts[i][-1].content:
                found[i] = [Completion("", (), (), "error", "full")] * sampling.n
            if done is not None:
                done(i, found[i])
        return found


def stages(folder: Any, rows: list[Row], *names: str) -> list[StageRun]:
    for name in names:
        (folder / name).mkdir()
    return [StageRun(folder / name, rows) for name in names]


def outputs(stage: StageRun) -> list[bytes]:
    return [(stage.folder / "out" / name).read_bytes() for name in ("pairs.parquet", "summary.json")]


@pytest.mark.parametrize("num_generations", [0, 3])
def test_an_engine_that_is_asked_at_once_makes_the_pairs_of_chunks(tmp_path, num_generations):
    given = (Message("assistant", "Eggs. Bye."),) if not num_generations else ()
    turns = (*constrained().messages, *given)
    rows = [replace(constrained(), id=f"eggs-{i}", messages=turns) for i in range(CHUNK + 3)]
    rows = [*sums(CHUNK if num_generations else 0), *rows]
    local, queue = stages(tmp_path, rows, "local", "queue")

    def answer(prompt: str, luck: float) -> str:
        return obedient(prompt, luck) if "eggs" in prompt else often_right(prompt, luck)

    local.run(Writer(answer), num_generations=num_generations)
    queue.run(Engine(answer), num_generations=num_generations, engine="vllm")
    assert outputs(queue) == outputs(local)


@pytest.mark.parametrize("kill", [0, 1, 40, CHUNK * 2])
def test_a_killed_run_of_an_engine_loses_no_finished_prompt(tmp_path, kill):
    rows = sums(2 * CHUNK + 5)
    whole, killed = stages(tmp_path, rows, "whole", "killed")
    whole.run(Engine(often_right), engine="vllm")
    first, second = Engine(often_right), Engine(often_right)
    first.left = kill
    with pytest.raises(Killed):
        killed.run(first, engine="vllm")
    with killed.log.open("ab") as stream:
        stream.write(b'{"prompt": 9, "samp')  # the line that was being written
    killed.run(second, engine="vllm")
    assert len(first.asked) + len(second.asked) == len(rows)
    assert outputs(killed) == outputs(whole)
    killed.opened.clear()
    killed.run(Engine(often_right), engine="vllm")
    assert killed.opened == []


def test_a_prompt_that_failed_is_asked_again_by_the_next_run(tmp_path):
    (stage,) = stages(tmp_path, sums(5), "stage")
    broken, whole = Engine(often_right), Engine(often_right)
    broken.fails = "What is 2 "
    stage.run(broken, engine="vllm")
    stage.run(whole, engine="vllm")
    assert whole.asked == [("What is 2 + 1?", 4)]
    assert len(stage.log.read_text().splitlines()) == 5


class Meeting:
    """Answers only when `wanted` of its calls are under way at once."""

    def __init__(self, wanted: int, reply: str) -> None:
        self.barrier, self.reply = threading.Barrier(wanted, timeout=20), reply

    def complete(self, prompts: Any, sampling: Any, done: Any = None) -> list[list[Completion]]:
        self.barrier.wait()
        found = [[Completion(self.reply, (1,), (), "eos")] * sampling.n for _ in prompts]
        for i, one in enumerate(found):
            if done is not None:
                done(i, one)
        return found


def test_chunks_of_personas_do_not_wait_for_one_another(tmp_path, monkeypatch):
    monkeypatch.setattr(personas, "CHUNK", 2)
    with RequestLog(tmp_path / "log") as log:
        told: list[int] = []
        model = LoggedModel(log, "m", Meeting(2, "User instruction: Write."), at_once=(2, 64))
        model.ahead, model.on_answers = 2, told.append
        counts, plan = personas.SeedCounts(), personas.AnswerPlan(0, 0.5, 0.8, 1.0, 64)
        seeds = [f"a person {i}" for i in range(8)]
        rows = list(personas.synthesise("persona_if", seeds, model, 3, plan=plan, counts=counts))
        assert [len(told) > 0, sum(told), counts.read, len(rows)] == [True, 8, 8, 8]
    with RequestLog(tmp_path / "one") as log:
        alone = LoggedModel(log, "m", Meeting(1, "User instruction: Write."), at_once=(1, 64))
        again = personas.SeedCounts()
        assert list(personas.synthesise("persona_if", seeds, alone, 3, plan=plan, counts=again)) == rows
        assert again == counts


def test_chunks_of_ratings_do_not_wait_for_one_another(tmp_path, monkeypatch):
    monkeypatch.setattr(ratings, "CHUNK", 1)
    reply = "### Text 1\nRating: 5\n### Text 2\nRating: 2"
    cases = [
        (Row(f"r{i}", (Message("user", f"Question {i}?"),)), [CandidateAnswer("a", "yes"), CandidateAnswer("b", "no")])
        for i in range(4)
    ]
    counts = RatingCounts()
    with RequestLog(tmp_path / "log") as log:
        model = LoggedModel(log, "m", Meeting(2, reply), at_once=(2, 64))
        model.ahead = 2
        pairs = list(ratings.judge(cases, model, 3, plan=RatingPlan(), counts=counts))
    assert [pair.id for pair in pairs] == ["r0", "r1", "r2", "r3"]
    assert {pair.chosen_model for pair in pairs} == {"a"}
    assert (counts.read, counts.kept) == (4, 4)


def test_a_model_that_was_given_back_is_not_opened_again():
    opened: list[int] = []

    def open_model() -> Meeting:
        opened.append(1)
        return Meeting(1, "yes")

    lazy = LazyModel(open_model)
    assert lazy.used() == (0, 0)
    lazy.complete([(Message("user", "a"),)], Sampling())
    lazy.close()
    with pytest.raises(RequestLogError, match="given back"):
        lazy.complete([(Message("user", "a"),)], Sampling())
    assert opened == [1]


def test_samples_are_lines_with_their_prompt_and_origin(tmp_path):
    (stage,) = stages(tmp_path, [constrained()], "stage")
    stage.run(Engine(obedient), engine="vllm")
    lines = [json.loads(line) for line in stage.log.read_text().splitlines()]
    assert {(line["origin"], line["prompt"], len(line["samples"])) for line in lines} == {
        ("full", 0, 4),
        ("dropped", 0, 1),
    }
