"""Engines and servers are asked every item at once, with the scores of groups, in any order and after any kill."""

from __future__ import annotations

import json
import random
import threading
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tercet.evals import llm_judged, run
from tercet.evals.fakes import EchoGenerator, OracleGenerator
from tercet.models.chat import open_chat
from tercet.models.engines.pool import EnginePool
from tercet.models.engines.replica import ReplicaDiedError, WrittenGroup
from tercet.models.generate import LocalGenerator
from tercet.records import Result, TaskCard
from tercet.rows import Completion, Likelihood
from tercet.verify import Grade, llm_judges


class Drawn(EchoGenerator):
    """Writes the random numbers that each prompt was given; reports the last first, and dies after `left` answers."""

    def __init__(self, side_by_side: int = 4, left: int = 10**9) -> None:
        self.side_by_side, self.left = side_by_side, left
        self.asked: list[str] = []
        self.lock = threading.Lock()

    def complete(self, prompts: Any, sampling: Any, done: Any = None) -> Any:
        answers = []
        for i, prompt in enumerate(prompts):
            answers.append([Completion(f"{sampling.stream(i)} {k}", (1,), (0.0,), "eos") for k in range(sampling.n)])
            with self.lock:
                self.asked.append(prompt[-1].content)
        for i in random.Random(len(prompts)).sample(range(len(prompts)), len(prompts)):
            with self.lock:
                self.left -= 1
                if self.left < 0:
                    raise MemoryError
            if done is not None:
                done(i, answers[i])
        return answers


class Failing(Drawn):
    """Loses every answer."""

    def complete(self, prompts: Any, sampling: Any, done: Any = None) -> Any:
        for i in range(len(prompts)):
            with self.lock:
                self.asked.append(prompts[i][-1].content)
            done(i, [Completion("", (), (), "error", "the server is full")] * sampling.n)
        return []


@pytest.fixture
def evaluate(workspace: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    def evaluate(name: str, model: Any, engine: str = "vllm", **more: Any) -> list[dict[str, Any]]:
        def open_model(self: Any, folder: Path, dtype: str, engine: str = "local") -> Any:
            return model

        monkeypatch.setattr(type(workspace), "_open", open_model)
        workspace.evaluate(name, engine=engine, **more)
        return [json.loads(line) for line in (workspace.root / name / "results.jsonl").read_text().splitlines()]

    monkeypatch.setattr(run, "GROUP", 2)
    monkeypatch.setattr(run, "SCORED", 2)
    return evaluate


def test_items_asked_at_once_draw_what_they_draw_in_groups(evaluate, workspace):
    workspace.write_benchmark()
    local = evaluate("local", Drawn(side_by_side=1), "local", temperature=1.0, repeats=2)
    assert evaluate("queue", Drawn(), temperature=1.0, repeats=2) == local
    assert evaluate("one-call", Drawn(side_by_side=1), temperature=1.0, repeats=2) == local
    assert workspace.seen[-1] == (14, 14)


@pytest.mark.parametrize("kill", range(5))
def test_a_killed_evaluation_asks_only_for_what_is_missing(evaluate, workspace, kill):
    workspace.write_benchmark()
    whole = evaluate("whole", Drawn(), temperature=1.0)
    with pytest.raises(MemoryError):
        evaluate("killed", Drawn(left=kill), temperature=1.0)
    log = workspace.root / "work-killed" / "results.jsonl"
    log.write_bytes(log.read_bytes() + b'{"task": "wo')  # the line that was being written
    finished = {json.loads(line)["item"] for line in log.read_text().splitlines()[:-1]}
    assert len([one for one in finished if one[0] in "wc"]) <= kill
    again = Drawn()
    assert evaluate("killed", again, temperature=1.0) == whole
    asked = {item["item"] for item in whole if item["messages"][-1]["content"] in again.asked}
    assert asked == {item["item"] for item in whole if item["metric"] == "accuracy"} - finished


def test_too_many_lost_answers_stop_the_evaluation_as_often_as_groups_would(evaluate, workspace):
    workspace.write_benchmark("words@1")
    with pytest.raises(run.EvalError, match=r"2 of 6 answers could not be had or graded.*the server is full"):
        evaluate("failing", Failing())
    assert len((workspace.root / "work-failing" / "results.jsonl").read_text().splitlines()) == 2


class LocalReplica:
    """A replica whose engine is our own generator; dies with its first prompt where it is told to."""

    def __init__(self, name: str, generator: LocalGenerator, lock: threading.Lock, dies: bool = False) -> None:
        self.name, self.context, self.generator, self.lock, self.dies = name, 4096, generator, lock, dies
        self.written = 0

    def submit(self, prompt: Any, sampling: Any, stream: int) -> Future[WrittenGroup]:
        def write() -> WrittenGroup:
            if self.dies:
                raise ReplicaDiedError(f"{self.name} is gone")
            self.written += 1
            return WrittenGroup(self.generator.write([prompt], sampling, streams=[stream])[0], 0, 0, self.name)

        return self._later(write)

    def score(self, context: Any, ids: Any) -> Future[Likelihood]:
        def score() -> Likelihood:
            logps = self.generator.logps(context, ids)
            return Likelihood(sum(logps), len(ids))

        return self._later(score)

    def control(self, verb: str, **values: Any) -> Any:
        raise AssertionError("an evaluation changes no weights")

    def close(self) -> None:
        pass

    def _later(self, work: Any) -> Future[Any]:
        future: Future[Any] = Future()

        def run_it() -> None:
            try:
                with self.lock:
                    found = work()
            except Exception as error:
                future.set_exception(error)
            else:
                future.set_result(found)

        threading.Thread(target=run_it, daemon=True).start()
        return future


def test_two_replicas_score_what_one_scores_also_when_one_of_them_dies(evaluate, workspace, tiny_folder):
    workspace.write_benchmark("words@1", "facts@1")
    generator, chat, lock = LocalGenerator.open(tiny_folder, "float32"), open_chat(tiny_folder), threading.Lock()

    def made(*dies: bool) -> list[LocalReplica]:
        return [LocalReplica(f"r{i}", generator, lock, one) for i, one in enumerate(dies)]

    def scores(name: str, replicas: list[LocalReplica]) -> list[dict[str, Any]]:
        pool = EnginePool(replicas, chat, at_once=1)
        return evaluate(name, pool, max_new_tokens=4, temperature=0.8, dtype="float32")

    one = scores("one", made(False))
    assert len({item["output"] for item in one}) > 3
    two = made(False, False)
    assert scores("two", two) == one
    assert all(replica.written for replica in two)
    assert scores("dead", made(False, True)) == one


class SlowJudge:
    """Says yes; knows how many of its calls were under way at once."""

    def __init__(self, side_by_side: int) -> None:
        self.side_by_side, self.lock = side_by_side, threading.Lock()
        self.sizes: list[int] = []

    def __call__(self, asked: Any) -> list[Grade]:
        with self.lock:
            self.sizes.append(len(asked))
        return [Grade(1.0) for _ in asked]


def test_an_engine_judges_small_parts_side_by_side_and_every_verdict_is_kept(tmp_path):
    items = [SimpleNamespace(task="t@1", item=f"i{i}", judge="", reference="", question="q") for i in range(100)]
    pairs = [(one, Result(task="t@1", item=one.item, output="a", stop="eos")) for one in items]
    parts = llm_judged._parts([pairs[:60], pairs[60:]])
    assert [len(part) for part in parts] == [llm_judged.PART] * 6 + [4]
    assert [pair for part in parts for pair in part] == pairs
    judge = SlowJudge(4)
    log = llm_judged.ResultLog(tmp_path / "judged.jsonl", print)
    ctx = SimpleNamespace(seed=1, track=SimpleNamespace(progress=lambda done, total, note="": None))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(llm_judged, "llm_judge", lambda name, reference: llm_judges.LLMJudge)
        with log:
            llm_judged._judge(judge, parts, log, {"t@1": TaskCard("t@1", metric="accuracy")}, ctx, 4)
    assert sorted(judge.sizes) == [4] + [16] * 6
    assert {item for _, item in log.results} == {one.item for one in items}


def test_the_answers_of_an_oracle_are_right_in_any_order(evaluate, workspace):
    workspace.write_benchmark("words@1")
    known = workspace.model
    assert isinstance(known, OracleGenerator)
    assert all(item["score"] == 1 for item in evaluate("oracle", known))
