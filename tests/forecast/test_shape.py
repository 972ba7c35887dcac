"""A model's weights, counted from its configuration alone, against transformers' own model of that configuration."""

from __future__ import annotations

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from tercet.forecast.shape import ModelShape, known

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 320,
}
MOE = {"moe_intermediate_size": 48, "num_experts": 8, "num_experts_per_tok": 2}


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("LlamaConfig", {}),
        ("LlamaConfig", {"tie_word_embeddings": True, "head_dim": 24}),
        ("MistralConfig", {}),
        ("Qwen2Config", {"tie_word_embeddings": True}),
        ("Qwen3Config", {"head_dim": 32}),
        ("MixtralConfig", {"num_local_experts": 4, "num_experts_per_tok": 2}),
        ("Qwen3MoeConfig", MOE),
        ("Qwen2MoeConfig", MOE | {"shared_expert_intermediate_size": 96}),
    ],
)
def test_parameters_are_those_of_transformers_model(name, more):
    config = getattr(transformers, name)(**SMALL, **more)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    shape = ModelShape.of(config.to_dict())
    assert shape is not None
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert shape.layer == max(sum(p.numel() for p in layer.parameters()) for layer in model.model.layers)


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        ("meta-llama/Llama-3.1-8B", 8_030_261_248),
        ("meta-llama/Llama-3.1-70B", 70_553_706_496),
        ("meta-llama/Llama-3.1-405B", 405_853_388_800),
    ],
)
def test_published_models_have_their_published_size(model, parameters):
    shape = known(model)
    assert shape is not None
    assert shape.parameters == parameters


def test_a_token_of_experts_uses_those_that_it_visits():
    config = SMALL | {"num_local_experts": 4, "num_experts_per_tok": 1}
    dense, sparse = ModelShape.of(SMALL), ModelShape.of(config)
    assert dense is not None
    assert sparse is not None
    assert sparse.active - dense.active == 3 * 4 * 64  # the router of each layer
    assert sparse.parameters - sparse.active == 3 * 3 * 3 * 64 * 160 + 320 * 64  # three experts a layer; the embedding


def test_layers_that_are_not_understood_have_no_shape():
    assert ModelShape.of(SMALL | {"kv_lora_rank": 512}) is None
    assert ModelShape.of({"hidden_size": 64}) is None
