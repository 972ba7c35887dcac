"""Every text-only chat template that TRL carries, read where TRL lies: nine conversations each, ids and masks.

    python bench/templates.py [--templates DIR] [--json]

Each template gets a byte-level tokenizer with the special tokens that it names. Of each conversation the ids must be
those of transformers' `apply_chat_template` (as far as the template writes answers as a model must), every answer must
be trained once and end in a token, and nothing else may be trained; or a reason is given. A template that wants
contents of several parts (an image among them) is no text template and is left out by name.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime, tzinfo
from pathlib import Path
from subprocess import run
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

import peer  # puts our source on the path
from tercet.models.chat import Chat, ChatError, MaskedTokens
from tercet.recipe import DAY
from tercet.rows import Messages, messages_from

MARK = re.compile(r"<\|?[\w▁｜/ -]+\|?>|\[[A-Z_/]+\]|<\|[^|<>{}]+\|>|<｜[^<>｜]+｜>|<\w+\|>|<\|\w+>")  # noqa: RUF001
PLAIN_MARKS = re.compile(
    r"</?(think|tool_call|tool_response|tools|arg_key|arg_value|function|parameter|atem|IMPORTANT)"
)
ENDS = ("<|im_end|>", "<|eot_id|>", "<|eot|>", "<end_of_turn>", "<turn|>", "<|END_OF_TURN_TOKEN|>", "<|endoftext|>")
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}, "id": "call00001"}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "weather", "description": "d", "parameters": {"type": "object"}}}
]


def _user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def _answer(content: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


SYSTEM = {"role": "system", "content": "Be short."}
TOOL = {"role": "tool", "content": "9 degrees", "tool_call_id": "call00001", "name": "weather"}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one": [_user("2 + 2?"), _answer("It is 4.")],
    "two": [_user("2 + 2?"), _answer("4."), _user("And 3?"), _answer("5.")],
    "three": [_user("a"), _answer("b"), _user("c"), _answer("d"), _user("e"), _answer("f")],
    "system": [SYSTEM, _user("2 + 2?"), _answer("4.")],
    "empty": [_user("Say nothing."), _answer("")],
    "unicode": [_user("né 👩‍🚀"), _answer("日本 é 😀")],
    "whitespace": [_user(" a\n\n"), _answer("\n b \n")],
    "thought": [_user("2 + 2?"), _answer("4.", reasoning_content="Two and two."), _user("Sure?"), _answer("Yes.")],
    "tools": [_user("Oslo?"), _answer("", tool_calls=[CALL]), TOOL, _answer("Nine degrees.")],
}


class Outcome(NamedTuple):
    """What became of a conversation: `ids` are transformers', `right` says that exactly the answers are trained."""

    ids: bool
    right: bool
    reason: str = ""


def main() -> None:
    """Print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--templates", type=Path, help="folder of .jinja files; TRL's own when absent")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args()
    vars(chat_template_utils)["datetime"] = FixedDay  # rendering asks it for the date
    with TemporaryDirectory() as scratch:
        folder = args.templates or carried(Path(scratch))
        found = {file.stem: outcomes_of(file) for file in sorted(folder.glob("*.jinja"))}
    text = {name: outcomes for name, outcomes in found.items() if outcomes}
    left_out = [name for name, outcomes in found.items() if not outcomes]
    if args.json:
        plain = {name: {key: one._asdict() for key, one in outcomes.items()} for name, outcomes in text.items()}
        json.dump({"templates": plain, "left_out": left_out}, sys.stdout, indent=1, ensure_ascii=False)
        return
    for name, outcomes in text.items():
        told = [f"{key}: {one.reason}" for key, one in outcomes.items() if one.reason]
        whole = sum(one.right and one.ids for one in outcomes.values())
        composed = sum(one.right and not one.ids for one in outcomes.values())
        print(f"{name:36} {whole} as transformers writes them, {composed} put together, {len(told)} refused")
        for line in told:
            print(f"    {line}")
    print(f"{len(text)} text templates; not text alone: {', '.join(left_out) or 'none'}")


def carried(scratch: Path) -> Path:
    """TRL's folder of templates: of the peer's environment, or of the wheel alone."""
    if installed := next(peer.PEER.glob("lib/python3*/site-packages/trl/chat_templates"), None):
        return installed
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    run([*pip, peer.REQUIREMENTS[0], "-d", str(scratch)], check=True)
    with zipfile.ZipFile(next(scratch.glob("trl-*.whl"))) as wheel:
        wheel.extractall(scratch)
    return scratch / "trl" / "chat_templates"


def outcomes_of(file: Path) -> dict[str, Outcome]:
    """The outcome of each conversation; none where the template does not write a content that is text."""
    tokenizer = tokenizer_for(file.read_text(encoding="utf-8"))
    chat = Chat(tokenizer)
    try:
        if "2 + 2?" not in chat.text(messages_from([_user("2 + 2?")])):
            return {}
    except ChatError:
        return {}
    return {name: outcome(chat, turns) for name, turns in CONVERSATIONS.items()}


def outcome(chat: Chat, turns: list[dict[str, Any]]) -> Outcome:
    """Encode a conversation and compare."""
    tools = TOOLS if any("tool_calls" in turn for turn in turns) else None
    messages = messages_from([{**turns[0], "tools": tools}, *turns[1:]] if tools else turns)
    try:
        encoded = chat.encode(messages)
        reason = wrong_mask(chat, encoded, messages)
    except ChatError as error:
        return Outcome(False, False, str(error).splitlines()[0][:200])
    same = any(
        encoded.token_ids[: len(ids)] == ids and len(encoded.token_ids) - len(ids) <= 1  # an end token that is implied
        for ids in theirs(chat, turns, tools)
    )
    return Outcome(same, not reason, reason)


def theirs(chat: Chat, turns: list[dict[str, Any]], tools: list[Any] | None) -> Iterator[list[int]]:
    """The ids of transformers: with thoughts as fields, and as a part of the content."""
    render: Any = chat.tokenizer.apply_chat_template
    thoughts = [turn.get("reasoning_content", "") for turn in turns]
    fields = [turn | {"thinking": text} if text else turn for turn, text in zip(turns, thoughts, strict=True)]
    inline = [
        {"role": turn["role"], "content": f"<think>\n{text}\n</think>\n\n{turn['content']}"} if text else turn
        for turn, text in zip(turns, thoughts, strict=True)
    ]
    for given in (fields, inline):
        with suppress(Exception):  # what the template raises: it wants calls given in another way, which ours found
            yield render(given, tools=tools)["input_ids"]


class FixedDay(datetime):
    """The clock of transformers' templates, stopped on the day that ours are told."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> FixedDay:
        """That day, whatever the day is."""
        return cls.fromisoformat(DAY)


def wrong_mask(chat: Chat, encoded: MaskedTokens, messages: Messages) -> str:
    """What is wrong about the mask: each answer is trained once, behind its own prompt, with its end token."""
    answers = [turn for turn, message in enumerate(messages) if message.role == "assistant"]
    prompts = {tuple(chat.prompt_ids(messages[:turn])): turn for turn in answers if chat.prompt_ids(messages[:turn])}
    found = []
    for path in (*encoded.others, encoded):
        starts = [i for i, on in enumerate(path.mask) if on and (i == 0 or not path.mask[i - 1])]
        found += [prompts.get(tuple(path.token_ids[:start]), -1) for start in starts]
        ends = [i for i, on in enumerate(path.mask) if on and (i + 1 == len(path.mask) or not path.mask[i + 1])]
        if any(path.token_ids[end] not in chat.stops for end in ends):
            return "an answer does not end in a token that ends a generation"
    return "" if sorted(found) == answers else f"trained are the turns {sorted(found)}, not {answers}"


def tokenizer_for(template: str) -> PreTrainedTokenizerFast:
    """A tokenizer with one token a byte and the template's marks as special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    marks = sorted({mark for mark in MARK.findall(template) if not PLAIN_MARKS.match(mark)})
    marks = [mark for mark in marks if mark not in ("<s>", "</s>")]
    tokenizer.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in ("<s>", "</s>", *marks)])
    end = next((mark for mark in ENDS if mark in marks), "</s>")
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token=end)
    made.chat_template = template
    return made


if __name__ == "__main__":
    main()
