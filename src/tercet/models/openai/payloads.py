"""Requests to an OpenAI-compatible server and what its replies mean: pure functions from and to JSON.

What a server does not report stays empty: completions have no token ids and log-probs, and an option that is missing
from the list of likely tokens has an error, not a made-up log-prob.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from email.utils import parsedate_to_datetime
from itertools import accumulate
from typing import Any

from tercet.outside import unicode_error, unicode_only
from tercet.rows import PLAIN, Completion, DetailedMessage, Likelihood, Message, Messages, Sampling

ENDED = {"stop": "eos", "eos": "eos", "eos_token": "eos", "stop_sequence": "stop", "length": "length"}
MOST_STOPS = 4  # the protocol's limit; further stop strings cut the text here
LIMITS = ("max_tokens", "max_completion_tokens")  # two names of the budget; reasoning models of OpenAI know the second
TOP = 20  # the protocol's longest list of likely tokens
LONGEST_PAUSE = 600.0  # seconds; a server that asks for more is asked again after this
SPARE_TOKENS = 1_000_000  # that a server may report beyond those it was asked for: its own prompt, thoughts
SPARE_LOGP = 0.01  # above 0, where rounding may put a log-probability


class EndpointError(ValueError):
    """Every request would fail: the key, the URL, the model or the account is wrong, or no server is there."""


class RequestRefused(Exception):  # noqa: N818 - the outcome of one request, not of the program
    """One request failed for good; the text becomes the item's error. `param` is what the server says it is about."""

    def __init__(self, message: str, param: str = "") -> None:
        super().__init__(message)
        self.param = param


class NoAnswer(RequestRefused):
    """A request that was put again as often as allowed, or was not sent because the run stops."""


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


def with_extra(body: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """The body with a recipe's own parameters; a model with a reasoning effort is told its budget by the later name."""
    whole = {**body, **extra}
    if "reasoning_effort" in extra:
        whole.setdefault("max_completion_tokens", whole["max_tokens"])
    if "max_completion_tokens" in whole:
        del whole["max_tokens"]
    return whole


def budget(body: Mapping[str, Any]) -> int:
    """The most tokens that an answer may have."""
    return int(next((body[name] for name in LIMITS if name in body), 0))


def single(body: Mapping[str, Any], sample: int) -> dict[str, Any]:
    """The same question for one completion, number `sample`, with a seed of its own."""
    seed = {"seed": (body["seed"] + sample * 7919) % (1 << 31)} if "seed" in body else {}
    return {key: value for key, value in body.items() if key != "n"} | seed


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
    body: dict[str, Any] = {"messages": [_turn(turn) for turn in messages]}
    if tools := getattr(messages[0], "tools", ""):
        body["tools"] = json.loads(tools)
    if messages[-1].role == "assistant":
        body |= {"continue_final_message": True, "add_generation_prompt": False}
    return "/chat/completions", body


def _turn(turn: Message) -> dict[str, Any]:
    """A turn as the protocol has it; the arguments of a call are JSON in a text there."""
    found: dict[str, Any] = {"role": turn.role, "content": turn.content}
    if isinstance(turn, DetailedMessage):
        calls = json.loads(turn.tool_calls) if turn.tool_calls else []
        for call in calls:
            function = call["function"]
            call["function"] = function | {"arguments": json.dumps(function["arguments"], ensure_ascii=False)}
        more = {"tool_calls": calls, "tool_call_id": turn.tool_call_id, "name": turn.name}
        found |= {key: value for key, value in (more | {"reasoning_content": turn.thought}).items() if value}
    return found


def parsed(content: bytes) -> Any:
    """The JSON of a reply; `PassingFailure` where it is none, or where a text in it is not Unicode.

    Half a surrogate pair, which JSON can write, could be neither stored nor shown; NaN and infinity are no JSON.
    """
    try:
        text = content.decode("utf-8")
        reply = json.loads(text, parse_constant=_no_number)
        if problem := unicode_error(text, reply):
            raise ValueError(problem)
    except (ValueError, RecursionError) as error:
        shown = content[:120].decode("utf-8", errors="replace")
        raise PassingFailure(f"expected JSON in UTF-8 ({error!s:.80}), got {shown!r}") from error
    return reply


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def completions(reply: Any, sampling: Sampling) -> list[Completion]:
    """The answers in a server's reply, in its own order; `PassingFailure` when the reply is not what was asked for.

    A server that ignores `n` sends fewer than were asked for.
    """
    sent = reply.get("choices") if isinstance(reply, dict) else None
    choices = _choices(reply, min(sampling.n, len(sent)) if isinstance(sent, list) and sent else sampling.n)
    used = reply.get("usage") or {}
    most = sampling.max_new_tokens
    count = count_of(used, "completion_tokens", most) if len(choices) == 1 and isinstance(used, dict) else 0
    return [_completion(choice, sampling.stop, count) for choice in choices]


def _choices(reply: Any, n: int) -> list[dict[str, Any]]:
    choices = reply.get("choices") if isinstance(reply, dict) else None
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        raise PassingFailure(f"expected an object with a list of choices, got {error_text(json.dumps(reply))}")
    ordered = {choice.get("index", place): choice for place, choice in enumerate(choices)}
    if len(choices) != n or set(ordered) != set(range(n)):
        raise PassingFailure(f"expected {n} choices numbered from 0, got {len(choices)}: {[*ordered][:9]!r:.120}")
    return [ordered[place] for place in range(n)]


def _completion(choice: dict[str, Any], stops: Sequence[str], count: int) -> Completion:
    reason, message = choice.get("finish_reason"), choice.get("message")
    text, thought = said(message) if isinstance(message, dict) else (choice.get("text"), "")
    if isinstance(reason, str) and reason not in ENDED:
        return Completion("", (), (), "error", f"the server ended the answer with {reason!r:.80}", count)
    unfinished = not text and reason == "length" and isinstance(message, dict)  # it had not finished thinking
    if text is None and (unfinished or thought):
        text = ""
    if not isinstance(text, str) or not isinstance(reason, str):
        raise PassingFailure(f"expected a choice with a text and a finish_reason, got {json.dumps(choice):.120}")
    kept = text[: min((place for place in map(text.find, stops) if place >= 0), default=len(text))]
    halted = len(kept) < len(text) or (bool(stops) and isinstance(choice.get("stop_reason"), str))
    if thought:
        kept = f"<think>\n{thought}" if unfinished else f"<think>\n{thought}\n</think>\n\n{kept}"
    return Completion(kept, (), (), "stop" if halted else ENDED[reason], "", count)


def said(message: Mapping[str, Any]) -> tuple[str | None, str]:
    """Text and thought of an answer: a text or parts, the thought beside it or among the parts; None where no text is.

    Example: `said({"content": None, "reasoning": "2 and 2"})` is `(None, "2 and 2")`.
    """
    content = message.get("content")
    thoughts = [message.get("reasoning_content") or message.get("reasoning")]
    if isinstance(content, list):
        parts = [part for part in content if isinstance(part, dict)]
        thoughts += [part.get("thinking") or part.get("reasoning") for part in parts]
        texts = [part["text"] for part in parts if isinstance(part.get("text"), str)]
        content = "".join(texts) if texts else None
    return content, "\n".join(filter(None, map(_joined, thoughts))).strip()


def _joined(thought: Any) -> str:
    """A thought that is a text, or a list of parts."""
    if isinstance(thought, list):
        return "".join(_joined(part.get("text") if isinstance(part, dict) else part) for part in thought)
    return thought if isinstance(thought, str) else ""


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
    _check_logps(logps[place] for place in inside)
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
    _check_logps(logp for _, logp in listed)
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


def _check_logps(logps: Iterable[float | None]) -> None:
    """Refuse what cannot be a log-probability, before it is summed."""
    if wrong := [logp for logp in logps if logp is not None and not -math.inf < logp <= SPARE_LOGP]:
        raise RequestRefused(f"the server sent {wrong[0]} as a log-probability; expected a number that is at most 0")


def retry_after(value: str) -> float:
    """Seconds from a Retry-After header, which holds seconds or a date; 0 when it says nothing useful."""
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):  # a month 13, a year 10**20
            return 0.0
    return min(max(0.0, seconds), LONGEST_PAUSE)


def count_of(usage: Mapping[str, Any], key: str, asked: int) -> int:
    """A number of tokens as the server reports it; 0 where it does not, or where it cannot be: far beyond the asked."""
    number = usage.get(key)
    return number if type(number) is int and 0 < number <= asked + SPARE_TOKENS else 0


def error_text(text: str) -> str:
    """A server's error in one short line, from the protocol's error object where there is one."""
    error = _error(text)
    found = next((error[key] for key in ("message", "detail") if error.get(key)), text)
    try:
        shown = found if isinstance(found, str) else json.dumps(found)
    except RecursionError:
        shown = "(an error that is too deep to be shown)"
    return unicode_only(" ".join(shown[:10_000].split())[:200]) or "(an empty body)"


def error_param(text: str) -> str:
    """The parameter that a server's error object is about; nothing where it does not say."""
    error = _error(text)
    named, detail = error.get("param"), error.get("detail")
    if isinstance(detail, list) and detail and isinstance(detail[0], dict):  # FastAPI's: [{"loc": ["body", "top_k"]}]
        place = detail[0].get("loc")
        named = place[-1] if isinstance(place, list) and place else ""
    return named if isinstance(named, str) else ""


def _error(text: str) -> Mapping[str, Any]:
    """The error object of a reply, whose place and shape differ between servers."""
    try:
        reply = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(reply, dict):
        return {}
    error = reply.get("error", reply)
    return error if isinstance(error, dict) else {"message": error}
