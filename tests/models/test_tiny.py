"""The model that is made on the fly: the same bytes every time, and whole enough for every other test."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tercet.models import tiny
from tercet.models.hf_folder import load_model, load_tokenizer, model_digest


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_the_same_seed_gives_the_same_bytes(tiny_folder, tmp_path):
    tiny.build(tmp_path / "again", seed=0)
    assert contents(tmp_path / "again") == contents(tiny_folder)


def test_another_seed_gives_other_weights_and_the_same_tokenizer(tiny_folder, tmp_path):
    tiny.build(tmp_path, seed=1)
    assert model_digest(tmp_path) != model_digest(tiny_folder)
    assert (tmp_path / "tokenizer.json").read_bytes() == (tiny_folder / "tokenizer.json").read_bytes()


def test_it_has_the_promised_shape(tiny_folder):
    model = load_model(tiny_folder, torch.bfloat16, attention="sdpa")
    config = model.config
    assert (config.num_hidden_layers, config.hidden_size, config.intermediate_size) == (2, 64, 128)
    assert (config.num_attention_heads, config.num_key_value_heads, config.max_position_embeddings) == (4, 2, 2048)
    assert model.dtype == torch.bfloat16
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_the_weights_file_is_what_safetensors_itself_would_write(tiny_folder, tmp_path):
    save_file(load_file(tiny_folder / "model.safetensors"), tmp_path / "theirs", metadata={"format": "pt"})
    assert (tmp_path / "theirs").read_bytes() == (tiny_folder / "model.safetensors").read_bytes()


def test_no_file_of_the_folder_holds_its_path(tiny_folder):
    for name, data in contents(tiny_folder).items():
        assert str(tiny_folder).encode() not in data, name
        assert b"_name_or_path" not in data, name
    assert json.loads((tiny_folder / "config.json").read_text())["dtype"] == "float32"


def test_the_special_tokens_are_where_the_configs_say(tiny_folder):
    tokenizer = load_tokenizer(tiny_folder)
    config = json.loads((tiny_folder / "config.json").read_text())
    generation = json.loads((tiny_folder / "generation_config.json").read_text())
    assert tokenizer.convert_tokens_to_ids([tiny.PAD, tiny.START, tiny.END]) == [256, 257, 258]
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        assert config[key] == generation[key] == getattr(tokenizer, key)


@pytest.fixture(scope="module")
def tokenizer(tiny_folder):
    return load_tokenizer(tiny_folder)


# Among the texts that are tried are constants of our own source, so also the names of the special tokens.
@settings(max_examples=50)
@given(st.text().filter(lambda text: not any(name in text for name in (tiny.PAD, tiny.START, tiny.END))))
def test_every_text_is_its_bytes(tokenizer, text):
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert bytes(ids) == text.encode()
    assert tokenizer.decode(ids) == text
