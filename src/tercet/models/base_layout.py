"""The names and shapes that a model has on the disk, which are not always those that it has in memory.

transformers keeps the experts of a layer as one tensor, and renames some heads; folders of every such model, and all
other tools, have one tensor per expert and the first names. What Tercet writes has the layout of the folders.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import PretrainedConfig
from transformers.core_model_loading import revert_weight_conversion

from tercet.device.mesh import Mesh
from tercet.models.headers import BaseError
from tercet.models.hf_folder import copy_tokenizer, meta_model, parameters_of, quiet, save_config
from tercet.models.weights import SHARD, write_weights

LAYER = re.compile(r".*?\.\d+\.")  # `model.layers.3.`: what is stored otherwise is so within one layer


def save_model(
    folder: Path,
    config: PretrainedConfig,
    state: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]],
    *,
    source: Path,
    mesh: Mesh | None = None,
    shard: int = SHARD,
) -> None:
    """Write weights (any dtype, any order; stored as fp32) with the tokenizer of `source` as a plain folder.

    `state` may be an iterator, so that sharded weights need never be whole in memory. Tied copies are left out. Every
    rank of a `mesh` must call this, and writes its part.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if mesh is None or mesh.first:
        save_config(folder, config)
        copy_tokenizer(source, folder)
    layout = BaseLayout(config)
    items = state.items() if isinstance(state, Mapping) else state
    write_weights(folder / "model.safetensors", layout.shapes, layout.stored(items), shard=shard, mesh=mesh)


class BaseLayout:
    """How a model of a configuration is stored; `shapes` has the names on the disk, in the order of the model."""

    def __init__(self, config: PretrainedConfig) -> None:
        self.model = meta_model(config)
        self.held = parameters_of(self.model)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.bundle: dict[str, str] = {}  # tensors that are stored otherwise: with which others they are converted
        self.members: dict[str, int] = {}
        groups: dict[str, dict[str, Tensor]] = defaultdict(dict)
        for name, tensor in self.held.items():
            layer = LAYER.match(name)
            groups[layer[0] if layer else name][name] = tensor
        for group, held in groups.items():
            stored = self._stored(held)
            self.shapes |= {name: tuple(tensor.shape) for name, tensor in stored.items()}
            changed = [name for name, tensor in held.items() if stored.get(name) is not tensor]
            self.bundle |= dict.fromkeys(changed, group)
            self.members[group] = len(changed)

    def stored(self, tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Tensors by their names in memory, as they are stored; at most the experts of one layer are held back."""
        waiting: dict[str, dict[str, Tensor]] = defaultdict(dict)
        for name, tensor in tensors:
            group = self.bundle.get(name)
            if group is None:
                yield name, tensor
                continue
            waiting[group][name] = tensor
            if len(waiting[group]) == self.members[group]:
                yield from self._stored(waiting.pop(group)).items()
        if waiting:
            name = next(iter(next(iter(waiting.values()))))
            raise BaseError(f"{name}: the tensors that are stored together with it were not given")

    def _stored(self, held: dict[str, Tensor]) -> dict[str, Tensor]:
        with torch.no_grad(), quiet():
            return dict(revert_weight_conversion(self.model, held))
