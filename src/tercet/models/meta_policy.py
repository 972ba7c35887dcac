"""A folder's causal language model whose numbers are still on the disk, read as a small one like it is found to be."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel

from tercet.models.backbone import hand_on
from tercet.models.classes import model_class
from tercet.models.forest import NAME, register
from tercet.models.hf_folder import load_config, quiet
from tercet.models.miniature import build, check_small, miniature
from tercet.models.opening import laid_out
from tercet.models.policy import Policy
from tercet.models.unread import unread
from tercet.recipe import BatchLayout


def meta_policy(folder: Path, layout: BatchLayout) -> Policy | None:
    """The causal language model of a folder without its numbers; None where it can only be read whole.

    So it is where the disk has other names than memory, of an older kind say, and where no small model made like it
    says how its layers read a forest: then the model itself must be asked, with all its numbers.
    """
    config = load_config(folder)
    model = unread(model_class(config), config, folder)
    if model is None:
        return None
    try:
        check_small(small := miniature(config))
        tried = laid_out(build(small), layout)
    except Exception:  # modelling files raise of every kind where a size does not suit them
        return None
    return _like(tried, model)


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
