"""Streams of rollouts: no group older than the lag, no draw lost or doubled, and exact replay from the log."""

from __future__ import annotations

import json
import math
import random
import shutil
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tercet.device.mesh import Mesh
from tercet.models.engines.replica import EngineError, ReplicaDiedError, WrittenGroup
from tercet.models.forest import Leaf, Tree, pack_forest
from tercet.models.generate import LocalGenerator
from tercet.recipe import GRPOSpec
from tercet.rows import Completion, Message, Row, Sampling, read_table
from tercet.store import payload_digest
from tercet.track import read_metrics
from tercet.train.batch import Batch, chosen_rows
from tercet.train.loop import TrainingError
from tercet.train.rl import generator as generator_module
from tercet.train.rl.grpo import grpo_loss
from tercet.train.rl.reward_fn import RewardFunction
from tercet.train.rl.rollout import Prompts, Round
from tercet.train.rl.rollout_log import LOG, RolloutLog
from tercet.train.rl.stream import RolloutStream, staleness

NUM_ROWS = 7
ROWS = [Row(f"r{i}", (Message("user", str(i)),), "s", "play", "gsm8k@1", str(i)) for i in range(NUM_ROWS)]
PROMPTS = Prompts(ROWS, [Tree([], [Leaf([i, 9], [True, True])]) for i in range(NUM_ROWS)], None)


def spec(**values: Any) -> GRPOSpec:
    sizes = {"rounds": 6, "batch": 3, "num_generations": 2, "engine": "vllm", "lag": 1, "in_flight": True}
    return GRPOSpec(model="base", prompts="data", **(sizes | values))


class FakeEngine:
    """Answers in an order of chance, from a thread of its own; weights come while prompts are out.

    A prompt is slow or dies as `chance` says: a slow one is answered when the weights have moved `held` times, or when
    nothing else is left to answer. `asked` has the prompts in the order they came in.
    """

    def __init__(self, chance: random.Random, *, held: int = 0, slow: float = 0.0, deaths: float = 0.0) -> None:
        self.chance, self.held, self.slow, self.deaths = chance, held, slow, deaths
        self.asked: list[tuple[int, int]] = []  # place, stream
        self.out: list[tuple[Sequence[int], Sampling, int, int, int, Future[WrittenGroup]]] = []
        self.version, self.closed, self.most = 0, False, 0
        self.changed = threading.Condition()
        self.thread = threading.Thread(target=self._work, daemon=True)
        self.thread.start()

    def submit(self, prompt: Sequence[int], sampling: Sampling, stream: int) -> Future[WrittenGroup]:
        done: Future[WrittenGroup] = Future()
        with self.changed:
            self.asked.append((prompt[0], stream))
            until = self.version + (self.held if self.chance.random() < self.slow else 0)
            self.out.append((prompt, sampling, stream, self.version, until, done))
            self.most = max(self.most, len(self.out))
            self.changed.notify_all()
        return done

    def take_weights(self, version: int) -> None:
        with self.changed:
            self.version = version
            self.changed.notify_all()

    def close(self) -> None:
        with self.changed:
            self.closed = True
            self.changed.notify_all()
        self.thread.join(timeout=30)

    def _work(self) -> None:
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.out or self.closed)
                if self.closed:
                    return
                due = [one for one in self.out if one[4] <= self.version] or self.out[:1]
                one = self.chance.choice(due)
                self.out.remove(one)
                last, dies = self.version, self.chance.random() < self.deaths
            prompt, sampling, stream, first, _, done = one
            if dies:
                done.set_exception(ReplicaDiedError("it is gone"))
            else:
                done.set_result(WrittenGroup(written(prompt, sampling, stream), first, last, "fake"))


def written(prompt: Sequence[int], sampling: Sampling, stream: int) -> list[Completion]:
    """Some of them right, as the stream's number says; always the same for the same question."""
    texts = [str(prompt[0]) if (stream + i) % 2 else "?" for i in range(sampling.n)]
    return [Completion(text, (stream % 50, i), (-0.5, -0.25), "eos") for i, text in enumerate(texts)]


class Run:
    """A trainer that learns nothing: rounds `first` to `stop` are taken, and after each the engine has new weights."""

    def __init__(self, path: Path, settings: GRPOSpec, engine: FakeEngine, first: int = 0) -> None:
        self.log = RolloutLog(path, first, Mesh())
        self.spec, self.engine, self.first = settings, engine, first
        engine.take_weights(first)
        self.stream = RolloutStream(PROMPTS, engine, RewardFunction(settings, None), self.log, settings, 5)

    def rounds(self, stop: int) -> list[Round]:
        found = []
        for number in range(self.first, stop):
            found.append(self.stream.take(number))
            self.engine.take_weights(number + 1)
            self.stream.advance()
        return found

    def end(self) -> None:
        self.stream.close()
        self.engine.close()


def whole(path: Path, settings: GRPOSpec, engine: FakeEngine) -> list[Round]:
    run = Run(path, settings, engine)
    found = run.rounds(settings.rounds)
    run.end()
    return found


def draws(rounds: Sequence[Round]) -> list[int]:
    return [group.origin.draw for made in rounds for group in made.groups]


def ages(rounds: Sequence[Round]) -> list[int]:
    return [made.number - group.origin.first for made in rounds for group in made.groups]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(1, 4), st.sampled_from([0.0, 0.3, 0.9]))
def test_under_any_schedule_no_group_is_too_old_and_every_draw_is_in_exactly_one_round(
    tmp_path_factory, seed, lag, held, slow
):
    path = tmp_path_factory.mktemp("log") / "rollouts.jsonl"
    engine = FakeEngine(random.Random(seed), held=held, slow=slow, deaths=0.1)
    rounds = whole(path, spec(lag=lag), engine)
    assert [len(made.groups) for made in rounds] == [3] * 6
    assert sorted(draws(rounds)) == list(range(18))
    assert 0 <= min(ages(rounds)) <= max(ages(rounds)) <= lag
    assert engine.most <= (lag + 1) * 3
    again = sum(len(made.dropped) for made in rounds)
    assert again == sum(group.origin.tries for made in rounds for group in made.groups)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(0, 5), st.sampled_from([0.0, 0.5]))
def test_a_run_killed_anywhere_trains_on_the_rounds_of_its_log_and_asks_first_for_what_was_out(
    tmp_path_factory, seed, killed, back, slow
):
    path, settings = tmp_path_factory.mktemp("log") / "rollouts.jsonl", spec(lag=2)
    before = Run(path, settings, FakeEngine(random.Random(seed), held=4, slow=slow, deaths=0.1))
    made = before.rounds(killed)
    before.end()
    kept, first = path.read_bytes(), max(0, killed - back)
    after = Run(path, settings, FakeEngine(random.Random(seed + 1), held=4, slow=slow), first)
    found = after.rounds(settings.rounds)
    after.end()
    assert [bare(one) for one in found[: killed - first]] == [bare(one) for one in made[first:]]
    assert path.read_bytes().startswith(kept)
    everything = made[:first] + found
    assert sorted(draws(everything)) == list(range(18)), "none lost, none twice"
    assert max(ages(everything)) <= 2
    missing = [draw for draw in range(18) if draw not in draws(made)]
    tries = dict.fromkeys(missing, 0) | {draw: sum(one.dropped.count(draw) for one in made) for draw in missing}
    first_asked = [stream % 1_000_003 for _, stream in after.engine.asked[: len(missing)]]
    assert sorted(first_asked[:3]) == first_asked[:3] == missing[: len(first_asked[:3])]
    assert after.engine.asked[0][1] // 1_000_003 == tries[missing[0]]


def bare(made: Round) -> Round:
    return Round(made.number, made.version, made.cursor, made.groups, dropped=made.dropped)


def test_what_a_run_had_of_a_stream_is_what_its_log_gives_back(tmp_path):
    settings = spec()
    made = whole(tmp_path / "log", settings, FakeEngine(random.Random(3), held=2, slow=0.3))
    silent = FakeEngine(random.Random(0))
    again = whole(tmp_path / "log", settings, silent)
    assert not silent.asked
    assert list(map(bare, again)) == list(map(bare, made))
    assert again[2].groups[1].origin == made[2].groups[1].origin
    assert staleness(again[2], 1) == staleness(made[2], 1)


class HandEngine:
    """Answers when the test says so, with the versions that the test says."""

    def __init__(self) -> None:
        self.out: dict[int, tuple[Sequence[int], Sampling, Future[WrittenGroup]]] = {}

    def submit(self, prompt: Sequence[int], sampling: Sampling, stream: int) -> Future[WrittenGroup]:
        self.out[stream] = (prompt, sampling, done := Future())
        return done

    def answer(self, stream: int, first: int, last: int | None = None) -> None:
        prompt, sampling, done = self.out.pop(stream)
        done.set_result(WrittenGroup(written(prompt, sampling, stream), first, first if last is None else last, "e"))


def by_hand(tmp_path: Path, **values: Any) -> tuple[RolloutStream, HandEngine]:
    settings, engine = spec(**values), HandEngine()
    log = RolloutLog(tmp_path / "log", 0, Mesh())
    return RolloutStream(PROMPTS, engine, RewardFunction(settings, None), log, settings, 5), engine


def test_a_group_that_comes_back_too_late_is_dropped_counted_and_asked_again_with_other_random_numbers(tmp_path):
    stream, engine = by_hand(tmp_path, batch=2, rounds=3)
    assert sorted(engine.out) == [0, 1, 2, 3]
    for number, pair in enumerate([(0, 1), (2, 4)]):
        for draw in pair:
            engine.answer(draw, 0 if draw < 4 else number)
        assert draws([stream.take(number)]) == list(pair)
        stream.advance()
    engine.answer(3, 0, 2)  # two rounds old by its first token, whatever wrote its last
    engine.answer(5, 1)
    taking = Taken(stream, 2)
    taking.until(lambda: 3 + 1_000_003 in engine.out)
    engine.answer(3 + 1_000_003, 2)
    made = taking.result()
    assert [(one.origin.draw, one.origin.tries) for one in made.groups] == [(3, 1), (5, 0)]
    assert staleness(made, 1) == {
        "lag": 0.5,
        "lag_max": 1.0,
        "in_flight_updates": 0.0,
        "dropped_groups": 1.0,
        "dropped": 1 / 3,
        "corrected": 0.0,
    }
    closing = [record for record in stream.log.read() if record.get("done")]
    assert [record["dropped"] for record in closing] == [[], [], [3]]
    stream.close()


def test_with_correct_an_old_group_is_kept_and_counted(tmp_path):
    stream, engine = by_hand(tmp_path, batch=2, rounds=3, stale="correct", importance_cap=2.0)
    for number, pair in enumerate([(0, 1), (2, 4)]):
        for draw in pair:
            engine.answer(draw, 0 if draw < 4 else number)
        stream.take(number)
        stream.advance()
    engine.answer(3, 0, 2)
    engine.answer(5, 1, 2)
    made = Taken(stream, 2).result()
    assert [(one.origin.draw, one.origin.first, one.origin.last) for one in made.groups] == [(3, 0, 2), (5, 1, 2)]
    assert made.version == 0
    found = staleness(made, 1)
    assert (found["lag"], found["lag_max"], found["corrected"], found["in_flight_updates"]) == (1.5, 2.0, 0.5, 1.5)
    assert not made.dropped
    stream.close()


def test_of_what_is_ready_the_oldest_is_trained_on_first(tmp_path):
    stream, engine = by_hand(tmp_path, batch=2, rounds=4, lag=2)
    for draw in (5, 3, 0, 1):
        engine.answer(draw, 0)
    Taken(stream, 0).result()
    stream.advance()
    for draw in (7, 6):
        engine.answer(draw, 1)
    engine.answer(2, 0)
    taking = Taken(stream, 1)
    assert max(draws([taking.result()])) <= 5
    stream.close()


class Taken:
    """A round that another thread waits for."""

    def __init__(self, stream: RolloutStream, number: int) -> None:
        self.stream, self.found = stream, Future()
        threading.Thread(target=self._take, args=(number,), daemon=True).start()

    def _take(self, number: int) -> None:
        try:
            self.found.set_result(self.stream.take(number))
        except BaseException as error:
            self.found.set_exception(error)

    def until(self, holds: Any) -> None:
        with self.stream.changed:
            assert self.stream.changed.wait_for(holds, timeout=30)

    def result(self) -> Any:
        return self.found.result(timeout=30)


def test_prompts_that_lack_a_signal_are_drawn_on_as_active_rounds_allows(tmp_path):
    settings = spec(active_rounds=3, num_generations=2, batch=3)

    class Flat(FakeEngine):
        """Every second prompt is answered alike twice, for which there is no advantage."""

        def submit(self, prompt: Sequence[int], sampling: Sampling, stream: int) -> Future[WrittenGroup]:
            done: Future[WrittenGroup] = Future()
            texts = ["?", str(prompt[0]) if stream % 2 else "?"]
            found = [Completion(text, (1,), (-0.5,), "eos") for text in texts]
            done.set_result(WrittenGroup(found, self.version, self.version))
            return done

    rounds = whole(tmp_path / "log", settings, Flat(random.Random(1)))
    for made in rounds:
        useful = [group for group in made.groups if len({sample.reward for sample in group.samples}) > 1]
        assert len(useful) == 3
        assert 3 < len(made.groups) <= 9
    assert sorted(draws(rounds)) == sorted(set(draws(rounds)))
    assert [made.cursor for made in rounds][-1] == len(draws(rounds))


def test_a_pass_takes_every_prompt_once_in_the_order_of_rounds_in_turn(tmp_path):
    run = Run(tmp_path / "log", spec(batch=7, rounds=4, lag=1), FakeEngine(random.Random(2)))
    run.rounds(4)
    run.end()
    assert [place for place, _ in run.engine.asked] == [p for number in range(4) for p in chosen_rows(number, 7, 7, 5)]


def test_a_log_of_rounds_in_turn_is_gone_on_with(tmp_path):
    path = tmp_path / "log"
    samples = [{"ids": [1], "logps": [-0.5], "text": "?", "stop": "eos", "grade": [0.0, "", "graded", ""]}]
    rest = {"score": 0.0, "reward": 0.0, "parts": {}, "errors": []}
    log = RolloutLog(path, 0, Mesh())
    for number in range(2):
        groups = [{"place": i, "prompt_id": f"r{i}", "samples": [samples[0] | rest]} for i in range(3)]
        log.append(number, [*groups, {"done": True, "version": number, "cursor": 3 * number + 3}])
    run = Run(path, spec(), FakeEngine(random.Random(1)), 1)
    rounds = run.rounds(6)
    run.end()
    assert rounds[0].groups[0].origin is None
    assert staleness(rounds[0], 1) == {"lag": 0.0}
    assert sorted(draws(rounds[1:])) == list(range(6, 18))


def test_an_engine_that_lacks_an_update_ends_the_run(tmp_path):
    stream, engine = by_hand(tmp_path, batch=2, rounds=4)
    for draw in (0, 1):
        engine.answer(draw, 0)
    stream.take(0)
    stream.advance()
    engine.answer(4, 0)
    with pytest.raises(
        TrainingError, match=r"versions 0 to 0 wrote what it was asked for with those of version 1.*lacks"
    ):
        stream.take(1)


def test_a_replica_that_dies_again_and_again_ends_the_run_and_one_that_is_replaced_changes_nothing(tmp_path):
    rounds = whole(tmp_path / "log", spec(), FakeEngine(random.Random(4), deaths=0.2))
    assert sorted(draws(rounds)) == list(range(18))
    assert not any(group.origin.tries for made in rounds for group in made.groups)
    dying = Run(tmp_path / "dying", spec(), FakeEngine(random.Random(4), deaths=1.0))
    with pytest.raises(TrainingError, match=r"it is gone; the weights of the last checkpoint are kept"):
        dying.rounds(1)
    dying.end()


def test_what_an_engine_refuses_is_raised_where_the_round_is_taken(tmp_path):
    stream, engine = by_hand(tmp_path)
    engine.out[0][2].set_exception(EngineError("no such model"))
    with pytest.raises(TrainingError, match="no such model"):
        stream.take(0)
    other, engine = by_hand(tmp_path)
    engine.out[1][2].set_result(WrittenGroup([Completion("", (), (), "error", "too long")] * 2, 0, 0))
    with pytest.raises(TrainingError, match=r"prompt r\d: the generator gave no completion: too long"):
        other.take(0)


class Ranks:
    """What two threads that are the ranks of a mesh share."""

    def __init__(self) -> None:
        self.meeting, self.values = threading.Barrier(2), [None, None]


class Rank(Mesh):
    """One of two ranks in this process."""

    def __init__(self, rank: int, ranks: Ranks) -> None:
        super().__init__(rank, 2)
        object.__setattr__(self, "ranks", ranks)

    def gather(self, value: Any) -> list[Any]:
        self.ranks.values[self.rank] = value
        self.ranks.meeting.wait(timeout=30)
        found = list(self.ranks.values)
        self.ranks.meeting.wait(timeout=30)
        return found


def test_the_first_rank_asks_and_all_ranks_train_on_the_same_rounds(tmp_path):
    ranks, engine, settings = Ranks(), FakeEngine(random.Random(6), held=2, slow=0.2), spec()
    found: dict[int, list[Round]] = {}

    def train(rank: int) -> None:
        log = RolloutLog(tmp_path / "log", 0, Rank(rank, ranks))
        stream = RolloutStream(PROMPTS, engine, RewardFunction(settings, None), log, settings, 5)
        found[rank] = []
        for number in range(settings.rounds):
            found[rank].append(stream.take(number))
            if rank == 0:
                engine.take_weights(number + 1)
            stream.advance()
        stream.close()

    threads = [threading.Thread(target=train, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    engine.close()
    assert list(map(bare, found[0])) == list(map(bare, found[1]))
    assert sorted(draws(found[1])) == list(range(18))
    assert len(engine.asked) == 18 + sum(len(made.dropped) for made in found[0])


def test_versions_never_run_back_within_a_group(tmp_path):
    rounds = whole(tmp_path / "log", spec(lag=2), FakeEngine(random.Random(8), held=2, slow=0.5))
    for made in rounds:
        assert all(group.origin.first <= group.origin.last <= made.number for group in made.groups)
    assert all(one.number < other.number for one, other in pairwise(rounds))


class OwnEngine(FakeEngine):
    """Writes with Tercet's own generator and the weights that it was given last."""

    def __init__(self, folder: Path) -> None:
        self.local, self.writing = LocalGenerator.open(folder, "float32"), threading.Lock()
        super().__init__(random.Random(0), held=1, slow=0.3)

    def submit(self, prompt: Sequence[int], sampling: Sampling, stream: int) -> Future[WrittenGroup]:
        done: Future[WrittenGroup] = Future()

        def answer(held: Future[WrittenGroup]) -> None:
            try:
                with self.writing:  # in whatever thread the answer came
                    [group] = self.local.write([prompt], sampling, streams=[stream])
                done.set_result(held.result()._replace(completions=group))
            except Exception as error:
                done.set_exception(error)

        super().submit(prompt, sampling, stream).add_done_callback(answer)
        return done

    def update(self, version: int, weights: Any) -> None:
        targets = dict(self.local.policy.model.named_parameters())
        with torch.no_grad(), self.writing:
            for name, value in weights:
                targets[name.removeprefix("model.")].copy_(value)
        self.take_weights(version)


STREAMED = {"lag": 2, "in_flight": True, "engine": "vllm", "stale": "correct", "importance_cap": 2.0}
SMALL = {"rounds": 4, "batch": 4, "num_generations": 4, "max_new_tokens": 16}


@pytest.fixture
def own_engine(monkeypatch):
    """Our own generator takes vLLM's place, and weights go to it by reference; the engines that were opened."""
    engines: list[OwnEngine] = []

    def opened(source: Path, _spec: Any, _placement: Any) -> OwnEngine:
        engines.append(OwnEngine(source))
        return engines[-1]

    def offer(generator: generator_module.PolicyGenerator, version: int) -> None:
        generator.engine.update(version, generator.trainable.full_state(generator.part))

    monkeypatch.setattr(generator_module, "_engine", opened)
    monkeypatch.setattr(generator_module.PolicyGenerator, "offer", offer)
    yield engines
    for engine in engines:
        engine.close()


def test_a_stage_trains_on_a_stream_replays_it_bit_for_bit_and_goes_on_from_a_checkpoint(
    workspace, tmp_path, own_engine
):
    settings = {"rlvr": STREAMED | SMALL, "placement": {"checkpoint_seconds": 0}}
    whole = tmp_path / "whole"
    workspace.run_stage("rlvr", whole, **settings)
    rows = read_table(whole / "tercet" / "rollouts.parquet")
    assert {row["replica"] for row in rows} == {"fake"}
    assert all(row["version"] <= row["version_last"] <= row["step"] for row in rows)
    assert {"lag_max", "dropped_groups", "corrected", "in_flight_updates"} <= set(curve(whole)[-1])
    log = (tmp_path / "whole.draft" / "work" / LOG).read_bytes()

    again = drafted(tmp_path / "again", log)  # the log alone: no engine writes
    workspace.run_stage("rlvr", again, **settings)
    assert not own_engine[1].asked
    assert payload_digest(again) == payload_digest(whole)

    other = tmp_path / "other" / "whole"  # killed with two rounds in the log: the newer checkpoints are gone with them
    shutil.copytree(tmp_path / "whole.draft" / "work", other.with_name("whole.draft") / "work")
    two = b"".join(log.splitlines(keepends=True)[:2])
    workspace.run_stage("rlvr", drafted(other, two), **settings)
    after = (other.with_name("whole.draft") / "work" / LOG).read_bytes()
    assert after.startswith(two)
    assert [line["step"] for line in curve(other)][-1] == 4
    groups = [group for line in after.splitlines() for group in json.loads(line)["records"][:-1]]
    assert sorted(group["draw"] for group in groups) == list(range(16))


def drafted(out: Path, log: bytes) -> Path:
    """A payload's place whose draft has this log of rollouts."""
    work = out.with_name(f"{out.name}.draft") / "work"
    work.mkdir(parents=True, exist_ok=True)
    (work / LOG).write_bytes(log)
    return out


def curve(out: Path) -> list[dict[str, Any]]:
    return read_metrics(out.with_name(f"{out.name}.draft") / "metrics.jsonl")


def test_the_loss_of_an_old_group_is_weighed_by_the_truncated_ratio_of_its_own_tokens():
    """By hand: min(exp(trainer - engine), cap), token by token, whatever the version of each."""
    trainer = torch.tensor([-1.0, -0.2, -3.0, -0.7], dtype=torch.float64, requires_grad=True)
    engine = torch.tensor([-1.5, -0.1, -1.0, -2.0], dtype=torch.float64)
    forest = pack_forest([Tree([1], [Leaf([2, 3, 4, 5], [True] * 4)])])
    settings = spec(stale="correct", importance_cap=2.0, kl_beta=0.0)
    advantages = torch.full((4,), 1.5, dtype=torch.float64)
    batch = Batch(forest, {"advantages_P": advantages, "sampled_P": engine})
    loss = grpo_loss(lambda *_args, **_kwargs: (trainer, None), batch, spec=settings)
    loss.objective.total.backward()
    weights = [min(math.exp(t - e), 2.0) for t, e in zip(trainer.tolist(), engine.tolist(), strict=True)]
    assert weights[3] == 2.0
    torch.testing.assert_close(trainer.grad, torch.tensor([-1.5 * w for w in weights], dtype=torch.float64))
