"""The recipes that come with the package, by name: `quickstart`, `tulu3-8b`."""

from __future__ import annotations

import difflib
from pathlib import Path

from tercet.recipe.specs import RecipeError

_PACKAGE = Path(__file__).parents[1]
FOLDERS = (_PACKAGE / "recipes", _PACKAGE.parents[1] / "recipes")  # of an installed wheel, of a checkout


def names() -> dict[str, Path]:
    """Every recipe that came along, by name."""
    folder = next((folder for folder in FOLDERS if folder.is_dir()), None)
    return {file.stem: file for file in sorted(folder.glob("*.toml"))} if folder else {}


def located(recipe: str | Path) -> Path:
    """A recipe's file: the one at this path, or one that came along. RecipeError where there is neither."""
    path, known = Path(recipe), names()
    if path.is_file():
        return path
    if path.is_dir():
        inside = ", ".join(sorted(file.name for file in path.glob("*.toml"))[:10])
        raise RecipeError(f"{path}: is a folder; expected a recipe file{f', such as {inside}' if inside else ''}")
    if str(recipe) in known:
        return known[str(recipe)]
    close = difflib.get_close_matches(path.stem, known, n=1)
    meant = f" (did you mean {close[0]!r}?)" if close else ""
    raise RecipeError(f"{path}: no such recipe file{meant}; check the path, or take one of {', '.join(known)}")


def headline(file: Path) -> str:
    """The first sentence of the comment that a recipe begins with."""
    lines = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#") or not line.strip("# "):
            break
        lines.append(line.lstrip("# "))
    text = " ".join(lines)
    ends = [place for mark in (": ", ". ") if (place := text.find(mark)) > 0]
    return text[: min(ends)] if ends else text.rstrip(".")
