"""The verb `trace`: where the words of an answer stand in the rows that a model was trained on."""

from __future__ import annotations

import argparse
import sys
from itertools import groupby
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from tercet.cli.output import emit, say
from tercet.outside import printable
from tercet.store import Artifact, Store

if TYPE_CHECKING:
    from tercet.trace import Trace, TracedSpan

COLOURS = ("green", "yellow", "blue", "magenta", "cyan", "red")


def trace(args: argparse.Namespace) -> int:
    """Print the answer with its spans in colour, and below each span the rows that have it."""
    from tercet.trace import Tracer  # loads numpy and pyarrow, which most verbs do without

    store = Store(args.store)
    artifact = Artifact.read(store.folder(args.artifact))
    text = sys.stdin.read() if args.text == "-" else args.text
    tracer = Tracer.open(store, artifact, _note)
    found = tracer.trace(text, args.prompt, most_spans=args.spans, most_rows=args.rows)
    if args.json:
        return emit({**found.to_json(), "searched": tracer.about})
    console = Console(highlight=False, soft_wrap=False)
    console.print(_coloured(text, found))
    for number, span in enumerate(found.spans):
        _show(console, number, span)
    say(_sum(found))
    for one in tracer.about:
        say(f"searched for {one['stage']}: {one['rows']:,} rows ({one['what']}) of {one['artifact']}")
    return 0


def _note(text: str) -> None:
    sys.stderr.write(printable(text) + "\n")


def _sum(found: Trace) -> str:
    from tercet.trace import SHORTEST

    if not found.spans:
        return f"\nno {SHORTEST} words in a row of these {found.words:,} stand in the rows"
    return f"\n{found.share:.0%} of {found.words:,} words stand in the rows, {SHORTEST} or more in a row"


def _show(console: Console, number: int, span: TracedSpan) -> None:
    """A span and its rows."""
    times = "once" if span.count == 1 else f"{span.count:,} times"
    about = f"  {span.words} words, {times}, rarity {span.rarity:.0f}"
    console.print(Text(f"\n{number + 1}", _style(number)).append(about, ""))
    for row in span.rows:
        source = f"{row.source or 'no source named'} ({row.licence})"
        console.print(Text(printable(f"   {row.stage}: {row.artifact}, row {row.number}, {row.role}; {source}"), "dim"))
        before, after = ("…" if one else "" for one in row.cut)
        shown = Text("   ").append(printable(before + row.text[: row.start]))
        shown.append(printable(row.text[row.start : row.stop]), _style(number))
        console.print(shown.append(printable(row.text[row.stop :] + after)))


def _coloured(text: str, found: Trace) -> Text:
    """The answer; where spans overlap, the rarer one shows."""
    owner = [-1] * len(text)
    for number, span in reversed(list(enumerate(found.spans))):
        owner[span.start : span.stop] = [number] * (span.stop - span.start)
    shown = Text()
    for number, part in groupby(range(len(text)), owner.__getitem__):
        own = list(part)
        shown.append(printable(text[own[0] : own[-1] + 1]), _style(number) if number >= 0 else "")
    return shown


def _style(number: int) -> str:
    return f"bold underline {COLOURS[number % len(COLOURS)]}"
