"""What Python and its notebooks see of a run: scores, comparisons and rollouts of artifacts.

`scores(made["eval-sft"])["eval-sft"]["words@1"].score` is a number; the last value of a notebook's cell is shown as a
table. The numbers are those of `tercet scores` and `tercet compare`, the rollouts those of the report.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tercet.html_table import html_table, text
from tercet.records import Score, read_scores
from tercet.stats import Comparison
from tercet.store import Artifact, StoreError


class Scores(dict[str, dict[str, Score]]):
    """The scores of evaluations, by name and task."""

    def _repr_html_(self) -> str:
        return html_table("Scores", *score_rows(self))


class Comparisons(list[Comparison]):
    """What changed from one evaluation to another, a line per task."""

    def __init__(self, lines: Iterable[Comparison], names: tuple[str, str]) -> None:
        super().__init__(lines)
        self.names = names

    def _repr_html_(self) -> str:
        from tercet.evals.compare import cells, note

        head = ("task", "n", *self.names, "difference", "95 % interval", "p", "p (Holm)", "detectable")
        return html_table(f"{' to '.join(self.names)}", head, map(cells, self)) + f"<p>{text(note(self))}</p>"


class Rollouts(list[dict[str, Any]]):
    """Groups of completions of one prompt each, with their rewards."""

    def _repr_html_(self) -> str:
        return "".join(map(_group, self)) or "<p>no rollouts</p>"


def scores(*evaluations: Artifact) -> Scores:
    """The scores of some evaluations."""
    return Scores({one.name: read_scores(_eval(one).payload) for one in evaluations})


def compare(a: Artifact, b: Artifact, tasks: Sequence[str] | None = None) -> Comparisons:
    """The paired comparison of two evaluations of the same benchmark, `b - a`."""
    from tercet.evals.compare import compare as paired

    return Comparisons(paired(_eval(a).payload, _eval(b).payload, tasks), (a.name, b.name))


def rollouts(artifact: Artifact, *, num_rounds: int = 2, num_groups: int = 2) -> Rollouts:
    """Some groups from evenly spaced rounds of an RL stage; those whose rewards differ come first."""
    from tercet.report import samples
    from tercet.report.collect import Stage

    if not (artifact.payload / "tercet" / "rollouts.parquet").is_file():
        raise StoreError(
            f"{artifact.path.name} is a {artifact.kind} artifact without rollouts; expected a GRPO or PPO one"
        )
    stage = Stage(artifact.name, artifact.kind, artifact.key, artifact.path, artifact.inputs, artifact.record)
    return Rollouts(samples.rollouts(stage, num_steps=num_rounds, num_groups=num_groups))


def score_rows(evaluations: Mapping[str, Mapping[str, Score]]) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    """Head and rows of a table: tasks down, evaluations across, each score with its standard error."""
    tasks = list(dict.fromkeys(task for scores in evaluations.values() for task in scores))
    rows = []
    for task in tasks:
        first = next(scores[task] for scores in evaluations.values() if task in scores)
        own = [scores.get(task) for scores in evaluations.values()]
        cells = [score(one.score, one.stderr) + _warning(one) if one else "" for one in own]
        rows.append((task, first.metric, first.n, *cells))
    return ("task", "metric", "n", *evaluations), rows


def score(value: float, stderr: float | None) -> str:
    """`0.412 ± 0.045`: score and standard error, where it has one."""
    return f"{value:.3f}" + ("" if stderr is None or math.isnan(stderr) else f" ± {stderr:.3f}")


def _warning(entry: Score) -> str:
    """What the score hides: answers that could not be graded, and many that were cut."""
    counts = entry.outcomes
    total = sum(counts.values()) or 1
    parts = [f"{counts['error']} errors"] if counts.get("error") else []
    parts += [
        f"{counts[key] / total:.0%} {key}" for key in ("truncated", "unparsed") if counts.get(key, 0) >= total / 10
    ]
    return f" ({', '.join(parts)})" if parts else ""


def _eval(artifact: Artifact) -> Artifact:
    if artifact.kind != "eval":
        raise StoreError(f"{artifact.path.name} is a {artifact.kind} artifact; expected an eval artifact")
    return artifact


def _group(group: Mapping[str, Any]) -> str:
    """One prompt, folded under its rewards."""
    rewards = ", ".join(f"{row['reward']:.3g}" for row in group["rows"])
    prompt = "\n".join(turn["content"] for turn in group["prompt"])
    answers = "".join(_answer(row) for row in group["rows"])
    title = f"round {group['step']}, {group['verifier']}: rewards {rewards}"
    return f"<details><summary>{text(title)}</summary>{_block(prompt)}<ol>{answers}</ol></details>"


def _answer(row: Mapping[str, Any]) -> str:
    advantage = "" if row.get("advantage") is None else f", advantage {row['advantage']:+.2f}"
    return f"<li>reward {row['reward']:.3g}{advantage}{_block(row['text'])}</li>"


def _block(written: str) -> str:
    return f'<pre style="white-space:pre-wrap;overflow-wrap:anywhere">{text(written)}</pre>'
