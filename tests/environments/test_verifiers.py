"""Task sets of the verifiers package play our episodes; where it is not installed this is skipped."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from tercet.environments.pool import EnvironmentPool
from tercet.rows import Message, Row

verifiers = pytest.importorskip("verifiers.v1", reason="pip install verifiers")

SETS = {
    "once_set": """
        import verifiers.v1 as vf

        class Data(vf.TaskData):
            answer: str

        class Once(vf.Task[Data]):
            @vf.reward(weight=1.0)
            async def right(self, task, trace) -> float:
                return float(task.answer in trace.last_reply)

        class Config(vf.TasksetConfig):
            largest: int = 3

        class Set(vf.Taskset[Once, Config]):
            def load(self):
                for i in range(self.config.largest):
                    yield Once(Data(prompt=f"{i} + 1 =", system_prompt="Compute.", answer=str(i + 1)))

        __all__ = ["Set"]
    """,
    "talk_set": """
        import verifiers.v1 as vf

        class Talk(vf.Task[vf.TaskData]):
            pass

        class Config(vf.EnvConfig):
            player: vf.AgentConfig = vf.AgentConfig()

        class Talks(vf.Env[Config]):
            async def run(self, task, agents):
                async with agents.player.interaction(task) as talk:
                    segment = await talk.turn()
                    count = 0
                    while not segment.terminated and segment.last_reply != "stop":
                        count += 1
                        segment = await talk.turn(f"{count}: {segment.last_reply}")
                talk.trace.record_reward("turns", float(count), 1.0)

        class Set(vf.Taskset[Talk, vf.TasksetConfig]):
            INFINITE = True

            def load(self):
                while True:
                    yield Talk(vf.TaskData(prompt="talk"))

        __all__ = ["Set", "Talks"]
    """,
    "tool_set": """
        import verifiers.v1 as vf

        class Adder(vf.Toolset[vf.ToolsetConfig]):
            @vf.tool
            def add(self, a: int, b: int) -> int:
                '''Add two numbers.'''
                return a + b

        class Sum(vf.Task[vf.TaskData]):
            @classmethod
            def toolsets(cls, config):
                return [Adder(vf.ToolsetConfig())]

            @vf.reward
            async def right(self, trace) -> float:
                return 2.0 * ("42" in trace.last_reply)

        class Set(vf.Taskset[Sum, vf.TasksetConfig]):
            def load(self):
                yield Sum(vf.TaskData(prompt="40 + 2?"))

        __all__ = ["Set"]
        if __name__ == "__main__":  # the package starts the tools' server so
            Adder.run()
    """,
}


@pytest.fixture
def pool_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Makes a pool of one process that plays a task set."""
    for name, text in SETS.items():
        (tmp_path / f"{name}.py").write_text(dedent(text))
    monkeypatch.syspath_prepend(tmp_path)
    pools = []

    def make(taskset: str, **settings: Any) -> EnvironmentPool:
        where = "tercet.environments.verifiers_env:TasksetEpisode"
        pools.append(EnvironmentPool(where, {"taskset": taskset, **settings}, 60.0, workers=1))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


def row(number: int) -> Row:
    return Row(f"r{number}", (Message("user", "the task says what is asked"),), reference=str(number))


def test_one_answer_is_rewarded_as_the_task_says_and_sessions_go_side_by_side(pool_of):
    pool = pool_of("once_set", largest=2)
    begun = pool.reset({0: row(0), 1: row(1), 2: row(2)})
    assert begun[0].messages == (Message("system", "Compute."), Message("user", "0 + 1 ="))
    assert "there is no task 2: there are 2" in begun[2].fault
    ended = pool.step({1: "2", 0: "2"})
    assert [(ended[number].reward, ended[number].done) for number in (0, 1)] == [(0.0, True), (1.0, True)]


def test_the_environment_plays_the_user_and_ends_when_it_wants_to_or_when_turns_are_spent(pool_of):
    pool = pool_of("talk_set", max_turns=3)
    pool.reset({0: row(5), 1: row(6)})
    assert pool.step({0: "a"})[0].messages == (Message("user", "1: a"),)
    assert pool.step({0: "b"})[0].messages == (Message("user", "2: b"),)
    assert (end := pool.step({0: "stop"})[0]).done
    assert end.reward == 2.0
    assert [pool.step({1: word})[1].done for word in "abc"] == [False, False, True]


def test_an_episode_whose_process_was_lost_is_played_again(pool_of):
    pool = pool_of("talk_set")
    pool.reset({0: row(0)})
    pool.step({0: "a"})
    pool.seats[0].leave()
    assert pool.step({0: "b"})[0].messages == (Message("user", "2: b"),)


def test_tools_are_explained_called_and_answered(pool_of):
    pool = pool_of("tool_set")
    system, user = pool.reset({0: row(0)})[0].messages
    assert (user.content, '"description": "Add two numbers."' in system.content) == ("40 + 2?", True)
    name = system.content.split('"name": "')[1].split('"')[0]
    reply = pool.step({0: f'<tool_call>{{"name": "{name}", "arguments": {{"a": 40, "b": 2}}}}</tool_call>'})[0]
    assert reply.messages == (Message("user", "<tool_response>\n42\n</tool_response>"),)
    other = pool.step({0: '<tool_call>{"name": "sub"}</tool_call>'})[0]
    assert "there is no tool 'sub'" in other.messages[0].content
    assert (last := pool.step({0: "It is 42."})[0]).done
    assert last.reward == 2.0


def test_what_cannot_be_played_is_refused_before_the_first_episode(pool_of):
    from tercet.environments.pool import EnvironmentPlayError

    with pytest.raises(EnvironmentPlayError, match="no_such_set"):
        pool_of("no_such_set").check()
    with pytest.raises(EnvironmentPlayError, match="larges"):
        pool_of("once_set", larges=2).check()
