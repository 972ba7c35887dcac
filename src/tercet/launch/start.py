"""How a stage's process becomes the one that starts its ranks."""

from __future__ import annotations

import os
import runpy
import signal
import sys

from tercet import machine
from tercet.launch.commands import Started, argv
from tercet.machine import RANKS
from tercet.recipe import Placement
from tercet.stop import PARENT


def parent() -> int | None:
    """The process that started this one, where it told."""
    return int(told) if (told := os.environ.get(PARENT)) else None


def ranks(placement: Placement, started: Started) -> int:
    """Run the launcher of a placement in this process, so that it ends with its parent; returns its exit code.

    torchrun and srun hand signals to the ranks. A kill of the parent kills torchrun, and so all its ranks, which could
    not agree in time; srun and Ray's driver are asked to end, as killed ones would leave their ranks to themselves.
    """
    words = argv(placement, started)
    for name in RANKS:
        os.environ.pop(name, None)
    machine.die_with_parent(signal.SIGKILL if placement.launch == "torchrun" else signal.SIGTERM, parent())
    if placement.launch != "torchrun":
        os.environ.pop(PARENT, None)  # it is not what the ranks are started by
        os.execvp(words[0], words)
    os.environ[PARENT] = str(os.getpid())
    sys.argv[1:] = words[3:]
    try:
        runpy.run_module("torch.distributed.run", run_name="__main__", alter_sys=True)
    except Exception as error:
        if number := getattr(error, "sigval", 0):  # of torchrun's SignalException
            return 128 + int(number)
        raise
    return 0
