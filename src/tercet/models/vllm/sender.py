"""How a trainer's weights come into running engines: by vLLM's weight transfer, from every rank, with a version.

    sender = Sender(pool, source, ranks, backend_of(placement.engine))
    sender.send(version)  # on every rank

Which pair of vLLM's carries them follows from where the engine is: `process` within the trainer's own, `nccl` to cards
of others, `nccl_m2n` from shares to shares without gathering, `gloo` between CPUs. vLLM is imported when one is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tercet.device.broadcast import free_port, own_address
from tercet.device.mesh import Mesh
from tercet.device.place import device
from tercet.models.engines.policy_source import PolicySource
from tercet.models.engines.replica import EngineError, ReplicaDiedError
from tercet.models.vllm.weights import checksum
from tercet.recipe.placement import EnginePlacement

TRIES = 3  # of one update while replicas die


def backend_of(engine: EnginePlacement) -> str:
    """The pair of vLLM's weight transfer for engines beside a trainer on this machine.

    `options = { weight_transfer_config = { backend = "nccl_m2n" } }` names another one.
    """
    if named := dict(engine.options.get("weight_transfer_config", {})).get("backend"):
        return str(named)
    if engine.placement == "colocated":
        return "process"
    return "nccl" if device().type == "cuda" else "gloo"


class Sender:
    """One for a training, on every rank; all its methods are called by all ranks, which gather meanwhile.

    Weights are compared at the first update and after the group was made anew; at others when `verify` is called.
    """

    def __init__(self, engine: Any, source: PolicySource, mesh: Mesh, backend: str, *, timeout: float = 1800.0) -> None:
        """`engine` is a pool, of the first rank, or this rank's own `Replica`; None on a rank that has none."""
        self.engine, self.source, self.mesh, self.backend, self.timeout = engine, source, mesh, backend, timeout
        self.version = 0
        self._pair: Any = None
        self._compared = False

    def send(self, version: int) -> None:
        """Give all engines the weights as they are now; they are `version` of them.

        Where a replica died, the group is made anew among those that live, and the weights are sent again.
        """
        self.version = version
        if any(self.mesh.gather(hasattr(self.engine, "joined") and self.engine.joined())):
            self.rejoin()
        for left in reversed(range(TRIES)):
            try:
                self._together(self._meet)
                self._together(self._send)
                if not self._compared:
                    self.verify()
                return
            except ReplicaDiedError:
                if not left:
                    raise
                self.rejoin()

    def rejoin(self) -> None:
        """Leave the group, so that the next `send` makes one with the engines that live then."""
        if self._pair is not None:
            self._pair.shutdown()
        self._pair, self._compared = None, False

    def verify(self) -> None:
        """Compare checksums of what engines compute with and of what was to be sent; an EngineError if they differ."""
        self._together(self._compare)
        self._compared = True

    def _together(self, work: Callable[[], None]) -> None:
        """Do something on all ranks; an error of one is raised on each."""
        own: Exception | None = None
        try:
            work()
        except Exception as error:
            own = error
            if self.backend != "nccl_m2n":  # which gathers nothing
                self.source.finish()
        told = self.mesh.gather(own and (isinstance(own, ReplicaDiedError), f"{own}"))
        for died, text in filter(None, told):
            raise (ReplicaDiedError if died else EngineError)(text) from own

    def _meet(self) -> None:
        """Have all engines join, where they have not yet."""
        if self._pair is not None:
            return
        about = self._about()
        from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory

        from tercet.models.vllm.transfer import ShareSource

        if self.engine is not None:
            self.engine.control("expect", shapes={one.name: list(one.shape) for one in self.source.metadata()})
        source: Any = self.source
        if self.backend == "nccl_m2n":
            source = ShareSource(self.source, self.mesh.size)
        self._pair = WeightTransferTrainerFactory.trainer_init(about, client=_Client(self), source=source)

    def _about(self) -> Any:
        """What vLLM's trainer side is told. The first rank's address is everybody's."""
        from tercet.models.vllm.transfer import GlooTrainer, ProcessTrainer, register

        register()
        if self.backend == "process":
            return ProcessTrainer(rank=0)  # each rank is the only one of its engine
        mine = (own_address(), free_port(), getattr(self.engine, "workers", 1)) if self.mesh.first else None
        address, port, workers = next(filter(None, self.mesh.gather(mine)))
        from vllm.distributed.weight_transfer.m2n_trainer import M2NTrainerInitInfo
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

        rank, size = self.mesh.rank, self.mesh.size
        if self.backend == "gloo":
            return GlooTrainer(address, workers + 1, self.timeout, rank=rank)
        if self.backend == "nccl":
            return NCCLTrainerInitInfo(address, port, workers + 1, rank=rank)
        if self.backend == "nccl_m2n" and self.source.lies_as_stored:
            meeting = {"master_address": address, "master_port": port, "world_size": workers + size}
            return M2NTrainerInitInfo(**meeting, num_trainer_ranks=size, rank=rank)
        raise EngineError(
            f"weight_transfer_config.backend = {self.backend!r} does not carry these weights: expected nccl, gloo, "
            "process, or nccl_m2n where no adapters are trained and no experts are stored one by one; leave it out"
        )

    def _send(self) -> None:
        self.source.start()
        with self._paused():
            self._pair.send_weights()
            if self.engine is not None:
                self.engine.control("reset_prefix_cache")  # it holds keys of earlier weights

    @contextmanager
    def _paused(self) -> Iterator[None]:
        """Engines stop between two tokens, and go on with what they had begun."""
        if self.engine is None:
            yield
            return
        self.engine.control("pause")
        try:
            yield
        finally:
            self.engine.control("resume")

    def _compare(self) -> None:
        self.source.start()
        wanted = checksum(self.source)
        found = self.engine.control("checksum") if self.engine is not None else wanted
        # An engine that kept a part of the old weights would go on writing plausible text.
        if found not in ("", wanted):
            raise EngineError(
                f"the engine's weights differ from the trainer's after an update (checksum {found[:12]}, expected "
                f"{wanted[:12]}); restart the engine, and the run continues from its last checkpoint"
            )


class _Client:
    """vLLM's control plane as its trainer side wants it (`VLLMWeightSyncClient`)."""

    def __init__(self, sender: Sender) -> None:
        self.sender = sender

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self.sender.engine.control("init_weight_transfer_engine", init_info=init_info)

    def start_weight_update(self) -> None:
        self.sender.engine.control("start_weight_update")

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self.sender.engine.control("update_weights", update_info=update_info)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self.sender.engine.control("finish_weight_update", weight_version=str(self.sender.version))
