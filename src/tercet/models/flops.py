"""How many floating-point operations a model needs: its matrix products, counted from shapes; a generator's account.

A product of (m, k) and (k, n) counts 2 m k n. Norms, activations, rotary angles and softmax are left out, as is usual
for efficiency figures; so are the scans of recurrent layers, what is computed twice to save memory, and the filling of
a batch. Backward costs twice the forward pass: one product for the input's gradient, one for the weight's, which
frozen weights do not need.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from tercet.device.four_bits import num_weights
from tercet.device.speed import linear_shapes, yardstick
from tercet.models.backbone import backbone
from tercet.models.forest import Forest
from tercet.models.policy import Policy

WITHOUT_ATTENTION = {"linear_attention", "conv", "mlp", "moe"}  # kinds of layers, as configurations name them


class ModelSize(NamedTuple):
    """What decides the cost of a model; all are counts of multiply-adds.

    Example: Llama 3.1 8B has linear = 6,979,321,856, head = 525,336,576 and attention = 32 x 32 x 128 = 131,072.
    """

    linear: int  # per token: the weights of all linear layers below the head
    attention: int  # per query and key that see each other, of one of attention's two products: layers x heads x size
    head: int  # per predicted token: vocabulary x hidden size; 0 for a scorer, whose one output costs next to nothing
    frozen_linear: int = 0  # those among `linear` that are not trained
    frozen_head: int = 0


def model_size(module: nn.Module) -> ModelSize:
    """The size of the one transformers model in `module` (a Policy, a Scorer, a causal LM), adapters included."""
    model = next(part for part in module.modules() if isinstance(part, PreTrainedModel))
    config = model.config.get_text_config()
    convolutions = {id(part.weight) for part in model.modules() if isinstance(part, nn.Conv1d)}
    embedding, output = model.get_input_embeddings().weight, model.get_output_embeddings()
    head = None if output is None else output.weight
    linear = frozen = 0
    for parameter in backbone(model).parameters():
        if parameter.dim() < 2 or parameter is embedding:
            continue
        used = num_weights(parameter)
        # experts side by side, of which a token visits a few
        if parameter.dim() == 3 and id(parameter) not in convolutions:
            used = used // parameter.shape[0] * _visited(config, parameter.shape[0])
        linear += used
        frozen += 0 if parameter.requires_grad else used
    width = 0 if head is None else head.numel()
    return ModelSize(linear, _attention(config), width, frozen, 0 if head is None or head.requires_grad else width)


def _attention(config: PretrainedConfig) -> int:
    """Layers x heads x size; where a model mixes kinds of layers, those without attention do not count."""
    if not getattr(config, "num_attention_heads", 0):
        return 0
    layers = getattr(config, "per_layer_config", None) or [config] * config.num_hidden_layers
    kinds = getattr(config, "layer_types", None) or [""] * len(layers)
    return sum(_heads(layer) for layer, kind in zip(layers, kinds, strict=False) if kind not in WITHOUT_ATTENTION)


def _heads(layer: PretrainedConfig) -> int:
    """Heads times the mean size of a key and a value."""
    size = getattr(layer, "head_dim", None) or layer.hidden_size // layer.num_attention_heads
    key, value = getattr(layer, "qk_head_dim", None) or size, getattr(layer, "v_head_dim", None) or size
    return int(layer.num_attention_heads * (key + value) // 2)


VISITED = ("num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_topk", "moe_top_k", "moe_k", "top_k")


def _visited(config: PretrainedConfig, experts: int) -> int:
    """How many of a layer's experts compute a token."""
    found = (getattr(config, name, None) for name in VISITED)
    return next((number for number in found if isinstance(number, int) and 0 < number <= experts), experts)


def forward_flops(size: ModelSize, tokens: float, attended: float, predicted: float) -> float:
    """FLOPs of a forward pass over `tokens`, whose queries see `attended` keys in all, with `predicted` rows of logits.

    One step of generation for B rows with a cache of C tokens each: `forward_flops(size, B, B * (C + 1), B)`.
    """
    return 2.0 * (size.linear * tokens + size.head * predicted) + 4.0 * size.attention * attended


def attended_pairs(forest: Forest) -> int:
    """Pairs of query and key that see each other: a segment's own past, itself included, and all its ancestors."""
    pairs = 0
    for segment in forest.segments:
        if segment.start < forest.num_tokens:  # what fills the row up is not counted
            own = segment.end - segment.start
            pairs += own * (own + 1) // 2 + own * segment.above
    return pairs


def training_flops(size: ModelSize, forest: Forest) -> float:
    """FLOPs of forward and backward over a forest: all its tokens, attention, and logits of the trained tokens."""
    predicted = len(forest.targets_P)
    whole = 3.0 * forward_flops(size, forest.num_tokens, attended_pairs(forest), predicted)
    return whole - 2.0 * (size.frozen_linear * forest.num_tokens + size.frozen_head * predicted)


class ComputeAccount:
    """What a generator computed since the last `taken`: each prompt's tokens once, and every token it wrote."""

    def __init__(self, policy: Policy) -> None:
        self.policy, self.size = policy, model_size(policy)
        self.tokens, self.flops, self.seconds = 0, 0.0, 0.0
        self.rate: float | None = None  # of plain products, once it was asked for: measuring takes seconds

    def add(self, tokens: int, attended: float, predicted: int) -> None:
        """A forward pass: see `forward_flops`."""
        self.tokens += tokens
        self.flops += forward_flops(self.size, tokens, attended, predicted)

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Count the seconds inside."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - began

    def taken(self) -> dict[str, float]:
        """Tokens a second and efficiency since the last call, as metrics; nothing where nothing was done."""
        tokens, flops, seconds = self.tokens, self.flops, self.seconds
        self.tokens, self.flops, self.seconds = 0, 0.0, 0.0
        if not seconds or not tokens:
            return {}
        found = {"tokens_per_second": tokens / seconds}
        head = self.policy.head().weight
        if self.rate is None:
            self.rate = yardstick(linear_shapes(self.policy.model), head.dtype, head.device)
        if self.rate:
            found["efficiency"] = flops / (seconds * self.rate)
        return found
