from __future__ import annotations

import json
from pathlib import Path

import pytest

import tercet
from tercet import inline
from tercet.records import Score
from tercet.store import Artifact, StoreError

HOSTILE = '<script>alert("x")</script>\x1b[31m'


def score(value: float, **more: object) -> Score:
    return Score("accuracy", value, 8, 0.125, **more)


def shown(value: object) -> str:
    """What a notebook is given, in which nothing of the data may be a tag."""
    html = value._repr_html_()
    assert "<script" not in html
    assert "\x1b" not in html
    assert "color" not in html  # readable on light and dark pages
    return html


def test_scores_are_data_and_a_table():
    found = inline.Scores(
        {"sft": {"a@1": score(0.5)}, HOSTILE: {"a@1": score(1.0, outcomes={"error": 3, "graded": 5})}}
    )
    assert found["sft"]["a@1"].score == 0.5
    html = shown(found)
    assert "0.500 ± 0.125" in html
    assert "1.000 ± 0.125 (3 errors)" in html
    assert "&lt;script&gt;" in html


def test_an_artifact_shows_its_folder_inputs_and_measures():
    one = Artifact("sft", HOSTILE, "3f2a90c1b7de", Path("runs/sft-3f2a90c1b7de"), {"base": "91c0"}, {"steps": 1234.0})
    html = shown(one)
    for text in ("sft-3f2a90c1b7de", "base", "1,234"):
        assert text in html


def evaluation(folder: Path, name: str, right: list[int]) -> Artifact:
    """An eval artifact of one task, as far as a comparison reads it."""
    (folder / name / "payload").mkdir(parents=True)
    same = {"task": HOSTILE, "metric": "accuracy", "digest": "d", "template": "", "subset": "", "outcome": "graded"}
    lines = [json.dumps(same | {"item": str(i), "score": s}) + "\n" for i, s in enumerate(right)]
    (folder / name / "payload" / "results.jsonl").write_text("".join(lines), encoding="utf-8")
    return Artifact("eval", name, "0" * 12, folder / name, {}, {})


def test_a_comparison_is_data_and_a_table_with_what_it_means(tmp_path):
    found = tercet.compare(evaluation(tmp_path, "a", [0, 0, 1, 0]), evaluation(tmp_path, "b", [1, 1, 1, 0]))
    assert (found[0].difference, found[0].n) == (0.5, 4)
    html = shown(found)
    assert "a to b" in html
    assert "+0.500" in html
    assert "1 task was compared at once" in html


@pytest.mark.parametrize("kind", ["sft", "mix"])
def test_what_has_no_scores_and_no_rollouts_says_so(tmp_path, kind):
    one = Artifact(kind, "mine", "0" * 12, tmp_path / "mine", {}, {})
    for ask in (tercet.scores, lambda one: tercet.compare(one, one)):
        with pytest.raises(StoreError, match=f"mine is a {kind} artifact; expected an eval artifact"):
            ask(one)
    with pytest.raises(StoreError, match=f"mine is a {kind} artifact without rollouts; expected a GRPO or PPO one"):
        tercet.rollouts(one)


def test_rollouts_are_folded_under_their_rewards():
    group = {"step": 3, "verifier": HOSTILE, "prompt": [{"role": "user", "content": HOSTILE}]}
    rows = [{"reward": 0.0, "text": HOSTILE, "advantage": -1.0}, {"reward": 1.0, "text": "b", "advantage": None}]
    html = shown(inline.Rollouts([group | {"rows": rows}]))
    assert "<details><summary>round 3" in html
    assert "rewards 0, 1" in html
    assert "reward 0, advantage -1.00" in html
    assert inline.Rollouts()._repr_html_() == "<p>no rollouts</p>"
