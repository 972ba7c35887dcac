"""What the monitors of an RL stage said, and where their thresholds lie.

The stage wrote `tercet/alerts.json` and its thresholds stand in its spec; artifacts made before there were monitors
have neither, and the page then says nothing of them.
"""

from __future__ import annotations

import math
from typing import Any

from tercet.report import collect
from tercet.report.charts import Bound, number
from tercet.report.collect import Curve, Object, Stage

ALERT = {"rewarded": "reward", "logp_gap": "gap"}  # metrics whose alert has another name
FROM_BELOW = {"reward": "at or below", "entropy": "below"}  # the other alerts ring above their threshold
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
    """The alerts of a stage as the page shows them, and how many figures were watched; empty where none were."""
    found, monitor = collect.alerts(stage), _monitor(stage)
    if found is None:
        return {}
    rang = [
        {
            "name": alert["alert"],
            "title": NAMES.get(alert["alert"], alert["alert"]),
            "first": alert["round"],
            "last": alert.get("last", alert["round"]),
            "value": _number(alert["value"]),
            "threshold": f"{FROM_BELOW.get(alert['alert'], 'above')} {_number(alert['threshold'])}",
            "message": alert["message"],
        }
        for alert in found
    ]
    return {"stage": stage.name, "rang": rang, "rounds": monitor.get("rounds"), "watched": len(NAMES)}


def bound(stage: Stage, curve: Curve) -> Bound | None:
    """Where the alert of this curve begins; None where nobody watched it."""
    alert = ALERT.get(curve.name, curve.name)
    monitor = _monitor(stage)
    if alert not in NAMES or curve.name in ALERT.values() or alert not in monitor:
        return None
    value = float(monitor[alert])
    if alert == "length":  # a multiple of the first rounds' mean
        first = [length for _, length in curve.points[: monitor["rounds"]]]
        value *= max(1.0, math.fsum(first) / len(first))
    return Bound(value, f"alert {FROM_BELOW.get(alert, 'above')} {number(value)}")


def _monitor(stage: Stage) -> dict[str, Any]:
    found: dict[str, Any] = stage.record.get("spec", {}).get("monitor") or {}
    return found


def _number(value: Any) -> str:
    return number(value) if isinstance(value, int | float) and math.isfinite(value) else "no number"
