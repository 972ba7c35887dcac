"""What a run will do and about how long it will take here, printed before the first stage begins.

A rough estimate: parameters x tokens over this machine's measured rate of matrix products. What is not known before the
data are made (the length of rows and answers) is guessed low, from short chats.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from tercet import machine
from tercet.argv import Outside, command
from tercet.precision import has_gpu, reason, resolve, software_bf16
from tercet.recipe import BASE, Recipe, RecipeError, TrainSpec

SHARES = {"float32": (0.75, 0.9), "bfloat16": (0.55, 0.3)}  # of the rate, that training and generation reach on a CPU
OPENING = 6.0  # seconds in which a stage starts and loads its model
WORTH = 30.0  # seconds of work at a guessed rate from which measuring is worth its time
GUESS = 1e11  # FLOP/s of a slow laptop
_SIZE = re.compile(r"(\d+(?:\.\d+)?)(M|B)(?![a-z])", re.IGNORECASE)


def opening(recipe: Recipe, missing: Mapping[str, Mapping[str, int]], parameters: float) -> str:
    """One paragraph: how much is missing, how long it takes about, and in which precision. `missing` has forecasts."""
    if not missing:
        return ""
    parameters = parameters or named_size(recipe.base.model)
    work = [recipe.spec(name).flops(ahead) for name, ahead in missing.items()]
    parts = [f"{recipe.name}: {len(missing)} stage{'s' if len(missing) > 1 else ''} to make"]
    totals = {key: sum(ahead.get(key, 0) for ahead in missing.values()) for key in ("steps", "completions")}
    parts.append(", ".join(f"{number:,} {key}" for key, number in totals.items() if number))
    used = dict.fromkeys(recipe.spec(name).precision for name in missing)
    parts.append(", ".join(reason(precision) for precision in used if precision))
    training_share, writing_share = SHARES[resolve(recipe.dtype)]
    rough = parameters * sum(training / training_share + writing / writing_share for training, writing in work)
    if rough / GUESS > WORTH and (flops := rate(recipe.dtype)):
        seconds = rough / flops + OPENING * sum(any(pair) for pair in work)
        parts.append(f"about {_duration(seconds)} on this machine ({flops / 1e9:,.0f} GFLOP/s in plain products)")
    return "; ".join(filter(None, parts))


def named_size(model: str) -> float:
    """The parameters in a model's name, 135e6 for `SmolLM2-135M-Instruct`; 0.0 where there are none."""
    found = _SIZE.search(model.rsplit("/", 1)[-1])
    return float(found[1]) * (1e6 if found[2] in "mM" else 1e9) if found else 0.0


def slow_precision(recipe: Recipe, names: Sequence[str] | Mapping[str, Any]) -> str:
    """A warning where a recipe pins bf16 and this CPU multiplies it in software, with the measured ratio."""
    pinned = [name for name in names if name != BASE and getattr(recipe.stage[name], "dtype", "") == "bfloat16"]
    if not pinned or not software_bf16():
        return ""
    rates = {one["dtype"]: one["flops"] for one in _measured("").get("products", ())}
    ratio = ""
    if slow := rates.get("bfloat16"):
        fast = rates["float32"]
        ratio = f" ({slow / 1e9:.0f} against {fast / 1e9:.0f} GFLOP/s: {fast / slow:.1f} times slower)"
    return (
        f"warning: dtype = bfloat16 of {', '.join(pinned)}: this CPU multiplies it in software{ratio}; "
        'leave dtype out, or set it to "auto" or "float32"'
    )


def rate(dtype: str) -> float:
    """Measured FLOP/s of this machine's matrix products in a precision; 0.0 where measuring fails."""
    products = _measured(dtype).get("products") or [{"flops": 0.0}]
    return float(products[0]["flops"])


def _measured(dtype: str) -> dict[str, Any]:
    """`tercet speed` for two seconds in a process of its own (this one has no torch); nothing where that fails."""
    asked = command(sys.executable, "-m", "tercet", "speed", "--seconds", "2", "--json")
    threads = {"OMP_NUM_THREADS": str(machine.cores())}
    try:
        asked += command("--dtype", Outside(dtype)) if dtype else []
        env = os.environ | threads
        done = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=60, env=env)
        return dict(json.loads(done.stdout))
    except (subprocess.SubprocessError, OSError, ValueError):
        return {}


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{round(seconds, -1):.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def check_four_bits(spec: TrainSpec, name: str, recipe: Recipe) -> None:
    """Weights in four bits are refused where nothing can multiply them: without a GPU, and on several ranks."""
    if not (spec.lora and spec.lora.quantize):
        return
    wanted, place = f"lora.quantize = {spec.lora.quantize!r}", ("stage", name, "lora", "quantize")
    if not has_gpu():
        raise RecipeError(f"{wanted} needs a CUDA GPU, and there is none here; leave it out", place)
    if recipe.placement.ranks > 1:
        raise RecipeError(f"{wanted} trains on one GPU, and placement.ranks is {recipe.placement.ranks}", place)
