"""The layouts that any file may have: how they are recognised, and one small function (an adapter) for each.

An adapter takes a raw object and the place where it stands. It returns a `Row`, raises `RowError` where the object does
not fit, or raises `Skip` with a reason where such rows are left out by policy; the caller counts the reasons, so no
row disappears silently. The adapters of the public data sets are in `adapters`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

from tercet.rows import ROLES, Message, Messages, Row, RowError, messages_from, row_from, with_tools

Raw = dict[str, Any]
Adapter = Callable[[Raw, str], Row]
Unfold = Callable[[Iterable[tuple[Raw, str]]], Iterator[tuple[Raw, str]]]

END_MARK = "<|endoftext|>"  # some dumps of training text carry it behind every answer
HUMAN = ("Human:", "### Human:")  # how a dialogue in one text begins: HH-RLHF, Guanaco
PROMPTS = ("prompt", "instruction", "Instruction", "question")
LAYOUTS: tuple[tuple[str, tuple[str, ...], str], ...] = (  # adapter, keys every row has, what that is; first fit wins
    ("rlvr", ("messages", "ground_truth", "dataset"), "prompts with reference answers, as in the published RLVR sets"),
    ("kto", ("messages", "label"), "conversations with a mark, good or bad"),
    ("rows", ("messages",), "a list of messages with role and content"),
    ("sharegpt_pair", ("conversations", "chosen", "rejected"), "ShareGPT turns with a chosen and a rejected answer"),
    ("preference", ("chosen", "rejected"), "chosen and rejected as lists of messages"),
    ("rewardbench", ("prompt", "chosen", "rejected", "subset"), "RewardBench: a prompt, two texts and their subset"),
    ("prompt_pair", ("prompt", "chosen", "rejected"), "a prompt with a chosen and a rejected text"),
    ("hh", ("chosen", "rejected"), "chosen and rejected dialogues as one text each"),
    ("sharegpt", ("conversations",), "ShareGPT: turns with from and value"),
    ("wildchat", ("conversation", "model"), "WildChat: a conversation and the model that answered"),
    ("oasst", ("message_id", "parent_id", "role", "text"), "the messages of OpenAssistant's trees"),
    ("self_instruct", ("instruction", "instances"), "Self-Instruct tasks with their instances"),
    ("ultrafeedback", ("instruction", "completions", "source"), "UltraFeedback's prompts with completions"),
    ("wildjailbreak", ("vanilla", "adversarial", "completion", "data_type"), "WildJailbreak"),
    ("wildguardmix", ("prompt", "prompt_harm_label"), "WildGuardMix"),
    ("openmath", ("problem", "generated_solution"), "OpenMathInstruct"),
    ("guanaco", ("input", "output"), "a dialogue in one text with ### Human: marks"),
    ("guanaco", ("text",), "a dialogue in one text with ### Human: marks"),
    ("alpaca", ("instruction", "output"), "Alpaca: instruction, input and output"),
    ("alpaca", ("instruction", "response"), "Alpaca: instruction, input and response"),
    ("prompt_completion", ("prompt", "completion"), "prompt and completion"),
    ("prompt_completion", ("prompt", "response"), "prompt and response"),
    ("inputs_targets", ("inputs", "targets"), "inputs and targets, as FLAN and Aya have them"),
    ("gsm8k", ("question", "answer"), "question and answer, the number after ####"),
    ("question_answer", ("question", "answer"), "question and answer"),
    ("question_answer", ("problem", "solution"), "problem and solution"),
    ("math_prompt", ("problem", "answer"), "problems with a bare answer"),
    ("persona", ("persona",), "personas"),
    ("persona", ("input persona",), "Persona Hub"),
    *(("prompt_only", (name,), "bare prompts") for name in PROMPTS),
)

HH_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")
_GUANACO_TURN = re.compile(r"### (Human|Assistant):")
_ANY_TURN = re.compile(r"(?:(?:^|\n)\s*|### )(Human|Assistant):[ \t]*")
_CONVERSATIONS = ("messages", "conversations", "conversation", "prompt", "chosen", "rejected")
_QUESTIONS = (*PROMPTS, "problem", "inputs", "persona", "input persona")
_ANSWERERS = frozenset(("assistant", "gpt", "chatgpt", "system", "tool", "function", "function_call", "observation"))
_SPEAKERS = {"human": "user", "gpt": "assistant", "chatgpt": "assistant"} | {role: role for role in ROLES}
_SPEAKERS |= {"function_call": "assistant", "observation": "tool", "function": "tool"}
_MAY_BE_NULL = ("parent_id", "prompt_harm_label", "adversarial")  # keys that count as present although they hold null


def recognise(rows: Sequence[Raw]) -> tuple[str, str]:
    """The adapter for a file that opens with these rows, and why: the first of `LAYOUTS` that all of them fit."""
    if not rows:
        raise RowError("no rows to recognise a layout by; the file is empty")
    for name, keys, meaning in LAYOUTS:
        if all(_fits(name, keys, row) for row in rows):
            return name, f"every row has {' and '.join(keys)}: {meaning}"
    seen = sorted({keys_of(row) for row in rows})
    raise RowError(f"no known layout fits rows with the keys {' / '.join(seen)[:200]}; name an `adapter` in the recipe")


def _fits(name: str, keys: tuple[str, ...], row: Raw) -> bool:
    """Whether the row has the keys, and values that distinguish the layout from others with the same keys."""
    if any(key not in row or (row[key] is None and key not in _MAY_BE_NULL) for key in keys):
        return False
    tests = {
        "kto": isinstance(row.get("label"), bool),
        "preference": isinstance(row.get("chosen"), list | tuple),
        "prompt_pair": isinstance(row.get("chosen"), str),
        "rewardbench": isinstance(row.get("chosen"), str) and isinstance(row.get("subset"), str),
        "hh": str(row.get("chosen", "")).lstrip().startswith(HUMAN[0]),
        "guanaco": str(row.get(keys[0], "")).lstrip().startswith(HUMAN[1]),
        "gsm8k": "####" in str(row.get("answer", "")),
    }
    return tests.get(name, True)


def user_texts(raw: Raw, where: str) -> list[str]:
    """The user turns of a raw row of any layout, also where an adapter leaves the row out; RowError where it has none.

    Decontamination of files compares these texts, so every row must have some. Both sides of a pair are read (a turn
    that both share counts once), tool calls are not. A message of an OASST tree is a row of its own.
    """
    if raw.get("message_id") and isinstance(raw.get("role"), str) and isinstance(raw.get("text"), str):
        return [raw["text"]] if raw["role"] == "prompter" else []
    found: list[str] = []
    for key in _CONVERSATIONS:
        value = raw.get(key)
        if isinstance(value, list | tuple):
            found += _user_turns(value, f"{where}, {key}")
        elif isinstance(value, str) and key in ("chosen", "rejected"):
            found += _human_turns(value)
    if found and isinstance(raw.get("prompt"), str):
        found.append(raw["prompt"])
    found = found or _questions(raw)
    if not found:
        raise RowError(f"{where}: no user turn in {', '.join((*_CONVERSATIONS, *_QUESTIONS))}: {keys_of(raw)}")
    return list(dict.fromkeys(found))


def _user_turns(turns: Iterable[Any], where: str) -> list[str]:
    """Contents of the user turns, `{role, content}` or `{from, value}`: of all roles that are not `_ANSWERERS`."""
    with suppress(TypeError, KeyError):  # the common layout is tried first without checks, for speed
        found = [turn["content"] for turn in turns if turn["role"] not in _ANSWERERS]
        if all(type(text) is str for text in found):
            return found
    found = []
    for turn in turns:
        if not isinstance(turn, dict) or not {"role", "from"} & turn.keys():
            raise RowError(f"{where}: expected turns of role and content, or of from and value, got {turn!r:.80}")
        role, text = (turn.get("role"), turn.get("content")) if "role" in turn else (turn["from"], turn.get("value"))
        if role not in _ANSWERERS and text is not None:
            if not isinstance(text, str):
                raise RowError(f"{where}: a turn holds {type(text).__name__}, expected text")
            found.append(text)
    return found


def _questions(raw: Raw) -> list[str]:
    """The questions of a row without turns, each with its context; Self-Instruct has one for each of its instances."""
    text = next((raw[name] for name in _QUESTIONS if isinstance(raw.get(name), str)), None)
    if text is not None:
        cases = [case for case in raw.get("instances") or () if isinstance(case, dict)]
        contexts = [case.get("input") for case in cases or [raw]]
        return [f"{text}\n\n{more}" if isinstance(more, str) and more.strip() else text for more in contexts]
    asked = [raw[name] for name in ("vanilla", "adversarial") if isinstance(raw.get(name), str)]  # WildJailbreak
    return asked or _human_turns("".join(str(raw.get(name) or "") for name in ("text", "input", "output")))


def _human_turns(dialogue: str) -> list[str]:
    """The human's turns in a text of `Human:` and `Assistant:`; none in other text."""
    parts = _ANY_TURN.split(dialogue)
    return [text.strip() for who, text in zip(parts[1::2], parts[2::2], strict=True) if who == "Human"]


class Skip(Exception):  # noqa: N818 (the row is no error)
    """A row that fits its layout and is left out by policy; the message is the reason that is counted."""


def conversation(raw: Raw, where: str) -> Row:
    """The layout of `Row` and of most public sets: a list of `{role, content}` under `messages`."""
    turns = raw.get("messages")
    if not isinstance(turns, list | tuple):
        raise RowError(f"{where}: expected a 'messages' list, got the keys {keys_of(raw)}; choose another adapter")
    return row_from({**raw, "messages": unblanked(turns)}, where)


def tulu_sft(raw: Raw, where: str) -> Row:
    """`id, messages, source`, the layout of the public Tülu 3 SFT mixture; other columns are ignored."""
    return conversation({key: raw[key] for key in ("id", "messages", "source") if key in raw}, where)


def alpaca(raw: Raw, where: str) -> Row:
    """`instruction, input, output` (some files say `response`); a non-empty input follows after a blank line."""
    instruction, answer = texts(raw, where, "instruction", "response" if "output" not in raw else "output")
    context = raw.get("input")
    question = f"{instruction}\n\n{context}" if isinstance(context, str) and context.strip() else instruction
    return exchange(raw, question, answer)


def sharegpt(raw: Raw, where: str) -> Row:
    """`conversations` of `{from, value}`, optionally a `system` text and `tools` that a `function_call` turn calls."""
    turns = raw.get("conversations")
    if not isinstance(turns, list | tuple):
        raise RowError(f"{where}: expected a 'conversations' list, got the keys {keys_of(raw)}; choose another adapter")
    start = [Message("system", raw["system"])] if isinstance(raw.get("system"), str) and raw["system"].strip() else []
    messages = messages_from([*start, *(turn_of(turn, where) for turn in turns)], where)
    return Row(raw["id"], with_tools(messages, raw.get("tools"), where))


def sharegpt_without_tools(raw: Raw, where: str) -> Row:
    """`sharegpt` without the conversations that call tools."""
    turns = raw.get("conversations")
    speakers = [turn.get("from") for turn in turns if isinstance(turn, dict)] if isinstance(turns, list | tuple) else []
    if any(speaker in ("function_call", "observation", "tool") for speaker in speakers):
        raise Skip("calls a tool")
    return sharegpt(raw, where)


def prompt_completion(raw: Raw, where: str) -> Row:
    """`prompt` with `completion` (Table-GPT, T0) or `response` (CoCoNot); a closing `<|endoftext|>` is no text."""
    question, answer = texts(raw, where, "prompt", "response" if "completion" not in raw else "completion")
    return exchange(raw, question, answer.removesuffix(END_MARK))


def question_answer(raw: Raw, where: str) -> Row:
    """`question, answer` or `problem, solution`; the row gets no verifier."""
    names = ("question", "answer") if "question" in raw else ("problem", "solution")
    return exchange(raw, *texts(raw, where, *names))


def prompt_only(raw: Raw, where: str) -> Row:
    """A bare prompt under `prompt`, `instruction`, `Instruction` or `question`; it has no answer."""
    name = next((name for name in PROMPTS if isinstance(raw.get(name), str)), "")
    if not name:
        raise RowError(f"{where}: expected text under one of {', '.join(PROMPTS)}, got the keys {keys_of(raw)}")
    return Row(raw["id"], (Message("user", raw[name]),), template=str(raw.get("template") or ""))


def guanaco(raw: Raw, where: str) -> Row:
    """`text`, or `input` and `output`, with `### Human:` and `### Assistant:` before the turns (OASST paths)."""
    text = "".join(texts(raw, where, *(("input", "output") if "output" in raw else ("text",))))
    return Row(raw["id"], spoken(text, _GUANACO_TURN, where))


def kto(raw: Raw, where: str) -> Row:
    """`messages` and a `label`: rows whose answer is marked as bad are left out."""
    if not isinstance(raw.get("label"), bool):
        raise RowError(f"{where}: expected true or false under label, got {raw.get('label')!r:.40}")
    if not raw["label"]:
        raise Skip("the answer is marked as bad")
    return conversation({"id": raw["id"], "messages": raw.get("messages"), "tools": raw.get("tools")}, where)


def instances(raws: Iterable[tuple[Raw, str]]) -> Iterator[tuple[Raw, str]]:
    """Self-Instruct's tasks: each of the `instances` becomes a row of `instruction, input, output`."""
    for raw, where in raws:
        (instruction,) = texts(raw, where, "instruction")
        if not isinstance(raw.get("instances"), list | tuple) or not all(isinstance(i, dict) for i in raw["instances"]):
            raise RowError(f"{where}: expected a list of objects under instances, got the keys {keys_of(raw)}")
        for number, instance in enumerate(raw["instances"], 1):
            name = f"{raw['id']}-{number}" if raw.get("id") and len(raw["instances"]) > 1 else raw.get("id")
            yield {**instance, "id": name, "instruction": instruction}, where


def exchange(raw: Raw, question: str, answer: str) -> Row:
    """One question and its answer."""
    return Row(raw["id"], (Message("user", question), Message("assistant", answer)))


def spoken(text: str, mark: re.Pattern[str], where: str) -> Messages:
    """The turns of a dialogue that stands in one text."""
    before, *parts = mark.split(text)
    if before.strip() or not parts:
        raise RowError(f"{where}: expected a dialogue that opens with {mark.pattern!r}, got {text[:60]!r}")
    roles = {"Human": "user", "Assistant": "assistant"}
    return tuple(Message(roles[who], said.strip()) for who, said in zip(parts[::2], parts[1::2], strict=True))


def turn_of(turn: Any, where: str) -> Message | Raw:
    """A ShareGPT turn `{from, value}` as `{role, content}`."""
    if not isinstance(turn, dict) or "from" not in turn or "value" not in turn:
        raise RowError(f"{where}: each turn must be an object with 'from' and 'value', got {turn!r:.80}")
    if not isinstance(turn["from"], str) or turn["from"] not in _SPEAKERS:
        known = ", ".join(sorted(_SPEAKERS))
        raise RowError(f"{where}: a turn is from {turn['from']!r}; expected {known}")
    value = "" if turn["value"] is None else turn["value"]
    if turn["from"] == "function_call":
        return {"role": "assistant", "content": "", "tool_calls": value}
    return {"role": _SPEAKERS[turn["from"]], "content": value}


def unblanked(turns: Iterable[Any]) -> list[Any]:
    """The turns with empty text in place of null contents."""
    return [{**t, "content": ""} if isinstance(t, dict) and t.get("content", "") is None else t for t in turns]


def texts(raw: Raw, where: str, *names: str) -> list[str]:
    """The columns of these names, which must all be texts."""
    if missing := [name for name in names if not isinstance(raw.get(name), str)]:
        raise RowError(f"{where}: expected text under {' and '.join(missing)}, got the keys {keys_of(raw)}")
    return [raw[name] for name in names]


def keys_of(raw: Raw) -> str:
    """The names of the columns, for a message."""
    return ", ".join(sorted(str(key) for key in raw if key != "id")) or "none"


ADAPTERS: dict[str, Adapter] = {"rows": conversation, "alpaca": alpaca, "guanaco": guanaco, "kto": kto}
ADAPTERS |= {"prompt_completion": prompt_completion, "prompt_only": prompt_only, "prompt_tree": prompt_only}
ADAPTERS |= {"question_answer": question_answer, "self_instruct": alpaca, "sharegpt": sharegpt}
ADAPTERS |= {"sharegpt_without_tools": sharegpt_without_tools, "tulu_sft": tulu_sft}
UNFOLDS: dict[str, Unfold] = {"self_instruct": instances}  # what comes before the adapter
