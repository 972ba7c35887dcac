"""Rows that are at hand before a run are what the stages will give, and the others are named."""

from __future__ import annotations

import json

from tercet.preflight.facts import Facts
from tercet.preflight.samples import sample
from tercet.recipe import Recipe
from tercet.rows import Message, Row, write_table

WORDS = {"kind": "synth", "generator": "words@1", "rows": 30}


def facts(tmp_path, stage, made=()) -> Facts:
    recipe = Recipe.model_validate({"name": "r", "base": {"model": "tiny:"}, "stage": stage})
    recipe._folder = tmp_path
    return Facts(recipe, dict(made), {})


def pair(number: int) -> dict[str, object]:
    turns = [{"role": "user", "content": f"question {number}"}]
    return {
        "chosen": [*turns, {"role": "assistant", "content": "yes"}],
        "rejected": [*turns, {"role": "assistant", "content": "no"}],
    }


def test_a_mixture_gives_rows_of_files_and_generators_and_names_what_is_away(tmp_path):
    chat = {"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]}
    (tmp_path / "own.jsonl").write_text(json.dumps(chat) + "\n", encoding="utf-8")
    (tmp_path / "broken.jsonl").write_text("{", encoding="utf-8")
    far = {"path": "owner/far", "revision": "0" * 40}
    pairs = {"kind": "on_policy_pairs", "model": "base", "prompts": "words"}
    sources = [{"stage": "words"}, {"path": "own.jsonl"}, {"path": "broken.jsonl"}, far]
    known = facts(tmp_path, {"words": WORDS, "mix": {"kind": "mix", "sources": sources}, "pairs": pairs})
    found = sample(known, "mix", 10)
    assert [len(found.rows), found.away] == [11, ["broken.jsonl", "owner/far"]]
    assert sample(known, "pairs") == ([], ["pairs"])


def test_of_an_artifact_no_source_has_more_than_its_share(tmp_path):
    turns = (Message("user", "a"), Message("assistant", "b"))
    rows = [Row(str(number), turns, "many" if number % 10 else "few") for number in range(50)]
    write_table(tmp_path / "made" / "rows.parquet", rows)
    stage = {"words": WORDS, "mix": {"kind": "mix", "sources": [{"stage": "words"}]}}
    found = sample(facts(tmp_path, stage, {"mix": tmp_path / "made"}.items()), "mix", 7)
    assert [sum(row.source == name for row in found.rows) for name in ("many", "few")] == [7, 5]


def test_pairs_give_two_labelled_answers_where_those_are_wanted(tmp_path):
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair(i)) + "\n" for i in range(3)), encoding="utf-8")
    stage = {
        "pairs": {"kind": "pair_mix", "sources": [{"path": "pairs.jsonl"}]},
        "single": {"kind": "unpaired_mix", "sources": [{"stage": "pairs"}, {"path": "pairs.jsonl"}]},
    }
    found = sample(facts(tmp_path, stage), "single").rows
    assert [row.good for row in found] == [True, False] * 6
