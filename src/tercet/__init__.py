"""Tercet: imitate, prefer, verify. The whole Tülu 3 post-training system in one package.

`from tercet import Recipe, load, run, Store, scores, compare, rollouts, Task, verifier`: imported when first used.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

if sys.platform == "win32":  # before any module asks for what Windows has not
    sys.exit("Tercet runs on Linux and macOS; on Windows use it inside WSL (https://learn.microsoft.com/windows/wsl).")

_PUBLIC = {
    "Recipe": "tercet.recipe",
    "load": "tercet.recipe",
    "run": "tercet.pipeline",
    "plan": "tercet.pipeline",
    "Store": "tercet.store",
    "Artifact": "tercet.store",
    "scores": "tercet.inline",
    "compare": "tercet.inline",
    "rollouts": "tercet.inline",
    "Task": "tercet.evals.task",
    "verifier": "tercet.verify",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("tercet")
    if name not in _PUBLIC:
        raise AttributeError(f"module 'tercet' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return __all__
