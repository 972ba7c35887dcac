"""Whether the rows at hand are what their stages need: pairs, prompts with verifiers, readable reference answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from tercet import hub
from tercet.data.sources import LOADERS, TEMPLATE, Reading, check_adapter, label
from tercet.preflight.facts import Facts, Obstacle
from tercet.recipe import (
    BenchmarkSpec,
    MixtureSpec,
    OnPolicyPairsSpec,
    PersonasSpec,
    RLSpec,
    SourceSpec,
    SynthSpec,
)
from tercet.rows import Pair, Row, Source
from tercet.verify import VerifierError, check_reference, verifier
from tercet.verify.user_code import is_user_code, located

HEAD = 30  # rows of a source that are read


def gradable(facts: Facts, name: str) -> Iterator[Obstacle]:
    """Verifiers that a stage names must exist; a user's own ones must be such that they can be called."""
    for loc, own in facts.recipe.spec(name).verifiers():
        try:
            verifier(located(own, facts.recipe.folder) if is_user_code(own) else own)
        except ValueError as error:
            yield Obstacle(name, ".".join(map(str, loc)), str(error))


def readable(facts: Facts, name: str) -> Iterator[Obstacle]:
    """The head of every source that is on this machine, read as its stage will read it."""
    spec = facts.recipe.spec(name)
    for loc, source in spec.origins():
        key = ".".join(map(str, loc))
        if isinstance(spec, PersonasSpec) and (
            odd := [part for part in ("fraction", "without", "examples") if getattr(source, part)]
        ):
            yield Obstacle(name, f"{key}.{odd[0]}", "seeds cannot have it; use `rows`, or a stage of kind `mix`")
        try:
            check_adapter(source, reads(spec))
            found = head(facts, spec, source)
        except VerifierError:  # `gradable` says it
            continue
        except ValueError as error:
            yield Obstacle(name, key, str(error))
            continue
        if found == []:
            yield Obstacle(name, key, f"{label(source)} gives no row for a stage of kind {facts.recipe.kind(name)!r}")


def rewarded(facts: Facts, name: str) -> Iterator[Obstacle]:
    """RL and verifier-graded pairs need prompts that carry verifiers which can be asked there."""
    spec = facts.recipe.spec(name)
    if not isinstance(spec, RLSpec | OnPolicyPairsSpec):
        return
    for number, extra in enumerate(getattr(spec, "extra", ())):
        if why := _unasked(extra.verifier, bool(getattr(spec, "judge", ""))):
            yield Obstacle(name, f"extra.{number}.verifier", why)
    if getattr(spec, "environment", ""):  # which rewards whatever the rows say
        return
    for row, where in _rows_of(facts, spec.prompts):
        if why := _unrewarded(row, spec):
            yield Obstacle(name, "prompts", f"{where}: row {row.id!r} {why}")
            return


def reads(spec: object) -> str:
    """What a stage reads of its sources: rows, pairs or unpaired answers."""
    return spec.produces if isinstance(spec, MixtureSpec) else "rows"


def head(facts: Facts, spec: object, source: SourceSpec, count: int = HEAD) -> Sequence[Row | Pair] | None:
    """The first rows (or pairs) of a source; None where they are not on this machine, or not made yet."""
    if source.stage or source.path == TEMPLATE:
        return None
    local = hub.local_file(Source(source.path, source.subset, source.split), facts.mirror)
    path = facts.recipe.folder / Path(source.path).expanduser()
    if not local and not path.exists():
        return None
    own = {"verifier": located(source.verifier, facts.recipe.folder)} if is_user_code(source.verifier) else {}
    placed = source.model_copy(update=own | ({} if local else {"path": str(path)}))
    if isinstance(spec, PersonasSpec | BenchmarkSpec):
        placed = placed.model_copy(update={"require_answer": False})
    return list(islice(LOADERS[reads(spec)](placed, {}, facts.mirror, Reading()), count))


def _rows_of(facts: Facts, name: str) -> Iterator[tuple[Row, str]]:
    """Rows that a stage will give, as far as its sources are at hand, each with the place that they come from."""
    stages, seen = [name], {name}  # and all that its sources name, each once
    for one in stages:
        spec = facts.recipe.spec(one)
        if isinstance(spec, SynthSpec) and spec.generator in ("talk@1", "facts@1"):
            yield Row("1", (), spec.generator), f"stage {one!r} (generator {spec.generator})"
        for number, source in enumerate(spec.sources if isinstance(spec, MixtureSpec) else ()):
            if source.stage:
                stages += {source.stage} - seen
                seen.add(source.stage)
                continue
            try:
                found = head(facts, spec, source)
            except ValueError:  # the mixture's own obstacle
                continue
            yield from ((row, f"stage {one!r}, sources.{number}") for row in found or () if isinstance(row, Row))


def _unrewarded(row: Row, spec: RLSpec | OnPolicyPairsSpec) -> str:
    if not row.verifier:
        return "names no verifier; give its source `verifier` and `answer`, or leave such rows out"
    if is_user_code(row.verifier):  # read where its own process can fail
        return ""
    try:
        if not (verifier(row.verifier).sandbox or verifier(row.verifier).package):
            check_reference(row.verifier, row.reference)
    except VerifierError as error:
        return f"cannot be graded: {error}"
    return _unasked(row.verifier, bool(getattr(spec, "judge", "")))


def _unasked(name: str, judge: bool) -> str:
    """Why a verifier cannot be used in training; nothing where it can."""
    if is_user_code(name):
        return ""
    try:
        found = verifier(name)
    except VerifierError as error:
        return str(error)
    if found.embeds:
        return f"{name} compares embeddings and pays no reward; choose another verifier"
    if found.asks_model and not judge:
        return f"{name} asks a model, and the stage names none; set `judge` to a stage of kind `model`"
    return ""


CHECKS = (gradable, readable, rewarded)
