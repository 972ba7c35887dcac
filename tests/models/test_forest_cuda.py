"""The layout that kernels on a card read, and FlexAttention run on the CPU, against masks written out by hand."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask, create_mask

from tercet.models.attention import Attention
from tercet.models.forest import Forest, Leaf, Tree, pack_forest
from tercet.models.forest_cuda import BLOCK, Layout, flash_attention, torch_varlen
from tercet.models.layer_wrappers import missing_compiler

CPU = torch.device("cpu")


def some_forest(seed: int, multiple: int = 1, longest: int = 260, leaves: int = 4) -> Forest:
    """Random trees of up to `leaves` leaves, some without a trunk, with lengths from 1 to `longest`."""
    source = random.Random(seed)

    def ids() -> list[int]:
        return [source.randrange(256) for _ in range(source.randint(1, longest))]

    def tree() -> Tree:
        parts = [ids() for _ in range(source.randint(1, leaves))]
        return Tree(ids() if source.random() < 0.7 else [], [Leaf(part, [True] * len(part)) for part in parts])

    return pack_forest([tree() for _ in range(source.randint(1, 5))], multiple)


def layout(forest: Forest) -> Layout:
    return Layout(forest.segments, len(forest.input_ids), CPU)


def written_out(forest: Forest) -> torch.Tensor:
    """Who sees whom, `(T, T)`, token by token."""
    size = len(forest.input_ids)
    mask = torch.zeros(size, size, dtype=torch.bool)
    for segment in forest.segments:
        for token in range(segment.start, segment.end):
            for above in segment.ancestors:
                mask[token, slice(*above)] = True
            mask[token, segment.start : token + 1] = True
    return mask


FORESTS = pytest.mark.parametrize(("seed", "multiple"), [(seed, m) for seed in range(8) for m in (1, BLOCK)])


@FORESTS
def test_the_mask_agrees_with_the_layout_on_every_pair(seed, multiple):
    forest = some_forest(seed, multiple)
    size = len(forest.input_ids)
    found = create_mask(layout(forest).block_mask.mask_mod, None, None, size, size, device="cpu")
    assert torch.equal(found[0, 0], written_out(forest))


@FORESTS
def test_blocks_are_those_that_torch_finds_by_trying_every_pair(seed, multiple):
    forest = some_forest(seed, multiple)
    size, dense = len(forest.input_ids), written_out(forest)
    wanted = create_block_mask(lambda _b, _h, q, k: dense[q, k], None, None, size, size, device="cpu")
    found = layout(forest).block_mask
    assert found.seq_lengths == wanted.seq_lengths
    for name in ("kv", "full_kv", "q", "full_q"):
        counts, their_counts = (getattr(mask, f"{name}_num_blocks") for mask in (found, wanted))
        assert torch.equal(counts, their_counts), name
        places, their_places = (getattr(mask, f"{name}_indices") for mask in (found, wanted))
        for row, count in enumerate(counts[0, 0].tolist()):
            assert places[0, 0, row, :count].tolist() == their_places[0, 0, row, :count].tolist(), name


@pytest.mark.parametrize("heads", [(4, 4), (4, 2)], ids=["own keys", "shared keys"])
@pytest.mark.parametrize(("seed", "multiple"), [(0, 1), (1, 1), (2, BLOCK)])
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_over_these_blocks_is_the_attention_by_segments(heads, seed, multiple):
    forest = some_forest(seed, multiple, longest=90)
    source = torch.Generator().manual_seed(seed)
    inputs = [torch.randn(1, n, len(forest.input_ids), 16, generator=source) for n in (*heads, heads[1])]
    flex = layout(forest).attend(*inputs, Attention(0.25))
    torch.testing.assert_close(flex, forest.attend(0, *inputs, Attention(0.25)), rtol=1e-4, atol=1e-5)


KINDS = {
    "window": Attention(0.25, window=40),
    "wide window": Attention(0.25, window=400),
    "chunk": Attention(0.25, chunk=50),
    "cap": Attention(0.25, softcap=0.8),
    "window and cap": Attention(0.25, window=40, softcap=0.8),
}


@pytest.mark.parametrize("sunk", [False, True], ids=["", "sinks"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_windows_caps_sinks_and_values_of_another_size_are_those_by_segments(kind, sunk):
    forest = some_forest(3, BLOCK, longest=300)
    source = torch.Generator().manual_seed(3)
    size = len(forest.input_ids)
    inputs = [torch.randn(1, n, size, width, generator=source) for n, width in ((4, 16), (2, 16), (2, 24))]
    how = KINDS[kind]._replace(sinks=torch.randn(4, generator=source) if sunk else None)
    torch.testing.assert_close(
        layout(forest).attend(*inputs, how), forest.attend(0, *inputs, how), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("seed", range(4))
def test_a_window_leaves_out_blocks_that_nobody_sees_and_no_others(seed):
    forest = some_forest(seed, BLOCK, longest=900)
    mask = layout(forest).near_mask(Attention(1.0, window=100))
    size = len(forest.input_ids)
    wanted = written_out(forest) & (forest.position_ids[:, None] - forest.position_ids < 100)
    assert torch.equal(create_mask(mask.mask_mod, None, None, size, size, device="cpu")[0, 0], wanted)
    seen = wanted.view(size // BLOCK, BLOCK, size // BLOCK, BLOCK).any(3).any(1)
    kept = mask.to_dense()[0, 0].bool()
    assert not (seen & ~kept).any()
    whole = layout(forest).block_mask.to_dense()[0, 0].bool()
    assert kept.sum() < whole.sum()


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning:torch", "ignore:(The distutils package|Distutils was)"
)  # its compiler's
@pytest.mark.skipif(bool(missing_compiler(CPU)), reason=f"torch.compile needs {missing_compiler(CPU)}")
def test_compiled_for_rows_of_any_length_flex_attention_reads_these_blocks_too():
    from torch.nn.attention.flex_attention import flex_attention

    torch.compiler.reset()
    call = torch.compile(flex_attention, dynamic=True)
    for seed in range(3):
        forest = some_forest(seed, BLOCK)
        source = torch.Generator().manual_seed(seed)
        inputs = [torch.randn(1, n, len(forest.input_ids), 16, generator=source) for n in (4, 2, 2)]
        found = call(*inputs, block_mask=layout(forest).block_mask, scale=0.25, enable_gqa=True).transpose(1, 2)
        torch.testing.assert_close(found, forest.attend(0, *inputs, Attention(0.25)), rtol=1e-4, atol=1e-5)


def test_a_layout_is_worked_out_once_for_all_layers():
    one = layout(some_forest(0))
    assert one.block_mask is one.block_mask
    conversations = layout(some_forest(0, leaves=1))
    assert conversations.sequences is conversations.sequences


def test_a_trunk_and_its_only_leaf_are_one_sequence():
    leaf = Leaf([4, 5], [True] * 2)
    found = layout(
        pack_forest([Tree([1, 2, 3], [leaf]), Tree([], [leaf]), Tree([7], []), Tree([6], [leaf])], 16)
    ).sequences
    assert found is not None
    assert found.bounds.tolist() == [0, 5, 7, 8, 11, 16], "what fills the row up is a sequence too"
    assert found.bounds.dtype == torch.int32
    assert found.longest == 5


def test_a_tree_that_branches_is_no_row_of_sequences():
    leaf = Leaf([4, 5], [True] * 2)
    assert layout(pack_forest([Tree([], [leaf]), Tree([1, 2, 3], [leaf, leaf])])).sequences is None


@pytest.mark.parametrize("seed", range(4))
def test_sequences_attend_as_segments_do(seed):
    """A stand-in for the kernel, which runs on cards only: causal attention, one sequence after another."""
    forest = some_forest(seed, longest=40, leaves=1)
    source = torch.Generator().manual_seed(seed)
    inputs = [torch.randn(1, n, len(forest.input_ids), 8, generator=source) for n in (4, 2, 2)]
    sequences = layout(forest).sequences
    assert sequences is not None
    calls: list[dict] = []

    def kernel(query, key, value, starts, _starts, longest, _longest, **options):
        calls.append(options)
        edges = starts.tolist()
        parts = [slice(start, end) for start, end in pairwise(edges)]
        assert longest == max(part.stop - part.start for part in parts)
        found = [
            torch.nn.functional.scaled_dot_product_attention(
                *(x[part].transpose(0, 1)[None] for x in (query, key, value)),
                is_causal=True,
                scale=options["scale"],
                enable_gqa=True,
            )[0].transpose(0, 1)
            for part in parts
        ]
        return torch.cat(found)

    attend = torch_varlen(kernel)
    flat = [x[0].transpose(0, 1) for x in inputs]
    found = attend(*flat, sequences, Attention(0.25))[None]
    torch.testing.assert_close(found, forest.attend(0, *inputs, Attention(0.25)), rtol=1e-4, atol=1e-5)
    assert calls == [{"scale": 0.25, "window_size": (-1, 0)}]


def test_torchs_own_kernel_takes_what_it_is_given():
    """By its registered shapes; without a card nothing runs."""
    attend = flash_attention()
    assert attend is not None
    forest = some_forest(0, BLOCK, leaves=1)
    size = len(forest.input_ids)
    sequences = Layout(forest.segments, size, torch.device("meta")).sequences
    query, key = (torch.empty(size, heads, 64, dtype=torch.bfloat16, device="meta") for heads in (4, 2))
    found = attend(query, key, key, sequences, Attention(0.125))
    assert (found.shape, found.dtype) == (query.shape, query.dtype)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.accelerator.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("leaves", [1, 4], ids=["sequences", "branches"])
def test_on_a_card_attention_and_its_gradients_in_bf16_are_those_by_segments(leaves):
    forest = some_forest(0, BLOCK, leaves=leaves)
    source = torch.Generator().manual_seed(0)
    plain = [torch.randn(1, n, len(forest.input_ids), 64, generator=source).bfloat16() for n in (4, 2, 2)]
    found = []
    for device in ("cpu", "cuda"):
        inputs = [tensor.detach().to(device).requires_grad_() for tensor in plain]
        output = forest.to(torch.device(device)).attend(0, *inputs, Attention(0.125))
        slope = torch.linspace(-1, 1, output.numel()).reshape(output.shape).to(device)
        grads = torch.autograd.grad((output.float() * slope).sum(), inputs)
        found.append([tensor.detach().cpu().float() for tensor in (output, *grads)])
    for one, other in zip(*found, strict=True):
        assert float((one - other).norm() / one.norm()) < 2e-2
