"""A hostile server costs no more than its own questions: bounded time and bytes, plain Unicode, no key elsewhere."""

from __future__ import annotations

import gzip
import json
import re
import resource
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.attack.hostile_server import ATTACKS, HostileServer, good, hostile, http, later, sends

from tercet.cli.main import main
from tercet.models.openai.endpoint import EndpointGenerator
from tercet.models.openai.pacing import Clock
from tercet.models.openai.payloads import EndpointError
from tercet.outside import unicode_only
from tercet.rows import PLAIN, Message, Sampling

KEY = "sk-attack-0123456789"
SECRET = "hunter2hunter2"
GROWTH = 250 << 20  # bytes that the process may grow by, whatever comes
SECONDS = 8.0  # for two attempts of half a second each, on a loaded machine


class Waits(Clock):
    """Time that passes by waiting only."""

    def __init__(self) -> None:
        self.time = 0.0

    def now(self) -> float:
        return self.time

    def wait(self, seconds: float, stopped: threading.Event) -> None:
        self.time += seconds


@contextmanager
def asking(server: HostileServer, **limits: Any) -> Iterator[EndpointGenerator]:
    limits = {"timeout": 0.5, "retries": 1, "concurrency": 2} | limits
    with closing(EndpointGenerator.open(server.url, "m", **limits)) as generator:
        generator.clock = Waits()
        yield generator


def peak() -> int:
    """The most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERCET_API_KEY", KEY)


@pytest.mark.parametrize("attack", ATTACKS)
def test_it_costs_its_own_question_only(attack, capfd):
    behaviour, expected = ATTACKS[attack]
    before = peak()
    with hostile(behaviour) as server, asking(server) as generator:
        begin = time.monotonic()
        found, said = None, ""
        try:
            ((found,),) = generator.complete([(Message("user", "harm"),)], Sampling(16))
            outcome = "error" if found.stop == "error" else "answer"
        except EndpointError as error:
            outcome, said = "stop", str(error)
        seconds = time.monotonic() - begin
        assert server.other is not None
        elsewhere = server.other.requests
        if found is not None:  # the next question is answered, by the same client
            ((again,),) = generator.complete([(Message("user", "be good"),)], Sampling(16))
            assert again.text == "good again"
        used, waited = generator.usage, generator.clock.now()
        sent = server.requests
    assert outcome == expected
    assert seconds < SECONDS
    assert peak() - before < GROWTH
    assert elsewhere == []
    assert all(b"cookie:" not in request.lower() for request in sent)
    assert waited <= 600
    assert 0 <= used.prompt_tokens <= 6
    assert 0 <= used.completion_tokens <= 4
    if found is not None:
        assert unicode_only(found.text + found.error) == found.text + found.error
        assert len(found.error) < 1000
        said = found.error
        assert 0 <= found.counted <= 2
    assert KEY not in said
    told = capfd.readouterr()
    assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(told.out + told.err)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e308", "1e999", "5", '"x"', "null", "[]"])
@pytest.mark.parametrize("plain", [True, False])
def test_what_is_no_log_probability_scores_nothing(value, plain):
    tops = f'[{{"token": "A", "logprob": {value}}}, {{"token": "B", "logprob": -1}}]'
    table = f'{{"tokens": ["q", "A", "B"], "token_logprobs": [null, {value}, -1], "text_offset": [0, 1, 2]'
    table += f', "top_logprobs": [], "content": [{{"top_logprobs": {tops}}}]}}'
    reply = http(f'{{"choices": [{{"logprobs": {table}}}]}}')
    with hostile(sends(reply)) as server, asking(server) as generator:
        prompt = (Message(PLAIN if plain else "user", "q"),)
        found = generator.likelihood([prompt], [["A"]])[0]
    assert [bool(one.error) for one in found] == [True]


def test_pauses_and_attempts_together_end_at_the_deadline():
    with hostile(later("600")) as server, asking(server, retries=50, deadline=2000.0) as generator:
        ((found,),) = generator.complete([(Message("user", "harm"),)], Sampling(16))
        assert generator.clock.now() <= 2000
    attempts = re.match(r"no answer after (\d+) attempts", found.error)
    assert attempts, found.error
    assert 2 <= int(attempts[1]) <= 8  # pauses are drawn at random; without a deadline there would be 51


def test_a_lie_about_tokens_delays_the_others_for_minutes_at_most():
    lie = json.dumps({"choices": good()["choices"], "usage": {"prompt_tokens": 900_000, "completion_tokens": 1}})
    with hostile(sends(http(lie))) as server, asking(server, tokens_per_minute=1000, timeout=30.0) as generator:
        generator.complete([(Message("user", "harm"),)], Sampling(16))
        generator.complete([(Message("user", "be good"),)], Sampling(16))
        assert generator.clock.now() <= 601


ADDRESS = f"http://me:{SECRET}@127.0.0.1:9/v1"
RECIPE = """
name = "x"
[base]
model = "{model}"
[stage.rows]
kind = "synth"
generator = "words@1"
rows = 2
[placement]
engine = {{ placement = "apart", urls = ["{engine}"] }}
"""


@pytest.mark.parametrize(
    "way",
    [
        "model of a recipe",
        "engine.urls",
        "--set",
        "eval",
        "eval --judge",
        "chat",
        "a source",
        "HF_ENDPOINT",
    ],
)
@pytest.mark.parametrize("verb", ["run", "plan", "show"])
def test_a_password_in_a_url_is_refused_and_stored_nowhere(way, verb, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = tmp_path / "r.toml"
    recipe.write_text(RECIPE.format(model="tiny:1x8", engine="http://127.0.0.1:9"), encoding="utf-8")
    argv = [verb, str(recipe), *(["--store", "store"] if verb != "show" else [])]
    if way == "model of a recipe":
        recipe.write_text(RECIPE.format(model=f"{ADDRESS}#m", engine="http://127.0.0.1:9"), encoding="utf-8")
    elif way == "engine.urls":
        recipe.write_text(RECIPE.format(model="tiny:1x8", engine=ADDRESS), encoding="utf-8")
    elif way == "a source":
        more = f'[stage.m]\nkind = "mix"\nsources = [{{ path = "{ADDRESS}/rows.jsonl" }}]\n'
        recipe.write_text(recipe.read_text("utf-8") + more, encoding="utf-8")
    elif way == "--set":
        argv += ["--set", f"base.model={ADDRESS}#m"]
    elif way == "HF_ENDPOINT":
        if verb != "run":
            pytest.skip("nothing is asked")
        monkeypatch.setenv("HF_ENDPOINT", ADDRESS)
    elif verb != "run":
        pytest.skip("the same command line")
    if way.startswith("eval"):
        model, more = ("tiny:1x8", ["--judge", f"{ADDRESS}#m"]) if "judge" in way else (f"{ADDRESS}#m", [])
        argv = ["eval", model, "--tasks", "words@1", "--limit", "2", "--store", "store", *more]
    elif way == "chat":
        argv = ["chat", f"{ADDRESS}#m", "--store", "store"]
    assert main(argv) == 2
    told = capfd.readouterr()
    assert SECRET not in told.out + told.err
    assert "user name or a password" in told.err
    own = {recipe}
    stored = [path for path in Path(tmp_path).rglob("*") if path.is_file() and path not in own]
    assert not [path for path in stored if SECRET.encode() in path.read_bytes() or SECRET in path.name]


GOOD = {"index": 0, "token_ids": [1], "finish_reason": "stop", "logprobs": {"content": [{"logprob": -1.0}]}}
ENGINE: dict[str, str] = {
    "no choices": "{}",
    "a choice that is a number": json.dumps({"choices": [5]}),
    "a choice without a place": json.dumps({"choices": [{"evil": 1}]}),
    "tokens that are words": json.dumps({"choices": [GOOD | {"token_ids": ["x"]}]}),
    "fewer log-probabilities than tokens": json.dumps({"choices": [GOOD | {"token_ids": [1, 2]}]}),
    "more completions than were asked for": json.dumps({"choices": [GOOD, GOOD | {"index": 1}]}),
    "a list": "[]",
    "a line 100,000 deep": "[" * 100_000,
    "half a line": '{"choices": [',
}


@pytest.mark.parametrize("attack", [*ENGINE, "a packed reply", "a redirect"])
def test_a_reply_of_an_engine_that_is_none_is_one_error(attack, tmp_path, tiny_folder):
    from tercet.models.chat import open_chat
    from tercet.models.vllm.served import VllmServer
    from tercet.models.vllm.weights import EngineError

    key_file = tmp_path / "key"
    key_file.write_text(KEY, encoding="utf-8")
    key_file.chmod(0o600)
    card = json.dumps({"data": [{"id": "m", "root": "m", "max_model_len": 64}]})

    def behave(server: HostileServer, connection: Any) -> None:
        asked = server.requests[-1]
        if asked.startswith(b"GET"):
            known = b"/v1/models" in asked
            connection.sendall(
                http(card if known else "", "Connection: close", status="200 OK" if known else "404 Not Found")
            )
        elif asked.endswith(b"{}"):
            connection.sendall(http("{}", "Connection: close", status="422 Unprocessable Entity"))
        elif attack == "a packed reply":
            connection.sendall(http(gzip.compress(b" " * (64 << 20)), "Content-Encoding: gzip"))
        elif attack == "a redirect":
            assert server.other is not None
            connection.sendall(http("", f"Location: {server.other.url}", status="307 Temporary Redirect"))
        else:
            connection.sendall(http(ENGINE[attack]))

    with hostile(behave) as server:
        url = server.url.removesuffix("/v1")
        engine = VllmServer.open(url, open_chat(tiny_folder), "float32", key_file=str(key_file))
        with closing(engine), pytest.raises(EngineError) as caught:
            engine.submit([1, 2], Sampling(4, 1.0), 0).result(30)
        assert server.other is not None
        assert server.other.requests == []
    assert KEY not in str(caught.value)
