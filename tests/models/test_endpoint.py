"""A server that fails in every way it can loses no item and spoils none; what cannot succeed says so once."""

from __future__ import annotations

import math
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from email.utils import formatdate
from typing import Any

import pytest
from flaky_server import FAULTS, Fault, FlakyServer, meant

from tercet.models.openai import payloads
from tercet.models.openai.endpoint import EndpointGenerator
from tercet.models.openai.pacing import Clock, Limits, RateLimiter
from tercet.models.openai.payloads import EndpointError
from tercet.rows import PLAIN, Message, Messages, Sampling, Seeded

KEY = "sk-test-do-not-show-0123456789"
GREEDY = Sampling(16)


class Minutes(Clock):
    """Time that passes only by waiting, and remembers how long was waited."""

    def __init__(self) -> None:
        self.time, self.lock = 1000.0, threading.Lock()
        self.waits: list[float] = []

    def now(self) -> float:
        return self.time

    def wait(self, seconds: float, stopped: threading.Event) -> None:
        with self.lock:
            self.time += seconds
            self.waits.append(seconds)


@contextmanager
def served(fault: Fault = lambda prompt, attempt: "", **limits: Any) -> Iterator[tuple[FlakyServer, EndpointGenerator]]:
    """A server and a client whose pauses take no time."""
    with FlakyServer(fault) as server, closing(EndpointGenerator.open(server.url, "m", **limits)) as generator:
        generator.clock = Minutes()
        yield server, generator


def chats(*texts: str) -> list[Messages]:
    return [(Message("user", text),) for text in texts]


def plain(text: str) -> Messages:
    return (Message(PLAIN, text),)


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TERCET_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def often(prompt: str, attempt: int) -> str:
    """Half of all first attempts fail, a third of the second ones, and so on; some prompts never succeed."""
    if prompt.startswith("doomed"):
        return FAULTS[(len(prompt) + attempt) % 3]
    if prompt.startswith("long"):
        return "400 this prompt is too long"
    chance = random.Random(f"{prompt}/{attempt}")
    return chance.choice(FAULTS) if chance.random() < 1 / (attempt + 2) else ""


@pytest.mark.parametrize("n", [1, 3])
def test_all_items_end_answered_or_as_errors_and_none_is_lost_or_wrong(n):
    texts = [f"question {i}" for i in range(60)]
    texts[7], texts[23], texts[41] = "doomed", "long prompt", "doomed too"
    seen: list[int] = []
    threads = set()

    def done(i: int, group: list[Any]) -> None:
        seen.append(i)
        threads.add(threading.current_thread())
        assert len(group) == n

    with served(often, timeout=0.5, retries=12) as (server, generator):
        found = generator.complete(chats(*texts), Sampling(16, 1.0, n=n), done)
        usage = generator.usage
    for i, (text, group) in enumerate(zip(texts, found, strict=True)):
        if i in (7, 23, 41):
            assert [(one.text, one.stop) for one in group] == [("", "error")] * n
            assert ("too long" if i == 23 else "no answer after 13 attempts") in group[0].error
        else:
            assert [(one.text, one.stop, one.error) for one in group] == [(meant(text, s), "eos", "") for s in range(n)]
    assert sorted(seen) == list(range(60))
    assert threads == {threading.current_thread()}
    assert usage.failed == 3
    assert usage.requests - usage.retries == 60
    assert usage.retries >= sum(server.asked.values()) - 60
    answered = [text for i, text in enumerate(texts) if i not in (7, 23, 41)]
    assert usage.completion_tokens == sum(len(meant(text, s).split()) for text in answered for s in range(n))


def test_seeds_of_their_own_are_those_of_prompts_asked_alone():
    with served() as (server, generator):
        generator.complete(chats("a", "b"), Seeded(16, 1.0, seeds=(5, 9)))
        together = sorted((body["messages"][0]["content"], body["seed"]) for body in server.bodies)
        server.bodies.clear()
        for text, seed in (("a", 5), ("b", 9)):
            generator.complete(chats(text), Sampling(16, 1.0, seed=seed))
        assert sorted((body["messages"][0]["content"], body["seed"]) for body in server.bodies) == together


def test_a_question_has_one_idempotency_key_however_often_it_is_put_again():
    with served(lambda prompt, attempt: "500" if attempt < 2 else "") as (server, generator):
        generator.complete(chats("a", "b"), GREEDY)
        generator.complete(chats("a"), Sampling(17))
    assert len(server.marks) == 7
    assert len(set(server.marks)) == 3
    assert all(len(mark) == 64 for _, mark in server.marks)


def test_a_thread_that_is_stopped_stops_no_other():
    """Many threads may ask one generator, as a logged model does."""
    with (
        served(lambda prompt, attempt: "slow" if prompt == "late" and not attempt else "", timeout=1.0) as (
            _,
            generator,
        ),
        ThreadPoolExecutor(2) as pool,
    ):
        late = pool.submit(generator.complete, chats("late"), GREEDY)

        def give_up(i: int, group: list[Any]) -> None:
            raise KeyError("enough")

        with pytest.raises(KeyError):
            generator.complete(chats("x", "y"), GREEDY, give_up)
        assert late.result()[0][0].text == meant("late")


def patience(fault: str) -> float:
    """Seconds to wait for an answer: few where the fault is to be late, else more than a loaded machine needs."""
    return 0.4 if fault in ("slow", "drip") else 30.0


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_alone_is_asked_again_and_counted_once(fault):
    first_fails = served(lambda prompt, attempt: "" if attempt else fault, timeout=patience(fault), price=(2.0, 30.0))
    with first_fails as (server, generator):
        ((one,),) = generator.complete(chats("why"), GREEDY)
        usage = generator.usage
    assert one.text == meant("why")
    assert usage.failed == 0
    assert usage.requests == usage.retries + 1 == server.asked["why"]
    assert usage.retries == 1 or patience(fault) < 1
    assert (usage.prompt_tokens, usage.completion_tokens) == (3, 2)
    assert usage.cost == pytest.approx((3 * 2.0 + 2 * 30.0) / 1e6)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_prompt_that_always_fails_is_an_error_and_the_others_are_answered(fault):
    doomed = served(lambda prompt, attempt: fault if prompt == "doomed" else "", timeout=patience(fault), retries=2)
    with doomed as (_, generator):
        first, second, third = generator.complete(chats("a", "doomed", "b"), GREEDY)
        assert (generator.usage.failed, generator.usage.cost) == (1, None)
    assert (first[0].text, third[0].text) == (meant("a"), meant("b"))
    assert second[0].stop == "error"
    assert second[0].token_ids == second[0].logps == ()
    assert second[0].error.startswith("no answer after 3 attempts; the last one: ")


def test_pauses_double_with_some_chance_up_to_a_limit():
    with served(lambda prompt, attempt: "500" if attempt < 6 else "", longest_backoff=8.0) as (_, generator):
        generator.clock = clock = Minutes()
        generator.complete(chats("a"), GREEDY)
    waits = clock.waits
    assert [longest / 2 <= wait <= longest for wait, longest in zip(waits, (1, 2, 4, 8, 8, 8), strict=True)] == [
        True
    ] * 6
    assert len(set(waits)) == 6


def test_the_server_may_ask_for_a_longer_pause_and_nobody_else_asks_meanwhile():
    with served(lambda prompt, attempt: "429" if (prompt, attempt) == ("a", 0) else "", concurrency=1) as (
        _,
        generator,
    ):
        start = generator.clock.now()
        generator.complete(chats("a", "b"), GREEDY)
        assert generator.clock.now() - start == 7.0
    clock, pace = Minutes(), RateLimiter(Limits())
    pace.hold(7.0, clock)
    pace.enter(1, clock, threading.Event())
    assert clock.waits == [7.0]


def test_retry_after_is_read_as_seconds_or_as_a_date_and_capped():
    assert payloads.retry_after("7") == 7.0
    assert 50 < payloads.retry_after(formatdate(time.time() + 60, usegmt=True)) <= 60
    assert payloads.retry_after(formatdate(time.time() - 60, usegmt=True)) == 0.0
    assert payloads.retry_after("86400") == payloads.LONGEST_PAUSE
    assert (
        payloads.retry_after("soon")
        == payloads.retry_after("")
        == payloads.retry_after("nan")
        == payloads.retry_after("-3")
        == 0.0
    )


def test_no_minute_holds_more_requests_than_allowed():
    clock, pace = Minutes(), RateLimiter(Limits(requests_per_minute=30))
    starts: list[float] = []

    def worker() -> None:
        for _ in range(10):
            pace.enter(100, clock, threading.Event())
            with lock:
                starts.append(clock.now())

    lock = threading.Lock()
    threads = [threading.Thread(target=worker) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    starts.sort()
    assert len(starts) == 80
    assert starts[-1] - starts[0] >= 79 * 2.0 - 1e-6


def test_the_rates_hold_for_real_requests_and_unused_tokens_are_given_back():
    with served(concurrency=1, requests_per_minute=60) as (_, generator):
        start = generator.clock.now()
        generator.complete(chats(*"abcdefg"), GREEDY)
        assert generator.clock.now() - start == pytest.approx(6.0)
    with served(concurrency=1, tokens_per_minute=60) as (_, generator):
        start = generator.clock.now()
        generator.complete(chats("xxxxxxxx", "yyyyyyyy", "z"), Sampling(1000))
        assert generator.clock.now() - start == pytest.approx(20.0)  # 8 read and 2 written, one a second


@pytest.mark.parametrize(
    ("status", "hint"),
    [(401, "check the API key"), (403, "the key may not use"), (404, "ends in /v1"), (402, "no credit"), (307, "URL")],
)
def test_what_no_request_can_survive_stops_the_run_at_once(status, hint):
    with served(lambda prompt, attempt: f"{status} go away", concurrency=2) as (server, generator):
        with pytest.raises(EndpointError, match=rf"answered {status}: go away; .*{hint}.*'m'"):
            generator.complete(chats(*map(str, range(50))), GREEDY)
        assert sum(server.asked.values()) <= 8


def test_an_empty_account_is_not_asked_again():
    with (
        served(lambda prompt, attempt: "429 insufficient_quota: pay first") as (_, generator),
        pytest.raises(EndpointError, match="no credit left"),
    ):
        generator.complete(chats("a"), GREEDY)


def test_a_wrong_key_is_not_shown_even_when_the_server_repeats_it(monkeypatch):
    monkeypatch.setenv("TERCET_API_KEY", KEY)
    with FlakyServer(key="another") as server, closing(EndpointGenerator.open(server.url, "m")) as g:
        with pytest.raises(EndpointError, match=r"401: bad key Bearer \[key\]; check the API key") as caught:
            g.complete(chats("a"), GREEDY)
        assert KEY not in str(caught.value) + repr(g) + repr(g._wire.client.headers) + repr(g.limits)


def test_the_key_is_sent_and_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv("TERCET_API_KEY", f"{KEY}\n")
    with FlakyServer(key=KEY) as server, closing(EndpointGenerator.open(server.url, "m")) as generator:
        assert generator.complete(chats("a"), GREEDY)[0][0].text == meant("a")


def test_the_key_for_openai_goes_to_no_other_host_unasked(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for url, sent in (("http://127.0.0.1:1/v1", False), ("https://api.openai.com/v1", True)):
        with closing(EndpointGenerator.open(url, "m")) as generator:
            assert ("authorization" in generator._wire.client.headers) == sent


@pytest.mark.parametrize(
    ("url", "options", "message"),
    [
        ("127.0.0.1:8000/v1", {}, "expected a base URL"),
        ("ftp://host/v1", {}, "expected a base URL"),
        ("https://me:secret@host/v1", {}, "without a user name"),
        ("http://host/v1", {"concurrency": 0}, "expected positive limits"),
        ("http://host/v1", {"tokens_per_minute": 0}, "expected positive limits"),
    ],
)
def test_bad_settings_are_refused_at_once(url, options, message):
    with pytest.raises(EndpointError, match=message) as caught:
        EndpointGenerator.open(url, "m", **options)
    assert "secret" not in str(caught.value)


def test_a_server_that_was_never_there_stops_the_run():
    with FlakyServer() as server:
        url = server.url
    with closing(EndpointGenerator.open(url, "m", retries=2)) as generator:
        generator.clock = Minutes()
        with pytest.raises(EndpointError, match=r"cannot be reached .*is the server running"):
            generator.complete(chats("a", "b"), GREEDY)


def test_an_error_in_done_stops_what_was_not_sent():
    def done(i: int, group: list[Any]) -> None:
        raise RuntimeError("disk full")

    with served(concurrency=1) as (server, generator):
        with pytest.raises(RuntimeError, match="disk full"):
            generator.complete(chats(*map(str, range(200))), GREEDY, done)
        assert sum(server.asked.values()) < 200
        assert generator.complete(chats("again"), GREEDY)[0][0].text == meant("again")


def test_no_prompts_need_no_requests():
    with served() as (server, generator):
        assert generator.complete([], GREEDY) == generator.likelihood([], []) == []
    assert server.bodies == []


def test_the_body_says_what_was_asked():
    with served() as (server, generator):
        generator.complete(chats("a"), Sampling(32, stop=("Q:",)))
        generator.complete([plain("raw")], Sampling(8, temperature=0.6, top_p=0.9, top_k=40, n=2, seed=3))
        (open_turn,) = generator.complete([(Message("user", "a"), Message("assistant", "So"))], GREEDY)
    chat, raw, opened = server.bodies
    assert chat == {
        "model": "m",
        "messages": [{"role": "user", "content": "a"}],
        "n": 1,
        "max_tokens": 32,
        "temperature": 0.0,
        "stop": ["Q:"],
    }
    assert {**raw, "seed": 3} == {
        "model": "m",
        "prompt": "raw",
        "n": 2,
        "max_tokens": 8,
        "temperature": 0.6,
        "top_p": 0.9,
        "top_k": 40,
        "seed": 3,
    }
    assert (opened["continue_final_message"], opened["add_generation_prompt"]) == (True, False)
    assert open_turn[0].text == meant("So")


def test_prompts_have_different_seeds_and_a_seed_is_kept():
    drawn = [
        payloads.question(chats("a")[0], Sampling(8, 1.0, seed=seed), i)[1]["seed"] for seed in (0, 1) for i in (0, 1)
    ]
    assert len(set(drawn)) == 4
    assert drawn[0] == payloads.question(chats("b")[0], Sampling(8, 1.0, seed=0), 0)[1]["seed"]


@pytest.mark.parametrize(
    ("choice", "stop", "text"),
    [
        ({"finish_reason": "length"}, "length", meant("a b")),
        ({"finish_reason": "stop", "stop_reason": "Q:"}, "stop", meant("a b")),
        ({"finish_reason": "stop", "stop_reason": 2}, "eos", meant("a b")),
        ({"message": {"content": "yes Q: more"}}, "stop", "yes "),
        ({"message": {"content": "yes 5: more"}}, "stop", "yes "),
        ({"message": {"content": None}, "finish_reason": "length"}, "length", ""),
        ({"finish_reason": "content_filter"}, "error", ""),
    ],
)
def test_it_says_why_it_stopped(choice, stop, text):
    with served() as (server, generator):
        server.choice = choice
        ((one,),) = generator.complete(chats("a b"), Sampling(8, stop=("Q:", "2:", "3:", "4:", "5:")))
        assert len(server.bodies[0]["stop"]) == 4
    assert (one.stop, one.text) == (stop, text)
    assert one.num_tokens == 3
    assert bool(one.error) == (stop == "error")


REPLIES: list[Any] = [
    None,
    [],
    "text",
    {"choices": None},
    {"choices": [None]},
    {"choices": [{"index": [0]}]},
    {"choices": [{"index": 0, "finish_reason": "stop", "message": []}]},
    {"choices": [{"index": 0, "finish_reason": 3, "message": {"content": "x"}}], "usage": []},
    {"choices": [{"logprobs": [1]}]},
    {"choices": [{"logprobs": {"content": [{"top_logprobs": [{"token": "A"}]}]}}]},
    {"choices": [{"logprobs": {"tokens": [1], "token_logprobs": ["x"], "text_offset": [None]}}]},
    {"choices": [{"logprobs": {"content": 5, "tokens": 5}}], "usage": {"prompt_tokens": "many"}},
]


@pytest.mark.parametrize("reply", REPLIES)
@pytest.mark.parametrize("ask", ["complete", "chat options", "plain options"])
def test_a_reply_of_another_shape_is_an_error_of_its_item(reply, ask, monkeypatch):
    monkeypatch.setattr("flaky_server.Handler.good", lambda self, body, prompt: reply)
    with served(retries=1) as (_, generator):
        if ask == "complete":
            errors = [generator.complete(chats("a"), GREEDY)[0][0].error]
        else:
            prompt = plain("a") if ask == "plain options" else chats("a")[0]
            errors = [one.error for one in generator.likelihood([prompt], [["b", "c"]])[0]]
    assert all(errors)


@pytest.mark.parametrize("bos", ["", "<s>"])
def test_options_of_plain_prompts_are_summed_over_their_own_tokens(bos):
    with served() as (server, generator):
        server.bos = bos
        found = generator.likelihood([plain("one two"), plain("é")], [[" three four", " ab"], [" nine"]])
    assert [[(one.logp, one.num_tokens, one.greedy) for one in group] for group in found] == [
        [(-9 / 8, 2, False), (-2 / 8, 1, True)],
        [(-4 / 8, 1, False)],
    ]
    assert all(body["echo"] and body["max_tokens"] == 1 for body in server.bodies)


def test_offsets_serve_where_tokens_are_pieces_of_characters():
    def reply(**table: Any) -> dict[str, Any]:
        return {"choices": [{"logprobs": table}]}

    pieces = {"tokens": ["bytes:\\xc3", "bytes:\\xa9", " ok", "."], "token_logprobs": [None, -1.0, -2.0, -3.0]}
    assert payloads.echoed(reply(**pieces, text_offset=[0, 0, 1, 4]), "é", " ok").logp == -2.0
    with pytest.raises(payloads.RequestRefused, match="do not line up"):  # whose piece is the second?
        payloads.echoed(reply(**pieces, text_offset=[0, 1, 1, 4]), "é", " ok")
    with pytest.raises(payloads.RequestRefused, match="do not line up"):
        payloads.echoed(reply(**pieces, text_offset=[0, 3, 4, 7]), "é abc", " ok")


def test_an_option_without_tokens_of_its_own_has_an_error():
    with served() as (_, generator):
        ((one,),) = generator.likelihood([plain("one tw")], [["o"]])
    assert math.isnan(one.logp)
    assert "do not line up" in one.error


def test_a_server_that_does_not_echo_is_an_error():
    with served() as (server, generator):
        server.echoes = False
        ((one,),) = generator.likelihood([plain("a")], [[" b"]])
    assert math.isnan(one.logp)
    assert "does not echo" in one.error


def test_options_of_a_conversation_are_found_among_the_likeliest_tokens():
    with served() as (server, generator):
        server.likely = [("A", -0.5), (" A", -1.5), ("B", -2.0), ("Par", -3.0)]
        ((first, second),) = generator.likelihood(chats("q"), [["A", "B"]])
        ((blank, other),) = generator.likelihood(chats("q"), [[" A", " B"]])
        ((found, missing),) = generator.likelihood(chats("q"), [["A", "Paris"]])
    assert (first.logp, first.num_tokens, first.greedy) == (pytest.approx(-0.5), 1, True)
    assert (second.logp, second.greedy) == (pytest.approx(-2.0), False)
    both = math.log(math.exp(-0.5) + math.exp(-1.5))
    assert (blank.logp, blank.greedy, other.logp) == (pytest.approx(both), True, pytest.approx(-2.0))
    assert found.error == ""
    assert math.isnan(missing.logp)
    assert "'Paris' is not among the server's 4 likeliest" in missing.error
    assert server.bodies[0]["top_logprobs"] == 20


def test_options_survive_a_flaky_server():
    with served(often, timeout=0.5, retries=12) as (server, generator):
        server.likely = [("A", -0.5), ("B", -2.0)]
        prompts = [*chats(*(f"q {i}" for i in range(12))), *(plain(f"p {i}") for i in range(12))]
        found = generator.likelihood(prompts, [["A", "B"]] * 12 + [[" yes", " no"]] * 12)
    assert [[round(one.logp, 6) for one in group] for group in found] == [[-0.5, -2.0]] * 12 + [[-0.375, -0.25]] * 12


def test_the_end_token_cannot_be_scored():
    with served() as (_, generator), pytest.raises(EndpointError, match="close=False"):
        generator.likelihood(chats("q"), [["A"]], close=True)


def test_it_needs_no_torch():
    script = "import sys; sys.modules['torch'] = None; import tercet.models.openai.endpoint"
    subprocess.run([sys.executable, "-c", script], check=True)
