"""Grade the stored answers of an evaluation again: what a changed verifier changes is seen without a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from tercet.evals.compare import load
from tercet.evals.results import regraded, write_scores
from tercet.evals.run import EvalError, check_errors
from tercet.evals.task import TaskError
from tercet.records import Result, Score, TaskCard, read_scores
from tercet.verify import custom_digest
from tercet.verify.grade import NO_GRADE


def rescore(
    evaluation: Path,
    out: Path,
    verifiers: Mapping[str, str],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Score]:
    """Write results and scores of an eval payload with its answers graded again; returns the scores.

    `verifiers` names others by task: `{"ifeval@1": "ifeval_reference@1"}`. Tasks that an LLM judge grades, or that are
    scored by log-probabilities, keep their verdicts. Verifiers that fail on more than 1 % of a task's answers are an
    `EvalError`, and nothing is written.
    """
    results = load(evaluation)
    scores = read_scores(evaluation)
    if unknown := [task for task in verifiers if task not in scores]:
        raise TaskError(f"{evaluation}: holds no task {', '.join(unknown)}; it holds {', '.join(scores)}")
    if fixed := [task for task in verifiers if not scores[task].card.verifier]:
        raise TaskError(
            f"{', '.join(fixed)}: an LLM judge or log-probabilities gave the verdicts; no verifier can replace them"
        )
    cards = {task: _graded_by(score.card, verifiers.get(task, "")) for task, score in scores.items()}
    again: list[Result] = []
    for number, result in enumerate(results):
        card = cards[result.task]
        again.append(regraded(result, card.verifier, card) if card.verifier else result)
        if wrong := next((one.detail for one in again[-1].tries if NO_GRADE in one.detail), ""):
            raise EvalError(f"{result.task}, item {result.item!r}: {wrong}; repair the verifier and rescore again")
        progress(number + 1, len(results))
    for task, card in cards.items():
        check_errors(card, [result for result in again if result.task == task])
    out.mkdir(parents=True, exist_ok=False)
    return write_scores(out, list(cards.values()), again)


def _graded_by(card: TaskCard, verifier: str) -> TaskCard:
    """The card with this verifier, where one is named; the code of the one before goes with it."""
    if verifier in ("", card.verifier):
        return card
    code = {name: digest for name, digest in (card.code or {}).items() if name != card.verifier}
    if digest := custom_digest(verifier):  # of a user's own
        code[verifier] = digest
    return replace(card, verifier=verifier, code=code or None)
