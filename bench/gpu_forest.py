"""The forest law on a card: log-probs and gradients of a forest are those of its conversations one by one.

The reference is transformers' own model in float64 on the CPU, one conversation at a time. In fp32 the forest (compiled
FlexAttention on CUDA) must be within 1e-4 of it, relative to its norm; in bfloat16 no further from it than twice what
the plain model is in bfloat16, one by one on the same card.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from tercet.models.forest import NAME, Leaf, Tree, pack_forest, register
from tercet.models.policy import Policy
from tercet.train.batch import filling

VOCABULARY = 1000
FP32, TIMES = 1e-4, 2.0  # bounds of the two precisions


class Found(NamedTuple):
    """Log-probs of every trained token, and the gradient of their weighted sum, both flat and in float64 on the CPU."""

    logps: Tensor
    gradient: Tensor


def main() -> None:
    """Both precisions on several layouts; exit code 1 where the law is broken."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--dry", action="store_true", help="short conversations, on whatever processor is there")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if not torch.accelerator.is_available() and not options.dry:
        raise SystemExit("no accelerator is visible; use --dry to try this on the CPU")
    kind = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    device, longest = kind or torch.device("cpu"), 24 if options.dry else 700
    register()
    source = random.Random(options.seed)
    broken = []
    print("| layout | tokens | precision | log-probs | gradient | bound |\n|---|--:|---|--:|--:|--:|")
    for name, trees in layouts(source, longest).items():
        exact = one_by_one(llama(options.seed, "sdpa", torch.device("cpu"), torch.float64), trees)
        for dtype in (torch.float32, torch.bfloat16):
            found = forest(llama(options.seed, NAME, device, dtype), trees)
            bound = Found(torch.tensor(FP32), torch.tensor(FP32))
            if dtype == torch.bfloat16:
                plain = one_by_one(llama(options.seed, "sdpa", device, dtype), trees)
                bound = Found(*(TIMES * far for far in distance(plain, exact)))
            far = distance(found, exact)
            tokens = sum(tree.num_tokens for tree in trees)
            limits = " / ".join(f"{float(limit):.1e}" for limit in bound)
            print(f"| {name} | {tokens} | {dtype} | {far.logps:.1e} | {far.gradient:.1e} | {limits} |", flush=True)
            broken += (
                [f"{name} in {dtype}"] if not (far.logps <= bound.logps and far.gradient <= bound.gradient) else []
            )
    if broken:
        raise SystemExit(f"the forest law is broken: {'; '.join(broken)}")


def layouts(source: random.Random, longest: int) -> dict[str, list[Tree]]:
    """Trees with many leaves, pairs, single conversations, and all of them in one forest."""
    groups = [tree(source, longest, 8) for _ in range(2)]
    pairs = [tree(source, longest, 2) for _ in range(3)]
    single = [tree(source, longest, 1, trunk=False) for _ in range(4)]
    return {"groups of 8": groups, "pairs": pairs, "conversations": single, "all": [*groups, *single, *pairs]}


def tree(source: random.Random, longest: int, leaves: int, *, trunk: bool = True) -> Tree:
    """Random tokens, random lengths."""

    def draw() -> list[int]:
        return [source.randrange(VOCABULARY) for _ in range(source.randint(longest // 4, longest))]

    pieces = [draw() for _ in range(leaves)]
    return Tree(draw() if trunk else [], [Leaf(piece, [source.random() < 0.8 for _ in piece]) for piece in pieces])


def llama(seed: int, attention: str, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """Four layers with heads of 64, two query heads to a key head; the same weights every time."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.1,
    )
    model: nn.Module = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    return model.to(device, dtype).eval()  # type: ignore[return-value]


def forest(model: PreTrainedModel, trees: Sequence[Tree]) -> Found:
    """All at once, filled up as the trainer does."""
    logps, _ = Policy(model)(pack_forest(trees, filling(model.device)).to(model.device))
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
    grads = [p.grad.detach().cpu().double().flatten() for p in model.parameters() if p.grad is not None]
    return Found(logps.detach().cpu().double(), torch.cat(grads))


def distance(found: Found, exact: Found) -> Found:
    """Norms of the differences over those of the exact values."""
    far = [(ours - theirs).norm() / theirs.norm() for ours, theirs in zip(found, exact, strict=True)]
    return Found(far[0], far[1])


if __name__ == "__main__":
    main()
