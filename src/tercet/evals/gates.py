"""Gates: what an evaluation must show for the run to go on, e.g. `words >= eval-sft - 0.01` or `talk <= 7.5`.

Only a *significant* regression stops the pipeline: a gate fails when the whole 95 % interval of the paired difference
to its bound lies on the wrong side.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tercet.evals.compare import compare, load
from tercet.evals.task import TaskError
from tercet.recipe import Gate, gate
from tercet.stats import GateError, interval, level


def named(wanted: Gate, tasks: Sequence[str]) -> str:
    """The evaluation task a gate means; the version may be left out."""
    found = [name for name in tasks if wanted.task in (name, name.partition("@")[0])]
    if len(found) != 1:
        raise TaskError(
            f"gate {wanted.text!r}: {wanted.task!r} names {len(found)} tasks of this evaluation ({', '.join(tasks)})"
        )
    return found[0]


def check(require: Sequence[str], results: Path, baselines: dict[str, Path]) -> None:
    """Raise `GateError` naming every gate that these results significantly miss."""
    tasks = list(dict.fromkeys(result.task for result in load(results)))
    reasons = [_missed(wanted, named(wanted, tasks), results, baselines) for wanted in map(gate, require)]
    if any(reasons):
        raise GateError("; ".join(filter(None, reasons)))


def _missed(wanted: Gate, task: str, results: Path, baselines: dict[str, Path]) -> str:
    """Why a gate is missed, or nothing."""
    if wanted.stage:
        row = compare(baselines[wanted.stage], results, tasks=[task])[0]
        low, high = row.low - wanted.offset, row.high - wanted.offset
        seen = f"{row.b:.4f} against {row.a:.4f} in {wanted.stage}"
    else:
        own = [result for result in load(results) if result.task == task]
        quoted = level(own)
        low, high = (bound - wanted.offset for bound in interval(own, quoted)[:2])
        seen = f"{quoted.value:.4f}"
    if not (high < 0 if wanted.at_least else low > 0):
        return ""
    return f"gate `{wanted.text}` missed: {seen}; 95 % interval of the distance to the bound [{low:+.4f}, {high:+.4f}]"
