"""What a model folder is and how it can be read here, known from its config.json before any weight is read.

`python -m tercet.models.support FOLDER` prints it as JSON (TEMPLATE, ARGUMENTS and DATE may follow); planning asks that
way, in a process of its own.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from transformers import PretrainedConfig
from transformers.models.auto import modeling_auto as auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from tercet.journal import write_json
from tercet.models.chat import Chat, ChatError, named_ends
from tercet.models.chat_template import DATE_KEY, template_text, with_arguments
from tercet.models.config_file import read_config_file
from tercet.models.headers import BaseError, read_json
from tercet.models.hf_folder import listing, load_model, load_tokenizer, one_line, quiet
from tercet.models.miniature import build, check_small, miniature
from tercet.models.opening import laid_out
from tercet.models.policy import Policy

OTHERS = (  # what a folder may hold instead of a language model, most telling first
    (auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES, "an encoder-decoder"),
    (auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, "a multimodal model"),
    (auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES, "a speech model"),
    (auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES, "an encoder"),
    (auto.MODEL_FOR_IMAGE_MAPPING_NAMES, "a vision model"),
)
ENCODERS = "a stage of kind `model` with `encoder = true` reads encoders for embeddings"
WAYS = {
    "an encoder-decoder": "use a decoder such as Llama, Qwen or OLMo",
    "a multimodal model": "save its language model by itself (transformers' class for it ends in ForCausalLM)",
    "an encoder": ENCODERS,
}


class Support(NamedTuple):
    """How batches of a model are laid out, `forest` or `padded`, and why not in a forest."""

    architecture: str
    layout: str
    reason: str

    @property
    def record(self) -> dict[str, str]:
        """As it is written down and read by the pipeline."""
        return {"layout": self.layout, "sentence": str(self)}

    def __str__(self) -> str:
        if self.layout == "forest":
            return f"{self.architecture}: read in forests, what answers share is computed once"
        return f"{self.architecture}: one path a row, because {self.reason}; each answer computes its prompt again"


def read_values(folder: Path) -> dict[str, Any]:
    """config.json of a folder that says it is a model."""
    path = folder / "config.json"
    if not path.is_file():
        raise BaseError(f"{folder}: {_instead(folder)}")
    return read_json(path)


def _instead(folder: Path) -> str:
    """What a folder without config.json is."""
    if not folder.is_dir():
        is_file = "expected a model folder, this is a file; name the folder that it lies in"
        return is_file if folder.is_file() else "no such model folder; check the path in the recipe"
    if (folder / "adapter_config.json").is_file():
        return (
            "expected a model, found a LoRA adapter without its base (adapter_config.json); name its base in "
            "base.model and the folder in base.adapter"
        )
    if (folder / "model_index.json").is_file():
        return "expected a language model, found a diffusion pipeline (model_index.json); Tercet trains decoders"
    return f"expected a model folder with config.json, found {listing(folder)}"


def check_kind(folder: Path) -> dict[str, Any]:
    """The values of config.json where they describe a decoder that transformers reads; else an error says what."""
    values = read_values(folder)
    where, kind, names = folder / "config.json", str(values.get("model_type")), values.get("architectures") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise BaseError(f"{where}: architectures = {names!r:.80}, expected a list of names; copy the file again")
    if kind not in CONFIG_MAPPING_NAMES:
        raise BaseError(f"{where}: {_unknown(kind, values)}")
    if method := _quantised(values):
        raise BaseError(
            f"{where}: the weights are quantised ({method:.40}), which training cannot change; take the model's "
            "unquantised folder, or load it with transformers, call dequantize() and save it"
        )
    decoder = auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind)
    other = next((word for table, word in OTHERS if _names(table.get(kind)) & {*names}), "")
    if decoder is None or (names and decoder not in names and other):
        other = other or next((word for table, word in OTHERS if kind in table), "no language model")
        way = WAYS.get(other, "use a decoder such as Llama, Qwen or OLMo")
        raise BaseError(f"{where}: expected a causal language model, got {other} ({', '.join(names) or kind}); {way}")
    if not names:
        raise BaseError(
            f'{where}: expected "architectures", which says what the weights are; for a language model of this type '
            f'add "architectures": ["{decoder}"]'
        )
    if decoder not in names:
        raise BaseError(
            f"{where}: expected a causal language model ({decoder}), got {', '.join(names)}, which has no output "
            "projection over the vocabulary; take the folder of the language model"
        )
    return values


def _quantised(values: dict[str, Any]) -> str:
    """How the weights are quantised, by the configuration or that of a part; transformers would load code for it."""
    inner = [one for one in values.values() if isinstance(one, dict)]
    for said in (one.get("quantization_config") for one in [values, *inner]):
        if said:
            return str(said.get("quant_method") or "quantization_config") if isinstance(said, dict) else str(said)
    return ""


def _names(classes: Any) -> set[str]:
    return {classes} if isinstance(classes, str) else set(classes or ())


def _unknown(kind: str, values: dict[str, Any]) -> str:
    """Why a model type cannot be read."""
    if "model_type" not in values:
        return 'expected "model_type", the name of the architecture; copy config.json of the model again'
    made = values.get("transformers_version")
    known = f"transformers {transformers.__version__} does not know the model type {kind!r}"
    if values.get("auto_map"):
        return (
            f"{known}; the folder brings code of its own (auto_map), which is never run here; take a version of the "
            "model in transformers' own format, or a transformers that knows it"
        )
    newer = f"the folder was written by transformers {made}: " if made else ""
    return f"{known}; {newer}install a version that knows it (pip install -U transformers), or take another model"


def read_config(folder: Path) -> PretrainedConfig:
    """The configuration of a decoder's folder; no code of the folder is run."""
    check_kind(folder)
    with quiet():
        config = read_config_file(folder)
    text = config.get_text_config()
    if (getattr(text, "pad_token_id", None) or 0) >= text.vocab_size:
        text.pad_token_id = None  # beyond the embedding: the tokenizer's takes its place
    return config


def support(folder: Path) -> Support:
    """How a folder's model is read; `BaseError` or `ForestError` where it cannot be."""
    config = read_config(folder)
    try:
        return of_config(config)
    except Exception:  # no small model of this making could be had, or it says no: the model itself is asked
        return _found(laid_out(load_model(folder, torch.float32).eval(), "auto"))


def of_config(config: PretrainedConfig) -> Support:
    """How a model of this configuration is read, tried on a small one; `ForestError` where it cannot be."""
    small = miniature(config)
    check_small(small)
    return _found(laid_out(build(small), "auto"))


def _found(policy: Policy) -> Support:
    return Support(type(policy.model).__name__, "padded" if policy.padded else "forest", policy.why_padded)


NOTE = Path("tercet", "layout.json")  # in a base's folder: how it is read


def note(found: Support, folder: Path) -> None:
    """Write into a folder how its model is read."""
    (folder / NOTE).parent.mkdir(exist_ok=True)
    write_json(folder / NOTE, found.record, sort_keys=True)


def chat_of(folder: Path, template: str, arguments: Mapping[str, Any], date: str) -> Chat:
    """The chat that a model will have with this template, before the base stage has put it into a folder."""
    tokenizer = load_tokenizer(folder)
    tokenizer.chat_template = with_arguments(template_text(tokenizer, template), arguments)
    if date:
        tokenizer.init_kwargs[DATE_KEY] = date
    return Chat(tokenizer, ends=named_ends(folder))


def main(folder: str, *trained: str) -> int:
    """Print how a folder is read, or why it cannot be; `trained` are template, its arguments (JSON) and date."""
    try:
        config = read_config(Path(folder))
        found = of_config(config).record
        chat = chat_of(Path(folder), trained[0], json.loads(trained[1]), trained[2]) if trained else None
        if chat is not None and (why := chat.untrainable):
            found = {"layout": "", "sentence": f"{folder}: {one_line(ChatError(why))}"}
    except (BaseError, ChatError) as error:
        found = {"layout": "", "sentence": str(error)}
    except Exception as error:  # a small model says little where it cannot be made
        found = {"layout": "unknown", "sentence": f"the base stage will try the model itself ({one_line(error)})"}
    sys.stdout.write(json.dumps(found) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
