"""A server over the tiny model gives our own client what the local generator gives, and says what it refuses."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.models.serving import post, said, serving

from tercet.models.access import Access
from tercet.models.backbone import backbone
from tercet.models.generate import LocalGenerator
from tercet.models.openai.batcher import Batcher, BatcherClosed
from tercet.models.openai.endpoint import EndpointGenerator
from tercet.models.openai.jobs import GenerationJob
from tercet.models.openai.payloads import EndpointError
from tercet.models.openai.served import ServedModel
from tercet.rows import PLAIN, Message, Messages, Sampling

TURNS = [(Message("user", f"Tell me {'more ' * (i % 4)}about {i} things."),) for i in range(12)]


@pytest.fixture(scope="module")
def generator(sharp_folder: Path) -> LocalGenerator:
    return LocalGenerator.open(sharp_folder, "float32", rows=16)


@contextmanager
def served(generator: LocalGenerator, **settings: Any) -> Iterator[str]:
    """The URL of a running server."""
    with serving([ServedModel.of(generator, "tiny")], **settings) as (url, _):
        yield url


@contextmanager
def client(url: str, model: str = "tiny", **limits: Any) -> Iterator[EndpointGenerator]:
    with closing(EndpointGenerator.open(url, model, **{"retries": 0, **limits})) as found:
        yield found


@pytest.fixture(scope="module")
def url(generator: LocalGenerator, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served(generator) as found:
        yield found


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TERCET_API_KEY", raising=False)


def facts(completions: list[Any]) -> list[tuple[str, str]]:
    return [(one.text, one.stop) for one in completions]


def plain(text: str) -> Messages:
    return (Message(PLAIN, text),)


# ---- the same answers as the local generator ----


@pytest.mark.parametrize(
    "prompts",
    [TURNS, [plain("Once upon"), plain("é 北"), (Message("user", "Hi"), Message("assistant", "Well, ye"))]],
    ids=["chats", "texts and an open turn"],
)
def test_our_client_gets_the_local_generators_greedy_texts(url, generator, prompts):
    with client(url) as remote:
        theirs = remote.complete(prompts, Sampling(12))
    assert [facts(one) for one in theirs] == [facts(one) for one in generator.complete(prompts, Sampling(12))]


def test_drawn_answers_follow_from_the_seed_and_not_from_what_is_asked_beside_them(url, generator):
    how = Sampling(12, 1.0, top_p=0.95, top_k=40, n=2, seed=5)
    with client(url, concurrency=12) as remote:
        together = remote.complete(TURNS, how)
    seeds = [(5 * 1_000_003 + i) % (1 << 31) for i in range(len(TURNS))]
    alone = [generator.complete([turns], Sampling(12, 1.0, 0.95, 40, 2, seeds[i]))[0] for i, turns in enumerate(TURNS)]
    assert [facts(one) for one in together] == [facts(one) for one in alone]
    assert len({one.text for group in together for one in group}) > len(TURNS)


def test_a_stop_string_ends_an_answer_and_is_reported(url, generator):
    (whole,) = generator.complete(TURNS[:1], Sampling(24))[0]
    stop = (whole.text[5:7], "never")
    with client(url) as remote:
        ((one,),) = remote.complete(TURNS[:1], Sampling(24, stop=stop))
    assert facts([one]) == [(whole.text[: whole.text.find(stop[0])], "stop")]
    _, reply = post(url, "/chat/completions", said(TURNS[0][0].content, max_tokens=24, temperature=0, stop=stop[0]))
    assert (reply["choices"][0]["finish_reason"], reply["choices"][0]["stop_reason"]) == ("stop", stop[0])


def test_our_client_gets_the_local_likelihoods_of_options(url, generator):
    texts = [plain("The answer is"), plain("é 北京 is")]
    options = [[" yes", " no, never"], [" 北", " a city"]]
    with client(url) as remote:
        theirs = remote.likelihood(texts, options)
    mine = generator.likelihood(texts, options)
    for ours, his in zip(chain(*mine), chain(*theirs), strict=True):
        assert (his.error, his.num_tokens, his.greedy) == ("", ours.num_tokens, ours.greedy)
        assert his.logp == pytest.approx(ours.logp, abs=1e-3)


def test_our_client_gets_the_local_likelihoods_of_first_tokens(url, generator):
    prompt = (Message("user", "Which one, A or B?"),)
    (shown,) = post(url, "/chat/completions", said(prompt[0].content, max_tokens=1, logprobs=True, top_logprobs=20))[1][
        "choices"
    ]
    likely = [one["token"] for one in shown["logprobs"]["content"][0]["top_logprobs"] if one["token"].isascii()][:3]
    with client(url) as remote:
        (theirs,) = remote.likelihood([prompt], [likely])
    (mine,) = generator.likelihood([prompt], [likely])
    assert [one.logp for one in theirs] == pytest.approx([one.logp for one in mine], abs=1e-3)


def test_usage_counts_the_tokens_read_and_written(url, generator):
    with client(url) as remote:
        found = remote.complete(TURNS, Sampling(9))
        usage = remote.usage
    assert usage.prompt_tokens == sum(map(len, generator.encode(TURNS)))
    mine = generator.complete(TURNS, Sampling(9))
    assert usage.completion_tokens == sum(group[0].num_tokens for group in mine)
    assert [group[0].num_tokens for group in found] == [group[0].num_tokens for group in mine]


def test_texts_echo_with_a_log_prob_for_every_token_but_the_first(url):
    body = {"model": "tiny", "prompt": "ab é", "max_tokens": 2, "temperature": 0, "echo": True, "logprobs": 2}
    _, reply = post(url, "/completions", body)
    (choice,) = reply["choices"]
    table = choice["logprobs"]
    assert choice["text"].startswith("ab é")
    assert table["text_offset"][:5] == [0, 1, 2, 3, 3]
    assert table["token_logprobs"][0] is table["top_logprobs"][0] is None
    places = list(zip(table["token_logprobs"], table["top_logprobs"], strict=True))[1:]
    assert all(logp <= max(tops.values()) for logp, tops in places)
    assert len(table["tokens"]) == 5 + 2 == reply["usage"]["total_tokens"]


def test_a_closed_assistant_turn_is_followed_by_a_new_one(url, generator):
    turns = [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}, {"role": "assistant", "content": "Yes"}]
    fields = {"model": "tiny", "messages": turns, "max_tokens": 8, "temperature": 0}
    texts = [
        post(url, "/chat/completions", {**fields, **more})[1]["choices"][0]["message"]["content"]
        for more in ({}, {"continue_final_message": True, "add_generation_prompt": False})
    ]
    whole = generator.chat.render([Message("user", "Hi"), Message("assistant", "Yes")], generation_prompt=True)
    assert texts[0] == generator.write([whole], Sampling(8))[0][0].text
    assert (
        texts[1] == generator.complete([(Message("user", "Hi"), Message("assistant", "Yes"))], Sampling(8))[0][0].text
    )


# ---- what is refused ----


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"{", 400, "not JSON"),
        (b"[]", 400, "expected a JSON object, got list"),
        (b'{"model": "tiny", "messages": [{"role": "user", "content": "\\ud800"}]}', 400, "not JSON"),
        ({"model": "tiny"}, 400, "messages: the field is missing"),
        (said("a", model="other"), 404, "no model 'other' here; served: tiny"),
        (said("a", messages=[]), 400, "messages: List should have at least 1 item"),
        (said("a", messages=[{"role": "robot", "content": "a"}]), 400, "messages.0.role: Input should be 'system'"),
        (said("a", messages=[{"role": "user", "content": 7}]), 400, "messages.0.content"),
        (said("a", max_tokens="8"), 400, "max_tokens: Input should be a valid integer"),
        (said("a", max_tokens=0), 400, "max_tokens: Input should be greater than or equal to 1"),
        ({"model": "tiny", "messages": [{"role": "user"}]}, 400, "messages.0.content: the field is missing"),
        (said("a", n=True), 400, "n: Input should be a valid integer"),
        (said("a", temperature=-1), 400, "temperature: Input should be greater"),
        (said("a", top_p=0), 400, "top_p"),
        (said("a", stop=[""]), 400, "a stop string is empty"),
        (said("a", tools=[{}]), 400, "tools.0.type: the field is missing"),
        (said("a", wonder=1), 400, "wonder: this server does not know the field"),
        (said("a", frequency_penalty=0.5), 400, "frequency_penalty: only 0 can be served"),
        (said("a", stream_options={"include_usage": True}), 400, "stream_options goes with stream = true"),
        (said("a", top_logprobs=3), 400, "top_logprobs goes with logprobs"),
        (said("a", tool_choice="required"), 400, "tool_choice: only auto and none"),
        (said("a", continue_final_message=True), 400, "add_generation_prompt = false"),
        (said("a", max_tokens=4000), 400, "exceed the context of 2048"),
        (said("a" * 3000), 400, "exceed the context of 2048"),
    ],
)
def test_what_cannot_be_is_an_error_of_the_protocol(url, body, status, words):
    found, reply = post(url, "/chat/completions", body)
    assert (found, set(reply), set(reply["error"])) == (status, {"error"}, {"message", "type", "param", "code"})
    assert words in reply["error"]["message"]


def test_what_is_null_counts_as_absent(url):
    assert post(url, "/chat/completions", said("a", stop=None, seed=None, stream=None, n=None, tools=None))[0] == 200


def test_an_unknown_address_is_an_error_of_the_protocol(url):
    assert post(url, "/embeddings", {})[1]["error"]["type"] == "invalid_request_error"
    assert httpx2.get(f"{url}/completions").status_code == 405


def test_models_are_listed_and_health_is_reported(url):
    assert [one["id"] for one in httpx2.get(f"{url}/models").json()["data"]] == ["tiny"]
    assert httpx2.get(f"{url.removesuffix('/v1')}/health").json() == {"status": "ok", "waiting": 0, "writing": 0}


def test_without_the_key_nobody_is_served(generator, monkeypatch):
    with served(generator, access=Access("geheim-12345")) as url:
        assert post(url, "/chat/completions", said("a"))[0] == 401
        assert httpx2.get(f"{url}/models").status_code == 401
        assert httpx2.get(f"{url.removesuffix('/v1')}/health").status_code == 200
        with client(url) as remote, pytest.raises(EndpointError, match="check the API key"):
            remote.complete(TURNS[:1], Sampling(4))
        monkeypatch.setenv("TERCET_API_KEY", "geheim-12345")
        with client(url) as remote:
            assert remote.complete(TURNS[:1], Sampling(4))[0][0].stop == "length"


# ---- batches, keys, the log, the end ----


class Gate(threading.Event):
    """Holds every forward pass of a model while it is shut; `sizes` are the tokens that each one reads."""

    def __init__(self, generator: LocalGenerator) -> None:
        super().__init__()
        self.sizes: list[int] = []
        self.set()
        generator.policy.key_shapes()  # which takes a pass of its own the first time
        self.hook = backbone(generator.policy.model).register_forward_pre_hook(self.passed, with_kwargs=True)

    def passed(self, _model: Any, _args: Any, given: dict[str, Any]) -> None:
        self.sizes.append(given["input_ids"].shape[1])
        assert self.wait(30)


@pytest.fixture
def gate(generator: LocalGenerator) -> Iterator[Gate]:
    found = Gate(generator)
    yield found
    found.set()
    found.hook.remove()


def log_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def wait_for(what: Any) -> None:
    end = time.monotonic() + 30
    while not what():
        assert time.monotonic() < end
        time.sleep(0.01)


def batcher_of(generator: LocalGenerator, rows: int = 4) -> Batcher:
    return Batcher({"tiny": ServedModel.of(generator, "tiny")}, rows, 1)


def job(ids: list[int], tokens: int = 4, **more: Any) -> GenerationJob:
    return GenerationJob(ids, Sampling(tokens), model="tiny", **more)


def test_a_request_joins_what_is_being_written(generator, gate):
    gate.clear()
    ids = generator.encode(TURNS)
    with closing(batcher_of(generator)) as batcher:
        (first,) = batcher.submit([job(ids[0], 8)])
        wait_for(lambda: gate.sizes)
        others = batcher.submit([job(one) for one in ids[1:3]])
        gate.set()
        answers = [ticket.answer.result(30) for ticket in (first, *others)]
    joined = len(ids[1]) + len(ids[2])
    assert gate.sizes == [len(ids[0]), 1, joined, 3, 3, 3, 1, 1, 1]
    for one, answer in zip(ids, answers, strict=False):
        tokens = answer.completions[0].num_tokens
        assert facts(answer.completions) == facts(generator.write([one], Sampling(tokens))[0])


def test_more_samples_than_there_are_rows_come_one_after_another(generator, gate):
    (ids,) = generator.encode(TURNS[:1])
    how = Sampling(6, 1.0, n=5)
    with closing(batcher_of(generator, 2)) as batcher:
        (ticket,) = batcher.submit([GenerationJob(ids, how, 3, model="tiny")])
        found = ticket.answer.result(30)
    assert max(gate.sizes[1:3]) == 2
    alone = generator.write([ids], Sampling(6, 1.0, n=5, seed=3))[0]
    assert facts(found.completions) == facts(alone)


def test_a_cancelled_task_is_not_written_on_and_a_closed_batcher_refuses(generator, gate):
    gate.clear()
    ids = generator.encode(TURNS[:3])
    batcher = batcher_of(generator)
    (first,) = batcher.submit([job(ids[0], 64)])
    wait_for(lambda: gate.sizes)
    waiting, kept = batcher.submit([job(ids[1]), job(ids[2])])
    assert [batcher.place(ticket) for ticket in (first, waiting, kept)] == [0, 1, 2]
    first.cancel()
    waiting.cancel()
    assert batcher.place(kept) == 1
    gate.set()
    kept.answer.result(30)
    batcher.close()
    assert gate.sizes == [len(ids[0]), len(ids[2]), 1, 1, 1]
    assert not waiting.rows
    with pytest.raises(BatcherClosed):
        batcher.submit([job(ids[0])])


def test_a_model_that_fails_fails_what_it_wrote_and_not_the_server(generator, gate):
    with served(generator) as url:
        gate.sizes = None  # type: ignore[assignment]
        status, reply = post(url, "/chat/completions", said("a"), **{"Idempotency-Key": "k"})
        gate.sizes = []
        assert (status, reply["error"]["type"]) == (500, "server_error")
        assert post(url, "/chat/completions", said("a"), **{"Idempotency-Key": "k"})[0] == 200


def test_where_memory_runs_out_the_same_is_written_with_half_the_rows(generator, gate):
    ids = generator.encode(TURNS[:4])
    passed = gate.passed
    full = iter([False, False, True])

    def scarce(*given: Any) -> None:
        passed(*given)
        if next(full, False):
            raise RuntimeError("CUDA out of memory")

    gate.hook.remove()
    gate.hook = backbone(generator.policy.model).register_forward_pre_hook(scarce, with_kwargs=True)
    with closing(batcher_of(generator)) as batcher:
        tickets = batcher.submit([job(one) for one in ids])
        answers = [ticket.answer.result(30) for ticket in tickets]
    assert max(gate.sizes[4:6]) == 2
    for one, answer in zip(ids, answers, strict=True):
        assert facts(answer.completions) == facts(generator.write([one], Sampling(4))[0])


def test_a_key_that_comes_again_gets_the_same_reply_and_nothing_is_written(generator, gate, tmp_path):
    body = said("a", temperature=1.0)
    with served(generator, log=tmp_path / "log") as url, ThreadPoolExecutor(4) as pool:
        gate.clear()
        futures = [pool.submit(post, url, "/chat/completions", body, **{"Idempotency-Key": "k"}) for _ in range(4)]
        wait_for(lambda: gate.sizes)
        gate.set()
        replies = [future.result() for future in futures]
        replies.append(post(url, "/chat/completions", body, **{"Idempotency-Key": "k"}))
        other = post(url, "/chat/completions", said("b"), **{"Idempotency-Key": "k"})
        free = post(url, "/chat/completions", body)
    assert all(reply == replies[0] for reply in replies)
    assert (other[0], other[1]["error"]["code"]) == (400, "key_reused")
    assert free[1]["id"] != replies[0][1]["id"]
    lines = log_of(tmp_path / "log")
    assert [line["again"] for line in lines if line["status"] == 200].count(False) == 2
    assert len({line["id"] for line in lines if line["status"] == 200}) == 2
    written = replies[0][1]["usage"]["completion_tokens"]
    # drawn anew, so of its own length; its prompt was read before
    assert len(gate.sizes) == written + free[1]["usage"]["completion_tokens"] - 1
    assert lines[0].items() >= {"key": "k", "model": "tiny", "completion_tokens": written, "gone": False}.items()
    assert lines[0]["request"] == lines[-1]["request"]


def test_a_reply_with_log_probs_is_not_remembered(generator):
    body = said("a", max_tokens=1, logprobs=True, top_logprobs=2)
    with served(generator) as url:
        replies = [post(url, "/chat/completions", body, **{"Idempotency-Key": "k"})[1] for _ in range(2)]
    assert replies[0]["id"] != replies[1]["id"]


@pytest.mark.parametrize("streams", [False, True], ids=["whole", "in pieces"])
def test_a_client_that_hangs_up_ends_the_writing(generator, gate, tmp_path, streams):
    with served(generator, log=tmp_path / "log") as url:
        gate.clear()
        host, port = url.removesuffix("/v1").removeprefix("http://").split(":")
        data = json.dumps(said("a", max_tokens=400, stream=streams)).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(data)}\r\n\r\n".encode()
        clients = []
        for _ in range(2):  # the first one is being written, the second one waits
            clients.append(socket.create_connection((host, int(port))))
            clients[-1].sendall(head + data)
            wait_for(lambda: gate.sizes)
        time.sleep(0.2)
        for one in clients:
            one.close()
        wait_for(lambda: (tmp_path / "log").is_file() and len(log_of(tmp_path / "log")) == 2)
        gate.set()
        status, _ = post(url, "/chat/completions", said("b", max_tokens=2))
    assert status == 200
    assert [(line["status"], line["gone"]) for line in log_of(tmp_path / "log")[:2]] == [(499, True)] * 2
    assert len(gate.sizes) <= 5


def test_an_answer_with_a_key_is_written_to_its_end_when_the_client_is_gone(generator, gate, tmp_path):
    body = said("a", max_tokens=6)
    with served(generator, log=tmp_path / "log") as url:
        gate.clear()
        with pytest.raises(httpx2.ReadTimeout):
            httpx2.post(f"{url}/chat/completions", json=body, headers={"Idempotency-Key": "k"}, timeout=0.5)
        gate.set()
        wait_for(lambda: (tmp_path / "log").is_file())
        post(url, "/chat/completions", body, **{"Idempotency-Key": "k"})
    lines = log_of(tmp_path / "log")
    assert [(line["status"], line["gone"], line["again"]) for line in lines[:1]] == [(200, True, False)]
    assert lines[1]["again"]
    assert lines[1]["answer"] == lines[0]["answer"]


def test_at_the_end_what_is_written_is_finished_and_what_waits_is_refused(generator, gate):
    with ThreadPoolExecutor(2) as pool:
        with served(generator, rows=1) as url:
            gate.clear()
            first = pool.submit(post, url, "/chat/completions", said("a"))
            wait_for(lambda: gate.sizes)
            second = pool.submit(post, url, "/chat/completions", said("b"))
            time.sleep(0.3)
            threading.Timer(0.5, gate.set).start()
        assert first.result()[0] == 200
        assert (second.result()[0], second.result()[1]["error"]["code"]) == (503, "shutting_down")


def test_the_verb_serves_and_an_interrupt_ends_it_cleanly(tiny_folder, tmp_path):
    command = [sys.executable, "-m", "tercet", "serve", str(tiny_folder), "--port", "0", "--dtype", "float32"]
    with subprocess.Popen(
        [*command, "--store", str(tmp_path / "runs"), "--name", "a", "--name", "b", "--log", str(tmp_path / "log")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        text=True,
    ) as child:
        try:
            assert child.stdout
            line = child.stdout.readline()
            match = re.fullmatch(r"serving a and b at (http://127\.0\.0\.1:\d+/v1); Ctrl-C ends it\n", line)
            assert match, child.stderr.read() if child.stderr else ""
            with client(match[1], "b", retries=6, backoff=0.1) as remote:
                assert remote.complete(TURNS[:2], Sampling(4))[0][0].stop == "length"
            child.send_signal(signal.SIGINT)
            _, errors = child.communicate(timeout=60)
        finally:
            child.kill()
    assert (child.returncode, "Traceback" in errors) == (0, False)
    assert len(log_of(tmp_path / "log")) == 2


def test_the_verb_says_when_the_port_is_taken(capsys, tmp_path):
    from tercet.cli.main import main

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["serve", "tiny:", "--port", port, "--store", str(tmp_path)]) == 2
    assert f"port {port}" in capsys.readouterr().err
