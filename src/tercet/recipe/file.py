"""Recipe files: TOML to a checked `Recipe` and back, with the line of every mistake.

`load` reads the file, follows `extends`, applies `--set` overrides and validates. A scanner finds the line of each key,
so that an error names file and line, what is allowed there and what was probably meant.
"""

from __future__ import annotations

import difflib
import json
import math
import re
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from tercet.outside import printable, without_userinfo
from tercet.recipe.library import located
from tercet.recipe.limits import DEPTH, EXTENDED, LISTED, STAGES, STRING, check_values, parse, read_text
from tercet.recipe.recipe import Recipe
from tercet.recipe.specs import KINDS, URL, Loc, RecipeError, StageSpec, kinds_of

SCALED = ("rows", "steps", "rounds")  # what a recipe's `scale` multiplies
HINTS: dict[str, str] = tomllib.loads(Path(__file__).with_name("hints.toml").read_text(encoding="utf-8"))
Places = dict[Loc, str]  # where each key was written: "recipes/tiny.toml, line 12" or "--set stage.sft.batch=8"


def load(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file, with `extends` followed and overrides such as `stage.sft.batch=8` applied."""
    path = located(path)
    document, places = _read(path, ())
    for override in overrides:
        places = _override(document, places, override)
    _scale(document, places)
    _name_engine(document)
    recipe = _validate(document, places)
    recipe._folder = path.parent
    return recipe


def dump(recipe: Recipe) -> str:
    """The resolved recipe as TOML: every default written out; `load` gives the same recipe back."""
    plain = recipe.model_dump(mode="json", exclude_none=True)
    lines = [f"{key} = {to_toml(plain[key])}" for key in ("name", "seed", "dtype")]
    tables = [("base", plain["base"])]
    tables += [(f"stage.{_key(name)}", {"kind": table["kind"]} | table) for name, table in plain["stage"].items()]
    for title, table in [*tables, ("placement", plain["placement"])]:
        lines += ["", f"[{title}]", *(f"{_key(key)} = {to_toml(value)}" for key, value in table.items())]
    return "\n".join(lines) + "\n"


def _read(path: Path, above: tuple[Path, ...]) -> tuple[dict[str, Any], Places]:
    """One file merged over the file it extends."""
    if path.resolve() in above:
        chain = " -> ".join(p.name for p in (*above, path))
        raise RecipeError(f"{path}: recipes extend each other in a circle ({chain}); remove one `extends`")
    if len(above) >= EXTENDED:
        raise RecipeError(f"{path}: more than {EXTENDED} recipes extend each other; write some of them as one")
    try:
        text = read_text(path)
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such recipe file; check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read as UTF-8 text ({error})") from None
    document = parse(text, str(path))
    places: Places = {(): str(path)} | {loc: f"{path}, line {line}" for loc, line in key_lines(text).items()}
    check_values(document, lambda loc: _place(places, loc))
    parent = document.pop("extends", None)
    extended = places.pop(("extends",), "")
    if parent is None:
        return document, places
    if not isinstance(parent, str):
        raise RecipeError(f"{extended}: extends must be one relative path in quotes, got {parent!r}")
    if not (path.parent / parent).is_file():
        raise RecipeError(f"{extended}: extends {parent!r}, but {path.parent / parent} does not exist")
    below, below_places = _read(path.parent / parent, (*above, path.resolve()))
    return _merge(below, document), _without(below_places, [loc for loc in places if _is_leaf(document, loc)]) | places


def _is_leaf(document: Any, loc: Loc) -> bool:
    for key in loc:
        document = document[key]
    return not isinstance(document, dict)


def _without(places: Places, replaced: Sequence[Loc]) -> Places:
    """The places that are still true after the values at `replaced` were replaced."""
    gone = set(replaced)
    return {loc: place for loc, place in places.items() if not any(loc[:n] in gone for n in range(len(loc) + 1))}


def _merge(below: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Tables merge key by key, everything else is replaced; a stage whose kind changes is replaced as a whole."""
    merged = dict(below)
    for key, value in over.items():
        old = below.get(key)
        if isinstance(old, dict) and isinstance(value, dict) and value.get("kind") in (None, old.get("kind")):
            merged[key] = _merge(old, value)
        else:
            merged[key] = value
    return merged


def _override(document: dict[str, Any], places: Places, override: str) -> Places:
    """Apply one `a.b=value`; the value is TOML, or a bare string when it is not. Returns the places as they are now."""
    path, equals, text = override.partition("=")
    where = f"--set {printable(override[:200])}"
    found = _Scanner(path.strip()).key() if path.strip() else []
    if not equals or not 0 < len(found) <= DEPTH or len(path) > 1000:
        raise RecipeError(f"{where}: expected KEY=VALUE with a dotted key, e.g. stage.sft.batch=8")
    keys = [int(key) if key.isdecimal() and len(key) < 10 else key for key in found]
    try:
        value: Any = tomllib.loads(f"value = {text.strip()}")["value"]
    except (ValueError, RecursionError):
        value = text.strip()
    check_values({"the key": path, "the value": value}, lambda _loc: where)
    table: Any = document
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        if isinstance(table, list) and isinstance(key, int) and key < len(table):
            table[key] = value if last else table[key]
        elif isinstance(table, dict):
            key = str(key)
            table[key] = value if last else table.get(key, {})
        else:
            raise RecipeError(f"{where}: {'.'.join(map(str, keys[:depth]))} has no key {key!r}")
        table = table[key]
    return _without(places, [tuple(keys)]) | {tuple(keys): where}


def _scale(document: dict[str, Any], places: Places) -> None:
    """Take `scale` out of the document: every number of `SCALED` in stages and sources times that, at least 1.

    Benchmarks keep their size, so that scores compare: `limit`, and rows of the split "test".
    """
    scale = document.pop("scale", 1)
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 < scale < math.inf:
        raise RecipeError(f"{_place(places, ('scale',))}: scale must be a number above 0, got {scale!r}")
    stages = document.get("stage", {})
    for stage in stages.values() if isinstance(stages, dict) else ():
        if isinstance(stage, dict) and stage.get("split") != "test":
            sources = stage.get("sources")
            for table in (stage, stage.get("seeds"), *(sources if isinstance(sources, list) else ())):
                for key in SCALED if isinstance(table, dict) else ():
                    if type(value := table.get(key)) is int and value > 0:  # `rows` may also name a stage
                        table[key] = max(1, round(value * scale))


def _name_engine(document: dict[str, Any]) -> None:
    """Write `placement.engine.kind` into every stage that could have that engine and names none."""
    placement, stages = document.get("placement"), document.get("stage")
    engine = placement.get("engine") if isinstance(placement, dict) else None
    kind = engine.get("kind") if isinstance(engine, dict) else None
    for stage in stages.values() if kind and isinstance(stages, dict) else ():
        spec = KINDS.get(str(stage.get("kind"))) if isinstance(stage, dict) else None
        field = spec.model_fields.get("engine") if spec else None
        if field and kind in get_args(field.annotation) and not str(stage.get("model", "")).startswith(URL):
            stage.setdefault("engine", kind)


def _validate(document: dict[str, Any], places: Places) -> Recipe:
    stages = document.get("stage")
    if isinstance(stages, dict) and len(stages) > STAGES:
        raise RecipeError(f"{_place(places, ('stage',))}: {len(stages):,} stages; a recipe may have {STAGES:,}")
    try:
        recipe = Recipe.model_validate_json(json.dumps(document, default=str), strict=True)
    except ValidationError as error:
        found = error.errors(include_url=False)
        around = {problem["loc"][:depth] for problem in found for depth in range(len(problem["loc"]))}
        inner = [problem for problem in found if problem["loc"] not in around]
        lines = list(dict.fromkeys(_explain(problem, document, places) for problem in inner[:LISTED]))
        lines += [f"and {len(inner) - LISTED:,} more of such"] if len(inner) > LISTED else []
        raise RecipeError("\n".join(lines)) from None
    try:
        recipe.order()
    except RecipeError as error:
        raise RecipeError(f"{_place(places, error.loc)}: {error}", error.loc) from None
    return recipe


def _explain(problem: Any, document: dict[str, Any], places: Places) -> str:
    """One validation problem in words: place, what came, what is allowed, what was probably meant."""
    loc = _clean(problem["loc"], document)
    where, kind = _place(places, loc), problem["type"]
    given = f"{'.'.join(map(str, loc))} = {without_userinfo(repr(problem['input']))[:60]}"
    if kind == "extra_forbidden":
        allowed = sorted(_model(loc[:-1], document).model_fields)
        hint = HINTS.get(str(loc[-1]))
        meant = f": here {hint}" if hint else _meant(str(loc[-1]), allowed)
        return f"{where}: unknown key {loc[-1]!r} in {_table(loc[:-1])}{meant}; allowed keys: {', '.join(allowed)}"
    if kind == "missing":
        field = _model(loc[:-1], document).model_fields.get(str(loc[-1]))
        about = f" ({field.description})" if field is not None and field.description else ""
        return f"{where}: {_table(loc[:-1])} lacks the key {loc[-1]!r}{about}; add it"
    if kind == "union_tag_not_found":
        others = [name for name in document.get("stage", {}) if loc[:1] == ("stage",) and name != loc[1]]
        meant = _meant(str(loc[1]), others) if others else ""
        return f"{where}: {_table(loc)}{meant} lacks the key 'kind'; one of {', '.join(kinds_of(StageSpec))}"
    if kind == "union_tag_invalid":
        tag, place, known = str(problem["ctx"]["tag"]), _place(places, (*loc, "kind")), kinds_of(StageSpec)
        return f"{place}: unknown kind {tag!r} in {_table(loc)}{_meant(tag, known)}; known: {', '.join(known)}"
    if kind == "literal_error":
        expected = re.findall(r"'([^']*)'", problem["ctx"]["expected"])
        return f"{where}: {given}{_meant(str(problem['input']), expected)}; allowed: {', '.join(expected)}"
    message = problem["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
    return f"{where}: {given}: {message}"


def _clean(loc: tuple[Any, ...], document: dict[str, Any]) -> Loc:
    """The place in the TOML: without the tag that the validator adds after a stage's name."""
    if len(loc) > 2 and loc[0] == "stage" and loc[2] == document["stage"][loc[1]].get("kind"):
        return (*loc[:2], *loc[3:])
    return tuple(loc)


def _model(loc: Loc, document: dict[str, Any]) -> type[BaseModel]:
    """The model that checks the table at `loc`."""
    model: type[BaseModel] = Recipe
    if loc[:1] == ("stage",) and len(loc) > 1:
        model, loc = KINDS[document["stage"][loc[1]]["kind"]], loc[2:]
    for key in loc:
        if isinstance(key, str):  # a number is a place in a list of tables
            model = next(_models(model.model_fields[key].annotation))
    return model


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models in a type: `LoraSpec` of `LoraSpec | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)


def _place(places: Places, loc: Loc) -> str:
    """Where the key was written, or the nearest table around it."""
    while loc not in places and loc:
        loc = loc[:-1]
    return places.get(loc, "recipe")


def _table(loc: Loc) -> str:
    return f"[{'.'.join(map(str, loc))}]" if loc else "the recipe"


def _meant(given: str, allowed: Sequence[str]) -> str:
    close = difflib.get_close_matches(given, allowed, n=1, cutoff=0.55)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else to_toml(name)


def to_toml(value: Any) -> str:
    """A value as TOML writes it."""
    if isinstance(value, str | bool):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_key(key)} = {to_toml(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(to_toml, value)) + "]"
    return repr(value)


def key_lines(text: str) -> dict[Loc, int]:
    """The line of every key, table and array element of a valid TOML text, by its path in the parsed document."""
    return dict(_Scanner(text).document())


class _Scanner:
    """Walks valid TOML without building values: tables, dotted and quoted keys, inline tables, arrays, strings."""

    _SKIP = re.compile(r"(?:[ \t\r\n]++|#[^\n]*+)*+")
    _PLAIN = re.compile(r"[^,\]}#\r\n]+")
    _PART = re.compile(r"[A-Za-z0-9_-]+")

    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0
        self.counted, self.line = 0, 1  # up to where lines are counted, and the line there

    def document(self) -> Iterator[tuple[Loc, int]]:
        table: Loc = ()
        counts: dict[Loc, int] = {}
        while self._skip() < len(self.text):
            line = self._line()
            if self.text[self.at] == "[":
                many = self.text.startswith("[[", self.at)
                self.at += 2 if many else 1
                table = self._resolve(self.key(), counts, many)
                self.at = self.text.index("]", self.at) + (2 if many else 1)
                yield from ((table[:depth], line) for depth in (len(table) - 1 if many else len(table), len(table)))
            else:
                yield from self._pair(table)

    def key(self) -> list[str]:
        """A dotted key."""
        parts = []
        while True:
            self._skip()
            if quoted := STRING.match(self.text, self.at):
                parts.append(str(tomllib.loads(f"k = {quoted.group()}")["k"]))
                self.at = quoted.end()
            elif bare := self._PART.match(self.text, self.at):
                parts.append(bare.group())
                self.at = bare.end()
            else:
                return parts
            self._skip()
            if not self.text.startswith(".", self.at):
                return parts
            self.at += 1

    def _resolve(self, keys: list[str], counts: dict[Loc, int], many: bool) -> Loc:
        """A header's path, with the index of the current element wherever it passes an array of tables."""
        loc: Loc = ()
        for depth, key in enumerate(keys):
            loc = (*loc, key)
            if many and depth == len(keys) - 1:
                counts[loc] = counts.get(loc, -1) + 1
            loc = (*loc, counts[loc]) if loc in counts else loc
        return loc

    def _pair(self, table: Loc) -> Iterator[tuple[Loc, int]]:
        line = self._line()
        keys = self.key()
        yield from (((*table, *keys[: depth + 1]), line) for depth in range(len(keys)))
        self.at = self.text.index("=", self.at) + 1
        yield from self._value((*table, *keys))

    def _value(self, loc: Loc) -> Iterator[tuple[Loc, int]]:
        self._skip()
        opening = self.text[self.at]
        if opening in "[{":
            closing, count = {"[": "]", "{": "}"}[opening], 0
            self.at += 1
            while self.text[self._skip()] != closing:
                if opening == "[":
                    yield (*loc, count), self._line()
                    yield from self._value((*loc, count))
                else:
                    yield from self._pair(loc)
                count += 1
                self.at += self.text[self._skip()] == ","
            self.at += 1
        elif match := STRING.match(self.text, self.at) or self._PLAIN.match(self.text, self.at):
            self.at = match.end()

    def _skip(self) -> int:
        self.at = self._SKIP.match(self.text, self.at).end()  # type: ignore[union-attr]
        return self.at

    def _line(self) -> int:
        self.line += self.text.count("\n", self.counted, self.at)
        self.counted = self.at
        return self.line
