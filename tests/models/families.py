"""Tiny models of many families with random weights: what the laws of the layouts are tried on."""

from __future__ import annotations

import copy
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

VOCABULARY = 259  # that of the tiny tokenizer
WINDOW = 6  # of layers that have one, and the size of a chunk
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "pad_token_id": 256,
    "bos_token_id": 257,
    "eos_token_id": 258,
}
MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 6, "v_head_dim": 5}
ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1}
ALIKE = {"num_key_value_heads": 4}

# Each family's configuration class and what it has beside the usual.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {"attention_bias": True}),
    "gemma": ("GemmaConfig", {"head_dim": 8}),
    "gemma2": (
        "Gemma2Config",
        {"head_dim": 8, "sliding_window": WINDOW, "attn_logit_softcapping": 1.5, "final_logit_softcapping": 2.0},
    ),
    "gemma3": ("Gemma3TextConfig", {"head_dim": 8, "sliding_window": WINDOW, "layer_types": MIXED}),
    "olmo2": ("Olmo2Config", {}),
    "olmo3": ("Olmo3Config", {"sliding_window": WINDOW, "layer_types": MIXED}),
    "gpt_oss": (
        "GptOssConfig",
        {
            "head_dim": 8,
            "sliding_window": WINDOW,
            "layer_types": MIXED,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
        },
    ),
    "cohere": ("CohereConfig", {"logit_scale": 0.25}),
    "cohere2": ("Cohere2Config", {"logit_scale": 0.5, "sliding_window": WINDOW, "layer_types": MIXED}),
    "granite": (
        "GraniteConfig",
        {
            "logits_scaling": 7.0,
            "attention_multiplier": 0.3,
            "embedding_multiplier": 2.0,
            "residual_multiplier": 0.5,
        },
    ),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", {"head_dim": 12}),
    "qwen3_moe": ("Qwen3MoeConfig", EXPERTS),
    "deepseek_v3": ("DeepseekV3Config", LATENT | ROUTED | ALIKE | {"moe_intermediate_size": 16}),
    "phi": ("PhiConfig", ALIKE),
    "phi3": ("Phi3Config", {"sliding_window": WINDOW}),
    "mistral": ("MistralConfig", {"sliding_window": WINDOW}),
    "starcoder2": ("Starcoder2Config", {"sliding_window": WINDOW}),
    "smollm3": ("SmolLM3Config", {"no_rope_layers": [1, 0, 1]}),
    "gpt_neox": ("GPTNeoXConfig", {"rotary_pct": 0.5}),
    "gpt2": ("GPT2Config", {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 256}),
    "opt": ("OPTConfig", {"ffn_dim": 48, "word_embed_proj_dim": 24}),
    "stablelm": ("StableLmConfig", {"qk_layernorm": True}),
    "nemotron": ("NemotronConfig", {}),
    "gemma3n": (
        "Gemma3nTextConfig",
        {
            "head_dim": 8,
            "sliding_window": WINDOW,
            "layer_types": MIXED,
            "num_kv_shared_layers": 1,
            "vocab_size_per_layer_input": VOCABULARY,
            "hidden_size_per_layer_input": 8,
            "laurel_rank": 4,
            "activation_sparsity_pattern": [0.5, 0.0, 0.0],
        },
    ),
    "gemma4": (
        "Gemma4TextConfig",
        {
            "head_dim": 8,
            "global_head_dim": 16,
            "num_global_key_value_heads": 1,
            "sliding_window": WINDOW,
            "layer_types": MIXED,
            "vocab_size_per_layer_input": VOCABULARY,
            "hidden_size_per_layer_input": 8,
            "final_logit_softcapping": 3.0,
        },
    ),
    "phimoe": ("PhimoeConfig", {"num_local_experts": 4, "sliding_window": WINDOW}),
    "glm4": ("Glm4Config", {"head_dim": 8}),
    "llama4": (
        "Llama4TextConfig",
        {
            "head_dim": 8,
            "intermediate_size_mlp": 48,
            "num_local_experts": 4,
            "attention_chunk_size": WINDOW,
            "no_rope_layers": [1, 0, 1],
            "floor_scale": 4,
            "attn_scale": 0.5,
        },
    ),
}


def tiny_config(name: str) -> PretrainedConfig:
    """A family's configuration with a few small layers."""
    kind, own = FAMILIES[name]
    reader = getattr(transformers, kind)
    known = reader().to_dict() | reader.attribute_map
    return reader(**{key: value for key, value in SMALL.items() if key in known} | own)


def tiny_model(config: PretrainedConfig, attention: str = "eager", seed: int = 0) -> PreTrainedModel:
    """A model with random weights, biases, norms and sinks in fp32, the same for every kind of attention."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(config), attn_implementation=attention)
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=source))
    return model.float().eval()
