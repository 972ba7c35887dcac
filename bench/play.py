"""The page of a run under load: how soon the first token of every column is there, and twenty visitors at once.

Starts `tercet play STORE`, asks all its local columns the same question at the same time, again and again, and then
lets every visitor ask all of them a question of its own. An answer counts as whole when its stream ends as the protocol
says, its tokens are those that its usage counts, and a greedy answer is the one that the same question gets alone.

With --browser FOLDER (where `npm install playwright-core` was run) the first token is also measured in Chromium, from
the key Enter to the frame that shows it: `python bench/play.py STORE --browser FOLDER`.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import httpx2

from tercet import machine

ROUNDS = 5
QUESTION = "How many apples are left when {} of {} are eaten?"


class Streamed(NamedTuple):
    """One streamed answer: seconds to its first token, its text, whether nothing of it is missing."""

    first: float
    text: str
    whole: bool


def ask(url: str, model: str, question: str, tokens: int = 8) -> Streamed:
    """The streamed answer of one column, of so many tokens at most."""
    body = {
        "model": model, "messages": [{"role": "user", "content": question}], "stream": True, "temperature": 0,
        "max_tokens": tokens, "seed": 0, "logprobs": True, "top_logprobs": 5, "return_token_ids": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip
    began, first, text, ids, usage, ended, reason = time.monotonic(), 0.0, "", 0, 0, False, ""
    with httpx2.stream("POST", f"{url}v1/chat/completions", json=body, timeout=600) as response:
        for line in response.iter_lines():
            ended = ended or line == "data: [DONE]"
            chunk: dict[str, Any] = json.loads(line[6:]) if line.startswith("data: {") else {}
            usage = (chunk.get("usage") or {}).get("completion_tokens", usage)
            for choice in chunk.get("choices", ()):
                first = first or time.monotonic() - began
                text += choice["delta"].get("content") or ""
                ids += len(choice.get("token_ids") or ())
                reason = choice["finish_reason"] or reason
    return Streamed(first, text, ended and bool(reason) and ids == usage > 0)


def columns(url: str) -> list[str]:
    """The local columns of the page, once their weights are in memory."""
    names = [one["name"] for one in httpx2.get(f"{url}play/config").json()["columns"] if not one["server"]]
    for name in names:
        ask(url, name, "Hello?")
    return names


def measured(url: str, visitors: int) -> dict[str, Any]:
    """Both figures."""
    names = columns(url)
    with ThreadPoolExecutor(visitors * len(names)) as pool:
        firsts = []
        for number in range(ROUNDS):
            question = QUESTION.format(number, 9)
            firsts.append([one.first for one in pool.map(lambda name, q=question: ask(url, name, q), names)])
        asked = [(name, QUESTION.format(i, 100 + i)) for i in range(visitors) for name in names]
        began = time.monotonic()
        answers = list(pool.map(lambda both: ask(url, *both), asked))
        seconds = time.monotonic() - began
    alone = [ask(url, *both).text for both in asked[: 2 * len(names)]]
    return {
        "columns": names,
        "first token, seconds": {"of any column": round(statistics.median(map(min, firsts)), 3),
                                 "of every column": round(statistics.median(map(max, firsts)), 3)},
        "visitors": visitors,
        "answers": len(answers),
        "whole": sum(one.whole for one in answers),
        "seconds": round(seconds, 1),
        "as alone": f"{sum(a == b.text for a, b in zip(alone, answers, strict=False))} of {len(alone)}",
    }  # fmt: skip


def on_screen(url: str, folder: Path) -> dict[str, Any]:
    """Seconds from Enter to the frame with a token, in the page."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome") or "chromium"
    script = Path(__file__).with_name("first_token.mjs")
    command = ["node", str(script), str(folder / "node_modules"), chromium, url, str(ROUNDS)]
    rounds = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, timeout=900).stdout)
    return {"of any column": round(statistics.median(map(min, rounds)), 3),
            "of every column": round(statistics.median(map(max, rounds)), 3),
            "worst": round(max(map(max, rounds)), 3), "columns": min(map(len, rounds))}  # fmt: skip


def main() -> None:
    """Serve, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", type=Path)
    parser.add_argument("--visitors", type=int, default=20)
    parser.add_argument("--browser", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "play.json")
    args = parser.parse_args()
    command = [sys.executable, "-m", "tercet", "play", str(args.store), "--port", "0", "--read-only"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            (url,) = re.findall(r"http://\S+/", server.stdout.readline())
            found = {"machine": machine.processor(), "cores": machine.cores(), **measured(url, args.visitors)}
            if args.browser:
                found["first token on screen, seconds"] = on_screen(url, args.browser)
        finally:
            server.terminate()
    args.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
