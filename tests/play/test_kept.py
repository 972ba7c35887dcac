"""What is kept is a source of a stage: pairs of `pair_mix`, marks of `unpaired_mix`, rows of `mix`."""

from __future__ import annotations

import json
import tomllib
from concurrent.futures import ThreadPoolExecutor

import pytest
from pydantic import ValidationError

from tercet import journal, pipeline
from tercet.data.layouts import recognise
from tercet.play.kept import Kept, KeptError
from tercet.recipe import Recipe
from tercet.rows import read_pairs, read_rows, read_table
from tercet.store import Store

PROMPT = [{"role": "user", "content": "How many apples?"}]
HOW = {"seed": 3, "temperature": 0.7}
PAIR = {
    "kind": "pair", "prompt": PROMPT, "settings": HOW, "chosen": "Four.", "rejected": "Five.",
    "chosen_model": "sft", "rejected_model": "base",
}  # fmt: skip
ROW = {"kind": "row", "prompt": PROMPT, "settings": HOW, "answer": "Exactly four.", "model": "sft", "before": "Four."}
MARK = {"kind": "mark", "prompt": PROMPT, "settings": HOW, "answer": "Four.", "model": "sft", "good": True}


@pytest.fixture
def kept(tmp_path):
    return Kept(tmp_path / "play", {"sft": "sft-0123", "base": "base-4567", "other": "other-89"})


def test_what_is_kept_is_read_by_the_stages_that_the_page_names(kept, tmp_path):
    said = {record["kind"]: kept.keep(record) for record in (PAIR, ROW, MARK)}
    kept.keep({**MARK, "answer": "Five.", "good": False})
    stages = {}
    for kind, one in said.items():
        lines = one["source"].replace(", sources", "\nsources")  # two keys of a stage of a recipe
        stages[kind] = tomllib.loads(lines)
    recipe = Recipe.model_validate({"name": "kept", "base": {"model": "tiny:"}, "stage": stages})
    made = pipeline.run(recipe, Store(tmp_path / "runs"), only=list(stages))
    (pair,) = read_pairs(made["pair"].payload / "pairs.parquet")
    assert [turn.content for turn in pair.chosen] == ["How many apples?", "Four."]
    assert (pair.rejected[-1].content, pair.chosen_model, pair.rejected_model) == ("Five.", "sft", "base")
    (row,) = read_rows(made["row"].payload / "rows.parquet")
    assert (row.answer, row.source) == ("Exactly four.", "play")
    assert [one["good"] for one in read_table(made["mark"].payload / "unpaired.parquet")] in (
        [True, False],
        [False, True],
    )


@pytest.mark.parametrize(
    ("record", "need", "adapter"), [(PAIR, "pairs", "preference"), (ROW, "rows", "rows"), (MARK, "unpaired", "kto")]
)
def test_what_is_kept_has_a_layout_of_ours(kept, record, need, adapter):
    kept.keep(record)
    assert recognise(list(journal.read(kept.file(record["kind"]))), need).adapter == adapter


def test_every_record_names_weights_settings_and_time(kept):
    for record in (PAIR, ROW, MARK):
        kept.keep(record)
        (stored,) = [json.loads(line) for line in kept.file(record["kind"]).read_text("utf-8").splitlines()]
        about = json.loads(stored["provenance"])
        assert about["settings"] == HOW
        assert about["weights"]["sft"] == "sft-0123"
        assert "other" not in about["weights"]
        assert about["at"] > 1.7e9


def test_a_line_that_was_cut_short_is_taken_off_by_the_next(kept):
    kept.keep(PAIR)
    with kept.file("pair").open("ab") as stream:
        stream.write(b'{"id": "play-cut')
    assert kept.keep({**PAIR, "chosen": "4."})["kept"] == 2
    assert all(json.loads(line) for line in kept.file("pair").read_bytes().splitlines())


def test_what_many_keep_at_once_is_all_there(kept):
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda i: kept.keep({**PAIR, "chosen": f"Four, {i}."}), range(64)))
    assert len({json.loads(line)["id"] for line in kept.file("pair").read_bytes().splitlines()}) == 64


@pytest.mark.parametrize(
    "wrong",
    [
        {**PAIR, "rejected": "Four."},
        {**PAIR, "chosen": " "},
        {**PAIR, "path": "/etc/passwd"},
        {**PAIR, "prompt": []},
        {**PAIR, "prompt": [{"role": "tool", "content": "x"}]},
        {**ROW, "answer": ""},
        {**MARK, "good": "yes"},
    ],
)
def test_what_teaches_nothing_or_is_no_record_is_refused(kept, wrong):
    with pytest.raises(ValidationError):
        kept.keep(wrong)
    assert not kept.file(wrong["kind"]).exists()


@pytest.mark.parametrize("wrong", [None, [], {"kind": "file"}, {"kind": ["pair"]}])
def test_an_unknown_kind_is_refused(kept, wrong):
    with pytest.raises(KeptError, match="one of pair, mark, row"):
        kept.keep(wrong)


def test_a_record_has_a_size_that_it_may_not_exceed(kept):
    with pytest.raises(KeptError, match="larger than"):
        kept.keep({**PAIR, "chosen": "a" * 700_000, "rejected": "b" * 700_000})


def test_a_full_journal_takes_no_more(kept, monkeypatch):
    monkeypatch.setattr("tercet.play.kept.MOST_BYTES", 10)
    kept.keep(PAIR)
    with pytest.raises(KeptError, match="move it away"):
        kept.keep(PAIR)


def test_half_a_surrogate_pair_is_stored_as_its_escape(kept):
    kept.keep({**ROW, "answer": "half \ud800 of it"})
    assert json.loads(kept.file("row").read_text("utf-8"))["messages"][-1]["content"] == "half \\ud800 of it"
