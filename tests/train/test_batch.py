"""Packing, sharing out, the length policy, and which rows a step takes."""

from __future__ import annotations

from collections import Counter
from itertools import chain

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tercet.device.mesh import Mesh
from tercet.models.chat import Chat
from tercet.models.forest import Leaf, Tree
from tercet.models.hf_folder import load_tokenizer
from tercet.rows import Message
from tercet.train.batch import (
    FILL,
    Limit,
    TruncationError,
    answered,
    batches,
    branch,
    chosen_rows,
    cut,
    order,
    schedule,
    trained,
    within,
)
from tercet.train.packing import Budget, pack, share
from tercet.train.tokens import Tokens, write
from tercet.train.tokens import batches as token_batches

sizes = st.lists(st.integers(1, 400), max_size=60)
budgets = st.integers(1, 400)


@given(sizes, budgets)
def test_packing_keeps_to_the_budget_and_takes_every_item_once(lengths, budget):
    bins = pack(lengths, budget)
    assert Counter(item for items in bins for item in items) == Counter(range(len(lengths)))
    for items in bins:
        assert sum(lengths[item] for item in items) <= budget or len(items) == 1


@given(sizes, budgets)
def test_packing_wastes_less_than_half(lengths, budget):
    """First fit: no two batches would fit into one."""
    loads = [sum(lengths[item] for item in items) for items in pack(lengths, budget)]
    assert all(one + other > budget for i, one in enumerate(loads) for other in loads[:i])


@given(sizes, st.integers(1, 8))
def test_ranks_share_every_item_once(lengths, ranks):
    shares = [share(lengths, Mesh(rank, ranks)) for rank in range(ranks)]
    assert sorted(item for mine in shares for item in mine) == list(range(len(lengths)))
    loads = [sum(lengths[item] for item in mine) for mine in shares]
    assert max(loads) - min(loads) <= max(lengths, default=0)


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 5))
def test_an_epoch_takes_every_row_once_in_an_order_of_its_own(rows, batch, seed):
    per_epoch = -(-rows // batch)
    for epoch in range(2):
        taken = [row for place in range(per_epoch) for row in chosen_rows(epoch * per_epoch + place, rows, batch, seed)]
        assert sorted(taken) == list(range(rows))
        assert taken == order(rows, epoch, seed)


def test_epochs_and_seeds_shuffle_differently():
    assert len({tuple(order(30, epoch, seed)) for epoch in range(3) for seed in range(3)}) == 9


def test_an_epoch_takes_every_row_once_whatever_step_it_is_entered_at():
    seen = [chosen_rows(step, 7, 3, 5) for step in reversed(range(6))][::-1]
    assert [len(rows) for rows in seen] == [3, 3, 1] * 2
    assert all(sorted(chain(*seen[i : i + 3])) == list(range(7)) for i in (0, 3))


def test_steps_are_counted_by_epoch_and_may_be_limited():
    assert schedule(10, 4, 3, None) == 9
    assert schedule(10, 4, 3, 5) == 5
    assert schedule(10, 4, 3, 50) == 9
    assert schedule(8, 4, 1, None) == 2


def leaf(length: int, first: int = 1) -> Tree:
    return Tree([], [Leaf(range(length), [place >= first for place in range(length)])])


ROWS = [("a", "one", leaf(10)), ("b", "one", leaf(30)), ("c", "two", leaf(20)), ("d", "two", leaf(25, first=22))]


@pytest.fixture
def kept_tokens(tmp_path) -> Tokens:
    write(tmp_path / "rows.arrow", token_batches(iter(ROWS)))
    return Tokens(tmp_path / "rows.arrow")


def test_long_rows_are_dropped_and_counted_by_source(kept_tokens):
    kept, table = within(kept_tokens, Limit(20, "drop", 1.0))
    assert [tree.num_tokens for tree in kept] == [10, 20]
    assert kept.rows.tolist() == [0, 2]
    assert table == {
        "max_length": 20,
        "overlong": "drop",
        "sources": {
            "one": {"rows": 2, "lost_rows": 1, "cut_rows": 0, "tokens": 40, "lost_tokens": 30},
            "two": {"rows": 2, "lost_rows": 1, "cut_rows": 0, "tokens": 45, "lost_tokens": 25},
        },
    }


def test_long_rows_are_cut_unless_nothing_to_train_is_left(kept_tokens):
    kept, table = within(kept_tokens, Limit(20, "cut", 1.0))
    assert [(row, tree.num_tokens) for row, tree in zip(kept.rows, kept, strict=True)] == [(0, 10), (1, 20), (2, 20)]
    assert table["sources"]["one"] == {"rows": 2, "lost_rows": 0, "cut_rows": 1, "tokens": 40, "lost_tokens": 10}
    assert table["sources"]["two"] == {"rows": 2, "lost_rows": 1, "cut_rows": 0, "tokens": 45, "lost_tokens": 25}


def test_a_long_row_stops_the_run_when_asked_to(kept_tokens):
    with pytest.raises(TruncationError, match=r'row b of one has 30 tokens, more than max_length = 20; .*"drop"'):
        within(kept_tokens, Limit(20, "error", 1.0))
    kept, _ = within(kept_tokens, Limit(30, "error", 0.0))
    assert len(kept) == 4


def test_losing_more_than_max_lost_stops_the_run(kept_tokens):
    with pytest.raises(TruncationError, match=r"2 of 4 rows \(50.0%\) are longer .* max_lost = 5%; raise"):
        within(kept_tokens, Limit(20, "drop", 0.05))
    with pytest.raises(TruncationError, match="all 4 rows are longer than max_length = 9; raise max_length"):
        within(kept_tokens, Limit(9, "drop", 1.0))
    assert len(within(kept_tokens, Limit(20, "drop", 0.5))[0]) == 2


def test_cutting_shortens_every_path():
    tree = Tree(range(6), [Leaf(range(9), [True] * 9), Leaf(range(3), [True] * 3)])
    shorter = cut(tree, 8)
    assert [len(one.token_ids) for one in shorter.leaves] == [2, 2]
    assert trained(shorter)
    assert not trained(cut(tree, 6))
    assert cut(tree, 4).num_tokens == 4


@pytest.fixture(scope="module")
def chat(tiny_folder) -> Chat:
    return Chat(load_tokenizer(tiny_folder))


def test_a_conversation_is_one_leaf_that_ends_with_its_last_trained_token(chat):
    turns = [Message("user", "a"), Message("assistant", "b"), Message("user", "c"), Message("assistant", "d")]
    tree = answered(chat.encode(turns, "row"))
    (one,) = tree.leaves
    assert tree.trunk == []
    assert one.mask[-1]
    assert one.token_ids[-1] == chat.end_id
    assert sum(one.mask) == 4, "two answers of one letter, each with its end token"


def test_answers_branch_off_their_prompt_and_only_they_are_trained(chat):
    prompt = (Message("user", "Which?"),)
    tree = branch([chat.encode((*prompt, Message("assistant", text))) for text in ("this", "that one")])
    assert tree.trunk == chat.prompt_ids(prompt)
    texts = [bytes(i for i in one.token_ids if i < 256).decode() for one in tree.leaves]
    assert texts == ["this", "that one"]
    assert all(all(one.mask) and one.token_ids[-1] == chat.end_id for one in tree.leaves)


@pytest.mark.parametrize("ranks", [1, 2, 5])
def test_ranks_get_equally_many_batches_that_hold_every_row_once(ranks, monkeypatch):
    trees = [Tree([], [Leaf([i] * (5 + 7 * i), [True] * (5 + 7 * i))]) for i in range(4)]
    counts = []
    monkeypatch.setattr(Mesh, "max", lambda mesh, values: [float(max(counts))] if counts else values)
    alone = [batches(trees, Budget(30), Mesh(rank, ranks)) for rank in range(ranks)]
    counts.extend(len(made) for made in alone)
    together = [batches(trees, Budget(30), Mesh(rank, ranks)) for rank in range(ranks)]
    assert len({len(made) for made in together}) == 1
    found = [batch for made in together for batch in made]
    assert all(batch.num_tokens <= 30 for batch in found)
    assert sum(len(batch.forest.targets_P) for batch in found) == sum(tree.num_tokens - 1 for tree in trees)
    assert all(len(batch.forest.input_ids) % FILL == 0 for batch in found if len(batch.forest.targets_P))


def test_values_follow_their_rows_into_the_batches():
    trees = [Tree([1], [Leaf([i], [True])]) for i in range(7)]
    made = batches(trees, Budget(4), Mesh(), lambda items, _forest: {"mark": torch.tensor(items)})
    assert len(made) == 4
    for batch in made:
        assert batch.forest.targets_P.tolist() == batch.values["mark"].tolist()
