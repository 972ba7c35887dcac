"""Memory in pages holds what flat memory holds: completions are the same, pages come back, samples share prompts."""

from __future__ import annotations

import pytest
import torch
from test_decoding import PROMPTS, SAMPLINGS, SHARED, assert_same

from tercet.models import paged
from tercet.models.generate import LocalGenerator
from tercet.models.paged import PagedCache, pages_of, pages_of_step, rows_of_step
from tercet.rows import Sampling


@pytest.fixture(autouse=True)
def small_pages(monkeypatch) -> None:
    monkeypatch.setattr(paged, "PAGE", 16)


@pytest.fixture(scope="module")
def generator(sharp_folder) -> LocalGenerator:
    return LocalGenerator.open(sharp_folder, "float32")


@pytest.fixture
def write(generator):
    """Completions with the generator's knobs set so."""

    def write(prompts, sampling: Sampling, *, rows: int = 64, tokens: int = 131072, **state: bool):
        generator.rows, generator.tokens = rows, tokens
        generator.paged, generator.late = state.get("paged", False), state.get("late", False)
        return generator.complete(prompts, sampling)

    return write


@pytest.mark.parametrize("late", [False, True], ids=["at once", "late"])
@pytest.mark.parametrize("rows", [2, 64])
@pytest.mark.parametrize("prompts", [PROMPTS, SHARED], ids=["prompts", "a shared beginning"])
@pytest.mark.parametrize("name", ["greedy", "drawn", "stopped"])
def test_completions_from_pages_are_those_from_flat_memory(write, prompts, name, rows, late):
    sampling = SAMPLINGS[name]
    assert_same(write(prompts, sampling, rows=rows, paged=True, late=late), write(prompts, sampling, rows=rows))


def test_a_page_is_a_fixed_number_of_tokens():
    assert [pages_of(tokens) for tokens in (1, 16, 17, 160)] == [1, 1, 2, 10]


def test_few_pages_bound_the_rows_and_change_no_answer(write):
    sampling = Sampling(30, 1.0, n=4, seed=3)
    assert_same(write(PROMPTS, sampling, tokens=400, paged=True, late=True), write(PROMPTS, sampling))


@pytest.fixture
def cache(generator) -> PagedCache:
    return PagedCache.of(generator.policy, 5, 100, rows=2, tokens=16 * 20)


def test_samples_of_a_prompt_share_its_full_pages(cache):
    assert len(cache.free) == 20
    assert cache.reserve(0, 3, 40, 60)
    assert [pages[:2] for pages in cache.held[:3]] == [cache.held[0][:2]] * 3
    assert len({page for pages in cache.held for page in pages}) == 2 + 3 * 2
    assert len(cache.free) == 20 - 8
    assert cache.table[:3].tolist() == [[*pages, 0, 0, 0] for pages in cache.held[:3]]


def test_a_row_without_pages_is_not_admitted_and_takes_none(cache):
    assert cache.reserve(0, 2, 1, 100)
    assert not cache.reserve(2, 1, 1, 100)
    assert len(cache.free) == 20 - 14
    assert cache.reserve(2, 1, 1, 96)
    assert not cache.free
    assert not cache.reserve(5, 1, 1, 1), "more rows than slots"


def test_pages_are_free_when_their_last_row_has_ended(cache):
    assert cache.reserve(0, 3, 40, 60)
    cache.lengths[:3] = 40
    kept = cache.held[2]
    cache.move(2, 0, 40)
    cache.drop(2)
    assert cache.held[:3] == [kept, cache.held[1], []]
    assert len(cache.free) == 20 - 6
    assert cache.table[0, :4].tolist() == kept
    assert not cache.table[2].any()
    cache.drop(1)
    cache.drop(0)
    assert sorted(cache.free) == list(range(1, 21))
    assert not torch.tensor(cache.users).any()


def test_steps_come_in_few_sizes(cache):
    assert [rows_of_step(rows) for rows in (1, 2, 3, 4, 5, 33)] == [1, 2, 4, 4, 8, 64]
    assert [pages_of_step(pages) for pages in (1, 2, 3, 4, 5, 6, 7, 9, 13)] == [1, 2, 3, 4, 6, 6, 8, 12, 16]
    assert cache.shape(3, 40) == (4, 48)
    assert cache.shape(5, 90) == (8, 16 * 6)
    assert cache.shape(5, 100) == (8, 16 * 7), "not beyond the longest row there may be"


@pytest.mark.parametrize("size", [1, 3, 5])
@torch.no_grad()
def test_rows_that_fill_up_a_step_change_no_other_row(generator, cache, size):
    """The same step with as many rows as there are, and filled up: the same hidden states, the same memory."""
    for slot in range(size):
        assert cache.reserve(slot, 1, 9 + slot, 60)
    cache.lengths[:size] = torch.arange(9, 9 + size)
    keys = cache.kept.blocks[0]
    keys.normal_(generator=torch.Generator().manual_seed(0))
    before, found, kept = keys.clone(), [], []
    for rows, reach in ((size, 16), (8, 48)):
        keys.copy_(before)
        cache.begin(rows, reach)
        ids = torch.arange(40, 40 + rows)
        found.append(generator.policy.hidden(cache, ids, cache.lengths[:rows])[:size])
        kept.append(keys[:, 1:].clone())
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(*kept, rtol=1e-3, atol=1e-3)
    assert not torch.equal(kept[0], before[:, 1:])
