"""How models are stored: transformers' own `save_pretrained` is the oracle for names, shapes and numbers."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from tests.models.random_models import FAMILIES, model_of

from tercet.models.base_layout import BaseLayout, save_model
from tercet.models.hf_folder import load_model, parameter_shapes, quiet


@pytest.mark.parametrize("family", FAMILIES)
def test_names_shapes_and_numbers_are_those_that_save_pretrained_writes(family, tmp_path):
    model = model_of(family)
    with quiet():
        model.save_pretrained(tmp_path)
    theirs = load_file(tmp_path / "model.safetensors")
    layout = BaseLayout(model.config)
    assert layout.shapes == {name: tuple(tensor.shape) for name, tensor in theirs.items()}
    ours = dict(layout.stored(reversed(model.state_dict().items())))
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


def test_experts_are_stored_one_by_one_and_read_back(tiny_folder, tmp_path):
    model = model_of("Qwen3Moe")
    save_model(tmp_path, model.config, model.state_dict(), source=tiny_folder)
    stored = load_file(tmp_path / "model.safetensors")
    assert stored["model.layers.1.mlp.experts.2.down_proj.weight"].shape == (16, 8)
    read = load_model(tmp_path, torch.float32)
    ids = torch.tensor([[1, 5, 9, 30]])
    with torch.no_grad():
        assert torch.equal(read(ids).logits, model.eval()(ids).logits)


def test_a_dense_model_is_stored_as_it_is_held(tiny_folder, tmp_path):
    model = model_of("Llama")
    layout, state = BaseLayout(model.config), model.state_dict()
    assert layout.shapes == parameter_shapes(model.config)
    assert all(found is state[name] for name, found in layout.stored(state.items()))
