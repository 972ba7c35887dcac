"""A batch beyond the token budget, taken part by part: the numbers that go with each part, and the order of passes.

The values of a batch follow their names: `_L` has one per leaf, `_P` one per predicted token. `_at` are places in an
output of all predicted tokens and then all leaves; `_V` has one number for each place in `valued_at`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from tercet.models.depth_first import Backward, Part, Walk, walked
from tercet.models.forest import Forest, Owners
from tercet.models.policy import Reader
from tercet.train.batch import Batch


def branches(module: nn.Module, batch: Batch, backward: Backward) -> Iterator[Batch]:
    """The batch; or its parts below trunks that are run here, each to be trained on before the next is asked for.

    `backward(outputs, slopes)` runs a trunk's backward pass, after those of all its parts.
    """
    if (parts := parts_of(module, batch, backward)) is None:
        yield batch
        return
    for part in parts:
        yield _narrowed(batch, part)


@torch.no_grad()
def read(module: nn.Module, batch: Batch, look: Callable[[Forest], Tensor]) -> Tensor:
    """What `look` finds for each predicted token, or for each of these and then for each leaf, in the batch's order.

    It is called with the batch's forest, or with one part after another, and reads with the batch's part of `module`.
    """
    if (parts := parts_of(module, batch, torch.autograd.backward)) is None:
        return look(batch.forest)
    places, found, tokens = [], [], len(batch.forest.leaf_P)
    for part in parts:
        found.append(look(part.forest))
        places.append(torch.cat((part.predicted, part.leaves + tokens))[: len(found[-1])])
    values = torch.cat(found)
    return torch.empty_like(values).index_copy_(0, torch.cat(places), values)


def parts_of(module: nn.Module, batch: Batch, backward: Backward) -> Iterator[Part] | None:
    """The parts in order; None where the batch fits, or where a branch needs more of its trunk than keys and values."""
    reader = module.get_submodule(batch.part.rstrip("."))
    if not batch.walk or not isinstance(reader, Reader):
        return None
    if not reader.walks and any(isinstance(step, Walk) for step in batch.walk):
        return None
    run: Callable[..., Tensor] = module.run  # type: ignore[assignment]
    return walked(partial(run, reader.hidden), batch.walk, backward)


def _narrowed(batch: Batch, part: Part) -> Batch:
    """What belongs to a part: its leaves' numbers and its predicted tokens', in the order of the batch."""
    places = _numbers(batch.forest, part)
    values = {name: _chosen(name, value, batch, part, places) for name, value in batch.values.items()}
    return replace(batch, forest=part.forest, values=values, owners=_owners(batch, part, places), walk=None)


def _numbers(whole: Forest, part: Part) -> Tensor:
    """The place in a part's output of each place in the whole forest's, tokens then leaves; -1: not in this part."""
    tokens, leaves = len(part.predicted), len(part.leaves)
    places = whole.leaf_P.new_full((len(whole.leaf_P) + whole.num_leaves,), -1)
    places[part.predicted] = torch.arange(tokens, device=places.device)
    places[part.leaves + len(whole.leaf_P)] = torch.arange(leaves, device=places.device) + tokens
    return places


def _chosen(name: str, value: Tensor, batch: Batch, part: Part, places: Tensor) -> Tensor:
    if name.endswith("_P"):
        return value[part.predicted]
    if name.endswith("_L"):
        return value[part.leaves]
    if name.endswith("_at"):
        return places[value][places[value] >= 0]
    if name.endswith("_V"):
        return value[places[batch.values["valued_at"]] >= 0]
    return value


def _owners(batch: Batch, part: Part, places: Tensor) -> Owners | None:
    """The answers of the losses that the part keeps."""
    if batch.owners is None:
        return None
    number_L = places[len(batch.forest.leaf_P) :] - len(part.predicted)
    leaf_P = number_L[batch.owners.leaf_P]
    counts_L = batch.owners.counts_L[part.leaves]
    return Owners(leaf_P[leaf_P >= 0], counts_L, int((counts_L > 0).sum()))
