"""What of transformers' tensor plans is understood here, and which models a mesh can divide; known without torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:  # the bench of cards runs without what recipes need
    from tercet.recipe import MeshShape

REFUSED = {
    "apertus": "its activation has weights of which each rank would have a part of the gradient",
    "gemma3n_text": "its activation looks at all features of a token",
    **dict.fromkeys(("gemma4", "gemma3n"), "its forward pass reads the embedding by itself"),
    **dict.fromkeys(("olmo_hybrid", "qwen3_5", "qwen3_5_text", "qwen3_next"), "its recurrent layers are not split"),
}
"""Model types with a plan by which another number comes out, as trying every family showed."""


class Style(NamedTuple):
    """How a linear layer is cut: its outputs (dimension 0 of its weight) or its inputs (1), and what it is given."""

    cut: int
    whole: bool = False  # what it gives (outputs) or takes (inputs) is whole on every rank


STYLES: Mapping[str, Style] = {
    "colwise": Style(0),
    "colwise_rep": Style(0, whole=True),
    "colwise_gather_output": Style(0, whole=True),
    "rowwise": Style(1),
    "rowwise_rep": Style(1, whole=True),
    "rowwise_split_input": Style(1, whole=True),
}
WHOLE = "replicated_with_grad_allreduce"  # a weight of all ranks, of whose gradient each has the part of its heads


class SplitError(ValueError):
    """A model whose products cannot be computed in parts."""


def check_split(config: Any, parts: int) -> None:
    """SplitError where the products of a model with this configuration cannot be computed in so many parts."""
    asked = f"placement.mesh.tensor = {parts}"
    for one in (config, config := config.get_text_config()):
        if why := REFUSED.get(one.model_type):
            raise SplitError(f"{asked}: {one.model_type} cannot be split, {why}; leave it at 1")
    plan = getattr(config, "base_model_tp_plan", None)
    if not plan:
        raise SplitError(f"{asked}: transformers has no tensor plan for {config.model_type}; leave it at 1")
    if any("experts" in name and isinstance(number, int) and number for name, number in vars(config).items()):
        raise SplitError(f"{asked}: the experts of {config.model_type} are not split; leave it at 1")
    known = {*STYLES, WHOLE, "embedding_rowwise", "embedding_colwise"}
    if unknown := {style for name, style in plan.items() if style not in known and "expert" not in name}:
        raise SplitError(f"{asked}: the plan of {config.model_type} has {', '.join(sorted(unknown))}; leave it at 1")
    heads = {name: getattr(config, name, None) for name in ("num_attention_heads", "num_key_value_heads")}
    for name, number in heads.items():
        if isinstance(number, int) and number % parts:
            raise SplitError(f"{asked} does not divide the {number} heads of the model ({name}); choose a divisor")


def check_mesh(config: Any, shape: MeshShape, *, adapters: bool = False) -> None:
    """SplitError where a model's products and heads cannot be divided as `placement.mesh` says."""
    if shape.tensor > 1:
        check_split(config, shape.tensor)
        if adapters:
            raise SplitError(f"placement.mesh.tensor = {shape.tensor}: adapters are not split; set it to 1, or no lora")
    heads = getattr(config.get_text_config(), "num_attention_heads", None)
    if isinstance(heads, int) and (heads // shape.tensor) % shape.context:
        raise SplitError(
            f"placement.mesh.context = {shape.context} does not divide the {heads // shape.tensor} attention heads "
            "of each part of the model; choose a divisor"
        )
