from __future__ import annotations

import json
from typing import Any

import pytest

from tercet.recipe import MonitorSpec
from tercet.rows import Completion, Message, Row
from tercet.train.loop import TrainingError
from tercet.train.rl.monitors import ALERTS, RolloutMonitor, empty, measure, repeats
from tercet.verify import Grade

KEYWORDS = json.dumps({"func_name": "verify_keywords", "keyword_list": ["harbour", "lantern"], "text": "Include these"})


class Sample:
    """What `measure` looks at, as rollouts make it."""

    def __init__(self, text: str = "The answer is 72.", score: float = 0.0, **changed: Any) -> None:
        ids = tuple(changed.get("ids", range(20)))
        self.completion = Completion(text, ids, (-0.5,) * len(ids), changed.get("stop", "eos"))
        self.grade = changed.get("grade", Grade(score, "72"))
        self.score, self.reward = score, 10 * score
        self.parts: dict[str, float] = changed.get("parts", {})
        self.errors: tuple[str, ...] = changed.get("errors", ())


class Group:
    """Samples of one row."""

    def __init__(self, *samples: Sample, verifier: str = "gsm8k@1", reference: str = "72") -> None:
        self.row = Row("r", (Message("user", "How many?"),), verifier=verifier, reference=reference)
        self.samples = list(samples)


def hollow(text: str, reference: str = KEYWORDS) -> bool:
    return empty(Sample(text, 1.0, grade=Grade(1.0)), reference)  # type: ignore[arg-type]


def test_the_figures_of_a_round() -> None:
    words = Group(
        Sample(score=1.0, parts={"gsm8k@1": 1.0, "format@1": 0.5}),
        Sample(stop="length", ids=range(40), errors=("a@1",)),
    )
    rules = Group(
        Sample("Harbour.", 1.0, grade=Grade(1.0)), Sample(score=1.0), verifier="tulu_if@1", reference=KEYWORDS
    )
    found = measure([words, rules], [words])  # type: ignore[list-item]
    expected = {"reward": 7.5, "solved": 0.75, "rewarded": 0.75, "length": 25.0, "truncated": 0.25, "entropy": 0.5}
    expected |= {
        "zero_variance": 0.5,
        "skipped_groups": 1.0,
        "unparsed": 0.0,
        "unfinished": 0.0,
        "judge_errors": 0.25,
        "repetition": 0.0,
        "hollow": 1 / 3,
    }
    assert found == expected | {"reward_gsm8k@1": 5.0, "reward_tulu_if@1": 10.0, "score_format@1": 0.5}


def test_a_round_without_completions_has_figures() -> None:
    assert {name for name, value in measure([], []).items() if value} == {"zero_variance"}


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (range(400), False),
        ([*range(60), *range(60)], False),  # half of the passages are new
        (list(range(60)) * 3, True),
        ([7, 8] * 12, True),
        ([5] * 12, True),
        ([5] * 7, False),  # shorter than a passage
        ([*range(100), *([5] * 60)], False),  # mostly new
        ([*range(60), *([5] * 100)], True),
    ],
)
def test_repetition_means_that_most_passages_came_before(ids: list[int], expected: bool) -> None:
    assert repeats(ids) is expected


def test_an_extracted_answer_is_an_answer_and_an_unparsed_one_is_none() -> None:
    assert not empty(Sample("72", 1.0), "72")  # type: ignore[arg-type]
    unparsed = Sample("A long text that never says how many there are.", 0.5, grade=Grade(0.0, outcome="unparsed"))
    assert empty(unparsed, "72")  # type: ignore[arg-type]


def test_words_of_a_thought_are_no_answer() -> None:
    thought = "<think>Ships leave the harbour early in the morning.</think>"
    assert hollow(f"{thought}\n\nHarbour.")
    assert not hollow(f"{thought}\n\nMany ships leave the harbour early.")
    cut = Sample("<think>Ships leave the harbour early", 0.5, grade=Grade(0.0, outcome="truncated"))
    assert empty(cut, KEYWORDS)  # type: ignore[arg-type]
    assert measure([Group(cut, cut)], [])["unfinished"] == 1  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Harbour lantern harbour lantern.", True),
        ("**Lantern** * * * P.S. harbour [name] [address] [city] [day]", True),
        ("<<A Title Of Five Words>>\nlantern harbour", True),
        ("Ships find the harbour by the light of a lantern.", False),
        ("My answer is yes.", False),
        ("1, 2, 3, 4, 5, 6", True),
        ("灯笼照亮港口", False),
        ("", True),
    ],
)
def test_a_text_of_what_the_verifier_asked_for_and_nothing_else_is_hollow(text: str, expected: bool) -> None:
    assert hollow(text) is expected


def test_a_reference_of_plain_text_asks_for_no_words() -> None:
    assert not hollow("Ships find the harbour.", "Rubric: says how ships find the harbour.")
    assert not hollow("ships find harbour lantern", '{"prompt": "Say how ships find a harbour with a lantern."}')


def test_an_option_of_the_reference_is_an_answer() -> None:
    reference = json.dumps([{"func_name": "validate_choice", "options": ["It belongs.", "It does not belong."]}])
    assert not hollow("It belongs.\n\nP.S. Thanks", reference)
    assert hollow("P.S. Thanks", reference)


def rounds(monitor: RolloutMonitor, name: str, values: list[float]) -> list[int]:
    """The rounds in which an alert was raised."""
    return [i for i, value in enumerate(values) if any(f"`{name}`" in m for m in monitor(i, {name: value}))]


def test_an_alert_is_raised_after_enough_rounds_in_a_row_and_once_per_episode() -> None:
    monitor = RolloutMonitor(MonitorSpec(rounds=3), {})
    assert rounds(monitor, "kl", [2, 2, 0.5, 2, 2, 2, 2, 2, 1.0, 2, 2, 2]) == [5, 11]
    assert [(a["alert"], a["round"], a["last"], a["threshold"]) for a in monitor.alerts] == [
        ("kl", 5, 7, 1.0),
        ("kl", 11, 11, 1.0),
    ]
    assert monitor.alerts[0]["value"] == 2


def test_every_alert_has_a_threshold_and_every_threshold_an_alert() -> None:
    assert set(ALERTS) == set(MonitorSpec.model_fields) - {"rounds", "stop"}


def test_thresholds_themselves_are_within_but_for_the_reward() -> None:
    monitor = MonitorSpec(rounds=1)
    metrics = {alert.metric: getattr(monitor, name) for name, alert in ALERTS.items() if name != "length"}
    alerts = RolloutMonitor(monitor, {})(0, metrics)
    assert [message.split("`")[1] for message in alerts] == ["reward"]


def test_low_entropy_and_missing_reward_are_beyond_from_below() -> None:
    monitor = RolloutMonitor(MonitorSpec(rounds=2), {})
    assert rounds(monitor, "entropy", [0.5, 0.01, 0.001]) == [2]
    alerts = [monitor(i, {"rewarded": 0.0}) for i in (3, 4)]
    assert [len(messages) for messages in alerts] == [0, 1]
    assert "at or below 0 for 2 rounds in a row (0, 0). Try: look at the rollouts" in alerts[1][0]


def test_length_is_compared_with_the_first_rounds() -> None:
    monitor = RolloutMonitor(MonitorSpec(rounds=2, length=3.0), {})
    assert rounds(monitor, "length", [40, 60, 140, 151, 155, 160]) == [4]
    assert monitor.alerts[0]["value"] == pytest.approx(3.1)


def test_a_round_without_the_figure_neither_counts_nor_ends_the_row() -> None:
    monitor = RolloutMonitor(MonitorSpec(rounds=2), {})
    alerts = [monitor(i, metrics) for i, metrics in enumerate([{"kl": 2.0}, {}, {"kl": 2.0}])]
    assert [len(messages) for messages in alerts] == [0, 0, 1]


def test_a_figure_that_is_no_number_is_beyond_every_threshold() -> None:
    assert len(RolloutMonitor(MonitorSpec(rounds=1), {})(0, {"kl": float("nan")})) == 1


def test_a_stop_alert_ends_the_run_and_says_why() -> None:
    monitor = RolloutMonitor(MonitorSpec(rounds=2, stop=("kl",)), {})
    monitor(7, {"kl": 1.5, "hollow": 0.9})
    with pytest.raises(
        TrainingError, match=r"alert `kl` in round 8: .*above 1 .*\(1\.5, 1\.6\).*kl_beta.*monitor\.stop"
    ):
        monitor(8, {"kl": 1.6, "hollow": 0.9})
    assert [alert["alert"] for alert in monitor.alerts] == ["kl", "hollow"]


@pytest.mark.parametrize("cut", range(13))
def test_a_resumed_monitor_goes_on_as_if_nothing_had_been(cut: int) -> None:
    def figures(number: int) -> dict[str, float]:
        return {"kl": 2.0 * (number % 7 > 2), "length": 40.0 + 30 * number, "entropy": 0.3 / (number + 1) ** 2}

    whole = RolloutMonitor(MonitorSpec(rounds=3), {})
    expected = [whole(i, figures(i)) for i in range(12)]
    first = RolloutMonitor(MonitorSpec(rounds=3), {})
    alerts = [first(i, figures(i)) for i in range(cut)]
    second = RolloutMonitor(MonitorSpec(rounds=3), json.loads(json.dumps(first.memory)))
    assert alerts + [second(i, figures(i)) for i in range(cut, 12)] == expected
    assert second.memory == whole.memory
    assert {alert["alert"] for alert in whole.alerts} == {"kl", "length", "entropy"}
