"""Items of evaluations are found by what happened to them from one model to the next."""

from __future__ import annotations

import json

import pytest

from tercet.play.items import ItemBook, NoItemError

BOTH = ["base", "sft"]


def test_the_items_that_a_model_wrote_an_answer_to_are_counted_by_task(book):
    assert book.tasks() == {"words@1": 4, "constraints@1": 1}  # options of facts@1 were weighed, not written


@pytest.mark.parametrize(
    ("change", "items"),
    [
        ("all", ["w0", "w1", "w2", "w3", "c0"]),
        ("gained", ["w0", "c0"]),
        ("lost", ["w3"]),
        ("disagree", ["w0", "w3", "c0"]),
        ("always wrong", ["w2"]),
    ],
)
def test_a_change_picks_its_items_in_order_round_and_round(book, change, items):
    found = [book.pick(BOTH, change=change, number=number) for number in range(len(items) + 1)]
    assert [one["item"] for one in found] == [*items, items[0]]
    assert {one["of"] for one in found} == {len(items)}


def test_a_change_is_that_from_the_first_to_the_last_model_that_is_shown(book):
    assert book.pick(["sft", "base"], task="words@1", change="lost")["item"] == "w0"


def test_an_item_has_prompt_reference_settings_and_stored_answers(book):
    found = book.item("words@1", "w0")
    assert [turn["content"] for turn in found["messages"]] == ["1 + 1?", "2", "How many?"]
    assert (found["reference"], found["verifier"], found["settings"]["stop"]) == ("4", "gsm8k@2", ["END"])
    assert {name: (one["output"], one["right"]) for name, one in found["stored"].items()} == {
        "base": ("It is 5.", False),
        "sft": ("It is 4.", True),
    }


@pytest.mark.parametrize("how", [{"change": "lost", "task": "constraints@1"}, {"task": "nothing"}, {"change": "odd"}])
def test_what_is_not_there_is_said(book, how):
    with pytest.raises(NoItemError, match=r"no (item|change)"):
        book.pick(BOTH, **how)
    with pytest.raises(NoItemError, match="no item 'w9'"):
        book.item("words@1", "w9")


def test_a_damaged_line_names_file_and_line(tmp_path, run_store):
    payload = run_store.open("eval-base").payload
    (tmp_path / "scores.json").write_bytes((payload / "scores.json").read_bytes())
    (tmp_path / "results.jsonl").write_text(json.dumps({"task": "words@1"}) + "\n")
    with pytest.raises(ValueError, match=r"results\.jsonl: line 1 is no result"):
        ItemBook({"base": [tmp_path]}).tasks()
