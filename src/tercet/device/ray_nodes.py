"""Ray as a launcher: a torchrun on each machine of a Ray cluster. The ranks are torchrun's, as everywhere.

    python -m tercet.device.ray_nodes --nodes 4 --gpus 8 --logs DIR -- -m torch.distributed.run --nnodes 4 …

A placement group has one bundle for each machine; the first machine says at which address the torchruns meet.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tercet import machine
from tercet.argv import command
from tercet.stop import WITHIN

FREE_WITHIN = 300.0  # seconds for the machines to be free
OWN = ("CUDA_VISIBLE_DEVICES", "HOSTNAME", "TMPDIR")  # of each machine: Ray chooses the cards of an actor


class RayError(RuntimeError):
    """Ray cannot start the ranks; the message says what is missing."""


class Torchrun:
    """One torchrun on the machine of a bundle; its output goes into the store."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None

    def address(self) -> str:
        """This machine, and a port that is free on it now."""
        import ray

        with socket.socket() as found:
            found.bind(("", 0))
            return f"{ray.util.get_node_ip_address()}:{found.getsockname()[1]}"

    def run(self, words: list[str], variables: dict[str, str], folder: str, logs: str) -> int:
        """Run it to its end; returns its exit code."""
        with open(Path(logs) / f"{socket.gethostname()}-{os.getpid()}.log", "ab") as log:
            self._child = subprocess.Popen(
                command(sys.executable, *words),
                env=os.environ | variables,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=partial(machine.die_with_parent, signal.SIGKILL),  # which Ray may end by force
            )
        return self._child.wait()

    def signal(self, number: int) -> None:
        """Hand a signal on."""
        if self._child is not None and self._child.poll() is None:
            self._child.send_signal(number)


def main(argv: Sequence[str] | None = None) -> int:
    """Start a torchrun on each machine; the exit code of the first that fails."""
    parser = argparse.ArgumentParser(prog="python -m tercet.device.ray_nodes", description=__doc__)
    parser.add_argument("--nodes", type=int, required=True, help="machines")
    parser.add_argument("--gpus", type=int, required=True, help="cards of each machine; 0 on a cluster without")
    parser.add_argument("--logs", type=Path, required=True, help="folder of a shared file system for their output")
    parser.add_argument("words", nargs="+", help="behind --: the words of torchrun")
    args = parser.parse_args(argv)
    import ray

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    ray.init(address="auto", log_to_driver=False)
    return _follow(_actors(args.nodes, args.gpus), args.words, str(args.logs), alone=args.nodes == 1)


def _actors(nodes: int, gpus: int) -> list[Any]:
    """An actor on each machine that has so many free cards; RayError where there are not enough within minutes."""
    import ray
    from ray.util.placement_group import placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    bundle = {"CPU": 1, **({"GPU": gpus} if gpus else {})}
    group = placement_group([bundle] * nodes, strategy="STRICT_SPREAD")
    if not group.wait(FREE_WITHIN):
        there = [{key: node["Resources"].get(key, 0) for key in bundle} for node in ray.nodes() if node["Alive"]]
        raise RayError(
            f"Ray has not {nodes} machines with {bundle} free within {FREE_WITHIN:g} s; it has {there}: change "
            "placement.nodes and gpus, or wait for other jobs"
        )
    made = ray.remote(Torchrun)
    return [
        made.options(
            num_cpus=1,
            num_gpus=gpus,
            max_concurrency=2,  # a signal comes while it runs
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=number),
        ).remote()
        for number in range(nodes)
    ]


def _follow(actors: Sequence[Any], words: list[str], logs: str, *, alone: bool) -> int:
    """Run the torchruns until all have ended or one has failed; asked to end, ask them, and wait a while."""
    import ray

    first = ray.get(actors[0].address.remote())
    variables = {
        name: value for name, value in os.environ.items() if name not in OWN and not name.startswith(("RAY_", "_RAY"))
    }
    running = []
    for number, actor in enumerate(actors):  # torchrun cannot tell by an address alone that it is this machine's
        meeting = [] if alone else ["--rdzv-endpoint", first, "--rdzv-conf", f"is_host={int(number == 0)}"]
        running.append(actor.run.remote([*words[:2], *meeting, *words[2:]], variables, str(Path.cwd()), logs))
    try:
        while running:
            done, running = ray.wait(running)
            if code := ray.get(done[0]):
                return int(code)
        return 0
    except KeyboardInterrupt:
        for actor in actors:
            actor.signal.remote(signal.SIGTERM)
        ray.wait(running, num_returns=len(running), timeout=WITHIN)
        return 128 + signal.SIGTERM
    finally:
        for actor in actors:
            ray.kill(actor)


if __name__ == "__main__":
    sys.exit(main())
