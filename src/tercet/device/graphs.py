"""CUDA graphs: repeated work of a card, recorded once and then started as a whole.

A decoding step of a small model is hundreds of short kernels; the host takes longer to start each than the card to run
them. Work is known by a key, and reads and writes tensors that stay where they are: a recording holds their places.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch

Found = TypeVar("Found")
PLAIN = 3  # times that work is done before it is recorded: what comes seldom is not worth it, and kernels are built


class Graphs:
    """Recordings of one piece of work in several sizes; without a card it simply runs."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.records = device, device.type == "cuda"
        self._times: Counter[Hashable] = Counter()
        self._kept: dict[Hashable, tuple[torch.cuda.CUDAGraph, Any]] = {}
        self._pool: Any = None

    def run(self, key: Hashable, work: Callable[[], Found]) -> Found:
        """What `work` returns; tensors in it are overwritten when the same key is run again.

        All of one key's calls must do the same to the same tensors, never read a number back from the card, and depend
        on nothing on the host but the key.
        """
        if not self.records:
            return work()
        if key not in self._kept:
            self._times[key] += 1
            if self._times[key] <= PLAIN or not self._record(key, work):
                return work()
        graph, found = self._kept[key]
        graph.replay()
        return found

    def _record(self, key: Hashable, work: Callable[[], Any]) -> bool:
        """Record work without running it; whether that was possible. Recordings share memory: they run in turn."""
        try:
            with torch.cuda.device(self.device):
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                    found = work()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self.records = False
            warnings.warn(f"this model's decoding steps are not recorded, and slower: {error}", stacklevel=2)
            return False
        self._pool = self._pool or graph.pool()
        self._kept[key] = graph, found
        return True
