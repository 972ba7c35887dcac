"""What one engine promises: a vLLM or SGLang somewhere, which writes, scores, and takes new weights while it runs.

A replica is asked one prompt at a time and answers in any order; which replica answers, and what else it does
meanwhile, changes nothing but a last digit. `EnginePool` spreads prompts over replicas, and has the same `submit`.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple, Protocol

from tercet.rows import Completion, Likelihood, Sampling


class EngineError(ValueError):
    """An engine is missing or has died, or was asked for something it cannot do."""


class ReplicaDiedError(EngineError):
    """A replica is gone with what it was asked; another may be asked the same."""


class WrittenGroup(NamedTuple):
    """The completions of a prompt, the versions of the weights that wrote their first and last tokens, and who did.

    A version is the number that came with the weights, `finish_weight_update(weight_version)`; a group that may have
    begun with either of two has the older one.
    """

    completions: list[Completion]
    first: int
    last: int
    replica: str = ""


class Submits(Protocol):
    """What takes prompts without waiting: a replica, a pool of them, a fake in a test."""

    def submit(self, prompt: Sequence[int], sampling: Sampling, stream: int) -> Future[WrittenGroup]:
        """`sampling.n` completions of a prompt; `stream` names its random numbers, as in `ChatGenerator.write`.

        A ReplicaDiedError in the future means that the prompt may be asked again.
        """


class Replica(Submits, Protocol):
    """One engine. Its methods may be called from any thread."""

    name: str
    context: int  # the most tokens of a prompt with its completion

    def score(self, context: Sequence[int], ids: Sequence[int]) -> Future[Likelihood]:
        """The log-probabilities of `ids` after `context`."""

    def control(self, verb: str, **values: Any) -> Any:
        """One call of vLLM's control plane, which ends when it is done.

        `init_weight_transfer_engine(init_info)`, `start_weight_update()`, `update_weights(update_info)`,
        `finish_weight_update(weight_version)`, `reset_prefix_cache()` also under running requests, `pause()`,
        `resume()`, `sleep(level)`, `wake_up(tags)`; and of our own worker (`models/vllm/worker.py`, by
        `collective_rpc`) `checksum()`, one string for all its processes, and `expect(shapes)`.
        """

    def close(self) -> None:
        """End it; what it was asked ends with a ReplicaDiedError."""
