"""Reading tokens a step late, as on a card, changes nothing of what is written."""

from __future__ import annotations

import pytest
import torch

from tercet.device.readback import Readback, send
from tercet.models.generate import LocalGenerator
from tercet.rows import PLAIN, Completion, Message, Sampling

OPENING = "The same words stand before every question, and they are not few. " * 2
ASKS = ["Hi", "What is a basin and where does its water go?", "x" * 60, "ü", "Say no.", "a b c d e f g", "Why?"]
PROMPTS = [(Message("user", text),) for text in ASKS]
SHARED = [(Message(PLAIN, OPENING + text),) for text in ASKS]
SAMPLINGS = {
    "greedy": Sampling(24),
    "drawn": Sampling(40, 1.0, n=3, seed=2),
    "cut": Sampling(24, 0.7, top_k=40, top_p=0.9, n=2, seed=3),
    "stopped": Sampling(24, 1.0, n=2, stop=("e", "xx")),
    "hot": Sampling(60, 3.0, n=4, seed=1),
    "fitted": Sampling(4000, 4.0, seed=5, fit=True, stop=("a",)),
    "one token": Sampling(1, 1.0, n=3),
}


@pytest.fixture(scope="module")
def generator(sharp_folder) -> LocalGenerator:
    return LocalGenerator.open(sharp_folder, "float32")


@pytest.fixture
def write(generator):
    """Completions with tokens read late or at once."""

    def write(prompts, sampling: Sampling, *, rows: int = 64, late: bool = False) -> list[list[Completion]]:
        generator.rows, generator.late = rows, late
        return generator.complete(prompts, sampling)

    return write


def assert_same(found: list[list[Completion]], wanted: list[list[Completion]]) -> None:
    facts = [[[(one.text, one.token_ids, one.stop) for one in group] for group in groups] for groups in (found, wanted)]
    assert facts[0] == facts[1]
    logps = [[logp for group in groups for one in group for logp in one.logps] for groups in (found, wanted)]
    assert logps[0] == pytest.approx(logps[1], abs=1e-4)


@pytest.mark.parametrize("rows", [1, 3, 64])
@pytest.mark.parametrize("prompts", [PROMPTS, SHARED], ids=["prompts", "a shared beginning"])
@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
def test_tokens_read_a_step_late_are_those_read_at_once(write, prompts, sampling, rows):
    prompts = prompts[: 2 * rows + 1]
    assert_same(write(prompts, sampling, rows=rows, late=True), write(prompts, sampling, rows=rows))


def test_rows_end_for_every_reason_in_these_tests(write):
    stops = {one.stop for sampling in SAMPLINGS.values() for group in write(PROMPTS, sampling) for one in group}
    assert stops == {"stop", "eos", "length"}


@pytest.mark.parametrize("seed", range(3))
def test_a_stream_read_late_adds_up_to_the_text(generator, seed):
    sampling = Sampling(20, temperature=1.5, seed=seed)
    generator.late = True
    pieces = list(generator.stream(PROMPTS[0], sampling))
    ((whole,),) = generator.complete(PROMPTS[:1], sampling)
    assert "".join(pieces) == whole.text
    assert len(pieces) > 3


def test_on_a_processor_tokens_are_read_at_once(sharp_folder):
    generator = LocalGenerator.open(sharp_folder, "float32")
    assert not generator.late
    assert not generator.paged
    tokens, logps = torch.tensor([3, 4]), torch.tensor([0.5, -1.0])
    assert Readback((tokens, logps)).read() == [[3, 4], [0.5, -1.0]]
    assert send(tokens, torch.device("cpu")) is tokens


ON_A_CARD = pytest.mark.skipif(not torch.accelerator.is_available(), reason="no CUDA device")


@pytest.mark.gpu
@ON_A_CARD
@pytest.mark.parametrize("prompts", [PROMPTS, SHARED], ids=["prompts", "a shared beginning"])
@pytest.mark.parametrize("name", ["greedy", "stopped"])
def test_on_a_card_recorded_steps_write_what_the_cpu_writes(sharp_folder, write, monkeypatch, prompts, name):
    monkeypatch.setenv("TERCET_DEVICE", "cuda")
    there = LocalGenerator.open(sharp_folder, "float32", rows=3)
    assert_same(there.complete(prompts, SAMPLINGS[name]), write(prompts, SAMPLINGS[name], rows=3))


@pytest.mark.gpu
@ON_A_CARD
@pytest.mark.parametrize("name", ["greedy", "cut"])
def test_a_step_never_waits_for_the_card(sharp_folder, monkeypatch, name):
    monkeypatch.setenv("TERCET_DEVICE", "cuda")
    there = LocalGenerator.open(sharp_folder, "float32")
    states = there._decode(there.encode(PROMPTS), SAMPLINGS[name], range(len(PROMPTS)))
    next(states).graphs.records = False
    try:
        torch.cuda.set_sync_debug_mode("error")  # noqa: TID251  (torch then raises where it waits)
        assert len(list(states)) > 3
    finally:
        torch.cuda.set_sync_debug_mode("default")  # noqa: TID251
