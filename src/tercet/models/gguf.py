"""A GGUF file (llama.cpp's format) as a plain Hugging Face folder: fp32 weights, tokenizer rebuilt from metadata.

Only the Llama architecture with a byte-level BPE tokenizer is read. llama.cpp stores the query and key projections with
the two halves of each rotary pair interleaved; here they come back into the order transformers expects.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader, TokenType, dequantize
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig

from tercet.journal import replace, write_json
from tercet.models.config_file import check_sizes
from tercet.models.gguf_header import check_header
from tercet.models.headers import BaseError
from tercet.models.hf_folder import parameter_shapes, save_config
from tercet.models.weights import write_weights

Progress = Callable[[int, int, str], None]

WHOLE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def convert(path: Path, folder: Path, progress: Progress) -> None:
    """Write the model and tokenizer of a GGUF file into `folder`, one tensor in memory at a time."""
    check_header(path)
    try:
        reader = GGUFReader(path)
        metadata = Metadata(path.name, reader)
        config = config_of(metadata, tied="output.weight" not in {tensor.name for tensor in reader.tensors})
        shapes = _shapes(path.name, config, reader)
        save_config(folder, config)
        write_tokenizer(folder, metadata)
    except (BaseError, OSError):
        raise
    except Exception as error:  # a value of another type than its key has; numpy, tokenizers and gguf raise many kinds
        said = " ".join(str(error).split())[:200]
        raise BaseError(f"{path.name}: not a readable GGUF file ({said}); it is cut or of another format") from error
    write_weights(folder / "model.safetensors", shapes, _tensors(reader, config, progress))


class Metadata(dict[str, Any]):
    """The key-value part of a GGUF file; `name` is the file's, for errors."""

    def __init__(self, name: str, reader: GGUFReader) -> None:
        super().__init__((key, field.contents()) for key, field in reader.fields.items())
        self.name = name

    def __missing__(self, key: str) -> Any:
        raise BaseError(f"{self.name}: the GGUF metadata lack {key!r}; the file is cut or of another kind")


def config_of(metadata: Metadata, *, tied: bool) -> LlamaConfig:
    """The transformers configuration that the metadata describe; `tied` when the file has no head of its own."""
    architecture = metadata["general.architecture"]
    if architecture != "llama":
        raise BaseError(f"{metadata.name}: expected a 'llama', got {architecture!r}; use a safetensors folder")
    if metadata.get("llama.rope.scaling.type", "none") != "none":
        raise BaseError(f"{metadata.name}: scaled rotary positions are not read from GGUF; use a safetensors folder")
    heads, hidden = metadata["llama.attention.head_count"], metadata["llama.embedding_length"]
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=len(metadata["tokenizer.ggml.tokens"]),
        hidden_size=hidden,
        intermediate_size=metadata["llama.feed_forward_length"],
        num_hidden_layers=metadata["llama.block_count"],
        num_attention_heads=heads,
        num_key_value_heads=metadata.get("llama.attention.head_count_kv", heads),
        head_dim=metadata.get("llama.attention.key_length", hidden // heads),
        max_position_embeddings=metadata["llama.context_length"],
        rms_norm_eps=_decimal(metadata["llama.attention.layer_norm_rms_epsilon"]),
        rope_parameters={"rope_type": "default", "rope_theta": _decimal(metadata.get("llama.rope.freq_base", 1e4))},
        tie_word_embeddings=tied,
        bos_token_id=metadata.get("tokenizer.ggml.bos_token_id"),
        eos_token_id=metadata["tokenizer.ggml.eos_token_id"],
        pad_token_id=metadata.get("tokenizer.ggml.padding_token_id"),
    )


def _shapes(name: str, config: LlamaConfig, reader: GGUFReader) -> dict[str, tuple[int, ...]]:
    """The tensors of the model that the metadata describe, where the file holds as many numbers as they have."""
    check_sizes(config.to_dict(), Path(name))
    if config.num_hidden_layers > len(reader.tensors):
        raise BaseError(f"{name}: {config.num_hidden_layers:,} layers, and {len(reader.tensors):,} tensors; it is cut")
    shapes = parameter_shapes(config)
    wanted, held = sum(map(math.prod, shapes.values())), sum(int(tensor.n_elements) for tensor in reader.tensors)
    if wanted > 2 * held:
        raise BaseError(f"{name}: the metadata describe {wanted:,} numbers, and the tensors hold {held:,}; it is cut")
    return shapes


def write_tokenizer(folder: Path, metadata: Metadata) -> None:
    """Write tokenizer, its settings and the chat template that the metadata carry."""
    tokens = metadata["tokenizer.ggml.tokens"]
    tokenizer = _byte_level_bpe(metadata, tokens)
    values = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": metadata["llama.context_length"],
        "clean_up_tokenization_spaces": False,
    }
    for role, name in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        token_id = metadata.get(f"tokenizer.ggml.{name}_token_id")
        if token_id is not None:
            values[f"{role}_token"] = tokens[token_id]
    if metadata.get("tokenizer.ggml.add_bos_token", False):
        begin = (values["bos_token"], metadata["tokenizer.ggml.bos_token_id"])
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{begin[0]} $A", special_tokens=[begin])
    replace(folder / "tokenizer.json", tokenizer.to_str(pretty=True))
    write_json(folder / "tokenizer_config.json", values, sort_keys=True)
    template = metadata.get("tokenizer.chat_template")
    if template:
        replace(folder / "chat_template.jinja", template)


def _byte_level_bpe(metadata: Metadata, tokens: list[str]) -> Tokenizer:
    kind, split = metadata["tokenizer.ggml.model"], metadata.get("tokenizer.ggml.pre", "")
    splits = {
        "gpt-2": [],
        "smollm": [pre_tokenizers.Digits(individual_digits=True)],  # every digit is a token of its own
    }
    if kind != "gpt2" or split not in splits:
        raise BaseError(
            f"{metadata.name}: expected a 'gpt2' tokenizer split as {' or '.join(splits)}, got {kind!r} split as "
            f"{split!r}; use a safetensors folder"
        )
    merges = [tuple(merge.split(" ")) for merge in metadata.get("tokenizer.ggml.merges", [])]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits[split], byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    for token, number in zip(tokens, metadata["tokenizer.ggml.token_type"], strict=True):
        if number == TokenType.CONTROL:
            tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True)])
        elif number == TokenType.USER_DEFINED:
            tokenizer.add_tokens([AddedToken(token, normalized=False)])
    return tokenizer


def _tensors(reader: GGUFReader, config: LlamaConfig, progress: Progress) -> Iterator[tuple[str, torch.Tensor]]:
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads or config.num_attention_heads}
    for done, tensor in enumerate(reader.tensors):
        progress(done, len(reader.tensors), "dequantising")
        stem = tensor.name.removesuffix(".weight")
        prefix, _, rest = stem.partition(".")
        number, _, part = rest.partition(".")
        if stem not in WHOLE and (prefix != "blk" or part not in BLOCK):
            raise BaseError(f"the GGUF tensor {tensor.name!r} has no place in a plain Llama; use a safetensors folder")
        name = WHOLE.get(stem) or f"model.layers.{number}.{BLOCK[part]}"
        try:
            weight = dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
        except (NotImplementedError, ValueError) as error:
            raise BaseError(f"the GGUF tensor {tensor.name!r} cannot be dequantised: {error}") from error
        if not np.isfinite(weight).all():
            raise BaseError(f"the GGUF tensor {tensor.name!r} holds numbers that are not finite; the model is broken")
        if part in heads:
            weight = _halves_together(weight, heads[part])
        yield f"{name}.weight", torch.from_numpy(np.array(weight))  # a copy: some types are views of the mapped file
    progress(len(reader.tensors), len(reader.tensors), "dequantised")


def _halves_together(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head from (pair, half) order, as llama.cpp keeps them, to (half, pair) order."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _decimal(value: float) -> float:
    """The short decimal number that a stored fp32 value stands for: 9.99999975e-06 is 1e-05."""
    return float(str(np.float32(value)))
