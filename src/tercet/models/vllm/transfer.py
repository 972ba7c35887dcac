"""Two pairs for vLLM's weight transfer beside its own: over gloo, for CPUs, and within one process, by reference.

A pair is what sends in a trainer's process and what receives in an engine's workers; both sides know it by the name of
its backend. Weights come in buckets and go into the model by its own `load_weights`: on a CPU in place (`worker.py`
keeps its matrices plain), on a card by vLLM's layerwise reload, which puts them into the forms that its kernels read.
Imported only where vLLM is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from vllm.distributed.weight_transfer.base import (
    TrainerInitInfo,
    TrainerWeightTransferEngine,
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory, WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.m2n_common import M2NParamMeta
from vllm.distributed.weight_transfer.m2n_source import M2NWeightSource, mesh_from_tensor, placements_from_tensor
from vllm.platforms import current_platform

from tercet.device.broadcast import Broadcast
from tercet.models.engines.buckets import BUCKET, Described, cut, packed, received
from tercet.models.engines.policy_source import PolicySource

GLOO, PROCESS = "gloo", "process"


@dataclass
class GlooMeeting(WeightTransferInitInfo):
    """Where a worker finds the trainer, and its place in their group."""

    address: str
    port: int
    rank_offset: int
    world_size: int
    timeout: float
    bucket: int = BUCKET


@dataclass
class GlooUpdate(WeightTransferUpdateInfo):
    """What one update brings, in this order."""

    names: list[str]
    dtypes: list[str]
    shapes: list[list[int]]


@dataclass
class ProcessMeeting(WeightTransferInitInfo):
    """Nothing: who sends and who receives are one process."""


@dataclass
class ProcessUpdate(WeightTransferUpdateInfo):
    """One bucket of whole weights."""

    weights: list[tuple[str, Tensor]]


class _Receiver(WeightTransferEngine[Any, Any]):
    """The engine's side."""

    def start_weight_update(self) -> None:
        """Make the model ready for weights in the form of a checkpoint."""
        if not current_platform.is_cpu():
            from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

            initialize_layerwise_reload(self.model)

    def finish_weight_update(self) -> None:
        """All have come."""
        if not current_platform.is_cpu():
            from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

            finalize_layerwise_reload(self.model, self.model_config)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Receive what an update, or a part of it, brings."""
        self.receive_weights(self.parse_update_info(update_info))
        if not current_platform.is_cpu():
            torch.accelerator.synchronize()

    def load(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Put whole weights into the model, of which this worker may have a part."""
        with torch.inference_mode():
            self.model.load_weights(weights)


class GlooReceiver(_Receiver):
    """Buckets from the trainer's first rank, which every worker of every replica gets."""

    init_info_cls, update_info_cls = GlooMeeting, GlooUpdate
    group: Broadcast | None = None

    def init_transfer_engine(self, init_info: GlooMeeting) -> None:
        """Join the trainer."""
        self.bucket = init_info.bucket
        parallel = self.parallel_config
        worker = parallel.data_parallel_index * parallel.world_size + parallel.rank
        store = Broadcast.find(init_info.address, init_info.port, init_info.timeout)
        self.group = Broadcast(store, init_info.rank_offset + worker, init_info.world_size, init_info.timeout)

    def receive_weights(self, update_info: GlooUpdate) -> None:
        """Receive and load, one bucket after another."""
        assert self.group is not None, "the trainer was met"
        about = zip(update_info.names, update_info.dtypes, update_info.shapes, strict=True)
        described = [Described(name, getattr(torch, dtype), tuple(shape)) for name, dtype, shape in about]
        for weights in received(described, self.group.pass_on, self.bucket):
            self.load((name, value.to(self.device)) for name, value in weights)

    def shutdown(self) -> None:
        """Leave the group."""
        self.group = None


class ProcessReceiver(_Receiver):
    """Weights that lie in this process already."""

    init_info_cls, update_info_cls = ProcessMeeting, ProcessUpdate

    def init_transfer_engine(self, init_info: ProcessMeeting) -> None:
        """Nobody is to be met."""

    def receive_weights(self, update_info: ProcessUpdate) -> None:
        """Load one bucket."""
        self.load(update_info.weights)

    def shutdown(self) -> None:
        """Nothing is held."""


@dataclass
class GlooTrainer(TrainerInitInfo):
    """How the trainer is found: this machine's address, and how many its group will be."""

    backend: ClassVar[str] = GLOO

    address: str
    world_size: int
    timeout: float
    bucket: int = BUCKET


@dataclass
class ProcessTrainer(TrainerInitInfo):
    """Every rank sends to the engine of its own process, so `rank` is 0 on each."""

    backend: ClassVar[str] = PROCESS

    bucket: int = BUCKET


class GlooSender(TrainerWeightTransferEngine[GlooTrainer]):
    """The trainer's side: the first rank sends, the others only take part in gathering."""

    init_info_cls = GlooTrainer
    group: Broadcast | None = None
    bucket = BUCKET

    @classmethod
    def trainer_init(cls, init_info: GlooTrainer, *, client: Any, source: Any = None) -> Self:
        """Meet the workers of all replicas."""
        made = cls(client=client, source=source, is_sender=init_info.is_sender)
        made.bucket = init_info.bucket
        if made.is_sender:
            store = Broadcast.listen(init_info.timeout)
            about = {"address": init_info.address, "port": store.port, "rank_offset": 1}
            about |= {name: getattr(init_info, name) for name in ("world_size", "timeout", "bucket")}
            with _meanwhile(client.init_weight_transfer_engine, about):
                made.group = Broadcast(store, 0, init_info.world_size, init_info.timeout)
        return made

    def send_weights(self) -> None:
        """One update of all weights."""
        if self.group is None:
            for _ in self.source:
                pass
            return
        described = self.source.metadata()
        about = {
            "names": [one.name for one in described],
            "dtypes": [str(one.dtype).removeprefix("torch.") for one in described],
            "shapes": [list(one.shape) for one in described],
        }
        self.client.start_weight_update()
        with _meanwhile(self.client.update_weights, about):
            for buffer in packed(self.source, described, self.bucket):
                self.group.pass_on(buffer)
        self.client.finish_weight_update()

    def shutdown(self) -> None:
        """Leave the group."""
        self.group = None


class ProcessSender(TrainerWeightTransferEngine[ProcessTrainer]):
    """The trainer's side where the engine is in its process."""

    init_info_cls = ProcessTrainer
    bucket = BUCKET

    @classmethod
    def trainer_init(cls, init_info: ProcessTrainer, *, client: Any, source: Any = None) -> Self:
        """Say that weights will come."""
        made = cls(client=client, source=source, is_sender=True)
        made.bucket = init_info.bucket
        client.init_weight_transfer_engine({})
        return made

    def send_weights(self) -> None:
        """One update of all weights; those of a bucket are whole at the same time, not those of the model."""
        self.client.start_weight_update()
        weights = iter(self.source)
        for bucket in cut(self.source.metadata(), self.bucket):
            self.client.update_weights({"weights": [next(weights) for _ in bucket]})
        self.client.finish_weight_update()


class ShareSource(M2NWeightSource):
    """What `nccl_m2n` sends: each rank's own share of every weight; nothing is gathered."""

    def __init__(self, source: PolicySource, num_ranks: int) -> None:
        """`source` must be `shared` (`sender.py`)."""
        self.source, self.num_ranks = source, num_ranks

    def mesh(self) -> Any:
        """The ranks that hold shares, which is alike for all weights."""
        found = (mesh_from_tensor(value, self.num_ranks) for _, value in self.source.shares() if is_shared(value))
        return next(found, mesh_from_tensor(torch.empty(0), self.num_ranks))

    def metadata(self) -> list[Any]:
        """Names, dtypes, whole shapes, and how each weight lies on the ranks."""
        dtype = self.source.dtype
        return [
            M2NParamMeta(name, dtype, tuple(value.shape), placements_from_tensor(value))
            for name, value in self.source.shares()
        ]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for name, value in self.source.shares():
            own: Any = value.to_local() if is_shared(value) else value  # type: ignore[attr-defined]
            yield name, own.to(self.source.dtype)


def is_shared(value: Any) -> bool:
    """Whether ranks have parts of a tensor."""
    return hasattr(value, "to_local")


@contextmanager
def _meanwhile(ask: Any, about: dict[str, Any]) -> Iterator[None]:
    """Ask the engines something that they do together with what is done here; an error of theirs is raised here.

    It is not waited for after an error of this side: who waits for the trainer then would never return.
    """
    threads = ThreadPoolExecutor(1, thread_name_prefix="weights")
    asked = threads.submit(ask, about)
    try:
        yield
    except BaseException as error:
        threads.shutdown(wait=False)
        if asked.done() and (first := asked.exception()) is not None:
            raise first from error
        raise
    with threads:
        asked.result()


def register() -> None:
    """Make both pairs known to vLLM, once in every process that sends or receives."""
    for name, receiver, sender in ((GLOO, GlooReceiver, GlooSender), (PROCESS, ProcessReceiver, ProcessSender)):
        if name not in WeightTransferEngineFactory._registry:
            WeightTransferEngineFactory.register_engine(name, receiver)
            WeightTransferTrainerFactory.register_engine(name, sender)
