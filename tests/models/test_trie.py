"""Tries: every path is there once, what is worth sharing is shared, and without sharing trees stay as they are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.forests import related

from tercet.models.forest import Leaf, Tree, pack_forest, paths
from tercet.models.trie import SHARED, Path, alike, grow, in_order

SEEDS = pytest.mark.parametrize("seed", range(6))


def some_paths(seed: int, depth: int = 3, leaves: int = 2) -> list[Path]:
    return paths(related(seed, depth, leaves=leaves))


@SEEDS
@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("leaves", [1, 2])
def test_the_nodes_above_a_paths_end_spell_the_path(seed, share, leaves):
    own = some_paths(seed, leaves=leaves)
    found = grow(own, share=share)
    for path, end in zip(own, found.ends, strict=True):
        above = [found.nodes[number] for number in found.above(end)[::-1]]
        assert np.concatenate([own[n.path].ids[n.start : n.end] for n in above]).tolist() == path.ids.tolist()
        assert [node.start for node in above] == [0, *(node.end for node in above[:-1])]


@SEEDS
def test_nodes_stand_depth_first(seed):
    nodes = grow(some_paths(seed), share=True).nodes
    open_nodes: list[int] = []
    for number, node in enumerate(nodes):
        while open_nodes and open_nodes[-1] != node.parent:
            open_nodes.pop()
        assert (open_nodes[-1] if open_nodes else -1) == node.parent
        open_nodes.append(number)


@SEEDS
def test_what_long_enough_beginnings_share_is_there_once(seed):
    """By brute force: the distinct beginnings of every length are the nodes of a full trie."""
    own = some_paths(seed, depth=4, leaves=1)
    distinct = {tuple(path.ids[:end].tolist()) for path in own for end in range(1, len(path.ids) + 1)}
    found = grow(own, share=True)
    assert len(distinct) <= found.num_tokens <= len(distinct) + SHARED * len(own), "but for beginnings too short to pay"
    assert found.num_tokens < sum(len(path.ids) for path in own) / 2


@SEEDS
def test_a_node_of_several_trees_is_long_enough_to_pay(seed):
    own = some_paths(seed)
    found = grow(own, share=True)
    users: list[set[int]] = [set() for _ in found.nodes]
    for path, end in zip(own, found.ends, strict=True):
        for number in found.above(end):
            users[number].add(path.tree)
    assert any(len(used) > 1 for used in users)
    trunks = {path.trunk for path in own}
    for node, used in zip(found.nodes, users, strict=True):
        assert len(used) == 1 or node.end - node.start >= SHARED or node.end in trunks


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=12), min_size=1, max_size=8))
def test_trees_that_share_too_little_are_laid_out_as_without_sharing(rows):
    trees = [
        Tree(row[: len(row) // 2], [Leaf(row[len(row) // 2 :], [True] * (len(row) - len(row) // 2))]) for row in rows
    ]
    shared, alone = pack_forest(trees, 8, share=True), pack_forest(trees, 8)
    assert shared.segments == alone.segments
    assert shared.input_ids.tolist() == alone.input_ids.tolist()


def test_a_saving_that_is_too_small_is_left_alone():
    common = list(range(SHARED))
    trees = [Tree([], [Leaf([*common, *range(i, i + 2000)], [True] * (2000 + SHARED))]) for i in (1, 2)]
    assert pack_forest(trees, share=True).num_tokens == sum(tree.num_tokens for tree in trees)


def test_the_tokens_of_a_trunk_with_several_leaves_are_shared_however_few():
    tree = Tree([1, 2], [Leaf([i], [True]) for i in range(3)])
    assert pack_forest([tree, tree], share=True).segments == [
        (0, 2, ()), *((2 + i, 3 + i, ((0, 2),)) for i in range(3)), *((5 + i, 6 + i, ((0, 2),)) for i in range(3))
    ]  # fmt: skip


def test_completions_that_begin_alike_are_not_cut_at_their_first_word():
    tree = Tree([7] * 50, [Leaf([1, i, i], [True] * 3) for i in range(3)])
    assert pack_forest([tree], share=True).segments == pack_forest([tree]).segments


def test_a_row_that_another_one_continues_has_no_node_of_its_own():
    turns = list(range(90))
    rows = [Tree([], [Leaf(turns[:end], [i > end - 9 for i in range(end)])]) for end in (40, 80, 90)]
    forest = pack_forest(rows, share=True)
    assert forest.segments == [(0, 40, ()), (40, 80, ((0, 40),)), (80, 90, ((0, 40), (40, 80)))]
    assert forest.last_L.tolist() == [39, 79, 89]
    assert forest.position_ids.tolist() == list(range(90))


def test_the_last_shared_token_predicts_the_first_of_every_branch():
    common = list(range(40))
    forest = pack_forest([Tree([], [Leaf([*common, i], [False] * 40 + [True])]) for i in (50, 60, 70)], share=True)
    assert forest.predict_P.tolist() == [39] * 3
    assert forest.targets_P.tolist() == [50, 60, 70]
    assert forest.leaf_P.tolist() == [0, 1, 2]


def test_shared_tokens_that_two_rows_train_count_in_both():
    common = list(range(40))
    forest = pack_forest([Tree([], [Leaf([*common, i], [True] * 41)]) for i in (50, 60)], share=True)
    assert forest.num_tokens == 42
    assert forest.predict_P.tolist() == [*range(39), 39, *range(39), 39]
    assert forest.counts_L.tolist() == [40, 40]


def test_sequences_are_sorted_by_token_not_by_text():
    rows = [np.array(row) for row in ([300], [5, 70_000], [5, 6], [5])]
    order, common = in_order(rows)
    assert order == [3, 2, 1, 0]
    assert common.tolist() == [0, 1, 1, 0]


def test_alike_counts_equal_first_tokens():
    assert alike(np.array([1, 2, 3]), np.array([1, 2, 4, 5])) == 2
    assert alike(np.array([1, 2]), np.array([1, 2, 4])) == 2
    assert alike(np.array([], int), np.array([1])) == 0
