"""A model whose numbers are on the disk gets exactly those, however its folder names and cuts them."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.models.random_models import FAMILIES, model_of
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from tercet.device.stored import STORED, read_stored
from tercet.models.base_layout import save_model
from tercet.models.classes import model_class
from tercet.models.hf_folder import load_config, parameters_of
from tercet.models.unread import unread

CPU = torch.device("cpu")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_number_is_read_from_where_the_folder_has_it(family, tiny_folder, tmp_path):
    wanted = model_of(family)
    save_model(tmp_path, wanted.config, wanted.state_dict(), source=tiny_folder)
    config = load_config(tmp_path)
    found = unread(model_class(config), config, tmp_path)
    assert found is not None
    assert all(parameter.is_meta for parameter in found.parameters())
    read_stored(found, CPU)
    mine, theirs = parameters_of(found), parameters_of(wanted)
    assert mine.keys() == theirs.keys()
    for name, value in theirs.items():
        assert torch.equal(mine[name], value), name
    assert not any(STORED in vars(module) for module in found.modules())


def test_embeddings_that_are_tied_stay_tied(tmp_path):
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "vocab_size": 32}
    config = LlamaConfig(num_attention_heads=2, tie_word_embeddings=True, **sizes)
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    found = unread(LlamaForCausalLM, config, tmp_path)
    assert found is not None
    read_stored(found, CPU)
    assert found.lm_head.weight is found.model.embed_tokens.weight
    assert torch.equal(found.lm_head.weight, load_file(tmp_path / "model.safetensors")["model.embed_tokens.weight"])


def test_a_fresh_head_is_not_looked_for_and_a_missing_tensor_is_told(tiny_folder, tmp_path):
    config = load_config(tiny_folder)
    config.num_labels, config.dtype = 1, torch.bfloat16
    assert unread(LlamaForSequenceClassification, config, tiny_folder) is None
    found = unread(LlamaForSequenceClassification, config, tiny_folder, fresh="score.weight")
    assert found is not None
    assert torch.equal(found.score.weight, torch.zeros(1, config.hidden_size))
    assert found.model.embed_tokens.weight.is_meta
    assert {parameter.dtype for parameter in found.parameters()} == {torch.float32}


def test_a_folder_of_older_names_is_left_to_whoever_reads_it_whole(tiny_folder, tmp_path):
    for file in tiny_folder.iterdir():
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    renamed = {name.removeprefix("model."): value for name, value in tensors.items()}
    save_file(renamed, tmp_path / "model.safetensors", {"format": "pt"})
    config = load_config(tmp_path)
    assert unread(LlamaForCausalLM, config, tmp_path) is None
