"""The machines that a forecast knows: cards, memory, rates, prices; `cpu` is the machine that this runs on."""

from __future__ import annotations

import difflib
import math
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tercet.machine import memory_bytes
from tercet.recipe import RecipeError

_FILE = Path(__file__).with_name("machines.toml")
_TABLE: dict[str, Any] = tomllib.loads(_FILE.read_text(encoding="utf-8"))
ASSUMED: dict[str, float] = _TABLE.pop("assumed")
CPU = "cpu"


@dataclass(frozen=True)
class Machine:
    """Where a recipe is to run. Bytes, FLOP/s and bytes a second are of a card; `host` is a node's memory."""

    name: str
    cards: int
    node: int  # cards of a node
    memory: float
    host: float
    flops: float
    bandwidth: float
    link: float = 0.0  # to the other cards of its node
    network: float = 0.0  # to another node
    price: float = 0.0  # US dollars per card and hour
    source: str = ""  # of the price
    training: float = ASSUMED["training"]  # share of the rate that training reaches
    reading: float = ASSUMED["reading"]  # and that of reading prompts and of writing, where memory is not slower

    @property
    def card(self) -> bool:
        """Whether there is one; else it is a CPU."""
        return self.name != CPU

    def with_cards(self, cards: int) -> Machine:
        """The same kind with another number of cards."""
        return replace(self, name=f"{cards} cards like those of {self.name}", cards=cards)


def names() -> list[str]:
    """All that `machine` knows."""
    return [*_TABLE, CPU]


def machine(name: str, flops: float = 0.0, shares: tuple[float, float] = (1.0, 1.0)) -> Machine:
    """A machine by name; for `cpu`, this one's measured rate and shares of it. RecipeError where there is none such."""
    if name == CPU:
        memory = float(memory_bytes() or math.inf)
        return Machine(CPU, 1, 1, memory, memory, flops, 0.0, training=shares[0], reading=shares[1])
    if name not in _TABLE:
        close = difflib.get_close_matches(name, names(), n=1)
        meant = f" (did you mean {close[0]!r}?)" if close else ""
        raise RecipeError(f"--machine {name!r:.100}: no such machine{meant}; known: {', '.join(names())}")
    own = dict(_TABLE[name])
    return Machine(name=name, **(_TABLE[own.pop("like")] | own if "like" in own else own))
