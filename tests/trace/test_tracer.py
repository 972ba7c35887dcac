"""A trace finds what stands in the rows of a lineage, says where, and finds nothing else."""

from __future__ import annotations

import json

import pytest
from tests.trace.stores import CHOSEN, PLANTED, REJECTED, ROLLOUT, commit, conversation

from tercet.store import StoreError
from tercet.trace import Tracer

FRESH = "Quartz owls hum softly while violet engines dream about unpainted staircases and cinnamon weather."


@pytest.fixture(scope="module")
def tracer(shared_run):
    return Tracer.open(*shared_run)


def test_a_planted_sentence_is_found_with_its_row_source_licence_and_stage(tracer):
    text = f"Some say {PLANTED}. Who knows?"
    [span] = tracer.trace(text).spans
    assert span.text == text[span.start : span.stop] == PLANTED
    assert span.count == 1
    [row] = span.rows
    assert (row.number, row.id, row.source, row.licence) == (7, "r-7", "birds", "CC-BY-4.0")
    assert (row.stage, row.role) == ("sft, rlvr", "assistant")
    assert row.artifact.startswith("sft-data-")
    assert row.text[row.start : row.stop] == PLANTED
    assert row.cut == (False, False)


def test_a_fresh_sentence_is_found_nowhere(tracer):
    found = tracer.trace(FRESH)
    assert (found.spans, found.covered, found.share) == ((), (), 0.0)


def test_seven_words_are_no_span_and_eight_are_one(tracer):
    words = PLANTED.split()
    assert not tracer.trace(" ".join(words[:7])).spans
    assert tracer.trace(" ".join(words[:8])).spans[0].words == 8


def test_white_space_counts_once(tracer):
    [span] = tracer.trace(PLANTED.replace(" ", " \n\t ")).spans
    assert span.words == len(PLANTED.split())


@pytest.mark.parametrize(
    ("text", "stage", "role", "licence"),
    [
        (CHOSEN, "dpo", "chosen", "CC-BY-4.0"),
        (REJECTED, "dpo", "rejected", "CC-BY-4.0"),
        (ROLLOUT, "rlvr", "rollout", "written by the model itself"),
    ],
)
def test_pairs_and_rollouts_are_searched_under_their_roles(tracer, text, stage, role, licence):
    [[row]] = [span.rows for span in tracer.trace(text).spans]
    assert (row.stage, row.role, row.licence) == (stage, role, licence)


def test_no_span_crosses_from_a_question_into_its_answer(tracer):
    assert not tracer.trace("Say 7. You may know that the heron").spans


def test_rare_spans_stand_before_common_ones(tracer):
    common = "Number 3 is written with the digits of 3"
    [first, second] = tracer.trace(f"{common}, or {PLANTED}").spans
    assert (first.text, second.text) == (PLANTED, common)
    assert first.rarity > second.rarity


def test_of_many_rows_those_that_the_prompt_is_about_stand_first_and_few_are_shown(own_run):
    store, _ = own_run
    said = "this is what every single row of them says"
    rows = [conversation(n, f"Row {n}: {said}; {'tea' if n == 23 else 'milk'}.") for n in range(60)]
    data = commit(store, "synth", "many", {"rows.parquet": rows[20:]})
    made = commit(store, "sft", "other", {}, spec={"rows": "many"}, inputs={"many": data.key})
    [span] = Tracer.open(store, made).trace(said, "Which row is about tea, is it row 23?", most_rows=2).spans
    assert (span.count, len(span.rows)) == (40, 2)
    assert span.rows[0].number == 3


def test_a_trace_is_plain_json(tracer):
    found = tracer.trace(f"{PLANTED}.", "Which bird?").to_json()
    assert json.loads(json.dumps(found))["spans"][0]["rows"][0]["source"] == "birds"


def test_what_was_not_trained_has_no_rows(shared_run):
    store, last = shared_run
    with pytest.raises(StoreError, match="nothing in its lineage was trained"):
        Tracer.open(store, store.lineage(last)[0])


def test_what_is_searched_is_said(tracer):
    found = {(one["stage"], one["what"]): one["rows"] for one in tracer.about}
    assert found == {("sft, rlvr", "rows"): 40, ("dpo", "pairs"): 1, ("rlvr", "rollouts"): 1}


def test_an_empty_answer_and_an_empty_table_have_no_spans(own_run, tracer):
    assert tracer.trace("").spans == ()
    store, _ = own_run
    empty = commit(store, "synth", "nothing", {"rows.parquet": []})
    made = commit(store, "sft", "other", {}, spec={"rows": "nothing"}, inputs={"nothing": empty.key})
    assert Tracer.open(store, made).trace(PLANTED).spans == ()
