"""Servers with the routes and fields of `vllm serve` 0.32 and of SGLang 0.5.23, as far as a replica asks for them.

What is "written" is a function of the prompt and the seed; fields that the engines do not know are refused, as they do.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Body = dict[str, Any]
VLLM_FIELDS = {"n", "max_tokens", "temperature", "top_p", "top_k", "seed", "stop", "stop_token_ids", "ignore_eos"}
VLLM_FIELDS |= {"logprobs", "detokenize", "prompt_logprobs"}
SGLANG_FIELDS = {"max_new_tokens", "temperature", "top_p", "top_k", "stop", "stop_token_ids", "ignore_eos"}
SGLANG_FIELDS |= {"sampling_seed", "n", "no_stop_trim"}
SGLANG_REQUEST = {"input_ids", "sampling_params", "return_logprob", "logprob_start_len", "top_logprobs_num"}


def written(prompt: list[int], seed: int | None, most: int) -> tuple[list[int], list[float]]:
    """What stands for a model: three tokens and their log-probabilities."""
    ids = [(prompt[-1] + (seed or 0) + k) % 50 + 40 for k in range(3)][:most]
    return ids, [-0.5 - 0.25 * k for k in range(len(ids))]


class EngineServer(ThreadingHTTPServer):
    """A free port of this machine; what was asked is in `asked`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, Body]] = []
        self.label, self.key, self.hold = "default", "", threading.Event()
        self.settings = {"logprobs_mode": "processed_logprobs", "dtype": "torch.float32"}
        self.device, self.refusal, self.broken = "cuda", {}, False
        self.hold.set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone away."""

    def answer(self, path: str, body: Body) -> tuple[int, Any]:
        """Status and body for a request; of the kinds below."""
        return 404, {"error": f"no {path}"}


class VllmLike(EngineServer):
    def answer(self, path: str, body: Body) -> tuple[int, Any]:
        if path == "/v1/models":
            return 200, {"data": [{"id": "m", "root": "/models/m", "max_model_len": 64}]}
        if path == "/server_info?config_format=json":
            return 200, {"vllm_config": {"model_config": self.settings, "device_config": {"device": self.device}}}
        if path == "/inference/v1/generate":
            return (200, self.generated(body)) if "token_ids" in body else (422, {"error": {"message": "token_ids"}})
        if path == "/weight_info":
            return 200, {"weight_version": self.label}
        if path == "/collective_rpc":
            return 200, {"results": ["0123abcd"] if body["method"] == "checksum" else [None]}
        if path == "/finish_weight_update":
            self.label = body["weight_version"]
        if path == "/update_weight_version":
            self.label = body["new_version"]
        return 200, {}

    def generated(self, body: Body) -> Body:
        wanted = body["sampling_params"]
        assert wanted.keys() <= VLLM_FIELDS
        prompt = body["token_ids"]
        choices = []
        for i in range(wanted.get("n", 1)):
            ids, logps = written(prompt, wanted.get("seed") and wanted["seed"] + i, wanted["max_tokens"])
            content = [{"token_id": t, "logprob": p, "rank": 1} for t, p in zip(ids, logps, strict=True)]
            spans = [{"version": self.label, "start": 0, "end": len(ids)}]
            logprobs = {"content": content} if "logprobs" in wanted else None
            found = {"token_ids": ids, "logprobs": logprobs, "finish_reason": "length", "weight_versions": spans}
            choices.insert(0, {"index": i, **found})
        told: list[Any] = [None]
        told += [{str(t): {"logprob": -t / 8, "rank": 1 + t % 2, "decoded_token": None}} for t in prompt[1:]]
        return {"choices": choices, "prompt_logprobs": told if "prompt_logprobs" in wanted else None}


class SglangLike(EngineServer):
    def answer(self, path: str, body: Body) -> tuple[int, Any]:
        if path == "/model_info":
            return 200, {"model_path": "/models/m", "weight_version": self.label}
        if path == "/server_info":
            return 200, {"max_req_input_len": 64, "dtype": str(self.settings["dtype"]).removeprefix("torch.")}
        if path == "/generate":
            assert body.keys() <= SGLANG_REQUEST
            ids, wanted = body["input_ids"], body["sampling_params"]
            if isinstance(ids[0], int):
                return 200, self.generated(ids, wanted, body)
            return 200, [self.generated(one, how, body) for one, how in zip(ids, wanted, strict=True)]
        if path == "/update_weights_from_disk":
            self.label = body["weight_version"]
            return 200, {"success": True, "message": "", "num_paused_requests": 0}
        return 200, {"message": "done", "status": "ok"}

    def generated(self, prompt: list[int], wanted: Body, body: Body) -> Body:
        assert wanted.keys() <= SGLANG_FIELDS
        ids, logps = written(prompt, wanted.get("sampling_seed"), wanted["max_new_tokens"])
        spans = [{"version": self.label, "start": 0, "end": len(ids)}]
        about: Body = {"finish_reason": {"type": "length", "length": len(ids)}, "weight_versions": spans}
        about["output_token_logprobs"] = [[p, t, None] for t, p in zip(ids, logps, strict=True)]
        if body.get("logprob_start_len") == 0:
            about["input_token_logprobs"] = [[None, prompt[0], None], *([-t / 8, t, None] for t in prompt[1:])]
            about["input_top_logprobs"] = [None, *([[-0.01, t + t % 2, None]] for t in prompt[1:])]
        return {"text": "", "output_ids": ids, "meta_info": about}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: EngineServer

    def log_message(self, *args: object) -> None:
        """Silent."""

    def do_GET(self) -> None:
        self.do_POST()

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", "0"))) or b"{}")
        server.asked.append((self.path, body))
        if server.broken:
            self.close_connection = True
            return
        if server.key and self.headers.get("Authorization") != f"Bearer {server.key}":
            status, reply = 401, {"error": "Unauthorized"}
        elif self.path in server.refusal:
            status, reply = server.refusal[self.path]
        else:
            status, reply = server.answer(self.path, body)
        if "generate" in self.path:
            server.hold.wait(10)
        data = json.dumps(reply).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def running(kind: type[EngineServer]) -> Iterator[Any]:
    """A server that answers until the end."""
    with kind() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.hold.set()
            server.shutdown()
