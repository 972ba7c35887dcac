"""What the page shows, collected from artifact folders and nothing else.

The eval stages are given; everything upstream is found by walking each `artifact.json` to the neighbour folders
`<store>/<stage>-<key12>/`. A neighbour that is gone is reported on the page and no error: weights may be deleted
before their evaluations. So is one whose record is damaged.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Container, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tercet import artifact_json, journal
from tercet.folders import FolderError
from tercet.recipe import BASE, KINDS, EvalSpec, Recipe, RLSpec, kinds_of
from tercet.records import Result, Score, read_results
from tercet.rows import RowError
from tercet.rows_file import read_file
from tercet.store import Artifact

Object = dict[str, Any]
Key = tuple[str, str]  # (task, item): ("words@1", "17")
TITLES: dict[str, dict[str, str]] = tomllib.loads((Path(__file__).parent / "titles.toml").read_text(encoding="utf-8"))
CURVES = TITLES["curves"]
MAIN_CURVES = ("loss", "reward", "accuracy", "margin", "kl", "length", "grad_norm", "lr")
MONITORED = ("rewarded", "truncated", "zero_variance", "entropy", "logp_gap", "repetition", "hollow", "critic_loss")
MAIN_RL = (*(name for name in MAIN_CURVES if name not in ("grad_norm", "lr")), *MONITORED)


@dataclass(frozen=True)
class Stage:
    """One artifact of the lineage; `record` is its artifact.json, empty when the folder is gone."""

    name: str
    kind: str
    key: str
    path: Path
    inputs: dict[str, str]
    record: Object = field(default_factory=dict)

    @property
    def present(self) -> bool:
        """Whether the folder was there."""
        return bool(self.record)

    @property
    def seconds(self) -> float:
        """Wall time of the stage, 0 when unknown."""
        return float(self.record.get("seconds") or 0.0)

    def file(self, name: str) -> Path | None:
        """A payload file, or None when the folder or the file is gone."""
        path = self.path / "payload" / name
        return path if path.is_file() else None


@dataclass(frozen=True, kw_only=True)
class TaskScore(Score):
    """A score as the page shows it.

    `title` is what people call the task: its skill, or its name where several tasks of the page test one skill.
    """

    task: str
    title: str

    @property
    def bounds(self) -> tuple[float, float]:
        """The 95 % interval; the score alone where it has none."""
        low, high = (self.score if bound is None else bound for bound in (self.low, self.high))
        return low, high

    @property
    def graded(self) -> bool:
        """True where an item is right or wrong; False where only the log-probability of given texts is measured."""
        return self.metric in ("accuracy", "choice")


@dataclass(frozen=True)
class Checkpoint:
    """One evaluated model: `label` for people ("SFT"), `results` by (task, item), without texts (see `records`).

    `averages` is averages.json: `{"dev": {"rows": {"MMLU": {"score", "stderr"}}, "averages": {"12 rows": ...}}}`.
    """

    label: str
    model: str
    scores: dict[str, TaskScore]
    results: dict[Key, Result]
    averages: Object = field(default_factory=dict)
    payload: Path = Path()


@dataclass(frozen=True)
class Curve:
    """One metric of one training stage over its steps."""

    stage: str
    name: str
    title: str
    points: list[tuple[float, float]]
    main: bool


def walk(evals: Sequence[str], inputs: dict[str, Artifact], recipe: Recipe) -> dict[str, Stage]:
    """Every stage upstream of the evaluations, parents before children, in a stable order."""
    found: dict[str, Stage] = {}

    def visit(name: str, key: str, path: Path) -> None:
        if name in found:
            return
        record: Object = {}
        with suppress(FolderError, OSError):
            record = artifact_json.read(path)
        kind = str(record.get("kind") or (recipe.kind(name) if name in (BASE, *recipe.stage) else "?"))
        parents = {str(n): str(k) for n, k in record.get("inputs", {}).items()}
        for parent, parent_key in parents.items():
            visit(parent, parent_key, path.parent / f"{parent}-{parent_key[:12]}")
        found[name] = Stage(name, kind, key, path, parents, record)

    for name in evals:
        visit(name, inputs[name].key, inputs[name].path)
    return found


def checkpoints(evals: Sequence[str], stages: dict[str, Stage], recipe: Recipe) -> list[Checkpoint]:
    """The evaluated models in the order of the report stage."""
    models = [_model_of(stages[name], stages, recipe) for name in evals]
    kinds = [stages[model].kind if model in stages else model for model in models]
    folders = [stages[name].path / "payload" for name in evals]
    entries = [read_json(folder / "scores.json") for folder in folders]
    titles = _titles({task: entry["card"]["skill"] for found in entries for task, entry in found.items()})
    out = []
    for name, model, kind, folder, found in zip(evals, models, kinds, folders, entries, strict=True):
        label = KINDS[kind].label if kind in KINDS and kinds.count(kind) == 1 else ""
        label = label or (model if models.count(model) == 1 else name)
        # Results are compared without their texts, which of all items would not fit into memory.
        bare: Object = dict.fromkeys(("messages", "prompt_ids", "options", "logps", "greedy"), ())
        bare |= {"reference": "", "output": "", "answer": "", "detail": "", "samples": None}
        lines = read_results(folder / "results.jsonl")
        results = {(line.task, line.item): replace(line, **bare) for line in lines}
        scores = {task: TaskScore.from_json(entry, task=task, title=titles[task]) for task, entry in found.items()}
        averages = _stored(folder / "averages.json")
        out.append(Checkpoint(label, model, scores, results, averages, folder))
    return out


def records(point: Checkpoint, keys: Container[Key]) -> dict[Key, Result]:
    """The whole result lines of some items, with their texts; those of all items would not fit into memory."""
    lines = read_results(point.payload / "results.jsonl")
    return {key: line for line in lines if (key := (line.task, line.item)) in keys}


def openings(inputs: Mapping[str, Artifact]) -> dict[str, list[str]]:
    """How often evaluations opened the unseen suite in the stores of these inputs.

    Example: `{"final-3f2a": ["gpqa@1", "gpqa@1"]}`. An evaluation adds a line to the log before it asks anything.
    """
    found: dict[str, list[str]] = {}
    logs = dict.fromkeys(artifact.path.parent / "unseen.jsonl" for artifact in inputs.values())
    for opened in (record for path in logs for record in journal.read(path)):
        found.setdefault(str(opened["evaluation"]), []).append(", ".join(opened["tasks"]))
    return found


def curves(stage: Stage) -> list[Curve]:
    """All finite numbers of metrics.jsonl, step by step."""
    return curves_of(stage, _metrics(stage).values())


def curves_of(stage: Stage, lines: Iterable[Object]) -> list[Curve]:
    """The same of lines that were read; of a repeated step the last counts."""
    steps = {float(line["step"]): line for line in lines if _finite(line.get("step"))}
    names = {name for line in steps.values() for name in line} - {"step", "seconds", "time"}
    known = [name for title in CURVES for name in (title, *sorted(n for n in names if n.startswith(f"{title}_")))]
    order = [name for name in dict.fromkeys(known) if name in names] + sorted(names - set(known))
    first = MAIN_RL if stage.kind in kinds_of(RLSpec) else MAIN_CURVES
    out = []
    for name in order:
        points = [(step, float(line[name])) for step, line in sorted(steps.items()) if _finite(line.get(name))]
        if points:
            out.append(Curve(stage.name, name, _title(name), points, name in first or name.startswith("reward_")))
    return out


def efficiencies(stage: Stage) -> dict[str, float]:
    """Mean efficiency of training, and of generation where the stage generates: `{"": 0.71, "generate": 0.55}`."""
    lines, found = _metrics(stage).values(), {}
    for kind, name in (("", "efficiency"), ("generate", "generate_efficiency")):
        values = [float(line[name]) for line in lines if _finite(line.get(name))]
        if values:
            found[kind] = sum(values) / len(values)
    return found


def _metrics(stage: Stage) -> dict[float | None, Object]:
    """The lines of metrics.jsonl by step; a resumed stage repeats steps, and the last line of a step counts.

    What follows a damaged line is left out: curves must not cost a page, and `tercet check` names the file.
    """
    path, found = stage.path / "metrics.jsonl", {}
    with suppress(RowError):
        for line in read_file(path) if path.is_file() else ():
            found[line.get("step")] = line
    return found


def _title(name: str) -> str:
    for kind in ("reward", "score"):
        if name.startswith(f"{kind}_"):
            return f"{CURVES[kind]}: {name.removeprefix(f'{kind}_')}"
    return CURVES.get(name, name.replace("_", " ").capitalize())


def truncation(stage: Stage) -> Object:
    """The length limit, what happens to longer rows, and per source what was lost; empty when gone."""
    return _stored(stage.path / "payload" / "tercet" / "truncation.json")


def accuracies(stage: Stage) -> dict[str, list[Object]]:
    """How often a reward model preferred the chosen answer: for every set of pairs the whole, its sections and subsets.

    Example: `{"held out": [{"name": "all", "score": 0.81, "stderr": 0.02, "n": 400}, ...]}`. Empty when not measured.
    """
    found = _stored(stage.path / "payload" / "tercet" / "accuracy.json")
    sets = {"pairs held out": found.get("held_out"), **found.get("tests", {})}
    return {name: _accuracies(entry) for name, entry in sets.items() if entry}


def _accuracies(entry: Object) -> list[Object]:
    parts = [("all", "", entry)]
    for kind, key in (("section", "rewardbench"), ("subset", "subsets")):
        parts += [(name, kind, one) for name, one in entry.get(key, {}).items()]
    keys = {"score": "accuracy", "stderr": "stderr", "n": "n"}
    return [{"name": name, "kind": kind} | {new: one[old] for new, old in keys.items()} for name, kind, one in parts]


def _stored(path: Path) -> Object:
    """The JSON object in a file; empty where the file or its folder is gone."""
    return read_json(path) if path.is_file() else {}


def _model_of(stage: Stage, stages: dict[str, Stage], recipe: Recipe) -> str:
    """The stage whose weights were evaluated: as the recipe says, else the input that is not a benchmark."""
    spec = recipe.stage.get(stage.name)
    if isinstance(spec, EvalSpec):
        return spec.model
    return next((name for name in stage.inputs if stages[name].kind != "benchmark"), stage.name)


def _titles(skills: dict[str, str]) -> dict[str, str]:
    """Skills where every task has its own, else the names of the tasks without their versions where those differ."""
    if len(set(skills.values())) == len(skills):
        return skills
    names = {task: task.rpartition("@")[0] or task for task in skills}
    return names if len(set(names.values())) == len(names) else {task: task for task in skills}


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def read_json(path: Path, kind: type = dict) -> Any:
    """The JSON object (or list) in a file of an artifact."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise RowError(f"{path}, line {error.lineno}: not valid JSON ({error.msg}); run `tercet check`") from None
    if not isinstance(value, kind):
        expected = "object" if kind is dict else "list"
        raise RowError(f"{path}: expected a JSON {expected}, got {type(value).__name__}")
    return value
