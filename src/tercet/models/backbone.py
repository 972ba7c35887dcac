"""The transformer below a model's head, and how a layout reaches attention where layers do not hand keywords on."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from tercet.models.attention import CARRIED, LAYOUT, POSITIONS
from tercet.models.classes import backbone_name


def backbone(model: PreTrainedModel) -> nn.Module:
    """The part of a model that makes hidden states of tokens."""
    return model.get_submodule(backbone_name(model))


def hand_on(model: PreTrainedModel) -> None:
    """Let every decoder layer keep the layout for its attention, which the layer itself calls without it.

    It is kept anew on each call, so also when backward computes a layer again.
    """
    for layer in (module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)):
        inner = [module for module in layer.modules() if hasattr(module, "layer_idx")]
        layer.forward = partial(_keeping, inner, layer.forward)


def _keeping(inner: list[nn.Module], forward: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
    for module in inner:
        setattr(module, CARRIED, {name: options.get(name) for name in (LAYOUT, POSITIONS)})
    return forward(*inputs, **options)
