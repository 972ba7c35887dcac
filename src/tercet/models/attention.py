"""What attention does in one layer beside the usual softmax: windows, caps, sinks, as layers pass them on every call.

Transformers' modelling files call one function for attention. What it must do beside softmax(Q K') V they pass as
keywords, or leave to the mask, which a forest does not have: then the configuration says it. `options_of` reads both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

LAYOUT, POSITIONS = "forest", "forest_positions"  # keywords under which the layout and positions reach attention
CARRIED = "forest_carried"  # and the attribute of a module that keeps both where its layer does not hand them on
TUNING = "attn_temperature_tuning"  # of modules that scale their queries by position
# Keywords that change nothing here; every other one that is set is refused by name.
HARMLESS = {
    LAYOUT,
    POSITIONS,
    "dropout",
    "scaling",
    "is_causal",
    "position_ids",
    "position_embeddings",
    "past_key_values",
}
HARMLESS |= {"use_cache", "cache_position", "logits_to_keep", "return_dict"}
HARMLESS |= {"output_attentions", "output_hidden_states", "output_router_logits"}
KNOWN = HARMLESS | {"sliding_window", "softcap", "s_aux"}


class AttentionError(ValueError):
    """A layer asks for attention of a kind that is not known here."""


class Attention(NamedTuple):
    """How one layer attends. Layers of one model may differ, so it comes with every call."""

    scaling: float  # of query times key
    window: int | None = None  # a key is seen when its position is less than this before the query's
    softcap: float | None = None  # c: scores become c tanh(score / c)
    sinks: Tensor | None = None  # (N,): logits that join each query's softmax and belong to no key
    chunk: int | None = None  # a key is seen when its position lies in the same stretch of this many

    @property
    def plain(self) -> bool:
        """Whether it is the usual softmax over the whole past."""
        return self.softcap is None and self.sinks is None and not self.local

    @property
    def local(self) -> bool:
        """Whether a part of the past is not seen."""
        return self.window is not None or self.chunk is not None

    def first(self, positions: Tensor) -> Tensor:
        """The earliest position that is seen from each of these."""
        first = torch.zeros_like(positions)
        if self.window is not None:
            first = (positions - (self.window - 1)).clamp_(min=0)
        if self.chunk is not None:
            first = torch.maximum(first, positions - positions % self.chunk)
        return first

    def capped(self, scores: Tensor) -> Tensor:
        """Scaled scores after the cap."""
        return scores if self.softcap is None else self.softcap * torch.tanh(scores / self.softcap)

    def sunk(self, output: Tensor, lse: Tensor) -> Tensor:
        """Attention's output `(..., N, D)` when the sinks join in, by the log-sum-exps `(..., N)` of the keys' scores.

        A softmax over keys and a sink is the one over the keys times the keys' share: sigmoid(lse - sink).
        """
        if self.sinks is None:
            return output
        return (output * torch.sigmoid(lse - self.sinks.to(lse.dtype))[..., None]).to(output.dtype)


def options_of(module: nn.Module, query: Tensor, mask: Tensor | None, options: Mapping[str, Any]) -> Attention:
    """What a layer asks of attention; an AttentionError where it asks for more than is known here."""
    if mask is not None:
        raise AttentionError("it makes an attention mask of its own")
    if options.get("is_causal") is False:
        raise AttentionError("its attention is not causal")
    if options.get("dropout"):
        raise AttentionError("it drops attention out; set attention_dropout to 0 or the model to evaluation")
    if unknown := [name for name, value in options.items() if value is not None and name not in KNOWN]:
        raise AttentionError(f"its attention takes {', '.join(sorted(unknown))}, which is not known")
    scaling, softcap = options.get("scaling"), options.get("softcap")
    window, chunk = _reach(module, options)
    return Attention(
        float(scaling) if scaling is not None else query.shape[-1] ** -0.5,
        window,
        float(softcap) if softcap is not None else None,
        options.get("s_aux"),
        chunk,
    )


def _reach(module: nn.Module, options: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Window and chunk of a layer: by its kind where the configuration names kinds, else by its keyword."""
    config, layer = getattr(module, "config", None), getattr(module, "layer_idx", None)
    kinds = getattr(config, "layer_types", None)
    kind = kinds[layer] if kinds and layer is not None and layer < len(kinds) else ""
    chunk = getattr(config, "attention_chunk_size", None) if kind == "chunked_attention" else None
    if kind in ("full_attention", "chunked_attention"):
        return None, chunk
    window = options.get("sliding_window", getattr(config, "sliding_window", None))
    return (window if window is None else int(window)), chunk


def tuned(module: nn.Module, query: Tensor, positions_T: Tensor | None) -> Tensor:
    """Queries `(1, N, T, D)` scaled by position as Llama 4's layers without rotary positions do it.

    They count a row's tokens from its beginning, which in a forest is not a token's position; this puts it right.
    """
    if not getattr(module, TUNING, None) or getattr(module, "use_rope", True):
        return query
    if positions_T is None:
        raise AttentionError("it scales attention by position, which this call does not give")

    def scale(at_T: Tensor) -> Tensor:
        return torch.log1p(torch.floor((at_T.float() + 1.0) / module.floor_scale)) * module.attn_scale + 1.0  # type: ignore[operator]

    counted_T = torch.arange(query.shape[2], device=query.device)
    ratio_T = scale(positions_T) / scale(counted_T)
    return (query * ratio_T[:, None]).to(query.dtype)
