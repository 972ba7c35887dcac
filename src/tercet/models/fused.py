"""RMSNorm, rotary positions and SwiGLU on the CPU, each in one pass over memory, forward and backward.

A transformer layer of a small model spends as long in passes over memory as in products, more so where bf16 has
hardware. `fuse` looks for these three parts in a model and replaces those that compute, on random input, what the
kernel computes; the model's name plays no part. Everything else stays as it is.

Shape suffixes: T tokens, H width, N heads, D head size.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from tercet.kernels.native import available, call, native

PARTS = 16  # blocks of rows whose gradients of a weight are summed one after another, whatever the number of threads


class _RmsNorm(torch.autograd.Function):
    """`weight * x / sqrt(mean(x^2) + eps)`; keeps x and one number per row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        x = x.contiguous()
        out, scales_T = torch.empty_like(x), x.new_empty(x.numel() // x.shape[-1], dtype=torch.float32)
        call("rms_forward", x.dtype, x, weight, out, scales_T, len(scales_T), x.shape[-1], eps)
        ctx.save_for_backward(x, weight, scales_T)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, scales_T = ctx.saved_tensors
        grad, width = grads[0].contiguous(), x.shape[-1]
        grad_x, parts_PH = torch.empty_like(x), scales_T.new_empty(PARTS, width)
        call("rms_backward", x.dtype, grad, x, weight, scales_T, grad_x, parts_PH, len(scales_T), width, len(parts_PH))
        return grad_x, parts_PH.sum(0).to(weight.dtype), None


class _SwiGlu(torch.autograd.Function):
    """`silu(gate) * up`; keeps its two inputs only."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        gate, up = gate.contiguous(), up.contiguous()
        out = torch.empty_like(gate)
        call("swiglu_forward", gate.dtype, gate, up, out, gate.numel())
        ctx.save_for_backward(gate, up)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        grad_gate, grad_up = torch.empty_like(gate), torch.empty_like(up)
        call("swiglu_backward", gate.dtype, grads[0].contiguous(), gate, up, grad_gate, grad_up, gate.numel())
        return grad_gate, grad_up


class _Rotate(torch.autograd.Function):
    """`x cos + rotate_half(x) sin` of `(1, N, T, D)`; keeps the angles only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Tensor:
        ctx.save_for_backward(cos_TD, sin_TD)
        return _rotated(x, cos_TD, sin_TD, back=0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        cos_TD, sin_TD = ctx.saved_tensors
        return _rotated(grads[0], cos_TD, sin_TD, back=1), None, None


def _rotated(x: Tensor, cos_TD: Tensor, sin_TD: Tensor, back: int) -> Tensor:
    """Heads lie inside tokens, as the products before and after want them."""
    if x.stride(3) != 1:
        x = x.contiguous()
    _, heads, tokens, size = x.shape
    out = x.new_empty(1, tokens, heads, size)
    call("rotate", x.dtype, x, cos_TD, sin_TD, out, tokens, heads, size, x.stride(2), x.stride(1), back)
    return out.transpose(1, 2)


def fuse(model: nn.Module) -> nn.Module:
    """Let the kernels compute the parts of a model that they can; on other devices the model's own operations run."""
    if native().library is None:
        return model
    for module in model.modules():
        if isinstance(module, nn.Linear) or "forward" in vars(module):
            continue
        if (eps := _rms_eps(module)) is not None:
            module.forward = _norm(module, eps, module.forward)
        elif _is_swiglu(module):
            module.forward = _gated(module, module.forward)
    for file in dict.fromkeys(type(module).__module__ for module in model.modules()):
        _fuse_rotary(sys.modules[file])
    return model


def _norm(module: nn.Module, eps: float, plain: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def forward(x: Tensor, *more: Any, **named: Any) -> Tensor:
        weight: Tensor = module.weight  # type: ignore[assignment]
        if more or named or not _possible(x) or x.dtype != weight.dtype:  # a gate, for instance
            return plain(x, *more, **named)
        return _RmsNorm.apply(x, weight, eps)

    return forward


def _gated(module: Any, plain: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def forward(x: Tensor) -> Tensor:
        if not _possible(x):
            return plain(x)
        return module.down_proj(_SwiGlu.apply(module.gate_proj(x), module.up_proj(x)))

    return forward


def _rms_eps(module: nn.Module) -> float | None:
    """The epsilon of a module that is a plain RMSNorm: one weight vector, and the kernel's own values."""
    module = _with_numbers(module)
    named = dict(module.named_parameters())
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if list(named) != ["weight"] or named["weight"].dim() != 1 or not isinstance(eps, float):
        return None
    weight = named["weight"].detach()
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        return None
    x = _drawn(3, len(weight))
    return eps if _agree(lambda: module(x), lambda: _RmsNorm.apply(x, weight, eps)) else None


def _is_swiglu(module: Any) -> bool:
    """Whether a module is `down_proj(silu(gate_proj(x)) * up_proj(x))` and nothing else."""
    if {name for name, _ in module.named_children()} - {"act_fn"} != {"gate_proj", "up_proj", "down_proj"}:
        return False
    module = _with_numbers(module)
    gate, act = module.gate_proj, getattr(module, "act_fn", None)
    if not isinstance(gate, nn.Linear) or not callable(act) or gate.weight.device.type != "cpu":
        return False
    x, probe = _drawn(2, gate.in_features).to(gate.weight.dtype), _drawn(8)
    same = _agree(lambda: act(probe), lambda: silu(probe))
    return same and _agree(lambda: module(x), lambda: module.down_proj(silu(module.gate_proj(x)) * module.up_proj(x)))


def _with_numbers(module: nn.Module) -> nn.Module:
    """The module; of one on `meta` a copy with numbers, on which its formula shows as well, with small products."""
    parameters = list(module.parameters())
    if len(parameters) > 6 or not any(parameter.is_meta for parameter in parameters):
        return module
    solid = deepcopy(module)
    for name, part in solid.named_children():
        if isinstance(part, nn.Linear):
            sizes = (16, 8) if name == "down_proj" else (8, 16)
            setattr(solid, name, nn.Linear(*sizes, bias=part.bias is not None))
    for name, parameter in solid.named_parameters(recurse=False):
        setattr(solid, name, nn.Parameter(_drawn(*parameter.shape)))
    return solid


def _fuse_rotary(space: Any) -> None:
    """Replace a modelling file's `apply_rotary_pos_emb` by the kernel where it rotates halves as the kernel does."""
    plain = getattr(space, "apply_rotary_pos_emb", None)
    if plain is None or getattr(plain, "fused", None) is not None:
        return

    def rotary(*given: Any, **named: Any) -> tuple[Tensor, Tensor]:
        if named or len(given) != 4 or not _fits(given[0], given[2]) or not _fits(given[1], given[2]):
            return plain(*given, **named)
        q, k, cos, sin = given
        angles = cos[0].contiguous(), sin[0].contiguous()
        return _Rotate.apply(q, *angles), _Rotate.apply(k, *angles)

    q, k, angles = _drawn(1, 2, 3, 8), _drawn(1, 1, 3, 8), _drawn(1, 3, 4).repeat(1, 1, 2)
    given = q, k, angles.cos(), angles.sin()
    same = _agree(lambda: torch.cat(plain(*given), 1), lambda: torch.cat(rotary(*given), 1))
    rotary.fused = same  # type: ignore[attr-defined]
    space.apply_rotary_pos_emb = rotary if same else plain


def _fits(x: Tensor, cos: Tensor) -> bool:
    """One flat row of tokens whose whole heads turn, angles in the precision of the heads."""
    return (
        _possible(x)
        and x.dim() == 4
        and x.shape[0] == 1
        and cos.shape == (1, x.shape[2], x.shape[3])
        and cos.dtype == x.dtype
    )


def _possible(x: Tensor) -> bool:
    """Whether the kernels can work on a tensor now; under torch.compile the model's own operations run."""
    return not torch.compiler.is_compiling() and available(x)


def _drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def _agree(ours: Callable[[], Tensor], theirs: Callable[[], Tensor]) -> bool:
    """Whether two functions give the same numbers; one that cannot take the input does not."""
    try:
        a, b = ours(), theirs()
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError):
        return False
    return isinstance(a, Tensor) and a.shape == b.shape and torch.allclose(a, b, rtol=1e-5, atol=1e-5)
