"""Weights that go into an engine of this process: with vLLM's layout, and with vLLM where it is."""

from __future__ import annotations

import importlib.util
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tercet.device.mesh import Mesh
from tercet.device.shard import Trainable
from tercet.models.engines.policy_source import PolicySource
from tercet.models.generate import LocalGenerator
from tercet.models.hf_folder import load_config, load_model
from tercet.models.vllm.sender import Sender
from tercet.models.vllm.weights import EngineError, check_names, checksum, weights_of
from tercet.rows import Message, Sampling

HAS_VLLM = importlib.util.find_spec("vllm") is not None


PARTS = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}
ASKED = [(Message("user", text),) for text in ("What is the capital of France?", "Name three colours.", "Say hello.")]


def weights(folder: Path, seed: int = 0) -> dict[str, Tensor]:
    """The trainer's tensors, moved a little when there is a seed."""
    random = torch.Generator().manual_seed(seed)
    model = load_model(folder, torch.float32)
    return {
        name: one.detach() * (1 + 0.05 * bool(seed) * torch.randn(one.shape, generator=random))
        for name, one in model.named_parameters()
    }


class Fused(nn.Module):
    """vLLM's layout: one matrix for what reads the same input, a vocabulary of a multiple of 64 rows."""

    packed_modules_mapping = PARTS

    def __init__(self, like: dict[str, Tensor], *, tied: bool) -> None:
        super().__init__()
        fused = {part: (whole, number) for whole, parts in PARTS.items() for number, part in enumerate(parts)}
        rows: dict[str, dict[int, int]] = {}
        self.places: dict[str, tuple[str, int]] = {}
        for name, one in like.items():
            outer, _, last = name.removesuffix(".weight").rpartition(".")
            whole, number = fused.get(last, (last, 0))
            self.places[name] = (f"{outer}.{whole}".removeprefix("."), number)
            rows.setdefault(self.places[name][0], {})[number] = len(one)
        widths = {self.places[name][0]: one.shape[1:] for name, one in like.items()}
        for place, sizes in rows.items():
            module = self._module(place)
            module.output_sizes = [sizes[number] for number in sorted(sizes)]
            if place.endswith(("embed_tokens", "lm_head")):
                module.org_vocab_size, sizes[1] = sizes[0], -sizes[0] % 64
            if not (tied and place == "lm_head"):
                module.weight = nn.Parameter(torch.full((sum(sizes.values()), *widths[place]), 7.0))

    def _module(self, place: str) -> Any:
        module: Any = self
        for step in place.split("."):
            if step not in dict(module.named_children()):
                module.add_module(step, nn.Module())
            module = module.get_submodule(step)
        return module

    def load_weights(self, given: Iterable[tuple[str, Tensor]]) -> None:
        for name, one in given:
            place, number = self.places[name]
            module: Any = self.get_submodule(place)
            start = sum(module.output_sizes[:number])
            module.weight[start : start + len(one)].copy_(one)


def load(model: Any, given: dict[str, Tensor]) -> None:
    with torch.inference_mode():
        model.load_weights(given.items())


def test_what_went_into_the_fused_matrices_comes_out_under_its_own_names(tiny_folder):
    sent = weights(tiny_folder)
    fused = Fused(sent, tied=True)
    assert "model.layers.0.self_attn.qkv_proj.weight" in dict(fused.named_parameters())
    assert fused.get_submodule("model.embed_tokens").weight.shape[0] == 320
    assert checksum(weights_of(fused).items()) != checksum(sent.items())
    load(fused, sent)
    assert {name: one.shape for name, one in weights_of(fused).items()} == {n: one.shape for n, one in sent.items()}
    assert checksum(weights_of(fused).items()) == checksum(sent.items())


def test_ten_updates_have_ten_checksums_each_equal_to_the_trainers(tiny_folder):
    fused = Fused(weights(tiny_folder), tied=True).to(torch.bfloat16)
    found = []
    for seed in range(10):
        sent = weights(tiny_folder, seed)
        load(fused, sent)
        found.append(checksum(weights_of(fused).items()))
        assert found[-1] == checksum(sent.items(), "bfloat16") != checksum(sent.items())
    assert len(set(found)) == 10


def test_the_checksum_sees_names_shapes_and_every_bit():
    one = {"b": torch.tensor([[1.0, 2.0]]), "a": torch.tensor([3.0])}
    first = checksum(one.items())
    assert checksum(reversed(one.items())) == first
    assert checksum([("b", torch.tensor([[1.0], [2.0]])), ("a", one["a"])]) != first
    assert checksum([("c", one["b"]), ("a", one["a"])]) != first
    assert checksum([("b", torch.tensor([[1.0, 2.0000002]])), ("a", one["a"])]) != first


def test_a_tied_output_matrix_may_be_named_or_left_out(tiny_folder):
    sent = weights(tiny_folder)
    named = {**sent, "lm_head.weight": sent["model.embed_tokens.weight"].clone()}
    assert checksum(named.items()) == checksum(sent.items())
    apart = {**named, "lm_head.weight": named["lm_head.weight"] * 2}
    untied = Fused(apart, tied=False)
    load(untied, apart)
    assert checksum(weights_of(untied).items()) == checksum(apart.items()) != checksum(sent.items())


def test_weights_that_do_not_fit_are_named(tiny_folder):
    have = weights_of(Fused(weights(tiny_folder), tied=True))
    shapes = {name: list(one.shape) for name, one in have.items()}
    check_names(shapes, have)
    wrong = {**shapes, "model.extra.weight": [2], "model.norm.weight": [3]}
    del wrong["model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(EngineError) as raised:
        check_names(wrong, have)
    for words in (
        "1 missing: model.layers.1.mlp.up_proj.weight",
        "1 unexpected: model.extra.weight",
        "1 of another shape: model.norm.weight [3] instead of [64]",
    ):
        assert words in str(raised.value)


def test_weights_that_were_packed_away_are_refused(tiny_folder):
    fused = Fused(weights(tiny_folder), tied=True)
    fused.get_submodule("model.layers.0.mlp.down_proj").weight = nn.Parameter(torch.empty(0))
    with pytest.raises(EngineError, match=r"packed the weights of model.layers.0.mlp.down_proj away"):
        weights_of(fused)


@pytest.mark.slow
@pytest.mark.skipif(not HAS_VLLM, reason="vLLM is not installed")
@pytest.mark.filterwarnings("default")
def test_vllm_writes_with_the_weights_it_was_given(smollm):
    from tercet.models.vllm.generator import VllmGenerator, logp_gap

    fast = VllmGenerator.open(smollm, "float32", max_model_len=512, enforce_eager=True)
    local = LocalGenerator.open(smollm, "float32")
    source = PolicySource(Trainable(local.policy, torch.float32, Mesh()), "", load_config(smollm), torch.float32)
    sender = Sender(fast, source, Mesh(), "process")
    ids = local.encode(ASKED)
    texts = [fast.write(ids, Sampling(16))]
    assert fast.control("checksum") == checksum(source)

    def learn() -> None:
        with torch.no_grad():
            for one in local.policy.model.parameters():
                one *= 1 + 0.01 * torch.randn(one.shape)

    for number in range(1, 11):
        learn()
        sender.send(number)
        assert fast.control("checksum") == checksum(source)
        again = fast.write(ids, Sampling(24, 1.0, n=4, seed=number))
        assert logp_gap(ids, again, local.logps).largest < 0.01
    texts.append(fast.write(ids, Sampling(16)))
    assert (fast.version, fast.engine.get_weight_version()) == (10, "10")
    learn()
    written: list[Any] = []
    writer = threading.Thread(target=lambda: written.append(fast.write(ids, Sampling(150, 1.0, n=4, seed=1))))
    writer.start()
    while not fast.engine.has_unfinished_requests():
        time.sleep(0.01)
    sender.send(11)
    assert writer.is_alive()  # it did not wait for the end
    writer.join()
    sender.verify()
    assert [len(group) for group in written[0]] == [4, 4, 4]
    texts.append(fast.write(ids, Sampling(16)))
    assert [one[0].token_ids for one in texts[-1]] == [one[0].token_ids for one in local.write(ids, Sampling(16))]
    assert len({str(one) for one in texts}) == len(texts)
    again = fast.write(ids, Sampling(24, 1.0, n=4, seed=3))
    alone = fast.write(ids[1:], Sampling(24, 1.0, n=4, seed=3), streams=[1, 2])
    assert [[one.token_ids for one in group] for group in alone] == [
        [one.token_ids for one in group] for group in again[1:]
    ]
