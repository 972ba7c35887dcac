"""What the command line prints: plain lines, JSON, tables."""

from __future__ import annotations

import json
import math
import re
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tercet import trackers
from tercet.inline import score_rows
from tercet.outside import printable, printable_json
from tercet.records import Score, read_scores
from tercet.store import Artifact
from tercet.track import UNLEARNED, learned_nothing

_WHOLE = re.compile(r"[-+$~]?\d[\d.,]*(?:e[-+]?\d+)?(?: ± \d[\d.,]*)?[%BM]?|[0-9a-f]{12}|[-?]?")
WAIT = 2.0  # seconds after which a terminal shows how far some work is


def say(text: str) -> None:
    """One line (or several) on standard output, without what a terminal would obey."""
    sys.stdout.write(printable(text) + "\n")


def emit(value: Any) -> int:
    """JSON on standard output; NaN becomes null. Returns exit code 0."""
    say(printable_json(json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False, default=str)))
    return 0


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A table; on a terminal it fits its width and texts wrap, but no number or key; elsewhere nothing is cut."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    lines = [[printable(str(cell)) for cell in row] for row in rows]
    for number, title in enumerate(head):
        whole = all(_WHOLE.fullmatch(line[number]) for line in lines)
        grid.add_column(Text(printable(title)), overflow="fold", no_wrap=whole)
    for line in lines:
        grid.add_row(*map(Text, line))
    if not console.is_terminal:
        console = Console(width=max(80, console.measure(grid, options=console.options.update(width=10_000)).maximum))
    console.print(grid)


def waiting(counts: Iterable[int], what: str) -> None:
    """Work through `counts`, each how much is done so far; after two seconds a terminal shows it."""
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(), TextColumn("{task.completed:,} {task.description}"), TimeElapsedColumn())
    shown = Progress(*columns, console=Console(stderr=True), transient=True)
    task, begin, last = shown.add_task(escape(printable(what)), total=None), time.monotonic(), 0.0
    try:
        for count in counts:
            if (now := time.monotonic()) - begin > WAIT and now - last > 0.1:
                shown.start()
                shown.update(task, completed=count)
                last = now
    finally:
        shown.stop()


def scores_table(evaluations: Mapping[str, Mapping[str, Score]]) -> None:
    """Tasks down, evaluations across, each score with its standard error."""
    table(*score_rows(evaluations))


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def print_results(made: dict[str, Artifact]) -> None:
    """The scores of every evaluation and where the page is."""
    evaluations = {name: artifact for name, artifact in made.items() if artifact.kind == "eval"}
    if evaluations:
        scores_table({name: read_scores(artifact.payload) for name, artifact in evaluations.items()})
    for name, artifact in made.items():
        if learned_nothing(artifact.metrics):
            say(f"warning: {name} {UNLEARNED}")
    for artifact in made.values():
        if artifact.kind == "report":
            say(f"report: {artifact.payload / 'index.html'}")
    for text in trackers.places(artifact.path for artifact in made.values()):
        say(text)
