"""The variables that a stage's processes start with."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from tercet import machine
from tercet.recipe import Placement

JOINED = "TERCET_JOINED"  # set where a stage is started on a machine that has joined the run
TORCHRUN = ("TORCHELASTIC_", "ROLE_", "GROUP_WORLD_SIZE", "PET_")


def believed(found: Mapping[str, str]) -> dict[str, str]:
    """An environment without what a cluster says of ranks."""
    return {name: value for name, value in found.items() if name not in machine.RANKS and not name.startswith(TORCHRUN)}


def environment(placement: Placement, *, parallel: bool = False, records: Path | None = None) -> dict[str, str]:
    """Variables of a stage's process: threads, one hash seed, no progress bars in the log.

    `records` is the folder for what NCCL knows of its last collectives.
    """
    ranks = placement.per_node if parallel else 1
    threads = str(placement.threads or max(1, machine.cores() // (ranks * placement.at_once)))
    pools = ("OMP", "MKL", "OPENBLAS", "NUMEXPR")
    return {
        **{f"{pool}_NUM_THREADS": threads for pool in pools},
        "GOMP_SPINCOUNT": "10000",  # with long spins threads crawl as soon as another program wants a core
        "PYTHONHASHSEED": "0",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",  # a tracker tells its own server, and nobody else
        "WANDB_ERROR_REPORTING": "false",
        "PYTHONUNBUFFERED": "1",
        **(_allocator() if parallel else {}),
        **(_recorder(records) if parallel and placement.ranks > 1 and records else {}),
    }


def _allocator() -> dict[str, str]:
    """Let a trainer's memory on a card grow in place, unless the user set something else.

    Batches of changing lengths would leave holes in it.
    """
    own = {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF"} & set(os.environ)
    return {"PYTORCH_ALLOC_CONF": "expandable_segments:True"} if not own else {}


def _recorder(records: Path) -> dict[str, str]:
    """NCCL's flight recorder: each rank's last collectives, written when one of them waits too long; user's first."""
    found = {
        "TORCH_FR_BUFFER_SIZE": "2000",
        "TORCH_FR_DUMP_TEMP_FILE": str(records / "nccl-"),  # and the rank's number
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",  # a collective that failed ends its process
    }
    return {name: value for name, value in found.items() if name not in os.environ}
