"""How busy the machine is: processor, memory, disk, and NVIDIA's cards where there are some."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from tercet import machine
from tercet.argv import command

CARD_SECONDS = 5.0  # between two questions to the driver, which are not cheap


class MachineLoad:
    """Reads the load since the last reading."""

    def __init__(self, store: Path) -> None:
        self.store = store
        self._ticks = _ticks()
        self._cards: list[dict[str, Any]] = []
        self._asked = -math.inf

    def read(self) -> dict[str, Any]:
        """`{"cpu": 0.93, "cores": 2, "memory": [used, all], "disk": [free, all], "cards": [...]}`, sizes in bytes."""
        total, free = machine.memory_bytes(), machine.available_memory()
        disk = shutil.disk_usage(self.store)
        return {
            "cpu": self._cpu(),
            "cores": machine.cores(),
            "memory": [total - free, total] if total and math.isfinite(free) else None,
            "disk": [disk.free, disk.total],
            "cards": self._read_cards(),
        }

    def _cpu(self) -> float | None:
        """The share of the time that the cores were busy; where the system does not say, its load by the cores."""
        before, self._ticks = self._ticks, _ticks()
        if before and self._ticks:
            busy, total = (now - then for now, then in zip(self._ticks, before, strict=True))
            return busy / total if total > 0 else None
        with suppress(OSError):
            return min(1.0, os.getloadavg()[0] / machine.cores())
        return None

    def _read_cards(self) -> list[dict[str, Any]]:
        if time.monotonic() - self._asked > CARD_SECONDS and shutil.which("nvidia-smi"):
            self._asked = time.monotonic()
            self._cards = _cards()
        return self._cards


def _ticks() -> tuple[int, int] | None:
    """Ticks in which the cores were busy, and all, since the machine began."""
    try:
        first = (machine.PROC / "stat").read_text(encoding="ascii").splitlines()[0].split()
        values = [int(value) for value in first[1:9]]
    except (OSError, ValueError, IndexError):
        return None
    return sum(values) - sum(values[3:5]), sum(values)  # the fourth and fifth are idle


def _cards() -> list[dict[str, Any]]:
    """Name, load and memory of every card."""
    asked = command(
        "nvidia-smi",
        "--query-gpu=name,utilization.gpu,memory.used,memory.total",
        "--format=csv,noheader,nounits",
    )
    try:
        said = subprocess.run(asked, capture_output=True, text=True, timeout=3, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    found = []
    for line in said.splitlines():
        with suppress(ValueError):
            name, load, used, total = (part.strip() for part in line.split(","))
            found.append(
                {"name": name, "load": float(load) / 100, "memory": [2**20 * float(used), 2**20 * float(total)]}
            )
    return found
