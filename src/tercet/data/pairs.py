"""Adapters of preference pairs: one small function each turns a raw object into a pair.

Each keeps to the contract of `common_adapters`. A pair from which nothing can be learnt (an empty answer, two equal
ones) is left out with its reason.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tercet.data import common_adapters
from tercet.data.common_adapters import HH_TURN, spoken
from tercet.data.layouts import Skip, keys_of, texts
from tercet.data.raw_turns import Raw, conversation_of, is_turns, shared_start, side_in, turn_of, turns_in
from tercet.rows import Message, Messages, Pair, RowError, messages_from, pair_from

PairAdapter = Callable[[Raw, str], Pair]

UNCLEAR_RIGHTS = {"sharegpt": "ShareGPT part", "truthful_qa": "TruthfulQA part"}  # parts of UltraFeedback left out
_ASKED = ("prompt", "question", "instruction", "input")
_SIDES = ("chosen", "rejected")


def preference(raw: Raw, where: str) -> Pair:
    """`chosen` and `rejected` as turns, optionally ratings and models (the published layout).

    Each side is a whole conversation, or the answer behind a `prompt` in turns or text.
    """
    if wrong := [side for side in _SIDES if not is_turns(raw.get(side))]:
        raise RowError(f"{where}: expected a list of messages under {' and '.join(wrong)}, got the keys {keys_of(raw)}")
    for name in ("chosen_rating", "rejected_rating"):
        if not isinstance(raw.get(name) or 0.0, int | float):
            raise RowError(f"{where}: expected a number under {name}, got {raw[name]!r:.40}")
    sides = {side: conversation_of(raw, _whole(raw, side, where), where) for side in _SIDES}
    return usable(pair_from({**raw, **sides, "tools": None}, where))


def ultrafeedback_pair(raw: Raw, where: str) -> Pair:
    """`preference` of the binarised UltraFeedback, without its TruthfulQA and ShareGPT parts."""
    (source,) = texts(raw, where, "source")
    refuse_part(source)
    return preference(raw, where)


def prompt_pair(raw: Raw, where: str) -> Pair:
    """A prompt with `chosen` and `rejected` texts, optionally a system text and `chosen_model`, `rejected_model`.

    The prompt stands under `prompt`, `question` (Orca pairs), `instruction` (with its `input`) or `input`.
    """
    name = next((name for name in _ASKED if raw.get(name) is not None), "prompt")
    if not is_turns(raw.get(name)):
        texts(raw, where, name)
    good, bad = texts(raw, where, *_SIDES)
    asked = raw[name]
    context = raw.get("input")
    if name == "instruction" and isinstance(context, str) and context.strip():
        asked = f"{asked}\n\n{context}"
    models = {side: str(raw.get(side) or "") for side in ("chosen_model", "rejected_model")}
    return _paired(raw["id"], conversation_of(raw, side_in(asked, where, "user"), where), good, bad, **models)


def rewardbench(raw: Raw, where: str) -> Pair:
    """`prompt, chosen, rejected, subset` as texts, optionally both models: RewardBench; the skill is the subset."""
    (subset,) = texts(raw, where, "subset")
    return replace(prompt_pair(raw, where), skill=subset)


def sharegpt_pair(raw: Raw, where: str) -> Pair:
    """`conversations` that end with a question, and `chosen` and `rejected` turns of `{from, value}`."""
    turns = common_adapters.sharegpt(raw, where).messages
    sides = [messages_from([turn_of(raw.get(side), f"{where}, {side}")], where)[0] for side in _SIDES]
    if wrong := [side.role for side in sides if side.role != "assistant"]:
        raise RowError(f"{where}: chosen and rejected must be the assistant's turns, got a turn of the {wrong[0]}")
    return usable(
        pair_from({"id": raw["id"], **{side: (*turns, one) for side, one in zip(_SIDES, sides, strict=True)}}, where)
    )


def implicit_pair(raw: Raw, where: str) -> Pair:
    """`chosen` and `rejected` texts that begin alike: what they share, to the last space, is the prompt (TRL)."""
    good, bad = texts(raw, where, *_SIDES)
    start = shared_start(good, bad)
    if not start.strip():
        raise RowError(f"{where}: chosen and rejected share no beginning, so there is no prompt; give them a `prompt`")
    asked = conversation_of(raw, [Message("user", start.strip())], where)
    return _paired(raw["id"], asked, good[len(start) :], bad[len(start) :])


def hh(raw: Raw, where: str) -> Pair:
    """`chosen` and `rejected` dialogues as one text with `Human:` and `Assistant:` before the turns (HH-RLHF)."""
    good, bad = (spoken(text, HH_TURN, where) for text in texts(raw, where, *_SIDES))
    if good[-1].role != "assistant" or bad[-1].role != "assistant":
        raise RowError(f"{where}: both dialogues must end with the assistant")
    if good[:-1] != bad[:-1]:
        raise Skip("the dialogues differ before the last answer")
    return _paired(raw["id"], good[:-1], good[-1].content, bad[-1].content)


def usable(pair: Pair) -> Pair:
    """The pair; Skip where nothing can be learnt from it: an empty answer, or two equal ones."""
    good, bad = pair.chosen[-1], pair.rejected[-1]
    if good.blank or bad.blank:
        raise Skip("an answer is empty")
    if good == bad:
        raise Skip("chosen and rejected are the same text")
    return pair


def refuse_part(source: str) -> None:
    """Skip the parts of UltraFeedback whose rights are unclear."""
    if source in UNCLEAR_RIGHTS:
        raise Skip(UNCLEAR_RIGHTS[source])


PAIRS: dict[str, PairAdapter] = {"hh": hh, "implicit_pair": implicit_pair, "preference": preference}
PAIRS |= {"prompt_pair": prompt_pair, "rewardbench": rewardbench, "sharegpt_pair": sharegpt_pair}
PAIRS |= {"ultrafeedback_pair": ultrafeedback_pair}


def _whole(raw: Raw, side: str, where: str) -> list[Any]:
    """One side with the prompt that stands beside it, unless it begins with that prompt itself."""
    own = turns_in(raw[side], f"{where}.{side}")
    asked = raw.get("prompt")
    if asked in (None, "", []) or (isinstance(asked, str) and not is_turns(asked) and len(own) > 1):
        return own  # a prompt that is a text repeats the first question (UltraFeedback)
    prompt = list(messages_from(side_in(asked, f"{where}.prompt", "user"), where))
    said = list(messages_from(own, f"{where}.{side}"))
    if said[: len(prompt)] == prompt:
        return own
    before = said[:-1]
    if before and before == prompt[-len(before) :]:  # repeats the prompt without its system text
        return [*prompt, *said[len(before) :]]
    if said[0].role != "assistant":
        raise RowError(f"{where}: {side} neither begins with the prompt nor answers it")
    return [*prompt, *own]


def _paired(name: str, prompt: Messages, good: str, bad: str, **models: str) -> Pair:
    sides = ((*prompt, Message("assistant", text)) for text in (good, bad))
    return usable(Pair(name, *sides, **models))  # type: ignore[arg-type]
