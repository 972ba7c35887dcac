"""Raw records of a public source: a hub data set, a file of a public repository, or a local file in place of either.

A source's path is a hub id (`openai/gsm8k`), a file of the hub (`hf:OWNER/NAME/file.csv`), a file at a pinned commit of
a public repository (`github:OWNER/NAME/path/in/it.txt`) or a local file or folder. A mirror maps such paths to local
ones; its most exact entry wins: `ID/SUBSET:SPLIT`, `ID:SPLIT`, `ID/SUBSET`, `ID`. In a public path, and in a mirror's
file name, `{subset}` and `{split}` are filled in; of a folder, the files of the split are read, below the folder of the
subset where it has one. A revision is a commit; `main` is the newest one, whatever it holds.
"""

from __future__ import annotations

import ast
import csv
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from tercet.hub.downloads import download
from tercet.rows import RowError, Source
from tercet.rows_file import read_file
from tercet.rows_limits import opened

Record = dict[str, Any]
Reader = Callable[[Path], Iterator[Record]]
Placed = Iterator[tuple[Record, str]]  # each record with its place, for messages: "rows.jsonl, row 7"
PART = "_subset"  # key of each record that names the source's subset, where the source is one of several
NUMBER = "_row"  # key of each record but a mere text that holds its number within its source, from 0
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")  # OWNER/NAME
TABLE = re.compile(r"\.(?:(?:jsonl|json|csv|tsv)(?:\.gz)?|parquet)$")  # names of files that hold rows
OPTIONS: dict[str, dict[str, Any]] = {  # what some hub sets need before they can be read
    "allenai/wildjailbreak": {"delimiter": "\t", "keep_default_na": False},
    "Open-Orca/FLAN": {"data_files": "{subset}/*"},
}
COLUMNS = {"allenai/tulu-3-sft-mixture": "source"}  # sets of one table, whose subsets are the values of this column

_SPLITS = r"(?:train|test|val|valid|validation|dev|eval)(?:[-.]|_\d)"


def records(sources: Sequence[Source], mirror: Mapping[str, str]) -> list[Record]:
    """All records of some sources, in order. A local file in place of several sources is read once."""
    found: list[Record] = []
    seen: set[str] = set()
    for source in sources:
        local = local_file(source, mirror)
        if local in seen:
            continue
        own = local != _entry(source, mirror).replace("{split}", source.split) or not local
        part = {PART: source.subset} if own and source.subset else {}
        for number, (row, _) in enumerate(stream(source, mirror, _text_or_rows, whole=True)):
            found.append({**row, **({} if row.keys() == {"text"} else {NUMBER: number}), **part})
        seen |= {local} if local else set()
    return found


def stream(source: Source, mirror: Mapping[str, str], read: Reader = read_file, *, whole: bool = False) -> Placed:
    """The records of one source, each with its place, one at a time; `read` reads a local file.

    A hub data set is streamed, or with `whole` downloaded first, so that it is in the cache next time.
    """
    local = local_file(source, mirror) or (source.path if is_local(source.path) else "")
    if local:
        for file in _files(Path(local).expanduser(), source.split):
            yield from _numbered(file, read)
    elif _is_file(source.path):
        yield from _numbered(download(source), read)
    else:
        yield from _remote(source, whole)


def local_file(source: Source, mirror: Mapping[str, str]) -> str:
    """The file or folder the mirror names for a source, or nothing; of a folder, that of the subset if it has one."""
    local = _entry(source, mirror).replace("{subset}", source.subset).replace("{split}", source.split)
    below = Path(local, source.subset) if local and source.subset else None
    return str(below) if below and below.is_dir() else local


def is_local(path: str) -> bool:
    """Whether a path means a local file or folder: it is there, or is named like a table."""
    return not _is_file(path) and (bool(TABLE.search(path)) or Path(path).expanduser().exists())


def rows_with(found: Sequence[Record], *keys: str) -> list[Record]:
    """Records as rows that have these keys: a table's own, or the first list of such rows in a Python source file.

    The Python source is parsed and never run. RowError where no rows have the keys.
    """
    text = found[0]["text"] if len(found) == 1 and found[0].keys() <= {"text", PART} else None
    rows = list(found) if text is None else list(_literal_rows(text, keys))
    missing = [key for key in keys for row in rows if key not in row]
    if not rows or missing:
        shown = ", ".join(rows[0]) if rows else "no such rows"
        raise RowError(f"expected rows with the keys {', '.join(keys)}, got {shown:.80}")
    return rows


def _entry(source: Source, mirror: Mapping[str, str]) -> str:
    """The mirror's entry, the most exact first: subset and split, split, subset, all of it."""
    path, subset, split = source.path, source.subset, source.split
    keys = (f"{path}/{subset}:{split}", f"{path}:{split}", f"{path}/{subset}", path)
    return next((mirror[key] for key in keys if key in mirror), "")


def _is_file(path: str) -> bool:
    return path.startswith(("github:", "hf:"))


def _files(path: Path, split: str) -> list[Path]:
    """The file itself; of a folder the tables of the split, by their names or their folders', or all if none has one.

    `train-00000-of-00002.parquet`, `train.jsonl.gz` and `train/anything.csv` are of the split `train`; where no name
    says a split, all files are.
    """
    if not path.is_dir():
        return [path]
    names = sorted(file.relative_to(path) for file in path.rglob("*") if TABLE.search(file.name))
    names = [name for name in names if not any(part.startswith(".") for part in name.parts)]  # no hidden ones
    own = re.compile(rf"{re.escape(split)}(?:[-.]|_\d)")
    found = [name for name in names if own.match(name.name) or split in name.parts[:-1]]
    if not found and split == "train" and not any(re.match(_SPLITS, name.name) for name in names):
        found = names
    if not found:
        raise RowError(
            f"{path}: no file named {split}*.jsonl, .json, .csv, .tsv or .parquet (optionally .gz) in this folder; "
            f"name the file itself, or put the split {split!r} there"
        )
    return [path / name for name in found]


def _numbered(path: Path, read: Reader) -> Placed:
    number = 0
    try:
        for number, record in enumerate(read(path), 1):
            yield record, f"{path}, row {number}"
    except RowError:
        raise
    except (OSError, ValueError, RecursionError, NotImplementedError, MemoryError, csv.Error) as error:
        raise RowError(f"{path}: cannot be read after row {number} ({error}); is the file whole and UTF-8?") from error


def _text_or_rows(path: Path) -> Iterator[Record]:
    """Rows of a table; any other text is one record."""
    if TABLE.search(path.name):
        yield from read_file(path)
    elif path.is_file():
        with opened(path) as file:
            yield {"text": file.whole().decode()}
    else:
        raise RowError(f"{path}: no such file; check the mirror")


def _remote(source: Source, whole: bool) -> Placed:
    import datasets

    options = dict(OPTIONS.get(source.path, {}))
    subset = None if source.path in COLUMNS or "data_files" in options else source.subset or None
    if "data_files" in options:
        options["data_files"] = options["data_files"].format(subset=source.subset)
    revision, number = source.revision or None, 0
    try:
        rows = datasets.load_dataset(
            source.path, subset, split=source.split, revision=revision, streaming=not whole, **options
        )
        for number, row in enumerate(rows, 1):
            yield dict(row), f"{source.path}, row {number}"
    except RowError:
        raise
    except (OSError, ValueError) as error:
        raise RowError(
            f"{source.path} (revision {revision}): could not be read from the hub after row {number} "
            f"({type(error).__name__}: {error}); check the id and the network, or name a local file for it in the "
            f'mirror: `--mirror FILE.toml` with the line "{source.path}" = "rows.jsonl" under [mirror]'
        ) from error


@cache
def _literal_rows(text: str, keys: tuple[str, ...]) -> tuple[Record, ...]:
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # no Python, or brackets without end
        return ()
    for node in ast.walk(tree):
        if isinstance(node, ast.List) and node.elts and all(isinstance(part, ast.Dict) for part in node.elts):
            try:
                rows = ast.literal_eval(node)
            except (ValueError, RecursionError, MemoryError):  # not made of literals alone
                continue
            if all(key in row for row in rows for key in keys):
                return tuple(rows)
    return ()
