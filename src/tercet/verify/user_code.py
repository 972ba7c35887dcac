"""Code that a recipe names and this package does not have: a user's file, `my_reward.py:score`, or an installed module.

Of a file the digest covers what stands beside it and is imported by it too, so that an edit of either makes results
stale. A relative path starts at the current folder, which for a stage is that of its recipe.
"""

from __future__ import annotations

import ast
import gzip
import hashlib
import importlib.util
import pkgutil
import re
import sys
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from tercet.folders import file_digest
from tercet.journal import make_folder, replace
from tercet.store import source_digest

NAME = re.compile(r".+\.py:[^\W\d]\w*")
IN_TEXT = r"[\w./~-]+\.py:[A-Za-z_]\w*"


class UserCodeError(ValueError):
    """A user's file cannot be read or imported, or lacks what was named; the message says what to do."""


def is_user_code(name: str) -> bool:
    """Whether a name is that of something in a file: `my_reward.py:score`."""
    return NAME.fullmatch(name) is not None


def located(name: str, folder: Path = Path()) -> str:
    """The same name with the absolute path of its file, which must exist; relative paths start at `folder`."""
    path, _, what = name.rpartition(":")
    found = (folder / Path(path).expanduser()).resolve()
    if not found.is_file():
        raise UserCodeError(f"{name!r}: there is no file {found}; paths start at the recipe's folder")
    return f"{found}:{what}"


def pinned(where: str) -> str:
    """`sha256:` and the digest of the code behind a located name, or behind `module:name` of an installed package."""
    own = is_user_code(where)
    files = _with_imported(Path(where.rpartition(":")[0])) if own else [_file_of(where.partition(":")[0])]
    digests = [(file.name, file_digest(file)) for file in files]
    total = digests[0][1] if len(digests) == 1 else hashlib.sha256(repr(sorted(digests)).encode()).hexdigest()
    return f"sha256:{total}"


def named_in(file: Path, cache: Path, installed: Iterable[str] = ()) -> list[str]:
    """What may be the name of user code in a file of rows: `my_reward.py:score`, or one of the `installed` names.

    Remembered by the file's digest.
    """
    others = (r'(?<=["\s,])' + re.escape(name) for name in sorted(installed))
    names = re.compile("|".join([IN_TEXT, *others]).encode())
    entry = cache / f"code-{source_digest(file, cache)}-{hashlib.sha256(names.pattern).hexdigest()[:8]}"
    if not entry.is_file():
        texts, found = _verifier_column(file) if file.suffix == ".parquet" else _lines(file, installed), set[str]()
        with suppress(OSError, EOFError, ValueError, zlib.error):  # who reads the rows says what is wrong with the file
            found.update(name.decode() for text in texts for name in names.findall(text))
        make_folder(cache)
        replace(entry, "\n".join(sorted(found)))
    return entry.read_text(encoding="utf-8").splitlines()


def load(where: str) -> Any:
    """What a located name, or `module:name`, means; a file is imported as a script is, with its folder on the path."""
    if not is_user_code(where):
        return pkgutil.resolve_name(where)
    path, _, what = where.rpartition(":")
    module = _imported(path)
    if not hasattr(module, what):
        public = ", ".join(name for name in vars(module) if not name.startswith("_")) or "nothing"
        raise UserCodeError(f"{path} has no {what!r}; it has {public}")
    return getattr(module, what)


def described(error: BaseException) -> str:
    """An exception in a line, with the place of the code that raised it."""
    trace, place = error.__traceback__, ""
    while trace is not None:
        place = f" ({Path(trace.tb_frame.f_code.co_filename).name}, line {trace.tb_lineno})"
        trace = trace.tb_next
    return f"{type(error).__name__}: {error}{place}"


def _file_of(module: str) -> Path:
    """The file of an installed module; neither it nor the packages around it are imported."""
    first, *rest = module.split(".")
    spec, name = importlib.util.find_spec(first), first
    for part in rest:
        name = f"{name}.{part}"
        places = spec.submodule_search_locations if spec else None
        spec = PathFinder.find_spec(name, list(places)) if places is not None else None
    if spec is None or not spec.origin or not Path(spec.origin).is_file():
        raise ModuleNotFoundError(f"No module named {module!r}")
    return Path(spec.origin)


def _with_imported(path: Path) -> list[Path]:
    """The file, and the modules beside it that it or one of them imports."""
    found = [path]
    for file in found:
        for name in _names(file):
            beside = path.parent / name
            own = sorted(beside.rglob("*.py")) if beside.is_dir() else [beside.with_suffix(".py")]
            found += [one for one in own if one.is_file() and one not in found]
    return found


def _names(file: Path) -> Iterator[str]:
    """The top names that a file imports."""
    try:
        tree = ast.parse(file.read_bytes(), filename=str(file))
    except (SyntaxError, ValueError) as error:
        raise UserCodeError(f"{file}: is not valid Python ({error})") from None
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def _lines(file: Path, installed: Iterable[str]) -> Iterator[bytes]:
    """The lines of a file, plain or compressed, that may name code: searching all of each takes ten times as long."""
    marks = [b".py:", *(name.encode() for name in installed)]
    with gzip.open(file) if file.suffix == ".gz" else open(file, "rb") as stream:
        yield from (line for line in stream if any(mark in line for mark in marks))


def _verifier_column(file: Path) -> Iterator[bytes]:
    """The verifiers of a table, and the reference answers of its weighted sums, which name some too."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(file) as table:
        names = [name for name in ("verifier", "reference") if name in table.schema_arrow.names]
        for piece in table.iter_batches(columns=names) if "verifier" in names else ():
            for row in piece.to_pylist():
                text = f"{row['verifier']} {row.get('reference') if row['verifier'] == 'sum@1' else ''}"
                yield text.encode()


@cache
def _imported(path: str) -> ModuleType:
    if (folder := str(Path(path).parent)) not in sys.path:
        sys.path.insert(0, folder)
    name = f"tercet_user_{hashlib.sha256(path.encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserCodeError(f"{path} cannot be imported; expected a file of Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickles of the file look it up there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise UserCodeError(f"{path} cannot be imported: {described(error)}") from error
    return module
