"""Episodes of the calculator that SFT shows: every call is answered by the environment, the last action is rewarded."""

from __future__ import annotations

import re

import pytest

from tercet.data.generators import calls, words
from tercet.environments.calculator import ASKS, Calculator


@pytest.mark.parametrize("split", ["train", "test"])
def test_each_step_of_the_solution_is_a_call_and_the_episode_is_rewarded(split):
    rows, plain = calls.generate(60, split, 3), words.generate(60, split, 3)
    for row, problem in zip(rows, plain, strict=True):
        rules, asked, *turns = row.messages
        assert rules.content == ASKS
        assert (asked,) == problem.prompt
        steps = re.findall(r"(\d+) ([-+*/]) (\d+) = (\d+)", str(problem.answer))
        assert [turn.role for turn in turns] == ["assistant", "user"] * len(steps) + ["assistant"]
        for (left, sign, right, result), call, told in zip(steps, turns[::2], turns[1::2], strict=False):
            assert call.content == f"CALC: {left} {sign} {right}"
            assert told.content == f"RESULT: {result}"
        game = Calculator()
        game.reset(problem)
        assert [game.step(turn.content)[1] for turn in turns[::2]] == [0.0] * len(steps) + [1.0]
    assert len({row.id for row in rows}) == 60
    assert len({len(row.messages) for row in rows}) > 1
