"""Low-rank adapters as a folder that `peft`, vLLM and others read: written, read and merged here without peft.

A folder has `adapter_config.json` and `adapter_model.safetensors`, whose tensors are named after the adapted layers:
`base_model.model.` NAME `.lora_A.weight` (rank, in) and `.lora_B.weight` (out, rank).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from tercet.journal import write_json
from tercet.models.headers import BaseError, described, inside, read_json
from tercet.models.hf_folder import replace_weights, tensors_of, weight_files
from tercet.models.weights import DTYPES, each_tensor, note_widened, write_weights

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX, A, B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
KEPT = Path("tercet", "adapter")  # where a stage that trained adapters leaves them, beside the merged weights

PLAIN: dict[str, Any] = {
    "peft_type": "LORA",
    "bias": "none",
    "fan_in_fan_out": False,
    "use_dora": False,
    "lora_bias": False,
    "modules_to_save": None,
    "trainable_token_indices": None,
    "target_parameters": None,
    "layer_replication": None,
}
"""What makes an adapter a product of two factors and nothing more; a folder that says otherwise is refused."""


PATTERN = re.compile(r"\^?(?:[\w.]|\\[.d]|\(\w+(?:\|\w+)*\)|\.\*){1,200}\$?")
"""Names of layers with an alternative or a wildcard here and there, which match in no time; no other expression."""

ALPHA = 1e9


class Factors(NamedTuple):
    """What is added to the weight of one layer: scaling * B A."""

    a: Tensor  # (rank, in)
    b: Tensor  # (out, rank)
    scaling: float

    @property
    def product(self) -> Tensor:
        """The change of the weight, (out, in), in fp32."""
        return self.scaling * (self.b.float() @ self.a.float())


Adapter = dict[str, Factors]
"""By the name of the layer in its model: `{"model.layers.0.self_attn.q_proj": Factors(…)}`."""


def read_adapter(folder: Path) -> Adapter:
    """The factors of a PEFT folder; refused is whatever is not plain LoRA, by the key that says so."""
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise BaseError(f"{folder}: expected a PEFT adapter with {CONFIG} and {WEIGHTS}; it has no {name}")
    config = read_json(inside(folder, CONFIG))
    for key, wanted in PLAIN.items():
        if config.get(key, wanted) not in (wanted, None, [], {}):
            raise BaseError(
                f"{folder / CONFIG}: {key} = {json.dumps(config[key])}; only plain LoRA is read ({key} = "
                f"{json.dumps(wanted)}). Merge it with peft (`merge_and_unload`) and start from that folder"
            )
    _check_factors(inside(folder, WEIGHTS))
    tensors = load_file(folder / WEIGHTS)
    if odd := [name for name in sorted(tensors) if not name.startswith(PREFIX) or not name.endswith((A, B))]:
        raise BaseError(f"{folder / WEIGHTS}: expected tensors {PREFIX}NAME{A} and {B}, found {odd[0]}")
    found: Adapter = {}
    for layer in sorted({name.removeprefix(PREFIX).removesuffix(A).removesuffix(B) for name in tensors}):
        a, b = (tensors.get(f"{PREFIX}{layer}{side}") for side in (A, B))
        if a is None or b is None or a.dim() != 2 or b.dim() != 2 or not 0 < len(a) == b.shape[1]:
            raise BaseError(f"{folder / WEIGHTS}: expected two factors of one rank for {layer}; the file is damaged")
        found[layer] = Factors(a, b, _scaling(config, layer, len(a)))
    if not found:
        raise BaseError(f"{folder / WEIGHTS}: it holds no adapters")
    return found


def _check_factors(file: Path) -> None:
    """Refuse a file whose header lies, and factors that are no floating-point numbers or not finite."""
    have, expected = described(file)
    if expected != file.stat().st_size:
        raise BaseError(f"{file}: expected {expected:,} bytes, found {file.stat().st_size:,}; copy it again")
    for name, tensor in each_tensor(file):
        if have[name][0] not in DTYPES or not bool(tensor.isfinite().all()):
            raise BaseError(f"{file}: {name} ({have[name][0]}): expected finite floating-point numbers")


def _scaling(config: dict[str, Any], layer: str, rank: int) -> float:
    """alpha / rank, or alpha / √rank where the folder says so; alpha may be a layer's own."""
    own = config.get("alpha_pattern") or {}
    if not isinstance(own, dict):
        raise BaseError(f"{CONFIG}: alpha_pattern {own!r:.80}: expected names of layers with a number each")
    if odd := [one for one in own if one.count("*") > 2 or not PATTERN.fullmatch(one)]:
        raise BaseError(f"{CONFIG}: alpha_pattern {odd[0]!r:.80}: expected the name of a layer")
    matching = (value for pattern, value in own.items() if re.fullmatch(rf"(?:.*\.)?(?:{pattern})", layer))
    alpha = next(matching, config.get("lora_alpha", 8))
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not abs(alpha) < ALPHA:
        raise BaseError(f"{CONFIG}: lora_alpha {alpha!r:.40}: expected a number below {ALPHA:,}")
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)


def write_adapter(folder: Path, rank: int, alpha: float, tensors: dict[str, Tensor]) -> None:
    """Write factors, given by the names of their files without the prefix, as a PEFT folder; other tensors are whole.

    A tensor that is no factor is the head that a scorer learned beside its adapters.
    """
    folder.mkdir(parents=True, exist_ok=True)
    whole = sorted(name.removesuffix(".weight") for name in tensors if not name.endswith((A, B)))
    kinds = sorted({name.removesuffix(A).rpartition(".")[2] for name in tensors if name.endswith(A)})
    config = {
        **PLAIN,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "modules_to_save": whole or None,
        "r": rank,
        "target_modules": kinds,
        "task_type": "SEQ_CLS" if whole else "CAUSAL_LM",
        "use_rslora": False,
    }
    write_json(folder / CONFIG, config, sort_keys=True)
    named = {f"{PREFIX}{name}": tensor for name, tensor in tensors.items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in named.items()}
    write_weights(folder / WEIGHTS, shapes, named.items(), shard=1 << 62)  # peft reads one file


def merge_adapter(folder: Path, adapter: Adapter) -> None:
    """Add an adapter to the weights of a model folder; what it changes is in fp32 from then on, not rounded."""
    have = tensors_of(folder)
    for layer, factors in adapter.items():
        shape = (factors.b.shape[0], factors.a.shape[1])
        if f"{layer}.weight" not in have or have[f"{layer}.weight"][1] != shape:
            found = have.get(f"{layer}.weight", ("", "no such tensor"))[1]
            raise BaseError(
                f"{folder}: the adapter changes {layer}.weight of shape {shape}, and the model has {found}; it "
                "was trained on another model"
            )
    own = {name: DTYPES.get(code, torch.float32) for name, (code, _) in have.items()}
    dtypes = own | {f"{layer}.weight": torch.float32 for layer in adapter}
    shapes = {name: shape for name, (_, shape) in have.items()}
    replace_weights(folder, shapes, _merged(weight_files(folder), adapter), dtypes)
    note_widened(folder, [f"{layer}.weight" for layer in adapter])


def _merged(files: Iterable[Path], adapter: Adapter) -> Iterator[tuple[str, Tensor]]:
    for name, weight in chain.from_iterable(map(each_tensor, files)):
        factors = adapter.get(name.removesuffix(".weight"))
        yield name, weight.float() + factors.product if factors else weight
