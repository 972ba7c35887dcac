"""An OpenEnv server plays our episodes; where OpenEnv is not installed this is skipped."""

from __future__ import annotations

import asyncio
import socket
import threading
import time

import pytest

from tercet.environments.pool import EnvironmentPlayError, EnvironmentPool
from tercet.rows import Message, Row

openenv = pytest.importorskip("openenv.core", reason="pip install openenv-core")


@pytest.fixture(scope="module")
def url():
    import uvicorn
    from openenv.core.env_server import Action, Environment, Observation, State, create_fastapi_app

    class Said(Action):
        message: str

    class Heard(Observation):
        text: str = ""

    class Echo(Environment):
        SUPPORTS_CONCURRENT_SESSIONS = True

        def __init__(self):
            super().__init__()
            self.count = 0

        def reset(self, seed=None, episode_id=None, **_):
            self.count = 0
            return Heard(text=f"seed {seed}")

        def step(self, action, timeout_s=None, **_):
            self.count += 1
            return Heard(text=f"{self.count}: {action.message}", reward=0.5, done=self.count == 2)

        @property
        def state(self):
            return State(step_count=self.count)

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    app = create_fastapi_app(Echo, Said, Heard, max_concurrent_envs=8)
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(10)


def test_sessions_go_side_by_side_and_say_what_the_server_says(url):
    pool = EnvironmentPool("tercet.environments.openenv:Adapted", {"url": url, "say": "text"}, 20.0, workers=1)
    rows = {number: Row(f"r{number}", (Message("user", "begin"),)) for number in range(2)}
    begun = pool.reset(rows)
    assert begun[0].messages[0] == Message("user", "begin")
    assert begun[0].messages[1].content.startswith("seed ")
    assert begun[0].messages != begun[1].messages
    first = pool.step({0: "a", 1: "b"})
    assert [first[number].messages[0].content for number in (0, 1)] == ["1: a", "1: b"]
    last = pool.step({0: "c"})[0]
    assert (last.messages[0].content, last.reward, last.done) == ("2: c", 0.5, True)
    pool.close()


def test_a_server_that_is_not_there_ends_the_episode_with_a_reason():
    pool = EnvironmentPool("tercet.environments.openenv:Adapted", {"url": "http://127.0.0.1:9"}, 20.0, workers=1)
    assert pool.reset({0: Row("r", (Message("user", "x"),))})[0].fault
    pool.close()
    with pytest.raises(EnvironmentPlayError, match="unexpected keyword"):
        EnvironmentPool("tercet.environments.openenv:Adapted", {"uri": ""}, 20.0, workers=1).check()
