"""How a token is drawn from logits: greedy, or by inverse transform from a number of the sample's own (hop 9).

Shape suffixes: B rows being decoded, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tercet.rows import Sampling


def uniforms(sampling: Sampling, prompt: int, sample: int) -> list[float]:
    """This sample's own random numbers in [0, 1)."""
    if not sampling.temperature:
        return []
    seed, number = sampling.stream(prompt)
    mixed = (seed * 1_000_003 + number) * 1_000_003 + sample
    source = torch.Generator().manual_seed(mixed % (1 << 63))
    return torch.rand(sampling.max_new_tokens, generator=source, dtype=torch.float64).tolist()


def choose(logits_BV: Tensor, uniforms_B: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Tokens `(B,)` and their log-probs under the tempered distribution before top-k and top-p cut it."""
    if not sampling.temperature:
        tokens = logits_BV.max(dim=1).indices  # three times as fast as argmax on CPU
        return tokens, logits_BV.gather(1, tokens[:, None]).squeeze(1) - logits_BV.logsumexp(dim=1)
    if sampling.temperature != 1.0:
        logits_BV = logits_BV / sampling.temperature
    logps = logits_BV.log_softmax(dim=1)
    probs = _cut(logps.exp(), sampling)
    tokens = _inverse_cdf(probs, uniforms_B)
    return tokens, logps.gather(1, tokens[:, None]).squeeze(1)


def _cut(probs: Tensor, sampling: Sampling) -> Tensor:
    """Zero what top-k and top-p leave out."""
    if sampling.top_k:
        floor = probs.topk(min(sampling.top_k, probs.shape[1]), dim=1).values[:, -1:]
        probs = probs.masked_fill(probs < floor, 0.0)
    if sampling.top_p < 1.0:
        ranked, order = probs.sort(dim=1, descending=True)
        before = ranked.cumsum(dim=1) - ranked
        ranked = ranked.masked_fill(before >= sampling.top_p * ranked.sum(dim=1, keepdim=True), 0.0)
        probs = torch.zeros_like(probs).scatter_(1, order, ranked)
    return probs


def _inverse_cdf(probs: Tensor, uniforms: Tensor, width: int = 256) -> Tensor:
    """The token at which the cumulative probability passes the uniform number; blocks first, then inside one block."""
    rows, vocabulary = probs.shape
    padded = torch.nn.functional.pad(probs, (0, -vocabulary % width)).view(rows, -1, width)
    blocks = padded.sum(dim=2).to(torch.float64).cumsum(dim=1)
    target = (uniforms.to(torch.float64) * blocks[:, -1])[:, None]
    block = torch.searchsorted(blocks, target, right=True).clamp_(max=blocks.shape[1] - 1)
    before = torch.where(block > 0, blocks.gather(1, (block - 1).clamp(min=0)), 0.0)
    inside = padded[torch.arange(rows, device=probs.device), block.squeeze(1)]
    sums = inside.cumsum(dim=1, dtype=torch.float64)
    within = torch.searchsorted(sums, (target - before).clamp(min=0.0), right=True)
    likely = (inside > 0).to(torch.int8).flip(1).argmax(dim=1, keepdim=True)  # guards against rounding at the end
    within = torch.minimum(within, width - 1 - likely)
    return (block * width + within).squeeze(1)
