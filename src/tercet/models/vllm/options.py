"""What vLLM is started with wherever it runs, beside what `[placement.engine]` says."""

from __future__ import annotations

from typing import Any

WORKER = "tercet.models.vllm.worker.EngineWorker"
_EVERYWHERE: dict[str, Any] = {
    "generation_config": "vllm",  # sampling comes from us alone, not from the model's folder
    "logprobs_mode": "processed_logprobs",  # of the tempered distribution, as the local generator gives them
    "seed": 0,
    "worker_extension_cls": WORKER,
}


def started_with(on_cpu: bool) -> dict[str, Any]:
    """Its settings on a machine with cards or without."""
    # A prompt that is read in parts has its random numbers set back, which no generator on a CPU can: vLLM dies.
    return _EVERYWHERE | ({"enable_chunked_prefill": False} if on_cpu else {})
