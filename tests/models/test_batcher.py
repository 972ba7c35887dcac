"""Several models behind one worker: they are loaded when asked, take turns, share equal weights, and go."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.models.serving import post, said, serving

from tercet.models.generate import LocalGenerator
from tercet.models.openai.batcher import Batcher
from tercet.models.openai.growing import GrowingCache
from tercet.models.openai.jobs import GenerationJob
from tercet.models.openai.served import ServedModel, share
from tercet.rows import Sampling

NAMES = ("base", "sft", "dpo", "rlvr")


@pytest.fixture(scope="module")
def stages(sharp_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Four models of which each changed one layer of the one before."""
    folders = {"base": sharp_folder}
    for number, (before, name) in enumerate(pairwise(NAMES)):
        folders[name] = tmp_path_factory.mktemp("stages") / name
        shutil.copytree(folders[before], folders[name])
        weights = load_file(folders[name] / "model.safetensors")
        key = f"model.layers.{number % 2}.mlp.down_proj.weight"
        weights[key] = weights[key].roll(1, 0)
        save_file(weights, folders[name] / "model.safetensors", metadata={"format": "pt"})
    return folders


def served(stages: dict[str, Path]) -> list[ServedModel]:
    return [ServedModel.at([name], folder, "float32") for name, folder in stages.items()]


@contextmanager
def batcher(models: list[ServedModel], kept: int = 4) -> Iterator[Batcher]:
    found = Batcher({model.name: model for model in models}, 8, kept)
    try:
        yield found
    finally:
        found.close()


def texts(found: Batcher, names: list[str], tokens: int = 6) -> list[str]:
    jobs = [GenerationJob([70, 80, 90 + i], Sampling(tokens, 1.0), i, model=name) for i, name in enumerate(names)]
    return [ticket.answer.result(60).completions[0].text for ticket in found.submit(jobs)]


@pytest.fixture(scope="module")
def alone(stages: dict[str, Path]) -> dict[str, str]:
    """What each model writes by itself."""
    found = {}
    for number, (name, folder) in enumerate(stages.items()):
        how = Sampling(6, 1.0, seed=number)
        found[name] = LocalGenerator.open(folder, "float32").write([[70, 80, 90 + number]], how)[0][0].text
    assert len(set(found.values())) == len(NAMES)
    return found


@pytest.mark.parametrize("kept", [1, 2, 4])
def test_models_are_loaded_when_asked_and_the_least_used_goes(
    stages: dict[str, Path], alone: dict[str, str], kept: int
) -> None:
    with batcher(served(stages), kept) as found:
        assert found.loaded == []
        assert texts(found, list(NAMES)) == list(alone.values())
        assert len(found.loaded) == kept
        assert texts(found, list(NAMES)) == list(alone.values())
        if kept == 2:
            texts(found, ["base"])
            texts(found, ["dpo"])
            assert found.loaded == ["base", "dpo"]


def test_models_write_in_turn_and_none_waits_for_another_to_end(stages: dict[str, Path]) -> None:
    with batcher(served(stages)) as found:
        texts(found, list(NAMES))
        order: list[str] = []

        def note(name: str) -> Any:
            return lambda: order.append(name)

        tickets = []
        for name in ("base", "sft"):
            tickets += found.submit([GenerationJob([70, 71], Sampling(40), model=name)], note(name))
        for ticket in tickets:
            ticket.answer.result(60)
    first = order.index("sft")
    assert order[first : first + 6] == ["sft", "base"] * 3


def test_a_model_that_cannot_be_loaded_fails_its_own_requests(stages: dict[str, Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(stages["base"], broken)
    (broken / "model.safetensors").write_bytes(b"cut")
    models = [*served({"base": stages["base"], "broken": broken})]
    with serving(models, kept=1) as (url, _):
        status, reply = post(url, "/chat/completions", said("a", model="broken"))
        assert (status, reply["error"]["type"]) == (500, "server_error")
        assert post(url, "/chat/completions", said("a", model="base"))[0] == 200


def test_equal_weights_are_kept_once(stages: dict[str, Path]) -> None:
    first, second = (LocalGenerator.open(stages[name], "float32") for name in ("base", "sft"))
    before = [weight.clone() for weight in second.policy.parameters()]
    saved = share(second, [first])
    whole = sum(weight.numel() * weight.element_size() for weight in second.policy.parameters())
    apart = dict(second.policy.named_parameters())["model.model.layers.0.mlp.down_proj.weight"]
    assert saved == whole - apart.numel() * apart.element_size()
    assert all(torch.equal(a, b) for a, b in zip(before, second.policy.parameters(), strict=True))


def test_twenty_clients_at_once_lose_nothing(stages: dict[str, Path]) -> None:
    asked = [said(f"Tell me {i}", model=NAMES[i % 4], seed=i, temperature=1.0, max_tokens=5 + i % 7) for i in range(20)]
    with serving(served(stages), rows=4, kept=2) as (url, _):
        with ThreadPoolExecutor(20) as pool:
            together = list(pool.map(lambda body: post(url, "/chat/completions", body), asked))
        single = [post(url, "/chat/completions", body) for body in asked]
    assert [status for status, _ in together] == [200] * 20
    told = [[reply["choices"] for _, reply in replies] for replies in (together, single)]
    assert told[0] == told[1]


def test_models_of_their_own_cache_are_served_in_batches(stages: dict[str, Path]) -> None:
    generator = LocalGenerator.open(stages["base"], "float32", layout="padded")
    prompts = [[70, 71, 72], [73, 74], [75] * 9]
    with batcher([ServedModel.of(generator, "tiny")]) as found:
        jobs = [GenerationJob(ids, Sampling(5, 1.0), 3, 2, True, model="tiny") for ids in prompts]
        answers = [ticket.answer.result(60) for ticket in found.submit(jobs)]
        (endless,) = found.submit([GenerationJob([70], Sampling(900), model="tiny")])
        while not endless.rows:
            time.sleep(0.01)
        endless.cancel()
        again = found.submit(jobs[:1])[0].answer.result(60)
        assert again.completions[0].token_ids == answers[0].completions[0].token_ids
    for ids, answer in zip(prompts, answers, strict=True):
        alone = generator.write([ids], Sampling(5, 1.0, seed=3))[0][0]
        assert answer.completions[0].token_ids == alone.token_ids
        shown = [one.logp for one in answer.logps[0]]
        assert shown == pytest.approx(generator.logps(ids, alone.token_ids), abs=1e-4)
        assert [one.token for one in answer.prompt] == ids


def test_pages_serve_as_the_growing_cache_does(stages: dict[str, Path]) -> None:
    found = []
    for paged in (False, True):
        generator = LocalGenerator.open(stages["base"], "float32", tokens=4096)
        generator.paged = generator.late = paged
        with batcher([ServedModel.of(generator, "base")]) as worker:
            jobs = [
                GenerationJob([70 + i] * (i + 1), Sampling(10 + i, 1.0, n=2, stop=("e",)), i, 1, model="base")
                for i in range(6)
            ]
            found.append([ticket.answer.result(60) for ticket in worker.submit(jobs)])
    for plain, pages in zip(*found, strict=True):
        assert [one.token_ids for one in plain.completions] == [one.token_ids for one in pages.completions]
        tokens = [[[one.token for one in row] for row in found.logps] for found in (plain, pages)]
        assert tokens[0] == tokens[1]


def test_the_cache_grows_with_what_is_written_and_keeps_what_it_holds(stages: dict[str, Path]) -> None:
    generator = LocalGenerator.open(stages["base"], "float32", tokens=4000)
    cache = GrowingCache(generator.policy, 8, 4000)
    assert cache.reserve(0, 2, 10, 500)
    assert (cache.kept.rows, cache.kept.length) == (2, 256)
    cache.kept.keys[0][:] = 7.0
    cache.begin(2, 400)
    assert cache.kept.length == 512
    assert cache.kept.keys[0][:2, :, :256].eq(7).all()
    assert not cache.reserve(2, 4, 10, 1000)
    assert cache.reserve(2, 1, 10, 1000)
    assert not cache.reserve(3, 6, 10, 20)
