"""A folder's model whose numbers are still on the disk: its parameters have names, shapes and no memory.

Ranks that share a model read their parts of it once they have agreed on the parts (`tercet.device.shard`), so that none
ever holds all of it. Buffers, such as rotary frequencies, are made as ever: they are small, and exact in fp32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from tercet.device.shard import STORED_IN
from tercet.models.backbone import hand_on
from tercet.models.classes import model_class
from tercet.models.forest import NAME, register
from tercet.models.hf_folder import load_config, parameters_of, quiet, tensors_of, weight_files
from tercet.models.miniature import build, check_small, miniature
from tercet.models.opening import laid_out
from tercet.models.policy import Policy
from tercet.recipe import BatchLayout


def meta_policy(folder: Path, layout: BatchLayout) -> Policy | None:
    """The causal language model of a folder without its numbers; None where it can only be read whole.

    So it is where the disk has other names or shapes than memory (experts, older names), and where no small model made
    like it says how its layers read a forest: then the model itself must be asked, with all its numbers.
    """
    config = load_config(folder)
    model = _on_meta(config)
    if not _stored_as_held(model, folder):
        return None
    setattr(model, STORED_IN, weight_files(folder))
    try:
        check_small(small := miniature(config))
        tried = laid_out(build(small), layout)
    except Exception:  # modelling files raise of every kind where a size does not suit them
        return None
    return _like(tried, model)


def _stored_as_held(model: PreTrainedModel, folder: Path) -> bool:
    """Whether every tensor of a model stands in the folder under the name and in the shape that it has in memory."""
    stored, parameters = tensors_of(folder), dict(model.named_parameters())
    return parameters_of(model).keys() == parameters.keys() and all(
        name in stored and tuple(stored[name][1]) == tuple(value.shape) for name, value in parameters.items()
    )


def _on_meta(config: PretrainedConfig) -> PreTrainedModel:
    kind = model_class(config)
    with quiet(), no_init_weights(), _parameters_on_meta():
        model = kind(config)
        model.tie_weights()
    return model.eval()


def _like(tried: Policy, model: PreTrainedModel) -> Policy:
    """A policy that reads a model the way a small one of the same making was found to be read."""
    plain = model.config._attn_implementation
    if not tried.padded:
        register()
        with quiet():
            model.set_attn_implementation(NAME)
    policy = Policy(model, padded=tried.padded)
    policy.why_padded, policy.once, policy.plain = tried.why_padded, tried.once, plain
    if tried.handed_on:
        hand_on(model)
        policy.handed_on = True
    return policy


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Inside, a parameter loses its memory as soon as a module gets it; nothing has been written there yet."""
    plain = nn.Module.register_parameter

    def register_parameter(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and not param.is_meta:
            param = nn.Parameter(torch.empty_like(param, device="meta"), param.requires_grad)
        plain(self, name, param)

    nn.Module.register_parameter = register_parameter  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = plain  # type: ignore[method-assign]
