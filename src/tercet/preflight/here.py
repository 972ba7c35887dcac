"""What this machine gives a run: versions of packages, disk, memory, ranks."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from tercet import machine
from tercet.forecast.machines import ASSUMED, Machine
from tercet.forecast.stages import Work, forecast
from tercet.precision import has_gpu
from tercet.preflight.machine import cards
from tercet.recipe import Recipe, TrainSpec
from tercet.records import OK, STOPS, UNTRIED, WARNING, CheckResult

SHOWN = ("torch", "transformers")
_REQUIREMENT = re.compile(r"([A-Za-z0-9_.-]+)(?:\[[^]]*\])?\s*([^;]*)(;.*)?")
_BOUND = re.compile(r"(>=|<=|==|!=|<|>|~=)\s*([\w.*+-]+)")


def versions() -> CheckResult:
    """The packages that Tercet needs, against the ranges that it was tested with."""
    odd = []
    for line in importlib.metadata.requires("tercet") or ():
        found = _REQUIREMENT.match(line)
        if found is None or "extra ==" in (found[3] or ""):
            continue
        name, bounds = found[1], found[2]
        try:
            have = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            odd.append(f"{name} is missing")
            continue
        if not within(have, bounds):
            odd.append(f"{name} {have} is outside {bounds.strip()}")
    if odd:
        return CheckResult("versions", STOPS, "; ".join(odd), "pip install -U tercet installs versions that fit")
    named = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("tercet", *SHOWN))
    return CheckResult("versions", OK, f"Python {platform.python_version()}, {named}")


def within(version: str, bounds: str) -> bool:
    """Whether a version keeps bounds such as `>=5.17,<6`, by its numbers; bounds of other forms hold."""
    mine = _numbers(version)
    for sign, text in _BOUND.findall(bounds):
        bound = _numbers(text)
        size = max(len(mine), len(bound))
        a, b = (tuple((*one, *[0] * size)[:size]) for one in (mine, bound))
        holds = {">=": a >= b, "<": a < b, ">": a > b, "<=": a <= b}
        if not holds.get(sign, True):
            return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    """`2.13.0+cpu` as (2, 13, 0)."""
    found = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(map(int, found[0].split("."))) if found else ()


def disk(works: Sequence[Work], unknown: Sequence[str], root: Path, where: Machine) -> CheckResult:
    """What training stages will write against what is free: every artifact, and the checkpoints of one at a time."""
    found = [forecast(work, where, ASSUMED).disk for work in works if isinstance(work.spec, TrainSpec)]
    needed = sum(artifact for artifact, _ in found) + max((kept for _, kept in found), default=0.0)
    place = next(folder for folder in (root.absolute(), *root.absolute().parents) if folder.exists())
    free = shutil.disk_usage(place).free
    what = (
        f"{needed / 1e9:,.1f} GB of weights and checkpoints will be written, {free / 1e9:,.0f} GB are free in {place}"
    )
    if needed > free:
        return CheckResult("disk", STOPS, what, "free space (tercet gc), or name another folder with --store")
    unknown = [name for name in unknown if not name.startswith("tiny:")]
    if unknown:
        return CheckResult(
            "disk", UNTRIED, f"the size of {', '.join(unknown)} is not known; {free / 1e9:,.0f} GB are free"
        )
    state = WARNING if needed > 0.8 * free else OK
    return CheckResult("disk", state, what, "free space (tercet gc)" if state == WARNING else "")


def memory(works: Sequence[Work], where: Machine) -> Iterator[CheckResult]:
    """The forecast of every training stage against the memory of this machine, where it has no card."""
    if has_gpu() or not works:
        return
    most, name = 0.0, ""
    for work in works:
        found = forecast(work, where, ASSUMED)
        if found.refused:
            yield CheckResult("memory", WARNING, f"by the forecast it {found.refused}", found.instead, work.name)
        elif found.bytes["peak"] > most:
            most, name = found.bytes["peak"], work.name
    if name:
        free = machine.available_memory()
        what = f"{name} needs most, {most / 1e9:,.1f} GB by the forecast; {free / 1e9:,.1f} GB are free"
        yield CheckResult("memory", OK if most < free else WARNING, what, "" if most < free else "end other programs")


def ranks(recipe: Recipe) -> CheckResult:
    """The processes of a training stage against cards or cores."""
    wanted, cores = recipe.placement.per_node, machine.cores()
    if has_gpu():
        there = cards()
        if wanted < there:
            advice = f"set placement.ranks = {there} to use all"
            return CheckResult("ranks", WARNING, f"placement.ranks is {wanted}, and there are {there} cards", advice)
        return CheckResult("ranks", OK if there else UNTRIED, f"{wanted} for {there or '?'} cards")
    if wanted > cores:
        advice = f"set placement.ranks = 1: {cores} threads of one process do the same"
        return CheckResult("ranks", WARNING, f"placement.ranks is {wanted}, and there are {cores} cores", advice)
    threads = recipe.placement.threads or cores // wanted
    return CheckResult("ranks", OK, f"ranks: {wanted}, threads of each: {threads}, cores: {cores}; no card here")
