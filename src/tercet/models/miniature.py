"""A small model of the same making: what a family can do is tried on one before gigabytes are read.

Sizes shrink; switches, kinds of layers, scalings and caps stay. One layer of each kind is kept, windows become shorter
than the text they are tried on, and random weights are large enough for every part to matter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from tercet.models.headers import BaseError
from tercet.models.hf_folder import quiet

WIDTH, HEADS, SIZE, WINDOW, VOCABULARY = 32, 4, 8, 5, 96
NUMBERS = 1 << 28  # of a small model; those of published families have a few hundred thousand
LAYERS, USUAL = 6, 4  # at most, where every layer is of another kind; where kinds recur
NAMES: tuple[tuple[int, str], ...] = (
    (
        WIDTH,
        "hidden_size d_model n_embd embedding_size word_embed_proj_dim input_embedding_size output_embedding_size "
        "lru_width embedding_dim emb_dim text_hidden_size out_hidden_size dim",
    ),
    (
        48,
        "intermediate_size ffn_dim n_inner d_inner dff dim_ff ffn_hidden_size decoder_ffn_dim encoder_ffn_dim "
        "moe_intermediate_size shared_expert_intermediate_size shared_intermediate_size expert_ffn_hidden_size "
        "intermediate_size_mlp dense_intermediate_size prefix_dense_intermediate_size feed_forward_size "
        "moe_shared_expert_intermediate_size shared_experts_intermediate_size adapter_in_dim",
    ),
    (
        HEADS,
        "num_attention_heads n_head n_heads num_heads attention_heads decoder_attention_heads "
        "encoder_attention_heads num_encoder_attention_heads num_decoder_attention_heads swa_num_attention_heads "
        "num_experts num_local_experts n_routed_experts moe_num_experts zero_expert_num index_n_heads linear_num_heads "
        "linear_num_value_heads mamba_n_heads mamba_num_heads indexer_n_heads",
    ),
    (
        2,
        "linear_num_key_heads num_experts_per_tok num_experts_per_token moe_topk moe_top_k moe_k top_k_experts "
        "mamba_n_groups n_groups mamba_ngroups n_mamba_heads o_groups hc_mult attn_layer_period expert_layer_period "
        "indexer_kv_heads interleave_moe_layer_step no_rope_layer_interval swa_num_key_value_heads depth",
    ),
    (
        1,
        "n_group num_expert_group topk_group first_k_dense_replace num_dense_layers n_shared_experts "
        "num_shared_experts num_kv_shared_layers moe_num_shared_experts attn_layer_offset expert_layer_offset "
        "moe_layer_start_index max_window_layers",
    ),
    (
        0,
        "num_mtp_layers num_nextn_predict_layers",
    ),
    (
        SIZE,
        "head_dim global_head_dim swa_head_dim dim_head d_head kv_channels qk_rope_head_dim qk_nope_head_dim "
        "v_head_dim index_head_dim indexer_head_dim linear_head_dim linear_key_head_dim linear_value_head_dim "
        "mamba_head_dim attention_head_size d_rel hidden_size_per_layer_input laurel_rank conf_num_attention_heads",
    ),
    (
        16,
        "q_lora_rank kv_lora_rank o_lora_rank mamba_d_state ssm_state_size state_size hc_lowrank gated_norm_rank "
        "router_hidden_size moe_latent_size dim_model_base mamba_d_head adapter_rank query_pre_attn_scalar",
    ),
    (
        WINDOW,
        "sliding_window attention_chunk_size window_size sliding_window_size attention_window_size "
        "keep_window_size rel_extent",
    ),
    (
        4,
        "chunk_size mamba_chunk_size block_size rotary_dim block_multiple_of index_block_size",
    ),
    (
        64,
        "index_topk mamba_d_ssm linear_num_chunks",
    ),
    (
        128,
        "max_position_embeddings n_positions max_seq_len n_ctx seq_length max_target_positions",
    ),
    (
        VOCABULARY,
        "vocab_size vocab_size_per_layer_input unpadded_vocab_size decoder_vocab_size",
    ),
)
SIZES = {name: size for size, names in NAMES for name in names.split()}
DEPTHS = (
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_layers",
    "decoder_layers",
    "num_decoder_layers",
    "num_blocks",
)
KEY_HEADS = ("num_key_value_heads", "num_kv_heads", "kv_n_heads", "num_global_key_value_heads")
DERIVED = ("qk_head_dim", "attention_head_dim", "attention_hidden_size", "mamba_intermediate", "mamba_headdim")
PLACES = ("moe_layers", "attn_layer_indices", "full_attn_idxs", "local_layer_ids", "ple_layer_ids", "mlp_only_layers")


def miniature(config: PretrainedConfig, **changes: Any) -> PretrainedConfig:
    """A configuration of the same class with small sizes; `changes` are set last."""
    whole = config.to_dict()
    whole.pop("quantization_config", None)
    values = _shrunk(whole) | changes
    with quiet():
        return type(config).from_dict(values)


def check_small(config: PretrainedConfig) -> None:
    """Refuse a small model that is none: a size whose name nobody shrinks is beyond reason."""
    try:
        with torch.device("meta"), quiet():
            count = sum(one.numel() for one in AutoModelForCausalLM.from_config(config).parameters())
    except Exception:  # some make numbers while they are built; `build` says what is wrong with others
        return
    if count > NUMBERS:
        raise BaseError(f"config.json: a small {config.model_type} made like it has {count:,} numbers; a size is wrong")


def build(config: PretrainedConfig, seed: int = 0) -> PreTrainedModel:
    """A model with random weights, so large that attention looks somewhere and every layer counts; fp32."""
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                fan = parameter[0].numel() if parameter.dim() > 1 else 0
                noise = torch.randn_like(parameter)
                parameter.copy_(noise * 1.5 / fan**0.5 if fan else parameter.nan_to_num() + 0.1 * noise)
    return model.eval()


def _shrunk(values: Mapping[str, Any]) -> dict[str, Any]:
    depth = next((values[name] for name in DEPTHS if isinstance(values.get(name), int)), 0)
    kept = _layers(values, depth)
    heads = next((values[name] for name in ("num_attention_heads", "n_head", "n_heads") if values.get(name)), HEADS)
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found[name] = _table(name, value, kept)
        elif name in PLACES and isinstance(value, Sequence):
            found[name] = [new for new, old in enumerate(kept) if old in value]
        elif isinstance(value, list | tuple) and depth and len(value) == depth:
            found[name] = [_sized(name, value[place]) for place in kept]
        elif name in DEPTHS and isinstance(value, int):
            found[name] = len(kept)
        elif name in KEY_HEADS and isinstance(value, int):
            found[name] = HEADS if value == heads else min(value, 2)
        elif name not in DERIVED:
            found[name] = _token(value) if name.endswith("token_id") else _sized(name, value)
    return _fitting(found)


def _table(name: str, values: dict[Any, Any], kept: Sequence[int]) -> dict[Any, Any]:
    """A table in a configuration: of rotary positions, of single layers, of another configuration."""
    if name.startswith("rope_"):
        return _rope(values)
    if name == "per_layer_config":  # what single layers have of their own
        own = {int(place): one for place, one in values.items()}
        return {new: _shrunk(own[old]) for new, old in enumerate(kept) if old in own}
    return _shrunk(values) if name.endswith("_config") else values


def _fitting(values: dict[str, Any]) -> dict[str, Any]:
    """Sizes of state-space layers that must multiply to one another."""
    inner = values.get("mamba_d_ssm") or values.get("mamba_expand", 0) * values.get("hidden_size", 0)
    if inner and values.get("mamba_n_heads") and "mamba_d_head" in values:
        values["mamba_d_head"] = inner // values["mamba_n_heads"]
    if {"expand", "num_heads", "head_dim", "state_size"} <= values.keys():
        values["head_dim"] = values["expand"] * values["hidden_size"] // values["num_heads"]
    return values


def _sized(name: str, value: Any) -> Any:
    """A size made small; one that is not given, or small already, stays."""
    small = SIZES.get(name)
    return min(value, small) if small is not None and isinstance(value, int) and not isinstance(value, bool) else value


def _layers(values: Mapping[str, Any], depth: int) -> list[int]:
    """The first layers of each kind: one of every kind, a second of some, two at least."""
    lists = [value for value in values.values() if isinstance(value, list | tuple) and depth and len(value) == depth]
    kinds: dict[str, list[int]] = {}
    for place in range(depth):
        kinds.setdefault(repr([value[place] for value in lists]), []).append(place)
    first = [places[0] for places in kinds.values()][:LAYERS]
    second = [places[1] for places in kinds.values() if len(places) > 1]
    return sorted(first + second[: max(0, USUAL - len(first))])


def _token(value: Any) -> Any:
    """A special token inside the small vocabulary."""
    if isinstance(value, list):
        return [token % VOCABULARY for token in value]
    return value % VOCABULARY if isinstance(value, int) and value >= 0 else value


def _rope(values: Mapping[str, Any]) -> dict[str, Any]:
    """Lists of a frequency each, and sections of them, for small heads."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found[name] = _rope(value)
        elif name.endswith("_factor") and isinstance(value, list | tuple):
            found[name] = list(value[: SIZE // 2])
        elif name == "mrope_section":
            halves = int(SIZE * values.get("partial_rotary_factor", 1.0)) // 2
            found[name] = [halves - 2 * (halves // 3), halves // 3, halves // 3]
        else:
            found[name] = value
    return found
