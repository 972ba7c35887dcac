"""The verb `speed`: this machine's rate of matrix products on a model's own shapes."""

from __future__ import annotations

import argparse
from typing import Any

from tercet.cli.output import emit, say, table

SMOLLM2 = {(576, 576): 60, (192, 576): 60, (1536, 576): 60, (576, 1536): 30, (49152, 576): 1}


def speed(args: argparse.Namespace) -> int:
    """A line per precision; the rates are kept for the efficiencies of later stages."""
    found = _measured(args)
    if args.json:
        return emit(found)
    say(f"{found['processor']}, {found['threads']} threads, {found['device']}")
    say(found["auto"])
    rows = [
        (one["dtype"], *(f"{one[key] / 1e9:,.0f}" for key in ("flops", "forward", "backward_input", "backward_weight")))
        for one in found["products"]
    ]
    table(("precision", "GFLOP/s", "forward", "backward, input", "backward, weight"), rows)
    say(f"memory: {found['bandwidth'] / 1e9:,.0f} GB/s (a copy, read and written)")
    say(f"kernels: {found['kernels']}")
    return 0


def _measured(args: argparse.Namespace) -> dict[str, Any]:
    import torch

    from tercet.device.place import device
    from tercet.device.speed import about, bandwidth, measure, remember
    from tercet.kernels.native import native
    from tercet.precision import automatic, reason, resolve

    place, shapes = device(), _shapes(args.model)
    asked = [resolve(args.dtype)] if args.dtype else ["float32", "bfloat16"]
    names = dict.fromkeys(asked)
    share = 0.9 * args.seconds / len(names)
    rates = []
    for name in names:
        dtype = getattr(torch, name)
        rates.append({"dtype": name, **remember(measure(shapes, dtype, place, share), shapes, dtype, place)._asdict()})
    return {
        "processor": about(torch.float32, place)["processor"],
        "threads": torch.get_num_threads(),
        "device": str(place),
        "auto": reason(automatic().dtype),
        "products": rates,
        "bandwidth": bandwidth(place, 0.1 * args.seconds),
        "kernels": native().why or "compiled",
    }


def _shapes(model: str) -> dict[tuple[int, int], int]:
    """The matrices of a model folder, from its config; no weights are read."""
    if not model:
        return SMOLLM2
    from pathlib import Path

    import torch
    from transformers import AutoModelForCausalLM

    from tercet.device.speed import linear_shapes
    from tercet.models.hf_folder import check_folder, load_config

    check_folder(Path(model))
    with torch.device("meta"):
        return linear_shapes(AutoModelForCausalLM.from_config(load_config(Path(model))))
