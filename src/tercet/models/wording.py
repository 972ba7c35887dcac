"""What a completion says: the text of its tokens, with its thought between marks that every reader knows.

Some templates mark thoughts, or where an answer begins, by special tokens or by marks of their own. In the text a
thought then stands between `<think>` and `</think>`, which `tercet.verify.thoughts` reads; other texts stay as written.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import groupby

from transformers import PreTrainedTokenizerFast

from tercet.models.turns import Turns
from tercet.verify.thoughts import CLOSE, OPEN, TOKENS, left_open

PROMPT_END = 48  # tokens at the end of a prompt, which may open a thought; some tokenizers have one for each byte


class Wording:
    """A tokenizer with what its template says of thoughts; `turns` is None where nothing can be trained with it."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, turns: Turns | None, closing: Sequence[str]) -> None:
        """`closing` are the tokens that may end a turn."""
        self.tokenizer, self.turns = tokenizer, turns
        self.lead, self.marks = ("", ("", "")) if turns is None else (turns.lead, turns.marks)
        begins = self.lead + self.marks[0]
        # Answers or thoughts begin with white space or special tokens, which are no part of what they say.
        self._begins = any(token in begins for token in closing) or self.lead.isspace()

    def begun(self, prompt_ids: Sequence[int]) -> str:
        """The mark of a thought that a prompt has opened; mostly nothing."""
        prompt = self._decoded(prompt_ids[-PROMPT_END:], marks=True).rstrip()
        own = self.marks[0].strip()
        mark = own if own and prompt.endswith(own) else left_open(prompt)
        return f"{mark}\n" if mark else ""

    def words(self, ids: Sequence[int]) -> str:
        """The text of these tokens, without marks that only say where an answer begins."""
        if self._begins and self.turns is not None:
            behind = next((place for place, one in enumerate(reversed(ids)) if one not in self._behind), len(ids))
            found = self.turns.said(self._decoded(ids[: len(ids) - behind], marks=True))
            if found is not None:
                return found
        if self._thought_ids.isdisjoint(ids):
            return self._decoded(ids)
        runs = groupby(ids, self._thought_ids.__contains__)  # special tokens that say where a thought begins and ends
        return "".join(self._decoded(list(run), marks=mark) for mark, run in runs)

    def marked(self, begun: str, text: str) -> str:
        """The text behind what its prompt has begun; marks that only this template has become the common ones."""
        if text.startswith(OPEN):
            return text
        text = begun + text
        opens, between = (mark.strip() for mark in self.marks)
        if not opens or not between or opens in TOKENS or not text.startswith(opens):
            return text
        thought, found, answer = text.removeprefix(opens).partition(between)
        return f"{OPEN}{thought.strip()}{CLOSE}{answer.lstrip()}" if found else f"{OPEN}{thought.lstrip()}"

    def _decoded(self, ids: Sequence[int], *, marks: bool = False) -> str:
        """The text of these tokens, with special ones or without."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=not marks))

    @cached_property
    def _special(self) -> dict[int, str]:
        added = self.tokenizer.added_tokens_decoder
        return {token_id: token.content for token_id, token in added.items() if token.special}

    @cached_property
    def _thought_ids(self) -> frozenset[int]:
        return frozenset(token_id for token_id, text in self._special.items() if text in TOKENS)

    @cached_property
    def _behind(self) -> frozenset[int]:
        """The special tokens that may stand behind an answer, before the one that ends it."""
        marks = self.lead + "".join(self.marks)
        return frozenset(token_id for token_id, text in self._special.items() if text not in marks)
