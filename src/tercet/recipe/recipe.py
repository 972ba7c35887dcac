"""A whole recipe: its stages by name, and the graph of what they need."""

from __future__ import annotations

import heapq
import re
from pathlib import Path
from typing import Annotated, Any, Union

from pydantic import Field, GetCoreSchemaHandler, PrivateAttr

from tercet.precision import resolve
from tercet.recipe import data_specs, eval_specs, rl_specs, train_specs  # noqa: F401  their kinds enter KINDS
from tercet.recipe.limits import NAME, listed
from tercet.recipe.placement import Placement
from tercet.recipe.specs import (
    BASE,
    KINDS,
    ArtifactSpec,
    BaseSpec,
    ComputeSpec,
    Dtype,
    RecipeError,
    Spec,
    StageSpec,
    kinds_of,
)

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


class _AnyKind:
    """Lets a table be of any stage kind that is known when the schema is built."""

    def __get_pydantic_core_schema__(self, _source: Any, handler: GetCoreSchemaHandler) -> Any:
        kinds = tuple(spec for spec in KINDS.values() if issubclass(spec, StageSpec))
        return handler.generate_schema(Annotated[Union[kinds], Field(discriminator="kind")])  # noqa: UP007  kinds is a tuple


class Recipe(Spec):
    """A whole run: base model, stages by name, placement."""

    name: str = Field(description="Name of the recipe.")
    seed: int = Field(0, description="Seed of every stage that has none of its own.")
    dtype: Dtype = Field(
        "auto", description="Precision of stages that say `auto`; `auto`: bfloat16 where hardware multiplies it."
    )
    base: BaseSpec
    stage: dict[str, Annotated[StageSpec, _AnyKind()]] = Field(description="The stages by name, in any order.")
    placement: Placement = Field(default_factory=Placement, description="Where and how fast.")
    _folder: Path = PrivateAttr(default=Path())

    @property
    def folder(self) -> Path:
        """Relative paths of the recipe start here: the folder of its file, or the current one when built in memory."""
        return self._folder

    def spec(self, name: str) -> ArtifactSpec:
        """The spec of a stage, `base` included."""
        return self.base if name == BASE else self.stage[name]

    def kind(self, name: str) -> str:
        """The kind of a stage, `base` included."""
        return BASE if name == BASE else self.stage[name].kind

    def seed_of(self, name: str) -> int:
        """The stage's own seed, or the recipe's."""
        own = None if name == BASE else self.stage[name].seed
        return self.seed if own is None else own

    def resolved(self) -> Recipe:
        """The same recipe with this machine's precision in the place of every `auto`."""
        precise = {
            name: spec.model_copy(update={"dtype": resolve(self.dtype if spec.dtype == "auto" else spec.dtype)})
            for name, spec in self.stage.items()
            if isinstance(spec, ComputeSpec)
        }
        found = self.model_copy(update={"stage": self.stage | precise, "dtype": resolve(self.dtype)})
        found._folder = self._folder
        return found

    def needs(self, name: str) -> list[str]:
        """The stages whose artifacts this stage reads, without repeats, in the order they are named."""
        return [] if name == BASE else list(dict.fromkeys(ref.name for ref in self.stage[name].references()))

    def order(self) -> list[str]:
        """Every stage after what it needs, by its kind's `turn` and then as in the TOML; checks the graph."""
        _check_references(self)
        _check_engines(self)
        needs = {name: self.needs(name) for name in self.stage}
        if not needs or any(BASE in needed for needed in needs.values()):
            needs = {BASE: [], **needs}
        left = {name: len(needed) for name, needed in needs.items()}  # inputs that are not in order yet
        users: dict[str, list[str]] = {name: [] for name in needs}
        for name, needed in needs.items():
            for need in needed:
                users[need].append(name)
        place = {name: (self.spec(name).turn, number, name) for number, name in enumerate(needs)}
        able = [place[name] for name, count in left.items() if not count]
        heapq.heapify(able)
        ready: list[str] = []
        while able:
            ready.append(heapq.heappop(able)[-1])
            for user in users[ready[-1]]:
                left[user] -= 1
                if not left[user]:
                    heapq.heappush(able, place[user])
        if waiting := {name: needs[name] for name, count in left.items() if count}:
            raise _cycle(waiting)
        return ready


def _check_references(recipe: Recipe) -> None:
    known = dict.fromkeys([BASE, *recipe.stage])
    folded: dict[str, str] = {}
    for name, spec in recipe.stage.items():
        _check_name(name, folded.setdefault(name.lower(), name))
        try:
            found = list(spec.references())
        except RecipeError as error:
            raise RecipeError(f"stage {name!r}: {error}", ("stage", name, "require")) from None
        for ref in found:
            loc = ("stage", name, *ref.loc)
            if ref.name not in known:
                message = f"stage {name!r} names an unknown stage {ref.name!r:.200}; known: {listed(known)}"
                raise RecipeError(message, loc)
            kinds = kinds_of(*ref.accepts)
            if recipe.kind(ref.name) not in kinds:
                fits = [other for other in known if recipe.kind(other) in kinds]
                why = recipe.spec(ref.name).only
                raise RecipeError(
                    f"stage {name!r} needs a stage of kind {' or '.join(kinds)} here, but {ref.name!r} is of "
                    f"kind {recipe.kind(ref.name)}; of that kind: {listed(fits) or 'none, add one'}"
                    + (f" ({why})" if why else ""),
                    loc,
                )


def _check_engines(recipe: Recipe) -> None:
    """An engine in a trainer's own process has that rank's card alone."""
    engine = recipe.placement.engine
    if engine.placement == "apart" or engine.tensor_parallel_size == 1:
        return
    for name, spec in recipe.stage.items():
        if isinstance(spec, rl_specs.RLSpec) and spec.engine != "local":
            raise RecipeError(
                f"stage {name!r}: an engine beside a trainer has one card, but engine.tensor_parallel_size is "
                f'{engine.tensor_parallel_size}; set engine.placement = "apart"',
                ("placement", "engine"),
            )


def _check_name(name: str, first: str) -> None:
    """A stage's name is part of a folder's; `first` is the first stage whose name is the same but for its case."""
    hint = ""
    if name == BASE or not _NAME.fullmatch(name):
        hint = "is the base model's name" if name == BASE else "must be letters, digits, '-' and '_'"
    elif len(name) > NAME:
        hint = f"has {len(name):,} characters; at most {NAME} fit into a folder's name"
    elif first != name:
        hint = f"differs from {first!r} by its case alone, which some disks do not tell apart"
    if hint:
        raise RecipeError(f"the stage name {name!r:.200} {hint}; rename the stage", ("stage", name))


def _cycle(waiting: dict[str, list[str]]) -> RecipeError:
    """The circle among stages that wait for each other, each with what it needs."""
    path = dict.fromkeys([name := next(iter(waiting))])
    while (name := next(need for need in waiting[name] if need in waiting)) not in path:
        path[name] = None
    stages = list(path)
    loop = [*stages[stages.index(name) :], name]
    message = f"stages need each other: {listed(loop, ' -> ')} (each needs the next); break the circle"
    return RecipeError(message, ("stage", name))
