"""From a recipe to artifacts: the graph with its keys, what is missing and why, and one process per missing stage.

Keys are known before anything runs, because a key is made of the spec, the inputs' keys, the kind's version and the
digests of local files. So the plan is exact, a finished run costs nothing to repeat, and this module needs no torch.
"""

from __future__ import annotations

import json
import os
import pkgutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from tercet import preflight
from tercet.argv import Outside, command
from tercet.data import tables
from tercet.forecast import opening, slow_precision
from tercet.hub import local_file
from tercet.launch.joining import calling
from tercet.launch.making import make_one
from tercet.launch.schedule import StageTurn, make_all
from tercet.outside import USERINFO, has_userinfo, printable
from tercet.precision import reason
from tercet.preflight.facts import template_of
from tercet.recipe import BASE, FileRef, ModelSource, Recipe, RecipeError, TrainSpec, load
from tercet.recipe.limits import check_values, parse, read_text
from tercet.rows import Source
from tercet.stage import StageJob
from tercet.stop import interruptible
from tercet.store import Artifact, Identity, Store, source_digest
from tercet.track import board
from tercet.verify.pins import code_of

ADDRESSES = ("HF_ENDPOINT", "WANDB_BASE_URL", "TRACKIO_SERVER_URL")  # variables that libraries read a URL from


@dataclass(frozen=True)
class PlanLine:
    """One stage of a plan: whether its artifact exists, why it does not, and what it will take."""

    name: str
    kind: str
    key: str
    exists: bool
    why: str
    path: Path
    precision: str = ""  # of a stage that runs a model, with the reason: "bfloat16: this CPU has AMX"
    forecast: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelReading:
    """How batches of a model are laid out, in a sentence; `layout` is empty where the model is refused."""

    layout: str
    sentence: str


def graph(recipe: Recipe, store: Store, mirror: dict[str, str] | None = None) -> dict[str, Identity]:
    """All that decides each stage's key, inputs first; refuses a recipe that opens the unseen suite before the end."""
    recipe = recipe.resolved()
    nodes: dict[str, Identity] = {}
    keys: dict[str, str] = {}
    for name in recipe.order():
        if check := recipe.spec(name).check:
            pkgutil.resolve_name(check)(recipe.spec(name), name, recipe)
        inputs = {need: keys[need] for need in recipe.needs(name)}
        spec = _identity_spec(recipe, name, mirror or {}, store.cache)
        nodes[name] = Identity(recipe.kind(name), recipe.spec(name).version, spec, inputs)
        keys[name] = nodes[name].key
    return nodes


def plan(
    recipe: Recipe, store: Store, mirror: dict[str, str] | None = None, nodes: dict[str, Identity] | None = None
) -> list[PlanLine]:
    """What exists, what is missing and why; `nodes` is the graph, where it is known."""
    recipe = recipe.resolved()
    lines: dict[str, PlanLine] = {}
    rows: dict[str, int] = {}
    others = _records(store)
    for name, node in (nodes or graph(recipe, store, mirror)).items():
        key, precision = node.key, recipe.spec(name).precision
        exists = store.find(name, key) is not None
        lines[name] = PlanLine(
            name=name,
            kind=node.kind,
            key=key,
            exists=exists,
            why="" if exists else _why(store, name, node, others.get(name, [])),
            path=store.root / f"{name}-{key}",
            precision=reason(precision) if precision else "",
        )
        lines[name].forecast.update(_forecast(recipe, lines[name], lines.get(BASE), rows))
        rows[name] = lines[name].forecast.get("rows", 0)
    return list(lines.values())


def _records(store: Store) -> dict[str, list[dict[str, Any]]]:
    """What is recorded of the artifacts of a store, by the name of their stage."""
    found: dict[str, list[dict[str, Any]]] = {}
    for artifact in store:
        found.setdefault(artifact.name, []).append(artifact.record)
    return found


def run(
    recipe: Recipe | str | Path,
    store: Store | None = None,
    *,
    only: Sequence[str] = (),
    mirror: dict[str, str] | None = None,
    console: Console | None = None,
    offline: bool = False,
) -> dict[str, Artifact]:
    """Make what is missing of a recipe (or of the stages `only` and what they need); returns every artifact.

    What would stop any of these stages is said before the first one starts. `offline` forbids the network.
    """
    if wrong := [name for name in ADDRESSES if has_userinfo(os.environ.get(name, ""))]:
        raise RecipeError(f"{wrong[0]} in the environment: {USERINFO}")
    if os.environ.get("TERCET_TRACK"):
        raise RecipeError("TERCET_TRACK names trackers no longer; give --report-to, or `report_to` in [placement]")
    store, mirror = store or Store(), mirror or {}
    console = console or _console()
    recipe, commits = pinned(recipe if isinstance(recipe, Recipe) else load(recipe), store, mirror, offline=offline)
    for text in commits:
        console.print(text, markup=False, highlight=False, soft_wrap=not console.is_terminal)
    recipe = recipe.resolved()
    whole = graph(recipe, store, mirror)
    nodes = needed(whole, recipe, only)
    lines = [line for line in plan(recipe, store, mirror, whole) if line.name in nodes]
    preflight.refuse(obstacles(recipe, lines, mirror, offline=offline))
    for text in announced(recipe, store, lines):
        console.print(printable(text), markup=False, highlight=False, soft_wrap=not console.is_terminal)
    if offline:
        os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")  # for the stages' processes
    made: dict[str, Artifact] = {}
    shown = {name: node.kind for name, node in nodes.items()}
    with interruptible(), board(console, shown) as view, calling(recipe, store, nodes, view.note):

        def make(turn: StageTurn) -> None:
            name, node = turn.name, nodes[turn.name]
            if (found := store.find(name, node.key)) is not None:
                view.exists(name, dict(found.metrics))
            else:
                inputs = {need: str(made[need].path) for need in node.inputs}
                found = make_one(StageJob.of(recipe, name, node, inputs, mirror), recipe, store, view, turn)
            made[name] = found

        make_all(recipe, {name: node.inputs for name, node in nodes.items()}, make, view.note)
    return {name: made[name] for name in nodes}


def _console() -> Console:
    """The terminal; under a notebook's cell plain lines, as it would keep every drawing of a board."""
    found = Console()
    return Console(force_jupyter=False, force_terminal=False) if found.is_jupyter else found


def pinned(
    recipe: Recipe, store: Store, mirror: Mapping[str, str], *, offline: bool = False
) -> tuple[Recipe, list[str]]:
    """The recipe with a commit for every hub id (see `preflight.revisions`), and what was resolved just now."""
    from tercet.preflight import revisions

    return revisions.pinned(recipe, store.cache, mirror, offline=offline)


def announced(recipe: Recipe, store: Store, lines: Sequence[PlanLine]) -> Iterator[str]:
    """What a run prints first: how much there is to do, about how long it takes, and what makes it slow."""
    recipe = recipe.resolved()
    missing = {line.name: line.forecast for line in lines if not line.exists}
    base = next((store.find(BASE, line.key) for line in lines if line.name == BASE), None)
    parameters = base.metrics.get("parameters", 0.0) if base is not None else 0.0
    yield from filter(None, (slow_precision(recipe, missing), opening(recipe, missing, parameters)))


def obstacles(
    recipe: Recipe, lines: Sequence[PlanLine], mirror: Mapping[str, str], *, offline: bool = False
) -> list[preflight.Obstacle]:
    """What would stop the missing ones of these stages, known before the first of them starts."""
    missing, made = _divided(lines)
    return preflight.obstacles(recipe, missing, made, mirror, offline=offline)


def needs_network(recipe: Recipe, lines: Sequence[PlanLine], mirror: Mapping[str, str]) -> dict[str, list[str]]:
    """What the missing ones of these stages fetch over the network, or ask there."""
    return preflight.needs_network(recipe, *_divided(lines), mirror)


def _divided(lines: Sequence[PlanLine]) -> tuple[list[str], dict[str, Path]]:
    """The stages that are missing, and the payloads of the others."""
    made = {line.name: line.path / "payload" for line in lines if line.exists}
    return [line.name for line in lines if not line.exists], made


def how_read(recipe: Recipe, lines: Sequence[PlanLine], mirror: Mapping[str, str]) -> dict[str, ModelReading]:
    """How the models are read that a recipe takes from folders: as they were found, or as their config.json says."""
    found: dict[str, ModelReading] = {}
    for line in lines:
        spec, made = recipe.spec(line.name), line.path / "payload" / "tercet" / "layout.json"
        if not isinstance(spec, ModelSource) or getattr(spec, "encoder", False):
            continue
        folder = recipe.folder / Path(mirror.get(spec.model, spec.model)).expanduser()
        if made.is_file():
            found[line.name] = ModelReading(**json.loads(made.read_text("utf-8")))
        elif (folder / "config.json").is_file() and not line.exists:
            trains = line.name == BASE and any(isinstance(stage, TrainSpec) for stage in recipe.stage.values())
            found[line.name] = _asked(folder, template_of(spec, recipe.folder) if trains else ())
    return found


def _asked(folder: Path, template: Sequence[str]) -> ModelReading:
    """What a process that has torch says of a model folder, and of its template where stages train with it."""
    date = template[2:]  # its spec has checked it, and it may be empty
    asked = command(sys.executable, "-m", "tercet.models.support", Outside(folder), *map(Outside, template[:2]), *date)
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    if done.returncode:
        return ModelReading("", f"{folder}: could not be tried ({done.stderr.strip().splitlines()[-1:]})")
    return ModelReading(**json.loads(done.stdout))


def read_mirror(path: str | Path | None) -> dict[str, str]:
    """The `[mirror]` table of a mirror file (or of TERCET_MIRROR), hub id to local file, by paths from that file."""
    if not (path := path or os.environ.get("TERCET_MIRROR")):
        return {}
    path = Path(path)
    try:
        text = read_text(path)
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such mirror file; check --mirror or TERCET_MIRROR") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read as UTF-8 text ({error})") from None
    document = parse(text, str(path))
    check_values(document, lambda _loc: str(path))
    table = document.get("mirror", {})
    if not isinstance(table, dict) or not all(isinstance(value, str) for value in table.values()):
        raise RecipeError(f'{path}: expected a [mirror] table of lines such as "openai/gsm8k" = "gsm8k.jsonl"')
    return {name: str((path.parent / value).resolve()) for name, value in table.items()}


def _identity_spec(recipe: Recipe, name: str, mirror: dict[str, str], cache: Path) -> dict[str, Any]:
    """The resolved spec as the key sees it: local files by name and digest instead of by place."""
    spec = recipe.spec(name)
    plain = spec.identity(recipe.seed_of(name), recipe)
    plain |= {"tables": tables.digest(read)} if (read := spec.tables()) else {}
    table = f"[{BASE if name == BASE else f'stage.{name}'}]"
    for file in spec.local_files():
        *above, last = file.loc
        part: Any = plain
        for key in above:
            part = part[key]
        part[last] = _pinned(file, f"{table} {'.'.join(map(str, file.loc))}", recipe.folder, mirror, cache)
    if code := code_of(recipe, name, cache):
        plain["code"] = code
    if spec.files:
        named = {
            "/".join(filter(None, (source.path, source.subset, source.split))): local_file(source, mirror)
            for source in pkgutil.resolve_name(spec.files)(spec, recipe.folder)
        }
        plain["files"] = {key: _mirrored(key, file, cache) for key, file in sorted(named.items()) if file}
    return plain


def _pinned(file: FileRef, where: str, folder: Path, mirror: dict[str, str], cache: Path) -> str:
    """What the key holds of a path: name and digest of a local file, a hub id as it is."""
    path = file.path
    if found := local_file(Source(path, file.subset, file.split), mirror):
        return f"{path} {_mirrored(path, found, cache)}"
    hub, local = path.startswith(("github:", "hf:")), folder / Path(path).expanduser()
    if local.exists() and not hub:
        return f"{local.name} sha256:{source_digest(local.resolve(), cache)}"
    if hub or (path.count("/") == 1 and not path.startswith((".", "/", "~")) and not path.endswith(_FILES)):
        return path
    raise RecipeError(f"{where}: {path!r} does not exist; paths start at the recipe's folder, hub ids are OWNER/NAME")


_FILES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".gz", ".gguf", ".safetensors", ".jinja")


def _mirrored(key: str, file: str, cache: Path) -> str:
    """The digest of a file that stands in for a public one."""
    path = Path(file)
    if not path.exists():
        raise RecipeError(f"the mirror file maps {key!r} to {path}, which does not exist; fix or remove that line")
    return f"sha256:{source_digest(path.resolve(), cache)}"


def _why(store: Store, name: str, node: Identity, records: Sequence[dict[str, Any]]) -> str:
    """What is wrong with the artifact, or what differs between this stage and the nearest artifact of its name."""
    if fault := store.fault(name, node.key):
        return f"damaged: {fault}; will be set aside and made again"
    if store.draft(name, node.key).path.is_dir():
        return "started; will continue"
    if not records:
        return "not made yet"
    return min((_differences(node, record) for record in records), key=len)


def _differences(identity: Identity, record: dict[str, Any]) -> str:
    parts = []
    was, now = ({**spec, **spec.get("code", {}), "code": None} for spec in (record["spec"], identity.spec))
    for name in sorted(was.keys() | now.keys()):
        old, new = was.get(name), now.get(name)
        if old != new:
            short = all(len(str(value)) < 30 for value in (old, new))
            parts.append(f"{name} {old} -> {new}" if short else f"{name} changed")
    for name in sorted(identity.inputs.keys() | record["inputs"].keys()):
        if identity.inputs.get(name) != record["inputs"].get(name):
            parts.append(f"input {name} changed")
    if identity.version != record["version"]:
        parts.append(f"stage version {record['version']} -> {identity.version}")
    if identity.kind != record["kind"]:
        parts.append(f"kind {record['kind']} -> {identity.kind}")
    return ", ".join(parts)


def _forecast(recipe: Recipe, line: PlanLine, base: PlanLine | None, known: Mapping[str, int]) -> dict[str, int]:
    """Rows, steps and completions of a stage (upper bounds while its inputs are missing); bytes of training state.

    `known` has the rows of the stages before it.
    """
    spec = recipe.spec(line.name)
    if spec.produces == "unpaired":  # a pair gives two answers
        known = {other: number * (1 + (recipe.spec(other).produces == "pairs")) for other, number in known.items()}
    for file in ("rows.parquet", "pairs.parquet", "unpaired.parquet", "benchmark.parquet"):
        if line.exists and (line.path / "payload" / file).is_file():
            import pyarrow.parquet as pq

            return {"rows": pq.read_metadata(line.path / "payload" / file).num_rows}
    ahead = spec.forecast(known)
    weights = [*(base.path / "payload").glob("model*.safetensors")] if base and spec.parallel else []
    if weights:  # master weights, gradients and two moments, all fp32
        ahead["state_bytes"] = 4 * sum(file.stat().st_size for file in weights)
    return {key: value for key, value in ahead.items() if value}


def needed(nodes: dict[str, Identity], recipe: Recipe, only: Sequence[str]) -> dict[str, Identity]:
    """The stages asked for and everything they need, in order; all when nothing is asked for."""
    if unknown := [name for name in only if name not in nodes]:
        raise RecipeError(f"--only names {', '.join(map(repr, unknown))}; stages of this recipe: {', '.join(nodes)}")
    wanted = set(only or nodes)
    for name in reversed(nodes):
        if name in wanted:
            wanted.update(recipe.needs(name))
    return {name: node for name, node in nodes.items() if name in wanted}
