"""What the page tells, collected from artifact folders and nothing else.

The eval stages are given; everything upstream is found by walking each `artifact.json` to the neighbour folders
`<store>/<stage>-<key12>/`. A neighbour that is gone is reported on the page, not an error: evaluations outlive weights.
"""

from __future__ import annotations

import json
import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tercet import journal
from tercet.recipe import BASE, KINDS, EvalSpec, Recipe, RLSpec, kinds_of
from tercet.records import Result, Score, read_results
from tercet.rows import RowError
from tercet.rows_file import read_file

if TYPE_CHECKING:
    from tercet.store import Artifact

Object = dict[str, Any]
Key = tuple[str, str]  # (task, item): ("words@1", "17")
CURVES = {
    "loss": "Loss",
    "critic_loss": "Loss of the value model",
    "reward": "Reward",
    "solved": "Share solved",
    "rewarded": "Share rewarded",
    "score": "Score",
    "accuracy": "Preference accuracy",
    "margin": "Preference margin",
    "kl": "KL to the reference",
    "length": "Completion length (tokens)",
    "truncated": "Share of cut completions",
    "zero_variance": "Share of groups without a signal",
    "entropy": "Entropy (nats per token)",
    "logp_gap": "Log-prob gap, writer to trainer",
    "repetition": "Share that repeats itself",
    "hollow": "Rewarded without an answer",
    "unparsed": "Share without a readable answer",
    "judge_errors": "Share that could not be judged",
    "explained_variance": "Returns that the value model foresaw",
    "grad_norm": "Gradient norm",
    "lr": "Learning rate",
    "clip_share": "Share of clipped tokens",
    "tokens_per_second": "Tokens per second",
    "gflops": "GFLOP per second",
    "generate_efficiency": "Efficiency of generation",
    "generate_tokens_per_second": "Tokens per second of generation",
    "efficiency": "Efficiency (of plain matrix products)",
    "memory_gb": "Peak memory (GB)",
}
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
        """Wall time of the run, 0 when unknown."""
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
    benchmark: str
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
        record = _record(path)
        kind = str(record.get("kind") or (recipe.kind(name) if name in (BASE, *recipe.stage) else "?"))
        parents = {str(n): str(k) for n, k in record.get("inputs", {}).items()}
        for parent, parent_key in parents.items():
            visit(parent, parent_key, path.parent / f"{parent}-{parent_key[:12]}")
        found[name] = Stage(name, kind, key, path, parents, record)

    for name in evals:
        visit(name, inputs[name].key, inputs[name].path)
    return found


def checkpoints(evals: Sequence[str], stages: dict[str, Stage], recipe: Recipe) -> list[Checkpoint]:
    """The evaluated models in the order the recipe tells them."""
    models = [_model_of(stages[name], stages, recipe) for name in evals]
    kinds = [stages[model].kind if model in stages else model for model in models]
    folders = [stages[name].path / "payload" for name in evals]
    entries = [_json(folder / "scores.json") for folder in folders]
    titles = _titles({task: entry["card"]["skill"] for found in entries for task, entry in found.items()})
    out = []
    for name, model, kind, folder, found in zip(evals, models, kinds, folders, entries, strict=True):
        label = KINDS[kind].label if kind in KINDS and kinds.count(kind) == 1 else ""
        label = label or (model if models.count(model) == 1 else name)
        bare: Object = dict.fromkeys(("messages", "prompt_ids", "options", "logps", "greedy"), ())
        bare |= {"reference": "", "output": "", "answer": "", "detail": "", "samples": None}
        lines = read_results(folder / "results.jsonl")
        results = {(line.task, line.item): replace(line, **bare) for line in lines}
        scores = {task: TaskScore.from_json(entry, task=task, title=titles[task]) for task, entry in found.items()}
        whole = folder / "averages.json"
        averages = _json(whole) if whole.is_file() else {}
        out.append(Checkpoint(label, name, model, scores, results, averages, folder))
    return out


def records(point: Checkpoint, keys: Container[Key]) -> dict[Key, Result]:
    """The whole result lines of some items: question, texts, verdicts. An evaluation as such is too long to keep."""
    lines = read_results(point.payload / "results.jsonl")
    return {key: line for line in lines if (key := (line.task, line.item)) in keys}


def openings(inputs: Mapping[str, Artifact]) -> dict[str, list[str]]:
    """How often evaluations opened the unseen suite in the stores of these inputs: `{"final-3f2a": ["gpqa@1",
    "gpqa@1"]}`.

    One line of the journal is one start of an evaluation, on the disk before anything is asked.
    """
    found: dict[str, list[str]] = {}
    ledgers = dict.fromkeys(artifact.path.parent / "unseen.jsonl" for artifact in inputs.values())
    for opened in (record for path in ledgers for record in journal.read(path)):
        found.setdefault(str(opened["benchmark"]), []).append(", ".join(opened["tasks"]))
    return found


def curves(stage: Stage) -> list[Curve]:
    """All finite numbers of metrics.jsonl; a resumed stage repeats steps, the last value of a step counts."""
    path = stage.path / "metrics.jsonl"
    if not path.is_file():
        return []
    steps: dict[float, Object] = {}
    for line in read_file(path):
        if "step" in line:
            steps[float(line["step"])] = line
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
    """Mean efficiency of what a stage did on its model, by kind: `{"": 0.71, "generate": 0.55}`; or nothing."""
    path = stage.path / "metrics.jsonl"
    lines = {line.get("step"): line for line in read_file(path)} if path.is_file() else {}
    found = {}
    for kind, name in (("", "efficiency"), ("generate", "generate_efficiency")):
        values = [float(line[name]) for line in lines.values() if _finite(line.get(name))]
        if values:
            found[kind] = sum(values) / len(values)
    return found


def _title(name: str) -> str:
    for kind in ("reward", "score"):
        if name.startswith(f"{kind}_"):
            return f"{CURVES[kind]}: {name.removeprefix(f'{kind}_')}"
    return CURVES.get(name, name.replace("_", " ").capitalize())


def truncation(stage: Stage) -> Object:
    """The length limit, what happens to longer rows, and per source what was lost; empty when gone."""
    path = stage.file("tercet/truncation.json")
    return _json(path) if path else {}


def alerts(stage: Stage) -> list[Object] | None:
    """What the monitors of an RL stage raised, in order; None where it was not watched, or its folder is gone."""
    path = stage.file("tercet/alarms.json")
    return _json(path, list) if path else None


def accuracies(stage: Stage) -> dict[str, list[Object]]:
    """How often a reward model preferred the chosen answer: per set of pairs all of it, its sections, its subsets.

    Example: `{"held out": [{"name": "all", "score": 0.81, "stderr": 0.02, "n": 400}, ...]}`. Empty when not measured.
    """
    path = stage.file("tercet/accuracy.json")
    found = _json(path) if path else {}
    sets = {"pairs held out": found.get("held_out"), **found.get("tests", {})}
    return {name: _told(entry) for name, entry in sets.items() if entry}


def _told(entry: Object) -> list[Object]:
    parts = [("all", "", entry)]
    for kind, key in (("section", "rewardbench"), ("subset", "subsets")):
        parts += [(name, kind, one) for name, one in entry.get(key, {}).items()]
    keys = {"score": "accuracy", "stderr": "stderr", "n": "n"}
    return [{"name": name, "kind": kind} | {new: one[old] for new, old in keys.items()} for name, kind, one in parts]


def _record(folder: Path) -> Object:
    path = folder / "artifact.json"
    return _json(path) if path.is_file() else {}


def _model_of(stage: Stage, stages: dict[str, Stage], recipe: Recipe) -> str:
    """The stage whose weights an evaluation looked at: as the recipe says, else the input that is not an evaluation."""
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


def _json(path: Path, kind: type = dict) -> Any:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise RowError(
            f"{path}, line {error.lineno}: not valid JSON ({error.msg}); run `tercet check` on the folder"
        ) from None
    if not isinstance(value, kind):
        expected = "object" if kind is dict else "list"
        raise RowError(f"{path}: expected a JSON {expected}, got {type(value).__name__}")
    return value
