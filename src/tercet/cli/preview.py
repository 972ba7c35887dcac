"""`tercet data FILE`, printed or as a page: layout, what is bad or left behind, lengths, rows with their mask."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tercet import hub, pipeline
from tercet.cli.models import model_folder
from tercet.cli.output import emit, say, table, waiting
from tercet.data.preview import QUANTILES, Entry, Measure, Preview, is_trained, need_of, words_of
from tercet.outside import printable
from tercet.recipe import SourceSpec
from tercet.rows import DetailedMessage, Message, Pair, Row, Unpaired
from tercet.store import Store

if TYPE_CHECKING:
    from tercet.models.chat import Chat

LONGEST = 600  # characters of a text that are shown
ON_PAGE = 60  # rows
CONTEXT, TRAINED, REJECTED = "", "green", "red"  # styles of what is shown

Line = tuple[str, list[tuple[str, str]]]  # a name, and texts with their styles


def is_rows(name: str, store: Store, mirror: dict[str, str]) -> bool:
    """Whether the command line names rows (a file, a folder of files, what the mirror has), and not an artifact."""
    path = Path(name)
    if path.is_dir():
        return not (path / "artifact.json").is_file() and not (store.root / name / "artifact.json").is_file()
    return hub.is_local(name) or name in mirror


def rows(args: argparse.Namespace, page: Path | None = None) -> int:
    """Read a file as a recipe would, and print what it becomes; exit code 2 where nothing can be read."""
    mirror = pipeline.read_mirror(args.mirror)
    source = SourceSpec(path=args.artifact, adapter=args.adapter)
    chat = _chat(args) if args.model else None
    found = Preview(f"tokens of {args.model}" if chat else "words")
    need, measure = args.need or need_of(source, mirror), _tokens(chat) if chat else words_of
    most = max(args.rows, ON_PAGE) if page else args.rows
    waiting(found.read(source, need, mirror, measure, most), f"rows of {Path(args.artifact).name}")
    if page:
        _write_page(args, found, need, page)
    found.first = found.first[: args.rows]
    if args.json:
        emit({"file": args.artifact, "need": need, **found.plain()} | ({"page": str(page)} if page else {}))
    else:
        _say_account(found)
        _say_rows(found, chat)
        if found.problem and found.reading.bad.total() < max(1, found.reading.read):  # else the table has said it
            say(found.problem)
    return 0 if found.reading.kept else 2


def _write_page(args: argparse.Namespace, found: Preview, need: str, page: Path) -> None:
    from tercet.report.data_page import write_file_page

    page.parent.mkdir(parents=True, exist_ok=True)
    write_file_page(Path(args.artifact).name, need, found.plain(), found.first, page)


def _chat(args: argparse.Namespace) -> Chat:
    from tercet.models.chat import open_chat

    return open_chat(model_folder(args))


def _tokens(chat: Chat) -> Measure:
    """Lengths in tokens, as training would see them: with the template, all texts of a row that splits."""
    from tercet.models.chat import last_turn

    def measure(entry: Entry) -> dict[str, int]:
        if isinstance(entry, Pair):
            (prompt, good), (_, bad) = (last_turn(chat.encode(side)) for side in (entry.chosen, entry.rejected))
            return {"prompt": len(prompt), "chosen": len(good), "rejected": len(bad)}
        if not _is_target(entry):
            return {"prompt": len(chat.prompt_ids(entry.prompt))}
        encoded = chat.encode(entry.messages)
        texts = (*encoded.others, encoded)
        return {"row": sum(len(one.token_ids) for one in texts), "trained": sum(sum(one.mask) for one in texts)}

    return measure


def _say_account(found: Preview) -> None:
    """How the file is read, how many rows became what, and how long they are."""
    reading = found.reading
    for line in reading.said:
        say(line)
    counts = {"kept": reading.kept, "left out": reading.skipped.total(), "bad": reading.bad.total()}
    say(
        f"{reading.read:,} rows read: "
        + ", ".join(f"{n:,} {name}" for name, n in counts.items() if n or name == "kept")
    )
    bad = [(f"{n:,}", name, reading.examples[name][0]) for name, n in reading.bad.most_common()]
    _say_table(("rows", "bad because", "the first of them"), bad)
    _say_table(("rows", "left out because"), _counted(reading.skipped))
    _say_table(("rows", "left behind: nothing reads it"), _counted(reading.left))
    _say_table(("rows", "refused by the model's template"), _counted(found.refused))
    _say_table(("rows", "graded by"), _counted(found.verifiers))
    names = ("part", *(name for name, _ in QUANTILES), "sum")
    lengths = [(line["part"], *(f"{line[name]:,}" for name in names[1:])) for line in found.table()]
    _say_table((found.counted, *names[1:]), lengths)


def _counted(counts: Counter[str]) -> list[tuple[str, ...]]:
    return [(f"{number:,}", name) for name, number in counts.most_common()]


def _say_table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    if lines:
        say("")
        table(head, lines)


def _say_rows(found: Preview, chat: Chat | None) -> None:
    """The first rows, what is trained of them in colour, or between marks where there is none."""
    console = Console(highlight=False)
    for number, entry in enumerate(found.first, 1):
        head = f"row {number} of {found.reading.kept:,}: {entry.id + _about(entry)}"
        print_row(console, head, _rendered(entry, chat) if chat else _turns(entry))


def print_row(console: Console, head: str, lines: Iterable[Line]) -> None:
    """A row's texts below its name, what is trained of them in colour, or between marks where there is none."""
    marked = not console.is_terminal or console.no_color
    console.print(Text(f"\n{printable(head)}", "bold"))
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True, style="dim")
    grid.add_column(overflow="fold")
    for name, runs in lines:
        printed = [(printable(cut(text)), style) for text, style in runs]
        marks = (f"⟦{text}⟧" if marked and style else text for text, style in printed)
        grid.add_row(name, Text.assemble(*zip(marks, (style for _, style in printed), strict=True)))
    console.print(grid)


def _about(entry: Entry) -> str:
    """What a row says of its answer: who grades it against what, or how it is labelled."""
    if isinstance(entry, Unpaired):
        return ", labelled good" if entry.good else ", labelled bad"
    return f", {entry.verifier}: {cut(entry.reference)!r}" if isinstance(entry, Row) and entry.verifier else ""


def _style(entry: Entry) -> str:
    return REJECTED if isinstance(entry, Unpaired) and not entry.good else TRAINED


def _turns(entry: Entry) -> Iterator[Line]:
    """The turns of a row by their roles, without a model."""
    target = isinstance(entry, Row) and _is_target(entry)
    for turn in entry.prompt if isinstance(entry, Pair) else entry.messages:
        yield from _turn(turn, turn.role, _style(entry) if target and is_trained(turn) else CONTEXT)
    if isinstance(entry, Pair):
        yield from _turn(entry.chosen[-1], "chosen", TRAINED)
        yield from _turn(entry.rejected[-1], "rejected", REJECTED)


def _turn(turn: Message, name: str, style: str) -> Iterator[Line]:
    """A turn with its details, each on a line of its own."""
    more = turn if isinstance(turn, DetailedMessage) else DetailedMessage("", "")
    said = turn.content if turn.content or not more.tool_calls else ""
    parts = {"tools": (more.tools, CONTEXT), "thought": (more.thought, style), name: (said, style)}
    for label, (text, own) in (parts | {"calls": (more.tool_calls, style)}).items():
        if text or (label == name and not more.tool_calls):
            yield label, [(text, own)]


def _rendered(entry: Entry, chat: Chat) -> Iterator[Line]:
    """The texts that the model would read of a row, in runs of what is trained and what is not."""
    if isinstance(entry, Row) and not _is_target(entry):
        yield "prompt", [(chat.prompt_text(entry.prompt), CONTEXT)]
        return
    sides = {"row": entry.messages} if isinstance(entry, Row) else {"chosen": entry.chosen, "rejected": entry.rejected}
    for name, turns in sides.items():
        style = REJECTED if name == "rejected" else _style(entry)
        try:
            encoded = chat.encode(turns)
        except ValueError as error:
            yield "refused", [(str(error), CONTEXT)]
            continue
        for one in (*encoded.others, encoded):
            yield name, [(text, style if trained else CONTEXT) for trained, text in chat.runs(one)]


def _is_target(row: Row) -> bool:
    """Whether a row has an answer to train; beside a verifier it is a prompt."""
    return row.answer is not None and not row.verifier


def cut(text: str) -> str:
    """A text, without its middle where it is long."""
    half = LONGEST // 2
    return text if len(text) <= LONGEST else f"{text[:half]} … {len(text) - LONGEST:,} characters … {text[-half:]}"
