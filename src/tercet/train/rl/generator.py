"""The generator of a rank, and how it comes by the weights of a given version."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tercet.device.shard import Trainable
from tercet.models.chat import Chat
from tercet.models.engines.batched import BatchedEngine
from tercet.models.engines.policy_source import PolicySource
from tercet.models.generate import LocalGenerator
from tercet.models.hf_folder import load_config
from tercet.models.opening import open_policy
from tercet.models.policy import Policy
from tercet.recipe import Placement, RLSpec
from tercet.rows import Completion, Sampling
from tercet.train.loop import TrainingError


class PolicyGenerator:
    """Generates with the trainer's own weights, with a copy of them, or through vLLM.

    One rank that waits for its rollouts shares the trainer's weights. A copy is needed where weights are sharded or
    training goes on meanwhile; vLLM always has its own. `offer` is called by the thread that trains, on every rank;
    `use` and `write` by the one that makes rounds.
    """

    def __init__(
        self, trainable: Trainable, policy: Policy, chat: Chat, source: Path, spec: RLSpec, placement: Placement
    ) -> None:
        """`policy` is what `trainable` holds, or a part of it; `source` is the folder that it came from."""
        self.trainable, self.spec = trainable, spec
        children = trainable.module.named_children()
        self.part = next((f"{name}." for name, module in children if module is policy), "")
        self.held: dict[int, list[tuple[str, Tensor]]] = {}
        self.lock = threading.Lock()
        self.version = -1
        self.updates = 0  # of an engine
        self.asleep = False
        self.copy: Policy | None = None
        self.engine: Any = None
        self.generator: Any = None
        apart = placement.engine.placement == "apart"
        self.shared = spec.engine != "local" and apart  # the first rank asks and updates the engines for all
        self.sender: Any = None
        if spec.engine == "vllm":
            if not self.shared or trainable.mesh.first:
                self.engine = self.generator = _engine(source, spec, placement)
            self.sender = self._sender(source, placement)
            return
        if trainable.mesh.size > 1 or spec.lag:
            copy = open_policy(source, trainable.dtype, placement.layout).to(trainable.mesh.device)
            self.copy = copy.requires_grad_(False)
        own = policy if self.copy is None else self.copy
        self.generator = LocalGenerator(own, chat, rows=placement.gen_rows, tokens=placement.gen_tokens)

    @property
    def for_all(self) -> bool:
        """Whether one engine writes for all ranks."""
        return self.trainable.mesh.size == 1 or self.shared

    def submitting(self) -> Any:
        """The engine as what takes prompts one by one; None on ranks that have none."""
        if self.engine is None or hasattr(self.engine, "submit"):
            return self.engine
        return BatchedEngine(self.engine, lambda: self.version)

    @torch.no_grad()
    def offer(self, version: int) -> None:
        """Hold the weights after `version` rounds ready. In turn with training, `use` reads them directly.

        Engines get them at once, so what older weights are to write must be written, except in flight.
        """
        if not self.spec.lag:
            return
        if self.sender is not None:
            self._send(version)
            return
        # A copy, as training moves on while older versions still write; every rank gathers, or the others would wait.
        state = self.trainable.full_state(self.part)
        whole = [(name, value.to(self.trainable.dtype, copy=True)) for name, value in state]
        with self.lock:
            self.held[version] = whole

    @torch.no_grad()
    def use(self, version: int) -> int:
        """Take over the weights of `version`; returns the version that writes from now on."""
        if self.copy is None and self.sender is None:  # the generator shares the trainer's weights
            return version
        if self.sender is not None:
            if not self.spec.lag:
                self._send(version)
            return self.version
        if not self.spec.lag:  # training waits for this round, so its weights do not change: no copy is kept
            state = self.trainable.full_state(self.part)
            self._take((name, value.to(self.trainable.dtype)) for name, value in state)
            return version
        self.drop(version)
        if self.version != version:
            with self.lock:
                weights = self.held[version]
            self._take(weights)
            self.version = version
        return version

    def _sender(self, source: Path, placement: Placement) -> Any:
        from tercet.models.vllm.sender import Sender, backend_of

        trainable = self.trainable
        weights = PolicySource(trainable, self.part, load_config(source), trainable.dtype)
        backend = backend_of(placement.engine)
        return Sender(self.engine, weights, trainable.mesh, backend, timeout=placement.rank_timeout)

    def drop(self, version: int) -> None:
        """Nothing older than `version` will be needed."""
        with self.lock:
            self.held = {number: held for number, held in self.held.items() if number >= version}

    def write(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, streams: Sequence[int]
    ) -> list[list[Completion]]:
        """`sampling.n` completions of each prompt, from token ids."""
        if not prompts:
            return []
        with engine_errors():
            return self.generator.write(prompts, sampling, streams=streams)

    @property
    def in_turn(self) -> bool:
        """Whether all that older weights are to write must be written before `offer`."""
        return self.sender is not None and not self.spec.in_flight

    def rest(self) -> None:
        """Nothing will be written until `use`: an engine on the trainer's own card leaves its memory to training."""
        if self.engine is not None and not (self.shared or self.spec.lag or self.asleep):
            with engine_errors():
                self.engine.control("sleep", level=2)  # and forgets its weights, as newer ones will come
            self.asleep = True

    def _take(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Into the copy, one tensor after another. Every rank must call this."""
        assert self.copy is not None
        targets = dict(self.copy.named_parameters())
        for name, value in weights:
            targets[name].copy_(value)

    def _send(self, version: int) -> None:
        """Into the engines. Every rank must call this."""
        with engine_errors():
            if self.asleep:
                self.engine.control("wake_up", tags=["weights"])
            self.sender.send(version)
            if self.asleep:
                self.engine.control("wake_up", tags=None)
        self.version, self.asleep = version, False
        self.updates += 1


def _engine(source: Path, spec: RLSpec, placement: Placement) -> Any:
    with engine_errors():
        from tercet.models.engines.opening import opened

        return opened(source, spec.precision, placement.engine, spec.engine, taken=placement.per_node)


@contextmanager
def engine_errors() -> Iterator[None]:
    """An engine that is missing or gone ends the run with its last checkpoint kept, as the input was not at fault."""
    from tercet.models.vllm.weights import EngineError

    try:
        yield
    except EngineError as error:
        raise TrainingError(f"{error}; the weights of the last checkpoint are kept") from error
