"""`launch = "env"`: what the surroundings say of this process, which is one rank of every training stage."""

from __future__ import annotations

from collections.abc import Mapping

from tercet.launch.commands import endpoint
from tercet.recipe import Placement, RecipeError

NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR")


def rank(placement: Placement, found: Mapping[str, str]) -> int:
    """The rank that an environment gives this process; refused where it gives none, or speaks of another number."""
    if absent := [name for name in NEEDED if not found.get(name)]:
        raise RecipeError(
            f'placement.launch is "env", and {" and ".join(absent)} is not set: start `tercet run` once for each rank '
            "with RANK, WORLD_SIZE and MASTER_ADDR, as torchrun and mpirun do, or take another launch (docs/cluster.md)"
        )
    number, world = found["RANK"], found["WORLD_SIZE"]
    if not (number.isdecimal() and world == str(placement.ranks) and int(number) < placement.ranks):
        raise RecipeError(
            f"RANK is {number} and WORLD_SIZE {world}, and this placement has {placement.ranks} ranks: expected a "
            f"WORLD_SIZE of {placement.ranks} and a RANK below it; change placement.nodes and gpus, or what starts them"
        )
    return int(number)


def variables(placement: Placement, key: str, found: Mapping[str, str]) -> dict[str, str]:
    """What torch reads in a rank of the stage with this key.

    Stages meet at ports of their own: what started this process may use MASTER_PORT itself, and a port of the stage
    before may not be free yet.
    """
    number = rank(placement, found)
    host, _, port = endpoint(placement, key, found["MASTER_ADDR"]).rpartition(":")
    return {
        "RANK": str(number),
        "WORLD_SIZE": str(placement.ranks),
        "LOCAL_RANK": found.get("LOCAL_RANK") or str(number % placement.per_node),
        "LOCAL_WORLD_SIZE": str(placement.per_node),
        "MASTER_ADDR": host,
        "MASTER_PORT": port,
    }
