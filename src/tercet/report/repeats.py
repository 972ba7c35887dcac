"""How much evaluated models repeat of what was taught: answers with a span that stands verbatim in training rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tercet.report import collect
from tercet.report.collect import Checkpoint, Object, Stage
from tercet.report.samples import by_hash
from tercet.store import Artifact, Store
from tercet.trace import SHORTEST
from tercet.trace.index import opened
from tercet.trace.repeats import longest_spans
from tercet.trace.texts import taught

LARGEST = 32 << 20  # bytes of the tables that are searched: half a minute of work; `tercet trace` has no such limit
ANSWERS = 1000  # of a checkpoint


def measure(points: Sequence[Checkpoint], stages: Mapping[str, Stage], store: Store) -> Object:
    """For every checkpoint the share of its answers with a span in any training rows, and in those of each table.

    All are searched for in the same rows, those of all stages upstream. Answers are chosen by the hash of their names.
    """
    tables = taught(Artifact.read(stage.path) for stage in stages.values() if stage.present)
    size = sum(one.path.stat().st_size for one in tables)
    found: Object = {"shortest": SHORTEST, "size": size, "most": LARGEST, "rows": [], "columns": []}
    if not tables or size > LARGEST:
        return found
    indexes = [opened(store, one) for one in tables]
    found["columns"] = [f"{', '.join(one.stages)}: {one.what}" for one in tables]
    for point in points:
        written = [key for key, line in point.results.items() if line.metric == "accuracy"]
        chosen = by_hash(written, ANSWERS)
        answers = [one.output for one in collect.records(point, set(chosen)).values() if one.output]
        if answers:
            has = [longest_spans(index, answers, SHORTEST) >= SHORTEST for index in indexes]
            found["rows"].append(_row(point.label, has))
    return found


def _row(label: str, has: Sequence[Any]) -> Object:
    """A checkpoint's line: `has` says of each table which answers have a span in it."""
    n, share = len(has[0]), float(sum(has).astype(bool).mean())
    error = math.sqrt(share * (1 - share) / n)
    return {"label": label, "n": n, "share": share, "error": error, "parts": [float(one.mean()) for one in has]}
