"""Near duplicates go, the first stays, nothing else goes, and no setting of the machine matters."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tercet.data import dedupe
from tercet.data.dedupe import Exact, Near, Twin, band_keys, jaccard, near_duplicates, shingles
from tercet.rows import Message, Row


def goes(texts: list[str], near: Near | None = None, **more: int) -> dict[int, Twin]:
    return near_duplicates(lambda: texts, near, **more)


def planted(similarity: float, seed: int, size: int = 200) -> tuple[str, str]:
    """Two texts whose 5-grams have at least this Jaccard similarity, and at most 0.01 more: one has a longer end."""
    draw = random.Random(seed)
    words = [f"w{draw.randrange(10**9)}" for _ in range(size + 4)]
    return " ".join(words), " ".join(words[: round(size * similarity) + 4])


def pool(count: int, seed: int = 0) -> list[str]:
    """Texts over few words, so that many are alike to any degree."""
    draw = random.Random(seed)
    bases = [[draw.choice("abcdefgh") for _ in range(40)] for _ in range(8)]
    return [
        " ".join(word if draw.random() > rate else draw.choice("xyz") for word in draw.choice(bases))
        for rate in (draw.choice((0, 0.01, 0.02, 0.05, 0.3)) for _ in range(count))
    ]


def greedy(texts: list[str], near: Near) -> dict[int, Twin]:
    """The definition, without any hashing."""
    kept: dict[int, dedupe.Shingles] = {}
    gone = {}
    for number, text in enumerate(texts):
        mine = shingles(text, near.words)
        twins = ((rival, jaccard(mine, theirs)) for rival, theirs in kept.items())
        twin = next((Twin(*twin) for twin in twins if twin[1] >= near.threshold), None)
        if twin:
            gone[number] = twin
        else:
            kept[number] = mine
    return gone


def test_exact_duplicates_differ_in_case_space_and_form_only() -> None:
    rule = Exact()
    texts = ["What is  2?", "what IS\n2?", "What is \uff12?", "What is 3?", "ﬁne", "fine"]
    found = [rule(Row(str(i), (Message("user", text), Message("assistant", str(i))))) for i, text in enumerate(texts)]
    assert [each and each.detail for each in found] == [None, *["same prompt as 0"] * 2, None, None, "same prompt as 4"]


def test_roles_and_turn_borders_count() -> None:
    rule = Exact()
    for turns in [("a b",), ("a", "b"), ("a", "b", "")]:
        assert rule(Row("x", tuple(Message("user", turn) for turn in turns))) is None
    assert rule(Row("x", (Message("system", "a b"),))) is None


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("similarity", "near"), [(0.75, False), (0.85, True), (0.8, True), (0.79, False), (1, True)])
def test_planted_near_duplicates_go_by_their_similarity(similarity: float, near: bool, seed: int) -> None:
    one, other = planted(similarity, seed)
    assert jaccard(shingles(one, 5), shingles(other, 5)) == pytest.approx(similarity)
    assert goes([one, "something else entirely", other]) == (
        {2: Twin(0, round(200 * similarity) / 200)} if near else {}
    )


def test_bands_are_the_widest_that_miss_one_in_a_hundred() -> None:
    assert Near().bands == (21, 6)
    assert Near(threshold=1).bands == (1, 128)
    for threshold in (0.1, 0.5, 0.9):
        bands, rows = Near(threshold=threshold).bands
        assert (1 - threshold**rows) ** bands <= 0.01 < (1 - threshold ** (rows + 1)) ** (128 // (rows + 1))


def test_the_share_of_equal_minima_is_the_similarity() -> None:
    near = Near(threshold=0.01, permutations=2000)  # so low a threshold gives bands of one permutation
    assert near.bands == (2000, 1)
    for similarity in (0.2, 0.5, 0.8):
        keys = band_keys(planted(similarity, seed=1), near)
        assert (keys[0] == keys[1]).mean() == pytest.approx(similarity, abs=0.05)


@given(st.integers(0, 10**6), st.sampled_from([0.5, 0.8, 0.95]))
@settings(max_examples=15)
def test_every_removal_is_true_and_next_to_all_are_found(seed: int, threshold: float) -> None:
    texts = pool(60, seed)
    near = Near(threshold)
    found = goes(texts, near)
    for number, twin in found.items():
        assert twin.number < number
        assert twin.number not in found
        assert twin.similarity == jaccard(*(shingles(texts[i], 5) for i in (number, twin.number))) >= threshold
    assert abs(len(found) - len(greedy(texts, near))) <= 2


@given(st.integers(0, 10**6))
@settings(max_examples=10)
def test_a_second_pass_removes_nothing(seed: int) -> None:
    texts = pool(60, seed)
    gone = goes(texts)
    assert goes([text for number, text in enumerate(texts) if number not in gone]) == {}


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_chunks_do_not_matter(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["", "?!", "one", *pool(60), "\ud800 \x00", "ein zwei drei vier fünf", "one"]
    whole, keys = goes(texts), band_keys(texts, Near())
    monkeypatch.setattr(dedupe, "_CHUNK", chunk)
    assert goes(texts) == whole
    assert np.array_equal(band_keys(texts, Near()), keys)


def test_workers_do_not_matter() -> None:
    texts = pool(600)
    assert goes(texts, workers=2) == goes(texts)


def test_the_seed_decides_the_keys_and_not_the_verdict() -> None:
    texts = pool(40)
    assert not np.array_equal(band_keys(texts, Near(seed=1)), band_keys(texts, Near(seed=2)))
    assert np.array_equal(band_keys(texts, Near(seed=1)), band_keys(texts, Near(seed=1)))
    assert goes(texts, Near(seed=1)) == goes(texts, Near(seed=2))


def test_the_keys_are_the_same_on_every_machine() -> None:
    keys = band_keys(["the quick brown fox jumps over the lazy dog"], Near())
    assert [int(key) for key in keys[0, :2]] == [1108930379162891637, 16707956555083155321]


def test_blank_texts_are_never_alike_and_short_ones_only_when_equal() -> None:
    assert goes(["", "", " ", "?!", "? !", "Yes.", "yes", "YES", "k < 0", "k > 0"]) == {
        4: Twin(3, 1.0),
        7: Twin(6, 1.0),
    }
    assert goes([]) == {}


def test_one_sign_makes_another_problem() -> None:
    one = "Given that $f(x) = x^k$ where $k < 0$, what is the range of $f(x)$ on the interval $[1, \\infty)$?"
    assert goes([one, one.replace("<", ">")]) == {}
    assert list(goes([one, one.replace(" what", "  What")])) == [1]


def test_impossible_settings_are_refused() -> None:
    for bad in ({"threshold": 0.0}, {"threshold": 1.1}, {"words": 0}, {"permutations": 0}):
        with pytest.raises(ValueError, match="expected 0 < threshold <= 1"):
            Near(**bad)


def test_real_rows_hold_the_known_twins(shared_data: Path) -> None:
    with gzip.open(shared_data / "train/math/train_answers.json.gz", "rt", encoding="utf-8") as stream:
        texts = [str(row["problem"]) for row in json.load(stream)]
    rule = Exact()
    exact = {number for number, text in enumerate(texts) if rule(Row(str(number), (Message("user", text),)))}
    near = goes(texts)
    assert (len(texts), len(exact), len(near)) == (7474, 1, 47)
    assert exact <= set(near)
    assert all(jaccard(shingles(texts[i], 5), shingles(texts[t.number], 5)) >= 0.8 for i, t in near.items())
