"""Which device this process computes on, for everything that opens a model."""

from __future__ import annotations

import os
import re

import torch

VARIABLE = "TERCET_DEVICE"
FORM = re.compile(r"cpu|cuda(:\d+)?")


class DeviceError(ValueError):
    """The device that was named is not available to this process."""


def device() -> torch.device:
    """What TERCET_DEVICE names, else the card of this process's local rank, else the CPU; a card becomes current.

    TERCET_DEVICE is `cpu`, `cuda` (each rank has its own card), or `cuda:1` (this card, for a process without others).
    """
    asked = os.environ.get(VARIABLE, "").strip()
    if asked and not FORM.fullmatch(asked):
        raise DeviceError(f"{VARIABLE}={asked}: expected cpu, cuda or a card by number such as cuda:1")
    if asked == "cpu" or not (asked or torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise DeviceError(f"{VARIABLE}={asked}: torch {torch.__version__} sees no card here; expected cpu")
    found = torch.device("cuda", _number(asked))
    torch.cuda.set_device(found)
    return found


def card_of(device: torch.device, wanted: str) -> torch.device:
    """The device, which must be a card for a setting to do anything; DeviceError elsewhere."""
    if device.type == "cpu":
        raise DeviceError(
            f"{wanted} moves tensors from a card to the host's memory, and this stage has no card: leave it out"
        )
    return device


def card_bytes() -> float:
    """The memory of this process's card."""
    return float(torch.cuda.get_device_properties(device()).total_memory)


def _number(asked: str) -> int:
    """The number of the card that a name means in this process; refused where there is none."""
    rank, ranks = (int(os.environ.get(name, least)) for name, least in (("LOCAL_RANK", "0"), ("LOCAL_WORLD_SIZE", "1")))
    cards = torch.cuda.device_count()
    named = asked.partition(":")[2]
    if named and ranks > 1:
        raise DeviceError(f"{VARIABLE}={asked}: {ranks} ranks cannot share one card; say cuda, and each takes its own")
    if named and int(named) >= cards:
        raise DeviceError(f"{VARIABLE}={asked}: the cards here are numbered from 0 to {cards - 1}")
    if not named and rank >= cards:
        raise DeviceError(
            f"{ranks} ranks need as many cards, and there are {cards}; set placement.ranks = {cards}, or {VARIABLE}=cpu"
        )
    return int(named) if named else rank
