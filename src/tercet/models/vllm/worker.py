"""What vLLM's worker processes get from Tercet: they import this module by name, `--worker-extension-cls`.

Importing it is what makes the pairs of `transfer.py` known there, and keeps the matrices of a model on a CPU plain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vllm.platforms import current_platform

from tercet.models.vllm.transfer import register
from tercet.models.vllm.weights import check_names, checksum, keep_plain, weights_of


class EngineWorker:
    """What `collective_rpc` may ask of a worker beside what vLLM's own can do."""

    model_runner: Any
    parallel_config: Any

    def checksum(self) -> str:
        """`checksum` of the weights that this worker computes with; "" where it has a part of them alone."""
        parts = self.parallel_config.world_size
        return "" if parts > 1 else checksum(weights_of(self.model_runner.get_model()).items())

    def expect(self, shapes: Mapping[str, Sequence[int]]) -> None:
        """EngineError where weights of these shapes, by name, are not all that the model has."""
        if self.parallel_config.world_size == 1:
            check_names(shapes, weights_of(self.model_runner.get_model()))


if current_platform.is_cpu():
    keep_plain()
register()
