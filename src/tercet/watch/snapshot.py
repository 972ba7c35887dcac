"""What stands in a store at this moment: every stage with its state, and one stage with all that it reports.

Only files are read. Whether a stage runs is seen from the lock that its process holds, without asking for it.
"""

from __future__ import annotations

import json
import re
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from tercet import artifact_json, machine
from tercet.folders import FolderError
from tercet.recipe import RLSpec, kinds_of
from tercet.report import rollouts, unfinished
from tercet.report.collect import Curve, Stage, curves_of
from tercet.rows import RowError
from tercet.store import Store
from tercet.track import SHOWN, read_progress
from tercet.watch.lines import GrowingLines, Object, last_objects

FRESH = 60.0  # seconds: a draft that changed since then is worked on, where locks cannot be seen
STATES = ("running", "failed", "stopped", "done", "damaged")
ALERT = re.compile(r"^alert after round (\d+): (.*)$", re.MULTILINE)
MOST_LOG = 1 << 18  # bytes at the end of a log in which alerts are looked for
MOST_BYTES = 16 << 20  # of a group of rows that is read to show its last ones
MOST_OPEN = 12  # stages whose lines are kept in memory
MOST_FIGURES = 4  # of one stage in the list


class StoreView:
    """Looks at a store; keeps what cannot change any more, and how far running stages were when first seen."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._records: dict[Path, tuple[int, Object]] = {}  # of artifacts and jobs, by file: when it was written
        self._first: dict[str, tuple[float, float]] = {}  # folder -> steps done, at what time
        self._lines: dict[Path, GrowingLines] = {}

    def stages(self) -> list[Object]:
        """Every stage: those that run, then those that ended early, then artifacts, the newest first."""
        if not self.store.root.is_dir():
            raise FileNotFoundError(f"{self.store.root}: no such folder; expected a store, e.g. runs")
        locked = _locked()
        found = [self._draft(folder, locked) for folder in self.store.root.glob(".draft-*-*") if folder.is_dir()]
        found += [self._artifact(folder) for folder in self.store.folders()]
        return sorted(found, key=lambda one: (STATES.index(one["state"]) // 3, -one["at"], one["folder"]))

    def stage(self, folder: str) -> tuple[Object, Stage] | None:
        """One stage of the store by the name of its folder, as it is listed and as reports know it; None if gone."""
        path = self.store.root / folder
        if "/" in folder or folder.startswith("..") or not path.is_dir() or path.is_symlink():
            return None
        if folder.startswith(".draft-"):
            about, job = self._draft(path, _locked()), self._kept(path / "job.json")
            record = {"spec": job.get("identity", {}).get("spec", {}), "metrics": about["figures"]}
            inputs = {name: Path(one).name.rpartition("-")[2] for name, one in job.get("inputs", {}).items()}
        elif artifact_json.is_in(path):
            about, record = self._artifact(path), self._kept(path / artifact_json.NAME)
            inputs = dict(record.get("inputs", {}))
        else:
            return None
        return about, Stage(about["name"], about["kind"], about["key"], path, inputs, record)

    def curves(self, stage: Stage) -> list[Curve]:
        """The curves of a stage, of which only what is new is read; lines that are damaged are left out."""
        file = stage.path / "metrics.jsonl"
        lines = self._lines.pop(file, None) or GrowingLines(file)
        self._lines = dict(list(self._lines.items())[1 - MOST_OPEN :]) | {file: lines}
        return curves_of(stage, lines.refresh())

    def job(self, stage: Stage) -> Object:
        """The job of a stage that has not ended."""
        return self._kept(stage.path / "job.json")

    def _artifact(self, folder: Path) -> Object:
        record = self._kept(folder / artifact_json.NAME)
        about = _about(folder, "done" if record else "damaged")
        with suppress(OSError):
            about["at"] = (folder / artifact_json.NAME).stat().st_mtime
        if record:
            about |= {"kind": record["kind"], "seconds": record.get("seconds"), "figures": _figures(record["metrics"])}
            alerts = folder / "payload" / "tercet" / "alerts.json"
            about["alerts"] = _count(alerts) if about["kind"] in kinds_of(RLSpec) else 0
            about["page"] = about["kind"] == "report"
        else:
            about["note"] = "its record cannot be read; `tercet check` says more"
        return about

    def _draft(self, folder: Path, locked: set[int]) -> Object:
        about = _about(folder, "stopped")
        job, progress, ended = self._kept(folder / "job.json"), read_progress(folder), _json(folder / "result.json")
        recipe = job.get("recipe", {})
        about |= {"kind": _kind(recipe, about["name"]), "recipe": str(recipe.get("name", ""))}
        about["at"] = _changed(folder)
        if ended:
            asked = int(ended.get("code") or 128) >= 128  # by a signal, or by force
            about |= {"state": "stopped" if asked else "failed", "note": str(ended.get("message", ""))}
        elif self._runs(about["place"], locked) or time.time() - about["at"] < FRESH:
            about |= {"state": "running", "note": str(progress.get("note") or "")}
        else:
            about["note"] = "its process ended without a word; the same command continues it"
        done, total = (int(progress.get(key) or 0) for key in ("done", "total"))
        about |= {"done": done, "of": total, "seconds": progress.get("seconds")}
        about["figures"] = _figures(progress.get("metrics") or {})
        about["alerts"] = len(live_alerts(folder)) if about["kind"] in kinds_of(RLSpec) else 0
        if about["state"] == "running":
            about["left"] = self._left(folder.name, done, total, progress.get("seconds"))
        return about

    def _runs(self, place: str, locked: set[int]) -> bool:
        with suppress(OSError):
            return (self.store.root / ".locks" / place).lstat().st_ino in locked
        return False

    def _left(self, folder: str, done: int, total: int, seconds: Any) -> float | None:
        """Seconds to the end, at the speed since this stage was first seen, or of all its time where it is new."""
        now = time.monotonic()
        first, at = self._first.setdefault(folder, (done, now))
        if total <= done or not done:
            return None
        if done > first and now > at:
            return (total - done) * (now - at) / (done - first)
        return (total - done) * float(seconds) / done if isinstance(seconds, int | float) else None

    def _kept(self, file: Path) -> Object:
        """A record of an artifact, or a job: read once, and again if the file was replaced; empty if unreadable."""
        with suppress(OSError, FolderError, ValueError):
            written = file.stat().st_mtime_ns
            if self._records.get(file, (0, {}))[0] != written:
                artifact = file.name == artifact_json.NAME
                self._records[file] = written, artifact_json.read(file.parent) if artifact else _json(file)
            return self._records[file][1]
        return {}


def recent(view: StoreView, stage: Stage, most: int = 6) -> list[Object]:
    """What a stage wrote last: completions of the last round, or answers of an evaluation, as plain texts.

    Example of one: `{"asked": "What is 2 + 2?", "text": "4", "figure": "score 1", "good": True, "about": "gsm8k@1"}`.
    """
    with suppress(RowError, FolderError, OSError, KeyError, TypeError, ValueError, IndexError):
        if stage.kind in kinds_of(RLSpec):
            table = stage.path / "payload" / rollouts.FILE
            found = _last_rows(table) if table.is_file() else _last_round(view, stage)
            return [_completion(one) for one in found[-most:]]
        logs = (stage.path / "work" / "results.jsonl", stage.path / "payload" / "results.jsonl")
        return [_answer(line) for file in logs for line in last_objects(file, most)][-most:]
    return []


def _last_round(view: StoreView, stage: Stage) -> list[Object]:
    """The completions of the last whole round in the log of a stage that runs."""
    lines = last_objects(stage.path / unfinished.LOG, 1)
    rows = unfinished.prompts(view.job(stage)) if lines else {}
    return [one for line in lines for one in unfinished.completions(line, rows)]


def _last_rows(table: Path) -> list[Object]:
    """The last rows of a table, unless its last group of rows is too large to be read in passing."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(table) as found:
        last = found.num_row_groups - 1
        if last < 0 or found.metadata.row_group(last).total_byte_size > MOST_BYTES:
            return []
        columns = ["step", "verifier", "prompt", "text", "outcome", "reward"]
        group = found.read_row_group(last, columns=columns)
        return list(group.slice(max(0, group.num_rows - 100)).to_pylist())


def _completion(one: Object) -> Object:
    return {
        "asked": one["prompt"],
        "text": one["text"],
        "figure": f"reward {one['reward']:.3g}",
        "good": one["reward"] > 0,
        "about": f"round {one['step']} · {one['verifier']} · {one['outcome']}",
    }


def _answer(line: Object) -> Object:
    asked = [turn["content"] for turn in line["messages"] if turn["role"] == "user"]
    graded = line.get("outcome", "graded")
    return {
        "asked": asked[-1] if asked else "",
        "text": str(line.get("output") or ""),
        "figure": f"score {line['score']:.3g}" if graded == "graded" else graded,
        "good": float(line["score"]) >= 0.5 if line.get("metric") != "bpb" else None,
        "about": f"{line['task']} · {line['item']}",
    }


def live_alerts(folder: Path) -> list[Object]:
    """The alerts of an RL stage that has not ended, which stand in its log: `alert after round 3: ...`."""
    found = ALERT.findall(log_tail(folder, MOST_LOG))
    return [{"title": "Alert", "first": int(number), "message": message} for number, message in found]


def log_tail(folder: Path, most: int = 4000) -> str:
    """The end of a stage's log."""
    with suppress(OSError), (folder / "log.txt").open("rb") as stream:
        stream.seek(max(0, (folder / "log.txt").stat().st_size - most))
        return stream.read().decode("utf-8", "replace")
    return ""


def _about(folder: Path, state: str) -> Object:
    place = folder.name.removeprefix(".draft-")
    name, _, key = place.rpartition("-")
    facts = {"folder": folder.name, "place": place, "name": name, "key": key, "kind": "", "state": state, "at": 0.0}
    more: Object = {"recipe": "", "done": 0, "of": 0, "left": None, "seconds": None, "note": "", "figures": {}}
    return facts | more | {"alerts": 0, "page": False}


def _kind(recipe: Object, name: str) -> str:
    return str(recipe.get("stage", {}).get(name, {}).get("kind") or ("base" if name == "base" else ""))


def _figures(metrics: Object) -> dict[str, float | None]:
    """The figures that say most, in the order of the terminal's board."""
    names = [name for name in SHOWN if name in metrics] or list(metrics)
    return {name: metrics[name] for name in names[:MOST_FIGURES]}


def _changed(folder: Path) -> float:
    """When a draft changed last."""
    files = (folder / name for name in ("progress.json", "metrics.jsonl", "log.txt", "job.json", "result.json", "work"))
    return max((file.stat().st_mtime for file in files if file.exists()), default=0.0)


def _json(file: Path) -> Object:
    with suppress(OSError, ValueError, RecursionError):
        found = json.loads(file.read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    return {}


def _count(file: Path) -> int:
    with suppress(OSError, ValueError, RecursionError):
        return len(json.loads(file.read_text(encoding="utf-8")))
    return 0


def _locked() -> set[int]:
    """The files that some process has locked whole, by number; none where the system does not say."""
    with suppress(OSError, ValueError, IndexError):
        lines = (machine.PROC / "locks").read_text(encoding="ascii").splitlines()
        return {int(line.split()[5].split(":")[2]) for line in lines if line.split()[1] == "FLOCK"}
    return set()
