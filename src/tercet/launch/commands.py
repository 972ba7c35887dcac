"""The command line that starts a stage where its placement says; a dry run prints the same one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tercet.argv import Outside, command
from tercet.launch.shared_store import FOLDER
from tercet.recipe import Placement, RecipeError

FIRST_PORT, PORTS = 15_000, 15_000  # below those that systems give to whoever asks for any
SLURM_NODES = "SLURM_JOB_NODELIST"  # what an allocation calls its machines
NO_ALLOCATION = (
    'placement.launch is "slurm", and this is no allocation: run it inside sbatch or salloc, which set '
    f"{SLURM_NODES} (docs/cluster.md)"
)
Words = list[str | Outside]


@dataclass(frozen=True)
class Started:
    """What is to be started: the draft of a stage, its key, and whether its kind trains in several ranks.

    `joined`: on a machine that takes part in a run of another one.
    """

    draft: Path
    key: str
    parallel: bool
    joined: bool = False


def argv(placement: Placement, started: Started, host: str = "") -> list[str]:
    """The command line of a stage; `host` is the machine where several meet, asked of the launcher when absent.

    One process is `python -m tercet.stage`. Ranks on one machine are torchrun's, which finds a port by itself; on
    several, a torchrun on each meets the others at one address, under the key's name. SLURM starts them by srun, Ray
    by a placement group with one bundle a machine. Under `env` they are there: this process is one of them.
    """
    own: Words = ["-m", "tercet.stage", "--draft", Outside(started.draft)]
    if placement.ranks == 1 or not started.parallel:
        return command(sys.executable, *own)
    own = [*own, "--rank"]
    if placement.launch == "env":
        return command(sys.executable, *own)
    per_node: Words = ["--nproc-per-node", Outside(placement.per_node)]
    words: Words = ["-m", "torch.distributed.run", *_meeting(placement, started, host), *per_node, *own]
    return command(*_before(placement, started), *words)


def _before(placement: Placement, started: Started) -> Words:
    """What starts a torchrun on each machine; Python alone where it is started here, or by whoever joins."""
    nodes = Outside(placement.nodes)
    if placement.launch == "slurm":  # all cores of a machine to its one task, and no machine outlives another
        spread: Words = ["--nodes", nodes, "--ntasks-per-node", "1", "--cpu-bind=none", "--kill-on-bad-exit=1"]
        return ["srun", *spread, sys.executable]
    if placement.launch == "ray":
        where: Words = ["--nodes", nodes, "--gpus", Outside(placement.gpus), "--logs", Outside(started.draft / FOLDER)]
        return [sys.executable, "-m", "tercet.device.ray_nodes", *where, "--"]
    return [sys.executable]


def _meeting(placement: Placement, started: Started, host: str) -> Words:
    """Where torchruns meet: nowhere for one alone, at an address for several (which Ray's launcher adds)."""
    if placement.nodes == 1:
        return ["--standalone"]
    words: Words = ["--nnodes", Outside(placement.nodes), "--max-restarts", "0"]
    words += ["--rdzv-id", Outside(started.key), "--rdzv-backend", "c10d"]
    if placement.launch == "ray":
        return words
    words += ["--rdzv-endpoint", Outside(endpoint(placement, started.key, host))]
    if placement.launch == "slurm":  # one command for all: the first is found by its name
        return words
    return [*words, "--rdzv-conf", "is_host=0" if started.joined else "is_host=1"]  # an address need not tell it


def endpoint(placement: Placement, key: str, host: str = "") -> str:
    """HOST:PORT where the machines of a stage meet; another port for each key, so that two runs do not meet."""
    if placement.rendezvous:
        return placement.rendezvous
    host = host or (slurm_host() if placement.launch == "slurm" else socket.gethostname())
    return f"{host}:{FIRST_PORT + int(key, 16) % PORTS}"


def slurm_host() -> str:
    """The first machine of this allocation, as SLURM lists it."""
    if not os.environ.get(SLURM_NODES):
        raise RecipeError(NO_ALLOCATION)
    listed = subprocess.run(command("scontrol", "show", "hostnames"), capture_output=True, text=True, check=False)
    if listed.returncode or not listed.stdout.split():
        raise RecipeError(f"`scontrol show hostnames` did not list this allocation's machines: {listed.stderr.strip()}")
    return listed.stdout.split()[0]
