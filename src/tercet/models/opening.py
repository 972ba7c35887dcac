"""A model folder as a policy: read through forests where its layers allow it, one path a row where they do not.

What a model can do is tried on the model itself, with a few tokens; its name plays no part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from tercet.models.backbone import backbone
from tercet.models.forest import NAME, ForestError, Leaf, Tree, pack_forest, register
from tercet.models.headers import CONTEXT
from tercet.models.hf_folder import load_model, one_line, quiet
from tercet.models.policy import Policy, why_not_forest
from tercet.recipe import BatchLayout

ENDLESS = 1 << 31  # tokens of context, of models that know no limit
NEAR = 0.02  # of the spread of what is compared, that rounding may move


def open_policy(folder: Path, dtype: torch.dtype = torch.float32, layout: BatchLayout = "auto") -> Policy:
    """The causal language model of a folder, laid out as `placement.layout` says or as its layers allow."""
    return laid_out(load_model(folder, dtype).eval(), layout)


def laid_out(model: PreTrainedModel, layout: BatchLayout) -> Policy:
    """A policy over a model with transformers' own attention; one that neither layout carries is refused."""
    why, name = "", type(model).__name__
    if layout != "padded":
        policy, why = _in_forest(model)
        if not why:
            return policy
        if layout == "forest":
            raise ForestError(
                f'{name}: {why}; leave placement.layout at "auto", and one path a row is computed instead'
            )
    policy = Policy(model, padded=True)
    policy.why_padded = why or 'placement.layout = "padded"'
    if refused := _try(why_not_padded, policy):
        raise ForestError(f"{name} cannot be read here: {refused}" + (f" (and in a forest: {why})" if why else ""))
    return policy


def _in_forest(model: PreTrainedModel) -> tuple[Policy, str]:
    """The model with the forest's attention; why that does not work, and then with the attention it came with."""
    register()
    plain = model.config._attn_implementation
    with quiet():  # transformers warns of models that do not use its interface; so do we
        model.set_attn_implementation(NAME)
    policy = Policy(model)
    if why := _try(why_not_forest, policy):
        with quiet():
            model.set_attn_implementation(plain)
    policy.plain = plain
    return policy, why


@contextmanager
def by_rows(policy: Policy) -> Iterator[None]:
    """Inside, a model that the generator's cache cannot serve reads one path a row, as its own cache does.

    Such are recurrent layers, whose states it does not keep, and layers that attend several times for one token.
    """
    if policy.padded or (policy.walks and policy.once):
        yield
        return
    policy.model.set_attn_implementation(policy.plain)
    policy.padded = True
    try:
        yield
    finally:
        policy.padded = False
        policy.model.set_attn_implementation(NAME)


def _try(why_not: Callable[[Policy], str], policy: Policy) -> str:
    """What a probe says, or what the model's own code raises under it."""
    try:
        return why_not(policy)
    except Exception as error:  # whatever a model's own code raises, the layout does not carry it
        return one_line(error)


def context_length(config: PretrainedConfig) -> int:
    """The most tokens that a model reads, as its family calls it."""
    found = (getattr(config.get_text_config(), name, None) for name in CONTEXT)
    return next((limit for limit in found if isinstance(limit, int) and limit > 0), ENDLESS)


@torch.no_grad()
def why_not_padded(policy: Policy) -> str:
    """Why one path a row would not give this model's log-probabilities; empty where it does.

    A row beside a longer one must be read as it is alone: neither padding nor other rows may change it.
    """
    if policy.model.get_output_embeddings() is None:
        return "it names no output projection (get_output_embeddings)"
    size, device = policy.model.config.get_text_config().vocab_size, policy.head().weight.device
    rows = [[(7 * place + 3 + row) % size for place in range(length)] for row, length in enumerate((11, 6))]
    forest = pack_forest([Tree([], [Leaf(row, [True] * len(row))]) for row in rows]).to(device)
    hidden = policy.hidden(forest, forest.input_ids, forest.position_ids)
    alone, logits = [], []
    for row in rows:
        ids_BN = torch.tensor([row], device=device)
        alone.append(backbone(policy.model)(input_ids=ids_BN, use_cache=False).last_hidden_state[0])
        logits.append(policy.model(input_ids=ids_BN, use_cache=False).logits[0])
    if _far(hidden, torch.cat(alone)):
        return "what stands later in a row changes what stands before it, so it is no causal language model"
    if _far(policy.logits(hidden), torch.cat(logits)):
        return "its logits are more than a product of hidden states and output weights"
    return ""


def _far(found: Tensor, wanted: Tensor) -> bool:
    return not bool(((found - wanted).float().abs() <= NEAR * wanted.float().std()).all())
