"""Packed weights give the products of plain ones, follow every change of them, and leave training alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tercet.models.generate import LocalGenerator
from tercet.models.packed import Packed, packable
from tercet.rows import Message, Sampling

pytestmark = pytest.mark.skipif(not packable("cpu", torch.float32), reason="oneDNN packs no weights here")


def model(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(48, 80), nn.Linear(80, 24, bias=False)).to(dtype)


@pytest.mark.parametrize("rows", [1, 7, 32, 300])
@torch.no_grad()
def test_packed_layers_give_the_same_products(rows):
    layers = model()
    x = torch.randn(2, rows, 48)
    wanted = layers(x)
    with Packed(layers).used():
        assert all("forward" in layer.__dict__ for layer in layers)
        torch.testing.assert_close(layers(x), wanted)
    assert not any("forward" in layer.__dict__ for layer in layers)
    assert torch.equal(layers(x), wanted)


@torch.no_grad()
def test_weights_exchanged_between_two_tokens_are_used_from_then_on():
    layers, other, x = model(), model().requires_grad_(False), torch.randn(5, 48)
    packed = Packed(layers)
    with packed.used():
        other[0].weight.mul_(2)
        layers[0].weight.copy_(other[0].weight)
        packed.refresh()
        torch.testing.assert_close(layers(x), other(x))
        layers[1].weight.data = -other[1].weight
        packed.refresh()
        torch.testing.assert_close(layers(x), -other(x))
    with packed.used():
        torch.testing.assert_close(layers(x), -other(x))


def test_where_a_gradient_is_wanted_the_plain_weights_compute():
    layers, x = model(), torch.randn(5, 48)
    layers(x).sum().backward()
    wanted = [layer.weight.grad.clone() for layer in layers]
    layers.zero_grad()
    with Packed(layers).used():
        layers(x).sum().backward()
    for layer, grad in zip(layers, wanted, strict=True):
        assert torch.equal(layer.weight.grad, grad)


def test_copies_of_weights_that_train_are_not_kept():
    trained, still = model(), model().requires_grad_(False)
    held = [Packed(trained), Packed(still)]
    for packed in held:
        with packed.used():
            assert len(packed._held) == 2
    assert [len(packed._held) for packed in held] == [0, 2]


def test_what_cannot_be_packed_stays_plain():
    layers = model(torch.float64)
    with Packed(layers).used():
        assert not any("forward" in layer.__dict__ for layer in layers)
    assert not packable("cuda", torch.float32)


def test_the_generator_writes_with_the_weights_as_they_are_now(sharp_folder):
    changed, fresh = (LocalGenerator.open(sharp_folder, "float32") for _ in range(2))
    asked = [(Message("user", "What is a basin?"),)]
    before = changed.complete(asked, Sampling(24))
    for generator in (fresh, changed):
        for layer in generator.policy.model.model.layers:
            layer.mlp.down_proj.weight.mul_(-0.5)
    after = changed.complete(asked, Sampling(24))
    assert after == fresh.complete(asked, Sampling(24))
    assert after != before
