"""The alerts of an RL stage, and the thresholds of its monitors.

The stage wrote `tercet/alerts.json`, and its thresholds stand in its spec. Artifacts made before there were monitors
have neither; the page then shows no alerts.
"""

from __future__ import annotations

import math
from typing import Any

from tercet.report.charts import Bound
from tercet.report.collect import TITLES, Curve, Object, Stage, read_json
from tercet.report.labels import number

ALERT = {"rewarded": "reward", "logp_gap": "gap"}  # metrics whose alert has another name
FROM_BELOW = {"reward": "at or below", "entropy": "below"}  # the other alerts are raised above their threshold
NAMES = TITLES["alerts"]


def summary(stage: Stage) -> Object:
    """The alerts of a stage as the page shows them; empty where it had no monitors, or its folder is gone."""
    path = stage.file("tercet/alerts.json")
    if not path:
        return {}
    raised = [
        {
            "name": alert["alert"],
            "title": NAMES.get(alert["alert"], alert["alert"]),
            "first": alert["round"],
            "last": alert.get("last", alert["round"]),
            "value": _number(alert["value"]),
            "threshold": f"{FROM_BELOW.get(alert['alert'], 'above')} {_number(alert['threshold'])}",
            "message": alert["message"],
        }
        for alert in read_json(path, list)
    ]
    return {"stage": stage.name, "raised": raised, "rounds": _monitor(stage).get("rounds"), "monitored": len(NAMES)}


def bound(stage: Stage, curve: Curve) -> Bound | None:
    """The threshold of this curve's alert; None where it has none."""
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
