"""Models on a device other than the CPU give the same answers as on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from elsewhere import DEVICE, Away, elsewhere
from tercet.device import place
from tercet.models.embed import Embedder
from tercet.models.generate import LocalGenerator
from tercet.models.openai.logps import look
from tercet.rows import Message, Sampling

ASKS = ["Hi", "What is a basin?", "x" * 40, "ü"]
PROMPTS = [(Message("user", text),) for text in ASKS]
OPENING = "The same words stand before every question of this benchmark, and they are many. " * 2
LONG = [(Message("user", OPENING + text),) for text in ASKS]
SAMPLINGS = [Sampling(6), Sampling(6, 1.0, top_p=0.9, top_k=30, n=2, seed=4), Sampling(6, 0.7, stop=("e",), fit=True)]


def open_model(folder: Path) -> LocalGenerator:
    return LocalGenerator.open(folder, "float32", rows=3)


def facts(groups: Any) -> list[list[tuple[Any, ...]]]:
    return [[(one.text, one.token_ids, one.stop) for one in group] for group in groups]


def logps(groups: Any) -> list[float]:
    return [logp for group in groups for one in group for logp in one.logps]


@pytest.fixture(scope="module")
def here(sharp_folder: Path) -> LocalGenerator:
    return open_model(sharp_folder)


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "drawn", "stopped"])
@pytest.mark.parametrize("prompts", [PROMPTS, LONG], ids=["prompts", "a shared beginning"])
def test_completions_are_those_of_the_cpu(here, sharp_folder, monkeypatch, prompts, sampling) -> None:
    wanted = here.complete(prompts, sampling)
    monkeypatch.setattr(place, "device", lambda: DEVICE)
    with elsewhere():
        generator = open_model(sharp_folder)
        assert generator.device == DEVICE
        found = generator.complete(prompts, sampling)
    assert facts(found) == facts(wanted)
    assert logps(found) == pytest.approx(logps(wanted), abs=1e-4)


def test_streams_likelihoods_and_log_probabilities_are_those_of_the_cpu(here, sharp_folder, monkeypatch) -> None:
    options = [[" yes", " no, never"], [" a", " b"], [" 北"], [" c"]]
    ids, row = here.encode(PROMPTS)[1], here.encode(PROMPTS)[2]

    def answers(generator: LocalGenerator) -> tuple[list[Any], list[float]]:
        scored = [one for group in generator.likelihood(LONG, options) for one in group]
        looked = next(look(generator, [row, ids], 3))
        exact = [list(generator.stream(PROMPTS[0], Sampling(6))), [(one.num_tokens, one.greedy) for one in scored]]
        exact.append([(one.token, [token for token, _ in one.likeliest]) for one in looked])
        return exact, [*(one.logp for one in (*scored, *looked[1:])), *generator.logps(ids, [5, 6, 7])]

    wanted = answers(here)
    monkeypatch.setattr(place, "device", lambda: DEVICE)
    with elsewhere():
        found = answers(open_model(sharp_folder))
    assert found[0] == wanted[0]
    assert found[1] == pytest.approx(wanted[1], abs=1e-4)


def test_similarities_are_those_of_the_cpu(roberta, monkeypatch) -> None:
    texts = ["rain falls", "a tram 99", "", "rain " * 20]
    wanted = Embedder.open(roberta).similarity(texts, texts[::-1])
    monkeypatch.setattr(place, "device", lambda: DEVICE)
    with elsewhere():
        found = Embedder.open(roberta)
        assert isinstance(found.model.embeddings.word_embeddings.weight, Away)
        assert found.similarity(texts, texts[::-1]) == pytest.approx(wanted, abs=1e-6)


def test_a_forgotten_device_is_found() -> None:
    with elsewhere():
        there = torch.ones(3, 2).to(DEVICE)
        assert (there.device, (there * 2).sum(0).device, there.cpu().device) == (DEVICE, DEVICE, torch.device("cpu"))
        assert isinstance(there[torch.tensor([0, 1])] * torch.tensor(2.0), Away), "a number, and places to look at"
        for forgotten in (lambda: there + torch.ones(2), lambda: torch.cat([there, torch.ones(1, 2)]), there.numpy):
            with pytest.raises((RuntimeError, TypeError), match="device"):
                forgotten()
        with pytest.raises(RuntimeError, match="two devices"):
            there[torch.tensor([0])] = torch.ones(1, 2)
