"""Adapters of the layouts that any file may have: small functions that turn a raw object into a row.

An adapter takes a raw object and the place where it stands. It returns a `Row`, raises `RowError` where the object does
not fit, or raises `Skip` with a reason where such rows are left out by policy; the caller counts the reasons, so no
row disappears silently. `layouts` says which keys make which layout, `adapters` holds those of the public data sets.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

from tercet.data.layouts import PROMPTS, Adapter, Skip, Unfold, filled, mark_of, texts
from tercet.data.raw_turns import EDGES, Raw, Turn, conversation_of, is_turns, side_in, turns_in
from tercet.rows import Message, Messages, Row, RowError, is_context, row_from
from tercet.rows_file import Unreadable

END_MARK = "<|endoftext|>"  # some dumps of training text carry it behind every answer
HH_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")
QUESTIONS = (  # where a question stands, and where its answer
    ("question", "answer"),
    ("question", "response"),
    ("problem", "solution"),
    ("query", "response"),
    ("query", "answer"),
    ("prompt", "answer"),
)
_GUANACO_TURN = re.compile(r"### (Human|Assistant):")
_CONVERSATIONS = ("messages", "conversations", "conversation")


def conversation(raw: Raw, where: str) -> Row:
    """The layout of `Row` and of most public sets: turns under `messages` (or `conversations`, `conversation`)."""
    name = next((name for name in _CONVERSATIONS if raw.get(name) is not None), "")
    if not name or (isinstance(raw[name], str) and not is_turns(raw[name])):
        raise RowError(f"{where}: expected a 'messages' list, got the keys {filled(raw)}; choose another adapter")
    return row_from({**raw, "messages": conversation_of(raw, turns_in(raw[name], where), where), "tools": None}, where)


def tulu_sft(raw: Raw, where: str) -> Row:
    """`id, messages, source`, the layout of the public Tülu 3 SFT mixture; other columns are ignored."""
    return conversation({key: raw[key] for key in ("id", "messages", "source") if key in raw}, where)


def sharegpt(raw: Raw, where: str) -> Row:
    """`conversations` of `{from, value}`, optionally a `system` text and `tools` that a `function_call` turn calls."""
    turns = raw.get("conversations")
    if turns is None or (isinstance(turns, str) and not is_turns(turns)):
        raise RowError(f"{where}: expected a 'conversations' list, got the keys {filled(raw)}; choose another adapter")
    return _row(raw, turns_in(turns, where), where)


def sharegpt_without_tools(raw: Raw, where: str) -> Row:
    """`sharegpt` without the conversations that call tools."""
    turns = raw.get("conversations")
    speakers = [turn.get("from") for turn in turns if isinstance(turn, dict)] if isinstance(turns, list | tuple) else []
    row = None if "function_call" in speakers else sharegpt(raw, where)
    if row is None or any(turn.role == "tool" or getattr(turn, "tool_calls", "") for turn in row.messages):
        raise Skip("calls a tool")
    return row


def alpaca(raw: Raw, where: str) -> Row:
    """`instruction, input, output` (some files say `response`), optionally a `system` text and a `history` of pairs.

    A non-empty input follows the instruction after a blank line.
    """
    instruction, answer = texts(raw, where, "instruction", "response" if raw.get("output") is None else "output")
    return exchange(raw, where, _with_input(raw, instruction), answer)


def prompt_completion(raw: Raw, where: str) -> Row:
    """`prompt` with `completion` (Table-GPT, T0) or `response` (CoCoNot), each a text or turns.

    A closing `<|endoftext|>` is no text.
    """
    name = "response" if raw.get("completion") is None else "completion"
    asked, answer = _sides(raw, where, "prompt", name)
    return _answered(raw, asked, answer.removesuffix(END_MARK) if isinstance(answer, str) else answer, where)


def question_answer(raw: Raw, where: str) -> Row:
    """A question and its answer under the names of `QUESTIONS`; the row gets no verifier."""
    found = next((names for names in QUESTIONS if all(raw.get(name) is not None for name in names)), QUESTIONS[0])
    return exchange(raw, where, *texts(raw, where, *found))


def input_output(raw: Raw, where: str) -> Row:
    """`input` (a text or turns) and `output`, as NeMo has them."""
    asked, answer = _sides(raw, where, "input", "output")
    return _answered(raw, asked, answer, where)


def _sides(raw: Raw, where: str, *names: str) -> list[Any]:
    """The columns of these names, each a text or turns."""
    if missing := [name for name in names if not (isinstance(raw.get(name), str) or is_turns(raw.get(name)))]:
        raise RowError(f"{where}: expected text or turns under {' and '.join(missing)}, got the keys {filled(raw)}")
    return [raw[name] for name in names]


def _answered(raw: Raw, asked: Any, answer: Any, where: str) -> Row:
    return _row(raw, [*side_in(asked, where, "user"), *side_in(answer, where)], where)


def segments(raw: Raw, where: str) -> Row:
    """Axolotl's `segments` of `{label, text}`: what is not trained is context (the user's), what is are answers."""
    parts = raw.get("segments")
    fits = isinstance(parts, list | tuple) and all(
        isinstance(part, dict) and isinstance(part.get("label"), bool) and isinstance(part.get("text"), str)
        for part in parts
    )
    if not parts or not fits:
        raise RowError(f"{where}: expected a list of objects with label (true, false) and text under segments")
    turns: list[Turn] = []
    for trained, some in groupby(parts, key=lambda part: bool(part["label"])):
        text = "".join(EDGES.sub("", part["text"]) for part in some)
        turns.append(Message("assistant" if trained else "user", text))
    return _row(raw, turns, where)


def prompt_only(raw: Raw, where: str) -> Row:
    """A bare prompt, text or turns, under `prompt`, `instruction`, `Instruction` or `question`; it has no answer."""
    name = next((name for name in PROMPTS if isinstance(raw.get(name), str) or is_turns(raw.get(name))), "")
    if not name:
        raise RowError(f"{where}: expected text under one of {', '.join(PROMPTS)}, got the keys {filled(raw)}")
    asked = _with_input(raw, raw[name]) if name == "instruction" else raw[name]
    messages = conversation_of(raw, side_in(asked, where, "user"), where)
    return Row(raw["id"], messages, template=str(raw.get("template") or ""))


def guanaco(raw: Raw, where: str) -> Row:
    """`text`, or `input` and `output`, with `### Human:` and `### Assistant:` before the turns (OASST paths)."""
    text = "".join(texts(raw, where, *(("input", "output") if raw.get("output") is not None else ("text",))))
    return Row(raw["id"], spoken(text, _GUANACO_TURN, where))


def marked(raw: Raw, where: str) -> tuple[Row, bool]:
    """A conversation whose answer is marked as good or bad under `label` or `kto_tag` (KTO), and the mark."""
    good = mark_of(raw)
    if good is None:
        name = "kto_tag" if raw.get("kto_tag") is not None else "label"
        raise RowError(f"{where}: expected true or false (good or bad) under {name}, got {raw.get(name)!r:.40}")
    base = next((adapter for key, adapter in _MARKED.items() if raw.get(key) is not None), conversation)
    return base(raw, where), good


def kto(raw: Raw, where: str) -> Row:
    """A `marked` conversation as a row to be imitated: those whose answer is marked as bad are left out."""
    row, good = marked(raw, where)
    if not good:
        raise Skip("labelled bad")
    return row


def instances(raws: Iterable[tuple[Raw, str]]) -> Iterator[tuple[Raw, str]]:
    """Self-Instruct's tasks: each of the `instances` becomes a row of `instruction, input, output`."""
    for raw, where in raws:
        instruction, given = raw.get("instruction"), raw.get("instances")
        objects = isinstance(given, list | tuple) and all(isinstance(one, dict) for one in given)
        if not isinstance(instruction, str) or not objects:
            what = "text under instruction and a list of objects under instances"
            yield Unreadable(RowError(f"{where}: expected {what}, got the keys {filled(raw)}")), where
            continue
        for number, instance in enumerate(raw["instances"], 1):
            name = f"{raw['id']}-{number}" if raw.get("id") and len(raw["instances"]) > 1 else raw.get("id")
            yield {**instance, "id": name, "instruction": instruction}, where


def exchange(raw: Raw, where: str, question: str, answer: str) -> Row:
    """One question and its answer, behind the row's system text and what was said before."""
    turns = [*_history(raw, where), Message("user", question), Message("assistant", answer)]
    return _row(raw, turns, where)


def spoken(text: str, mark: re.Pattern[str], where: str) -> Messages:
    """The turns of a dialogue that stands in one text."""
    before, *parts = mark.split(text)
    if before.strip() or not parts:
        raise RowError(f"{where}: expected a dialogue that opens with {mark.pattern!r}, got {text[:60]!r}")
    roles = {"Human": "user", "Assistant": "assistant"}
    return tuple(Message(roles[who], said.strip()) for who, said in zip(parts[::2], parts[1::2], strict=True))


def imitated(adapter: Adapter) -> Adapter:
    """The adapter without rows of which nothing is to be imitated: marked as bad (KTO), or all answers context."""

    def adapt(raw: Raw, where: str) -> Row:
        if ("kto_tag" in raw or isinstance(raw.get("label"), bool)) and mark_of(raw) is False:
            raise Skip("labelled bad")
        row = adapter(raw, where)
        if any(map(is_context, row.messages)) and all(
            is_context(turn) for turn in row.messages if turn.role == "assistant"
        ):
            raise Skip("every answer is marked as context")
        return row

    return adapt


def _row(raw: Raw, turns: list[Turn], where: str) -> Row:
    return Row(raw["id"], conversation_of(raw, turns, where))


def _with_input(raw: Raw, instruction: str) -> str:
    context = raw.get("input")
    return f"{instruction}\n\n{context}" if isinstance(context, str) and context.strip() else instruction


def _history(raw: Raw, where: str) -> list[Turn]:
    """What was said before, as LLaMA-Factory has it: pairs of a question and its answer, which are trained too."""
    pairs: Any = raw.get("history") or ()
    if is_turns(pairs):
        return turns_in(pairs, f"{where}, history")
    if not isinstance(pairs, list | tuple) or not all(
        isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(text, str) for text in pair)
        for pair in pairs
    ):
        raise RowError(f"{where}: expected pairs of a question and its answer under history, got {pairs!r:.80}")
    roles = ("user", "assistant")
    return [Message(role, text) for pair in pairs for role, text in zip(roles, pair, strict=True)]


_MARKED: dict[str, Adapter] = {"messages": conversation, "conversations": conversation, "conversation": conversation}
_MARKED |= {"instruction": alpaca, "question": question_answer, "prompt": prompt_completion}
_OPEN: dict[str, Adapter] = {"rows": conversation, "alpaca": alpaca, "guanaco": guanaco, "segments": segments}
_OPEN |= {"input_output": input_output, "prompt_completion": prompt_completion, "question_answer": question_answer}
_OPEN |= {"self_instruct": alpaca, "sharegpt": sharegpt, "sharegpt_without_tools": sharegpt_without_tools}
ADAPTERS: dict[str, Adapter] = {name: imitated(adapter) for name, adapter in _OPEN.items()}
ADAPTERS |= {"kto": kto, "prompt_only": prompt_only, "prompt_tree": prompt_only, "tulu_sft": tulu_sft}
UNFOLDS: dict[str, Unfold] = {"self_instruct": instances}  # what comes before the adapter
