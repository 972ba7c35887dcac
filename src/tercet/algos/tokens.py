"""Token log-probabilities without ever holding the whole logit matrix.

Only the hidden states that predict a trained token come in. The output projection runs in chunks; backward computes
each chunk's logits again, so memory is one chunk of `(chunk, vocabulary)` whatever the batch.

Shape suffixes: P predicted tokens, H hidden size, V vocabulary.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from tercet.kernels.native import available, call

CHUNK_LOGITS = 1 << 24  # logits held at once on a CPU: 16M numbers, 64 MB in fp32
CUDA_LOGITS = 1 << 28  # on a GPU: 1 GB in fp32
CUDA_ROWS = 2048  # on a GPU never fewer: every chunk reads and writes the weight's whole gradient


def token_logps(
    hidden_PH: Tensor, weight_VH: Tensor, targets_P: Tensor, *, temperature: float = 1.0, entropy: bool = False
) -> tuple[Tensor, Tensor]:
    """Log-probability (nats, at least fp32) of each target under softmax(hidden @ weight.T / temperature).

    Returns `(logps_P, entropies_P)`; entropies carry no gradient and are empty unless asked for. On CUDA the kernels
    of Liger compute the plain case where they are installed: they too keep one chunk, in fewer passes over it.
    """
    plain = hidden_PH.is_cuda and temperature == 1.0 and not entropy and len(targets_P) > 0
    if plain and (fused := liger()) is not None:
        losses_P = fused(hidden_PH, weight_VH, targets_P, reduction="none", accum_dtype=torch.float32)
        return -losses_P, losses_P.new_empty(0)
    logps_P, entropies_P = _TokenLogps.apply(hidden_PH, weight_VH, targets_P, temperature, entropy)
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


def _logits(hidden: Tensor, weight: Tensor, temperature: float) -> Tensor:
    logits = hidden @ weight.T
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits if temperature == 1.0 else logits.div_(temperature)


def _row_logps(logits_PV: Tensor, targets_P: Tensor, norms_P: Tensor, logps_P: Tensor, temperature: float) -> None:
    """Write each row's log-sum-exp and its target's log-probability: two passes over a row that is in the cache."""
    call("row_logps", logits_PV.dtype, logits_PV, targets_P, norms_P, logps_P, *logits_PV.shape, 1.0 / temperature)


def _slopes(hidden: Tensor, weight: Tensor, targets: Tensor, norms: Tensor, grad: Tensor, temperature: float) -> Tensor:
    """`grad (onehot - softmax)` of a chunk, in the precision of the hidden states; logits are computed again."""
    if available(hidden):
        logits = hidden @ weight.T
        call("row_slopes", logits.dtype, logits, targets, norms, grad, *logits.shape, 1.0 / temperature)
        return logits
    scale = grad[:, None]
    slope = _logits(hidden, weight, temperature).sub_(norms[:, None]).exp_().mul_(-scale)
    return slope.scatter_add_(1, targets[:, None], scale).to(hidden.dtype)


class _TokenLogps(torch.autograd.Function):
    """log p(y) = z_y - logsumexp(z); d log p / d z = onehot(y) - softmax(z)."""

    @staticmethod
    def forward(
        ctx: Any, hidden_PH: Tensor, weight_VH: Tensor, targets_P: Tensor, temperature: float, entropy: bool
    ) -> tuple[Tensor, Tensor]:
        num = len(targets_P)
        wide = torch.promote_types(hidden_PH.dtype, torch.float32)
        logps = torch.empty(num, dtype=wide, device=hidden_PH.device)
        norms = torch.empty_like(logps)
        entropies = torch.empty_like(logps) if entropy else logps.new_empty(0)
        for part in _chunks(num, weight_VH):
            if available(hidden_PH) and not entropy:
                _row_logps(hidden_PH[part] @ weight_VH.T, targets_P[part], norms[part], logps[part], temperature)
                continue
            logits = _logits(hidden_PH[part], weight_VH, temperature)
            chosen = logits.gather(1, targets_P[part, None]).squeeze(1)
            peak = logits.amax(dim=1, keepdim=True)
            logits.sub_(peak)  # in place from here on: a second chunk of logits would double the memory
            if entropy:
                weights = logits.exp()
                total = weights.sum(dim=1)
                entropies[part] = total.log() - weights.mul_(logits).sum(dim=1) / total
            else:
                total = logits.exp_().sum(dim=1)
            norms[part] = peak.squeeze(1) + total.log()
            logps[part] = chosen - norms[part]
        ctx.save_for_backward(hidden_PH, weight_VH, targets_P, norms)
        ctx.temperature = temperature
        ctx.mark_non_differentiable(entropies)
        return logps, entropies

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        hidden_PH, weight_VH, targets_P, norms = ctx.saved_tensors
        grad_P = (grads[0] / ctx.temperature).contiguous()
        grad_hidden = torch.empty_like(hidden_PH)
        parts = _chunks(len(targets_P), weight_VH)
        wide = torch.promote_types(weight_VH.dtype, torch.float32) if len(parts) > 1 else weight_VH.dtype
        grad_weight = torch.zeros_like(weight_VH, dtype=wide) if ctx.needs_input_grad[1] else None
        for part in parts:
            found = norms[part], grad_P[part], ctx.temperature
            slope = _slopes(hidden_PH[part], weight_VH, targets_P[part], *found)
            torch.mm(slope, weight_VH, out=grad_hidden[part])
            if grad_weight is not None:
                add_product(grad_weight, slope.T, hidden_PH[part])
        return grad_hidden, None if grad_weight is None else grad_weight.to(weight_VH.dtype), None, None, None
