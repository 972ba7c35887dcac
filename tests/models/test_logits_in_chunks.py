"""The logits of a whole batch never exist at once: in training, in scoring, in what a server says of a prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, LlamaConfig

from tercet.algos.tokens import CHUNK_LOGITS
from tercet.models.forest import Leaf, Tree, pack_forest
from tercet.models.openai.logps import prompt_logps
from tercet.models.opening import laid_out
from tercet.models.policy import Policy
from tercet.models.score import CHUNK, Question, score

VOCABULARY, TOKENS = 40_000, 1600
ROW = [3 + 7 * place % 30_000 for place in range(TOKENS)]


class _Largest(TorchDispatchMode):
    """The most numbers that one storage of an operation's results has."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for one in found if isinstance(found, tuple | list) else (found,):
            if isinstance(one, torch.Tensor):
                self.numbers = max(self.numbers, one.untyped_storage().nbytes() // one.itemsize)
        return found


@pytest.fixture(scope="module")
def policy() -> Policy:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=32,
        num_attention_heads=2,
        num_hidden_layers=1,
        vocab_size=VOCABULARY,
        tie_word_embeddings=True,
    )
    return laid_out(AutoModelForCausalLM.from_config(config).eval(), "auto")


@contextmanager
def at_most(numbers: int) -> Iterator[None]:
    assert numbers < TOKENS * VOCABULARY / 2, "else nothing would be shown"
    with _Largest() as largest:
        yield
    assert VOCABULARY < largest.numbers <= numbers


def trained(policy: Policy, **options: Any) -> None:
    forest = pack_forest([Tree([], [Leaf(ROW, [True] * TOKENS)])])
    policy(forest, **options)[0].sum().backward()


WAYS: dict[str, tuple[Callable[[Policy], object], int]] = {
    "training": (trained, CHUNK_LOGITS),
    "with a temperature and entropies": (lambda policy: trained(policy, temperature=0.7, entropy=True), CHUNK_LOGITS),
    "bits per byte": (lambda policy: list(score(policy, [Question(ROW[:1], [ROW[1:]])], 8192)), CHUNK * VOCABULARY),
    "choices": (
        lambda policy: list(score(policy, [Question(ROW[:9], [ROW[i : i + 200] for i in range(8)])], 8192)),
        CHUNK * VOCABULARY,
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_logits_come_in_chunks(policy, way):
    run, most = WAYS[way]
    with at_most(most):
        run(policy)


def test_what_a_server_says_of_a_prompt_comes_in_chunks(policy):
    hidden = torch.randn(TOKENS, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), at_most(CHUNK * VOCABULARY):
        assert len(prompt_logps(policy, ROW, hidden, 5)) == TOKENS
