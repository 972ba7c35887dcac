"""A long use in miniature: nothing may grow. The gate takes a tenth of it, `TERCET_ATTACK=full` everything."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.attack.scale import times

from tercet.sandbox.run import SandboxError, isolation, run_program

GROWTH = 1.05 if times(100) == 100 else 1.10  # of resident memory after a beginning; caches fill longer than a tenth
CLIENTS = 50


@dataclass(frozen=True)
class Use:
    """What a process holds."""

    memory_mb: float
    descriptors: int
    threads: int
    children: int

    @classmethod
    def of(cls, pid: int) -> Use:
        """What it holds now."""
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        children = sum(len((task / "children").read_text().split()) for task in tasks)
        return cls(pages * 4096 / 1e6, len(os.listdir(f"/proc/{pid}/fd")), len(tasks), children)


def check(what: str, first: Use, last: Use, capsys: pytest.CaptureFixture[str]) -> None:
    """Memory is flat, and nothing else is left."""
    with capsys.disabled():
        sys.stdout.write(f"\n{what}: {first} -> {last} ({last.memory_mb / first.memory_mb - 1:+.1%})\n")
    assert last.memory_mb < first.memory_mb * GROWTH
    assert (last.descriptors, last.threads, last.children) == (first.descriptors, first.threads, first.children)


def settled(pid: int, like: Use | None = None) -> Use:
    """What a process holds once it is at rest: like before, or after some seconds."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        time.sleep(1.0)
        found = Use.of(pid)
        if like and (found.descriptors, found.threads, found.children) == (
            like.descriptors, like.threads, like.children,
        ):  # fmt: skip
            return found
        if not like and time.monotonic() > end - 17:
            return found
    return Use.of(pid)


@contextlib.contextmanager
def serving(folder: Path, store: Path) -> Iterator[tuple[int, int]]:
    """Process id and port of `tercet serve`."""
    command = [sys.executable, "-m", "tercet", "serve", str(folder), "--port", "0", "--dtype", "float32"]
    environment = {name: value for name, value in os.environ.items() if name != "TERCET_API_KEY"}
    with subprocess.Popen(
        [*command, "--store", str(store), "--log", str(store / "log"), "--name", "tiny"],
        stdout=subprocess.PIPE, env=environment | {"OMP_NUM_THREADS": "1"}, text=True,
    ) as server:  # fmt: skip
        try:
            assert server.stdout
            found = re.search(r":(\d+)/v1;", server.stdout.readline())
            assert found
            yield server.pid, int(found[1])
            server.send_signal(signal.SIGINT)
            assert server.wait(30) == 0
        finally:
            server.kill()


def chat(port: int, numbers: range) -> list[int]:
    """The statuses of chats over one connection after another, a few each; every seventh request is refused.

    All prompts are equal: for every shape of a product that it has seen, torch keeps what it compiled for it, up to
    some hundreds of MB (with many lengths 454 MB after 512 prompts, 689 MB after 20,000 and from there on).
    """
    found: list[int] = []
    for begin in range(0, len(numbers), 10):
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=120)) as connection:
            for number in numbers[begin : begin + 10]:
                said = [{"role": "user", "content": "Say something."}]
                body = {"model": "tiny", "messages": said, "max_tokens": 4, "seed": number, "n": number % 7 and 1}
                headers = {"Idempotency-Key": f"k{number}"} if number % 3 == 0 else {}
                connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
                answer = connection.getresponse()
                answer.read()
                found.append(answer.status)
    return found


def test_five_thousand_requests_of_fifty_clients_leave_the_server_as_it_was(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    each = times(5000) // CLIENTS
    with serving(tiny_folder, tmp_path) as (pid, port), ThreadPoolExecutor(CLIENTS) as pool:
        asked = [range(client * each, (client + 1) * each) for client in range(CLIENTS)]
        for _ in range(times(2)):  # until what torch keeps is there
            list(pool.map(lambda numbers: chat(port, numbers), asked))
        first = settled(pid)
        found = [status for part in pool.map(lambda numbers: chat(port, numbers), asked) for status in part]
        last = settled(pid, first)
    assert len(found) == each * CLIENTS
    assert found.count(200) == sum(number % 7 > 0 for number in range(each * CLIENTS))
    assert set(found) == {200, 400}
    check(f"serve, {len(found)} requests of {CLIENTS} clients", first, last, capsys)


PROGRAMS = [
    "assert sum(range(10)) == 45",
    "raise ValueError('no')",
    "open('a', 'w').write('x' * 1000)\nprint('y' * 5000)",
    "import os\nos._exit(0)",
    "while True: pass",
    "import threading, time\nthreading.Thread(target=time.sleep, args=(9,)).start()",
    "import os\nfor i in range(50): os.makedirs(f'd{i}/e/f')",
    "hoard = bytearray(b'x') * (900 << 20)",
]


@pytest.mark.parametrize("wanted", ["auto", "landlock"])
def test_five_hundred_programs_leave_no_process_descriptor_or_folder(
    wanted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        level = isolation(wanted)
    except SandboxError as error:
        pytest.skip(str(error))
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(4) as pool:
        os.chmod(folder, 0o755)
        monkeypatch.setattr(tempfile, "tempdir", folder)

        def run(number: int) -> str:
            ran = run_program(PROGRAMS[number % len(PROGRAMS)], seconds=0.5, memory_mb=256, sandbox=level)
            return ran.detail if ran.outcome == "error" else ran.outcome

        count = times(500)
        list(pool.map(run, range(max(8, count // 5))))
        first = Use.of(os.getpid())
        found = list(pool.map(run, range(count)))
        last = settled(os.getpid(), first)
        assert os.listdir(folder) == []
    assert set(found) == {"passed", "failed", "timeout"}
    check(f"sandbox ({level}), {count} programs", first, last, capsys)
