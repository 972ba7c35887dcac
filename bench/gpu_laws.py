"""The forest law on a card: log-probs and gradients of a forest are those of its conversations one by one.

The reference is transformers' own model in float64 on the CPU, one conversation at a time. In fp32 the forest (compiled
FlexAttention on CUDA) must be within 1e-4 of it, relative to its norm; in bfloat16 no further from it than twice what
the plain model is in bfloat16, one by one on the same card. Nothing here needs pydantic, datasets or a verifier.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, PretrainedConfig, PreTrainedModel

from tercet.models.forest import NAME, Leaf, Tree, pack_forest, register
from tercet.models.forest_cuda import BLOCK
from tercet.models.policy import Policy

VOCABULARY = 1000
FP32, TIMES = 1e-4, 2.0  # bounds of the two precisions
EMPTY = Tree([], [Leaf([0, 0], [False, False])])  # what a rank without work computes
Law = Callable[[], dict[str, Any]]


class Found(NamedTuple):
    """Log-probs of every trained token, and the gradient of their weighted sum, both flat and in float64 on the CPU."""

    logps: Tensor
    gradient: Tensor


class Sizes(NamedTuple):
    """One model of the laws: heads, key heads, the size of a head, and whether a token sees only the last ones."""

    heads: int
    key_heads: int
    head: int
    windowed: bool = False


MODELS = {
    "heads of 64, two to a key": Sizes(4, 2, 64),
    "heads of 128, four to a key": Sizes(4, 1, 128),
    "heads of 64, window": Sizes(4, 4, 64, windowed=True),
}


def laws(device: torch.device, longest: int, seed: int = 0) -> Iterator[tuple[str, Law]]:
    """Every law by name; `longest` is the most tokens of a piece. A law returns its distances, `broken` among them."""
    register()
    for name, sizes in MODELS.items():
        make = partial(model_of, sizes, max(4, longest // 3), seed)
        for layout, (trees, share) in layouts(random.Random(seed), longest).items():
            yield f"{name}: {layout}", partial(law, make, trees, share, device)


def law(
    make: Callable[[str, torch.device, torch.dtype], PreTrainedModel],
    trees: Sequence[Tree],
    share: bool,
    device: torch.device,
) -> dict[str, Any]:
    """Distances from the reference in both precisions, each beside its bound; `broken` names those beyond it."""
    exact = one_by_one(make("sdpa", torch.device("cpu"), torch.float64), trees)
    found: dict[str, Any] = {"tokens": sum(tree.num_tokens for tree in trees), "broken": []}
    for dtype in (torch.float32, torch.bfloat16):
        bound = Found(torch.tensor(FP32), torch.tensor(FP32))
        if dtype == torch.bfloat16:
            plain = one_by_one(make("sdpa", device, dtype), trees)
            bound = Found(*(TIMES * far for far in distance(plain, exact)))
        far = distance(forest(make(NAME, device, dtype), trees, share), exact)
        kind = str(dtype).removeprefix("torch.")
        for name, value, limit in zip(Found._fields, far, bound, strict=True):
            found |= {f"{name} {kind}": float(value), f"{name} {kind} bound": float(limit)}
            found["broken"] += [] if value <= limit else [f"{name} {kind}"]
    return found


def layouts(source: random.Random, longest: int) -> dict[str, tuple[list[Tree], bool]]:
    """Trees with many leaves, pairs, conversations, all in one forest with an empty tree; tries; and nothing at all."""
    groups = [tree(source, longest, 8) for _ in range(2)]
    pairs = [tree(source, longest, 2) for _ in range(3)]
    single = [tree(source, longest, 1, trunk=False) for _ in range(4)]
    begun = [tokens(source, longest) for _ in range(2)]
    told = [
        Tree(begun[0] + begun[1] * (k % 2) + tokens(source, longest), groups[0].leaves[k : k + 2]) for k in range(4)
    ]
    return {
        "groups of 8": (groups, False),
        "pairs": (pairs, False),
        "conversations": (single, False),
        "all": ([*groups, *single, EMPTY, *pairs], False),
        "tries": (told, True),
        "empty": ([EMPTY], False),
    }


def tokens(source: random.Random, longest: int) -> list[int]:
    """Random tokens, of random number."""
    return [source.randrange(VOCABULARY) for _ in range(source.randint(longest // 4, longest))]


def tree(source: random.Random, longest: int, leaves: int, *, trunk: bool = True) -> Tree:
    """Random tokens, random lengths; four of five tokens are trained."""
    pieces = [tokens(source, longest) for _ in range(leaves)]
    trained = [Leaf(piece, [source.random() < 0.8 for _ in piece]) for piece in pieces]
    return Tree(tokens(source, longest) if trunk else [], trained)


def model_of(
    sizes: Sizes, window: int, seed: int, attention: str, device: torch.device, dtype: torch.dtype
) -> PreTrainedModel:
    """Three layers; the same weights every time."""
    torch.manual_seed(seed)
    kind: Callable[..., PretrainedConfig] = MistralConfig if sizes.windowed else LlamaConfig
    more: dict[str, Any] = {"sliding_window": window} if sizes.windowed else {}
    config = kind(
        vocab_size=VOCABULARY,
        hidden_size=sizes.heads * sizes.head,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.key_heads,
        head_dim=sizes.head,
        initializer_range=0.1,
        **more,
    )
    model: nn.Module = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    return model.to(device, dtype).eval()  # type: ignore[return-value]


def forest(model: PreTrainedModel, trees: Sequence[Tree], share: bool) -> Found:
    """All at once, filled up as the trainer does."""
    multiple = BLOCK if model.device.type == "cuda" else 64
    logps, _ = Policy(model)(pack_forest(trees, multiple, share=share).to(model.device))
    return gradient(model, logps)


def one_by_one(model: PreTrainedModel, trees: Sequence[Tree]) -> Found:
    """Each conversation by itself, in the order of the forest."""
    parts, device = [], model.device
    for ids, trained in conversations(trees):
        hidden = model(input_ids=torch.tensor([ids], device=device), use_cache=False).logits[0]
        logits = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
        places = torch.tensor([i for i, on in enumerate(trained) if on and i], dtype=torch.long, device=device)
        targets = torch.tensor(ids, device=device)[places]
        parts.append(logits.log_softmax(-1)[places - 1, targets])
    return gradient(model, torch.cat(parts))


def conversations(trees: Sequence[Tree]) -> Iterator[tuple[list[int], list[bool]]]:
    """Token ids and masks, prompt repeated."""
    for one in trees:
        for leaf in one.leaves:
            yield [*one.trunk, *leaf.token_ids], [*[False] * len(one.trunk), *leaf.mask]


def gradient(model: nn.Module, logps: Tensor) -> Found:
    """The log-probs, and what a sum of them with fixed random weights gives for every parameter."""
    weights = torch.randn(len(logps), generator=torch.Generator().manual_seed(1)).to(logps.device, logps.dtype)
    (logps * weights).sum().backward()
    grads = [torch.zeros_like(p) if p.grad is None else p.grad.detach() for p in model.parameters()]
    return Found(logps.detach().cpu().double(), torch.cat([grad.cpu().double().flatten() for grad in grads]))


def distance(found: Found, exact: Found) -> Found:
    """Norms of the differences over those of the exact values, which are 0 where nothing is trained."""
    far = [(ours - theirs).norm() / (theirs.norm() or 1.0) for ours, theirs in zip(found, exact, strict=True)]
    return Found(far[0], far[1])
