"""An OpenAI-compatible server that plays author, solver, pool and judge; what it says follows from what it is asked."""

from __future__ import annotations

import json
import random
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Author(ThreadingHTTPServer):
    """Makes up sums, solves them, now and then wrongly, and rates answers; counts all it is asked."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), AuthorHandler)
        self.asked: list[tuple[str, int | str]] = []  # what, and the seed, or the model where nothing is drawn
        self.lock, self.pause = threading.Lock(), 0.003
        self.refuses = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def __enter__(self) -> Author:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}).start()
        return self

    def __exit__(self, *args: object) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request, client_address) -> None:
        """A client that was killed."""


class AuthorHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 5
    server: Author

    def log_message(self, *args: object) -> None:
        """Silent."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        asked, seed = body["messages"][-1]["content"], body.get("seed", body["model"])
        with self.server.lock:
            self.server.asked.append((asked, seed))
        time.sleep(self.server.pause)
        chance = random.Random(f"{body['model']}/{asked}/{seed}")
        if "## Your reply" in asked:
            numbers = re.findall(r"^### Text (\d+)", asked.split("## Your reply")[1], re.MULTILINE)
            text = "\n".join(f"### Text {number}\nRating: {chance.randint(1, 5)}" for number in numbers)
        elif "Imagine" in asked:
            text = f"Math problem: What is {chance.randrange(90)} + {chance.randrange(90)}?"
        else:
            total = sum(map(int, re.findall(r"\d+", asked))) + (chance.random() < 0.3) * chance.randrange(1, 99)
            text = f"I add, draw {seed}.\nFinal Answer: The final answer is ${total}$. I hope it is correct."
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        reply = {"choices": [choice], "usage": {"prompt_tokens": 20, "completion_tokens": 30}}
        data = json.dumps(reply).encode()
        self.send_response(400 if self.server.refuses else 200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
