"""The table of machines."""

from __future__ import annotations

import pytest

from tercet.forecast.machines import machine, names
from tercet.recipe import RecipeError


@pytest.mark.parametrize("name", names())
def test_every_machine_has_memory_and_its_price_a_source(name):
    found = machine(name, 1e11)
    assert min(found.memory, found.host, found.flops) > 0
    assert bool(found.price) == bool(found.source) == found.card
    assert found.cards % found.node == 0


def test_an_unknown_machine_is_refused_with_those_known():
    with pytest.raises(RecipeError, match=r"did you mean 'h100x8'.*known: h100, h100x8"):
        machine("h10x8")
