"""What can only be measured on a card, in one process and within minutes: the laws, then cells of speed and memory.

Each result is printed and kept as soon as it is known, so that a run cut short has lost nothing; what failed (out of
memory, most of the time) says so and the next cell goes on. Cells that would begin after `--minutes` are left out by
name. Where the packages of recipes are missing (pydantic), the laws run alone. `--dry` does all of it in tiny shapes on
the CPU and keeps nothing.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers

RESULTS = Path(__file__).parent / "results" / "gpu.json"
NEEDED = ("pydantic", "rich", "pyarrow")  # of recipes and tables, which the cells of speed are made with
Cell = Callable[[], dict[str, Any]]


def main() -> None:
    """Every cell that there is time for; exit code 1 where a law is broken or a cell failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--dry", action="store_true", help="tiny shapes, on the CPU; nothing is kept")
    parser.add_argument("--minutes", type=float, default=13.0, help="no cell begins later than this (13)")
    parser.add_argument("--only", default="", help="cells whose names contain this")
    parser.add_argument("--out", type=Path, default=RESULTS, help=f"where results are kept ({RESULTS.name})")
    options = parser.parse_args()
    if not (options.dry or torch.accelerator.is_available()):
        raise SystemExit("no card is visible to torch; --dry tries everything on the CPU")
    device = torch.device("cpu" if options.dry else "cuda")
    end = time.monotonic() + 60 * options.minutes
    head = about(device)
    print(" ".join(f"{name}: {value};" for name, value in head.items()), flush=True)
    found: dict[str, dict[str, Any]] = {}
    left: list[str] = []
    for name, cell in named(device, options.dry, found):
        if options.only and options.only not in name:
            continue
        if time.monotonic() > end:
            left.append(name)
            continue
        found[name] = measured(cell, device)
        print(f"{name}: {line(found[name])}", flush=True)
        if not options.dry:
            keep(options.out, {"about": head, "cells": found, "left_out": left})
    print(f"left out, after {options.minutes:g} minutes: {', '.join(left)}" if left else "every cell was reached")
    if wrong := [name for name, one in found.items() if one.get("broken") or "error" in one]:
        raise SystemExit(f"failed: {'; '.join(wrong)}")


def named(device: torch.device, dry: bool, found: dict[str, dict[str, Any]]) -> Iterator[tuple[str, Cell]]:
    """Laws, then cells; the whole model's figures once those that they are made of are there."""
    import gpu_laws

    for name, law in gpu_laws.laws(device, 24 if dry else 700):
        yield f"law: {name}", law
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        print(f"cells of speed and memory are left out: {', '.join(missing)} missing", flush=True)
        return
    import gpu_cells

    scale, parts = gpu_cells.DRY if dry else gpu_cells.Scale(), 0
    for name, cell in gpu_cells.cells(scale, device):
        yield name, cell
        parts += name.startswith("SFT")
        if parts == 2 and all("error" not in found.get(one, {"error": ""}) for one in ("SFT", name)):
            yield f"SFT, {gpu_cells.WHOLE} layers by addition", lambda: gpu_cells.whole(found, scale)
            parts += 1


def measured(cell: Cell, device: torch.device) -> dict[str, Any]:
    """A cell's figures and its seconds, in memory as it was before the first one; or what it failed with."""
    began = time.monotonic()
    torch._dynamo.reset()  # each cell alone may build as many kernels as a process may
    if device.type == "cuda":
        torch.accelerator.reset_peak_memory_stats()
    try:
        found = cell()
    except Exception as error:
        found = {"error": f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"}
    gc.collect()
    if device.type == "cuda":
        torch.accelerator.empty_cache()
    return found | {"seconds": time.monotonic() - began}


def about(device: torch.device) -> dict[str, str]:
    """The machine and the versions that the figures belong to."""
    kind = torch.get_device_module(device)
    card = kind.get_device_name(device) if device.type == "cuda" else "no card (dry)"
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    return {"card": card, **versions, "transformers": transformers.__version__}


def line(found: dict[str, Any]) -> str:
    """A cell's figures in one line; of a law what is broken."""
    if "broken" in found:
        far = {name: f"{found[name]:.1e} of {found[f'{name} bound']:.1e}" for name in found if f"{name} bound" in found}
        return f"{'BROKEN ' if found['broken'] else ''}{', '.join(f'{name} {text}' for name, text in far.items())}"
    shown = (f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in found.items())
    return ", ".join(shown)


def keep(file: Path, document: dict[str, Any]) -> None:
    """Write the results so far, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_suffix(".part")
    draft.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    draft.replace(file)


if __name__ == "__main__":
    main()
