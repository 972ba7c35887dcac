"""What vLLM is started with wherever it runs, beside what `[placement.engine]` says."""

from __future__ import annotations

from typing import Any

WORKER = "tercet.models.vllm.worker.EngineWorker"
SETTINGS: dict[str, Any] = {
    "generation_config": "vllm",  # sampling comes from us alone, not from the model's folder
    "logprobs_mode": "processed_logprobs",  # of the tempered distribution, as the local generator gives them
    "seed": 0,
    "worker_extension_cls": WORKER,
}
