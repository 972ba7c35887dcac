"""How a model reads a conversation: token ids and the mask of what is trained.

The text comes from the chat template and is tokenised once, so ids equal `tokenizer.apply_chat_template`. What is
trained comes from structure, never from searching strings (`turns`). Character offsets carry its borders over to
tokens. A token belongs to the part in which it starts, because during generation that part contains it.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import warnings
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import groupby, islice
from pathlib import Path
from typing import NamedTuple, TypeVar

from tokenizers import Encoding, Tokenizer
from transformers import PreTrainedTokenizerFast

from tercet.models import turns
from tercet.models.chat_template import DATE_KEY, OWN, TEMPLATES, ChatError, ChatTemplate, template_text
from tercet.models.hf_folder import load_tokenizer
from tercet.models.turns import Turns, UntrainableError
from tercet.models.wording import Wording
from tercet.outside import printable
from tercet.rows import PLAIN, Completion, Message, Messages, Sampling

__all__ = ["TEMPLATES", "Chat", "ChatError", "ChatGenerator", "MaskedTokens", "last_turn", "open_chat"]

PART = 256  # conversations that one thread tokenises at once

Tag = TypeVar("Tag")
Ids = Sequence[int]
Done = Callable[[int, list[Completion]], None]


@dataclass(frozen=True)
class MaskedTokens:
    """Token ids and, for each, whether it is trained. Example: `MaskedTokens([1, 520, 33], [False, False, True])`.

    `others` are the answers of earlier turns that these ids do not hold as the model writes them: the template writes
    them differently once later turns follow, so each stands behind what the model sees before it.
    """

    token_ids: list[int]
    mask: list[bool]
    others: tuple[MaskedTokens, ...] = ()


class _Plan(NamedTuple):
    """A conversation before it is tokenised: the texts it takes, and how errors name it."""

    paths: list[turns.TrainedText]
    where: str


class Chat:
    """A tokenizer with a template: the one place where conversations become tokens, for training and generation.

    `template` is "own" (the tokenizer's), "own:NAME", a name of `TEMPLATES` or a file. Prompts and completions work
    with any template, also with none as long as prompts are plain; `encode` needs one that can be trained with.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, template: str = OWN, ends: Iterable[int] = ()) -> None:
        """`ends` are tokens that end a generation beside those of template and tokenizer (the generation config's)."""
        self.tokenizer, self._named = tokenizer, template
        self._ends = set(ends)
        date = str(tokenizer.init_kwargs.get(DATE_KEY) or "")
        self._template = ChatTemplate(template_text(tokenizer, template), tokenizer.special_tokens_map, date)
        self.template = self._template.text
        self._bos = tokenizer.bos_token_id  # looked up by the tokenizer each time it is asked
        self._backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._backend.post_processor = None  # some trim offsets; a chat template writes its own special tokens
        self._backend.no_truncation()
        self._backend.no_padding()
        self.turns = Turns(self._template, self._closing_tokens())

    def __reduce__(self) -> tuple[type[Chat], tuple[object, ...]]:
        """Made again in another process: a compiled template cannot be sent."""
        return Chat, (self.tokenizer, self._named, sorted(self._ends))

    def _closing_tokens(self) -> list[str]:
        """The tokens that may end a turn: special ones and those that end a generation, none that begins a text."""
        added = self._backend.get_added_tokens_decoder()
        found = {token_id: token.content for token_id, token in added.items() if token.special}
        ends = {*self._ends, self.tokenizer.eos_token_id} - {None}
        found |= {token_id: added[token_id].content for token_id in ends if token_id in added}
        return [text for token_id, text in found.items() if token_id in ends or token_id != self._bos]

    @cached_property
    def untrainable(self) -> str:
        """Why nothing can be trained with this template; empty where it can."""
        try:
            _ = self.end_id
        except ChatError as error:
            return str(error)
        return ""

    @cached_property
    def digest(self) -> str:
        """SHA-256 over all that decides ids and masks: the tokenizer, the template and its special tokens."""
        parts = (self._backend.to_str(), *self._template.digest_parts)
        return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()

    @cached_property
    def end_id(self) -> int:
        """The token that ends an assistant turn; a ChatError where the template does not show it."""
        return self._token(self.turns.shape.ending.text.lstrip())

    @property
    def closing_ids(self) -> list[int]:
        """What closes a scored answer: the end token, or the tokenizer's where the template does not show one."""
        if not self.untrainable:
            return [self.end_id]
        return [] if self.tokenizer.eos_token_id is None else [self.tokenizer.eos_token_id]

    @cached_property
    def stops(self) -> set[int]:
        """The tokens that end an answer: the template's, the tokenizer's and those of the generation config."""
        eos = self.tokenizer.eos_token_id
        found = self._ends | ({eos} if eos is not None else set())
        if self.untrainable:
            return found
        calls = self.turns.calls
        return found | {self.end_id} | ({self._token(calls.ending.text.lstrip())} if calls else set())

    def _token(self, text: str) -> int:
        token_id = self._backend.token_to_id(text)
        if token_id is None or self._backend.encode(text, add_special_tokens=False).ids != [token_id]:
            raise ChatError(f"missing end-of-turn token: {text!r} is not one token of the tokenizer")
        return int(token_id)

    def begun(self, prompt_ids: Ids) -> str:
        """The mark of a thought that a prompt has opened, with which its completion's text begins; mostly nothing."""
        return self._wording.begun(prompt_ids)

    def completion(
        self, token_ids: Sequence[int], logps: Sequence[float], stop: Sequence[str], begun: str = ""
    ) -> Completion:
        """A completion from its tokens; its text ends before the first stop string, or the token that ends it.

        `begun` stands before the text, which then reads as if the model had opened its thought itself.
        """
        ids = list(token_ids)
        closed = bool(ids) and ids[-1] in self.stops
        text = self._wording.words(ids[:-1] if closed else ids)
        cuts = [place for place in map(text.find, stop) if place >= 0]
        ended = "stop" if cuts else "eos" if closed else "length"
        text = self._wording.marked(begun, text[: min(cuts, default=len(text))])
        return Completion(text, tuple(ids), tuple(logps), ended)

    @cached_property
    def _wording(self) -> Wording:
        return Wording(self.tokenizer, None if self.untrainable else self.turns, self._closing_tokens())

    @cached_property
    def lead(self) -> str:
        """What the model writes before an answer without a thought: mostly nothing."""
        return "" if self.untrainable else self.turns.lead

    def text(self, messages: Sequence[Message], *, generation_prompt: bool = False) -> str:
        """The template's text of a conversation."""
        return self.turns.text(messages, waiting=generation_prompt)

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
        if not opened:
            return self.text(messages, generation_prompt=True)
        return self.text(messages[:-1], generation_prompt=True) + self.lead + opened

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a prompt; no token is added to what the template (or the plain text) says."""
        return self._backend.encode(self.prompt_text(messages), add_special_tokens=False).ids

    def reply_ids(self, replies: Sequence[Message]) -> list[int]:
        """Token ids of what follows an answer that has ended, where others reply: their turns, and the next's opening.

        What a template writes otherwise further up once somebody replied (thoughts that it leaves out) stays as it was.
        """
        return self._backend.encode(self.turns.behind(replies), add_special_tokens=False).ids

    def continuations(self, messages: Sequence[Message], texts: Sequence[str]) -> tuple[list[int], list[list[int]]]:
        """Token ids of a prompt and of each text after it: what tokenising both together adds to the prompt's own."""
        prompt = self.prompt_text(messages)
        begun = prompt if messages[-1].role in (PLAIN, "assistant") else prompt + self.lead
        context, *wholes = self._backend.encode_batch([prompt, *(begun + text for text in texts)], False)
        found = [whole.ids[len(context.ids) :] for whole in wholes]
        if [] in found:
            raise ChatError(f"the text {texts[found.index([])]!r:.60} adds no token of its own to its prompt")
        return context.ids, found

    def encode(self, messages: Sequence[Message], where: str = "row") -> MaskedTokens:
        """Token ids and mask: every assistant turn is trained, its content and its end token, and nothing else."""
        plan = self._plan(messages, where)
        return self._masked(plan, [self._backend.encode(path.text, add_special_tokens=False) for path in plan.paths])

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
                texts = [path.text for plan in plans for path in plan.paths]
                waiting.append(([tag for tag, _, _ in part], plans, pool.submit(tokenise, texts)))
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
        return "".join(
            before + printable(text) + after if trained else printable(text) for trained, text in self.runs(encoded)
        )

    def runs(self, encoded: MaskedTokens) -> Iterator[tuple[bool, str]]:
        """The text in runs of tokens that are trained, and that are not."""
        for trained, run in groupby(zip(encoded.token_ids, encoded.mask, strict=True), key=lambda pair: pair[1]):
            yield trained, self._backend.decode([token for token, _ in run], skip_special_tokens=False)

    def _plan(self, messages: Sequence[Message], where: str) -> _Plan:
        if self.untrainable:
            raise ChatError(f"{where}: {self.untrainable}")
        try:
            return _Plan(self.turns.paths(messages), where)
        except UntrainableError as error:
            raise self._unmarked(f"{where}: {error}", error.text) from None

    def _finished(
        self, tags: list[Tag], plans: list[_Plan], encodings: Future[list[Encoding]]
    ) -> Iterator[tuple[Tag, MaskedTokens]]:
        found = iter(encodings.result())
        for tag, plan in zip(tags, plans, strict=True):
            yield tag, self._masked(plan, list(islice(found, len(plan.paths))))

    def _masked(self, plan: _Plan, encodings: Sequence[Encoding]) -> MaskedTokens:
        *others, last = (self._path(*one, plan.where) for one in zip(plan.paths, encodings, strict=True))
        return MaskedTokens(last.token_ids, last.mask, tuple(others)) if others else last

    def _path(self, path: turns.TrainedText, encoding: Encoding, where: str) -> MaskedTokens:
        ids, closed = encoding.ids, True
        mask = [False] * len(ids)
        for span in path.spans:
            first, last = _first_from(encoding, span.begin), _first_from(encoding, span.end)
            mask[first:last] = [True] * (last - first)
            ended = first < last and ids[last - 1] in self.stops
            closed = closed and ended and _chars(encoding, last - 1)[1] == span.end
        encoded = MaskedTokens(ids, mask)
        if not closed:
            message = f"{where}: an assistant turn does not end in the token {self.turns.shape.ending.text!r}"
            raise self._refusal(message, encoded)
        self._check(encoded, where)
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


def open_chat(folder: Path) -> Chat:
    """The chat of a model folder; every token that its generation config names ends an answer."""
    chat = Chat(load_tokenizer(folder), ends=named_ends(folder))
    if chat.template and chat.untrainable:
        warnings.warn(f"{folder} can answer, but not be trained: {chat.untrainable.splitlines()[0]}", stacklevel=2)
    return chat


def named_ends(folder: Path) -> list[int]:
    """The tokens that the generation config of a model folder names as ends."""
    path = folder / "generation_config.json"
    named = json.loads(path.read_text("utf-8")).get("eos_token_id") if path.is_file() else None
    return [end for end in (named if isinstance(named, list) else [named]) if isinstance(end, int)]


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
