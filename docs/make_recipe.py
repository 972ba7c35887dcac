"""Writes docs/recipe.md from `tercet.recipe`, so that the page and the code cannot disagree. Run by `make docs`."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from tercet import recipe

PAGE = Path(__file__).parent / "recipe.md"
HEAD = """\
# The recipe

<!-- Written by docs/make_recipe.py from src/tercet/recipe; change the specs there and run `make docs`. -->

A recipe is a TOML file. It names a base model and stages; a stage names what it reads by the names of other stages
(or `"base"`), and the order follows from that. Unknown keys are refused, with the line; a name of TRL, verl or axolotl
is answered with the key that takes its place here. A default is the vetted setting, so what a recipe writes down is a
decision.

```toml
name = "example"
seed = 17

[base]
model = "some/hub-id"
revision = "0123abcd"

[stage.words]          # a stage called "words"
kind = "synth"
generator = "words@1"
rows = 400

[stage.sft]
kind = "sft"
model = "base"
rows = "words"

[placement]            # speed only: part of no stage's key
micro_tokens = 4096
```

`extends = "other.toml"` starts from another recipe, and what is written here wins. `--set stage.sft.batch=64` does
the same from the command line. `scale = 2` at the top, or `--set scale=2`, multiplies every `rows`, `steps` and
`rounds` of the stages and their sources; benchmarks keep their size. `tercet show RECIPE` prints the result;
`tercet schema` the JSON Schema.
"""


def render() -> str:
    """The whole page."""
    parts = [HEAD, section("Top level", recipe.Recipe), section("`[base]`", recipe.BaseSpec)]
    parts.append("## Stages\n\nEvery stage may set its own seed.\n\n" + table(recipe.StageSpec))
    common = set(recipe.StageSpec.model_fields) | {"kind"}
    for kind, stage in recipe.KINDS.items():
        if kind == recipe.BASE:
            continue
        parts.append(section(f'`kind = "{kind}"`', stage, skip=common, level=3))
    parts.append("#### An entry of `sources`\n\n" + paragraph(recipe.SourceSpec) + table(recipe.SourceSpec))
    parts.append(section("`[placement]`", recipe.Placement))
    parts.append("#### `mesh`\n\n" + paragraph(recipe.MeshShape) + table(recipe.MeshShape))
    return "\n".join(parts)


def section(title: str, model: type[BaseModel], *, skip: set[str] | None = None, level: int = 2) -> str:
    """A heading, the class docstring and the table of knobs."""
    return f"{'#' * level} {title}\n\n" + paragraph(model) + table(model, skip or set())


def paragraph(model: type[BaseModel]) -> str:
    """The class docstring as running text."""
    return " ".join((model.__doc__ or "").split()) + "\n\n"


def table(model: type[BaseModel], skip: set[str] | frozenset[str] = frozenset()) -> str:
    """One line for each field: name, kind of value, default, sentence."""
    lines = ["| key | value | default | what it does |", "|---|---|---|---|"]
    for name, field in model.model_fields.items():
        if name not in skip:
            cells = (f"`{name}`", value(field.annotation), default(field), field.description or "")
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def value(annotation: Any) -> str:
    """A type in plain words: `number`, `list of text`, or the words to choose from."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(f"`{choice!r}`".replace("'", '"') for choice in inner)
    if origin in (Union, types.UnionType):
        return " or ".join(value(part) for part in inner if part is not type(None))
    if origin is tuple:
        return f"list of {value(inner[0])}" if Ellipsis in inner else f"[{', '.join(map(value, inner))}]"
    if origin is dict:
        return "tables"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "table"
    return {str: "text", int: "integer", float: "number", bool: "true or false"}[annotation]


def default(field: FieldInfo) -> str:
    """The default as TOML would write it; required fields say so."""
    if field.default_factory is not None:
        return "see below"
    if field.default is PydanticUndefined:
        return "required"
    plain = field.default
    if plain is None:
        return "absent"
    if isinstance(plain, bool):
        return f"`{str(plain).lower()}`"
    if isinstance(plain, BaseModel):
        return "see below"
    if isinstance(plain, tuple):
        return f"`{list(plain)}`"
    return f'`"{plain}"`' if isinstance(plain, str) else f"`{plain}`"


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
    sys.stdout.write(f"wrote {PAGE}\n")
