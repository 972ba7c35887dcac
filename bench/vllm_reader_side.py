"""vLLM's side of `vllm_reader.py`, run by its own interpreter: greedy answers with their log-probabilities, as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main() -> None:
    """Read the job, answer its prompts, print a line for each."""
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    job = json.loads(Path(sys.argv[1]).read_text())
    engine = LLM(
        job["model"],
        dtype="float32",
        max_model_len=256,
        enforce_eager=True,
        enable_lora=bool(job["adapter"]),
        max_num_seqs=4,
    )
    lora = LoRARequest("ours", 1, job["adapter"]) if job["adapter"] else None
    how = SamplingParams(max_tokens=24, temperature=0.0, logprobs=0)
    prompts = [{"prompt_token_ids": ids} for ids in job["ids"]]
    for one in engine.generate(prompts, how, lora_request=lora, use_tqdm=False):
        answer = one.outputs[0]
        found = [place[token].logprob for place, token in zip(answer.logprobs, answer.token_ids, strict=True)]
        print(json.dumps({"answer": list(answer.token_ids), "logps": found}), flush=True)


if __name__ == "__main__":
    main()
