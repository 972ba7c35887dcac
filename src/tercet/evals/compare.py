"""Two evaluations of two checkpoints, item by item: what changed, and whether chance may explain it.

Both checkpoints answered the same questions, so the differences are taken per item, as `tercet.stats.compare` says.
An item that either of them could not be asked, or that could not be graded, is left out on both sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from tercet import stats
from tercet.evals.suite import averages
from tercet.records import Result, read_results
from tercet.stats import CompareError, Comparison, Pairs, comparison, corrected, pooled, widened

ALL_ACCURACY = "all accuracy tasks"


def compare(a: Path, b: Path, tasks: Sequence[str] | None = None) -> list[Comparison]:
    """Paired comparison of two eval payloads (folders or results.jsonl): a line per task, then the pooled line.

    The pooled line is a single question and keeps its p-value.
    """
    pairs = _paired(_by_task(a), _by_task(b), tasks, f"{a} and {b}")
    lines = corrected([stats.compare(pair) for pair in pairs])
    accuracy = [pair for pair in pairs if pair.a[0].metric == "accuracy"]
    return [*lines, *([_all_accuracy(accuracy)] if len(accuracy) > 1 else []), *_averages(lines)]


def markdown(lines: Sequence[Comparison], a: str, b: str) -> str:
    """The comparison as a table for a page or an issue, with what its numbers mean."""
    head = f"| task | n | {a} | {b} | difference | 95 % interval | p | p (Holm) | detectable |"
    rows = [f"| {' | '.join(cells(line))} |" for line in lines]
    return "\n".join([head, "|---|" + "--:|" * 8, *rows, "", note(lines)])


def cells(line: Comparison) -> list[str]:
    """A line of a table: task, n, both scores, difference, interval, p-values and the detectable difference."""
    ends = [f"{line.a:.3f}", f"{line.b:.3f}", f"{line.difference:+.3f}", f"[{line.low:+.3f}, {line.high:+.3f}]"]
    return [
        line.task,
        str(line.n),
        *ends,
        f"{line.p_value:.2g}",
        f"{line.p_holm:.2g}",
        f"{line.minimum_detectable:.3f}",
    ]


def note(lines: Sequence[Comparison]) -> str:
    """How to read the p-values: how many questions were asked at once, and what stands after correction."""
    tested = [line for line in lines if line.metric != "suite average" and line.task != ALL_ACCURACY]
    stands = [line.task for line in tested if line.p_holm < 0.05]
    found = f"significant at 5 % after Holm's correction: {', '.join(stands) or 'none'}"
    lost = sum(line.left_out for line in tested)
    left = f" Left out, as one side could not be asked or graded: {lost} item{'s' if lost > 1 else ''}." if lost else ""
    return f"{len(tested)} task{'s were' if len(tested) != 1 else ' was'} compared at once; {found}.{left}"


def load(path: Path) -> list[Result]:
    """The results of an eval artifact, of its payload, or of a results.jsonl file."""
    choices = (path, path / "results.jsonl", path / "payload" / "results.jsonl")
    found = next((choice for choice in choices if choice.is_file()), None)
    if found is None:
        raise CompareError(f"{path}: holds no results.jsonl; name a finished eval artifact")
    results = list(read_results(found))
    if not results:
        raise CompareError(f"{found}: holds no results")
    return results


def _by_task(path: Path) -> dict[str, dict[str, Result]]:
    tasks: dict[str, dict[str, Result]] = {}
    for result in load(path):
        tasks.setdefault(result.task, {})[result.item] = result
    return tasks


def _paired(
    a: dict[str, dict[str, Result]], b: dict[str, dict[str, Result]], tasks: Sequence[str] | None, where: str
) -> list[Pairs]:
    wanted = list(tasks) if tasks else list(a)
    missing = [task for task in wanted if task not in a or task not in b]
    if missing or (tasks is None and a.keys() != b.keys()):
        raise CompareError(
            f"{where}: tasks differ ({', '.join(a)} against {', '.join(b)}); name tasks that both were given"
        )
    pairs = []
    for task in wanted:
        try:
            pairs.append(stats.pair(a[task], b[task]))
        except CompareError as error:
            raise CompareError(f"{where}: {error}") from None
        if not pairs[-1].a:
            raise CompareError(f"{where}: no item of {task} was answered by both")
    return pairs


def _averages(lines: Sequence[Comparison]) -> list[Comparison]:
    """The averages of suites whose every row was compared; `n` is that of the whole suite."""
    kept = {line.task: line for line in lines}
    found = []
    for suite, whole in averages(
        {task: {"score": line.b, "stderr": line.stderr} for task, line in kept.items()}
    ).items():
        rows = {label: [kept[task] for task in row["tasks"]] for label, row in whole["rows"].items()}
        size = sum(one.n for row in rows.values() for one in row)
        for label, one in whole["averages"].items():
            line = stats.average([rows[row] for row in one["rows"]], f"{suite}, {label}")
            found.append(replace(line, n=size))
    return found


def _all_accuracy(pairs: Sequence[Pairs]) -> Comparison:
    """All items of the verified tasks together; the error is that within tasks."""
    lost = sum(pair.left_out for pair in pairs)
    whole = Pairs([one for pair in pairs for one in pair.a], [one for pair in pairs for one in pair.b], lost)
    ends = fmean(one.score for one in whole.a), fmean(one.score for one in whole.b)
    changes = widened(pooled([pair.changes for pair in pairs]), whole.spread)
    line = comparison(ALL_ACCURACY, "accuracy", changes, ends, whole.verdicts)
    return replace(line, p_holm=line.p_value, left_out=lost)
