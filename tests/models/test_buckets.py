"""Weights in buckets: both sides cut alike, nothing is lost, and no bucket is larger than it may be."""

from __future__ import annotations

from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tercet.models.engines.buckets import ALIGNED, Described, cut, packed, received
from tercet.models.engines.replica import EngineError

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = st.lists(st.integers(1, 5), min_size=0, max_size=3).map(tuple)
TENSORS = st.lists(st.tuples(SHAPES, st.sampled_from(DTYPES)), max_size=12)


def weights(about: list[tuple[tuple[int, ...], torch.dtype]]) -> list[tuple[str, Tensor]]:
    random = torch.Generator().manual_seed(len(about))
    return [(f"w{i}", torch.randn(shape, generator=random).to(dtype)) for i, (shape, dtype) in enumerate(about)]


def described(sent: list[tuple[str, Tensor]]) -> list[Described]:
    return [Described(name, one.dtype, tuple(one.shape)) for name, one in sent]


@settings(max_examples=60, deadline=None)
@given(about=TENSORS, limit=st.integers(1, 300))
def test_what_is_packed_comes_out_bit_for_bit(about, limit):
    sent = weights(about)
    buffers = packed(sent, described(sent), limit)
    found = [
        one for bucket in received(described(sent), lambda into: into.copy_(next(buffers)), limit) for one in bucket
    ]
    assert [name for name, _ in found] == [name for name, _ in sent]
    for (_, mine), (_, theirs) in zip(sent, found, strict=True):
        assert mine.dtype == theirs.dtype
        assert mine.shape == theirs.shape
        assert torch.equal(mine.reshape(-1).view(torch.uint8), theirs.reshape(-1).view(torch.uint8))
    assert next(buffers, None) is None


@settings(max_examples=60, deadline=None)
@given(about=TENSORS, limit=st.integers(1, 300))
def test_a_bucket_is_within_its_limit_or_one_tensor(about, limit):
    tensors = described(weights(about))
    found = list(cut(tensors, limit))
    assert [one for bucket in found for one in bucket] == tensors
    for bucket in found:
        size = sum(-(-prod(one.shape) * one.dtype.itemsize // ALIGNED) * ALIGNED for one in bucket)
        assert size <= limit or len(bucket) == 1


def test_a_source_that_gives_something_else_than_it_said_is_named():
    sent = weights([((2, 3), torch.float32), ((4,), torch.float32)])
    said = described(sent)
    for wrong in (sent[::-1], sent[:1], [sent[0], ("w1", sent[1][1].half())], [sent[0], ("w1", torch.ones(5))]):
        with pytest.raises(EngineError, match=r"expected w\d torch.float32 .*came"):
            list(packed(wrong, said, 16))
