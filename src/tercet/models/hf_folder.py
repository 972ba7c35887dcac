"""A model as a plain Hugging Face folder: read it, write it the same way every time, compute its digest.

Every stage that makes a model leaves `config.json`, the weights in fp32 (`tercet.models.weights`),
`generation_config.json` and the tokenizer's files. A folder holds no trace of where or when it was written.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging

from tercet.journal import replace, write_json
from tercet.models.classes import model_class
from tercet.models.config_file import read_config_file
from tercet.models.headers import WEIGHTS, BaseError, Stored, inside, read_json, stored_tensors
from tercet.models.tokenizer_checks import check_settings
from tercet.models.weights import Shapes, write_weights

INDEX = "model.safetensors.index.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
)
"""What `copy_tokenizer` copies; the generation config belongs here because it names the tokens that end a turn."""

SAFE: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False, "use_safetensors": True}
"""How transformers reads every model here: from the folder alone, and nothing that is pickled or is code."""

STRANGE = re.compile(r"adapter_config\.json|shard-\d+-model-.*\.safetensors")
"""Files beside the weights that transformers would read in their place, or on top of them."""


def load_model(folder: Path, dtype: torch.dtype, *, attention: str | None = None) -> PreTrainedModel:
    """The causal language model of a folder in `dtype`, every weight read from the file; `attention` names a kernel."""
    options: dict[str, Any] = {"config": load_config(folder), **SAFE, "dtype": dtype, "output_loading_info": True}
    if attention:
        options["attn_implementation"] = attention
    reader: Any = AutoModelForCausalLM
    try:
        with quiet():
            model, report = reader.from_pretrained(str(folder), **options)
    except Exception as error:  # safetensors, transformers and torch each raise their own kinds for a damaged file
        raise BaseError(f"{folder}: the weights cannot be read ({one_line(error)}); make the folder again") from error
    if report["missing_keys"]:
        lost = sorted(report["missing_keys"])
        raise BaseError(
            f"{folder}: the weights lack {len(lost)} tensors of {type(model).__name__}, e.g. {', '.join(lost[:3])}; "
            "config.json and the weights must belong to the same model"
        )
    return model


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The fast tokenizer of a folder, chat template included."""
    if not (folder / "tokenizer.json").is_file():
        slow = next((name for name in ("tokenizer.model", "vocab.json", "vocab.txt") if (folder / name).is_file()), "")
        way = "copy the tokenizer files of the model it was trained from next to its weights"
        if slow:
            way = f"{slow} alone is of a slow tokenizer: load it with AutoTokenizer of transformers and save it again"
        raise BaseError(f"{folder}: expected a tokenizer (tokenizer.json), found {listing(folder)}; {way}")
    check_settings(folder)
    config = {"config": read_config_file(folder)} if (folder / "config.json").is_file() else {}
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(
                str(folder), **config, local_files_only=True, trust_remote_code=False
            )
    except Exception as error:  # the Rust tokenizer raises bare exceptions
        raise BaseError(f"{folder}: the tokenizer cannot be read ({one_line(error)}); copy it again") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise BaseError(f"{folder}: expected a fast tokenizer, got {type(tokenizer).__name__}; convert it first")
    return tokenizer


def load_config(folder: Path) -> PretrainedConfig:
    """The model's configuration."""
    check_folder(folder)
    return read_config_file(folder)


def check_folder(folder: Path) -> None:
    """Refuse a folder that lacks the configuration or safetensors weights."""
    if not folder.is_dir():
        raise BaseError(f"{folder}: no such model folder; check the path in the recipe")
    if not (folder / "config.json").is_file():
        raise BaseError(f"{folder}: expected a model folder with config.json, found {listing(folder)}")
    check_beside(folder)
    weight_files(folder)


def check_beside(folder: Path) -> None:
    """Refuse a folder that holds what transformers would read beside the weights, or links that lead out of it."""
    if strange := [file.name for file in folder.iterdir() if STRANGE.fullmatch(file.name)]:
        raise BaseError(
            f"{folder}: {strange[0]} stands beside the weights, and would change what is read; put it elsewhere (an "
            "adapter: name its folder in base.adapter)"
        )
    for name in (*TOKENIZER_FILES, "config.json", INDEX):
        inside(folder, name)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, one or the shards its index names, in order."""
    index = folder / INDEX
    single = folder / "model.safetensors"
    names = [single.name] if single.is_file() or not index.is_file() else sorted(set(weight_map(index).values()))
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise BaseError(
            f"{folder}: expected weights in {missing[0]}, found {listing(folder)}; Tercet reads safetensors only, so "
            "convert other formats first (`save_pretrained` of transformers writes it)"
        )
    return [inside(folder, name) for name in names]


def weight_map(index: Path) -> dict[str, str]:
    """The file of each tensor, as an index names it: all of them beside the index."""
    found = read_json(index).get("weight_map")
    if not isinstance(found, dict):
        raise BaseError(f"{index}: expected JSON with a weight_map, got {type(found).__name__}; copy it again")
    if odd := [name for name in found.values() if not (isinstance(name, str) and WEIGHTS.fullmatch(name))]:
        raise BaseError(f"{index}: names the file {odd[0]!r:.80}; expected NAME.safetensors in the same folder")
    return found


def save_config(folder: Path, config: PretrainedConfig) -> None:
    """Write config.json for fp32 weights, without any trace of where the model came from."""
    values = json.loads(config.to_json_string(use_diff=True))
    for key in ("_name_or_path", "torch_dtype", "quantization_config"):
        values.pop(key, None)
    values["dtype"] = "float32"
    write_json(folder / "config.json", values, sort_keys=True)


def parameter_shapes(config: PretrainedConfig) -> dict[str, tuple[int, ...]]:
    """Names in memory and shapes of the tensors of a model of `config`; a tied tensor counts once."""
    return {name: tuple(tensor.shape) for name, tensor in parameters_of(meta_model(config)).items()}


def meta_model(config: PretrainedConfig) -> PreTrainedModel:
    """The model of a configuration, without any numbers."""
    kind = model_class(config)
    try:
        with torch.device("meta"), quiet():
            return kind(config)
    except Exception as error:  # sizes that do not fit each other, found by the model's own code
        raise BaseError(f"config.json describes no {kind.__name__} that can be made ({one_line(error)})") from error


def parameters_of(model: PreTrainedModel) -> dict[str, Tensor]:
    """The tensors that a model is stored with, by their names in memory; a tied tensor under its first name only."""
    stored = set(model.state_dict())
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in stored}
    return {**dict(model.named_parameters()), **buffers}


def tensors_of(folder: Path) -> Stored:
    """Dtype code and shape of every tensor of a folder, by the name that it is stored under."""
    return {name: at for file in weight_files(folder) for name, at in stored_tensors(file).items()}


def replace_weights(
    folder: Path, shapes: Shapes, tensors: Iterable[tuple[str, Tensor]], dtypes: Mapping[str, torch.dtype]
) -> None:
    """Write other weights in the place of a folder's; `tensors` may be read from the old files meanwhile."""
    files = weight_files(folder)
    written = write_weights(folder / "model.safetensors", shapes, tensors, dtypes=dtypes)
    for file in {*files} - {*written}:
        file.unlink(missing_ok=True)


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy tokenizer and generation config byte for byte."""
    if not (source / "tokenizer.json").is_file():
        raise BaseError(f"{source}: expected a tokenizer (tokenizer.json), found {listing(source)}")
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            replace(target / name, (source / name).read_bytes())


def model_digest(folder: Path) -> str:
    """SHA-256 over the weights file (over all shards in order, when there are several)."""
    digest = hashlib.sha256()
    for file in weight_files(folder):
        with open(file, "rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def link_or_copy(source: Path, target: Path, *, link: bool) -> None:
    """Put a file at `target`: hard link where wanted and possible (same file system), else a copy."""
    target.unlink(missing_ok=True)
    if link:
        try:
            os.link(source.resolve(), target)
            return
        except OSError:
            pass  # another file system, or one without links: copy instead
    shutil.copyfile(source, target)


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no warnings of transformers and the hub inside; the settings come back afterwards."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def listing(folder: Path) -> str:
    """The first names in a folder, for a message."""
    if not folder.is_dir():
        return "no such folder"
    names = sorted(entry.name for entry in folder.iterdir())
    return ", ".join(names[:8]) + (" …" if len(names) > 8 else "") or "an empty folder"


def one_line(error: Exception) -> str:
    """At most 300 characters of an error's message, for a message of our own."""
    return " ".join(str(error).split())[:300] or type(error).__name__
