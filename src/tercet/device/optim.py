"""The optimisers, and their state by name, so that a checkpoint holds whatever tensors one keeps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tercet.device.shard import Trainable
from tercet.recipe import TrainSpec


def optimizer(spec: TrainSpec, trainable: Trainable, rates: dict[str, float]) -> torch.optim.Optimizer:
    """The recipe's optimiser over master weights; `rates` are the peak learning rates of parts, `{"": 1e-5}` of all.

    Every group's `peak` is its rate over the recipe's, for the schedule.
    """
    groups = [{"params": trainable.part(part), "peak": rate / spec.learning_rate} for part, rate in rates.items()]
    options: dict[str, Any] = {"lr": spec.learning_rate, "betas": spec.betas, "eps": spec.eps}
    options["weight_decay"] = spec.weight_decay
    if spec.optimizer == "adamw8bit":
        return _eight_bits(trainable)(groups, **options)
    # one kernel for all master weights, but on CPU it does not take sharded ones
    fused = trainable.mesh.size == 1 or all(master.is_cuda for master in trainable.master_weights)
    return torch.optim.AdamW(groups, fused=fused, foreach=not fused, **options)


def _eight_bits(trainable: Trainable) -> Any:
    """The class of bitsandbytes; refused where its kernels cannot work on the master weights."""
    wanted = 'optimizer = "adamw8bit" keeps its moments on one GPU'
    if trainable.mesh.device.type != "cuda":
        raise ValueError(f'{wanted}, and training runs on {trainable.mesh.device.type}; use optimizer = "adamw"')
    if trainable.mesh.size > 1:
        raise ValueError(f'{wanted}, and placement.ranks is {trainable.mesh.size}; use optimizer = "adamw"')
    if trainable.host is not None:
        raise ValueError(f"{wanted}, and placement.offload keeps them in the host's memory; use one of the two")
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise ValueError(
            'optimizer = "adamw8bit" needs bitsandbytes: pip install \'tercet[bits]\', or use optimizer = "adamw"'
        ) from error
    return AdamW8bit


Counts = dict[str, dict[str, float]]
"""What an optimiser counts for each master weight: `{"layers.0.weight": {"step": 12.0}}`; no entry, no update yet."""


def state_of(optimizer: torch.optim.Optimizer, trainable: Trainable) -> tuple[dict[str, Tensor], Counts]:
    """The optimiser's tensors, `exp_avg.NAME` for instance, and its counts."""
    tensors: dict[str, Tensor] = {}
    counts: Counts = {}
    later: list[tuple[str, str, Tensor]] = []
    for name, master in zip(trainable.names, trainable.master_weights, strict=True):
        for key, value in optimizer.state.get(master, {}).items():
            if isinstance(value, Tensor) and value.dim():
                tensors[f"{key}.{name}"] = value
            elif isinstance(value, Tensor):
                counts.setdefault(name, {})[key] = 0.0
                later.append((name, key, value))
            elif value is not None:
                counts.setdefault(name, {})[key] = float(value)
    numbers = torch.stack([value.double() for *_, value in later]).tolist() if later else []  # a card is asked once
    for (name, key, _), number in zip(later, numbers, strict=True):
        counts[name][key] = number
    return tensors, counts


def prepare(optimizer: torch.optim.Optimizer, trainable: Trainable, counts: Counts) -> None:
    """Give the master weights in `counts`, and no others, a state with these counts, for `state_of` to be loaded into.

    The optimiser makes it itself, by an update that changes nothing: no gradient, no rate. It knows the shapes.
    """
    rates = [group["lr"] for group in optimizer.param_groups]
    master_weights = dict(zip(trainable.names, trainable.master_weights, strict=True))
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    for name in counts:
        master_weights[name].grad = torch.zeros_like(master_weights[name])
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    for name, numbers in counts.items():
        state = optimizer.state[master_weights[name]]
        for key, number in numbers.items():
            state[key] = state[key].fill_(number) if isinstance(state[key], Tensor) else type(state[key])(number)
