"""A server of SGLang as a replica: token ids in and out by `/generate`, weights from a folder that both see.

FromServer from the source of SGLang 0.5.23 and tested against a server that speaks its schema; no SGLang has run. Seeds
count only with `--enable-deterministic-inference`. Log-probabilities are those of the tempered distribution before
top-k and top-p, as the local generator gives them.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tercet.models.engines.replica import EngineError
from tercet.models.engines.served import FromServer, ServedEngine, version, versions
from tercet.models.vllm.generator import scored, settings_of
from tercet.rows import Likelihood, Sampling

# vLLM's verbs under SGLang's names, with what is asked for where nothing is said.
VERBS: dict[str, tuple[str, dict[str, Any]]] = {
    "pause": ("/pause_generation", {"mode": "retract"}),  # what runs goes on later, read anew by the next weights
    "resume": ("/continue_generation", {}),
    "sleep": ("/release_memory_occupation", {}),
    "wake_up": ("/resume_memory_occupation", {}),
    "reset_prefix_cache": ("/flush_cache", {}),
    "update_weights_from_disk": ("/update_weights_from_disk", {}),
}


class SglangServer(ServedEngine):
    """A server of SGLang 0.5.23 or later."""

    engine = "SGLang"
    start = "start it with python -m sglang.launch_server --model-path MODEL (docs/engines.md)"

    def control(self, verb: str, **values: Any) -> Any:
        """See `Replica`; SGLang has another way for weights, `load`."""
        if verb not in VERBS:
            known = ", ".join(sorted(VERBS))
            raise EngineError(f"{self.url}: SGLang has no {verb!r}; it takes weights from a folder (here {known})")
        path, defaults = VERBS[verb]
        found = self._post(path, defaults | values)
        if found.get("success") is False:
            raise EngineError(f"{self.url}{path}: SGLang refuses ({found.get('message')!s:.300})")
        return found

    def load(self, folder: Path) -> None:
        """See `ServedEngine`."""
        if Path(self.root).resolve() == folder.resolve():  # it moves with the weights
            return
        self.control("update_weights_from_disk", model_path=str(folder.absolute()), weight_version="0")
        self.version = 0

    def _look(self, dtype: str) -> int:
        try:
            self.root = str(self._get("/model_info")["model_path"])
            about = self._get("/server_info")
            context, has = int(about["max_req_input_len"]), str(about["dtype"])
        except (KeyError, TypeError, ValueError) as error:
            raise error if isinstance(error, EngineError) else self._strange(error) from None
        if has not in (dtype, "auto"):
            raise EngineError(f"{self.url}: SGLang runs with --dtype {has}; start it with --dtype {dtype}")
        return context

    def _write(self, prompt: list[int], sampling: Sampling, stream: int) -> list[FromServer]:
        """One request of as many equal prompts as completions are wanted, each with a seed of its own."""
        settings = settings_of(sampling, stream, sorted(self.chat.stops))
        ours = {
            "max_new_tokens": settings["max_tokens"],
            "temperature": settings["temperature"],
            "top_p": settings["top_p"],
            "top_k": settings["top_k"] or -1,
            "stop": settings["stop"],
            "stop_token_ids": settings["stop_token_ids"],
            "ignore_eos": True,
        }
        seeds = [None if settings["seed"] is None else settings["seed"] + i for i in range(settings["n"])]
        body = {
            "input_ids": [prompt] * len(seeds),
            "sampling_params": [ours | {"sampling_seed": seed} for seed in seeds],
            "return_logprob": True,
        }
        reply = self._ask("/generate", body, len(seeds) * settings["max_tokens"])
        try:
            return [_written(one["meta_info"]) for one in reply]
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise self._strange(error) from None

    def _scored(self, context: list[int], ids: list[int]) -> Likelihood:
        body = {
            "input_ids": [*context, *ids],
            "sampling_params": {"max_new_tokens": 1, "temperature": 0.0},
            "return_logprob": True,
            "logprob_start_len": 0,
            "top_logprobs_num": 1,
        }
        reply = self._ask("/generate", body, 2 * (len(context) + len(ids)))
        try:
            given, likeliest = (reply["meta_info"][name] for name in ("input_token_logprobs", "input_top_logprobs"))
            pairs = zip(given[len(context) :], likeliest[len(context) :], strict=True)
            tables = [
                {int(token): SimpleNamespace(logprob=float(logp), rank=1 if int(top[0][1]) == int(token) else 2)}
                for (logp, token, _), top in pairs
            ]
            return scored(tables, ids)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise self._strange(error) from None


def _written(about: dict[str, Any]) -> FromServer:
    given = about["output_token_logprobs"]
    ids, logps = [int(token) for _, token, _ in given], [float(logp) for logp, _, _ in given]
    first, last = versions(about.get("weight_versions"))
    if first is None and "weight_version" in about:
        first = last = version(about["weight_version"])
    return FromServer(ids, logps, str(about["finish_reason"]["type"]), first, last)
