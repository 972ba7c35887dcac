"""Win rates and length control, against hand-made verdicts and the published AlpacaEval 2 results."""

from __future__ import annotations

import csv
import gzip
import json
import math
import random
from functools import cache
from pathlib import Path

import pytest

from tercet.evals import alpaca_eval as pref
from tercet.evals.alpaca_eval import Anchor, PreferenceError, Verdict, Weights

# Published length-controlled rate minus the rate fitted without the regulariser's rows, which are not public here.
GAPS = {
    "NullModel": 2.493,
    "OpenHermes-2.5-Mistral-7B": 2.834,
    "claude-2.1": 0.477,
    "gemma-7b-it": 1.165,
    "vicuna-7b-v1.5": 1.147,
}


def verdict(preference: float | None, length: int = 10, difficulty: float = 0.0) -> Verdict:
    return Verdict(preference, "x" * length, 10, difficulty)


def test_win_rate_and_error_by_hand() -> None:
    rate = pref.win_rate([1.0, 2.0, 1.5, 0, None, 1.75])
    assert rate.rate.value == pytest.approx(55)  # 0, 1, 1/2, 1/2, 3/4
    assert rate.rate.stderr == pytest.approx(100 * math.sqrt(0.55 / 4 / 5))
    assert rate[1:] == (60.0, 2, 1, 2, 1)


@pytest.mark.parametrize("preference", [0.5, 2.01, -1.0, math.nan])
def test_a_preference_outside_one_to_two_is_refused(preference: float) -> None:
    with pytest.raises(PreferenceError, match="from 1"):
        pref.win_rate([preference])


def test_no_verdict_at_all_is_refused() -> None:
    with pytest.raises(PreferenceError, match="at least one verdict"):
        pref.win_rate([None, None])
    with pytest.raises(PreferenceError, match="at least 5 verdicts"):
        pref.fit([verdict(1.0)] * 4)


def test_the_baseline_against_itself_is_fifty() -> None:
    assert pref.length_controlled(Weights(), [0.3, -2.0]).value == 50


def test_the_prediction_ignores_length_and_follows_difficulty() -> None:
    weights = Weights(length=-3.0, difficulty=2.0, constant=math.log(3))
    assert pref.length_controlled(weights, [0.0]).value == pytest.approx(75)
    assert pref.length_controlled(weights, [0.5, -0.5]).value < 75


def planted(weights: Weights, n: int = 400) -> list[Verdict]:
    chance = random.Random(1)
    lengths, difficulties = [chance.randrange(200) for _ in range(n)], [chance.gauss(0, 1) for _ in range(n)]
    deltas = [100 - length for length in lengths]
    centre = sum(deltas) / n
    spread = math.sqrt(sum((delta - centre) ** 2 for delta in deltas) / (n - 1))
    made = []
    for length, delta, difficulty in zip(lengths, deltas, difficulties, strict=True):
        logit = weights.length * math.tanh(delta / spread) + weights.difficulty * difficulty + weights.constant
        made.append(Verdict(1 + 1 / (1 + math.exp(-logit)), "x" * length, 100, difficulty))
    return made


def test_the_fit_finds_planted_weights() -> None:
    weights = Weights(-1.5, 0.7, -0.4)
    assert pref.fit(planted(weights)) == pytest.approx(weights, abs=0.01)


def test_the_fit_is_a_minimum_of_the_penalised_loss() -> None:
    import numpy as np

    verdicts = planted(Weights(-1.0, 0.02, 0.3), n=40)
    x = np.array([[math.tanh(len(v.output) / 99), v.difficulty, 1.0] for v in verdicts])
    p = np.array([round((v.preference or 0) - 1) for v in verdicts], dtype=float)
    for strength in (0.01, 1.0, 100.0):
        s = np.full(len(p), strength)
        w = pref._lasso_logistic(x, p, s)
        least = pref._objective(w, x, p, s)
        for axis in range(3):
            for move in (-1e-3, 1e-3):
                assert pref._objective(w + move * np.eye(3)[axis], x, p, s) >= least
        assert (strength > 0.01) == bool(w.any())  # a strong penalty leaves nothing


def test_anchors_tie_the_length_coefficient() -> None:
    verdicts = planted(Weights(-0.2, 0.5, -1.0), n=100)
    long = [Anchor(length, 0.0, 1 / (1 + math.exp(3 * math.tanh(length)))) for length in (-2.0, -1.0, 1.0, 2.0)] * 500
    free, tied = pref.fit(verdicts), pref.fit(verdicts, long)
    assert tied.length < free.length - 0.5
    assert tied.length > -3


def test_answers_of_one_length_have_no_length_term() -> None:
    assert pref.fit([verdict(1.2), verdict(1.9)] * 20).length == 0


def test_a_move_of_ten_points_and_a_quarter_is_suspect() -> None:
    assert pref.suspect(20, 41)
    assert not pref.suspect(20, 39)
    assert pref.suspect(20, 9)
    assert pref.suspect(80, 59)
    assert not pref.suspect(80, 61)
    assert not pref.suspect(95, 100)


def test_repeated_outputs_are_counted() -> None:
    assert pref.duplicates(["a", "b", "a", "c"]) == 0.5
    assert pref.duplicates(["a"] * 9) == 1
    assert pref.duplicates([]) == 0


def test_the_summary_reports_length_and_repetition_beside_the_rates() -> None:
    found = pref.summary([verdict(1.5, 4), verdict(2.0, 4), verdict(None, 7)], weights=Weights(constant=5.0))
    assert (found["win_rate"], found["discrete_win_rate"], found["n"], found["missing"]) == (75, 75, 2, 1)
    assert (found["mean_length"], found["lc_suspect"]) == (5, 1)
    assert found["duplicates"] == pytest.approx(2 / 3)


# ---- the published results ----


@cache
def table(path: Path) -> dict[str, dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as lines:
        return {next(iter(row.values())): row for row in csv.DictReader(lines)}


def difficulties(folder: Path) -> list[float]:
    return [
        float(row["instruction_difficulty"]) for row in table(folder / "instruction_difficulty_recovered.csv").values()
    ]


def stored(folder: Path, model: str) -> list[Verdict]:
    lines = gzip.decompress((folder / "annotations" / f"{model}.jsonl.gz").read_bytes()).decode().split("\n")
    rows = [json.loads(line) for line in lines if line]
    gamma = difficulties(folder)
    return [Verdict(row["preference"], row["output_2"], row["len_output_1"], gamma[row["index"]]) for row in rows]


def test_stored_verdicts_give_the_published_win_rates(shared_data: Path) -> None:
    folder = shared_data / "eval/alpaca_eval"
    board = table(folder / "leaderboard_v2.csv")
    names = sorted(path.name.removesuffix(".jsonl.gz") for path in (folder / "annotations").iterdir())
    assert sorted({*GAPS, "text_davinci_003"}) == names
    assert "text_davinci_003" not in board  # the one set whose model has no row to compare with
    for name in GAPS:
        verdicts, row = stored(folder, name), board[name]
        rate = pref.win_rate([one.preference for one in verdicts])
        assert rate.rate.value == pytest.approx(float(row["win_rate"]), abs=1e-6)
        assert rate.rate.stderr == pytest.approx(float(row["standard_error"]), abs=1e-6)
        assert rate.discrete == pytest.approx(float(row["discrete_win_rate"]), abs=1e-6)
        counts = [int(row[key]) for key in ("n_wins", "n_wins_base", "n_draws")]
        assert [rate.wins, rate.losses, rate.draws] == counts
        assert math.floor(sum(len(one.output) for one in verdicts) / 805) == int(row["avg_length"])
    assert pref.win_rate([one.preference for one in stored(folder, "text_davinci_003")]).rate.n == 805


def test_published_weights_give_the_published_length_controlled_rates(shared_data: Path) -> None:
    folder = shared_data / "eval/alpaca_eval"
    board, gamma = table(folder / "leaderboard_v2.csv"), difficulties(folder)
    gaps, errors = {}, []
    for name, row in table(folder / "lc_glm_weights.csv").items():
        if name == "gpt4_1106_preview" or not board.get(name, {}).get("length_controlled_winrate"):
            continue
        found = pref.length_controlled(Weights(*(float(value) for value in list(row.values())[1:])), gamma)
        gaps[name] = abs(found.value - float(board[name]["length_controlled_winrate"]))
        if gaps[name] < 1e-6 and board[name]["lc_standard_error"]:
            errors.append(abs(found.stderr - float(board[name]["lc_standard_error"])))
    exact = [name for name, gap in gaps.items() if gap < 1e-6]
    assert (len(gaps), len(exact)) == (198, 188)
    assert max(errors) < 1e-6
    assert max(gaps, key=lambda name: gaps[name]) == "dbrx-instruct"
    assert max(gaps.values()) < 0.2


def test_fitting_without_the_regulariser_lands_near_the_published_rates(shared_data: Path) -> None:
    folder = shared_data / "eval/alpaca_eval"
    board, gamma = table(folder / "leaderboard_v2.csv"), difficulties(folder)
    for name, gap in GAPS.items():
        found = pref.length_controlled(pref.fit(stored(folder, name)), gamma)
        assert float(board[name]["length_controlled_winrate"]) - found.value == pytest.approx(gap, abs=2e-3)
        assert abs(gap) < 3


def test_the_constant_output_is_caught_by_its_repetition(shared_data: Path) -> None:
    found = pref.summary(stored(shared_data / "eval/alpaca_eval", "NullModel"))
    assert found["win_rate"] > 76
    assert (found["duplicates"], found["mean_length"]) == (1, 872)
