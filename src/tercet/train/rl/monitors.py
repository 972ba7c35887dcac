"""The metrics of each round of rollouts, and the alerts that they raise (paper §6, App. B.4).

`measure` turns the groups of a round into numbers; `RolloutMonitor` compares them with the recipe's thresholds, round
after round. A verifier rewards only what it can check, and a policy that optimises it too hard stops answering: it
grows longer, repeats itself, or writes only what the verifier looks for.
"""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Iterator, Sequence
from importlib.resources import files
from typing import Any, NamedTuple

from tercet.recipe import MonitorSpec
from tercet.train.loop import TrainingError
from tercet.train.rl.rollout import RolloutGroup, RolloutSample
from tercet.verify.thoughts import answer_of

GRAM = 8  # tokens of a passage that may come again
FEW_WORDS = 4  # a text with fewer words of its own has no answer
PLACES = re.compile(r"<<.*?>>|\[[^\[\]]*\]")  # titles and placeholders that a constraint asks for
# Scripts without spaces (Thai to Tibetan, Khmer, kana, Han) give a word per character, others one per run of letters.
WORD = re.compile(r"[\u0e00-\u0fff\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]|[^\W\d_]{2,}")
# Keys of a reference answer under which no wanted words are given, but the task.
NAMES = ("func_name", "instruction_id_list", "text", "prompt")


def measure(groups: Sequence[RolloutGroup], useful: Sequence[RolloutGroup]) -> dict[str, float]:
    """The figures of a round; `useful` are the groups with a signal. Shares are of all completions.

    `rewarded`: score above 0; `solved`: mean score by the rows' own verifiers; `entropy`: mean of -log p of the sampled
    tokens, in nats; `unfinished`: the text ends inside its thought; `judge_errors`: a verifier could not grade, or an
    LLM judge's verdict not be read; `repetition`: see `repeats`; `hollow`: share of the rewarded completions without an
    answer, see `empty`; `reward_<verifier>`: mean reward of a verifier's rows; `score_<verifier>`: mean score by a
    further verifier.
    """
    samples = [s for group in groups for s in group.samples]
    paid = [(group, s) for group in groups for s in group.samples if s.score > 0]
    found = {
        "reward": _mean([s.reward for s in samples]),
        "solved": _mean([s.grade.score for s in samples]),
        "rewarded": len(paid) / max(1, len(samples)),
        "length": _mean([len(s.completion.token_ids) for s in samples]),
        "truncated": _mean([s.completion.stop != "eos" for s in samples]),
        "zero_variance": 1.0 - len(useful) / max(1, len(groups)),
        "skipped_groups": float(len(groups) - len(useful)),
        "entropy": -_mean([logp for s in samples for logp in s.completion.logps]),
        "unparsed": _mean([s.grade.outcome == "unparsed" for s in samples]),
        "unfinished": _mean([s.grade.outcome == "truncated" for s in samples]),
        "judge_errors": _mean([bool(s.errors) for s in samples]),
        "repetition": _mean([repeats(s.completion.token_ids) for s in samples]),
        "hollow": _mean([empty(s, group.row.reference) for group, s in paid]),
    }
    for name in sorted({group.row.verifier for group in groups}):
        found[f"reward_{name}"] = _mean([s.reward for g in groups if g.row.verifier == name for s in g.samples])
    further: dict[str, list[float]] = {}
    for name, score in ((n, v) for g in groups for s in g.samples for n, v in s.parts.items() if n != g.row.verifier):
        further.setdefault(name, []).append(score)
    return found | {f"score_{name}": _mean(further[name]) for name in sorted(further)}


def repeats(token_ids: Sequence[int]) -> bool:
    """Whether a completion says the same again and again: most of its 8-token passages came before.

    A text written twice does not count (half its passages are new), three times does. Texts shorter than a passage
    never do.
    """
    passages = max(0, len(token_ids) - GRAM + 1)
    return 2 * len(set(zip(*(token_ids[i:] for i in range(GRAM)), strict=False))) < passages


def empty(sample: RolloutSample, reference: str) -> bool:
    """Whether a completion carries no answer: its verifier found none, or it has fewer than four words of its own.

    Verifiers that extract an answer put it into `grade.answer`. For the others (constraints, rubrics) the different
    words behind the thought are counted that the reference answer does not ask for. An option of the reference answer
    is an answer; a text that ends inside its thought has none.
    """
    if sample.grade.outcome in ("unparsed", "truncated"):
        return True
    if sample.grade.answer:
        return False
    text, asked = answer_of(sample.completion.text).answer.casefold(), list(_asked(reference))
    if any(key == "options" and word in text for key, word in asked):
        return False
    words = set(WORD.findall(PLACES.sub(" ", text)))
    return len(words - {word for _, passage in asked for word in WORD.findall(passage)}) < FEW_WORDS


def _asked(reference: str) -> Iterator[tuple[str, str]]:
    """The texts that a reference answer of JSON looks for, each with its key: keywords, end phrases, options."""
    try:
        yield from _texts("", json.loads(reference))
    except json.JSONDecodeError:
        return  # a reference answer of plain text asks for no words


def _texts(key: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, str) and key not in NAMES:
        yield key, value.casefold()
    elif isinstance(value, list):
        for item in value:
            yield from _texts(key, item)
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _texts(name, item)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0


class Alert(NamedTuple):
    """One kind of alert: the metric, what it is in words, how a figure is beyond its threshold, what to try."""

    metric: str
    what: str
    beyond: str
    advice: str


_TABLE = files("tercet.train.rl").joinpath("alerts.toml").read_text(encoding="utf-8")
ALERTS = {name: Alert(**values) for name, values in tomllib.loads(_TABLE).items()}


class RolloutMonitor:
    """Compares each round with the recipe's thresholds; its state is `memory`, which a checkpoint holds as JSON.

    An alert is raised when a figure was beyond its threshold for `monitor.rounds` rounds in a row, and again only after
    a round within it. A round without the figure (no update was made) neither counts nor ends the row.
    """

    def __init__(self, monitor: MonitorSpec, memory: dict[str, Any]) -> None:
        self.monitor, self.memory = monitor, memory
        # All that were raised, each with its round, value, threshold, message, and the last round beyond the threshold.
        self.alerts: list[dict[str, Any]] = memory.setdefault("alerts", [])
        memory.setdefault("rows", {})  # alert -> the latest figures in a row beyond the threshold
        memory.setdefault("active", [])  # raised, and beyond the threshold ever since
        memory.setdefault("lengths", [])  # of the first rounds

    def __call__(self, number: int, metrics: dict[str, float]) -> list[str]:
        """Take in a round; the messages of new alerts. Raises TrainingError for one that the recipe stops at."""
        new = [name for name in ALERTS if self._is_due(name, number, self._figure(name, metrics))]
        messages = [self._raise(name, number) for name in new]
        stopping = [f"alert {m}" for name, m in zip(new, messages, strict=True) if name in self.monitor.stop]
        if stopping:
            raise TrainingError(f"{'; '.join(stopping)}. The recipe's monitor.stop ends the run here")
        return messages

    def _figure(self, name: str, metrics: dict[str, float]) -> float | None:
        value = metrics.get(ALERTS[name].metric)
        if name != "length" or value is None:
            return value
        first: list[float] = self.memory["lengths"]
        if len(first) < self.monitor.rounds:
            first.append(value)
        return value / max(_mean(first), 1.0)

    def _is_due(self, name: str, number: int, value: float | None) -> bool:
        """Whether the alert is to be raised now; updates its row of figures, and the last round of an active alert."""
        if value is None:
            return False
        limit, active = getattr(self.monitor, name), self.memory["active"]
        within = {"above": value <= limit, "below": value >= limit, "at or below": value > limit}[ALERTS[name].beyond]
        if within:
            self.memory["rows"].pop(name, None)
            self.memory["active"] = [other for other in active if other != name]
            return False
        row = self.memory["rows"].setdefault(name, [])
        row[:] = [*row, value][-self.monitor.rounds :]
        if name in active:
            next(alert for alert in reversed(self.alerts) if alert["alert"] == name)["last"] = number
            return False
        return len(row) == self.monitor.rounds

    def _raise(self, name: str, number: int) -> str:
        self.memory["active"].append(name)
        row, limit, alert = self.memory["rows"][name], getattr(self.monitor, name), ALERTS[name]
        shown = ", ".join(f"{value:.3g}" for value in row)
        for_long = "" if len(row) == 1 else f" for {len(row)} rounds in a row"
        message = (
            f"`{name}` in round {number}: {alert.what} was {alert.beyond} {limit:g}{for_long} ({shown}). "
            f"Try: {alert.advice}"
        )
        figures = {"alert": name, "round": number, "last": number, "value": row[-1], "threshold": limit}
        self.alerts.append(figures | {"message": message})
        return message
