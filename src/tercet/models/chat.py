"""How a model reads a conversation: token ids and the mask of what is trained.

The text comes from the chat template and is tokenised once, so ids equal `tokenizer.apply_chat_template`. What is
trained comes from structure, never from searching strings: a template is a function of messages, so the rendering of
the turns before an answer (with the generation prompt) ends where the answer begins, and the rendering up to and with
the answer ends where it ends. Character offsets carry these borders over to tokens. A token belongs to the part in
which it starts, because during generation that part contains it.
"""

from __future__ import annotations

import hashlib
import os
import sys
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.resources import files
from itertools import groupby, islice
from typing import Any, NamedTuple, TypeVar

from jinja2 import TemplateError
from tokenizers import Encoding, Tokenizer
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

from tercet.rows import PLAIN, Completion, Message, Messages, Sampling

# Chat templates that a recipe may name, one file each. Tülu 3's (paper App. B.3) has plain-text markers, no BOS, no
# default system prompt, and no final newline; the one that ends its file is not part of it.
TEMPLATES = {
    file.name.removesuffix(".jinja"): file.read_text(encoding="utf-8").removesuffix("\n")
    for file in files("tercet.models").joinpath("templates").iterdir()
}
PART = 256  # conversations that one thread tokenises at once

Tag = TypeVar("Tag")
Ids = Sequence[int]
Done = Callable[[int, list[Completion]], None]


class ChatError(ValueError):
    """A template or a conversation that cannot be trained on; the message shows it with the mask marked."""


@dataclass(frozen=True)
class MaskedTokens:
    """Token ids and, for each, whether it is trained. Example: `MaskedTokens([1, 520, 33], [False, False, True])`."""

    token_ids: list[int]
    mask: list[bool]


class Span(NamedTuple):
    """Characters `begin` to `end` of the rendered text: an answer with the text that closes it."""

    begin: int
    end: int


class _Plan(NamedTuple):
    """A conversation before it is tokenised: its text, the answers in it, and how errors name it."""

    text: str
    spans: list[Span]
    where: str


class Chat:
    """A tokenizer with a template: the one place where conversations become tokens, for training and generation.

    `template` is "own" (the tokenizer's) or a name of `TEMPLATES`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, template: str = "own") -> None:
        """Probe the template's structure once: how it opens an answer, how it closes it, which token ends it."""
        text = TEMPLATES.get(template) or tokenizer.chat_template
        if template != "own" and template not in TEMPLATES:
            raise ChatError(f"unknown chat template {template!r}; expected own or one of {', '.join(TEMPLATES)}")
        if not isinstance(text, str) or not text:
            raise ChatError('the tokenizer has no chat template of its own; set template = "tulu3" under [base]')
        self.tokenizer = tokenizer
        self.template = text
        self._specials = dict(tokenizer.special_tokens_map)
        self._write = _writer(text, self._specials)
        self._bos = tokenizer.bos_token_id  # looked up by the tokenizer each time it is asked
        self._backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._backend.post_processor = None  # some trim offsets; a chat template writes its own special tokens
        self._backend.no_truncation()
        self._backend.no_padding()
        self._opening, self._closing = self._probe()
        self._end_text = self._closing.rstrip()
        self.end_id = self._find_end()  # ends an assistant turn, so generation stops on it

    @cached_property
    def digest(self) -> str:
        """SHA-256 over all that decides ids and masks: the tokenizer, the template and its special tokens."""
        parts = (self._backend.to_str(), self.template, repr(sorted(self._specials.items())))
        return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()

    @cached_property
    def stops(self) -> set[int]:
        """The tokens that end an answer."""
        eos = self.tokenizer.eos_token_id
        return {self.end_id} | ({eos} if eos is not None else set())

    def completion(self, token_ids: Sequence[int], logps: Sequence[float], stop: Sequence[str]) -> Completion:
        """A completion from its tokens; its text ends before the first stop string, or the token that ends it."""
        ids = list(token_ids)
        closed = bool(ids) and ids[-1] in self.stops
        text = str(self.tokenizer.decode(ids[:-1] if closed else ids, skip_special_tokens=True))
        cuts = [place for place in map(text.find, stop) if place >= 0]
        ended = "stop" if cuts else "eos" if closed else "length"
        return Completion(text[: min(cuts, default=len(text))], tuple(ids), tuple(logps), ended)

    def text(self, messages: Sequence[Message], *, generation_prompt: bool = False) -> str:
        """The template's text of a conversation."""
        plain = [{"role": message.role, "content": message.content} for message in messages]
        try:
            return self._write(plain, generation_prompt)
        except TemplateError as error:  # the template's own refusal, or a special token it needs and does not have
            roles = ", ".join(message.role for message in messages)
            raise ChatError(f"the chat template refuses a conversation with the turns {roles}: {error}") from error

    def render(self, messages: Sequence[Message], *, generation_prompt: bool = False) -> list[int]:
        """Token ids of a conversation, equal to `tokenizer.apply_chat_template(messages)`."""
        text = self.text(messages, generation_prompt=generation_prompt)
        return self._backend.encode(text, add_special_tokens=False).ids

    def prompt_text(self, messages: Sequence[Message]) -> str:
        """Text of a prompt: a conversation that waits for an answer, or whose last answer is open; or plain text."""
        if messages and messages[0].role == PLAIN:
            if len(messages) != 1:
                raise ChatError(f"a plain prompt is one message, got {len(messages)}")
            return messages[0].content
        opened = messages[-1].content if messages and messages[-1].role == "assistant" else ""
        return self.text(messages[:-1] if opened else messages, generation_prompt=True) + opened

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a prompt; no token is added to what the template (or the plain text) says."""
        return self._backend.encode(self.prompt_text(messages), add_special_tokens=False).ids

    def continuations(self, messages: Sequence[Message], texts: Sequence[str]) -> tuple[list[int], list[list[int]]]:
        """Token ids of a prompt and of each text after it: what tokenising both together adds to the prompt's own."""
        prompt = self.prompt_text(messages)
        context, *wholes = self._backend.encode_batch([prompt, *(prompt + text for text in texts)], False)
        found = [whole.ids[len(context.ids) :] for whole in wholes]
        if [] in found:
            raise ChatError(f"the text {texts[found.index([])]!r:.60} adds no token of its own to its prompt")
        return context.ids, found

    def encode(self, messages: Sequence[Message], where: str = "row") -> MaskedTokens:
        """Token ids and mask: every assistant turn is trained, its content and its end token, and nothing else."""
        plan = self._plan(messages, where)
        return self._masked(plan, self._backend.encode(plan.text, add_special_tokens=False))

    def encode_all(
        self, conversations: Iterable[tuple[Tag, Sequence[Message], str]], threads: int = 1
    ) -> Iterator[tuple[Tag, MaskedTokens]]:
        """What `encode` gives for each (tag, messages, how errors name it), in order, with its tag.

        This thread renders templates while `threads` others tokenise (Rust lets go of the interpreter meanwhile).
        """
        source, tokenise = iter(conversations), partial(self._backend.encode_batch, add_special_tokens=False)
        waiting: deque[tuple[list[Tag], list[_Plan], Future[list[Encoding]]]] = deque()
        with ThreadPoolExecutor(threads) as pool:
            while part := list(islice(source, PART)):
                plans = [self._plan(messages, where) for _, messages, where in part]
                waiting.append(([tag for tag, _, _ in part], plans, pool.submit(tokenise, [p.text for p in plans])))
                if len(waiting) > 2 * threads:
                    yield from self._finished(*waiting.popleft())
            for ready in waiting:
                yield from self._finished(*ready)

    def pair(self, prompt: Sequence[Message], answer: str, where: str = "row") -> tuple[list[int], list[int]]:
        """Prompt and completion ids of one answer: exactly the last turn that `encode` would train, with its end token.

        Both come from one tokenisation. A token that starts in the prompt belongs to it, also where it reaches into
        the answer (a newline that merges with the header's), so the prompt may then differ from `prompt_ids(prompt)`.
        """
        return last_turn(self.encode((*prompt, Message("assistant", answer)), where))

    def show(self, encoded: MaskedTokens, *, colour: bool | None = None) -> str:
        """The conversation with what is trained between ⟦ and ⟧ (and green where the terminal has colours)."""
        if colour is None:
            colour = sys.stderr.isatty() and "NO_COLOR" not in os.environ
        before, after = ("\033[32m⟦", "⟧\033[0m") if colour else ("⟦", "⟧")
        parts = []
        for trained, run in groupby(zip(encoded.token_ids, encoded.mask, strict=True), key=lambda pair: pair[1]):
            text = self._backend.decode([token for token, _ in run], skip_special_tokens=False)
            parts.append(before + text + after if trained else text)
        return "".join(parts)

    def _probe(self) -> tuple[str, str]:
        asked = (Message("user", "a"),)
        waiting = self.text(asked, generation_prompt=True)
        turns = [self.text((*asked, Message("assistant", content))) for content in "bc"]
        closing = turns[0].removeprefix(waiting + "b")
        if turns != [waiting + content + closing for content in "bc"]:
            raise ChatError(
                "the chat template does not write an answer right after its generation prompt, so training and "
                f"generation would disagree: it waits with\n{waiting!r}\nand then writes\n{turns[0]!r}"
            )
        before = self.text(asked)
        return (waiting.removeprefix(before) if waiting.startswith(before) else ""), closing

    def _find_end(self) -> int:
        text = self.text((Message("user", "a"), Message("assistant", "b")))
        encoding = self._backend.encode(text, add_special_tokens=False)
        end = len(text) - len(self._closing) + len(self._end_text)
        last = bisect_left([begin for begin, _ in encoding.offsets], end) - 1
        special = {token_id for token_id, token in self._backend.get_added_tokens_decoder().items() if token.special}
        if not self._end_text or encoding.ids[last] not in special or encoding.offsets[last][1] != end:
            raise ChatError(
                "missing end-of-turn token: the chat template must close an assistant turn with a special token, so "
                f"that a model learns to stop; it closes with {self._closing!r}. "
                'Set template = "tulu3" under [base], or repair the template:\n' + repr(text)
            )
        return encoding.ids[last]

    def _plan(self, messages: Sequence[Message], where: str) -> _Plan:
        text, last = self.text(messages), len(messages) - 1
        spans = []
        for turn, message in enumerate(messages):
            if message.role == "assistant":
                head = self.text(messages[:turn], generation_prompt=True)
                closed = text if turn == last else self.text(messages[: turn + 1])
                spans.append(self._span(turn, head, closed, text, where))
        return _Plan(text, spans, where)

    def _span(self, turn: int, head: str, closed: str, text: str, where: str) -> Span:
        """Where an answer stands in its conversation's text: after `head`, to the end of `closed`."""
        end = len(closed) - len(self._closing) + len(self._end_text)
        if not closed.endswith(self._closing):
            raise self._unmarked(f"{where}: missing end-of-turn token {self._end_text!r} after turn {turn}", text)
        if not text.startswith(head) or not text.startswith(closed[:end]) or not head.endswith(self._opening):
            raise self._unmarked(
                f"{where}: the chat template writes the turns up to turn {turn} differently once later turns "
                "follow, so what is trained has no fixed place; use another template or other turns "
                "(a conversation starts with system or user)",
                text,
            )
        return Span(len(head), end)

    def _finished(
        self, tags: list[Tag], plans: list[_Plan], encodings: Future[list[Encoding]]
    ) -> Iterator[tuple[Tag, MaskedTokens]]:
        for tag, plan, encoding in zip(tags, plans, encodings.result(), strict=True):
            yield tag, self._masked(plan, encoding)

    def _masked(self, plan: _Plan, encoding: Encoding) -> MaskedTokens:
        ids, closed = encoding.ids, True
        mask = [False] * len(ids)
        for span in plan.spans:
            first, last = _first_from(encoding, span.begin), _first_from(encoding, span.end)
            mask[first:last] = [True] * (last - first)
            ended = first < last and ids[last - 1] == self.end_id
            closed = closed and ended and _chars(encoding, last - 1)[1] == span.end
        encoded = MaskedTokens(ids, mask)
        if not closed:
            message = f"{plan.where}: an assistant turn does not end in the token {self._end_text!r}"
            raise self._refusal(message, encoded)
        self._check(encoded, plan.where)
        return encoded

    def _check(self, encoded: MaskedTokens, where: str) -> None:
        bos, ids = self._bos, encoded.token_ids
        if not any(encoded.mask):
            raise self._refusal(f"{where}: nothing to train: no assistant turn; add one or drop the row", encoded)
        if all(encoded.mask):
            raise self._refusal(f"{where}: the mask covers everything, there is no prompt; add a user turn", encoded)
        if bos is not None and ids[:2] == [bos, bos]:
            raise self._refusal(f"{where}: doubled BOS; remove it from the first message or the template", encoded)

    def _refusal(self, message: str, encoded: MaskedTokens) -> ChatError:
        return ChatError(f"{message}\ntrained text is marked ⟦so⟧:\n{_shorten(self.show(encoded))}")

    def _unmarked(self, message: str, text: str) -> ChatError:
        ids = self._backend.encode(text, add_special_tokens=False).ids
        return self._refusal(message, MaskedTokens(ids, [False] * len(ids)))


def _writer(template: str, specials: dict[str, Any]) -> Callable[[list[dict[str, str]], bool], str]:
    """The template as a function of plain messages and whether an answer is awaited.

    `render_jinja_template` copies messages and settings for every text; the compiled template it uses needs no copies
    of plain texts, and is asked itself where this version of transformers has it.
    """
    compiled = getattr(chat_template_utils, "_compile_jinja_template", None)
    if compiled is None:
        render: Any = chat_template_utils.render_jinja_template  # its annotation forgets the second value
        return lambda messages, waiting: str(
            render([messages], chat_template=template, add_generation_prompt=waiting, **specials)[0][0]
        )
    write = compiled(template).render
    rest = {"tools": None, "documents": None, **specials}
    return lambda messages, waiting: str(write(messages=messages, add_generation_prompt=waiting, **rest))


def last_turn(encoded: MaskedTokens) -> tuple[list[int], list[int]]:
    """Token ids up to the last run of trained tokens, and that run."""
    end = len(encoded.mask) - encoded.mask[::-1].index(True)
    begin = end
    while begin > 0 and encoded.mask[begin - 1]:
        begin -= 1
    return encoded.token_ids[:begin], encoded.token_ids[begin:end]


def _first_from(encoding: Encoding, place: int) -> int:
    """The first token that starts at character `place` or after it; all offsets are fetched only where they must."""
    total, found = len(encoding), encoding.char_to_token(place)
    if total == 0 or _chars(encoding, total - 1)[0] < place:
        return total
    if (
        found is not None
        and _chars(encoding, found)[0] == place
        and (not found or _chars(encoding, found - 1)[0] < place)
    ):
        return found
    return bisect_left([begin for begin, _ in encoding.offsets], place)


def _chars(encoding: Encoding, token: int) -> tuple[int, int]:
    return encoding.token_to_chars(token) or (0, 0)  # None only beyond the last token


def _shorten(text: str, limit: int = 2400) -> str:
    if len(text) <= limit:
        return text
    return f"{text[: limit // 2]}\n… {len(text) - limit} characters …\n{text[-(limit // 2) :]}"


class ChatGenerator(ABC):
    """A generator that writes from token ids, and so from conversations: what ours and vLLM have in common."""

    chat: Chat

    def complete(
        self, prompts: Sequence[Messages], sampling: Sampling, done: Done | None = None
    ) -> list[list[Completion]]:
        """`sampling.n` completions of each conversation; see `tercet.rows.Generator`."""
        return self.write(self.encode(prompts), sampling, done)

    def encode(self, prompts: Sequence[Messages]) -> list[list[int]]:
        """Token ids of conversations that wait for an answer, as the model will see them."""
        return [self.chat.prompt_ids(messages) for messages in prompts]

    @abstractmethod
    def write(
        self, prompts: Sequence[Ids], sampling: Sampling, done: Done | None = None, streams: Sequence[int] | None = None
    ) -> list[list[Completion]]:
        """The same from token ids. `streams` names each prompt's stream of random numbers; its position when absent."""
