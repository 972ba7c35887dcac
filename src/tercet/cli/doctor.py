"""`tercet doctor`: everything that a minute can tell of a run before it begins, a line for each check."""

from __future__ import annotations

import argparse
import tempfile
import textwrap
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from tercet import pipeline
from tercet.cli.forecast import works_of
from tercet.cli.output import emit, say, table
from tercet.forecast.machines import CPU, machine
from tercet.outside import printable, without_userinfo
from tercet.preflight import endpoints, graders, here
from tercet.preflight.facts import Facts
from tercet.preflight.rehearsal import rehearsed
from tercet.recipe import DPOSpec, Recipe, RewardModelSpec, RLSpec, load
from tercet.records import OK, STOPS, UNTRIED, WARNING, CheckResult
from tercet.store import Store

COLOURS = {OK: "green", WARNING: "yellow", STOPS: "bold red", UNTRIED: "dim"}
STATE, CHECK = 13, 15  # columns of a line before what was found
CANNOT = 3  # the exit code where something cannot work


@dataclass
class Diagnosis:
    """All that was found of a recipe, in order."""

    findings: list[CheckResult] = field(default_factory=list)
    lengths: list[Mapping[str, Any]] = field(default_factory=list)  # of a stage's rows, by source
    masks: list[Mapping[str, Any]] = field(default_factory=list)  # rows as they are trained

    def take(self, line: Mapping[str, Any]) -> CheckResult | None:
        """A line of the training process."""
        if "check" in line:
            return CheckResult(**line["check"])
        self.lengths += [line["lengths"]] if "lengths" in line else []
        self.masks += [line["mask"]] if "mask" in line else []
        return None


def doctor(args: argparse.Namespace) -> int:
    """Say what holds, what may go wrong and what cannot work; exit code 3 where something cannot."""
    began, found = time.monotonic(), Diagnosis()
    recipe, store, mirror = load(args.recipe, args.set), Store(args.store), pipeline.read_mirror(args.mirror)
    recipe, _ = pipeline.pinned(recipe, store, mirror, offline=args.offline)
    recipe = recipe.resolved()
    console = Console(highlight=False)
    for finding in _checks(recipe, store, mirror, found, offline=args.offline):
        found.findings.append(finding)
        if not args.json:
            _say(console, finding)
    seconds = time.monotonic() - began
    states = Counter(finding.state for finding in found.findings)
    if args.json:
        checks = [finding._asdict() for finding in found.findings]
        emit(
            {"recipe": recipe.name, "seconds": seconds, "checks": checks, "lengths": found.lengths, "rows": found.masks}
        )
    else:
        _say_lengths(found)
        _say_masks(console, found, recipe)
        counts = ", ".join(f"{states[state]} {state}" for state in COLOURS if states[state])
        say(f"\n{recipe.name}: {counts} ({seconds:.0f} s)")
    return CANNOT if states[STOPS] else 0


def _checks(
    recipe: Recipe, store: Store, mirror: dict[str, str], found: Diagnosis, *, offline: bool
) -> Iterator[CheckResult]:
    """All checks, those that cost nothing first."""
    lines = pipeline.plan(recipe, store, mirror)
    missing = [line.name for line in lines if not line.exists]
    facts = Facts(recipe, {line.name: line.path / "payload" for line in lines if line.exists}, mirror)
    stops = pipeline.obstacles(recipe, lines, mirror, offline=offline)
    yield from (CheckResult("recipe", STOPS, str(one), stage=one.stage) for one in stops)
    if not stops:
        yield CheckResult("recipe", OK, f"{len(missing)} of {len(lines)} stages to make; nothing in them is refused")
    yield here.versions()
    yield here.ranks(recipe)
    where = machine(CPU)
    works, unknown = works_of(recipe, [line for line in lines if not line.exists], mirror, where)
    yield here.disk(works, sorted(set(unknown.values())), store.root, where)
    yield from here.memory(works, where)
    yield from endpoints.reached(facts, missing, offline=offline)
    yield from graders.graded(facts, missing)
    with tempfile.TemporaryDirectory() as scratch:
        for line in rehearsed(facts, missing, Path(scratch)):
            if finding := found.take(line):
                yield finding


def _say(console: Console, finding: CheckResult) -> None:
    """A line for a check; a second one says what to do. On a terminal both fit its width."""
    stage = f"{finding.stage}: " if finding.stage and f"stage.{finding.stage}]" not in finding.what else ""
    texts = [stage + finding.what, *([f"-> {finding.advice}"] if finding.advice else [])]
    text = Text.assemble((f"{finding.state:{STATE}}", COLOURS[finding.state]), f"{finding.check:{CHECK}}")
    indent, lines = " " * (STATE + CHECK), []
    for one in map(printable, map(without_userinfo, texts)):
        one = " ".join(one.split())
        wide = console.width - len(indent)
        lines += textwrap.wrap(one, max(20, wide), break_on_hyphens=False) if console.is_terminal else [one]
    text.append(f"\n{indent}".join(lines))
    console.print(text, soft_wrap=not console.is_terminal)


def _say_lengths(found: Diagnosis) -> None:
    """How long the sampled rows are, by stage and source."""
    rows = [
        (of["stage"], one["source"], *(f"{one[key]:,}" for key in ("rows", "median", "longest")), _over(one, of))
        for of in found.lengths
        for one in of["sources"]
    ]
    if rows:
        say("\ntokens of sampled rows:")
        table(("stage", "source", "rows", "median", "longest", "over max_length"), rows)


def _over(one: Mapping[str, Any], of: Mapping[str, Any]) -> str:
    return f"{one['over'] / one['rows']:.0%} of {of['max_length']:,}"


def _say_masks(console: Console, found: Diagnosis, recipe: Recipe) -> None:
    """The first row of each stage as it is trained; stages that read the same rows show them once."""
    from tercet.cli import preview  # loads numpy, which most verbs do without

    first: dict[str, Mapping[str, Any]] = {}
    for mask in found.masks:
        first.setdefault(mask["stage"], mask)
    for mask in reversed({str(mask["texts"]): mask for mask in reversed(first.values())}.values()):
        stage = mask["stage"]
        paired = isinstance(recipe.spec(stage), DPOSpec | RewardModelSpec) and len(mask["texts"]) == 2
        names = ("chosen", "rejected") if paired else ("text",) * len(mask["texts"])
        styles = [preview.REJECTED if name == "rejected" else preview.TRAINED for name in names]
        lines = [
            (name, [(text, style if trained else preview.CONTEXT) for trained, text in runs])
            for name, style, runs in zip(names, styles, mask["texts"], strict=True)
        ]
        rewarded = isinstance(recipe.spec(stage), RLSpec)
        what = "the prompt, whose completions are trained" if rewarded else "what is trained of it"
        preview.print_row(console, f"{stage}, row {mask['row']}: {what}", lines)
