"""What vLLM is started with, in this process, as an actor or by `vllm serve`."""

from __future__ import annotations

from typing import Any

from tercet.models.engines.replica import EngineError
from tercet.models.vllm.weights import DTYPES
from tercet.recipe.placement import EnginePlacement

WORKER = "tercet.models.vllm.worker.EngineWorker"
ENVIRONMENT = {  # what vLLM reads when it starts; a value that is already set stays
    "VLLM_NO_USAGE_STATS": "1",  # nothing is sent anywhere
}
CPU_CACHE_GIB = "2"  # vLLM would otherwise reserve nearly all memory of the machine
SHARES = {"colocated": 0.4, "apart": 0.9}  # of a card


def arguments(folder: str, dtype: str, engine: EnginePlacement, backend: str) -> dict[str, Any]:
    """Arguments of vLLM's `LLM` and `AsyncEngineArgs` for a model folder; `backend` as `sender.backend_of` gives it."""
    if dtype not in DTYPES:
        raise EngineError(f"dtype {dtype!r}: the engine computes in {', '.join(DTYPES)}")
    sizes = {"max_model_len": engine.max_model_len, "max_num_seqs": engine.max_num_seqs}
    return {
        "model": folder,
        "dtype": dtype,
        "tensor_parallel_size": engine.tensor_parallel_size,
        "gpu_memory_utilization": engine.gpu_memory_utilization or SHARES[engine.placement],
        **{name: value for name, value in sizes.items() if value is not None},
        "generation_config": "vllm",  # sampling comes from us alone, not from the model's folder
        "logprobs_mode": "processed_logprobs",  # of the tempered distribution, as the local generator gives them
        "seed": 0,
        "worker_extension_cls": WORKER,
        "weight_transfer_config": {"backend": backend},
        **engine.options,
    }
