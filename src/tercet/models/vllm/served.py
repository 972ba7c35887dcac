"""A `vllm serve` as a replica: token ids in and out by `/inference/v1/generate`, weights by vLLM's own routes.

Completions need `--enable-scale-out`, the routes of weights and sleep `VLLM_SERVER_DEV_MODE=1`, checksums and the pair
over gloo the workers of `worker.py`; docs/engines.md has the whole command. The key guards completions alone: whoever
reaches the port of a server in that mode may change its weights, so it belongs into a private network.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlencode

from tercet.models.engines.replica import EngineError
from tercet.models.engines.served import CONTROL_SECONDS, UNSENT, FromServer, ServedEngine, version, versions
from tercet.models.vllm.generator import scored, settings_of
from tercet.rows import Likelihood, Sampling

GENERATE = "/inference/v1/generate"
LOGPROBS = "processed_logprobs"  # of the tempered distribution, as the local generator gives them
# Verbs whose values are part of the address, with what vLLM is asked for where nothing is said; the others send JSON.
IN_ADDRESS: dict[str, dict[str, Any]] = {
    "pause": {"mode": "keep"},  # what runs is kept, and goes on with the next weights
    "resume": {},
    "sleep": {"level": 1, "mode": "keep"},
    "wake_up": {},
    "reset_prefix_cache": {"reset_running_requests": "true"},
}


class VllmServer(ServedEngine):
    """A server of vLLM 0.32 or later."""

    engine = "vLLM"
    start = "start it with VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --enable-scale-out (docs/engines.md)"
    on_cpu = False

    def control(self, verb: str, **values: Any) -> Any:
        """See `Replica`: vLLM's routes have the same names."""
        if verb == "checksum":
            (found,) = {str(one) for one in self.control("collective_rpc", method="checksum")["results"]}
            return found
        if verb == "expect":
            return self.control("collective_rpc", method=verb, kwargs=values)
        if verb in IN_ADDRESS:
            query = urlencode(IN_ADDRESS[verb] | values, doseq=True)
            return self._post(f"/{verb}{'?' * bool(query)}{query}", {})
        if "weight_version" in values:
            values["weight_version"] = str(values["weight_version"])
        found = self._post(f"/{verb}", values)
        if verb == "finish_weight_update":
            self.version = version(values.get("weight_version"))
        return found

    def load(self, folder: Path) -> None:
        """See `ServedEngine`."""
        if self.version == UNSENT and Path(self.root).resolve() == folder.resolve():
            return
        if self.on_cpu:
            raise EngineError(
                f"{self.url}: vLLM on a CPU serves {self.root} and cannot load {folder}: it would keep the old copy of "
                "a tied output matrix; start it on that folder"
            )
        at = {"weights_path": str(folder.absolute())}
        self.control("pause", mode="wait")
        try:
            self.control("collective_rpc", method="reload_weights", kwargs=at)
            self.control("reset_prefix_cache")
        finally:
            self.control("resume")
        self.control("update_weight_version", new_version="0")
        self.version = 0

    def _look(self, dtype: str) -> int:
        try:
            card = self._get("/v1/models")["data"][0]
            context, self.root = int(card["max_model_len"]), str(card.get("root", ""))
            self._look_within(dtype)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise error if isinstance(error, EngineError) else self._strange(error) from None
        # A request that asks for nothing is refused as such, or because the route is closed.
        answer = self._sent(lambda: self._wire.post(GENERATE, b"{}", {}, seconds=CONTROL_SECONDS, tokens=0))
        if answer.status not in (400, 422):
            self._read(GENERATE, answer)
        return context

    def _look_within(self, dtype: str) -> None:
        """What a server in dev mode says about its settings; any other says nothing."""
        found = self._sent(lambda: self._wire.get("/server_info?config_format=json", seconds=CONTROL_SECONDS))
        if found.status != 200:
            return
        self.version = version(self._get("/weight_info")["weight_version"])
        config = self._read("/server_info", found)["vllm_config"]
        model, self.on_cpu = config["model_config"], str(config["device_config"]["device"]) == "cpu"
        for option, wanted in (("logprobs-mode", LOGPROBS), ("dtype", dtype)):
            has = str(model[option.replace("-", "_")]).removeprefix("torch.")
            if has != wanted:
                raise EngineError(f"{self.url}: vLLM runs with --{option} {has}; start it with --{option} {wanted}")

    def _write(self, prompt: list[int], sampling: Sampling, stream: int) -> list[FromServer]:
        settings = settings_of(sampling, stream, sorted(self.chat.stops))
        wanted = settings["n"] * settings["max_tokens"]
        body = {"token_ids": prompt, "sampling_params": settings}
        reply = self._ask(GENERATE, body, wanted)
        try:
            choices = sorted(reply["choices"], key=lambda choice: choice["index"])
            return [_written(choice) for choice in choices]
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise self._strange(error) from None

    def _scored(self, context: list[int], ids: list[int]) -> Likelihood:
        settings = {"max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0, "detokenize": False}
        body = {"token_ids": [*context, *ids], "sampling_params": settings}
        reply = self._ask(GENERATE, body, len(context) + len(ids))
        try:
            tables = [
                {int(token): SimpleNamespace(**one) for token, one in table.items()}
                for table in reply["prompt_logprobs"][len(context) :]
            ]
            return scored(tables, ids)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise self._strange(error) from None


def _written(choice: dict[str, Any]) -> FromServer:
    ids = [int(token) for token in choice["token_ids"]]
    logps = [float(one["logprob"]) for one in choice["logprobs"]["content"]] if ids else []
    if len(logps) != len(ids):
        raise ValueError(f"{len(logps)} log-probabilities of {len(ids)} tokens")
    return FromServer(ids, logps, str(choice["finish_reason"]), *versions(choice.get("weight_versions")))
