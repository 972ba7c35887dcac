"""Requests to an OpenAI-compatible server and what its replies mean: pure functions from and to JSON.

What a server does not report stays empty: completions have no token ids and log-probs, and an option that is missing
from the list of likely tokens has an error, not a made-up log-prob.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from email.utils import parsedate_to_datetime
from itertools import accumulate
from typing import Any

from tercet.rows import PLAIN, Completion, Likelihood, Messages, Sampling

ENDED = {"stop": "eos", "eos": "eos", "eos_token": "eos", "stop_sequence": "stop", "length": "length"}
MOST_STOPS = 4  # the protocol's limit; further stop strings cut the text here
TOP = 20  # the protocol's longest list of likely tokens
LONGEST_PAUSE = 600.0  # seconds; a server that asks for more is asked again after this


class RequestRefused(Exception):  # noqa: N818 - the outcome of one request, not of the program
    """One request failed for good; the text becomes the item's error."""


class PassingFailure(Exception):  # noqa: N818 - as above
    """One attempt failed and the next may not; `pause` is the seconds the server asked for."""

    def __init__(self, message: str, pause: float = 0.0, *, reached: bool = True) -> None:
        super().__init__(message)
        self.pause, self.reached = pause, reached


def is_plain(messages: Messages) -> bool:
    """Whether a prompt is text to be read as it stands."""
    return len(messages) == 1 and messages[0].role == PLAIN


def question(messages: Messages, sampling: Sampling, number: int) -> tuple[str, dict[str, Any]]:
    """Path and body that ask for completions of prompt `number`; fields beyond the protocol only where they are needed.

    Greedy requests carry no seed, and `top_k` (vLLM, llama.cpp) and `top_p` are sent when they cut something.
    """
    path, body = _prompt(messages)
    body |= {"n": sampling.n, "max_tokens": sampling.max_new_tokens, "temperature": sampling.temperature}
    if sampling.temperature:
        seed, number = sampling.stream(number)
        body["seed"] = (seed * 1_000_003 + number) % (1 << 31)
    if sampling.top_p < 1.0:
        body["top_p"] = sampling.top_p
    if sampling.top_k:
        body["top_k"] = sampling.top_k
    if sampling.stop:
        body["stop"] = list(sampling.stop[:MOST_STOPS])
    return path, body


def echo(text: str) -> tuple[str, dict[str, Any]]:
    """Path and body that ask for the log-probs of a text's own tokens (and one more token, which many servers need)."""
    return "/completions", {"prompt": text, "max_tokens": 1, "temperature": 0.0, "echo": True, "logprobs": 1}


def first_token(messages: Messages) -> tuple[str, dict[str, Any]]:
    """Path and body that ask for the likeliest first tokens of an answer."""
    path, body = _prompt(messages)
    return path, body | {"max_tokens": 1, "temperature": 0.0, "logprobs": True, "top_logprobs": TOP}


def _prompt(messages: Messages) -> tuple[str, dict[str, Any]]:
    if is_plain(messages):
        return "/completions", {"prompt": messages[0].content}
    body: dict[str, Any] = {"messages": [{"role": turn.role, "content": turn.content} for turn in messages]}
    if messages[-1].role == "assistant":
        body |= {"continue_final_message": True, "add_generation_prompt": False}
    return "/chat/completions", body


def completions(reply: Any, sampling: Sampling) -> list[Completion]:
    """The answers in a server's reply, in its own order; `PassingFailure` when the reply is not what was asked for."""
    choices = _choices(reply, sampling.n)
    used = reply.get("usage") or {}
    count = count_of(used, "completion_tokens") if sampling.n == 1 and isinstance(used, dict) else 0
    return [_completion(choice, sampling.stop, count) for choice in choices]


def _choices(reply: Any, n: int) -> list[dict[str, Any]]:
    choices = reply.get("choices") if isinstance(reply, dict) else None
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        raise PassingFailure(f"expected an object with a list of choices, got {error_text(json.dumps(reply))}")
    ordered = {choice.get("index", place): choice for place, choice in enumerate(choices)}
    if len(choices) != n or set(ordered) != set(range(n)):
        raise PassingFailure(f"expected {n} choices numbered from 0, got {len(choices)}: {sorted(map(str, ordered))}")
    return [ordered[place] for place in range(n)]


def _completion(choice: dict[str, Any], stops: Sequence[str], count: int) -> Completion:
    reason, message = choice.get("finish_reason"), choice.get("message")
    text = message.get("content") if isinstance(message, dict) else choice.get("text")
    if isinstance(reason, str) and reason not in ENDED:
        return Completion("", (), (), "error", f"the server ended the answer with {reason!r}", count)
    if text is None and reason == "length" and isinstance(message, dict):
        text = ""  # a reasoning model that had not finished thinking
    if not isinstance(text, str) or not isinstance(reason, str):
        raise PassingFailure(f"expected a choice with a text and a finish_reason, got {json.dumps(choice):.120}")
    kept = text[: min((place for place in map(text.find, stops) if place >= 0), default=len(text))]
    halted = len(kept) < len(text) or (bool(stops) and isinstance(choice.get("stop_reason"), str))
    return Completion(kept, (), (), "stop" if halted else ENDED[reason], "", count)


def echoed(reply: Any, context: str, option: str) -> Likelihood:
    """The option's log-prob from an echoed prompt: the tokens that start inside it."""
    table = _choices(reply, 1)[0].get("logprobs") or {}
    tokens, logps, tops = (table.get(key) or [] for key in ("tokens", "token_logprobs", "top_logprobs"))
    joined, whole = "".join(map(str, tokens)), context + option
    shift = joined.find(whole)  # a begin-of-text token may stand before the prompt
    starts = [end - len(token) - shift for token, end in zip(tokens, accumulate(map(len, tokens)), strict=True)]
    starts = starts if shift >= 0 else table.get("text_offset") or []  # pieces of a character are not shown as text
    if not tokens or not len(starts) == len(logps) == len(tokens) or starts[-1] + len(tokens[-1]) < len(whole):
        raise RequestRefused("the server does not echo prompts with log-probs, so it cannot score options of these")
    inside = [place for place, start in enumerate(starts) if len(context) <= start < len(whole)]
    astray = [p for p in inside if not _is_piece(tokens[p]) and not whole.startswith(tokens[p], starts[p])]
    if not inside or astray or _is_piece(tokens[inside[0]]) or any(logps[place] is None for place in inside):
        raise RequestRefused(f"the server's tokens and log-probs do not line up with the option {option!r:.60}")
    best = all(len(tops) > place and logps[place] >= max((tops[place] or {"": 0.0}).values()) for place in inside)
    return Likelihood(math.fsum(logps[place] for place in inside), len(inside), best)


def _is_piece(token: str) -> bool:
    """Whether a token shows only some bytes of a character, as servers write them."""
    return "\ufffd" in token or token.startswith("bytes:")


def among_likeliest(reply: Any, options: Sequence[str]) -> list[Likelihood]:
    """Options of one token each from the list of likeliest first tokens."""
    content = (_choices(reply, 1)[0].get("logprobs") or {}).get("content") or [{}]
    listed = [(str(one["token"]), float(one["logprob"])) for one in content[0].get("top_logprobs") or []]
    if not listed:
        raise RequestRefused("the server sent no top_logprobs, so it cannot score the options of a conversation")
    found = [[logp for token, logp in listed if token == option] for option in options]
    if not all(found):  # " A" and "A" then count as one answer, for every option alike
        found = [[logp for token, logp in listed if token.strip() == option.strip()] for option in options]
    highest = max(logp for _, logp in listed)
    likeliest = f"the server's {len(listed)} likeliest first tokens"
    return [
        Likelihood(math.log(math.fsum(map(math.exp, logps))), 1, max(logps) == highest)
        if logps
        else Likelihood(math.nan, 0, error=f"the option {option!r:.60} is not among {likeliest}")
        for option, logps in zip(options, found, strict=True)
    ]


def retry_after(value: str) -> float:
    """Seconds from a Retry-After header, which holds seconds or a date; 0 when it says nothing useful."""
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return 0.0
    return min(max(0.0, seconds), LONGEST_PAUSE)


def count_of(usage: Mapping[str, Any], key: str) -> int:
    """A number of tokens as the server reports it; 0 where it does not."""
    number = usage.get(key)
    return number if isinstance(number, int) and number > 0 else 0


def error_text(text: str) -> str:
    """A server's error in one short line, from the protocol's error object where there is one."""
    try:
        error = json.loads(text)["error"]
        text = str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        pass
    return " ".join(text.split())[:200] or "(an empty body)"
