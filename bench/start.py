"""Lines typed and seconds from nothing to the first trained step: Tercet's three starts, and `trl sft`.

    python bench/start.py --data ../shared/data/train/gsm8k/train.jsonl.gz     writes bench/results/start.json

All four train SmolLM2-135M-Instruct, which lies in a folder, on the same 64 conversations, 8 rows a step, each in an
empty folder and with its own defaults otherwise. The clock runs from the first command to the end of the first
optimiser step: a line of `metrics.jsonl` here, the first move of its progress bar there. Then it is stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import peer
from tercet import machine

FILE = peer.RESULTS / "start.json"
ROWS, BATCH = 64, 8
PATIENCE = 300.0  # seconds
BAR = re.compile(rb"\b1/%d \[" % (3 * ROWS // BATCH))  # of TRL's progress over its three epochs, after the first step
TERCET, TRL = "tercet", "trl"
STARTS = {  # name: the lines that are typed
    "one line": [f"tercet sft {{model}} chats.jsonl --set stage.sft.batch={BATCH}"],
    "`new`": [
        "tercet new mine --model {model} --data chats.jsonl",
        f"tercet run mine.toml --only sft --set stage.sft.batch={BATCH}",
    ],
    "recipe by name": [
        "tercet run quickstart --only sft --set base.model={model} --set base.sha256="
        f" --set 'stage.sft-data.sources=[{{{{path = \"{{folder}}/chats.jsonl\"}}}}]' --set stage.sft.batch={BATCH}"
    ],
    "`trl sft`": [
        "trl sft --model_name_or_path {model} --dataset_name data --output_dir out --use_cpu "
        f"--per_device_train_batch_size {BATCH}"
    ],
}


def main() -> None:
    """Measure every start in turn, as often as asked for, and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="GSM8K's train.jsonl.gz")
    parser.add_argument("--model", type=Path, help="folder; SmolLM2-135M-Instruct when absent")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--more", action="store_true", help="add to the rounds that are kept")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what it has started is ended then too
    chats, model = conversations(options.data), peer.model_folder(options)
    found: dict[str, list[float]] = {name: [] for name in STARTS}
    if options.more:
        found |= {side["name"]: side["seconds"] for side in json.loads(FILE.read_text())["sides"]}
    for number in range(options.rounds):
        for name in STARTS if number % 2 == 0 else reversed(STARTS):
            found[name].append(seconds(STARTS[name], model, chats))
            print(f"round {number + 1}: {name}: {found[name][-1]:.1f} s", flush=True)
            keep(found)
    print("| start | lines | seconds to the first step |\n|---|--:|--:|")
    for name, times in found.items():
        print(f"| {name} | {len(STARTS[name])} | {statistics.median(times):.1f} |")


def keep(found: dict[str, list[float]]) -> None:
    """All that is measured so far."""
    sides = [{"name": name, "lines": STARTS[name], "seconds": times} for name, times in found.items()]
    about = {"processor": machine.processor(), "cpus": machine.cores()}
    FILE.write_text(json.dumps({"machine": about, "sides": sides}, indent=1) + "\n")


def conversations(data: Path) -> str:
    """Problems and solutions as lines of `messages`."""
    rows = peer.read(data)[:ROWS]
    turns = ([("user", row["question"]), ("assistant", row["answer"])] for row in rows)
    said = ([{"role": role, "content": text} for role, text in both] for both in turns)
    return "".join(json.dumps({"messages": messages}) + "\n" for messages in said)


def seconds(lines: list[str], model: Path, chats: str) -> float:
    """Run the lines in an empty folder until the first step is done."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        here = Path(folder)
        (here / "data").mkdir()
        for file in (here / "chats.jsonl", here / "data" / "train.jsonl"):
            file.write_text(chats)
        began = time.monotonic()
        for line in lines[:-1]:
            with (here / "before").open("w") as log:
                subprocess.run(
                    words(line, model, here), cwd=here, check=True, stdout=log, stderr=log, env=environment(here)
                )
        with (here / "log").open("wb") as log:
            child = subprocess.Popen(
                words(lines[-1], model, here),
                cwd=here,
                stdout=log,
                stderr=log,
                env=environment(here),
                start_new_session=True,
            )
        try:
            _wait(child, trained(here), here / "log")
            return time.monotonic() - began
        finally:
            _end(child)


def words(line: str, model: Path, folder: Path) -> list[str]:
    """A command's words, with the program of its own environment."""
    program, *rest = shlex.split(line.format(model=model, folder=folder))
    if program == TRL:
        return [str(Path(peer.peer_python()).with_name(TRL)), *rest]
    return [sys.executable, "-m", TERCET, *rest]


def environment(folder: Path) -> dict[str, str]:
    """Nobody's caches but those of the system, and no network."""
    own = {"HOME": str(folder), "HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1", "XDG_CACHE_HOME": str(folder)}
    return os.environ | own


def trained(folder: Path) -> Callable[[], bool]:
    """Whether the first step of either side is done."""
    return lambda: (
        any(file.stat().st_size for file in folder.rglob("metrics.jsonl"))
        or bool(BAR.search((folder / "log").read_bytes()))
    )


def _wait(child: subprocess.Popen[bytes], done: Callable[[], bool], log: Path) -> None:
    ends = time.monotonic() + PATIENCE
    while not done():
        if child.poll() is not None or time.monotonic() > ends:
            raise SystemExit(f"{child.args!r}: no step was made\n{log.read_text()[-3000:]}")
        time.sleep(0.05)


def _end(child: subprocess.Popen[bytes]) -> None:
    """Twice the way that Ctrl-C goes: the second time it ends at once, with what it has started."""
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
        if child.poll() is None:
            os.killpg(child.pid, number)
            try:
                child.wait(3)
            except subprocess.TimeoutExpired:
                continue
    child.wait()


if __name__ == "__main__":
    main()
