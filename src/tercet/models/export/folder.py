"""A model of the store as a folder for other tools: the names, layout and precision that its base model came in.

The weights of an artifact are fp32. Here each tensor has the precision of the base model's tensor of that name, or one
that is asked for, and the configuration can be read by transformers 4 and by what reads its files (vLLM, llama.cpp).
"""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PretrainedConfig

from tercet.models.base_layout import BaseLayout
from tercet.models.export.older import write_config, write_tokenizer_config
from tercet.models.headers import BaseError, Stored
from tercet.models.hf_folder import load_config, meta_model, parameter_shapes, tensors_of, weight_files
from tercet.models.weights import DTYPES, SHARD, each_tensor, widened, write_weights

Progress = Callable[[int, int, str], None]
BASE = "base"  # the precision of the base model


class Exported(NamedTuple):
    """What was written: `Exported("bfloat16", 2, 16060522496)`, the precision of most weights, files and bytes."""

    dtype: str
    files: int
    size: int


def export_folder(
    source: Path, base: Path | None, out: Path, progress: Progress, *, dtype: str = BASE, shard: int = SHARD
) -> Exported:
    """Write the model folder `source` into the new folder `out`; `base` is the folder of the model it began as.

    `dtype` is a name of torch, or `base`. Without a folder of the base, `base` means the precision of `source`.
    """
    config, have = load_config(source), tensors_of(source)
    if not any(code in DTYPES for code, _ in have.values()):
        kinds = ", ".join(sorted({code for code, _ in have.values()}))
        raise BaseError(f"{source}: expected floating-point weights, found {kinds}; a quantised model is not exported")
    private = shutil.ignore_patterns("tercet", "model*.safetensors", "model.safetensors.index.json")
    shutil.copytree(source, out, ignore=private, copy_function=shutil.copyfile)
    out.chmod(0o755)
    layout = _layout(config, have)
    shapes = layout.shapes if layout else {name: shape for name, (_, shape) in have.items()}
    dtypes = _precisions(list(shapes), config, _as_it_came(base or source), dtype)
    common = Counter(dtypes.values()).most_common(1)[0][0]
    write_config(out, source, base, common)
    write_tokenizer_config(out)
    tensors = _checked(read_tensors(source, progress), dtypes)
    files = write_weights(
        out / "model.safetensors", shapes, layout.stored(tensors) if layout else tensors, dtypes=dtypes, shard=shard
    )
    return Exported(str(common).removeprefix("torch."), len(files), sum(file.stat().st_size for file in files))


def _as_it_came(folder: Path) -> Stored:
    """The tensors of a base model that still have the precision they came in."""
    changed = widened(folder)
    return {name: at for name, at in tensors_of(folder).items() if name not in changed}


def _layout(config: PretrainedConfig, have: Stored) -> BaseLayout | None:
    """What turns tensors with the names they have in memory, as early artifacts hold them, into the base's; or None."""
    held = parameter_shapes(config)
    if have.keys() != held.keys():
        return None
    layout = BaseLayout(config)
    return layout if layout.bundle else None


def _precisions(names: list[str], config: PretrainedConfig, base: Stored, dtype: str) -> dict[str, torch.dtype]:
    """The dtype of every tensor that is written."""
    if dtype != BASE:
        wanted: torch.dtype = getattr(torch, dtype)
        kept = _kept_in_fp32(config, wanted)
        return {name: torch.float32 if kept and kept.search(name) else wanted for name in names}
    sizes: Counter[torch.dtype] = Counter()
    for code, shape in base.values():
        if code in DTYPES:
            sizes[DTYPES[code]] += int(torch.Size(shape).numel())
    common = sizes.most_common(1)[0][0] if sizes else torch.bfloat16  # a base in 4 or 8 bits only
    own = {name: DTYPES[code] for name, (code, _) in base.items() if code in DTYPES}
    return {name: own.get(name, common) for name in names}


def _kept_in_fp32(config: PretrainedConfig, dtype: torch.dtype) -> re.Pattern[str] | None:
    """Names of the parts that a model of this kind always computes in fp32, such as a router's bias."""
    if dtype == torch.float32:
        return None
    model = meta_model(config)
    parts = set(model._keep_in_fp32_modules_strict or ())
    if dtype == torch.float16:
        parts |= set(model._keep_in_fp32_modules or ())
    return re.compile(rf"(?:^|\.)(?:{'|'.join(map(re.escape, sorted(parts)))})(?:\.|$)") if parts else None


def read_tensors(source: Path, progress: Progress) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a folder, one at a time, in the order of `tensors_of`."""
    done, count = 0, len(tensors_of(source))
    for file in weight_files(source):
        for name, tensor in each_tensor(file):
            progress(done, count, name)
            yield name, tensor
            done += 1
    progress(count, count, "")


def _checked(tensors: Iterator[tuple[str, Tensor]], dtypes: Mapping[str, torch.dtype]) -> Iterator[tuple[str, Tensor]]:
    """The tensors, refused where float16 cannot hold a value."""
    half = torch.float16 in dtypes.values()
    for name, tensor in tensors:
        if half and tensor.is_floating_point() and (most := tensor.abs().max().item()) > torch.finfo(torch.float16).max:
            raise BaseError(
                f"{name} has values up to {most:.3g}, and float16 ends at 65504; export in bfloat16 or float32"
            )
        yield name, tensor
