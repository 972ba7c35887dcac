"""config.json as far as transformers may see it: numbers within limits, and no key that names code or other files.

transformers sets every key of the file on its configuration. Some of them make it load something: kernels from the hub
(`_attn_implementation`), weights of another name (`transformers_weights`), code beside the weights (`auto_map`). Which
class reads a folder, and with which attention, is decided here and nowhere in the folder.
"""

from __future__ import annotations

import inspect
import math
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import fields
from json import dumps
from pathlib import Path
from typing import Any, NamedTuple

from transformers import AutoConfig, PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES

from tercet.models.headers import BaseError, read_json

SILENT = {"_name_or_path", "name_or_path", "_commit_hash", "_attn_implementation_autoset", "torch_dtype", "dtype"}
CODE = SILENT | {
    *("auto_map", "custom_pipelines", "custom_generate", "trust_remote_code", "tokenizer_file", "gguf_file"),
    *("vocab_file", "merges_file", "spm_file", "source_spm", "target_spm"),
    *("transformers_weights", "fusion_config", "kernel_config", "use_kernels", "allow_all_kernels", "adapter_kwargs"),
    *("distributed_config", "device_map", "tp_plan", "tp_size", "compression_config", "loss_function"),
}
"""Keys of a folder's settings that transformers may load something for, or that say where it comes from."""

WAYS = frozenset({"eager", "sdpa", "batched_mm", "grouped_mm"})
PRECISIONS = frozenset({"float64", "float32", "bfloat16", "float16"})
CHOICES = {  # what these keys may say all the same: the ways to compute that transformers itself holds, and precisions
    **{f"{start}{part}_implementation": WAYS for start in ("", "_") for part in ("attn", "experts")},
    **{f"_{part}_implementation_internal": WAYS for part in ("attn", "experts")},
    "dtype": PRECISIONS,
    "torch_dtype": PRECISIONS,
}
SPOKEN = {"model_type"}  # set on classes, and said by every file
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
MODULES = 1 << 20  # layers x experts: each is a module, and takes a moment to make
INTEGER = 1 << 31  # of any other key; lengths that mean "without a limit" are larger
ENDLESS = {"time_step_limit"}  # of Mamba, up to infinity


class Range(NamedTuple):
    """From what to what a key of config.json may go."""

    least: float
    most: float


TABLE = tomllib.loads(Path(__file__).with_name("limits.toml").read_text("utf-8"))
LIMITS = {name: Range(one["least"], one["most"]) for one in TABLE.values() for name in one["names"].split()}
LAYERS = TABLE["layers"]["names"].split()


def read_config_file(folder: Path) -> PretrainedConfig:
    """The configuration of a folder, made of what `config_values` leaves; no code of the folder is run."""
    values, where = config_values(folder)[0], folder / "config.json"
    try:
        with tempfile.TemporaryDirectory() as place:
            Path(place, "config.json").write_text(dumps(values), "utf-8")
            config = AutoConfig.from_pretrained(place, local_files_only=True, trust_remote_code=False)
        if not isinstance(config.get_text_config(), PretrainedConfig):
            raise ValueError(f"text_config is no part of a {config.model_type}")
    except Exception as error:  # transformers validates in many ways
        raise BaseError(f"{where}: {' '.join(str(error).split())[:300]}; copy the file again") from error
    config.name_or_path = str(folder)
    return config


def config_values(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """config.json with sizes within limits, and the keys that were left out of it because they name code."""
    path = folder / "config.json"
    values, left = without_code(read_json(path))
    check_sizes(values, path)
    return values, left


def without_code(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The values without keys that name code or hide a part of the class, at any depth; and those keys."""
    name = values.get("model_type")
    kind = CONFIG_MAPPING[name] if isinstance(name, str) and name in CONFIG_MAPPING_NAMES else PretrainedConfig
    left: list[str] = []
    return _plain(values, kind, left, ""), left


def check_sizes(values: Mapping[str, Any], where: Path) -> None:
    """Refuse numbers that no model has, by the key that holds them."""
    for name, value in _numbers(values):
        key = name.rpartition(".")[2]
        limit = LIMITS.get(key)
        if isinstance(value, float) and not math.isfinite(value) and key not in ENDLESS:
            raise BaseError(f"{where}: {name} = {value}, expected a finite number; take the model's own file")
        if limit and (isinstance(value, str | bool) or not limit.least <= value <= limit.most):
            said = f"{limit.least:,} to {limit.most:,}"
            raise BaseError(
                f"{where}: {name} = {value!r:.60}, expected a number from {said}; take the model's own file"
            )
        if isinstance(value, int) and abs(value) > INTEGER and not limit and "length" not in key:
            raise BaseError(f"{where}: {name} = {value}, expected at most {INTEGER:,}; take the model's own file")
    layers = max((values[name] for name in LAYERS if isinstance(values.get(name), int)), default=1)
    experts = max((values[name] for name in EXPERTS if isinstance(values.get(name), int)), default=1)
    if layers * experts > MODULES:
        raise BaseError(
            f"{where}: {layers:,} layers of {experts:,} experts, expected at most {MODULES:,} experts in all"
        )


def _numbers(values: Mapping[str, Any], place: str = "") -> Iterator[tuple[str, Any]]:
    """Every number of the file by the path of its key, and whatever stands where a size belongs."""
    for key, value in values.items():
        name = f"{place}{key}"
        if isinstance(value, dict):
            yield from _numbers(value, f"{name}.")
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, dict) and one is not value:
                yield from _numbers(one, f"{name}.")
            elif (isinstance(one, int | float) and not isinstance(one, bool)) or (
                key in LIMITS and isinstance(one, str | bool)
            ):
                yield name, one


def _plain(values: Mapping[str, Any], kind: type[PretrainedConfig], left: list[str], place: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    own = {one.name for one in fields(kind)}
    for key, value in values.items():
        if _names_code(key, value, kind, own):
            if key not in SILENT:
                left.append(f"{place}{key}")
        elif isinstance(value, dict):
            inner = kind.sub_configs.get(key, PretrainedConfig)  # AutoConfig where any may stand
            inner = inner if issubclass(inner, PretrainedConfig) else PretrainedConfig
            found[key] = _plain(value, inner, left, f"{place}{key}.")
        else:
            found[key] = value
    return found


def _names_code(key: str, value: Any, kind: type[PretrainedConfig], own: set[str]) -> bool:
    if key in CHOICES:
        return value is not None and not (isinstance(value, str) and value in CHOICES[key])
    if key in CODE:
        return value is not None
    held = inspect.getattr_static(kind, key, None)
    hides = held is not None and key not in own and not isinstance(held, property)
    return hides and key not in SPOKEN
