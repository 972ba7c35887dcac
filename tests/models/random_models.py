"""Random models of many families, small enough to be made in a test."""

from __future__ import annotations

import torch
import transformers

from tercet.models.hf_folder import quiet

SIZES = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
}
EXPERTS = {"moe_intermediate_size": 8, "num_experts": 3, "num_experts_per_tok": 2}
FAMILIES = {
    "Llama": {},
    "Qwen3Moe": {**EXPERTS, "head_dim": 8},
    "Mixtral": {"num_local_experts": 3},
    "GptOss": {"num_local_experts": 3, "head_dim": 8},
    "Olmoe": {"num_experts": 3},
    "GPTNeoX": {},
    "Phi3": {"pad_token_id": 0},
    "DeepseekV3": {
        "moe_intermediate_size": 8,
        "n_routed_experts": 4,
        "n_group": 1,
        "topk_group": 1,
        "num_experts_per_tok": 2,
        "first_k_dense_replace": 1,
        "kv_lora_rank": 8,
        "q_lora_rank": 8,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 4,
        "v_head_dim": 8,
        "num_key_value_heads": 2,
    },
    "GraniteMoe": {"num_local_experts": 3},
    "Qwen3Next": {
        **EXPERTS,
        "head_dim": 8,
        "shared_expert_intermediate_size": 8,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "layer_types": ["linear_attention", "full_attention"],
    },
}


def model_of(family: str) -> transformers.PreTrainedModel:
    """The same one every time, in fp32."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**{**SIZES, **FAMILIES[family]})
    with quiet():
        model = getattr(transformers, f"{family}ForCausalLM")(config)
    model.config.architectures = [type(model).__name__]
    return model
