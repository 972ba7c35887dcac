"""A folder's model whose numbers are still on the disk: its parameters have names, shapes and no memory.

Ranks that share a model read their parts of it once they have agreed on the parts (`tercet.device.stored`), so that
none ever holds all of it. Each module keeps where its own parameters stand in the files, whatever is put around it.
Buffers, such as rotary frequencies, are made as ever: they are small, and exact in fp32.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.initialization import no_init_weights

from tercet.device.stored import STORED, StoredPart, read_pieces
from tercet.models.headers import stored_tensors
from tercet.models.hf_folder import parameters_of, quiet, weight_files

Places = dict[str, list[StoredPart]]


def unread(
    kind: type[PreTrainedModel], config: PretrainedConfig, folder: Path, fresh: str = ""
) -> PreTrainedModel | None:
    """A model of a folder without its numbers, but zeros for the parameter `fresh`, which is not looked for.

    None where it can only be read whole: the disk has older names, or other numbers than memory.
    """
    for one in (config, *(getattr(config, name, None) for name in config.sub_configs)):
        if one is not None:
            one.dtype = torch.float32  # classes that make a model within them follow it
    with quiet(), no_init_weights(), _parameters_on_meta():
        model = kind(config)
        model.tie_weights()
    model.name_or_path = str(folder)
    found, held = places(model, folder), parameters_of(model)
    if held.keys() - {fresh} - found.keys():
        return None
    for name, value in held.items():
        owner, _, own = name.rpartition(".")
        module = model.get_submodule(owner)
        if name == fresh:
            setattr(module, own, nn.Parameter(torch.zeros(value.shape)))
        elif not value.is_meta:  # a buffer that is stored
            read_pieces(value, found[name])
        else:
            setattr(module, STORED, {**getattr(module, STORED, {}), own: found[name]})
    return model.eval()


def places(model: PreTrainedModel, folder: Path) -> Places:
    """Where each tensor of a model stands in a folder's files, by its name in memory; those not known are left out.

    transformers says how a model is stored (experts one by one, say): it is given tensors without numbers, and what it
    makes of them are views, which tell where in a tensor they lie.
    """
    whole = {
        name: torch.empty(value.shape, device="meta").as_subclass(_Viewed)
        for name, value in parameters_of(model).items()
    }
    owners = {value.untyped_storage()._cdata: name for name, value in whole.items()}
    files = {name: (file, tuple(at[1])) for file in weight_files(folder) for name, at in stored_tensors(file).items()}
    found: Places = defaultdict(list)
    left = {name: value.numel() for name, value in whole.items()}
    with torch.no_grad(), quiet():
        stored = revert_weight_conversion(model, dict(whole))
    for name, view in stored.items():
        owner = owners.get(view.untyped_storage()._cdata)
        if owner is None or name not in files or files[name][1] != tuple(view.shape):
            continue
        if (lies := _lies(view, whole[owner])) is not None:
            found[owner].append(StoredPart(files[name][0], name, *lies))
            left[owner] -= view.numel()
    return {name: pieces for name, pieces in found.items() if not left[name]}


class _Viewed(Tensor):
    """A tensor that stays a view of another where it would be copied for the order of its numbers."""

    def contiguous(self, *_: object, **__: object) -> Tensor:
        return self


def _lies(view: Tensor, whole: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Where a view begins in its tensor, and which dimension of that each of its own is; None where none is."""
    steps, begins, left = whole.stride(), [], view.storage_offset()
    for step in steps:
        begins.append(left // step)
        left %= step
    dims: dict[int, int] = {}
    for own in sorted(range(view.dim()), key=lambda dim: view.shape[dim] == 1):  # one of size 1 has any step
        size = view.shape[own]
        fits = (
            dim
            for dim in range(whole.dim())
            if dim not in dims.values()
            and (size == 1 or steps[dim] == view.stride(own))
            and begins[dim] + size <= whole.shape[dim]
        )
        if (dim := next(fits, None)) is None:
            return None
        dims[own] = dim
    return tuple(begins), tuple(dims[own] for own in range(view.dim()))


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
