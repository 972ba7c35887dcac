"""llama.cpp's side of `gguf_reader.py`, run by its own interpreter: token ids, log-probabilities, answers as JSON."""

from __future__ import annotations

import json
import os
import sys
import urllib.request
from pathlib import Path
from typing import Any

import xllamacpp

Job = dict[str, Any]


def main() -> None:
    """The answer of one job, on one line."""
    print(json.dumps(_read(json.loads(Path(sys.argv[1]).read_text()))))


def _read(job: Job) -> Job:
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.n_predict = job["file"], 512, 1, 1
    params.cpuparams.n_threads, params.warmup, params.port = int(os.environ.get("OMP_NUM_THREADS", "2")), False, 0
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(params)

    def ask(path: str, **body: Any) -> Any:
        data = json.dumps(body).encode()
        request = urllib.request.Request(server.listening_address + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=300) as reply:
            return json.load(reply)

    found: Job = {"ids": []}
    for text in job["texts"]:
        asked = ask("/tokenize", content=text, add_special=job["special"], parse_special=True)
        found["ids"].append(asked["tokens"])
    greedy = {"temperature": 0.0, "cache_prompt": False, "return_tokens": True}
    if job["new"]:
        replies = [ask("/completion", prompt=ids, n_predict=job["new"], **greedy) for ids in found["ids"]]
        return found | {"answers": [reply["tokens"] for reply in replies]}
    rows = len(job["logps"])
    letter = ask("/tokenize", content="a", add_special=False)["tokens"][0]
    pushed = {"n_predict": 1, "n_probs": rows, "logit_bias": [[letter, 1000.0]]}  # what is sampled must be shown
    reply = ask("/completion", prompt=found["ids"][0], **pushed, **greedy)
    logps = {one["id"]: one["logprob"] for one in reply["completion_probabilities"][0]["top_logprobs"]}
    return found | {"logps": [logps[token_id] for token_id in range(rows)]}


if __name__ == "__main__":
    main()
