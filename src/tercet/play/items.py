"""The items of a run's evaluations, with what each shown model answered when it was evaluated.

An item is chosen by what happened to it from one model to the next: it became right, became wrong, or the models
disagree. Texts stay on the disk; what is in memory of an answer is its score and where its line begins.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tercet.outside import read_json
from tercet.records import Result, TaskCard, read_scores
from tercet.rows import plain_turn
from tercet.store import Store

Key = tuple[str, str]  # (task, item)
CHANGES = {
    "all": "any item",
    "gained": "wrong → right",
    "lost": "right → wrong",
    "disagree": "the models disagree",
    "always wrong": "always wrong",
}
RIGHT = 0.5  # a score from which an answer counts as right, as on the report's page


class NoItemError(ValueError):
    """No item is as it was asked for."""


@dataclass(frozen=True)
class Line:
    """One stored answer: whether it is right (None: neither), and the place of its line."""

    right: bool | None
    file: Path
    start: int
    size: int

    def read(self) -> Result:
        """The whole result, from the disk."""
        with self.file.open("rb") as stream:
            stream.seek(self.start)
            return Result.from_json(json.loads(stream.read(self.size)))


def evaluations(store: Store, models: Mapping[str, str]) -> dict[str, list[Path]]:
    """The payloads of the evaluations of each model; `models` says which folder belongs to which name."""
    found: dict[str, list[Path]] = {name: [] for name in models}
    for artifact in store:
        made_from = {f"{name}-{key[:12]}" for name, key in artifact.inputs.items()}
        for name, folder in models.items():
            if artifact.kind == "eval" and folder in made_from:
                found[name].append(artifact.payload)
    return found


class ItemBook:
    """All items that a model wrote an answer to. `evals`: the evaluations of each model, by the model's name."""

    def __init__(self, evals: Mapping[str, Sequence[Path]]) -> None:
        self._evals = evals
        self._lock = threading.Lock()
        self._read = False
        self.cards: dict[str, TaskCard] = {}
        self._lines: dict[Key, dict[str, Line]] = {}

    def tasks(self) -> dict[str, int]:
        """How many items there are of each task."""
        self._load()
        found = dict.fromkeys(self.cards, 0)
        for task, _ in self._lines:
            found[task] += 1
        return {task: number for task, number in found.items() if number}

    def pick(self, models: Sequence[str], *, task: str = "", change: str = "all", number: int = 0) -> dict[str, Any]:
        """Item `number` (counted from 0, round and round) of those that changed so from the first model to the last."""
        self._load()
        if change not in CHANGES:
            raise NoItemError(f"no change {change!r:.40}; expected one of {', '.join(CHANGES)}")
        found = [key for key, lines in self._lines.items() if task in ("", key[0]) and _changed(lines, models, change)]
        if not found:
            raise NoItemError(f"no item{f' of {task}' if task else ''}: {CHANGES[change]}")
        place = number % len(found)
        return {**self.item(*found[place]), "number": place, "of": len(found)}

    def item(self, task: str, name: str) -> dict[str, Any]:
        """An item as the page shows it: prompt, reference, how it was asked, and what each model answered."""
        results = self.stored(task, name)
        card, first = self.cards[task], next(iter(results.values()))
        how = card.sampling
        settings = {"max_tokens": how.max_new_tokens, "temperature": how.temperature, "top_p": how.top_p}
        return {
            "task": task,
            "item": name,
            "subset": first.subset,
            "messages": [plain_turn(turn) for turn in first.messages],
            "reference": first.reference,
            "verifier": card.verifier,
            "judge": card.judge,
            "think": card.think,
            "settings": {**settings, "top_k": how.top_k, "n": how.n, "stop": list(how.stop)},
            "stored": {model: _answer(result, self._lines[task, name][model]) for model, result in results.items()},
        }

    def stored(self, task: str, name: str) -> dict[str, Result]:
        """The stored result of each model that was asked this item."""
        self._load()
        if (task, name) not in self._lines:
            raise NoItemError(f"no item {name!r:.80} of {task!r:.80} in the evaluations of these models")
        return {model: line.read() for model, line in self._lines[task, name].items()}

    def _load(self) -> None:
        with self._lock:
            if self._read:
                return
            for model, payloads in self._evals.items():
                for payload in payloads:
                    cards = {task: score.card for task, score in read_scores(payload).items()}
                    self.cards = {**cards, **self.cards}
                    for key, line in _lines(payload / "results.jsonl"):
                        self._lines.setdefault(key, {}).setdefault(model, line)
            self._read = True


def _lines(file: Path) -> Iterator[tuple[Key, Line]]:
    """The answers of a results file that a model wrote; options that were weighed by likelihood are none."""
    start = 0
    with file.open("rb") as stream:
        for number, data in enumerate(stream, 1):
            try:
                found = read_json(data.decode())
                key, outcome, score = (found["task"], found["item"]), found["outcome"], found["score"]
                written = found["metric"] == "accuracy"
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{file}: line {number} is no result ({error}); `tercet check` says more") from None
            if written:
                yield key, Line(None if outcome == "error" else score >= RIGHT, file, start, len(data))
            start += len(data)


def _changed(lines: Mapping[str, Line], models: Sequence[str], change: str) -> bool:
    marks = [lines[model].right for model in models if model in lines]
    if change == "all":
        return True
    if None in marks or len(marks) < 2:
        return False
    if change == "disagree":
        return len(set(marks)) > 1
    if change == "always wrong":
        return not any(marks)
    return (marks[0], marks[-1]) == ((False, True) if change == "gained" else (True, False))


def _answer(result: Result, line: Line) -> dict[str, Any]:
    kept = {name: getattr(result, name) for name in ("output", "score", "outcome", "answer", "detail", "stop")}
    return {**kept, "right": line.right, "samples": len(result.tries)}
