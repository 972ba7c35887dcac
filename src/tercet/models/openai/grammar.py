"""Answers that must be JSON: before each token is drawn, those that JSON (or a schema of it) forbids are struck out.

The package llguidance (`pip install 'tercet[json]'`) knows which; without it such requests are refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from importlib.util import find_spec
from typing import Any
from weakref import WeakKeyDictionary

import numpy
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

ANY_OBJECT = '{"type": "object"}'
LARGEST = 64 << 10  # characters of a schema
MISSING = "this server has no llguidance, so it cannot promise JSON: pip install 'tercet[json]'"
_known: WeakKeyDictionary[PreTrainedTokenizerFast, Any] = WeakKeyDictionary()


class GrammarError(ValueError):
    """A schema that cannot be promised."""


class Matcher:
    """How far one answer has come in its grammar."""

    def __init__(self, own: Any) -> None:
        self._own = own

    def allowed(self, logits_V: Tensor) -> Tensor:
        """The logits without those of forbidden tokens."""
        bits = numpy.unpackbits(numpy.frombuffer(self._own.compute_bitmask(), numpy.uint8), bitorder="little")
        mask = torch.zeros(len(logits_V), dtype=torch.bool)
        mask[: len(bits)] = torch.from_numpy(bits[: len(mask)]).bool()
        return logits_V.masked_fill(~mask.to(logits_V.device), -torch.inf)

    def take(self, token: int) -> None:
        """The token that was drawn."""
        self._own.consume_token(token)


def check(schema: str) -> str:
    """A schema that can be promised, as text; a GrammarError says why not. Takes long for large ones."""
    if find_spec("llguidance") is None:
        raise GrammarError(MISSING)
    from llguidance import LLMatcher

    if len(schema) > LARGEST:
        raise GrammarError(f"a schema of {len(schema)} characters is too long; at most {LARGEST}")
    try:
        wrong = LLMatcher.validate_grammar(_grammar(schema))
    except ValueError as error:
        wrong = str(error)
    if wrong:
        raise GrammarError(f"the schema cannot be promised: {wrong:.300}")
    return schema


def matcher(schema: str, tokenizer: PreTrainedTokenizerFast, ends: Iterable[int]) -> Matcher | None:
    """The start of an answer that follows a checked schema; None where there is none."""
    if not schema:
        return None
    import llguidance.hf
    from llguidance import LLMatcher

    if tokenizer not in _known:
        _known[tokenizer] = llguidance.hf.from_tokenizer(tokenizer, eos_token=sorted(ends))
    return Matcher(LLMatcher(_known[tokenizer], _grammar(schema)))


def _grammar(schema: str) -> str:
    from llguidance import LLMatcher

    space = {"whitespace_flexible": False, "whitespace_pattern": r"[ \n]?"}  # else a small model writes spaces for ever
    options: Any = {"defaults": space}
    return str(LLMatcher.grammar_from_json_schema(json.loads(schema), **options))
