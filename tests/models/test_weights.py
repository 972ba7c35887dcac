"""Weights in one file and in shards: the same tensors however they come, and nothing half written."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tercet.models.headers import BaseError, stored_tensors
from tercet.models.hf_folder import model_digest, weight_files
from tercet.models.weights import write_weights

STATE = {"b": torch.arange(6.0).reshape(2, 3), "a.10": torch.ones(4), "a.9": torch.full((5,), 2.5)}
SHAPES = {name: tuple(tensor.shape) for name, tensor in STATE.items()}


def test_what_fits_is_one_file_that_safetensors_reads(tmp_path):
    [file] = write_weights(tmp_path / "model.safetensors", SHAPES, STATE.items())
    found = load_file(file)
    assert found.keys() == STATE.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in STATE.items())
    save_file(dict(sorted(STATE.items())), tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    assert stored_tensors(file) == stored_tensors(tmp_path / "theirs.safetensors")


def test_what_does_not_fit_is_numbered_shards_with_an_index(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"an older one, which readers would prefer")
    files = write_weights(tmp_path / "model.safetensors", SHAPES, reversed(STATE.items()), shard=36)
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert [file.name for file in files] == names
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index == {
        "metadata": {"total_size": 60},
        "weight_map": {"a.10": names[0], "a.9": names[0], "b": names[1]},
    }
    found = {name: tensor for file in weight_files(tmp_path) for name, tensor in load_file(file).items()}
    assert found.keys() == STATE.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in STATE.items())


def test_a_tensor_larger_than_a_shard_has_one_of_its_own(tmp_path):
    files = write_weights(tmp_path / "model.safetensors", SHAPES, STATE.items(), shard=1)
    assert [len(load_file(file)) for file in files] == [1, 1, 1]


def test_shards_are_the_same_bytes_in_whatever_order_the_tensors_come(tmp_path):
    for folder, items in (("one", STATE.items()), ("two", reversed(STATE.items()))):
        (tmp_path / folder).mkdir()
        write_weights(tmp_path / folder / "model.safetensors", SHAPES, items, shard=36)
    assert model_digest(tmp_path / "one") == model_digest(tmp_path / "two")


def test_each_tensor_has_the_precision_that_is_asked_for(tmp_path):
    [file] = write_weights(
        tmp_path / "model.safetensors", SHAPES, STATE.items(), dtypes={"b": torch.bfloat16, "a.9": torch.float16}
    )
    assert {name: dtype for name, (dtype, _) in stored_tensors(file).items()} == {
        "b": "BF16",
        "a.10": "F32",
        "a.9": "F16",
    }
    assert torch.equal(load_file(file)["a.9"].float(), STATE["a.9"])


def test_of_shards_that_fail_halfway_nothing_is_left(tmp_path):
    def failing():
        yield "b", STATE["b"]
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError, match="the source broke"):
        write_weights(tmp_path / "model.safetensors", SHAPES, failing(), shard=36)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_safetensors_is_named(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(BaseError, match=r"model\.safetensors: not a readable safetensors file"):
        stored_tensors(tmp_path / "model.safetensors")
