"""The yardstick: how fast this machine multiplies matrices of a model's own shapes, and how fast its memory is.

Tokens a second do not compare across machines. Efficiency does: the FLOPs of the work over seconds x the rate at which
plain products of the same shapes run here. The rate is measured once per machine, precision and number of
threads, and remembered beside the other caches; `tercet speed` measures it afresh.
"""

from __future__ import annotations

import hashlib
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tercet.device.mesh import wait
from tercet.hub.downloads import cache_folder
from tercet.journal import seal, unseal
from tercet.machine import processor

Shapes = Mapping[tuple[int, int], int]
"""How often a model has a weight of this shape, `{(out, in): count}`. Example: `{(1536, 576): 60}`."""

ROWS = 2048  # tokens of one product, as in a training step
MOST = 1 << 24  # numbers in one output: products with the vocabulary take fewer rows, as training on a CPU does
SECONDS = 0.5  # of measuring at a process's start
LEAST = 3  # timings of one product; the lower quartile counts, as other processes only add to it


class Rate(NamedTuple):
    """Matrix products of one precision: FLOP/s altogether, and of forward and both backward products."""

    flops: float
    forward: float
    backward_input: float
    backward_weight: float


def linear_shapes(module: nn.Module) -> dict[tuple[int, int], int]:
    """The shapes of all matrices that tokens are multiplied with; an embedding counts only as the output matrix."""
    found: dict[tuple[int, int], int] = {}
    for part in module.modules():
        weight = getattr(part, "weight", None)
        if isinstance(part, nn.Linear) and isinstance(weight, Tensor):
            shape = (part.out_features, part.in_features)
            found[shape] = found.get(shape, 0) + 1
    return found


def yardstick(shapes: Shapes, dtype: torch.dtype, device: torch.device) -> float:
    """FLOP/s of plain products of these shapes on this device: the best that any process here has measured.

    Every process measures for half a second, so that a measurement on a busy machine does not stand for all. It never
    fails: 0.0 where there is nothing to measure, and a cache that cannot be written is left alone.
    """
    if not shapes:
        return 0.0
    now = remember(measure(shapes, dtype, device, SECONDS), shapes, dtype, device).flops
    return max(now, remembered(shapes, dtype, device))


def remember(rate: Rate, shapes: Shapes, dtype: torch.dtype, device: torch.device) -> Rate:
    """Keep a rate for later processes, unless a better one is known: other processes only slow a machine down."""
    file = _file(shapes, dtype, device)
    if rate.flops > _remembered(file):
        with suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            seal(file, json.dumps(rate._asdict() | about(dtype, device)))
    return rate


def remembered(shapes: Shapes, dtype: torch.dtype, device: torch.device) -> float:
    """The best rate that was kept, in FLOP/s; 0.0 where there is none."""
    return _remembered(_file(shapes, dtype, device))


def _remembered(file: Path) -> float:
    try:
        return float(json.loads(unseal(file))["flops"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0


def _file(shapes: Shapes, dtype: torch.dtype, device: torch.device) -> Path:
    text = json.dumps([sorted(shapes.items()), about(dtype, device)], sort_keys=True)
    return cache_folder() / "yardstick" / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"


@torch.no_grad()
def measure(shapes: Shapes, dtype: torch.dtype, device: torch.device, seconds: float) -> Rate:
    """Time `x W'`, `g W` and `g' x` of every shape for about `seconds` altogether.

    The rate is all FLOPs over all time, each shape as often as the model has it.
    """
    work = [0.0] * 3
    spent = [0.0] * 3
    share = seconds / (3 * len(shapes))
    for (outputs, inputs), count in sorted(shapes.items()):
        rows = max(1, min(ROWS, MOST // outputs))
        for kind, product in enumerate(_products(rows, outputs, inputs, dtype, device)):
            # the head runs only where a token is trained, but is as large as all layers of a small model together
            spent[kind] += count * _time(product, share, device) * ROWS / rows
            work[kind] += count * 2.0 * ROWS * outputs * inputs
    return Rate(sum(work) / sum(spent), *(flops / time for flops, time in zip(work, spent, strict=True)))


@torch.no_grad()
def bandwidth(device: torch.device, seconds: float = 1.0, megabytes: int = 512) -> float:
    """Bytes a second that a copy of a large tensor reads and writes."""
    source = torch.ones(megabytes << 18, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    return 2.0 * source.numel() * 4 / _time(lambda: target.copy_(source), seconds, device)


def _products(
    rows: int, outputs: int, inputs: int, dtype: torch.dtype, device: torch.device
) -> Iterator[Callable[[], Tensor]]:
    source = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=source).to(device, dtype)

    x, weight, grad = drawn(rows, inputs), drawn(outputs, inputs), drawn(rows, outputs)
    # one output at a time: beside a stage's own tensors these are the most that its process holds
    yield partial(torch.mm, x, weight.t(), out=torch.empty_like(grad))
    yield partial(torch.mm, grad, weight, out=torch.empty_like(x))
    yield partial(torch.mm, grad.t(), x, out=torch.empty_like(weight))


def _time(call: Callable[[], object], seconds: float, device: torch.device) -> float:
    """Seconds of one call: the lower quartile of as many as fit, and of `LEAST` at least."""
    call()  # builds the kernel
    found: list[float] = []
    end = time.perf_counter() + seconds
    while len(found) < LEAST or time.perf_counter() < end:
        wait(device)
        began = time.perf_counter()
        call()
        wait(device)
        found.append(time.perf_counter() - began)
    return statistics.quantiles(found, n=4)[0]


def about(dtype: torch.dtype, device: torch.device) -> dict[str, str | int]:
    """What a rate depends on besides the shapes."""
    named = getattr(torch.get_device_module(device), "get_device_name", None) if device.type != "cpu" else None
    card = named(device) if named is not None else ""
    return {
        "processor": card or processor(),
        "threads": torch.get_num_threads(),
        "dtype": str(dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "system": platform.platform(),
    }
