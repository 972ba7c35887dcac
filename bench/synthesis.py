"""Synthesis and preferences end to end, killed five times at random: the same rows and pairs, nothing paid twice.

    python bench/synthesis.py --personas personas.jsonl

`tercet serve` over a small model plays author, pool and judge through HTTP; the same weights, loaded locally, are one
more member of the pool. The recipe runs once undisturbed and once more, in another store and against a fresh server,
with SIGKILL to the pipeline and its stage at seeded moments. Compared are the tables of both runs, and the server's log
with the request logs: every answer that was written is in a log, and was written once. What was under way at a kill is
counted apart: it is asked again, and the server, which knows it by its Idempotency-Key, does not write it again.

The server computes in float64, so that an answer does not depend on what is decoded beside it: in float32 rounding
tips a drawn token about once in a hundred thousand. `--model tiny:` takes random weights that are made to speak in the
forms the stages read, which checks the accounting in a minute.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from peer import HERE, RESULTS
from tercet import machine
from tercet.models.chat import Chat
from tercet.models.generate import LocalGenerator
from tercet.models.openai.served import ServedModel
from tercet.rows import Completion, read_table

STAGES = {"follow": "rows", "sums": "rows", "refuse": "rows", "prompts": "rows", "preference-data": "pairs"}
NAMES = ("author", "twin")  # the same weights under two names
RECIPE = """
name = "synthesis"
seed = {seed}

[base]
model = "{url}#author"

[stage.twin]
kind = "model"
model = "{url}#twin"

[stage.local]
kind = "model"
model = "{local}"
sha256 = "{sha256}"

[stage.follow] # instructions with constraints; an answer has to follow them
kind = "personas"
model = "base"
write = "persona_if"
seeds = {{ path = "{personas}", adapter = "persona" }}
answers = 2
max_new_tokens = {tokens}
author_temperature = 0.7

[stage.sums] # word problems; the answers are to come
kind = "personas"
model = "base"
write = "persona_gsm"
seeds = {{ path = "{personas}", adapter = "persona" }}
rows = {others}
answers = 0
max_new_tokens = {tokens}
author_temperature = 0.7

[stage.refuse] # requests that should not simply be fulfilled; the answers are to come
kind = "personas"
model = "base"
write = "noncompliance"
seeds = {{ path = "{personas}", adapter = "persona" }}
rows = {others}
answers = 0
max_new_tokens = {tokens}
author_temperature = 0.7

[stage.prompts]
kind = "mix"
keywords = false
sources = [
    {{ stage = "follow", require_answer = false, filters = [] }},
    {{ stage = "sums", require_answer = false, filters = [] }},
    {{ stage = "refuse", require_answer = false, filters = [] }},
]

[stage.preference-data]
kind = "rated_pairs"
prompts = "prompts"
pool = ["base", "twin", "local"]
judge = "base"
rows = {rated}
drawn = 3
paper = true # a small judge seldom keeps to the form; the published run's reader is lenient
max_new_tokens = {tokens}
judge_tokens = {judge_tokens}
dtype = "float32"

[placement]
gen_rows = 1 # the local member answers one prompt at a time: rounding is then the same after a kill
requests = 16
price = [0.15, 0.60]
"""


@dataclass
class Outcome:
    """One run of the recipe: what the server noted, what the request logs hold, and the kills it went through."""

    store: Path
    served: list[dict[str, Any]] = field(default_factory=list)
    answers: list[dict[str, Any]] = field(default_factory=list)
    lost: int = 0  # requests that a log noted as asked and that a kill cut off
    kills: list[int] = field(default_factory=list)  # requests served when the kill came
    seconds: float = 0.0


def main() -> None:
    """Both runs, the checks, the result; exit code 1 when a check fails."""
    options = arguments()
    if options.act:
        return act(options)
    with tempfile.TemporaryDirectory() as name:
        work = options.work or Path(name)
        work.mkdir(parents=True, exist_ok=True)
        recipe = write_recipe(options, work)
        whole = once(options, work, recipe, "whole", [])
        chance = random.Random(options.seed)
        moments = sorted(chance.sample(range(1, len(paid(whole.served)) * 9 // 10), options.kills))
        killed = once(options, work, recipe, "killed", moments)
        found = result(options, whole, killed)
    print(json.dumps(found, indent=2))
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps(found, indent=2) + "\n")
    if not all(found["checks"].values()):
        raise SystemExit(f"failed: {', '.join(name for name, good in found['checks'].items() if not good)}")
    return None


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--model", default="", help="folder, or tiny:; SmolLM2-135M-Instruct of the quickstart if absent"
    )
    parser.add_argument("--personas", type=Path, required=True, help="jsonl file with a `persona` in every line")
    parser.add_argument("--count", type=int, default=50, help="personas used")
    parser.add_argument("--others", type=int, default=24, help="of these, for word problems and for requests to refuse")
    parser.add_argument("--rated", type=int, default=8, help="prompts that are answered by the pool and rated")
    parser.add_argument("--tokens", type=int, default=96, help="longest text")
    parser.add_argument("--judge-tokens", type=int, default=160, help="longest verdict")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=4)
    parser.add_argument("--dtype", default="float64", choices=("float32", "float64"), help="the server's precision")
    parser.add_argument("--rows", type=int, default=16, help="most answers the server writes at once")
    parser.add_argument(
        "--port", type=int, default=8377, help="the server's; part of every key, so the seeds follow it"
    )
    parser.add_argument("--threads", type=int, default=machine.cores(), help="the server's")
    parser.add_argument("--work", type=Path, help="keep stores and logs here")
    parser.add_argument("--out", type=Path, default=RESULTS / "synthesis.json")
    parser.add_argument("--log", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--act", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def write_recipe(options: argparse.Namespace, work: Path) -> Path:
    """The recipe file; the local member of the pool has the server's weights."""
    from tercet.models.base_model import SMOLLM

    base = {"local": options.model, "sha256": ""}
    if not options.model:
        base = {"local": SMOLLM.model, "sha256": SMOLLM.sha256}
    elif options.model != "tiny:":
        base["local"] = str(Path(options.model).absolute())
    facts = {name: getattr(options, name) for name in ("seed", "others", "rated", "tokens", "judge_tokens")}
    lines = options.personas.read_text(encoding="utf-8").splitlines(keepends=True)
    personas = work / "personas.jsonl"
    personas.write_text("".join(random.Random(options.seed).sample(lines, options.count)), encoding="utf-8")
    path = work / "synthesis.toml"
    url = f"http://127.0.0.1:{options.port}/v1"
    path.write_text(RECIPE.format(url=url, personas=personas.name, **base, **facts))
    return path


# ---- one run ----


def once(options: argparse.Namespace, work: Path, recipe: Path, name: str, moments: Sequence[int]) -> Outcome:
    """Run the recipe to its end against a fresh server; SIGKILL comes when so many requests have been served."""
    found = Outcome(work / name)
    log, chance = work / f"{name}.jsonl", random.Random(options.seed + 1)
    log.unlink(missing_ok=True)
    began = time.monotonic()
    with served(options, log):
        for moment in [*moments, None]:
            child = start(recipe, found.store, work / f"{name}.txt")
            while child.poll() is None and (moment is None or len(paid(read(log))) < moment):
                time.sleep(0.02)
            if moment is not None:
                time.sleep(chance.uniform(0, 0.2))
                kill(child)
                found.kills.append(len(paid(read(log))))
                print(f"{name}: killed after {found.kills[-1]} requests", flush=True)
            elif child.returncode:
                raise SystemExit(f"tercet run failed:\n{(work / f'{name}.txt').read_text()[-3000:]}")
    found.seconds = time.monotonic() - began
    found.served = read(log)
    found.answers, found.lost = logged(found.store)
    print(f"{name}: {len(paid(found.served))} requests in {found.seconds:.0f} s", flush=True)
    return found


@contextmanager
def served(options: argparse.Namespace, log: Path) -> Iterator[None]:
    """A server in its own process, until SIGTERM."""
    settings = ["--port", str(options.port), "--dtype", options.dtype, "--rows", str(options.rows), "--log", str(log)]
    if options.model == "tiny:":
        command = [str(HERE / "synthesis.py"), "--act", "--personas", str(options.personas), *settings]
    else:
        names = [part for name in NAMES for part in ("--name", name)]
        command = ["-m", "tercet", "serve", *model_of(options), *settings, *names, "--store", str(log.parent / "base")]
    environment = os.environ | {"OMP_NUM_THREADS": str(options.threads)}
    environment.pop("TERCET_API_KEY", None)
    with log.with_suffix(".server.txt").open("w") as text:
        child = subprocess.Popen([sys.executable, *command], stdout=text, stderr=text, env=environment)
    try:
        while not alive(options.port):
            if child.poll() is not None:
                raise SystemExit(f"the server ended:\n{log.with_suffix('.server.txt').read_text()[-3000:]}")
            time.sleep(0.1)
        yield
        child.terminate()
        if child.wait(120):
            raise SystemExit(f"the server ended with exit code {child.returncode}")
    finally:
        child.kill()


def model_of(options: argparse.Namespace) -> list[str]:
    """The model as `tercet serve` takes it."""
    from tercet.models.base_model import SMOLLM

    return [str(Path(options.model).absolute())] if options.model else [SMOLLM.model, "--sha256", SMOLLM.sha256]


def alive(port: int) -> bool:
    """Whether the server answers."""
    with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
        return True
    return False


def start(recipe: Path, store: Path, text: Path) -> subprocess.Popen[bytes]:
    """`tercet run`, with its output in a file."""
    command = [sys.executable, "-m", "tercet", "run", str(recipe), "--store", str(store)]
    with text.open("a") as stream:
        return subprocess.Popen(command, stdout=stream, stderr=stream, stdin=subprocess.DEVNULL)


def kill(child: subprocess.Popen[bytes]) -> None:
    """SIGKILL to the process and to all below it at once, so that nothing can clean up."""
    listed = subprocess.run(
        ("ps", "-A", "-o", "pid=", "-o", "ppid="), capture_output=True, text=True, check=True
    ).stdout
    parents = {int(pid): int(parent) for pid, parent in map(str.split, listed.splitlines())}
    doomed = [child.pid]
    for pid in doomed:
        doomed += [other for other, parent in parents.items() if parent == pid]
    for pid in reversed(doomed):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    child.wait()


def read(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a jsonl file."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def paid(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The requests for which the model wrote an answer; not those that were answered from memory."""
    return [line for line in lines if line["status"] == 200 and not line["again"]]


def logged(store: Path) -> tuple[list[dict[str, Any]], int]:
    """The answers of servers in the request logs of a store, and how many requests were asked and never answered."""
    answers, lost = [], 0
    for path in sorted((store / ".requests").glob("*.jsonl")):
        under_way: set[str] = set()
        for line in read(path):
            asked = line.get("asked", {})
            lost += len(under_way & set(asked))  # asked again: the first time was cut off
            under_way |= set(asked)
            if "key" in line:
                under_way.discard(line["key"])
                answers += [] if "/" in line["model"] else [line]  # a local model has its precision behind its key
        lost += len(under_way)
    return answers, lost


# ---- what must hold ----


def result(options: argparse.Namespace, whole: Outcome, killed: Outcome) -> dict[str, Any]:
    """Everything that was measured, and the checks."""
    tables = {stage: [table(run.store, stage, kind) for run in (whole, killed)] for stage, kind in STAGES.items()}
    checks = {f"same {stage}": one == other for stage, (one, other) in tables.items()}
    for name, run in (("whole", whole), ("killed", killed)):
        wrote = Counter(line["request"] for line in paid(run.served))
        keys = Counter(line["key"] for line in run.answers if "error" not in line)
        checks[f"{name}: no request was paid twice"] = max(wrote.values()) == 1
        checks[f"{name}: no key was answered twice"] = max(keys.values()) == 1
        checks[f"{name}: as many requests were paid as the logs have answers"] = len(wrote) == len(keys)
        checks[f"{name}: only what a kill cut off was served again"] = len(again(run)) <= run.lost
    checks["whole: the logs have the tokens that the server counted"] = counted(whole)
    checks["killed: no fewer kills than wanted"] = len(killed.kills) == options.kills
    return {
        "command": " ".join(["python", *sys.argv]),
        "machine": {"processor": machine.processor(), "cpus": machine.cores()},
        "model": options.model or "SmolLM2-135M-Instruct",
        "dtype": options.dtype,
        "personas": options.count,
        "rows": {stage: len(one) for stage, (one, _) in tables.items() if STAGES[stage] == "rows"},
        "pairs": len(tables["preference-data"][0]),
        "runs": {"whole": figures(whole), "killed": figures(killed)},
        "checks": checks,
    }


def table(store: Path, stage: str, kind: str) -> list[dict[str, Any]]:
    """The rows or pairs of a stage."""
    (folder,) = store.glob(f"{stage}-*")
    return read_table(folder / "payload" / f"{kind}.parquet")


def again(run: Outcome) -> list[dict[str, Any]]:
    """The requests that were answered from memory."""
    return [line for line in run.served if line["status"] == 200 and line["again"]]


def counted(run: Outcome) -> bool:
    """Whether server and logs count the same tokens."""
    served = [sum(line[name] for line in paid(run.served)) for name in ("prompt_tokens", "completion_tokens")]
    return served == [sum(line[name] for line in run.answers) for name in ("read", "wrote")]


def figures(run: Outcome) -> dict[str, Any]:
    """The figures of one run; tokens are those that were paid."""
    lines = paid(run.served)
    return {
        "seconds": round(run.seconds, 1),
        "requests": len(lines),
        "logged_answers": len(run.answers),
        "refused": sum(line["status"] not in (200, 499) for line in run.served),
        "prompt_tokens": sum(line["prompt_tokens"] for line in lines),
        "completion_tokens": sum(line["completion_tokens"] for line in lines),
        "kills_after_requests": run.kills,
        "under_way_at_kills": run.lost,
        "of_these_answered_from_memory": len(again(run)),
        "of_these_never_begun": sum(line["status"] == 499 for line in run.served),
    }


# ---- random weights that keep to the form ----


def act(options: argparse.Namespace) -> None:
    """Serve the tiny model; its tokens are drawn as ever and then replaced by words."""
    from tercet.models import tiny
    from tercet.models.openai import serve

    with tempfile.TemporaryDirectory() as name, socket.create_server(("127.0.0.1", options.port)) as listener:
        tiny.build(Path(name) / "model", 0)
        generator = LocalGenerator.open(Path(name) / "model", options.dtype, rows=options.rows)
        generator.chat = Actor(generator.chat.tokenizer)
        settings = serve.Settings(options.rows, log=options.log)
        serve.run([ServedModel.of(generator, *NAMES)], settings, listener)


class Actor(Chat):
    """A chat whose completions say in the wanted form what their tokens happen to be."""

    def begun(self, prompt_ids: Sequence[int]) -> str:
        """The prompt, which the completion is told."""
        return str(self.tokenizer.decode(list(prompt_ids)))

    def completion(
        self, token_ids: Sequence[int], logps: Sequence[float], stop: Sequence[str], begun: str = ""
    ) -> Completion:
        """See `Chat.completion`; takes its time, so that a kill finds requests under way."""
        time.sleep(0.03)
        found = super().completion(token_ids, logps, stop)
        return replace(found, text=spoken(begun, found), stop="eos")


WORDS = ("river", "market", "letter", "garden", "answer", "teacher", "morning", "bridge", "window", "kitchen")


def spoken(asked: str, completion: Completion) -> str:
    """Words for tokens, behind the label that was asked for; ratings where there are texts to be rated."""
    chance = random.Random(hashlib.sha256(repr(completion.token_ids).encode()).digest())
    text = " ".join(chance.choices(WORDS, k=12))
    texts = asked.partition("## Texts")[2].count("### Text ") // 2  # once with the text, once in the form
    if texts:
        return "\n".join(f"### Text {i + 1}\nRating: {chance.randint(1, 5)}\nRationale: {text}" for i in range(texts))
    label = re.search(r'Begin with "([^"]+:)', asked)
    return f"{label[1]} {text}" if label else text


if __name__ == "__main__":
    main()
