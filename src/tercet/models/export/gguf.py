"""A model folder as one GGUF file, the format of llama.cpp: weights in f16, bf16, q8_0 or q4_0, tokenizer, template.

Dense models of the families below. llama.cpp rotates neighbouring rows where transformers rotates the two halves of a
head, so the rows of Llama's query and key projections change places; Gemma's norms are stored with their one added.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from math import pi
from pathlib import Path
from typing import Any

import numpy as np
from gguf import (
    GGML_QUANT_SIZES,
    MODEL_ARCH,
    MODEL_ARCH_NAMES,
    GGMLQuantizationType,
    GGUFWriter,
    LlamaFileType,
    RopeScalingType,
    TensorNameMap,
    get_tensor_name_map,
    quantize,
)
from transformers import PretrainedConfig

from tercet.journal import replacing
from tercet.models.export.folder import Progress, read_tensors, tensors_of
from tercet.models.export.gguf_tokenizer import add_tokenizer
from tercet.models.headers import BaseError
from tercet.models.hf_folder import load_config, load_tokenizer

KINDS = {
    "f16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "bf16": (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
    "q4_0": (GGMLQuantizationType.Q4_0, LlamaFileType.MOSTLY_Q4_0),
}
ENDS = ("token_embd.weight", "output.weight")  # of q4_0 these stay in q8_0: every token's score depends on them


@dataclass(frozen=True)
class Family:
    """How a family of transformers is written; `activation` is the only one that llama.cpp computes for it."""

    architecture: MODEL_ARCH
    permuted: bool = False  # rows of the query and key projections
    added: bool = False  # norms are stored as 1 + weight
    activation: str = "silu"
    period: int = 0  # of sliding and full attention: the last of so many layers is full


FAMILIES = {
    "llama": Family(MODEL_ARCH.LLAMA, permuted=True),
    "mistral": Family(MODEL_ARCH.LLAMA, permuted=True),
    "qwen2": Family(MODEL_ARCH.QWEN2),
    "qwen3": Family(MODEL_ARCH.QWEN3),
    "olmo": Family(MODEL_ARCH.OLMO, permuted=True),
    "olmo2": Family(MODEL_ARCH.OLMO2),
    "gemma": Family(MODEL_ARCH.GEMMA, added=True, activation="gelu_pytorch_tanh"),
    "gemma2": Family(MODEL_ARCH.GEMMA2, added=True, activation="gelu_pytorch_tanh", period=2),
    "gemma3_text": Family(MODEL_ARCH.GEMMA3, added=True, activation="gelu_pytorch_tanh", period=6),
}


def export_gguf(source: Path, path: Path, name: str, kind: str, progress: Progress) -> int:
    """Write the model folder `source` as the GGUF file `path`; returns its bytes. Refused before anything is written.

    Matrices have the precision of `kind` (f16 where a row cannot be cut into blocks); vectors are fp32.
    """
    config = load_config(source)
    family = _family(config, source)
    writer = GGUFWriter(None, MODEL_ARCH_NAMES[family.architecture])
    writer.add_type("model")
    writer.add_name(name)
    writer.add_file_type(KINDS[kind][1])
    writer.add_quantization_version(2)
    _add_shape(writer, config, family)
    _add_positions(writer, config)
    add_tokenizer(writer, load_tokenizer(source), config.vocab_size, _ends(source))
    with replacing(path) as fresh:
        try:
            _write(writer, fresh, source, config, kind, progress)
        finally:
            writer.close()
    return path.stat().st_size


def _family(config: PretrainedConfig, source: Path) -> Family:
    """The family of a model, refused where llama.cpp would compute something else."""
    family, kind = FAMILIES.get(config.model_type), (config.architectures or ["a model"])[0]
    if family is None or kind.endswith("SequenceClassification"):
        known = ", ".join(sorted({name.removesuffix("_text") for name in FAMILIES}))
        raise BaseError(
            f"{source}: a GGUF file is written of dense language models of the families {known}; this is "
            f"{kind} ({config.model_type}). Export it as a folder, without --gguf"
        )
    head = _head(config)
    layers = list(getattr(config, "layer_types", None) or [])
    wanted = [
        "full_attention" if not family.period or (i + 1) % family.period == 0 else "sliding_attention"
        for i in range(config.num_hidden_layers)
    ]
    scale = getattr(config, "query_pre_attn_scalar", None)
    refused = (
        (_activation(config) != family.activation, f"the activation {_activation(config)}"),
        (getattr(config, "mlp_bias", False), "biases in the feed-forward layers (mlp_bias)"),
        (family.period and layers and layers != wanted, f"the order of its layers {layers} (layer_types)"),
        (not family.period and "sliding_attention" in layers and config.model_type != "mistral", "sliding windows"),
        (scale not in (None, head), f"query_pre_attn_scalar {scale} with heads of {head}"),
        (getattr(config, "use_bidirectional_attention", False), "attention in both directions"),
    )
    if found := [what for bad, what in refused if bad]:
        raise BaseError(
            f"{source}: llama.cpp does not compute {found[0]} for {config.model_type}; export it as a folder"
        )
    return family


def _activation(config: PretrainedConfig) -> str:
    return str(getattr(config, "hidden_activation", None) or config.hidden_act)


def _head(config: PretrainedConfig) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _add_shape(writer: GGUFWriter, config: PretrainedConfig, family: Family) -> None:
    """Sizes, norms, windows and caps."""
    head, context = _head(config), config.max_position_embeddings
    window = getattr(config, "sliding_window", None)
    if not family.period and config.model_type == "mistral" and window:
        context = min(context, window)  # up to there the window hides nothing, and llama.cpp has none for this family
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(context)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    if config.model_type == "olmo":
        writer.add_layer_norm_eps(1e-5)
        if config.clip_qkv is not None:
            writer.add_clamp_kqv(config.clip_qkv)
    else:
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if family.period:
        writer.add_sliding_window(window or context)
    if (cap := getattr(config, "attn_logit_softcapping", None)) is not None:
        writer.add_attn_logit_softcapping(cap)
    if (cap := getattr(config, "final_logit_softcapping", None)) is not None:
        writer.add_final_logit_softcapping(cap)


def _positions(config: PretrainedConfig) -> dict[str, Any]:
    """The rotary parameters of the layers that see everything."""
    found: dict[str, Any] = config.rope_parameters or {}
    return dict(found.get("full_attention", found))


def _add_positions(writer: GGUFWriter, config: PretrainedConfig) -> None:
    """Rotary positions; refused where llama.cpp would turn them by other angles."""
    rope = _positions(config)
    kind, known = rope.get("rope_type", "default"), {"rope_type", "rope_theta", "factor"}
    writer.add_rope_freq_base(rope["rope_theta"])
    local = (config.rope_parameters or {}).get("sliding_attention")
    if local:
        writer.add_float32(f"{writer.arch}.rope.freq_base_swa", local["rope_theta"])
    if kind == "yarn":
        known |= {"original_max_position_embeddings", "beta_fast", "beta_slow"}
        writer.add_rope_scaling_type(RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        for name, usual in (("beta_fast", 32.0), ("beta_slow", 1.0)):
            writer.add_float32(f"{writer.arch}.rope.scaling.yarn_{name}", rope.get(name) or usual)
    elif kind == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    elif kind == "llama3":
        known |= {"original_max_position_embeddings", "low_freq_factor", "high_freq_factor"}
    else:
        known -= {"factor"}
    odd = {key: value for key, value in rope.items() if key not in known and value is not None}
    odd = {key: value for key, value in odd.items() if (key, value) != ("partial_rotary_factor", 1.0)}
    if odd or kind not in ("default", "linear", "llama3", "yarn"):
        raise BaseError(f"rotary positions of {config.model_type} with {rope} are not written as GGUF; export a folder")


def _slower(config: PretrainedConfig) -> np.ndarray | None:
    """Llama 3's stretched positions: by how much each of a head's pairs turns more slowly, (head / 2,)."""
    rope = _positions(config)
    if rope.get("rope_type") != "llama3":
        return None
    size, original = _head(config), rope["original_max_position_embeddings"]
    waves = 2 * pi * rope["rope_theta"] ** (np.arange(0, size, 2, dtype=np.float64) / size)
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    smooth = (original / waves - low) / (high - low)
    between = 1 / ((1 - smooth) / factor + smooth)
    found = np.where(waves < original / high, 1.0, np.where(waves > original / low, factor, between))
    return found.astype(np.float32)


def _ends(source: Path) -> list[int]:
    """Every token that ends generation."""
    path = source / "generation_config.json"
    found = json.loads(path.read_text("utf-8")).get("eos_token_id") if path.is_file() else None
    return found if isinstance(found, list) else [] if found is None else [found]


def _write(
    writer: GGUFWriter, path: Path, source: Path, config: PretrainedConfig, kind: str, progress: Progress
) -> None:
    """The header, then every tensor in the order of the source; one at a time is in memory."""
    family, have = FAMILIES[config.model_type], tensors_of(source)
    names = get_tensor_name_map(family.architecture, config.num_hidden_layers)
    for name, (_, shape) in have.items():
        own = _name(names, name, source)
        if own is None:
            continue
        dtype = _dtype(own, shape, kind)
        block, size = GGML_QUANT_SIZES[dtype]
        cut = (*shape[:-1], shape[-1] // block * size)
        byte = np.dtype(np.uint8)
        writer.add_tensor_info(own, cut, byte, int(np.prod(cut)), raw_dtype=dtype)
    slower = _slower(config)
    if slower is not None:
        writer.add_tensor_info("rope_freqs.weight", slower.shape, slower.dtype, slower.nbytes)
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for own, weight in _rows(source, config, family, names, progress):
        dtype = _dtype(own, weight.shape, kind)
        writer.write_tensor_data(np.ascontiguousarray(quantize(weight, dtype)).view(np.uint8))
    if slower is not None:
        writer.write_tensor_data(slower)


def _name(names: TensorNameMap, name: str, source: Path) -> str | None:
    """The name of a tensor in GGUF; none for the angles that some old folders hold."""
    if name.endswith("rotary_emb.inv_freq"):
        return None
    found = names.get_name(name, try_suffixes=(".weight", ".bias"))
    if found is None:
        raise BaseError(f"{source}: the tensor {name!r} has no place in a GGUF file of its family; export a folder")
    return found


def _dtype(name: str, shape: tuple[int, ...], kind: str) -> GGMLQuantizationType:
    """The precision of one tensor."""
    wanted = GGMLQuantizationType.Q8_0 if kind == "q4_0" and name in ENDS else KINDS[kind][0]
    if len(shape) == 1:
        return GGMLQuantizationType.F32
    return wanted if shape[-1] % GGML_QUANT_SIZES[wanted][0] == 0 else GGMLQuantizationType.F16


def _rows(
    source: Path, config: PretrainedConfig, family: Family, names: TensorNameMap, progress: Progress
) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor in fp32 under its name in GGUF, as llama.cpp wants its rows."""
    heads = {"attn_q": config.num_attention_heads}
    heads["attn_k"] = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    for name, tensor in read_tensors(source, progress):
        own = _name(names, name, source)
        if own is None:
            continue
        weight = tensor.float().numpy()
        part = own.split(".")[-2]
        if family.permuted and part in heads:
            weight = _neighbours(weight, heads[part])
        if family.added and name.endswith("norm.weight"):
            weight = weight + 1
        yield own, weight


def _neighbours(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head from (half, pair) order, as transformers keeps them, to (pair, half) order."""
    split = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return split.swapaxes(1, 2).reshape(weight.shape)
