"""How long the first token takes with four stages behind one server, and what joining requests are worth.

python bench/serving.py --store runs          the four models of a finished quickstart; `tiny:` four times when absent
"""

from __future__ import annotations

import argparse
import json
import statistics
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from socket import create_server
from typing import Any

import httpx2

from peer import RESULTS
from tercet import machine
from tercet.cli.run_models import of_store
from tercet.models.openai.serve import Settings, app, web_server
from tercet.models.openai.served import ServedModel
from tercet.precision import resolve
from tercet.store import Store

QUESTION = "Write a short letter to a friend about a walk by the river, and say what the weather was like."


def main() -> None:
    """Serve, ask, write the result."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    dtype = resolve(options.dtype)
    folders = [(artifact.path.name, artifact.payload) for artifact in of_store(Store(options.store)).models][:4]
    models = [ServedModel.at([name], folder, dtype) for name, folder in folders]
    web = app(models, Settings(kept=4))
    server = web_server(web)
    with create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1/chat/completions"
            found = measured(url, [name for name, _ in folders], options)
        finally:
            server.should_exit = True
            thread.join()
            web.state.batcher.close()
    found |= {"dtype": dtype, "cores": machine.cores(), "processor": machine.processor()}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "serving.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=2))


def measured(url: str, names: Sequence[str], options: argparse.Namespace) -> dict[str, Any]:
    """Seconds to the first token and tokens a second, by how many ask at once."""
    began = time.monotonic()
    for name in names:
        ask(url, name, 1)
    found: dict[str, Any] = {"seconds_to_load": time.monotonic() - began, "models": list(names)}
    kinds: dict[str, list[str]] = {
        "one of one": [*names[:1]],
        "four stages in step": [*names],
        "eight of one": [*names[:1]] * 8,
        "twenty over four": [*names] * 5,
    }
    for title, asked in kinds.items():
        rounds = [together(url, asked, options.tokens) for _ in range(options.rounds)]
        firsts = [first for one in rounds for first, _, _, _ in one["answers"]]
        found[title] = {
            "first_token_median": statistics.median(firsts),
            "first_token_worst": max(firsts),
            "first_token_worst_in_cpu_seconds": statistics.median(
                max(cpu for _, _, _, cpu in one["answers"]) for one in rounds
            ),
            "tokens_per_second": statistics.median(one["tokens"] / one["seconds"] for one in rounds),
            "cpu_seconds": statistics.median(one["cpu"] for one in rounds),
        }
        print(json.dumps({title: found[title]}), flush=True)
    return found


def together(url: str, names: Sequence[str], tokens: int) -> dict[str, Any]:
    """All of these at once; seconds of CPU are those of all threads of this process, the server's too."""
    began, cpu = time.monotonic(), time.process_time()
    with ThreadPoolExecutor(len(names)) as pool:
        answers = list(pool.map(lambda name: ask(url, name, tokens), names))
    spent = {"seconds": time.monotonic() - began, "cpu": time.process_time() - cpu}
    return {"answers": answers, "tokens": sum(n for _, _, n, _ in answers), **spent}


def ask(url: str, name: str, tokens: int) -> tuple[float, float, int, float]:
    """Seconds to the first text and to the end, the number of tokens, and seconds of CPU to the first text."""
    body = {"model": name, "messages": [{"role": "user", "content": QUESTION}], "max_tokens": tokens, "seed": 1}
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    began, start, first, cpu, wrote = time.monotonic(), time.process_time(), 0.0, 0.0, 0
    with httpx2.stream("POST", url, json=body, timeout=600) as response:
        for line in response.iter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line.removeprefix("data: "))
            if chunk.get("usage"):
                wrote = chunk["usage"]["completion_tokens"]
            elif not first and any(choice["delta"].get("content") for choice in chunk["choices"]):
                first, cpu = time.monotonic() - began, time.process_time() - start
    return first or time.monotonic() - began, time.monotonic() - began, wrote, cpu


if __name__ == "__main__":
    main()
