"""A model's shape from its `config.json` alone: how many weights, and what a token costs in memory and arithmetic."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SHAPES: dict[str, dict[str, Any]] = tomllib.loads(Path(__file__).with_name("shapes.toml").read_text(encoding="utf-8"))
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
SHARED = "shared_expert_intermediate_size"
# Layers whose weights are not those of attention and a gated MLP: nothing is computed rather than something wrong.
STRANGE = ("kv_lora_rank", "mamba_d_state", "linear_num_key_heads", "per_layer_config", "block_configs")
BIASED = ("qwen2", "qwen2_moe")  # whose queries, keys and values have a bias that no key of the configuration names
NORMED_HEADS = ("qwen3", "qwen3_moe")  # with a norm for the queries and one for the keys of a head


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a decoder. Example: Llama 3.1 8B has 8,030,261,248 parameters and 131,072 bytes of cache a token."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    inner: int  # width of the MLP that a token passes, its experts side by side
    layer: int  # weights of the largest layer
    parameters: int
    active: int  # those that compute a token, the embedding left out

    @property
    def kv_width(self) -> int:
        """Numbers of a token's keys in a layer, as many as of its values."""
        return self.kv_heads * self.head_dim

    def cache(self, width: int) -> int:
        """Bytes of a token's keys and values in all layers, where a number has `width` bytes."""
        return 2 * self.layers * self.kv_width * width

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> ModelShape | None:
        """The shape of a configuration; None where it has layers that this arithmetic does not know, or names none."""
        text = config.get("text_config")
        config = text if isinstance(text, dict) else config
        needed = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "intermediate_size")
        if any(config.get(key) for key in STRANGE) or not all(isinstance(config.get(key), int) for key in needed):
            return None
        return _shape(config)


def known(model: str) -> ModelShape | None:
    """The shape of a published base model that a recipe of ours names, by its hub id."""
    return ModelShape.of(_SHAPES[model]) if model in _SHAPES else None


def _shape(config: Mapping[str, Any]) -> ModelShape:
    hidden, layers, heads = (config[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads"))
    kv_heads = config.get("num_key_value_heads") or heads
    head_dim = config.get("head_dim") or hidden // heads
    query, kv = heads * head_dim, kv_heads * head_dim
    attention = 2 * hidden * (query + kv)
    if config.get("attention_bias") or config.get("model_type") in BIASED:
        attention += query + 2 * kv + (hidden if config.get("attention_bias") else 0)
    if config.get("model_type") in NORMED_HEADS:
        attention += 2 * head_dim
    dense = 3 * hidden * config["intermediate_size"] + attention + 2 * hidden
    sparse, visited, inner, first = _experts(config)
    sparse, visited = sparse + attention + 2 * hidden, visited + attention + 2 * hidden
    number = layers - first if inner else 0
    embedding = config["vocab_size"] * hidden
    body = number * sparse + (layers - number) * dense + hidden
    heads_own = 0 if config.get("tie_word_embeddings") else embedding
    return ModelShape(
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocabulary=config["vocab_size"],
        inner=max(inner, 0 if number == layers else config["intermediate_size"]),
        layer=max(sparse if number else 0, dense if number < layers else 0),
        parameters=body + embedding + heads_own,
        active=number * visited + (layers - number) * dense + hidden + embedding,
    )


def _experts(config: Mapping[str, Any]) -> tuple[int, int, int, int]:
    """Of a layer with experts: weights of the MLP, those that a token uses, their width; layers before the first."""
    number = next((config[key] for key in EXPERTS if config.get(key)), 0)
    if not number:
        return 0, 0, 0, 0
    hidden, width = config["hidden_size"], config.get("moe_intermediate_size") or config["intermediate_size"]
    visits = config.get("num_experts_per_tok") or config.get("top_k") or number
    shared = config.get(SHARED) or width * (config.get("n_shared_experts") or 0)
    router = number * hidden + (hidden if config.get(SHARED) else 0)
    each = 3 * hidden * width
    whole, used = (count * each + 3 * hidden * shared + router for count in (number, visits))
    return whole, used, visits * width + shared, config.get("first_k_dense_replace", 0)
