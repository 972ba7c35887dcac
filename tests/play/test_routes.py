"""Every route of the page: what it answers, what it refuses, and under which policy the page is."""

from __future__ import annotations

import pytest

from tercet.play import assets
from tercet.play.routes import free

GRADE = {"verifier": "gsm8k@2", "reference": "4", "answers": [{"text": "It is 4."}, {"text": "It is 5."}]}


def test_the_page_has_a_strict_policy_and_its_files_are_served(asked):
    page = asked("/")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    for name, (data, kind) in assets.assets().items():
        found = asked(f"/play/{name}")
        assert (found.status_code, found.content, found.headers["content-type"]) == (200, data, kind)
    assert set(free()) == {"/", *(f"/play/{name}" for name in assets.assets())}


def test_the_page_is_told_columns_verifiers_and_tasks(asked):
    found = asked("/play/config").json()
    assert [(one["name"], one["label"], one["chat"]) for one in found["columns"]] == [
        ("base", "Base", True), ("sft", "SFT", True),
    ]  # fmt: skip
    assert len({one["tokenizer"] for one in found["columns"]}) == 1
    assert found["tasks"] == {"words@1": 4, "constraints@1": 1}
    assert {"gsm8k@2", "tulu_if@1"} <= {one["name"] for one in found["verifiers"]}
    assert "remote" not in found["columns"][0]


def test_an_item_is_picked_by_number_and_found_by_name(asked):
    picked = asked("/play/items?task=words@1&change=lost&columns=base,sft&number=0").json()
    assert (picked["item"], picked["of"]) == ("w3", 1)
    assert asked("/play/items?task=words@1&item=w3").json()["reference"] == "9"
    assert asked("/play/items?task=words@1&item=none").status_code == 404
    assert asked("/play/items?number=-1").status_code == 400


def test_answers_are_graded_and_counted(asked):
    found = asked("/play/grade", GRADE).json()
    assert [one["right"] for one in found["grades"]] == [True, False]
    assert (found["right"], found["graded"]) == (1, 2)


def test_an_items_own_card_grades_its_answers(asked, book):
    stored = book.stored("words@1", "w0")["base"]
    body = {**GRADE, "answers": [{"text": stored.output, "tokens": 5}], "task": "words@1", "item": "w0"}
    (found,) = asked("/play/grade", body).json()["grades"]
    assert (found["score"], found["answer"], found["outcome"]) == (stored.score, stored.answer, stored.outcome)
    cut = {**body, "answers": [{"text": stored.output, "stop": "length"}]}
    assert asked("/play/grade", cut).json()["grades"][0]["outcome"] == "truncated"


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        [],
        {**GRADE, "verifier": "mine.py:score"},
        {**GRADE, "verifier": "tulu_if@1"},
        {**GRADE, "answers": []},
        {**GRADE, "answers": [{"text": "x"}] * 200},
        {**GRADE, "odd": 1},
    ],
)
def test_what_cannot_be_graded_is_refused_with_its_reason(asked, wrong):
    found = asked("/play/grade", wrong)
    assert found.status_code == 400
    assert found.json()["error"]["message"]


def test_a_trace_is_asked_of_the_column_and_opened_once(asked):
    opened = []

    class Spans:
        def __init__(self):
            opened.append(1)

        def trace(self, text, prompt=""):
            self.text = text
            return self

        def to_json(self):
            return {"spans": [], "covered": [], "share": 0.0, "words": len(self.text.split())}

    body = {"column": "sft", "text": "one two", "prompt": "p"}
    assert asked("/play/trace", body, tracers={"sft": Spans}).json()["words"] == 2
    assert opened == [1]
    assert asked("/play/trace", {**body, "column": "base"}, tracers={"sft": Spans}).status_code == 404


def test_a_pair_is_kept_and_a_read_only_page_keeps_nothing(asked, playground):
    turns = [{"role": "user", "content": "How many?"}]
    how = {"chosen": "4", "rejected": "5", "chosen_model": "sft", "rejected_model": "base", "settings": {"seed": 1}}
    pair = {"kind": "pair", "prompt": turns, **how}
    assert asked("/play/keep", pair, kept=None).status_code == 403
    assert not playground.kept.file("pair").exists()
    assert asked("/play/keep", pair).json()["kept"] == 1
    assert asked("/play/keep", {**pair, "rejected": "4"}).status_code == 400
    assert asked("/play/keep", {"kind": "file"}).status_code == 413
    assert asked("/play/config", kept=None).json()["read_only"] is True


def test_a_state_becomes_a_file(asked):
    found = asked("/play/frozen", {"title": "t", "path": []})
    assert found.headers["content-disposition"].startswith("attachment")
    assert found.text.startswith("<!doctype html>")
    assert asked("/play/frozen", []).status_code == 400
