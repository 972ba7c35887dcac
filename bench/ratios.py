"""What the trainers' comparisons say beyond their table: times the speed, share of the memory, time of each phase."""

from __future__ import annotations

import json
from typing import Any

import peer

MEMORY = 0.7  # of the peer's peak: at least 30 % less
PHASES = ("generate", "grade", "score", "forward_backward", "optimizer", "other")


def show(name: str, sides: list[peer.Side], *, rate: str, speed: float) -> None:
    """Print what the first side makes of every other against the aims, and keep it in results/NAME.json."""
    if any(not side.rounds for side in sides):
        return  # only one side was asked for
    mine, found = peer.medians(sides[0]), {}
    for side in sides[1:]:
        other = peer.medians(side)
        faster, smaller = mine[rate] / other[rate], mine["peak_mib"] / other["peak_mib"]
        found[side.name] = {"speed": faster, "memory": smaller}
        print(
            f"against {side.name}: {faster:.2f} times the speed ({_aim(speed, faster >= speed)}), "
            f"{smaller:.2f} of the peak memory ({_aim(MEMORY, smaller <= MEMORY)})"
        )
    keep(name, {"ratios": found, "aims": {"speed": speed, "memory": MEMORY}})


def keep(name: str, more: dict[str, Any]) -> None:
    """Add to a result that `peer` has written."""
    path = peer.RESULTS / f"{name}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | more, indent=1) + "\n")


def phases(sides: list[peer.Side]) -> dict[str, dict[str, float]]:
    """Print the seconds of each phase in a step (the first step of a measurement left out) and their share of it."""
    found = {side.name: _phases(side) for side in sides if side.rounds}
    print(f"\n| seconds a step | {' | '.join(found)} |\n|---|{'--:|' * len(found)}")
    for phase in PHASES:
        cells = [f"{seconds[phase]:.2f} ({seconds[phase] / sum(seconds.values()):.0%})" for seconds in found.values()]
        print(f"| {phase.replace('_', ', ')} | {' | '.join(cells)} |")
    return found


def _phases(side: peer.Side) -> dict[str, float]:
    """Mean seconds of each phase over the counted steps of all rounds; `other` is what no phase claims."""
    counted = sum(len(figures["seconds"]) - 1 for figures in side.rounds)
    means = {
        phase: sum(sum(figures["phases"].get(phase, [])[1:]) for figures in side.rounds) / counted
        for phase in PHASES[:-1]
    }
    whole = sum(sum(figures["seconds"][1:]) for figures in side.rounds) / counted
    return means | {"other": max(0.0, whole - sum(means.values()))}


def _aim(aim: float, reached: bool) -> str:
    return f"aim {aim:g}: {'reached' if reached else 'missed'}"
