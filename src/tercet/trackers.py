"""The trackers of `placement.report_to`: Weights & Biases, trackio, TensorBoard and MLflow, one class each.

A stage that trains is one run there, named like its artifact: its table and the whole recipe are the config, and what
it was made from are the tags. Files of runs, and a record of each, stand in `tracking/` beside the artifacts: a stage
that goes on after a kill goes on in the same run, and the report's stage finds the runs that its page belongs to.
"""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tercet.journal import make_folder, write_json
from tercet.recipe import Recipe
from tercet.store import Artifact, Draft, Store
from tercet.track import Sink, Values, note, said

FOLDER = "tracking"  # in the store
RECORD = "trackers.json"  # in a run's folder: what it is, and for each tracker that has it how to look at it
PAGE = "index.html"  # in the payload of a report
TAG = 64  # characters that a tag of Weights & Biases may have
PARAM, PARAMS = 500, 100  # characters of a value, and values a request, that every MLflow server takes
CELL = 1_000  # characters of a table's cell in TensorBoard, which draws them all at once


@dataclass(frozen=True)
class TrackedRun:
    """One stage as trackers see it.

    Example: `TrackedRun("quickstart", "sft-3f2a90c1b7de", "sft", Path("runs"), config, {"base": "base-91c0f2ab34cd"})`.
    """

    project: str  # the recipe's name
    name: str
    kind: str
    store: Path
    config: dict[str, Any]
    lineage: dict[str, str]  # stage -> artifact, of all that it was made from

    @property
    def root(self) -> Path:
        """The folder of all runs."""
        return self.store / FOLDER

    @property
    def folder(self) -> Path:
        """The folder of this run."""
        return self.root / self.name

    @property
    def about(self) -> str:
        """What the run is, in Markdown."""
        made = "\n".join(f"- {stage}: `{artifact}`" for stage, artifact in self.lineage.items())
        config = json.dumps(self.config, indent=2, ensure_ascii=False)
        head = f"`{self.name}`, kind {self.kind}, of the recipe {self.project}"
        return f"{head}\n\nmade from\n\n{made}\n\n```json\n{config}\n```"


class Tracked(Sink, Protocol):
    """A sink that the page of a whole run can be linked from; `where` says how to look at it."""

    where: str

    def link(self, page: Path) -> None:
        """Show where the report is; take it along where the tracker can hold a page."""


Lines = Sequence[Mapping[str, Any]]


def start(
    draft: Draft, recipe: Recipe, inputs: Sequence[str], names: Iterable[str], step: int, before: Lines
) -> list[Sink]:
    """The run of a stage that begins (or goes on) at `step`, in each of these trackers; `before` are its lines so far.

    `inputs` are the folders of its artifacts.
    """
    made = [one for folder in inputs for one in Store(draft.root).lineage(Artifact.read(Path(folder)))]
    run = TrackedRun(
        project=recipe.name,
        name=f"{draft.name}-{draft.key}",
        kind=recipe.kind(draft.name),
        store=draft.root,
        config={"stage": recipe.spec(draft.name).model_dump(mode="json"), "recipe": recipe.model_dump(mode="json")},
        lineage={one.name: one.path.name for one in made},
    )
    return opened(run, names, step, before)


def opened(run: TrackedRun, names: Iterable[str], step: int, before: Lines) -> list[Sink]:
    """The run in each of these trackers; one that is new to it is told the steps before."""
    make_folder(run.folder)
    known, sinks = _trackers_of(run.folder), list[Sink]()
    for name in names:
        try:
            sink = TRACKERS[name](run, step)
            for line in before if name not in known else ():
                sink.log(int(line["step"]), {key: value for key, value in line.items() if key != "step"})
        except Exception as error:  # the others go on, and so does the stage
            note(f"{name} could not begin and is told nothing of this stage: {said(error)}")
            continue
        known[name] = sink.where
        sinks.append(sink)
    about = {key: getattr(run, key) for key in ("project", "name", "kind", "config", "lineage")}
    write_json(run.folder / RECORD, {"run": about, "trackers": known})
    return sinks


def link(report: Artifact, names: Sequence[str]) -> Iterator[str]:
    """Link a report from the runs of what it shows, in those of the trackers that have them; what failed, in words."""
    store = Store(report.path.parent)
    shown = store.lineage(report) if names and report.kind == "report" else []
    for folder in [store.root / FOLDER / one.path.name for one in shown]:
        for name in [known for known in _trackers_of(folder) if known in names]:
            about = json.loads((folder / RECORD).read_text(encoding="utf-8"))["run"]
            try:
                sink = TRACKERS[name](TrackedRun(store=store.root, **about), None)
                sink.link(report.payload / PAGE)
                sink.close(True)
            except Exception as error:  # the page is made; nothing of it depends on a tracker
                yield f"{name}: {folder.name} could not be linked with the report ({said(error)})"


def places(artifacts: Iterable[Path]) -> list[str]:
    """How to look at the runs of these artifacts, a line for each tracker."""
    found = [_trackers_of(folder.parent / FOLDER / folder.name) for folder in artifacts]
    return list(dict.fromkeys(f"{name}: {where}" for one in found for name, where in one.items()))


def _trackers_of(folder: Path) -> dict[str, str]:
    file = folder / RECORD
    return dict(json.loads(file.read_text(encoding="utf-8"))["trackers"]) if file.is_file() else {}


class WandB:
    """A run of Weights & Biases. Repeated steps of a stage that goes on are left out there by the server."""

    name = "wandb"

    def __init__(self, run: TrackedRun, step: int | None) -> None:
        import wandb

        self._wandb = wandb
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or run.project,
            id=run.name,
            name=run.name,
            group=run.project,
            job_type=run.kind,
            config=run.config,
            tags=[tag[-TAG:] for tag in (f"kind:{run.kind}", *run.lineage.values())],
            resume="allow",
            dir=os.environ.get("WANDB_DIR") or str(run.root),
            settings=wandb.Settings(console="off"),  # the log is the stage's own
        )
        self.where = self.run.project_url or f"wandb sync {run.root}/wandb/offline-run-*"

    def log(self, step: int, values: Values) -> None:
        """NaN where a value is none."""
        self.run.log(_floats(values), step=step)

    def table(self, name: str, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """A table of its own for every step."""
        columns = list(rows[0])
        table = self._wandb.Table(columns=columns, data=[[row[key] for key in columns] for row in rows])
        self.run.log({name: table}, step=step)

    def link(self, page: Path) -> None:
        """The page itself, and its place."""
        self.run.log({"report": self._wandb.Html(page.read_text(encoding="utf-8"), inject=False)})
        self.run.summary["report_path"] = str(page)

    def close(self, done: bool) -> None:
        """Waits until all is sent."""
        self.run.finish(exit_code=0 if done else 1)


class Trackio:
    """A run of trackio: on this machine, or where `TRACKIO_SPACE_ID` or `TRACKIO_SERVER_URL` says."""

    name = "trackio"

    def __init__(self, run: TrackedRun, step: int | None) -> None:
        import trackio

        self._trackio = trackio
        config = run.config | {"kind": run.kind, "lineage": run.lineage}
        self.run = trackio.init(project=run.project, name=run.name, config=config, resume="allow", embed=False)
        self.where = f"trackio show --project {run.project}"

    def log(self, step: int, values: Values) -> None:
        """NaN where a value is none."""
        self.run.log(_floats(values), step=step)

    def table(self, name: str, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """A table at this step."""
        columns = list(rows[0])
        data = [[row[key] for key in columns] for row in rows]
        self.run.log({name: self._trackio.Table(columns=columns, data=data)}, step=step)

    def link(self, page: Path) -> None:
        """A text with the page's place."""
        self.run.log({"report": self._trackio.Markdown(f"[report]({page.as_uri()})")})

    def close(self, done: bool) -> None:
        """Waits until all is sent."""
        self.run.finish()


class TensorBoard:
    """Event files in the run's folder. What a stage logs again after a kill takes the place of what it had logged."""

    name = "tensorboard"

    def __init__(self, run: TrackedRun, step: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(run.folder), purge_step=step)
        self.where = f"tensorboard --logdir {run.root}"
        if step is not None:
            self.writer.add_text("about", run.about, step)

    def log(self, step: int, values: Values) -> None:
        """On the disk at once: a kill loses no step that a checkpoint has."""
        for key, value in _floats(values).items():
            self.writer.add_scalar(key, value, step)
        self.writer.flush()

    def table(self, name: str, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """A Markdown table as text."""
        lines = [list(rows[0]), ["---"] * len(rows[0]), *([_cell(value) for value in row.values()] for row in rows)]
        self.writer.add_text(name, "\n".join(f"| {' | '.join(line)} |" for line in lines), step)

    def link(self, page: Path) -> None:
        """A text with the page's place."""
        self.writer.add_text("report", f"`{page}`")

    def close(self, done: bool) -> None:
        """Ends the file."""
        self.writer.close()


class MLflow:
    """A run of MLflow: where `MLFLOW_TRACKING_URI` says, else in a database in the store."""

    name = "mlflow"

    def __init__(self, run: TrackedRun, step: int | None) -> None:
        from mlflow import MlflowClient

        given = os.environ.get("MLFLOW_TRACKING_URI", "")
        uri = given or f"sqlite:///{run.root / 'mlflow.db'}"
        self.client = MlflowClient(tracking_uri=uri)
        self.where = (given and "MLFLOW_TRACKING_URI") or f"mlflow ui --backend-store-uri {uri}"
        files = None if given else (run.root / "mlflow").as_uri()
        project = os.environ.get("MLFLOW_EXPERIMENT_NAME") or run.project
        found = self.client.get_experiment_by_name(project)
        experiment = found.experiment_id if found else self.client.create_experiment(project, artifact_location=files)
        named = f"tags.`tercet.artifact` = '{run.name}'"
        earlier = self.client.search_runs([experiment], filter_string=named, max_results=1)
        self.id, self.seen = self._goes_on(earlier[0]) if earlier else (self._begun(experiment, run), -1)

    def _begun(self, experiment: str, run: TrackedRun) -> str:
        from mlflow.entities import Param

        tags = {"tercet.artifact": run.name, "tercet.kind": run.kind}
        tags |= {f"tercet.lineage.{stage}": artifact for stage, artifact in run.lineage.items()}
        made = str(self.client.create_run(experiment, run_name=run.name, tags=tags).info.run_id)
        params = [Param(key, value[:PARAM]) for key, value in _flat(run.config.get("stage", {}))]
        for first in range(0, len(params), PARAMS):
            self.client.log_batch(made, params=params[first : first + PARAMS])
        self.client.log_dict(made, run.config, "config.json")
        return made

    def _goes_on(self, run: Any) -> tuple[str, int]:
        """The run's id and its last step: what is logged again after a kill would stand there twice."""
        key = next(iter(run.data.metrics), None)
        steps = [one.step for one in self.client.get_metric_history(run.info.run_id, key)] if key else []
        self.client.update_run(run.info.run_id, status="RUNNING")
        return str(run.info.run_id), max(steps, default=-1)

    def log(self, step: int, values: Values) -> None:
        """One request."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(_metric(key), value, now, step) for key, value in _floats(values).items()]
        if step > self.seen or any(key.startswith("final/") for key in values):
            self.client.log_batch(self.id, metrics=metrics)

    def table(self, name: str, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Rows at the end of one table."""
        if step > self.seen:
            columns = {key: [row[key] for row in rows] for key in rows[0]}
            self.client.log_table(self.id, {"step": [step] * len(rows), **columns}, f"{name}.json")

    def link(self, page: Path) -> None:
        """The page as an artifact of the run, and its place as a tag."""
        self.client.log_artifact(self.id, str(page), "report")
        self.client.set_tag(self.id, "tercet.report", str(page))

    def close(self, done: bool) -> None:
        """How it ended."""
        self.client.set_terminated(self.id, "FINISHED" if done else "FAILED")


TRACKERS: dict[str, Callable[[TrackedRun, int | None], Tracked]] = {
    "wandb": WandB,
    "trackio": Trackio,
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
}


def _floats(values: Values) -> dict[str, float]:
    return {key: math.nan if value is None else value for key, value in values.items()}


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """The leaves of nested tables: `("sources.0.path", "rows.jsonl")`."""
    if isinstance(value, (dict, list)) and value:
        for key, one in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _flat(one, f"{path}.{_metric(str(key))}" if path else _metric(str(key)))
    elif path:
        yield path, value if isinstance(value, str) else json.dumps(value)


def _metric(key: str) -> str:
    """A name as MLflow takes it."""
    return re.sub(r"[^\w\-. /]", "_", key)


def _cell(value: Any) -> str:
    """A value as a cell of a Markdown table."""
    text = value if isinstance(value, str) else f"{value:.6g}" if isinstance(value, float) else str(value)
    text = text if len(text) <= CELL else text[: CELL - 1] + "…"
    return text.strip().replace("&", "&amp;").replace("<", "&lt;").replace("|", "&#124;").replace("\n", "<br>") or " "
