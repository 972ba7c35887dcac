"""What a training process tells before a run: masks, lengths, the generator's gap, the heaviest step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tercet.recipe import Recipe, SFTSpec
from tercet.rows import Message, Pair, Row, write_table
from tercet.train import rehearsal
from tercet.train.rehearsal import judged

BASE = {"model": "tiny:seed=3"}
WORDS = {"kind": "synth", "generator": "words@1", "rows": 8}
PAIRS = {"kind": "on_policy_pairs", "model": "base", "prompts": "words"}


def row(number: int, words: int = 3, source: str = "own") -> Row:
    turns = (Message("user", f"Say {number}."), Message("assistant", " ".join(["word"] * words)))
    return Row(f"row {number}", turns, source, verifier="gsm8k@2", reference="4")


@pytest.fixture
def asked(tmp_path, capsys):
    """Rehearse stages on rows; returns what was said, by what each line is."""

    def asked(stage: dict[str, Any], rows: dict[str, list[Any]], **more: Any) -> dict[str, list[Any]]:
        stages = {"words": WORDS, "pairs": PAIRS, **stage}
        about = {"name": "r", "dtype": "float32", "base": BASE, "stage": stages}
        recipe = Recipe.model_validate(about).resolved()
        files: dict[str, str] = dict.fromkeys(stage, "")
        for name, some in rows.items():
            file = tmp_path / name / ("pairs.parquet" if isinstance(some[0], Pair) else "rows.parquet")
            write_table(file, some)
            files[name] = str(file)
        job = {
            "recipe": recipe.model_dump(mode="json"),
            "kinds": [],
            "origin": "base",
            "cwd": "",
            **BASE,
            "folder": "",
            "rows": files,
        }
        job |= {"template": ["own", "{}", ""], "seconds": 60.0} | more
        (tmp_path / "job.json").write_text(json.dumps(job), encoding="utf-8")
        assert rehearsal.main(str(tmp_path / "job.json")) == 0
        found: dict[str, list[Any]] = {"check": [], "mask": [], "lengths": []}
        for line in capsys.readouterr().out.splitlines():
            ((key, value),) = json.loads(line).items()
            found[key].append(value)
        return found

    return asked


def state(found: dict[str, list[Any]], check: str) -> list[tuple[str, str]]:
    return [(one["state"], one["what"]) for one in found["check"] if one["check"] == check]


def test_all_of_a_recipes_training_stages_are_looked_at_and_the_heaviest_step_is_taken(asked, monkeypatch):
    monkeypatch.setattr("tercet.train.rehearsed_step.SPEED_SECONDS", 0.05)
    sft = {"kind": "sft", "model": "base", "rows": "words", "max_length": 128, "batch": 4}
    dpo = {"kind": "dpo", "model": "sft", "pairs": "pairs", "max_length": 256}
    rl = {"kind": "grpo", "model": "dpo", "prompts": "words", "rounds": 1, "max_length": 64, "max_new_tokens": 32}
    turns = (Message("user", "Hi"),)
    pairs = [Pair("p", (*turns, Message("assistant", "good")), (*turns, Message("assistant", "bad")), "own")]
    some = [row(number) for number in range(6)]
    found = asked({"sft": sft, "dpo": dpo, "rl": rl}, {"sft": some, "dpo": pairs, "rl": some})
    assert state(found, "end tokens") == [("ok", "base: an answer ends with '<|im_end|>' (258)")]
    assert [said for said, _ in state(found, "lengths")] == ["ok"] * 3
    masks = {one["stage"]: one["texts"] for one in found["mask"][::-1]}
    assert [text for trained, text in masks["sft"][0] if trained] == ["word word word<|im_end|>"]
    assert [[text for trained, text in side if trained] for side in masks["dpo"]] == [
        ["good<|im_end|>"],
        ["bad<|im_end|>"],
    ]
    assert not any(trained for trained, _ in masks["rl"][0])
    ((said, gap),) = state(found, "generator")
    assert (said, "tokens of 4 greedy completions" in gap) == ("ok", True)
    assert float(gap.split("at most ")[1].split()[0]) < 1e-3
    ((said, step),) = state(found, "longest batch")
    assert said == "ok"
    size = len("<|im_start|>user\nSay 0.<|im_end|>\n<|im_start|>assistant\n") - 3 * 11 + 1 + 16 * 32
    assert int(step.split(" tokens forward")[0].replace(",", "")) >= 4096 // size * 16 * 32
    assert [one["check"] for one in found["check"] if one["stage"] == "rl"][-1] == "longest batch"


def test_a_step_that_would_take_too_long_is_shortened_and_says_so(asked, monkeypatch):
    monkeypatch.setattr("tercet.train.rehearsed_step.SPEED_SECONDS", 0.05)
    found = asked({"sft": {"kind": "sft", "model": "base", "rows": "words", "max_length": 2048}}, {}, seconds=1e-9)
    assert state(found, "lengths") == [("not tried", "none of its rows is at hand before other stages have run")]
    ((said, step),) = state(found, "longest batch")
    assert (said, "the longest has 2,048, too many to try here" in step) == ("warning", True)


def test_a_template_that_trains_nothing_and_a_row_that_cannot_be_rendered_stop(asked, tmp_path: Path):
    (tmp_path / "odd.jinja").write_text("{% for message in messages %}{{ message['content'] }}{% endfor %}")
    sft = {"sft": {"kind": "sft", "model": "base", "rows": "words", "max_length": 128}}
    found = asked(sft, {}, template=[str(tmp_path / "odd.jinja"), "{}", ""])
    assert [said for said, _ in state(found, "template")] == ["cannot work"]
    bare = Row("bare", (Message("user", "a"), Message("user", "b")), "own")
    ((said, what),) = state(asked(sft, {"sft": [bare]}), "mask")
    assert said == "cannot work"
    assert "the rows of sft, row 0 (bare)" in what


@pytest.mark.parametrize(
    ("over", "more", "expected"),
    [
        ((0, 0), {}, "ok"),
        ((1, 0), {}, "warning"),
        ((50, 0), {}, "warning"),  # of one source alone: the mixture may hold little of it
        ((50, 40), {}, "cannot work"),
        ((50, 40), {"max_lost": 0.6}, "warning"),
        ((50, 40), {"overlong": "cut"}, "warning"),
        ((1, 0), {"overlong": "error"}, "cannot work"),
    ],
)
def test_rows_over_the_limit_stop_a_stage_where_every_source_loses_too_many(over, more, expected):
    spec = SFTSpec(kind="sft", model="base", rows="words", **more)
    table = [{"source": str(i), "rows": 100, "median": 9, "longest": 9999, "over": n} for i, n in enumerate(over)]
    assert judged("sft", spec, table).state == expected
