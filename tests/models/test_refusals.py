"""What a server does not take is left out once and for all; what it never answers is not asked for every item."""

from __future__ import annotations

import json
from typing import Any

import pytest
from flaky_server import meant
from test_endpoint import GREEDY, chats, served

from tercet.models.openai import payloads
from tercet.models.openai.payloads import EndpointError
from tercet.models.openai.refusals import PATIENCE, Refusals
from tercet.rows import DetailedMessage, Message, Sampling

REASONING_ONLY = {  # what OpenAI's reasoning models say of our requests
    "max_tokens": "Unsupported parameter: 'max_tokens' is not supported with this model. "
    "Use 'max_completion_tokens' instead.",
    "temperature": "Unsupported value: 'temperature' does not support 0.7 with this model. "
    "Only the default (1) value is supported.",
    "stop": "Unsupported parameter: 'stop' is not supported with this model.",
}


def reasoning_model(body: dict[str, Any]) -> dict[str, Any] | None:
    """Refuses one parameter at a time, as OpenAI does."""
    name = next((name for name in REASONING_ONLY if name in body), "")
    return {"message": REASONING_ONLY[name], "param": name, "code": "unsupported_parameter"} if name else None


def test_a_parameter_that_is_refused_is_left_out_once_and_for_all_and_said_once(capfd):
    with served(concurrency=1) as (server, generator):
        server.refuse = reasoning_model
        found = generator.complete(chats("a", "b", "c"), Sampling(16, 0.7, stop=("#",)))
        usage = generator.usage
    assert [group[0].text for group in found] == [meant(text).partition("#")[0] for text in "abc"]  # cut here
    assert usage.requests == 3 + 3
    assert usage.failed == 0
    assert server.bodies[-1].keys() == {"model", "messages", "n", "max_completion_tokens", "seed"}
    assert server.bodies[-1]["max_completion_tokens"] == 16
    said = capfd.readouterr().err.splitlines()
    assert [line.split("'")[1] for line in said] == ["max_tokens", "temperature", "stop"]
    assert "is sent as max_completion_tokens of every further request" in said[0]
    assert "Only the default (1) value is supported" in said[1]


@pytest.mark.parametrize(
    ("message", "param", "left_out"),
    [
        ("Extra inputs are not permitted", "top_k", "top_k"),
        (
            "[{'type': 'extra_forbidden', 'loc': ('body', 'top_k'), 'msg': 'Extra inputs are not permitted'}]",
            "",
            "top_k",
        ),
        ("Unrecognized request argument supplied: top_k", "", "top_k"),
        ("only n = 1 is supported by this server", "", "n"),
        ("Additional properties are not allowed ('reasoning_content' was unexpected)", "", "reasoning_content"),
        ("This model's maximum context length is 4096 tokens, max_tokens is too large: 9000", "max_tokens", ""),
        ("messages: roles must alternate; 'system' is not supported", "messages", ""),
        ("the prompt is too long", "", ""),
    ],
)
def test_only_a_parameter_that_was_sent_and_can_be_spared_is_left_out(message, param, left_out):
    turn = {"role": "assistant", "content": "4", "reasoning_content": "2 and 2"}
    body = {"messages": [turn], "n": 3, "top_k": 20, "max_tokens": 8}
    refusals = Refusals("http://n.top_k/v1")
    assert refusals.learn(f"http://n.top_k/v1/chat/completions answered 400: {message}", param, body) == bool(left_out)
    fitted = refusals.fitted(body)
    if left_out == "reasoning_content":
        assert fitted == body | {"messages": [{"role": "assistant", "content": "4"}]}
    else:
        assert fitted == {key: value for key, value in body.items() if key != left_out}


def test_other_servers_say_in_other_places_what_they_refuse():
    fastapi = '{"detail": [{"type": "extra_forbidden", "loc": ["body", "top_k"], "msg": "Extra inputs are forbidden"}]}'
    vllm = '{"object": "error", "message": "top_k is not supported", "type": "BadRequestError", "param": null}'
    assert payloads.error_param(fastapi) == "top_k"
    assert "Extra inputs are forbidden" in payloads.error_text(fastapi)
    assert (payloads.error_text(vllm), payloads.error_param(vllm)) == ("top_k is not supported", "")
    assert payloads.error_text('{"error": "out of order"}') == "out of order"
    assert [payloads.error_param(text) for text in ("[1]", "no JSON", '{"detail": [{"loc": []}]}')] == ["", "", ""]


@pytest.mark.parametrize("refuse", [False, True])
def test_a_server_that_ignores_n_or_refuses_it_is_asked_singly_with_other_seeds(refuse, capfd):
    with served(concurrency=1) as (server, generator):
        server.most = 1
        if refuse:
            server.refuse = lambda body: {"message": "'n' is not supported"} if "n" in body else None
        found = generator.complete(chats("a", "b"), Sampling(16, 1.0, n=3))
        usage = generator.usage
    assert [[one.text for one in group] for group in found] == [[meant("a")] * 3, [meant("b")] * 3]
    assert all(one.counted == 2 for group in found for one in group)
    seeds = [body["seed"] for body in server.bodies if not refuse or "n" not in body]
    assert len(set(seeds)) == len(seeds) == 6
    assert sum("n" in body for body in server.bodies) == 1
    assert usage.requests == 6 + refuse
    assert "'n' is left out of every further request" in capfd.readouterr().err


def test_sixty_identical_refusals_are_not_sent_sixty_times():
    with served(concurrency=4) as (server, generator):
        server.refuse = lambda body: {"message": "this model writes no text"}
        with pytest.raises(EndpointError, match=rf"came {PATIENCE} times in a row.*writes no text.*\(model 'm'\)"):
            generator.complete(chats(*(f"question {i}" for i in range(60))), GREEDY)
        assert sum(server.asked.values()) <= PATIENCE + 8


@pytest.mark.parametrize(
    "error", [lambda i: f"prompt of {i} tokens is too long", lambda i: "filtered by the content policy"]
)
def test_refusals_of_single_prompts_stop_nothing(error):
    with served(concurrency=4) as (server, generator):
        server.refuse = lambda body: {"message": error(body["messages"][0]["content"])}
        found = generator.complete(chats(*map(str, range(60))), GREEDY)
    assert all(group[0].stop == "error" for group in found)


def test_an_answer_between_starts_the_count_again():
    with served(concurrency=1) as (server, generator):
        server.refuse = lambda body: {"message": "no"} if int(body["messages"][0]["content"]) % 10 else None
        assert len(generator.complete(chats(*map(str, range(60))), GREEDY)) == 60


@pytest.mark.parametrize(
    ("message", "reason", "text"),
    [
        ({"content": "4", "reasoning_content": "2 and 2"}, "stop", "<think>\n2 and 2\n</think>\n\n4"),
        ({"content": "4", "reasoning": "2 and 2"}, "stop", "<think>\n2 and 2\n</think>\n\n4"),
        ({"content": None, "reasoning": "2 and"}, "length", "<think>\n2 and"),
        ({"content": "", "reasoning_content": "2 and"}, "length", "<think>\n2 and"),
        ({"content": None, "reasoning": "2 and 2"}, "stop", "<think>\n2 and 2\n</think>\n\n"),
        ({"content": [{"type": "text", "text": "fo"}, {"type": "text", "text": "ur"}]}, "stop", "four"),
        (
            {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "2+2"}]}, {"text": "4"}]},
            "stop",
            "<think>\n2+2\n</think>\n\n4",
        ),
        ({"content": "4", "reasoning_content": None, "reasoning": ""}, "stop", "4"),
    ],
)
def test_a_thought_stands_before_the_answer_however_the_server_sends_them(message, reason, text):
    with served() as (server, generator):
        server.choice = {"message": message, "finish_reason": reason}
        ((one,),) = generator.complete(chats("a"), GREEDY)
    assert (one.text, one.stop, one.error) == (text, {"stop": "eos"}.get(reason, reason), "")


def test_stop_strings_cut_the_answer_and_not_the_thought():
    with served() as (server, generator):
        server.choice = {"message": {"content": "yes Q: more", "reasoning": "Q: why?"}}
        ((one,),) = generator.complete(chats("a"), Sampling(16, stop=("Q:",)))
    assert (one.text, one.stop) == ("<think>\nQ: why?\n</think>\n\nyes ", "stop")


def test_parameters_of_the_recipe_are_laid_over_the_request():
    extra = {"reasoning_effort": "low", "top_k": 5, "temperature": 1.0}
    with served(extra=extra) as (server, generator):
        generator.complete(chats("a"), GREEDY)
        server.likely = [("A", -0.5)]
        generator.likelihood(chats("a"), [["A"]])
    wrote, looked = server.bodies
    assert {**wrote, "messages": 0} == {
        "model": "m",
        "messages": 0,
        "n": 1,
        "max_completion_tokens": 16,
        **extra,
    }
    assert (looked["max_tokens"], looked["top_k"], "reasoning_effort" in looked) == (1, 5, False)
    with served(extra={"max_completion_tokens": 4000}) as (server, generator):
        generator.complete(chats("a"), GREEDY)
    assert (server.bodies[0]["max_completion_tokens"], "max_tokens" in server.bodies[0]) == (4000, False)


def test_tools_calls_and_thoughts_of_the_prompt_are_sent():
    tools = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": 2}}}
    turns = (
        DetailedMessage("user", "2 + 2?", tools=json.dumps(tools)),
        DetailedMessage("assistant", "", thought="I add.", tool_calls=json.dumps([call])),
        DetailedMessage("tool", "4", tool_call_id="c1", name="add"),
        Message("user", "so?"),
    )
    with served() as (server, generator):
        generator.complete([turns], GREEDY)
    (body,) = server.bodies
    assert body["tools"] == tools
    asked, called, answered, last = body["messages"]
    assert (asked, last) == ({"role": "user", "content": "2 + 2?"}, {"role": "user", "content": "so?"})
    assert called["reasoning_content"] == "I add."
    assert json.loads(called["tool_calls"][0]["function"].pop("arguments")) == {"a": 2, "b": 2}
    assert called["tool_calls"] == [{"id": "c1", "type": "function", "function": {"name": "add"}}]
    assert answered == {"role": "tool", "content": "4", "tool_call_id": "c1", "name": "add"}
