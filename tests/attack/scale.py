"""How much an attack tries: a tenth in the gate, everything with `TERCET_ATTACK=full`."""

from __future__ import annotations

import os


def times(full: int) -> int:
    """`full` attempts, or a tenth of them, at least one."""
    return full if os.environ.get("TERCET_ATTACK") == "full" else max(1, full // 10)
