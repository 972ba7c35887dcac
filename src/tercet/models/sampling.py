"""How a token is drawn from logits: greedy, or by inverse transform from a number of the sample's own.

Shape suffixes: B rows being decoded, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tercet.kernels.native import available, call
from tercet.rows import Sampling

CACHED = 1 << 19  # numbers that a processor's cache holds beside others: 2 MB in fp32


def uniforms(sampling: Sampling, prompt: int, sample: int) -> Tensor:
    """This sample's own random numbers in [0, 1), one for each token it may write."""
    seed, number = sampling.stream(prompt)
    mixed = (seed * 1_000_003 + number) * 1_000_003 + sample
    source = torch.Generator().manual_seed(mixed % (1 << 63))
    return torch.rand(sampling.max_new_tokens, generator=source, dtype=torch.float64)


def draw(logits_BV: Tensor, uniforms_B: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """`choose` from logits of any precision; on CPU few rows at a time, so that what is made stays in its cache."""
    if available(logits_BV) and not sampling.top_k and sampling.top_p >= 1.0:
        return _drawn(logits_BV.contiguous(), uniforms_B, sampling.temperature)
    whole = logits_BV.device.type != "cpu"
    size = len(logits_BV) if whole else max(1, CACHED // logits_BV.shape[1])
    uniforms = uniforms_B.split(size) if len(uniforms_B) else [uniforms_B] * -(-len(logits_BV) // size)
    pairs = zip(logits_BV.split(size), uniforms, strict=True)
    tokens, logps = zip(*(choose(part.float(), numbers, sampling) for part, numbers in pairs), strict=True)
    return torch.cat(tokens), torch.cat(logps)


def _drawn(logits_BV: Tensor, uniforms_B: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Two passes over a row of logits while it is in the cache; `choose` for what cuts nothing off."""
    rows = len(logits_BV)
    tokens, logps = torch.empty(rows, dtype=torch.long), torch.empty(rows)
    numbers = uniforms_B.double() if temperature else torch.full((rows,), -1.0, dtype=torch.float64)
    inverse = 1.0 / (temperature or 1.0)
    call("draw_rows", logits_BV.dtype, logits_BV, numbers, tokens, logps, rows, logits_BV.shape[1], inverse)
    return tokens, logps


def choose(logits_BV: Tensor, uniforms_B: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Tokens `(B,)` and their log-probs under the tempered distribution before top-k and top-p cut it."""
    if not sampling.temperature:
        tokens = logits_BV.max(dim=1).indices  # three times as fast as argmax on CPU
        probs = logits_BV.softmax(dim=1)
    else:
        if sampling.temperature != 1.0:
            logits_BV = logits_BV / sampling.temperature
        probs = logits_BV.softmax(dim=1)  # one pass; log_softmax and exp would be three
        tokens = _inverse_cdf(_cut(probs, sampling), uniforms_B)
    return tokens, probs.gather(1, tokens[:, None]).squeeze(1).log()


def _cut(probs: Tensor, sampling: Sampling) -> Tensor:
    """Zero what top-k and top-p leave out."""
    if sampling.top_k:
        floor = probs.topk(min(sampling.top_k, probs.shape[1]), dim=1).values[:, -1:]
        probs = probs.masked_fill(probs < floor, 0.0)
    if sampling.top_p < 1.0:
        probs = _nucleus(probs, sampling.top_p)
    return probs


def _nucleus(probs: Tensor, top_p: float, likely: int = 1024) -> Tensor:
    """Only the likeliest tokens that together reach `top_p`. Where a few do, the others need no sorting.

    Elsewhere than on CPU all are sorted: whether a few do, the host could only know by waiting for the device.
    """
    total = probs.sum(dim=1, keepdim=True)
    here = probs.device.type == "cpu"
    ranked, order = probs.topk(min(likely, probs.shape[1]), dim=1) if here else probs.sort(dim=1, descending=True)
    if here and bool((ranked.sum(dim=1, keepdim=True) < top_p * total).any()):
        ranked, order = probs.sort(dim=1, descending=True)
    before = ranked.cumsum(dim=1) - ranked
    return torch.zeros_like(probs).scatter_(1, order, ranked.masked_fill(before >= top_p * total, 0.0))


def _inverse_cdf(probs: Tensor, uniforms: Tensor, width: int = 256) -> Tensor:
    """The token at which the cumulative probability passes the uniform number; blocks first, then inside one block."""
    rows, vocabulary = probs.shape
    if missing := -vocabulary % width:
        probs = torch.nn.functional.pad(probs, (0, missing))
    padded = probs.view(rows, -1, width)
    blocks = padded.sum(dim=2).to(torch.float64).cumsum(dim=1)
    target = (uniforms.to(torch.float64) * blocks[:, -1])[:, None]
    block = torch.searchsorted(blocks, target, right=True).clamp_(max=blocks.shape[1] - 1)
    before = blocks.gather(1, (block - 1).clamp(min=0)).masked_fill(block == 0, 0.0)
    inside = padded[torch.arange(rows, device=probs.device), block.squeeze(1)]
    sums = inside.cumsum(dim=1, dtype=torch.float64)
    within = torch.searchsorted(sums, (target - before).clamp(min=0.0), right=True)
    likely = (inside > 0).to(torch.int8).flip(1).argmax(dim=1, keepdim=True)  # guards against rounding at the end
    within = torch.minimum(within, width - 1 - likely)
    return (block * width + within).squeeze(1)
