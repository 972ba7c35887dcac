"""Files of a folder that readers of before transformers 5 understand too: the same facts under the names they know."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig

from tercet.journal import write_json
from tercet.models.config_file import read_config_file
from tercet.models.hf_folder import quiet

Values = dict[str, Any]
OWN = {"auto_map", "quantization_config", "torch_dtype", "dtype", "_name_or_path", "transformers_version"}
"""Keys of a base's config.json that say how its own files are stored or made, not what the model is."""


def write_config(out: Path, source: Path, base: Path | None, dtype: torch.dtype) -> None:
    """Write config.json of the folder `source` for weights in `dtype`; what the base's file said more stays said.

    Positions, and what has two names in transformers 5, are told in the names of transformers 4 too, unless 5 would
    then read another model.
    """
    values = _json(source / "config.json")
    name = str(dtype).removeprefix("torch.")
    values |= {"dtype": name, "torch_dtype": name}
    more = {key: value for key, value in _json(base / "config.json").items() if key not in OWN} if base else {}
    config = _read(source)
    rotary = _rotary(values.get("rope_parameters"), config.model_type)
    names = {other: values[name] for other, name in config.attribute_map.items() if name in values}
    meant = _meaning(config)
    for extra in (more | names | rotary, names | rotary, more, rotary):
        write_json(out / "config.json", extra | values, sort_keys=True)
        read = _meaning(_read(out))
        if all(read.get(key) == value for key, value in meant.items()):
            return
    write_json(out / "config.json", values, sort_keys=True)


def write_tokenizer_config(out: Path) -> None:
    """Name the tokenizer's class and its special tokens so that transformers 4 knows them, where 5 wrote the file."""
    path = out / "tokenizer_config.json"
    values = _json(path) if path.is_file() else {}
    if values.get("tokenizer_class") == "TokenizersBackend":
        values["tokenizer_class"] = "PreTrainedTokenizerFast"
    special = values.get("extra_special_tokens")
    if isinstance(special, list):  # transformers 4 expects names for them here
        del values["extra_special_tokens"]
        values["additional_special_tokens"] = special
    if values and values != _json(path):
        write_json(path, values, sort_keys=True)


def _rotary(parameters: Values | None, kind: str) -> Values:
    """The positions of transformers 5's `rope_parameters` as transformers 4 has them."""
    if not parameters:
        return {}
    layers = {key: value for key, value in parameters.items() if isinstance(value, dict)}
    plain = layers.get("full_attention", next(iter(layers.values()))) if layers else parameters
    found: Values = {"rope_theta": plain["rope_theta"]} if "rope_theta" in plain else {}
    if layers.get("sliding_attention", {}).get("rope_theta") is not None:
        found["rope_local_base_freq"] = layers["sliding_attention"]["rope_theta"]
    scaling = {key: value for key, value in plain.items() if key not in ("rope_theta", "partial_rotary_factor")}
    if scaling.get("rope_type", "default") != "default":
        found["rope_scaling"] = scaling
    share = plain.get("partial_rotary_factor")
    if share is not None:
        found["partial_rotary_factor"] = share
    if kind == "gpt_neox":
        found |= {"rotary_emb_base": plain.get("rope_theta"), "rotary_pct": share}
    return found


def _read(folder: Path) -> PretrainedConfig:
    with quiet():
        return read_config_file(folder)


def _meaning(config: PretrainedConfig) -> Values:
    """What a configuration says of the model, without the precision."""
    return {key: value for key, value in config.to_dict().items() if key not in OWN}


def _json(path: Path) -> Values:
    return dict(json.loads(path.read_text("utf-8")))
