"""One function decides on which device a process computes, and everything that opens a model calls it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch

from tercet import stage
from tercet.cli import models
from tercet.device import place
from tercet.device.mesh import mesh
from tercet.device.place import DeviceError
from tercet.models.embed import Embedder
from tercet.models.generate import LocalGenerator
from tercet.recipe import Placement

SOURCE = Path(__file__).parents[2] / "src" / "tercet"
CPU = torch.device("cpu")


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """A machine with two cards, as far as torch says; the cards that became current."""
    for name in ("TERCET_DEVICE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    current: list[torch.device] = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.set_device", current.append)
    return current


def test_without_a_card_it_is_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TERCET_DEVICE")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert place.device() == CPU
    monkeypatch.setenv("TERCET_DEVICE", "cuda")
    with pytest.raises(DeviceError, match=r"TERCET_DEVICE=cuda: torch .* sees no card here; expected cpu"):
        place.device()


@pytest.mark.parametrize("asked", ["", "cuda"])
@pytest.mark.parametrize("rank", [0, 1])
def test_every_rank_takes_its_own_card(cards, monkeypatch: pytest.MonkeyPatch, asked: str, rank: int) -> None:
    monkeypatch.setenv("TERCET_DEVICE", asked)
    monkeypatch.setenv("LOCAL_RANK", str(rank))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert place.device() == torch.device("cuda", rank)
    assert cards == [torch.device("cuda", rank)]


def test_a_variable_names_the_cpu_or_one_card(cards, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERCET_DEVICE", "cpu")
    assert place.device() == CPU
    assert cards == []
    monkeypatch.setenv("TERCET_DEVICE", "cuda:1")
    assert place.device() == torch.device("cuda", 1)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"TERCET_DEVICE": "gpu"}, "TERCET_DEVICE=gpu: expected cpu, cuda or a card by number such as cuda:1"),
        ({"TERCET_DEVICE": "cuda:"}, "expected cpu, cuda or a card by number"),
        ({"TERCET_DEVICE": "cuda:2"}, "the cards here are numbered from 0 to 1"),
        ({"TERCET_DEVICE": "cuda:0", "LOCAL_WORLD_SIZE": "2"}, "2 ranks cannot share one card; say cuda"),
        ({"LOCAL_RANK": "2", "LOCAL_WORLD_SIZE": "3"}, r"3 ranks need as many cards, and there are 2; set placem"),
    ],
)
def test_what_cannot_be_had_is_refused_in_words(cards, monkeypatch, environment, message) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(DeviceError, match=message):
        place.device()
    assert cards == []


# ---- everything asks ----


class Asked(list[torch.device]):
    """The answers that were given."""

    def __init__(self, answer: torch.device) -> None:
        super().__init__()
        self.answer = answer

    def __call__(self) -> torch.device:
        self.append(self.answer)
        return self.answer


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """Stands in for the function and returns the CPU."""
    found = Asked(CPU)
    monkeypatch.setattr(place, "device", found)
    return found


def test_a_stages_models_ask(asked: Asked, tiny_folder: Path) -> None:
    """Evaluation, preference sampling, personas and LLM judges have their models from here."""
    model = stage._open_model(Placement(), tiny_folder, "float32")
    assert isinstance(model, LocalGenerator)
    assert asked == [CPU]


@pytest.mark.parametrize("verb", ["chat", "serve"])
def test_chat_and_serve_ask(asked: Asked, verb: str, tiny_folder: Path, tmp_path: Path, monkeypatch) -> None:
    from tercet.cli.main import main
    from tercet.models.openai import serve

    served: list[torch.device] = []
    monkeypatch.setattr(serve, "run", lambda found, *_: served.extend(one.opened().device for one in found))
    monkeypatch.setattr(models, "_lines", lambda _model: iter(["Hi"]))
    options = {"chat": ["--max-new-tokens", "2", "--json"], "serve": ["--port", "0"]}[verb]
    assert main([verb, "tiny:seed=0", "--store", str(tmp_path / "runs"), "--dtype", "float32", *options]) == 0
    assert asked == [CPU]
    assert served == ([CPU] if verb == "serve" else [])


def test_the_embedder_asks(asked: Asked, roberta: Path) -> None:
    Embedder.open(roberta)
    assert asked == [CPU]


def test_the_ranks_of_training_ask(asked: Asked) -> None:
    with mesh() as ranks:
        assert ranks.device == CPU
    assert asked == [CPU]


# Where weights are read, and what decides on the device there.
OPENERS = {
    "models.hf_folder": "reads; its callers move",
    "models.generate": "place.device()",
    "models.embed": "place.device()",
    "models.opening": "open_policy; its callers move",
    "models.classifier": "the mesh of its stage",
    "models.support": "on the host: a trial",
    "models.vocabulary": "on the host: a folder is written anew",
    "models.lora": "on the host: frozen weights",
    "models.weight_checks": "on the host: a trial",
}


def test_nothing_else_opens_a_model_or_looks_for_a_card() -> None:
    """A new place that reads weights belongs into the table, with what decides on their device."""
    opens, looks = set(), set()
    for file in SOURCE.rglob("*.py"):
        name = ".".join(file.relative_to(SOURCE).with_suffix("").parts)
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute)):
                continue
            called = ast.unparse(node.func)
            if called == "load_model" or (called.endswith(".from_pretrained") and "Model" in called):
                opens.add(name)
            if called in ("torch.cuda.is_available", "torch.cuda.set_device", "torch.accelerator.is_available"):
                looks.add(name)
    assert opens <= set(OPENERS), opens - set(OPENERS)
    assert looks == {"device.place"}
