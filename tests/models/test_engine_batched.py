"""An engine in the trainer's process takes prompts one by one, as a pool does."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from tercet.models.engines.batched import BatchedEngine
from tercet.models.engines.replica import EngineError, WrittenGroup
from tercet.rows import Completion, Sampling


class Lists:
    """Writes lists of prompts, the last first, and notes what it was asked at once."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.goes, self.begun = threading.Event(), threading.Event()

    def write(self, prompts: Any, sampling: Sampling, done: Any, streams: list[int]) -> None:
        self.calls.append(streams)
        self.begun.set()
        assert self.goes.wait(timeout=30)
        for i in reversed(range(len(prompts))):
            if prompts[i] == [7]:
                raise EngineError("it died")
            done(i, [Completion(f"{prompts[i]}", (streams[i],), (-0.5,), "eos")] * sampling.n)


def test_what_waits_is_written_at_once_and_says_the_versions_it_began_and_ended_with():
    lists, version = Lists(), [3]
    engine = BatchedEngine(lists, lambda: version[0], "vllm")
    first = engine.submit([1], Sampling(8, n=2), 10)
    assert lists.begun.wait(timeout=30)
    later = [engine.submit([number], Sampling(8, n=2), number) for number in (2, 3)]
    other = engine.submit([4], Sampling(9), 4)
    version[0] = 5
    lists.goes.set()
    assert first.result(timeout=30) == WrittenGroup([Completion("[1]", (10,), (-0.5,), "eos")] * 2, 3, 5, "vllm")
    assert [one.result(timeout=30).first for one in (*later, other)] == [5, 5, 5]
    assert lists.calls == [[10], [2, 3], [4]]


def test_an_error_ends_what_it_had_and_nothing_else():
    lists = Lists()
    lists.goes.set()
    engine = BatchedEngine(lists, lambda: 0)
    with pytest.raises(EngineError, match="it died"):
        engine.submit([7], Sampling(8), 0).result(timeout=30)
    assert engine.submit([1], Sampling(8), 1).result(timeout=30).completions[0].text == "[1]"
