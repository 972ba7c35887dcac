"""The 8-gram rule: exact against a brute-force reading of the paper, blind to form, and never split over rows."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tercet.data import ngrams
from tercet.data.benchmark_items import BenchmarkItem
from tercet.data.decontam import Index, excerpt
from tercet.data.ngrams import Numbers, analyse
from tercet.data.readings import normalised

WORDS = [f"w{number}" for number in range(100)]
PAST = [f"x{number}" for number in range(100)]


def item(*fields: str, name: str = "1") -> BenchmarkItem:
    return BenchmarkItem("words@1", name, fields)


def coverage(row_texts: list[str], *fields: str, n: int = 8, published: bool = False) -> float:
    hits = Index([item(*fields)], n, published=published).hits(row_texts, threshold=0.0)
    return hits[0].coverage if hits else 0.0


def brute_force(documents: list[list[str]], fields: list[list[str]], n: int) -> float:
    """The definition, word for word."""
    best = 0.0
    for document in documents:
        grams = [document[i : i + n] for i in range(len(document) - n + 1)]
        scores = []
        for field in filter(None, fields):
            covered = set()
            for i in range(len(field) - n + 1):
                if field[i : i + n] in grams:
                    covered |= set(range(i, i + n))
            scores.append(len(covered) / len(field))
        best = max(best, sum(scores) / len(scores) if scores else 0.0)
    return best


def test_analyser_splits_on_the_published_characters_and_on_no_others() -> None:
    assert analyse('A,b.c?d!e:f;g(h)i"j-k\nl\\m n') == list("abcdefghijklmn")
    assert analyse("x^2+3*y=$5/7 it's\ta") == ["x^2+3*y=$5/7", "it's\ta"]
    assert analyse(" ... ") == []


def test_a_verbatim_copy_covers_everything() -> None:
    text = "Ann has three pens and buys four more pens in the shop. How many pens has she?"
    assert coverage([text], text) == 1.0


def test_case_and_punctuation_do_not_matter() -> None:
    text = "Ann has three pens, and buys four more pens in the shop: how many pens has she?"
    edited = 'ANN HAS (three) pens -- and buys "four" more pens in the Shop!\nHow many\\pens has she'
    assert coverage([edited], text) == 1.0


@pytest.mark.parametrize(("copied", "hit"), [(49, False), (50, False), (51, True), (100, True)])
def test_more_than_half_must_be_copied(copied: int, hit: bool) -> None:
    row = " ".join(WORDS[:copied] + PAST)
    hits = Index([item(" ".join(WORDS))]).hits([row], threshold=0.5)
    assert bool(hits) is hit
    assert coverage([row], " ".join(WORDS)) == copied / 100


def test_halves_in_two_turns_are_two_documents_and_do_not_add_up() -> None:
    halves = [" ".join(WORDS[:50]), " ".join(WORDS[50:])]
    assert coverage(halves, " ".join(WORDS)) == 0.5
    assert not Index([item(" ".join(WORDS))]).hits(halves, threshold=0.5)


def test_seven_shared_tokens_are_no_copy_and_eight_are() -> None:
    assert coverage([" ".join(WORDS[:7] + PAST)], " ".join(WORDS[:9])) == 0.0
    assert coverage([" ".join(WORDS[:8] + PAST)], " ".join(WORDS[:9])) == 8 / 9


def test_by_the_papers_rule_fields_shorter_than_an_ngram_score_zero() -> None:
    assert coverage(["What is two plus two?"], "What is two plus two?", published=True) == 0.0


def test_an_item_shorter_than_an_ngram_is_copied_by_a_text_that_holds_it() -> None:
    short = "What is two plus two?"
    assert coverage([f"Tell me: {short.upper()} Thanks."], short) == 1.0
    assert coverage(["What is two plus, two?"], short) == 1.0
    assert coverage(["What is two plus three plus two?"], short) == 0.0


def test_an_item_of_a_few_words_is_copied_only_by_a_turn_that_says_nothing_else() -> None:
    assert coverage(["WHAT is **love**?"], "What is love?") == 1.0
    assert coverage(["What is love, in one word?"], "What is love?") == 0.0


def test_a_short_question_needs_its_options_and_a_long_one_does_not() -> None:
    options = ("red", "all of the above")
    index = Index(
        [
            BenchmarkItem("mc@1", "short", ("Which one is true?",), options),
            BenchmarkItem("mc@1", "long", (" ".join(WORDS[:20]),), options),
        ]
    )
    copy = "Which one is true?\n(A) red\n(B) all of the above"
    assert [hit.item.item for hit in index.hits([copy])] == ["short"]
    assert not index.hits(["Which one is true? red or blue"])
    assert [hit.item.item for hit in index.hits([" ".join(WORDS[:20])])] == ["long"]
    assert index.ways == ["phrase", "n-grams"]


def test_short_fields_beside_a_long_one_count_when_the_text_holds_them() -> None:
    passage, question = " ".join(WORDS[:40]), "How many teams met?"
    assert coverage([f"{passage} {question}"], passage, question) == 1.0
    assert coverage([f"{passage} Who won?"], passage, question) == 0.5
    assert coverage([f"{passage} {question}"], passage, question, published=True) == 0.5


def test_items_say_how_they_are_looked_for() -> None:
    items = [item(" ".join(WORDS)), item("What is two plus two?"), item("two words"), item(" ... "), item("")]
    assert Index(items).ways == ["n-grams", "phrase", "whole turn", "", ""]
    assert Index(items, exact=True).ways == ["phrase", "phrase", "phrase", "", ""]
    assert Index(items, published=True).ways == ["n-grams", "", "", "", ""]


def test_fields_are_averaged_per_document() -> None:
    passage, question = " ".join(WORDS[:40]), " ".join(WORDS[40:60])
    assert coverage([question], passage, question) == 0.5
    assert coverage([passage, question], passage, question) == 0.5
    assert coverage([f"{passage} and {question}"], passage, question) == 1.0
    assert coverage([question], "", question) == 1.0  # a question without a passage has one field


def test_a_hit_shows_the_longest_copied_run_and_where_it_stands() -> None:
    texts = ["Hello.", "Well, " + " ".join(WORDS[10:90]).upper()]
    (hit,) = Index([item("", " ".join(WORDS))]).hits(texts, threshold=0.5)
    assert hit.matched == " ".join(WORDS[10:90])
    assert (hit.document, hit.field, hit.coverage) == (1, 1, 0.8)


def test_hits_come_in_benchmark_order() -> None:
    benchmark = [
        item(" ".join(WORDS[:20]), name="a"),
        item(" ".join(PAST), name="b"),
        item(" ".join(WORDS[:10]), name="c"),
    ]
    assert [hit.item.item for hit in Index(benchmark).hits([" ".join(WORDS)], threshold=0.5)] == ["a", "c"]


def test_equal_hashes_of_different_ngrams_are_not_confused(monkeypatch: pytest.MonkeyPatch) -> None:
    def all_equal(ids: Numbers, n: int) -> NDArray[np.uint64]:
        return np.zeros(max(0, len(ids) - n + 1), np.uint64)

    monkeypatch.setattr(ngrams, "hashes", all_equal)
    assert coverage([" ".join(WORDS[:20] + PAST)], " ".join(WORDS[:40])) == 0.5
    assert coverage([" ".join(PAST)], " ".join(WORDS)) == 0.0


@given(
    documents=st.lists(st.lists(st.sampled_from("abc"), max_size=30), max_size=3),
    items=st.lists(st.lists(st.lists(st.sampled_from("abc"), max_size=20), min_size=1, max_size=3), max_size=4),
    n=st.integers(1, 5),
)
def test_index_equals_brute_force(documents: list[list[str]], items: list[list[list[str]]], n: int) -> None:
    benchmark = [item(*map(" ".join, fields), name=str(number)) for number, fields in enumerate(items)]
    hits = Index(benchmark, n, published=True).hits([" ".join(document) for document in documents], threshold=0.0)
    found = {hit.item.item: hit.coverage for hit in hits}
    for number, fields in enumerate(items):
        assert found.get(str(number), 0.0) == pytest.approx(brute_force(documents, fields, n), abs=1e-12)


@given(st.text(), st.text())
def test_any_text_can_be_indexed_and_searched(benchmark_text: str, row_text: str) -> None:
    index = Index([item(benchmark_text)], n=2)
    assert all(0 < hit.coverage <= 1 for hit in index.hits([row_text], threshold=0.0))
    expected = 1.0 if len(analyse(benchmark_text)) >= 2 else 0.0
    assert coverage([benchmark_text], benchmark_text, n=2) == (1.0 if analyse(normalised(benchmark_text)) else expected)
    assert coverage([benchmark_text], benchmark_text, n=2, published=True) == expected


MARKED = st.text("ab \t\r\n*_`<>/br.,-\u2014\u2019\u00a0\u200b\ufb01e\u0301\u00c9;&nps", max_size=40)


@settings(max_examples=400)
@given(st.lists(MARKED, min_size=1, max_size=3), st.lists(MARKED, max_size=3), st.integers(1, 3))
def test_nothing_is_lost_that_the_papers_rule_finds(fields: list[str], texts: list[str], n: int) -> None:
    row = [*texts, f"x {fields[0]}", fields[0][3:]]
    for exact in (False, True):
        plain, default = (
            {h.number: h.coverage for h in Index([item(*fields)], n, exact=exact, published=published).hits(row, 0.1)}
            for published in (True, False)
        )
        assert all(default.get(number, 0.0) >= coverage for number, coverage in plain.items())


def test_excerpt_shows_the_raw_text_around_the_copy() -> None:
    text = "Once upon a time. " * 20 + "Ann has (three) PENS, and buys four more!" + " The end." * 20
    shown = excerpt(text, "ann has three pens and buys four more", margin=5)
    assert shown == "…ime. Ann has (three) PENS, and buys four more! The…"
    assert excerpt("short", "not in the text") == "short"
    assert excerpt("", "anything") == ""


def phrase(document: list[str], field: list[str]) -> bool:
    size = len(field)
    return any(document[i : i + size] == field for i in range(len(document) - size + 1))


@given(
    documents=st.lists(st.lists(st.sampled_from("ab"), max_size=30), max_size=3),
    items=st.lists(st.lists(st.lists(st.sampled_from("ab"), max_size=8), min_size=1, max_size=3), max_size=4),
    n=st.integers(1, 5),
)
def test_exact_mode_equals_brute_force(documents: list[list[str]], items: list[list[list[str]]], n: int) -> None:
    benchmark = [item(*map(" ".join, fields), name=str(number)) for number, fields in enumerate(items)]
    hits = Index(benchmark, n, exact=True).hits([" ".join(document) for document in documents])
    expected = [
        str(number)
        for number, fields in enumerate(items)
        if any(fields) and any(all(phrase(text, field) for field in fields if field) for text in documents)
    ]
    assert [hit.item.item for hit in hits] == expected


def test_exact_mode_wants_the_whole_field_in_one_document_and_takes_short_ones() -> None:
    short, long = "What is two plus two?", " ".join(WORDS)
    index = Index([item(short, name="short"), item(long, name="long"), item(short, long, name="both")], exact=True)
    assert [hit.item.item for hit in index.hits(["So: WHAT is two plus two"])] == ["short"]
    assert not index.hits([" ".join(WORDS[:-1])])
    assert [hit.item.item for hit in index.hits([short, long])] == ["short", "long"]
    (_, _, both) = index.hits([f"{short} {long}"])
    assert (both.item.item, both.coverage, both.field, both.matched) == ("both", 1.0, 1, long)


@given(
    rows=st.lists(st.lists(st.text("ab .,É", max_size=30), max_size=3), max_size=6),
    benchmark_texts=st.lists(st.text("ab .,é", max_size=30), max_size=5),
)
def test_many_rows_at_once_give_what_each_row_gives(rows: list[list[str]], benchmark_texts: list[str]) -> None:
    index = Index([item(text, name=str(number)) for number, text in enumerate(benchmark_texts)], n=2)
    together, tokens = index.search(rows, threshold=0.1)
    assert together == [index.hits(texts, threshold=0.1) for texts in rows]
    assert tokens == sum(len(analyse(text)) for texts in rows for text in texts)


@given(st.lists(st.text("aAbé\ud800 .\t\n", max_size=20), max_size=5), st.lists(st.text("abÉ\ud800 \t", max_size=9)))
def test_words_by_hash_have_the_numbers_of_the_dictionary(documents: list[str], benchmark_texts: list[str]) -> None:
    words = ngrams.vocabulary()
    ngrams.encode(benchmark_texts, words, learn=True)
    hashes = ngrams.WordHashes(words)
    quick, slow = hashes.encode(documents), ngrams.encode(documents, words)
    assert hashes.unique
    assert quick.ids.tolist() == slow.ids.tolist()
    assert quick.ends.tolist() == slow.ends.tolist()


def test_where_two_words_of_the_benchmark_have_one_hash_the_dictionary_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ngrams, "_SPREAD", np.uint64(0))
    words = ngrams.vocabulary()
    ngrams.encode(["a b"], words, learn=True)
    assert not ngrams.WordHashes(words).unique
    assert coverage([" ".join(WORDS[:20] + PAST)], " ".join(WORDS[:40])) == 0.5


def test_pairs_are_compared_in_pieces_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    benchmark = [item("a a a a a a b", name=str(number)) for number in range(20)]
    whole = Index(benchmark, 3).hits(["a a a a b a a"], threshold=0.0)
    monkeypatch.setattr(ngrams, "_AT_ONCE", 7)
    assert Index(benchmark, 3).hits(["a a a a b a a"], threshold=0.0) == whole
    assert len(whole) == 20


def test_an_ngram_needs_a_token() -> None:
    with pytest.raises(ValueError, match="at least one token"):
        Index([], n=0)


def read(path: Path) -> list[dict[str, str]]:
    text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
    if ".jsonl" in path.name:
        return [json.loads(line) for line in text.split("\n") if line]
    return json.loads(text)


def test_the_two_training_problems_that_stand_in_the_maths_benchmark_are_found(shared_data: Path) -> None:
    benchmark = read(shared_data / "eval/math/test.jsonl.gz")
    rows = read(shared_data / "train/math/train_answers.json.gz")
    index = Index([BenchmarkItem("math", str(i), (problem["problem"],)) for i, problem in enumerate(benchmark)])
    known = {squeezed(problem["problem"]): str(i) for i, problem in enumerate(benchmark)}
    verbatim = {row["problem"]: known[squeezed(row["problem"])] for row in rows if squeezed(row["problem"]) in known}
    assert len(verbatim) == 2  # up to white space, which cuts a formula's tokens
    for problem, number in verbatim.items():
        assert number in {hit.item.item for hit in index.hits([problem])}


def squeezed(text: str) -> str:
    return "".join(text.split())


def test_math500_is_wholly_inside_the_maths_benchmark(shared_data: Path) -> None:
    benchmark = read(shared_data / "eval/math/math500.jsonl.gz")
    items = [BenchmarkItem("math500", str(i), (problem["problem"],)) for i, problem in enumerate(benchmark)]
    index = Index(items, published=True)
    found = {
        hit.item.item
        for problem in read(shared_data / "eval/math/test.jsonl.gz")
        for hit in index.hits([problem["problem"]], threshold=0.99)
    }
    long = {str(i) for i, problem in enumerate(benchmark) if len(analyse(problem["problem"])) >= 8}
    assert found == long
    assert len(long) > 450


def test_alpaca_eval_contains_the_self_instruct_prompts(shared_data: Path) -> None:
    benchmark = read(shared_data / "eval/alpaca_eval/baseline_gpt4_1106_preview_outputs.json.gz")
    items = [BenchmarkItem(row["dataset"], str(i), (row["instruction"],)) for i, row in enumerate(benchmark)]
    index = Index(items, published=True)
    found = set()
    for row in read(shared_data / "train/self_instruct/user_oriented_instructions.jsonl"):
        context = row["instances"][0]["input"]  # type: ignore[index]
        found |= {hit.item.item for hit in index.hits([f"{row['instruction']}\n\n{context}"])}
    own = {str(i) for i, row in enumerate(benchmark) if row["dataset"] == "selfinstruct"}
    assert len(own) == 252
    short = {i for i in own if len(analyse(benchmark[int(i)]["instruction"])) < 8}
    assert len(own & found) >= 0.98 * len(own - short)
    assert not own & found & short
