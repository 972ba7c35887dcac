"""Token log-probabilities without ever holding the whole logit matrix.

Only the hidden states that predict a trained token come in. The output projection runs in chunks; backward computes
each chunk's logits again, so memory is one chunk of `(chunk, vocabulary)` whatever the batch.

Shape suffixes: P predicted tokens, H hidden size, V vocabulary.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from tercet.kernels.native import available, call

CHUNK_LOGITS = 1 << 24  # logits held at once on a CPU: 16M numbers, 64 MB in fp32
CUDA_LOGITS = 1 << 28  # on a GPU: 1 GB in fp32
CUDA_ROWS = 2048  # on a GPU never fewer: every chunk reads and writes the weight's whole gradient


class Others(Protocol):
    """The ranks that have the other rows of a head's weight; this one's begin at token `first`."""

    first: int

    def sum(self, values: Tensor) -> Tensor:
        """Element-wise sum over the parts, in place."""

    def max(self, values: Tensor) -> Tensor:
        """Element-wise maximum over the parts, in place."""


@dataclass(frozen=True)
class Head:
    """What makes logits of hidden states: c tanh(scale (W h + b) / c), without the cap c where there is none."""

    weight: Tensor  # (V, H)
    bias: Tensor | None = None  # (V,)
    scale: float = 1.0
    softcap: float | None = None
    others: Others | None = None  # where this is a part of a vocabulary

    def __call__(self, hidden_PH: Tensor) -> Tensor:
        """Logits `(P, V)`, in the precision of the hidden states, or at least in fp32 where there is a cap."""
        return self.finish(_projected(hidden_PH, self.weight, self.bias))

    def finish(self, raw_PV: Tensor) -> Tensor:
        """Logits from what the projection gives; in place where they differ."""
        if self.softcap is not None:
            return _capped(raw_PV, self.scale, self.softcap)
        return raw_PV if self.scale == 1.0 else raw_PV.mul_(self.scale)

    @property
    def plain(self) -> bool:
        """Whether logits are the product alone."""
        return self.bias is None and self.scale == 1.0 and self.softcap is None and self.others is None


def token_logps(
    hidden_PH: Tensor, head: Head, targets_P: Tensor, *, temperature: float = 1.0, entropy: bool = False
) -> tuple[Tensor, Tensor]:
    """Log-probability (nats, at least fp32) of each target under softmax(head(hidden) / temperature).

    Returns `(logps_P, entropies_P)`; entropies carry no gradient and are empty unless asked for. On CUDA the kernels
    of Liger compute the plain case where they are installed: they too keep one chunk, in fewer passes over it.
    """
    plain = hidden_PH.is_cuda and temperature == 1.0 and not entropy and len(targets_P) > 0 and head.plain
    if plain and (fused := liger()) is not None:
        losses_P = fused(hidden_PH, head.weight, targets_P, reduction="none", accum_dtype=torch.float32)
        return -losses_P, losses_P.new_empty(0)
    how = _How(temperature, entropy, head.scale, head.softcap, head.others)
    logps_P, entropies_P = _TokenLogps.apply(hidden_PH, head.weight, head.bias, targets_P, how)
    return logps_P, entropies_P


LIGER = (0, 8, 3)  # older versions ignore the factor of each token's loss in the gradient of the weight


@cache
def liger() -> Callable[..., Tensor] | None:
    """Liger's projection and cross entropy in one, where a version that weighs tokens rightly is installed."""
    if importlib.util.find_spec("liger_kernel") is None:
        return None
    found = importlib.metadata.version("liger-kernel").split(".")[:3]
    if tuple(int("".join(filter(str.isdigit, part)) or 0) for part in found) < LIGER:
        return None
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    return liger_fused_linear_cross_entropy


def chunk_rows(vocabulary: int, device: torch.device) -> int:
    """How many rows of logits one chunk has."""
    if device.type == "cuda":
        return max(CUDA_ROWS, CUDA_LOGITS // vocabulary)
    return max(1, CHUNK_LOGITS // vocabulary)


def _chunks(num_rows: int, weight: Tensor) -> list[slice]:
    size = chunk_rows(weight.shape[0], weight.device)
    return [slice(start, min(start + size, num_rows)) for start in range(0, num_rows, size)]


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """`total += left @ right` by one kernel; on CUDA `total` may be wider than the factors, and keeps its precision."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    elif available(left):
        call("add_bf16", None, total, left @ right, total.numel())
    elif total.device.type == "cpu" or torch.version.hip:
        total += left @ right
    else:
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)


class _How(NamedTuple):
    """What is done to the products of hidden states and weight before the softmax, and what is asked for."""

    temperature: float
    entropy: bool
    scale: float
    softcap: float | None
    others: Others | None = None

    @property
    def inverse(self) -> float:
        """What a logit that a kernel reads is multiplied by: the cap comes before."""
        return (self.scale if self.softcap is None else 1.0) / self.temperature


def _products(hidden: Tensor, weight: Tensor, bias: Tensor | None, how: _How, room: Tensor) -> Tensor:
    """Logits without scale and temperature; with a cap, and then at least in fp32, where there is one.

    They lie in `room`: a chunk of its own for each part would leave a hole in the heap that fits none of the others.
    """
    raw = _projected(hidden, weight, bias, room[: len(hidden)])
    return raw if how.softcap is None else _capped(raw, how.scale, how.softcap)


def _projected(hidden: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor | None = None) -> Tensor:
    if bias is not None:
        return torch.addmm(bias, hidden, weight.T, out=out)
    return hidden @ weight.T if out is None else torch.mm(hidden, weight.T, out=out)


def _room(hidden: Tensor, weight: Tensor) -> Tensor:
    """Where the logits of one chunk lie, whichever it is."""
    return hidden.new_empty(min(len(hidden), chunk_rows(len(weight), weight.device)), len(weight))


def _capped(raw: Tensor, scale: float, softcap: float) -> Tensor:
    """In fp32 also where the product is in bf16, in which a logit near the cap would be off by a tenth."""
    wide = raw.to(torch.promote_types(raw.dtype, torch.float32))
    return wide.mul_(scale / softcap).tanh_().mul_(softcap)


def _logits(products: Tensor, how: _How) -> Tensor:
    logits = products.to(torch.promote_types(products.dtype, torch.float32))
    if how.softcap is None and how.scale != 1.0:
        logits = logits.mul_(how.scale)
    return logits if how.temperature == 1.0 else logits.div_(how.temperature)


def _row_logps(logits_PV: Tensor, targets_P: Tensor, norms_P: Tensor, logps_P: Tensor, inverse: float) -> None:
    """Write each row's log-sum-exp and its target's log-probability: two passes over a row that is in the cache."""
    call("row_logps", logits_PV.dtype, logits_PV, targets_P, norms_P, logps_P, *logits_PV.shape, inverse)


def _slopes(products: Tensor, targets: Tensor, norms: Tensor, grad: Tensor, how: _How) -> Tensor:
    """`grad (onehot - softmax)` of a chunk; its products may be overwritten. `grad` has scale and temperature.

    A target in another part of the vocabulary is -1.
    """
    capped = products.clone() if how.softcap is not None else None
    if available(products) and how.others is None:
        call("row_slopes", products.dtype, products, targets, norms, grad, *products.shape, how.inverse)
        slope = products
    else:
        scale = grad[:, None]
        slope = _logits(products, how).sub_(norms[:, None]).exp_().mul_(-scale)
        slope.scatter_add_(1, targets.clamp(min=0)[:, None], scale.where(targets[:, None] >= 0, 0.0))
    if capped is not None and how.softcap is not None:
        slope.mul_(1.0 - capped.div_(how.softcap).square_())  # through the cap a gradient shrinks by 1 - tanh^2
    return slope


def _in_part(targets_P: Tensor, size: int, others: Others) -> Tensor:
    """Targets as rows of this part of the vocabulary; -1 where another part has them."""
    own = targets_P - others.first
    return own.where((own >= 0) & (own < size), -1)


def _joined(norms: Tensor, logps: Tensor, entropies: Tensor, others: Others) -> tuple[Tensor, Tensor, Tensor]:
    """Log-sum-exps, log-probabilities and entropies of the vocabulary from those of its parts.

    `logps` has minus the part's log-sum-exp where the target is elsewhere, so that a logit of 0 is added there.
    """
    peak = others.max(norms.clone())
    shares = (norms - peak).exp()
    means = shares * (norms - entropies) if len(entropies) else shares[:0]  # of logits: log-sum-exp less entropy
    sums = others.sum(torch.cat((shares, logps + norms, means)))
    total, chosen, mean = sums.split((len(norms), len(norms), len(means)))
    whole = peak + total.log()
    return whole, chosen - whole, whole - mean / total if len(means) else mean


class _TokenLogps(torch.autograd.Function):
    """log p(y) = z_y - logsumexp(z); d log p / d z = onehot(y) - softmax(z)."""

    @staticmethod
    def forward(
        ctx: Any, hidden_PH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, targets_P: Tensor, how: _How
    ) -> tuple[Tensor, Tensor]:
        num = len(targets_P)
        if how.others is not None:
            targets_P = _in_part(targets_P, len(weight_VH), how.others)
        wide = torch.promote_types(hidden_PH.dtype, torch.float32)
        logps = torch.empty(num, dtype=wide, device=hidden_PH.device)
        norms = torch.empty_like(logps)
        entropies = torch.empty_like(logps) if how.entropy else logps.new_empty(0)
        room = _room(hidden_PH, weight_VH)
        for part in _chunks(num, weight_VH):
            products = _products(hidden_PH[part], weight_VH, bias_V, how, room)
            if available(hidden_PH) and not how.entropy and how.others is None:
                _row_logps(products, targets_P[part], norms[part], logps[part], how.inverse)
                continue
            logits = _logits(products, how)
            chosen = logits.gather(1, targets_P[part, None].clamp(min=0)).squeeze(1)
            peak = logits.amax(dim=1, keepdim=True)
            logits.sub_(peak)  # in place from here on: a second chunk of logits would double the memory
            if how.entropy:
                weights = logits.exp()
                total = weights.sum(dim=1)
                entropies[part] = total.log() - weights.mul_(logits).sum(dim=1) / total
            else:
                total = logits.exp_().sum(dim=1)
            norms[part] = peak.squeeze(1) + total.log()
            logps[part] = chosen - norms[part]
        if how.others is not None:
            norms, logps, entropies = _joined(norms, logps.where(targets_P >= 0, -norms), entropies, how.others)
        ctx.save_for_backward(hidden_PH, weight_VH, bias_V, targets_P, norms)
        ctx.how = how
        ctx.mark_non_differentiable(entropies)
        return logps, entropies

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        hidden_PH, weight_VH, bias_V, targets_P, norms = ctx.saved_tensors
        how: _How = ctx.how
        grad_P = (grads[0] / how.temperature).contiguous()
        if how.scale != 1.0:
            grad_P = grad_P * how.scale
        grad_hidden = torch.empty_like(hidden_PH)
        parts = _chunks(len(targets_P), weight_VH)
        wide = torch.promote_types(weight_VH.dtype, torch.float32) if len(parts) > 1 else weight_VH.dtype
        grad_weight = torch.zeros_like(weight_VH, dtype=wide) if ctx.needs_input_grad[1] else None
        grad_bias = torch.zeros_like(bias_V, dtype=norms.dtype) if bias_V is not None else None
        room = _room(hidden_PH, weight_VH)
        for part in parts:
            products = _products(hidden_PH[part], weight_VH, bias_V, how, room)
            slope = _slopes(products, targets_P[part], norms[part], grad_P[part], how)
            if grad_bias is not None:
                grad_bias += slope.sum(0, dtype=grad_bias.dtype)
            slope = slope.to(hidden_PH.dtype)
            torch.mm(slope, weight_VH, out=grad_hidden[part])
            if grad_weight is not None:
                add_product(grad_weight, slope.T, hidden_PH[part])
        if grad_bias is not None:
            grad_bias = grad_bias.to(weight_VH.dtype)
        if how.others is not None:
            how.others.sum(grad_hidden)
        return grad_hidden, None if grad_weight is None else grad_weight.to(weight_VH.dtype), grad_bias, None, None
