"""Linear attention, state-space layers and short convolutions over a forest: a branch starts from its parent's state.

In transformers such layers compute through a few functions that stand beside them in the modelling file and are given
the keywords of the forward call, the layout among them. `follow_trees` replaces these by functions that run them level
by level (see `state_plan`); without a layout they do what they did. So Gated DeltaNet (Qwen3-Next, Qwen3.5, OLMo
Hybrid), Kimi Delta Attention, Mamba-2 (Nemotron-H, Granite 4, Bamba, Falcon-H1) and the gated convolution of LFM2 run
as their authors wrote them, on whichever kernels transformers finds. Mamba-1 takes no state to start from.

Shape suffixes: T tokens of the forest.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from tercet.models.forest import ForestError
from tercet.models.state_plan import StatePlan

Function = Callable[..., Any]
CPU_CHUNK = 64  # tokens of Mamba-2 at once, with PyTorch's own products: each sees the whole chunk


def follow_trees(model: nn.Module) -> bool:
    """Let a model's recurrent layers follow the branches of the forest that its forward call is given; has it any?"""
    functions = list(_functions(model))
    for space, name, plain in functions:
        if not hasattr(plain, "follows_trees"):
            setattr(space, name, _marked(FOLLOWING[name](plain)))
    return bool(functions)


def run_uncompiled(model: nn.Module) -> None:
    """Keep torch.compile out of the loops over levels."""
    for space, name, plain in _functions(model):
        setattr(space, name, _marked(torch.compiler.disable(plain)))


def _functions(model: nn.Module) -> Iterator[tuple[Any, str, Function]]:
    """What recurrent layers compute through, in every modelling file of a model."""
    for file in dict.fromkeys(type(module).__module__ for module in model.modules()):
        space = sys.modules[file]
        yield from ((space, name, getattr(space, name)) for name in FOLLOWING if hasattr(space, name))


def _marked(function: Function) -> Function:
    function.follows_trees = True  # type: ignore[attr-defined]
    return function


def _plan(layout: Any) -> StatePlan:
    states = getattr(layout, "states", None)
    if states is None:
        raise ForestError(
            f"a recurrent layer needs the segments of a forest to follow its branches, and {type(layout).__name__} has "
            "none; generate with the model's own cache"
        )
    plan: StatePlan = states()
    return plan


def _convolution(plain: Function) -> Function:
    """A causal convolution of each channel, `(1, C, T)`: its window follows the path."""

    def convolve(
        hidden: Tensor, weight: Tensor, bias: Tensor | None = None, *, forest: Any = None, **options: Any
    ) -> Tensor:
        if forest is None:
            return plain(hidden, weight, bias, **options)
        windows = _plan(forest).windows(weight.shape[-1])
        rows: Tensor = plain(windows.spread(hidden[0].T).T[None], weight, bias, **options)
        return windows.gather(rows[0].T).T[None]

    return convolve


def _delta_rule(plain: Function) -> Function:
    """A gated delta rule in chunks. Rows of zeros have no gate, no key and no weight: they leave the state alone."""

    def attend(*given: Tensor, forest: Any = None, **options: Any) -> tuple[Tensor, Tensor | None]:
        if forest is None:
            found: tuple[Tensor, Tensor | None] = plain(*given, **options)
            return found

        def scan(inputs: list[Tensor], states: Tensor | None, wanted: bool) -> tuple[Tensor, Tensor | None]:
            query, key, value, gate, beta = inputs
            own = {"g": gate, "beta": beta, "initial_state": states, "output_final_state": wanted}
            output, end = plain(query, key, value, **(options | own))
            return output, end if wanted else None

        inputs = (tensor[0] for tensor in (*given, options["g"], options["beta"]))
        return _plan(forest).scan(scan, inputs)[None], None

    return attend


def _state_space(plain: Function) -> Function:
    """The scan of Mamba-2 in chunks. A row leaves the state alone when its step is zero, so steps are taken here."""

    def attend(*given: Tensor, chunk_size: int, forest: Any = None, **options: Any) -> Any:
        if forest is None:
            return plain(*given, chunk_size=chunk_size, **options)
        hidden, step, decay, enters, leaves = given
        longest = min(chunk_size, CPU_CHUNK) if hidden.device.type == "cpu" else chunk_size
        steps = _steps(step, options)

        def scan(inputs: list[Tensor], states: Tensor | None, wanted: bool) -> tuple[Tensor, Tensor | None]:
            hidden, steps, enters, leaves = inputs
            chunk = min(longest, 1 << (hidden.shape[1] - 1).bit_length())
            own = {"initial_states": states, "return_final_states": wanted, "chunk_size": chunk}
            found = plain(hidden, steps, decay, enters, leaves, **(options | own))
            return found if wanted else (found, None)

        return _plan(forest).scan(scan, (tensor[0] for tensor in (hidden, steps, enters, leaves)))[None]

    return attend


def _steps(step: Tensor, options: dict[str, Any]) -> Tensor:
    """The step sizes of a state-space layer, in float at least; what makes them is taken out of the options."""
    wide = step.to(torch.promote_types(step.dtype, torch.float32))
    if (bias := options.pop("dt_bias", None)) is not None:
        wide = wide + bias.to(wide.dtype)
    if options.pop("dt_softplus", False):
        wide = softplus(wide)
    return wide.clamp(*options.pop("dt_limit", (0.0, torch.inf)))


def _whole_layer(plain: Function) -> Function:
    """A kernel of a whole Mamba-2 layer knows no branches; without its answer the layer goes step by step."""

    def attend(*given: Any, forest: Any = None, **options: Any) -> Any:
        return plain(*given, **options) if forest is None else None

    return attend


FOLLOWING: dict[str, Callable[[Function], Function]] = {
    "causal_conv1d_fn": _convolution,
    "torch_chunk_gated_delta_rule": _delta_rule,
    "chunk_kimi_delta_attention": _delta_rule,
    "mamba2_chunk_scan": _state_space,
    "mamba2_split_conv1d_scan_combined": _whole_layer,
}
