"""What attention does in one layer beside the usual softmax: its options, as a layer passes them on every call."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Attention(NamedTuple):
    """How one layer attends. Layers of one model may differ, so it comes with every call."""

    scaling: float  # of query times key
    window: int | None = None  # a key is seen when its position is less than this before the query's
    softcap: float | None = None  # c: scores become c tanh(score / c)
    sinks: Tensor | None = None  # (N,): logits that join each query's softmax and belong to no key
