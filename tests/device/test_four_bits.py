"""Weights in four bits: bitsandbytes' own kernels for the CPU stand in for the card's where they are installed."""

from __future__ import annotations

import sys

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tercet.device.four_bits import num_weights, quantize_layers
from tercet.device.mesh import Mesh
from tercet.device.shard import Trainable
from tercet.forecast import check_four_bits
from tercet.models.flops import model_size
from tercet.models.forest import Leaf, Tree, pack_forest
from tercet.models.lora import adapt
from tercet.recipe import LoraSpec, Recipe, RecipeError
from tercet.train.export import open_policy

CPU = torch.device("cpu")
FOREST = pack_forest([Tree([], [Leaf(list(range(20)), [True] * 20)]), Tree([], [Leaf([7, 8, 9], [True] * 3)])])


@pytest.fixture
def bits():
    return pytest.importorskip("bitsandbytes")


def test_a_layer_is_rounded_to_the_nearest_of_sixteen_values_of_its_block(bits):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(128, 64), nn.Linear(64, 8))
    exact = model[0].weight.detach().clone()
    inputs = torch.randn(5, 128)
    wanted = model[1](model[0](inputs))
    quantize_layers(model, ["0"], "nf4", dtype=torch.float32, device=CPU)
    found = model[1](model[0](inputs))
    assert 0 < (found - wanted).norm() / wanted.norm() < 0.2
    weight = bits.functional.dequantize_4bit(model[0].weight.data, model[0].weight.quant_state)
    blocks, own = weight.reshape(-1, 64), exact.reshape(-1, 64)
    assert all(len(block.unique()) <= 16 for block in blocks)
    assert ((blocks - own).abs() / own.abs().amax(1, keepdim=True)).max() < 0.17  # half of the widest step of nf4
    assert not model[0].weight.requires_grad


def test_adapters_learn_above_four_bits_and_are_merged_into_the_exact_weights(bits, tiny_folder):
    policy, lora = open_policy(tiny_folder), LoraSpec(r=2, alpha=4.0, quantize="nf4")
    trainable = Trainable(policy, torch.float32, Mesh(), merge=adapt(policy, lora, torch.float32, 1))
    before = policy(FOREST)[0].mean().item()
    optimizer = torch.optim.AdamW(trainable.master_weights, lr=1e-2)
    for _ in range(5):
        trainable.backward(-policy(FOREST)[0].mean())
        optimizer.step()
        optimizer.zero_grad()
    assert policy(FOREST)[0].mean().item() > before + 0.05
    base = load_file(tiny_folder / "model.safetensors")
    merged = {name.removeprefix("model."): value for name, value in trainable.full_state()}
    assert merged.keys() == base.keys()
    layer = "model.layers.0.self_attn.q_proj"
    a, b = (trainable.known[f"model.{layer}.lora_{side}.default.weight"].detach() for side in "AB")
    assert torch.equal(merged[f"{layer}.weight"], base[f"{layer}.weight"] + 2.0 * (b @ a))
    assert torch.equal(merged["model.embed_tokens.weight"], base["model.embed_tokens.weight"])


def test_two_weights_of_four_bits_are_one_byte_and_count_as_two(bits, tiny_folder):
    plain, packed = open_policy(tiny_folder), open_policy(tiny_folder)
    adapt(plain, LoraSpec(r=2), torch.float32, 1)
    adapt(packed, LoraSpec(r=2, quantize="nf4"), torch.float32, 1)
    assert model_size(packed) == model_size(plain)
    assert sum(map(num_weights, packed.parameters())) == sum(map(num_weights, plain.parameters()))


def test_without_bitsandbytes_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes.nn", None)
    with pytest.raises(ValueError, match=r"needs bitsandbytes: pip install 'tercet\[bits\]'"):
        quantize_layers(nn.Sequential(nn.Linear(64, 64)), ["0"], "nf4", dtype=torch.float32, device=CPU)


@pytest.mark.parametrize(
    ("gpu", "ranks", "told"),
    [(False, 1, "needs a CUDA GPU, and there is none here"), (True, 2, "trains on one GPU, and placement.ranks is 2")],
)
def test_four_bits_are_refused_at_plan_time_where_nothing_can_multiply_them(monkeypatch, gpu, ranks, told):
    monkeypatch.setattr("tercet.forecast.has_gpu", lambda: gpu)
    stage = {"kind": "sft", "model": "base", "rows": "words", "lora": {"quantize": "nf4"}}
    words = {"kind": "synth", "generator": "words@1", "rows": 8}
    recipe = Recipe.model_validate(
        {
            "name": "small",
            "base": {"model": "tiny:"},
            "stage": {"words": words, "sft": stage},
            "placement": {"ranks": ranks},
        }
    )
    with pytest.raises(RecipeError, match=told):
        check_four_bits(recipe.stage["sft"], "sft", recipe)
