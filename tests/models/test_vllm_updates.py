"""Weights that go into an engine, in this process and over HTTP: with vLLM's layout, and with vLLM where it is."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tercet.cli.main import main
from tercet.models.access import write_key
from tercet.models.generate import LocalGenerator
from tercet.models.hf_folder import load_model
from tercet.models.vllm import client as client_module
from tercet.models.vllm import server as server_module
from tercet.models.vllm.client import RemoteEngine, completion, packed, unpacked
from tercet.models.vllm.requests import WriteBody, checked
from tercet.models.vllm.server import EngineServer
from tercet.models.vllm.weights import EngineError, checksum, replace, weights_of
from tercet.rows import Completion, Message, Sampling, Seeded

HAS_VLLM = importlib.util.find_spec("vllm") is not None


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys of engines lie in a cache of the test's own."""
    monkeypatch.setenv("TERCET_CACHE", str(tmp_path / "cache"))


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


def test_what_went_into_the_fused_matrices_comes_out_under_its_own_names(tiny_folder):
    sent = weights(tiny_folder)
    fused = Fused(sent, tied=True)
    assert "model.layers.0.self_attn.qkv_proj.weight" in dict(fused.named_parameters())
    assert fused.get_submodule("model.embed_tokens").weight.shape[0] == 320
    assert checksum(weights_of(fused).items()) != checksum(sent.items())
    replace(fused, sent.items())
    assert {name: one.shape for name, one in weights_of(fused).items()} == {n: one.shape for n, one in sent.items()}
    assert checksum(weights_of(fused).items()) == checksum(sent.items())


def test_ten_updates_have_ten_checksums_each_equal_to_the_trainers(tiny_folder):
    fused = Fused(weights(tiny_folder), tied=True).to(torch.bfloat16)
    found = []
    for seed in range(10):
        sent = weights(tiny_folder, seed)
        replace(fused, sent.items())
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
    fused = Fused(named, tied=True)
    replace(fused, named.items())
    assert checksum(weights_of(fused).items()) == checksum(sent.items())
    with pytest.raises(EngineError, match=r"lm_head.weight differs from model.embed_tokens.weight.*tie_word_embedd"):
        replace(fused, {**named, "lm_head.weight": named["lm_head.weight"] + 1}.items())
    apart = {**named, "lm_head.weight": named["lm_head.weight"] * 2}
    untied = Fused(apart, tied=False)
    replace(untied, apart.items())
    assert checksum(weights_of(untied).items()) == checksum(apart.items()) != checksum(sent.items())


def test_weights_that_do_not_fit_are_named_and_none_goes_in(tiny_folder):
    sent = weights(tiny_folder)
    fused = Fused(sent, tied=True)
    replace(fused, sent.items())
    before = checksum(weights_of(fused).items())
    wrong = {**weights(tiny_folder, 3), "model.extra.weight": torch.ones(2), "model.norm.weight": torch.ones(3)}
    del wrong["model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(EngineError) as raised:
        replace(fused, wrong.items())
    for words in (
        "1 missing: model.layers.1.mlp.up_proj.weight",
        "1 unexpected: model.extra.weight",
        "1 of another shape: model.norm.weight [3] instead of [64]",
    ):
        assert words in str(raised.value)
    assert checksum(weights_of(fused).items()) == before


def test_weights_that_were_packed_away_are_refused(tiny_folder):
    fused = Fused(weights(tiny_folder), tied=True)
    fused.get_submodule("model.layers.0.mlp.down_proj").weight = nn.Parameter(torch.empty(0))
    with pytest.raises(EngineError, match=r"packed the weights of model.layers.0.mlp.down_proj away"):
        weights_of(fused)


def test_parts_are_small_and_make_up_the_whole(tiny_folder):
    sent = weights(tiny_folder)
    parts = list(packed(sent.items(), "bfloat16", 5000))
    assert len(parts) > 20
    assert max(map(len, parts)) < 5000 + 2000  # with safetensors' headers
    again = unpacked(parts)
    assert checksum(again.items()) == checksum(sent.items(), "bfloat16")
    assert {one.dtype for one in again.values()} == {torch.bfloat16}


@pytest.mark.parametrize("sampling", [Sampling(8, 0.7, stop=("Q:",), n=2), Seeded(8, 1.0, seeds=(4, 5))])
def test_sampling_and_completions_survive_the_journey(sampling):
    from dataclasses import asdict

    body = {"prompts": [[1], [2]], "sampling": asdict(sampling), "streams": None}
    assert checked(WriteBody, json.dumps(body).encode()).sampling.sampling == sampling
    written = Completion("ä", (1, 2), (-0.1, -1e-30), "eos")
    assert completion(json.loads(json.dumps(asdict(written)))) == written


class Ours:
    """Our own generator as an engine that can be served, with what an engine may do wrong."""

    def __init__(self, folder: Path) -> None:
        self.local, self.dtype, self.version = LocalGenerator.open(folder, "float32"), "float32", 0
        self.hold = threading.Event()
        self.hold.set()

    def write(self, prompts: Sequence[Sequence[int]], sampling: Sampling, done: Any = None, streams: Any = None) -> Any:
        if not prompts:
            raise RuntimeError("the engine choked")
        self.hold.wait()
        return self.local.write(prompts, sampling, done, streams)

    def update(self, given: Iterable[tuple[str, Tensor]], *, in_flight: bool = False) -> str:
        sent = dict(given)
        have = dict(self.local.policy.model.named_parameters())
        if sent.keys() != have.keys():
            raise EngineError(f"{sorted(sent.keys() ^ have.keys())} do not fit")
        with torch.no_grad():
            for name, one in sent.items():
                have[name].copy_(one)
        self.version += 1
        return self.checksum()

    def checksum(self) -> str:
        return checksum(self.local.policy.model.named_parameters())


@contextlib.contextmanager
def served(engine: Any) -> Iterator[EngineServer]:
    with EngineServer("127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.start, args=(engine,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def client(url: str, **options: Any) -> Iterator[RemoteEngine]:
    with contextlib.closing(RemoteEngine.open(url, **{"patience": 10.0, **options})) as found:
        yield found


def test_over_http_it_writes_what_it_would_write_here(sharp_folder):
    engine = Ours(sharp_folder)
    ids = engine.local.encode(ASKED)
    sampling = Sampling(12, 1.0, n=2, seed=3)
    wanted = engine.local.write(ids, sampling)
    seen: dict[int, list[Completion]] = {}
    with served(engine) as server, client(server.url) as remote:
        assert remote.write(ids, sampling, seen.__setitem__) == wanted
        assert [seen[i] for i in range(3)] == wanted
        assert remote.write(ids[1:], sampling, streams=[1, 2]) == engine.local.write(ids[1:], sampling, None, [1, 2])
        seeded = Seeded(12, 1.0, seeds=(7, 8, 9))
        assert remote.write(ids, seeded) == engine.local.write(ids, seeded)


def test_weights_arrive_in_parts_and_the_engine_writes_with_them(sharp_folder, monkeypatch):
    monkeypatch.setattr(client_module, "PART", 10_000)
    engine, trainer = Ours(sharp_folder), LocalGenerator.open(sharp_folder, "float32")
    ids = trainer.encode(ASKED)
    before = trainer.write(ids, Sampling(12))
    with served(engine) as server, client(server.url) as remote:
        for _ in range(3):
            with torch.no_grad():
                for one in trainer.policy.model.parameters():
                    one *= 1 + 0.2 * torch.randn(one.shape)
            now = trainer.policy.model.named_parameters
            assert remote.update(now()) == remote.checksum(now()) == remote.checksum() == checksum(now())
        assert remote.version == 3
        assert remote.write(ids, Sampling(12)) == trainer.write(ids, Sampling(12)) != before


def test_what_goes_wrong_in_the_engine_reaches_the_client(tiny_folder):
    with served(Ours(tiny_folder)) as server, client(server.url) as remote:
        with pytest.raises(EngineError, match=rf"{server.url}: .*'nonsense'.* do not fit"):
            remote.update([("nonsense", torch.ones(2, 2))])
        with pytest.raises(
            EngineError, match=r"the engine failed: RuntimeError; the server's log says more under error \w{8}"
        ):
            remote.write([], Sampling(2))
        with pytest.raises(EngineError, match=r"0 of an update's 2 parts are here.*send them again"):
            remote._ask("update", {"update": "gone", "parts": 2, "in_flight": False})
        assert len(remote.write([[1, 2]], Sampling(2))) == 1


def test_a_server_that_was_started_again_is_not_taken_for_the_first(tiny_folder):
    engine = Ours(tiny_folder)
    with served(engine) as server, client(server.url) as remote:
        server.name = "another"
        with pytest.raises(EngineError, match="was started again and holds its first weights"):
            remote.write([[1, 2]], Sampling(2))
        remote.update(engine.local.policy.model.named_parameters())
        assert len(remote.write([[1, 2]], Sampling(2))) == 1


def test_the_key_is_read_from_the_servers_file_and_nothing_else_will_do(tiny_folder, tmp_path):
    with served(Ours(tiny_folder)) as server:
        assert server.key_file.stat().st_mode & 0o777 == 0o600
        wrong = tmp_path / "key"
        write_key(wrong)
        with pytest.raises(EngineError, match=r"key is missing or wrong; it is in \S+\.key where the server runs"):
            RemoteEngine.open(server.url, key_file=wrong)
        wrong.chmod(0o640)
        with pytest.raises(EngineError, match=r"mode 640, so others can read the key; make a new key, and chmod 600"):
            RemoteEngine.open(server.url, key_file=wrong)
        with pytest.raises(EngineError, match=r"cannot be read \(No such file.*placement.engine_key_file"):
            RemoteEngine.open(server.url, key_file=tmp_path / "nowhere")
        with client(server.url) as remote:
            assert remote.version == 0
    assert not server.key_file.exists()


def test_a_busy_server_is_not_taken_for_a_dead_one(tiny_folder, monkeypatch):
    """While nothing is finished, empty lines come more often than the client loses patience."""
    monkeypatch.setattr(server_module, "BEAT", 0.05)
    monkeypatch.setattr(client_module, "SILENCE", 1.0)
    engine = Ours(tiny_folder)
    engine.hold.clear()
    with served(engine) as server, client(server.url) as remote:
        threading.Timer(2.0, engine.hold.set).start()
        assert len(remote.write([[1, 2]], Sampling(2))) == 1


def test_nobody_there_gives_one_error_that_says_what_to_do():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(EngineError, match=rf"http://127.0.0.1:{port}: the engine server does not answer.*start it"):
        RemoteEngine.open(f"http://127.0.0.1:{port}")
    for url in ("127.0.0.1:8001", "ftp://x", "http://"):
        with pytest.raises(EngineError):
            RemoteEngine.open(url)


ENDLESS = """
import sys, time
from tercet.models.vllm.requests import WriteBody, checked
from tercet.models.vllm.server import EngineServer
from tercet.rows import Completion

class Engine:
    dtype, version = "float32", 0
    def write(self, prompts, sampling, done=None, streams=None):
        done(0, [Completion("a", (1,), (-1.0,), "eos")])
        time.sleep(600)

with EngineServer("127.0.0.1", 0) as server:
    sys.stdout.write(server.url + chr(10))
    sys.stdout.flush()
    server.start(Engine())
"""


def test_a_server_killed_while_it_writes_gives_one_error_at_once():
    with subprocess.Popen([sys.executable, "-c", ENDLESS], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        url = server.stdout.readline().strip()

        def kill(i: int, group: list[Completion]) -> None:
            server.send_signal(signal.SIGKILL)

        with client(url) as remote:
            with pytest.raises(EngineError, match=rf"{url}: the engine server does not answer.*start it again"):
                remote.write([[1], [2]], Sampling(2), kill)
            with pytest.raises(EngineError, match="does not answer"):
                remote.update([("a", torch.ones(2))])


def test_the_verb_checks_port_and_options_before_the_model_loads(capsys):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert main(["engine", "tiny:", "--port", str(port)]) == 2
        assert f"cannot listen on 127.0.0.1, port {port}" in capsys.readouterr().err
    assert main(["engine", "tiny:", "--option", "max-len"]) == 2
    assert "expected NAME=VALUE" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(not HAS_VLLM, reason="vLLM is not installed")
@pytest.mark.filterwarnings("default")
def test_vllm_writes_with_the_weights_it_was_given(smollm):
    from tercet.models.vllm.generator import VllmGenerator, logp_gap

    fast = VllmGenerator.open(smollm, "float32", max_model_len=512, enforce_eager=True)
    local = LocalGenerator.open(smollm, "float32")
    parameters = local.policy.model.named_parameters
    ids = local.encode(ASKED)
    texts = [fast.write(ids, Sampling(16))]
    assert fast.checksum() == checksum(parameters())

    def learn(size: float) -> None:
        with torch.no_grad():
            for one in local.policy.model.parameters():
                one *= 1 + size * torch.randn(one.shape)

    for _ in range(10):
        learn(0.01)
        assert fast.update(parameters()) == checksum(parameters())
    texts.append(fast.write(ids, Sampling(16)))
    assert fast.version == 10
    with served(fast) as server, client(server.url) as remote:
        learn(0.01)
        assert remote.update(parameters()) == checksum(parameters()) == fast.checksum()
        texts.append(remote.write(ids, Sampling(16)))
        written: list[Any] = []
        writer = threading.Thread(target=lambda: written.append(remote.write(ids, Sampling(150, 1.0, n=4, seed=1))))
        writer.start()
        while not fast.engine.has_unfinished_requests():
            time.sleep(0.01)
        learn(0.01)
        assert remote.update(parameters(), in_flight=True) == checksum(parameters())
        assert writer.is_alive()  # it did not wait for the end
        writer.join()
        assert [len(group) for group in written[0]] == [4, 4, 4]
    texts.append(fast.write(ids, Sampling(16)))
    assert [one[0].token_ids for one in texts[-1]] == [one[0].token_ids for one in local.write(ids, Sampling(16))]
    assert len({str(one) for one in texts}) == len(texts)
    chance = Sampling(24, 1.0, n=4, seed=3)
    again = fast.write(ids, chance)
    assert logp_gap(ids, again, local.logps).mean < 0.01
    alone = fast.write(ids[1:], chance, streams=[1, 2])
    assert [[one.token_ids for one in group] for group in alone] == [
        [one.token_ids for one in group] for group in again[1:]
    ]
    with pytest.raises(EngineError, match="271 missing"):
        fast.update([("model.norm.weight", torch.ones(576))])
