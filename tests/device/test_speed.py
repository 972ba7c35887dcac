"""The yardstick: what it counts, what it remembers, and that it never fails a stage."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from tercet.device import speed
from tercet.device.speed import Rate, linear_shapes, measure, remember, yardstick
from tercet.journal import unseal

CPU = torch.device("cpu")
SHAPES = {(48, 32): 2, (96, 48): 1}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TERCET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_every_linear_layer_counts_and_an_embedding_does_not():
    model = nn.ModuleList([nn.Embedding(100, 8), nn.Linear(8, 4), nn.Linear(8, 4, bias=False), nn.Linear(4, 100)])
    assert linear_shapes(model) == {(4, 8): 2, (100, 4): 1}


def test_a_rate_is_flops_over_seconds_of_the_three_products():
    rate = measure(SHAPES, torch.float32, CPU, 0.02)
    assert rate.flops > 0
    slowest, fastest = min(rate[1:]), max(rate[1:])
    assert slowest <= rate.flops <= fastest


def test_the_best_rate_is_remembered_because_other_processes_only_slow_a_machine_down(cache):
    for flops in (3e9, 7e9, 5e9):
        remember(Rate(flops, flops, flops, flops), SHAPES, torch.float32, CPU)
    (file,) = (cache / "yardstick").iterdir()
    kept = json.loads(unseal(file))
    assert kept["flops"] == 7e9
    assert {"processor", "threads", "dtype", "torch"} <= kept.keys()


def test_a_stage_takes_the_better_of_what_is_known_and_what_it_measures(monkeypatch):
    monkeypatch.setattr(speed, "measure", lambda *_: Rate(4e9, 4e9, 4e9, 4e9))
    assert yardstick(SHAPES, torch.float32, CPU) == 4e9
    remember(Rate(9e9, 9e9, 9e9, 9e9), SHAPES, torch.float32, CPU)
    assert yardstick(SHAPES, torch.float32, CPU) == 9e9
    assert yardstick(SHAPES, torch.bfloat16, CPU) == 4e9


def test_nothing_to_measure_and_a_cache_that_cannot_be_written_are_no_errors(cache, monkeypatch):
    assert yardstick({}, torch.float32, CPU) == 0.0
    cache.write_text("a file where the folder should be")
    assert yardstick(SHAPES, torch.float32, CPU) > 0


def test_a_torn_cache_is_measured_again(cache):
    yardstick(SHAPES, torch.float32, CPU)
    (file,) = (cache / "yardstick").iterdir()
    file.write_text("{")
    assert yardstick(SHAPES, torch.float32, CPU) > 0
    assert json.loads(unseal(file))["flops"] > 0
