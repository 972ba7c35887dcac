"""What the watchers of an RL stage said, and where their thresholds lie (hop 12, reading hop 11 of training).

The stage wrote `tercet/alarms.json` and its thresholds stand in its spec; artefacts made before there were watchers
have neither, and the page then says nothing of them.
"""

from __future__ import annotations

import math
from typing import Any

from tercet.report import facts
from tercet.report.charts import Bound, number
from tercet.report.facts import Curve, Object, Stage

ALARM = {"rewarded": "reward", "logp_gap": "gap"}  # metrics whose alarm has another name
FROM_BELOW = {"reward": "at or below", "entropy": "below"}  # the other alarms ring above their threshold
NAMES = {
    "reward": "hardly any reward",
    "kl": "far from the reference",
    "gap": "writer and trainer disagree",
    "truncated": "many cut completions",
    "length": "much longer than at first",
    "entropy": "hardly any variety",
    "zero_variance": "groups without a signal",
    "repetition": "repeats itself",
    "hollow": "rewarded without an answer",
}


def told(stage: Stage) -> Object:
    """The alarms of a stage as the page shows them, and how many figures were watched; empty where none were."""
    found, watch = facts.alarms(stage), _watch(stage)
    if found is None:
        return {}
    rang = [
        {
            "name": alarm["alarm"],
            "title": NAMES.get(alarm["alarm"], alarm["alarm"]),
            "first": alarm["round"],
            "last": alarm.get("last", alarm["round"]),
            "value": _number(alarm["value"]),
            "threshold": f"{FROM_BELOW.get(alarm['alarm'], 'above')} {_number(alarm['threshold'])}",
            "message": alarm["message"],
        }
        for alarm in found
    ]
    return {"stage": stage.name, "rang": rang, "rounds": watch.get("rounds"), "watched": len(NAMES)}


def bound(stage: Stage, curve: Curve) -> Bound | None:
    """Where the alarm of this curve begins; None where nobody watched it."""
    alarm = ALARM.get(curve.name, curve.name)
    watch = _watch(stage)
    if alarm not in NAMES or curve.name in ALARM.values() or alarm not in watch:
        return None
    value = float(watch[alarm])
    if alarm == "length":  # a multiple of the first rounds' mean
        first = [length for _, length in curve.points[: watch["rounds"]]]
        value *= max(1.0, math.fsum(first) / len(first))
    return Bound(value, f"alarm {FROM_BELOW.get(alarm, 'above')} {number(value)}")


def _watch(stage: Stage) -> dict[str, Any]:
    found: dict[str, Any] = stage.record.get("spec", {}).get("watch") or {}
    return found


def _number(value: Any) -> str:
    return number(value) if isinstance(value, int | float) and math.isfinite(value) else "no number"
