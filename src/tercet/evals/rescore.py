"""Judge the stored answers of an evaluation again: a mended judge needs no model to show what it changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from tercet.evals.compare import load
from tercet.evals.results import regraded, write_scores
from tercet.evals.run import check_errors
from tercet.evals.task import TaskError
from tercet.records import Result, Score, read_scores


def rescore(
    benchmark: Path,
    out: Path,
    judges: Mapping[str, str],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Score]:
    """Write results and scores of an eval payload with its answers judged again; returns the scores.

    `judges` names other verifiers by task: `{"ifeval@1": "ifeval_reference@1"}`. Tasks whose judge is a model, or that
    are scored by log-probabilities, keep their verdicts. Judges that fail on more than 1 % of a task's answers are an
    `EvalError`, and nothing is written.
    """
    results = load(benchmark)
    scores = read_scores(benchmark)
    if unknown := [task for task in judges if task not in scores]:
        raise TaskError(f"{benchmark}: holds no task {', '.join(unknown)}; it holds {', '.join(scores)}")
    if fixed := [task for task in judges if not scores[task].card.verifier]:
        raise TaskError(
            f"{', '.join(fixed)}: a model or log-probabilities gave the verdicts; no verifier can replace them"
        )
    cards = {
        task: replace(score.card, verifier=judges.get(task, score.card.verifier)) for task, score in scores.items()
    }
    again: list[Result] = []
    for number, result in enumerate(results):
        card = cards[result.task]
        again.append(regraded(result, card.verifier, card) if card.verifier else result)
        progress(number + 1, len(results))
    for task, card in cards.items():
        check_errors(card, [result for result in again if result.task == task])
    out.mkdir(parents=True, exist_ok=False)
    return write_scores(out, list(cards.values()), again)
